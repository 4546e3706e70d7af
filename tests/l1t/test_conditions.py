"""Conditions: strict knobs with clear errors, hashable values, the authors' dead regions."""

import dataclasses
import math

import pytest

from stillfit.core.errors import ConfigError
from stillfit.l1t.conditions import (
    DEAD_REGIONS,
    LAYERS,
    Conditions,
    DeadRegion,
    HotRegion,
    LayerEfficiency,
    LayerShift,
    Processes,
    SectorShift,
    conditions,
    nominal,
)


def test_nominal_is_all_defaults_and_conditions_are_values():
    assert nominal() == Conditions() == conditions({})
    assert hash(nominal()) == hash(Conditions())
    changed = dataclasses.replace(nominal(), pileup=140.0)
    assert changed != nominal() and changed.pileup == 140.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.pileup = 1.0


def test_a_table_of_a_run_file_builds_nested_conditions():
    built = conditions(
        {
            "pileup": 140,
            "processes": {"ttbar": 0.5, "zmumu": 0.5},
            "layer_efficiency": {"B1": 0.0},
            "layer_z_shift": {"D3": -0.1},
            "dead_regions": [{"phi": [0.0, 0.7], "layers": ["B1", "B2"], "efficiency": 0.2}],
            "hot_regions": [{"eta": [-1, 1], "rate": 4}],
            "sector_shifts": [{"z_shift": 0.2, "phi": [1.0, 2.0]}],
            "max_chi2rz": 5.0,
            "quality_word": "inverted",
        }
    )
    assert built.processes.weights() == {"ttbar": 0.5, "zmumu": 0.5}
    assert built.layer_efficiency == LayerEfficiency(B1=0.0)
    assert built.layer_z_shift == LayerShift(D3=-0.1)
    region = DeadRegion(phi=(0.0, 0.7), layers=("B1", "B2"), efficiency=0.2)
    assert built.dead_regions == (region,)
    assert built.hot_regions == (HotRegion(eta=(-1.0, 1.0), rate=4.0),)
    assert built.sector_shifts == (SectorShift(z_shift=0.2, phi=(1.0, 2.0)),)
    assert math.isinf(built.max_chi2rphi)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"pilup": 200}, "fill 7 has no knob 'pilup'; did you mean 'pileup'?"),
        ({"hit_efficiency": 1.2}, "hit_efficiency must lie in [0, 1], got 1.2"),
        ({"hit_efficiency": math.nan}, "hit_efficiency must lie in [0, 1], got nan"),
        ({"pileup": -1}, "pileup must lie in [0, 1000], got -1.0"),
        ({"pileup": "many"}, "pileup = 'many' is wrong"),
        ({"min_stubs": 3}, "min_stubs must lie in [4, 7], got 3"),
        ({"max_chi2rz": 0.0}, "max_chi2rz must be positive (inf: no cut), got 0.0"),
        ({"layer_efficiency": {"B1": 2.0}}, "layer_efficiency.B1 must lie in [0, 1], got 2.0"),
        ({"layer_z_shift": {"D2": 9.0}}, "layer_z_shift.D2 must lie in [-5, 5], got 9.0"),
        ({"dead_regions": [{"layers": ["B7"]}]}, "dead_regions.0.layers.0 = 'B7' is wrong"),
        ({"dead_regions": [{"phi": [0, 4]}]}, "a dead region's phi must lie in [-pi, pi] rad"),
        ({"dead_regions": [{"eta": [1, 1]}]}, "a dead region's eta must rise, got (1.0, 1.0)"),
        ({"dead_regions": [{"efficiency": -1}]}, "efficiency must lie in [0, 1], got -1.0"),
        (
            {"dead_regions": [{"drops": "tracks", "layers": ["B1"]}]},
            "a dead region that drops tracks has no layers, got B1",
        ),
        ({"hot_regions": [{"rate": 50}]}, "a hot region's rate must lie in [0, 20], got 50.0"),
        ({"sector_shifts": [{"phi": [0, 1]}]}, "z_shift"),
        ({"sector_shifts": [{"z_shift": 9}]}, "z_shift must lie in [-5, 5], got 9.0"),
        ({"processes": {"ttbar": 0}}, "processes gives every kind of hard scatter the weight 0"),
        ({"processes": {"ttbar": -1}}, "processes.ttbar must lie in [0, inf], got -1.0"),
        ({"quality_word": "backwards"}, "quality_word = 'backwards' is wrong"),
    ],
)
def test_a_bad_knob_is_named_with_its_value(table, text):
    with pytest.raises(ConfigError) as error:
        conditions(table, "fill 7")
    assert text in str(error.value)


def test_the_ten_dead_regions_are_the_authors():
    assert list(DEAD_REGIONS) == [str(number) for number in range(10)]
    assert DEAD_REGIONS["0"] is None
    assert DEAD_REGIONS["3"].phi == (-0.698, 0.698)
    assert DEAD_REGIONS["8"].phi == (0.0, 0.02) and DEAD_REGIONS["8"].eta == (-0.8, 1.2)
    for region in DEAD_REGIONS.values():
        assert region is None or (region.layers == () and region.efficiency == 0.0)


def test_every_knob_is_described():
    text = Conditions.__doc__
    for field in dataclasses.fields(Conditions):
        assert f"`{field.name}`" in text, f"{field.name} has no description"


def test_layers_are_named_inside_out_and_no_processes_of_weight_zero_are_asked_for():
    assert LAYERS[0] == "B1" and LAYERS[-1] == "D5" and len(LAYERS) == 11
    assert Processes(ttbar=0.0, zmumu=2.0).weights() == {"zmumu": 2.0}
