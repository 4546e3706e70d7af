"""Histogram of weighted tracks, three-bin filter, arg-max: in registers or in memories.

Both forms end in `found` for one clock with `best`, `score` and the five `sums` around the best
bin, equal to `l1t.fixed_chain`: of equal scores the bin nearest to the middle wins, then the lower.
Weights carry no sign, so that saturating each sum is saturating the whole.
"""

from __future__ import annotations

from typing import Any

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
from amaranth.lib.memory import Memory  # type: ignore[import-untyped]

BINS = 256
INDEX = 8


class Peaks(Elaboratable):  # type: ignore[misc]
    """What both forms share: ports, filter, and the rule of the arg-max.

    `side`, `middle`: taps as numbers, or as signals that hold them. `parts`: modules of their own
    which the block is made of, by name, with their inputs and outputs: written once, used often.
    """

    def __init__(
        self, *, links: int, weight: int, full: int, side: Any, middle: Any, score: int
    ) -> None:
        self.links, self.full, self.side, self.middle = links, full, side, middle
        self.parts: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {}
        self.width = full.bit_length()
        self.score_bits = score
        self.valid = Signal(links)
        self.last = Signal()
        self.bins = [Signal(INDEX, name=f"bin{n}") for n in range(links)]
        self.weights = [Signal(weight, name=f"weight{n}") for n in range(links)]
        self.found = Signal()
        self.best = Signal(INDEX)
        self.score = Signal(score)
        self.sums = [Signal(self.width, name=f"sum{n}") for n in range(5)]
        self.overrun = Signal()

    def saturated(self, total: Any) -> Any:
        """A sum as a bin holds it."""
        return Mux(total > self.full, self.full, total)

    def scored(self, m: Any, three: Any) -> Any:
        """max(0, filter) of a bin and its neighbours."""
        left, middle, right = three
        raw = Signal(signed(self.score_bits + 2))
        m.d.comb += raw.eq(self.middle * middle + self.side * (left + right))
        return Mux(raw > 0, raw, 0)

    @staticmethod
    def away(index: Any) -> Any:
        """How far a bin is from the middle: 0 to 127 on either side."""
        return Mux(index[INDEX - 1], index[: INDEX - 1], ~index[: INDEX - 1])


