"""Laws of pruning and bit widths: below the limit, on the grid, opened again when it may be."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import content_hash, n_bytes
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.fixed.layers import FixedDense
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.sizes import FootprintLimit, size_of, stated_widths
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.streams.store import Keeping
from stillfit.uncertainty.methods import FACTORIES as METHODS
from stillfit.updaters.contract import Declined
from stillfit.updaters.dynamic import Compress, widths_of
from stillfit.updaters.dynamic.compressing import on_grid
from stillfit.updaters.dynamic.judging import loss_of
from stillfit.updaters.references import FineTune

SHORT = Schedule(steps=30, batch=60, rate=0.01)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
# 2-10-8-2: 116 weights, 20 biases; 4352 bits as floats.
QUICK = Compress(schedule=SHORT, min_events=50, rounds=2, step=0.3)
BITS = FootprintLimit(bits=900)


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=160, first=0, shift=0.0, condition="old"):
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


def serving_of(task, steps=200):
    outputs = 2 if isinstance(task, Regression) else 3
    old = examples(task)
    network = uncertain.fresh(task, MLP(2, (10, 8), outputs), old, 1)
    model = Model(network.eval(), task, Architecture("mlp"))
    fit(model, Prepared.of(model, old), replace(SHORT, steps=steps), rng(5))
    return model


def updated(updater, serving, learner, fresh, *, kept=None, seed=3, budget=None):
    return updater.update(
        serving, learner, fresh, kept or memory(), budget=budget or Budget(), rng=rng(seed)
    )


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


def by_parameter(model, learner):
    """Bits of every parameter of a network, from the learner's widths of layers."""
    widths = widths_of(learner)
    layer = {name: name.rpartition(".")[0] for name, _ in model.network.named_parameters()}
    return {name: widths[layer[name]] for name in layer if layer[name] in widths}


def is_on_grid(values, bits):
    """Whether all numbers are whole multiples, of at most 2^(bits-1) - 1, of a power of two."""
    top = np.abs(values).max()
    if top == 0:
        return True
    step = 2.0 ** math.ceil(math.log2(top / (2 ** (bits - 1) - 1)))
    # A network may not use its whole range: a finer step is as good a proof.
    for finer in range(bits):
        codes = values.astype(np.float64) / step * 2.0**finer
        if np.array_equal(codes, np.rint(codes)):
            return bool(np.abs(codes).max() <= 2 ** (bits - 1) - 1 or finer == 0)
    return False


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_the_grid_is_that_of_the_definition(bits):
    x = torch.from_numpy(rng(bits).normal(size=(7, 9)).astype(np.float32)) * 3
    q = on_grid(x, bits).numpy()
    top = 2 ** (bits - 1) - 1
    step = 2.0 ** math.ceil(math.log2(float(x.abs().max()) / top))
    assert np.array_equal(q, np.floor(x.numpy().astype(np.float64) / step + 0.5) * step)
    assert np.abs(q / step).max() <= top
    assert np.abs(q - x.numpy()).max() <= step / 2
    assert is_on_grid(q, bits)
    assert torch.equal(on_grid(torch.zeros(3), bits), torch.zeros(3))
    assert torch.equal(on_grid(on_grid(x, bits), bits), on_grid(x, bits))


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize(
    "limit",
    [
        BITS,
        FootprintLimit(nonzero=60),
        FootprintLimit(nonzero=90, bits=500),
        FootprintLimit(bits=200),
    ],
    ids=["bits", "nonzero", "both", "tight"],
)
def test_a_network_is_below_the_limit_and_on_the_grids_it_states(task, limit):
    serving = serving_of(task)
    updater, learner, model = replace(QUICK, limit=limit), {}, serving
    for number in (1, 2):
        answer = updated(updater, model, learner, examples(task, first=1000 * number))
        assert isinstance(answer, Candidate)
        model, learner = answer.model, answer.learner
        bits = by_parameter(model, learner)
        assert limit.exceeded_by(size_of(model.network, bits)) is None
        for name, value in model.weights().items():
            if name in bits and bits[name] < 32:
                assert is_on_grid(value, bits[name])
            if f"mask/{name}" in learner:
                assert not value[~learner[f"mask/{name}"]].any()
        if limit.bits is None:
            assert set(widths_of(learner).values()) == {32}
            assert answer.update_class == "weights"
    assert model.network.get_parameter("layers.1.weight").dtype == torch.float32


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_without_a_limit_it_is_fine_tuning_bit_for_bit(task):
    serving, old, fresh = serving_of(task), examples(task), examples(task, first=1000, shift=1.0)
    kept = memory(old, fresh)
    one = updated(replace(QUICK, mix=0.0), serving, {}, fresh, kept=kept)
    other = updated(FineTune(schedule=SHORT, min_events=50), serving, {}, fresh, kept=kept)
    assert same(one.model.weights(), other.model.weights())
    assert one.learner == {}
    assert one.update_class == "weights"


