"""Entries of the journal: each carries the hash of the one before, so none can go unnoticed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stillfit.core.errors import RegistryError
from stillfit.core.values import JSON, VersionId
from stillfit.registry.canon import canonical, check_name, plain, sha256

LOOP = "loop"
DEPLOY, SWITCH, ROLLBACK = "deploy", "switch", "rollback"
HOLD, RESUME, OBEYED = "hold", "resume", "obeyed"
SERVING = (DEPLOY, SWITCH, ROLLBACK)
_KEYS = {"actor", "hash", "kind", "lane", "payload", "prev", "seq", "time", "version"}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is to be written, before it has a place in the chain.

    `lane`: the deployment it is about. `time`: seconds of the stream. `kind`: a short word, such
    as "verdict". `version`: the version it is about, if any. `payload`: reason and figures.
    `actor`: "loop", or the name of the person who gave the command.
    """

    lane: str
    time: float
    kind: str
    version: VersionId | None = None
    payload: Mapping[str, JSON] = field(default_factory=dict)
    actor: str = LOOP

    @classmethod
    def of(
        cls,
        lane: str,
        time: float,
        kind: str,
        version: VersionId | None = None,
        payload: Mapping[str, Any] | None = None,
        actor: str = LOOP,
    ) -> Draft:
        """A checked draft with its payload in the types of JSON."""
        if not math.isfinite(time):
            raise RegistryError(f"a journal entry has the time {time}; it must be finite seconds")
        if not 0 < len(actor) <= 64 or not actor.isprintable():
            raise RegistryError(f"{actor!r} cannot name who acts: use 1 to 64 printable characters")
        return cls(
            lane=check_name(lane, "a lane"),
            time=float(time),
            kind=check_name(kind, "a kind of entry"),
            version=version,
            payload={
                check: plain(part, f"the payload's {check}")
                for check, part in (payload or {}).items()
            },
            actor=actor,
        )


@dataclass(frozen=True, kw_only=True)
class Entry(Draft):
    """A written entry: number `seq` from 0, hash of the entry before, and its own hash."""

    seq: int
    prev: str
    hash: str

    @classmethod
    def chain(cls, draft: Draft, seq: int, prev: str) -> Entry:
        """`draft` at place `seq` after the entry with the hash `prev`."""
        body = _body(draft, seq, prev)
        return cls(
            lane=draft.lane,
            time=draft.time,
            kind=draft.kind,
            version=draft.version,
            payload=draft.payload,
            actor=draft.actor,
            seq=seq,
            prev=prev,
            hash=sha256(canonical(body)),
        )

    @property
    def because(self) -> str:
        """The reason in words, empty where the entry gives none."""
        return str(self.payload.get("because", ""))

    def line(self) -> bytes:
        """The entry as it stands in `journal.jsonl`, with its line end."""
        return canonical(_body(self, self.seq, self.prev) | {"hash": self.hash}) + b"\n"


def _body(draft: Draft, seq: int, prev: str) -> dict[str, JSON]:
    return {
        "actor": draft.actor,
        "kind": draft.kind,
        "lane": draft.lane,
        "payload": dict(draft.payload),
        "prev": prev,
        "seq": seq,
        "time": draft.time,
        "version": draft.version,
    }


class Scan(NamedTuple):
    """What a journal file holds.

    `ends[i]`: bytes up to the end of entry `i`. `fault`: what is wrong after the last good entry,
    None if the file is whole. `torn`: what is wrong is only a last line without its end, as a
    killed writer leaves it.
    """

    entries: list[Entry]
    ends: list[int]
    fault: str | None
    torn: bool = False


def scan(data: bytes, genesis: str) -> Scan:
    """Read a journal up to its first fault. `genesis` stands for the hash before entry 0."""
    entries: list[Entry] = []
    ends: list[int] = []
    prev, start = genesis, 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            return Scan(entries, ends, f"entry {len(entries)} breaks off", torn=True)
        found = parse(data[start : end + 1], len(entries), prev)
        if isinstance(found, str):
            return Scan(entries, ends, found)
        entries.append(found)
        ends.append(end + 1)
        prev, start = found.hash, end + 1
    return Scan(entries, ends, None)


def parse(line: bytes, seq: int, prev: str) -> Entry | str:
    """The entry on a line that must be number `seq` after `prev`, or what is wrong with it."""
    try:
        table = json.loads(line)
        if not isinstance(table, dict) or set(table) != _KEYS:
            return f"entry {seq} does not have the fields of an entry"
        if canonical(table) + b"\n" != line:
            return f"entry {seq} was altered: it is not in canonical form"
        entry = Entry(**table)
        body = canonical(_body(entry, entry.seq, entry.prev))
    except (ValueError, TypeError, RecursionError):
        return f"entry {seq} was altered: it is not valid JSON"
    if sha256(body) != entry.hash:
        return f"entry {seq} was altered: its content does not have the hash written beside it"
    if entry.seq != seq:
        return f"entry {seq} is missing: entry {entry.seq} stands in its place"
    if entry.prev != prev:
        return f"entry {seq} does not follow entry {seq - 1}: the chain of hashes is broken there"
    return entry
