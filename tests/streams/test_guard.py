"""The guard: what cannot be used is set aside and counted, the rest comes through untouched."""

import json

import numpy as np
import pytest

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Block, Labels, Notice
from stillfit.streams import guard
from stillfit.streams.contract import InMemory
from stillfit.streams.guard import Guarded, GuardPolicy, SetAside


def block(ids, time=0.0, **columns):
    ids = np.asarray(ids, np.int64)
    return Block(ids, columns or {"x": ids.astype(np.float32)}, time)


def labels(ids, time=0.0, y=None):
    ids = np.asarray(ids, np.int64)
    return Labels(ids, {"y": ids.astype(np.float32) if y is None else np.asarray(y)}, time)


def run(*events, **policy):
    guarded = Guarded(InMemory(events), GuardPolicy(**policy))
    return list(guarded.events()), guarded.set_aside


def ids_of(events, kind=Block):
    return [event.ids.tolist() for event in events if isinstance(event, kind)]


def test_a_sound_stream_comes_through_untouched(fills):
    guarded = Guarded(InMemory(fills), GuardPolicy(padding=100))
    assert all(a is b for a, b in zip(guarded.events(), fills, strict=True))
    assert guarded.set_aside == SetAside()
    assert str(guarded.set_aside) == "nothing was set aside"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_events_that_are_not_finite_are_set_aside(bad):
    x = np.arange(5, dtype=np.float32)
    x[3] = bad
    events, report = run(block(range(5), x=x, k=np.arange(5)))
    assert ids_of(events) == [[0, 1, 2, 4]]
    assert report.counts == {guard.NOT_FINITE: 1}
    assert report.first[guard.NOT_FINITE].startswith(f"event 3: column 'x' holds {x[3]} at (3,)")


def test_one_bad_track_sets_its_event_aside_and_no_other():
    pt = np.ones(6, np.float32)
    pt[[1, 2]] = np.nan
    events, report = run(block(range(4), pt=Ragged.from_counts(pt, np.array([1, 2, 0, 3]))))
    assert ids_of(events) == [[0, 2, 3]]
    assert events[0].inputs["pt"].counts.tolist() == [1, 0, 3]
    assert report.counts == {guard.NOT_FINITE: 1}


def test_a_bad_number_in_a_matrix_sets_its_row_aside():
    x = np.zeros((3, 4))
    x[1, 2] = np.inf
    events, _ = run(block(range(3), x=x))
    assert ids_of(events) == [[0, 2]]


def test_a_block_of_which_nothing_is_left_does_not_come():
    events, report = run(block([1, 2], x=np.full(2, np.nan)), block([3]))
    assert ids_of(events) == [[3]]
    assert report.counts == {guard.NOT_FINITE: 2}


def test_duplicate_ids_and_ids_out_of_order_are_told_apart():
    events, report = run(block([10, 11, 20]), block([11, 15, 21, 22], time=1.0))
    assert ids_of(events) == [[10, 11, 20], [21, 22]]
    assert report.counts == {guard.DUPLICATE: 1, guard.ID_ORDER: 1}
    assert report.first[guard.DUPLICATE] == "event 11 after event 20"
    assert report.first[guard.ID_ORDER] == "event 15 after event 20"


def test_a_block_that_comes_twice_is_set_aside_as_a_whole():
    events, report = run(block([1, 2, 3]), block([1, 2, 3]))
    assert ids_of(events) == [[1, 2, 3]]
    assert report.counts == {guard.DUPLICATE: 3}


@pytest.mark.parametrize("time", [4.0, np.nan, np.inf])
def test_events_out_of_order_in_time_are_set_aside(time):
    late = [block([7, 8], time), labels([1], time), Notice("late", time)]
    events, report = run(block([1]), block([2], 5.0), *late, block([9], 5.0))
    assert ids_of(events) == [[1], [2], [9]]
    assert not ids_of(events, Labels) and not any(isinstance(e, Notice) for e in events)
    assert report.counts == {guard.TIME_ORDER: 4}
    assert "block from id 7 of time" in report.first[guard.TIME_ORDER]
    assert "after 5.000 s" in report.first[guard.TIME_ORDER]


def test_labels_of_unknown_events_are_set_aside():
    events, report = run(block([1, 2, 5]), labels([1, 3, 5, 9], 1.0), labels([77], 2.0))
    assert ids_of(events, Labels) == [[1, 5]]
    assert report.counts == {guard.UNKNOWN: 3}
    assert report.first[guard.UNKNOWN] == "event 3 at 1.000 s"


def test_labels_of_events_that_were_set_aside_are_unknown():
    events, report = run(block([1, 2], x=np.array([np.nan, 0])), labels([1, 2]))
    assert ids_of(events, Labels) == [[2]]
    assert report.counts == {guard.NOT_FINITE: 1, guard.UNKNOWN: 1}


@pytest.mark.parametrize("step", [1, 3])
def test_labels_of_events_beyond_the_window_are_expired(step):
    ids = np.arange(0, 60 * step, step)
    blocks = [block(ids[k : k + 6]) for k in range(0, 60, 6)]
    events, report = run(*blocks, labels(ids), window=25)
    assert ids_of(events, Labels) == [ids[-25:].tolist()]
    assert report.counts == {guard.EXPIRED: 35}
    assert report.first[guard.EXPIRED] == "event 0 at 0.000 s"


