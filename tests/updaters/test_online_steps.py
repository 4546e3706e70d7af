"""Online gradient steps: the arithmetic of a plain loop, each event once, replay in its turn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged, content_hash, n_bytes
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.finders import fasthisto_model
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import tensors
from stillfit.models.training import Prepared
from stillfit.uncertainty.methods import FACTORIES
from stillfit.updaters.contract import Declined
from stillfit.updaters.online import OnlineFineTune, OnlineReplay
from stillfit.updaters.online.stepping import Plan, batches, in_turn, with_replay

REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
BOTH = pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
UPDATERS = [
    OnlineFineTune(),
    OnlineFineTune(batch=7, momentum=0.9, rate=0.003),
    OnlineReplay(),
    OnlineReplay(batch=4, replay=8, capacity=30, optimiser="adam", keep="balanced"),
]
EACH = pytest.mark.parametrize("updater", UPDATERS, ids=range(len(UPDATERS)))


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=60, first=0, shift=0.0, condition="new", centre=0.0):
    drawn = np.random.default_rng([7, first])
    x = drawn.normal(size=(n, 2)) + centre
    score = x[:, 0] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.zeros(n), np.full(n, condition))


def model(task, network=None):
    torch.manual_seed(0)
    network = network or MLP(2, [6], 2 if isinstance(task, Regression) else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def update(updater, serving, learner, fresh, seed=3, budget=None):
    return updater.update(serving, learner, fresh, None, budget=budget or Budget(), rng=rng(seed))


def begun(updater, serving, old, fresh):
    return updater.observe(updater.begin(serving, old, rng=rng(1)), fresh, rng=rng(2))


def same(one, other):
    assert set(one) == set(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def plainly(serving, fresh, batch, make, clip=None):
    """The loop that everyone writes."""
    network = serving.copy().network.train()
    optimiser = make(network.parameters())
    inputs = serving.task.prepare(network, fresh.inputs)
    for first in range(0, len(fresh), batch):
        rows = slice(first, first + batch)
        part = {n: v[rows] for n, v in inputs.items()}
        truth = {n: v[rows] for n, v in fresh.targets.items()}
        loss = serving.task.loss(network, tensors(part), tensors(truth))
        optimiser.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
    return {name: value.numpy() for name, value in network.state_dict().items()}


@BOTH
@pytest.mark.parametrize("batch", [1, 7])
def test_sgd_is_that_of_a_plain_loop_bit_for_bit(task, batch):
    serving, fresh = model(task), examples(task)
    found = update(OnlineFineTune(batch=batch, clip=np.inf), serving, {}, fresh)
    want = plainly(serving, fresh, batch, lambda p: torch.optim.SGD(p, lr=0.01))
    assert same(found.model.weights(), want)
    assert found.cost.steps == -(-60 // batch)


@pytest.mark.parametrize(
    ("knobs", "make", "clip"),
    [
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), None),
        ({"optimiser": "adam"}, lambda p: torch.optim.Adam(p, lr=0.01), None),
        ({"clip": 0.3}, lambda p: torch.optim.SGD(p, lr=0.01), 0.3),
    ],
)
def test_momentum_adam_and_clipping_are_those_of_torch(knobs, make, clip):
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    found = update(OnlineFineTune(**{"clip": np.inf, **knobs}), serving, {}, fresh).model
    want = plainly(serving, fresh, 1, make, clip)
    for name, value in found.weights().items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("knobs", [{}, {"momentum": 0.9}, {"optimiser": "adam"}])
def test_two_updates_in_turn_are_one_bit_for_bit(task, knobs):
    """The optimiser's state is kept, and survives its storage."""
    updater, serving = OnlineFineTune(**knobs), model(task)
    fresh = examples(task)
    whole = update(updater, serving, {}, fresh)
    half = update(updater, serving, {}, fresh.take(slice(0, 30)))
    stored = {name: part.copy() for name, part in half.learner.items()}
    again = update(updater, half.model, stored, fresh, seed=9)
    assert again.cost.examples == 30
    assert same(again.model.weights(), whole.model.weights())
    assert same(again.learner, whole.learner)


