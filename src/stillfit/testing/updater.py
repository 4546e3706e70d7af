"""The conformance suite of updaters: from the serving model and data to a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import nn

from stillfit.core.arrays import Array, Arrays, n_bytes
from stillfit.core.errors import ConfigError, StillfitError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression, Task
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.testing.report import Check, Report
from stillfit.uncertainty.methods import METHODS, Method
from stillfit.updaters.contract import Declined, Learner, Memory, Updater
from stillfit.updaters.references import FineTune, Frozen

Kind: TypeAlias = Literal["regression", "classification"]
Answer: TypeAlias = Candidate[Model] | Declined
CLASSES = 3
FIRST = Schedule(steps=150, batch=64, rate=0.01)
BRIEF = Schedule(steps=20, batch=64, rate=0.01)
UNSEEN = 7  # a class that no network here has an output for
# One of each kind: a head, members in one call, an auxiliary part, a posterior of the last layer.
UNCERTAIN = ("gaussian", "deep-ensemble", "mc-dropout", "auxiliary", "laplace")
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Law:
    """A limit of a knob: `updater` must end where `like` does (None: where it began).

    `within`: largest distance of the predictions, as a share of how far the network that serves
    is from what plain fine-tuning makes of it; 0: the same weights bit for bit. `kinds`: of tasks
    for which it holds.
    """

    updater: Updater
    like: Updater | None = None
    within: float = 0.0
    kinds: tuple[Kind, ...] = ("regression", "classification")


@runtime_checkable
class StatesLaws(Protocol):
    """An updater that names the limits of its own knobs: (updater, like, within) by name."""

    def laws(self) -> Mapping[str, tuple[Updater, Updater | None, float]]: ...


class _Skip(Exception):
    """A check that does not apply, and why."""


def check_updater(
    updater: Updater,
    *,
    laws: Mapping[str, Law] | None = None,
    name: str | None = None,
    kinds: Sequence[Kind] = ("regression", "classification"),
    tasks: Mapping[Kind, Task] | None = None,
    methods: Sequence[str | Method] = UNCERTAIN,
    learns: bool = True,
    seed: int = 0,
    strict: bool = True,
) -> Report:
    """Let an updater learn small problems, and check what every updater owes.

    A small network is trained on events of an old condition; then labelled events of a new one
    arrive, of a regression and of three classes. Checked for each kind: nothing that it is given
    changes; the same seed gives the same candidate bit for bit, whatever torch's own generator
    says; a learner's state that was stored and read again goes on bit for bit; it begins from no
    state; a budget is kept to the byte and refused with the figures; its state stops growing on a
    long stream; the cost says what was read; uncertain networks stay what they are (`methods` of
    the catalogue, by name or as they are); bad input gives a `StillfitError`, a refusal or a
    finite candidate. `learns`: the new condition is served better afterwards; False for those
    that need not (frozen ones). `laws`: limits of its knobs by name, besides those that the
    updater states itself (`StatesLaws`). `tasks`: tasks of one's own with the features "a" and "b"
    and the target "y", for updaters that ask more of a task.

    A kind of task that the updater declines or refuses with a `ConfigError` is skipped and says
    so. `min_events` is set to 1 where there is such a knob, so that small batches reach the
    strategy itself. `strict`: raise `AssertionError` with the whole report if a check failed.

    Cost: some forty updates of a network of 8 hidden units; give it a short schedule.
    """
    said = name or type(updater).__name__
    stated = dict(laws or {})
    if isinstance(updater, StatesLaws):
        for law, (made, like, within) in updater.laws().items():
            stated[law] = Law(updater=made, like=like, within=within)
    checks: list[Check] = []
    for kind in kinds:
        suite = _Suite(
            updater=updater,
            kind=kind,
            own_task=(tasks or {}).get(kind),
            laws=stated,
            methods=methods,
            learns=learns,
            seed=seed,
        )
        checks += suite.run()
    report = Report(said, tuple(checks))
    if not report.count:
        checks.append(Check("takes a task", "failed", "every kind of task is declined or refused"))
        report = Report(said, tuple(checks))
    if strict and report.failed:
        raise AssertionError(str(report))
    return report


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


@dataclass(frozen=True, kw_only=True)
class _Suite:
    """The checks of one kind of task."""

    updater: Updater
    kind: Kind
    own_task: Task | None = None
    laws: Mapping[str, Law]
    methods: Sequence[str | Method]
    learns: bool
    seed: int
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    # -- the problem ------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        if self.own_task is not None:
            return self.own_task
        if self.kind == "regression":
            return Regression(features=("a", "b"))
        return Classification(features=("a", "b"), classes=CLASSES)

    def draw(self, n: int, condition: str, first: int = 0) -> Examples:
        """Old: y rises with a. New: a shift of y (another border of the classes)."""
        rng = Seeds(self.seed).rng("updater", condition, first)
        a, b = rng.uniform(-1, 1, (2, n))
        shift = 0.0 if condition == "old" else 0.8
        score = a + 0.3 * b**2 + shift + 0.05 * rng.standard_normal(n)
        y = score if self.kind == "regression" else np.digitize(score, [-0.2, 0.5])
        time = (0 if condition == "old" else 1) * HOUR + first
        inputs = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
        ids = np.arange(n, dtype=np.int64) + first + (0 if condition == "old" else 10**6)
        return Examples(ids, inputs, {"y": y}, time + np.arange(n) / n, np.full(n, condition))

    @property
    def serving(self) -> Model:
        """A network that knows the old condition; trained once."""
        made: Model = self._once("serving", lambda: _first(self.kind, self.seed).copy())
        return replace(made, task=self.task)

    def trained(self, convert: Callable[[nn.Module], nn.Module], schedule: Schedule) -> Model:
        old = self.draw(300, "old")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            plain = MLP(2, [8], 2 if self.kind == "regression" else CLASSES)
        drawn = uncertain.fresh(self.task, convert(plain), old, self.seed)
        model = Model(drawn, self.task, Architecture("toy"))
        fit(model, Prepared.of(model, old), schedule, Seeds(self.seed).rng("fit"))
        model.network.eval()
        return model

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @property
    def store(self) -> Store:
        old, new = self.draw(300, "old"), self.draw(240, "new")
        return Store(old, new, waiting=self.draw(80, "new", first=5000))

    def rng(self, *name: str | int) -> np.random.Generator:
        return Seeds(self.seed).rng("update", *name)

    def begun(self, updater: Updater, serving: Model) -> Learner:
        """The state after the old condition was learned and the new one observed."""
        learner = updater.begin(serving, self.draw(300, "old"), rng=self.rng("begin"))
        return updater.observe(learner, self.draw(240, "new"), rng=self.rng("observe"))

    def updated(
        self,
        updater: Updater | None = None,
        serving: Model | None = None,
        learner: Learner | None = None,
        fresh: Examples | None = None,
        memory: Memory | None = None,
        budget: Budget | None = None,
    ) -> Answer:
        one = self.eager if updater is None else updater
        model = self.serving if serving is None else serving
        return one.update(
            model,
            self.begun(one, model) if learner is None else learner,
            self.draw(240, "new") if fresh is None else fresh,
            self.store if memory is None else memory,
            budget=Budget() if budget is None else budget,
            rng=self.rng("new"),
        )

    @property
    def eager(self) -> Updater:
        return eager(self.updater)

    @property
    def candidate(self) -> Candidate[Model]:
        """The plain update; a check that needs one is skipped where there is none."""
        answer = self._once("answer", self.updated)
        if isinstance(answer, Declined):
            raise _Skip(f"declined: {answer.because}")
        made: Candidate[Model] = answer
        return made

    # -- the checks -------------------------------------------------------------------------------

    def run(self, only: str | None = None) -> list[Check]:
        """All checks (or the one); one skipped line where this kind of task is refused."""
        refused = self.refusal()
        if refused is not None and self.learns:
            return [Check(f"{self.kind}: all", "skipped", refused)]
        made = {
            "what it is given stays": self.pure,
            "same seed, same candidate": self.seeded,
            "a stored state goes on bit for bit": self.resumes,
            "it begins from no state": self.stateless,
            "observing gives a state of plain arrays": self.plain_arrays,
            "the budget is kept to the byte": self.budgeted,
            "the state stops growing": self.bounded,
            "the cost is what was used": self.costed,
            "the new condition is served better": self.better,
            **{f"on top of {_named(method)}": self._on_top(method) for method in self.methods},
            "too few events": self.few,
            "a batch of one": lambda: self.bad(self.draw(1, "new")),
            "one class or a constant target": lambda: self.bad(self._constant()),
            "NaN in an input": lambda: self.bad(self._spoiled("inputs")),
            "NaN in a target": lambda: self.bad(self._spoiled("targets")),
            "an unseen class": self.unseen,
            "no fresh events": lambda: self.bad(Examples.empty()),
            "an empty store": self.alone,
            "parameters without gradient": self.no_gradient,
            "a diverging update": self.diverging,
            **{f"law: {law}": self._law(one) for law, one in self.laws.items()},
        }
        return [
            _made(f"{self.kind}: {name}", check)
            for name, check in made.items()
            if only is None or name == only
        ]

    def refusal(self) -> str | None:
        """Why there is no candidate at all for this kind of task."""
        try:
            answer = self._once("answer", self.updated)
        except ConfigError as error:
            return f"refused: {error}"
        except Exception:  # noqa: BLE001  the checks will find it, one by one
            return None
        return f"declined: {answer.because}" if isinstance(answer, Declined) else None

    def pure(self) -> None:
        serving, fresh, store = self.serving, self.draw(240, "new"), self.store
        learner = self.begun(self.eager, serving)
        given = [
            ("the serving network", serving.weights),
            ("its learner's state", lambda: dict(learner)),
            ("the fresh events", lambda: _columns(fresh)),
            ("the store", lambda: _columns(store.all())),
        ]
        before = [_copied(read()) for _, read in given]
        gradients = [parameter.grad is None for parameter in serving.network.parameters()]
        self.updated(serving=serving, learner=learner, fresh=fresh, memory=store)
        self.eager.observe(learner, fresh, rng=self.rng("again"))
        for (what, read), was in zip(given, before, strict=True):
            moved = _different(was, read())
            _owes(not moved, f"an update changed {what}: {', '.join(moved)}")
        _owes(not serving.network.training, "the serving network was left in training mode")
        after = [parameter.grad is None for parameter in serving.network.parameters()]
        _owes(after == gradients, "the serving network was left with gradients")

    def seeded(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            one = self.updated()
            torch.manual_seed(22)
            state = torch.random.get_rng_state()
            other = self.updated()
            moved = not torch.equal(state, torch.random.get_rng_state())
        _alike(one, other, "the same seed gave two candidates")
        _owes(not moved, "an update draws from torch's global generator")

    def resumes(self) -> None:
        """Two updates in a row, with the state stored and read between any two calls."""

        def walk(kept: Callable[[Learner], Learner]) -> Answer:
            updater, serving = self.eager, self.serving
            learner = kept(updater.begin(serving, self.draw(300, "old"), rng=self.rng("begin")))
            answer: Answer = Declined("nothing yet")
            for number in range(2):
                fresh = self.draw(120, "new", first=1000 * number)
                learner = kept(updater.observe(learner, fresh, rng=self.rng("see", number)))
                answer = updater.update(
                    serving, learner, fresh, self.store, budget=Budget(), rng=self.rng(number)
                )
                if isinstance(answer, Candidate):
                    serving, learner = answer.model, kept(answer.learner)
            return answer

        _alike(walk(lambda learner: learner), walk(stored), "a state that was read again differs")

    def stateless(self) -> None:
        answer = self.updated(learner={})
        if isinstance(answer, Candidate):
            _owes(_finite(answer), "a candidate from no state has weights that are not finite")

    def plain_arrays(self) -> None:
        for learner in (self.begun(self.eager, self.serving), self.candidate.learner):
            for key, value in learner.items():
                _owes(
                    isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf",
                    f"{key!r} of the learner's state is no array of numbers",
                )
            moved = _different(dict(learner), stored(learner))
            _owes(not moved, f"{', '.join(moved)} of the state cannot be stored")

    def budgeted(self) -> None:
        cost = self.candidate.cost
        exact = Budget(
            memory_bytes=cost.memory_bytes,
            stored_examples=cost.stored_examples,
            macs_per_example=cost.macs_per_example,
        )
        answer = self.updated(budget=exact)
        _owes(isinstance(answer, Candidate), f"its own cost is too much: {_why(answer)}")
        for knob in ("memory_bytes", "stored_examples", "macs_per_example"):
            used = int(getattr(cost, knob))
            if not used:
                continue
            answer = self.updated(budget=replace(exact, **{knob: used - 1}))
            _owes(isinstance(answer, Declined), f"{knob} of {used - 1:,} was not kept")
            figures = (f"{used:,.6g}", f"{used - 1:,.6g}")
            missing = [figure for figure in figures if figure not in _why(answer)]
            _owes(not missing, f"the refusal does not say {', '.join(missing)}: {_why(answer)}")
        nothing = self.updated(budget=Budget(seconds=0.0))
        _owes(isinstance(nothing, Declined), "0 seconds were enough for an update")

    def bounded(self) -> None:
        """Two conditions in turn: a state may grow with their number, not with their events."""
        updater, serving = self.eager, self.serving
        learner = updater.begin(serving, self.draw(300, "old"), rng=self.rng("begin"))
        sizes = []
        for number in range(12):
            condition = ("old", "new")[number % 2]
            for piece in range(8):
                first = 10_000 * (number + 1) + 500 * piece
                new = self.draw(250, condition, first=first)
                learner = updater.observe(learner, new, rng=self.rng("see", number, piece))
            fresh = self.draw(120, condition, first=10_000 * (number + 1) + 5000)
            learner = updater.observe(learner, fresh, rng=self.rng("see", number))
            if number % 3 == 2:
                answer = updater.update(
                    serving, learner, fresh, self.store, budget=Budget(), rng=self.rng(number)
                )
                if isinstance(answer, Candidate):
                    serving, learner = answer.model, answer.learner
            sizes.append(n_bytes(learner))
        middle, end = max(sizes[:8]), sizes[-1]
        _owes(
            end <= 1.02 * middle + 64,
            f"the state was {middle:,} bytes after 16 000 events and {end:,} after 24 000",
        )

    def costed(self) -> None:
        made = self.candidate
        cost, held = made.cost, n_bytes(made.learner)
        _owes(cost.memory_bytes == held, f"memory_bytes is {cost.memory_bytes}, the state {held}")
        _owes(cost.seconds > 0, f"it says that it took {cost.seconds} s")
        _owes(cost.macs_per_example > 0, "it says that a prediction costs no multiplication")
        told = sum(made.provenance.events.values())
        _owes(cost.examples <= told or not told, f"{cost.examples} read, {told} in the provenance")
        _owes(made.provenance.updater == type(self.eager).__name__, "it names another updater")
        _owes(_finite(made), "the candidate has weights that are not finite")

    def better(self) -> None:
        if not self.learns:
            raise _Skip("it need not learn")
        test = self.draw(400, "new", first=9000)
        before = float(self.serving.errors(test)["error"].mean())
        after = float(self.candidate.model.errors(test)["error"].mean())
        _owes(after < before, f"the mean error is {after:.4g}, before it was {before:.4g}")

    def _on_top(self, method: str | Method) -> Callable[[], None]:
        def check() -> None:
            convert = METHODS[method].convert if isinstance(method, str) else method.convert
            try:
                serving = self.trained(convert, BRIEF)
                answer = self.updated(serving=serving)
            except ConfigError as error:
                raise _Skip(f"refused: {error}") from None
            if isinstance(answer, Declined):
                raise _Skip(f"declined: {answer.because}")
            model = answer.model
            same = type(model.network) is type(serving.network)
            _owes(same, f"a {type(serving.network).__name__} became {type(model.network).__name__}")
            test = self.draw(50, "new", first=9000)
            one, other = model.predict(test.inputs)[0], model.predict(test.inputs)[0]
            _owes(len(one) == 50, f"50 events gave {len(one)} predictions")
            _owes(_equal(one, other), "the candidate answers twice in two ways")
            _owes(_finite(answer), "the candidate has weights that are not finite")
            again = model.with_weights(model.weights()).predict(test.inputs)[0]
            _owes(_equal(one, again), "the candidate's weights do not hold all that it says")

        return check

    def few(self) -> None:
        least = getattr(self.updater, "min_events", None)
        if least is None or least < 2:
            raise _Skip("there is no least number of events")
        answer = self.updated(updater=self.updater, fresh=self.draw(least - 1, "new"))
        if isinstance(answer, Candidate):
            raise _Skip("it reads other events than labelled fresh ones")
        said = answer.because
        _owes(answer.early, f"a refusal for want of events is not `early`: {said}")
        _owes(str(least) in said and str(least - 1) in said, f"without the figures: {said}")

    def bad(self, fresh: Examples) -> None:
        """Defined behaviour: an error of ours, a refusal, or weights that are finite."""
        try:
            learner = self.eager.observe(
                self.eager.begin(self.serving, self.draw(300, "old"), rng=self.rng("begin")),
                fresh,
                rng=self.rng("observe"),
            )
            answer = self.updated(learner=learner, fresh=fresh, memory=Store(fresh))
        except StillfitError as error:
            _owes(len(str(error)) > 20, f"the error says too little: {error}")
            return
        if isinstance(answer, Declined):
            _owes(len(answer.because) > 20, f"the refusal says too little: {answer.because}")
            return
        _owes(_finite(answer), "the candidate has weights that are not finite")

    def _constant(self) -> Examples:
        fresh = self.draw(60, "new")
        same = np.full_like(np.asarray(fresh.targets["y"]), np.asarray(fresh.targets["y"])[0])
        return replace(fresh, targets={"y": same})

    def _spoiled(self, where: Literal["inputs", "targets"]) -> Examples:
        fresh = self.draw(60, "new")
        if where == "inputs":
            column = np.asarray(fresh.inputs["a"]).copy()
            column[7] = np.nan
            return replace(fresh, inputs={**fresh.inputs, "a": column})
        target = np.asarray(fresh.targets["y"], np.float64).copy()
        target[7] = np.nan
        if self.kind == "classification":
            raise _Skip("a class is a whole number")
        return replace(fresh, targets={"y": target})

    def unseen(self) -> None:
        if self.kind == "regression":
            raise _Skip("there are no classes")
        fresh = self.draw(60, "new")
        y = np.asarray(fresh.targets["y"]).copy()
        y[::5] = UNSEEN
        try:
            answer = self.updated(
                learner=self.begun(self.eager, self.serving),
                fresh=replace(fresh, targets={"y": y}),
                memory=Store(replace(fresh, targets={"y": y})),
            )
        except IndexError as error:  # what torch says of a target that is out of bounds
            raise AssertionError(
                f"a class without an output gave IndexError ({error}), not an error that names it"
            ) from None
        except StillfitError as error:
            _owes(str(UNSEEN) in str(error), f"the error does not name the class: {error}")
            return
        if isinstance(answer, Candidate):
            _owes(_finite(answer), "the candidate has weights that are not finite")

    def alone(self) -> None:
        """Nothing is kept but what the learner holds itself."""
        answer = self.updated(memory=Store())
        if isinstance(answer, Candidate):
            _owes(_finite(answer), "the candidate has weights that are not finite")

    def no_gradient(self) -> None:
        serving = self.serving.copy()
        first = next(serving.network.parameters())
        first.requires_grad_(False)
        before = first.detach().numpy().copy()
        try:
            answer = self.updated(serving=serving)
        except StillfitError:
            return
        if isinstance(answer, Declined) or answer.model.network is serving.network:
            return
        _owes(_finite(answer), "the candidate has weights that are not finite")
        _owes(bool(np.array_equal(before, first.detach().numpy())), "the serving network moved")

    def diverging(self) -> None:
        """A rate far too high: the candidate may be bad, which gates see, but not broken."""
        schedule = getattr(self.updater, "schedule", None)
        if not isinstance(schedule, Schedule):
            raise _Skip("there is no schedule")
        wild = replace(schedule, rate=1e6, optimiser="sgd", clip=1e9)
        try:
            answer = self.updated(updater=replace(self.eager, schedule=wild))  # type: ignore[call-arg]
        except StillfitError:
            return
        if isinstance(answer, Candidate):
            error = self.serving.task.errors(
                *answer.model.predict(self.draw(20, "new").inputs), self.draw(20, "new").targets
            )["error"]
            _owes(len(error) == 20, "a diverged candidate cannot be judged by a gate")

    def _law(self, law: Law) -> Callable[[], None]:
        def check() -> None:
            if self.kind not in law.kinds:
                raise _Skip(f"it holds for {', '.join(law.kinds)}")
            answer = self.updated(updater=eager(law.updater))
            if isinstance(answer, Declined):
                raise _Skip(f"declined: {answer.because}")
            like = self.serving if law.like is None else self._model(eager(law.like))
            if not law.within:
                moved = _different(like.weights(), answer.model.weights())
                _owes(not moved, f"weights differ: {', '.join(moved)}")
                return
            away, scale = self._apart(answer.model, like), self._scale()
            _owes(
                away <= law.within * scale,
                f"predictions are {away / scale:.3g} of the way of fine-tuning apart, more than "
                f"{law.within:g}",
            )

        return check

    def _model(self, updater: Updater) -> Model:
        answer = self.updated(updater=updater)
        if isinstance(answer, Declined):
            raise _Skip(f"what it is compared with is declined: {answer.because}")
        return answer.model

    def _apart(self, one: Model, other: Model) -> float:
        """Root mean square distance of the predictions on both conditions."""
        inputs = Examples.join([self.draw(100, c, first=9000) for c in ("old", "new")]).inputs
        return float(np.sqrt(np.mean((_central(one, inputs) - _central(other, inputs)) ** 2)))

    def _scale(self) -> float:
        naive = FineTune(schedule=Schedule(steps=100, batch=64, rate=0.01), min_events=1)
        return self._apart(self._model(naive), self.serving)


@lru_cache(maxsize=8)
def _first(kind: Kind, seed: int) -> Model:
    """The first network of a problem, the same for all updaters; every suite takes a copy."""
    none = Frozen()
    suite = _Suite(updater=none, kind=kind, laws={}, methods=(), learns=False, seed=seed)
    return suite.trained(lambda network: network, FIRST)


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


def stored(learner: Learner) -> Learner:
    """A learner's state as it comes back from the disk."""
    if not learner:
        return {}
    # Read-only views of a buffer would hide that somebody writes into a state.
    raw = save({name: np.ascontiguousarray(value) for name, value in learner.items()})
    return {name: value.reshape(learner[name].shape) for name, value in load(raw).items()}


