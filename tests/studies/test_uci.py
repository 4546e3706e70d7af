"""The UCI benchmark: layout, protocol, resumption, table, and what bad data are told."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stillfit.apps import cli
from stillfit.apps.progress import silent
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Mixture, QuantileTable
from stillfit.core.seeds import Seeds
from stillfit.models.networks import MLP
from stillfit.models.training import Schedule
from stillfit.models.uncertain import fold, folded
from stillfit.studies import uci
from stillfit.studies.uci import protocol, together
from stillfit.studies.uci.data import Table
from stillfit.studies.uci.published import DE, MCD, PBP, SETS
from stillfit.studies.uci.search import Candidate, Recipe, best, score, search
from stillfit.studies.uci.together import Decayed, drawn, fit_together
from stillfit.uncertainty.methods import METHODS

NINE = (
    "bostonHousing",
    "concrete",
    "energy",
    "kin8nm",
    "naval-propulsion-plant",
    "power-plant",
    "protein-tertiary-structure",
    "wine-quality-red",
    "yacht",
)
QUICK = Recipe(epochs=12, decays=(0.01, 0.1), folds=2, repeats=1, together=2)


def rows(n, seed=0):
    """x0, x1, a column that nobody uses, y = 3 + 2 x0 - x1 + noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) * (1, 100)
    y = 3 + 2 * x[:, 0] - x[:, 1] / 100 + 0.3 * rng.normal(size=n)
    return np.column_stack([x, np.full(n, 7.0), y])


def write(home, n=60, splits=2, **extra):
    home.mkdir(parents=True)
    np.savetxt(home / "data.txt", rows(n))
    np.savetxt(home / "index_features.txt", [0, 1])
    np.savetxt(home / "index_target.txt", [3])
    for split in range(splits):
        order = np.random.default_rng(split).permutation(n)
        # As the published files have them: some whole numbers, some with a decimal point.
        np.savetxt(home / f"index_train_{split}.txt", order[: n - 10], fmt="%d")
        np.savetxt(home / f"index_test_{split}.txt", order[n - 10 :])
    for name, value in extra.items():
        (home / f"{name}.txt").write_text(f"{value}\n")
    return home


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data" / "yacht")
    return tmp_path / "data"


def run(folder, out, **settings):
    settings = {"recipe": QUICK, "progress": silent, "methods_named": ("plain",), **settings}
    return uci.run(folder, out, **settings)


# -- the layout ------------------------------------------------------------------------------------


def test_all_nine_sets_and_year_load_from_the_same_layout(tmp_path):
    for name in NINE:
        splits = 5 if name.startswith("protein") else 3
        hidden = 100 if name.startswith("protein") else 50
        write(tmp_path / name, splits=splits, n_splits=splits, n_hidden=hidden, n_epochs=40)
    write(tmp_path / "YearPredictionMSD", splits=1)
    assert uci.find(tmp_path) == sorted({*NINE, "YearPredictionMSD"})
    for name in (*NINE, "YearPredictionMSD"):
        table = uci.load(tmp_path, name)
        wide = name.startswith(("protein", "Year"))
        assert table.hidden == (100 if wide else 50)
        assert table.splits == {"protein-tertiary-structure": 5, "YearPredictionMSD": 1}.get(
            name, 3
        )
        assert table.x.shape == (60, 2)
        assert [len(part) for part in table.test] == [10] * table.splits


def test_values_and_splits_are_those_of_the_files(folder):
    table = uci.load(folder, "yacht")
    data = rows(60)
    np.testing.assert_allclose(table.x, data[:, :2])
    np.testing.assert_allclose(table.y, data[:, 3])
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_array_equal(table.train[1], order[:50])
    np.testing.assert_array_equal(table.test[1], order[50:])
    examples = table.examples(table.test[1])
    np.testing.assert_array_equal(examples.targets["y"], table.y[order[50:]])


def test_a_folder_data_inside_the_set_is_found_too(tmp_path):
    write(tmp_path / "yacht" / "data")
    assert uci.find(tmp_path) == ["yacht"]
    assert uci.load(tmp_path, "yacht").splits == 2


def test_hidden_units_follow_the_file_then_the_benchmark(tmp_path):
    write(tmp_path / "mine", n_hidden=7)
    write(tmp_path / "protein-tertiary-structure")
    write(tmp_path / "unknown")
    assert uci.load(tmp_path, "mine").hidden == 7
    assert uci.load(tmp_path, "protein-tertiary-structure").hidden == 100
    assert uci.load(tmp_path, "unknown").hidden == 50


