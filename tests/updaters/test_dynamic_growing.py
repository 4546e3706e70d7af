"""Laws of growth: the same function when it grows, never above the limit, old numbers kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import content_hash
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.growth import (
    FACTORIES,
    grown,
    grown_architecture,
    hidden_layers,
    widen,
)
from stillfit.models.model import Architecture, Model, build, load_weights
from stillfit.models.networks import MLP
from stillfit.models.sizes import FootprintLimit, dense_size, size_of
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.streams.store import Keeping
from stillfit.uncertainty import DeepEnsemble, MCDropout
from stillfit.uncertainty.methods import FACTORIES as METHODS
from stillfit.updaters.contract import Declined
from stillfit.updaters.dynamic import Grow
from stillfit.updaters.references import FineTune

SHORT = Schedule(steps=40, batch=60, rate=0.02)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
# It always grows: no loss is this good, and no fall of it is worth a round.
HUNGRY = Grow(schedule=SHORT, target=0.0, plateau=1.0, gain=0.0, units=4, rounds=3, min_events=50)


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=200, first=0, shift=0.0, condition="old"):
    drawn = np.random.default_rng([first, 3])
    x = drawn.normal(size=(n, 2))
    score = np.sin(2 * x[:, 0]) + x[:, 1] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    columns = {"a": x[:, 0], "b": x[:, 1]}
    ids = np.arange(first, first + n, dtype=np.int64)
    return Examples(ids, columns, {"y": y}, np.full(n, float(first)), np.full(n, condition))


def memory(*parts):
    store = Keeping(budget_bytes=10**7, held_out=0.0).empty()
    for number, part in enumerate(parts):
        store = store.add(part, rng(number))
    return store.training


def serving_of(task, hidden=(2,), steps=150):
    outputs = 2 if isinstance(task, Regression) else 3
    old = examples(task)
    arguments = {"features": 2, "hidden": list(hidden), "outputs": outputs}
    network = uncertain.fresh(task, MLP(2, hidden, outputs), old, 1)
    model = Model(network.eval(), task, Architecture("mlp", arguments))
    fit(model, Prepared.of(model, old), replace(SHORT, steps=steps), rng(5))
    return model


def updated(updater, serving, learner, fresh, *, kept=None, seed=3, budget=None):
    return updater.update(
        serving, learner, fresh, kept or memory(), budget=budget or Budget(), rng=rng(seed)
    )


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


CHAINS = {
    "mlp": (lambda: MLP(2, (8, 6)), {"layers.1": 11, "layers.3": 9}),
    "tanh": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 2)),
        {"0": 7},
    ),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(2, 4, bias=False), nn.GELU(), nn.Linear(4, 2, bias=False)),
        {"0": 5},
    ),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_a_wider_network_says_the_same(kind):
    make, widths = CHAINS[kind]
    network = make().eval()
    x = torch.randn(300, 2)
    before = network(x).detach()
    wider = grown(network, widths)
    assert torch.equal(network(x), before)
    torch.testing.assert_close(wider(x), before, rtol=0, atol=2e-6)
    assert {name: layer.width for name, layer in hidden_layers(wider).items()} == widths
    for name, old in network.state_dict().items():
        new = wider.state_dict()[name]
        assert torch.equal(new[tuple(slice(0, size) for size in old.shape)], old)


@pytest.mark.parametrize("kind", [E2E, AdaptiveE2E])
def test_a_wider_vertex_network_says_the_same(kind):
    events = vertex_examples(40, nominal(), library=load(), seed=5)
    model = Model(kind(seed=1).eval(), VertexTask(), Architecture("l1t"))
    widths = {name: layer.width + 3 for name, layer in hidden_layers(model.network).items()}
    assert len(widths) >= 4
    wider = Model(grown(model.network, widths).eval(), model.task, model.architecture)
    (one, extra), (other, more) = model.predict(events.inputs), wider.predict(events.inputs)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-4)
    np.testing.assert_allclose(one.std, other.std, rtol=1e-3)
    np.testing.assert_allclose(extra["association"].values, more["association"].values, atol=1e-4)


def test_new_units_are_alive_and_their_outgoing_weights_are_zero():
    network = MLP(2, (4, 3))
    new = widen(network, {"layers.1": 6}, seed=1)
    first, last = network.get_parameter("layers.1.weight"), network.get_parameter("layers.3.weight")
    assert first.shape == (6, 2)
    assert last.shape == (3, 6)
    assert (first[4:] != 0).all()
    assert not last[:, 4:].any()
    assert new["layers.1.weight"].sum() == 4
    assert new["layers.1.bias"].tolist() == [False] * 4 + [True] * 2
    assert new["layers.3.weight"].sum() == 6
    assert not new["layers.5.weight"].any()
    network(torch.randn(50, 2)).sum().backward()
    assert (last.grad[:, 4:] != 0).any()


def test_a_grown_architecture_builds_the_network_again_and_is_not_nested_twice():
    serving = serving_of(REGRESSION)
    answer = updated(HUNGRY, serving, {}, examples(REGRESSION, first=1000))
    assert isinstance(answer, Candidate)
    assert answer.update_class == "bitstream"
    told = answer.model.architecture
    assert told.factory == "grown"
    assert told.arguments == {
        "network": {"factory": "mlp", "arguments": dict(serving.architecture.arguments)},
        "widths": {"layers.1": 10},
    }
    stored = Architecture(told.factory, json.loads(json.dumps(dict(told.arguments))))
    network = build(stored, {"mlp": MLP, **FACTORIES})
    assert isinstance(network, MLP)
    load_weights(network, answer.model.weights())
    test = examples(REGRESSION, first=5000)
    twin = Model(network.eval(), REGRESSION, stored)
    assert np.array_equal(
        twin.predict(test.inputs)[0].mean, answer.model.predict(test.inputs)[0].mean
    )
    again = updated(HUNGRY, twin, answer.learner, examples(REGRESSION, first=2000))
    assert again.model.architecture.arguments["widths"]["layers.1"] in (14, 18)
    assert again.model.architecture.arguments["network"] == told.arguments["network"]
    nested = grown_architecture(Architecture("deep-ensemble", {"network": {"factory": "mlp"}}), {})
    assert nested.arguments["network"]["factory"] == "deep-ensemble"


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_a_network_that_is_too_small_grows_and_is_better(task):
    serving = serving_of(task, hidden=(1,), steps=300)
    fresh, test = examples(task, first=1000, n=400), examples(task, first=5000, n=1000)
    updater = Grow(
        schedule=replace(SHORT, steps=150, batch=128), target=0.0, plateau=0.05, min_events=50
    )
    answer = updated(updater, serving, {}, fresh)
    plain = FineTune(schedule=replace(SHORT, steps=600, batch=128))
    tuned = updated(plain, serving, {}, fresh)
    assert size_of(answer.model.network).parameters > size_of(serving.network).parameters
    now, then = (m.errors(test)["error"].mean() for m in (answer.model, tuned.model))
    assert now < 0.8 * then


@pytest.mark.parametrize("parameters", [12, 13, 17, 25, 40])
def test_growth_stays_inside_the_limit(parameters):
    serving = serving_of(REGRESSION)
    updater = replace(HUNGRY, limit=FootprintLimit(parameters=parameters))
    assert dense_size(serving.network).parameters == 12  # 5 per hidden unit, and 2
    answer = updated(updater, serving, {}, examples(REGRESSION, first=1000))
    if parameters < 17:
        assert isinstance(answer, Declined)
        assert "and there is no room to grow: with one more unit in each hidden layer" in (
            answer.because
        )
        assert f"the network has 17 parameters where the limit allows {parameters}" in (
            answer.because
        )
        assert "the loss on new events stays at" in answer.because
        return
    size = size_of(answer.model.network)
    assert 12 < size.parameters <= parameters
    assert size.parameters == min(52, parameters - (parameters - 12) % 5)


def test_a_network_over_the_limit_is_refused_before_anything_is_trained():
    serving = serving_of(REGRESSION)
    answer = updated(
        replace(HUNGRY, limit=FootprintLimit(bits=300)), serving, {}, examples(REGRESSION, first=9)
    )
    assert answer.because == (
        "the serving network is over the limit before it grows: it has 384 bits of weights where "
        "the limit allows 300"
    )


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_with_an_unlimited_margin_it_is_fine_tuning_bit_for_bit(task):
    serving, old = serving_of(task), examples(task)
    fresh = examples(task, first=1000, shift=1.0)
    updater = replace(HUNGRY, margin=np.inf, mix=0.0)
    one = updated(updater, serving, {}, fresh, kept=memory(old, fresh))
    other = updated(FineTune(schedule=SHORT), serving, {}, fresh, kept=memory(old, fresh))
    assert same(one.model.weights(), other.model.weights())
    assert one.update_class == "weights"
    assert one.model.architecture == serving.architecture


def test_with_a_good_loss_it_does_not_grow():
    serving = serving_of(REGRESSION, hidden=(16, 16), steps=300)
    old = examples(REGRESSION)
    learner = replace(HUNGRY, target=None).begin(serving, old, rng=rng(1))
    assert set(learner) == {"reference"}
    fresh = examples(REGRESSION, first=1000)
    for reference in (learner, {}):  # {}: that of the store's old events
        updater = replace(HUNGRY, target=None, margin=3.0)
        answer = updated(updater, serving, reference, fresh, kept=memory(old, fresh))
        assert answer.model.architecture == serving.architecture
        assert answer.cost.steps == SHORT.steps
        np.testing.assert_allclose(answer.learner["reference"], learner["reference"], rtol=1e-5)
    alone = updated(replace(HUNGRY, target=None), serving, {}, fresh)
    assert alone.model.architecture == serving.architecture
    assert alone.learner == {}


def test_only_new_numbers_move_where_that_is_asked_for():
    serving = serving_of(REGRESSION, hidden=(3, 3))
    updater = replace(HUNGRY, train="new", rounds=1)
    answer = updated(updater, serving, {}, examples(REGRESSION, first=1000, shift=1.0))
    now = answer.model.weights()
    for name, value in serving.weights().items():
        assert np.array_equal(now[name][tuple(slice(0, size) for size in value.shape)], value)
    assert now["layers.3.weight"][:3, 3:].any()
    calm = replace(updater, target=50.0)
    refused = updated(calm, serving, {}, examples(REGRESSION, first=1000))
    assert "no unit is needed, and old weights do not move" in refused.because
    full = replace(updater, limit=FootprintLimit(parameters=dense_size(serving.network).parameters))
    assert "no room to grow" in updated(full, serving, {}, examples(REGRESSION, first=9)).because


def test_an_update_is_pure_and_the_same_for_the_same_generator():
    serving, fresh = serving_of(REGRESSION), examples(REGRESSION, first=1000)
    before = content_hash(serving.weights())
    state = torch.random.get_rng_state()
    one, other = (updated(HUNGRY, serving, {}, fresh) for _ in range(2))
    assert content_hash(serving.weights()) == before
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(one.model.weights(), other.model.weights())
    assert not same(
        one.model.weights(), updated(HUNGRY, serving, {}, fresh, seed=4).model.weights()
    )


@pytest.mark.parametrize("method", ["gaussian", "beta-gaussian", "quantiles", "evidential", "crps"])
def test_networks_with_a_head_grow(method):
    old = examples(REGRESSION)
    network = uncertain.fresh(REGRESSION, METHODS[method](network=MLP(2, (3,))), old, 1)
    serving = Model(network.eval(), REGRESSION, Architecture(method, {"network": None}))
    answer = updated(HUNGRY, serving, {}, examples(REGRESSION, first=1000))
    assert hidden_layers(answer.model.network)["layers.1"].width > 3


@pytest.mark.parametrize("convert", [DeepEnsemble, MCDropout])
def test_networks_of_several_passes_are_refused(convert):
    serving = Model(convert(MLP(2, (4,))).eval(), REGRESSION, Architecture("x"))
    answer = updated(HUNGRY, serving, {}, examples(REGRESSION, first=1000))
    assert f"{convert.__name__} states its uncertainty by several passes or parts" in answer.because


class Own(nn.Module):
    """Layers whose order only the forward knows."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def test_networks_without_a_known_chain_are_refused():
    answer = updated(
        HUNGRY, Model(Own().eval(), REGRESSION, Architecture("own")), {}, examples(REGRESSION)
    )
    assert "Own has no hidden layer to widen: growth needs two nn.Linear in one" in answer.because
    shared = nn.Linear(3, 3)
    chain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), shared, nn.ReLU(), shared)
    assert not hidden_layers(chain)
    normalised = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    assert not hidden_layers(normalised)


