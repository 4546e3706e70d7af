"""Laws of masks in one network: old conditions stay bit for bit, room is counted and given back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core import tables
from stillfit.core.arrays import content_hash, n_bytes
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.loop.shelf import Shelf
from stillfit.models import uncertain
from stillfit.models.masks import Bank, Masking, Place, largest, maskable
from stillfit.models.model import Architecture, Model, build, load_weights
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.sizes import FootprintLimit, dense_size, size_of
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.registry import Registry
from stillfit.streams.store import Keeping
from stillfit.uncertainty.methods import FACTORIES as METHODS
from stillfit.updaters.contract import Declined
from stillfit.updaters.dynamic import Compress, Grow, PackNet

SHORT = Schedule(steps=30, batch=60, rate=0.02)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
ALWAYS = PackNet(schedule=SHORT, when="new", min_events=50)


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=150, shift=0.0, first=0, condition="old"):
    drawn = np.random.default_rng([first, 7])
    x = drawn.normal(size=(n, 2))
    score = x[:, 0] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    return Examples(
        ids,
        {"a": x[:, 0], "b": x[:, 1]},
        {"y": y},
        np.full(n, float(first)),
        np.full(n, condition),
    )


def memory(*parts):
    store = Keeping(budget_bytes=10**7, held_out=0.0).empty()
    for number, part in enumerate(parts):
        store = store.add(part, rng(number))
    return store.training


def world(task, hidden=(12, 8)):
    """A trained network, its events, and three conditions that contradict it and each other."""
    old = examples(task)
    outputs = 2 if isinstance(task, Regression) else 3
    arguments = {"features": 2, "hidden": list(hidden), "outputs": outputs}
    network = uncertain.fresh(task, MLP(2, hidden, outputs), old, 1)
    serving = Model(network.eval(), task, Architecture("mlp", arguments))
    fit(serving, Prepared.of(serving, old), replace(SHORT, steps=150), rng(5))
    new = [
        examples(task, shift=shift, first=1000 * (k + 1), condition=f"c{k}")
        for k, shift in enumerate((2.0, -2.0, 1.0))
    ]
    return serving, old, new


def updated(updater, serving, learner, fresh, *, seed=3, budget=None, kept=None):
    return updater.update(
        serving, learner, fresh, kept or memory(), budget=budget or Budget(), rng=rng(seed)
    )


def said(model, events):
    """Everything that a network answers, in one comparable piece."""
    predictive, outputs = model.predict(events.inputs)
    parts = [np.asarray(value) for value in vars(predictive).values() if value is not None]
    return content_hash({**outputs, **{str(n): part for n, part in enumerate(parts)}})


def bank_of(learner):
    bank = Bank.from_arrays(learner)
    assert bank is not None
    return bank


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("biases", ["own", "frozen"])
@pytest.mark.parametrize("reuse", ["best", "all", "none"])
def test_earlier_conditions_stay_bit_for_bit(task, biases, reuse):
    """Weights, and what the network says under an old mask, whatever came after."""
    serving, old, new = world(task)
    updater = replace(ALWAYS, biases=biases, reuse=reuse)
    learner = updater.begin(serving, old, rng=rng(1))
    answers = {"old": said(updater.under(serving, learner, "old"), old)}
    allocated = 0
    model = serving
    for fresh in new:
        before = bank_of(learner)
        answer = updated(updater, model, learner, fresh)
        if isinstance(answer, Declined):  # a frozen bias cannot follow every shift
            assert "no room is spent on it" in answer.because
            continue
        allocated += 1
        model, learner = answer.model, answer.learner
        after = bank_of(learner)
        for name, owner in before.owners.items():
            assert np.array_equal(after.owners[name][owner > 0], owner[owner > 0])
            assert np.array_equal(after.weights[name][owner > 0], before.weights[name][owner > 0])
        name = after.places[-1].name
        answers[name] = said(model, old)
        assert same(updater.under(serving, learner, name).weights(), model.weights())
        for name, was in answers.items():
            assert said(updater.under(serving, learner, name), old) == was
    assert allocated >= (2 if biases == "own" else 1)


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_a_new_mask_is_better_on_its_condition_and_costs_no_arithmetic(task):
    serving, old, new = world(task)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    longer = replace(ALWAYS, schedule=replace(SHORT, steps=120))
    answer = updated(longer, serving, learner, new[0])
    test = examples(task, shift=2.0, first=70_000)
    now, then = (model.errors(test)["error"].mean() for model in (answer.model, serving))
    assert now < 0.5 * then
    assert size_of(answer.model.network).macs == size_of(serving.network).macs
    assert answer.model.architecture == serving.architecture
    assert answer.update_class == "weights"


def test_a_condition_keeps_its_share_of_what_is_free_and_the_rest_is_zero():
    serving, old, new = world(REGRESSION)
    updater = replace(ALWAYS, share=0.3)
    learner = updater.begin(serving, old, rng=rng(1))
    free = {name: owner.size - int(0.3 * owner.size) for name, owner in
            bank_of(learner).owners.items()}  # fmt: skip
    answer = updated(updater, serving, learner, new[0])
    bank = bank_of(answer.learner)
    for name, owner in bank.owners.items():
        assert (owner == 0).sum() + (owner == 2).sum() == free[name]
        assert (owner == 2).sum() == int(0.3 * free[name])
        weights = answer.model.weights()[name]
        assert not weights[owner == 0].any()
        assert np.all(weights[owner == 1] == bank.weights[name][owner == 1])


def test_the_largest_weights_are_kept():
    value = torch.tensor([[3.0, -5.0, 0.5], [4.0, -1.0, 2.0]])
    among = torch.tensor([[True, True, True], [False, True, True]])
    kept = largest(value, among, 2)
    assert kept.tolist() == [[True, True, False], [False, False, False]]
    assert largest(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), 1).sum() == 1
    assert not largest(value, among, 0).any()


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_mask_holds_numbers_bit_for_bit_in_training(optimiser):
    serving, old, _ = world(REGRESSION)
    model = serving.copy()
    moving = {name: torch.rand(p.shape) < 0.5 for name, p in maskable(model.network).items()}
    guide = Masking(model.network, moving, rest=False)
    fit(model, Prepared.of(model, old), replace(SHORT, optimiser=optimiser), rng(1), guide=guide)
    now, then = model.weights(), serving.weights()
    for name, value in then.items():
        still = ~moving[name].numpy() if name in moving else np.ones(value.shape, bool)
        assert np.array_equal(now[name][still], value[still])
        assert name not in moving or not np.array_equal(now[name], value)


def test_a_condition_that_is_back_is_served_again_without_training():
    serving, old, new = world(REGRESSION)
    updater = replace(ALWAYS, when="detect", schedule=replace(SHORT, steps=120))
    learner = updater.begin(serving, old, rng=rng(1))
    first = updated(updater, serving, learner, new[0])
    second = updated(updater, first.model, first.learner, new[1])
    again = examples(REGRESSION, shift=2.0, first=30_000, condition="anything")
    back = updated(updater, second.model, second.learner, again)
    assert same(back.model.weights(), first.model.weights())
    assert back.cost.steps == 0
    assert bank_of(back.learner).free == bank_of(second.learner).free
    stays = updated(updater, second.model, second.learner, new[1])
    assert isinstance(stays, Declined)
    assert "the mask of 'c1' serves already and answers 150 fresh events" in stays.because


def test_slow_controls_name_restricts_what_is_served_again():
    serving, old, new = world(REGRESSION)
    named = replace(ALWAYS, when="names", recall=np.inf)
    learner = named.begin(serving, old, rng=rng(1))
    first = updated(named, serving, learner, new[0])
    assert bank_of(first.learner).places[-1].name == "c0"
    other = replace(new[0], conditions=np.full(150, "c9"))
    assert bank_of(updated(named, first.model, first.learner, other).learner).total == 136
    back = replace(new[2], conditions=np.full(150, "old"))
    answer = updated(named, first.model, first.learner, back)
    assert same(answer.model.weights(), named.under(serving, first.learner, "old").weights())


def test_with_an_unlimited_recall_nothing_is_allocated():
    serving, old, new = world(REGRESSION)
    updater = replace(ALWAYS, when="detect", recall=np.inf)
    learner = updater.begin(serving, old, rng=rng(1))
    answer = updated(updater, serving, learner, new[0])
    assert same(answer.model.weights(), updater.under(serving, learner, "old").weights())


def test_with_a_share_of_one_the_first_condition_has_everything():
    serving, old, new = world(REGRESSION)
    updater = replace(ALWAYS, share=1.0, polish=0.0)
    learner = updater.begin(serving, old, rng=rng(1))
    assert same(updater.under(serving, learner, "old").weights(), serving.weights())
    answer = updated(updater, serving, learner, new[0])
    assert isinstance(answer, Declined)
    assert "there is no room for a new mask: it could keep 0 weights inside the limit" in (
        answer.because
    )
    assert "0 of 136 weights are free, 136 by 'old'; free a condition" in answer.because


def test_the_limit_is_respected_and_the_refusal_has_its_figures():
    serving, old, new = world(REGRESSION)
    for nonzero in (100, 120, 140):
        updater = replace(ALWAYS, limit=FootprintLimit(nonzero=nonzero, bits=32 * 130))
        learner = updater.begin(serving, old, rng=rng(1))
        model = serving
        for fresh in new:
            answer = updated(updater, model, learner, fresh)
            if isinstance(answer, Candidate):
                model, learner = answer.model, answer.learner
                assert size_of(model.network).nonzero <= min(nonzero, 130)
        assert model is not serving
    tight = replace(ALWAYS, limit=FootprintLimit(nonzero=90))
    answer = updated(tight, serving, tight.begin(serving, old, rng=rng(1)), new[0])
    assert "it could keep 0 weights inside the limit (nonzero 90) and needs 2" in answer.because
    for limit, what in (
        (FootprintLimit(parameters=100), "158 parameters where the limit allows 100"),
        (FootprintLimit(macs=99), "136 multiply-accumulates per example where the limit allows 99"),
    ):
        answer = updated(replace(ALWAYS, limit=limit), serving, {}, new[0])
        assert what in answer.because
        assert "masks cannot make it smaller" in answer.because


def test_freeing_the_newest_gives_its_room_back_exactly():
    serving, old, new = world(REGRESSION)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    answer = updated(ALWAYS, serving, learner, new[0])
    freed = ALWAYS.freed(answer.learner, "c0")
    assert same(freed, learner)
    again = updated(ALWAYS, serving, freed, new[0])
    assert same(again.learner, answer.learner)
    with pytest.raises(ConfigError, match="no condition 'c3' has a mask; known are: old"):
        ALWAYS.freed(freed, "c3")


def test_weights_that_others_use_are_freed_with_their_last_user():
    serving, old, new = world(REGRESSION)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    answer = updated(ALWAYS, serving, learner, new[0])
    was = said(answer.model, old)
    ghost = ALWAYS.freed(answer.learner, "old")
    assert bank_of(ghost).free == bank_of(answer.learner).free
    assert n_bytes(ghost) < n_bytes(answer.learner)
    assert said(ALWAYS.under(serving, ghost, "c0"), old) == was
    with pytest.raises(ConfigError, match="no condition 'old'"):
        ALWAYS.under(serving, ghost, "old")
    empty = bank_of(ALWAYS.freed(ghost, "c0"))
    assert empty.free == empty.total == 136
    assert not empty.places
    anew = updated(ALWAYS, serving, empty.to_arrays(), new[1])
    assert [place.name for place in bank_of(anew.learner).places] == ["c1"]


def test_conditions_that_share_nothing_are_freed_one_by_one():
    serving, old, new = world(REGRESSION)
    updater = replace(ALWAYS, reuse="none", full="free", conditions=2)
    learner = updater.begin(serving, old, rng=rng(1))
    first = updated(updater, serving, learner, new[0])
    assert {p.name for p in bank_of(first.learner).places} == {"old", "c0"}
    owned = bank_of(first.learner).owned(2)
    second = updated(updater, first.model, first.learner, new[1])
    bank = bank_of(second.learner)
    assert {p.name for p in bank.places} == {"c0", "c1"}
    assert bank.owned(2) == owned
    stays = replace(updater, full="decline")
    refused = updated(stays, first.model, first.learner, new[1])
    assert "there is no room for a new mask: all 2 places are taken" in refused.because


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_an_update_is_pure_and_the_same_for_the_same_generator(task):
    serving, old, new = world(task)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    assert same(learner, ALWAYS.begin(serving, old, rng=rng(1)))
    before = content_hash(serving.weights()), content_hash(dict(learner))
    state = torch.random.get_rng_state()
    one, other = (updated(ALWAYS, serving, learner, new[0]) for _ in range(2))
    assert (content_hash(serving.weights()), content_hash(dict(learner))) == before
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert all(p.grad is None for p in serving.network.parameters())


def test_a_stored_state_resumes_bit_for_bit():
    serving, old, new = world(REGRESSION)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    first = updated(ALWAYS, serving, learner, new[0])
    network = build(first.model.architecture, {"mlp": MLP})
    load_weights(network, first.model.weights())
    twin = Model(network.eval(), REGRESSION, first.model.architecture)
    stored = bank_of({k: v.copy() for k, v in first.learner.items()}).to_arrays()
    one = updated(ALWAYS, first.model, first.learner, new[1])
    other = updated(ALWAYS, twin, stored, new[1])
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)


def test_without_a_state_it_begins_from_the_old_events_of_the_store():
    serving, old, new = world(REGRESSION)
    answer = updated(ALWAYS, serving, {}, new[0], kept=memory(old, new[0]))
    assert [place.name for place in bank_of(answer.learner).places] == ["old", "c0"]
    assert answer.provenance.events == {"c0": 150, "old": 150}
    bare = updated(ALWAYS, serving, {}, new[0])
    assert [place.name for place in bank_of(bare.learner).places] == ["first", "c0"]


def test_the_learners_bytes_are_counted_and_refused():
    serving, old, new = world(REGRESSION)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    answer = updated(ALWAYS, serving, learner, new[0])
    assert answer.cost.memory_bytes == n_bytes(answer.learner)
    own = sum(v.nbytes for n, v in serving.weights().items() if n not in bank_of(learner).owners)
    told = answer.learner["places"].nbytes
    assert answer.cost.memory_bytes == 5 * 136 + 2 * own + told
    refused = updated(ALWAYS, serving, learner, new[0], budget=Budget(memory_bytes=1000))
    assert "bytes of learner memory where the budget allows 1,000" in refused.because


WRAPPED = ["deep-ensemble", "batch-ensemble", "mc-dropout", "bayesian", "moments", "quantiles",
           "evidential", "laplace", "auxiliary"]  # fmt: skip


@pytest.mark.parametrize("method", WRAPPED)
def test_masks_work_under_every_method_of_uncertainty(method):
    old = examples(REGRESSION)
    knobs = {"deep-ensemble": {"members": 2}, "auxiliary": {"folds": 2, "steps": 20}}
    converted = METHODS[method](network=MLP(2, (6, 6)), **knobs.get(method, {}))
    network = uncertain.fresh(REGRESSION, converted, old, 1)
    serving = Model(network.eval(), REGRESSION, Architecture(method))
    quick = replace(SHORT, steps=10)
    fit(serving, Prepared.of(serving, old), quick, rng(2))
    updater = replace(ALWAYS, schedule=quick)
    learner = updater.begin(serving, old, rng=rng(1))
    was = said(updater.under(serving, learner, "old"), old)
    fresh = examples(REGRESSION, shift=3.0, first=1000, condition="new")
    answer = updated(updater, serving, learner, fresh)
    assert said(updater.under(serving, answer.learner, "old"), old) == was
    assert same(updater.under(serving, answer.learner, "new").weights(), answer.model.weights())
    assert said(answer.model, old) != was


@pytest.mark.parametrize("kind", [E2E, AdaptiveE2E])
def test_masks_work_on_the_vertex_networks(kind):
    events = vertex_examples(60, nominal(), library=load(), seed=5)
    task = VertexTask()
    serving = Model(kind(seed=1).eval(), task, Architecture("l1t"))
    quick = Schedule(steps=12, batch=30, rate=0.01)
    updater = PackNet(schedule=quick, when="new", min_events=10)
    old, fresh = events.take(slice(0, 30)), events.take(slice(30, 60))
    learner = updater.begin(serving, old, rng=rng(1))
    was = said(updater.under(serving, learner, str(old.conditions[0])), events)
    fresh = replace(fresh, conditions=np.full(30, "moved"))
    answer = updated(updater, serving, learner, fresh)
    assert said(updater.under(serving, answer.learner, str(old.conditions[0])), events) == was
    assert bank_of(answer.learner).owned(2) > 0


class NoMatrix(nn.Module):
    """A network with nothing to mask, and a parameter that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(2, 2))

    def reset_parameters(self):
        pass

    def forward(self, x):
        return self.slope * x[:, :1]


