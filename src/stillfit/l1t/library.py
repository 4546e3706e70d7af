"""A library of simulated proton-proton interactions, from which events are composed.

Each process of the library is one pair of files: `<process>.npz`, compact arrays of the charged
final particles with pT > 1.5 GeV and |eta| < 2.6, and `<process>.json`, how they were made. The
package ships a library of its own making, so nobody needs the generator to start;
`generate` makes another one (extra `pythia`). Recipe and checks: docs/l1t-library.md.

Sources: Pythia 8.3, arXiv:2203.11601; helix and perigee: any tracking textbook, the sign of d0 is
that of CMS (d0 = -dxy).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, DataError, MissingExtraError
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean

FORMAT = 1
PT_MIN = 1.5  # GeV: half a GeV below the track finder's threshold, for resolution and pT scale
ETA_MAX = 2.6
FIELD = 3.8  # tesla
ENERGY = 14_000.0  # GeV
ELECTRON, MUON, HADRON = 0, 1, 2
DATA = Path(__file__).parent / "data" / "library"

# What the package ships: interactions of each process, and the seed.
SHIPPED: Mapping[str, int] = {
    "inelastic": 300_000,
    "ttbar": 15_000,
    "zmumu": 24_000,
    "hbb": 8_000,
}
SHIPPED_SEED = 20221103

Split: TypeAlias = Literal["train", "validation", "test"]
Progress: TypeAlias = Callable[[int, int], None]
# Of ten consecutive interactions of a process, which ones belong to a split: 80/10/10.
SPLITS: Mapping[str, tuple[int, ...]] = {
    "train": (0, 1, 2, 3, 4, 5, 6, 7),
    "validation": (8,),
    "test": (9,),
}

# Stored codes. pT: relative steps of 1.3e-4 from 1.5 to 7500 GeV; eta, phi: 16-bit fixed point.
_PT_STEP = 1.3e-4
_ETA_LSB = ETA_MAX / 32768
_PHI_LSB = 2 * np.pi / 65536
_VERTEX_LSB = 1e-4  # cm
_NEGATIVE, _KIND, _DISPLACED = 0b0001, 0b0110, 0b1000


class Process(NamedTuple):
    """What Pythia is told. `chunk`: interactions of one seed (initialising costs up to 5 s)."""

    settings: tuple[str, ...]
    chunk: int
    what: str


PROCESSES: Mapping[str, Process] = {
    "inelastic": Process(("SoftQCD:inelastic = on",), 20_000, "pile-up"),
    "ttbar": Process(("Top:gg2ttbar = on", "Top:qqbar2ttbar = on"), 1_000, "top pairs"),
    "zmumu": Process(
        (
            "WeakSingleBoson:ffbar2gmZ = on",
            "PhaseSpace:mHatMin = 60.",
            "23:onMode = off",
            "23:onIfAny = 13",
        ),
        2_000,
        "gamma*/Z to a muon pair, mass over 60 GeV",
    ),
    "hbb": Process(
        ("HiggsSM:gg2H = on", "25:onMode = off", "25:onIfAny = 5"), 1_000, "gg to H to b bbar"
    ),
}


class Chunk(NamedTuple):
    """Interactions as the generator gives them: float64, cm and GeV, `vertex` (particles, 3)."""

    counts: NDArray[np.int64]
    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    phi: NDArray[np.float64]
    vertex: NDArray[np.float64]
    charge: NDArray[np.int8]
    kind: NDArray[np.int8]
    failed: int
    sigma_mb: float


@dataclass(frozen=True)
class Library:
    """Interactions of several processes in one flat table.

    Process `p` owns the interactions `bounds[p]` to `bounds[p + 1]`; interaction `i` owns the
    particles `offsets[i]` to `offsets[i + 1]`, and may own none. Every particle is described at
    its point of closest approach to the beam line (x = y = 0) of its interaction, on the helix
    through its production vertex in 3.8 T along +z:

    pt (GeV), eta, phi (rad), z0 (cm, relative to the interaction), d0 (cm; the perigee is
    (d0 sin phi, -d0 cos phi), d0 = -dxy), all float32; charge (+-1) and kind (0 electron, 1 muon,
    2 hadron), int8; r_prod (cm, float32): radius of the production vertex, below which there is
    no particle to measure. A positive particle turns clockwise: phi(s) = phi - s / R.

    `meta`: the sidecar of each process. Memory: 26 bytes per particle.
    """

    processes: tuple[str, ...]
    bounds: NDArray[np.int64]
    offsets: NDArray[np.int64]
    pt: NDArray[np.float32]
    eta: NDArray[np.float32]
    phi: NDArray[np.float32]
    z0: NDArray[np.float32]
    d0: NDArray[np.float32]
    r_prod: NDArray[np.float32]
    charge: NDArray[np.int8]
    kind: NDArray[np.int8]
    meta: Mapping[str, Mapping[str, Any]]

    def interactions(self, process: str, split: str | None = None) -> NDArray[np.int64]:
        """Rows of the interactions of a process, those of one split or (None) all of them.

        The split depends on the place of the interaction in its process alone, so that it stays
        when a library is enlarged: no composed event of the test split shares an interaction
        with one of the training split.
        """
        if process not in self.processes:
            raise ConfigError(
                f"the library has no process {process!r}{did_you_mean(process, self.processes)}; "
                f"it holds {', '.join(self.processes)}"
            )
        if split is not None and split not in SPLITS:
            raise ConfigError(f"there is no split {split!r}{did_you_mean(split, tuple(SPLITS))}")
        return self._rows[process, split]

    @cached_property
    def _rows(self) -> dict[tuple[str, str | None], NDArray[np.int64]]:
        rows: dict[tuple[str, str | None], NDArray[np.int64]] = {}
        for place, process in enumerate(self.processes):
            first, last = self.bounds[place], self.bounds[place + 1]
            rows[process, None] = np.arange(first, last)
            digit = (rows[process, None] - first) % 10
            for split, digits in SPLITS.items():
                rows[process, split] = rows[process, None][np.isin(digit, digits)]
        return rows

    @property
    def counts(self) -> NDArray[np.int64]:
        """Particles of each interaction."""
        return np.diff(self.offsets)


def perigee(
    vertex: NDArray[np.float64],
    pt: NDArray[np.float64],
    eta: NDArray[np.float64],
    phi: NDArray[np.float64],
    charge: NDArray[np.int8],
    field: float = FIELD,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Direction phi, z0 and d0 (cm) where the helix through `vertex` is closest to the beam line.

    `vertex` (n, 3) in cm; `eta`, `phi` there. With R = pT / (0.00299792458 B) cm, the centre is
    v + q R (sin phi, -cos phi), d0 = q (|centre| - R), z0 = vz - s sinh(eta) with s the arc from
    the perigee to the vertex. Without a field this is the straight line
    z0 = vz - (vx cos phi + vy sin phi) sinh(eta), d0 = vx sin phi - vy cos phi.
    """
    x, y, z = vertex.T
    sin, cos = np.sin(phi), np.cos(phi)
    if field == 0:
        return phi, z - (x * cos + y * sin) * np.sinh(eta), x * sin - y * cos
    q = charge.astype(np.float64)
    radius = pt / (0.00299792458 * field)
    centre_x, centre_y = x + q * radius * sin, y - q * radius * cos
    at = np.arctan2(q * centre_x, -q * centre_y)
    arc = q * radius * _wrap(at - phi)
    return at, z - arc * np.sinh(eta), q * (np.hypot(centre_x, centre_y) - radius)