class RegisterBin(Elaboratable):  # type: ignore[misc]
    """One bin in registers: what all links add to it in a clock, its sum, its score.

    `held` is the sum of the event before, `score` that of `held` and its neighbours'.
    """

    def __init__(self, peaks: PeaksInRegisters) -> None:
        self.peaks = peaks
        self.at = Signal(INDEX)
        self.valid = Signal(peaks.links)
        self.bins = Signal(INDEX * peaks.links)
        self.weights = Signal(len(peaks.weights[0]) * peaks.links)
        self.ended = Signal()
        self.left, self.right = Signal(peaks.width), Signal(peaks.width)
        self.held, self.score = Signal(peaks.width), Signal(peaks.score_bits)

    @property
    def ports(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs by name."""
        names = ("at", "valid", "bins", "weights", "ended", "left", "right")
        taps = {"side": self.peaks.side, "middle": self.peaks.middle}
        loaded = {name: tap for name, tap in taps.items() if isinstance(tap, Signal)}
        inputs = {name: getattr(self, name) for name in names} | loaded
        return inputs, {"held": self.held, "score": self.score}

    def elaborate(self, platform: Any) -> Any:
        m, peaks = Module(), self.peaks
        bits = len(peaks.weights[0])
        part = Signal((peaks.links * ((1 << bits) - 1)).bit_length())
        terms = [
            Mux(
                self.valid[n] & (self.bins.word_select(n, INDEX) == self.at),
                self.weights.word_select(n, bits),
                0,
            )
            for n in range(peaks.links)
        ]
        running, total = Signal(peaks.width), Signal(max(len(part), peaks.width) + 1)
        m.d.comb += total.eq(running + part)
        m.d.sync += [
            part.eq(_tree(terms)),
            running.eq(Mux(self.ended, 0, peaks.saturated(total))),
        ]
        with m.If(self.ended):
            m.d.sync += self.held.eq(peaks.saturated(total))
        m.d.sync += self.score.eq(peaks.scored(m, (self.left, self.held, self.right)))
        return m


class PeaksInRegisters(Peaks):
    """All bins are registers and all scores are compared at once, in a tree of eight levels.

    The answer comes `CYCLES` clocks after `last`; the next `last` may come as long after it.
    """

    CYCLES = 8

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        one = RegisterBin(self)
        self.parts = {"register_bin": (one, *one.ports)}
        self.taps = {n: s for n, s in one.ports[0].items() if n in ("side", "middle")}

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        ended, done = Signal(), Signal()
        m.d.sync += [ended.eq(self.last), done.eq(ended)]
        held = [Signal(self.width, name=f"held{b}") for b in range(BINS)]
        zero = Const(0, unsigned(self.width))
        around = [zero, zero, *held, zero, zero]
        level = []
        for b in range(BINS):
            score = Signal(self.score_bits, name=f"score{b}")
            m.submodules[f"one{b}"] = Instance(
                "register_bin",
                i_clk=ClockSignal(),
                i_rst=ResetSignal(),
                i_at=Const(b, INDEX),
                i_valid=self.valid,
                i_bins=Cat(self.bins),
                i_weights=Cat(self.weights),
                i_ended=ended,
                i_left=around[b + 1],
                i_right=around[b + 3],
                o_held=held[b],
                o_score=score,
                **{f"i_{name}": tap for name, tap in self.taps.items()},
            )
            level.append((score, Const(b, unsigned(INDEX))))
        depth = 0
        while len(level) > 1:
            depth += 1
            above = []
            for n in range(0, len(level), 2):
                (ls, li), (rs, ri) = level[n], level[n + 1]
                right = (rs > ls) | ((rs == ls) & (self.away(ri) < self.away(li)))
                score = Signal(self.score_bits, name=f"top{depth}_{n}")
                index = Signal(INDEX, name=f"at{depth}_{n}")
                domain = m.d.sync if depth % 2 == 0 else m.d.comb
                domain += [score.eq(Mux(right, rs, ls)), index.eq(Mux(right, ri, li))]
                above.append((score, index))
            level = above
        (score, index), whole = level[0], Array(around)
        # held, score, four times two levels of the tree, then the window.
        busy = Signal(6)
        m.d.sync += busy.eq((busy << 1) | done)
        at = Signal(INDEX + 1)
        m.d.comb += at.eq(index)
        m.d.sync += [
            self.best.eq(index),
            self.score.eq(score),
            self.found.eq(busy[4]),
            *(self.sums[k].eq(whole[at + k]) for k in range(5)),
        ]
        with m.If(ended & (busy[:5].any() | done)):
            m.d.sync += self.overrun.eq(1)
        return m


class PeaksInMemory(Peaks):
    """Two memories a link take turns: one is filled, the other read bin after bin and cleared.

    The answer comes `CYCLES` clocks after `last`; the next `last` must not come earlier.
    """

    CYCLES = BINS + 7

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        filling = Signal()  # which memory of each link
        scanning = Signal()
        at = Signal(INDEX + 1)
        written = Signal()
        bank_of = Signal()
        m.d.sync += [written.eq(self.valid.any() | self.last), bank_of.eq(filling)]
        start = Signal()
        m.d.sync += start.eq(self.last)
        with m.If(self.last):
            m.d.sync += filling.eq(~filling)
            with m.If(scanning | start):
                m.d.sync += self.overrun.eq(1)
        with m.If(start):
            m.d.sync += [scanning.eq(1), at.eq(0)]
        with m.Elif(scanning):
            m.d.sync += at.eq(at + 1)
            with m.If(at == BINS + 1):
                m.d.sync += scanning.eq(0)
        inside = Signal()
        m.d.comb += inside.eq(scanning & (at < BINS))
        read, was = Signal(), Signal(INDEX)
        m.d.sync += [read.eq(inside), was.eq(at[:INDEX])]
        seen = []
        for n in range(self.links):
            valid, bins, weight = Signal(), Signal(INDEX), Signal(len(self.weights[n]))
            m.d.sync += [
                valid.eq(self.valid[n]), bins.eq(self.bins[n]), weight.eq(self.weights[n]),
            ]  # fmt: skip
            data = []
            for bank in range(2):
                memory = Memory(shape=unsigned(self.width), depth=BINS, init=[])
                m.submodules[f"memory{n}_{bank}"] = memory
                write = memory.write_port()
                port = memory.read_port(transparent_for=(write,))
                total = Signal(self.width + 1, name=f"total{n}_{bank}")
                m.d.comb += [
                    total.eq(port.data + weight),
                    port.addr.eq(Mux(filling == bank, self.bins[n], at[:INDEX])),
                ]
                mine = valid & (bank_of == bank)
                with m.If(mine):
                    m.d.comb += [
                        write.en.eq(1), write.addr.eq(bins), write.data.eq(self.saturated(total)),
                    ]  # fmt: skip
                with m.Elif(read & (filling != bank)):
                    m.d.comb += [write.en.eq(1), write.addr.eq(was), write.data.eq(0)]
                data.append(port.data)
            seen.append(Mux(filling, data[0], data[1]))
        window = [Signal(self.width, name=f"window{k}") for k in range(5)]
        entered, moved = Signal(INDEX + 1), Signal()
        total = Signal(self.width + self.links.bit_length())
        m.d.comb += total.eq(_tree(seen))
        scan, place = Signal(), Signal(INDEX + 1)
        m.d.sync += [scan.eq(scanning), place.eq(at)]
        m.d.sync += [moved.eq(scan), entered.eq(place)]
        with m.If(scan):
            m.d.sync += [window[k].eq(window[k + 1]) for k in range(4)]
            m.d.sync += window[4].eq(Mux(read, self.saturated(total), 0))
        with m.If(start):
            m.d.sync += [window[k].eq(0) for k in range(5)]
        # Bin `entered` - 2 stands in the middle of the window.
        score, index, judged = Signal(self.score_bits), Signal(INDEX), Signal()
        around = [Signal(self.width, name=f"around{k}") for k in range(5)]
        m.d.sync += [
            score.eq(self.scored(m, window[1:4])),
            index.eq(entered - 2),
            judged.eq(moved & (entered >= 2)),
            *(around[k].eq(window[k]) for k in range(5)),
        ]
        first = Signal()
        m.d.comb += first.eq(index == 0)
        better = (score > self.score) | (
            (score == self.score) & (self.away(index) < self.away(self.best))
        )
        m.d.sync += self.found.eq(0)
        with m.If(judged):
            with m.If(first | better):
                m.d.sync += [self.best.eq(index), self.score.eq(score)]
                m.d.sync += [self.sums[k].eq(around[k]) for k in range(5)]
            m.d.sync += self.found.eq(index == BINS - 1)
        return m


class MeanOfFive(Elaboratable):  # type: ignore[misc]
    """Position: the mean of the five bins as a divider gives it, one bit of it a clock.

    `z0` = (2 best + 1 - bins) 32 + floor((128 lean + total) / (2 total)) + bias, 0 where the score
    is 0. `done` comes `CYCLES` clocks after `start`. `bias`: a number, or a signal of at most 16
    bits that holds it.
    """

    CYCLES = 11

    def __init__(self, peaks: Peaks, bias: Any) -> None:
        self.peaks, self.bias = peaks, bias
        self.done = Signal()
        own = bias.bit_length() if isinstance(bias, int) else len(bias) - 1
        self.z0 = Signal(signed(max(own + 2, 17)))
        self.best = Signal(INDEX)
        self.score = Signal(peaks.score_bits)
        self.overrun = Signal()

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        peaks = self.peaks
        bits = peaks.width + 3
        total, lean = Signal(bits), Signal(signed(bits + 2))
        far = [peaks.sums[k].as_unsigned() for k in range(5)]
        m.d.comb += [
            total.eq(_tree(far)),
            lean.eq((far[3] - far[1]) + 2 * (far[4] - far[2 - 2])),
        ]
        rest, by, quotient = Signal(bits + 10), Signal(bits + 10), Signal(9)
        step = Signal(4)
        m.d.sync += self.done.eq(0)
        with m.If(peaks.found):
            m.d.sync += [
                rest.eq(128 * lean + 257 * total),
                by.eq(total << 9),
                quotient.eq(0),
                step.eq(10),
                self.best.eq(peaks.best),
                self.score.eq(peaks.score),
            ]
            with m.If(step != 0):
                m.d.sync += self.overrun.eq(1)
        with m.Elif(step > 1):
            m.d.sync += [by.eq(by >> 1), step.eq(step - 1)]
            m.d.sync += quotient.eq((quotient << 1) | (rest >= by))
            with m.If(rest >= by):
                m.d.sync += rest.eq(rest - by)
        with m.Elif(step == 1):
            middle = ((self.best << 1) - (BINS - 1)) * 32
            found = middle + quotient - 128 + self.bias
            m.d.sync += [step.eq(0), self.done.eq(1), self.z0.eq(Mux(self.score > 0, found, 0))]
        return m


def _tree(terms: Any) -> Any:
    """The sum of terms, by pairs."""
    terms = list(terms)
    while len(terms) > 1:
        pairs = [terms[n] + terms[n + 1] for n in range(0, len(terms) - 1, 2)]
        terms = [*pairs, *([terms[-1]] if len(terms) % 2 else [])]
    return terms[0]
