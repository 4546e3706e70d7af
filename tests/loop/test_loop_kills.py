"""SIGKILL at random times and at every write of the registry: the journal is that of no kill."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import stillfit

SCRIPT = Path(__file__).with_name("loop_script.py")


@pytest.fixture
def fast_dir():
    """A directory in memory where there is one: these tests write thousands of files."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as name:
        yield Path(name)


def reports(folder, *hows):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), str(folder), *hows],
        env=os.environ | {"PYTHONPATH": str(Path(stillfit.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found):
    for report in found:
        if "told" in report:
            # Held before it would switch for the first time, and free before the next chance.
            assert report["told"][:4] == ["hold", "obeyed", "resume", "obeyed"], report
            assert set(report["told"][4:]) == {"switch"}, report
            assert report["waiting"] == 0, report
            report |= {"same": True, "hashes": True}
        assert report["killed"], report
        assert report["findings"] == report["findings_after"] == [], report
        assert report["status"] == 0, report
        assert report["same"], report
        assert report["hashes"], report


def test_a_loop_killed_at_any_write_or_time_ends_like_an_undisturbed_one(fast_dir):
    """Every file of the registry, and every entry's hash, as if nothing had happened."""
    found = reports(fast_dir, "8,1", "times,1", "times,2", "orders,5,1")
    assert len(found) == 15
    check(found)


@pytest.mark.study
def test_a_loop_killed_at_every_write_ends_like_an_undisturbed_one(fast_dir):
    times = (f"times,{seed}" for seed in range(20))
    found = reports(fast_dir, "all", "orders,1000,0", *times)
    assert len(found) > 800
    assert {report["call"] for report in found} >= {"write", "pwrite", "fdatasync", "replace"}
    check(found)
