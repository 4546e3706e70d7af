"""Conformal calibrators fitted once: exact coverage as long as the world stays exchangeable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stillfit.core.predictive import Floats, Predictive, QuantileTable
from stillfit.uncertainty.calibrators.contract import Interval
from stillfit.uncertainty.calibrators.nonconformity import (
    COVERAGES,
    Kind,
    known_coverages,
    nonconformity,
    place_of,
    score_rows,
    table,
    within,
)
from stillfit.uncertainty.checks import ROUNDING, coverage_asked, enough


class ConformalState(NamedTuple):
    """`scores`: sorted, (1, n), or (coverages, n) where each coverage has its own."""

    scores: Floats


def bound(sorted_scores: Floats, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of n scores; `DataError` where n is too small."""
    enough(len(sorted_scores), coverage)
    return float(sorted_scores[math.ceil((len(sorted_scores) + 1) * coverage - ROUNDING) - 1])


@dataclass(frozen=True, kw_only=True)
class _Conformal:
    """The one rule of the three: intervals of all truths whose score is at most the bound."""

    kind: ClassVar[Kind]
    coverages: tuple[float, ...] = COVERAGES

    def __post_init__(self) -> None:
        known_coverages(self.coverages)

    def init(self) -> ConformalState:
        return ConformalState(np.zeros((score_rows(self.kind, self.coverages), 0)))

    def fit(self, predictive: Predictive, y: ArrayLike) -> ConformalState:
        scores = nonconformity(self.kind, predictive, y, self.coverages)
        enough(scores.shape[1], self.coverages[-1])
        return ConformalState(np.sort(scores, axis=1))

    def interval(self, state: ConformalState, predictive: Predictive, coverage: float) -> Interval:
        if self.kind == "quantile":
            scores = state.scores[place_of(coverage, self.coverages)]
        else:
            scores = state.scores[0]
        return within(self.kind, predictive, bound(scores, coverage_asked(coverage)), coverage)

    def apply(self, state: ConformalState, predictive: Predictive) -> QuantileTable:
        """The intervals at `coverages` as a quantile table, linear in between."""
        ends = [self.interval(state, predictive, coverage) for coverage in self.coverages]
        return table(ends, self.coverages)


@dataclass(frozen=True, kw_only=True)
class SplitConformal(_Conformal):
    """mean +- q, q the ceil((n + 1) coverage)-th smallest |y - mean| of n calibration rows.

    Whatever the network and the noise, a new row that is exchangeable with the calibration rows
    is covered with probability at least `coverage`, at most `coverage` + 1 / (n + 1): on average
    over all rows, not for each kind of row. `interval` serves any coverage that n allows;
    `coverages` are those of the table of `apply`, and the largest states how many rows `fit` needs.

    One width for all rows. Under drift it fails: with the noise tripled, 90 % becomes 42 %
    (Gaussian noise). Cost: one sort at `fit`; one addition per end. Memory: 8 B per row.

    Sources: Papadopoulos et al. 2002, doi:10.1007/3-540-36755-1_29; Lei et al. 2018,
    arXiv:1604.04173.
    """

    kind: ClassVar[Kind] = "absolute"


@dataclass(frozen=True, kw_only=True)
class NormalisedConformal(_Conformal):
    """mean +- q std, q the ceil((n + 1) coverage)-th smallest |y - mean| / std.

    Coverage as of `SplitConformal`; the width follows the stated deviation, so that difficult rows
    get wider intervals: only as good as that deviation ranks the errors. Rows whose deviation is
    far too small widen all intervals. On a chip q is folded into the look-up table of the
    deviation and costs nothing. Cost: one sort at `fit`; one multiplication and two additions.

    Source: Papadopoulos et al. 2008; Lei et al. 2018, arXiv:1604.04173, section 5.2.
    """

    kind: ClassVar[Kind] = "normalised"


@dataclass(frozen=True, kw_only=True)
class ConformalQuantile(_Conformal):
    """[low - q, high + q] about the stated interval of each coverage (CQR).

    q is the ceil((n + 1) coverage)-th smallest of max(low - y, y - high); it is negative where the
    stated interval is too wide. Coverage as of `SplitConformal`; width and asymmetry follow the
    stated quantiles. Each coverage has its own scores, so only `coverages` can be asked for.

    Cost: two quantiles per coverage and row (bisection for mixtures), one sort each at `fit`.
    Memory: 8 B per row and coverage. Source: Romano et al. 2019, arXiv:1905.03222.
    """

    kind: ClassVar[Kind] = "quantile"
