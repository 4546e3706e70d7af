"""What a model says: a distribution for numbers, probabilities for classes.

`Predictive` has three final forms (Gaussian mixture, Student-t, quantile table) with the same
verbs; `Categorical` is their sibling for classes. Scores come from scoringrules and SciPy, the
only third-party packages beside NumPy that this room knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from stillfit.core.arrays import Index
from stillfit.core.errors import DataError, ShapeError

Floats: TypeAlias = NDArray[np.float64]


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)


def _level(level: ArrayLike) -> Floats:
    levels = _floats(level)
    if np.any(~(levels > 0) | ~(levels < 1)):
        raise DataError(f"a probability must lie strictly between 0 and 1, got {level!r}")
    return levels


def _positive(values: Floats, what: str) -> Floats:
    if not np.all(values > 0) or not np.all(np.isfinite(values)):
        bad = values[~((values > 0) & np.isfinite(values))].flat[0]
        raise DataError(
            f"{what} must be positive and finite, got {bad}; "
            "did the network diverge, or is a log-variance unclipped?"
        )
    return values


def _same(shared: Sequence[Floats], what: str) -> None:
    for other in shared[1:]:
        if not np.array_equal(other, shared[0]):
            raise ShapeError(
                f"predictions with different {what} cannot be joined: {shared[0]} and {other}; "
                "do they come from different versions?"
            )


def _scores() -> Any:
    """scoringrules, imported at the first score: it compiles for seconds when it is imported."""
    import scoringrules

    return scoringrules


def _join_parts(parts: Sequence[tuple[Floats, Floats] | None]) -> tuple[Floats, Floats] | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return np.concatenate([a for a, _ in known]), np.concatenate([e for _, e in known])


class Predictive(ABC):
    """A predictive distribution for each of a batch of numbers.

    `mean`, `variance`: shape (batch...). `aleatoric`, `epistemic`: the parts of the variance by
    noise and by ignorance, or None where the method cannot say, which is not the same as 0.
    """

    @property
    @abstractmethod
    def mean(self) -> Floats: ...

    @property
    @abstractmethod
    def variance(self) -> Floats: ...

    @property
    @abstractmethod
    def aleatoric(self) -> Floats | None: ...

    @property
    @abstractmethod
    def epistemic(self) -> Floats | None: ...

    @abstractmethod
    def cdf(self, y: ArrayLike) -> Floats:
        """P(Y <= y), shape (batch...)."""

    @abstractmethod
    def quantile(self, level: float) -> Floats:
        """The value below which a share `level` lies, shape (batch...)."""

    @abstractmethod
    def log_prob(self, y: ArrayLike) -> Floats:
        """Natural logarithm of the density at `y`, shape (batch...)."""

    @abstractmethod
    def crps(self, y: ArrayLike) -> Floats:
        """Continuous ranked probability score at `y`, in the unit of y; lower is better.

        Gneiting and Raftery 2007, doi:10.1198/016214506000001437.
        """

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """`n` draws each, shape (n, batch...)."""

    @abstractmethod
    def take(self, index: Index) -> Predictive:
        """The rows at `index` of the leading axis."""

    @classmethod
    @abstractmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Join along the leading axis; the parts must be of one form."""

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def std(self) -> Floats:
        """Standard deviation, shape (batch...)."""
        return np.sqrt(self.variance)

    def interval(self, coverage: float) -> tuple[Floats, Floats]:
        """Central interval that holds a share `coverage`: lower and upper ends."""
        _level(coverage)
        return self.quantile((1 - coverage) / 2), self.quantile((1 + coverage) / 2)