def test_fewer_splits_may_be_asked_for_than_there_are(tmp_path):
    write(tmp_path / "yacht", splits=3, n_splits=2)
    assert uci.load(tmp_path, "yacht").splits == 2


def test_sets_have_short_names_and_near_misses_are_told(tmp_path):
    write(tmp_path / "bostonHousing")
    write(tmp_path / "naval-propulsion-plant")
    assert uci.find(tmp_path, ("naval", "bostonHousing", "boston")) == [
        "naval-propulsion-plant",
        "bostonHousing",
    ]
    with pytest.raises(ConfigError, match=r"no set 'bosten'.*did you mean 'boston'"):
        uci.find(tmp_path, ("bosten",))
    with pytest.raises(ConfigError, match=r"no folder .*--data is the folder that holds"):
        uci.find(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no set.*folder above"):
        uci.find(tmp_path / "bostonHousing")


def broken(home, file, text):
    (home / file).write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("index_target.txt", "4\n", "names the column 4, but data.txt has the columns 0 to 3"),
        ("index_target.txt", "-1\n", "names the column -1"),
        ("index_target.txt", "2.5\n", "names the column 2.5"),
        ("index_target.txt", "2\n3\n", "must name one column"),
        ("index_target.txt", "1\n", "column 1 is the target and a feature at once"),
        ("index_features.txt", "0\n9\n", "names the column 9"),
        ("index_features.txt", "0\n0\n", "names a column twice"),
        ("index_features.txt", "", "index_features.txt is empty"),
        ("index_test_0.txt", "60\n", "names the row 60, but data.txt has the rows 0 to 59"),
        ("index_train_0.txt", "a b\n", "index_train_0.txt is not a table of numbers"),
        ("data.txt", "1 2 3 4\n1 2 3\n", "data.txt is not a table of numbers"),
        ("n_splits.txt", "2.5\n", "must hold one whole number"),
        ("n_splits.txt", "5\n", "there is no index_train_2.txt"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(folder, file, text, said):
    broken(folder / "yacht", file, text)
    with pytest.raises(DataError, match=said):
        uci.load(folder, "yacht")


def test_missing_index_files_are_named(folder):
    (folder / "yacht" / "index_test_0.txt").unlink()
    with pytest.raises(DataError, match=r"there is no index_test_0\.txt.*copied whole"):
        uci.load(folder, "yacht")
    for path in (folder / "yacht").glob("index_t*_*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="has no splits"):
        uci.load(folder, "yacht")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none_are_found_where_they_matter(folder, value):
    data = rows(60).astype(str)
    data[4, 2] = value  # a column that nobody uses
    np.savetxt(folder / "yacht" / "data.txt", data, fmt="%s")
    uci.load(folder, "yacht")
    data[5, 3] = value
    np.savetxt(folder / "yacht" / "data.txt", data, fmt="%s")
    with pytest.raises(DataError, match=f"row 5, column 3 is {value}.*remove the row"):
        uci.load(folder, "yacht")


def test_a_row_in_both_parts_is_refused(folder):
    home = folder / "yacht"
    first = (home / "index_train_1.txt").read_text().split()[0]
    np.savetxt(home / "index_test_1.txt", [float(first)])
    with pytest.raises(DataError, match=f"row {first} is in the training and in the test part"):
        uci.load(folder, "yacht")


# -- training side by side -------------------------------------------------------------------------


def table_of(n=40, seed=0):
    data = rows(n, seed)
    train = tuple(np.arange(k, n - 6 + k) for k in range(3))
    return Table("toy", data[:, :2], data[:, 3], train, (np.arange(3),) * 3, 6)


@pytest.mark.parametrize("method", ["plain", "deep-ensemble", "evidential", "masksembles"])
def test_each_network_is_trained_as_alone(method):
    """With whole-set batches nothing is drawn, so a stack must equal its networks one by one."""
    table = table_of()
    network = protocol.converted(method, 2, 6)
    schedule = Schedule(steps=30, batch=1000, rate=0.02, clip=1.0)

    def job(k):
        return drawn(network, table, table.train[k], 0.01 * (k + 1), seed=k)

    stack = [job(k) for k in range(3)]
    assert fit_together(stack, table, schedule, np.random.default_rng(0)) == [True] * 3
    for k in range(3):
        alone = job(k)
        fit_together([alone], table, schedule, np.random.default_rng(k + 5))
        for name, value in alone.model.weights().items():
            np.testing.assert_allclose(
                stack[k].model.weights()[name], value, rtol=2e-3, atol=2e-4, err_msg=name
            )


@pytest.mark.parametrize("method", ["plain", "beta-gaussian", "quantiles", "evidential"])
def test_stacked_matrices_give_the_losses_and_gradients_of_the_mapped_network(method):
    table = table_of()
    network = protocol.converted(method, 2, 6)
    assert type(network) is MLP
    jobs = [drawn(network, table, table.train[k], 0.1, seed=k) for k in range(3)]
    networks = [job.model.network for job in jobs]
    index = torch.from_numpy(np.stack([part[:20] for part in table.train]))
    x, y = (torch.from_numpy(part.astype(np.float32))[index] for part in (table.x, table.y))
    decays = torch.tensor([0.0, 0.1, 1.0])
    found = []
    for quick in (True, False):
        _, learned = together._flat(networks)
        kept, shared = together._kept(networks, learned)
        if quick:
            losses = together._of_mlps(networks[0], kept, shared)(learned, x, y, decays)
        else:
            mapped = together._mapped(together._Loss(networks[0], Decayed()), shared)
            losses = mapped(learned, kept, x, y, decays)
        found.append([losses, *torch.autograd.grad(losses.sum(), list(learned.values()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["plain", *METHODS])
def test_every_method_trains_side_by_side_and_stays_reproducible(method):
    table = table_of()
    network = protocol.converted(method, 2, 6)
    schedule = Schedule(steps=5, batch=16, rate=0.02, clip=1.0)
    found = []
    for _ in range(2):
        jobs = [drawn(network, table, table.train[k], 0.01, seed=k) for k in range(2)]
        before = [job.model.weights() for job in jobs]
        assert all(fit_together(jobs, table, schedule, np.random.default_rng(0)))
        for job, start in zip(jobs, before, strict=True):
            after = job.model.weights()
            assert any(not np.array_equal(start[name], after[name]) for name in after)
            assert not job.model.network.training
        found.append([job.model.weights() for job in jobs])
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_a_network_that_diverges_leaves_its_neighbours_alone():
    table = table_of()
    network = protocol.converted("plain", 2, 6)
    schedule = Schedule(steps=20, batch=1000, rate=0.02, clip=1.0)
    jobs = [drawn(network, table, table.train[0], 0.01, seed=0) for _ in range(2)]
    with torch.no_grad():
        next(jobs[1].model.network.parameters()).fill_(math.nan)
    assert fit_together(jobs, table, schedule, np.random.default_rng(0)) == [True, False]
    assert all(np.isfinite(value).all() for value in jobs[0].model.weights().values())


def test_more_decay_gives_smaller_weights():
    table = table_of()
    network = protocol.converted("deep-ensemble", 2, 6)
    schedule = Schedule(steps=100, batch=1000, rate=0.02, clip=1.0)
    decays = (0.0, 0.01, 1.0)
    jobs = [drawn(network, table, table.train[0], decay, seed=0) for decay in decays]
    fit_together(jobs, table, schedule, np.random.default_rng(0))
    sizes = [
        sum(float((v**2).sum()) for k, v in job.model.weights().items() if k.endswith("weight"))
        for job in jobs
    ]
    assert sizes[0] > sizes[1] > 10 * sizes[2]


def test_the_decay_of_an_ensemble_is_the_mean_of_its_members():
    table = table_of()
    inputs = {"x": torch.from_numpy(table.x).float()}
    targets = {"y": torch.from_numpy(table.y).float()}
    plain = protocol.converted("deep-ensemble", 2, 6)
    ensemble = drawn(plain, table, table.train[0], 1.0, seed=0).model.network
    single = [ensemble.member(k) for k in range(ensemble.n_passes)]

    def held_down(network):
        with_, without = (
            float(Decayed(decay=decay).loss(network, inputs, targets).detach())
            for decay in (1.0, 0.0)
        )
        return with_ - without

    with folded(slice(0, len(single)), fold(inputs, len(single)), inputs):
        rows_, truths = fold(inputs, len(single)), fold(targets, len(single))
        with_, without = (
            float(Decayed(decay=decay).loss(ensemble.core, rows_, truths).detach())
            for decay in (1.0, 0.0)
        )
    expected = np.mean([held_down(member) for member in single])
    np.testing.assert_allclose(with_ - without, expected, rtol=1e-4)


# -- the choice of the decay -----------------------------------------------------------------------


def test_the_score_is_the_scaled_log_density_minus_ln_rmse():
    rng = np.random.default_rng(0)
    y = rng.normal(size=500)
    wide = Mixture.gaussian(np.zeros(500), np.full(500, 9.0))
    sigma = np.sqrt(np.mean(y**2))
    expected = -0.5 * np.log(2 * np.pi * sigma**2) - 0.5 - np.log(sigma)
    np.testing.assert_allclose(score(wide, y), expected, rtol=1e-6)


def test_a_quantile_table_is_scored_by_crps():
    levels = np.array([0.1, 0.5, 0.9])
    table = QuantileTable(levels, np.tile([-1.3, 0.0, 1.3], (200, 1)))
    y = np.random.default_rng(0).normal(size=200)
    calibrator = uci.search.calibrator_for(table)
    fitted = calibrator.apply(calibrator.fit(table, y), table)
    expected = -np.log(fitted.crps(y).mean()) - np.log(np.sqrt(np.mean(y**2)))
    np.testing.assert_allclose(score(table, y), expected)


def test_the_search_reads_the_training_part_alone():
    table = table_of(60)
    held = np.setdiff1d(np.arange(60), table.train[0])
    poisoned = table.y.copy()
    poisoned[held] = 1e9
    other = Table("toy", table.x, poisoned, table.train, table.test, 6)
    recipe = Recipe(epochs=10, decays=(0.01, 0.1), folds=2, repeats=2)
    found = [search(t, t.train[0], recipe, Seeds(3)) for t in (table, other)]
    assert found[0] == found[1]
    assert [one.decay for one in found[0]] == [0.01, 0.1]
    assert all(math.isfinite(one.single) and math.isfinite(one.mixed) for one in found[0])


def test_members_and_single_networks_may_choose_differently():
    candidates = [Candidate(0.003, 1.0, 3.0), Candidate(0.1, 2.0, 2.0)]
    assert best(candidates, mixed=True) == 0.003
    assert best(candidates, mixed=False) == 0.1
    decays = {
        name: protocol.decay_of(protocol.converted(name, 2, 6), candidates)
        for name in ("plain", *METHODS)
    }
    assert decays["plain"] == decays["gaussian"] == decays["evidential"] == 0.1
    assert decays["deep-ensemble"] == decays["mc-dropout"] == 0.003
    assert decays["bayesian"] == decays["moments"] == 0  # a prior of their own
    np.testing.assert_allclose(decays["quantiles"], 0.1 * protocol.PINBALL)


def test_parts_are_disjoint_and_together_everything():
    recipe = Recipe()
    for folds in (1, 4):
        parts = recipe.parts(83, np.random.default_rng(0), folds)
        assert len(parts) == folds
        for inside, outside in parts:
            np.testing.assert_array_equal(np.sort(np.append(inside, outside)), np.arange(83))
        if folds > 1:
            every = np.sort(np.concatenate([outside for _, outside in parts]))
            np.testing.assert_array_equal(every, np.arange(83))
    assert len(recipe.parts(100, np.random.default_rng(0))[0][1]) == 20


# -- the protocol ----------------------------------------------------------------------------------


def test_rows_have_every_figure_and_the_parquet_holds_them(folder, tmp_path):
    out = tmp_path / "out"
    found = run(folder, out, methods_named=("plain", "mc-dropout", "quantiles"))
    assert [(row["method"], row["split"]) for row in found] == [
        (method, split) for method in ("plain", "mc-dropout", "quantiles") for split in (0, 1)
    ]
    for row in found:
        assert row["set"] == "yacht"
        assert row["rmse"] > 0
        assert row["crps"] > 0
        assert 0 <= row["coverage_90"] <= 1
        assert row["factor"] > 0
        assert row["cpu_seconds"] > 0
        assert not row["diverged"]
    assert {row["knobs"] for row in found if row["method"] == "plain"} == {""}
    assert all(row["knobs"].startswith("rate 0.") for row in found if row["method"] == "mc-dropout")
    stored = pq.read_table(out / uci.PARQUET).to_pylist()
    key = ("set", "method", "split")
    assert sorted(stored, key=lambda r: [r[k] for k in key]) == sorted(
        found, key=lambda r: [r[k] for k in key]
    )


def test_the_test_part_changes_no_choice(folder, tmp_path):
    home = folder / "yacht"
    # Only split 0: in the other split these rows are trained on.
    (home / "n_splits.txt").write_text("1\n")
    before = run(folder, tmp_path / "one")
    data = rows(60)
    test = np.loadtxt(home / "index_test_0.txt").astype(int)
    data[test, 3] = -1000.0
    np.savetxt(home / "data.txt", data)
    after = run(folder, tmp_path / "two")
    assert after[0]["rmse"] > 100 * before[0]["rmse"]
    assert after[0]["decay"] == before[0]["decay"]
    assert after[0]["factor"] == before[0]["factor"]


def test_the_same_seed_gives_the_same_rows_and_another_does_not(folder, tmp_path):
    one, two = (run(folder, tmp_path / name) for name in ("a", "b"))
    for row, same in zip(one, two, strict=True):
        assert {**row, "cpu_seconds": 0} == {**same, "cpu_seconds": 0}
    other = run(folder, tmp_path / "c", recipe=Recipe(**{**vars(QUICK), "seed": 2}))
    assert other[0]["rmse"] != one[0]["rmse"]


def test_finished_rows_are_not_done_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(folder, out)
    fitted = []
    real = protocol.fit_together
    monkeypatch.setattr(protocol, "fit_together", lambda *a: fitted.append(a) or real(*a))
    assert run(folder, out) == first
    assert not fitted
    # A method that is added alone is trained, and a group with a missing row anew, as it was.
    both = run(folder, out, methods_named=("plain", "gaussian"))
    assert both[:2] == first
    assert len(fitted) == 2
    (out / "rows" / "yacht" / "plain-1.json").unlink()
    again = run(folder, out)
    for row, same in zip(first, again, strict=True):
        assert {**row, "cpu_seconds": 0} == {**same, "cpu_seconds": 0}


def test_rows_of_another_recipe_or_other_data_do_not_mix(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    with pytest.raises(ConfigError, match=r"holds a study with recipe = .*give another --out"):
        run(folder, out, recipe=Recipe(**{**vars(QUICK), "epochs": 13}))
    data = rows(60)
    data[0, 0] += 1e-6
    np.savetxt(folder / "yacht" / "data.txt", data)
    with pytest.raises(ConfigError, match=r"rows of another yacht.*have changed since"):
        run(folder, out)
    (out / "study.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        run(folder, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        run(folder, tmp_path / "full")


def test_unknown_methods_are_told_with_the_nearest():
    assert uci.methods() == ["plain", *METHODS]
    assert uci.methods(("laplace", "plain", "laplace")) == ["laplace", "plain"]
    with pytest.raises(ConfigError, match="no method 'deep-ensembel'; did you mean 'deep-ensemble"):
        uci.methods(("deep-ensembel",))


def test_a_diverged_training_is_a_row_without_figures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "fit_together", lambda jobs, *rest: [False for _ in jobs])
    found = run(folder, tmp_path / "out")
    assert all(row["diverged"] and row["rmse"] is None for row in found)
    (line,) = uci.summarise(found)
    assert (line["diverged"], line["rmse"], line["rmse_err"]) == (2, None, None)
    assert "diverged" in uci.as_text([line])
    assert uci.verdicts([line]) == []


def test_a_split_of_its_own_size_is_trained_beside_the_others(folder, tmp_path):
    home = folder / "yacht"
    train = np.loadtxt(home / "index_train_1.txt")
    np.savetxt(home / "index_train_1.txt", train[:-7])
    found = run(folder, tmp_path / "out", methods_named=("bayesian",))
    assert [row["diverged"] for row in found] == [False, False]


# -- the table -------------------------------------------------------------------------------------


def made(set_, method, values, figure="log_likelihood"):
    base = dict.fromkeys(protocol.FIGURES, 1.0)
    return [
        {
            "set": set_, "method": method, "split": k, **base, figure: value,
            "diverged": False, "cpu_seconds": 2.0,
        }
        for k, value in enumerate(values)
    ]  # fmt: skip


def test_means_have_the_standard_error_over_the_splits():
    (line,) = uci.summarise(made("yacht", "plain", [1.0, 2.0, 4.0]))
    np.testing.assert_allclose(line["log_likelihood"], 7 / 3)
    np.testing.assert_allclose(line["log_likelihood_err"], np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert (line["splits"], line["cpu_seconds"]) == (3, 6.0)
    (single,) = uci.summarise(made("yacht", "plain", [1.0]))
    assert single["log_likelihood_err"] is None


def test_a_density_of_zero_is_minus_infinity_in_words_and_none_in_numbers():
    y = np.array([0.0, 50.0])
    table = QuantileTable(np.array([0.1, 0.9]), np.tile([-1.0, 1.0], (2, 1)))
    found = protocol.figures(table, table, y)
    assert found["log_likelihood"] is None
    assert found["crps"] > 0
    (line,) = uci.summarise(made("yacht", "quantiles", [1.0, None]))
    assert line["log_likelihood"] is None
    assert "-inf" in uci.as_text([line])


def test_published_numbers_are_those_of_the_papers():
    # The four sets as METHODS of the project's requirements have them; the others spot-checked.
    four = {
        "bostonHousing": [(-2.57, 3.01), (-2.40, 2.90), (-2.41, 3.28)],
        "concrete": [(-3.16, 5.67), (-2.93, 4.82), (-3.06, 6.03)],
        "energy": [(-2.04, 1.80), (-1.21, 0.54), (-1.38, 2.09)],
        "yacht": [(-1.63, 1.02), (-1.25, 0.67), (-1.18, 1.58)],
    }
    for name, numbers in four.items():
        published = SETS[name].published
        assert [(f.log_likelihood, f.rmse) for f in published.values()] == numbers
        assert list(published) == [PBP, MCD, DE]
    assert set(SETS) == {*NINE, "YearPredictionMSD"}
    assert SETS["naval-propulsion-plant"].published[DE].log_likelihood == 5.63


@pytest.mark.parametrize(
    ("value", "behind", "holds", "words"),
    [
        (-1.00, -1.8, True, "better"),
        (-1.25, 0.7, True, "worse by 0.7 standard errors, within one"),
        (-1.40, 2.2, False, "worse by 2.2 standard errors"),
    ],
)
def test_the_best_of_ours_is_held_against_the_best_published(value, behind, holds, words):
    found = made("yacht", "laplace", [value - 0.1 * 3**0.5, value, value + 0.1 * 3**0.5])
    verdict = uci.verdicts(uci.summarise([*found, *made("yacht", "plain", [-9.0, -9.1])]))[0]
    assert (verdict.method, verdict.published, verdict.target) == (
        "laplace",
        f"{DE}, published",
        -1.18,
    )
    np.testing.assert_allclose(verdict.err, 0.1)
    np.testing.assert_allclose(verdict.behind, behind, atol=0.01)
    assert verdict.holds is holds
    assert uci.sentence(verdict).endswith(words)


def test_the_better_rmse_is_the_smaller_one():
    lines = uci.summarise(
        [
            *made("yacht", "laplace", [0.6, 0.8], "rmse"),
            *made("yacht", "plain", [1.5, 1.7], "rmse"),
        ]
    )
    verdict = next(v for v in uci.verdicts(lines) if v.figure == "rmse")
    assert (verdict.method, verdict.published, verdict.target) == (
        "laplace",
        f"{MCD}, published",
        0.67,
    )
    np.testing.assert_allclose(verdict.behind, 0.3)


def test_what_is_equal_as_printed_is_no_worse():
    """Naval's published RMSE is 0.00: nobody is better than that by more than rounding."""
    name = "naval-propulsion-plant"
    for value, behind, words in ((0.0011, 0, "equal as printed"), (0.0102, 102, "worse by 102.0")):
        found = made(name, "laplace", [value - 1e-4, value + 1e-4], "rmse")
        verdict = next(v for v in uci.verdicts(uci.summarise(found)) if v.figure == "rmse")
        np.testing.assert_allclose(verdict.behind, behind)
        assert verdict.holds is (behind == 0)
        assert words in uci.sentence(verdict)


def test_small_errors_keep_three_digits_and_log_likelihoods_two():
    (line,) = uci.summarise(made("naval-propulsion-plant", "laplace", [0.00101, 0.00103], "rmse"))
    line |= {"log_likelihood": 0.00889, "log_likelihood_err": 0.04827}
    text = uci.as_text([line])
    assert "0.01 ± 0.05" in text
    assert "0.00102 ± 0.00001" in text
    assert "log-likelihood: laplace 0.01 ± 0.05 against 5.63" in text
    assert "RMSE: laplace 0.0010 ± 0.0000 against 0.0000" in text


def test_methods_that_hold_in_both_figures_are_named():
    def line(method, log_likelihood, rmse):
        err = {"log_likelihood_err": 0.01, "rmse_err": 0.01}
        figures = {"log_likelihood": log_likelihood, "rmse": rmse}
        return {**uci.summarise(made("yacht", method, [1.0, 2.0]))[0], **figures, **err}

    lines = [line("laplace", -1.0, 0.5), line("plain", -1.0, 0.9), line("crps", -2.0, 0.5)]
    assert uci.hold_both(lines) == {"yacht": ["laplace"]}
    assert "yacht, both in one method: laplace" in uci.as_text(lines)
    assert uci.hold_both(lines[1:]) == {"yacht": []}
    assert uci.as_text(lines[1:]).endswith("both in one method: none")
    assert uci.as_json(lines)["hold_both"] == {"yacht": ["laplace"]}
    lines[0]["log_likelihood_err"] = lines[0]["log_likelihood"] = None
    assert uci.hold_both(lines) == {"yacht": []}


def test_an_own_set_has_a_table_and_no_verdict():
    lines = uci.summarise(made("mine", "plain", [1.0, 2.0]))
    assert uci.verdicts(lines) == []
    assert uci.as_text(lines).startswith("mine\n")
    assert "published" not in uci.as_text(lines)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """The command with a recipe of a few steps."""
    monkeypatch.setattr(uci, "Recipe", lambda seed: Recipe(**{**vars(QUICK), "seed": seed}))


def command(capsys, *arguments):
    code = cli.main(["uncertainty", "uci", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_prints_and_writes_the_table(folder, tmp_path, capsys, quick):
    out = tmp_path / "out"
    arguments = ("--data", folder, "--methods", "plain,gaussian", "--out", out, "--workers", 1)
    code, shown, told = command(capsys, *arguments)
    assert code == 0
    for words in ("yacht", "gaussian", f"{MCD}, published", "-1.25 ± 0.01", "0.67 ± 0.05", "±"):
        assert words in shown
        assert words in (out / "uci.txt").read_text()
    assert "yacht, RMSE: " in shown
    assert "weight decay: begins" in told
    assert "methods: done (4)" in told or "methods: 100 %" in told
    code, shown, told = command(capsys, *arguments, "--json")
    found = json.loads(shown)
    assert code == 0
    assert "begins" not in told  # nothing was left to do
    assert [line["method"] for line in found["methods"]] == ["plain", "gaussian"]
    assert {line["method"] for line in found["published"]} >= {f"{PBP}, published"}
    assert {v["figure"] for v in found["verdicts"]} == {"log_likelihood", "rmse"}
    assert all(isinstance(v["holds"], bool) for v in found["verdicts"])


def test_processes_give_the_rows_that_one_does(folder, tmp_path):
    one = run(folder, tmp_path / "one", methods_named=("plain", "gaussian"))
    two = run(folder, tmp_path / "two", methods_named=("plain", "gaussian"), workers=2)
    for row, same in zip(one, two, strict=True):
        row, same = ({**r, "cpu_seconds": 0} for r in (row, same))
        assert row.keys() == same.keys()
        for name, value in row.items():
            if isinstance(value, float):
                np.testing.assert_allclose(same[name], value, rtol=1e-4)
            else:
                assert same[name] == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sets", "yaht"), "there is no set 'yaht'"),
        (("--methods", "laplase"), "did you mean 'laplace'"),
        (("--workers", "0"), "--workers"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_line(folder, tmp_path, capsys, arguments, said):
    code, shown, told = command(capsys, "--data", folder, "--out", tmp_path / "o", *arguments)
    assert code == 2
    assert said in told
    assert shown == ""
    assert not (tmp_path / "o").exists()


def test_bad_data_are_exit_code_2_and_told_as_json_too(folder, tmp_path, capsys):
    (folder / "yacht" / "index_target.txt").unlink()
    code, shown, told = command(capsys, "--data", folder, "--out", tmp_path / "o", "--json")
    assert code == 2
    assert "there is no index_target.txt" in told
    assert json.loads(shown)["kind"] == "DataError"
