"""Embedded strategies on the vertex chain: the same circuit with other numbers, learned in it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import FixedE2E, fixed_e2e
from stillfit.l1t.fixed_chain import vertex_chain
from stillfit.l1t.library import load
from stillfit.l1t.on_chip import AssociationPart, association_part, balanced
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.model import Architecture, Model
from stillfit.models.tensors import RaggedTensor, tensors
from stillfit.updaters.contract import Declined
from stillfit.updaters.embedded import (
    EmbeddedBudget,
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
    Format,
    kernels,
)
from stillfit.updaters.embedded.reference import Reference

torch.set_num_threads(1)
WORD = Format(width=18, fraction=12)
SGD = EmbeddedSGD(numbers=WORD, rate=2.0**-8, min_events=1)
LEARNERS = [
    SGD,
    EmbeddedSGD(numbers=WORD, rate=0.1, min_events=1, exemplars=Exemplars(capacity=9, replays=2)),
    EmbeddedSGD(numbers=Format(width=16, fraction=9), rate=1.0, loss="hinge", min_events=1),
    EmbeddedLMS(numbers=WORD, rate=0.1, min_events=1),
    EmbeddedDFA(numbers=WORD, rate=0.1, min_events=1),
    EmbeddedRLS(numbers=WORD, prior=0.01, min_events=1),
]


@pytest.fixture(scope="module")
def events() -> Examples:
    return vertex_examples(60, replace(nominal(), pileup=60.0), library=load(), seed=3)


def float_model(seed: int = 1) -> Model:
    return Model(E2E(seed=seed), VertexTask(), Architecture("l1t.e2e", {"seed": seed}))


@pytest.fixture(scope="module")
def serving(events: Examples) -> Model:
    """Drawn weights, a sparse association, and a threshold that is not neutral."""
    model = calibrated(fixed_e2e(float_model()), events)
    with torch.no_grad():
        model.network.calibration.threshold.fill_(0.03123)
    MagnitudePruning(density=0.4, layers=("associate",)).mask(model, 1.0)
    return model


def learned(learner, model, fresh, state=None, seed=1, budget=None):
    rng = np.random.default_rng(seed)
    begun = learner.begin(model, fresh, rng=rng) if state is None else state
    return learner.update(model, begun, fresh, None, budget=budget or Budget(), rng=rng)


def part_of(model: Model) -> AssociationPart:
    part = association_part(model.network)
    assert isinstance(part, AssociationPart)
    return part


# -- the same circuit ---------------------------------------------------------------------------


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda one: type(one).__name__)
def test_only_the_numbers_of_the_association_change(serving, events, learner):
    candidate = learned(learner, serving, events)
    assert isinstance(candidate, Candidate)
    before, after = serving.weights(), candidate.model.weights()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and all(name.startswith("associate.") for name in moved)
    assert {name.rpartition(".")[2] for name in moved} <= {"weight", "bias"}
    assert candidate.update_class == "weights"
    old, new = vertex_chain(serving), vertex_chain(candidate.model)
    for layer, was in zip(new.associate.layers, old.associate.layers, strict=True):
        assert layer.weight_format == was.weight_format and layer.bias_format == was.bias_format
        np.testing.assert_array_equal(layer.mask, was.mask)
        assert not layer.weight[~layer.mask].any()
    one, other = old.find_tracks(events.inputs), new.find_tracks(events.inputs)
    np.testing.assert_array_equal(one.z0, other.z0)
    np.testing.assert_array_equal(one.weights, other.weights)
    assert not np.array_equal(one.logits, other.logits)


def test_what_was_learned_lies_on_the_grids_of_the_circuit(serving, events):
    candidate = learned(SGD, serving, events)
    for layer in part_of(candidate.model).layers:
        weight, bias = layer.quantised()
        assert torch.equal(weight, layer.weight) and torch.equal(bias, layer.bias)


def test_without_a_rate_the_circuit_stays_bit_for_bit(serving, events):
    idle = replace(SGD, rate=0.0, numbers=Format(width=22, fraction=16))  # as fine as the biases
    candidate = learned(idle, serving, events)
    old, new = vertex_chain(serving), vertex_chain(candidate.model)
    for layer, was in zip(new.associate.layers, old.associate.layers, strict=True):
        np.testing.assert_array_equal(layer.weight, was.weight)
        np.testing.assert_array_equal(layer.bias, was.bias)
    assert new.threshold == old.threshold


def test_a_wild_rate_stays_between_the_ends_of_the_formats(serving, events):
    candidate = learned(replace(SGD, rate=0.1), serving, events)
    assert isinstance(candidate, Candidate)
    low, high = part_of(serving).ends(WORD)
    weights = candidate.learner["weights"].astype(np.int64)
    assert (weights >= low).all() and (weights <= high).all()
    free = low < high
    assert 0.3 < free.mean() < 0.5  # the others have no multiplier
    assert ((weights == low) | (weights == high))[free].any()


def test_the_circuit_of_a_reloadable_design_is_the_same_and_answers_bit_for_bit(serving, events):
    pytest.importorskip("alkaid", reason="the extra [firmware] is not installed")
    from stillfit.l1t.chip import VertexChip

    candidate = learned(SGD, serving, events)
    chip = VertexChip(design="reloadable", links=1, vectors=500)
    assert chip.footprint(candidate.model) == chip.footprint(serving)
    assert chip.equality(candidate.model, events).wrong == 0


# -- the arithmetic -----------------------------------------------------------------------------


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda one: type(one).__name__)
def test_with_ends_the_kernels_equal_the_reference_bit_for_bit(serving, events, learner):
    part = part_of(serving)
    x, t = part.examples(events, learner.numbers)
    device, plan = learner.switched_on(serving, np.random.default_rng(5))
    ends = part.ends(learner.numbers)
    assert (device.weights >= ends[0]).all() and (device.weights <= ends[1]).all()
    plain = Reference(device, plan, ends)
    kernels.learn(device, plan, x[:60], t[:60], ends)
    plain.learn(x[:60], t[:60])
    for name, value in plain.state().items():
        np.testing.assert_array_equal(getattr(device, name), value, err_msg=name)


def test_the_device_says_what_the_chip_says_up_to_the_rounding_of_activations(serving, events):
    part = part_of(serving)
    numbers = Format(width=24, fraction=16)
    device, plan = replace(SGD, numbers=numbers).switched_on(serving, np.random.default_rng(5))
    x, _ = part.examples(events, numbers)
    out = kernels.answers(device, plan, x).astype(np.float64)
    logit = np.ldexp(out[:, 1] - out[:, 0], -16) + part.threshold
    with torch.no_grad():
        exact = serving.network.associate(torch.from_numpy(np.ldexp(x, -16)).float())[:, 0]
    # The chip rounds hidden activations to 8 bits, the device to 16 fraction bits.
    steps = sum(
        2.0 ** -int(layer.on_input.format.f[0])
        * float(layer.quantised()[0].detach().abs().sum(1).max())
        for layer in part.layers[1:]
    )
    assert np.abs(logit - exact.numpy()).max() < 2 * steps
    assert np.abs(logit - exact.numpy()).mean() < 0.2 * steps


def test_examples_are_the_chains_own_numbers(serving, events):
    part = part_of(serving)
    x, t = part.examples(events, WORD)
    network = serving.network
    tracks = tensors(network.prepare(events.inputs))["tracks"]
    assert isinstance(tracks, RaggedTensor)
    caught = []
    first = network.associate[0].on_input
    handle = first.register_forward_hook(lambda module, given, out: caught.append(out))
    with torch.no_grad():
        network.find(tracks)
    handle.remove()
    every = np.ldexp(caught[0].numpy().astype(np.float64), 12).astype(np.int64)
    rows = {tuple(row) for row in every.tolist()}
    assert all(tuple(row) in rows for row in x.tolist())
    primary = int((events.targets["is_pv"].values > 0).sum())
    assert t.sum() == primary and primary < len(t) <= 2 * primary


def test_the_first_layer_sees_saturated_numbers_where_the_word_is_short(serving, events):
    x, _ = part_of(serving).examples(events, Format(width=10, fraction=8))
    assert x.max() == 511 and x.dtype == np.int16


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_all_primary_tracks_and_as_many_others_are_learned(counts, share, seed):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    is_pv = rng.random(offsets[-1]) < share
    key = rng.integers(0, 9, offsets[-1]), rng.integers(-50, 50, offsets[-1])
    rows = balanced(is_pv, offsets, key)
    assert len(set(rows.tolist())) == len(rows)
    event = np.searchsorted(offsets, rows, "right") - 1
    assert (np.diff(event) >= 0).all()
    for e in range(len(counts)):
        here = rows[event == e]
        whole = is_pv[offsets[e] : offsets[e + 1]]
        k, m = int(whole.sum()), int((~whole).sum())
        assert is_pv[here].sum() == k and (~is_pv[here]).sum() == min(k, m)
        assert (np.diff(key[0][here] * 1000 + key[1][here]) >= 0).all()


def test_the_others_are_spread_evenly():
    is_pv = np.zeros(100, bool)
    is_pv[:4] = True
    place = np.arange(100)
    rows = balanced(is_pv, np.array([0, 100]), (np.zeros(100, int), place))
    assert rows.tolist() == [0, 1, 2, 3, 15, 39, 63, 87]


# -- the state ----------------------------------------------------------------------------------


def test_two_updates_are_one_bit_for_bit(serving, events):
    whole = learned(SGD, serving, events)
    first = learned(SGD, serving, events.take(slice(0, 25)))
    second = learned(SGD, first.model, events.take(slice(25, None)), first.learner, seed=7)
    for name, array in whole.learner.items():
        np.testing.assert_array_equal(array, second.learner[name], err_msg=name)


def test_an_event_is_learned_once(serving, events):
    learner = replace(SGD, recall=100)
    half, rest = events.take(slice(0, 25)), events.take(slice(25, None))
    first = learned(learner, serving, half)
    again = learned(learner, first.model, half, first.learner)
    assert isinstance(again, Declined) and "each event once" in again.because
    on = learned(learner, first.model, events, first.learner, seed=7)
    other = learned(learner, first.model, rest, first.learner, seed=8)
    np.testing.assert_array_equal(on.learner["weights"], other.learner["weights"])


def test_a_version_that_something_else_made_is_loaded_anew(serving, events):
    first = learned(SGD, serving, events)
    back = learned(SGD, serving, events, first.learner)  # the first version serves again
    fresh = learned(
        SGD, serving, events, {**SGD.begin(serving, events, rng=np.random.default_rng(1)),
                               "random": first.learner["random"]},
    )  # fmt: skip
    np.testing.assert_array_equal(back.learner["weights"], fresh.learner["weights"])


def test_it_learns(events):
    """From drawn weights that cannot tell tracks apart, in one pass over 60 events."""
    model = calibrated(fixed_e2e(float_model(4)), events)
    after = learned(replace(SGD, rate=2.0**-7), model, events).model
    error = [float(one.errors(events)["association"].mean()) for one in (model, after)]
    assert error[0] > 0.35 and error[1] < error[0] - 0.05


# -- limits and bad input -----------------------------------------------------------------------


def test_the_budget_is_refused_with_the_figures(serving, events):
    small = replace(SGD, device=EmbeddedBudget(ram_bytes=1000))
    answer = learned(small, serving, events)
    assert isinstance(answer, Declined)
    assert "2,612 bytes of RAM where the budget allows 1,000" in answer.because
    assert SGD.account(serving).macs == 1522
    assert isinstance(learned(SGD, serving, events, budget=EmbeddedBudget(macs_per_example=1522)),
                      Candidate)  # fmt: skip


def test_a_perturbation_is_declined(serving, events):
    answer = learned(EmbeddedSPSA(numbers=WORD, min_events=1), serving, events)
    assert isinstance(answer, Declined) and "no multiplier" in answer.because


def test_other_networks_are_declined(events):
    answer = learned(SGD, float_model(), events)
    assert isinstance(answer, Declined)
    assert "this is E2E; convert an E2E network first (l1t.fixed.fixed_e2e)" in answer.because


def test_events_without_a_primary_track_teach_nothing(serving, events):
    none = np.zeros_like(events.targets["is_pv"].values)
    told = replace(
        events, targets={**events.targets, "is_pv": events.targets["is_pv"].with_values(none)}
    )
    answer = learned(SGD, serving, told)
    assert isinstance(answer, Declined) and answer.early
    assert "nothing to learn from in 60 labelled events" in answer.because


def test_bad_labels_are_named(serving, events):
    column = events.targets["is_pv"]
    spoiled = column.values.astype(np.float32)
    spoiled[17] = math.nan
    for targets, error, text in (
        ({"is_pv": column.with_values(spoiled)}, DataError, "of track 17 is nan"),
        ({"is_pv": np.zeros(60)}, DataError, "no ragged column 'is_pv'"),
        (
            {"is_pv": Ragged.from_counts(column.values[:60], np.ones(60, np.int64))},
            ShapeError,
            "the labels are of 60 tracks",
        ),
    ):
        told = replace(events, targets={**events.targets, **targets})
        with pytest.raises(error, match=text):
            learned(SGD, serving, told)


def test_the_serving_network_is_left_as_it_was(serving, events):
    assert isinstance(serving.network, FixedE2E)
    before = serving.weights()
    state = SGD.begin(serving, events, rng=np.random.default_rng(1))
    kept = {name: array.copy() for name, array in state.items()}
    learned(SGD, serving, events, state)
    assert all(np.array_equal(before[name], array) for name, array in serving.weights().items())
    assert all(np.array_equal(kept[name], array) for name, array in state.items())
