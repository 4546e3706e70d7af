"""Networks that state their uncertainty by their own way of passing events through a core.

`prepare`, `fresh`, `loss` and `predict` are what everyone calls: they ask the task for a plain
network and the network itself for an `Uncertain` one, so that no updater need know the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

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
            folded[name] = RaggedTensor(_repeated(value.values, m), events, value.n * m)
        else:
            folded[name] = _repeated(value, m)
    return folded


def _repeated(value: Tensor, m: int) -> Tensor:
    # A fifth of the time of `repeat` for few rows.
    return value.expand(m, *value.shape).reshape(m * value.shape[0], *value.shape[1:])


def unfold(answer: Answer, m: int) -> Answer:
    """Answers of `m` folded passes as (m, ...) tensors."""
    return tuple(part.reshape(m, -1, *part.shape[1:]) for part in answer)


class _Folding(NamedTuple):
    """The passes that rows belong to, and the tensors that were folded with what they were."""

    passes: slice
    origins: list[tuple[Tensor, Tensor]]


# Layers deep inside a user's own forward must know which pass a row belongs to, and that forward
# has no argument for it. A context variable, so that threads do not see each other's.
_FOLDING: ContextVar[_Folding | None] = ContextVar("folding", default=None)


class folded:
    """Within it, rows are groups of equal size, one for each of `passes` (start and stop given).

    `rows`: the folded tensors of `inputs`, from which layers may see that all groups are alike.
    A class and not a generator: it is entered for every prediction, in half the time.
    """

    __slots__ = ("_folding", "_token")

    def __init__(
        self, passes: slice, rows: Tensors | None = None, inputs: Tensors | None = None
    ) -> None:
        origins: list[tuple[Tensor, Tensor]] = []
        if rows is not None and inputs is not None:
            for name, was in inputs.items():
                row = rows[name]
                if isinstance(row, Tensor) and isinstance(was, Tensor):
                    origins.append((row, was))
        self._folding = _Folding(passes, origins)

    def __enter__(self) -> None:
        self._token = _FOLDING.set(self._folding)

    def __exit__(self, *error: object) -> None:
        _FOLDING.reset(self._token)


def passes_now() -> slice | None:
    """The passes that the rows belong to; None outside `folded`, where a core stands alone."""
    now = _FOLDING.get()
    return None if now is None else now.passes


def unfolded(x: Tensor) -> Tensor | None:
    """The events of which `x` holds one copy per pass; None where it is not as `fold` made it."""
    now = _FOLDING.get()
    if now is not None:
        for row, was in now.origins:
            if row is x:
                return was
    return None


def per_row(values: Tensor, rows: int) -> Tensor:
    """Each row's own share of `values` (members, ...): (rows, ...).

    Where all rows are of one pass its (...), and alone the first's.
    """
    passes = passes_now()
    if passes is None:
        return values[0]
    k = passes.stop - passes.start
    if k == 1:
        return values[passes.start]
    return values[passes].repeat_interleave(rows // k, 0)


@runtime_checkable
class HasMembers(Protocol):
    """A module with parameters of its own that knows how to hold those of m members.

    For modules that are neither dense, convolution nor normalisation layers and sit in a network
    that is turned into an ensemble.
    """

    def to_members(self, m: int) -> nn.Module:
        """A module for folded rows, see `per_row`: parameters (m, ...), first all as here.

        Itself where one set of numbers is right for all members. Else the module must have
        `plain(k)`, the module of member k, and `put(k, module)`, which sets it.
        """


def n_events(tensors: Tensors) -> int:
    """Events of prepared inputs."""
    for value in tensors.values():
        return value.n if isinstance(value, RaggedTensor) else value.shape[0]
    return 0


def n_rows(tensors: Tensors) -> int:
    """Rows of the longest tensor: events, or items where there are ragged ones."""
    lengths = (v.values if isinstance(v, RaggedTensor) else v for v in tensors.values())
    return max((rows.shape[0] for rows in lengths), default=0)


def stretch(tensors: Tensors, first: int, last: int) -> dict[str, Tensor | RaggedTensor]:
    """The events from `first` to before `last`; those of ragged tensors must lie in order."""
    found: dict[str, Tensor | RaggedTensor] = {}
    for name, value in tensors.items():
        if isinstance(value, RaggedTensor):
            ends = torch.tensor([first, last], device=value.events.device)
            low, high = torch.searchsorted(value.events, ends).tolist()
            events = value.events[low:high] - first
            found[name] = RaggedTensor(value.values[low:high], events, last - first)
        else:
            found[name] = value[first:last]
    return found


def chosen(tensors: Tensors, index: Tensor) -> dict[str, Tensor | RaggedTensor]:
    """The events at `index` (int64), repeated ones included, in its order."""
    found: dict[str, Tensor | RaggedTensor] = {}
    for name, value in tensors.items():
        if isinstance(value, RaggedTensor):
            place = value.events.device
            index = index.to(place)
            counts = torch.bincount(value.events, minlength=value.n)
            starts = torch.cumsum(counts, 0) - counts
            taken = counts[index]
            events = torch.repeat_interleave(torch.arange(len(index), device=place), taken)
            within = (
                torch.arange(len(events), device=place) - (torch.cumsum(taken, 0) - taken)[events]
            )
            found[name] = RaggedTensor(
                value.values[starts[index][events] + within], events, len(index)
            )
        else:
            found[name] = value[index]
    return found
