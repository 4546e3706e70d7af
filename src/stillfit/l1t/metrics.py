"""How good a vertex finder is: position, association, and what is made of them, with errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays, Ragged
from stillfit.core.errors import DataError

GROUPS = 20  # of successive events, for the errors of what has no simple one
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class VertexMetrics:
    """The figures of a stretch of `n` events; lengths in cm, momenta in GeV.

    Position: `rms` of the residual z0 - true, core width `width` (p84 - p16) / 2 and the E2E
    authors' `p68_p32` (p68 - p32), `efficiency` |dz| < 0.15 cm and `efficiency_100` < 0.10 cm.
    Association, over all tracks: `auc` of its value, `balanced_accuracy` at the deployed
    threshold, `purity` (share of associated tracks that are primary) and `track_efficiency`
    (share of primary tracks that are associated). `met_width`: core width of each component of
    (missing pT of associated tracks - that of the true primary tracks), None without pT and phi.

    Errors: binomial for efficiencies; for the others the spread of the figure over 20 groups of
    successive events, which counts that tracks of one event belong together.
    """

    n: int
    rms: Figure
    width: Figure
    p68_p32: Figure
    efficiency: Figure
    efficiency_100: Figure
    auc: Figure
    balanced_accuracy: Figure
    purity: Figure
    track_efficiency: Figure
    met_width: Figure | None = None


def vertex_metrics(
    z0: Floats, association: Ragged, targets: Arrays, inputs: Arrays | None = None
) -> VertexMetrics:
    """Metrics of predictions: `z0` (n,), `association` (tracks of n events, from 0 to 1).

    `targets`: `z0` and `is_pv`. `inputs`: with `pt` and `phi`, for the missing pT. Cost: one sort
    of the tracks for the AUC. `DataError` for no events or other tracks than the truth's.
    """
    flags = targets["is_pv"]
    if not isinstance(flags, Ragged) or not np.array_equal(flags.offsets, association.offsets):
        raise DataError("association and truth must be of the same tracks; were rows reordered?")
    n = len(z0)
    if n == 0:
        raise DataError("there are no events to measure on")
    away = np.asarray(z0, np.float64) - np.asarray(targets["z0"], np.float64)
    values, truth = association.values, flags.values > 0

    def tracks_of(rows: slice) -> slice:
        return slice(int(flags.offsets[rows.start]), int(flags.offsets[rows.stop]))

    def position(statistic: Callable[[Floats], float]) -> Figure:
        return grouped(n, lambda rows: statistic(away[rows]))

    def tracks(statistic: Callable[[Floats, NDArray[np.bool_]], float]) -> Figure:
        return grouped(n, lambda rows: statistic(values[tracks_of(rows)], truth[tracks_of(rows)]))

    return VertexMetrics(
        n=n,
        rms=position(lambda d: float(np.sqrt(np.mean(d**2)))),
        width=position(core_width),
        p68_p32=position(lambda d: float(np.subtract(*np.quantile(d, [0.68, 0.32])))),
        efficiency=share(np.abs(away) < 0.15),
        efficiency_100=share(np.abs(away) < 0.10),
        auc=tracks(auc),
        balanced_accuracy=tracks(balanced_accuracy),
        purity=tracks(purity),
        track_efficiency=tracks(track_efficiency),
        met_width=_met(association, flags, inputs),
    )


def core_width(residual: Floats) -> float:
    """(p84 - p16) / 2: the standard deviation of the core, blind to far tails."""
    low, high = np.quantile(residual, [0.16, 0.84])
    return float(high - low) / 2


def auc(values: Floats, truth: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: P(value of a primary track > of another one), ties count half.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747. NaN for a single class.
    """
    positive, negative = np.sort(values[truth]), values[~truth]
    if not len(positive) or not len(negative):
        return float("nan")
    # Sorting the few primary tracks and looking the others up is faster than ranking all.
    below = np.searchsorted(positive, negative, "left").sum(dtype=np.float64)
    up_to = np.searchsorted(positive, negative, "right").sum(dtype=np.float64)
    pairs = float(len(positive)) * len(negative)
    return float(1 - 0.5 * (below + up_to) / pairs)


def balanced_accuracy(values: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean of the shares of primary and other tracks that are judged rightly at 0.5."""
    chosen = values >= 0.5
    if truth.all() or not truth.any():
        return float(np.mean(chosen == truth))
    return float(0.5 * (chosen[truth].mean() + (~chosen[~truth]).mean()))


def purity(values: Floats, truth: NDArray[np.bool_]) -> float:
    """Share of associated tracks that are primary; NaN where none is associated."""
    chosen = values >= 0.5
    return float(truth[chosen].mean()) if chosen.any() else float("nan")


def track_efficiency(values: Floats, truth: NDArray[np.bool_]) -> float:
    """Share of primary tracks that are associated; NaN where there are none."""
    return float((values[truth] >= 0.5).mean()) if truth.any() else float("nan")


def share(hits: NDArray[np.bool_]) -> Figure:
    """A share with its binomial error, kept from 0 at the ends (Agresti and Coull 1998)."""
    n = len(hits)
    value = float(hits.mean())
    shrunk = (hits.sum() + 2) / (n + 4)
    return Figure(value=value, error=float(np.sqrt(shrunk * (1 - shrunk) / (n + 4))))


def grouped(n: int, statistic: Callable[[slice], float]) -> Figure:
    """A statistic of all rows, its error from the spread over groups of successive rows."""
    edges = np.linspace(0, n, min(GROUPS, n) + 1).astype(int)
    parts = [statistic(slice(int(a), int(b))) for a, b in pairwise(edges)]
    known = np.array([part for part in parts if np.isfinite(part)])
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return Figure(value=statistic(slice(0, n)), error=error)


def _met(association: Ragged, flags: Ragged, inputs: Arrays | None) -> Figure | None:
    if inputs is None or "pt" not in inputs or "phi" not in inputs:
        return None
    pt, phi = inputs["pt"], inputs["phi"]
    assert isinstance(pt, Ragged) and isinstance(phi, Ragged)
    n, events = len(flags), flags.events
    wrong = pt.values * ((association.values >= 0.5).astype(np.float64) - (flags.values > 0))
    parts = [
        np.bincount(events, wrong * direction(phi.values), minlength=n)
        for direction in (np.cos, np.sin)
    ]
    return grouped(n, lambda rows: core_width(np.concatenate([part[rows] for part in parts])))


def as_figures(metrics: VertexMetrics) -> Mapping[str, float]:
    """The figures under the names of summaries and reports, `x_err` beside `x`."""
    named = {
        "efficiency": metrics.efficiency,
        "balanced_accuracy": metrics.balanced_accuracy,
        "auc": metrics.auc,
        "width_cm": metrics.width,
        "p68_p32_cm": metrics.p68_p32,
        "rms_cm": metrics.rms,
        "efficiency_100": metrics.efficiency_100,
        "purity": metrics.purity,
        "track_efficiency": metrics.track_efficiency,
        "met_width_gev": metrics.met_width,
    }
    figures: dict[str, float] = {}
    for name, figure in named.items():
        if figure is not None and np.isfinite(figure.value):
            figures[name] = figure.value
            if np.isfinite(figure.error):
                figures[f"{name}_err"] = figure.error
    return figures
