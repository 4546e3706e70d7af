"""All strategies through all scenarios at all seeds, in processes, each part once.

Every (scenario, strategy, seed) is a file under `parts/`; what an interrupted call finished with
the same knobs is not done again. A strategy whose knobs changed is, and all of a scenario whose
module changed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stillfit.core.errors import ConfigError, StillfitError
from stillfit.core.tables import did_you_mean
from stillfit.core.values import Budget
from stillfit.studies.continual.catalogue import STRATEGIES, Strategy, chosen
from stillfit.studies.continual.journey import CURVE, Journey, travel
from stillfit.studies.continual.scenarios import SCENARIOS, kind_of
from stillfit.studies.continual.setting import LOWER, Options, Recipe, Scenario, Setup
from stillfit.studies.continual_metrics import last_class, metrics
from stillfit.updaters.embedded import EmbeddedBudget

Row: TypeAlias = dict[str, Any]
BASELINE = "last-class"


class Found(NamedTuple):
    """Rows of the study, each with scenario, strategy and seed.

    `runs`: one per run, what it cost and how it ended (`outcome` "done", or "refused", "failed"
    with the reason in `because`). `metrics`: figure, metric, value. `matrix`: R[after, condition]
    by figure. `steps`: every update. `recovery`: figures of a new condition after so many
    labelled events. `curves`: prequential accuracy by row.
    """

    runs: list[Row]
    metrics: list[Row]
    matrix: list[Row]
    steps: list[Row]
    recovery: list[Row]
    curves: list[Row]


@dataclass(frozen=True, kw_only=True)
class ContinualStudy:
    """What is compared: `scenarios` and `strategies` by name (none: all), at each of `seeds`."""

    scenarios: tuple[str, ...]
    strategies: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        for name in self.scenarios:
            if name not in SCENARIOS:
                raise ConfigError(
                    f"there is no scenario {name!r}{did_you_mean(name, SCENARIOS)}; "
                    f"known are {', '.join(SCENARIOS)}"
                )
        chosen(self.strategies, "classes")
        if not self.scenarios or not self.seeds:
            raise ConfigError("a study needs at least one scenario and one seed")
        for name in self.scenarios:
            if SCENARIOS[name].reads:
                path = self.options.file(SCENARIOS[name].reads)
                if not path.is_file():
                    raise ConfigError(f"there is no file {path}; name {SCENARIOS[name].reads}")

    @property
    def jobs(self) -> list[tuple[str, int, str]]:
        """(scenario, seed, strategy); those that share their data come one after the other."""
        return [
            (name, seed, strategy.name)
            for name in self.scenarios
            for seed in self.seeds
            for strategy in chosen(self.strategies, kind_of(SCENARIOS[name]))
        ]


class Told(NamedTuple):
    """One run that is finished, for whoever shows how far the study is."""

    row: Row
    done: int
    total: int
    seconds_left: float
    stored: bool


def run(
    study: ContinualStudy,
    out: Path,
    *,
    workers: int = 1,
    told: Callable[[Told], None] = lambda told: None,
) -> Found:
    """Every run of the study; Parquet files under `out`. Rows are in the order of `study.jobs`."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = study.jobs
    parts: dict[int, Row] = {}
    for place, part in _each(study, out, jobs, workers, told):
        parts[place] = part
    found = Found([], [], [], [], [], [])
    for place in range(len(jobs)):
        for name in Found._fields:
            getattr(found, name).extend(parts[place].get(name, []))
    for scenario in study.scenarios:
        if SCENARIOS[scenario].prequential:
            for seed in study.seeds:
                _baseline(study, scenario, seed, found)
    for name, rows in found._asdict().items():
        _write(out / f"{name}.parquet", rows)
    return found


def _each(
    study: ContinualStudy,
    out: Path,
    jobs: list[tuple[str, int, str]],
    workers: int,
    told: Callable[[Told], None],
) -> Iterator[tuple[int, Row]]:
    clock = _Clock(jobs, workers)
    open_: list[int] = []
    for place, job in enumerate(jobs):
        stored = _stored(_path(out, *job))
        if stored is None or stored.get("key") not in (None, _key(study.options, *job, stored)):
            open_.append(place)
        else:
            told(clock.stored(place, stored))
            yield place, stored
    tasks = {place: (study.options, out, jobs[place]) for place in open_}
    if workers <= 1:
        for place in open_:
            part = _one(tasks[place])
            told(clock.finished(place, part))
            yield place, part
        return
    # A fresh interpreter each: forking a process in which torch has threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_one, tasks[place]): place for place in open_}
        for future in as_completed(futures):
            place, part = futures[future], future.result()
            told(clock.finished(place, part))
            yield place, part


