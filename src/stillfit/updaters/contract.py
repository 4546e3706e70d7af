"""What every updater is: a frozen configuration with pure verbs, from serving to candidate."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from stillfit.core.arrays import Array, content_hash, n_bytes
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate, Cost, Provenance, UpdateClass
from stillfit.models.model import Model, count_macs

Learner: TypeAlias = Mapping[str, Array]


class Memory(Protocol):
    """The labelled events that are still kept (the training side of the labelled store)."""

    def all(self) -> Examples:
        """Everything kept."""
        ...

    def window(self, since: float) -> Examples:
        """What was seen at or after `since` (s)."""
        ...


@runtime_checkable
class Unlabelled(Protocol):
    """A memory that has events without labels too, as the loop's has; ask with `isinstance`."""

    def unlabelled(self, condition: str, limit: int) -> Examples:
        """The newest `limit` events of a condition whose labels have not come, and may never.

        Without targets, in order of arrival; none that gates will judge on.
        """
        ...


@dataclass(frozen=True)
class Declined:
    """An updater's answer when it has no candidate to offer: normal life, with its reason.

    `early`: more labelled events could change the answer, so the request does not count as one
    that failed.
    """

    because: str
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class Updater(ABC):
    """Serving model + learner state + data -> candidate, within a budget.

    An updater is its own configuration and changes nothing: the serving network, the learner's
    state and the data that it gets are left as they were. Same arguments and generator, same
    candidate. `update_class`: `bitstream` where the circuit depends on the weights (constant-
    weight designs), `weights` where they can be reloaded.
    """

    update_class: UpdateClass = "weights"

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        """The learner's state after the initial training on `examples` (may be a part of it)."""
        return {}

    def observe(self, learner: Learner, examples: Examples, *, rng: np.random.Generator) -> Learner:
        """Keep what may be kept of labelled events as they arrive, before any update."""
        return learner

    @abstractmethod
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
        """A candidate for the condition that `fresh` shows, or the reason why there is none.

        An update that exceeds `budget` is declined with the figures.
        """


@dataclass
class Meter:
    """Measures one update and builds its candidate, or declines it over the budget."""

    updater: Updater
    seed: int
    started: float

    @classmethod
    def start(cls, updater: Updater, rng: np.random.Generator) -> Meter:
        return cls(updater, int(rng.integers(2**62)), time.monotonic())

    def finish(
        self,
        model: Model,
        learner: Learner,
        read: Iterable[Examples],
        budget: Budget,
        *,
        steps: int = 0,
        stored: int = 0,
    ) -> Candidate[Model] | Declined:
        """The candidate with its measured cost and provenance from the example sets `read`."""
        sets = [examples for examples in read if len(examples)]
        cost = Cost(
            memory_bytes=n_bytes(learner),
            stored_examples=stored,
            macs_per_example=count_macs(model.network),
            seconds=time.monotonic() - self.started,
            examples=sum(map(len, sets)),
            steps=steps,
        )
        over = budget.exceeded_by(cost)
        if over is not None:
            return Declined(f"the update was thrown away: {over}")
        return Candidate(
            model=model,
            learner=learner,
            cost=cost,
            update_class=self.updater.update_class,
            provenance=provenance(type(self.updater).__name__, self.seed, sets),
        )


def provenance(updater: str, seed: int, sets: list[Examples]) -> Provenance:
    """What was read, in numbers: hashes of the sets, time span, events per condition."""
    whole: dict[str, int] = {}
    for examples in sets:
        names, counts = np.unique(examples.conditions, return_counts=True)
        for name, count in zip(names, counts, strict=True):
            whole[str(name)] = whole.get(str(name), 0) + int(count)
    times = np.concatenate([examples.times for examples in sets]) if sets else np.zeros(0)
    return Provenance(
        updater=updater,
        seed=seed,
        data=tuple(content_hash({**e.inputs, **e.targets, "ids": e.ids}) for e in sets),
        span=(float(times.min()), float(times.max())) if len(times) else None,
        events=dict(sorted(whole.items())),
    )


def too_few(examples: Examples, needed: int, what: str) -> Declined | None:
    """A refusal that names the figures where there are fewer labelled events than needed."""
    if len(examples) >= needed:
        return None
    return Declined(
        f"{what} needs {needed} labelled events of the new condition and has {len(examples)}; "
        "it will have them when more labels arrive",
        early=True,
    )
