"""The auxiliary model: it learns the main network's error and leaves that network alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture
from stillfit.core.values import Budget
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import FROZEN, vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, build
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import RaggedTensor
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.uncertainty import Auxiliary, DeepEnsemble, QuantileHead
from stillfit.uncertainty.auxiliary import pooled
from stillfit.uncertainty.methods import FACTORIES, METHODS
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Retrain
from stillfit.updaters.replay import Replay

TASK = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
SHORT = Schedule(steps=60, batch=100, rate=0.01)


def toy(n, seed, classes=False):
    """y = a + (0.05 + 0.5 |b|) x normal; or a class that is clear only where |b| is small."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-2, 2, n), rng.normal(size=n)
    y = a + (0.05 + 0.5 * np.abs(b)) * rng.normal(size=n)
    if classes:
        sure = np.clip(np.round(a) + 1, 0, 2).astype(np.int64)
        y = np.where(np.abs(b) < 1, sure, rng.integers(0, 3, n))
    ids = np.arange(n, dtype=np.int64) + 100_000 * seed
    return Examples(ids, {"a": a, "b": b}, {"y": y}, np.zeros(n), np.full(n, f"c{seed}"))


def trained(network, task, examples, schedule=SHORT, seed=0):
    model = Model(uncertain.fresh(task, network, examples, seed), task, Architecture("x"))
    fit(model, Prepared.of(model, examples), schedule, np.random.default_rng(seed))
    return model


def own(model, prefix="network."):
    """The main network's weights inside the wrapper, by their own names."""
    weights = model.weights()
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(400, nominal(), library=load(), seed=3)


# The main network is untouched


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("classes", [False, True])
def test_the_main_network_is_the_plain_one_bit_for_bit(folds, classes):
    task = CLASSES if classes else TASK
    torch.manual_seed(1)
    plain = MLP(2, [16, 16], outputs=3 if classes else 2)
    examples, test = toy(300, 1, classes), toy(50, 2, classes)
    alone = trained(plain, task, examples)
    model = trained(Auxiliary(plain, folds=folds), task, examples)
    weights, want = own(model), alone.weights()
    assert set(weights) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(weights[name], value)
    one, _ = alone.predict(test.inputs)
    two, _ = model.predict(test.inputs)
    if classes:
        np.testing.assert_array_equal(two.members, one.members)
    else:
        np.testing.assert_array_equal(two.mean, one.mean)
        assert not np.allclose(two.std, one.std)


def test_finishing_a_trained_network_leaves_its_state_and_its_answers():
    network = nn.Sequential(
        nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
    )
    examples = toy(300, 1)
    model = trained(network, TASK, examples)
    wrapped = Auxiliary(model.network, layers=("2", "0"), folds=2)
    before = {name: value.clone() for name, value in wrapped.network.state_dict().items()}
    data = Prepared.of(Model(wrapped, TASK, Architecture("x")), examples)
    wrapped.finish(TASK, data, SHORT, np.random.default_rng(0))
    assert bool(wrapped.fitted)
    for name, value in wrapped.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(not module._forward_hooks for module in wrapped.modules())
    one, _ = model.predict(examples.inputs)
    two, _ = Model(wrapped, TASK, Architecture("x")).predict(examples.inputs)
    np.testing.assert_array_equal(one.mean, two.mean)


def test_the_network_that_is_given_is_not_the_one_that_is_trained():
    plain = MLP(2, [8])
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    trained(Auxiliary(plain, folds=2), TASK, toy(200, 1))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


# What it learns


@pytest.mark.parametrize("folds", [0, 4])
def test_sigma_is_the_errors_and_the_truth_is_uniform_under_it(folds):
    examples, test = toy(3000, 1), toy(3000, 2)
    network = Auxiliary(MLP(2, [32, 32]), layers=("layers.2", "layers.4"), folds=folds)
    model = trained(network, TASK, examples, Schedule(steps=300, batch=200, rate=0.01))
    predictive, _ = model.predict(test.inputs)
    assert isinstance(predictive, Mixture)
    assert predictive.aleatoric is None and predictive.epistemic is None
    assert stats.kstest(predictive.cdf(test.targets["y"]), "uniform").statistic < 0.05
    true = 0.05 + 0.5 * np.abs(test.inputs["b"])
    assert np.median(np.abs(np.log(predictive.std / true))) < 0.2
    assert stats.spearmanr(predictive.std, true).statistic > 0.9


