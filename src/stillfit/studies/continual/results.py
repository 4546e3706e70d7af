"""Tables of what a study found: one line per scenario and strategy, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.studies.continual.catalogue import STRATEGIES
from stillfit.studies.continual.run import BASELINE, Found
from stillfit.studies.continual.scenarios import SCENARIOS
from stillfit.studies.continual.setting import LOWER
from stillfit.studies.continual_metrics import Interval, events_to_recover

Row: TypeAlias = Mapping[str, Any]
RIVAL = "retrain"
COSTS = (
    "updates",
    "seconds",
    "microseconds_per_example",
    "labelled_events",
    "memory_bytes",
    "store_bytes",
    "ram_bytes",
    "stored_examples",
    "macs",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A strategy in a scenario. `value`: the headline at the end, mean over conditions (where the
    test is prequential: over rows); `against`: minus that of `retrain`, seed by seed; the other
    metrics by name; `costs`: means over seeds; `why`: of a strategy that has no figures."""

    scenario: str
    strategy: str
    title: str
    family: str
    value: Interval | None
    against: Interval | None
    metrics: Mapping[str, Interval]
    costs: Mapping[str, float]
    why: str = ""

    @property
    def moved(self) -> bool:
        """Whether it has figures of its own: it ever changed the network, or never meant to."""
        return self.value is not None and (
            self.costs.get("updates", 1) > 0 or self.strategy in ("frozen", BASELINE)
        )


def title_of(strategy: str) -> str:
    """The strategy's name in words."""
    return "Class of the row before" if strategy == BASELINE else STRATEGIES[strategy].title


def lines(found: Found, scenario: str) -> list[Line]:
    """One line per strategy, in the catalogue's order; headline figure."""
    kind = SCENARIOS[scenario]
    end = "prequential" if kind.prequential else "average_end"
    values = _values(found, scenario, kind.headline)
    made = []
    for strategy in _strategies(found, scenario):
        runs = [r for r in found.runs if r["scenario"] == scenario and r["strategy"] == strategy]
        mine = values.get(strategy, {})
        known = {name: Interval.of(list(by_seed.values())) for name, by_seed in mine.items()}
        costs = {}
        for name in COSTS:
            cost = [float(run[name]) for run in runs if run.get(name) is not None]
            if cost:
                costs[name] = float(np.mean(cost))
        made.append(
            Line(
                scenario=scenario,
                strategy=strategy,
                title=title_of(strategy),
                family=str(runs[0]["family"]),
                value=known.get(end),
                against=_difference(mine.get(end, {}), values.get(RIVAL, {}).get(end, {})),
                metrics=known,
                costs=costs,
                why=_why(runs, bool(known)),
            )
        )
    return made


def _why(runs: Sequence[Row], judged: bool) -> str:
    """Why there are no figures, or no update, or why the device could not do it."""
    said = [
        str(run["because"])
        for run in runs
        if run.get("because")
        and (not judged or not run.get("updates") or "bytes of RAM" in run["because"])
    ]
    return said[0].strip().splitlines()[-1] if said else ""


def _strategies(found: Found, scenario: str) -> list[str]:
    """In the catalogue's order, so that families stay together; baselines first."""
    there = {str(row["strategy"]) for row in found.runs if row["scenario"] == scenario}
    return [*sorted(there - set(STRATEGIES)), *(name for name in STRATEGIES if name in there)]


def _values(found: Found, scenario: str, figure: str) -> dict[str, dict[str, dict[int, float]]]:
    """strategy -> metric -> seed -> value."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for row in found.metrics:
        if row["scenario"] == scenario and row["figure"] == figure:
            by_metric = values.setdefault(str(row["strategy"]), {})
            by_metric.setdefault(str(row["metric"]), {})[int(row["seed"])] = float(row["value"])
    return values


def _difference(mine: Mapping[int, float], rival: Mapping[int, float]) -> Interval | None:
    both = sorted(set(mine) & set(rival))
    return Interval.of([mine[seed] - rival[seed] for seed in both]) if both else None


def metric(found: Found, scenario: str, figure: str, name: str) -> dict[str, Interval]:
    """One metric of one figure by strategy."""
    values = _values(found, scenario, figure)
    return {s: Interval.of(list(m[name].values())) for s, m in values.items() if name in m}


def mean_matrix(
    found: Found, scenario: str, strategy: str, figure: str
) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the conditions, and R as the mean over seeds.

    Where the conditions' order is drawn with the seed, a column is a place in the sequence.
    """
    rows = [
        row
        for row in found.matrix
        if (row["scenario"], row["strategy"], row["figure"]) == (scenario, strategy, figure)
    ]
    if not rows:
        return [], np.zeros((0, 0))
    size = 1 + max(int(row["place"]) for row in rows)
    total, seeds = np.zeros((size + 1, size)), len({row["seed"] for row in rows})
    names: list[set[str]] = [set() for _ in range(size)]
    for row in rows:
        total[row["after"], row["place"]] += row["value"]
        names[row["place"]].add(str(row["condition"]))
    said = [called.copy().pop() if len(called) == 1 else "" for called in names]
    return [name or str(place + 1) for place, name in enumerate(said)], total / seeds


def seen_so_far(matrix: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Mean over the conditions seen after each experience: (experience, figure)."""
    return [(i, float(matrix[i, :i].mean())) for i in range(1, len(matrix))]


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """Labelled events of a new condition until 95 % of the retrained reference is reached.

    `events`: of each seed, None where it never is. `reference`: mean figure of `retrain` on all.
    """

    scenario: str
    strategy: str
    condition: str
    figure: str
    reference: float
    events: tuple[float | None, ...]


def recovered(found: Found, scenario: str, figure: str) -> list[Recovered]:
    """One entry per strategy and condition, where the reference was run."""
    curves: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row in found.recovery:
        if row["scenario"] == scenario and row["figure"] == figure:
            key = (str(row["strategy"]), str(row["condition"]), int(row["seed"]))
            curves.setdefault(key, []).append((float(row["events"]), float(row["value"])))
    made = []
    for strategy in dict.fromkeys(name for name, _, _ in curves):
        for condition in dict.fromkeys(name for _, name, _ in curves):
            seeds = sorted(s for n, c, s in curves if (n, c) == (strategy, condition))
            events, references = [], []
            for seed in seeds:
                rival = curves.get((RIVAL, condition, seed))
                if rival is None:
                    continue
                points = sorted(curves[strategy, condition, seed])
                references.append(rival[-1][1])
                at, values = zip(*points, strict=True)
                events.append(
                    events_to_recover(at, values, rival[-1][1], lower_is_better=figure in LOWER)
                )
            if references:
                made.append(
                    Recovered(
                        scenario=scenario,
                        strategy=strategy,
                        condition=condition,
                        figure=figure,
                        reference=float(np.mean(references)),
                        events=tuple(events),
                    )
                )
    return made
