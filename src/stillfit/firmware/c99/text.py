"""Words of C: types by range, tables, and the frame of a header that one file implements."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# What a prefix must not be, since `<name>_t` or the name itself would be another's.
_TAKEN = frozenset(
    re.findall(
        r"\w+",
        """auto break case char const continue default do double else enum extern float for goto if
        inline int long register restrict return short signed sizeof static struct switch typedef
        union unsigned void volatile while int8 int16 int32 int64 uint8 uint16 uint32 uint64 size
        wchar main asm class namespace template this new delete true false bool""",
    )
)
_TYPES = (
    ("uint8_t", 0, 2**8 - 1),
    ("int8_t", -(2**7), 2**7 - 1),
    ("uint16_t", 0, 2**16 - 1),
    ("int16_t", -(2**15), 2**15 - 1),
    ("int32_t", -(2**31), 2**31 - 1),
    ("uint32_t", 0, 2**32 - 1),
    ("int64_t", -(2**63), 2**63 - 1),
)
_DTYPES = {name: np.dtype(name.removesuffix("_t")) for name, _, _ in _TYPES}


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header's text and what it holds.

    `ram`, `constants`: bytes of each static array that changes, and that does not, by its name
    (what a compiler makes of them is `compiling.measured`). `inputs`, `outputs` and their
    NumPy types are those of one event, flat, in C order. `image`: the bytes (little-endian) of the
    struct of reloadable weights; empty where there is none.
    """

    name: str
    text: str
    inputs: int
    outputs: int
    input_type: np.dtype[Any]
    output_type: np.dtype[Any]
    ram: Mapping[str, int]
    constants: Mapping[str, int]
    image: bytes = b""

    @property
    def file(self) -> str:
        return f"{self.name}.h"

    @property
    def ram_bytes(self) -> int:
        return sum(self.ram.values())

    @property
    def constant_bytes(self) -> int:
        return sum(self.constants.values())


def checked_name(name: str) -> str:
    """A prefix for everything in a header; `ConfigError` where C would not take it."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise ConfigError(
            f"{name!r} cannot be the name of a header: all its functions begin with it, so it "
            "must be a word of a-z, 0-9 and _ that begins with a letter and is none of C's own"
        )
    return name


def type_of(low: int, high: int) -> str:
    """The smallest type of <stdint.h> that holds the range; signed where both are as small."""
    for name, lowest, highest in _TYPES:
        if lowest <= low and high <= highest:
            return name
    raise ConfigError(
        f"numbers from {low} to {high} do not fit into 64 bits; give the formats fewer bits"
    )


def range_of(kind: str) -> tuple[int, int]:
    """Smallest and largest number of a type."""
    return next((low, high) for name, low, high in _TYPES if name == kind)


def dtype_of(kind: str) -> np.dtype[Any]:
    return _DTYPES[kind]


def whole(value: int) -> str:
    """An integer constant; the lowest number of a type is none in C and needs a difference."""
    if not -(2**63) <= value < 2**63:
        raise ConfigError(f"{value} does not fit into 64 bits")
    if value == -(2**63):
        return "(-INT64_C(9223372036854775807) - 1)"
    if value == -(2**31):
        return "(-INT32_C(2147483647) - 1)"
    wrap = "" if -(2**15) < value < 2**15 else "INT32_C" if -(2**31) < value < 2**31 else "INT64_C"
    if not wrap:
        return str(value)
    return f"{wrap}({value})" if value >= 0 else f"(-{wrap}({-value}))"


def initial(values: Iterable[int] | NDArray[Any]) -> str:
    """{ ... } of whole numbers, wrapped."""
    unsigned = isinstance(values, np.ndarray) and values.dtype == np.uint32
    told = [f"UINT32_C({int(v)})" if unsigned else whole(int(v)) for v in values]
    body = textwrap.fill(", ".join(told), 96, initial_indent="    ", subsequent_indent="    ")
    return "{\n" + body + "\n}"


def table(kind: str, name: str, values: Iterable[int] | NDArray[Any], *, const: bool = True) -> str:
    """A static array with its values."""
    found = list(values) if not isinstance(values, np.ndarray) else values
    word = "static const" if const else "static"
    return f"{word} {kind} {name}[{len(found)}] = {initial(found)};\n"


def framed(name: str, notes: str, declarations: str, implementation: str) -> str:
    """A header: declarations for all, the implementation where NAME_IMPLEMENTATION is defined."""
    upper = name.upper()
    told = "\n".join(f" * {line}".rstrip() for line in notes.strip().splitlines())
    return f"""/* {name}.h, made by stillfit. C99, needs <stdint.h> alone.
 *
{told}
 *
 * In one source file:   #define {upper}_IMPLEMENTATION   before   #include "{name}.h"
 * in all others only    #include "{name}.h"
 * Buffers are static: nothing is allocated, and two threads must not call at the same time.
 */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{declarations.strip()}

#ifdef __cplusplus
}}
#endif

#endif /* {upper}_H */

#if defined({upper}_IMPLEMENTATION) && !defined({upper}_IMPLEMENTED)
#define {upper}_IMPLEMENTED

{implementation.strip()}

#endif /* {upper}_IMPLEMENTATION */
"""


def chosen(template: str, true: Iterable[str], values: Mapping[str, str], name: str) -> str:
    """A template with its conditional parts resolved, for one name.

    Lines `//: if a b` ... `//: else` ... `//: end` are kept where one of the words is true;
    `$word$` is replaced; `net_` and `NET_` become the name's. `ConfigError` never: a template
    that is not well formed is a fault (ValueError).
    """
    yes, kept, stack = frozenset(true), [], [True]
    for line in template.splitlines():
        mark = line.strip()
        if mark.startswith("//: if "):
            stack.append(not yes.isdisjoint(mark.removeprefix("//: if ").split()))
        elif mark == "//: else":
            stack[-1] = not stack[-1]
        elif mark == "//: end":
            stack.pop()
        elif all(stack):
            kept.append(line)
    if len(stack) != 1:
        raise ValueError("a condition of the template is not ended")
    text = "\n".join(kept)
    text = re.sub(r"\$(\w+)\$", lambda found: values[found[1]], text)
    text = re.sub(r"\bnet_", f"{name}_", text)
    return re.sub(r"\bNET_", f"{name.upper()}_", text)
