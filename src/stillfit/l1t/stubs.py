"""What modules report of a passing particle, compiled: stubs with residuals about its helix.

Along the path kinks from multiple scattering (Highland's formula) and, for electrons, radiation
add up; hadrons may interact and stop. Each crossed module makes a stub with its efficiency if the
measured bend lies in the window for 2 GeV. A stub's residual is the displacement of the path plus
resolution plus misalignment of the module, so that the fit sees every effect where it happens.
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
    SLOT,
    W_PHI,
    W_Z,
    R,
    S,
    X,
    keep,
    local,
    sort,
)
from stillfit.l1t.geometry import COS, EFFICIENCY, FLAG, LEVER, PHI_SHIFT, R_SCALE, SIN, Z_SHIFT
from stillfit.l1t.variates import normal, uniform, word

STUBS_MAX = 6  # the fit takes no more
PT_MIN = 2.0  # GeV, of the stub windows and of the fitted track
# By sort of module: 0 barrel PS, 1 disk PS, 2 2S.
_VARIANCE_PHI = np.array([geo.PS_PITCH, geo.PS_PITCH, geo.TWO_S_PITCH]) ** 2 / 12
_VARIANCE_Z = np.array([geo.PS_LENGTH, geo.PS_LENGTH, geo.TWO_S_LENGTH]) ** 2 / 12
_X0 = np.array([0.030, 0.030, 0.022])  # radiation lengths at normal incidence

# Material in radiation lengths at normal incidence, and nuclear interaction lengths. The inner
# tracker acts as one scatterer at r = 8 cm whose path grows to 3 times (then disks take over).
_X0_INNER, _LAMBDA_INNER, _R_INNER, _INNER_PATH = 0.10, 0.015, 8.0, 3.0
_LAMBDA_LAYER = 0.006
_HIGHLAND = 0.0136 * 0.90  # GeV; 0.90: the logarithm of the formula at 5 % X0
# Scattering in the fit weights, rad GeV: sigma = number * r / pT (times cosh eta in r-z).
_FIT_PHI, _FIT_Z = 0.0005, 0.0004

# Share of a track's stubs that survive read-out and matching, by layer: with the efficiency of
# modules the hit patterns of genuine tracks in a sample of the CMS collaboration (see the docs).
_MATCH = np.array([0.95, 0.97, 0.99, 0.96, 0.92, 0.92, 0.98, 0.98, 0.98, 0.98, 0.98])
_BEND_MARGIN = 0.5  # strips, width of a stub window beyond the bend at 2 GeV
# Half widths of the search windows for stubs (cm): r-phi, and z in units of the q of a module.
_WIDTH_PHI = np.array([0.08, 0.10, 0.12, 0.15, 0.18, 0.22, 0.12, 0.12, 0.15, 0.15, 0.18])
_WIDTH_Z = np.array([0.4, 0.4, 6.0])  # by sort of module
_WIDTH_BEND = 1.6  # strips
# Mean number of unrelated stubs in such a window at nominal occupancy, and the chance that one
# is nearer to the prediction than the right stub.
WRONG = np.array([0.060, 0.060, 0.060, 0.100, 0.100, 0.100, 0.100, 0.100, 0.100, 0.100, 0.100])
_NEARER = 0.07


@njit(nogil=True, error_model="numpy")
def bend_slope(x: Any) -> Any:
    """Tangent of the angle of a track to the radius where r / (2R) = x, to 1e-4."""
    x2 = x * x
    return x * (1.0 + x2 * (0.5 + 0.375 * x2))


@njit(nogil=True, error_model="numpy")
def measure(
    n: Any,
    pt: Any,
    kappa: Any,
    slope: Any,
    cosh: Any,
    kind: Any,
    d0: Any,
    r_prod: Any,
    occupancy: Any,
    spread: Any,
    hits: Any,
    at: Any,
    modules: Any,
    regions: Any,
    region_layers: Any,
    state: Any,
) -> Any:
    """Stubs that a particle leaves at its `n` crossings; their number.

    (y, dy) and (w, dw): displacement and slope across the path, in r-phi and in z at fixed radius.
    `kind`: 0 electron, 1 muon, 2 hadron. `occupancy`: unrelated stubs relative to nominal.
    `spread` (3, 2): full widths of a stub's error in r-phi and along the module (cm), by sort.
    """
    pull = _HIGHLAND / pt
    y, dy, w, dw, radiated = 0.0, 0.0, 0.0, 0.0, 0.0
    before = r_prod
    depth = 0.0
    fate = uniform(state) if kind == 2 else 2.0
    if r_prod < _R_INNER:
        before = _R_INNER
        path = min(cosh, _INNER_PATH)
        depth = _LAMBDA_INNER * path
        if fate < depth:
            return 0
        kick = pull * math.sqrt(_X0_INNER * path)
        dy = kick * normal(state)
        dw = kick * cosh * normal(state)
        if kind == 0:
            radiated = kappa * radiation(_X0_INNER * path, state)
    rise = abs(slope)
    m = 0
    for i in range(n):
        r, s, x = hits[R, i], hits[S, i], hits[X, i]
        if r < r_prod:
            continue
        layer, module = at[LAYER, i], at[MODULE, i]
        which = sort(layer, r)
        # q turns a length along the tilted module into one along z at fixed radius.
        q = np.float64(modules[module, COS]) + np.float64(modules[module, SIN]) * rise
        per_q = 1.0 / q
        ds = s - before
        before = s
        y += (dy - 0.5 * radiated * ds) * ds  # more curvature turns it to smaller phi
        dy -= radiated * ds
        w += dw * ds
        efficiency, rate = np.float64(modules[module, EFFICIENCY]), 1.0
        if modules[module, FLAG] > 0.0:
            efficiency, rate = local(i, hits, at, modules, regions, region_layers)

        bits = word(state)
        chance = np.float64(np.int64(bits & np.uint64(0xFFFF))) * 2.0**-16
        u_1 = np.float64(np.int64((bits >> np.uint64(16)) & np.uint64(0xFFF))) * 2.0**-12
        u_2 = np.float64(np.int64((bits >> np.uint64(28)) & np.uint64(0xFFF))) * 2.0**-12
        u_3 = np.float64(np.int64((bits >> np.uint64(40)) & np.uint64(0xFFF))) * 2.0**-12
        u_4 = np.float64(np.int64(bits >> np.uint64(52))) * 2.0**-12
        lever = np.float64(modules[module, LEVER]) * per_q
        true_bend = lever * bend_slope(x)
        bend = true_bend + u_3 - u_4  # two sensors, each rounded to a strip
        window = lever * abs(x) * pt * (1.0 / PT_MIN) + _BEND_MARGIN
        seen = chance < efficiency * _MATCH[layer] and abs(bend) < window
        others = WRONG[layer] * rate * occupancy
        astray = uniform(state) < (_NEARER * others if seen else others)
        if seen or astray:
            keep(i, m, hits, at)
            weigh(m, which, r, q, pt, cosh, hits)
            hits[LEVER_Q, m] = lever
            if astray:
                wrong(m, layer, which, q, true_bend, hits, state)
            else:
                e_phi, e_z = spread[which, 0] * (u_1 - 0.5), spread[which, 1] * (u_2 - 0.5)
                stretch = np.float64(modules[module, R_SCALE])
                turn = np.float64(modules[module, PHI_SHIFT])
                shift = np.float64(modules[module, Z_SHIFT])
                hits[E_PHI, m] = y - d0 + e_phi + r * (turn + x * stretch)
                hits[E_Z, m] = w + e_z * q + shift - slope * r * stretch
                hits[BEND, m] = bend
            m += 1
            if m == STUBS_MAX:
                break

        thickness = cosh * per_q
        depth += _LAMBDA_LAYER * thickness
        if fate < depth or i == n - 1:
            break
        x0 = _X0[which] * thickness
        kick = pull * math.sqrt(x0)
        dy += kick * normal(state)
        dw += kick * cosh * normal(state)
        if kind == 0:
            radiated += (kappa + radiated) * radiation(x0, state)
    return m


@njit(nogil=True, error_model="numpy")
def weigh(m: Any, which: Any, r: Any, q: Any, pt: Any, cosh: Any, hits: Any) -> None:
    """Nominal fit weights of stub `m`: variance of resolution (pitch^2 / 12) and scattering."""
    scatter = r / pt
    phi, z = _VARIANCE_PHI[which], _VARIANCE_Z[which]
    phi += (_FIT_PHI * _FIT_PHI) * scatter * scatter
    z = z * q * q + (_FIT_Z * _FIT_Z) * scatter * scatter * cosh * cosh
    both = 1.0 / (phi * z)
    hits[W_PHI, m] = both * z
    hits[W_Z, m] = both * phi


@njit(nogil=True, error_model="numpy")
def wrong(m: Any, layer: Any, which: Any, q: Any, bend: Any, hits: Any, state: Any) -> None:
    """Stub `m` is an unrelated one, anywhere in the search window; its bend fits roughly."""
    hits[E_PHI, m] = _WIDTH_PHI[layer] * (2.0 * uniform(state) - 1.0)
    hits[E_Z, m] = _WIDTH_Z[which] * q * (2.0 * uniform(state) - 1.0)
    hits[BEND, m] = bend + _WIDTH_BEND * (2.0 * uniform(state) - 1.0)


@njit(nogil=True, error_model="numpy")
def radiation(x0: Any, state: Any) -> Any:
    """Growth of an electron's curvature, p before / p after - 1, in `x0` radiation lengths.

    Bethe and Heitler: -ln(share kept) is Gamma distributed with shape x0 / ln 2; for small shapes
    an exponential number times a power of a uniform one.
    """
    shape = x0 / math.log(2.0)
    loss = -math.log(1.0 - uniform(state)) * uniform(state) ** (1.0 / shape)
    return math.exp(min(loss, 5.0)) - 1.0


@njit(nogil=True, error_model="numpy")
def drop_one(m: Any, hits: Any, at: Any, state: Any) -> Any:
    """Lose one of `m` > 4 stubs at random, as when a track is found again from another seed."""
    if m < 5:
        return m
    for i in range(np.int64(uniform(state) * m), m - 1):
        for row in (R, S, X, E_PHI, E_Z, W_PHI, W_Z, BEND, LEVER_Q):
            hits[row, i] = hits[row, i + 1]
        at[LAYER, i] = at[LAYER, i + 1]
        at[SLOT, i] = at[SLOT, i + 1]
    return m - 1
