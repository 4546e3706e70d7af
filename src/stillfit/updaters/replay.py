"""Replay: fine-tune on fresh events mixed with remembered ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.references import mixed_training


@dataclass(frozen=True, kw_only=True)
class Replay(Updater):
    """Fine-tune on fresh events mixed with remembered ones.

    Each step draws `1 - mix` of its batch from fresh events and `mix` from a buffer of
    `capacity` events, so the loss is an average over old and new conditions. More `mix` forgets
    less and adapts more slowly; where old and new contradict (a shift), it spoils both.
    `keep="reservoir"`: every event seen is kept with equal probability, so long conditions fill
    the buffer; `"balanced"`: each condition gets an equal share, a reservoir inside its share.

    Cost: one training step per batch; memory: the buffer's bytes, counted in the budget.
    Source: Chaudhry et al. 2019, arXiv:1902.10486; reservoir: Vitter 1985, algorithm R.
    """

    capacity: int = 2000
    mix: float = 0.5
    keep: Literal["reservoir", "balanced"] = "reservoir"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))
    min_events: int = 200

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        return self.observe({}, examples, rng=rng)

    def observe(self, learner: Learner, examples: Examples, *, rng: np.random.Generator) -> Learner:
        buffer, seen = unpack(learner)
        for name in np.unique(examples.conditions):
            part = examples.where(str(name))
            group = str(name) if self.keep == "balanced" else "all"
            buffer, seen = self._insert(buffer, seen, group, part, rng)
        return pack(buffer, seen)

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
        buffer, _ = unpack(learner)
        old = buffer.take(~np.isin(buffer.ids, fresh.ids))
        steps = mixed_training(model, fresh, old, 1 - self.mix, self.schedule, rng)
        return meter.finish(model, learner, [fresh, old], budget, steps=steps, stored=len(buffer))

    def _insert(
        self,
        buffer: Examples,
        seen: dict[str, int],
        group: str,
        part: Examples,
        rng: np.random.Generator,
    ) -> tuple[Examples, dict[str, int]]:
        groups = sorted({*seen, group})
        share = self.capacity // len(groups)
        kept: list[Examples] = []
        for name in groups:
            held = buffer if self.keep == "reservoir" else buffer.where(name)
            if name == group:
                before = seen.get(name, 0)
                slots = reservoir_slots(len(held), before, len(part), share, rng)
                stays = np.setdiff1d(np.arange(len(held)), slots[slots >= 0])
                # The last arrival at a slot wins, as if events had come one by one.
                last = {int(slot): row for row, slot in enumerate(slots) if slot >= 0}
                rows = np.array(sorted(last.values()), np.int64)
                held = Examples.join([held.take(stays), part.take(rows)])
            if len(held) > share:  # a new condition came: every share shrinks, at random
                held = held.take(np.sort(rng.choice(len(held), share, replace=False)))
            kept.append(held)
        return Examples.join(kept), {**seen, group: seen.get(group, 0) + len(part)}


def reservoir_slots(
    held: int, seen: int, arriving: int, capacity: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The slot that each of `arriving` events takes in a reservoir, -1 for none.

    Algorithm R for a reservoir of `capacity` that holds `held` of `seen` events: while there is
    room an event takes the next slot, later the k-th event takes slot randint(k) if that exists.
    """
    slots = np.full(arriving, -1, np.int64)
    room = min(max(capacity - held, 0), arriving)
    slots[:room] = held + np.arange(room)
    rank = seen + np.arange(room, arriving) + 1
    drawn = np.floor(rng.random(arriving - room) * rank).astype(np.int64)
    slots[room:] = np.where(drawn < capacity, drawn, -1)
    return slots


def pack(buffer: Examples, seen: dict[str, int]) -> dict[str, Array]:
    """Buffer and counts as a learner's state."""
    flat = {f"buffer/{name}": part for name, part in buffer.to_arrays().items()}
    return {**flat, **{f"seen/{name}": np.array(count) for name, count in sorted(seen.items())}}


def unpack(learner: Learner) -> tuple[Examples, dict[str, int]]:
    """The inverse of `pack`."""
    buffer = {
        name.removeprefix("buffer/"): part
        for name, part in learner.items()
        if name.startswith("buffer/")
    }
    seen = {
        name.removeprefix("seen/"): int(part)
        for name, part in learner.items()
        if name.startswith("seen/")
    }
    return Examples.from_arrays(buffer), seen