class Idle(MLP):
    """A matrix that no gradient reaches."""

    def __init__(self):
        super().__init__(2, (8,))
        self.idle = nn.Linear(3, 3)


def test_bad_input_has_an_answer():
    serving, old, new = world(REGRESSION)
    learner = ALWAYS.begin(serving, old, rng=rng(1))
    few = updated(ALWAYS, serving, learner, new[0].take(slice(0, 20)))
    assert few.early
    assert "needs 50 labelled events of the new condition and has 20" in few.because
    bare = Model(WithNoise(NoMatrix()), REGRESSION, Architecture("none"))
    assert ALWAYS.begin(bare, old, rng=rng(1)) == {}
    refused = updated(ALWAYS, bare, {}, new[0])
    assert "WithNoise has no weight matrix that masks could share out" in refused.because
    with pytest.raises(ConfigError, match="WithNoise has no weight matrix"):
        Bank.of(bare.network)
    other = Model(MLP(2, (5,)).eval(), REGRESSION, Architecture("mlp"))
    with pytest.raises(ShapeError, match="masks in the learner's state are of another network"):
        updated(ALWAYS, other, learner, new[0])
    wild = replace(ALWAYS, schedule=replace(SHORT, rate=1e30, optimiser="sgd"))
    diverged = updated(wild, serving, learner, new[0])
    assert "the training of a new mask diverged at step" in diverged.because
    assert "lower schedule.rate" in diverged.because
    assert np.isfinite(
        bank_of(wild.begin(serving, old, rng=rng(1))).weights["layers.1.weight"]
    ).all()


