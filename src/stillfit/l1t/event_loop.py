"""The compiled loop over events: every particle, its track, its duplicate, its fakes."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from stillfit.l1t import crossing, fakes, fitting, geometry, stubs, variates
from stillfit.l1t.crossing import AT_ROWS, HIT_ROWS, SCRATCH, trace
from stillfit.l1t.fakes import complete, imitate, seed
from stillfit.l1t.fitting import emit
from stillfit.l1t.stubs import WRONG, drop_one, measure
from stillfit.l1t.variates import begin_stream, poisson, uniform

_PARTICLES_NOMINAL = 460.0  # particles of the library in an event of pile-up 200
_CURVATURE = geometry.CURVATURE
_SEEDS = 0.55  # wrong seeds per particle at nominal occupancy
_BOUND = 0.15  # upper limit of the chance that one is
_GOOD = 0.043  # good fakes per particle for good_fakes = 1: the nominal number of fakes
_DUPLICATES = 0.02  # share of tracks found twice at nominal occupancy
_PT_LOOK = 1.85  # GeV: below it (over the pT scale) hardly any fit reaches the threshold of 2 GeV


def _sources() -> int:
    """A number that changes with any source of the compiled loops.

    Numba's cache looks at the file of the cached function only, and would go on using a loop whose
    callees in other files have changed. As a constant inside the loop this is part of the key.
    """
    digest = hashlib.sha256()
    for module in (variates, geometry, crossing, stubs, fitting, fakes):
        digest.update(Path(str(module.__file__)).read_bytes())
    return int.from_bytes(digest.digest()[:7], "little")


def _compile(fingerprint: int) -> Any:
    @njit(cache=True, nogil=True, error_model="numpy")
    def event_loop(particles: Any, first: Any, seeds: Any, det: Any, out: Any, ends: Any) -> Any:
        """Tracks of the events from `first` on, as far as `out` has room; the first not done.

        `ends[event]` becomes the number of tracks in `out` up to and with that event.
        """
        if fingerprint < 0:
            return first
        offsets, p_pt, p_eta, p_phi, p_z0, p_d0, p_r_prod, p_charge, p_kind, p_is_pv = particles
        modules, spread, masks = det.modules, det.spread, det.masks
        regions, region_layers, knobs = det.regions, det.region_layers, det.knobs
        hits = np.zeros((HIT_ROWS, SCRATCH))
        at = np.zeros((AT_ROWS, SCRATCH), np.int64)
        tail = np.zeros((SCRATCH, 5))
        by_chance = np.zeros(len(WRONG))
        state = np.zeros(1, np.uint64)
        look = _PT_LOOK / knobs.pt_scale
        n = ends[first - 1] if first > 0 else 0
        for event in range(first, len(seeds)):
            begin, end = offsets[event], offsets[event + 1]
            occupancy = (end - begin) / _PARTICLES_NOMINAL * knobs.noise
            for layer in range(len(WRONG)):
                by_chance[layer] = 1.0 - math.exp(-WRONG[layer] * occupancy)
            # Seeds are drawn with an upper limit of the chance that they are completed, which in
            # the hottest places saturates: one seed makes one fake.
            bound = _BOUND * max(1.0, occupancy * occupancy) * knobs.hottest
            wrong_seeds, good_seeds = (
                _SEEDS * occupancy * knobs.fake_scale * bound,
                _GOOD * knobs.good_fakes,
            )
            no_seed = math.exp(-wrong_seeds - good_seeds)
            share_good = good_seeds / max(wrong_seeds + good_seeds, 1e-30)
            for p in range(begin, end):
                pt = np.float64(p_pt[p])
                kappa = p_charge[p] * _CURVATURE / pt
                phi, z0, d0 = np.float64(p_phi[p]), np.float64(p_z0[p]), np.float64(p_d0[p])
                if n + 2 > len(out.pt):
                    return event
                if pt >= look:
                    begin_stream(state, seeds[event], 2 * (p - begin))
                    grow = math.exp(np.float64(p_eta[p]))
                    slope, cosh = 0.5 * (grow - 1.0 / grow), 0.5 * (grow + 1.0 / grow)
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
                begin_stream(state, seeds[event], 2 * (p - begin) + 1)
                for _ in range(poisson(state, no_seed)):
                    if n + 1 > len(out.pt):
                        return event
                    good = uniform(state) < share_good
                    f_phi, f_kappa, f_slope, f_z0, secondary, fine = seed(
                        phi, kappa, math.sinh(np.float64(p_eta[p])), z0, hits, at, state
                    )
                    if not fine:
                        continue
                    m = trace(f_phi, f_kappa, f_slope, f_z0, 0.0, hits, at)
                    if good:
                        m = imitate(
                            m, f_kappa, f_slope, hits, at, modules, regions, region_layers, state
                        )
                    else:
                        m = complete(
                            m,
                            f_kappa,
                            f_slope,
                            secondary,
                            occupancy,
                            bound,
                            by_chance,
                            hits,
                            at,
                            tail,
                            modules,
                            regions,
                            region_layers,
                            state,
                        )
                    if emit(
                        n, m, f_phi, f_kappa, f_slope, f_z0, knobs, masks, hits, at, out, state
                    ):
                        out.is_pv[n] = 0
                        out.is_fake[n] = 1
                        out.particle[n] = -1
                        n += 1
            ends[event] = n
        return len(seeds)

    return event_loop


run = _compile(_sources())