def test_an_event_is_learned_once_whatever_comes_with_it():
    updater, serving = OnlineFineTune(), model(REGRESSION)
    fresh = examples(REGRESSION)
    first = update(updater, serving, {}, fresh)
    assert update(updater, first.model, first.learner, fresh) == Declined(
        "online learning needs 1 labelled events of the new condition and has 0; it will have "
        "them when more labels arrive",
        early=True,
    )
    twice = fresh.take(np.repeat(np.arange(60), 2))
    assert update(updater, serving, {}, twice).cost.steps == 60
    # The events of the initial training do not count as fresh.
    learner = updater.begin(serving, fresh.take(slice(0, 40)), rng=rng())
    assert update(updater, serving, learner, fresh).cost.examples == 20
    # Where ids may not be kept, nothing is recognised.
    short = replace(updater, recall=0)
    assert update(short, serving, short.begin(serving, fresh, rng=rng()), fresh).cost.steps == 60


def test_weights_that_something_else_changed_begin_anew():
    updater = OnlineFineTune(momentum=0.9)
    fresh = examples(REGRESSION)
    first = update(updater, model(REGRESSION), {}, fresh)
    other = model(REGRESSION, MLP(2, [6], 2))
    assert same(
        update(updater, other, first.learner, fresh).model.weights(),
        update(updater, other, {}, fresh).model.weights(),
    )


@BOTH
def test_a_rate_of_nothing_is_frozen_and_a_small_one_moves_less(task):
    serving, fresh = model(task), examples(task)
    still = update(OnlineFineTune(rate=0.0), serving, {}, fresh)
    assert same(still.model.weights(), serving.weights())

    def moved(rate):
        found = update(OnlineFineTune(rate=rate), serving, {}, fresh).model.weights()
        return sum(np.abs(found[n] - w).sum() for n, w in serving.weights().items())

    assert 0 < moved(0.001) < moved(0.01)


# -- replay -------------------------------------------------------------------------------------


@BOTH
def test_replay_of_nothing_or_from_nothing_is_online_fine_tuning(task):
    serving, old, fresh = model(task), examples(task, first=500), examples(task)
    want = update(OnlineFineTune(), serving, {}, fresh).model.weights()
    for knobs in ({"replay": 0}, {"capacity": 0}):
        updater = OnlineReplay(**knobs)
        found = update(updater, serving, begun(updater, serving, old, fresh), fresh)
        assert same(found.model.weights(), want)
    assert same(update(OnlineReplay(), serving, {}, fresh).model.weights(), want)


@pytest.mark.parametrize(("batch", "replay"), [(1, 1), (1, 5), (4, 3), (10, 200)])
def test_each_new_row_comes_once_and_replayed_ones_only_after_their_turn(batch, replay):
    stays = rng(5).random(50) < 0.5
    plan = with_replay(8, stays, batch, replay, rng(1))
    turn = 8 + np.arange(50)
    learned: list[int] = []
    for at, rows in enumerate(np.split(plan.rows, np.cumsum(plan.sizes)[:-1])):
        new = turn[at * batch : (at + 1) * batch]
        assert np.array_equal(rows[: len(new)], new)
        old = rows[len(new) :]
        allowed = set(range(8)) | {row for row in learned if stays[row - 8]}
        assert len(set(old)) == len(old) == min(replay, len(allowed))
        assert set(old) <= allowed
        learned += new.tolist()
    assert learned == turn.tolist()


def test_every_remembered_row_is_replayed_alike():
    plan = with_replay(10, np.zeros(4000, np.bool_), 1, 2, rng(0))
    counts = np.bincount(plan.rows[plan.rows < 10], minlength=10)
    assert counts.sum() == 8000
    assert np.abs(counts - 800).max() < 4 * np.sqrt(800 * 0.8)


def test_a_buffer_of_everything_replays_all_that_came_before():
    serving, old, fresh = model(REGRESSION), examples(REGRESSION, first=500), examples(REGRESSION)
    updater = OnlineReplay(capacity=1000, replay=1000)
    found = update(updater, serving, begun(updater, serving, old, fresh), fresh)
    assert found.cost.examples == 120
    assert found.cost.stored_examples == 120
    # Its last step is one of batch gradient descent on everything.
    stays = np.ones(60, np.bool_)
    last = with_replay(60, stays, 1, 1000, rng()).rows[-120:]
    assert sorted(last) == list(range(120))


def test_replay_forgets_less():
    """The new condition is another region, where a small network unlearns the old one."""
    old = examples(REGRESSION, n=300, first=1000, centre=-2.0, condition="old")
    fresh = examples(REGRESSION, n=300, shift=3.0, centre=2.0)
    serving = update(OnlineFineTune(rate=0.02), model(REGRESSION), {}, old).model
    test = examples(REGRESSION, n=300, first=5000, centre=-2.0)
    errors = []
    for updater in (OnlineFineTune(), OnlineReplay(capacity=100, replay=4)):
        learner = begun(updater, serving, old, fresh)
        found = update(updater, serving, learner, fresh).model
        errors.append(found.errors(test)["error"].mean())
    assert errors[1] < 0.8 * errors[0]


