"""Few labels: pseudo-labels where the network is sure, statistics from inputs alone."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged, content_hash
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Schedule
from stillfit.uncertainty.methods import FACTORIES
from stillfit.updaters.contract import Declined
from stillfit.updaters.labels import AdaptNormalisation, PseudoLabels
from stillfit.updaters.references import FineTune

SHORT = Schedule(steps=15, batch=20, rate=0.01)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
BOTH = pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])


@dataclass(frozen=True)
class Kept:
    """A memory with events that wait for labels."""

    waits: Examples

    def all(self):
        return Examples.empty()

    def window(self, since):
        return Examples.empty()

    def unlabelled(self, condition, limit):
        found = self.waits.where(condition)
        return found.take(slice(max(len(found) - limit, 0), len(found)))


NOTHING = Kept(Examples.empty())


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=40, first=0, condition="new", gain=1.0, offset=0.0):
    """The inputs are x times `gain` plus `offset`; the targets are those of x."""
    drawn = np.random.default_rng([11, first])
    x = drawn.normal(size=(n, 2))
    score = x[:, 0] + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": gain * x[:, 0] + offset, "b": gain * x[:, 1] + offset}
    return Examples(ids, columns, {"y": y}, ids * 1.0, np.full(n, condition))


def bare(examples):
    return replace(examples, targets={})


def model(task, network=None):
    torch.manual_seed(0)
    network = network or MLP(2, [6], 2 if isinstance(task, Regression) else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def update(updater, serving, fresh, memory=NOTHING, seed=3, budget=None):
    return updater.update(serving, {}, fresh, memory, budget=budget or Budget(), rng=rng(seed))


def trained(task, steps=150):
    how = Schedule(steps=steps, batch=60, rate=0.02)
    old = examples(task, 300, first=9000, condition="old")
    network = uncertain.fresh(task, model(task).network, old, 1)
    return update(FineTune(schedule=how, min_events=1), model(task, network), old).model


def same(one, other):
    assert set(one) == set(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


# -- pseudo-labels --------------------------------------------------------------------------------


@BOTH
def test_what_nothing_passes_is_fine_tuning_bit_for_bit(task):
    serving, fresh = model(task), examples(task)
    memory = Kept(bare(examples(task, 200, first=1000)))
    want = update(FineTune(schedule=SHORT, min_events=1), serving, fresh).model.weights()
    for knobs in ({"probability": 1.1, "std": 0.0}, {"share": 0.0}, {"most": 0}):
        found = update(PseudoLabels(schedule=SHORT, **knobs), serving, fresh, memory)
        assert same(found.model.weights(), want)
        assert found.cost.steps == SHORT.steps
    # A memory without such events, and one without the verb.
    for other in (NOTHING, object()):
        found = update(PseudoLabels(schedule=SHORT), serving, fresh, other)
        assert same(found.model.weights(), want)


@BOTH
def test_what_passes_takes_part_in_as_many_steps_again(task):
    serving, fresh = model(task), examples(task)
    waits = bare(examples(task, 200, first=1000))
    updater = PseudoLabels(schedule=SHORT, probability=0.2, std=99.0)
    found = update(updater, serving, fresh, Kept(waits))
    assert found.cost.steps == 2 * SHORT.steps
    assert found.cost.examples == len(fresh)  # labelled ones
    assert found.provenance.events == {"new": len(fresh)}
    assert len(found.provenance.data) == 2
    assert found.provenance.span == (0.0, 1199.0)
    plain = update(FineTune(schedule=SHORT, min_events=1), serving, fresh)
    assert not same(found.model.weights(), plain.model.weights())
    # What the waiting events' labels are cannot matter, and those that are labelled do not wait.
    mixed = Kept(Examples.join([waits, bare(fresh)]))
    assert same(update(updater, serving, fresh, mixed).model.weights(), found.model.weights())


@BOTH
def test_only_events_of_the_present_condition_count(task):
    serving, fresh = model(task), examples(task)
    updater = PseudoLabels(schedule=SHORT, probability=0.1, std=99.0)
    elsewhere = Kept(bare(examples(task, 200, first=1000, condition="old")))
    assert update(updater, serving, fresh, elsewhere).cost.steps == SHORT.steps


@BOTH
def test_the_threshold_decides_who_is_sure(task):
    serving, fresh = trained(task), examples(task)
    waits = bare(examples(task, 200, first=1000))
    sizes = []
    for level in (0.0, 0.5, 1.0):
        stated, _ = serving.predict(waits.inputs)
        if isinstance(task, Regression):
            limit = float(np.quantile(stated.std, level))
            updater = PseudoLabels(std=limit)
            want = np.flatnonzero(stated.std <= limit)
        else:
            limit = float(np.quantile(stated.probabilities.max(1), 1 - level))
            updater = PseudoLabels(probability=limit)
            want = np.flatnonzero(stated.probabilities.max(1) >= limit)
        found = updater._labelled(serving, waits, fresh, rng())
        assert np.array_equal(found.ids, waits.ids[want])
        sizes.append(len(found))
        if isinstance(task, Classification):
            assert np.array_equal(found.targets["y"], stated.probabilities[want].argmax(1))
            assert found.targets["y"].dtype == fresh.targets["y"].dtype
    assert sizes[0] < sizes[1] < sizes[2] == 200


def test_numbers_are_drawn_with_the_noise_that_is_stated():
    serving, fresh = trained(REGRESSION), examples(REGRESSION)
    waits = bare(examples(REGRESSION, 4000, first=1000))
    found = PseudoLabels(std=np.inf)._labelled(serving, waits, fresh, rng(5))
    stated, _ = serving.predict(waits.inputs)
    pull = (found.targets["y"] - stated.mean) / stated.std
    assert abs(pull.mean()) < 4 / np.sqrt(4000)
    assert pull.std() == pytest.approx(1, abs=0.05)


def test_without_a_limit_the_surest_half_of_the_labelled_sets_it():
    serving, fresh = trained(REGRESSION), examples(REGRESSION)
    limit = float(np.median(serving.predict(fresh.inputs)[0].std))
    waits = bare(examples(REGRESSION, 200, first=1000))
    one = PseudoLabels()._labelled(serving, waits, fresh, rng())
    other = PseudoLabels(std=limit)._labelled(serving, waits, fresh, rng())
    assert 0 < len(one) < 200
    assert np.array_equal(one.ids, other.ids)


def test_a_boundary_that_turns_slowly_is_followed_better_with_the_unlabelled():
    """Two clusters turn by 15 degrees at a time, with 4 labels and 200 events without each time."""
    task = Classification(features=("a", "b"), classes=2)

    def turned(n, first, step):
        drawn = rng([2, first])
        y = drawn.integers(0, 2, n)
        x = drawn.normal(size=(n, 2)) * [0.4, 0.8] + np.where(y, 1, -1)[:, None] * [1.2, 0.0]
        c, s = np.cos(step * np.pi / 12), np.sin(step * np.pi / 12)
        x, ids = x @ np.array([[c, s], [-s, c]]), np.arange(first, first + n)
        columns = {"a": x[:, 0], "b": x[:, 1]}
        return Examples(ids, columns, {"y": y}, ids * 1.0, np.full(n, "new"))

    short, errors = Schedule(steps=40, batch=60, rate=0.01), []
    for seed in range(4):
        base = 10**6 * seed
        torch.manual_seed(seed)
        start = Model(MLP(2, [8], 2).eval(), task, Architecture("mlp"))
        first = FineTune(schedule=Schedule(steps=150, batch=60, rate=0.02), min_events=1)
        start = update(first, start, turned(600, base, 0)).model
        pair = []
        for updater in (
            FineTune(schedule=short, min_events=1),
            PseudoLabels(schedule=short, min_events=1),
        ):
            found = start
            for step in range(1, 7):
                fresh = turned(4, base + 10_000 * step, step)
                waits = Kept(bare(turned(200, base + 10_000 * step + 1000, step)))
                found = update(updater, found, fresh, waits).model
            pair.append(found.errors(turned(2000, base + 900_000, 6))["error"].mean())
        errors.append(pair)
    plain, pseudo = np.mean(errors, 0)
    assert pseudo < 0.9 * plain


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(24, nominal(), library=load(), seed=5)


class Draws(VertexTask):
    """A vertex task that says which tracks belong to its vertex."""

    def draw_targets(self, predictive, outputs, rng):
        association = outputs["association"]
        flags = (association.values >= 0.5).astype(np.float32)
        return {"z0": predictive.sample(1, rng)[0], "is_pv": Ragged(flags, association.offsets)}


def test_a_vertex_task_labels_itself_where_it_can(vertices):
    torch.manual_seed(0)
    fresh, memory = vertices.take(slice(0, 8)), Kept(bare(vertices.take(slice(8, 24))))
    updater = PseudoLabels(schedule=Schedule(steps=2, batch=4), min_events=1, std=np.inf)
    serving = Model(E2E().eval(), Draws(), Architecture("e2e"))
    found = update(updater, serving, fresh, memory)
    assert found.cost.steps == 4
    labelled = updater._labelled(serving, memory.waits, fresh, rng())
    assert labelled.targets["is_pv"].values.dtype == fresh.targets["is_pv"].values.dtype
    assert len(labelled) == 16


class Silent(Regression):
    """A task whose labels hold more than its prediction."""


def test_targets_that_nothing_states_are_a_reason():
    serving = model(Silent(features=("a", "b")))
    fresh = examples(REGRESSION)
    fresh = replace(fresh, targets={**fresh.targets, "weight": np.ones(40)})
    found = update(
        PseudoLabels(schedule=SHORT, std=np.inf), serving, fresh, Kept(bare(examples(REGRESSION)))
    )
    assert found is not None
    waits = Kept(bare(examples(REGRESSION, first=1000)))
    found = update(PseudoLabels(schedule=SHORT, std=np.inf), serving, fresh, waits)
    assert isinstance(found, Declined)
    assert found.because == (
        "Silent cannot label weight by itself, which its labels hold; give the task draw_targets"
    )


@pytest.mark.parametrize("name", ["deep-ensemble", "mc-dropout", "laplace", "evidential"])
def test_any_uncertainty_method_may_lie_on_top(name):
    fresh = examples(REGRESSION)
    converted = FACTORIES[name](network=MLP(2, [6], 2))
    serving = model(REGRESSION, uncertain.fresh(REGRESSION, converted, fresh, 1))
    memory = Kept(bare(examples(REGRESSION, 100, first=1000)))
    for updater in (PseudoLabels(schedule=SHORT), AdaptNormalisation()):
        found = update(updater, serving, fresh, memory)
        assert np.isfinite(found.model.predict(fresh.inputs)[0].mean).all()


# -- normalisation --------------------------------------------------------------------------------


class Normalised(nn.Module):
    """Two layers that keep statistics, one after the other."""

    def __init__(self, outputs=2):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(2), nn.Linear(2, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, outputs)
        )

    def forward(self, x):
        return self.layers(x)


@BOTH
def test_the_scales_become_those_of_the_new_inputs(task):
    serving = trained(task)
    fresh, waits = examples(task, 50, gain=3, offset=2), examples(task, 900, 1000, gain=3, offset=2)
    found = update(AdaptNormalisation(), serving, fresh, Kept(bare(waits)))
    x = np.concatenate([task.prepare(serving.network, e.inputs)["x"] for e in (fresh, waits)])
    weights = found.model.weights()
    np.testing.assert_allclose(weights.pop("layers.0.mean"), x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(weights.pop("layers.0.std"), x.std(0), rtol=1e-5)
    assert all(np.array_equal(value, serving.weights()[n]) for n, value in weights.items())
    assert found.cost.examples == found.cost.steps == 0
    assert found.provenance.events == {}
    assert found.provenance.span == (0.0, 1899.0)
    # What was stretched and shifted is undone without a label.
    test = examples(task, 500, 5000, gain=3, offset=2)
    assert found.model.errors(test)["error"].mean() < 0.5 * serving.errors(test)["error"].mean()


def test_targets_are_not_read():
    serving, fresh = trained(CLASSES), examples(CLASSES, 120)
    other = replace(fresh, targets={"y": 2 - fresh.targets["y"]})
    one, two = (update(AdaptNormalisation(), serving, e).model for e in (fresh, other))
    assert same(one.weights(), two.weights())


@pytest.mark.parametrize("n", [100, 700, 1300])
def test_batch_normalisation_has_the_statistics_of_all_events_layer_after_layer(n):
    """Exact whatever the chunks: what each layer takes while serving is what it expects."""
    serving = model(REGRESSION, Normalised())
    events = examples(REGRESSION, n, gain=2, offset=-1)
    found = update(AdaptNormalisation(), serving, events).model.network
    x = torch.from_numpy(REGRESSION.prepare(found, events.inputs)["x"])
    with torch.no_grad():
        for layer in found.layers:
            if isinstance(layer, nn.BatchNorm1d):
                np.testing.assert_allclose(layer.running_mean, x.mean(0), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(layer.running_var, x.var(0), rtol=1e-4)
            x = layer(x)


def test_the_order_of_events_does_not_matter():
    serving, events = model(REGRESSION, Normalised()), examples(REGRESSION, 600)
    other = events.take(rng().permutation(600))
    one, two = (update(AdaptNormalisation(), serving, e).model.weights() for e in (events, other))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [None, Normalised()], ids=["inputs", "layers"])
def test_the_prior_lies_between_forgetting_and_frozen(network):
    serving = model(REGRESSION, network)
    events = examples(REGRESSION, 200, gain=3, offset=2)
    name = "layers.0.mean" if network is None else "layers.0.running_mean"
    was = serving.weights()[name]
    full = update(AdaptNormalisation(), serving, events).model.weights()[name]
    half = update(AdaptNormalisation(prior=200), serving, events).model.weights()[name]
    np.testing.assert_allclose(half, (was + full) / 2, rtol=1e-5)
    frozen = update(AdaptNormalisation(prior=1e30), serving, events).model.weights()
    assert same(frozen, serving.weights())


def test_input_scales_may_stay_and_a_constant_feature_keeps_its_width():
    serving, events = trained(REGRESSION), examples(REGRESSION, 200)
    found = update(AdaptNormalisation(inputs=False), serving, events)
    assert found == Declined("MLP has no normalisation layer that keeps statistics")
    constant = replace(events, inputs={**events.inputs, "b": np.full(200, 7.0)})
    scale = update(AdaptNormalisation(), serving, constant).model.network.layers[0]
    assert float(scale.mean[1]) == 7.0
    assert float(scale.std[1]) == float(serving.network.layers[0].std[1])


def test_a_vertex_network_keeps_no_statistics(vertices):
    torch.manual_seed(0)
    serving = Model(E2E().eval(), VertexTask(), Architecture("e2e"))
    found = update(AdaptNormalisation(min_events=2), serving, vertices)
    assert isinstance(found, Declined)
    assert "no normalisation layer" in found.because


# -- both -----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "updater", [PseudoLabels(schedule=SHORT, probability=0.5), AdaptNormalisation()]
)
def test_nothing_given_is_changed_and_the_same_comes_again(updater, task):
    serving, fresh = model(task), examples(task)
    memory = Kept(bare(examples(task, 200, first=1000)))
    learner = updater.begin(serving, fresh, rng=rng())
    assert learner == updater.observe(learner, fresh, rng=rng()) == {}
    parts = lambda: (serving.weights(), fresh.to_arrays(), memory.waits.to_arrays())  # noqa: E731
    before, state = [content_hash(part) for part in parts()], torch.random.get_rng_state()
    one, other = (update(updater, serving, fresh, memory) for _ in range(2))
    assert [content_hash(part) for part in parts()] == before
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(one.model.weights(), other.model.weights())
    assert one.provenance == other.provenance
    assert all(not module._forward_pre_hooks for module in one.model.network.modules())


def test_too_few_events_are_a_reason_and_labels_are_not_what_normalisation_lacks():
    fresh = examples(REGRESSION, 10)
    serving = model(REGRESSION)
    found = update(PseudoLabels(), serving, fresh)
    assert isinstance(found, Declined) and found.early
    assert "pseudo-labels needs 20 labelled events of the new condition and has 10" in found.because
    found = update(AdaptNormalisation(), serving, fresh)
    assert isinstance(found, Declined) and found.early
    assert "(labels or none) needs 100" in found.because
    memory = Kept(bare(examples(REGRESSION, 200, first=1000)))
    assert not isinstance(update(AdaptNormalisation(), serving, fresh, memory), Declined)


def test_statistics_of_what_is_not_a_number_are_refused():
    events = examples(REGRESSION, 200)
    column = events.inputs["a"].copy()
    column[7] = np.inf
    spoilt = replace(events, inputs={**events.inputs, "a": column})
    with pytest.raises(DataError, match=r"column 'a' holds inf at \(7,\) .*drop such events"):
        update(AdaptNormalisation(), model(REGRESSION), spoilt)


def test_an_update_over_the_budget_is_declined():
    tight = Budget(macs_per_example=1)
    memory = Kept(bare(examples(REGRESSION, 200, first=1000)))
    for updater in (PseudoLabels(schedule=SHORT), AdaptNormalisation()):
        found = update(updater, model(REGRESSION), examples(REGRESSION), memory, budget=tight)
        assert isinstance(found, Declined)
        assert "multiply-accumulates per example where the budget allows 1" in found.because


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PseudoLabels(probability=0.0), "probability must be above 0"),
        (lambda: PseudoLabels(probability=np.nan), "got nan"),
        (lambda: PseudoLabels(std=-1.0), "std must be 0 or more, in the target's unit"),
        (lambda: PseudoLabels(share=1.2), r"share must be in \[0, 1\]"),
        (lambda: PseudoLabels(most=-1), "most 0 or more"),
        (lambda: PseudoLabels(min_events=0), "min_events at least 1"),
        (lambda: AdaptNormalisation(prior=-1.0), "prior must be 0 events or more"),
        (lambda: AdaptNormalisation(prior=np.inf), "prior must be 0 events or more"),
        (lambda: AdaptNormalisation(min_events=1), "one event has no variance"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
