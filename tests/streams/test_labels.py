"""Labels late, partial, selected and noisy: by exactly what was asked for, event by event."""

import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.arrays import Ragged, concat
from stillfit.core.clock import Clock
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Labels, Notice
from stillfit.core.tables import build
from stillfit.streams.contract import InMemory
from stillfit.streams.guard import Guarded
from stillfit.streams.labels import Cut, Labelling


def dense(n: int, size: int, step: float = 10.0):
    """A stream of `n` events in blocks of `size`: label y is the id, class c its last digit."""
    events = []
    for first in range(0, n, size):
        ids = np.arange(first, min(first + size, n), dtype=np.int64)
        time = step * (first // size)
        events.append(Block(ids, {"x": ids.astype(np.float64), "m": np.zeros((len(ids), 2))}, time))
        targets = {"y": ids.astype(np.float64), "c": ids % 10, "b": ids % 2 == 0}
        events.append(Labels(ids, targets, time))
    return InMemory(events)


def told(stream) -> list[Labels]:
    return [event for event in stream.events() if isinstance(event, Labels)]


def by_id(stream) -> dict[str, np.ndarray]:
    """All labels of a stream, in order of ids."""
    parts = told(stream)
    ids = np.concatenate([part.ids for part in parts])
    targets = concat([part.targets for part in parts])
    order = np.argsort(ids)
    return {"ids": ids[order], **{name: values[order] for name, values in targets.items()}}


def test_without_knobs_the_stream_is_untouched(fills):
    events = list(Labelling().on(InMemory(fills)).events())
    assert all(a is b for a, b in zip(events, fills, strict=True))


# ---- delay


@given(delay=st.floats(0.0, 500.0), step=st.floats(0.5, 100.0))
def test_labels_come_exactly_the_delay_after_their_events(delay, step):
    source = dense(60, 5, step)
    stream = Labelling(delay=delay).on(source)
    clock = Clock()
    arrived: dict[int, float] = {}
    for event in stream.events():
        clock = clock.at(event.time)  # never goes back
        if isinstance(event, Labels):
            arrived.update({int(i): event.time for i in event.ids})
        else:
            # Everything that is due has come before a later event does.
            due = [b for b in source.items if isinstance(b, Block) and b.time + delay < event.time]
            assert sum(map(len, due)) <= len(arrived)
    seen = {int(i): b.time for b in source.items if isinstance(b, Block) for i in b.ids}
    assert arrived.keys() == seen.keys()
    assert all(arrived[i] == seen[i] + delay for i in seen)


def test_labels_of_a_fill_come_at_its_end_or_at_the_end_of_the_next(fills):
    for notices, behind in ((1, 0), (2, 1)):
        stream = Labelling(delay_notices=notices, delay_state="inter-fill").on(InMemory(fills))
        fill, in_fill, events_of, came_in = -1, {}, {}, {}
        for event in stream.events():
            if isinstance(event, Notice):
                fill += event.state == "stable-beams"
                in_fill = event.state
            elif isinstance(event, Block):
                events_of.update(dict.fromkeys(event.ids.tolist(), fill))
            else:
                assert in_fill == "inter-fill"
                came_in.update(dict.fromkeys(event.ids.tolist(), fill))
        assert all(came_in[i] == events_of[i] + behind for i in came_in)
        # The labels that wait for a notice that never comes do not come.
        assert {f for i, f in events_of.items() if i not in came_in} == set(range(3 - behind, 3))


def test_any_notice_counts_where_no_state_is_named(fills):
    stream = Labelling(delay_notices=1).on(InMemory(fills))
    events = list(stream.events())
    first = next(k for k, event in enumerate(events) if isinstance(event, Labels))
    assert events[first - 1] == Notice("inter-fill", events[first].time)


def test_a_delay_counts_from_the_last_notice(fills):
    at_once = Labelling(delay_notices=1, delay_state="inter-fill")
    later = Labelling(delay_notices=1, delay_state="inter-fill", delay=300.0)
    one, other = told(at_once.on(InMemory(fills))), told(later.on(InMemory(fills)))
    assert [labels.time + 300.0 for labels in one] == [labels.time for labels in other]


def test_waiting_labels_do_not_keep_a_larger_batch_alive():
    base = np.arange(1_000_000, dtype=np.float64)
    ids = np.arange(10, dtype=np.int64)
    source = InMemory([Block(ids, {"x": base[:10]}, 0.0), Labels(ids, {"y": base[:10]}, 0.0)])
    (labels,) = told(Labelling(delay=5.0).on(source))
    assert labels.targets["y"].base is None


# ---- fraction, loss, selection


def test_the_fraction_is_the_one_asked_for():
    n = 40_000
    for fraction in (0.0, 0.1, 0.5, 0.9, 1.0):
        kept = sum(map(len, told(Labelling(fraction=fraction).on(dense(n, 1000)))))
        assert abs(kept - fraction * n) <= 4 * math.sqrt(n * fraction * (1 - fraction))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10))
