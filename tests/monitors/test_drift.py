"""Input drift: distances against their formulas, the asked rate of alarms, floors, merging."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal
from scipy.spatial.distance import jensenshannon

from stillfit.core.arrays import Ragged, concat, take
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.predictive import Mixture
from stillfit.core.state import from_arrays, to_arrays
from stillfit.core.values import Served, VersionId
from stillfit.monitors import DriftState, InputDrift
from stillfit.monitors.drift import distance

SERVED = Served(VersionId("0" * 64), Mixture.gaussian(np.zeros(1), np.ones(1)))


def table(n: int, rng: np.random.Generator, shift: float = 0.0) -> dict:
    return {
        "x": rng.standard_normal(n) + shift,
        "k": rng.poisson(3, n),
        "rare": rng.random(n) < 0.05,
    }


def tracks(n: int, rng: np.random.Generator, shift: float = 0.0, alike: float = 0.0) -> dict:
    """About 20 tracks per event of two columns; a share `alike` of the variance is the event's."""
    counts = rng.poisson(20, n)
    values = np.sqrt(1 - alike) * rng.standard_normal((counts.sum(), 2))
    values += np.sqrt(alike) * np.repeat(rng.standard_normal((n, 2)), counts, axis=0)
    return {"t": Ragged.from_counts((values + shift).astype(np.float32), counts)}


def fit(monitor: InputDrift, inputs: dict, rate: float = 5000.0, seed: int = 0) -> DriftState:
    return monitor.fit(inputs, SERVED, rate=rate, rng=np.random.default_rng(seed))


def step(monitor: InputDrift, state: DriftState, inputs: dict, time: float = 0.0):
    n = len(next(iter(inputs.values())))
    return monitor.step(state, time, np.arange(n), inputs, SERVED)


def feed(monitor: InputDrift, state: DriftState, inputs: dict, block: int):
    n, found = len(next(iter(inputs.values()))), []
    for i in range(0, n, block):
        stop = min(i + block, n)
        state, evidence = step(monitor, state, take(inputs, slice(i, stop)), float(stop))
        found.append(evidence)
    return state, found


counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4)


@given(counts, counts)
def test_distances_are_their_formulas(a, b):
    p, q = (np.array(h) + 0.5 for h in (a, b))
    p, q = p / p.sum(), q / q.sum()
    a, b = np.array(a), np.array(b)
    psi = np.sum((p - q) * np.log(p / q))
    hellinger = np.sqrt(max(0.0, 1 - np.sum(np.sqrt(p * q))))
    assert distance(a, b, "psi") == pytest.approx(psi, abs=1e-12)
    assert distance(a, b, "jensen-shannon") == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)
    assert distance(a, b, "hellinger") == pytest.approx(hellinger, abs=1e-7)
    for kind in ("psi", "jensen-shannon", "hellinger"):
        assert distance(a, b, kind) == pytest.approx(distance(b, a, kind), abs=1e-12)
        assert distance(a, a, kind) == pytest.approx(0, abs=1e-12)


def test_the_default_floors_are_one_and_the_same_change():
    rng = np.random.default_rng(1)
    q = rng.dirichlet(np.full(16, 20.0))
    p = q * (1 + 0.1 * rng.choice([-1, 1], 16))
    a, b = (np.round(1e9 * h / h.sum()).astype(np.int64) for h in (p, q))
    psi = distance(a, b, "psi")
    assert distance(a, b, "jensen-shannon") == pytest.approx(psi / 8, rel=0.01)
    assert distance(a, b, "hellinger") == pytest.approx(np.sqrt(psi / 8), rel=0.01)


