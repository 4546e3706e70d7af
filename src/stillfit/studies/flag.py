"""When does a retrain flag rise? The delays of all detectors after every change, as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from stillfit.core.errors import ConfigError
from stillfit.l1t.library import Library, load
from stillfit.studies.flag_bench import KINDS, Bench, Row, Setting, onsets_of
from stillfit.studies.initial import cache_folder

Advance: TypeAlias = Callable[[int], None]
SCENARIOS = (
    "dead-sector", "ageing", "misaligned", "resolution", "quality-word", "fakes", "season",
)  # fmt: skip
COLUMNS: dict[str, pa.DataType] = {
    "seed": pa.int64(), "scenario": pa.string(), "change": pa.string(), "label": pa.string(),
    "detector": pa.string(), "kind": pa.string(), "fill_events": pa.int64(), "arl": pa.float64(),
    "events": pa.int64(), "alarms": pa.int64(), "asked": pa.float64(), "horizon": pa.int64(),
    "delay": pa.int64(), "needed": pa.int64(), "late": pa.int64(), "earlier": pa.int64(),
    "error_nominal": pa.float64(), "error_changed": pa.float64(),
    "sigma_nominal": pa.float64(), "sigma_changed": pa.float64(),
}  # fmt: skip


def run(
    out: Path,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    scenarios: Sequence[str] = SCENARIOS,
    events: int = 1000,
    progress: Advance = lambda done: None,
    setting: Setting | None = None,
    library: Library | None = None,
    cache: Path | None = None,
) -> list[Row]:
    """All rows, also in `out/flag.parquet`: seed x change x detector, and nominal x detector.

    `setting` (else the defaults) with its `events` replaced. `progress` is told 1 for each of the
    `units`. Each row has `seed`, `scenario` ("nominal" for the counts of false alarms), `change`,
    `label`, `detector`, `kind`, `fill_events`, `arl` (events between two allowed false alarms)
    and:

    - nominal rows: `events` watched, `alarms` counted, `asked` for;
    - others: `delay` (events served from the onset until the alarm, None: none within the
      `horizon` of so many events), `needed` (events read until then, which for late labels is less
      by their lateness), `late` (delay of the first error monitor), `earlier` = late - delay, and
      what changed: `error_nominal`, `error_changed` (mean task error), `sigma_nominal`,
      `sigma_changed` (median stated sigma, cm), the changed ones over the part that was looked at.

    Cost: simulation, 4-5 k events/s on one core; 16 fills a seed and up to 65 of changes, fewer
    where all detectors have found the change; the first network about 15 s a seed, then cached.
    """
    setting = replace(setting or Setting(), events=events)
    onsets = [onset for name in scenarios for onset in onsets_of(name)]
    if not seeds or not onsets:
        raise ConfigError("a study of the flag needs a seed and a scenario in which things change")
    library = library or load()
    rows: list[Row] = []
    for seed in seeds:
        bench = Bench(setting, seed, library, cache or cache_folder())
        rows += map(_whole, bench.nominal_rows())
        progress(1)
        for onset in onsets:
            rows += map(_whole, bench.change_rows(onset))
            progress(1)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "flag.parquet.tmp"
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(COLUMNS)), partial)
    partial.replace(out / "flag.parquet")
    return rows


def units(seeds: Sequence[int], scenarios: Sequence[str] = SCENARIOS) -> int:
    """How often `run` tells its progress."""
    return len(seeds) * (1 + sum(len(onsets_of(name)) for name in scenarios))


def _whole(row: Row) -> Row:
    return {name: row.get(name) for name in COLUMNS}


def table(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """What the rows came to, over seeds: `false_alarms` (by detector) and `changes` (by change and
    detector), in the order of the rows.

    `false_alarms`: `alarms` counted on `events` nominal events, `asked` for, and the 95 % interval
    of the expected count (`low`, `high`; Garwood 1936, doi:10.1093/biomet/28.3-4.437).

    `changes`: `found` of `runs`; `delay`, the median over the runs, with the smallest and the
    largest (`low`, `high`): they hold the true median with probability 1 - 2^(1 - runs); None
    means beyond the horizon. `needed`: median of events read. `earlier`: median of the events by
    which the flag rose before late labels would have shown it, None unless both rose in most
    runs. `beats_dummy`: the median delay is shorter than half the run length, after which a clock
    that spends the same false alarms has risen on average. `error_nominal`, ...: means.
    """
    nominal, changes = [], []
    for name in dict.fromkeys(row["detector"] for row in rows):
        mine = [r for r in rows if r["detector"] == name and r["scenario"] == "nominal"]
        if mine:
            nominal.append(_alarms(name, mine))
    pairs = dict.fromkeys(
        (row["label"], row["detector"]) for row in rows if row["scenario"] != "nominal"
    )
    for label, name in pairs:
        changes.append(_change([r for r in rows if (r["label"], r["detector"]) == (label, name)]))
    return {"false_alarms": nominal, "changes": changes}


def _alarms(name: str, rows: Sequence[Row]) -> Row:
    count = sum(row["alarms"] for row in rows)
    known = [row["asked"] for row in rows if row["asked"] is not None]
    return {
        "detector": name,
        "kind": KINDS[name],
        "events": sum(row["events"] for row in rows),
        "alarms": count,
        "asked": sum(known) if known else None,
        "low": float(stats.chi2.ppf(0.025, 2 * count) / 2) if count else 0.0,
        "high": float(stats.chi2.ppf(0.975, 2 * count + 2) / 2),
    }


def _change(rows: Sequence[Row]) -> Row:
    first, runs = rows[0], len(rows)
    delays = [math.inf if row["delay"] is None else float(row["delay"]) for row in rows]
    needed = [math.inf if row["needed"] is None else float(row["needed"]) for row in rows]
    leads = [row["earlier"] for row in rows if row["earlier"] is not None]
    middle = _median(delays)
    mean_arl = float(np.mean([row["arl"] for row in rows]))
    means = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("error_nominal", "error_changed", "sigma_nominal", "sigma_changed")
    }
    return {
        "label": first["label"],
        "detector": first["detector"],
        "kind": first["kind"],
        "runs": runs,
        "found": sum(math.isfinite(delay) for delay in delays),
        "delay": _finite(middle),
        "low": _finite(min(delays)),
        "high": _finite(max(delays)),
        "needed": _finite(_median(needed)),
        "horizon": first["horizon"],
        "earlier": float(np.median(leads)) if 2 * len(leads) > runs else None,
        "arl": mean_arl,
        "beats_dummy": middle < mean_arl / 2,
        **means,
    }


def _median(values: Sequence[float]) -> float:
    """The upper median of an even number, so that a miss in half of the runs counts as one."""
    return sorted(values)[len(values) // 2]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
