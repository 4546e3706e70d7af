"""Fake tracks: seeds that match by chance, completed by unrelated stubs in the search windows.

Most stubs of a real event come from particles below the library's threshold (1.5 GeV), so they
are not followed one by one but taken as a density: `WRONG` stubs per search window, in proportion
to the event's occupancy. A seed is a stub of a particle of this event with a second stub, either
of the same interaction (a secondary: z0 near the vertex) or of any particle (z0 anywhere within
the finder's 15 cm). A seed becomes a fake if at least two more layers offer a stub by chance; the
pattern is drawn from exactly that conditional distribution, so that few stubs, forward fakes,
growth with occupancy and holes where modules are dead follow by themselves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from stillfit.l1t import geometry as geo
from stillfit.l1t.geometry import COS, LEVER, SIN
from stillfit.l1t.tracking import (
    E_PHI,
    E_Z,
    LAYER,
    MODULE,
    R,
    W_PHI,
    W_Z,
    WRONG,
    X,
    is_ps,
    keep,
    local,
    trace,
    weigh,
    wrong,
)
from stillfit.l1t.variates import normal, uniform

_CURVATURE_MAX = geo.CURVATURE / 1.95  # of seeds: 2 GeV with some margin
_Z0_SEED = 15.0  # cm
_SLOPE_SEED = math.sinh(2.45)
_SECONDARY_SPREAD = 1.0  # cm, of the z0 of seeds from the vertex of their interaction
_SHARE_SECONDARY = 0.5


@njit(cache=True, nogil=True)
def fake_seed(
    phi: Any, kappa: Any, slope: Any, z0: Any, det: Any, hits: Any, at: Any, state: Any
) -> Any:
    """A trajectory through a stub of the particle given: (phi0, kappa, slope, z0, good).

    The stub lies on the first, second or third layer that the particle crosses. `good` is false
    if the trajectory leaves the acceptance or the particle crosses no layer.
    """
    n = trace(phi, kappa, slope, z0, 0.0, det, hits, at)
    if n < 4:
        return phi, kappa, slope, z0, False
    u = uniform(state)
    i = 0 if u < 0.6 else (1 if u < 0.85 else 2)
    r, z, angle = hits[R, i], hits[R + 2, i], hits[R + 3, i]
    new_kappa = _CURVATURE_MAX * (2.0 * uniform(state) - 1.0)
    if abs(new_kappa) < 1e-6:
        new_kappa = 1e-6
    if uniform(state) < _SHARE_SECONDARY:
        new_z0 = z0 + _SECONDARY_SPREAD * normal(state)
    else:
        new_z0 = _Z0_SEED * (2.0 * uniform(state) - 1.0)
    half_arc = math.asin(0.5 * new_kappa * r)
    new_slope = (z - new_z0) * 0.5 * new_kappa / half_arc
    good = abs(new_slope) < _SLOPE_SEED and abs(new_z0) < _Z0_SEED
    return angle + half_arc, new_kappa, new_slope, new_z0, good


@njit(cache=True, nogil=True)
def fake_stubs(
    n: Any,
    pt: Any,
    slope: Any,
    cosh: Any,
    occupancy: Any,
    bound: Any,
    det: Any,
    hits: Any,
    at: Any,
    tail: Any,
    state: Any,
) -> Any:
    """Stubs of a fake on a trajectory of `n` crossings, 0 if this seed is not completed.

    `bound`: an upper limit of the probability that a seed is completed, by which the rate of
    seeds was multiplied; a seed is accepted with probability / bound. `tail[i, k]` is the
    probability of at least k unrelated stubs in the crossings from i on.
    """
    if n < 4:
        return 0
    seed = 0 if uniform(state) < 0.7 else 1
    chance = tail[:, 3]
    seeded = 1.0
    tail[n, 0], tail[n, 1], tail[n, 2] = 1.0, 0.0, 0.0
    for i in range(n - 1, -1, -1):
        efficiency, rate = local(det, at[MODULE, i], at[LAYER, i], hits, i)
        if i == seed or i == seed + 1:
            seeded *= efficiency * rate
            chance[i] = 0.0
        else:
            chance[i] = efficiency * (1.0 - math.exp(-WRONG[at[LAYER, i]] * rate * occupancy))
        tail[i, 0] = 1.0
        for k in range(1, 3):
            tail[i, k] = chance[i] * tail[i + 1, k - 1] + (1.0 - chance[i]) * tail[i + 1, k]
    if uniform(state) * bound >= seeded * tail[0, 2]:
        return 0
    rise = abs(slope)
    need = 2
    m = 0
    for i in range(n):
        layer, r, x = at[LAYER, i], hits[R, i], hits[X, i]
        row = det.modules[at[MODULE, i]]
        q = np.float64(row[COS] + row[SIN] * rise)
        lever = np.float64(row[LEVER]) / q
        bend = lever * x * (1.0 + x * x * (0.5 + 0.375 * x * x))
        ps = is_ps(layer, r)
        if i == seed or i == seed + 1:
            keep(i, m, hits, at)
            wrong(m, layer, ps, q, lever, bend, hits, state)
            weigh(m, layer, r, q, pt, cosh, hits)
            hits[E_PHI, m] = normal(state) / math.sqrt(hits[W_PHI, m])
            hits[E_Z, m] = normal(state) / math.sqrt(hits[W_Z, m])
            m += 1
            continue
        p = chance[i]
        if need > 0:
            p *= tail[i + 1, need - 1] / tail[i, need]
        if uniform(state) < p:
            keep(i, m, hits, at)
            wrong(m, layer, ps, q, lever, bend, hits, state)
            weigh(m, layer, r, q, pt, cosh, hits)
            m += 1
            need = max(need - 1, 0)
    return m


@njit(cache=True, nogil=True)
def good_stubs(
    n: Any, pt: Any, slope: Any, cosh: Any, det: Any, hits: Any, at: Any, state: Any
) -> Any:
    """Stubs of a fake that fits as well as a true track: residuals as the fit expects them."""
    rise = abs(slope)
    m = 0
    for i in range(n):
        layer, r, x = at[LAYER, i], hits[R, i], hits[X, i]
        efficiency, _ = local(det, at[MODULE, i], layer, hits, i)
        if uniform(state) >= 0.85 * efficiency:
            continue
        row = det.modules[at[MODULE, i]]
        q = np.float64(row[COS] + row[SIN] * rise)
        lever = np.float64(row[LEVER]) / q
        keep(i, m, hits, at)
        wrong(
            m,
            layer,
            is_ps(layer, r),
            q,
            lever,
            lever * x * (1.0 + x * x * (0.5 + 0.375 * x * x)),
            hits,
            state,
        )
        weigh(m, layer, r, q, pt, cosh, hits)
        hits[E_PHI, m] = normal(state) / math.sqrt(hits[W_PHI, m])
        hits[E_Z, m] = normal(state) / math.sqrt(hits[W_Z, m])
        m += 1
    return m
