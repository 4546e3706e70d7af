"""Bunch crossings composed from a library: pile-up around one hard scatter, flat arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.l1t.library import Library

Float: TypeAlias = NDArray[np.float32]
PILEUP_PROCESS = "inelastic"


@dataclass(frozen=True, kw_only=True)
class Particles:
    """Charged particles of n events, flat: event `i` owns `offsets[i]` to `offsets[i + 1]`.

    Per particle: pt (GeV), eta, phi (rad, at the perigee), z0 (cm, where its helix is closest to
    the beam line), d0 (cm, d0 = -dxy), r_prod (cm, radius of its production vertex), charge +-1,
    kind (0 electron, 1 muon, 2 hadron), is_pv (1: from the hard scatter), interaction (its number
    within the event; numbers are in random order and carry no information).
    Per event: pv_z (cm, true z of the hard scatter), process (index into `processes`), pileup
    (interactions beside the hard scatter, those without particles counted).
    """

    offsets: NDArray[np.int64]
    pt: Float
    eta: Float
    phi: Float
    z0: Float
    d0: Float
    r_prod: Float
    charge: NDArray[np.int8]
    kind: NDArray[np.int8]
    is_pv: NDArray[np.uint8]
    interaction: NDArray[np.int16]
    pv_z: Float
    process: NDArray[np.int8]
    pileup: NDArray[np.int32]
    processes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Particles of each event."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        parts = (getattr(self, field.name) for field in fields(self))
        return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


def compose(
    library: Library,
    *,
    n: int,
    pileup: ArrayLike,
    z_beam: ArrayLike = 0.0,
    sigma_z: ArrayLike = 5.3,
    processes: Mapping[str, float],
    rng: np.random.Generator,
    split: str = "train",
) -> Particles:
    """Compose `n` events: Poisson(pileup) inelastic interactions and one hard scatter each.

    Every interaction is drawn with replacement from one split of the library, turned about the
    beam by a random angle and mirrored in z with probability one half (vertex included), and
    placed at z ~ N(z_beam, sigma_z), in cm. `pileup`, `z_beam` and `sigma_z` are numbers or one
    value per event. `processes` weighs the kinds of hard scatter. The beams are taken as parallel
    to z at x = y = 0: the transverse beam spot (about 10 um wide) is ignored. Interactions that
    left no particle are counted, not placed: a thinned Poisson number is a Poisson number.

    Cost: one random number per interaction and quantity, one copy per particle; memory 31 bytes
    per particle, about 480 particles per event of pile-up 200. Errors: `ConfigError`.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1 event, got {n}")
    mean = _per_event("pileup", pileup, n, low=0.0)
    centre = _per_event("z_beam", z_beam, n)
    width = _per_event("sigma_z", sigma_z, n, low=0.0)
    names, kinds = _mixture(processes, n, rng)

    every = library.interactions(PILEUP_PROCESS, split)
    filled = every[library.counts[every] > 0]
    if not len(filled):
        raise ConfigError(
            f"the {split} split of {PILEUP_PROCESS!r} holds no interaction with particles; "
            "generate at least a few thousand"
        )
    share = len(filled) / len(every)
    placed = rng.poisson(mean * share)
    pileup_all = placed + rng.poisson(mean * (1.0 - share))

    # One row per placed interaction; in each event the hard scatter sits at a random place, so
    # that the order of particles says nothing.
    ends = np.cumsum(placed + 1)
    hard = ends - placed - 1 + rng.integers(0, placed + 1)
    rows = int(ends[-1])
    source = filled[rng.integers(0, len(filled), rows)]
    for index, name in enumerate(names):
        pool = library.interactions(name, split)
        if not len(pool):
            raise ConfigError(
                f"the {split} split of {name!r} is empty: a library needs at least ten interactions"
            )
        mine = hard[kinds == index]
        source[mine] = pool[rng.integers(0, len(pool), len(mine))]
    z = rng.standard_normal(rows, dtype=np.float32)
    turn = rng.random(rows, dtype=np.float32) * np.float32(2 * np.pi) - np.float32(np.pi)
    flip = rng.integers(0, 2, rows, dtype=np.uint8)

    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(_count(ends, source, library.offsets), out=offsets[1:])
    size = int(offsets[-1])
    single: dict[str, Float] = {
        name: np.empty(size, np.float32) for name in ("pt", "eta", "phi", "z0", "d0", "r_prod")
    }
    charge, kind = np.empty(size, np.int8), np.empty(size, np.int8)
    is_pv, interaction = np.empty(size, np.uint8), np.empty(size, np.int16)
    pv_z = np.empty(n, np.float32)
    _place(
        ends,
        hard,
        source,
        z,
        turn,
        flip,
        centre,
        width,
        library.offsets,
        (library.pt, library.eta, library.phi, library.z0, library.d0, library.r_prod),
        (library.charge, library.kind),
        tuple(single.values()),
        (charge, kind),
        is_pv,
        interaction,
        pv_z,
    )
    return Particles(
        offsets=offsets,
        **single,
        charge=charge,
        kind=kind,
        is_pv=is_pv,
        interaction=interaction,
        pv_z=pv_z,
        process=kinds,
        pileup=pileup_all.astype(np.int32),
        processes=names,
    )


