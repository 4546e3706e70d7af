"""Parts that fail, labels that never come, streams that are not as they should be."""

import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError, DataError, OrderError, ShapeError
from stillfit.core.events import Block, Labels, Notice
from stillfit.core.values import Budget, Evidence, Request, Verdict
from stillfit.decisions.gates import BetterOnNew, NotWorseOnOld
from stillfit.decisions.policies import AfterTime
from stillfit.decisions.windows import Always
from stillfit.loop import run
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification
from stillfit.monitors.cusum import ErrorCusum
from stillfit.monitors.late import LateMetric
from stillfit.registry import Registry, verify
from stillfit.streams.contract import InMemory
from stillfit.streams.guard import Guarded
from stillfit.streams.store import Keeping, is_held_out
from stillfit.updaters.contract import Declined, Meter, Updater
from stillfit.updaters.references import FineTune, Frozen

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

N, S = toy.NOMINAL, toy.SHIFTED
LATE = LateMetric(window=200, least=40)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "registry"


def plan(*names, rungs=None, **knobs):
    made = toy.plan(*names, **({"watch": (), "errors": (LATE,)} | knobs))
    if rungs is not None:
        made = replace(made, lanes=tuple(replace(lane, rungs=rungs) for lane in made.lanes))
    return made


def season(*story, n=240, blocks=2):
    return toy.season(list(story), n=n, blocks=blocks)


def play(root, events, made):
    """Run to the end; the journal, and what every lane served at every event."""
    exists = Registry.exists(root)
    with Registry.open(root, write=True) if exists else Registry.create(root) as registry:
        steps = list(run(InMemory(events), made, registry))
        history = registry.history()
    assert verify(root) == []
    return history, steps


def of(history, *kinds, lane=None):
    return [e for e in history if e.kind in kinds and lane in (None, e.lane)]


def served_everything(events, steps, names):
    blocks = [step for step in steps if isinstance(step.event, Block) and len(step.event)]
    assert len(blocks) == sum(isinstance(e, Block) and len(e) > 0 for e in events)
    for step in blocks:
        assert set(step.served) == set(names)
        for said in step.served.values():
            assert len(said.predictive) == len(step.event)


# -- monitors -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Fails where it is told to; otherwise it never says anything."""

    name: str = "watcher"
    fails: str = "step"
    error: type = KeyError

    def init(self):
        return (0,)

    def fit(self, *args, rate, rng):
        if self.fails == "fit":
            raise self.error("the reference is not there")
        return (1,)

    def step(self, state, time, *args):
        if self.fails == "step":
            raise self.error("the reading failed")
        evidence = Evidence(monitor=self.name, time=time, value=0.0, threshold=1.0, raised=False,
                            n=1, because="all is well", age=0.0)  # fmt: skip
        return (state[0] + 1,), evidence


@pytest.mark.parametrize("fails", ["fit", "step"])
@pytest.mark.parametrize("error", [KeyError, ZeroDivisionError, RuntimeError, MemoryError])
def test_a_monitor_that_raises_is_journaled_once_and_serving_goes_on(root, fails, error):
    events = season(N, S, S, S)
    broken = Watcher(fails=fails, error=error)
    made = plan("finetune", watch=(broken,), errors=(LATE, replace(broken, name="other")))
    history, steps = play(root, events, made)
    served_everything(events, steps, ["finetune"])
    told = of(history, "monitor-failed")
    assert len(told) <= 2 * (1 + len(of(history, "switch")))
    for entry in told:
        what = "the reading failed" if fails == "step" else "the reference is not there"
        assert f"failed and is passed over: {error.__name__}: " in entry.because
        assert what in entry.because
    assert len(of(history, "switch")) == 1, "the other monitor still works"


def test_a_failing_monitor_causes_no_change_even_if_it_had_raised_an_alarm(root):
    @dataclass(frozen=True, kw_only=True)
    class Flickers(Watcher):
        """Alarms at its first reading, then fails: the finding does not outlive it."""

        def step(self, state, time, *args):
            if state[0] > 1:
                raise self.error("no more")
            state, evidence = Watcher(fails="never").step(state, time)
            return state, replace(evidence, raised=True, monitor=self.name)

    events = season(N, N, N, N)
    made = plan("finetune", watch=(Flickers(),), errors=())
    history, _ = play(root, events, made)
    assert len(of(history, "alarm")) == 1
    # Asked once at most, by the alarm itself when labels were there; never after the failure.
    failed = of(history, "monitor-failed")[0]
    assert all(entry.time <= failed.time for entry in of(history, "request"))


