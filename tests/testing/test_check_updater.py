"""The suite runs on every updater of the package, and each of its checks can fail."""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from stillfit import updaters
from stillfit.core.errors import ConfigError
from stillfit.core.values import Candidate
from stillfit.models.model import Model
from stillfit.models.task import Regression
from stillfit.models.training import Schedule
from stillfit.studies.continual.catalogue import STRATEGIES
from stillfit.studies.continual.setting import Recipe
from stillfit.testing import CLASSIFICATION, REGRESSION, Law, Problem, check_updater
from stillfit.testing.problems import Store
from stillfit.testing.trial import Trial, eager, stored
from stillfit.testing.updater import UNCERTAIN, checks_of
from stillfit.updaters.contract import Declined, Meter, Updater
from stillfit.updaters.dynamic import Compress, Grow, PackNet
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
)
from stillfit.updaters.labels import AdaptNormalisation, PseudoLabels
from stillfit.updaters.online import (
    NearestMean,
    OnlineFineTune,
    OnlineReplay,
    RecursiveLeastSquares,
    StreamingLDA,
)
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Frozen, Retrain, RetrainWindow
from stillfit.updaters.regularisation import EWC, MAS, LwF, OnlineEWC, SynapticIntelligence
from stillfit.updaters.replay import DarkReplay, GDumb, GenerativeReplay, Replay

torch.set_num_threads(1)
S = Schedule(steps=15, batch=48, rate=0.02)
R = Schedule(steps=30, batch=64, rate=0.03)
NAIVE = FineTune(schedule=S)
HUGE = 1e9


@dataclass(frozen=True, kw_only=True)
class Shiftable(Regression):
    """A regression whose target's mean can be set in closed form."""

    def recalibrate(self, network, examples, *, significance):
        model = Model(network, self, None)
        away = examples.targets["y"] - model.predict(examples.inputs)[0].mean
        if abs(away.mean()) < significance * away.std() / np.sqrt(len(away)):
            return {}
        return {"target_mean": np.float32(float(network.target_mean) + away.mean())}


SHIFTABLE = Problem(
    name="regression",
    task=Shiftable(features=("a", "b")),
    network=REGRESSION.network,
    draw=REGRESSION.draw,
)


def anchored(kind, **knobs):
    """Laws of a penalty that holds parameters."""
    return (
        kind(schedule=S, **knobs),
        {
            "penalty 0 is fine-tuning": Law(
                updater=kind(schedule=S, penalty=0.0, **knobs), like=NAIVE
            ),
            "a huge penalty is frozen": Law(
                updater=kind(schedule=S, penalty=HUGE, **knobs), within=0.1
            ),
        },
    )


