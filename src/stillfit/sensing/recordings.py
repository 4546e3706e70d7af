"""Recordings of worn inertial sensors with their activities, read strictly from Parquet or CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Ragged
from stillfit.core.errors import ConfigError, DataError, OrderError
from stillfit.streams import columns

Sensor: TypeAlias = tuple[str, str, str]
ACCELEROMETER: Sensor = ("x_acc", "y_acc", "z_acc")  # m/s^2
GYROSCOPE: Sensor = ("x_gyro", "y_gyro", "z_gyro")  # rad/s
ACTIVITIES = ("SEATED", "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN")


@dataclass(frozen=True)
class Recordings:
    """Samples in order of subject, device and time.

    `signals`: float32, shape (samples, channels), in the units of the file. `times`: seconds
    since 1970, never falling within a subject and device, equal where a device reported two
    samples in one tick. `activity`, `subject`, `device`: codes, places in the names of the same
    stem. `run`: number of the contiguous stretch (subject, device, execution) of each sample.
    """

    signals: NDArray[np.float32]
    times: NDArray[np.float64]
    activity: NDArray[np.int64]
    subject: NDArray[np.int64]
    device: NDArray[np.int64]
    run: NDArray[np.int64]
    channels: tuple[str, ...]
    activities: tuple[str, ...]
    subjects: tuple[str, ...]
    devices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, kw_only=True)
class SensorFiles:
    """A Parquet or CSV file (or several: `logs/*.parquet`, by name), one row per sample.

    `sensors`: names of the three axes of each. `time`: column with numbers, `time_unit` seconds
    each (default: milliseconds since 1970), or with timestamps. `label`: the activity as text,
    one of `activities`, whose places are the classes. `subject`, `device`: text. `execution`: a
    column that tells repetitions apart, None where there is none; what has the same one is
    contiguous. Rows of different subjects and devices may be mixed in any way; within one
    subject and device they are in order of time. Further columns are not looked at.

    Memory: 9 bytes per number read. Errors: `ConfigError` for a missing file or column,
    `DataError` for a value that is not finite, a cell that is empty, an activity that is not
    listed; `OrderError` where time runs backwards. Each names the value and its row.
    """

    path: Path
    sensors: tuple[Sensor, ...] = (ACCELEROMETER, GYROSCOPE)
    activities: tuple[str, ...] = ACTIVITIES
    time: str = "timestamp"
    time_unit: float = 1e-3
    label: str = "label"
    subject: str = "subject"
    device: str = "device"
    execution: str | None = "execution"

    def __post_init__(self) -> None:
        if not self.sensors:
            raise ConfigError("a recording needs at least one sensor of three axes in `sensors`")
        columns.check_distinct("sensors", self.channels)
        columns.check_vocabulary("label", self.activities)
        if not self.time_unit > 0:
            raise ConfigError(f"time_unit must be above 0 s, got {self.time_unit}")

    @property
    def channels(self) -> tuple[str, ...]:
        """All axes in order."""
        return tuple(axis for sensor in self.sensors for axis in sensor)

    def read(self) -> Recordings:
        """Everything in the files, checked."""
        parts: list[_Rows] = []
        for file in columns.files_of(self.path, "a Parquet file of recordings"):
            parts += self._rows(file)
        if not parts:
            raise DataError(f"{self.path} holds no rows; was the recording ever started?")
        rows = _Rows.join(parts)
        subjects, subject = np.unique(rows.subject, return_inverse=True)
        devices, device = np.unique(rows.device, return_inverse=True)
        # Stable: within a subject and device the order of the file is that of time.
        order = np.lexsort((device, subject))
        rows = rows.take(order)
        subject, device = subject[order], device[order]
        new = (np.diff(subject) != 0) | (np.diff(device) != 0)
        back = np.flatnonzero((np.diff(rows.times) < 0) & ~new)
        if len(back):
            at = int(back[0]) + 1
            raise OrderError(
                f"time runs backwards for {rows.subject[at]}/{rows.device[at]} in row "
                f"{order[at]} of {self.path}: {rows.times[at]:.3f} s comes after "
                f"{rows.times[at - 1]:.3f} s; are two recordings mixed under one name?"
            )
        new |= rows.execution[1:] != rows.execution[:-1]
        return Recordings(
            signals=rows.signals,
            times=rows.times,
            activity=rows.activity,
            subject=subject.astype(np.int64),
            device=device.astype(np.int64),
            run=np.concatenate([np.zeros(1, np.int64), np.cumsum(new)]),
            channels=self.channels,
            activities=self.activities,
            subjects=tuple(map(str, subjects)),
            devices=tuple(map(str, devices)),
        )

    def _rows(self, file: Path) -> list[_Rows]:
        text = {self.label, self.subject, self.device}
        text |= {self.execution} if self.execution is not None else set()
        wanted = list(dict.fromkeys([*self.channels, self.time, *sorted(text)]))
        found: list[_Rows] = []
        first = 0
        for batch in columns.batches(file, wanted, text, None, self.time, ","):
            if not batch.num_rows:
                continue
            axes = [self._axis(file, batch, name, first) for name in self.channels]
            seconds = columns.seconds(file, self.time, batch.column(self.time), self.time_unit, 0)
            _refuse(file, self.time, seconds, ~np.isfinite(seconds), first)
            names = {name: self._texts(file, batch, name, first) for name in sorted(text)}
            activity = columns.codes(
                file, self.label, batch.column(self.label), self.activities, first, False
            )
            execution = np.zeros(len(seconds), np.str_)
            found.append(
                _Rows(
                    np.stack(axes, axis=1),
                    seconds,
                    activity,
                    names[self.subject],
                    names[self.device],
                    execution if self.execution is None else names[self.execution],
                )
            )
            first += len(seconds)
        return found

    def _axis(self, file: Path, batch: Any, name: str, first: int) -> NDArray[np.float32]:
        values = columns.numbers(file, name, batch.column(name), "float32")
        if isinstance(values, Ragged) or values.ndim > 1:
            raise DataError(f"column {name!r} of {file} holds lists; an axis is one number per row")
        _refuse(file, name, values, ~np.isfinite(values), first)
        return values

    def _texts(self, file: Path, batch: Any, name: str, first: int) -> NDArray[np.str_]:
        values = columns.texts(file, name, batch.column(name))
        _refuse(file, name, values, values == "", first)
        return values


class _Rows(NamedTuple):
    """Some rows of a file, in its order."""

    signals: NDArray[np.float32]
    times: NDArray[np.float64]
    activity: NDArray[np.int64]
    subject: NDArray[np.str_]
    device: NDArray[np.str_]
    execution: NDArray[np.str_]

    @staticmethod
    def join(parts: list[_Rows]) -> _Rows:
        return _Rows(
            np.concatenate([part.signals for part in parts]),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.activity for part in parts]),
            np.concatenate([part.subject for part in parts]),
            np.concatenate([part.device for part in parts]),
            np.concatenate([part.execution for part in parts]),
        )

    def take(self, order: NDArray[np.int64]) -> _Rows:
        return _Rows(
            self.signals[order],
            self.times[order],
            self.activity[order],
            self.subject[order],
            self.device[order],
            self.execution[order],
        )


def _refuse(file: Path, name: str, values: Array, bad: NDArray[np.bool_], first: int) -> None:
    """`DataError` that names the first bad value of a column, its row and how many there are."""
    if not bad.any():
        return
    at = int(np.flatnonzero(bad)[0])
    value = "nothing" if values.dtype.kind == "U" else str(values[at])
    raise DataError(
        f"column {name!r} of {file} holds {value} in row {first + at} ({int(bad.sum())} such among "
        f"{len(bad)} rows); drop these rows, which leaves a gap, or repair them before"
    )
