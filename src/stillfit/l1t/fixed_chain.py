"""The whole vertex chain in whole numbers, as a chip computes it: track words in, flags out.

Read from a `FixedE2E`, which it equals bit for bit: word decoding, weight network, histogram,
filter, arg-max with the firmware's tie-break, position, association network, threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.l1t.fixed import AWAY_FRACTION, STEPS_OF_Z, Z_STEP, FixedE2E, FixedPattern
from stillfit.l1t.fixed_words import (
    FRACTIONS,
    PT,
    QUALITY,
    RESOLUTION,
    Inputs,
    inputs_of_words,
    words_of,
)
from stillfit.l1t.vertexing import BINS
from stillfit.models.fixed.formats import Codes
from stillfit.models.fixed.integer import IntegerNetwork, integer
from stillfit.models.model import Model

# Bins by distance to the middle of the histogram, the lower first: how equal scores are decided.
ORDER = np.lexsort((np.arange(BINS), np.abs(2 * np.arange(BINS) - (BINS - 1)))).astype(np.int64)
SEEN = np.array([PT, QUALITY, RESOLUTION])
SEEN_FRACTION = np.array([*FRACTIONS[SEEN], AWAY_FRACTION])


class Answer(NamedTuple):
    """What the chain says of n events with `items` tracks in all, in whole numbers.

    `bins` (n,): the winning bin. `z0` (n,): steps of `fixed.Z_STEP` cm. `score` (n,): of the
    winning bin, `VertexChain.score_fraction` bits behind the point; 0: nothing found, z0 = 0.
    `weights` (items,): what each track adds. `logits` (items,), `VertexChain.logit_fraction` bits
    behind the point; `flags` (items,): whether it reaches the threshold.
    """

    bins: Codes
    z0: Codes
    score: Codes
    weights: Codes
    logits: Codes
    flags: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class VertexChain:
    """All numbers of the chain, and its verbs. Made by `vertex_chain`.

    `side`, `middle`: the filter's taps, at `taps_fraction` bits. `full`: where a bin of the
    histogram saturates. `bias`: of the position, in its steps. `sector_table`, `barrel_table`:
    taken from z0, in its least significant bits. `threshold`: of the logit's code.
    """

    weight: IntegerNetwork
    associate: IntegerNetwork
    side: int
    middle: int
    taps_fraction: int
    full: int
    score_bits: int
    bias: int
    sector_table: Codes
    barrel_table: Codes
    threshold: int

    @property
    def score_fraction(self) -> int:
        """Fraction bits of the score."""
        return int(self.weight.fraction[0]) + self.taps_fraction

    @property
    def logit_fraction(self) -> int:
        """Fraction bits of the logits."""
        return int(self.associate.fraction[0])

    def find(self, given: Inputs, offsets: NDArray[np.int64]) -> Answer:
        """The vertex of each event and the association of its tracks; event i owns the tracks from
        `offsets[i]` to `offsets[i + 1]`."""
        weights, seen, best, z0, score = self._found(given, offsets)
        logits = self.associate.run(seen, SEEN_FRACTION).codes[:, 0]
        return Answer(best, z0, score, weights, logits, logits >= self.threshold)

    def seen(self, given: Inputs, offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """What the association network is given of each track (items, 4), in whole numbers: pT,
        quality, resolution, |bin - winning bin|, with `SEEN_FRACTION` bits behind the point."""
        return self._found(given, offsets)[1]

    def _found(
        self, given: Inputs, offsets: NDArray[np.int64]
    ) -> tuple[Codes, NDArray[np.int32], Codes, Codes, Codes]:
        """Weights, inputs of the association, winning bins, positions and scores."""
        items = len(given.place)
        if offsets[0] != 0 or offsets[-1] != items:
            raise ShapeError(
                f"the offsets reach from {offsets[0]} to {offsets[-1]}, the tracks are {items}"
            )
        place = given.place - self.sector_table[given.sector] - self.barrel_table[given.barrel]
        bins = np.clip(place >> 4, 0, BINS - 1)
        weights = self.weight.run(given.features[:, :3], FRACTIONS[:3]).codes[:, 0]
        n = len(offsets) - 1
        best, z0, score = (np.empty(n, np.int64) for _ in range(3))
        _peaks(bins, weights, offsets, ORDER, self.side, self.middle, self.full, best, z0, score)
        z0[score > 0] += self.bias
        seen = np.empty((items, 4), np.int32)
        seen[:, :3] = given.features[:, SEEN]
        _distances(bins, best, offsets, seen)
        return weights, seen, best, z0, score

    def find_words(
        self, words: NDArray[np.uint8], sector: NDArray[np.int8], offsets: NDArray[np.int64]
    ) -> Answer:
        """The same from 96-bit words (items, 12) and the sector of the link of each."""
        return self.find(inputs_of_words(words, sector), offsets)

    def find_tracks(self, inputs: Arrays) -> Answer:
        """The same from raw track columns, encoded as words."""
        return self.find_words(*words_of(inputs))

    def position(self, answer: Answer) -> NDArray[np.float32]:
        """z0 in cm, as the network states it."""
        return answer.z0.astype(np.float32) * np.float32(Z_STEP)


def vertex_chain(model: Model | FixedE2E) -> VertexChain:
    """The chain of a fixed-point network with its present weights.

    `ConfigError` for another network, for sums that do not fit, and for a dead (all-zero) layer.
    """
    network = model.network if isinstance(model, Model) else model
    if not isinstance(network, FixedE2E):
        raise ConfigError(
            f"the whole-number chain is read from a FixedE2E, this is {type(network).__name__}; "
            "convert the model first (l1t.fixed.fixed_e2e)"
        )
    pattern = network.pattern
    assert isinstance(pattern, FixedPattern)
    score_bits = network.score_bits()
    side, middle = pattern.on_taps.codes(pattern.taps).tolist()
    if side <= 0 and middle <= 0:
        raise ConfigError(
            f"the taps of the pattern filter are {side} and {middle} in fixed point: no score can "
            "rise above zero, so no vertex is ever found; train it, or give the taps more bits"
        )
    sector, barrel = network.table_codes()
    return VertexChain(
        weight=integer(network.weight, "weight"),
        associate=integer(network.associate, "associate"),
        side=side,
        middle=middle,
        taps_fraction=pattern.on_taps.format.f[0],
        full=(1 << network.histogram_bits) - 1,
        score_bits=score_bits,
        bias=pattern.bias_code(),
        sector_table=sector,
        barrel_table=barrel,
        threshold=network.threshold_code(),
    )


@njit(cache=True, nogil=True)
def _peaks(
    bins: Any,
    weights: Any,
    offsets: Any,
    order: Any,
    side: int,
    middle: int,
    full: int,
    best: Any,
    z0: Any,
    score: Any,
) -> None:
    """Histogram, filter, arg-max and position (without bias) of each event."""
    size = 256
    per_bin = 16 << STEPS_OF_Z
    sums = np.zeros(size + 4, np.int64)  # two empty bins at each end
    scores = np.zeros(size, np.int64)
    for event in range(len(offsets) - 1):
        sums[:] = 0
        for track in range(offsets[event], offsets[event + 1]):
            sums[bins[track] + 2] += weights[track]
        for b in range(2, size + 2):
            sums[b] = min(sums[b], full)
        for b in range(size):
            scores[b] = max(middle * sums[b + 2] + side * (sums[b + 1] + sums[b + 3]), 0)
        top = np.int64(-1)
        at = 0
        for k in range(size):
            b = order[k]
            if scores[b] > top:
                top = scores[b]
                at = b
        best[event] = at
        score[event] = top
        if top == 0:
            z0[event] = 0
            continue
        total = np.int64(0)
        lean = np.int64(0)
        for k in range(5):
            total += sums[at + k]
            lean += (k - 2) * sums[at + k]
        steps = (2 * per_bin * lean + total) // (2 * total if total > 0 else 1)
        z0[event] = (2 * at + 1 - size) * (per_bin // 2) + steps


@njit(cache=True, nogil=True)
def _distances(bins: Any, best: Any, offsets: Any, seen: Any) -> None:
    """|bin - winning bin| of each track, into the fourth column of `seen`."""
    for event in range(len(offsets) - 1):
        for track in range(offsets[event], offsets[event + 1]):
            seen[track, 3] = abs(bins[track] - best[event])
