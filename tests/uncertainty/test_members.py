"""Several passes as one call: the same as pass by pass, whatever the network and the method."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.e2e import E2E
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, build, count_macs, footprint
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.models.tensors import tensors
from stillfit.models.training import Schedule
from stillfit.uncertainty import (
    BatchEnsemble,
    Bayesian,
    DeepEnsemble,
    Masksembles,
    MCDropout,
    MomentPropagation,
)
from stillfit.uncertainty import passes as passes_module
from stillfit.uncertainty.conversion import plain_network
from stillfit.uncertainty.ensembles import member_seed, overlapping_masks
from stillfit.uncertainty.methods import FACTORIES, METHODS
from stillfit.updaters.references import FineTune, Retrain

TASK = Regression(features=("a", "b"))
METHODS_OF_PASSES = {
    "deep": lambda network: DeepEnsemble(network, 3),
    "batch": lambda network: BatchEnsemble(network, 3),
    "masks": lambda network: Masksembles(network, 3),
    "dropout": lambda network: MCDropout(network, 0.3, 5),
    "last": lambda network: MCDropout(network, 0.3, 5, last_only=True),
    "bayesian": lambda network: Bayesian(network, 5, start_std=0.5, events=60),
}


class Convolutions(nn.Module):
    """A convolution, both normalisations and a module with parameters of its own."""

    def __init__(self, groups=1, bias=True, padding_mode="zeros"):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(1, 4, 2, padding=1, bias=bias, padding_mode=padding_mode),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Conv1d(4, 4, 3, padding=1, groups=groups, stride=2, bias=bias),
            nn.Flatten(),
        )
        self.bend = nn.PReLU()
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 2, bias=bias)

    def forward(self, x):
        return self.last(self.norm(self.bend(self.first(x[:, None]))))


NETWORKS = {
    "mlp": lambda: MLP(2, (8, 8)),
    "convolutions": Convolutions,
    "grouped, no bias": lambda: Convolutions(groups=2, bias=False, padding_mode="circular"),
    "with noise": lambda: WithNoise(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))),
    "tanh": lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 2)),
}


def table(n=40, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = x[:, 0] + 0.3 * rng.normal(size=n)
    return Examples(
        np.arange(n), {"a": x[:, 0], "b": x[:, 1]}, {"y": y}, np.zeros(n), np.full(n, "nominal")
    )


EXAMPLES = table()


def inputs_of(task, network, examples=EXAMPLES):
    return tensors(uncertain.prepare(task, network, examples.inputs))


def pass_by_pass(task, network, inputs):
    members = [network.member(k).eval() for k in range(network.n_passes)]
    with torch.no_grad():
        return [
            torch.stack(s) for s in zip(*(task.answer(m, inputs) for m in members), strict=True)
        ]


def answers(task, network, inputs):
    with torch.no_grad():
        return network.eval().passes(task, inputs)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS_OF_PASSES)
def test_one_call_says_what_each_member_says_by_itself(method, network):
    torch.manual_seed(1)
    made = METHODS_OF_PASSES[method](NETWORKS[network]())
    inputs = inputs_of(TASK, made)
    (together,) = answers(TASK, made, inputs)
    (apart,) = pass_by_pass(TASK, made, inputs)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 1e-4, "the members must differ"
    assert not any(isinstance(m, passes_module.PassWeights) for m in made.member(0).modules())


@pytest.mark.parametrize("fold", [1, 37, 10**9])
@pytest.mark.parametrize("chunk", [1, 3, 17, 40, 64, 100_000])
def test_memory_is_bounded_by_the_chunk_and_the_answer_is_the_same(chunk, fold):
    torch.manual_seed(1)
    made = DeepEnsemble(MLP(2, (8,)), 3)
    inputs = inputs_of(TASK, made)
    (whole,) = answers(TASK, made, inputs)
    small = DeepEnsemble.of([made.member(k) for k in range(3)], chunk=chunk)
    small._fold = fold
    seen = []
    small.core.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    (pieces,) = answers(TASK, small, inputs)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)
    assert max(seen) <= max(chunk, 1)


def test_a_chunk_of_no_row_is_refused():
    with pytest.raises(ConfigError, match="chunk must be 1 row or more, got 0"):
        DeepEnsemble(MLP(2), chunk=0)


def test_an_empty_batch_has_empty_answers():
    made = DeepEnsemble(MLP(2, (8,)), 3)
    (raw,) = answers(TASK, made, inputs_of(TASK, made, EXAMPLES.take(slice(0, 0))))
    assert tuple(raw.shape) == (3, 0, 2)


# Ragged events: the vertex networks


def tracks(n=30, seed=3):
    """Events of 0 to 30 tracks, about a quarter from a vertex: enough to run the networks."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, n)
    counts[3] = 0
    total = int(counts.sum())
    z = rng.normal(0, 4, n)
    is_pv = rng.random(total) < 0.25
    where = np.where(is_pv, np.repeat(z, counts), rng.normal(0, 5, total))
    flat = {
        "pt": rng.uniform(2, 30, total),
        "eta": rng.uniform(-2.4, 2.4, total),
        "phi": rng.uniform(-3.1, 3.1, total),
        "z0": np.clip(where + rng.normal(0, 0.1, total), -20, 20),
        "d0": rng.normal(0, 0.05, total),
        "hitpattern": rng.integers(0, 128, total),
        "quality": rng.integers(0, 8, total),
        "nstub": rng.integers(4, 7, total),
        **{name: rng.exponential(1, total) for name in ("chi2rphi", "chi2rz", "bendchi2")},
    }
    inputs = {k: Ragged.from_counts(np.asarray(v, np.float32), counts) for k, v in flat.items()}
    targets = {"z0": z, "is_pv": Ragged.from_counts(is_pv.astype(np.float32), counts)}
    return Examples(np.arange(n), inputs, targets, np.zeros(n), np.full(n, "nominal"))


