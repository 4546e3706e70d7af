"""Checkpoints: whole or not there, the last two kept, and only what is new is written."""

import shutil

import numpy as np
import pytest

from stillfit.core.errors import DamagedError, RegistryError
from stillfit.registry import Registry, verify

BIG = 10_000  # float64: 80 kB, an array with a file of its own


def files(registry, room):
    return sorted(p.name for p in (registry.root / room).rglob("*") if p.is_file())


def test_a_checkpoint_comes_back_as_it_was_saved(registry):
    arrays = {
        "big": np.arange(BIG, dtype=np.float64),
        "ragged#offsets": np.array([0, 3, 5]),
        "scalar": np.array(3.5, np.float32),
        "none": np.zeros((0, 2)),
    }
    state = {"step": 3, "positions": {"a": 1}, "threshold": float("inf"), "name": None}
    registry.save_checkpoint("run", 5, state, arrays)
    found = registry.load_checkpoint("run")
    assert (found.position, found.warning) == (5, None)
    assert found.state == state | {"threshold": "inf"}
    assert set(found.arrays) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        found.arrays[name][...] = 1  # the loop may go on with the arrays themselves


def test_a_run_without_a_checkpoint_has_none(registry):
    assert registry.load_checkpoint("run") is None


SEGMENTS = {
    "large": {"x": np.arange(BIG), "y": np.arange(3.0)},
    "twin": {"x": np.arange(BIG), "y": np.arange(3.0)},
    "small": {"a/b": np.ones(2), "c": np.zeros((0, 2), np.int16)},
    "tiny": {"a/b": np.full(1, 7)},
    "empty": {},
}


def check(found, segments):
    assert {n: set(part) for n, part in found.items()} == {n: set(p) for n, p in segments.items()}
    for name, part in segments.items():
        for key, array in part.items():
            np.testing.assert_array_equal(found[name][key], array)
            assert found[name][key].dtype == array.dtype


def test_segments_come_back_whole_and_lie_in_one_file_each_or_together_if_small(registry):
    registry.save_checkpoint("run", 1, {}, {"small": np.zeros(1)}, SEGMENTS)
    assert len(files(registry, "segments")) == 3  # the twins', the small segments', the arrays'
    check(registry.load_checkpoint("run").segments, SEGMENTS)
    some = {name: SEGMENTS[name] for name in ("tiny", "large")}
    registry.save_checkpoint("run", 2, {}, {}, some)
    check(registry.load_checkpoint("run").segments, some)
    assert verify(registry.root) == []


def test_a_segment_keeps_its_place_and_is_not_read_again(registry):
    registry.save_checkpoint("run", 1, {}, {}, SEGMENTS)
    before = files(registry, "segments")

    class Never(dict):
        def values(self):
            raise AssertionError("a known segment was read")

    for position in (2, 3, 4):
        known = {name: Never(part) for name, part in SEGMENTS.items()}
        registry.save_checkpoint("run", position, {}, {}, known)
        assert files(registry, "segments") == before
        registry.load_checkpoint("run")
    new = {name: Never(part) for name, part in SEGMENTS.items()} | {"new": {"x": np.ones(BIG)}}
    registry.save_checkpoint("run", 5, {}, {}, new)
    assert len(files(registry, "segments")) == len(before) + 1
    # A run of another name, or one that begins in another process, has them found by content.
    registry.save_checkpoint("other", 5, {}, {}, SEGMENTS)
    assert len(files(registry, "segments")) == len(before) + 1


def test_a_stored_segment_is_kept_without_its_arrays_and_only_such_a_one(registry):
    assert registry.stored_segments("run") == set()
    registry.save_checkpoint("run", 1, {}, {}, SEGMENTS)
    assert registry.stored_segments("run") == set(SEGMENTS)
    registry.save_checkpoint("run", 2, {}, {}, {"large": None, "tiny": None})
    kept = {name: SEGMENTS[name] for name in ("large", "tiny")}
    check(registry.load_checkpoint("run").segments, kept)
    assert registry.stored_segments("run") == set(kept)
    for path in (registry.root / "segments").iterdir():
        if path.stat().st_size > 8 * BIG:
            path.unlink()
    assert registry.stored_segments("run") == {"tiny"}
    with pytest.raises(RegistryError, match="segment 'large' is not in the last checkpoint of 'ru"):
        registry.save_checkpoint("run", 3, {}, {}, {"large": None})


def test_a_segment_whose_file_is_gone_is_written_again(registry):
    registry.save_checkpoint("run", 1, {}, {}, SEGMENTS)
    for path in (registry.root / "segments").iterdir():
        path.unlink()
    registry.save_checkpoint("run", 2, {}, {}, SEGMENTS)
    check(registry.load_checkpoint("run").segments, SEGMENTS)


def test_arrays_of_equal_content_come_back_apart(registry):
    registry.save_checkpoint("run", 0, {}, {"a": np.zeros(BIG), "b": np.zeros(BIG)})
    assert len(files(registry, "segments")) == 1
    found = registry.load_checkpoint("run").arrays
    found["a"][0] = 1
    assert found["b"][0] == 0


