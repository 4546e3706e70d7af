"""What a network needs of a device, counted from the network itself, and the limit of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.model import count_macs


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one network needs.

    `parameters`: all of them. `nonzero`: those that are not 0, which is what remains where weights
    are constants of a circuit. `macs`: multiply-accumulates per example of the dense arithmetic
    (`count_macs`; a zero counts, because a processor does not skip it). `bits`: every non-zero
    parameter times its width: that of its format in fixed-point layers, 32 where none was chosen.
    Buffers (scales, sample banks) are not counted.
    """

    parameters: int
    nonzero: int
    macs: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class FootprintLimit:
    """The most that a network may need of a device, see `Size`; None is unlimited."""

    parameters: int | None = None
    nonzero: int | None = None
    macs: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"the limit {part.name} = {value} leaves no room for any network; "
                    "give 1 or more, or leave it out for no limit"
                )

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return all(getattr(self, part.name) is None for part in fields(self))

    def exceeded_by(self, size: Size) -> str | None:
        """The first figure over its limit, both stated, or None."""
        for name, (used, limit) in self.over(size).items():
            return f"{used:,} {_WORDS[name]} where the limit allows {limit:,}"
        return None

    def over(self, size: Size) -> dict[str, tuple[int, int]]:
        """Every figure that exceeds its limit: (used, allowed) by name."""
        found: dict[str, tuple[int, int]] = {}
        for name in _WORDS:
            limit, used = getattr(self, name), getattr(size, name)
            if limit is not None and used > limit:
                found[name] = used, limit
        return found


_WORDS = {
    "parameters": "parameters",
    "nonzero": "non-zero weights",
    "macs": "multiply-accumulates per example",
    "bits": "bits of weights",
}


def stated_widths(network: nn.Module) -> dict[str, int]:
    """Bits of every parameter by name: of its format in a fixed-point layer, else of its type."""
    widths = {name: 8 * value.element_size() for name, value in network.named_parameters()}
    for name, module in network.named_modules():
        if isinstance(module, FixedLayer):
            first = f"{name}." if name else ""
            widths[f"{first}weight"] = module.on_weight.format.width
            if module.bias is not None:
                widths[f"{first}bias"] = module.on_bias.format.width
    return widths


def size_of(network: nn.Module, widths: Mapping[str, int] | None = None) -> Size:
    """The size of a network as it stands; `widths`: bits of parameters that say none themselves."""
    stated = {**stated_widths(network), **(widths or {})}
    counts = {name: int(p.detach().count_nonzero()) for name, p in network.named_parameters()}
    return Size(
        parameters=sum(value.numel() for value in network.parameters()),
        nonzero=sum(counts.values()),
        macs=count_macs(network),
        bits=sum(count * stated[name] for name, count in counts.items()),
    )


def dense_size(network: nn.Module) -> Size:
    """The size that a network can grow to in plain training: no parameter is 0."""
    stated = stated_widths(network)
    count = sum(value.numel() for value in network.parameters())
    bits = sum(value.numel() * stated[name] for name, value in network.named_parameters())
    return Size(parameters=count, nonzero=count, macs=count_macs(network), bits=bits)
