"""The adaptive network in fixed point: its dense parts are exact in integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.fixed import FixedE2E
from stillfit.l1t.fixed_adaptive import fixed_adaptive, fixed_vertex
from stillfit.l1t.fixed_chain import vertex_chain
from stillfit.l1t.fixed_recipe import Compression
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import MagnitudePruning, calibrated, integer
from stillfit.models.fixed.quantisers import observing
from stillfit.models.model import Architecture, Model, build
from stillfit.models.networks import reinitialised
from stillfit.models.tensors import tensors
from stillfit.models.training import Schedule


@pytest.fixture(scope="module")
def events() -> Examples:
    return vertex_examples(100, nominal(), library=load(), seed=3)


def plain(seed: int = 1) -> Model:
    network = AdaptiveE2E(seed=seed)
    return Model(network, VertexTask(), Architecture("l1t.adaptive", {"seed": seed}))


def test_the_dense_parts_equal_their_integers_bit_for_bit(events):
    small = Compression(
        first=Schedule(steps=3, batch=40),
        pruning=MagnitudePruning(
            steps=1, density=0.5, layers=("associate",), schedule=Schedule(steps=2, batch=40)
        ),
        last=Schedule(steps=3, batch=40),
    ).compress(plain(), events, np.random.default_rng(1))
    network = small.network
    prepared = tensors(network.prepare(events.inputs))
    with observing(network) as seen, torch.no_grad():
        network.find(prepared["tracks"])
    for part, name in ((network.tracker(), "trunk.0"), (network.associate, "associate.0")):
        x = seen[f"{name}.on_input"][0]
        with torch.no_grad():
            assert np.array_equal(part(x).double().numpy(), integer(part)(x.numpy())), name
    assert small.architecture.factory == "l1t.fixed-adaptive"


def test_it_stays_close_to_the_float_network_and_keeps_its_tables(events):
    model = plain()
    with torch.no_grad():
        model.network.calibration.z0_sector.fill_(0.02)
    wide = {"weights": 14, "inputs": 14, "bias": 20, "accumulator": 40}
    fixed = calibrated(fixed_vertex(model, precision=wide), events)
    assert torch.equal(fixed.network.calibration.z0_sector, model.network.calibration.z0_sector)
    a, b = model.predict(events.inputs)[0].mean, fixed.predict(events.inputs)[0].mean
    assert np.mean(np.abs(a - b) < 0.05) > 0.9


def test_a_stored_version_and_a_start_from_nothing(events):
    model = calibrated(fixed_adaptive(plain(), precision={"weights": 6}), events)
    twin = Model(build(model.architecture, FACTORIES), VertexTask(), model.architecture)
    twin = twin.with_weights(model.weights())
    assert np.array_equal(model.predict(events.inputs)[0].mean, twin.predict(events.inputs)[0].mean)
    MagnitudePruning(density=0.4).mask(model, 1.0)
    fresh = reinitialised(model.network, 5).state_dict()
    for name, value in model.network.state_dict().items():
        if name.rpartition(".")[2] in ("mask", "k", "i", "f"):
            assert torch.equal(fresh[name], value)
    assert not torch.equal(fresh["trunk.0.weight"], model.network.trunk[0].weight)


def test_each_kind_is_converted_as_what_it_is():
    e2e = Model(E2E(), VertexTask(), Architecture("l1t.e2e"))
    assert isinstance(fixed_vertex(e2e).network, FixedE2E)
    with pytest.raises(ConfigError, match="converts an AdaptiveE2E network, not E2E"):
        fixed_adaptive(e2e)
    with pytest.raises(ConfigError, match="read from a FixedE2E, this is FixedAdaptiveE2E"):
        vertex_chain(fixed_vertex(plain()))
