"""Columns in pages: rows are written in place, and what was handed out is never changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, Column, Ragged, names_of, take
from stillfit.core.errors import DataError, ShapeError

PAGE = 1024  # rows: a change copies one page, so it costs about a millisecond at 500 bytes a row
Bits: TypeAlias = Literal[0, 8, 16]
Places: TypeAlias = NDArray[np.int64]


@dataclass
class Stored:
    """One column of one page. Rows are dense, or runs of items somewhere in `values`.

    `starts`, `counts`: of ragged rows; `used`: items of `values` in use. `lo`, `step`: of
    quantised values, v = lo + step * q per trailing place; `like`: the type that they had.
    """

    values: Array
    starts: Places | None = None
    counts: Places | None = None
    used: int = 0
    lo: NDArray[np.float64] | None = None
    step: NDArray[np.float64] | None = None
    like: np.dtype[np.generic] | None = None

    def copy(self, rows: int) -> Stored:
        """A column of its own with room for `rows` rows."""
        twin = Stored(self.values, None, None, self.used, self.lo, self.step, self.like)
        if self.starts is None or self.counts is None:
            twin.values = _with_room(self.values, rows)
        else:
            # Items are only ever written behind `used`: until then they may be shared, and then
            # there is no room, so that they move to an array of their own.
            twin.starts, twin.counts = _with_room(self.starts, rows), _with_room(self.counts, rows)
            twin.values = self.values[: self.used]
        return twin

    def put(self, rows: Places, part: Column, what: str) -> None:
        """Write the events of `part` to `rows`; what lay there is gone."""
        ragged = isinstance(part, Ragged)
        if ragged is (self.starts is None):
            raise ShapeError(f"{what} is ragged in some arrivals and dense in others")
        values = part.values if isinstance(part, Ragged) else part
        if values.shape[1:] != self.values.shape[1:]:
            raise ShapeError(
                f"{what} is stored with rows of shape {self.values.shape[1:]} and arrives with "
                f"{values.shape[1:]}; was the feature list changed?"
            )
        if self.lo is not None:
            values = self._encoded(values)
        elif values.dtype != self.values.dtype:
            self.values = self.values.astype(np.promote_types(values.dtype, self.values.dtype))
        if not isinstance(part, Ragged) or self.starts is None or self.counts is None:
            self.values[rows] = values
            return
        if self.used + len(values) > len(self.values):
            self._make_room(len(values))
        first = self.used
        self.values[first : first + len(values)] = values
        self.used += len(values)
        self.starts[rows] = first + part.offsets[:-1]
        self.counts[rows] = part.counts

    def forget(self, rows: Places) -> None:
        """Rows that nobody needs: their items cost nothing any more."""
        if self.counts is not None:
            self.counts[rows] = 0

    def take(self, rows: Places, runs: Runs) -> Column:
        """The rows as they came, quantised ones within a step."""
        if self.starts is None or self.counts is None:
            return self._decoded(self.values[rows])
        places, like = runs.of(self.starts[rows], self.counts[rows])
        return like.with_values(self._decoded(self.values[places]))

    def frozen(self, rows: int, runs: Runs) -> Stored:
        """The first `rows` rows and no room besides; itself where it is so already."""
        if self.starts is None or self.counts is None:
            if len(self.values) == rows:
                return self
            return Stored(self.values[:rows].copy(), None, None, 0, self.lo, self.step, self.like)
        places, like = runs.of(self.starts[:rows], self.counts[:rows])
        starts, n = like.offsets[:-1], len(places)
        tight = len(self.starts) == rows and len(self.values) == n == self.used
        if tight and np.array_equal(self.starts, starts):
            return self
        return Stored(
            self.values[places], starts, like.counts, n, self.lo, self.step, self.like
        )  # fmt: skip

    def to_arrays(self, name: str) -> dict[str, Array]:
        """As a learner's state holds a frozen column."""
        flat = {name: self.values}
        if self.counts is not None:
            offsets = np.zeros(len(self.counts) + 1, np.int64)
            np.cumsum(self.counts, out=offsets[1:])
            flat[f"{name}#offsets"] = offsets
        if self.lo is not None and self.step is not None and self.like is not None:
            flat |= {f"{name}#lo": self.lo, f"{name}#step": self.step}
            flat[f"{name}#like"] = np.zeros(0, self.like)
        return flat

    @classmethod
    def from_arrays(cls, flat: Mapping[str, Array], name: str) -> Stored:
        """The inverse of `to_arrays`."""
        values, offsets = flat[name], flat.get(f"{name}#offsets")
        like = flat.get(f"{name}#like")
        made = cls(values, None, None, 0, flat.get(f"{name}#lo"), flat.get(f"{name}#step"))
        made.like = None if like is None else like.dtype
        if offsets is not None:
            made.starts, made.counts, made.used = offsets[:-1], np.diff(offsets), len(values)
        return made

    @classmethod
    def new(cls, part: Column, rows: int, bits: Bits) -> Stored:
        """An empty column for rows such as those of `part`."""
        values = part.values if isinstance(part, Ragged) else part
        if values.dtype.kind not in "biuf":
            raise DataError(f"a buffer keeps numbers, got a column of {values.dtype}")
        quantised = bits and values.dtype.kind == "f" and values.dtype.itemsize * 8 > bits
        held = np.dtype(f"uint{bits}") if quantised else values.dtype
        ragged = isinstance(part, Ragged)
        made = cls(np.zeros((0 if ragged else rows, *values.shape[1:]), held))
        if ragged:
            made.starts, made.counts = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        if quantised:
            made.like = values.dtype
            made.lo = np.full(values.shape[1:], np.nan)
            made.step = np.zeros(values.shape[1:])
        return made

    def _make_room(self, more: int) -> None:
        """Room for `more` items with a quarter of all to spare; drops what no row has, if much."""
        assert self.starts is not None and self.counts is not None
        held = self
        if self.used > 2 * int(self.counts.sum()):
            held = self.frozen(len(self.counts), Runs())
        n = held.used
        room = n + more + (n + more) // 4
        values = np.empty((room, *self.values.shape[1:]), self.values.dtype)
        values[:n] = held.values[:n]
        if held is not self:
            assert held.starts is not None
            self.starts = held.starts.copy()
        self.values, self.used = values, n

    def _encoded(self, values: Array) -> Array:
        """Nearest steps; the range grows first where values lie outside it."""
        assert self.lo is not None and self.step is not None
        top = float(np.iinfo(self.values.dtype).max)
        if len(values):
            low = values.min(0).astype(np.float64)
            high = values.max(0).astype(np.float64)
            hi = self.lo + top * self.step
            new = np.isnan(self.lo)
            outside = ~new & ((low < self.lo) | (high > hi))
            if new.any() or outside.any():
                self._widen(low, high, hi, new, outside, top)
        safe = np.where(self.step > 0, self.step, 1.0)
        scaled = (values - self.lo) / safe
        steps: Array = np.rint(scaled).astype(self.values.dtype)
        return steps

    def _widen(
        self, low: Array, high: Array, hi: Array, new: Array, outside: Array, top: float
    ) -> None:
        """A range that holds `low` to `high` too, at least twice as wide as the old one.

        Each widening rounds what is there once more; since the step at least doubles, all
        roundings together stay below one step.
        """
        assert self.lo is not None and self.step is not None
        lo, step = self.lo, self.step
        start = np.where(new, low, np.minimum(lo, low))
        end = np.where(new, high, np.maximum(hi, high))
        more = np.where(outside, np.maximum(2 * (hi - lo) - (end - start), 0), 0)
        below = outside & (low < lo)
        start = np.where(below, start - more, start)
        end = np.where(below, end, end + more)
        wide = np.where(new | outside, (end - start) / top, step)
        start = np.where(new | outside, start, lo)
        if outside.any() and len(self.values):
            safe = np.where(wide > 0, wide, 1.0)
            old = np.nan_to_num(lo) + step * self.values
            again = np.rint((old - np.where(new, 0, start)) / safe)
            keep = np.where(outside, again, self.values)
            self.values = np.clip(keep, 0, top).astype(self.values.dtype)
        self.lo, self.step = start, wide

    def _decoded(self, values: Array) -> Array:
        if self.lo is None or self.step is None:
            return values
        plain: Array = (np.nan_to_num(self.lo) + self.step * values).astype(self.like)
        return plain


