"""Each new wearer or device is a new environment: as examples, and as a stream for the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.clock import HOUR
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Event, Examples, Labels, Notice
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean
from stillfit.sensing.features import features
from stillfit.sensing.windows import Windows
from stillfit.streams.contract import checked_start

Input: TypeAlias = Literal["features", "window"]
WORN, CHARGING = "worn", "charging"
# Where nothing was recorded for so long, a new session begins: a wearer who starts again.
APART = 5.0


@dataclass(frozen=True)
class Environment:
    """One wearer with one device: labelled windows to learn from and windows held out."""

    name: str
    train: Examples
    test: Examples


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which windows are held out: whole blocks of time, the same ones on all devices of a wearer.

    What a wearer recorded is cut into sessions where no device has a window for 5 s, and those
    into equal blocks of at most `block` seconds, of which the share `held_out`, drawn with
    `seed`, is for the test. Windows that reach into a block of the other side are dropped, and
    training windows within `guard` seconds of a held-out block too. So no sample is in a
    training and in a test window, and no movement is learned from the phone and tested on the
    watch. Errors: `DataError` for a wearer with a single block.
    """

    held_out: float = 0.3
    block: float = 30.0
    guard: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must lie between 0 and 1, got {self.held_out}")
        if not self.block > 0 or not self.guard >= 0:
            raise ConfigError(
                f"block = {self.block} must be above 0 s and guard = {self.guard} not below"
            )

    def sides(self, windows: Windows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Training and test windows, two masks of shape (n,) that may leave windows out."""
        train = np.zeros(len(windows), np.bool_)
        test = np.zeros(len(windows), np.bool_)
        for subject in np.unique(windows.subject):
            rows = np.flatnonzero(windows.subject == subject)
            name = windows.subjects[subject]
            start, end = windows.start[rows], windows.end[rows]
            blocks = _blocks(start, end, self.block)
            n = len(blocks.start)
            if n < 2:
                raise DataError(
                    f"subject {name!r} was recorded in one block of {end.max() - start.min():.3g} "
                    f"s, so nothing can be held out; make `block` ({self.block:g} s) shorter"
                )
            held = np.zeros(n, np.bool_)
            chosen = Seeds(self.seed).rng("held out", name).permutation(n)
            held[chosen[: min(max(round(self.held_out * n), 1), n - 1)]] = True
            train[rows] = ~_touches(blocks, held, start - self.guard, end + self.guard)
            test[rows] = ~_touches(blocks, ~held, start, end)
        return train, test


class _Blocks(NamedTuple):
    """Blocks of time of one wearer, in order, that do not overlap."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]


def _blocks(start: NDArray[np.float64], end: NDArray[np.float64], longest: float) -> _Blocks:
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    new = np.concatenate([np.ones(1, np.bool_), start[1:] > end[:-1] + APART])
    begins = start[new]
    ends = end[np.concatenate([np.flatnonzero(new)[1:], np.array([len(end)])]) - 1]
    cuts = np.maximum(np.ceil((ends - begins) / longest), 1).astype(np.int64)
    session = np.repeat(np.arange(len(cuts)), cuts)
    number = np.arange(len(session)) - (np.cumsum(cuts) - cuts)[session]
    size = ((ends - begins) / cuts)[session]
    return _Blocks(begins[session] + number * size, begins[session] + (number + 1) * size)


def _touches(
    blocks: _Blocks, these: NDArray[np.bool_], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether [low, high] shares more than a point with one of `these` blocks, for each."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(these)])
    first = np.searchsorted(blocks.end, low, side="right")
    last = np.searchsorted(blocks.start, high, side="left")
    return np.asarray(before[np.maximum(last, first)] > before[first])


@dataclass(frozen=True, kw_only=True)
class Wearing:
    """Wearers and devices one after the other: first all wearers with one device, then the next.

    `subjects`, `devices`: which, and in what order; empty: all, by name, so that all wearers of
    the phone `sp` come before all wearers of the watch `sw`. `inputs`: `"features"` (n, features)
    and `"window"` (n, channels, samples) of each window; the target `"y"` is the activity's place.

    The sequence has a time of its own, from 0, in which the next environment begins `pause`
    seconds after the last has ended, since watches repeat the hours of the phones. Ids count the
    windows of the sequence. The condition of a window is `subject/device`.

    As a stream: a notice `worn`, blocks of `block` windows, each followed by its labels (put
    `Labelling` on it to have them late), and a notice `charging` whose `until` is the next start.
    """

    windows: Windows
    subjects: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ("features",)
    pause: float = HOUR
    block: int = 64

    def __post_init__(self) -> None:
        for what, asked, known in (
            ("subject", self.subjects, self.windows.subjects),
            ("device", self.devices, self.windows.devices),
        ):
            for name in asked:
                if name not in known:
                    raise ConfigError(f"there is no {what} {name!r}{did_you_mean(name, known)}")
            if len(set(asked)) < len(asked):
                raise ConfigError(f"a {what} is named twice: {', '.join(asked)}")
        if not self.inputs or set(self.inputs) - {"features", "window"}:
            raise ConfigError(f"inputs must be of 'features' and 'window', got {self.inputs}")
        if self.block < 1 or not self.pause > 0:
            raise ConfigError(f"block = {self.block} and pause = {self.pause} s must be above 0")

    def examples(self) -> list[Examples]:
        """All windows of each environment."""
        return [self._examples(part, slice(None)) for part in self._parts]

    def environments(self, split: Split | None = None) -> list[Environment]:
        """Each environment with windows held out; `DataError` where a side is empty."""
        train, test = (split or Split()).sides(self.windows)
        found = []
        for part in self._parts:
            sides = [np.flatnonzero(side[part.rows]) for side in (train, test)]
            if not min(map(len, sides)):
                raise DataError(
                    f"{part.name} has {len(sides[0])} windows to learn from and {len(sides[1])} "
                    "held out, and needs both; take another seed or shorter blocks"
                )
            one, other = (self._examples(part, side) for side in sides)
            found.append(Environment(part.name, one, other))
        return found

    def events(self, start: int = 0) -> Iterator[Event]:
        """The events after the first `start`; those before are not made."""
        skip = checked_start(start)
        for number, part in enumerate(self._parts):
            n = len(part.rows)
            many = 2 + 2 * -(-n // self.block)
            if skip >= many:
                skip -= many
                continue
            for event in range(skip, many):
                yield self._event(part, number, event, many)
            skip = 0

    def _event(self, part: _Part, number: int, event: int, many: int) -> Event:
        facts: dict[str, float | str] = {"environment": part.name}
        if event == 0:
            return Notice(WORN, float(part.begin), facts)
        if event == many - 1:
            if number + 1 < len(self._parts):
                facts["until"] = float(self._parts[number + 1].begin)
            return Notice(CHARGING, float(part.times[-1]), facts)
        first = (event - 1) // 2 * self.block
        examples = self._examples(part, slice(first, first + self.block))
        time = float(examples.times[-1])
        if event % 2:
            return Block(examples.ids, examples.inputs, time, {"condition": part.name})
        return Labels(examples.ids, examples.targets, time)

    def _examples(self, part: _Part, index: slice | NDArray[np.int64]) -> Examples:
        rows = part.rows[index]
        return Examples(
            part.ids[index],
            {name: self._columns[name][rows] for name in self.inputs},
            {"y": self.windows.activity[rows]},
            part.times[index],
            np.full(len(rows), part.name),
        )

    @cached_property
    def _columns(self) -> Mapping[str, Array]:
        w = self.windows
        columns: dict[str, Array] = {}
        if "features" in self.inputs:
            columns["features"] = features(w.raw, w.rate, w.channels)
        if "window" in self.inputs:
            columns["window"] = w.raw
        return columns

    @cached_property
    def _parts(self) -> Sequence[_Part]:
        w = self.windows
        parts: list[_Part] = []
        begin, made = 0.0, 0
        for device in self.devices or w.devices:
            for subject in self.subjects or w.subjects:
                mine = (w.subject == w.subjects.index(subject)) & (
                    w.device == w.devices.index(device)
                )
                rows = np.flatnonzero(mine)
                if not len(rows):
                    continue  # this wearer never wore this device
                rows = rows[np.argsort(w.end[rows], kind="stable")]
                times = begin + w.end[rows] - w.start[rows[0]]
                ids = np.arange(made, made + len(rows), dtype=np.int64)
                parts.append(_Part(f"{subject}/{device}", rows, ids, times, begin))
                begin, made = float(times[-1]) + self.pause, made + len(rows)
        return parts


@dataclass(frozen=True)
class _Part:
    """The windows of one environment in order of time."""

    name: str
    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    times: NDArray[np.float64] = field(repr=False)
    begin: float
