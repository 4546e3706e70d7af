"""Scenarios: strict, complete, and the shipped ones are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillfit.core.errors import ConfigError
from stillfit.l1t import scenario
from stillfit.l1t.scenario import Change, Scenario


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_scenario_loads_and_every_fill_has_conditions() -> None:
    assert set(scenario.names()) >= {
        "season", "dead-sector", "ageing", "misaligned", "resolution", "quality-word",
        "dead-regions",
    }  # fmt: skip
    for name in scenario.names():
        made = scenario.load(name)
        assert made.title
        for fill in range(1, made.fills + 1):
            made.at(fill)


def test_the_season_changes_several_times_and_an_old_condition_returns() -> None:
    season = scenario.load("season")
    line = [season.at(fill)[0] for fill in range(1, season.fills + 1)]
    assert season.fills >= 16
    assert len(set(line)) >= 4
    left = line.index(next(name for name in line if name != "nominal"))
    assert "nominal" in line[left:], "nothing is repaired"


def test_the_ten_dead_regions_come_in_sequence_with_a_thousand_events_each() -> None:
    made = scenario.load("dead-regions")
    assert (made.fills, made.events) == (10, 1000)
    assert [made.at(fill)[0] for fill in (1, 2, 10)] == ["nominal", "region-1", "region-9"]
    assert made.at(10)[1].dead_regions[0].eta == (-0.8, 1.2)


def test_a_ramp_is_linear_and_keeps_the_name_of_the_condition() -> None:
    made = Scenario(
        title="t",
        fills=5,
        changes=(Change(first=1, ramp={"integrated_luminosity": (0.0, 4.0)}),),
    )
    told = [made.at(fill) for fill in range(1, 6)]
    assert [name for name, _ in told] == ["nominal"] * 5
    assert [part.integrated_luminosity for _, part in told] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_changes_that_overlap_are_both_in_force_and_both_in_the_name() -> None:
    made = Scenario(
        title="t",
        fills=3,
        changes=(
            Change(name="a", first=1, knobs={"pt_scale": 1.1}),
            Change(name="b", first=2, last=2, knobs={"noise": 2.0}),
        ),
    )
    assert [made.at(fill)[0] for fill in (1, 2, 3)] == ["a", "a+b", "a"]
    assert (made.at(2)[1].pt_scale, made.at(2)[1].noise) == (1.1, 2.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('title = "t"\nfils = 3\n', "has no knob 'fils'; did you mean 'fills'?"),
        (
            'title = "t"\n[[changes]]\nname = "x"\nfirst = 1\nknobs = { barel_z_shift = 0.1 }\n',
            "has no knob 'barel_z_shift'; did you mean 'barrel_z_shift'?",
        ),
        ('title = "t"\n[[changes]]\nfirst = 3\nlast = 2\n', "must not come before the first"),
        ('title = "t"\nlabel_fraction = 0.0\n', "label_fraction = 0.0 must be in (0, 1]"),
        ('title = "t"\nevents = 0\n', "events = 0 of the scenario is too small"),
        ("title = ", "is not valid TOML"),
    ],
)
def test_a_wrong_scenario_is_a_clear_error(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario.load(write(tmp_path, text))
    assert told in str(caught.value)


def test_an_unknown_name_and_a_missing_file_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'season'"):
        scenario.load("seasn")
    with pytest.raises(ConfigError, match="there is no file"):
        scenario.load(tmp_path / "none.toml")
