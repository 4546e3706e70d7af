"""Dark replay: what is stored, and how it holds the network, whatever states its uncertainty."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged, n_bytes
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Schedule
from stillfit.uncertainty.methods import METHODS
from stillfit.updaters.replay import DarkReplay, Replay
from stillfit.updaters.replay.dark import ANSWER, answers, known, stored_answers

SHORT = Schedule(steps=20, batch=40, rate=0.01)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
KNOBS = {"schedule": SHORT, "min_events": 1}


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=150, first=0, condition="new", centre=0.0, shift=0.0):
    drawn = np.random.default_rng([7, first])
    x = drawn.normal(size=(n, 2)) + centre
    score = x[:, 0] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.full(n, float(first)), np.full(n, condition))


def model(task, network=None, seed=0):
    torch.manual_seed(seed)
    network = network or MLP(2, [8], 2 if isinstance(task, Regression) else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def world(task, network=None):
    old = examples(task, first=0, condition="old")
    return model(task, network), old, examples(task, first=1000, centre=2.0)


def begun(updater, serving, old, fresh):
    learner = updater.begin(serving, old, rng=rng(1))
    return updater.observe(learner, fresh, rng=rng(2))


def update(updater, serving, learner, fresh):
    return updater.update(serving, learner, fresh, None, budget=Budget(), rng=rng(3))


def copied(arrays):
    return {name: np.array(part) for name, part in arrays.items()}


def same(one, other):
    return set(one) == set(other) and all(
        np.array_equal(part, other[name], equal_nan=part.dtype.kind == "f")
        for name, part in one.items()
    )


# -- dark replay ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_dark_replay_that_ignores_outputs_is_replay(task, mix):
    serving, old, fresh = world(task)
    dark, plain = (kind(**KNOBS, capacity=90, mix=mix) for kind in (DarkReplay, Replay))
    dark = replace(dark, alpha=0.0)
    one = update(dark, serving, begun(dark, serving, old, fresh), fresh)
    other = update(plain, serving, begun(plain, serving, old, fresh), fresh)
    assert same(one.model.weights(), other.model.weights())
    # So it is before anything was stored.
    naive = update(replace(dark, alpha=1.0), serving, {}, fresh)
    assert same(naive.model.weights(), update(plain, serving, {}, fresh).model.weights())


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_outputs_are_stored_once_by_the_model_that_had_learned_the_event(task):
    serving, old, fresh = world(task)
    dark = DarkReplay(**KNOBS, capacity=1000)
    learner = dark.begin(serving, old, rng=rng(0))
    buffer = dark.buffer(learner)
    assert known(buffer).all()
    (first,) = stored_answers(buffer, np.arange(150))
    np.testing.assert_array_equal(first, answers(serving, buffer.examples())[0])
    learner = dark.observe(learner, fresh, rng=rng(1))
    np.testing.assert_array_equal(known(dark.buffer(learner)), np.arange(300) < 150)
    found = update(dark, serving, learner, fresh)
    buffer = dark.buffer(found.learner)
    (second,) = stored_answers(buffer, np.arange(300))
    np.testing.assert_array_equal(second[:150], first)
    np.testing.assert_array_equal(second[150:], answers(found.model, fresh)[0])
    width = first.shape[1]
    plain = n_bytes(
        Replay(**KNOBS, capacity=1000).observe({}, Examples.join([old, fresh]), rng=rng(0))
    )
    assert n_bytes(found.learner) - plain < 300 * width * 4 + 300


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_more_alpha_holds_the_outputs_on_old_events(task):
    serving, old, fresh = world(task)
    away = []
    for alpha in (0.0, 1.0, 100.0):
        dark = DarkReplay(
            capacity=200, mix=0.0, alpha=alpha, min_events=1,
            schedule=Schedule(steps=80, batch=50, rate=0.02),
        )  # fmt: skip
        found = update(dark, serving, dark.begin(serving, old, rng=rng(0)), fresh).model
        moved = answers(found, old)[0] - answers(serving, old)[0]
        away.append(np.sqrt((moved**2).mean()))
    assert away[0] > 3 * away[1]
    assert away[1] > away[2]


def test_the_penalty_is_the_distance_over_the_variance_by_hand():
    class Linear(nn.Linear):
        pass

    task = REGRESSION
    serving = model(task, Linear(2, 2))
    old = examples(task, n=40, condition="old")
    dark = DarkReplay(capacity=40, alpha=0.7, schedule=Schedule(batch=80), min_events=1)
    buffer = dark.buffer(dark.begin(serving, old, rng=rng(0)))
    moved = serving.copy()
    with torch.no_grad():
        moved.network.bias += torch.tensor([0.5, -2.0])
    guide = dark._guide(moved, buffer, np.arange(40), 0)
    penalty = guide.penalty(moved.network, {})
    stored = answers(serving, buffer.examples())[0].astype(np.float64)
    want = 0.7 * (np.array([0.25, 4.0]) / stored.var(0)).mean()
    assert float(penalty.detach()) == pytest.approx(want, rel=1e-5)
    penalty.backward()
    # It pulls back: the gradient points along the way that the bias went.
    assert torch.equal(torch.sign(moved.network.bias.grad), torch.tensor([1.0, -1.0]))
    assert float(guide.penalty(serving.network, {}).detach()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_dark_replay_works_on_any_uncertain_network(name, task):
    if task is CLASSES and (METHODS[name].kind == "head" or name == "moments"):
        pytest.skip("the method states numbers, not classes")
    serving, old, fresh = world(
        task, METHODS[name].convert(MLP(2, [8, 8], 2 if task is REGRESSION else 3))
    )
    network = uncertain.fresh(task, serving.network, old, 1).eval()
    serving = Model(network, task, serving.architecture)
    dark = DarkReplay(
        capacity=80, alpha=3.0, min_events=1, schedule=Schedule(steps=4, batch=30, rate=0.01)
    )
    learner = dark.begin(serving, old, rng=rng(0))
    found = update(dark, serving, learner, fresh)
    plain = update(replace(dark, alpha=0.0), serving, learner, fresh)
    assert not same(found.model.weights(), plain.model.weights())
    again = update(dark, serving, learner, fresh)
    assert same(found.model.weights(), again.model.weights())
    assert known(dark.buffer(found.learner)).all()


def test_a_network_without_gradient_in_its_outputs_cannot_be_matched():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            out = self.inner(x)
            return out if len(x) == 40 else out.detach()

    serving, old, fresh = world(REGRESSION, Still())
    dark = DarkReplay(**KNOBS, mix=0.0)
    learner = dark.begin(serving, old, rng=rng(0))
    with pytest.raises(
        ConfigError, match=r"outputs of Still carry no gradient, so stored ones can"
    ):
        update(dark, serving, learner, fresh)


def test_outputs_of_another_architecture_are_an_error():
    serving, old, fresh = world(CLASSES)
    dark = DarkReplay(**KNOBS)
    learner = dark.begin(serving, old, rng=rng(0))
    wider = Model(MLP(2, [8], 4).eval(), replace(CLASSES, classes=4), Architecture("mlp"))
    with pytest.raises(
        ShapeError, match=r"output 0 was stored as \(20, 3\) and the network gives "
    ):
        update(dark, wider, learner, fresh)


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(150, nominal(), library=load(), seed=3)


def test_ragged_answers_of_a_vertex_finder_are_stored_track_by_track(vertices):
    serving = model(VertexTask(), E2E(seed=1))
    old, fresh = vertices.take(slice(0, 90)), vertices.take(slice(90, 150))
    dark = DarkReplay(capacity=60, min_events=1, schedule=Schedule(steps=3, batch=20, rate=0.01))
    learner = dark.begin(serving, old, rng=rng(0))
    buffer = dark.buffer(learner)
    held = buffer.examples()
    raw, score, association = stored_answers(buffer, np.arange(60))
    assert isinstance(association, Ragged)
    np.testing.assert_array_equal(association.counts, held.targets["is_pv"].counts)
    assert raw.shape == (60, 2)
    assert score.shape == (60,)
    predictive, outputs = serving.predict(held.inputs)
    np.testing.assert_allclose(association.values, outputs["association"].values, atol=1e-6)
    np.testing.assert_allclose(raw[:, 0], predictive.mean, atol=1e-5)
    learner = dark.observe(learner, fresh, rng=rng(1))
    found = update(dark, serving, learner, fresh)
    assert isinstance(found, Candidate)
    plain = update(replace(dark, alpha=0.0), serving, learner, fresh)
    assert not same(found.model.weights(), plain.model.weights())
    assert known(dark.buffer(found.learner)).all()
    assert f"buffer/0/extra/{ANSWER}2#offsets" in found.learner
    again = update(dark, serving, copied(learner), fresh)
    assert same(found.model.weights(), again.model.weights())
    assert same(found.learner, again.learner)
