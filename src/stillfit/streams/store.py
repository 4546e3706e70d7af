"""The labelled store: what may be learned from and judged on, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import (
    Array,
    Arrays,
    Column,
    Ragged,
    concat,
    content_hash,
    n_bytes,
    names_of,
    take,
)
from stillfit.core.errors import ConfigError, DamagedError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import JSON
from stillfit.streams.chance import uniform
from stillfit.streams.segments import (
    Segments,
    as_arrays,
    from_arrays,
    owned,
    owned_array,
    prefixed,
    segment,
    unprefixed,
)

Side: TypeAlias = Literal["training", "held_out"]
SIDES: tuple[Side, ...] = ("training", "held_out")


def is_held_out(
    ids: NDArray[np.int64], fraction: float, seed: int = 0, stretch: int = 1
) -> NDArray[np.bool_]:
    """Which events are for the gates only: decided by a hash of the event id, for ever.

    `stretch`: so many neighbouring ids share their fate, for events that overlap or are
    correlated in time (windows of a recording), which would leak from one side to the other.
    """
    return uniform(seed, "held-out", ids // stretch) < fraction


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What to keep of the labelled events when not all can be kept.

    `budget_bytes`: of everything held, both sides. `policy`: `balanced` shares the budget among
    the conditions in proportion to their weights and keeps a uniform sample of each; what one
    condition does not fill is free for the others. `reservoir` keeps a uniform sample of all
    events, `ring` the newest ones. `weights`: share of a condition, 1 where not named, and 0 drops
    it, under every policy. `held_out`: fraction of events for the gates only, `stretch` as in
    `is_held_out`. `slack`: part of a full share that is freed at once when it overflows: more
    slack copies memory less often and leaves more of the budget empty (half of it on average).

    The sample: every event draws a key, uniform in (0, 1), and a condition holds the events with
    the smallest keys that fit. With events of equal size this has the law of a reservoir (every
    event of the stream is held with equal probability); unlike the slot-wise algorithm it can
    shrink when a share shrinks. With events of unequal size s, or between two overflows, the
    probabilities are equal to within s / share, or one part in the number of events held.

    Source: law of Vitter 1985, algorithm R, doi:10.1145/3147.3165; smallest keys ("bottom-k"):
    Cohen and Kaplan 2007, doi:10.1145/1281100.1281133.
    """

    budget_bytes: int
    policy: Literal["balanced", "reservoir", "ring"] = "balanced"
    weights: Mapping[str, float] = field(default_factory=dict)
    held_out: float = 0.25
    stretch: int = 1
    slack: float = 0.125
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget_bytes <= 0:
            raise ConfigError(f"the store needs a budget in bytes, got {self.budget_bytes}")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(
                f"held_out = {self.held_out} must be in [0, 1): the fraction of labelled events "
                "that only gates see"
            )
        if not 0.0 <= self.slack < 1.0 or self.stretch < 1:
            raise ConfigError(
                f"slack = {self.slack} must be in [0, 1) and stretch = {self.stretch} at least 1"
            )
        for name, weight in self.weights.items():
            if not (weight >= 0.0 and np.isfinite(weight)):
                raise ConfigError(
                    f"the weight of condition {name!r} is {weight}; give 0 (drop it) or more"
                )

    def empty(self) -> LabelledStore:
        """A store that holds nothing yet."""
        return LabelledStore(self)

    def weight(self, condition: str) -> float:
        return float(self.weights.get(condition, 1.0))


@dataclass(frozen=True)
class Holding:
    """What is held of one condition. `seen`: events of it that were ever added."""

    condition: str
    training: int
    held_out: int
    nbytes: int
    seen: int
    first: float
    last: float


class _Origin(NamedTuple):
    """The segment of `size` events of which a chunk is those with keys below `limit`."""

    segment: str
    size: int
    limit: float


