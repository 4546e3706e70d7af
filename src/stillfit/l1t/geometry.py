"""The Phase-2 outer tracker as a grid of modules, and what conditions make of each of them.

Six barrel layers (three of PS modules, three of 2S) and five double-disks (PS inside 60 cm, 2S
outside). PS modules of the barrel are tilted towards the interaction point outside a flat part,
as in the real TBPS: that is what makes z0 resolve as the parametrisation in the docs says.
Lengths in cm. Source of the radii and pitches: CMS-TDR-014 (The Phase-2 Upgrade of the CMS
Tracker), rounded.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.l1t.conditions import LAYERS, Conditions, DeadRegion, HotRegion, LayerName

N_LAYERS = len(LAYERS)
N_BARREL = 6
BARREL_R = (25.0, 37.0, 52.0, 69.0, 86.0, 108.0)
BARREL_HALF_LENGTH = 120.0
BARREL_PHI_MODULES = (18, 26, 36, 48, 60, 78)
BARREL_Z_MODULES = (52, 52, 52, 24, 24, 24)
FLAT_HALF_LENGTH = (15.0, 25.0, 34.0)  # of the PS layers; tilted outside
FLAT_SPACING, TILTED_SPACING = (0.26, 0.16, 0.16), (0.40, 0.26, 0.26)  # of the two sensors
DISK_Z = (131.0, 155.0, 185.0, 221.0, 265.0)
DISK_R_INNER = (22.5, 22.5, 31.0, 31.0, 31.0)
DISK_R_OUTER = 110.0
RING_EDGES = (*np.arange(20.0, 60.0, 5.0), *np.arange(60.0, 111.0, 10.0))  # 8 PS, 5 2S rings
N_PS_RINGS = 8
MODULE_WIDTH = 9.4  # in phi
FIELD = 3.8  # tesla
CURVATURE = 0.00299792458 * FIELD  # 1/R = CURVATURE / pT, in 1/cm for pT in GeV

PS_PITCH, PS_LENGTH = 0.0100, 0.15  # strips in r-phi, macro-pixels in z or r
TWO_S_PITCH, TWO_S_LENGTH = 0.0090, 5.0

# Columns of `Detector.modules`.
COS, SIN, EFFICIENCY, Z_SHIFT, PHI_SHIFT, R_SCALE, LEVER, FLAG = range(8)


class Detector(NamedTuple):
    """Everything that the compiled loops read, for one state of conditions.

    `modules` (m, 8) float32: cosine and sine of the tilt against the beam line, hit efficiency,
    reported z shift (cm), reported phi shift (rad), reported over true radius minus one, lever
    (spacing of the two sensors over the pitch, strips per unit slope), 1 if a region overlaps it.
    `regions` (k, 6): sinh of eta from, to; phi from, to; efficiency; rate. `region_layers` (k,):
    bits of the layers. `masks` (k, 5): eta and phi ranges in which tracks are dropped, share left.
    `spread` (3, 2): full widths of the uniform error of a stub in r-phi and along the module (cm),
    by sort of module: barrel PS, disk PS, 2S.
    """

    modules: NDArray[np.float32]
    regions: NDArray[np.float64]
    region_layers: NDArray[np.int64]
    masks: NDArray[np.float64]
    spread: NDArray[np.float64]
    knobs: Knobs


class Knobs(NamedTuple):
    """The plain numbers that act on stubs, tracks and fakes.

    `hottest`: the largest rate of any hot region, at least 1; the others as in `Conditions`.
    """

    hottest: float
    noise: float
    fake_scale: float
    good_fakes: float
    pt_scale: float
    finder_efficiency: float
    min_stubs: int
    max_chi2rphi: float
    max_chi2rz: float
    max_bendchi2: float


class _Modules(NamedTuple):
    """The grid, before conditions: one entry per module."""

    layer: NDArray[np.int64]
    r: NDArray[np.float64]
    z: NDArray[np.float64]
    phi: NDArray[np.float64]
    half_phi: NDArray[np.float64]
    half_size: NDArray[np.float64]  # along z (barrel) or r (disks)
    tilt: NDArray[np.float64]
    lever: NDArray[np.float64]
    first: NDArray[np.int64]
    ring_first: NDArray[np.int64]
    ring_phi: NDArray[np.int64]


@lru_cache(maxsize=1)
def _grid() -> _Modules:
    """All modules, barrel first, then each disk's two ends, ring by ring."""
    rows: list[NDArray[np.float64]] = []
    first = np.zeros((N_LAYERS, 2), np.int64)
    count = 0
    for layer in range(N_BARREL):
        n_phi, n_z = BARREL_PHI_MODULES[layer], BARREL_Z_MODULES[layer]
        half = BARREL_HALF_LENGTH / n_z
        z = np.repeat(-BARREL_HALF_LENGTH + half * (2 * np.arange(n_z) + 1), n_phi)
        r = np.full(len(z), BARREL_R[layer])
        tilt, lever = np.zeros(len(z)), np.full(len(z), 0.18 / TWO_S_PITCH)
        if layer < len(FLAT_HALF_LENGTH):
            tilted = np.abs(z) > FLAT_HALF_LENGTH[layer]
            tilt = np.where(tilted, np.arctan2(np.abs(z), r), 0.0)
            spacing = np.where(tilted, TILTED_SPACING[layer], FLAT_SPACING[layer])
            lever = spacing / PS_PITCH
        first[layer] = count
        rows.append(_rows(layer, r, z, n_phi, half, tilt, lever))
        count += len(z)
    rings = np.array(RING_EDGES)
    centres = 0.5 * (rings[1:] + rings[:-1])
    ring_phi = np.ceil(2 * np.pi * centres / MODULE_WIDTH).astype(np.int64)
    ring_first = np.concatenate([[0], np.cumsum(ring_phi)])
    for disk, z_disk in enumerate(DISK_Z):
        for end, side in enumerate((-1.0, 1.0)):
            first[N_BARREL + disk, end] = count
            for ring, (r_ring, n_phi) in enumerate(zip(centres, ring_phi, strict=True)):
                ps = ring < N_PS_RINGS
                gap = 0.40 if ps or ring == N_PS_RINGS else 0.18
                rows.append(
                    _rows(
                        N_BARREL + disk,
                        np.full(n_phi, r_ring),
                        np.full(n_phi, side * z_disk),
                        int(n_phi),
                        0.5 * (rings[ring + 1] - rings[ring]),
                        np.full(n_phi, math.pi / 2),
                        np.full(n_phi, gap / (PS_PITCH if ps else TWO_S_PITCH)),
                    )
                )
                count += int(n_phi)
    table = np.concatenate(rows, axis=1)
    layer_of, r, z, phi, half_phi, half_size, tilt, lever = table
    return _Modules(
        layer=layer_of.astype(np.int64),
        r=r,
        z=z,
        phi=phi,
        half_phi=half_phi,
        half_size=half_size,
        tilt=tilt,
        lever=lever,
        first=first,
        ring_first=ring_first[:-1],
        ring_phi=ring_phi,
    )


