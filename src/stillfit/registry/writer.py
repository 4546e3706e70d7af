"""What a deterministic loop writes for one lane, again and again until it is through.

A loop that was killed starts from its last checkpoint and comes once more to entries that it
wrote before. The writer compares each with the stored one and writes nothing, until the loop is
past the last of them. So a run that was killed leaves the journal of one that was not, and a run
that is not the same (another seed, other code) is found out at its first different entry.

A person's command has no place in that order: it is an entry by another actor. The loop asks for
commands, and the first time it is given one the writer adds an entry of kind "obeyed", which ties
it to the loop's step. On a replay it is given at that very step again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stillfit.core.errors import RegistryError
from stillfit.core.values import JSON, VersionId
from stillfit.registry.canon import canonical, check_name
from stillfit.registry.commands import check_rollback, waiting
from stillfit.registry.entries import (
    DEPLOY,
    HOLD,
    LOOP,
    OBEYED,
    RESUME,
    ROLLBACK,
    SERVING,
    SWITCH,
    Draft,
    Entry,
)
from stillfit.registry.journal import Journal
from stillfit.registry.versions import require_version


class Writer:
    """A lane's place in the journal. Get one from `Registry.writer`.

    `position`: that of the checkpoint the loop starts from, 0 from the beginning. The loop's
    entries of this lane before it are taken as done. While a loop replays, the registry's
    `serving` and `held` already tell of its future: it must go by its own state.
    """

    def __init__(self, root: Path, journal: Journal, lane: str, position: int) -> None:
        check_name(lane, "a lane")
        if not 0 <= position <= journal.head.count:
            raise RegistryError(
                f"position {position} lies outside the journal of {journal.head.count} entries; "
                "does the checkpoint belong to this registry?"
            )
        self._root = root
        self._journal = journal
        self._lane = lane
        self._position = position
        self._step = -1
        stored = journal.entries(lane=lane)
        self._stored = deque(e for e in stored if e.actor == LOOP and e.seq >= position)
        obeyed = {e.payload["command"] for e in stored if e.kind == OBEYED}
        self._orders = deque(e for e in stored if e.actor != LOOP and e.seq not in obeyed)
        self._by_seq = {e.seq: e for e in stored if e.actor != LOOP}
        self._time = stored[-1].time if stored else None

    @property
    def lane(self) -> str:
        return self._lane

    @property
    def position(self) -> int:
        """For the checkpoint: number of the entry after the last one of the loop's own."""
        return self._position

    @property
    def replaying(self) -> bool:
        """Whether stored entries are still ahead."""
        return bool(self._stored)

    def append(
        self,
        kind: str,
        time: float,
        *,
        version: VersionId | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write an entry of this lane at a time (s) of the stream, durably, or meet it again.

        `RegistryError` if the stored entry in its place differs, if time goes back, if the version
        is unknown, or if a held lane would switch.
        """
        if kind == OBEYED:
            raise RegistryError("an entry 'obeyed' is written by `commands` alone")
        draft = Draft.of(self._lane, time, kind, version, payload)
        if self._stored:
            return self._again(draft)
        self._check(draft)
        return self._new(draft)

    def recall(self, kinds: Collection[str], version: VersionId | None) -> Entry | None:
        """On a replay, pass over the next entry if it is of these kinds and of that version.

        For what a tool of this machine has said, which need not say the same again: the entry
        stands, and the tool is not asked. None: nothing of the kind was written here.
        """
        entry = self._stored[0] if self._stored else None
        if entry is None or entry.kind not in kinds or entry.version != version:
            return None
        self._stored.popleft()
        self._position = entry.seq + 1
        return entry

    def deploy(self, version: VersionId, time: float, because: str, **facts: Any) -> Entry:
        """The first version of a lane begins to serve."""
        return self._change(DEPLOY, version, time, because, facts)

    def switch(self, version: VersionId, time: float, because: str, **facts: Any) -> Entry:
        """Another version begins to serve; refused while the lane is held."""
        return self._change(SWITCH, version, time, because, facts)

    def rollback(self, version: VersionId, time: float, because: str, **facts: Any) -> Entry:
        """A version that served in this lane before serves again."""
        return self._change(ROLLBACK, version, time, because, facts)

    def hold(self, time: float, because: str, **facts: Any) -> Entry:
        """No more switches until a person resumes. Before a rollback, so that no gap is open."""
        return self._change(HOLD, None, time, because, facts)

    def resume(self, time: float, because: str, **facts: Any) -> Entry:
        """Switches are allowed again."""
        return self._change(RESUME, None, time, because, facts)

    def commands(self, time: float, step: int) -> tuple[Entry, ...]:
        """What persons have ordered since the last call, each once, to be obeyed now.

        Call it at fixed places of the loop, one of them right before a switch. `step` numbers the
        calls: the loop keeps the count in its checkpoint, and it rises from call to call. Cost: a
        look at the empty inbox, some 10 microseconds.
        """
        if step <= self._step:
            raise RegistryError(
                f"`commands` was asked at step {step} after step {self._step}; the count must rise"
            )
        self._step = step
        if not self._stored:
            self._receive(time)
        found: list[Entry] = []
        while self._stored and self._stored[0].kind == OBEYED:
            entry = self._stored[0]
            obeyed_at = int(str(entry.payload["step"]))
            if obeyed_at < step:
                raise self._differs(entry, f"it was obeyed at step {obeyed_at}, now it is {step}")
            if obeyed_at > step:
                return tuple(found)
            self._stored.popleft()
            self._position = entry.seq + 1
            found.append(self._by_seq[int(str(entry.payload["command"]))])
        if not self._stored:
            while self._orders:
                order = self._orders.popleft()
                payload: dict[str, JSON] = {"command": order.seq, "step": step}
                draft = Draft.of(self._lane, time, OBEYED, order.version, payload)
                self._new(draft)
                found.append(order)
        return tuple(found)

    def _change(
        self,
        kind: str,
        version: VersionId | None,
        time: float,
        because: str,
        facts: Mapping[str, Any],
    ) -> Entry:
        return self.append(kind, time, version=version, payload={"because": because, **facts})

    def _new(self, draft: Draft) -> Entry:
        entry = self._journal.append(draft)
        self._time = entry.time
        if entry.actor == LOOP:
            self._position = entry.seq + 1
        return entry

    def _receive(self, time: float) -> None:
        """Take the lane's commands from the inbox into the journal."""
        for path, command in waiting(self._root, self._lane):
            # A writer killed after it wrote the entry has left the file behind.
            if all(e.payload.get("letter") != path.name for e in self._by_seq.values()):
                entry = self._new(command.draft(time, path.name))
                self._by_seq[entry.seq] = entry
                self._orders.append(entry)
            # Inside a batch the entry is not durable yet: a kill must leave one of the two.
            self._journal.afterwards(partial(path.unlink, missing_ok=True))

    def _again(self, draft: Draft) -> Entry:
        """Pass over a stored entry that the loop has come to again."""
        entry = self._stored[0]
        for name in ("kind", "time", "version"):
            was, now = getattr(entry, name), getattr(draft, name)
            if was != now:
                raise self._differs(entry, f"its {name} is {was!r}, now it would be {now!r}")
        for name in sorted({*entry.payload, *draft.payload}):
            was, now = (canonical(x.payload.get(name)).decode() for x in (entry, draft))
            if was != now or (name in entry.payload) != (name in draft.payload):
                raise self._differs(
                    entry, f"its {name!r} is {_short(was)}, now it would be {_short(now)}"
                )
        self._stored.popleft()
        self._position = entry.seq + 1
        return entry

    def _differs(self, entry: Entry, how: str) -> RegistryError:
        return RegistryError(
            f"this run is not the one that wrote the journal: entry {entry.seq} of lane "
            f"{self._lane!r} differs ({how}); was the run file, the seed, the data or the code "
            "changed? Start a new registry for a new run"
        )

    def _check(self, draft: Draft) -> None:
        if self._time is not None and draft.time < self._time:
            raise RegistryError(
                f"an entry of lane {self._lane!r} has the time {draft.time:g} s, but its last one "
                f"was at {self._time:g} s; entries must come in order of time"
            )
        if draft.version is not None:
            require_version(self._root, draft.version)
        if draft.kind not in (*SERVING, HOLD, RESUME):
            return
        if not str(draft.payload.get("because", "")).strip():
            raise RegistryError(f"an entry {draft.kind!r} needs a reason: give `because`")
        if draft.kind not in SERVING:
            return
        if draft.version is None:
            raise RegistryError(f"an entry {draft.kind!r} needs the version that is to serve")
        serving = self._journal.last(self._lane, SERVING)
        if (serving is None) != (draft.kind == DEPLOY):
            raise RegistryError(
                f"lane {self._lane!r} cannot {draft.kind}: "
                + ("nothing serves yet, deploy first" if serving is None else "it serves already")
            )
        if draft.kind == ROLLBACK:
            check_rollback(self._journal, self._root, self._lane, draft.version)
        state = self._journal.last(self._lane, (HOLD, RESUME))
        if draft.kind == SWITCH and state is not None and state.kind == HOLD:
            raise RegistryError(
                f"lane {self._lane!r} is held by {state.actor} since {state.time:g} s "
                f"({state.because}), so nothing may switch; ask for `commands` before a switch"
            )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
