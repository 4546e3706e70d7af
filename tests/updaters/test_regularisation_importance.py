"""Laws of the importances: closed forms, the vectorised against the single, units, determinism."""

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import tensors
from stillfit.models.training import Prepared
from stillfit.uncertainty import Bayesian, DeepEnsemble, MCDropout
from stillfit.updaters.regularisation import importance
from stillfit.updaters.regularisation.importance import (
    chosen,
    drawn_targets,
    fisher,
    sensitivity,
)

REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=200, seed=0):
    x = rng(seed).normal(size=(n, 2)) * [1.0, 3.0]
    score = x[:, 0] + 0.1 * rng(seed + 1).normal(size=n)
    y = score if task is REGRESSION else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(n, dtype=np.int64)
    return Examples(ids, {"a": x[:, 0], "b": x[:, 1]}, {"y": y}, np.zeros(n), np.full(n, "all"))


def model(task, network=None, seed=0):
    torch.manual_seed(seed)
    network = network or MLP(2, [5], 2 if task is REGRESSION else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def prepared(shown, labelled):
    return Prepared.of(shown, labelled)


def inputs_of(shown, labelled):
    return uncertain.prepare(shown.task, shown.network, labelled.inputs)


def columns(labelled):
    return np.stack([labelled.inputs["a"], labelled.inputs["b"]], 1)


def probabilities(shown, labelled):
    return shown.predict(labelled.inputs)[0].probabilities


# -- closed forms --------------------------------------------------------------------------------


def test_the_empirical_fisher_of_a_softmax_regression_is_its_closed_form():
    """d loss / d W_cj = (p_c - [y = c]) x_j."""
    shown = model(CLASSES, MLP(2, [], 3))
    labelled = examples(CLASSES)
    x, p = columns(labelled), probabilities(shown, labelled)
    away = (p - np.eye(3)[labelled.targets["y"]]) ** 2
    found = fisher(shown, prepared(shown, labelled), "empirical", rng())
    np.testing.assert_allclose(found["layers.1.weight"], away.T @ x**2 / len(x), rtol=1e-4)
    np.testing.assert_allclose(found["layers.1.bias"], away.mean(0), rtol=1e-4)
    assert all(part.dtype == np.float32 for part in found.values())


def test_the_true_fisher_of_a_softmax_regression_is_p_1_minus_p():
    """Mean of (p_c - [y = c])^2 over labels y as probable as p: p_c (1 - p_c), exactly."""
    shown = model(CLASSES, MLP(2, [], 3))
    labelled = examples(CLASSES)
    x, p = columns(labelled), probabilities(shown, labelled)
    expected = (p * (1 - p)).T @ x**2 / len(x)
    # The labels are nothing to it: quite others give the same.
    labelled.targets["y"][:] = 0
    found = fisher(shown, prepared(shown, labelled), "true", rng())
    np.testing.assert_allclose(found["layers.1.weight"], expected, rtol=1e-4)
    empirical = fisher(shown, prepared(shown, labelled), "empirical", rng())
    assert np.abs(empirical["layers.1.weight"] / expected - 1).max() > 0.3


def test_the_mean_over_classes_is_that_of_many_draws():
    shown = model(CLASSES)
    labelled = examples(CLASSES, n=40)
    exact = fisher(shown, prepared(shown, labelled), "true", rng())
    many = labelled.take(np.repeat(np.arange(40), 400))
    inputs = inputs_of(shown, many)
    drawn = fisher(shown, Prepared(inputs, drawn_targets(shown, inputs, rng()), len(many)),
                   "empirical", rng())  # fmt: skip
    for name, part in exact.items():
        np.testing.assert_allclose(drawn[name], part, rtol=0.15, atol=0.02 * part.max())


def test_the_true_fisher_of_a_linear_regression_is_x_squared_over_the_variance():
    shown = model(REGRESSION, WithNoise(nn.Linear(2, 1)))
    with torch.no_grad():
        shown.network.log_variance.fill_(np.log(0.25))
    labelled = examples(REGRESSION, n=20_000)
    found = fisher(shown, prepared(shown, labelled), "true", rng())
    expected = (columns(labelled) ** 2).mean(0) / 0.25
    np.testing.assert_allclose(found["network.weight"][0], expected, rtol=0.05)
    np.testing.assert_allclose(found["network.bias"], [1 / 0.25], rtol=0.05)
    # Of s in 1/2 (s + r^2 exp(-s)): the mean of (1 - z^2)^2 / 4 is 1/2.
    np.testing.assert_allclose(found["log_variance"], 0.5, rtol=0.05)


def test_the_sensitivity_of_a_linear_network_is_its_closed_form():
    """|d z^2 / d w_j| = 2 |z| |x_j| / s, z the output about its mean and over its deviation s."""
    shown = model(CLASSES, nn.Linear(2, 3))
    labelled = examples(CLASSES)
    x = columns(labelled).astype(np.float32)
    f = x @ shown.weights()["weight"].T + shown.weights()["bias"]
    z, s = (f - f.mean(0)) / f.std(0), f.std(0)
    found = sensitivity(shown, inputs_of(shown, labelled), rng())
    expected = (2 * np.abs(z)).T @ np.abs(x) / len(x) / s[:, None]
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["bias"], (2 * np.abs(z)).mean(0) / s, rtol=1e-4)