def _named(method: str | Method) -> str:
    return method if isinstance(method, str) else method.name


def _central(model: Model, inputs: Arrays) -> NDArray[np.float64]:
    stated, _ = model.predict(inputs)
    return stated.probabilities if isinstance(stated, Categorical) else stated.mean[:, None]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Categorical):
        return bool(np.array_equal(one.members, other.members))
    pairs = ((one.mean, other.mean), (one.std, other.std))
    return all(np.array_equal(a, b) for a, b in pairs)


def _columns(examples: Examples) -> dict[str, Array]:
    return examples.to_arrays()


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(value) for name, value in arrays.items()}


def _different(before: Mapping[str, Array], after: Mapping[str, Array]) -> list[str]:
    """Names whose arrays differ in type, shape or any bit."""
    odd = sorted(set(before) ^ set(after))
    for name in sorted(set(before) & set(after)):
        a, b = np.asarray(before[name]), np.asarray(after[name])
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            odd.append(name)
    return odd


def _finite(candidate: Candidate[Model]) -> bool:
    return all(
        bool(np.isfinite(value).all())
        for value in candidate.model.weights().values()
        if value.dtype.kind == "f"
    )


def _why(answer: Answer) -> str:
    return answer.because if isinstance(answer, Declined) else "there is a candidate"


def _alike(one: Answer, other: Answer, otherwise: str) -> None:
    """The same refusal, or the same weights and state bit for bit."""
    if isinstance(one, Declined) or isinstance(other, Declined):
        _owes(_why(one) == _why(other), f"{otherwise}: {_why(one)}; {_why(other)}")
        return
    moved = _different(one.model.weights(), other.model.weights())
    _owes(not moved, f"{otherwise}: weights {', '.join(moved)}")
    moved = _different(one.learner, other.learner)
    _owes(not moved, f"{otherwise}: state {', '.join(moved)}")


def _made(name: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except _Skip as reason:
        return Check(name, "skipped", str(reason))
    except AssertionError as failure:
        return Check(name, "failed", str(failure))
    except Exception as error:  # noqa: BLE001  an updater that breaks fails the check, not the suite
        return Check(name, "failed", f"{type(error).__name__}: {error}")
    return Check(name, "passed")


def _owes(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
