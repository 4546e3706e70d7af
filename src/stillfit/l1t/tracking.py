"""From a particle to stubs to a fitted track, compiled: crossings, hits, straight-line fits.

A particle's helix crosses layers; each crossed module makes a stub with its efficiency if the
bend lies in the window for 2 GeV. What the module reports differs from the helix by multiple
scattering, resolution and misalignment, and these residuals are fitted with fixed nominal weights:
r-phi for phi and curvature (d0 = 0, as the track finder does; d0 is a further one-parameter
step), r-z for z0 and tan(lambda). Fits are linear in the residuals about the helix, which is exact
up to second order in residuals of 1e-3. Lengths in cm, pT in GeV.

Scratch arrays of one track: `hits` (rows below, up to 11 columns) and `at` (layer, module).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stillfit.l1t import geometry as geo
from stillfit.l1t.geometry import COS, EFFICIENCY, FLAG, LEVER, PHI_SHIFT, R_SCALE, SIN, Z_SHIFT
from stillfit.l1t.variates import normal, uniform, word

# Rows of `hits`: radius, arc length, z, phi, signed r/(2R); then of a stub: residuals, weights,
# bend, lever over q.
R, S, Z, PHI, X, E_PHI, E_Z, W_PHI, W_Z, BEND, LEVER_Q = range(11)
HIT_ROWS = 11
LAYER, MODULE, SLOT = range(3)

_BARREL_R = np.array(geo.BARREL_R)
_BARREL_PHI = np.array(geo.BARREL_PHI_MODULES)
_BARREL_Z_STEP = 2 * geo.BARREL_HALF_LENGTH / np.array(geo.BARREL_Z_MODULES)
_DISK_Z = np.array(geo.DISK_Z)
_DISK_IN = np.array(geo.DISK_R_INNER)
_DISK_OUT = geo.DISK_R_OUTER
_HALF_LENGTH = geo.BARREL_HALF_LENGTH
_N_BARREL = geo.N_BARREL
_N_PS_RINGS = geo.N_PS_RINGS
_TURN = 1.0 / (2.0 * math.pi)
_CURVATURE = geo.CURVATURE

STUBS_MAX = 6  # the fit takes no more
PT_MIN = 2.0  # GeV, of the fitted track and of the stub windows
ETA_MAX = 2.4
Z0_MAX = 20.46912512  # cm, the range of the track word
_SLOPE_MAX = math.sinh(ETA_MAX)

# Material in radiation lengths at normal incidence, and nuclear interaction lengths: the inner
# tracker as one scatterer at r = 10 cm whose path grows to 3.5 times (then disks take over).
_X0_INNER, _LAMBDA_INNER, _R_INNER, _INNER_PATH = 0.12, 0.018, 10.0, 3.5
_X0_PS, _X0_2S, _LAMBDA_LAYER = 0.035, 0.025, 0.008
_HIGHLAND = 0.0136 * 0.90  # GeV; 0.90: the logarithm of the Highland formula at 5 % X0

_PS_SIGMA2, _PS_Z_SIGMA2 = geo.PS_PITCH**2 / 12, geo.PS_LENGTH**2 / 12
_2S_SIGMA2, _2S_Z_SIGMA2 = geo.TWO_S_PITCH**2 / 12, geo.TWO_S_LENGTH**2 / 12
# Scattering in the fit weights, rad GeV: sigma = number * r / pT (times cosh eta in r-z).
_FIT_PHI, _FIT_Z = 0.0005, 0.0004
_BEND_SIGMA = 0.42  # strips, of the bend chi2
_BEND_MARGIN = 0.5  # strips, width of a stub window beyond the bend at 2 GeV
_MATCH = 0.95  # share of a track's stubs that survive read-out and matching
_WINDOW_PHI = 0.3  # cm: a fitted stub further off in r-phi would not have been found

# Half widths of the search windows for stubs (cm): r-phi, and z in units of the q of a module.
WIDTH_PHI = np.array([0.10, 0.12, 0.15, 0.20, 0.25, 0.30, 0.15, 0.15, 0.18, 0.20, 0.22])
WIDTH_Z_PS, WIDTH_Z_2S = 0.4, 5.0
# Mean number of unrelated stubs in such a window at nominal occupancy.
WRONG = np.array([0.030, 0.030, 0.030, 0.050, 0.055, 0.050, 0.050, 0.050, 0.050, 0.050, 0.050])


class Out(NamedTuple):
    """Where tracks are written; one entry per track, filled from the front."""

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


@njit(cache=True, nogil=True)
def trace(phi0: Any, kappa: Any, slope: Any, z0: Any, d0: Any, det: Any, hits: Any, at: Any) -> Any:
    """Crossings of a helix with layers, inside out; their number.

    `kappa`: signed 1/R (1/cm), positive turns clockwise; `slope`: sinh(eta).
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
        ring = np.int64((z + _HALF_LENGTH) / _BARREL_Z_STEP[layer])
        hits[R, n] = r
        hits[S, n] = s
        hits[Z, n] = z
        hits[PHI, n] = phi
        hits[X, n] = x
        at[LAYER, n] = layer
        at[MODULE, n] = det.first[layer, 0] + ring * n_phi + column
        n += 1
    if abs(slope) < 0.9:
        return n
    end = 1 if slope > 0 else 0
    side = 1.0 if slope > 0 else -1.0
    for disk in range(5):
        s = (side * _DISK_Z[disk] - z0) / slope
        y = half * s
        y2 = y * y
        r = s * (1.0 - y2 * (1 / 6 - y2 * (1 / 120 - y2 * (1 / 5040))))  # sin(y) / half
        if r >= _DISK_OUT or y2 > 1.0:
            break
        if r < _DISK_IN[disk]:
            continue
        phi = phi0 - y - d0 / r
        turn = (phi + math.pi) * _TURN
        turn -= math.floor(turn)
        ring = np.int64((r - 20.0) * 0.2)
        if ring >= _N_PS_RINGS:
            ring = _N_PS_RINGS + np.int64((r - 60.0) * 0.1)
        n_phi = det.ring_phi[ring]
        column = min(np.int64(turn * n_phi), n_phi - 1)
        hits[R, n] = r
        hits[S, n] = s
        hits[Z, n] = side * _DISK_Z[disk]
        hits[PHI, n] = phi
        hits[X, n] = half * r
        at[LAYER, n] = _N_BARREL + disk
        at[MODULE, n] = det.first[_N_BARREL + disk, end] + det.ring_first[ring] + column
        n += 1
    return n


