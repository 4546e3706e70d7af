"""Sliding windows over recordings, on a regular grid of time, that never cross a seam."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError
from stillfit.sensing.recordings import Recordings


@dataclass(frozen=True)
class Windows:
    """Windows in order of subject, device and time.

    `raw`: float32, shape (n, channels, samples), `rate` samples per second. `activity`,
    `subject`, `device`: codes as in `Recordings`. `start`, `end`: seconds since 1970 of the first
    and the last sample.
    """

    raw: NDArray[np.float32]
    activity: NDArray[np.int64]
    subject: NDArray[np.int64]
    device: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    rate: float
    channels: tuple[str, ...]
    activities: tuple[str, ...]
    subjects: tuple[str, ...]
    devices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.activity)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Windows:
        """The windows at `index`."""
        names = ("raw", "activity", "subject", "device", "start", "end")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


@dataclass(frozen=True, kw_only=True)
class Windowing:
    """Windows of `length` seconds, one every `step` seconds, at `rate` samples per second.

    A stretch of one subject, device, execution and activity without a hole of more than `gap`
    seconds is put on a regular grid from its first sample on, by linear interpolation (samples
    that share a time are averaged first), and cut; what is left at its end is dropped. So no
    window mixes subjects, devices, executions or activities or spans a hole. Samples that are
    already regular at `rate` stay as they are.

    A longer window knows more and answers later; here activities last 1 to 3 s, so that 0.5 s
    still fits several times. `step` < `length` overlaps windows: more of them, correlated.
    Interpolation does not filter: at a `rate` far below the device's, motion faster than `rate` / 2
    is folded into the slow, so filter before.

    Cost: a few passes over the samples, no loop over windows; memory 4 bytes x channels x
    samples for each window. Errors: `ConfigError`, and `DataError` where no stretch is as long
    as one window.
    """

    length: float = 0.5
    step: float = 0.25
    rate: float = 100.0
    gap: float = 0.25

    def __post_init__(self) -> None:
        for name in ("length", "step", "rate", "gap"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} of the windows must be above 0, got {value}")
        for name, least in (("length", 2), ("step", 1)):
            value = getattr(self, name)
            if round(value * self.rate) < least:
                raise ConfigError(
                    f"{name} = {value} s holds less than {least} samples at {self.rate} per second"
                )

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return round(self.length * self.rate)

    def cut(self, recordings: Recordings) -> Windows:
        """All windows of the recordings."""
        grid = self._grid(recordings)
        long, step = self.samples, round(self.step * self.rate)
        counts = np.maximum((grid.counts - long) // step + 1, 0)
        if not counts.sum():
            longest = grid.counts.max() / self.rate
            raise DataError(
                f"no stretch of one activity is as long as a window of {self.length} s; the "
                f"longest of {len(counts)} lasts {longest:.3g} s: make `length` shorter or `gap` "
                f"({self.gap} s) longer"
            )
        stretch = np.repeat(np.arange(len(counts)), counts)
        before = np.cumsum(counts) - counts
        place = (np.arange(len(stretch)) - before[stretch]) * step
        first = place + (np.cumsum(grid.counts) - grid.counts)[stretch]
        views = sliding_window_view(grid.signals, long, axis=0)
        start = grid.start[stretch] + place / self.rate
        row = grid.row[stretch]
        return Windows(
            raw=views[first],
            activity=recordings.activity[row],
            subject=recordings.subject[row],
            device=recordings.device[row],
            start=start,
            end=start + (long - 1) / self.rate,
            rate=self.rate,
            channels=recordings.channels,
            activities=recordings.activities,
            subjects=recordings.subjects,
            devices=recordings.devices,
        )

    def _grid(self, recordings: Recordings) -> _Grid:
        """All stretches, one after the other, each on its own regular grid."""
        times, activity = recordings.times, recordings.activity
        seam = (recordings.run[1:] != recordings.run[:-1]) | (activity[1:] != activity[:-1])
        seam |= np.diff(times) > self.gap
        first = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(seam) + 1])
        # One axis of time for all, on which stretches do not touch, so that one interpolation
        # serves them all and each grid point lies between samples of its own stretch.
        stretch = np.zeros(len(times), np.int64)
        stretch[first[1:]] = 1
        stretch = np.cumsum(stretch)
        since = times - times[first][stretch]
        last = np.concatenate([first[1:], np.array([len(times)])]) - 1
        lasts = since[last]
        shift = np.cumsum(lasts + 1.0) - (lasts + 1.0)
        axis, signals = _merged(since + shift[stretch], recordings.signals)
        # A grid point on the last sample belongs to the stretch, whatever rounding says.
        counts = np.floor(lasts * self.rate + 1e-3).astype(np.int64) + 1
        whose = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(whose)) - (np.cumsum(counts) - counts)[whose]
        at = np.minimum(number / self.rate, lasts[whose]) + shift[whose]
        regular = np.empty((len(at), signals.shape[1]), np.float32)
        for channel in range(signals.shape[1]):
            regular[:, channel] = np.interp(at, axis, signals[:, channel])
        return _Grid(regular, counts, times[first], first)


class _Grid(NamedTuple):
    """Stretches on their grids: samples of each, its start (s) and its first row."""

    signals: NDArray[np.float32]
    counts: NDArray[np.int64]
    start: NDArray[np.float64]
    row: NDArray[np.int64]


def _merged(axis: NDArray[np.float64], signals: Array) -> tuple[NDArray[np.float64], Array]:
    """Samples of one time as their mean, since an interpolation needs times that rise."""
    new = np.concatenate([np.ones(1, np.bool_), np.diff(axis) > 0])
    if new.all():
        return axis, signals
    first = np.flatnonzero(new)
    sums = np.add.reduceat(signals.astype(np.float64), first, axis=0)
    counts = np.diff(np.concatenate([first, np.array([len(axis)])]))
    return axis[first], sums / counts[:, None]
