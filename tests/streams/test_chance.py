"""Numbers that belong to events: uniform, independent, and the same in any order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stillfit.core.seeds import Seeds
from stillfit.streams import chance

IDS = np.arange(200_000)


def test_numbers_are_uniform_and_inside_the_open_interval():
    drawn = chance.uniform(1, "a", IDS)
    assert drawn.min() > 0.0 and drawn.max() < 1.0
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert stats.kstest(chance.normal(1, "a", IDS), "norm").pvalue > 1e-3


def test_neighbours_purposes_seeds_and_items_are_independent():
    drawn = chance.uniform(1, "a", IDS)
    others = [
        chance.uniform(1, "b", IDS),
        chance.uniform(2, "a", IDS),
        chance.uniform(1, "a", IDS + 1),
        chance.uniform(1, "a", IDS, np.zeros_like(IDS)),
        chance.uniform(1, "a", IDS, np.ones_like(IDS)),
    ]
    for other in others:
        # The correlation of n independent pairs has a standard deviation of 1 / sqrt(n).
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 4 / np.sqrt(len(IDS))


def test_items_of_one_event_and_events_of_one_item_are_uniform():
    items = np.arange(len(IDS))
    assert stats.kstest(chance.uniform(1, "a", 0 * IDS, items), "uniform").pvalue > 1e-3
    assert stats.kstest(chance.uniform(1, "a", IDS, 0 * items), "uniform").pvalue > 1e-3


@given(st.integers(0, 2**40), st.integers(1, 500), st.integers(1, 60))
def test_the_cut_into_calls_does_not_matter(first, n, cut):
    ids = np.arange(first, first + n)
    parts = [chance.bits(7, "a", ids[k : k + cut]) for k in range(0, n, cut)]
    np.testing.assert_array_equal(np.concatenate(parts), chance.bits(7, "a", ids))


def splitmix(word: int) -> int:
    """The finaliser of SplitMix64 in exact arithmetic."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


@given(st.integers(0, 2**62), st.integers(0, 2**31))
def test_the_hash_is_that_of_splitmix64(number, item):
    golden = 0x9E3779B97F4A7C15
    key = Seeds(5).integer("chance", "a")
    word = splitmix((number * golden + key) % 2**64)
    ids, items = np.array([number]), np.array([item])
    assert int(chance.bits(5, "a", ids)[0]) == word
    deeper = splitmix((word + (item + 1) * golden) % 2**64)
    assert int(chance.bits(5, "a", ids, items)[0]) == deeper
