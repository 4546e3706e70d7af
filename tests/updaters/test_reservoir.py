"""The replay buffer: a uniform sample of all that was seen, equal shares of each condition."""

import numpy as np
import pytest
from scipy import stats

from stillfit.core.arrays import Ragged
from stillfit.core.events import Examples
from stillfit.updaters.replay import Replay, pack, reservoir_slots, unpack


def examples(ids, condition="all"):
    ids = np.asarray(ids, np.int64)
    names = np.full(len(ids), condition) if isinstance(condition, str) else np.asarray(condition)
    return Examples(ids, {"x": ids * 0.5}, {"y": ids * 2.0}, ids * 1.0, names)


def rng(seed=0):
    return np.random.default_rng(seed)


def filled(replay, parts, seed=0):
    generator, learner = rng(seed), {}
    for part in parts:
        learner = replay.observe(learner, part, rng=generator)
    return unpack(learner)


def one_by_one(capacity, seen, arriving, generator):
    """Algorithm R as Vitter wrote it."""
    slots = []
    for k in range(seen + 1, seen + arriving + 1):
        if k <= capacity:
            slots.append(k - 1)
        else:
            m = int(np.floor(generator.random() * k))
            slots.append(m if m < capacity else -1)
    return slots


@pytest.mark.parametrize("capacity", [1, 5, 40])
@pytest.mark.parametrize("cuts", [[100], [3, 97], [40, 1, 1, 58], [1] * 30])
def test_slots_are_those_of_algorithm_r_however_the_stream_is_cut(capacity, cuts):
    fast, slow = rng(1), rng(1)
    seen = 0
    for arriving in cuts:
        got = reservoir_slots(min(seen, capacity), seen, arriving, capacity, fast)
        assert list(got) == one_by_one(capacity, seen, arriving, slow)
        seen += arriving


@pytest.mark.parametrize("keep", ["reservoir", "balanced"])
@pytest.mark.parametrize("cuts", [4, 60, 240])
def test_every_event_is_kept_with_the_same_probability(keep, cuts):
    """chi2 over the events, whatever the number of arrivals; the last slot taken wins."""
    n, capacity, trials = 240, 24, {4: 400, 60: 100, 240: 30}[cuts]
    replay = Replay(capacity=capacity, keep=keep)
    counts = np.zeros(n)
    parts = [examples(part) for part in np.array_split(np.arange(n), cuts)]
    for trial in range(trials):
        buffer, seen = filled(replay, parts, trial)
        assert len(buffer) == capacity == len(np.unique(buffer.ids))
        assert list(seen.values()) == [n]
        counts[buffer.ids] += 1
    expected = counts.sum() / n
    # Each count is binomial with p = capacity / n, and their sum is fixed.
    chi2 = ((counts - expected) ** 2).sum() / (expected * (1 - capacity / n)) * (n - 1) / n
    assert stats.chi2.cdf(chi2, n - 1) < 0.999
    assert stats.chi2.sf(chi2, n - 1) < 0.999


def test_a_reservoir_of_many_conditions_is_uniform_over_events_not_conditions():
    n, capacity = 300, 30
    names = np.where(np.arange(n) % 10 == 0, "rare", "often")
    kept = 0
    for trial in range(200):
        parts = [examples(ids, names[ids]) for ids in np.array_split(np.arange(n), 6)]
        buffer, seen = filled(Replay(capacity=capacity), parts, trial)
        assert seen == {"all": n}
        kept += int((buffer.conditions == "rare").sum())
    mean = 200 * capacity * 0.1
    assert abs(kept - mean) < 4 * np.sqrt(200 * capacity * 0.09)


