"""Conformal calibrators that learn on from late labels, so that coverage holds under drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Floats, Predictive, QuantileTable
from stillfit.uncertainty.calibrators.contract import Interval
from stillfit.uncertainty.calibrators.nonconformity import (
    COVERAGES,
    Kind,
    known_coverages,
    known_kind,
    nonconformity,
    place_of,
    score_rows,
    table,
    within,
)
from stillfit.uncertainty.calibrators.tracking import track
from stillfit.uncertainty.checks import ROUNDING, coverage_asked, enough, rows_needed


class AciState(NamedTuple):
    """`scores`: the newest, in order of time, (score rows, n <= window + late).

    `misses`: the miscoverage that each expert asks of the window now, (coverages, steps); nominal
    is 1 - coverage. `weights`: of the experts, (coverages, steps), sum 1 along the steps.
    """

    scores: Floats
    misses: Floats
    weights: Floats


@dataclass(frozen=True, kw_only=True)
class ACI:
    """Adaptive conformal inference: quantiles of a sliding window, whose level learns from misses.

    An interval holds the truths whose score is at most the ceil((n + 1)(1 - a))-th smallest of the
    newest n <= `window` scores. After each labelled row, a <- a + step (1 - coverage - miss), miss
    being 1 where the interval would not have held it: misses widen, hits narrow. So the share of
    misses is right in the long run for *any* sequence, by feedback, not by exchangeability.

    - `steps`: more than one mixes experts, one for each step, weighted by their pinball loss over
      about `span` rows (DtACI): no step need be chosen. A larger step follows faster and its
      intervals are restless, std(a) ~ sqrt(step coverage (1 - coverage) / 2); 0 is plain split
      conformal on the window.
    - `window`: longer is steadier; older scores are less like the present ones.
    - `late`: rows by which labels are usually late. Each labelled row is then compared with the
      window as it was so many rows before, as when it was served, so that a learns what the delay
      costs under a steady drift, and makes up for it; 0 leaves that loss uncorrected.
    - `score`: see `nonconformity`. `coverages`: each has its own a, so only these can be asked for.
    - `unbounded`: False keeps a in [1 / (n + 1), n / (n + 1)], so the widest interval is that of
      the largest score in the window; True follows the paper to infinite and empty intervals, and
      only then its bound holds: after T rows the share of misses is within
      (max(a_1, 1 - a_1) + step) / (step T) of that asked for.

    `fit` takes the rows in order of time and leaves a at its nominal value.
    Cost: ~1 us per labelled row at a window of 1000, ~5 us at 10 000 (a sorted insert), and one
    sort of the window per call. Memory: 8 B per row of `window` + `late`.

    Sources: Gibbs and Candes 2021, arXiv:2106.00170; 2024, arXiv:2208.08401 (mixture of steps).
    """

    steps: tuple[float, ...] = (0.005,)
    window: int = 1000
    late: int = 0
    score: Kind = "normalised"
    coverages: tuple[float, ...] = COVERAGES
    span: int = 500
    unbounded: bool = False

    def __post_init__(self) -> None:
        known_kind(self.score)
        known_coverages(self.coverages)
        if not self.steps or not all(0 <= step < 1 for step in self.steps):
            raise ConfigError(f"steps must be one or more numbers in [0, 1), got {self.steps}")
        if self.window < rows_needed(self.coverages[-1]):
            raise ConfigError(
                f"a window of {self.window} rows cannot give {100 * self.coverages[-1]:.6g} % "
                f"coverage: it must hold {rows_needed(self.coverages[-1])} or more"
            )
        if self.late < 0:
            raise ConfigError(f"late must be 0 rows or more, got {self.late}")
        if self.span < 2:
            raise ConfigError(f"span must be 2 rows or more, got {self.span}")

    def init(self) -> AciState:
        shape = len(self.coverages), len(self.steps)
        nominal = 1 - np.asarray(self.coverages)[:, None]
        return AciState(
            np.zeros((score_rows(self.score, self.coverages), 0)),
            np.repeat(nominal, shape[1], axis=1),
            np.full(shape, 1 / shape[1]),
        )

    def fit(self, predictive: Predictive, y: ArrayLike) -> AciState:
        scores = nonconformity(self.score, predictive, y, self.coverages)
        enough(scores.shape[1], self.coverages[-1])
        return self.init()._replace(scores=scores[:, -self.window - self.late :])

    def update(self, state: AciState, predictive: Predictive, y: ArrayLike) -> AciState:
        """Rows in order of time. While the window is too short for a coverage, its a waits."""
        if not len(predictive) and not np.size(y):
            return state
        fresh = nonconformity(self.score, predictive, y, self.coverages)
        misses, weights = state.misses.copy(), state.weights.copy()
        joined = np.concatenate([state.scores, fresh], axis=1)
        shares = np.asarray(self.coverages)
        track(
            joined,
            fresh.shape[1],
            self.window,
            self.late,
            1 - shares,
            np.array([rows_needed(coverage) for coverage in self.coverages]),
            np.asarray(self.steps),
            self._haste(1 - shares),
            1 / (2 * self.span),
            self.unbounded,
            misses,
            weights,
        )
        return AciState(joined[:, -self.window - self.late :].copy(), misses, weights)

    def _haste(self, nominal: Floats) -> Floats:
        """Learning rate of the weights for each coverage, arXiv:2208.08401."""
        size = math.log(len(self.steps) * self.span) + 2
        risk = (1 - nominal) ** 2 * nominal**3 + nominal**2 * (1 - nominal) ** 3
        return np.asarray(np.sqrt(3 / self.span * size / risk))

    def interval(self, state: AciState, predictive: Predictive, coverage: float) -> Interval:
        place = place_of(coverage, self.coverages)
        scores = state.scores[place if self.score == "quantile" else 0]
        scores = np.sort(scores[-self.window :])
        n = len(scores)
        enough(n, coverage)
        asked = float(state.misses[place] @ state.weights[place])
        rank = math.ceil((n + 1) * (1 - asked) - ROUNDING)
        if self.unbounded and rank > n:
            limit = math.inf
        elif self.unbounded and rank < 1:
            limit = -math.inf
        else:
            limit = float(scores[min(max(rank, 1), n) - 1])
        return within(self.score, predictive, limit, coverage)

    def apply(self, state: AciState, predictive: Predictive) -> QuantileTable:
        """The intervals at `coverages` as a quantile table; refused where one is infinite."""
        ends = [self.interval(state, predictive, coverage) for coverage in self.coverages]
        return table(ends, self.coverages)


class NexcpState(NamedTuple):
    """`scores`: the newest, in order of time, (score rows, n <= window)."""

    scores: Floats


@dataclass(frozen=True, kw_only=True)
class NExCP:
    """Conformal beyond exchangeability: the newest scores weigh most, in a fixed way.

    The bound is the smallest score at which the weights of the scores up to it reach `coverage`;
    the newest score weighs `rho`, the one before `rho`^2, ..., the row to come 1 (at infinity),
    divided by their sum. The coverage that is lost is at most the weighted distance of the
    calibration rows from exchangeability, so forgetting bounds it under drift.

    - `rho`: smaller forgets faster and is noisier; it counts like (1 + rho) / (1 - rho) equal rows
      and reacts within 1 / (1 - rho). 1 is split conformal on the window. It must exceed the
      largest coverage, or no weight is left for it.
    - `window`: rows kept; beyond ln(1e-4) / ln(rho) they no longer matter.
    - `score`, `coverages`: see `nonconformity`; with `absolute` and `normalised` any coverage may
      be asked for.

    No feedback: a lag (late labels, fast drift) is not corrected, as it is by `ACI`.
    Cost: `update` is a copy of the window; `interval` one sort of it. Memory: 8 B per row.

    Source: Barber et al. 2023, arXiv:2202.13415.
    """

    rho: float = 0.995
    window: int = 2000
    score: Kind = "normalised"
    coverages: tuple[float, ...] = COVERAGES

    def __post_init__(self) -> None:
        known_kind(self.score)
        known_coverages(self.coverages)
        if not 0 < self.rho <= 1:
            raise ConfigError(f"rho must lie in (0, 1], got {self.rho}")
        if self.window < self._needed(self.coverages[-1]):
            raise ConfigError(
                f"a window of {self.window} rows, weighted by rho {self.rho}, cannot give "
                f"{100 * self.coverages[-1]:.6g} % coverage: it must hold "
                f"{self._needed(self.coverages[-1])} or more"
            )

    def init(self) -> NexcpState:
        return NexcpState(np.zeros((score_rows(self.score, self.coverages), 0)))

    def fit(self, predictive: Predictive, y: ArrayLike) -> NexcpState:
        """Rows in order of time; only the newest `window` are kept."""
        state = self.update(self.init(), predictive, y)
        self._enough(state.scores.shape[1], self.coverages[-1])
        return state

    def update(self, state: NexcpState, predictive: Predictive, y: ArrayLike) -> NexcpState:
        if not len(predictive) and not np.size(y):
            return state
        fresh = nonconformity(self.score, predictive, y, self.coverages)
        joined = np.concatenate([state.scores, fresh], axis=1)
        return NexcpState(joined[:, -self.window :].copy())

    def interval(self, state: NexcpState, predictive: Predictive, coverage: float) -> Interval:
        coverage_asked(coverage)
        row = place_of(coverage, self.coverages) if self.score == "quantile" else 0
        return within(self.score, predictive, self._bound(state.scores[row], coverage), coverage)

    def apply(self, state: NexcpState, predictive: Predictive) -> QuantileTable:
        """The intervals at `coverages` as a quantile table, linear in between."""
        ends = [self.interval(state, predictive, coverage) for coverage in self.coverages]
        return table(ends, self.coverages)

    def _bound(self, scores: Floats, coverage: float) -> float:
        self._enough(len(scores), coverage)
        order = np.argsort(scores, kind="stable")
        weights = self.rho ** np.arange(len(scores), 0.0, -1)
        reached = np.cumsum(weights[order])
        wanted = coverage * (1 + weights.sum()) * (1 - ROUNDING)
        return float(scores[order[min(np.searchsorted(reached, wanted), len(scores) - 1)]])

    def _needed(self, coverage: float) -> int:
        """Fewest rows whose weights reach `coverage`, or `ConfigError` where no number does."""
        if self.rho == 1:
            return rows_needed(coverage)
        odds = coverage / (1 - coverage) * (1 - self.rho) / self.rho
        if odds >= 1:
            raise ConfigError(
                f"with rho {self.rho} the weights of any number of rows cannot give "
                f"{100 * coverage:.6g} % coverage; raise rho above {coverage:.6g}"
            )
        return math.ceil(math.log1p(-odds) / math.log(self.rho) - ROUNDING)

    def _enough(self, rows: int, coverage: float) -> None:
        needed = self._needed(coverage)
        if rows < needed:
            raise DataError(
                f"{rows} calibration rows, weighted by rho {self.rho}, cannot give "
                f"{100 * coverage:.6g} % coverage: at least {needed} are needed; "
                "add rows, raise rho, or ask for less"
            )
