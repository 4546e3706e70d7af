"""Laws of blocks, labels and examples."""

import numpy as np
import pytest

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError, OrderError, ShapeError
from stillfit.core.events import Block, Examples, Labels, Notice


def examples(start: int = 0, n: int = 4, condition: str = "a") -> Examples:
    ids = np.arange(start, start + n)
    tracks = Ragged.from_counts(np.arange(2 * n, dtype=np.float32), np.full(n, 2))
    return Examples(
        ids,
        {"x": ids * 1.0, "tracks": tracks},
        {"z": ids * 10.0},
        ids + 0.5,
        np.full(n, condition),
    )


def test_a_block_taken_in_part_keeps_its_time_and_conditions():
    block = Block(np.arange(3), {"x": np.arange(3.0)}, 7.0, {"condition": "hot", "mu": 200.0})
    part = block.take(slice(1, 3))
    assert part.ids.tolist() == [1, 2]
    assert part.time == 7.0
    assert part.condition == "hot"
    assert len(part) == 2
    assert Block(np.arange(1), {}, 0.0).condition == "all"


def test_labels_may_come_in_any_order_and_be_taken():
    labels = Labels(np.array([5, 2, 9]), {"z": np.array([1.0, 2.0, 3.0])}, 4.0)
    assert labels.take(np.array([2, 0])).targets["z"].tolist() == [3.0, 1.0]
    assert len(labels) == 3


def test_a_notice_knows_its_state_and_facts():
    assert Notice("inter-fill", 3.0, {"until": 9.0}).info["until"] == 9.0
    assert Notice("inter-fill", 3.0).info == {}


def test_joining_examples_and_choosing_a_condition_undo_each_other():
    a, b = examples(0, 3, "a"), examples(3, 2, "bb")
    both = Examples.join([Examples.empty(), a, b])
    assert len(both) == 5
    for part, name in ((a, "a"), (b, "bb")):
        found = both.where(name)
        assert np.array_equal(found.ids, part.ids)
        assert np.array_equal(found.inputs["tracks"].values, part.inputs["tracks"].values)
        assert np.array_equal(found.times, part.times)
    assert len(both.where("never")) == 0
    assert Examples.join([]).ids.dtype == np.int64
    assert Examples.join([a, Examples.empty()]) is a


def test_the_bytes_of_examples_are_exact():
    e = examples(0, 4)
    wanted = sum(
        array.nbytes
        for array in (
            e.ids,
            e.inputs["x"],
            e.inputs["tracks"].values,
            e.inputs["tracks"].offsets,
            e.targets["z"],
            e.times,
            e.conditions,
        )
    )
    assert e.nbytes == wanted
    assert Examples.empty().nbytes == 0


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: Block(np.arange(2), {"x": np.zeros(3)}, 0.0),
            ShapeError,
            "a block of 2 ids holds inputs of 3 events",
        ),
        (
            lambda: Block(np.arange(2.0), {}, 0.0),
            ShapeError,
            "a block's ids must be one int64 axis, got float64 (2,)",
        ),
        (
            lambda: Block(np.array([1, 1]), {}, 0.0),
            OrderError,
            "event ids inside a block must rise strictly; is one there twice?",
        ),
        (
            lambda: Labels(np.arange(2), {"z": np.zeros(1)}, 0.0),
            ShapeError,
            "labels of 2 ids hold targets of 1 events",
        ),
        (
            lambda: Labels(np.zeros((1, 2), np.int64), {}, 0.0),
            ShapeError,
            "labels' ids must be one int64 axis, got int64 (1, 2)",
        ),
        (
            lambda: Examples(np.arange(2), {}, {}, np.zeros(3), np.full(2, "a")),
            ShapeError,
            "examples disagree on the number of events: [2, 3]",
        ),
        (
            lambda: examples().require("z", "y"),
            DataError,
            "the labels lack y; they hold z",
        ),
    ],
)
def test_events_that_do_not_fit_are_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