def test_state_does_not_grow_with_the_stream():
    updater, serving = OnlineReplay(capacity=20, momentum=0.5, recall=50), model(REGRESSION)
    learner, sizes = begun(updater, serving, examples(REGRESSION, first=900), Examples.empty()), []
    for number in range(6):
        fresh = examples(REGRESSION, first=1000 * number + 5000)
        learner = updater.observe(learner, fresh, rng=rng(number))
        found = update(updater, serving, learner, fresh)
        serving, learner = found.model, found.learner
        assert found.cost.memory_bytes == n_bytes(learner)
        sizes.append(n_bytes(learner))
    assert len(set(sizes)) == 1


# -- batches of ragged events ---------------------------------------------------------------------


def test_ragged_batches_hold_the_items_of_their_events():
    counts = np.array([3, 0, 1, 5, 0, 2, 4])
    values = np.arange(counts.sum(), dtype=np.float32)[:, None]
    ragged, dense = Ragged.from_counts(values, counts), np.arange(7.0)
    data = Prepared({"t": ragged, "x": dense}, {"y": dense}, 7)
    plan = Plan(np.array([6, 1, 0, 3, 3, 4, 1]), np.array([2, 1, 3, 1]))
    found = list(batches(data, plan))
    assert len(found) == 4
    for (inputs, targets), rows in zip(found, np.split(plan.rows, [2, 3, 6]), strict=True):
        want = ragged[rows]
        assert np.array_equal(inputs["t"].values.numpy(), want.values)
        assert np.array_equal(inputs["t"].events.numpy(), want.events)
        assert inputs["t"].n == len(rows)
        assert np.array_equal(inputs["x"].numpy(), dense[rows])
        assert np.array_equal(targets["y"].numpy(), dense[rows])


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(24, nominal(), library=load(), seed=5)


def test_a_vertex_network_learns_event_by_event_as_in_a_plain_loop(vertices):
    torch.manual_seed(0)
    serving = Model(E2E().eval(), VertexTask(), Architecture("e2e"))
    updater = OnlineFineTune(batch=3, rate=0.001, clip=np.inf)
    found = update(updater, serving, {}, vertices)
    make = lambda p: torch.optim.SGD(p, lr=0.001)  # noqa: E731
    want = plainly(serving, vertices, 3, make)
    for name, value in found.model.weights().items():
        np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-6)
    assert found.cost.steps == 8
    replayed = OnlineReplay(capacity=10, rate=0.001)
    learner = begun(replayed, serving, vertices.take(slice(0, 12)), vertices.take(slice(12, 24)))
    assert update(replayed, serving, learner, vertices.take(slice(12, 24))).cost.steps == 12


# -- every strategy -----------------------------------------------------------------------------


@BOTH
@EACH
def test_an_update_changes_nothing_that_it_was_given_and_repeats_itself(updater, task):
    serving, old, fresh = model(task), examples(task, first=500), examples(task)
    learner = begun(updater, serving, old, fresh)
    parts = lambda: (serving.weights(), dict(learner), fresh.to_arrays())  # noqa: E731
    before = [content_hash(part) for part in parts()]
    state = torch.random.get_rng_state()
    one = update(updater, serving, learner, fresh)
    torch.manual_seed(5)
    other = update(updater, serving, learner, fresh)
    assert [content_hash(part) for part in parts()] == before
    assert all(p.grad is None and p.requires_grad for p in serving.network.parameters())
    torch.random.set_rng_state(state)
    assert not serving.network.training
    assert not one.model.network.training
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert not same(one.model.weights(), serving.weights())
    assert one.provenance == other.provenance
    assert one.provenance.events["new"] <= one.cost.examples


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_any_uncertainty_method_may_lie_on_top(name):
    serving = model(REGRESSION)
    old, fresh = examples(REGRESSION, first=500), examples(REGRESSION)
    converted = FACTORIES[name](network=serving.network)
    network = uncertain.fresh(serving.task, converted, old, 1)
    serving = replace(serving, network=network.eval())
    updater = OnlineReplay(batch=5, replay=5)
    found = update(updater, serving, begun(updater, serving, old, fresh), fresh)
    stated, _ = found.model.predict(fresh.inputs)
    assert np.isfinite(stated.mean).all()
    assert not same(found.model.weights(), serving.weights())


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.layers(x)


