"""Between NumPy columns and torch tensors, ragged ones included, without copies where possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from stillfit.core.arrays import Arrays, Column, Ragged


@dataclass(frozen=True)
class RaggedTensor:
    """Items of `n` events, flat: `values` (items, ...), `events` (items,) int64 says whose."""

    values: Tensor
    events: Tensor
    n: int

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` (items, ...) over each event, shape (n, ...)."""
        zeros = values.new_zeros((self.n, *values.shape[1:]))
        return zeros.index_add(0, self.events, values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` over each event's items, 0 for an event without items."""
        counts = torch.bincount(self.events, minlength=self.n).clamp(min=1)
        return self.sum(values) / counts.reshape(-1, *[1] * (values.ndim - 1))


Tensors: TypeAlias = Mapping[str, Tensor | RaggedTensor]


def tensor(column: Column) -> Tensor | RaggedTensor:
    """A column as a tensor that shares its memory where torch can."""
    if isinstance(column, Ragged):
        events = torch.from_numpy(column.events)
        return RaggedTensor(_dense(column.values), events, len(column))
    return _dense(column)


def _dense(values: np.ndarray) -> Tensor:
    if not values.flags.writeable or not values.flags.c_contiguous:
        values = np.array(values)  # torch refuses to promise that it will not write
    return torch.from_numpy(values)


def tensors(arrays: Arrays) -> dict[str, Tensor | RaggedTensor]:
    """All columns as tensors."""
    return {name: tensor(column) for name, column in arrays.items()}
