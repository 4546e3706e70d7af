"""The whole chain in small: simulation, networks, loop, registry, summary, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillfit.apps.demo import Demo, demo
from stillfit.core.errors import ConfigError
from stillfit.models.training import Schedule
from stillfit.registry import Registry, verify
from stillfit.studies.season import Effort

SCENARIO = """
title = "A short season"
fills = 7
events = 400
block = 200
seed = 3
nominal = { pileup = 60.0 }
[[changes]]
name = "moved"
first = 2
last = 5
knobs = { barrel_z_shift = 0.3 }
"""
LANES = ("fasthisto", "frozen", "recalibrate", "retrain", "ladder")
SHORT = Schedule(steps=20, batch=100, rate=0.005)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "short.toml").write_text(SCENARIO, encoding="utf-8")
    settings = Demo(
        scenario=str(folder / "short.toml"),
        lanes=LANES,
        network="e2e",
        training_events=2000,
        nominal_events=1500,
    )
    effort = Effort(retrain=SHORT, tune=SHORT, store_bytes=64 * 2**20)
    demo(folder / "out", settings, effort=effort, cache=folder / "cache")
    return folder / "out"


def test_the_summary_has_the_promised_shape(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["lanes"]) == set(LANES)
    for lane in summary["lanes"].values():
        assert [row["fill"] for row in lane["fills"]] == list(range(1, 8))
        for row in lane["fills"]:
            assert {
                "fill", "condition", "n", "efficiency", "efficiency_err", "width_cm", "auc",
                "balanced_accuracy",
            } <= set(row)  # fmt: skip
            assert row["n"] == 400
            assert 0 <= row["efficiency"] <= 1
    assert summary["decisions"]
    for decision in summary["decisions"]:
        assert {"time", "fill", "what", "version", "because"} <= set(decision)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "A short season" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_frozen_network_loses_and_recalibration_wins_it_back(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))

    def at(lane: str, fill: int) -> float:
        return float(summary["lanes"][lane]["fills"][fill - 1]["efficiency"])

    assert at("frozen", 3) < at("frozen", 1) - 0.3
    # Labels of fill 2 come after fill 3, so fill 4 is the first that can be better.
    assert at("recalibrate", 3) == at("frozen", 3)
    assert at("recalibrate", 5) > at("frozen", 5) + 0.3


def test_nothing_switched_outside_a_window_or_without_its_gates(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    fills = [(fill["start"], fill["end"]) for fill in summary["fills"]]
    switched = 0
    with Registry.open(run / "registry") as registry:
        for lane in LANES:
            passed, served = set(), set()
            for entry in registry.history(lane):
                if entry.kind == "staged":
                    verdicts = entry.payload["verdicts"]
                    assert isinstance(verdicts, list) and verdicts
                    assert all(verdict["accepted"] for verdict in verdicts)  # type: ignore[call-overload, index]
                    passed.add(entry.version)
                if entry.kind in ("switch", "rollback"):
                    switched += 1
                    assert entry.version in passed | served
                    assert not any(start < entry.time < end for start, end in fills)
                if entry.kind in ("deploy", "switch", "rollback"):
                    served.add(entry.version)
    assert switched >= 2
    assert verify(run / "registry") == []


def test_a_second_call_changes_nothing_and_another_run_is_refused(run: Path) -> None:
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]
    same = Demo(**{**told, "lanes": tuple(told["lanes"])})
    with Registry.open(run / "registry") as registry:
        before = registry.head
    effort = Effort(retrain=SHORT, tune=SHORT, store_bytes=64 * 2**20)
    demo(run, same, effort=effort, cache=run.parent / "cache")
    with Registry.open(run / "registry") as registry:
        assert registry.head == before
    with pytest.raises(ConfigError, match="holds another run \\(seed is 1 there and 2 here\\)"):
        demo(run, Demo(**{**told, "lanes": tuple(told["lanes"]), "seed": 2}))
