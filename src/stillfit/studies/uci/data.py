"""The folder layout of the UCI regression benchmark: a table, its columns, and fixed splits.

    FOLDER/NAME/data.txt                one row per example, numbers with white space between
    FOLDER/NAME/index_features.txt      columns that are inputs, from 0
    FOLDER/NAME/index_target.txt        the column that is the target
    FOLDER/NAME/index_train_K.txt       rows of the training part of split K = 0, 1, ..
    FOLDER/NAME/index_test_K.txt        rows of its test part
    FOLDER/NAME/n_splits.txt            optional: how many splits there are
    FOLDER/NAME/n_hidden.txt            optional: hidden units

All may lie in FOLDER/NAME/data instead. Source: Hernandez-Lobato and Adams 2015, arXiv:1502.05336,
who fixed the protocol; the layout is that of Gal and Ghahramani 2016, arXiv:1506.02142.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.predictive import Floats
from stillfit.core.tables import did_you_mean
from stillfit.studies.uci.published import SETS

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """One set of the benchmark. `x`: (n, features), `y`: (n,), `train`, `test`: rows per split.

    `hidden`: units of the one hidden layer. `digest`: SHA-256 of what the splits hold.
    """

    name: str
    x: Floats
    y: Floats
    train: tuple[Rows, ...]
    test: tuple[Rows, ...]
    hidden: int

    @property
    def splits(self) -> int:
        return len(self.train)

    @functools.cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for part in (self.x, self.y, *self.train, *self.test):
            digest.update(str(part.shape).encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def examples(self, rows: Rows) -> Examples:
        """Rows as labelled events: input `x`, target `y`."""
        n = len(rows)
        inputs, targets = {"x": self.x[rows].astype(np.float32)}, {"y": self.y[rows]}
        return Examples(rows, inputs, targets, np.zeros(n), np.full(n, "all"))


def find(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """The sets under `folder`: all of them, or those of the (short) names, in their order."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; --data is the folder that holds the sets")
    there = sorted(path.name for path in folder.iterdir() if _home(path) is not None)
    if not there:
        raise DataError(
            f"{folder} holds no set: none of its folders has a data.txt; "
            "--data is the folder above bostonHousing, concrete, .."
        )
    if not names:
        return there
    short = {SETS[name].short: name for name in there if name in SETS}
    chosen = []
    for name in names:
        full = short.get(name, name)
        if full not in there:
            raise ConfigError(
                f"there is no set {name!r} in {folder}{did_you_mean(name, {*there, *short})}"
            )
        chosen.append(full)
    return list(dict.fromkeys(chosen))


def _home(path: Path) -> Path | None:
    return next((home for home in (path, path / "data") if (home / "data.txt").is_file()), None)


def load(folder: Path, name: str) -> Table:
    """Read a set and check it: a row that cannot be used is a `DataError` with its place."""
    home = _home(folder / name)
    if home is None:
        raise DataError(f"{folder / name} has no data.txt; is it the folder of a set?")
    table = _numbers(home / "data.txt")
    if table.ndim != 2:
        raise DataError(f"{home / 'data.txt'} must hold rows of two or more columns")
    n, columns = table.shape
    features = _indices(home / "index_features.txt", columns, "column")
    target = _indices(home / "index_target.txt", columns, "column")
    if len(target) != 1:
        raise DataError(f"{home / 'index_target.txt'} must name one column, got {list(target)}")
    if target[0] in features:
        raise DataError(f"{home}: column {target[0]} is the target and a feature at once")
    used = np.append(features, target)
    bad = np.argwhere(~np.isfinite(table[:, used]))
    if len(bad):
        row, place = bad[0]
        raise DataError(
            f"{home / 'data.txt'}: row {row}, column {used[place]} is {table[row, used[place]]}, "
            "which no network can learn from; remove the row, and make its splits anew"
        )
    train, test = [], []
    for split in range(_splits(home)):
        mine = _indices(home / f"index_train_{split}.txt", n, "row")
        other = _indices(home / f"index_test_{split}.txt", n, "row")
        shared = np.intersect1d(mine, other)
        if len(shared):
            raise DataError(
                f"{home}: row {shared[0]} is in the training and in the test part of split "
                f"{split}; a test on trained rows proves nothing"
            )
        train.append(mine)
        test.append(other)
    return Table(
        name, table[:, features], table[:, target[0]], tuple(train), tuple(test), _hidden(home)
    )


def _splits(home: Path) -> int:
    """Splits from 0 on, as many as n_splits.txt says, or as there are index files."""
    stated = home / "n_splits.txt"
    if stated.is_file():
        return _whole(stated)
    numbers = {
        int(tail)
        for path in home.glob("index_*_*.txt")
        if (tail := path.stem.rpartition("_")[2]).isdigit()
    }
    if not numbers:
        raise DataError(f"{home} has no splits: index_train_0.txt and index_test_0.txt are missing")
    return max(numbers) + 1


def _hidden(home: Path) -> int:
    stated = home / "n_hidden.txt"
    if stated.is_file():
        return _whole(stated)
    name = home.parent.name if home.name == "data" else home.name
    return SETS[name].hidden if name in SETS else 50


def _whole(path: Path) -> int:
    values = _numbers(path)
    if values.size != 1 or not np.all(values == np.round(values)) or not np.all(values >= 1):
        raise DataError(f"{path} must hold one whole number of 1 or more")
    return int(values.flat[0])


def _indices(path: Path, below: int, what: str) -> Rows:
    """Distinct whole numbers from 0 to `below` - 1."""
    values = np.atleast_1d(_numbers(path))
    if not values.size:
        raise DataError(f"{path} is empty")
    wrong = (values != np.round(values)) | (values < 0) | (values >= below)
    if values.ndim != 1 or np.any(wrong):
        bad = values[wrong].flat[0] if np.any(wrong) else values.shape
        raise DataError(
            f"{path} names the {what} {bad:g}, but data.txt has the {what}s 0 to {below - 1}"
            if np.any(wrong)
            else f"{path} must hold one number per line"
        )
    found = values.astype(np.int64)
    if len(np.unique(found)) < len(found):
        raise DataError(f"{path} names a {what} twice")
    return found


def _numbers(path: Path) -> Floats:
    if not path.is_file():
        raise DataError(f"there is no {path.name} in {path.parent}; is the set copied whole?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty file: said in our own words
        try:
            return np.loadtxt(path, dtype=np.float64)
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a table of numbers: {error}") from None
