"""The sliding Kolmogorov-Smirnov test: the exact distance, the asked rate, what a CUSUM misses."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Mixture
from stillfit.core.state import from_arrays, to_arrays
from stillfit.core.values import Served, VersionId
from stillfit.monitors import KSState, ScoreCusum, ScoreKS, ks_distance
from stillfit.monitors.ks import _distances

V = VersionId("0" * 64)


def served(std: np.ndarray, **outputs) -> Served:
    return Served(V, Mixture.gaussian(np.zeros(len(std)), np.asarray(std) ** 2), outputs)


def scores(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    z = rng.standard_normal(n + 100) * np.sqrt(1 - phi**2)
    return np.exp(0.5 * signal.lfilter([1], [1, -phi], z)[100:])


def fitted(monitor, nominal: np.ndarray, rate: float = 5000.0, seed: int = 0):
    return monitor.fit({}, served(nominal), rate=rate, rng=np.random.default_rng(seed))


def feed(monitor, state, stream: np.ndarray, block: int = 50, at: int = 0):
    found = []
    for i in range(0, len(stream), block):
        part = stream[i : i + block]
        ids = at + i + np.arange(len(part))
        state, evidence = monitor.step(state, float(ids[-1]), ids, {}, served(part))
        found.append(evidence)
    return state, found


def same(a: KSState, b: KSState) -> bool:
    left, right = to_arrays(a), to_arrays(b)
    return all(np.array_equal(left[name], right[name]) for name in left)


@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=40),
    st.lists(st.integers(0, 9), min_size=3, max_size=40),
)
def test_the_distance_is_scipys_with_ties_too(sample, reference):
    a, b = np.array(sample, float), np.sort(np.array(reference, float))
    assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic)


def test_the_distances_of_the_calibration_are_those_of_the_monitor():
    rng = np.random.default_rng(1)
    reference = np.sort(np.round(rng.standard_normal(300), 1))
    stream = rng.choice(reference, 200)
    values = np.unique(reference)
    nominal = np.searchsorted(reference, values, "right") / len(reference)
    found = _distances(np.searchsorted(values, stream), nominal, 60, 20, 8)
    want = [ks_distance(stream[i * 20 : i * 20 + 60], reference) for i in range(8)]
    assert found == pytest.approx(want)


def test_the_threshold_for_one_look_a_window_is_the_two_sample_law():
    # One slice a window: independent looks, so the threshold is a quantile of D. 20 windows of 200
    # a false alarm, and a reference so large that it hardly counts.
    nominal = np.random.default_rng(2).standard_normal(60_000) + 9
    monitor = ScoreKS(window=200, slices=1, false_alarms=1.0, guarantee=0.5)
    assert fitted(monitor, nominal, 4000.0).threshold == pytest.approx(
        stats.kstwo(200).isf(1 / 20), rel=0.06
    )


@pytest.mark.parametrize("phi", [0.0, 0.4])
def test_the_false_alarm_rate_is_at_most_the_one_asked_for(phi):
    # 5000 events a day, one false alarm a day. Eight calibrations, each watched for 10 days.
    monitor, rates = ScoreKS(false_alarms=1.0, window=300), []
    for seed in range(8):
        both = scores(3000 + 50_000, phi, np.random.default_rng(seed))
        _, found = feed(monitor, fitted(monitor, both[:3000], 5000.0, seed), both[3000:], 100)
        raised = np.array([False] + [e.raised for e in found])
        rates.append(np.sum(raised[1:] & ~raised[:-1]) / 10)
    assert np.mean(rates) < 1
    assert np.mean(np.array(rates) > 1) <= 0.3  # the guarantee of 95 %, weaker where correlated
    assert np.mean(rates) > 0.05  # and not by never alarming


def test_a_change_of_shape_that_leaves_the_mean_is_found_where_a_cusum_is_blind():
    rng = np.random.default_rng(3)
    nominal = rng.uniform(0.5, 1.5, 4000)
    changed = rng.choice([0.5, 1.5], 2000) + rng.uniform(-0.05, 0.05, 2000)
    ks, cusum = ScoreKS(), ScoreCusum(clip=1.8)
    _, found = feed(ks, fitted(ks, nominal), changed)
    assert found[-1].raised
    _, blind = feed(cusum, fitted(cusum, nominal), changed)
    assert not any(e.raised for e in blind)


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_change_either_way_is_found_and_dated(scale):
    rng = np.random.default_rng(4)
    monitor = ScoreKS()
    state = fitted(monitor, scores(4000, 0.0, rng))
    state, found = feed(monitor, state, scores(2000, 0.0, rng))
    assert not any(e.raised for e in found)
    _, found = feed(monitor, state, scale * scores(1000, 0.0, rng), at=2000)
    first = next(e for e in found if e.raised)
    assert first.time < 2500  # within a window
    assert abs(first.since - 2000) < 130  # two slices
    assert f"is {first.value:.3f} away from nominal (Kolmogorov-Smirnov), above" in first.because


def test_an_alarm_ends_a_window_after_its_cause():
    rng = np.random.default_rng(5)
    monitor = ScoreKS()
    state = fitted(monitor, scores(4000, 0.0, rng))
    state, found = feed(monitor, state, 2 * scores(600, 0.0, rng))
    assert found[-1].raised
    _, found = feed(monitor, state, scores(600, 0.0, rng))
    assert not found[-1].raised
    assert found[-1].since is None


def test_more_false_alarms_or_less_guarantee_mean_a_lower_threshold():
    nominal = scores(3000, 0.0, np.random.default_rng(6))
    by_rate = [fitted(ScoreKS(false_alarms=a), nominal).threshold for a in (0.001, 0.1, 10.0)]
    assert by_rate[0] > by_rate[1] > by_rate[2]
    surer = [fitted(ScoreKS(guarantee=g), nominal).threshold for g in (0.95, 0.5)]
    assert surer[0] > surer[1]


def test_the_findings_do_not_depend_on_the_unit_of_the_score():
    rng = np.random.default_rng(7)
    nominal, stream = scores(2000, 0.0, rng), 1.2 * scores(1500, 0.0, rng)
    monitor = ScoreKS()
    _, one = feed(monitor, fitted(monitor, nominal), stream)
    _, other = feed(monitor, fitted(monitor, 1000 * nominal), 1000 * stream)
    assert [(e.value, e.raised) for e in one] == [(e.value, e.raised) for e in other]


def test_the_state_does_not_depend_on_how_the_stream_is_cut():
    rng = np.random.default_rng(8)
    monitor = ScoreKS(window=100, slices=7)
    start = fitted(monitor, scores(1000, 0.0, rng))
    stream = 1.1 * scores(500, 0.0, rng)
    one, other = feed(monitor, start, stream, 1)[0], feed(monitor, start, stream, 333)[0]
    kept = {"times": one.times, "since": 0.0}  # a block has one time
    assert same(one._replace(**kept), other._replace(**kept))


def test_an_unfitted_or_unfilled_window_is_silent():
    monitor = ScoreKS(window=100)
    state, found = feed(monitor, monitor.init(), np.full(500, 9.0))
    assert not any(e.raised for e in found)
    assert "no nominal distribution of the uncertainty is known yet" in found[-1].because
    assert same(state, monitor.init())
    rng = np.random.default_rng(9)
    _, found = feed(monitor, fitted(monitor, scores(1000, 0.0, rng)), np.full(99, 9.0))
    assert not any(e.raised for e in found)
    assert "the window of 100 events is not full yet" in found[-1].because


def test_a_named_output_is_watched():
    rng = np.random.default_rng(10)
    monitor = ScoreKS(output="score")
    nominal = served(np.ones(3000), score=rng.normal(10, 1, 3000))
    state = monitor.fit({}, nominal, rate=5000.0, rng=rng)
    late = served(np.ones(500), score=rng.normal(12, 1, 500))
    _, evidence = monitor.step(state, 1.0, np.arange(500), {}, late)
    assert evidence.raised
    assert "the distribution of the output 'score'" in evidence.because


def test_stepping_is_pure_reproducible_storable_and_finite():
    rng = np.random.default_rng(11)
    monitor, nominal = ScoreKS(), scores(2000, 0.0, rng)
    state = fitted(monitor, nominal)
    assert same(state, fitted(monitor, nominal))
    before = to_arrays(state)
    before = {name: part.copy() for name, part in before.items()}
    one, evidence = feed(monitor, state, scores(700, 0.0, rng))
    assert all(np.array_equal(before[name], part) for name, part in to_arrays(state).items())
    assert same(from_arrays(monitor.init(), to_arrays(one)), one)
    for found in evidence:
        figures = dataclasses.asdict(found)
        assert all(math.isfinite(v) for v in figures.values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: ScoreKS(window=10),
            ConfigError,
            "a window of 10 events in 8 slices cannot be compared; take at least 20 events and one "
            "event per slice",
        ),
        (lambda: ScoreKS(guarantee=1.0), ConfigError, "guarantee must lie between 0 and 1"),
        (
            lambda: fitted(ScoreKS(), np.arange(1.0, 100)),
            DataError,
            "99 nominal events cannot calibrate a window of 500: give at least as many, better a "
            "few windows, or take a shorter window",
        ),
        (
            lambda: fitted(ScoreKS(), np.ones(1000)),
            DataError,
            "the nominal score is 1 for all 1000 events: nothing to compare with; is the model's "
            "uncertainty constant?",
        ),
        (
            lambda: fitted(ScoreKS(output="y"), np.ones(1000)),
            DataError,
            "the serving model has no output 'y'; it has none",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
