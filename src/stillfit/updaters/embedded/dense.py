"""A torch network, or a part of one, as the dense layers that a device holds, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillfit.core.arrays import Array, Arrays, take
from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.likelihood import GaussianLikelihood, likelihood_of
from stillfit.models.model import Model
from stillfit.models.networks import MLP, Standardise, WithNoise
from stillfit.models.task import Classification, Regression, matrix, truth
from stillfit.models.tensors import tensors
from stillfit.updaters.embedded.fixed import Format

Ends: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32]]


class Part(Protocol):
    """Dense ReLU layers with a linear last one, and how events become their examples.

    `sizes`: inputs and outputs of all layers; `classes`: 0 for a regression; `scales`: numbers by
    which inputs and targets were read: while they stay, kept examples mean the same.
    """

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> int: ...

    @property
    def scales(self) -> NDArray[np.float64]: ...

    def flat(self, weights: Mapping[str, Array]) -> NDArray[np.float64]:
        """All weights, layer after layer and row after row, each row with its bias last."""
        ...

    def named(self, flat: NDArray[np.float32]) -> dict[str, Array]:
        """The layers' parameters by name, as the network that serves has them."""
        ...

    def examples(self, events: Examples, numbers: Format) -> tuple[Array, NDArray[np.int32]]:
        """Inputs (n, features) and targets (n,) in the order in which they are learned."""
        ...

    def ends(self, numbers: Format) -> Ends | None:
        """Lowest and highest number of each weight, as `flat` has them; None: the whole range."""
        ...


@runtime_checkable
class HasDevicePart(Protocol):
    """A task whose networks have a part that a device can learn (`l1t.vertex.VertexTask`)."""

    def device_part(self, network: nn.Module) -> Part | str:
        """That part of a network, or why this network has none."""
        ...


@dataclass(frozen=True)
class Dense:
    """ReLU layers and a linear last one, with the scales of their inputs and of the target.

    `names`: of the linear layers in the whole network, as prefixes of their parameters. `sizes`:
    inputs and outputs of all layers. `classes`: 0 for a regression. The scaling of the inputs is
    kept and not folded into the first layer, whose weights would then span the orders of magnitude
    of the features' units: a device reads numbers of order one, (x - mean) / std.
    """

    task: Regression | Classification
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    target_mean: float
    target_std: float

    @property
    def classes(self) -> int:
        return self.task.classes if isinstance(self.task, Classification) else 0

    @property
    def scales(self) -> NDArray[np.float64]:
        """Mean and deviation of inputs and target."""
        return np.concatenate([self.mean, self.std, [self.target_mean, self.target_std]])

    def ends(self, numbers: Format) -> None:
        """Every weight may use the whole range."""

    def flat(self, weights: Mapping[str, Array]) -> NDArray[np.float64]:
        """All weights, layer after layer and row after row, each row with its bias last."""
        rows = [
            np.concatenate([weights[f"{n}weight"], weights[f"{n}bias"][:, None]], 1).reshape(-1)
            for n in self.names
        ]
        return np.concatenate(rows).astype(np.float64)

    def named(self, flat: NDArray[np.float32]) -> dict[str, Array]:
        """The inverse of `flat`: the layers' parameters by name."""
        found: dict[str, Array] = {}
        at = 0
        for name, n, m in zip(self.names, self.sizes, self.sizes[1:], strict=False):
            rows = flat[at : at + m * (n + 1)].reshape(m, n + 1)
            found[f"{name}weight"] = rows[:, :n].copy()
            found[f"{name}bias"] = rows[:, n].copy()
            at += m * (n + 1)
        return found

    def examples(self, events: Examples, numbers: Format) -> tuple[Array, NDArray[np.int32]]:
        """One example for each event."""
        return self.inputs(events.inputs, numbers), self.targets(events, numbers)

    def inputs(self, arrays: Arrays, numbers: Format) -> Array:
        """Inputs (n, features) as the device reads them; `DataError` names a value that is none."""
        x = matrix(arrays, self.task.features).astype(np.float64)
        if x.shape[1] != self.sizes[0]:
            raise DataError(
                f"the device's network takes {self.sizes[0]} inputs and the events have "
                f"{x.shape[1]}; was the feature list changed since it was trained?"
            )
        if not np.isfinite(x).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
            raise DataError(
                f"input {column} of event {row} is {x[row, column]}, which has no fixed-point "
                "number; drop such events before a device learns from them"
            )
        return numbers.integers((x - self.mean) / self.std)

    def targets(self, examples: Examples, numbers: Format) -> NDArray[np.int32]:
        """Targets (n,) as the device reads them: numbers of the format, or classes."""
        y = truth(examples.targets, self.task.target)
        if not np.isfinite(y).all():
            row = int(np.flatnonzero(~np.isfinite(y))[0])
            raise DataError(
                f"the target {self.task.target!r} of event {row} is {y[row]}; an event without "
                "a label must not be learned from"
            )
        if not self.classes:
            return numbers.integers((y - self.target_mean) / self.target_std).astype(np.int32)
        strange = (y < 0) | (y >= self.classes) | (y != np.floor(y))
        if strange.any():
            row = int(np.flatnonzero(strange)[0])
            raise DataError(
                f"event {row} has class {y[row]:g} and the network knows 0 to {self.classes - 1}; "
                "a class that it has no output for needs a network with more"
            )
        return y.astype(np.int32)