def test_batch_normalisation_keeps_its_statistics_at_batch_one():
    serving = model(REGRESSION, Normalised())
    found = update(OnlineFineTune(), serving, {}, examples(REGRESSION)).model.weights()
    for name, value in serving.weights().items():
        kept = "running" in name or "num_batches" in name
        assert np.array_equal(found[name], value) == kept, name


# -- bad input ----------------------------------------------------------------------------------


@BOTH
@EACH
def test_one_event_one_class_and_a_constant_target_are_normal(updater, task):
    serving, fresh = model(task), examples(task)
    one = fresh.take(slice(0, 1))
    assert update(updater, serving, {}, one).cost.examples == 1
    constant = replace(fresh, targets={"y": np.ones_like(fresh.targets["y"])})
    found = update(updater, serving, {}, constant).model
    assert all(np.isfinite(value).all() for value in found.weights().values())


@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_what_is_not_a_number_is_named(where):
    fresh = examples(REGRESSION)
    columns = {n: v.copy() for n, v in getattr(fresh, where).items()}
    next(iter(columns.values()))[3] = np.nan
    spoilt = replace(fresh, **{where: columns})
    with pytest.raises(DataError, match=r"holds nan at \(3,\) .*drop such events before"):
        update(OnlineFineTune(), model(REGRESSION), {}, spoilt)


def test_an_unseen_class_is_an_error_of_the_loss():
    fresh = replace(examples(CLASSES), targets={"y": np.full(60, 5)})
    with pytest.raises(DataError, match="hold the class 5 and the network has outputs for 0 to 2"):
        update(OnlineFineTune(), model(CLASSES), {}, fresh)


def test_a_pass_that_diverges_ends_before_the_step():
    big = replace(examples(REGRESSION), targets={"y": np.full(60, 1e30)})
    found = update(OnlineFineTune(rate=1e3), model(REGRESSION), {}, big)
    assert found.cost.steps < 60


def test_a_finder_without_parameters_cannot_learn(vertices):
    with pytest.raises(DataError, match="no parameters to train; a finder cannot learn on"):
        update(OnlineFineTune(), fasthisto_model(vertices), {}, vertices)


class Idle(MLP):
    """A network with a parameter that no prediction uses."""

    def __init__(self):
        super().__init__(2, [4], 2)
        self.idle = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_parameter_without_a_gradient_stays(optimiser):
    serving = model(REGRESSION, Idle())
    updater = OnlineFineTune(optimiser=optimiser, momentum=0.9)
    found = update(updater, serving, {}, examples(REGRESSION)).model.weights()
    assert found["idle"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(stored_examples=50), "it used 100 stored examples where the budget allows 50"),
        (Budget(memory_bytes=1), "bytes of learner memory where the budget allows 1"),
        (Budget(macs_per_example=3), "it used 24 multiply-accumulates per example"),
    ],
)
def test_what_exceeds_the_budget_is_thrown_away_with_the_figures(budget, said):
    serving, old = model(REGRESSION), examples(REGRESSION, first=500, n=200)
    updater = OnlineReplay()
    learner = begun(updater, serving, old, Examples.empty())
    found = update(updater, serving, learner, examples(REGRESSION), budget=budget)
    assert isinstance(found, Declined)
    assert said in found.because


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OnlineFineTune(batch=0), "batch of at least 1 event"),
        (lambda: OnlineFineTune(rate=-1.0), "rate = -1.0"),
        (lambda: OnlineFineTune(rate=np.nan), "rate of 0 or more"),
        (lambda: OnlineFineTune(optimiser="rms"), "must be 'sgd' or 'adam', got 'rms'"),
        (lambda: OnlineFineTune(momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda: OnlineFineTune(clip=0.0), "clip above 0"),
        (lambda: OnlineFineTune(min_events=0), "min_events of at least 1"),
        (lambda: OnlineFineTune(recall=-1), "how many ids of learned events are kept"),
        (lambda: OnlineReplay(replay=-1), "0 remembered events per step or more, got -1"),
        (lambda: OnlineReplay(capacity=-1), "capacity must be 0 events or more"),
        (lambda: OnlineReplay(batch=0), "batch of at least 1 event"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_rows_in_turn_end_with_the_rest():
    plan = in_turn(7, 3)
    assert plan.sizes.tolist() == [3, 3, 1]
    assert plan.rows.tolist() == list(range(7))
