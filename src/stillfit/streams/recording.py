"""Any stream on disk, and back as the identical events."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, Ragged, concat, flatten, n_bytes, unflatten
from stillfit.core.errors import ConfigError, DamagedError, LockedError, RegistryError
from stillfit.core.events import Block, Conditions, Event, Labels, Notice
from stillfit.streams.contract import Stream, checked_start
from stillfit.streams.packing import packed, unpacked

FORMAT = 1
INDEX = "index.json"
SEGMENT_BYTES = 16 * 2**20
# Blocks of one event each would fill memory with objects long before they fill a segment.
SEGMENT_EVENTS = 65536


@dataclass(frozen=True)
class Segment:
    """A file of the recording: `first` and `count` in events of the stream, `rows` in rows."""

    file: str
    first: int
    count: int
    rows: int
    nbytes: int
    sha256: str
    from_time: float
    until_time: float


@dataclass(frozen=True)
class Recording:
    """A recorded stream, read back lazily, one segment (about 16 MB) at a time.

    `events(k)` opens the segment that holds event k and none before it. Every segment is checked
    against its hash before anything of it is given out; `DamagedError` if it differs. What was
    recorded until a crash can be read: at most the events since the last flush are lost.
    Cost: reading and SHA-256, about 0.5 GB/s; blocks are views of their segment.
    """

    path: Path

    def events(self, start: int = 0) -> Iterator[Event]:
        segments = self.segments()
        return _read(self.path, segments, checked_start(start))

    def segments(self) -> tuple[Segment, ...]:
        """The recording's files in order."""
        return _index(self.path)

    def __len__(self) -> int:
        """Events of the stream."""
        segments = self.segments()
        return segments[-1].first + segments[-1].count if segments else 0

    def verify(self) -> None:
        """Read everything; `DamagedError` at the first file that differs from what was written."""
        for segment in self.segments():
            _load(self.path, segment)


@dataclass
class Recorder:
    """Appends events to a recording; use it in a `with` block, which flushes at the end.

    A segment is written when `segment_bytes` or 65536 events are waiting, under another name,
    flushed to the disk and renamed; then the index, in the same way. So at any time the recording
    on disk is whole. One recorder at a time: a second one gets a `LockedError`.
    """

    path: Path
    segment_bytes: int = SEGMENT_BYTES
    _waiting: list[Event] = field(default_factory=list, init=False, repr=False)
    _waiting_bytes: int = field(default=0, init=False, repr=False)
    _segments: list[Segment] = field(default_factory=list, init=False, repr=False)
    _lock: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        with _reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise LockedError(
                f"another process is recording to {self.path}; wait for it or choose another folder"
            ) from None
        self._lock = lock
        try:
            if (self.path / INDEX).exists():
                self._segments = list(_index(self.path))
            else:
                self._write_index()
        except BaseException:
            self._release()
            raise

    def __len__(self) -> int:
        """Events recorded, those that wait to be written included."""
        last = self._segments[-1] if self._segments else None
        return (last.first + last.count if last else 0) + len(self._waiting)

    def write(self, event: Event) -> None:
        """Append one event; it is on disk after the next `flush`."""
        if self._lock < 0:
            raise ConfigError(f"the recorder of {self.path} is closed; open a new one to append")
        self._waiting.append(event)
        if isinstance(event, Block):
            self._waiting_bytes += n_bytes(event.inputs) + event.ids.nbytes
        elif isinstance(event, Labels):
            self._waiting_bytes += n_bytes(event.targets) + event.ids.nbytes
        if self._waiting_bytes >= self.segment_bytes or len(self._waiting) >= SEGMENT_EVENTS:
            self.flush()

    def flush(self) -> None:
        """Write what waits, durably. A failure loses nothing that was flushed before."""
        if not self._waiting:
            return
        data = _segment_bytes(self._waiting)
        number = len(self._segments)
        times = [event.time for event in self._waiting]
        segment = Segment(
            file=f"{number:06d}.safetensors",
            first=len(self) - len(self._waiting),
            count=len(self._waiting),
            rows=sum(len(e) for e in self._waiting if not isinstance(e, Notice)),
            nbytes=len(data),
            sha256=hashlib.sha256(data.data).hexdigest(),
            from_time=min(times),
            until_time=max(times),
        )
        _write(self.path / segment.file, data.data)
        self._segments.append(segment)
        try:
            self._write_index()
        except BaseException:
            self._segments.pop()
            raise
        self._waiting = []
        self._waiting_bytes = 0

    def close(self) -> None:
        """Flush and give the recording free."""
        if self._lock < 0:
            return
        try:
            self.flush()
        finally:
            self._release()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _release(self) -> None:
        os.close(self._lock)
        self._lock = -1

    def _write_index(self) -> None:
        body = {"format": FORMAT, "segments": [asdict(segment) for segment in self._segments]}
        whole = {**body, "sha256": _hash_of(body)}
        _write(self.path / INDEX, json.dumps(whole, indent=1).encode())


