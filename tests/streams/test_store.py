"""The labelled store: never above its budget, fair inside a condition, and reproducible."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.arrays import n_bytes
from stillfit.core.errors import ConfigError, DamagedError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.tables import build
from stillfit.streams.store import Keeping, LabelledStore, is_held_out

# Bytes of an event that `make_examples` makes: id, time, key, four float32 inputs, one target.
EVENT = 8 + 8 + 8 + 16 + 4


def held_bytes(store: LabelledStore) -> int:
    """Counted anew, from the arrays that a checkpoint would write."""
    return sum(n_bytes(arrays) for arrays in store.to_segments()[1].values())


def filled(rules: Keeping, parts, seed=0) -> LabelledStore:
    store, rng = rules.empty(), np.random.default_rng(seed)
    for part in parts:
        store = store.add(part, rng)
    return store


def everything(store: LabelledStore) -> Examples:
    return Examples.join([store.training.all(), store.held_out.all()])


# ---- budget


@given(
    budget=st.integers(1, 20_000),
    policy=st.sampled_from(["balanced", "reservoir", "ring"]),
    slack=st.sampled_from([0.0, 0.125, 0.9]),
    steps=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=15
    ),
    weights=st.sampled_from([{}, {"a": 2.0}, {"a": 0.0, "b": 5.0}]),
)
def test_the_budget_is_never_exceeded_and_bytes_are_exact(budget, policy, slack, steps, weights):
    rules = Keeping(budget_bytes=budget, policy=policy, slack=slack, weights=weights)
    store, rng, first = rules.empty(), np.random.default_rng(0), 0
    for n, condition in steps:
        inputs, targets = ragged_events(first, n)
        ids = np.arange(first, first + n)
        store = store.add(Examples(ids, inputs, targets, ids * 1.0, np.full(n, condition)), rng)
        first += n
        assert store.nbytes == held_bytes(store) <= budget
        assert store.nbytes == sum(holding.nbytes for holding in store.holdings())
        assert store.nbytes == store.training.nbytes + store.held_out.nbytes


def ragged_events(first, n):
    from stillfit.core.arrays import Ragged

    rng = np.random.default_rng(first)
    counts = rng.poisson(4.0, n)
    total = int(counts.sum())
    return (
        {"pt": Ragged.from_counts(rng.random((total, 2)).astype(np.float32), counts)},
        {"y": rng.random(n), "pv": Ragged.from_counts(np.zeros(total, np.uint8), counts)},
    )


def test_a_store_that_is_full_stays_nearly_full(make_examples):
    for slack in (0.0, 0.125):
        rules = Keeping(budget_bytes=500 * EVENT, slack=slack)
        store, rng = rules.empty(), np.random.default_rng(1)
        for first in range(0, 20_000, 40):
            store = store.add(make_examples(first, 40), rng)
            if first > 1000:
                assert store.nbytes >= (1 - slack) * 500 * EVENT - EVENT
        assert len(store) * EVENT == store.nbytes


def test_everything_is_kept_while_there_is_room(make_examples):
    rules = Keeping(budget_bytes=1000 * EVENT)
    parts = [make_examples(k * 100, 100, c) for k, c in enumerate("aabbcabcab")]
    store = filled(rules, parts)
    assert len(store) == 1000
    assert sorted(everything(store).ids) == list(range(1000))


# ---- the law of the sample


def counts_of(rules: Keeping, make_examples, n, size, trials, condition="a"):
    """How often each of `n` events is held, over many independent stores."""
    parts = [make_examples(k, size, condition) for k in range(0, n, size)]
    counts = np.zeros(n)
    for seed in range(trials):
        counts[everything(filled(rules, parts, seed)).ids] += 1
    return counts


@pytest.mark.parametrize("policy", ["balanced", "reservoir"])
@pytest.mark.parametrize("slack", [0.0, 0.25])
def test_every_event_of_the_stream_is_held_with_equal_probability(policy, slack, make_examples):
    n, capacity, trials = 240, 60, 250
    rules = Keeping(budget_bytes=capacity * EVENT, policy=policy, slack=slack)
    # Small additions, so that with slack the last ones do not overflow the share.
    counts = counts_of(rules, make_examples, n, 24 if slack == 0 else 5, trials)
    p = counts.sum() / (n * trials)
    assert p <= capacity / n
    if not slack:
        assert p == capacity / n
    # Chi-square of n cells with a fixed sum: mean n - 1, variance 2 (n - 1).
    chi2 = ((counts - p * trials) ** 2).sum() / (trials * p * (1 - p))
    assert abs(chi2 - (n - 1)) < 4 * math.sqrt(2 * (n - 1))
    # Early against late: the trend that a wrong reservoir would show.
    early, late = counts[: n // 2].sum(), counts[n // 2 :].sum()
    assert abs(early - late) < 4 * math.sqrt(trials * n * p * (1 - p))


def test_a_sample_stays_fair_when_its_share_shrinks(make_examples):
    rules = Keeping(budget_bytes=100 * EVENT)
    parts = [make_examples(k, 20, "a") for k in range(0, 200, 20)]
    parts += [make_examples(k, 20, "b") for k in range(200, 400, 20)]
    parts += [make_examples(k, 20, "a") for k in range(400, 600, 20)]
    counts, trials = np.zeros(600), 300
    for seed in range(trials):
        counts[everything(filled(rules, parts, seed)).ids] += 1
    before, after = counts[:200].sum(), counts[400:].sum()
    p = (before + after) / (400 * trials)
    # Binomial within each half; the halves are negatively correlated, which only helps.
    assert abs(before - after) < 4 * math.sqrt(2 * 200 * trials * p * (1 - p)) + 0.02 * before


def test_room_that_becomes_free_is_not_filled_with_late_events_alone(make_examples):
    rules = Keeping(budget_bytes=60 * EVENT)
    early = [make_examples(k, 10, "ab"[k // 10 % 2]) for k in range(0, 200, 10)]
    late = [make_examples(k, 10, "a") for k in range(200, 240, 10)]
    counts, trials = np.zeros(240), 300
    for seed in range(trials):
        store = filled(rules, early, seed).reweighted({"b": 0.0})
        rng = np.random.default_rng([seed, 1])
        for part in late:
            store = store.add(part, rng)
        counts[everything(store).ids] += 1
    before, after = counts[:200][np.arange(200) // 10 % 2 == 0].mean(), counts[200:].mean()
    # Rates of 100 and of 40 events.
    error = math.sqrt((1 / 100 + 1 / 40) * before * (1 - before / trials))
    assert abs(before - after) < 4 * error


def test_size_does_not_decide_who_is_held():
    """Events with many tracks are held as often as events with few."""
    from stillfit.core.arrays import Ragged

    n, trials = 400, 300
    counts = np.where(np.arange(n) % 2, 40, 5)
    pt = Ragged.from_counts(np.zeros(int(counts.sum()), np.float32), counts)
    ids = np.arange(n)
    events = Examples(ids, {"pt": pt}, {"y": ids * 1.0}, ids * 1.0, np.full(n, "a"))
    held = np.zeros(n)
    rules = Keeping(budget_bytes=20_000)
    for seed in range(trials):
        held[everything(rules.empty().add(events, np.random.default_rng(seed))).ids] += 1
    small, large = held[::2].sum(), held[1::2].sum()
    p = held.sum() / (n * trials)
    # Equal to within one event's size over the share, as stated, and the statistics of the draw.
    assert abs(small - large) < 4 * math.sqrt(n * trials * p * (1 - p)) + 200 / 20_000 * large


# ---- policies


def test_conditions_share_the_budget_equally(make_examples):
    parts = [make_examples(k * 50, 50, c) for k, c in enumerate("a" * 60 + "b" * 20 + "c" * 40)]
    store = filled(Keeping(budget_bytes=600 * EVENT), parts)
    held = {h.condition: h.training + h.held_out for h in store.holdings()}
    assert all(0.85 * 200 <= n <= 200 + 30 for n in held.values())
    assert {h.condition: h.seen for h in store.holdings()} == {"a": 3000, "b": 1000, "c": 2000}


def test_what_a_rare_condition_does_not_need_is_free_for_others(make_examples):
    parts = [make_examples(0, 30, "rare")] + [
        make_examples(30 + k * 50, 50, "common") for k in range(100)
    ]
    store = filled(Keeping(budget_bytes=600 * EVENT), parts)
    held = {h.condition: h.training + h.held_out for h in store.holdings()}
    assert held["rare"] == 30
    assert held["common"] >= 0.87 * 570


def test_weights_divide_the_budget_and_zero_drops_a_condition(make_examples):
    weights = {"nominal": 1.0, "misaligned": 3.0, "old": 0.0}
    names = ["old", "nominal", "misaligned"] * 60
    parts = [make_examples(k * 50, 50, c) for k, c in enumerate(names)]
    store = filled(Keeping(budget_bytes=800 * EVENT, weights=weights), parts)
    held = {h.condition: h.training + h.held_out for h in store.holdings()}
    assert held["old"] == 0
    assert held["nominal"] == pytest.approx(200, rel=0.15)
    assert held["misaligned"] == pytest.approx(600, rel=0.15)
    assert {h.condition: h.seen for h in store.holdings()}["old"] == 3000
    assert store.training.conditions == ("nominal", "misaligned")


@pytest.mark.parametrize("policy", ["balanced", "reservoir", "ring"])
def test_a_person_may_change_the_weights_later(policy, make_examples):
    parts = [make_examples(k * 50, 50, c) for k, c in enumerate("ab" * 10)]
    store = filled(Keeping(budget_bytes=400 * EVENT, policy=policy), parts)
    without = store.reweighted({"a": 0.0})
    assert without.training.conditions == ("b",)
    assert len(store.training.condition("a")) > 0  # the earlier store is as it was
    # What was dropped has made room.
    for first in range(1000, 6000, 100):
        without = without.add(make_examples(first, 100, "b"), np.random.default_rng(first))
    assert without.nbytes > 0.85 * 400 * EVENT


def test_the_ring_holds_the_newest(make_examples):
    rules = Keeping(budget_bytes=300 * EVENT, policy="ring", slack=0.1)
    store, rng = rules.empty(), np.random.default_rng(0)
    for first in range(0, 3000, 70):
        store = store.add(make_examples(first, 70, "ab"[first // 70 % 2]), rng)
        ids = np.sort(everything(store).ids)
        np.testing.assert_array_equal(ids, np.arange(first + 70 - len(ids), first + 70))
    assert len(ids) >= 270


def test_a_reservoir_keeps_conditions_as_they_came(make_examples):
    parts = [make_examples(k * 100, 100, c) for k, c in enumerate("aaab" * 20)]
    rules = Keeping(budget_bytes=800 * EVENT, policy="reservoir", slack=0.0)
    store = filled(rules, parts)
    b = len(store.training.condition("b")) + len(store.held_out.condition("b"))
    assert abs(b - 200) < 4 * math.sqrt(800 * 0.25 * 0.75)


# ---- held-out side


def test_the_sides_never_mix_and_have_the_fraction_asked_for(make_examples):
    rules = Keeping(budget_bytes=10**7, held_out=0.25)
    store = filled(rules, [make_examples(k * 500, 500) for k in range(16)])
    training, held = store.training.all().ids, store.held_out.all().ids
    assert not set(training) & set(held)
    assert abs(len(held) - 2000) < 4 * math.sqrt(8000 * 0.25 * 0.75)
    np.testing.assert_array_equal(is_held_out(held, 0.25), True)
    np.testing.assert_array_equal(is_held_out(training, 0.25), False)


def test_the_side_of_an_event_does_not_depend_on_anything_but_its_id(make_examples):
    sides = []
    for budget, seed in ((10**7, 1), (200 * EVENT, 2)):
        store = filled(Keeping(budget_bytes=budget), [make_examples(0, 500)], seed)
        sides.append(set(store.held_out.all().ids))
    assert sides[1] < sides[0]
    other = filled(Keeping(budget_bytes=10**7, seed=5), [make_examples(0, 500)])
    assert set(other.held_out.all().ids) != sides[0]


def test_neighbours_stay_together_in_a_stretch():
    ids = np.arange(100_000)
    out = is_held_out(ids, 0.3, stretch=50)
    groups = out.reshape(-1, 50)
    assert np.all(groups == groups[:, :1])
    assert abs(groups[:, 0].mean() - 0.3) < 4 * math.sqrt(0.21 / 2000)


def test_a_full_store_keeps_the_fraction(make_examples):
    rules = Keeping(budget_bytes=2000 * EVENT, held_out=0.25)
    store = filled(rules, [make_examples(k * 500, 500) for k in range(40)])
    assert len(store.held_out) / len(store) == pytest.approx(0.25, abs=0.05)


def test_nothing_is_held_out_where_nothing_is_asked_for(make_examples):
    store = filled(Keeping(budget_bytes=10**6, held_out=0.0), [make_examples(0, 500)])
    assert len(store.held_out) == 0
    assert len(store.held_out.all()) == 0
    assert store.held_out.conditions == ()


# ---- views


@pytest.fixture
def store(make_examples):
    names = "aabbbacc" * 3
    parts = [make_examples(k * 20, 20, c, ragged=True) for k, c in enumerate(names)]
    return filled(Keeping(budget_bytes=15_000), parts)


def test_views_come_in_order_of_time(store):
    view = store.training
    for part in (view.all(), view.window(200.0), view.newest(7), view.condition("a")):
        assert np.all(np.diff(part.times) >= 0) and np.all(np.diff(part.ids) > 0)
    sample = view.sample(9, np.random.default_rng(0))
    assert np.all(np.diff(sample.ids) > 0)


def test_views_agree_with_everything_held(store, same_arrays):
    for view in (store.training, store.held_out):
        whole = view.all()
        assert len(whole) == len(view) > 10
        late = whole.take(np.flatnonzero(whole.times >= 200.0))
        newest = whole.take(np.arange(len(whole) - 7, len(whole)))
        only = whole.where("b")
        for part, expected in (
            (view.window(200.0), late),
            (view.window(-1.0), whole),
            (view.newest(7), newest),
            (view.newest(10**6), whole),
            (view.condition("b"), only),
            (view.sample(10**6, np.random.default_rng(0)), whole),
        ):
            np.testing.assert_array_equal(part.ids, expected.ids)
            np.testing.assert_array_equal(part.conditions, expected.conditions)
            same_arrays(part.inputs, expected.inputs)
            same_arrays(part.targets, expected.targets)
        for empty in (view.newest(0), view.window(1e9), view.condition("zz")):
            assert len(empty) == 0
        assert len(view.sample(0, np.random.default_rng(0))) == 0


def test_a_sample_is_uniform_and_without_repeats(make_examples):
    store = filled(
        Keeping(budget_bytes=10**6, held_out=0.0),
        [make_examples(k * 10, 10, "ab"[k % 2]) for k in range(8)],
    )
    rng, counts, trials = np.random.default_rng(0), np.zeros(80), 2000
    for _ in range(trials):
        ids = store.training.sample(20, rng).ids
        assert len(set(ids)) == 20
        counts[ids] += 1
    chi2 = ((counts - trials / 4) ** 2).sum() / (trials * 0.25 * 0.75)
    assert abs(chi2 - 79) < 4 * math.sqrt(2 * 79)


def test_the_store_says_what_it_holds(make_examples):
    parts = [make_examples(0, 40, "a"), make_examples(40, 10, "b"), make_examples(50, 10, "a")]
    a, b = filled(Keeping(budget_bytes=10**6), parts).holdings()
    assert (a.condition, a.seen, a.training + a.held_out, a.first, a.last) == ("a", 50, 50, 0, 59)
    assert (b.condition, b.seen, b.nbytes, b.first, b.last) == ("b", 10, 10 * EVENT, 40, 49)
    assert filled(Keeping(budget_bytes=10**6), []).holdings() == ()


# ---- purity, state


def test_adding_leaves_the_store_as_it_was(store, make_examples):
    document, segments = store.to_segments()
    before = {name: n_bytes(arrays) for name, arrays in segments.items()}
    store.add(make_examples(5000, 100, "z", ragged=True), np.random.default_rng(0))
    again, segments = store.to_segments()
    assert again == document
    assert {name: n_bytes(arrays) for name, arrays in segments.items()} == before


def test_the_same_draws_give_the_same_store(make_examples):
    rules = Keeping(budget_bytes=100 * EVENT)
    parts = [make_examples(k * 30, 30, "ab"[k % 2]) for k in range(20)]
    one, same, other = (filled(rules, parts, seed).to_segments()[0] for seed in (1, 1, 2))
    assert one == same != other


def test_nothing_to_add_changes_nothing(store):
    assert store.add(Examples.empty(), np.random.default_rng(0)) is store


def test_state_goes_to_segments_and_back(store, make_examples):
    document, segments = store.to_segments()
    copies = (
        LabelledStore.from_segments(json.loads(json.dumps(document)), segments),
        LabelledStore.from_arrays({n: np.array(v) for n, v in store.to_arrays().items()}),
    )
    more = make_examples(480, 100, "a", ragged=True)
    expected = store.add(more, np.random.default_rng(9)).to_segments()[0]
    for copy in copies:
        assert copy.nbytes == store.nbytes
        assert copy.holdings() == store.holdings()
        assert copy.to_segments()[0] == document
        # It goes on exactly as the first one would have.
        assert copy.add(more, np.random.default_rng(9)).to_segments()[0] == expected


def test_a_known_segment_is_kept_until_less_than_half_of_it_is_left(make_examples):
    """Kept as it is with the limit of the keys that count, and the store is the same again."""
    rules = Keeping(budget_bytes=400 * EVENT, held_out=0.0)
    store, rng = rules.empty(), np.random.default_rng(0)
    disk, kept, sizes = {}, 0, {}
    for step in range(60):
        store = store.add(make_examples(step * 100, 100), rng)
        document, segments = store.to_segments(known=set(disk))
        kept += sum(arrays is None for arrays in segments.values())
        disk = {name: disk[name] if arrays is None else arrays for name, arrays in segments.items()}
        sizes[step] = sum(n_bytes(arrays) for arrays in disk.values())
        again = LabelledStore.from_segments(json.loads(json.dumps(document)), disk)
        assert again.nbytes == store.nbytes and again.holdings() == store.holdings()
        np.testing.assert_array_equal(again.training.all().ids, store.training.all().ids)
        assert again.to_segments(set(disk))[0] == document
        # Both go on in the same way.
        more, seed = make_examples(10_000, 30), np.random.default_rng(step)
        there = again.add(more, np.random.default_rng(step)).to_segments(set(disk))[0]
        assert there == store.add(more, seed).to_segments(set(disk))[0]
    assert kept > 60
    assert max(sizes.values()) <= 2 * rules.budget_bytes
    with pytest.raises(DamagedError, match=r"segment .* holds no event with a key below -1"):
        document["groups"][0]["chunks"][0]["below"] = -1
        LabelledStore.from_segments(document, disk)


def test_a_checkpoint_writes_mostly_what_is_new(make_examples):
    """Segments written over a long run come to a few times what was added, not once per add."""
    rules = Keeping(budget_bytes=20_000 * EVENT)
    store, rng = rules.empty(), np.random.default_rng(0)
    known: set[str] = set()
    written = added = 0
    for first in range(0, 20_000, 100):
        examples = make_examples(first, 100)
        store = store.add(examples, rng)
        added += 100 * EVENT
        segments = store.to_segments()[1]
        written += sum(n_bytes(a) for name, a in segments.items() if name not in known)
        known |= set(segments)
        assert len(segments) < 120
    assert len(store) == 20_000
    assert written < 8 * added


def test_views_of_a_larger_batch_are_not_kept_alive():
    base = np.zeros((100_000, 4), np.float32)
    ids = np.arange(100, dtype=np.int64)
    examples = Examples(ids, {"x": base[:100]}, {"y": base[:100, 0]}, ids * 1.0, np.full(100, "a"))
    store = Keeping(budget_bytes=10**6, held_out=0.0).empty()
    store = store.add(examples, np.random.default_rng(0))
    for arrays in store.to_segments()[1].values():
        assert not any(np.shares_memory(column, base) for column in arrays.values())


# ---- errors


def test_changed_columns_are_refused(make_examples):
    store = filled(Keeping(budget_bytes=10**6), [make_examples(0, 10)])
    wrong = make_examples(10, 10)
    wrong = Examples(
        wrong.ids, {"z": wrong.ids * 1.0}, wrong.targets, wrong.times, wrong.conditions
    )
    with pytest.raises(
        ShapeError,
        match=r"the store holds the inputs x, but the new events have z; was the feature list",
    ):
        store.add(wrong, np.random.default_rng(0))


def test_rules_that_make_no_sense_are_refused():
    for knobs, text in (
        ({"budget_bytes": 0}, r"needs a budget in bytes, got 0"),
        ({"held_out": 1.0}, r"held_out = 1.0 must be in \[0, 1\)"),
        ({"slack": 1.0}, r"slack = 1.0 must be in \[0, 1\)"),
        ({"stretch": 0}, r"stretch = 0 at least 1"),
        ({"weights": {"a": -1.0}}, r"the weight of condition 'a' is -1.0; give 0 \(drop it\)"),
        ({"weights": {"a": math.inf}}, r"the weight of condition 'a' is inf"),
    ):
        with pytest.raises(ConfigError, match=text):
            Keeping(**{"budget_bytes": 1, **knobs})


def test_rules_come_from_a_run_file():
    table = {"budget_bytes": 10**8, "policy": "balanced", "weights": {"nominal": 1, "old": 0}}
    rules = build(Keeping, table, "[store]")
    assert rules == Keeping(budget_bytes=10**8, weights={"nominal": 1.0, "old": 0.0})
    with pytest.raises(ConfigError, match=r"\[store\]: policy = 'fifo' is wrong"):
        build(Keeping, {**table, "policy": "fifo"}, "[store]")


def test_a_missing_segment_is_an_error(store):
    document, segments = store.to_segments()
    segments.popitem()
    with pytest.raises(DamagedError, match=r"segment .* of the stored state is missing"):
        LabelledStore.from_segments(document, segments)
