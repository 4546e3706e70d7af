"""What a registry holds, as plain values for the commands, and a person's orders to it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from stillfit.core.clock import DAY, HOUR, MINUTE
from stillfit.core.errors import ConfigError, RegistryError
from stillfit.core.tables import did_you_mean
from stillfit.core.values import VersionId
from stillfit.registry import Command, Entry, Manifest, Registry, rebuild, verify

Row: TypeAlias = dict[str, Any]
SERVING = ("deploy", "switch", "rollback")
_UNITS = {"s": 1.0, "min": MINUTE, "h": HOUR, "d": DAY}


@contextmanager
def opened(store: Path) -> Iterator[Registry]:
    """The registry, open for reading; `ConfigError` if there is none."""
    require_store(store)
    with Registry.open(store) as registry:
        yield registry


def require_store(store: Path) -> None:
    """`ConfigError` unless there is a registry; looks for one a level below, too."""
    if Registry.exists(store):
        return
    inner = store / "registry"
    hint = f"; did you mean {inner}?" if Registry.exists(inner) else ""
    raise ConfigError(
        f"there is no registry in {store}: --store wants the folder that holds REGISTRY.json, "
        f"such as runs/demo/registry{hint}"
    )


def moment(text: str) -> float:
    """A time of the stream: seconds, or a number with a unit: `90min`, `36h`, `2.5d`."""
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(s|min|h|d)?\s*", text)
    if found is None or not math.isfinite(float(found[1])):
        raise ConfigError(
            f"{text!r} is no time of the stream: give seconds, or a number with min, h or d, "
            "such as 36h"
        )
    return float(found[1]) * _UNITS[found[2] or "s"]


def find_version(registry: Registry, text: str) -> VersionId:
    """The version whose id begins with `text` (at least 4 digits); `ConfigError` if not one."""
    wanted = text.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{4,64}", wanted):
        raise ConfigError(
            f"{text!r} is no version: give at least the first 4 digits of an id "
            "(0-9, a-f); list them with `stillfit versions`"
        )
    found = [version for version in registry.versions() if version.startswith(wanted)]
    if not found:
        raise ConfigError(
            f"no version in {registry.root} begins with {text!r}; "
            "list them with `stillfit versions`"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{text!r} may mean {len(found)} versions: "
            f"{', '.join(version[:12] for version in found[:5])}; give more digits"
        )
    return found[0]


def check_lane(registry: Registry, lane: str | None) -> None:
    """`ConfigError` unless the lane (None: all) has an entry."""
    known = registry.lanes()
    if lane is not None and lane not in known:
        raise ConfigError(
            f"there is no lane {lane!r} in {registry.root}{did_you_mean(lane, known)}"
        )


# -- questions ------------------------------------------------------------------------------------


def status(store: Path, lane: str | None = None) -> Row:
    """What serves now in each lane, since when and why, whether it is held, what waits."""
    with opened(store) as registry:
        check_lane(registry, lane)
        manifests = [registry.manifest(version) for version in registry.versions()]
        return {
            "store": str(store),
            "versions": len(manifests),
            "bytes": sum(manifest.nbytes for manifest in manifests),
            "journal": registry.head.count,
            "head": registry.head.hash,
            "lanes": [
                serving_at(registry, name, None)
                for name in registry.lanes()
                if lane in (None, name)
            ],
        }


def serving_at(registry: Registry, lane: str, at: float | None) -> Row:
    """One lane at a time (None: now)."""
    change = registry.change(lane, at)
    held = registry.held(lane, at)
    last = registry.history(lane, until=at, newest=1)
    row: Row = {
        "lane": lane,
        "version": None if change is None else change.version,
        "since": None if change is None else change.time,
        "because": "" if change is None else change.because,
        "held": None if held is None else _short(held),
        "last": _short(last[0]) if last else None,
    }
    if at is None:
        waiting = registry.waiting(lane)
        row["waiting"] = [dataclasses.asdict(command) for command in waiting]
    else:
        row["at"] = at
    return row


def _short(entry: Entry) -> Row:
    return {
        "time": entry.time,
        "kind": entry.kind,
        "actor": entry.actor,
        "because": entry.because,
    }


def history(
    store: Path,
    *,
    lane: str | None = None,
    kinds: Sequence[str] = (),
    until: float | None = None,
    newest: int | None = None,
) -> list[Row]:
    """Journal entries in order. One that made a version serve also says `until` when it did
    (None: it serves still)."""
    with opened(store) as registry:
        check_lane(registry, lane)
        entries = registry.history(lane, kinds=kinds or None, until=until, newest=newest)
        changes = registry.history(lane, kinds=SERVING)
    ends: dict[int, float | None] = {}
    last: dict[str, int] = {}
    for change in changes:
        if change.lane in last:
            ends[last[change.lane]] = change.time
        last[change.lane] = change.seq
        ends[change.seq] = None
    return [_row(entry, ends) for entry in entries]


def _row(entry: Entry, ends: dict[int, float | None]) -> Row:
    row: Row = {
        "seq": entry.seq,
        "time": entry.time,
        "lane": entry.lane,
        "kind": entry.kind,
        "version": entry.version,
        "because": entry.because,
        "actor": entry.actor,
        "payload": {name: part for name, part in entry.payload.items() if name != "because"},
        "hash": entry.hash,
    }
    if entry.seq in ends:
        row["until"] = ends[entry.seq]
    return row


def served_at(store: Path, at: float, lane: str | None = None) -> list[Row]:
    """What served at a time (s) of the stream, in each lane, and why."""
    with opened(store) as registry:
        check_lane(registry, lane)
        lanes = [name for name in registry.lanes() if lane in (None, name)]
        return [serving_at(registry, name, at) for name in lanes]


def versions(store: Path, *, lane: str | None = None, of: str | None = None) -> list[Row]:
    """All versions in the order in which they were first named in the journal; those of one lane;
    or (`of`) one version and what it came from, back to the first."""
    with opened(store) as registry:
        check_lane(registry, lane)
        entries = registry.history()
        if of is not None:
            chosen = list(registry.lineage(find_version(registry, of)))
        else:
            named = dict.fromkeys(
                e.version for e in entries if e.version and lane in (None, e.lane)
            )
            rest = registry.versions() if lane is None else ()
            chosen = [registry.manifest(version) for version in dict.fromkeys([*named, *rest])]
    served: dict[str, list[Row]] = {}
    for entry in entries:
        if entry.kind in SERVING and entry.version is not None:
            place = {"lane": entry.lane, "time": entry.time, "kind": entry.kind}
            served.setdefault(entry.version, []).append(place)
    return [_version(manifest, served.get(manifest.id, [])) for manifest in chosen]


def _version(manifest: Manifest, served: list[Row]) -> Row:
    facts = manifest.facts
    return {
        "version": manifest.id,
        "parent": facts.parent,
        "updater": facts.provenance.updater,
        "update_class": facts.update_class,
        "seed": facts.provenance.seed,
        "code": facts.code,
        "data": list(facts.provenance.data),
        "span": facts.provenance.span,
        "events": dict(facts.provenance.events),
        "architecture": facts.architecture.factory,
        "footprint": dataclasses.asdict(facts.footprint),
        "bytes": manifest.nbytes,
        "served": served,
    }


def check(store: Path, *, rebuild_index: bool = False) -> Row:
    """Every byte compared with what was written; `ok` is False if anything differs."""
    require_store(store)
    done = rebuild(store) if rebuild_index else []
    findings = verify(store)
    row: Row = {
        "store": str(store),
        "ok": not findings,
        "findings": [{"where": found.where, "what": found.what} for found in findings],
        "done": done,
    }
    if not findings:
        with Registry.open(store) as registry:
            row |= {"versions": len(registry.versions()), "journal": registry.head.count}
            row["head"] = registry.head.hash
    return row


# -- orders ---------------------------------------------------------------------------------------


class Order(NamedTuple):
    """A person's command and its journal entry, None if a running loop will take it up."""

    command: Command
    entry: Entry | None

    def row(self) -> Row:
        return {
            "lane": self.command.lane,
            "kind": self.command.kind,
            "version": self.command.version,
            "because": self.command.because,
            "actor": self.command.actor,
            "journaled": None if self.entry is None else self.entry.seq,
        }


def order(
    store: Path, kind: str, *, lane: str, because: str, actor: str, to: str | None = None
) -> Order:
    """Hold, resume or roll back a lane. A rollback goes to the version before, or to `to`."""
    version: VersionId | None = None
    with opened(store) as registry:
        check_lane(registry, lane)
        if kind == "rollback":
            version = registry.previous(lane) if to is None else find_version(registry, to)
            if version is None:
                raise RegistryError(
                    f"lane {lane!r} has served one version only, so there is none to go back to"
                )
    command = Command(lane=lane, kind=kind, because=because, actor=actor, version=version)
    return Order(command, Registry.order(store, command))
