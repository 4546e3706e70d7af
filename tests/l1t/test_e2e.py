"""The vertex networks: shapes, invariances, where gradients flow, and where they must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillfit.core.arrays import Ragged, concat
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E, EventSigma, Pattern
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.l1t.vertexing import (
    BIN_WIDTH,
    BINS,
    SIGMA_REGIONS,
    Z0_LSB,
    Z_MAX,
    at_bins,
    barrel_hits,
    binned,
    centre,
    histogram,
    shared_histogram,
    winner,
)
from stillfit.models.model import Architecture, Model, build, count_macs, footprint
from stillfit.models.networks import reinitialised
from stillfit.models.tensors import RaggedTensor, tensors

NETWORKS = [E2E, AdaptiveE2E]


@pytest.fixture(scope="module")
def events() -> Examples:
    """Simulated events; the third has no tracks."""
    made = vertex_examples(120, nominal(), library=load(), seed=3)
    parts = [made.take(slice(0, 2)), made.take(slice(3, None))]
    empty = {k: Ragged(c.values[:0], np.zeros(2, np.int64)) for k, c in made.inputs.items()}
    inputs = concat([parts[0].inputs, empty, parts[1].inputs])
    no_truth = {
        "z0": np.zeros(1, np.float32),
        "is_pv": Ragged(np.zeros(0, np.uint8), np.zeros(2, np.int64)),
    }
    targets = concat([parts[0].targets, no_truth, parts[1].targets])
    return Examples(made.ids, inputs, targets, made.times, made.conditions)


def model_of(factory, **arguments) -> Model:
    return Model(factory(**arguments), VertexTask(), Architecture("test", arguments))


def prepared(network, examples) -> RaggedTensor:
    tracks = tensors(network.prepare(examples.inputs))["tracks"]
    assert isinstance(tracks, RaggedTensor)
    return tracks


def every(tracks: RaggedTensor) -> torch.Tensor:
    return torch.arange(len(tracks.values))


# --- the pieces ---------------------------------------------------------------------------------


def test_a_histogram_is_a_sum_over_tracks():
    rng = np.random.default_rng(1)
    events = torch.from_numpy(np.repeat(np.arange(4), [3, 0, 5, 2]))
    tracks = RaggedTensor(torch.zeros(10, 1), events, 4)
    bins = torch.from_numpy(rng.integers(0, BINS, 10))
    weights = torch.from_numpy(rng.random(10))
    sums = histogram(tracks, bins, weights)
    slow = np.zeros((4, BINS))
    for event, place, weight in zip(events.numpy(), bins.numpy(), weights.numpy(), strict=True):
        slow[event, place] += weight
    np.testing.assert_allclose(sums.numpy(), slow)


def test_triangular_filling_keeps_the_weight_and_its_centre():
    tracks = RaggedTensor(torch.zeros(3, 1), torch.tensor([0, 0, 1]), 2)
    place = torch.tensor([10.5, 20.75, 3.0], dtype=torch.float64)
    sums = shared_histogram(tracks, place, torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    np.testing.assert_allclose(sums[0, 10], 1.0)  # at a bin's centre all goes there
    np.testing.assert_allclose(sums[0, [20, 21]], [1.5, 0.5])
    np.testing.assert_allclose(sums[1, [2, 3]], [2.0, 2.0])
    at = centre(torch.arange(BINS) + 0.5).double()
    np.testing.assert_allclose(
        sums @ at / sums.sum(1),
        [np.average(centre(place[:2]).numpy(), weights=[1, 2]), centre(place[2:]).item()],
    )


def test_outermost_places_stay_in_the_histogram():
    tracks = RaggedTensor(torch.zeros(4, 1), torch.tensor([0, 0, 0, 0]), 1)
    place = torch.tensor([-9.0, 0.2, 255.9, 400.0])
    sums = shared_histogram(tracks, place, torch.ones(4))
    # A share beyond the ends is that of the outermost bin.
    assert torch.isfinite(sums).all()
    assert sums.sum() == pytest.approx(4.0)
    assert sums[0, 1:255].abs().max() == pytest.approx(0.0, abs=1e-5)


def test_bins_are_those_of_the_twelve_bit_track_word():
    code = np.arange(-2048, 2048)
    bin_, fraction = binned((code + 0.5) * Z0_LSB)
    assert np.array_equal(bin_, (code >> 4) + 128)
    half = torch.from_numpy(fraction).half().float().numpy()
    np.testing.assert_array_equal(half, fraction)  # exact in half precision
    assert pytest.approx(20.46912512) == Z_MAX
    outside, place = binned(np.array([-30.0, 30.0]))
    assert outside.tolist() == [0, 255] and np.all((place >= 0) & (place < 1))


def test_the_window_around_a_bin_is_zero_outside():
    values = torch.arange(1.0, BINS + 1)[None].repeat(2, 1)
    near = at_bins(values, torch.tensor([0, 255]), 2)
    assert near.tolist() == [[0, 0, 1, 2, 3], [254, 255, 256, 0, 0]]


def test_barrel_hits_count_the_layers_that_the_track_crosses():
    pattern = np.array([0b0000111, 0b0000101, 0b1111111, 0b1111111, 0b1111111])
    eta = np.array([0.0, 0.1, 1.8, 2.2, 2.39])
    # sinh(1.8) = 2.94: r = 52 is beyond z = 120 cm; at 2.2 r = 37 too; at 2.39 all are.
    assert barrel_hits(pattern, eta, np.zeros(5)).tolist() == [3, 2, 2, 1, 0]


def test_the_soft_position_becomes_the_hard_one_as_the_temperature_falls():
    sums = torch.rand(20, BINS, generator=torch.Generator().manual_seed(1))
    pattern = Pattern(1e-4)
    scores = pattern.scores(sums)
    soft = pattern.soft(scores)
    np.testing.assert_allclose(soft.detach(), centre(winner(scores) + 0.5), atol=BIN_WIDTH * 1e-2)


def test_the_hard_position_is_the_mean_of_five_bins_and_the_bias():
    sums = torch.zeros(1, BINS)
    sums[0, 98:103] = torch.tensor([1.0, 2.0, 9.0, 3.0, 1.0])
    pattern = Pattern(0.3)
    with torch.no_grad():
        pattern.bias.fill_(0.5)
    peak = pattern.hard(sums, pattern.scores(sums))
    lean = (-2 - 2 + 3 + 2) / 16
    assert peak.bins.item() == 100
    assert peak.z0.item() == pytest.approx(centre(torch.tensor(100.5 + lean)).item() + 0.5, 1e-5)


def test_a_bad_temperature_is_named():
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        E2E(temperature=0)


# --- the networks -------------------------------------------------------------------------------


def test_sizes_are_those_of_the_publication():
    layers = [footprint(part).parameters for part in (E2E().weight, E2E().associate)]
    assert layers == [161, 541]  # 3-10-10-1 and 4-20-20-1: 702 of 707
    assert footprint(E2E()).parameters == 702 + 3 + 49
    adaptive = footprint(AdaptiveE2E())
    assert 1300 <= adaptive.parameters - 260 <= 1700  # 260 table cells are parameters
    assert 1100 <= count_macs(AdaptiveE2E()) - 48 <= 1500  # 48: the event's sigma


@pytest.mark.parametrize("factory", NETWORKS)
def test_weights_are_never_negative_and_calibration_starts_neutral(factory, events):
    network = factory()
    tracks = prepared(network, events)
    assert network.trained(tracks, every(tracks)).weights.min() >= 0
    calibration = network.calibration
    for name in ("z0_sector", "z0_barrel", "threshold"):
        assert not getattr(calibration, name).any()
    assert calibration.sigma_scale == 1 and calibration.track_sigma.tolist() == [1] * SIGMA_REGIONS


@pytest.mark.parametrize("factory", NETWORKS)
def test_the_order_of_tracks_and_the_chunks_do_not_matter(factory, events):
    model = model_of(factory)
    rng = np.random.default_rng(5)
    first = next(iter(events.inputs.values()))
    order = np.lexsort((rng.random(len(first.values)), first.events))
    turned = {k: Ragged(c.values[order], c.offsets) for k, c in events.inputs.items()}
    whole, outputs = model.predict(events.inputs)
    pieces, same = model.predict(events.inputs, chunk=7)
    shuffled, other = model.predict(turned)
    for found, association in ((pieces, same["association"].values), (shuffled, None)):
        np.testing.assert_allclose(found.mean, whole.mean, atol=2e-4)
        np.testing.assert_allclose(found.std, whole.std, rtol=1e-2)
        if association is not None:
            np.testing.assert_allclose(association, outputs["association"].values, atol=1e-4)
    np.testing.assert_allclose(
        other["association"].values, outputs["association"].values[order], atol=1e-4
    )


@pytest.mark.parametrize("name", list(FACTORIES))
def test_an_event_without_tracks_is_at_zero_with_the_widest_sigma(name, events):
    model = model_of(FACTORIES[name])
    predictive, outputs = model.predict(events.inputs)
    assert predictive.mean[2] == 0
    assert predictive.std[2] == pytest.approx(BINS * BIN_WIDTH)
    assert len(outputs["association"][2:3].values) == 0
    assert np.all(np.isfinite(predictive.mean)) and np.all(predictive.std > 0)


@pytest.mark.parametrize("factory", NETWORKS)
def test_no_events_at_all_are_answered(factory, events):
    predictive, outputs = model_of(factory).predict({k: c[:0] for k, c in events.inputs.items()})
    assert len(predictive) == 0 and len(outputs["association"]) == 0


@pytest.mark.parametrize("factory", NETWORKS)
def test_the_loss_has_finite_gradients_for_batches_of_nothing(factory, events):
    model = model_of(factory)
    for rows in (slice(2, 3), slice(2, 4), slice(0, 20)):
        part = events.take(rows)
        inputs = tensors(model.task.prepare(model.network, part.inputs))
        loss = model.task.loss(model.network, inputs, tensors(part.targets))
        loss.backward()
        for parameter in model.network.parameters():
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def gradients(network, value) -> set[str]:
    """Names of the top-level parts that the gradient of `value` reaches."""
    network.zero_grad(set_to_none=True)
    value.backward()
    return {
        name.split(".")[0]
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }


def test_gradients_of_the_published_network_flow_only_where_stated(events):
    network = E2E(seed=2)
    tracks = prepared(network, events)
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.logits.sum()) == {"associate"}
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.z0.sum()) == {"weight", "pattern"}
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.raw.sum()) == {"sigma"}
    assert not out.hard_z0.requires_grad


def test_gradients_of_the_adaptive_network_flow_only_where_stated(events):
    network = AdaptiveE2E(seed=2)
    tracks = prepared(network, events)
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.logits.sum()) == {"associate"}
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.z0.sum()) == {"trunk", "heads", "pattern", "calibration"}
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.track_sigma.log().sum()) == {"trunk", "heads"}
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.track_z0.sum()) == {"calibration"}
    out = network.trained(tracks, every(tracks))
    assert gradients(network, out.raw.sum()) == {"sigma"}
    assert not out.hard_z0.requires_grad


@pytest.mark.parametrize("factory", NETWORKS)
def test_association_of_some_tracks_is_that_of_all(factory, events):
    network = factory(seed=4)
    tracks = prepared(network, events)
    rows = torch.tensor([5, 1, 700])
    some = network.trained(tracks, rows).logits
    all_ = network.trained(tracks, every(tracks)).logits
    np.testing.assert_allclose(some.detach(), all_[rows].detach(), atol=1e-5)
    served = network.find(tracks).association
    np.testing.assert_allclose(torch.sigmoid(all_).detach(), served.detach(), atol=1e-5)


@pytest.mark.parametrize("factory", NETWORKS)
def test_a_uniform_table_entry_moves_the_vertex_by_as_much(factory, events):
    model = model_of(factory, seed=3)
    plain, _ = model.predict(events.inputs)
    weights = model.weights()
    step = 2 * BIN_WIDTH
    moved = model.with_weights(
        {**weights, "calibration.z0_sector": weights["calibration.z0_sector"] + np.float32(step)}
    )
    found, _ = moved.predict(events.inputs)
    keep = (np.abs(plain.mean) < 15) & (np.arange(len(plain)) != 2)
    np.testing.assert_allclose(plain.mean[keep] - found.mean[keep], step, atol=2e-3)


@pytest.mark.parametrize("factory", NETWORKS)
def test_threshold_and_sigma_scale_act_as_stated(factory, events):
    model = model_of(factory, seed=3)
    plain, outputs = model.predict(events.inputs)
    weights = {
        **model.weights(),
        "calibration.threshold": np.array(0.7, np.float32),
        "calibration.sigma_scale": np.array(3, np.float32),
    }
    found, moved = model.with_weights(weights).predict(events.inputs)
    np.testing.assert_allclose(found.mean, plain.mean)
    rest = np.arange(len(plain)) != 2
    np.testing.assert_allclose(found.std[rest], 3 * plain.std[rest], rtol=1e-5)

    def logit(p):
        return np.log(p / (1 - p))

    p, q = outputs["association"].values.astype(float), moved["association"].values.astype(float)
    np.testing.assert_allclose(logit(q), logit(p) - 0.7, atol=1e-4)


@pytest.mark.parametrize("name", list(FACTORIES))
def test_a_stored_network_is_built_again(name, events):
    arguments = {} if name == "l1t.fasthisto" else {"seed": 7}
    model = model_of(FACTORIES[name], **arguments)
    again = build(Architecture(name, arguments), FACTORIES)
    twin = Model(again, model.task, model.architecture).with_weights(model.weights())
    np.testing.assert_array_equal(
        twin.predict(events.inputs)[0].mean, model.predict(events.inputs)[0].mean
    )


@pytest.mark.parametrize("factory", NETWORKS)
def test_seeds_draw_initial_weights_and_leave_the_global_generator(factory):
    torch.manual_seed(11)
    before = torch.rand(1)
    torch.manual_seed(11)
    one, same, other = factory(seed=1), factory(seed=1), factory(seed=2)
    assert torch.rand(1) == before
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("factory", NETWORKS)
def test_a_fresh_network_is_new_and_neutral(factory, events):
    network = factory(seed=1)
    with torch.no_grad():
        network.calibration.z0_sector.fill_(0.3)
        network.calibration.sigma_scale.fill_(2)
        network.pattern.bias.fill_(1)
    fresh = VertexTask().fresh(network, events, seed=5)
    assert not fresh.calibration.z0_sector.any() and fresh.calibration.sigma_scale == 1
    assert fresh.pattern.bias == 0 and fresh.pattern.taps.tolist() == [0.5, 1.0]
    tracks = prepared(fresh, events)
    out = fresh.trained(tracks, every(tracks))
    assert (out.weights > 0).float().mean() > 0.5  # it starts alive
    again = reinitialised(network, 5)
    for a, b in zip(fresh.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert network.calibration.z0_sector[0].item() == pytest.approx(0.3)


def test_the_event_sigma_is_bounded():
    head = EventSigma()
    out = head(torch.full((2, 4), 1e6))
    assert torch.all(out.abs() <= 10)  # twice the logarithm of the sigma
