"""What cannot be used is set aside, counted and reported, while the stream goes on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays, Column, Ragged, first_bad, names_of
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Block, Event, Labels, Notice
from stillfit.core.values import JSON
from stillfit.streams.contract import Stream, skipped

NOT_FINITE = "inputs not finite"
LABEL_NOT_FINITE = "label not finite"
DUPLICATE = "duplicate id"
ID_ORDER = "id out of order"
TIME_ORDER = "time out of order"
TOO_MANY = "more items than the padding"
EMPTY = "empty block"
UNKNOWN = "label of an unknown event"
EXPIRED = "label of an expired event"


@dataclass(frozen=True)
class SetAside:
    """What was set aside so far: `counts` by reason, and the `first` case of each in words.

    Counted are events or labels; whole blocks for `empty block`, and one for a notice.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.counts:
            return "nothing was set aside"
        lines = (f"{n} x {reason} (first: {self.first[reason]})" for reason, n in self._sorted())
        return "set aside: " + "; ".join(lines)

    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(self.counts.items())

    def plus(self, reason: str, n: int, example: str) -> SetAside:
        counts = dict(self.counts)
        counts[reason] = counts.get(reason, 0) + n
        return SetAside(counts, {reason: example, **self.first})


@dataclass(frozen=True, kw_only=True)
class GuardPolicy:
    """What a stream must look like.

    `inputs`: columns that must be there; those of the first block where none are named.
    `padding`: most items of an event in any ragged column that the model has room for, None if
    there is no limit. `window`: events whose labels are still welcome; a label of an older one is
    set aside as expired. It costs 8 bytes per event, and nothing where ids have no gaps.
    """

    inputs: tuple[str, ...] = ()
    padding: int | None = None
    window: int = 2_000_000

    def __post_init__(self) -> None:
        if self.window < 1 or (self.padding is not None and self.padding < 1):
            raise ConfigError(
                f"window = {self.window} and padding = {self.padding} must be at least 1"
            )


class Guarded:
    """A stream of which only what can be used comes through.

    Set aside are: events with NaN or infinity, duplicate ids, ids or times that go back, empty
    blocks, events with more items than the padding, and labels that are not finite or belong to
    no event that came through and is still remembered. Changed columns or feature counts are a
    `ShapeError`: no model could go on. A notice that comes late is dropped too: what it says was
    true before the newest one.

    `set_aside` is the report of the newest run; a run that starts later counts what it skips.
    `events(start)` reads the stream from its beginning, as only that tells what is set aside.
    `resume` goes on from a `cursor` instead, and reads nothing twice.

    Cost: one pass over the floating-point inputs (a sum), and O(1) for ids without gaps.
    """

    def __init__(self, stream: Stream, policy: GuardPolicy | None = None) -> None:
        self.stream = stream
        self.policy = policy or GuardPolicy()
        self._run = _Run(self.policy)

    @property
    def set_aside(self) -> SetAside:
        """What was set aside by the newest run of `events` so far."""
        return self._run.report

    def events(self, start: int = 0) -> Iterator[Event]:
        self._run = _Run(self.policy)
        return skipped(self._usable(self._run), start)

    def cursor(self) -> JSON:
        """Where the newest run is, just after the event it gave last: small, plain values."""
        return self._run.to_json()

    def resume(self, cursor: JSON) -> Iterator[Event]:
        """The events after those that were given when `cursor` was taken."""
        self._run = _Run.from_json(self.policy, cursor)
        return self._usable(self._run)

    def _usable(self, run: _Run) -> Iterator[Event]:
        for event in self.stream.events(run.read):
            run.read += 1
            usable = run.checked(event)
            if usable is not None:
                yield usable


_NEVER = int(np.iinfo(np.int64).min)


class _Shape(NamedTuple):
    ragged: bool
    kind: str
    features: tuple[int, ...]


def _shapes(arrays: Arrays) -> dict[str, _Shape]:
    shapes = {}
    for name, column in arrays.items():
        values = column.values if isinstance(column, Ragged) else column
        kind = "number" if values.dtype.kind in "fiub" else values.dtype.kind
        shapes[name] = _Shape(isinstance(column, Ragged), kind, values.shape[1:])
    return shapes


def _shapes_to_json(shapes: dict[str, _Shape] | None) -> JSON:
    if shapes is None:
        return None
    return {name: [s.ragged, s.kind, list(s.features)] for name, s in shapes.items()}


def _shapes_from_json(document: Any) -> dict[str, _Shape] | None:
    if document is None:
        return None
    return {name: _Shape(item[0], item[1], tuple(item[2])) for name, item in document.items()}


