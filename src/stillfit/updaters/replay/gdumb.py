"""GDumb: keep a balanced buffer, and train from nothing on it when asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.task import Task, dense
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.training import Guide, Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, too_few
from stillfit.updaters.replay.experience import Buffered, Keeping


@dataclass(frozen=True, kw_only=True)
class GDumb(Buffered):
    """Train a fresh network on nothing but a balanced buffer; the serving weights do not matter.

    The buffer (`Buffered`; for classes set `by` to their target) is all that it has: with a
    `capacity` for every event it is retraining on everything, with a small one it is as good as
    so many events can make a network. The test that any cleverer strategy must pass.

    `mixup` > 0 adds to each step the loss of as many mixed events l x_i + (1 - l) x_j, with l from
    Beta(`mixup`, `mixup`) and the labels of both weighed in the same way: few events last longer.
    0 leaves it out. It needs inputs of fixed size.

    Cost: `schedule.steps` steps from nothing, with mixup two in one; memory: the buffer's bytes.
    Source: Prabhu et al. 2020, doi:10.1007/978-3-030-58536-5_31 (there with cutmix and SGD; its
    greedy sampler keeps the first events of each class, here each has the same chance); mixup:
    Zhang et al. 2018, arXiv:1710.09412.
    """

    capacity: int = 4400
    keep: Keeping = "balanced"
    mixup: float = 0.0
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=600))
    min_events: int = 200

    def __post_init__(self) -> None:
        Buffered.__post_init__(self)
        if self.capacity < 1:
            raise ConfigError(
                f"GDumb trains on its buffer alone and capacity is {self.capacity}; give it room "
                "for some events of each class or condition"
            )
        if not 0 <= self.mixup < np.inf:
            raise ConfigError(
                f"mixup must be finite and 0 or more, got {self.mixup}; it is the parameter of a "
                "beta distribution, 0 mixes nothing"
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
        few = too_few(fresh, self.min_events, "training on the buffer")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        buffer = self.buffer(learner)
        held = buffer.examples()
        if not len(held):
            return Declined(
                "the buffer is empty, so there is nothing to train on; were labels observed, and "
                f"is its capacity of {self.capacity} shared by more groups than that?",
                early=True,
            )
        network = uncertain.fresh(serving.task, serving.network, held, meter.seed)
        model = Model(network, serving.task, serving.architecture)
        data = Prepared.of(model, held)
        guide = None
        if self.mixup:
            mixing = np.random.default_rng(meter.seed)
            guide = Mixing(model.task, data, self.mixup, self.schedule.batch, mixing)
        steps = fit(model, data, self.schedule, rng, guide=guide)
        if self.keep == "hard":
            self.judge(buffer, model)
            learner = buffer.to_arrays()
        return meter.finish(model, learner, [held], budget, steps=steps, stored=len(buffer))


class Mixing(Guide):
    """A penalty: the loss of events mixed in pairs, towards both labels."""

    def __init__(
        self, task: Task, data: Prepared, parameter: float, rows: int, rng: np.random.Generator
    ) -> None:
        for name, column in data.inputs.items():
            if isinstance(column, Ragged):
                raise ConfigError(
                    f"mixup needs inputs of fixed size and {name!r} is ragged; use mixup = 0"
                )
        self._task, self._data, self._parameter = task, data, parameter
        self._rows, self._rng = min(rows, data.n), rng

    def penalty(self, network: nn.Module, inputs: Tensors) -> Tensor:
        one, other = (
            self._data.take(self._rng.integers(0, self._data.n, self._rows)) for _ in range(2)
        )
        share = float(self._rng.beta(self._parameter, self._parameter))
        mixed = {
            name: share * dense(tensors(one.inputs), name)
            + (1 - share) * dense(tensors(other.inputs), name)
            for name in one.inputs
        }
        both = (
            uncertain.loss(self._task, network, mixed, tensors(part.targets))
            for part in (one, other)
        )
        return share * next(both) + (1 - share) * next(both)
