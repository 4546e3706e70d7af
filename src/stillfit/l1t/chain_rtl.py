"""The vertex chain as RTL: built from a `VertexChain`, and what its simulation answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.values import Equality
from stillfit.firmware.checking import compared
from stillfit.firmware.devices import Chip
from stillfit.firmware.packing import Words, unpacked
from stillfit.firmware.simulation import Engine, Simulator, simulator
from stillfit.firmware.tools import package
from stillfit.firmware.tracing import Design
from stillfit.firmware.verilog import Rtl, network_rtl
from stillfit.l1t.chip import Histogram, circuits
from stillfit.l1t.fixed_chain import Answer, VertexChain
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


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainRtl:
    """A chain in Verilog: the module `vertex_chain`, its files, its ports without clock (bits)."""

    files: tuple[Path, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    sectors: tuple[int, ...]
    form: Histogram
    weight: Rtl
    associate: Rtl

    def simulator(self, folder: Path, *, engine: Engine = "cxxrtl", level: int = 1) -> Simulator:
        """Compile it; about a minute for two links."""
        files = self.files
        if engine == "cxxrtl":
            files = (self.files[0].with_suffix(".il"), *self.files[1:])
        return simulator(
            files,
            "vertex_chain",
            self.inputs,
            self.outputs,
            folder,
            engine=engine,
            level=level,
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
    made = Chain(_numbers(chain, sectors), weight, associate, form=form)
    inputs, outputs = made.ports
    top = write_verilog(made, "vertex_chain", inputs, outputs, folder)
    shared = {
        Path(name).name: rtl.folder / name for rtl in (weight, associate) for name in rtl.files
    }
    return ChainRtl(
        files=(top, *shared.values()),
        inputs={name: len(signal) for name, signal in inputs.items()} | {"rst": 1},
        outputs={name: len(signal) for name, signal in outputs.items()},
        sectors=sectors,
        form=form,
        weight=weight,
        associate=associate,
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
        full=chain.full,
        score=chain.score_bits,
        bias=chain.bias,
        threshold=chain.threshold,
        fields={name: (field.low, field.bits) for name, field in FIELDS.items()},
    )


def links_of(
    words: NDArray[np.uint8], sector: NDArray[np.int8], offsets: NDArray[np.int64], rtl: ChainRtl
) -> tuple[dict[str, Words], NDArray[np.int64], NDArray[np.int64]]:
    """Events as rows of the chain's inputs, and the clock and link of each track.

    A track goes to the links of its sector in turn; `last` comes once the spacing is kept.
    """
    clock, link = np.empty(len(words), np.int64), np.empty(len(words), np.int64)
    ends, start = [], 1
    own = {s: [n for n, at in enumerate(rtl.sectors) if at == s] for s in set(rtl.sectors)}
    strange = sorted(set(sector.tolist()) - set(own))
    if strange:
        raise ConfigError(f"no link brings tracks of the sectors {strange}; name them in sectors")
    for event in range(len(offsets) - 1):
        seen: dict[int, int] = {}
        first, stop = int(offsets[event]), int(offsets[event + 1])
        for track in range(first, stop):
            mine = own[int(sector[track])]
            n = seen.get(int(sector[track]), 0)
            seen[int(sector[track])] = n + 1
            clock[track], link[track] = start + n // len(mine), mine[n % len(mine)]
        used = int(clock[first:stop].max()) if stop > first else start
        end = max(used, start + SPACING[rtl.form] - 1)
        ends.append(end)
        start = end + 1
    clocks = start + SPACING[rtl.form] + 1200
    fed = np.zeros((clocks, len(rtl.sectors), 3), np.uint32)
    fed[clock, link] = np.ascontiguousarray(words).view(">u4").astype(np.uint32)[:, ::-1]
    last = np.zeros((clocks, 1), np.uint32)
    last[ends] = 1
    reset = np.zeros((clocks, 1), np.uint32)
    reset[0] = 1
    return {"words": fed.reshape(clocks, -1), "last": last, "rst": reset}, clock, link


def check_chain(
    rtl: ChainRtl,
    built: Simulator,
    answer: Answer,
    words: NDArray[np.uint8],
    sector: NDArray[np.int8],
    offsets: NDArray[np.int64],
    digest: str,
) -> tuple[Equality, Equality]:
    """Vertices (bin, z0, score of each event) and flags (of each track) against the integers."""
    rows, clock, link = links_of(words, sector, offsets, rtl)
    out = built.run(rows)
    if out["overrun"].any():
        raise DataError("the chain says that events came too close; space them as SPACING says")
    at = out["vertex"][:, 0] == 1
    z0 = unpacked(out["z0"][at], [rtl.outputs["z0"]], [True])
    found = np.column_stack([out["best"][at], z0, out["score"][at]]).astype(np.int64)
    want = np.column_stack([answer.bins, answer.z0, answer.score])
    rounds = np.flatnonzero(out["flagged"][:, 0])
    lanes = np.arange(len(rtl.sectors))
    tracks = (out["tracks"][rounds] >> lanes) & 1
    flags = (out["flags"][rounds] >> lanes) & 1
    order = np.lexsort((link, clock))
    got = flags[tracks == 1].reshape(-1, 1).astype(np.int64)
    if len(found) != len(want) or len(got) != len(words):
        raise DataError(
            f"the chain answered {len(found)} vertices and {len(got)} flags to {len(want)} events "
            f"and {len(words)} tracks; its flow control is wrong, report it"
        )
    flagged = np.empty_like(got)
    flagged[order] = got
    whole = answer.flags.astype(np.int64).reshape(-1, 1)
    return (
        compared("vertex (bin, z0, score)", {"RTL": found, "whole numbers": want}, digest),
        compared("association flag", {"RTL": flagged, "whole numbers": whole}, digest),
    )
