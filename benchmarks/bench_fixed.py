"""Fixed point: tracks and events per second in whole numbers, on one core, and of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from stillfit.l1t import library
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.fixed_chain import SEEN, vertex_chain
from stillfit.l1t.fixed_words import FRACTIONS, inputs_of_words, words_of
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed.calibration import calibrated
from stillfit.models.fixed.pruning import MagnitudePruning
from stillfit.models.model import Architecture, Model
from stillfit.models.training import Prepared, Schedule, shuffled, train

Row = tuple[str, float, str]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median over `repeats`, after a first call."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


def run(events: int = 2000, repeats: int = 7) -> list[Row]:
    """Pile-up 200; dense and with a quarter of the association's weights left."""
    torch.set_num_threads(1)
    examples = vertex_examples(events, nominal(), library=library.load(), seed=1)
    plain = Model(E2E(seed=1), VertexTask(), Architecture("l1t.e2e", {"seed": 1}))
    model = calibrated(fixed_e2e(plain), examples)
    words, sector, offsets = words_of(examples.inputs)
    given = inputs_of_words(words, sector)
    seen = np.ascontiguousarray(given.features[:, [*SEEN, 0]])
    tracks = len(words)
    rows: list[Row] = []
    for name in ("dense", "25 % of the association"):
        if name != "dense":
            MagnitudePruning(density=0.25, layers=("associate",)).mask(model, 1.0)
        chain = vertex_chain(model)
        for part, network, codes, fraction in (
            ("weight network", chain.weight, given.features[:, :3], FRACTIONS[:3]),
            ("association network", chain.associate, seen, np.array([*FRACTIONS[SEEN], 3])),
        ):
            spent = seconds(lambda n=network, c=codes, f=fraction: n.run(c, f), repeats)  # type: ignore[misc]
            rows.append((f"{part}, {name}", tracks / spent, "tracks/s"))
        spent = seconds(lambda c=chain: c.find_words(words, sector, offsets), repeats)  # type: ignore[misc]
        rows.append((f"whole chain from track words, {name}", events / spent, "events/s"))
    spent = seconds(lambda: words_of(examples.inputs), repeats)
    rows.append(("encoding of raw tracks as words", events / spent, "events/s"))
    spent = seconds(lambda: model.predict(examples.inputs), repeats)
    rows.append(("fake-quantised network in PyTorch", events / spent, "events/s"))
    for name, one in (("float", plain), ("fixed point", model)):
        draw = shuffled(Prepared.of(one, examples), 250, np.random.default_rng(1))
        times, started = [], time.perf_counter()
        for _ in train(one.copy(), draw, Schedule(steps=20, batch=250)):
            times.append(time.perf_counter() - started)
            started = time.perf_counter()
        rows.append((f"training in {name}", 250 / median(times[3:]), "events/s"))
    return rows