@dataclass(frozen=True)
class Recorded:
    """A stream that is recorded as it passes by.

    After a crash the recording may end before the loop's last checkpoint: `events(start)` then
    fetches the missing events again, so that the recording has no gap.
    """

    stream: Stream
    path: Path
    segment_bytes: int = SEGMENT_BYTES

    def events(self, start: int = 0) -> Iterator[Event]:
        checked_start(start)
        with Recorder(self.path, self.segment_bytes) as recorder:
            done = len(recorder)
            begin = min(start, done)
            for number, event in enumerate(self.stream.events(begin), begin):
                if number >= done:
                    recorder.write(event)
                if number >= start:
                    yield event


def record(events: Stream | Iterable[Event], path: Path) -> int:
    """Append all events to the recording in folder `path`; how many there are in it then."""
    with Recorder(path) as recorder:
        for event in events.events() if isinstance(events, Stream) else events:
            recorder.write(event)
        return len(recorder)


def _segment_bytes(events: list[Event]) -> NDArray[np.uint8]:
    """Events as one file: a table of events, and the columns of like events end to end."""
    numbers: dict[str, int] = {}
    groups: list[list[Block | Labels]] = []
    facts: dict[str, int] = {}
    group_of, facts_of = [], []
    for event in events:
        if isinstance(event, Notice):
            group_of.append(-1)
            info: Any = [event.state, _plain(event.info)]
        else:
            number = numbers.setdefault(_kind_of(event), len(numbers))
            if number == len(groups):
                groups.append([])
            groups[number].append(event)
            group_of.append(number)
            info = _plain(event.conditions) if isinstance(event, Block) else {}
        facts_of.append(facts.setdefault(json.dumps(info), len(facts)))
    arrays: dict[str, Array] = {
        "events#group": np.array(group_of, np.int32),
        "events#facts": np.array(facts_of, np.int32),
        "events#time": np.array([event.time for event in events], np.float64),
        "events#rows": np.array(
            [0 if isinstance(event, Notice) else len(event) for event in events], np.int64
        ),
    }
    columns = []
    for number, members in enumerate(groups):
        first = members[0]
        parts = [_columns(member) for member in members]
        columns.append({"block": isinstance(first, Block), "columns": list(parts[0])})
        arrays[f"{number}#ids"] = np.concatenate([member.ids for member in members])
        for name, values in flatten(concat(parts)).items():
            arrays[f"{number}/{name}"] = values
    text = json.dumps({"facts": [json.loads(item) for item in facts], "groups": columns})
    arrays["events#text"] = np.frombuffer(text.encode(), np.uint8)
    return packed(arrays)


def _read(path: Path, segments: tuple[Segment, ...], start: int) -> Iterator[Event]:
    begin = bisect_right([segment.first for segment in segments], start) - 1
    for segment in segments[max(begin, 0) :]:
        skip = max(0, start - segment.first)
        if skip < segment.count:
            yield from _events(_load(path, segment), skip)