def _wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def generate(
    process: str,
    interactions: int,
    *,
    seed: int,
    out: Path,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Generate one process into `out` and return its sidecar.

    Chunks of fixed length have seeds of their own, so the files do not depend on `workers`
    (processes: the generator holds Python's lock), and a longer library starts with the
    interactions of a shorter one. `progress(done, of)` counts interactions. Cost on one core:
    about 470 inelastic or 100 to 130 hard interactions per second.
    Errors: `MissingExtraError` without Pythia, `ConfigError` for a wrong argument.
    """
    if process not in PROCESSES:
        raise ConfigError(
            f"there is no process {process!r}{did_you_mean(process, tuple(PROCESSES))}"
        )
    if interactions < 1 or workers < 1:
        raise ConfigError(
            f"interactions and workers must be at least 1, got {interactions} and {workers}"
        )
    version = _pythia_version()
    size = PROCESSES[process].chunk
    sizes = [min(size, interactions - start) for start in range(0, interactions, size)]
    seeds = [chunk_seed(seed, process, chunk) for chunk in range(len(sizes))]
    names = [process] * len(sizes)
    chunks: list[Chunk] = []
    if workers == 1:
        for chunk in map(run_chunk, names, seeds, sizes):
            chunks.append(chunk)
            _report(progress, chunks, interactions)
    else:
        with ProcessPoolExecutor(min(workers, len(sizes)), get_context("spawn")) as pool:
            for chunk in pool.map(run_chunk, names, seeds, sizes):
                chunks.append(chunk)
                _report(progress, chunks, interactions)
    return write(process, chunks, out, seed=seed, version=version)


def generate_all(
    out: Path,
    *,
    interactions: Mapping[str, int] = SHIPPED,
    seed: int = SHIPPED_SEED,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Generate several processes into `out`, by default what the package ships, file by file.

    `progress(process, done, of)`. The default took 13 minutes on 2 shared cores. A process that is
    finished stays when a later one fails; other processes in `out` are left alone.
    """
    unknown = [process for process in interactions if process not in PROCESSES]
    if unknown:  # before an hour of the others
        raise ConfigError(
            f"there is no process {unknown[0]!r}{did_you_mean(unknown[0], tuple(PROCESSES))}"
        )
    return tuple(
        generate(
            process,
            number,
            seed=seed,
            out=out,
            workers=workers,
            progress=None if progress is None else partial(progress, process),
        )
        for process, number in interactions.items()
    )


def _report(progress: Progress | None, chunks: list[Chunk], of: int) -> None:
    if progress is not None:
        progress(sum(len(chunk.counts) for chunk in chunks), of)


def chunk_seed(seed: int, process: str, chunk: int) -> int:
    """Pythia's seed of one chunk, 1 to 900 000 000."""
    return Seeds(seed).integer("l1t-library", process, chunk) % 900_000_000 + 1


def _pythia_version() -> str:
    try:
        return importlib.metadata.version("pythia8mc")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            "making a particle library needs Pythia 8, which is not installed; "
            "run: pip install 'stillfit[pythia]' (the shipped library needs nothing)"
        ) from None


def run_chunk(process: str, seed: int, interactions: int) -> Chunk:
    """Run the generator for one chunk. Kept: final, charged, pT > 1.5 GeV, |eta| < 2.6."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    for line in (
        "Print:quiet = on",
        f"Beams:eCM = {ENERGY}",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        *PROCESSES[process].settings,
    ):
        if not pythia.readString(line):
            raise ConfigError(f"Pythia does not understand the setting {line!r}")
    if not pythia.init():
        raise DataError(f"Pythia could not start for process {process!r}; is its data path intact?")
    counts: list[int] = []
    rows: list[tuple[float, ...]] = []
    failed = 0
    while len(counts) < interactions:
        if not pythia.next():
            failed += 1  # rare: a string that could not be hadronised; Pythia says to go on
            if failed > 100 + interactions // 100:
                raise DataError(f"Pythia failed {failed} times for process {process!r}")
            continue
        before = len(rows)
        event = pythia.event
        for index in range(event.size()):
            particle = event[index]
            if not particle.isFinal() or particle.pT() <= PT_MIN:
                continue
            if abs(particle.eta()) >= ETA_MAX or not particle.isCharged():
                continue
            species = abs(particle.id())
            kind = ELECTRON if species == 11 else MUON if species == 13 else HADRON
            rows.append(
                (
                    particle.pT(),
                    particle.eta(),
                    particle.phi(),
                    particle.xProd(),
                    particle.yProd(),
                    particle.zProd(),
                    particle.charge(),
                    kind,
                )
            )
        counts.append(len(rows) - before)
    table = np.array(rows, np.float64).reshape(-1, 8)
    return Chunk(
        counts=np.array(counts, np.int64),
        pt=table[:, 0],
        eta=table[:, 1],
        phi=table[:, 2],
        vertex=table[:, 3:6] / 10.0,  # mm to cm
        charge=table[:, 6].astype(np.int8),
        kind=table[:, 7].astype(np.int8),
        failed=failed,
        sigma_mb=float(pythia.infoPython().sigmaGen()),
    )


def write(process: str, chunks: list[Chunk], out: Path, *, seed: int, version: str) -> Path:
    """Encode chunks into `<process>.npz` and its sidecar, each written whole or not at all."""
    arrays = encode(chunks)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    sidecar = {
        "format": FORMAT,
        "process": process,
        "what": PROCESSES[process].what,
        "file": f"{process}.npz",
        "sha256": hashlib.sha256(data).hexdigest(),
        "interactions": len(arrays["counts"]),
        "particles": len(arrays["pt"]),
        "selection": f"final, charged, pT > {PT_MIN} GeV, |eta| < {ETA_MAX}",
        "generator": f"pythia8mc {version}",
        "cite": "arXiv:2203.11601",
        "energy_gev": ENERGY,
        "settings": list(PROCESSES[process].settings),
        "seed": seed,
        "chunk": PROCESSES[process].chunk,
        "failed": sum(chunk.failed for chunk in chunks),
        "sigma_mb": float(np.mean([chunk.sigma_mb for chunk in chunks])),
    }
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / f"{process}.npz", data)
    path = out / f"{process}.json"
    _replace(path, (json.dumps(sidecar, indent=2) + "\n").encode())
    return path


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def encode(chunks: list[Chunk]) -> dict[str, NDArray[Any]]:
    """Chunks as stored: 16-bit codes, and vertices (micrometres) of displaced particles only."""
    pt = np.concatenate([chunk.pt for chunk in chunks])
    eta = np.concatenate([chunk.eta for chunk in chunks])
    phi = np.concatenate([chunk.phi for chunk in chunks])
    vertex = np.rint(np.concatenate([chunk.vertex for chunk in chunks]) / _VERTEX_LSB)
    charge = np.concatenate([chunk.charge for chunk in chunks])
    kind = np.concatenate([chunk.kind for chunk in chunks])
    displaced = np.any(vertex != 0, axis=1)
    flags = (charge < 0) * _NEGATIVE | (kind << 1) | displaced * _DISPLACED
    return {
        "counts": np.concatenate([chunk.counts for chunk in chunks]).astype("<u2"),
        "pt": np.clip(np.rint(np.log(pt / PT_MIN) / _PT_STEP), 0, 65535).astype("<u2"),
        "eta": np.clip(np.floor(eta / _ETA_LSB), -32768, 32767).astype("<i2"),
        "phi": np.clip(np.floor(_wrap(phi) / _PHI_LSB), -32768, 32767).astype("<i2"),
        "flags": flags.astype("u1"),
        "vertex": vertex[displaced].clip(-(2**31), 2**31 - 1).astype("<i4"),
    }


def load(path: Path | None = None) -> Library:
    """Read a library, by default the shipped one. It takes about 0.2 s: keep what you got.

    Each file is checked against the hash in its sidecar. Errors: `DataError` for a missing,
    damaged or newer file, `ConfigError` for a folder that is no library.
    """
    folder = DATA if path is None else Path(path)
    sidecars = sorted(folder.glob("*.json"))
    if not sidecars:
        raise ConfigError(
            f"{folder} holds no particle library (a .json file per process); "
            "make one with `stillfit l1t library`"
        )
    meta = {file.stem: _read_sidecar(file) for file in sidecars}
    parts = [
        _decode(_read_arrays(folder, entry), folder / str(entry["file"])) for entry in meta.values()
    ]
    counts = [part["counts"] for part in parts]
    columns = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("pt", "eta", "phi", "z0", "d0", "r_prod", "charge", "kind")
    }
    return Library(
        processes=tuple(meta),
        bounds=np.cumsum([0, *map(len, counts)], dtype=np.int64),
        offsets=np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64),
        **columns,
        meta=meta,
    )


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text())
        number = entry["format"]
        _ = entry["file"], entry["sha256"], entry["interactions"], entry["particles"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not the description of a library file ({error!r}); was it cut or edited?"
        ) from None
    if number != FORMAT:
        raise DataError(
            f"{path} has format {number!r}, this stillfit reads format {FORMAT}; "
            "install the stillfit that wrote it, or make the library again"
        )
    return entry  # type: ignore[no-any-return]


def _read_arrays(folder: Path, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    name = str(entry["file"])
    path = folder / name
    if path.name != name:
        raise DataError(f"a library file must lie beside its description, got {name!r}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; its description is there: copy both files") from None
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {found[:12]}..., its description says "
            f"{str(entry['sha256'])[:12]}...; copy it again or make it again"
        )
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("counts", "pt", "eta", "phi", "flags", "vertex")}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a library file ({error})") from None
    sizes = {len(arrays[key]) for key in ("pt", "eta", "phi", "flags")}
    particles, interactions = int(entry["particles"]), int(entry["interactions"])
    if (
        sizes != {particles}
        or len(arrays["counts"]) != interactions
        or int(arrays["counts"].sum(dtype=np.int64)) != particles
        or arrays["vertex"].shape != (np.count_nonzero(arrays["flags"] & _DISPLACED), 3)
    ):
        raise DataError(
            f"{path} does not hold the {interactions} interactions and {particles} particles of "
            "its description; make it again"
        )
    return arrays


def _decode(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    flags = arrays["flags"]
    pt = PT_MIN * np.exp(arrays["pt"] * _PT_STEP)
    eta = (arrays["eta"] + 0.5) * _ETA_LSB
    phi = (arrays["phi"] + 0.5) * _PHI_LSB
    charge = np.where(flags & _NEGATIVE, -1, 1).astype(np.int8)
    kind = ((flags & _KIND) >> 1).astype(np.int8)
    if np.any(kind > HADRON):
        raise DataError(f"{path} holds particles of an unknown kind; make it again")
    z0, d0, r_prod = np.zeros_like(pt), np.zeros_like(pt), np.zeros_like(pt)
    far = np.flatnonzero(flags & _DISPLACED)
    vertex = arrays["vertex"] * _VERTEX_LSB
    phi[far], z0[far], d0[far] = perigee(vertex, pt[far], eta[far], phi[far], charge[far])
    r_prod[far] = np.hypot(vertex[:, 0], vertex[:, 1])
    single = {"pt": pt, "eta": eta, "phi": phi, "z0": z0, "d0": d0, "r_prod": r_prod}
    return {
        "counts": arrays["counts"].astype(np.int64),
        "charge": charge,
        "kind": kind,
        **{name: values.astype(np.float32) for name, values in single.items()},
    }
