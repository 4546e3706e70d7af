"""Regions of z around a predicted vertex: families that grow with one number, k, until they hold
the wanted share of true vertices. How they compare: docs/uncertainty/uses.md."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Floats, Mixture, Predictive
from stillfit.l1t.vertexing import Z_MAX

REACH = Z_MAX  # cm: half the histogram; a track word cannot say more, and the beams collide inside
ONE_SIGMA = 0.6827
Ends: TypeAlias = tuple[Floats, Floats]
ROOT_2PI = float(np.sqrt(2 * np.pi))


class Region(ABC):
    """A nested family of regions: at a larger k every event's region holds the one at a smaller k.

    Nesting makes the choice of k a quantile of `score`, whatever the family (split conformal
    prediction; Vovk et al. 2005; Lei et al. 2018, doi:10.1080/01621459.2017.1307116).
    """

    def fit(self, predictive: Predictive, z0: Floats) -> Region:
        """The family with its shape learned from events that k is not then tuned on; or itself."""
        return self

    @abstractmethod
    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        """The smallest k whose region holds `z0`, (n,)."""

    @abstractmethod
    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        """Lower and upper ends in cm, (n, parts), of the union of intervals at each k.

        Equal ends: an empty part.
        """

    def lengths(
        self, predictive: Predictive, ks: Iterable[float], reach: float = REACH
    ) -> Iterator[Floats]:
        """Length in cm of the union within +-`reach` at each k, (n,)."""
        for low, high in self.ends(predictive, ks):
            yield union_length(low, high, reach)


@dataclass(frozen=True, kw_only=True)
class FixedLength(Region):
    """mean +- k: one length for all, which needs no uncertainty."""

    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        return np.abs(z0 - predictive.mean)

    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        centre = predictive.mean[:, None]
        for k in ks:
            yield centre - k, centre + k


@dataclass(frozen=True, kw_only=True)
class BeamSpot(Region):
    """`centre` +- k: the luminous region, which needs no vertex either; a limit to stay below."""

    centre: float = 0.0  # cm

    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        return np.abs(z0 - self.centre)

    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        centre = np.full((len(predictive), 1), self.centre)
        for k in ks:
            yield centre - k, centre + k


@dataclass(frozen=True, kw_only=True)
class SigmaLength(Region):
    """mean +- k sigma, of the total standard deviation."""

    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        return np.abs(z0 - predictive.mean) / predictive.std

    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        centre, sigma = predictive.mean[:, None], predictive.std[:, None]
        for k in ks:
            yield centre - k * sigma, centre + k * sigma


@dataclass(frozen=True, kw_only=True)
class IntervalLength(Region):
    """The central interval of `coverage`, both arms from the median scaled by k.

    The same as `SigmaLength` for one Gaussian; for a mixture or a quantile table it follows the
    skewness. A `coverage` nearer to the wanted one follows the tails, a smaller one the core.
    """

    coverage: float = 0.9

    def _arms(self, predictive: Predictive) -> tuple[Floats, Floats, Floats]:
        low, high = predictive.interval(self.coverage)
        middle = predictive.quantile(0.5)
        tiny = 1e-9  # cm: quantiles found by bisection can coincide
        return middle, np.maximum(middle - low, tiny), np.maximum(high - middle, tiny)

    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        middle, down, up = self._arms(predictive)
        return np.maximum((middle - z0) / down, (z0 - middle) / up)

    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        middle, down, up = self._arms(predictive)
        for k in ks:
            yield (middle - k * down)[:, None], (middle + k * up)[:, None]


@dataclass(frozen=True, kw_only=True)
class MembersLength(Region):
    """The union of mean +- k sigma of each member of a mixture.

    Members that found different vertices give two short regions in place of a long one over both.
    Other forms count as one member. Cost: a sort of the members per event.
    """

    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        means, sigmas, _ = members(predictive)
        return np.asarray((np.abs(z0[:, None] - means) / sigmas).min(1))

    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        means, sigmas, _ = members(predictive)
        for k in ks:
            yield means - k * sigmas, means + k * sigmas


@dataclass(frozen=True, kw_only=True)
class FoundOrLost(Region):
    """Short around the vertex where the event is sure, and the beam spot too where it is not.

    A vertex is found, or lost: another collision was taken, and then the true one lies anywhere
    in the beam spot. So z0 has the density (1 - p) N(z; mean, scale x sigma) + p N(z; beam),
    with p of each event from its stated sigma: logit p = a + b log sigma. The region is where one
    of the two terms exceeds exp(-k), the shortest on average for a containment if the density is
    right (Neyman and Pearson 1933), and contains what it should even if it is not. A lost event
    is one more than `far` cm off. A mixture contributes each member with its weight.

    `fit` learns `scale` (68.27 % of the found within one sigma), p, and the beam spot (mean and
    standard deviation of the true z). `far`: 0.5 to 1 cm gave the same; much smaller takes tails
    of the resolution for losses. `margin` (cm): added on both sides of the members' parts,
    against shifts of the detector, which no sigma knows, and tails of the resolution. Where sigma
    says nothing, p and the region are the same for all. Cost: a logistic fit of two numbers.
    """

    far: float = 1.0
    margin: float = 0.3
    scale: float = 1.0
    intercept: float = 0.0
    slope: float = 0.0
    least: float = 0.0  # p: what n events without a loss cannot exclude
    beam: tuple[float, float] = (0.0, 5.3)  # cm

    def __post_init__(self) -> None:
        if not self.far > 0:
            raise ConfigError(f"`far` must be positive (cm), got {self.far}")
        if not self.margin >= 0:
            raise ConfigError(f"`margin` must not be negative (cm), got {self.margin}")

    def fit(self, predictive: Predictive, z0: Floats) -> FoundOrLost:
        means, sigmas, _ = members(predictive)
        off = np.abs(z0[:, None] - means)
        nearest = off.argmin(1)[:, None]
        off, sigma = (np.take_along_axis(each, nearest, 1)[:, 0] for each in (off, sigmas))
        lost = off > self.far
        if lost.all():
            raise DataError(
                f"all {len(z0)} vertices are more than {self.far} cm off; is `far` in cm, and are "
                "predictions and truths of the same events?"
            )
        intercept, slope = logistic(np.log(predictive.std), lost)
        return replace(
            self,
            scale=max(float(np.quantile((off / sigma)[~lost], ONE_SIGMA)), 1e-6),
            intercept=intercept,
            slope=slope,
            least=0.5 / len(z0),
            beam=(float(z0.mean()), float(z0.std())),
        )

    def lost(self, predictive: Predictive) -> Floats:
        """Probability that the vertex is lost, (n,)."""
        logit = self.intercept + self.slope * np.log(predictive.std)
        return np.clip(1 / (1 + np.exp(-np.clip(logit, -50, 50))), self.least, 1 - 1e-9)

    def opened(self, predictive: Predictive, k: float) -> NDArray[np.bool_]:
        """Whether the region of each event takes in the beam spot, (n,)."""
        _, _, heights = self._terms(predictive)
        return np.asarray(k + heights[:, -1] > 0)

    def _terms(self, predictive: Predictive) -> tuple[Floats, Floats, Floats]:
        """Means, standard deviations and log heights of the density's terms, (n, members + 1)."""
        means, sigmas, weights = members(predictive)
        lost = self.lost(predictive)[:, None]
        shares = np.concatenate([(1 - lost) * weights, lost], 1)
        one = np.ones_like(lost)
        means = np.concatenate([means, self.beam[0] * one], 1)
        sigmas = np.concatenate([self.scale * sigmas, self.beam[1] * one], 1)
        # A member of no weight gets a height that no k reaches.
        return means, sigmas, np.log(np.maximum(shares, 1e-300) / (sigmas * ROOT_2PI))

    def _margins(self, terms: int) -> Floats:
        """The margin of each term, (terms,); the beam spot needs none."""
        return np.array([self.margin] * (terms - 1) + [0.0])

    def score(self, predictive: Predictive, z0: Floats) -> Floats:
        means, sigmas, heights = self._terms(predictive)
        off = np.maximum(np.abs(z0[:, None] - means) - self._margins(means.shape[1]), 0)
        return np.asarray(-(heights - 0.5 * (off / sigmas) ** 2).max(1))

    def ends(self, predictive: Predictive, ks: Iterable[float]) -> Iterator[Ends]:
        means, sigmas, heights = self._terms(predictive)
        margins = self._margins(means.shape[1])
        for k in ks:
            room = k + heights
            half = np.where(room >= 0, margins + sigmas * np.sqrt(2 * np.maximum(room, 0)), 0)
            yield means - half, means + half


