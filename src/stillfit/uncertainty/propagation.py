"""Bayesian networks in one pass: the moments of the Gaussian weights go through the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.arrays import take
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Mixture
from stillfit.models import uncertain
from stillfit.models.likelihood import GaussianLikelihood, likelihood_of
from stillfit.models.task import Answer, Classification, Task
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.uncertain import Stated, n_events, n_rows, stretch
from stillfit.uncertainty.bayesian import Bayesian, copy_posterior
from stillfit.uncertainty.conversion import plain_network
from stillfit.uncertainty.layers import Draw, drawing
from stillfit.uncertainty.moments import Moments
from stillfit.uncertainty.passes import CHUNK, serving


class MomentPropagation(Bayesian):
    """A Bayesian network that predicts by closed-form moments, without samples.

    Training, prior and knobs as `Bayesian`. In prediction each layer takes mean and variance of
    its inputs (taken as independent Gaussians) and gives those of its outputs:

        dense, convolution: m = m_w m_x + m_b, v = m_w^2 v_x + v_w (m_x^2 + v_x) + v_b, summed
        ReLU: m = m_x P + s_x p, v = E[relu^2] - m^2, P, p: the normal's at m_x / s_x

    With a Gaussian likelihood the outputs (m_0, v_0), (m_1, v_1) of mean and log-variance state
    mean m_0, epistemic variance v_0 and aleatoric variance exp(m_1 + v_1 / 2), together one
    Gaussian. Where no mean is uncertain (only the event head of a vertex network is Gaussian:
    `layers=("sigma",)`), it cannot tell and states the sum.

    Correlations between features are lost, which costs accuracy in deep networks. Only layers
    with closed forms (see `moments`), and only Gaussian likelihoods: else `ConfigError`.
    Cost: two passes' multiply-accumulates (mean and variance); no bank.
    Source: Hernandez-Lobato and Adams 2015, arXiv:1502.05336.
    """

    def __init__(
        self,
        network: nn.Module,
        prior_std: float = 1.0,
        seed: int = 0,
        start_std: float = 0.1,
        kl_weight: float = 1.0,
        events: int | None = None,
        layers: Sequence[str] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__(network, 2, prior_std, seed, start_std, kl_weight, events, layers, chunk)

    @classmethod
    def of(cls, sampled: Bayesian) -> MomentPropagation:
        """The fast form of a network that predicts by samples, with its posterior."""
        new = cls(
            plain_network(sampled.core, None),
            sampled.prior_std,
            sampled.seed,
            sampled.start_std,
            sampled.kl_weight,
            sampled.events,
            sampled.layers,
            sampled.chunk,
        )
        copy_posterior(sampled, new)
        return new.train(sampled.training)

    @staticmethod
    def _bank(samples: int) -> int:
        return 0

    def _own(self) -> dict[str, Any]:
        return {}

    def moments(self) -> nn.Module:
        return self

    def member(self, k: int) -> nn.Module:
        raise ConfigError("moments have no members; the means alone are plain_network(core, None)")

    def check(self, task: Task, examples: Examples) -> None:
        """`ConfigError` where moments cannot pass: asked early, of one event."""
        few = take(examples.inputs, slice(0, 1))
        with torch.no_grad():
            self._moments(task, tensors(uncertain.prepare(task, self, few)))

    def passes(self, task: Task, inputs: Tensors) -> Answer:
        """Two points, a deviation below and above the mean, whose mixture has these moments."""
        raw, rest = self._moments(task, inputs)
        log_noise = raw.mean[:, 1] + raw.variance[:, 1] / 2
        std = torch.sqrt(raw.variance[:, 0])
        points = [torch.stack([raw.mean[:, 0] + sign * std, log_noise], 1) for sign in (-1, 1)]
        return torch.stack(points), *(part.expand(2, *part.shape) for part in rest)

    def predict(self, task: Task, inputs: Tensors) -> Stated:
        raw, rest = self._moments(task, inputs)
        likelihood = likelihood_of(self.core)
        assert isinstance(likelihood, GaussianLikelihood)
        middle = torch.stack([raw.mean[:, 0], raw.mean[:, 1] + raw.variance[:, 1] / 2], 1)
        mean, log_noise = likelihood.split(middle.double())
        noise = _array(torch.exp(log_noise))
        ignorance = _array(raw.variance[:, 0])
        stated = (
            Mixture.from_parts(_array(mean), noise, ignorance)
            if ignorance.any()
            else Mixture.gaussian(_array(mean), noise)
        )
        _, outputs = task.state(self.core, (middle[None], *(p[None] for p in rest)), inputs)
        return stated, outputs

    def _moments(self, task: Task, inputs: Tensors) -> tuple[Moments, Answer]:
        """Moments of the likelihood's parameters (n, 2), and the task's other answers."""
        likelihood = likelihood_of(self.core)
        if isinstance(task, Classification) or not isinstance(likelihood, GaussianLikelihood):
            what = type(task if isinstance(task, Classification) else likelihood).__name__
            raise ConfigError(
                f"moments state the mean and variance of a Gaussian likelihood, not of {what}; "
                "use Bayesian, which samples"
            )
        n, rows = n_events(inputs), n_rows(inputs)
        events = max(1, self.chunk * max(n, 1) // max(rows, 1))
        with serving(self), drawing(Draw.MOMENTS):
            if events >= n:
                return self._checked(task.answer(self.core, inputs))
            parts = [
                self._checked(task.answer(self.core, stretch(inputs, low, min(low + events, n))))
                for low in range(0, n, events)
            ]
        raw = Moments(
            torch.cat([raw.mean for raw, _ in parts]), torch.cat([raw.variance for raw, _ in parts])
        )
        return raw, tuple(
            torch.cat(same) for same in zip(*(rest for _, rest in parts), strict=True)
        )

    @staticmethod
    def _checked(found: tuple[Any, ...]) -> tuple[Moments, Answer]:
        raw, rest = found[0], found[1:]
        if not isinstance(raw, Moments) or any(isinstance(part, Moments) for part in rest):
            raise ConfigError(
                "the Gaussian layers do not lie where the likelihood's parameters come from, so "
                "there are no moments to state; choose others in `layers`"
            )
        return raw, rest


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
