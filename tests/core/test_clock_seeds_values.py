"""Laws of the clock, of named seeds, and of the small values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.clock import DAY, HOUR, MINUTE, Clock
from stillfit.core.errors import (
    ConfigError,
    DamagedError,
    DataError,
    LockedError,
    MissingExtraError,
    OrderError,
    RegistryError,
    ShapeError,
    StillfitError,
)
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Cost, version_id


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_a_clock_moves_to_any_later_time_and_stays_a_value(times):
    start = clock = Clock()
    for time in sorted(times):
        clock = clock.at(time)
    assert clock.now == max(times)
    assert clock.at(clock.now) == clock
    assert start.now == -math.inf


def test_a_clock_never_goes_back():
    with pytest.raises(OrderError, match=r"an event of time 1.500 s came after one of 2.000 s"):
        Clock(2.0).at(1.5)
    for time in (math.nan, math.inf):
        with pytest.raises(OrderError, match=rf"an event has the time {time}; times must be fin"):
            Clock().at(time)
    assert (MINUTE, HOUR, DAY) == (60, 3600, 86400)


names = st.lists(st.one_of(st.text(max_size=4), st.text(alphabet="ab/\\", max_size=4)), max_size=4)


@given(names, names)
def test_two_names_never_share_a_seed(a, b):
    seeds = Seeds(3)
    assert (seeds.integer(*a) == seeds.integer(*b)) == (a == b)


def test_seeds_depend_on_root_and_name_and_on_nothing_else():
    first = Seeds(1).rng("replay", 3).normal(size=4)
    Seeds(1).rng("other").normal(size=10)
    assert np.array_equal(Seeds(1).rng("replay", 3).normal(size=4), first)
    assert Seeds(1).integer("replay") != Seeds(2).integer("replay")
    assert 0 <= Seeds(1).integer("x") < 2**63
    # Pinned: a stored run must draw the same numbers in every release and on every machine.
    assert Seeds(7).integer("train") == 64886398766765162


def test_a_version_id_is_64_hexadecimal_digits():
    assert version_id("0" * 64) == "0" * 64
    for bad in ("", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"):
        with pytest.raises(ConfigError, match="is not a version id: 64 lower-case hexadecimal"):
            version_id(bad)


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("memory_bytes", "bytes of learner memory"),
        ("stored_examples", "stored examples"),
        ("macs_per_example", "multiply-accumulates per example"),
        ("seconds", "seconds"),
    ],
)
def test_a_budget_names_the_limit_that_is_broken_with_both_figures(limit, name):
    cost = Cost(**{limit: 2001})
    assert Budget().exceeded_by(cost) is None
    assert Budget(**{limit: 2001}).exceeded_by(cost) is None
    text = Budget(**{limit: 2000}).exceeded_by(cost)
    assert text == f"it used 2,001 {name} where the budget allows 2,000"


def test_every_error_has_one_root_and_at_most_three_levels():
    for error in (
        ConfigError,
        DataError,
        ShapeError,
        OrderError,
        RegistryError,
        DamagedError,
        LockedError,
        MissingExtraError,
    ):
        assert issubclass(error, StillfitError)
        assert error.mro().index(StillfitError) <= 2