@njit(cache=True, nogil=True)
def is_ps(layer: Any, r: Any) -> Any:
    """Whether a stub comes from a PS module (fine z), not from a 2S one."""
    return layer < 3 or (layer >= _N_BARREL and r < 60.0)


@njit(cache=True, nogil=True)
def local(det: Any, module: Any, layer: Any, hits: Any, i: Any) -> Any:
    """Efficiency and relative density of unrelated stubs where crossing `i` is."""
    efficiency = np.float64(det.modules[module, EFFICIENCY])
    rate = 1.0
    if det.modules[module, FLAG] > 0.0:
        slope = hits[Z, i] / hits[R, i]
        phi = hits[PHI, i]
        phi -= 2.0 * math.pi * math.floor(phi * _TURN + 0.5)
        for k in range(len(det.region_layers)):
            if (det.region_layers[k] >> layer) & 1 and inside(det.regions[k], slope, phi):
                efficiency *= det.regions[k, 4]
                rate *= det.regions[k, 5]
    return efficiency, rate


@njit(cache=True, nogil=True)
def inside(region: Any, across: Any, phi: Any) -> Any:
    """Whether a point lies in the ranges (across from, to, phi from, to) of `region`."""
    if across < region[0] or across > region[1]:
        return False
    if region[2] <= region[3]:
        return region[2] <= phi <= region[3]
    return phi >= region[2] or phi <= region[3]


@njit(cache=True, nogil=True)
def weigh(i: Any, layer: Any, r: Any, q: Any, pt: Any, cosh: Any, hits: Any) -> None:
    """Nominal fit weights of stub `i`: resolution and scattering."""
    scatter = r / pt
    if is_ps(layer, r):
        a, b = _PS_SIGMA2, _PS_Z_SIGMA2
    else:
        a, b = _2S_SIGMA2, _2S_Z_SIGMA2
    hits[W_PHI, i] = 1.0 / (a + (_FIT_PHI * scatter) ** 2)
    hits[W_Z, i] = 1.0 / (b * q * q + (_FIT_Z * scatter * cosh) ** 2)


