"""The plain training step, and the whole fit round it, which every updater shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.arrays import Arrays, Index, concat, n_events, take
from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.model import CHUNK, Model
from stillfit.models.networks import copy_network
from stillfit.models.tensors import Tensors, tensors


class Guide:
    """What steers a training besides the task's loss: penalties, masks, importance on the way.

    A guide may change with the steps, so it serves one training. Its verbs do nothing here; a
    strategy overrides those that it needs. `begin` is called once, the others at every step, in
    this order.
    """

    def begin(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """The training starts; `optimiser` will take its steps: its rates and state may be read."""

    def penalty(self, network: nn.Module, inputs: Tensors) -> Tensor | None:
        """A scalar added to the loss of the batch of prepared `inputs`, or None."""
        return None

    def before(self, network: nn.Module) -> None:
        """The gradients of loss and penalty lie in `.grad`, not yet clipped; may change them."""

    def after(self, network: nn.Module) -> None:
        """The step was taken; may change the parameters (hold masks, say)."""


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
    """Labelled events as the network takes them, ready for batches; `ids` where they are known."""

    inputs: Arrays
    targets: Arrays
    n: int
    ids: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, model: Model, examples: Examples) -> Prepared:
        if not len(examples):
            raise DataError("there are no labelled events to train on; did labels arrive?")
        inputs = uncertain.prepare(model.task, model.network, examples.inputs)
        return cls(inputs, examples.targets, len(examples), examples.ids)

    def take(self, index: Index) -> Prepared:
        """The events at `index`."""
        ids = None if self.ids is None else self.ids[index]
        inputs, targets = take(self.inputs, index), take(self.targets, index)
        return Prepared(inputs, targets, n_events(targets or inputs), ids)

    def chunks(self, size: int = CHUNK) -> Iterator[Prepared]:
        """All events in order, `size` at a time, so that a pass over them has bounded memory."""
        for first in range(0, self.n, size):
            yield self.take(slice(first, min(first + size, self.n)))


@dataclass(frozen=True)
class Part:
    """Events of which each batch holds `rows`."""

    data: Prepared
    rows: int


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
    guide: Guide | None = None,
    rates: Mapping[str, float] | None = None,
) -> Iterator[float]:
    """Train `model.network` in place; yields the loss of each step.

    `draw(step)` gives prepared inputs and targets of a batch. `guide`: see `Guide`. `rates`:
    factors on the learning rate by prefix of the parameter's name, or of its end inside a wrapper
    ("calibration" is "network.calibration" too), of which the longest counts; 0 freezes. What the
    network itself draws (dropout) comes from torch's global generator: seed it around, as `fit`
    does.
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
    if guide is not None:
        guide.begin(network, optimiser)
    try:
        for step in range(schedule.steps):
            if schedule.cosine:
                factor = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
                for group, rate in zip(optimiser.param_groups, base, strict=True):
                    group["lr"] = rate * factor
            inputs, targets = draw(step)
            given = tensors(inputs)
            loss = uncertain.loss(model.task, network, given, tensors(targets))
            penalty = None if guide is None else guide.penalty(network, given)
            if penalty is not None:
                loss = loss + penalty
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if guide is not None:
                guide.before(network)
            if not bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, schedule.clip))):
                yield math.inf
                return
            optimiser.step()
            if guide is not None:
                guide.after(network)
            yield float(loss.detach())
    finally:
        network.eval()
        network.zero_grad(set_to_none=True)


def _groups(network: nn.Module, rate: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        meant = (p for p in rates if name.startswith(p) or f".{p}" in name)
        prefix = max(meant, key=len, default=None)
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


def fit(
    model: Model,
    data: Prepared | Sequence[Part],
    schedule: Schedule,
    rng: np.random.Generator,
    *,
    batches: np.random.Generator | None = None,
    rates: Mapping[str, float] | None = None,
    guide: Guide | None = None,
    told: Callable[[float], None] = lambda loss: None,
) -> int:
    """Train `model.network` in place and finish it (`Uncertain.finish`); returns the steps taken.

    `data`: events, or parts that share each batch. `rng` seeds torch's generator for what the
    network draws itself (dropout), shuffles unless `batches` does, and serves `finish`: the same
    generator gives the same weights. `rates`, `guide`: see `train`. `told` hears the loss of each
    step.

    Fewer steps than asked for were taken when the loss diverged; then nothing is finished. A
    network of several parts is finished on as many events as can be had at the parts' shares of
    a batch, none twice. Cost: that of `train`, and for an `Uncertain` network its method's own.
    """
    parts = [Part(data, schedule.batch)] if isinstance(data, Prepared) else list(data)
    network = model.network
    start = copy_network(network) if isinstance(network, uncertain.Uncertain) else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        draw = joined([shuffled(part.data, part.rows, batches or rng) for part in parts])
        steps = 0
        for loss in train(model, draw, schedule, guide, rates):
            steps += math.isfinite(loss)
            told(loss)
        if isinstance(network, uncertain.Uncertain) and steps == schedule.steps:
            whole = mixture(parts, rng)
            network.finish(model.task, whole, schedule, rng, start=start, rates=rates)
            network.eval()
            network.zero_grad(set_to_none=True)
    return steps


def mixture(parts: Sequence[Part], rng: np.random.Generator) -> Prepared:
    """One set of events in the shares of a batch, as many as there are; no id comes twice."""
    if len(parts) == 1:
        return parts[0].data
    kept: list[Part] = []
    for part in parts:
        data = part.data
        for other in kept:
            if data.ids is not None and other.data.ids is not None:
                data = data.take(~np.isin(data.ids, other.data.ids))
        if data.n and part.rows:
            kept.append(Part(data, part.rows))
    per_row = min(part.data.n / part.rows for part in kept)
    pieces = []
    for part in kept:
        n = max(1, math.floor(per_row * part.rows + 1e-9))
        pieces.append(part.data.take(np.sort(rng.permutation(part.data.n)[:n])))
    ids = [piece.ids for piece in pieces if piece.ids is not None]
    return Prepared(
        concat([piece.inputs for piece in pieces]),
        concat([piece.targets for piece in pieces]),
        sum(piece.n for piece in pieces),
        np.concatenate(ids) if len(ids) == len(pieces) else None,
    )
