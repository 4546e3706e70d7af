"""The conformance suite of updaters: from the serving model and data to a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, flatten, n_bytes
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.testing.bad_input import BadInput
from stillfit.testing.problems import CLASSIFICATION, REGRESSION, Problem
from stillfit.testing.report import Check, Report, Skip, made, owes
from stillfit.testing.trial import (
    Answer,
    Trial,
    different,
    eager,
    owes_finite,
    required,
    stored,
)
from stillfit.uncertainty.methods import METHODS, Method
from stillfit.updaters.contract import Declined, Learner, Updater
from stillfit.updaters.references import FineTune

BRIEF = Schedule(steps=20, batch=64, rate=0.01)
# One of each kind: a head, members in one call, an auxiliary part, a posterior of the last layer.
UNCERTAIN = ("gaussian", "deep-ensemble", "mc-dropout", "auxiliary", "laplace")


@dataclass(frozen=True, kw_only=True)
class Law:
    """A limit of a knob: `updater` must end where `like` does (None: where it began).

    `within`: largest distance of the predictions, as a share of how far the network that serves
    is from what plain fine-tuning makes of it; 0: the same weights bit for bit. `problems`: names
    of those for which it holds; None: all.
    """

    updater: Updater
    like: Updater | None = None
    within: float = 0.0
    problems: tuple[str, ...] | None = None


@runtime_checkable
class StatesLaws(Protocol):
    """An updater that names the limits of its own knobs: (updater, like, within) by name."""

    def laws(self) -> Mapping[str, tuple[Updater, Updater | None, float]]: ...


def check_updater(
    updater: Updater,
    *,
    laws: Mapping[str, Law] | None = None,
    name: str | None = None,
    problems: Sequence[Problem] = (REGRESSION, CLASSIFICATION),
    methods: Sequence[str | Method] = UNCERTAIN,
    learns: bool = True,
    seed: int = 0,
    strict: bool = True,
) -> Report:
    """Let an updater learn small problems, and check what every updater owes.

    A small network is trained on events of an old condition; then labelled events of a new one
    arrive: of a regression and of three classes, or of `problems` of one's own with their task,
    network and data. Checked for each: nothing that it is given changes; the same seed gives the
    same candidate bit for bit, whatever torch's own generator says; a learner's state that was
    stored and read again goes on bit for bit; it begins from no state; a budget is kept to the
    byte and refused with the figures; its state stops growing on a long stream; the cost says what
    was read; uncertain networks stay what they are (`methods` of the catalogue, by name or as they
    are); bad input gives a `StillfitError`, a refusal or a finite candidate. `learns`: the new
    condition is served better afterwards; False for those that need not (frozen ones). `laws`:
    limits of its knobs by name, besides those that the updater states itself (`StatesLaws`).

    A problem that the updater declines or refuses with a `ConfigError` is skipped and says so.
    `min_events` is set to 1 where there is such a knob, so that small batches reach the strategy
    itself. `strict`: raise `AssertionError` with the whole report if a check failed.

    Cost: some forty updates of a problem's network; give the updater a short schedule.
    """
    said = name or type(updater).__name__
    stated = dict(laws or {})
    if isinstance(updater, StatesLaws):
        for law, (limit, like, within) in updater.laws().items():
            stated[law] = Law(updater=limit, like=like, within=within)
    checks: list[Check] = []
    for problem in problems:
        trial = Trial(updater=updater, problem=problem, seed=seed)
        checks += checks_of(trial, laws=stated, methods=methods, learns=learns)
    report = Report(said, tuple(checks))
    if not report.count:
        checks.append(Check("takes a task", "failed", "every problem is declined or refused"))
        report = Report(said, tuple(checks))
    if strict and report.failed:
        raise AssertionError(str(report))
    return report


def checks_of(
    trial: Trial,
    *,
    laws: Mapping[str, Law],
    methods: Sequence[str | Method],
    learns: bool,
    only: str | None = None,
) -> list[Check]:
    """All checks of a problem (or the one); one skipped line where it is refused as a whole."""
    label = trial.problem.name
    refused = trial.refusal()
    if refused is not None and learns:
        return [Check(f"{label}: all", "skipped", refused)]
    contract = Contract(trial, learns)
    wanted = {
        **contract.checks(),
        **{f"on top of {_named(method)}": contract.on_top(method) for method in methods},
        **BadInput(trial).checks(),
        **{f"law: {name}": Limit(trial, law).check for name, law in laws.items()},
    }
    return [
        made(f"{label}: {name}", check)
        for name, check in wanted.items()
        if only is None or name == only
    ]


@dataclass(frozen=True)
class Contract:
    """What every updater owes on good data."""

    trial: Trial
    learns: bool

    def checks(self) -> dict[str, Callable[[], None]]:
        return {
            "what it is given stays": self.pure,
            "same seed, same candidate": self.seeded,
            "a stored state goes on bit for bit": self.resumes,
            "it begins from no state": self.stateless,
            "observing gives a state of plain arrays": self.plain_arrays,
            "the budget is kept to the byte": self.budgeted,
            "the state stops growing": self.bounded,
            "the cost is what was used": self.costed,
            "the new condition is served better": self.better,
        }

    def pure(self) -> None:
        trial = self.trial
        serving, fresh, store = trial.serving, trial.new, trial.store
        learner = trial.begun(trial.eager, serving)
        given = [
            ("the serving network", serving.weights),
            ("its learner's state", lambda: dict(learner)),
            ("the fresh events", fresh.to_arrays),
            ("the store", store.all().to_arrays),
        ]
        before = [_copied(read()) for _, read in given]
        gradients = [parameter.grad is None for parameter in serving.network.parameters()]
        trial.updated(serving=serving, learner=learner, fresh=fresh, memory=store)
        trial.eager.observe(learner, fresh, rng=trial.rng("again"))
        for (what, read), was in zip(given, before, strict=True):
            moved = different(was, read())
            owes(not moved, f"an update changed {what}: {', '.join(moved)}")
        owes(not serving.network.training, "the serving network was left in training mode")
        after = [parameter.grad is None for parameter in serving.network.parameters()]
        owes(after == gradients, "the serving network was left with gradients")

    def seeded(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            one = self.trial.updated()
            torch.manual_seed(22)
            state = torch.random.get_rng_state()
            other = self.trial.updated()
            moved = not torch.equal(state, torch.random.get_rng_state())
        _alike(one, other, "the same seed gave two candidates")
        owes(not moved, "an update draws from torch's global generator")

    def resumes(self) -> None:
        """Two updates in a row, with the state stored and read between any two calls."""
        trial, half = self.trial, self.trial.problem.new // 2

        def walk(kept: Callable[[Learner], Learner]) -> Answer:
            updater, serving = trial.eager, trial.serving
            learner = kept(trial.begin(updater, serving))
            answer: Answer = Declined("nothing yet")
            for number in range(2):
                fresh = trial.draw(half, "new", first=1000 * number)
                learner = kept(updater.observe(learner, fresh, rng=trial.rng("see", number)))
                answer = updater.update(
                    serving, learner, fresh, trial.store, budget=Budget(), rng=trial.rng(number)
                )
                if isinstance(answer, Candidate):
                    serving, learner = answer.model, kept(answer.learner)
            return answer

        _alike(walk(lambda learner: learner), walk(stored), "a state that was read again differs")

    def stateless(self) -> None:
        owes_finite(self.trial.updated(learner={}), "a candidate from no state")

    def plain_arrays(self) -> None:
        trial = self.trial
        for learner in (trial.begun(trial.eager, trial.serving), trial.candidate.learner):
            for key, value in learner.items():
                owes(
                    isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf",
                    f"{key!r} of the learner's state is no array of numbers",
                )
            moved = different(dict(learner), stored(learner))
            owes(not moved, f"{', '.join(moved)} of the state cannot be stored")

    def budgeted(self) -> None:
        cost = self.trial.candidate.cost
        exact = Budget(
            memory_bytes=cost.memory_bytes,
            stored_examples=cost.stored_examples,
            macs_per_example=cost.macs_per_example,
        )
        answer = self.trial.updated(budget=exact)
        owes(isinstance(answer, Candidate), f"its own cost is too much: {_why(answer)}")
        for knob in ("memory_bytes", "stored_examples", "macs_per_example"):
            used = int(getattr(cost, knob))
            if not used:
                continue
            answer = self.trial.updated(budget=replace(exact, **{knob: used - 1}))
            owes(isinstance(answer, Declined), f"{knob} of {used - 1:,} was not kept")
            figures = (f"{used:,.6g}", f"{used - 1:,.6g}")
            missing = [figure for figure in figures if figure not in _why(answer)]
            owes(not missing, f"the refusal does not say {', '.join(missing)}: {_why(answer)}")
        nothing = self.trial.updated(budget=Budget(seconds=0.0))
        owes(isinstance(nothing, Declined), "0 seconds were enough for an update")

    def bounded(self) -> None:
        """Two conditions in turn: a state may grow with their number, not with their events."""
        trial = self.trial
        updater, serving = trial.eager, trial.serving
        learner = trial.begin(updater, serving)
        sizes = []
        for number in range(12):
            condition = ("old", "new")[number % 2]
            for piece in range(8):
                first = 10_000 * (number + 1) + 500 * piece
                new = trial.draw(250, condition, first=first)
                learner = updater.observe(learner, new, rng=trial.rng("see", number, piece))
            fresh = trial.draw(120, condition, first=10_000 * (number + 1) + 5000)
            learner = updater.observe(learner, fresh, rng=trial.rng("see", number))
            if number % 3 == 2:
                answer = updater.update(
                    serving, learner, fresh, trial.store, budget=Budget(), rng=trial.rng(number)
                )
                if isinstance(answer, Candidate):
                    serving, learner = answer.model, answer.learner
            sizes.append(n_bytes(learner))
        middle, end = max(sizes[:8]), sizes[-1]
        owes(
            end <= 1.02 * middle + 64,
            f"the state was {middle:,} bytes after 16 000 events and {end:,} after 24 000",
        )

    def costed(self) -> None:
        found = self.trial.candidate
        cost, held = found.cost, n_bytes(found.learner)
        owes(cost.memory_bytes == held, f"memory_bytes is {cost.memory_bytes}, the state {held}")
        owes(cost.seconds > 0, f"it says that it took {cost.seconds} s")
        owes(cost.macs_per_example > 0, "it says that a prediction costs no multiplication")
        told = sum(found.provenance.events.values())
        owes(cost.examples <= told or not told, f"{cost.examples} read, {told} in the provenance")
        owes(
            found.provenance.updater == type(self.trial.eager).__name__, "it names another updater"
        )
        owes_finite(found)

    def better(self) -> None:
        if not self.learns:
            raise Skip("it need not learn")
        before = float(self.trial.serving.errors(self.trial.test)["error"].mean())
        after = float(self.trial.candidate.model.errors(self.trial.test)["error"].mean())
        owes(after < before, f"the mean error is {after:.4g}, before it was {before:.4g}")

    def on_top(self, method: str | Method) -> Callable[[], None]:
        """The check that a network converted by `method` stays what it is."""
        trial = self.trial

        def check() -> None:
            convert = METHODS[method].convert if isinstance(method, str) else method.convert
            try:
                serving = trial.problem.trained(convert, BRIEF, seed=trial.seed)
                answer = trial.updated(serving=serving)
            except ConfigError as error:
                raise Skip(f"refused: {error}") from None
            model = required(answer).model
            same = type(model.network) is type(serving.network)
            owes(same, f"a {type(serving.network).__name__} became {type(model.network).__name__}")
            test = trial.draw(50, "new", first=9000)
            one, other = model.predict(test.inputs), model.predict(test.inputs)
            owes(len(one[0]) == 50, f"50 events gave {len(one[0])} predictions")
            owes(_equal(one, other), "the candidate answers twice in two ways")
            owes_finite(answer)
            again = model.with_weights(model.weights()).predict(test.inputs)
            owes(_equal(one, again), "the candidate's weights do not hold all that it says")

        return check


@dataclass(frozen=True)
class Limit:
    """Whether a law holds for a problem."""

    trial: Trial
    law: Law

    def check(self) -> None:
        law, trial = self.law, self.trial
        if law.problems is not None and trial.problem.name not in law.problems:
            raise Skip(f"it holds for {', '.join(law.problems)}")
        found = self._model(law.updater)
        like = trial.serving
        if law.like is not None:
            like = self._model(law.like, "what it is compared with is ")
        if not law.within:
            moved = different(like.weights(), found.weights())
            owes(not moved, f"weights differ: {', '.join(moved)}")
            return
        away, scale = self._apart(found, like), self._scale()
        owes(
            away <= law.within * scale,
            f"predictions are {away / scale:.3g} of the way of fine-tuning apart, more than "
            f"{law.within:g}",
        )

    def _model(self, updater: Updater, what: str = "") -> Model:
        return required(self.trial.updated(updater=eager(updater)), what).model

    def _apart(self, one: Model, other: Model) -> float:
        """Root mean square distance of the predictions on both conditions."""
        parts = [self.trial.draw(100, condition, first=9000) for condition in ("old", "new")]
        inputs = Examples.join(parts).inputs
        return float(np.sqrt(np.mean((_central(one, inputs) - _central(other, inputs)) ** 2)))

    def _scale(self) -> float:
        naive = FineTune(schedule=Schedule(steps=100, batch=64, rate=0.01), min_events=1)
        return self._apart(self._model(naive), self.trial.serving)


def _named(method: str | Method) -> str:
    return method if isinstance(method, str) else method.name


def _central(model: Model, inputs: Arrays) -> NDArray[np.float64]:
    stated, _ = model.predict(inputs)
    return stated.probabilities if isinstance(stated, Categorical) else stated.mean[:, None]


def _equal(one: tuple[Any, Arrays], other: tuple[Any, Arrays]) -> bool:
    """The same headline and the same further outputs."""
    (a, extra), (b, more) = one, other
    pairs = [(flatten(extra)[name], value) for name, value in flatten(more).items()]
    if isinstance(a, Categorical):
        pairs.append((a.members, b.members))
    else:
        pairs += [(a.mean, b.mean), (a.std, b.std)]
    return all(np.array_equal(left, right) for left, right in pairs)


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(value) for name, value in arrays.items()}


def _why(answer: Answer) -> str:
    return answer.because if isinstance(answer, Declined) else "there is a candidate"


def _alike(one: Answer, other: Answer, otherwise: str) -> None:
    """The same refusal, or the same weights and state bit for bit."""
    if isinstance(one, Declined) or isinstance(other, Declined):
        owes(_why(one) == _why(other), f"{otherwise}: {_why(one)}; {_why(other)}")
        return
    moved = different(one.model.weights(), other.model.weights())
    owes(not moved, f"{otherwise}: weights {', '.join(moved)}")
    moved = different(one.learner, other.learner)
    owes(not moved, f"{otherwise}: state {', '.join(moved)}")
