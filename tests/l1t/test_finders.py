"""FastHisto against a plain loop, its conventions, its integer form, its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.vertex import VertexTask
from stillfit.l1t.vertexing import BIN_WIDTH, BINS, Z0_LSB, winner
from stillfit.models.model import Architecture, Model


def toy(n=60, seed=1, tracks=40, digitised=False):
    """Random tracks, some of them bad, around one vertex each; the last event is empty."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 2 * tracks, n)
    counts[-1] = 0
    size = int(counts.sum())
    near = rng.random(size) < 0.3
    z0 = np.where(near, np.repeat(rng.normal(0, 5, n), counts), rng.normal(0, 6, size))
    z0 = np.clip(z0 + rng.normal(0, 0.1, size), -20.4, 20.4)
    pt = 2 + rng.exponential(3, size) + 200 * (rng.random(size) < 0.02)
    if digitised:
        z0 = (np.floor(z0 / Z0_LSB) + 0.5) * Z0_LSB
        pt = np.floor(pt * 32) / 32
    columns = {
        "pt": pt,
        "eta": rng.uniform(-2.4, 2.4, size),
        "phi": rng.uniform(-np.pi, np.pi, size),
        "z0": z0,
        "d0": rng.normal(0, 0.05, size),
        "chi2rphi": rng.exponential(6, size),
        "chi2rz": rng.exponential(2, size),
        "bendchi2": rng.exponential(0.8, size),
        "nstub": rng.integers(4, 7, size),
        "hitpattern": rng.integers(0, 128, size),
        "quality": rng.integers(0, 8, size),
    }
    return {k: Ragged.from_counts(v.astype(np.float32), counts) for k, v in columns.items()}


def served(network, inputs):
    return Model(network, VertexTask(), Architecture("l1t.fasthisto")).predict(inputs)


def by_hand(inputs, *, cuts, mean):
    """FastHisto as one would write it down."""
    windows = ((0.7, 0.37), (1.0, 0.5), (1.2, 0.6), (1.6, 0.75), (2.0, 1.0), (9.9, 1.6))
    answers = []
    for event in range(len(inputs["pt"])):
        t = {name: column[event : event + 1].values for name, column in inputs.items()}
        good = [
            not cuts
            or bool(
                t["pt"][i] >= 2
                and abs(t["eta"][i]) < 2.4
                and abs(t["z0"][i]) < 15
                and t["nstub"][i] >= 4
                and t["bendchi2"][i] < 2.25
                and t["chi2rz"][i] < 5
                and t["chi2rphi"][i] < 20
            )
            for i in range(len(t["pt"]))
        ]
        sums = [0.0] * BINS
        for i, use in enumerate(good):
            if use:
                place = int(np.floor((float(t["z0"][i]) + BINS / 2 * BIN_WIDTH) / BIN_WIDTH))
                sums[place] += min(float(t["pt"][i]), 127.0)
        best = max(range(1, BINS - 1), key=lambda k: (sum(sums[k - 1 : k + 2]), -k))
        total = sum(sums[best - 1 : best + 2])
        z = (best + 0.5 - BINS / 2) * BIN_WIDTH
        if mean and total:
            z += BIN_WIDTH * (sums[best + 1] - sums[best - 1]) / total
        flags = []
        for i, use in enumerate(good):
            window = next(w for edge, w in windows if abs(t["eta"][i]) < edge)
            flags.append(use and abs(t["z0"][i] - z) <= window)
        answers.append((z if total else 0.0, total, flags))
    return answers


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("position", ["mean", "centre"])
def test_it_finds_what_a_plain_loop_finds(cuts, position):
    inputs = toy()
    predictive, outputs = served(FastHisto(cuts=cuts, position=position), inputs)
    want = by_hand(inputs, cuts=cuts, mean=position == "mean")
    np.testing.assert_allclose(predictive.mean, [z for z, _, _ in want], atol=1e-6)
    np.testing.assert_allclose(outputs["score"], [s for _, s, _ in want], rtol=1e-6)
    flags = np.concatenate([f for _, _, f in want if f])
    assert np.array_equal(outputs["association"].values >= 0.5, flags)


