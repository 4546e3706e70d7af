"""The suite on what a chip learns: embedded strategies with a fixed-point vertex network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import calibrated
from stillfit.models.model import Architecture, Model
from stillfit.testing import Law, check_updater
from stillfit.testing.vertex import vertex_problem
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
    Format,
)

torch.set_num_threads(1)
WORD = Format(width=18, fraction=12)
FINE = Format(width=24, fraction=16)
SGD = EmbeddedSGD(numbers=WORD, rate=2.0**-6)


def fixed() -> nn.Module:
    """Drawn by torch's generator, with ranges from events of the old condition."""
    seed = int(torch.randint(1000, ()))
    drawn = Model(E2E(seed=seed), VertexTask(), Architecture("l1t.e2e", {"seed": seed}))
    events = vertex_problem(E2E).examples(60, "old", seed=1)
    return calibrated(fixed_e2e(drawn), events).network


PROBLEM = replace(vertex_problem(fixed), name="chip")
CASES = [
    (SGD, {"rate 0 is frozen": Law(updater=EmbeddedSGD(numbers=FINE, rate=0.0), within=0.02)}),
    (replace(SGD, exemplars=Exemplars(capacity=60, bits=16)), {}),
    (
        EmbeddedLMS(numbers=WORD, rate=2.0**-5),
        {
            "one layer by gradient": Law(
                updater=EmbeddedLMS(numbers=WORD, rate=2.0**-5),
                like=EmbeddedSGD(numbers=WORD, rate=2.0**-5, last_layers=1),
            )
        },
    ),
    (EmbeddedDFA(numbers=WORD, rate=2.0**-6), {}),
    (EmbeddedRLS(numbers=WORD, score=1.0, prior=0.01, forgetting=1.0), {}),
]


@pytest.mark.parametrize(("updater", "laws"), CASES, ids=lambda case: type(case).__name__)
def test_every_embedded_strategy_but_one_learns_on_the_chip(updater, laws):
    report = check_updater(updater, problems=[PROBLEM], methods=(), laws=laws)
    skipped = {"chip: an unseen class", "chip: a diverging update"}
    assert set(report.skipped) == skipped and report.count >= 20 + len(laws)


def test_the_other_says_why_not():
    report = check_updater(EmbeddedSPSA(numbers=WORD), problems=[PROBLEM], methods=(), strict=False)
    (whole,) = [check for check in report.checks if check.name == "chip: all"]
    assert whole.outcome == "skipped" and "a perturbation moves all weights" in whole.because