def revealed(predictive: Predictive, z0: Floats, far: float = 1.0) -> Mixture:
    """The same vertices with a sigma that knows the losses: 20 cm for those, its own elsewhere.

    With `FoundOrLost` it gives the limit of what a better stated sigma could gain by telling
    losses alone.
    """
    lost = np.abs(z0 - predictive.mean) > far
    sigma = np.where(lost, REACH, np.minimum(predictive.std, far))
    return Mixture.gaussian(predictive.mean, sigma**2)


def members(predictive: Predictive) -> tuple[Floats, Floats, Floats]:
    """Means and sigmas (n, m) and weights (m,) of the members; m is 1 but for mixtures."""
    if not isinstance(predictive, Mixture):
        return predictive.mean[:, None], predictive.std[:, None], np.ones(1)
    m = predictive.means.shape[-1]
    weights = np.full(m, 1 / m) if predictive.weights is None else predictive.weights
    return predictive.means, np.sqrt(predictive.variances), weights


def union_length(low: Floats, high: Floats, reach: float) -> Floats:
    """Length of the union of the intervals of each row (n, parts), within +-`reach`; (n,)."""
    low, high = np.clip(low, -reach, reach), np.clip(high, -reach, reach)
    if low.shape[1] == 1:
        return np.asarray((high - low)[:, 0])
    order = low.argsort(1)
    low, high = np.take_along_axis(low, order, 1), np.take_along_axis(high, order, 1)
    covered = np.maximum.accumulate(high, 1)
    start = np.maximum(low[:, 1:], covered[:, :-1])
    rest = np.maximum(high[:, 1:] - start, 0).sum(1)
    return np.asarray(high[:, 0] - low[:, 0] + rest)


def logistic(x: Floats, hit: NDArray[np.bool_]) -> tuple[float, float]:
    """Intercept and slope of logit P(hit) = a + b x, where a slightly ridged likelihood peaks.

    The ridge (a Gaussian prior of standard deviation 30 on the standardised numbers) keeps them
    finite where x separates the two kinds, where there is only one, or where x is constant.
    """
    centre, spread = float(x.mean()), float(x.std())
    u = (x - centre) / spread if spread > 1e-9 else np.zeros_like(x)
    sign = np.where(hit, 1.0, -1.0)

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (w[0] + w[1] * u)
        pull = -sign / (1 + np.exp(np.clip(margin, -500, 500)))
        value = np.logaddexp(0, -margin).sum() + 0.5 * (w @ w) / 900
        return float(value), np.array([pull.sum(), pull @ u]) + w / 900

    a, b = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    if spread <= 1e-9:
        return float(a), 0.0
    return float(a - b * centre / spread), float(b / spread)
