"""Laws of EWC, online EWC, synaptic intelligence, MAS and LwF: limits, pulls, state, bad input."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import content_hash, n_bytes
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, count_macs, footprint
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import tensors
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.uncertainty.methods import FACTORIES
from stillfit.updaters.contract import Declined
from stillfit.updaters.references import FineTune
from stillfit.updaters.regularisation import EWC, MAS, LwF, OnlineEWC, SynapticIntelligence
from stillfit.updaters.regularisation.ewc import EARLIER, condition_names
from stillfit.updaters.regularisation.held import Holding, Well, stored, trainable, weights_of
from stillfit.updaters.regularisation.lwf import Distilling, gaussian, relative, softened

SHORT = Schedule(steps=25, batch=60, rate=0.01)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
ANCHORED = [EWC, OnlineEWC, SynapticIntelligence, MAS]
ALL = [*ANCHORED, LwF]
HUGE = 1e20

each = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
each_anchored = pytest.mark.parametrize("kind", ANCHORED, ids=lambda kind: kind.__name__)
each_task = pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=240, first=0, condition="new", centre=0.0, shift=0.0):
    drawn = np.random.default_rng([7, first])
    x = drawn.normal(size=(n, 2)) + centre
    score = np.sin(x[:, 0]) + shift + 0.1 * drawn.normal(size=n)
    y = np.digitize(score, [-0.5, 0.5]) if isinstance(task, Classification) else score
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.full(n, float(first)), np.full(n, condition))


def model(task, network=None, seed=0):
    torch.manual_seed(seed)
    network = network or MLP(2, [8], 3 if isinstance(task, Classification) else 2)
    return Model(network.eval(), task, Architecture("mlp"))


class Kept:
    """A memory of the events that it was given."""

    def __init__(self, *parts):
        self.held = Examples.join(list(parts))

    def all(self):
        return self.held

    def window(self, since):
        return self.held.take(self.held.times >= since)


def world(task, network=None):
    """Serving model, events of the old condition and of the new one."""
    old = examples(task, condition="old")
    fresh = examples(task, first=1000, centre=2.0, shift=0.5)
    return trained(task) if network is None else fitted(model(task, network), old), old, fresh


@functools.cache
def trained(task):
    """Trained once for all tests: an update must not change it."""
    torch.manual_seed(0)
    return fitted(model(task), examples(task, condition="old"))


def fitted(shown, old):
    fit(shown, Prepared.of(shown, old), Schedule(steps=40, batch=60, rate=0.03), rng(9))
    return shown


def update(updater, serving, learner, fresh, kept=None, seed=3, budget=None):
    return updater.update(
        serving, learner, fresh, kept or Kept(), budget=budget or Budget(), rng=rng(seed)
    )


def same(one, other):
    assert set(one) == set(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def distance(one, other):
    first, last = weights_of(one.network), weights_of(other.network)
    return max(float(np.abs(first[name] - last[name]).max()) for name in first)


# -- limits of the penalty -----------------------------------------------------------------------


class Dropping(MLP):
    """Draws numbers of its own while it trains."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