# Every updater with the limits of its knobs.
CASES = [
    (Frozen(), {}),
    (NAIVE, {"rate 0 is frozen": Law(updater=FineTune(schedule=replace(S, rate=0.0)))}),
    (
        Retrain(schedule=R),
        {
            "nothing but the new is a window of it": Law(
                updater=Retrain(schedule=R, weight_of_new=1.0),
                like=RetrainWindow(schedule=R, window=1800.0),
                within=1.0,
            )
        },
    ),
    (
        RetrainWindow(schedule=R, window=1800.0),
        {
            "a window of everything is retraining": Law(
                updater=RetrainWindow(schedule=R, window=HUGE),
                like=Retrain(schedule=R, weight_of_new=0.0),
            )
        },
    ),
    (Recalibrate(), {}),
    (
        Replay(schedule=S, capacity=150),
        {"mix 0 is fine-tuning": Law(updater=Replay(schedule=S, mix=0.0), like=NAIVE)},
    ),
    (
        DarkReplay(schedule=S, capacity=150),
        {
            "alpha 0 is replay": Law(
                updater=DarkReplay(schedule=S, alpha=0.0, capacity=150),
                like=Replay(schedule=S, capacity=150),
            )
        },
    ),
    (
        GDumb(schedule=R, capacity=150),
        {
            "a buffer of everything is joint training": Law(
                updater=GDumb(schedule=R, capacity=10_000),
                like=Retrain(schedule=R, weight_of_new=0.0),
                within=0.5,
            )
        },
    ),
    (
        GenerativeReplay(schedule=S, samples=200),
        {"mix 0 is fine-tuning": Law(updater=GenerativeReplay(schedule=S, mix=0.0), like=NAIVE)},
    ),
    anchored(EWC),
    anchored(OnlineEWC),
    anchored(SynapticIntelligence),
    anchored(MAS),
    (
        LwF(schedule=S),
        {"penalty 0 is fine-tuning": Law(updater=LwF(schedule=S, penalty=0.0), like=NAIVE)},
    ),
    (PackNet(schedule=R), {}),
    (Grow(schedule=replace(S, steps=8), rounds=1), {}),
    (
        Compress(schedule=S),
        {"no limit is fine-tuning": Law(updater=Compress(schedule=S, mix=0.0), like=NAIVE)},
    ),
    (
        OnlineFineTune(rate=0.05, batch=8),
        {"rate 0 is frozen": Law(updater=OnlineFineTune(rate=0.0))},
    ),
    (
        OnlineReplay(rate=0.05, batch=8, replay=8),
        {
            "replay 0 is online fine-tuning": Law(
                updater=OnlineReplay(replay=0), like=OnlineFineTune()
            )
        },
    ),
    (
        StreamingLDA(),
        {
            "all shrunk is the nearest mean": Law(
                updater=StreamingLDA(shrinkage=1.0), like=NearestMean(), within=1e-3
            )
        },
    ),
    (NearestMean(), {}),
    (
        RecursiveLeastSquares(),
        {
            "a huge ridge is frozen": Law(
                updater=RecursiveLeastSquares(ridge=1e12, calibrate=False), within=1e-3
            )
        },
    ),
    (
        PseudoLabels(schedule=S),
        {
            "a threshold above 1 is fine-tuning": Law(
                updater=PseudoLabels(schedule=S, probability=2.0),
                like=NAIVE,
                problems=("classification",),
            )
        },
    ),
    (
        AdaptNormalisation(),
        {"a huge prior is frozen": Law(updater=AdaptNormalisation(prior=1e12), within=1e-3)},
    ),
    (EmbeddedSGD(), {"rate 0 is frozen": Law(updater=EmbeddedSGD(rate=0.0), within=0.05)}),
    (EmbeddedDFA(), {}),
    (EmbeddedLMS(), {}),
    (EmbeddedRLS(), {"prior 0 is frozen": Law(updater=EmbeddedRLS(prior=0.0), within=0.05)}),
    (EmbeddedSPSA(), {}),
]
# Those that need not serve the new condition better: its inputs are the old ones.
KEEPERS = (Frozen, AdaptNormalisation)
ONLY = {
    "StreamingLDA": "classification",
    "NearestMean": "classification",
    "RecursiveLeastSquares": "regression",
    "Recalibrate": "regression",
}


def discovered():
    """Every updater of the package that can be made."""
    found = set()
    for module in pkgutil.walk_packages(updaters.__path__, "stillfit.updaters."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and issubclass(value, Updater):
                found.add(value)
    return {v for v in found if not inspect.isabstract(v) and not v.__name__.startswith("_")}


ABSTRACT = {"EmbeddedLearner"}  # has no `kind`: what all learners on a device share


def test_every_updater_of_the_package_is_checked():
    names = {kind.__name__ for kind in discovered()} - ABSTRACT
    assert {type(updater).__name__ for updater, _ in CASES} == names
    assert len(CASES) == len(names) >= 29


def test_the_catalogue_of_the_studies_has_every_updater():
    recipe = Recipe(
        scenario="toy", kind="classes", rows=100, experiences=3, epochs=1, batch=10, rate=0.01,
        memory=50, classes=2,
    )  # fmt: skip
    made = {type(one.make(recipe, 1)).__name__ for one in STRATEGIES.values()}
    # Least squares of a number: no scenario of the studies is a plain regression.
    assert {kind.__name__ for kind in discovered()} - ABSTRACT - made == {"RecursiveLeastSquares"}


@pytest.mark.parametrize(("updater", "laws"), CASES, ids=lambda case: type(case).__name__)
def test_every_updater_passes(updater, laws):
    name = type(updater).__name__
    report = check_updater(
        updater,
        laws=laws,
        problems=(SHIFTABLE, CLASSIFICATION),
        methods=("deep-ensemble", "laplace"),
        learns=not isinstance(updater, KEEPERS),
    )
    assert report.failed == ()
    # What is skipped is known: nothing drops out in silence.
    whole = [check for check in report.skipped if check.endswith(": all")]
    other = {"classification": "regression", "regression": "classification"}
    assert whole == ([f"{other[ONLY[name]]}: all"] if name in ONLY else [])
    reasons = {check.name: check.because for check in report.checks if check.outcome == "skipped"}
    assert all(why.strip() for why in reasons.values())
    for law in laws:
        assert f"regression: law: {law}" in report.passed or (
            f"classification: law: {law}" in report.passed
        ), f"{law} holds nowhere: {reasons}"
    assert report.count >= (14 if name in ONLY else 20)


def test_every_way_to_state_uncertainty_is_tried_by_default():
    report = check_updater(NAIVE)
    tried = {f"regression: on top of {method}" for method in UNCERTAIN}
    assert tried <= set(report.passed)


# -- broken updaters: each is found by the check that is about it -------------------------------


def outcome(updater, name, laws=None):
    trial = Trial(updater=updater, problem=REGRESSION)
    methods = ("deep-ensemble",)
    (check,) = checks_of(trial, laws=laws or {}, methods=methods, learns=True, only=name)
    assert check.name == f"regression: {name}"
    return check


@dataclass(frozen=True, kw_only=True)
class Right(FineTune):
    """A right updater, out of which each test breaks one thing."""

    schedule: Schedule = S
    min_events: int = 30


def broken(**verbs):
    return type("Broken", (Right,), verbs)()


def test_the_updater_that_is_broken_below_is_right_before():
    report = check_updater(Right(), methods=("deep-ensemble",))
    assert report.failed == () and report.subject == "Right" and report.count >= 38


def test_a_serving_network_that_is_changed_is_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        with torch.no_grad():
            next(serving.network.parameters()).add_(0.01)
        return FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)

    found = outcome(broken(update=update), "what it is given stays")
    assert found.outcome == "failed" and "changed the serving network: layers.1" in found.because


