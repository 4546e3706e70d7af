"""First networks: trained on simulation once, then kept by the content of their recipe."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

import stillfit
from stillfit.core.errors import StillfitError
from stillfit.core.events import Examples
from stillfit.l1t.conditions import nominal
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.fixed_recipe import Compression
from stillfit.l1t.library import Library
from stillfit.l1t.recipe import train_vertex, vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed.pruning import MagnitudePruning
from stillfit.models.model import Architecture, Model, build, load_weights
from stillfit.models.training import Schedule

Tell = Callable[[int], None]
COMPRESSION_EVENTS = 8000
COMPRESSION_SEED = 1000  # apart from the events of the first training


def cache_folder() -> Path:
    """Where first networks are kept: `$XDG_CACHE_HOME/stillfit`, or `~/.cache/stillfit`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stillfit"


def first_model(
    kind: str, *, library: Library, seed: int, events: int, cache: Path | None, tell: Tell
) -> Model:
    """The vertex network `kind` trained on `events` nominal events, from the cache if it is there.

    The key of the cache is the content of everything that the training depends on: recipe and
    simulation (their source), library, seed and events. A damaged file is trained anew.
    """
    key = recipe_hash(kind, library, seed, events)

    def make() -> Model:
        return train_vertex(kind, library=library, seed=seed, events=events, progress=tell)

    return _kept(None if cache is None else cache / f"{key}.safetensors", make)


def fixed_model(network: Model, *, library: Library, seed: int, cache: Path | None) -> Model:
    """A float E2E model in fixed point, its association pruned to a quarter, trained on nominal
    events; kept as `first_model` keeps its own.

    Half of the training of `Compression`'s defaults: 400 batches of 250 events in all.
    """
    part = Schedule(steps=100, batch=250, rate=0.003, cosine=False)
    recipe = Compression(
        first=part,
        pruning=MagnitudePruning(
            steps=4,
            density=0.25,
            layers=("associate",),
            schedule=Schedule(steps=25, batch=250, rate=0.003, cosine=False),
        ),
        last=Schedule(steps=200, batch=250, rate=0.003),
    )
    digest = hashlib.sha256(recipe_hash("fixed", library, seed, COMPRESSION_EVENTS).encode())
    digest.update(repr(recipe).encode())
    for name, array in sorted(network.weights().items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())

    def make() -> Model:
        examples = vertex_examples(
            COMPRESSION_EVENTS, nominal(), library=library, seed=seed + COMPRESSION_SEED
        )
        return recipe.compress(network, examples, np.random.default_rng(seed))

    return _kept(None if cache is None else cache / f"{digest.hexdigest()}.safetensors", make)


def _kept(path: Path | None, make: Callable[[], Model]) -> Model:
    """A model from its file, or made and stored there."""
    if path is not None and path.is_file():
        try:
            stored = load(path.read_bytes())
            text = stored.pop("architecture").tobytes()
            told = json.loads(text)
            architecture = Architecture(told["factory"], told["arguments"])
            network = build(architecture, FACTORIES)
            load_weights(network, stored)
            return Model(network.eval(), VertexTask(), architecture)
        except (SafetensorError, OSError, KeyError, ValueError, StillfitError):
            path.unlink(missing_ok=True)
    model = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "factory": model.architecture.factory,
            "arguments": dict(model.architecture.arguments),
        }
        header = np.frombuffer(json.dumps(told).encode(), np.uint8).copy()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(save({**model.weights(), "architecture": header}))
        temporary.replace(path)
    return model


def recipe_hash(kind: str, library: Library, seed: int, events: int) -> str:
    """SHA-256 of what a first network depends on."""
    digest = hashlib.sha256()
    root = Path(stillfit.__file__).parent
    for room in ("core", "models", "l1t"):
        for source in sorted((root / room).rglob("*.py")):
            digest.update(source.read_bytes())
    facts = {"kind": kind, "seed": seed, "events": events}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    digest.update(json.dumps(library.meta, sort_keys=True, default=dict).encode())
    return digest.hexdigest()


def nominal_examples(library: Library, *, seed: int, events: int) -> Examples:
    """Labelled nominal events that no first network was trained on; their ids are negative."""
    made = vertex_examples(events, nominal(), library=library, seed=seed, split="validation")
    return replace(made, ids=made.ids - events)