def test_out_of_fold_errors_are_those_of_new_events_where_trained_ones_are_too_small():
    """Pure noise, few events, many weights: the main network learns them by heart."""
    rng = np.random.default_rng(0)
    task = Regression(features=tuple("abcdefgh"))

    def noise(n):
        columns = {name: rng.normal(size=n) for name in task.features}
        ids = np.arange(n, dtype=np.int64)
        return Examples(ids, columns, {"y": rng.normal(size=n)}, np.zeros(n), np.full(n, "all"))

    examples, test = noise(120), noise(2000)
    model = trained(Auxiliary(MLP(8, [64, 64]), folds=4, steps=150), task, examples,
                    Schedule(steps=200, batch=60, rate=0.01))  # fmt: skip
    predictive, _ = model.predict(test.inputs)
    new = np.sqrt(np.mean((test.targets["y"] - predictive.mean) ** 2))
    seen = np.sqrt(np.mean((examples.targets["y"] - model.predict(examples.inputs)[0].mean) ** 2))
    assert seen < 0.6 * new
    stated = np.sqrt(np.mean(model.predict(examples.inputs)[0].variance))
    assert stated > 0.75 * new


def test_of_classes_it_gives_the_probability_to_be_wrong():
    examples, test = toy(3000, 1, classes=True), toy(3000, 2, classes=True)
    network = Auxiliary(MLP(2, [32, 32], outputs=3), layers=("layers.2", "layers.4"), folds=3)
    model = trained(network, CLASSES, examples, Schedule(steps=300, batch=200, rate=0.01))
    predictive, outputs = model.predict(test.inputs)
    assert isinstance(predictive, Categorical)
    p, wrong = outputs["p_wrong"], predictive.probabilities.argmax(1) != test.targets["y"]
    assert p.shape == (3000,) and np.all((p > 0) & (p < 1))
    assert abs(p.mean() - wrong.mean()) < 0.04
    assert p[wrong].mean() > p[~wrong].mean() + 0.2


def test_before_it_is_fitted_it_states_what_the_main_network_states():
    plain, test = MLP(2, [8]).eval(), toy(20, 1)
    one, _ = Model(plain, TASK, Architecture("x")).predict(test.inputs)
    two, _ = Model(Auxiliary(plain), TASK, Architecture("x")).predict(test.inputs)
    np.testing.assert_array_equal(one.std, two.std)


def test_a_main_network_of_another_family_keeps_its_mean():
    model = trained(Auxiliary(QuantileHead(MLP(2, [16])), folds=0), TASK, toy(300, 1))
    predictive, _ = model.predict(toy(20, 2).inputs)
    alone, _ = Model(model.network.core, TASK, Architecture("x")).predict(toy(20, 2).inputs)
    np.testing.assert_array_equal(predictive.mean, alone.mean)


def test_the_same_generator_gives_the_same_weights_and_another_others():
    examples = toy(200, 1)
    weights = [
        trained(Auxiliary(MLP(2, [8]), folds=2, steps=30), TASK, examples, seed=seed).weights()
        for seed in (1, 1, 2)
    ]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not np.array_equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_version_is_built_from_names_and_weights():
    inner = {"factory": "mlp", "arguments": {"features": 2, "hidden": [8, 8]}}
    arguments = {"network": inner, "layers": ["layers.2"], "hidden": [4], "folds": 0}
    architecture = Architecture("auxiliary", arguments)
    factories = {**FACTORIES, "mlp": MLP}
    model = trained(build(architecture, factories), TASK, toy(200, 1))
    twin = Model(build(architecture, factories), TASK, architecture).with_weights(model.weights())
    one, _ = model.predict(toy(30, 2).inputs)
    two, _ = twin.predict(toy(30, 2).inputs)
    np.testing.assert_array_equal(one.std, two.std)
    assert METHODS["auxiliary"].kind == "post-hoc" and not METHODS["auxiliary"].decomposes


# Of other kinds of layers


