"""What each parameter matters: gradients of single events, squared or by size, and averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from stillfit.core.arrays import Array, Arrays, concat, n_events
from stillfit.core.errors import DataError
from stillfit.core.predictive import Categorical, Predictive
from stillfit.models import uncertain
from stillfit.models.model import CHUNK, Model
from stillfit.models.task import Task
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.training import Prepared
from stillfit.updaters.regularisation.held import trainable

FisherKind: TypeAlias = Literal["true", "empirical"]
Score: TypeAlias = Callable[[nn.Module, Tensors, Tensors], Tensor]

# Numbers of gradients that are held at a time: 32 MB.
HELD = 2**23
# Classes of less probability are left out: their squares count as many times less.
NEGLIGIBLE = 1e-7
# Column beside the targets: the factor on an event's loss. No label is called that.
SHARE = "#share"


@runtime_checkable
class DrawsTargets(Protocol):
    """A task that can draw all the targets that its loss reads from what a network states."""

    def draw_targets(
        self, predictive: Predictive | Categorical, outputs: Arrays, rng: np.random.Generator
    ) -> Arrays:
        """One draw of each event's targets, by name."""
        ...


def fisher(
    model: Model, data: Prepared, kind: FisherKind, rng: np.random.Generator
) -> dict[str, Array]:
    """The diagonal of the Fisher information: mean over events of (d loss / d theta)^2.

    `true`: over the targets that the network itself expects, so the information does not vanish
    where the labels are learned by heart. Classes: the mean over all of them by their
    probabilities, exactly: of a network that is nearly sure, one draw in a thousand would carry
    everything. Numbers: one draw per event. All targets of a `DrawsTargets` are drawn; of other
    tasks the one that the prediction is about, and others stay as labelled.
    `empirical`: the labels as they are. The loss is the network's own, with its method's penalty,
    in evaluation mode. Returns float32 by parameter.
    Cost: gradients of single events, once per event, or per event and class.
    Source: Kunstner et al. 2019, arXiv:1905.12558 (true and empirical differ); van de Ven 2025,
    arXiv:2502.11756 (all classes or one draw).
    """
    n = data.n
    if kind == "true":
        stated = _stated(model, data.inputs)
        if isinstance(model.task, DrawsTargets) or not isinstance(stated[0][0], Categorical):
            drawn = drawn_targets(model, data.inputs, rng)
            data = Prepared(data.inputs, {**data.targets, **drawn}, n, data.ids)
        else:
            data = _every_class(model, data, stated)

    def loss(network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        share = targets.get(SHARE)
        labels = {name: part for name, part in targets.items() if name != SHARE}
        found = uncertain.loss(model.task, network, inputs, labels)
        return found if share is None else share[0] * found  # type: ignore[index]

    return _mean_over_events(model, data, n, loss, torch.square, rng)


def sensitivity(model: Model, inputs: Arrays, rng: np.random.Generator) -> dict[str, Array]:
    """How the answers depend on each parameter: mean over events of |d ||F||^2 / d theta|.

    F: all outputs of the network (of all passes), each minus its mean and over its deviation
    across the events, so that neither zero nor unit of a target matters; an output that is the
    same for all events is taken as it is. No labels. Returns float32 by parameter.
    """
    n = n_events(inputs)
    scales = _scales(model, inputs)

    def norm(network: nn.Module, given: Tensors, targets: Tensors) -> Tensor:
        total = torch.zeros(())
        for part, scale in zip(answers(model.task, network, given), scales, strict=True):
            rows = ((_columns(part) - scale.centre) / scale.width) ** 2
            total = total + rows.sum() / max(rows.shape[0], 1)
        return total

    return _mean_over_events(model, Prepared(inputs, {}, n), n, norm, torch.abs, rng)


def chosen(n: int, most: int, rng: np.random.Generator) -> slice | np.ndarray:
    """At most `most` of `n` events, drawn without replacement, in order."""
    return slice(None) if n <= most else np.sort(rng.permutation(n)[:most])


def drawn_targets(model: Model, inputs: Arrays, rng: np.random.Generator) -> Arrays:
    """Targets drawn from what the network states of prepared inputs, one draw of each event."""
    parts: list[Arrays] = []
    for predictive, outputs in _stated(model, inputs):
        if isinstance(model.task, DrawsTargets):
            parts.append(model.task.draw_targets(predictive, outputs, rng))
        elif isinstance(predictive, Categorical):
            sums = predictive.probabilities.cumsum(1)
            marks = rng.random((len(sums), 1)) * sums[:, -1:]
            parts.append({model.task.target: (marks >= sums).sum(1)})
        else:
            parts.append({model.task.target: predictive.sample(1, rng)[0]})
    return concat(parts)


def _stated(model: Model, inputs: Arrays) -> list[uncertain.Stated]:
    """What the network states of prepared inputs, in chunks."""
    found = []
    with torch.inference_mode():
        for piece in Prepared(inputs, {}, n_events(inputs)).chunks():
            found.append(uncertain.predict(model.task, model.network, tensors(piece.inputs)))
    return found


def _every_class(model: Model, data: Prepared, stated: list[uncertain.Stated]) -> Prepared:
    """Each event once with each class that it may have, and the root of its probability.

    The gradient of a loss times that root, squared, is the square times the probability.
    """
    chunks = [part.probabilities for part, _ in stated if isinstance(part, Categorical)]
    probabilities = np.concatenate(chunks)
    events, classes = np.nonzero(probabilities > NEGLIGIBLE)
    share = np.sqrt(probabilities[events, classes]).astype(np.float32)
    copies = data.take(events)
    labels = {**copies.targets, model.task.target: classes, SHARE: share}
    return Prepared(copies.inputs, labels, len(events))


def answers(task: Task, network: nn.Module, inputs: Tensors) -> tuple[Tensor, ...]:
    """All that a network answers, each part (passes, rows, ...)."""
    if isinstance(network, uncertain.Uncertain):
        return network.passes(task, inputs)
    return tuple(part[None] for part in task.answer(network, inputs))


class _Scale(NamedTuple):
    centre: Tensor
    width: Tensor


def _columns(part: Tensor) -> Tensor:
    """An answer (passes, rows, ...) as (passes x rows, columns)."""
    # No -1: an event without tracks answers with no rows, of which torch finds no columns.
    return part.reshape(part.shape[0] * part.shape[1], math.prod(part.shape[2:]))


def _scales(model: Model, inputs: Arrays) -> list[_Scale]:
    """Mean and deviation of each output over all rows."""
    seen: list[list[Tensor]] = []
    with torch.no_grad():
        for piece in Prepared(inputs, {}, n_events(inputs)).chunks():
            parts = answers(model.task, model.network, tensors(piece.inputs))
            seen.append([_columns(part) for part in parts])
    scales = []
    for columns in zip(*seen, strict=True):
        rows = torch.cat(columns).double()
        if not len(rows):
            rows = rows.new_zeros((1, rows.shape[1]))
        centre, width = rows.mean(0), rows.std(0, correction=0)
        moves = width > 1e-6 * centre.abs()
        like = columns[0].dtype
        scales.append(
            _Scale(
                torch.where(moves, centre, torch.zeros_like(centre)).to(like),
                torch.where(moves, width, torch.ones_like(width)).to(like),
            )
        )
    return scales


class _Scored(nn.Module):
    """A network and a score as one module, in which `functional_call` can put numbers."""

    def __init__(self, network: nn.Module, score: Score) -> None:
        super().__init__()
        self.network = network
        self.score = score

    def forward(self, inputs: Tensors, targets: Tensors) -> Tensor:
        return self.score(self.network, inputs, targets)


def _mean_over_events(
    model: Model,
    data: Prepared,
    n: int,
    score: Score,
    size: Callable[[Tensor], Tensor],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Sum over the rows of `data` of `size` of the gradient of `score`, over `n` events.

    Where all columns are dense, the gradients of many events come from one call (`vmap` over
    `torch.func.grad`), as many as fit in 32 MB. Events of ragged columns, and networks that
    cannot be vectorised, go one by one: the same numbers, 16 to 27 times the time for small
    networks. The network's mode, buffers and `.grad` are left as they were.
    """
    network = model.network.eval()
    own = trainable(network)
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in own.items()}
    scored = _Scored(network, score)
    at_a_time = max(1, min(CHUNK, HELD // max(1, sum(p.numel() for p in own.values()))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        together = True
        for piece in data.chunks(at_a_time):
            inputs, targets = tensors(piece.inputs), tensors(piece.targets)
            found = _vectorised(scored, own, inputs, targets) if together else None
            if found is not None:
                for name, g in found.items():
                    sums[name] += size(g).sum(0)
                continue
            together = False
            for one in piece.chunks(1):
                single = tensors(one.inputs), tensors(one.targets)
                for name, g in _of_one(scored, own, *single).items():
                    sums[name] += size(g)
    importance = {at: (total / max(n, 1)).float().numpy() for at, total in sums.items()}
    for name, values in importance.items():
        if not np.all(np.isfinite(values)):
            raise DataError(
                f"the importance of {name!r} is not finite on {n} events; did the network "
                "diverge, or do the events hold NaN?"
            )
    return importance


def _vectorised(
    scored: _Scored, own: dict[str, nn.Parameter], inputs: Tensors, targets: Tensors
) -> dict[str, Tensor] | None:
    """Gradients (events, ...) of all events in one call; None where that cannot be had."""

    def of_one(values: dict[str, Tensor], x: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        one_x = {name: part[None] for name, part in x.items()}
        one_y = {name: part[None] for name, part in y.items()}
        result: Tensor = functional_call(scored, values, (one_x, one_y))
        return result

    values = {f"network.{name}": p.detach() for name, p in own.items()}
    dense_x = {name: part for name, part in inputs.items() if isinstance(part, Tensor)}
    dense_y = {name: part for name, part in targets.items() if isinstance(part, Tensor)}
    if len(dense_x) + len(dense_y) < len(inputs) + len(targets):
        return None
    try:
        # What a network does with single numbers of its own may not be possible in one call: then
        # each event goes by itself, and a true error comes up there.
        found = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different")(
            values, dense_x, dense_y
        )
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    return {name: found[f"network.{name}"] for name in own}


def _of_one(
    scored: _Scored, own: dict[str, nn.Parameter], inputs: Tensors, targets: Tensors
) -> dict[str, Tensor]:
    score = scored(inputs, targets)
    if not score.requires_grad:
        return {}
    found = torch.autograd.grad(score, list(own.values()), allow_unused=True)
    return {name: g for name, g in zip(own, found, strict=True) if g is not None}
