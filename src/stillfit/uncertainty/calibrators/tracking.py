"""The inner loop of adaptive conformal inference, compiled: one labelled row after the other."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stillfit.core.predictive import Floats


def _track(
    scores: Floats,
    fresh: int,
    window: int,
    late: int,
    nominal: Floats,
    least: NDArray[np.int64],
    steps: Floats,
    haste: Floats,
    share: float,
    unbounded: bool,
    misses: Floats,
    weights: Floats,
) -> None:
    """Judge the last `fresh` columns of `scores` in turn; `misses`, `weights` change in place.

    Each column is compared with the `window` columns that end `late` columns before it.
    `nominal`, `least`, `haste`: miscoverage, fewest rows and learning rate of each coverage.
    `share`: of the weights that is dealt out anew each row, so that no expert is lost.
    """
    rows, total = scores.shape
    sorted_, losses = np.empty((rows, window)), np.empty(len(steps))
    end = max(0, total - fresh - late)
    first = max(0, end - window)
    n = end - first
    for j in range(rows):
        sorted_[j, :n] = np.sort(scores[j, first : first + n])
    for i in range(total - fresh, total):
        below = 0
        for k in range(len(nominal)):
            if k < rows:
                below = np.searchsorted(sorted_[k, :n], scores[k, i])
            if n < least[k]:
                continue
            # The row is held while the miscoverage asked for stays below `room`.
            room = 1.0 - below / (n + 1.0)
            for e in range(len(steps)):
                asked = misses[k, e]
                losses[e] = nominal[k] * (room - asked) - min(0.0, room - asked)
                rank = np.ceil((n + 1) * (1 - asked) - 1e-9)
                if not unbounded:
                    rank = min(max(rank, 1), n)
                miss = 1.0 if below >= rank else 0.0
                asked += steps[e] * (nominal[k] - miss)
                if not unbounded:
                    asked = min(max(asked, 1 / (n + 1)), n / (n + 1))
                misses[k, e] = asked
            if len(steps) == 1:
                continue
            # Less the least loss, so that not all weights underflow.
            weights[k] *= np.exp(-haste[k] * (losses - losses.min()))
            weights[k] /= weights[k].sum()
            weights[k] = (1 - share) * weights[k] + share / len(steps)
        if i < late:
            continue
        for j in range(rows):
            new = scores[j, i - late]
            at = np.searchsorted(sorted_[j, :n], new)
            # The free place: behind the last, or that of the oldest where the window is full.
            free = n if n < window else np.searchsorted(sorted_[j], scores[j, i - late - window])
            if free < at:
                at -= 1
                for x in range(free, at):
                    sorted_[j, x] = sorted_[j, x + 1]
            else:
                for x in range(free, at, -1):
                    sorted_[j, x] = sorted_[j, x - 1]
            sorted_[j, at] = new
        n = min(n + 1, window)


track: Any = numba.njit(cache=True)(_track)
