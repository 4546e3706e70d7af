"""Recalibration: it does nothing at nominal, finds shifts, scales and thresholds, and can be told
wrong things by wrong labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.l1t.conditions import SectorShift, nominal
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.library import load
from stillfit.l1t.recalibration import (
    ONE_SIGMA,
    event_scale,
    recalibrate,
    table,
    threshold,
    with_shared_shift,
)
from stillfit.l1t.recipe import train_vertex, vertex_examples
from stillfit.l1t.trackword import SECTORS
from stillfit.l1t.vertex import VertexTask
from stillfit.l1t.vertexing import ETA_CELLS, SECTOR_CELLS, Z0_LSB
from stillfit.models.model import Architecture, Model
from stillfit.models.training import Schedule

SHIFT = 0.2  # cm
MISALIGNED = replace(nominal(), barrel_z_shift=SHIFT)


@pytest.fixture(scope="module")
def library():
    return load()


@pytest.fixture(scope="module", params=["e2e", "adaptive"])
def model(request, library) -> Model:
    schedule = Schedule(steps=160, batch=150)
    return train_vertex(request.param, library=library, seed=1, events=3000, schedule=schedule)


def made(library, conditions, n=300, seed=9, split="test") -> Examples:
    return vertex_examples(n, conditions, library=library, seed=seed, split=split)


def applied(model: Model, changed) -> Model:
    return model.with_weights({**model.weights(), **changed})


def efficiency(model: Model, examples: Examples) -> float:
    return 1 - float(model.errors(examples)["miss"].mean())


def accuracy(model: Model, examples: Examples) -> float:
    return 1 - float(model.errors(examples)["association"].mean())


def test_nominal_events_change_next_to_nothing(model, library):
    for seed in (1, 2, 3):
        changed = model.task.recalibrate(model.network, made(library, nominal(), seed=seed))
        assert not {"calibration.z0_sector", "calibration.z0_barrel"} & set(changed)
    test = made(library, nominal(), n=600, seed=20)
    assert abs(efficiency(applied(model, changed), test) - efficiency(model, test)) < 0.01


def test_a_barrel_shift_of_2_mm_is_taken_back(model, library):
    test = made(library, MISALIGNED, n=600, seed=21)
    healthy = efficiency(model, made(library, nominal(), n=600, seed=21))
    assert efficiency(model, test) < 0.3
    changed = recalibrate(model.network, made(library, MISALIGNED))
    assert efficiency(applied(model, changed), test) > healthy - 0.03
    barrel = changed["calibration.z0_barrel"].reshape(ETA_CELLS, 4)
    np.testing.assert_allclose(barrel[7:13, 3], SHIFT, atol=0.02)  # central, three barrel hits


def test_a_shift_of_a_third_of_phi_is_seen_by_sector(model, library):
    shifted = SectorShift(z_shift=SHIFT, phi=(-math.pi, -math.pi / 3))
    conditions = replace(nominal(), sector_shifts=(shifted,))
    changed = recalibrate(model.network, made(library, conditions, n=500))
    sector = changed["calibration.z0_sector"].reshape(ETA_CELLS, SECTORS)[7:13].mean(0)
    inside = np.array([-math.pi < s < -math.pi / 3 for s in _centres()])
    assert np.all(sector[inside] > 0.12)
    assert np.all(np.abs(sector[~inside & ~_edges()]) < 0.05)
    test = made(library, conditions, n=600, seed=22)
    assert efficiency(applied(model, changed), test) > efficiency(model, test) + 0.03


def _centres() -> np.ndarray:
    """phi of the sectors' centres."""
    phi = 2 * np.pi / SECTORS * np.arange(SECTORS)
    return np.where(phi > np.pi, phi - 2 * np.pi, phi)


def _edges() -> np.ndarray:
    """Sectors that the shifted range cuts, and those right beside it: low tracks bend into it."""
    away = np.minimum(np.abs(_centres() + math.pi / 3), np.pi - np.abs(_centres()))
    return away < 0.6


def test_a_correction_that_is_no_longer_true_is_taken_back(model, library):
    there = applied(model, recalibrate(model.network, made(library, MISALIGNED)))
    test = made(library, nominal(), n=600, seed=23)
    assert efficiency(there, test) < 0.3
    back = applied(there, recalibrate(there.network, made(library, nominal(), seed=31)))
    assert efficiency(back, test) > efficiency(model, test) - 0.03


def test_the_association_is_regained_after_a_loss_of_resolution(model, library):
    worse = replace(nominal(), barrel_ps_resolution=5.0)
    changed = recalibrate(model.network, made(library, worse))
    assert "calibration.threshold" in changed
    assert changed["calibration.sigma_scale"] > 1.5
    test = made(library, worse, n=500, seed=24)
    better = applied(model, changed)
    assert accuracy(better, test) > accuracy(model, test) + 0.03
    predictive, _ = better.predict(test.inputs)
    inside = np.abs(predictive.mean - test.targets["z0"]) <= predictive.std
    assert inside.mean() == pytest.approx(ONE_SIGMA, abs=0.08)


