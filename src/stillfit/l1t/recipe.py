"""Initial training of the vertex networks on simulated events, and labelled example sets."""

from __future__ import annotations

import numpy as np

from stillfit.core.arrays import Column, concat
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import Conditions
from stillfit.l1t.detector import simulate
from stillfit.l1t.library import Library

CHUNK = 2000  # events simulated at a time: 40 MB of particles


def vertex_examples(
    n: int,
    conditions: Conditions,
    *,
    library: Library,
    seed: int,
    split: str = "train",
    condition: str = "nominal",
) -> Examples:
    """`n` simulated events with the true vertex, made in pieces so that memory stays small."""
    parts = []
    seeds = Seeds(seed)
    for first in range(0, n, CHUNK):
        rng = seeds.rng("vertex examples", split, first)
        particles = compose(
            library,
            n=min(CHUNK, n - first),
            pileup=conditions.pileup,
            z_beam=conditions.z_beam,
            sigma_z=conditions.sigma_z,
            processes=conditions.processes.weights(),
            rng=rng,
            split=split,
        )
        tracks = simulate(particles, conditions, rng)
        parts.append((tracks.to_inputs(), tracks.to_targets()))
    inputs: dict[str, Column] = concat([part[0] for part in parts])
    targets: dict[str, Column] = concat([part[1] for part in parts])
    return Examples(
        np.arange(n, dtype=np.int64), inputs, targets, np.zeros(n), np.full(n, condition)
    )
