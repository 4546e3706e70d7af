"""CUSUM monitors: the textbook's recursion, run length and delay; the asked rate of alarms."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize, signal

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Categorical, Mixture
from stillfit.core.state import from_arrays, to_arrays
from stillfit.core.values import Served, VersionId
from stillfit.monitors import CusumState, ErrorCusum, ScoreCusum

V = VersionId("0" * 64)


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    return signal.lfilter([1], [1, -phi], rng.standard_normal(n + 100) * np.sqrt(1 - phi**2))[100:]


def fitted(monitor: ErrorCusum, nominal: np.ndarray, rate: float, seed: int = 0) -> CusumState:
    return monitor.fit(nominal, rate=rate, rng=np.random.default_rng(seed))


def feed(monitor: ErrorCusum, state: CusumState, errors: np.ndarray, block: int = 100, at=0.0):
    """All evidence of a stream of one event per second."""
    found = []
    for i in range(0, len(errors), block):
        part = errors[i : i + block]
        seen = at + i + np.arange(len(part), dtype=float)
        state, evidence = monitor.step(state, float(seen[-1]), seen, part)
        found.append(evidence)
    return state, found


def episodes(monitor: ErrorCusum, state: CusumState, errors: np.ndarray) -> int:
    _, found = feed(monitor, state, errors, 50)
    raised = np.array([False] + [e.raised for e in found])
    return int(np.sum(raised[1:] & ~raised[:-1]))


def test_the_sum_is_pages_recursion():
    rng = np.random.default_rng(1)
    monitor = ErrorCusum(shift=0.5, clip=3.0)
    state = fitted(monitor, rng.exponential(1, 3000), 1000.0)
    errors = rng.exponential(1.3, 500)
    z = np.clip((errors - state.mean) / state.std, -3, 3) - state.centre
    value, values = 0.0, []
    for step in z:
        value = min(max(0.0, value + step - 0.25), 2 * state.threshold)
        values.append(value)
    new, found = feed(monitor, state, errors, 500)
    assert new.value == pytest.approx(value)
    assert found[0].value == pytest.approx(max(values))


@pytest.mark.parametrize(("shift", "arl"), [(0.5, 2000.0), (0.5, 1e6), (1.0, 1e4)])
def test_the_threshold_for_gaussian_scores_is_siegmunds(shift, arl):
    # Siegmund 1985: ARL = (exp(2 k b) - 2 k b - 1) / (2 k^2) with b = h + 1.166, k = shift / 2.
    k = shift / 2
    h = optimize.brentq(
        lambda h: (math.exp(2 * k * (h + 1.166)) - 2 * k * (h + 1.166) - 1) / (2 * k * k) - arl,
        0,
        200,
    )
    nominal = np.random.default_rng(2).standard_normal(100_000)
    monitor = ErrorCusum(shift=shift, false_alarms=1.0, guarantee=0.5)
    assert fitted(monitor, nominal, arl).threshold == pytest.approx(h, rel=0.04)


@pytest.mark.parametrize(("phi", "kind"), [(0.0, "normal"), (0.0, "rare"), (0.4, "normal")])
def test_the_false_alarm_rate_is_at_most_the_one_asked_for(phi, kind):
    # 5000 events a day, one false alarm a day. Fifteen calibrations, each watched for 20 days.
    monitor, counts = ErrorCusum(false_alarms=1.0), []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        both = ar1(3000 + 100_000, phi, rng)
        if kind == "rare":
            both = (both > 1.75).astype(float)  # 4 % of events fail
        state = fitted(monitor, both[:3000], 5000.0, seed)
        counts.append(episodes(monitor, state, both[3000:]))
    rates = np.array(counts) / 20
    assert rates.mean() < 1
    assert np.mean(rates > 1) <= 0.3  # the guarantee of 95 %, and its known lack of strength
    assert rates.mean() > 0.05  # and not by never alarming


def test_more_false_alarms_allowed_means_a_lower_threshold():
    nominal = np.random.default_rng(3).standard_normal(3000)
    thresholds = [
        fitted(ErrorCusum(false_alarms=alarms), nominal, 5000.0).threshold
        for alarms in (0.001, 0.1, 10.0)
    ]
    assert thresholds[0] > thresholds[1] > thresholds[2]


def test_less_guarantee_means_a_lower_threshold():
    nominal = np.random.default_rng(4).standard_normal(3000)
    thresholds = [
        fitted(ErrorCusum(guarantee=guarantee), nominal, 5000.0).threshold
        for guarantee in (0.95, 0.5)
    ]
    assert thresholds[0] > thresholds[1]


@pytest.mark.parametrize("change", [0.5, 1.0])
def test_a_change_is_found_after_the_textbook_delay_and_dated(change):
    rng, late, dates = np.random.default_rng(5), [], []
    monitor = ErrorCusum(shift=0.5)
    state = fitted(monitor, rng.standard_normal(5000), 5000.0)
    for _ in range(40):
        nominal, _ = feed(monitor, state, rng.standard_normal(1000))
        _, found = feed(monitor, nominal, change + rng.standard_normal(300), 1, 1000.0)
        first = next(e for e in found if e.raised)
        late.append(first.time - 1000)
        dates.append(first.since)
    # The sum gains change - shift / 2 a step, from 0.
    assert np.mean(late) == pytest.approx(state.threshold / (change - 0.25), rel=0.15)
    assert np.median(np.abs(np.array(dates) - 1000)) < 30


def test_one_outlier_never_alarms():
    rng = np.random.default_rng(6)
    monitor = ErrorCusum()
    state = fitted(monitor, rng.standard_normal(3000), 5000.0)
    _, found = feed(monitor, state, np.array([1e30]))
    assert not found[0].raised
    assert found[0].value <= 5.2


def test_an_alarm_ends_soon_after_its_cause():
    rng = np.random.default_rng(7)
    monitor = ErrorCusum()
    state = fitted(monitor, rng.standard_normal(5000), 5000.0)
    state, found = feed(monitor, state, 1 + rng.standard_normal(50_000))
    assert found[-1].raised
    assert state.value <= 2 * state.threshold
    state, found = feed(monitor, state, rng.standard_normal(3000))
    assert not found[-1].raised
    assert found[-1].since is None


def test_the_state_does_not_depend_on_how_the_stream_is_cut():
    rng = np.random.default_rng(8)
    monitor = ErrorCusum()
    start = fitted(monitor, rng.standard_normal(2000), 5000.0)
    errors = 0.3 + rng.standard_normal(1000)
    assert feed(monitor, start, errors, 1)[0] == feed(monitor, start, errors, 333)[0]


def test_the_findings_do_not_depend_on_unit_and_origin_of_the_error():
    rng = np.random.default_rng(9)
    nominal, errors = rng.exponential(1, 2000), rng.exponential(1.2, 1000)
    monitor = ErrorCusum()
    _, one = feed(monitor, fitted(monitor, nominal, 5000.0), errors)
    _, other = feed(monitor, fitted(monitor, 7 + 1000 * nominal, 5000.0), 7 + 1000 * errors)
    assert [e.raised for e in one] == [e.raised for e in other]
    assert [e.value for e in one] == pytest.approx([e.value for e in other])


def test_the_calibration_is_reproducible_from_its_generator():
    nominal = np.random.default_rng(10).standard_normal(2000)
    assert fitted(ErrorCusum(), nominal, 5e3, 3) == fitted(ErrorCusum(), nominal, 5e3, 3)


def test_without_a_reference_nothing_is_ever_raised():
    state, found = feed(ErrorCusum(), ErrorCusum().init(), np.full(1000, 9.0))
    assert not any(e.raised for e in found)
    assert "no nominal level of the late error is known yet" in found[-1].because
    assert state == ErrorCusum().init()


def test_the_age_of_the_labels_is_stated():
    rng = np.random.default_rng(11)
    monitor = ErrorCusum()
    state = fitted(monitor, rng.standard_normal(2000), 5000.0)
    _, evidence = monitor.step(state, 500.0, np.array([100.0, 200.0]), np.zeros(2))
    assert evidence.age == 300.0


def served(std: np.ndarray, **outputs) -> Served:
    return Served(V, Mixture.gaussian(np.zeros(len(std)), std**2), outputs)


def test_the_uncertainty_is_watched_without_labels():
    rng = np.random.default_rng(12)
    monitor = ScoreCusum()
    state = monitor.fit({}, served(rng.gamma(9, 1, 3000)), rate=5000.0, rng=rng)
    ids = np.arange(500)
    for time, scale in enumerate([1.0, 1.0, 1.5, 1.5]):
        state, evidence = monitor.step(
            state, float(time), ids, {}, served(scale * rng.gamma(9, 1, 500))
        )
        assert evidence.raised == (scale > 1)
        assert evidence.age is None
    assert evidence.since in (1.0, 2.0)  # the excursion may have begun by chance before
    assert "the sum of the uncertainty beyond nominal reached" in evidence.because


def test_a_named_output_is_watched_in_the_direction_that_means_trouble():
    rng = np.random.default_rng(13)
    monitor = ScoreCusum(output="score", side="down")
    nominal = served(np.ones(3000), score=rng.normal(10, 1, 3000))
    state = monitor.fit({}, nominal, rate=5000.0, rng=rng)
    ids = np.arange(500)
    _, up = monitor.step(state, 1.0, ids, {}, served(np.ones(500), score=rng.normal(12, 1, 500)))
    _, down = monitor.step(state, 1.0, ids, {}, served(np.ones(500), score=rng.normal(9, 1, 500)))
    assert not up.raised
    assert down.raised


def test_a_ragged_output_counts_by_its_mean_in_the_event():
    monitor = ScoreCusum(output="w")
    tracks = Ragged.from_counts(np.array([1.0, 3.0, 5.0]), np.array([2, 0, 1]))
    assert monitor._score(served(np.ones(3), w=tracks)).tolist() == [2.0, 0.0, 5.0]


def test_classes_are_watched_by_their_uncertainty_score():
    p = Categorical(np.array([[[0.7, 0.3]], [[0.5, 0.5]]]))
    assert ScoreCusum()._score(Served(V, p)) == pytest.approx([0.3, 0.5])


def test_states_become_arrays_and_come_back():
    state = fitted(ErrorCusum(), np.random.default_rng(14).standard_normal(2000), 5000.0)
    state = state._replace(raised=True, n=7, value=3.5, start=2.5)
    assert from_arrays(ErrorCusum().init(), to_arrays(state)) == state


def test_stepping_is_pure_and_all_figures_are_finite():
    rng = np.random.default_rng(15)
    monitor = ErrorCusum()
    for state in (monitor.init(), fitted(monitor, rng.standard_normal(2000), 5000.0)):
        errors = 5 + rng.standard_normal(100)
        before = errors.copy()
        first = monitor.step(state, 99.0, np.arange(100.0), errors)
        assert first == monitor.step(state, 99.0, np.arange(100.0), errors)
        assert np.array_equal(errors, before)
        figures = dataclasses.asdict(first[1])
        assert all(math.isfinite(v) for v in figures.values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: ErrorCusum(shift=0.0), ConfigError, "shift must be positive (standard dev"),
        (lambda: ErrorCusum(clip=0.1), ConfigError, "clip must exceed the shift of 0.25, got 0.1"),
        (lambda: ErrorCusum(guarantee=1.0), ConfigError, "guarantee must lie between 0 and 1"),
        (lambda: ScoreCusum(side="left"), ConfigError, "side must be 'up' or 'down', got 'left'"),
        (
            lambda: fitted(ErrorCusum(), np.ones(1000), 10.0),
            DataError,
            "the nominal score is 1 for all 1000 events: nothing to compare with; is the model's "
            "uncertainty constant?",
        ),
        (
            lambda: fitted(ErrorCusum(), np.random.default_rng(0).normal(size=99), 10.0),
            DataError,
            "99 nominal events cannot calibrate a shift of 0.25 standard deviations: at least 308 "
            "are needed, or a larger shift",
        ),
        (
            lambda: fitted(ErrorCusum(), np.array([np.nan] * 1000), 10.0),
            DataError,
            "the nominal error holds nan at event 0 (1000 of 1000)",
        ),
        (
            lambda: ErrorCusum().step(CusumState(), 0.0, np.zeros(1), np.array([np.nan])),
            DataError,
            "the late error holds nan at event 0 (1 of 1)",
        ),
        (
            lambda: ErrorCusum().step(CusumState(), 0.0, np.zeros(2), np.zeros(1)),
            DataError,
            "1 late errors have 2 event times; give one each",
        ),
        (
            lambda: ScoreCusum(output="y")._score(served(np.ones(1), x=np.ones(1))),
            DataError,
            "the serving model has no output 'y'; it has x",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
