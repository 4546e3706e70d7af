"""The replay buffer: labelled events in columns, who stays by a rule, as a learner's state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, Column, Ragged, names_of, with_offsets_shared
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.updaters.replay.keep import NOTHING, Held, Keep, Rows, Weights
from stillfit.updaters.replay.pages import Bits, Pages, require_columns

C = TypeVar("C", bound=Column)
EXTRA = "extra/"  # columns that a strategy keeps beside the events, by `note`
LOSS = "loss"


class Buffer:
    """Labelled events that a learner may keep, in columns; a working copy of its state.

    `open` a learner's state (which costs nothing and is never changed), `add` what arrives, and
    hand the state out with `to_arrays`: only pages of 1024 rows that something was written to
    are copied, once, so a stream of batches of one costs no copies while one buffer stays open.
    Memory: the bytes of the columns, 8 + 8 bytes for id and time of an event, 1 (over 255
    conditions 2) for its condition, 2 or 4 for its place in the order, and the pages' scales
    where inputs are quantised; an event of 64 float64 and one target takes 541 bytes.

    An event with a NaN or an infinity in inputs or targets is not kept, nor counted as seen.
    `bits`: 8 or 16 stores floating inputs as whole steps of each column's range within a page:
    off by half a step, and by less than one where the range had to grow. An outlier costs the
    resolution of its page.
    """

    def __init__(self, keep: Keep, bits: Bits = 0) -> None:
        if bits not in (0, 8, 16):
            raise ConfigError(
                f"bits must be 0 (as they are), 8 or 16, got {bits}; they are of stored inputs"
            )
        self.keep = keep
        self._pages = Pages(keep.capacity, bits)
        self._held = NOTHING
        self._order = self._held.order
        self._free = self._held.order
        self._names: list[str] = []

    @classmethod
    def open(cls, learner: Mapping[str, Array], keep: Keep, bits: Bits = 0) -> Buffer:
        """The buffer of a learner's state, empty where it has none."""
        made = cls(keep, bits)
        seen = _under(learner, "seen/")
        if not seen:
            return made
        flat = _under(learner, "buffer/")
        counts = {name: int(n) for name, n in sorted(seen.items())}
        if "order" not in flat:
            made._fill(Examples.from_arrays(flat), counts)
            return made
        order = flat.pop("order").astype(np.int64)
        lengths = flat.pop("lengths")
        made._names = json.loads(flat.pop("names").tobytes())
        made._pages = Pages.from_arrays(flat, keep.capacity, bits)
        cuts = np.split(order, np.cumsum(lengths)[:-1])
        made._set(Held(dict(zip(counts, cuts, strict=True)), counts))
        free = np.ones(made._pages.n, np.bool_)
        free[order] = False
        made._free = np.flatnonzero(free)
        return made

    def to_arrays(self) -> dict[str, Array]:
        """The learner's state that `open` reads; the buffer may go on."""
        groups = sorted(self._held.seen)
        none: Rows = np.zeros(0, np.int64)
        lengths = [len(self._held.rows.get(name, none)) for name in groups]
        text = json.dumps(self._names).encode()
        small = np.min_scalar_type(max(self._pages.n, 1))
        flat: dict[str, Array] = {
            "buffer/order": self._order.astype(small),
            "buffer/lengths": np.array(lengths, np.int64),
            "buffer/names": np.frombuffer(text, np.uint8).copy(),
        }
        flat |= {f"buffer/{name}": part for name, part in self._pages.to_arrays().items()}
        return flat | {f"seen/{name}": np.array(self._held.seen[name]) for name in groups}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def seen(self) -> dict[str, int]:
        """Events that each group has seen, kept or not."""
        return dict(self._held.seen)

    @property
    def groups(self) -> dict[str, int]:
        """Events held of each group."""
        return {name: len(rows) for name, rows in self._held.rows.items()}

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the events held, in order."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.asarray(self._pages.take(self._order, ["ids"])["ids"])

    @property
    def nbytes(self) -> int:
        """Bytes held now, room to spare of open pages included."""
        return self._pages.nbytes + self._order.nbytes + self._free.nbytes

    # -- events -----------------------------------------------------------------------------------

    def add(self, examples: Examples, rng: np.random.Generator) -> None:
        """Let events arrive, condition by condition (or class by class) in order of name."""
        if not len(examples):
            return  # no events have no targets either, by which they could be grouped
        examples = _finite(examples)
        for group, part in self._parts(examples):
            self._admit(group, part, rng)

    def examples(self, places: NDArray[np.int64] | None = None) -> Examples:
        """The events at `places` (0 to len - 1) of the order, or all of them."""
        rows = self._order if places is None else self._order[places]
        if not len(rows):
            return Examples.empty()
        names = [name for name in self._pages.columns if not name.startswith(EXTRA)]
        found = self._pages.take(rows, names)
        inputs = with_offsets_shared(_under(found, "inputs/"))
        return Examples(
            np.asarray(found["ids"]),
            inputs,
            _sharing(inputs, _under(found, "targets/")),
            np.asarray(found["times"]),
            np.array(self._names, np.str_)[np.asarray(found["conditions"])],
        )

    def draw(self, n: int, rng: np.random.Generator) -> Examples:
        """`n` different events drawn uniformly, all (in random order) where there are fewer."""
        return self.examples(rng.choice(len(self), min(n, len(self)), replace=False))

    # -- what a strategy keeps beside each event --------------------------------------------------

    def note(self, columns: Arrays, places: NDArray[np.int64] | None = None) -> None:
        """Set columns of one's own for the events at `places` of the order, or for all.

        For other events they are NaN (0 for whole numbers, no items for ragged ones), as they
        are for every event that arrives later.
        """
        if not len(self):
            return
        rows = self._order if places is None else self._order[places]
        named = {f"{EXTRA}{name}": column for name, column in columns.items()}
        for name, column in named.items():
            if name not in self._pages.columns:
                self._pages.put(self._order, {name: _blank(column, len(self))})
        self._pages.put(rows, named)

    def noted(self, name: str, places: NDArray[np.int64] | None = None) -> Column | None:
        """A column that `note` set, in order of the events; None where there is none."""
        name = f"{EXTRA}{name}"
        rows = self._order if places is None else self._order[places]
        if name not in self._pages.columns:
            return None
        return self._pages.take(rows, [name])[name]

    # -- inside -----------------------------------------------------------------------------------

    def _parts(self, examples: Examples) -> Iterator[tuple[str, Examples]]:
        by = self.keep.by
        keys: NDArray[Any] = examples.conditions
        if by not in ("", "condition"):
            keys = classes_of(examples, by)
        for key in np.unique(keys):
            part = examples.take(np.flatnonzero(keys == key))
            yield "all" if by == "" else str(key), part

    def _admit(self, group: str, part: Examples, rng: np.random.Generator) -> None:
        before = self._held
        arriving = -1 - np.arange(len(part))
        after = self.keep.admit(before, group, arriving, rng, self._hardness())
        mine = after.rows[group]
        entering = np.flatnonzero(mine < 0)
        if not len(entering) and len(after) == len(before):
            self._held = after
            return
        stays = np.zeros(self._pages.n, np.bool_)
        for rows in after.rows.values():
            stays[rows[rows >= 0]] = True
        gone = self._order[~stays[self._order]]
        self._free = np.sort(np.concatenate([self._free, gone]))
        taken, self._free = np.split(self._free, [min(len(entering), len(self._free))])
        new = self._pages.n + np.arange(len(entering) - len(taken))
        where = np.concatenate([taken, new])
        columns = self._columns(part.take(-1 - mine[entering]))
        self._pages.put(where, columns)
        left = gone[~np.isin(gone, taken)]
        if len(left):
            self._pages.forget(left)
        mine = mine.copy()
        mine[entering] = where
        self._set(Held({**after.rows, group: mine}, after.seen))

    def _columns(self, part: Examples) -> dict[str, Column]:
        for name in [*part.inputs, *part.targets]:
            if "#" in name:
                raise DataError(f"a column must not have '#' in its name, got {name!r}")
        names, codes = np.unique(part.conditions, return_inverse=True)
        for name in names.tolist():
            if name not in self._names:
                self._names.append(name)
        known = np.array([self._names.index(name) for name in names.tolist()], np.int64)
        small = np.min_scalar_type(max(len(self._names) - 1, 0))
        columns: dict[str, Column] = {
            "ids": part.ids,
            "times": part.times,
            "conditions": known[codes].astype(small),
        }
        columns |= {f"inputs/{name}": column for name, column in part.inputs.items()}
        columns |= {f"targets/{name}": column for name, column in part.targets.items()}
        if self._pages.n:
            own = [name for name in self._pages.columns if not name.startswith(EXTRA)]
            require_columns(own, columns)
            for name in self._pages.columns:
                if name.startswith(EXTRA):
                    like = self._pages.take(self._order[:1], [name])[name]
                    columns[name] = _blank(like, len(part))
        return columns

    def _hardness(self) -> _Ranks | None:
        loss = self.noted(LOSS)
        if loss is None or isinstance(loss, Ragged) or not len(loss):
            return None
        return _Ranks(self._order, loss, self._pages.n)

    def _set(self, held: Held) -> None:
        self._held, self._order = held, held.order

    def _fill(self, examples: Examples, seen: dict[str, int]) -> None:
        """Take over a state in the layout of the first release."""
        if not len(examples):
            self._held = Held({}, seen)
            return
        self._pages.put(np.arange(len(examples)), self._columns(examples))
        everything = np.arange(len(examples))
        if set(seen) == {"all"}:
            self._set(Held({"all": everything}, seen))
            return
        rows = {name: everything[examples.conditions == name] for name in seen}
        self._set(Held(rows, seen))