def test_a_monitor_without_enough_events_gets_its_reference_when_labels_have_come(root):
    """379 held-out rows are too few for this CUSUM; it wakes up later, in the same version."""
    made = plan("finetune", errors=(LATE, ErrorCusum(shift=0.2)))
    events = season(N, S, S, S, S, S, S, S, N, N, n=400, blocks=4)
    history, _ = play(root, events, made)
    first = of(history, "switch")[0]
    silent = [e for e in of(history, "monitor-failed") if e.time == first.time]
    assert "nominal events cannot calibrate a shift" in silent[0].because
    spoke = [e for e in of(history, "alarm") if e.payload["monitor"] == "error-cusum"]
    assert any(entry.time > first.time for entry in spoke)


def test_a_version_that_is_chosen_for_an_unnamed_change_is_held_to_the_time_after_it(root):
    """Slow control has one name for all. The level must not be mixed with the time before.

    The new version errs by .1 after the change and by 1 before it: it must notice that its error
    rises to .5, which is less than the mean over both times.
    """
    worse = ("shifted", 1.5)
    events = [
        Block(e.ids, e.inputs, e.time) if isinstance(e, Block) else e
        for e in season(N, N, S, S, S, S, worse, worse, n=400, blocks=2)
    ]
    made = replace(plan("finetune"), nominal=toy.examples(800, 0.0, 3, -1000, "all"))
    history, _ = play(root, events, made)
    request, switch = of(history, "request")[0], of(history, "switch")[0]
    assert request.payload["since"] == 31 * toy.HOUR
    later = [e.payload for e in of(history, "alarm") if e.time > switch.time]
    assert later
    assert later[0]["threshold"] < 0.3


# -- updaters, gates, policies --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Breaks(Updater):
    """Raises in one of its verbs."""

    where: str = "update"
    error: type = KeyError

    def begin(self, serving, examples, *, rng):
        if self.where == "begin":
            raise self.error("cannot begin")
        return {"n": np.array(len(examples))}

    def observe(self, learner, examples, *, rng):
        if self.where == "observe":
            raise self.error("cannot observe")
        return {"n": learner.get("n", np.array(0)) + len(examples)}

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        if self.where == "update":
            raise self.error("cannot update")
        return Declined("nothing to offer")


@pytest.mark.parametrize("where", ["begin", "observe", "update"])
@pytest.mark.parametrize("error", [KeyError, IndexError, TypeError, RuntimeError, DataError])
def test_an_updater_that_raises_is_passed_over_and_the_next_rung_is_tried(root, where, error):
    events = season(N, S, S, S)
    tune = FineTune(schedule=toy.Schedule(steps=60, batch=64, rate=0.02))
    rungs = {"breaks": Breaks(where=where, error=error), "finetune": tune}
    history, steps = play(root, events, plan("finetune", rungs=rungs))
    served_everything(events, steps, ["finetune"])
    assert [e.payload["rung"] for e in of(history, "switch")] == ["finetune"]
    if where == "update":
        (declined,) = of(history, "declined")
        assert declined.because.startswith(f"the rung failed: {error.__name__}: ")
    else:
        (failed,) = of(history, "updater-failed")
        assert failed.because.startswith(f"breaks failed and is passed over: {error.__name__}: ")


@dataclass(frozen=True, kw_only=True)
class Diverges(Updater):
    """Weights that are no numbers."""

    value: float = np.nan

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        meter = Meter.start(self, rng)
        weights = {n: np.full_like(v, self.value) for n, v in serving.weights().items()}
        return meter.finish(serving.with_weights(weights), learner, [fresh], budget)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_candidate_of_useless_weights_is_refused_and_the_incumbent_keeps_serving(root, value):
    events = season(N, S, S)
    history, steps = play(root, events, plan("finetune", rungs={"bad": Diverges(value=value)}))
    served_everything(events, steps, ["finetune"])
    first = of(history, "deploy")[0].version
    assert {step.served["finetune"].version for step in steps if step.served} == {first}
    refused = of(history, "refused")
    assert refused
    assert all(not verdict["accepted"] for verdict in refused[0].payload["verdicts"][:1])
    assert of(history, "switch", "staged") == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_training_that_diverges_is_no_exception(root, bad):
    """The labels of the training side are spoilt; the gate sees a candidate that is no better."""

    @dataclass(frozen=True, kw_only=True)
    class Spoilt(FineTune):
        def update(self, serving, learner, fresh, memory, *, budget, rng):
            spoilt = replace(fresh, targets={"y": np.full(len(fresh), bad)})
            return super().update(serving, learner, spoilt, memory, budget=budget, rng=rng)

    rungs = {"spoilt": Spoilt(schedule=toy.Schedule(steps=20), min_events=50)}
    history, _ = play(root, season(N, S, S), plan("finetune", rungs=rungs))
    assert of(history, "refused")
    assert of(history, "staged", "switch") == []


