"""The calibrator of class probabilities: one temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Categorical
from stillfit.uncertainty.checks import classes

REACH = math.log(100.0)  # of the search, either way from 1
TINY = float(np.finfo(np.float64).tiny)


class TemperatureState(NamedTuple):
    """`temperature`: > 0, above 1 where the model was too sure. `n`: rows behind it."""

    temperature: float
    n: int


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """Each member's probabilities to the power 1 / T, normalised: softmax of logits / T.

    T is that of the largest likelihood of the members' mean, between 0.01 and 100. For a single
    member the order of the classes, and so the accuracy, stays. `least`: fewest rows.
    Cost: one power per class and member; fit: ~40 likelihoods. Source: Guo et al. 2017,
    arXiv:1706.04599.
    """

    least: int = 20

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError(f"least must be 1 row or more, got {self.least}")

    def init(self) -> TemperatureState:
        return TemperatureState(1.0, 0)

    def fit(self, predictive: Categorical, y: ArrayLike) -> TemperatureState:
        truths = classes(y, len(predictive))
        if len(truths) < self.least:
            raise DataError(
                f"{len(truths)} calibration rows are too few for a temperature: at least "
                f"{self.least} are needed; add rows, or lower `least`"
            )

        def loss(log: float) -> float:
            warm = self.apply(TemperatureState(math.exp(log), 0), predictive)
            return -float(np.mean(warm.log_prob(truths)))

        found = optimize.minimize_scalar(
            loss, bounds=(-REACH, REACH), method="bounded", options={"xatol": 1e-7}
        )
        return TemperatureState(math.exp(found.x), len(truths))

    def apply(self, state: TemperatureState, predictive: Categorical) -> Categorical:
        logs = np.log(np.maximum(predictive.members, TINY)) / state.temperature
        powers = np.exp(logs - logs.max(-1, keepdims=True))
        return Categorical(powers / powers.sum(-1, keepdims=True))
