"""Statistics that turn a stream into evidence: `init() -> state`, `step(state, ...)`."""

from stillfit.monitors.contract import LabelMonitor, UnlabelledMonitor
from stillfit.monitors.cusum import CusumState, ErrorCusum, ScoreCusum
from stillfit.monitors.drift import DriftState, InputDrift
from stillfit.monitors.late import LateMetric, LateState

__all__ = [
    "CusumState",
    "DriftState",
    "ErrorCusum",
    "InputDrift",
    "LabelMonitor",
    "LateMetric",
    "LateState",
    "ScoreCusum",
    "UnlabelledMonitor",
]
