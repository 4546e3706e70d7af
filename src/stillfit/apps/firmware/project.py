"""Firmware projects of stored versions: networks, and for a vertex network the whole chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillfit.apps.firmware.version import StoredNetwork, require_fixed
from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from stillfit.firmware.checking import Vectors
    from stillfit.firmware.verilog import Rtl
    from stillfit.l1t.chain_check import ChainVectors
    from stillfit.l1t.chain_rtl import ChainRtl
    from stillfit.models.fixed import IntegerNetwork


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a project shall be: weights, device, links and histogram of the chain."""

    design: str = "constant"
    device: str = "xcvu13p"
    links: int = 18
    histogram: str = "registers"
    seed: int = 1

    def __post_init__(self) -> None:
        from stillfit.firmware.tracing import DESIGNS
        from stillfit.l1t.chip import HISTOGRAMS

        if self.design not in DESIGNS or self.histogram not in HISTOGRAMS:
            raise ConfigError(
                f"--design is one of {', '.join(DESIGNS)}, got {self.design!r}; --histogram one of "
                f"{', '.join(HISTOGRAMS)}, got {self.histogram!r}"
            )

    @property
    def sectors(self) -> tuple[int, ...]:
        """Of each link."""
        from stillfit.l1t.chain_rtl import BOTH_ENDS

        if not 1 <= self.links <= len(BOTH_ENDS):
            raise ConfigError(
                f"--links is 1 to {len(BOTH_ENDS)}, two for each of nine sectors, got {self.links}"
            )
        return BOTH_ENDS[: self.links]


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A network in Verilog, with its whole numbers and its fake-quantised layers."""

    rtl: Rtl
    whole: IntegerNetwork
    layers: nn.Module

    def recorded(self, vectors: int, seed: int) -> Vectors:
        """Answers to codes from all over the formats of its inputs."""
        import numpy as np

        from stillfit.firmware.checking import random_codes, record

        traced = self.rtl.traced
        fraction = np.broadcast_to(np.array(traced.input.f, np.int64), (traced.inputs,))
        codes = random_codes(vectors, self.rtl, seed)
        return record(self.whole, self.layers, codes, fraction)


@dataclass(frozen=True, eq=False, kw_only=True)
class Project:
    """What was written of a version. `chain`: None for a network that is not a vertex chain's."""

    stored: StoredNetwork
    wanted: Wanted
    networks: tuple[Network, ...]
    chain: ChainRtl | None

    def reports(self, vectors: int) -> Iterator[tuple[Network, dict[str, Any]]]:
        """Write test bench, weight image, report and README of each network."""
        from stillfit.firmware.bench_writing import write_bench
        from stillfit.firmware.devices import device

        for one in self.networks:
            recorded = one.recorded(vectors, self.wanted.seed)
            yield one, write_bench(one.rtl, recorded, device(self.wanted.device))

    def chain_vectors(self, events: int) -> ChainVectors:
        """Events for the chain's links, and what is said of them."""
        from stillfit.l1t.chain_check import chain_events, record_chain
        from stillfit.l1t.fixed import FixedE2E
        from stillfit.l1t.library import load

        assert isinstance(self.stored.network, FixedE2E)
        inputs = chain_events(events, self.wanted.sectors, load(), self.wanted.seed)
        return record_chain(self.stored.network, inputs)


def write_project(stored: StoredNetwork, folder: Path, wanted: Wanted) -> Project:
    """Write a version's Verilog: a folder a network, the chain above them."""
    import torch

    from stillfit.firmware.devices import device
    from stillfit.firmware.tracing import trace
    from stillfit.firmware.verilog import network_rtl
    from stillfit.l1t.chain_rtl import chain_rtl
    from stillfit.l1t.fixed import FixedE2E
    from stillfit.l1t.fixed_chain import vertex_chain
    from stillfit.models.fixed import integer

    require_fixed(stored)
    network, design = stored.network, _design(wanted.design)
    if isinstance(network, FixedE2E):
        chain = vertex_chain(network)
        rtl = chain_rtl(
            chain,
            folder,
            device(wanted.device),
            sectors=wanted.sectors,
            form="registers" if wanted.histogram == "registers" else "memory",
            design=design,
        )
        networks = (
            Network(rtl=rtl.weight, whole=chain.weight, layers=network.weight),
            Network(rtl=rtl.associate, whole=chain.associate, layers=network.associate),
        )
        return Project(stored=stored, wanted=wanted, networks=networks, chain=rtl)
    whole = integer(network)
    layers: nn.Module = network
    if whole.front is not None:  # scaling is not part of the circuit
        inner: Any = getattr(network, "layers", network)
        layers = torch.nn.Sequential(*(one for one in inner if one is not whole.front))
    traced = trace(whole, "network", design=design)
    single = network_rtl(traced, "network", folder / "network", device(wanted.device))
    networks_ = (Network(rtl=single, whole=whole, layers=layers),)
    return Project(stored=stored, wanted=wanted, networks=networks_, chain=None)


def _design(name: str) -> Any:
    from stillfit.firmware.tracing import DESIGNS

    return next(design for design in DESIGNS if design == name)