@njit(cache=True, nogil=True)
def keep(i: Any, j: Any, hits: Any, at: Any) -> None:
    """Move the description of crossing `i` to place `j` <= `i`, so that stubs are dense."""
    if i != j:
        hits[R, j] = hits[R, i]
        hits[S, j] = hits[S, i]
        hits[X, j] = hits[X, i]
        at[LAYER, j] = at[LAYER, i]
    at[SLOT, j] = i


@njit(cache=True, nogil=True)
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
    det: Any,
    hits: Any,
    at: Any,
    state: Any,
) -> Any:
    """Stubs that a particle leaves at its `n` crossings; their number.

    Kinks from scattering add up along the path: y, w are the displacements across the path in
    r-phi and in z at fixed radius, y', w' the slopes.
    """
    pull = _HIGHLAND / pt
    y, dy, w, dw, bremsed = 0.0, 0.0, 0.0, 0.0, 0.0
    before = r_prod
    lambda_sum = 0.0
    fate = uniform(state) if kind == 2 else 2.0
    if r_prod < _R_INNER:
        before = _R_INNER
        path = min(cosh, _INNER_PATH)
        kick = pull * math.sqrt(_X0_INNER * path)
        dy = kick * normal(state)
        dw = kick * cosh * normal(state)
        lambda_sum = _LAMBDA_INNER * path
        if fate < lambda_sum:
            return 0
        if kind == 0:
            bremsed = kappa * radiated(_X0_INNER * path, state)
    rise = abs(slope)
    m = 0
    for i in range(n):
        if m == STUBS_MAX:
            break
        r, s, x = hits[R, i], hits[S, i], hits[X, i]
        if r < r_prod:
            continue
        layer, module = at[LAYER, i], at[MODULE, i]
        row = det.modules[module]
        ps = is_ps(layer, r)
        q = np.float64(row[COS] + row[SIN] * rise)
        ds = s - before
        before = s
        y += (dy + 0.5 * bremsed * ds) * ds
        dy += bremsed * ds
        w += dw * ds
        efficiency, rate = local(det, module, layer, hits, i)

        bits = word(state)
        chance = np.float64(bits & np.uint64(0xFFFF)) * 2.0**-16
        u_1 = np.float64((bits >> np.uint64(16)) & np.uint64(0xFFF)) * 2.0**-12
        u_2 = np.float64((bits >> np.uint64(28)) & np.uint64(0xFFF)) * 2.0**-12
        u_3 = np.float64((bits >> np.uint64(40)) & np.uint64(0xFFF)) * 2.0**-12
        u_4 = np.float64(bits >> np.uint64(52)) * 2.0**-12
        lever = np.float64(row[LEVER]) / q
        x2 = x * x
        true_bend = lever * x * (1.0 + x2 * (0.5 + 0.375 * x2))
        bend = true_bend + u_3 - u_4
        window = lever * abs(x) * pt * (1.0 / PT_MIN) + _BEND_MARGIN
        if chance < efficiency * _MATCH and abs(bend) < window:
            keep(i, m, hits, at)
            if ps:
                scale = det.scale[0] if layer < _N_BARREL else det.scale[1]
                e_phi, e_z = geo.PS_PITCH * scale, geo.PS_LENGTH * scale
            else:
                scale = det.scale[2]
                e_phi, e_z = geo.TWO_S_PITCH * scale, geo.TWO_S_LENGTH * scale
            stretch = np.float64(row[R_SCALE])
            hits[E_PHI, m] = (
                y - d0 + e_phi * (u_1 - 0.5) + r * (np.float64(row[PHI_SHIFT]) + x * stretch)
            )
            hits[E_Z, m] = (
                w + e_z * q * (u_2 - 0.5) + np.float64(row[Z_SHIFT]) - slope * r * stretch
            )
            hits[BEND, m] = bend
            hits[LEVER_Q, m] = lever
            weigh(m, layer, r, q, pt, cosh, hits)
            m += 1
        elif uniform(state) < WRONG[layer] * rate * occupancy:
            keep(i, m, hits, at)
            wrong(m, layer, ps, q, lever, true_bend, hits, state)
            weigh(m, layer, r, q, pt, cosh, hits)
            m += 1

        thickness = cosh / q
        x0 = (_X0_PS if ps else _X0_2S) * thickness
        kick = pull * math.sqrt(x0)
        dy += kick * normal(state)
        dw += kick * cosh * normal(state)
        lambda_sum += _LAMBDA_LAYER * thickness
        if fate < lambda_sum:
            break
        if kind == 0:
            bremsed += (kappa + bremsed) * radiated(x0, state)
    return m


