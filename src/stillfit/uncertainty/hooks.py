"""Named layers of any network: finding, replacing and listening to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.tables import did_you_mean
from stillfit.models.networks import Standardise
from stillfit.models.uncertain import Uncertain


def plain(network: nn.Module, method: str) -> nn.Module:
    """The network itself; `ConfigError` where it already has several passes or parts."""
    if isinstance(network, Uncertain):
        raise ConfigError(
            f"{method} takes a plain network, and {type(network).__name__} has several passes or "
            f"parts; give {method} to the network inside it"
        )
    return network


def named(network: nn.Module, name: str) -> nn.Module:
    """The module of that name; `ConfigError` names those that exist."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if name not in modules:
        known = [known for known in modules if known]
        near = did_you_mean(name, known)
        more = f" (its layers: {', '.join(sorted(known))})" if "did you mean" in near else ""
        raise ConfigError(f"{type(network).__name__} has no layer {name!r}{near}{more}")
    return modules[name]


def last_linear(network: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """The network's last `nn.Linear` in the order of its modules, or the one of that name."""
    if name is not None:
        found = named(network, name)
        if not isinstance(found, nn.Linear):
            raise ConfigError(
                f"layer {name!r} of {type(network).__name__} is a {type(found).__name__}; "
                "the last layer must be an nn.Linear"
            )
        return name, found
    linear = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"{type(network).__name__} has no nn.Linear, so it has no last layer to work on"
        )
    return linear[-1]


def replaced(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """The network with another module under that name, changed in place."""
    if not name:
        return layer
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
    return network


def width(network: nn.Module, name: str) -> int:
    """Numbers per row that a layer gives, read from the layers without a pass.

    A layer without a size of its own (an activation, dropout) has that of the layer before it in
    its `nn.Sequential`; a sequence that of its last layer.
    """
    module = named(network, name)
    if isinstance(module, nn.Sequential) and len(module):
        return width(network, _child(name, len(module) - 1))
    if isinstance(module, Standardise):
        return len(module.mean)
    for size in ("out_features", "out_channels", "num_features"):
        if isinstance(getattr(module, size, None), int):
            return int(getattr(module, size))
    parent, _, child = name.rpartition(".")
    sized = any(True for _ in module.parameters()) or any(True for _ in module.children())
    within = network.get_submodule(parent)
    if not sized and isinstance(within, nn.Sequential) and child.isdecimal() and int(child):
        return width(network, _child(parent, int(child) - 1))
    raise ConfigError(
        f"the size of layer {name!r} ({type(module).__name__}) cannot be told without a pass; "
        "name a linear or convolution layer, or an activation after one"
    )


def _child(parent: str, place: int) -> str:
    return f"{parent}.{place}" if parent else str(place)


def before(network: nn.Module, name: str) -> str:
    """The layer before the one of that name in its sequence."""
    parent, _, child = name.rpartition(".")
    if isinstance(network.get_submodule(parent), nn.Sequential) and int(child):
        return _child(parent, int(child) - 1)
    raise ConfigError(
        f"nothing comes before layer {name!r} of {type(network).__name__} in a sequence; "
        "name the layers that are to be read"
    )


@contextmanager
def listening(
    network: nn.Module, names: tuple[str, ...], *, inputs: bool = False
) -> Iterator[dict[str, Tensor]]:
    """While it is open, what the named layers gave last (or took, `inputs`), by name.

    The names must exist (`named` checks them). Nothing of the network is changed, and nothing
    stays behind.
    """
    heard: dict[str, Tensor] = {}
    hooks = []

    def hear(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, taken: Any, given: Any) -> None:
            value = taken[0] if inputs else given
            if not isinstance(value, Tensor):
                raise ShapeError(
                    f"layer {name!r} gives a {type(value).__name__}, not one tensor; "
                    "name a layer inside it"
                )
            heard[name] = value

        return keep

    try:
        for name in names:
            hooks.append(network.get_submodule(name).register_forward_hook(hear(name)))
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def heard_from(heard: dict[str, Tensor], name: str, network: nn.Module) -> Tensor:
    """What a layer gave; `ConfigError` where the network did not use it."""
    if name not in heard:
        raise ConfigError(
            f"layer {name!r} of {type(network).__name__} took no part in its prediction; "
            "name one that is called as a module on every pass"
        )
    return heard[name]