def test_a_state_or_data_that_are_written_into_are_found():
    def begin(self, serving, examples, *, rng):
        return {"count": np.zeros(1)}

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        learner["count"] += 1
        return FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)

    found = outcome(broken(begin=begin, update=update), "what it is given stays")
    assert "changed its learner's state: count" in found.because

    def spoil(self, serving, learner, fresh, memory, *, budget, rng):
        fresh.targets["y"][0] = 7.0
        return FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)

    assert "the fresh events" in outcome(broken(update=spoil), "what it is given stays").because


def test_global_randomness_is_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        made = FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)
        with torch.no_grad():
            next(made.model.network.parameters()).add_(1e-3 * torch.randn(()))
        return made

    found = outcome(broken(update=update), "same seed, same candidate")
    assert found.outcome == "failed" and "two candidates: weights" in found.because


def test_a_state_outside_the_learner_is_found():
    seen = []

    def observe(self, learner, examples, *, rng):
        seen.append(len(examples))
        return {"n": np.array(sum(seen))}

    found = outcome(broken(observe=observe), "a stored state goes on bit for bit")
    assert found.outcome == "failed" and "a state that was read again differs" in found.because


def test_a_state_that_is_no_array_is_found():
    def observe(self, learner, examples, *, rng):
        return {"n": len(examples)}

    found = outcome(broken(observe=observe), "observing gives a state of plain arrays")
    assert found.outcome == "failed"


def test_a_budget_that_is_not_kept_is_found():
    def begin(self, serving, examples, *, rng):
        return {"kept": np.zeros(50)}

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        free = replace(budget, memory_bytes=None)
        return FineTune.update(self, serving, learner, fresh, memory, budget=free, rng=rng)

    found = outcome(broken(begin=begin, update=update), "the budget is kept to the byte")
    assert found.outcome == "failed" and "memory_bytes of 399 was not kept" in found.because


def test_a_refusal_without_figures_is_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        made = FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)
        return Declined("over the budget") if isinstance(made, Declined) else made

    found = outcome(broken(update=update), "the budget is kept to the byte")
    assert "the refusal does not say 32, 31: over the budget" in found.because


def test_a_memory_without_end_is_found():
    def observe(self, learner, examples, *, rng):
        return {"ids": np.concatenate([learner.get("ids", np.zeros(0, np.int64)), examples.ids])}

    found = outcome(broken(observe=observe), "the state stops growing")
    assert found.outcome == "failed" and "after 24 000" in found.because


def test_a_cost_that_is_made_up_is_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        made = FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)
        return replace(made, cost=replace(made.cost, memory_bytes=12))

    found = outcome(broken(update=update), "the cost is what was used")
    assert "memory_bytes is 12, the state 0" in found.because


