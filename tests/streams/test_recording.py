"""Recordings: the identical events back, whatever stops the recorder, or an error."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, DamagedError, DataError, LockedError, RegistryError
from stillfit.core.events import Block, Labels, Notice
from stillfit.streams import recording
from stillfit.streams.contract import InMemory
from stillfit.streams.recording import INDEX, Recorded, Recorder, Recording, record


def odd_events():
    """Events of every shape that the contract allows."""
    ids = np.arange(3, dtype=np.int64)
    ragged = Ragged.from_counts(np.arange(8, dtype=np.int16).reshape(4, 2), np.array([0, 3, 1]))
    return [
        Notice("début", -1.5, {"fill": 7, "name": "a\nb", "x": 0.1, "far": float("inf")}),
        Block(ids, {}, 0.0),
        Block(ids, {"m": np.arange(12.0).reshape(3, 2, 2), "r": ragged}, 0.1, {"condition": "x"}),
        Block(ids + 3, {"r": ragged, "m": np.zeros((3, 2, 2))}, 0.2, {"n": np.float64(0.3)}),
        Block(ids + 6, {"m": np.zeros((3, 2, 2), np.float32), "r": ragged}, 0.2),
        Block(ids[:0], {"x": np.zeros(0)}, 0.2),
        Labels(ids[::2], {"ok": np.array([True, False]), "r": ragged[np.array([0, 2])]}, 0.3),
        Labels(ids[:0], {}, 0.3),
        Notice("end", 1e300),
    ]


@pytest.mark.parametrize("segment_bytes", [1, 500, 10**9])
def test_the_identical_events_come_back(segment_bytes, fills, same, tmp_path):
    events = [*odd_events(), *fills]
    with Recorder(tmp_path / "r", segment_bytes) as recorder:
        for event in events:
            recorder.write(event)
    found = Recording(tmp_path / "r")
    same(list(found.events()), events)
    assert len(found) == len(events)
    found.verify()


@given(
    events=st.lists(
        st.one_of(
            st.builds(
                lambda n, kind, t: Block(
                    np.arange(n, dtype=np.int64), {"x": np.arange(n).astype(kind)}, t, {"c": kind}
                ),
                st.integers(0, 4),
                st.sampled_from(["f4", "f8", "u1"]),
                st.floats(allow_nan=False),
            ),
            st.builds(Notice, st.text(max_size=3), st.floats(allow_nan=False)),
        ),
        max_size=12,
    ),
    flushes=st.lists(st.integers(0, 12), max_size=3),
)
def test_any_events_come_back_however_they_were_flushed(events, flushes, tmp_path_factory):
    path = tmp_path_factory.mktemp("r")
    with Recorder(path) as recorder:
        for number, event in enumerate(events):
            recorder.write(event)
            if number in flushes:
                recorder.flush()
    found = list(Recording(path).events())
    assert len(found) == len(events)
    for one, other in zip(found, events, strict=True):
        assert type(one) is type(other) and one.time == other.time
        if isinstance(one, Notice):
            assert one == other
        else:
            assert one.conditions == other.conditions
            assert one.inputs["x"].dtype == other.inputs["x"].dtype
            np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])


def test_a_recording_is_appended_to(fills, same, tmp_path):
    for part in (fills[:9], fills[9:10], fills[10:]):
        record(InMemory(part), tmp_path / "r")
    same(list(Recording(tmp_path / "r").events()), fills)
    assert record([], tmp_path / "r") == len(fills)


def test_skipping_opens_only_the_segment_that_is_needed(fills, same, tmp_path):
    with Recorder(tmp_path / "r", segment_bytes=1) as recorder:
        for event in fills:
            recorder.write(event)
    segments = Recording(tmp_path / "r").segments()
    for segment in segments[:-1]:
        (tmp_path / "r" / segment.file).unlink()
    same(list(Recording(tmp_path / "r").events(segments[-1].first)), fills[segments[-1].first :])


def test_reading_is_lazy(fills, tmp_path):
    with Recorder(tmp_path / "r", segment_bytes=1) as recorder:
        for event in fills:
            recorder.write(event)
    reading = Recording(tmp_path / "r").events()
    for segment in Recording(tmp_path / "r").segments()[2:]:
        (tmp_path / "r" / segment.file).unlink()
    next(reading)
    next(reading)


def test_the_index_says_what_a_segment_holds(fills, tmp_path):
    record(fills, tmp_path / "r")
    (segment,) = Recording(tmp_path / "r").segments()
    assert (segment.first, segment.count) == (0, len(fills))
    assert segment.rows == sum(len(e) for e in fills if not isinstance(e, Notice))
    assert (segment.from_time, segment.until_time) == (fills[0].time, fills[-1].time)


def test_many_small_events_do_not_pile_up_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "SEGMENT_EVENTS", 100)
    record((Notice("s", float(k)) for k in range(950)), tmp_path / "r")
    counts = [segment.count for segment in Recording(tmp_path / "r").segments()]
    assert counts == [100] * 9 + [50]


# ---- a stream recorded as it passes by


def test_a_recorded_stream_passes_through_and_is_there_afterwards(fills, same, tmp_path):
    same(list(Recorded(InMemory(fills), tmp_path / "r").events()), fills)
    same(list(Recording(tmp_path / "r").events()), fills)


@pytest.mark.parametrize("written", [0, 3, 12, 20])
@pytest.mark.parametrize("start", [0, 5, 12])
def test_a_recording_that_ends_before_the_resumed_loop_has_no_gap(
    written, start, fills, same, tmp_path
):
    record(fills[:written], tmp_path / "r")
    same(list(Recorded(InMemory(fills), tmp_path / "r").events(start)), fills[start:])
    same(list(Recording(tmp_path / "r").events()), fills)


# ---- crashes


def steps_of(fills, path):
    """Number of system calls at which recording these events could be stopped."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "open", "replace"):
            real = getattr(os, name)
            patch.setattr(
                os, name, lambda *a, _real=real, **k: (calls.append(1), _real(*a, **k))[1]
            )
        with Recorder(path, segment_bytes=1500) as recorder:
            for event in fills:
                recorder.write(event)
    return len(calls)


