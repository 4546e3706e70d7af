"""What a network needs of a device, counted from the network itself, and the limit of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.models.model import count_macs


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one network needs.

    `parameters`: all of them. `nonzero`: those that are not 0, which is what remains where weights
    are constants of a circuit. `macs`: multiply-accumulates per example of the dense arithmetic
    (`count_macs`; a zero counts, because a processor does not skip it). `bits`: every non-zero
    parameter times the width of its layer, 32 where none was chosen. Buffers (scales, sample
    banks) are not counted.
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


def size_of(network: nn.Module, widths: Mapping[str, int] | None = None) -> Size:
    """The size of a network as it stands; `widths`: bits of a parameter by its name."""
    parameters = nonzero = bits = 0
    for name, value in network.named_parameters():
        count = int(value.detach().count_nonzero())
        parameters += value.numel()
        nonzero += count
        bits += count * (widths or {}).get(name, 8 * value.element_size())
    return Size(parameters=parameters, nonzero=nonzero, macs=count_macs(network), bits=bits)


def dense_size(network: nn.Module) -> Size:
    """The size that a network can grow to in plain training: no parameter is 0."""
    bits = sum(8 * value.numel() * value.element_size() for value in network.parameters())
    count = sum(value.numel() for value in network.parameters())
    return Size(parameters=count, nonzero=count, macs=count_macs(network), bits=bits)
