"""Fixed-point networks: exact in integers, held by every training, clear about what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.fixed import (
    FixedConv1d,
    FixedDense,
    FixedLayer,
    FixedMean,
    Format,
    MagnitudePruning,
    Precision,
    Quantiser,
    calibrated,
    convert,
    integer,
)
from stillfit.models.fixed.conversion import FACTORIES
from stillfit.models.model import Architecture, Model, build, count_macs
from stillfit.models.networks import MLP, Head, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.sensing.networks import ActivityCNN
from stillfit.updaters.references import FineTune, Retrain
from stillfit.updaters.replay import Replay

TASK = Regression(features=("a", "b", "c"))
PRECISIONS = [
    Precision(),
    Precision(per_channel=True, per_input=True),
    Precision(rounding="even", overflow="symmetric"),
    Precision(rounding="floor", overflow="wrap"),
    Precision(weights=12, inputs=14, bias=24, accumulator=40),
]


def examples(n: int = 600, seed: int = 1) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32) * np.array([1, 20, 0.1], np.float32)
    y = x[:, 0] + np.sin(x[:, 1] / 10) + 0.1 * rng.normal(size=n)
    inputs = dict(zip("abc", x.T.copy(), strict=True))
    return Examples(
        np.arange(n), inputs, {"y": y}, np.arange(n, dtype=float), np.full(n, "nominal")
    )


def fixed_model(precision: Precision | None = None, seed: int = 0, steps: int = 60) -> Model:
    torch.manual_seed(seed)
    network = MLP(3, (12, 8))
    made = examples()
    network.set_scales(np.stack([made.inputs[k] for k in "abc"], 1), made.targets["y"])
    model = Model(convert(network, precision), TASK, Architecture("fixed-mlp", {"features": 3}))
    model = calibrated(model, made)
    fit(model, Prepared.of(model, made), Schedule(steps=steps, batch=100), np.random.default_rng(3))
    return model


def same(network: nn.Module, x: torch.Tensor) -> bool:
    """Whether the network and its whole-number model give the same numbers."""
    with torch.no_grad():
        return np.array_equal(network(x).double().numpy(), integer(network)(x.numpy()))


# --- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_trained_network_equals_its_integers_bit_for_bit(precision):
    model = fixed_model(precision)
    x = torch.from_numpy(np.stack([examples(3000, 5).inputs[k] for k in "abc"], 1)) * 3
    layers = model.network.layers
    assert same(layers, x)
    net = integer(layers)
    codes = net.encode(x.numpy())
    compiled, stepwise = net.run(codes), replace(net, compiled=None).run(codes)
    assert np.array_equal(compiled.codes, stepwise.codes)
    assert np.array_equal(compiled.fraction, stepwise.fraction)
    # No sum was ever larger than the accumulator.
    flow = net.steps[0](type(compiled)(codes, np.array(net.input.format.f)))
    assert np.abs(flow.codes).max() < 1 << (net.layers[0].accumulator - 1)


def test_quantisers_in_the_middle_and_at_the_end_keep_each_channels_own_fraction():
    network = convert(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)))
    middle, last = Quantiser(8, channels=2), Quantiser(8, channels=2)
    middle.set_format(Format.channels(0, [2, 1], [3, 6]))
    last.set_format(Format.channels(1, [1, 0], [3, 7]))
    layers = nn.Sequential(network[0], network[1], middle, network[2], last)
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(500, 3)).astype(np.float32))
    assert same(layers, x)
    net = integer(layers)
    codes = net.encode(x.numpy())
    assert np.array_equal(net.run(codes).codes, replace(net, compiled=None).run(codes).codes)


@pytest.mark.parametrize("precision", PRECISIONS[:3], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_means_and_maxima_equal_their_integers(precision, groups):
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=groups, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    fixed = convert(network, precision)
    task = Regression(features=("w",))

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = fixed

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.core(x.reshape(-1, 2, 26))[:, :2]

    x = np.random.default_rng(4).normal(size=(80, 52)).astype(np.float32)
    given = Examples(np.arange(80), {"w": x}, {"y": x[:, 0]}, np.zeros(80), np.full(80, "a"))
    model = calibrated(Model(Windows(), task, Architecture("windows")), given)
    windows = torch.from_numpy(x).reshape(-1, 2, 26)
    assert same(model.network.core, windows)
    close = (model.network.core(windows) - network(windows)).abs().max()
    assert close < 0.05 * network(windows).abs().max()


def test_the_wearables_network_is_converted_and_equals_its_integers():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(120, 300)).astype(np.float32)
    given = Examples(
        np.arange(120), {"w": x}, {"y": rng.integers(0, 5, 120)}, np.zeros(120), np.full(120, "a")
    )
    task = Classification(features=("w",), classes=5)
    plain = Model(ActivityCNN(seed=1), task, Architecture("sensing.cnn"))
    plain.network.set_scales(x)
    model = calibrated(Model(convert(plain.network), task, Architecture("fixed")), given)
    fit(model, Prepared.of(model, given), Schedule(steps=3, batch=40), np.random.default_rng(1))
    assert same(model.network, torch.from_numpy(x))
    assert count_macs(model.network) == count_macs(plain.network)


def test_many_bits_are_the_float_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    wide = Precision(weights=22, inputs=22, bias=26, accumulator=53)
    model = Model(convert(network, wide), TASK, Architecture("x"))
    model = calibrated(model, examples(), method="range")
    x = torch.from_numpy(np.stack([examples().inputs[k] for k in "abc"], 1))
    with torch.no_grad():
        torch.testing.assert_close(model.network(x).float(), network(x), atol=2e-4, rtol=1e-4)
    assert same(model.network, x)


def test_codes_of_another_fraction_are_rounded_by_the_first_quantiser():
    net = integer(fixed_model().network)
    codes = net.encode(np.random.default_rng(1).normal(size=(50, 3)) * 9)
    finer = net.run(codes * 8 + 3, net.input.format.f[0] + 3)  # 3/8 of a step is rounded away
    assert np.array_equal(finer.codes, net.run(codes).codes)


def test_a_mean_is_off_by_what_its_constant_is():
    mean = FixedMean(Precision(inputs=12))
    mean.on_input.set_format(Format.of(1, 2, 9))
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 2, 12)).astype(np.float32))
    assert (mean(x) - x.mean(-1, keepdim=True)).abs().max() < 2**-9 + 12 / 2**13 * 2
    with pytest.raises(DataError, match="a mean over 4096 positions cannot be taken"):
        mean(torch.zeros(1, 1, 4096))


def test_a_bound_holds_for_every_weight_and_is_reached():
    layer = FixedDense(3, 2, precision=Precision(weights=4, inputs=3, bias=4))
    layer.on_input.set_format(Format.of(0, 3, 0))
    layer.on_weight.set_format(Format.of(1, 3, 0))
    layer.on_bias.set_format(Format.of(1, 3, 0))
    layer.mask[0, 0] = False
    with torch.no_grad():
        layer.weight.fill_(-100)
        layer.bias.fill_(-100)
    assert layer.bound() == 3 * 7 * 8 + 8  # the fuller of the two outputs
    assert layer(torch.full((1, 3), 100.0)).min().item() == -layer.bound()


# --- held by every training ---------------------------------------------------------------------


class Store:
    def __init__(self, kept: Examples) -> None:
        self.kept = kept

    def all(self) -> Examples:
        return self.kept

    def window(self, since: float) -> Examples:
        return self.kept


UPDATERS = [
    FineTune(schedule=Schedule(steps=8, batch=50), min_events=1),
    Retrain(schedule=Schedule(steps=8, batch=50), min_events=1),
    Replay(schedule=Schedule(steps=8, batch=50), min_events=1, capacity=100),
]


@pytest.mark.parametrize("updater", UPDATERS, ids=lambda u: type(u).__name__)
def test_masks_and_formats_outlive_every_updater(updater):
    serving = fixed_model(steps=10)
    MagnitudePruning(density=0.3).mask(serving, 1.0)
    before = serving.weights()
    made, rng = examples(seed=7), np.random.default_rng(1)
    learner = updater.begin(serving, made, rng=rng)
    found = updater.update(serving, learner, made, Store(made), budget=Budget(), rng=rng)
    assert isinstance(found, Candidate)
    after = found.model.weights()
    for name, value in before.items():
        if name.rpartition(".")[2] in ("mask", "k", "i", "f"):
            assert np.array_equal(after[name], value), name
    moved = 0
    for name, layer in found.model.network.named_modules():
        if isinstance(layer, FixedLayer):
            codes, _ = layer.codes()
            assert not codes[~before[f"{name}.mask"]].any()
            moved += not np.array_equal(codes, serving.network.get_submodule(name).codes()[0])
    assert moved
    for name, value in before.items():  # and the serving model is as it was
        assert np.array_equal(serving.weights()[name], value)


def test_a_stored_version_is_built_again_with_its_formats():
    model = fixed_model(steps=5)
    arguments = {"features": 3, "hidden": [12, 8], "precision": {"weights": 8}}
    twin = Model(build(Architecture("fixed-mlp", arguments), FACTORIES), TASK, Architecture("x"))
    twin = twin.with_weights(model.weights())
    inputs = examples(50).inputs
    assert np.array_equal(twin.predict(inputs)[0].mean, model.predict(inputs)[0].mean)
    nested = {"network": {"factory": "mlp", "arguments": {"features": 3}}, "weights": 6}
    network = build(Architecture("fixed", nested), {**FACTORIES, "mlp": MLP})
    layers = [m for m in network.modules() if isinstance(m, FixedLayer)]
    assert len(layers) == 3 and all(m.on_weight.format.width == 6 for m in layers)


def test_conversion_leaves_the_float_network_and_its_numbers():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), Head(5, (0.5, 2.0), shrink=0.0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    fixed = convert(network)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in before.items():
        assert torch.equal(network.state_dict()[name], value)
        assert torch.equal(fixed.state_dict()[name], value)
    fixed[2].reset_parameters()  # a head starts where a head starts
    assert fixed[2].bias.tolist() == [0.5, 2.0]
    assert isinstance(convert(nn.Linear(2, 2)), FixedDense)
    assert isinstance(convert(WithNoise(nn.Linear(2, 1))).network, FixedDense)


def test_multiply_accumulates_are_those_of_the_weights_that_are_left():
    fixed = convert(nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten(), nn.Linear(6, 2)))
    assert count_macs(fixed) == 30 + 12
    fixed[2].mask[0] = False
    assert count_macs(fixed) == 30 + 6 and fixed[2].density == 0.5


def test_calibration_is_pure_and_the_same_events_give_the_same_ranges():
    model = fixed_model(steps=0)
    before = model.weights()
    other = calibrated(model, examples(seed=9).take(slice(0, 300)), method="range")
    again = calibrated(model, examples(seed=9).take(slice(0, 300)), method="range")
    assert all(np.array_equal(before[n], v) for n, v in model.weights().items())
    assert all(np.array_equal(other.weights()[n], v) for n, v in again.weights().items())
    for name, value in model.network.named_modules():
        if isinstance(value, Quantiser):
            assert value.format.width == other.network.get_submodule(name).format.width


# --- pruning ------------------------------------------------------------------------------------


def test_pruning_leaves_the_density_that_was_asked_for_and_the_largest_weights():
    model = fixed_model(steps=5)
    made = examples()
    pruning = MagnitudePruning(steps=3, density=0.25, schedule=Schedule(steps=4, batch=50))
    small = pruning.prune(model, Prepared.of(model, made), np.random.default_rng(1))
    masks = [m.mask for m in small.network.modules() if isinstance(m, FixedLayer)]
    total = sum(mask.numel() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == int(0.25 * total)
    assert all(bool(m.mask.all()) for m in model.network.modules() if isinstance(m, FixedLayer))
    once = fixed_model(steps=5)
    pruning.mask(once, 1.0)
    sizes = [
        m.weight.detach().abs() / m.weight.detach().abs().max()
        for m in model.network.modules()
        if isinstance(m, FixedLayer)
    ]
    kept = torch.cat([m.mask.ravel() for m in once.network.modules() if isinstance(m, FixedLayer)])
    flat = torch.cat([size.ravel() for size in sizes])
    assert flat[kept].min() >= flat[~kept].max()


def test_the_authors_thresholds_and_the_limits_of_the_knobs():
    model = fixed_model(steps=5)
    MagnitudePruning(threshold=0.12).mask(model, 0.5)
    layer = model.network.layers[1]
    size = layer.weight.detach().abs() / layer.weight.detach().abs().max()
    assert torch.equal(layer.mask, size >= 0.06)
    whole = fixed_model(steps=5)
    MagnitudePruning(density=1.0).mask(whole, 1.0)
    MagnitudePruning(threshold=0.0).mask(whole, 1.0)
    assert all(bool(m.mask.all()) for m in whole.network.modules() if isinstance(m, FixedLayer))
    chosen = fixed_model(steps=5)
    MagnitudePruning(density=0.5, layers=("layers.3",)).mask(chosen, 1.0)
    assert chosen.network.layers[1].density == 1.0 and chosen.network.layers[3].density == 0.5


def test_errors_of_pruning():
    with pytest.raises(ConfigError, match="pruning needs at least one step, got 0"):
        MagnitudePruning(steps=0)
    with pytest.raises(ConfigError, match=r"a density of 0 cannot be kept"):
        MagnitudePruning(density=0)
    with pytest.raises(ConfigError, match=r"relative threshold of 1\.0 would prune every weight"):
        MagnitudePruning(threshold=1.0)
    with pytest.raises(ConfigError, match="no fixed-point layer under nowhere"):
        MagnitudePruning(layers=("nowhere",)).mask(fixed_model(steps=0), 1.0)
    dead = fixed_model(steps=0)
    with torch.no_grad():
        dead.network.layers[3].weight.zero_()
    with pytest.raises(ConfigError, match=r"would leave no weight of layers\.3.* more density"):
        MagnitudePruning(density=0.25).mask(dead, 1.0)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d, which has no exact model .* fold it into the layer"),
        (nn.Tanh(), "Tanh, which has no exact model .* use ReLU between layers"),
        (nn.GRU(4, 4), "GRU, which has no exact model .* use dense and 1-D convolution"),
        (nn.AvgPool1d(2), "AvgPool1d, which has no exact model"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_layers_that_whole_numbers_cannot_follow_are_named(layer, remedy):
    with pytest.raises(ConfigError, match=remedy):
        convert(nn.Sequential(nn.Linear(4, 4), layer))


def test_errors_of_conversion_and_integers():
    with pytest.raises(ConfigError, match="in fixed point already"):
        convert(convert(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="padded with 'reflect'"):
        convert(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ConfigError, match=r"the network\.0 is Linear.*convert the network first"):
        integer(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="has no fixed-point layer; convert it first"):
        integer(nn.Sequential(nn.ReLU()))
    with pytest.raises(ConfigError, match="the network has no quantiser; convert it"):
        calibrated(Model(MLP(3), TASK, Architecture("mlp")), examples())
    with pytest.raises(DataError, match="no events to calibrate"):
        calibrated(fixed_model(steps=0), examples(0))
    net = integer(fixed_model(steps=0).network)
    with pytest.raises(DataError, match="codes must be whole numbers, got float64"):
        net.run(np.zeros((2, 3)))
    with pytest.raises(ShapeError, match=r"codes \(n, 3\), got \(2, 4\)"):
        net.run(np.zeros((2, 4), np.int64))
    with pytest.raises(ShapeError, match="dense layer of 2 inputs was given"):
        convert(nn.Linear(2, 2))(torch.zeros(3, 4))


def test_an_accumulator_that_may_overflow_is_an_error_with_its_width():
    narrow = Precision(accumulator=18)
    layer = FixedDense(100, 2, precision=narrow)
    with pytest.raises(
        ConfigError,
        match=r"FixedDense needs 23 bits \(100 inputs of 8 bits, weights of 8\) and has 18",
    ):
        layer(torch.zeros(1, 100))
    with pytest.raises(ConfigError, match=r"the accumulator of 0 needs 22 bits"):
        convert(nn.Sequential(nn.Linear(100, 2)), narrow)(torch.zeros(1, 100))
    with pytest.raises(ConfigError, match=r"the accumulator of the network\.0 needs 23 bits"):
        integer(nn.Sequential(layer))
    with pytest.raises(ConfigError, match="an accumulator of 60 bits cannot be emulated"):
        Precision(accumulator=60)
    layer.mask[:, 1:] = False  # a sparser mask is one of the remedies
    assert layer.exact() == 18


def test_an_all_zero_layer_is_an_error():
    layer = FixedDense(3, 2)
    with torch.no_grad():
        layer.weight.fill_(1e-4)
    with pytest.raises(ConfigError, match=r"all weights of the network\.0 are zero .* prune less"):
        integer(nn.Sequential(layer))
    convolution = FixedConv1d(2, 2, 3)
    convolution.mask.fill_(False)
    with pytest.raises(ConfigError, match="its output is constant"):
        integer(nn.Sequential(convolution))
