"""Laws of every updater: purity, determinism, limits of the knobs, budgets, refusals."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.arrays import content_hash, n_bytes
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Schedule
from stillfit.streams.store import Keeping
from stillfit.updaters.contract import Declined
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Frozen, Retrain, RetrainWindow
from stillfit.updaters.replay import Replay, unpack

SHORT = Schedule(steps=25, batch=60, rate=0.01)
DAY = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Shiftable(Regression):
    """A regression whose target's mean can be set in closed form."""

    def recalibrate(self, network, examples, *, significance):
        away = examples.targets["y"] - self_mean(self, network, examples)
        error = away.std() / np.sqrt(len(away))
        if abs(away.mean()) < significance * error:
            return {}
        return {"target_mean": np.float32(float(network.target_mean) + away.mean())}


def self_mean(task, network, examples):
    return Model(network, task, Architecture("mlp")).predict(examples.inputs)[0].mean


REGRESSION = Shiftable(features=("a", "b"))
CLASSES = Classification(features=("a", "b"), classes=3)
UPDATERS = [
    Frozen(),
    FineTune(schedule=SHORT),
    Replay(schedule=SHORT, capacity=150),
    Replay(schedule=SHORT, capacity=150, keep="balanced", mix=0.8),
    Retrain(schedule=SHORT, min_events=100),
    Retrain(schedule=SHORT, min_events=100, weight_of_new=0.0),
    RetrainWindow(schedule=SHORT, min_events=100, window=DAY),
    Recalibrate(),
]
NAMES = [f"{type(u).__name__}-{n}" for n, u in enumerate(UPDATERS)]
TASKS = [REGRESSION, CLASSES]


def rng(seed=0):
    return np.random.default_rng(seed)


def examples(task, n=240, shift=1.0, first=0, time=0.0, condition="new", seed=0, centre=0.0):
    drawn = np.random.default_rng([seed, first])
    x = drawn.normal(size=(n, 2)) + centre
    score = x[:, 0] + shift + 0.1 * drawn.normal(size=n)
    y = score if isinstance(task, Regression) else np.digitize(score, [-0.5, 0.5])
    ids = np.arange(first, first + n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y}, np.full(n, time), np.full(n, condition))


def model(task, seed=0, network=None):
    torch.manual_seed(seed)
    network = network or MLP(2, [8], 2 if isinstance(task, Regression) else 3)
    return Model(network.eval(), task, Architecture("mlp"))


def memory(*parts):
    store = Keeping(budget_bytes=10**7, held_out=0.0).empty()
    for number, part in enumerate(parts):
        store = store.add(part, rng(number))
    return store.training


def world(task):
    """Serving model, nominal and fresh events, and the memory that holds both."""
    old = examples(task, shift=0.0, first=0, condition="old")
    fresh = examples(task, shift=1.0, first=1000, time=10 * DAY)
    return model(task), old, fresh, memory(old, fresh)


def begun(updater, serving, old, fresh):
    learner = updater.begin(serving, old, rng=rng(1))
    return updater.observe(learner, fresh, rng=rng(2))


def update(updater, serving, learner, fresh, kept, seed=3, budget=None):
    return updater.update(serving, learner, fresh, kept, budget=budget or Budget(), rng=rng(seed))


