"""The vertex metrics against their definitions and a bootstrap over events."""

from __future__ import annotations

import numpy as np
import pytest

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError
from stillfit.l1t.metrics import (
    VertexMetrics,
    as_figures,
    auc,
    balanced_accuracy,
    core_width,
    grouped,
    purity,
    share,
    track_efficiency,
    vertex_metrics,
)


def sample(n=400, seed=1, apart=2.0):
    """Events whose tracks share a quality, so that tracks of one event belong together."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 60, n)
    size = int(counts.sum())
    flags = (rng.random(size) < 0.2).astype(np.uint8)
    event = np.repeat(rng.normal(0, 0.7, n), counts)
    score = rng.normal(0, 1, size) + event + apart * (flags - 0.5)
    association = Ragged.from_counts(1 / (1 + np.exp(-score)), counts)
    targets = {
        "z0": rng.normal(0, 5, n),
        "is_pv": Ragged.from_counts(flags, counts),
    }
    inputs = {
        "pt": Ragged.from_counts(2 + rng.exponential(2, size), counts),
        "phi": Ragged.from_counts(rng.uniform(-np.pi, np.pi, size), counts),
    }
    z0 = targets["z0"] + np.where(rng.random(n) < 0.05, 3.0, 0.05) * rng.standard_normal(n)
    return z0, association, targets, inputs


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(2)
    values, truth = rng.integers(0, 8, 300) / 8, rng.random(300) < 0.3
    pairs = values[truth][:, None] - values[~truth][None, :]
    assert auc(values, truth) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert auc(values, ~truth) == pytest.approx(1 - auc(values, truth))
    assert auc(np.exp(3 * values), truth) == pytest.approx(auc(values, truth))  # ranks only
    assert np.isnan(auc(values, np.ones(300, bool)))


def test_shares_of_tracks_are_counts():
    values = np.array([0.9, 0.5, 0.4, 0.6, 0.1])
    truth = np.array([True, True, True, False, False])
    assert balanced_accuracy(values, truth) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert purity(values, truth) == pytest.approx(2 / 3)
    assert track_efficiency(values, truth) == pytest.approx(2 / 3)
    assert np.isnan(purity(np.zeros(2), truth[:2]))
    assert np.isnan(track_efficiency(values[3:], truth[3:]))
    assert balanced_accuracy(values[:3], truth[:3]) == pytest.approx(2 / 3)


def test_position_figures_are_those_of_the_definition():
    z0, association, targets, _ = sample()
    metrics = vertex_metrics(z0, association, targets)
    away = z0 - targets["z0"]
    assert metrics.n == 400
    assert metrics.rms.value == pytest.approx(np.sqrt(np.mean(away**2)))
    low, p32, p68, high = np.quantile(away, [0.16, 0.32, 0.68, 0.84])
    assert metrics.width.value == pytest.approx((high - low) / 2)
    assert metrics.p68_p32.value == pytest.approx(p68 - p32)
    assert metrics.efficiency.value == pytest.approx(np.mean(np.abs(away) < 0.15))
    assert metrics.efficiency_100.value == pytest.approx(np.mean(np.abs(away) < 0.10))
    assert metrics.met_width is None


def test_the_core_width_is_the_deviation_of_a_gaussian_and_blind_to_far_tails():
    rng = np.random.default_rng(3)
    residual = rng.normal(0, 0.04, 50_000)
    assert core_width(residual) == pytest.approx(0.04, rel=0.02)
    residual[:500] = 10.0 * np.sign(residual[:500])
    assert core_width(residual) == pytest.approx(0.04, rel=0.05)


def test_errors_agree_with_a_bootstrap_over_events():
    z0, association, targets, inputs = sample(600)
    metrics = vertex_metrics(z0, association, targets, inputs)
    rng = np.random.default_rng(4)
    values: dict[str, list[float]] = {}
    for _ in range(60):
        rows = rng.integers(0, 600, 600)
        again = vertex_metrics(
            z0[rows],
            association[rows],
            {name: column[rows] for name, column in targets.items()},
            {name: column[rows] for name, column in inputs.items()},
        )
        for name in ("efficiency", "auc", "balanced_accuracy", "purity", "met_width", "width"):
            values.setdefault(name, []).append(getattr(again, name).value)
    for name, drawn in values.items():
        # Twenty groups know an error to 16 %, sixty bootstrap samples to 9 %.
        assert getattr(metrics, name).error == pytest.approx(np.std(drawn), rel=0.6), name


def test_missing_momentum_is_exact_where_the_association_is():
    z0, _, targets, inputs = sample(50)
    flags = targets["is_pv"]
    perfect = Ragged(flags.values.astype(float), flags.offsets)
    metrics = vertex_metrics(z0, perfect, targets, inputs)
    assert metrics.met_width is not None and metrics.met_width.value == 0
    assert metrics.purity.value == metrics.track_efficiency.value == metrics.auc.value == 1


def test_missing_momentum_is_the_sum_over_wrong_tracks():
    counts = np.array([2])
    flags = Ragged.from_counts(np.array([1, 0], np.uint8), counts)
    association = Ragged.from_counts(np.array([0.0, 1.0]), counts)
    inputs = {
        "pt": Ragged.from_counts(np.array([3.0, 4.0]), counts),
        "phi": Ragged.from_counts(np.array([0.0, np.pi / 2]), counts),
    }
    targets = {"z0": np.zeros(1), "is_pv": flags}
    metrics = vertex_metrics(np.zeros(1), association, targets, inputs)
    # Components -3 (lost) and +4 GeV (added): (p84 - p16) / 2 of the two.
    assert metrics.met_width is not None
    assert metrics.met_width.value == pytest.approx(0.68 * 7 / 2)


def test_a_share_near_its_ends_keeps_an_error():
    assert share(np.ones(100, bool)).value == 1
    assert 0 < share(np.ones(100, bool)).error < 0.03
    middle = share(np.arange(1000) % 2 == 0)
    assert middle.error == pytest.approx(np.sqrt(0.25 / 1000), rel=0.01)


def test_one_event_has_no_spread():
    assert np.isnan(grouped(1, lambda rows: 1.0).error)


def test_figures_leave_out_what_is_not_known():
    z0, association, targets, inputs = sample(100)
    figures = as_figures(vertex_metrics(z0, association, targets))
    assert next(iter(figures)) == "efficiency"
    assert "met_width_gev" not in figures
    assert "met_width_gev" in as_figures(vertex_metrics(z0, association, targets, inputs))
    one = as_figures(
        vertex_metrics(z0[:1], association[:1], {k: c[:1] for k, c in targets.items()})
    )
    assert all(np.isfinite(value) for value in one.values())


def test_metrics_are_frozen_and_wrong_input_is_named():
    z0, association, targets, _ = sample(20)
    metrics = vertex_metrics(z0, association, targets)
    assert isinstance(metrics, VertexMetrics)
    with pytest.raises(AttributeError):
        metrics.n = 3  # type: ignore[misc]
    with pytest.raises(DataError, match="were rows reordered"):
        vertex_metrics(z0, association[::-1], targets)
    none = {name: column[:0] for name, column in targets.items()}
    with pytest.raises(DataError, match="no events to measure on"):
        vertex_metrics(z0[:0], association[:0], none)
