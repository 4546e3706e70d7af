"""Errors of the mean of correlated series: against closed forms of AR(1) and by their coverage."""

import numpy as np
import pytest
from scipy import signal, special

from stillfit.core.serial import correlation_time, mean_error


def ar1(n: int, phi: float, rng: np.random.Generator, runs: int = 1) -> np.ndarray:
    """Unit-variance AR(1) series with mean 0, (runs, n); tau = (1 + phi) / (1 - phi)."""
    noise = rng.standard_normal((runs, n)) * np.sqrt(1 - phi**2)
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return signal.lfilter([1], [1, -phi], noise, axis=1)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6, 0.9])
def test_the_correlation_time_of_ar1_is_the_closed_form(phi):
    found = correlation_time(ar1(200_000, phi, np.random.default_rng(1))[0])
    assert found == pytest.approx((1 + phi) / (1 - phi), rel=0.1)


def test_correlation_times_do_not_depend_on_unit_and_origin_and_are_at_least_one():
    x = ar1(3000, 0.5, np.random.default_rng(2))[0]
    assert correlation_time(5 - 3 * x) == pytest.approx(correlation_time(x))
    assert correlation_time(np.tile([1.0, -1.0], 50)) == 1
    assert correlation_time(np.ones(50)) == 1
    assert correlation_time(np.zeros(0)) == 1
    assert correlation_time(np.array([1.0, 2.0])) == 1


@pytest.mark.parametrize(("n", "phi"), [(60, 0.0), (400, 0.0), (400, 0.5), (2000, 0.8)])
def test_student_bounds_from_batch_means_hold_as_often_as_they_say(n, phi):
    runs = 1500
    series = ar1(n, phi, np.random.default_rng(3), runs)
    outside = 0
    for x in series:
        m = mean_error(x)
        outside += m.value - special.stdtrit(m.dof, 0.95) * m.error > 0
    # Binomial error of 1500 runs at 5 %: .0056. Correlated series are allowed a small excess.
    assert outside / runs < 0.05 + 3 * 0.0056 + (0.015 if phi else 0)
    assert outside / runs > 0.02


def test_the_error_of_an_independent_series_is_the_textbook_one():
    rng = np.random.default_rng(4)
    found = [mean_error(rng.normal(3, 2, 2500)).error for _ in range(200)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(2 / 50, rel=0.03)


def test_ignoring_correlation_would_be_wrong_by_the_root_of_the_correlation_time():
    x = ar1(100_000, 0.8, np.random.default_rng(5))[0]
    naive = x.std() / np.sqrt(len(x))
    assert mean_error(x).error / naive == pytest.approx(3, rel=0.15)


def test_small_and_constant_series():
    assert mean_error(np.array([2.0])).error == np.inf
    assert mean_error(np.zeros(0)).n == 0
    two = mean_error(np.array([1.0, 3.0]))
    assert (two.value, two.error, two.dof) == (2.0, pytest.approx(1.0), 1)
    assert mean_error(np.full(100, 0.7)).error == pytest.approx(0, abs=1e-15)
    assert two.spread == pytest.approx(np.sqrt(2))
