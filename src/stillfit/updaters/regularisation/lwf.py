"""Learning without forgetting: fresh events answered as the serving network answers them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.likelihood import GaussianLikelihood, likelihood_of
from stillfit.models.model import Model
from stillfit.models.networks import copy_network
from stillfit.models.task import Answer, Classification, Regression, Task
from stillfit.models.tensors import Tensors
from stillfit.models.training import Guide, Part, Prepared, Schedule, fit
from stillfit.models.uncertain import core_of
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.regularisation.importance import answers

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class LwF(Updater):
    """Fine-tune on fresh events, and answer them as the serving network answers them.

    Loss: the task's + `penalty` x distance of the answers from the serving network's on the same
    events, mean over events and passes:

    - classes: T^2 KL(softmax(z_old / T) || softmax(z / T)), T = `temperature`; a higher one
      minds the order of the unlikely classes more;
    - a Gaussian (mean and variance): KL(old || new) of the distributions;
    - other likelihoods, and other tasks: the squared difference of every output, over its
      variance across the batch.

    A larger penalty keeps more of the old answers, right or wrong, on the *fresh* events: where
    a shift makes them wrong it hinders, and what fresh events do not reach is not held. 0 is
    fine-tuning; a huge one keeps the answers (not the weights). It keeps no state, needs no old
    events, and no task id: the paper's separate heads are one here.

    Cost: two more passes per step, in all passes of a network of several. Inference: none.
    Source: Li and Hoiem 2016, arXiv:1606.09282; T^2: Hinton et al. 2015, arXiv:1503.02531.
    """

    penalty: float = 1.0
    temperature: float = 2.0
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))
    min_events: int = 200

    def __post_init__(self) -> None:
        if not (self.penalty >= 0 and math.isfinite(self.penalty)):
            raise ConfigError(
                f"penalty of LwF must be 0 or more and finite, got {self.penalty}; 0 is plain "
                "fine-tuning, a huge one keeps the old answers"
            )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"temperature must be positive and finite, got {self.temperature}; 1 leaves the "
                "probabilities as they are, 2 is usual"
            )
        if self.min_events < 1:
            raise ConfigError(
                f"min_events of LwF must be 1 or more and finite, got {self.min_events}; an "
                "update needs an event"
            )

    def update(
        self,
        serving: Model,
        learner: Learner,
        fresh: Examples,
        memory: Memory,
        *,
        budget: Budget,
        rng: np.random.Generator,
    ) -> Candidate[Model] | Declined:
        few = too_few(fresh, self.min_events, "learning without forgetting")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        model = serving.copy()
        guide = None
        if self.penalty:
            guide = Distilling(serving, self.penalty, self.temperature)
        parts = [Part(Prepared.of(model, fresh), self.schedule.batch)]
        steps = fit(model, parts, self.schedule, rng, guide=guide)
        return meter.finish(model, learner, [fresh], budget, steps=steps)


class Distilling(Guide):
    """Adds the distance from a teacher's answers, both networks in evaluation mode."""

    def __init__(self, teacher: Model, penalty: float, temperature: float) -> None:
        self.task = teacher.task
        self.teacher = copy_network(teacher.network).eval()
        self.weight, self.temperature = penalty, temperature

    def away(self, network: nn.Module, inputs: Tensors) -> Tensor:
        """The distance itself, a scalar; `network` is left in the mode that it has."""
        with torch.no_grad():
            old = answers(self.task, self.teacher, inputs)
        # In evaluation mode, so that dropout does not blur what is compared and batch-norm
        # statistics do not move twice per step.
        training = network.training
        network.eval()
        try:
            new = answers(self.task, network, inputs)
        finally:
            network.train(training)
        return distance(self.task, network, old, new, self.temperature)

    def penalty(self, network: nn.Module, inputs: Tensors) -> Tensor:
        return self.weight * self.away(network, inputs)


def distance(
    task: Task, network: nn.Module, old: Answer, new: Answer, temperature: float
) -> Tensor:
    """How far answers (passes, rows, ...) are from others, a scalar; see `LwF`."""
    if isinstance(task, Classification):
        return softened(old[0], new[0], temperature)
    likelihood = likelihood_of(core_of(network))
    if isinstance(task, Regression) and isinstance(likelihood, GaussianLikelihood):
        return gaussian(likelihood, old[0], new[0])
    parts = [relative(one, other) for one, other in zip(old, new, strict=True)]
    return torch.stack(parts).sum()


def softened(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    """T^2 KL of classes' probabilities at a temperature, mean over passes and events."""
    was = torch.log_softmax(old / temperature, -1)
    now = torch.log_softmax(new / temperature, -1)
    return temperature**2 * (was.exp() * (was - now)).sum(-1).mean()


def gaussian(likelihood: GaussianLikelihood, old: Tensor, new: Tensor) -> Tensor:
    """KL of Gaussians, mean over passes and events, nats."""
    (m, s), (mean, log_variance) = likelihood.split(old), likelihood.split(new)
    away = torch.exp(s - log_variance) + (m - mean) ** 2 * torch.exp(-log_variance)
    return 0.5 * (log_variance - s + away - 1).mean()


def relative(old: Tensor, new: Tensor) -> Tensor:
    """Squared difference over the old answers' variance, summed over columns, mean over rows."""
    if not old.numel():
        return new.sum()
    was = old.reshape(old.shape[0] * old.shape[1], -1)
    now = new.reshape(was.shape)
    variance = was.var(0, correction=0)
    # Outputs that hardly vary are compared in their own unit.
    tiny = TINY * (was**2).mean(0)
    variance = torch.where(variance > tiny, variance, torch.ones_like(variance))
    return ((now - was) ** 2 / variance).mean(0).sum()