class _Run:
    """The guard's memory during one run: columns, last id and time, ids that came through."""

    def __init__(self, policy: GuardPolicy) -> None:
        self.policy = policy
        self.read = 0
        self.report = SetAside()
        self.now = -math.inf
        self.known = _Known(policy.window)
        self.inputs: dict[str, _Shape] | None = None
        self.targets: dict[str, _Shape] | None = None

    def to_json(self) -> JSON:
        return {
            "read": self.read,
            "now": self.now if math.isfinite(self.now) else None,
            "counts": dict(self.report.counts),
            "first": dict(self.report.first),
            "known": self.known.to_json(),
            "inputs": _shapes_to_json(self.inputs),
            "targets": _shapes_to_json(self.targets),
        }

    @classmethod
    def from_json(cls, policy: GuardPolicy, document: JSON) -> _Run:
        state = cast(dict[str, Any], document)
        run = cls(policy)
        run.read = int(state["read"])
        run.now = -math.inf if state["now"] is None else float(state["now"])
        run.report = SetAside(dict(state["counts"]), dict(state["first"]))
        run.known = _Known.from_json(policy.window, state["known"])
        run.inputs = _shapes_from_json(state["inputs"])
        run.targets = _shapes_from_json(state["targets"])
        return run

    def checked(self, event: Event) -> Event | None:
        """The part of an event that can be used, None if there is none."""
        what = type(event).__name__.lower()
        if not isinstance(event, Notice) and not len(event):
            self._aside(EMPTY, 1, f"{what} of time {event.time:.3f} s")
            return None
        if not (math.isfinite(event.time) and event.time >= self.now):
            n = 1 if isinstance(event, Notice) else len(event)
            name = f"{event.state!r}" if isinstance(event, Notice) else f"from id {event.ids[0]}"
            self._aside(
                TIME_ORDER, n, f"{what} {name} of time {event.time:.3f} s after {self.now:.3f} s"
            )
            return None
        usable: Event | None = event
        if isinstance(event, Block):
            usable = self._block(event)
        elif isinstance(event, Labels):
            usable = self._labels(event)
        if usable is not None:
            self.now = event.time
        return usable

    def _aside(self, reason: str, n: int, example: str) -> None:
        self.report = self.report.plus(reason, n, example)

    def _block(self, block: Block) -> Block | None:
        self.inputs = self._same_columns("inputs", block.inputs, self.inputs)
        last = self.known.last
        if block.ids[0] <= last:
            late = block.ids[block.ids <= last]
            again = self.known.among(late)
            for reason, ids in ((DUPLICATE, late[again]), (ID_ORDER, late[~again])):
                if len(ids):
                    self._aside(reason, len(ids), f"event {ids[0]} after event {last}")
            block = block.take(np.flatnonzero(block.ids > last))
        where = first_bad(block.inputs)
        if where is not None:
            good = _finite_rows(block.inputs, len(block))
            first = block.ids[np.flatnonzero(~good)[0]]
            self._aside(NOT_FINITE, int(np.sum(~good)), f"event {first}: {where}")
            block = block.take(np.flatnonzero(good))
        if self.policy.padding is not None:
            block = self._within(block, self.policy.padding)
        if not len(block):
            return None
        self.known.add(block.ids)
        return block

    def _within(self, block: Block, padding: int) -> Block:
        counts = _most_items(block.inputs)
        if counts is None or not len(counts) or counts.max() <= padding:
            return block
        over = counts > padding
        first = int(np.flatnonzero(over)[0])
        self._aside(
            TOO_MANY,
            int(np.sum(over)),
            f"event {block.ids[first]} has {counts[first]} items where there is room for {padding}",
        )
        return block.take(np.flatnonzero(~over))

    def _labels(self, labels: Labels) -> Labels | None:
        self.targets = self._same_columns("targets", labels.targets, self.targets)
        where = first_bad(labels.targets)
        if where is not None:
            good = _finite_rows(labels.targets, len(labels))
            first = labels.ids[np.flatnonzero(~good)[0]]
            self._aside(LABEL_NOT_FINITE, int(np.sum(~good)), f"event {first}: {where}")
            labels = labels.take(np.flatnonzero(good))
        known = self.known.among(labels.ids)
        if not known.all():
            stray = labels.ids[~known]
            old = stray <= self.known.forgotten
            for reason, ids in ((EXPIRED, stray[old]), (UNKNOWN, stray[~old])):
                if len(ids):
                    self._aside(reason, len(ids), f"event {ids[0]} at {labels.time:.3f} s")
            labels = labels.take(np.flatnonzero(known))
        return labels if len(labels) else None

    def _same_columns(
        self, what: str, arrays: Arrays, before: dict[str, _Shape] | None
    ) -> dict[str, _Shape]:
        shapes = _shapes(arrays)
        if shapes == before:
            return shapes
        if before is None:
            missing = set(self.policy.inputs) - set(shapes) if what == "inputs" else set()
            if missing:
                raise ShapeError(
                    f"the stream lacks the inputs {names_of(missing)}; it has {names_of(shapes)}"
                )
            return shapes
        gone, new = set(before) - set(shapes), set(shapes) - set(before)
        if gone or new:
            raise ShapeError(
                f"the {what} of the stream changed from {len(before)} to {len(shapes)} columns: "
                f"gone are {names_of(gone)}, new are {names_of(new)}; was the feature list "
                "changed? The serving model cannot go on"
            )
        name = next(name for name in shapes if shapes[name] != before[name])
        raise ShapeError(
            f"column {name!r} of the {what} changed from {_said(before[name])} to "
            f"{_said(shapes[name])}; was the feature list changed? The serving model cannot go on"
        )


