"""Hidden units added to a trained network without changing what it says.

A hidden layer between two dense layers of one `nn.Sequential`, with activations of single numbers
in between, can be widened: new units get weights of their own and outgoing weights of 0, so that
the wider network starts from the same function and training finds a use for them.
Source: function-preserving growth, Chen et al. 2016 (Net2Net), arXiv:1511.05641; there, units are
doubled and their outgoing weights halved, here they are new, so that they differ from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.core.tables import did_you_mean
from stillfit.core.values import JSON
from stillfit.models.model import Architecture, Factory
from stillfit.models.networks import copy_network

# They treat each number by itself, so a unit with no outgoing weight is seen by nobody.
SINGLE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Identity, nn.Dropout,
)  # fmt: skip


class Hidden(NamedTuple):
    """A hidden layer that can be widened: the dense layer that makes its units, and the next."""

    name: str
    before: nn.Linear
    after: nn.Linear

    @property
    def width(self) -> int:
        """Hidden units."""
        return self.before.out_features


def hidden_layers(network: nn.Module) -> dict[str, Hidden]:
    """The hidden layers that can be widened, by the name of the dense layer that makes them.

    In chains of `nn.Linear` in an `nn.Sequential` alone: what a network's own forward does
    between its layers cannot be known. A layer that is used twice is left out.
    """
    uses: dict[int, int] = {}
    for _, module in network.named_modules(remove_duplicate=False):
        uses[id(module)] = uses.get(id(module), 0) + 1
    found: dict[str, Hidden] = {}
    for path, chain in network.named_modules():
        if type(chain) is not nn.Sequential:
            continue
        last: tuple[str, nn.Linear] | None = None
        for key, step in chain.named_children():
            if _dense(step) and uses[id(step)] == 1:
                if last is not None:
                    found[last[0]] = Hidden(last[0], last[1], step)
                last = (f"{path}.{key}" if path else key, step)
            elif not isinstance(step, SINGLE):
                last = None
    return found


def _dense(module: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def widen(network: nn.Module, widths: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Widen hidden layers in place to `widths` units each; the function stays the same.

    New units draw weights and bias as PyTorch's dense layer does, from `seed`; their outgoing
    weights are 0. Returns, by parameter name, where a number is new. `ConfigError` for a layer
    that cannot be widened, or a width below the present one.
    """
    layers = hidden_layers(network)
    old = {name: value.shape for name, value in network.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, width in widths.items():
            if name not in layers:
                raise ConfigError(
                    f"{type(network).__name__} has no hidden layer {name!r} that can be widened"
                    f"{did_you_mean(name, layers) if layers else ''}"
                )
            _widen(layers[name], width)
    new: dict[str, Tensor] = {}
    for name, value in network.named_parameters():
        added = torch.ones(value.shape, dtype=torch.bool)
        added[tuple(slice(0, size) for size in old[name])] = False
        new[name] = added
    return new


def _widen(layer: Hidden, width: int) -> None:
    before, after, had = layer.before, layer.after, layer.width
    if width < had:
        raise ConfigError(
            f"layer {layer.name!r} has {had} units and cannot be widened to {width}; "
            "give at least as many"
        )
    drawn = nn.Linear(before.in_features, width, before.bias is not None)
    with torch.no_grad():
        weight = drawn.weight.to(before.weight)
        weight[:had] = before.weight
        if before.bias is not None:
            bias = drawn.bias.to(before.bias)
            bias[:had] = before.bias
            before.bias = nn.Parameter(bias.detach().clone())
        out = after.weight.new_zeros(after.out_features, width)
        out[:, :had] = after.weight
    before.weight = nn.Parameter(weight.detach().clone())
    after.weight = nn.Parameter(out)
    before.out_features = after.in_features = width


def grown(network: nn.Module, widths: Mapping[str, JSON]) -> nn.Module:
    """The factory of grown networks: `network` with hidden layers of `widths` units, by name.

    It stays what it was (an MLP, a vertex network), so every task and method takes it.
    """
    checked: dict[str, int] = {}
    for name, width in widths.items():
        if isinstance(width, bool) or not isinstance(width, int):
            raise ConfigError(f"widths.{name} = {width!r} must be a whole number of units")
        checked[name] = width
    twin = copy_network(network)
    widen(twin, checked, 0)
    return twin


def grown_architecture(architecture: Architecture, widths: Mapping[str, int]) -> Architecture:
    """The architecture of a network whose hidden layers were widened to `widths` units in all.

    One that was grown before is said anew, not nested once more.
    """
    arguments = architecture.arguments
    inside, before = arguments.get("network"), arguments.get("widths")
    if architecture.factory == "grown" and isinstance(before, dict):
        return Architecture("grown", {"network": inside, "widths": {**before, **widths}})
    plain: JSON = {"factory": architecture.factory, "arguments": dict(arguments)}
    return Architecture("grown", {"network": plain, "widths": dict(widths)})


FACTORIES: Mapping[str, Factory] = {"grown": grown}
