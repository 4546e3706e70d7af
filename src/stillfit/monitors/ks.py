"""Kolmogorov-Smirnov distance of the score's distribution in a sliding window from nominal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.values import Evidence, Served
from stillfit.monitors.calibrate import (
    Floats,
    block_length,
    guaranteed,
    run_length,
    sample_world,
    tail_threshold,
)
from stillfit.monitors.score import event_score, score_name

# Resampled worlds of the calibration and windows drawn from each: 8000 windows in all.
WORLDS, WINDOWS = 20, 400
# Values told apart by the calibration; the distance is off by at most one in so many.
CODES = 4096


class KSState(NamedTuple):
    """n nominal scores, a window of w events.

    `reference`: nominal scores, sorted (n,), empty before `fit`. `threshold`: of the distance.
    `scores`, `times`: rings of the newest events (w,), event k at place k % w. `passed`: events
    ever seen. `distance`: of the last full window. `raised`, `since`: whether the finding stands,
    and the estimated time (s) of the change.
    """

    reference: Floats
    threshold: float
    scores: Floats
    times: Floats
    passed: int
    distance: float
    raised: bool
    since: float


@dataclass(frozen=True, kw_only=True)
class ScoreKS:
    """Two-sample Kolmogorov-Smirnov test of the uncertainty, window against nominal.

    D = sup_x |F_window(x) - F_nominal(x)| of the newest `window` events, looked at every
    `window / slices` events; raised while D exceeds a threshold that is set by run length, so that
    `false_alarms` come per day with probability `guarantee` over the finite nominal sample. A
    p-value per look would not do: looks overlap, repeat themselves, and scores are correlated.

    Unlike a CUSUM it sees any change of the distribution, not of its mean alone, and in both
    directions; a small lasting shift of the mean it finds later. `window`: a longer one sees
    smaller changes, later: D must exceed about 2 / sqrt(window). `output`: a named per-event
    output instead of the predictive's standard deviation.

    Cost: a sort of the window and w log n comparisons per look (~50 us at 500 and 3000, so 1 us
    per event); `fit` 0.2-0.5 s. Memory: 16 B per event of the window, 8 B per nominal event. Not
    mergeable. Sources: Smirnov 1948, doi:10.1214/aoms/1177730256; the sliding form is KSWIN of
    Raab et al. 2020, doi:10.1016/j.neucom.2019.11.111, whose fixed p-value fires without a cause.
    """

    name: str = "score-ks"
    output: str | None = None
    window: int = 500
    slices: int = 8
    false_alarms: float = 0.01
    guarantee: float = 0.95

    def __post_init__(self) -> None:
        if self.slices < 1 or self.window < 20 or self.window < self.slices:
            raise ConfigError(
                f"a window of {self.window} events in {self.slices} slices cannot be compared; "
                "take at least 20 events and one event per slice"
            )
        if not 0 < self.guarantee < 1:
            raise ConfigError(f"guarantee must lie between 0 and 1, got {self.guarantee}")

    @property
    def _stride(self) -> int:
        return self.window // self.slices

    def init(self) -> KSState:
        empty = np.zeros(self.window)
        return KSState(np.zeros(0), 0.0, empty, empty.copy(), 0, 0.0, False, 0.0)

    def fit(
        self, inputs: Arrays, served: Served, *, rate: float, rng: np.random.Generator
    ) -> KSState:
        scores = event_score(served, self.output)
        arl, n = run_length(self.false_alarms, rate), len(scores)
        if n < self.window:
            raise DataError(
                f"{n} nominal events cannot calibrate a window of {self.window}: give at least as "
                "many, better a few windows, or take a shorter window"
            )
        reference = np.sort(scores)
        threshold = self._threshold(scores, reference, arl, rng)
        return self.init()._replace(reference=reference, threshold=threshold)

    def _threshold(
        self, scores: Floats, reference: Floats, arl: float, rng: np.random.Generator
    ) -> float:
        values = np.unique(reference)
        if len(values) < 2:
            raise DataError(
                f"the nominal score is {values[0]:.6g} for all {len(scores)} events: nothing to "
                "compare with; is the model's uncertainty constant?"
            )
        codes = np.searchsorted(values, scores) * min(len(values), CODES) // len(values)
        nominal = np.cumsum(np.bincount(codes, minlength=int(codes.max()) + 1)) / len(scores)
        block, stride = block_length(scores), self._stride
        looks = WINDOWS * self.slices
        length = (looks - 1) * stride + self.window
        limits = []
        for _ in range(WORLDS):
            # A world of which the nominal sample could be a draw, seen with this reference.
            rows = sample_world(len(scores), block, rng).draw(length, rng)
            apart = _distances(codes[rows], nominal, self.window, stride, looks)
            # Squares: exp(-2 w D^2) is the tail of D, so that of D^2 is exponential.
            worst = apart.reshape(WINDOWS, self.slices).max(1) ** 2
            limits.append(tail_threshold(worst, float(looks * stride), arl))
        return min(math.sqrt(guaranteed(limits, self.guarantee)), 1.0)

    def step(
        self,
        state: KSState,
        time: float,
        ids: NDArray[np.int64],
        inputs: Arrays,
        served: Served,
    ) -> tuple[KSState, Evidence]:
        what = score_name(self.output)
        if len(state.reference) == 0:
            because = f"no nominal distribution of {what} is known yet, so nothing is compared"
            return state, self._evidence(state, time, because)
        scores = event_score(served, self.output)
        new = state._replace(scores=state.scores.copy(), times=state.times.copy())
        top, first = 0.0, 0
        while first < len(scores):
            stop = min(
                len(scores), first + self._stride - (new.passed - self.window) % self._stride
            )
            places = np.arange(new.passed, new.passed + stop - first) % self.window
            new.scores[places], new.times[places] = scores[first:stop], time
            new = new._replace(passed=new.passed + stop - first)
            first = stop
            if new.passed >= self.window and (new.passed - self.window) % self._stride == 0:
                new = self._look(new)
                top = max(top, new.distance)
        if new.passed < self.window:
            because = f"the window of {self.window} events is not full yet"
            return new, self._evidence(new, time, because)
        raised = new.raised or top > new.threshold
        shown = new._replace(distance=top if top > 0 else new.distance, raised=raised)
        because = (
            f"the distribution of {what} over {self.window} events is {shown.distance:.3f} away "
            f"from nominal (Kolmogorov-Smirnov), {'above' if raised else 'not above'} "
            f"{new.threshold:.3f} ({self.false_alarms:g} false alarms per day)"
        )
        return new, self._evidence(shown, time, because)

    def _look(self, state: KSState) -> KSState:
        distance = ks_distance(state.scores, state.reference)
        raised = distance > state.threshold
        since = self._since(state) if raised and not state.raised else state.since
        return state._replace(distance=distance, raised=raised, since=since)

    def _since(self, state: KSState) -> float:
        """Start of the newest slices whose distance is most significant: sqrt(k) D_k is largest."""
        order = np.arange(state.passed - self.window, state.passed) % self.window
        best, start = 0.0, 0
        for begin in range(0, self.window - self._stride + 1, self._stride):
            tail = state.scores[order[begin:]]
            weight = math.sqrt(len(tail)) * ks_distance(tail, state.reference)
            if weight > best:
                best, start = weight, begin
        return float(state.times[order[start]])

    def _evidence(self, state: KSState, time: float, because: str) -> Evidence:
        return Evidence(
            monitor=self.name,
            time=time,
            value=state.distance,
            threshold=state.threshold,
            raised=state.raised,
            n=min(state.passed, self.window),
            because=because,
            since=state.since if state.raised else None,
        )


def ks_distance(scores: Floats, reference: Floats) -> float:
    """sup_x |F(x) - G(x)| of a sample (w,) and a sorted reference (n,), exact, ties too.

    Between two values of the sample F stands still while G rises, so the largest distance is at a
    value of the sample or just below it.
    """
    ordered = np.sort(scores)
    below = np.searchsorted(reference, ordered, side="left") / len(reference)
    upto = np.searchsorted(reference, ordered, side="right") / len(reference)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - upto).max(), (below - steps[:-1]).max()))


@numba.njit(cache=True)
def _distances(codes, nominal, window, stride, looks):  # type: ignore[no-untyped-def]
    """Distance of windows a stride apart from nominal, the cumulative shares of its codes."""
    out = np.empty(looks)
    counts = np.zeros(len(nominal))
    for i in range(window):
        counts[codes[i]] += 1.0
    for look in range(looks):
        if look > 0:
            end = window + (look - 1) * stride
            for i in range(end, end + stride):
                counts[codes[i]] += 1.0
                counts[codes[i - window]] -= 1.0
        total, worst = 0.0, 0.0
        for c in range(len(nominal)):
            total += counts[c]
            worst = max(worst, abs(total / window - nominal[c]))
        out[look] = worst
    return out
