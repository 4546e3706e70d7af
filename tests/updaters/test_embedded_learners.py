"""Laws of the embedded strategies as updaters: purity, resuming, limits, budgets, bad input."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import content_hash, n_bytes
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate, Cost
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, Standardise, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.uncertainty.methods import METHODS
from stillfit.updaters.contract import Declined
from stillfit.updaters.embedded import (
    EmbeddedBudget,
    EmbeddedCost,
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
    Format,
)

REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
KEPT = Exemplars(capacity=30)
LEARNERS = [
    EmbeddedSGD(),
    EmbeddedSGD(exemplars=KEPT),
    EmbeddedLMS(),
    EmbeddedDFA(),
    EmbeddedDFA(feedback="sign"),
    EmbeddedSPSA(),
    EmbeddedRLS(exemplars=KEPT),
]
NAMES = [f"{type(u).__name__}-{n}" for n, u in enumerate(LEARNERS)]
learners = pytest.mark.parametrize("learner", LEARNERS, ids=NAMES)
tasks = pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=240, shift=1.0, first=0, seed=0):
    drawn = rng([seed, first])
    x = drawn.normal(size=(n, 2))
    score = x[:, 0] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.zeros(n), np.full(n, "new"))


def model(task, network=None, seed=0):
    torch.manual_seed(seed)
    network = network or MLP(2, [8], 2 if isinstance(task, Regression) else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def trained(task):
    made, old = model(task), examples(task, 400, shift=0.0)
    made = Model(task.fresh(made.network, old, 1), task, made.architecture)
    fit(made, Prepared.of(made, old), Schedule(steps=150, batch=100, rate=0.02), rng())
    return made


def update(learner, serving, state, fresh, seed=3, budget=None):
    return learner.update(serving, state, fresh, None, budget=budget or Budget(), rng=rng(seed))


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


# -- the contract -------------------------------------------------------------------------------


@tasks
@learners
def test_an_update_is_pure_and_repeatable(learner, task):
    serving, fresh = model(task), examples(task, first=1000)
    state = learner.begin(serving, examples(task, 50, shift=0.0), rng=rng(1))
    before = [content_hash(serving.weights()), content_hash(dict(state)),
              content_hash(fresh.to_arrays())]  # fmt: skip
    one, other = (update(learner, serving, state, fresh) for _ in range(2))
    assert before == [content_hash(serving.weights()), content_hash(dict(state)),
                      content_hash(fresh.to_arrays())]  # fmt: skip
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert one.provenance == other.provenance
    assert one.provenance.events == {"new": 240}
    assert not same(one.model.weights(), serving.weights())


@tasks
@learners
def test_two_updates_from_the_stored_state_are_one_bit_for_bit(learner, task):
    serving, fresh = model(task), examples(task, first=1000)
    state = learner.begin(serving, examples(task, 50, shift=0.0), rng=rng(1))
    whole = update(learner, serving, state, fresh)
    first = update(learner, serving, state, fresh.take(slice(0, 130)))
    second = update(learner, first.model, first.learner, fresh.take(slice(130, 240)), seed=99)
    assert same(second.model.weights(), whole.model.weights())
    assert same(second.learner, whole.learner)


@tasks
@learners
def test_the_network_holds_the_integers_of_the_state_exactly(learner, task):
    serving, fresh = model(task), examples(task, first=1000)
    found = update(learner, serving, {}, fresh)
    flat = np.concatenate(
        [
            np.concatenate([p.weight.detach(), p.bias.detach()[:, None]], 1).reshape(-1)
            for p in found.model.network.modules()
            if isinstance(p, nn.Linear)
        ]
    )
    np.testing.assert_array_equal(flat * 2.0**12, found.learner["weights"])
    assert all(a.dtype.kind in "iu" for name, a in found.learner.items() if name != "scales")


@tasks
@learners
def test_learning_on_helps_under_the_new_condition_in_any_order(learner, task):
    serving = trained(task)
    fresh, test = examples(task, 3000, first=1000), examples(task, 1000, first=90_000)
    backwards = fresh.take(np.arange(2999, -1, -1))
    for order in (fresh, backwards):
        found = update(learner, serving, {}, order)
        better = found.model.errors(test)["error"].mean()
        assert better < 0.6 * serving.errors(test)["error"].mean()


@tasks
@learners
def test_the_cost_is_what_was_measured(learner, task):
    serving, fresh = model(task), examples(task, first=1000)
    found = update(learner, serving, {}, fresh)
    cost, account = found.cost, learner.account(serving)
    assert isinstance(cost, EmbeddedCost)
    assert cost.memory_bytes == n_bytes(found.learner)
    assert cost.examples == 240
    assert cost.stored_examples == learner.exemplars.capacity
    assert cost.steps == 240 + (239 if learner.exemplars.capacity else 0)
    assert cost.ram_bytes == account.ram_bytes
    assert 0 < cost.macs_per_example == account.macs
    assert cost.seconds_per_example > 0
    assert cost.fraction_bits == 12


@learners
def test_memory_stays_as_it_is_on_a_long_stream(learner):
    serving, state, sizes = model(REGRESSION), {}, set()
    for part in range(6):
        found = update(learner, serving, state, examples(REGRESSION, first=1000 * part))
        serving, state = found.model, found.learner
        sizes.add((n_bytes(state), found.cost.ram_bytes))
    assert len(sizes) == 1


def test_a_state_of_another_network_is_loaded_anew_and_keeps_its_examples():
    learner = EmbeddedRLS(exemplars=KEPT)
    serving, fresh = model(REGRESSION), examples(REGRESSION, first=1000)
    state = update(learner, serving, {}, fresh).learner
    other = model(REGRESSION, seed=5)
    made = update(learner, other, state, fresh.take(slice(0, 100)))
    clean = update(learner, other, {}, fresh.take(slice(0, 100)))
    assert not same(made.learner, clean.learner)  # it replayed what was kept
    assert made.learner["counts"] == 340
    # Kept inputs were standardised by scales that no longer hold: they are dropped.
    scaled = Model(REGRESSION.fresh(other.network, fresh, 2), REGRESSION, other.architecture)
    assert update(learner, scaled, state, fresh).learner["counts"] == 240


def test_an_event_that_is_given_again_is_not_learned_again():
    learner, serving = EmbeddedSGD(recall=300), model(REGRESSION)
    fresh = examples(REGRESSION, first=1000)
    first = update(learner, serving, {}, fresh.take(slice(0, 120)))
    again = update(learner, first.model, first.learner, fresh.take(slice(0, 120)))
    assert again == Declined(
        "learning on the device, each event once, needs 100 labelled events of the new condition "
        "and has 0; it will have them when more labels arrive",
        early=True,
    )
    rest = update(learner, first.model, first.learner, fresh)
    assert rest.cost.examples == 120
    whole = update(learner, serving, {}, fresh)
    assert same(rest.model.weights(), whole.model.weights())
    # A version that has not learned them does not take them for learned.
    assert update(learner, serving, first.learner, fresh).cost.examples == 240
    assert len(rest.learner["recent"]) == len(first.learner["recent"]) == 300


# -- limits of the knobs ------------------------------------------------------------------------


@tasks
@pytest.mark.parametrize(
    "learner",
    [
        EmbeddedSGD(rate=0.0, exemplars=KEPT),
        EmbeddedLMS(rate=0.0),
        EmbeddedDFA(rate=0.0),
        EmbeddedSPSA(rate=0.0),
        EmbeddedRLS(rate=0.0, prior=0.0),
    ],
    ids=lambda u: type(u).__name__,
)
def test_a_rate_of_zero_freezes_every_bit(learner, task):
    serving = model(task)
    exact = {
        name: learner.numbers.floats(learner.numbers.integers(value)) if "layers.0" not in name
        and "target" not in name else value
        for name, value in serving.weights().items()
    }  # fmt: skip
    held = serving.with_weights(exact)
    found = update(learner, held, {}, examples(task, first=1000))
    assert same(found.model.weights(), held.weights())


@tasks
def test_the_last_layer_alone_is_least_mean_squares(task):
    serving, fresh = model(task), examples(task, first=1000)
    one = update(EmbeddedLMS(), serving, {}, fresh)
    other = update(EmbeddedSGD(last_layers=1), serving, {}, fresh)
    assert same(one.model.weights(), other.model.weights())
    first = "layers.1.weight"
    np.testing.assert_array_equal(
        one.model.weights()[first],
        EmbeddedLMS().numbers.floats(EmbeddedLMS().numbers.integers(serving.weights()[first])),
    )
    assert one.cost.ram_bytes < update(EmbeddedSGD(), serving, {}, fresh).cost.ram_bytes


def test_noise_learns_what_noise_there_is_and_never_moves_the_mean():
    serving, fresh = trained(REGRESSION), examples(REGRESSION, 6000, first=1000)
    learned = update(EmbeddedSGD(), serving, {}, fresh).model
    frozen = update(EmbeddedSGD(noise="frozen"), serving, {}, fresh).model
    test = examples(REGRESSION, 1000, first=90_000)
    said, kept = (m.predict(test.inputs)[0] for m in (learned, frozen))
    away = said.mean - test.targets["y"]
    inside = np.abs(away) < 1.645 * said.std
    assert 0.8 < inside.mean() < 0.99
    # Draws of the generator are the same, so the means are equal, not only alike.
    np.testing.assert_array_equal(said.mean, kept.mean)


def test_kept_examples_remember_the_old_condition():
    serving = trained(REGRESSION)
    old, fresh = examples(REGRESSION, 400, 0.0), examples(REGRESSION, 3000, 1.0, first=1000)
    ring = Exemplars(capacity=200, replays=2, keep="reservoir", bits=8)
    errors = []
    for memory in (Exemplars(), ring):
        learner = EmbeddedSGD(exemplars=memory)
        found = update(learner, serving, learner.begin(serving, old, rng=rng()), fresh)
        errors.append(found.model.errors(old)["error"].mean())
    assert errors[1] < errors[0]


# -- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "figure", "name"),
    [
        ("ram_bytes", "ram_bytes", "bytes of RAM"),
        ("macs_per_example", "macs_per_example", "multiply-accumulates per example"),
        ("stored_examples", "stored_examples", "stored examples"),
        ("memory_bytes", "memory_bytes", "bytes of learner memory"),
        ("fraction_bits", "fraction_bits", "fraction bits"),
    ],
)
def test_what_is_known_to_exceed_a_budget_is_not_started(limit, figure, name):
    learner, serving = EmbeddedSGD(exemplars=KEPT), model(REGRESSION)
    fresh = examples(REGRESSION, first=1000)
    free = update(learner, serving, {}, fresh)
    account = learner.account(serving)
    used = account.macs if limit == "macs_per_example" else getattr(free.cost, figure)
    exact = update(learner, serving, {}, fresh, budget=EmbeddedBudget(**{limit: used}))
    assert isinstance(exact, Candidate)
    tight = EmbeddedBudget(**{limit: used - 1})
    wanted = Declined(
        f"the update was not started: it would use {used:,.6g} {name} where the budget allows "
        f"{used - 1:,.6g}; in all {account}"
    )
    assert update(learner, serving, {}, fresh, budget=tight) == wanted
    assert update(replace(learner, device=tight), serving, {}, fresh) == wanted


def test_a_budget_too_small_for_one_example_is_refused_with_the_figures():
    answer = update(EmbeddedSGD(), model(REGRESSION), {}, examples(REGRESSION),
                    budget=EmbeddedBudget(ram_bytes=20))  # fmt: skip
    assert answer == Declined(
        "the update was not started: it would use 140 bytes of RAM where the budget allows 20; in "
        "all 140 bytes of RAM (weights 84, values 24, errors 20, random 12), 82 MACs per example"
    )


def test_time_over_the_budget_throws_the_update_away():
    for limit in ("seconds_per_example", "seconds"):
        answer = update(EmbeddedSGD(), model(REGRESSION), {}, examples(REGRESSION),
                        budget=EmbeddedBudget(**{limit: 0.0}))  # fmt: skip
        assert answer.because.startswith("the update was thrown away: it used ")


def test_the_budget_of_a_device_holds_any_updater_by_its_memory():
    budget = EmbeddedBudget(ram_bytes=1000)
    assert budget.exceeded_by(Cost(memory_bytes=1000)) is None
    assert budget.exceeded_by(Cost(memory_bytes=1001)) == (
        "it used 1,001 bytes of RAM where the budget allows 1,000"
    )
    with pytest.raises(ConfigError, match="ram_bytes must be 0 or more, got -1"):
        EmbeddedBudget(ram_bytes=-1)
    with pytest.raises(ConfigError, match="seconds_per_example must be 0 or more, got nan"):
        EmbeddedBudget(seconds_per_example=math.nan)


# -- bad input ----------------------------------------------------------------------------------


@tasks
@learners
def test_a_batch_of_one_and_a_constant_target(learner, task):
    one = replace(learner, min_events=1)
    found = update(one, model(task), {}, examples(task, 1))
    assert found.cost.examples == 1
    fresh = examples(task, 200)
    constant = Examples(fresh.ids, fresh.inputs, {"y": np.ones(200)}, fresh.times, fresh.conditions)
    found = update(one, model(task), {}, constant)
    assert all(np.isfinite(value).all() for value in found.model.weights().values())


@tasks
def test_nan_and_infinity_are_refused_by_name(task):
    fresh = examples(task)
    fresh.inputs["b"][7] = np.nan
    with pytest.raises(DataError, match="input 1 of event 7 is nan, which has no fixed-point"):
        update(EmbeddedSGD(), model(task), {}, fresh)
    fresh = examples(task)
    targets = {"y": np.where(np.arange(240) == 3, np.inf, fresh.targets["y"])}
    bad = Examples(fresh.ids, fresh.inputs, targets, fresh.times, fresh.conditions)
    with pytest.raises(DataError, match="the target 'y' of event 3 is inf; an event without"):
        update(EmbeddedSGD(), model(task), {}, bad)
    with pytest.raises(DataError, match=r"not finite \(nan\) at \(1,\)"):
        Format().integers(np.array([0.0, np.nan]))


def test_a_class_without_an_output_is_refused_and_one_never_seen_is_learned():
    fresh = examples(CLASSES)
    for wrong in (3, -1, 0.5):
        targets = {"y": np.where(np.arange(240) == 9, wrong, fresh.targets["y"])}
        bad = Examples(fresh.ids, fresh.inputs, targets, fresh.times, fresh.conditions)
        with pytest.raises(DataError, match=f"event 9 has class {wrong:g} and the network knows"):
            update(EmbeddedSGD(exemplars=KEPT), model(CLASSES), {}, bad)
    rare = Examples(fresh.ids, fresh.inputs, {"y": np.full(240, 2)}, fresh.times, fresh.conditions)
    found = update(EmbeddedSGD(rate=0.05), model(CLASSES), {}, rare)
    assert found.model.errors(rare)["error"].mean() < 0.05


def test_too_few_events_are_declined():
    answer = update(EmbeddedSGD(), model(REGRESSION), {}, examples(REGRESSION, 99))
    assert answer.early
    assert answer.because.startswith("learning on the device needs 100 labelled events")


def test_weights_beyond_the_numbers_are_declined_with_the_figures():
    serving = model(REGRESSION)
    with torch.no_grad():
        serving.network.layers[1].weight[0, 0] = 9.5
    assert update(EmbeddedSGD(), serving, {}, examples(REGRESSION)) == Declined(
        "1 of 42 weights lie outside +-8, up to 9.5: use fewer than 12 fraction bits, or a width "
        "of more than 16"
    )
    wide = EmbeddedSGD(numbers=Format(width=16, fraction=11))
    assert isinstance(update(wide, serving, {}, examples(REGRESSION)), Candidate)


class Doubled(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("network", "because"),
    [
        (Doubled(2, [4], 3), "does not say what its dense layers say"),
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), "the network has a Tanh"),
        (nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), "is made of Linear, Linear"),
        (nn.Sequential(nn.Linear(2, 3, bias=False)), "one of the network's dense layers has none"),
        (MLP(2, [4], 5), "the network has 5 outputs for 3 classes"),
    ],
)
def test_networks_that_no_device_can_hold_are_declined(network, because):
    serving = model(CLASSES, network)
    answer = update(EmbeddedSGD(), serving, {}, examples(CLASSES))
    assert isinstance(answer, Declined)
    assert because in answer.because
    assert EmbeddedSGD().begin(serving, examples(CLASSES), rng=rng()) == {}
    if "forward" not in answer.because:
        with pytest.raises(ConfigError, match=r"device|outputs"):
            EmbeddedSGD().account(serving)


def test_a_users_own_dense_network_is_held():
    own = nn.Sequential(Standardise(2), nn.Linear(2, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 1))
    serving = model(REGRESSION, WithNoise(own))
    found = update(EmbeddedSGD(), serving, {}, examples(REGRESSION, 2000, shift=0.0))
    test = examples(REGRESSION, first=9000, shift=0.0)
    assert found.model.errors(test)["error"].mean() < 0.3 * serving.errors(test)["error"].mean()
    assert isinstance(update(EmbeddedDFA(), model(CLASSES, nn.Linear(2, 3)), {}, examples(CLASSES)),
                      Candidate)  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_network_that_states_its_uncertainty_learns_or_says_why_not(name):
    if METHODS[name].kind == "calibrator":
        return
    network = METHODS[name].convert(MLP(2, [8]))
    serving = model(REGRESSION, network)
    fresh = examples(REGRESSION)
    found = update(EmbeddedSGD(), serving, {}, fresh)
    if name in ("gaussian", "beta-gaussian", "crps", "auxiliary", "laplace", "laplace-diagonal"):
        assert isinstance(found, Candidate)
        assert found.model.errors(fresh)["error"].mean() < serving.errors(fresh)["error"].mean()
    else:
        assert "a device holds plain dense layers" in found.because or "head" in found.because


def test_a_state_of_other_knobs_is_an_error_that_says_so():
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    state = update(EmbeddedSGD(exemplars=KEPT), serving, {}, fresh).learner
    with pytest.raises(DataError, match=r"kept_x are int8 \(30, 2\) and this strategy's int8 \(9"):
        update(EmbeddedSGD(exemplars=Exemplars(capacity=9)), serving, state, fresh)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Format(width=25), "a width of 25 bits cannot be used"),
        (lambda: Format(width=8, fraction=7), "7 fraction bits do not go with a width of 8"),
        (lambda: Format(rounding="up"), "no rounding 'up'"),
        (lambda: EmbeddedSGD(rate=1.5), "rate must lie between 0 and 1, got 1.5"),
        (lambda: EmbeddedSGD(rate=math.nan), "rate must lie between 0 and 1, got nan"),
        (lambda: EmbeddedSGD(rate=1e-6), "rate of 1e-06 rounds to 0 in steps of 2"),
        (lambda: EmbeddedSGD(loss="mse"), "no loss 'mse' on a device"),
        (lambda: EmbeddedSGD(noise="no"), "noise is learned or frozen"),
        (lambda: EmbeddedSGD(score=8.0), "score must lie above 0 and below 8"),
        (lambda: EmbeddedSGD(recall=-1), "recall must be 0 ids or more"),
        (lambda: EmbeddedSGD(min_events=0), "min_events must be 1 or more"),
        (lambda: EmbeddedSGD(last_layers=0), "last_layers must be 1 or more"),
        (lambda: EmbeddedDFA(feedback="none"), "feedback is random, sign or serving"),
        (lambda: EmbeddedSPSA(shrink=13), "shrink must lie between 0 and the 12 fraction bits"),
        (lambda: EmbeddedRLS(forgetting=1.1), "forgetting must lie between 0.5 and 1"),
        (lambda: EmbeddedRLS(covariance_bits=30), "covariance_bits must lie between 8 and 28"),
        (lambda: EmbeddedRLS(prior=128.0), "prior must be 0 or more and below 128"),
        (lambda: Exemplars(capacity=-1), "capacity must be 0 examples or more"),
        (lambda: Exemplars(replays=-1), "replays must be 0 or more"),
        (lambda: Exemplars(keep="all"), "exemplars cannot be kept by 'all'"),
        (lambda: Exemplars(bits=1), "exemplars of 1 bits cannot be kept"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(make, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        make()


def test_a_plan_that_cannot_be_is_refused():
    few = EmbeddedSGD(exemplars=Exemplars(capacity=2, keep="class-ring"))
    with pytest.raises(ConfigError, match="2 examples has no place for each of 3 classes"):
        few.account(model(CLASSES))
    narrow = EmbeddedSGD(numbers=Format(width=4, fraction=1), score=2.0)
    many = Classification(features=("a", "b"), classes=9)
    with pytest.raises(ConfigError, match="9 classes cannot be told apart by numbers of 4 bits"):
        narrow.account(model(many, MLP(2, [4], 9)))
    wide = EmbeddedRLS(numbers=Format(width=24))
    with pytest.raises(ConfigError, match="sums over 601 features of 24 bits need 64 bits"):
        wide.account(model(REGRESSION, MLP(2, [600])))
