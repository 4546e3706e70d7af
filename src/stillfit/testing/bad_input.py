"""What an updater does with data that it should never get: the conformance suite's second half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stillfit.core.arrays import Column, Ragged
from stillfit.core.errors import StillfitError
from stillfit.core.events import Examples
from stillfit.core.values import Candidate
from stillfit.models.training import Schedule
from stillfit.testing.problems import Store
from stillfit.testing.report import Skip, owes
from stillfit.testing.trial import Trial, owes_finite
from stillfit.updaters.contract import Declined


@dataclass(frozen=True)
class BadInput:
    """Defined behaviour: an error of stillfit's, a refusal, or weights that are finite."""

    trial: Trial

    def checks(self) -> dict[str, Callable[[], None]]:
        draw, problem = self.trial.draw, self.trial.problem
        return {
            "too few events": self.few,
            "a batch of one": lambda: self.bad(draw(1, "new")),
            "one class or a constant target": lambda: self.bad(self.constant()),
            "NaN in an input": lambda: self.bad(self.spoiled("inputs")),
            "NaN in a target": lambda: self.bad(self.spoiled("targets")),
            "an unseen class": self.unseen,
            **{
                name: lambda make=make: self.bad(make(draw(60, "new")))  # type: ignore[misc]
                for name, make in problem.odd.items()
            },
            "no fresh events": lambda: self.bad(Examples.empty()),
            "an empty store": self.alone,
            "parameters without gradient": self.no_gradient,
            "a diverging update": self.diverging,
        }

    def few(self) -> None:
        updater = self.trial.updater
        least = getattr(updater, "min_events", None)
        if least is None or least < 2:
            raise Skip("there is no least number of events")
        if isinstance(self.trial.answer, Declined):
            raise Skip(f"enough events are declined too: {self.trial.answer.because}")
        answer = self.trial.updated(updater=updater, fresh=self.trial.draw(least - 1, "new"))
        if isinstance(answer, Candidate):
            raise Skip("it reads other events than labelled fresh ones")
        said = answer.because
        owes(answer.early, f"a refusal for want of events is not `early`: {said}")
        owes(str(least) in said and str(least - 1) in said, f"without the figures: {said}")

    def bad(self, fresh: Examples) -> None:
        trial = self.trial
        try:
            learner = trial.eager.observe(
                trial.begin(trial.eager, trial.serving), fresh, rng=trial.rng("observe")
            )
            answer = trial.updated(learner=learner, fresh=fresh, memory=Store(fresh))
        except StillfitError as error:
            owes(len(str(error)) > 20, f"the error says too little: {error}")
            return
        if isinstance(answer, Declined):
            owes(len(answer.because) > 20, f"the refusal says too little: {answer.because}")
        owes_finite(answer)

    def constant(self) -> Examples:
        fresh, name = self.trial.draw(60, "new"), self.trial.problem.task.target
        y = np.asarray(fresh.targets[name])
        return replace(fresh, targets={**fresh.targets, name: np.full_like(y, y[0])})

    def spoiled(self, where: Literal["inputs", "targets"]) -> Examples:
        """A NaN in the eighth event, or track, of the first column of numbers that can hold one."""
        fresh = self.trial.draw(60, "new")
        columns: Mapping[str, Column] = fresh.inputs if where == "inputs" else fresh.targets
        if where == "targets" and self.trial.problem.unseen is not None:
            raise Skip("a class is a whole number")
        for name, column in columns.items():
            values = column.values if isinstance(column, Ragged) else np.asarray(column)
            if values.dtype.kind == "f":
                values = values.copy()
                values[7] = np.nan
                bad = column.with_values(values) if isinstance(column, Ragged) else values
                spoiled = {**columns, name: bad}
                if where == "inputs":
                    return replace(fresh, inputs=spoiled)
                return replace(fresh, targets=spoiled)
        raise Skip(f"none of the {where} can be NaN")

    def unseen(self) -> None:
        trial, unseen = self.trial, self.trial.problem.unseen
        if unseen is None:
            raise Skip("there are no classes")
        fresh, name = trial.draw(60, "new"), trial.problem.task.target
        y = np.asarray(fresh.targets[name]).copy()
        y[::5] = unseen
        fresh = replace(fresh, targets={**fresh.targets, name: y})
        try:
            answer = trial.updated(
                learner=trial.begun(trial.eager, trial.serving), fresh=fresh, memory=Store(fresh)
            )
        except IndexError as error:  # what torch says of a target that is out of bounds
            raise AssertionError(
                f"a class without an output gave IndexError ({error}), not an error that names it"
            ) from None
        except StillfitError as error:
            owes(str(unseen) in str(error), f"the error does not name the class: {error}")
            return
        owes_finite(answer)

    def alone(self) -> None:
        """Nothing is kept but what the learner holds itself."""
        owes_finite(self.trial.updated(memory=Store()))

    def no_gradient(self) -> None:
        serving = self.trial.serving.copy()
        first = next(serving.network.parameters())
        first.requires_grad_(False)
        before = first.detach().numpy().copy()
        try:
            answer = self.trial.updated(serving=serving)
        except StillfitError:
            return
        if isinstance(answer, Declined) or answer.model.network is serving.network:
            return
        owes_finite(answer)
        owes(bool(np.array_equal(before, first.detach().numpy())), "the serving network moved")

    def diverging(self) -> None:
        """A rate far too high: the candidate may be bad, which gates see, but not broken."""
        trial = self.trial
        schedule = getattr(trial.updater, "schedule", None)
        if not isinstance(schedule, Schedule):
            raise Skip("there is no schedule")
        wild = replace(schedule, rate=1e6, optimiser="sgd", clip=1e9)
        try:
            answer = trial.updated(updater=replace(trial.eager, schedule=wild))  # type: ignore[call-arg]
        except StillfitError:
            return
        if isinstance(answer, Candidate):
            errors = answer.model.errors(trial.draw(20, "new"))["error"]
            owes(len(errors) == 20, "a diverged candidate cannot be judged by a gate")