def test_neither_unit_nor_zero_of_a_target_matters_to_the_sensitivity():
    labelled = examples(REGRESSION)
    found = []
    for mean, std in ((0.0, 1.0), (5.0, 100.0), (-300.0, 1.0)):
        shown = model(REGRESSION)
        shown.network.target_mean.fill_(mean)
        shown.network.target_std.fill_(std)
        found.append(sensitivity(shown, inputs_of(shown, labelled), rng()))
    for other in found[1:]:
        for name, part in found[0].items():
            # Single precision holds 300 to 3e-5, and the mean varies by a few tenths.
            np.testing.assert_allclose(other[name], part, rtol=1e-3, atol=1e-3)


def test_the_sensitivity_needs_no_labels():
    shown = model(CLASSES)
    labelled = examples(CLASSES)
    one = sensitivity(shown, inputs_of(shown, labelled), rng())
    assert all(np.any(part > 0) for part in one.values())


# -- vectorised against single -------------------------------------------------------------------


def single(monkeypatch):
    monkeypatch.setattr(importance, "_vectorised", lambda *of: None)


@pytest.mark.parametrize("task", [REGRESSION, CLASSES], ids=["regression", "classes"])
@pytest.mark.parametrize(
    "wrap", [lambda n: n, lambda n: DeepEnsemble(n, 3)], ids=["one", "ensemble"]
)
def test_gradients_of_all_events_in_one_call_are_those_of_single_events(task, wrap, monkeypatch):
    shown = model(task, wrap(MLP(2, [5], 2 if task is REGRESSION else 3)))
    data = prepared(shown, examples(task, n=30))
    together = fisher(shown, data, "true", rng()), sensitivity(shown, data.inputs, rng())
    single(monkeypatch)
    apart = fisher(shown, data, "true", rng()), sensitivity(shown, data.inputs, rng())
    for one, other in zip(together, apart, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("task", [REGRESSION, CLASSES], ids=["regression", "classes"])
def test_no_event_of_dense_columns_goes_by_itself(task, monkeypatch):
    """It would be right and 20 times slower, so only a test would see it."""

    def slow(*of):
        raise AssertionError("an event went by itself")

    monkeypatch.setattr(importance, "_of_one", slow)
    for wrap in (lambda n: n, lambda n: MCDropout(n, 0.5, samples=3), _bayesian):
        shown = model(task, wrap(MLP(2, [5], 2 if task is REGRESSION else 3)))
        data = prepared(shown, examples(task, n=10))
        fisher(shown, data, "true", rng())
        sensitivity(shown, data.inputs, rng())


def test_chunks_change_nothing(monkeypatch):
    shown = model(CLASSES)
    data = prepared(shown, examples(CLASSES, n=30))
    whole = fisher(shown, data, "empirical", rng())
    monkeypatch.setattr(importance, "HELD", 7 * 33)
    pieces = fisher(shown, data, "empirical", rng())
    for name in whole:
        np.testing.assert_allclose(whole[name], pieces[name], rtol=1e-5)


class Stubborn(MLP):
    """Asks for a number of its events, which one call for all cannot give."""

    def forward(self, x):
        return super().forward(x) if float(x.sum()) < 1e9 else super().forward(-x)


def test_a_network_that_cannot_be_vectorised_goes_event_by_event():
    labelled = examples(CLASSES, n=20)
    plain, stubborn = model(CLASSES), model(CLASSES, Stubborn(2, [5], 3))
    stubborn.network.load_state_dict(plain.network.state_dict())
    one = fisher(plain, prepared(plain, labelled), "empirical", rng())
    other = fisher(stubborn, prepared(stubborn, labelled), "empirical", rng())
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-8)


