"""One updater at one problem: everything that the checks of its conformance suite ask it to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import load, save

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.testing.problems import Problem, Store
from stillfit.testing.report import Skip, owes
from stillfit.updaters.contract import Declined, Learner, Memory, Updater

Answer: TypeAlias = Candidate[Model] | Declined


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An updater with a network that serves the old condition, when events of a new one arrive."""

    updater: Updater
    problem: Problem
    seed: int = 0
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def draw(self, n: int, condition: str, first: int = 0) -> Examples:
        return self.problem.examples(n, condition, seed=self.seed, first=first)

    @property
    def old(self) -> Examples:
        """What the serving network was trained on."""
        return self.draw(self.problem.old, "old")

    @property
    def new(self) -> Examples:
        """The fresh labelled events."""
        return self.draw(self.problem.new, "new")

    @property
    def test(self) -> Examples:
        """Further events of the new condition."""
        return self.draw(400, "new", first=9000)

    @property
    def serving(self) -> Model:
        """A network that knows the old condition, trained once; a copy for each trial."""
        if "serving" not in self.kept:
            self.kept["serving"] = self.problem.serving(self.seed)
        made: Model = self.kept["serving"]
        return made

    @property
    def store(self) -> Store:
        waiting = self.draw(max(1, self.problem.new // 3), "new", first=5000)
        return Store(self.old, self.new, waiting=waiting)

    def rng(self, *name: str | int) -> np.random.Generator:
        return Seeds(self.seed).rng("update", *name)

    def begin(self, updater: Updater, serving: Model) -> Learner:
        """The state after the old condition was learned."""
        return updater.begin(serving, self.old, rng=self.rng("begin"))

    def begun(self, updater: Updater, serving: Model) -> Learner:
        """The state after the old condition was learned and the new one observed."""
        return updater.observe(self.begin(updater, serving), self.new, rng=self.rng("observe"))

    def updated(
        self,
        updater: Updater | None = None,
        serving: Model | None = None,
        learner: Learner | None = None,
        fresh: Examples | None = None,
        memory: Memory | None = None,
        budget: Budget | None = None,
    ) -> Answer:
        """The answer to the one update, with whatever differs from it."""
        one = self.eager if updater is None else updater
        model = self.serving if serving is None else serving
        return one.update(
            model,
            self.begun(one, model) if learner is None else learner,
            self.new if fresh is None else fresh,
            self.store if memory is None else memory,
            budget=Budget() if budget is None else budget,
            rng=self.rng("new"),
        )

    @property
    def eager(self) -> Updater:
        return eager(self.updater)

    @property
    def answer(self) -> Answer:
        """The plain update's, made once."""
        if "answer" not in self.kept:
            self.kept["answer"] = self.updated()
        made: Answer = self.kept["answer"]
        return made

    @property
    def candidate(self) -> Candidate[Model]:
        """The plain update; a check that needs one is skipped where there is none."""
        return required(self.answer)

    def refusal(self) -> str | None:
        """Why there is no candidate at all for this problem."""
        try:
            answer = self.answer
        except ConfigError as error:
            return f"refused: {error}"
        except Exception:  # noqa: BLE001  the checks will find it, one by one
            return None
        return f"declined: {answer.because}" if isinstance(answer, Declined) else None


def eager(updater: Updater) -> Updater:
    """The same updater with `min_events` 1, or the least that it takes, where it has that knob.

    `recall` (ids that are remembered as learned) becomes 200, so that a short stream fills it.
    """
    knobs = {one.name for one in fields(updater)}
    if "recall" in knobs:
        updater = replace(updater, recall=200)  # type: ignore[call-arg]
    if "min_events" not in knobs:
        return updater
    for least in (1, 2):
        try:
            return replace(updater, min_events=least)  # type: ignore[call-arg]
        except ConfigError:
            continue
    return updater


def required(answer: Answer, what: str = "") -> Candidate[Model]:
    """The candidate; the check is skipped where there is none."""
    if isinstance(answer, Declined):
        raise Skip(f"{what}declined: {answer.because}")
    return answer


def stored(learner: Learner) -> Learner:
    """A learner's state as it comes back from the disk."""
    if not learner:
        return {}
    # Read-only views of a buffer would hide that somebody writes into a state.
    raw = save({name: np.ascontiguousarray(value) for name, value in learner.items()})
    return {name: value.reshape(learner[name].shape) for name, value in load(raw).items()}


def different(before: Mapping[str, Array], after: Mapping[str, Array]) -> list[str]:
    """Names whose arrays differ in type, shape or any bit."""
    odd = sorted(set(before) ^ set(after))
    for name in sorted(set(before) & set(after)):
        a, b = np.asarray(before[name]), np.asarray(after[name])
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            odd.append(name)
    return odd


def owes_finite(answer: Answer, what: str = "the candidate") -> None:
    """A refusal, or a candidate whose weights are finite."""
    if isinstance(answer, Declined):
        return
    weights = [value for value in answer.model.weights().values() if value.dtype.kind == "f"]
    fine = all(bool(np.isfinite(value).all()) for value in weights)
    owes(fine, f"{what} has weights that are not finite")
