"""The vertex metrics against their definitions and a bootstrap over events."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError
from stillfit.l1t.metrics import (
    VertexMetrics,
    as_figures,
    figure,
    group_edges,
    quantiles,
    share,
    track_figures,
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


def whole(values, truth):
    """Figures of all tracks, as one group."""
    figures = track_figures(values, truth, np.array([0, len(values)]))
    assert all(np.array_equal(each[0], each[1], equal_nan=True) for each in figures)
    return figures._replace(**{name: each[0] for name, each in figures._asdict().items()})


def share_of_pairs(values, truth):
    pairs = values[truth][:, None] - values[~truth][None, :]
    return np.mean((pairs > 0) + 0.5 * (pairs == 0)) if pairs.size else np.nan


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(2)
    values, truth = rng.integers(0, 8, 300) / 8, rng.random(300) < 0.3
    auc = whole(values, truth).auc
    assert auc == pytest.approx(share_of_pairs(values, truth), abs=1e-14)
    assert whole(values, ~truth).auc == pytest.approx(1 - auc)
    assert whole(np.exp(3 * values), truth).auc == auc  # ranks only
    assert np.isnan(whole(values, np.ones(300, bool)).auc)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("digits", [1, 9])
def test_the_auc_of_every_group_is_exact_with_ties_of_either_sign(dtype, digits):
    rng = np.random.default_rng(3)
    edges = np.array([0, 0, 1, 90, 400, 700])  # one without tracks, one without pairs
    values = np.round(rng.normal(0, 2, 700), digits).astype(dtype)
    values[5:9] = [0.0, -0.0, np.inf, -np.inf]
    truth = rng.random(700) < 0.3
    truth[5:7] = True, False
    auc = track_figures(values, truth, edges).auc
    finite = np.clip(values.astype(float), -99, 99)
    parts = [(0, 700), *pairwise(edges)]
    exact = [share_of_pairs(finite[a:b], truth[a:b]) for a, b in parts]
    np.testing.assert_allclose(auc, exact, rtol=0, atol=1e-14)
    assert np.isnan(auc[1]) and np.isnan(auc[2]) and np.isfinite(auc[3:]).all()


def test_values_that_differ_in_their_last_bit_are_no_tie():
    just = np.nextafter(np.float32(0.3), np.float32(1))
    for values in (np.array([0.3, just], np.float32), np.array([0.3, np.nextafter(0.3, 1)])):
        assert whole(values, np.array([False, True])).auc == 1
        assert whole(values, np.array([True, False])).auc == 0


def test_shares_of_tracks_are_counts():
    values = np.array([0.9, 0.5, 0.4, 0.6, 0.1])
    truth = np.array([True, True, True, False, False])
    assert whole(values, truth).balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert whole(values, truth).purity == pytest.approx(2 / 3)
    assert whole(values, truth).track_efficiency == pytest.approx(2 / 3)
    assert np.isnan(whole(np.zeros(2), truth[:2]).purity)
    assert np.isnan(whole(values[3:], truth[3:]).track_efficiency)
    assert whole(values[:3], truth[:3]).balanced_accuracy == pytest.approx(2 / 3)
    assert whole(values[3:], truth[3:]).balanced_accuracy == pytest.approx(1 / 2)


def test_quantiles_of_all_and_of_groups_are_those_of_numpy():
    rng = np.random.default_rng(4)
    values, edges, at = (
        rng.normal(size=47),
        np.array([0, 1, 3, 20, 47]),
        np.array([0, 0.16, 0.5, 1]),
    )
    expected = [np.quantile(values, at)]
    expected += [np.quantile(values[a:b], at) for a, b in pairwise(edges)]
    np.testing.assert_allclose(quantiles(values, edges, at), expected, rtol=1e-14)


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
    nothing = Ragged(np.zeros(0, np.float32), np.zeros(50_001, np.int64))
    residual = rng.normal(0, 0.04, 50_000)
    targets = {"z0": np.zeros(50_000), "is_pv": nothing}
    assert vertex_metrics(residual, nothing, targets).width.value == pytest.approx(0.04, rel=0.02)
    residual[:500] = 10.0 * np.sign(residual[:500])
    assert vertex_metrics(residual, nothing, targets).width.value == pytest.approx(0.04, rel=0.05)


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


def test_groups_hold_all_events_in_nearly_equal_parts():
    for n in (1, 19, 20, 21, 507):
        sizes = np.diff(group_edges(n))
        assert sizes.sum() == n and len(sizes) == min(n, 20) and np.ptp(sizes) <= 1


def test_one_event_has_no_spread():
    assert np.isnan(figure(np.ones(2)).error)
    assert np.isnan(figure(np.array([1.0, 1.0, np.nan])).error)
    assert figure(np.array([5.0, 1.0, 3.0])).error == pytest.approx(1)


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
