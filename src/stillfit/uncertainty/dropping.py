"""Which layers lose features: all behind another one, or the last."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.core.tables import did_you_mean
from stillfit.uncertainty.conversion import is_plain, require_plain
from stillfit.uncertainty.layers import Plain


def dropped_layers(
    network: nn.Module, asked: Sequence[str] | None, last_only: bool = False
) -> frozenset[str]:
    """Names of the dense and convolution layers whose inputs lose features.

    By default all whose inputs are as wide as the outputs of a layer before them: the first
    layer of each chain reads events, not features. `last_only`: the last of each chain alone.
    `ConfigError` for a name that is none, or if there is no such layer.
    """
    require_plain(network)
    layers = {name: module for name, module in network.named_modules() if is_plain(module)}
    if asked is not None:
        for name in asked:
            if name not in layers:
                raise ConfigError(
                    f"the network has no dense or convolution layer {name!r}"
                    f"{did_you_mean(name, layers)}; it has {', '.join(layers) or 'none'}"
                )
        return frozenset(asked)
    chains = _hidden(layers)
    if not any(chains):
        raise ConfigError(
            "no dense or convolution layer stands behind another, so there are no hidden features "
            "to drop; name the layers whose inputs may be dropped in `layers`"
        )
    return frozenset(name for chain in chains for name in (chain[-1:] if last_only else chain))


def _hidden(layers: dict[str, Plain]) -> list[list[str]]:
    """The layers of each chain without its first."""
    chains: list[list[str]] = []
    widths: set[int] = set()
    before: Plain | None = None
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            flat = isinstance(before, nn.Conv1d) and layer.in_features % before.out_channels == 0
            behind = layer.in_features in widths or flat
            widths.add(layer.out_features)
        else:
            behind = layer.in_channels in widths
            widths.add(layer.out_channels)
        if behind:
            chains[-1].append(name)
        else:
            chains.append([])
        before = layer
    return chains
