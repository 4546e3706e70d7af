"""Learning on with few labels: the network's own sure answers, or inputs alone."""

from stillfit.updaters.labels.normalisation import AdaptNormalisation
from stillfit.updaters.labels.pseudo import PseudoLabels

__all__ = ["AdaptNormalisation", "PseudoLabels"]
