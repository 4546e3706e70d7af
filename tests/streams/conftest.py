"""Blocks of tracks and of table rows that the tests of this room share."""

from collections.abc import Callable

import numpy as np
import pytest

from stillfit.core.arrays import Arrays, Ragged
from stillfit.core.events import Block, Event, Examples, Labels, Notice

MakeBlock = Callable[..., Block]
MakeExamples = Callable[..., Examples]


def tracks(n: int, rng: np.random.Generator, mean: float = 6.0) -> tuple[dict, dict]:
    """Ragged inputs and targets of `n` events, some without tracks."""
    counts = rng.poisson(mean, n)
    total = int(counts.sum())
    inputs = {
        "pt": Ragged.from_counts(rng.gamma(2.0, 3.0, total).astype(np.float32), counts),
        "nstub": Ragged.from_counts(rng.integers(4, 7, total).astype(np.uint8), counts),
        "met": rng.random(n).astype(np.float32),
    }
    targets = {
        "z0": rng.normal(0, 5, n).astype(np.float32),
        "is_pv": Ragged.from_counts(rng.integers(0, 2, total).astype(np.uint8), counts),
    }
    return inputs, targets


@pytest.fixture
def make_pair() -> Callable[..., tuple[Block, Labels]]:
    """A block of tracks with ids from `first`, and its labels, at one time."""

    def make(
        first: int = 0, n: int = 20, time: float = 0.0, condition: str = "nominal", seed: int = 1
    ) -> tuple[Block, Labels]:
        inputs, targets = tracks(n, np.random.default_rng([seed, first]))
        ids = np.arange(first, first + n, dtype=np.int64)
        return Block(ids, inputs, time, {"condition": condition}), Labels(ids, targets, time)

    return make


@pytest.fixture
def make_examples() -> MakeExamples:
    """Labelled events of equal size with ids from `first`, one second apart."""

    def make(first: int = 0, n: int = 20, condition: str = "nominal", ragged: bool = False):
        ids = np.arange(first, first + n, dtype=np.int64)
        inputs: Arrays = {"x": np.repeat(ids[:, None], 4, 1).astype(np.float32)}
        targets: Arrays = {"y": ids.astype(np.float32)}
        if ragged:
            inputs, targets = tracks(n, np.random.default_rng(first))
        return Examples(ids, inputs, targets, ids.astype(np.float64), np.full(n, condition))

    return make


def assert_same_arrays(one: Arrays, other: Arrays) -> None:
    assert list(one) == list(other)
    for name, column in one.items():
        again = other[name]
        if isinstance(column, Ragged):
            assert isinstance(again, Ragged)
            np.testing.assert_array_equal(column.offsets, again.offsets)
            column, again = column.values, again.values
        assert not isinstance(again, Ragged)
        assert column.dtype == again.dtype, name
        np.testing.assert_array_equal(column, again)


def assert_same_event(one: Event, other: Event) -> None:
    assert type(one) is type(other)
    assert one.time == other.time or (np.isnan(one.time) and np.isnan(other.time))
    if isinstance(one, Notice) and isinstance(other, Notice):
        assert one == other
    elif isinstance(one, Block) and isinstance(other, Block):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert one.conditions == other.conditions
        assert_same_arrays(one.inputs, other.inputs)
    elif isinstance(one, Labels) and isinstance(other, Labels):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert_same_arrays(one.targets, other.targets)


@pytest.fixture
def same() -> Callable[[list[Event], list[Event]], None]:
    """Asserts that two lists of events are identical: types, values, dtypes, order of columns."""

    def check(one: list[Event], other: list[Event]) -> None:
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_event(left, right)

    return check


@pytest.fixture
def same_arrays() -> Callable[[Arrays, Arrays], None]:
    return assert_same_arrays


@pytest.fixture
def fills(make_pair) -> list[Event]:
    """Three fills of four blocks: notices at their ends, labels at once, one repaired condition."""
    events: list[Event] = []
    first, time = 0, 0.0
    for fill, condition in enumerate(["nominal", "misaligned", "nominal"]):
        events.append(Notice("stable-beams", time, {"fill": fill, "expected": "8 h"}))
        for number in range(4):
            time += 100.0
            events += make_pair(first, 10 + 3 * number, time, condition)
            first += 10 + 3 * number
        time += 50.0
        events.append(Notice("inter-fill", time))
        time += 1000.0
    return events