@njit(cache=True, nogil=True)
def wrong(
    m: Any, layer: Any, ps: Any, q: Any, lever: Any, bend: Any, hits: Any, state: Any
) -> None:
    """Stub `m` is an unrelated one, anywhere in the search window; its bend fits roughly."""
    hits[E_PHI, m] = WIDTH_PHI[layer] * (2.0 * uniform(state) - 1.0)
    hits[E_Z, m] = (WIDTH_Z_PS if ps else WIDTH_Z_2S) * q * (2.0 * uniform(state) - 1.0)
    hits[BEND, m] = bend + 3.0 * (uniform(state) - 0.5)
    hits[LEVER_Q, m] = lever


@njit(cache=True, nogil=True)
def radiated(x0: Any, state: Any) -> Any:
    """Growth of an electron's curvature, p before / p after - 1, in `x0` radiation lengths.

    Bethe and Heitler: -ln(share kept) is Gamma distributed with shape x0 / ln 2; for small shapes
    an exponential times a power of a uniform number.
    """
    shape = x0 / math.log(2.0)
    loss = -math.log(1.0 - uniform(state)) * uniform(state) ** (1.0 / shape)
    return math.exp(min(loss, 5.0)) - 1.0


@njit(cache=True, nogil=True)
def seeded(m: Any, at: Any, hits: Any) -> Any:
    """The layers of `m` stubs as bits, the hit pattern, and whether a track finder starts there.

    It needs one of the pairs of layers that seeds are made of, and two PS stubs for z.
    """
    bits, pattern, n_ps = 0, 0, 0
    for i in range(m):
        layer = at[LAYER, i]
        bits |= 1 << layer
        pattern |= 1 << min(at[SLOT, i], 6)
        if is_ps(layer, hits[R, i]):
            n_ps += 1
    pairs = bits & (bits >> 1)
    # B1B2, B2B3, B3B4, B5B6; D1D2, D3D4; B1D1, B2D1.
    start = (
        pairs & 0b0000010111
        or pairs & (1 << 6)
        or pairs & (1 << 8)
        or (bits & (1 << 6) and bits & 0b11)
    )
    return bits, pattern, start != 0 and n_ps >= 2


