"""MC dropout: its limits, its masks, which layers it takes, and that training drops anew."""

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.e2e import E2E
from stillfit.models.networks import MLP
from stillfit.models.task import Regression
from stillfit.uncertainty import Masksembles, MCDropout
from stillfit.uncertainty.dropping import dropped_layers
from stillfit.uncertainty.layers import Draw, Masked, drawing

TASK = Regression(features=("a", "b"))
X = {"x": torch.randn(50, 2, generator=torch.Generator().manual_seed(1))}
Y = {"y": torch.zeros(50)}


def answer(network, inputs=X):
    with torch.no_grad():
        return network.eval().passes(TASK, inputs)[0]


def test_rate_zero_is_the_plain_network():
    plain = MLP(2, (8, 8)).eval()
    made = MCDropout(plain, rate=0.0, samples=4)
    (alone,) = TASK.answer(plain, X)
    torch.testing.assert_close(answer(made), alone.expand(4, 50, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.train().loss(TASK, X, Y), TASK.loss(plain, X, Y))


def test_masks_keep_the_share_of_features_and_their_mean():
    made = MCDropout(MLP(2, (400, 4)), rate=0.25, samples=200)
    masks = made.core.layers[3].masks
    assert masks.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(masks.mean()) == pytest.approx(1, abs=0.01)


def test_all_events_of_a_pass_see_one_function():
    made = MCDropout(MLP(2, (8, 8)), rate=0.5, samples=6)
    twice = {"x": X["x"][:1].expand(7, 2).contiguous()}
    raw = answer(made, twice)
    torch.testing.assert_close(raw, raw[:, :1].expand(6, 7, 2))
    assert float(raw.std(0).max()) > 0.01


def test_the_mean_over_many_masks_of_a_last_layer_is_the_plain_network():
    plain = MLP(2, (200,)).eval()
    made = MCDropout(plain, rate=0.2, samples=4000, last_only=True)
    with torch.no_grad():
        (alone,) = TASK.answer(plain, X)
    raw = answer(made)
    error = raw.std(0) / np.sqrt(4000)
    assert float(((raw.mean(0) - alone).abs() / error).max()) < 5
    # And the variance is that of independent features: p / (1 - p) sum of w^2 h^2.
    with torch.no_grad():
        hidden = plain.layers[:3](X["x"])
        exact = 0.25 * hidden**2 @ plain.layers[3].weight.T ** 2
    torch.testing.assert_close(raw[..., 0].var(0), exact[:, 0], rtol=0.15, atol=0)


def test_training_drops_at_random_and_anew_for_each_row():
    torch.manual_seed(1)
    made = MCDropout(MLP(2, (50, 50)), rate=0.5, samples=2).train()
    torch.manual_seed(1)
    first = made.loss(TASK, X, Y)
    torch.manual_seed(1)
    assert made.loss(TASK, X, Y) == first != made.loss(TASK, X, Y)
    layer = made.core.layers[3]
    ones = torch.ones(40, 50)
    with drawing(Draw.LOCAL):
        rows = layer(ones).detach()
    with drawing(Draw.SHARED):
        shared = layer(ones).detach()
    assert float(rows.std(0).min()) > 0 and float(shared.std(0).max()) < 1e-5
    assert float((shared[0] - layer(ones).detach()[0]).abs().max()) > 0


def test_convolutions_lose_whole_channels():
    network = nn.Sequential(nn.Conv1d(1, 6, 2), nn.ReLU(), nn.Conv1d(6, 3, 2))
    made = MCDropout(network, rate=0.5, samples=3)
    layer = made.core[2]
    assert isinstance(layer, Masked) and tuple(layer.masks.shape) == (3, 6)
    x = torch.randn(4, 6, 9)
    torch.testing.assert_close(
        layer.plain(1)(x), layer.layer(x * layer.masks[1][:, None]), rtol=1e-5, atol=1e-5
    )
    with drawing(Draw.LOCAL):
        assert tuple(layer(x).shape) == (4, 3, 8)


def chosen(network, **knobs):
    return sorted(dropped_layers(network, knobs.get("layers"), knobs.get("last_only", False)))


def test_the_first_layer_of_each_chain_keeps_its_inputs():
    assert chosen(MLP(3, (8, 8))) == ["layers.3", "layers.5"]
    assert chosen(MLP(3, (8, 8)), last_only=True) == ["layers.5"]
    assert chosen(E2E()) == ["associate.2", "associate.4", "sigma.layers.2", "weight.2", "weight.4"]
    assert chosen(E2E(), last_only=True) == ["associate.4", "sigma.layers.2", "weight.4"]
    assert chosen(AdaptiveE2E(), last_only=True) == ["associate.4", "heads", "sigma.layers.2"]
    flat = nn.Sequential(nn.Conv1d(1, 4, 2), nn.Flatten(), nn.Linear(12, 2))
    assert chosen(flat) == ["2"]
    assert chosen(MLP(3, (8, 8)), layers=["layers.1"]) == ["layers.1"]


def test_what_cannot_be_dropped_is_said():
    with pytest.raises(ConfigError, match="rate must be at least 0 and below 1, got 1"):
        MCDropout(MLP(2), rate=1.0)
    with pytest.raises(ConfigError, match="samples must be 1 or more, got 0"):
        MCDropout(MLP(2), samples=0)
    with pytest.raises(ConfigError, match="no hidden features to drop"):
        MCDropout(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"no dense or convolution layer 'layers.2'.*layers\.1"):
        Masksembles(MLP(2), layers=["layers.2"])
