"""Late labels meet the events they belong to, within a stated memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, content_hash, n_bytes
from stillfit.core.errors import ConfigError, OrderError
from stillfit.core.events import Block, Examples, Labels
from stillfit.core.values import JSON
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


@dataclass(frozen=True)
class JoinCounts:
    """What became of events and labels so far.

    `joined`: events that got their label. `expired`: events dropped from memory without a label.
    `late`: labels that came after their event had been dropped or joined with its whole block.
    `repeated`: further labels of an event that has one. `unknown`: labels of events never seen.
    """

    joined: int = 0
    expired: int = 0
    late: int = 0
    repeated: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class _Waiting:
    """A block whose labels have not all come. `open`: events without a label, shape (n,)."""

    block: Block
    open: NDArray[np.bool_]

    @cached_property
    def arrays(self) -> Arrays:
        return {"ids": self.block.ids, **prefixed("inputs", self.block.inputs)}

    @cached_property
    def name(self) -> str:
        return content_hash(self.arrays)

    @cached_property
    def nbytes(self) -> int:
        return n_bytes(self.arrays) + self.open.nbytes


class Joiner:
    """Holds the events that wait for labels, at most `max_bytes` of them, and joins the two.

    Events that do not fit, or that have waited for more than `max_age` seconds, are dropped, the
    oldest block first, and counted as expired. Blocks are kept whole until every event of theirs
    is labelled, so partial labels cost the memory of the unlabelled events too.

    Cost: `add` copies inputs that are views of something larger; `join` copies the labelled rows,
    or nothing where a block's labels come all at once and in order.
    """

    def __init__(self, max_bytes: int, max_age: float = np.inf) -> None:
        if max_bytes <= 0 or not max_age > 0:
            raise ConfigError(
                f"a joiner needs room and time for events, got max_bytes={max_bytes} and "
                f"max_age={max_age}"
            )
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.counts = JoinCounts()
        self._waiting: list[_Waiting] = []
        self._nbytes = 0
        self._last = int(np.iinfo(np.int64).min)

    @property
    def nbytes(self) -> int:
        """Bytes of the events that wait: never above `max_bytes`."""
        return self._nbytes

    def __len__(self) -> int:
        """Events that wait for a label."""
        return sum(int(np.count_nonzero(entry.open)) for entry in self._waiting)

    @property
    def oldest(self) -> int:
        """Id of the first event of the oldest block that waits; one past the last if none does."""
        return int(self._waiting[0].block.ids[0]) if self._waiting else self._last + 1

    def blocks(self) -> list[Block]:
        """The blocks that wait, oldest first."""
        return [entry.block for entry in self._waiting]

    def unlabelled(self) -> list[Block]:
        """The events that wait for a label, in blocks, oldest first."""
        return [
            entry.block if entry.open.all() else entry.block.take(np.flatnonzero(entry.open))
            for entry in self._waiting
        ]

    def add(self, block: Block) -> None:
        """Remember a block until its labels come."""
        if not len(block):
            return
        if block.ids[0] <= self._last:
            raise OrderError(
                f"a block starts with event {block.ids[0]} after event {self._last}; event ids "
                "must rise strictly: wrap the stream in Guarded to set such events aside"
            )
        self._last = int(block.ids[-1])
        kept = Block(owned_array(block.ids), owned(block.inputs), block.time, block.conditions)
        entry = _Waiting(kept, np.ones(len(block), np.bool_))
        if entry.nbytes > self.max_bytes:
            # Keep the newest events of a block that is too large for the whole memory.
            fit = int(len(block) * self.max_bytes / (entry.nbytes * 1.5))
            self._count(expired=len(block) - fit)
            if not fit:
                return
            tail = kept.take(slice(len(block) - fit, len(block)))
            kept = Block(owned_array(tail.ids), owned(tail.inputs), tail.time, tail.conditions)
            entry = _Waiting(kept, np.ones(fit, np.bool_))
        self._waiting.append(entry)
        self._nbytes += entry.nbytes
        self._expire(block.time)

    def join(self, labels: Labels) -> Examples:
        """The events that `labels` speak of, with their targets, in order of event ids."""
        if not len(labels):
            return Examples.empty()
        ids, order = _sorted(labels.ids)
        first = bisect_left(self._waiting, ids[0], key=lambda entry: int(entry.block.ids[-1]))
        oldest = self._waiting[0].block.ids[0] if self._waiting else self._last + 1
        parts: list[Examples] = []
        known = 0
        done: list[int] = []
        for place in range(first, len(self._waiting)):
            entry = self._waiting[place]
            block = entry.block
            if block.ids[0] > ids[-1]:
                break
            low, high = np.searchsorted(ids, block.ids[[0, -1]] + np.array([0, 1]))
            rows = np.searchsorted(block.ids, ids[low:high])
            found = block.ids[rows] == ids[low:high]
            known += int(np.count_nonzero(found))
            fresh = found & entry.open[rows]
            # The first of several labels of one event counts.
            fresh[1:] &= rows[1:] != rows[:-1]
            if not fresh.any():
                continue
            take = low + np.flatnonzero(fresh)
            rows = rows[fresh]
            parts.append(_examples(block, rows, labels, take if order is None else order[take]))
            still = entry.open.copy()
            still[rows] = False
            if still.any():
                kept = replace(entry, open=still)
                kept.__dict__.update({k: v for k, v in entry.__dict__.items() if k == "name"})
                self._waiting[place] = kept
            else:
                done.append(place)
        for place in reversed(done):
            self._nbytes -= self._waiting.pop(place).nbytes
        joined = Examples.join(parts)
        late = int(np.count_nonzero(ids < oldest))
        after = int(np.count_nonzero(ids > self._last))
        # Between oldest and last, and not found: the event's whole block was joined before, or the
        # id was never seen; only ids that were never given out count as unknown.
        between = len(ids) - known - late - after
        self._count(
            joined=len(joined), repeated=known - len(joined), late=late + between, unknown=after
        )
        return joined

    def to_segments(self) -> tuple[JSON, dict[str, Arrays]]:
        """State as a document and one segment for each waiting block."""
        document: dict[str, JSON] = {
            "max_bytes": self.max_bytes,
            "max_age": self.max_age if np.isfinite(self.max_age) else None,
            "last": self._last,
            "counts": {name: int(value) for name, value in vars(self.counts).items()},
            "waiting": [
                {
                    "segment": entry.name,
                    "time": float(entry.block.time),
                    "conditions": dict(entry.block.conditions),
                    "open": np.packbits(entry.open).tobytes().hex(),
                }
                for entry in self._waiting
            ],
        }
        return document, {entry.name: entry.arrays for entry in self._waiting}

    @classmethod
    def from_segments(cls, document: JSON, segments: Segments) -> Joiner:
        """The joiner that `to_segments` described; it goes on as the first one would have."""
        state = cast(dict[str, Any], document)
        age = state["max_age"]
        joiner = cls(int(state["max_bytes"]), np.inf if age is None else float(age))
        joiner.counts = JoinCounts(**state["counts"])
        joiner._last = int(state["last"])
        for item in state["waiting"]:
            arrays = segment(segments, item["segment"])
            ids = cast(NDArray[np.int64], arrays["ids"])
            block = Block(ids, unprefixed("inputs", arrays), item["time"], item["conditions"])
            packed = np.frombuffer(bytes.fromhex(item["open"]), np.uint8)
            entry = _Waiting(block, np.unpackbits(packed, count=len(ids)).astype(np.bool_))
            joiner._waiting.append(entry)
            joiner._nbytes += entry.nbytes
        return joiner

    def to_arrays(self) -> dict[str, Array]:
        """State as plain named arrays."""
        return as_arrays(*self.to_segments())

    @classmethod
    def from_arrays(cls, flat: Mapping[str, Array]) -> Joiner:
        """The inverse of `to_arrays`."""
        return cls.from_segments(*from_arrays(flat))

    def _expire(self, now: float) -> None:
        drop = 0
        for entry in self._waiting:
            if self._nbytes <= self.max_bytes and now - entry.block.time <= self.max_age:
                break
            self._nbytes -= entry.nbytes
            self._count(expired=int(np.count_nonzero(entry.open)))
            drop += 1
        del self._waiting[:drop]

    def _count(self, **more: int) -> None:
        now = {name: getattr(self.counts, name) + value for name, value in more.items()}
        self.counts = replace(self.counts, **now)


def _sorted(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Ids in rising order and the rows they came from, None where they rise already."""
    if len(ids) < 2 or bool(np.all(ids[1:] > ids[:-1])):
        return ids, None
    order = np.argsort(ids, kind="stable")
    return ids[order], order


def _examples(
    block: Block, rows: NDArray[np.int64], labels: Labels, take: NDArray[np.int64]
) -> Examples:
    whole = len(rows) == len(block)
    seen = block if whole else block.take(rows)
    all_labels = len(take) == len(labels) and bool(np.all(take[1:] > take[:-1]))
    told = labels if all_labels else labels.take(take)
    return Examples(
        seen.ids,
        seen.inputs,
        told.targets,
        np.full(len(rows), block.time),
        np.full(len(rows), block.condition),
    )
