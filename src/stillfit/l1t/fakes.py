"""Fake tracks, compiled: stubs of different particles that match by chance.

Most stubs of a real event come from particles below the library's threshold (1.5 GeV), so they
are not followed one by one but taken as a density: `WRONG` stubs per search window, in proportion
to the event's occupancy. A wrong seed is a stub of a particle of this event with a second stub:
either of the same interaction (a secondary: z0 near the vertex, and further layers may hold true
stubs of it), or of any other particle (z0 anywhere within the finder's reach). It becomes a fake if
at least two more layers offer a stub; the pattern is drawn from exactly that conditional
distribution. That fakes have few stubs and high chi2, grow with occupancy and vanish where modules
are dead follows by itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from stillfit.l1t import geometry as geo
from stillfit.l1t.crossing import (
    BEND,
    E_PHI,
    E_Z,
    LAYER,
    LEVER_Q,
    MODULE,
    PHI,
    W_PHI,
    W_Z,
    R,
    X,
    Z,
    keep,
    local,
    sort,
    trace,
)
from stillfit.l1t.geometry import COS, LEVER, SIN
from stillfit.l1t.stubs import STUBS_MAX, WRONG, bend_slope, weigh, wrong
from stillfit.l1t.variates import normal, uniform

_CURVATURE_MAX = geo.CURVATURE / 1.95  # of seeds: 2 GeV with some margin
_CURVATURE_MIN = 1e-6
_Z0_SEED = 15.0  # cm
_SLOPE_SEED = math.sinh(2.45)
_SECONDARY = 0.35  # share of wrong seeds that come from one interaction
_SECONDARY_SPREAD = 1.0  # cm, of their z0 about its vertex
_TRUE = 0.07  # chance per layer that such a seed meets a further stub of its own
_FIRST, _SECOND = 0.6, 0.25  # chances that the seed's own stub is on the first, second crossing
_BEND_SIGMA = 0.41  # strips: two sensors, each rounded to a strip
_GOOD_EFFICIENCY = 0.85


@njit(nogil=True, error_model="numpy")
def seed(phi: Any, kappa: Any, slope: Any, z0: Any, hits: Any, at: Any, state: Any) -> Any:
    """A wrong trajectory through a stub of the particle: phi0, kappa, slope, z0, secondary, fine.

    The stub is on one of the first three layers that the particle crosses; curvature is flat, as
    for random pairs. `fine` is false if the trajectory leaves the acceptance.
    """
    n = trace(phi, kappa, slope, z0, 0.0, hits, at)
    u = uniform(state)
    i = 0 if u < _FIRST else (1 if u < _FIRST + _SECOND else 2)
    if i >= n:
        return phi, kappa, slope, z0, False, False
    kappa = _CURVATURE_MAX * (2.0 * uniform(state) - 1.0)
    if abs(kappa) < _CURVATURE_MIN:
        kappa = _CURVATURE_MIN
    secondary = uniform(state) < _SECONDARY
    if secondary:
        z0 += _SECONDARY_SPREAD * normal(state)
    else:
        z0 = _Z0_SEED * (2.0 * uniform(state) - 1.0)
    half_turn = math.asin(0.5 * kappa * hits[R, i])
    slope = (hits[Z, i] - z0) * 0.5 * kappa / half_turn
    fine = abs(slope) < _SLOPE_SEED and abs(z0) < _Z0_SEED
    return hits[PHI, i] + half_turn, kappa, slope, z0, secondary, fine


@njit(nogil=True, error_model="numpy")
def complete(
    n: Any,
    kappa: Any,
    slope: Any,
    secondary: Any,
    occupancy: Any,
    bound: Any,
    by_chance: Any,
    hits: Any,
    at: Any,
    tail: Any,
    modules: Any,
    regions: Any,
    region_layers: Any,
    state: Any,
) -> Any:
    """Stubs of a wrong seed along its `n` crossings, 0 if it is not completed.

    `bound`: the number by which the rate of seeds was multiplied; this seed is accepted with
    probability (chance of completion) / `bound`. `by_chance`: chance of an unrelated stub in each
    layer at rate 1. `tail[i, k]`, k = 0..2: chance of at least k stubs in the crossings from i on;
    `tail[i, 3]`: chance of a stub at i, `tail[i, 4]`: of a true one.
    """
    if n < 4:
        return 0
    first = 0 if uniform(state) < 0.7 else 1
    seeded = 1.0
    tail[n, 0], tail[n, 1], tail[n, 2] = 1.0, 0.0, 0.0
    for i in range(n - 1, -1, -1):
        efficiency, rate = local(i, hits, at, modules, regions, region_layers)
        chance, true = 0.0, 0.0
        if i == first or i == first + 1:
            seeded *= efficiency * rate
        else:
            true = efficiency * _TRUE if secondary else 0.0
            unrelated = by_chance[at[LAYER, i]]
            if rate != 1.0:
                unrelated = 1.0 - math.exp(-WRONG[at[LAYER, i]] * rate * occupancy)
            unrelated *= efficiency
            chance = true + (1.0 - true) * unrelated
        tail[i, 0] = 1.0
        tail[i, 1] = chance + (1.0 - chance) * tail[i + 1, 1]
        tail[i, 2] = chance * tail[i + 1, 1] + (1.0 - chance) * tail[i + 1, 2]
        tail[i, 3] = chance
        tail[i, 4] = true
    if uniform(state) * bound >= seeded * tail[0, 2]:
        return 0
    pt, cosh = geo.CURVATURE / abs(kappa), math.sqrt(1.0 + slope * slope)
    need = 2
    m = 0
    for i in range(n):
        own = i == first or i == first + 1
        same = own and secondary
        chance = tail[i, 3]
        if not own:
            u = uniform(state)
            if u >= (chance * tail[i + 1, need - 1] / tail[i, need] if need > 0 else chance):
                continue
            need = max(need - 1, 0)
            own = uniform(state) * chance < tail[i, 4]
            same = own
        place(i, m, own, same, pt, abs(slope), cosh, hits, at, modules, state)
        m += 1
        if m == STUBS_MAX:
            break
    return m


@njit(nogil=True, error_model="numpy")
def imitate(
    n: Any,
    kappa: Any,
    slope: Any,
    hits: Any,
    at: Any,
    modules: Any,
    regions: Any,
    region_layers: Any,
    state: Any,
) -> Any:
    """Stubs of a fake that fits as well as a true track, along its `n` crossings."""
    pt, cosh = geo.CURVATURE / abs(kappa), math.sqrt(1.0 + slope * slope)
    m = 0
    for i in range(n):
        efficiency, _ = local(i, hits, at, modules, regions, region_layers)
        if uniform(state) < _GOOD_EFFICIENCY * efficiency:
            place(i, m, True, True, pt, abs(slope), cosh, hits, at, modules, state)
            m += 1
            if m == STUBS_MAX:
                break
    return m


@njit(nogil=True, error_model="numpy")
def place(
    i: Any,
    m: Any,
    own: Any,
    same: Any,
    pt: Any,
    rise: Any,
    cosh: Any,
    hits: Any,
    at: Any,
    modules: Any,
    state: Any,
) -> None:
    """Stub `m` at crossing `i`: on the trajectory within errors (`own`), or anywhere near.

    `same`: its bend, too, is that of the trajectory, as when its stubs come from one particle.
    """
    layer, module, r = at[LAYER, i], at[MODULE, i], hits[R, i]
    q = np.float64(modules[module, COS]) + np.float64(modules[module, SIN]) * rise
    lever = np.float64(modules[module, LEVER]) / q
    bend = lever * bend_slope(hits[X, i])
    which = sort(layer, r)
    keep(i, m, hits, at)
    weigh(m, which, r, q, pt, cosh, hits)
    hits[LEVER_Q, m] = lever
    wrong(m, layer, which, q, bend, hits, state)
    if own:
        hits[E_PHI, m] = normal(state) / math.sqrt(hits[W_PHI, m])
        hits[E_Z, m] = normal(state) / math.sqrt(hits[W_Z, m])
    if same:
        hits[BEND, m] = bend + _BEND_SIGMA * normal(state)
