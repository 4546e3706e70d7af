"""Who asks for a change (policies), who allows it (gates), and when (windows)."""

from stillfit.decisions.gates import (
    BetterOnNew,
    Calibrated,
    Gate,
    NotWorseOnOld,
    Paired,
    Stored,
    Trial,
    WithinBudget,
    all_pass,
)
from stillfit.decisions.ladder import Climb, Ladder, Tried
from stillfit.decisions.policies import (
    AfterTime,
    AnyOf,
    OnDrift,
    OnMetric,
    OnUncertainty,
    Past,
    Policy,
    any_of,
)
from stillfit.decisions.probation import Judgement, Probation, ProbationState
from stillfit.decisions.windows import (
    Always,
    FromNotices,
    Interval,
    Permit,
    Window,
    WindowState,
)

__all__ = [
    "AfterTime",
    "Always",
    "AnyOf",
    "BetterOnNew",
    "Calibrated",
    "Climb",
    "FromNotices",
    "Gate",
    "Interval",
    "Judgement",
    "Ladder",
    "NotWorseOnOld",
    "OnDrift",
    "OnMetric",
    "OnUncertainty",
    "Paired",
    "Past",
    "Permit",
    "Policy",
    "Probation",
    "ProbationState",
    "Stored",
    "Trial",
    "Tried",
    "Window",
    "WindowState",
    "WithinBudget",
    "all_pass",
    "any_of",
]
