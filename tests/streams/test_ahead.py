"""A stream that works ahead gives the same events, ends its thread, and passes errors on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Event, Notice
from stillfit.streams.ahead import Ahead
from stillfit.streams.contract import InMemory


def blocks(n: int) -> list[Event]:
    return [Block(np.array([k], np.int64), {"x": np.array([1.0 * k])}, float(k)) for k in range(n)]


def workers() -> int:
    return sum(thread.name == "stream-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("start", [0, 4, 20])
def test_the_same_events_in_the_same_order(limit: int, start: int) -> None:
    items = blocks(20)
    assert list(Ahead(InMemory(items), limit).events(start)) == items[start:]
    assert workers() == 0


def test_a_consumer_that_leaves_early_ends_the_thread() -> None:
    events = Ahead(InMemory(blocks(1000)), 2).events()
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert workers() == 0


def test_an_error_comes_where_its_event_would_have() -> None:
    class Broken:
        def events(self, start: int = 0) -> Iterator[Event]:
            yield Notice("stable-beams", 0.0)
            raise DataError("the cable is cut")

    events = Ahead(Broken()).events()
    assert isinstance(next(events), Notice)
    with pytest.raises(DataError, match="the cable is cut"):
        next(events)
    assert workers() == 0


def test_it_does_not_run_away_from_its_consumer() -> None:
    made: list[int] = []

    class Counting:
        def events(self, start: int = 0) -> Iterator[Event]:
            for item in blocks(100):
                made.append(1)
                yield item

    events = Ahead(Counting(), 3).events()
    next(events)
    assert len(made) <= 6
    events.close()  # type: ignore[attr-defined]


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit = 0"):
        Ahead(InMemory([]), 0)
