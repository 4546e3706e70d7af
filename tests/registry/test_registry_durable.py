"""Kills at every write, full disks, two writers, and directories that are no registry."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stillfit
from stillfit.core.errors import DamagedError, LockedError, RegistryError
from stillfit.registry import Registry, verify

SCRIPT = Path(__file__).with_name("registry_script.py")
_spec = importlib.util.spec_from_file_location("registry_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def test_a_run_killed_at_any_write_is_whole_and_ends_like_an_undisturbed_one(fast_dir):
    """SIGKILL before and after every call by which something is written, and half way through."""
    source = str(Path(stillfit.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), str(fast_dir)],
        env=os.environ | {"PYTHONPATH": source, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) > 150
    assert {report["call"] for report in reports} >= {"write", "pwrite", "fdatasync", "replace"}
    for report in reports:
        assert report["killed"], report
        assert report["findings"] == report["findings_after"] == [], report
        assert report["status"] == 0, report
        assert report["same"], report
    assert any(report["serving"] == ["a", "b"] for report in reports)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_or_fails_at_any_write_loses_nothing(fast_dir, monkeypatch, code):
    """Every writing call in turn fails; then there is space again and the run goes on."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda handle: None)
    script.run(fast_dir / "undisturbed")
    expected = script.content(fast_dir / "undisturbed")
    counting = script.Interposer(-1, "before", None)
    with monkeypatch.context() as patch:
        counting.install(patch.setattr)
        script.run(fast_dir / "counted")
    text = "the disk is full: .* nothing that was already stored is lost: free some space"
    if code == errno.EIO:
        text = "could not be written .* nothing that was already stored is lost: see to the disk"

    def fail(name):
        raise OSError(code, os.strerror(code))

    failed = 0
    for at, name in enumerate(counting.names, 1):
        if name == "unlink":
            continue
        for how in ("before", "half") if name == "write" else ("before",):
            root = fast_dir / "full"
            with monkeypatch.context() as patch:
                script.Interposer(at, how, fail).install(patch.setattr)
                try:
                    script.run(root)
                except RegistryError as error:
                    failed += 1
                    assert pytest.raises(RegistryError, match=text).matches(error), error
            if Registry.exists(root):
                assert verify(root) == [], (at, how, name)
            script.run(root)
            assert script.content(root) == expected, (at, how, name)
            assert verify(root) == []
            shutil.rmtree(root)
    # The lock's own note of its holder is the one write that may fail unseen.
    assert failed >= 0.95 * sum(name != "unlink" for name in counting.names)


def test_a_disk_that_is_full_for_sqlite_alone_loses_nothing(root):
    """The entry is in the journal file already; the next writer brings it into the index."""
    with Registry.create(root) as registry:
        writer = registry.writer("lane")
        writer.append("note", 0.0)
        registry._journal._index._database.execute("PRAGMA max_page_count = 5")
        with pytest.raises(
            RegistryError, match=r"the disk is full: .*journal\.sqlite could not be"
        ):
            for time in range(1, 1000):
                writer.append("note", float(time), payload={"text": "x" * 500})
        with pytest.raises(RegistryError, match="an earlier write to"):
            writer.append("note", 2000.0)
    assert verify(root) == []
    with Registry.open(root) as registry:
        count = registry.head.count
    with Registry.open(root, write=True) as registry:
        assert registry.head.count in (count, count + 1)
        registry.writer("lane", registry.head.count).append("note", 2000.0)
    assert verify(root) == []


def test_what_a_making_that_failed_left_is_no_obstacle(root):
    root.mkdir()
    for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "HEAD.json"):
        (root / name).write_bytes(b"half")
    Registry.create(root).close()
    assert verify(root) == []


def test_a_second_writer_is_refused_and_told_who_writes(season):
    with Registry.open(season, write=True):
        with pytest.raises(LockedError, match=rf"being written by process {os.getpid()} on ") as e:
            Registry.open(season, write=True)
        assert "wait for it to end or stop it first" in str(e.value)
        with Registry.open(season) as reader:
            assert reader.serving("replay")
    with Registry.open(season, write=True):
        pass


