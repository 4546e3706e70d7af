"""The journal: an append-only text file that is the truth, its head, and an index for queries.

An append goes to `journal.jsonl` (flushed), then to the index, then to `HEAD.json`, which holds
how much was acknowledged. So wherever a process dies, head <= index <= file, and what lies beyond
the head is whole entries that were written but not yet acknowledged, or a torn line.

The head is overwritten in place and flushed at checkpoints and at the end only: after a power cut
it may be an older one, which is just as true, and an append costs one flush instead of three.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stillfit.core.errors import DamagedError, RegistryError
from stillfit.registry.canon import canonical, sha256
from stillfit.registry.durable import inside, overwrite, reported, write_all, write_file
from stillfit.registry.entries import Draft, Entry, Scan, scan
from stillfit.registry.index import Index

# Less than a sector of any disk, so it is written whole or not at all.
_HEAD_BYTES = 256
LOG, HEAD, INDEX = "journal.jsonl", "HEAD.json", "journal.sqlite"


@dataclass(frozen=True)
class Head:
    """Acknowledged entries, the hash of the last of them, and where it ends in the file (bytes)."""

    count: int
    hash: str
    end: int

    def text(self) -> bytes:
        """One line of fixed length, so that it can be replaced in place by a single write."""
        return canonical(asdict(self)).ljust(_HEAD_BYTES - 1) + b"\n"


class Journal:
    """The journal of one registry, open for reading, or by one process for writing."""

    def __init__(self, root: Path, head: Head, index: Index, files: tuple[int, int] | None) -> None:
        self._root = root
        self._index = index
        self._files = files  # journal and head, open for writing
        self._head = head
        self._pending: list[bytes] = []
        self._depth = 0
        self._broken = False
        self._afterwards: list[Callable[[], None]] = []

    @staticmethod
    def create(root: Path, mark: bytes) -> None:
        """The files of an empty journal, to which `REGISTRY.json`, with the text `mark`, is added.

        It comes last: until it is there, there is no registry.
        """
        Index.remove(inside(root, INDEX))
        Index.writing(inside(root, INDEX)).close(tidy=True)
        write_file(inside(root, LOG), [])
        write_file(inside(root, HEAD), [Head(0, sha256(mark), 0).text()])

    @classmethod
    def read(cls, root: Path) -> Journal:
        """Open for queries. Uses the index if it holds all that was acknowledged, else the file."""
        # The head first: a writer may be at work, and then the rest can only be further on.
        head = read_head(root)
        path = inside(root, INDEX)
        index: Index | None = None
        if path.exists():
            with suppress(RegistryError):
                index = Index.reading(path)
                if _holds(index, head):
                    return cls(root, head, index, None)
        if index is not None:
            index.close()
        found = read_log(root)
        check_log(root, found, head)
        return cls(root, head, Index.in_memory(found.entries), None)

    @classmethod
    def write(cls, root: Path) -> Journal:
        """Open for appending; the caller holds the lock. Mends what a killed writer left."""
        head = read_head(root)
        found = read_log(root)
        check_log(root, found, head)
        newest = head_of(root, found)
        log, mark = _open_files(root)
        index: Index | None = None
        try:
            with reported(root / LOG):
                # Beyond the last whole entry lies at most a torn, unacknowledged line.
                os.ftruncate(log, newest.end)
                os.fsync(log)
            index = Index.writing(inside(root, INDEX))
            catch_up(root, index, found)
            with reported(root / HEAD):
                overwrite(mark, newest.text())
                os.fdatasync(mark)
        except BaseException:
            os.close(log)
            os.close(mark)
            if index is not None:
                index.close()
            raise
        return cls(root, newest, index, (log, mark))

    @property
    def head(self) -> Head:
        """Where the journal ends, entries of an open batch included."""
        return self._head

    @property
    def in_batch(self) -> bool:
        return self._depth > 0

    def append(self, draft: Draft) -> Entry:
        """Write one entry and return it once it is durable (or, inside a batch, at its end)."""
        with self.batch():
            entry = Entry.chain(draft, self._head.count, self._head.hash)
            line = entry.line()
            self._index.insert([entry])
            self._pending.append(line)
            self._head = Head(entry.seq + 1, entry.hash, self._head.end + len(line))
        return entry

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make the entries appended inside durable together: the flushes of one.

        An error inside leaves none of them, and the journal must be opened again.
        """
        if self._files is None:
            raise RegistryError(
                f"the registry {self._root} is not open for writing; open it with write=True"
            )
        if self._broken:
            raise RegistryError(
                f"an earlier write to {self._root} failed; close the registry and open it again"
            )
        try:
            if self._depth == 0:
                self._index.begin()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            if self._depth == 0:
                self._commit(*self._files)
        except BaseException:
            self._broken = True
            self._afterwards.clear()
            if self._depth == 0:
                self._index.undo()
            raise
        if self._depth == 0:
            self._do_afterwards()

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do something once all that was appended so far is durable: now, or after the batch."""
        self._afterwards.append(act)
        if self._depth == 0:
            self._do_afterwards()

    def _do_afterwards(self) -> None:
        while self._afterwards:
            self._afterwards.pop(0)()

    def _commit(self, log: int, head: int) -> None:
        if not self._pending:
            self._index.commit()
            return
        path = self._root / LOG
        data = b"".join(self._pending)
        before = self._head.end - len(data)
        with reported(path):
            try:
                write_all(log, [data])
                os.fdatasync(log)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(log, before)
                raise
        self._pending.clear()
        self._index.commit()
        with reported(self._root / HEAD):
            overwrite(head, self._head.text())

    def entries(
        self,
        *,
        lane: str | None = None,
        kinds: Sequence[str] | None = None,
        since: int = 0,
        until: float | None = None,
        newest: int | None = None,
    ) -> list[Entry]:
        """Entries in order; see `Index.entries`."""
        return self._index.entries(lane=lane, kinds=kinds, since=since, until=until, newest=newest)

    def last(
        self, lane: str, kinds: Sequence[str] | None = None, until: float | None = None
    ) -> Entry | None:
        """The last entry of a lane, of some kinds, up to a time (s)."""
        found = self.entries(lane=lane, kinds=kinds, until=until, newest=1)
        return found[0] if found else None

    def lanes(self) -> list[str]:
        return self._index.lanes()

    def flush(self) -> None:
        """Make the head durable too."""
        if self._files is not None:
            with reported(self._root / HEAD):
                os.fdatasync(self._files[1])

    def close(self) -> None:
        if self._files is None:
            self._index.close()
            return
        try:
            if not self._broken:
                self.flush()
        finally:
            for handle in self._files:
                os.close(handle)
            self._files = None
            self._index.close(tidy=not self._broken)


def genesis(root: Path) -> str:
    """The hash that entry 0 follows: that of `REGISTRY.json`, which it thereby protects."""
    return sha256(inside(root, "REGISTRY.json").read_bytes())


def read_head(root: Path) -> Head:
    """The acknowledged end of the journal; `DamagedError` if the file is missing or altered."""
    path = inside(root, HEAD)
    try:
        data = path.read_bytes()
        while data != (again := path.read_bytes()):
            data = again  # a writer was at it
        head = Head(**json.loads(data))
        if head.text() == data:
            return head
        text = "was altered"
    except FileNotFoundError:
        text = "is missing"
    except (ValueError, KeyError, TypeError):
        text = "was altered"
    raise DamagedError(
        f"{path} {text}; it says where the journal ends: look with `stillfit verify`, "
        "then take the file from a copy or rebuild the registry's index"
    )


def read_log(root: Path) -> Scan:
    """All entries of `journal.jsonl` up to its first fault."""
    path = inside(root, LOG)
    try:
        return scan(path.read_bytes(), genesis(root))
    except FileNotFoundError:
        raise DamagedError(
            f"{path} is missing; it is the registry's journal: take it from a copy, or rebuild it "
            "from journal.sqlite"
        ) from None


def head_of(root: Path, found: Scan) -> Head:
    """The head that belongs to the entries of a scan."""
    if not found.entries:
        return Head(0, genesis(root), 0)
    return Head(len(found.entries), found.entries[-1].hash, found.ends[-1])


def log_faults(found: Scan, head: Head) -> list[str]:
    """What contradicts the head: every acknowledged entry must be there, whole and unchanged."""
    known = min(head.count, len(found.entries))
    if found.fault is not None and (found.ends[-1] if found.ends else 0) < head.end:
        return [found.fault]
    if len(found.entries) < head.count:
        return [
            f"it ends after {len(found.entries)} entries, but {head.count} were acknowledged: "
            "the last ones were removed"
        ]
    if known and (found.entries[known - 1].hash, found.ends[known - 1]) != (head.hash, head.end):
        return [f"entry {known - 1} is not the one that {HEAD} names as the last acknowledged"]
    return []


def check_log(root: Path, found: Scan, head: Head) -> None:
    """Refuse to build on a journal with a fault."""
    for fault in log_faults(found, head):
        raise DamagedError(
            f"{root / LOG}: {fault}; look with `stillfit verify`, then take the file from a copy "
            "or rebuild it from journal.sqlite"
        )


def catch_up(root: Path, index: Index, found: Scan) -> None:
    """Add the entries that a killed writer did not bring into the index."""
    count = index.count()
    entries = found.entries
    if count > len(entries) or (count and index.hash_of(count - 1) != entries[count - 1].hash):
        raise DamagedError(
            f"{root / INDEX} does not agree with {LOG}: was a row altered or removed? Look with "
            f"`stillfit verify`, then rebuild the index"
        )
    if count < len(entries):
        index.begin()
        index.insert(entries[count:])
        index.commit()


def _open_files(root: Path) -> tuple[int, int]:
    """Handles of journal and head, for writing."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with reported(root / LOG):
        log = os.open(inside(root, LOG), flags | os.O_APPEND)
    try:
        with reported(root / HEAD):
            return log, os.open(inside(root, HEAD), flags)
    except BaseException:
        os.close(log)
        raise


def _holds(index: Index, head: Head) -> bool:
    return head.count == 0 or index.hash_of(head.count - 1) == head.hash
