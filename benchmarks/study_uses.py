"""What the uncertainty of the vertex buys: the tables of docs/uncertainty/uses.md.

    python benchmarks/study_uses.py             # 80 000 held-out events, 5 to 8 minutes
    python benchmarks/study_uses.py --quick     # 8000 events: 1 minute

The networks are the demo's first ones (seed 1, 30 000 training events; from the cache, or trained
in half a minute each). Events are nominal ttbar at pile-up 200 from the test split of the library,
which neither training nor calibration saw; half of them tune, half judge. Last table: what was
tuned at nominal meets other conditions, unchanged. `--out FILE` keeps the rows as Parquet.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stillfit.core.arrays import Arrays, Ragged, take
from stillfit.core.predictive import Mixture, Predictive
from stillfit.core.seeds import Seeds
from stillfit.l1t.conditions import Conditions, DeadRegion, nominal
from stillfit.l1t.e2e import HistogramNetwork
from stillfit.l1t.finders import fasthisto_model
from stillfit.l1t.library import Library, load
from stillfit.l1t.recipe import CHUNK, vertex_examples
from stillfit.l1t.regions import REACH, FoundOrLost, revealed
from stillfit.l1t.stated import Estimate, Stated, halves
from stillfit.l1t.uses import events_needed, region_of_interest
from stillfit.l1t.vertexing import ragged
from stillfit.models.model import Model
from stillfit.models.tensors import tensors
from stillfit.studies.initial import cache_folder, first_model, nominal_examples
from stillfit.studies.uses import COVERAGES, Row, region_row, region_rules, uses_table

SEED = 2027  # other events than those on which the margin of `FoundOrLost` was chosen
CONDITIONS: dict[str, Conditions] = {
    "nominal, other events": nominal(),
    "pile-up 250": replace(nominal(), pileup=250.0),
    "dead sector, 60 degrees": replace(nominal(), dead_regions=(DeadRegion(phi=(0.0, np.pi / 3)),)),
    "barrel PS resolution x2": replace(nominal(), barrel_ps_resolution=2.0),
    "barrel against disks 1 mm": replace(nominal(), barrel_z_shift=0.1),
    "barrel against disks 2 mm": replace(nominal(), barrel_z_shift=0.2),
}
FASTHISTO = "FastHisto"
Methods = dict[str, tuple[Predictive, Arrays]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    events = 8000 if asked.quick else 80_000
    began = time.monotonic()
    library = load()
    models = {
        kind: first_model(
            kind, library=library, seed=1, events=30_000, cache=cache_folder(), tell=lambda n: None
        )
        for kind in ("e2e", "adaptive")
    }
    # FastHisto's sigmas are set on other nominal events, as in the demo.
    others = nominal_examples(library, seed=1, events=5000)
    models = {FASTHISTO: fasthisto_model(others), **models}
    predictive, outputs = models[FASTHISTO].predict(others.inputs)
    assert isinstance(predictive, Predictive)
    pull = np.abs(predictive.mean - others.targets["z0"]) * np.sqrt(1 + outputs["score"])
    scale = float(np.quantile(pull, 0.6827))
    methods, tracks, truth = stated_by(models, nominal(), events, library, scale, "judged")
    print(f"# {events} events: {time.monotonic() - began:.0f} s", flush=True)
    rows = uses_table(methods, tracks, truth, seed=SEED)
    print(f"# judged: {time.monotonic() - began:.0f} s", flush=True)
    print_losses(methods, truth)
    print_associations(rows)
    print_regions(rows)
    print_limits(methods, truth)
    more = met(models, methods, truth, events // 4, library, scale)
    print_met(more)
    print(f"\n# {time.monotonic() - began:.0f} s")
    if asked.out is not None:
        pq.write_table(pa.Table.from_pylist(rows + more), asked.out)


def stated_by(
    models: dict[str, Model],
    conditions: Conditions,
    events: int,
    library: Library,
    scale: float,
    name: str,
) -> tuple[Methods, Arrays, Arrays]:
    """Predictions and outputs of all models for the same held-out events, tracks and truth.

    FastHisto's answers come twice: with its one sigma, and with `scale` / sqrt(1 + winning sum).
    """
    columns: dict[str, list[Any]] = {"z0": [], "eta": [], "is_pv": []}
    true: list[np.ndarray] = []
    parts: dict[str, list[tuple[Any, Any]]] = {name: [] for name in models}
    # By pieces of 10 000 events: all columns of all tracks would not fit into small memories.
    piece = 5 * CHUNK
    for number, first in enumerate(range(0, events, piece)):
        n = min(piece, events - first)
        made = vertex_examples(
            n, conditions, library=library, seed=Seeds(SEED).integer(name, number), split="test"
        )
        for name, model in models.items():
            parts[name].append(predicted(model, made.inputs))
        columns["z0"].append(made.inputs["z0"])
        columns["eta"].append(made.inputs["eta"])
        columns["is_pv"].append(made.targets["is_pv"])
        true.append(np.asarray(made.targets["z0"], np.float64))
    joined = {name: joined_ragged(columns[name]) for name in columns}
    methods: Methods = {}
    for name, pieces in parts.items():
        predictive = type(pieces[0][0]).concat([each for each, _ in pieces])
        outputs = {key: joined_ragged([out[key] for _, out in pieces]) for key in pieces[0][1]}
        methods[name] = predictive, outputs
        if name == FASTHISTO:  # its association has cuts, and is a window already
            score = outputs.pop("score").values
            outputs.pop("association")
            by_sum = Mixture.gaussian(predictive.mean, scale**2 / (1 + score))
            methods[f"{FASTHISTO}, by its sum"] = by_sum, outputs
    tracks = {name: joined[name] for name in ("z0", "eta")}
    return methods, tracks, {"z0": np.concatenate(true), "is_pv": joined["is_pv"]}


def predicted(model: Model, inputs: Arrays) -> tuple[Predictive, dict[str, Ragged]]:
    """A prediction of z0 with the association and, where there is one, the sigma of each track."""
    predictive, outputs = model.predict(inputs)
    assert isinstance(predictive, Predictive)
    association = outputs["association"]
    assert isinstance(association, Ragged)
    score = outputs["score"]
    assert not isinstance(score, Ragged)
    kept = {"association": association, "score": Ragged(score, np.arange(len(score) + 1))}
    sigmas = track_sigmas(model, inputs)
    if sigmas is not None:
        kept["track_sigma"] = Ragged(sigmas, association.offsets)
    return predictive, kept


def track_sigmas(model: Model, inputs: Arrays) -> np.ndarray | None:
    """The network's own sigma of each track, cm; None where it has none."""
    network = model.network
    if not isinstance(network, HistogramNetwork):
        return None
    found = []
    none = torch.zeros(0, dtype=torch.int64)
    n = len(next(iter(inputs.values())))
    with torch.inference_mode():
        for first in range(0, n, 500):
            piece = take(inputs, slice(first, min(first + 500, n)))
            prepared = ragged(tensors(model.task.prepare(network, piece)), "tracks")
            out = network.trained(prepared, none)
            if out.track_sigma is None:
                return None
            # The scale of a Laplace distribution, as a standard deviation.
            found.append(np.sqrt(2) * out.track_sigma.numpy())
    return np.concatenate(found)


