"""L1TrackNtuple: the ROOT trees that CMS people have, as a stream.

Branches as the CMS software's L1TrackNtupleMaker fills them: one number per track, `trk_...`, and
`pv_MC`. uproot and awkward (extra `hep`) are imported when a file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Column, Ragged, names_of
from stillfit.core.errors import ConfigError, DataError, MissingExtraError
from stillfit.core.events import Block, Event, Labels
from stillfit.core.tables import did_you_mean
from stillfit.l1t import quality
from stillfit.streams.columns import files_of
from stillfit.streams.contract import checked_start

TREE = "L1TrackNtuple/eventTree"
# Column, its branch, the type in memory. In files, whole numbers are 32-bit.
FLOATS = ("pt", "eta", "phi", "z0", "bendchi2")
WHOLE: Mapping[str, tuple[str, type[np.unsignedinteger[Any]]]] = {
    "nstub": ("trk_nstub", np.uint8),
    "hitpattern": ("trk_hitpattern", np.uint8),
}
# Branches of our own beside those of CMS: what a stream knows and an ntuple does not.
OWN_ID, OWN_TIME, OWN_CONDITION = "stillfit_id", "stillfit_time", "stillfit_condition"
OWN_NAMES, OWN_QUALITY = "stillfit_conditions", "trk_quality"
FAKE, PV, PILE_UP = 0, 1, 2  # trk_fake
CHI2 = ("chi2rphi", "chi2rz")
COLUMNS = (*FLOATS[:4], "d0", *CHI2, "bendchi2", "nstub", "layers", "hitpattern", "mva", "quality")
_READ = 4000  # events that are read together: 30 MB at pile-up 200
_NO_D0 = 900.0  # cm; the ntuple has +-999 where the fit has no d0


@dataclass(frozen=True, kw_only=True)
class Ntuple:
    """An L1TrackNtuple file (or several: a pattern such as `pu200-*.root`, by name) as a stream.

    Blocks of `block` events with the ragged columns of the simulation: pt (GeV), eta, phi, z0 and
    d0 (cm), chi2rphi, chi2rz and bendchi2 per degree of freedom, nstub, layers, hitpattern, mva,
    quality. Labels follow at once: z0 (n,) = `pv_MC`, is_pv = (`trk_fake` is 1); an event without
    primary vertex gets none, and a file without these branches (real data) has no labels.
    `Labelling` makes labels late.

    The tree is `L1TrackNtuple/eventTree`, else the only one with `trk_pt`, or the one named by
    `tree`. `conditions`: name of the interval of validity of each file, in order. Events are
    `interval` seconds apart from `begin` on, and numbered from 0 through all files. Files that
    stillfit wrote bring ids, times and conditions themselves; a block ends where a condition does.

    What files lack: `trk_chi2rphi_dof` and `trk_chi2rz_dof` are made from `trk_chi2rphi` and
    `trk_chi2rz` with nstub - 2 degrees of freedom (those of a fit of four parameters), unless
    `chi2_per_dof` says that they are per degree of freedom already; d0 is 0 without `trk_d0`;
    layers 0 without `trk_lhits` and `trk_dhits`; without `trk_MVA1` the project's own frozen
    classifier gives mva. Its 3-bit quality follows from mva.

    Memory: 4000 events at a time. Cost: reading; skipped events are not read.
    Errors: `MissingExtraError` without uproot, `ConfigError` for a tree or branch that is not
    there, `DataError` for a file that is cut or whose branches disagree.
    """

    path: Path
    tree: str = ""
    block: int = 1000
    conditions: tuple[str, ...] = ()
    interval: float = 1.0
    begin: float = 0.0
    chi2_per_dof: bool = False

    def __post_init__(self) -> None:
        if self.block < 1 or not self.interval > 0:
            raise ConfigError(
                f"block = {self.block} must be at least 1 event and interval = {self.interval} "
                "above 0 s"
            )

    def events(self, start: int = 0) -> Iterator[Event]:
        skip = checked_start(start)
        files = files_of(self.path, "a ROOT file with an L1TrackNtuple")
        if self.conditions and len(self.conditions) != len(files):
            raise ConfigError(
                f"conditions names {len(self.conditions)} conditions for {len(files)} files; name "
                "one for each"
            )
        first = 0
        for number, file in enumerate(files):
            condition = self.conditions[number] if self.conditions else ""
            with _opened(file) as root:
                with _readable(file):
                    part = _Part.open(self, file, root, condition, first)
                skip = yield from part.events(skip)
                first += part.entries


class _Part(NamedTuple):
    """One file of the stream: its tree, and how it is cut into blocks."""

    ntuple: Ntuple
    file: Path
    tree: Any
    branches: frozenset[str]
    names: tuple[str, ...]
    codes: NDArray[np.int32] | None
    condition: str
    first: int
    entries: int

    @classmethod
    def open(cls, ntuple: Ntuple, file: Path, root: Any, condition: str, first: int) -> _Part:
        tree = _tree(file, root, ntuple.tree)
        branches = frozenset(tree.keys())
        _check_branches(file, tree.object_path.partition(";")[0].lstrip("/"), branches)
        codes: NDArray[np.int32] | None = None
        names: tuple[str, ...] = ()
        if OWN_CONDITION in branches and OWN_NAMES in root.keys(cycle=False):
            codes = _numbers(tree[OWN_CONDITION].array(library="np"), np.dtype(np.int32))
            names = tuple(json.loads(str(root[OWN_NAMES])))
            if len(codes) and (codes.min() < 0 or codes.max() >= len(names)):
                raise DataError(f"{file} numbers its conditions beyond the {len(names)} it names")
        entries = int(tree.num_entries)
        return cls(ntuple, file, tree, branches, names, codes, condition, first, entries)

    @property
    def has_labels(self) -> bool:
        return bool(self.branches & {"pv_MC", "trk_fake"})

    def events(self, skip: int) -> Generator[Event, None, int]:
        """The file's events after the first `skip`; returns how many remain to be skipped."""
        edges = self._edges()
        each = 2 if self.has_labels else 1
        blocks = len(edges) - 1
        done = min(skip // each, blocks)
        skip -= done * each
        while done < blocks:
            last = int(np.searchsorted(edges, edges[done] + _READ, side="right")) - 1
            last = max(last, done + 1)
            found = _Tracks.read(self, int(edges[done]), int(edges[last]))
            for number in range(done, last):
                low, high = edges[number] - edges[done], edges[number + 1] - edges[done]
                for event in self._pair(found.cut(slice(low, high)), int(edges[number])):
                    if skip:
                        skip -= 1
                    else:
                        yield event
            done = last
        return skip

    def _edges(self) -> NDArray[np.int64]:
        """Entries at which blocks begin, and the end."""
        block = self.ntuple.block
        if self.codes is None:
            return np.append(np.arange(0, self.entries, block), self.entries)
        turns = [0, *(np.flatnonzero(np.diff(self.codes)) + 1).tolist(), self.entries]
        starts = [np.arange(low, high, block) for low, high in pairwise(turns)]
        return np.append(np.concatenate(starts), self.entries).astype(np.int64)

    def _pair(self, tracks: _Tracks, entry: int) -> Iterator[Event]:
        name = self.condition if self.codes is None else self.names[self.codes[entry]]
        known: dict[str, float | str] = {"condition": name} if name else {}
        time = float(tracks.times[-1])
        yield Block(tracks.ids, tracks.inputs, time, known)
        if self.has_labels:
            labels = Labels(tracks.ids, tracks.targets, time)
            if np.isnan(tracks.vertex).any():
                labels = labels.take(np.flatnonzero(~np.isnan(tracks.vertex)))
            yield labels


class _Tracks(NamedTuple):
    """Some entries of the tree. `vertex`: z0 of the primary vertex, NaN where there is none."""

    ids: NDArray[np.int64]
    times: NDArray[np.float64]
    inputs: dict[str, Column]
    targets: dict[str, Column]
    vertex: NDArray[np.float32]

    def cut(self, rows: slice) -> _Tracks:
        return _Tracks(
            self.ids[rows],
            self.times[rows],
            {name: column[rows] for name, column in self.inputs.items()},
            {name: column[rows] for name, column in self.targets.items()},
            self.vertex[rows],
        )

    @classmethod
    def read(cls, part: _Part, low: int, high: int) -> _Tracks:
        wanted = part.branches & _READ_BRANCHES
        with _readable(part.file):
            raw = part.tree.arrays(sorted(wanted), entry_start=low, entry_stop=high, library="ak")
        flat, offsets = _flat(part.file, raw, wanted)
        number = part.first + np.arange(low, high)
        own = {name: np.asarray(raw[name]) for name in (OWN_ID, OWN_TIME) if name in wanted}
        ids: NDArray[np.int64] = own.get(OWN_ID, number).astype(np.int64)
        times = own.get(OWN_TIME, part.ntuple.begin + number * part.ntuple.interval)
        columns = _inputs(flat, part)
        inputs: dict[str, Column] = {n: Ragged(v, offsets) for n, v in columns.items()}
        targets: dict[str, Column] = {}
        vertex = np.zeros(len(ids), np.float32)
        if "pv_MC" in wanted:
            targets["z0"] = vertex = _first_of_each(raw["pv_MC"])
        if "trk_fake" in wanted:
            is_pv = (flat["trk_fake"] == PV).astype(np.uint8)
            targets["is_pv"] = Ragged(is_pv, offsets)
        return cls(ids, times.astype(np.float64), inputs, targets, vertex)


_REQUIRED = (
    "trk_pt",
    "trk_eta",
    "trk_phi",
    "trk_z0",
    "trk_bendchi2",
    "trk_nstub",
    "trk_hitpattern",
)
_OPTIONAL = ("trk_d0", "trk_lhits", "trk_dhits", "trk_MVA1", "trk_fake", OWN_QUALITY)
_CHI2_BRANCHES = [f"trk_{name}{end}" for name in CHI2 for end in ("", "_dof")]
_TRACK_BRANCHES = frozenset((*_REQUIRED, *_OPTIONAL, *_CHI2_BRANCHES))
_READ_BRANCHES = _TRACK_BRANCHES | {"pv_MC", OWN_ID, OWN_TIME}


def _check_branches(file: Path, tree: str, branches: frozenset[str]) -> None:
    missing = [name for name in _REQUIRED if name not in branches]
    missing += [f"trk_{n}" for n in CHI2 if not branches & {f"trk_{n}", f"trk_{n}_dof"}]
    if missing:
        raise ConfigError(
            f"the tree {tree!r} of {file} lacks {names_of(missing)}"
            f"{did_you_mean(missing[0], [b for b in branches if b.startswith('trk_')] or branches)}"
        )


def _flat(
    file: Path, raw: Any, wanted: frozenset[str]
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """The track branches end to end, with their common offsets."""
    import awkward as ak

    names = sorted(wanted & _TRACK_BRANCHES)
    counts = np.asarray(ak.num(raw["trk_pt"], axis=1), np.int64)
    flat: dict[str, Array] = {}
    for name in names:
        branch = raw[name]
        if branch.ndim != 2 or not np.array_equal(np.asarray(ak.num(branch, axis=1)), counts):
            raise DataError(
                f"{name} of {file} does not have one number for each track of 'trk_pt'; was the "
                "tree filled by different cuts?"
            )
        flat[name] = np.asarray(ak.flatten(branch, axis=1))
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return flat, offsets


def _inputs(flat: Mapping[str, Array], part: _Part) -> dict[str, Array]:
    """The columns that the simulation has, from the branches that are there."""
    tracks: dict[str, Array] = {
        name: flat[f"trk_{name}"].astype(np.float32, copy=False) for name in FLOATS
    }
    for name, (branch, kind) in WHOLE.items():
        tracks[name] = _whole(part.file, branch, flat[branch], kind)
    freedom = np.maximum(tracks["nstub"].astype(np.float32) - 2, 1)
    for name in CHI2:
        known = flat.get(f"trk_{name}_dof")
        if known is None:
            known = flat[f"trk_{name}"]
            known = known if part.ntuple.chi2_per_dof else known / freedom
        tracks[name] = known.astype(np.float32, copy=False)
    d0 = flat.get("trk_d0", np.zeros(len(freedom), np.float32)).astype(np.float32, copy=False)
    tracks["d0"] = np.where(np.abs(d0) > _NO_D0, np.float32(0), d0)
    tracks["layers"] = _layers(flat, len(freedom))
    mva = flat.get("trk_MVA1")
    if mva is None:
        mva = quality.probability(_Named(tracks))
    tracks["mva"] = mva.astype(np.float32, copy=False)
    word = flat.get(OWN_QUALITY)
    tracks["quality"] = quality.index(tracks["mva"]) if word is None else word.astype(np.uint8)
    return {name: tracks[name] for name in COLUMNS}


class _Named:
    """Columns by attribute, as the quality classifier reads them."""

    def __init__(self, columns: Mapping[str, Array]) -> None:
        self.__dict__.update(columns)


def _layers(flat: Mapping[str, Array], n: int) -> NDArray[np.uint16]:
    """Bits 0-5: barrel layers, 6-10: disks; in the ntuple a decimal digit each, 1 for a stub."""
    bits = np.zeros(n, np.uint16)
    for branch, low, many in (("trk_lhits", 0, 6), ("trk_dhits", 6, 5)):
        digits = flat.get(branch)
        if digits is not None:
            for place in range(many):
                hit = (digits // 10**place) % 10 > 0
                bits |= hit.astype(np.uint16) << np.uint16(low + place)
    return bits


def _whole(file: Path, branch: str, values: Array, kind: type[np.unsignedinteger[Any]]) -> Array:
    most = np.iinfo(kind).max
    if len(values) and (values.min() < 0 or values.max() > most):
        worst = values.min() if values.min() < 0 else values.max()
        raise DataError(f"{branch} of {file} holds {worst}; it must be between 0 and {most}")
    return values.astype(kind)


def _first_of_each(branch: Any) -> NDArray[np.float32]:
    """The first number of each event, NaN where there is none."""
    import awkward as ak

    if branch.ndim == 1:
        return _numbers(np.asarray(branch), np.dtype(np.float32))
    first = ak.fill_none(ak.firsts(branch, axis=1), np.nan)
    return _numbers(np.asarray(first), np.dtype(np.float32))


def _numbers(values: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    """Native, plain numbers: ROOT's are big-endian."""
    return np.ascontiguousarray(values, dtype=kind)


def import_uproot() -> Any:
    try:
        import awkward  # noqa: F401
        import uproot
    except ImportError:
        raise MissingExtraError(
            "L1TrackNtuple files need uproot and awkward, which are not installed; "
            "run: pip install 'stillfit[hep]'"
        ) from None
    return uproot


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    uproot = import_uproot()
    with _readable(file):
        root = uproot.open(file)
    with root:
        yield root


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    uproot = import_uproot()
    try:
        yield
    except (OSError, ValueError, uproot.DeserializationError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{file} cannot be read as a ROOT file ({said}); was it copied whole?"
        ) from None


def _tree(file: Path, root: Any, name: str) -> Any:
    trees = root.keys(recursive=True, cycle=False, filter_classname="TTree")
    trees = list(dict.fromkeys(trees))
    if name:
        if name not in trees:
            raise ConfigError(f"{file} has no tree {name!r}{did_you_mean(name, trees)}")
        return root[name]
    if TREE in trees:
        return root[TREE]
    able = [tree for tree in trees if "trk_pt" in root[tree]]
    if len(able) == 1:
        return root[able[0]]
    if not able:
        raise ConfigError(
            f"{file} has no tree with the branch 'trk_pt'; its trees are {names_of(trees)}. Was "
            "the ntuple made with all tracks saved?"
        )
    raise ConfigError(f"{file} has several trees with tracks: {names_of(able)}; name one as `tree`")
