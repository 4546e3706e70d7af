"""Means of serially correlated series, with errors that do not pretend the values independent."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class MeanError(NamedTuple):
    """A mean, its standard error, the degrees of freedom of that error, and the values read.

    `error` is infinite where it cannot be estimated (fewer than two values).
    """

    value: float
    error: float
    dof: int
    n: int

    @property
    def spread(self) -> float:
        """Standard deviation per value that an independent series of the same error would have."""
        return self.error * float(np.sqrt(self.n))


def correlation_time(values: NDArray[np.floating[Any]]) -> float:
    """Integrated autocorrelation time tau = 1 + 2 sum of rho_k, at least 1 (in values).

    The mean of n values has the variance of n / tau independent ones. The sum stops where the
    sum of two neighbouring rho is no longer positive. Cost: two FFTs.

    Source: Geyer 1992, doi:10.1214/ss/1177011137 (initial positive sequence).
    """
    n = len(values)
    if n < 4:
        return 1.0
    away = np.asarray(values, np.float64) - np.mean(values)
    spectrum = np.fft.rfft(away, 2 * n)
    covariance = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:n]
    if covariance[0] <= 0:
        return 1.0
    rho = covariance[: n - n % 2] / covariance[0]
    pairs = rho[0::2] + rho[1::2]
    negative = np.flatnonzero(pairs <= 0)
    last = negative[0] if len(negative) else len(pairs)
    return float(max(1.0, 2 * pairs[:last].sum() - 1))


def mean_error(values: NDArray[np.floating[Any]]) -> MeanError:
    """Mean of values in order of time, with its standard error from batch means.

    The series is cut into batches of b = max(sqrt(n), 5 tau) values, but at least 8 batches where
    n allows; the batches' means are almost independent, so the error is their standard deviation
    over the root of their number. `(value - truth) / error` is Student-t with `dof` = batches - 1.

    Source: Flegal and Jones 2010, doi:10.1214/09-AOS735 (batches of sqrt(n) are consistent).
    """
    n = len(values)
    if n < 2:
        return MeanError(float(values[0]) if n else 0.0, float("inf"), 1, n)
    series = np.asarray(values, np.float64)
    size = int(np.ceil(max(np.sqrt(n), 5 * correlation_time(series))))
    size = max(1, min(size, n // 8))
    batches = n // size
    means = series[n - batches * size :].reshape(batches, size).mean(1)
    # The value uses all n, the batches the newest batches * size of them.
    error = np.std(means, ddof=1) / np.sqrt(batches) * np.sqrt(batches * size / n)
    return MeanError(float(series.mean()), float(error), batches - 1, n)
