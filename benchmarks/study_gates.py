"""From network to gates: what a vertex network is worth and what it takes, float to learning.

    nice -n 15 python benchmarks/study_gates.py [--seeds 1,2,3] [--test 4000] [--synthesise]

For each seed the demo's float E2E network is trained (30 000 nominal events; kept in the cache),
made fixed-point with and without pruning by 1000 further batches on 8000 other events, and judged
on held-out nominal events. Then the pruned chain learns 1600 labelled events with the quality word
turned round, one pass, as the lane `on-chip` does. Prints Markdown: accuracy as the mean over
seeds with half the width of its 95 % interval, and the circuits of the first seed on the device,
by estimate or, with --synthesise, with both networks counted by Yosys (minutes each). The circuit
of the learner itself is always synthesised.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from stillfit.apps.firmware.rtl import rtl_of
from stillfit.core.events import Examples
from stillfit.core.predictive import Predictive
from stillfit.core.values import Budget, Candidate, Footprint
from stillfit.firmware.devices import device
from stillfit.l1t.chip import VertexChip
from stillfit.l1t.conditions import nominal
from stillfit.l1t.fixed_recipe import Compression
from stillfit.l1t.library import Library, load
from stillfit.l1t.metrics import vertex_metrics
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import ragged_column
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.studies.continual_metrics import Interval
from stillfit.studies.initial import cache_folder, first_model
from stillfit.updaters.embedded import EmbeddedSGD, Format

TRAINING_EVENTS, COMPRESSION_EVENTS, LEARNED_EVENTS = 30_000, 8000, 1600
TURNED = replace(nominal(), quality_word="inverted")
LEARNER = EmbeddedSGD(numbers=Format(width=18, fraction=12), rate=2.0**-12)
# As many batches as with pruning.
DENSE = Compression(pruning=None, last=Schedule(steps=800, batch=250, rate=0.003))
FIGURES = ("efficiency", "auc", "balanced accuracy")


class Judged(NamedTuple):
    """Figures of one network on one set of events."""

    efficiency: float
    auc: float
    balanced: float


def judged(model: Model, test: Examples) -> Judged:
    """Efficiency within 0.15 cm; AUC and balanced accuracy at the threshold over all tracks."""
    predictive, outputs = model.predict(test.inputs)
    assert isinstance(predictive, Predictive)
    association = ragged_column(outputs, "association")
    found = vertex_metrics(predictive.mean, association, test.targets)
    return Judged(found.efficiency.value, found.auc.value, found.balanced_accuracy.value)


class Networks(NamedTuple):
    """One seed's networks, and what the pruned one became on the chip."""

    plain: Model
    dense: Model
    pruned: Model
    learned: Model


def networks(seed: int, library: Library) -> Networks:
    plain = first_model(
        "e2e",
        library=library,
        seed=seed,
        events=TRAINING_EVENTS,
        cache=cache_folder(),
        tell=lambda n: None,
    )
    more = vertex_examples(COMPRESSION_EVENTS, nominal(), library=library, seed=100 + seed)
    dense = DENSE.compress(plain, more, np.random.default_rng(seed))
    pruned = Compression().compress(plain, more, np.random.default_rng(seed))
    labelled = vertex_examples(LEARNED_EVENTS, TURNED, library=library, seed=200 + seed)
    rng = np.random.default_rng(seed)
    learner = LEARNER.begin(pruned, more, rng=rng)
    made = LEARNER.update(pruned, learner, labelled, None, budget=Budget(), rng=rng)  # type: ignore[arg-type]
    assert isinstance(made, Candidate)
    return Networks(plain, dense, pruned, made.model)


def said(values: list[float]) -> str:
    span = Interval.of(values)
    if span.low is None or span.high is None:
        return f"{span.mean:.4f}"
    return f"{span.mean:.4f} ± {(span.high - span.low) / 2:.4f}"


def resources(found: Footprint) -> list[str]:
    cycles = found.latency_cycles
    return [f"{n:,.0f}" for n in (found.lut, found.ff, found.dsp) if n is not None] + [f"{cycles}"]


def show(rows: list[list[str]]) -> None:
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--device", default="xcvu13p")
    parser.add_argument("--synthesise", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(1)
    library = load()
    seeds = [int(part) for part in told.seeds.split(",")]
    tests = [
        vertex_examples(told.test, conditions, library=library, seed=300, split="test")
        for conditions in (nominal(), TURNED)
    ]
    made = [networks(seed, library) for seed in seeds]
    named = {"float": 0, "8 bits": 1, "8 bits, pruned": 2, "8 bits, pruned, learned on": 3}
    rows = [["network", "events", *FIGURES, *(f"{name} - float" for name in FIGURES)]]
    rows.append(["---"] * len(rows[0]))
    for name, place in named.items():
        for title, test in zip(("nominal", "quality word turned"), tests, strict=True):
            each = [judged(one[place], test) for one in made]
            plain = [judged(one.plain, test) for one in made]
            row = [name, title]
            row += [said([one[i] for one in each]) for i in range(len(FIGURES))]
            for i in range(len(FIGURES)):
                away = [a[i] - b[i] for a, b in zip(each, plain, strict=True)]
                row.append("" if place == 0 else said(away))
            rows.append(row)
    show(rows)
    first = made[0]
    rows = [["circuit", "LUT", "FF", "DSP", "cycles", "method"], ["---"] * 6]
    for name, model in (("8 bits", first.dense), ("8 bits, pruned", first.pruned)):
        for design in ("constant", "reloadable"):
            chip = VertexChip(device=told.device, design=design, yosys=told.synthesise)
            found = chip.footprint(model)
            rows.append([f"{name}, {design}", *resources(found), found.method])
    circuit, _, _ = rtl_of(LEARNER, first.pruned, np.random.default_rng(0))
    found = circuit.footprint(device(told.device))
    figures = [f"{n:,.0f}" for n in (found.lut, found.ff, found.dsp)]
    cycles = f"{circuit.cycles.longest} an example"
    rows.append(["learner of the association, beside it", *figures, cycles, "synthesis"])
    show(rows)


if __name__ == "__main__":
    main()
