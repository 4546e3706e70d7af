"""Who stays in a buffer: rules over row numbers alone, so that they serve any store of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError

Rows: TypeAlias = NDArray[np.int64]
Weights: TypeAlias = Callable[[Rows], NDArray[np.float64]]


class Held(NamedTuple):
    """What is held: row numbers by group, oldest first, and how many each group has seen."""

    rows: Mapping[str, Rows]
    seen: Mapping[str, int]

    @property
    def order(self) -> Rows:
        """All rows, group after group in order of name, each oldest first."""
        if not self.rows:
            return np.zeros(0, np.int64)
        return np.concatenate([self.rows[name] for name in sorted(self.rows)])

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


NOTHING = Held({}, {})


@dataclass(frozen=True, kw_only=True)
class Keep(ABC):
    """A rule for a buffer of `capacity` events: pure, over row numbers.

    `by`: what makes a group: `"condition"`, the name of a target whose values are classes, or
    `""` for one group of all. Groups have equal shares, capacity // groups each; a group that
    comes later shrinks those that were there.
    """

    capacity: int = 2000
    by: str = "condition"

    def __post_init__(self) -> None:
        if self.capacity < 0:
            raise ConfigError(
                f"capacity must be 0 events or more, got {self.capacity}; 0 keeps nothing"
            )

    @abstractmethod
    def admit(
        self,
        held: Held,
        group: str,
        arriving: Rows,
        rng: np.random.Generator,
        hard: Weights | None = None,
    ) -> Held:
        """What is held after rows of one group arrived. `hard`: 0 easy to 1 hard, of held rows."""


@dataclass(frozen=True, kw_only=True)
class Reservoir(Keep):
    """Every event of a group has the same probability of being held, however long the stream.

    Cost: a draw per arrival. Source: Vitter 1985, doi:10.1145/3147.3165, algorithm R; with a
    group per class: Prabhu et al. 2020, doi:10.1007/978-3-030-58536-5_31 (balanced sampler).
    """

    by: str = ""

    def admit(
        self,
        held: Held,
        group: str,
        arriving: Rows,
        rng: np.random.Generator,
        hard: Weights | None = None,
    ) -> Held:
        return _shared(self, held, group, arriving, rng, _uniform)


@dataclass(frozen=True, kw_only=True)
class Hard(Keep):
    """A reservoir whose leavers are the easy ones: loss-aware reservoir sampling.

    How many leave is drawn as in `Reservoir`; who leaves is drawn with weights
    exp(-`hardness` x r), r from 0 for the smallest loss held to 1 for the largest; where it is
    not known, 1/2. `hardness` 0 is the reservoir bit for bit; a large one keeps outliers and
    wrong labels first. Source: Buzzega et al. 2020, arXiv:2010.05595, with ranks for losses, so
    that the knob has one meaning for every task.
    """

    by: str = ""
    hardness: float = 2.0

    def __post_init__(self) -> None:
        Keep.__post_init__(self)
        if not 0 <= self.hardness < np.inf:
            raise ConfigError(
                f"hardness must be finite and 0 or more, got {self.hardness}; at 0 all events "
                "are alike"
            )

    def admit(
        self,
        held: Held,
        group: str,
        arriving: Rows,
        rng: np.random.Generator,
        hard: Weights | None = None,
    ) -> Held:
        def stays(rows: Rows, mask: NDArray[np.bool_], rng: np.random.Generator) -> Rows:
            gone = len(rows) - int(mask.sum())
            if not gone or not self.hardness or hard is None:
                return rows[mask]
            # The first `gone` of independent clocks of rate w are a weighted draw without
            # replacement (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).
            # In logarithms, so that no hardness overflows.
            clocks = np.log(rng.standard_exponential(len(rows))) + self.hardness * hard(rows)
            return rows[np.sort(np.argsort(clocks, kind="stable")[gone:])]

        return _shared(self, held, group, arriving, rng, stays)


@dataclass(frozen=True, kw_only=True)
class Ring(Keep):
    """The newest events of each group, a first-in-first-out queue per group. Draws nothing.

    Source: Lopez-Paz and Ranzato 2017, arXiv:1706.08840; ring buffer in Chaudhry et al. 2019,
    arXiv:1902.10486.
    """

    def admit(
        self,
        held: Held,
        group: str,
        arriving: Rows,
        rng: np.random.Generator,
        hard: Weights | None = None,
    ) -> Held:
        seen = {**held.seen, group: held.seen.get(group, 0) + len(arriving)}
        share = self.capacity // len(seen)
        rows = dict(held.rows)
        rows[group] = np.concatenate([rows.get(group, arriving[:0]), arriving])
        return Held({name: part[max(len(part) - share, 0) :] for name, part in rows.items()}, seen)


Staying: TypeAlias = Callable[[Rows, NDArray[np.bool_], np.random.Generator], Rows]


def _uniform(rows: Rows, mask: NDArray[np.bool_], rng: np.random.Generator) -> Rows:
    return rows[mask]


def _shared(
    keep: Keep, held: Held, group: str, arriving: Rows, rng: np.random.Generator, stays: Staying
) -> Held:
    """A reservoir per group, each of an equal share; `stays` says who of those held does.

    It gets the rows and the mask that algorithm R would keep, and keeps as many.
    """
    groups = sorted({*held.seen, group})
    share = keep.capacity // len(groups)
    nothing = np.zeros(0, np.int64)
    kept: dict[str, Rows] = {}
    for name in groups:
        rows = held.rows.get(name, nothing)
        if name == group:
            slots = reservoir_slots(len(rows), held.seen.get(name, 0), len(arriving), share, rng)
            mask = np.ones(len(rows), np.bool_)
            mask[slots[(slots >= 0) & (slots < len(rows))]] = False
            # The last arrival at a slot wins, as if events had come one by one.
            late = np.flatnonzero(slots >= 0)[::-1]
            winners = np.sort(late[np.unique(slots[late], return_index=True)[1]])
            rows = np.concatenate([stays(rows, mask, rng), arriving[winners]])
        if len(rows) > share:  # a new group came: every share shrinks
            mask = np.zeros(len(rows), np.bool_)
            mask[rng.choice(len(rows), share, replace=False)] = True
            rows = rows[mask] if name == group else stays(rows, mask, rng)
        kept[name] = rows
    return Held(kept, {**held.seen, group: held.seen.get(group, 0) + len(arriving)})


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
