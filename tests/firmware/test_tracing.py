"""Networks as logic: equal to whole numbers bit for bit in every mode; what has no circuit."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError, MissingExtraError, ShapeError
from stillfit.models.fixed import Format, IntegerNetwork, Precision, convert, integer
from stillfit.models.fixed.calibration import fit_parameters, fit_quantiser
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.fixed.quantisers import Quantiser, observing

pytest.importorskip("alkaid", reason="the extra [firmware] is not installed")
torch.set_num_threads(1)

from stillfit.firmware import tools, tracing  # noqa: E402
from stillfit.firmware.devices import device  # noqa: E402
from stillfit.firmware.footprints import estimate  # noqa: E402
from stillfit.firmware.tools import ToolError, guarded, package  # noqa: E402
from stillfit.firmware.tracing import loaded, trace  # noqa: E402

MODES = [
    {"rounding": "nearest", "overflow": "saturate"},
    {"rounding": "floor", "overflow": "wrap", "per_channel": True},
    {"rounding": "even", "overflow": "symmetric", "per_input": True},
    {"rounding": "even", "overflow": "wrap", "weights": 5, "inputs": 6},
]


def dense(seed: int = 1, density: float = 0.6, **precision) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)]
    network = convert(nn.Sequential(*layers), Precision(**precision))
    return calibrated(nn.Sequential(*network, Quantiser(8)), torch.randn(300, 3), density)


def convolution(**precision) -> nn.Sequential:
    torch.manual_seed(2)
    layers = [
        nn.Conv1d(2, 4, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(4, 4, 2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(4, 2),
    ]  # fmt: skip
    network = convert(nn.Sequential(*layers), Precision(**precision))
    return calibrated(network, torch.randn(300, 2, 12), 0.7)


def calibrated(network: nn.Sequential, x: torch.Tensor, density: float) -> nn.Sequential:
    """Drawn masks, and ranges that some of the inputs go beyond."""
    for module in network.modules():
        if isinstance(module, FixedLayer):
            module.mask.copy_(torch.rand_like(module.weight) < density)
    with observing(network) as seen, torch.no_grad():
        network(x)
    for name, values in seen.items():
        if not name.endswith(("on_weight", "on_bias")):
            fit_quantiser(network.get_submodule(name), 0.5 * torch.cat(values))
    for module in network.modules():
        if isinstance(module, FixedLayer):
            fit_parameters(module)
    return network


def answers(network: IntegerNetwork, codes: np.ndarray, fraction=None) -> np.ndarray:
    found = network.run(codes, fraction).codes
    return found.reshape(len(found), -1)


@pytest.mark.parametrize("design", tracing.DESIGNS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_logic_is_the_integer_model_bit_for_bit(mode: dict, design: str) -> None:
    network = integer(dense(**mode))
    codes = network.encode(3 * np.random.default_rng(0).normal(size=(500, 3)))
    traced = trace(network, "net", design=design)
    np.testing.assert_array_equal(traced.run(codes), answers(network, codes))
    assert len(traced.ports) == (0 if design == "constant" else len(traced.weights))


@pytest.mark.parametrize("design", tracing.DESIGNS)
def test_the_first_quantiser_is_logic_where_inputs_have_a_format_of_their_own(design: str) -> None:
    network = integer(dense())
    raw = np.random.default_rng(0).integers(-(1 << 13), 1 << 13, (500, 3))
    traced = trace(network, "net", design=design, inputs=Format.of(1, 4, 9))
    np.testing.assert_array_equal(traced.run(raw), answers(network, raw, [9]))


@pytest.mark.parametrize("design", tracing.DESIGNS)
def test_convolutions_pools_and_means_are_unrolled(design: str) -> None:
    network = integer(convolution(rounding="even"))
    codes = network.encode(2 * np.random.default_rng(0).normal(size=(200, 2, 12)))
    traced = trace(network, "net", design=design, shape=(2, 12))
    np.testing.assert_array_equal(traced.run(codes), answers(network, codes))


def test_one_reloadable_circuit_serves_all_weights_of_its_formats() -> None:
    first, other = dense(1), dense(1)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, FixedLayer):
                module.weight.mul_(-0.7)
                module.bias.add_(0.2)
    old, new = integer(first), integer(other)
    circuit = trace(old, "net", design="reloadable")
    codes = old.encode(np.random.default_rng(0).normal(size=(300, 3)))
    weights = loaded(new, circuit.ports)
    assert (weights != circuit.weights).any()
    np.testing.assert_array_equal(circuit.run(codes, weights), answers(new, codes))
    again = trace(new, "net", design="reloadable")
    chip = device("xcvu13p")
    assert estimate(again, chip) == estimate(circuit, chip)
    assert estimate(trace(old, "a"), chip).lut != estimate(trace(new, "a"), chip).lut


def test_masked_weights_have_no_port() -> None:
    network = dense(density=0.5)
    masks = [int(m.mask.sum()) for m in network.modules() if isinstance(m, FixedLayer)]
    circuit = trace(integer(network), "net", design="reloadable")
    assert sum(port.part == "weight" for port in circuit.ports) == sum(masks)


def test_tracing_changes_nothing_and_repeats_itself() -> None:
    network = integer(dense())
    before = [layer.weight.copy() for layer in network.layers]
    one, two = trace(network, "net"), trace(network, "net")
    assert one.logic.cost == two.logic.cost and one.logic.latency == two.logic.latency
    for layer, weight in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(layer.weight, weight)


def test_no_events_give_no_answers() -> None:
    traced = trace(integer(dense()), "net")
    assert traced.run(np.zeros((0, 3), np.int64)).shape == (0, 2)


def test_a_dead_network_is_an_error_of_ours() -> None:
    network = dense()
    with torch.no_grad():
        network[0].bias.fill_(-10.0)  # no unit ever gets above zero
        network[0].on_bias.set_format(Format.of(1, 4, 4))
    with pytest.raises(ConfigError, match=r"is constant, whatever comes in.*prune less"):
        trace(integer(network), "net")


def test_an_all_zero_layer_is_named() -> None:
    network = dense()
    with torch.no_grad():
        network[2].weight.zero_()
    with pytest.raises(ConfigError, match=r"all weights of the network\.2 are zero"):
        trace(integer(network), "net")


def test_a_sum_beyond_its_accumulator_is_named_with_both_figures() -> None:
    with pytest.raises(ConfigError, match=r"the accumulator of .* needs \d+ bits .* and has 9"):
        integer(dense(accumulator=9))


def test_a_step_without_a_circuit_is_named() -> None:
    class Softmax:
        def __call__(self, flow):
            return flow

    network = integer(dense())
    strange = IntegerNetwork((*network.steps, Softmax()))
    with pytest.raises(ConfigError, match="the step Softmax, which has no circuit here; use dense"):
        trace(strange, "net")


def test_what_is_too_wide_to_unroll_is_refused_with_the_figure() -> None:
    network = integer(convolution())
    with pytest.raises(ConfigError, match=r"unrolls to [\d,]+ products .* at most 20,000"):
        trace(network, "net", shape=(2, 4000))
    with pytest.raises(ConfigError, match="begins with a convolution: say the shape"):
        trace(network, "net")


def test_wrong_arguments_are_named() -> None:
    network = integer(dense())
    traced = trace(network, "net", design="reloadable")
    with pytest.raises(ConfigError, match="design is one of constant, reloadable, got 'fast'"):
        trace(network, "net", design="fast")
    with pytest.raises(ShapeError, match="takes 3 values an event, got 4"):
        traced.run(np.zeros((2, 4), np.int64))
    with pytest.raises(ShapeError, match=r"ports for weights, got \(2,\) codes"):
        traced.run(np.zeros((2, 3), np.int64), np.zeros(2, np.int64))


def test_weights_of_another_network_are_not_loaded() -> None:
    ports = trace(integer(dense()), "net", design="reloadable").ports
    with pytest.raises(ConfigError, match="needs a new circuit"):
        loaded(integer(dense(weights=6)), ports)
    with pytest.raises(
        ConfigError, match=r"the circuit has weights of the network\.0, the network"
    ):
        loaded(integer(dense(), "other"), ports)


def test_weights_that_alkaid_would_round_are_refused() -> None:
    network = integer(dense())
    first = network.steps[0]
    wide = replace(first, weight=first.weight | ((1 << 25) + 1))
    with pytest.raises(ConfigError, match="alkaid holds constants of 24 significant bits"):
        trace(IntegerNetwork((wide, *network.steps[1:])), "net")


def test_what_alkaid_raises_becomes_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    network = integer(dense())

    def broken(*args: object, **kwargs: object) -> object:
        raise StopIteration

    monkeypatch.setattr(package("alkaid.trace"), "trace", broken)
    with pytest.raises(ToolError, match=r"alkaid failed while tracing net \(StopIteration\); "):
        trace(network, "net")


def test_our_own_errors_pass_a_guard_as_they_are() -> None:
    with pytest.raises(ConfigError, match="mine"), guarded("x", "y", "z"):
        raise ConfigError("mine")


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alkaid.trace", None)
    with pytest.raises(MissingExtraError, match=r"need alkaid.*pip install 'stillfit\[firmware\]'"):
        tools.package("alkaid.trace")
