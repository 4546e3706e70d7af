"""State as a small JSON document and content-addressed segments of arrays.

A checkpoint of a large state must not write what an earlier one has written. So a state is split
into segments that do not change, each named by the hash of its content, and a document that says
how they belong together: a writer stores only the segments whose names are new to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeAlias, cast

import numpy as np

from stillfit.core.arrays import Array, Arrays, Column, Ragged, flatten, unflatten
from stillfit.core.errors import DamagedError
from stillfit.core.values import JSON
from stillfit.streams.packing import packed, unpacked

Segments: TypeAlias = Mapping[str, Arrays]

_DOCUMENT = "document"


def as_arrays(document: JSON, segments: Segments) -> dict[str, Array]:
    """Document and segments as plain arrays: one array of bytes for each segment.

    For a checkpoint that stores each array under the hash of its bytes: it finds most of them
    there already.
    """
    flat: dict[str, Array] = {name: packed(flatten(arrays)) for name, arrays in segments.items()}
    flat[_DOCUMENT] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    return flat


def from_arrays(flat: Mapping[str, Array]) -> tuple[JSON, dict[str, Arrays]]:
    """The inverse of `as_arrays`."""
    if _DOCUMENT not in flat:
        raise DamagedError(
            f"the checkpoint lacks {_DOCUMENT!r}; was it written by another part of the loop?"
        )
    document = cast(JSON, json.loads(flat[_DOCUMENT].tobytes()))
    return document, {
        name: unflatten(unpacked(data, f"segment {name[:12]}..."))
        for name, data in flat.items()
        if name != _DOCUMENT
    }


def segment(segments: Segments, name: str) -> Arrays:
    """One segment by the hash of its content, or `DamagedError`."""
    if name not in segments:
        raise DamagedError(
            f"segment {name[:12]}... of the stored state is missing; "
            "were all files of the checkpoint copied?"
        )
    return segments[name]


def prefixed(part: str, arrays: Arrays) -> dict[str, Column]:
    """Columns named `part.column`, so that several parts fit into one segment."""
    return {f"{part}.{name}": column for name, column in arrays.items()}


def unprefixed(part: str, arrays: Arrays) -> dict[str, Column]:
    """The columns of one part: the inverse of `prefixed`."""
    start = f"{part}."
    return {name[len(start) :]: col for name, col in arrays.items() if name.startswith(start)}


def owned(arrays: Arrays) -> dict[str, Column]:
    """Columns that own their memory: a view would keep the whole batch it was cut from alive."""
    held: dict[str, Column] = {}
    shared: dict[int, Ragged] = {}
    for name, column in arrays.items():
        if not isinstance(column, Ragged):
            held[name] = owned_array(column)
            continue
        values, key = owned_array(column.values), id(column.offsets)
        if key not in shared:
            shared[key] = Ragged(values, owned_array(column.offsets))
        held[name] = shared[key].with_values(values)
    return held


def owned_array(values: Array) -> Array:
    """`values`, copied if it is a view or not contiguous."""
    if values.base is None and values.flags.c_contiguous:
        return values
    return np.array(values, order="C")
