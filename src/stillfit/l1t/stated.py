"""Events with what a method states of their vertex, and the intervals of what is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stillfit.core.arrays import Arrays, Index, Ragged, take
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.predictive import Floats, Predictive


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Stated:
    """n events with what a method says of their vertex.

    `z0` (n,): the true vertex, cm. `tracks`: ragged `z0` (cm), `eta` and `is_pv` (1 for a track of
    the primary vertex); optional `sigma` (cm, the network's own for each track) and `association`
    (the network's own, 0 to 1). Regions need no tracks.
    """

    predictive: Predictive
    z0: Floats
    tracks: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        z0 = np.asarray(self.z0, np.float64)
        object.__setattr__(self, "z0", z0)
        n = len(self.predictive)
        if z0.shape != (n,):
            raise ShapeError(f"{n} predictions of one number were given {z0.shape} truths")
        if not np.all(np.isfinite(z0)) or not np.all(np.isfinite(self.predictive.mean)):
            raise DataError("a vertex is NaN or infinite; was an event without a label kept?")
        offsets: NDArray[np.int64] | None = None
        for name, column in self.tracks.items():
            if not isinstance(column, Ragged) or len(column) != n:
                raise ShapeError(f"track column {name!r} must be ragged, of the same {n} events")
            if offsets is not None and not np.array_equal(offsets, column.offsets):
                raise ShapeError(f"track column {name!r} counts other tracks than the others")
            offsets = column.offsets

    def __len__(self) -> int:
        return len(self.z0)

    def take(self, index: Index) -> Stated:
        return Stated(self.predictive.take(index), self.z0[index], take(self.tracks, index))

    def values(self, name: str) -> Floats:
        """A track column, flat."""
        column = self.tracks.get(name)
        if not isinstance(column, Ragged):
            raise DataError(
                f"an association needs the track columns z0, eta and is_pv; {name!r} is missing"
            )
        return np.asarray(column.values, np.float64)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The event of each track."""
        column = self.tracks["z0"]
        assert isinstance(column, Ragged)
        return column.events


def halves(n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to tune on and rows to judge on: a random half each, in rising order."""
    if n < 2:
        raise DataError(f"{n} events cannot be split into a half to tune on and one to judge on")
    order = rng.permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def draws(n: int, replicas: int, rng: np.random.Generator) -> Floats:
    """How often each of n events is drawn, (replicas, n)."""
    if n < 1:
        raise DataError("there are no events to tune on or to judge on")
    if replicas < 1:
        raise ConfigError(f"an interval needs replicas of the data, got {replicas}")
    rows = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(replicas)]
    return np.array(rows, np.float64)


def percentiles(values: Floats) -> Estimate:
    """The first value, with the central 95 % of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def binomial(inside: NDArray[np.bool_]) -> Estimate:
    """A share with its 95 % interval (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404)."""
    interval = stats.binomtest(int(inside.sum()), len(inside)).proportion_ci()
    return Estimate(float(inside.mean()), float(interval.low), float(interval.high))
