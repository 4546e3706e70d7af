"""Learners as circuits: prediction and learning step of an embedded strategy, one multiplier.

`layout` says what is done in which order and how wide everything is, `machine` is the circuit in
Amaranth, `design` what a user holds, `checking` compares it with the kernels after every step.
Needs the extra `[firmware]`.
"""

from stillfit.firmware.learning.checking import Trajectory, check_learner, compiled, state_image
from stillfit.firmware.learning.design import LearnerDesign, learner_rtl
from stillfit.firmware.learning.layout import Cycles
from stillfit.firmware.learning.project import write_learner

__all__ = [
    "Cycles",
    "LearnerDesign",
    "Trajectory",
    "check_learner",
    "compiled",
    "learner_rtl",
    "state_image",
    "write_learner",
]