def test_vertices_go_event_by_event():
    task = VertexTask()
    events = vertex_examples(6, nominal(), library=load(), seed=3)
    shown = Model(E2E().eval(), task, Architecture("e2e"))
    data = prepared(shown, events)
    found = fisher(shown, data, "empirical", rng())
    squares = []
    for row in range(6):
        shown.network.zero_grad()
        one = data.take(np.array([row]))
        task.loss(shown.network, tensors(one.inputs), tensors(one.targets)).backward()
        squares.append(shown.network.pattern.taps.grad.numpy() ** 2)
    shown.network.zero_grad(set_to_none=True)
    np.testing.assert_allclose(found["pattern.taps"], np.mean(squares, 0), rtol=1e-4)
    moved = sensitivity(shown, data.inputs, rng())
    assert sum(np.any(part > 0) for part in moved.values()) > len(moved) / 2


def test_unused_and_fixed_parameters_have_no_importance():
    network = MLP(2, [5], 3)
    network.spare = nn.Linear(4, 4)
    network.layers[1].bias.requires_grad_(False)
    shown = model(CLASSES, network)
    found = fisher(shown, prepared(shown, examples(CLASSES, n=20)), "empirical", rng())
    assert "layers.1.bias" not in found
    assert not found["spare.weight"].any()
    assert found["layers.1.weight"].any()


# -- draws ---------------------------------------------------------------------------------------


def test_drawn_labels_are_as_frequent_as_they_are_probable():
    shown = model(CLASSES)
    labelled = examples(CLASSES, n=20_000)
    drawn = drawn_targets(shown, inputs_of(shown, labelled), rng())["y"]
    p = probabilities(shown, labelled)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / len(drawn), p.mean(0), atol=0.015)
    assert set(np.unique(drawn)) == {0, 1, 2}


def test_drawn_numbers_are_of_the_stated_distribution():
    shown = model(REGRESSION)
    labelled = examples(REGRESSION, n=20_000)
    drawn = drawn_targets(shown, inputs_of(shown, labelled), rng())["y"]
    stated = shown.predict(labelled.inputs)[0]
    pulls = (drawn - stated.mean) / stated.std
    assert abs(pulls.mean()) < 0.03
    assert abs(pulls.std() - 1) < 0.03


def test_a_task_may_draw_its_targets_itself():
    class Own(Classification):
        def draw_targets(self, predictive, outputs, rng):
            return {"y": np.zeros(len(predictive), np.int64)}

    task = Own(features=("a", "b"), classes=3)
    shown = model(task, MLP(2, [5], 3))
    labelled = examples(CLASSES, n=50)
    zeros = Prepared(inputs_of(shown, labelled), {"y": np.zeros(50, np.int64)}, 50)
    one = fisher(shown, prepared(shown, labelled), "true", rng())
    other = fisher(shown, zeros, "empirical", rng())
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [lambda n: MCDropout(n, 0.5, samples=4), lambda n: _bayesian(n)],
    ids=["dropout", "bayesian"],
)
def test_what_a_network_draws_comes_from_the_generator_alone(wrap):
    shown = model(CLASSES, wrap(MLP(2, [5], 3)))
    data = prepared(shown, examples(CLASSES, n=20))
    before, state = shown.weights(), torch.random.get_rng_state()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(fisher(shown, data, "true", rng(5)))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    other = fisher(shown, data, "true", rng(6))
    assert any(not np.array_equal(found[0][name], other[name]) for name in other)
    torch.random.set_rng_state(state)
    fisher(shown, data, "true", rng(5))
    assert torch.equal(state, torch.random.get_rng_state())
    after = shown.weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in shown.network.parameters())


def _bayesian(network):
    return Bayesian(network, samples=4, events=100)


def test_at_most_as_many_events_are_taken_as_asked_for_none_twice():
    assert chosen(10, 10, rng()) == slice(None)
    rows = chosen(100, 30, rng())
    assert len(rows) == len(np.unique(rows)) == 30
    assert np.all(np.diff(rows) > 0)
    assert not np.array_equal(rows, chosen(100, 30, rng(1)))


def test_an_importance_that_is_not_finite_is_said():
    shown = model(REGRESSION)
    labelled = examples(REGRESSION, n=20)
    labelled.targets["y"][3] = np.nan
    with pytest.raises(
        DataError,
        match=r"the importance of 'layers.1.weight' is not finite on 20 events; did the network "
        r"diverge, or do the events hold NaN\?",
    ):
        fisher(shown, prepared(shown, labelled), "empirical", rng())
