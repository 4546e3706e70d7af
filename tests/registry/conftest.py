"""Small registries for the tests of this room."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillfit.core.values import Footprint, Provenance, VersionId
from stillfit.registry import Architecture, Registry, VersionFacts


def facts_of(seed: int = 1, parent: VersionId | None = None, **other: Any) -> VersionFacts:
    return VersionFacts(
        architecture=Architecture("stillfit.models.tables:mlp", {"hidden": [10, 10]}),
        update_class="weights",
        provenance=Provenance(
            updater="retrain",
            seed=seed,
            data=("0" * 64,),
            span=(0.0, 12.5),
            events={"nominal": 100, "dead-sector": 50},
        ),
        footprint=Footprint(parameters=12, weight_bytes=48, macs_per_event=12),
        code="0.1.0",
        parent=parent,
        **other,
    )


@pytest.fixture
def facts() -> Callable[..., VersionFacts]:
    return facts_of


@pytest.fixture
def fast_dir() -> Iterator[Path]:
    """A directory in memory where there is one, for tests that write thousands of files."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def registry(root: Path) -> Iterator[Registry]:
    with Registry.create(root) as found:
        yield found


@pytest.fixture
def add() -> Callable[..., VersionId]:
    """Store a small version whose content follows from its seed."""

    def make(registry: Registry, seed: int, parent: VersionId | None = None) -> VersionId:
        rng = np.random.default_rng(seed)
        return registry.add_version(
            facts_of(seed, parent),
            weights={"layer.weight": rng.normal(size=(3, 4)).astype(np.float32)},
            learner={"seen": np.arange(seed + 1), "events": rng.normal(size=(5, 2))},
            evidence={"verdicts": [{"gate": "better", "accepted": True, "figures": {"d": 0.25}}]},
        )

    return make


@pytest.fixture
def season(root: Path, add: Callable[..., VersionId]) -> Path:
    """A closed registry: two lanes, two versions, a switch, a rollback, a hold, a checkpoint."""
    with Registry.create(root) as registry:
        first, second = add(registry, 1), None
        for lane in ("replay", "frozen"):
            registry.writer(lane).deploy(first, 0.0, "first version")
        writer = registry.writer("replay", registry.head.count)
        second = add(registry, 2, first)
        writer.append("verdict", 5.0, version=second, payload={"because": "better by 0.25"})
        writer.switch(second, 10.0, "convinced the gates")
        writer.hold(20.0, "worse on probation")
        writer.rollback(first, 20.0, "worse on probation")
        registry.measure("replay", second, {"seconds": 1.5})
        registry.save_checkpoint(
            "season", 7, {"positions": {"replay": 6}}, {"x": np.arange(20_000.0), "y": np.ones(3)}
        )
    return root
