"""Learning on a small device: fixed point, one example at a time, within measured limits."""

from stillfit.updaters.embedded.budget import EmbeddedBudget, EmbeddedCost
from stillfit.updaters.embedded.device import Account
from stillfit.updaters.embedded.fixed import Format
from stillfit.updaters.embedded.learners import (
    EmbeddedDFA,
    EmbeddedLearner,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
)

__all__ = [
    "Account",
    "EmbeddedBudget",
    "EmbeddedCost",
    "EmbeddedDFA",
    "EmbeddedLMS",
    "EmbeddedLearner",
    "EmbeddedRLS",
    "EmbeddedSGD",
    "EmbeddedSPSA",
    "Exemplars",
    "Format",
]
