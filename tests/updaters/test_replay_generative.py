"""The density of generative replay: exact sums, nothing fades; and what is replayed from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.core.arrays import Ragged, n_bytes
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Schedule
from stillfit.updaters.references import FineTune
from stillfit.updaters.replay import GenerativeReplay
from stillfit.updaters.replay.density import Density

SHORT = Schedule(steps=10, batch=40, rate=0.01)
COVARIANCE = np.array([[2.0, 0.9, -0.4], [0.9, 1.0, 0.1], [-0.4, 0.1, 0.5]])


def rng(seed=0):
    return np.random.default_rng(seed)


def events(x, y, first=0, conditions="all"):
    n = len(x)
    names = np.full(n, conditions) if isinstance(conditions, str) else np.asarray(conditions)
    return Examples(first + np.arange(n), {"x": x}, {"y": y}, np.zeros(n), names)


def gaussian(n, seed=0, mean=(1.0, -2.0, 5.0)):
    return rng(seed).multivariate_normal(mean, COVARIANCE, n)


def learned(parts, rank=3, components=1, by_condition=True, seed=0):
    density, generator = Density(rank, components, by_condition), rng(seed)
    for part in parts:
        density = density.learn(part, generator)
    return density


# -- the density ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[500], [1, 499], [3, 200, 1, 1, 295], [10] * 50])
@pytest.mark.parametrize("rank", [0, 3, 7])
def test_the_sums_are_those_of_all_rows_however_they_came(cuts, rank):
    x = gaussian(500)
    ends = np.cumsum(cuts)
    parts = [
        events(x[a:b], np.zeros(b - a, np.int64)) for a, b in zip(ends - cuts, ends, strict=True)
    ]
    (group,) = learned(parts, rank).groups.values()
    assert group.n.tolist() == [500]
    np.testing.assert_allclose(group.mean[0], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(group.square[0], x.var(0) * 500, rtol=1e-11)
    np.testing.assert_array_equal(group.low, x.min(0))
    np.testing.assert_array_equal(group.high, x.max(0))
    if rank:
        scatter = group.factor[0].T @ group.factor[0]
        np.testing.assert_allclose(scatter, np.cov(x.T, ddof=0) * 500, rtol=1e-4, atol=1e-2)


def test_a_low_rank_keeps_the_largest_directions_and_every_variance():
    generator = rng(1)
    basis = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    spread = np.array([9.0, 4.0] + [0.1] * 10)
    x = generator.normal(size=(3000, 12)) * spread @ basis
    parts = [events(part, np.zeros(len(part), np.int64)) for part in np.array_split(x, 9)]
    density = learned(parts, rank=2)
    (group,) = density.groups.values()
    largest = np.linalg.eigvalsh(np.cov(x.T) * 2999)[-2:]
    np.testing.assert_allclose((group.factor[0] ** 2).sum(1)[::-1], largest, rtol=1e-3)
    drawn = density.sample({("all", "0"): 20_000}, rng(2)).inputs["x"]
    np.testing.assert_allclose(drawn.var(0), x.var(0), rtol=0.06)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=0.04 * 81)


def test_what_is_drawn_has_the_mean_and_covariance_of_what_was_seen():
    x = gaussian(4000)
    density = learned([events(x, np.zeros(4000, np.int64))])
    made = density.sample({("all", "0"): 20_000}, rng(3))
    drawn = made.inputs["x"]
    # Clipping to the range of 4000 rows takes 3 per mille of a variance.
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=4 * 1.5 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=0.08)
    assert (drawn >= x.min(0)).all()
    assert (drawn <= x.max(0)).all()
    assert (made.ids < 0).all()
    assert made.targets["y"].dtype == np.int64
    assert set(made.conditions) == {"all"}


def test_a_number_to_predict_is_drawn_jointly_with_its_inputs():
    x = rng(0).normal(size=3000)
    y = 2.0 * x + 1.0 + 0.3 * rng(1).normal(size=3000)
    density = learned([events(x, y)], rank=2)
    made = density.sample({("all",): 5000}, rng(2))
    slope, level = np.polyfit(made.inputs["x"], made.targets["y"], 1)
    assert slope == pytest.approx(2.0, abs=0.03)
    assert level == pytest.approx(1.0, abs=0.03)
    rest = made.targets["y"] - slope * made.inputs["x"] - level
    assert rest.std() == pytest.approx(0.3, abs=0.02)


def test_components_follow_a_density_that_one_gaussian_cannot():
    where = rng(0).integers(0, 3, 1500)
    x = np.array([-10.0, 0.0, 10.0])[where] + rng(1).normal(size=1500)
    part = events(x[:, None], np.zeros(1500, np.int64))

    def near(components):
        drawn = learned([part], 1, components).sample({("all", "0"): 4000}, rng(2)).inputs["x"]
        return (np.abs(drawn[:, 0, None] - [-10, 0, 10]).min(1) < 3).mean()

    assert near(3) > 0.98
    assert near(1) < 0.75


def test_components_are_earned_by_rows():
    x = gaussian(400)
    density, generator, numbers = Density(3, 5, True), rng(0), []
    for first in range(0, 400, 20):
        part = events(x[first : first + 20], np.zeros(20, np.int64), first)
        density = density.learn(part, generator)
        numbers.append(len(next(iter(density.groups.values())).n))
    assert numbers[:5] == [1, 1, 1, 1, 2]
    assert numbers[-1] == 5
    assert numbers == sorted(numbers)
    assert next(iter(density.groups.values())).rows == 400


def test_what_was_learned_of_a_group_stays_bit_for_bit():
    first = events(gaussian(300), np.zeros(300, np.int64), conditions="a")
    density = learned([first], components=3)
    before = density.to_arrays()
    later = density
    for k in range(1, 4):
        more = events(gaussian(200, k, (9.0, 9.0, 9.0)), np.full(200, k), 1000 * k, "b")
        later = later.learn(more, rng(k))
    for name, part in density.to_arrays().items():
        np.testing.assert_array_equal(part, before[name])
    one, other = density.groups["a", "0"], later.groups["a", "0"]
    assert one is other
    assert sorted(later.groups) == [("a", "0"), ("b", "1"), ("b", "2"), ("b", "3")]


def test_groups_are_conditions_and_classes_or_classes_alone():
    y = np.arange(90) % 3
    names = np.where(np.arange(90) < 45, "old", "new")
    part = events(gaussian(90), y, conditions=names)
    assert sorted(learned([part]).groups) == [(c, k) for c in ("new", "old") for k in "012"]
    alone = learned([part], by_condition=False)
    assert sorted(alone.groups) == [("all", k) for k in "012"]
    assert [alone.groups["all", k].rows for k in "012"] == [30, 30, 30]


def test_a_density_goes_through_arrays_and_goes_on_as_it_would_have():
    parts = [events(gaussian(150, k), np.arange(150) % 2, 150 * k) for k in range(3)]
    density = learned(parts[:2], components=2)
    flat = {name: part.copy() for name, part in density.to_arrays().items()}
    again = Density(3, 2, True).opened(flat)
    one, other = (d.learn(parts[2], rng(5)).to_arrays() for d in (density, again))
    assert set(one) == set(other)
    for name, part in one.items():
        np.testing.assert_array_equal(part, other[name])
    assert Density(3, 2, True).opened({}).groups == {}


def test_whole_numbers_images_and_types_come_out_as_they_went_in():
    n = 200
    drawn = rng(0)
    inputs = {
        "image": drawn.random((n, 4, 5)).astype(np.float32),
        "count": drawn.integers(3, 9, n).astype(np.int16),
        "flag": drawn.random(n) < 0.5,
    }
    targets = {"y": drawn.integers(0, 2, n).astype(np.uint8), "e": drawn.random(n)}
    part = Examples(np.arange(n), inputs, targets, np.zeros(n), np.full(n, "c"))
    made = learned([part], rank=4).sample({("c", "0"): 30, ("c", "1"): 20}, rng(1))
    for name, column in {**inputs, **targets}.items():
        found = {**made.inputs, **made.targets}[name]
        assert found.dtype == column.dtype, name
        assert found.shape == (50, *column.shape[1:])
        assert column.min() <= found.min()
        assert found.max() <= column.max()
    assert np.bincount(made.targets["y"]).tolist() == [30, 20]


def test_constant_columns_and_single_rows_are_densities_too():
    part = events(np.full((1, 3), 2.5), np.zeros(1, np.int64))
    density = learned([part, events(np.full((60, 3), 2.5), np.zeros(60, np.int64))], components=4)
    made = density.sample({("all", "0"): 9}, rng(0)).inputs["x"]
    np.testing.assert_array_equal(made, 2.5)
    single = learned([part]).sample({("all", "0"): 3}, rng(0))
    np.testing.assert_array_equal(single.inputs["x"], 2.5)
    assert len(density.sample({}, rng(0))) == 0


def test_memory_is_what_the_docstring_says_and_does_not_grow_with_events():
    x = gaussian(500)
    sizes = []
    updater = GenerativeReplay(rank=2, components=2, min_events=1)
    learner = {}
    for k in range(4):
        learner = updater.observe(learner, events(x, np.arange(500) % 2, 500 * k), rng=rng(k))
        sizes.append(n_bytes(learner))
    assert len(set(sizes)) == 1
    groups, d = 2, 3
    sums = groups * 2 * (8 + (16 + 2 * 4) * d) + groups * 2 * 8 * d
    assert sizes[0] == sums + len(learner["density/layout"])


# -- replay from it -------------------------------------------------------------------------------


TASK = Classification(features=("x",), classes=4)


def model(task=TASK, features=3):
    torch.manual_seed(0)
    outputs = 4 if isinstance(task, Classification) else 2
    return Model(MLP(features, [8], outputs).eval(), task, Architecture("mlp"))


def update(updater, serving, learner, fresh, seed=3):
    return updater.update(serving, learner, fresh, None, budget=Budget(), rng=rng(seed))


def two(n=200):
    old = events(gaussian(n), np.arange(n) % 2, conditions="old")
    fresh = events(gaussian(n, 1, (9.0, 9.0, 9.0)), 2 + np.arange(n) % 2, 1000, "new")
    return old, fresh


def test_without_a_mix_or_a_past_it_is_fine_tuning():
    old, fresh = two()
    serving = model()
    plain = update(FineTune(schedule=SHORT), serving, {}, fresh).model.weights()
    none = GenerativeReplay(schedule=SHORT, mix=0.0)
    learner = none.observe(none.begin(serving, old, rng=rng(0)), fresh, rng=rng(1))
    some = replace(none, mix=0.5)
    only = some.observe({}, fresh, rng=rng(1))
    for updater, state in ((none, learner), (some, {}), (some, only)):
        found = update(updater, serving, state, fresh).model.weights()
        assert all(np.array_equal(found[name], plain[name]) for name in plain)
    mixed = update(some, serving, learner, fresh).model.weights()
    assert not all(np.array_equal(mixed[name], plain[name]) for name in plain)


def test_what_is_made_up_is_what_came_before_in_the_shares_asked_for():
    old, fresh = two()
    rare = old.take(np.flatnonzero((np.arange(200) % 2 == 0) | (np.arange(200) < 40)))
    serving = model()
    base = GenerativeReplay(schedule=SHORT, samples=300)
    learner = base.observe(base.begin(serving, rare, rng=rng(0)), fresh, rng=rng(1))
    made, mix = base._made_up(serving, learner, fresh, rng(2))
    assert np.bincount(made.targets["y"]).tolist() == [150, 150]
    assert mix == 0.5
    seen, _ = replace(base, shares="seen")._made_up(serving, learner, fresh, rng(2))
    assert np.bincount(seen.targets["y"]).tolist() == [250, 50]
    # Half of each class of the new condition came before this update: they count as the past.
    part = fresh.take(np.flatnonzero(fresh.targets["y"] == 2))
    made, mix = replace(base, mix="groups")._made_up(serving, learner, part, rng(2))
    assert np.bincount(made.targets["y"]).tolist() == [100, 100, 0, 100]
    assert mix == 3 / 4


def test_labels_may_be_what_the_serving_model_says():
    old, fresh = two()
    serving = model()
    updater = GenerativeReplay(schedule=SHORT, samples=200, labels="model")
    learner = updater.begin(serving, old, rng=rng(0))
    made, _ = updater._made_up(serving, learner, fresh, rng(2))
    said = serving.predict(made.inputs)[0].probabilities.argmax(1)
    np.testing.assert_array_equal(made.targets["y"], said)
    assert made.targets["y"].dtype == old.targets["y"].dtype
    task = Regression(features=("x",))
    numbers = model(task)
    floats = replace(old, targets={"y": old.inputs["x"][:, 0]})
    learner = updater.begin(numbers, floats, rng=rng(0))
    made, _ = updater._made_up(
        numbers, learner, replace(fresh, targets={"y": np.ones(200)}), rng(2)
    )
    predictive, _ = numbers.predict(made.inputs)
    pulls = (made.targets["y"] - predictive.mean) / predictive.std
    assert abs(pulls.mean()) < 0.3
    assert pulls.std() == pytest.approx(1.0, abs=0.2)


# -- bad input ------------------------------------------------------------------------------------


def test_ragged_inputs_are_refused_with_the_way_out():
    ids = np.arange(3)
    tracks = Ragged.from_counts(np.zeros(6), np.array([1, 2, 3]))
    part = Examples(ids, {"pt": tracks}, {"z0": ids * 1.0}, ids * 1.0, np.full(3, "all"))
    with pytest.raises(
        ConfigError, match=r"the column 'pt' is ragged: .* use replay or dark replay"
    ):
        GenerativeReplay().begin(model(), part, rng=rng(0))


def test_too_many_groups_are_taken_for_numbers():
    part = events(gaussian(1001), np.arange(1001))
    with pytest.raises(DataError, match=r"make 1001 groups, more than 1000; whole numbers are tak"):
        learned([part])


def test_other_columns_texts_and_class_vectors_are_errors():
    density = learned([events(gaussian(9), np.zeros(9, np.int64))])
    with pytest.raises(ShapeError, match=r"is of x float64\[3\], y \(class\) and the events that"):
        density.learn(events(gaussian(9)[:, :2], np.zeros(9, np.int64)), rng(0))
    with pytest.raises(DataError, match=r"a density is of numbers; 'x' holds <U1"):
        learned([events(np.array(["a", "b"]), np.zeros(2))])
    with pytest.raises(ShapeError, match=r"target 'y' holds classes of shape \(2,\) per event"):
        learned([events(gaussian(2), np.zeros((2, 2), np.int64))])


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"mix": 2.0}, r"mix must lie in 0 to 1, got 2\.0"),
        ({"mix": "half"}, r"mix must be a number in 0 to 1 or 'groups', got 'half'"),
        ({"samples": 0}, r"samples must be 1 or more, got 0; it sizes the density"),
        ({"rank": -1}, r"rank must be 0 or more, got -1"),
        ({"components": 0}, r"components must be 1 or more, got 0"),
        ({"shares": "some"}, r"shares must be 'equal' or 'seen', got 'some'"),
        ({"labels": "x"}, r"labels must be 'density' or 'model', got 'x'"),
        ({"by": "y"}, r"by must be 'condition' or '', got 'y'"),
    ],
)
def test_knobs_without_sense_are_refused(knobs, text):
    with pytest.raises(ConfigError, match=text):
        GenerativeReplay(**knobs)
