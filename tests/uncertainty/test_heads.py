"""Heads: each family against its textbook form, its behaviour under rescaling, and conversion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy import integrate, stats
from torch import nn

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Mixture, QuantileTable, StudentT
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.library import load
from stillfit.l1t.recipe import FROZEN, vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.likelihood import GaussianLikelihood
from stillfit.models.model import Architecture, Model, build
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.uncertainty import (
    Auxiliary,
    BetaGaussianHead,
    CrpsHead,
    EvidentialHead,
    GaussianHead,
    LastLayerLaplace,
    QuantileHead,
)
from stillfit.uncertainty.heads import LEVELS, BetaGaussian, Crps, Evidential, Gaussian, Quantiles
from stillfit.uncertainty.methods import FACTORIES, METHODS

TASK = Regression(features=("a", "b"))
HEADS = {
    "gaussian": GaussianHead,
    "beta-gaussian": BetaGaussianHead,
    "crps": CrpsHead,
    "quantiles": QuantileHead,
    "evidential": EvidentialHead,
}
FAMILIES = [
    Gaussian(),
    BetaGaussian(),
    BetaGaussian(beta=1.0),
    Crps(),
    Quantiles(),
    Evidential(),
    Evidential(strength=0.0),
]


def toy(n, seed, scale=1.0, shift=0.0):
    """y = sin(2 a) + (0.1 + 0.2 |b|) x normal, in a unit `scale`."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-2, 2, n), rng.normal(size=n)
    y = np.sin(2 * a) + (0.1 + 0.2 * np.abs(b)) * rng.normal(size=n)
    ids = np.arange(n, dtype=np.int64)
    return Examples(ids, {"a": a, "b": b}, {"y": shift + scale * y}, np.zeros(n), np.full(n, "all"))


def trained(network, task, examples, steps=300, seed=0, **knobs):
    network = uncertain.fresh(task, network, examples, seed)
    model = Model(network, task, Architecture("x"))
    schedule = Schedule(steps=steps, batch=200, rate=0.01)
    fit(model, Prepared.of(model, examples), schedule, np.random.default_rng(seed), **knobs)
    return model


def random_raw(family, n, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    unit = torch.tensor(family.unit, dtype=dtype)
    return unit + 0.3 * torch.randn(n, family.outputs, dtype=dtype)


# The losses, against their textbook forms


def test_with_beta_0_the_loss_is_the_likelihood():
    raw, y = random_raw(Gaussian(), 50), torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(
        BetaGaussian(beta=0.0).loss(raw, y), GaussianLikelihood().loss(raw, y)
    )


def test_with_beta_1_the_gradient_of_the_mean_is_that_of_squared_errors():
    raw, y = random_raw(Gaussian(), 50).requires_grad_(), torch.randn(50, dtype=torch.float64)
    BetaGaussian(beta=1.0).loss(raw, y).backward()
    ratio = raw.grad[:, 0] / (raw.detach()[:, 0] - y)
    torch.testing.assert_close(ratio, ratio[0].expand(50))


@pytest.mark.parametrize("beta", [0.25, 0.5])
def test_the_beta_loss_is_the_published_one_up_to_the_mean_weight(beta):
    raw, y = random_raw(Gaussian(), 50), torch.randn(50, dtype=torch.float64)
    sigma = np.exp(raw[:, 1].numpy() / 2)
    nll = 0.5 * ((y.numpy() - raw[:, 0].numpy()) ** 2 / sigma**2 + 2 * np.log(sigma))
    weight = sigma ** (2 * beta)
    want = (weight * nll).mean() / weight.mean()
    assert float(BetaGaussian(beta=beta).loss(raw, y)) == pytest.approx(want)


def test_the_crps_loss_is_the_score_over_sigma_and_trains_the_mean_too():
    raw, y = random_raw(Crps(), 50).requires_grad_(), torch.randn(50, dtype=torch.float64)
    mean, sigma = raw.detach()[:, 0].numpy(), np.exp(raw.detach()[:, 1].numpy() / 2)
    loss = Crps().loss(raw, y)
    want = (scoringrules.crps_normal(y.numpy(), mean, sigma) / sigma).mean()
    assert float(loss.detach()) == pytest.approx(want)
    loss.backward()
    pull = 50 * raw.grad[:, 0].numpy() * sigma
    np.testing.assert_allclose(pull, 2 * stats.norm.cdf((mean - y.numpy()) / sigma) - 1)


def test_the_pinball_loss_is_least_at_the_quantiles():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.gamma(2.0, 1.5, 4001))
    family = Quantiles(levels=(0.1, 0.5, 0.9))
    raw = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=0.05)
    for step in range(800):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 800)
        optimiser.zero_grad()
        family.loss(raw.expand(len(y), 3), y).backward()
        optimiser.step()
    want = np.quantile(y.numpy(), [0.1, 0.5, 0.9])
    # Between two neighbours in the sample the loss is flat.
    np.testing.assert_allclose(raw.detach().numpy()[0], want, atol=0.01)