@dataclass(frozen=True, kw_only=True)
class Judge:
    name: str = "judge"

    def judge(self, trial):
        raise ZeroDivisionError("no opinion")


def test_a_gate_that_raises_lets_nothing_through(root):
    history, _ = play(root, season(N, S, S, S), plan("finetune", gates=(BetterOnNew(), Judge())))
    assert of(history, "staged", "switch") == []
    assert "the rung failed: ZeroDivisionError: no opinion" in of(history, "declined")[0].because


@dataclass(frozen=True, kw_only=True)
class Asks:
    name: str = "asks"
    fails: bool = False

    def ask(self, evidence, *, now, past):
        if self.fails:
            raise AttributeError("what was the question")
        return Request(policy=self.name, time=now, because="it always asks")


def test_a_policy_that_raises_asks_for_nothing(root):
    events = season(N, S, S, S)
    history, steps = play(root, events, plan("finetune", policy=Asks(fails=True)))
    served_everything(events, steps, ["finetune"])
    assert of(history, "request") == []
    (failed,) = of(history, "policy-failed")
    assert failed.because == (
        "asks failed and is passed over: AttributeError: what was the question"
    )


# -- requests that fail ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Refuses:
    """A gate that is never convinced."""

    name: str = "refuses"

    def judge(self, trial):
        return Verdict(gate=self.name, accepted=False, because="never")


def test_what_stays_hopeless_is_asked_for_log_n_times(root):
    events = season(N, *[S] * 14, n=60, blocks=4)
    made = plan("finetune", policy=Asks(), gates=(Refuses(),), tries=10**6)
    history, _ = play(root, events, made)
    asked = of(history, "request")
    labels = [e for e in of(history, "performance") if e.payload["condition"] == "shifted"]
    assert 3 <= len(asked) <= 12 < len(labels)
    rows = [e.payload["fresh"] + e.payload["held_out"] for e in asked[2:]]
    for before, after in pairwise(rows):
        assert after >= 1.4 * before


def test_after_some_tries_the_level_is_taken_as_it_is_and_only_worse_raises_an_alarm(root):
    worse = ("shifted", 3.0)
    made = plan("finetune", gates=(Refuses(),), tries=2, errors=(LATE,))
    events = season(N, *[S] * 6, worse, worse, worse, n=240, blocks=2)
    history, _ = play(root, events, made)
    calls = of(history, "call")
    assert [call.payload["taken_as_is"] for call in calls[:2]] == [False, True]
    taken = calls[1].time
    quiet = [e for e in history if taken < e.time < 95 * toy.HOUR]
    assert of(quiet, "alarm", "request", "call") == []
    assert of([e for e in history if e.time > 95 * toy.HOUR], "alarm", "request")


def test_requests_that_come_too_early_do_not_count(root):
    """Blocks of 60 events and a rung that needs 200: it is asked often enough, and succeeds."""
    events = season(N, *[S] * 6, n=60, blocks=2)
    history, _ = play(root, events, plan("finetune", tries=1))
    early = of(history, "declined")
    assert len(early) >= 2
    assert all("it will have them when more labels arrive" in e.because for e in early)
    assert not any(call.payload["taken_as_is"] for call in of(history, "call"))
    assert len(of(history, "switch")) == 1


def test_a_frozen_rung_changes_nothing_for_ever(root):
    history, _ = play(root, season(N, *[S] * 4), plan("finetune", rungs={"frozen": Frozen()}))
    assert of(history, "staged", "switch") == []
    assert of(history, "declined")[0].because == "this lane is frozen: it never changes"


# -- what may be seen -----------------------------------------------------------------------------


SEEN = []


@dataclass(frozen=True, kw_only=True)
class Spy(Updater):
    """Notes the ids it is shown."""

    def begin(self, serving, examples, *, rng):
        SEEN.append(("begin", examples))
        return {}

    def observe(self, learner, examples, *, rng):
        SEEN.append(("observe", examples))
        return learner

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        SEEN.append(("update", fresh))
        SEEN.append(("update", memory.all()))
        return Declined("only looking")


