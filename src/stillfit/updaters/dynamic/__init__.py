"""Updaters that change which weights a network has, inside a footprint limit."""

from stillfit.updaters.dynamic.compressing import Compress, widths_of
from stillfit.updaters.dynamic.growing import Grow
from stillfit.updaters.dynamic.packing import PackNet

__all__ = ["Compress", "Grow", "PackNet", "widths_of"]
