"""Versions: content addressed, complete, and any change of a byte is found."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stillfit.core.errors import ConfigError, DamagedError, RegistryError
from stillfit.core.values import VersionId
from stillfit.registry import Registry, verify
from stillfit.registry.tensors import decode, encode


def test_a_version_comes_back_as_it_was_stored(registry, facts):
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.array(2.5)}
    learner = {"rows": np.zeros((0, 4)), "mask": np.array([True, False])}
    evidence = {"figures": {"width": 0.5, "gain": float("inf")}, "verdicts": ["good"]}
    version = registry.add_version(facts(3), weights=weights, learner=learner, evidence=evidence)
    found = registry.load_version(version)
    for stored, given_ in ((found.weights, weights), (found.learner, learner)):
        assert set(stored) == set(given_)
        for name, array in given_.items():
            np.testing.assert_array_equal(stored[name], array)
            assert (stored[name].dtype, stored[name].shape) == (array.dtype, array.shape)
            assert stored[name].flags.writeable
    assert found.evidence == {"figures": {"width": 0.5, "gain": "inf"}, "verdicts": ["good"]}
    assert found.manifest.facts == facts(3)
    assert found.manifest.id == version
    assert registry.manifest(version) == found.manifest


def test_the_id_is_the_sha256_of_the_manifest_and_the_manifest_holds_those_of_the_files(
    registry, add
):
    version = add(registry, 1)
    directory = registry.root / "versions" / version
    manifest = (directory / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == version
    files = json.loads(manifest)["files"]
    assert set(files) == {p.name for p in directory.iterdir()} - {"manifest.json"}
    for name, stored in files.items():
        data = (directory / name).read_bytes()
        assert stored == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_equal_content_has_an_equal_id_anywhere_and_is_stored_once(tmp_path, add):
    ids = []
    for name in ("a", "b"):
        with Registry.create(tmp_path / name) as registry:
            ids.append((add(registry, 1), add(registry, 1), add(registry, 2)))
            assert len(registry.versions()) == 2
    assert ids[0] == ids[1]
    assert ids[0][0] == ids[0][1] != ids[0][2]


def test_the_id_does_not_depend_on_the_layout_of_the_arrays_in_memory(registry, facts):
    square = np.arange(12.0).reshape(3, 4)
    same = [square, np.asfortranarray(square), square.astype(">f8"), np.ones((3, 8))[:, ::2]]
    same[3] = np.stack([square, square], 2)[:, :, 1]
    ids = {registry.add_version(facts(), weights={"w": w, "a": np.ones(1)}) for w in same}
    assert len(ids) == 1
    np.testing.assert_array_equal(registry.load_version(ids.pop()).weights["w"], square)


@pytest.mark.parametrize("change", ["weights", "learner", "evidence", "seed", "parent", "notes"])
def test_the_id_depends_on_everything(registry, facts, add, change):
    parent = add(registry, 9)

    def version(change: str) -> VersionId:
        return registry.add_version(
            facts(
                2 if change == "seed" else 1,
                parent if change == "parent" else None,
                notes={"bit-exact": True} if change == "notes" else {},
            ),
            weights={"w": np.full(3, 1.0 if change == "weights" else 0.0)},
            learner={"x": np.full(3, 1.0 if change == "learner" else 0.0)},
            evidence={"n": 2 if change == "evidence" else 1},
        )

    assert version(change) != version("nothing")


def test_lineage_goes_back_to_the_first_version_with_what_each_was_trained_on(registry, add):
    first = add(registry, 1)
    second = add(registry, 2, first)
    third = add(registry, 3, second)
    add(registry, 4, first)
    chain = registry.lineage(third)
    assert [manifest.id for manifest in chain] == [third, second, first]
    assert [manifest.facts.provenance.seed for manifest in chain] == [3, 2, 1]
    assert chain[0].facts.provenance.events == {"nominal": 100, "dead-sector": 50}
    assert chain[0].facts.provenance.span == (0.0, 12.5)
    assert chain[0].nbytes == sum(
        p.stat().st_size
        for p in (registry.root / "versions" / third).iterdir()
        if p.name != "manifest.json"
    )


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        hnp.arrays(
            st.sampled_from(
                ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "?"]
            ),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=5,
    )
)
def test_our_safetensors_bytes_are_read_alike_by_the_library(arrays):
    data = b"".join(bytes(part) for part in encode(arrays, "array"))
    for found in (decode(data, Path("x")), safetensors.numpy.load(data)):
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_every_flipped_bit_of_a_version_is_found(season):
    """Each byte of each file of a version in turn, with a bit that moves along."""
    version = sorted((season / "versions").iterdir())[0]
    for path in sorted(version.iterdir()):
        data = path.read_bytes()
        # The manifest and evidence byte by byte; of the arrays every seventh byte, to save time.
        for position in range(0, len(data), 1 if path.suffix == ".json" else 7):
            broken = bytearray(data)
            broken[position] ^= 1 << (position % 8)
            path.write_bytes(broken)
            with Registry.open(season) as registry, pytest.raises(DamagedError, match=path.name):
                registry.load_version(VersionId(version.name))
        assert [finding for finding in verify(season) if path.name in str(finding)]
        path.write_bytes(data)
    assert verify(season) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draw=st.data())
def test_verify_finds_any_flipped_bit_of_any_stored_file(season, draw):
    files = sorted(
        path
        for path in season.rglob("*")
        if path.is_file() and path.name not in ("lock", "journal.sqlite", "measurements.jsonl")
    )
    path = draw.draw(st.sampled_from(files))
    data = path.read_bytes()
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    broken = bytearray(data)
    broken[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(broken)
    try:
        findings = verify(season)
    except RegistryError as error:
        assert path.name == "REGISTRY.json", error
    else:
        assert findings
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["manifest.json", "weights.safetensors", "learner.safetensors", "evidence.json"]
)
def test_a_missing_file_of_a_version_is_named(season, name):
    version = sorted((season / "versions").iterdir())[0]
    (version / name).unlink()
    with (
        Registry.open(season) as registry,
        pytest.raises(DamagedError, match=f"{name} is missing; take it from a copy"),
    ):
        registry.load_version(VersionId(version.name))
    assert any(name in finding.what for finding in verify(season))


def test_missing_and_added_versions_and_files_are_found(season):
    first, second = sorted((season / "versions").iterdir())
    (first / "extra.txt").write_text("x")
    (season / "versions" / "notes.txt").write_text("x")
    (season / "stray").mkdir()
    found = {finding.where for finding in verify(season)}
    assert found == {f"versions/{first.name}", "versions/notes.txt", "stray"}
    shutil.rmtree(second)
    assert any(f"names version {second.name}" in f.what for f in verify(season))


def test_a_lost_parent_is_found(registry, add, root):
    first = add(registry, 1)
    second = add(registry, 2, first)
    shutil.rmtree(root / "versions" / first)
    assert [str(f) for f in verify(root)] == [f"versions/{second}: its parent {first} is not there"]


def test_storing_a_version_again_over_a_damaged_one_is_refused(registry, add):
    version = add(registry, 1)
    path = registry.root / "versions" / version / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"weights\.safetensors was altered"):
        add(registry, 1)


def test_what_cannot_be_stored_is_named(registry, facts):
    with pytest.raises(RegistryError, match="weight 'w' of type complex128 cannot be stored"):
        registry.add_version(facts(), weights={"w": np.ones(2, complex)})
    with pytest.raises(RegistryError, match=r"evidence\.figures\[1\] is a object, which JSON"):
        registry.add_version(facts(), weights={}, evidence={"figures": [1, object()]})
    with pytest.raises(RegistryError, match="evidence has the key 3; only text"):
        registry.add_version(facts(), weights={}, evidence={3: 1})
    assert registry.versions() == ()


def test_unknown_and_malformed_ids_are_refused(registry, facts):
    with pytest.raises(RegistryError, match="there is no version aaaa"):
        registry.load_version(VersionId("a" * 64))
    for bad in ("../" + "a" * 61, "A" * 64, "a" * 63, "", "a" * 64 + "\n"):
        with pytest.raises(ConfigError, match="is not a version id"):
            registry.load_version(VersionId(bad))
    with pytest.raises(RegistryError, match="there is no version bbbb"):
        registry.add_version(facts(parent=VersionId("b" * 64)), weights={})


def test_a_factory_is_a_name_and_nothing_else(registry, facts):
    from dataclasses import replace

    from stillfit.registry import Architecture

    bad = replace(facts(), architecture=Architecture("os.system('x')"))
    with pytest.raises(RegistryError, match="cannot name a factory"):
        registry.add_version(bad, weights={})


def test_symbolic_links_inside_are_refused(season, tmp_path):
    version = sorted((season / "versions").iterdir())[0]
    weights = version / "weights.safetensors"
    shutil.move(weights, tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside")
    with Registry.open(season) as registry, pytest.raises(RegistryError, match="symbolic link"):
        registry.load_version(VersionId(version.name))
    assert any("symbolic link" in finding.what for finding in verify(season))
    shutil.move(season / "versions", tmp_path / "versions")
    (season / "versions").symlink_to(tmp_path / "versions")
    with Registry.open(season) as registry, pytest.raises(RegistryError, match="symbolic link"):
        registry.versions()
    assert [str(f) for f in verify(season)] == ["versions: it is a symbolic link"]


def test_a_copy_elsewhere_is_the_same_registry(season, tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(season, copy)
    shutil.rmtree(season)
    assert verify(copy) == []
    with Registry.open(copy) as registry:
        first = registry.serving("replay")
        assert first is not None and registry.load_version(first).manifest.id == first
        assert registry.load_checkpoint("season").position == 7
