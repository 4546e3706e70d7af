"""Initial training of the vertex networks on simulated events, and labelled example sets."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from stillfit.core.arrays import Arrays, Column, Ragged, concat, concat_columns, n_events
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import Conditions, nominal
from stillfit.l1t.detector import Tracks, simulate
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.library import Library
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, build
from stillfit.models.training import Prepared, Schedule, fit

CHUNK = 2000  # events simulated at a time: 40 MB of particles
KINDS = {"e2e": "l1t.e2e", "adaptive": "l1t.adaptive"}
# Neutral at the start: the tables are for corrections of a known nominal, not for the nominal.
FROZEN = {"calibration": 0.0}


def vertex_examples(
    n: int,
    conditions: Conditions,
    *,
    library: Library,
    seed: int,
    split: str = "train",
    condition: str = "nominal",
) -> Examples:
    """`n` simulated events with the true vertex, of one condition; ids 0 to n - 1, time 0.

    The same arguments give the same events, and the first events of a longer set are those of a
    shorter one up to whole chunks of 2000. Memory: about 10 kB per event of pile-up 200.
    """
    parts = [
        (tracks.to_inputs(), tracks.to_targets())
        for tracks in _simulated(n, conditions, library, seed, split)
    ]
    return Examples(
        np.arange(n, dtype=np.int64),
        concat([inputs for inputs, _ in parts]),
        concat([targets for _, targets in parts]),
        np.zeros(n),
        np.full(n, condition),
    )


def train_vertex(
    kind: str,
    *,
    library: Library,
    seed: int,
    events: int = 50_000,
    epochs: int = 8,
    conditions: Conditions | None = None,
    schedule: Schedule | None = None,
    arguments: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda events: None,
) -> Model:
    """A vertex network of `kind` ("e2e" or "adaptive") from nothing, for `conditions` (nominal).

    Simulates `events` events of the training split and passes over them up to `epochs` times:
    Adam at 0.005 with a cosine, at most 800 batches of 250 events, beyond which nothing is gained
    (`schedule` replaces all that). `progress` is told the events that were gone through, `events`
    in all, the simulation taken for one pass more. `arguments` go to the network's factory. The
    calibration stays neutral. Cost: docs/vertex-networks.md; memory 12 kB per event.
    """
    name = KINDS.get(kind)
    if name is None:
        raise ConfigError(
            f"there is no vertex network {kind!r}{did_you_mean(kind, KINDS)}; "
            f"the kinds are {', '.join(KINDS)}"
        )
    if schedule is None:
        batch = min(250, events)
        schedule = Schedule(steps=min(800, max(1, epochs * events // batch)), batch=batch)
    architecture = Architecture(name, {**(arguments or {}), "seed": seed})
    model = Model(build(architecture, FACTORIES), VertexTask(), architecture)
    told = _Told(progress, events)
    passes = schedule.steps * schedule.batch / events
    parts: list[Arrays] = []
    targets: list[Arrays] = []
    for tracks in _simulated(events, conditions or nominal(), library, seed, "train"):
        parts.append(uncertain.prepare(model.task, model.network, tracks.to_inputs()))
        targets.append(tracks.to_targets())
        told.add(n_events(targets[-1]) / (1 + passes))
    data = Prepared(_emptied(parts), concat(targets), events)
    per_step = schedule.batch / (1 + passes)
    seeds = Seeds(seed)
    fit(
        model,
        data,
        schedule,
        seeds.rng("fit"),
        batches=seeds.rng("batches"),
        rates=FROZEN,
        told=lambda loss: told.add(per_step),
    )
    told.finish()
    return model


def _simulated(
    n: int, conditions: Conditions, library: Library, seed: int, split: str
) -> Iterator[Tracks]:
    """Tracks of `n` events in chunks, each from a generator of its own, in order."""
    seeds = Seeds(seed)

    def chunk(first: int) -> Tracks:
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
        return simulate(particles, conditions, rng)

    # The compiled loops release the interpreter's lock: threads share the library.
    workers = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Tracks]] = deque()
        for first in range(0, n, CHUNK):
            ahead.append(pool.submit(chunk, first))
            if len(ahead) > workers:  # no more is made than can be taken
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _emptied(parts: list[Arrays]) -> Arrays:
    """The parts as one, each given up once it is copied: the training set is held once."""
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    parts.clear()
    joined: dict[str, Column] = {}
    for name, pieces in columns.items():
        ragged = [piece for piece in pieces if isinstance(piece, Ragged)]
        if len(ragged) < len(pieces):
            joined[name] = concat_columns(pieces)
            continue
        pieces.clear()
        counts = np.concatenate([piece.counts for piece in ragged])
        values = np.empty((int(counts.sum()), *ragged[0].values.shape[1:]), ragged[0].values.dtype)
        end = len(values)
        while ragged:
            last = ragged.pop().values
            values[end - len(last) : end] = last
            end -= len(last)
        joined[name] = Ragged.from_counts(values, counts)
    return joined


class _Told:
    """Tells whole events, `total` in all, from shares of them."""

    def __init__(self, progress: Callable[[int], None], total: int) -> None:
        self.progress, self.total = progress, total
        self.done, self.said = 0.0, 0

    def add(self, events: float) -> None:
        self.done += events
        whole = min(int(self.done), self.total) - self.said
        if whole > 0:
            self.progress(whole)
            self.said += whole

    def finish(self) -> None:
        self.add(self.total - self.done)
