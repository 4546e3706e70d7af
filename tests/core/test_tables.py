"""Tables become frozen dataclasses, strictly, or a clear error."""

from dataclasses import dataclass
from typing import Literal

import pytest

from stillfit.core.errors import ConfigError
from stillfit.core.tables import build, did_you_mean, read_toml


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rate: float
    steps: int = 3
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    part: Part = Part()
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ConfigError(f"rate must be positive, got {self.rate}")


def test_a_table_becomes_its_dataclass_with_defaults_nesting_and_tuples():
    table = {"rate": 2, "names": ["x", "y"], "part": {"size": 4}, "limit": 0.5}
    knobs = build(Knobs, table, "[monitor]")
    assert knobs == Knobs(rate=2.0, names=("x", "y"), part=Part(size=4), limit=0.5)
    assert isinstance(knobs.rate, float)
    assert build(Knobs, {"rate": 1.5}, "[monitor]") == Knobs(rate=1.5)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"rate": 1, "stesp": 2}, "[m] has no knob 'stesp'; did you mean 'steps'?"),
        (
            {"rate": 1, "zzz": 2},
            "[m] has no knob 'zzz'; known are: kind, limit, names, part, rate, steps",
        ),
        ({}, "[m] lacks rate, which Knobs needs"),
        ({"rate": "1"}, "[m]: rate = '1' is wrong: Input should be a valid number"),
        ({"rate": 1, "steps": 2.5}, "[m]: steps = 2.5 is wrong"),
        ({"rate": 1, "steps": True}, "[m]: steps = True is wrong"),
        ({"rate": True}, "[m]: rate = True is wrong"),
        ({"rate": 1, "kind": "c"}, "[m]: kind = 'c' is wrong: Input should be 'a' or 'b'"),
        ({"rate": 1, "names": "x"}, "[m]: names = 'x' is wrong"),
        ({"rate": 1, "part": {"size": "x"}}, "[m]: part.size = 'x' is wrong"),
        ({"rate": 1, "part": {"sise": 1}}, "[m]: part.sise = 1 is wrong"),
        ({"rate": -1.0}, "rate must be positive, got -1.0"),
    ],
)
def test_a_wrong_table_is_refused_by_name_and_value(table, text):
    with pytest.raises(ConfigError) as caught:
        build(Knobs, table, "[m]")
    assert text in str(caught.value)


def test_near_names_are_suggested_and_far_ones_listed():
    assert did_you_mean("windwo", ["window", "bins"]) == "; did you mean 'window'?"
    assert did_you_mean("q", ["b", "a"]) == "; known are: a, b"


def test_a_toml_file_is_read_or_refused_with_its_name_and_line(tmp_path):
    good = tmp_path / "run.toml"
    good.write_text("[m]\nrate = 1\n")
    assert read_toml(good) == {"m": {"rate": 1}}
    good.write_text("[m\n")
    with pytest.raises(ConfigError, match=r"run.toml is not valid TOML: .*line 1"):
        read_toml(good)
    good.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"run.toml is not valid TOML"):
        read_toml(good)
    with pytest.raises(ConfigError, match=r"there is no file .*none.toml; give the path of a TOML"):
        read_toml(tmp_path / "none.toml")