def test_bad_widths_and_knobs_are_errors():
    network = MLP(2, (4,))
    for widths, text in (
        ({"layers.2": 5}, "no hidden layer 'layers.2' that can be widened; did you mean"),
        ({"layers.1": 3}, "layer 'layers.1' has 4 units and cannot be widened to 3"),
        ({"layers.1": 4.5}, r"widths.layers.1 = 4.5 must be a whole number of units"),
    ):
        with pytest.raises(ConfigError, match=text):
            grown(network, widths)
    for knobs, text in (
        ({"units": 0}, r"units = 0 must lie from 1 to inf"),
        ({"margin": -1.0}, r"margin = -1.0 must lie from 0 to inf"),
        ({"plateau": -1.0}, r"plateau = -1.0 must lie from 0"),
        ({"gain": -0.1}, r"gain = -0.1 must lie from 0"),
        ({"target": -0.1}, r"target = -0.1 must lie from 0"),
        ({"rounds": 0}, r"rounds = 0 must lie from 1"),
        ({"held_out": 0.0}, r"held_out = 0.0 must lie from 0.01 to 0.9"),
        ({"mix": 2.0}, r"mix = 2.0 must lie from 0 to 1"),
        ({"min_events": 1}, r"min_events = 1 must lie from 2"),
    ):
        with pytest.raises(ConfigError, match=text):
            Grow(**knobs)


