"""Networks of one architecture trained side by side, each on its own rows of one table.

Small networks are ruled by the overhead of each operation. Their parameters are stacked and the
loss is mapped over the stack (`torch.func`), so one operation serves all of them: 20 networks of
50 hidden units cost about as much as 3 in a row, plain ones (`_of_mlps`) about as much as one.
Each is trained exactly as alone: its own batches, gradient, clipping and Adam state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.models import uncertain
from stillfit.models.likelihood import likelihood_of
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, Standardise, copy_network
from stillfit.models.task import Regression
from stillfit.models.tensors import Tensors
from stillfit.models.training import Prepared, Schedule
from stillfit.studies.uci.data import Rows, Table


@dataclass(frozen=True, kw_only=True)
class Decayed(Regression):
    """Regression whose loss holds the weights down: + `decay` x the sum of squared weights.

    Inside the task, so that every method trains with it, whatever it makes of its core. Weights
    that are stacked for m members count as their mean, as their losses do.
    """

    features: tuple[str, ...] = ("x",)
    decay: float | Tensor = 0.0

    def loss(self, network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        squares = [
            weight.square().sum() / (len(weight) if weight.ndim == 3 else 1)
            for name, weight in network.named_parameters()
            if name.rpartition(".")[2] == "weight"
        ]
        return super().loss(network, inputs, targets) + self.decay * torch.stack(squares).sum()


@dataclass(frozen=True)
class Job:
    """One network to be trained: drawn already, on `rows` of the table, with its weight decay."""

    model: Model
    rows: Rows


class _Loss(nn.Module):
    """The training loss as a module, whose parameters `functional_call` replaces."""

    def __init__(self, network: nn.Module, task: Decayed) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, x: Tensor, y: Tensor, decay: Tensor) -> Tensor:
        task = replace(self.task, decay=decay)
        return uncertain.loss(task, self.network, {"x": x}, {self.task.target: y})


def fit_together(
    jobs: Sequence[Job], table: Table, schedule: Schedule, rng: np.random.Generator
) -> list[bool]:
    """Train the networks in place and finish them (`Uncertain.finish`); False: it diverged.

    All must be of one architecture and have a task `Decayed`. `rng`: seeds of batches, of what
    the networks draw themselves, and of `finish`.
    """
    seeds = [int(rng.integers(2**62)) for _ in range(2 + len(jobs))]
    starts = [copy_network(job.model.network) for job in jobs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        finite = _train(jobs, table, schedule, np.random.default_rng(seeds[1]))
        for job, start, seed, ok in zip(jobs, starts, seeds[2:], finite, strict=True):
            model = job.model
            if isinstance(model.network, uncertain.Uncertain) and ok:
                data = Prepared.of(model, table.examples(job.rows))
                own = np.random.default_rng(seed)
                model.network.finish(model.task, data, schedule, own, start=start)
            model.network.eval()
            model.network.zero_grad(set_to_none=True)
    return finite


def _train(
    jobs: Sequence[Job], table: Table, schedule: Schedule, rng: np.random.Generator
) -> list[bool]:
    networks = [job.model.network.train() for job in jobs]
    tasks = [job.model.task for job in jobs]
    assert all(isinstance(task, Decayed) for task in tasks)
    decays = torch.tensor([task.decay for task in tasks if isinstance(task, Decayed)])
    flat, learned = _flat(networks)
    loss_of = _losses(networks, Decayed(target=tasks[0].target), learned)
    draw = _batches([job.rows for job in jobs], schedule.batch, rng)
    x = torch.from_numpy(table.x.astype(np.float32))
    y = torch.from_numpy(table.y.astype(np.float32))
    optimiser = torch.optim.Adam([flat], lr=schedule.rate)
    finite = torch.ones(len(jobs), 1, dtype=torch.bool)
    for step in range(schedule.steps):
        index = draw()
        losses = loss_of(learned, x[index], y[index], decays)
        gradients = torch.autograd.grad(
            losses.sum(), list(learned.values()), allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([part.flatten(1) for part in gradients], 1)
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        finite &= torch.isfinite(norm)
        factor = schedule.clip / norm.clamp(min=schedule.clip)
        # A network that diverged stands still, and its neighbours go on.
        flat.grad = torch.where(finite, gradient * factor, 0)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        optimiser.step()
    with torch.no_grad():
        for k, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                if name in learned:
                    parameter.copy_(learned[name][k])
    return finite[:, 0].tolist()


State = dict[str, Tensor]
Losses = Callable[[State, Tensor, Tensor, Tensor], Tensor]


def _flat(networks: Sequence[nn.Module]) -> tuple[Tensor, State]:
    """What is learned: all of it (networks, numbers), and views of it by name.

    One tensor for the optimiser, whose cost is that of its calls.
    """
    shapes = {
        name: parameter.shape
        for name, parameter in networks[0].named_parameters()
        if parameter.requires_grad
    }
    rows = [{name: p.detach() for name, p in n.named_parameters()} for n in networks]
    flat = torch.stack([torch.cat([row[name].flatten() for name in shapes]) for row in rows])
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()], 1)
    learned = {
        name: part.view(len(rows), *shape).requires_grad_()
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return flat, learned


def _kept(networks: Sequence[nn.Module], learned: State) -> tuple[State, State]:
    """What is not learned: stacked where it differs, as it is where all have the same."""
    kept: State = {}
    shared: State = {}
    every = [{**dict(n.named_parameters()), **dict(n.named_buffers())} for n in networks]
    for name in every[0].keys() - learned.keys():
        values = [one[name].detach() for one in every]
        if all(torch.equal(values[0], value) for value in values):
            shared[name] = values[0]
        else:
            kept[name] = torch.stack(values)
    return kept, shared


def _losses(networks: Sequence[nn.Module], task: Decayed, learned: State) -> Losses:
    """The losses (networks,) of a batch (networks, rows, features), from what is learned."""
    kept, shared = _kept(networks, learned)
    if type(networks[0]) is MLP:
        return _of_mlps(networks[0], kept, shared)
    mapped = _mapped(_Loss(networks[0], task), shared)
    return lambda learned, x, y, decays: mapped(learned, kept, x, y, decays)


def _of_mlps(network: MLP, kept: State, shared: State) -> Losses:
    """Of plain dense networks, whose layers are products of stacked matrices.

    The same numbers as from `_mapped` in half of its time: nothing but the likelihood is
    mapped, and no module is called.
    """
    likelihood = likelihood_of(network)

    def one(raw: Tensor, y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return likelihood.loss(likelihood.rescale(raw, mean, std), y)

    mapped = torch.func.vmap(one)

    def buffer(name: str, n: int) -> Tensor:
        return kept[name] if name in kept else shared[name].expand(n, *shared[name].shape)

    def losses(learned: State, x: Tensor, y: Tensor, decays: Tensor) -> Tensor:
        out, squares = x, torch.zeros(len(x))
        for name, layer in network.layers.named_children():
            if isinstance(layer, Standardise):
                mean, std = (buffer(f"layers.{name}.{part}", len(x)) for part in ("mean", "std"))
                out = (out - mean[:, None]) / std[:, None]
            elif isinstance(layer, nn.Linear):
                weight, bias = (learned[f"layers.{name}.{part}"] for part in ("weight", "bias"))
                out = torch.baddbmm(bias[:, None], out, weight.mT)
                squares = squares + weight.square().flatten(1).sum(1)
            else:
                out = layer(out)
        mean, std = (buffer(f"target_{part}", len(x)) for part in ("mean", "std"))
        found: Tensor = mapped(out, y, mean, std) + decays * squares
        return found

    return losses


def _mapped(loss: _Loss, shared: State) -> Callable[[State, State, Tensor, Tensor, Tensor], Tensor]:
    def one(learned: State, kept: State, x: Tensor, y: Tensor, decay: Tensor) -> Tensor:
        state = {f"network.{k}": v for k, v in {**shared, **kept, **learned}.items()}
        found: Tensor = torch.func.functional_call(loss, state, (x, y, decay))
        return found

    mapped: Callable[[State, State, Tensor, Tensor, Tensor], Tensor] = torch.func.vmap(
        one, randomness="different"
    )
    return mapped


def _batches(rows: Sequence[Rows], batch: int, rng: np.random.Generator) -> Callable[[], Tensor]:
    """Row numbers (networks, batch) without replacement, reshuffled when they are used up."""
    size = min(len(part) for part in rows)
    width = min(batch, size)
    order, at = torch.empty(0), size

    def draw() -> Tensor:
        nonlocal order, at
        if at + width > size:
            order = torch.from_numpy(np.stack([rng.permutation(part)[:size] for part in rows]))
            at = 0
        at += width
        return order[:, at - width : at]

    return draw


def drawn(network: nn.Module, table: Table, rows: Rows, decay: float, seed: int) -> Job:
    """The network drawn anew, its scales set from the rows, ready to be trained on them."""
    task = Decayed(decay=decay)
    fresh = uncertain.fresh(task, network, table.examples(rows), seed)
    return Job(Model(fresh, task, Architecture("uci")), rows)
