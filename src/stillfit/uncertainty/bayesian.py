"""Bayesian networks: a Gaussian for each weight, learned by variational inference."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.models.task import Task
from stillfit.models.tensors import Tensors
from stillfit.uncertainty.conversion import converted, is_plain, plain_network
from stillfit.uncertainty.dropout import draw_of
from stillfit.uncertainty.layers import Draw, Op, Plain, Source, Weights, drawing, layer_of
from stillfit.uncertainty.moments import propagated
from stillfit.uncertainty.passes import CHUNK, Passes, checked_members


class _Kept:
    """Sampled weights between two predictions; a copy of a network starts without."""

    def __init__(self) -> None:
        self.learned: list[tuple[Tensor, int, int]] = []
        self.held: list[Tensor] = []
        self.weights: Weights | None = None

    def of(self, learned: list[Tensor]) -> Weights | None:
        """The weights, if they were sampled from what is learned now."""
        same = len(learned) == len(self.learned) and all(
            p is q and p._version == version and p.data_ptr() == place
            for p, (q, version, place) in zip(learned, self.learned, strict=True)
        )
        return self.weights if same else None

    def keep(self, learned: list[Tensor], weights: Weights) -> Weights:
        """Remember both; the learned numbers' memory is held, so that no other can take it."""
        self.learned = [(p, p._version, p.data_ptr()) for p in learned]
        self.held = [p.detach() for p in learned]
        self.weights = weights
        return weights

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept()


