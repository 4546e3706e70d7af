"""The catalogue: every method by name, and the factories under which versions are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from stillfit.models.model import Factory

Kind: TypeAlias = Literal["head", "members", "post-hoc", "calibrator"]


@dataclass(frozen=True)
class Method:
    """One way to make a network state its uncertainty.

    `convert(network)` gives the network of the method with its default knobs, untrained: call
    `models.uncertain.fresh` or train it. `kind`: where the uncertainty comes from. `decomposes`:
    it tells noise from ignorance. `source`: the paper.
    """

    name: str
    convert: Callable[[nn.Module], nn.Module]
    kind: Kind
    decomposes: bool
    source: str


_ALL: tuple[Method, ...] = ()

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

# For `models.model.build`: an argument that is itself an architecture is built first.
FACTORIES: dict[str, Factory] = {}
