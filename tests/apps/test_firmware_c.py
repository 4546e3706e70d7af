"""`stillfit firmware c`: headers of stored versions."""

import json
import shutil
from pathlib import Path

import torch

from stillfit.apps.cli import main
from stillfit.apps.runfile import read
from stillfit.core.values import Footprint, Provenance
from stillfit.models.fixed import FACTORIES
from stillfit.models.networks import MLP
from stillfit.registry import Architecture, Registry, VersionFacts

TABLE = Path(__file__).parents[2] / "examples" / "table.toml"


def stored(store, factory, arguments, network):
    facts = VersionFacts(
        architecture=Architecture(factory, arguments),
        update_class="weights",
        provenance=Provenance(updater="first", seed=1),
        footprint=Footprint(parameters=1, weight_bytes=4, macs_per_event=1),
        code="0",
    )
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    with Registry.create(store) as registry:
        return registry.add_version(facts, weights=weights)


def test_a_fixed_point_version_becomes_a_header(tmp_path, capsys):
    torch.manual_seed(0)
    arguments = {"features": 3, "hidden": [4], "outputs": 1}
    network = FACTORIES["fixed-mlp"](**arguments)
    version = stored(tmp_path / "r", "fixed-mlp", arguments, network)
    command = ["firmware", "c", version[:8], "--store", str(tmp_path / "r"), "--json"]
    out = tmp_path / "c"
    assert main([*command, "--out", str(out), "--design", "reloadable"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == version
    assert (out / "net.h").read_text().startswith("/* net.h")
    assert (out / "net.weights.bin").stat().st_size > 0
    assert main([*command, "--out", str(out), "--run", "x.toml"]) == 2
    assert "needs both --run (the run file) and --updater" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--shape", "a,b"]) == 2
    assert "--shape is whole numbers such as 2,19, got 'a,b'" in capsys.readouterr().err


def test_a_dense_version_learns_on_in_c(tmp_path, capsys):
    run = tmp_path / "run.toml"
    run.write_text(TABLE.read_text() + "\n[updaters.embedded-lms]\nrate = 0.01\n")
    shutil.copy(TABLE.with_name("table.csv"), tmp_path)
    settings = read(run)
    network = MLP(**settings.head.arguments)
    version = stored(tmp_path / "r", "mlp", dict(settings.head.arguments), network)
    out = tmp_path / "c"
    command = ["firmware", "c", version[:8], "--store", str(tmp_path / "r"), "--out", str(out)]
    assert main([*command, "--run", str(run), "--updater", "embedded-lms", "--name", "dev"]) == 0
    assert "void dev_learn(" in (out / "dev.h").read_text()
    assert main([*command, "--run", str(run), "--updater", "retrain"]) == 2
    assert "has no embedded updater 'retrain'" in capsys.readouterr().err
