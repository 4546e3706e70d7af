"""What a stated sigma buys, on toys whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.predictive import Mixture, QuantileTable, StudentT
from stillfit.l1t.association import Window, eta_sigma, table_window
from stillfit.l1t.regions import (
    BeamSpot,
    FixedLength,
    FoundOrLost,
    IntervalLength,
    MembersLength,
    SigmaLength,
    logistic,
    revealed,
    union_length,
)
from stillfit.l1t.stated import Stated, binomial, halves
from stillfit.l1t.uses import (
    association_window,
    events_needed,
    network_association,
    region_of_interest,
)
from stillfit.studies.uses import uses_rows, uses_table

REGIONS = {
    "fixed": FixedLength(),
    "beam spot": BeamSpot(),
    "sigma": SigmaLength(),
    "interval": IntervalLength(),
    "members": MembersLength(),
    "found or lost": FoundOrLost(),
}


def rng(seed=1):
    return np.random.default_rng(seed)


def vertices(n=4000, seed=1, lost=0.0, told=True, spread=0.6, shift=0.0, beam=3.0):
    """Vertices of known, different resolution; a share `lost` lies anywhere in the beam spot.

    The lost have a sigma six times as large, so that it tells of them; `told` False: one sigma.
    """
    g = rng(seed)
    z0 = g.normal(0, beam, n)
    sigma = 0.05 * np.exp(g.normal(0, spread, n))
    gone = g.random(n) < lost
    sigma = np.where(gone, 6 * sigma, sigma)
    found = z0 + sigma * g.standard_normal(n)
    mean = np.where(gone, g.normal(0, beam, n), found)
    stated = sigma if told else np.full(n, 0.06)
    return Stated(Mixture.gaussian(mean + shift, stated**2), z0 + shift)


def with_tracks(stated, seed=2, primary=20, others=100, own=False):
    """Tracks of both kinds; primary ones are as far from the vertex as their eta says."""
    g, n = rng(seed), len(stated)
    counts = np.full(n, primary + others)
    is_pv = np.tile(np.arange(primary + others) < primary, n)
    eta = g.uniform(-2.4, 2.4, len(is_pv))
    sigma = eta_sigma(eta)
    owner = np.repeat(np.arange(n), counts)
    near = stated.z0[owner] + sigma * g.standard_normal(len(is_pv))
    z = np.where(is_pv, near, g.normal(stated.z0.mean(), 5.3, len(is_pv)))
    closeness = 1 / (1 + np.abs(z - stated.predictive.mean[owner]) / table_window(eta))
    columns = {"z0": z, "eta": eta, "is_pv": is_pv.astype(np.uint8), "association": closeness}
    if own:
        columns["sigma"] = sigma
    return replace(
        stated, tracks={name: Ragged.from_counts(c, counts) for name, c in columns.items()}
    )


def shared(stated):
    a, b = halves(len(stated), rng(3))
    return stated.take(a), stated.take(b)


def region(stated, family, coverage=0.95, **knobs):
    tune, judge = shared(stated)
    return region_of_interest(
        tune, judge, family, coverage=coverage, rng=rng(4), **{"replicas": 40, **knobs}
    )


# -- regions -------------------------------------------------------------------------------------


def test_with_true_sigmas_the_mean_length_is_the_gaussians():
    stated = vertices(20_000)
    use = region(stated, SigmaLength())
    sigma = stated.predictive.std.mean()
    assert use.k == pytest.approx(stats.norm.ppf(0.975), abs=0.06)
    assert use.length.low < 2 * 1.96 * sigma < use.length.high
    # The noise of the events that tune and of those that judge.
    assert abs(use.containment.value - 0.95) < 3 * np.sqrt(0.95 * 0.05 * 2 / 10_000)


def test_true_sigmas_beat_the_best_fixed_length_and_the_more_so_the_more_they_differ():
    saved = [region(vertices(8000, spread=s), SigmaLength()).shorter for s in (0.0, 0.4, 0.8)]
    assert saved[0].low <= 0 <= saved[0].high
    assert saved[1].low > 0 and saved[1].high < saved[2].low


@pytest.mark.parametrize("family", ["sigma", "interval", "members"])
def test_one_sigma_for_all_is_the_best_fixed_length(family):
    use = region(vertices(told=False), REGIONS[family])
    assert use.length == pytest.approx(use.fixed_length, rel=1e-6)
    assert use.shorter == pytest.approx((0, 0, 0), abs=1e-6)
    assert use.containment == use.fixed_containment


@pytest.mark.parametrize("name", REGIONS)
def test_containment_is_what_was_asked_for(name):
    # Over many calibration sets it averages to at least the wanted share, at most 1 / n more.
    held = []
    for seed in range(30):
        stated = vertices(1200, seed=seed, lost=0.03)
        tune, judge = stated.take(slice(0, 400)), stated.take(slice(400, None))
        use = region_of_interest(
            tune, judge, REGIONS[name], coverage=0.95, rng=rng(seed), replicas=1
        )
        held.append(use.containment.value)
    error = np.std(held, ddof=1) / np.sqrt(len(held))
    assert -3 * error < np.mean(held) - 0.95 < 3 * error + 1 / 200


@pytest.mark.parametrize("name", REGIONS)
def test_length_and_containment_grow_with_what_is_asked(name):
    stated = vertices(lost=0.03)
    uses = [region(stated, REGIONS[name], coverage=c) for c in (0.8, 0.9, 0.98, 0.995)]
    for value in ("length", "containment"):
        figures = [getattr(use, value).value for use in uses]
        assert figures == sorted(figures)


@pytest.mark.parametrize("name", REGIONS)
def test_regions_are_nested_and_hold_what_their_score_says(name):
    stated = vertices(300, lost=0.2)
    family = REGIONS[name].fit(stated.predictive, stated.z0)
    ks = np.quantile(family.score(stated.predictive, stated.z0), [0.1, 0.5, 0.9, 0.99])
    scores = family.score(stated.predictive, stated.z0)
    before = np.zeros(300)
    for k, (low, high), length in zip(
        ks,
        family.ends(stated.predictive, ks),
        family.lengths(stated.predictive, ks, reach=1e3),
        strict=True,
    ):
        nearly = 1e-9 * np.abs(stated.z0[:, None])
        inside = ((low - nearly <= stated.z0[:, None]) & (stated.z0[:, None] <= high + nearly)).any(
            1
        )
        assert np.array_equal(inside, scores <= k)
        assert np.all(length >= before - 1e-12)
        before = length


@pytest.mark.parametrize("name", sorted(set(REGIONS) - {"beam spot"}))
def test_a_shift_of_all_z_changes_no_region(name):
    kept = region(vertices(2000, lost=0.03), REGIONS[name], reach=1e3)
    moved = region(vertices(2000, lost=0.03, shift=2.5), REGIONS[name], reach=1e3)
    assert moved.length == pytest.approx(kept.length, rel=1e-5)
    assert moved.containment == pytest.approx(kept.containment)


def test_lost_vertices_are_held_by_wide_regions_for_the_unsure_alone():
    stated = vertices(20_000, lost=0.05)
    fixed, sigma, found = (
        region(stated, REGIONS[n], coverage=0.98) for n in ("fixed", "sigma", "found or lost")
    )
    assert found.length.high < sigma.length.low < sigma.length.high < fixed.length.low
    assert found.containment.low < 0.98 < found.containment.high
    known = Stated(revealed(stated.predictive, stated.z0), stated.z0)
    assert region(known, FoundOrLost(), coverage=0.98).length.high < found.length.low


def test_the_beam_spot_is_opened_for_the_unsure():
    stated = vertices(5000, lost=0.05)
    fitted = FoundOrLost().fit(stated.predictive, stated.z0)
    for k in (0.0, 2.0, 4.0):
        opened = fitted.opened(stated.predictive, k)
        ((low, high),) = fitted.ends(stated.predictive, [k])
        assert np.array_equal(opened, high[:, -1] > low[:, -1])
        if opened.any() and not opened.all():
            sigma = stated.predictive.std
            assert sigma[opened].min() > sigma[~opened].max()


def test_where_sigma_says_nothing_all_events_get_the_same_chance_to_be_lost():
    stated = vertices(2000, lost=0.05, told=False)
    fitted = FoundOrLost().fit(stated.predictive, stated.z0)
    off = np.abs(stated.predictive.mean - stated.z0) > 1
    assert fitted.lost(stated.predictive) == pytest.approx(off.mean(), rel=1e-3)


def test_the_learned_chances_are_those_that_are_observed():
    stated = vertices(40_000, lost=0.05)
    fitted = FoundOrLost().fit(stated.predictive, stated.z0)
    chance, off = fitted.lost(stated.predictive), np.abs(stated.predictive.mean - stated.z0) > 1
    for part in np.array_split(np.argsort(chance), 4):
        assert chance[part].mean() == pytest.approx(off[part].mean(), abs=0.006)
    assert fitted.beam == pytest.approx((0, 3), abs=0.05)
    assert fitted.scale == pytest.approx(1, abs=0.03)


def test_without_a_loss_the_chance_is_what_cannot_be_excluded():
    stated = vertices(500, spread=0.0)
    fitted = FoundOrLost().fit(stated.predictive, stated.z0)
    assert np.all(fitted.lost(stated.predictive) >= 0.5 / 500)
    assert np.all(fitted.lost(stated.predictive) < 0.01)


def test_a_logistic_fit_finds_the_truth_and_stays_finite_on_separated_classes():
    g = rng()
    x = g.normal(2, 3, 50_000)
    hit = g.random(len(x)) < 1 / (1 + np.exp(-(0.5 * x - 2)))
    assert logistic(x, hit) == pytest.approx((-2, 0.5), abs=0.06)
    assert np.all(np.isfinite(logistic(x, x > 2)))
    assert np.all(np.isfinite(logistic(x, np.zeros(len(x), bool))))


def test_a_margin_survives_a_shift_of_the_detector_that_no_sigma_knows():
    tune, judge = shared(vertices(lost=0.02))
    moved = Stated(
        Mixture.gaussian(judge.predictive.mean + 0.2, judge.predictive.variance), judge.z0
    )
    held = [
        region_of_interest(
            tune, moved, FoundOrLost(margin=m), coverage=0.98, rng=rng(), replicas=2
        ).containment.value
        for m in (0.0, 0.3)
    ]
    assert held[0] < 0.5 and held[1] > 0.97


def test_members_that_disagree_give_two_short_regions():
    g = rng()
    z0, n = g.normal(0, 3, 3000), 3000
    right = z0 + 0.05 * g.standard_normal(n)
    other = np.where(g.random(n) < 0.1, g.normal(0, 3, n), right)
    means = np.stack([right, other], 1)
    stated = Stated(Mixture(means, np.full((n, 2), 0.05**2)), z0)
    members, sigma = region(stated, MembersLength()), region(stated, SigmaLength())
    assert members.containment.low < 0.95 < members.containment.high
    assert members.length.high < 0.5 < sigma.length.low
    both = region(stated, FoundOrLost(margin=0))
    assert both.length.high < sigma.length.low


@pytest.mark.parametrize("seed", range(5))
def test_the_length_of_a_union_is_the_measure_of_its_points(seed):
    g = rng(seed)
    low = g.uniform(-6, 6, (4, 5))
    high = low + g.exponential(1, (4, 5)) * (g.random((4, 5)) < 0.7)
    at = np.linspace(-5, 5, 200_001)
    for row, length in enumerate(union_length(low, high, 5.0)):
        inside = ((low[row, :, None] <= at) & (at <= high[row, :, None])).any(0)
        assert length == pytest.approx(integrate.trapezoid(inside.astype(float), at), abs=1e-3)


def test_no_region_is_longer_than_the_luminous_region_and_what_lies_beyond_is_missed():
    stated = vertices(2000, lost=0.3, beam=8.0)
    use = region(stated, FixedLength(), coverage=0.95, reach=5.0)
    assert use.k == np.inf  # more than 5 % lie beyond
    assert use.length == (10, 10, 10)
    _, judge = shared(stated)
    assert use.containment.value == pytest.approx(np.mean(np.abs(judge.z0) <= 5))


@pytest.mark.parametrize("form", ["student", "quantiles", "gaussian"])
def test_every_form_of_prediction_has_regions(form):
    stated = vertices(3000)
    mean, sigma = stated.predictive.mean, stated.predictive.std
    if form == "student":
        predictive = StudentT(mean, sigma, np.full(3000, 30.0))
    elif form == "quantiles":
        levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
        predictive = QuantileTable(levels, mean[:, None] + sigma[:, None] * stats.norm.ppf(levels))
    else:
        predictive = stated.predictive
    for family in REGIONS.values():
        use = region(Stated(predictive, stated.z0), family, coverage=0.9)
        assert use.containment.low - 0.01 < 0.9 < use.containment.high + 0.01
    use = region(Stated(predictive, stated.z0), IntervalLength(coverage=0.9), coverage=0.9)
    assert use.k == pytest.approx(1, abs=0.06)


def test_confidence_is_held_over_calibration_sets():
    reached = []
    for seed in range(200):
        tune = vertices(400, seed=seed)
        use = region_of_interest(
            tune, tune, SigmaLength(), coverage=0.95, confidence=0.9, rng=rng(seed), replicas=1
        )
        assert use.confidence >= 0.9
        # The sigmas are true, so the containment at k is known.
        reached.append(2 * stats.norm.cdf(use.k) - 1 >= 0.95)
    assert stats.binomtest(sum(reached), 200, 0.9).pvalue > 0.01


def test_on_average_the_plain_rank_is_as_often_short_as_not():
    use = region(vertices(8000), SigmaLength(), coverage=0.99)
    assert 0.4 < use.confidence < 0.7
    assert use.misses == 4000 - int(np.ceil(4001 * 0.99))


def test_events_needed():
    assert [events_needed(c) for c in (0.9, 0.99, 0.999)] == [9, 99, 999]
    assert [events_needed(c, 0.95) for c in (0.9, 0.99, 0.999)] == [29, 299, 2995]
    for coverage in (0.9, 0.99):
        n = events_needed(coverage, 0.95)
        assert coverage**n <= 0.05 < coverage ** (n - 1)


def test_too_few_events_are_refused_with_the_number_that_it_takes():
    tune = vertices(500)
    with pytest.raises(
        DataError,
        match=r"500 calibration events cannot show a containment of 0\.999:"
        r" it takes 999; give more events",
    ):
        region_of_interest(tune, tune, SigmaLength(), coverage=0.999, rng=rng())
    with pytest.raises(DataError, match=r"0\.99 with 95% confidence: it takes 299"):
        region_of_interest(
            tune.take(slice(0, 200)), tune, SigmaLength(), coverage=0.99, confidence=0.95, rng=rng()
        )
    # A learned shape leaves half of the events for k.
    with pytest.raises(DataError, match="75 calibration events"):
        region_of_interest(tune.take(slice(0, 150)), tune, FoundOrLost(), coverage=0.99, rng=rng())


# -- association ---------------------------------------------------------------------------------


def test_the_window_is_where_its_score_is_below_k():
    g = rng()
    away, event, track = g.exponential(0.5, 1000), g.uniform(0.02, 2, 1000), g.uniform(0.1, 2, 1000)
    for shape in ("proportional", "gaussian", "laplace"):
        for k in (-1.0, 0.5, 2.0):
            if shape == "proportional" and k < 0:
                continue
            window = Window(shape=shape, event=0.7, k=k)
            inside = away <= window.half_width(event, track)
            assert np.array_equal(inside, window.score(away, event, track) <= k)


def test_density_windows_are_where_the_density_exceeds_the_threshold():
    s = np.array([0.05, 0.1, 0.4, 1.0])
    k = 2.0
    width = Window(shape="gaussian", event=0, k=k).half_width(1, s)
    at_edge = np.exp(-0.5 * (width / s) ** 2) / s
    open_ = np.log(s) < k
    assert at_edge[open_] == pytest.approx(np.exp(-k))
    assert Window(shape="gaussian", event=0, k=-1.0).half_width(1, 1.0) == 0
    width = Window(shape="laplace", event=0, k=k).half_width(1, s)
    assert np.exp(-np.sqrt(2) * width / s) / s == pytest.approx(np.exp(-k))


def test_a_window_of_true_sigmas_beats_the_table_at_its_efficiency():
    use = association_window(*shared(with_tracks(vertices(2000))), rng=rng(), replicas=40)
    assert use.gain.low > 0
    assert use.excess.low <= 0.002 and use.excess.high >= -0.002
    assert use.efficiency.value == pytest.approx(use.table_efficiency.value, abs=0.004)


def test_at_equal_efficiency_the_density_window_of_true_gaussians_is_the_purest():
    parts = shared(with_tracks(vertices(3000)))
    proportional, gaussian = (
        association_window(*parts, shape=shape, event=(1.0,), rng=rng(), replicas=40)
        for shape in ("proportional", "gaussian")
    )
    assert gaussian.purity.value > proportional.purity.value


def test_events_of_different_sigma_make_the_events_part_worth_having():
    broad = vertices(2000, spread=1.2)
    wide = Stated(
        Mixture.gaussian(
            broad.z0 + 5 * (broad.predictive.mean - broad.z0), 25 * broad.predictive.variance
        ),
        broad.z0,
    )
    parts = shared(with_tracks(wide))
    track = association_window(*parts, event=(0.0,), rng=rng(), replicas=40)
    both = association_window(*parts, rng=rng(), replicas=40)
    assert both.window is not None and both.window.event >= 0.5
    assert both.gain.low > track.gain.high


def test_the_tables_own_closeness_is_the_table():
    stated = with_tracks(vertices(500))
    use = network_association(stated, stated, rng=rng(), replicas=40)
    closeness, is_pv = stated.values("association"), stated.values("is_pv") > 0
    kept = closeness >= 0.5
    assert use.table_purity.value == pytest.approx(is_pv[kept].mean())
    assert use.excess.value == 0
    # k is the last primary track within the window, so that it keeps no more than the table.
    assert -use.k == closeness[kept & is_pv].min()
    assert use.purity.value == pytest.approx(is_pv[closeness >= -use.k].mean())


def test_tracks_own_sigma_is_used_where_there_is_one():
    with_own = association_window(
        *shared(with_tracks(vertices(500), own=True)), rng=rng(), replicas=5
    )
    without = association_window(*shared(with_tracks(vertices(500))), rng=rng(), replicas=5)
    assert with_own == without  # the toy's own sigma is that of its eta


def test_a_shift_of_all_z_changes_no_association():
    kept, moved = (
        association_window(*shared(with_tracks(vertices(400, shift=shift))), rng=rng(), replicas=5)
        for shift in (0.0, 2.5)
    )
    assert moved.purity == pytest.approx(kept.purity, abs=1e-9)
    assert moved.k == pytest.approx(kept.k)


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    large = association_window(
        *shared(with_tracks(vertices(12_000, seed=99), others=40)),
        event=(1.0,),
        rng=rng(),
        replicas=2,
    )
    inside = []
    for seed in range(60):
        stated = with_tracks(vertices(300, seed=seed), seed=1000 + seed, others=40)
        use = association_window(*shared(stated), event=(1.0,), rng=rng(seed), replicas=100)
        inside.append(use.gain.low <= large.gain.value <= use.gain.high)
    # A percentile bootstrap of 150 events is a little short of 95 %.
    assert np.mean(inside) > 0.85


def test_the_parametrisations_are_those_of_the_trigger():
    assert eta_sigma(0) == pytest.approx(0.09867)
    assert eta_sigma(-2.4) == pytest.approx(0.4385, abs=1e-3)
    assert list(table_window([0, 0.69, -0.7, 1.1, 1.5, 1.9, 2.3])) == pytest.approx(
        [0.37, 0.37, 0.5, 0.6, 0.75, 1.0, 1.6]
    )


def test_the_same_generator_gives_the_same_figures():
    parts = shared(with_tracks(vertices(300, lost=0.05)))
    for use in (association_window, network_association):
        assert use(*parts, rng=rng(), replicas=5) == use(*parts, rng=rng(), replicas=5)
    before = parts[0].predictive.mean.copy()
    one, two = (
        region_of_interest(*parts, FoundOrLost(), coverage=0.9, rng=rng(), replicas=5)
        for _ in range(2)
    )
    assert one == two
    assert np.array_equal(before, parts[0].predictive.mean)


# -- the table -----------------------------------------------------------------------------------


def test_the_table_has_the_same_columns_for_every_row_and_fits_parquet():
    import pyarrow as pa

    stated = with_tracks(vertices(1200, lost=0.03))
    n = len(stated)
    ensemble = Mixture(np.stack([stated.predictive.mean, stated.z0], 1), np.full((n, 2), 0.01))
    methods = {
        "one": (stated.predictive, {"association": stated.tracks["association"]}),
        "ensemble": (
            ensemble,
            {
                "track_sigma": Ragged(
                    eta_sigma(stated.tracks["eta"].values), stated.tracks["eta"].offsets
                )
            },
        ),
    }
    truth = {"z0": stated.z0, "is_pv": stated.tracks["is_pv"]}
    rows = uses_table(methods, stated.tracks, truth, seed=1, replicas=3)
    assert len({tuple(row) for row in rows}) == 1
    assert pa.Table.from_pylist(rows).num_rows == len(rows)
    by_rule = {(row["method"], row["use"], row["rule"], row["target"]): row for row in rows}
    assert ("one", "association", "network") in {key[:3] for key in by_rule}
    assert ("ensemble", "association", "network") not in {key[:3] for key in by_rule}
    assert ("ensemble", "region", "members", 0.99) in by_rule
    assert ("one", "region", "members", 0.99) not in by_rule
    # 600 events tune: too few for 99.9 %, said in the row.
    refused = by_rule["one", "region", "sigma", 0.999]
    assert "600 calibration events" in refused["refused"] and refused["value"] is None
    assert by_rule["one", "region", "sigma", 0.99]["refused"] is None
    assert rows == uses_table(methods, stated.tracks, truth, seed=1, replicas=3)


def test_rows_can_be_tuned_on_one_condition_and_judged_on_another():
    nominal = with_tracks(vertices(800))
    shifted = replace(
        nominal,
        predictive=Mixture.gaussian(nominal.predictive.mean + 0.5, nominal.predictive.variance),
    )
    rows = uses_rows("toy", nominal, shifted, seed=1, coverages=(0.95,), replicas=3)
    held = {row["rule"]: row["achieved"] for row in rows if row["use"] == "region"}
    assert held["sigma"] < 0.3 and held["beam spot"] > 0.9


# -- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_used_is_said():
    stated = vertices(50)
    with pytest.raises(ShapeError, match=r"50 predictions of one number were given \(49,\) truths"):
        Stated(stated.predictive, stated.z0[1:])
    with pytest.raises(
        DataError, match="a vertex is NaN or infinite; was an event without a label"
    ):
        Stated(stated.predictive, np.full(50, np.nan))
    tracks = with_tracks(stated).tracks
    with pytest.raises(ShapeError, match="track column 'z0' must be ragged, of the same 50 events"):
        Stated(stated.predictive, stated.z0, {"z0": np.zeros(50)})
    with pytest.raises(ShapeError, match="'eta' counts other tracks than the others"):
        Stated(
            stated.predictive,
            stated.z0,
            {"z0": tracks["z0"], "eta": Ragged.from_counts(np.zeros(50), np.ones(50, int))},
        )
    with pytest.raises(
        DataError, match="needs the track columns z0, eta and is_pv; 'is_pv' is miss"
    ):
        association_window(stated, stated, rng=rng())
    with pytest.raises(DataError, match="1 events cannot be split"):
        halves(1, rng())
    with pytest.raises(ConfigError, match=r"a containment must lie strictly between .* got 1\.5"):
        region(stated, SigmaLength(), coverage=1.5)
    with pytest.raises(ConfigError, match="a confidence must lie strictly between 0 and 1, got 0"):
        region(stated, SigmaLength(), coverage=0.9, confidence=0)
    with pytest.raises(ConfigError, match="an interval needs replicas of the data, got 0"):
        region(stated, SigmaLength(), coverage=0.9, replicas=0)
    with pytest.raises(DataError, match="no events to tune on or to judge on"):
        region_of_interest(stated, stated.take(slice(0, 0)), SigmaLength(), coverage=0.9, rng=rng())
    with pytest.raises(ConfigError, match="there is no method to judge"):
        uses_table({}, tracks, {}, seed=1)


def test_knobs_without_sense_are_refused():
    stated = vertices(50)
    with pytest.raises(ConfigError, match=r"`far` must be positive \(cm\), got 0"):
        FoundOrLost(far=0)
    with pytest.raises(ConfigError, match=r"`margin` must not be negative \(cm\), got -1"):
        FoundOrLost(margin=-1)
    with pytest.raises(ConfigError, match=r"shape must be 'proportional', .* got 'round'"):
        Window(shape="round")
    with pytest.raises(
        ConfigError, match="must not be negative, nor both 0, got event 0 and track 0"
    ):
        Window(event=0, track=0)
    with pytest.raises(ConfigError, match="at least one factor on the event's sigma"):
        association_window(stated, stated, event=(), rng=rng())
    far = Stated(Mixture.gaussian(stated.z0 + 100, np.ones(50)), stated.z0)
    with pytest.raises(
        DataError, match=r"all 50 vertices are more than 1\.0 cm off; is `far` in cm"
    ):
        FoundOrLost().fit(far.predictive, far.z0)
    lost = with_tracks(stated)
    lost = replace(lost, predictive=Mixture.gaussian(stated.z0 + 100, np.ones(50)))
    with pytest.raises(DataError, match="the fixed table keeps none of 1000 primary tracks"):
        association_window(lost, lost, rng=rng())
    bad = with_tracks(stated, own=True)
    sigma = bad.tracks["sigma"].values.copy()
    sigma[7] = -1
    bad = replace(bad, tracks={**bad.tracks, "sigma": Ragged(sigma, bad.tracks["sigma"].offsets)})
    with pytest.raises(DataError, match=r"sigma must be positive and finite \(cm\), got -1\.0"):
        association_window(bad, bad, rng=rng())


def test_a_binomial_interval_is_clopper_and_pearsons():
    inside = np.arange(100) < 99
    low, high = stats.beta.ppf(0.025, 99, 2), stats.beta.ppf(0.975, 100, 1)
    assert binomial(inside) == pytest.approx((0.99, low, high))
    assert binomial(np.ones(10, bool)).high == 1
