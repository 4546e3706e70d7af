"""A stream whose source works ahead: its next events are made while the loop uses the last ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue

from stillfit.core.errors import ConfigError
from stillfit.core.events import Event
from stillfit.streams.contract import Stream

_WAIT = 0.1  # s between looks whether anyone still listens


@dataclass(frozen=True)
class Ahead:
    """The same events in the same order, up to `limit` of them made in advance by a thread.

    Worth it for sources whose work releases the interpreter's lock (compiled simulation, files).
    Memory: `limit` events. An error of the source comes out where its event would have.
    """

    stream: Stream
    limit: int = 12

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"a stream works at least 1 event ahead, got limit = {self.limit}")

    def events(self, start: int = 0) -> Iterator[Event]:
        queue: Queue[Event | BaseException | None] = Queue(self.limit)
        over = threading.Event()

        def work() -> None:
            try:
                for event in self.stream.events(start):
                    if not _put(queue, event, over):
                        return
                _put(queue, None, over)
            except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
                _put(queue, error, over)

        thread = threading.Thread(target=work, name="stream-ahead", daemon=True)
        thread.start()
        try:
            while True:
                found = queue.get()
                if found is None:
                    return
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            over.set()
            while thread.is_alive():
                with suppress(Empty):
                    queue.get(timeout=_WAIT)
            thread.join()


def _put(
    queue: Queue[Event | BaseException | None],
    item: Event | BaseException | None,
    over: threading.Event,
) -> bool:
    """Wait for room; False as soon as nobody listens any more."""
    while not over.is_set():
        try:
            queue.put(item, timeout=_WAIT)
        except Full:
            continue
        return True
    return False
