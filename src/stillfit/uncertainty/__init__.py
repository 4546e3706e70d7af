"""Ways to make a network state its uncertainty, calibrators that wrap any of them, and scores."""

from stillfit.uncertainty.auxiliary import Auxiliary
from stillfit.uncertainty.bayesian import Bayesian
from stillfit.uncertainty.dropout import MCDropout
from stillfit.uncertainty.ensembles import BatchEnsemble, DeepEnsemble, Masksembles
from stillfit.uncertainty.heads import (
    BetaGaussianHead,
    CrpsHead,
    EvidentialHead,
    GaussianHead,
    QuantileHead,
)
from stillfit.uncertainty.laplace import LastLayerLaplace
from stillfit.uncertainty.propagation import MomentPropagation

__all__ = [
    "Auxiliary",
    "BatchEnsemble",
    "Bayesian",
    "BetaGaussianHead",
    "CrpsHead",
    "DeepEnsemble",
    "EvidentialHead",
    "GaussianHead",
    "LastLayerLaplace",
    "MCDropout",
    "Masksembles",
    "MomentPropagation",
    "QuantileHead",
]
