"""The plain training step, which every updater shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.arrays import Arrays, concat, take
from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.tensors import tensors

Penalty: TypeAlias = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train.

    `steps` of `batch` events with Adam at `rate` (Kingma and Ba 2015, arXiv:1412.6980), or SGD
    with momentum .9. `cosine` lowers the rate to zero along a half cosine (Loshchilov and Hutter
    2017, arXiv:1608.03983). `clip`: largest gradient norm.
    """

    steps: int = 400
    batch: int = 500
    rate: float = 0.005
    optimiser: Literal["adam", "sgd"] = "adam"
    cosine: bool = True
    clip: float = 10.0


@dataclass(frozen=True)
class Prepared:
    """Labelled events as the network takes them, ready for batches."""

    inputs: Arrays
    targets: Arrays
    n: int

    @classmethod
    def of(cls, model: Model, examples: Examples) -> Prepared:
        if not len(examples):
            raise DataError("there are no labelled events to train on; did labels arrive?")
        inputs = uncertain.prepare(model.task, model.network, examples.inputs)
        return cls(inputs, examples.targets, len(examples))


Drawing: TypeAlias = Callable[[int], tuple[Arrays, Arrays]]


def shuffled(data: Prepared, batch: int, rng: np.random.Generator) -> Drawing:
    """Batches without replacement, reshuffled at each epoch; the last short one is dropped."""
    size = min(batch, data.n)
    order: list[NDArray[np.int64]] = []

    def draw(step: int) -> tuple[Arrays, Arrays]:
        if not order:
            rows = rng.permutation(data.n)
            whole = data.n // size * size
            order.extend(np.split(rows[:whole], whole // size))
        index = order.pop()
        return take(data.inputs, index), take(data.targets, index)

    return draw


def train(
    model: Model,
    draw: Drawing,
    schedule: Schedule,
    penalty: Penalty | None = None,
    rates: dict[str, float] | None = None,
) -> Iterator[float]:
    """Train `model.network` in place; yields the loss of each step.

    `draw(step)` gives prepared inputs and targets of a batch. `penalty(network)` is added to the
    loss. `rates`: factors on the learning rate by prefix of the parameter's name, of which the
    longest counts; 0 freezes. What the network itself draws (dropout) comes from torch's global
    generator: seed it around, as `stillfit.updaters` do.
    A loss that is not finite ends the training: the gates will see a candidate that is no better.
    """
    network = model.network
    groups = _groups(network, schedule.rate, rates or {})
    if schedule.optimiser == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(groups, lr=schedule.rate)
    else:
        optimiser = torch.optim.SGD(groups, lr=schedule.rate, momentum=0.9)
    base = [group["lr"] for group in optimiser.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    network.train()
    try:
        for step in range(schedule.steps):
            if schedule.cosine:
                factor = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
                for group, rate in zip(optimiser.param_groups, base, strict=True):
                    group["lr"] = rate * factor
            inputs, targets = draw(step)
            loss = uncertain.loss(model.task, network, tensors(inputs), tensors(targets))
            if penalty is not None:
                loss = loss + penalty(network)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if not bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, schedule.clip))):
                yield math.inf
                return
            optimiser.step()
            yield float(loss.detach())
    finally:
        network.eval()
        network.zero_grad(set_to_none=True)


def _groups(network: nn.Module, rate: float, rates: dict[str, float]) -> list[dict[str, Any]]:
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        prefix = max((p for p in rates if name.startswith(p)), key=len, default=None)
        factor = 1.0 if prefix is None else rates[prefix]
        if factor and parameter.requires_grad:
            groups.setdefault(factor, []).append(parameter)
    if not groups:
        raise DataError("the network has no parameters to train; a finder cannot be retrained")
    return [{"params": parameters, "lr": rate * f} for f, parameters in groups.items()]


def joined(draws: Sequence[Drawing]) -> Drawing:
    """Batches put together from several drawings, as replay mixes new and old events."""
    if len(draws) == 1:
        return draws[0]

    def draw(step: int) -> tuple[Arrays, Arrays]:
        parts = [one(step) for one in draws]
        return concat([inputs for inputs, _ in parts]), concat([targets for _, targets in parts])

    return draw
