"""The vertex chain in whole numbers: bit for bit the fake-quantised network, and a plain oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from stillfit.core.arrays import Ragged, concat
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t import fixed_words
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.fixed import Z_STEP, FixedE2E, FixedPattern, fixed_e2e
from stillfit.l1t.fixed_chain import ORDER, VertexChain, vertex_chain
from stillfit.l1t.fixed_recipe import Compression
from stillfit.l1t.library import load
from stillfit.l1t.metrics import vertex_metrics
from stillfit.l1t.recipe import train_vertex, vertex_examples
from stillfit.l1t.trackword import unpack
from stillfit.l1t.vertex import VertexTask, ragged_column
from stillfit.l1t.vertexing import BINS, Z0_LSB, barrel_hits, winner
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.model import Architecture, Model, build
from stillfit.models.tensors import RaggedTensor, tensors
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.updaters.references import FineTune, Retrain
from stillfit.updaters.replay import Replay


@pytest.fixture(scope="module")
def events() -> Examples:
    """Simulated events; the third has no tracks."""
    made = vertex_examples(150, nominal(), library=load(), seed=3)
    parts = [made.take(slice(0, 2)), made.take(slice(3, None))]
    empty = {k: Ragged(c.values[:0], np.zeros(2, np.int64)) for k, c in made.inputs.items()}
    inputs = concat([parts[0].inputs, empty, parts[1].inputs])
    no_truth = {
        "z0": np.zeros(1, np.float32),
        "is_pv": Ragged(np.zeros(0, np.uint8), np.zeros(2, np.int64)),
    }
    targets = concat([parts[0].targets, no_truth, parts[1].targets])
    return Examples(made.ids, inputs, targets, made.times, made.conditions)


def float_model(seed: int = 1) -> Model:
    return Model(E2E(seed=seed), VertexTask(), Architecture("l1t.e2e", {"seed": seed}))


def fixed_model(events: Examples, seed: int = 1, **arguments) -> Model:
    """Drawn weights, ranges from data, tables, threshold and bias that are not neutral."""
    model = fixed_e2e(float_model(seed), **arguments)
    network = model.network
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.calibration.z0_sector.copy_(0.3 * torch.randn(180, generator=generator))
        network.calibration.z0_barrel.copy_(0.3 * torch.randn(80, generator=generator))
        network.calibration.threshold.fill_(0.03123)
        network.pattern.bias.fill_(0.0237)
    return calibrated(model, events)


def differences(model: Model, examples: Examples) -> list[str]:
    """What the network and its integers do not agree on, bit for bit."""
    network = model.network
    assert isinstance(network, FixedE2E)
    chain = vertex_chain(model)
    answer = chain.find_tracks(examples.inputs)
    tracks = tensors(network.prepare(examples.inputs))["tracks"]
    assert isinstance(tracks, RaggedTensor)
    with torch.no_grad():
        found = network.find(tracks)
        _, _, weights, _, scores = network._peak(tracks)
    logits = np.ldexp(answer.logits - chain.threshold, -chain.logit_fraction)
    pairs = {
        "weights": (weights, np.ldexp(answer.weights, -int(chain.weight.fraction[0]))),
        "score": (found.score, np.ldexp(answer.score, -chain.score_fraction)),
        "bins": (winner(scores), answer.bins),
        "z0": (found.z0, chain.position(answer)),
        "flags": (found.association >= 0.5, answer.flags),
        "association": (
            found.association,
            torch.sigmoid(torch.from_numpy(logits).to(found.association.dtype)).numpy(),
        ),
    }
    return [
        name
        for name, (torch_, whole) in pairs.items()
        if not np.array_equal(torch_.double().numpy(), np.asarray(whole).astype(np.float64))
    ]


VARIANTS = {
    "8 bits": {},
    "10-bit features, floor": {"features": 10, "precision": {"rounding": "floor"}},
    "per channel, even, symmetric": {
        "precision": {"per_channel": True, "rounding": "even", "overflow": "symmetric"}
    },
    "4 bits, wrap": {"precision": {"weights": 4, "inputs": 5, "overflow": "wrap"}},
    "12 bits": {"precision": {"weights": 12, "inputs": 12, "bias": 20}, "histogram": 14},
    "a histogram that saturates": {"histogram": 8},
}


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_the_chain_equals_the_network_bit_for_bit(events, arguments):
    for seed in (1, 2):
        model = fixed_model(events, seed, **arguments)
        assert differences(model, events) == []
        MagnitudePruning(density=0.25, layers=("associate",)).mask(model, 1.0)
        fit(
            model, Prepared.of(model, events), Schedule(steps=3, batch=40), np.random.default_rng(1)
        )
        assert differences(model, events) == []


@pytest.mark.study
def test_a_million_tracks_bit_for_bit():
    model = Compression(
        first=Schedule(steps=40, batch=250, rate=0.003),
        pruning=MagnitudePruning(
            steps=2, density=0.25, layers=("associate",), schedule=Schedule(steps=20, batch=250)
        ),
        last=Schedule(steps=40, batch=250),
    ).compress(
        train_vertex("e2e", library=load(), seed=1, events=4000),
        vertex_examples(2000, nominal(), library=load(), seed=2),
        np.random.default_rng(1),
    )
    tracks = 0
    for seed in (5, 6, 7):
        made = vertex_examples(2000, nominal(), library=load(), seed=seed, split="test")
        tracks += len(made.inputs["pt"].values)
        assert differences(model, made) == []
    assert tracks >= 1_000_000


def slow(chain: VertexChain, weights, bins) -> tuple[int, int, int]:
    """One event in plain Python."""
    sums = [0] * BINS
    for weight, place in zip(weights, bins, strict=True):
        sums[place] += int(weight)
    sums = [0, 0, *(min(s, chain.full) for s in sums), 0, 0]
    scores = [
        max(chain.middle * sums[b + 2] + chain.side * (sums[b + 1] + sums[b + 3]), 0)
        for b in range(BINS)
    ]
    best = max(range(BINS), key=lambda b: (scores[b], -abs(2 * b - 255), -b))
    if scores[best] == 0:
        return best, 0, 0
    total = sum(sums[best : best + 5])
    lean = sum((k - 2) * sums[best + k] for k in range(5))
    return (
        best,
        (2 * best - 255) * 32 + math.floor(64 * lean / total + 0.5) + chain.bias,
        scores[best],
    )


def test_the_chain_equals_a_plain_oracle_event_by_event(events):
    chain = vertex_chain(fixed_model(events))
    answer = chain.find_tracks(events.inputs)
    words, sector, offsets = fixed_words.words_of(events.inputs)
    given = fixed_words.inputs_of_words(words, sector)
    moved = given.place - chain.sector_table[given.sector] - chain.barrel_table[given.barrel]
    bins = np.clip(moved // 16, 0, BINS - 1)
    for event in range(40):
        mine = slice(offsets[event], offsets[event + 1])
        best, z0, score = slow(chain, answer.weights[mine], bins[mine])
        assert (answer.bins[event], answer.z0[event], answer.score[event]) == (best, z0, score)


def test_equal_scores_are_decided_as_in_firmware(events):
    chain = vertex_chain(fixed_model(events))
    assert ORDER.tolist()[:5] == [127, 128, 126, 129, 125]
    features = np.repeat(
        fixed_words.inputs_of_words(*fixed_words.words_of(events.inputs)[:2]).features[:1], 4, 0
    )

    def bins_of(places: list[int]) -> int:
        n = len(places)
        zeros = np.zeros(n, np.int32)
        given = fixed_words.Inputs(
            features[:n], np.array(places, np.int32) * 16 + 8, zeros, zeros, zeros
        )
        flat = replace(
            chain,
            sector_table=np.zeros(180, np.int64),
            barrel_table=np.zeros(80, np.int64),
        )
        return int(flat.find(given, np.array([0, n])).bins[0])

    assert bins_of([20, 200]) == 200  # nearer the centre
    assert bins_of([20, 235]) == 20  # as near: the lower
    assert bins_of([20, 236]) == 20
    assert bins_of([50, 50, 128]) == 50  # a higher score first


def test_an_event_without_tracks_is_found_nowhere(events):
    model = fixed_model(events)
    answer = vertex_chain(model).find_tracks(events.inputs)
    assert answer.z0[2] == 0 and answer.score[2] == 0
    assert model.predict(events.inputs)[0].mean[2] == 0


def test_the_order_of_tracks_does_not_matter(events):
    chain = vertex_chain(fixed_model(events))
    words, sector, offsets = fixed_words.words_of(events.inputs)
    rng = np.random.default_rng(2)
    order = np.concatenate([rng.permutation(np.arange(*ends)) for ends in pairwise(offsets)])
    one, other = (
        chain.find_words(words, sector, offsets),
        chain.find_words(words[order], sector[order], offsets),
    )
    assert np.array_equal(one.z0, other.z0)
    assert np.array_equal(one.flags[order], other.flags)


# --- track words --------------------------------------------------------------------------------


def test_words_hold_what_the_tracks_are_to_their_steps(events):
    words, sector, offsets = fixed_words.words_of(events.inputs)
    given = fixed_words.inputs_of_words(words, sector)
    flat = {n: events.inputs[n].values.astype(np.float64) for n in fixed_words.WORD_COLUMNS}
    pt = np.minimum(flat["pt"], 127.9)
    # The curvature's step is 0.3 % of pT at 100 GeV.
    assert np.all(np.abs(given.features[:, 0] / 16 - pt) < 1 / 16 + pt**2 / 3e4)
    assert np.array_equal(given.features[:, 1], flat["quality"])
    assert np.all(np.abs(given.features[:, 2] / 512 - np.abs(flat["eta"])) < 2 / 512)
    assert np.array_equal(given.place, np.floor(flat["z0"] / Z0_LSB).clip(-2048, 2047) + 2048)
    assert np.array_equal(unpack(words)["valid"], np.ones(len(words)))
    assert np.array_equal(np.diff(offsets), events.inputs["pt"].counts)


def test_barrel_hits_in_whole_numbers_are_those_of_real_ones(events):
    codes, _, _ = fixed_words.encoded(events.inputs)
    whole = fixed_words.barrel_hits(codes["hitpattern"], codes["tanl"], codes["z0"])
    real = barrel_hits(
        codes["hitpattern"],
        np.arcsinh((codes["tanl"] + 0.5) / 4096),
        (codes["z0"] + 0.5) * Z0_LSB,
    )
    assert np.mean(whole != real) < 1e-3  # at the barrel's very end


def test_prepared_tracks_are_exact_in_half_precision(events):
    network = fixed_model(events).network
    values = network.prepare(events.inputs)["tracks"].values
    codes, sector, _ = fixed_words.encoded(events.inputs)
    given = fixed_words.inputs_of(codes, sector)
    assert values.dtype == np.float16
    back = np.ldexp(values[:, 5:].astype(np.float64), fixed_words.FRACTIONS)
    assert np.array_equal(back, given.features)
    wide = values.astype(np.float64)
    assert np.array_equal(wide[:, 0] * 16 + np.floor(wide[:, 1] * 16), given.place)


# --- the network --------------------------------------------------------------------------------


def test_it_stays_close_to_the_float_network(events):
    plain = float_model()
    fixed = calibrated(
        fixed_e2e(plain, features=11, precision={"weights": 14, "inputs": 12, "bias": 20}), events
    )
    a, b = plain.predict(events.inputs)[0].mean, fixed.predict(events.inputs)[0].mean
    assert np.mean(np.abs(a - b) < 0.05) > 0.95


def test_a_stored_version_answers_the_same(events):
    model = fixed_model(events, precision={"weights": 6})
    twin = Model(build(model.architecture, FACTORIES), VertexTask(), model.architecture)
    twin = twin.with_weights(model.weights())
    for a, b in zip(model.predict(events.inputs), twin.predict(events.inputs), strict=True):
        if isinstance(a, dict):
            assert np.array_equal(a["association"].values, b["association"].values)
        else:
            assert np.array_equal(a.mean, b.mean)


class Store:
    def __init__(self, kept: Examples) -> None:
        self.kept = kept

    def all(self) -> Examples:
        return self.kept

    def window(self, since: float) -> Examples:
        return self.kept


@pytest.mark.parametrize("updater", [FineTune, Retrain, Replay], ids=lambda u: u.__name__)
def test_updaters_hold_masks_and_formats_and_the_chain_stays_exact(events, updater):
    serving = fixed_model(events)
    MagnitudePruning(density=0.25, layers=("associate",)).mask(serving, 1.0)
    before, rng = serving.weights(), np.random.default_rng(1)
    strategy = updater(schedule=Schedule(steps=4, batch=40), min_events=1)
    learner = strategy.begin(serving, events, rng=rng)
    found = strategy.update(serving, learner, events, Store(events), budget=Budget(), rng=rng)
    assert isinstance(found, Candidate)
    after = found.model.weights()
    held = [name for name in before if name.rpartition(".")[2] in ("mask", "k", "i", "f")]
    assert len(held) > 30 and all(np.array_equal(before[n], after[n]) for n in held)
    assert any(not np.array_equal(before[n], after[n]) for n in before)
    assert differences(found.model, events) == []


def test_a_recalibration_from_labels_reaches_the_integers(events):
    model = fixed_model(events)
    changed = VertexTask().recalibrate(model.network, events, significance=1.0)
    better = model.with_weights({**model.weights(), **changed})
    assert changed and differences(better, events) == []


def test_training_moves_weights_and_the_filter(events):
    model = fixed_model(events)
    before = model.weights()
    fit(model, Prepared.of(model, events), Schedule(steps=4, batch=50), np.random.default_rng(1))
    for name in ("weight.0.weight", "associate.2.weight", "pattern.taps", "pattern.bias"):
        assert not np.array_equal(before[name], model.weights()[name]), name


@pytest.mark.study
def test_eight_bits_and_a_quarter_of_the_association_lose_little():
    plain = train_vertex("e2e", library=load(), seed=1, events=20_000)
    labelled = vertex_examples(8000, nominal(), library=load(), seed=11)
    small = Compression().compress(plain, labelled, np.random.default_rng(1))
    test = vertex_examples(4000, nominal(), library=load(), seed=77, split="test")
    layers = [m for m in small.network.associate if isinstance(m, FixedLayer)]
    left = sum(int(layer.mask.sum()) for layer in layers)
    assert left <= 0.25 * sum(layer.mask.numel() for layer in layers)
    figures = []
    for model in (plain, small):
        predictive, outputs = model.predict(test.inputs)
        association = ragged_column(outputs, "association")
        figures.append(vertex_metrics(predictive.mean, association, test.targets))
    assert figures[1].efficiency.value >= figures[0].efficiency.value - 0.01
    assert figures[1].auc.value >= figures[0].auc.value - 0.01


# --- errors -------------------------------------------------------------------------------------


def test_errors(events):
    model = fixed_model(events)
    with pytest.raises(ConfigError, match=r"only an E2E network .* this is AdaptiveE2E"):
        fixed_e2e(Model(AdaptiveE2E(), VertexTask(), Architecture("l1t.adaptive")))
    with pytest.raises(ConfigError, match="read from a FixedE2E, this is E2E; convert the model"):
        vertex_chain(float_model())
    with pytest.raises(ConfigError, match=r"pattern filter needs 28 bits .* and 25 are exact"):
        FixedE2E(histogram=18)
    with pytest.raises(ConfigError, match="fixed-point vertex network has no members"):
        model.network.pattern.to_members(3)
    with pytest.raises(ShapeError, match="reads track words: call prepare"):
        model.network.features({})
    chain = vertex_chain(model)
    words, sector, offsets = fixed_words.words_of(events.inputs)
    with pytest.raises(ShapeError, match="track words were given"):
        chain.find_words(words, sector[:-1], offsets)
    idle = words.copy()
    idle[:2, 0] &= 0x7F
    with pytest.raises(DataError, match=r"2 of \d+ track words are not valid .* leave them out"):
        chain.find_words(idle, sector, offsets)
    with pytest.raises(ShapeError, match="the offsets reach from 0 to"):
        chain.find_words(words, sector, offsets[:-1])


def test_dead_networks_are_errors(events):
    dead = fixed_model(events)
    with torch.no_grad():
        dead.network.associate[2].weight.zero_()
    with pytest.raises(ConfigError, match=r"all weights of associate\.2 are zero in fixed point"):
        vertex_chain(dead)
    blind = fixed_model(events)
    assert isinstance(blind.network.pattern, FixedPattern)
    with torch.no_grad():
        blind.network.pattern.taps.fill_(-0.5)
    with pytest.raises(ConfigError, match="no score can rise above zero"):
        vertex_chain(blind)


def test_a_layer_outside_its_accumulator_is_named(events):
    with pytest.raises(
        ConfigError, match=r"accumulator of (weight|associate)\.\d needs \d+ bits .* and has 18"
    ):
        vertex_chain(fixed_model(events, precision={"accumulator": 18}))


def test_positions_are_whole_steps(events):
    assert pytest.approx(Z0_LSB / 4) == Z_STEP
    mean = fixed_model(events).predict(events.inputs)[0].mean
    np.testing.assert_allclose(mean / Z_STEP, np.rint(mean / Z_STEP), atol=1e-3)