def same(one, other):
    assert set(one) == set(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def fingerprint(serving, learner, fresh, kept):
    return (
        content_hash(serving.weights()),
        content_hash(dict(learner)),
        content_hash(fresh.to_arrays()),
        content_hash(kept.all().to_arrays()),
    )


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("updater", UPDATERS, ids=NAMES)
def test_an_update_changes_nothing_that_it_was_given(updater, task):
    serving, old, fresh, kept = world(task)
    learner = begun(updater, serving, old, fresh)
    before = fingerprint(serving, learner, fresh, kept)
    grads = [parameter.requires_grad for parameter in serving.network.parameters()]
    state = torch.random.get_rng_state()
    update(updater, serving, learner, fresh, kept)
    assert fingerprint(serving, learner, fresh, kept) == before
    assert grads == [parameter.requires_grad for parameter in serving.network.parameters()]
    assert all(parameter.grad is None for parameter in serving.network.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not serving.network.training


@pytest.mark.parametrize("updater", UPDATERS, ids=NAMES)
def test_observing_changes_nothing_that_it_was_given(updater):
    serving, old, fresh, kept = world(REGRESSION)
    learner = updater.begin(serving, old, rng=rng(1))
    before = fingerprint(serving, learner, fresh, kept)
    once = updater.observe(learner, fresh, rng=rng(2))
    assert fingerprint(serving, learner, fresh, kept) == before
    assert same(once, updater.observe(learner, fresh, rng=rng(2)))


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("updater", UPDATERS, ids=NAMES)
def test_the_same_arguments_give_the_same_candidate(updater, task):
    serving, old, fresh, kept = world(task)
    learner = begun(updater, serving, old, fresh)
    torch.manual_seed(1)
    one = update(updater, serving, learner, fresh, kept)
    torch.manual_seed(2)
    other = update(updater, serving, learner, fresh, kept)
    if isinstance(one, Declined):
        assert one == other
        return
    assert same(one.model.weights(), other.model.weights())
    assert same(one.learner, other.learner)
    assert one.provenance == other.provenance
    assert replace(one.cost, seconds=0.0) == replace(other.cost, seconds=0.0)
    assert not same(one.model.weights(), serving.weights())


class Dropping(MLP):
    """A network that draws numbers of its own while it trains."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("updater", UPDATERS[1:7], ids=NAMES[1:7])
def test_a_network_with_dropout_is_no_exception(updater):
    _, old, fresh, kept = world(REGRESSION)
    serving = model(REGRESSION, network=Dropping(2, [8]))
    learner = begun(updater, serving, old, fresh)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(update(updater, serving, learner, fresh, kept).model.weights())
    assert same(*found)


@pytest.mark.parametrize("updater", UPDATERS[1:7], ids=NAMES[1:7])
def test_another_generator_gives_another_candidate(updater):
    serving, old, fresh, kept = world(REGRESSION)
    learner = begun(updater, serving, old, fresh)
    one, other = (update(updater, serving, learner, fresh, kept, seed) for seed in (3, 4))
    assert not same(one.model.weights(), other.model.weights())


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
@pytest.mark.parametrize("updater", UPDATERS[1:7], ids=NAMES[1:7])
def test_an_update_with_enough_steps_is_better_on_the_new_condition(updater, task):
    """The new condition is another region of the same function, so nothing contradicts."""
    serving, old, _, _ = world(task)
    fresh = examples(task, shift=0.0, first=1000, time=10 * DAY, centre=2.0)
    longer = replace(updater, schedule=Schedule(steps=250, batch=100, rate=0.02))
    learner = begun(longer, serving, old, fresh)
    found = update(longer, serving, learner, fresh, memory(old, fresh))
    test = examples(task, shift=0.0, first=50_000, centre=2.0)
    assert found.model.errors(test)["error"].mean() < 0.6 * serving.errors(test)["error"].mean()


@pytest.mark.parametrize("updater", UPDATERS, ids=NAMES)
def test_provenance_and_cost_say_what_was_read_and_used(updater):
    serving, old, fresh, kept = world(REGRESSION)
    learner = begun(updater, serving, old, fresh)
    found = update(updater, serving, learner, fresh, kept)
    if isinstance(found, Declined):
        assert isinstance(updater, Frozen)
        return
    made, cost = found.provenance, found.cost
    assert made.updater == type(updater).__name__
    # An event that was read from two places counts once.
    assert cost.examples == sum(made.events.values()) <= len(old) + len(fresh)
    assert made.events["new"] == len(fresh)
    assert made.span[1] == 10 * DAY
    assert len(made.data) == len(set(made.data)) >= 1
    assert cost.memory_bytes == n_bytes(found.learner)
    assert cost.macs_per_example == 2 * 8 + 8 * 2
    assert cost.seconds >= 0
    assert cost.steps == (0 if isinstance(updater, Recalibrate) else SHORT.steps)
    assert found.update_class == updater.update_class == "weights"
    assert replace(updater, update_class="bitstream").update_class == "bitstream"


def test_a_retraining_reads_what_is_kept_and_a_window_only_its_window():
    serving, _, fresh, kept = world(REGRESSION)
    whole = update(UPDATERS[4], serving, {}, fresh, kept)
    assert whole.provenance.events == {"new": 240, "old": 240}
    window = update(UPDATERS[6], serving, {}, fresh, kept)
    assert window.provenance.events == {"new": 240}


# -- limits of the knobs ------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_replay_without_a_mix_is_fine_tuning(task):
    serving, old, fresh, kept = world(task)
    replay = Replay(schedule=SHORT, mix=0.0)
    learner = begun(replay, serving, old, fresh)
    one = update(replay, serving, learner, fresh, kept)
    other = update(FineTune(schedule=SHORT), serving, {}, fresh, kept)
    assert same(one.model.weights(), other.model.weights())


def test_replay_with_an_empty_buffer_is_fine_tuning():
    serving, _, fresh, kept = world(REGRESSION)
    one = update(Replay(schedule=SHORT), serving, {}, fresh, kept)
    other = update(FineTune(schedule=SHORT), serving, {}, fresh, kept)
    assert same(one.model.weights(), other.model.weights())


def test_replay_of_nothing_but_memory_trains_on_the_buffer_alone():
    """With mix = 1 and a buffer of all old events, the fresh ones might as well be others."""
    serving, old, fresh, kept = world(REGRESSION)
    replay = Replay(schedule=SHORT, mix=1.0, capacity=10_000)
    learner = replay.begin(serving, old, rng=rng(1))
    one = update(replay, serving, learner, fresh, kept)
    strange = examples(REGRESSION, shift=50.0, first=90_000)
    assert same(
        one.model.weights(), update(replay, serving, learner, strange, kept).model.weights()
    )
    # ... and it is fine-tuning on what the buffer holds.
    buffer, _ = unpack(learner)
    other = update(FineTune(schedule=SHORT), serving, {}, buffer, kept)
    assert same(one.model.weights(), other.model.weights())


def test_more_mix_forgets_less_and_adapts_less():
    serving, old, fresh, kept = world(REGRESSION)
    base = FineTune(schedule=Schedule(steps=300, batch=120, rate=0.02))
    fitted = update(base, serving, {}, old, kept).model
    errors = []
    for mix in (0.0, 0.5, 0.9):
        replay = Replay(schedule=Schedule(steps=150, batch=120, rate=0.01), mix=mix)
        learner = replay.begin(fitted, old, rng=rng(1))
        found = update(replay, fitted, learner, fresh, kept).model
        tests = examples(REGRESSION, shift=0.0, first=70_000), examples(REGRESSION, first=80_000)
        errors.append([found.errors(test)["error"].mean() for test in tests])
    (old0, new0), (old5, new5), (old9, new9) = errors
    assert old0 > old5 > old9
    assert new0 < new5 < new9


def test_fresh_events_are_not_drawn_from_the_buffer_as_old_ones():
    serving, old, fresh, kept = world(REGRESSION)
    replay = Replay(schedule=SHORT, capacity=10_000)
    learner = begun(replay, serving, old, fresh)
    found = update(replay, serving, learner, fresh, kept)
    assert found.provenance.events == {"new": 240, "old": 240}
    assert found.cost.stored_examples == 480
    only = update(replay, serving, replay.observe({}, fresh, rng=rng(1)), fresh, kept)
    tuned = update(FineTune(schedule=SHORT), serving, {}, fresh, kept)
    assert same(only.model.weights(), tuned.model.weights())


@pytest.mark.parametrize("updater", UPDATERS[4:7], ids=NAMES[4:7])
@pytest.mark.parametrize("task", TASKS, ids=["regression", "classes"])
def test_retraining_does_not_depend_on_the_serving_weights(updater, task):
    _, _, fresh, kept = world(task)
    found = [update(updater, model(task, seed), {}, fresh, kept) for seed in (1, 2)]
    assert same(found[0].model.weights(), found[1].model.weights())


def test_all_weight_of_new_trains_on_the_new_condition_only():
    serving, _, fresh, kept = world(REGRESSION)
    all_new = Retrain(schedule=SHORT, min_events=100, weight_of_new=1.0)
    one = update(all_new, serving, {}, fresh, kept).model
    nothing = Retrain(schedule=SHORT, min_events=100, weight_of_new=0.0)
    assert not same(one.weights(), update(nothing, serving, {}, fresh, kept).model.weights())
    other = examples(REGRESSION, shift=9.0, first=5000, condition="else")
    scales = {"layers.0.mean", "layers.0.std", "target_mean", "target_std"}
    again = update(all_new, serving, {}, fresh, memory(other, fresh)).model
    # The store sets the scales; the batches hold fresh events alone.
    assert not same(one.weights(), again.weights())
    assert scales < set(one.weights())


def test_the_frozen_lane_says_so():
    serving, _, fresh, kept = world(REGRESSION)
    answer = update(Frozen(), serving, {}, fresh, kept)
    assert answer == Declined("this lane is frozen: it never changes")


def test_a_schedule_of_no_steps_gives_the_serving_weights():
    serving, _, fresh, kept = world(REGRESSION)
    found = update(FineTune(schedule=Schedule(steps=0)), serving, {}, fresh, kept)
    assert same(found.model.weights(), serving.weights())
    assert found.cost.steps == 0


# -- recalibration ------------------------------------------------------------------------------


def test_recalibration_sets_what_is_significant_and_nothing_else():
    serving, old, _, kept = world(REGRESSION)
    level = update(FineTune(schedule=Schedule(steps=300, batch=120, rate=0.02)), serving, {}, old,
                   kept).model  # fmt: skip
    moved = examples(REGRESSION, n=400, shift=0.7, first=4000)
    found = update(Recalibrate(), level, {}, moved, kept)
    changed = {
        name for name, value in found.model.weights().items()
        if not np.array_equal(value, level.weights()[name])
    }  # fmt: skip
    assert changed == {"target_mean"}
    assert found.model.errors(moved)["error"].mean() < level.errors(moved)["error"].mean() / 2
    answer = update(Recalibrate(significance=1e6), level, {}, moved, kept)
    assert answer.because == "no correction exceeds 1e+06 standard errors on 400 labelled events"
    assert not answer.early


def test_a_task_without_a_closed_form_declines():
    serving, _, fresh, kept = world(CLASSES)
    answer = update(Recalibrate(), serving, {}, fresh, kept)
    assert answer.because == "Classification has nothing to recalibrate in closed form"


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updater", "what", "needed"),
    [
        (FineTune(), "fine-tuning", 200),
        (Replay(), "replay", 200),
        (Retrain(), "retraining", 500),
        (RetrainWindow(), "retraining on a window", 500),
        (Recalibrate(), "recalibration", 100),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_too_few_events_are_declined_with_the_figures(updater, what, needed):
    serving, _, _, kept = world(REGRESSION)
    for n in (0, 57):
        answer = update(updater, serving, {}, examples(REGRESSION, n=n), kept)
        assert answer == Declined(
            f"{what} needs {needed} labelled events of the new condition and has {n}; "
            "it will have them when more labels arrive",
            early=True,
        )


@pytest.mark.parametrize("updater", UPDATERS[1:7], ids=NAMES[1:7])
def test_an_update_over_its_budget_is_declined_with_both_figures(updater):
    serving, old, fresh, kept = world(REGRESSION)
    learner = begun(updater, serving, old, fresh)
    free = update(updater, serving, learner, fresh, kept)
    assert isinstance(free, Candidate)
    for limit, used, name in (
        ("memory_bytes", free.cost.memory_bytes, "bytes of learner memory"),
        ("stored_examples", free.cost.stored_examples, "stored examples"),
        ("macs_per_example", free.cost.macs_per_example, "multiply-accumulates per example"),
    ):
        exact = update(updater, serving, learner, fresh, kept, budget=Budget(**{limit: used}))
        assert isinstance(exact, Candidate)
        assert same(exact.model.weights(), free.model.weights())
        if used:
            budget = Budget(**{limit: used - 1})
            answer = update(updater, serving, learner, fresh, kept, budget=budget)
            assert answer == Declined(
                f"the update was thrown away: it used {used:,.6g} {name} where the budget allows "
                f"{used - 1:,.6g}"
            )
    answer = update(updater, serving, learner, fresh, kept, budget=Budget(seconds=0.0))
    assert "seconds where the budget allows 0" in answer.because


@pytest.mark.parametrize("updater", UPDATERS[1:7], ids=NAMES[1:7])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_diverging_loss_gives_a_candidate_of_finite_weights(updater, bad):
    serving, old, fresh, kept = world(REGRESSION)
    learner = begun(updater, serving, old, fresh)
    poisoned = replace(fresh, targets={"y": np.full(len(fresh), bad)})
    with np.errstate(all="ignore"):
        found = update(updater, serving, learner, poisoned, kept)
    assert isinstance(found, Candidate)
    assert found.cost.steps <= SHORT.steps
    for value in found.model.weights().values():
        assert np.all(np.isfinite(value))


def test_a_network_that_cannot_start_anew_is_an_error_that_names_the_module():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x):
            return x @ self.own

    _, _, fresh, kept = world(REGRESSION)
    serving = model(REGRESSION, network=Stubborn())
    with pytest.raises(ConfigError, match=r"Stubborn .* has parameters but no reset_parameters"):
        update(UPDATERS[4], serving, {}, fresh, kept)
    assert isinstance(update(UPDATERS[1], serving, {}, fresh, kept), Candidate)


@pytest.mark.parametrize("updater", UPDATERS[1:7], ids=NAMES[1:7])
def test_a_network_without_parameters_is_an_error(updater):
    _, old, fresh, kept = world(REGRESSION)
    serving = model(REGRESSION, network=nn.Flatten())
    learner = begun(updater, serving, old, fresh)
    with pytest.raises(DataError, match="no parameters to train; a finder cannot be retrained"):
        update(updater, serving, learner, fresh, kept)
