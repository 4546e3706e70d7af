"""The vertex chain as RTL, built from a `VertexChain`: its Verilog, and what is loaded into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillfit.core.errors import ConfigError, DataError
from stillfit.firmware.devices import Chip
from stillfit.firmware.packing import WORD, Words
from stillfit.firmware.simulation import Engine, Simulator, simulator
from stillfit.firmware.tools import package
from stillfit.firmware.tracing import Design, loaded
from stillfit.firmware.verilog import Rtl, network_rtl
from stillfit.l1t.chip import Histogram, circuits
from stillfit.l1t.fixed_chain import VertexChain
from stillfit.l1t.fixed_words import CROSSING_BITS, tables
from stillfit.l1t.geometry import BARREL_HALF_LENGTH, BARREL_R
from stillfit.l1t.trackword import FIELDS, SECTORS
from stillfit.l1t.vertexing import ETA_CELLS, Z0_LSB

if TYPE_CHECKING:
    from stillfit.firmware.glue.chain import Numbers

# Clocks from one `last` to the next: the divider's, the scan's.
SPACING: Mapping[Histogram, int] = {"registers": 16, "memory": 270}
# Two links a sector.
BOTH_ENDS = (*range(SECTORS), *range(SECTORS))
TOP = "vertex_chain"


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainRtl:
    """A chain in Verilog: the module `vertex_chain`, its files, its ports without clock (bits).

    `sectors`: of each link. `whole`: modules that it uses more than once. `clocks`: from `last` to
    the vertex. `held`: bits of what a reloadable design has loaded beside its weights, by name;
    `table`: those of an entry of a z0 table.
    """

    folder: Path
    files: tuple[Path, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    sectors: tuple[int, ...]
    form: Histogram
    design: Design
    weight: Rtl
    associate: Rtl
    whole: tuple[str, ...]
    clocks: int
    held: Mapping[str, int]
    table: int

    def simulator(self, folder: Path, *, engine: Engine = "auto", level: int = 1) -> Simulator:
        """Compile it: each module once, however many links use it; a minute or less."""
        return simulator(
            (self.files[0].with_suffix(".il"), *self.files[1:]),
            TOP,
            self.inputs,
            self.outputs,
            folder,
            engine=engine,
            whole=self.whole,
            level=level,
        )

    def images(self, chain: VertexChain) -> dict[str, Words]:
        """What to load for a chain, by the port that is high meanwhile: 32-bit words in order.

        Empty for constant weights. `ConfigError` for a chain of other formats than the circuit's,
        or with a number that does not fit the circuit.
        """
        if self.design == "constant":
            return {}
        found = {
            "load_weight": self.weight.image(loaded(chain.weight, self.weight.traced.ports)),
            "load_associate": self.associate.image(
                loaded(chain.associate, self.associate.traced.ports)
            ),
        }
        return {**found, "load_numbers": self._numbers(chain)}

    def _numbers(self, chain: VertexChain) -> Words:
        # A threshold beyond the logit's reach is one just beyond it.
        reach = 1 << (self.held["threshold"] - 2)
        numbers = {
            "side": chain.side,
            "middle": chain.middle,
            "bias": chain.bias,
            "threshold": min(max(chain.threshold, -reach), reach),
        }
        for name, number in numbers.items():
            _fits(name, number, self.held[name])
        by_sector = chain.sector_table.reshape(ETA_CELLS, SECTORS)
        entries = [*(by_sector[:, one] for one in self.sectors), chain.barrel_table]
        table = np.concatenate(entries)
        for number in (int(table.min()), int(table.max())):
            _fits("an entry of a z0 table", number, self.table)
        whole = np.concatenate([np.array(list(numbers.values()), np.int64), table])
        return (whole & ((1 << WORD) - 1)).astype(np.uint32)


def _fits(name: str, number: int, bits: int) -> None:
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise ConfigError(
            f"{name} is {number} and the reloadable chain holds it in {bits} bits with a sign; "
            "build this version with constant weights, or calibrate it again"
        )


def chain_rtl(
    chain: VertexChain,
    folder: Path,
    chip: Chip,
    *,
    sectors: tuple[int, ...] = BOTH_ENDS,
    form: Histogram = "memory",
    design: Design = "constant",
) -> ChainRtl:
    """Write the chain as Verilog. `sectors`: of each link.

    With `design` "reloadable" nothing of the chain but its formats and masks is in the circuit.
    `ConfigError` for a track weight with a sign, which the histogram cannot saturate in parts.
    """
    package("amaranth")
    from stillfit.firmware.glue.chain import Chain
    from stillfit.firmware.glue.writing import write_verilog

    traced = circuits(chain, design)
    weight = network_rtl(traced.weight, "weight_network", folder / "weight_network", chip)
    associate = network_rtl(
        traced.associate, "association_network", folder / "association_network", chip
    )
    if weight.out_signed[0]:
        raise ConfigError(
            "the weight network's output has a sign; a histogram in hardware adds what has none: "
            "give its output quantiser an unsigned format"
        )
    numbers = _numbers(chain, sectors)
    if design == "reloadable":
        numbers = _blank(numbers)
    made = Chain(numbers, weight, associate, form=form)
    inputs, outputs = made.ports
    top = write_verilog(made, TOP, inputs, outputs, folder, parts=made.parts)
    shared = {
        Path(name).name: rtl.folder / name for rtl in (weight, associate) for name in rtl.files
    }
    return ChainRtl(
        folder=folder,
        files=(top, *shared.values()),
        inputs={name: len(signal) for name, signal in inputs.items()} | {"rst": 1},
        outputs={name: len(signal) for name, signal in outputs.items()},
        sectors=sectors,
        form=form,
        design=design,
        weight=weight,
        associate=associate,
        whole=(*made.parts, weight.name, associate.name),
        clocks=made.clocks,
        held={name: len(signal) for name, signal in made.held.items()},
        table=numbers.table,
    )


def _numbers(chain: VertexChain, sectors: tuple[int, ...]) -> Numbers:
    from stillfit.firmware.glue.chain import Numbers

    memory = tables()
    middle = len(memory.eta) // 2
    cells = memory.cell[middle:]
    symmetric = all(
        np.array_equal(upper, lower)
        for upper, lower in (
            (memory.eta[middle:], memory.eta[:middle][::-1]),
            (memory.resolution[middle:], memory.resolution[:middle][::-1]),
            (cells, ETA_CELLS - 1 - memory.cell[:middle][::-1]),
            (memory.pt[-1:], memory.pt[-2:-1]),
        )
    )
    if not symmetric or (np.diff(cells) < 0).any():
        raise DataError("the tables of the track word are not even in tan(lambda)")
    half = ETA_CELLS // 2
    one = 1 << CROSSING_BITS
    edges = tuple(int(np.searchsorted(cells, half + k)) for k in range(1, half))
    sector = chain.sector_table.reshape(ETA_CELLS, SECTORS)
    return Numbers(
        pt=tuple(memory.pt[:-1].tolist()),
        eta=tuple(memory.eta[middle:].tolist()),
        resolution=tuple(memory.resolution[middle:].tolist()),
        cells=edges,
        sectors=tuple(tuple(sector[:, one_].tolist()) for one_ in sectors),
        barrel=tuple(chain.barrel_table.tolist()),
        beam=round(Z0_LSB / 2 * one),
        slopes=tuple(round(r * FIELDS["tanl"].lsb / 2 * one) for r in BARREL_R[:3]),
        half=round(BARREL_HALF_LENGTH * one),
        side=chain.side,
        middle=chain.middle,
        # A score holds three taps times the fullest bin, so no tap has more bits than this.
        taps=chain.score_bits - chain.full.bit_length(),
        full=chain.full,
        score=chain.score_bits,
        bias=chain.bias,
        threshold=chain.threshold,
        fields={name: (field.low, field.bits) for name, field in FIELDS.items()},
    )


def _blank(numbers: Numbers) -> Numbers:
    """Without anything that is loaded, so that the circuit cannot depend on it."""
    empty = tuple((0,) * len(cells) for cells in numbers.sectors)
    barrel = (0,) * len(numbers.barrel)
    return replace(numbers, sectors=empty, barrel=barrel, side=0, middle=0, bias=0, threshold=0)
