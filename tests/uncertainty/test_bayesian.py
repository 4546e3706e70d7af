"""Bayesian layers against closed forms and sampling; moments against Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions, nn

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Mixture
from stillfit.l1t.e2e import E2E
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.likelihood import GaussianLikelihood
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import RaggedTensor, tensors
from stillfit.models.training import Prepared, Schedule, shuffled, train
from stillfit.uncertainty import Bayesian, MomentPropagation
from stillfit.uncertainty.bayesian import GaussianWeights, gaussian_divergence
from stillfit.uncertainty.layers import Draw, drawing
from stillfit.uncertainty.moments import Moments

TASK = Regression(features=("a", "b"))


def examples(n=60, seed=1, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = x[:, 0] - 0.5 * x[:, 1] + noise * rng.normal(size=n)
    return Examples(
        np.arange(n), {"a": x[:, 0], "b": x[:, 1]}, {"y": y}, np.zeros(n), np.full(n, "nominal")
    )


EXAMPLES = examples()
INPUTS = tensors(TASK.prepare(MLP(2), EXAMPLES.inputs))
TARGETS = tensors(EXAMPLES.targets)


def random_posterior(network, seed=1, scale=0.3):
    """Other means and deviations for each weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("log_std"):
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(math.log(scale) + 0.3 * noise)
    return network


# The divergence and the loss


def test_the_divergence_is_the_closed_form_of_torch():
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(5, 7, generator=generator)
    log_std = torch.randn(5, 7, generator=generator)
    for prior in (0.3, 1.0, 4.0):
        posterior = distributions.Normal(mean, log_std.exp())
        exact = distributions.kl_divergence(posterior, distributions.Normal(0.0, prior)).sum()
        torch.testing.assert_close(gaussian_divergence(mean, log_std, prior), exact)
    at_prior = gaussian_divergence(torch.zeros(9), torch.full((9,), math.log(2.0)), 2.0)
    assert float(at_prior) == pytest.approx(0, abs=1e-5)


def test_the_loss_is_the_tasks_and_the_divergence_over_the_number_of_events():
    made = random_posterior(Bayesian(MLP(2, (4,)), events=50, prior_std=0.7))
    torch.manual_seed(1)
    with_prior = made.loss(TASK, INPUTS, TARGETS)
    torch.manual_seed(1)
    with drawing(Draw.LOCAL):
        data = TASK.loss(made.core, INPUTS, TARGETS)
    torch.testing.assert_close(with_prior, data + made.divergence() / 50)
    made.kl_weight = 0.1
    torch.manual_seed(1)
    torch.testing.assert_close(
        made.loss(TASK, INPUTS, TARGETS), data + 0.1 * made.divergence() / 50
    )


def test_the_number_of_events_comes_from_fresh_is_stored_and_can_be_given():
    made = Bayesian(MLP(2, (4,)))
    with pytest.raises(ConfigError, match="number of training events, which is not known"):
        made.loss(TASK, INPUTS, TARGETS)
    new = uncertain.fresh(TASK, made, EXAMPLES, 1)
    assert int(new.events_seen) == 60
    assert int(Model(new, TASK, Architecture("x")).copy().network.events_seen) == 60
    assert "events_seen" in new.state_dict()
    given = uncertain.fresh(TASK, Bayesian(MLP(2, (4,)), events=7), EXAMPLES, 1)
    assert int(given.events_seen) == 7


def test_an_overwhelming_prior_wins():
    made = uncertain.fresh(TASK, Bayesian(MLP(2, (4,)), prior_std=0.5, kl_weight=1e4), EXAMPLES, 1)
    fitted(made, steps=400, rate=0.05)
    for source in (m for m in made.modules() if isinstance(m, GaussianWeights)):
        assert float(source.weight.detach().abs().max()) < 0.02
        torch.testing.assert_close(
            source.weight_log_std, torch.full_like(source.weight, math.log(0.5)), rtol=0, atol=0.02
        )


def fitted(network, steps=500, rate=0.01, data=EXAMPLES):
    model = Model(network, TASK, Architecture("x"))
    draw = shuffled(Prepared.of(model, data), 30, np.random.default_rng(1))
    torch.manual_seed(1)
    losses = list(train(model, draw, Schedule(steps=steps, batch=30, rate=rate)))
    assert np.isfinite(losses).all()
    return model


