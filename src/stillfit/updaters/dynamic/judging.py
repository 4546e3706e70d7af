"""What the dynamic strategies share: losses on held-out events, parts of a batch, splits."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillfit.core.arrays import Arrays
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.models import uncertain
from stillfit.models.model import CHUNK, Model
from stillfit.models.task import Regression, Task, truth
from stillfit.models.tensors import tensors
from stillfit.models.training import Part, Prepared
from stillfit.models.uncertain import Stated
from stillfit.updaters.contract import Memory


def loss_of(model: Model, data: Prepared) -> float:
    """Mean loss of prepared events by which networks are compared; infinite where it is no number.

    Of regression the CRPS (in the target's unit), of classes the negative log-probability of the
    right one (nats); of other tasks the headline error plus the CRPS over the standard deviation of
    the target, so that the stated uncertainty counts there too. All at least 0, and 0 is perfect.
    Not the training loss: that of some heads is divided by the spread that they state themselves.
    """
    total = 0.0
    target = data.targets.get(model.task.target)
    spread = float(np.std(target)) if isinstance(target, np.ndarray) and len(target) else 1.0
    model.network.eval()
    for piece in data.chunks():
        try:
            with torch.inference_mode():
                said = uncertain.predict(model.task, model.network, tensors(piece.inputs))
        except DataError:  # numbers that no prediction can be made of: it diverged
            return math.inf
        total += float(_losses(model.task, said, piece.targets, spread or 1.0).sum())
    return total / max(data.n, 1) if math.isfinite(total) else math.inf


def _losses(task: Task, said: Stated, targets: Arrays, spread: float) -> NDArray[np.float64]:
    predictive, outputs = said
    if isinstance(predictive, Categorical):
        return -predictive.log_prob(truth(targets, task.target).astype(np.int64))
    if isinstance(task, Regression):
        return predictive.crps(truth(targets, task.target))
    crps = predictive.crps(truth(targets, task.target))
    return task.errors(predictive, outputs, targets)["error"] + crps / spread


def gradients(model: Model, examples: Examples) -> dict[str, Tensor]:
    """Gradient of the mean loss by parameter, of up to `CHUNK` events; 0 where none reaches."""
    known = {n: p for n, p in model.network.named_parameters() if p.requires_grad}
    data = Prepared.of(model, examples.take(slice(0, CHUNK)))
    model.network.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given, wanted = tensors(data.inputs), tensors(data.targets)
        loss = uncertain.loss(model.task, model.network, given, wanted)
        found = torch.autograd.grad(loss, list(known.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if slope is None else slope
        for (name, value), slope in zip(known.items(), found, strict=True)
    }


def parts_of(
    model: Model, fresh: Examples, old: Examples, mix: float, batch: int
) -> tuple[Part, ...]:
    """Batches of fresh events with a share `mix` of old ones, where there are any."""
    old_rows = round(mix * batch) if len(old) else 0
    parts = [(fresh, batch - old_rows), (old, old_rows)]
    return tuple(Part(Prepared.of(model, events), rows) for events, rows in parts if rows)


def others(memory: Memory, fresh: Examples) -> Examples:
    """What is kept besides the fresh events."""
    kept = memory.all()
    return kept.take(~np.isin(kept.ids, fresh.ids)) if len(kept) else kept


def split(examples: Examples, share: float, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """Events to train on and, at random, a share to judge by; each part has at least one."""
    n = len(examples)
    order: NDArray[np.int64] = rng.permutation(n)
    cut = min(max(1, round(share * n)), n - 1)
    return examples.take(np.sort(order[cut:])), examples.take(np.sort(order[:cut]))


def between(name: str, value: float, low: float, high: float, why: str) -> None:
    """`ConfigError` unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value} must lie from {low:g} to {high:g}: {why}")