@pytest.mark.parametrize("position", ["mean", "centre"])
def test_integers_agree_with_floats_on_digitised_tracks(position):
    inputs = toy(200, seed=3, digitised=True)
    exact, _ = served(FastHisto(position=position), inputs)
    integer, outputs = served(FastHisto(position=position, arithmetic="integer"), inputs)
    # The position of the integer form is a whole step of the track word's z0 (0.01 cm).
    np.testing.assert_allclose(integer.mean, exact.mean, atol=0.5 * Z0_LSB + 1e-6)
    steps = integer.mean / Z0_LSB
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.array_equal(outputs["score"], np.rint(outputs["score"]))


def test_integers_differ_from_floats_only_where_a_rounded_pt_or_z0_changes_the_winner():
    inputs = toy(300, seed=4)
    exact, _ = served(FastHisto(), inputs)
    integer, _ = served(FastHisto(arithmetic="integer"), inputs)
    apart = np.abs(exact.mean - integer.mean) > 0.02
    assert apart.mean() < 0.02


def test_pt_saturates():
    inputs = toy(2, tracks=4)
    one = {k: Ragged.from_counts(c.values[:1], np.array([1])) for k, c in inputs.items()}
    one["pt"] = Ragged.from_counts(np.array([5000.0], np.float32), np.array([1]))
    _, outputs = served(FastHisto(cuts=False), one)
    assert outputs["score"][0] == 127


def test_the_order_of_tracks_and_the_chunks_do_not_matter():
    inputs = toy()
    rng = np.random.default_rng(5)
    order = np.lexsort((rng.random(len(inputs["pt"].values)), inputs["pt"].events))
    turned = {k: Ragged(c.values[order], c.offsets) for k, c in inputs.items()}
    model = Model(FastHisto(), VertexTask(), Architecture("l1t.fasthisto"))
    straight, outputs = model.predict(inputs, chunk=7)
    shuffled, other = model.predict(turned)
    np.testing.assert_allclose(straight.mean, shuffled.mean, rtol=1e-12)
    assert np.array_equal(outputs["association"].values[order], other["association"].values)


def test_an_event_without_tracks_states_the_widest_sigma():
    predictive, outputs = served(FastHisto(sigma=0.2), toy())
    assert predictive.mean[-1] == 0
    assert outputs["score"][-1] == 0
    assert predictive.std[-1] == pytest.approx(BINS * BIN_WIDTH)
    np.testing.assert_allclose(predictive.std[:-1], 0.2, rtol=1e-6)


def test_no_events_at_all_are_answered():
    inputs = {k: c[:0] for k, c in toy().items()}
    predictive, outputs = served(FastHisto(), inputs)
    assert len(predictive) == 0 and len(outputs["association"]) == 0


def test_ties_go_to_the_bin_nearest_the_centre_then_to_the_lower():
    scores = torch.zeros(4, BINS)
    scores[0, [3, 100, 200]] = 1.0
    scores[1, [127, 128]] = 2.0
    scores[2, [120, 135]] = 2.0
    assert winner(scores).tolist() == [100, 127, 120, 127]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"position": "median"}, "position must be 'mean' or 'centre', got 'median'"),
        ({"arithmetic": "fixed"}, "arithmetic must be 'float' or 'integer', got 'fixed'"),
        ({"sigma": 0.0}, r"sigma must be positive \(cm\), got 0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        FastHisto(**arguments)


def test_missing_columns_and_bad_numbers_are_named():
    inputs = toy()
    less = {k: c for k, c in inputs.items() if k != "z0"}
    with pytest.raises(ShapeError, match="the stream lacks z0"):
        served(FastHisto(), less)
    flat = {**inputs, "z0": np.zeros(len(inputs["pt"]))}
    with pytest.raises(ShapeError, match="'z0' must be ragged"):
        served(FastHisto(), flat)
    short = {
        **inputs,
        "z0": Ragged.from_counts(np.zeros(3), np.eye(1, len(inputs["pt"]))[0].astype(np.int64) * 3),
    }
    with pytest.raises(ShapeError, match="'z0' counts other tracks than 'pt'"):
        served(FastHisto(), short)
    values = inputs["eta"].values.copy()
    values[3] = np.nan
    with pytest.raises(DataError, match=r"'eta' holds nan at \(3,\)"):
        served(FastHisto(), {**inputs, "eta": Ragged(values, inputs["eta"].offsets)})