def test_training_under_quantisation_beats_rounding_afterwards():
    serving = serving_of(REGRESSION)
    fresh, test = examples(REGRESSION, first=1000, n=300), examples(REGRESSION, first=9000, n=800)
    updater = replace(
        QUICK, limit=FootprintLimit(bits=500), schedule=replace(SHORT, steps=80), widths=(8, 4, 3)
    )
    answer = updated(updater, serving, {}, fresh)
    bits = by_parameter(answer.model, answer.learner)
    rounded = serving.copy()
    with torch.no_grad():
        for name, value in rounded.network.named_parameters():
            mask = answer.learner.get(f"mask/{name}")
            kept = value if mask is None else value * torch.from_numpy(mask)
            value.copy_(on_grid(kept, bits[name]))
    trained, after = (model.errors(test)["error"].mean() for model in (answer.model, rounded))
    assert trained < 0.8 * after


def test_it_opens_again_when_the_limit_leaves_room():
    serving = serving_of(REGRESSION)
    tight = updated(
        replace(QUICK, limit=FootprintLimit(bits=400)), serving, {}, examples(REGRESSION)
    )
    wide = replace(QUICK, limit=FootprintLimit(bits=4000), regrow=0.5)
    open_ = updated(wide, tight.model, tight.learner, examples(REGRESSION, first=1000))
    before, after = widths_of(tight.learner), widths_of(open_.learner)
    assert all(after[layer] > bits for layer, bits in before.items())
    masks = [name for name in tight.learner if name.startswith("mask/")]
    assert all(np.all(open_.learner[name] >= tight.learner[name]) for name in masks)
    assert sum(open_.learner[n].sum() for n in masks) > sum(tight.learner[n].sum() for n in masks)
    assert open_.update_class == "bitstream"


def test_masks_alone_keep_the_circuit_and_pruned_weights_stay_zero():
    serving = serving_of(REGRESSION)
    updater = replace(QUICK, limit=FootprintLimit(nonzero=50), regrow=0.0)
    first = updated(updater, serving, {}, examples(REGRESSION))
    second = updated(updater, first.model, first.learner, examples(REGRESSION, first=1000))
    for name in ("layers.1.weight", "layers.3.weight", "layers.5.weight"):
        gone = ~first.learner[f"mask/{name}"]
        assert gone.any()
        assert not second.model.weights()[name][gone].any()
    assert second.update_class == "weights"
    assert size_of(second.model.network).macs == size_of(serving.network).macs


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (FootprintLimit(bits=40), "at 2 bits and 2% of each matrix the network still has 48 bits"),
        (FootprintLimit(nonzero=20), "the network still has 24 non-zero weights where the limit"),
        (
            FootprintLimit(macs=100),
            "116 multiply-accumulates per example where the limit allows 100",
        ),
        (FootprintLimit(parameters=5), "136 parameters where the limit allows 5"),
    ],
)
def test_a_limit_that_cannot_be_reached_is_refused_with_the_figures(limit, text):
    answer = updated(replace(QUICK, limit=limit), serving_of(REGRESSION), {}, examples(REGRESSION))
    assert isinstance(answer, Declined)
    assert text in answer.because
    assert "the limit cannot be reached: at" in answer.because