def test_the_pinball_loss_of_a_hand_made_case():
    family = Quantiles(levels=(0.25, 0.75))
    raw, y = torch.tensor([[0.0, 2.0]]), torch.tensor([1.0])
    # 0.25 x 1 below and 0.25 x 1 above, mean 0.25, over a width of 2.
    assert float(family.loss(raw, y)) == pytest.approx(0.125)


def test_the_evidential_marginal_is_a_student_t():
    family = Evidential(strength=0.0)
    raw, y = random_raw(family, 20, seed=3), torch.randn(20, dtype=torch.float64)
    gamma, nu, alpha, beta = (part.numpy() for part in family.split(raw))
    scale = np.sqrt(beta * (1 + nu) / (nu * alpha))
    want = stats.t.logpdf(y.numpy(), 2 * alpha, gamma, scale)
    assert float(family.loss(raw, y)) == pytest.approx(-want.mean())
    stated = family.predictive(raw[None])
    assert isinstance(stated, StudentT)
    np.testing.assert_allclose(stated.log_prob(y.numpy()), want)
    np.testing.assert_allclose(stated.variance, stated.aleatoric + stated.epistemic)
    np.testing.assert_allclose(stated.aleatoric, beta / (alpha - 1))
    np.testing.assert_allclose(stated.epistemic, beta / (nu * (alpha - 1)))


def test_the_evidential_marginal_is_the_integral_over_its_prior():
    family = Evidential()
    raw = random_raw(family, 1, seed=4)
    gamma, nu, alpha, beta = (float(part[0]) for part in family.split(raw))
    y = gamma + 0.7

    def density(s2):  # of y, given the variance, the mean integrated out; times the prior
        return stats.norm.pdf(y, gamma, math.sqrt(s2 * (1 + 1 / nu))) * stats.invgamma.pdf(
            s2, alpha, scale=beta
        )

    want, _ = integrate.quad(density, 0, np.inf)
    assert family.predictive(raw[None]).log_prob(np.array([y]))[0] == pytest.approx(math.log(want))


def test_the_evidence_regulariser_is_strength_times_scaled_error_times_evidence():
    raw, y = random_raw(Evidential(), 20), torch.randn(20, dtype=torch.float64)
    gamma, nu, alpha, beta = Evidential().split(raw)
    scale = torch.sqrt(beta * (1 + nu) / (nu * alpha))
    extra = Evidential(strength=0.3).loss(raw, y) - Evidential(strength=0.0).loss(raw, y)
    want = 0.3 * ((y - gamma).abs() / scale * (2 * nu + alpha)).mean()
    torch.testing.assert_close(extra, want)