def test_one_event_one_class_a_constant_target_and_idle_parameters_are_no_exception():
    serving, old, new = world(REGRESSION)
    single = replace(ALWAYS, min_events=1)
    learner = single.begin(serving, old, rng=rng(1))
    assert isinstance(updated(single, serving, learner, new[0].take(slice(0, 1))), Candidate)
    constant = replace(new[0], targets={"y": np.full(150, 5.0)})
    assert isinstance(updated(single, serving, learner, constant), Candidate)
    idle = Model(Idle().eval(), REGRESSION, Architecture("idle"))
    assert isinstance(updated(single, idle, {}, new[0], kept=memory(old)), Candidate)
    serving, old, new = world(CLASSES)
    learner = single.begin(serving, old, rng=rng(1))
    one = replace(new[0], targets={"y": np.zeros(150, np.int64)})
    assert isinstance(updated(single, serving, learner, one), Candidate)


def test_knobs_are_checked():
    for knobs, text in (
        ({"share": 0.0}, r"share = 0.0 must lie from 0.001 to 1"),
        ({"polish": 2.0}, r"polish = 2.0 must lie from 0 to 1"),
        ({"recall": -1.0}, r"recall = -1.0 must lie from 0 to inf"),
        ({"conditions": 256}, r"conditions = 256 must lie from 1 to 255"),
        ({"least": 1.5}, r"least = 1.5 must lie from 0 to 1"),
        ({"min_events": 0}, r"min_events = 0 must lie from 1 to inf"),
    ):
        with pytest.raises(ConfigError, match=text):
            PackNet(**knobs)
    with pytest.raises(ConfigError, match="the limit bits = 0 leaves no room for any network"):
        FootprintLimit(bits=0)


