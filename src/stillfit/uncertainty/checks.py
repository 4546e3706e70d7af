"""What scores and calibrators refuse: missing targets, no spread, an impossible coverage."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.predictive import Floats, Predictive

# Products such as 10 * 0.9 must not be rounded up to the next rank by their last bit.
ROUNDING = 1e-9


def targets(y: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """The truths as doubles of `shape`, or an error that names the row."""
    truths = np.asarray(y, np.float64)
    if truths.shape != shape:
        raise ShapeError(
            f"predictions of shape {shape} have targets of shape {truths.shape}; "
            "give one target for each prediction"
        )
    if not truths.size:
        raise DataError("there are no rows: give at least one prediction with its target")
    bad = np.flatnonzero(~np.isfinite(truths))
    if len(bad):
        raise DataError(
            f"target {bad[0]} is {truths.flat[bad[0]]} ({len(bad)} of {truths.size}); "
            "leave out the rows whose labels are missing"
        )
    return truths


def classes(y: ArrayLike, rows: int) -> NDArray[np.int64]:
    """The true classes as integers, one for each row, or an error that names the value."""
    truths = targets(y, (rows,))
    if np.any(truths % 1):
        raise DataError(f"classes must be integers, got {truths[truths % 1 > 0][0]}")
    return truths.astype(np.int64)


def spread(predictive: Predictive) -> Floats:
    """The standard deviations, all positive and finite, or an error that names the row."""
    with np.errstate(invalid="ignore"):
        deviations = predictive.std
    bad = np.flatnonzero(~((deviations > 0) & np.isfinite(deviations)))
    if len(bad):
        raise DataError(
            f"the predicted standard deviation is {deviations.flat[bad[0]]} at row {bad[0]} "
            f"({len(bad)} of {deviations.size}); it must be positive and finite: "
            "did the network diverge, or does it state no uncertainty?"
        )
    return deviations


def coverage_asked(coverage: float) -> float:
    """A coverage strictly between 0 and 1, or `ConfigError`."""
    if not 0 < coverage < 1:
        raise ConfigError(
            f"coverage must lie strictly between 0 and 1, got {coverage}; 0.9 asks for 90 %"
        )
    return float(coverage)


def rows_needed(coverage: float) -> int:
    """Fewest calibration rows whose largest score is a bound at `coverage`."""
    return math.ceil(1 / (1 - coverage_asked(coverage)) - ROUNDING) - 1


def enough(rows: int, coverage: float) -> None:
    """`DataError` where `rows` exchangeable rows cannot give `coverage`."""
    needed = rows_needed(coverage)
    if rows < needed:
        raise DataError(
            f"{rows} calibration rows cannot give {100 * coverage:.6g} % coverage: at least "
            f"{needed} are needed (ceil(1 / (1 - coverage)) - 1); add rows or ask for less"
        )
