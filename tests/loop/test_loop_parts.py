"""Parts of the loop by themselves: waiting predictions, loaded models, rows of a term."""

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stillfit.core.errors import ConfigError, RegistryError
from stillfit.core.events import Block, Labels, Notice
from stillfit.core.predictive import Mixture
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Served, VersionId
from stillfit.decisions.gates import BetterOnNew
from stillfit.decisions.windows import FromNotices
from stillfit.loop import Redeploy, run
from stillfit.loop.pending import Pending
from stillfit.loop.proposals import first_provenance
from stillfit.loop.run import TOGETHER, moments
from stillfit.loop.selection import (
    NO_FILL,
    Term,
    in_order,
    newest_condition,
    present,
    reliability,
    select,
    stretches,
)
from stillfit.loop.shelf import KEPT, Shelf
from stillfit.models.training import Schedule
from stillfit.monitors.late import LateMetric
from stillfit.registry import Registry
from stillfit.streams.contract import InMemory
from stillfit.streams.store import Keeping
from stillfit.updaters.references import FineTune

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

A, B = VersionId("a" * 64), VersionId("b" * 64)


# -- moments and checkpoints ----------------------------------------------------------------------


def test_labels_of_one_time_come_together_and_nothing_else_does():
    told = [Labels(np.array([n]), {}, time) for n, time in enumerate([1.0, 1.0, 2.0])]
    block, end = Block(np.array([9]), {}, 2.0), Notice("inter-fill", 2.0)
    events = [block, end, told[0], told[1], told[2], block, told[2], end, told[0]]
    found = list(moments(iter(events)))
    assert [event for moment in found for event in moment] == events
    assert [len(moment) for moment in found] == [1, 1, 2, 1, 1, 1, 1, 1]
    many = [told[0]] * (2 * TOGETHER + 1)
    assert [len(moment) for moment in moments(iter(many))] == [TOGETHER, TOGETHER, 1]


def test_a_block_is_never_kept_waiting_for_what_comes_after_it():
    def live():
        yield Notice("stable-beams", 0.0)
        yield Block(np.array([1]), {}, 1.0)
        raise AssertionError("the next event was asked for")

    stream = moments(live())
    assert [len(next(stream)), len(next(stream))] == [1, 1]


@pytest.mark.parametrize("checkpoint", [1, 3, 7])
def test_a_checkpoint_is_written_when_labels_have_come_or_after_twice_as_many_events(
    tmp_path, checkpoint
):
    events = toy.stream().events()
    made = replace(toy.plan("frozen", watch=(), errors=()), checkpoint=checkpoint)
    saved = [0]
    with Registry.create(tmp_path / "r") as registry:
        kinds = []
        for step in run(toy.stream(), made, registry):
            kinds.append(type(step.event))
            found = registry.load_checkpoint("run").position
            if found != saved[-1]:
                saved.append(found)
    assert len(kinds) == len(list(events)) and len(saved) > 3
    for before, at in pairwise(saved):
        quiet = kinds[at - 1] is Labels and kinds[at] is not Labels
        assert checkpoint <= at - before and (quiet or at - before >= 2 * checkpoint)
        # Not later than labels have come once it is due, nor than twice as many events.
        due = range(before + checkpoint, at)
        assert not any(kinds[n - 1] is Labels and kinds[n] is not Labels for n in due)
        assert at - before < 2 * checkpoint + TOGETHER


# -- waiting predictions ------------------------------------------------------------------------


def said(version, ids):
    ids = np.asarray(ids, np.int64)
    return ids, Served(version, Mixture.gaussian(ids * 1.0, np.ones(len(ids))), {"o": ids * 2.0})


def test_predictions_are_found_by_event_and_told_apart_by_version():
    pending = Pending()
    for version, ids in ((A, [1, 3, 5]), (B, [7, 9]), (A, [20, 22, 24])):
        pending.add(*said(version, ids))
    wanted = np.array([0, 3, 4, 5, 9, 22, 30])
    found = {judged.version: judged for judged in pending.find(wanted)}
    assert set(found) == {A, B}
    np.testing.assert_array_equal(wanted[found[A].rows], [3, 5, 22])
    np.testing.assert_array_equal(found[A].predictive.mean, [3, 5, 22])
    np.testing.assert_array_equal(found[A].outputs["o"], [6, 10, 44])
    np.testing.assert_array_equal(wanted[found[B].rows], [9])
    part = found[A].take(np.array([2]))
    np.testing.assert_array_equal(part.predictive.mean, [22])
    assert pending.find(np.array([2, 6, 8, 100])) == []
    assert pending.find(np.zeros(0, np.int64)) == []