@each_task
@each
def test_without_a_penalty_it_is_fine_tuning_bit_for_bit(kind, task):
    serving, old, fresh = world(task, Dropping(2, [8], 2 if task is REGRESSION else 3))
    updater = kind(penalty=0.0, schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    one = update(updater, serving, learner, fresh, Kept(old, fresh))
    other = update(FineTune(schedule=SHORT), serving, {}, fresh)
    assert same(one.model.weights(), other.model.weights())


@each
def test_without_a_state_it_is_fine_tuning_and_then_holds_what_was_learned(kind):
    serving, _, fresh = world(REGRESSION)
    if kind is LwF:
        return  # the serving network is all that it needs
    updater = kind(penalty=100.0, schedule=SHORT)
    one = update(updater, serving, {}, fresh)
    other = update(FineTune(schedule=SHORT), serving, {}, fresh)
    assert same(one.model.weights(), other.model.weights())
    assert updater.well(one.learner) is not None
    assert updater.well({}) is None


@each_task
@each_anchored
def test_with_a_huge_penalty_the_serving_weights_stay_bit_for_bit(kind, task):
    serving, old, fresh = world(task)
    updater = kind(penalty=HUGE, schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    once = update(updater, serving, learner, fresh)
    assert once.cost.steps == SHORT.steps
    assert same(once.model.weights(), serving.weights())
    # ... and after several conditions, whose anchors are then all the same.
    other = examples(task, first=5000, centre=-2.0, condition="third")
    twice = update(updater, once.model, once.learner, other)
    assert same(twice.model.weights(), serving.weights())


@each_anchored
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_huge_penalty_freezes_under_every_optimiser(kind, optimiser):
    serving, old, fresh = world(REGRESSION)
    updater = kind(penalty=HUGE, schedule=replace(SHORT, optimiser=optimiser, rate=0.003))
    learner = updater.begin(serving, old, rng=rng(1))
    assert same(update(updater, serving, learner, fresh).model.weights(), serving.weights())


@each_anchored
def test_the_published_pull_shakes_about_the_anchor_by_a_step_where_the_implicit_one_freezes(kind):
    serving, old, fresh = world(REGRESSION)
    updater = kind(penalty=HUGE, schedule=SHORT, pull="gradient")
    learner = updater.begin(serving, old, rng=rng(1))
    away = distance(update(updater, serving, learner, fresh).model, serving)
    assert 0 < away < 3 * SHORT.rate


@each_task
def test_with_a_huge_penalty_distillation_keeps_the_answers(task):
    serving, _, fresh = world(task)
    free = update(LwF(penalty=0.0, schedule=SHORT), serving, {}, fresh).model
    held = update(LwF(penalty=HUGE, schedule=SHORT), serving, {}, fresh).model
    was, now, wild = (shown.predict(fresh.inputs)[0] for shown in (serving, held, free))
    if task is CLASSES:
        was, now, wild = (p.probabilities for p in (was, now, wild))
    else:
        was, now, wild = (p.mean for p in (was, now, wild))
    assert np.abs(now - was).mean() < 0.15 * np.abs(wild - was).mean()


@each_task
@each
def test_more_penalty_moves_less(kind, task):
    """In the answers on the fresh events, which both weights and distillation hold."""
    serving, old, fresh = world(task)
    away = []
    for penalty in (0.0, 1e1, 1e4):
        updater = kind(penalty=penalty, schedule=replace(SHORT, steps=40))
        learner = updater.begin(serving, old, rng=rng(1))
        found = update(updater, serving, learner, fresh).model
        guide = Distilling(serving, 1.0, 2.0)
        inputs = tensors(Prepared.of(serving, fresh).inputs)
        away.append(float(guide.away(found.network, inputs).detach()))
    assert away[0] > away[1] > away[2]


@pytest.fixture(scope="module")
def regions():
    """A network that learned a region of a function, events of it and of another region."""
    torch.manual_seed(0)
    old = examples(REGRESSION, n=400, condition="old", centre=-1.2)
    fresh = examples(REGRESSION, n=400, first=1000, centre=1.2)
    serving = model(REGRESSION, MLP(2, [24]))
    serving.network.set_scales(np.array([[-1.5, -1.5], [1.5, 1.5]]), np.array([-1.0, 1.0]))
    fit(serving, Prepared.of(serving, old), Schedule(steps=400, batch=100, rate=0.01), rng(9))
    schedule = Schedule(steps=100, batch=100, rate=0.01)
    naive = update(FineTune(schedule=schedule), serving, {}, fresh).model
    return serving, old, fresh, schedule, naive


@each_anchored
def test_it_forgets_less_than_fine_tuning(kind, regions):
    """Old and new condition are regions of one function, so that nothing contradicts."""
    serving, old, fresh, schedule, naive = regions
    penalty = {EWC: 1, OnlineEWC: 1, SynapticIntelligence: 10, MAS: 5}[kind]
    updater = kind(penalty=penalty, schedule=schedule)
    found = update(updater, serving, updater.begin(serving, old, rng=rng(1)), fresh).model
    test_old = examples(REGRESSION, n=300, first=70_000, centre=-1.2)
    test_new = examples(REGRESSION, n=300, first=80_000, centre=1.2)
    before, after, lost = (
        shown.errors(test_old)["error"].mean() for shown in (serving, found, naive)
    )
    assert lost > 2 * before
    assert after - before < 0.6 * (lost - before)
    assert found.errors(test_new)["error"].mean() < 0.75 * serving.errors(test_new)["error"].mean()


def test_distillation_holds_the_answers_that_fresh_events_reach(regions):
    """It knows fresh inputs alone: there it stays nearer to the old answers than fine-tuning."""
    serving, _, fresh, schedule, naive = regions
    shifted = replace(fresh, targets={"y": fresh.targets["y"] + 1.0})
    naive = update(FineTune(schedule=schedule), serving, {}, shifted).model
    away = []
    for penalty in (0.0, 1.0, 10.0):
        updater = LwF(penalty=penalty, schedule=schedule)
        found = update(updater, serving, {}, shifted).model
        means = [shown.predict(fresh.inputs)[0].mean for shown in (found, serving)]
        away.append(np.abs(means[0] - means[1]).mean())
    assert away[0] > 1.2 * away[1] > 1.2 * 1.2 * away[2]
    assert same(naive.weights(), update(LwF(penalty=0.0, schedule=schedule), serving, {},
                shifted).model.weights())  # fmt: skip


# -- the pull ------------------------------------------------------------------------------------


@each_anchored
def test_after_a_second_condition_the_penalty_is_not_zero_and_pulls_towards_the_anchor(kind):
    serving, old, fresh = world(REGRESSION)
    updater = kind(penalty=2.0, schedule=SHORT)
    first = update(updater, serving, {}, old)
    well = updater.well(first.learner)
    assert well.value(first.model.network) == 0
    second = update(updater, first.model, first.learner, fresh)
    assert well.value(second.model.network) > 0
    # The gradient of the penalty alone, where the second condition left the network.
    network = second.model.network
    guide = Holding(network, well, "gradient")
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    guide.before(network)
    importances = stored(first.learner, "importance")
    for name, parameter in network.named_parameters():
        importance = importances[name][0] if kind is EWC else importances[name]
        away = parameter.detach().numpy() - first.model.weights()[name]
        pull = parameter.grad.numpy()
        known = (importance > 0) & (np.abs(away) > 1e-6)
        assert known.any()
        assert np.all(np.sign(pull[known]) == np.sign(away[known]))
        floor = 1e-3 * np.concatenate([v.ravel() for v in importances.values()]).mean()
        expected = 2.0 * np.maximum(importance, floor) * away
        np.testing.assert_allclose(pull, expected, rtol=1e-3, atol=1e-7)


def test_of_two_parameters_as_far_away_the_more_important_is_pulled_more():
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 1.0]]))
    well = Well(
        {"weight": np.array([[1.0, 9.0]], np.float32)}, {"weight": np.zeros((1, 2), np.float32)}
    )
    assert well.value(network) == pytest.approx(5.0)
    found = {}
    for pull in ("gradient", "implicit"):
        twin = nn.Linear(2, 1, bias=False)
        twin.load_state_dict(network.state_dict())
        optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
        guide = Holding(twin, well, pull)
        guide.begin(twin, optimiser)
        twin.weight.grad = torch.zeros(1, 2)
        guide.before(twin)
        optimiser.step()
        guide.after(twin)
        found[pull] = twin.weight.detach().numpy()[0]
    np.testing.assert_allclose(found["gradient"], [1 - 0.1, 1 - 0.9], rtol=1e-6)
    # Backward in time: theta = theta / (1 + rate w).
    np.testing.assert_allclose(found["implicit"], [1 / 1.1, 1 / 1.9], rtol=1e-6)


