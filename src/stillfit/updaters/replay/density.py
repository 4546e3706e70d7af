"""A small density of events that learns on without forgetting: running sums, group by group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from stillfit.core.arrays import Array, Column, Ragged
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples

Floats = NDArray[np.float64]
MOST_GROUPS = 1000
ROWS_PER_COMPONENT = 50  # fewer rows than this do not earn a component of their own
TRIALS = 4  # rows tried for a seed, of which the one that leaves the smallest distances is taken
LLOYD = 8  # rounds; further ones moved hardly any row on images or tables


class Place(NamedTuple):
    """A column inside the vector of an event: where, and how it comes out again."""

    kind: str  # "inputs" or "targets"
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Group:
    """Running sums of one group's components, K of them, of vectors of d numbers.

    `n` (K,); `mean` (K, d); `square` (K, d): sums of squares about the mean; `factor` (K, r, d)
    float32: rows whose outer products add up to the scatter matrix, its r largest directions;
    `low`, `high` (d,): the range of all rows.
    """

    n: Floats
    mean: Floats
    square: Floats
    factor: NDArray[np.float32]
    low: Floats
    high: Floats

    def arrays(self) -> dict[str, Array]:
        return dict(vars(self))

    @property
    def rows(self) -> float:
        """Events behind it."""
        return float(self.n.sum())

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Rows (count, d), inside the range of what was seen."""
        which = rng.choice(len(self.n), count, p=self.n / self.n.sum())
        found = np.empty((count, self.mean.shape[1]))
        for k in np.unique(which).tolist():
            rows = np.flatnonzero(which == k)
            free = max(self.n[k] - 1, 1)
            factor = self.factor[k].astype(np.float64)
            rest = np.maximum(self.square[k] - (factor**2).sum(0), 0)
            x = self.mean[k] + rng.standard_normal((len(rows), len(factor))) @ factor / free**0.5
            noisy = np.flatnonzero(rest > 1e-6 * self.square[k])
            if len(noisy):
                drawn = rng.standard_normal((len(rows), len(noisy)))
                x[:, noisy] += drawn * np.sqrt(rest[noisy] / free)
            found[rows] = x
        return np.clip(found, self.low, self.high)