def test_a_block_is_forgotten_only_when_all_of_its_events_are():
    pending = Pending()
    pending.add(*said(A, [1, 3, 5]))
    pending.add(*said(B, [7, 9]))
    pending.add(*said(B, []))
    for first, left in ((5, [5, 9]), (6, [9]), (9, [9]), (10, [])):
        pending.forget_before(first)
        assert [last for last, _ in pending.versions()] == left


# -- loaded models --------------------------------------------------------------------------------


def shelf_of(registry):
    return Shelf(registry, toy.FACTORIES, toy.TASK)


def test_a_shelf_keeps_the_newest_models_and_loads_the_others_again(tmp_path):
    """The same answers from a model that was never unloaded and from one that was."""
    made = toy.plan("frozen")
    first = made.lanes[0].model
    x = made.nominal.inputs
    with Registry.create(tmp_path / "registry") as registry:
        shelf = shelf_of(registry)
        versions, told = [], []
        for number in range(KEPT + 5):
            weights = first.weights()
            weights["layers.3.bias"] += np.float32(number)
            model = first.with_weights(weights)
            versions.append(shelf.put_first(model, first_provenance("x", made.nominal, number)))
            told.append(model.predict(x)[0].mean)
        for version, mean in zip(versions, told, strict=True):
            np.testing.assert_array_equal(shelf.serve(version, x).predictive.mean, mean)
            assert len(shelf._models) <= KEPT
        # Asked for again, it is the newest.
        shelf.get(versions[-KEPT])
        shelf.get(versions[0])
        assert versions[-KEPT] in shelf._models
        assert versions[-KEPT + 1] not in shelf._models


def test_an_answer_is_given_once_until_it_is_forgotten(tmp_path):
    made = toy.plan("frozen")
    with Registry.create(tmp_path / "registry") as registry:
        shelf = shelf_of(registry)
        version = shelf.put_first(made.lanes[0].model, first_provenance("x", made.nominal, 0))
        x = made.nominal.inputs
        one = shelf.serve(version, x)
        assert shelf.serve(version, x) is one
        assert shelf.serve(version, dict(x)) is not one
        shelf.forget()
        other = shelf.serve(version, x)
        assert other is not one
        np.testing.assert_array_equal(other.predictive.mean, one.predictive.mean)


def test_a_way_between_versions_needs_a_bitstream_if_either_is_one(tmp_path):
    made = toy.plan("frozen")
    model, nominal = made.lanes[0].model, made.nominal
    with Registry.create(tmp_path / "registry") as registry:
        shelf = shelf_of(registry)
        first = shelf.put_first(model, first_provenance("x", nominal, 0))
        ids = {}
        for kind in ("weights", "bitstream"):
            tune = FineTune(schedule=Schedule(steps=1), update_class=kind)
            store = Keeping(budget_bytes=10**6).empty().add(nominal, np.random.default_rng(0))
            found = tune.update(
                model, {}, nominal, store.training, budget=Budget(), rng=np.random.default_rng(1)
            )
            ids[kind] = shelf.put(found, first, {})
        assert shelf.reach(first, ids["weights"]) == "weights"
        assert shelf.reach(first, ids["bitstream"]) == "bitstream"
        assert shelf.reach(ids["bitstream"], first) == "bitstream"
        assert shelf.reach("weights", first) == "weights"
        assert shelf.reach("bitstream", first) == "bitstream"


# -- rows ---------------------------------------------------------------------------------------


def store_of(*parts):
    store = Keeping(budget_bytes=10**7, held_out=0.5).empty()
    for number, part in enumerate(parts):
        store = store.add(part, np.random.default_rng(number))
    return store


def stretch(first, n, time, condition):
    made = toy.examples(n, 0.0, 1, first, condition)
    return replace(made, times=time + np.arange(n) * 1.0)


