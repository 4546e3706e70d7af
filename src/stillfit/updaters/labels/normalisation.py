"""Normalisation statistics from new inputs alone: no label is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stillfit.core.arrays import first_bad
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.networks import Standardise
from stillfit.models.tensors import tensors
from stillfit.models.training import Prepared
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.labels.waiting import also_read, waiting


@dataclass(frozen=True, kw_only=True)
class AdaptNormalisation(Updater):
    """Mean and variance of the normalisation layers anew, from unlabelled inputs of the condition.

    Each `BatchNorm` and, with `inputs`, each `Standardise` layer gets the statistics of the newest
    events (the fresh ones, their labels unread, and up to `most` that wait for labels), layer
    after layer, so that each sees what the adapted ones before it give: exact over all events,
    whatever their order. Trained weights stay. With `prior` N and n events
    new = (N old + n seen) / (N + n) of means and variances: 0 forgets the old statistics, a huge
    one is frozen. What shifts or stretches the inputs (another sensor, a drifting gain) is undone;
    what shifts the classes' or the target's own share is undone too, wrongly: then a gate refuses.

    Of members, each layer of its own is adapted; a learned posterior (Laplace) is left as it is.
    Cost: a pass over the events per normalisation layer, no gradients. Source: Li et al. 2016,
    arXiv:1603.04779 (AdaBN); `prior`: Schneider et al. 2020, arXiv:2006.16971.
    """

    inputs: bool = True
    prior: float = 0.0
    most: int = 4000
    min_events: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.prior < math.inf or self.most < 0 or self.min_events < 2:
            raise ConfigError(
                f"prior must be 0 events or more, most 0 or more and min_events at least 2 (one "
                f"event has no variance), got {self.prior}, {self.most} and {self.min_events}"
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
        events = _inputs_of(fresh, waiting(memory, fresh, self.most))
        few = too_few(events, self.min_events, "adapting normalisation (labels or none)")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        bad = first_bad(events.inputs)
        if bad is not None:
            raise DataError(
                f"statistics are asked of inputs and {bad}; drop such events before, as a guarded "
                "stream does"
            )
        model = serving.copy()
        data = Prepared.of(model, events)
        layers = self._layers(model, data)
        if not layers:
            return Declined(
                f"{type(model.network).__name__} has no normalisation layer that keeps statistics"
            )
        for layer in layers:
            seen = _Moments.of(model, data, layer)
            if seen is not None:
                _set(layer, seen, self.prior, len(events))
        made = meter.finish(model, learner, [], budget)
        return made if isinstance(made, Declined) else also_read(made, events)

    def _layers(self, model: Model, data: Prepared) -> list[nn.Module]:
        """The layers to adapt, in the order in which a pass meets them."""
        met: list[nn.Module] = []

        def meet(module: nn.Module, given: tuple[Any, ...]) -> None:
            if all(module is not other for other in met):
                met.append(module)

        handles = [
            module.register_forward_pre_hook(meet)
            for module in model.network.modules()
            if self._adapts(module)
        ]
        try:
            _predict(model, data.take(slice(0, 2)))
        finally:
            for handle in handles:
                handle.remove()
        return met

    def _adapts(self, module: nn.Module) -> bool:
        if isinstance(module, Standardise):
            return self.inputs
        return isinstance(module, _BatchNorm) and module.running_mean is not None


@dataclass(frozen=True)
class _Moments:
    """Mean and variance of each channel over all rows that a layer takes."""

    mean: Tensor
    variance: Tensor
    n: int

    @classmethod
    def of(cls, model: Model, data: Prepared, layer: nn.Module) -> _Moments | None:
        """Of everything that `layer` takes in a pass over `data`; None where it takes nothing."""
        parts: list[_Moments] = []

        def hear(module: nn.Module, given: tuple[Any, ...]) -> None:
            rows = _rows(module, given[0])
            if len(rows):
                mean = rows.mean(0)
                parts.append(cls(mean, ((rows - mean) ** 2).mean(0), len(rows)))

        handle = layer.register_forward_pre_hook(hear)
        try:
            for piece in data.chunks():
                _predict(model, piece)
        finally:
            handle.remove()
        if not parts:
            return None
        n = sum(part.n for part in parts)
        mean = sum((part.mean * (part.n / n) for part in parts), torch.zeros(()))
        within = sum((part.variance * (part.n / n) for part in parts), torch.zeros(()))
        between = sum(((p.mean - mean) ** 2 * (p.n / n) for p in parts), torch.zeros(()))
        return cls(mean, within + between, n)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """(n, ..., channels) or, of a batch-norm layer, (n, channels, ...) as rows, in double."""
    x = x.detach().double()
    if isinstance(module, _BatchNorm) and x.ndim > 2:
        x = x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1])


def _set(layer: nn.Module, seen: _Moments, prior: float, events: int) -> None:
    old = prior / (prior + events)
    with torch.no_grad():
        if isinstance(layer, _BatchNorm):
            assert layer.running_mean is not None and layer.running_var is not None
            # As batch normalisation itself: the unbiased variance is what is kept.
            variance = seen.variance * (seen.n / max(seen.n - 1, 1))
            layer.running_mean.copy_(old * layer.running_mean.double() + (1 - old) * seen.mean)
            layer.running_var.copy_(old * layer.running_var.double() + (1 - old) * variance)
        elif isinstance(layer, Standardise):
            mean = old * layer.mean.double() + (1 - old) * seen.mean
            was = layer.std.double()
            std = torch.sqrt(old * was**2 + (1 - old) * seen.variance)
            # A constant feature has no width: the old one stays, as in `Standardise.set_from`.
            layer.std.copy_(torch.where(std > 1e-6 * mean.abs(), std, was))
            layer.mean.copy_(mean)


def _predict(model: Model, data: Prepared) -> None:
    model.network.eval()
    with torch.inference_mode():
        uncertain.predict(model.task, model.network, tensors(data.inputs))


def _inputs_of(fresh: Examples, events: Examples) -> Examples:
    """The inputs of both, without targets."""
    bare = replace(fresh, targets={})
    return Examples.join([bare, events]) if len(events) else bare
