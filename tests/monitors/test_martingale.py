"""The conformal martingale: fair while nothing changes, rich when something does."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import signal, stats

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.state import from_arrays, to_arrays
from stillfit.monitors import ConformalMartingale, MartingaleState, log_martingale
from stillfit.monitors.martingale import _ranks, _uniform


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    return signal.lfilter([1], [1, -phi], rng.standard_normal(n + 100) * np.sqrt(1 - phi**2))[100:]


def fitted(monitor, nominal: np.ndarray, rate: float = 5000.0, seed: int = 0) -> MartingaleState:
    return monitor.fit(np.asarray(nominal, float), rate=rate, rng=np.random.default_rng(seed))


def feed(monitor, state, errors: np.ndarray, block: int = 50, at: float = 0.0):
    found = []
    for i in range(0, len(errors), block):
        part = np.asarray(errors[i : i + block], float)
        seen = at + i + np.arange(len(part), dtype=float)
        state, evidence = monitor.step(state, float(seen[-1]), seen, part)
        found.append(evidence)
    return state, found


def same(a: MartingaleState, b: MartingaleState) -> bool:
    left, right = to_arrays(a), to_arrays(b)
    return all(np.array_equal(left[name], right[name]) for name in left if name != "bag") and (
        np.array_equal(a.bag[: a.size], b.bag[: b.size])
    )


def test_the_simple_jumper_is_the_papers_algorithm():
    # arXiv:2102.10439, algorithm 1, written as it stands there.
    p, jump = np.random.default_rng(1).random(200), 0.01
    capital = dict.fromkeys((-1, 0, 1), 1 / 3)
    path = []
    for value in p:
        total = sum(capital.values())
        for e in capital:
            capital[e] = (1 - jump) * capital[e] + jump / 3 * total
            capital[e] *= 1 + e * (value - 0.5)
        path.append(math.log(sum(capital.values())))
    assert log_martingale(p, jump=jump) == pytest.approx(path, abs=1e-12)


@pytest.mark.parametrize("side", ["up", "both"])
@pytest.mark.parametrize("bet", ["linear", "power"])
def test_every_bet_is_fair(bet, side):
    # The mean wealth after one bet on uniform p is 1: p = v^5 / 2 takes the poles at 0 and 1 away.
    v = (np.arange(4000) + 0.5) / 4000
    p = np.concatenate([v**5 / 2, 1 - v**5 / 2])
    one = [math.exp(log_martingale(p[k : k + 1], bet=bet, side=side)[0]) for k in range(len(p))]
    assert np.mean(np.array(one) * np.tile(5 * v**4, 2)) == pytest.approx(1, abs=0.005)


def test_with_exchangeable_errors_the_wealth_reaches_20_in_one_run_of_20_at_most():
    # Ville: P(sup S >= 1 / alpha) <= alpha, for errors of any distribution; here with many ties.
    monitor, alarms, runs = ConformalMartingale(alpha=0.05), 0, 400
    for seed in range(runs):
        errors = np.random.default_rng(seed).poisson(1.0, 1300)
        state = fitted(monitor, errors[:300], seed=seed)
        alarms += any(e.raised for e in feed(monitor, state, errors[300:], 1000)[1])
    assert alarms / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert alarms > 0


def test_the_wealth_passes_1e40_when_the_noise_triples_and_stays_near_1_before():
    for bet in ("linear", "power"):
        for seed in range(3):
            rng = np.random.default_rng(seed)
            nominal = np.abs(rng.standard_normal(2000))
            before, after = np.abs(rng.standard_normal(1000)), 3 * np.abs(rng.standard_normal(1000))
            alarm, watcher = (ConformalMartingale(alpha=a, bet=bet) for a in (0.01, 1e-99))
            state = fitted(alarm, nominal)
            assert state.threshold == pytest.approx(math.log(100))
            state, found = feed(alarm, state, before)
            assert not any(e.raised for e in found)
            _, found = feed(alarm, state, after, at=1000.0)
            assert next(e for e in found if e.raised).time < 1100
            # One that is not stopped by its alarm goes on to win.
            state, found = feed(watcher, fitted(watcher, nominal), before)
            assert found[-1].value < 1
            state, found = feed(watcher, state, after, at=1000.0)
            assert found[-1].value > 40


def test_the_p_values_are_uniform_and_independent_also_with_ties():
    rng = np.random.default_rng(2)
    for draw in (rng.integers(0, 4, 6000), np.arange(6000)[rng.permutation(6000)]):
        p = _ranks(draw, 1000, int(draw.max()) + 1, rng.random(5000))
        assert stats.kstest(p, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.04


def test_the_p_value_is_the_rank_among_nominal_and_earlier_errors():
    # Brute force, one step at a time, through the wealth that each p-value makes.
    rng = np.random.default_rng(3)
    nominal, errors = rng.integers(0, 5, 50), rng.integers(0, 5, 60)
    monitor = ConformalMartingale(alpha=1e-9)
    state = fitted(monitor, nominal)
    bag, p = list(nominal), []
    for k, error in enumerate(errors):
        larger, equal = np.sum(np.array(bag) > error), np.sum(np.array(bag) == error)
        p.append((larger + _uniform(state.seed, k) * (equal + 1)) / (len(bag) + 1))
        bag.append(error)
    end, _ = feed(monitor, state, errors, 7)
    want = log_martingale(np.array(p), bet="power", side="up")[-1]
    assert end.log_wealth == pytest.approx(want)
    assert np.array_equal(end.bag[: end.size], np.sort(errors))


def test_the_tie_breaking_numbers_are_uniform():
    u = np.array([_uniform(12345, k) for k in range(20_000)])
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.03
    assert u.min() > 0
    assert u.max() < 1


@pytest.mark.parametrize("bet", ["linear", "power"])
@pytest.mark.parametrize("kind", ["size", "rare"])
def test_the_average_run_length_is_the_one_asked_for(bet, kind):
    # 5000 labelled events a day, one false alarm a day: 8 calibrations, each watched for 20 days.
    monitor, counts = ConformalMartingale(false_alarms=1.0, bet=bet), []
    for seed in range(8):
        errors = np.abs(np.random.default_rng(seed).standard_normal(3000 + 100_000))
        if kind == "rare":
            errors = (errors > 2).astype(float)  # 4.6 % of events fail
        state = fitted(monitor, errors[:3000], 5000.0, seed)
        _, found = feed(monitor, state, errors[3000:])
        raised = np.array([False] + [e.raised for e in found])
        counts.append(np.sum(raised[1:] & ~raised[:-1]))
    # 160 are allowed; the spread between calibrations gives the error of their mean.
    mean, error = np.mean(counts) / 20, np.std(counts, ddof=1) / 20 / math.sqrt(8)
    assert mean - 2.6 * error < 1.0
    assert mean > 0.6


def test_with_correlated_errors_the_threshold_is_raised_and_the_rate_is_nearly_kept():
    monitor, rates, thresholds = ConformalMartingale(false_alarms=1.0), [], []
    for seed in range(8):
        errors = np.abs(ar1(3000 + 50_000, 0.6, np.random.default_rng(seed)))
        state = fitted(monitor, errors[:3000], 5000.0, seed)
        thresholds.append(state.threshold)
        _, found = feed(monitor, state, errors[3000:])
        raised = np.array([False] + [e.raised for e in found])
        rates.append(np.sum(raised[1:] & ~raised[:-1]) / 10)
    independent = fitted(monitor, np.random.default_rng(9).standard_normal(3000)).threshold
    assert min(thresholds) > independent
    assert np.mean(rates) < 2


def test_the_calibrated_threshold_is_below_the_bound_of_the_theory():
    nominal = np.random.default_rng(4).standard_normal(2000)
    for alarms in (0.001, 0.1, 10.0):
        threshold = fitted(ConformalMartingale(false_alarms=alarms), nominal).threshold
        assert 0 < threshold <= math.log(5000.0 / alarms)


def test_the_findings_depend_on_the_order_of_the_errors_alone():
    rng = np.random.default_rng(5)
    nominal, errors = rng.exponential(1, 1000), rng.exponential(1.5, 600)
    monitor = ConformalMartingale()
    _, one = feed(monitor, fitted(monitor, nominal), errors)
    _, other = feed(monitor, fitted(monitor, np.exp(nominal)), np.exp(errors))
    assert [e.value for e in one] == [e.value for e in other]


def test_smaller_errors_are_bet_on_from_both_sides_only():
    rng = np.random.default_rng(6)
    nominal, better = rng.exponential(1, 2000), rng.exponential(0.5, 1000)
    for side, wanted in (("up", False), ("both", True)):
        for bet in ("linear", "power"):
            monitor = ConformalMartingale(side=side, bet=bet)
            _, found = feed(monitor, fitted(monitor, nominal), better)
            assert any(e.raised for e in found) == wanted


def test_an_alarm_ends_soon_after_its_cause_and_the_martingale_starts_anew():
    rng = np.random.default_rng(7)
    monitor = ConformalMartingale()
    state = fitted(monitor, rng.exponential(1, 3000))
    state, found = feed(monitor, state, rng.exponential(1, 500))
    state, found = feed(monitor, state, rng.exponential(2, 20_000), at=500.0)
    assert found[-1].raised
    assert found[-1].value <= 1.5 * found[-1].threshold + 1e-9
    assert state.size == 0  # what is wrong is not learned into the ranks
    state, found = feed(monitor, state, rng.exponential(1, 2000), at=20_500.0)
    assert not found[-1].raised
    assert found[-1].since is None
    _, found = feed(monitor, state, rng.exponential(2, 500), at=22_500.0)
    assert found[-1].raised  # and sees the next change


def test_the_change_is_dated_by_the_begin_of_the_excursion():
    monitor, late = ConformalMartingale(), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state = fitted(monitor, rng.exponential(1, 3000), seed=seed)
        state, _ = feed(monitor, state, rng.exponential(1, 1000))
        _, found = feed(monitor, state, rng.exponential(2, 1000), 10, at=1000.0)
        late.append(abs(next(e for e in found if e.raised).since - 1000))
    assert np.median(late) < 60


def test_an_epoch_bounds_the_memory_and_starts_anew():
    rng = np.random.default_rng(8)
    monitor = ConformalMartingale(epoch=100, alpha=1e-9)
    state = fitted(monitor, rng.exponential(1, 500))
    for n, size in ((100, 100), (1, 0), (50, 50)):
        state, _ = feed(monitor, state, rng.exponential(1, n), n)
        assert state.size == size
        assert len(state.bag) == 100


def test_constant_errors_are_ties_and_a_larger_one_counts():
    monitor = ConformalMartingale()
    state = fitted(monitor, np.zeros(1000))
    _, found = feed(monitor, state, np.zeros(2000))
    assert not any(e.raised for e in found)
    _, found = feed(monitor, state, np.ones(100))
    assert found[-1].raised


def test_the_state_does_not_depend_on_how_the_stream_is_cut():
    rng = np.random.default_rng(9)
    monitor = ConformalMartingale(epoch=300)
    start = fitted(monitor, rng.exponential(1, 500))
    errors = np.concatenate([rng.exponential(1, 400), rng.exponential(3, 200), np.zeros(300)])
    assert same(feed(monitor, start, errors, 1)[0], feed(monitor, start, errors, 333)[0])


def test_an_unfitted_martingale_is_silent_and_states_the_age():
    monitor = ConformalMartingale()
    state, found = feed(monitor, monitor.init(), np.full(1000, 9.0))
    assert not any(e.raised for e in found)
    assert "no nominal errors are known yet" in found[-1].because
    assert same(state, monitor.init())
    state = fitted(monitor, np.random.default_rng(0).random(100))
    _, evidence = monitor.step(state, 500.0, np.array([100.0, 200.0]), np.zeros(2))
    assert evidence.age == 300.0
    assert monitor.step(state, 500.0, np.zeros(0), np.zeros(0))[1].age == 0.0


def test_stepping_is_pure_reproducible_storable_and_finite():
    rng = np.random.default_rng(10)
    monitor, nominal = ConformalMartingale(), rng.exponential(1, 1000)
    state = fitted(monitor, nominal)
    assert same(state, fitted(monitor, nominal))
    before = {name: part.copy() for name, part in to_arrays(state).items()}
    errors = rng.exponential(5, 1000)
    first, found = feed(monitor, state, errors)
    assert same(first, feed(monitor, state, errors)[0])
    assert all(np.array_equal(before[name], part) for name, part in to_arrays(state).items())
    assert same(from_arrays(monitor.init(), to_arrays(first)), first)
    for evidence in found:
        figures = dataclasses.asdict(evidence)
        assert all(math.isfinite(v) for v in figures.values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: ConformalMartingale(bet="all"),
            ConfigError,
            "bet must be 'linear' or 'power' and side 'up' or 'both', got 'all' and 'up'",
        ),
        (
            lambda: log_martingale(np.ones(1), bet="x"),
            ConfigError,
            "bet must be 'linear' or 'power' and side 'up' or 'both', got 'x' and 'both'",
        ),
        (lambda: ConformalMartingale(jump=1.0), ConfigError, "jump is a share of the wealth"),
        (
            lambda: ConformalMartingale(alpha=100.0),
            ConfigError,
            "alpha is the probability of a false alarm in (0, 1), got 100.0; 0.01 raises an alarm "
            "at a wealth of 100",
        ),
        (lambda: ConformalMartingale(epoch=9), ConfigError, "an epoch of 9 events is too short"),
        (
            lambda: fitted(ConformalMartingale(), np.ones(19)),
            DataError,
            "19 nominal errors give no ranks worth betting on: at least 20 are needed",
        ),
        (
            lambda: fitted(ConformalMartingale(), np.full(99, np.nan)),
            DataError,
            "the nominal error holds nan at event 0 (99 of 99)",
        ),
        (
            lambda: feed(ConformalMartingale(), ConformalMartingale().init(), np.array([np.inf])),
            DataError,
            "the late error holds inf at event 0 (1 of 1)",
        ),
        (
            lambda: ConformalMartingale().step(
                ConformalMartingale().init(), 0.0, np.zeros(2), np.zeros(1)
            ),
            DataError,
            "1 late errors have 2 event times; give one each",
        ),
        (
            lambda: log_martingale(np.array([0.0, 0.5])),
            DataError,
            "p-values must lie in (0, 1], got 0.0 to 0.5",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
