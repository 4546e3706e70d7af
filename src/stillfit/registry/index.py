"""The journal as an SQLite table: a copy for queries, always rebuildable from `journal.jsonl`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stillfit.core.errors import DamagedError, RegistryError
from stillfit.core.values import VersionId
from stillfit.registry.canon import canonical
from stillfit.registry.entries import Entry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY, lane TEXT NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL,
    version TEXT, payload TEXT NOT NULL, actor TEXT NOT NULL, prev TEXT NOT NULL,
    hash TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS journal_lane_kind ON journal (lane, kind, seq);
"""
# The file itself, and what SQLite keeps beside it while it is open or after a kill.
BESIDE = ("", "-wal", "-shm", "-journal")
_COLUMNS = "seq, lane, time, kind, version, payload, actor, prev, hash"
# Disks on which SQLite's shared memory for WAL does not reach other machines (sqlite.org/wal.html).
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "lustre", "gpfs", "beegfs"}


class Index:
    """An open SQLite copy of the journal."""

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database = database
        self._name = name

    @classmethod
    def in_memory(cls, entries: Iterable[Entry]) -> Index:
        """For readers of a registry whose index is missing, behind or on a read-only disk."""
        index = cls(sqlite3.connect(":memory:", isolation_level=None), "the index in memory")
        index._database.executescript(_SCHEMA)
        index.begin()
        index.insert(entries)
        index.commit()
        return index

    @classmethod
    def reading(cls, path: Path) -> Index:
        """Open an existing file without ever writing to it."""
        with _mapped(str(path)):
            database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        return cls(database, str(path))

    @classmethod
    def writing(cls, path: Path) -> Index:
        """Open or make the file.

        Write-ahead log without a flush per commit: a power cut may lose the newest rows, never
        harm the others, and the journal file brings them back. Where a network disk rules that
        log out, SQLite's rollback journal with full flushes.
        """
        with _mapped(str(path)):
            database = sqlite3.connect(path, isolation_level=None)
            index = cls(database, str(path))
            try:
                wanted = "delete" if on_network_disk(path) else "wal"
                mode = database.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0]
                database.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
                database.executescript(_SCHEMA)
            except sqlite3.Error:
                database.close()
                raise
        return index

    @staticmethod
    def remove(path: Path) -> None:
        """Delete the file and what SQLite keeps beside it."""
        for extra in BESIDE:
            path.with_name(path.name + extra).unlink(missing_ok=True)

    def begin(self) -> None:
        with _mapped(self._name):
            self._database.execute("BEGIN")

    def commit(self) -> None:
        with _mapped(self._name):
            self._database.execute("COMMIT")

    def undo(self) -> None:
        """Forget what was inserted since `begin`."""
        with suppress(sqlite3.Error):
            self._database.execute("ROLLBACK")

    def insert(self, entries: Iterable[Entry]) -> None:
        rows = [
            (
                entry.seq,
                entry.lane,
                entry.time,
                entry.kind,
                entry.version,
                canonical(dict(entry.payload)).decode(),
                entry.actor,
                entry.prev,
                entry.hash,
            )
            for entry in entries
        ]
        with _mapped(self._name):
            self._database.executemany("INSERT INTO journal VALUES (?,?,?,?,?,?,?,?,?)", rows)

    def entries(
        self,
        *,
        lane: str | None = None,
        kinds: Sequence[str] | None = None,
        since: int = 0,
        until: float | None = None,
        newest: int | None = None,
    ) -> list[Entry]:
        """Entries in order, of one lane, of some kinds, from number `since`, up to a time (s).

        `newest` keeps that many of the last ones. Cost: one indexed query.
        """
        where, values = ["seq >= ?"], [since]  # type: tuple[list[str], list[Any]]
        if lane is not None:
            where.append("lane = ?")
            values.append(lane)
        if kinds is not None:
            where.append(f"kind IN ({','.join('?' * len(kinds))})")
            values.extend(kinds)
        if until is not None:
            where.append("time <= ?")
            values.append(until)
        query = f"SELECT {_COLUMNS} FROM journal WHERE {' AND '.join(where)} ORDER BY seq"
        if newest is not None:
            query += " DESC LIMIT ?"
            values.append(newest)
        with _mapped(self._name):
            found = [_entry(row) for row in self._database.execute(query, values)]
        return found[::-1] if newest is not None else found

    def lanes(self) -> list[str]:
        with _mapped(self._name):
            rows = self._database.execute("SELECT DISTINCT lane FROM journal ORDER BY lane")
            return [row[0] for row in rows]

    def count(self) -> int:
        with _mapped(self._name):
            return int(self._database.execute("SELECT COUNT(*) FROM journal").fetchone()[0])

    def hash_of(self, seq: int) -> str | None:
        with _mapped(self._name):
            row = self._database.execute(
                "SELECT hash FROM journal WHERE seq = ?", (seq,)
            ).fetchone()
        return None if row is None else str(row[0])

    def faults(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        with _mapped(self._name):
            rows = self._database.execute("PRAGMA integrity_check(5)").fetchall()
        return [str(row[0]) for row in rows if row[0] != "ok"]

    def close(self, *, tidy: bool = False) -> None:
        """`tidy`: fold the write-ahead log in, so that the file can be read from any disk."""
        if tidy:
            with suppress(sqlite3.Error):
                # Fails while somebody reads; then the next writer's close does it.
                self._database.execute("PRAGMA busy_timeout = 100")
                self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.close()


def _entry(row: tuple[Any, ...]) -> Entry:
    seq, lane, time, kind, version, payload, actor, prev, hash_ = row
    try:
        return Entry(
            seq=seq,
            lane=lane,
            time=time,
            kind=kind,
            version=None if version is None else VersionId(version),
            payload=json.loads(payload),
            actor=actor,
            prev=prev,
            hash=hash_,
        )
    except (ValueError, TypeError):
        raise DamagedError(
            f"row {seq} of journal.sqlite was altered: its payload is not JSON; "
            "look with `stillfit verify`, then rebuild the index from journal.jsonl"
        ) from None


@contextmanager
def _mapped(name: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise RegistryError(
                f"the disk is full: {name} could not be written; nothing that was already stored "
                "is lost: free some space and start again"
            ) from error
        raise RegistryError(
            f"{name} could not be used ({error}); nothing that was already stored is lost: "
            "is the file in use, or its disk failing?"
        ) from error
    except sqlite3.DatabaseError as error:
        raise DamagedError(
            f"{name} is damaged ({error}); rebuild the index from journal.jsonl, which holds all"
        ) from error


def on_network_disk(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether `path` lies on a file system shared by machines, by the kernel's table of mounts.

    False where there is no such table. Format: proc_pid_mountinfo(5).
    """
    try:
        table = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    best, kind = -1, ""
    for line in table:
        left, _, right = line.partition(" - ")
        fields, facts = left.split(" "), right.split(" ")
        if len(fields) < 5 or not facts[0]:
            continue
        point = Path(fields[4].replace("\\040", " "))
        # Of mounts on one point the last covers the others.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), facts[0]
    return kind in _NETWORK or kind.startswith("fuse")
