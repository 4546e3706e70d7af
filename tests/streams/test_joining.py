"""Late labels meet their events once, in bounded memory, and everything is counted."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, DamagedError, OrderError
from stillfit.core.events import Block, Examples, Labels
from stillfit.streams.joining import JoinCounts, Joiner

BIG = 10**9


def block(ids, time=0.0, condition="all"):
    ids = np.asarray(ids, np.int64)
    return Block(ids, {"x": ids * 2.0}, time, {"condition": condition})


def labels(ids, time=0.0):
    ids = np.asarray(ids, np.int64)
    return Labels(ids, {"y": ids * 3.0}, time)


def test_an_event_gets_its_own_label_time_and_condition():
    joiner = Joiner(BIG)
    joiner.add(block([1, 2, 5], 10.0, "a"))
    joiner.add(block([7, 9], 20.0, "b"))
    found = joiner.join(labels([9, 2, 7, 1], 30.0))
    assert found.ids.tolist() == [1, 2, 7, 9]
    assert found.inputs["x"].tolist() == [2.0, 4.0, 14.0, 18.0]
    assert found.targets["y"].tolist() == [3.0, 6.0, 21.0, 27.0]
    assert found.times.tolist() == [10.0, 10.0, 20.0, 20.0]
    assert found.conditions.tolist() == ["a", "a", "b", "b"]
    assert joiner.counts == JoinCounts(joined=4)
    assert len(joiner) == 1
    assert joiner.join(labels([5])).ids.tolist() == [5]
    assert (len(joiner), joiner.nbytes) == (0, 0)


def test_ragged_events_keep_their_tracks(make_pair, same_arrays):
    joiner = Joiner(BIG)
    one, told = make_pair(0, 30)
    joiner.add(one)
    rows = np.array([3, 4, 17, 29])
    found = joiner.join(told.take(rows[::-1]))
    same_arrays(found.inputs, one.take(rows).inputs)
    same_arrays(found.targets, told.take(rows).targets)


def test_labels_of_a_whole_block_copy_nothing(make_pair):
    joiner = Joiner(BIG)
    one, told = make_pair(0, 30)
    joiner.add(one)
    found = joiner.join(told)
    assert np.shares_memory(found.inputs["pt"].values, one.inputs["pt"].values)
    assert np.shares_memory(found.targets["z0"], told.targets["z0"])


def test_no_label_no_example():
    joiner = Joiner(BIG)
    joiner.add(block([1]))
    joiner.add(block([]))
    assert len(joiner.join(labels([]))) == 0
    assert joiner.counts == JoinCounts()


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    gap=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    parts=st.integers(1, 6),
)
def test_every_event_is_joined_exactly_once_whatever_the_order(sizes, gap, seed, parts):
    rng = np.random.default_rng(seed)
    joiner = Joiner(BIG)
    ids = np.arange(sum(sizes)) * gap
    for part in np.split(ids, np.cumsum(sizes)[:-1]):
        joiner.add(block(part))
    found = []
    for part in np.array_split(rng.permutation(np.repeat(ids, 2)), parts):
        examples = joiner.join(labels(part))
        assert np.all(np.diff(examples.ids) > 0)
        found.append(examples)
    joined = Examples.join(found)
    np.testing.assert_array_equal(np.sort(joined.ids), ids)
    np.testing.assert_array_equal(joined.targets["y"], joined.ids * 3.0)
    assert joiner.counts.joined == len(ids)
    assert joiner.counts.repeated + joiner.counts.late == len(ids)
    assert (len(joiner), joiner.nbytes) == (0, 0)


def test_strange_labels_are_counted():
    joiner = Joiner(BIG)
    joiner.add(block([10, 11]))
    joiner.add(block([20, 21]))
    joiner.join(labels([10, 10]))
    joiner.join(labels([10, 5, 99]))
    assert joiner.counts == JoinCounts(joined=1, repeated=2, late=1, unknown=1)
    joiner.join(labels([20, 21]))
    joiner.join(labels([20]))
    assert joiner.counts == JoinCounts(joined=3, repeated=2, late=2, unknown=1)


def test_memory_never_exceeds_its_bound_and_expired_events_are_counted(make_pair):
    rng = np.random.default_rng(0)
    one_block = sum(make_pair(0, 30)[0].inputs[n].nbytes for n in ("pt", "nstub", "met"))
    joiner = Joiner(3 * one_block)
    first, added = 0, 0
    for number in range(40):
        n = int(rng.integers(1, 60))
        joiner.add(make_pair(first, n, float(number))[0])
        assert joiner.nbytes <= joiner.max_bytes
        first += n
        added += n
        assert joiner.counts.expired + len(joiner) == added
    assert joiner.counts.expired > 0
    # What is left are the newest events.
    assert joiner.blocks()[-1].ids[-1] == first - 1
    assert joiner.oldest == first - len(joiner)
    found = joiner.join(Labels(np.arange(first), {"y": np.zeros(first)}, 40.0))
    assert found.ids.tolist() == list(range(joiner.counts.expired, first))
    assert joiner.counts.late == joiner.counts.expired


def test_of_a_block_larger_than_the_memory_the_newest_events_are_kept():
    joiner = Joiner(1000)
    joiner.add(block(range(1000)))
    assert 0 < joiner.nbytes <= 1000
    assert joiner.counts.expired + len(joiner) == 1000
    assert joiner.join(labels([999])).ids.tolist() == [999]
    joiner = Joiner(10)
    joiner.add(block(range(5)))
    assert (len(joiner), joiner.counts.expired) == (0, 5)


def test_events_that_waited_too_long_expire():
    joiner = Joiner(BIG, max_age=10.0)
    joiner.add(block([1, 2], 0.0))
    joiner.join(labels([1]))
    joiner.add(block([3], 10.0))
    assert len(joiner) == 2
    joiner.add(block([4], 10.5))
    assert len(joiner) == 2
    assert joiner.counts == JoinCounts(joined=1, expired=1)


def test_a_view_does_not_keep_a_larger_batch_alive():
    base = np.zeros(1_000_000)
    ragged = Ragged.from_counts(base, np.full(1000, 1000))
    joiner = Joiner(BIG)
    joiner.add(Block(np.arange(2), {"x": base[:2], "r": ragged[:2]}, 0.0))
    (kept,) = joiner.blocks()
    assert not np.shares_memory(kept.inputs["x"], base)
    assert not np.shares_memory(kept.inputs["r"].values, base)


def test_state_goes_to_arrays_and_back(fills):
    joiner = Joiner(10**6, max_age=1e6)
    later = []
    for number, event in enumerate(fills):
        if isinstance(event, Block):
            joiner.add(event)
        elif isinstance(event, Labels):
            joiner.join(event.take(np.arange(number % 4)))
            later.append(event)
    flat = joiner.to_arrays()
    document, segments = joiner.to_segments()
    copies = (
        Joiner.from_arrays({name: np.array(values) for name, values in flat.items()}),
        Joiner.from_segments(json.loads(json.dumps(document)), segments),
    )
    for copy in copies:
        assert (copy.max_bytes, copy.max_age) == (joiner.max_bytes, joiner.max_age)
        assert (copy.counts, copy.nbytes, len(copy)) == (joiner.counts, joiner.nbytes, len(joiner))
        assert copy.to_segments()[0] == document
    for event in later:
        results = [one.join(event) for one in (joiner, *copies)]
        for result in results[1:]:
            np.testing.assert_array_equal(result.ids, results[0].ids)
            np.testing.assert_array_equal(result.targets["z0"], results[0].targets["z0"])
    with pytest.raises(OrderError):
        copies[0].add(block([0]))


def test_segments_stay_the_same_while_labels_come():
    joiner = Joiner(BIG)
    joiner.add(block(range(10)))
    before = set(joiner.to_segments()[1])
    joiner.join(labels([3, 4]))
    assert set(joiner.to_segments()[1]) == before


def test_a_joiner_without_limit_of_age_is_stored_too():
    joiner = Joiner(100)
    assert Joiner.from_arrays(joiner.to_arrays()).max_age == np.inf


def test_errors_name_value_and_cause():
    with pytest.raises(ConfigError, match=r"room and time for events, got max_bytes=0"):
        Joiner(0)
    with pytest.raises(ConfigError, match=r"max_age=0.0"):
        Joiner(1, max_age=0.0)
    joiner = Joiner(BIG)
    joiner.add(block([5, 6]))
    with pytest.raises(OrderError, match=r"starts with event 6 after event 6; .* Guarded"):
        joiner.add(block([6, 7]))
    document, _ = joiner.to_segments()
    with pytest.raises(DamagedError, match=r"segment .* of the stored state is missing; were all"):
        Joiner.from_segments(document, {})
    with pytest.raises(DamagedError, match=r"the checkpoint lacks 'document'"):
        Joiner.from_arrays({})
