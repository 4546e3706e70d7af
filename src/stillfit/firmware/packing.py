"""Whole numbers as the bits of a port: fields side by side, the first in the lowest bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import DataError, ShapeError

Words: TypeAlias = NDArray[np.uint32]
WORD = 32


def words(bits: int) -> int:
    """32-bit words that hold so many bits."""
    return -(-bits // WORD)


def packed(codes: NDArray[np.int64], widths: Sequence[int]) -> Words:
    """Codes (n, fields) of up to 32 bits each, in two's complement, as (n, words), lowest first.

    A field of 0 bits is left out, whatever its code.

    `DataError` for a code that does not fit its field, with or without a sign.
    """
    if codes.ndim != 2 or codes.shape[1] != len(widths):
        raise ShapeError(f"{len(widths)} fields were given codes of shape {codes.shape}")
    out = np.zeros((len(codes), words(sum(widths)) + 1), np.uint64)
    at = 0
    for column, width in enumerate(widths):
        if not width:
            continue
        code = codes[:, column]
        if len(code) and (code.min() < -(1 << (width - 1)) or code.max() >= 1 << width):
            worst = int(code.min() if code.min() < -(1 << (width - 1)) else code.max())
            raise DataError(f"code {worst} of field {column} does not fit its {width} bits")
        field = (code & ((1 << width) - 1)).astype(np.uint64) << np.uint64(at % WORD)
        out[:, at // WORD] |= field & np.uint64(0xFFFFFFFF)
        out[:, at // WORD + 1] |= field >> np.uint64(WORD)
        at += width
    return out[:, :-1].astype(np.uint32)


def unpacked(rows: Words, widths: Sequence[int], signed: Sequence[bool]) -> NDArray[np.int64]:
    """The inverse: codes (n, fields) of rows (n, words)."""
    if rows.ndim != 2 or rows.shape[1] != words(sum(widths)):
        raise ShapeError(f"{sum(widths)} bits lie in {words(sum(widths))} words, got {rows.shape}")
    wide = np.zeros((len(rows), rows.shape[1] + 1), np.uint64)
    wide[:, :-1] = rows
    out = np.empty((len(rows), len(widths)), np.int64)
    at = 0
    for column, (width, sign) in enumerate(zip(widths, signed, strict=True)):
        if not width:
            out[:, column] = 0
            continue
        both = wide[:, at // WORD] | wide[:, at // WORD + 1] << np.uint64(WORD)
        code = ((both >> np.uint64(at % WORD)) & np.uint64((1 << width) - 1)).astype(np.int64)
        out[:, column] = code - ((code >> (width - 1)) << width if sign else 0)
        at += width
    return out


def hexadecimal(rows: Words, bits: int) -> Iterable[str]:
    """Each row as one number for `$readmemh`."""
    digits = -(-bits // 4)
    for row in rows:
        yield "".join(f"{int(word):08x}" for word in row[::-1])[-digits:]


def write_memory(path: Path, rows: Words, bits: int) -> None:
    """A file for `$readmemh`, a row a line."""
    path.write_text("".join(f"{line}\n" for line in hexadecimal(rows, bits)))
