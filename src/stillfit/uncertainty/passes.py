"""What all methods of several passes share: one call for all, bounded memory, training, plain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stillfit.core.arrays import take
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.task import Answer, Classification, Regression, Task
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.uncertain import Uncertain, fold, folded, n_events, n_rows, stretch, unfold
from stillfit.uncertainty.conversion import is_plain, plain_network
from stillfit.uncertainty.layers import PassWeights

# Measured (benchmarks/bench_uncertainty.py). Passes are put into one call while the widest layer
# gives up to FOLD numbers, 2 MB. With more, the arithmetic rules and one pass after another stays
# in the caches, in pieces of as many where a row is an event. An event with rows of its own
# (tracks) has more work per call, and is cut by `chunk` alone.
FOLD = 500_000
CHUNK = 65_536


class Passes(Uncertain):
    """A network whose passes are rows of one call.

    `chunk`: at most so many rows (events, or tracks, times passes) are in memory at a time, or
    one event where it has more. Fewer need less memory and more calls.
    """

    def __init__(self, network: nn.Module, passes: int, chunk: int) -> None:
        super().__init__()
        if chunk < 1:
            raise ConfigError(f"chunk must be 1 row or more, got {chunk}")
        self.network = network
        self.chunk = chunk
        self._passes = passes
        self._fold = max(1, FOLD // _widest(network))

    @property
    def core(self) -> nn.Module:
        """The network with its layers of several passes; used by itself, it stands for all."""
        return self.network

    @property
    def n_passes(self) -> int:
        return self._passes

    def member(self, k: int) -> nn.Module:
        """The network of pass `k` by itself, with layers of PyTorch: what a chip would hold."""
        if not 0 <= k < self.n_passes:
            raise ConfigError(f"there are passes 0 to {self.n_passes - 1}, not {k}")
        return plain_network(self.network, k)

    def passes(self, task: Task, inputs: Tensors) -> Answer:
        if self.training:
            with serving(self):
                return self._pieces(task, inputs)
        return self._pieces(task, inputs)

    def _pieces(self, task: Task, inputs: Tensors) -> Answer:
        """All passes, in as many calls as `chunk` and the caches ask for."""
        m, rows, chunk = self._passes, n_rows(inputs), self.chunk
        fold_at_most = min(self._fold, chunk)
        if m * rows <= fold_at_most:
            return self._answer(task, inputs, slice(0, m))
        n = n_events(inputs)
        calls = -(-m // max(1, min(m, fold_at_most // rows)))
        k = -(-m // calls)
        at_most = chunk if rows > n else fold_at_most
        events = n if rows <= at_most else max(1, at_most * n // rows)
        stretches = [
            inputs if events >= n else stretch(inputs, low, min(low + events, n))
            for low in range(0, max(n, 1), events or 1)
        ]
        return _joined(
            [
                [self._answer(task, piece, slice(first, min(first + k, m))) for piece in stretches]
                for first in range(0, m, k)
            ]
        )

    def _answer(self, task: Task, inputs: Tensors, passes: slice) -> Answer:
        k = passes.stop - passes.start
        if k == 1:
            with folded(passes):
                return tuple(part[None] for part in task.answer(self.network, inputs))
        rows = fold(inputs, k)
        with folded(passes, rows, inputs):
            return unfold(task.answer(self.network, rows), k)

    def fresh(self, task: Task, examples: Examples, seed: int) -> nn.Module:
        new = self._fresh(task, examples, seed)
        new.train(self.training)
        if len(examples):
            new.check(task, examples)
        return new

    @abstractmethod
    def _fresh(self, task: Task, examples: Examples, seed: int) -> Passes:
        """The same method on a plain network drawn anew."""

    def check(self, task: Task, examples: Examples) -> None:
        """`ConfigError` where the network does not keep the rows of several passes apart.

        Two passes over three events in one call must say what they say one by one. A network
        that turns its axes so that rows are no longer first would mix them in silence.
        """
        few = take(examples.inputs, slice(0, min(3, len(examples))))
        inputs = tensors(uncertain.prepare(task, self, few))
        m = min(2, self.n_passes)
        with serving(self), torch.no_grad():
            together = self._answer(task, inputs, slice(0, m))
            single = [self._answer(task, inputs, slice(k, k + 1)) for k in range(m)]
        for part, parts in zip(together, zip(*single, strict=True), strict=True):
            alike = torch.isclose(part, torch.cat(parts), rtol=1e-3, atol=1e-4, equal_nan=True)
            # A maximum between two almost equal bins may fall otherwise by rounding.
            if part.numel() and float(alike.double().mean()) < 0.5:
                raise ConfigError(
                    f"{type(self.core).__name__} mixes the rows of several passes: it says other "
                    "things of the same events in one call and pass by pass; keep events on the "
                    "first axis of what enters dense and convolution layers"
                )


def _widest(network: nn.Module) -> int:
    """Outputs of the widest dense or convolution layer."""
    layers = [part.like if isinstance(part, PassWeights) else part for part in network.modules()]
    widths = [layer.weight.shape[0] for layer in layers if is_plain(layer)]
    return max(widths, default=1)


def _joined(parts: list[list[Answer]]) -> Answer:
    """Answers by passes and, within, by events as one, each number copied once."""
    whole = []
    for place, like in enumerate(parts[0][0]):
        lengths = [piece[place].shape[1] for piece in parts[0]]
        m = sum(row[0][place].shape[0] for row in parts)
        out = like.new_empty(m, sum(lengths), *like.shape[2:])
        first = 0
        for row in parts:
            last = first + row[0][place].shape[0]
            low = 0
            for piece, length in zip(row, lengths, strict=True):
                out[first:last, low : low + length] = piece[place]
                low += length
            first = last
        whole.append(out)
    return tuple(whole)


def over_members(
    network: Passes, task: Task, inputs: Tensors, targets: Tensors, split: bool = False
) -> Tensor:
    """Mean of the losses of all passes on the same events.

    One call where rows are independent of each other (plain regression and classification);
    other losses look at their batch as a whole, so each pass gets its own. `split`: each pass
    sees its share of the batch only.
    """
    m = network.n_passes
    n = n_events(inputs)
    if split and n >= m:
        return _over_shares(network, task, inputs, targets)
    if isinstance(task, Regression | Classification):
        rows = fold(inputs, m)
        with folded(slice(0, m), rows, inputs):
            return task.loss(network.core, rows, fold(targets, m))
    losses = []
    for k in range(m):
        with folded(slice(k, k + 1)):
            losses.append(task.loss(network.core, inputs, targets))
    return torch.stack(losses).mean()


def _over_shares(network: Passes, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
    m = network.n_passes
    share = n_events(inputs) // m
    if isinstance(task, Regression | Classification):
        # Rows are groups of equal size already: the batch without its last few events.
        with folded(slice(0, m)):
            return task.loss(
                network.core, stretch(inputs, 0, m * share), stretch(targets, 0, m * share)
            )
    losses = []
    for k in range(m):
        first, last = k * share, (k + 1) * share
        with folded(slice(k, k + 1)):
            mine = stretch(inputs, first, last)
            losses.append(task.loss(network.core, mine, stretch(targets, first, last)))
    return torch.stack(losses).mean()


@contextmanager
def serving(network: nn.Module) -> Iterator[None]:
    """In evaluation mode within, so that no batch-norm statistic moves; as it was after."""
    busy = [module for module in network.modules() if module.training] if network.training else []
    for module in busy:
        module.training = False
    try:
        yield
    finally:
        for module in busy:
            module.training = True


def checked_members(members: int, what: str = "members") -> int:
    """A number of passes of at least 1."""
    if members < 1:
        raise ConfigError(f"{what} must be 1 or more, got {members}")
    return members
