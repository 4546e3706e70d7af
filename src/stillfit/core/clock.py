"""The clock is the stream's: seconds since its epoch, which never go back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillfit.core.errors import OrderError

MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Clock:
    """Time of the last event of the stream, in seconds."""

    now: float = -math.inf

    def at(self, time: float) -> Clock:
        """The clock moved to `time`; `OrderError` if that lies in the past."""
        if not math.isfinite(time):
            raise OrderError(f"an event has the time {time}; times must be finite seconds")
        if time < self.now:
            raise OrderError(
                f"an event of time {time:.3f} s came after one of {self.now:.3f} s; "
                "events must arrive in order of time: sort the recording, or state label delay"
            )
        return Clock(time)
