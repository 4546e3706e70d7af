"""The detector and its track finder: particles in, Level-1 tracks out."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import first_bad
from stillfit.core.errors import DataError, ShapeError
from stillfit.l1t import event_loop, geometry, quality
from stillfit.l1t.conditions import Conditions
from stillfit.l1t.fitting import Out, grown
from stillfit.l1t.tracks import INPUTS, Tracks

__all__ = ["INPUTS", "Particles", "Tracks", "simulate"]

_TRACKS_PER_PARTICLE = 0.6  # 0.45 at nominal conditions


class Particles(Protocol):
    """What `simulate` reads: flat arrays with event offsets, as `composition.compose` gives."""

    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def pt(self) -> NDArray[np.float32]: ...
    @property
    def eta(self) -> NDArray[np.float32]: ...
    @property
    def phi(self) -> NDArray[np.float32]: ...
    @property
    def z0(self) -> NDArray[np.float32]: ...
    @property
    def d0(self) -> NDArray[np.float32]: ...
    @property
    def r_prod(self) -> NDArray[np.float32]: ...
    @property
    def charge(self) -> NDArray[np.int8]: ...
    @property
    def kind(self) -> NDArray[np.int8]: ...
    @property
    def is_pv(self) -> NDArray[np.uint8]: ...
    @property
    def pv_z(self) -> NDArray[np.float32]: ...


def simulate(particles: Particles, conditions: Conditions, rng: np.random.Generator) -> Tracks:
    """Level-1 tracks of `particles` as the detector and the track finder give them.

    Every event takes one 64-bit number from `rng`, from which all its randomness follows: the
    result does not depend on how events are cut into calls, if these share the generator.
    Cost: 0.2 ms per event of pile-up 200 on one core. Errors: `DataError` for particles that
    cannot be: NaN, no pT, no charge, offsets that do not fit.
    """
    _check(particles)
    detector = geometry.detector(conditions)
    seeds = rng.integers(0, 2**64, len(particles.pv_z), np.uint64)
    offsets = particles.offsets
    # Memory that is never written costs nothing, so room is given generously and kept.
    out = Out.empty(1000 + int(_TRACKS_PER_PARTICLE * offsets[-1]))
    ends = np.zeros(len(seeds), np.int64)
    done = 0
    while done < len(seeds):
        done = event_loop.run(_flat(particles), done, seeds, detector, out, ends)
        if done < len(seeds):
            out = grown(out, 2 * len(out.pt))
    total = np.concatenate([np.zeros(1, np.int64), ends])
    columns = {name: getattr(out, name)[: total[-1]] for name in Out._fields}
    found = _Fitted(**{name: columns[name] for name in _Fitted._fields})
    mva = quality.probability(found)
    word = quality.index(mva)
    if conditions.quality_word == "inverted":
        word = (7 - word).astype(np.uint8)
    elif conditions.quality_word == "stuck":
        word = np.zeros_like(word)
    return Tracks(offsets=total, pv_z=particles.pv_z, mva=mva, quality=word, **columns)


def _check(p: Particles) -> None:
    """The compiled loops trust their input, so what could lead them astray stops here."""
    offsets, size = p.offsets, len(p.pt)
    if len(offsets) != len(p.pv_z) + 1 or offsets[0] != 0 or offsets[-1] != size:
        raise ShapeError(
            f"offsets of {len(offsets) - 1} events up to {offsets[-1]} do not fit {len(p.pv_z)} "
            f"events with {size} particles"
        )
    columns = {name: getattr(p, name) for name in ("pt", "eta", "phi", "z0", "d0", "r_prod")}
    bad = first_bad(columns)
    if bad:
        raise DataError(f"particles must be finite numbers, but {bad}")
    for name in ("eta", "phi", "z0", "d0", "r_prod", "charge", "kind", "is_pv"):
        if len(getattr(p, name)) != size:
            raise ShapeError(f"{size} particles have {len(getattr(p, name))} values of {name}")
    if size and p.pt.min() <= 0:
        raise DataError(f"a particle has pT = {p.pt.min()} GeV; pT must be positive")
    if size and not np.all(np.abs(p.charge) == 1):
        charge = p.charge[np.abs(p.charge) != 1][0]
        raise DataError(f"a particle has charge {charge}; only charges +1 and -1 make tracks")


class _Fitted(NamedTuple):
    """What the quality classifier reads."""

    chi2rphi: NDArray[np.float32]
    chi2rz: NDArray[np.float32]
    bendchi2: NDArray[np.float32]
    nstub: NDArray[np.uint8]
    hitpattern: NDArray[np.uint8]
    eta: NDArray[np.float32]
    pt: NDArray[np.float32]
    z0: NDArray[np.float32]


def _flat(p: Particles) -> tuple[NDArray[Any], ...]:
    return (
        p.offsets,
        p.pt,
        p.eta,
        p.phi,
        p.z0,
        p.d0,
        p.r_prod,
        p.charge,
        p.kind,
        p.is_pv,
    )
