"""Calibrators: wrap the predictions of any method so that what they state comes true."""

from stillfit.uncertainty.calibrators.classes import TemperatureScaling, TemperatureState
from stillfit.uncertainty.calibrators.conformal import (
    ConformalQuantile,
    ConformalState,
    NormalisedConformal,
    SplitConformal,
)
from stillfit.uncertainty.calibrators.contract import Calibrator, Interval, OnlineCalibrator
from stillfit.uncertainty.calibrators.online import ACI, AciState, NExCP, NexcpState
from stillfit.uncertainty.calibrators.scaling import ScalingState, VarianceScaling, scaled

__all__ = [
    "ACI",
    "AciState",
    "Calibrator",
    "ConformalQuantile",
    "ConformalState",
    "Interval",
    "NExCP",
    "NexcpState",
    "NormalisedConformal",
    "OnlineCalibrator",
    "ScalingState",
    "SplitConformal",
    "TemperatureScaling",
    "TemperatureState",
    "VarianceScaling",
    "scaled",
]
