"""Named arrays whose leading axis is events, with a ragged kind for events of many tracks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import DataError, ShapeError

Array: TypeAlias = NDArray[Any]
Index: TypeAlias = slice | NDArray[np.int64] | NDArray[np.bool_]
_Items: TypeAlias = "slice | list[slice] | NDArray[np.int64]"  # places in flat values


@dataclass(frozen=True)
class Ragged:
    """Events of different length, flat: event `i` is `values[offsets[i]:offsets[i + 1]]`.

    `values` has shape (items, ...), `offsets` shape (events + 1,), int64, from 0 to `items`,
    never falling. Flat storage beats padding: no wasted arithmetic and no upper limit.
    """

    values: Array
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.ndim != 1 or len(offsets) < 1 or offsets.dtype != np.int64:
            raise ShapeError(
                f"offsets must be one int64 axis of events + 1 entries, got shape {offsets.shape} "
                f"of {offsets.dtype}"
            )
        if offsets[0] != 0 or offsets[-1] != len(self.values) or np.any(np.diff(offsets) < 0):
            raise ShapeError(
                f"offsets must rise from 0 to the {len(self.values)} items, got "
                f"{offsets[0]} to {offsets[-1]}; were the values cut without their offsets?"
            )

    @classmethod
    def from_counts(cls, values: Array, counts: NDArray[np.integer[Any]]) -> Ragged:
        """Build from the number of items of each event."""
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(values, offsets)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Items of each event, shape (events,)."""
        return np.diff(self.offsets)

    @property
    def events(self) -> NDArray[np.int64]:
        """The event of each item, shape (items,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.offsets.nbytes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Index) -> Ragged:
        """A contiguous slice is a view; an index or mask copies."""
        items, offsets = self._items(index)
        return Ragged(_items_at(self.values, items), offsets)

    def with_values(self, values: Array) -> Ragged:
        """Other values of the same items; shares the offsets, so it costs next to nothing."""
        if len(values) != len(self.values):
            raise ShapeError(f"{len(values)} values were given for {len(self.values)} items")
        other = object.__new__(Ragged)  # the offsets have been checked
        object.__setattr__(other, "values", values)
        object.__setattr__(other, "offsets", self.offsets)
        return other

    def _items(self, index: Index) -> tuple[_Items, NDArray[np.int64]]:
        """Places of the items of the events at `index`, and the offsets that these then have."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                stop = max(stop, start)
                first = self.offsets[start]
                return slice(first, self.offsets[stop]), self.offsets[start : stop + 1] - first
            index = np.arange(start, stop, step)
        rows = np.asarray(index)
        if rows.dtype == np.bool_:
            if len(rows) != len(self):
                raise ShapeError(f"a mask of {len(rows)} was put on {len(self)} events")
            rows = np.flatnonzero(rows)
        counts = self.counts[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        rows = np.mod(rows, max(len(self), 1))  # from the end too
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        if 3 * len(breaks) < len(rows):  # then copying runs of events is faster than of items
            first = self.offsets[rows[np.append(0, breaks)]].tolist()
            last = self.offsets[rows[np.append(breaks, len(rows)) - 1] + 1].tolist()
            return [slice(*ends) for ends in zip(first, last, strict=True)], offsets
        # Position inside the output minus the start of its event, plus the start in the input.
        items = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        items += np.arange(offsets[-1])
        return items, offsets


def _items_at(values: Array, items: _Items) -> Array:
    if isinstance(items, slice):
        return values[items]
    if isinstance(items, list):
        return np.concatenate([values[run] for run in items])
    return values.take(items, 0)


Column: TypeAlias = Array | Ragged
Arrays: TypeAlias = Mapping[str, Column]


def n_events(arrays: Arrays) -> int:
    """Events that every column agrees on; `ShapeError` where they do not."""
    sizes = {name: len(column) for name, column in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError(f"columns disagree on the number of events: {sizes}")
    return next(iter(sizes.values()), 0)


def take(arrays: Arrays, index: Index) -> dict[str, Column]:
    """The events at `index` of every column; ragged columns that share offsets share new ones."""
    taken: dict[str, Column] = {}
    shared: dict[int, tuple[_Items, Ragged]] = {}
    for name, column in arrays.items():
        if not isinstance(column, Ragged):
            taken[name] = column[index]
        elif (key := id(column.offsets)) not in shared:
            items, offsets = column._items(index)
            first = Ragged(_items_at(column.values, items), offsets)
            taken[name], shared[key] = first, (items, first)
        else:
            items, first = shared[key]
            taken[name] = first.with_values(_items_at(column.values, items))
    return taken


def with_offsets_shared(arrays: Arrays) -> dict[str, Column]:
    """The same columns; ragged ones of equal offsets share one array of them, held once."""
    columns: dict[str, Column] = {}
    known: list[Ragged] = []
    for name, column in arrays.items():
        columns[name] = column
        if isinstance(column, Ragged):
            for other in known:
                if np.array_equal(column.offsets, other.offsets):
                    columns[name] = other.with_values(column.values)
                    break
            else:
                known.append(column)
    return columns


def concat(parts: Sequence[Arrays]) -> dict[str, Column]:
    """Join along events; every part must have the same columns. One part alone is not copied.

    Ragged columns that share their offsets in every part share the new ones.
    """
    if not parts:
        return {}
    names = list(parts[0])
    for part in parts[1:]:
        if set(part) != set(names):
            raise ShapeError(
                f"parts have different columns: {sorted(names)} and {sorted(part)}; "
                "was the feature list changed?"
            )
    if len(parts) == 1:
        return dict(parts[0])
    joined: dict[str, Column] = {}
    shared: dict[tuple[int, ...], Ragged] = {}
    for name in names:
        columns = [part[name] for part in parts]
        ragged = [column for column in columns if isinstance(column, Ragged)]
        key = tuple(id(column.offsets) for column in ragged)
        if len(ragged) == len(columns) and key in shared:
            values = np.concatenate([column.values for column in ragged])
            joined[name] = shared[key].with_values(values)
        else:
            joined[name] = column = concat_columns(columns)
            if isinstance(column, Ragged):
                shared[key] = column
    return joined


def concat_columns(columns: Sequence[Column]) -> Column:
    """Join columns of one kind along events."""
    ragged = [column for column in columns if isinstance(column, Ragged)]
    if columns and len(ragged) == len(columns):
        return Ragged.from_counts(
            np.concatenate([column.values for column in ragged]),
            np.concatenate([column.counts for column in ragged]),
        )
    dense = [column for column in columns if not isinstance(column, Ragged)]
    if len(dense) != len(columns):
        raise ShapeError("cannot join ragged and dense columns of the same name")
    return np.concatenate(dense)


def n_bytes(arrays: Arrays) -> int:
    """Bytes of all columns."""
    return sum(column.nbytes for column in arrays.values())


def flatten(arrays: Arrays) -> dict[str, Array]:
    """Plain named arrays, as files hold them: a ragged `x` becomes `x` and `x#offsets`."""
    flat: dict[str, Array] = {}
    for name, column in arrays.items():
        if "#" in name:
            raise DataError(f"a column must not have '#' in its name, got {name!r}")
        if isinstance(column, Ragged):
            flat[name] = column.values
            flat[f"{name}#offsets"] = column.offsets
        else:
            flat[name] = column
    return flat


def unflatten(flat: Mapping[str, Array]) -> dict[str, Column]:
    """The inverse of `flatten`."""
    columns: dict[str, Column] = {}
    for name, values in flat.items():
        if name.endswith("#offsets"):
            continue
        offsets = flat.get(f"{name}#offsets")
        columns[name] = values if offsets is None else Ragged(values, offsets)
    return with_offsets_shared(columns)


def content_hash(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and bytes: equal content, equal hash, on any machine."""
    digest = hashlib.sha256()
    for name, values in sorted(flatten(arrays).items()):
        little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
        digest.update(f"{name}|{little.dtype.str}|{little.shape}|".encode())
        digest.update(little.reshape(-1).view(np.uint8).data if little.nbytes else b"")
    return digest.hexdigest()


def first_bad(arrays: Arrays) -> str | None:
    """Name the first column with a NaN or infinity and say where, or None if all are finite."""
    for name, column in arrays.items():
        values = column.values if isinstance(column, Ragged) else column
        if not np.issubdtype(values.dtype, np.floating):
            continue
        # One pass without a mask: the sum is finite unless something in it is not (or overflows).
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum(dtype=np.float64)):
                continue
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            where = tuple(int(i) for i in bad[0])
            return f"column {name!r} holds {values[where]} at {where} ({len(bad)} in all)"
    return None


def names_of(items: Iterable[str]) -> str:
    """A readable list of names for error texts."""
    return ", ".join(sorted(items)) or "none"
