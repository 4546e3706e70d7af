"""The harness of continual learning: its walk, its going on, its rows, its page."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stillfit.apps.cli import main
from stillfit.apps.report.study import pareto_front, render
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget
from stillfit.l1t import scenario as l1t_scenario
from stillfit.models.model import Architecture, Model, build
from stillfit.models.task import Classification
from stillfit.models.training import Schedule
from stillfit.studies.continual import catalogue, images, prices, run, trigger
from stillfit.studies.continual.catalogue import STRATEGIES, Strategy, chosen
from stillfit.studies.continual.journey import Kept, travel
from stillfit.studies.continual.networks import FACTORIES
from stillfit.studies.continual.results import lines, mean_matrix, recovered
from stillfit.studies.continual.run import ContinualStudy
from stillfit.studies.continual.scenarios import GROUPS, SCENARIOS, kind_of, of_group
from stillfit.studies.continual.scoring import of_classes
from stillfit.studies.continual.setting import Options, Recipe, Setup
from stillfit.studies.experiences import Experience
from stillfit.updaters.contract import Updater
from stillfit.updaters.references import FineTune

torch.set_num_threads(1)
BRIEF = Schedule(steps=1, batch=8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Images of 4 x 4 pixels, four classes told by which row is bright."""
    rng = np.random.default_rng(4)
    arrays = {}
    for part, n in (("train", 320), ("test", 120)):
        y = np.arange(n) % 4
        x = rng.integers(0, 120, (n, 4, 4))
        x[np.arange(n), y] += 120
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y.astype(np.uint8)}
    path = tmp_path_factory.mktemp("images") / "small.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def setup(file):
    return images.split(Options(data=file, effort=0.4), 1)


def journey(setup, name, seed=1):
    return travel(setup, STRATEGIES[name], seed)


def test_the_matrix_has_a_row_before_any_experience_and_a_column_per_condition(setup):
    found = journey(setup, "retrain")
    many = len(setup.experiences)
    assert many == 4
    assert found.matrices["accuracy"].shape == (many + 1, many)
    start = [one["accuracy"] for one in of_classes(setup.start, setup.tests)]
    np.testing.assert_array_equal(found.matrices["accuracy"][0], start)
    assert found.matrices["accuracy"][-1].mean() > 0.9


def test_frozen_stays_and_naive_forgets_everything(setup):
    frozen, naive = journey(setup, "frozen"), journey(setup, "naive")
    assert np.all(frozen.matrices["accuracy"] == frozen.matrices["accuracy"][0])
    assert {step.updated for step in frozen.steps} == {False}
    r = naive.matrices["accuracy"]
    assert np.all(np.diag(r[1:]) > 0.9) and r[-1, :-1].mean() < 0.3


def test_the_same_seed_gives_the_same_figures(setup, file):
    again = images.split(Options(data=file, effort=0.4), 1)
    one, other = journey(setup, "replay"), journey(again, "replay")
    np.testing.assert_array_equal(one.matrices["accuracy"], other.matrices["accuracy"])
    assert [s.memory_bytes for s in one.steps] == [s.memory_bytes for s in other.steps]
    differs = images.split(Options(data=file, effort=0.4), 2)
    assert differs.names != setup.names


def test_what_a_step_cost_is_measured(setup):
    frozen, naive = journey(setup, "frozen").steps[-1], journey(setup, "naive").steps[-1]
    retrain, replay = journey(setup, "retrain").steps[-1], journey(setup, "replay").steps[-1]
    fresh = setup.experiences[-1].train
    assert frozen.memory_bytes == naive.memory_bytes == 0
    assert naive.fresh_bytes == fresh.nbytes and naive.read == len(fresh)
    assert retrain.store_bytes > 3 * fresh.nbytes and retrain.read == 320
    assert replay.memory_bytes > 0 and replay.stored_examples == 320
    assert naive.macs == replay.macs == 16 * 400 + 400 * 400 + 400 * 4