def test_no_updater_is_ever_shown_a_held_out_event_nor_a_condition_without_weight(root):
    SEEN.clear()
    made = plan("finetune", rungs={"spy": Spy()}, policy=Asks())
    made = replace(made, keeping=replace(made.keeping, weights={"third": 0.0}))
    play(root, season(N, S, S, ("third", 2.0), ("third", 2.0), S, S), made)
    assert {verb for verb, _ in SEEN} == {"begin", "observe", "update"}
    for _, shown in SEEN:
        assert not is_held_out(shown.ids, made.keeping.held_out, made.keeping.seed).any()
        assert "third" not in shown.conditions
    total = np.concatenate([shown.ids for verb, shown in SEEN if verb == "observe"])
    assert len(np.unique(total)) == len(total)


# -- streams --------------------------------------------------------------------------------------


def test_labels_that_never_come_change_nothing(root):
    events = [e for e in season(N, S, S, S) if not isinstance(e, Labels)]
    history, steps = play(root, events, plan("finetune", "frozen", policy=AfterTime(every=1.0)))
    served_everything(events, steps, ["finetune", "frozen"])
    assert set(Counter(e.kind for e in history)) == {"deploy", "experience"}


def test_without_notices_the_state_is_unknown_and_nothing_is_switched(root):
    events = [e for e in season(N, S, S, S) if not isinstance(e, Notice)]
    history, steps = play(root, events, plan("finetune"))
    served_everything(events, steps, ["finetune"])
    assert len(of(history, "staged")) == 1
    assert of(history, "switch") == []
    assert {e.payload["fill"] for e in of(history, "performance")} == {None}


def test_an_unknown_state_of_the_machine_closes_the_window_again(root):
    events = [
        replace(e, state="unknown") if isinstance(e, Notice) and e.time > 20 * toy.HOUR else e
        for e in season(N, S, S, S)
    ]
    history, _ = play(root, events, plan("finetune"))
    assert len(of(history, "staged")) == 1
    assert of(history, "switch") == []


def test_empty_blocks_and_labels_are_passed_over(root):
    events = season(N, S, S, S)
    nothing = np.zeros(0, np.int64)
    full = []
    for event in events:
        full += [event, Block(nothing, {"x0": np.zeros(0), "x1": np.zeros(0)}, event.time)]
        full += [Block(nothing, {}, event.time), Labels(nothing, {}, event.time)]
    history, steps = play(root, full, plan("finetune"))
    without, _ = play(root.parent / "without", events, plan("finetune"))
    assert all(step.served == {} for step in steps if len(getattr(step.event, "ids", "x")) == 0)
    told = [(e.kind, e.time, e.version) for e in history if e.kind != "performance"]
    same = [(e.kind, e.time, e.version) for e in without if e.kind != "performance"]
    # The generators of later label batches are named by their place, so candidates may differ.
    assert [(kind, time) for kind, time, _ in told] == [(kind, time) for kind, time, _ in same]


def test_labels_of_unknown_events_and_repeated_ones_judge_nothing(root):
    events = season(N, S, S, S)
    more = []
    for event in events:
        more.append(event)
        if isinstance(event, Labels):
            more.append(event)
            more.append(Labels(event.ids + 50_000_000, event.targets, event.time))
    one, _ = play(root, events, plan("frozen"))
    other, _ = play(root.parent / "other", more, plan("frozen"))
    drop = {"batch"}
    figures = [
        [{k: v for k, v in e.payload.items() if k not in drop} for e in of(told, "performance")]
        for told in (one, other)
    ]
    assert figures[0] == figures[1]


def spoilt(events, spoil):
    return [spoil(e) if place == 14 else e for place, e in enumerate(events)]


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda e: replace(e, time=1.0), OrderError, "an event of time 1.000 s came after one of"),
        (lambda e: replace(e, time=np.nan), OrderError, "an event has the time nan; times must be"),
    ],
    ids=["time-goes-back", "time-is-nan"],
)
def test_an_event_out_of_time_is_an_error_and_what_is_stored_stays(root, spoil, error, text):
    events = season(N, S, S, S)
    with pytest.raises(error, match=text):
        play(root, spoilt(events, spoil), plan("finetune"))
    with Registry.open(root) as registry:
        count = registry.head.count
        assert registry.serving("finetune") is not None
    assert verify(root) == []
    history, _ = play(root, events, plan("finetune"))
    whole, _ = play(root.parent / "whole", events, plan("finetune"))
    assert len(history) >= count
    assert [e.hash for e in history] == [e.hash for e in whole]