@pytest.mark.parametrize("bins", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_the_counts_are_those_of_a_plain_histogram(bins, kind):
    rng = np.random.default_rng(2)
    monitor = InputDrift(bins=bins, window=80)
    nominal = (100 * rng.standard_normal(5000)).astype(kind)
    state = fit(monitor, {"x": nominal})
    new = (120 * rng.standard_normal(7)).astype(kind)
    state, _ = step(monitor, state, {"x": new})
    wanted = np.bincount(np.searchsorted(state.edges[0], new, side="right"), minlength=bins)
    assert np.array_equal(state.counts[0, 0], wanted)
    assert state.reference.sum() == 5000
    if bins < 64:
        assert state.reference[0] == pytest.approx(5000 / bins, rel=0.2)


@pytest.mark.parametrize("make", [table, tracks])
def test_the_false_alarm_rate_is_at_most_the_one_asked_for(make):
    # 2000 events a day, one false alarm a day, no floor; watched for ten times ten days.
    alarms = 0
    monitor = InputDrift(window=400, false_alarms=1.0, floor=0.0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        state = fit(monitor, make(1500, rng), rate=2000.0, seed=seed)
        _, found = feed(monitor, state, make(20_000, rng), 50)
        raised = np.array([False] + [e.raised for e in found])
        alarms += int(np.sum(raised[1:] & ~raised[:-1]))
    assert alarms / 100 < 1
    assert alarms > 0  # and not by never alarming


def test_the_threshold_holds_for_correlated_streams():
    alarms = 0
    monitor = InputDrift(window=400, false_alarms=1.0, floor=0.0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(23_000)
        x = signal.lfilter([1], [1, -0.5], noise)
        state = fit(monitor, {"x": x[:3000]}, rate=2000.0, seed=seed)
        _, found = feed(monitor, state, {"x": x[3000:]}, 50)
        raised = np.array([False] + [e.raised for e in found])
        alarms += int(np.sum(raised[1:] & ~raised[:-1]))
    assert alarms / 100 < 1.3  # the rate asked for and the error of 100 expected alarms


def test_the_items_of_one_event_are_not_taken_for_independent():
    monitor = InputDrift(window=400, floor=0.0)
    rng = np.random.default_rng(3)
    alike = fit(monitor, tracks(1000, rng, alike=0.5)).thresholds
    apart = fit(monitor, tracks(1000, rng, alike=0.0)).thresholds
    assert np.all(alike > 3 * apart)


def test_more_features_share_one_budget():
    rng = np.random.default_rng(4)
    one = {"a": rng.standard_normal(2000)}
    many = one | {f"f{i}": rng.standard_normal(2000) for i in range(15)}
    monitor = InputDrift(window=400, floor=0.0)
    assert fit(monitor, many).thresholds[0] > 1.1 * fit(monitor, one).thresholds[0]


@pytest.mark.parametrize("kind", ["psi", "jensen-shannon", "hellinger"])
def test_a_drift_is_found_in_its_feature_and_dated(kind):
    rng = np.random.default_rng(5)
    monitor = InputDrift(window=800, slices=8, distance=kind)
    state = fit(monitor, table(3000, rng))
    stream = concat([table(2000, rng), table(1500, rng, shift=0.5)])
    state, found = feed(monitor, state, stream, 100)
    before = [e for e in found if e.time <= 2000]
    assert not any(e.raised for e in before)
    first = next(e for e in found if e.raised)
    assert first.time <= 2700
    assert abs(first.since - 2000) <= 200  # two slices
    assert f"the {kind} distance of 'x' from nominal over 800 events is" in first.because
    assert "1 of 3 features drift" in first.because
    assert found[-1].value > found[-1].threshold
    # And it ends when the drift does.
    _, found = feed(monitor, state, table(2000, rng), 100)
    assert not found[-1].raised
    assert found[-1].since is None


def test_significant_but_tiny_drifts_stay_below_the_floor():
    rng = np.random.default_rng(6)
    inputs, new = tracks(4000, rng), tracks(8000, rng, shift=0.04)
    for floor, wanted in ((0.0, True), (None, False)):
        monitor = InputDrift(window=4000, floor=floor)
        _, evidence = step(monitor, fit(monitor, inputs), new)
        assert evidence.raised == wanted


def test_the_counts_do_not_depend_on_how_the_stream_is_cut():
    rng = np.random.default_rng(7)
    nominal, stream = tracks(500, rng), tracks(700, rng)
    for every in (1, 3, 7):
        monitor = InputDrift(window=240, slices=4, every=every)
        start = fit(monitor, nominal)
        states = [feed(monitor, start, stream, block)[0] for block in (1, 33, 700)]
        for other in states[1:]:
            for name, a, b in zip(start._fields, states[0], other, strict=True):
                if name not in ("starts", "since"):
                    assert np.array_equal(a, b), name


def test_every_kth_event_is_counted():
    rng = np.random.default_rng(8)
    monitor = InputDrift(window=800, slices=2, every=4)
    start = fit(monitor, table(500, rng))
    stream = table(103, rng)
    state, _ = feed(monitor, start, stream, 10)
    kept = {name: values[::4] for name, values in stream.items()}
    dense = InputDrift(window=200, slices=2)
    wanted, _ = step(dense, start, kept)
    assert np.array_equal(state.counts, wanted.counts)
    assert state.events.sum() == 26


def test_a_monotone_change_of_unit_changes_nothing():
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal(2000), rng.standard_normal(1000)
    monitor = InputDrift(window=800)
    plain, _ = step(monitor, fit(monitor, {"x": a}), {"x": b})
    bent, _ = step(monitor, fit(monitor, {"x": np.exp(a)}), {"x": np.exp(b)})
    assert np.array_equal(plain.counts, bent.counts)
    assert np.array_equal(plain.thresholds, bent.thresholds)


def test_whole_numbers_and_truth_values_get_a_bin_each():
    rng = np.random.default_rng(10)
    monitor = InputDrift(bins=8, window=80)
    state = fit(monitor, {"bit": rng.random(1000) < 0.3, "n": rng.integers(4, 7, 1000)})
    assert np.count_nonzero(state.reference[0]) == 2
    assert np.count_nonzero(state.reference[1]) == 3
    assert state.edges[1][:2].tolist() == [5, 6]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 99))
def test_merged_counts_are_those_of_the_union_while_it_fits_the_window(a, b, seed):
    rng = np.random.default_rng(seed)
    both = tracks(a + b, rng)
    start = MERGED
    left, _ = step(MONITOR, start, take(both, slice(0, a)), 5.0)
    right, _ = step(MONITOR, start, take(both, slice(a, a + b)), 3.0)
    union, _ = step(MONITOR, start, both)
    for merged in (MONITOR.merge(left, right), MONITOR.merge(right, left)):
        assert np.array_equal(merged.counts.sum(0), union.counts.sum(0))
        assert merged.events.sum() == union.events.sum()
        assert merged.passed == union.passed


MONITOR = InputDrift(window=800, slices=4)
MERGED = fit(MONITOR, tracks(200, np.random.default_rng(11)))


def test_a_merged_state_goes_on():
    rng = np.random.default_rng(12)
    left, _ = step(MONITOR, MERGED, tracks(750, rng, shift=1.0))
    right, _ = step(MONITOR, MERGED, tracks(750, rng, shift=1.0))
    merged = MONITOR.merge(left, right)
    assert merged.events.max() > 200  # more than a node's slice
    _, evidence = step(MONITOR, merged, tracks(120, rng, shift=1.0))
    assert evidence.raised


def test_the_memory_is_that_of_the_window_whatever_the_stream():
    rng = np.random.default_rng(13)
    monitor = InputDrift(window=80)
    start = fit(monitor, table(500, rng))

    def size(state: DriftState) -> int:
        return sum(a.nbytes for a in to_arrays(state).values())

    assert size(feed(monitor, start, table(5000, rng), 200)[0]) == size(start)


def test_states_become_arrays_and_come_back_and_stepping_is_pure():
    rng = np.random.default_rng(14)
    monitor = InputDrift(window=80)
    state, _ = step(monitor, fit(monitor, table(500, rng)), table(95, rng))
    back = from_arrays(monitor.init(), to_arrays(state))
    before = to_arrays(state)
    new = table(60, rng, shift=2.0)
    one, other = step(monitor, state, new)[1], step(monitor, back, new)[1]
    assert one == other
    for name, values in to_arrays(state).items():
        assert np.array_equal(values, before[name])
    assert all(math.isfinite(v) for v in dataclasses.asdict(one).values() if isinstance(v, float))


def test_the_calibration_is_reproducible_from_its_generator():
    inputs = table(500, np.random.default_rng(15))
    one, other = (fit(InputDrift(window=80), inputs, seed=3) for _ in range(2))
    assert np.array_equal(one.thresholds, other.thresholds)


def test_without_a_reference_or_a_full_window_nothing_is_raised():
    rng = np.random.default_rng(16)
    monitor = InputDrift(window=80)
    _, evidence = step(monitor, monitor.init(), table(500, rng))
    assert not evidence.raised
    assert evidence.because == "no nominal inputs are known yet, so nothing is compared"
    _, evidence = step(monitor, fit(monitor, table(500, rng)), table(79, rng, shift=9.0))
    assert not evidence.raised
    assert evidence.because == "the window of 80 events is not full yet"


def test_columns_are_chosen_by_name_and_place():
    rng = np.random.default_rng(17)
    inputs = table(300, rng) | tracks(300, rng) | {"name": np.full(300, "a")}
    monitor = InputDrift(columns=("t:1", "k"), window=80)
    assert fit(monitor, inputs).reference.shape == (2, 16)
    assert fit(InputDrift(window=80), inputs).reference.shape == (5, 16)  # x, k, rare, t:0, t:1
    assert fit(InputDrift(columns=("t",), window=80), inputs).reference.shape == (2, 16)


def _changed() -> None:
    rng = np.random.default_rng(18)
    state = fit(InputDrift(window=80), table(300, rng))
    step(InputDrift(window=80), state, {"x": np.zeros(5)})


def _nan(where: str) -> None:
    rng = np.random.default_rng(19)
    monitor, good, bad = InputDrift(window=80), table(300, rng), table(300, rng)
    bad["x"][7] = np.nan
    if where == "fit":
        fit(monitor, bad)
    step(monitor, fit(monitor, good), bad)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: InputDrift(distance="kl"),
            ConfigError,
            "distance 'kl' is none of hellinger, jensen-shannon, psi",
        ),
        (
            lambda: InputDrift(bins=10),
            ConfigError,
            "bins must be 2, 4, 8, 16, 32 or 64, got 10",
        ),
        (
            lambda: InputDrift(every=0),
            ConfigError,
            "slices must be 2 or more and every 1 or more, got 8 and 0",
        ),
        (
            lambda: InputDrift(window=50, every=10),
            ConfigError,
            "a window of 50 events cannot be cut into 8 slices of every 10th event",
        ),
        (
            lambda: InputDrift(guarantee=0.0),
            ConfigError,
            "guarantee must lie between 0 and 1, got 0.0",
        ),
        (
            lambda: InputDrift(floor=-0.1),
            ConfigError,
            "floor must not be negative, got -0.1",
        ),
        (
            lambda: fit(InputDrift(window=80), table(50, np.random.default_rng(0))),
            DataError,
            "50 nominal events cannot calibrate a drift monitor of 8 slices: give at least 80",
        ),
        (
            lambda: fit(InputDrift(columns=("y",)), {"x": np.zeros(9)}),
            DataError,
            "the inputs have no column 'y'; they have x",
        ),
        (
            lambda: fit(InputDrift(columns=("x:2",)), {"x": np.zeros((9, 2))}),
            ShapeError,
            "column 'x' has 2 columns, so there is no 'x:2'",
        ),
        (
            lambda: fit(InputDrift(columns=("x:0",)), {"x": np.zeros(9)}),
            ShapeError,
            "column 'x' has one dimension, so there is no 'x:0'",
        ),
        (
            lambda: fit(InputDrift(columns=("s",)), {"s": np.full(9, "a")}),
            DataError,
            "column 's' of <U1 (9,) cannot be binned; name numeric columns of one or two dim",
        ),
        (
            lambda: fit(InputDrift(), {"s": np.full(9, "a")}),
            DataError,
            "no numeric input column to watch; the inputs are s",
        ),
        (
            lambda: fit(InputDrift(), {"t": Ragged.from_counts(np.zeros(0), np.zeros(99, int))}),
            DataError,
            "column 't' holds no nominal item",
        ),
        (lambda: _nan("fit"), DataError, "column 'x' holds 1 NaN or infinite items; set such ev"),
        (lambda: _nan("step"), DataError, "column 'x' holds 1 NaN or infinite items; set such ev"),
        (
            _changed,
            ShapeError,
            "the reference has 3 features but the stream has 1; was the feature list changed "
            "since it was calibrated?",
        ),
        (
            lambda: MONITOR.step(
                MERGED, 0.0, np.arange(3), tracks(4, np.random.default_rng(0)), SERVED
            ),
            ShapeError,
            "3 ids came with inputs of another number of events",
        ),
        (
            lambda: MONITOR.merge(MERGED, fit(MONITOR, tracks(200, np.random.default_rng(1)))),
            DataError,
            "the states to merge have different references; calibrate once and send the fitted",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
