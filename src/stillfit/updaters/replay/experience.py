"""Experience replay: fine-tune on fresh events mixed with remembered ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.references import mixed_training
from stillfit.updaters.replay.buffer import LOSS, Buffer
from stillfit.updaters.replay.keep import Hard, Keep, Reservoir, Ring
from stillfit.updaters.replay.pages import Bits

Keeping: TypeAlias = Literal["reservoir", "balanced", "ring", "hard"]


@dataclass(frozen=True, kw_only=True)
class Buffered(Updater):
    """What every replay with stored events shares: its buffer. Abstract.

    `capacity`: events. `keep`: `"reservoir"`: every event seen is kept with equal probability,
    so long conditions fill the buffer; `"balanced"`: each group gets an equal share, a reservoir
    inside its share; `"ring"`: the newest of each group; `"hard"`: a reservoir of all from which
    those with a small loss leave first, more so with more `hardness` (`keep.Hard`). `by`: what
    makes a group: `"condition"`, or the name of a target whose values are classes. `bits`: 8 or
    16 stores floating inputs in that many bits (see `Buffer`), 0 as they are.
    """

    capacity: int = 2000
    keep: Keeping = "reservoir"
    by: str = "condition"
    bits: Bits = 0
    hardness: float = 2.0
    min_events: int = 200

    def __post_init__(self) -> None:
        Buffer(self.rule, self.bits)  # checks the knobs that they share

    @property
    def rule(self) -> Keep:
        """Who stays."""
        if self.keep == "reservoir":
            return Reservoir(capacity=self.capacity)
        if self.keep == "balanced":
            return Reservoir(capacity=self.capacity, by=self.by)
        if self.keep == "ring":
            return Ring(capacity=self.capacity, by=self.by)
        if self.keep == "hard":
            return Hard(capacity=self.capacity, hardness=self.hardness)
        raise ConfigError(
            f"keep must be reservoir, balanced, ring or hard, got {self.keep!r}; it says which "
            "events stay when the buffer is full"
        )

    def buffer(self, learner: Learner) -> Buffer:
        """The buffer in a learner's state."""
        return Buffer.open(learner, self.rule, self.bits)

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        buffer = self.buffer({})
        buffer.add(examples, rng)
        self.judge(buffer, serving)
        return buffer.to_arrays()

    def observe(self, learner: Learner, examples: Examples, *, rng: np.random.Generator) -> Learner:
        buffer = self.buffer(learner)
        buffer.add(examples, rng)
        return {**kept_beside(learner), **buffer.to_arrays()}

    def judge(self, buffer: Buffer, model: Model) -> None:
        """Note what `model` finds hard, where the rule asks for it: one pass over the buffer."""
        if self.keep == "hard" and len(buffer):
            errors = model.errors(buffer.examples())
            loss = errors.get("log_loss", errors["error"])
            buffer.note({LOSS: loss.astype(np.float32)})


@dataclass(frozen=True, kw_only=True)
class Replay(Buffered):
    """Fine-tune on fresh events mixed with remembered ones.

    Each step draws `1 - mix` of its batch from fresh events and `mix` from a buffer of
    `capacity` events (`Buffered`), so the loss is an average over old and new conditions. More
    `mix` forgets less and adapts more slowly; where old and new contradict (a shift), it spoils
    both. 0 is fine-tuning; 1 trains on the buffer alone.

    Cost: one training step per batch; memory: the buffer's bytes, counted in the budget.
    Source: Chaudhry et al. 2019, arXiv:1902.10486.
    """

    mix: float = 0.5
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))

    def __post_init__(self) -> None:
        Buffered.__post_init__(self)
        checked_share("mix", self.mix)

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
        few = too_few(fresh, self.min_events, "replay")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        model = serving.copy()
        buffer = self.buffer(learner)
        old = buffer.examples()
        old = old.take(~np.isin(old.ids, fresh.ids))
        steps = mixed_training(model, fresh, old, 1 - self.mix, self.schedule, rng)
        if self.keep == "hard":
            self.judge(buffer, model)
            learner = buffer.to_arrays()
        return meter.finish(model, learner, [fresh, old], budget, steps=steps, stored=len(buffer))


def kept_beside(learner: Learner) -> Learner:
    """What a learner's state holds besides the buffer."""
    return {k: v for k, v in learner.items() if not k.startswith(("buffer/", "seen/"))}


def checked_share(knob: str, value: float) -> None:
    """`ConfigError` unless a share of a batch lies in 0 to 1."""
    if not 0 <= value <= 1:
        raise ConfigError(
            f"{knob} must lie in 0 to 1, got {value}; it is the share of remembered events in a "
            "batch"
        )
