"""Files written by old releases load for ever; newer ones are refused with words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stillfit.core.errors import DamagedError, RegistryError
from stillfit.core.values import VersionId
from stillfit.registry import Registry, verify
from stillfit.registry.canon import canonical, sha256

OLD = Path(__file__).with_name("data") / "format-1"
FIRST = VersionId("9ea45e6cbece6dcc4857e9f2ad2ce8a153dd1cf0b4d051a43767841e97d83275")
SECOND = VersionId("24d6133d5e1b9e9cdbb98435f09e860b84ba87384c28095ebe33b0fdc55975e7")


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


def test_a_registry_of_format_1_is_whole_and_is_read_in_place():
    assert verify(OLD) == []
    with Registry.open(OLD) as registry:
        assert registry.versions() == tuple(sorted((FIRST, SECOND)))
        assert registry.serving("replay", at=7199.0) == FIRST
        assert registry.change("replay").because == "convinced the gates; the window is open"
        assert registry.serving("replay") == SECOND
        hold = registry.held("replay")
        assert (hold.actor, hold.because, hold.seq) == ("anna", "shift change", 3)
        assert registry.measurements()[0].figures == {"seconds": 2.5}
        found = registry.load_version(SECOND)
        np.testing.assert_array_equal(
            found.weights["layer.weight"], [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
        )
        assert found.weights["layer.weight"].dtype == np.float32
        np.testing.assert_array_equal(found.learner["events"], [0.0, 1.0, 2.0, 3.0])
        assert found.evidence["verdicts"][0]["gain"] == 0.25
        assert found.manifest.facts.architecture.arguments == {"hidden": [10, 10]}
        assert found.manifest.facts.notes == {"bit-exact": True}
        first, second = reversed(registry.lineage(SECOND))
        assert (first.id, second.id) == (FIRST, SECOND)
        assert second.facts.provenance.span == (0.0, 3600.5)
        assert second.facts.provenance.events == {"nominal": 4000, "dead-sector": 200}
        saved = registry.load_checkpoint("season")
        assert (saved.position, saved.state) == (42, {"position": 3, "rate": 0.5})
        np.testing.assert_array_equal(saved.arrays["large"], np.arange(10_000.0))
        assert saved.arrays["small"].dtype == np.int16
    assert not (OLD / "lock").exists()


def test_a_run_goes_on_in_a_registry_of_format_1(old):
    with Registry.open(old, write=True) as registry:
        writer = registry.writer("replay", registry.load_checkpoint("season").state["position"])
        assert [entry.kind for entry in writer.commands(8000.0, 43)] == ["hold"]
        writer.resume(8000.0, "goes on")
        writer.rollback(FIRST, 8000.0, "back")
    assert verify(old) == []


def test_a_newer_registry_is_refused(old):
    path = old / "REGISTRY.json"
    table = json.loads(path.read_bytes()) | {"format": 2}
    path.write_text(json.dumps(table))
    for call in (lambda: Registry.open(old), lambda: Registry.open(old, write=True)):
        with pytest.raises(RegistryError, match=r"has format 2, this release reads up to 1: it"):
            call()
    with pytest.raises(RegistryError, match="written by a newer stillfit, update this one"):
        verify(old)
    for text in ("", "[]", "{}", '{"format": "1"}', '{"format": true}', '{"format": 0}'):
        path.write_text(text)
        with pytest.raises(DamagedError, match=r"REGISTRY\.json was altered: it is not valid"):
            Registry.open(old)


def test_a_newer_manifest_is_refused(old):
    path = old / "versions" / SECOND / "manifest.json"
    data = path.read_bytes().replace(b'"format": 1', b'"format": 2')
    newer = VersionId(sha256(data))
    path.parent.rename(path.parent.with_name(newer))
    (old / "versions" / newer / "manifest.json").write_bytes(data)
    with (
        Registry.open(old) as registry,
        pytest.raises(RegistryError, match="has format 2, this release reads up to 1: update"),
    ):
        registry.manifest(newer)


def test_a_newer_checkpoint_is_refused(old):
    (path,) = (old / "checkpoints").rglob("*.json")
    body = json.loads(path.read_bytes()) | {"format": 3}
    del body["sha256"]
    body["sha256"] = sha256(canonical(body))
    path.write_text(json.dumps(body, sort_keys=True, indent=1) + "\n")
    with (
        Registry.open(old) as registry,
        pytest.raises(RegistryError, match="has format 3, this release reads up to 2: update"),
    ):
        registry.load_checkpoint("season")
