"""States as named arrays and back, so that a checkpoint needs no pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from stillfit.core.arrays import Array, Ragged
from stillfit.core.errors import DataError

S = TypeVar("S")


def to_arrays(state: Any, prefix: str = "") -> dict[str, Array]:
    """Flatten a state (NamedTuples, frozen dataclasses, tuples, mappings of numbers, arrays).

    Keys are dotted paths. Numbers become 0-d arrays; text and None are not states.
    """
    if isinstance(state, Ragged):
        return {f"{prefix}values": state.values, f"{prefix}offsets": state.offsets}
    if isinstance(state, np.ndarray):
        return {prefix.rstrip("."): state}
    if isinstance(state, bool | int | float | np.generic):
        return {prefix.rstrip("."): np.asarray(state)}
    parts: dict[str, Any]
    if hasattr(state, "_asdict"):
        parts = state._asdict()
    elif dataclasses.is_dataclass(state):
        parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    elif isinstance(state, Mapping):
        parts = dict(state)
    elif isinstance(state, tuple):
        parts = {str(position): part for position, part in enumerate(state)}
    else:
        raise DataError(
            f"a state must be made of numbers and arrays, got {type(state).__name__} at "
            f"{prefix.rstrip('.') or 'its root'}"
        )
    flat: dict[str, Array] = {}
    for name, part in parts.items():
        for path, values in to_arrays(part, f"{prefix}{name}.").items():
            if path in flat:
                raise DataError(f"two parts of a state are named {path!r}; rename one of them")
            flat[path] = values
    return flat


def from_arrays(like: S, flat: Mapping[str, Array], prefix: str = "") -> S:
    """The inverse of `to_arrays`, given a state of the same structure, such as `init()`'s.

    Arrays may have other sizes than those in `like`. Mappings and tuples keep the keys and the
    length of `like`.
    """
    state: Any = like
    if isinstance(state, Ragged):
        return type(state)(  # type: ignore[return-value]
            _part(flat, f"{prefix}values"), _part(flat, f"{prefix}offsets")
        )
    if isinstance(state, np.ndarray):
        return _part(flat, prefix.rstrip("."))  # type: ignore[return-value]
    if isinstance(state, bool | int | float | np.generic):
        return type(state)(_part(flat, prefix.rstrip(".")).item())  # type: ignore[return-value]
    if hasattr(state, "_asdict"):
        fields = state._asdict()
        return type(state)(**{n: from_arrays(p, flat, f"{prefix}{n}.") for n, p in fields.items()})  # type: ignore[no-any-return]
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return type(state)(**{n: from_arrays(p, flat, f"{prefix}{n}.") for n, p in fields.items()})  # type: ignore[return-value]
    if isinstance(state, Mapping):
        return {n: from_arrays(p, flat, f"{prefix}{n}.") for n, p in state.items()}  # type: ignore[return-value]
    if isinstance(state, tuple):
        return tuple(from_arrays(p, flat, f"{prefix}{i}.") for i, p in enumerate(state))  # type: ignore[return-value]
    raise DataError(f"a state must be made of numbers and arrays, got {type(state).__name__}")


def _part(flat: Mapping[str, Array], name: str) -> Array:
    if name not in flat:
        raise DataError(f"the checkpoint lacks {name!r}; was it written by another configuration?")
    return flat[name]