class GaussianWeights(Source):
    """Independent Gaussians: means `weight`, `bias`, and the logarithms of their deviations.

    A log-deviation can neither become negative nor vanish, whatever the step, and the divergence
    has it as a term, so that no deviation runs away to 0. The bank: `samples` draws of standard
    normals, buffers.
    """

    weight_noise: Tensor
    bias_noise: Tensor | None

    def __init__(
        self, like: Plain, samples: int, start_std: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        weight, bias = like.weight.detach(), like.bias
        log_std = math.log(start_std / math.sqrt(weight[0].numel()))
        self.weight = nn.Parameter(weight.clone())
        self.weight_log_std = nn.Parameter(torch.full_like(weight, log_std))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        spread = None if bias is None else torch.full_like(bias, log_std).detach()
        self.bias_log_std = None if spread is None else nn.Parameter(spread)
        if samples:
            shape = (samples, *weight.shape)
            self.register_buffer("weight_noise", torch.randn(shape, generator=generator))
            noise = None if bias is None else torch.randn(samples, len(bias), generator=generator)
            self.register_buffer("bias_noise", noise)
        self._kept = _Kept()

    def _learned(self) -> list[Tensor]:
        parts = (self.weight, self.weight_log_std, self.bias, self.bias_log_std)
        return [part for part in parts if part is not None]

    def weights(self, passes: slice) -> Weights:
        learned = self._learned()
        # Inside a copy that was made in inference mode, nothing tells whether numbers changed.
        if torch.is_grad_enabled() or any(p.is_inference() for p in learned):
            return self._sampled(passes)
        kept = self._kept.of(learned)
        if kept is None:
            kept = self._kept.keep(learned, self._sampled(slice(0, len(self.weight_noise))))
        weight, bias = kept
        if passes.stop - passes.start == weight.shape[0]:
            return weight, bias
        return weight[passes], None if bias is None else bias[passes]

    def _sampled(self, passes: slice) -> Weights:
        weight = self.weight + torch.exp(self.weight_log_std) * self.weight_noise[passes]
        if self.bias is None or self.bias_log_std is None or self.bias_noise is None:
            return weight, None
        return weight, self.bias + torch.exp(self.bias_log_std) * self.bias_noise[passes]

    def alone(self) -> Weights:
        return self.weight, self.bias

    def variances(self) -> Weights:
        """Variances of weights and biases."""
        log_std = self.bias_log_std
        spread = None if log_std is None else torch.exp(2 * log_std)
        return torch.exp(2 * self.weight_log_std), spread

    def drawn(self, x: Any, op: Op, how: Draw) -> Any:
        if how is Draw.MOMENTS:
            return propagated(x, op, self.alone(), self.variances())
        if how is Draw.SHARED:
            weight = self.weight + torch.exp(self.weight_log_std) * torch.randn_like(self.weight)
            if self.bias is None or self.bias_log_std is None:
                return op(x, weight, None)
            noise = torch.exp(self.bias_log_std) * torch.randn_like(self.bias)
            return op(x, weight, self.bias + noise)
        mean = op(x, self.weight, self.bias)
        variance = op(x * x, *self.variances())
        return mean + torch.sqrt(variance.clamp(min=1e-16)) * torch.randn_like(mean)

    def gaussians(self) -> list[tuple[Tensor, Tensor]]:
        """Means and log-deviations of all weights, flat."""
        parts = [(self.weight, self.weight_log_std), (self.bias, self.bias_log_std)]
        return [(m.flatten(), s.flatten()) for m, s in parts if m is not None and s is not None]


def gaussian_divergence(mean: Tensor, log_std: Tensor, prior_std: float) -> Tensor:
    """Sum of log(p / s) + (s^2 + m^2) / (2 p^2) - 1/2 over all weights, p = `prior_std`."""
    squares = torch.exp(2 * log_std) + mean * mean
    constant = mean.numel() * (math.log(prior_std) - 0.5)
    return squares.sum() / (2 * prior_std**2) - log_std.sum() + constant


class Bayesian(Passes):
    """Gaussian weights w ~ N(m, s^2), each independent of the others (mean field).

    Loss: the task's + `kl_weight` KL(q || N(0, prior_std^2)) / N, the divergence in closed form,
    N the number of training events, so that an epoch counts the prior once. `fresh` sets N from
    its examples and stores it as a buffer, so that later updates know it; `events` overrides it.

    Training draws the outputs of each layer, not its weights: N(x m, x^2 s^2) for each row
    (local reparameterisation), whose gradient has less noise. Where several rows make one event
    (tracks), one set of weights is drawn per step instead, since noise of each row would average
    out. Prediction: `samples` networks whose standard normals were drawn once, from `seed`, and
    are stored as buffers: the same version gives the same answer. `moments()` gives the fast form.

    `layers`: names, or beginnings of names, of the dense and convolution layers that become
    Gaussian, by default all; parameters elsewhere stay numbers. `prior_std`: of the weights; a
    narrow prior makes a simpler network. `start_std`: the first s is this over
    sqrt(inputs of the layer), 0.1 being a fifth of the weights' usual size; much more and a
    small network sees only noise. `kl_weight` below 1 trusts the data more (a cold posterior).

    Cost: twice the parameters; `samples` passes; the bank is `samples` times the weights.
    Source: Blundell et al. 2015, arXiv:1505.05424; Kingma et al. 2015, arXiv:1506.02557.
    """

    events_seen: Tensor

    def __init__(
        self,
        network: nn.Module,
        samples: int = 32,
        prior_std: float = 1.0,
        seed: int = 0,
        start_std: float = 0.1,
        kl_weight: float = 1.0,
        events: int | None = None,
        layers: Sequence[str] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        for name, value in (("prior_std", prior_std), ("start_std", start_std)):
            if not value > 0 or not math.isfinite(value):
                raise ConfigError(f"{name} must be positive and finite, got {value}")
        if not kl_weight >= 0:
            raise ConfigError(f"kl_weight must be 0 or more, got {kl_weight}")
        if events is not None and events < 1:
            raise ConfigError(f"events must be 1 or more, got {events}")
        generator = torch.Generator().manual_seed(Seeds(seed).integer("bank"))
        found: list[str] = []

        def change(name: str, module: nn.Module) -> nn.Module | None:
            if not is_plain(module) or not _asked(name, layers):
                return None
            found.append(name)
            return layer_of(
                GaussianWeights(module, self._bank(samples), start_std, generator), module
            )

        core = converted(network, change)
        if not found:
            raise ConfigError(
                f"no dense or convolution layer is named {', '.join(layers or ())}; Gaussian "
                "weights need one"
                if layers
                else f"{type(network).__name__} has no dense or convolution layer whose weights "
                "could be Gaussian"
            )
        super().__init__(core, checked_members(samples, "samples"), chunk)
        self.prior_std, self.seed, self.start_std = prior_std, seed, start_std
        self.kl_weight, self.events, self.layers = kl_weight, events, layers
        self.register_buffer("events_seen", torch.tensor(events or 0))

    @staticmethod
    def _bank(samples: int) -> int:
        """Draws that each layer keeps."""
        return samples

    def divergence(self) -> Tensor:
        """KL of all Gaussian weights from the prior, nats."""
        sources = [m for m in self.network.modules() if isinstance(m, GaussianWeights)]
        means, log_stds = zip(*(pair for s in sources for pair in s.gaussians()), strict=True)
        return gaussian_divergence(torch.cat(means), torch.cat(log_stds), self.prior_std)

    def loss(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        n = int(self.events_seen)
        if n < 1 and self.kl_weight:
            raise ConfigError(
                "the prior is weighed against the number of training events, which is not known: "
                "call models.uncertain.fresh with the examples, or give `events`"
            )
        with drawing(draw_of(inputs)):
            mean = task.loss(self.core, inputs, targets)
        return mean + self.kl_weight * self.divergence() / n if self.kl_weight else mean

    def _fresh(self, task: Task, examples: Examples, seed: int) -> Passes:
        drawn = task.fresh(plain_network(self.core, None), examples, seed)
        return self._like(drawn, self.events or len(examples))

    def _like(self, plain: nn.Module, events: int) -> Bayesian:
        new = type(self)(
            plain,
            prior_std=self.prior_std,
            seed=self.seed,
            start_std=self.start_std,
            kl_weight=self.kl_weight,
            events=self.events,
            layers=self.layers,
            chunk=self.chunk,
            **self._own(),
        )
        new.events_seen.fill_(events)
        return new

    def _own(self) -> dict[str, Any]:
        return {"samples": self.n_passes}

    def moments(self) -> nn.Module:
        """The fast form of this network with the same posterior: one pass, no samples."""
        from stillfit.uncertainty.propagation import MomentPropagation

        return MomentPropagation.of(self)


def _asked(name: str, layers: Sequence[str] | None) -> bool:
    return layers is None or any(name == one or name.startswith(f"{one}.") for one in layers)


def copy_posterior(old: nn.Module, new: nn.Module) -> None:
    """Parameters and shared buffers of one network with Gaussian weights into another."""
    state = copy.deepcopy(old.state_dict())
    known = new.state_dict()
    new.load_state_dict({key: value for key, value in state.items() if key in known})
