"""Heads in closed form: oracles of textbooks, order, limits of the knobs, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import content_hash, n_bytes
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.uncertainty.methods import FACTORIES
from stillfit.updaters.contract import Declined
from stillfit.updaters.online import (
    ClassMoments,
    NearestMean,
    RecursiveLeastSquares,
    StreamingLDA,
)

REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=4)
HEADS = [
    (StreamingLDA(shrinkage=0.01), CLASSES),
    (StreamingLDA(forgetting=0.98, priors=True), CLASSES),
    (NearestMean(), CLASSES),
    (RecursiveLeastSquares(), REGRESSION),
    (RecursiveLeastSquares(forgetting=0.97, block=5), REGRESSION),
]
EACH = pytest.mark.parametrize(("updater", "task"), HEADS, ids=range(len(HEADS)))


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=80, first=0, noise=0.1, condition="new"):
    drawn = np.random.default_rng([3, first])
    x = drawn.normal(size=(n, 2))
    score = x[:, 0] - 0.5 * x[:, 1] ** 2 + noise * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.8, 0.3])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.zeros(n), np.full(n, condition))


def model(task, network=None):
    torch.manual_seed(0)
    network = network or MLP(2, [6], 2 if isinstance(task, Regression) else 4)
    if isinstance(network, MLP) and isinstance(task, Regression):
        network.target_mean.fill_(5.0)
        network.target_std.fill_(3.0)
    return Model(network.eval(), task, Architecture("mlp"))


def update(updater, serving, learner, fresh, budget=None):
    return updater.update(serving, learner, fresh, None, budget=budget or Budget(), rng=rng(3))


def same(one, other):
    assert set(one) == set(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def features(serving, examples):
    """Input of the last layer of an MLP, in double."""
    x = torch.from_numpy(serving.task.prepare(serving.network, examples.inputs)["x"])
    with torch.no_grad():
        return serving.network.layers[:-1](x).double().numpy()


# -- classes --------------------------------------------------------------------------------------


def gaussians(n=300, d=4, classes=3, seed=0):
    drawn = rng(seed)
    y = drawn.integers(0, classes, n)
    root = drawn.normal(size=(d, d))
    means = drawn.normal(size=(classes, d)) * 2
    return means[y] + drawn.normal(size=(n, d)) @ root, y


def test_moments_are_those_of_their_definition():
    x, y = gaussians()
    found = ClassMoments.empty(3, 4, full=True).add(x, y)
    assert found.counts.tolist() == np.bincount(y).tolist()
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(found.means, means)
    within = x - means[y]
    np.testing.assert_allclose(found.scatter, within.T @ within)
    trace = ClassMoments.empty(3, 4, full=False).add(x, y)
    np.testing.assert_allclose(trace.scatter, (within**2).sum())


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("seed", range(3))
def test_moments_do_not_depend_on_order_or_batches(size, seed):
    x, y = gaussians()
    whole = ClassMoments.empty(3, 4, full=True).add(x, y)
    order = rng(seed).permutation(len(x))
    found = ClassMoments.empty(3, 4, full=True)
    for first in range(0, len(x), size):
        rows = order[first : first + size]
        found = found.add(x[rows], y[rows])
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def test_moments_far_from_zero_lose_nothing():
    x, y = gaussians()
    near = ClassMoments.empty(3, 4, full=True).add(x, y)
    far = ClassMoments.empty(3, 4, full=True)
    for rows in np.array_split(np.arange(len(x)), 30):
        far = far.add(x[rows] + 1e6, y[rows])
    np.testing.assert_allclose(far.scatter, near.scatter, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 11, 300])
def test_forgetting_weighs_each_event_by_its_age(size):
    x, y = gaussians()
    f = 0.97
    w = f ** np.arange(len(x) - 1, -1, -1.0)
    found = ClassMoments.empty(3, 4, full=True)
    for first in range(0, len(x), size):
        found = found.add(x[first : first + size], y[first : first + size], f)
    np.testing.assert_allclose(found.counts, np.bincount(y, w))
    means = np.stack([np.average(x[y == c], 0, w[y == c]) for c in range(3)])
    np.testing.assert_allclose(found.means, means)
    within = (x - means[y]) * np.sqrt(w)[:, None]
    np.testing.assert_allclose(found.scatter, within.T @ within)


@pytest.mark.parametrize("priors", [False, True])
def test_the_discriminant_is_the_posterior_of_its_gaussians(priors):
    from scipy.stats import multivariate_normal

    x, y = gaussians()
    found = ClassMoments.empty(3, 4, full=True).add(x, y)
    weight, bias = found.head(0.0, priors)
    covariance = found.scatter / len(x)
    density = np.stack(
        [multivariate_normal(found.means[c], covariance).logpdf(x) for c in range(3)], 1
    )
    if priors:
        density += np.log(found.counts / len(x))
    logits = x @ weight.T + bias
    away = logits - density
    np.testing.assert_allclose(away - away[:, :1], 0, atol=1e-8)


def test_the_nearest_mean_decides_by_distance_and_is_the_discriminant_of_one_variance():
    serving, fresh = model(CLASSES), examples(CLASSES)
    near = update(NearestMean(), serving, {}, fresh).model
    phi, y = features(serving, fresh), fresh.targets["y"]
    means = np.stack([phi[y == c].mean(0) for c in range(3)])
    want = ((phi[:, None] - means) ** 2).sum(2).argmin(1)
    stated = near.predict(fresh.inputs)[0].probabilities
    assert np.array_equal(stated.argmax(1), want)
    whole = update(StreamingLDA(shrinkage=1.0), serving, {}, fresh).model.weights()
    for name, value in near.weights().items():
        np.testing.assert_allclose(whole[name], value, rtol=1e-5)


def test_a_head_is_solved_and_the_trunk_stays():
    serving, fresh = model(CLASSES), examples(CLASSES)
    found = update(StreamingLDA(), serving, {}, fresh)
    moments = ClassMoments.empty(4, 6, full=True)
    moments = moments.add(features(serving, fresh), fresh.targets["y"])
    weight, bias = moments.head(1e-4, False)
    weights = found.model.weights()
    np.testing.assert_allclose(weights.pop("layers.3.weight"), weight, rtol=1e-4)
    np.testing.assert_allclose(weights.pop("layers.3.bias"), bias, rtol=1e-4)
    assert all(np.array_equal(value, serving.weights()[n]) for n, value in weights.items())
    assert found.cost.steps == 0
    assert found.cost.macs_per_example == 2 * 6 + 6 * 4
    assert found.model.errors(fresh)["error"].mean() < 0.5 * serving.errors(fresh)["error"].mean()


def test_a_class_that_was_never_met_is_never_predicted():
    serving, fresh = model(CLASSES), examples(CLASSES)  # class 3 never comes
    for updater in (StreamingLDA(), NearestMean()):
        found = update(updater, serving, {}, fresh).model
        far = replace(fresh, inputs={n: 50 * v for n, v in fresh.inputs.items()})
        for events in (fresh, far):
            assert found.predict(events.inputs)[0].probabilities[:, 3].max() < 1e-40


def test_classes_in_turn_are_not_forgotten():
    """The order that ruins fine-tuning: one class after the other."""
    serving, fresh = model(CLASSES), examples(CLASSES, n=240)
    whole = update(StreamingLDA(), serving, {}, fresh)
    found, learner = serving, {}
    for c in (2, 0, 1):
        part = fresh.take(np.flatnonzero(fresh.targets["y"] == c))
        step = update(StreamingLDA(), found, learner, part)
        found, learner = step.model, step.learner
    for name, value in whole.model.weights().items():
        np.testing.assert_allclose(found.weights()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("updater", [StreamingLDA(), NearestMean()])
def test_a_class_without_room_is_an_error(updater):
    fresh = examples(CLASSES)
    strange = replace(fresh, targets={"y": fresh.targets["y"] + 3})
    with pytest.raises(DataError, match="class 4 and the head has room for classes 0 to 3; give"):
        update(updater, model(CLASSES), {}, strange)


# -- regression -----------------------------------------------------------------------------------


def ridge(h, z, prior, penalty, w=None):
    w = np.ones(len(z)) if w is None else w
    curvature = (h * w[:, None]).T @ h + penalty * np.eye(h.shape[1])
    return np.linalg.solve(curvature, h.T @ (w * z) + penalty * prior), curvature


def normal_form(serving, fresh):
    """Features with a 1, what the head should give, and its weights."""
    phi = features(serving, fresh)
    h = np.concatenate([phi, np.ones((len(phi), 1))], 1)
    last = serving.network.layers[-1]
    prior = np.append(last.weight[0].detach().numpy(), last.bias[0].detach().numpy())
    return h, (fresh.targets["y"] - 5.0) / 3.0, prior.astype(np.float64)


def row(found):
    weights = found.model.weights()
    return np.append(weights["layers.3.weight"][0], weights["layers.3.bias"][0])


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
def test_without_forgetting_it_is_ridge_regression_about_the_serving_weights(penalty):
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    found = update(RecursiveLeastSquares(ridge=penalty), serving, {}, fresh)
    want, _ = ridge(*normal_form(serving, fresh), penalty)
    np.testing.assert_allclose(row(found), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("size", [1, 20, 80])
def test_forgetting_weighs_by_age_and_blocks_and_updates_do_not_matter(block, size):
    updater = RecursiveLeastSquares(forgetting=0.95, block=block, calibrate=False)
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    found, learner = serving, updater.begin(serving, Examples.empty(), rng=rng())
    for first in range(0, 80, size):
        step = update(updater, found, learner, fresh.take(slice(first, first + size)))
        found, learner = step.model, step.learner
    want, _ = ridge(*normal_form(serving, fresh), 1.0, 0.95 ** np.arange(79, -1, -1.0))
    np.testing.assert_allclose(row(step), want, rtol=1e-4, atol=1e-5)


def test_a_huge_ridge_is_frozen():
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    updater = RecursiveLeastSquares(ridge=1e15, calibrate=False)
    assert same(update(updater, serving, {}, fresh).model.weights(), serving.weights())


def test_the_posterior_is_that_of_bayesian_linear_regression():
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    updater = RecursiveLeastSquares(ridge=2.0)
    known = updater.posterior(update(updater, serving, {}, fresh).learner)
    h, z, prior = normal_form(serving, fresh)
    want, curvature = ridge(h, z, prior, 2.0)
    least = ((z - h @ want) ** 2).sum() + 2.0 * ((want - prior) ** 2).sum()
    noise = 9 * least / len(z)
    assert known.noise == pytest.approx(noise, rel=1e-5)
    np.testing.assert_allclose(known.weights, 3 * want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(known.covariance, noise * np.linalg.inv(curvature), rtol=1e-3)
    mean, variance = known.predict(h)
    np.testing.assert_allclose(mean, 3 * h @ want, rtol=1e-4, atol=1e-5)
    each = [noise + a @ known.covariance @ a for a in h]
    np.testing.assert_allclose(variance, each)
    far, _ = known.predict(10 * h), None
    assert (far[1] > variance).all()


@pytest.mark.parametrize("kind", ["heads", "constant"])
def test_the_stated_variance_follows_the_errors_made_before_learning(kind):
    plain = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    serving = model(REGRESSION, None if kind == "heads" else WithNoise(plain))
    # It remembers 500 events, so the deviation is known to 3 %.
    updater = RecursiveLeastSquares(forgetting=0.998)
    learner = {}
    for number, noise in enumerate((0.3, 0.9)):
        for part in range(4):
            fresh = straight(600, 10_000 * number + 1000 * part, noise)
            step = update(updater, serving, learner, fresh)
            serving, learner = step.model, step.learner
        test = straight(4000, 90_000, noise)
        stated, _ = serving.predict(test.inputs)
        pull = (test.targets["y"] - stated.mean) / stated.std
        assert 0.88 < np.sqrt((pull**2).mean()) < 1.12


def straight(n, first, noise):
    """A straight line with Gaussian noise, which any of the networks can draw."""
    made = examples(REGRESSION, n, first)
    y = 4 + made.inputs["a"] + noise * rng(first).normal(size=n)
    return replace(made, targets={"y": y})


def test_without_calibration_the_variance_stays():
    serving, fresh = model(REGRESSION), examples(REGRESSION)
    found = update(RecursiveLeastSquares(calibrate=False), serving, {}, fresh).model
    one, other = (m.predict(fresh.inputs)[0] for m in (serving, found))
    assert np.array_equal(one.std, other.std)
    assert not np.array_equal(one.mean, other.mean)


def test_a_long_stream_of_nearly_the_same_features_stays_finite():
    """Where the textbook recursion blows up: forgetting, and a direction that is never seen."""
    serving = model(REGRESSION, MLP(2, [], 2))
    updater = RecursiveLeastSquares(forgetting=0.9, ridge=1e-6)
    drawn, learner = rng(1), {}
    for number in range(20):
        x = drawn.normal(size=500)
        ids = np.arange(500) + 500 * number
        columns = {"a": x, "b": x + 1e-9 * drawn.normal(size=500)}
        fresh = Examples(ids, columns, {"y": 5 + 6 * x}, ids * 0.0, np.full(500, "n"))
        found = update(updater, serving, learner, fresh)
        serving, learner = found.model, found.learner
    assert all(np.isfinite(part).all() for part in learner.values())
    np.testing.assert_allclose(serving.predict(fresh.inputs)[0].mean, 5 + 6 * x, atol=1e-4)
    weights = serving.weights()["layers.1.weight"][0]
    np.testing.assert_allclose(weights.sum(), 2.0, rtol=1e-3)


def test_a_drifting_function_needs_forgetting():
    serving, errors = model(REGRESSION), []
    for forgetting in (1.0, 0.98):
        updater, found, learner = RecursiveLeastSquares(forgetting=forgetting), serving, {}
        for number, slope in enumerate((1.0, -1.0)):
            fresh = examples(REGRESSION, 400, 10_000 * number)
            fresh = replace(fresh, targets={"y": slope * fresh.inputs["a"]})
            step = update(updater, found, learner, fresh)
            found, learner = step.model, step.learner
        errors.append(found.errors(fresh)["error"].mean())
    assert errors[1] < 0.5 * errors[0]


# -- all heads ------------------------------------------------------------------------------------


@EACH
def test_nothing_given_is_changed_and_the_same_comes_again(updater, task):
    serving, old, fresh = model(task), examples(task, first=500), examples(task)
    learner = updater.begin(serving, old, rng=rng(1))
    parts = lambda: (serving.weights(), dict(learner), fresh.to_arrays())  # noqa: E731
    before, state = [content_hash(part) for part in parts()], torch.random.get_rng_state()
    one, other = (update(updater, serving, learner, fresh) for _ in range(2))
    assert [content_hash(part) for part in parts()] == before
    assert torch.equal(state, torch.random.get_rng_state())
    assert not serving.network._forward_hooks
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert one.cost.memory_bytes == n_bytes(one.learner)
    assert one.cost.examples == len(fresh)
    assert one.model.architecture == serving.architecture


@EACH
def test_two_updates_are_one_and_survive_storage(updater, task):
    serving, fresh = model(task), examples(task)
    whole = update(updater, serving, {}, fresh)
    half = update(updater, serving, {}, fresh.take(slice(0, 37)))
    stored = {name: part.copy() for name, part in half.learner.items()}
    again = update(updater, half.model, stored, fresh)
    assert again.cost.examples == 43
    for name, value in whole.model.weights().items():
        # The stated variance depends on where the blocks end, the rest does not.
        if not (isinstance(task, Regression) and name == "layers.3.bias"):
            np.testing.assert_allclose(again.model.weights()[name], value, rtol=1e-3, atol=1e-5)
    assert isinstance(update(updater, again.model, again.learner, fresh), Declined)
    assert {n: p.shape for n, p in again.learner.items()} == {
        n: p.shape for n, p in whole.learner.items()
    }


@EACH
def test_the_first_training_counts_too(updater, task):
    serving, old, fresh = model(task), examples(task, first=500), examples(task)
    updater = replace(updater, **({"calibrate": False} if isinstance(task, Regression) else {}))
    learner = updater.begin(serving, old, rng=rng(1))
    found = update(updater, serving, learner, fresh)
    whole = update(updater, serving, {}, Examples.join([old, fresh]))
    for name, value in whole.model.weights().items():
        np.testing.assert_allclose(found.model.weights()[name], value, rtol=1e-4, atol=1e-5)


@EACH
def test_another_trunk_begins_anew(updater, task):
    fresh = examples(task)
    learner = updater.begin(model(task), examples(task, first=500), rng=rng(1))
    torch.manual_seed(9)
    other = model(task).with_weights(
        {n: v + (n == "layers.1.weight") for n, v in model(task).weights().items()}
    )
    assert same(
        update(updater, other, learner, fresh).model.weights(),
        update(updater, other, {}, fresh).model.weights(),
    )


@EACH
def test_one_event_one_class_and_a_constant_target_are_normal(updater, task):
    serving, fresh = model(task), examples(task)
    constant = replace(fresh, targets={"y": np.ones_like(fresh.targets["y"])})
    for events in (fresh.take(slice(0, 1)), constant, constant.take(slice(0, 1))):
        found = update(updater, serving, {}, events).model
        assert all(np.isfinite(value).all() for value in found.weights().values())
        before = serving.errors(events)["error"].mean()
        assert found.errors(events)["error"].mean() <= before


@EACH
def test_what_is_not_a_number_is_named(updater, task):
    fresh = examples(task)
    spoilt = {**fresh.inputs, "b": np.where(np.arange(80) == 4, np.inf, fresh.inputs["b"])}
    with pytest.raises(DataError, match=r"column 'b' holds inf at \(4,\)"):
        update(updater, model(task), {}, replace(fresh, inputs=spoilt))


@EACH
def test_a_head_over_the_budget_is_declined(updater, task):
    found = update(updater, model(task), {}, examples(task), budget=Budget(memory_bytes=10))
    assert isinstance(found, Declined)
    assert "bytes of learner memory where the budget allows 10" in found.because


@pytest.mark.parametrize("name", ["laplace", "mc-dropout", "auxiliary"])
def test_a_wrapper_round_one_core_is_looked_through(name):
    serving = model(REGRESSION)
    serving = replace(serving, network=FACTORIES[name](network=serving.network).eval())
    fresh = examples(REGRESSION)
    found = update(RecursiveLeastSquares(), serving, {}, fresh)
    assert found.model.errors(fresh)["error"].mean() < serving.errors(fresh)["error"].mean()
    if name == "laplace":
        assert found.model.network.fitted


# -- what has no head to solve for ----------------------------------------------------------------


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(8, nominal(), library=load(), seed=5)


def declined(updater, serving, fresh):
    assert updater.begin(serving, fresh, rng=rng()) == {}
    found = update(updater, serving, {}, fresh)
    assert isinstance(found, Declined)
    assert not found.early
    return found.because


def test_a_vertex_network_has_none(vertices):
    torch.manual_seed(0)
    serving = Model(E2E().eval(), VertexTask(), Architecture("e2e"))
    for updater in (StreamingLDA(), NearestMean(), RecursiveLeastSquares()):
        assert declined(updater, serving, vertices).startswith("there is no head to solve for: ")


class Twisted(nn.Module):
    """A network whose mean is bent after its last layer."""

    def __init__(self, bend):
        super().__init__()
        self.layer, self.bend = nn.Linear(2, 2), bend

    def forward(self, x):
        return self.bend(self.layer(x))


def test_the_reason_is_told():
    regression, classes = examples(REGRESSION), examples(CLASSES)
    lda, rls = StreamingLDA(), RecursiveLeastSquares()
    assert "Regression states numbers, not classes" in declined(lda, model(REGRESSION), regression)
    assert "Classification states classes, not a number" in declined(rls, model(CLASSES), classes)
    members = FACTORIES["deep-ensemble"](network=MLP(2, [4], 2))
    because = declined(rls, model(REGRESSION, members), regression)
    assert "no nn.Linear" in because or "more last layers than one" in because
    bent = model(REGRESSION, Twisted(lambda out: torch.stack([out[:, 0] ** 3, out[:, 1]], 1)))
    assert "no straight line" in declined(rls, bent, regression)
    still = model(REGRESSION, Twisted(lambda out: out * torch.tensor([0.0, 1.0])))
    assert "does not move the mean" in declined(rls, still, regression)
    named = RecursiveLeastSquares(layer="layers.9")
    assert "has no nn.Linear 'layers.9'" in declined(named, model(REGRESSION), regression)
    two = Classification(features=("a", "b"), classes=2)
    softened = model(two, Twisted(lambda out: 2 * out))
    few = replace(classes, targets={"y": classes.targets["y"] % 2})
    assert "does not give the logits themselves" in declined(lda, softened, few)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StreamingLDA(shrinkage=1.5), r"shrinkage must be in \[0, 1\]"),
        (lambda: StreamingLDA(forgetting=0.0), r"forgetting in \(0, 1\], got 0.0001 and 0.0"),
        (lambda: StreamingLDA(recall=-1), "recall of at least 0"),
        (lambda: NearestMean(shrinkage=0.5), "NearestMean has shrinkage 1, got 0.5"),
        (lambda: RecursiveLeastSquares(forgetting=1.1), r"forgetting must be in \(0, 1\]"),
        (lambda: RecursiveLeastSquares(ridge=0.0), "ridge above 0"),
        (lambda: RecursiveLeastSquares(block=0), "block at least 1"),
        (lambda: RecursiveLeastSquares(min_events=0), "min_events of at least 1"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
