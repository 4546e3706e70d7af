"""The vertex finder's problem for the conformance suite: events of few tracks, drawn by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from stillfit.core.arrays import Arrays, Column, Ragged
from stillfit.core.events import Examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.task import Task
from stillfit.models.training import Schedule
from stillfit.testing.problems import Problem

TRACKS = (6, 18)  # of an event, in place of some 180 at pile-up 200
OWN = 0.4  # share of them that come from the primary vertex
SHIFT = 0.25  # cm: by so much the new condition's tracks are measured too far to the left


def vertex_problem(network: Callable[[], nn.Module], task: Task | None = None) -> Problem:
    """A `Problem` of ragged tracks for a vertex network: where the vertex is, and which are its.

    New condition: all z0 are measured 0.25 cm too low and the quality word has lost two of its
    steps, so that neither the position nor the association is right any more. The tracks are not
    simulated (see `l1t.detector` for that): primary ones are harder, better measured and near
    their vertex, the others lie anywhere. Odd input: events without tracks, events whose tracks
    are all another vertex's, and labels of other events.
    """
    return Problem(
        name="vertex",
        task=VertexTask() if task is None else task,
        network=network,
        draw=_events,
        first=Schedule(steps=120, batch=50, rate=0.02),
        old=150,
        new=120,
        odd={
            "events without tracks": _without_tracks,
            "no track of the primary vertex": _without_primary,
            "labels of other tracks": _other_labels,
        },
    )


def _events(rng: np.random.Generator, n: int, condition: str) -> tuple[Arrays, Arrays]:
    counts = rng.integers(*TRACKS, n)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    vertex = rng.normal(0, 3.5, n)
    items = int(offsets[-1])
    own = rng.random(items) < OWN
    own[offsets[:-1]] = True
    eta = rng.uniform(-2.3, 2.3, items)
    away = rng.laplace(0, 0.03 + 0.05 * np.abs(eta) / 2.3, items)
    z0 = np.where(own, np.repeat(vertex, counts) + away, rng.normal(0, 4.5, items))
    quality = np.where(own, rng.integers(4, 8, items), rng.integers(1, 6, items))
    if condition == "new":
        z0, quality = z0 - SHIFT, np.maximum(quality - 2, 0)
    tracks = {
        "pt": 2 + rng.exponential(np.where(own, 6.0, 1.5)),
        "eta": eta,
        "phi": rng.uniform(-np.pi, np.pi, items),
        "z0": z0,
        "d0": rng.normal(0, 0.05, items),
        "chi2rphi": rng.exponential(1.5, items),
        "chi2rz": rng.exponential(1.0, items),
        "bendchi2": rng.exponential(1.5, items),
        "nstub": rng.integers(4, 7, items).astype(np.uint8),
        "hitpattern": rng.integers(0, 128, items).astype(np.uint8),
        "quality": quality.astype(np.uint8),
    }
    first = Ragged(np.zeros(items), offsets)
    columns: dict[str, Column] = {}
    for name, values in tracks.items():
        small = values.astype(np.float32) if values.dtype.kind == "f" else values
        columns[name] = first.with_values(small)
    is_pv = first.with_values(own.astype(np.uint8))
    return columns, {"z0": vertex.astype(np.float32), "is_pv": is_pv}


def _cut(column: Column) -> Ragged:
    """The same number of events, every second without items."""
    assert isinstance(column, Ragged)
    stays = column.events % 2 == 0
    counts = np.where(np.arange(len(column)) % 2 == 0, column.counts, 0)
    return Ragged.from_counts(column.values[stays], counts)


def _without_tracks(examples: Examples) -> Examples:
    inputs = {name: _cut(column) for name, column in examples.inputs.items()}
    targets = {**examples.targets, "is_pv": _cut(examples.targets["is_pv"])}
    return replace(examples, inputs=inputs, targets=targets)


def _without_primary(examples: Examples) -> Examples:
    is_pv = examples.targets["is_pv"]
    assert isinstance(is_pv, Ragged)
    none = is_pv.with_values(np.zeros_like(is_pv.values))
    return replace(examples, targets={**examples.targets, "is_pv": none})


def _other_labels(examples: Examples) -> Examples:
    others = examples.targets["is_pv"][np.roll(np.arange(len(examples)), 1)]
    return replace(examples, targets={**examples.targets, "is_pv": others})