def test_convolutions_are_averaged_over_their_places():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.Conv1d(1, 3, 1)
            self.out = nn.Linear(6, 2)

        def forward(self, x):
            return self.out(torch.relu(self.filters(x[:, None])).flatten(1))

    network = Auxiliary(Windows(), layers=("filters",), folds=0)
    model = trained(network, TASK, toy(200, 1))
    assert model.network.auxiliary[0].in_features == 3
    assert np.all(model.predict(toy(20, 2).inputs)[0].std > 0)


def test_pooling_gives_mean_and_maximum_of_each_event_and_0_without_items():
    counts = [3, 0, 1, 2]
    values = torch.tensor([[1.0], [-5.0], [4.0], [-2.0], [-3.0], [-1.0]])
    items = RaggedTensor(values, torch.repeat_interleave(torch.tensor(counts)), 4)
    mean, most = pooled(values, items)
    torch.testing.assert_close(mean, torch.tensor([[0.0], [0.0], [-2.0], [-2.0]]))
    torch.testing.assert_close(most, torch.tensor([[4.0], [0.0], [-2.0], [-1.0]]))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [(E2E, None), (E2E, ("weight.3", "sigma.layers.1")), (AdaptiveE2E, ("trunk", "associate.1"))],
)
def test_a_vertex_networks_tracks_are_pooled_and_its_answers_stay(kind, layers, vertices):
    task, schedule = VertexTask(), Schedule(steps=6, batch=150)
    results = []
    for network in (kind(), Auxiliary(kind(), layers, folds=0, steps=40)):
        model = Model(network, task, Architecture("x"))
        data, rng = Prepared.of(model, vertices), np.random.default_rng(0)
        assert fit(model, data, schedule, rng, rates=FROZEN) == 6
        results.append(model.predict(vertices.inputs))
    (plain, first), (stated, second) = results
    np.testing.assert_array_equal(plain.mean, stated.mean)
    for name in ("association", "score"):
        one, two = first[name], second[name]
        np.testing.assert_array_equal(getattr(one, "values", one), getattr(two, "values", two))
    assert np.all(stated.std > 0) and len(np.unique(stated.std)) > 100


# Updaters need not know


class Store:
    """Everything that is kept."""

    def __init__(self, examples):
        self.examples = examples

    def all(self):
        return self.examples

    def window(self, since):
        return self.examples


@pytest.mark.parametrize(
    "updater",
    [
        Retrain(schedule=SHORT, min_events=50),
        FineTune(schedule=SHORT, min_events=50),
        Replay(schedule=SHORT, min_events=50, capacity=100),
    ],
    ids=lambda updater: type(updater).__name__,
)
def test_every_updater_fits_it_anew_and_trains_the_main_network_as_if_it_were_alone(updater):
    old, fresh = toy(300, 1), toy(200, 2)
    candidates = []
    torch.manual_seed(2)
    plain = MLP(2, [8])
    for network in (plain, Auxiliary(plain, folds=2, steps=30)):
        serving = trained(network, TASK, old)
        learner = updater.begin(serving, old, rng=np.random.default_rng(3))
        before = serving.weights()
        candidate = updater.update(
            serving, learner, fresh, Store(old), budget=Budget(), rng=np.random.default_rng(4)
        )
        after = serving.weights()
        assert all(np.array_equal(before[name], after[name]) for name in before)
        candidates.append((before, candidate.model))
    (_, alone), (before, both) = candidates
    weights = own(both)
    for name, value in alone.weights().items():
        np.testing.assert_array_equal(weights[name], value)
    changed = [n for n, w in both.weights().items() if not np.array_equal(w, before[n])]
    assert any(name.startswith("auxiliary.") for name in changed)


def test_recalibration_reaches_the_network_inside(vertices):
    task = VertexTask()
    wide = Auxiliary(E2E(), folds=0)
    wide.network.calibration.sigma_scale.fill_(0.01)
    serving = Model(wide.eval(), task, Architecture("x"))
    done = Recalibrate().update(
        serving, {}, vertices, Store(vertices), budget=Budget(), rng=np.random.default_rng(0)
    )
    assert float(done.model.network.network.calibration.sigma_scale) > 0.02


class OneTable:
    """A task that always finds the same correction."""

    def recalibrate(self, network, examples, *, significance):
        return {"calibration.z0_sector": np.full(180, 0.01, np.float32)}


class Pair(Auxiliary):
    """A user's method that keeps a second network whole."""

    def __init__(self, network):
        super().__init__(network, folds=0)
        self.second = type(network)()


