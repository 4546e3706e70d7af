"""The uncertainty score: one number per event, read from what the serving version said."""

from __future__ import annotations

import numpy as np

from stillfit.core.arrays import Ragged, names_of
from stillfit.core.errors import DataError
from stillfit.core.values import Served
from stillfit.monitors.calibrate import Floats, finite


def score_name(output: str | None) -> str:
    """The score in words, for reasons and errors."""
    return "the uncertainty" if output is None else f"the output {output!r}"


def event_score(served: Served, output: str | None) -> Floats:
    """The predictive's standard deviation of each event (n,), or a named output instead.

    Of a ragged output it is the event's mean, 0 without items. `DataError` where the output is
    not there or a value is not finite.
    """
    what = score_name(output)
    if output is None:
        return finite(served.predictive.std, what)
    if output not in served.outputs:
        raise DataError(
            f"the serving model has no output {output!r}; it has {names_of(served.outputs)}"
        )
    column = served.outputs[output]
    if isinstance(column, Ragged):
        sums = np.bincount(column.events, column.values, minlength=len(column))
        return finite(sums / np.maximum(column.counts, 1), what)
    return finite(column, what)
