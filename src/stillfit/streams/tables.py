"""Any drifting table as a stream: CSV or Parquet, columns by name, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays, Column, concat, names_of, take
from stillfit.core.errors import ConfigError
from stillfit.core.events import Block, Event, Labels, Notice
from stillfit.streams import columns
from stillfit.streams.contract import skipped


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV or Parquet file (or several: a pattern such as `logs/2024-*.csv`, by name) as a stream.

    Each `block` rows become a `Block` of the columns `inputs`, followed at once by `Labels` of
    `targets`; a row without target gets no label. `Labelling` makes labels late.

    `time`: column with numbers, which count from the user's zero in steps of `time_unit` seconds,
    or with dates or ISO 8601 timestamps (UTC unless they say otherwise), which count from
    `epoch`; without it rows are `interval` seconds apart. `id`:
    column with whole numbers that rise; without it the row number. `condition`: column that
    names the interval of validity; a block ends where it changes. `state`: column with the
    machine's state; a `Notice` comes at the first row and where it changes, an empty cell is
    no change. A block also ends where ids or times go back or a time is missing, so that a
    `Guarded` stream can set aside what is out of order.

    Numbers become `dtype` (whole numbers beyond 2^24 lose digits in float32), an empty cell NaN.
    Text needs a `vocabulary`: its values in order become the codes 0, 1, ... (int64); a last
    entry `*` takes all other values. With a vocabulary, numbers are read as text too: so
    `vocabulary.class = ["0", "1"]` makes whole classes of a 0/1 column. Parquet lists become
    ragged columns, or matrices where all have the same fixed length.

    Memory: two batches of 65536 rows and a block. Cost: reading; skipping reads what is skipped.
    Errors: `ConfigError` for columns that are not there, `DataError` for what cannot be read.
    """

    path: Path
    inputs: tuple[str, ...]
    targets: tuple[str, ...] = ()
    time: str | None = None
    id: str | None = None
    condition: str | None = None
    state: str | None = None
    block: int = 1000
    interval: float = 1.0
    time_unit: float = 1.0
    epoch: str = "1970-01-01T00:00:00+00:00"
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dtype: Literal["float32", "float64"] = "float32"
    delimiter: str = ","

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ConfigError("a table needs at least one column in `inputs`")
        if self.block < 1 or not (self.interval > 0 and self.time_unit > 0):
            raise ConfigError(
                f"block = {self.block} must be at least 1 row, interval = {self.interval} and "
                f"time_unit = {self.time_unit} above 0 s"
            )
        columns.check_distinct("inputs", self.inputs)
        columns.check_distinct("targets", self.targets)
        unused = set(self.vocabulary) - {*self.inputs, *self.targets}
        if unused:
            raise ConfigError(
                f"vocabulary has {names_of(unused)}, which is neither an input nor a target"
            )
        for name, words in self.vocabulary.items():
            columns.check_vocabulary(name, words)
        columns.nanoseconds_of(self.epoch)

    def events(self, start: int = 0) -> Iterator[Event]:
        return skipped(self._events(), start)

    def _events(self) -> Iterator[Event]:
        state = ""
        for rows in self._blocks():
            for piece in rows.pieces():
                if piece.states is not None and piece.states[0] not in ("", state):
                    state = str(piece.states[0])
                    yield Notice(state, float(piece.times[0]))
                yield piece.block()
                labels = piece.labels()
                if labels is not None:
                    yield labels

    def _blocks(self) -> Iterator[_Rows]:
        """Rows by the block, however the files are cut into batches."""
        held: list[_Rows] = []
        for batch in self._batches():
            held.append(batch)
            if sum(len(rows.ids) for rows in held) < self.block:
                continue
            rows = _Rows.join(held)
            full = len(rows.ids) // self.block * self.block
            for first in range(0, full, self.block):
                yield rows.cut(slice(first, first + self.block))
            held = [rows.cut(slice(full, len(rows.ids)))]
        if held:
            rows = _Rows.join(held)
            if len(rows.ids):
                yield rows

    def _batches(self) -> Iterator[_Rows]:
        extra = [self.time, self.id, self.condition, self.state]
        wanted = [*self.inputs, *self.targets, *(name for name in extra if name is not None)]
        text = {*self.vocabulary, *(name for name in (self.condition, self.state) if name)}
        row = 0
        for file in columns.files_of(self.path, "a CSV or Parquet file"):
            for batch in columns.batches(
                file, list(dict.fromkeys(wanted)), text, self.id, self.time, self.delimiter
            ):
                if batch.num_rows:
                    yield self._rows(file, batch, row)
                    row += int(batch.num_rows)

    def _rows(self, file: Path, batch: Any, first: int) -> _Rows:
        number = np.arange(first, first + batch.num_rows)
        targets = {name: self._column(file, batch, name, first, True) for name in self.targets}
        labelled = np.full(len(number), bool(targets))
        for target in targets.values():
            labelled &= columns.is_known(target)
        return _Rows(
            ids=number
            if self.id is None
            else columns.whole_numbers(file, self.id, batch.column(self.id), first),
            times=number * self.interval
            if self.time is None
            else columns.seconds(
                file,
                self.time,
                batch.column(self.time),
                self.time_unit,
                columns.nanoseconds_of(self.epoch),
            ),
            inputs={name: self._column(file, batch, name, first, False) for name in self.inputs},
            targets=targets,
            labelled=labelled,
            conditions=None
            if self.condition is None
            else columns.texts(file, self.condition, batch.column(self.condition)),
            states=None
            if self.state is None
            else columns.texts(file, self.state, batch.column(self.state)),
        )

    def _column(self, file: Path, batch: Any, name: str, first: int, blank: bool) -> Column:
        array = batch.column(name)
        words = self.vocabulary.get(name)
        if words is None:
            return columns.numbers(file, name, array, self.dtype)
        return columns.codes(file, name, array, words, first, blank)


