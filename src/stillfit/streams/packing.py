"""Named arrays as one piece of bytes in the safetensors layout, read back without a copy.

Layout: 8 bytes little-endian length of the header, a JSON header, the data without gaps. Any
safetensors reader opens such a file. The library's own NumPy writer copies everything twice and
takes non-contiguous arrays by address; its reader copies once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import DamagedError, DataError

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
_TYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _CODES.items()}
_ALIGNED = 8
_COMMENT = "__metadata__"


def packed(arrays: Mapping[str, Array]) -> NDArray[np.uint8]:
    """All arrays as one array of bytes: equal arrays in equal order give equal bytes.

    Cost: one copy. `DataError` for a kind that files cannot hold (text, objects, complex).
    """
    header: dict[str, Any] = {}
    parts: list[NDArray[np.uint8]] = []
    position = 0
    # Large items first keeps every array aligned.
    for name in sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize):
        array = arrays[name]
        code = _CODES.get(array.dtype.name)
        if code is None:
            raise DataError(
                f"column {name!r} of type {array.dtype} cannot be stored; kinds are "
                f"{', '.join(_CODES)}: turn text into integer codes"
            )
        if name == _COMMENT:
            raise DataError(f"a column must not be named {name!r}, which safetensors reserves")
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        if array.nbytes:
            parts.append(little.reshape(-1).view(np.uint8))
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    start = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    return np.concatenate([start, *parts])


def unpacked(data: NDArray[np.uint8], where: str) -> dict[str, Array]:
    """The arrays as views of `data`; `where` names it in the `DamagedError` of broken bytes."""
    try:
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        body = data[8 + length :]
        arrays: dict[str, Array] = {}
        header.pop(_COMMENT, None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            dtype = _TYPES[entry["dtype"]]
            if not 0 <= first <= last <= len(body):
                raise ValueError(f"{name!r} lies outside the file")
            arrays[name] = body[first:last].view(dtype).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{where} was altered or cut: it does not hold arrays ({error})"
        ) from None
    return arrays