TRACKS = tracks()


@pytest.mark.parametrize("network", [E2E, AdaptiveE2E])
@pytest.mark.parametrize("method", METHODS_OF_PASSES)
def test_vertex_networks_answer_in_one_call_as_pass_by_pass(method, network):
    task = VertexTask()
    made = METHODS_OF_PASSES[method](network())
    inputs = inputs_of(task, made, TRACKS)
    together, apart = answers(task, made, inputs), pass_by_pass(task, made, inputs)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    made.chunk, made._fold = 50, 50
    for one, other in zip(answers(task, made, inputs), apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_members_of_a_vertex_network_have_filters_of_their_own_and_one_calibration():
    members = [E2E(seed=1), E2E(seed=2)]
    with torch.no_grad():
        members[1].pattern.bias.fill_(0.5)
        members[1].pattern.taps.copy_(torch.tensor([0.2, 1.5]))
    made = DeepEnsemble.of(members)
    assert made.member(1).pattern.bias == 0.5
    assert made.core.pattern.bias.tolist() == [0.0, 0.5]
    made.core.calibration.threshold.fill_(0.7)
    assert all(made.member(k).calibration.threshold == 0.7 for k in range(2))
    names = [name for name in made.state_dict() if "calibration" in name]
    assert names == [f"network.calibration.{name}" for name in E2E().calibration.state_dict()]


# Predictions


class Constant(nn.Module):
    """The same mean and variance for every event."""

    def __init__(self, mean, variance):
        super().__init__()
        self.said = nn.Linear(2, 2)
        with torch.no_grad():
            self.said.weight.zero_()
            self.said.bias.copy_(torch.tensor([mean, np.log(variance)]))

    def forward(self, x):
        return self.said(x)


def test_two_constant_members_with_different_means_disagree_by_the_law_of_total_variance():
    made = DeepEnsemble.of([Constant(-1.0, 0.5), Constant(3.0, 1.5)])
    predictive, _ = Model(made, TASK, Architecture("x")).predict(EXAMPLES.inputs)
    np.testing.assert_allclose(predictive.mean, 1.0, rtol=1e-6)
    np.testing.assert_allclose(predictive.aleatoric, 1.0, rtol=1e-6)
    np.testing.assert_allclose(predictive.epistemic, 4.0, rtol=1e-6)
    np.testing.assert_allclose(predictive.variance, 5.0, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS_OF_PASSES)
def test_classes_have_members_and_their_disagreement(method):
    task = Classification(features=("a", "b"), classes=3)
    made = METHODS_OF_PASSES[method](MLP(2, (8, 8), outputs=3))
    predictive, _ = Model(made, task, Architecture("x")).predict(EXAMPLES.inputs)
    assert predictive.members.shape == (40, made.n_passes, 3)
    assert predictive.epistemic.max() > 1e-6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", METHODS_OF_PASSES)
def test_prediction_changes_no_buffer_and_no_mode(method, training):
    made = METHODS_OF_PASSES[method](Convolutions()).train(training)
    before = copy.deepcopy(made.state_dict())
    modes = [module.training for module in made.modules()]
    inputs = inputs_of(TASK, made)
    first, _ = uncertain.predict(TASK, made, inputs)
    again, _ = uncertain.predict(TASK, made, inputs)
    np.testing.assert_array_equal(first.means, again.means)
    assert [module.training for module in made.modules()] == modes
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS_OF_PASSES)
def test_the_same_seed_gives_the_same_network_and_a_stored_one_answers_the_same(method):
    torch.manual_seed(5)
    plain = MLP(2, (8, 8))
    made, again = METHODS_OF_PASSES[method](plain), METHODS_OF_PASSES[method](plain)
    inputs = inputs_of(TASK, made)
    torch.testing.assert_close(answers(TASK, made, inputs), answers(TASK, again, inputs))
    model = Model(made, TASK, Architecture("x"))
    other = METHODS_OF_PASSES[method](MLP(2, (8, 8)))
    stored = Model(other, TASK, Architecture("x")).with_weights(model.weights())
    torch.testing.assert_close(answers(TASK, stored.network, inputs), answers(TASK, made, inputs))


