"""Named arrays as safetensors bytes, the same bytes for the same arrays on any machine.

Files are written here and not by the safetensors library because their hash is a version's
identity: layout and padding must not change with a library's release, and the library's NumPy
writer takes non-contiguous arrays by address. Reading is left to the library.
Format: 8 bytes little-endian length of the header, JSON header, data without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from stillfit.core.arrays import Array
from stillfit.core.errors import DamagedError, RegistryError

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def encode(arrays: Mapping[str, Array], what: str) -> list[bytes | memoryview]:
    """The file as parts to be written one after the other; big arrays are not copied.

    Arrays lie in order of falling item size, then name, so each is aligned. `what` names the
    arrays in errors. Kinds: bool, integers and floats of 16 to 64 bits (integers from 8).
    """
    header: dict[str, object] = {}
    parts: list[bytes | memoryview] = []
    position = 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array = np.asarray(arrays[name])
        code = code_of(array, f"{what} {name!r}")
        if name == "__metadata__":
            raise RegistryError(f"{what} {name!r} has a name that the file format keeps for itself")
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        header[name] = {
            "data_offsets": [position, position + array.nbytes],
            "dtype": code,
            "shape": list(array.shape),
        }
        if array.nbytes:
            parts.append(little.reshape(-1).view(np.uint8).data)
        position += array.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def code_of(array: Array, what: str) -> str:
    """The format's name of an array's type, or `RegistryError`."""
    code = _CODES.get(array.dtype.name)
    if code is None:
        raise RegistryError(
            f"{what} of type {array.dtype} cannot be stored; kinds are {', '.join(_CODES)}"
        )
    return code


def decode(data: bytes, path: Path) -> dict[str, Array]:
    """The arrays of a file, writable; `path` names it in errors."""
    try:
        arrays: dict[str, Array] = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DamagedError(f"{path} is not a safetensors file ({error})") from None
    return {
        name: array if array.flags.writeable else array.copy() for name, array in arrays.items()
    }
