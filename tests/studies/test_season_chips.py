"""Lanes whose versions are circuits: their gates, and what becomes of candidates on the way."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillfit.apps.cli import main
from stillfit.core.events import Examples
from stillfit.core.values import Candidate, Cost, Provenance
from stillfit.l1t import scenario
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.season import Season
from stillfit.l1t.vertex import VertexTask
from stillfit.loop import Lane
from stillfit.loop.proposals import Rows, Standing, first_provenance, propose
from stillfit.loop.shelf import Shelf
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.model import Architecture, Model
from stillfit.registry import Registry
from stillfit.streams.store import Keeping, LabelledStore
from stillfit.studies.season import CHIPS, FIXED, Effort, chip_gates, season_plan, ways
from stillfit.updaters.contract import Updater

pytest.importorskip("alkaid", reason="the extra [firmware] is not installed")
torch.set_num_threads(1)

from stillfit.firmware.tools import package  # noqa: E402
from stillfit.l1t.chip import VertexChip  # noqa: E402


@pytest.fixture(scope="module")
def events() -> Examples:
    return vertex_examples(60, replace(nominal(), pileup=60.0), library=load(), seed=3)


@pytest.fixture(scope="module")
def dense(events: Examples) -> Model:
    plain = Model(E2E(seed=1), VertexTask(), Architecture("l1t.e2e", {"seed": 1}))
    return calibrated(fixed_e2e(plain), events)


@pytest.fixture(scope="module")
def sparse(dense: Model) -> Model:
    twin = dense.copy()
    MagnitudePruning(density=0.25, layers=("associate",)).mask(twin, 1.0)
    return twin


@dataclass(frozen=True, kw_only=True)
class Offers(Updater):
    """Always the same candidate."""

    model: Model

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        provenance = Provenance(updater="offers", seed=1)
        return Candidate(
            model=self.model,
            learner={},
            cost=Cost(),
            update_class="bitstream",
            provenance=provenance,
        )


def offered(registry: Registry, events: Examples, serves: Model, candidate: Model, chip):
    """What becomes of a candidate in a lane with only the device's gates."""
    lane = Lane(
        name="a", model=serves, rungs={"offers": Offers(model=candidate)},
        gates=chip_gates(chip), chip=chip,
    )  # fmt: skip
    shelf = Shelf(registry, FACTORIES, VertexTask())
    provenance = first_provenance("initial", events, 1)
    version = shelf.put_first(serves, provenance, chip.footprint(serves))
    rows = Rows(condition="nominal", fresh=events, new=events, old={})
    standing = Standing(
        serving=version, served=(version,), remembered={}, learners={},
        memory=LabelledStore(Keeping(budget_bytes=1 << 24)),
    )  # fmt: skip
    return propose(lane, "offers", shelf, rows, standing, np.random.default_rng(1)), version


def test_a_larger_circuit_is_refused_for_its_footprint_and_the_same_is_let_through(
    tmp_path: Path, events: Examples, sparse: Model, dense: Model
) -> None:
    chip = VertexChip(vectors=1000)
    with Registry.create(tmp_path / "registry") as registry:
        larger, _ = offered(registry, events, sparse, dense, chip)
        same, _ = offered(registry, events, sparse, sparse, chip)
    refused = [v for v in larger.tried.verdicts if not v.accepted]
    assert [verdict.gate for verdict in refused] == ["footprint-stable"]
    assert "it grows by more than 2%: LUT" in refused[0].because
    assert larger.footprint == chip.footprint(dense) and larger.equality.wrong == 0
    assert all(verdict.accepted for verdict in same.tried.verdicts)


def test_a_crash_of_a_tool_refuses_the_candidate_and_leaves_what_serves(
    tmp_path: Path, events: Examples, sparse: Model, dense: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = VertexChip(vectors=1000)
    chip.footprint(sparse)

    def broken(*args: object, **kwargs: object) -> object:
        raise StopIteration

    monkeypatch.setattr(package("alkaid.trace"), "trace", broken)
    with Registry.create(tmp_path / "registry") as registry:
        found, version = offered(registry, events, sparse, dense, chip)
        assert found.candidate is None
        assert "alkaid failed while tracing weight network (StopIteration)" in found.tried.skipped
        assert registry.manifest(version).facts.footprint == chip.footprint(sparse)


def test_lanes_with_a_chip_serve_the_fixed_network_under_the_gates_of_the_device(
    events: Examples, sparse: Model
) -> None:
    made = replace(scenario.load("footprint"), fills=3, events=50)
    names = ("frozen", *CHIPS)
    other = Model(E2E(seed=2), VertexTask(), Architecture("l1t.e2e", {"seed": 2}))
    plan = season_plan(
        Season(made, load()), names, {"network": other, FIXED: sparse}, events, seed=1
    )
    lanes = {lane.name: lane for lane in plan.lanes}
    assert lanes["frozen"].chip is None and lanes["frozen"].model is other
    for name, chip in CHIPS.items():
        lane = lanes[name]
        assert lane.chip == chip and lane.model is sparse
        gates = {gate.name for gate in lane.gates}
        assert {"fits", "footprint-stable", "latency", "bit-exact", "better-on-new"} <= gates
        for rung in ways(Effort())[name][1].values():
            assert rung.update_class == chip.update_class


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, events: Examples, sparse: Model):
    """A registry with a fixed-point and a float version."""
    path = tmp_path_factory.mktemp("store") / "registry"
    with Registry.create(path) as registry:
        shelf = Shelf(registry, FACTORIES, VertexTask())
        provenance = first_provenance("initial", events, 1)
        fixed = shelf.put_first(sparse, provenance)
        plain = Model(E2E(seed=2), VertexTask(), Architecture("l1t.e2e", {"seed": 2}))
        other = shelf.put_first(plain, provenance)
    return path, fixed, other


def test_the_command_tells_what_a_version_needs(store, sparse: Model, capsys) -> None:
    path, fixed, _ = store
    assert main(["firmware", "footprint", fixed[:12], "--store", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = VertexChip().footprint(sparse)
    assert told["version"] == fixed and told["fits"]
    assert told["footprint"]["lut"] == found.lut
    assert main(["firmware", "footprint", fixed[:12], "--store", str(path)]) == 0
    out = capsys.readouterr().out
    assert "weight network" in out and "traced" in out and "estimated" in out
    assert "cycles (" in out and "it takes at most" in out


def test_the_command_says_no_where_it_does_not_fit(store, capsys) -> None:
    path, fixed, _ = store
    device = ["--device", "xc7a35t"]
    assert main(["firmware", "footprint", fixed[:12], "--store", str(path), *device]) == 1
    assert "too large for xc7a35t" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "xcvu13"], "did you mean 'xcvu13p'"),
        (["--design", "loose"], "--design is one of constant, reloadable"),
    ],
)
def test_wrong_use_is_named(store, arguments: list[str], text: str, capsys) -> None:
    path, fixed, _ = store
    assert main(["firmware", "footprint", fixed[:12], "--store", str(path), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_float_version_has_no_circuit(store, capsys) -> None:
    path, _, other = store
    assert main(["firmware", "footprint", other[:12], "--store", str(path)]) == 2
    assert "convert the model first" in capsys.readouterr().err