def test_it_learns_and_knows_less_far_from_its_data():
    made = uncertain.fresh(TASK, Bayesian(MLP(2, (16,)), kl_weight=0.2), examples(400), 1)
    model = fitted(made, steps=900, data=examples(400))
    test = examples(300, seed=2)
    predictive, _ = model.predict(test.inputs)
    rmse = np.sqrt(np.mean((predictive.mean - test.targets["y"]) ** 2))
    assert rmse < 0.2, "of a target with a deviation of 1.1 and noise of 0.1"
    far, _ = model.predict({"a": np.full(5, 8.0), "b": np.linspace(-8, 8, 5)})
    assert far.epistemic.min() > 4 * np.median(predictive.epistemic)


def test_a_tiny_network_stays_finite_with_large_steps():
    made = uncertain.fresh(TASK, Bayesian(MLP(2, (2,))), EXAMPLES, 1)
    model = fitted(made, steps=200, rate=0.3)
    predictive, _ = model.predict(EXAMPLES.inputs)
    assert np.isfinite(predictive.variance).all()


# Sampling


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 3), (4, 5)), (nn.Conv1d(2, 3, 2, padding=1, bias=False), (4, 2, 6))],
    ids=["dense", "convolution"],
)
def test_local_noise_has_the_mean_and_variance_of_sampled_weights(layer, shape):
    n = 8000
    made = random_posterior(Bayesian(layer, n))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), uncertain.folded(slice(0, n)):
        sampled = made.core.spread(x, slice(0, n))
    torch.manual_seed(3)
    with torch.no_grad(), drawing(Draw.LOCAL):
        local = torch.stack([made.core(x) for _ in range(n)])
    with torch.no_grad(), drawing(Draw.MOMENTS):
        exact = made.core(x)
    for draws in (sampled, local):
        error = draws.std(0) / math.sqrt(len(draws))
        assert float(((draws.mean(0) - exact.mean).abs() / error).max()) < 5
        torch.testing.assert_close(draws.var(0), exact.variance, rtol=0.08, atol=0)


def test_tracks_of_one_event_share_the_draw():
    made = random_posterior(Bayesian(nn.Linear(2, 2), 2, events=5))
    ragged = {"tracks": RaggedTensor(torch.ones(6, 2), torch.zeros(6, dtype=torch.int64), 1)}

    class Sees:
        def loss(self, network, inputs, targets):
            self.seen = network(torch.ones(6, 2))
            return self.seen.sum()

    task = Sees()
    made.loss(task, ragged, {})
    assert float(task.seen.detach().std(0).max()) < 1e-6
    made.loss(task, {"x": torch.ones(6, 2)}, {})
    assert float(task.seen.detach().std(0).min()) > 0.01


def test_the_bank_follows_what_is_learned_and_its_seed():
    plain = MLP(2, (4,))
    one, same, other = Bayesian(plain, 3, seed=1), Bayesian(plain, 3, seed=1), Bayesian(plain, 3)
    with torch.inference_mode():
        first = one.eval().passes(TASK, INPUTS)[0]
        torch.testing.assert_close(same.eval().passes(TASK, INPUTS)[0], first, rtol=0, atol=0)
        assert float((other.eval().passes(TASK, INPUTS)[0] - first).abs().max()) > 1e-4
    with torch.no_grad():
        one.core.layers[1].source.weight.mul_(1.1)
        second = one.passes(TASK, INPUTS)[0]
        one.load_state_dict(same.state_dict())
        third = one.passes(TASK, INPUTS)[0]
    assert float((second - first).abs().max()) > 1e-4
    torch.testing.assert_close(third, first, rtol=0, atol=0)
    with_gradient = one.passes(TASK, INPUTS)[0]
    with_gradient.sum().backward()
    torch.testing.assert_close(with_gradient, first)


def test_only_the_named_layers_become_gaussian():
    made = Bayesian(E2E(), 2, layers=("sigma",))
    inside = [n for n, m in made.core.named_modules() if isinstance(m, GaussianWeights)]
    assert inside == ["sigma.layers.0.source", "sigma.layers.2.source"]
    new = uncertain.fresh(TASK, Bayesian(MLP(2), 2, layers=["layers.1"]), EXAMPLES, 1)
    assert sum(isinstance(m, GaussianWeights) for m in new.modules()) == 1


# Moments


