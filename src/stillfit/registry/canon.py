"""One way to write a value as bytes, so that equal content has an equal hash for ever."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stillfit.core.errors import RegistryError
from stillfit.core.values import JSON

# Lower case only: lanes and runs name files, and some file systems do not tell cases apart.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(text: str, what: str) -> str:
    """`text` if it may name a lane, a run or a kind of entry, else `RegistryError`."""
    if not _NAME.fullmatch(text):
        raise RegistryError(
            f"{text!r} cannot name {what}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )
    return text


def plain(value: Any, where: str = "value") -> JSON:
    """`value` in the types of JSON: dataclasses become tables, tuples lists, NumPy scalars plain.

    JSON has no NaN and no infinity: they become the words "nan", "inf" and "-inf", which
    `float()` reads back. Anything else that JSON cannot hold is a `RegistryError` naming `where`.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        table: dict[str, JSON] = {}
        for name, part in value.items():
            if not isinstance(name, str):
                raise RegistryError(f"{where} has the key {name!r}; only text can be a key")
            table[name] = plain(part, f"{where}.{name}")
        return table
    if isinstance(value, list | tuple):
        return [plain(part, f"{where}[{position}]") for position, part in enumerate(value)]
    raise RegistryError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; "
        "give numbers, text, lists and tables (arrays belong in weights, learner or checkpoint)"
    )


def canonical(value: JSON) -> bytes:
    """Compact ASCII JSON with sorted keys: the form that journal hashes are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def readable(value: JSON) -> bytes:
    """The same, one key a line, for files that people open: also one form per content."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def sha256(data: bytes) -> str:
    """64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