def test_a_lock_whose_holder_is_unknown_still_holds(season):
    with Registry.open(season, write=True):
        (season / "lock").write_text("")
        with pytest.raises(LockedError, match="being written by another process; wait"):
            Registry.open(season, write=True)


def test_a_writer_that_was_refused_leaves_the_lock_free(season):
    (season / "HEAD.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(DamagedError, match="was altered; it says where the journal ends"):
            Registry.open(season, write=True)


def test_a_directory_that_is_no_registry_is_named(tmp_path, root):
    with pytest.raises(RegistryError, match=r"there is no registry in .* \(REGISTRY\.json is mis"):
        Registry.open(root)
    with pytest.raises(RegistryError, match="there is no registry in"):
        verify(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RegistryError, match="there is no registry in"):
        Registry.open(tmp_path / "file")
    with pytest.raises(RegistryError, match="is not empty \\(it holds 'file'\\)"):
        Registry.create(tmp_path)
    Registry.create(root).close()
    with pytest.raises(RegistryError, match=r"there is a registry in .* already; open it instead"):
        Registry.create(root)


def test_leftovers_of_a_killed_writer_are_cleared_by_the_next(season):
    leftovers = [
        season / ".tmp-HEAD.json",
        season / "versions" / (".tmp-" + "a" * 64),
        season / "segments" / ".tmp-x.safetensors",
        season / "checkpoints" / "season" / ".tmp-000000000008.json",
    ]
    leftovers[1].mkdir()
    for path in leftovers:
        (path / "weights.safetensors" if path.is_dir() else path).write_bytes(b"half")
    assert verify(season) == []
    with Registry.open(season, write=True):
        pass
    assert not any(path.exists() for path in leftovers)


def test_empty_rooms_may_be_missing_as_after_a_checkout(season):
    with Registry.open(season) as registry:
        entries = registry.history()
    for room in ("inbox", "segments", "checkpoints"):
        shutil.rmtree(season / room)
    with Registry.open(season) as registry:
        assert registry.history() == entries
        assert registry.waiting() == []
        assert registry.load_checkpoint("season") is None
    assert verify(season) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_registry_that_may_not_be_written_says_so(season):
    season.chmod(0o500)
    (season / "lock").unlink(missing_ok=True)
    try:
        with pytest.raises(RegistryError, match="may not be written"):
            Registry.open(season, write=True)
    finally:
        season.chmod(0o700)


def test_a_read_only_disk_says_so(season, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(RegistryError, match=r"may not be written .*mounted read-only"):
            Registry.open(season, write=True)


def test_everything_is_flushed_before_it_is_named_or_acknowledged(fast_dir, monkeypatch):
    """Before a rename its content, after it the directory; before the head the journal."""
    counting = script.Interposer(-1, "before", None)
    with monkeypatch.context() as patch:
        counting.install(patch.setattr)
        script.run(fast_dir / "registry")
    names = counting.names
    renames = [at for at, name in enumerate(names) if name in ("replace", "rename")]
    assert len(renames) == 25
    for at in renames:  # files of one directory are renamed in a row, all flushed before
        before = next(name for name in names[at - 1 :: -1] if name != "replace")
        after = next(name for name in names[at + 1 :] if name != "replace")
        assert (before, after) == ("fsync", "fsync"), (at, names[at - 5 : at + 2])
    pairs = list(zip(names, names[1:], names[2:], strict=False))
    # Six appends (a batch is one): the line, its flush, the head, and nothing in between.
    assert pairs.count(("write", "fdatasync", "pwrite")) == 6
    # The only other heads: the lock's note of its holder (made twice) and the opening.
    assert names.count("pwrite") == 6 + 3


def test_the_example_in_the_documentation_runs(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
    (code,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(stillfit.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "serves since 0.0 because first version" in done.stdout
