"""Checkpoints: a loop's state as JSON and arrays, of which only what is new is written.

Arrays are kept in files, named by the hash of their content, that all checkpoints share. An array
of 64 KiB or more has a file of its own; smaller ones lie together in one. A *segment* is a group of
arrays that never changes, given under a name that no other content has: all of it lies in one
file, which later checkpoints find by its name. So a store of labelled events kept as one segment
per fill costs one write per fill, not one per checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.errors import DamagedError, RegistryError
from stillfit.core.values import JSON
from stillfit.registry.canon import canonical, check_name, plain, readable, sha256
from stillfit.registry.durable import Parts, inside, make_dir, write_file, write_files
from stillfit.registry.journal import Head
from stillfit.registry.tensors import code_of, decode, encode

FORMAT = 2  # 1 had no segments
KEPT = 2
_SHARED = 64 * 1024  # bytes from which an array or a segment has a file of its own
_DIGITS = 12
_VALUES = "values"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loop's state at a position of its stream.

    `warning`: None, or why an older checkpoint had to be taken.
    """

    position: int
    state: Mapping[str, JSON]
    arrays: Mapping[str, Array]
    segments: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    warning: str | None = None


class _Files:
    """Files to be written, by the hash of their content."""

    def __init__(self) -> None:
        self.parts: dict[str, Parts] = {}

    def add(self, arrays: Mapping[str, Array]) -> str:
        parts: Parts = encode(arrays, "checkpoint array")
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        self.parts[digest.hexdigest()] = parts
        return digest.hexdigest()


