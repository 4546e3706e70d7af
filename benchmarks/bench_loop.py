"""The loop with all its monitors against bare inference, and its memory on a long stream."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stillfit.apps.memory import keep_freed_memory
from stillfit.core.events import Block, Event, Labels, Notice
from stillfit.l1t import scenario as scenarios
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.library import load
from stillfit.l1t.season import Season
from stillfit.l1t.vertex import VertexTask
from stillfit.loop import Plan, run
from stillfit.models.model import Architecture, Model, build
from stillfit.registry import Registry
from stillfit.studies.initial import nominal_examples
from stillfit.studies.season import Effort, season_plan

Row = tuple[str, float, str]
BLOCK = 500
PER_FILL = 20  # blocks


@dataclass(frozen=True)
class Again:
    """Simulated blocks that come again and again with new ids, so that only the loop is timed.

    A fill has `per_fill` blocks; the labels of a fill come in the gap after it.
    """

    blocks: list[tuple[Block, Labels]]
    events: int
    per_fill: int = PER_FILL

    def stream(self) -> Iterator[Event]:
        now, fill, late = 0.0, 0, []
        for number in range(self.events // BLOCK):
            if number % self.per_fill == 0:
                fill += 1
                yield Notice("stable-beams", now, {"fill": fill, "until": now + 3600.0})
            block, labels = self.blocks[number % len(self.blocks)]
            now += 60.0
            ids = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
            yield replace(block, ids=ids, time=now)
            late.append(replace(labels, ids=ids))
            if number % self.per_fill == self.per_fill - 1:
                now += 60.0
                yield Notice("inter-fill", now, {"fill": fill, "until": now + 7200.0})
                for part in late:
                    yield replace(part, time=now + 1)
                now, late = now + 7200.0, []

    def events_from(self, start: int) -> Iterator[Event]:
        for number, event in enumerate(self.stream()):
            if number >= start:
                yield event


@dataclass(frozen=True)
class Stream:
    """`Again` under the stream contract."""

    source: Again

    def events(self, start: int = 0) -> Iterator[Event]:
        return self.source.events_from(start)


def setting(blocks: int) -> tuple[list[tuple[Block, Labels]], Plan, Model]:
    """Simulated blocks with labels, and the plan of one lane with the season's monitors."""
    library = load()
    season = Season(replace(scenarios.load("season"), events=blocks * BLOCK), library)
    made = []
    for number in range(blocks):
        block, targets = season.block(1, number)
        made.append((block, Labels(block.ids, targets, block.time)))
    architecture = Architecture("l1t.e2e", {})
    torch.manual_seed(1)
    model = Model(build(architecture, FACTORIES).eval(), VertexTask(), architecture)
    nominal = nominal_examples(library, seed=1, events=4000)
    plan = season_plan(
        season, ("frozen",), {"network": model}, nominal, seed=1,
        effort=Effort(store_bytes=64 * 2**20),
    )  # fmt: skip
    # Every fourth fill, as in a season; labels come block by block here.
    plan = replace(plan, checkpoint=4 * (2 * PER_FILL + 2))
    return made, plan, model


def rate_of_loop(source: Again, plan: Plan) -> float:
    """Events per second of the whole loop: joining labels, monitors, journal, checkpoints."""
    with tempfile.TemporaryDirectory() as folder, Registry.create(Path(folder) / "r") as registry:
        steps = run(Stream(source), plan, registry)
        next(steps)  # the first step calibrates the monitors, once per deployment
        began = time.perf_counter()
        for _ in steps:
            pass
        return source.events / (time.perf_counter() - began)


def rate_of_inference(source: Again, model: Model) -> float:
    """Events per second of the same network on the same blocks, and nothing else."""
    began = time.perf_counter()
    for event in source.stream():
        if isinstance(event, Block):
            model.predict(event.inputs)
    return source.events / (time.perf_counter() - began)


def run_bench(events: int = 200_000, long: int = 1_000_000) -> list[Row]:
    """Ratios in one run, alternating, since machines are noisy; then the long run's memory.

    What a run costs once (the calibration before the first event is not timed, the last decision
    and the table of what every version is worth are) should not count as a cost of its events, so
    a stretch of 200 000 of them is timed. It includes the filling of the labelled store.
    """
    keep_freed_memory()  # as the command line does
    blocks, plan, model = setting(20)
    source = Again(blocks, events)
    rate_of_inference(Again(blocks, 5000), model)  # warm up, compile
    rate_of_loop(Again(blocks, 5000), plan)
    pairs = [(rate_of_loop(source, plan), rate_of_inference(source, model)) for _ in range(3)]
    loop, bare = (float(np.median(column)) for column in zip(*pairs, strict=True))
    share = float(np.median([a / b for a, b in pairs]))
    rows: list[Row] = [
        ("bare inference of the E2E network", bare, "events/s"),
        ("loop with all monitors", loop, "events/s"),
        ("loop / bare inference (target 0.70)", share, ""),
    ]
    if long:
        half = _peak(Again(blocks, long // 10), plan)
        whole = _peak(Again(blocks, long), plan)
        rows += [
            (f"peak memory, {long // 10:,} events", half, "MiB"),
            (f"peak memory, {long:,} events (target 1536)", whole, "MiB"),
        ]
    return rows


def _peak(source: Again, plan: Plan) -> float:
    rate_of_loop(source, plan)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    for name, value, unit in run_bench():
        print(f"{name:60s} {value:14,.4g} {unit}")


if __name__ == "__main__":
    main()
