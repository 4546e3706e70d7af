"""The whole vertex chain: track words in, one a clock and link, vertex and association flags out.

The networks are Verilog modules of their own (`firmware.verilog`), instantiated once a link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from amaranth.hdl import (  # type: ignore[import-untyped]
    Array,
    Cat,
    ClockSignal,
    Const,
    Elaboratable,
    Instance,
    Module,
    Mux,
    ResetSignal,
    Signal,
    signed,
    unsigned,
)
from amaranth.lib.fifo import SyncFIFOBuffered  # type: ignore[import-untyped]
from amaranth.lib.memory import Memory  # type: ignore[import-untyped]

from stillfit.firmware.glue.peaks import INDEX, MeanOfFive, PeaksInMemory, PeaksInRegisters
from stillfit.firmware.verilog import Rtl

PT, QUALITY, ETA, RESOLUTION = 11, 3, 11, 7  # bits of the features
ROWS = 1024  # clocks of tracks that wait for their vertex
BIAS = 16  # bits of a bias that is loaded
LOADED = ("side", "middle", "bias", "threshold")  # and then the tables: what is loaded, in order


@dataclass(frozen=True, eq=False, kw_only=True)
class Numbers:
    """All numbers of the chain that are not in its networks.

    `pt` by |curvature|, `eta` and `resolution` by |tan(lambda)|; `cells`: where |tan(lambda)|
    enters the next cell of |eta|. `sectors` (links, cells): the z0 table of each link; `barrel`
    (cells * 4). `beam`, `slopes`, `half`: z at the three barrel layers, in one step. `side`,
    `middle`: the filter's taps, of `taps` bits with their sign. `threshold` of the logit's code,
    `fields`: name -> (lowest bit, bits) in the word.
    """

    pt: tuple[int, ...]
    eta: tuple[int, ...]
    resolution: tuple[int, ...]
    cells: tuple[int, ...]
    sectors: tuple[tuple[int, ...], ...]
    barrel: tuple[int, ...]
    beam: int
    slopes: tuple[int, ...]
    half: int
    side: int
    middle: int
    taps: int
    full: int
    score: int
    bias: int
    threshold: int
    fields: dict[str, tuple[int, int]]

    @property
    def table(self) -> int:
        """Bits of an entry of a z0 table: those of z0, or more where a constant needs them."""
        entries = [*self.barrel, *(entry for sector in self.sectors for entry in sector)]
        most = max(max(entries), -min(entries) - 1)
        return max(self.fields["z0"][1], most.bit_length() + 1)


class TrackFront(Elaboratable):  # type: ignore[misc]
    """A word to its bin and features, `CYCLES` clocks later.

    The same module for every link. `sector`: the z0 table of the link, its cells side by side; or
    (`loaded`) tables are memories, written while `load` is high: `load_word` goes where
    `load_at`, the number of the word, says; the link's own table begins at `first`, that of the
    barrel, which all links hold, after those of all links.
    """

    CYCLES = 4

    def __init__(self, numbers: Numbers, *, loaded: bool) -> None:
        self.numbers, self.loaded = numbers, loaded
        self.size = len(numbers.sectors[0])
        self.word = Signal(96)
        self.sector = Signal(numbers.table * self.size)
        self.load, self.load_word = Signal(), Signal(32)
        self.load_at, self.first = Signal(16), Signal(16)
        self.valid = Signal()
        self.bin = Signal(INDEX)
        self.pt, self.quality = Signal(PT), Signal(QUALITY)
        self.eta, self.resolution = Signal(ETA), Signal(RESOLUTION)

    @property
    def ports(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs by name."""
        names = ["load", "load_word", "load_at", "first"] if self.loaded else ["sector"]
        inputs = {name: getattr(self, name) for name in ("word", *names)}
        out = ("valid", "bin", "pt", "quality", "eta", "resolution")
        return inputs, {name: getattr(self, name) for name in out}

    def elaborate(self, platform: Any) -> Any:
        m, n = Module(), self.numbers

        def field(name: str) -> Any:
            low, bits = n.fields[name]
            return self.word[low : low + bits]

        rinv, tanl = field("rinv").as_signed(), field("tanl").as_signed()
        z0, hits = field("z0").as_signed(), field("hitpattern")
        size = Signal(15)
        m.d.comb += size.eq(Mux(rinv < 0, -rinv, rinv))
        by_pt = Memory(shape=unsigned(PT), depth=len(n.pt), init=n.pt)
        both = [e | r << ETA for e, r in zip(n.eta, n.resolution, strict=True)]
        by_tanl = Memory(shape=unsigned(ETA + RESOLUTION), depth=len(both), init=both)
        m.submodules.by_pt, m.submodules.by_tanl = by_pt, by_tanl
        read_pt, read_tanl = by_pt.read_port(), by_tanl.read_port()
        folded = Signal(15)
        m.d.comb += [
            folded.eq(Mux(tanl < 0, ~tanl, tanl)),
            read_pt.addr.eq(Mux(size > len(n.pt) - 1, len(n.pt) - 1, size)),
            read_tanl.addr.eq(folded),
        ]
        half = len(n.cells) + 1
        outer, below = Signal(range(half)), Signal()
        m.d.sync += [outer.eq(sum((folded >= edge) for edge in n.cells)), below.eq(tanl < 0)]
        crossed = []
        for layer, slope in enumerate(n.slopes):
            z, hit = Signal(signed(40), name=f"z{layer}"), Signal(name=f"hit{layer}")
            m.d.sync += [
                z.eq(((z0 << 1) + 1) * n.beam + ((tanl << 1) + 1) * slope),
                hit.eq(hits[layer]),
            ]
            crossed.append(hit & (z < n.half) & (z > -n.half))
        cell, found = Signal(range(2 * half)), Signal(2)
        m.d.sync += [
            cell.eq(Mux(below, half - 1 - outer, half + outer)),
            found.eq(sum(crossed)),
        ]
        place = Signal(signed(20))
        by_sector, by_barrel = self._tables(m, cell, Cat(found, cell))
        m.d.sync += place.eq(
            late(m, z0, 2, "z0") + (1 << (n.fields["z0"][1] - 1)) - by_sector - by_barrel
        )
        up = Signal(signed(16))
        m.d.comb += up.eq(place >> 4)
        m.d.sync += self.bin.eq(Mux(up < 0, 0, Mux(up > 255, 255, up)))
        m.d.comb += [
            self.valid.eq(late(m, field("valid"), 4, "valid")),
            self.quality.eq(late(m, field("quality"), 4, "quality")),
            self.pt.eq(late(m, read_pt.data, 3, "pt")),
            Cat(self.eta, self.resolution).eq(late(m, read_tanl.data, 3, "tanl")),
        ]
        return m

    def _tables(self, m: Any, cell: Any, both: Any) -> tuple[Any, Any]:
        """The entries of the link's table and of the barrel's, in the same clock."""
        n = self.numbers
        if not self.loaded:
            here = self.sector.word_select(cell, n.table).as_signed()
            return here, Array(n.barrel)[both]
        found = []
        start = len(LOADED) + len(n.sectors) * self.size
        for name, first, cells, at in (
            ("sectors", self.first, self.size, cell),
            ("barrels", start, len(n.barrel), both),
        ):
            memory = Memory(shape=signed(n.table), depth=cells, init=[])
            m.submodules[name] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            place, inside = Signal(17, name=f"{name}_at"), Signal(name=f"{name}_inside")
            m.d.comb += [
                place.eq(self.load_at - first),
                inside.eq((self.load_at >= first) & (place < cells)),
                write.addr.eq(Mux(inside, place, 0)),  # simulators refuse a place beyond the end
                write.data.eq(self.load_word),
                write.en.eq(self.load & inside),
                read.addr.eq(at),
            ]
            found.append(read.data)
        return found[0], found[1]


