"""How much earlier the retrain flag rose than late labels showed it, from a run's journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from stillfit.apps.summary import Fill, Lead
from stillfit.registry import Entry

# The monitors of the stated uncertainty, by their names in the journal.
FLAGS = ("score-cusum", "score-ks")
# After these the loop forgets all evidence, without an entry that an alarm is over.
FORGETS = ("deploy", "switch", "rollback")


class Alarm(NamedTuple):
    """One alarm of a monitor: from `time` until `end`; `age` of its newest label, None without."""

    monitor: str
    time: float
    end: float
    age: float | None
    because: str


def leads(
    entries: Sequence[Entry], fills: Sequence[Fill], flags: Collection[str] = FLAGS
) -> tuple[Lead, ...]:
    """For every change of condition in a lane: when the flag and when late labels told of it.

    `entries`: the lane's journal, in order. A change lasts from the start of the first fill of a
    condition to that of the next condition. The flag is the first alarm that one of `flags` raises
    in it; late labels tell of it with the first alarm of a monitor with an age whose newest label
    is of an event of the change. An alarm that stood before the change tells nothing about it; it
    is only noted (`stood`).

    Events are counted by the labels that came of them (`performance` entries), evenly over a fill
    or the batch: all events in a season that labels all, else the labelled share of them.
    """
    alarms, count = alarms_of(entries), _Count(entries, fills)
    stretches = [list(group) for _, group in groupby(fills, key=lambda fill: fill.condition)]
    starts = [stretch[0].start for stretch in stretches] + [math.inf]
    found = []
    for stretch, start, end in zip(stretches[1:], starts[1:-1], starts[2:], strict=True):
        flag = _first(alarms, lambda a: a.age is None and a.monitor in flags, start, end)
        late = _first(alarms, lambda a: a.age is not None, start, end)
        found.append(
            Lead(
                fill=stretch[0].fill,
                condition=stretch[0].condition,
                start=start,
                flag=flag.time if flag else None,
                monitor=flag.monitor if flag else None,
                delay=count.between(start, flag.time) if flag else None,
                late=late.time if late else None,
                late_monitor=late.monitor if late else None,
                earlier=count.between(flag.time, late.time) if flag and late else None,
                stood=tuple(sorted({a.monitor for a in alarms if a.time < start < a.end})),
            )
        )
    return tuple(found)


def alarms_of(entries: Sequence[Entry]) -> list[Alarm]:
    """The alarms of a lane's journal, in order, each until it was cleared or forgotten."""
    alarms: list[Alarm] = []
    open_: dict[str, int] = {}
    for entry in entries:
        monitor = str(entry.payload.get("monitor", ""))
        forgets = entry.kind in FORGETS or bool(entry.payload.get("taken_as_is"))
        ended = list(open_) if forgets else [monitor] if entry.kind == "clear" else []
        for name in ended:
            if name in open_:
                place = open_.pop(name)
                alarms[place] = alarms[place]._replace(end=entry.time)
        if entry.kind == "alarm":
            age = entry.payload.get("age")
            known = float(age) if isinstance(age, int | float) else None
            open_[monitor] = len(alarms)
            alarms.append(Alarm(monitor, entry.time, math.inf, known, entry.because))
    return alarms


def _first(
    alarms: Sequence[Alarm], wanted: Callable[[Alarm], bool], start: float, end: float
) -> Alarm | None:
    """The first alarm whose newest event lies between `start` and `end`."""
    return next((a for a in alarms if wanted(a) and start <= a.time - (a.age or 0.0) < end), None)


class _Count:
    """Served events as a function of time, from the batches of labels that came of them."""

    def __init__(self, entries: Sequence[Entry], fills: Sequence[Fill]) -> None:
        told: list[Mapping[str, Any]] = [e.payload for e in entries if e.kind == "performance"]
        starts = {fill.fill: fill.start for fill in fills}
        # The events of a block bear the time of its last one, so a fill begins before its first.
        self.first = np.array([min(p["first"], starts.get(p["fill"], math.inf)) for p in told])
        self.last = np.array([p["last"] for p in told])
        self.n = np.array([p["n"] for p in told])

    def between(self, start: float, end: float) -> int:
        """Events from `start` to `end`, negative where `end` comes first."""
        return self._until(end) - self._until(start)

    def _until(self, time: float) -> int:
        """Events seen by a time, the one seen then included; none yet at the start of a fill."""
        share = np.clip((time - self.first) / np.maximum(self.last - self.first, 1e-9), 0.0, 1.0)
        return round(float(((1 + (self.n - 1) * share) * (time > self.first)).sum()))
