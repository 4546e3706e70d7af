"""Labelled events, the simulation's for example, as an L1TrackNtuple ROOT file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Ragged, names_of
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Event, Examples, Notice
from stillfit.l1t.ntuple import (
    CHI2,
    COLUMNS,
    FAKE,
    FLOATS,
    OWN_CONDITION,
    OWN_ID,
    OWN_NAMES,
    OWN_TIME,
    PILE_UP,
    PV,
    TREE,
    WHOLE,
    import_uproot,
)
from stillfit.streams.contract import Stream
from stillfit.streams.joining import Joiner

_WAITING_BYTES = 2**30


@dataclass(frozen=True)
class Written:
    """What went into a ROOT file: `events`, and events left out for they have no label."""

    events: int
    unlabelled: int


def write_ntuple(path: Path, events: Stream | Iterator[Event]) -> Written:
    """Write the labelled events of a stream, the simulation's for example, as an L1TrackNtuple.

    Labels may be late: events wait for theirs in at most 1 GiB. An event whose label never comes
    is left out, as an ntuple has one row for an event with its truth.
    """
    joiner = Joiner(_WAITING_BYTES)
    with NtupleWriter(path) as writer:
        for event in events.events() if isinstance(events, Stream) else events:
            if isinstance(event, Block):
                joiner.add(event)
            elif not isinstance(event, Notice):
                writer.write(joiner.join(event))
        return Written(writer.events, len(joiner) + joiner.counts.expired)


class NtupleWriter:
    """Writes labelled events to a new L1TrackNtuple file; use it in a `with` block.

    Branches: those that `Ntuple` reads, chi2 both in sum and per degree of freedom (nstub - 2),
    and `stillfit_id`, `stillfit_time` and `stillfit_condition`, with the conditions' names in the
    object `stillfit_conditions`. `trk_fake` is 1 for `is_pv`, 0 where the targets have a ragged
    `is_fake` that says so, else 2. The file appears under its name when it is complete.

    Errors: `ConfigError` if the file is there already or columns are missing.
    """

    def __init__(self, path: Path, tree: str = TREE) -> None:
        uproot = import_uproot()
        if path.exists():
            raise ConfigError(f"{path} is there already; choose another name or move it away")
        self.path = path
        self.events = 0
        self._tree_name = tree
        self._conditions: dict[str, int] = {}
        self._temporary = path.with_name(f".tmp-{path.name}")
        self._tree: Any = None
        with _writable(path):
            self._file: Any = uproot.recreate(self._temporary)

    def write(self, examples: Examples) -> None:
        """Append labelled events."""
        if not len(examples):
            return
        examples.require("z0", "is_pv")
        rows = self._rows(examples)
        with _writable(self.path):
            if self._tree is None:
                types = {name: _type_of(values) for name, values in rows.items()}
                self._tree = self._file.mktree(self._tree_name, types)
            self._tree.extend(rows)
        self.events += len(examples)

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._file.closed:
            return
        with _writable(self.path):
            self._file[OWN_NAMES] = json.dumps(list(self._conditions))
            self._file.close()
            handle = os.open(self._temporary, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            self._temporary.replace(self.path)

    def __enter__(self) -> NtupleWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with suppress(OSError, ValueError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _rows(self, examples: Examples) -> dict[str, Any]:
        import awkward as ak

        tracks, offsets = _ragged_columns(examples)
        counts = np.diff(offsets)
        floats = (*FLOATS, "d0")
        fields: dict[str, Array] = {n: tracks[n].astype(np.float32, copy=False) for n in floats}
        freedom = np.maximum(tracks["nstub"].astype(np.float32) - 2, 1)
        for name in CHI2:
            fields[f"{name}_dof"] = tracks[name].astype(np.float32, copy=False)
            fields[name] = fields[f"{name}_dof"] * freedom
        for name in WHOLE:
            fields[name] = tracks[name].astype(np.int32)
        fields["lhits"] = _digits(tracks["layers"], 0, 6)
        fields["dhits"] = _digits(tracks["layers"], 6, 5)
        fields["MVA1"] = tracks["mva"].astype(np.float32, copy=False)
        fields["quality"] = tracks["quality"].astype(np.int32)
        fake = np.where(tracks["is_pv"] > 0, PV, PILE_UP).astype(np.int32)
        if "is_fake" in tracks:
            fake[tracks["is_fake"] > 0] = FAKE
        fields["fake"] = fake
        for name in examples.conditions:
            self._conditions.setdefault(str(name), len(self._conditions))
        codes = [self._conditions[str(name)] for name in examples.conditions]
        vertex = np.asarray(examples.targets["z0"], np.float32)
        return {
            "trk": ak.unflatten(ak.zip(fields), counts),
            "pv_MC": ak.unflatten(vertex, np.ones(len(vertex), np.int64)),
            OWN_ID: examples.ids,
            OWN_TIME: examples.times,
            OWN_CONDITION: np.array(codes, np.int32),
        }


def _ragged_columns(examples: Examples) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """The track columns end to end with their common offsets."""
    columns = {
        **examples.inputs,
        **{n: examples.targets[n] for n in ("is_pv", "is_fake") if n in examples.targets},
    }
    missing = set(COLUMNS) - set(columns)
    if missing:
        raise ConfigError(
            f"an L1TrackNtuple needs the track columns {names_of(missing)}, which the stream does "
            f"not have; it has {names_of(examples.inputs)}"
        )
    flat: dict[str, Array] = {}
    offsets: NDArray[np.int64] | None = None
    for name, column in columns.items():
        if not isinstance(column, Ragged):
            raise ConfigError(f"column {name!r} must hold a number for each track, not each event")
        if offsets is not None and not np.array_equal(offsets, column.offsets):
            raise DataError(f"column {name!r} counts other tracks than the columns before it")
        offsets = column.offsets
        flat[name] = column.values
    assert offsets is not None
    return flat, offsets


def _type_of(values: Any) -> Any:
    return values.dtype if isinstance(values, np.ndarray) else values.type.content


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); see to the disk and write "
            "it again"
        ) from error


def _digits(layers: NDArray[np.uint16], low: int, many: int) -> NDArray[np.int32]:
    """The inverse of `_layers` for one of the two branches."""
    total = np.zeros(len(layers), np.int32)
    for place in range(many):
        total += ((layers >> np.uint16(low + place)) & np.uint16(1)).astype(np.int32) * 10**place
    return total
