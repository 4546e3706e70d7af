"""Models: predictions in chunks, weights in and out, factories that are known by name."""

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged, concat
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture
from stillfit.core.values import VersionId
from stillfit.models.model import (
    Architecture,
    Model,
    build,
    count_macs,
    footprint,
    join,
    load_weights,
)
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import RaggedTensor, tensor

FACTORIES = {"mlp": MLP}
ARCHITECTURE = Architecture("mlp", {"features": 2, "hidden": [16, 16], "outputs": 2})


def model(task=None, seed=0, outputs=2):
    torch.manual_seed(seed)
    arguments = {"features": 2, "hidden": [16, 16], "outputs": outputs}
    network = MLP(**arguments).eval()
    return Model(network, task or Regression(features=("a", "b")), Architecture("mlp", arguments))


def inputs(n, seed=0):
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=n), "b": rng.normal(size=n)}


@pytest.mark.parametrize("n", [0, 1, 5, 511, 512, 513, 1500])
def test_a_prediction_does_not_depend_on_the_chunks_it_is_made_in(n):
    regression, classes = model(), model(Classification(features=("a", "b"), classes=3), outputs=3)
    for chunk in (1, 7, 512, 10_000):
        one, _ = regression.predict(inputs(n))
        other, _ = regression.predict(inputs(n), chunk)
        assert len(one) == len(other) == n
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-5)
        one, _ = classes.predict(inputs(n))
        other, _ = classes.predict(inputs(n), chunk)
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)


def test_the_same_chunks_give_the_same_bits():
    one, _ = model().predict(inputs(1300))
    other, _ = model().predict(inputs(1300))
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.variance, other.variance)


def test_predicting_changes_nothing_and_needs_no_gradients():
    shown = model()
    shown.network.train()
    before = shown.weights()
    shown.predict(inputs(10))
    assert not shown.network.training
    assert all(parameter.grad is None for parameter in shown.network.parameters())
    for name, value in shown.weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_what_is_served_carries_the_version():
    version = VersionId("a" * 64)
    served = model().serve(version, inputs(3))
    assert served.version == version
    assert len(served.predictive) == 3


def test_errors_are_those_of_the_task_on_the_prediction():
    data = inputs(20)
    y = np.arange(20.0)
    ids = np.arange(20, dtype=np.int64)
    labelled = Examples(ids, data, {"y": y}, np.zeros(20), np.full(20, "all"))
    predictive, _ = model().predict(data)
    np.testing.assert_array_equal(model().errors(labelled)["error"], np.abs(predictive.mean - y))


def test_weights_are_copies_and_go_back_in():
    one, other = model(seed=0), model(seed=1)
    weights = one.weights()
    twin = other.with_weights(weights)
    np.testing.assert_array_equal(twin.predict(inputs(9))[0].mean, one.predict(inputs(9))[0].mean)
    assert not np.array_equal(other.weights()["layers.1.bias"], weights["layers.1.bias"])
    weights["layers.1.bias"][:] = 9
    assert not np.any(one.weights()["layers.1.bias"] == 9)
    copied = one.copy()
    with torch.no_grad():
        copied.network.layers[1].bias.fill_(9)
    assert not np.any(one.weights()["layers.1.bias"] == 9)


def test_weights_that_do_not_belong_are_named():
    weights = model().weights()
    less = {name: value for name, value in weights.items() if name != "layers.1.bias"}
    text = (
        "the stored weights and the network differ in layers.1.bias; "
        "was the factory changed since the version was stored?"
    )
    with pytest.raises(ShapeError) as error:
        load_weights(MLP(2, [16, 16]), less)
    assert str(error.value) == text
    with pytest.raises(ShapeError, match="differ in other; was the factory changed"):
        load_weights(MLP(2, [16, 16]), {**weights, "other": np.zeros(1)})
    text = r"weight 'layers.1.bias' is stored as \(16,\) but the network has \(8,\); was the fac"
    with pytest.raises(ShapeError, match=text):
        load_weights(MLP(2, [8, 16]), {**weights, "layers.1.weight": np.zeros((8, 2))})


def test_a_factory_is_found_by_name_or_a_near_one_is_offered():
    assert isinstance(build(ARCHITECTURE, FACTORIES), MLP)
    with pytest.raises(ConfigError, match="needs the network factory 'mpl', which is not known"):
        build(Architecture("mpl"), FACTORIES)
    with pytest.raises(
        ConfigError, match=r"did you mean 'mlp'.*name it in the run file as `network"
    ):
        build(Architecture("mpl"), FACTORIES)


def test_chunks_of_different_form_are_refused():
    gaussian = Mixture.gaussian([0.0], [1.0])
    assert len(join([gaussian, gaussian])) == 2
    with pytest.raises(ShapeError, match="must predict in one form; its chunks came in several"):
        join([gaussian, Categorical(np.ones((1, 1, 1)))])


def test_multiply_accumulates_and_bytes_are_counted():
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    assert count_macs(network) == 3 * 5 + 5 * 2
    found = footprint(network)
    assert found.parameters == 3 * 5 + 5 + 10
    assert found.weight_bytes == 4 * found.parameters
    assert found.macs_per_event == 25
    assert footprint(network, 7).macs_per_event == 7
    # A grouped convolution connects each output to one group of inputs only.
    assert count_macs(nn.Conv1d(4, 6, 3)) == 3 * 4 * 6
    assert count_macs(nn.Conv1d(4, 6, 3, groups=2)) == 3 * 2 * 6


def test_ragged_tensors_sum_and_average_over_each_event():
    column = Ragged.from_counts(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2, 0, 1, 1]))
    ragged = tensor(column)
    assert isinstance(ragged, RaggedTensor)
    np.testing.assert_array_equal(ragged.sum(ragged.values), [3, 0, 3, 4])
    np.testing.assert_array_equal(ragged.mean(ragged.values), [1.5, 0, 3, 4])
    wide = torch.stack([ragged.values, -ragged.values], 1)
    np.testing.assert_array_equal(ragged.mean(wide)[:, 1], [-1.5, 0, -3, -4])


def test_tensors_share_memory_where_they_may_and_never_write_to_what_is_frozen():
    own = np.arange(4.0)
    shared = tensor(own)
    assert shared.data_ptr() == own.ctypes.data
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    tensor(frozen)[0] = 7
    assert frozen[0] == 0
    np.testing.assert_array_equal(tensor(np.arange(8.0)[::2]), [0, 2, 4, 6])
    joined = concat([{"a": own}, {"a": frozen}])
    assert len(joined["a"]) == 8