def test_relu_and_clamp_have_the_moments_of_numerical_integration():
    means, spreads = [-3.0, -0.5, 0.0, 0.7, 4.0], [0.2, 1.0, 3.0]
    for m in means:
        for s in spreads:
            given = Moments(torch.tensor([m], dtype=torch.double), torch.tensor([s * s]).double())
            for made, f in (
                (torch.relu(given), lambda x: max(x, 0.0)),
                (torch.clamp(given, -1.0, 2.0), lambda x: min(max(x, -1.0), 2.0)),
            ):
                density = stats.norm(m, s).pdf
                points = sorted({-1.0, 0.0, 2.0, m})
                ends = (m - 12 * s, m + 12 * s)
                inside = [p for p in points if ends[0] < p < ends[1]]

                def moment(power, f=f, density=density, ends=ends, inside=inside):
                    value, _ = integrate.quad(
                        lambda x: f(x) ** power * density(x), *ends, points=inside, limit=200
                    )
                    return value

                first, second = moment(1), moment(2)
                assert float(made.mean) == pytest.approx(first, abs=1e-7)
                assert float(made.variance) == pytest.approx(second - first**2, abs=1e-6)


def test_a_relu_far_from_zero_loses_nothing_to_cancellation():
    far = Moments(torch.tensor([1000.0, -1000.0, 0.0]), torch.tensor([1e-4, 1e-4, 0.0]))
    made = far.relu()
    torch.testing.assert_close(made.mean, torch.tensor([1000.0, 0.0, 0.0]))
    torch.testing.assert_close(made.variance, torch.tensor([1e-4, 0.0, 0.0]))


