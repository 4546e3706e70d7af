"""The page on sensing names every knob, feature and network, and its example runs."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from stillfit.sensing.environments import CHARGING, WORN, Split, Wearing
from stillfit.sensing.features import feature_names
from stillfit.sensing.networks import FACTORIES
from stillfit.sensing.recordings import ACCELEROMETER, ACTIVITIES, GYROSCOPE, SensorFiles
from stillfit.sensing.windows import Windowing

PAGE = (Path(__file__).parents[2] / "docs" / "sensing.md").read_text()


@pytest.mark.parametrize("made", [SensorFiles, Windowing, Split, Wearing])
def test_every_knob_is_on_the_page(made):
    for knob in dataclasses.fields(made):
        assert f"`{knob.name}`" in PAGE, knob.name


def test_every_feature_activity_network_and_notice_is_on_the_page():
    names = feature_names((*ACCELEROMETER, *GYROSCOPE))
    for feature in {name.rpartition(".")[2] for name in names}:
        assert f"`{feature}`" in PAGE, feature
    for name in (*ACTIVITIES, *FACTORIES, WORN, CHARGING):
        assert f"`{name}`" in PAGE, name


def test_the_example_of_the_page_runs(table, write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "har.parquet", table())
    Path("example.py").write_text(PAGE.split("```python\n")[1].split("```")[0])
    runpy.run_path("example.py")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["a/sp", "b/sp", "a/sw", "b/sw"]
    assert float(lines[0].split()[1]) > 0.5  # macro-F1 on the wearer that it was trained on
