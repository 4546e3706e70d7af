"""Checks of a whole registry, and the repair of its index.

Nothing here needs the rest of a registry to be in order, so that a damaged one can be looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillfit.core.errors import DamagedError, RegistryError
from stillfit.core.values import VersionId
from stillfit.registry.checkpoints import (
    checkpoint_files,
    read_checkpoint,
    segment_fault,
    segments_of,
)
from stillfit.registry.commands import inbox_files, read_letter
from stillfit.registry.durable import TEMPORARY, Lock, inside, write_file
from stillfit.registry.entries import Scan, scan
from stillfit.registry.index import Index
from stillfit.registry.journal import (
    HEAD,
    INDEX,
    LOG,
    Head,
    genesis,
    head_of,
    log_faults,
    read_head,
    read_log,
)
from stillfit.registry.measurements import FILE as MEASUREMENTS
from stillfit.registry.registry import MARK, OWN, check_format
from stillfit.registry.versions import list_versions, version_faults


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written. `where`: path inside the registry."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(path: Path | str) -> list[Finding]:
    """Everything in a registry that was altered, removed, added or reordered; empty if all is well.

    Reads every byte once (about 1 s per GB), needs no lock, and may run beside a writer or after
    a kill: entries written but not acknowledged, and temporary files, are not findings.
    `RegistryError` if there is no registry or its format is newer.
    """
    root = Path(path).resolve()
    check_format(root)
    if links := list(_links(root)):
        return links
    findings = list(_strangers(root))
    try:
        # The head and the index before the file: a writer at work can only be further on.
        head = read_head(root)
    except RegistryError as error:
        head = None
        findings.append(Finding(HEAD, str(error)))
    rows, told = _index_lines(root)
    findings += [Finding(INDEX, what) for what in told]
    marks, more = _checkpoint_findings(root)
    findings += more
    try:
        found = read_log(root)
    except RegistryError as error:
        return [*findings, Finding(LOG, str(error)), *_version_findings(root)]
    faults = log_faults(found, head) if head is not None else []
    if found.fault is not None and not faults and not (found.torn and head is not None):
        faults = [found.fault]
    findings += [Finding(LOG, what) for what in faults]
    if rows is not None:
        findings += [Finding(INDEX, what) for what in _compare(rows, found, head)]
    for mark in marks:
        if mark.count > len(found.entries):
            text = f"it knew of {mark.count} journal entries, {len(found.entries)} are left"
            findings.append(Finding(mark.where, text))
        elif mark.count and found.entries[mark.count - 1].hash != mark.hash:
            findings.append(Finding(mark.where, f"it knew another entry {mark.count - 1}"))
    findings += _version_findings(root)
    stored = set(list_versions(root))
    for entry in found.entries:
        if entry.version is not None and entry.version not in stored:
            text = f"entry {entry.seq} names version {entry.version}, which is not there"
            findings.append(Finding(LOG, text))
    return findings


def rebuild(path: Path | str) -> list[str]:
    """Make the index anew from the journal file, and say in words what was done.

    A journal file that is damaged or lost is made anew from the index, if that still holds every
    acknowledged entry in an unbroken chain. `DamagedError` if neither is whole: then only a copy
    helps, and nothing was changed.
    """
    root = Path(path).resolve()
    check_format(root)
    done: list[str] = []
    with Lock(root):
        try:
            head: Head | None = read_head(root)
        except DamagedError:
            head = None
        found = _whole_log(root, head)
        if found is None:
            found = _from_index(root, head)
            write_file(inside(root, LOG), [entry.line() for entry in found.entries])
            done.append(f"{LOG} was made anew from {INDEX}: {len(found.entries)} entries")
        Index.remove(inside(root, INDEX))
        index = Index.writing(inside(root, INDEX))
        try:
            index.begin()
            index.insert(found.entries)
            index.commit()
        finally:
            index.close(tidy=True)
        done.append(f"{INDEX} was made anew from {LOG}: {len(found.entries)} entries")
        if head is None:
            done.append(
                f"{HEAD} was made anew; whether entries had been removed from the end can no "
                "longer be told from it"
            )
        write_file(inside(root, HEAD), [head_of(root, found).text()])
    return done


def _whole_log(root: Path, head: Head | None) -> Scan | None:
    try:
        found = read_log(root)
    except DamagedError:
        return None
    faults = log_faults(found, head) if head is not None else [f for f in (found.fault,) if f]
    return None if faults else found


def _from_index(root: Path, head: Head | None) -> Scan:
    rows, told = _index_lines(root)
    if rows is not None:
        found = scan(b"".join(rows), genesis(root))
        if found.fault is None and (head is None or not log_faults(found, head)):
            return found
        told = [found.fault or "entries were removed from its end"]
    raise DamagedError(
        f"neither {LOG} nor {INDEX} in {root} is whole ({'; '.join(told)}); "
        "take the registry from a copy"
    )


def _index_lines(root: Path) -> tuple[list[bytes] | None, list[str]]:
    """The rows of the index as lines of the journal file, None if it cannot be read."""
    path = inside(root, INDEX)
    if not path.exists():
        return None, ["it is missing; rebuild it from the journal file"]
    try:
        index = Index.reading(path)
    except RegistryError as error:
        return None, [str(error)]
    try:
        faults = index.faults()
        return [entry.line() for entry in index.entries()], faults
    except (RegistryError, ValueError, TypeError) as error:
        return None, [str(error)]
    finally:
        index.close()


def _compare(rows: list[bytes], found: Scan, head: Head | None) -> Iterator[str]:
    acknowledged = len(found.entries) if head is None else min(head.count, len(found.entries))
    lines = [entry.line() for entry in found.entries]
    for seq, (row, line) in enumerate(zip(rows, lines, strict=False)):
        if row != line:
            yield f"from row {seq} on it differs from {LOG}: a row was altered, removed or moved"
            return
    if len(rows) < acknowledged:
        yield f"it holds {len(rows)} of {acknowledged} entries: rows were removed from its end"
    if len(rows) > len(lines):
        yield f"it holds {len(rows)} entries, {LOG} only {len(lines)}: one of them lost its end"


def _version_findings(root: Path) -> Iterator[Finding]:
    for version in list_versions(root):
        for fault in version_faults(root, version):
            yield Finding(f"versions/{version}", fault)
    stored = set(list_versions(root))
    for version in stored:
        parent = _parent(root, version)
        if parent is not None and parent not in stored:
            yield Finding(f"versions/{version}", f"its parent {parent} is not there")


def _parent(root: Path, version: VersionId) -> str | None:
    try:
        data = inside(root, "versions", version, "manifest.json").read_bytes()
        found = json.loads(data)["facts"]["parent"]
    except (OSError, ValueError, KeyError, TypeError, RegistryError):
        return None  # told of by `version_faults`
    return found if isinstance(found, str) else None


@dataclass(frozen=True)
class _Mark:
    """How much of the journal a checkpoint knew, and the hash of the last entry it knew."""

    where: str
    count: int
    hash: str


def _checkpoint_findings(root: Path) -> tuple[list[_Mark], list[Finding]]:
    marks: list[_Mark] = []
    findings: list[Finding] = []
    users: dict[str, Path] = {}
    for path in checkpoint_files(root):
        where = str(path.relative_to(root))
        try:
            body = read_checkpoint(path)
        except RegistryError as error:
            if path.exists():  # else a writer at work has just replaced it
                findings.append(Finding(where, str(error)))
            continue
        marks.append(_Mark(where, body["journal"]["count"], body["journal"]["hash"]))
        users |= dict.fromkeys(segments_of(body), path)
    for segment, path in sorted(users.items()):
        fault = segment_fault(root, segment)
        if fault is not None and path.exists():
            findings.append(Finding(f"segments/{segment}.safetensors", fault))
    return marks, findings


def _links(root: Path) -> Iterator[Finding]:
    """Symbolic links down to the rooms' entries; nothing is read through one."""
    for path in sorted(root.iterdir()):
        inner = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
        for found in (path, *sorted(inner)):
            if found.is_symlink():
                yield Finding(str(found.relative_to(root)), "it is a symbolic link")


def _strangers(root: Path) -> Iterator[Finding]:
    """Files that no release puts where they are."""
    known = {MARK, MEASUREMENTS, *OWN}
    name = r"[a-z0-9][a-z0-9._-]{0,63}"
    runs = [path.name for path in (root / "checkpoints").glob("*") if path.is_dir()]
    for place, pattern in (
        ((), "|".join(map(re.escape, sorted(known)))),
        (("versions",), r"[0-9a-f]{64}"),
        (("segments",), r"[0-9a-f]{64}\.safetensors"),
        (("checkpoints",), name),
        *((("checkpoints", run), r"[0-9]{12}\.json") for run in runs),
    ):
        for path in sorted(inside(root, *place).glob("*")):
            if not re.fullmatch(pattern, path.name) and not path.name.startswith(TEMPORARY):
                yield Finding(str(path.relative_to(root)), "it does not belong to a registry")
    for path in inbox_files(root):
        letter = read_letter(path)
        if isinstance(letter, str) and path.exists():
            yield Finding(f"inbox/{path.name}", letter)
