"""Replay buffers: who stays, what it costs, what comes out, and that nothing given is changed."""

import json

import numpy as np
import pytest

from stillfit.core.arrays import Ragged, n_bytes
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.registry.tensors import encode
from stillfit.updaters.replay import (
    Buffer,
    Hard,
    Replay,
    Reservoir,
    Ring,
    pack,
    reservoir_slots,
    unpack,
)
from stillfit.updaters.replay.keep import NOTHING
from stillfit.updaters.replay.pages import PAGE


def rng(seed=0):
    return np.random.default_rng(seed)


def events(ids, conditions="all", seed=0, ragged=True, features=3, dtype=np.float64):
    """Events whose content is a function of their id, so that rows can be checked whole."""
    ids = np.asarray(ids, np.int64)
    names = np.full(len(ids), conditions) if isinstance(conditions, str) else conditions
    x = (ids[:, None] * 0.5 + np.arange(features)).astype(dtype)
    inputs = {"x": x}
    targets = {"y": ids * 2.0, "c": ids % 3}
    if ragged:
        tracks = Ragged.from_counts(np.repeat(ids * 1.0, ids % 4), ids % 4)
        inputs["t"] = tracks
        targets["p"] = tracks.with_values(tracks.values.astype(np.float32) * 3)
    return Examples(ids, inputs, targets, ids * 0.1, np.asarray(names, np.str_))


def same_events(one, other):
    assert_bytes(one.to_arrays(), other.to_arrays())


def assert_bytes(one, other):
    assert set(one) == set(other)
    for name, part in one.items():
        np.testing.assert_array_equal(part, other[name], err_msg=name)
        assert part.dtype == other[name].dtype, name


def frozen(flat):
    return {name: part.copy() for name, part in flat.items()}


def naive(capacity, keep, parts, seed):
    """The first release's buffer, which copies all events at every arrival: the oracle."""
    generator, buffer, seen = rng(seed), Examples.empty(), {}
    for arriving in parts:
        for condition in np.unique(arriving.conditions):
            part = arriving.where(str(condition))
            group = str(condition) if keep == "balanced" else "all"
            groups, kept = sorted({*seen, group}), []
            share = capacity // len(groups)
            for name in groups:
                held = buffer if keep == "reservoir" else buffer.where(name)
                if name == group:
                    before = seen.get(name, 0)
                    slots = reservoir_slots(len(held), before, len(part), share, generator)
                    stays = np.setdiff1d(np.arange(len(held)), slots[slots >= 0])
                    last = {int(slot): row for row, slot in enumerate(slots) if slot >= 0}
                    rows = np.array(sorted(last.values()), np.int64)
                    held = Examples.join([held.take(stays), part.take(rows)])
                if len(held) > share:
                    held = held.take(np.sort(generator.choice(len(held), share, replace=False)))
                kept.append(held)
            buffer = Examples.join(kept)
            seen = {**seen, group: seen.get(group, 0) + len(part)}
    return buffer, seen