def test_only_what_is_new_is_written_and_what_is_unused_goes(registry):
    store = {}
    for fill in range(6):
        before = {path.name: path.stat().st_ino for path in (registry.root / "segments").iterdir()}
        store[f"fill-{fill}"] = np.full(BIG, float(fill))
        registry.save_checkpoint("run", fill, {"fill": fill}, store | {"small": np.array(fill)})
        after = {path.name: path.stat().st_ino for path in (registry.root / "segments").iterdir()}
        kept = set(before) & set(after)
        assert all(before[name] == after[name] for name in kept)
        assert len(set(after) - set(before)) == 2  # the new fill and the small ones
    assert files(registry, "checkpoints") == [f"{n:012d}.json" for n in (4, 5)]
    assert len(files(registry, "segments")) == 6 + 2
    registry.save_checkpoint("run", 6, {}, {})
    registry.save_checkpoint("run", 7, {}, {})
    assert files(registry, "segments") == []


def test_runs_share_segments_and_keep_each_other_s(registry):
    registry.save_checkpoint("a", 0, {}, {"x": np.zeros(BIG)})
    registry.save_checkpoint("b", 0, {}, {"y": np.zeros(BIG)})
    assert len(files(registry, "segments")) == 1
    for position in (1, 2):
        registry.save_checkpoint("b", position, {}, {"y": np.ones(BIG)})
    assert len(files(registry, "segments")) == 2
    np.testing.assert_array_equal(registry.load_checkpoint("a").arrays["x"], np.zeros(BIG))


@pytest.mark.parametrize("what", ["json", "segment", "segment gone", "json cut"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(registry, what):
    registry.save_checkpoint("run", 1, {"n": 1}, {"x": np.zeros(BIG), "s": np.ones(2)})
    before = set(files(registry, "segments"))
    registry.save_checkpoint("run", 2, {"n": 2}, {"x": np.ones(BIG), "s": np.ones(2)})
    (new,) = set(files(registry, "segments")) - before
    name = "000000000002.json" if "json" in what else new
    (path,) = registry.root.rglob(name)
    data = bytearray(path.read_bytes())
    if "gone" in what:
        path.unlink()
    elif "cut" in what:
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    assert any(name in str(finding) for finding in verify(registry.root))
    found = registry.load_checkpoint("run")
    assert (found.position, found.state) == (1, {"n": 1})
    assert "the last checkpoint of 'run' is damaged" in found.warning
    assert "going on from position 1, what came after is done again" in found.warning
    # The run comes to position 2 again, and all is well; a damaged segment is written anew.
    registry.save_checkpoint("run", 2, {"n": 2}, {"x": np.ones(BIG), "s": np.ones(2)})
    assert registry.load_checkpoint("run").warning is None
    assert verify(registry.root) == []


def test_a_segment_that_was_damaged_is_written_anew_by_the_next_process(root):
    with Registry.create(root) as registry:
        registry.save_checkpoint("run", 1, {}, {"x": np.zeros(BIG)})
        (path,) = (root / "segments").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with Registry.open(root, write=True) as registry:
        with pytest.raises(DamagedError, match="no checkpoint of 'run' is whole"):
            registry.load_checkpoint("run")
        registry.save_checkpoint("run", 2, {}, {"x": np.zeros(BIG)})
        assert registry.load_checkpoint("run").position == 2
    assert verify(root) == []


def test_with_no_whole_checkpoint_the_next_step_is_told(registry):
    registry.save_checkpoint("run", 1, {}, {})
    (path,) = (registry.root / "checkpoints").rglob("*.json")
    path.write_text("{}")
    with pytest.raises(DamagedError, match=r"delete .*checkpoints/run to replay the run from its"):
        registry.load_checkpoint("run")
    shutil.rmtree(path.parent)
    assert registry.load_checkpoint("run") is None


def test_an_unreadable_checkpoint_of_another_run_keeps_all_segments(registry):
    registry.save_checkpoint("a", 0, {}, {"x": np.zeros(BIG)})
    (path,) = (registry.root / "checkpoints" / "a").iterdir()
    text = path.read_bytes()
    path.write_bytes(b"{}")
    for position in range(3):
        registry.save_checkpoint("b", position, {}, {"y": np.full(BIG, position + 1.0)})
    path.write_bytes(text)
    np.testing.assert_array_equal(registry.load_checkpoint("a").arrays["x"], np.zeros(BIG))


def test_going_back_drops_the_checkpoints_of_the_abandoned_future(registry):
    for position in (1, 2, 3):
        registry.save_checkpoint("run", position, {}, {})
    registry.save_checkpoint("run", 2, {"again": True}, {})
    assert files(registry, "checkpoints") == ["000000000002.json"]
    assert registry.load_checkpoint("run").state == {"again": True}


def test_wrong_use_is_refused(registry):
    with pytest.raises(RegistryError, match=r"'\.\./run' cannot name a run"):
        registry.save_checkpoint("../run", 0, {}, {})
    with pytest.raises(RegistryError, match="has the position -1; count from 0"):
        registry.save_checkpoint("run", -1, {}, {})
    with pytest.raises(RegistryError, match=r"checkpoint\.x is a ndarray, which JSON cannot hold"):
        registry.save_checkpoint("run", 0, {"x": np.zeros(2)}, {})
    with pytest.raises(RegistryError, match="'a/b' cannot name a segment"):
        registry.save_checkpoint("run", 0, {}, {}, {"a/b": {}})
    with pytest.raises(RegistryError, match="checkpoint array 'x' of type <U1 cannot be stored"):
        registry.save_checkpoint("run", 0, {}, {"x": np.array(["a"] * BIG * 8)})
    with registry.batch(), pytest.raises(RegistryError, match="inside a batch"):
        registry.save_checkpoint("run", 0, {}, {})
    assert registry.load_checkpoint("run") is None