class _Known:
    """Ids that came through, the newest `window` of them, as runs without gaps where possible."""

    def __init__(self, window: int) -> None:
        self.window = window
        # first id, last id, and the ids between if there are gaps
        self._runs: deque[tuple[int, int, NDArray[np.int64] | None]] = deque()
        self._n = 0
        self.forgotten = _NEVER  # every id up to this one

    def to_json(self) -> JSON:
        runs: list[JSON] = [
            [first, last, None if gaps is None else np.diff(gaps).tolist()]
            for first, last, gaps in self._runs
        ]
        return {"runs": runs, "forgotten": self.forgotten}

    @classmethod
    def from_json(cls, window: int, document: Any) -> _Known:
        known = cls(window)
        known.forgotten = int(document["forgotten"])
        for first, last, steps in document["runs"]:
            gaps = None if steps is None else first + np.cumsum([0, *steps], dtype=np.int64)
            known._runs.append((first, last, gaps))
            known._n += last - first + 1 if gaps is None else len(gaps)
        return known

    @property
    def last(self) -> int:
        return self._runs[-1][1] if self._runs else self.forgotten

    def add(self, ids: NDArray[np.int64]) -> None:
        first, last, n = int(ids[0]), int(ids[-1]), len(ids)
        self._n += n
        gaps = None if last - first + 1 == n else np.array(ids)
        if gaps is None and self._runs and self._runs[-1][2] is None and self.last + 1 == first:
            self._runs[-1] = (self._runs[-1][0], last, None)
        else:
            self._runs.append((first, last, gaps))
        while self._n > self.window:
            self._forget(self._n - self.window)

    def _forget(self, n: int) -> None:
        first, last, gaps = self._runs[0]
        held = last - first + 1 if gaps is None else len(gaps)
        if held <= n:
            self._runs.popleft()
            self._n -= held
            self.forgotten = last
            return
        if gaps is None:
            self._runs[0] = (first + n, last, None)
            self.forgotten = first + n - 1
        else:
            self._runs[0] = (int(gaps[n]), last, gaps[n:])
            self.forgotten = int(gaps[n - 1])
        self._n -= n

    def among(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `ids` are remembered."""
        if not len(ids):
            return np.zeros(0, np.bool_)
        low, high = int(ids.min()), int(ids.max())
        known = np.zeros(len(ids), np.bool_)
        for first, last, gaps in reversed(self._runs):
            if last < low:
                break
            if first > high:
                continue
            if gaps is None:
                if first <= low and high <= last:
                    return np.ones(len(ids), np.bool_)
                known |= (ids >= first) & (ids <= last)
            else:
                near = np.searchsorted(gaps, ids).clip(max=len(gaps) - 1)
                known |= gaps[near] == ids
        return known


def _finite_rows(arrays: Arrays, n: int) -> NDArray[np.bool_]:
    good = np.ones(n, np.bool_)
    for column in arrays.values():
        values = column.values if isinstance(column, Ragged) else column
        if not np.issubdtype(values.dtype, np.floating):
            continue
        fine = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if isinstance(column, Ragged):
            good[np.unique(column.events[~fine])] = False
        else:
            good &= fine
    return good


def _most_items(arrays: Arrays) -> NDArray[np.int64] | None:
    """Largest number of items of each event over the ragged columns."""
    most: NDArray[np.int64] | None = None
    seen: list[Column] = []
    for column in arrays.values():
        if isinstance(column, Ragged) and not any(
            isinstance(old, Ragged) and old.offsets is column.offsets for old in seen
        ):
            seen.append(column)
            most = column.counts if most is None else np.maximum(most, column.counts)
    return most


def _said(shape: _Shape) -> str:
    features = " x ".join(str(size) for size in shape.features) or "1"
    return f"{features} feature(s), {'ragged' if shape.ragged else 'dense'}, {shape.kind}"