def late(m: Any, value: Any, clocks: int, name: str) -> Any:
    """A value some clocks later."""
    for n in range(clocks):
        held = Signal(value.shape(), name=f"{name}_{n + 1}")
        m.d.sync += held.eq(value)
        value = held
    return value


class _Out(NamedTuple):
    """What a front says of a track."""

    valid: Any
    bin: Any
    pt: Any
    quality: Any
    eta: Any
    resolution: Any


class Chain(Elaboratable):  # type: ignore[misc]
    """Words of one event on all links until `last`; then its vertex, then its flags in order.

    With reloadable weights all other numbers are loaded, too: with `load_numbers` high, a word a
    clock by `load_word`, `LOADED` first, then the tables of the links and that of the barrel. The
    networks' images enter the same way with `load_weight` and `load_associate`.

    `words`: 96 bits a link, the first lowest; a word counts where its first bit (valid) is 1.
    `last` comes with the event's last words, or alone. `vertex` is high for one clock with `z0`,
    `best` and `score`; `flagged` for each clock in which the event had a word, with `tracks` and
    `flags` of all links, `flags_last` with the last of them. `overrun` stays high once events came
    too close (`events every`: docs/firmware/hdl.md).
    """

    def __init__(
        self,
        numbers: Numbers,
        weight: Rtl,
        associate: Rtl,
        *,
        form: Literal["registers", "memory"],
    ) -> None:
        links = len(numbers.sectors)
        self.numbers, self.weight, self.associate, self.links = numbers, weight, associate, links
        self.loaded = bool(weight.weight_widths)
        logit = sum(associate.out_widths) + associate.out_shift[0] + 1
        self.held = {
            "side": Signal(signed(numbers.taps), name="side", reset_less=True),
            "middle": Signal(signed(numbers.taps), name="middle", reset_less=True),
            "bias": Signal(signed(BIAS), name="bias", reset_less=True),
            "threshold": Signal(signed(logit + 1), name="threshold", reset_less=True),
        }
        own: dict[str, Any] = (
            dict(self.held) if self.loaded else {name: getattr(numbers, name) for name in LOADED}
        )
        self.threshold = own["threshold"]
        kind = PeaksInRegisters if form == "registers" else PeaksInMemory
        self.peaks = kind(
            links=links,
            weight=weight.out_widths[0] + weight.out_shift[0],
            full=numbers.full,
            side=own["side"],
            middle=own["middle"],
            score=numbers.score,
        )
        self.mean = MeanOfFive(self.peaks, own["bias"])
        front = TrackFront(numbers, loaded=self.loaded)
        self.parts = {**self.peaks.parts, "track_front": (front, *front.ports)}
        self.words = Signal(96 * links)
        self.last = Signal()
        self.load_weight, self.load_associate, self.load_numbers = Signal(), Signal(), Signal()
        self.load_word = Signal(32)
        self.vertex = Signal()
        self.z0 = Signal(self.mean.z0.shape())
        self.best, self.score = Signal(INDEX), Signal(numbers.score)
        self.flagged, self.flags_last = Signal(), Signal()
        self.tracks, self.flags = Signal(links), Signal(links)
        self.overrun = Signal()

    @property
    def clocks(self) -> int:
        """From an event's `last` to its `vertex`."""
        return TrackFront.CYCLES + self.weight.latency + self.peaks.CYCLES + self.mean.CYCLES

    @property
    def ports(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs by name."""
        inputs = {"words": self.words, "last": self.last}
        if self.loaded:
            inputs |= {
                "load_weight": self.load_weight,
                "load_associate": self.load_associate,
                "load_numbers": self.load_numbers,
                "load_word": self.load_word,
            }
        names = ("vertex", "z0", "best", "score", "flagged", "flags_last", "tracks", "flags")
        return inputs, {name: getattr(self, name) for name in (*names, "overrun")}

    def elaborate(self, platform: Any) -> Any:
        m, peaks, links = Module(), self.peaks, self.links
        m.submodules.peaks, m.submodules.mean = peaks, self.mean
        wait = self.weight.latency
        last = late(m, self.last, TrackFront.CYCLES + wait, "last")
        at = Signal(16)
        if self.loaded:
            m.d.sync += at.eq(Mux(self.load_numbers, at + 1, 0))
            with m.If(self.load_numbers), m.Switch(at):
                for place, name in enumerate(LOADED):
                    with m.Case(place):
                        m.d.sync += self.held[name].eq(self.load_word)
        rows = []
        for n in range(links):
            front = self._front(m, n, at)
            out = self._network(
                m, self.weight, f"weight{n}", Cat(front.pt, front.quality, front.eta),
                front.valid, self.load_weight,
            )  # fmt: skip
            row = Cat(front.valid, front.bin, front.pt, front.quality, front.resolution)
            rows.append(late(m, row, wait, f"row{n}"))
            m.d.comb += [
                peaks.valid[n].eq(rows[n][0]),
                peaks.bins[n].eq(rows[n][1 : 1 + INDEX]),
                peaks.weights[n].eq(out << self.weight.out_shift[0]),
            ]
        m.d.comb += peaks.last.eq(last)
        m.d.comb += [
            self.vertex.eq(self.mean.done),
            self.z0.eq(self.mean.z0),
            self.best.eq(self.mean.best),
            self.score.eq(self.mean.score),
        ]
        # Tracks wait, in the order in which they came, until their event's bin is known.
        whole = Cat(last, *rows)
        memory = Memory(shape=unsigned(len(whole)), depth=ROWS, init=[])
        m.submodules.waiting = memory
        write = memory.write_port()
        read = memory.read_port(transparent_for=(write,))
        at_write, at_read = Signal(range(ROWS)), Signal(range(ROWS))
        kept, used = Signal(), Signal(range(ROWS + 1))
        m.d.comb += [
            kept.eq(last | peaks.valid.any()),
            write.en.eq(kept),
            write.addr.eq(at_write),
            write.data.eq(whole),
        ]
        m.submodules.known = known = SyncFIFOBuffered(width=INDEX, depth=8)
        m.d.comb += [known.w_en.eq(peaks.found), known.w_data.eq(peaks.best)]
        turn = Signal()
        m.d.comb += [turn.eq(known.r_rdy), known.r_en.eq(turn & read.data[0])]
        after = Signal(range(ROWS))
        m.d.comb += [after.eq(at_read + turn), read.addr.eq(after)]
        m.d.sync += [at_read.eq(after), at_write.eq(at_write + kept), used.eq(used + kept - turn)]
        full = Signal()
        m.d.comb += full.eq((used == ROWS) & kept | (peaks.found & ~known.w_rdy))
        with m.If(full | peaks.overrun | self.mean.overrun):
            m.d.sync += self.overrun.eq(1)
        self._flags(m, turn, read.data, known.r_data)
        return m

    def _flags(self, m: Any, turn: Any, row: Any, best: Any) -> None:
        """Distances, association networks, thresholds."""
        each = 1 + INDEX + PT + QUALITY + RESOLUTION
        valid, flags = [], []
        for n in range(self.links):
            mine = row[1 + n * each : 1 + (n + 1) * each]
            bins, rest = mine[1 : 1 + INDEX], mine[1 + INDEX :]
            away, features, on = (
                Signal(INDEX, name=f"away{n}"), Signal(len(rest), name=f"features{n}"),
                Signal(name=f"on{n}"),
            )  # fmt: skip
            m.d.sync += [
                away.eq(Mux(bins > best, bins - best, best - bins)),
                features.eq(rest),
                on.eq(turn & mine[0]),
            ]
            out = self._network(
                m, self.associate, f"associate{n}", Cat(features, away), on, self.load_associate
            )
            if self.associate.out_signed[0]:
                out = out.as_signed()
            logit = out << self.associate.out_shift[0]
            there = late(m, on, self.associate.latency, f"there{n}")
            valid.append(there)
            flags.append(there & (logit >= self.threshold))
        clocks = self.associate.latency + 2
        m.d.sync += [self.tracks.eq(Cat(*valid)), self.flags.eq(Cat(*flags))]
        m.d.comb += [
            self.flagged.eq(late(m, turn, clocks, "turn")),
            self.flags_last.eq(late(m, turn & row[0], clocks, "ends")),
        ]

    def _front(self, m: Any, n: int, at: Any) -> _Out:
        """The front of a link."""
        numbers, size = self.numbers, len(self.numbers.sectors[0])
        out = _Out(
            *(
                Signal(bits, name=f"{name}{n}")
                for name, bits in zip(
                    _Out._fields, (1, INDEX, PT, QUALITY, ETA, RESOLUTION), strict=True
                )
            )
        )
        ports: dict[str, Any] = {"i_word": self.words[96 * n : 96 * n + 96]}
        if self.loaded:
            first = Const(len(LOADED) + n * size, 16)
            ports |= {"i_load": self.load_numbers, "i_load_word": self.load_word}
            ports |= {"i_load_at": at, "i_first": first}
        else:
            table = Cat(Const(entry, signed(numbers.table)) for entry in numbers.sectors[n])
            ports["i_sector"] = table
        m.submodules[f"front{n}"] = Instance(
            "track_front",
            i_clk=ClockSignal(),
            i_rst=ResetSignal(),
            **ports,
            **{f"o_{name}": signal for name, signal in out._asdict().items()},
        )
        return out

    def _network(self, m: Any, rtl: Rtl, name: str, data: Any, valid: Any, load: Any) -> Any:
        given, kept = Signal(sum(rtl.in_widths), name=f"{name}_in"), []
        out = Signal(sum(rtl.out_widths), name=f"{name}_out")
        bits = rtl.traced.input.widths
        at = 0
        for whole, own in zip(bits, rtl.in_widths, strict=True):
            kept += [data[at : at + own]] if own else []
            at += whole
        m.d.comb += given.eq(Cat(*kept))
        ports: dict[str, Any] = {
            "i_clk": ClockSignal(),
            "i_rst": ResetSignal(),
            "i_in_valid": valid,
            "i_in_data": given,
            "o_out_data": out,
        }
        if rtl.weight_widths:
            ports |= {"i_load": load, "i_load_word": self.load_word}
        m.submodules[name] = Instance(rtl.name, **ports)
        return out
