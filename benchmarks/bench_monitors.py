"""Cost of the monitors on Level-1-like blocks, of their calibration, and of the gates."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from stillfit.core.arrays import Ragged
from stillfit.core.predictive import Mixture
from stillfit.core.values import Served, VersionId
from stillfit.decisions import BetterOnNew, Paired, Probation, Trial
from stillfit.monitors import ErrorCusum, InputDrift, LateMetric, ScoreCusum

Row = tuple[str, float, str]
EVENTS, TRACKS, COLUMNS = 500, 212, 10


def _best(call: Callable[[], object], repeats: int = 30) -> float:
    """Shortest time of a call, in seconds: the one least disturbed by other work."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _block(events: int, rng: np.random.Generator) -> tuple[dict[str, Ragged], Served]:
    """Ten ragged columns of about 212 tracks per event, and an uncertain prediction."""
    counts = rng.poisson(TRACKS, events)
    inputs = {
        f"c{i}": Ragged.from_counts(rng.standard_normal(counts.sum()).astype(np.float32), counts)
        for i in range(COLUMNS)
    }
    predictive = Mixture.gaussian(rng.standard_normal(events), rng.gamma(4, 1, events))
    return inputs, Served(VersionId("0" * 64), predictive)


def run() -> list[Row]:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    nominal, served = _block(3000, rng)
    block, answer = _block(EVENTS, rng)
    ids = np.arange(EVENTS)
    errors, seen = rng.exponential(1, 3000), np.arange(3000.0)
    total = 0.0

    for every in (1, 5):
        drift = InputDrift(every=every)
        state = drift.fit(nominal, served, rate=5000.0, rng=rng)
        took = _best(partial(drift.step, state, 0.0, ids, block, answer))
        items = EVENTS * TRACKS * COLUMNS / every
        label = f"input drift, 10 columns x 212 tracks, every={every}"
        rows.append((label, 1e3 * took * 100 / EVENTS, "ms / 100 events"))
        rows.append((f"input drift, per counted item, every={every}", 1e9 * took / items, "ns"))
    total += took

    score = ScoreCusum()
    fitted = score.fit({}, served, rate=5000.0, rng=rng)
    took = _best(lambda: score.step(fitted, 0.0, ids, block, answer))
    rows.append(("score CUSUM", 1e3 * took * 100 / EVENTS, "ms / 100 events"))
    total += took

    cusum = ErrorCusum()
    fitted = cusum.fit(errors, rate=5000.0, rng=rng)
    late, when = errors[:EVENTS], seen[:EVENTS]
    took = _best(lambda: cusum.step(fitted, 500.0, when, late))
    rows.append(("error CUSUM", 1e3 * took * 100 / EVENTS, "ms / 100 events"))
    long = rng.exponential(1, 1_000_000)
    at = np.arange(1e6)
    took_long = _best(lambda: cusum.step(fitted, 1e6, at, long), 5)
    rows.append(("error CUSUM, one long block", len(long) / took_long / 1e6, "M updates / s"))
    total += took

    metric = LateMetric(window=2000)
    full, _ = metric.step(metric.fit(errors, rate=1.0, rng=rng), 3e3, seen, errors)
    took = _best(lambda: metric.step(full, 4e3, seen[:EVENTS] + 3000, late))
    rows.append(("late metric, window 2000", 1e3 * took * 100 / EVENTS, "ms / 100 events"))
    total += took
    rows.append(("all four, drift at every=5", 1e3 * total * 100 / EVENTS, "ms / 100 events"))

    drift = InputDrift(every=5)
    took = _best(lambda: drift.fit(nominal, served, rate=5000.0, rng=rng), 3)
    rows.append(("calibrate input drift, 3000 events", took, "s"))
    took = _best(lambda: cusum.fit(errors, rate=5000.0, rng=rng), 3)
    rows.append(("calibrate a CUSUM, 3000 events", took, "s"))

    pair = Paired(candidate=rng.exponential(1, 5000), incumbent=rng.exponential(1, 5000))
    took = _best(lambda: BetterOnNew().judge(Trial(new=pair)))
    rows.append(("gate BetterOnNew, 5000 held-out events", 1e3 * took, "ms"))
    probation = Probation()
    start = probation.init()
    took = _best(
        lambda: probation.judge(probation.step(start, pair.candidate[:500], pair.incumbent[:500]))
    )
    rows.append(("probation, 500 late labels", 1e3 * took, "ms"))
    return rows