def test_the_store_hands_out_what_was_met_and_counts_its_bytes(setup):
    kept = Kept(setup.experiences)
    assert len(kept.all()) == 0 and len(kept.window(0.0)) == 0
    kept.add(0, slice(0, 80))
    kept.add(1, slice(0, 10))
    kept.add(1, slice(0, 40))
    every = kept.all()
    assert len(every) == 120 and kept.handed == every.nbytes
    newest = kept.window(0.5)
    np.testing.assert_array_equal(newest.ids, setup.experiences[1].train.ids[:40])
    assert len(kept.window(9.0)) == 0


@dataclass(frozen=True, kw_only=True)
class Remembers(Updater):
    """Says what it is given."""

    seen: list

    def begin(self, serving, examples, *, rng):
        self.seen.append(("begin", len(examples)))
        return {}

    def observe(self, learner, examples, *, rng):
        self.seen.append(("observe", len(examples)))
        return learner

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        self.seen.append(("update", len(fresh), len(memory.all())))
        return FineTune(min_events=1, schedule=BRIEF).update(
            serving, learner, fresh, memory, budget=budget, rng=rng
        )


def toy(setup, **changes):
    return replace(setup, **{"trained": setup.start, "portions": (20, 50), **changes})


def watcher(seen, **facts):
    made = Remembers(seen=seen)
    return Strategy(
        name="w", title="W", family="reference", make=lambda recipe, number: made, **facts
    )


def test_labels_come_in_portions_and_each_is_observed_once(setup):
    seen = []
    found = travel(toy(setup), watcher(seen), 1)
    assert seen[0] == ("begin", 80)
    assert seen[1:7] == [
        ("observe", 20), ("update", 20, 100), ("observe", 30), ("update", 50, 130),
        ("observe", 30), ("update", 80, 160),
    ]  # fmt: skip
    assert [p.events for p in found.recovery if p.figure == "accuracy"][:3] == [20, 50, 80]
    # Row 1 is the initial training, which is the same for all.
    assert found.matrices["accuracy"].shape == (5, 4)


def test_one_pass_strategies_get_new_rows_only_and_whole_ones_wait(setup):
    seen = []
    travel(toy(setup), watcher(seen, once=True), 1)
    assert [one[1] for one in seen if one[0] == "update"][:3] == [20, 30, 30]
    seen = []
    travel(toy(setup), watcher(seen, whole=True), 1)
    assert [one[1] for one in seen if one[0] == "update"] == [80, 80, 80]


def stream(n=96, block=8):
    rng = np.random.default_rng(0)
    x = rng.normal(size=n).astype(np.float32)
    y = (x > 0).astype(np.int64)
    rows = Examples(np.arange(n), {"x": x}, {"y": y}, np.arange(n) * 1800.0, np.full(n, "all"))
    met = [Experience("first", rows.take(slice(0, 32)), rows.take(slice(0, 32)))]
    for first in range(32, n, block):
        part = rows.take(slice(first, first + block))
        met.append(Experience(str(first), part, part))
    facts = Architecture("sensing.mlp", {"features": 1, "hidden": [4], "outputs": 2})
    task = Classification(features=("x",), classes=2)
    network = task.fresh(build(facts, FACTORIES), rows, 3)
    model = Model(network.eval(), task, facts)
    recipe = Recipe(
        scenario="toy", kind="classes", rows=block, experiences=len(met), epochs=2, batch=4,
        rate=0.01, memory=20, classes=2, retrain_rows=100, budget=Budget(),
    )  # fmt: skip
    return Setup(
        experiences=met, tests=[], names=(), start=model, trained=model, score=of_classes,
        recipe=recipe, prequential=True,
    ), rows  # fmt: skip


def test_a_prequential_row_is_predicted_before_it_is_learned():
    setup, rows = stream()
    seen = []
    found = travel(setup, watcher(seen, every=3), 1)
    assert len(found.errors) == 64 and found.matrices == {}
    first = setup.start.errors(rows.take(slice(32, 56)))["error"]  # no update before 3 blocks
    np.testing.assert_array_equal(found.errors[:24], first)
    assert [one for one in seen if one[0] == "update"] == [("update", 24, 56), ("update", 24, 80)]


def test_the_last_class_is_an_input_of_the_row_after():
    _, rows = stream()
    column = prices.with_last(rows).inputs[prices.LAST]
    np.testing.assert_array_equal(column[1:], rows.targets["y"][:-1])
    assert column[0] == 0


