"""The bench on which retrain flags are tried: calibrated, watched, and then something changes.

Every seed has a network, a nominal stretch and events of its own. Detectors are calibrated on the
first nominal fills, watched for false alarms on the others, and meet each change from the state in
which that leaves them: so the onset is known, and all detectors see the same events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays, concat, take
from stillfit.core.clock import DAY
from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Categorical, Predictive
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean
from stillfit.core.values import Served, VersionId
from stillfit.l1t import scenario as scenarios_of
from stillfit.l1t.library import Library
from stillfit.l1t.scenario import Change, Scenario
from stillfit.l1t.season import Season
from stillfit.models.model import Model, join
from stillfit.monitors import (
    ConformalMartingale,
    CountState,
    ErrorCusum,
    EveryKth,
    InputDrift,
    LabelMonitor,
    LateMetric,
    Never,
    ScoreCusum,
    ScoreKS,
    UnlabelledMonitor,
)
from stillfit.studies.initial import first_model
from stillfit.studies.season import WATCHED

Row: TypeAlias = dict[str, Any]
Floats: TypeAlias = NDArray[np.float64]

# Beside the shipped ones: a condition that has a knob but no season of its own.
FAKES = Scenario(
    title="Fakes: two more of good quality for every nominal one",
    fills=10,
    changes=(Change(name="fakes", first=5, knobs={"good_fakes": 2.0}),),
)
STEP = 50  # events between two looks of a detector: the resolution of a delay
KINDS = {
    "score-cusum": "score",
    "score-ks": "score",
    "conformal-martingale": "late labels",
    "error-cusum": "late labels",
    "late-metric": "late labels",
    "input-drift": "inputs",
    "never": "dummy",
    "every-kth": "dummy",
    "every-fill": "dummy",
}
# What "late labels would show it" means: the first of the error monitors of a season's lanes.
LATE = ("error-cusum", "late-metric")
SERVING = VersionId("0" * 64)


class Onset(NamedTuple):
    """A change of a scenario: from fill `first` to `last` of it, both counted from 1."""

    scenario: str
    change: str
    first: int
    last: int

    @property
    def label(self) -> str:
        same = self.change in ("", self.scenario)
        return self.scenario if same else f"{self.scenario}: {self.change}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is asked of the detectors, and on how much they are judged.

    `events`: per fill; late labels come one fill later, so their delay scales with it.
    `false_alarms`: per day, of every detector with a calibrated threshold. `calibration`,
    `watched`: nominal fills to calibrate on and to count false alarms on. `horizon`: fills of a
    change that are looked at, at most; slow ramps are followed to their end. `network`,
    `training`: kind of the first network, and the events that it is trained on.
    """

    events: int = 1000
    false_alarms: float = 0.1
    calibration: int = 4
    watched: int = 12
    horizon: int = 6
    network: str = "e2e"
    training: int = 16_000

    def __post_init__(self) -> None:
        if self.events < 4 * STEP or min(self.calibration, self.watched, self.horizon) < 1:
            raise ConfigError(
                f"fills of {self.events} events, {self.calibration} to calibrate on, "
                f"{self.watched} to watch and {self.horizon} of a change are too few: take at "
                f"least {4 * STEP} events and one fill of each"
            )


def scenario_named(name: str) -> Scenario:
    """A shipped scenario, a TOML file, or `fakes`."""
    if name == "fakes":
        return FAKES
    if not name.endswith(".toml") and name not in scenarios_of.names():
        known = (*scenarios_of.names(), "fakes")
        raise ConfigError(f"there is no scenario {name!r}{did_you_mean(name, known)}")
    return scenarios_of.load(name)


def onsets_of(name: str) -> list[Onset]:
    """The changes of a scenario in order: those with a name, or, without any, its slow drifts.

    A drift under the surface of a season with named changes has no onset that could be told.
    """
    scenario = scenario_named(name)
    named = [change for change in scenario.changes if change.name] or list(scenario.changes)
    last = scenario.fills
    return [Onset(name, change.name, change.first, change.last or last) for change in named]


