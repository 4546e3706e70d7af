"""Random numbers that belong to an event, not to the order in which events were asked for.

A counter-based generator: the number is a hash of (seed, purpose, event id, item), so that it is
the same whatever the block size, after a resume, and on any machine. The hash is the finaliser of
SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), which passes BigCrush when
it is fed with a counter. Cost: about 10 ns per number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from stillfit.core.seeds import Seeds

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def bits(
    seed: int, purpose: str, ids: NDArray[np.int64], items: NDArray[np.int64] | None = None
) -> NDArray[np.uint64]:
    """64 random bits for each event of `ids`, or for each item `items[k]` of event `ids[k]`."""
    key = np.uint64(Seeds(seed).integer("chance", purpose))
    mixed = _mixed(ids.astype(np.uint64) * _GOLDEN + key)
    if items is not None:
        mixed = _mixed(mixed + (items.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return mixed


def uniform(
    seed: int, purpose: str, ids: NDArray[np.int64], items: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Uniform numbers inside (0, 1), one for each event or item."""
    top: NDArray[Any] = bits(seed, purpose, ids, items) >> np.uint64(11)
    return (top.astype(np.float64) + 0.5) * 2.0**-53


def normal(
    seed: int, purpose: str, ids: NDArray[np.int64], items: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Standard normal numbers, one for each event or item."""
    drawn: NDArray[np.float64] = ndtri(uniform(seed, purpose, ids, items))
    return drawn


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