@njit(cache=True, nogil=True)
def fit(m: Any, kappa: Any, hits: Any) -> Any:
    """Weighted fits of the `m` residuals.

    Returns changes of phi0, kappa, d0, z0, slope; chi2 in r-phi and r-z and of the bends, per
    degree of freedom (m - 2, m - 2, m); the largest residual in r-phi (cm).
    """
    aa, ab, bb, ae, be, ac, bc, cc, ce = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    w_0, w_s, w_ss, w_e, w_se = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(m):
        r, x = hits[R, i], hits[X, i]
        a = r
        b = -0.5 * r * r * (1.0 + x * x * (0.5 + 0.375 * x * x))
        e, w = hits[E_PHI, i], hits[W_PHI, i]
        aa += w * a * a
        ab += w * a * b
        bb += w * b * b
        ae += w * a * e
        be += w * b * e
        ac -= w * a
        bc -= w * b
        cc += w
        ce -= w * e
        s, e, w = hits[S, i], hits[E_Z, i], hits[W_Z, i]
        w_0 += w
        w_s += w * s
        w_ss += w * s * s
        w_e += w * e
        w_se += w * s * e
    det = 1.0 / (aa * bb - ab * ab)
    d_phi = (bb * ae - ab * be) * det
    d_kappa = (aa * be - ab * ae) * det
    u_a, u_b = (bb * ac - ab * bc) * det, (aa * bc - ab * ac) * det
    d_d0 = (ce - ac * d_phi - bc * d_kappa) / (cc - ac * u_a - bc * u_b)
    det = 1.0 / (w_0 * w_ss - w_s * w_s)
    d_z0 = (w_ss * w_e - w_s * w_se) * det
    d_slope = (w_0 * w_se - w_s * w_e) * det

    chi2_phi, chi2_z, chi2_bend, far = 0.0, 0.0, 0.0, 0.0
    stretch = 1.0 + d_kappa / kappa
    for i in range(m):
        r, x = hits[R, i], hits[X, i]
        b = -0.5 * r * r * (1.0 + x * x * (0.5 + 0.375 * x * x))
        e = hits[E_PHI, i] - r * d_phi - b * d_kappa
        chi2_phi += hits[W_PHI, i] * e * e
        far = max(far, abs(e))
        e = hits[E_Z, i] - d_z0 - hits[S, i] * d_slope
        chi2_z += hits[W_Z, i] * e * e
        x *= stretch
        e = hits[BEND, i] - hits[LEVER_Q, i] * x * (1.0 + x * x * (0.5 + 0.375 * x * x))
        chi2_bend += e * e
    dof = 1.0 / (m - 2)
    chi2_bend *= 1.0 / (_BEND_SIGMA**2 * m)
    return d_phi, d_kappa, d_d0, d_z0, d_slope, chi2_phi * dof, chi2_z * dof, chi2_bend, far


@njit(cache=True, nogil=True)
def emit(
    n: Any,
    m: Any,
    phi0: Any,
    kappa: Any,
    slope: Any,
    z0: Any,
    det: Any,
    hits: Any,
    at: Any,
    out: Any,
    state: Any,
) -> Any:
    """Fit `m` stubs and write track `n`, unless the finder drops it; whether it was written."""
    knobs = det.knobs
    if m < knobs.min_stubs:
        return False
    bits, pattern, start = seeded(m, at, hits)
    if not start or uniform(state) >= knobs.finder_efficiency:
        return False
    d_phi, d_kappa, d0, d_z0, d_slope, chi2_phi, chi2_z, chi2_bend, far = fit(m, kappa, hits)
    slope = slope + d_slope
    z0 = z0 + d_z0
    pt = knobs.pt_scale * _CURVATURE / max(abs(kappa + d_kappa), 1e-7)
    if pt < PT_MIN or abs(slope) >= _SLOPE_MAX or abs(z0) >= Z0_MAX or far > _WINDOW_PHI:
        return False
    if chi2_phi > knobs.max_chi2rphi or chi2_z > knobs.max_chi2rz or chi2_bend > knobs.max_bendchi2:
        return False
    phi = phi0 + d_phi
    phi -= 2.0 * math.pi * math.floor(phi * _TURN + 0.5)
    for k in range(len(det.mask_keep)):
        eta = math.asinh(slope)
        if inside(det.masks[k], eta, phi) and uniform(state) >= det.mask_keep[k]:
            return False
    out.pt[n] = pt
    out.eta[n] = math.asinh(slope)
    out.phi[n] = phi
    out.z0[n] = z0
    out.d0[n] = d0
    out.chi2rphi[n] = chi2_phi
    out.chi2rz[n] = chi2_z
    out.bendchi2[n] = chi2_bend
    out.nstub[n] = m
    out.layers[n] = bits
    out.hitpattern[n] = pattern
    return True


@njit(cache=True, nogil=True)
def duplicate(m: Any, hits: Any, at: Any, state: Any) -> Any:
    """Drop one of the `m` stubs at random: the same track found again from another seed."""
    if m < 5:
        return m
    gone = np.int64(uniform(state) * m)
    for i in range(gone, m - 1):
        for row in range(HIT_ROWS):
            hits[row, i] = hits[row, i + 1]
        at[LAYER, i] = at[LAYER, i + 1]
        at[SLOT, i] = at[SLOT, i + 1]
    return m - 1
