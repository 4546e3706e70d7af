"""How far a truth lies from its prediction, and the interval of all truths that lie no further.

`absolute`: |y - mean|; one width for all rows. `normalised`: |y - mean| / std; the width follows
the stated deviation. `quantile`: max(low - y, y - high) about the stated interval of each
coverage; the width and the asymmetry follow the stated quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Floats, Predictive, QuantileTable
from stillfit.uncertainty.calibrators.contract import Interval
from stillfit.uncertainty.checks import coverage_asked, spread, targets

Kind: TypeAlias = Literal["absolute", "normalised", "quantile"]
COVERAGES = (0.2, 0.5, 0.68, 0.8, 0.9, 0.95)
SAME = 1e-12  # two coverages that differ by rounding only


def known_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ConfigError(f"score must be one of {', '.join(get_args(Kind))}, got {kind!r}")


def known_coverages(coverages: Sequence[float]) -> None:
    """`ConfigError` unless the coverages of a calibrator are in (0, 1) and rise."""
    for coverage in coverages:
        coverage_asked(coverage)
    if not coverages or any(b <= a for a, b in pairwise(coverages)):
        raise ConfigError(f"coverages must be one or more rising numbers, got {tuple(coverages)}")


def place_of(coverage: float, coverages: Sequence[float]) -> int:
    """Where `coverage` stands among those that were calibrated, or `ConfigError`."""
    coverage_asked(coverage)
    for place, known in enumerate(coverages):
        if abs(known - coverage) < SAME:
            return place
    raise ConfigError(
        f"a coverage of {coverage} was not calibrated, only {', '.join(map(str, coverages))}; "
        "name it in `coverages`, and fit again"
    )


def score_rows(kind: Kind, coverages: Sequence[float]) -> int:
    """How many scores a row has: one, or one for each coverage."""
    return len(coverages) if kind == "quantile" else 1


def nonconformity(
    kind: Kind, predictive: Predictive, y: ArrayLike, coverages: Sequence[float]
) -> Floats:
    """Scores of shape (`score_rows`, rows), in order of the rows."""
    truths = targets(y, predictive.mean.shape)
    deviations = spread(predictive)
    if kind == "quantile":
        ends = [predictive.interval(coverage) for coverage in coverages]
        return np.stack([np.maximum(a - truths, truths - b).ravel() for a, b in ends])
    away = np.abs(truths - predictive.mean)
    return np.reshape(away if kind == "absolute" else away / deviations, (1, -1))


def within(kind: Kind, predictive: Predictive, bound: float, coverage: float) -> Interval:
    """Ends of the truths whose score is at most `bound`; the middle where there are none."""
    if kind == "quantile":
        low, high = predictive.interval(coverage)
        middle = 0.5 * (low + high)
        return np.minimum(low - bound, middle), np.maximum(high + bound, middle)
    half = np.maximum(bound, 0) * (
        np.ones_like(predictive.mean) if kind == "absolute" else spread(predictive)
    )
    return predictive.mean - half, predictive.mean + half


def table(intervals: Sequence[Interval], coverages: Sequence[float]) -> QuantileTable:
    """Central intervals at rising coverages as quantiles; those that cross are sorted."""
    shares = np.asarray(coverages)
    levels = np.concatenate([(1 - shares[::-1]) / 2, (1 + shares) / 2])
    ends = [low for low, _ in intervals[::-1]] + [high for _, high in intervals]
    return QuantileTable(levels, np.stack(ends, axis=-1))
