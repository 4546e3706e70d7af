"""What updaters may look back on in the loop: labelled events, and those that wait for labels."""

import numpy as np
import pytest

from stillfit.core.events import Block, Examples, Labels
from stillfit.loop.remembered import Remembered
from stillfit.streams.joining import Joiner
from stillfit.streams.store import Keeping, is_held_out
from stillfit.updaters.contract import Unlabelled


def block(first, n, time, condition="new"):
    ids = np.arange(first, first + n, dtype=np.int64)
    return Block(ids, {"x": ids * 0.5}, time, {"condition": condition})


def world(**rules):
    """Three blocks; the labels of the odd events of the second have come."""
    keeping = Keeping(budget_bytes=10**6, **rules)
    joiner, store = Joiner(10**6), keeping.empty()
    for part in (block(0, 40, 1.0, "old"), block(40, 40, 2.0), block(80, 40, 3.0)):
        joiner.add(part)
    odd = np.arange(41, 80, 2)
    joined = joiner.join(Labels(odd, {"y": odd * 1.0}, 3.0))
    store = store.add(joined, np.random.default_rng(0))
    return Remembered(store.training, joiner, keeping), joined, joiner


def test_it_is_a_memory_with_events_that_have_no_labels():
    memory, joined, _ = world(held_out=0.0)
    assert isinstance(memory, Unlabelled)
    assert np.array_equal(memory.all().ids, joined.ids)
    assert len(memory.window(2.5)) == 0
    waiting = memory.unlabelled("new", 1000)
    assert waiting.targets == {}
    assert np.array_equal(waiting.ids, [*range(40, 80, 2), *range(80, 120)])
    assert np.array_equal(waiting.inputs["x"], waiting.ids * 0.5)
    assert set(waiting.times[:20]) == {2.0}
    assert set(waiting.conditions) == {"new"}


@pytest.mark.parametrize("limit", [0, 1, 17, 40, 55])
def test_the_newest_come_where_not_all_may(limit):
    memory, _, _ = world(held_out=0.0)
    every = memory.unlabelled("new", 1000)
    assert np.array_equal(memory.unlabelled("new", limit).ids, every.ids[len(every) - limit :])


def test_what_gates_will_judge_on_is_not_shown():
    memory, _, _ = world(held_out=0.4)
    ids = memory.unlabelled("new", 1000).ids
    assert 0 < len(ids) < 60
    assert not is_held_out(ids, 0.4).any()


def test_a_condition_without_weight_or_unknown_has_none():
    memory, _, _ = world(held_out=0.0, weights={"new": 0.0})
    assert len(memory.unlabelled("new", 1000)) == 0
    assert len(memory.unlabelled("else", 1000)) == 0
    assert len(memory.unlabelled("old", 1000)) == 40


def test_a_joiner_that_was_stored_waits_for_the_same_events():
    _, _, joiner = world()
    again = Joiner.from_arrays(joiner.to_arrays())
    one, other = joiner.unlabelled(), again.unlabelled()
    assert [b.ids.tolist() for b in one] == [b.ids.tolist() for b in other]
    assert sum(map(len, one)) == len(joiner)


def test_nothing_waits_when_all_labels_came():
    joiner = Joiner(10**6)
    joiner.add(block(0, 3, 1.0))
    joiner.join(Labels(np.arange(3), {"y": np.zeros(3)}, 2.0))
    memory = Remembered(
        Keeping(budget_bytes=9999).empty().training, joiner, Keeping(budget_bytes=9)
    )
    assert memory.unlabelled("new", 5).ids.tolist() == Examples.empty().ids.tolist()
