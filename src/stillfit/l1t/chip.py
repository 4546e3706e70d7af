"""The vertex chain as a circuit: its footprint on a named device, and whether it answers bit for
bit.

Implements `loop.plan.Chip` for models `l1t.fixed-e2e`. The two track networks are traced; what
lies between them (tables, histogram, filter, arg-max, divider, buffer) is estimated by formulas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Equality, Footprint, UpdateClass
from stillfit.firmware import blocks
from stillfit.firmware.devices import Chip, device
from stillfit.firmware.footprints import Block, counted_block, estimate, totals
from stillfit.firmware.synthesis import Count, find_yosys, synthesise
from stillfit.firmware.tools import versions
from stillfit.firmware.tracing import DESIGNS, Design, Traced, loaded, trace
from stillfit.l1t.fixed import STEPS_OF_Z, FixedE2E
from stillfit.l1t.fixed_chain import SEEN, SEEN_FRACTION, VertexChain, vertex_chain
from stillfit.l1t.fixed_words import FRACTIONS, inputs_of_words, words_of
from stillfit.l1t.trackword import FIELDS
from stillfit.l1t.vertexing import BARREL_CELLS, BINS, ETA_CELLS, SECTOR_CELLS
from stillfit.models.fixed.formats import Codes, Format, bits_of
from stillfit.models.fixed.integer import Dense, IntegerNetwork, Requantise
from stillfit.models.model import Model, footprint
from stillfit.models.tensors import RaggedTensor, tensors

Histogram: TypeAlias = Literal["registers", "memory"]
HISTOGRAMS: tuple[Histogram, ...] = ("registers", "memory")
LINKS = 18  # 9 phi sectors and 2 halves in eta
KEPT = 64  # footprints that are remembered
INDEX = 8  # bits of a bin's number
PLACE = FIELDS["z0"].bits
# Bits of pT, quality, |eta|, resolution and |bin - winning bin|, all without a sign.
WIDTHS = np.array([11, FIELDS["quality"].bits, 11, 7])
_WEIGHT_INPUT = Format.channels(0, WIDTHS[:3] - FRACTIONS[:3], FRACTIONS[:3])
_SEEN_WIDTH = np.array([*WIDTHS[SEEN], INDEX])
_SEEN_INPUT = Format.channels(0, _SEEN_WIDTH - SEEN_FRACTION, SEEN_FRACTION)


class Circuits(NamedTuple):
    """The traced networks of a chain."""

    weight: Traced
    associate: Traced


def circuits(chain: VertexChain, design: Design) -> Circuits:
    """Both track networks as logic, from the whole numbers of the track word on; 0.2 to 1.5 s."""
    return Circuits(
        trace(chain.weight, "weight network", design=design, inputs=_WEIGHT_INPUT),
        trace(chain.associate, "association network", design=design, inputs=_SEEN_INPUT),
    )


@dataclass(frozen=True, kw_only=True)
class VertexChip:
    """What measures fixed-point E2E versions as circuits of one kind on one device.

    `device`: a name (`firmware.devices`). `links`: track streams side by side, each with both
    networks of its own, one track a clock. `design`: "constant" weights (small; every version is
    another circuit, class `bitstream`) or "reloadable" (one circuit for all weights of the same
    formats and masks, class `weights`). `histogram`: "registers" (a new event at once) or
    "memory" (small, one bin a clock). `tracks`: the most that a link brings of an event; the last
    flag comes that much after the first. `yosys`: synthesise the networks, a minute a version,
    instead of estimating them; `promotion`: synthesise them beside the estimate, once a version
    begins to serve (the loop waits for it). `vectors`: tracks that `equality` tries, where there
    are as many.

    Cost: a footprint in about 1 s without synthesis, 0 for weights seen before (for a
    reloadable design: formats and masks seen before).
    """

    device: str = "xcvu13p"
    links: int = LINKS
    design: Design = "constant"
    histogram: Histogram = "registers"
    tracks: int = 20
    yosys: bool = False
    promotion: bool = False
    vectors: int = 10_000
    # What was measured before, by the content of what it depends on: it changes no answer.
    known: dict[str, tuple[Circuits, Footprint]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.design not in DESIGNS or self.histogram not in HISTOGRAMS:
            raise ConfigError(
                f"design is one of {', '.join(DESIGNS)} and histogram one of "
                f"{', '.join(HISTOGRAMS)}, got {self.design!r} and {self.histogram!r}"
            )
        if min(self.links, self.tracks, self.vectors) < 1:
            raise ConfigError(
                f"links = {self.links}, tracks = {self.tracks} and vectors = {self.vectors} must "
                "be at least 1"
            )
        device(self.device)

    @property
    def update_class(self) -> UpdateClass:
        """What a version of this design needs to be loaded."""
        return "weights" if self.design == "reloadable" else "bitstream"

    @property
    def chip(self) -> Chip:
        """The device itself."""
        return device(self.device)

    def footprint(self, model: Model) -> Footprint:
        """What the whole chain of a model needs on the device, and how each part is known.

        `ConfigError` for other models and for what has no circuit, `ToolError` where a tool
        fails, `MissingExtraError` without the extra.
        """
        return self._measured(model, self.yosys)[1]

    def promoted(self, model: Model) -> Footprint | None:
        """The same with synthesised networks, where `promotion` asks for it; else None."""
        return self._measured(model, True)[1] if self.promotion else None

    def equality(self, model: Model, examples: Examples) -> Equality | None:
        """Whether circuits, whole numbers and fake-quantised network agree on the events' tracks.

        The first events that have `vectors` tracks are tried. Compared bit for bit: both networks
        as logic with the integer model and with the PyTorch layers, then the chain's position,
        score and flags with those of the whole PyTorch network.
        """
        if not len(examples):
            return None
        chain = vertex_chain(model)
        traced = self._measured(model, self.yosys)[0]
        assert isinstance(model.network, FixedE2E)
        tried = _first(examples, self.vectors)
        words, sector, offsets = words_of(tried.inputs)
        digest = hashlib.sha256()
        for array in (words, sector.astype(np.int8), offsets.astype(np.int64)):
            digest.update(np.ascontiguousarray(array).tobytes())
        wrong = np.zeros(len(words), np.bool_)
        first = ""
        for where, row, ours, theirs, bits in self._pairs(model.network, chain, traced, tried):
            differ = ours != theirs
            if differ.any() and not first:
                at = int(np.argmax(differ))
                low = (int(ours[at]) ^ int(theirs[at])) & ((1 << bits) - 1)
                bit = (low & -low).bit_length() - 1
                first = (
                    f"{where}, vector {int(row[at])}, bit {bit} ({int(ours[at])} and "
                    f"{int(theirs[at])})"
                )
            wrong[row[differ]] = True
        return Equality(
            vectors=len(words),
            wrong=int(wrong.sum()),
            digest=digest.hexdigest(),
            against=f"{self.design}-weight logic, whole numbers and fake-quantised network",
            first=first,
        )

    def _measured(self, model: Model, yosys: bool) -> tuple[Circuits, Footprint]:
        chain = vertex_chain(model)
        key = f"{'synthesis' if yosys else 'estimate'} {_content(chain, self.design)}"
        if key not in self.known:
            while len(self.known) >= KEPT:
                del self.known[next(iter(self.known))]
            traced = circuits(chain, self.design)
            counts = self._synthesised(traced) if yosys else None
            parts = chain_blocks(
                chain,
                traced,
                self.chip,
                links=self.links,
                histogram=self.histogram,
                tracks=self.tracks,
                counts=counts,
            )
            self.known[key] = traced, self._composed(parts, counts)
        traced, known = self.known[key]
        size = footprint(model.network)
        return traced, replace(
            known,
            parameters=size.parameters,
            weight_bytes=size.weight_bytes,
            macs_per_event=size.macs_per_event,
        )

    def _synthesised(self, traced: Circuits) -> tuple[Count, Count]:
        yosys = find_yosys()
        weight, associate = (synthesise(one, self.chip, yosys=yosys) for one in traced)
        return weight, associate

    def _composed(
        self, parts: Mapping[str, Block], counts: tuple[Count, Count] | None
    ) -> Footprint:
        cycles = latency(parts, self.tracks)
        every = self.tracks if self.histogram == "registers" else max(self.tracks, BINS + 2)
        how = "estimate" if counts is None else "synthesis of the networks, else estimate"
        return Footprint(
            parameters=0,
            weight_bytes=0,
            macs_per_event=0,
            method=f"{how}, {self.design} weights, {self.links} links, histogram in "
            f"{self.histogram}",
            latency_cycles=cycles,
            latency_ns=round(cycles * self.chip.period, 1),
            initiation_interval=every,
            tools=versions("alkaid") if counts is None else counts[0].tools,
            parts={name: block.figures() for name, block in parts.items()},
            **totals(parts),
        )

    def _pairs(
        self, network: FixedE2E, chain: VertexChain, traced: Circuits, tried: Examples
    ) -> Iterator[tuple[str, NDArray[np.int64], Codes, Codes, int]]:
        """Name, track, our codes, their codes and bits of everything that is compared."""
        words, sector, offsets = words_of(tried.inputs)
        given = inputs_of_words(words, sector)
        answer = chain.find(given, offsets)
        every = np.arange(len(words))
        place = given.place - chain.sector_table[given.sector] - chain.barrel_table[given.barrel]
        bins = np.clip(place >> 4, 0, BINS - 1)
        away = np.abs(bins - np.repeat(answer.bins, np.diff(offsets)))
        seen = np.column_stack([given.features[:, SEEN], away])
        for name, circuit, own, codes, whole, layers in (
            ("weight network", traced.weight, chain.weight, given.features[:, :3], answer.weights,
             network.weight),
            ("association network", traced.associate, chain.associate, seen, answer.logits,
             network.associate),
        ):  # fmt: skip
            ports = loaded(own, circuit.ports) if circuit.ports else None
            logic = circuit.run(codes, ports)[:, 0]
            bits = 64
            yield f"{name}, logic and whole numbers", every, logic, whole, bits
            fraction = np.array(circuit.input.f)
            real = np.ldexp(codes.astype(np.float32), -fraction)
            with torch.no_grad():
                out = layers(torch.from_numpy(real.astype(np.float32)))[:, 0].double().numpy()
            fake = np.ldexp(out, int(own.fraction[0])).astype(np.int64)
            yield f"{name}, whole numbers and PyTorch", every, whole, fake, bits
        tracks = tensors(network.prepare(tried.inputs))["tracks"]
        assert isinstance(tracks, RaggedTensor)
        with torch.no_grad():
            found = network.find(tracks)
        flags = (found.association >= 0.5).numpy().astype(np.int64)
        yield "chain and PyTorch, flags", every, answer.flags.astype(np.int64), flags, 1
        # An event's answer counts with its first track.
        some = np.flatnonzero(np.diff(offsets) > 0)
        rows = offsets[:-1][some]
        score = np.ldexp(found.score.double().numpy(), chain.score_fraction).astype(np.int64)
        yield "chain and PyTorch, score", rows, answer.score[some], score[some], 64
        ours = chain.position(answer).view(np.int32).astype(np.int64)
        theirs = found.z0.float().numpy().view(np.int32).astype(np.int64)
        yield "chain and PyTorch, z0", rows, ours[some], theirs[some], 32


def chain_blocks(
    chain: VertexChain,
    traced: Circuits,
    chip: Chip,
    *,
    links: int,
    histogram: Histogram,
    tracks: int,
    counts: tuple[Count, Count] | None = None,
) -> dict[str, Block]:
    """All blocks of the chain, in the order in which a track meets them."""
    reloadable = traced.weight.design == "reloadable"
    networks = []
    for n, one in enumerate(traced):
        block = estimate(one, chip, copies=links)
        networks.append(
            block if counts is None else counted_block(counts[n], block.cycles, copies=links)
        )
    weight_bits = _output_bits(chain.weight)
    full = chain.full.bit_length()
    score = chain.score_bits
    taps = (chain.side, chain.middle)
    fill = blocks.histogram_in_registers if histogram == "registers" else blocks.histogram_in_memory
    return {
        "words": _words(chain, reloadable, links),
        "weight network": networks[0],
        "histogram": fill(bins=BINS, links=links, weight=weight_bits, full=full, chip=chip),
        "filter and arg-max": _peak(histogram, taps, full, score, reloadable, chip),
        "position": blocks.mean_of_five(
            full=full,
            quotient=STEPS_OF_Z + 8,
            bins=BINS if histogram == "registers" else 0,
            chip=chip,
        ),
        "track buffer": Block(
            lut=24,
            ff=24,
            bram=blocks.memories(max(2 * tracks, 512), int(_SEEN_WIDTH.sum())),
            cycles=1,
            how="estimated",
            note="tracks wait for the vertex",
            copies=links,
        ),
        "association network": networks[1],
        "distance and threshold": Block(
            lut=2 * INDEX + _sum_bits(chain.associate),
            ff=INDEX + 2,
            cycles=2,
            how="estimated",
            note="|bin - winning bin|, logit against threshold",
            copies=links,
        ),
    }


def latency(parts: Mapping[str, Block], tracks: int) -> int:
    """Clock cycles from the last track of an event to its last flag and its position."""
    cycles = {name: block.cycles for name, block in parts.items()}
    vertex = sum(
        cycles[name] for name in ("words", "weight network", "histogram", "filter and arg-max")
    )
    flags = cycles["distance and threshold"] + cycles["association network"] + tracks
    return vertex + max(flags, cycles["position"])


def _words(chain: VertexChain, reloadable: bool, links: int) -> Block:
    """Tables by curvature and tan(lambda), calibration of z0, barrel hits; two links a memory."""
    half = 1 << (FIELDS["tanl"].bits - 1)  # the sign of tan(lambda) folds the tables
    memory = (
        blocks.memories(1 << (FIELDS["rinv"].bits - 1), int(WIDTHS[0]))
        + blocks.memories(half, int(WIDTHS[2]))
        + blocks.memories(half, int(WIDTHS[3]))
        + blocks.memories(half, (ETA_CELLS // 2 - 1).bit_length())
    )
    widths = [
        PLACE if reloadable else bits_of(int(np.abs(table).max(initial=0)))
        for table in (chain.sector_table, chain.barrel_table)
    ]
    # 64 cells of a table a look-up table and bit; where all is zero there is none.
    tables = sum(
        cells / 64 * bits
        for cells, bits in zip((SECTOR_CELLS, BARREL_CELLS), widths, strict=True)
        if bits > 1
    )
    place = 2 * PLACE + PLACE / 2  # two subtractions, clipping
    hits = 3 * (2 * 24 + 4)  # |z| at three layers against the half length
    return Block(
        lut=tables + place + hits,
        ff=2 * int(WIDTHS.sum()) + 3 * PLACE,
        dsp=3,
        bram=memory / (2 if links > 1 else 1),
        cycles=4,
        how="estimated",
        note="tables of the track word, shared by two links; three products for barrel hits",
        copies=links,
    )


def _peak(
    histogram: Histogram,
    taps: tuple[int, int],
    full: int,
    score: int,
    reloadable: bool,
    chip: Chip,
) -> Block:
    each = blocks.taps_filter(taps=taps, full=full, score=score, loaded=reloadable, chip=chip)
    note = f"3 taps {'as inputs' if reloadable else f'({taps[0]}, {taps[1]})'}, scores of {score}"
    if histogram == "registers":
        tree = blocks.arg_max_tree(bins=BINS, score=score, chip=chip)
        return blocks.joined(f"{note} bits, a tree", blocks.times(each, BINS), tree)
    turn = blocks.arg_max_in_turn(bins=BINS, score=score, index=INDEX)
    return blocks.joined(f"{note} bits, bin after bin", each, turn)


def _output_bits(network: IntegerNetwork) -> int:
    last = network.steps[-1]
    return last.format.width if isinstance(last, Requantise) else _sum_bits(network)


def _sum_bits(network: IntegerNetwork) -> int:
    return network.layers[-1].accumulator


def _content(chain: VertexChain, design: Design) -> str:
    """SHA-256 of all that a circuit depends on: for reloadable weights not on their values."""
    digest = hashlib.sha256(design.encode())

    def add(what: Any) -> None:
        digest.update(repr(what).encode())

    for network in (chain.weight, chain.associate):
        for step in network.steps:
            add(type(step).__name__)
            if isinstance(step, Dense):
                formats = (step.input.format, step.weight_format, step.bias_format)
                add((step.name, formats, step.input.rounding, step.input.overflow))
                digest.update(step.mask.tobytes())
                if design == "constant":
                    digest.update(step.weight.tobytes() + step.bias.tobytes())
            elif isinstance(step, Requantise):
                add((step.format, step.rounding, step.overflow))
    add((chain.full, chain.score_bits, chain.taps_fraction))
    if design == "constant":
        add((chain.side, chain.middle, chain.bias, chain.threshold))
        digest.update(chain.sector_table.tobytes() + chain.barrel_table.tobytes())
    return digest.hexdigest()


def _first(examples: Examples, vectors: int) -> Examples:
    """The first events that have so many tracks together."""
    column = examples.inputs["pt"]
    offsets = getattr(column, "offsets", None)
    if offsets is None:
        raise ConfigError("the events have no ragged column of tracks; these are not tracks")
    enough = int(np.searchsorted(offsets - offsets[0], vectors))
    return examples.take(slice(0, max(min(enough, len(examples)), 1)))