NAMES = (
    "deep-ensemble", "batch-ensemble", "masksembles", "mc-dropout", "mc-dropout-last", "bayesian",
    "moments",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_version_is_built_from_its_names_and_arguments(name):
    assert METHODS[name].name == name and METHODS[name].decomposes
    assert METHODS[name].kind == "members"
    assert type(METHODS[name].convert(MLP(2, (8, 8)))) is type(FACTORIES[name](MLP(2, (8, 8))))
    inner = {"factory": "mlp", "arguments": {"features": 2, "hidden": [8, 8]}}
    architecture = Architecture(name, {"network": inner, "chunk": 100})
    network = build(architecture, {**FACTORIES, "mlp": MLP})
    assert network.chunk == 100
    model = Model(network, TASK, architecture)
    twin = Model(build(architecture, {**FACTORIES, "mlp": MLP}), TASK, architecture)
    one, _ = twin.with_weights(model.weights()).predict(EXAMPLES.inputs)
    other, _ = model.predict(EXAMPLES.inputs)
    np.testing.assert_array_equal(one.means, other.means)


# Training


def trained_alone(network, task, examples, seed, steps=5):
    """Plain full-batch Adam."""
    inputs, targets = inputs_of(task, network, examples), tensors(examples.targets)
    torch.manual_seed(seed)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02)
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        uncertain.loss(task, network, inputs, targets).backward()
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize(
    ("task", "network", "examples"),
    [
        (TASK, lambda: MLP(2, (8, 8)), EXAMPLES),
        (TASK, Convolutions, EXAMPLES),
        (VertexTask(), E2E, TRACKS),
    ],
    ids=["mlp", "batch norm", "vertex"],
)
def test_each_member_is_trained_as_it_would_be_alone(task, network, examples):
    plain = [uncertain.fresh(task, network(), examples, seed) for seed in (1, 2, 3)]
    made = trained_alone(DeepEnsemble.of(plain), task, examples, 0)
    for k, member in enumerate(plain):
        alone = trained_alone(member, task, examples, 0).state_dict()
        for name, value in made.member(k).state_dict().items():
            torch.testing.assert_close(value, alone[name], rtol=2e-3, atol=2e-5)


def test_a_fresh_member_is_the_plain_network_drawn_from_its_own_seed():
    made = uncertain.fresh(TASK, DeepEnsemble(MLP(2, (8,)), 3), EXAMPLES, 7)
    for k in range(3):
        alone = TASK.fresh(MLP(2, (8,)), EXAMPLES, member_seed(7, k))
        for name, value in made.member(k).state_dict().items():
            torch.testing.assert_close(value, alone.state_dict()[name], rtol=0, atol=0)
    assert member_seed(7, 0) == Seeds(7).integer("member", 0)


@pytest.mark.parametrize("method", METHODS_OF_PASSES)
def test_a_fresh_network_has_other_weights_the_same_knobs_and_scales_of_the_data(method):
    made = METHODS_OF_PASSES[method](MLP(2, (8, 8)))
    made.chunk = 123
    one, same, other = (uncertain.fresh(TASK, made, EXAMPLES, s) for s in (1, 1, 2))
    inputs = inputs_of(TASK, made)
    torch.testing.assert_close(answers(TASK, one, inputs), answers(TASK, same, inputs))
    assert float((answers(TASK, one, inputs)[0] - answers(TASK, other, inputs)[0]).abs().max()) > 0
    assert type(one) is type(made) and one.n_passes == made.n_passes and one.chunk == 123
    assert float(one.core.target_mean) == pytest.approx(EXAMPLES.targets["y"].mean(), rel=1e-5)