def test_labels_that_are_not_finite_are_set_aside():
    events, report = run(block([1, 2]), labels([1, 2], y=[np.nan, 3.0]))
    assert ids_of(events, Labels) == [[2]]
    assert report.counts == {guard.LABEL_NOT_FINITE: 1}
    assert report.first[guard.LABEL_NOT_FINITE].startswith("event 1: column 'y' holds nan")


def test_empty_blocks_are_set_aside():
    events, report = run(block([], 3.0), labels([], 3.0), block([1]))
    assert ids_of(events) == [[1]]
    assert report.counts == {guard.EMPTY: 2}
    assert report.first[guard.EMPTY] == "block of time 3.000 s"


def test_more_tracks_than_the_padding_are_set_aside():
    pt = Ragged.from_counts(np.ones(9, np.float32), np.array([2, 4, 3]))
    events, report = run(block([4, 5, 6], pt=pt, eta=pt), padding=3)
    assert ids_of(events) == [[4, 6]]
    assert report.counts == {guard.TOO_MANY: 1}
    assert report.first[guard.TOO_MANY] == "event 5 has 4 items where there is room for 3"


def test_changed_columns_end_the_stream():
    with pytest.raises(
        ShapeError,
        match=r"the inputs of the stream changed from 2 to 2 columns: gone are b, new are c; was "
        r"the feature list changed\? The serving model cannot go on",
    ):
        run(block([1], a=np.zeros(1), b=np.zeros(1)), block([2], a=np.zeros(1), c=np.zeros(1)))


def test_a_changed_feature_count_ends_the_stream():
    with pytest.raises(
        ShapeError,
        match=r"column 'x' of the inputs changed from 3 feature\(s\), dense, number to "
        r"4 feature\(s\), dense, number",
    ):
        run(block([1], x=np.zeros((1, 3))), block([2], x=np.zeros((1, 4))))
    ragged = Ragged.from_counts(np.zeros(2), np.array([2]))
    with pytest.raises(ShapeError, match=r"to 1 feature\(s\), ragged, number"):
        run(block([1], x=np.zeros(1)), block([2], x=ragged))
    with pytest.raises(ShapeError, match=r"the targets of the stream changed from 1 to 2 columns"):
        again = Labels(np.array([1]), {"y": np.zeros(1), "z": np.zeros(1)}, 0.0)
        run(block([1]), labels([1]), again)


def test_inputs_that_must_be_there_are_asked_for():
    with pytest.raises(ShapeError, match=r"the stream lacks the inputs b; it has a"):
        run(block([1], a=np.zeros(1)), inputs=("a", "b"))


def test_a_policy_that_makes_no_sense_is_refused():
    for knobs in ({"window": 0}, {"padding": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            GuardPolicy(**knobs)


def spoiled(fills):
    """The fills with something wrong in many places."""
    events = []
    for number, event in enumerate(fills):
        if isinstance(event, Block):
            met = np.array(event.inputs["met"])
            met[number % len(met)] = np.nan
            event = Block(event.ids, {**event.inputs, "met": met}, event.time, event.conditions)
            events.append(event)
            if number % 3 == 0:
                events += [event, Notice("late", event.time - 1.0), event.take(slice(0, 0))]
        else:
            events.append(event)
    return events


def test_a_run_resumes_from_its_cursor(fills, same):
    events = spoiled(fills)
    whole = Guarded(InMemory(events), GuardPolicy(window=40))
    expected = list(whole.events())
    for stop in range(len(expected) + 1):
        first = Guarded(InMemory(events), GuardPolicy(window=40))
        running = first.events()
        head = [next(running) for _ in range(stop)]
        cursor = json.loads(json.dumps(first.cursor()))
        second = Guarded(InMemory(events), GuardPolicy(window=40))
        same(head + list(second.resume(cursor)), expected)
        assert second.set_aside == whole.set_aside


def test_a_resumed_run_reads_nothing_twice(fills):
    class Watched(InMemory):
        starts = []  # noqa: RUF012

        def events(self, start=0):
            self.starts.append(start)
            return super().events(start)

    stream = Watched(fills)
    guarded = Guarded(stream)
    running = guarded.events()
    for _ in range(9):
        next(running)
    list(Guarded(stream).resume(guarded.cursor()))
    assert stream.starts == [0, 9]


def test_memory_is_bounded_by_the_window(make_pair):
    guarded = Guarded(InMemory([]), GuardPolicy(window=1000))
    run_ = guarded._run
    for number in range(0, 4000, 2):  # every id is followed by a gap: the worst case
        run_.checked(block([3 * number, 3 * number + 2]))
    assert len(run_.known._runs) <= 501


def test_ids_without_gaps_cost_no_memory():
    run_ = Guarded(InMemory([]))._run
    for number in range(1000):
        run_.checked(block(range(10 * number, 10 * number + 10)))
    assert len(run_.known._runs) == 1
