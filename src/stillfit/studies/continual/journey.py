"""One learner on its way through one sequence of experiences, with everything measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Index, n_bytes
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.core.seeds import Seeds
from stillfit.core.values import Candidate
from stillfit.models.model import Model, count_macs, footprint
from stillfit.studies.continual.catalogue import Strategy
from stillfit.studies.continual.setting import Figures, Setup, drawn
from stillfit.studies.experiences import Experience
from stillfit.updaters.contract import Declined, Learner, Updater

Matrix = NDArray[np.float64]
CURVE = 336  # rows of an electricity week


@dataclass(frozen=True, kw_only=True)
class Step:
    """One update that was asked for. Bytes and seconds are measured.

    `seconds`: of update and observe together. `store_bytes`: what the labelled store handed out,
    `fresh_bytes`: fresh rows that must lie ready (0 where each is seen once). `events`: labelled
    rows of the condition so far; `steps`: gradient steps. `because`: why there was no candidate.
    """

    experience: int
    condition: str
    events: int
    updated: bool
    seconds: float
    memory_bytes: int
    store_bytes: int
    fresh_bytes: int
    stored_examples: int
    macs: int
    read: int
    steps: int
    because: str = ""


class Recovery(NamedTuple):
    """A figure of the new condition after `events` labelled rows of it."""

    experience: int
    condition: str
    events: int
    figure: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Journey:
    """What was found. `matrices`: R (T + 1, T) by figure; empty where the test is prequential.

    `errors`: of every row in order, where it is. `weight_bytes`, `macs`: of the last network.
    """

    matrices: Mapping[str, Matrix]
    steps: Sequence[Step]
    recovery: Sequence[Recovery]
    weight_bytes: int
    macs: int
    errors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class Kept:
    """The labelled store of one journey: the experiences that were met, and what they weigh.

    Experiences are made again when they are asked for, so that a strategy that needs no store
    does not pay for one. `waiting`: rows of the newest experience whose labels have not come.
    """

    def __init__(self, experiences: Sequence[Experience]) -> None:
        self.experiences = experiences
        self.met: list[tuple[int, Index]] = []
        self.waiting = Examples.empty()
        self.handed = 0

    def add(self, number: int, rows: Index, waiting: Examples | None = None) -> None:
        """Rows of experience `number` have labels; later calls replace earlier ones."""
        if self.met and self.met[-1][0] == number:
            self.met.pop()
        self.met.append((number, rows))
        self.waiting = Examples.empty() if waiting is None else waiting

    def all(self) -> Examples:
        parts = [self.experiences[number].train.take(rows) for number, rows in self.met]
        return self._handed(Examples.join(parts))

    def window(self, since: float) -> Examples:
        parts = []
        for number, rows in reversed(self.met):  # in order of time, so the first old one ends it
            part = self.experiences[number].train.take(rows)
            newer = part.times >= since
            if newer.any():
                parts.append(part if newer.all() else part.take(newer))
            if not newer.all():
                break
        return self._handed(Examples.join(parts[::-1]))

    def unlabelled(self, condition: str, limit: int) -> Examples:
        """The newest rows that wait for labels, without targets."""
        found = self.waiting.where(condition) if len(self.waiting) else self.waiting
        found = found.take(slice(max(0, len(found) - limit), len(found)))
        return self._handed(replace(found, targets={}))

    def _handed(self, examples: Examples) -> Examples:
        self.handed = max(self.handed, examples.nbytes)
        return examples


@dataclass
class _Walker:
    """The serving model and the learner of one strategy; every candidate goes into service."""

    setup: Setup
    strategy: Strategy
    seeds: Seeds
    serving: Model
    learner: Learner
    kept: Kept
    steps: list[Step] = field(default_factory=list)
    spent: float = 0.0  # seconds of observing that no update has counted yet

    def begin(self, examples: Examples) -> None:
        updater, rng = self.strategy.make(self.setup.recipe, 0), self.seeds.rng("begin")
        started = time.perf_counter()
        self.learner = updater.begin(self.serving, examples, rng=rng)
        self.spent += time.perf_counter() - started

    def observe(self, updater: Updater, new: Examples, *name: int) -> None:
        started = time.perf_counter()
        self.learner = updater.observe(self.learner, new, rng=self.seeds.rng("observe", *name))
        self.spent += time.perf_counter() - started

    def update(self, updater: Updater, number: int, fresh: Examples, events: int) -> bool:
        """Ask for a candidate and let it serve; whether there was one."""
        self.kept.handed = 0
        rng = self.seeds.rng("update", number, events)
        started = time.perf_counter()
        answer = updater.update(
            self.serving,
            self.learner,
            fresh,
            self.kept,
            budget=self.setup.recipe.budget,
            rng=rng,
        )
        seconds = time.perf_counter() - started + self.spent
        self.spent = 0.0
        facts: dict[str, Any] = {
            "experience": number,
            "condition": self.setup.names[number] if number < len(self.setup.names) else "",
            "events": events,
            "seconds": seconds,
            "store_bytes": self.kept.handed,
            "fresh_bytes": 0 if self.strategy.once else fresh.nbytes,
        }
        if isinstance(answer, Declined):
            held = {"memory_bytes": n_bytes(self.learner), "stored_examples": 0, "macs": 0}
            nothing = {"read": 0, "steps": 0, "fresh_bytes": 0}
            self.steps.append(
                Step(**{**facts, **held, **nothing}, updated=False, because=answer.because)
            )
            return False
        self.serving, self.learner = answer.model, answer.learner
        self.steps.append(Step(**facts, **_of(answer), updated=True))
        return True


def _of(candidate: Candidate[Model]) -> dict[str, Any]:
    cost = candidate.cost
    return {
        "memory_bytes": cost.memory_bytes,
        "stored_examples": cost.stored_examples,
        "macs": cost.macs_per_example,
        "read": cost.examples,
        "steps": cost.steps,
    }


def travel(setup: Setup, strategy: Strategy, seed: int) -> Journey:
    """Learn the experiences one after the other; every candidate serves (no gates).

    The same arguments give the same figures; seconds are this machine's.
    """
    return (
        _prequential(setup, strategy, seed) if setup.prequential else _walk(setup, strategy, seed)
    )


def _walker(setup: Setup, strategy: Strategy, seed: int) -> _Walker:
    # One stream for all strategies: what they draw alike is alike, so differences are paired.
    seeds = Seeds(Seeds(seed).integer("continual", setup.recipe.scenario))
    model = setup.trained or setup.own.get(strategy.name, setup.start)
    return _Walker(setup, strategy, seeds, model, {}, Kept(setup.experiences))


def _walk(setup: Setup, strategy: Strategy, seed: int) -> Journey:
    walker = _walker(setup, strategy, seed)
    matrix = [_row(setup, walker.serving if setup.trained is None else setup.start)]
    recovery: list[Recovery] = []
    if setup.trained is not None:
        first = setup.experiences[0].train
        walker.kept.add(0, slice(0, len(first)))
        walker.begin(first)
        matrix.append(_row(setup, setup.trained))
    for number in range(len(matrix) - 1, len(setup.experiences)):
        train = setup.experiences[number].train
        rows, waiting = _labelled(train, setup.labels)
        changed, before = False, 0
        updater = strategy.make(setup.recipe, number)
        for upto in _portions(setup, strategy, len(rows)):
            late = np.concatenate([rows[upto:], waiting])
            walker.kept.add(number, rows[:upto], train.take(late) if len(late) else None)
            new = train.take(rows[before:upto])
            walker.observe(updater, new, number, upto)
            fresh = new if strategy.once or not before else train.take(rows[:upto])
            changed |= walker.update(updater, number, fresh, upto)
            before = upto
            if setup.portions:
                (found,) = setup.score(walker.serving, setup.tests[number : number + 1])
                recovery += [
                    Recovery(number, setup.names[number], upto, name, value)
                    for name, value in found.items()
                ]
        matrix.append(_row(setup, walker.serving) if changed else matrix[-1])
    matrices = {
        name: np.array([[at[name] for at in row] for row in matrix]) for name in matrix[0][0]
    }
    return _finished(walker, matrices, recovery)


def _row(setup: Setup, model: Model) -> list[Figures]:
    return setup.score(model, setup.tests)


def _labelled(train: Examples, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows whose labels come, at least one, and the others."""
    if share == 1:
        return np.arange(len(train)), np.zeros(0, np.int64)
    rows = drawn(len(train), max(1, round(share * len(train))))
    return rows, np.setdiff1d(np.arange(len(train)), rows)