@dataclass(frozen=True)
class _Chunk:
    """Events of one condition and side, in order of arrival; never changed, only replaced."""

    ids: NDArray[np.int64]
    times: NDArray[np.float64]
    keys: NDArray[np.float64]
    inputs: Arrays
    targets: Arrays
    origin: _Origin | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def arrays(self) -> Arrays:
        plain: dict[str, Column] = {"ids": self.ids, "times": self.times, "keys": self.keys}
        return plain | prefixed("inputs", self.inputs) | prefixed("targets", self.targets)

    @cached_property
    def nbytes(self) -> int:
        return n_bytes(self.arrays)

    @cached_property
    def name(self) -> str:
        return content_hash(self.arrays)

    @cached_property
    def event_bytes(self) -> NDArray[np.int64]:
        """Bytes that each event takes, shape (n,); their sum and one offset per ragged is all."""
        fixed = 0
        items: dict[int, tuple[Ragged, int]] = {}  # columns of equal offsets, bytes per item
        for column in self.arrays.values():
            if isinstance(column, Ragged):
                each = column.values.itemsize * int(np.prod(column.values.shape[1:]))
                _, before = items.get(id(column.offsets), (column, 0))
                items[id(column.offsets)] = column, before + each
                fixed += column.offsets.itemsize
            else:
                fixed += column.itemsize * int(np.prod(column.shape[1:]))
        total = np.full(len(self), fixed, np.int64)
        for column, each in items.values():
            total += column.counts * each
        return total

    @cached_property
    def overhead(self) -> int:
        """Bytes that do not belong to an event: the first offset of each ragged column."""
        return sum(8 for column in self.arrays.values() if isinstance(column, Ragged))

    @cached_property
    def highest_key(self) -> float:
        return float(self.keys.max())

    @cached_property
    def earliest(self) -> float:
        return float(self.times.min())

    def take(self, rows: NDArray[np.int64]) -> _Chunk:
        return _Chunk(
            self.ids[rows],
            self.times[rows],
            self.keys[rows],
            take(self.inputs, rows),
            take(self.targets, rows),
        )

    def below(self, key: float) -> _Chunk | None:
        """The events with a smaller key, None if there are none."""
        if not len(self):
            return None
        if self.highest_key < key:
            return self
        rows = np.flatnonzero(self.keys < key)
        origin = None if self.origin is None else self.origin._replace(limit=key)
        if "name" in vars(self):  # it is a segment itself
            origin = _Origin(self.name, len(self), key)
        return replace(self.take(rows), origin=origin) if len(rows) else None

    def remains_of(self, known: Container[str]) -> _Origin | None:
        """Its origin, if that is one of `known` and less than half of it has gone."""
        whole = self.origin
        return whole if whole and whole.segment in known and 2 * len(self) > whole.size else None

    @staticmethod
    def join(parts: list[_Chunk]) -> _Chunk:
        return _Chunk(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.keys for part in parts]),
            concat([part.inputs for part in parts]),
            concat([part.targets for part in parts]),
        )


_Place: TypeAlias = tuple[str, Side]


