"""What a chip learns of the vertex chain: its association network, on the tracks that it saw.

Everything before it (words, weight network, histogram, filter, arg-max) stays as it is, and so do
formats and masks: the circuit is the same circuit with other numbers. Any embedded strategy
(`updaters.embedded`) trains the part that `association_part` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillfit.core.arrays import Array, Ragged
from stillfit.core.errors import DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.l1t.fixed import FixedE2E
from stillfit.l1t.fixed_chain import SEEN_FRACTION, vertex_chain
from stillfit.l1t.fixed_words import encoded, inputs_of
from stillfit.models.fixed.formats import Codes, shifted
from stillfit.models.fixed.integer import Flow
from stillfit.models.fixed.layers import FixedDense
from stillfit.models.fixed.quantisers import Quantiser
from stillfit.updaters.embedded import Format
from stillfit.updaters.embedded.dense import Ends, Part

# Steps of the threshold that a device learns around; numbers of 8 fraction bits and more hold it.
_THRESHOLD_STEP = 2.0**-8


@dataclass(frozen=True, eq=False)
class AssociationPart:
    """The association network of a `FixedE2E` as what a device learns (`embedded.dense.Part`).

    Two classes, 0 for a track of another vertex and 1 for one of the primary vertex. The chip has
    one output, the logit w x; the device has two, -w x / 2 and w x / 2, whose difference it is, so
    that softmax, hinge and squared errors of the device apply. The difference of both rows is what
    the circuit gets, after the network's threshold was added to its bias, as the device learns
    around the threshold.

    Weights enter as the circuit has them, on the grids of its formats, and leave on them again:
    rounded to nearest, saturated, zero where the mask is. In between the device's own numbers are
    finer (where a bias has more fraction bits than they, it enters rounded to theirs); they never
    leave the range of the formats, nor zero where there is no multiplier (`ends`), so that what is
    learned can be loaded.

    Examples are tracks, as whole numbers from the chain itself: for each event all tracks of the
    primary vertex and as many others, spread evenly, in the order of the links: by sector, then by
    phi. So both classes weigh alike, as in the training's loss, whatever the pile-up.
    """

    network: FixedE2E
    layers: tuple[FixedDense, ...]
    names: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """4 inputs, the hidden units, 2 outputs."""
        return (*(layer.in_features for layer in self.layers), 2)

    @property
    def classes(self) -> int:
        return 2

    @property
    def scales(self) -> NDArray[np.float64]:
        """The format of each input: a kept example is a track as it passed it."""
        fmt = self.layers[0].on_input.format
        return np.array([fmt.k, fmt.i, fmt.f], np.float64).reshape(-1)

    @property
    def threshold(self) -> float:
        """Of the logit, in steps of 2^-8."""
        exact = self.network.threshold_code() * 2.0**-self.network.logit_fraction
        return float(np.rint(exact / _THRESHOLD_STEP) * _THRESHOLD_STEP)

    def flat(self, weights: Mapping[str, Array]) -> NDArray[np.float64]:
        """The circuit's weights and biases, the last layer as two rows of half the size."""
        rows = [
            np.concatenate([weight, bias[:, None]], 1)
            for weight, bias in (
                self._on_grid(layer, weights[f"{name}weight"], weights[f"{name}bias"])
                for layer, name in zip(self.layers, self.names, strict=True)
            )
        ]
        rows[-1][:, -1] -= self.threshold
        rows[-1] = np.concatenate([-rows[-1], rows[-1]]) / 2
        return np.concatenate([part.reshape(-1) for part in rows])

    def named(self, flat: NDArray[np.float32]) -> dict[str, Array]:
        """The inverse of `flat`, on the circuit's grids."""
        found: dict[str, Array] = {}
        at = 0
        for layer, name, outputs in zip(self.layers, self.names, self.sizes[1:], strict=True):
            inputs = layer.in_features
            rows = flat[at : at + outputs * (inputs + 1)].reshape(outputs, -1).astype(np.float64)
            at += rows.size
            if layer is self.layers[-1]:
                rows = rows[1:] - rows[:1]
                rows[:, -1] += self.threshold
            weight, bias = self._on_grid(layer, rows[:, :-1], rows[:, -1])
            found[f"{name}weight"] = weight.astype(np.float32)
            found[f"{name}bias"] = bias.astype(np.float32)
        return found

    def ends(self, numbers: Format) -> Ends:
        """The ends of the circuit's formats, half of them in the last layer; 0 without mask."""
        lows, highs = [], []
        for layer in self.layers:
            last = layer is self.layers[-1]
            outputs = len(layer.weight)
            mask = layer.mask.cpu().numpy()
            low, high = np.zeros((2, outputs, layer.in_features + 1))
            for quantiser, columns in (
                (layer.on_weight, slice(None, -1)),
                (layer.on_bias, slice(-1, None)),
            ):
                least, most = _reach(quantiser, outputs)
                low[:, columns], high[:, columns] = least[:, None], most[:, None]
            if last:
                low[:, -1], high[:, -1] = low[:, -1] - self.threshold, high[:, -1] - self.threshold
                size = np.maximum(-low, high) / 2
                low, high = np.concatenate([-size, -size]), np.concatenate([size, size])
                mask = np.concatenate([mask, mask])
            low[:, :-1] *= mask
            high[:, :-1] *= mask
            lows.append(numbers.integers(low).astype(np.int32).reshape(-1))
            highs.append(numbers.integers(high).astype(np.int32).reshape(-1))
        return np.concatenate(lows), np.concatenate(highs)

    def examples(self, events: Examples, numbers: Format) -> tuple[Array, NDArray[np.int32]]:
        """Tracks (n, 4) as the first layer's quantiser gives them, and whose they are (n,)."""
        is_pv, counted = _labels(events)
        codes, sector, offsets = encoded(events.inputs)
        if not np.array_equal(counted, offsets):
            raise ShapeError(
                f"the labels are of {counted[-1]} tracks and the events have {offsets[-1]}; "
                "were labels matched to other events?"
            )
        chain = vertex_chain(self.network)
        seen = chain.seen(inputs_of(codes, sector), offsets)
        rows = balanced(is_pv, offsets, (sector, codes["phi"]))
        first = chain.associate.input(Flow(seen[rows].astype(np.int64), SEEN_FRACTION))
        x = shifted(first.codes, numbers.fraction - first.fraction, "nearest")
        x = np.clip(x, numbers.low, numbers.high).astype(numbers.dtype)
        return x, is_pv[rows].astype(np.int32)

    @staticmethod
    def _on_grid(layer: FixedDense, weight: Array, bias: Array) -> tuple[Array, Array]:
        """Weights and biases as the circuit has them."""
        with torch.no_grad():
            on_weight = layer.on_weight(torch.from_numpy(np.array(weight)) * layer.mask)
            on_bias = layer.on_bias(torch.from_numpy(np.array(bias)))
        return on_weight.double().numpy(), on_bias.double().numpy()


