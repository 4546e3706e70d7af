"""Thresholds from run lengths: closed forms of the tail, and what resampling must keep."""

import math

import numpy as np
import pytest
from scipy import signal

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.serial import correlation_time
from stillfit.monitors.calibrate import (
    block_length,
    finite,
    guaranteed,
    paired,
    resample,
    run_length,
    sample_world,
    tail_threshold,
)


def test_the_run_length_is_the_events_between_two_false_alarms():
    assert run_length(0.1, 5000.0) == 50_000


@pytest.mark.parametrize("arl", [1e4, 1e6, 1e9])
def test_the_threshold_of_exponential_peaks_is_the_closed_form(arl):
    # One peak in 10 values, exponential of mean 2: exceeded once per arl at 2 ln(arl / 10).
    rng = np.random.default_rng(1)
    found = [tail_threshold(rng.exponential(2, 20_000), 2e5, arl) for _ in range(30)]
    assert np.mean(found) == pytest.approx(2 * math.log(arl / 10), rel=0.03)


def test_where_there_are_peaks_enough_the_threshold_is_their_quantile():
    peaks = np.arange(10_000.0)
    # 100 of 10 000 peaks may exceed it.
    assert tail_threshold(peaks, 1e5, 1e3) == 9899


def test_a_statistic_that_does_not_return_has_no_threshold():
    assert tail_threshold(np.arange(19.0), 1e5, 1e3) == math.inf


def test_the_guaranteed_limit_is_exceeded_by_the_rest_only():
    assert guaranteed([3.0, 1.0, 2.0], 0.5) == 2.0
    assert guaranteed([float(i) for i in range(1, 100)], 0.95) == 95.0
    assert guaranteed([1.0, math.inf], 0.99) == math.inf


def test_resampled_values_come_in_runs_of_the_mean_block_from_anywhere():
    rows = resample(100, 100_000, 8.0, np.random.default_rng(2))
    jumps = np.mean(np.diff(rows) % 100 != 1)
    # A restart lands on the next value by chance once in a hundred.
    assert jumps == pytest.approx(0.99 / 8, rel=0.03)
    assert np.bincount(rows, minlength=100) == pytest.approx(1000, rel=0.25)
    assert rows.min() == 0
    assert rows.max() == 99


def test_a_world_is_drawn_from_its_own_blocks_only():
    rng = np.random.default_rng(3)
    world = sample_world(1000, 10.0, rng)
    assert len(world.starts) == 100
    members = {
        int((start + i) % 1000)
        for start, length in zip(world.starts, world.lengths, strict=True)
        for i in range(length)
    }
    rows = world.draw(50_000, rng)
    assert len(rows) == 50_000
    assert set(rows.tolist()) == members


def test_resampling_keeps_the_serial_correlation():
    rng = np.random.default_rng(4)
    x = signal.lfilter([1], [1, -0.6], rng.standard_normal(20_000))
    block = block_length(x)
    assert block == pytest.approx(20 * 4, rel=0.2)
    for rows in (
        resample(len(x), 100_000, block, rng),
        sample_world(len(x), block, rng).draw(100_000, rng),
    ):
        assert correlation_time(x[rows]) == pytest.approx(4, rel=0.2)


def test_independent_values_are_resampled_one_by_one_and_short_series_in_short_blocks():
    rng = np.random.default_rng(5)
    assert np.mean([block_length(rng.standard_normal(1000)) == 1 for _ in range(50)]) > 0.8
    assert block_length(np.cumsum(rng.standard_normal(200))) == 10


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: run_length(0.0, 10.0),
            ConfigError,
            "false_alarms must be a positive number per day, got 0.0; 0.01 is one in a hundred",
        ),
        (
            lambda: run_length(1.0, math.nan),
            ConfigError,
            "rate must be a positive number of events per day, got nan",
        ),
        (
            lambda: finite(np.array([1.0, np.nan, np.inf]), "the error"),
            DataError,
            "the error holds nan at event 1 (2 of 3); did the serving version diverge, or are "
            "targets missing?",
        ),
        (
            lambda: finite(np.zeros((2, 2)), "the error"),
            DataError,
            "the error must be one number per event, got shape (2, 2)",
        ),
        (
            lambda: paired(np.zeros(2), np.zeros(3)),
            DataError,
            "2 late errors have 3 event times; give one each",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