def test_bad_input_has_an_answer():
    serving, fresh = serving_of(REGRESSION), examples(REGRESSION, first=1000)
    few = updated(HUNGRY, serving, {}, fresh.take(slice(0, 9)))
    assert few.early
    assert "growing needs 50 labelled events" in few.because
    wild = replace(HUNGRY, schedule=replace(SHORT, rate=1e30, optimiser="sgd"))
    assert "the training diverged at step" in updated(wild, serving, {}, fresh).because
    constant = replace(fresh, targets={"y": np.full(200, 5.0)})
    assert isinstance(updated(HUNGRY, serving, {}, constant), Candidate)
    two = replace(HUNGRY, min_events=2)
    assert isinstance(updated(two, serving, {}, fresh.take(slice(0, 2))), Candidate)
    tight = Budget(macs_per_example=8)
    assert "multiply-accumulates" in updated(HUNGRY, serving, {}, fresh, budget=tight).because


def test_the_vertex_network_grows():
    events = vertex_examples(60, nominal(), library=load(), seed=5)
    serving = Model(E2E(seed=1).eval(), VertexTask(), Architecture("l1t.e2e", {}))
    quick = replace(HUNGRY, schedule=Schedule(steps=4, batch=30), min_events=10, rounds=2, units=2)
    answer = updated(quick, serving, {}, events)
    assert answer.model.architecture.factory == "grown"
    network = build(answer.model.architecture, {"l1t.e2e": E2E, **FACTORIES})
    load_weights(network, answer.model.weights())
    assert isinstance(network, E2E)


def test_a_class_without_an_output_is_named_wherever_it_lies():
    """Among the events to train on or those to judge by."""
    serving = serving_of(CLASSES, steps=20)
    for seed in range(4):
        fresh = examples(CLASSES, n=60, first=1000)
        y = fresh.targets["y"].copy()
        y[7] = 5
        with pytest.raises(DataError, match="class 5"):
            updated(HUNGRY, serving, {}, replace(fresh, targets={"y": y}), seed=seed)
