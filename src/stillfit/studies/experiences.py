"""Sequences of experiences, each with rows to learn from and rows held out, from one seed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Block, Examples, Labels
from stillfit.core.seeds import Seeds
from stillfit.sensing.environments import Split, Wearing
from stillfit.streams.tables import Table

IMAGES = ("x_train", "y_train", "x_test", "y_test")
ELECTRICITY = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
HALF_HOUR = 1800.0


@dataclass(frozen=True)
class Experience:
    """One condition as a learner meets it: `train` comes once, `test` is asked again and again."""

    name: str
    train: Examples
    test: Examples


@dataclass(frozen=True)
class Images:
    """Labelled grey images: `x` float32 in 0 to 1, shape (n, pixels); `y` int64, shape (n,)."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes of the training rows, in order."""
        return tuple(int(label) for label in np.unique(self.y_train))


def images(path: Path) -> Images:
    """Images from an npz file like the public mnist.npz, pixels divided by 255.

    The file must hold `x_train`, `x_test` (uint8, (n, height, width)) and `y_train`, `y_test`
    (whole numbers, (n,)). It is read without pickle. Errors: `ConfigError` for no such file,
    `DataError` and `ShapeError` for one that is something else.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no file {path}; give the path of an npz file such as mnist.npz"
        )
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, not an npz file of {', '.join(IMAGES)}")
        with stored:
            missing = [name for name in IMAGES if name not in stored.files]
            if missing:
                raise DataError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(stored.files)}: "
                    "are its arrays named as in the public mnist.npz?"
                )
            arrays = {name: stored[name] for name in IMAGES}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} is no npz file of plain arrays: {error}; files that need pickle are not read"
        ) from None
    for part in ("train", "test"):
        _check_images(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise ShapeError(
            f"{path} has images of {arrays['x_train'].shape[1:]} to train on and of "
            f"{arrays['x_test'].shape[1:]} to test on"
        )
    return Images(
        _scaled(arrays["x_train"]),
        arrays["y_train"].astype(np.int64),
        _scaled(arrays["x_test"]),
        arrays["y_test"].astype(np.int64),
    )


def _check_images(path: Path, part: str, x: Array, y: Array) -> None:
    if x.ndim != 3 or x.dtype != np.uint8:
        raise ShapeError(
            f"x_{part} of {path} must be uint8 of shape (n, height, width), got {x.dtype} {x.shape}"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(x) or not len(y):
        raise ShapeError(
            f"y_{part} of {path} must be one whole number per image, got {y.dtype} {y.shape} for "
            f"{len(x)} images"
        )


def _scaled(x: Array) -> NDArray[np.float32]:
    flat = x.reshape(len(x), -1).astype(np.float32)
    flat /= np.float32(255)
    return flat


def split_images(
    data: Images, *, seed: int, experiences: int = 5, classes: Sequence[int] = ()
) -> list[Experience]:
    """Split MNIST: the classes come in groups, one group per experience, class-incremental.

    `classes`: their order; empty: drawn with `seed`. Targets keep their number (one head for all
    classes, no task id). Training rows are shuffled with `seed`; test rows are those of the
    experience's classes. Columns: `"x"` (n, pixels), target `"y"`. Memory: a copy of `data`.
    Source: Zenke et al. 2017, arXiv:1703.04200; class-incremental as in van de Ven and Tolias
    2019, arXiv:1904.07734.
    """
    every = data.classes
    order = list(classes) or [int(c) for c in Seeds(seed).rng("classes").permutation(every)]
    if sorted(order) != list(every):
        raise ConfigError(f"classes must name each of {every} once, got {tuple(order)}")
    if experiences < 1 or len(order) % experiences:
        raise ConfigError(
            f"{len(order)} classes cannot be dealt evenly to {experiences} experiences"
        )
    each = len(order) // experiences
    found = []
    for number in range(experiences):
        group = order[number * each : (number + 1) * each]
        name = "classes " + "+".join(map(str, group))
        rows = np.flatnonzero(np.isin(data.y_train, group))
        rows = Seeds(seed).rng("rows", number).permutation(rows)
        test = np.flatnonzero(np.isin(data.y_test, group))
        found.append(_images_experience(data, name, number, rows, test, None))
    return found


class PermutedImages(Sequence[Experience]):
    """Permuted MNIST: all classes in each experience, the pixels in another order each time.

    The first experience has the pixels as they are, each further one a permutation of its own
    drawn with `seed`; training rows are shuffled. Domain-incremental: the classes stay. Each
    experience is made when it is asked for (0.3 s for MNIST) and not kept, since all ten together
    would take 2 GB.
    Source: Goodfellow et al. 2013, arXiv:1312.6211; Kirkpatrick et al. 2017, arXiv:1612.00796.
    """

    def __init__(self, data: Images, *, seed: int, experiences: int = 10) -> None:
        if experiences < 1:
            raise ConfigError(f"permuted images need at least 1 experience, got {experiences}")
        self._data, self._seed, self._n = data, seed, experiences

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Experience: ...
    @overload
    def __getitem__(self, index: slice) -> list[Experience]: ...
    def __getitem__(self, index: int | slice) -> Experience | list[Experience]:
        if isinstance(index, slice):
            return [self._made(number) for number in range(*index.indices(self._n))]
        number = index + self._n if index < 0 else index
        if not 0 <= number < self._n:
            raise IndexError(f"there are {self._n} experiences, got index {index}")
        return self._made(number)

    def _made(self, number: int) -> Experience:
        data, seeds = self._data, Seeds(self._seed)
        pixels = None
        if number:
            pixels = seeds.rng("pixels", number).permutation(data.x_train.shape[1])
        rows = seeds.rng("rows", number).permutation(len(data.y_train))
        test = np.arange(len(data.y_test))
        return _images_experience(data, f"permutation {number}", number, rows, test, pixels)


def _images_experience(
    data: Images,
    name: str,
    number: int,
    rows: NDArray[np.int64],
    test: NDArray[np.int64],
    pixels: NDArray[np.int64] | None,
) -> Experience:
    """Ids are those of the row in the whole sequence, times the number of the experience."""
    many = len(data.y_train) + len(data.y_test)

    def side(
        x: NDArray[np.float32], y: NDArray[np.int64], at: NDArray[np.int64], base: int
    ) -> Examples:
        # `take` copies once into the right layout, where indexing both axes would be slow.
        chosen = x[at] if pixels is None else np.take(x[at], pixels, axis=1)
        ids = number * many + base + at
        return Examples(
            ids,
            {"x": chosen},
            {"y": y[at]},
            np.full(len(at), float(number)),
            np.full(len(at), name),
        )

    return Experience(
        name,
        side(data.x_train, data.y_train, rows, 0),
        side(data.x_test, data.y_test, test, len(data.y_train)),
    )


def activity(wearing: Wearing, *, split: Split | None = None) -> list[Experience]:
    """Wearers and devices as experiences, in the order and split of `sensing.environments`."""
    return [Experience(one.name, one.train, one.test) for one in wearing.environments(split)]


def electricity_rows(path: Path) -> Examples:
    """The Elec2 table in order of time: does the price of New South Wales rise (1) or fall (0)?

    Columns of the file: period (of the day), nswprice, nswdemand, vicprice, vicdemand, transfer,
    and class; each becomes a column of its own, the target is `"y"`. 45 312 half-hours of 1996 to
    1998; `times` count from the first. Neighbours are alike: predicting the last class is right
    in 85.33 % of rows (`continual_metrics.last_class`), which a learner must beat.
    Source: Harries 1999, UNSW-CSE-TR-9905; Gama et al. 2004, doi:10.1007/978-3-540-28645-5_29.
    """
    table = Table(
        path=path,
        inputs=ELECTRICITY,
        targets=("class",),
        vocabulary={"class": ("0", "1")},
        interval=HALF_HOUR,
        block=65536,
    )
    inputs: list[Block] = []
    labels: list[Labels] = []
    for event in table.events():
        if isinstance(event, Block):
            inputs.append(event)
        elif isinstance(event, Labels):
            labels.append(event)
    if not inputs:
        raise DataError(f"{path} holds no rows")
    ids = np.concatenate([block.ids for block in inputs])
    labelled = np.concatenate([label.ids for label in labels]) if labels else ids[:0]
    if len(labelled) < len(ids):
        missing = int(np.setdiff1d(ids, labelled)[0])
        raise DataError(f"column 'class' of {path} is empty in row {missing}; every row needs one")
    return Examples(
        ids,
        {
            name: np.concatenate([np.asarray(b.inputs[name]) for b in inputs])
            for name in ELECTRICITY
        },
        {"y": np.concatenate([np.asarray(label.targets["class"]) for label in labels])},
        ids * HALF_HOUR,
        np.full(len(ids), "all"),
    )


def prequential_blocks(rows: Examples, *, size: int = 336) -> list[Experience]:
    """Rows in order of time, `size` at a time (336 half-hours: a week), to test on, then to learn.

    `test` and `train` of an experience are the same rows: whoever reads them in this order has
    tested each row before it was learned from. Source: Gama et al. 2013,
    doi:10.1007/s10994-012-5320-9 (prequential evaluation).
    """
    if size < 1:
        raise ConfigError(f"a block needs at least 1 row, got size = {size}")
    found = []
    for first in range(0, len(rows), size):
        part = rows.take(slice(first, first + size))
        found.append(Experience(f"rows {first} to {first + len(part) - 1}", part, part))
    return found
