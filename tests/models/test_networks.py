"""The plain networks: scales inside, noise around, and a true new start."""

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.models.networks import MLP, Standardise, WithNoise, copy_network, reinitialised


def test_an_mlp_answers_the_same_in_any_units_of_its_inputs():
    """Scaled inputs with scaled buffers are the same network."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    other = (x * np.array([1000, 1, 0.01]) + np.array([5, -3, 1])).astype(np.float32)
    network = MLP(3, [8])
    network.set_scales(x)
    twin = copy_network(network)
    twin.set_scales(other)
    np.testing.assert_allclose(
        network(torch.from_numpy(x)).detach(),
        twin(torch.from_numpy(other)).detach(),
        atol=2e-4,
    )


def test_a_change_of_the_targets_unit_moves_mean_and_log_variance_as_it_must():
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    y = np.random.default_rng(1).normal(size=20)
    network = MLP(3, [8])
    network.set_scales(x.numpy(), y)
    twin = copy_network(network)
    twin.set_scales(x.numpy(), 10 * y + 3)
    one, other = network(x).detach(), twin(x).detach()
    np.testing.assert_allclose(other[:, 0], 10 * one[:, 0] + 3, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other[:, 1], one[:, 1] + 2 * np.log(10), rtol=1e-4)


def test_scales_are_stored_with_the_weights_and_nothing_else_is():
    names = set(MLP(3, [8]).state_dict())
    assert {"layers.0.mean", "layers.0.std", "target_mean", "target_std"} < names
    assert {n for n, _ in MLP(3, [8]).named_parameters()} == {
        "layers.1.weight",
        "layers.1.bias",
        "layers.3.weight",
        "layers.3.bias",
    }


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567, -3e8])
def test_a_constant_feature_or_target_keeps_its_scale(value):
    """The mean of many equal float32 numbers is off by rounding, which is no deviation."""
    scale = Standardise(2)
    x = np.full((1009, 2), value, np.float32)
    x[:, 1] = np.arange(1009)
    scale.set_from(x)
    assert float(scale.std[0]) == 1.0
    assert float(scale.mean[0]) == np.float32(value)
    assert float(scale.std[1]) == pytest.approx(x[:, 1].std(), rel=1e-5)
    network = MLP(2, [4])
    network.set_scales(x, np.full(1009, value))
    assert float(network.target_std) == 1.0


def test_a_small_deviation_on_a_large_mean_is_still_one():
    scale = Standardise(1)
    x = (1e3 + np.random.default_rng(0).normal(size=(4000, 1))).astype(np.float32)
    scale.set_from(x)
    assert float(scale.std[0]) == pytest.approx(1, rel=0.05)


def test_with_noise_adds_one_log_variance_for_all_events():
    inner = nn.Linear(3, 1)
    network = WithNoise(inner)
    with torch.no_grad():
        network.log_variance.fill_(0.7)
    x = torch.randn(5, 3)
    out = network(x)
    assert torch.equal(out[:, 0], inner(x)[:, 0])
    assert torch.equal(out[:, 1], torch.full((5,), 0.7))
    flat = WithNoise(nn.Sequential(inner, nn.Flatten(0)))
    assert flat(x).shape == (5, 2)
    network.reset_parameters()
    assert network.log_variance.item() == 0


def test_with_noise_refuses_a_network_of_several_outputs():
    text = r"one output per event, but 5 events gave \(5, 2\); a network of two outputs states"
    with pytest.raises(ShapeError, match=text):
        WithNoise(nn.Linear(3, 2))(torch.randn(5, 3))


def test_a_copy_shares_nothing():
    network = MLP(2, [4])
    network(torch.randn(3, 2)).sum().backward()
    twin = copy_network(network)
    assert all(parameter.grad is None for parameter in twin.parameters())
    with torch.no_grad():
        for value in twin.state_dict().values():
            value.add_(1)
    assert all(
        not torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_reinitialised_draws_from_its_seed_and_leaves_the_global_generator_alone():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network(torch.randn(8, 3))
    before = torch.random.get_rng_state()
    one, same, other = (reinitialised(network, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].weight, network[0].weight)
    assert torch.equal(one[1].running_mean, torch.zeros(4))


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(3))


def test_a_module_that_cannot_start_anew_is_named():
    with pytest.raises(ConfigError) as error:
        reinitialised(nn.Sequential(nn.Linear(2, 2), Stubborn()), 0)
    assert str(error.value) == (
        "Stubborn (1) has parameters but no reset_parameters(), so it cannot be trained from "
        "nothing; add that method"
    )
    with pytest.raises(ConfigError, match=r"Stubborn \(the network\) has parameters but no"):
        reinitialised(Stubborn(), 0)
