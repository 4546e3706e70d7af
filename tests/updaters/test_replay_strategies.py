"""Replay, dark replay and GDumb: the limits of their knobs, and laws that all of them keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.core.arrays import n_bytes
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.updaters.contract import Declined
from stillfit.updaters.references import FineTune, Retrain
from stillfit.updaters.replay import DarkReplay, GDumb, GenerativeReplay, Replay, unpack

SHORT = Schedule(steps=20, batch=40, rate=0.01)
REGRESSION = Regression(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
TASKS = [REGRESSION, CLASSES]
KNOBS = {"schedule": SHORT, "min_events": 1}
STORED = [
    Replay(**KNOBS, capacity=100, keep="ring"),
    Replay(**KNOBS, capacity=100, keep="hard"),
    Replay(**KNOBS, capacity=100, bits=8),
    DarkReplay(**KNOBS, capacity=100),
    DarkReplay(**KNOBS, capacity=100, mix=0.0, keep="hard", bits=16),
    GDumb(**KNOBS, capacity=100),
    GDumb(**KNOBS, capacity=100, keep="hard", mixup=0.4),
]
ALL = [
    *STORED,
    GenerativeReplay(**KNOBS, samples=200, components=2),
    GenerativeReplay(**KNOBS, samples=200, rank=0, labels="model", mix="groups", shares="seen"),
]
IDS = [f"{type(u).__name__}-{n}" for n, u in enumerate(ALL)]


class Store:
    """A memory of given events."""

    def __init__(self, kept):
        self.kept = kept

    def all(self):
        return self.kept

    def window(self, since):
        return self.kept.take(self.kept.times >= since)


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=150, first=0, condition="new", centre=0.0, shift=0.0):
    drawn = np.random.default_rng([7, first])
    x = drawn.normal(size=(n, 2)) + centre
    score = x[:, 0] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.full(n, float(first)), np.full(n, condition))


def model(task, network=None, seed=0):
    torch.manual_seed(seed)
    network = network or MLP(2, [8], 2 if isinstance(task, Regression) else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def world(task, network=None):
    old = examples(task, first=0, condition="old")
    return model(task, network), old, examples(task, first=1000, centre=2.0)


def begun(updater, serving, old, fresh):
    learner = updater.begin(serving, old, rng=rng(1))
    return updater.observe(learner, fresh, rng=rng(2))


def update(updater, serving, learner, fresh, seed=3, budget=None, memory=None):
    kept = Store(memory if memory is not None else fresh)
    return updater.update(serving, learner, fresh, kept, budget=budget or Budget(), rng=rng(seed))


def copied(arrays):
    return {name: np.array(part) for name, part in arrays.items()}


def same(one, other):
    return set(one) == set(other) and all(
        np.array_equal(part, other[name], equal_nan=part.dtype.kind == "f")
        for name, part in one.items()
    )


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(150, nominal(), library=load(), seed=3)


# -- laws of all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("updater", ALL, ids=IDS)
def test_an_update_changes_nothing_given_and_repeats_itself_from_a_stored_state(updater, task):
    serving, old, fresh = world(task)
    learner = begun(updater, serving, old, fresh)
    weights, state, events = serving.weights(), copied(learner), copied(fresh.to_arrays())
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    one = update(updater, serving, learner, fresh)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(serving.weights(), weights)
    assert same(learner, state)
    assert same(fresh.to_arrays(), events)
    assert not serving.network.training
    torch.manual_seed(12)
    other = update(updater, serving, state, fresh)
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert one.provenance == other.provenance
    assert not same(one.model.weights(), serving.weights())
    third = update(updater, serving, learner, fresh, seed=4)
    assert not same(one.model.weights(), third.model.weights())
    # ... and goes on from there in the same way.
    more = examples(task, first=2000, centre=-2.0, condition="later")
    again = [
        update(updater, c.model, updater.observe(c.learner, more, rng=rng(5)), more).model.weights()
        for c in (one, other)
    ]
    assert same(*again)


@pytest.mark.parametrize("updater", ALL, ids=IDS)
def test_cost_and_provenance_are_those_of_what_was_read_and_kept(updater):
    serving, old, fresh = world(REGRESSION)
    found = update(updater, serving, begun(updater, serving, old, fresh), fresh)
    cost = found.cost
    assert cost.memory_bytes == n_bytes(found.learner)
    assert cost.stored_examples == (0 if isinstance(updater, GenerativeReplay) else 100)
    assert cost.steps == SHORT.steps
    assert cost.examples == sum(found.provenance.events.values()) <= 300
    assert found.provenance.updater == type(updater).__name__
    assert found.provenance.span[1] == 1000.0
    for limit, used, what in (
        ("memory_bytes", cost.memory_bytes, "bytes of learner memory"),
        ("stored_examples", cost.stored_examples, "stored examples"),
    ):
        learner = begun(updater, serving, old, fresh)
        fine = update(updater, serving, learner, fresh, budget=Budget(**{limit: used}))
        assert isinstance(fine, Candidate)
        if used:
            tight = Budget(**{limit: used - 1})
            answer = update(updater, serving, learner, fresh, budget=tight)
            assert answer.because == (
                f"the update was thrown away: it used {used:,.6g} {what} where the budget allows "
                f"{used - 1:,.6g}"
            )


def bent(n, first, centre, condition="new"):
    """y = |a| and little noise: two regions, of which neither says anything about the other."""
    part = examples(REGRESSION, n=n, first=first, centre=centre, condition=condition)
    return replace(part, targets={"y": np.abs(part.targets["y"])})


@pytest.fixture(scope="module")
def left():
    """A network that knows the left region, and its error there."""
    old = bent(300, 0, -2.0, "old")
    serving = model(REGRESSION, MLP(2, [32]))
    network = uncertain.fresh(REGRESSION, serving.network, old, 1)
    serving = Model(network, REGRESSION, serving.architecture)
    fit(serving, Prepared.of(serving, old), Schedule(steps=400, batch=100, rate=0.02), rng(0))
    return serving, old


@pytest.mark.parametrize("updater", ALL, ids=IDS)
def test_a_new_region_is_learned_and_the_old_one_is_not_forgotten(updater, left):
    serving, old = left
    fresh = bent(300, 1000, 2.0)
    tests = [bent(200, 50_000, -2.0), bent(200, 60_000, 2.0)]
    longer = Schedule(steps=200, batch=100, rate=0.03)

    def errors(updater):
        found = update(updater, serving, begun(updater, serving, old, fresh), fresh).model
        return [found.errors(test)["error"].mean() for test in tests]

    knobs = {"schedule": longer, "capacity": 300} if updater in STORED else {"schedule": longer}
    before, after = errors(replace(updater, **knobs))
    naive = errors(FineTune(schedule=longer, min_events=1))
    assert after < 0.3
    assert before < 0.4
    assert before < naive[0] / 2


@pytest.mark.parametrize("updater", ALL, ids=IDS)
@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_batches_of_one_of_one_class_and_of_new_classes_are_taken(updater, task):
    serving, old, _ = world(task)
    one = examples(task, n=1, first=5000)
    constant = replace(
        examples(task, first=6000),
        targets={"y": np.full(150, 2.5 if isinstance(task, Regression) else 1)},
    )
    learner = updater.begin(serving, old.take(old.targets["y"] != 2), rng=rng(0))
    for fresh in (one, constant, examples(task, first=7000)):
        learner = updater.observe(learner, fresh, rng=rng(1))
        found = update(updater, serving, learner, fresh)
        assert isinstance(found, Candidate)
        assert all(np.isfinite(value).all() for value in found.model.weights().values())
        serving, learner = found.model, found.learner
    assert np.isfinite(serving.predict(old.inputs)[0].mean).all() if task is REGRESSION else True


@pytest.mark.parametrize("updater", ALL, ids=IDS)
def test_what_is_not_finite_is_not_remembered(updater):
    serving, old, _ = world(REGRESSION)
    poisoned = replace(old, targets={"y": np.where(np.arange(150) % 3, old.targets["y"], np.nan)})
    good = old.take(np.flatnonzero(np.arange(150) % 3))
    one = updater.begin(serving, poisoned, rng=rng(0))
    assert same(one, updater.begin(serving, good, rng=rng(0)))


@pytest.mark.parametrize("updater", ALL, ids=IDS)
def test_a_diverging_update_gives_finite_weights_and_no_finite_lie(updater):
    serving, old, fresh = world(REGRESSION)
    learner = updater.begin(serving, old, rng=rng(0))
    with np.errstate(all="ignore"):
        found = update(
            updater, serving, learner, replace(fresh, targets={"y": np.full(150, 1e300)})
        )
    assert isinstance(found, Candidate)
    for value in found.model.weights().values():
        assert np.isfinite(value).all()


@pytest.mark.parametrize(
    ("updater", "what"),
    [
        (Replay(), "replay"),
        (DarkReplay(), "dark replay"),
        (GDumb(), "training on the buffer"),
        (GenerativeReplay(), "generative replay"),
    ],
)
def test_too_few_events_are_declined_with_the_figures(updater, what):
    answer = update(updater, model(REGRESSION), {}, examples(REGRESSION, n=199))
    assert answer == Declined(
        f"{what} needs 200 labelled events of the new condition and has 199; it will have them "
        "when more labels arrive",
        early=True,
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Replay(mix=1.5), r"mix must lie in 0 to 1, got 1\.5; it is the share of rem"),
        (lambda: Replay(capacity=-3), r"capacity must be 0 events or more, got -3"),
        (
            lambda: Replay(keep="best"),
            r"keep must be reservoir, balanced, ring or hard, got 'best'",
        ),
        (lambda: Replay(bits=7), r"bits must be 0 \(as they are\), 8 or 16, got 7"),
        (
            lambda: Replay(keep="hard", hardness=-1),
            r"hardness must be finite and 0 or more, got -1",
        ),
        (lambda: DarkReplay(mix=-0.1), r"mix must lie in 0 to 1, got -0\.1"),
        (lambda: DarkReplay(alpha=-1.0), r"alpha must be finite and 0 or more, got -1\.0"),
        (lambda: DarkReplay(alpha=np.nan), r"alpha must be finite and 0 or more, got nan"),
        (lambda: GDumb(capacity=0), r"GDumb trains on its buffer alone and capacity is 0"),
        (lambda: GDumb(mixup=-1.0), r"mixup must be finite and 0 or more, got -1\.0"),
    ],
)
def test_knobs_without_sense_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


# -- replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{"keep": "ring"}, {"keep": "hard"}, {"bits": 16}], ids=str)
def test_replay_without_a_mix_is_fine_tuning(knobs):
    serving, old, fresh = world(CLASSES)
    replay = Replay(**KNOBS, mix=0.0, **knobs)
    one = update(replay, serving, begun(replay, serving, old, fresh), fresh)
    other = update(FineTune(**KNOBS), serving, {}, fresh)
    assert same(one.model.weights(), other.model.weights())


def test_a_loss_aware_buffer_knows_the_losses_of_its_newest_model():
    serving, old, fresh = world(CLASSES)
    replay = Replay(**KNOBS, capacity=80, keep="hard")
    learner = replay.begin(serving, old, rng=rng(0))
    buffer = replay.buffer(learner)
    want = serving.errors(buffer.examples())["log_loss"].astype(np.float32)
    np.testing.assert_array_equal(buffer.noted("loss"), want)
    learner = replay.observe(learner, fresh, rng=rng(1))
    arrived = replay.buffer(learner).ids >= 1000
    np.testing.assert_array_equal(np.isnan(replay.buffer(learner).noted("loss")), arrived)
    found = update(replay, serving, learner, fresh)
    buffer = replay.buffer(found.learner)
    want = found.model.errors(buffer.examples())["log_loss"].astype(np.float32)
    np.testing.assert_array_equal(buffer.noted("loss"), want)


def test_a_buffer_balanced_by_a_class_remembers_the_rare_one():
    task = CLASSES
    serving = model(task)
    rare = examples(task, n=20, first=0, centre=3.0)
    rare = replace(rare, targets={"y": np.full(20, 2)})
    many = examples(task, n=2000, first=100)
    many = many.take(np.flatnonzero(many.targets["y"] < 2))
    replay = Replay(capacity=60, keep="balanced", by="y")
    learner = replay.observe(replay.begin(serving, rare, rng=rng(0)), many, rng=rng(1))
    buffer, seen = unpack(learner)
    assert np.bincount(buffer.targets["y"]).tolist() == [20, 20, 20]
    assert seen["2"] == 20


@pytest.mark.parametrize(
    "updater", [Replay(capacity=50, bits=16), GDumb(capacity=50), Replay(capacity=50, keep="hard")],
    ids=repr,
)  # fmt: skip
def test_vertex_finders_can_be_replayed(vertices, updater):
    updater = replace(
        updater, min_events=1, schedule=Schedule(steps=3, batch=20, rate=0.01)
    )  # fmt: skip
    serving = model(VertexTask(), E2E(seed=1))
    old, fresh = vertices.take(slice(0, 90)), vertices.take(slice(90, 150))
    learner = updater.observe(updater.begin(serving, old, rng=rng(0)), fresh, rng=rng(1))
    found = update(updater, serving, learner, fresh)
    assert isinstance(found, Candidate)
    assert np.isfinite(found.model.predict(old.inputs)[0].mean).all()


# -- GDumb ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_gdumb_with_room_for_everything_is_retraining_on_it(task):
    serving, old, fresh = world(task)
    gdumb = GDumb(**KNOBS, capacity=10_000)
    learner = begun(gdumb, serving, old, fresh)
    everything, _ = unpack(learner)
    assert len(everything) == 300
    one = update(gdumb, serving, learner, fresh)
    joint = Retrain(**KNOBS, weight_of_new=0.0)
    other = update(joint, serving, {}, fresh, memory=everything)
    assert same(one.model.weights(), other.model.weights())


def test_gdumb_does_not_depend_on_the_serving_weights():
    _, old, fresh = world(CLASSES)
    gdumb = GDumb(**KNOBS, capacity=100, by="y")
    learner = begun(gdumb, model(CLASSES), old, fresh)
    found = [update(gdumb, model(CLASSES, seed=s), learner, fresh).model.weights() for s in (1, 2)]
    assert same(*found)


def test_gdumb_with_an_empty_buffer_says_why_it_cannot():
    serving, _, fresh = world(CLASSES)
    answer = update(GDumb(**KNOBS), serving, {}, fresh)
    assert answer == Declined(
        "the buffer is empty, so there is nothing to train on; were labels observed, and is its "
        "capacity of 4400 shared by more groups than that?",
        early=True,
    )


def test_mixup_is_refused_for_events_of_many_tracks(vertices):
    serving = model(VertexTask(), E2E(seed=1))
    gdumb = GDumb(capacity=50, mixup=1.0, min_events=1)
    learner = gdumb.begin(serving, vertices, rng=rng(0))
    with pytest.raises(ConfigError, match=r"mixup needs inputs of fixed size and 'tracks' is rag"):
        update(gdumb, serving, learner, vertices)