class _Clock:
    """How long the rest will take: mean seconds of finished runs, by strategy where known."""

    def __init__(self, jobs: list[tuple[str, int, str]], workers: int) -> None:
        self.jobs, self.workers = jobs, max(1, workers)
        self.open = set(range(len(jobs)))
        self.taken: dict[tuple[str, str], list[float]] = {}

    def stored(self, place: int, part: Row) -> Told:
        return self._told(place, part, stored=True)

    def finished(self, place: int, part: Row) -> Told:
        return self._told(place, part, stored=False)

    def _told(self, place: int, part: Row, stored: bool) -> Told:
        self.open.discard(place)
        scenario, _, strategy = self.jobs[place]
        row = part["runs"][0]
        self.taken.setdefault((scenario, strategy), []).append(float(row["wall_seconds"]))
        every = [seconds for known in self.taken.values() for seconds in known]
        usual = sum(every) / len(every)
        left = 0.0
        for other in self.open:
            known = self.taken.get((self.jobs[other][0], self.jobs[other][2]))
            left += usual if known is None else sum(known) / len(known)
        done = len(self.jobs) - len(self.open)
        return Told(row, done, len(self.jobs), left / self.workers, stored)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _path(out: Path, scenario: str, seed: int, strategy: str) -> Path:
    return out / "parts" / scenario / f"{strategy}-{seed}.json"


def _stored(path: Path) -> Row | None:
    if not path.is_file():
        return None
    try:
        part: Row = json.loads(path.read_text())
    except ValueError:
        return None
    return part if part.get("runs") and part["runs"][0]["outcome"] != "failed" else None


def _key(options: Options, scenario: str, seed: int, strategy: str, stored: Row) -> str:
    """What a run depends on: options, the knobs, from the stored recipe, and the scenario's module.

    A strategy's own code is not looked at.
    """
    recipe = stored.get("recipe")
    knobs = ""
    if recipe is not None:
        made = _recipe(recipe)
        who = STRATEGIES[strategy]
        knobs = repr([who.make(made, number) for number in (0, made.experiences - 1)])
        knobs += repr((who.whole, who.once, who.every))
    said = repr((replace(options, data=None), scenario, seed, strategy, knobs))
    return hashlib.sha256((said + _source(scenario)).encode()).hexdigest()[:16]


def _source(scenario: str) -> str:
    """The text of the module that builds a scenario: its recipe cannot be had without its data."""
    build = SCENARIOS[scenario].build
    module = inspect.getmodule(build.func if isinstance(build, partial) else build)
    return "" if module is None else inspect.getsource(module)


def _recipe_row(recipe: Recipe) -> Row:
    return {**asdict(recipe), "device": isinstance(recipe.budget, EmbeddedBudget)}


def _recipe(stored: Row) -> Recipe:
    known = {name: value for name, value in stored.items() if name != "device"}
    kind = EmbeddedBudget if stored["device"] else Budget
    return Recipe(**{**known, "budget": kind(**stored["budget"])})


@lru_cache(maxsize=1)
def _setup(scenario: str, options: Options, seed: int) -> Setup:
    """The data of a scenario, shared by the strategies that a process takes in turn."""
    return SCENARIOS[scenario].build(options, seed)


def _one(task: tuple[Options, Path, tuple[str, int, str]]) -> Row:
    """One run, kept as a file; an error of the strategy is a row, not the end of the study."""
    options, out, job = task
    name, seed, strategy = job
    scenario = SCENARIOS[name]
    head = {"scenario": name, "strategy": strategy, "seed": seed}
    setup = _setup(name, options, seed)
    began = time.perf_counter()
    part: Row = {"recipe": _recipe_row(setup.recipe)}
    try:
        journey = travel(setup, STRATEGIES[strategy], seed)
        part |= _rows(scenario, setup, STRATEGIES[strategy], journey, head)
    except StillfitError as error:
        part["runs"] = [{**head, "outcome": "refused", "because": str(error)}]
    except Exception:  # noqa: BLE001  a strategy that breaks must not cost hours of others' runs
        said = traceback.format_exc(limit=-3)
        part["runs"] = [{**head, "outcome": "failed", "because": said}]
    part["runs"][0]["wall_seconds"] = time.perf_counter() - began
    part["runs"][0]["family"] = STRATEGIES[strategy].family
    part["key"] = _key(options, name, seed, strategy, part)
    path = _path(out, *job)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(part))
    temporary.replace(path)
    return part