class _Ranks:
    """From 0 for the row of the smallest loss to 1 for that of the largest; 1/2: not known."""

    def __init__(self, rows: Rows, loss: Array, n: int) -> None:
        known = ~np.isnan(loss)
        ranks = np.full(len(rows), 0.5)
        # Equal losses have equal ranks: the middle of the places that they take.
        values, inverse, counts = np.unique(loss[known], return_inverse=True, return_counts=True)
        if len(values) > 1:
            ends = np.cumsum(counts)
            ranks[known] = ((ends - (counts + 1) / 2) / max(ends[-1] - 1, 1))[inverse]
        self._of = np.full(n, 0.5)
        self._of[rows] = ranks

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        return self._of[rows]


def classes_of(examples: Examples, target: str) -> NDArray[np.int64]:
    """The named target as whole numbers, shape (n,)."""
    values = examples.targets.get(target)
    if values is None:
        raise DataError(
            f"a buffer is to be balanced by {target!r} and the labels hold "
            f"{names_of(examples.targets)}; name a target, or 'condition'"
        )
    whole = not isinstance(values, Ragged) and values.ndim == 1
    if isinstance(values, Ragged) or not whole or values.dtype.kind not in "biuf":
        raise DataError(f"groups need one class per event; the target {target!r} is something else")
    if values.dtype.kind == "f" and len(values) and (values != np.rint(values)).any():
        odd = float(values[values != np.rint(values)][0])
        raise DataError(
            f"groups need classes and the target {target!r} holds {odd:g}; "
            "for numbers balance by 'condition'"
        )
    return values.astype(np.int64)


