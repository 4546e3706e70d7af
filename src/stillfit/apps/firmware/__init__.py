"""The commands of `stillfit firmware`.

`group` is what they join; `version` makes a stored version a network again; `footprint`, `build`
(and check), `c` and `learning` are the commands; `project` and `hls` write and check what `build`
needs; `learners` and `rtl` translate embedded strategies for the circuits and the C of `firmware`.
"""

from stillfit.apps.firmware import build, c, footprint, learning
from stillfit.apps.firmware.group import firmware

__all__ = ["build", "c", "firmware", "footprint", "learning"]