def _per_event(name: str, value: ArrayLike, n: int, low: float | None = None) -> Array:
    values = np.asarray(value, np.float64)
    if values.shape not in ((), (n,)):
        raise ConfigError(
            f"{name} must be one number or one per event ({n}), got shape {values.shape}"
        )
    bad = ~np.isfinite(values) if low is None else ~(np.isfinite(values) & (values >= low))
    if np.any(bad):
        worst = values[bad].flat[0] if values.ndim else values
        limit = "" if low is None else f" and not below {low:g}"
        raise ConfigError(f"{name} must be finite{limit}, got {worst}")
    return np.broadcast_to(values, (n,))


def _mixture(
    processes: Mapping[str, float], n: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    weights = np.array(list(processes.values()), np.float64)
    if not len(weights) or np.any(~np.isfinite(weights) | (weights < 0)) or weights.sum() == 0:
        raise ConfigError(
            "processes must give at least one kind of hard scatter a positive weight, "
            f"got {dict(processes)}"
        )
    kinds = rng.choice(len(weights), n, p=weights / weights.sum()).astype(np.int8)
    return tuple(processes), kinds


@njit(cache=True, nogil=True)
def _count(ends: Any, source: Any, offsets: Any) -> Any:
    """Particles of each event."""
    counts = np.zeros(len(ends), np.int64)
    row = 0
    for event in range(len(ends)):
        while row < ends[event]:
            counts[event] += offsets[source[row] + 1] - offsets[source[row]]
            row += 1
    return counts


@njit(cache=True, nogil=True)
def _place(
    ends: Any,
    hard: Any,
    source: Any,
    z: Any,
    turn: Any,
    flip: Any,
    centre: Any,
    width: Any,
    offsets: Any,
    from_single: Any,
    from_byte: Any,
    to_single: Any,
    to_byte: Any,
    is_pv: Any,
    interaction: Any,
    pv_z: Any,
) -> None:
    """Copy the particles of every placed interaction, turned, mirrored and shifted.

    A mirror in z leaves phi, d0 and the sense of rotation as they are: the solenoid's field is an
    axial vector along z.
    """
    pt, eta, phi, z0, d0, r_prod = from_single
    charge, kind = from_byte
    to_pt, to_eta, to_phi, to_z0, to_d0, to_r_prod = to_single
    to_charge, to_kind = to_byte
    pi = np.float32(np.pi)
    full = np.float32(2.0) * pi
    out = 0
    row = 0
    for event in range(len(ends)):
        first = row
        while row < ends[event]:
            vertex = np.float32(centre[event] + width[event] * z[row])
            from_hard = row == hard[event]
            if from_hard:
                pv_z[event] = vertex
            sign = np.float32(-1.0) if flip[row] else np.float32(1.0)
            for item in range(offsets[source[row]], offsets[source[row] + 1]):
                to_pt[out] = pt[item]
                to_eta[out] = sign * eta[item]
                angle = phi[item] + turn[row]
                if angle >= pi:
                    angle -= full
                elif angle < -pi:
                    angle += full
                to_phi[out] = angle
                to_z0[out] = vertex + sign * z0[item]
                to_d0[out] = d0[item]
                to_r_prod[out] = r_prod[item]
                to_charge[out] = charge[item]
                to_kind[out] = kind[item]
                is_pv[out] = from_hard
                interaction[out] = row - first
                out += 1
            row += 1