def pack(buffer: Examples, seen: dict[str, int]) -> dict[str, Array]:
    """Events and counts in the layout of the first release, which `Buffer.open` reads too."""
    flat = {f"buffer/{name}": part for name, part in buffer.to_arrays().items()}
    return {**flat, **{f"seen/{name}": np.array(count) for name, count in sorted(seen.items())}}


def unpack(learner: Mapping[str, Array]) -> tuple[Examples, dict[str, int]]:
    """The events that a learner's state holds, and how many each group has seen."""
    flat = _under(learner, "buffer/")
    if flat and "order" not in flat:
        seen = {name: int(n) for name, n in _under(learner, "seen/").items()}
        return Examples.from_arrays(flat), seen
    buffer = Buffer.open(learner, _AsItIs(capacity=0))
    return buffer.examples(), buffer.seen


class _AsItIs(Keep):
    """For reading only."""

    def admit(
        self,
        held: Held,
        group: str,
        arriving: Rows,
        rng: np.random.Generator,
        hard: Weights | None = None,
    ) -> Held:
        raise ConfigError("this buffer is for reading; open it with a rule to add to it")


def _under(flat: Mapping[str, C], prefix: str) -> dict[str, C]:
    return {name[len(prefix) :]: part for name, part in flat.items() if name.startswith(prefix)}


def _blank(like: Column, n: int) -> Column:
    if isinstance(like, Ragged):
        return Ragged(like.values[:0], np.zeros(n + 1, np.int64))
    blank = np.zeros((n, *like.shape[1:]), like.dtype)
    if like.dtype.kind == "f":
        blank[...] = np.nan
    return blank


def _sharing(inputs: Arrays, targets: Arrays) -> dict[str, Column]:
    both = with_offsets_shared({**{f"i{k}": v for k, v in inputs.items()}, **targets})
    return {name: both[name] for name in targets}


def _finite(examples: Examples) -> Examples:
    """Without the events that hold a NaN or an infinity."""
    bad = np.zeros(len(examples), np.bool_)
    for column in [*examples.inputs.values(), *examples.targets.values()]:
        values = column.values if isinstance(column, Ragged) else column
        if values.dtype.kind != "f":
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum(dtype=np.float64)):  # one pass without a mask
                continue
        rows = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        bad |= np.bincount(column.events, rows, len(column)) > 0 if isinstance(
            column, Ragged) else rows  # fmt: skip
    return examples.take(np.flatnonzero(~bad)) if bad.any() else examples