def test_labels_that_share_the_shift_hide_it_and_move_what_was_right(library):
    model = Model(FastHisto(), VertexTask(), Architecture("l1t.fasthisto"))
    labelled = made(library, MISALIGNED, n=500)
    honest = recalibrate(model.network, labelled)["calibration.z0_barrel"]
    biased = recalibrate(model.network, with_shared_shift(labelled, SHIFT))["calibration.z0_barrel"]
    honest, biased = honest.reshape(ETA_CELLS, 4), biased.reshape(ETA_CELLS, 4)
    assert np.all(np.abs(biased[7:13, 3]) <= 0.02)  # the barrel looks aligned
    # Disk tracks, which were right, are moved against the shift: -SHIFT relative to the truth.
    forward = np.r_[0:1, 19:20]
    assert np.all(np.abs(honest[forward, 0]) <= 0.08)
    assert np.all(biased[forward, 0] < -0.08)


def test_recalibration_is_pure(model, library):
    before = model.weights()
    labelled = made(library, MISALIGNED)
    one, two = (recalibrate(model.network, labelled) for _ in range(2))
    after = model.weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert set(one) <= set(before)
    assert all(one[name].shape == before[name].shape for name in one)


def test_a_huge_significance_changes_nothing(model, library):
    assert recalibrate(model.network, made(library, MISALIGNED), significance=1e6) == {}


# --- the pieces ---------------------------------------------------------------------------------


def test_a_table_of_pure_noise_scores_as_it_should_and_a_moved_cell_is_found():
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(200):
        cells = rng.integers(0, SECTOR_CELLS, 6000)
        scores.append(table(rng.normal(0, 0.15, 6000), cells, SECTORS, SECTOR_CELLS).score)
    assert np.mean(scores) == pytest.approx(0, abs=0.25)
    assert np.mean(np.array(scores) > 3) <= 0.01
    cells = rng.integers(0, SECTOR_CELLS, 20_000)
    residual = rng.normal(0, 0.15, 20_000) + np.where(cells % SECTORS == 2, 0.2, 0.0)
    found, score, _ = table(residual, cells, SECTORS, SECTOR_CELLS)
    grid = found.reshape(ETA_CELLS, SECTORS)
    assert score > 10
    np.testing.assert_allclose(grid[:, 2], 0.2, atol=0.06)
    assert np.mean(np.delete(grid, 2, 1) != 0) < 0.05
    np.testing.assert_allclose(grid / Z0_LSB, np.rint(grid / Z0_LSB), atol=1e-9)


def test_cells_with_few_tracks_say_nothing():
    found, score, _ = table(np.full(11, 0.4), np.zeros(11, np.int64), SECTORS, SECTOR_CELLS)
    assert not found.any() and score == 0


def test_medians_are_those_of_numpy():
    rng = np.random.default_rng(2)
    cells = rng.integers(0, 2, 5001) * 3
    residual = rng.normal(0, 0.01, 5001) + np.where(cells == 3, 5.0, -4.0)
    found, _, _ = table(residual, cells, 4, 4 * ETA_CELLS)
    for cell in (0, 3):
        assert found[cell] == pytest.approx(np.median(residual[cells == cell]), abs=Z0_LSB)


def test_the_threshold_follows_a_moved_optimum_and_stays_on_noise():
    rng = np.random.default_rng(3)
    n = 60_000
    events = np.repeat(np.arange(300), 200)
    is_pv = rng.random(n) < 0.13
    logit = rng.normal(0, 1, n) + np.where(is_pv, 2.0, -2.0)
    assert threshold(logit, is_pv, events, 0.0, 3.0) == 0.0
    assert threshold(logit - 1.5, is_pv, events, 0.0, 3.0) == pytest.approx(-1.5, abs=0.35)
    assert threshold(logit, np.ones(n, bool), events, 0.3, 3.0) == 0.3


def test_the_event_scale_is_the_quantile_or_one():
    rng = np.random.default_rng(4)
    pull = np.abs(rng.standard_normal(500))
    assert event_scale(pull, 3.0) == 1.0
    assert event_scale(3 * pull, 3.0) == pytest.approx(3, rel=0.15)
    assert event_scale(np.zeros(0), 3.0) == 1.0
    assert event_scale(np.full(500, 1e9), 3.0) == 50


def test_what_cannot_be_recalibrated_is_named(library):
    examples = made(library, nominal(), n=20)
    with pytest.raises(DataError, match="Linear has no calibration tables"):
        recalibrate(nn.Linear(1, 1), examples)
    bare = replace(examples, targets={"z0": examples.targets["z0"]})
    with pytest.raises(DataError, match="the labels lack is_pv"):
        recalibrate(FastHisto(), bare)
    flags = examples.targets["is_pv"]
    none = {**examples.targets, "is_pv": type(flags)(np.zeros_like(flags.values), flags.offsets)}
    with pytest.raises(DataError, match="no labelled track belongs to the primary vertex"):
        recalibrate(FastHisto(), replace(examples, targets=none))