def test_duplicate_ids_are_an_error_that_names_the_guard_and_the_guard_helps(root):
    events = season(N, S, S, S)
    place = next(n for n, e in enumerate(events) if isinstance(e, Block) and n > 6)
    twice = [*events[: place + 1], events[place], *events[place + 1 :]]
    with pytest.raises(OrderError, match="event ids must rise strictly: wrap the stream in Guard"):
        play(root, twice, plan("finetune"))
    assert verify(root) == []
    guarded = Guarded(InMemory(twice))
    with Registry.create(root.parent / "guarded") as registry:
        list(run(guarded, plan("finetune"), registry))
        told = [(e.kind, e.time) for e in registry.history()]
    assert guarded.set_aside.counts == {"duplicate id": len(events[place])}
    whole, _ = play(root.parent / "whole", events, plan("finetune"))
    assert told == [(e.kind, e.time) for e in whole]


def test_a_changed_feature_list_is_an_error_and_what_is_stored_stays(root):
    events = season(N, S, S, S)
    place = next(n for n, e in enumerate(events) if isinstance(e, Block) and n > 6)
    changed = list(events)
    changed[place] = replace(events[place], inputs={"x0": events[place].inputs["x0"]})
    with pytest.raises(ShapeError, match="expects 2 features but the stream lacks x1; was the fea"):
        play(root, changed, plan("finetune"))
    assert verify(root) == []


def test_labels_without_the_target_are_an_error_that_names_it(root):
    events = [
        Labels(e.ids, {"z": e.targets["y"]}, e.time) if isinstance(e, Labels) else e
        for e in season(N, S)
    ]
    with pytest.raises((DataError, ShapeError)) as error:
        play(root, events, plan("finetune"))
    assert "z" in str(error.value)
    assert "y" in str(error.value)
    assert verify(root) == []


def test_a_block_too_large_for_the_memory_of_waiting_events_is_served_and_judged_in_part(root):
    events = []
    for event in season(N, S, S, n=400, blocks=2):
        if isinstance(event, Block):
            _, labels = toy.rows(400, 0.0, 7, int(event.ids[0]), event.time, "")
            events += [event, labels]
        elif isinstance(event, Notice):
            events.append(event)
    made = replace(plan("frozen"), pending_bytes=5000, checkpoint=2)
    history, steps = play(root, events, made)
    served_everything(events, steps, ["frozen"])
    judged = of(history, "performance")
    assert judged
    assert all(0 < e.payload["n"] < 400 for e in judged)
    # A restart at every step must find the same predictions.
    again = root.parent / "again"
    for _ in range(40):
        exists = Registry.exists(again)
        with Registry.open(again, write=True) if exists else Registry.create(again) as registry:
            steps = run(InMemory(events), made, registry)
            for _, _step in zip(range(3), steps, strict=False):
                pass
    told, _ = play(again, events, made)
    assert [e.hash for e in told] == [e.hash for e in history]


def test_labels_of_several_fills_and_conditions_in_one_batch_are_told_apart(root):
    events = season(N, S, S, ("third", 2.0), N)
    held = [e for e in events if isinstance(e, Labels)]
    rest = [e for e in events if not isinstance(e, Labels)]
    ids = np.concatenate([e.ids for e in held])
    order = np.random.default_rng(0).permutation(len(ids))
    y = np.concatenate([e.targets["y"] for e in held])
    whole = Labels(ids[order], {"y": y[order]}, rest[-1].time)
    history, _ = play(root, [*rest, whole], plan("frozen"))
    told = [
        (e.payload["fill"], e.payload["condition"], e.payload["n"])
        for e in of(history, "performance")
    ]
    assert told == [
        (1, "nominal", 480), (2, "shifted", 480), (3, "shifted", 480), (4, "third", 480)
    ]  # fmt: skip
    one, _ = play(root.parent / "one", events, plan("frozen"))
    for fill, condition, _ in told:
        alone = [
            e.payload for e in of(one, "performance")
            if (e.payload["fill"], e.payload["condition"]) == (fill, condition)
        ]  # fmt: skip
        mean = np.average([p["figures"]["error"] for p in alone], weights=[p["n"] for p in alone])
        mixed = next(e for e in of(history, "performance") if e.payload["fill"] == fill)
        assert mixed.payload["figures"]["error"] == pytest.approx(mean)


# -- plans ----------------------------------------------------------------------------------------


