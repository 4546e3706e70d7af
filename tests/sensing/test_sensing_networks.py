"""The activity network: flat or not, scaled inside, counted in full, and fit for a task."""

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, build, count_macs, footprint
from stillfit.models.networks import MLP, reinitialised
from stillfit.models.task import Classification
from stillfit.models.training import Prepared, Schedule, shuffled, train
from stillfit.sensing.environments import Split, Wearing
from stillfit.sensing.networks import FACTORIES, ActivityCNN
from stillfit.uncertainty.methods import METHODS


@pytest.fixture(scope="module")
def sides(windows):
    wearing = Wearing(windows=windows, inputs=("features", "window"))
    parts = wearing.environments(Split(held_out=0.5))
    joined = Examples.join([part.train for part in parts])
    return joined, Examples.join([part.test for part in parts])


def test_parameters_and_arithmetic_are_as_stated():
    network = ActivityCNN()
    layers = [(6, 16, 50), (16, 32, 25), (32, 32, 12)]
    parameters = sum(5 * a * b + b for a, b, _ in layers) + 32 * 5 + 5
    macs = sum(5 * a * b * positions for a, b, positions in layers) + 32 * 5
    assert footprint(network).parameters == parameters == 8405
    assert count_macs(network) == footprint(network).macs_per_event == macs == 149_600


def test_the_arithmetic_is_what_a_pass_does():
    """Counted from the shapes that flow, for odd lengths too."""
    network = ActivityCNN(channels=3, time=37, classes=4, filters=(7, 5, 3), kernel=3)
    done = []

    def count(module, inputs, output):
        taps = module.in_channels * module.kernel_size[0]
        done.append(taps * output.shape[1] * output.shape[2])

    for module in network.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3 * 37))
    assert count_macs(network) == sum(done) + 3 * 4 and len(done) == 3


def test_flat_rows_and_windows_are_the_same():
    network = ActivityCNN(channels=3, time=20)
    x = torch.randn(5, 3, 20)
    torch.testing.assert_close(network(x), network(x.reshape(5, 60)), rtol=0, atol=0)
    assert network(x[:0]).shape == (0, 5)


def test_the_answer_does_not_depend_on_the_channels_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3, 20)).astype(np.float32)
    other = (x * np.array([[100], [1], [0.1]]) + np.array([[9], [0], [-3]])).astype(np.float32)
    one, two = ActivityCNN(channels=3, time=20), ActivityCNN(channels=3, time=20)
    one.set_scales(x)
    two.set_scales(other.reshape(30, 60))
    a, b = one(torch.from_numpy(x)).detach(), two(torch.from_numpy(other)).detach()
    np.testing.assert_allclose(a, b, atol=1e-4)
    mean = one.state_dict()["layers.0.mean"].numpy()
    np.testing.assert_allclose(mean, x.mean((0, 2)), atol=1e-5)


def test_a_seed_draws_the_weights_and_leaves_torch_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = ActivityCNN(seed=1), ActivityCNN(seed=1), ActivityCNN(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    x = torch.randn(4, 300)
    assert torch.equal(one(x), same(x)) and not torch.equal(one(x), other(x))
    again = reinitialised(one, 9)
    pairs = zip(one.parameters(), again.parameters(), strict=True)
    assert all(not torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize(
    ("name", "arguments", "feature"),
    [
        ("sensing.cnn", {"filters": [8, 16]}, "window"),
        ("sensing.mlp", {"features": 72, "hidden": [16], "outputs": 5}, "features"),
    ],
)
def test_both_networks_learn_activities_through_the_plain_task(sides, name, arguments, feature):
    learn, held = sides
    architecture = Architecture(name, arguments)
    task = Classification(features=(feature,), classes=5)
    network = task.fresh(build(architecture, FACTORIES), learn, seed=1)
    model = Model(network, task, architecture)
    assert model.errors(held)["error"].mean() > 0.5
    draw = shuffled(Prepared.of(model, learn), 64, np.random.default_rng(0))
    losses = list(train(model, draw, Schedule(steps=200, batch=64, rate=0.01)))
    assert len(losses) == 200
    assert model.errors(held)["error"].mean() < 0.05
    twin = build(architecture, FACTORIES)
    stored = Model(twin, task, architecture).with_weights(model.weights())
    one, two = (m.predict(held.inputs)[0].members for m in (model, stored))
    np.testing.assert_array_equal(one, two)


def test_the_names_are_those_of_stored_versions():
    assert dict(FACTORIES) == {"sensing.cnn": ActivityCNN, "sensing.mlp": MLP}


def test_windows_of_another_length_are_refused():
    with pytest.raises(ShapeError) as caught:
        ActivityCNN()(torch.zeros(2, 600))
    assert str(caught.value) == (
        "the network takes windows of 6 channels x 50 samples, got rows of shape (600,); were the "
        "windows cut with another length or rate?"
    )


def test_knobs_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"odd kernel, got 6, 5, \(16,\) and 4"):
        ActivityCNN(filters=(16,), kernel=4)
    with pytest.raises(ConfigError, match="filters of at least 1"):
        ActivityCNN(filters=())
    with pytest.raises(ConfigError, match="3 samples cannot be halved 2 times between 3 layers"):
        ActivityCNN(time=3)


@pytest.mark.parametrize("method", ["deep-ensemble", "masksembles", "mc-dropout", "bayesian"])
def test_methods_of_uncertainty_go_round_the_network(sides, method):
    """Several passes state class probabilities together, and each pass is counted."""
    learn, held = sides
    task = Classification(features=("window",), classes=5)
    network = METHODS[method].convert(ActivityCNN(filters=(8, 8)))
    model = Model(uncertain.fresh(task, network, learn, 1), task, Architecture("x"))
    predictive, _ = model.predict(held.take(slice(0, 20)).inputs)
    passes = predictive.members.shape[1]
    assert predictive.members.shape == (20, passes, 5) and passes > 1
    assert predictive.epistemic is not None and predictive.epistemic.max() > 0
    assert count_macs(model.network) == passes * count_macs(ActivityCNN(filters=(8, 8)))
