"""What a run is made of: lanes side by side on one stream, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from stillfit.core.arrays import names_of
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Equality, Footprint
from stillfit.decisions.gates import BetterOnNew, Gate, NotWorseOnOld, WithinBudget
from stillfit.decisions.ladder import Ladder
from stillfit.decisions.policies import OnMetric, Policy
from stillfit.decisions.probation import Probation
from stillfit.decisions.windows import Always, Window
from stillfit.models.model import Factory, Model
from stillfit.monitors.contract import LabelMonitor, UnlabelledMonitor
from stillfit.streams.store import Keeping
from stillfit.updaters.contract import Updater


@dataclass(frozen=True, kw_only=True)
class Redeploy:
    """The cheapest rung: a stored version that served before, if an old condition is back.

    Of all versions that served in the lane, the one with the lowest mean error on the fresh
    training rows becomes the candidate, and faces the same gates and windows as any other.
    """


Rung: TypeAlias = Updater | Redeploy


class Chip(Protocol):
    """What tells of a version as a circuit; `l1t.chip` has those of the vertex chain.

    What it raises is the refusal of a candidate, never a fault of what serves.
    """

    def footprint(self, model: Model) -> Footprint:
        """What the circuit of a model needs on the device."""
        ...

    def equality(self, model: Model, examples: Examples) -> Equality | None:
        """Whether the circuit answers `examples` as the model does; None: not looked at."""
        ...

    def promoted(self, model: Model) -> Footprint | None:
        """What slower tools say of a version that begins to serve; None: they are not asked.

        It is journaled and changes nothing, whatever comes of it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One deployment of a run: who asks for changes, what may be tried, who allows it.

    `rungs`: ways to a candidate by name, cheapest first; none: the lane is frozen. `watch` reads
    blocks, `errors` reads late labels; the policy sees the newest evidence of both. `fresh`:
    at most so many of the newest labelled events stand for the present condition, `judged`: at
    most so many held-out events per condition are judged on. `tries`: requests that may fail in
    one condition before its level is taken for what can be had, so that only what is worse than
    that raises an alarm. Requests that came too early, with too few labels for a rung or a gate,
    do not count; after a failed one, half as many labels as it read must come before the next.
    `chip`: what measures versions as circuits, for the gates of the device and for their records.
    """

    name: str
    model: Model
    title: str = ""
    rungs: Mapping[str, Rung] = field(default_factory=dict)
    policy: Policy = field(default_factory=OnMetric)
    gates: tuple[Gate, ...] = (BetterOnNew(), NotWorseOnOld(), WithinBudget())
    probation: Probation = field(default_factory=Probation)
    watch: tuple[UnlabelledMonitor[Any], ...] = ()
    errors: tuple[LabelMonitor[Any], ...] = ()
    budget: Budget = field(default_factory=Budget)
    chip: Chip | None = None
    fresh: int = 4000
    judged: int = 2000
    tries: int = 2

    def __post_init__(self) -> None:
        names = [*self.monitors, self.policy.name, *self.rungs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(
                f"lane {self.name!r} has several parts named {names_of(twice)}; give each monitor, "
                "policy and rung a name of its own, by which the journal knows it"
            )
        for name in self.rungs:
            if "/" in name:
                raise ConfigError(f"a rung cannot be named {name!r}: '/' divides names in files")
        if self.fresh < 1 or self.judged < 1 or self.tries < 1:
            raise ConfigError(
                f"fresh, judged and tries must be at least 1, got {self.fresh}, {self.judged} and "
                f"{self.tries}"
            )

    @property
    def monitors(self) -> list[str]:
        """Names of all monitors."""
        return [m.name for m in self.watch] + [m.name for m in self.errors]

    @property
    def ladder(self) -> Ladder | None:
        """The order of the rungs, None for a frozen lane."""
        return Ladder(rungs=tuple(self.rungs)) if self.rungs else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole run: its lanes, and what they share.

    `nominal`: labelled events on which the first versions were accepted; they calibrate the
    monitors and begin the labelled store. `factories`: the network factories that may be built,
    by name. `rate`: events per day of the stream, which turns false alarms per day into
    thresholds. `start`: time (s) at which the first versions begin to serve. `pending_bytes`:
    events that may wait for labels. `checkpoint`: stream events between checkpoints, up to twice
    as many where that makes them smaller (see `House.due`); with more of them a checkpoint costs
    less time, with fewer less is done again after a kill.
    """

    lanes: tuple[Lane, ...]
    nominal: Examples
    keeping: Keeping
    factories: Mapping[str, Factory]
    seeds: Seeds
    rate: float
    start: float = 0.0
    window: Window = field(default_factory=Always)
    pending_bytes: int = 512 * 2**20
    checkpoint: int = 256
    run: str = "run"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [lane.name for lane in self.lanes]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a run needs lanes of different names, got {names}")
        if not self.rate > 0 or self.checkpoint < 1:
            raise ConfigError(
                f"rate (events per day) and checkpoint must be positive, got {self.rate} and "
                f"{self.checkpoint}"
            )
        if not len(self.nominal):
            raise ConfigError(
                "a run needs nominal labelled events, on which the monitors are calibrated"
            )