class Checkpoints:
    """The checkpoints of all runs of one registry, opened by the process that writes it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Files that this process wrote or read whole: not read again before they are reused.
        self._known: set[str] = set()
        # Where the segments of each run's last checkpoint lie: not hashed again to be found.
        self._places: dict[str, Mapping[str, Mapping[str, str]]] = {}

    def save(
        self,
        run: str,
        position: int,
        state: Mapping[str, Any],
        arrays: Mapping[str, Array],
        head: Head,
        segments: Mapping[str, Mapping[str, Array] | None] | None = None,
    ) -> None:
        """Store a state durably, then drop all but the last two of the run and unused files.

        `segments`: named groups of arrays; a name stands for the same arrays for ever. None stands
        for those of a name that is `stored`.

        Cost: arrays and new segments are hashed (about 1 GB/s); what is new is written and flushed,
        one flush for the checkpoint. A failure leaves the earlier checkpoints as they were.
        """
        check_name(run, "a run")
        if position < 0:
            raise RegistryError(f"a checkpoint has the position {position}; count from 0")
        files = _Files()
        places: dict[str, JSON] = {}
        small: dict[str, Array] = {}
        for name, array in sorted(arrays.items()):
            code_of(array, f"checkpoint array {name!r}")
            if array.nbytes < _SHARED:
                small[name] = array
            else:
                places[name] = {"segment": files.add({_VALUES: array}), "tensor": _VALUES}
        if small:
            file = files.add(small)
            places.update({name: {"segment": file, "tensor": name} for name in small})
        found = self._place(run, segments or {}, files)
        self._write(files)
        body: dict[str, JSON] = {
            "arrays": places,
            "format": FORMAT,
            "journal": {"count": head.count, "hash": head.hash},
            "position": position,
            "run": run,
            "segments": {name: dict(place) for name, place in found.items()},
            "state": plain(state, "checkpoint"),
        }
        directory = inside(self._root, "checkpoints", run)
        make_dir(directory)
        data = readable(body | {"sha256": sha256(canonical(body))})
        write_file(inside(directory, f"{position:0{_DIGITS}d}.json"), [data])
        self._places[run] = found
        self.clear(run, position)

    def load(self, run: str) -> Checkpoint | None:
        """The last whole checkpoint of a run, or None if it never made one.

        Falls back to the one before if the last is damaged, and says so in `warning`;
        `DamagedError` if none is whole.
        """
        check_name(run, "a run")
        faults: list[str] = []
        for path in reversed(_files(inside(self._root, "checkpoints", run))):
            try:
                body = read_checkpoint(path)
                arrays = self._arrays(body["arrays"])
                places = body.get("segments", {})
                segments = self._segments(places)
            except DamagedError as error:
                faults.append(str(error))
                continue
            warning = None
            if faults:
                warning = (
                    f"the last checkpoint of {run!r} is damaged ({faults[0]}); going on from "
                    f"position {body['position']}, what came after is done again"
                )
            self._places[run] = places
            return Checkpoint(
                position=body["position"],
                state=body["state"],
                arrays=arrays,
                segments=segments,
                warning=warning,
            )
        if faults:
            raise DamagedError(
                f"no checkpoint of {run!r} is whole ({faults[0]}); delete "
                f"{self._root / 'checkpoints' / run} to replay the run from its start: "
                "versions and journal are kept"
            )
        return None

    def stored(self, run: str) -> set[str]:
        """Names of the segments of a run's last checkpoint, saved or loaded, that are there."""
        places = self._places.get(run, {})
        there = {file: self._is_there(file) for file in {p["segment"] for p in places.values()}}
        return {name for name, place in places.items() if there[place["segment"]]}

    def _place(
        self, run: str, segments: Mapping[str, Mapping[str, Array] | None], files: _Files
    ) -> dict[str, Mapping[str, str]]:
        """A place for every segment; one of the last checkpoint that is still there keeps its own.

        `under`: what stands before the names of its arrays in the file.
        """
        before, stored = self._places.get(run, {}), self.stored(run)
        places: dict[str, Mapping[str, str]] = {}
        small: dict[str, Array] = {}
        for name, arrays in segments.items():
            check_name(name, "a segment")
            if name in stored:
                places[name] = before[name]
            elif arrays is None:
                raise RegistryError(
                    f"segment {name!r} is not in the last checkpoint of {run!r}, so it cannot be "
                    "kept: give its arrays"
                )
            elif sum(array.nbytes for array in arrays.values()) < _SHARED:
                small.update({f"{name}/{key}": array for key, array in arrays.items()})
            else:
                places[name] = {"segment": files.add(arrays), "under": ""}
        if len(places) < len(segments):
            file = files.add(small)
            for name in segments.keys() - places.keys():
                places[name] = {"segment": file, "under": f"{name}/"}
        return places

    def _write(self, files: _Files) -> None:
        """Write the files that are not there, whole."""
        new = {
            _segment(self._root, file).name: parts
            for file, parts in files.parts.items()
            if not self._is_there(file)
        }
        if new:
            directory = inside(self._root, "segments")
            make_dir(directory)
            write_files(directory, new)
        self._known |= set(files.parts)

    def _is_there(self, file: str) -> bool:
        """Whether a file is there and whole: read, unless this process has done so before."""
        if not _segment(self._root, file).exists():
            return False
        if file not in self._known:
            try:
                self._read(file)
            except DamagedError:
                return False
        return True

    def _arrays(self, places: Mapping[str, Mapping[str, str]]) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        opened: dict[str, dict[str, Array]] = {}
        for name, place in places.items():
            segment = place["segment"]
            if segment not in opened:
                opened[segment] = self._read(segment)
            # Two names with equal content share a segment; a loop may write to its arrays.
            taken = opened[segment].pop(place["tensor"], None)
            if taken is None:
                taken = np.copy(next(arrays[n] for n, p in places.items() if p == place))
            arrays[name] = taken
        return arrays

    def _segments(self, places: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Array]]:
        segments: dict[str, dict[str, Array]] = {}
        for file in {place["segment"] for place in places.values()}:
            whole = self._read(file)
            parts: dict[str, dict[str, Array]] = {"": whole}
            for key, array in whole.items():
                under, slash, rest = key.partition("/")
                parts.setdefault(under + slash, {})[rest] = array
            for name, place in places.items():
                if place["segment"] == file:
                    segments[name] = dict(parts.get(place["under"], {}))
        return segments

    def _read(self, file: str) -> dict[str, Array]:
        self._known.discard(file)
        arrays = _read_segment(self._root, file)
        self._known.add(file)
        return arrays

    def clear(self, run: str, position: int) -> None:
        """Keep this checkpoint and the one before; drop segments that no checkpoint names.

        A later one can only be damaged, since the run has just come from an earlier one.
        """
        files = _files(inside(self._root, "checkpoints", run))
        kept = [path for path in files if int(path.stem) <= position][-KEPT:]
        for path in files:
            if path not in kept:
                path.unlink()
        used: set[str] = set()
        for path in checkpoint_files(self._root):
            try:
                used |= segments_of(read_checkpoint(path))
            except DamagedError:
                return  # what it refers to is unknown, so nothing may go
        for path in segment_files(self._root):
            if path.stem not in used:
                path.unlink()
                self._known.discard(path.stem)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The table of a checkpoint file, its own hash checked."""
    try:
        data = inside(path.parent, path.name).read_bytes()
        body = json.loads(data)
        claimed = body.pop("sha256")
        whole = claimed == sha256(canonical(body))
        if not whole or readable(body | {"sha256": claimed}) != data:
            raise DamagedError(f"{path} was altered: its content does not have the hash in it")
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{path} was altered: it is not a checkpoint") from None
    if body["format"] > FORMAT:
        raise RegistryError(
            f"{path} has format {body['format']}, this release reads up to {FORMAT}: "
            "update stillfit"
        )
    assert isinstance(body, dict)
    return body


def segments_of(body: Mapping[str, Any]) -> set[str]:
    """Names of the files that a checkpoint needs."""
    places = [*body["arrays"].values(), *body.get("segments", {}).values()]
    return {place["segment"] for place in places}


def checkpoint_files(root: Path) -> Iterator[Path]:
    """The files of all checkpoints of all runs."""
    directory = inside(root, "checkpoints")
    if directory.is_dir():
        for run in sorted(directory.iterdir()):
            yield from _files(inside(directory, run.name))


def segment_files(root: Path) -> list[Path]:
    """The files of all segments."""
    return sorted(inside(root, "segments").glob("[0-9a-f]*.safetensors"))


def segment_fault(root: Path, segment: str) -> str | None:
    """What is wrong with a stored segment, or None."""
    try:
        _read_segment(root, segment)
    except DamagedError as error:
        return str(error)
    return None


def _read_segment(root: Path, segment: str) -> dict[str, Array]:
    path = _segment(root, segment)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    if sha256(data) != segment:
        raise DamagedError(f"{path} was altered: its content does not have the hash in its name")
    return decode(data, path)


def _segment(root: Path, segment: str) -> Path:
    return inside(root, "segments", f"{segment}.safetensors")


def _files(directory: Path) -> list[Path]:
    """The checkpoint files of a run, oldest first."""
    return sorted(directory.glob("[0-9]" * _DIGITS + ".json"))
