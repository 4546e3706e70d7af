"""Versions: directories named by the hash of their manifest, which holds the hash of every file.

`sha256sum versions/<id>/manifest.json` prints the id, and the manifest lists the hashes of the
rest: no tool of ours is needed to check one. Nothing of the wall clock or the machine is inside,
so the same training gives the same id everywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stillfit.core.arrays import Array
from stillfit.core.errors import DamagedError, RegistryError
from stillfit.core.values import (
    JSON,
    Footprint,
    Provenance,
    UpdateClass,
    VersionId,
    version_id,
)
from stillfit.registry.canon import plain, readable, sha256
from stillfit.registry.durable import Parts, inside, write_dir
from stillfit.registry.tensors import decode, encode

T = TypeVar("T")
FORMAT = 1
MANIFEST, WEIGHTS, LEARNER, EVIDENCE = (
    "manifest.json",
    "weights.safetensors",
    "learner.safetensors",
    "evidence.json",
)
_FACTORY = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,199}")


@dataclass(frozen=True)
class Architecture:
    """How to build the network: the name of a factory and its arguments, never code.

    `factory` is a name that the caller resolves, such as `package.module:function`.
    """

    factory: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """What is known of a version beside its arrays. No wall clock, no machine in it.

    `parent`: the version that it was made from, None for a first one. `code`: version of the code
    that made it. `notes`: further facts, such as a firmware report.
    """

    architecture: Architecture
    update_class: UpdateClass
    provenance: Provenance
    footprint: Footprint
    code: str
    parent: VersionId | None = None
    notes: Mapping[str, JSON] = field(default_factory=dict)


class Stored(NamedTuple):
    """A file of a version: its hash and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The identity of a version: its facts and its files."""

    id: VersionId
    facts: VersionFacts
    files: Mapping[str, Stored]

    @property
    def nbytes(self) -> int:
        """Bytes of the version's files on disk, the manifest not counted."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """A version with all that it holds, every hash checked."""

    manifest: Manifest
    weights: Mapping[str, Array]
    learner: Mapping[str, Array]
    evidence: JSON


def store_version(
    root: Path,
    facts: VersionFacts,
    *,
    weights: Mapping[str, Array],
    learner: Mapping[str, Array],
    evidence: Any,
) -> VersionId:
    """Write a version and return its id; one that is already there is checked and left alone.

    Cost: the arrays are hashed and written once, four flushes of files and two of directories.
    """
    if facts.parent is not None:
        require_version(root, facts.parent)
    if not _FACTORY.fullmatch(facts.architecture.factory):
        raise RegistryError(
            f"{facts.architecture.factory!r} cannot name a factory: "
            "use a name such as package.module:function"
        )
    files: dict[str, Parts] = {
        WEIGHTS: encode(weights, "weight"),
        LEARNER: encode(learner, "learner state"),
        EVIDENCE: [readable(plain(evidence, "evidence"))],
    }
    table: dict[str, JSON] = {
        "format": FORMAT,
        "facts": plain(facts, "version"),
        "files": {name: dict(_stored(parts)._asdict()) for name, parts in files.items()},
    }
    data = readable(table)
    found = VersionId(sha256(data))
    path = inside(root, "versions", found)
    if path.exists():
        for fault in version_faults(root, found):
            raise DamagedError(f"{fault}; take versions/{found} from a copy of the registry")
    else:
        write_dir(path, files | {MANIFEST: [data]})
    return found


def load_version(root: Path, version: VersionId) -> StoredVersion:
    """Read a version, checking every hash; `DamagedError` names the file that differs."""
    manifest = load_manifest(root, version)
    data = {name: _checked(root, version, name, manifest) for name in (WEIGHTS, LEARNER, EVIDENCE)}
    path = inside(root, "versions", version)
    return StoredVersion(
        manifest=manifest,
        weights=decode(data[WEIGHTS], path / WEIGHTS),
        learner=decode(data[LEARNER], path / LEARNER),
        evidence=json.loads(data[EVIDENCE]),
    )


def load_manifest(root: Path, version: VersionId) -> Manifest:
    """Read and check a manifest alone."""
    require_version(root, version)
    path = inside(root, "versions", version, MANIFEST)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing; take it from a copy of the registry") from None
    if sha256(data) != version:
        raise DamagedError(
            f"{path} was altered: its hash is not the version's id; take it from a copy"
        )
    table = json.loads(data)
    if table["format"] > FORMAT:
        raise RegistryError(
            f"{path} has format {table['format']}, this release reads up to {FORMAT}: "
            "update stillfit"
        )
    return Manifest(
        id=version,
        facts=_facts(table["facts"]),
        files={name: Stored(**stored) for name, stored in table["files"].items()},
    )


def lineage(root: Path, version: VersionId) -> tuple[Manifest, ...]:
    """The manifests from a version back to the first one that it came from."""
    chain = [load_manifest(root, version)]
    while (parent := chain[-1].facts.parent) is not None:
        chain.append(load_manifest(root, parent))
    return tuple(chain)


def list_versions(root: Path) -> tuple[VersionId, ...]:
    """Ids of all versions, sorted."""
    directory = inside(root, "versions")
    if not directory.is_dir():
        return ()
    names = sorted(path.name for path in directory.iterdir())
    return tuple(VersionId(name) for name in names if re.fullmatch(r"[0-9a-f]{64}", name))


def require_version(root: Path, version: VersionId) -> None:
    """`RegistryError` unless the registry holds `version`."""
    if not inside(root, "versions", version_id(version)).is_dir():
        raise RegistryError(
            f"there is no version {version} in {root}; list them with `stillfit versions`"
        )


def version_faults(root: Path, version: VersionId) -> Iterator[str]:
    """Everything in a version's directory that is not as it was written.

    Reads every byte once; cost about 1 s per GB.
    """
    try:
        manifest = load_manifest(root, version)
        directory = inside(root, "versions", version)
    except RegistryError as error:
        yield str(error)
        return
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST and path.name not in manifest.files:
            yield f"{path} does not belong to the version"
    for name in manifest.files:
        try:
            _checked(root, version, name, manifest)
        except RegistryError as error:
            yield str(error)


def _stored(parts: Parts) -> Stored:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return Stored(digest.hexdigest(), sum(len(part) for part in parts))


def _checked(root: Path, version: VersionId, name: str, manifest: Manifest) -> bytes:
    path = inside(root, "versions", version, name)
    stored = manifest.files[name]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing; take it from a copy of the registry") from None
    if len(data) != stored.bytes:
        raise DamagedError(
            f"{path} has {len(data)} bytes, {stored.bytes} were written; take it from a copy"
        )
    if sha256(data) != stored.sha256:
        raise DamagedError(
            f"{path} was altered: its content does not have the hash that its manifest gives; "
            "take it from a copy"
        )
    return data


def _facts(table: Mapping[str, Any]) -> VersionFacts:
    """Read what `plain` made of `VersionFacts`, by any release that wrote this format."""
    made = table["provenance"]
    span = None if made["span"] is None else tuple(made["span"])
    return _build(
        VersionFacts,
        table,
        architecture=_build(Architecture, table["architecture"]),
        provenance=_build(Provenance, made, data=tuple(made["data"]), span=span),
        footprint=_build(Footprint, table["footprint"]),
    )


def _build(cls: type[T], table: Mapping[str, Any], **read: Any) -> T:
    """A dataclass from the fields that the file has; later ones keep their defaults."""
    names = [f.name for f in dataclasses.fields(cls) if f.name in table]  # type: ignore[arg-type]
    return cls(**({name: table[name] for name in names} | read))