def test_a_size_is_that_of_the_formula():
    network = MLP(3, (10, 10), 1)
    size = size_of(network, {"layers.3.weight": 4})
    assert size.parameters == size.nonzero == 3 * 10 + 10 + 100 + 10 + 10 + 1
    assert size.macs == 30 + 100 + 10
    assert size.bits == 32 * 61 + 4 * 100
    with torch.no_grad():
        network.get_parameter("layers.3.weight")[0].zero_()
    assert size_of(network).nonzero == 151
    assert dense_size(network).nonzero == 161
    assert FootprintLimit().unlimited
    assert FootprintLimit(macs=100).exceeded_by(size).startswith("140 multiply-accumulates")
    assert FootprintLimit(macs=140).exceeded_by(size) is None


def test_a_bank_survives_its_arrays():
    bank = Bank.of(MLP(2, (4,)))
    state = {k: v.numpy() for k, v in MLP(2, (4,)).state_dict().items()}
    kept = {name: np.ones(owner.shape, bool) for name, owner in bank.owners.items()}
    place = Place(name="a", number=bank.number(), error=0.1, spread=0.3, events=7)
    full = bank.allocate(place, state, kept)
    twin = bank_of(full.to_arrays())
    assert twin.places == full.places
    assert same(twin.to_arrays(), full.to_arrays())
    assert same(twin.under(place), state)
    assert full.free == 0
    assert Bank.from_arrays({}) is None