def test_the_present_condition_is_that_of_the_newest_labelled_event():
    store = store_of(stretch(0, 50, 0.0, "a"), stretch(100, 50, 100.0, "b"))
    assert newest_condition(store) == "b"
    assert newest_condition(store.add(stretch(60, 30, 60.0, "c"), np.random.default_rng(9))) == "b"
    assert newest_condition(Keeping(budget_bytes=1000).empty()) == "all"


def test_rows_of_a_term_are_its_condition_and_time_newest_first_to_be_kept():
    store = store_of(stretch(0, 100, 0.0, "a"), stretch(200, 100, 200.0, "b"))
    lane = replace(toy.plan("frozen").lanes[0], fresh=10, judged=7)
    fresh, new = present(lane, store, Term("a"))
    assert (len(fresh), len(new)) == (10, 7)
    assert set(fresh.conditions) == {"a"}
    np.testing.assert_array_equal(fresh.ids, store.training.condition("a").ids[-10:])
    fresh, new = present(lane, store, Term("a", 20.0, 40.0))
    assert fresh.times.min() >= 20.0
    assert max(fresh.times.max(), new.times.max()) < 40.0
    assert present(lane, store, Term("nowhere"))[0].ids.size == 0
    joined = in_order([new, fresh])
    assert np.all(np.diff(joined.ids) > 0)
    assert len(in_order([])) == 0


def test_fresh_and_held_out_rows_never_meet():
    store = store_of(stretch(0, 300, 0.0, "all"))
    rows = select(toy.plan("frozen").lanes[0], store, 100.0)
    shown = set(rows.fresh.ids)
    for part in (rows.new, *rows.old.values()):
        assert not shown & set(part.ids)


def test_where_all_has_one_name_the_time_before_the_change_is_the_old_condition():
    store = store_of(stretch(0, 200, 0.0, "all"))
    lane = toy.plan("frozen").lanes[0]
    rows = select(lane, store, 120.0)
    assert rows.condition == "all"
    assert rows.new.times.min() >= 120.0 > rows.old["before"].times.max()
    assert list(rows.old) == ["before"]
    assert select(lane, store, None).old == {}
    named = store_of(stretch(0, 100, 0.0, "a"), stretch(200, 100, 200.0, "b"))
    rows = select(lane, named, 250.0)
    assert (rows.condition, list(rows.old)) == ("b", ["a"])


def test_stretches_tell_fills_and_conditions_apart_in_order():
    conditions = np.array(["b", "b", "a", "b", "a"])
    fills = np.array([1, 1, 1, NO_FILL, 1])
    found = [(fill, list(rows)) for fill, rows in stretches(conditions, fills)]
    assert found == [(1, [0, 1]), (1, [2, 4]), (None, [3])]
    ((fill, whole),) = stretches(conditions[:2], fills[:2])
    assert (fill, whole) == (1, slice(None))


def test_reliability_compares_what_is_stated_with_what_is_seen():
    rng = np.random.default_rng(0)
    std = np.repeat([0.5, 1.0, 2.0, 4.0, 8.0], 4000)
    away = np.abs(std * rng.standard_normal(len(std)))
    away[::50] = 1e6  # events that are wholly wrong do not rule the bins
    bins = reliability(std, away)
    assert [b["n"] for b in bins] == [4000] * 5
    for b in bins:
        assert b["observed"] == pytest.approx(b["stated"], rel=0.08)
    assert reliability(np.ones(2), np.ones(2)) == [
        {"stated": 1.0, "observed": 1.0, "n": 1},
        {"stated": 1.0, "observed": 1.0, "n": 1},
    ]


# -- the whole, in small ------------------------------------------------------------------------


def test_a_candidate_whose_condition_has_gone_is_withdrawn(tmp_path):
    """A bitstream waits for its window; meanwhile labels show that the old world is back."""
    story = [toy.NOMINAL, toy.SHIFTED, toy.NOMINAL, toy.NOMINAL, toy.NOMINAL]
    tune = FineTune(schedule=Schedule(steps=60, batch=64, rate=0.02), update_class="bitstream")
    late = LateMetric(window=200, least=40)
    made = toy.plan("finetune", watch=(), errors=(late,), gates=(BetterOnNew(),))
    made = replace(
        made,
        lanes=(replace(made.lanes[0], rungs={"finetune": tune}),),
        window=FromNotices(build=10.5 * toy.HOUR),
    )
    with Registry.create(tmp_path / "registry") as registry:
        list(run(InMemory(toy.season(story, n=240, blocks=2)), made, registry))
        kinds = ("staged", "withdrawn", "switch")
        told = [(e.kind, e.because) for e in registry.history(kinds=kinds)]
    assert [kind for kind, _ in told] == ["staged", "withdrawn"]
    assert told[1][1] == "it was chosen for 'shifted'; the newest labels are of 'nominal'"


