"""Signed fixed-point numbers: their range, their rounding, the generator, and two small tables.

Everything here is integers, and is what C and RTL repeat bit for bit (docs/learning/embedded.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError

Rounding: TypeAlias = Literal["half-up", "nearest-even", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = ("half-up", "nearest-even", "stochastic")
HALF_UP, NEAREST_EVEN, STOCHASTIC = range(3)

# Compiled into kernels.py: whoever changes a number here must touch that file too, since numba's
# cache looks at it alone.
# Rates and forgetting factors are integers of 1 / 2^16: an update of f fraction bits is then
# rounded by f + 16 places, and a draw of the generator has 32.
RATE_BITS = 16
MAX_FRACTION = 16
MAX_WIDTH = 24  # float32 holds every such number, and sums of products stay below 2^63

# Tables of 2^-x and ln(1 + x) for x = 0, 1/64, ..., 1, in 1 / 2^14; read with interpolation.
TABLE_BITS = 14
STEPS_BITS = 6
LOG2_E: int = round(math.log2(math.e) * (1 << TABLE_BITS))
LN_2: int = round(math.log(2) * (1 << TABLE_BITS))
_x = np.arange(2**STEPS_BITS + 1) / 2**STEPS_BITS
POWERS = np.rint(2.0**-_x * 2**TABLE_BITS).astype(np.int16)
LOGARITHMS = np.rint(np.log1p(_x) * 2**TABLE_BITS).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class Format:
    """Numbers q / 2^`fraction` with an integer q of `width` bits in two's complement.

    What does not fit saturates. Sums of products are exact and rounded once, by `rounding`:
    `half-up` adds half a unit and cuts (the cheapest in hardware); `nearest-even` has no bias in
    ties; `stochastic` rounds up with a probability equal to the remainder, so that updates far
    below one unit still count on average. It holds for what is stored and learned (weights,
    covariance); activations and errors are then rounded half up, so that prediction is a function.
    """

    width: int = 16
    fraction: int = 12
    rounding: Rounding = "stochastic"

    def __post_init__(self) -> None:
        if not 4 <= self.width <= MAX_WIDTH:
            raise ConfigError(
                f"a width of {self.width} bits cannot be used: 4 to {MAX_WIDTH} can, which float32 "
                "holds exactly and whose sums stay in 64 bits"
            )
        if not 1 <= self.fraction <= min(MAX_FRACTION, self.width - 2):
            raise ConfigError(
                f"{self.fraction} fraction bits do not go with a width of {self.width}: at least 1 "
                f"and at most {min(MAX_FRACTION, self.width - 2)}, so that 1 is a number too"
            )
        if self.rounding not in ROUNDINGS:
            raise ConfigError(
                f"there is no rounding {self.rounding!r}; choose one of {', '.join(ROUNDINGS)}"
            )

    @property
    def low(self) -> int:
        return -(1 << (self.width - 1))

    @property
    def high(self) -> int:
        return (1 << (self.width - 1)) - 1

    @property
    def limit(self) -> float:
        """What the range reaches up to: numbers lie in [-limit, limit)."""
        return math.ldexp(1.0, self.width - 1 - self.fraction)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest integer type that holds a number, as static arrays have it."""
        return word(self.width)

    @property
    def mode(self) -> int:
        """Rounding of what is learned."""
        return ROUNDINGS.index(self.rounding)

    @property
    def forward_mode(self) -> int:
        """Rounding of activations and errors: never by chance."""
        return NEAREST_EVEN if self.rounding == "nearest-even" else HALF_UP

    def integers(self, values: Array) -> Array:
        """The nearest integers q of float values, ties up, saturated; `DataError` on NaN.

        An infinity is refused like NaN: neither is a number that a converter could have given.
        """
        scaled = np.asarray(values, np.float64) * 2.0**self.fraction
        if not np.isfinite(scaled).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(scaled))[0])
            raise DataError(
                f"a value that is not finite ({float(scaled[where])}) at {where} has no "
                "fixed-point number; drop such events before they are learned from"
            )
        return np.clip(np.floor(scaled + 0.5), self.low, self.high).astype(self.dtype)

    def floats(self, integers: Array) -> NDArray[np.float32]:
        """The values q / 2^fraction, exact in float32."""
        return (np.asarray(integers, np.float64) / 2.0**self.fraction).astype(np.float32)


def word(bits: int) -> np.dtype[Any]:
    """The smallest signed integer type of at least so many bits."""
    return np.dtype(np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32)


def rate_of(value: float, name: str) -> int:
    """A rate as an integer of 1 / 2^16, at least 1 where it is not 0; `ConfigError` outside."""
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ConfigError(f"{name} must lie between 0 and 1, got {value}")
    q = math.floor(value * (1 << RATE_BITS) + 0.5)
    if value and not q:
        raise ConfigError(
            f"{name} of {value:g} rounds to 0 in steps of 2^-{RATE_BITS}, and nothing would be "
            f"learned; ask for {2.0**-RATE_BITS:g} or more, or for 0"
        )
    return q


def next_state(x: int) -> int:
    """Marsaglia's xorshift32 (13, 17, 5): the next state, which is also the number drawn.

    32 bits, never 0, period 2^32 - 1. Linear over GF(2): the k-th number from now is a fixed
    matrix of exclusive-ors on the state, so that hardware can draw many in one clock.
    Source: Marsaglia 2003, doi:10.18637/jss.v008.i14.
    """
    x ^= (x << 13) & 0xFFFFFFFF
    x ^= x >> 17
    return x ^ (x << 5) & 0xFFFFFFFF


def seeds_of(rng: np.random.Generator, n: int) -> NDArray[np.uint32]:
    """Start states of `n` generators, none of them 0."""
    return rng.integers(1, 2**32, n, dtype=np.uint32)
