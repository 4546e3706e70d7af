"""What a stated uncertainty of the vertex buys: purer tracks, and shorter regions to search.

Both uses are tuned on one set of events and judged on another, against the best that one can do
without the uncertainty; 95 % intervals by a bootstrap over events, in which k is tuned again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Floats
from stillfit.l1t.association import Shape, Window, eta_sigma, table_window
from stillfit.l1t.regions import REACH, FixedLength, Region
from stillfit.l1t.stated import Estimate, Stated, binomial, draws, percentiles

EVENT_FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
REPLICAS = 200


# -- association ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WindowUse:
    """An association at the fixed table's track efficiency.

    `purity`: share of the kept tracks that are primary; `gain`: minus the table's around the same
    vertices. `efficiency`: share of primary tracks that are kept; `excess`: minus the table's, 0
    up to the noise of tuning on other events. `window`: as tuned; None for the network's own.
    """

    window: Window | None
    k: float
    purity: Estimate
    table_purity: Estimate
    gain: Estimate
    efficiency: Estimate
    table_efficiency: Estimate
    excess: Estimate
    n_calibration: int
    n_test: int


def association_window(
    calibration: Stated,
    test: Stated,
    *,
    rng: np.random.Generator,
    shape: Shape = "proportional",
    event: Sequence[float] = EVENT_FACTORS,
    track: float = 1.0,
    replicas: int = REPLICAS,
) -> WindowUse:
    """Association by a window of the stated sigmas, at the efficiency of the fixed table.

    On `calibration`, k is tuned for each factor of `event` such that as many primary tracks are
    kept as by `table_window` around the same vertices (the predictive's mean), and the purest
    factor is taken; `test` judges. The track's sigma is its own where the tracks have a `sigma`,
    `eta_sigma` elsewhere. `track=0`: the event's sigma alone.

    The bootstrap resamples the events of both sets and tunes k anew, the factor being kept.
    Cost: a few passes over the tracks; seconds for 80 000 events. `DataError` where the table
    keeps no primary track.
    """
    if not event:
        raise ConfigError("a window needs at least one factor on the event's sigma to try")
    best: tuple[float, Window] | None = None
    is_pv = calibration.values("is_pv") > 0
    efficiency = _kept_by_table(calibration)[is_pv].mean() if is_pv.any() else 0.0
    for factor in event:
        window = Window(shape=shape, event=factor, track=track)
        scores = _window_scores(window, calibration)
        k = _tuned(scores[is_pv], efficiency)
        purity = float(is_pv[scores <= k].mean())
        if best is None or purity > best[0]:
            best = purity, Window(shape=shape, event=factor, track=track, k=k)
    assert best is not None
    window = best[1]
    return _compared(
        calibration,
        test,
        _window_scores(window, calibration),
        _window_scores(window, test),
        window,
        replicas,
        rng,
    )


def network_association(
    calibration: Stated, test: Stated, *, rng: np.random.Generator, replicas: int = REPLICAS
) -> WindowUse:
    """The network's own `association` with its threshold moved to the table's efficiency.

    What a trained classifier makes of the same tracks: it knows pT and quality too.
    """
    scores = [-part.values("association") for part in (calibration, test)]
    return _compared(calibration, test, scores[0], scores[1], None, replicas, rng)


def _window_scores(window: Window, stated: Stated) -> Floats:
    owners = stated.owners
    away = np.abs(stated.values("z0") - stated.predictive.mean[owners])
    sigma = stated.values("sigma") if "sigma" in stated.tracks else eta_sigma(stated.values("eta"))
    if not np.all(sigma > 0) or not np.all(np.isfinite(sigma)):
        bad = sigma[~((sigma > 0) & np.isfinite(sigma))][0]
        raise DataError(
            f"a track's sigma must be positive and finite (cm), got {bad}; did the fit fail?"
        )
    return window.score(away, stated.predictive.std[owners], sigma)


def _kept_by_table(stated: Stated) -> NDArray[np.bool_]:
    away = np.abs(stated.values("z0") - stated.predictive.mean[stated.owners])
    return np.asarray(away <= table_window(stated.values("eta")))


def _tuned(scores: Floats, efficiency: float) -> float:
    """k that keeps the share `efficiency` of tracks."""
    rank = round(efficiency * len(scores))
    if rank == 0:
        raise DataError(
            f"the fixed table keeps none of {len(scores)} primary tracks, so there is no "
            "efficiency to compare at; are predictions and tracks of the same events, in cm?"
        )
    return float(np.partition(scores, rank - 1)[rank - 1])


def _compared(
    calibration: Stated,
    test: Stated,
    tuned_on: Floats,
    judged_on: Floats,
    window: Window | None,
    replicas: int,
    rng: np.random.Generator,
) -> WindowUse:
    """Figures at the table's efficiency; `tuned_on`, `judged_on`: score of each track."""
    is_pv, table = calibration.values("is_pv") > 0, _kept_by_table(calibration)
    k = _tuned(tuned_on[is_pv], table[is_pv].mean() if is_pv.any() else 0.0)
    drawn = draws(len(calibration), replicas, rng)
    ks = np.concatenate([[k], _tuned_again(calibration, tuned_on, is_pv, table, drawn)])
    weights = np.concatenate([np.ones((1, len(test))), draws(len(test), replicas, rng)])
    primary, kept_table = test.values("is_pv") > 0, _kept_by_table(test)
    if not (kept_table & primary).any():
        raise DataError("the fixed table keeps no primary track of the events to judge on")

    def counted(chosen: NDArray[np.bool_]) -> Floats:
        per_event = np.bincount(test.owners[chosen], minlength=len(test))
        return np.asarray(weights @ per_event)

    all_primary = counted(primary)
    kept, kept_primary = _kept(test, judged_on, ks, weights, primary)
    by_table, primary_by_table = counted(kept_table), counted(kept_table & primary)
    purity, table_purity = kept_primary / np.maximum(kept, 1), primary_by_table / by_table
    efficiency, table_efficiency = kept_primary / all_primary, primary_by_table / all_primary
    return WindowUse(
        window=window,
        k=k,
        purity=percentiles(purity),
        table_purity=percentiles(table_purity),
        gain=percentiles(purity - table_purity),
        efficiency=percentiles(efficiency),
        table_efficiency=percentiles(table_efficiency),
        excess=percentiles(efficiency - table_efficiency),
        n_calibration=len(calibration),
        n_test=len(test),
    )


def _tuned_again(
    stated: Stated,
    scores: Floats,
    is_pv: NDArray[np.bool_],
    table: NDArray[np.bool_],
    drawn: Floats,
) -> Floats:
    """k of each resampled calibration set, (replicas,), at the table's efficiency in the same set.

    Only scores near the tuned k can become k: the others are counted per event once.
    """
    n, owners = len(stated), stated.owners[is_pv]
    mine, by_table = scores[is_pv], table[is_pv]
    share, room = by_table.mean(), 3 / math.sqrt(n)  # room: eight standard deviations or more
    low, high = np.quantile(mine, [max(share - room, 0), min(share + room, 1)])
    below = np.bincount(owners[mine < low], minlength=n)
    wanted = drawn @ np.bincount(owners[by_table], minlength=n)
    near = np.flatnonzero((mine >= low) & (mine <= high))
    near = near[np.argsort(mine[near], kind="stable")]
    events, values = owners[near], mine[near]
    ks = np.empty(len(drawn))
    for b, counts in enumerate(drawn):
        upto = np.cumsum(counts[events])
        rank = np.searchsorted(upto, wanted[b] - counts @ below)
        ks[b] = values[min(int(rank), len(values) - 1)]
    return ks


def _kept(
    stated: Stated, scores: Floats, ks: Floats, weights: Floats, primary: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Kept tracks and kept primary tracks at each k with its events' weights, (len(ks),) each."""
    levels, which = np.unique(ks, return_inverse=True)
    # A track is kept from the first level that is not below its score.
    place = np.searchsorted(levels, scores)
    width = len(levels) + 1
    cells = stated.owners * width + place
    sums = []
    for chosen in (cells, cells[primary]):
        table = np.bincount(chosen, minlength=len(stated) * width).reshape(-1, width)
        kept = np.ascontiguousarray(np.cumsum(table, 1, dtype=np.float64).T)
        sums.append(np.einsum("be,be->b", weights, kept[which]))
    return sums[0], sums[1]


# -- region of interest --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RegionUse:
    """Regions tuned to hold the true vertex in a share `coverage` of events.

    `containment`: on the test events, with its binomial (Clopper-Pearson) interval, which is of
    the tuned k and leaves out how k would differ with other calibration events. `length`: mean
    in cm within the luminous region; `shorter`: 1 - length / that of the best fixed length around
    the same vertices, whose own figures are `fixed_length` and `fixed_containment`.
    `confidence`: with which the calibration alone says that the containment is no less than
    `coverage`; about a half unless more was asked for. `misses`: calibration events outside.
    """

    region: Region
    k: float
    coverage: float
    containment: Estimate
    length: Estimate
    fixed_length: Estimate
    fixed_containment: Estimate
    shorter: Estimate
    confidence: float
    misses: int
    n_calibration: int
    n_test: int


def events_needed(coverage: float, confidence: float | None = None) -> int:
    """Calibration events without which no k reaches `coverage`, whatever the method.

    None: on average over calibration sets, n / (n + 1) >= coverage (99 for 99 %, 999 for 99.9 %).
    With a `confidence`: coverage^n <= 1 - confidence (299 and 2995 at 95 %; Wilks 1941,
    doi:10.1214/aoms/1177731788).
    """
    _share(coverage, "a containment")
    if confidence is None:
        return math.ceil(round(coverage / (1 - coverage), 6))
    _share(confidence, "a confidence")
    return math.ceil(math.log1p(-confidence) / math.log(coverage))


def region_of_interest(
    calibration: Stated,
    test: Stated,
    region: Region,
    *,
    coverage: float,
    rng: np.random.Generator,
    confidence: float | None = None,
    reach: float = REACH,
    replicas: int = REPLICAS,
) -> RegionUse:
    """The mean length of `region` at a containment of `coverage`, against the best fixed length.

    k is the smallest that holds ceil((n + 1) coverage) of the n calibration events, which reaches
    `coverage` on average over calibration sets; with a `confidence`, the smallest that reaches it
    in that share of calibration sets. Half of `calibration` goes into the shape of a region
    that has one to learn; the fixed length is tuned on all of it. Regions end at +-`reach` cm,
    and a vertex beyond counts as missed.

    The bootstrap resamples both sets and tunes k anew; a learned shape is kept.
    `DataError` where there are fewer calibration events than `events_needed`.
    """
    # The test events first: the same draws for every region that starts from the same generator.
    weights = np.concatenate([np.ones((1, len(test))), draws(len(test), replicas, rng)])
    rows = np.arange(len(calibration))
    apart = rng.permutation(rows)
    shape, rest = np.sort(apart[: len(rows) // 2]), np.sort(apart[len(rows) // 2 :])
    part = calibration.take(shape)
    fitted = region.fit(part.predictive, part.z0)
    tuning = calibration if fitted is region else calibration.take(rest)
    rank = _rank(len(tuning), coverage, confidence)
    drawn = draws(len(tuning), replicas, rng)
    drawn_all = drawn if tuning is calibration else draws(len(calibration), replicas, rng)
    fixed = FixedLength()
    fixed_rank = _rank(len(calibration), coverage, confidence)
    k, lengths, inside = _lengths(fitted, tuning, test, rank, drawn, weights, reach)
    _, of_fixed, in_fixed = _lengths(
        fixed, calibration, test, fixed_rank, drawn_all, weights, reach
    )
    return RegionUse(
        region=fitted,
        k=k,
        coverage=coverage,
        containment=binomial(inside),
        length=percentiles(lengths),
        fixed_length=percentiles(of_fixed),
        fixed_containment=binomial(in_fixed),
        shorter=percentiles(1 - lengths / np.maximum(of_fixed, 1e-12)),
        confidence=float(stats.binom.cdf(rank - 1, len(tuning), coverage)),
        misses=len(tuning) - rank,
        n_calibration=len(tuning),
        n_test=len(test),
    )


def _lengths(
    region: Region,
    tuning: Stated,
    test: Stated,
    rank: int,
    drawn: Floats,
    weights: Floats,
    reach: float,
) -> tuple[float, Floats, NDArray[np.bool_]]:
    """k, the mean length on the test events and on each replica, and which events are held."""
    scores = _scores(region, tuning, reach)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    places = [rank - 1]
    for counts in drawn:
        places.append(int(np.searchsorted(np.cumsum(counts[order]), rank)))
    ks = ranked[places]
    means = np.empty(len(ks))
    levels = np.unique(ks)
    grown = region.lengths(test.predictive, levels, reach)
    for level, each in zip(levels, grown, strict=True):
        of_level = ks == level
        means[of_level] = (weights[of_level] @ each) / len(test)
    judged = _scores(region, test, reach)
    return float(ks[0]), means, (judged <= ks[0]) & np.isfinite(judged)


def _scores(region: Region, stated: Stated, reach: float) -> Floats:
    scores = region.score(stated.predictive, stated.z0)
    return np.where(np.abs(stated.z0) > reach, np.inf, scores)


def _rank(n: int, coverage: float, confidence: float | None) -> int:
    """The rank among n calibration scores that k is."""
    needed = events_needed(coverage, confidence)
    if n < needed:
        sure = "" if confidence is None else f" with {confidence:.0%} confidence"
        raise DataError(
            f"{n} calibration events cannot show a containment of {coverage:.4g}{sure}: it takes "
            f"{needed}; give more events, or ask for less"
        )
    if confidence is None:
        return min(math.ceil(round((n + 1) * coverage, 6)), n)
    return min(int(stats.binom.ppf(confidence, n, coverage)) + 1, n)


def _share(value: float, what: str) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{what} must lie strictly between 0 and 1, got {value}")