def _towards(target, curvature, well, pull, optimiser, steps=1000):
    """Minimise curvature / 2 (theta - target)^2 inside a well; where theta comes to rest."""
    network = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(network.weight)
    guide = Holding(network, well, pull)
    if optimiser == "adam":
        steps_by = torch.optim.Adam(network.parameters(), lr=0.01)
    else:
        steps_by = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    guide.begin(network, steps_by)
    for step in range(steps):
        for group in steps_by.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = 0.5 * (curvature * (network.weight[:, 0] - target) ** 2).sum()
        steps_by.zero_grad()
        loss.backward()
        guide.before(network)
        steps_by.step()
        guide.after(network)
    return network.weight.detach().numpy()[:, 0]


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("pull", ["implicit", "gradient"])
def test_it_rests_where_the_loss_and_the_well_balance(pull, optimiser):
    """The minimum of c/2 (theta - t)^2 + w/2 (theta - a)^2 is (c t + w a) / (c + w)."""
    target, curvature = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 3.0])
    weight, anchor = np.array([[2.0], [0.5]]), np.array([[0.3], [0.1]])
    well = Well({"weight": weight.astype(np.float32)}, {"weight": anchor.astype(np.float32)})
    found = _towards(target, curvature, well, pull, optimiser)
    c, t = curvature.numpy(), target.numpy()
    expected = (c * t + weight[:, 0] * anchor[:, 0]) / (c + weight[:, 0])
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-3)


