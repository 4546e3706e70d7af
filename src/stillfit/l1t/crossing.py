"""Where a helix crosses the layers of the tracker, compiled.

Scratch arrays of one track, shared by all compiled loops of the simulation: `hits` float64
(HIT_ROWS, SCRATCH) and `at` int64 (AT_ROWS, SCRATCH). `trace` fills one column per crossing, inside
out; stubs are then packed to the front (`keep`). Lengths in cm, pT in GeV. Approximations: a
perfect helix in a constant field, d0 small against every radius (phi moves by -d0 / r).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from stillfit.l1t import geometry as geo
from stillfit.l1t.geometry import EFFICIENCY, FLAG

# Rows of `hits`: of a crossing radius, arc length, signed r / (2R), z, phi; of a stub besides:
# residuals and fit weights in r-phi and z, bend, and strips of bend per unit slope.
R, S, X, Z, PHI, E_PHI, E_Z, W_PHI, W_Z, BEND, LEVER_Q = range(11)
HIT_ROWS = 11
# Rows of `at`: layer (0-10), module, and for stubs the number of their crossing.
LAYER, MODULE, SLOT = range(3)
AT_ROWS = 3
SCRATCH = 12
CROSSINGS_MAX = 7  # bits of a hit pattern

_BARREL_R = np.array(geo.BARREL_R)
_BARREL_PHI = np.array(geo.BARREL_PHI_MODULES)
_BARREL_RINGS = np.array(geo.BARREL_Z_MODULES) / (2 * geo.BARREL_HALF_LENGTH)  # rings per cm
_DISK_Z = np.array(geo.DISK_Z)
_DISK_IN = np.array(geo.DISK_R_INNER)
_DISK_OUT = geo.DISK_R_OUTER
_HALF_LENGTH = geo.BARREL_HALF_LENGTH
_N_BARREL = geo.N_BARREL
_N_DISKS = geo.N_LAYERS - geo.N_BARREL
_N_PS_RINGS = geo.N_PS_RINGS
_R_PS = geo.RING_EDGES[geo.N_PS_RINGS]
_R_FIRST_RING = geo.RING_EDGES[0]
_FIRST, _RING_FIRST, _RING_PHI = geo.module_index()
_SLOPE_DISKS = 0.9  # |sinh eta| below which no disk is reached
_TURN = 1.0 / (2.0 * math.pi)


@njit(nogil=True, error_model="numpy")
def trace(phi0: Any, kappa: Any, slope: Any, z0: Any, d0: Any, hits: Any, at: Any) -> Any:
    """Crossings of a helix with layers, inside out; their number.

    `kappa`: signed 1/R (1/cm), positive turns clockwise; `slope`: sinh(eta). A track of |eta| < 2.4
    from the luminous region crosses 5 to 7 layers; an eighth, very rare, is left out.
    """
    half = 0.5 * kappa
    n = 0
    for layer in range(_N_BARREL):
        r = _BARREL_R[layer]
        x = half * r
        x2 = x * x
        arc = 1.0 + x2 * (1 / 6 + x2 * (3 / 40 + x2 * (15 / 336)))  # asin(x) / x
        s = r * arc
        z = z0 + slope * s
        if abs(z) >= _HALF_LENGTH:
            break
        phi = phi0 - x * arc - d0 / r
        turn = (phi + math.pi) * _TURN
        turn -= math.floor(turn)
        n_phi = _BARREL_PHI[layer]
        column = min(np.int64(turn * n_phi), n_phi - 1)
        ring = np.int64((z + _HALF_LENGTH) * _BARREL_RINGS[layer])
        hits[R, n] = r
        hits[S, n] = s
        hits[X, n] = x
        hits[Z, n] = z
        hits[PHI, n] = phi
        at[LAYER, n] = layer
        at[MODULE, n] = _FIRST[layer, 0] + ring * n_phi + column
        n += 1
    if abs(slope) < _SLOPE_DISKS:
        return n
    end = 1 if slope > 0 else 0
    side = 1.0 if slope > 0 else -1.0
    per_z = 1.0 / slope
    for disk in range(_N_DISKS):
        z = side * _DISK_Z[disk]
        s = (z - z0) * per_z
        y = half * s
        y2 = y * y
        r = s * (1.0 - y2 * (1 / 6 - y2 * (1 / 120 - y2 * (1 / 5040))))  # sin(y) / half
        if r >= _DISK_OUT or y2 > 1.0 or n == CROSSINGS_MAX:
            break
        if r < _DISK_IN[disk]:
            continue
        phi = phi0 - y - d0 / r
        turn = (phi + math.pi) * _TURN
        turn -= math.floor(turn)
        ring = np.int64((r - _R_FIRST_RING) * 0.2)
        if ring >= _N_PS_RINGS:
            ring = _N_PS_RINGS + np.int64((r - _R_PS) * 0.1)
        n_phi = _RING_PHI[ring]
        column = min(np.int64(turn * n_phi), n_phi - 1)
        hits[R, n] = r
        hits[S, n] = s
        hits[X, n] = half * r
        hits[Z, n] = z
        hits[PHI, n] = phi
        at[LAYER, n] = _N_BARREL + disk
        at[MODULE, n] = _FIRST[_N_BARREL + disk, end] + _RING_FIRST[ring] + column
        n += 1
    return n


@njit(nogil=True, error_model="numpy")
def sort(layer: Any, r: Any) -> Any:
    """The sort of module crossed: 0 barrel PS, 1 disk PS, 2 2S (outside 60 cm everywhere)."""
    if r >= _R_PS:
        return 2
    return 1 if layer >= _N_BARREL else 0


@njit(nogil=True, error_model="numpy")
def local(i: Any, hits: Any, at: Any, modules: Any, regions: Any, region_layers: Any) -> Any:
    """Efficiency, and density of unrelated stubs over the nominal one, at crossing `i`."""
    module = at[MODULE, i]
    efficiency = np.float64(modules[module, EFFICIENCY])
    rate = 1.0
    if modules[module, FLAG] > 0.0:
        across = hits[Z, i] / hits[R, i]
        phi = wrap(hits[PHI, i])
        for k in range(len(region_layers)):
            if (region_layers[k] >> at[LAYER, i]) & 1 and inside(regions, k, across, phi):
                efficiency *= regions[k, 4]
                rate *= regions[k, 5]
    return efficiency, rate


@njit(nogil=True, error_model="numpy")
def wrap(phi: Any) -> Any:
    """An angle brought into [-pi, pi]."""
    return phi - 2.0 * math.pi * math.floor(phi * _TURN + 0.5)


@njit(nogil=True, error_model="numpy")
def inside(ranges: Any, k: Any, across: Any, phi: Any) -> Any:
    """Whether a point lies in row `k` of `ranges`: across from, to, phi from, to."""
    if across < ranges[k, 0] or across > ranges[k, 1]:
        return False
    if ranges[k, 2] <= ranges[k, 3]:
        return ranges[k, 2] <= phi <= ranges[k, 3]
    return phi >= ranges[k, 2] or phi <= ranges[k, 3]


@njit(nogil=True, error_model="numpy")
def keep(i: Any, m: Any, hits: Any, at: Any) -> None:
    """Make crossing `i` stub number `m` <= `i`."""
    hits[R, m] = hits[R, i]
    hits[S, m] = hits[S, i]
    hits[X, m] = hits[X, i]
    at[LAYER, m] = at[LAYER, i]
    at[SLOT, m] = i
