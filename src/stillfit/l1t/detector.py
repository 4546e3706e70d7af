"""The detector and its track finder: particles in, Level-1 tracks out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stillfit.core.arrays import Column, Ragged
from stillfit.l1t import crossing, fakes, fitting, quality, stubs, variates
from stillfit.l1t import geometry as geo
from stillfit.l1t.conditions import Conditions
from stillfit.l1t.crossing import AT_ROWS, HIT_ROWS, SCRATCH, trace
from stillfit.l1t.fakes import complete, imitate, seed
from stillfit.l1t.fitting import Out, emit
from stillfit.l1t.stubs import drop_one, measure
from stillfit.l1t.variates import poisson, uniform

_CHUNK = 500  # events at a time: keeps the buffers in the cache
_PARTICLES_NOMINAL = 460.0  # particles of the library in an event of pile-up 200
_CURVATURE = geo.CURVATURE
_SEEDS = 1.0  # wrong seeds per particle at nominal occupancy
_BOUND = 0.15  # upper limit of the chance that one is
_GOOD = 0.06  # good fakes per particle for good_fakes = 1: the nominal number of fakes
_DUPLICATES = 0.02  # share of tracks found twice at nominal occupancy
_PT_LOOK = 1.8  # GeV: below it (over the pT scale) hardly any fit reaches the threshold of 2 GeV


INPUTS = (
    "pt",
    "eta",
    "phi",
    "z0",
    "d0",
    "chi2rphi",
    "chi2rz",
    "bendchi2",
    "nstub",
    "layers",
    "hitpattern",
    "mva",
    "quality",
)


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


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Level-1 tracks of n events, flat: event `i` owns `offsets[i]` to `offsets[i + 1]`.

    Fitted: pt (GeV, at least 2), eta (within 2.4), phi (rad), z0 and d0 (cm); chi2rphi, chi2rz
    and bendchi2 per degree of freedom; nstub; layers (bits 0-5: barrel layers 1-6, bits 6-10:
    disks 1-5); hitpattern (7 bits: bit k is set where the k-th layer on the track's way has a
    stub); mva (the classifier's probability of being genuine), quality (its index 0..7, as it
    reaches the vertex finder). Truth: is_pv, is_fake, particle (its
    number within the event's particles, -1 for fakes). Per event: pv_z (cm), true.
    """

    offsets: NDArray[np.int64]
    pt: NDArray[np.float32]
    eta: NDArray[np.float32]
    phi: NDArray[np.float32]
    z0: NDArray[np.float32]
    d0: NDArray[np.float32]
    chi2rphi: NDArray[np.float32]
    chi2rz: NDArray[np.float32]
    bendchi2: NDArray[np.float32]
    nstub: NDArray[np.uint8]
    layers: NDArray[np.uint16]
    hitpattern: NDArray[np.uint8]
    is_pv: NDArray[np.uint8]
    is_fake: NDArray[np.uint8]
    particle: NDArray[np.int32]
    mva: NDArray[np.float32]
    quality: NDArray[np.uint8]
    pv_z: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tracks of each event."""
        return np.diff(self.offsets)

    def to_inputs(self) -> dict[str, Column]:
        """What the trigger sees: one `Ragged` per track quantity of `INPUTS`."""
        return {name: Ragged(getattr(self, name), self.offsets) for name in INPUTS}

    def to_targets(self) -> dict[str, Column]:
        """The truth: `z0` (n,) of the hard scatter in cm, and `is_pv` of each track."""
        return {"z0": self.pv_z, "is_pv": Ragged(self.is_pv, self.offsets)}


def simulate(particles: Particles, conditions: Conditions, rng: np.random.Generator) -> Tracks:
    """Level-1 tracks of `particles` as the detector and the track finder give them.

    Every event takes one 64-bit number from `rng`, from which all its randomness follows: the
    result does not depend on how events are cut into calls, if these share the generator.
    Cost: 0.15 ms per event of pile-up 200 on one core.
    """
    detector = geo.detector(conditions)
    seeds = rng.integers(0, 2**64, len(particles.pv_z), np.uint64)
    offsets = particles.offsets
    parts: list[Out] = []
    counts: list[NDArray[np.int64]] = []
    for first in range(0, len(seeds), _CHUNK):
        last = min(first + _CHUNK, len(seeds))
        capacity = 1000 + int(offsets[last] - offsets[first])
        ends = np.empty(last - first, np.int64)
        while True:
            out = Out.empty(capacity)
            if _simulate(_flat(particles), first, last, seeds, detector, out, ends):
                break
            capacity *= 2
        parts.append(Out(**{name: getattr(out, name)[: ends[-1]] for name in Out._fields}))
        counts.append(np.diff(ends, prepend=0))
    total = np.zeros(len(seeds) + 1, np.int64)
    np.cumsum(np.concatenate(counts) if counts else [], out=total[1:])
    empty = Out.empty(0)
    columns = {
        name: np.concatenate([getattr(empty, name), *(getattr(part, name) for part in parts)])
        for name in Out._fields
    }
    found = _Fitted(**{name: columns[name] for name in _Fitted._fields})
    mva = quality.probability(found)
    word = quality.index(mva)
    if conditions.quality_word == "inverted":
        word = (7 - word).astype(np.uint8)
    elif conditions.quality_word == "stuck":
        word = np.zeros_like(word)
    return Tracks(offsets=total, pv_z=particles.pv_z, mva=mva, quality=word, **columns)


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


def _sources() -> int:
    """A number that changes with any source of the compiled loops.

    Numba's cache looks at the file of the cached function only, and would go on using a loop whose
    callees in other files have changed. As a constant inside the loop this is part of the key.
    """
    digest = hashlib.sha256()
    for module in (variates, geo, crossing, stubs, fitting, fakes):
        digest.update(Path(str(module.__file__)).read_bytes())
    return int.from_bytes(digest.digest()[:7], "little")


def _compile(fingerprint: int) -> Any:
    @njit(cache=True, nogil=True)
    def event_loop(
        particles: Any, first: Any, last: Any, seeds: Any, det: Any, out: Any, ends: Any
    ) -> Any:
        """Events `first` to `last` into `out`; False if it is too small."""
        if fingerprint < 0:
            return False
        offsets, p_pt, p_eta, p_phi, p_z0, p_d0, p_r_prod, p_charge, p_kind, p_is_pv = particles
        modules, regions, region_layers, masks = (
            det.modules,
            det.regions,
            det.region_layers,
            det.masks,
        )
        spread, knobs = det.spread, det.knobs
        hits = np.zeros((HIT_ROWS, SCRATCH))
        at = np.zeros((AT_ROWS, SCRATCH), np.int64)
        tail = np.zeros((SCRATCH, 5))
        state = np.zeros(1, np.uint64)
        look = _PT_LOOK / knobs.pt_scale
        n = 0
        for event in range(first, last):
            state[0] = seeds[event]
            begin, end = offsets[event], offsets[event + 1]
            occupancy = (end - begin) / _PARTICLES_NOMINAL * knobs.noise
            # Seeds are drawn with an upper limit of the chance that they are completed.
            hottest = knobs.hottest * knobs.hottest
            bound = hottest * min(1.0, _BOUND * max(1.0, occupancy * occupancy * hottest))
            no_seed = math.exp(-_SEEDS * occupancy * knobs.fake_scale * bound)
            no_good = math.exp(-_GOOD * knobs.good_fakes)
            for p in range(begin, end):
                pt = np.float64(p_pt[p])
                kappa = p_charge[p] * _CURVATURE / pt
                grow = math.exp(np.float64(p_eta[p]))
                slope, cosh = 0.5 * (grow - 1.0 / grow), 0.5 * (grow + 1.0 / grow)
                phi, z0, d0 = np.float64(p_phi[p]), np.float64(p_z0[p]), np.float64(p_d0[p])
                if n + 2 > len(out.pt):
                    return False
                if pt >= look:
                    m = trace(phi, kappa, slope, z0, d0, hits, at)
                    m = measure(
                        m,
                        pt,
                        kappa,
                        slope,
                        cosh,
                        p_kind[p],
                        d0,
                        np.float64(p_r_prod[p]),
                        occupancy,
                        spread,
                        hits,
                        at,
                        modules,
                        regions,
                        region_layers,
                        state,
                    )
                    found = emit(n, m, phi, kappa, slope, z0, knobs, masks, hits, at, out, state)
                    if found:
                        out.is_pv[n] = p_is_pv[p]
                        out.is_fake[n] = 0
                        out.particle[n] = p - begin
                        n += 1
                    if found and uniform(state) < _DUPLICATES * occupancy:
                        m = drop_one(m, hits, at, state)
                        if emit(n, m, phi, kappa, slope, z0, knobs, masks, hits, at, out, state):
                            out.is_pv[n] = p_is_pv[p]
                            out.is_fake[n] = 0
                            out.particle[n] = p - begin
                            n += 1
                wrong_seeds = poisson(state, no_seed)
                for k in range(wrong_seeds + poisson(state, no_good)):
                    if n + 1 > len(out.pt):
                        return False
                    f_phi, f_kappa, f_slope, f_z0, secondary, fine = seed(
                        phi, kappa, slope, z0, hits, at, state
                    )
                    if not fine:
                        continue
                    m = trace(f_phi, f_kappa, f_slope, f_z0, 0.0, hits, at)
                    if k < wrong_seeds:
                        m = complete(
                            m,
                            f_kappa,
                            f_slope,
                            secondary,
                            occupancy,
                            bound,
                            hits,
                            at,
                            tail,
                            modules,
                            regions,
                            region_layers,
                            state,
                        )
                    else:
                        m = imitate(
                            m, f_kappa, f_slope, hits, at, modules, regions, region_layers, state
                        )
                    if emit(
                        n, m, f_phi, f_kappa, f_slope, f_z0, knobs, masks, hits, at, out, state
                    ):
                        out.is_pv[n] = 0
                        out.is_fake[n] = 1
                        out.particle[n] = -1
                        n += 1
            ends[event - first] = n
        return True

    return event_loop


_simulate = _compile(_sources())