def test_distances_between_answers_are_their_closed_forms():
    z, other = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    p, q = torch.softmax(z[0, 0] / 2, 0), torch.softmax(other[0, 0] / 2, 0)
    expected = 4 * float((p * (p / q).log()).sum())
    assert float(softened(z, other, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(softened(z, z + 3.0, 2.0)) == pytest.approx(0, abs=1e-6)
    likelihood = MLP(2, [4]).likelihood
    one = torch.tensor([[[1.0, math.log(4.0)]]])
    two = torch.tensor([[[3.0, math.log(9.0)]]])
    expected = math.log(3 / 2) + (4 + 4) / (2 * 9) - 0.5
    assert float(gaussian(likelihood, one, two)) == pytest.approx(expected, rel=1e-5)
    assert float(gaussian(likelihood, one, one)) == 0
    old = torch.tensor([[[0.0, 5.0], [2.0, 5.0]]])
    # The first column varies by 1, the second is constant and compared in its own unit.
    assert float(relative(old, old + torch.tensor([1.0, 3.0]))) == pytest.approx(1 + 9)


def test_distillation_pulls_answers_back():
    serving, _, fresh = world(CLASSES)
    away = model(CLASSES, seed=5)
    inputs = tensors(Prepared.of(serving, fresh).inputs)
    guide = Distilling(serving, 3.0, 2.0)
    before = guide.penalty(away.network, inputs)
    before.backward()
    with torch.no_grad():
        first = float(before)
        assert first == pytest.approx(3 * float(guide.away(away.network, inputs)))
        assert first > 0.1
        for parameter in away.network.parameters():
            parameter -= 0.02 * parameter.grad
        assert float(guide.penalty(away.network, inputs)) < first
        assert float(guide.penalty(serving.network, inputs)) == pytest.approx(0, abs=1e-6)


# -- synaptic intelligence -----------------------------------------------------------------------


def _path(serving, data, schedule, well=None):
    """Sum of the recorded path, and the fall of the task's loss over all of the data."""
    shown = serving.copy()
    guide = Holding(shown.network, well, record=True)
    inputs, targets = tensors(data.inputs), tensors(data.targets)
    before = float(shown.task.loss(shown.network, inputs, targets).detach())
    fit(shown, data, schedule, rng(2), guide=guide)
    after = float(shown.task.loss(shown.network, inputs, targets).detach())
    return sum(float(part.sum()) for part in guide.path.values()), before - after


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@each_task
def test_in_small_steps_the_path_sums_to_the_fall_of_the_tasks_loss(task, held):
    """A line integral of a gradient field, also where a well pulls the parameters elsewhere."""
    serving = model(task)
    data = Prepared.of(serving, examples(task, n=100))
    schedule = Schedule(steps=200, batch=100, rate=0.001, cosine=False, clip=1e9)
    well = None
    if held:
        anchors = weights_of(model(task, seed=8).network)
        well = Well({name: np.full_like(part, 0.3) for name, part in anchors.items()}, anchors)
    total, fall = _path(serving, data, schedule, well)
    assert abs(fall) > 0.02
    assert total == pytest.approx(fall, rel=0.05)


def test_its_importance_is_the_path_over_the_squared_move_and_xi():
    serving, _, fresh = world(REGRESSION)
    shown = serving.copy()
    guide = Holding(shown.network, None, record=True)
    generator = rng(3)
    generator.integers(2**62)  # of the meter
    fit(shown, Prepared.of(shown, fresh), SHORT, generator, guide=guide)
    updater = SynapticIntelligence(xi=0.02, schedule=SHORT)
    found = update(updater, serving, {}, fresh)
    assert same(found.model.weights(), shown.weights())
    for name, omega in guide.path.items():
        squared = (shown.weights()[name] - serving.weights()[name]) ** 2
        expected = np.maximum(omega.numpy(), 0) / (squared + 0.02)
        np.testing.assert_allclose(
            found.learner[f"importance/{name}"], expected, rtol=1e-4, atol=1e-9
        )


def test_more_xi_means_less_importance():
    serving, _, fresh = world(REGRESSION)
    totals = [
        sum(
            float(part.sum())
            for part in stored(
                update(SynapticIntelligence(xi=xi, schedule=SHORT), serving, {}, fresh).learner,
                "importance",
            ).values()
        )
        for xi in (0.001, 0.1, 10.0)
    ]
    assert totals[0] > 2 * totals[1] > 20 * totals[2]


# -- state ---------------------------------------------------------------------------------------


@each_task
@each
def test_an_update_changes_nothing_that_it_was_given_and_is_repeatable(kind, task):
    serving, old, fresh = world(task)
    updater = kind(schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    kept = Kept(old, fresh)

    def fingerprint():
        return (
            content_hash(serving.weights()),
            content_hash(dict(learner)),
            content_hash(fresh.to_arrays()),
        )

    before, state = fingerprint(), torch.random.get_rng_state()
    one = update(updater, serving, learner, fresh, kept)
    assert fingerprint() == before
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in serving.network.parameters())
    assert not serving.network.training
    assert same(learner, updater.begin(serving, old, rng=rng(1)))
    torch.manual_seed(99)
    other = update(updater, serving, learner, fresh, kept)
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    third = update(updater, serving, learner, fresh, kept, seed=4)
    assert not same(one.model.weights(), third.model.weights())


@each
def test_it_resumes_from_stored_state_bit_for_bit(kind, tmp_path):
    serving, old, fresh = world(CLASSES)
    third = examples(CLASSES, first=4000, centre=-2.0, condition="third")
    updater = kind(schedule=SHORT, penalty=5.0)
    first = update(updater, serving, updater.begin(serving, old, rng=rng(1)), fresh)
    straight = update(updater, first.model, first.learner, third, seed=6)
    np.savez(tmp_path / "learner.npz", **first.learner)
    with np.load(tmp_path / "learner.npz", allow_pickle=False) as found:
        learner = {name: found[name] for name in found.files}
    again = serving.with_weights(first.model.weights())
    resumed = update(updater, again, learner, third, seed=6)
    assert same(straight.model.weights(), resumed.model.weights())
    assert same(straight.learner, resumed.learner)


@each
def test_the_state_is_counted_and_stays_as_large_over_many_updates(kind):
    serving, old, _ = world(REGRESSION)
    updater = kind(schedule=replace(SHORT, steps=3))
    shown, learner = serving, updater.begin(serving, old, rng=rng(1))
    sizes = []
    for round_ in range(4):
        more = examples(REGRESSION, first=2000 + 300 * round_, condition="new")
        found = update(updater, shown, learner, more)
        shown, learner = found.model, found.learner
        assert found.cost.memory_bytes == n_bytes(learner)
        sizes.append(n_bytes(learner))
    assert len(set(sizes)) == 1
    parameters = sum(p.numel() for p in serving.network.parameters())
    names = len(learner.get("conditions", []))
    copies = {EWC: 4, LwF: 0}.get(kind, 2)  # two conditions, or one for all
    assert sizes[0] == copies * 4 * parameters + names


@each
def test_inference_costs_what_it_did(kind):
    serving, old, fresh = world(REGRESSION)
    updater = kind(schedule=SHORT)
    found = update(updater, serving, updater.begin(serving, old, rng=rng(1)), fresh)
    assert found.model.architecture == serving.architecture
    assert type(found.model.network) is type(serving.network)
    assert found.model.weights().keys() == serving.weights().keys()
    assert count_macs(found.model.network) == count_macs(serving.network)
    assert footprint(found.model.network) == footprint(serving.network)
    assert not any(part._forward_hooks for part in found.model.network.modules())


@each
def test_an_update_beyond_its_budget_is_declined_with_the_figures(kind):
    serving, old, fresh = world(REGRESSION)
    updater = kind(schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    used = update(updater, serving, learner, fresh).cost.memory_bytes
    exact = update(updater, serving, learner, fresh, budget=Budget(memory_bytes=used))
    assert isinstance(exact, Candidate)
    if used:
        answer = update(updater, serving, learner, fresh, budget=Budget(memory_bytes=used - 1))
        assert answer == Declined(
            f"the update was thrown away: it used {used:,.6g} bytes of learner memory where the "
            f"budget allows {used - 1:,.6g}"
        )
    answer = update(updater, serving, learner, fresh, budget=Budget(seconds=0.0))
    assert "seconds where the budget allows 0" in answer.because


def test_conditions_have_terms_of_their_own_and_a_repeated_one_replaces_its_own():
    serving, old, fresh = world(REGRESSION)
    updater = EWC(schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    assert condition_names(learner) == ["old"]
    second = update(updater, serving, learner, fresh)
    assert condition_names(second.learner) == ["old", "new"]
    again = update(updater, second.model, second.learner, examples(REGRESSION, first=3000,
                   condition="old"))  # fmt: skip
    assert condition_names(again.learner) == ["new", "old"]
    name = "importance/layers.1.weight"
    np.testing.assert_array_equal(again.learner[name][0], second.learner[name][1])
    assert not np.array_equal(again.learner[name][1], second.learner[name][0])
    anchors = again.learner["anchor/layers.1.weight"]
    np.testing.assert_array_equal(anchors[1], again.model.weights()["layers.1.weight"])


def test_the_terms_of_several_conditions_add_up_to_one_well():
    serving, old, fresh = world(REGRESSION)
    updater = EWC(schedule=SHORT, penalty=3.0, floor=0.0)
    first = update(updater, serving, updater.begin(serving, old, rng=rng(1)), fresh)
    learner, shown = first.learner, model(REGRESSION, seed=4)
    well = updater.well(learner)

    def apart(network):
        return sum(
            Well(
                {n: 3 * rows[k] for n, rows in stored(learner, "importance").items()},
                {n: rows[k] for n, rows in stored(learner, "anchor").items()},
            ).value(network)
            for k in range(2)
        )

    # One well but for a constant: the difference between two networks is the same.
    other = model(REGRESSION, seed=5)
    difference = well.value(shown.network) - well.value(other.network)
    assert difference == pytest.approx(apart(shown.network) - apart(other.network), rel=1e-4)


def test_more_conditions_than_are_kept_apart_become_one_and_pull_as_before():
    serving, old, _ = world(REGRESSION)
    found = {}
    for conditions in (2, 10):
        updater = EWC(schedule=SHORT, conditions=conditions, floor=0.0, penalty=5.0)
        shown, learner = serving, updater.begin(serving, old, rng=rng(1))
        for round_ in range(3):
            more = examples(REGRESSION, first=2000 + 300 * round_, condition=f"c{round_}")
            step = update(updater, shown, learner, more, seed=round_)
            shown, learner = step.model, step.learner
        found[conditions] = updater, learner
    assert condition_names(found[2][1]) == [EARLIER, "c2"]
    assert condition_names(found[10][1]) == ["old", "c0", "c1", "c2"]
    wells = [updater.well(learner) for updater, learner in found.values()]
    shown, other = model(REGRESSION, seed=4), model(REGRESSION, seed=5)
    one, two = (well.value(shown.network) - well.value(other.network) for well in wells)
    assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize("kind", [OnlineEWC, SynapticIntelligence, MAS])
def test_gamma_is_the_share_of_old_importance_that_stays(kind):
    serving, old, fresh = world(REGRESSION)
    found = {}
    for gamma in (0.0, 0.25, 1.0):
        updater = kind(schedule=SHORT, gamma=gamma, penalty=1e-6)
        learner = kind(schedule=SHORT, penalty=1e-6).begin(serving, old, rng=rng(1))
        found[gamma] = stored(update(updater, serving, learner, fresh).learner, "importance")
        before = stored(learner, "importance")
    for name, new in found[0.0].items():
        for gamma in (0.25, 1.0):
            np.testing.assert_allclose(
                found[gamma][name], new + gamma * before[name], rtol=1e-4, atol=1e-7
            )


@each_anchored
def test_where_another_network_serves_by_now_it_begins_anew_from_what_is_kept(kind):
    """A retrained or redeployed network must not be dragged to the anchors of the last one."""
    serving, old, fresh = world(REGRESSION)
    updater = kind(schedule=SHORT, penalty=HUGE)
    learner = updater.begin(serving, old, rng=rng(1))
    retrained = model(REGRESSION, seed=6)
    found = update(updater, retrained, learner, fresh, Kept(old, fresh))
    assert same(found.model.weights(), retrained.weights())
    # With nothing kept, nothing is known of it: fine-tuning.
    free = update(updater, retrained, learner, fresh, Kept(fresh))
    tuned = update(FineTune(schedule=SHORT), retrained, {}, fresh)
    assert same(free.model.weights(), tuned.model.weights())


@each_anchored
def test_a_state_of_another_network_is_an_error_that_says_so(kind):
    serving, old, fresh = world(REGRESSION)
    updater = kind(schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    with pytest.raises(
        ShapeError,
        match=r"the anchor of 'layers.1.weight' has shape \(8, 2\) and the parameter \(9, 2\); was "
        "the learner's state stored with another network",
    ):
        update(updater, model(REGRESSION, MLP(2, [9])), learner, fresh)
    with pytest.raises(ShapeError, match=r"and the network's parameters differ in layers.5.bias"):
        update(updater, model(REGRESSION, MLP(2, [8, 8])), learner, fresh)


# -- any network, any task -----------------------------------------------------------------------

TINY_STEPS = Schedule(steps=4, batch=40, rate=0.01)
CHEAP = {"auxiliary": {"folds": 0, "steps": 5}, "mc-dropout": {"samples": 4}}
WRAPPED = [
    *[("deep-ensemble", kind) for kind in ALL],
    *[(name, kind) for name in ("mc-dropout", "bayesian") for kind in (EWC, MAS, LwF)],
    *[(name, EWC) for name in ("quantiles", "evidential", "auxiliary", "laplace")],
    *[(name, LwF) for name in ("moments", "quantiles", "evidential", "laplace")],
    *[(name, MAS) for name in ("moments", "auxiliary")],
    ("laplace", SynapticIntelligence),
]


@pytest.mark.parametrize(
    ("name", "kind"), WRAPPED, ids=lambda part: part if isinstance(part, str) else part.__name__
)
def test_it_works_on_top_of_networks_that_state_their_uncertainty(name, kind):
    old = examples(REGRESSION, n=40, condition="old")
    fresh = examples(REGRESSION, n=40, first=1000, centre=1.0)
    plain = FACTORIES[name](network=MLP(2, [6]), **CHEAP.get(name, {}))
    serving = model(REGRESSION, uncertain.fresh(REGRESSION, plain, old, 0))
    updater = kind(schedule=TINY_STEPS, min_events=20)
    learner = updater.begin(serving, old, rng=rng(1))
    found = update(updater, serving, learner, fresh)
    assert isinstance(found, Candidate)
    assert found.cost.steps == TINY_STEPS.steps
    assert distance(found.model, serving) > 0
    assert np.all(np.isfinite(found.model.predict(fresh.inputs)[0].std))
    for part in stored(found.learner, "importance").values():
        assert np.all(np.isfinite(part))
    if kind is not LwF:
        frozen = replace(updater, penalty=1e20)
        held = update(frozen, serving, learner, fresh)
        assert distance(held.model, serving) == 0


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(24, nominal(), library=load(), seed=5)


@each
def test_it_works_on_a_vertex_network(kind, vertices):
    serving = Model(E2E().eval(), VertexTask(), Architecture("e2e"))
    old, fresh = vertices.take(slice(0, 12)), vertices.take(slice(12, 24))
    knobs = {"fisher_events": 6} if kind in (EWC, OnlineEWC) else {}
    if kind is MAS:
        knobs = {"events": 6}
    updater = kind(schedule=replace(TINY_STEPS, batch=12), min_events=5, **knobs)
    learner = updater.begin(serving, old, rng=rng(1))
    found = update(updater, serving, learner, fresh)
    assert found.cost.steps == 4
    assert distance(found.model, serving) > 0
    if kind is not LwF:
        assert sum(np.any(part > 0) for part in stored(learner, "importance").values()) > 8
        held = update(replace(updater, penalty=1e20), serving, learner, fresh)
        assert distance(held.model, serving) == 0


# -- bad input -----------------------------------------------------------------------------------


@each_task
@each
def test_a_batch_of_one_event_is_learned_from(kind, task):
    serving, old, fresh = world(task)
    updater = kind(schedule=replace(SHORT, batch=1), min_events=1)
    for begun in (updater.begin(serving, old.take(slice(0, 1)), rng=rng(1)), {}):
        found = update(updater, serving, begun, fresh.take(slice(0, 1)))
        assert found.cost.steps == SHORT.steps
        assert all(np.all(np.isfinite(v)) for v in found.model.weights().values())
        for part in stored(found.learner, "importance").values():
            assert np.all(np.isfinite(part))


@each
def test_no_events_begin_with_no_state(kind):
    serving, old, _ = world(REGRESSION)
    assert kind().begin(serving, old.take(slice(0, 0)), rng=rng()) == {}


@each
def test_one_class_or_a_constant_target_is_learned_from(kind):
    for task, value in ((CLASSES, 1), (REGRESSION, 0.7)):
        serving, old, fresh = world(task)
        flat = replace(fresh, targets={"y": np.full_like(fresh.targets["y"], value)})
        updater = kind(schedule=SHORT)
        found = update(updater, serving, updater.begin(serving, old, rng=rng(1)), flat)
        assert found.cost.steps == SHORT.steps
        assert all(np.all(np.isfinite(v)) for v in found.model.weights().values())


@each
def test_a_class_that_the_network_never_had_is_an_error(kind):
    serving, old, fresh = world(CLASSES)
    updater = kind(schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    strange = replace(fresh, targets={"y": np.full(len(fresh), 7)})
    with pytest.raises(DataError, match="class 7 and the network has outputs for 0 to 2"):
        update(updater, serving, learner, strange)


@each
@pytest.mark.parametrize("bad", [np.nan, 1e300])
def test_a_diverging_update_has_finite_weights_and_leaves_the_state(kind, bad):
    serving, old, fresh = world(REGRESSION)
    updater = kind(schedule=SHORT)
    learner = updater.begin(serving, old, rng=rng(1))
    poisoned = replace(fresh, targets={"y": np.full(len(fresh), bad)})
    with np.errstate(all="ignore"):
        found = update(updater, serving, learner, poisoned)
    assert found.cost.steps == 0
    assert same(found.model.weights(), serving.weights())
    assert same(found.learner, learner)


@pytest.mark.parametrize("kind", [EWC, OnlineEWC])
def test_a_state_that_begins_with_nan_is_an_error(kind):
    serving, old, _ = world(REGRESSION)
    poisoned = replace(old, targets={"y": np.full(len(old), np.nan)})
    updater = kind(schedule=SHORT, fisher="empirical")
    with pytest.raises(DataError, match=r"the importance of .* is not finite on 240 events"):
        updater.begin(serving, poisoned, rng=rng())


@each
def test_parameters_without_a_gradient_stay(kind):
    network = MLP(2, [8], 3)
    network.spare = nn.Linear(3, 3)
    network.layers[1].bias.requires_grad_(False)
    serving, old, fresh = world(CLASSES, network)
    for pull in ("implicit", "gradient"):
        updater = kind(schedule=SHORT, **({} if kind is LwF else {"pull": pull}))
        learner = updater.begin(serving, old, rng=rng(1))
        assert not any("layers.1.bias" in name for name in learner)
        found = update(updater, serving, learner, fresh)
        before, after = serving.weights(), found.model.weights()
        for name in ("spare.weight", "spare.bias", "layers.1.bias"):
            np.testing.assert_array_equal(before[name], after[name])
        assert not np.array_equal(before["layers.1.weight"], after["layers.1.weight"])


@each
def test_too_few_events_are_declined_with_the_figures(kind):
    serving, _, fresh = world(REGRESSION)
    words = {
        EWC: "elastic weight consolidation",
        OnlineEWC: "online elastic weight consolidation",
        SynapticIntelligence: "synaptic intelligence",
        MAS: "memory aware synapses",
        LwF: "learning without forgetting",
    }[kind]
    answer = update(kind(min_events=57), serving, {}, fresh.take(slice(0, 56)))
    assert answer == Declined(
        f"{words} needs 57 labelled events of the new condition and has 56; it will have them "
        "when more labels arrive",
        early=True,
    )


def test_no_steps_give_the_serving_weights():
    serving, old, fresh = world(REGRESSION)
    for kind in ALL:
        updater = kind(schedule=Schedule(steps=0))
        found = update(updater, serving, updater.begin(serving, old, rng=rng(1)), fresh)
        assert same(found.model.weights(), serving.weights())


@pytest.mark.parametrize(
    ("kind", "knobs", "text"),
    [
        (EWC, {"penalty": -1.0}, r"penalty of EWC must be 0 or more and finite, got -1.0; 0 is"),
        (MAS, {"penalty": math.inf}, r"penalty of MAS must be 0 or more and finite, got inf"),
        (MAS, {"floor": -0.1}, r"floor of MAS must be 0 or more and finite, got -0.1; it is a sh"),
        (EWC, {"min_events": 0}, r"min_events of EWC must be 1 or more and finite, got 0; an upd"),
        (EWC, {"pull": "soft"}, r"pull must be one of implicit, gradient, got 'soft'; implicit is"),
        (EWC, {"fisher": "exact"}, r"fisher must be one of true, empirical, got 'exact'; true dr"),
        (EWC, {"fisher_events": 0}, r"fisher_events of EWC must be 1 or more and finite, got 0; "),
        (EWC, {"conditions": 1}, r"conditions of EWC must be 2 or more and finite, got 1; the old"),
        (OnlineEWC, {"gamma": 1.5}, r"gamma of OnlineEWC must lie between 0 \(the last update alo"),
        (MAS, {"gamma": -0.5}, r"gamma of MAS must lie between 0 .* and 1 \(all alike\), got -0.5"),
        (MAS, {"events": 0}, r"events of MAS must be 1 or more and finite, got 0; the importance"),
        (SynapticIntelligence, {"xi": 0.0}, r"xi must be positive and finite, got 0.0; it keeps p"),
        (SynapticIntelligence, {"gamma": 2.0}, r"gamma of SynapticIntelligence must lie between"),
        (LwF, {"penalty": math.nan}, r"penalty of LwF must be 0 or more and finite, got nan; 0 is"),
        (LwF, {"temperature": 0.0}, r"temperature must be positive and finite, got 0.0; 1 leaves"),
        (LwF, {"min_events": 0}, r"min_events of LwF must be 1 or more and finite, got 0; an upd"),
    ],
)  # fmt: skip
def test_a_knob_out_of_reach_is_refused_with_its_value(kind, knobs, text):
    with pytest.raises(ConfigError, match=text):
        kind(**knobs)


def test_the_package_names_what_it_offers():
    from stillfit.updaters import regularisation

    assert regularisation.__all__ == ["EWC", "MAS", "LwF", "OnlineEWC", "SynapticIntelligence"]
    assert trainable(MLP(2, [3])).keys() == dict(MLP(2, [3]).named_parameters()).keys()
