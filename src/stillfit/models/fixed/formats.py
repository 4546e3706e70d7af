"""Fixed-point formats (k, i, f) and the exact arithmetic of their codes, in whole numbers.

A number of a format is code / 2^f with a whole code of k + i + f bits: k = 1 with a sign (two's
complement), 0 without; i integer bits without the sign; f fraction bits. Both may be negative:
i = -2, f = 9 are seven bits below 1/4. The values reach from -k 2^i to 2^i - 2^-f.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.values import JSON

Codes: TypeAlias = NDArray[np.int64]
Rounding: TypeAlias = Literal["floor", "nearest", "even"]
Overflow: TypeAlias = Literal["saturate", "symmetric", "wrap"]
ROUNDINGS: tuple[Rounding, ...] = ("floor", "nearest", "even")
OVERFLOWS: tuple[Overflow, ...] = ("saturate", "symmetric", "wrap")
MAX_WIDTH = 32  # bits of a stored number; sums of products may be wider
MAX_SHIFT = 40  # bits: |i| and |f|


@dataclass(frozen=True)
class Format:
    """A format for a whole tensor (tuples of one) or one for each channel (tuples of that many).

    `ConfigError` for widths outside 1 to 32 bits, and for what is neither.
    """

    k: tuple[int, ...]
    i: tuple[int, ...]
    f: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.k) == len(self.i) == len(self.f) or not self.k:
            raise ConfigError(
                f"a format needs as many signs as integer and fraction bits, got {len(self.k)}, "
                f"{len(self.i)} and {len(self.f)}; give one of each, or one for each channel"
            )
        for k, i, f in zip(self.k, self.i, self.f, strict=True):
            if k not in (0, 1):
                raise ConfigError(f"the sign bit k of a format is 0 or 1, got {k}")
            if not 1 <= k + i + f <= MAX_WIDTH or max(abs(i), abs(f)) > MAX_SHIFT:
                raise ConfigError(
                    f"the format (k, i, f) = ({k}, {i}, {f}) has {k + i + f} bits; "
                    f"1 to {MAX_WIDTH} can be held, change i or f"
                )

    @classmethod
    def of(cls, k: int, i: int, f: int) -> Format:
        """One format for the whole tensor."""
        return cls((k,), (i,), (f,))

    @classmethod
    def channels(cls, k: ArrayLike, i: ArrayLike, f: ArrayLike) -> Format:
        """One format for each channel; single numbers count for all."""
        axes = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, np.int64)) for v in (k, i, f)))
        return cls(*(tuple(axis.tolist()) for axis in axes))

    @classmethod
    def from_json(cls, told: Mapping[str, JSON]) -> Format:
        """The inverse of `to_json`."""
        try:
            return cls.channels(*(np.array(told[name]) for name in "kif"))
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"a format is stored as k, i and f, got {told}") from error

    def to_json(self) -> dict[str, JSON]:
        return {"k": list(self.k), "i": list(self.i), "f": list(self.f)}

    def __len__(self) -> int:
        """Channels; 1 for a whole tensor."""
        return len(self.k)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of each channel."""
        return tuple(k + i + f for k, i, f in zip(self.k, self.i, self.f, strict=True))

    @property
    def width(self) -> int:
        """Bits of the widest channel."""
        return max(self.widths)

    @property
    def fraction(self) -> int:
        """Fraction bits of the finest channel, at which channels can be added exactly."""
        return max(self.f)

    def limits(self, overflow: Overflow = "saturate") -> tuple[Codes, Codes]:
        """Smallest and largest code of each channel, (channels,)."""
        k, i, f = (np.array(v, np.int64) for v in (self.k, self.i, self.f))
        top = np.left_shift(np.int64(1), i + f)
        low = -k * (top - 1) if overflow == "symmetric" else -k * top
        return low, top - 1

    def narrowed(self, width: int) -> Format:
        """The same ranges in `width` bits: fraction bits are given up or added."""
        return Format(
            self.k, self.i, tuple(width - k - i for k, i in zip(self.k, self.i, strict=True))
        )

    def __str__(self) -> str:
        each = [f"({k}, {i}, {f})" for k, i, f in zip(self.k, self.i, self.f, strict=True)]
        return each[0] if len(set(each)) == 1 else "[" + ", ".join(each) + "]"


