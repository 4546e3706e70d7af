"""What the loop holds does not grow with the length of the stream."""

import gc
import importlib.util
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillfit.core.events import Labels, Notice
from stillfit.loop.run import House, run
from stillfit.monitors.late import LateMetric
from stillfit.registry import Registry
from stillfit.streams.contract import InMemory

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

PENDING, STORE = 40_000, 60_000


class Endless:
    """Blocks of 8 events, a fill every 20 blocks; `share` of the events gets a label, 10 later."""

    def __init__(self, blocks, share):
        self.blocks, self.share = blocks, share

    def events(self, start=0):
        made = self._events()
        for _ in range(start):
            next(made)
        return made

    def _events(self):
        late = []
        for number in range(self.blocks):
            time = 60.0 * number
            if number % 20 == 0:
                yield Notice("stable-beams", time, {"fill": number // 20})
            block, labels = toy.rows(8, 0.0, 7, 8 * number, time, "nominal")
            yield block
            keep = np.random.default_rng(number).random(8) < self.share
            late.append(labels.take(np.flatnonzero(keep)))
            if len(late) > 10:
                part = late.pop(0)
                if len(part):
                    yield Labels(part.ids, part.targets, time)


def plan():
    made = toy.plan("frozen", "replay", watch=(), errors=(LateMetric(window=300),))
    lanes = tuple(
        replace(lane, rungs={n: replace(r, capacity=100) for n, r in lane.rungs.items()})
        for lane in made.lanes
    )
    keeping = replace(made.keeping, budget_bytes=STORE)
    return replace(made, lanes=lanes, keeping=keeping, pending_bytes=PENDING, checkpoint=500)


def sizes(house):
    """How much of everything is held that could grow."""
    found = {
        "starts": len(house.starts),
        "joiner": house.joiner.nbytes,
        "store": house.store.nbytes,
        "chunks": sum(len(chunks) for chunks in house.store.groups.values()),
        "said": sum(len(shelf._said) + len(shelf._fitted) for shelf in house.shelves.values()),
    }
    for lane in house.lanes:
        document, arrays = lane.to_state()
        found[f"{lane.name} pending"] = len(lane.pending.versions())
        found[f"{lane.name} state"] = len(repr(document)) // 1000
        found[f"{lane.name} arrays"] = sum(part.nbytes for part in arrays.values()) // 1000
    return found


def measured(folder, monkeypatch, blocks, share):
    """Sizes at half of the stream and at its end."""
    houses = []
    begin = House.__init__

    def kept(self, *args):
        begin(self, *args)
        houses.append(self)

    monkeypatch.setattr(House, "__init__", kept)
    seen = {}
    with Registry.create(folder / "registry") as registry:
        for step in run(Endless(blocks, share), plan(), registry):
            number = getattr(step.event, "ids", [-1])[0] // 8
            if number in (blocks // 2, blocks - 1) and number not in seen:
                seen[number] = sizes(houses[0])
                if tracemalloc.is_tracing():
                    gc.collect()
                    seen[number]["traced"] = tracemalloc.get_traced_memory()[0]
    return seen[blocks // 2], seen[blocks - 1]


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0], ids=["all", "some", "none"])
def test_nothing_grows_once_everything_is_full(tmp_path, monkeypatch, share):
    """Also where labels are few or never come, so that blocks wait until they are expired."""
    half, end = measured(tmp_path, monkeypatch, 440, share)
    assert end["joiner"] <= PENDING
    assert end["store"] <= STORE
    # Chunks are joined as they come, up to a 32nd of the budget each.
    assert end.pop("chunks") < 130
    for name in half.keys() & end.keys():
        assert end[name] <= 1.3 * half[name] + 5, (name, half, end)


@pytest.mark.study
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0], ids=["all", "some", "none"])
def test_no_memory_grows_once_everything_is_full(tmp_path, monkeypatch, share):
    tracemalloc.start()
    try:
        half, end = measured(tmp_path, monkeypatch, 3000, share)
    finally:
        tracemalloc.stop()
    # 1500 more blocks of 8 events are 0.6 MB of inputs and predictions, had they been kept.
    assert end["traced"] - half["traced"] < 60_000, (half, end)


def test_the_fill_of_late_labels_is_known_for_as_long_as_they_may_come(tmp_path):
    """Labels 80 fills late, over restarts: the number of the fill is that of an unbroken run."""
    events = []
    held = []
    for fill in range(1, 96):
        time = 1000.0 * fill
        events.append(Notice("stable-beams", time, {"fill": fill}))
        block, labels = toy.rows(6, 0.0, 7, 10 * fill, time + 1, "nominal")
        events.append(block)
        held.append(labels)
        if fill > 80:
            part = held.pop(0)
            events.append(Labels(part.ids, part.targets, time + 2))
    made = replace(toy.plan("frozen", watch=(), errors=()), checkpoint=10)
    whole, again = tmp_path / "whole", tmp_path / "again"
    with Registry.create(whole) as registry:
        list(run(InMemory(events), made, registry))
        told = registry.history()
    fills = [e.payload["fill"] for e in told if e.kind == "performance"]
    assert fills == list(range(1, 16))
    done = False
    while not done:
        exists = Registry.exists(again)
        with Registry.open(again, write=True) if exists else Registry.create(again) as registry:
            done = True
            for place, _ in enumerate(run(InMemory(events), made, registry)):
                if place == 50:
                    done = False
                    break
            hashes = [e.hash for e in registry.history()]
    assert hashes == [e.hash for e in told]
