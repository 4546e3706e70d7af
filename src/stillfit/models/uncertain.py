"""Networks that state their uncertainty by their own way of passing events through a core.

`prepare`, `fresh`, `loss` and `predict` are what everyone calls: they ask the task for a plain
network and the network itself for an `Uncertain` one, so that no updater need know the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.arrays import Arrays
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Predictive
from stillfit.models.task import Answer, Task
from stillfit.models.tensors import RaggedTensor, Tensors

if TYPE_CHECKING:
    from stillfit.models.training import Prepared, Schedule

Stated: TypeAlias = tuple[Predictive | Categorical, Arrays]


class Uncertain(nn.Module, ABC):
    """A network round a plain `core`, which any task of the core can train and ask.

    `core` is what tasks know: it prepares inputs, and says what its outputs mean. A method gives
    at least `passes`. What is frozen (masks, sample banks) is a buffer, so that it is stored with
    the version and the same version answers the same for ever.
    """

    @property
    @abstractmethod
    def core(self) -> nn.Module:
        """The plain network (of ensembles, one that stands for all)."""

    @abstractmethod
    def passes(self, task: Task, inputs: Tensors) -> Answer:
        """The answers of all m passes at inference: each tensor of `task.answer` as (m, ...)."""

    def loss(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        """Mean training loss of a batch, with the method's own penalty."""
        return task.loss(self.core, inputs, targets)

    def predict(self, task: Task, inputs: Tensors) -> Stated:
        """What the passes state together."""
        return task.state(self.core, self.passes(task, inputs), inputs)

    @abstractmethod
    def fresh(self, task: Task, examples: Examples, seed: int) -> nn.Module:
        """The same architecture at its start, as `Task.fresh`."""

    @property
    @abstractmethod
    def n_passes(self) -> int:
        """Evaluations of the core per prediction, each with its multiply-accumulates."""

    def finish(
        self,
        task: Task,
        data: Prepared,
        schedule: Schedule,
        rng: np.random.Generator,
        *,
        start: nn.Module | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Fit, in place, what is fitted once the network is trained; `training.fit` calls it.

        `data`: the events that it was trained on. `schedule`, `rates`: how. `start`: the network
        as it was before that, for methods that train it again on a part of the events. The same
        `rng` must give the same numbers. Here: the core is finished, where it has anything to.
        """
        core = self.core
        if isinstance(core, Uncertain):
            inner = start.core if isinstance(start, Uncertain) else None
            core.finish(task, data, schedule, rng, start=inner, rates=rates)


def core_of(network: nn.Module) -> nn.Module:
    """The plain network inside all wrappers."""
    while isinstance(network, Uncertain):
        network = network.core
    return network


def prepare(task: Task, network: nn.Module, inputs: Arrays) -> Arrays:
    """Raw inputs as the network takes them."""
    return task.prepare(core_of(network), inputs)


def fresh(task: Task, network: nn.Module, examples: Examples, seed: int) -> nn.Module:
    """The same architecture at its start: parameters drawn anew, scales set from data."""
    if isinstance(network, Uncertain):
        return network.fresh(task, examples, seed)
    return task.fresh(network, examples, seed)


def loss(task: Task, network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
    """Mean training loss of a batch of prepared events, a scalar."""
    if isinstance(network, Uncertain):
        return network.loss(task, inputs, targets)
    return task.loss(network, inputs, targets)


def predict(task: Task, network: nn.Module, inputs: Tensors) -> Stated:
    """The headline prediction of prepared events, and further outputs by name."""
    if isinstance(network, Uncertain):
        return network.predict(task, inputs)
    return task.state(network, tuple(part[None] for part in task.answer(network, inputs)), inputs)


def fold(tensors: Tensors, m: int) -> dict[str, Tensor | RaggedTensor]:
    """Every event `m` times, pass after pass: n events become m * n rows.

    Passes as rows let any network that treats rows alike answer for all members in one call.
    """
    folded: dict[str, Tensor | RaggedTensor] = {}
    for name, value in tensors.items():
        if isinstance(value, RaggedTensor):
            first = torch.arange(m, device=value.events.device)[:, None] * value.n
            events = (value.events[None] + first).reshape(-1)
            items = value.values.repeat(m, *[1] * (value.values.ndim - 1))
            folded[name] = RaggedTensor(items, events, value.n * m)
        else:
            folded[name] = value.repeat(m, *[1] * (value.ndim - 1))
    return folded


def unfold(answer: Answer, m: int) -> Answer:
    """Answers of `m` folded passes as (m, ...) tensors."""
    return tuple(part.reshape(m, -1, *part.shape[1:]) for part in answer)
