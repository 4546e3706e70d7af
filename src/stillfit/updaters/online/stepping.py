"""One pass of small steps: batches cut from tensors made once; optimisers whose state is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stillfit.core.arrays import Array
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.tensors import RaggedTensor, Tensors, tensors
from stillfit.models.training import Prepared

# Steps whose batches are gathered together: bounds the memory of a pass, and makes the gathering
# next to nothing per step.
TOGETHER = 256
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of Adam, as its authors advise


class Plan(NamedTuple):
    """The rows of every step, one step after the other, and how many each has."""

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]


def in_turn(n: int, batch: int) -> Plan:
    """All of n rows once, `batch` at a time; the last step has the rest."""
    sizes = np.full(-(-n // batch), batch, np.int64)
    if n % batch:
        sizes[-1] = n % batch
    return Plan(np.arange(n), sizes)


def with_replay(
    old: int, stays: NDArray[np.bool_], batch: int, replay: int, rng: np.random.Generator
) -> Plan:
    """New rows in turn, each step joined by up to `replay` different rows of a buffer.

    Rows 0 to `old` - 1 are those that the buffer held before; row `old` + i is new row i, which is
    in the buffer if `stays[i]`, from the step after its own turn on.
    """
    steps = -(-len(stays) // batch)
    rows, sizes = _replay_plan(old, stays, batch, rng.random((steps, replay)))
    return Plan(rows, sizes)


@njit(cache=True)
def _replay_plan(
    old: int, stays: NDArray[np.bool_], batch: int, drawn: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    n, (steps, replay) = len(stays), drawn.shape
    pool = np.empty(old + n, np.int64)
    pool[:old] = np.arange(old)
    held, at = old, 0
    rows = np.empty(n + steps * replay, np.int64)
    sizes = np.empty(steps, np.int64)
    for step in range(steps):
        first, last = step * batch, min((step + 1) * batch, n)
        for row in range(first, last):
            rows[at] = old + row
            at += 1
        taken = min(replay, held)
        for place in range(taken):  # Fisher and Yates, as far as needed
            other = place + int(drawn[step, place] * (held - place))
            pool[place], pool[other] = pool[other], pool[place]
            rows[at] = pool[place]
            at += 1
        for row in range(first, last):
            if stays[row]:
                pool[held] = old + row
                held += 1
        sizes[step] = last - first + taken
    return rows[:at], sizes


def batches(data: Prepared, plan: Plan) -> Iterator[tuple[Tensors, Tensors]]:
    """Inputs and targets of each step as tensors: views of what is gathered for many steps."""
    inputs, targets = tensors(data.inputs), tensors(data.targets)
    ends = np.cumsum(plan.sizes)
    for first in range(0, len(plan.sizes), TOGETHER):
        sizes = plan.sizes[first : first + TOGETHER]
        low = int(ends[first] - sizes[0])
        index = torch.from_numpy(plan.rows[low : low + int(sizes.sum())])
        yield from zip(_cut(inputs, index, sizes), _cut(targets, index, sizes), strict=True)


def _cut(columns: Tensors, index: Tensor, sizes: NDArray[np.int64]) -> Iterator[Tensors]:
    """The rows at `index`, divided into stretches of `sizes`."""
    each = sizes.tolist()
    names = list(columns)
    parts: list[Iterator[Tensor | RaggedTensor]] = []
    for value in uncertain.chosen(columns, index).values():
        parts.append(
            iter(torch.split(value, each)) if isinstance(value, Tensor) else _ragged(value, each)
        )
    for stretch in zip(*parts, strict=True):
        yield dict(zip(names, stretch, strict=True))


def _ragged(value: RaggedTensor, sizes: list[int]) -> Iterator[RaggedTensor]:
    many = torch.tensor(sizes)
    step = torch.repeat_interleave(torch.arange(len(sizes)), many)[value.events]
    local = value.events - (torch.cumsum(many, 0) - many)[step]
    items = torch.bincount(step, minlength=len(sizes)).tolist()
    for values, events, n in zip(
        torch.split(value.values, items), torch.split(local, items), sizes, strict=True
    ):
        yield RaggedTensor(values, events, n)


class Steps:
    """Parameters with an optimiser whose state can be stored and taken up again.

    `sgd`: v = momentum v + g; w = w - rate v. `adam`: Kingma and Ba 2015, arXiv:1412.6980. The
    arithmetic is that of `torch.optim`, all tensors in one call each, which at batch 1 takes half
    the time. `clip`: largest norm of the gradient, inf for none. A parameter without a gradient
    does not move.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: Literal["sgd", "adam"],
        rate: float,
        momentum: float,
        clip: float,
        stored: Mapping[str, Array],
    ) -> None:
        named = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.names = list(named)
        self.parameters: list[Tensor] = list(named.values())
        self.optimiser, self.rate, self.momentum, self.clip = optimiser, rate, momentum, clip
        self.taken = int(stored.get("taken", np.int64(0)))
        first = optimiser == "adam" or momentum > 0
        self.first = self._buffers("first", stored) if first else []
        self.second = self._buffers("second", stored) if optimiser == "adam" else []

    def _buffers(self, kind: str, stored: Mapping[str, Array]) -> list[Tensor]:
        found = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            held = torch.zeros_like(parameter, requires_grad=False)
            before = stored.get(f"{kind}/{name}")
            if before is not None:
                held.copy_(torch.from_numpy(np.array(before)))
            found.append(held)
        return found

    def arrays(self) -> dict[str, Array]:
        """The optimiser's state as named arrays."""
        flat: dict[str, Array] = {"taken": np.array(self.taken)}
        for kind, held in (("first", self.first), ("second", self.second)):
            for name, value in zip(self.names, held, strict=bool(held)):
                flat[f"{kind}/{name}"] = value.cpu().numpy().copy()
        return flat

    def step(self, loss: Tensor) -> None:
        """Change the parameters by the gradient of `loss`."""
        grads = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        self.taken += 1
        with torch.no_grad():
            if self.clip < math.inf:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
                torch._foreach_mul_(grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))
            if self.optimiser == "adam":
                self._adam(grads)
            elif self.momentum:
                torch._foreach_mul_(self.first, self.momentum)
                torch._foreach_add_(self.first, grads)
                torch._foreach_add_(self.parameters, self.first, alpha=-self.rate)
            else:
                torch._foreach_add_(self.parameters, grads, alpha=-self.rate)

    def _adam(self, grads: tuple[Tensor, ...]) -> None:
        torch._foreach_lerp_(self.first, grads, 1 - BETA1)
        torch._foreach_mul_(self.second, BETA2)
        torch._foreach_addcmul_(self.second, grads, grads, 1 - BETA2)
        below = torch._foreach_sqrt(self.second)
        torch._foreach_div_(below, math.sqrt(1 - BETA2**self.taken))
        torch._foreach_add_(below, EPSILON)
        torch._foreach_addcdiv_(
            self.parameters, self.first, below, -self.rate / (1 - BETA1**self.taken)
        )


def learn(model: Model, data: Prepared, plan: Plan, steps: Steps, rng: np.random.Generator) -> int:
    """Take the steps of `plan` on `model.network`, in place; returns how many were taken.

    Batch normalisation keeps its statistics: those of a single event are noise. `rng` seeds what
    the network itself draws. A loss that is not finite ends the pass before its step.
    """
    task, network = model.task, model.network
    done = 0
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` also notes where it was called, for GPUs: half a millisecond.
        torch.default_generator.manual_seed(int(rng.integers(2**62)))
        network.train()
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        try:
            for inputs, targets in batches(data, plan):
                loss = uncertain.loss(task, network, inputs, targets)
                if not math.isfinite(loss.item()):
                    break
                steps.step(loss)
                done += 1
        finally:
            network.eval()
            network.zero_grad(set_to_none=True)
    return done