def test_a_correction_reaches_what_all_members_share_and_no_member_alone(vertices):
    def update(network):
        serving = Model(network.eval(), OneTable(), Architecture("x"))
        return Recalibrate().update(
            serving, {}, vertices, Store(vertices), budget=Budget(), rng=np.random.default_rng(0)
        )

    table = update(DeepEnsemble(E2E(), members=2)).model.network.core.calibration.z0_sector
    assert torch.all(table == torch.full((180,), 0.01))
    assert update(Pair(E2E())).because == (
        "Pair has more calibrations than one, which one set of corrections cannot change; "
        "recalibrate the plain network"
    )


# Bad input


def test_an_unknown_layer_is_named_with_those_that_exist():
    with pytest.raises(ConfigError) as caught:
        Auxiliary(MLP(2, [8]), layers=("layers.22",))
    assert str(caught.value) == (
        "MLP has no layer 'layers.22'; did you mean 'layers.2'? "
        "(its layers: layers, layers.0, layers.1, layers.2, layers.3)"
    )
    with pytest.raises(ConfigError, match="no layer 'trunk'; known are: layers, "):
        Auxiliary(MLP(2, [8]), layers=("trunk",))


class Odd(nn.Module):
    """A layer of unknown size, one that is never called, one that gives two tensors."""

    def __init__(self):
        super().__init__()
        self.odd, self.unused, self.pair = nn.Bilinear(2, 2, 3), nn.Linear(2, 2), nn.LSTM(2, 2)
        self.items = nn.Linear(2, 2)
        self.out = nn.Linear(2, 2)

    def forward(self, x):
        self.pair(x)
        self.items(x.repeat(3, 1))
        return self.out(x)


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"folds": 1}, "folds must be 2 or more, or 0 for one held-out part, got 1"),
        ({"held_out": 1.0}, "held_out must lie strictly between 0 and 1, got 1.0"),
        ({"layers": "layers.1"}, 'layers must be a list of names such as ("layers.2",), got '),
        ({"layers": ()}, "layers must be a list of names"),
    ],
)
def test_knobs_that_cannot_be_are_refused(knobs, text):
    with pytest.raises(ConfigError) as caught:
        Auxiliary(MLP(2, [8]), **knobs)
    assert text in str(caught.value)


def test_layers_that_cannot_be_read_are_refused():
    with pytest.raises(ConfigError, match=r"size of layer 'pair' \(LSTM\) cannot be told without"):
        Auxiliary(Odd(), layers=("pair",))
    with pytest.raises(ConfigError, match="nothing comes before layer 'out' of Odd in a sequence"):
        Auxiliary(Odd())
    with pytest.raises(ConfigError, match="Auxiliary takes a plain network, and Auxiliary has"):
        Auxiliary(Auxiliary(MLP(2, [8])))
    for layer, error, text in (
        ("unused", ConfigError, "layer 'unused' of Odd took no part in its prediction"),
        ("items", ShapeError, "layer 'items' gives 6 rows for 2 events; does it see items"),
    ):
        wrapped = Auxiliary(Odd(), layers=(layer,), folds=0)
        model = Model(wrapped, TASK, Architecture("x"))
        data = Prepared.of(model, toy(10, 1))
        with pytest.raises(error, match=text):
            wrapped.finish(TASK, data, Schedule(steps=1), np.random.default_rng(0))


def test_too_few_events_for_the_folds_are_refused():
    wrapped = Auxiliary(MLP(2, [8]), folds=5)
    data = Prepared.of(Model(wrapped, TASK, Architecture("x")), toy(9, 1))
    with pytest.raises(DataError) as caught:
        wrapped.finish(TASK, data, SHORT, np.random.default_rng(0))
    assert str(caught.value) == (
        "9 events are too few for out-of-fold errors of 5 copies: at least 10 are needed"
    )


def test_copies_that_all_diverge_are_an_error():
    wrapped = Auxiliary(MLP(2, [8]), folds=0)
    model = Model(wrapped, TASK, Architecture("x"))
    data = Prepared.of(model, toy(50, 1))
    data.targets["y"][:] = np.nan
    with pytest.raises(DataError, match="every copy of the main network diverged, so there are no"):
        wrapped.finish(TASK, data, SHORT, np.random.default_rng(0))
