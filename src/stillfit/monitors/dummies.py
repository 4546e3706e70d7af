"""Detectors that look at nothing: what every evaluation of a detector must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays
from stillfit.core.errors import ConfigError
from stillfit.core.values import Evidence, Served
from stillfit.monitors.calibrate import run_length


class CountState(NamedTuple):
    """`every`: events between two alarms, 0 before `fit`; `passed`: events seen since."""

    every: int = 0
    passed: int = 0


@dataclass(frozen=True, kw_only=True)
class Never:
    """Never raises an alarm: right all the time while nothing changes, and of no use."""

    name: str = "never"

    def init(self) -> CountState:
        return CountState()

    def fit(
        self, inputs: Arrays, served: Served, *, rate: float, rng: np.random.Generator
    ) -> CountState:
        return CountState()

    def step(
        self,
        state: CountState,
        time: float,
        ids: NDArray[np.int64],
        inputs: Arrays,
        served: Served,
    ) -> tuple[CountState, Evidence]:
        new = state._replace(passed=state.passed + len(ids))
        because = "this dummy never raises an alarm"
        return new, _evidence(self.name, time, new, False, because)


@dataclass(frozen=True, kw_only=True)
class EveryKth:
    """Raises an alarm with every k-th event, whatever it holds: found everything, knew nothing.

    `every`: k; 0 takes the run length of `false_alarms` per day, so that the dummy spends the same
    budget of false alarms as a detector. The alarm stands for one step. After a change it comes
    after k / 2 events on average: a detector that needs longer has found nothing.
    """

    every: int = 0
    false_alarms: float = 0.01
    name: str = "every-kth"

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(
                f"every must be a number of events, or 0 for the run length, got {self.every}"
            )

    def init(self) -> CountState:
        return CountState()

    def fit(
        self, inputs: Arrays, served: Served, *, rate: float, rng: np.random.Generator
    ) -> CountState:
        return CountState(self.every or max(1, round(run_length(self.false_alarms, rate))))

    def step(
        self,
        state: CountState,
        time: float,
        ids: NDArray[np.int64],
        inputs: Arrays,
        served: Served,
    ) -> tuple[CountState, Evidence]:
        if state.every == 0:
            because = "the dummy does not know yet how often to raise an alarm"
            return state, _evidence(self.name, time, state, False, because)
        new = state._replace(passed=state.passed + len(ids))
        raised = new.passed // state.every > state.passed // state.every
        because = f"this dummy raises an alarm every {state.every} events, whatever they hold"
        return new, _evidence(self.name, time, new, raised, because)


def _evidence(name: str, time: float, state: CountState, raised: bool, because: str) -> Evidence:
    count = state.passed % state.every if state.every else 0
    return Evidence(
        monitor=name,
        time=time,
        value=float(state.every if raised else count),
        threshold=float(state.every or 1),
        raised=raised,
        n=state.passed,
        because=because,
    )