@dataclass(frozen=True)
class Density:
    """Gaussian mixtures of all numbers of an event, one per group; a value that only grows.

    A group is a condition (where `by_condition`) and the values of all targets that are whole
    numbers (classes); inputs and floating targets together are the vector whose density is
    kept, so a regression's target is drawn jointly with its inputs. Per component the sums that
    a Gaussian needs are kept: number, mean and variance of each number exactly, and of the
    covariance its `rank` largest directions, all where `rank` reaches the vector's length.

    Nothing ever fades: what was learned of a group stays, whatever comes later. Only new rows
    enter the sums, so a group's density does not depend on how its rows were cut into arrivals,
    but for rounding, the choice of components and (below full rank) of directions.
    Components: the nearest takes a row (k-means in units of each number's deviation, at least a
    tenth of its range, so that a nearly constant pixel does not decide); a group earns another
    for each 50 rows, up to `components`, seeded at rows far from those that it has.

    Cost: d^2 x rows per arrival for the directions, d^3 for large ones; memory: components x
    (16 + 4 rank) x d bytes per group.
    Source: updates of mean and scatter: Chan, Golub and LeVeque 1979, STAN-CS-79-773; of
    directions: Ross et al. 2008, doi:10.1007/s11263-007-0075-7; seeds: Arthur and Vassilvitskii
    2007 (greedy k-means++).
    """

    rank: int
    components: int
    by_condition: bool
    places: tuple[Place, ...] = ()
    classes: tuple[tuple[str, str], ...] = ()  # name and type of targets that make groups
    groups: Mapping[tuple[str, ...], Group] = field(default_factory=dict)

    def learn(self, examples: Examples, rng: np.random.Generator) -> Density:
        """The density that has seen `examples` too."""
        if not len(examples):
            return self
        places, classes = layout(examples)
        if self.places and (places, classes) != (self.places, self.classes):
            raise ShapeError(
                f"the density is of {_said(self.places, self.classes)} and the events that arrive "
                f"hold {_said(places, classes)}; was the feature list changed? begin the learner "
                "anew"
            )
        x = vectors(examples, places)
        good = np.asarray(np.isfinite(x).all(axis=1), np.bool_)
        groups = dict(self.groups)
        for key, rows in keys_of(examples, classes, self.by_condition):
            rows = rows[good[rows]]
            if len(rows):
                groups[key] = self._grown(groups.get(key), x[rows], rng)
        if len(groups) > MOST_GROUPS:
            raise DataError(
                f"the targets {[name for name, _ in classes]} and conditions make {len(groups)} "
                f"groups, more than {MOST_GROUPS}; whole numbers are taken for classes: give "
                "numbers that are not as floats"
            )
        return Density(self.rank, self.components, self.by_condition, places, classes, groups)

    def sample(self, wanted: Mapping[tuple[str, ...], int], rng: np.random.Generator) -> Examples:
        """Made-up events, so many of each group; ids are negative, times 0."""
        keys = [key for key in sorted(wanted) if wanted[key]]
        if not keys:
            return Examples.empty()
        x = np.concatenate([self.groups[key].sample(wanted[key], rng) for key in keys])
        counts = [wanted[key] for key in keys]
        inputs: dict[str, Column] = {}
        targets: dict[str, Column] = {}
        first = 0
        for place in self.places:
            values = x[:, first : first + place.width].reshape(len(x), *place.shape)
            first += place.width
            kind = np.dtype(place.dtype)
            values = (np.rint(values) if kind.kind in "biu" else values).astype(kind)
            (inputs if place.kind == "inputs" else targets)[place.name] = values
        for position, (name, dtype) in enumerate(self.classes, start=1):
            values = np.array([int(key[position]) for key in keys]).astype(dtype)
            targets[name] = np.repeat(values, counts)
        names = np.repeat(np.array([key[0] for key in keys], np.str_), counts)
        return Examples(-1 - np.arange(len(x)), inputs, targets, np.zeros(len(x)), names)

    def to_arrays(self) -> dict[str, Array]:
        """As a learner's state holds it."""
        keys = sorted(self.groups)
        text = json.dumps({
            "places": self.places, "classes": self.classes, "groups": keys,
        }).encode()  # fmt: skip
        flat: dict[str, Array] = {"layout": np.frombuffer(text, np.uint8).copy()}
        for number, key in enumerate(keys):
            flat |= {f"{number}/{n}": part for n, part in self.groups[key].arrays().items()}
        return flat

    def opened(self, flat: Mapping[str, Array]) -> Density:
        """This configuration with the state that `to_arrays` gave; empty from nothing."""
        if not flat:
            return self
        known = json.loads(flat["layout"].tobytes())
        groups = {
            tuple(key): Group(**{n: flat[f"{number}/{n}"] for n in Group.__dataclass_fields__})
            for number, key in enumerate(known["groups"])
        }
        places = tuple(Place(a, b, c, tuple(d)) for a, b, c, d in known["places"])
        classes = tuple((name, dtype) for name, dtype in known["classes"])
        return Density(self.rank, self.components, self.by_condition, places, classes, groups)

    def _grown(self, group: Group | None, x: Floats, rng: np.random.Generator) -> Group:
        d = x.shape[1]
        if group is None:
            none = np.zeros((0, d))
            factor = np.zeros((0, min(self.rank, d), d), np.float32)
            group = Group(np.zeros(0), none, none, factor, x.min(0), x.max(0))
        low, high = np.minimum(group.low, x.min(0)), np.maximum(group.high, x.max(0))
        earned = int((group.rows + len(x)) // ROWS_PER_COMPONENT)
        more = min(max(1, earned), self.components) - len(group.n)
        means = group.mean
        if more > 0:
            means = self._with_seeds(group, x, more, low, high, rng)
        unit = _unit(group, x, low, high)
        nearest = _nearest(x / unit, means / unit)
        n, mean, square = group.n.copy(), group.mean.copy(), group.square.copy()
        factor = group.factor.copy()
        born = []
        for k in np.unique(nearest).tolist():
            rows = x[nearest == k]
            if k < len(n):
                n[k], mean[k], square[k], factor[k] = _merged(
                    float(n[k]), mean[k], square[k], factor[k], rows
                )
            else:
                nothing = np.zeros(d), np.zeros(d), np.zeros(factor.shape[1:], np.float32)
                born.append(_merged(0.0, *nothing, rows))
        if born:
            n = np.append(n, [part[0] for part in born])
            mean = np.concatenate([mean, [part[1] for part in born]])
            square = np.concatenate([square, [part[2] for part in born]])
            factor = np.concatenate([factor, np.stack([part[3] for part in born])])
        return Group(n, mean, square, factor, low, high)

    def _with_seeds(
        self, group: Group, x: Floats, more: int, low: Floats, high: Floats,
        rng: np.random.Generator,
    ) -> Floats:  # fmt: skip
        """The means with up to `more` new ones, after some rounds of k-means on `x` for these."""
        unit = _unit(group, x, low, high)
        scaled, means = x / unit, group.mean / unit
        old = len(means)
        for _ in range(more):
            if not len(means):
                picks, far = rng.integers(len(x), size=1), np.full(len(x), np.inf)
            else:
                far = _distances(scaled, means).min(1)
                if not far.sum() > 0:
                    break
                picks = rng.choice(len(x), TRIALS, p=far / far.sum())
            left = np.minimum(far[:, None], _distances(scaled, scaled[picks])).sum(0)
            best = int(picks[left.argmin()])
            means = np.concatenate([means, scaled[best : best + 1]])
        for _ in range(LLOYD if len(means) > 1 else 0):
            nearest = _nearest(scaled, means)
            for k in range(old, len(means)):
                mine = scaled[nearest == k]
                if len(mine):
                    means[k] = mine.mean(0)
        return means * unit


def layout(examples: Examples) -> tuple[tuple[Place, ...], tuple[tuple[str, str], ...]]:
    """Which columns make the vector of an event, and which targets its group."""
    places: list[Place] = []
    classes: list[tuple[str, str]] = []
    for kind, columns in (("inputs", examples.inputs), ("targets", examples.targets)):
        for name, column in sorted(columns.items()):
            if isinstance(column, Ragged):
                raise ConfigError(
                    f"generative replay draws events of fixed size and the column {name!r} is "
                    "ragged: a density of single items would lose what ties them together; use "
                    "replay or dark replay, which store whole events"
                )
            if column.dtype.kind not in "biuf":
                raise DataError(f"a density is of numbers; {name!r} holds {column.dtype}")
            if kind == "targets" and column.dtype.kind != "f":
                if column.ndim != 1:
                    raise ShapeError(
                        f"the target {name!r} holds classes of shape {column.shape[1:]} per "
                        "event; a group needs one"
                    )
                classes.append((name, column.dtype.name))
            else:
                places.append(Place(kind, name, column.dtype.name, tuple(column.shape[1:])))
    return tuple(places), tuple(classes)


def vectors(examples: Examples, places: tuple[Place, ...]) -> Floats:
    """Events as rows of numbers (n, d)."""
    parts = []
    for place in places:
        column = (examples.inputs if place.kind == "inputs" else examples.targets)[place.name]
        parts.append(np.asarray(column, np.float64).reshape(len(examples), place.width))
    return np.concatenate(parts, 1)


def keys_of(
    examples: Examples, classes: tuple[tuple[str, str], ...], by_condition: bool
) -> list[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Groups of events in order of name, with their rows: condition (or "all") and classes."""
    names = examples.conditions if by_condition else np.full(len(examples), "all")
    columns = [names, *(np.asarray(examples.targets[n]).astype(np.int64) for n, _ in classes)]
    codes = np.zeros(len(examples), np.int64)
    for column in columns:
        values, inverse = np.unique(column, return_inverse=True)
        codes = np.unique(codes * len(values) + inverse, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    found = []
    for rows in np.split(order, cuts):
        found.append((tuple(str(column[rows[0]]) for column in columns), rows))
    return sorted(found, key=lambda pair: pair[0])


def _merged(
    n: float, mean: Floats, square: Floats, factor: NDArray[np.float32], x: Floats
) -> tuple[float, Floats, Floats, NDArray[np.float32]]:
    """Sums of a component with rows `x` (m, d) added."""
    m = len(x)
    centre = x.mean(0)
    away = x - centre
    shift = (centre - mean) * np.sqrt(n * m / (n + m))
    total = square + (away**2).sum(0) + shift**2
    rank, d = factor.shape
    if rank:
        stacked = np.concatenate([factor.astype(np.float64), away, shift[None]])
        if len(stacked) <= d:
            _, s, axes = np.linalg.svd(stacked, full_matrices=False)
            kept = s[:rank, None] * axes[:rank]
        else:
            values, columns = linalg.eigh(stacked.T @ stacked, subset_by_index=(d - rank, d - 1))
            kept = (np.sqrt(np.maximum(values, 0))[:, None] * columns.T)[::-1]
        factor = np.zeros((rank, d), np.float32)
        factor[: len(kept)] = kept
    return n + m, mean + (centre - mean) * (m / (n + m)), total, factor


def _unit(group: Group, x: Floats, low: Floats, high: Floats) -> Floats:
    """The deviation of each number in the group, at least a tenth of its range, 1 if constant."""
    n, m = group.rows, len(x)
    mean = (group.n @ group.mean + x.sum(0)) / (n + m)
    square = group.square.sum(0) + group.n @ (group.mean - mean) ** 2 + ((x - mean) ** 2).sum(0)
    unit = np.maximum(np.sqrt(square / (n + m)), 0.1 * (high - low))
    return np.where(unit > 0, unit, 1.0)


def _distances(x: Floats, means: Floats) -> Floats:
    """Squared distances (rows, means)."""
    cross = x @ means.T
    squares: Floats = (x**2).sum(1)[:, None] - 2 * cross + (means**2).sum(1)
    return np.maximum(squares, 0)


def _nearest(x: Floats, means: Floats) -> NDArray[np.int64]:
    return np.asarray(_distances(x, means).argmin(1), np.int64)


def _said(places: tuple[Place, ...], classes: tuple[tuple[str, str], ...]) -> str:
    numbers = [f"{place.name} {place.dtype}{list(place.shape)}" for place in places]
    return ", ".join([*numbers, *(f"{name} (class)" for name, _ in classes)]) or "nothing"
