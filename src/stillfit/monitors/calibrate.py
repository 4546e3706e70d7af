"""Thresholds from average run length: the user states false alarms per day, nominal data the rest.

The nominal series is resampled in blocks (serial correlation stays), the statistic is run on long
resampled streams, and the tail of its peaks gives the threshold whose rate of false alarms is the
one asked for. The tail is exponential for the statistics used here, so rates far below one alarm
per simulated stream can be reached. The reference is estimated from the same finite sample, which
would make the true rate vary by factors; so it is resampled as well, and the threshold is the one
that keeps the rate with the probability `guarantee`.

Sources: Politis and Romano 1994, doi:10.1080/01621459.1994.10476870 (stationary bootstrap);
Iglehart 1972, doi:10.1214/aoms/1177692561 (exponential maxima); Gandy and Kvaloy 2013,
doi:10.1002/sjos.12006 (guaranteed conditional performance).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.serial import correlation_time

Floats = NDArray[np.float64]


def run_length(false_alarms: float, rate: float) -> float:
    """Events between two false alarms, for `false_alarms` per day and `rate` events per day."""
    if not false_alarms > 0 or not np.isfinite(false_alarms):
        raise ConfigError(
            f"false_alarms must be a positive number per day, got {false_alarms}; "
            "0.01 is one in a hundred days"
        )
    if not rate > 0 or not np.isfinite(rate):
        raise ConfigError(f"rate must be a positive number of events per day, got {rate}")
    return rate / false_alarms


def finite(values: Array, what: str) -> Floats:
    """One float axis, or a `DataError` that says which value is not finite."""
    series = np.asarray(values, np.float64)
    if series.ndim != 1:
        raise DataError(f"{what} must be one number per event, got shape {series.shape}")
    if not np.isfinite(series.sum()):
        bad = np.flatnonzero(~np.isfinite(series))
        if len(bad):
            raise DataError(
                f"{what} holds {series[bad[0]]} at event {bad[0]} ({len(bad)} of {len(series)}); "
                "did the serving version diverge, or are targets missing?"
            )
    return series


def paired(errors: Floats, seen: Floats) -> None:
    """Raise `DataError` unless every late error has its event's time."""
    if len(errors) != len(seen):
        raise DataError(f"{len(errors)} late errors have {len(seen)} event times; give one each")


def block_length(series: Floats) -> float:
    """Mean block of the bootstrap: 20 correlation times, at most a twentieth of the series.

    1 where the correlation time is within four standard errors of that of independent values:
    the resampled mean is surest from many short blocks.
    """
    n, tau = len(series), correlation_time(series)
    if tau < 1 + 4 / np.sqrt(max(n, 1)):
        return 1.0
    return float(max(1.0, min(20 * tau, n / 20)))


class World(NamedTuple):
    """Blocks of a nominal series of n values, circular: a population it could be a draw of."""

    n: int
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def draw(self, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices (length,) into the series: blocks of the world, joined at random."""
        mean = max(float(self.lengths.mean()), 1.0)
        rows = rng.integers(0, len(self.starts), int(1.2 * length / mean) + 20)
        while self.lengths[rows].sum() < length:
            rows = np.concatenate([rows, rng.integers(0, len(self.starts), len(rows))])
        counts = self.lengths[rows]
        first = np.cumsum(counts) - counts
        used = int(np.searchsorted(first, length))
        counts, first = counts[:used], first[:used]
        shift = np.repeat(self.starts[rows[:used]] - first, counts)[:length]
        return np.asarray((np.arange(length) + shift) % self.n)


def sample_world(n: int, block: float, rng: np.random.Generator) -> World:
    """About n values in blocks of geometric length, mean `block`, at random places."""
    starts = rng.integers(0, n, max(1, round(n / block)))
    return World(n, starts, rng.geometric(1 / block, len(starts)))


def resample(n: int, length: int, block: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices into a series of n values, (length,): runs of geometric length, mean `block`."""
    begins = rng.random(length) < 1 / block
    begins[0] = True
    first = np.flatnonzero(begins)
    run = np.cumsum(begins) - 1
    starts = rng.integers(0, n, len(first))
    return np.asarray((starts[run] + np.arange(length) - first[run]) % n)


def tail_threshold(peaks: Floats, length: float, arl: float) -> float:
    """The level that peaks exceed once per `arl` values, from peaks seen in `length` values.

    Where at least 50 peaks would exceed it, it is read off; else the largest quarter of the peaks
    (at most 200) is continued by an exponential of their mean excess. Infinite for fewer than 20
    peaks: the statistic does not return.
    """
    want = length / arl
    if len(peaks) < 20:
        return math.inf
    falling = np.sort(peaks)[::-1]
    if 50 <= want < len(falling):
        return float(falling[int(want)])
    top = min(200, len(falling) // 4)
    level = falling[top]
    excess = float(np.mean(falling[:top] - level))
    return float(max(level + excess * np.log(top / want), 0.0))


def guaranteed(limits: list[float], guarantee: float) -> float:
    """The limit that a share `guarantee` of the resampled worlds does not exceed."""
    place = math.ceil(guarantee * (len(limits) + 1))
    return sorted(limits)[min(place, len(limits)) - 1]