class Convolutions(nn.Module):
    """Every kind of layer with a closed form, and a user's own way of writing it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(1, 6, 2, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.b = nn.Linear(18, 2)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.a(x[:, None])))
        return 1.5 * self.b(torch.flatten(x, 1)) / 2 - 0.1


@pytest.mark.parametrize(
    "network",
    [
        MLP(2, (20,)),
        MLP(2, (20, 20)),
        Convolutions(),
        WithNoise(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))),
    ],
    ids=["one layer", "two layers", "convolutions", "with noise"],
)
def test_moments_agree_with_monte_carlo(network):
    sampled = random_posterior(Bayesian(network, 4000), scale=0.15).eval()
    moments = sampled.moments()
    slow, _ = uncertain.predict(TASK, sampled, INPUTS)
    fast, outputs = uncertain.predict(TASK, moments, INPUTS)
    error = np.sqrt(slow.epistemic / 4000)
    assert np.abs((fast.mean - slow.mean) / error).max() < 6
    ratio = fast.epistemic / slow.epistemic
    assert 0.9 < np.median(ratio) < 1.1 and ratio.min() > 0.8 and ratio.max() < 1.25
    np.testing.assert_allclose(fast.aleatoric, slow.aleatoric, rtol=0.1)
    assert outputs == {}
    two = TASK.state(moments.core, moments.passes(TASK, INPUTS), INPUTS)[0]
    np.testing.assert_allclose(two.mean, fast.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two.variance, fast.variance, rtol=1e-4)
    moments.chunk = 7
    pieces, _ = uncertain.predict(TASK, moments, INPUTS)
    np.testing.assert_allclose(pieces.variance, fast.variance, rtol=1e-5)


def test_moments_are_exact_for_one_dense_layer():
    made = random_posterior(MomentPropagation(nn.Linear(2, 2)))
    source = made.core.source
    with torch.no_grad():
        predictive, _ = uncertain.predict(TASK, made, INPUTS)
        x, mean = INPUTS["x"], made.core(INPUTS["x"])
        variance = x**2 @ torch.exp(2 * source.weight_log_std).T + torch.exp(
            2 * source.bias_log_std
        )
    np.testing.assert_allclose(predictive.mean, mean[:, 0], rtol=1e-5)
    np.testing.assert_allclose(predictive.epistemic, variance[:, 0], rtol=1e-5)
    noise = torch.exp(mean[:, 1].double() + variance[:, 1].double() / 2)
    np.testing.assert_allclose(predictive.aleatoric, noise.numpy(), rtol=1e-5)
    np.testing.assert_allclose(predictive.variance, predictive.aleatoric + predictive.epistemic)


def test_moments_train_like_their_samples_and_keep_the_posterior():
    plain = MLP(2, (6,))
    sampled, moments = Bayesian(plain, events=9), MomentPropagation(plain, events=9)
    torch.manual_seed(1)
    one = sampled.loss(TASK, INPUTS, TARGETS)
    torch.manual_seed(1)
    torch.testing.assert_close(moments.loss(TASK, INPUTS, TARGETS), one)
    random_posterior(sampled)
    fast = sampled.moments()
    assert fast.moments() is fast and int(fast.events_seen) == 9
    for name, value in fast.named_parameters():
        torch.testing.assert_close(value, sampled.state_dict()[name], rtol=0, atol=0)
    assert not any("noise" in name for name in fast.state_dict())
    new = uncertain.fresh(TASK, fast, EXAMPLES, 1)
    assert isinstance(new, MomentPropagation) and int(new.events_seen) == 9


def test_the_event_head_of_a_vertex_network_may_be_gaussian_alone():
    task = VertexTask()
    rng = np.random.default_rng(1)
    events = torch.from_numpy(np.sort(rng.integers(0, 12, 200)))
    network = E2E().eval()
    values = torch.rand(200, 9, generator=torch.Generator().manual_seed(1)).half()
    values[:, 0] = torch.randint(0, 256, (200,)).half()
    inputs = {"tracks": RaggedTensor(values, events, 12)}
    made = random_posterior(MomentPropagation(network, layers=("sigma",)), scale=0.05).eval()
    sampled = random_posterior(Bayesian(network, 3000, layers=("sigma",)), scale=0.05).eval()
    with torch.no_grad():
        fast, outputs = uncertain.predict(task, made, inputs)
        slow, _ = uncertain.predict(task, sampled, inputs)
    assert fast.epistemic is None, "only the noise is uncertain, so it cannot tell"
    np.testing.assert_allclose(fast.mean, slow.mean, atol=1e-5)
    np.testing.assert_allclose(fast.variance, slow.variance, rtol=0.05)
    assert len(outputs["association"].values) == 200
    with pytest.raises(ConfigError, match="cannot pass through 'new_zeros'"):
        uncertain.predict(task, MomentPropagation(network).eval(), inputs)
    with pytest.raises(ConfigError, match="cannot pass through 'sigmoid'"):
        uncertain.predict(task, MomentPropagation(network, layers=("associate",)).eval(), inputs)


# What is refused


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        h = self.layer(x)
        return h * h


class Normal(GaussianLikelihood):
    @property
    def outputs(self):
        return 3


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), "tanh"),
        (nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "layer_norm"),
        (Squares(), r"\* of two uncertain numbers"),
    ],
    ids=["tanh", "layer norm", "product"],
)
def test_layers_without_a_closed_form_are_named(network, what):
    with pytest.raises(ConfigError, match=f"cannot pass through '{what}'.*use samples"):
        uncertain.fresh(TASK, MomentPropagation(network), EXAMPLES, 1)


def test_what_moments_cannot_state_is_said():
    task = Classification(features=("a", "b"), classes=2)
    with pytest.raises(ConfigError, match="of a Gaussian likelihood, not of Classification"):
        uncertain.predict(task, MomentPropagation(MLP(2)).eval(), INPUTS)
    network = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    network[1].idle = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="do not lie where the likelihood's parameters come from"):
        uncertain.predict(TASK, MomentPropagation(network, layers=["1.idle"]).eval(), INPUTS)
    with pytest.raises(ConfigError, match="moments have no members"):
        MomentPropagation(MLP(2)).member(0)


def test_bad_knobs_are_refused():
    for knobs, text in (
        ({"prior_std": 0.0}, "prior_std must be positive and finite, got 0"),
        ({"start_std": math.inf}, "start_std must be positive and finite, got inf"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more, got -1"),
        ({"events": 0}, "events must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"layers": ("nowhere",)}, "no dense or convolution layer is named nowhere"),
    ):
        with pytest.raises(ConfigError, match=text):
            Bayesian(MLP(2), **knobs)
    with pytest.raises(ConfigError, match="ReLU has no dense or convolution layer"):
        Bayesian(nn.ReLU())


def test_what_it_states_is_one_gaussian_with_parts():
    predictive, _ = uncertain.predict(TASK, MomentPropagation(MLP(2)).eval(), INPUTS)
    assert isinstance(predictive, Mixture) and predictive.means.shape == (60, 1)
    assert (predictive.variance >= predictive.aleatoric).all()