def _events(arrays: Mapping[str, Array], skip: int) -> Iterator[Event]:
    """The events of a segment after the first `skip`; columns are views."""
    text = json.loads(arrays["events#text"].tobytes())
    group_of, facts_of = arrays["events#group"].tolist(), arrays["events#facts"].tolist()
    times, rows = arrays["events#time"].tolist(), arrays["events#rows"].tolist()
    columns: list[Arrays] = []
    for number, group in enumerate(text["groups"]):
        flat = {
            name.partition("/")[2]: values
            for name, values in arrays.items()
            if name.startswith(f"{number}/")
        }
        whole = unflatten(flat)
        columns.append({name: whole[name] for name in group["columns"]})
    at = [0] * len(columns)
    for event, (group, fact, time, n) in enumerate(
        zip(group_of, facts_of, times, rows, strict=True)
    ):
        facts = text["facts"][fact]
        if group < 0:
            if event >= skip:
                yield Notice(facts[0], time, dict(facts[1]))
            continue
        cut = slice(at[group], at[group] + n)
        at[group] += n
        if event < skip:
            continue
        part = {name: column[cut] for name, column in columns[group].items()}
        ids = arrays[f"{group}#ids"][cut]
        if text["groups"][group]["block"]:
            yield Block(ids, part, time, dict(facts))
        else:
            yield Labels(ids, part, time)


def _columns(event: Block | Labels) -> Arrays:
    return event.inputs if isinstance(event, Block) else event.targets


def _kind_of(event: Block | Labels) -> str:
    """What must agree for events to share columns."""
    parts = [type(event).__name__]
    for name, column in _columns(event).items():
        ragged = isinstance(column, Ragged)
        values = column.values if isinstance(column, Ragged) else column
        parts.append(f"{name}|{ragged}|{values.dtype.str}|{values.shape[1:]}")
    return "\n".join(parts)


def _plain(conditions: Conditions) -> dict[str, float | str]:
    """Conditions as JSON holds them: NumPy's numbers become Python's."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in conditions.items()
    }


def _load(path: Path, segment: Segment) -> dict[str, Array]:
    file = path / segment.file
    try:
        data = np.fromfile(file, np.uint8)
    except FileNotFoundError:
        raise DamagedError(
            f"{file} of the recording is missing; was the whole folder copied?"
        ) from None
    if len(data) != segment.nbytes or hashlib.sha256(data.data).hexdigest() != segment.sha256:
        raise DamagedError(
            f"{file} differs from what was recorded (events {segment.first} to "
            f"{segment.first + segment.count - 1}); restore it from a copy, or start the stream "
            f"after event {segment.first + segment.count - 1}"
        )
    return unpacked(data, str(file))


def _index(path: Path) -> tuple[Segment, ...]:
    file = path / INDEX
    try:
        whole = json.loads(file.read_bytes())
        claimed = whole.pop("sha256")
        version = whole["format"]
    except FileNotFoundError:
        raise ConfigError(f"{path} is no recording: there is no {INDEX} in it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{file} was altered: it is not the index of a recording") from None
    if isinstance(version, int) and version > FORMAT:
        raise RegistryError(
            f"{path} was recorded in format {version}, this release reads up to {FORMAT}: "
            "update stillfit"
        )
    if claimed != _hash_of(whole):
        raise DamagedError(f"{file} was altered: its content does not have the hash in it")
    segments = tuple(Segment(**entry) for entry in whole["segments"])
    for segment in segments:
        # A name with a path in it would lead out of the folder.
        if Path(segment.file).name != segment.file:
            raise DamagedError(f"{file} names a file outside the recording: {segment.file!r}")
    return segments


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write(file: Path, data: bytes | memoryview) -> None:
    """Write, flush to the disk, rename: a reader finds the old file or the new one."""
    temporary = file.with_name(f".tmp-{file.name}")
    with _reported(file):
        try:
            with temporary.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(file)
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RegistryError(
            f"{'the disk is full: ' if full else ''}{file} could not be written "
            f"({error.strerror or error}); everything recorded before is kept: "
            f"{'free some space' if full else 'see to the disk'} and start again"
        ) from error