def _portions(setup: Setup, strategy: Strategy, rows: int) -> list[int]:
    asked = [] if strategy.whole else [n for n in setup.portions if n < rows]
    return [*asked, rows]


def _finished(walker: _Walker, matrices: Mapping[str, Matrix], recovery: list[Recovery]) -> Journey:
    network = walker.serving.network
    return Journey(
        matrices=matrices,
        steps=walker.steps,
        recovery=recovery,
        weight_bytes=footprint(network).weight_bytes,
        macs=count_macs(network),
    )


def _prequential(setup: Setup, strategy: Strategy, seed: int) -> Journey:
    """Every block is predicted, then learned from; the first one is the initial training's."""
    walker = _walker(setup, strategy, seed)
    first = 0
    if setup.trained is not None:
        walker.kept.add(0, slice(0, len(setup.experiences[0].train)))
        walker.begin(setup.experiences[0].train)
        first = 1
    errors: list[NDArray[np.float64]] = []
    waiting: list[Examples] = []
    for number in range(first, len(setup.experiences)):
        block = setup.experiences[number].train
        stated, _ = walker.serving.predict(block.inputs)
        assert isinstance(stated, Categorical)
        y = np.asarray(block.targets[walker.serving.task.target]).astype(np.int64)
        errors.append((stated.probabilities.argmax(1) != y).astype(np.float64))
        updater = strategy.make(setup.recipe, number)
        walker.kept.add(number, slice(0, len(block)))
        walker.observe(updater, block, number)
        waiting.append(block)
        if (number + 1 - first) % strategy.every == 0:
            fresh = Examples.join(waiting)
            walker.update(updater, number, fresh, len(fresh))
            waiting.clear()
    network = walker.serving.network
    return Journey(
        matrices={},
        steps=walker.steps,
        recovery=(),
        weight_bytes=footprint(network).weight_bytes,
        macs=count_macs(network),
        errors=np.concatenate(errors),
    )
