"""The vertex networks over seeds and conditions: the tables of docs/vertex-networks.md.

    python benchmarks/study_vertex.py            # the whole study, about 25 minutes on one core
    python benchmarks/study_vertex.py --quick    # one seed, fewer events: 3 minutes

For each seed both networks are trained from nothing on nominal events, then met with each
condition: as they are (frozen), recalibrated in closed form from 200 and 1000 labelled events,
and trained on with 1000 (30 epochs of Adam at 0.002, z0 tables and position bias five times as
fast). Test events are of the library's test split and the same for all; errors combine the
binomial or grouped error of a figure with the spread over the seeds.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.l1t.conditions import (
    Conditions,
    DeadRegion,
    LayerEfficiency,
    SectorShift,
    nominal,
)
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.library import Library, load
from stillfit.l1t.metrics import VertexMetrics, vertex_metrics
from stillfit.l1t.recipe import train_vertex, vertex_examples
from stillfit.l1t.vertex import VertexTask, ragged_column
from stillfit.models.model import Architecture, Model
from stillfit.models.training import Prepared, Schedule, shuffled, train

THIRD = 2 * math.pi / 3
CONDITIONS: dict[str, Conditions] = {
    "nominal": nominal(),
    "barrel against disks 1 mm": replace(nominal(), barrel_z_shift=0.1),
    "barrel against disks 2 mm": replace(nominal(), barrel_z_shift=0.2),
    "barrel +2 mm in a third of phi": replace(
        nominal(), sector_shifts=(SectorShift(z_shift=0.2, phi=(-math.pi, -math.pi + THIRD)),)
    ),
    "barrel PS resolution x5": replace(nominal(), barrel_ps_resolution=5.0),
    "inner layer off, 3x good fakes": replace(
        nominal(), layer_efficiency=LayerEfficiency(B1=0.0), good_fakes=3.0
    ),
    "quality word inverted": replace(nominal(), quality_word="inverted"),
    "inner layer dead in half of phi": replace(
        nominal(), dead_regions=(DeadRegion(phi=(0.0, math.pi), layers=("B1",)),)
    ),
}
KINDS = ("e2e", "adaptive")
TUNED = {"calibration.z0": 5.0, "pattern.bias": 5.0}
Scores = dict[str, list[VertexMetrics]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    seeds = (1,) if quick else (1, 2, 3)
    n_test, n_train = (2000, 15_000) if quick else (8000, 40_000)
    library = load()
    tests = {
        name: vertex_examples(n_test, conditions, library=library, seed=77, split="test")
        for name, conditions in CONDITIONS.items()
    }
    finders: Scores = {}
    for name, arguments in {
        "FastHisto": {"cuts": False},
        "FastHisto, cuts": {},
        "FastHisto, cuts, bin centre": {"position": "centre"},
        "FastHisto, cuts, 12-bit integers": {"arithmetic": "integer"},
    }.items():
        model = Model(FastHisto(**arguments), VertexTask(), Architecture("l1t.fasthisto"))
        finders[name] = [judge(model, tests["nominal"])]
    rows: dict[tuple[str, str], Scores] = {}
    sigmas: dict[str, list[NDArray[np.float64]]] = {}
    for kind in KINDS:
        for seed in seeds:
            began = time.monotonic()
            model = train_vertex(kind, library=library, seed=seed, events=n_train)
            print(f"# {kind} seed {seed}: trained in {time.monotonic() - began:.0f} s", flush=True)
            finders.setdefault(kind, []).append(judge(model, tests["nominal"]))
            sigmas.setdefault(kind, []).append(uncertainty(model, tests["nominal"]))
            for name, conditions in CONDITIONS.items():
                scores = rows.setdefault((kind, name), {})
                meet(model, conditions, tests[name], library, seed, scores)
            print(f"# {kind} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    print_nominal(finders, n_test, len(seeds))
    print_uncertainty(sigmas)
    print_conditions(rows)


def meet(
    model: Model,
    conditions: Conditions,
    test: Examples,
    library: Library,
    seed: int,
    scores: Scores,
) -> None:
    """The ways of dealing with a condition."""
    scores.setdefault("frozen", []).append(judge(model, test))
    labelled = vertex_examples(1000, conditions, library=library, seed=1000 + seed)
    for n in (200, 1000):
        few = labelled.take(slice(0, n))
        changed = model.task.recalibrate(model.network, few)  # type: ignore[attr-defined]
        better = model.with_weights({**model.weights(), **changed})
        scores.setdefault(f"recalibrated {n}", []).append(judge(better, test))
    scores.setdefault("tuned 1000", []).append(judge(tuned(model, labelled, seed), test))


def tuned(model: Model, examples: Examples, seed: int) -> Model:
    """Trained on from the served weights."""
    twin = model.copy()
    schedule = Schedule(steps=30 * len(examples) // 250, batch=250, rate=0.002)
    draw = shuffled(Prepared.of(twin, examples), schedule.batch, Seeds(seed).rng("tune"))
    for _ in train(twin, draw, schedule, rates=TUNED):
        pass
    return twin


def judge(model: Model, examples: Examples) -> VertexMetrics:
    predictive, outputs = model.predict(examples.inputs)
    association = ragged_column(outputs, "association")
    return vertex_metrics(predictive.mean, association, examples.targets, examples.inputs)


def uncertainty(model: Model, examples: Examples) -> NDArray[np.float64]:
    """Median sigma, coverage at 1 sigma, AUC for failures, efficiency of the surest 90 %."""
    predictive, _ = model.predict(examples.inputs)
    away = np.abs(predictive.mean - np.asarray(examples.targets["z0"], np.float64))
    sigma, missed = predictive.std, away >= 0.15
    order = np.argsort(sigma)
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    n = int(missed.sum())
    auc = (ranks[missed].sum() - n * (n + 1) / 2) / (n * (len(order) - n))
    surest = ~missed[order[: int(0.9 * len(order))]]
    return np.array([np.median(sigma), np.mean(away <= sigma), auc, surest.mean()])


def pooled(metrics: list[VertexMetrics], name: str) -> tuple[float, float]:
    """Mean over the seeds, with the figure's own error and the spread over seeds."""
    figures = [getattr(metric, name) for metric in metrics]
    values = np.array([figure.value for figure in figures])
    spread = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    return float(values.mean()), math.sqrt(figures[0].error ** 2 + spread)


