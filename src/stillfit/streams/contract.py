"""What a stream is: events in order of arrival, which can be started again after event k."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stillfit.core.errors import ConfigError
from stillfit.core.events import Event


@runtime_checkable
class Stream(Protocol):
    """A source of `Block`, `Labels` and `Notice` in order of arrival.

    `events(start)` yields the events after the first `start`, the same ones with every call: the
    loop resumes by asking for what follows the last event that it had finished. A source that
    can skip cheaply does; one that cannot produces the events again and drops them.
    """

    def events(self, start: int = 0) -> Iterator[Event]: ...


@dataclass(frozen=True)
class InMemory:
    """A stream of events that are already there, such as those of a test."""

    items: Sequence[Event]

    def events(self, start: int = 0) -> Iterator[Event]:
        return iter(self.items[checked_start(start) :])


def skipped(events: Iterator[Event], start: int) -> Iterator[Event]:
    """What follows the first `start` events, for a source that has to produce them to skip them."""
    return itertools.islice(events, checked_start(start), None)


def checked_start(start: int) -> int:
    """`start` itself, or `ConfigError` where it is no number of events."""
    if start < 0:
        raise ConfigError(f"a stream cannot start at event {start}; give 0 or more events to skip")
    return start
