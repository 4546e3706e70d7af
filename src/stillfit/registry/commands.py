"""A person's commands: written to the journal at once, or left for the loop that is running.

Only one process may write a registry. While a loop holds it, a command is put into `inbox/` as a
file of its own; the loop's writer takes it into the journal at its next look, so that HOLD needs
no restart.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillfit.core.errors import RegistryError, StillfitError
from stillfit.core.values import VersionId, version_id
from stillfit.registry.canon import readable
from stillfit.registry.durable import TEMPORARY, inside, make_dir, write_file
from stillfit.registry.entries import HOLD, LOOP, RESUME, ROLLBACK, SERVING, Draft
from stillfit.registry.journal import Journal
from stillfit.registry.versions import require_version

NOTE = "note"
KINDS = (HOLD, RESUME, ROLLBACK, NOTE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a person wants of a lane. `kind`: hold, resume, rollback (to `version`) or note."""

    lane: str
    kind: str
    because: str
    actor: str
    version: VersionId | None = None

    def draft(self, at: float, letter: str | None = None) -> Draft:
        """The journal entry at a time (s) of the stream; `letter` names the inbox file."""
        payload = {"because": self.because} | ({} if letter is None else {"letter": letter})
        return Draft.of(self.lane, at, self.kind, self.version, payload, self.actor)


def check_command(journal: Journal, root: Path, command: Command) -> None:
    """`RegistryError` unless the command makes sense now."""
    lane = command.draft(0.0).lane
    if command.kind not in KINDS:
        raise RegistryError(f"{command.kind!r} is no command; commands are {', '.join(KINDS)}")
    if command.actor == LOOP or not command.because.strip():
        raise RegistryError("a command needs the name of the person who gives it and a reason")
    if lane not in journal.lanes():
        known = ", ".join(journal.lanes()) or "none yet"
        raise RegistryError(f"there is no lane {lane!r} in {root}; lanes are: {known}")
    state = journal.last(lane, (HOLD, RESUME))
    held = state is not None and state.kind == HOLD
    if command.kind == HOLD and held and state is not None:
        raise RegistryError(
            f"lane {lane!r} is held already, by {state.actor} at {state.time:g} s: {state.because}"
        )
    if command.kind == RESUME and not held:
        raise RegistryError(f"lane {lane!r} is not held, so there is nothing to resume")
    if (command.kind == ROLLBACK) != (command.version is not None):
        raise RegistryError("a rollback, and nothing else, names the version to go back to")
    if command.version is not None:
        check_rollback(journal, root, lane, command.version)


def check_rollback(journal: Journal, root: Path, lane: str, version: VersionId) -> None:
    """`RegistryError` unless `version` served in the lane before and does not serve now."""
    require_version(root, version)
    served = journal.entries(lane=lane, kinds=SERVING)
    if not any(entry.version == version for entry in served):
        raise RegistryError(
            f"version {version} never served in lane {lane!r}; "
            "a rollback goes to one that did: see `stillfit history`"
        )
    if served[-1].version == version:
        raise RegistryError(f"version {version} serves in lane {lane!r} already")


def leave(root: Path, command: Command) -> None:
    """Put a command into the inbox, in order of arrival."""
    make_dir(inside(root, "inbox"))
    name = f"{time.time_ns():020d}-{secrets.token_hex(8)}.json"
    table = {
        "actor": command.actor,
        "because": command.because,
        "kind": command.kind,
        "lane": command.lane,
        "version": command.version,
    }
    write_file(inside(root, "inbox", name), [readable(dict(table))])


def waiting(root: Path, lane: str | None = None) -> list[tuple[Path, Command]]:
    """Commands in the inbox, oldest first. Files that are none are left to `verify`."""
    found: list[tuple[Path, Command]] = []
    for path in inbox_files(root):
        command = read_letter(path)
        if isinstance(command, Command) and lane in (None, command.lane):
            found.append((path, command))
    return found


def inbox_files(root: Path) -> list[Path]:
    """Files of the inbox, oldest first."""
    try:
        names = sorted(path.name for path in (root / "inbox").iterdir())
    except FileNotFoundError:
        return []
    return [inside(root, "inbox", name) for name in names if not name.startswith(TEMPORARY)]


def read_letter(path: Path) -> Command | str:
    """The command in an inbox file, or what is wrong with it."""
    try:
        table: dict[str, Any] = json.loads(path.read_bytes())
        command = Command(**table)
        command.draft(0.0)
        if command.version is not None:
            version_id(command.version)
        if command.kind in KINDS and command.actor != LOOP:
            return command
    except (ValueError, TypeError, AttributeError, OSError, StillfitError):
        pass  # a file that is not ours must not stop the loop; `verify` names it
    return f"{path} is not a command; delete it"