def test_rivals_with_the_same_parts_decide_the_same(tmp_path):
    """Two lanes that differ in name only: same decisions at the same times."""
    made = toy.plan("frozen", watch=(), errors=(LateMetric(window=200, least=40),))
    lane = replace(made.lanes[0], rungs={"redeploy": Redeploy()})
    made = replace(made, lanes=(replace(lane, name="one"), replace(lane, name="two")))
    story = [toy.NOMINAL, toy.SHIFTED, toy.SHIFTED, toy.NOMINAL]
    with Registry.create(tmp_path / "registry") as registry:
        list(run(InMemory(toy.season(story, n=240, blocks=2)), made, registry))
        one, two = (
            [(e.kind, e.time, dict(e.payload)) for e in registry.history(name)]
            for name in ("one", "two")
        )
    assert one == two


def test_a_run_goes_on_with_its_lanes_or_not_at_all(tmp_path):
    made = toy.plan("frozen", watch=(), errors=())
    events = toy.season([toy.NOMINAL], n=20, blocks=1)
    with Registry.create(tmp_path / "registry") as registry:
        list(run(InMemory(events), made, registry))
    other = toy.plan("frozen", "retrain", watch=(), errors=())
    with (
        Registry.open(tmp_path / "registry", write=True) as registry,
        pytest.raises(RegistryError, match=r"stored run has the lanes \['frozen'\], this one \["),
    ):
        list(run(InMemory(events), other, registry))


def test_another_seed_on_the_same_folder_is_found_out(tmp_path):
    made = toy.plan("frozen", watch=(), errors=(LateMetric(),))
    events = toy.season([toy.NOMINAL] * 3, n=40, blocks=1)
    with Registry.create(tmp_path / "registry") as registry:
        for step in run(InMemory(events), made, registry):
            if step.number == 7:
                break
    changed = [
        replace(e, inputs={**e.inputs, "x0": e.inputs["x0"] + 5}) if isinstance(e, Block) else e
        for e in events
    ]
    with (
        Registry.open(tmp_path / "registry", write=True) as registry,
        pytest.raises(RegistryError, match="this run is not the one that wrote the journal"),
    ):
        list(run(InMemory(changed), replace(made, seeds=Seeds(6)), registry))


def test_a_run_that_has_ended_adds_nothing_and_goes_on_where_the_stream_has_grown(tmp_path):
    made = toy.plan("frozen", "finetune", watch=(), errors=(LateMetric(window=200, least=40),))
    events = toy.season([toy.NOMINAL, toy.SHIFTED, toy.SHIFTED, toy.SHIFTED], n=240, blocks=2)
    with Registry.create(tmp_path / "registry") as registry:
        list(run(InMemory(events[:12]), made, registry))
        ended = registry.head
    for _ in range(2):
        with Registry.open(tmp_path / "registry", write=True) as registry:
            assert list(run(InMemory(events[:12]), made, registry)) == []
            assert registry.head == ended
    with Registry.open(tmp_path / "registry", write=True) as registry:
        steps = list(run(InMemory(events), made, registry))
        assert [step.number for step in steps] == list(range(12, len(events)))
        assert len(registry.history("finetune", kinds=("experience",))) == 2
        assert len(registry.history("finetune", kinds=("switch",))) == 1


def test_a_factory_that_is_gone_is_named(tmp_path):
    made = toy.plan("frozen", watch=(), errors=())
    events = toy.season([toy.NOMINAL], n=20, blocks=1)
    with Registry.create(tmp_path / "registry") as registry:
        for step in run(InMemory(events), made, registry):
            assert step.number == 0
            break
    shelf_plan = replace(made, factories={})
    with Registry.open(tmp_path / "registry", write=True) as registry:
        shelf = Shelf(registry, shelf_plan.factories, toy.TASK)
        with pytest.raises(ConfigError, match="needs the network factory 'mlp', which is not kno"):
            shelf.get(registry.versions()[0])