def check_modes(rounding: str, overflow: str) -> None:
    """`ConfigError` for a mode that does not exist."""
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if overflow not in OVERFLOWS:
        raise ConfigError(f"overflow must be one of {', '.join(OVERFLOWS)}, got {overflow!r}")


def along(values: Iterable[int], ndim: int, axis: int) -> Codes:
    """Numbers of channels, shaped so that they meet the `axis` of arrays of `ndim` axes."""
    array = np.array(list(values), np.int64)
    if len(array) == 1 or not ndim:
        return array[0] if not ndim else array.reshape((1,) * ndim)
    shape = [1] * ndim
    shape[axis] = len(array)
    return array.reshape(shape)


def encode(
    x: ArrayLike,
    fmt: Format,
    *,
    rounding: Rounding = "nearest",
    overflow: Overflow = "saturate",
    axis: int = -1,
) -> Codes:
    """Codes of real numbers, int64 of the same shape.

    "floor" rounds down, "nearest" half up, "even" half to even; "saturate" gives the outermost
    code, "symmetric" leaves the lowest one out, "wrap" keeps the last bits. `DataError` for NaN.
    """
    real = np.asarray(x, np.float64)
    _fits(fmt, real.shape, axis)
    if np.isnan(real).any():
        at = tuple(int(n) for n in np.argwhere(np.isnan(real))[0])
        raise DataError(f"a value to be quantised is not a number, at {at}; a fit that failed?")
    # Beyond 2^62 all codes saturate; a wrapped one has no meaning there.
    scaled = np.clip(np.ldexp(real, along(fmt.f, real.ndim, axis)), -(2.0**62), 2.0**62)
    low = np.floor(scaled)
    if rounding == "nearest":
        low += scaled - low >= 0.5
    elif rounding == "even":
        low = np.rint(scaled)
    return fold(low.astype(np.int64), fmt, overflow=overflow, axis=axis)


def decode(codes: ArrayLike, fmt: Format, *, axis: int = -1) -> NDArray[np.float64]:
    """Real numbers of codes."""
    whole = np.asarray(codes)
    _fits(fmt, whole.shape, axis)
    real: NDArray[np.float64] = np.ldexp(whole.astype(np.float64), -along(fmt.f, whole.ndim, axis))
    return real


def fold(codes: Codes, fmt: Format, *, overflow: Overflow, axis: int = -1) -> Codes:
    """Codes at the format's own fraction, brought into its range."""
    low, high = fmt.limits(overflow)
    lows, highs = along(low.tolist(), codes.ndim, axis), along(high.tolist(), codes.ndim, axis)
    if overflow != "wrap":
        return np.clip(codes, lows, highs)
    return ((codes - lows) & (highs - lows)) + lows


def shifted(codes: Codes, by: ArrayLike, rounding: Rounding) -> Codes:
    """code * 2^by in whole numbers: exact to the left, rounded to the right."""
    move = np.asarray(by, np.int64)
    right = np.minimum(np.maximum(-move, 0), 62)
    up: Codes = codes << np.maximum(move, 0)
    if rounding != "floor":
        half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0)
        if rounding == "even":  # a half on top of an even number is not rounded up
            half = half - np.where(right > 0, 1 - ((up >> right) & 1), 0)
        up = up + half
    down: Codes = up >> right
    return down


def requantise(
    codes: Codes,
    fraction: ArrayLike,
    fmt: Format,
    *,
    rounding: Rounding = "nearest",
    overflow: Overflow = "saturate",
    axis: int = -1,
) -> Codes:
    """Codes at `fraction` bits in another format.

    `fraction`: one number, one of each channel, or an array that broadcasts to the codes.
    """
    _fits(fmt, codes.shape, axis)
    given = np.asarray(fraction, np.int64)
    if given.ndim < 2:
        given = along(np.atleast_1d(given).tolist(), codes.ndim, axis)
    by = along(fmt.f, codes.ndim, axis) - given
    return fold(shifted(codes, by, rounding), fmt, overflow=overflow, axis=axis)


def _fits(fmt: Format, shape: tuple[int, ...], axis: int) -> None:
    if len(fmt) > 1 and (not shape or shape[axis] != len(fmt)):
        raise ShapeError(
            f"a format of {len(fmt)} channels was given values of shape {shape}, whose axis "
            f"{axis} has {shape[axis] if shape else 'no'} channels"
        )


def bits_of(bound: int | np.integer[Any]) -> int:
    """Bits of a signed number that holds everything from -bound to bound."""
    return int(bound).bit_length() + 1
