"""Networks and learners as one C99 header: no dependencies, no allocation, static buffers."""

from stillfit.firmware.c99.compiling import Sizes, measured
from stillfit.firmware.c99.inference import network_header
from stillfit.firmware.c99.learning import Learner, Scales, learner_header
from stillfit.firmware.c99.text import Header

__all__ = [
    "Header",
    "Learner",
    "Scales",
    "Sizes",
    "learner_header",
    "measured",
    "network_header",
]
