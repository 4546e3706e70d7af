"""A float network as a fixed-point one: its layers exchanged, its own forward kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.models.fixed.calibration import fit_parameters
from stillfit.models.fixed.integer import unsupported
from stillfit.models.fixed.layers import FixedConv1d, FixedDense, FixedLayer, FixedMean, Precision
from stillfit.models.fixed.quantisers import Quantiser
from stillfit.models.model import Factory
from stillfit.models.networks import MLP, Head, Standardise, WithNoise, copy_network

Network = TypeVar("Network", bound=nn.Module)
# What keeps numbers on their grid, what only whoever feeds the chip does, and mere containers.
_KEPT = (nn.ReLU, nn.MaxPool1d, nn.Flatten, nn.Dropout, nn.Identity, nn.Sequential, Standardise)
_OURS = (FixedLayer, FixedMean, Quantiser)
_ACTIVATIONS = "torch.nn.modules.activation"


def convert(network: Network, precision: Precision | None = None) -> Network:
    """A copy whose dense and 1-D convolution layers, and means over time, are in fixed point.

    Weights and biases stay what they were and get the range that fits them best; inputs get
    theirs by `calibrated`. Masks are full. Every bit that passes between layers passes a
    quantiser: the network can be read by `integer` if its forward is a sequence.

    `ConfigError` for layers that whole numbers cannot follow (normalisations, tanh, recurrent
    ones), with the remedy, and for a network that has been converted before.
    """
    if any(isinstance(module, _OURS) for module in network.modules()):
        raise ConfigError(
            "the network is in fixed point already; change the formats of its quantisers, or "
            "convert the float network again"
        )
    chosen = precision or Precision()
    twin = copy_network(network)
    if isinstance(found := _exchanged(twin, "the network", chosen), nn.Module):
        return found  # type: ignore[return-value]
    _walk(twin, "", chosen)
    return twin


def _walk(module: nn.Module, name: str, precision: Precision) -> None:
    for key, child in list(module.named_children()):
        below = f"{name}.{key}" if name else key
        found = _exchanged(child, below, precision)
        if found is None:
            _walk(child, below, precision)
        else:
            module._modules[key] = found
            if isinstance(found, FixedLayer):
                found.label = below


def _exchanged(module: nn.Module, name: str, precision: Precision) -> nn.Module | None:
    """The fixed-point layer in its place; None to look inside or to leave it."""
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return dense(module, precision)
    if isinstance(module, nn.Conv1d) and type(module).forward is nn.Conv1d.forward:
        return _convolution(module, name, precision)
    if isinstance(module, nn.AdaptiveAvgPool1d) and module.output_size in (1, (1,)):
        return FixedMean(precision)
    if isinstance(module, _KEPT):
        return None
    own = any(True for _ in module.parameters(recurse=False))
    strange = own and not isinstance(module, WithNoise)
    if strange or type(module).__module__ == _ACTIVATIONS or type(module) is nn.AvgPool1d:
        raise unsupported(module, name)
    return None


def dense(layer: nn.Linear, precision: Precision) -> FixedDense:
    """A dense layer in fixed point."""
    head = {"start": layer.start, "shrink": layer.shrink} if isinstance(layer, Head) else {}
    with torch.random.fork_rng(devices=[]):
        new = FixedDense(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            precision=precision,
            **head,  # type: ignore[arg-type]
        )
    return _filled(new, layer)


def _convolution(layer: nn.Conv1d, name: str, precision: Precision) -> FixedConv1d:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ConfigError(
            f"{name} is padded with {layer.padding_mode!r}, {layer.padding!r}; whole numbers "
            "follow a number of zeros only"
        )
    with torch.random.fork_rng(devices=[]):
        new = FixedConv1d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            stride=layer.stride[0],
            padding=layer.padding[0],
            dilation=layer.dilation[0],
            groups=layer.groups,
            bias=layer.bias is not None,
            precision=precision,
            positions=int(getattr(layer, "positions", 1)),
        )
    return _filled(new, layer)


Fixed = TypeVar("Fixed", bound=FixedLayer)


def _filled(new: Fixed, old: nn.Linear | nn.Conv1d) -> Fixed:
    with torch.no_grad():
        new.weight.copy_(old.weight)
        if old.bias is not None:
            new.bias.copy_(old.bias)
    fit_parameters(new)
    return new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)


def fixed(network: nn.Module, **precision: Any) -> nn.Module:
    """The factory of stored versions: a network in fixed point; knobs of `Precision`."""
    return convert(network, Precision(**precision))


def fixed_mlp(features: int, **arguments: Any) -> nn.Module:
    """An `MLP` in fixed point: its arguments, and `precision`, a mapping of `Precision`'s knobs."""
    knobs = arguments.pop("precision", {})
    return convert(MLP(features, **arguments), Precision(**knobs))


FACTORIES: Mapping[str, Factory] = {"fixed": fixed, "fixed-mlp": fixed_mlp}
"""Fixed-point networks by the names under which stored versions know them."""