def test_resampled_members_see_other_events_of_a_batch():
    torch.manual_seed(3)
    plain = MLP(2, (8,))
    made = DeepEnsemble.of([plain, plain], resample=True)
    inputs, targets = inputs_of(TASK, made), tensors(EXAMPLES.targets)
    made.loss(TASK, inputs, targets).backward()
    gradient = made.core.layers[3].source.weight.grad
    assert float((gradient[0] - gradient[1]).abs().max()) > 1e-4
    task = VertexTask()
    vertex = DeepEnsemble(E2E(), 2, resample=True)
    loss = vertex.loss(task, inputs_of(task, vertex, TRACKS), tensors(TRACKS.targets))
    assert torch.isfinite(loss)


def test_chosen_events_keep_their_items_in_order():
    task = VertexTask()
    inputs = inputs_of(task, E2E(), TRACKS)
    index = torch.tensor([4, 3, 4, 0])
    got = uncertain.chosen(inputs, index)["tracks"]
    whole = inputs["tracks"]
    assert got.n == 4
    for place, event in enumerate(index.tolist()):
        torch.testing.assert_close(
            got.values[got.events == place], whole.values[whole.events == event]
        )


@pytest.mark.parametrize("make", [BatchEnsemble, Masksembles])
@pytest.mark.parametrize(
    ("task", "network", "examples"),
    [(TASK, lambda: MLP(2, (8, 8)), EXAMPLES), (VertexTask(), E2E, TRACKS)],
    ids=["mlp", "vertex"],
)
def test_split_gives_each_member_its_share_of_the_batch(make, task, network, examples):
    made = make(network(), 3, split=True)
    inputs, targets = inputs_of(task, made, examples), tensors(examples.targets)
    share = len(examples) // 3
    losses = [
        task.loss(
            made.member(k).train(),
            uncertain.stretch(inputs, k * share, (k + 1) * share),
            uncertain.stretch(targets, k * share, (k + 1) * share),
        )
        for k in range(3)
    ]
    loss = made.train().loss(task, inputs, targets)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


class Store:
    def __init__(self, examples):
        self.examples = examples

    def all(self):
        return self.examples

    def window(self, since):
        return self.examples


@pytest.mark.parametrize("method", METHODS_OF_PASSES)
@pytest.mark.parametrize(
    ("task", "network", "examples"),
    [
        (TASK, lambda: MLP(2, (8, 8)), EXAMPLES),
        (Classification(features=("a", "b"), classes=2, target="c"), None, None),
        (VertexTask(), E2E, TRACKS),
    ],
    ids=["regression", "classification", "vertex"],
)
def test_any_updater_trains_any_method(method, task, network, examples):
    if network is None:
        c = {"c": (EXAMPLES.targets["y"] > 0).astype(np.int64)}
        examples = Examples(EXAMPLES.ids, EXAMPLES.inputs, c, EXAMPLES.times, EXAMPLES.conditions)
        plain = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    else:
        plain = network()
    made = METHODS_OF_PASSES[method](plain).eval()
    serving = Model(made, task, Architecture("x"))
    before = serving.weights()
    schedule = Schedule(steps=3, batch=20)
    for updater in (
        Retrain(schedule=schedule, min_events=1),
        FineTune(schedule=schedule, min_events=1),
    ):
        twins = []
        for _ in range(2):
            candidate = updater.update(
                serving,
                {},
                examples,
                Store(examples),
                budget=Budget(),
                rng=np.random.default_rng(1),
            )
            assert isinstance(candidate, Candidate)
            twins.append(candidate.model)
        one, other = (twin.weights() for twin in twins)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        moved = [name for name in one if not np.array_equal(one[name], before[name])]
        assert moved
        predictive, _ = twins[0].predict(examples.inputs)
        assert len(predictive) == len(examples)
    for name, value in serving.weights().items():
        np.testing.assert_array_equal(value, before[name])


# Masks and factors


@pytest.mark.parametrize(
    ("features", "members", "scale"), [(10, 4, 2.0), (64, 4, 2.0), (8, 3, 5.0), (3, 8, 1.5)]
)
def test_masks_cover_all_features_with_one_number_of_ones(features, members, scale):
    masks = overlapping_masks(features, members, scale, torch.Generator().manual_seed(1))
    assert tuple(masks.shape) == (members, features)
    assert bool((masks.sum(0) > 0).all())
    assert len(set(masks.sum(1).tolist())) == 1
    share = 1 / (scale * (1 - (1 - 1 / scale) ** members))
    assert abs(float(masks.mean()) - share) <= 1 / features + 1e-9


def test_full_masks_are_the_plain_network():
    plain = MLP(2, (8, 8))
    made = Masksembles(plain, 3, scale=1.0)
    inputs = inputs_of(TASK, made)
    (raw,) = answers(TASK, made, inputs)
    with torch.no_grad():
        (alone,) = TASK.answer(plain.eval(), inputs)
    torch.testing.assert_close(raw, alone.expand_as(raw), rtol=1e-5, atol=1e-6)


