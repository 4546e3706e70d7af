"""Ways to make a network state its uncertainty, calibrators that wrap any of them, and scores."""

from stillfit.uncertainty.bayesian import Bayesian
from stillfit.uncertainty.dropout import MCDropout
from stillfit.uncertainty.ensembles import BatchEnsemble, DeepEnsemble, Masksembles
from stillfit.uncertainty.propagation import MomentPropagation

__all__ = [
    "BatchEnsemble",
    "Bayesian",
    "DeepEnsemble",
    "MCDropout",
    "Masksembles",
    "MomentPropagation",
]
