"""GDumb: keep a balanced buffer, and train from nothing on it when asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, too_few
from stillfit.updaters.replay.experience import Buffered, Keeping


@dataclass(frozen=True, kw_only=True)
class GDumb(Buffered):
    """Train a fresh network on nothing but a balanced buffer; the serving weights do not matter.

    The buffer (`Buffered`; for classes set `by` to their target) is all that it has: with a
    `capacity` for every event it is retraining on everything, with a small one it is as good as
    so many events can make a network. The test that any cleverer strategy must pass.

    Cost: `schedule.steps` steps from nothing; memory: the buffer's bytes.
    Source: Prabhu et al. 2020, doi:10.1007/978-3-030-58536-5_31 (there with cutmix and SGD; its
    greedy sampler keeps the first events of each class, here each has the same chance).
    """

    capacity: int = 4400
    keep: Keeping = "balanced"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=600))
    min_events: int = 200

    def __post_init__(self) -> None:
        Buffered.__post_init__(self)
        if self.capacity < 1:
            raise ConfigError(
                f"GDumb trains on its buffer alone and capacity is {self.capacity}; give it room "
                "for some events of each class or condition"
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
        steps = fit(model, Prepared.of(model, held), self.schedule, rng)
        if self.keep == "hard":
            self.judge(buffer, model)
            learner = buffer.to_arrays()
        return meter.finish(model, learner, [held], budget, steps=steps, stored=len(buffer))
