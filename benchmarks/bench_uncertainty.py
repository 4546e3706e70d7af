"""One call for all passes against a Python loop over them; heads and auxiliary against the bare.

Regression: "trigger" 3-10-10-2, "UCI" 13-50-2 (that benchmark's networks), "wide" 13-64-64-2;
"vertex": the published vertex network at pile-up 200. One thread. Both sides give the tensors of
`task.answer`, nothing else; rounds of both in turn, the median of their quotients.

Two loops. "stored": over plain networks that were made beforehand, with PyTorch's own layers: the
fastest loop there is, though for 32 samples it needs 32 networks. "drawing", for Bayesian networks:
as they are usually evaluated, each pass draws its weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from stillfit.l1t import library
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E, EventHead
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.networks import MLP
from stillfit.models.task import Regression, Task
from stillfit.models.tensors import Tensors, tensors
from stillfit.uncertainty import Bayesian, DeepEnsemble
from stillfit.uncertainty.auxiliary import Auxiliary
from stillfit.uncertainty.layers import Draw, drawing
from stillfit.uncertainty.methods import METHODS
from stillfit.uncertainty.passes import Passes

Row = tuple[str, float, str]
BATCHES = (1, 16, 64, 256, 4096, 65536)
NETWORKS = {"trigger": (3, (10, 10)), "UCI": (13, (50,)), "wide": (13, (64, 64))}
TASK = Regression(features=tuple(f"x{k}" for k in range(13)))


def ratio(ours: Callable[[], Any], other: Callable[[], Any], seconds: float = 0.6) -> float:
    """How many times longer `other` takes: the median over pairs of rounds, each pair in turn."""
    ours(), other()
    began = time.perf_counter()
    other()
    once = max(time.perf_counter() - began, 1e-6)
    calls = max(1, int(0.01 / once))
    quotients: list[float] = []
    began = time.perf_counter()
    while len(quotients) < 5 or (time.perf_counter() - began < seconds and len(quotients) < 200):
        spent = []
        for work in (ours, other):
            start = time.perf_counter()
            for _ in range(calls):
                work()
            spent.append(time.perf_counter() - start)
        quotients.append(spent[1] / spent[0])
    return median(quotients)


def against_stored(network: Passes, task: Task, inputs: Tensors) -> float:
    """One call against a loop over plain networks."""
    network.eval()
    plain = [network.member(k).eval() for k in range(network.n_passes)]

    def loop() -> list[torch.Tensor]:
        answers = [task.answer(member, inputs) for member in plain]
        return [torch.stack(same) for same in zip(*answers, strict=True)]

    with torch.inference_mode():
        return ratio(lambda: network.passes(task, inputs), loop)


def against_drawing(network: Passes, task: Task, inputs: Tensors) -> float:
    """One call against a loop in which each pass draws its weights."""
    network.eval()

    def loop() -> list[torch.Tensor]:
        answers = []
        for _ in range(network.n_passes):
            with drawing(Draw.SHARED):
                answers.append(task.answer(network.core, inputs))
        return [torch.stack(same) for same in zip(*answers, strict=True)]

    with torch.inference_mode():
        return ratio(lambda: network.passes(task, inputs), loop)


def table(n: int, features: int = 13) -> Tensors:
    rng = np.random.default_rng(1)
    return tensors({"x": rng.normal(size=(n, features)).astype(np.float32)})


def predicting(task: Task, network: nn.Module, inputs: Tensors) -> Callable[[], Any]:
    return lambda: uncertain.predict(task, network, inputs)


def run() -> list[Row]:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, (features, hidden) in NETWORKS.items():
        network = MLP(features, hidden)
        ensemble, bayesian = DeepEnsemble(network), Bayesian(network)
        for batch in BATCHES:
            inputs = table(batch, features)
            for label, value in (
                ("5 members, stored", against_stored(ensemble, TASK, inputs)),
                ("32 samples, stored", against_stored(bayesian, TASK, inputs)),
                ("32 samples, drawing", against_drawing(bayesian, TASK, inputs)),
            ):
                rows.append((f"{name}: {label}, batch {batch}", value, "x the loop"))
    return rows + _vertex() + _parts()


def _vertex() -> list[Row]:
    task, rows = VertexTask(), []
    examples = vertex_examples(512, nominal(), library=library.load(), seed=1)
    for label, made in (("5 members", DeepEnsemble(E2E())), ("32 samples", Bayesian(E2E()))):
        for batch in (1, 16, 64, 256, 512):
            inputs = tensors(uncertain.prepare(task, made, examples.take(slice(0, batch)).inputs))
            faster = against_stored(made, task, inputs)
            rows.append((f"vertex: {label}, batch {batch}", faster, "x the loop"))
    return rows


class _Stub(nn.Module):
    """In place of the event head: the same sigma for every event."""

    def __init__(self, head: EventHead) -> None:
        super().__init__()
        self.likelihood = head.likelihood

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.new_zeros(len(features), self.likelihood.outputs)


def _parts() -> list[Row]:
    """What a head and an auxiliary network cost beside a bare network, to predict."""
    rows: list[Row] = []
    plain = MLP(13, (64, 64))
    tables = {batch: table(batch) for batch in (1, 256, 4096)}
    for name in ("gaussian", "beta-gaussian", "quantiles", "evidential", "auxiliary"):
        made = METHODS[name].convert(plain)
        rows += _against(f"wide: {name}", TASK, made, plain, tables)
    task = VertexTask()
    examples = vertex_examples(512, nominal(), library=library.load(), seed=1)
    events = {
        batch: tensors(uncertain.prepare(task, E2E(), examples.take(slice(0, batch)).inputs))
        for batch in (1, 64, 512)
    }
    bare = E2E()
    bare.sigma = _Stub(bare.sigma)  # type: ignore[assignment]
    rows += _against("vertex: event head", task, E2E(), bare, events)
    for name in ("gaussian", "quantiles", "evidential", "auxiliary"):
        made = METHODS[name].convert(E2E())
        rows += _against(f"vertex: {name}", task, made, E2E(), events)
    return rows


def _against(
    label: str, task: Task, made: nn.Module, bare: nn.Module, inputs: Mapping[int, Tensors]
) -> list[Row]:
    made.eval(), bare.eval()
    if isinstance(made, Auxiliary):  # unfitted, it would not be asked
        made.fitted.fill_(True)
    rows: list[Row] = []
    for batch, some in inputs.items():
        with torch.inference_mode():
            cost = 1 / ratio(predicting(task, made, some), predicting(task, bare, some))
        rows.append((f"{label}, batch {batch}", cost, "x the bare network"))
    return rows