def test_balanced_conditions_have_equal_shares_and_each_share_is_uniform():
    capacity, trials = 60, 300
    counts = {"a": np.zeros(400), "b": np.zeros(400), "c": np.zeros(400)}
    for trial in range(trials):
        parts = [
            examples(np.arange(0, 200), "a"),
            examples(np.arange(200, 230), "b"),
            examples(np.arange(230, 300), "a"),
            examples(np.arange(300, 400), "c"),
        ]
        buffer, seen = filled(Replay(capacity=capacity, keep="balanced"), parts, trial)
        assert seen == {"a": 270, "b": 30, "c": 100}
        for name in counts:
            ids = buffer.where(name).ids
            assert len(ids) == capacity // 3
            counts[name][ids] += 1
    for name, ids in (
        ("a", np.r_[0:200, 230:300]), ("b", np.r_[200:230]), ("c", np.r_[300:400])
    ):  # fmt: skip
        found = counts[name][ids]
        assert found.sum() == counts[name].sum()
        n, p = len(ids), capacity / 3 / len(ids)
        chi2 = ((found - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (n - 1) / n
        assert stats.chi2.sf(chi2, n - 1) > 0.001


@pytest.mark.parametrize("keep", ["reservoir", "balanced"])
@pytest.mark.parametrize("capacity", [0, 1, 2, 7, 50])
def test_the_capacity_is_never_exceeded_and_rows_stay_whole(keep, capacity):
    generator = rng(3)
    replay, learner, first = Replay(capacity=capacity, keep=keep), {}, 0
    for _ in range(30):
        n = int(generator.integers(0, 25))
        names = generator.choice(["x", "y", "z"], n) if n else np.zeros(0, np.str_)
        learner = replay.observe(learner, examples(np.arange(first, first + n), names),
                                 rng=generator)  # fmt: skip
        first += n
        buffer, _ = unpack(learner)
        assert len(buffer) <= capacity
        assert len(np.unique(buffer.ids)) == len(buffer)
        np.testing.assert_array_equal(buffer.inputs.get("x", buffer.ids * 0.5), buffer.ids * 0.5)
        np.testing.assert_array_equal(buffer.targets.get("y", buffer.ids * 2.0), buffer.ids * 2.0)
    if keep == "reservoir":
        assert len(buffer) == min(capacity, first)


def test_everything_is_kept_while_there_is_room():
    buffer, _ = filled(Replay(capacity=100), [examples(np.arange(40)), examples(np.arange(40, 99))])
    np.testing.assert_array_equal(np.sort(buffer.ids), np.arange(99))


def test_a_buffer_and_its_counts_go_through_arrays_ragged_columns_included():
    ids = np.arange(3, dtype=np.int64)
    ragged = Ragged.from_counts(np.arange(6.0), np.array([1, 0, 5]))
    held = Examples(ids, {"t": ragged}, {"y": ids * 1.0}, ids * 1.0, np.array(["a", "b/c", "a"]))
    flat = pack(held, {"a": 7, "b/c": 2})
    assert all(isinstance(part, np.ndarray) and part.dtype.kind in "iufb" for part in flat.values())
    buffer, seen = unpack(flat)
    assert seen == {"a": 7, "b/c": 2}
    np.testing.assert_array_equal(buffer.inputs["t"].offsets, ragged.offsets)
    assert list(buffer.conditions) == ["a", "b/c", "a"]
    nothing, none = unpack({})
    assert len(nothing) == 0
    assert none == {}


def test_a_ragged_buffer_holds_the_events_that_came():
    generator = rng(0)
    replay, learner = Replay(capacity=15), {}
    for first in range(0, 200, 20):
        ids = np.arange(first, first + 20, dtype=np.int64)
        tracks = Ragged.from_counts(np.repeat(ids * 1.0, ids % 4), ids % 4)
        part = Examples(ids, {"t": tracks}, {}, ids * 1.0, np.full(20, "all"))
        learner = replay.observe(learner, part, rng=generator)
    buffer, _ = unpack(learner)
    np.testing.assert_array_equal(buffer.inputs["t"].counts, buffer.ids % 4)
    np.testing.assert_array_equal(
        buffer.inputs["t"].values, np.repeat(buffer.ids * 1.0, buffer.ids % 4)
    )