def stream(capacity, seed, parts=18):
    generator, first, found = rng(seed), 0, []
    for number in range(parts):
        n = int(generator.integers(0, capacity // 2 + 3))
        names = generator.choice(["b", "a", "c/d"][: 1 + number // 6], n)
        found.append(events(np.arange(first, first + n), names))
        first += n
    return found


# -- the same events as ever ----------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["reservoir", "balanced"])
@pytest.mark.parametrize("capacity", [0, 2, 40, PAGE + 300])
def test_the_events_kept_and_their_order_are_those_of_copying_everything(keep, capacity):
    parts = stream(capacity, seed=capacity)
    want, seen = naive(capacity, keep, parts, seed=5)
    generator, learner = rng(5), {}
    replay = Replay(capacity=capacity, keep=keep)
    for part in parts:
        learner = replay.observe(learner, part, rng=generator)
    buffer, counts = unpack(learner)
    assert counts == seen
    assert len(buffer) == len(want)
    if len(want):
        same_events(buffer, want)


@pytest.mark.parametrize("keep", ["reservoir", "balanced"])
def test_a_state_of_the_first_release_goes_on_as_it_would_have(keep):
    parts = stream(40, seed=1)
    want, seen = naive(40, keep, parts[:-1], seed=2)
    replay, generator = Replay(capacity=40, keep=keep), rng(2)
    learner = {}
    for part in parts[:-1]:
        learner = replay.observe(learner, part, rng=generator)
    old = pack(want, seen)
    assert "buffer/ids" in old
    one = replay.observe(old, parts[-1], rng=rng(7))
    other = replay.observe(learner, parts[-1], rng=rng(7))
    same_events(unpack(one)[0], unpack(other)[0])
    assert unpack(one)[1] == unpack(other)[1]


@pytest.mark.parametrize(
    "rule",
    [
        Reservoir(capacity=50),
        Reservoir(capacity=50, by="condition"),
        Reservoir(capacity=50, by="c"),
        Ring(capacity=50),
        Hard(capacity=50),
    ],
    ids=repr,
)
@pytest.mark.parametrize("bits", [0, 8])
def test_a_buffer_that_is_stored_and_opened_between_arrivals_is_the_same_as_one_kept_open(
    rule, bits
):
    parts = stream(50, seed=3)
    through, whole = rng(1), rng(1)
    kept, learner = Buffer(rule, bits), {}
    for number, part in enumerate(parts):
        kept.add(part, whole)
        buffer = Buffer.open(learner, rule, bits)
        buffer.add(part, through)
        if number == 9:
            for each in (kept, buffer):
                each.note({"loss": np.sin(each.ids).astype(np.float32)})
        learner = frozen(buffer.to_arrays())
        same_events(buffer.examples(), kept.examples())
    assert_bytes(kept.to_arrays(), learner)
    np.testing.assert_array_equal(kept.noted("loss"), buffer.noted("loss"))


def test_adding_changes_no_state_that_was_given_or_handed_out():
    rule, generator = Reservoir(capacity=PAGE + 10, by="condition"), rng(0)
    buffer, states = Buffer(rule), []
    for part in stream(PAGE, seed=2):
        buffer.add(part, generator)
        if len(buffer):
            buffer.note({"z": np.cos(buffer.ids)})
        state = buffer.to_arrays()
        states.append((state, frozen(state)))
    for state, copy in states:
        assert_bytes(state, copy)


def test_an_arrival_copies_the_pages_that_it_touches_and_shares_the_others():
    replay = Replay(capacity=8 * PAGE)
    learner = replay.observe({}, events(np.arange(8 * PAGE), ragged=False), rng=rng(0))
    # The 8193rd event enters with probability 1/2 or so; take a draw where one does.
    after = replay.observe(learner, events([9_999_998, 9_999_999], ragged=False), rng=rng(1))
    shared = [name for name in learner if after[name] is learner[name]]
    pages = {name.split("/")[1] for name in shared if name.endswith("inputs/x")}
    assert 6 <= len(pages) < 8
    old, new = unpack(learner)[0], unpack(after)[0]
    assert len(np.setdiff1d(old.ids, new.ids)) == 8 - len(pages)


def test_the_parts_of_a_state_can_be_stored():
    buffer = Buffer(Reservoir(capacity=30), 8)
    buffer.add(events(np.arange(100), ["u", "v"] * 50), rng(0))
    buffer.note({"r": Ragged.from_counts(np.ones(30), np.ones(30, np.int64))})
    assert encode(buffer.to_arrays(), "learner")


# -- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1.06), (np.float32, 1.1)])
def test_memory_is_the_bytes_of_the_events_and_little_more(dtype, most):
    n = 20_000
    part = events(np.arange(n), ragged=False, features=64, dtype=dtype)
    part = Examples(
        part.ids, part.inputs, {"y": part.inputs["x"][:, 0]}, part.times, part.conditions
    )
    learner = Replay(capacity=n).observe({}, part, rng=rng(0))
    assert n_bytes(learner) <= most * n * 64 * np.dtype(dtype).itemsize
    item = np.dtype(dtype).itemsize
    order = 2  # n < 65536
    rows = n * (64 * item + item + 8 + 8 + 1 + order)
    assert rows <= n_bytes(learner) <= rows + 200


def test_memory_is_bounded_on_a_long_stream_ragged_events_included():
    rule, generator, sizes = Reservoir(capacity=64), rng(0), []
    buffer = Buffer(rule)
    for first in range(0, 6000, 20):
        buffer.add(events(np.arange(first, first + 20)), generator)
        sizes.append(buffer.nbytes)
    assert max(sizes[50:]) <= 2 * min(sizes[50:])
    state = buffer.to_arrays()
    items = sum(len(state[f"buffer/0/{name}"]) for name in ("inputs/t", "targets/p"))
    assert items == 2 * int((buffer.ids % 4).sum())


def test_quantised_inputs_take_a_byte_each():
    part = events(np.arange(5000), ragged=False, features=64, dtype=np.float32)
    plain = n_bytes(Replay(capacity=5000).observe({}, part, rng=rng(0)))
    for bits, size in ((8, 1), (16, 2)):
        learner = Replay(capacity=5000, bits=bits).observe({}, part, rng=rng(0))
        saved = 5000 * 64 * (4 - size)
        scales = 5 * 64 * 16
        assert n_bytes(learner) == plain - saved + scales


# -- quantised exemplars --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_quantised_input_is_off_by_half_a_step_and_targets_not_at_all(bits, dtype):
    x = rng(0).normal(size=(400, 3)) * np.array([1e-3, 1.0, 1e4])
    part = events(np.arange(400))
    part = Examples(
        part.ids,
        {"x": x.astype(dtype), "t": part.inputs["t"]},
        part.targets,
        part.times,
        part.conditions,
    )
    buffer = Buffer(Reservoir(capacity=400), bits)
    buffer.add(part, rng(0))
    back = buffer.examples()
    step = np.ptp(x, axis=0) / (2**bits - 1)
    away = np.abs(back.inputs["x"] - part.inputs["x"]).max(0)
    assert (away <= step * 0.5 * (1 + 1e-3) + np.abs(x).max(0) * np.finfo(dtype).eps).all()
    assert back.inputs["x"].dtype == dtype
    tracks = part.inputs["t"].values
    half = np.ptp(tracks) / (2**bits - 1) / 2
    assert np.abs(back.inputs["t"].values - tracks).max() <= half * 1.001
    for name in ("y", "c"):
        np.testing.assert_array_equal(back.targets[name], part.targets[name])
    np.testing.assert_array_equal(back.targets["p"].values, part.targets["p"].values)


def test_grey_levels_survive_eight_bits():
    x = np.arange(256, dtype=np.float32)[:, None].repeat(2, 1) / np.float32(255)
    part = events(np.arange(256), ragged=False)
    part = Examples(part.ids, {"x": x}, part.targets, part.times, part.conditions)
    buffer = Buffer(Reservoir(capacity=256), 8)
    buffer.add(part, rng(0))
    np.testing.assert_allclose(buffer.examples().inputs["x"], x, atol=1e-7)


def test_a_range_that_grows_rounds_again_and_stays_within_a_step():
    """Arrivals ever farther out, on both sides; a constant column stays exact until it moves."""
    generator, first, known = rng(4), 0, {}
    buffer = Buffer(Reservoir(capacity=500), 8)
    for scale in (1.0, 1.0, 3.0, 3.5, 40.0, 41.0, 1e3):
        x = np.stack([generator.normal(size=40) * scale, np.full(40, 7.25)], 1)
        ids = np.arange(first, first + 40)
        first += 40
        known |= dict(zip(ids.tolist(), x, strict=True))
        part = Examples(ids, {"x": x}, {"y": ids}, ids * 1.0, np.full(40, "all"))
        buffer.add(part, generator)
    held = buffer.examples()
    true = np.stack([known[i] for i in held.ids.tolist()])
    step = buffer.to_arrays()["buffer/0/inputs/x#step"]
    assert (np.abs(held.inputs["x"] - true) <= step * (1 + 1e-9)).all()
    np.testing.assert_array_equal(held.inputs["x"][:, 1], 7.25)
    assert step[0] <= 4 * np.ptp(true[:, 0]) / 255


def test_whole_numbers_are_not_quantised():
    part = events(np.arange(10), ragged=False)
    part = Examples(
        part.ids, {"x": part.ids * 70_000}, part.targets, part.times, part.conditions
    )  # fmt: skip
    buffer = Buffer(Reservoir(capacity=10), 8)
    buffer.add(part, rng(0))
    np.testing.assert_array_equal(buffer.examples().inputs["x"], part.ids * 70_000)


# -- who stays ------------------------------------------------------------------------------------


def test_a_ring_holds_the_newest_of_each_group():
    generator = rng(0)
    buffer = Buffer(Ring(capacity=30))
    last = {"a": [], "b": [], "c/d": []}
    for part in stream(30, seed=6):
        buffer.add(part, generator)
        for name, ids in last.items():
            ids += part.where(name).ids.tolist()
    held = buffer.examples()
    assert buffer.groups == {"a": 10, "b": 10, "c/d": 10}
    for name, ids in last.items():
        assert held.where(name).ids.tolist() == ids[-10:]


def test_a_ring_of_one_group_is_first_in_first_out_and_draws_nothing():
    generator = rng(0)
    before = generator.bit_generator.state
    buffer = Buffer(Ring(capacity=7, by=""))
    for first in range(0, 60, 5):
        buffer.add(events(np.arange(first, first + 5)), generator)
    assert buffer.ids.tolist() == list(range(53, 60))
    assert generator.bit_generator.state == before


def test_classes_of_a_target_have_equal_shares_whatever_their_number():
    ids = np.arange(3000)
    classes = np.where(ids % 100 == 0, 2, np.where(ids % 10 == 0, 1, 0))
    part = Examples(ids, {"x": ids * 1.0}, {"y": classes}, ids * 1.0, np.full(3000, "all"))
    for values in (classes, classes.astype(np.float32), classes == 0):
        typed = Examples(ids, part.inputs, {"y": values}, part.times, part.conditions)
        buffer = Buffer(Reservoir(capacity=90, by="y"))
        for cut in np.array_split(ids, 17):
            buffer.add(typed.take(cut), rng(1))
        groups = len(np.unique(values))
        assert set(buffer.groups.values()) == ({30} if groups == 3 else {45})
        assert set(buffer.groups) == {str(int(v)) for v in np.unique(values)}


def test_hardness_zero_is_the_reservoir_and_more_keeps_harder_events():
    def filled(rule, note):
        generator, buffer = rng(3), Buffer(rule)
        for first in range(0, 3000, 100):
            buffer.add(events(np.arange(first, first + 100), ragged=False), generator)
            if note:
                buffer.note({"loss": (buffer.ids % 10).astype(np.float32)})
        return buffer.ids

    plain = filled(Reservoir(capacity=200), False)
    np.testing.assert_array_equal(filled(Hard(capacity=200, hardness=0.0), True), plain)
    # Without a loss all are alike.
    np.testing.assert_array_equal(filled(Hard(capacity=200, hardness=9.0), False), plain)
    mean = [(filled(Hard(capacity=200, hardness=h), True) % 10).mean() for h in (0, 2, 6)]
    assert 4 < mean[0] < 5 < mean[1] < mean[2]


def test_as_many_leave_a_hard_buffer_as_leave_a_reservoir():
    rule, plain = Hard(capacity=40, hardness=50.0), Reservoir(capacity=40)
    held = rule.admit(NOTHING, "all", np.arange(40), rng(0))
    other = plain.admit(NOTHING, "all", np.arange(40), rng(0))
    for n in (1, 40, 400):
        rows = 1000 * n + np.arange(n)
        held = rule.admit(held, "all", rows, rng(n), lambda rows: (rows % 7) / 7)
        other = plain.admit(other, "all", rows, rng(n))
        for each in (held, other):
            assert len(each) == 40
        assert np.isin(rows, held.order).sum() == np.isin(rows, other.order).sum()


def test_the_rule_with_great_hardness_lets_the_easiest_go_first():
    rule = Hard(capacity=30, hardness=1e4)
    held = rule.admit(NOTHING, "all", np.arange(30), rng(0))
    after = rule.admit(held, "all", 100 + np.arange(20), rng(1), lambda rows: rows / 100)
    gone = np.setdiff1d(held.order, after.order)
    assert 0 < len(gone) < 30
    assert gone.tolist() == list(range(len(gone)))


# -- what comes out -------------------------------------------------------------------------------


def test_a_draw_holds_different_events_each_as_it_came():
    buffer = Buffer(Reservoir(capacity=2 * PAGE))
    buffer.add(events(np.arange(3 * PAGE), np.repeat(["a", "b", "c"], PAGE)), rng(0))
    assert len(buffer) == 2 * PAGE
    for n in (1, 10, PAGE, 5 * PAGE):
        drawn = buffer.draw(n, rng(n))
        assert len(drawn) == min(n, 2 * PAGE) == len(np.unique(drawn.ids))
        want = events(drawn.ids, np.array(["a", "b", "c"])[drawn.ids // PAGE])
        same_events(drawn, want)
    held = buffer.examples()
    same_events(held, events(buffer.ids, np.array(["a", "b", "c"])[buffer.ids // PAGE]))
    assert held.inputs["t"].offsets is held.targets["p"].offsets


def test_columns_of_ones_own_stay_with_their_events_and_are_blank_for_new_ones():
    buffer = Buffer(Reservoir(capacity=60))
    buffer.add(events(np.arange(40)), rng(0))
    assert buffer.noted("z") is None
    counts = buffer.ids % 3
    ragged = Ragged.from_counts(np.repeat(buffer.ids, counts) * 1.0, counts)
    buffer.note({"z": np.stack([buffer.ids, -buffer.ids], 1) * 1.0, "n": buffer.ids, "r": ragged})
    buffer.note({"z": np.full((2, 2), 5.0)}, np.array([3, 1]))
    marked = set(buffer.ids[[3, 1]].tolist())
    known = set(buffer.ids.tolist())
    for first in range(40, 1000, 30):
        buffer.add(events(np.arange(first, first + 30)), rng(first))
    z, n, r = (buffer.noted(name) for name in ("z", "n", "r"))
    survivors = 0
    for row, i in enumerate(buffer.ids.tolist()):
        if i in known:
            survivors += 1
            want = [5.0, 5.0] if i in marked else [i, -i]
            assert z[row].tolist() == want
            assert n[row] == i
            assert r[np.array([row])].values.tolist() == [i] * (i % 3)
        else:
            assert np.isnan(z[row]).all()
            assert n[row] == 0
            assert r.counts[row] == 0
    assert 0 < survivors < 40
    assert "x" in buffer.examples().inputs
    assert set(buffer.examples().inputs) == {"x", "t"}


def test_more_than_255_conditions_keep_their_names():
    ids = np.arange(700)
    names = np.array([f"run {i:04d}" for i in ids])
    buffer = Buffer(Reservoir(capacity=700))
    for cut in np.array_split(ids, 9):
        buffer.add(events(cut, names[cut]), rng(0))
    held = buffer.examples()
    np.testing.assert_array_equal(held.conditions, names[held.ids])


def test_a_type_that_grows_is_kept():
    buffer = Buffer(Reservoir(capacity=9))
    buffer.add(events(np.arange(3), ragged=False, dtype=np.float32), rng(0))
    buffer.add(events(np.arange(3, 6), ragged=False, dtype=np.float64) , rng(0))  # fmt: skip
    assert buffer.examples().inputs["x"].dtype == np.float64
    np.testing.assert_array_equal(buffer.examples().inputs["x"][:, 0], buffer.ids * 0.5)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["x", "t", "y", "p"])
def test_an_event_that_is_not_finite_is_neither_kept_nor_counted(bad, column):
    part = events(np.arange(1, 40))
    inputs, targets = dict(part.inputs), dict(part.targets)
    where = inputs if column in inputs else targets
    old = where[column]
    if isinstance(old, Ragged):
        values = old.values.copy()
        values[old.offsets[17] : old.offsets[18]] = bad
        assert part.ids[17] % 4
        where[column] = old.with_values(values)
    else:
        where[column] = old.copy()
        where[column][17] = bad
    buffer = Buffer(Reservoir(capacity=100))
    buffer.add(Examples(part.ids, inputs, targets, part.times, part.conditions), rng(0))
    assert buffer.seen == {"all": 38}
    assert buffer.ids.tolist() == np.delete(part.ids, 17).tolist()


def test_numbers_whose_sum_overflows_are_finite():
    ids = np.arange(4)
    part = Examples(ids, {"x": np.full(4, 1e308)}, {}, ids * 1.0, np.full(4, "all"))
    buffer = Buffer(Reservoir(capacity=4))
    buffer.add(part, rng(0))
    assert len(buffer) == 4


@pytest.mark.parametrize("rule", [Reservoir(capacity=5, by="y"), Ring(capacity=5, by="y")])
def test_an_empty_arrival_has_no_classes_to_be_balanced_by(rule):
    buffer = Buffer(rule)
    buffer.add(Examples.empty(), rng(0))
    assert len(buffer) == 0 and buffer.groups == {}


def test_an_empty_arrival_changes_nothing_and_a_batch_of_one_is_kept():
    buffer = Buffer(Reservoir(capacity=5))
    buffer.add(Examples.empty(), rng(0))
    assert len(buffer) == 0
    assert len(buffer.examples()) == len(buffer.draw(3, rng(0))) == len(buffer.ids) == 0
    buffer.note({"z": np.zeros(0)})
    buffer.add(events([4]), rng(0))
    same_events(buffer.examples(), events([4]))
    assert unpack(Buffer(Reservoir()).to_arrays())[1] == {}


def test_a_capacity_of_none_keeps_none_and_fewer_places_than_groups_leave_no_share():
    for rule in (Reservoir(capacity=0), Ring(capacity=0), Hard(capacity=0)):
        buffer = Buffer(rule)
        buffer.add(events(np.arange(9)), rng(0))
        assert len(buffer) == 0
        assert buffer.seen == {"all": 9}
    buffer = Buffer(Ring(capacity=2))
    buffer.add(events(np.arange(9), ["a", "b", "c"] * 3), rng(0))
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("part", "error", "text"),
    [
        (
            events(np.arange(3), ragged=False),
            ShapeError,
            r"the buffer and the events that arrive differ in inputs/t, targets/p; was the feature "
            r"list changed\? begin the learner anew",
        ),
        (
            events(np.arange(3), features=5),
            ShapeError,
            r"column 'inputs/x' is stored with rows of shape \(3,\) and arrives with \(5,\); was "
            r"the feature list changed\?",
        ),
    ],
)
def test_other_columns_are_an_error_that_names_them(part, error, text):
    buffer = Buffer(Reservoir(capacity=20))
    buffer.add(events(np.arange(9)), rng(0))
    with pytest.raises(error, match=text):
        buffer.add(part, rng(0))


def test_a_column_that_turns_ragged_is_an_error():
    buffer = Buffer(Reservoir(capacity=20))
    part = events(np.arange(9))
    buffer.add(part, rng(0))
    dense = Examples(
        part.ids, {**part.inputs, "t": part.ids * 1.0}, part.targets, part.times, part.conditions
    )
    with pytest.raises(ShapeError, match=r"'inputs/t' is ragged in some arrivals and dense in oth"):
        buffer.add(dense, rng(0))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Reservoir(capacity=-1), ConfigError, "capacity must be 0 events or more, got -1"),
        (
            lambda: Hard(hardness=-0.5),
            ConfigError,
            r"hardness must be finite and 0 or more, got -0",
        ),
        (lambda: Hard(hardness=np.inf), ConfigError, r"hardness must be finite and 0 or more"),
        (
            lambda: Buffer(Reservoir(), 4),
            ConfigError,
            "bits must be 0 .as they are., 8 or 16, got 4",
        ),
    ],
)
def test_knobs_without_sense_are_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("by", "text"),
    [
        ("z", r"to be balanced by 'z' and the labels hold c, p, y; name a target, or 'condition'"),
        ("p", r"groups need one class per event; the target 'p' is something else"),
        ("h", r"needs? classes and the target 'h' holds 0\.5; for numbers balance by 'condition'"),
    ],
)
def test_groups_need_a_target_of_classes(by, text):
    part = events(np.arange(5))
    targets = {**part.targets, **({"h": part.ids * 0.5} if by == "h" else {})}
    part = Examples(part.ids, part.inputs, targets, part.times, part.conditions)
    with pytest.raises(DataError, match=text):
        Buffer(Reservoir(by=by)).add(part, rng(0))


def test_texts_and_odd_names_are_refused():
    part = events(np.arange(3), ragged=False)
    texts = Examples(part.ids, {"x": np.array(["a"] * 3)}, {}, part.times, part.conditions)
    with pytest.raises(DataError, match=r"a buffer keeps numbers, got a column of <U1"):
        Buffer(Reservoir()).add(texts, rng(0))
    odd = Examples(part.ids, {"x#1": part.ids}, {}, part.times, part.conditions)
    with pytest.raises(DataError, match=r"must not have '#' in its name, got 'x#1'"):
        Buffer(Reservoir()).add(odd, rng(0))


def test_names_of_conditions_are_stored_as_text_not_code():
    buffer = Buffer(Reservoir(capacity=5))
    buffer.add(events(np.arange(3), "süß"), rng(0))
    assert json.loads(buffer.to_arrays()["buffer/names"].tobytes()) == ["süß"]
    assert buffer.examples().conditions.tolist() == ["süß"] * 3