def test_lanes_that_cannot_be_told_apart_or_name_parts_twice_are_refused():
    made = plan("frozen")
    with pytest.raises(ConfigError, match=r"lanes of different names, got \['frozen', 'frozen'\]"):
        replace(made, lanes=made.lanes * 2)
    lane = made.lanes[0]
    with pytest.raises(ConfigError, match="lane 'frozen' has several parts named late-metric; giv"):
        replace(lane, errors=(LATE, LATE))
    with pytest.raises(ConfigError, match="several parts named late-metric"):
        replace(lane, rungs={"late-metric": Frozen()})
    with pytest.raises(ConfigError, match="a rung cannot be named 'a/b': '/' divides names"):
        replace(lane, rungs={"a/b": Frozen()})
    with pytest.raises(ConfigError, match="fresh, judged and tries must be at least 1, got 0, 20"):
        replace(lane, fresh=0)
    with pytest.raises(ConfigError, match=r"rate \(events per day\) and checkpoint must be posi"):
        replace(made, rate=0.0)
    with pytest.raises(ConfigError, match="a run needs nominal labelled events, on which the moni"):
        replace(made, nominal=made.nominal.take(slice(0, 0)))


# -- another task ---------------------------------------------------------------------------------


CLASSES = Classification(features=("x0", "x1"), classes=2)


def classified(events):
    """y > 0.5 as a class."""
    return [
        Labels(e.ids, {"y": (e.targets["y"] > 0.5).astype(np.int64)}, e.time)
        if isinstance(e, Labels) else e
        for e in events
    ]  # fmt: skip


def classifier():
    torch.manual_seed(0)
    arguments = {"features": 2, "hidden": [8], "outputs": 2}
    model = Model(MLP(**arguments).eval(), CLASSES, Architecture("mlp", arguments))
    nominal = toy.examples(800, 0.0, 3, -1000)
    nominal = replace(nominal, targets={"y": (nominal.targets["y"] > 0.5).astype(np.int64)})
    schedule = toy.Schedule(steps=200, batch=200, rate=0.02)
    kept = Keeping(budget_bytes=10**7).empty().add(nominal, np.random.default_rng(0)).training
    made = FineTune(schedule=schedule).update(
        model, {}, nominal, kept, budget=Budget(), rng=np.random.default_rng(0)
    )
    return made.model, nominal


def test_a_classification_goes_through_the_whole_loop(root):
    model, nominal = classifier()
    events = classified(season(N, S, S, S, S, N, N, N, N, N))
    made = toy.plan("ladder", watch=(), errors=(LATE,))
    lane = replace(made.lanes[0], model=model, gates=(BetterOnNew(), NotWorseOnOld(margin=0.05)))
    made = replace(made, lanes=(lane,), nominal=nominal, window=Always())
    history, steps = play(root, events, made)
    served_everything(events, steps, ["ladder"])
    assert len(of(history, "switch")) >= 1
    figures = of(history, "performance")[-1].payload["figures"]
    assert set(figures) == {"error", "error_err", "log_loss"}
    assert figures["error"] < 0.15


def test_lanes_of_different_tasks_keep_theirs_over_a_restart(root):
    """Same folder, one lane of a task with another error: a reload must not mix them up."""

    @dataclass(frozen=True, kw_only=True)
    class Doubled(type(toy.TASK)):
        def errors(self, predictive, outputs, targets):
            found = super().errors(predictive, outputs, targets)
            return {name: 2 * value for name, value in found.items()}

        def summarise(self, predictive, outputs, targets):
            found = super().summarise(predictive, outputs, targets)
            return {name: 2 * value for name, value in found.items()}

    events = season(N, S, S)
    made = plan("frozen", "finetune")
    task = Doubled(features=toy.TASK.features)
    other = made.lanes[1]
    other = replace(other, model=replace(other.model, task=task))
    made = replace(made, lanes=(made.lanes[0], other), checkpoint=1)
    whole, _ = play(root, events, made)
    again = root.parent / "again"
    for _ in range(12):
        exists = Registry.exists(again)
        with Registry.open(again, write=True) if exists else Registry.create(again) as registry:
            for _, _step in zip(range(2), run(InMemory(events), made, registry), strict=False):
                pass
    told, _ = play(again, events, made)
    assert [e.hash for e in told] == [e.hash for e in whole]
    first = {e.lane: e.payload["figures"]["error"] for e in reversed(of(whole, "performance"))}
    assert first["finetune"] == pytest.approx(2 * first["frozen"])
