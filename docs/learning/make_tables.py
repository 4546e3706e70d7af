"""Print the tables of a finished study as Markdown, for the pages of this folder.

    .venv/bin/python docs/learning/make_tables.py runs/activity [--figures accuracy,auc]

Mean over seeds with the half-width of its 95 % interval. `--figures`: further figures at the end,
of the conditions that were seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from stillfit.studies.continual.results import lines, metric, recovered
from stillfit.studies.continual.run import Found
from stillfit.studies.continual.scenarios import SCENARIOS
from stillfit.studies.continual_metrics import Interval


def read(folder: Path) -> Found:
    """What a study left under its folder."""
    return Found(*(pq.read_table(folder / f"{name}.parquet").to_pylist() for name in Found._fields))


def table(found: Found, scenario: str, figures: Sequence[str]) -> list[str]:
    """Best first; strategies that never changed the network, with their reason, come last."""
    known = SCENARIOS[scenario]
    further = {name: metric(found, scenario, name, "average_end") for name in figures}
    head = ["strategy", f"{known.headline} at the end", "minus retrain", "forgetting", "anytime"]
    head += [name.replace("_", " ") for name in figures]
    head += ["learner", "RAM", "seconds"]
    rows = [head, ["---"] * len(head)]
    made = sorted(lines(found, scenario), key=lambda one: -(one.value.mean if one.value else -9))
    for line in made:
        cost = line.costs
        row = [line.title, _said(line.value), _said(line.against, sign=True)]
        row += [_said(line.metrics.get(name)) for name in ("forgetting", "anytime")]
        row += [_said(further[name].get(line.strategy)) for name in figures]
        row += [_bytes(cost.get("memory_bytes")), _bytes(cost.get("ram_bytes"))]
        row.append(f"{cost.get('seconds', 0):.1f}" + ("" if line.moved else " (never changed)"))
        rows.append(row)
    return ["| " + " | ".join(row) + " |" for row in rows]


def recovery(found: Found, scenario: str, figure: str) -> list[str]:
    """Labelled events to 95 % of what retraining reaches, by condition and seed."""
    known = recovered(found, scenario, figure)
    conditions = list(dict.fromkeys(one.condition for one in known))
    rows = [["strategy", *conditions], ["---"] * (len(conditions) + 1)]
    for strategy in dict.fromkeys(one.strategy for one in known):
        by = {one.condition: one.events for one in known if one.strategy == strategy}
        rows.append([strategy, *(_events(by.get(name, ())) for name in conditions)])
    return ["| " + " | ".join(row) + " |" for row in rows] if known else []


def _said(value: Interval | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    mean = f"{value.mean:+.3f}" if sign else f"{value.mean:.3f}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ± {(value.high - value.low) / 2:.3f}"


def _bytes(value: float | None) -> str:
    if not value:
        return ""
    return f"{value / 2**20:.1f} MB" if value >= 2**20 else f"{value / 2**10:.1f} KB"


def _events(events: Sequence[float | None]) -> str:
    return ", ".join("never" if n is None else f"{n:.0f}" for n in events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figures", default="")
    parser.add_argument("--recovery", default="", help="figure, for a table of events to recover")
    asked = parser.parse_args()
    found = read(asked.folder)
    for scenario in dict.fromkeys(str(run["scenario"]) for run in found.runs):
        figures = [name for name in asked.figures.split(",") if name]
        parts = [f"### {SCENARIOS[scenario].title}", "", *table(found, scenario, figures), ""]
        if asked.recovery:
            parts += [*recovery(found, scenario, asked.recovery), ""]
        print("\n".join(parts))


if __name__ == "__main__":
    main()