def test_an_update_is_pure_repeatable_and_resumes_from_its_stored_state():
    serving, fresh = serving_of(REGRESSION), examples(REGRESSION, first=1000)
    updater = replace(QUICK, limit=BITS)
    state = torch.random.get_rng_state()
    before = content_hash(serving.weights())
    one, other = (updated(updater, serving, {}, fresh) for _ in range(2))
    assert content_hash(serving.weights()) == before
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert one.cost.memory_bytes == n_bytes(one.learner)
    learner = {name: value.copy() for name, value in one.learner.items()}
    later = examples(REGRESSION, first=2000)
    twin = serving.with_weights(one.model.weights())
    again, resumed = updated(updater, one.model, one.learner, later), updated(
        updater, twin, learner, later
    )  # fmt: skip
    assert same(again.model.weights(), resumed.model.weights())
    assert same(learner, one.learner)
    refused = updated(updater, serving, {}, fresh, budget=Budget(memory_bytes=100))
    assert "bytes of learner memory where the budget allows 100" in refused.because


def test_a_network_that_another_updater_changed_is_taken_as_it_is():
    serving = serving_of(REGRESSION)
    updater = replace(QUICK, limit=BITS)
    first = updated(updater, serving, {}, examples(REGRESSION))
    tuned = updated(
        FineTune(schedule=SHORT, min_events=50), first.model, {}, examples(REGRESSION, first=500)
    )
    answer = updated(updater, tuned.model, first.learner, examples(REGRESSION, first=1000))
    assert (
        BITS.exceeded_by(size_of(answer.model.network, by_parameter(answer.model, answer.learner)))
        is None
    )


WRAPPED = ["deep-ensemble", "batch-ensemble", "masksembles", "mc-dropout", "bayesian", "quantiles",
           "evidential", "laplace", "auxiliary"]  # fmt: skip


@pytest.mark.parametrize("method", WRAPPED)
def test_every_method_of_uncertainty_is_compressed(method):
    old = examples(REGRESSION)
    knobs = {"deep-ensemble": {"members": 2}, "auxiliary": {"folds": 2, "steps": 20}}
    converted = METHODS[method](network=MLP(2, (6, 6)), **knobs.get(method, {}))
    network = uncertain.fresh(REGRESSION, converted, old, 1)
    serving = Model(network.eval(), REGRESSION, Architecture(method))
    quick = replace(SHORT, steps=8)
    fit(serving, Prepared.of(serving, old), quick, rng(2))
    whole = size_of(serving.network)
    limit = FootprintLimit(bits=round(0.75 * whole.bits))
    updater = replace(QUICK, limit=limit, schedule=quick, rounds=1)
    answer = updated(updater, serving, {}, examples(REGRESSION, first=1000))
    assert isinstance(answer, Candidate), answer
    bits = by_parameter(answer.model, answer.learner)
    assert min(widths_of(answer.learner).values()) < 32
    if method != "bayesian":  # spreads share a layer with the means and stay floats
        assert limit.exceeded_by(size_of(answer.model.network, bits)) is None
    predictive, _ = answer.model.predict(old.inputs)
    assert np.isfinite(predictive.mean).all()


@pytest.mark.parametrize("kind", [E2E, AdaptiveE2E])
def test_the_vertex_networks_are_compressed(kind):
    events = vertex_examples(60, nominal(), library=load(), seed=5)
    serving = Model(kind(seed=1).eval(), VertexTask(), Architecture("l1t"))
    limit = FootprintLimit(bits=24 * size_of(serving.network).parameters)
    quick = Schedule(steps=4, batch=30, rate=0.005)
    updater = Compress(
        schedule=quick, min_events=10, rounds=1, limit=limit, widths=(8, 4), held_out=0.4
    )
    answer = updated(updater, serving, {}, events)
    bits = by_parameter(answer.model, answer.learner)
    assert limit.exceeded_by(size_of(answer.model.network, bits)) is None
    assert {"weight.0", "associate.0"} & set(widths_of(answer.learner)) or kind is AdaptiveE2E


def test_fixed_point_layers_keep_their_formats_and_are_pruned():
    torch.manual_seed(0)
    network = nn.Sequential(FixedDense(2, 8), nn.ReLU(), FixedDense(8, 2))
    serving = Model(network.eval(), REGRESSION, Architecture("fixed"))
    stated = stated_widths(network)
    assert stated["0.weight"] == 8
    assert stated["0.bias"] == 16
    size = size_of(network)
    limit = FootprintLimit(bits=round(0.75 * size.bits))
    answer = updated(replace(QUICK, limit=limit), serving, {}, examples(REGRESSION))
    assert widths_of(answer.learner) == {}
    assert size_of(answer.model.network).bits <= limit.bits < size.bits
    assert stated_widths(answer.model.network) == stated