def _rows(
    layer: int,
    r: NDArray[np.float64],
    z: NDArray[np.float64],
    n_phi: int,
    half: float,
    tilt: NDArray[np.float64],
    lever: NDArray[np.float64],
) -> NDArray[np.float64]:
    step = 2 * np.pi / n_phi
    phi = -np.pi + step * (np.arange(len(r)) % n_phi + 0.5)
    full = np.ones(len(r))
    return np.array([layer * full, r, z, phi, 0.5 * step * full, half * full, tilt, lever])


@lru_cache(maxsize=64)
def detector(conditions: Conditions) -> Detector:
    """The module tables under `conditions`. Cost: 2 ms, once per state (the last 64 are kept)."""
    grid = _grid()
    rng = np.random.default_rng(conditions.detector_seed)
    luminosity = conditions.integrated_luminosity / 1000.0
    factor = np.array([getattr(conditions.layer_efficiency, name) for name in LAYERS])
    efficiency = conditions.hit_efficiency * factor[grid.layer]
    efficiency *= np.clip(1.0 - conditions.ageing * (25.0 / grid.r) * luminosity, 0.0, 1.0)
    # A module dies when the luminosity passes its own exponential number: dead stays dead.
    lifetime = rng.exponential(size=len(grid.layer))
    efficiency[lifetime < conditions.module_loss * luminosity] = 0.0

    shift = np.array([getattr(conditions.layer_z_shift, name) for name in LAYERS])[grid.layer]
    barrel = grid.layer < N_BARREL
    shift = shift + np.where(barrel, conditions.barrel_z_shift, 0.0)
    for sector in conditions.sector_shifts:
        inside = _has_layer(sector.layers, grid.layer) & _in_phi(grid.phi, sector.phi)
        shift = shift + np.where(inside, sector.z_shift, 0.0)

    modules = np.zeros((len(grid.layer), 8), np.float32)
    modules[:, COS] = np.cos(grid.tilt)
    modules[:, SIN] = np.sin(grid.tilt)
    modules[:, EFFICIENCY] = efficiency
    modules[:, Z_SHIFT] = shift
    modules[:, PHI_SHIFT] = conditions.twist * grid.z
    modules[:, R_SCALE] = np.where(barrel, conditions.radial_scale - 1.0, 0.0)
    modules[:, LEVER] = grid.lever
    stub_regions: list[DeadRegion | HotRegion] = [
        region for region in conditions.dead_regions if region.drops == "stubs"
    ]
    stub_regions += conditions.hot_regions
    for region in stub_regions:
        modules[_overlaps(grid, region), FLAG] = 1.0
    masks = [region for region in conditions.dead_regions if region.drops == "tracks"]
    return Detector(
        modules=modules,
        regions=np.array([_limits(region) for region in stub_regions], np.float64).reshape(-1, 6),
        region_layers=np.array([_bits(region.layers) for region in stub_regions], np.int64),
        masks=np.array([(*m.eta, *m.phi, m.efficiency) for m in masks]).reshape(-1, 5),
        spread=np.array(
            [
                (
                    PS_PITCH * conditions.barrel_ps_resolution,
                    PS_LENGTH * conditions.barrel_ps_resolution,
                ),
                (
                    PS_PITCH * conditions.disk_ps_resolution,
                    PS_LENGTH * conditions.disk_ps_resolution,
                ),
                (TWO_S_PITCH * conditions.two_s_resolution, TWO_S_LENGTH),
            ]
        ),
        knobs=Knobs(
            hottest=max([1.0, *(float(region.rate) for region in conditions.hot_regions)]),
            **{name: getattr(conditions, name) for name in Knobs._fields[1:]},
        ),
    )


