"""What an updater is given to learn in its conformance suite: small problems of two conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from stillfit.core.arrays import Arrays
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression, Task
from stillfit.models.training import Prepared, Schedule, fit

Draw: TypeAlias = Callable[[np.random.Generator, int, str], tuple[Arrays, Arrays]]
Spoil: TypeAlias = Callable[[Examples], Examples]
CLASSES = 3
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A task, a plain network for it, and events of an old and of a new condition.

    `draw(rng, n, condition)`: inputs and targets of `n` events, `condition` "old" or "new"; what
    serves the old one must be worse on the new one, and a short training must help. `network`:
    makes an untrained network, small enough to be trained some fifty times; it may draw from
    torch's generator. It is trained by `first` on `old` events; `new` of them arrive later.
    `unseen`: a class that the network has no output for, None where targets are no classes. `odd`:
    further bad input by name, made from right events; as with all bad input an error of
    stillfit's, a refusal or a finite candidate is right. `name` stands before each check.
    """

    name: str
    task: Task
    network: Callable[[], nn.Module]
    draw: Draw
    first: Schedule = Schedule(steps=150, batch=64, rate=0.01)  # noqa: RUF009  frozen
    old: int = 300
    new: int = 240
    unseen: int | None = None
    odd: Mapping[str, Spoil] = field(default_factory=dict)

    def examples(self, n: int, condition: str, *, seed: int, first: int = 0) -> Examples:
        """`n` events whose ids and times go on from `first`: the old ones in hour 0, then new."""
        rng = Seeds(seed).rng("updater", condition, first)
        inputs, targets = self.draw(rng, n, condition)
        later = 0 if condition == "old" else 1
        ids = np.arange(n, dtype=np.int64) + first + later * 10**6
        times = later * HOUR + first + np.arange(n) / n
        return Examples(ids, inputs, targets, times, np.full(n, condition))

    def trained(
        self, convert: Callable[[nn.Module], nn.Module], schedule: Schedule, *, seed: int
    ) -> Model:
        """A converted network that `schedule` taught the old condition."""
        old = self.examples(self.old, "old", seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain = self.network()
        drawn = uncertain.fresh(self.task, convert(plain), old, seed)
        model = Model(drawn, self.task, Architecture("toy"))
        fit(model, Prepared.of(model, old), schedule, Seeds(seed).rng("fit"))
        model.network.eval()
        return model

    def serving(self, seed: int) -> Model:
        """A copy of the plain network that knows the old condition; trained once."""
        return _first(self, seed).copy()


@lru_cache(maxsize=16)
def _first(problem: Problem, seed: int) -> Model:
    return problem.trained(lambda network: network, problem.first, seed=seed)


class Store:
    """A labelled store for tests: what it is given, and events that wait for labels."""

    def __init__(self, *parts: Examples, waiting: Examples | None = None) -> None:
        self.parts, self.waiting = parts, waiting or Examples.empty()

    def all(self) -> Examples:
        return Examples.join(list(self.parts))

    def window(self, since: float) -> Examples:
        whole = self.all()
        return whole.take(np.flatnonzero(whole.times >= since))

    def unlabelled(self, condition: str, limit: int) -> Examples:
        found = self.waiting.where(condition)
        return replace(found.take(slice(max(0, len(found) - limit), len(found))), targets={})


def _score(rng: np.random.Generator, n: int, condition: str) -> tuple[Arrays, np.ndarray]:
    """Two features, and a number that rises with the first and is shifted in the new condition."""
    a, b = rng.uniform(-1, 1, (2, n))
    shift = 0.0 if condition == "old" else 0.8
    score = a + 0.3 * b**2 + shift + 0.05 * rng.standard_normal(n)
    return {"a": a.astype(np.float32), "b": b.astype(np.float32)}, score


def _numbers(rng: np.random.Generator, n: int, condition: str) -> tuple[Arrays, Arrays]:
    inputs, score = _score(rng, n, condition)
    return inputs, {"y": score}


def _classes(rng: np.random.Generator, n: int, condition: str) -> tuple[Arrays, Arrays]:
    inputs, score = _score(rng, n, condition)
    return inputs, {"y": np.digitize(score, [-0.2, 0.5])}


REGRESSION = Problem(
    name="regression",
    task=Regression(features=("a", "b")),
    network=lambda: MLP(2, [8], 2),
    draw=_numbers,
)
CLASSIFICATION = Problem(
    name="classification",
    task=Classification(features=("a", "b"), classes=CLASSES),
    network=lambda: MLP(2, [8], CLASSES),
    draw=_classes,
    unseen=7,
)
