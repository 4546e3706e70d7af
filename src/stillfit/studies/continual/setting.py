"""What a scenario hands to the harness and to the catalogue of strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.values import JSON, Budget
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.studies.experiences import Experience

Kind: TypeAlias = Literal["classes", "vertex"]
Figures: TypeAlias = Mapping[str, float]
Scoring: TypeAlias = Callable[[Model, Sequence[Examples]], list[Figures]]
LOWER = frozenset({"width_cm", "p68_p32_cm"})  # figures of which less is better


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say of all scenarios alike.

    `data`: the file that a scenario reads. `effort`: factor on all training (1: as published or
    as docs/learning says). `rows`, `test_rows`: at most so many of each experience, None for all:
    a quick look, whose figures are not those of the tables. `labels`: share of the rows of each
    experience whose labels ever come; strategies that read inputs alone have the others too.
    """

    data: Path | None = None
    effort: float = 1.0
    rows: int | None = None
    test_rows: int | None = None
    labels: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.labels <= 1:
            raise ConfigError(f"labels must be a share above 0 and at most 1, got {self.labels}")
        if not 0 < self.effort <= 100:
            raise ConfigError(f"effort must be above 0 and at most 100, got {self.effort}")
        for name in ("rows", "test_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}; leave it out for all")

    def file(self, what: str) -> Path:
        """The data file; `ConfigError` where none was named."""
        if self.data is None:
            raise ConfigError(f"this scenario reads {what}; name the file with --data")
        return self.data


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What strategies are made of: the sizes of a scenario and its published training.

    `rows`: training rows of a mean experience, of `experiences`. `epochs` passes over them in
    batches of `batch` at `rate`. `memory`: examples that a replay strategy may store.
    `retrain_rows`: rows gone through by one retraining; None: `epochs` times all that was seen.
    `window`: seconds that hold the newest experience and no older one. `classes`: of labels, 2 for
    tracks. `budget`: what every update must keep to. `online_batch`, `online_rate`: of one pass
    with SGD. `knobs`: by strategy, where a scenario's published or tried ones differ from what
    the catalogue derives; `training`: likewise `epochs`, `batch` and `cosine` of its schedule.
    """

    scenario: str
    kind: Kind
    rows: int
    experiences: int
    epochs: float
    batch: int
    rate: float
    memory: int
    optimiser: Literal["adam", "sgd"] = "adam"
    cosine: bool = True
    clip: float = 10.0
    retrain_rows: int | None = None
    retrain_batch: int | None = None
    retrain_rate: float | None = None
    window: float = 0.5
    classes: int = 0
    inputs: int = 0
    budget: Budget = field(default_factory=Budget)
    online_batch: int = 1
    online_rate: float = 0.01
    knobs: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def tuned(self, strategy: str, **derived: Any) -> dict[str, Any]:
        """What the catalogue derives, and over it what the scenario says of this strategy."""
        return {**derived, **self.knobs.get(strategy, {})}

    def schedule(
        self,
        *,
        epochs: float | None = None,
        rows: float | None = None,
        batch: int | None = None,
        rate: float | None = None,
        strategy: str = "",
    ) -> Schedule:
        """`epochs` passes over `rows` in batches; where nothing is said, the strategy's own of
        `training`, or the recipe's."""
        own = self.training.get(strategy, {})
        size = int(own.get("batch", self.batch)) if batch is None else batch
        often = own.get("epochs", self.epochs) if epochs is None else epochs
        passed = often * (self.rows if rows is None else rows)
        return Schedule(
            steps=max(1, math.ceil(passed / size)),
            batch=size,
            rate=self.rate if rate is None else rate,
            optimiser=self.optimiser,
            cosine=bool(own.get("cosine", self.cosine)),
            clip=self.clip,
        )

    def retraining(self, number: int) -> Schedule:
        """From nothing on all that was seen up to experience `number` (from 0)."""
        rate = self.rate if self.retrain_rate is None else self.retrain_rate
        batch = self.batch if self.retrain_batch is None else self.retrain_batch
        if self.retrain_rows is not None:
            return self.schedule(epochs=1, rows=self.retrain_rows, batch=batch, rate=rate)
        return self.schedule(rows=self.rows * (number + 1), batch=batch, rate=rate)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One scenario at one seed.

    `start`: the network before any experience. `trained`: after the first one, where that is the
    same initial training for all strategies, which then begin with it; None: every strategy
    learns the first experience in its own way; `own`: the networks of strategies that then start
    with another one than `start`. `tests`: held-out rows of every condition.
    `portions`: labelled events of a condition after which there is an update, besides that with
    all of them. `labels`: see `Options`. `ram`: bytes that the device has, None for no limit.
    `prequential`: experiences are tested and then learned, each once.
    """

    experiences: Sequence[Experience]
    tests: Sequence[Examples]
    names: tuple[str, ...]
    start: Model
    score: Scoring
    recipe: Recipe
    trained: Model | None = None
    own: Mapping[str, Model] = field(default_factory=dict)
    portions: tuple[int, ...] = ()
    prequential: bool = False
    labels: float = 1.0
    ram: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A sequence of conditions by name, and how it is judged.

    `headline`: the figure of tables and pictures; `figures`: all that are kept. `build(options,
    seed)`: the data, the network and the recipe; everything random comes from the seed. `reads`:
    the file that it needs, in words; "" for none. `note`: what a reader of its table must know.
    """

    name: str
    title: str
    group: str
    headline: str
    figures: tuple[str, ...]
    build: Callable[[Options, int], Setup]
    reads: str = ""
    note: str = ""
    prequential: bool = False


def capped(examples: Examples, most: int | None) -> Examples:
    """At most `most` rows, drawn evenly and kept in order; all of them where it is None."""
    if most is None or len(examples) <= most:
        return examples
    return examples.take(drawn(len(examples), most))


def drawn(n: int, most: int | None) -> NDArray[np.int64]:
    """Numbers of at most `most` of `n` rows in order, always the same ones: files may be sorted."""
    if most is None or n <= most:
        return np.arange(n)
    return np.sort(Seeds(n).rng("rows").permutation(n)[:most])