def module_index() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How modules are numbered: first of each layer and end (11, 2; barrel: both the same), first
    of each ring within a disk's end (13,), modules in phi of each ring (13,)."""
    grid = _grid()
    return grid.first, grid.ring_first, grid.ring_phi


def _limits(region: DeadRegion | HotRegion) -> tuple[float, ...]:
    return (
        math.sinh(region.eta[0]),
        math.sinh(region.eta[1]),
        *region.phi,
        region.efficiency if isinstance(region, DeadRegion) else 1.0,
        1.0 if isinstance(region, DeadRegion) else region.rate,
    )


def _bits(layers: tuple[LayerName, ...]) -> int:
    return sum(1 << LAYERS.index(name) for name in set(layers or LAYERS))


def _has_layer(layers: tuple[LayerName, ...], layer: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.isin(layer, [LAYERS.index(name) for name in layers or LAYERS])


def _in_phi(phi: NDArray[np.float64], interval: tuple[float, float]) -> NDArray[np.bool_]:
    low, high = interval
    if low <= high:
        return (phi >= low) & (phi <= high)
    return (phi >= low) | (phi <= high)


def _overlaps(grid: _Modules, region: DeadRegion | HotRegion) -> NDArray[np.bool_]:
    """Modules that a region may touch: a generous test, the exact one is made for each stub."""
    low, high = region.phi
    width = (high - low) % (2 * np.pi) if high != low + 2 * np.pi else 2 * np.pi
    away = (grid.phi - low + np.pi) % (2 * np.pi) - np.pi
    after = (grid.phi - low) % (2 * np.pi)
    in_phi = (after <= width + grid.half_phi) | (np.abs(away) <= grid.half_phi)
    barrel = grid.layer < N_BARREL
    z_1 = np.where(barrel, grid.z - grid.half_size, grid.z)
    z_2 = np.where(barrel, grid.z + grid.half_size, grid.z)
    r_1 = np.where(barrel, grid.r, grid.r - grid.half_size)
    r_2 = np.where(barrel, grid.r, grid.r + grid.half_size)
    slopes = np.array([z_1 / r_1, z_1 / r_2, z_2 / r_1, z_2 / r_2])
    in_eta = (slopes.max(axis=0) >= math.sinh(region.eta[0])) & (
        slopes.min(axis=0) <= math.sinh(region.eta[1])
    )
    inside: NDArray[np.bool_] = in_phi & in_eta & _has_layer(region.layers, grid.layer)
    return inside
