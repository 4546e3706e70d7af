"""Losses and errors of the two plain tasks against closed forms, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture
from stillfit.models.likelihood import LOG_VARIANCE_LIMIT
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import (
    Classification,
    Regression,
    dense,
    matrix,
    truth,
)
from stillfit.models.tensors import tensors
from stillfit.models.uncertain import predict


class Says(nn.Module):
    """Returns the given outputs whatever its inputs."""

    def __init__(self, out):
        super().__init__()
        self.out = torch.as_tensor(np.asarray(out, np.float32))

    def forward(self, x):
        return self.out


REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(1)
    return {"a": rng.normal(size=5), "b": rng.normal(size=5), "other": np.zeros(5)}


def test_the_regression_loss_is_the_gaussian_negative_log_likelihood_without_its_constant(inputs):
    rng = np.random.default_rng(2)
    mean, variance, y = rng.normal(size=5), rng.uniform(0.1, 3, size=5), rng.normal(size=5)
    network = Says(np.stack([mean, np.log(variance)], 1))
    prepared = tensors(REGRESSION.prepare(network, inputs))
    loss = float(REGRESSION.loss(network, prepared, tensors({"y": y})))
    exact = -Mixture.gaussian(mean, variance).log_prob(y).mean() - 0.5 * math.log(2 * math.pi)
    assert loss == pytest.approx(exact, rel=1e-5)
    predictive, outputs = predict(REGRESSION, network, prepared)
    np.testing.assert_allclose(predictive.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(predictive.variance, variance, rtol=1e-5)
    assert outputs == {}


def test_the_regression_loss_is_least_at_the_sample_mean_and_variance():
    y = torch.tensor([0.0, 1.0, 5.0, 6.0])
    best = (float(y.mean()), math.log(float(y.var(unbiased=False))))

    def loss(mean, log_variance):
        network = Says(np.tile([mean, log_variance], (4, 1)))
        return float(REGRESSION.loss(network, {"x": torch.zeros(4, 2)}, {"y": y}))

    for away in (-0.1, 0.1):
        assert loss(best[0] + away, best[1]) > loss(*best) < loss(best[0], best[1] + away)


def test_a_diverged_log_variance_is_bounded():
    network = Says([[0.0, 1e9], [0.0, -1e9]])
    predictive, _ = predict(REGRESSION, network, {"x": torch.zeros(2, 2)})
    limit = math.exp(LOG_VARIANCE_LIMIT)
    np.testing.assert_allclose(predictive.variance, [limit, 1 / limit])
    assert math.isfinite(
        float(REGRESSION.loss(network, {"x": torch.zeros(2, 2)}, {"y": torch.ones(2)}))
    )


def test_regression_errors_are_in_the_unit_of_the_target_and_its_square():
    predictive = Mixture.gaussian([1.0, 2.0, -1.0], [1.0, 4.0, 0.25])
    targets = {"y": np.array([1.5, 0.0, -1.0])}
    errors = REGRESSION.errors(predictive, {}, targets)
    np.testing.assert_allclose(errors["error"], [0.5, 2.0, 0.0])
    np.testing.assert_allclose(errors["squared"], [0.25, 4.0, 0.0])
    figures = REGRESSION.summarise(predictive, {}, targets)
    assert figures["error"] == pytest.approx(2.5 / 3)
    assert figures["rmse"] == pytest.approx(math.sqrt(4.25 / 3))
    assert figures["error_err"] == pytest.approx(np.std([0.5, 2, 0]) / math.sqrt(3))
    assert figures["sigma"] == pytest.approx((1 + 2 + 0.5) / 3)
    assert figures["crps"] == pytest.approx(predictive.crps(targets["y"]).mean())
    assert figures["coverage_90"] == 1.0
    assert next(iter(figures)) == "error"


def test_the_coverage_of_a_true_statement_is_what_it_says():
    rng = np.random.default_rng(3)
    sigma = rng.uniform(0.5, 2, 20_000)
    y = sigma * rng.standard_normal(20_000)
    figures = REGRESSION.summarise(Mixture.gaussian(np.zeros(20_000), sigma**2), {}, {"y": y})
    assert figures["coverage_90"] == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 20_000))


def test_the_classification_loss_is_the_cross_entropy(inputs):
    rng = np.random.default_rng(4)
    logits, y = rng.normal(size=(5, 3)), np.array([0, 1, 2, 2, 0])
    network = Says(logits)
    prepared = tensors(CLASSES.prepare(network, inputs))
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    exact = -logs[np.arange(5), y]
    assert float(CLASSES.loss(network, prepared, tensors({"y": y}))) == pytest.approx(exact.mean())
    predictive, _ = predict(CLASSES, network, prepared)
    np.testing.assert_allclose(predictive.probabilities, np.exp(logs), rtol=1e-5)
    errors = CLASSES.errors(predictive, {}, {"y": y})
    np.testing.assert_allclose(errors["log_loss"], exact, rtol=1e-5)
    np.testing.assert_array_equal(errors["error"], logits.argmax(1) != y)
    figures = CLASSES.summarise(predictive, {}, {"y": y})
    rate = float((logits.argmax(1) != y).mean())
    assert figures["error"] == rate
    assert figures["error_err"] == pytest.approx(math.sqrt(rate * (1 - rate) / 5))
    assert figures["log_loss"] == pytest.approx(exact.mean(), rel=1e-5)


def test_class_targets_may_be_floats_or_integers():
    predictive = Categorical(np.full((3, 1, 3), 1 / 3))
    for kind in (np.float32, np.int8, np.int64):
        errors = CLASSES.errors(predictive, {}, {"y": np.array([0, 1, 2], kind)})
        np.testing.assert_array_equal(errors["error"], [0, 1, 1])


def test_a_class_that_the_network_does_not_know_is_named():
    predictive = Categorical(np.full((2, 1, 3), 1 / 3))
    with pytest.raises(DataError, match="class 3 is none of the 3 classes, 0 to 2"):
        CLASSES.errors(predictive, {}, {"y": np.array([0, 3])})


def test_matrix_puts_columns_side_by_side_in_the_order_asked_for(inputs):
    x = matrix(inputs, ("b", "a"))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, np.stack([inputs["b"], inputs["a"]], 1), rtol=1e-6)
    wide = matrix({"a": np.zeros(4), "b": np.ones((4, 3))}, ("a", "b"))
    np.testing.assert_array_equal(wide, np.tile([0, 1, 1, 1], (4, 1)))


def test_matrix_of_no_events_has_all_columns():
    assert matrix({"a": np.zeros(0), "b": np.zeros((0, 3))}, ("a", "b")).shape == (0, 4)


def test_matrix_names_the_columns_that_are_missing():
    text = (
        "the serving model expects 2 features but the stream lacks b; "
        "was the feature list changed since it was trained?"
    )
    with pytest.raises(ShapeError) as error:
        matrix({"a": np.zeros(3)}, ("a", "b"))
    assert str(error.value) == text


def test_a_ragged_feature_is_refused():
    ragged = Ragged(np.zeros(3), np.array([0, 1, 3]))
    with pytest.raises(ShapeError, match="feature 'a' is ragged; this task takes one number per"):
        matrix({"a": ragged}, ("a",))
    with pytest.raises(ShapeError, match="'a' must be one dense tensor; there are a; are the col"):
        dense(tensors({"a": ragged}), "a")
    with pytest.raises(ShapeError, match="the target 'a' must be one number per event"):
        truth({"a": ragged}, "a")


def test_a_missing_target_is_named_with_those_that_are_there():
    with pytest.raises(DataError, match="the labels lack the target 'y'; they hold z: is the targ"):
        truth({"z": np.zeros(2)}, "y")
    with pytest.raises(DataError, match="the labels lack the target 'y'"):
        REGRESSION.errors(Mixture.gaussian([0.0], [1.0]), {}, {"z": np.zeros(1)})


def test_networks_of_the_wrong_output_are_refused():
    x = {"x": torch.zeros(2, 2)}
    with pytest.raises(ShapeError, match=r"must return \(n, 2\), for 2 events it gave \(2, 1\)"):
        predict(REGRESSION, Says(np.zeros((2, 1))), x)
    with pytest.raises(ShapeError, match="wrap one of a single output in WithNoise"):
        REGRESSION.loss(Says(np.zeros(2)), x, {"y": torch.zeros(2)})
    with pytest.raises(ShapeError, match=r"for 3 classes must return \(n, 3\), got \(2, 2\)"):
        predict(CLASSES, Says(np.zeros((2, 2))), x)


def examples(n=200, seed=0):
    rng = np.random.default_rng(seed)
    columns = {"a": 7 + 3 * rng.normal(size=n), "b": rng.normal(size=n) / 50}
    y = 100 + 20 * rng.normal(size=n)
    ids = np.arange(n, dtype=np.int64)
    return Examples(ids, columns, {"y": y}, np.zeros(n), np.full(n, "all"))


def test_a_fresh_network_depends_on_seed_and_data_but_not_on_the_old_weights():
    data = examples()
    one, other = MLP(2, [6]), MLP(2, [6])
    first = REGRESSION.fresh(one, data, 5)
    second = REGRESSION.fresh(other, data, 5)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    third = REGRESSION.fresh(one, data, 6)
    assert not torch.equal(first.layers[1].weight, third.layers[1].weight)


def test_a_fresh_network_takes_its_scales_from_the_data():
    data = examples()
    network = REGRESSION.fresh(MLP(2, [6]), data, 5)
    x = matrix(data.inputs, ("a", "b"))
    np.testing.assert_allclose(network.layers[0].mean, x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(network.layers[0].std, x.std(0), rtol=1e-4)
    assert float(network.target_mean) == pytest.approx(data.targets["y"].mean())
    assert float(network.target_std) == pytest.approx(data.targets["y"].std())
    inside = REGRESSION.fresh(WithNoise(MLP(2, [6], outputs=1)), data, 5)
    np.testing.assert_allclose(inside.network.layers[0].std, x.std(0), rtol=1e-4)
    classes = Classification(features=("a", "b"), classes=2).fresh(MLP(2, [6]), data, 5)
    np.testing.assert_allclose(classes.layers[0].mean, x.mean(0), rtol=1e-4)
    assert float(classes.target_std) == 1.0