class NoMatrix(nn.Module):
    """Nothing to prune."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.slope * x[:, :1]


class Idle(MLP):
    """A matrix that no gradient reaches."""

    def __init__(self):
        super().__init__(2, (8,))
        self.idle = nn.Linear(3, 3)


def test_bad_input_has_an_answer():
    serving, fresh = serving_of(REGRESSION), examples(REGRESSION, first=1000)
    updater = replace(QUICK, limit=BITS)
    few = updated(updater, serving, {}, fresh.take(slice(0, 9)))
    assert few.early
    assert "compression needs 50 labelled events" in few.because
    bare = Model(WithNoise(NoMatrix()), REGRESSION, Architecture("none"))
    assert "has no weight matrix to prune or quantise" in updated(updater, bare, {}, fresh).because
    wild = replace(updater, schedule=replace(SHORT, rate=1e30, optimiser="sgd"))
    assert "the training diverged at step" in updated(wild, serving, {}, fresh).because
    constant = replace(fresh, targets={"y": np.full(160, 5.0)})
    assert isinstance(updated(updater, serving, {}, constant), Candidate)
    two = replace(updater, min_events=2)
    assert isinstance(updated(two, serving, {}, fresh.take(slice(0, 2))), Candidate)
    idle = Model(Idle().eval(), REGRESSION, Architecture("idle"))
    limit = FootprintLimit(bits=800)
    first = updated(replace(updater, limit=limit), idle, {}, fresh)
    again = updated(replace(updater, limit=limit), first.model, first.learner, fresh)
    assert isinstance(again, Candidate)
    classes = serving_of(CLASSES)
    single = replace(examples(CLASSES, first=1000), targets={"y": np.zeros(160, np.int64)})
    assert isinstance(updated(updater, classes, {}, single), Candidate)


def test_losses_are_compared_by_a_proper_score():
    serving, test = serving_of(REGRESSION), examples(REGRESSION, first=3000)
    predictive, _ = serving.predict(test.inputs)
    found = loss_of(serving, Prepared.of(serving, test))
    np.testing.assert_allclose(found, predictive.crps(test.targets["y"]).mean(), rtol=1e-6)
    classes, test = serving_of(CLASSES), examples(CLASSES, first=3000)
    found = loss_of(classes, Prepared.of(classes, test))
    np.testing.assert_allclose(found, classes.errors(test)["log_loss"].mean(), rtol=1e-6)
    broken = serving.copy()
    with torch.no_grad():
        broken.network.get_parameter("layers.1.weight").fill_(math.nan)
    assert loss_of(broken, Prepared.of(serving, examples(REGRESSION))) == math.inf


def test_knobs_are_checked():
    for knobs, text in (
        ({"widths": (4, 8)}, r"widths = \[4, 8\] must fall from at most 16 to at least 2 bits"),
        ({"widths": (8, 1)}, r"must fall from at most 16 to at least 2 bits"),
        ({"step": 0.0}, r"step = 0.0 must lie from 0.001 to 1"),
        ({"regrow": 1.1}, r"regrow = 1.1 must lie from 0 to 1"),
        ({"least": -0.1}, r"least = -0.1 must lie from 0 to 1"),
        ({"rounds": 0}, r"rounds = 0 must lie from 1"),
        ({"held_out": 1.0}, r"held_out = 1.0 must lie from 0.01 to 0.9"),
        ({"mix": -0.5}, r"mix = -0.5 must lie from 0 to 1"),
        ({"min_events": 0}, r"min_events = 0 must lie from 2"),
    ):
        with pytest.raises(ConfigError, match=text):
            Compress(**knobs)


def test_of_a_vertex_network_the_stated_sigma_counts_too():
    events = vertex_examples(60, nominal(), library=load(), seed=5)
    model = Model(E2E(seed=1).eval(), VertexTask(), Architecture("l1t"))
    data = Prepared.of(model, events)
    predictive, _ = model.predict(events.inputs)
    z0 = np.asarray(events.targets["z0"])
    wanted = model.errors(events)["error"].mean() + predictive.crps(z0).mean() / z0.std()
    np.testing.assert_allclose(loss_of(model, data), wanted, rtol=1e-6)