def cell(metrics: list[VertexMetrics], name: str) -> str:
    value, error = pooled(metrics, name)
    digits = 4 if error < 0.00095 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


COLUMNS = {
    "efficiency": "eff. 0.15 cm",
    "efficiency_100": "eff. 0.10 cm",
    "width": "core width, cm",
    "p68_p32": "p68 - p32, cm",
    "rms": "rms, cm",
    "auc": "AUC",
    "balanced_accuracy": "bal. accuracy",
    "purity": "purity",
    "track_efficiency": "track eff.",
    "met_width": "MET width, GeV",
}


def print_nominal(finders: Scores, n_test: int, seeds: int) -> None:
    print(f"\nNominal, {n_test} test events, networks: mean of {seeds} seeds\n")
    print("| finder | " + " | ".join(COLUMNS.values()) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, metrics in finders.items():
        print(f"| {name} | " + " | ".join(cell(metrics, column) for column in COLUMNS) + " |")


def print_uncertainty(sigmas: dict[str, list[NDArray[np.float64]]]) -> None:
    print(
        "\n| network | median sigma, cm | truths in 1 sigma | AUC for misses | eff., surest 90 % |"
    )
    print("|---|---|---|---|---|")
    for kind, values in sigmas.items():
        mean = np.mean(values, 0)
        print(f"| {kind} | {mean[0]:.4f} | {mean[1]:.3f} | {mean[2]:.3f} | {mean[3]:.4f} |")


def print_conditions(rows: dict[tuple[str, str], Scores]) -> None:
    for metric, title in (("efficiency", "Efficiency"), ("balanced_accuracy", "Balanced accuracy")):
        for kind in KINDS:
            first = True
            for (which, name), scores in rows.items():
                if which != kind:
                    continue
                if first:
                    print(f"\n{title}, {kind}\n\n| condition | " + " | ".join(scores) + " |")
                    print("|---" * (len(scores) + 1) + "|")
                    first = False
                cells = " | ".join(cell(scores[way], metric) for way in scores)
                print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
