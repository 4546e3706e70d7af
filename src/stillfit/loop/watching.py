"""The monitors of a lane: what they have seen, what they find, and what level they are held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.events import Block, Examples
from stillfit.core.state import from_arrays, to_arrays
from stillfit.core.values import Evidence, Served, VersionId
from stillfit.loop.plan import Lane, Plan
from stillfit.loop.shelf import Shelf

Journal = Callable[..., None]


class Watch:
    """The states of a lane's monitors and their newest evidence.

    `unfit`: monitors without a reference. `broken`: parts that have failed and are passed over.
    `journal(kind, now, **payload)` writes an entry.
    """

    def __init__(self, lane: Lane, plan: Plan, shelf: Shelf, journal: Journal) -> None:
        self.lane, self.plan, self.shelf, self.journal = lane, plan, shelf, journal
        self.unfit: list[str] = []
        self.broken: set[str] = set()
        self.evidence: dict[str, Evidence] = {}
        self._watch = [monitor.init() for monitor in lane.watch]
        self._errors = [monitor.init() for monitor in lane.errors]

    @property
    def alarmed(self) -> bool:
        """Whether an alarm stands."""
        return any(found.raised for found in self.evidence.values())

    def forget(self) -> None:
        """Evidence of what is no longer so."""
        self.evidence = {}

    def block(self, block: Block, served: Served) -> None:
        """Let the monitors without labels read a block."""
        for place, monitor in enumerate(self.lane.watch):
            state = self._watch[place]
            found = self.guarded(
                monitor.name,
                block.time,
                monitor.step,
                state,
                block.time,
                block.ids,
                block.inputs,
                served,
            )
            if found is not None:
                self._watch[place] = found[0]
                self.note(found[1], block.time)

    def labels(self, times: NDArray[np.float64], errors: NDArray[np.float64], now: float) -> None:
        """Let the monitors with labels read the errors of events seen at `times`."""
        for place, monitor in enumerate(self.lane.errors):
            state = self._errors[place]
            found = self.guarded(monitor.name, now, monitor.step, state, now, times, errors)
            if found is not None:
                self._errors[place] = found[0]
                self.note(found[1], now)

    def calibrate(
        self,
        version: VersionId,
        examples: Examples,
        judged: Examples,
        why: str,
        number: int,
        now: float,
        only: Collection[str] | None = None,
    ) -> None:
        """Give the monitors a reference: how `version` answers `examples`, errs on `judged`.

        One that cannot be given any says nothing, which beats an old reference. `number` tells
        this occasion from others of the same `why`, for the random numbers.
        """
        occasion = (why, number)
        self.unfit = [name for name in self.lane.monitors if only is None or name in only]
        self._watch = [
            monitor.init() if monitor.name in self.unfit else state
            for monitor, state in zip(self.lane.watch, self._watch, strict=True)
        ]
        self._errors = [
            monitor.init() if monitor.name in self.unfit else state
            for monitor, state in zip(self.lane.errors, self._errors, strict=True)
        ]
        if not len(examples) or not self.unfit:
            return
        served = self.shelf.serve(version, examples.inputs)
        for place, monitor in enumerate(self.lane.watch):
            if monitor.name not in self.unfit:
                continue
            fit = partial(monitor.fit, examples.inputs, served, rate=self.plan.rate)
            fitted = self.guarded(
                monitor.name, now, self._fit, monitor, version, examples, occasion, fit
            )
            if fitted is not None:
                self._watch[place] = fitted
                self._has_reference(monitor.name)
        errors = self.shelf.errors(version, judged)["error"]
        for place, label_monitor in enumerate(self.lane.errors):
            if label_monitor.name not in self.unfit:
                continue
            fit = partial(label_monitor.fit, errors, rate=self.plan.rate)
            fitted = self.guarded(
                label_monitor.name, now, self._fit, label_monitor, version, judged, occasion, fit
            )
            if fitted is not None:
                self._errors[place] = fitted
                self._has_reference(label_monitor.name)

    def _has_reference(self, name: str) -> None:
        self.unfit.remove(name)
        self.broken.discard(name)

    def _fit(
        self,
        monitor: Any,
        version: VersionId,
        examples: Examples,
        occasion: tuple[str, int],
        fit: Callable[..., Any],
    ) -> Any:
        """One reference for all lanes that have the same monitor, version and events.

        The generator is not the lane's own, so rivals are watched by equal thresholds.
        """
        rng = self.plan.seeds.rng("monitor", *occasion, monitor.name)
        key = (repr(monitor), version, *occasion)
        return self.shelf.fitted(key, examples, lambda: fit(rng=rng))

    def guarded(
        self,
        name: str,
        now: float,
        step: Callable[..., Any],
        *args: Any,
        kind: str = "monitor",
        **knobs: Any,
    ) -> Any:
        """A part that fails is journaled once and never stops serving or causes a change."""
        try:
            return step(*args, **knobs)
        except Exception as error:  # noqa: BLE001  (whatever a part does, serving goes on)
            self.evidence.pop(name, None)
            if name not in self.broken:
                self.broken.add(name)
                because = f"{name} failed and is passed over: {type(error).__name__}: {error}"
                self.journal(f"{kind}-failed", now, because=because)
            return None

    def note(self, found: Evidence, now: float) -> None:
        """Keep the newest evidence; journal when an alarm rises or ends.

        While an alarm stands, what it is about began no later than was first said: a window that
        slides on forgets the beginning, and would leave ever the same few events to learn from.
        """
        before = self.evidence.get(found.monitor)
        if found.raised and before is not None and before.raised and before.since is not None:
            since = before.since if found.since is None else min(found.since, before.since)
            found = dataclasses.replace(found, since=since)
        self.evidence[found.monitor] = found
        if found.raised != (before is not None and before.raised):
            kind = "alarm" if found.raised else "clear"
            self.journal(kind, now, because=found.because, monitor=found.monitor,
                          value=found.value, threshold=found.threshold, n=found.n,
                          since=found.since, age=found.age)  # fmt: skip

    def to_state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Everything as a JSON document and named arrays."""
        document = {
            "unfit": self.unfit,
            "broken": sorted(self.broken),
            "evidence": [dataclasses.asdict(found) for found in self.evidence.values()],
        }
        return document, to_arrays({"watch": tuple(self._watch), "errors": tuple(self._errors)})

    def from_state(self, state: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Take over a stored state."""
        self.unfit = list(state["unfit"])
        self.broken = set(state["broken"])
        self.evidence = {found["monitor"]: Evidence(**found) for found in state["evidence"]}
        shape = {"watch": tuple(self._watch), "errors": tuple(self._errors)}
        monitors = from_arrays(shape, arrays)
        self._watch, self._errors = list(monitors["watch"]), list(monitors["errors"])
