"""Closed-form recalibration of a vertex finder from a few hundred labelled events.

No gradient, the trained weights stay: tables that take a detector's shifts out of z0, the
threshold of the association, scales of the stated sigmas. Only what is significant is changed,
so that at nominal (almost) nothing is; one set of numbers per condition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillfit.core.arrays import Array, Ragged, take
from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.l1t.e2e import HistogramNetwork
from stillfit.l1t.trackword import SECTORS
from stillfit.l1t.vertexing import (
    BARREL,
    BIN_WIDTH,
    BINS,
    ETA_CELLS,
    REGION,
    SECTOR,
    SIGMA_REGIONS,
    Z0_LSB,
    VertexFinder,
    ragged,
)
from stillfit.models.likelihood import likelihood_of
from stillfit.models.networks import copy_network
from stillfit.models.tensors import tensors

FEWEST = 12  # primary tracks in a cell below which it says nothing
MEDIAN_ERROR = 1.2533 * 1.4826  # of a Gaussian's median, from its mean absolute deviation
ONE_SIGMA = 0.6827
WORTH = 0.02  # cm, rms over the tracks; the best tracks resolve 0.1 cm
SMALLEST_SCALE = 0.05  # relative change of a sigma that is worth a switch
NO_TRACKS = torch.zeros(0, dtype=torch.int64)
REACH = 4.0  # of the threshold's search, in the logit
CHUNK = 1000  # events at a time
TABLES = {"z0_sector": SECTORS, "z0_barrel": 4}  # cells per eta step
Floats = NDArray[np.float64]


class _Seen(NamedTuple):
    """What a finder says of labelled events, flat: per track, and per event (`dz`, `pull`)."""

    residual: Floats  # z0 of the tracks, corrected, minus the true vertex; cm
    sector: NDArray[np.int64]
    barrel: NDArray[np.int64]
    region: NDArray[np.int64]
    sigma: Floats | None  # of the tracks, cm
    logit: Floats  # of the association, before the threshold
    is_pv: NDArray[np.bool_]
    events: NDArray[np.int64]
    pull: Floats  # |z0 - true| / stated sigma of each event


def recalibrate(
    network: nn.Module, examples: Examples, *, significance: float = 3.0
) -> dict[str, Array]:
    """New values of the calibration's numbers that need a change, by name in the network's state.

    In this order, each with the former ones applied:

    1. z0 tables: medians of (z0 - true vertex) of the labelled primary tracks per cell, see
       `table`. The table that explains more goes first, and each is refitted on what the other
       leaves. A table is touched only if the heterogeneity of its cells exceeds `significance`
       and it moves tracks by more than 0.2 mm (rms). Less happens at nominal: where fitted eta
       and z0 decide which layers a track should have hit, cells at the barrel's end are biased.
    2. Track sigmas by |eta| region: mean of |residual| / sigma, the scale's maximum likelihood
       for a Laplace distribution.
    3. Association threshold: highest balanced accuracy, see `threshold`.
    4. The event's sigma: the 68.27 % quantile of |dz| / sigma becomes 1.

    Scales change where they are `significance` standard errors and 5 % away from 1. {} if nothing
    does. All changes are relative to the present calibration: an old correction that is no longer
    true is taken back. Labels are believed: a vertex z that shares the detector's shift (offline
    alignment not yet redone) puts that shift, with the opposite sign, where the detector is right.

    Cost: a few passes of the network over the events. `DataError` without tracks of the vertex.
    """
    if not isinstance(network, VertexFinder):
        raise DataError(
            f"{type(network).__name__} has no calibration tables; only vertex finders have"
        )
    examples.require("z0", "is_pv")
    twin = copy_network(network).eval()
    assert isinstance(twin, VertexFinder)
    seen = _look(twin, examples)
    if not seen.is_pv.any():
        raise DataError(
            "no labelled track belongs to the primary vertex; are the labels matched to tracks?"
        )
    changed: dict[str, Array] = {}

    def change(name: str, value: Array) -> None:
        changed[f"calibration.{name}"] = value.astype(np.float32)
        with torch.no_grad():
            getattr(twin.calibration, name).copy_(torch.from_numpy(value))

    steps = _tables(seen, significance)
    for name, step in steps.items():
        if np.any(step):
            change(name, getattr(twin.calibration, name).detach().numpy() + step)
    if changed:
        seen = _look(twin, examples)
    if seen.sigma is not None:
        scales = _track_scales(seen, significance)
        if np.any(scales != 1):
            change("track_sigma", twin.calibration.track_sigma.numpy() * scales)
            seen = _look(twin, examples)
    if isinstance(twin, HistogramNetwork):
        present = float(twin.calibration.threshold)
        best = threshold(seen.logit, seen.is_pv, seen.events, present, significance)
        if best != present:
            change("threshold", np.array(best))
    scale = event_scale(seen.pull, significance)
    if scale != 1:
        change("sigma_scale", np.array(float(twin.calibration.sigma_scale) * scale))
    return changed


class Fit(NamedTuple):
    """A fitted table: corrections in cm, and two measures of how much they say, see `table`."""

    steps: Floats
    score: float
    explained: float


def table(residual: Floats, cells: NDArray[np.int64], per_eta: int, size: int) -> Fit:
    """Corrections (cm) of `size` cells from residuals of primary tracks, and how much they say.

    Per cell: the median m with its error e (from the spread within the cell's eta step). Cells
    are taken as a mixture of unmoved ones and ones moved by N(0, t^2); the share and t come from
    the cells themselves (empirical Bayes, Johnstone and Silverman 2004,
    doi:10.1214/009053604000000030), and a cell that is more likely moved than not gets its
    posterior mean, to whole steps of the track word's z0 (0.01 cm): less cannot be loaded.

    `score` says in standard errors how far the cells are from all being unmoved: the sum T of
    (m / e)^2 over K cells as a chi-squared number, made normal by its cube root (Wilson and
    Hilferty 1931, doi:10.1073/pnas.17.12.684). `explained` is (T - K) / sqrt(2 K), which compares
    tables of different size: of two that explain the same, the one with fewer cells has more.
    """
    order = np.lexsort((residual, cells))
    counts = np.bincount(cells, minlength=size)
    middle, spread = np.zeros(size), np.full(size, np.inf)
    full = counts >= FEWEST
    starts = np.cumsum(counts) - counts
    ordered = residual[order]
    low = starts[full] + (counts[full] - 1) // 2
    middle[full] = 0.5 * (ordered[low] + ordered[starts[full] + counts[full] // 2])
    # About their own median few tracks spread less than about the true one.
    inflate = np.sqrt(counts / np.maximum(counts - 1, 1))
    deviation = np.abs(residual - middle[cells]) * inflate[cells]
    for step in range(size // per_eta):
        mine = slice(step * per_eta, (step + 1) * per_eta)
        inside = full[cells] & (cells // per_eta == step)
        if inside.any():
            error = MEDIAN_ERROR * np.median(deviation[inside])
            spread[mine] = error / np.sqrt(np.maximum(counts[mine], 1))
    spread[~full] = np.inf
    if not full.any():
        return Fit(np.zeros(size), 0.0, 0.0)
    m, e = middle[full], spread[full]
    width = 2 / (9 * len(m))
    score = float((np.cbrt(np.mean((m / e) ** 2)) - 1 + width) / np.sqrt(width))
    result = np.zeros(size)
    result[full] = np.rint(_posterior(m, e) / Z0_LSB) * Z0_LSB
    explained = len(m) * (np.mean((m / e) ** 2) - 1) / np.sqrt(2 * len(m))
    return Fit(result, score, float(explained))


def _posterior(m: Floats, e: Floats) -> Floats:
    """Posterior means of moved cells, 0 for those that are more likely unmoved."""
    share, t2 = 0.5, max(float(np.mean(m**2 - e**2)), float(np.mean(e**2)))
    moved = np.full(len(m), share)
    for _ in range(50):
        wide = e**2 + t2
        log_odds = 0.5 * (m**2 / e**2 - m**2 / wide + np.log(e**2 / wide))
        log_odds = np.clip(log_odds + np.log(share / (1 - share)), -500, 500)
        moved = 1 / (1 + np.exp(-log_odds))
        share = float(np.clip(moved.mean(), 0.01, 0.99))
        t2 = max(float((moved * (m**2 - e**2)).sum() / moved.sum()), 1e-6)
    return np.where(moved > 0.5, moved * m * t2 / (t2 + e**2), 0.0)


def threshold(
    logit: Floats,
    is_pv: NDArray[np.bool_],
    events: NDArray[np.int64],
    present: float,
    significance: float,
) -> float:
    """The logit from which tracks are associated: highest balanced accuracy, or `present`.

    The gain is measured on the half of the events (odd, even) that did not choose, both ways, and
    must exceed `significance` times its error, events taken as independent. Of all thresholds
    within one error of the best, the one nearest to `present` is taken: the optimum is flat.
    """
    if is_pv.all() or not is_pv.any():
        return present
    grid = present + np.linspace(-REACH, REACH, 161)
    half = events % 2
    gains, variance = [], 0.0
    for part in (0, 1):
        chosen, judged = half == part, half != part
        if min(is_pv[chosen].sum(), is_pv[judged].sum()) == 0:
            return present
        _, curve = _curve(logit[chosen], is_pv[chosen], grid)
        other = float(grid[int(np.argmax(curve))])
        gain, error = _gain(logit[judged], is_pv[judged], events[judged], present, other)
        gains.append(gain)
        variance += error**2 / 4
    if not np.mean(gains) > significance * np.sqrt(variance):
        return present
    grid, curve = _curve(logit, is_pv, grid)
    best = float(grid[int(np.argmax(curve))])
    _, error = _gain(logit, is_pv, events, present, best)
    good = grid[curve >= curve.max() - error]
    return float(good[np.argmin(np.abs(good - present))])


def _curve(logit: Floats, is_pv: NDArray[np.bool_], grid: Floats) -> tuple[Floats, Floats]:
    """Balanced accuracy at each threshold."""
    primary, other = np.sort(logit[is_pv]), np.sort(logit[~is_pv])
    kept = 1 - np.searchsorted(primary, grid) / len(primary)
    refused = np.searchsorted(other, grid) / max(len(other), 1)
    return grid, 0.5 * (kept + refused)


def _gain(
    logit: Floats, is_pv: NDArray[np.bool_], events: NDArray[np.int64], old: float, new: float
) -> tuple[float, float]:
    """Change of the balanced accuracy from threshold `old` to `new`, and its error."""
    better = (logit >= new).astype(np.float64) - (logit >= old)
    share = np.where(is_pv, 0.5 / max(is_pv.sum(), 1), -0.5 / max((~is_pv).sum(), 1))
    each = np.bincount(events, better * share)
    each = each[np.bincount(events) > 0]
    return float(each.sum()), float(np.sqrt(((each - each.mean()) ** 2).sum()))


def event_scale(pull: Floats, significance: float) -> float:
    """Factor on the events' sigma: the 68.27 % quantile of `pull`, or 1.

    It changes where `significance` standard errors of the binomial rank exclude 1, and by at
    least 5 %; at most 50-fold.
    """
    n = len(pull)
    reach = significance * np.sqrt(ONE_SIGMA * (1 - ONE_SIGMA) / max(n, 1))
    below = float(np.mean(pull <= 1)) if n else ONE_SIGMA
    if abs(below - ONE_SIGMA) <= reach:
        return 1.0
    scale = float(np.clip(np.quantile(pull, ONE_SIGMA), 0.02, 50))
    return scale if abs(np.log(scale)) > SMALLEST_SCALE else 1.0


def with_shared_shift(examples: Examples, shift: float) -> Examples:
    """The examples as labelled by an offline reconstruction that is itself off by `shift` (cm).

    Offline tracks are matched to the same vertex, so `is_pv` stays; the vertex z moves. For
    tests and studies of what biased labels do to a recalibration.
    """
    moved = np.asarray(examples.targets["z0"]) + np.float32(shift)
    return Examples(
        examples.ids,
        examples.inputs,
        {**examples.targets, "z0": moved},
        examples.times,
        examples.conditions,
    )


def _tables(seen: _Seen, significance: float) -> dict[str, Floats]:
    """Steps of both tables."""
    mine = seen.is_pv
    residual = seen.residual[mine]
    cells = {"z0_sector": seen.sector[mine], "z0_barrel": seen.barrel[mine]}
    sizes = {name: per_eta * ETA_CELLS for name, per_eta in TABLES.items()}

    def fit(name: str, left: Floats) -> Fit:
        return table(left, cells[name], TABLES[name], sizes[name])

    order = sorted(TABLES, key=lambda name: -fit(name, residual).explained)
    steps = {name: np.zeros(sizes[name]) for name in TABLES}
    for _ in range(3):
        for name in order:
            others = sum(steps[other][cells[other]] for other in TABLES if other != name)
            step, score, _ = fit(name, residual - others)
            worth = float(np.sqrt(np.mean(step[cells[name]] ** 2)))
            applied = score > significance and worth > WORTH
            steps[name] = step if applied else np.zeros(sizes[name])
    return steps


def _track_scales(seen: _Seen, significance: float) -> Floats:
    assert seen.sigma is not None
    scales = np.ones(SIGMA_REGIONS)
    for region in range(SIGMA_REGIONS):
        mine = seen.is_pv & (seen.region == region)
        n = int(mine.sum())
        if n < FEWEST:
            continue
        # A track far away is a wrong match or a kink, not resolution.
        pull = np.minimum(np.abs(seen.residual[mine]) / seen.sigma[mine], 10)
        scale, error = float(pull.mean()), float(pull.std() / np.sqrt(n))
        if abs(scale - 1) > max(significance * error, SMALLEST_SCALE):
            scales[region] = scale
    return scales


def _look(network: VertexFinder, examples: Examples) -> _Seen:
    """Everything needed, in chunks of events."""
    parts: list[_Seen] = []
    flags = examples.targets["is_pv"]
    if not isinstance(flags, Ragged):
        raise DataError("'is_pv' must be a ragged column, one value per track")
    for first in range(0, len(examples), CHUNK):
        rows = slice(first, min(first + CHUNK, len(examples)))
        truth = np.asarray(examples.targets["z0"][rows], np.float64)
        tracks = ragged(tensors(network.prepare(take(examples.inputs, rows))), "tracks")
        with torch.inference_mode():
            found = network.find(tracks)
            sigma = None
            if isinstance(network, HistogramNetwork):
                track_sigma = network.trained(tracks, NO_TRACKS).track_sigma
                sigma = None if track_sigma is None else track_sigma.double().numpy()
            place = network.calibration.place(tracks.values).double().numpy()
            odds = torch.logit(found.association.double().clamp(1e-12, 1 - 1e-12)).numpy()
        events = tracks.events.numpy()
        away = np.abs(found.z0.double().numpy() - truth)
        parts.append(
            _Seen(
                residual=(place - BINS / 2) * BIN_WIDTH - truth[events],
                sector=tracks.values[:, SECTOR].long().numpy(),
                barrel=tracks.values[:, BARREL].long().numpy(),
                region=tracks.values[:, REGION].long().numpy(),
                sigma=sigma,
                logit=odds + float(network.calibration.threshold),
                is_pv=flags[rows].values > 0,
                events=events + first,
                pull=away / likelihood_of(network).predictive(found.raw[None]).std,
            )
        )
    return _Seen(*(_joined([part[k] for part in parts]) for k in range(len(_Seen._fields))))


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)