def test_a_batch_ensemble_adds_few_parameters_and_its_factors_are_signs():
    plain = MLP(2, (8,))
    made = BatchEnsemble(plain, 4)
    source = made.core.layers[1].source
    assert set(source.inward.unique().tolist()) <= {-1.0, 1.0}
    weights, _ = source.weights(slice(2, 3))
    torch.testing.assert_close(
        weights[0], plain.layers[1].weight * torch.outer(source.outward[2], source.inward[2])
    )
    extra = 4 * (2 + 8 + 8 + 2) + 3 * (8 + 2)  # factors of both layers, biases of three members
    assert footprint(made).parameters == footprint(plain).parameters + extra


# Costs


def test_multiply_accumulates_and_parameters_count_passes_and_members():
    plain = MLP(2, (8, 8))
    one = count_macs(plain)
    assert one == 2 * 8 + 8 * 8 + 8 * 2
    assert count_macs(DeepEnsemble(plain, 5)) == 5 * one
    assert count_macs(BatchEnsemble(plain, 4)) == 4 * one
    assert count_macs(Masksembles(plain, 4)) == 4 * one
    assert count_macs(MCDropout(plain, samples=32)) == 32 * one
    assert count_macs(Bayesian(plain, 32)) == 32 * one
    assert count_macs(MomentPropagation(plain)) == 2 * one
    assert footprint(DeepEnsemble(plain, 5)).parameters == 5 * footprint(plain).parameters
    assert footprint(Bayesian(plain, 32)).parameters == 2 * footprint(plain).parameters
    assert count_macs(DeepEnsemble(E2E(), 5)) == 5 * count_macs(E2E())


# What is refused


class Own(nn.Module):
    """Parameters of its own, no forward of rows, no to_members."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self.inner = nn.Linear(2, 2)

    def reset_parameters(self):
        with torch.no_grad():
            self.number.zero_()


class TimeFirst(nn.Module):
    """Puts rows on the second axis before its dense layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, x):
        return self.layer(x.T[..., None]).sum(0)


class Looks(nn.PReLU):
    """Cannot be batched: it looks at values."""

    def forward(self, x):
        return super().forward(x) if bool((self.weight > 0).all()) else x


def test_what_cannot_be_converted_is_named():
    plain = MLP(2, (8,))
    for make in (DeepEnsemble, MCDropout, Bayesian):
        with pytest.raises(ConfigError, match="already states its uncertainty by DeepEnsemble"):
            make(DeepEnsemble(plain))
    with pytest.raises(
        ConfigError, match=r"Own \(the network\) has parameters of its own.*HasMembers"
    ):
        DeepEnsemble(Own())
    looking = DeepEnsemble(nn.Sequential(nn.Linear(2, 2), Looks()), 2)
    with pytest.raises(ConfigError, match=r"Looks \(1\) has parameters of its own"):
        answers(TASK, looking, inputs_of(TASK, looking))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ConfigError, match=r"Linear\.weight is shared with another module"):
        DeepEnsemble(tied)
    with pytest.raises(ConfigError, match="members must be 1 or more, got 0"):
        BatchEnsemble(plain, 0)
    with pytest.raises(ConfigError, match=r"scale must be 1 or more, got 0\.5"):
        Masksembles(plain, scale=0.5)
    with pytest.raises(ConfigError, match="there are passes 0 to 4, not 5"):
        DeepEnsemble(plain).member(5)
    with pytest.raises(ConfigError, match="of one architecture"):
        DeepEnsemble.of([plain, MLP(2, (9,))])
    with pytest.raises(ShapeError, match="7 rows cannot be the events of 5 passes"):
        made = DeepEnsemble(nn.Linear(2, 2))
        with uncertain.folded(slice(0, 5)):
            made.core(torch.zeros(7, 2))


def test_a_network_that_mixes_rows_is_found_out_when_it_is_fresh():
    with pytest.raises(ConfigError, match="TimeFirst mixes the rows of several passes"):
        uncertain.fresh(TASK, DeepEnsemble(TimeFirst(), 2), EXAMPLES, 1)


def test_a_core_alone_stands_for_all_members():
    made = DeepEnsemble(MLP(2, (8,)), 3).eval()
    x = torch.randn(7, 2)
    torch.testing.assert_close(made.core(x), made.member(0).eval()(x))
    assert isinstance(made.core, MLP)
    torch.testing.assert_close(plain_network(made.core, None).eval()(x), made.core(x))
