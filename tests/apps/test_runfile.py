"""Run files: strict, every mistake named; the examples run, and go on where they were cut."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from stillfit.apps import runfile
from stillfit.apps.run import run_file
from stillfit.apps.runfile import UPDATERS, of_kind
from stillfit.core.errors import ConfigError, DataError
from stillfit.registry import Registry, verify
from stillfit.studies.continual.catalogue import STRATEGIES
from stillfit.updaters.contract import Updater

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = """
title = "t"
arguments = { features = 1 }
[task]
kind = "regression"
features = ["x"]
[stream]
kind = "table"
path = "t.csv"
inputs = ["x"]
targets = ["y"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD.replace("title", "titel"), "has no knob 'titel'; did you mean 'title'?"),
        (HEAD.replace('"regression"', '"regresion"'), "did you mean 'regression'?"),
        (HEAD + "[widow]\nkind = 'always'\n", "has no table [widow]; did you mean 'window'?"),
        (HEAD + "[[lanes]]\nname = 'a'\nrungs = ['replai']\n", "did you mean 'replay'?"),
        (HEAD + "[updaters.replay]\ncapacty = 3\n", "has no knob 'capacty'"),
        (HEAD + "[[gates]]\nkind = 'better-on-new'\nmargin = '1'\n", "margin = '1' is wrong"),
        (HEAD + "[first]\nevents = 3\n", "events = 3 must be at least 100"),
        (HEAD + "gates = 1\n", "has no knob 'gates'"),
        ('title = "t"\n', "lacks the table [task]"),
        ("title = \n", "is not valid TOML"),
    ],
)
def test_every_mistake_in_a_run_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runfile.read(written(tmp_path, text))
    assert told in str(caught.value)


def test_both_examples_are_read_whole() -> None:
    table = runfile.read(EXAMPLES / "table.toml")
    assert [lane.name for lane in table.lanes] == ["frozen", "finetune", "ladder"]
    assert runfile.read(EXAMPLES / "ntuple.toml").is_l1t


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere", "neither a shipped network"),
        ("no_such_module_here:make", "importing no_such_module_here failed"),
        ("mine_broken:make", "importing mine_broken failed: ZeroDivisionError"),
        ("mine_good:mak", "has no factory 'mak'; did you mean 'make'?"),
    ],
)
def test_a_network_that_does_not_import_is_a_clear_error(
    tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / "mine_broken.py").write_text("1 / 0\n")
    (tmp_path / "mine_good.py").write_text("def make(): return 3\n")
    with pytest.raises(ConfigError) as caught:
        runfile.factory_of(name, tmp_path)
    assert told in str(caught.value)


def test_a_factory_must_make_a_network_and_take_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "mine_odd.py").write_text("def make(width=1): return width\n")
    factory = runfile.factory_of("mine_odd:make", tmp_path)
    with pytest.raises(ConfigError, match=r"made a int, not a torch\.nn\.Module"):
        factory()
    with pytest.raises(ConfigError, match="does not take these arguments"):
        factory(depth=2)


def small_table(folder: Path) -> Path:
    """The shipped example, with fewer steps: the law is in the loop, not in the figures."""
    text = (EXAMPLES / "table.toml").read_text(encoding="utf-8")
    text = text.replace("steps = 800", "steps = 150").replace("steps = 300", "steps = 100")
    shutil.copy(EXAMPLES / "table.csv", folder / "table.csv")
    return written(folder, text)


def test_the_table_example_wins_back_what_the_swap_costs(tmp_path: Path) -> None:
    outcome = run_file(small_table(tmp_path), out=tmp_path / "run")
    summary = outcome.summary
    assert (tmp_path / "run" / "report.html").is_file()
    assert verify(tmp_path / "run" / "registry") == []
    error = {
        name: [row.values["error"] for row in lane.fills if row.condition == "B"]
        for name, lane in summary.lanes.items()
    }
    assert error["ladder"][-1] < 0.5 * error["frozen"][-1]  # type: ignore[operator]
    # Again on the same folder: nothing is left to do, and nothing changes.
    with Registry.open(tmp_path / "run" / "registry") as registry:
        before = registry.head
    again = run_file(tmp_path / "mine.toml", out=tmp_path / "run")
    assert again.summary.lanes["ladder"].fills == summary.lanes["ladder"].fills
    with Registry.open(tmp_path / "run" / "registry") as registry:
        assert registry.head == before


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text('{"kind": "run", "settings": {"run_file": "else"}}')
    with pytest.raises(ConfigError, match="holds another run"):
        run_file(small_table(tmp_path), out=out)
    shutil.rmtree(out)
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        run_file(small_table(tmp_path), out=out)
    assert (out / "mine.txt").read_text() == "precious"


def test_a_stream_that_is_too_short_says_what_it_has(tmp_path: Path) -> None:
    path = small_table(tmp_path)
    path.write_text(path.read_text().replace("events = 2400", "events = 50000"))
    with pytest.raises(
        DataError, match=r"has 9000 labelled events in all, \[first\] asks for 50000"
    ):
        run_file(path, out=tmp_path / "run")


def test_the_ntuple_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("uproot", reason="needs the extra [hep]")
    made = runpy.run_path(str(EXAMPLES / "make_ntuple.py"))
    made["main"](tmp_path / "ntuple.root")
    text = (EXAMPLES / "ntuple.toml").read_text(encoding="utf-8")
    outcome = run_file(
        written(tmp_path, text.replace("steps = 150", "steps = 60")), out=tmp_path / "r"
    )
    assert set(outcome.summary.lanes) == {"frozen", "ladder"}
    assert sum(row.n for row in outcome.summary.lanes["ladder"].fills) > 3000


@pytest.mark.parametrize("kind", [kind for kind in UPDATERS if kind != "redeploy"])
def test_every_strategy_can_be_named_with_its_defaults(kind: str) -> None:
    made = of_kind(UPDATERS, {"kind": kind, "update_class": "bitstream"}, "run.toml [updaters.x]")
    assert isinstance(made, Updater)
    assert made.update_class == "bitstream"


def test_every_strategy_of_the_studies_has_a_name_in_run_files() -> None:
    """Or one that makes it from another by knobs alone."""
    recipe_only = {"frozen", "naive", "replay-balanced", "replay-classes", "replay-hard"}
    recipe_only |= {"replay-8bit", "replay-1pct", "embedded-replay"}
    assert set(STRATEGIES) - recipe_only <= set(UPDATERS)


def test_a_continual_lane_runs_and_its_learner_is_stored(tmp_path: Path) -> None:
    path = small_table(tmp_path)
    text = path.read_text().replace("\n[[lanes]]", '\n[updaters.online-ewc]\nkind = "online-ewc"\n'
        'min_events = 50\nschedule = { steps = 20 }\n\n[[lanes]]\nname = "ewc"\n'
        'rungs = ["online-ewc"]\n\n[[lanes]]', 1)  # fmt: skip
    assert "online-ewc" in text
    path.write_text(text)
    outcome = run_file(path, out=tmp_path / "run")
    assert "ewc" in outcome.summary.lanes