def test_a_strategy_that_does_not_learn_is_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        return Meter.start(self, rng).finish(serving.copy(), learner, [fresh], budget)

    found = outcome(broken(update=update), "the new condition is served better")
    assert found.outcome == "failed" and "before it was" in found.because


def test_a_method_that_is_lost_is_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        made = FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)
        plain = made.model.network
        core = getattr(plain, "core", plain)
        return replace(made, model=Model(core, serving.task, serving.architecture))

    found = outcome(broken(update=update), "on top of deep-ensemble")
    assert found.outcome == "failed"


def test_a_late_refusal_and_one_without_figures_are_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        if len(fresh) < 30:
            return Declined("not enough labelled events", early=early)
        return FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)

    early = False
    found = outcome(broken(update=update), "too few events")
    assert found.outcome == "failed" and "not `early`" in found.because
    early = True
    found = outcome(broken(update=update), "too few events")
    assert "without the figures: not enough labelled events" in found.because


@pytest.mark.parametrize("name", ["a batch of one", "NaN in an input", "no fresh events"])
def test_a_foreign_error_on_bad_input_is_found(name):
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        raise ZeroDivisionError("mean of nothing")

    found = outcome(broken(update=update), name)
    assert found.outcome == "failed" and "ZeroDivisionError: mean of nothing" in found.because


def test_weights_that_are_not_finite_are_found():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        made = FineTune.update(self, serving, learner, fresh, memory, budget=budget, rng=rng)
        if isinstance(made, Candidate):
            with torch.no_grad():
                next(made.model.network.parameters()).fill_(float(np.nan))
        return made

    for name in ("the cost is what was used", "one class or a constant target", "an empty store"):
        found = outcome(broken(update=update), name)
        assert found.outcome == "failed" and "not finite" in found.because


def test_a_law_that_does_not_hold_is_found():
    lies = {
        "rate 1 is frozen": Law(updater=Right()),
        "nearly so": Law(updater=Right(), within=0.01),
    }
    exact = outcome(Right(), "law: rate 1 is frozen", laws=lies)
    assert exact.outcome == "failed" and "weights differ: layers.1" in exact.because
    near = outcome(Right(), "law: nearly so", laws=lies)
    assert near.outcome == "failed" and "of the way of fine-tuning apart" in near.because
    elsewhere = {"x": Law(updater=Right(), problems=("classification",))}
    assert outcome(Right(), "law: x", laws=elsewhere).outcome == "skipped"


def test_an_updater_states_laws_of_its_own():
    def laws(self):
        return {"rate 0 is frozen": (Right(schedule=replace(S, rate=0.0)), None, 0.0)}

    report = check_updater(broken(laws=laws), methods=(), problems=[REGRESSION])
    assert "regression: law: rate 0 is frozen" in report.passed


def test_an_updater_that_refuses_everything_fails_and_says_so():
    def update(self, serving, learner, fresh, memory, *, budget, rng):
        raise ConfigError("not this network, whatever it is")

    with pytest.raises(AssertionError, match="takes a task: every problem is declined"):
        check_updater(broken(update=update))
    report = check_updater(broken(update=update), strict=False, name="mine")
    assert report.subject == "mine" and report.count == 1
    assert report.skipped == ("regression: all", "classification: all")


def test_a_state_comes_back_from_the_disk_as_it_was():
    state = {"a": np.arange(6.0).reshape(2, 3), "n": np.array(4), "none": np.zeros((0, 2))}
    back = stored(state)
    for name, value in state.items():
        assert back[name].shape == value.shape and back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)
    assert stored({}) == {}


def test_small_batches_reach_the_strategy():
    assert eager(Right()).min_events == 1
    assert eager(Compress()).min_events == 2  # it needs one to train on and one to judge by
    assert eager(Frozen()) == Frozen()
    assert eager(OnlineFineTune()).recall == 200


def test_the_store_of_the_suite_holds_what_it_is_given():
    trial = Trial(updater=Right(), problem=REGRESSION)
    old, new = trial.draw(30, "old"), trial.draw(20, "new")
    store = Store(old, new, waiting=trial.draw(9, "new", first=500))
    assert len(store.all()) == 50
    assert set(store.window(float(new.times[0])).conditions) == {"new"}
    waiting = store.unlabelled("new", 4)
    assert len(waiting) == 4 and not waiting.targets and waiting.ids[-1] == 10**6 + 508