def test_a_run_file_can_name_every_knob():
    packed = tables.build(
        PackNet,
        {"limit": {"nonzero": 500}, "share": 1, "reuse": "none", "schedule": {"steps": 10}},
        "[updaters.packnet]",
    )
    assert packed.limit == FootprintLimit(nonzero=500)
    few = tables.build(Compress, {"limit": {"bits": 4000}, "widths": [8, 4]}, "[updaters.compress]")
    assert few.widths == (8, 4)
    assert tables.build(Grow, {"target": 0.1, "train": "new"}, "[updaters.grow]").target == 0.1
    with pytest.raises(ConfigError, match=r"share = 2.0 must lie from 0.001 to 1"):
        tables.build(PackNet, {"share": 2.0}, "[updaters.packnet]")
    with pytest.raises(ConfigError, match="has no knob 'shares'; did you mean 'share'"):
        tables.build(PackNet, {"shares": 0.5}, "[updaters.packnet]")


def test_a_version_with_masks_survives_the_registry(tmp_path):
    """Network and learner's state as they were, so the next update is the same bit for bit."""
    serving, old, new = world(REGRESSION)
    answer = updated(ALWAYS, serving, ALWAYS.begin(serving, old, rng=rng(1)), new[0])
    registry = Registry.create(tmp_path / "registry")
    shelf = Shelf(registry, {"mlp": MLP}, REGRESSION)
    version = shelf.put(answer, shelf.put_first(serving, answer.provenance), {})
    stored = registry.load_version(version)
    assert same(dict(stored.learner), dict(answer.learner))
    model = Shelf(registry, {"mlp": MLP}, REGRESSION).get(version)
    one = updated(ALWAYS, answer.model, answer.learner, new[1])
    other = updated(ALWAYS, model, stored.learner, new[1])
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