class Runs:
    """Where the items of rows lie; columns whose rows lie alike share the answer."""

    def __init__(self) -> None:
        self._known: list[tuple[Places, Places, Places, Ragged]] = []

    def of(self, starts: Places, counts: Places) -> tuple[Places, Ragged]:
        """The place of each item, and a ragged column of these places."""
        for known_starts, known_counts, places, like in self._known:
            if np.array_equal(known_counts, counts) and np.array_equal(known_starts, starts):
                return places, like
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        places = np.repeat(starts - offsets[:-1], counts)
        places += np.arange(len(places))
        like = Ragged(places, offsets)
        self._known.append((starts, counts, places, like))
        return places, like


def _with_room(values: Array, rows: int) -> Array:
    if len(values) == rows:
        return values.copy()
    wide = np.zeros((rows, *values.shape[1:]), values.dtype)
    wide[: len(values)] = values
    return wide


class Pages:
    """Rows of named columns in pages of `PAGE`: a value to hand out, a table to write to.

    Opening the arrays of a learner's state costs nothing; the first write to a page copies that
    page, further ones are in place, and `to_arrays` hands the pages out, after which they are
    shared again. So a change costs the pages that it touches and never the whole.
    `capacity`: rows at most; `bits`: of inputs' floats, 0 for as they are.
    """

    def __init__(self, capacity: int, bits: Bits = 0) -> None:
        self.capacity, self.bits = capacity, bits
        self.n = 0  # rows that were ever written to: those before it exist
        self._pages: list[dict[str, Stored]] = []
        self._own: list[bool] = []
        self._columns: dict[str, None] = {}

    @classmethod
    def from_arrays(cls, flat: Mapping[str, Array], capacity: int, bits: Bits = 0) -> Pages:
        """The pages that `to_arrays` gave, shared with it."""
        made = cls(capacity, bits)
        parts: dict[int, dict[str, Array]] = {}
        for name, values in flat.items():
            place, _, column = name.partition("/")
            parts.setdefault(int(place), {})[column] = values
        for number in sorted(parts):
            names = [name for name in parts[number] if "#" not in name]
            page = {name: Stored.from_arrays(parts[number], name) for name in names}
            made._pages.append(page)
            made._own.append(False)
            made.n += len(page["ids"].values)
            made._columns.update(dict.fromkeys(names))
        return made

    def to_arrays(self) -> dict[str, Array]:
        """All pages as named arrays with nothing to spare."""
        flat: dict[str, Array] = {}
        for number, page in enumerate(self._pages):
            rows = self._rows_of(number)
            runs = Runs()
            frozen = {name: column.frozen(rows, runs) for name, column in page.items()}
            self._pages[number], self._own[number] = frozen, False
            for name, column in frozen.items():
                flat |= column.to_arrays(f"{number}/{name}")
        return flat

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._columns)

    def put(self, rows: Places, columns: Arrays) -> None:
        """Write events to rows; a row is at most the number of rows that exist (then it is new).

        Columns that are not given keep what they hold there (0 in new rows), unless they are
        unknown to some row: then it is a `ShapeError`.
        """
        if not len(rows):
            return
        self.n = max(self.n, int(rows.max()) + 1)
        self._columns.update(dict.fromkeys(columns))
        page_of = rows // PAGE
        pages = np.unique(page_of)
        for number in pages.tolist():
            here = slice(None) if len(pages) == 1 else np.flatnonzero(page_of == number)
            local = rows[here] - number * PAGE
            part = columns if isinstance(here, slice) else take(columns, here)
            page = self._owned(number, part)
            for name, values in part.items():
                if name not in page:
                    page[name] = Stored.new(values, self._room(number), 0)
                page[name].put(local, values, f"column {name!r}")

    def forget(self, rows: Places) -> None:
        """Let go of the items of rows that are free now; dense rows stay allocated."""
        page_of = rows // PAGE
        for number in np.unique(page_of).tolist():
            if any(column.counts is not None for column in self._pages[number].values()):
                for column in self._owned(number, {}).values():
                    column.forget(rows[page_of == number] - number * PAGE)

    def take(self, rows: Places, names: Iterable[str]) -> dict[str, Column]:
        """The rows in the order asked for."""
        if not self._pages:
            return {}
        runs = Runs()
        if len(self._pages) == 1:
            return {name: self._pages[0][name].take(rows, runs) for name in names}
        page_of = rows // PAGE
        pages = np.unique(page_of).tolist()
        if len(pages) == 1:
            page, local = self._pages[pages[0]], rows - pages[0] * PAGE
            return {name: page[name].take(local, runs) for name in names}
        where = [np.flatnonzero(page_of == number) for number in pages]
        locals_ = [rows[at] - n * PAGE for at, n in zip(where, pages, strict=True)]
        each = [Runs() for _ in pages]
        found: dict[str, Column] = {}
        for name in names:
            parts = [
                self._pages[n][name].take(at, known)
                for n, at, known in zip(pages, locals_, each, strict=True)
            ]
            found[name] = _scattered(parts, where, len(rows), runs)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all columns as they lie in memory now, room to spare included."""
        total = 0
        for page in self._pages:
            for column in page.values():
                arrays = (column.values, column.starts, column.counts, column.lo, column.step)
                total += sum(part.nbytes for part in arrays if part is not None)
        return total

    def _rows_of(self, number: int) -> int:
        return min(PAGE, self.n - number * PAGE)

    def _room(self, number: int) -> int:
        return max(min(PAGE, self.capacity - number * PAGE), self._rows_of(number))

    def _owned(self, number: int, like: Arrays) -> dict[str, Stored]:
        while len(self._pages) <= number:
            room = self._room(len(self._pages))
            self._pages.append(
                {
                    name: Stored.new(part, room, self.bits if name.startswith("inputs/") else 0)
                    for name, part in like.items()
                }
            )
            self._own.append(True)
        if not self._own[number]:
            room = self._room(number)
            self._pages[number] = {
                name: column.copy(room) for name, column in self._pages[number].items()
            }
            self._own[number] = True
        return self._pages[number]


def _scattered(parts: list[Column], where: list[Places], n: int, runs: Runs) -> Column:
    """Parts whose events belong at `where` of `n`, as one column."""
    if isinstance(parts[0], Ragged):
        whole = [part for part in parts if isinstance(part, Ragged)]
        values = np.concatenate([part.values for part in whole])
        counts = np.concatenate([part.counts for part in whole])
        back = np.empty(n, np.int64)
        back[np.concatenate(where)] = np.arange(n)
        places, like = runs.of((np.cumsum(counts) - counts)[back], counts[back])
        return like.with_values(values[places])
    dense = [part for part in parts if not isinstance(part, Ragged)]
    out = np.empty((n, *dense[0].shape[1:]), np.result_type(*dense))
    for part, at in zip(dense, where, strict=True):
        out[at] = part
    return out


def require_columns(have: Iterable[str], arriving: Iterable[str]) -> None:
    """`ShapeError` where arrivals have other columns than what is stored."""
    strange = set(have) ^ set(arriving)
    if strange:
        raise ShapeError(
            f"the buffer and the events that arrive differ in {names_of(strange)}; "
            "was the feature list changed? begin the learner anew"
        )
