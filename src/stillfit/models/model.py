"""A model: a network with its task and the recipe that builds it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillfit.core.arrays import Array, Arrays, concat, n_events, take
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Predictive
from stillfit.core.tables import did_you_mean
from stillfit.core.values import JSON, Footprint, Served, VersionId
from stillfit.models import uncertain
from stillfit.models.networks import copy_network
from stillfit.models.task import Task
from stillfit.models.tensors import tensors

# Events per pass: bounds the memory of a prediction, and fits the caches of common processors.
CHUNK = 512


@dataclass(frozen=True)
class Architecture:
    """A named factory and its JSON arguments: how a stored version's network is built again."""

    factory: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)


Factory: TypeAlias = Callable[..., nn.Module]


@dataclass(frozen=True)
class Model:
    """A network that serves, its task, and its architecture. Never changed: updaters copy."""

    network: nn.Module
    task: Task
    architecture: Architecture

    def predict(
        self, inputs: Arrays, chunk: int = CHUNK
    ) -> tuple[Predictive | Categorical, Arrays]:
        """Prediction and outputs of raw inputs, in chunks of `chunk` events.

        The network's mode and buffers are untouched: it is kept in evaluation mode.
        """
        parts: list[Predictive | Categorical] = []
        outputs: list[Arrays] = []
        self.network.eval()
        size = n_events(inputs)
        with torch.inference_mode():
            for first in range(0, max(size, 1), chunk):
                piece = take(inputs, slice(first, min(first + chunk, size)))
                prepared = tensors(uncertain.prepare(self.task, self.network, piece))
                predictive, extra = uncertain.predict(self.task, self.network, prepared)
                parts.append(predictive)
                outputs.append(extra)
        return join(parts), concat(outputs)

    def serve(self, version: VersionId, inputs: Arrays, chunk: int = CHUNK) -> Served:
        """Predict a block and sign it with the version's id."""
        predictive, outputs = self.predict(inputs, chunk)
        return Served(version, predictive, outputs)

    def errors(self, examples: Examples) -> dict[str, NDArray[np.float64]]:
        """The task's errors on labelled events."""
        predictive, outputs = self.predict(examples.inputs)
        return self.task.errors(predictive, outputs, examples.targets)

    def copy(self) -> Model:
        """The same model with parameters and buffers of its own."""
        return Model(copy_network(self.network), self.task, self.architecture)

    def weights(self) -> dict[str, Array]:
        """Parameters and buffers by name, copied."""
        state = self.network.state_dict()
        return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}

    def with_weights(self, weights: Mapping[str, Array]) -> Model:
        """The same architecture with other parameters and buffers."""
        twin = self.copy()
        load_weights(twin.network, weights)
        return twin


def load_weights(network: nn.Module, weights: Mapping[str, Array]) -> None:
    """Put named arrays into a network; `ShapeError` where they do not belong to it."""
    own = network.state_dict()
    strange = set(own) ^ set(weights)
    if strange:
        raise ShapeError(
            f"the stored weights and the network differ in {', '.join(sorted(strange))}; "
            "was the factory changed since the version was stored?"
        )
    for name, value in weights.items():
        if tuple(own[name].shape) != value.shape:
            raise ShapeError(
                f"weight {name!r} is stored as {value.shape} but the network has "
                f"{tuple(own[name].shape)}; was the factory changed since?"
            )
    network.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in weights.items()})


def build(architecture: Architecture, factories: Mapping[str, Factory]) -> nn.Module:
    """The network of an architecture, from the factories that the caller trusts.

    Names in a stored file are looked up here and never imported. An argument of the form
    {"factory": ..., "arguments": {...}} is a network inside this one and is built first.
    """
    factory = factories.get(architecture.factory)
    if factory is None:
        near = did_you_mean(architecture.factory, factories)
        raise ConfigError(
            f"this version needs the network factory {architecture.factory!r}, which is not known"
            f"{near}; name it in the run file as `network`"
        )
    arguments = {name: _built(value, factories) for name, value in architecture.arguments.items()}
    return factory(**arguments)


def _built(value: JSON, factories: Mapping[str, Factory]) -> JSON | nn.Module:
    if not isinstance(value, Mapping) or set(value) != {"factory", "arguments"}:
        return value
    factory, arguments = value["factory"], value["arguments"]
    if not isinstance(factory, str) or not isinstance(arguments, Mapping):
        raise ConfigError(f"a network inside another needs a factory and arguments, got {value}")
    return build(Architecture(factory, arguments), factories)


def join(parts: Sequence[Predictive | Categorical]) -> Predictive | Categorical:
    """Chunks of one prediction as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(type(part) is not type(first) for part in parts):
        raise ShapeError("a task must predict in one form; its chunks came in several")
    return type(first).concat(parts)  # type: ignore[arg-type]


def footprint(network: nn.Module, macs_per_event: int = 0) -> Footprint:
    """Parameter count and bytes of a network; the firmware extra replaces it by circuit figures."""
    state = network.state_dict().values()
    return Footprint(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weight_bytes=sum(value.numel() * value.element_size() for value in state),
        macs_per_event=macs_per_event or count_macs(network),
    )


@runtime_checkable
class CountsMacs(Protocol):
    """A module that counts its own multiply-accumulates, and those of the modules inside it."""

    def macs(self) -> int:
        """Of one pass over one event (or one track)."""


def count_macs(network: nn.Module) -> int:
    """Multiply-accumulates of one prediction of one event (or one track, for track networks).

    Linear: in x out; 1-D convolution: taps x in / groups x out, times its `positions` (outputs
    along its axis) where it states them, else for one position. Of an `Uncertain` network the
    core counts once per pass, what lies beside the core once.
    """
    if isinstance(network, CountsMacs):
        return network.macs()
    if isinstance(network, uncertain.Uncertain):
        core = network.core
        beside = _macs_beside(network, core)
        return beside + network.n_passes * count_macs(core)
    if isinstance(network, nn.Linear):
        return network.in_features * network.out_features
    if isinstance(network, nn.Conv1d):
        taps = network.kernel_size[0] * network.in_channels // network.groups
        return taps * network.out_channels * int(getattr(network, "positions", 1))
    return sum(map(count_macs, network.children()))


def _macs_beside(module: nn.Module, core: nn.Module) -> int:
    """Of what lies in `module` outside its core."""
    beside = [child for child in module.children() if child is not core]
    inside = [any(part is core for part in child.modules()) for child in beside]
    return sum(
        _macs_beside(child, core) if holds else count_macs(child)
        for child, holds in zip(beside, inside, strict=True)
    )