def test_every_scenario_belongs_to_a_group_and_has_its_headline():
    for scenario in SCENARIOS.values():
        assert scenario.group in GROUPS and scenario.headline == scenario.figures[0]
        assert chosen((), kind_of(scenario))
    assert {kind_of(s) for s in SCENARIOS.values()} == {"classes", "vertex"}
    assert of_group("trigger", ())[0] == "season-e2e"


def test_the_trigger_meets_each_condition_once_and_drift_in_stages():
    names = [name for name, _ in trigger.stages(l1t_scenario.load("season"))]
    assert names == ["nominal", "cooling-trip", "thermal-cycle", "quality-word", "resolution"]
    stages = trigger.stages(l1t_scenario.load("ageing"))
    assert len(stages) == trigger.STAGES
    aged = [detector.integrated_luminosity for _, detector in stages]
    assert aged[0] == 0 and aged[-1] == 3 and aged == sorted(aged)
    calm = l1t_scenario.Scenario(title="calm", fills=3)
    with pytest.raises(DataError, match="nothing changes in the scenario 'calm'"):
        trigger.stages(calm)


@pytest.fixture(scope="module")
def small(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    study = ContinualStudy(
        scenarios=("split-mnist",),
        strategies=("frozen", "naive", "retrain"),
        seeds=(1, 2),
        options=Options(data=file, effort=0.2),
    )
    heard = []
    return study, out, run.run(study, out, told=heard.append), heard


def test_a_study_writes_its_rows_and_tells_how_far_it_is(small):
    _, out, found, heard = small
    assert [told.done for told in heard] == [1, 2, 3, 4, 5, 6]
    assert heard[0].seconds_left > 0 and heard[-1].seconds_left == 0
    assert len(found.runs) == 6 and {row["outcome"] for row in found.runs} == {"done"}
    assert len(found.matrix) == 6 * 5 * 4
    stored = pq.read_table(out / "metrics.parquet").to_pylist()
    assert len(stored) == len(found.metrics) == 6 * 7
    made = lines(found, "split-mnist")
    assert [line.strategy for line in made] == ["frozen", "naive", "retrain"]
    naive, retrain = made[1], made[2]
    assert retrain.value.n == 2 and retrain.against.mean == 0
    assert naive.against.mean == pytest.approx(naive.value.mean - retrain.value.mean)
    names, r = mean_matrix(found, "split-mnist", "naive", "accuracy")
    assert names == ["1", "2", "3", "4"] and r.shape == (5, 4)  # the order is drawn with the seed


def test_it_goes_on_and_runs_again_what_was_changed(small, monkeypatch):
    study, out, found, _ = small
    heard = []
    again = run.run(study, out, told=heard.append)
    assert all(told.stored for told in heard)
    assert again == found
    (out / "parts" / "split-mnist" / "naive-1.json").write_text("{broken")
    heard.clear()
    run.run(study, out, told=heard.append)
    assert [told.row["strategy"] for told in heard if not told.stored] == ["naive"]
    changed = replace(
        STRATEGIES["naive"], make=lambda recipe, number: FineTune(min_events=3, schedule=BRIEF)
    )
    monkeypatch.setattr(run, "STRATEGIES", {**STRATEGIES, "naive": changed})
    heard.clear()
    run.run(study, out, told=heard.append)
    assert [told.row["strategy"] for told in heard if not told.stored] == ["naive", "naive"]
    heard.clear()
    more = replace(study, options=replace(study.options, effort=0.1))
    run.run(more, out, told=heard.append)
    assert not any(told.stored for told in heard)
    heard.clear()
    monkeypatch.setattr(run, "_source", lambda scenario: "edited")
    run.run(more, out, told=heard.append)
    assert not any(told.stored for told in heard)


def test_a_scenario_is_known_by_the_text_of_its_module():
    known = {name: run._source(name) for name in SCENARIOS}
    assert all("Recipe(" in text for text in known.values())
    assert known["split-mnist"] == known["permuted-mnist"] != known["har"]


@dataclass(frozen=True, kw_only=True)
class Breaks(Updater):
    error: str = "refused"

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        raise ConfigError("not on this network") if self.error == "refused" else KeyError("oops")


def test_a_strategy_that_fails_is_a_row_and_not_the_end(small, monkeypatch, tmp_path):
    study = small[0]
    table = dict(STRATEGIES)
    for name in ("refused", "failed"):
        table[name] = Strategy(
            name=name,
            title=name,
            family="reference",
            make=lambda recipe, number, name=name: Breaks(error=name),
        )
    for place in (catalogue, run):
        monkeypatch.setattr(place, "STRATEGIES", table)
    broken = replace(study, strategies=("refused", "failed"), seeds=(1,))
    found = run.run(broken, tmp_path)
    assert [row["outcome"] for row in found.runs] == ["refused", "failed"]
    assert found.runs[0]["because"] == "not on this network"
    assert "KeyError: 'oops'" in found.runs[1]["because"]
    heard = []
    run.run(broken, tmp_path, told=heard.append)
    assert [told.stored for told in heard] == [True, False]  # a fault may have been put right


def test_the_page_has_heat_maps_curves_and_fronts_and_no_script(small):
    page = render(small[2], "two seeds")
    assert "<script" not in page and "http-equiv" in page
    for words in ("What was kept", "Along the way", "What it costs", "minus retrain"):
        assert words in page
    assert page == render(small[2], "two seeds")


def test_the_front_is_what_none_beats_in_both():
    seen = {0: (1.0, 0.5), 1: (2.0, 0.9), 2: (3.0, 0.8), 3: (1.0, 0.4), 4: (2.0, 0.9)}
    assert pareto_front(seen) == {0, 1, 4}


def test_events_to_recover_are_of_the_retrained_network():
    head = {"scenario": "season-e2e", "seed": 1, "condition": "off", "figure": "score"}
    head |= {"experience": 1}
    found = run.Found([], [], [], [], [], [])
    for strategy, values in (("retrain", {1000: 0.8}), ("naive", {200: 0.7, 500: 0.78, 1000: 0.9})):
        for events, value in values.items():
            found.recovery.append({**head, "strategy": strategy, "events": events, "value": value})
    by = {one.strategy: one for one in recovered(found, "season-e2e", "score")}
    assert by["naive"].events == (500.0,) and by["naive"].reference == 0.8
    assert by["retrain"].events == (1000.0,)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"scenarios": ("split-mnst",)}, "did you mean 'split-mnist'"),
        ({"strategies": ("retrian",)}, "there is no strategy 'retrian'; did you mean 'retrain'"),
        ({"seeds": ()}, "at least one scenario and one seed"),
        ({"options": Options()}, "name the file with --data"),
    ],
)
def test_a_wrong_study_is_refused(file, wrong, text):
    right = {"scenarios": ("split-mnist",), "options": Options(data=file)}
    with pytest.raises(ConfigError, match=text):
        ContinualStudy(**{**right, **wrong})


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"effort": 0}, "effort must be above 0 and at most 100, got 0"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(wrong, text):
    with pytest.raises(ConfigError, match=text):
        Options(**wrong)
    with pytest.raises(ConfigError, match="there is no file"):
        ContinualStudy(scenarios=("split-mnist",), options=Options(data=Path("nowhere.npz")))


def test_the_command_writes_table_and_page(file, tmp_path, capsys):
    out = tmp_path / "mnist"
    options = ["--scenario", "split-mnist", "--strategies", "frozen,naive", "--seeds", "1"]
    options += ["--workers", "1", "--effort", "0.2", "--rows", "40", "--test-rows", "20"]
    told = main(["study", "mnist", "--data", str(file), "--out", str(out), *options, "--json"])
    said = capsys.readouterr()
    assert told == 0
    table = json.loads(said.out)["lines"]
    assert [line["strategy"] for line in table] == ["frozen", "naive"]
    assert "2 of 2: split-mnist naive seed 1" in said.err
    assert (out / "report.html").is_file() and (out / "matrix.parquet").is_file()
    wrong = ["study", "mnist", "--data", str(file), "--scenario", "season-e2e"]
    assert main([*wrong, "--out", str(out)]) == 2
    assert "there is no scenario 'season-e2e' here" in capsys.readouterr().err
    assert main(["study", "strategies"]) == 0
    assert "retrain" in capsys.readouterr().out
