"""One factor on the standard deviation: the cheapest calibrator, and the only parametric one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Floats, Mixture, Predictive, QuantileTable, StudentT
from stillfit.uncertainty.calibrators.contract import Interval
from stillfit.uncertainty.checks import coverage_asked, spread, targets

Method = Literal["moment", "likelihood", "robust"]
ONE_SIGMA = math.erf(math.sqrt(0.5))  # 68.27 %
REACH = math.log(1e3)  # of the likelihood's search, either way from the moment's factor


class ScalingState(NamedTuple):
    """`factor`: on the standard deviation, > 0. `n`: calibration rows behind it."""

    factor: float
    n: int


@dataclass(frozen=True, kw_only=True)
class VarianceScaling:
    """Multiply the standard deviation by one factor s, about the mean; the form stays.

    With z = (y - mean) / std of the calibration rows, `method` is
    - `moment`: s^2 = mean of z^2, in closed form. For one Gaussian each it is the factor of the
      largest likelihood; for any form the scaled variance is right on average. One outlier of
      z = 30 in 100 rows makes s = 3.
    - `likelihood`: the s of the largest likelihood of the form itself (mixture, Student-t), by a
      search of one dimension; less sensitive to tails that the form knows. A quantile table has no
      likelihood outside its ends and is refused.
    - `robust`: s such that the central 68.27 % interval holds 68.27 % of the rows; a third of the
      rows may be outliers. It promises nothing about the tails.

    `least`: fewest rows; the factor's relative error is about 1 / sqrt(2 n) on Gaussian errors.
    All parts of the variance scale alike. Cost: one multiplication per row (none where the factor
    is folded into a look-up table); fit: one pass, or ~30 likelihoods.

    Sources: Laves et al. 2020, arXiv:2104.12376; Levi et al. 2022, doi:10.3390/s22155540.
    """

    method: Method = "moment"
    least: int = 20

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(
                f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}"
            )
        if self.least < 1:
            raise ConfigError(f"least must be 1 row or more, got {self.least}")

    def init(self) -> ScalingState:
        return ScalingState(1.0, 0)

    def fit(self, predictive: Predictive, y: ArrayLike) -> ScalingState:
        truths = targets(y, predictive.mean.shape)
        if truths.size < self.least:
            raise DataError(
                f"{truths.size} calibration rows are too few for a factor: at least {self.least} "
                "are needed; add rows, or lower `least`"
            )
        away = truths - predictive.mean
        moment = float(np.sqrt(np.mean((away / spread(predictive)) ** 2)))
        if moment == 0:
            raise DataError(
                "every prediction hits its target exactly, so no factor follows; "
                "was the model calibrated on its own output?"
            )
        if self.method == "moment":
            factor = moment
        elif self.method == "robust":
            factor = _robust(predictive, np.abs(away))
        else:
            factor = _likely(predictive, truths, moment)
        return ScalingState(factor, truths.size)

    def interval(self, state: ScalingState, predictive: Predictive, coverage: float) -> Interval:
        return self.apply(state, predictive).interval(coverage_asked(coverage))

    def apply(self, state: ScalingState, predictive: Predictive) -> Predictive:
        """The same form with its standard deviation times the factor, the mean unchanged."""
        return scaled(predictive, state.factor)


def _robust(predictive: Predictive, away: Floats) -> float:
    low, high = predictive.interval(ONE_SIGMA)
    factor = float(np.quantile(2 * away / (high - low), ONE_SIGMA))
    if factor == 0:
        raise DataError(
            "two thirds of the predictions hit their targets exactly, so no robust factor "
            "follows; use method='moment'"
        )
    return factor


def _likely(predictive: Predictive, truths: Floats, start: float) -> float:
    if isinstance(predictive, QuantileTable):
        raise DataError(
            "a quantile table gives no likelihood outside its ends, so none can be maximised; "
            "use method='moment' or 'robust'"
        )
    found = optimize.minimize_scalar(
        lambda log: -float(np.mean(scaled(predictive, math.exp(log)).log_prob(truths))),
        bounds=(math.log(start) - REACH, math.log(start) + REACH),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(found.x)


@singledispatch
def scaled(predictive: Predictive, factor: float) -> Predictive:
    """The same form with its standard deviation times `factor`, about its unchanged mean."""
    raise DataError(
        f"{type(predictive).__name__} is none of the three forms of a predictive distribution, "
        "so it cannot be scaled"
    )


@scaled.register
def _(predictive: Mixture, factor: float) -> Predictive:
    centre = predictive.mean[..., None]
    return Mixture(
        centre + factor * (predictive.means - centre),
        factor**2 * predictive.variances,
        predictive.weights,
        _parts(predictive.parts, factor),
    )


@scaled.register
def _(predictive: StudentT, factor: float) -> Predictive:
    return StudentT(
        predictive.location,
        factor * predictive.scale,
        predictive.dof,
        _parts(predictive.parts, factor),
    )


@scaled.register
def _(predictive: QuantileTable, factor: float) -> Predictive:
    centre = predictive.mean[..., None]
    return QuantileTable(predictive.levels, centre + factor * (predictive.values - centre))


def _parts(parts: tuple[Floats, Floats] | None, factor: float) -> tuple[Floats, Floats] | None:
    return None if parts is None else (factor**2 * parts[0], factor**2 * parts[1])
