"""Statistics that turn a stream into evidence: `init() -> state`, `step(state, ...)`."""

from stillfit.monitors.contract import LabelMonitor, UnlabelledMonitor
from stillfit.monitors.cusum import CusumState, ErrorCusum, ScoreCusum
from stillfit.monitors.drift import DriftState, InputDrift
from stillfit.monitors.dummies import CountState, EveryKth, Never
from stillfit.monitors.ks import KSState, ScoreKS, ks_distance
from stillfit.monitors.late import LateMetric, LateState
from stillfit.monitors.martingale import ConformalMartingale, MartingaleState, log_martingale

__all__ = [
    "ConformalMartingale",
    "CountState",
    "CusumState",
    "DriftState",
    "ErrorCusum",
    "EveryKth",
    "InputDrift",
    "KSState",
    "LabelMonitor",
    "LateMetric",
    "LateState",
    "MartingaleState",
    "Never",
    "ScoreCusum",
    "ScoreKS",
    "UnlabelledMonitor",
    "ks_distance",
    "log_martingale",
]
