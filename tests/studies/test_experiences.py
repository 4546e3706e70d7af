"""Experiences: which rows, in what order, the same by seed, and nothing of the test in training."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, matrix
from stillfit.sensing.environments import Wearing
from stillfit.sensing.recordings import ACTIVITIES
from stillfit.sensing.windows import Windows
from stillfit.studies.continual_metrics import last_class
from stillfit.studies.experiences import (
    ELECTRICITY,
    PermutedImages,
    activity,
    electricity_rows,
    images,
    prequential_blocks,
    split_images,
)

# Files that are not ours to ship: where STILLFIT_DATA says, or in a folder beside the code.
PLACES = [
    Path(os.environ.get("STILLFIT_DATA", "data")),
    *(parent / "shared/data" for parent in Path(__file__).parents[2:4]),
]


def real(name):
    found = next((place / name for place in PLACES if (place / name).is_file()), None)
    if found is None:
        pytest.skip(f"{name} is not here: set STILLFIT_DATA to its folder")
    return found


def arrays(train=60, test=20, side=4, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (train, side, side)).astype(np.uint8),
        "y_train": (np.arange(train) % classes).astype(np.uint8),
        "x_test": rng.integers(0, 256, (test, side, side)).astype(np.uint8),
        "y_test": (np.arange(test) % classes).astype(np.uint8),
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    np.savez(path, **arrays())
    return images(path)


def same(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])
    np.testing.assert_array_equal(one.targets["y"], other.targets["y"])


def test_pixels_are_between_0_and_1_and_in_their_order(tiny):
    raw = arrays()
    np.testing.assert_allclose(tiny.x_train, raw["x_train"].reshape(60, 16) / 255, atol=1e-7)
    assert tiny.x_train.dtype == np.float32 and tiny.classes == tuple(range(10))


def test_split_deals_every_row_once(tiny):
    parts = split_images(tiny, seed=3)
    assert len(parts) == 5
    seen = np.concatenate([np.unique(part.train.targets["y"]) for part in parts])
    assert sorted(seen) == list(range(10))
    for part in parts:
        assert set(part.test.targets["y"]) == set(part.train.targets["y"])
        named = {int(label) for label in part.name.removeprefix("classes ").split("+")}
        assert named == set(part.test.targets["y"].tolist())
        assert set(part.train.conditions) == {part.name}
    rows = np.concatenate([part.train.inputs["x"] for part in parts])
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], tiny.x_train[np.lexsort(tiny.x_train.T)]
    )
    assert sum(len(part.test) for part in parts) == 20
    ids = np.concatenate([s.ids for part in parts for s in (part.train, part.test)])
    assert len(np.unique(ids)) == 80


def test_rows_keep_their_class(tiny):
    for part in split_images(tiny, seed=1, classes=range(10)):
        for x, y in zip(part.train.inputs["x"], part.train.targets["y"], strict=True):
            row = int(np.flatnonzero((tiny.x_train == x).all(1))[0])
            assert tiny.y_train[row] == y


def test_a_seed_makes_the_split_and_the_classes_may_be_given(tiny):
    one, again, other = (split_images(tiny, seed=s) for s in (1, 1, 2))
    for a, b in zip(one, again, strict=True):
        assert a.name == b.name
        same(a.train, b.train)
        same(a.test, b.test)
    assert [a.name for a in one] != [b.name for b in other]
    given = split_images(tiny, seed=1, classes=range(10), experiences=2)
    assert [a.name for a in given] == ["classes 0+1+2+3+4", "classes 5+6+7+8+9"]


def test_splits_that_cannot_be_are_refused(tiny):
    with pytest.raises(ConfigError, match="10 classes cannot be dealt evenly to 3 experiences"):
        split_images(tiny, seed=1, experiences=3)
    with pytest.raises(ConfigError, match=r"classes must name each of .* once, got \(0, 1\)"):
        split_images(tiny, seed=1, classes=(0, 1))


def test_permutations_move_pixels_and_nothing_else(tiny):
    parts = PermutedImages(tiny, seed=5, experiences=3)
    assert len(parts) == 3
    same(parts[0].test, split_images(tiny, seed=0, experiences=1)[0].test)  # pixels as they are
    for number, part in enumerate(parts):
        rows = part.train.ids - number * 80
        assert sorted(rows) == list(range(60))
        np.testing.assert_array_equal(part.train.targets["y"], tiny.y_train[rows])
        learned = part.train.inputs["x"]
        np.testing.assert_array_equal(np.sort(learned, 1), np.sort(tiny.x_train[rows], 1))
    # One permutation per experience, the same for training and test rows.
    first, second = parts[0].test.inputs["x"], parts[1].test.inputs["x"]
    order = [int(np.flatnonzero((first == column[:, None]).all(0))[0]) for column in second.T]
    assert sorted(order) == list(range(16)) and order != list(range(16))
    rows = parts[1].train.ids - 80
    np.testing.assert_array_equal(parts[1].train.inputs["x"], tiny.x_train[rows][:, order])
    third = parts[2].test.inputs["x"]
    assert not np.array_equal(second, third)


def test_permuted_experiences_are_a_sequence_and_the_same_whenever_asked(tiny):
    parts = PermutedImages(tiny, seed=5, experiences=3)
    same(parts[-1].train, list(parts)[2].train)
    same(parts[1:][0].train, parts[1].train)
    longer = PermutedImages(tiny, seed=5, experiences=7)
    assert longer[2].train.inputs["x"].tobytes() == parts[2].train.inputs["x"].tobytes()
    with pytest.raises(IndexError, match="there are 3 experiences, got index 3"):
        parts[3]
    with pytest.raises(ConfigError, match="at least 1 experience, got 0"):
        PermutedImages(tiny, seed=5, experiences=0)


def test_experiences_feed_the_plain_task(tiny):
    part = split_images(tiny, seed=3)[0]
    task = Classification(features=("x",), classes=10)
    network = task.fresh(MLP(16, [4], 10), part.train, 0)
    answer = network(torch.from_numpy(matrix(part.train.inputs, ("x",))))
    assert answer.shape == (len(part.train), 10)


def written(tmp_path, **changes):
    path = tmp_path / "bad.npz"
    np.savez(path, **{k: v for k, v in {**arrays(), **changes}.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"y_test": None}, DataError, "lacks y_test; it holds x_train, y_train, x_test: are its"),
        ({"x_train": np.zeros((60, 16), np.uint8)}, ShapeError, r"must be uint8 of shape \(n, hei"),
        ({"x_train": np.zeros((60, 4, 4))}, ShapeError, r"got float64 \(60, 4, 4\)"),
        ({"y_train": np.zeros(59, np.uint8)}, ShapeError, r"got uint8 \(59,\) for 60 images"),
        ({"y_train": np.zeros(60)}, ShapeError, r"one whole number per image, got float64"),
        ({"x_test": np.zeros((20, 5, 5), np.uint8)}, ShapeError, r"of \(5, 5\) to test on"),
        ({"y_test": np.array([None] * 20)}, DataError, "files that need pickle are not read"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        images(written(tmp_path, **changes))


def test_what_is_no_npz_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*; give the path of an npz file"):
        images(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="is no npz file of plain arrays"):
        images(tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="is a single array, not an npz file of x_train"):
        images(tmp_path / "single.npy")


def test_the_real_images_split_as_published():
    data = images(real("mnist.npz"))
    parts = split_images(data, seed=1, classes=range(10))
    assert [len(part.train) for part in parts] == [12665, 12089, 11263, 12183, 11800]
    assert sum(len(part.test) for part in parts) == 10_000 and data.x_train.max() == 1.0


ROWS = [(i / 48, 0.1 * i, 0.2, 0.003, 0.4, 0.5, int(i % 5 > 2)) for i in range(10)]


def table(tmp_path, rows):
    path = tmp_path / "elec.csv"
    lines = [",".join([*ELECTRICITY, "class"]), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_electricity_is_read_in_order_of_time(tmp_path):
    rows = electricity_rows(table(tmp_path, ROWS))
    np.testing.assert_allclose(rows.inputs["nswprice"], 0.1 * np.arange(10), atol=1e-6)
    np.testing.assert_array_equal(rows.targets["y"], [int(i % 5 > 2) for i in range(10)])
    assert rows.targets["y"].dtype == np.int64 and tuple(rows.inputs) == ELECTRICITY
    np.testing.assert_array_equal(rows.times, 1800.0 * np.arange(10))


def test_prequential_blocks_test_what_they_then_learn(tmp_path):
    rows = electricity_rows(table(tmp_path, ROWS))
    parts = prequential_blocks(rows, size=4)
    assert [part.name for part in parts] == ["rows 0 to 3", "rows 4 to 7", "rows 8 to 9"]
    assert all(part.train is part.test for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.train.ids for part in parts]), rows.ids)
    with pytest.raises(ConfigError, match="at least 1 row, got size = 0"):
        prequential_blocks(rows, size=0)


def test_a_row_of_electricity_without_its_class_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"column 'class' of .* is empty in row 3; every row needs"):
        electricity_rows(table(tmp_path, [*ROWS[:3], (*ROWS[3][:6], ""), *ROWS[4:]]))


def test_the_last_class_of_the_real_table_is_right_in_85_percent():
    rows = electricity_rows(real("electricity.csv"))
    assert len(rows) == 45_312
    assert 1 - last_class(rows.targets["y"]).mean() == pytest.approx(0.8533, abs=5e-5)


def test_wearers_are_experiences():
    """Four sessions of one wearer on two devices, of which one is held out on both."""
    rng = np.random.default_rng(0)
    n = 80
    start = np.tile(np.repeat(100.0 * np.arange(4), 10) + np.tile(np.arange(10.0), 4), 2)
    windows = Windows(
        raw=rng.normal(size=(n, 6, 50)).astype(np.float32),
        activity=np.tile(np.arange(5), 16),
        subject=np.zeros(n, np.int64),
        device=np.repeat([0, 1], 40),
        start=start,
        end=start + 0.49,
        rate=100.0,
        channels=("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"),
        activities=ACTIVITIES,
        subjects=("a",),
        devices=("sp", "sw"),
    )
    parts = activity(Wearing(windows=windows))
    assert [part.name for part in parts] == ["a/sp", "a/sw"]
    assert [(len(part.train), len(part.test)) for part in parts] == [(30, 10)] * 2
