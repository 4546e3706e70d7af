"""The page on streams names every knob, every reason and every column."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from stillfit.l1t.ntuple import COLUMNS, Ntuple
from stillfit.streams import guard
from stillfit.streams.guard import GuardPolicy
from stillfit.streams.joining import JoinCounts
from stillfit.streams.labels import Cut, Labelling
from stillfit.streams.store import Holding, Keeping, View
from stillfit.streams.tables import Table

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text()


@pytest.mark.parametrize("made", [Table, Ntuple, Labelling, Cut, GuardPolicy, Keeping])
def test_every_knob_is_on_the_page(made):
    for knob in dataclasses.fields(made):
        assert f"`{knob.name}`" in PAGE or f"{knob.name} =" in PAGE, knob.name


def test_every_reason_count_view_and_column_is_on_the_page():
    reasons = {v for k, v in vars(guard).items() if k.isupper() and k[0] != "_" and k != "JSON"}
    assert len(reasons) == 9
    for reason in reasons:
        assert f"| `{reason}` |" in PAGE
    for count in dataclasses.fields(JoinCounts):
        assert count.name in PAGE
    for verb in ("all", "window", "newest", "condition", "sample"):
        assert hasattr(View, verb) and f"`{verb}(" in PAGE
    assert {field.name for field in dataclasses.fields(Holding)} >= {"nbytes", "first", "last"}
    for column in COLUMNS:
        assert f"`{column}`" in PAGE


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sensor.csv").write_text(
        "voltage,temperature,ppm,when\n1,2,3,2024-05-01\n,2,3,2024-05-02\n"
    )
    example = PAGE.split("```python\n")[2].split("```")[0]
    Path("example.py").write_text(example)
    runpy.run_path("example.py")
    assert "1 x inputs not finite (first: event 1: column 'voltage'" in capsys.readouterr().out
