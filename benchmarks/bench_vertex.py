"""Events per second of the vertex finders: preparing, finding, training, recalibrating."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from stillfit.l1t import library
from stillfit.l1t.conditions import nominal
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.model import Architecture, Model
from stillfit.models.training import Prepared, Schedule, shuffled, train

Row = tuple[str, float, str]


def run(events: int = 2000, repeats: int = 5) -> list[Row]:
    """Medians over `repeats` at pile-up 200, after a first call."""
    examples = vertex_examples(events, nominal(), library=library.load(), seed=1)
    rows: list[Row] = []
    for name, factory in FACTORIES.items():
        model = Model(factory(), VertexTask(), Architecture(name))
        model.predict(examples.inputs)
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            model.predict(examples.inputs)
            times.append(time.perf_counter() - started)
        rows.append((f"{name}: prepare and find", events / median(times), "events/s"))
        if name == "l1t.fasthisto":
            continue
        started = time.perf_counter()
        data = Prepared.of(model, examples)
        rows.append((f"{name}: prepare", events / (time.perf_counter() - started), "events/s"))
        draw = shuffled(data, 250, np.random.default_rng(1))
        times, started = [], time.perf_counter()
        for _ in train(model, draw, Schedule(steps=60, batch=250)):
            times.append(time.perf_counter() - started)
            started = time.perf_counter()
        rows.append((f"{name}: train, batches of 250", 250 / median(times[5:]), "events/s"))
        few = examples.take(slice(0, 300))
        started = time.perf_counter()
        VertexTask().recalibrate(model.network, few)
        seconds = time.perf_counter() - started
        rows.append((f"{name}: recalibrate from 300 events", 1000 * seconds, "ms"))
    return rows