# Laws of each family


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_rescaling_moves_and_stretches_the_distribution(family):
    raw = random_raw(family, 30)
    rng = np.random.default_rng(1)
    mean, std = torch.from_numpy(rng.normal(size=30)), torch.from_numpy(rng.uniform(0.1, 9, 30))
    for m, s in ((mean, std), (-3.0, 0.25)):
        before = family.predictive(raw[None])
        after = family.predictive(family.rescale(raw, m, s)[None])
        m, s = np.asarray(m), np.asarray(s)
        np.testing.assert_allclose(after.mean, m + s * before.mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(after.std, s * before.std, rtol=1e-6)
        for level in (0.03, 0.3, 0.5, 0.96):
            want = m + s * before.quantile(level)
            np.testing.assert_allclose(after.quantile(level), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_gradient_does_not_depend_on_the_targets_unit(family):
    """So that a penalty beside the loss means the same in metres and in micrometres."""
    torch.manual_seed(1)
    y = torch.randn(40, dtype=torch.float64)
    gradients = []
    for unit in (1.0, 1e3):
        raw = random_raw(family, 40).requires_grad_()
        family.loss(family.rescale(raw, 5.0, unit), 5.0 + unit * y).backward()
        gradients.append(raw.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_unit_has_mean_0_and_deviation_near_1(family):
    stated = family.predictive(torch.tensor(family.unit)[None, None])
    assert abs(stated.mean[0]) < 1e-6
    assert stated.std[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_absurd_outputs_state_something_finite(family):
    raw = torch.tensor([[1e4] * family.outputs, [-1e4] * family.outputs])
    stated = family.predictive(raw[None])
    assert np.all(np.isfinite(stated.mean)) and np.all(stated.std > 0)
    assert torch.isfinite(family.loss(raw, torch.zeros(2)))


def test_passes_of_quantiles_are_averaged_and_crossing_ones_sorted():
    family = Quantiles(levels=(0.1, 0.5, 0.9))
    passes = torch.tensor([[[3.0, 2.0, 1.0]], [[2.0, 4.0, 6.0]]])
    stated = family.predictive(passes)
    assert isinstance(stated, QuantileTable)
    np.testing.assert_allclose(stated.values, [[1.5, 3.0, 4.5]])
    assert stated.aleatoric is None and stated.epistemic is None


def test_passes_that_agree_state_what_one_states_and_others_add_their_disagreement():
    family = Evidential()
    raw = random_raw(family, 5)
    one, same = family.predictive(raw[None]), family.predictive(torch.stack([raw, raw]))
    np.testing.assert_allclose(same.variance, one.variance)
    np.testing.assert_allclose(same.scale, one.scale)
    away = raw.clone()
    away[:, 0] += 2.0
    two = family.predictive(torch.stack([raw, away]))
    np.testing.assert_allclose(two.mean, one.mean + 1.0)
    np.testing.assert_allclose(two.aleatoric, one.aleatoric)
    np.testing.assert_allclose(two.epistemic, one.epistemic + 1.0)
    np.testing.assert_allclose(two.variance, two.aleatoric + two.epistemic)


# On networks


@pytest.mark.parametrize("name", HEADS)
def test_the_distribution_function_at_the_truth_is_uniform(name):
    examples, test = toy(3000, 1, scale=40.0, shift=700.0), toy(3000, 2, scale=40.0, shift=700.0)
    model = trained(HEADS[name](MLP(2, [32, 32])), TASK, examples, steps=500)
    predictive, _ = model.predict(test.inputs)
    y = test.targets["y"]
    pit = predictive.cdf(y)
    # The network is not the truth: 0.05 is 2.7 times what 3000 draws scatter at 95 %.
    assert stats.kstest(pit, "uniform").statistic < 0.05
    low, high = predictive.interval(0.9)
    assert 0.86 < np.mean((low <= y) & (y <= high)) < 0.94
    assert np.sqrt(np.mean((predictive.mean - y) ** 2)) < 40 * 0.35  # noise alone: 40 x 0.31
    assert (predictive.epistemic is None) == (name != "evidential")
    assert METHODS[name].decomposes == (name == "evidential")


def test_any_network_whose_last_layer_is_linear_is_converted_and_the_rest_stays():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    network = QuantileHead(plain, levels=[0.1, 0.5, 0.9, 0.95])
    assert network(torch.zeros(5, 2)).shape == (5, 4)
    assert plain(torch.zeros(5, 2)).shape == (5, 3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    torch.testing.assert_close(network[0].weight, plain[0].weight, rtol=0, atol=0)
    assert network.likelihood == Quantiles(levels=(0.1, 0.5, 0.9, 0.95))
    model = trained(network, TASK, toy(400, 1), steps=20)
    assert isinstance(model.predict(toy(10, 2).inputs)[0], QuantileTable)


def test_a_lone_linear_layer_and_a_wrapped_network_are_converted():
    assert GaussianHead(nn.Linear(2, 1))(torch.zeros(3, 2)).shape == (3, 2)
    network = EvidentialHead(WithNoise(MLP(2, [8], outputs=1)))
    assert isinstance(network, MLP) and network(torch.zeros(3, 2)).shape == (3, 4)


def test_a_named_layer_is_the_head():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.out(x)

    network = GaussianHead(Forked(), layer="out")
    assert network(torch.zeros(3, 2)).shape == (3, 2)


def test_the_seed_alone_decides_the_new_layer():
    def weight(seed):
        torch.rand(1)
        return GaussianHead(MLP(2, [8]), seed=seed).layers[-1].weight

    assert torch.equal(weight(1), weight(1)) and not torch.equal(weight(1), weight(2))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_the_catalogue_is_built_from_names_and_numbers(name):
    inner = {"factory": "mlp", "arguments": {"features": 2, "hidden": [8]}}
    knobs = {"quantiles": {"levels": [0.1, 0.9]}, "evidential": {"strength": 0.1}}.get(name, {})
    network = build(Architecture(name, {"network": inner, **knobs}), {**FACTORIES, "mlp": MLP})
    torch.manual_seed(3)
    assert network(torch.zeros(4, 2)).shape == (4, network.likelihood.outputs)
    assert METHODS[name].kind == "head"
    levels = METHODS["quantiles"].convert(MLP(2, [8])).likelihood.levels
    assert levels == LEVELS


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(500, nominal(), library=load(), seed=3)


@pytest.mark.parametrize("kind", [E2E, AdaptiveE2E])
@pytest.mark.parametrize("name", HEADS)
def test_a_vertex_network_works_with_each_head(name, kind, vertices):
    plain, task = kind(), VertexTask()
    model = Model(HEADS[name](plain), task, Architecture("x"))
    before = model.weights()
    data = Prepared.of(model, vertices)
    steps = fit(model, data, Schedule(steps=8, batch=200), np.random.default_rng(0), rates=FROZEN)
    assert steps == 8
    after = model.weights()
    assert any(name.startswith("sigma") and np.any(after[name] != before[name]) for name in after)
    predictive, outputs = model.predict(vertices.inputs)
    form = {"quantiles": QuantileTable, "evidential": StudentT}.get(name, Mixture)
    assert isinstance(predictive, form) and np.all(predictive.std > 0)
    assert len(outputs["association"]) == len(predictive) == 500
    # A random shift of a fresh head would spoil the position: it starts with none.
    served, _ = Model(plain.eval(), task, Architecture("x")).predict(vertices.inputs)
    fresh, _ = Model(HEADS[name](plain), task, Architecture("x")).predict(vertices.inputs)
    np.testing.assert_allclose(fresh.mean, served.mean, atol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: BetaGaussian(beta=1.5),
            "beta must lie between 0 (likelihood) and 1 (squared errors), got 1.5",
        ),
        (
            lambda: Quantiles(levels=(0.5, 0.1)),
            "quantile levels must be two or more, rise, and lie strictly between 0 and 1, got "
            "(0.5, 0.1)",
        ),
        (lambda: Quantiles(levels=(0.5,)), "quantile levels must be two or more"),
        (lambda: Quantiles(levels=(0.0, 0.5)), "strictly between 0 and 1, got (0.0, 0.5)"),
        (
            lambda: Evidential(strength=-1.0),
            "the evidence regulariser's strength must be 0 or more, got -1.0",
        ),
        (
            lambda: GaussianHead(FastHisto()),
            "FastHisto has no nn.Linear, so it has no last layer to work on",
        ),
        (
            lambda: GaussianHead(MLP(2, [8]), layer="layer.1"),
            "MLP has no layer 'layer.1'; did you mean 'layers.1'? (its layers: layers, layers.0, ",
        ),
        (
            lambda: GaussianHead(MLP(2, [8]), layer="layers.2"),
            "layer 'layers.2' of MLP is a ReLU; the last layer must be an nn.Linear",
        ),
        (
            lambda: GaussianHead(E2E(), layer="sigma"),
            "E2E has a head of its own, so no layer can be named; got 'sigma'",
        ),
        (
            lambda: GaussianHead(Auxiliary(MLP(2, [8]))),
            "a head takes a plain network, and Auxiliary has several passes or parts; give a head "
            "to the network inside it",
        ),
        (
            lambda: LastLayerLaplace(QuantileHead(MLP(2, [8]))),
            "a last-layer Laplace needs a Gaussian likelihood, Quantiles has no curvature",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


@pytest.mark.parametrize("head", HEADS.values())
def test_a_classifier_needs_no_head(head):
    task = Classification(features=("a", "b"), classes=2)
    model = Model(head(MLP(2, [8])), task, Architecture("x"))
    with pytest.raises(ConfigError) as caught:
        model.predict(toy(5, 1).inputs)
    assert "the task is about 2 classes, whose head is the softmax itself: give it no other" in str(
        caught.value
    )


def test_a_network_that_does_not_give_what_its_family_needs_is_an_error():
    network = QuantileHead(
        nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1), nn.Unflatten(1, (1, -1)))
    )
    with pytest.raises(ShapeError, match=r"with Quantiles must return \(n, 9\), for 3 events it"):
        Model(network, TASK, Architecture("x")).predict(toy(3, 1).inputs)
