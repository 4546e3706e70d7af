"""What a learner kept, gained and lost over a sequence of experiences; definitions are tested.

A matrix R has T + 1 rows and T columns: R[i, j] is the figure on the held-out rows of condition j
after experience i, both counted from 1 in the formulas, and row i = 0 is the network before any
of them. Experience j is the one that shows condition j. R may hold scores (higher is better) or
errors (`lower_is_better=True`); every difference below is turned so that its sign means the same
for both, as stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stillfit.core.errors import ConfigError, DataError, ShapeError

Floats: TypeAlias = NDArray[np.float64]


def average_end(matrix: ArrayLike) -> float:
    """mean_j R[T, j]: the figure over all conditions at the end, in the matrix's own unit."""
    return float(_checked(matrix)[-1].mean())


def backward_transfer(matrix: ArrayLike, *, lower_is_better: bool = False) -> float:
    """mean_{j < T} (R[T, j] - R[j, j]): what later experiences did to earlier conditions.

    Positive: they are served better now than right after they were learned, for scores and (with
    the sign turned) for errors. The last condition has no later experience and is left out, as in
    Lopez-Paz and Ranzato 2017, arXiv:1706.08840; with it every value would shrink by (T - 1) / T.
    """
    r = _scores(matrix, lower_is_better, least=2, what="backward transfer")
    return float((r[-1, :-1] - np.diag(r[1:])[:-1]).mean())


def forgetting(matrix: ArrayLike, *, lower_is_better: bool = False) -> float:
    """mean_{j < T} (best_{1 <= i < T} R[i, j] - R[T, j]): positive = forgotten, for both kinds.

    Best: the highest score or the lowest error after any earlier experience, also one before
    condition j was shown; row 0 does not count. Negative where the end is the best of all. Source:
    Chaudhry et al. 2018, arXiv:1801.10112.
    """
    r = _scores(matrix, lower_is_better, least=2, what="forgetting")
    return float((r[1:-1, :-1].max(0) - r[-1, :-1]).mean())


class Forward(NamedTuple):
    """`value` = `before` - `random` for scores, `random` - `before` for errors.

    `before`: mean figure on conditions that are not yet learned, right before they are;
    `random`: that of a network at its random start on the same conditions.
    """

    value: float
    before: float
    random: float


def forward_transfer(
    matrix: ArrayLike, *, random: ArrayLike | None = None, lower_is_better: bool = False
) -> Forward:
    """mean_{j > 1} (R[j - 1, j] - b[j]): what earlier experiences gave to conditions to come.

    Positive: better than no learning at all. `random`: b, the figure of untrained networks on each
    condition, shape (T,), best a mean over several; without it row 0 stands for it, which is right
    only if the network was untrained before the first experience. Source: Lopez-Paz and Ranzato
    2017, arXiv:1706.08840; the term b is stated beside the value, since some libraries leave it
    out.
    """
    r = _checked(matrix)
    _at_least(r, 2, "forward transfer")
    start = r[0] if random is None else np.asarray(random, np.float64)
    if start.shape != (r.shape[1],) or not np.isfinite(start).all():
        raise ShapeError(
            f"`random` must be one finite figure per condition ({r.shape[1]}), got {start}"
        )
    before = float(np.diag(r[1:], 1).mean())
    untrained = float(start[1:].mean())
    value = untrained - before if lower_is_better else before - untrained
    return Forward(value, before, untrained)


def anytime(matrix: ArrayLike) -> float:
    """mean_{i >= 1} mean_{j <= i} R[i, j]: the figure on what was seen so far, all along the way.

    In the matrix's own unit. Source: Caccia et al. 2022, arXiv:2104.05025 (average anytime
    accuracy), here sampled after each experience.
    """
    r = _checked(matrix)[1:]
    return float(np.mean([row[: i + 1].mean() for i, row in enumerate(r)]))


class Prequential(NamedTuple):
    """`mean` over all rows; `curve`: mean of the last `window` rows at every row, shape (n,)."""

    mean: float
    curve: Floats


