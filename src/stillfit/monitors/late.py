"""The task's error from late labels, against the level that the version had when it was new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.serial import MeanError, mean_error
from stillfit.core.values import Evidence
from stillfit.monitors.calibrate import Floats, finite, paired


class LateState(NamedTuple):
    """`errors`, `seen`: the newest labelled events in order of time, (k,), k <= window.

    `level`, `level_error`: nominal mean error and its standard error; `reference`: events behind
    it, 0 before `fit`.
    """

    errors: Floats
    seen: Floats
    level: float
    level_error: float
    reference: int


@dataclass(frozen=True, kw_only=True)
class LateMetric:
    """Mean error of the newest `window` labelled events, against the nominal level.

    Raised when `mean - t * error > level + margin`: convinced, at the one-sided `confidence` of
    each look, that the error is worse by more than `margin` (task units) plus `relative` times the
    level. `error` combines the window's (batch means, so serial correlation counts; a step inside
    the window does not) with the level's. `least`: labelled events below which nothing is said.

    A longer window sees smaller changes, later. Looks at overlapping windows repeat themselves;
    for a stated number of false alarms per day use `ErrorCusum`.
    Cost: two FFTs of the window per arrival of labels (~0.1 ms at 2000). Memory: 16 B per event.
    """

    name: str = "late-metric"
    window: int = 1000
    margin: float = 0.0
    relative: float = 0.0
    confidence: float = 0.99
    least: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.window:
            raise ConfigError(
                f"a window of {self.window} events must hold the least of {self.least}"
            )
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"confidence must lie in [0.5, 1), got {self.confidence}")
        if self.margin < 0 or self.relative < 0:
            raise ConfigError(
                f"margins must not be negative, got {self.margin} and {self.relative}"
            )

    def init(self) -> LateState:
        return LateState(np.zeros(0), np.zeros(0), 0.0, 0.0, 0)

    def fit(
        self, errors: NDArray[np.float64], *, rate: float, rng: np.random.Generator
    ) -> LateState:
        nominal = mean_error(finite(errors, "the nominal error"))
        if nominal.n < 2:
            raise DataError(
                f"{nominal.n} nominal events give no level of the error; give the held-out events "
                "on which the version was accepted"
            )
        return LateState(np.zeros(0), np.zeros(0), nominal.value, nominal.error, nominal.n)

    def step(
        self,
        state: LateState,
        time: float,
        seen: NDArray[np.float64],
        errors: NDArray[np.float64],
    ) -> tuple[LateState, Evidence]:
        fresh = finite(errors, "the late error"), finite(seen, "the time of labelled events")
        paired(*fresh)
        new = self._newest(state, *fresh)
        return new, self._judge(new, time)

    def merge(self, a: LateState, b: LateState) -> LateState:
        """The newest events of two nodes that watch one version."""
        if a[2:] != b[2:]:
            raise DataError(
                f"the states to merge have different nominal levels, {a.level:.6g} and "
                f"{b.level:.6g}; calibrate once and send the fitted state to every node"
            )
        return self._newest(a, b.errors, b.seen)

    def _newest(self, state: LateState, errors: Floats, seen: Floats) -> LateState:
        errors = np.concatenate([state.errors, errors])
        seen = np.concatenate([state.seen, seen])
        if np.any(seen[1:] < seen[:-1]):
            order = np.argsort(seen, kind="stable")
            errors, seen = errors[order], seen[order]
        return state._replace(errors=errors[-self.window :], seen=seen[-self.window :])

    def _judge(self, state: LateState, time: float) -> Evidence:
        n = len(state.errors)
        age = time - float(state.seen[-1]) if n else 0.0
        allowed = state.level + self.margin + self.relative * abs(state.level)
        if state.reference == 0 or n < self.least:
            lack = (
                "no nominal level is known yet"
                if state.reference == 0
                else f"{n} labelled events of the {self.least} that it takes"
            )
            return Evidence(
                monitor=self.name, time=time, value=allowed, threshold=allowed, raised=False,
                n=n, because=f"nothing is compared: {lack}", age=age,
            )  # fmt: skip
        change = _change(state.errors - state.level)
        now = _mean(state, change)
        error = float(np.hypot(now.error, state.level_error))
        threshold = allowed + float(special.stdtrit(now.dof, self.confidence)) * error
        raised = now.value > threshold
        because = (
            f"the mean error of the newest {n} labelled events, the last {age:.0f} s old, is "
            f"{now.value:.4g} +- {now.error:.2g}, {'above' if raised else 'not above'} "
            f"{threshold:.4g} (nominal {state.level:.4g} and margin, at {self.confidence:.0%})"
        )
        return Evidence(
            monitor=self.name,
            time=time,
            value=now.value,
            threshold=threshold,
            raised=raised,
            n=n,
            because=because,
            since=float(state.seen[change]) if raised else None,
            age=age,
        )


def _change(excess: Floats) -> int:
    """The first event since which the mean excess over the level is most significant.

    Source: Hinkley 1970, doi:10.1093/biomet/57.1.1, with the level before the change known.
    """
    gain = np.cumsum(excess[::-1]) / np.sqrt(np.arange(1, len(excess) + 1))
    return len(excess) - 1 - int(np.argmax(gain))


def _mean(state: LateState, change: int) -> MeanError:
    """Mean of the window, with the larger of two errors: by the nominal spread, and by the
    window's own about its levels before and since `change`.

    A change inside the window must not count as noise: about one mean it would look like a long
    correlation, and hide itself. Serial correlation that the nominal events lacked does count.
    """
    about = state.errors.copy()
    for part in (slice(None, change), slice(change, None)):
        if len(about[part]):
            about[part] -= about[part].mean()
    own = mean_error(about)
    nominal = state.level_error * np.sqrt(state.reference / len(about))
    return MeanError(
        float(state.errors.mean()), max(own.error, float(nominal)), own.dof, len(about)
    )