@dataclass(frozen=True, eq=False)
class Mixture(Predictive):
    """Gaussian mixture of m members: `means`, `variances` of shape (batch..., m).

    `weights`: shape (m,), sum 1, equal unless given. The total variance is that of the mixture (law
    of total variance): mean of the variances plus variance of the means. Averaging the members'
    parameters instead would lose their disagreement.
    """

    means: Floats
    variances: Floats
    weights: Floats | None = None
    parts: tuple[Floats, Floats] | None = None

    def __post_init__(self) -> None:
        if self.means.shape != self.variances.shape or self.means.ndim < 2:
            raise ShapeError(
                f"means {self.means.shape} and variances {self.variances.shape} must both be "
                "(batch..., members)"
            )
        _positive(self.variances, "variances")
        if self.weights is not None and self.weights.shape != self.means.shape[-1:]:
            raise ShapeError(f"{self.means.shape[-1]} members have weights {self.weights.shape}")
        if self.weights is not None and (
            not np.all(self.weights >= 0) or abs(self.weights.sum() - 1) > 1e-9
        ):
            raise DataError(f"weights must be non-negative and sum to 1, got {self.weights}")

    @classmethod
    def gaussian(cls, mean: ArrayLike, variance: ArrayLike) -> Mixture:
        """One Gaussian each; it cannot tell noise from ignorance."""
        return cls(_floats(mean)[..., None], _floats(variance)[..., None])

    @classmethod
    def from_parts(cls, mean: ArrayLike, aleatoric: ArrayLike, epistemic: ArrayLike) -> Mixture:
        """One Gaussian whose variance is the sum of two known parts."""
        noise, ignorance = _floats(aleatoric), _floats(epistemic)
        total = (noise + ignorance)[..., None]
        return cls(_floats(mean)[..., None], total, None, (noise, ignorance))

    @property
    def _weights(self) -> Floats:
        members = self.means.shape[-1]
        return np.full(members, 1 / members) if self.weights is None else self.weights

    @property
    def mean(self) -> Floats:
        return np.asarray(self.means @ self._weights)

    @property
    def variance(self) -> Floats:
        spread = (self.means - self.mean[..., None]) ** 2
        return np.asarray((self.variances + spread) @ self._weights)

    @property
    def aleatoric(self) -> Floats | None:
        if self.parts is not None:
            return self.parts[0]
        return self.variances @ self._weights if self.means.shape[-1] > 1 else None

    @property
    def epistemic(self) -> Floats | None:
        if self.parts is not None:
            return self.parts[1]
        if self.means.shape[-1] == 1:
            return None
        return ((self.means - self.mean[..., None]) ** 2) @ self._weights

    def cdf(self, y: ArrayLike) -> Floats:
        scaled = (_floats(y)[..., None] - self.means) / np.sqrt(self.variances)
        return np.asarray(special.ndtr(scaled) @ self._weights)

    def quantile(self, level: float) -> Floats:
        each = special.ndtri(_level(level)) * np.sqrt(self.variances) + self.means
        if each.shape[-1] == 1:
            return np.asarray(each[..., 0])
        # The mixture's quantile lies between the members' quantiles of the same level.
        return bisect(self.cdf, each.min(-1), each.max(-1), level)

    def log_prob(self, y: ArrayLike) -> Floats:
        away = (_floats(y)[..., None] - self.means) ** 2 / self.variances
        logs = -0.5 * (away + np.log(2 * np.pi * self.variances))
        return np.asarray(special.logsumexp(logs, axis=-1, b=self._weights))

    def crps(self, y: ArrayLike) -> Floats:
        deviations = np.sqrt(self.variances)
        if self.means.shape[-1] == 1:
            return np.asarray(
                _scores().crps_normal(_floats(y), self.means[..., 0], deviations[..., 0])
            )
        weights = np.broadcast_to(self._weights, self.means.shape)
        return np.asarray(_scores().crps_mixnorm(_floats(y), self.means, deviations, weights))

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        member = rng.choice(self.means.shape[-1], (n, *self.mean.shape), p=self._weights)
        means = np.take_along_axis(self.means[None], member[..., None], -1)[..., 0]
        variances = np.take_along_axis(self.variances[None], member[..., None], -1)[..., 0]
        return means + np.sqrt(variances) * rng.standard_normal(member.shape)

    def take(self, index: Index) -> Mixture:
        parts = None if self.parts is None else (self.parts[0][index], self.parts[1][index])
        return Mixture(self.means[index], self.variances[index], self.weights, parts)

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        _same([part._weights for part in parts], "mixture weights")
        return cls(
            np.concatenate([part.means for part in parts]),
            np.concatenate([part.variances for part in parts]),
            parts[0].weights,
            _join_parts([part.parts for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class StudentT(Predictive):
    """Student-t with `location`, `scale` > 0 and `dof` > 2, each of shape (batch...).

    `parts`: aleatoric and epistemic variance where the method can say (evidential regression).
    """

    location: Floats
    scale: Floats
    dof: Floats
    parts: tuple[Floats, Floats] | None = None

    def __post_init__(self) -> None:
        if not self.location.shape == self.scale.shape == self.dof.shape:
            raise ShapeError("location, scale and dof must have one shape")
        _positive(self.scale, "scales")
        if not np.all(self.dof > 2):
            raise DataError(f"dof must exceed 2 for a finite variance, got {np.min(self.dof):.3g}")

    @property
    def mean(self) -> Floats:
        return self.location

    @property
    def variance(self) -> Floats:
        return self.scale**2 * self.dof / (self.dof - 2)

    @property
    def aleatoric(self) -> Floats | None:
        return None if self.parts is None else self.parts[0]

    @property
    def epistemic(self) -> Floats | None:
        return None if self.parts is None else self.parts[1]

    def cdf(self, y: ArrayLike) -> Floats:
        return np.asarray(special.stdtr(self.dof, (_floats(y) - self.location) / self.scale))

    def quantile(self, level: float) -> Floats:
        return np.asarray(
            self.location + self.scale * special.stdtrit(self.dof, float(_level(level)))
        )

    def log_prob(self, y: ArrayLike) -> Floats:
        return np.asarray(stats.t.logpdf(_floats(y), self.dof, self.location, self.scale))

    def crps(self, y: ArrayLike) -> Floats:
        return np.asarray(_scores().crps_t(_floats(y), self.dof, self.location, self.scale))

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        shape = (n, *self.location.shape)
        return self.location + self.scale * rng.standard_t(self.dof, shape)

    def take(self, index: Index) -> StudentT:
        parts = None if self.parts is None else (self.parts[0][index], self.parts[1][index])
        return StudentT(self.location[index], self.scale[index], self.dof[index], parts)

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        return cls(
            np.concatenate([part.location for part in parts]),
            np.concatenate([part.scale for part in parts]),
            np.concatenate([part.dof for part in parts]),
            _join_parts([part.parts for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class QuantileTable(Predictive):
    """Quantiles `values` of shape (batch..., levels) at rising `levels`, linear in between.

    Crossing quantiles are sorted (Chernozhukov et al. 2010, doi:10.3982/ECTA7880). Beyond the
    outermost levels the outermost slope goes on until the probability is used up.
    """

    levels: Floats
    values: Floats

    def __post_init__(self) -> None:
        _level(self.levels)
        if len(self.levels) < 2 or np.any(np.diff(self.levels) <= 0):
            raise DataError(f"a quantile table needs two or more rising levels, got {self.levels}")
        if self.values.shape[-1:] != self.levels.shape:
            raise ShapeError(f"{len(self.levels)} levels have values of {self.values.shape}")
        if not np.all(np.isfinite(self.values)):
            raise DataError("a quantile table holds NaN or infinity; did the network diverge?")
        object.__setattr__(self, "values", np.sort(self.values, axis=-1))

    @property
    def _knots(self) -> tuple[Floats, Floats]:
        """Levels from 0 to 1 and values, with a least slope, so that densities stay finite."""
        v, p = self.values, self.levels
        # At least a billionth of the table, and 4096 doubles, so that F can be read inside a step.
        size = np.maximum(np.abs(v[..., -1:]), np.abs(v[..., :1]))
        floor = np.maximum(1e-9 * (v[..., -1:] - v[..., :1]), 4096 * np.spacing(size) + 1e-300)
        steps = np.maximum(np.diff(v, axis=-1), floor)
        v = np.concatenate([v[..., :1], v[..., :1] + np.cumsum(steps, -1)], -1)
        low = v[..., :1] - steps[..., :1] / (p[1] - p[0]) * p[0]
        high = v[..., -1:] + steps[..., -1:] / (p[-1] - p[-2]) * (1 - p[-1])
        return np.concatenate([[0.0], p, [1.0]]), np.concatenate([low, v, high], -1)

    @property
    def mean(self) -> Floats:
        p, v = self._knots
        return np.asarray((0.5 * (v[..., 1:] + v[..., :-1])) @ np.diff(p))

    @property
    def variance(self) -> Floats:
        p, v = self._knots
        # Second moment of a piecewise uniform density, about the mean.
        a, b = v[..., :-1] - self.mean[..., None], v[..., 1:] - self.mean[..., None]
        return np.asarray(((a**2 + a * b + b**2) / 3) @ np.diff(p))

    @property
    def aleatoric(self) -> Floats | None:
        return None

    @property
    def epistemic(self) -> Floats | None:
        return None

    def _segment(self, y: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
        p, v = self._knots
        place = np.clip((y[..., None] >= v).sum(-1) - 1, 0, len(p) - 2)
        low = np.take_along_axis(v, place[..., None], -1)[..., 0]
        high = np.take_along_axis(v, place[..., None] + 1, -1)[..., 0]
        return place, low, high

    def cdf(self, y: ArrayLike) -> Floats:
        values = np.broadcast_to(_floats(y), self.mean.shape)
        p, _ = self._knots
        place, low, high = self._segment(values)
        part = np.clip((values - low) / (high - low), 0, 1)
        return np.asarray(p[place] + part * (p[place + 1] - p[place]))

    def quantile(self, level: float) -> Floats:
        at = float(_level(level))
        p, v = self._knots
        k = int(np.clip(np.searchsorted(p, at) - 1, 0, len(p) - 2))
        part = (at - p[k]) / (p[k + 1] - p[k])
        return np.asarray(v[..., k] + part * (v[..., k + 1] - v[..., k]))

    def log_prob(self, y: ArrayLike) -> Floats:
        values = np.broadcast_to(_floats(y), self.mean.shape)
        p, v = self._knots
        place, low, high = self._segment(values)
        inside = (values >= v[..., 0]) & (values <= v[..., -1])
        density = (p[place + 1] - p[place]) / (high - low)
        return np.where(inside, np.log(density), -np.inf)

    def crps(self, y: ArrayLike) -> Floats:
        # Exact for the piecewise linear distribution function; the mean pinball loss over the
        # levels, which stands for it elsewhere, is another score unless the levels are dense.
        values = np.broadcast_to(_floats(y), self.values.shape[:-1])[..., None]
        p, v = self._knots
        a, b, f, g = v[..., :-1], v[..., 1:], p[:-1], p[1:]
        cut = np.clip(values, a, b)
        at = f + (cut - a) / (b - a) * (g - f)
        # Below y the integral of F^2, above it that of (1 - F)^2, each over a trapezium.
        below = (cut - a) * (f * f + f * at + at * at)
        above = (b - cut) * ((1 - at) ** 2 + (1 - at) * (1 - g) + (1 - g) ** 2)
        outside = np.maximum(v[..., 0] - values[..., 0], 0) + np.maximum(
            values[..., 0] - v[..., -1], 0
        )
        return np.asarray((below + above).sum(-1) / 3 + outside)

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        p, v = self._knots
        uniform = rng.uniform(0, 1, (n, *v.shape[:-1]))
        k = np.clip(np.searchsorted(p, uniform, side="right") - 1, 0, len(p) - 2)
        low = np.take_along_axis(v[None], k[..., None], -1)[..., 0]
        high = np.take_along_axis(v[None], k[..., None] + 1, -1)[..., 0]
        return np.asarray(low + (uniform - p[k]) / (p[k + 1] - p[k]) * (high - low))

    def take(self, index: Index) -> QuantileTable:
        return QuantileTable(self.levels, self.values[index])

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        _same([part.levels for part in parts], "quantile levels")
        return cls(parts[0].levels, np.concatenate([part.values for part in parts]))


@dataclass(frozen=True, eq=False)
class Categorical:
    """Class probabilities of m members, shape (n, m, classes).

    `entropy` splits into the mean entropy of the members (noise) and their mutual information
    (ignorance), in nats; the latter is None for a single member. Source: Houlsby et al. 2011,
    arXiv:1112.5745.
    """

    members: Floats

    def __post_init__(self) -> None:
        if self.members.ndim != 3:
            raise ShapeError(f"members must be (n, members, classes), got {self.members.shape}")
        sums = self.members.sum(-1)
        if not np.all(self.members >= 0) or np.any(np.abs(sums - 1) > 1e-4):
            raise DataError(
                "class probabilities must be finite, not negative and sum to 1; apply a softmax"
            )

    @property
    def probabilities(self) -> Floats:
        """Mean over the members, shape (n, classes)."""
        return np.asarray(self.members.mean(1))

    @property
    def entropy(self) -> Floats:
        """Entropy of the mean, shape (n,), nats."""
        return np.asarray(special.entr(self.probabilities).sum(-1))

    @property
    def aleatoric(self) -> Floats | None:
        if self.members.shape[1] == 1:
            return None
        return np.asarray(special.entr(self.members).sum(-1).mean(1))

    @property
    def epistemic(self) -> Floats | None:
        noise = self.aleatoric
        return None if noise is None else np.maximum(self.entropy - noise, 0)

    @property
    def std(self) -> Floats:
        """Uncertainty score: 1 minus the largest probability, shape (n,)."""
        return np.asarray(1 - self.probabilities.max(-1))

    def log_prob(self, y: ArrayLike) -> Floats:
        """Log-probability of the classes `y`, integers of shape (n,)."""
        classes, known = np.asarray(y, np.int64), self.members.shape[-1]
        if np.any((classes < 0) | (classes >= known)):
            bad = classes[(classes < 0) | (classes >= known)].flat[0]
            raise DataError(f"class {bad} is none of the {known} classes, 0 to {known - 1}")
        chosen = np.take_along_axis(self.probabilities, classes[:, None], 1)[:, 0]
        return np.log(np.maximum(chosen, np.finfo(float).tiny))

    def __len__(self) -> int:
        return len(self.members)

    def take(self, index: Index) -> Categorical:
        return Categorical(self.members[index])

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Join along events."""
        return cls(np.concatenate([part.members for part in parts]))


def bisect(cdf: Callable[[Floats], Floats], low: Floats, high: Floats, level: float) -> Floats:
    """The point of each row where `cdf` crosses `level`, to double precision.

    80 halvings bring any bracket of doubles below its rounding error.
    """
    low, high = low.copy(), high.copy()
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = cdf(middle) < level
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    return 0.5 * (low + high)
