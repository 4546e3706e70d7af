"""Chains of dense layers in whole numbers, compiled: blocks of events side by side in a register.

Zero weights cost nothing, so a pruned network is faster. In 32-bit numbers where no sum can
exceed them, else in 64-bit ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from stillfit.models.fixed.formats import Codes, Format, Rounding, bits_of

BLOCK = 64  # events at a time: a buffer of the widest layer stays in the first cache
ROUNDS: dict[Rounding, int] = {"floor": 0, "nearest": 1, "even": 2}


class Program(NamedTuple):
    """The layers of a chain as flat arrays, as the compiled loop reads them.

    `sizes` (layers, 2): inputs, outputs; 0 outputs: a quantiser alone. `by`, `low`, `high`, `up`:
    of each layer's inputs, one after the other: shift (left if positive), range, alignment.
    `modes` (layers, 3): rounding, wrap, ReLU after. `weights`, `bias`: of each layer's sums.
    """

    sizes: NDArray[np.int64]
    by: NDArray[np.int64]
    low: Codes
    high: Codes
    up: NDArray[np.int64]
    modes: NDArray[np.int64]
    weights: NDArray[Any]
    bias: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Quantising:
    """What a layer of the program does to its inputs, which come at `fraction` bits.

    `added`: they are added afterwards, so they are aligned; a quantiser alone leaves them.
    """

    format: Format
    fraction: NDArray[np.int64]
    rounding: Rounding
    overflow: Any
    inputs: int
    added: bool

    def rows(self) -> tuple[NDArray[np.int64], ...]:
        """Shift, range and alignment of each input."""
        f = np.array(self.format.f, np.int64)
        up = f.max() - f if self.added else np.zeros(1, np.int64)
        parts = (f - self.fraction, *self.format.limits(self.overflow), up)
        return tuple(np.broadcast_to(part, (self.inputs,)).copy() for part in parts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Compiled:
    """A chain of dense layers, ready to run. `bits`: of the widest sum before each layer."""

    program: Program
    bits: tuple[int, ...]
    outputs: int

    @property
    def inputs(self) -> int:
        return int(self.program.sizes[0, 0])

    def fed(self, fraction: NDArray[np.int64], given: NDArray[np.int64]) -> Compiled:
        """The same for inputs at `given` fraction bits instead of `fraction`."""
        n = self.inputs
        by = self.program.by.copy()
        by[:n] += np.broadcast_to(fraction - given, (n,))
        return replace(self, program=self.program._replace(by=by))

    def fits_32(self, largest: int) -> bool:
        """Whether 32-bit numbers hold everything for inputs up to `largest` in magnitude."""
        program, first = self.program, 0
        for (inputs, _), bits in zip(
            program.sizes.tolist(), (bits_of(largest), *self.bits[1:]), strict=True
        ):
            by = program.by[first : first + inputs]
            if bits + max(int(by.max(initial=0)), 0) > 31 or int(by.min(initial=0)) < -30:
                return False
            first += inputs
        return max(self.bits[1:], default=0) <= 31 and self.last_bits <= 31

    @property
    def last_bits(self) -> int:
        """Bits of the outputs."""
        return self.bits[0]

    def typed(self, largest: int) -> Program:
        """The program with weights of 32 bits where that is enough, else of 64."""
        kind = np.int32 if self.fits_32(largest) else np.int64
        program = self.program
        return program._replace(
            weights=program.weights.astype(kind), bias=program.bias.astype(kind)
        )

    def run(self, codes: NDArray[Any]) -> Codes:
        """Outputs (n, outputs), int64, of codes (n, inputs)."""
        largest = max(int(codes.max(initial=0)), -int(codes.min(initial=0)))
        program = self.typed(largest)
        x = np.ascontiguousarray(codes, program.weights.dtype)
        out = np.empty((len(x), self.outputs), np.int64)
        _run(x, *program, out)
        return out


def _quantise_row(
    row: Any, by: int, low: int, high: int, up: int, rounding: int, wrap: int
) -> None:
    """A row of codes shifted by `by`, brought into range and aligned, in place."""
    if by >= 0:
        for t in range(BLOCK):
            row[t] = row[t] << by
    else:
        s = -by
        half = (1 << (s - 1)) if rounding else 0
        if rounding < 2:
            for t in range(BLOCK):
                row[t] = (row[t] + half) >> s
        else:
            for t in range(BLOCK):
                row[t] = (row[t] + half - (1 - ((row[t] >> s) & 1))) >> s
    if wrap:
        for t in range(BLOCK):
            row[t] = (((row[t] - low) & (high - low)) + low) << up
    else:
        for t in range(BLOCK):
            row[t] = min(max(row[t], low), high) << up


def _forward(
    a: Any,
    b: Any,
    sizes: Any,
    by: Any,
    low: Any,
    high: Any,
    up: Any,
    modes: Any,
    weights: Any,
    bias: Any,
) -> int:
    """One block through all layers, from `a` (inputs, BLOCK); where the outputs lie (0, 1)."""
    p = w = o = 0
    where = 0
    for layer in range(len(sizes)):
        inputs, outputs = sizes[layer, 0], sizes[layer, 1]
        x, y = (a, b) if where == 0 else (b, a)
        for j in range(inputs):
            quantise_row(
                x[j],
                by[p + j],
                low[p + j],
                high[p + j],
                up[p + j],
                modes[layer, 0],
                modes[layer, 1],
            )
        p += inputs
        if outputs == 0:
            continue
        for c in range(outputs):
            total = y[c]
            for t in range(BLOCK):
                total[t] = bias[o + c]
            for j in range(inputs):
                weight = weights[w + j]
                if weight != 0:
                    row = x[j]
                    for t in range(BLOCK):
                        total[t] += weight * row[t]
            w += inputs
            if modes[layer, 2]:
                for t in range(BLOCK):
                    total[t] = max(total[t], 0)
        o += outputs
        where = 1 - where
    return where


def _run_all(
    x: Any,
    sizes: Any,
    by: Any,
    low: Any,
    high: Any,
    up: Any,
    modes: Any,
    weights: Any,
    bias: Any,
    out: Any,
) -> None:
    n = len(x)
    a = np.zeros((sizes.max(), BLOCK), weights.dtype)
    b = np.zeros((sizes.max(), BLOCK), weights.dtype)
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        for j in range(sizes[0, 0]):
            for t in range(m):
                a[j, t] = x[first + t, j]
        y = a if forward(a, b, sizes, by, low, high, up, modes, weights, bias) == 0 else b
        for c in range(out.shape[1]):
            for t in range(m):
                out[first + t, c] = y[c, t]


# Not decorators: a compiled function has no types.
quantise_row = numba.njit(cache=True, nogil=True, inline="always")(_quantise_row)
forward = numba.njit(cache=True, nogil=True)(_forward)
_run = numba.njit(cache=True, nogil=True)(_run_all)