def joined_ragged(parts: list[Ragged]) -> Ragged:
    counts = np.concatenate([part.counts for part in parts])
    return Ragged.from_counts(np.concatenate([part.values for part in parts]), counts)


def met(
    models: dict[str, Model],
    methods: Methods,
    truth: Arrays,
    events: int,
    library: Library,
    scale: float,
) -> list[Row]:
    """Regions tuned on all nominal events, judged under each condition."""
    rows = []
    for condition, conditions in CONDITIONS.items():
        shifted, _, true = stated_by(models, conditions, events, library, scale, "met")
        for name, (predictive, _) in methods.items():
            at_nominal = Stated(predictive, np.asarray(truth["z0"]))
            test = Stated(shifted[name][0], np.asarray(true["z0"]))
            regions = region_rules(predictive)
            for rule in ("fixed", "sigma", "found or lost", "no margin"):
                region = regions.get(rule, FoundOrLost(margin=0))
                row = region_row(name, rule, region, at_nominal, test, 0.99, seed=SEED)
                rows.append({**row, "rule": f"{rule}; {condition}"})
    return rows


def print_losses(methods: Methods, truth: Arrays) -> None:
    z0 = np.asarray(truth["z0"])
    beyond = int((np.abs(z0) > REACH).sum())
    print(f"\nHow vertices are lost: % more than x cm off; {beyond} of {len(z0)} beyond reach\n")
    print(
        "| method | 0.15 | 0.5 | 1 | 3 | median off of the lost, cm | their median sigma, cm "
        "| lost of the surest half, % | of the least sure 10 %, % |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (predictive, _) in methods.items():
        off, sigma = np.abs(predictive.mean - z0), predictive.std
        cells = [f"{100 * np.mean(off > x):.2f}" for x in (0.15, 0.5, 1.0, 3.0)]
        lost, n = off > 1, len(z0)
        cells += [f"{np.median(off[lost]):.1f}", f"{np.median(sigma[lost]):.3f}"]
        if np.ptp(sigma) < 1e-9:  # one sigma for all but events without tracks
            cells += ["-", "-"]
        else:
            order = np.argsort(sigma)
            cells.append(f"{100 * lost[order[: n // 2]].mean():.2f}")
            cells.append(f"{100 * lost[order[-n // 10 :]].mean():.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def cell(row: Row, name: str, scale: float = 1.0, digits: int = 2) -> str:
    values = [scale * row[key] for key in (name, f"{name}_low", f"{name}_high")]
    value, low, high = (f"{each:.{digits}f}" for each in values)
    return f"{value} [{low}, {high}]"


def print_associations(rows: list[Row]) -> None:
    print("\nAssociation at the fixed table's track efficiency; %, 95 % intervals\n")
    print("| method | window | event factor | k | track efficiency | purity | minus the table's |")
    print("|---|---|---|---|---|---|---|")
    last = ""
    for row in rows:
        if row["use"] != "association":
            continue
        if row["method"] != last:
            last = row["method"]
            target, table = 100 * row["target"], cell(row, "reference", 100)
            print(f"| {last} | fixed table | | 1 | {target:.2f} | {table} | |")
        factor = "" if row["event_factor"] is None else f"{row['event_factor']:.1f}"
        figures = " | ".join(cell(row, name, 100) for name in ("achieved", "value", "better"))
        print(f"| {last} | {row['rule']} | {factor} | {row['k']:.3f} | {figures} |")


def print_regions(rows: list[Row]) -> None:
    print("\nRegions of interest; mean length in cm, 95 % intervals\n")
    print("| method | region | wanted, % | held, % | mean length, cm | saved of fixed, % |")
    print("|---|---|---|---|---|---|")
    first = rows[0]["method"]
    for row in rows:
        # Of one Gaussian the interval is the sigma; the beam spot is the same for all methods.
        skipped = {"interval"} if row["method"] == first else {"interval", "beam spot"}
        if row["use"] != "region" or row["rule"] in skipped:
            continue
        start = f"| {row['method']} | {row['rule']} | {100 * row['target']:.1f} "
        if row["refused"]:
            print(f"{start}| {row['refused']} | | |")
            continue
        held, length = cell(row, "achieved", 100, 3), cell(row, "value")
        print(f"{start}| {held} | {length} | {cell(row, 'better', 100, 1)} |")


def print_limits(methods: Methods, truth: Arrays) -> None:
    """What telling all losses apart would give, and what certainty costs."""
    z0 = np.asarray(truth["z0"])
    tune, judge = halves(len(z0), Seeds(SEED).rng("uses", "halves"))
    print("\nLimits, mean length in cm: losses known; 95 % confidence that it holds enough\n")
    print(
        "| method | wanted, % | found or lost | with the beam spot, % of events | losses known "
        "| with confidence | it held, % |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (predictive, _) in methods.items():
        stated = Stated(predictive, z0)
        known = Stated(revealed(predictive, z0), z0)
        for coverage in COVERAGES:
            cells, held, opened = [], "-", "-"
            for each, confidence in ((stated, None), (known, None), (stated, 0.95)):
                if len(tune) // 2 < events_needed(coverage, confidence):
                    cells.append(f"{events_needed(coverage, confidence)} events needed")
                    continue
                use = region_of_interest(
                    each.take(tune),
                    each.take(judge),
                    FoundOrLost(),
                    coverage=coverage,
                    confidence=confidence,
                    rng=Seeds(SEED).rng("uses", "region"),
                )
                cells.append(figure(use.length))
                if confidence is not None:
                    held = figure(use.containment, 100, 3)
                elif each is stated and isinstance(use.region, FoundOrLost):
                    share = use.region.opened(each.take(judge).predictive, use.k).mean()
                    opened = f"{100 * share:.1f}"
            cells[1:1] = [opened]
            cells.append(held)
            print(f"| {name} | {100 * coverage:.1f} | " + " | ".join(cells) + " |")


def figure(estimate: Estimate, scale: float = 1.0, digits: int = 2) -> str:
    value, low, high = (f"{scale * each:.{digits}f}" for each in estimate)
    return f"{value} [{low}, {high}]"


def print_met(rows: list[Row]) -> None:
    print("\nTuned at nominal for 99 %, met elsewhere: containment in %, mean length in cm\n")
    print("| method | condition | fixed | sigma | found or lost | without its margin |")
    print("|---|---|---|---|---|---|")
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        condition = row["rule"].split("; ")[1]
        held = f"{cell(row, 'achieved', 100)} in {row['value']:.2f}"
        lines.setdefault((row["method"], condition), []).append(held)
    for (method, condition), cells in lines.items():
        print(f"| {method} | {condition} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