def _rows(scenario: Scenario, setup: Setup, strategy: Strategy, journey: Journey, head: Row) -> Row:
    steps = journey.steps
    seconds = sum(step.seconds for step in steps)
    seen = sum(_new(setup, steps))
    done: Row = {
        **head,
        "outcome": "done",
        "because": next((step.because for step in steps if not step.updated), ""),
        "updates": sum(step.updated for step in steps),
        "declined": sum(not step.updated for step in steps),
        "seconds": seconds,
        "microseconds_per_example": 1e6 * seconds / max(1, seen),
        "labelled_events": seen if any(step.updated for step in steps) else 0,
        "gradient_steps": sum(step.steps for step in steps),
        "memory_bytes": max((step.memory_bytes for step in steps), default=0),
        "store_bytes": max((step.store_bytes for step in steps), default=0),
        "fresh_bytes": max((step.fresh_bytes for step in steps), default=0),
        "stored_examples": max((step.stored_examples for step in steps), default=0),
        "weight_bytes": journey.weight_bytes,
        "macs": journey.macs,
    }
    # What a device needs: the network, the learner, and the labelled rows that must lie ready.
    kinds = ("weight_bytes", "memory_bytes", "store_bytes", "fresh_bytes")
    done["ram_bytes"] = sum(int(done[kind]) for kind in kinds)
    if setup.ram is not None and done["ram_bytes"] > setup.ram:
        done["because"] = (
            f"needs {done['ram_bytes']:,} bytes of RAM where the device has {setup.ram:,}"
        )
    part: Row = {"runs": [done], "steps": [{**head, **asdict(step)} for step in steps]}
    part["recovery"] = [{**head, **point._asdict()} for point in journey.recovery]
    part["matrix"] = [
        {
            **head,
            "figure": figure,
            "after": after,
            "place": place,
            "condition": setup.names[place],
            "value": value,
        }
        for figure in scenario.figures
        if figure in journey.matrices
        for after, row in enumerate(journey.matrices[figure].tolist())
        for place, value in enumerate(row)
    ]
    part["metrics"] = []
    for figure in scenario.figures:
        if figure not in journey.matrices:
            continue
        r = journey.matrices[figure]
        if not np.isfinite(r).all():
            done["because"] = f"{figure} is not finite: training diverged"
            continue
        found = metrics(r, lower_is_better=figure in LOWER)
        part["metrics"] += [
            {**head, "figure": figure, "metric": metric, "value": value}
            for metric, value in found.items()
        ]
    if len(journey.errors):
        part |= _stream_rows(journey.errors, head)
    return part


def _new(setup: Setup, steps: Any) -> Iterator[int]:
    """Labelled rows that were new at each step; those of one experience are counted from 0."""
    before: tuple[int, int] = (-1, 0)
    for step in steps:
        same = step.experience == before[0] and not setup.prequential
        yield step.events - (before[1] if same else 0)
        before = (step.experience, step.events)


def _stream_rows(errors: np.ndarray, head: Row) -> Row:
    """Accuracy over all rows, and of each week."""
    right = 1 - errors
    weeks = [right[first : first + CURVE] for first in range(0, len(right), CURVE)]
    return {
        "metrics": [
            {**head, "figure": "accuracy", "metric": "prequential", "value": float(right.mean())}
        ],
        "curves": [
            {**head, "row": number * CURVE + len(week), "accuracy": float(week.mean())}
            for number, week in enumerate(weeks)
        ],
    }


def _baseline(study: ContinualStudy, scenario: str, seed: int, found: Found) -> None:
    """The row that predicts the class of the row before, on the same rows as the strategies."""
    head = {"scenario": scenario, "strategy": BASELINE, "seed": seed}
    setup = _setup(scenario, study.options, seed)
    y = np.concatenate([np.asarray(one.train.targets["y"]) for one in setup.experiences])
    errors = last_class(y)[len(setup.experiences[0].train) :]
    rows = _stream_rows(errors, head)
    found.metrics.extend(rows["metrics"])
    found.curves.extend(rows["curves"])
    nothing = {"seconds": 0.0, "memory_bytes": 0, "wall_seconds": 0.0, "ram_bytes": 1}
    found.runs.append(
        {**head, "outcome": "done", "because": "", "family": "reference", "macs": 0, **nothing}
    )


def _write(path: Path, rows: list[Row]) -> None:
    names = sorted({name for row in rows for name in row})
    columns = {name: [_plain(row.get(name)) for row in rows] for name in names}
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(path)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
