"""Learning as events come: one pass of small steps, and heads that are solved in closed form."""

from stillfit.updaters.online.classes import ClassMoments, NearestMean, StreamingLDA
from stillfit.updaters.online.least_squares import Posterior, RecursiveLeastSquares
from stillfit.updaters.online.sgd import OnlineFineTune, OnlineReplay

__all__ = [
    "ClassMoments",
    "NearestMean",
    "OnlineFineTune",
    "OnlineReplay",
    "Posterior",
    "RecursiveLeastSquares",
    "StreamingLDA",
]
