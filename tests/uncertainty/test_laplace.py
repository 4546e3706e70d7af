"""Last-layer Laplace: against exact Bayesian linear regression, and on classes and vertices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import FROZEN, vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, build
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.uncertainty import BetaGaussianHead, LastLayerLaplace
from stillfit.uncertainty.laplace import Posterior, best_precision
from stillfit.uncertainty.methods import FACTORIES, METHODS

TASK = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
NONE = Schedule(steps=0)
SHORT = Schedule(steps=200, batch=200, rate=0.01)
NOISE = 0.3


def linear(n, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    a, b = spread * rng.normal(size=n), spread * rng.normal(size=n)
    y = 1.5 * a - 0.5 * b + 2 + NOISE * rng.normal(size=n)
    ids = np.arange(n, dtype=np.int64)
    return Examples(ids, {"a": a, "b": b}, {"y": y}, np.zeros(n), np.full(n, "all"))


def curved(n, seed, classes=False):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-2, 2, n), rng.normal(size=n)
    y = np.sin(2 * a) + (0.1 + 0.2 * np.abs(b)) * rng.normal(size=n)
    if classes:
        y = np.where(rng.random(n) < 0.1, rng.integers(0, 3, n), np.digitize(a + b, [-1, 1]))
    ids = np.arange(n, dtype=np.int64)
    return Examples(ids, {"a": a, "b": b}, {"y": y}, np.zeros(n), np.full(n, "all"))


def bayesian(examples, precision):
    """Exact posterior mean and covariance of the weights, bias last, for the prior N(0, 1/p)."""
    x = np.stack([examples.inputs["a"], examples.inputs["b"], np.ones(len(examples))], 1)
    covariance = np.linalg.inv(x.T @ x / NOISE**2 + precision * np.eye(3))
    return covariance @ x.T @ examples.targets["y"] / NOISE**2, covariance


def at_posterior_mean(examples, precision):
    """A linear network with constant noise whose weights are the exact posterior mean."""
    network = WithNoise(nn.Linear(2, 1))
    mean, _ = bayesian(examples, precision)
    with torch.no_grad():
        network.network.weight.copy_(torch.from_numpy(mean[None, :2]))
        network.network.bias.fill_(mean[2])
        network.log_variance.fill_(2 * math.log(NOISE))
    return network


def finished(network, task, examples, seed=0):
    model = Model(network.eval(), task, Architecture("x"))
    data = Prepared.of(model, examples)
    network.finish(task, data, NONE, np.random.default_rng(seed))
    return model


def trained(network, task, examples, seed=0, schedule=SHORT):
    model = Model(uncertain.fresh(task, network, examples, seed), task, Architecture("x"))
    fit(model, Prepared.of(model, examples), schedule, np.random.default_rng(seed))
    return model


# Closed forms


@pytest.mark.parametrize("precision", [0.01, 1.0, 100.0])
def test_of_a_linear_gaussian_model_it_is_exact_bayesian_regression(precision):
    examples, test = linear(40, 1), linear(200, 2, spread=5.0)
    network = LastLayerLaplace(at_posterior_mean(examples, precision), prior_precision=precision)
    predictive, _ = finished(network, TASK, examples).predict(test.inputs)
    mean, covariance = bayesian(examples, precision)
    x = np.stack([test.inputs["a"], test.inputs["b"], np.ones(200)], 1)
    want = np.einsum("nd,de,ne->n", x, covariance, x)
    np.testing.assert_allclose(predictive.mean, x @ mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(predictive.epistemic, want, rtol=1e-3)
    np.testing.assert_allclose(predictive.aleatoric, NOISE**2, rtol=1e-5)
    np.testing.assert_allclose(predictive.variance, want + NOISE**2, rtol=1e-3)


def test_the_evidence_is_that_of_the_exact_model_and_its_best_prior_is_found():
    """log N(y; 0, noise + X X^T / p), whose maximum the precision must be at."""
    examples = linear(30, 3)
    x = np.stack([examples.inputs["a"], examples.inputs["b"], np.ones(30)], 1)
    y = examples.targets["y"]

    def evidence(log_p):
        covariance = NOISE**2 * np.eye(30) + x @ x.T / math.exp(log_p)
        return -stats.multivariate_normal.logpdf(y, np.zeros(30), covariance)

    exact = math.exp(optimize.minimize_scalar(evidence, bounds=(-8, 8), method="bounded").x)
    p = 1.0
    for _ in range(50):  # the weights depend on the prior: to the fixed point
        mean, _ = bayesian(examples, p)
        values = np.linalg.eigvalsh(x.T @ x / NOISE**2)
        p = best_precision(values, float(mean @ mean))
    assert p == pytest.approx(exact, rel=1e-3)
    found = finished(LastLayerLaplace(at_posterior_mean(examples, p)), TASK, examples).network
    assert float(found.precision) == pytest.approx(exact, rel=1e-3)


def test_the_curvature_of_classes_is_the_hessian_of_the_loss():
    torch.manual_seed(0)
    network = MLP(2, [4], outputs=3).eval()
    examples = curved(50, 1, classes=True)
    wrapped = LastLayerLaplace(network, prior_precision=2.0, samples=2)
    x = torch.from_numpy(CLASSES.prepare(network, examples.inputs)["x"])
    phi = network.layers[:-1](x).double().detach()
    phi = torch.cat([phi, torch.ones(50, 1)], 1)
    y = torch.from_numpy(examples.targets["y"]).long()

    def loss(weights):
        return nn.functional.cross_entropy(phi @ weights.reshape(3, 5).T, y, reduction="sum")

    last = network.layers[-1]
    weights = torch.cat([last.weight, last.bias[:, None]], 1).detach().double().ravel()
    want = torch.autograd.functional.hessian(loss, weights).numpy()
    data = Prepared.of(Model(network, CLASSES, Architecture("x")), examples)
    np.testing.assert_allclose(wrapped._of_classes(CLASSES, data), want, rtol=1e-4, atol=1e-5)
    diagonal = LastLayerLaplace(network, "diagonal", samples=2)._of_classes(CLASSES, data)
    np.testing.assert_allclose(diagonal, np.diag(want), rtol=1e-4)


def test_samples_have_the_posteriors_covariance_and_the_root_gives_it():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 6))
    curvature = a.T @ a
    posterior = Posterior.of(curvature, np.ones(6), 0.5)
    want = np.linalg.inv(curvature + 0.5 * np.eye(6))
    drawn = posterior.sample(200_000, rng)
    np.testing.assert_allclose(np.cov(drawn.T), want, atol=0.01 * np.abs(want).max())
    root = posterior.roots(2)
    blocks = np.einsum("akd,bke->adbe", root, root).reshape(6, 6)
    np.testing.assert_allclose(blocks, want, rtol=1e-6, atol=1e-12)
    diagonal = Posterior.of(np.diag(curvature), np.ones(6), 0.5)
    np.testing.assert_allclose(diagonal.roots(1)[0] ** 2, 1 / (np.diag(curvature) + 0.5))
    # What the other weights leave open is not seen: each weight alone is never less certain.
    assert np.all(diagonal.roots(1)[0] ** 2 <= np.diag(want) * (1 + 1e-12))


# Laws


def test_far_from_the_data_it_is_less_sure_and_more_data_make_it_surer():
    few, many = curved(100, 1), curved(2000, 1)
    small, large = (trained(LastLayerLaplace(MLP(2, [32])), TASK, part) for part in (few, many))
    test, far = curved(300, 2), curved(300, 2)
    far.inputs["a"][:] *= 10
    near, away = small.predict(test.inputs)[0], small.predict(far.inputs)[0]
    assert np.median(away.epistemic) > 5 * np.median(near.epistemic)
    assert np.median(large.predict(test.inputs)[0].epistemic) < 0.3 * np.median(near.epistemic)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_the_distribution_function_at_the_truth_is_uniform(structure):
    examples, test = curved(2000, 1), curved(2000, 2)
    schedule = Schedule(steps=500, batch=200, rate=0.01)
    network = LastLayerLaplace(MLP(2, [32, 32]), structure)
    predictive, _ = trained(network, TASK, examples, schedule=schedule).predict(test.inputs)
    assert isinstance(predictive, Mixture)
    assert stats.kstest(predictive.cdf(test.targets["y"]), "uniform").statistic < 0.06
    np.testing.assert_allclose(predictive.variance, predictive.aleatoric + predictive.epistemic)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_the_main_network_is_left_as_it_was(structure):
    torch.manual_seed(0)
    plain = BetaGaussianHead(MLP(2, [16]))
    examples = curved(300, 1)
    alone = trained(plain, TASK, examples)
    model = trained(LastLayerLaplace(plain, structure), TASK, examples)
    for name, value in alone.weights().items():
        np.testing.assert_array_equal(model.weights()[f"network.{name}"], value)
    one, two = alone.predict(examples.inputs)[0], model.predict(examples.inputs)[0]
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.variance, two.aleatoric)
    assert one.aleatoric is None  # one pass alone cannot say
    assert all(not module._forward_hooks for module in model.network.modules())


def test_the_targets_unit_scales_the_epistemic_deviation():
    examples, test = curved(400, 1), curved(50, 2)
    wide = Examples(
        examples.ids, examples.inputs, {"y": 7 + 1e3 * examples.targets["y"]}, examples.times,
        examples.conditions,
    )  # fmt: skip
    torch.manual_seed(0)
    network = LastLayerLaplace(MLP(2, [16]))
    one, two = (trained(network, TASK, part).predict(test.inputs)[0] for part in (examples, wide))
    np.testing.assert_allclose(two.epistemic, 1e6 * one.epistemic, rtol=0.02)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("link", ["samples", "probit"])
def test_classes_get_members_or_softer_probabilities(structure, link):
    examples, test = curved(400, 1, classes=True), curved(300, 2, classes=True)
    network = LastLayerLaplace(MLP(2, [16], outputs=3), structure, link=link, samples=30)
    model = trained(network, CLASSES, examples)
    predictive, _ = model.predict(test.inputs)
    assert isinstance(predictive, Categorical)
    assert predictive.members.shape == (300, 30 if link == "samples" else 1, 3)
    alone, _ = Model(model.network.core, CLASSES, Architecture("x")).predict(test.inputs)
    assert predictive.entropy.mean() > alone.entropy.mean()
    assert np.mean(predictive.probabilities.argmax(1) == alone.probabilities.argmax(1)) > 0.97
    again, _ = model.predict(test.inputs)
    np.testing.assert_array_equal(again.members, predictive.members)
    if link == "probit":
        assert predictive.epistemic is None
    else:
        assert np.all(predictive.epistemic >= 0) and predictive.epistemic.max() > 0


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_samples_and_probit_agree(structure):
    examples, test = curved(400, 1, classes=True), curved(300, 2, classes=True)
    stated = []
    for link in ("samples", "probit"):
        torch.manual_seed(0)
        network = LastLayerLaplace(MLP(2, [16], outputs=3), structure, link=link, samples=2000)
        stated.append(trained(network, CLASSES, examples).predict(test.inputs)[0].probabilities)
    assert np.abs(stated[0] - stated[1]).max() < 0.05


def test_the_same_generator_draws_the_same_samples():
    examples = curved(200, 1, classes=True)
    torch.manual_seed(0)
    plain = MLP(2, [8], outputs=3)
    roots = [
        finished(LastLayerLaplace(plain), CLASSES, examples, seed=seed).network.root
        for seed in (1, 1, 2)
    ]
    assert torch.equal(roots[0], roots[1]) and not torch.equal(roots[0], roots[2])


@pytest.mark.parametrize("name", ["laplace", "laplace-diagonal"])
def test_a_version_is_built_from_names_and_weights(name):
    inner = {"factory": "mlp", "arguments": {"features": 2, "hidden": [8]}}
    architecture = Architecture(name, {"network": inner, "prior_precision": 3.0})
    factories = {**FACTORIES, "mlp": MLP}
    model = trained(build(architecture, factories), TASK, curved(200, 1))
    assert float(model.network.precision) == 3.0
    twin = Model(build(architecture, factories), TASK, architecture).with_weights(model.weights())
    test = curved(30, 2)
    one, two = model.predict(test.inputs)[0], twin.predict(test.inputs)[0]
    np.testing.assert_array_equal(one.variance, two.variance)
    assert model.network.structure == ("full" if name == "laplace" else "diagonal")
    assert METHODS[name].kind == "post-hoc" and METHODS[name].decomposes


def test_before_it_is_fitted_it_states_what_the_network_states():
    plain, test = MLP(2, [8]).eval(), curved(20, 1)
    one, _ = Model(plain, TASK, Architecture("x")).predict(test.inputs)
    two, _ = Model(LastLayerLaplace(plain), TASK, Architecture("x")).predict(test.inputs)
    np.testing.assert_array_equal(one.std, two.std)
    assert two.epistemic is None


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_a_vertex_network_gets_it_on_its_event_head(structure):
    events = vertex_examples(400, nominal(), library=load(), seed=3)
    model = Model(LastLayerLaplace(E2E(), structure), VertexTask(), Architecture("x"))
    data, rng = Prepared.of(model, events), np.random.default_rng(0)
    assert fit(model, data, Schedule(steps=8, batch=150), rng, rates=FROZEN) == 8
    predictive, outputs = model.predict(events.inputs)
    assert model.network.layer == "sigma.layers.2"
    assert np.all(predictive.epistemic > 0)
    np.testing.assert_allclose(predictive.variance, predictive.aleatoric + predictive.epistemic)
    alone, first = Model(model.network.core, VertexTask(), Architecture("x")).predict(events.inputs)
    np.testing.assert_array_equal(alone.mean, predictive.mean)
    np.testing.assert_array_equal(first["association"].values, outputs["association"].values)


# Bad input


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: LastLayerLaplace(MLP(2, [8]), "kronecker"),
            "structure must be 'full' or 'diagonal' and link 'samples' or 'probit', got "
            "'kronecker' and 'samples'",
        ),
        (
            lambda: LastLayerLaplace(MLP(2, [8]), prior_precision=0.0),
            "prior_precision must be positive, or None for the evidence's, got 0.0",
        ),
        (
            lambda: LastLayerLaplace(MLP(2, [8]), samples=1),
            "two or more samples are needed to differ, got 1",
        ),
        (
            lambda: LastLayerLaplace(MLP(2, [400], outputs=10)),
            "the full covariance of 4010 weights is too large (at most 2500); ask for "
            "structure='diagonal'",
        ),
        (
            lambda: LastLayerLaplace(MLP(2, [8]), layer="layers.33"),
            "MLP has no layer 'layers.33'; did you mean 'layers.3'?",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_two_classes_must_be_named_as_such():
    task = Classification(features=("a", "b"), classes=2)
    examples = curved(200, 1)
    examples.targets["y"][:] = examples.targets["y"] > 0
    with pytest.raises(ConfigError) as caught:
        finished(LastLayerLaplace(MLP(2, [8])), task, examples)
    assert str(caught.value) == (
        "MLP was taken for a network of numbers and its task is about classes: say "
        "LastLayerLaplace(..., classification=True)"
    )
    model = finished(LastLayerLaplace(MLP(2, [8]), classification=True), task, examples)
    assert model.predict(examples.inputs)[0].members.shape == (200, 20, 2)


class Through(nn.Module):
    """What follows the last linear layer is not linear, or takes the wrong output."""

    def __init__(self, what):
        super().__init__()
        self.what, self.out = what, nn.Linear(2, 2)
        self.deep = nn.Linear(1, 1)

    def forward(self, x):
        if self.what == "per item":
            self.deep(x[:, :, None])
        out = self.out(x)
        mean, rest = out[:, 0], out[:, 1]
        mean = {"curved": mean**3, "both": mean + rest, "none": 0 * mean}.get(self.what, mean)
        return torch.stack([mean, rest], 1)


@pytest.mark.parametrize(
    ("what", "layer", "error", "text"),
    [
        ("curved", "out", ConfigError, "the mean of Through is no fixed multiple of the first"),
        ("both", "out", ConfigError, "the mean of Through depends on more outputs of layer 'out'"),
        ("none", "out", ConfigError, "layer 'out' of Through does not move the mean; give the"),
        ("plain", "deep", ConfigError, "layer 'deep' of Through took no part in its prediction"),
        ("per item", "deep", ShapeError, "the input of layer 'deep' must be (n, features), got"),
    ],
)
def test_a_last_layer_that_is_not_the_means_is_refused(what, layer, error, text):
    network = LastLayerLaplace(Through(what), layer=layer, classification=False)
    with pytest.raises(error) as caught:
        finished(network, TASK, curved(50, 1))
    assert text in str(caught.value)


def test_logits_that_are_changed_after_the_layer_are_refused():
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    with pytest.raises(ConfigError, match="layer '0' of Sequential does not give the logits"):
        finished(LastLayerLaplace(network), CLASSES, curved(50, 1, classes=True))


def test_a_diverged_network_has_no_curvature():
    network = LastLayerLaplace(nn.Linear(2, 2))
    with torch.no_grad():
        network.network.weight[1].fill_(math.nan)
    data = Prepared({"x": np.ones((5, 2), np.float32)}, {"y": np.zeros(5)}, 5)
    with pytest.raises(DataError, match="variances must be positive and finite, got nan; did the"):
        network.finish(TASK, data, NONE, np.random.default_rng(0))
