"""Predictions that wait for their labels, so that what was served is judged, not a re-run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays, Index, concat, take
from stillfit.core.predictive import Categorical, Predictive
from stillfit.core.values import Served, VersionId
from stillfit.models.model import join


@dataclass(frozen=True)
class _Block:
    ids: NDArray[np.int64]
    served: Served


@dataclass(frozen=True)
class Judged:
    """Predictions of labelled events by one version: `rows` are their places in the examples."""

    version: VersionId
    rows: NDArray[np.int64]
    predictive: Predictive | Categorical
    outputs: Arrays

    def take(self, places: Index) -> Judged:
        """Some of them, by their places here."""
        return Judged(
            self.version,
            self.rows[places],
            self.predictive.take(places),
            take(self.outputs, places),
        )


class Pending:
    """Predictions by event id, in order; what is older than the oldest waiting event is dropped."""

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()

    def add(self, ids: NDArray[np.int64], served: Served) -> None:
        """Remember what was served for a block."""
        if len(ids):
            self._blocks.append(_Block(ids, served))

    def find(self, ids: NDArray[np.int64]) -> list[Judged]:
        """The predictions of the events `ids` (rising), by the version that served them."""
        parts: dict[VersionId, list[tuple[NDArray[np.int64], Served]]] = {}
        for block in self._blocks:
            low, high = np.searchsorted(ids, [block.ids[0], block.ids[-1] + 1])
            if low == high:
                continue
            rows = np.searchsorted(block.ids, ids[low:high])
            found = np.flatnonzero(block.ids[np.minimum(rows, len(block.ids) - 1)] == ids[low:high])
            if len(found):
                served = _rows(block.served, rows[found], len(block.ids))
                parts.setdefault(served.version, []).append((low + found, served))
        return [
            Judged(
                version,
                np.concatenate([where for where, _ in found]),
                join([served.predictive for _, served in found]),
                concat([served.outputs for _, served in found]),
            )
            for version, found in parts.items()
        ]

    def forget_before(self, first: int) -> None:
        """Drop blocks all of whose events have ids below `first`."""
        while self._blocks and self._blocks[0].ids[-1] < first:
            self._blocks.popleft()

    def versions(self) -> list[tuple[int, VersionId]]:
        """Last id of each waiting block and the version that served it, for a checkpoint."""
        return [(int(block.ids[-1]), block.served.version) for block in self._blocks]


def _rows(served: Served, rows: NDArray[np.int64], n: int) -> Served:
    """The rising `rows` of what was served for n events; not copied where they are all."""
    if len(rows) == n:
        return served
    return Served(served.version, served.predictive.take(rows), take(served.outputs, rows))
