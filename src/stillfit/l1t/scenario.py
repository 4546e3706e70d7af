"""Scenarios: a time line of conditions over the fills of a season, in a strict TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stillfit.core.errors import ConfigError
from stillfit.core.tables import build, did_you_mean, read_toml
from stillfit.l1t.conditions import Conditions, conditions

SCENARIOS = Path(__file__).parent / "data" / "scenarios"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of the detector, from fill `first` to fill `last` (None: to the end).

    `name` becomes part of the name of the condition; without one it is a slow drift under the
    surface, and the interval of validity keeps its name. `knobs`: fields of `Conditions`.
    `ramp`: fields that go linearly from `[start, end]` over the fills of the change.
    """

    first: int
    last: int | None = None
    name: str = ""
    why: str = ""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    ramp: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.first < 1 or (self.last is not None and self.last < self.first):
            raise ConfigError(
                f"change {self.name!r} runs from fill {self.first} to {self.last}; fills count "
                "from 1, and the last must not come before the first"
            )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A season: how many fills, of what, and what changes when.

    `fills`: number of fills; `events` recorded of each, in blocks of `block`. `years`: real fills
    of these years give durations and gaps; none: drawn from their distributions. `levelled`:
    constant pile-up as at HL-LHC, at the pile-up of the conditions; else the decay of real fills
    is scaled to it. `longest`: hours after which the operators dump a fill. `label_delay`:
    fills until offline labels of a fill are there.
    `label_fraction`: share of events that get a label. `shared_misalignment`: share of the
    detector's z shift that the offline labels have too (0: aligned offline). `resumes`: fills
    after which the shift crew lifts a HOLD, which in life is a person's command.
    """

    title: str
    fills: int = 16
    events: int = 3000
    block: int = 500
    first_fill: int = 1
    years: tuple[int, ...] = ()
    levelled: bool = True
    longest: float = 10.0
    label_delay: int = 1
    label_fraction: float = 1.0
    label_noise: float = 0.005
    shared_misalignment: float = 0.0
    resumes: tuple[int, ...] = ()
    seed: int = 1
    nominal: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        for name in ("fills", "events", "block", "label_delay"):
            if getattr(self, name) < (0 if name == "label_delay" else 1):
                raise ConfigError(f"{name} = {getattr(self, name)} of the scenario is too small")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction = {self.label_fraction} must be in (0, 1]")
        for fill in range(1, self.fills + 1):
            self.at(fill)  # every knob is checked before anything starts

    def at(self, fill: int) -> tuple[str, Conditions]:
        """Name of the interval of validity and conditions of a fill (counted from 1)."""
        table: dict[str, Any] = dict(self.nominal)
        names: list[str] = []
        for change in self.changes:
            last = self.fills if change.last is None else change.last
            if not change.first <= fill <= last:
                continue
            table.update(change.knobs)
            part = (fill - change.first) / max(last - change.first, 1)
            table.update({k: a + (b - a) * part for k, (a, b) in change.ramp.items()})
            if change.name and change.name not in names:
                names.append(change.name)
        return "+".join(names) or "nominal", conditions(table, f"fill {fill} of the scenario")


def names() -> tuple[str, ...]:
    """The scenarios that come with the package."""
    return tuple(sorted(path.stem for path in SCENARIOS.glob("*.toml")))


def load(which: str | Path) -> Scenario:
    """A scenario by the name of a shipped one, or from a TOML file; strict."""
    path = Path(which)
    if path.suffix != ".toml":
        if str(which) not in names():
            raise ConfigError(
                f"there is no scenario {str(which)!r}{did_you_mean(str(which), names())}"
            )
        path = SCENARIOS / f"{which}.toml"
    table = read_toml(path)
    scenario = build(Scenario, table, f"scenario {path.name}")
    _check_knobs(scenario, path)
    return scenario


def _check_knobs(scenario: Scenario, path: Path) -> None:
    known = [part.name for part in fields(Conditions)]
    for change in scenario.changes:
        for knob in (*change.knobs, *change.ramp):
            if knob not in known:
                raise ConfigError(
                    f"{path.name}: change {change.name!r} has an unknown knob {knob!r}"
                    f"{did_you_mean(knob, known)}"
                )