class Stretch(NamedTuple):
    """Events as they were served, in order of time: `errors`, `times` (n,)."""

    inputs: Arrays
    served: Served
    errors: Floats
    times: Floats

    def __len__(self) -> int:
        return len(self.errors)


class Found(NamedTuple):
    """`delay`: events served from the onset to the alarm, `needed`: events that it read."""

    delay: int
    needed: int


class Bench:
    """One seed: its network, its nominal fills, and the detectors that were calibrated on them."""

    def __init__(self, setting: Setting, seed: int, library: Library, cache: Path | None) -> None:
        self.setting, self.seed, self.library = setting, seed, library
        self.seeds = Seeds(seed)
        self.model: Model = first_model(
            setting.network,
            library=library,
            seed=seed,
            events=setting.training,
            cache=cache,
            tell=lambda events: None,
        )
        allowed = setting.false_alarms
        self.watch: tuple[UnlabelledMonitor[Any], ...] = (
            ScoreCusum(false_alarms=allowed),
            ScoreKS(false_alarms=allowed, window=min(500, setting.events)),
            InputDrift(false_alarms=allowed, columns=WATCHED, window=setting.events),
        )
        self.late: tuple[LabelMonitor[Any], ...] = (
            ConformalMartingale(false_alarms=allowed),
            ErrorCusum(false_alarms=allowed),
            LateMetric(window=setting.events, margin=0.005),
        )
        self.dummies: tuple[UnlabelledMonitor[Any], ...] = (
            Never(),
            EveryKth(false_alarms=allowed),
            EveryKth(every=setting.events, name="every-fill"),
        )

    @cached_property
    def season(self) -> Season:
        """Nominal fills of the same kind as those of the scenarios."""
        setting = self.setting
        fills = setting.calibration + setting.watched
        return self._season(Scenario(title="nominal", fills=fills), "nominal")

    def _season(self, scenario: Scenario, name: str) -> Season:
        events = self.setting.events
        made = replace(
            scenario,
            events=events,
            block=min(500, events),
            seed=self.seeds.integer("flag", name) % 2**31,
        )
        return Season(made, self.library)

    @property
    def rate(self) -> float:
        """Events a day."""
        season = self.season
        days = season.fills[-1].next_start / DAY
        return season.scenario.fills * season.scenario.events / days

    @property
    def arl(self) -> float:
        return self.rate / self.setting.false_alarms

    def blocks(self, season: Season, fill: int, later: float = 0.0) -> Iterator[Stretch]:
        """The blocks of a fill as the network serves them, `later` seconds than they were."""
        beams, first = season.fills[fill - 1], 0
        for number in range(season.blocks):
            block, targets = season.block(fill, number)
            predictive, outputs = self.model.predict(block.inputs)
            errors = self.model.task.errors(predictive, outputs, targets)["error"]
            inside = (first + np.arange(len(block))) / season.scenario.events
            times = later + beams.start + beams.duration * inside
            first += len(block)
            yield Stretch(block.inputs, Served(SERVING, predictive, outputs), errors, times)

    @cached_property
    def fitted(self) -> dict[str, Any]:
        """States of all detectors, calibrated on the first nominal fills."""
        parts = [
            part
            for fill in range(1, self.setting.calibration + 1)
            for part in self.blocks(self.season, fill)
        ]
        joined = _joined(parts)
        states: dict[str, Any] = {}
        for monitor in (*self.watch, *self.dummies):
            rng = self.seeds.rng("flag", "fit", monitor.name)
            states[monitor.name] = monitor.fit(
                joined.inputs, joined.served, rate=self.rate, rng=rng
            )
        for label_monitor in self.late:
            rng = self.seeds.rng("flag", "fit", label_monitor.name)
            states[label_monitor.name] = label_monitor.fit(joined.errors, rate=self.rate, rng=rng)
        return states

    @cached_property
    def watched(self) -> tuple[dict[str, Any], dict[str, int], float, float]:
        """States after the watched nominal fills, false alarms of each detector on them, and the
        mean error and median sigma there.

        A detector whose alarm stands at the end begins each change as it was calibrated: the alarm
        counts as a false one, and must not count as a success.
        """
        states, alarms = dict(self.fitted), dict.fromkeys(KINDS, 0)
        standing = dict.fromkeys(KINDS, False)
        errors, sigmas = [], []
        first = self.setting.calibration + 1
        for fill in range(first, first + self.setting.watched):
            for part in self.blocks(self.season, fill):
                errors.append(part.errors)
                sigmas.append(part.served.predictive.std)
                for monitor in (*self.watch, *self.dummies):
                    for piece in _pieces(part):
                        found = self._look(monitor, states, piece)
                        alarms[monitor.name] += found and not standing[monitor.name]
                        standing[monitor.name] = found
                for late in self.late:
                    found = self._read(late, states, part)
                    alarms[late.name] += found and not standing[late.name]
                    standing[late.name] = found
        for name, stands in standing.items():
            if stands:
                states[name] = self.fitted[name]
        mean = float(np.concatenate(errors).mean())
        return states, alarms, mean, float(np.median(np.concatenate(sigmas)))

    def _look(self, monitor: UnlabelledMonitor[Any], states: dict[str, Any], part: Stretch) -> bool:
        ids, now = np.arange(len(part), dtype=np.int64), float(part.times[-1])
        state = states[monitor.name]
        states[monitor.name], found = monitor.step(state, now, ids, part.inputs, part.served)
        return found.raised

    def _read(self, monitor: LabelMonitor[Any], states: dict[str, Any], part: Stretch) -> bool:
        state, now = states[monitor.name], float(part.times[-1])
        states[monitor.name], found = monitor.step(state, now, part.times, part.errors)
        return found.raised

    def nominal_rows(self) -> list[Row]:
        """False alarms of every detector."""
        events = self.setting.watched * self.setting.events
        _, alarms, error, sigma = self.watched
        rows = []
        for name, count in alarms.items():
            asked = _asked(name, self.setting, events / self.arl)
            row = self._row(name, "nominal", "", "nominal")
            row |= {"events": events, "alarms": count, "asked": asked}
            rows.append(row | {"error_nominal": error, "sigma_nominal": sigma})
        return rows

    def change_rows(self, onset: Onset) -> list[Row]:
        """Delay of every detector after one change."""
        scenario = scenario_named(onset.scenario)
        slow = any(change.ramp and not change.name for change in scenario.changes)
        whole = slow and not onset.change
        last = onset.last if whole else min(onset.last, onset.first + self.setting.horizon - 1)
        season = self._season(scenario, f"{onset.scenario}/{onset.change}")
        ground, _, error, sigma = self.watched
        states = dict(ground)
        for dummy in self.dummies:
            # A clock that knows nothing stands anywhere when things change.
            states[dummy.name] = self._turned(dummy, onset)
        found, changed = self._meet(season, range(onset.first, last + 1), states)
        label_delay, size = season.scenario.label_delay, self.setting.events
        horizon = (last - onset.first + 1) * size
        known = [found[name].delay for name in LATE if name in found]
        late = min(known, default=None)
        rows = []
        for name in KINDS:
            delay = found[name].delay if name in found else None
            row = self._row(name, onset.scenario, onset.change, onset.label)
            row |= {
                "horizon": horizon + label_delay * size * (KINDS[name] == "late labels"),
                "delay": delay,
                "needed": found[name].needed if name in found else None,
                "late": late,
                "earlier": None if delay is None or late is None else late - delay,
                "error_nominal": error,
                "sigma_nominal": sigma,
                "error_changed": float(np.mean([e for e, _ in changed])),
                "sigma_changed": float(np.median([s for _, s in changed])),
            }
            rows.append(row)
        return rows

    def _turned(self, dummy: UnlabelledMonitor[Any], onset: Onset) -> CountState:
        state: CountState = self.fitted[dummy.name]
        if isinstance(dummy, EveryKth):
            rng = self.seeds.rng("flag", "phase", onset.label, dummy.name)
            return state._replace(passed=int(rng.integers(state.every)))
        return state

    def _meet(
        self, season: Season, fills: range, states: dict[str, Any]
    ) -> tuple[dict[str, Found], list[tuple[float, float]]]:
        """First alarm of each detector in the fills of a change, and (mean error, median sigma) of
        every block that was looked at. Ends early where all but dummies have found it."""
        found: dict[str, Found] = {}
        changed: list[tuple[float, float]] = []
        size, label_delay = self.setting.events, season.scenario.label_delay
        open_watch, open_late = list(self.watch), list(self.late)
        # The change follows the watched nominal fills.
        later = self.season.fills[-1].next_start - season.fills[fills[0] - 1].start
        for place, fill in enumerate(fills):
            if not open_watch and not open_late:
                break
            first = place * size
            for part in self.blocks(season, fill, later):
                sigma = float(np.median(part.served.predictive.std))
                changed.append((float(part.errors.mean()), sigma))
                for monitor in list(open_watch):
                    for step, piece in enumerate(_pieces(part)):
                        if self._look(monitor, states, piece):
                            events = min(first + (step + 1) * STEP, first + len(part))
                            found[monitor.name] = Found(events, events)
                            open_watch.remove(monitor)
                            break
                # The labels of this fill come a fill later, all at once; all but the late metric
                # find in them what they would have found one by one.
                for late in list(open_late):
                    pieces = [part] if isinstance(late, LateMetric) else _pieces(part)
                    for step, piece in enumerate(pieces):
                        if self._read(late, states, piece):
                            events = first + (len(part) if len(pieces) == 1 else (step + 1) * STEP)
                            arrived = (place + 1 + label_delay) * size
                            found[late.name] = Found(arrived, min(events, first + len(part)))
                            open_late.remove(late)
                            break
                first += len(part)
        total = len(fills) * size
        for dummy in self.dummies:
            if isinstance(dummy, EveryKth):
                state = states[dummy.name]
                until = state.every - state.passed % state.every
                if until <= total:
                    found[dummy.name] = Found(until, until)
        return found, changed

    def _row(self, detector: str, scenario: str, change: str, label: str) -> Row:
        return {
            "seed": self.seed,
            "scenario": scenario,
            "change": change,
            "label": label,
            "detector": detector,
            "kind": KINDS[detector],
            "fill_events": self.setting.events,
            "arl": self.arl,
        }


def _pieces(part: Stretch) -> list[Stretch]:
    """A block in steps of `STEP` events."""
    pieces = []
    for first in range(0, len(part), STEP):
        rows = slice(first, min(first + STEP, len(part)))
        predictive: Predictive | Categorical = part.served.predictive.take(rows)
        served = Served(SERVING, predictive, take(part.served.outputs, rows))
        pieces.append(Stretch(take(part.inputs, rows), served, part.errors[rows], part.times[rows]))
    return pieces


def _joined(parts: Sequence[Stretch]) -> Stretch:
    served = Served(
        SERVING,
        join([part.served.predictive for part in parts]),
        concat([part.served.outputs for part in parts]),
    )
    return Stretch(
        concat([part.inputs for part in parts]),
        served,
        np.concatenate([part.errors for part in parts]),
        np.concatenate([part.times for part in parts]),
    )


def _asked(detector: str, setting: Setting, budget: float) -> float | None:
    """False alarms that a detector was allowed; None where its threshold is not set by them."""
    if detector == "late-metric":
        return None
    return {"never": 0.0, "every-fill": float(setting.watched)}.get(detector, budget)
