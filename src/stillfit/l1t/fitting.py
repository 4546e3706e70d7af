"""The track finder's decisions and fits, compiled: stubs in, one track out or none.

Both fits are linear in the residuals about the trajectory, with fixed nominal weights: r-phi for
phi and curvature (d0 = 0, as in the track finder of four parameters), r-z for z0 and tan(lambda).
d0 is the one-parameter step on top of the r-phi fit. Linearising is exact to second order in
residuals of 1e-3. Fit parameters, chi2 and therefore resolutions follow from the stubs alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stillfit.l1t import geometry as geo
from stillfit.l1t.crossing import (
    BEND,
    E_PHI,
    E_Z,
    LAYER,
    LEVER_Q,
    SLOT,
    W_PHI,
    W_Z,
    R,
    S,
    X,
    inside,
    sort,
    wrap,
)
from stillfit.l1t.stubs import PT_MIN, bend_slope
from stillfit.l1t.variates import uniform

ETA_MAX = 2.4
Z0_MAX = 20.46912512  # cm, the range of the track word
_SLOPE_MAX = math.sinh(ETA_MAX)
_CURVATURE = geo.CURVATURE
_BEND_SIGMA = 0.42  # strips, of the bend chi2
_RESIDUAL_MAX = 0.3  # cm: a stub that far off the fit in r-phi would not have been matched
_PS_MIN = 2  # PS stubs that a track needs


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

    @classmethod
    def empty(cls, size: int) -> Out:
        """Room for `size` tracks."""
        return cls(
            pt=np.empty(size, np.float32),
            eta=np.empty(size, np.float32),
            phi=np.empty(size, np.float32),
            z0=np.empty(size, np.float32),
            d0=np.empty(size, np.float32),
            chi2rphi=np.empty(size, np.float32),
            chi2rz=np.empty(size, np.float32),
            bendchi2=np.empty(size, np.float32),
            nstub=np.empty(size, np.uint8),
            layers=np.empty(size, np.uint16),
            hitpattern=np.empty(size, np.uint8),
            is_pv=np.empty(size, np.uint8),
            is_fake=np.empty(size, np.uint8),
            particle=np.empty(size, np.int32),
        )


def grown(out: Out, size: int) -> Out:
    """The same tracks with room for `size`."""
    more = Out.empty(size)
    for name in Out._fields:
        old = getattr(out, name)
        getattr(more, name)[: len(old)] = old
    return more


@njit(nogil=True, error_model="numpy")
def fit(m: Any, kappa: Any, hits: Any) -> Any:
    """Weighted fits of the residuals of `m` stubs.

    Returns changes of phi0, kappa, d0, z0, slope; chi2 in r-phi and r-z and of the bends, per
    degree of freedom (m - 2, m - 2, m); the largest residual in r-phi (cm).
    """
    aa, ab, bb, ae, be, ac, bc, cc, ce = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    w_0, w_s, w_ss, w_e, w_se = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(m):
        # Derivatives of the r-phi position: a = r for phi0, b for kappa, -1 for d0.
        a = hits[R, i]
        x2 = hits[X, i] * hits[X, i]
        b = -0.5 * a * a * (1.0 + x2 * (0.5 + 0.375 * x2))
        e, w = hits[E_PHI, i], hits[W_PHI, i]
        wa, wb = w * a, w * b
        aa += wa * a
        ab += wa * b
        bb += wb * b
        ae += wa * e
        be += wb * e
        ac -= wa
        bc -= wb
        cc += w
        ce -= w * e
        s, e, w = hits[S, i], hits[E_Z, i], hits[W_Z, i]
        ws = w * s
        w_0 += w
        w_s += ws
        w_ss += ws * s
        w_e += w * e
        w_se += ws * e
    scale = 1.0 / (aa * bb - ab * ab)
    d_phi, d_kappa = (bb * ae - ab * be) * scale, (aa * be - ab * ae) * scale
    u_a, u_b = (bb * ac - ab * bc) * scale, (aa * bc - ab * ac) * scale
    d_d0 = (ce - ac * d_phi - bc * d_kappa) / (cc - ac * u_a - bc * u_b)
    scale = 1.0 / (w_0 * w_ss - w_s * w_s)
    d_z0, d_slope = (w_ss * w_e - w_s * w_se) * scale, (w_0 * w_se - w_s * w_e) * scale

    chi2_phi, chi2_z, chi2_bend, far = 0.0, 0.0, 0.0, 0.0
    stretch = 1.0 + d_kappa / kappa
    for i in range(m):
        r, x = hits[R, i], hits[X, i]
        x2 = x * x
        b = -0.5 * r * r * (1.0 + x2 * (0.5 + 0.375 * x2))
        e = hits[E_PHI, i] - r * d_phi - b * d_kappa
        chi2_phi += hits[W_PHI, i] * e * e
        far = max(far, abs(e))
        e = hits[E_Z, i] - d_z0 - hits[S, i] * d_slope
        chi2_z += hits[W_Z, i] * e * e
        e = hits[BEND, i] - hits[LEVER_Q, i] * bend_slope(x * stretch)
        chi2_bend += e * e
    dof = 1.0 / (m - 2)
    chi2_bend /= _BEND_SIGMA * _BEND_SIGMA * m
    return d_phi, d_kappa, d_d0, d_z0, d_slope, chi2_phi * dof, chi2_z * dof, chi2_bend, far


@njit(nogil=True, error_model="numpy")
def pattern(m: Any, hits: Any, at: Any) -> Any:
    """Layers of `m` stubs as bits, the hit pattern, and whether the track finder starts there.

    It needs one of the pairs of layers that seeds are made of (B1B2, B2B3, B3B4, B5B6, D1D2, D3D4,
    B1D1, B2D1), and two PS stubs to have a z.
    """
    bits, slots, n_ps = 0, 0, 0
    for i in range(m):
        layer = at[LAYER, i]
        bits |= 1 << layer
        slots |= 1 << at[SLOT, i]
        n_ps += 1 if sort(layer, hits[R, i]) < 2 else 0
    pairs = bits & (bits >> 1)
    mixed = (bits >> 6) & 1 and bits & 0b11
    start = (pairs & 0b101010111) != 0 or mixed != 0
    return bits, slots, start and n_ps >= _PS_MIN


@njit(nogil=True, error_model="numpy")
def emit(
    n: Any,
    m: Any,
    phi0: Any,
    kappa: Any,
    slope: Any,
    z0: Any,
    knobs: Any,
    masks: Any,
    hits: Any,
    at: Any,
    out: Any,
    state: Any,
) -> Any:
    """Fit `m` stubs about a trajectory and write track `n`; False if the finder drops it."""
    if m < knobs.min_stubs:
        return False
    bits, slots, start = pattern(m, hits, at)
    if not start or uniform(state) >= knobs.finder_efficiency:
        return False
    d_phi, d_kappa, d0, d_z0, d_slope, chi2_phi, chi2_z, chi2_bend, far = fit(m, kappa, hits)
    slope += d_slope
    z0 += d_z0
    pt = knobs.pt_scale * _CURVATURE / max(abs(kappa + d_kappa), 1e-7)
    if pt < PT_MIN or abs(slope) >= _SLOPE_MAX or abs(z0) >= Z0_MAX or far > _RESIDUAL_MAX:
        return False
    if chi2_phi > knobs.max_chi2rphi or chi2_z > knobs.max_chi2rz or chi2_bend > knobs.max_bendchi2:
        return False
    phi = wrap(phi0 + d_phi)
    eta = math.log(abs(slope) + math.sqrt(1.0 + slope * slope))
    eta = eta if slope > 0 else -eta
    for k in range(len(masks)):
        if inside(masks, k, eta, phi) and uniform(state) >= masks[k, 4]:
            return False
    out.pt[n] = pt
    out.eta[n] = eta
    out.phi[n] = phi
    out.z0[n] = z0
    out.d0[n] = d0
    out.chi2rphi[n] = chi2_phi
    out.chi2rz[n] = chi2_z
    out.bendchi2[n] = chi2_bend
    out.nstub[n] = m
    out.layers[n] = bits
    out.hitpattern[n] = slots
    return True