def association_part(network: nn.Module) -> Part | str:
    """What a device learns of a vertex network, or why there is nothing that it could."""
    if not isinstance(network, FixedE2E):
        return (
            f"a chip learns the association of a fixed-point E2E network, and this is "
            f"{type(network).__name__}; convert an E2E network first (l1t.fixed.fixed_e2e)"
        )
    found = [
        (f"associate.{name}.", layer)
        for name, layer in network.associate.named_children()
        if isinstance(layer, FixedDense)
    ]
    return AssociationPart(
        network, tuple(layer for _, layer in found), tuple(name for name, _ in found)
    )


def balanced(
    is_pv: NDArray[np.bool_], offsets: NDArray[np.int64], order: tuple[Array, Array]
) -> NDArray[np.int64]:
    """All primary tracks of each event and as many others, where there are so many; their rows.

    Sorted by event, then by the two keys of `order`; the others are spread evenly along it: of m,
    the r-th is taken where round(r k / m) rises, with k primary tracks. None of an event without
    primary tracks.
    """
    counts = np.diff(offsets)
    event = np.repeat(np.arange(len(counts)), counts)
    rows = np.lexsort((*reversed(order), event))
    first = is_pv[rows]
    primary = np.bincount(event, is_pv, len(counts)).astype(np.int64)
    others = counts - primary
    other = (~first).astype(np.int64)
    before = np.cumsum(other) - other  # others before each track, of all events
    rank = before - np.repeat(np.concatenate([[0], np.cumsum(others)[:-1]]), counts)
    k, m = np.repeat(primary, counts), np.maximum(np.repeat(others, counts), 1)
    rises = (2 * (rank + 1) * k + m) // (2 * m) > (2 * rank * k + m) // (2 * m)
    chosen: NDArray[np.int64] = rows[first | rises]
    return chosen


def _reach(quantiser: Quantiser, outputs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest number of each output channel."""
    fmt = quantiser.format
    ends = fmt.limits(quantiser.overflow)
    low, high = (np.ldexp(end.astype(np.float64), -np.array(fmt.f)) for end in ends)
    return np.broadcast_to(low, outputs), np.broadcast_to(high, outputs)


def _labels(events: Examples) -> tuple[NDArray[np.bool_], Codes]:
    """Whether each track is of the primary vertex, and the offsets of the labels."""
    column = events.targets.get("is_pv")
    if not isinstance(column, Ragged):
        raise DataError(
            "a chip learns which tracks belong to the vertex, and the labels have no ragged "
            "column 'is_pv'"
        )
    values = np.asarray(column.values, np.float64)
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"the label 'is_pv' of track {at} is {values[at]}; a track without a label must not "
            "be learned from"
        )
    return values > 0, column.offsets