class _Rows(NamedTuple):
    """Some rows of the table, converted."""

    ids: NDArray[np.int64]
    times: NDArray[np.float64]
    inputs: Arrays
    targets: Arrays
    labelled: NDArray[np.bool_]
    conditions: NDArray[np.str_] | None
    states: NDArray[np.str_] | None

    @staticmethod
    def join(parts: list[_Rows]) -> _Rows:
        if len(parts) == 1:
            return parts[0]
        return _Rows(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.times for part in parts]),
            concat([part.inputs for part in parts]),
            concat([part.targets for part in parts]),
            np.concatenate([part.labelled for part in parts]),
            _joined([part.conditions for part in parts]),
            _joined([part.states for part in parts]),
        )

    def cut(self, rows: slice) -> _Rows:
        return _Rows(
            self.ids[rows],
            self.times[rows],
            take(self.inputs, rows),
            take(self.targets, rows),
            self.labelled[rows],
            None if self.conditions is None else self.conditions[rows],
            None if self.states is None else self.states[rows],
        )

    def pieces(self) -> Iterator[_Rows]:
        """Stretches of one condition and state in which ids and times rise."""
        missing = np.isnan(self.times)
        ends = (self.ids[1:] <= self.ids[:-1]) | (self.times[1:] < self.times[:-1])
        ends |= missing[1:] != missing[:-1]
        for names in (self.conditions, self.states):
            if names is not None:
                ends |= names[1:] != names[:-1]
        if not ends.any():
            yield self
            return
        edges = [0, *(np.flatnonzero(ends) + 1).tolist(), len(self.ids)]
        for first, last in pairwise(edges):
            yield self.cut(slice(first, last))

    def block(self) -> Block:
        known: dict[str, float | str] = {}
        if self.conditions is not None and self.conditions[0]:
            known["condition"] = str(self.conditions[0])
        return Block(self.ids, self.inputs, float(self.times[-1]), known)

    def labels(self) -> Labels | None:
        """The targets that are known, None if there are none."""
        if not self.labelled.any():
            return None
        labels = Labels(self.ids, self.targets, float(self.times[-1]))
        return labels if self.labelled.all() else labels.take(np.flatnonzero(self.labelled))


def _joined(parts: list[NDArray[np.str_] | None]) -> NDArray[np.str_] | None:
    texts = [part for part in parts if part is not None]
    return np.concatenate(texts) if texts else None