def test_what_happens_to_a_label_does_not_depend_on_block_size(one, other, seed):
    labelling = Labelling(
        fraction=0.6,
        loss=0.2,
        loss_run=7,
        selection=Cut(column="x", above=20.0, at_most=300.0),
        noise={"y": 2.0},
        flip={"c": 0.3, "b": 0.3},
        classes={"c": 10},
        seed=seed,
    )
    a, b = (by_id(labelling.on(dense(400, size))) for size in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_another_seed_is_another_draw_and_the_same_one_is_not():
    draws = [by_id(Labelling(fraction=0.5, seed=s).on(dense(500, 50)))["ids"] for s in (1, 2, 1)]
    np.testing.assert_array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[1])


def test_neighbours_get_lost_together():
    ids = by_id(Labelling(loss=0.3, loss_run=50).on(dense(20_000, 500)))["ids"]
    runs, counts = np.unique(ids // 50, return_counts=True)
    assert set(counts) == {50}
    assert abs(len(runs) - 280) <= 4 * math.sqrt(400 * 0.3 * 0.7)


def test_fraction_and_loss_are_independent():
    n = 40_000
    kept = sum(map(len, told(Labelling(fraction=0.5, loss=0.5).on(dense(n, 1000)))))
    assert abs(kept - n / 4) <= 4 * math.sqrt(n * 3 / 16)


def test_only_selected_events_are_labelled():
    selected = by_id(Labelling(selection=Cut(column="x", above=9.0, at_most=12.0)).on(dense(50, 7)))
    assert selected["ids"].tolist() == [10, 11, 12]


def test_tracks_are_selected_by_a_number_of_their_event(make_pair):
    block, _ = make_pair(n=200)
    pt = block.inputs["pt"]
    lists = np.split(pt.values.astype(np.float64), pt.offsets[1:-1])
    expected = {
        "sum": [part.sum() for part in lists],
        "max": [part.max(initial=0.0) for part in lists],
        "mean": [part.mean() if len(part) else 0.0 for part in lists],
        "count": [len(part) for part in lists],
    }
    for of, values in expected.items():
        cut = Cut(column="pt", above=float(np.median(values)), of=of)
        np.testing.assert_array_equal(cut.keep(block), np.array(values) > cut.above)
    assert not Cut(column="pt", of="max").keep(block.take(slice(0, 0))).any()


def test_a_selector_may_be_any_object():
    class EverySecond:
        def keep(self, block):
            return block.ids % 2 == 0

    stream = Labelling().on(dense(10, 4), select=EverySecond())
    assert by_id(stream)["ids"].tolist() == [0, 2, 4, 6, 8]


def test_labels_without_events_left_are_not_sent():
    assert not told(Labelling(fraction=0.0).on(dense(50, 10)))
    guarded = Guarded(Labelling(fraction=0.02).on(dense(500, 5)))
    list(guarded.events())
    assert guarded.set_aside.total == 0


# ---- noise


def test_noise_is_gaussian_with_the_width_asked_for():
    from scipy import stats

    noisy = by_id(Labelling(noise={"y": 3.0}).on(dense(20_000, 500)))
    error = noisy["y"] - noisy["ids"]
    assert stats.kstest(error / 3.0, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(error[1:], error[:-1])[0, 1]) < 4 / math.sqrt(20_000)


def test_noise_of_every_number_of_a_matrix_is_its_own():
    ids = np.arange(4000, dtype=np.int64)
    source = InMemory([Block(ids, {"x": ids}, 0.0), Labels(ids, {"m": np.zeros((4000, 3))}, 0.0)])
    noise = by_id(Labelling(noise={"m": 1.0}).on(source))["m"]
    assert noise.shape == (4000, 3)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 4 / math.sqrt(4000)


def test_no_noise_is_no_noise():
    plain = by_id(Labelling(noise={"y": 0.0}, flip={"c": 0.0}).on(dense(50, 5)))
    np.testing.assert_array_equal(plain["y"], plain["ids"])
    np.testing.assert_array_equal(plain["c"], plain["ids"] % 10)


def test_classes_flip_to_all_others_equally_often():
    n = 40_000
    flipped = by_id(Labelling(flip={"c": 0.4}, classes={"c": 10}).on(dense(n, 1000)))
    step = (flipped["c"] - flipped["ids"]) % 10
    counts = np.bincount(step, minlength=10) / n
    assert flipped["c"].dtype == np.int64
    assert abs(counts[0] - 0.6) < 4 * math.sqrt(0.24 / n)
    assert np.abs(counts[1:] - 0.4 / 9).max() < 4 * math.sqrt(0.0444 * 0.9556 / n)


def test_a_binary_target_flips_always_with_probability_one():
    flipped = by_id(Labelling(flip={"b": 1.0}).on(dense(50, 7)))
    np.testing.assert_array_equal(flipped["b"], flipped["ids"] % 2 == 1)
    assert flipped["b"].dtype == np.bool_


def test_tracks_flip_one_by_one(make_pair):
    block, labels = make_pair(n=2000)
    flip = Labelling(flip={"is_pv": 0.25})
    (noisy,) = told(flip.on(InMemory([block, labels])))
    before, after = labels.targets["is_pv"], noisy.targets["is_pv"]
    assert isinstance(after, Ragged) and after.values.dtype == before.values.dtype
    np.testing.assert_array_equal(before.offsets, after.offsets)
    changed = (before.values != after.values).mean()
    assert abs(changed - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(after.values))
    # An event keeps its flips when it comes in another block.
    half = labels.take(np.arange(500, 600))
    (again,) = told(flip.on(InMemory([block, half])))
    np.testing.assert_array_equal(again.targets["is_pv"].values, after[500:600].values)


def test_a_distortion_sees_the_event_and_only_the_event(make_pair):
    class SharesTheFault:
        """Offline labels shifted by a tenth of the event's own track count."""

        seen: ClassVar[list[int]] = []

        def distorted(self, block, targets):
            self.seen.extend(block.ids.tolist())
            shift = 0.1 * block.inputs["pt"].counts
            return {**targets, "z0": (targets["z0"] + shift).astype(np.float32)}

    block, labels = make_pair(n=40)
    later = make_pair(first=40, n=5, time=1.0)
    stream = Labelling(fraction=0.5).on(InMemory([block, labels, *later]), distort=SharesTheFault())
    parts = told(stream)
    assert SharesTheFault.seen == [i for part in parts for i in part.ids.tolist()]
    rows = parts[0].ids
    expected = labels.targets["z0"][rows] + 0.1 * block.inputs["pt"].counts[rows]
    np.testing.assert_allclose(parts[0].targets["z0"], expected, rtol=1e-5)


def test_labels_that_come_too_late_to_be_selected_are_an_error():
    source = dense(100, 10)
    late = InMemory(list(Labelling(delay=80.0).on(source).events()))
    with pytest.raises(
        DataError,
        match=r"10 of 10 labels at 80.000 s belong to none of the last 4 blocks, and cannot be "
        r"selected or distorted .* put the selection next to the source",
    ):
        told(Labelling(selection=Cut(column="x")).on(late))


def test_labels_a_few_blocks_late_can_still_be_selected():
    late = InMemory(list(Labelling(delay=25.0).on(dense(100, 10)).events()))
    stream = Labelling(selection=Cut(column="x", above=89.0)).on(late)
    assert by_id(stream)["ids"].tolist() == list(range(90, 100))


# ---- errors


def test_knobs_that_make_no_sense_are_refused():
    for knobs, text in (
        ({"delay": -1.0}, r"labels cannot come before their events: delay = -1.0 s"),
        ({"delay": math.inf}, r"delay = inf s"),
        ({"delay_notices": -1}, r"delay_notices = -1; give 0 or more"),
        ({"fraction": 1.5}, r"fraction = 1.5 is no probability; give 0 to 1"),
        ({"loss": -0.1}, r"loss = -0.1 is no probability"),
        ({"flip": {"b": 2.0}}, r"flip.b = 2.0 is no probability"),
        ({"noise": {"y": -1.0}}, r"noise.y = -1.0 is no standard deviation"),
        ({"loss_run": 0}, r"loss_run = 0 must be at least 1"),
        ({"classes": {"c": 1}}, r"have at least 2 classes"),
    ):
        with pytest.raises(ConfigError, match=text):
            Labelling(**knobs)


def test_targets_and_columns_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match=r"noise for the target 'yy', which the labels do not"):
        told(Labelling(noise={"yy": 1.0}).on(dense(10, 5)))
    with pytest.raises(ConfigError, match=r"selected by 'xx', which the stream does not have"):
        told(Labelling(selection=Cut(column="xx")).on(dense(10, 5)))
    with pytest.raises(ConfigError, match=r"'m', which has \(2,\) numbers per event"):
        told(Labelling(selection=Cut(column="m")).on(dense(10, 5)))
    with pytest.raises(ConfigError, match=r"target 'c' is int64 and cannot take Gaussian noise"):
        told(Labelling(noise={"c": 1.0}).on(dense(10, 5)))
    source = dense(10, 5)
    blurred = Labelling(noise={"y": 1.0}).on(source)
    with pytest.raises(ConfigError, match=r"target 'y' is no class .* cannot be flipped; use `noi"):
        told(Labelling(flip={"y": 0.5}).on(blurred))


def test_a_distortion_that_loses_a_target_is_an_error():
    class Loses:
        def distorted(self, block, targets):
            return {"y": targets["y"]}

    with pytest.raises(DataError, match=r"turned the targets b, c, y into y; it must return the"):
        told(Labelling().on(dense(10, 5), distort=Loses()))


def test_the_knobs_come_from_a_run_file():
    table = {
        "delay_notices": 1,
        "delay_state": "inter-fill",
        "fraction": 1,
        "selection": {"column": "pt", "of": "sum", "above": 400},
        "noise": {"z0": 0.005},
    }
    assert build(Labelling, table, "[labels]") == Labelling(
        delay_notices=1,
        delay_state="inter-fill",
        selection=Cut(column="pt", of="sum", above=400.0),
        noise={"z0": 0.005},
    )