def prequential(errors: ArrayLike, *, window: int = 1000) -> Prequential:
    """Test-then-train figures of rows in order of time, each made before its row was learned from.

    The first rows of the curve are means of what there is. Source: Gama et al. 2013,
    doi:10.1007/s10994-012-5320-9.
    """
    values = np.asarray(errors, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(
            f"prequential errors must be finite numbers on one axis, got shape {values.shape}"
        )
    if window < 1:
        raise ConfigError(f"window must be at least 1 row, got {window}")
    sums = np.concatenate([np.zeros(1), np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return Prequential(float(values.mean()), (sums[last] - sums[first]) / (last - first))


def last_class(y: ArrayLike) -> Floats:
    """Errors (0 or 1) of predicting the class of the row before; the first row counts as wrong.

    The row that every table of a stream with slow classes must show.
    """
    values = np.asarray(y)
    return np.concatenate([np.ones(min(1, len(values))), values[1:] != values[:-1]])


def events_to_recover(
    events: ArrayLike,
    figures: ArrayLike,
    reference: float,
    *,
    share: float = 0.95,
    lower_is_better: bool = False,
    lasting: bool = True,
) -> float | None:
    """Labelled events after a change until `share` of the retrained reference is reached.

    `figures` were measured after `events` (rising) of the new condition; `reference`: the figure
    of a network retrained on all of it. Reached: score >= share * reference, or error <= reference
    / share. `lasting`: the first point from which on all later ones reach it too, since a noisy
    curve crosses a line too early; False: the first crossing. None: never within the curve.
    """
    at = np.asarray(events, np.float64)
    values = np.asarray(figures, np.float64)
    if at.ndim != 1 or at.shape != values.shape or not len(at):
        raise ShapeError(
            f"a recovery needs one figure for each number of events, got {values.shape} and "
            f"{at.shape}"
        )
    if np.any(np.diff(at) <= 0):
        raise DataError("numbers of events must rise; sort the curve by them")
    if not (np.isfinite(values).all() and np.isfinite(reference)) or min(reference, *values) < 0:
        raise DataError(
            f"a share of the reference needs finite figures not below 0, got {reference} and "
            f"{values.min()} at least"
        )
    if not 0 < share <= 1:
        raise ConfigError(f"share must lie in (0, 1], got {share}")
    reached = values <= reference / share if lower_is_better else values >= share * reference
    if lasting:
        reached = np.logical_and.accumulate(reached[::-1])[::-1]
    return float(at[int(reached.argmax())]) if reached.any() else None


def macro_f1(predicted: ArrayLike, true: ArrayLike, classes: int) -> float:
    """Mean over the classes of F1 = 2 TP / (2 TP + FP + FN), each class weighing the same.

    A class that is neither there nor predicted is left out; one that is only there, or only
    predicted, counts 0.
    """
    p, t = np.asarray(predicted), np.asarray(true)
    if p.shape != t.shape or p.ndim != 1 or not len(t):
        raise ShapeError(f"macro-F1 needs as many predictions as classes, got {p.shape}, {t.shape}")
    for what, values in (("predicted", p), ("true", t)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= classes:
            raise DataError(
                f"{what} classes must be whole numbers from 0 to {classes - 1}, got "
                f"{values.min()} to {values.max()} as {values.dtype}"
            )
    hit = np.bincount(t[p == t], minlength=classes)
    both = np.bincount(t, minlength=classes) + np.bincount(p, minlength=classes)
    here = both > 0
    return float((2 * hit[here] / both[here]).mean())


@dataclass(frozen=True)
class Interval:
    """The mean over `n` seeds with its Student-t interval; None where one seed cannot say."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: ArrayLike, level: float = 0.95) -> Interval:
        """From one value per seed; for a difference of two strategies give its values by seed."""
        x = np.asarray(values, np.float64)
        if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
            raise DataError(f"an interval needs finite values, one per seed, got {x}")
        if not 0 < level < 1:
            raise ConfigError(f"level must lie between 0 and 1, got {level}")
        mean, n = float(x.mean()), len(x)
        if n == 1:
            return cls(mean, None, None, 1)
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * x.std(ddof=1) / np.sqrt(n))
        return cls(mean, mean - half, mean + half, n)


METRICS = (
    "average_end",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "before_learning",
    "random_start",
    "anytime",
)


def metrics(
    matrix: ArrayLike, *, random: ArrayLike | None = None, lower_is_better: bool = False
) -> dict[str, float]:
    """All figures of one matrix by the names of `METRICS`."""
    forward = forward_transfer(matrix, random=random, lower_is_better=lower_is_better)
    values = (
        average_end(matrix),
        backward_transfer(matrix, lower_is_better=lower_is_better),
        forgetting(matrix, lower_is_better=lower_is_better),
        *forward,
        anytime(matrix),
    )
    return dict(zip(METRICS, values, strict=True))


def over_seeds(
    matrices: Sequence[ArrayLike],
    *,
    random: ArrayLike | None = None,
    lower_is_better: bool = False,
    level: float = 0.95,
) -> dict[str, Interval]:
    """The metrics of one matrix per seed, each with its interval."""
    if not len(matrices):
        raise DataError("there are no matrices to summarise; did any seed finish?")
    each = [metrics(m, random=random, lower_is_better=lower_is_better) for m in matrices]
    return {name: Interval.of([one[name] for one in each], level) for name in METRICS}


def _checked(matrix: ArrayLike) -> Floats:
    r = np.asarray(matrix, np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] + 1 or not r.shape[1]:
        raise ShapeError(
            f"an experience matrix has T + 1 rows (row 0: before any) and T columns, got {r.shape}"
        )
    if not np.isfinite(r).all():
        i, j = (int(at) for at in np.argwhere(~np.isfinite(r))[0])
        raise DataError(
            f"the experience matrix holds {r[i, j]} on condition {j + 1} after experience {i}; did "
            "training diverge, or was a cell not measured?"
        )
    return r


def _at_least(r: Floats, least: int, what: str) -> None:
    if r.shape[1] < least:
        raise ShapeError(f"{what} needs at least {least} experiences, the matrix has {r.shape[1]}")


def _scores(matrix: ArrayLike, lower_is_better: bool, least: int, what: str) -> Floats:
    r = _checked(matrix)
    _at_least(r, least, what)
    return -r if lower_is_better else r
