"""The shift study as files: Parquet tables and one page with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillfit.apps.progress import Progress, silent
from stillfit.apps.report.uncertainty import mean_over_seeds, render
from stillfit.apps.summary import write_text
from stillfit.studies import online_calibration
from stillfit.studies.shift import SHIFTS, Found, Row, ShiftStudy, run

PAGE = "report.html"
COLUMNS = (
    "efficiency", "rmse", "nll", "crps", "ence", "coverage_90", "width_90", "ause_rmse",
    "auroc_failures",
)  # fmt: skip


def shift_study(
    study: ShiftStudy, out: Path, *, workers: int = 1, progress: Progress = silent
) -> Found:
    """Run (or go on with) the study; writes its rows as Parquet and the page."""
    torch.set_num_threads(1)  # see threads in docs/design.md
    found = run(study, out, workers=workers, progress=progress)
    facts = (
        f"vertex network {study.network}, {study.training:,} training events, {study.test:,} test "
        f"events per condition, seeds {', '.join(map(str, study.seeds))}"
    )
    write_text(out / PAGE, render(found, online=_online(), facts=facts))
    return found


def _online() -> Mapping[str, Sequence[tuple[float, float]]]:
    """Rolling coverage of the calibrators on the gradual drift: one seed, every 200th window."""
    window = 1000
    tracked = online_calibration.study(window=window, seeds=(0,))
    return {
        name: [
            (float(place + window), float(seen.rolling[0, place]))
            for place in range(0, seen.rolling.shape[1], 200)
        ]
        for name, seen in tracked.items()
    }


def table(scores: Sequence[Row], costs: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per method: figures at nominal, 90 % coverage at the strongest step of each shift,
    and the cost of a prediction."""
    lines = []
    for method in dict.fromkeys(str(row["method"]) for row in scores):
        raw = [r for r in scores if r["method"] == method and r["calibrator"] == "none"]
        first = raw[0]["shift"]
        calm = [r for r in raw if r["shift"] == first and r["intensity"] == _ends(first)[0]]
        line: dict[str, Any] = {"method": method}
        for name in COLUMNS:
            line[name], line[f"{name}_err"] = mean_over_seeds(calm, name)
        for shift in dict.fromkeys(str(row["shift"]) for row in raw):
            far = [r for r in raw if r["shift"] == shift and r["intensity"] == _ends(shift)[1]]
            line[f"coverage_90_{shift}"], _ = mean_over_seeds(far, "coverage_90")
            line[f"auroc_{shift}"], _ = mean_over_seeds(far, "auroc")
        for name in ("passes", "macs", "parameters", "bytes", "events_per_second"):
            own = [float(cost[name]) for cost in costs if cost["method"] == method]
            line[name] = float(np.mean(own)) if own else float("nan")
        lines.append(line)
    return lines


def _ends(shift: str) -> tuple[float, float]:
    steps = SHIFTS[shift].steps
    return steps[0][0], steps[-1][0]