def test_a_recorder_stopped_at_any_write_leaves_a_whole_recording(fills, same, tmp_path):
    steps = steps_of(fills, tmp_path / "count")
    assert steps > 20
    for stop in range(steps):
        path = tmp_path / f"r{stop}"
        calls = []

        def halt(*_args, calls=calls, stop=stop, **_knobs):
            calls.append(1)
            if len(calls) > stop:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            for name in ("fsync", "open", "replace"):
                real = getattr(os, name)
                patch.setattr(os, name, lambda *a, _real=real, **k: (halt(), _real(*a, **k))[1])
            with pytest.raises(RegistryError, match=r"the disk is full: .* could not be written"):
                recorder = Recorder(path, segment_bytes=1500)
                try:
                    for event in fills:
                        recorder.write(event)
                    recorder.flush()
                finally:
                    recorder._release()  # as the end of the process would
        if not (path / INDEX).exists():
            continue
        found = list(Recording(path).events())
        same(found, fills[: len(found)])
        record(fills[len(found) :], path)
        same(list(Recording(path).events()), fills)


ENDLESS = """
import sys
from pathlib import Path
import numpy as np
from stillfit.core.events import Block
from stillfit.streams.recording import Recorder

with Recorder(Path(sys.argv[1]), segment_bytes=4000) as recorder:
    for first in range(0, 10**9, 100):
        ids = np.arange(first, first + 100, dtype=np.int64)
        recorder.write(Block(ids, {"x": ids.astype(np.float64)}, float(first)))
"""


def test_a_killed_recorder_leaves_a_whole_recording(tmp_path):
    for attempt in range(3):
        path = tmp_path / f"r{attempt}"
        child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (path / INDEX).exists() and len(Recording(path)) > 10 + attempt:
                break
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        ids = np.concatenate([block.ids for block in Recording(path).events()])
        assert len(ids) > 1000
        np.testing.assert_array_equal(ids, np.arange(len(ids)))
        record([Notice("again", 1e9)], path)  # the lock of a dead process holds nobody up


# ---- damage


@pytest.fixture
def recorded(fills, tmp_path):
    with Recorder(tmp_path / "r", segment_bytes=4000) as recorder:
        for event in fills:
            recorder.write(event)
    return tmp_path / "r"