@dataclass(frozen=True)
class View:
    """One side of a store, or a part of it. Everything comes in order of time, then event id.

    Each verb copies what it returns (`all` of 100 MB of ragged events: about 0.2 s).
    """

    groups: Mapping[str, tuple[_Chunk, ...]]

    def __len__(self) -> int:
        return sum(len(chunk) for chunks in self.groups.values() for chunk in chunks)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions of which something is held, in order of their first event."""
        return tuple(self.groups)

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunks in self.groups.values() for chunk in chunks)

    def all(self) -> Examples:
        """Everything that this side holds."""
        return self._gather(lambda chunk: None)

    def window(self, since: float) -> Examples:
        """The events seen at or after `since` (s)."""
        return self._gather(
            lambda chunk: None if chunk.earliest >= since else np.flatnonzero(chunk.times >= since)
        )

    def newest(self, n: int) -> Examples:
        """The last `n` events, or all if there are fewer."""
        if n >= len(self):
            return self.all()
        chunks = [chunk for chunks in self.groups.values() for chunk in chunks]
        order = np.lexsort(
            (
                np.concatenate([chunk.ids for chunk in chunks]),
                np.concatenate([chunk.times for chunk in chunks]),
            )
        )
        return self._rows(np.sort(order[len(order) - max(n, 0) :]))

    def condition(self, name: str) -> Examples:
        """The events of one condition; none if nothing of it is held."""
        return View({name: self.groups.get(name, ())}).all()

    def sample(self, n: int, rng: np.random.Generator) -> Examples:
        """`n` different events, each with the same probability; all if there are fewer."""
        if n >= len(self):
            return self.all()
        return self._rows(np.sort(rng.choice(len(self), max(n, 0), replace=False, shuffle=False)))

    def _rows(self, rows: NDArray[np.int64]) -> Examples:
        """Events by their number in the order of groups and chunks, `rows` rising."""
        start = 0
        chosen: dict[int, NDArray[np.int64]] = {}
        for chunks in self.groups.values():
            for chunk in chunks:
                low, high = np.searchsorted(rows, [start, start + len(chunk)])
                chosen[id(chunk)] = rows[low:high] - start
                start += len(chunk)
        return self._gather(lambda chunk: chosen[id(chunk)])

    def _gather(self, rows_of: Callable[[_Chunk], NDArray[np.int64] | None]) -> Examples:
        parts: list[Examples] = []
        for condition, chunks in self.groups.items():
            for chunk in chunks:
                rows = rows_of(chunk)
                part = chunk if rows is None else chunk.take(rows)
                names = np.full(len(part), condition)
                parts.append(Examples(part.ids, part.inputs, part.targets, part.times, names))
        joined = Examples.join(parts)
        order = np.lexsort((joined.ids, joined.times))
        if bool(np.all(order[1:] > order[:-1])):
            return joined
        return joined.take(order)


@dataclass(frozen=True)
class LabelledStore:
    """Labelled events within a budget: a value; `add` returns the next one.

    Nothing that is held is ever changed, so an older store stays valid and two stores share what
    they have in common. `thresholds`: per pool, no event with a higher key is held or taken again;
    a pool is a condition (`balanced`) or everything. `seen`: events ever added, by condition.
    """

    rules: Keeping
    groups: Mapping[_Place, tuple[_Chunk, ...]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all arrays held, exactly: never above the budget."""
        return sum(chunk.nbytes for chunks in self.groups.values() for chunk in chunks)

    def __len__(self) -> int:
        return sum(len(chunk) for chunks in self.groups.values() for chunk in chunks)

    @property
    def training(self) -> View:
        """What updaters may learn from."""
        return self._side("training")

    @property
    def held_out(self) -> View:
        """What gates judge on: no event of it was ever in `training`."""
        return self._side("held_out")

    def holdings(self) -> tuple[Holding, ...]:
        """What is held of each condition, in order of first appearance."""
        held: list[Holding] = []
        for condition, seen in self.seen.items():
            sides = [self.groups.get((condition, side), ()) for side in SIDES]
            chunks = [chunk for side in sides for chunk in side]
            held.append(
                Holding(
                    condition,
                    training=sum(len(chunk) for chunk in sides[0]),
                    held_out=sum(len(chunk) for chunk in sides[1]),
                    nbytes=sum(chunk.nbytes for chunk in chunks),
                    seen=seen,
                    first=min((float(chunk.times.min()) for chunk in chunks), default=np.nan),
                    last=max((float(chunk.times.max()) for chunk in chunks), default=np.nan),
                )
            )
        return tuple(held)

    def add(self, examples: Examples, rng: np.random.Generator) -> LabelledStore:
        """The store with these events, after dropping what the rules say must go.

        `ShapeError` if the columns differ from those held. Cost: one copy of the new events, and
        of the whole share of a condition each time that it overflows.
        """
        if not len(examples):
            return self
        self._check_columns(examples)
        keys = self._keys(examples, rng)
        out = is_held_out(examples.ids, self.rules.held_out, self.rules.seed, self.rules.stretch)
        names, place_of = _distinct(examples.conditions)
        groups = dict(self.groups)
        seen = dict(self.seen)
        for number, condition in enumerate(names):
            mine = place_of == number
            seen[condition] = seen.get(condition, 0) + int(np.count_nonzero(mine))
            if self.rules.weight(condition) == 0.0:
                continue
            mine &= keys < self.thresholds.get(self._pool(condition), np.inf)
            for side in SIDES:
                rows = np.flatnonzero(mine & (out if side == "held_out" else ~out))
                if len(rows):
                    chunk = _cut(examples, keys, rows)
                    held = groups.get((condition, side), ())
                    groups[condition, side] = _appended(held, chunk, self.rules.budget_bytes // 32)
        return replace(self, groups=groups, seen=seen)._fitted()

    def reweighted(self, weights: Mapping[str, float]) -> LabelledStore:
        """The store under other weights: what they drop is gone, shares follow as events come."""
        return replace(self, rules=replace(self.rules, weights=dict(weights)))._fitted()

    def to_segments(self, known: Container[str] = ()) -> tuple[JSON, dict[str, Arrays | None]]:
        """State as a document and content-addressed segments, most of them as they were before.

        `known`: names of segments that the last checkpoint holds. One of them of which more than
        half is left is not written anew when events of it were dropped: it is kept (None stands for
        its arrays), and the document says which of its events count.
        """
        rules = dict(vars(self.rules))
        rules["weights"] = dict(self.rules.weights)
        segments: dict[str, Arrays | None] = {}
        groups: list[JSON] = []
        for (condition, side), chunks in self.groups.items():
            names: list[JSON] = []
            for chunk in chunks:
                whole = chunk.remains_of(known)
                name = chunk.name if whole is None else whole.segment
                segments[name] = chunk.arrays if whole is None else None
                names.append({"segment": name, "below": None if whole is None else whole.limit})
            groups.append({"condition": condition, "side": side, "chunks": names})
        document: dict[str, JSON] = {
            "rules": rules,
            "thresholds": dict(self.thresholds),
            "seen": dict(self.seen),
            "groups": groups,
        }
        return document, segments

    @classmethod
    def from_segments(cls, document: JSON, segments: Segments) -> LabelledStore:
        """The store that `to_segments` described."""
        state = cast(dict[str, Any], document)
        groups = {
            (group["condition"], group["side"]): tuple(
                _chunk_of(chunk["segment"], chunk["below"], segments) for chunk in group["chunks"]
            )
            for group in state["groups"]
        }
        return cls(Keeping(**state["rules"]), groups, state["thresholds"], state["seen"])

    def to_arrays(self) -> dict[str, Array]:
        """State as plain arrays: a document and one array of bytes for each segment."""
        document, segments = self.to_segments()
        return as_arrays(document, cast(Segments, segments))

    @classmethod
    def from_arrays(cls, flat: Mapping[str, Array]) -> LabelledStore:
        """The inverse of `to_arrays`."""
        return cls.from_segments(*from_arrays(flat))

    def _side(self, side: Side) -> View:
        return View(
            {
                condition: self.groups[condition, side]
                for condition in self.seen
                if self.groups.get((condition, side))
            }
        )

    def _pool(self, condition: str) -> str:
        return condition if self.rules.policy == "balanced" else "all"

    def _keys(self, examples: Examples, rng: np.random.Generator) -> NDArray[np.float64]:
        if self.rules.policy == "ring":
            # The newest events have the smallest keys.
            return -(sum(self.seen.values()) + np.arange(len(examples), dtype=np.float64))
        return rng.random(len(examples))

    def _check_columns(self, examples: Examples) -> None:
        held = next((chunks[0] for chunks in self.groups.values() if chunks), None)
        if held is None:
            return
        for what, old, new in (
            ("inputs", held.inputs, examples.inputs),
            ("targets", held.targets, examples.targets),
        ):
            if set(old) != set(new):
                raise ShapeError(
                    f"the store holds the {what} {names_of(old)}, but the new events have "
                    f"{names_of(new)}; was the feature list changed? Start a new store then"
                )

    def _fitted(self) -> LabelledStore:
        """Drop the events with the highest keys until everything is within the budget."""
        groups = {
            place: chunks
            for place, chunks in self.groups.items()
            if self.rules.weight(place[0]) > 0.0
        }
        pools: dict[str, list[_Place]] = {}
        for place in groups:
            pools.setdefault(self._pool(place[0]), []).append(place)
        sizes = {
            pool: sum(chunk.nbytes for place in places for chunk in groups[place])
            for pool, places in pools.items()
        }
        thresholds = dict(self.thresholds)
        weights = {
            pool: self.rules.weight(pool) if self.rules.policy == "balanced" else 1.0
            for pool in sizes
        }
        for pool, share in _shares(sizes, weights, self.rules.budget_bytes).items():
            if sizes[pool] <= share:
                continue
            held = [chunk for place in pools[pool] for chunk in groups[place]]
            limit = _threshold(held, int(share * (1.0 - self.rules.slack)))
            thresholds[pool] = limit
            for place in pools[pool]:
                packed: tuple[_Chunk, ...] = ()
                for chunk in groups[place]:
                    kept = chunk.below(limit)
                    if kept is not None:
                        packed = _appended(packed, kept, self.rules.budget_bytes // 32)
                groups[place] = packed
        return replace(
            self,
            groups={place: chunks for place, chunks in groups.items() if chunks},
            thresholds=thresholds,
        )


def _shares(
    sizes: Mapping[str, int], weights: Mapping[str, float], budget: int
) -> dict[str, float]:
    """Weighted max-min fair shares of the budget: what a pool does not need goes to the others."""
    shares: dict[str, float] = {}
    hungry = set(sizes)
    left = float(budget)
    while hungry:
        level = left / sum(weights[pool] for pool in hungry)
        content = {pool for pool in hungry if sizes[pool] <= level * weights[pool]}
        if not content:
            return shares | {pool: level * weights[pool] for pool in hungry}
        for pool in content:
            shares[pool] = float(sizes[pool])
            left -= sizes[pool]
        hungry -= content
    return shares


def _threshold(chunks: list[_Chunk], room: int) -> float:
    """The lowest key that no longer fits when events are kept in order of their keys."""
    keys = np.concatenate([chunk.keys for chunk in chunks])
    sizes = np.concatenate([chunk.event_bytes for chunk in chunks])
    order = np.argsort(keys, kind="stable")
    room -= sum(chunk.overhead for chunk in chunks)
    fit = int(np.searchsorted(np.cumsum(sizes[order]), room, side="right"))
    return float(keys[order[fit]]) if fit < len(keys) else np.inf


def _distinct(conditions: NDArray[np.str_]) -> tuple[list[str], NDArray[np.int64]]:
    """Names in order of first appearance, and the number of the name of each event."""
    if bool(np.all(conditions == conditions[0])):
        return [str(conditions[0])], np.zeros(len(conditions), np.int64)
    names, first, inverse = np.unique(conditions, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return [str(name) for name in names[np.argsort(first)]], rank[inverse.reshape(-1)]


def _cut(examples: Examples, keys: NDArray[np.float64], rows: NDArray[np.int64]) -> _Chunk:
    if len(rows) == len(examples):
        return _Chunk(
            owned_array(examples.ids),
            owned_array(examples.times),
            keys,
            owned(examples.inputs),
            owned(examples.targets),
        )
    return _Chunk(
        examples.ids[rows],
        examples.times[rows],
        keys[rows],
        take(examples.inputs, rows),
        take(examples.targets, rows),
    )


def _appended(held: tuple[_Chunk, ...], chunk: _Chunk, largest: int) -> tuple[_Chunk, ...]:
    """Append, joining neighbours of similar size like the digits of a binary counter.

    So n additions leave about log n chunks of less than `largest` bytes, each event is copied
    about log n times, and a full chunk is never touched again.
    """
    chunks = [*held, chunk]
    while len(chunks) > 1:
        last, before = chunks[-1], chunks[-2]
        if before.nbytes > 2 * last.nbytes or before.nbytes + last.nbytes > largest:
            break
        chunks[-2:] = [_Chunk.join([before, last])]
    return tuple(chunks)


def _chunk_of(name: str, below: float | None, segments: Segments) -> _Chunk:
    arrays = segment(segments, name)
    whole = _Chunk(
        cast(NDArray[np.int64], arrays["ids"]),
        cast(NDArray[np.float64], arrays["times"]),
        cast(NDArray[np.float64], arrays["keys"]),
        unprefixed("inputs", arrays),
        unprefixed("targets", arrays),
    )
    vars(whole)["name"] = name
    chunk = whole if below is None else whole.below(below)
    if chunk is None:
        raise DamagedError(f"segment {name[:12]}... holds no event with a key below {below}")
    return chunk
