"""The three kinds of event that a stream is made of, in order of arrival. Nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import (
    Array,
    Arrays,
    Index,
    concat,
    flatten,
    n_bytes,
    n_events,
    names_of,
    take,
    unflatten,
)
from stillfit.core.errors import DataError, OrderError, ShapeError

Conditions: TypeAlias = Mapping[str, float | str]


def _check_ids(ids: NDArray[np.int64], what: str) -> None:
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise ShapeError(f"{what} ids must be one int64 axis, got {ids.dtype} {ids.shape}")


@dataclass(frozen=True)
class Block:
    """A contiguous stretch of events as it comes from the detector.

    `ids`: int64, shape (n,), strictly rising in a stream. `inputs`: arrays or `Ragged`, leading
    axis n. `time`: seconds since the stream's epoch at which the last event was seen.
    `conditions`: what slow control knows online; `"condition"` names the interval of validity.
    """

    ids: NDArray[np.int64]
    inputs: Arrays
    time: float
    conditions: Conditions = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ids(self.ids, "a block's")
        if self.inputs and n_events(self.inputs) != len(self.ids):
            raise ShapeError(
                f"a block of {len(self.ids)} ids holds inputs of {n_events(self.inputs)} events"
            )
        if len(self.ids) > 1 and np.any(np.diff(self.ids) <= 0):
            raise OrderError("event ids inside a block must rise strictly; is one there twice?")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def condition(self) -> str:
        """Name of the interval of validity, `"all"` where slow control does not say."""
        return str(self.conditions.get("condition", "all"))

    def take(self, index: Index) -> Block:
        return Block(self.ids[index], take(self.inputs, index), self.time, self.conditions)


@dataclass(frozen=True)
class Labels:
    """Targets of earlier events: late, partial, selected or noisy, as real labels are.

    `ids`: int64, shape (n,), of events that were seen before. `targets`: leading axis n.
    `time`: seconds at which the labels arrived.
    """

    ids: NDArray[np.int64]
    targets: Arrays
    time: float

    def __post_init__(self) -> None:
        _check_ids(self.ids, "labels'")
        if self.targets and n_events(self.targets) != len(self.ids):
            raise ShapeError(
                f"labels of {len(self.ids)} ids hold targets of {n_events(self.targets)} events"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Index) -> Labels:
        return Labels(self.ids[index], take(self.targets, index), self.time)


@dataclass(frozen=True)
class Notice:
    """The machine's state from now on (`"stable-beams"`, `"inter-fill"`, ...).

    `info` holds facts that belong to it: the fill number, the expected end, who resumed.
    """

    state: str
    time: float
    info: Conditions = field(default_factory=dict)


Event: TypeAlias = Block | Labels | Notice


def _under(flat: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: part for name, part in flat.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Examples:
    """Events with their targets: what updaters learn from and gates judge on.

    `times`: seconds at which each event was seen, shape (n,). `conditions`: name of the interval
    of validity of each event, shape (n,), str.
    """

    ids: NDArray[np.int64]
    inputs: Arrays
    targets: Arrays
    times: NDArray[np.float64]
    conditions: NDArray[np.str_]

    def __post_init__(self) -> None:
        _check_ids(self.ids, "examples'")
        sizes = {len(self.ids), len(self.times), len(self.conditions)}
        sizes |= {n_events(part) for part in (self.inputs, self.targets) if part}
        if len(sizes) > 1:
            raise ShapeError(f"examples disagree on the number of events: {sorted(sizes)}")

    @classmethod
    def empty(cls) -> Examples:
        nothing = np.zeros(0)
        return cls(nothing.astype(np.int64), {}, {}, nothing, nothing.astype(np.str_))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of everything held, exactly."""
        held = n_bytes(self.inputs) + n_bytes(self.targets)
        return held + self.ids.nbytes + self.times.nbytes + self.conditions.nbytes

    def take(self, index: Index) -> Examples:
        return Examples(
            self.ids[index],
            take(self.inputs, index),
            take(self.targets, index),
            self.times[index],
            self.conditions[index],
        )

    def where(self, condition: str) -> Examples:
        """The events of one condition."""
        return self.take(np.flatnonzero(self.conditions == condition))

    def to_arrays(self) -> dict[str, Array]:
        """Plain named arrays, as files and learner states hold them; `from_arrays` inverts it."""
        names, codes = np.unique(self.conditions, return_inverse=True)
        text = json.dumps([str(name) for name in names]).encode()
        flat: dict[str, Array] = {
            "ids": self.ids,
            "times": self.times,
            "conditions": codes.astype(np.int32),
            "condition_names": np.frombuffer(text, np.uint8).copy(),
        }
        flat.update({f"inputs/{name}": part for name, part in flatten(self.inputs).items()})
        flat.update({f"targets/{name}": part for name, part in flatten(self.targets).items()})
        return flat

    @classmethod
    def from_arrays(cls, flat: Mapping[str, Array]) -> Examples:
        """The examples that `to_arrays` wrote; no arrays at all give no examples."""
        if not flat:
            return cls.empty()
        names = np.array(json.loads(flat["condition_names"].tobytes()), np.str_)
        codes = flat["conditions"]
        return cls(
            flat["ids"],
            unflatten(_under(flat, "inputs/")),
            unflatten(_under(flat, "targets/")),
            flat["times"],
            names[codes] if len(codes) else np.zeros(0, np.str_),
        )

    @staticmethod
    def join(parts: list[Examples]) -> Examples:
        """All parts in order; parts without events are left out."""
        full = [part for part in parts if len(part)]
        if not full:
            return Examples.empty()
        if len(full) == 1:
            return full[0]
        return Examples(
            np.concatenate([part.ids for part in full]),
            concat([part.inputs for part in full]),
            concat([part.targets for part in full]),
            np.concatenate([part.times for part in full]),
            np.concatenate([part.conditions for part in full]),
        )

    def require(self, *targets: str) -> None:
        """Raise `DataError` unless every named target is there."""
        missing = set(targets) - set(self.targets)
        if missing:
            raise DataError(
                f"the labels lack {names_of(missing)}; they hold {names_of(self.targets)}"
            )
