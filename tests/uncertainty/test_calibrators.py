"""Calibrators: exact coverage where it is promised, textbook oracles, purity, what is refused."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.predictive import Categorical, Mixture, QuantileTable, StudentT
from stillfit.core.state import from_arrays, to_arrays
from stillfit.uncertainty.calibrators import (
    ACI,
    Calibrator,
    ConformalQuantile,
    NExCP,
    NormalisedConformal,
    OnlineCalibrator,
    SplitConformal,
    TemperatureScaling,
    VarianceScaling,
    scaled,
)
from stillfit.uncertainty.checks import rows_needed

NINETY = (0.9,)
ONCE = [SplitConformal(), NormalisedConformal(), ConformalQuantile()]
SCALINGS = [VarianceScaling(method=m) for m in ("moment", "likelihood", "robust")]
KINDS = ("absolute", "normalised", "quantile")
ONLINE = [
    *(ACI(score=kind, steps=(0.002, 0.02), window=60, late=7) for kind in KINDS),
    ACI(window=60, unbounded=True),
    *(NExCP(score=kind, window=80) for kind in KINDS),
]
EVERY = [*SCALINGS, *ONCE, *ONLINE]


def rows(n: int, seed: int, *, form: str = "gaussian", factor: float = 1.0):
    """Predictions whose stated spread is `factor` times too large, and truths."""
    rng = np.random.default_rng(seed)
    location, spread = rng.standard_normal(n), rng.uniform(0.5, 2, n)
    if form == "gaussian":
        true = Mixture.gaussian(location, spread**2)
    elif form == "mixture":
        means = location[:, None] + spread[:, None] * np.array([-1.0, 0.0, 2.0])
        true = Mixture(means, np.repeat(spread[:, None] ** 2, 3, 1), np.array([0.3, 0.5, 0.2]))
    elif form == "student":
        true = StudentT(location, spread, np.full(n, 5.0))
    else:
        steps = np.array([-2.0, -0.5, 0.3, 1.0, 3.0])
        true = QuantileTable(
            np.array([0.05, 0.3, 0.5, 0.7, 0.95]), location[:, None] + spread[:, None] * steps
        )
    y = true.sample(1, rng)[0]
    return scaled(true, factor), y


def share(ends, y) -> float:
    return float(np.mean((ends[0] <= y) & (y <= ends[1])))


# Variance scaling


@pytest.mark.parametrize("calibrator", SCALINGS, ids=lambda c: c.method)
@pytest.mark.parametrize("form", ["gaussian", "mixture", "student"])
@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_scaling_undoes_a_wrong_factor(calibrator, form, factor):
    told, y = rows(20_000, 0, form=form, factor=factor)
    state = calibrator.fit(told, y)
    # The Student-t of 5 degrees of freedom has a heavy z^2.
    assert state.factor * factor == pytest.approx(1, abs=0.03)
    better = calibrator.apply(state, told)
    assert type(better) is type(told)
    assert better.mean == pytest.approx(told.mean, abs=1e-9)
    assert better.std == pytest.approx(state.factor * told.std)
    assert share(calibrator.interval(state, told, 0.9), y) == pytest.approx(0.9, abs=0.015)


def test_the_moment_is_the_closed_form_and_the_largest_likelihood_of_gaussians():
    told, y = rows(500, 1, factor=0.7)
    z = (y - told.mean) / told.std
    moment = VarianceScaling().fit(told, y).factor
    assert moment == pytest.approx(np.sqrt(np.mean(z**2)))
    likely = VarianceScaling(method="likelihood").fit(told, y).factor
    assert likely == pytest.approx(moment, rel=1e-5)


@pytest.mark.parametrize("form", ["mixture", "student"])
def test_no_other_factor_has_a_larger_likelihood(form):
    told, y = rows(400, 2, form=form, factor=2.0)
    best = VarianceScaling(method="likelihood").fit(told, y).factor
    top = scaled(told, best).log_prob(y).mean()
    for factor in np.geomspace(best / 30, best * 30, 200):
        assert scaled(told, factor).log_prob(y).mean() <= top + 1e-9


def test_outliers_move_the_moment_and_not_the_robust_factor():
    told, y = rows(1000, 3)
    spoiled = y + np.where(np.arange(1000) % 10 == 0, 50, 0)
    assert VarianceScaling().fit(told, spoiled).factor > 5
    assert VarianceScaling(method="robust").fit(told, spoiled).factor < 1.25


@pytest.mark.parametrize("form", ["gaussian", "mixture", "student", "table"])
def test_a_scaled_form_is_the_distribution_of_the_scaled_number(form):
    told, y = rows(50, 4, form=form)
    wide = scaled(told, 2.5)
    stretched = told.mean + 2.5 * (y - told.mean)
    assert wide.cdf(stretched) == pytest.approx(told.cdf(y), abs=1e-6)
    assert wide.crps(stretched) == pytest.approx(2.5 * told.crps(y), rel=1e-6)
    assert wide.log_prob(stretched) == pytest.approx(told.log_prob(y) - np.log(2.5), abs=1e-6)
    for part in ("aleatoric", "epistemic"):
        before, after = getattr(told, part), getattr(wide, part)
        assert (before is None) == (after is None)
        if before is not None:
            assert after == pytest.approx(2.5**2 * before)


def test_known_parts_of_the_variance_scale_alike():
    told = Mixture.from_parts(np.zeros(3), np.ones(3), np.full(3, 0.5))
    wide = scaled(told, 2)
    assert wide.aleatoric == pytest.approx(4)
    assert wide.epistemic == pytest.approx(2)


# Conformal, fitted once


@pytest.mark.parametrize("calibrator", ONCE, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("n", [19, 200])
def test_coverage_over_many_calibrations_is_the_one_promised(calibrator, n):
    """P(covered) = ceil((n + 1) c) / (n + 1) exactly, for any stated spread and any noise."""
    runs, fresh, hits = 600, 20, []
    for run in range(runs):
        told, y = rows(n + fresh, run, form="student", factor=0.3)
        state = calibrator.fit(told.take(slice(n)), y[:n])
        hits.append(share(calibrator.interval(state, told.take(slice(n, None)), 0.9), y[n:]))
    wanted = math.ceil(round((n + 1) * 0.9, 9)) / (n + 1)
    assert abs(np.mean(hits) - wanted) < 4 * np.std(hits) / np.sqrt(runs)


def test_the_bound_is_the_rank_of_the_textbook():
    told = Mixture.gaussian(np.zeros(19), np.full(19, 4.0))
    y = np.random.default_rng(5).permutation(np.arange(1.0, 20.0)) * np.resize([1, -1], 19)
    new = Mixture.gaussian([100.0], [9.0])
    split, normal = SplitConformal(), NormalisedConformal()
    for coverage, rank in ((0.95, 19), (0.9, 18), (0.5, 10), (0.05, 1)):
        low, high = split.interval(split.fit(told, y), new, coverage)
        assert (low[0], high[0]) == (100 - rank, 100 + rank)
        low, high = normal.interval(normal.fit(told, y), new, coverage)
        assert (low[0], high[0]) == (100 - 3 * rank / 2, 100 + 3 * rank / 2)


def test_conformal_quantiles_add_one_number_to_the_stated_interval():
    told, y = rows(500, 6, form="table", factor=0.5)
    calibrator = ConformalQuantile(coverages=(0.5, 0.9))
    state = calibrator.fit(told, y)
    for coverage in (0.5, 0.9):
        low, high = told.interval(coverage)
        a, b = calibrator.interval(state, told, coverage)
        q = np.sort(np.maximum(low - y, y - high))[math.ceil(501 * coverage) - 1]
        assert low - a == pytest.approx(q)
        assert b - high == pytest.approx(q)


def test_too_wide_an_interval_shrinks_but_never_turns_over():
    told, y = rows(500, 7, factor=20.0)
    calibrator = ConformalQuantile(coverages=(0.05, 0.9))
    state = calibrator.fit(told, y)
    for coverage in (0.05, 0.9):
        low, high = calibrator.interval(state, told, coverage)
        assert np.all(low <= high)
        assert np.mean(high - low) < np.mean(np.subtract(*told.interval(coverage)[::-1]))


def test_split_and_normalised_intervals_are_those_of_crepes():
    crepes = pytest.importorskip("crepes")
    told, y = rows(300, 8, factor=0.5)
    new, _ = rows(50, 9)
    for calibrator, sigmas in ((SplitConformal(), {}), (NormalisedConformal(), {"x": 1})):
        oracle = crepes.ConformalRegressor()
        known = {"sigmas": told.std} if sigmas else {}
        asked = {"sigmas": new.std} if sigmas else {}
        oracle.fit(y - told.mean, **known)
        wanted = oracle.predict_int(new.mean, confidence=0.9, **asked)
        found = calibrator.interval(calibrator.fit(told, y), new, 0.9)
        assert np.stack(found, 1) == pytest.approx(wanted)


@pytest.mark.parametrize("calibrator", [*ONCE, *ONLINE], ids=repr)
def test_the_table_holds_the_intervals_at_its_coverages(calibrator):
    told, y = rows(400, 10)
    state = calibrator.fit(told, y)
    table = calibrator.apply(state, told)
    assert isinstance(table, QuantileTable)
    for coverage in calibrator.coverages:
        for end, wanted in zip(
            table.interval(coverage), calibrator.interval(state, told, coverage), strict=True
        ):
            assert end == pytest.approx(wanted)


# Online


def reference_aci(scores, window, late, nominal, step, first):
    """The rule of arXiv:2106.00170 in plain Python on a sliding window."""
    asked = nominal
    for i in range(first, len(scores)):
        past = sorted(scores[max(0, i - late - window) : max(0, i - late)])
        if len(past) >= rows_needed(1 - nominal):
            rank = math.ceil((len(past) + 1) * (1 - asked) - 1e-9)
            bound = -math.inf if rank < 1 else math.inf if rank > len(past) else past[rank - 1]
            asked += step * (nominal - (scores[i] > bound))
    return asked


@given(st.integers(0, 999), st.integers(0, 30), st.sampled_from([0.0, 0.01, 0.3]))
def test_aci_is_the_rule_of_the_paper(seed, late, step):
    _, y = rows(150, seed)
    y = np.round(y * np.linspace(1, 3, 150))  # ties
    flat = Mixture.gaussian(np.zeros(150), np.ones(150))
    aci = ACI(steps=(step,), window=40, late=late, coverages=NINETY, unbounded=True)
    state = aci.update(aci.fit(flat.take(slice(50)), y[:50]), flat.take(slice(50, None)), y[50:])
    wanted = reference_aci(
        np.abs(y)[max(0, 10 - late) :], 40, late, 1 - 0.9, step, 50 - max(0, 10 - late)
    )
    assert state.misses[0, 0] == pytest.approx(wanted)
    assert np.array_equal(state.scores[0], np.abs(y)[-40 - late :])


@pytest.mark.parametrize("step", [0.005, 0.05])
@pytest.mark.parametrize("attack", ["growth", "jumps", "spite"])
def test_the_bound_of_the_paper_holds_for_any_sequence(step, attack):
    """|misses / T - 0.1| <= (max(a_1, 1 - a_1) + step) / (step T), proposition 4.1."""
    n, rng = 2000, np.random.default_rng(11)
    aci = ACI(steps=(step,), window=100, coverages=NINETY, unbounded=True)
    told, y = rows(100, 12)
    state, missed = aci.fit(told, y), 0
    for i in range(n):
        one = Mixture.gaussian([0.0], [1.0])
        low, high = aci.interval(state, one, 0.9)
        truth = {
            "growth": 1.01**i * rng.standard_normal(),
            "jumps": rng.standard_normal() * (1 if i // 200 % 2 else 1e3),
            "spite": high[0] + 1 if np.isfinite(high[0]) else 0.0,
        }[attack]
        missed += not low[0] <= truth <= high[0]
        state = aci.update(state, one, [truth])
    assert abs(missed / n - 0.1) <= (0.9 + step) / (step * n) + 1e-12


def test_a_step_of_zero_is_split_conformal_on_the_window():
    told, y = rows(900, 13)
    aci = ACI(steps=(0.0,), window=300, coverages=NINETY)
    state = aci.update(
        aci.fit(told.take(slice(500)), y[:500]), told.take(slice(500, None)), y[500:]
    )
    wanted = NormalisedConformal(coverages=NINETY)
    newest = wanted.fit(told.take(slice(600, None)), y[600:])
    for found, end in zip(
        aci.interval(state, told, 0.9), wanted.interval(newest, told, 0.9), strict=True
    ):
        assert np.array_equal(found, end)


def test_misses_widen_and_hits_narrow():
    told, y = rows(300, 14)
    aci = ACI(steps=(0.01,), coverages=NINETY)
    state = aci.fit(told, y)
    assert state.misses[0, 0] == pytest.approx(0.1)
    one = told.take(slice(0, 1))
    assert aci.update(state, one, one.mean + 99).misses[0, 0] == pytest.approx(0.1 + 0.01 * -0.9)
    assert aci.update(state, one, one.mean).misses[0, 0] == pytest.approx(0.1 + 0.01 * 0.1)


def test_equal_steps_are_one_step_and_the_mixture_favours_the_step_that_the_drift_needs():
    told, y = rows(6000, 15)
    jumpy = told.mean + (y - told.mean) * np.where(np.arange(6000) // 100 % 2, 1, 6)
    one = ACI(steps=(0.02,), window=2000, coverages=NINETY)
    two = ACI(steps=(0.02, 0.02), window=2000, coverages=NINETY)
    mixed = ACI(steps=(0.0005, 0.05), window=2000, span=100, coverages=NINETY)
    ends = {}
    for name, truths in (("calm", y), ("jumpy", jumpy)):
        start = slice(2000), slice(2000, None)
        states = [
            c.update(
                c.fit(told.take(start[0]), truths[start[0]]), told.take(start[1]), truths[start[1]]
            )
            for c in (one, two, mixed)
        ]
        assert states[1].misses[0] == pytest.approx(states[0].misses[0, 0])
        assert states[1].weights[0] == pytest.approx(0.5)
        assert states[2].weights.sum() == pytest.approx(1)
        ends[name] = states[2].weights[0, 1]
    assert ends["jumpy"] > 0.7
    assert ends["calm"] < ends["jumpy"]


def test_unbounded_intervals_may_hold_everything_or_nothing_and_bounded_ones_are_finite():
    told, y = rows(100, 16)
    for unbounded in (True, False):
        aci = ACI(steps=(0.5,), coverages=NINETY, unbounded=unbounded)
        state = aci.fit(told, y)
        low, high = aci.interval(aci.update(state, told.take(slice(3)), y[:3] + 1e3), told, 0.9)
        assert np.all(np.isinf(high) & np.isinf(low)) == unbounded
        low, high = aci.interval(state._replace(misses=np.array([[1.2]])), told, 0.9)
        assert np.all(high >= low)
        assert np.all(high == low) == unbounded


def test_an_infinite_interval_makes_no_table():
    told, y = rows(100, 16)
    aci = ACI(steps=(0.5,), coverages=NINETY, unbounded=True)
    state = aci.update(aci.fit(told, y), told.take(slice(3)), y[:3] + 1e3)
    with pytest.raises(DataError, match="NaN or infinity"):
        aci.apply(state, told)


def reference_nexcp(scores, rho, coverage):
    """The rule of arXiv:2202.13415: the quantile of weighted points, one at infinity."""
    n = len(scores)
    weights = [rho ** (n - i) for i in range(n)]
    total, reached = sum(weights) + 1, 0.0
    for score, weight in sorted(zip(scores, weights, strict=True)):
        reached += weight / total
        if reached >= coverage - 1e-9:
            return score
    return math.inf


@given(st.integers(0, 999), st.sampled_from([0.96, 0.99, 0.999]), st.sampled_from([0.2, 0.5, 0.9]))
def test_nexcp_is_the_weighted_quantile_of_the_paper(seed, rho, coverage):
    flat = Mixture.gaussian(np.zeros(120), np.full(120, 4.0))
    y = np.random.default_rng(seed).standard_normal(120)
    calibrator = NExCP(rho=rho, window=200, coverages=(0.2, 0.9), score="absolute")
    state = calibrator.fit(flat, y)
    wanted = reference_nexcp(np.abs(y), rho, coverage)
    assert calibrator.interval(state, flat, coverage)[1] == pytest.approx(wanted)


@pytest.mark.parametrize("score", KINDS)
def test_without_forgetting_nexcp_is_split_conformal(score):
    told, y = rows(300, 17)
    plain = dict(zip(KINDS, ONCE, strict=True))[score]
    nexcp = NExCP(rho=1.0, window=300, score=score)
    for coverage in (0.5, 0.9):
        for found, wanted in zip(
            nexcp.interval(nexcp.fit(told, y), told, coverage),
            plain.interval(plain.fit(told, y), told, coverage),
            strict=True,
        ):
            assert np.array_equal(found, wanted)


def test_a_smaller_rho_follows_a_jump_sooner():
    told, y = rows(1200, 18)
    y = told.mean + (y - told.mean) * np.where(np.arange(1200) < 1000, 1, 3)
    widths = [
        np.mean(np.subtract(*c.interval(c.fit(told, y), told, 0.9)[::-1]))
        for c in (NExCP(rho=rho, coverages=NINETY) for rho in (1.0, 0.998, 0.99))
    ]
    assert widths == sorted(widths)
    assert widths[2] > 1.7 * widths[0]


@pytest.mark.parametrize("calibrator", ONLINE, ids=repr)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 99))
def test_rows_may_come_in_any_batches(calibrator, cuts, seed):
    told, y = rows(40 + sum(cuts), seed)
    whole = calibrator.fit(told.take(slice(40)), y[:40])
    pieces, start = whole, 40
    whole = calibrator.update(whole, told.take(slice(40, None)), y[40:])
    for cut in cuts:
        rows_now = slice(start, start + cut)
        pieces = calibrator.update(pieces, told.take(rows_now), y[rows_now])
        start += cut
    for name, part in to_arrays(whole).items():
        assert np.array_equal(part, to_arrays(pieces)[name]), name


@pytest.mark.parametrize("calibrator", ONLINE, ids=repr)
def test_an_online_calibrator_can_begin_with_nothing(calibrator):
    told, y = rows(500, 19)
    state = calibrator.init()
    for start in range(0, 500, 10):
        now = slice(start, start + 10)
        state = calibrator.update(state, told.take(now), y[now])
    fresh, truths = rows(4000, 20)
    assert share(calibrator.interval(state, fresh, 0.9), truths) == pytest.approx(0.9, abs=0.08)


@pytest.mark.parametrize("score", KINDS)
def test_online_calibrators_keep_their_coverage_when_the_noise_triples_and_plain_ones_do_not(score):
    told, y = rows(6000, 21)
    y = told.mean + (y - told.mean) * np.where(np.arange(6000) < 2000, 1, 3)
    first, second = told.take(slice(2000)), told.take(slice(2000, 4000))
    last, truths = told.take(slice(4000, None)), y[4000:]
    plain = dict(zip(KINDS, ONCE, strict=True))[score]
    after = share(plain.interval(plain.fit(first, y[:2000]), last, 0.9), truths)
    if score == "normalised":
        assert after == pytest.approx(2 * stats.norm.cdf(stats.norm.ppf(0.95) / 3) - 1, abs=0.04)
    assert after < 0.6
    for online in (ACI(score=score), NExCP(score=score)):
        state = online.update(online.fit(first, y[:2000]), second, y[2000:4000])
        assert share(online.interval(state, last, 0.9), truths) == pytest.approx(0.9, abs=0.04)


# Every calibrator


@pytest.mark.parametrize("calibrator", EVERY, ids=repr)
def test_states_become_arrays_and_come_back_and_nothing_is_changed(calibrator):
    told, y = rows(200, 22)
    before = told.means.copy(), told.variances.copy(), y.copy()
    state = calibrator.fit(told, y)
    if isinstance(calibrator, OnlineCalibrator):
        kept = {name: part.copy() for name, part in to_arrays(state).items()}
        newer = calibrator.update(state, told, y)
        for name, part in kept.items():
            assert np.array_equal(part, to_arrays(state)[name])
        state = newer
    back = from_arrays(calibrator.init(), to_arrays(state))
    assert type(back) is type(state)
    for found, wanted in zip(
        calibrator.interval(back, told, 0.9), calibrator.interval(state, told, 0.9), strict=True
    ):
        assert np.array_equal(found, wanted)
    for now, was in zip((told.means, told.variances, y), before, strict=True):
        assert np.array_equal(now, was)


def test_the_contracts_tell_the_two_kinds_apart():
    assert len(EVERY) == 13
    for calibrator in EVERY:
        assert isinstance(calibrator, Calibrator)
        assert isinstance(calibrator, OnlineCalibrator) == isinstance(calibrator, ACI | NExCP)


@pytest.mark.parametrize("calibrator", EVERY, ids=repr)
@pytest.mark.parametrize("form", ["gaussian", "mixture", "student", "table"])
def test_every_calibrator_wraps_every_form_of_any_batch_shape(calibrator, form):
    if form == "table" and getattr(calibrator, "method", "") == "likelihood":
        pytest.skip("a table has no likelihood outside its ends")
    told, y = rows(300, 23, form=form, factor=0.5)
    state = calibrator.fit(told, y)
    low, high = calibrator.interval(state, told, 0.9)
    assert low.shape == high.shape == y.shape
    assert share((low, high), y) == pytest.approx(0.9, abs=0.08)
    applied = calibrator.apply(state, told)
    assert np.all(np.isfinite(applied.crps(y)))
    if form == "gaussian":
        folded = Mixture(told.means.reshape(100, 3, 1), told.variances.reshape(100, 3, 1))
        a, b = calibrator.interval(calibrator.fit(folded, y.reshape(100, 3)), folded, 0.9)
        assert np.array_equal(a.ravel(), low)
        assert np.array_equal(b.ravel(), high)


@pytest.mark.parametrize("calibrator", EVERY, ids=repr)
def test_every_calibrator_refuses_bad_rows_and_bad_coverages(calibrator):
    told, y = rows(100, 24)
    missing = np.where(np.arange(100) == 5, np.nan, y)
    zero = QuantileTable(np.array([0.2, 0.8]), np.zeros((100, 2)))
    infinite = StudentT(y, np.ones(100), np.full(100, np.inf))
    state = calibrator.fit(told, y)
    learners = [calibrator.fit]
    if isinstance(calibrator, OnlineCalibrator):
        learners.append(lambda p, t: calibrator.update(state, p, t))
    for learn in learners:
        with pytest.raises(DataError, match=r"target 5 is nan \(1 of 100\); leave out the rows"):
            learn(told, missing)
        with pytest.raises(DataError, match=r"standard deviation is 0\.0 at row 0 \(100 of 100\)"):
            learn(zero, np.ones(100))
        with pytest.raises(DataError, match=r"standard deviation is nan at row 0 \(100 of 100\)"):
            learn(infinite, y)
        with pytest.raises(
            ShapeError, match=r"predictions of shape \(100,\) have targets of shape"
        ):
            learn(told, y[:7])
        with pytest.raises(ShapeError, match=r"predictions of shape \(0,\) have targets of shape"):
            learn(told.take(slice(0)), y[:7])
    for coverage in (0, 1, 1.5, -0.1, 90, np.nan):
        with pytest.raises(ConfigError, match="coverage must lie strictly between 0 and 1, got "):
            calibrator.interval(state, told, coverage)


@pytest.mark.parametrize("calibrator", [*ONCE, *ONLINE], ids=repr)
def test_too_few_rows_are_refused_with_the_number_that_is_needed(calibrator):
    told, y = rows(40, 25)
    needed = 21 if isinstance(calibrator, NExCP) else 19
    calibrator.fit(told.take(slice(needed)), y[:needed])
    with pytest.raises(DataError) as caught:
        calibrator.fit(told.take(slice(needed - 1)), y[: needed - 1])
    assert f"{needed - 1} calibration rows" in str(caught.value)
    assert f"cannot give 95 % coverage: at least {needed} are needed" in str(caught.value)
    with pytest.raises(DataError, match="0 calibration rows"):
        calibrator.interval(calibrator.init(), told, 0.9)


def test_the_rows_needed_are_those_of_the_formula_whatever_the_rounding():
    for coverage, needed in ((0.5, 1), (0.68, 3), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)):
        assert rows_needed(coverage) == needed == math.ceil(round(1 / (1 - coverage), 6)) - 1
    told, y = rows(98, 26)
    calibrator = SplitConformal()
    with pytest.raises(DataError) as caught:
        calibrator.interval(calibrator.fit(told, y), told, 0.99)
    assert str(caught.value) == (
        "98 calibration rows cannot give 99 % coverage: at least 99 are needed "
        "(ceil(1 / (1 - coverage)) - 1); add rows or ask for less"
    )


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: VarianceScaling(method="mean"),
            ConfigError,
            "method must be one of moment, likelihood, robust, got 'mean'",
        ),
        (lambda: VarianceScaling(least=0), ConfigError, "least must be 1 row or more, got 0"),
        (
            lambda: VarianceScaling().fit(*rows(19, 0)),
            DataError,
            "19 calibration rows are too few for a factor: at least 20 are needed; add rows",
        ),
        (
            lambda: VarianceScaling().fit(Mixture.gaussian(np.ones(20), np.ones(20)), np.ones(20)),
            DataError,
            "every prediction hits its target exactly, so no factor follows",
        ),
        (
            lambda: VarianceScaling(method="robust").fit(
                Mixture.gaussian(np.ones(20), np.ones(20)), np.r_[np.ones(19), 2]
            ),
            DataError,
            "two thirds of the predictions hit their targets exactly, so no robust factor",
        ),
        (
            lambda: VarianceScaling(method="likelihood").fit(*rows(50, 0, form="table")),
            DataError,
            "a quantile table gives no likelihood outside its ends, so none can be maximised",
        ),
        (
            lambda: scaled(3.0, 2.0),
            DataError,
            "float is none of the three forms of a predictive distribution",
        ),
        (
            lambda: SplitConformal(coverages=()),
            ConfigError,
            "coverages must be one or more rising numbers, got ()",
        ),
        (
            lambda: SplitConformal(coverages=(0.9, 0.5)),
            ConfigError,
            "coverages must be one or more rising numbers, got (0.9, 0.5)",
        ),
        (
            lambda: SplitConformal(coverages=(0.9, 95)),
            ConfigError,
            "coverage must lie strictly between 0 and 1, got 95; 0.9 asks for 90 %",
        ),
        (
            lambda: ConformalQuantile().interval(
                ConformalQuantile().fit(*rows(99, 0)), rows(9, 0)[0], 0.7
            ),
            ConfigError,
            "a coverage of 0.7 was not calibrated, only 0.2, 0.5, 0.68, 0.8, 0.9, 0.95; name it",
        ),
        (
            lambda: ACI().interval(ACI().fit(*rows(99, 0)), rows(9, 0)[0], 0.7),
            ConfigError,
            "a coverage of 0.7 was not calibrated",
        ),
        (
            lambda: ACI(score="pit"),
            ConfigError,
            "score must be one of absolute, normalised, quantile, got 'pit'",
        ),
        (
            lambda: ACI(steps=()),
            ConfigError,
            "steps must be one or more numbers in [0, 1), got ()",
        ),
        (
            lambda: ACI(steps=(1.0,)),
            ConfigError,
            "steps must be one or more numbers in [0, 1), got (1.0,)",
        ),
        (
            lambda: ACI(window=18),
            ConfigError,
            "a window of 18 rows cannot give 95 % coverage: it must hold 19 or more",
        ),
        (lambda: ACI(late=-1), ConfigError, "late must be 0 rows or more, got -1"),
        (lambda: ACI(span=1), ConfigError, "span must be 2 rows or more, got 1"),
        (lambda: NExCP(rho=0), ConfigError, "rho must lie in (0, 1], got 0"),
        (
            lambda: NExCP(rho=0.9),
            ConfigError,
            "with rho 0.9 the weights of any number of rows cannot give 95 % coverage; raise rho "
            "above 0.95",
        ),
        (
            lambda: NExCP(window=19),
            ConfigError,
            "a window of 19 rows, weighted by rho 0.995, cannot give 95 % coverage: it must hold "
            "21 or more",
        ),
        (lambda: NExCP(score="pit"), ConfigError, "score must be one of absolute,"),
        (
            lambda: TemperatureScaling().fit(Categorical(np.full((5, 1, 2), 0.5)), np.zeros(5)),
            DataError,
            "5 calibration rows are too few for a temperature: at least 20 are needed",
        ),
        (
            lambda: TemperatureScaling().fit(
                Categorical(np.full((25, 1, 2), 0.5)), np.full(25, np.nan)
            ),
            DataError,
            "target 0 is nan (25 of 25); leave out the rows whose labels are missing",
        ),
        (lambda: TemperatureScaling(least=0), ConfigError, "least must be 1 row or more, got 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


# Classes


@pytest.mark.parametrize("members", [1, 3])
def test_a_temperature_undoes_logits_that_are_too_large(members):
    rng = np.random.default_rng(27)
    logits = np.repeat(rng.standard_normal((20_000, 1, 4)), members, 1)
    true = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = (rng.random((20_000, 1)) > np.cumsum(true[:, 0], 1)).sum(1)
    sure = np.exp(3 * logits)
    told = Categorical(sure / sure.sum(-1, keepdims=True))
    calibrator = TemperatureScaling()
    state = calibrator.fit(told, y)
    assert state.temperature == pytest.approx(3, rel=0.03)
    better = calibrator.apply(state, told)
    assert better.members == pytest.approx(true, abs=0.02)
    assert np.array_equal(better.probabilities.argmax(1), told.probabilities.argmax(1))
    assert better.log_prob(y).mean() > told.log_prob(y).mean()
    back = from_arrays(calibrator.init(), to_arrays(state))
    assert back == state
    assert calibrator.apply(calibrator.init(), told).members == pytest.approx(told.members)


def test_every_name_is_exported_once():
    from stillfit.uncertainty import calibrators

    assert calibrators.__all__ == sorted(calibrators.__all__)
    assert all(hasattr(calibrators, name) for name in calibrators.__all__)
    assert len(list(itertools.chain(calibrators.__all__))) == len(set(calibrators.__all__))