def test_any_flipped_byte_is_found(recorded):
    rng = np.random.default_rng(0)
    files = [path for path in recorded.iterdir() if path.name != ".lock"]
    for path in files:
        data = path.read_bytes()
        for place in {0, 8, len(data) - 1, *rng.integers(0, len(data), 12).tolist()}:
            spoiled = bytearray(data)
            spoiled[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(spoiled)
            with pytest.raises((DamagedError, RegistryError)):
                Recording(recorded).verify()
        path.write_bytes(data)
    Recording(recorded).verify()


def test_damage_is_named_with_the_events_it_concerns(recorded):
    segment = Recording(recorded).segments()[1]
    file = recorded / segment.file
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    last = segment.first + segment.count - 1
    with pytest.raises(
        DamagedError,
        match=rf"{segment.file} differs from what was recorded \(events {segment.first} to {last}\)"
        rf"; restore it from a copy, or start the stream after event {last}",
    ):
        list(Recording(recorded).events())
    list(Recording(recorded).events(last + 1))
    file.unlink()
    with pytest.raises(DamagedError, match=r"is missing; was the whole folder copied\?"):
        list(Recording(recorded).events())


def test_segments_that_are_swapped_are_found(recorded):
    one, other = (recorded / s.file for s in Recording(recorded).segments()[:2])
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    with pytest.raises(DamagedError, match="differs from what was recorded"):
        Recording(recorded).verify()


def test_an_altered_index_is_found(recorded):
    whole = json.loads((recorded / INDEX).read_text())
    whole["segments"].pop()
    (recorded / INDEX).write_text(json.dumps(whole))
    with pytest.raises(DamagedError, match=r"index.json was altered: its content does not have"):
        Recording(recorded).events()
    (recorded / INDEX).write_text("[]")
    with pytest.raises(DamagedError, match=r"index.json was altered: it is not the index of a rec"):
        Recording(recorded).events()


def test_a_newer_recording_is_refused_untouched(recorded, fills):
    whole = json.loads((recorded / INDEX).read_text())
    whole["format"] = 99
    text = json.dumps(whole)
    (recorded / INDEX).write_text(text)
    match = r"was recorded in format 99, this release reads up to 1: update stillfit"
    with pytest.raises(RegistryError, match=match):
        Recording(recorded).events()
    with pytest.raises(RegistryError, match=match):
        record(fills, recorded)
    assert (recorded / INDEX).read_text() == text


def test_an_index_cannot_lead_out_of_its_folder(recorded):
    whole = json.loads((recorded / INDEX).read_text())
    del whole["sha256"]
    whole["segments"][0]["file"] = "../elsewhere"
    whole["sha256"] = recording._hash_of(whole)
    (recorded / INDEX).write_text(json.dumps(whole))
    with pytest.raises(DamagedError, match=r"names a file outside the recording: '../elsewhere'"):
        Recording(recorded).events()


def test_a_copied_recording_works(recorded, fills, same, tmp_path):
    shutil.copytree(recorded, tmp_path / "copy")
    same(list(Recording(tmp_path / "copy").events()), fills)


# ---- errors


def test_two_recorders_are_one_too_many(tmp_path, fills):
    match = r"another process is recording to .*r; wait for it"
    with Recorder(tmp_path / "r"), pytest.raises(LockedError, match=match):
        Recorder(tmp_path / "r")
    record(fills, tmp_path / "r")


def test_a_folder_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no recording: there is no index.json in it"):
        Recording(tmp_path).events()


def test_a_closed_recorder_does_not_write(tmp_path):
    recorder = Recorder(tmp_path / "r")
    recorder.close()
    recorder.close()
    with pytest.raises(ConfigError, match=r"is closed; open a new one to append"):
        recorder.write(Notice("s", 0.0))


def test_what_cannot_be_stored_is_refused_and_nothing_is_lost(tmp_path, fills, same):
    record(fills, tmp_path / "r")
    bad = Block(np.arange(1), {"name": np.array(["text"])}, 0.0)
    with pytest.raises(DataError, match=r"column '0/name' of type <U4 cannot be stored"):
        record([bad], tmp_path / "r")
    same(list(Recording(tmp_path / "r").events()), fills)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match=r"could not be written .*see to the disk and start"):
        Recorder(tmp_path / "file" / "r")
