"""Replay, dark replay and GDumb: the limits of their knobs, and laws that all of them keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import Ragged, n_bytes
from stillfit.core.errors import ConfigError, ShapeError
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
from stillfit.uncertainty.methods import METHODS
from stillfit.updaters.contract import Declined
from stillfit.updaters.references import FineTune, Retrain
from stillfit.updaters.replay import DarkReplay, GDumb, GenerativeReplay, Replay, unpack
from stillfit.updaters.replay.dark import ANSWER, answers, known, stored_answers

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
    GenerativeReplay(**KNOBS, samples=200, rank=0, labels="model", mix=None, shares="seen"),
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


# -- dark replay ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_dark_replay_that_ignores_outputs_is_replay(task, mix):
    serving, old, fresh = world(task)
    dark, plain = (kind(**KNOBS, capacity=90, mix=mix) for kind in (DarkReplay, Replay))
    dark = replace(dark, alpha=0.0)
    one = update(dark, serving, begun(dark, serving, old, fresh), fresh)
    other = update(plain, serving, begun(plain, serving, old, fresh), fresh)
    assert same(one.model.weights(), other.model.weights())
    # So it is before anything was stored.
    naive = update(replace(dark, alpha=1.0), serving, {}, fresh)
    assert same(naive.model.weights(), update(plain, serving, {}, fresh).model.weights())


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_outputs_are_stored_once_by_the_model_that_had_learned_the_event(task):
    serving, old, fresh = world(task)
    dark = DarkReplay(**KNOBS, capacity=1000)
    learner = dark.begin(serving, old, rng=rng(0))
    buffer = dark.buffer(learner)
    assert known(buffer).all()
    (first,) = stored_answers(buffer, np.arange(150))
    np.testing.assert_array_equal(first, answers(serving, buffer.examples())[0])
    learner = dark.observe(learner, fresh, rng=rng(1))
    np.testing.assert_array_equal(known(dark.buffer(learner)), np.arange(300) < 150)
    found = update(dark, serving, learner, fresh)
    buffer = dark.buffer(found.learner)
    (second,) = stored_answers(buffer, np.arange(300))
    np.testing.assert_array_equal(second[:150], first)
    np.testing.assert_array_equal(second[150:], answers(found.model, fresh)[0])
    width = first.shape[1]
    plain = n_bytes(
        Replay(**KNOBS, capacity=1000).observe({}, Examples.join([old, fresh]), rng=rng(0))
    )
    assert n_bytes(found.learner) - plain < 300 * width * 4 + 300


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_more_alpha_holds_the_outputs_on_old_events(task):
    serving, old, fresh = world(task)
    away = []
    for alpha in (0.0, 1.0, 100.0):
        dark = DarkReplay(
            capacity=200, mix=0.0, alpha=alpha, min_events=1,
            schedule=Schedule(steps=80, batch=50, rate=0.02),
        )  # fmt: skip
        found = update(dark, serving, dark.begin(serving, old, rng=rng(0)), fresh).model
        moved = answers(found, old)[0] - answers(serving, old)[0]
        away.append(np.sqrt((moved**2).mean()))
    assert away[0] > 3 * away[1]
    assert away[1] > away[2]


def test_the_penalty_is_the_distance_over_the_variance_by_hand():
    class Linear(nn.Linear):
        pass

    task = REGRESSION
    serving = model(task, Linear(2, 2))
    old = examples(task, n=40, condition="old")
    dark = DarkReplay(capacity=40, alpha=0.7, schedule=Schedule(batch=80), min_events=1)
    buffer = dark.buffer(dark.begin(serving, old, rng=rng(0)))
    moved = serving.copy()
    with torch.no_grad():
        moved.network.bias += torch.tensor([0.5, -2.0])
    guide = dark._guide(moved, buffer, np.arange(40), 0)
    penalty = guide.penalty(moved.network, {})
    stored = answers(serving, buffer.examples())[0].astype(np.float64)
    want = 0.7 * (np.array([0.25, 4.0]) / stored.var(0)).mean()
    assert float(penalty.detach()) == pytest.approx(want, rel=1e-5)
    penalty.backward()
    # It pulls back: the gradient points along the way that the bias went.
    assert torch.equal(torch.sign(moved.network.bias.grad), torch.tensor([1.0, -1.0]))
    assert float(guide.penalty(serving.network, {}).detach()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_dark_replay_works_on_any_uncertain_network(name, task):
    base = MLP(2, [8, 8], 2 if task is REGRESSION else 3)
    try:
        serving, old, fresh = world(task, METHODS[name].convert(base))
        network = uncertain.fresh(task, serving.network, old, 1).eval()
        serving = Model(network, task, serving.architecture)
        serving.predict(old.inputs)
    except ConfigError:
        pytest.skip("the method is not for this task")
    dark = DarkReplay(
        capacity=80, alpha=3.0, min_events=1, schedule=Schedule(steps=4, batch=30, rate=0.01)
    )
    learner = dark.begin(serving, old, rng=rng(0))
    found = update(dark, serving, learner, fresh)
    plain = update(replace(dark, alpha=0.0), serving, learner, fresh)
    assert not same(found.model.weights(), plain.model.weights())
    again = update(dark, serving, learner, fresh)
    assert same(found.model.weights(), again.model.weights())
    assert known(dark.buffer(found.learner)).all()


def test_a_network_without_gradient_in_its_outputs_cannot_be_matched():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            out = self.inner(x)
            return out if len(x) == 40 else out.detach()

    serving, old, fresh = world(REGRESSION, Still())
    dark = DarkReplay(**KNOBS, mix=0.0)
    learner = dark.begin(serving, old, rng=rng(0))
    with pytest.raises(
        ConfigError, match=r"outputs of Still carry no gradient, so stored ones can"
    ):
        update(dark, serving, learner, fresh)


def test_outputs_of_another_architecture_are_an_error():
    serving, old, fresh = world(CLASSES)
    dark = DarkReplay(**KNOBS)
    learner = dark.begin(serving, old, rng=rng(0))
    wider = Model(MLP(2, [8], 4).eval(), replace(CLASSES, classes=4), Architecture("mlp"))
    with pytest.raises(
        ShapeError, match=r"output 0 was stored as \(20, 3\) and the network gives "
    ):
        update(dark, wider, learner, fresh)


@pytest.fixture(scope="module")
def vertices():
    return vertex_examples(150, nominal(), library=load(), seed=3)


def test_ragged_answers_of_a_vertex_finder_are_stored_track_by_track(vertices):
    serving = model(VertexTask(), E2E(seed=1))
    old, fresh = vertices.take(slice(0, 90)), vertices.take(slice(90, 150))
    dark = DarkReplay(capacity=60, min_events=1, schedule=Schedule(steps=3, batch=20, rate=0.01))
    learner = dark.begin(serving, old, rng=rng(0))
    buffer = dark.buffer(learner)
    held = buffer.examples()
    raw, score, association = stored_answers(buffer, np.arange(60))
    assert isinstance(association, Ragged)
    np.testing.assert_array_equal(association.counts, held.targets["is_pv"].counts)
    assert raw.shape == (60, 2)
    assert score.shape == (60,)
    predictive, outputs = serving.predict(held.inputs)
    np.testing.assert_allclose(association.values, outputs["association"].values, atol=1e-6)
    np.testing.assert_allclose(raw[:, 0], predictive.mean, atol=1e-5)
    learner = dark.observe(learner, fresh, rng=rng(1))
    found = update(dark, serving, learner, fresh)
    assert isinstance(found, Candidate)
    plain = update(replace(dark, alpha=0.0), serving, learner, fresh)
    assert not same(found.model.weights(), plain.model.weights())
    assert known(dark.buffer(found.learner)).all()
    assert f"buffer/0/extra/{ANSWER}2#offsets" in found.learner
    again = update(dark, serving, copied(learner), fresh)
    assert same(found.model.weights(), again.model.weights())
    assert same(found.learner, again.learner)


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
