"""Fixed-point networks: fake quantisation for training, and exact models in whole numbers."""

from stillfit.models.fixed.calibration import best_format, calibrated
from stillfit.models.fixed.conversion import FACTORIES, convert
from stillfit.models.fixed.formats import Format, decode, encode, requantise
from stillfit.models.fixed.integer import IntegerNetwork, integer
from stillfit.models.fixed.layers import FixedConv1d, FixedDense, FixedLayer, FixedMean, Precision
from stillfit.models.fixed.pruning import MagnitudePruning
from stillfit.models.fixed.quantisers import Quantiser, fake_quantise

__all__ = [
    "FACTORIES",
    "FixedConv1d",
    "FixedDense",
    "FixedLayer",
    "FixedMean",
    "Format",
    "IntegerNetwork",
    "MagnitudePruning",
    "Precision",
    "Quantiser",
    "best_format",
    "calibrated",
    "convert",
    "decode",
    "encode",
    "fake_quantise",
    "integer",
    "requantise",
]
