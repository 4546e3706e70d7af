"""The vertex task: its errors, its loss, its recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from torch import nn

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.finders import FastHisto, fasthisto_model
from stillfit.l1t.library import load
from stillfit.l1t.recipe import train_vertex, vertex_examples
from stillfit.l1t.vertex import (
    VertexTask,
    balanced_bce,
    event_balanced_accuracy,
)
from stillfit.models.likelihood import scaled_crps
from stillfit.models.model import Architecture, Model
from stillfit.models.tensors import tensors
from stillfit.models.training import Prepared, Schedule, shuffled, train


@pytest.fixture(scope="module")
def library():
    return load()


@pytest.fixture(scope="module")
def events(library) -> Examples:
    return vertex_examples(300, nominal(), library=library, seed=5)


def loss_of(network: nn.Module, events: Examples, task: VertexTask) -> float:
    inputs = tensors(task.prepare(network, events.inputs))
    return float(task.loss(network, inputs, tensors(events.targets)).detach())


def answer(dz, association, counts):
    n = len(dz)
    return (
        Mixture.gaussian(np.array(dz, float), np.ones(n)),
        {"association": Ragged.from_counts(np.array(association, np.float32), np.array(counts))},
    )


def truth(flags, counts):
    return {
        "z0": np.zeros(len(counts)),
        "is_pv": Ragged.from_counts(np.array(flags, np.uint8), np.array(counts)),
    }


def test_errors_are_those_of_the_definition():
    counts = [4, 2, 2, 0]
    predictive, outputs = answer(
        [0.0, 0.15, -0.1499, -3.0], [0.9, 0.5, 0.49, 0.6, 0.2, 0.7, 0.8, 0.1], counts
    )
    errors = VertexTask().errors(predictive, outputs, truth([1, 1, 1, 0, 1, 1, 0, 0], counts))
    assert errors["miss"].tolist() == [0, 1, 0, 1]
    # 2 of 3 primary tracks and none of the others; half of the primary; half of the others.
    np.testing.assert_allclose(errors["association"], [1 - (2 / 3 + 0) / 2, 0.5, 0.5, 0.0])
    np.testing.assert_allclose(errors["error"], (errors["miss"] + errors["association"]) / 2)
    np.testing.assert_allclose(errors["abs_dz"], [0.0, 0.15, 0.1499, 3.0])


def test_balanced_accuracy_per_event_is_that_of_a_plain_loop(events):
    rng = np.random.default_rng(1)
    flags = events.targets["is_pv"]
    association = Ragged(rng.random(len(flags.values)).astype(np.float32), flags.offsets)
    fast = event_balanced_accuracy(association, flags)
    for event in range(0, len(flags), 17):
        said = association[event : event + 1].values >= 0.5
        true = flags[event : event + 1].values > 0
        shares = [np.mean(said[true]), np.mean(~said[~true])]
        assert fast[event] == pytest.approx(np.mean(shares))


def test_the_sigma_loss_is_the_gaussian_crps():
    away = torch.tensor([-2.0, 0.0, 0.03, 5.0], dtype=torch.float64)
    log_sigma = torch.tensor([0.3, -2.0, -3.0, 1.0], dtype=torch.float64, requires_grad=True)
    loss = scaled_crps(away, log_sigma)
    sigma = torch.exp(log_sigma.detach()).numpy()
    want = scoringrules.crps_normal(away.numpy(), 0.0, sigma) / sigma
    np.testing.assert_allclose(loss.detach(), want, atol=1e-12)
    # Its gradient is that of the CRPS in units of sigma: d(crps)/d(log sigma) / sigma.
    loss.sum().backward()
    step = 1e-6
    wider = scoringrules.crps_normal(away.numpy(), 0.0, sigma * math.exp(step))
    slope = (wider - want * sigma) / step / sigma
    np.testing.assert_allclose(log_sigma.grad, slope, atol=1e-5)


def test_the_cross_entropy_is_balanced():
    logits = torch.tensor([2.0, -1.0, 0.5])
    one, other = np.log1p(np.exp(-2.0)), np.mean(np.log1p(np.exp([-1.0, 0.5])))
    assert float(balanced_bce(logits, 1)) == pytest.approx((one + other) / 2)
    assert float(balanced_bce(logits, 3)) == pytest.approx(
        np.mean(np.log1p(np.exp([-2.0, 1.0, -0.5])))
    )
    assert float(balanced_bce(logits[:0], 0)) == 0


def test_terms_of_the_loss_can_be_switched_off(events):
    off = VertexTask(association=0, regulariser=0, event_sigma=0, track_sigma=0)
    network = E2E(seed=1)
    tracks = tensors(network.prepare(events.inputs))["tracks"]
    soft = network.trained(tracks, torch.zeros(0, dtype=torch.int64)).z0
    away = np.abs(soft.detach().numpy() - events.targets["z0"])
    huber = np.where(away < 0.5, away**2 / 2, 0.5 * (away - 0.25))
    assert loss_of(network, events, off) == pytest.approx(huber.mean(), rel=1e-4)
    for name in ("association", "regulariser", "event_sigma"):
        on = VertexTask(**{**vars(off), name: 1.0})
        assert loss_of(network, events, on) != pytest.approx(huber.mean(), rel=1e-6)
    adaptive = AdaptiveE2E(seed=1)
    with_tracks = VertexTask(**{**vars(off), "track_sigma": 1.0})
    assert loss_of(adaptive, events, with_tracks) != loss_of(adaptive, events, off)


@pytest.mark.parametrize("kind", ["e2e", "adaptive"])
def test_a_short_training_beats_fasthisto_on_events_it_never_saw(kind, library):
    test = vertex_examples(400, nominal(), library=library, seed=6, split="test")
    told: list[int] = []
    schedule = Schedule(steps=120, batch=150)
    model = train_vertex(
        kind, library=library, seed=2, events=2500, schedule=schedule, progress=told.append
    )
    assert sum(told) == 2500 and min(told) > 0
    for name, value in model.weights().items():
        if name.startswith("calibration.z0"):
            assert not value.any()
    network, finder = model.errors(test), fasthisto_model(test).errors(test)
    assert network["miss"].mean() < finder["miss"].mean()
    assert network["association"].mean() < finder["association"].mean()
    predictive, outputs = model.predict(test.inputs)
    figures = model.task.summarise(predictive, outputs, test.targets)
    assert next(iter(figures)) == "efficiency"
    assert figures["efficiency"] == pytest.approx(1 - network["miss"].mean())
    assert {"auc", "width_cm", "sigma_cm", "balanced_accuracy_err"} <= set(figures)
    covered = np.abs(predictive.mean - test.targets["z0"]) <= predictive.std
    assert 0.55 < covered.mean() < 0.85


def test_the_same_seed_gives_the_same_network(library):
    def weights(seed):
        schedule = Schedule(steps=3, batch=50)
        return train_vertex(
            "e2e", library=library, seed=seed, events=100, schedule=schedule
        ).weights()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def test_examples_are_the_same_for_the_same_arguments_and_of_their_split(library):
    def z0(**changes):
        arguments = {"seed": 1, "split": "train", **changes}
        return vertex_examples(50, nominal(), library=library, **arguments).targets["z0"]

    assert np.array_equal(z0(), z0())
    assert not np.array_equal(z0(), z0(seed=2))
    assert not np.array_equal(z0(), z0(split="test"))


def test_fasthisto_as_a_model_states_the_sigma_that_it_has(events):
    model = fasthisto_model(events, cuts=False)
    predictive, _ = model.predict(events.inputs)
    inside = np.abs(predictive.mean - events.targets["z0"]) <= predictive.std
    assert inside.mean() == pytest.approx(0.6827, abs=0.02)
    assert model.architecture.arguments["cuts"] is False
    with pytest.raises(ConfigError, match="FastHisto has nothing to train"):
        draw = shuffled(Prepared.of(model, events), 50, np.random.default_rng(1))
        inputs, targets = draw(0)
        model.task.loss(model.network, tensors(inputs), tensors(targets))


def test_wrong_networks_labels_and_kinds_are_named(library, events):
    task = VertexTask()
    with pytest.raises(ConfigError, match="needs a vertex finder, got Linear"):
        task.prepare(nn.Linear(1, 1), events.inputs)
    with pytest.raises(ConfigError, match="no vertex network 'adaptve'; did you mean 'adaptive'"):
        train_vertex("adaptve", library=library, seed=1)
    short = Examples(
        events.ids[:2],
        {name: column[:2] for name, column in events.inputs.items()},
        {"z0": events.targets["z0"][:2], "is_pv": events.targets["is_pv"][2:4]},
        events.times[:2],
        events.conditions[:2],
    )
    with pytest.raises(ShapeError, match="were labels matched to other events"):
        loss_of(E2E(), short, task)
    classes = Categorical(np.full((1, 1, 2), 0.5))
    with pytest.raises(ShapeError, match="must be a distribution of z"):
        task.errors(classes, {}, {"z0": np.zeros(1)})
    with pytest.raises(DataError, match="'association' must be a ragged column"):
        task.errors(Mixture.gaussian([0.0], [1.0]), {}, {"z0": np.zeros(1)})


def test_training_lowers_the_loss_of_a_batch_that_is_seen_again(events):
    model = Model(AdaptiveE2E(seed=1), VertexTask(), Architecture("l1t.adaptive", {"seed": 1}))
    draw = shuffled(Prepared.of(model, events), 300, np.random.default_rng(1))
    losses = list(train(model, draw, Schedule(steps=25, batch=300)))
    assert losses[-1] < 0.7 * losses[0]


def test_fasthisto_prepares_in_full_precision_and_networks_in_half(events):
    assert FastHisto().prepare(events.inputs)["tracks"].values.dtype == np.float32
    assert E2E().prepare(events.inputs)["tracks"].values.dtype == np.float16
