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
from stillfit.uncertainty.conversion import plain_network

# Rows per call. Measured (benchmarks/bench_uncertainty.py): fewer are slower where events are
# many, more gain nothing and leave the caches.
CHUNK = 16_384


class Passes(Uncertain):
    """A network whose passes are rows of one call.

    `chunk`: at most so many rows (events, or tracks, times passes) are in memory at a time; an
    event with more has a call of its own for each pass. Fewer need less memory and more calls.
    """

    def __init__(self, network: nn.Module, passes: int, chunk: int) -> None:
        super().__init__()
        if chunk < 1:
            raise ConfigError(f"chunk must be 1 row or more, got {chunk}")
        self.network = network
        self.chunk = chunk
        self._passes = passes

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
        m, n = self.n_passes, n_events(inputs)
        if m * n_rows(inputs) <= self.chunk:
            with serving(self):
                return self._answer(task, inputs, slice(0, m))
        each = max(1, -(-n_rows(inputs) // max(n, 1)))  # rows of an event
        # Enough events fill a call by themselves: then a pass at a time, which repeats nothing.
        alone = n * each >= self.chunk // 2
        k = 1 if alone else min(m, max(1, self.chunk // each))
        events = max(1, self.chunk // (k * each))
        whole: list[Answer] = []
        with serving(self):
            for first in range(0, m, k):
                part = slice(first, min(first + k, m))
                pieces = [
                    self._answer(task, stretch(inputs, low, min(low + events, n)), part)
                    for low in range(0, n, events)
                ]
                whole.append(tuple(torch.cat(same, 1) for same in zip(*pieces, strict=True)))
        return tuple(torch.cat(same) for same in zip(*whole, strict=True))

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
