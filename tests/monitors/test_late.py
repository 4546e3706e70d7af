"""The late metric: convinced at its confidence, honest about correlation and age."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, special

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.state import from_arrays, to_arrays
from stillfit.monitors import LateMetric, LateState

RNG = np.random.default_rng(0)


def fitted(monitor: LateMetric, nominal: np.ndarray) -> LateState:
    return monitor.fit(nominal, rate=5000.0, rng=RNG)


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    return signal.lfilter([1], [1, -phi], rng.standard_normal(n + 50) * np.sqrt(1 - phi**2))[50:]


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_a_full_window_of_nominal_events_is_raised_no_more_often_than_it_may(phi):
    runs, raised, rng = 500, 0, np.random.default_rng(1)
    monitor = LateMetric(window=400, confidence=0.95)
    for _ in range(runs):
        series = ar1(2400, phi, rng)
        state = fitted(monitor, series[:2000])
        raised += monitor.step(state, 400.0, np.arange(400.0), series[2000:])[1].raised
    assert raised / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_a_worse_error_is_raised_and_a_better_one_is_not():
    rng = np.random.default_rng(2)
    monitor = LateMetric(window=500)
    state = fitted(monitor, rng.exponential(1, 2000))
    for scale, wanted in ((1.0, False), (0.5, False), (1.3, True)):
        _, evidence = monitor.step(state, 600.0, np.arange(500.0), scale * rng.exponential(1, 500))
        assert evidence.raised == wanted
        assert evidence.raised == (evidence.value > evidence.threshold)


def test_the_threshold_is_level_plus_margins_plus_the_bound_of_both_errors():
    rng = np.random.default_rng(3)
    nominal, errors = rng.exponential(1, 2500), rng.exponential(1, 900)
    monitor = LateMetric(window=900, margin=0.1, relative=0.2, confidence=0.99)
    state = fitted(monitor, nominal)
    _, evidence = monitor.step(state, 900.0, np.arange(900.0), errors)
    level = nominal.mean()
    assert state.level == pytest.approx(level)
    # Independent values: errors close to std / sqrt(n), Student-t of about 30 batches.
    error = math.hypot(1 / 30, 1 / 50)
    wanted = 1.2 * level + 0.1 + special.stdtrit(29, 0.99) * error
    assert evidence.threshold == pytest.approx(wanted, abs=0.03)
    assert evidence.value == pytest.approx(errors.mean())


def test_the_margin_lets_small_losses_be():
    rng = np.random.default_rng(4)
    nominal, errors = rng.exponential(1, 5000), 1.2 * rng.exponential(1, 2000)
    for knobs, wanted in (({}, True), ({"margin": 0.5}, False), ({"relative": 0.5}, False)):
        monitor = LateMetric(window=2000, **knobs)
        _, evidence = monitor.step(fitted(monitor, nominal), 1.0, np.arange(2000.0), errors)
        assert evidence.raised == wanted


def test_only_the_newest_events_count_and_their_age_is_stated():
    monitor = LateMetric(window=100, least=10)
    state = fitted(monitor, np.zeros(50))
    state, _ = monitor.step(state, 100.0, np.arange(100.0), np.ones(100))
    state, evidence = monitor.step(state, 500.0, 200 + np.arange(80.0), np.zeros(80))
    assert len(state.errors) == 100
    assert evidence.value == pytest.approx(0.2)
    assert evidence.age == 500 - 279
    assert evidence.n == 100
    assert "the newest 100 labelled events, the last 221 s old" in evidence.because


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 99))
def test_labels_may_come_in_any_order_and_in_any_cut(cuts, seed):
    rng = np.random.default_rng(seed)
    n = sum(cuts)
    seen, errors = np.arange(n, dtype=float), rng.standard_normal(n)
    monitor = LateMetric(window=40, least=5)
    start = fitted(monitor, np.zeros(50))
    whole, _ = monitor.step(start, 1e3, seen, errors)
    order, state = rng.permutation(n), start
    for rows in np.split(order, np.cumsum(cuts)[:-1]):
        state, _ = monitor.step(state, 1e3, seen[rows], errors[rows])
    assert np.array_equal(state.errors, whole.errors)
    assert np.array_equal(state.seen, whole.seen)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 99))
def test_merging_two_nodes_is_stepping_on_the_union(a, b, seed):
    rng = np.random.default_rng(seed)
    seen, errors = rng.permutation(a + b).astype(float), rng.standard_normal(a + b)
    monitor = LateMetric(window=40, least=5)
    start = fitted(monitor, np.zeros(50))
    left, _ = monitor.step(start, 1e3, seen[:a], errors[:a])
    right, _ = monitor.step(start, 1e3, seen[a:], errors[a:])
    union, _ = monitor.step(start, 1e3, seen, errors)
    for merged in (monitor.merge(left, right), monitor.merge(right, left)):
        assert np.array_equal(merged.errors, union.errors)
        assert np.array_equal(merged.seen, union.seen)


def test_the_change_is_dated_inside_the_window():
    rng = np.random.default_rng(5)
    monitor, dates = LateMetric(window=1000), []
    for _ in range(30):
        state = fitted(monitor, rng.standard_normal(3000))
        errors = rng.standard_normal(1000)
        errors[700:] += 1
        _, evidence = monitor.step(state, 1000.0, np.arange(1000.0), errors)
        assert evidence.raised
        dates.append(evidence.since)
    assert np.median(np.abs(np.array(dates) - 700)) < 10


def test_too_few_events_or_no_reference_say_nothing():
    monitor = LateMetric(window=100, least=50)
    state = fitted(monitor, np.zeros(50))
    _, evidence = monitor.step(state, 50.0, np.arange(49.0), np.full(49, 9.0))
    assert not evidence.raised
    assert evidence.because == "nothing is compared: 49 labelled events of the 50 that it takes"
    _, evidence = monitor.step(monitor.init(), 100.0, np.arange(90.0), np.full(90, 9.0))
    assert not evidence.raised
    assert evidence.because == "nothing is compared: no nominal level is known yet"
    _, evidence = monitor.step(state, 50.0, np.zeros(0), np.zeros(0))
    assert (evidence.n, evidence.age) == (0, 0.0)


def test_states_become_arrays_and_come_back_and_stepping_is_pure():
    monitor = LateMetric(window=100)
    state = fitted(monitor, RNG.standard_normal(500))
    state, _ = monitor.step(state, 60.0, np.arange(60.0), RNG.standard_normal(60))
    back = from_arrays(monitor.init(), to_arrays(state))
    assert np.array_equal(back.errors, state.errors)
    assert back[2:] == state[2:]
    first = monitor.step(state, 70.0, np.arange(60.0, 70.0), np.ones(10))[1]
    assert len(state.errors) == 60
    assert monitor.step(back, 70.0, np.arange(60.0, 70.0), np.ones(10))[1] == first


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: LateMetric(window=10),
            ConfigError,
            "a window of 10 events must hold the least of 50",
        ),
        (
            lambda: LateMetric(confidence=0.3),
            ConfigError,
            "confidence must lie in [0.5, 1), got 0.3",
        ),
        (
            lambda: LateMetric(margin=-1),
            ConfigError,
            "margins must not be negative, got -1 and 0.0",
        ),
        (
            lambda: fitted(LateMetric(), np.zeros(1)),
            DataError,
            "1 nominal events give no level of the error; give the held-out events on which",
        ),
        (
            lambda: LateMetric().step(LateMetric().init(), 0.0, np.zeros(1), np.array([np.inf])),
            DataError,
            "the late error holds inf at event 0 (1 of 1)",
        ),
        (
            lambda: LateMetric().step(LateMetric().init(), 0.0, np.zeros(1), np.zeros(2)),
            DataError,
            "2 late errors have 1 event times; give one each",
        ),
        (
            lambda: LateMetric().merge(
                fitted(LateMetric(), np.zeros(9)), fitted(LateMetric(), np.ones(9))
            ),
            DataError,
            "the states to merge have different nominal levels, 0 and 1; calibrate once",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
