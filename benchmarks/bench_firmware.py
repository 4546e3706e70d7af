"""Firmware: seconds of a footprint's verdict, and of the bits' comparison, on one core."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from stillfit.apps.firmware.rtl import drawn, rtl_of, trajectory
from stillfit.firmware.devices import device
from stillfit.firmware.footprints import estimate
from stillfit.firmware.learning import check_learner, compiled
from stillfit.firmware.tracing import Design
from stillfit.l1t.chip import VertexChip, circuits
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.fixed_chain import vertex_chain
from stillfit.l1t.fixed_words import inputs_of_words, words_of
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Regression
from stillfit.updaters.embedded import EmbeddedSGD

Row = tuple[str, float, str]
DESIGNS: tuple[Design, ...] = ("constant", "reloadable")


def run(events: int = 120) -> list[Row]:
    """Drawn weights, pile-up 200; dense and with a quarter of the association's weights left."""
    torch.set_num_threads(1)
    examples = vertex_examples(events, nominal(), library=load(), seed=1)
    plain = Model(E2E(seed=1), VertexTask(), Architecture("l1t.e2e", {"seed": 1}))
    model = calibrated(fixed_e2e(plain), examples)
    words, sector, _ = words_of(examples.inputs)
    codes = inputs_of_words(words, sector).features[:, :3]
    codes = np.tile(codes, (max(100_000 // len(codes), 1), 1))
    VertexChip(links=1).footprint(model)  # what is imported, is imported now
    rows: list[Row] = []
    for name in ("dense", "25 % of the association"):
        if name != "dense":
            MagnitudePruning(density=0.25, layers=("associate",)).mask(model, 1.0)
        chain = vertex_chain(model)
        for design in DESIGNS:
            what = f"{design} weights, {name}"
            chip = VertexChip(design=design)
            started = time.perf_counter()
            traced = circuits(chain, design)
            rows.append((f"tracing of both networks, {what}", time.perf_counter() - started, "s"))
            started = time.perf_counter()
            for one in traced:
                estimate(one, device(chip.device))
            rows.append((f"estimate of both, {what}", time.perf_counter() - started, "s"))
            started = time.perf_counter()
            chip.footprint(model)
            rows.append((f"footprint of the chain, {what}", time.perf_counter() - started, "s"))
            started = time.perf_counter()
            chip.footprint(model)
            rows.append((f"the same again, {what}", time.perf_counter() - started, "s"))
            started = time.perf_counter()
            found = chip.equality(model, examples)
            assert found is not None and not found.wrong
            spent = time.perf_counter() - started
            rows.append((f"{found.vectors} vectors compared, {what}", spent, "s"))
            started = time.perf_counter()
            traced.weight.run(codes)
            spent = time.perf_counter() - started
            rows.append((f"weight network as logic, {what}", len(codes) / spent, "tracks/s"))
    return rows + learning()


def learning(steps: int = 2000) -> list[Row]:
    """SGD on 3-10-10-1 as a circuit: compiled, simulated and compared with the kernels."""
    torch.manual_seed(0)
    network = WithNoise(MLP(3, (10, 10), 1)).eval()
    model = Model(network, Regression(features=("x",)), Architecture("mlp"))
    updater = EmbeddedSGD(rate=2**-6)
    design, begun, plan = rtl_of(updater, model, np.random.default_rng(1))
    told = trajectory(begun, plan, *drawn(updater, begun, plan, steps, 1))
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        built = compiled(design, Path(place))
        ready = time.perf_counter()
        assert not check_learner(design, told, Path(place), built=built).wrong
        spent = time.perf_counter() - ready
    return [
        ("a learner of 3-10-10-1 (SGD) written and compiled", ready - started, "s"),
        (f"{steps} learning steps in RTL and compared", spent, "s"),
        ("clocks of a learning step", design.cycles.update, "clocks"),
    ]