def part_of(serving: Model, events: Examples) -> Part | str:
    """What a device learns of the serving model: its task's part, else all of its dense layers.

    A text says why there is none. `events`: see `dense_of`.
    """
    if isinstance(serving.task, HasDevicePart):
        return serving.task.device_part(serving.network)
    return dense_of(serving, events)


def dense_of(serving: Model, events: Examples) -> Dense | str:
    """The layers of the serving model's core, or why a device cannot hold them.

    `events`: a few of them are passed through the layers that were found, which must say what
    the network says, so that a network with a forward of its own is not taken for its layers.
    """
    task = serving.task
    if not isinstance(task, Regression | Classification):
        return f"a device learns one number or one class per event, not {type(task).__name__}"
    core = uncertain.core_of(serving.network)
    inner = core.network if isinstance(core, WithNoise) else core
    if isinstance(task, Regression) and not isinstance(likelihood_of(core), GaussianLikelihood):
        return (
            f"a device learns a mean and a log-variance, and the network's head states "
            f"{type(likelihood_of(core)).__name__}"
        )
    layers: list[nn.Module] = []
    for part in _chain(inner):
        if isinstance(part, str):
            return part
        layers.append(part)
    scale = layers.pop(0) if layers and isinstance(layers[0], Standardise) else None
    linears = layers[0::2]
    alternate = all(isinstance(relu, nn.ReLU) for relu in layers[1::2])
    plain = all(type(a).forward is nn.Linear.forward for a in linears)
    if len(layers) % 2 == 0 or not alternate or not plain:
        return (
            "a device holds dense layers with ReLU between them and a linear last one; "
            f"{type(inner).__name__} is made of {', '.join(type(a).__name__ for a in layers)}"
        )
    found = _built(serving, task, inner, [a for a in linears if isinstance(a, nn.Linear)], scale)
    if isinstance(found, Dense) and not _says_the_same(found, serving, core, events):
        return (
            f"{type(inner).__name__} does not say what its dense layers say: a device cannot "
            "hold a network with a forward of its own"
        )
    return found


def _built(
    serving: Model,
    task: Regression | Classification,
    inner: nn.Module,
    linears: list[nn.Linear],
    scale: nn.Module | None,
) -> Dense | str:
    known = {
        id(module): f"{name}." if name else "" for name, module in serving.network.named_modules()
    }
    if any(layer.bias is None for layer in linears):
        return "a device's layers have biases; one of the network's dense layers has none"
    sizes = (linears[0].in_features, *(layer.out_features for layer in linears))
    mean, std = np.zeros(sizes[0]), np.ones(sizes[0])
    if isinstance(scale, Standardise):
        mean = scale.mean.detach().cpu().numpy().astype(np.float64)
        std = scale.std.detach().cpu().numpy().astype(np.float64)
    target_mean, target_std = 0.0, 1.0
    if isinstance(task, Classification) and sizes[-1] != task.classes:
        return f"the network has {sizes[-1]} outputs for {task.classes} classes"
    if isinstance(task, Regression) and isinstance(inner, MLP) and inner.likelihood is not None:
        target_mean, target_std = float(inner.target_mean), float(inner.target_std)
    names = tuple(known[id(layer)] for layer in linears)
    return Dense(task, names, sizes, mean, std, target_mean, target_std)


def _chain(network: nn.Module) -> Iterator[nn.Module | str]:
    """The layers in their order; a text in place of one that a device cannot hold."""
    if isinstance(network, MLP):
        yield from _chain(network.layers)
    elif isinstance(network, nn.Sequential):
        for part in network:
            yield from _chain(part)
    elif isinstance(network, Standardise | nn.Linear | nn.ReLU):
        yield network
    elif not isinstance(network, nn.Identity | nn.Dropout):  # which do nothing where it serves
        yield (
            f"a device holds plain dense layers and ReLU; the network has a "
            f"{type(network).__name__}"
        )


def _says_the_same(dense: Dense, serving: Model, core: nn.Module, events: Examples) -> bool:
    if not len(events):
        return True
    few = take(events.inputs, slice(0, 8))
    x = matrix(few, dense.task.features).astype(np.float64)
    if x.shape[1] != dense.sizes[0] or not np.isfinite(x).all():
        return True  # said better where the inputs are read
    values = (x - dense.mean) / dense.std
    weights = serving.weights()
    for name in dense.names:
        out = values @ weights[f"{name}weight"].T.astype(np.float64) + weights[f"{name}bias"]
        values = np.maximum(out, 0)
    out = out[:, :1] * dense.target_std + dense.target_mean if not dense.classes else out
    with torch.no_grad():
        prepared = tensors(uncertain.prepare(dense.task, serving.network, few))
        answer = dense.task.answer(core, prepared)[0][:, : out.shape[1]]
    return np.allclose(answer.double().cpu().numpy(), out, rtol=1e-3, atol=1e-3)
