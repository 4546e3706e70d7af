"""Counter-based random numbers inside compiled loops: one stream per particle of an event.

A stream depends on the event's seed and its own number alone, so that results do not depend on how
events are cut into blocks, and two simulations of the same event under different conditions share
their chance particle by particle: differences between conditions are paired.

Generator: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), period 2^64; normal numbers: the ziggurat
of Marsaglia and Tsang (J. Stat. Softw. 5, 2000) with 256 layers. `state` is an array of one
uint64, which every draw moves on. Cost: 1.5 ns a word, 6 ns a normal number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1342543DE82EF95)  # odd, without relation to the golden ratio
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_EDGE = 3.6541528853610088  # right edge of the 256-layer ziggurat
_AREA = 0.00492867323399  # area of each of its layers


def _ziggurat() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ends of the layers from the base up, and the density there."""
    ends = np.zeros(257)
    ends[0] = _AREA / math.exp(-0.5 * _EDGE**2)
    ends[1] = _EDGE
    for i in range(1, 255):
        height = _AREA / ends[i] + math.exp(-0.5 * ends[i] ** 2)
        ends[i + 1] = math.sqrt(-2.0 * math.log(height))
    return ends, np.exp(-0.5 * ends**2)


_ENDS, _HEIGHTS = _ziggurat()


@njit(nogil=True, error_model="numpy")
def word(state: Any) -> Any:
    """64 random bits."""
    state[0] += _GAMMA
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, error_model="numpy")
def begin_stream(state: Any, seed: Any, number: Any) -> None:
    """Set `state` to the start of stream `number` of `seed`."""
    state[0] = seed + np.uint64(number) * _STREAM
    state[0] = word(state)


@njit(nogil=True, error_model="numpy")
def uniform(state: Any) -> Any:
    """A number in [0, 1)."""
    # Through int64, which converts to a float in one instruction where uint64 needs five.
    return np.float64(np.int64(word(state) >> np.uint64(11))) * _TO_UNIT


@njit(nogil=True, error_model="numpy")
def normal(state: Any) -> Any:
    """A standard normal number."""
    while True:
        bits = word(state)
        layer = np.int64(bits & np.uint64(255))
        x = (np.float64(np.int64(bits >> np.uint64(11))) * (2.0 * _TO_UNIT) - 1.0) * _ENDS[layer]
        if abs(x) < _ENDS[layer + 1]:
            return x
        if layer == 0:
            while True:
                far = -math.log(1.0 - uniform(state)) / _EDGE
                if -2.0 * math.log(1.0 - uniform(state)) > far * far:
                    return _EDGE + far if x > 0 else -_EDGE - far
        low, high = _HEIGHTS[layer], _HEIGHTS[layer + 1]
        if low + uniform(state) * (high - low) < math.exp(-0.5 * x * x):
            return x


@njit(nogil=True, error_model="numpy")
def poisson(state: Any, nothing: Any) -> Any:
    """A Poisson number given the probability of zero, exp(-mean) (Knuth; cost grows with it)."""
    product = uniform(state)
    count = 0
    while product > nothing:
        product *= uniform(state)
        count += 1
    return count
