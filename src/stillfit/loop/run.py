"""The loop: one function, to be read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, flatten, n_bytes, unflatten
from stillfit.core.clock import Clock
from stillfit.core.errors import RegistryError
from stillfit.core.events import Block, Event, Examples, Labels, Notice
from stillfit.core.values import Served
from stillfit.decisions.windows import WindowState
from stillfit.loop.deployment import Deployment
from stillfit.loop.plan import Plan
from stillfit.loop.selection import NO_FILL
from stillfit.loop.shelf import Shelf
from stillfit.registry import Checkpoint, Entry, Registry
from stillfit.streams.contract import Stream
from stillfit.streams.joining import Joiner
from stillfit.streams.store import LabelledStore

TOGETHER = 32


class Step(NamedTuple):
    """What one event of the stream brought: answers by lane, and the journal's new entries.

    After a restart, entries that a killed run had written already do not come again. `served` is
    empty for an empty block.
    """

    number: int
    event: Event
    served: dict[str, Served]
    entries: tuple[Entry, ...]


def run(stream: Stream, plan: Plan, registry: Registry) -> Iterator[Step]:
    """Keep every lane of `plan` fit on `stream`, journaling all decisions in `registry`.

    The clock is the stream's. A run that was killed at any point goes on when it is called again
    with the same stream, plan and registry: from its last checkpoint, meeting the entries that it
    had written, and ends with the journal and the versions of an undisturbed run. That holds for
    updates without a budget of seconds, since seconds differ from run to run. A run that has
    ended adds nothing when it is called again, and goes on where its stream has grown.
    """
    house = House(plan, registry)
    for moment in moments(stream.events(house.position)):
        if house.due(moment[0]):
            house.save()
        with registry.batch():
            steps = [take(house, event) for event in moment]
        yield from steps
    house.end()


def take(house: House, event: Event) -> Step:
    """Let every lane take one event: serve, watch, learn, obey, switch."""
    house.decide_before(event)
    now = house.tick(event)
    served: dict[str, Served] = {}
    match event:
        case Notice():
            house.window = house.plan.window.step(house.window, event)
            house.note(event)
        case Block() if len(event):
            waiting = house.wait(event)
            for lane in house.lanes:
                served[lane.name] = lane.serve(event, waiting)
                lane.watch.block(event, served[lane.name])
                lane.pending.forget_before(house.joiner.oldest)
        case Labels():
            examples, fills = house.join(event)
            for lane in house.lanes:
                lane.learn(examples, fills, house.position, now)
                lane.pending.forget_before(house.joiner.oldest)
    for lane in house.lanes:
        lane.obey(now, house.store)
        lane.switch(house.window, now, house.store)
    return Step(house.position - 1, event, served, house.written())


def moments(events: Iterator[Event]) -> Iterator[list[Event]]:
    """Labels that come together as one, at most `TOGETHER` of them; anything else by itself.

    Their journal entries are made durable by one flush of the disk. So labels are taken when the
    next event is known, which is when decisions are made on them; a block is never kept waiting.
    """
    labels: list[Event] = []
    for event in events:
        same = isinstance(event, Labels) and labels and event.time == labels[0].time
        if labels and (not same or len(labels) == TOGETHER):
            yield labels
            labels = []
        if isinstance(event, Labels):
            labels.append(event)
        else:
            yield [event]
    if labels:
        yield labels


class House:
    """What the lanes share: the clock, the window, late labels and the labelled store."""

    def __init__(self, plan: Plan, registry: Registry) -> None:
        self.plan, self.registry = plan, registry
        self.position, self.saved = 0, 0
        self.after_labels = False
        self.clock = Clock()
        self.window: WindowState = plan.window.init()
        self.joiner = Joiner(plan.pending_bytes)
        self.store: LabelledStore = plan.keeping.empty()
        self.fresh = False
        self.starts: list[tuple[float, int]] = []
        self.ended = -1
        self._shown = registry.head.count
        found = registry.load_checkpoint(plan.run)
        stored: Any = {} if found is None else found.state["lanes"]
        self.lanes = []
        self.shelves: dict[int, Shelf] = {}  # lanes of one task share what versions say
        for lane in plan.lanes:
            position = stored.get(lane.name, {}).get("position", 0)
            writer = registry.writer(lane.name, position)
            task = lane.model.task
            shelf = self.shelves.setdefault(id(task), Shelf(registry, plan.factories, task))
            self.lanes.append(Deployment(lane, plan, shelf, writer))
        if found is None:
            self._begin()
        else:
            self._resume(found)

    def decide_before(self, event: Event) -> None:
        """Decide on what is known before `event`: labels that come together are read together."""
        nothing = not isinstance(event, Notice) and not len(event)
        if event.time > self.clock.now or not (isinstance(event, Labels) or nothing):
            self.decide()

    def decide(self) -> None:
        """Let every lane decide at the time of the last event, if it brought anything to go by."""
        if not self.fresh:
            return
        self.fresh = False
        for lane in self.lanes:
            lane.decide(self.store, self.joiner, self.clock.now)
            lane.switch(self.window, self.clock.now, self.store)

    def tick(self, event: Event) -> float:
        """Move the clock to an event; what became ready in between happens first, in its time."""
        for shelf in self.shelves.values():
            shelf.forget()
        self.fresh = self.fresh or not isinstance(event, Notice)
        for lane in self.lanes:
            lane.wake(self.window, event.time, self.store)
        self.clock = self.clock.at(event.time)
        self.after_labels = isinstance(event, Labels)
        self.position += 1
        return self.clock.now

    def note(self, notice: Notice) -> None:
        """Follow the machine: which fill it is, and whether a person lifts a HOLD."""
        fill = notice.info.get("fill")
        if isinstance(fill, int | float) and math.isfinite(fill):
            if not self.starts or self.starts[-1][1] != int(fill):
                self.starts.append((notice.time, int(fill)))
            oldest = min((block.time for block in self.joiner.blocks()), default=math.inf)
            while len(self.starts) > 1 and self.starts[1][0] <= min(oldest, notice.time):
                del self.starts[0]  # no event of that fill waits for a label any more
        who = notice.info.get("resumed_by")
        if isinstance(who, str):
            for lane in self.lanes:
                lane.resume(notice.time, f"resumed by the {who}")

    def wait(self, block: Block) -> Block:
        """Remember a block until its labels come; returns what there is room for, nearly all."""
        self.joiner.add(block)
        if n_bytes(block.inputs) + 9 * len(block) <= self.plan.pending_bytes:
            return block
        kept = [b for b in self.joiner.blocks() if b.ids[-1] == block.ids[-1]]
        return kept[0] if kept else block.take(slice(0, 0))

    def join(self, labels: Labels) -> tuple[Examples, NDArray[np.int64]]:
        """Labels with their events, and the number of the fill of each."""
        examples = self.joiner.join(labels)
        rng = self.plan.seeds.rng("store", self.position)
        self.store = self.store.add(examples, rng)
        begin = np.array([-np.inf, *(time for time, _ in self.starts)])
        numbers = np.array([NO_FILL, *(fill for _, fill in self.starts)], np.int64)
        return examples, numbers[np.searchsorted(begin, examples.times, side="right") - 1]

    def end(self) -> None:
        """At the end of the stream: the last decision, and what the run came to; once only."""
        if self.ended == self.position:
            return
        with self.registry.batch():
            self.decide()
            for lane in self.lanes:
                lane.journal_experience(self.store, self.clock.now)
        self.ended = self.position
        self.save()

    def written(self) -> tuple[Entry, ...]:
        """Journal entries since the last call."""
        new = self.registry.history(since=self._shown)
        self._shown += len(new)
        return tuple(new)

    def due(self, event: Event) -> bool:
        """Whether to save before `event`: `checkpoint` events since the last time.

        It is put off until labels have come, when the fewest events wait for theirs, which all
        have to be written; but not for longer than as many events again.
        """
        passed = self.position - self.saved
        quiet = self.after_labels and not isinstance(event, Labels)
        return passed >= self.plan.checkpoint * (1 if quiet else 2)

    def save(self) -> None:
        """A checkpoint: everything that the loop needs to go on from here."""
        joiner, waiting = self.joiner.to_segments()
        store, kept = self.store.to_segments(self.registry.stored_segments(self.plan.run))
        state: dict[str, Any] = {
            "clock": self.clock.now if math.isfinite(self.clock.now) else None,
            "window": [value if math.isfinite(value) else None for value in self.window],
            "fresh": self.fresh,
            "starts": [list(pair) for pair in self.starts],
            "ended": self.ended,
            "joiner": joiner,
            "store": store,
            "lanes": {},
        }
        segments = {
            name: None if columns is None else flatten(columns)
            for name, columns in {**waiting, **kept}.items()
        }
        arrays: dict[str, Array] = {}
        for lane in self.lanes:
            document, parts = lane.to_state()
            state["lanes"][lane.name] = document
            arrays.update({f"lane/{lane.name}/{k}": v for k, v in parts.items()})
        self.registry.save_checkpoint(self.plan.run, self.position, state, arrays, segments)
        self.saved = self.position

    def _begin(self) -> None:
        rng = self.plan.seeds.rng("store", "nominal")
        self.store = self.store.add(self.plan.nominal, rng)
        for lane in self.lanes:
            lane.begin(self.plan.start)
        self.save()

    def _resume(self, found: Checkpoint) -> None:
        state: Mapping[str, Any] = found.state
        names = sorted(lane.name for lane in self.lanes)
        if names != sorted(state["lanes"]):
            raise RegistryError(
                f"the stored run has the lanes {sorted(state['lanes'])}, this one {names}; "
                "go on with the same lanes, or begin in a new folder"
            )
        self.position = self.saved = found.position
        self.clock = Clock(_finite(state["clock"], -math.inf))
        known, is_open, since, until = state["window"]
        self.window = WindowState(known, is_open, since, _finite(until, math.inf))
        self.fresh = state["fresh"]
        self.starts = [(time, fill) for time, fill in state["starts"]]
        self.ended = state["ended"]
        columns = {name: unflatten(flat) for name, flat in found.segments.items()}
        self.joiner = Joiner.from_segments(state["joiner"], columns)
        self.store = LabelledStore.from_segments(state["store"], columns)
        for lane in self.lanes:
            document = state["lanes"][lane.name]
            lane.from_state(document, _under(found.arrays, f"lane/{lane.name}/"))
            served = {int(last): version for last, version in document["pending"]}
            for block in self.joiner.blocks():
                if int(block.ids[-1]) in served:
                    lane.serve_again(block, served[int(block.ids[-1])])


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {n.removeprefix(prefix): part for n, part in arrays.items() if n.startswith(prefix)}


def _finite(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
