"""Rows and events per second of the streams: reading, recording, guarding, joining, storing."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from stillfit.core.arrays import Ragged
from stillfit.core.events import Block, Event, Examples, Labels
from stillfit.streams.contract import InMemory, Stream
from stillfit.streams.guard import Guarded
from stillfit.streams.joining import Joiner
from stillfit.streams.labels import Labelling
from stillfit.streams.recording import Recording, record
from stillfit.streams.store import Keeping
from stillfit.streams.tables import Table

Row = tuple[str, float, str]
ROWS, COLUMNS = 300_000, 10
TRACKS, BLOCK = 212, 500


def run(blocks: int = 40, repeats: int = 3) -> list[Row]:
    """Medians over `repeats`; tables of ten columns, events of 212 tracks (13 columns, 9 kB)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        events = track_events(blocks)
        return [
            *tables(root, repeats),
            *recordings(root, events, repeats),
            *ntuples(root, events),
            *passing(events, repeats),
            *storing(events),
        ]


def track_events(blocks: int) -> list[Event]:
    """Blocks of events of pile-up 200, each followed by its labels."""
    rng = np.random.default_rng(1)
    events: list[Event] = []
    for number in range(blocks):
        counts = rng.poisson(TRACKS, BLOCK)
        total = int(counts.sum())
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        floats = ("pt", "eta", "phi", "z0", "d0", "chi2rphi", "chi2rz", "bendchi2", "mva")
        inputs = {name: rng.random(total).astype(np.float32) for name in floats}
        for name in ("nstub", "hitpattern", "quality"):
            inputs[name] = rng.integers(4, 7, total).astype(np.uint8)
        inputs["layers"] = rng.integers(0, 2048, total).astype(np.uint16)
        targets = {
            "z0": rng.normal(0, 5, BLOCK).astype(np.float32),
            "is_pv": Ragged(rng.integers(0, 2, total).astype(np.uint8), offsets),
        }
        ids = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
        ragged = {name: Ragged(values, offsets) for name, values in inputs.items()}
        condition = ("nominal", "misaligned")[number // 10 % 2]
        events.append(Block(ids, ragged, float(number), {"condition": condition}))
        events.append(Labels(ids, targets, float(number)))
    return events


def tables(root: Path, repeats: int) -> list[Row]:
    rng = np.random.default_rng(2)
    table = pa.table({f"x{i}": rng.normal(size=ROWS).astype(np.float32) for i in range(COLUMNS)})
    pyarrow.csv.write_csv(table, root / "t.csv")
    pyarrow.parquet.write_table(table, root / "t.parquet")
    rows: list[Row] = []
    for kind in ("csv", "parquet"):
        stream = Table(
            path=root / f"t.{kind}",
            inputs=tuple(f"x{i}" for i in range(COLUMNS - 1)),
            targets=(f"x{COLUMNS - 1}",),
        )
        seconds = median(timed(lambda stream=stream: drain(stream)) for _ in range(repeats))
        rows.append((f"{kind} table, ten columns", ROWS / seconds, "rows/s"))
    return rows


def recordings(root: Path, events: list[Event], repeats: int) -> list[Row]:
    n = n_events(events)
    writing, reading = [], []
    for number in range(repeats):
        path = root / f"r{number}"
        writing.append(timed(lambda path=path: record(events, path)))
        reading.append(timed(lambda path=path: drain(Recording(path))))
    size = sum(segment.nbytes for segment in Recording(root / "r0").segments())
    last = timed(lambda: next(Recording(root / "r0").events(len(events) - 1)))
    return [
        ("recording, writing", n / median(writing), "events/s"),
        ("recording, reading with check", n / median(reading), "events/s"),
        ("recording, size", size / n, "bytes/event"),
        ("recording, start at its last event", 1e3 * last, "ms"),
    ]


def ntuples(root: Path, events: list[Event]) -> list[Row]:
    if importlib.util.find_spec("uproot") is None:
        return []
    from stillfit.l1t.ntuple import Ntuple
    from stillfit.l1t.ntuple_writing import write_ntuple

    n = n_events(events[:16])
    path = root / "n.root"
    writing = timed(lambda: write_ntuple(path, iter(events[:16])))
    return [
        ("ROOT ntuple, writing", n / writing, "events/s"),
        ("ROOT ntuple, reading", n / timed(lambda: drain(Ntuple(path=path))), "events/s"),
    ]


def passing(events: list[Event], repeats: int) -> list[Row]:
    n, stream = n_events(events), InMemory(events)
    labelling = Labelling(delay=5.0, fraction=0.5, noise={"z0": 0.01}, flip={"is_pv": 0.01})
    cases: dict[str, Callable[[], object]] = {
        "guard": lambda: drain(Guarded(stream)),
        "labels late, partial and noisy": lambda: drain(labelling.on(stream)),
        "joiner": lambda: joined(events),
    }
    return [
        (name, n / median(timed(case) for _ in range(repeats)), "events/s")
        for name, case in cases.items()
    ]


def joined(events: list[Event]) -> list[Examples]:
    joiner, found = Joiner(10**8), []
    for event in events:
        if isinstance(event, Block):
            joiner.add(event)
        elif isinstance(event, Labels):
            found.append(joiner.join(event))
    return found


def storing(events: list[Event]) -> list[Row]:
    """Four times the stream, with a checkpoint after every addition."""
    rng = np.random.default_rng(3)
    size = 100_000_000
    store, examples = Keeping(budget_bytes=size).empty(), joined(events)
    known: set[str] = set()
    adding, naming = [], []
    written = n = 0
    for turn in range(4):
        for part in examples:
            ids = part.ids + turn * n_events(events)
            fresh = Examples(ids, part.inputs, part.targets, part.times, part.conditions)
            started = time.perf_counter()
            store = store.add(fresh, rng)
            middle = time.perf_counter()
            segments = store.to_segments()[1]
            adding.append(middle - started)
            naming.append(time.perf_counter() - middle)
            new = [arrays for name, arrays in segments.items() if name not in known]
            written += sum(column.nbytes for arrays in new for column in arrays.values())
            known |= set(segments)
            n += len(fresh)
    added = sum(part.nbytes for part in examples) * 4
    sample = timed(lambda: store.training.sample(2000, rng))
    return [
        ("store of 100 MB, adding", n / sum(adding), "events/s"),
        ("store of 100 MB, longest addition", 1e3 * max(adding), "ms"),
        ("store of 100 MB, filled", 100 * store.nbytes / size, "%"),
        ("store of 100 MB, checkpoint (hashing, mean)", 1e3 * sum(naming) / len(naming), "ms"),
        ("store of 100 MB, bytes to write per byte added", written / added, ""),
        ("store of 100 MB, everything to learn from", 1e3 * timed(store.training.all), "ms"),
        ("store of 100 MB, sample of 2000", 1e3 * sample, "ms"),
    ]


def n_events(events: list[Event]) -> int:
    return sum(len(event) for event in events if isinstance(event, Block))


def drain(stream: Stream) -> int:
    return sum(1 for _ in stream.events())


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
