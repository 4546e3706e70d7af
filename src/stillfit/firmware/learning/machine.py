"""The learner's circuit: memories, one multiplier, and a state machine that walks over passes.

A product takes the pipeline's steps: addresses, operands from memories, product, sum, rounding,
result. `Layout` has the order and the widths, the C and numba kernels the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from amaranth.hdl import (  # type: ignore[import-untyped]
    Array,
    Cat,
    Const,
    Elaboratable,
    Module,
    Mux,
    Signal,
    signed,
    unsigned,
)
from amaranth.lib.memory import Memory  # type: ignore[import-untyped]

from stillfit.firmware.learning.layout import (
    FACTOR,
    GAIN,
    NOISE_LIMIT,
    RATE,
    STEPS,
    TABLE,
    VALUE,
    WORD,
    Layout,
    Pass,
)

AREAS = ("weights", "covariance", "random", "guards")
_COUNT_HIGH = 2**31 - 1


class Machine(Elaboratable):  # type: ignore[misc]
    """One example at a time: its inputs in order, then (with `learn`) the step towards `target`.

    `in_ready`: the next input may come, with `in_valid`; `learn` and `target` (a number, or a
    class) are read with the last one. `out_valid`: an output, in order. `done`: for one clock,
    when the example is finished. Between examples `state_area` (0 weights, 1 covariance, 2 random,
    3 guards) and `state_address` choose a word of the state: `state_value` shows it a clock later,
    and `state_write` writes `state_data` there. `rst` ends an example and leaves the state alone.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        learner = layout.learner
        inputs, outputs = layout.ports
        signs = ("in_value", "target", "out_value")
        for name, bits in (inputs | outputs).items():
            shape = signed(bits) if name in signs else unsigned(bits)
            setattr(self, name, Signal(shape, name=name))
        arrays = learner.arrays
        # What a reset must not lose.
        self.random = Signal(32, init=int(arrays["random"][0]), reset_less=True)
        guards = arrays["guards"] if layout.least_squares else (0, 0)
        self.guards = [
            Signal(WORD, init=int(v), reset_less=True, name=f"guard{n}")
            for n, v in enumerate(guards)
        ]

    @property
    def ports(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs by name, without `clk` and `rst`."""
        inputs, outputs = self.layout.ports
        return (
            {name: getattr(self, name) for name in inputs},
            {name: getattr(self, name) for name in outputs},
        )

    def _memories(self) -> dict[str, Any]:
        layout, learner = self.layout, self.layout.learner
        arrays, w = learner.arrays, layout.width

        def memory(bits: Any, depth: int, init: Any = ()) -> Any:
            # A power of two, so that no address lies beyond it.
            whole = 1 << max((depth - 1).bit_length(), 1)
            return Memory(shape=bits, depth=whole, init=[int(v) for v in np.ravel(init)])

        found = {
            "weights": memory(signed(w), layout.weight_at[-1], arrays["weights"]),
            "values": memory(signed(w), layout.value_at[-1]),
            "errors": memory(signed(w), layout.errors),
        }
        if layout.least_squares:
            n = layout.size
            found |= {
                "covariance": memory(signed(WORD), n * n, arrays["covariance"]),
                "products": memory(signed(WORD), n),
                "gains": memory(signed(WORD), n),
            }
        if layout.ends is not None:
            low, high = (np.asarray(end, np.int64) & ((1 << w) - 1) for end in layout.ends)
            found["ends"] = memory(unsigned(2 * w), layout.weight_at[-1], low | high << w)
        if layout.exponential:
            powers = np.asarray(arrays["powers"], np.int64)
            rows = powers[:-1] | (powers[:-1] - powers[1:]) << (TABLE + 1)
            found["powers"] = memory(unsigned(2 * TABLE + 1 - STEPS + 2), len(rows), rows)
        if learner.loss == "softmax":
            found["shares"] = memory(unsigned(TABLE + 1), layout.outputs)
        return found

    # -- small things -----------------------------------------------------------------------------

    def _of(self, told: Callable[[Pass], int], bits: Any) -> Any:
        """A constant of the pass that runs."""
        return Array([Const(told(one), bits) for one in self.layout.passes])[self.counter]

    def _is(self, *kinds: str) -> Any:
        """Whether the pass that runs is of such a kind."""
        return self._of(lambda one: one.kind in kinds, 1)

    def _later(self, signal: Any, clocks: int) -> Any:
        """A signal of the pipeline's first step, so many clocks later."""
        chain = self.chains.setdefault(id(signal), [signal])
        while len(chain) <= clocks:
            held = Signal(signal.shape(), name=f"{signal.name}_{len(chain)}")
            self.delays.append(held.eq(chain[-1]))
            chain.append(held)
        return chain[clocks]

    @staticmethod
    def clip(value: Any, low: Any, high: Any) -> Any:
        return Mux(value < low, low, Mux(value > high, high, value))

    # -- the circuit ------------------------------------------------------------------------------

    def elaborate(self, platform: Any) -> Any:
        self.m = m = Module()
        self.chains: dict[int, list[Any]] = {}  # kept alive by their own first entries
        self.shown: dict[str, Any] = {}
        # Delays do not stop under the condition in which they are asked for.
        self.delays: list[Any] = []
        self.shows: list[Any] = []
        layout = self.layout
        self.counter = Signal(range(len(layout.passes)))
        self.low, self.high = -(1 << (layout.width - 1)), (1 << (layout.width - 1)) - 1
        self.reads, self.writes = {}, {}
        self.memories = self._memories()
        for name, memory in self.memories.items():
            m.submodules[name] = memory
            self.reads[name] = memory.read_port()
            if name not in ("powers", "ends"):
                self.writes[name] = memory.write_port()
        self._registers()
        self._walks()
        self._pipeline()
        m.d.comb += [
            self.last.eq(self.k == layout.outputs - 1),
            self.away.eq(self.reads["values"].data - self.aim),
        ]
        with m.FSM():
            self._control()
            self._output_errors()
            if layout.least_squares:
                self._gains()
        self._host()
        m.d.sync += self.delays
        m.d.comb += self.shows
        return m

    def _registers(self) -> None:
        """What the state machine and the pipeline share."""
        layout, w = self.layout, self.layout.width
        self.start, self.issue = Signal(), Signal()
        self.aim, self.away = Signal(signed(w)), Signal(signed(w + 1))  # the target, and to it
        self.top, self.own = Signal(signed(w)), Signal(signed(w))
        self.rival, self.rivals = Signal(range(layout.outputs + 1)), Signal()
        self.which = Signal(range(layout.outputs + 1))  # output that comes next
        self.k, self.last = Signal(range(layout.outputs + 1)), Signal()
        self.waited = Signal(range(layout.depth + 1))
        self.power = Signal(signed(w + 2))  # of the exponential
        self.exp = Signal(2 * TABLE)
        self.part = Signal(layout.quotient)  # what is divided, then the quotient
        self.divisor = Signal(layout.divisor)
        self.remainder = Signal(layout.divisor)
        self.bits = Signal(range(layout.quotient + 1))

    def _walks(self) -> None:
        """Row and column of the product that begins now, and its addresses in each memory."""
        m, layout = self.m, self.layout
        passes = layout.passes
        most = max(one.rows for one in passes), max(one.columns for one in passes)
        self.row, self.column = Signal(range(most[0] + 1)), Signal(range(most[1] + 1))
        self.width_left = Signal(range(most[1] + 1))  # columns of this row, less one
        self.first, self.ends = Signal(), Signal()
        m.d.comb += [
            self.first.eq(self.column == 0),
            self.ends.eq(self.column == self.width_left),
        ]
        triangle = self._is("covariance")
        self.over = Signal()  # the last product of the pass
        m.d.comb += self.over.eq(self.ends & (self.row == self._of(lambda p: p.rows - 1, 16)))
        with m.If(self.start):
            m.d.sync += [
                self.row.eq(0),
                self.column.eq(0),
                self.width_left.eq(self._of(lambda p: p.columns - 1, 16)),
            ]
        with m.Elif(self.issue):
            m.d.sync += self.column.eq(self.column + 1)
            with m.If(self.ends):
                m.d.sync += [self.column.eq(0), self.row.eq(self.row + 1)]
                with m.If(triangle):
                    m.d.sync += self.width_left.eq(self.width_left - 1)
        self.walked = {}
        for name in {name for one in passes for name in one.reads}:
            depth = self.memories[name].depth
            at, base = Signal(range(depth), name=f"{name}_at"), Signal(range(depth))
            walks = [one.reads.get(name) for one in passes]
            bits = range(depth + max((w.column for w in walks if w), default=0) + 1)

            def told(part: str, walks: Any = walks, bits: Any = bits) -> Any:
                steps = [Const(getattr(w, part) if w else 0, bits) for w in walks]
                return Array(steps)[self.counter]

            across, down = told("column"), told("row")
            if name == "covariance":  # the upper triangle stands for the lower one
                across = Mux(self._is("products") & (self.column < self.row), layout.size, across)
            with m.If(self.start):
                m.d.sync += [at.eq(told("start")), base.eq(told("start"))]
            with m.Elif(self.issue):
                with m.If(self.ends):
                    m.d.sync += [at.eq(base + down), base.eq(base + down)]
                with m.Else():
                    m.d.sync += at.eq(at + across)
            self.walked[name] = at
            m.d.comb += self.reads[name].addr.eq(at)

    def _pipeline(self) -> None:
        """Operands, product, sum, rounding, result."""
        m, layout, depth = self.m, self.layout, self.layout.depth
        learner = layout.learner
        one = Signal()
        m.d.comb += one.eq(self.ends & self._of(lambda p: p.one, 1))
        data = {name: port.data for name, port in self.reads.items()}

        # Operands: of the pass, of a second product of an entry, or of the state machine.
        left, right = Signal(signed(layout.left)), Signal(signed(layout.right))
        self.side, self.side_left, self.side_right = (
            Signal(), Signal(signed(layout.left)), Signal(signed(layout.right)),
        )  # fmt: skip
        flows = self._later(self.issue, 1)
        by = {
            "forward": (data["weights"], data["values"]),
            "backward": (data["weights"], data["errors"]),
            "descend": (data["errors"], data["values"]),
        }
        if layout.least_squares:
            by |= {
                "products": (data["covariance"], data["values"]),
                "spread": (data["products"], data["values"]),
                "follow": (data["gains"], data["errors"]),
                "covariance": (data["gains"], data["products"]),
            }
        unit = 1 << layout.fraction
        with m.If(flows):
            for kind in dict.fromkeys(p.kind for p in layout.passes):
                with m.If(self._is(kind)):
                    a, b = by[kind]
                    m.d.sync += [left.eq(a), right.eq(b)]
            with m.If(self._later(one, 1)):
                m.d.sync += right.eq(unit)
        with m.Elif(self.side):
            m.d.sync += [left.eq(self.side_left), right.eq(self.side_right)]

        # The product, and for a gradient step the rate.
        product = left * right
        for n in range(depth):
            held = Signal(signed(layout.total), name=f"product{n + 1}")
            if n == (1 if depth > 1 else 0) and any(p.kind == "descend" for p in layout.passes):
                scaled = times(product, learner.rate) if learner.rate else Const(0, 1)
                m.d.sync += held.eq(Mux(self._is("descend"), scaled, product))
            else:
                m.d.sync += held.eq(product)
            product = held
        self.product = product  # of the state machine: never of a gradient step

        total = Signal(signed(layout.total))
        fresh = self._of(lambda p: not p.summed, 1)
        begins = self._later(self.first, 2 + depth) | fresh
        m.d.sync += total.eq(Mux(begins, 0, total) + product)

        # Rounding.
        ends = Signal()
        m.d.comb += ends.eq(self.issue & (self.ends | fresh))
        here = self._later(ends, 3 + depth)
        twice = any(layout.twice(p) for p in layout.passes)
        # Second products come late: what began them must be known when they are of another pass.
        self.entry, again = Signal(), Signal()
        m.d.comb += self.entry.eq(self.issue & self._is("covariance"))
        if twice:
            m.d.comb += again.eq(self._later(self.entry, layout.flight_again))
        rounded = self._rounding(total, here, again)
        m.d.sync += self.rounded.eq(rounded)
        self._results(self._later(ends, layout.reach), left, right, twice)

    def _rounding(self, total: Any, here: Any, again: Any) -> Any:
        """total / 2^shift as the kernels round it; the generator moves on where chance decides."""
        m, layout = self.m, self.layout
        f = layout.fraction
        learned = self._is("descend", "follow")
        cases = {f: self._is("forward", "backward", "products", "spread") & ~again}
        for kind, shift in (("descend", f + RATE), ("follow", GAIN), ("covariance", GAIN)):
            if any(p.kind == kind for p in layout.passes):
                cases[shift] = cases.get(shift, 0) | (self._is(kind) & ~again)
        if any(layout.twice(p) for p in layout.passes):
            cases[RATE] = cases.get(RATE, 0) | again
        draw = Signal(32)
        state = self.random
        for left, right in ((13, 0), (0, 17), (5, 0)):  # xorshift32
            moved = Signal(32)
            m.d.comb += moved.eq(state ^ (state << left >> right)[:32])
            state = moved
        m.d.comb += draw.eq(state)
        if layout.stochastic:
            with m.If(here & learned):
                m.d.sync += self.random.eq(draw)
        added, found = Signal(33), Signal(signed(layout.rounded))
        raised = Signal(signed(layout.total + 1))
        m.d.comb += raised.eq(total + added)
        for shift, when in cases.items():
            with m.If(when):
                half = Const(1 << (shift - 1), 33)
                if layout.stochastic:
                    m.d.comb += added.eq(Mux(learned, draw >> (32 - shift), half))
                else:
                    m.d.comb += added.eq(half)
                cut = raised >> shift
                if layout.even:  # half way was raised: back, if that made it odd
                    tie = raised[:shift] == 0
                    m.d.comb += found.eq(cut - (tie & cut[0]))
                else:
                    m.d.comb += found.eq(cut)
        self.rounded = Signal(signed(layout.rounded))
        return found

    def _results(self, there: Any, left: Any, right: Any, twice: bool) -> None:
        """Saturate, subtract, and write where the pass writes."""
        m, layout = self.m, self.layout
        reach, rounded = layout.reach, self.rounded
        place = Signal(range(max(memory.depth for memory in self.memories.values()) + 1))
        with m.If(self.start):
            m.d.sync += [place.eq(self._of(lambda p: p.target, 24)), self.which.eq(0)]
        with m.Elif(there):
            m.d.sync += place.eq(place + 1)
        low, high = self.low, self.high

        def write(name: str, value: Any, at: Any = place) -> None:
            port = self.writes[name]
            m.d.comb += [port.en.eq(1), port.addr.eq(at), port.data.eq(value)]

        positive = Signal()
        m.d.comb += positive.eq(self.reads["values"].data > 0)
        last = self._of(lambda p: p.last, 1)
        with m.If(there & self._is("forward")):
            value = Signal(signed(layout.width))
            m.d.comb += value.eq(self.clip(rounded, Mux(last, low, 0), high))
            write("values", value)
            with m.If(last):
                m.d.comb += [self.out_valid.eq(1), self.out_value.eq(value)]
                self._seen(value)
        if any(p.kind == "backward" for p in layout.passes):
            with m.If(there & self._is("backward")):
                slope = self._later(positive, reach - 1)
                write("errors", Mux(slope, self.clip(rounded, low, high), 0))
        old = Signal(signed(layout.width))
        m.d.comb += old.eq(self._later(self._named("weights"), reach - 1))
        new = Signal(signed(layout.width))
        m.d.comb += new.eq(self.clip(old - rounded, low, high))
        if layout.ends is not None:  # of the weight that is written in the next clock
            port, w = self.reads["ends"], layout.width
            m.d.comb += port.addr.eq(place + there)
            new = self.clip(new, port.data[:w].as_signed(), port.data[w:].as_signed())
        with m.If(there & self._is("descend", "follow")):
            write("weights", new)
        if not layout.least_squares:
            return
        least, most = -(1 << (WORD - 1)), (1 << (WORD - 1)) - 1
        self.spread = Signal(signed(layout.divisor))
        with m.If(there & self._is("products")):
            write("products", self.clip(rounded, least, most))
        with m.If(there & self._is("spread")):
            m.d.sync += self.spread.eq(rounded)
        self._covariance(left, right, write, twice)

    def _covariance(self, left: Any, right: Any, write: Any, twice: bool) -> None:
        """An entry less gain x product; forgotten, saturated, its diagonal kept positive."""
        m, layout, learner = self.m, self.layout, self.layout.learner
        reach = layout.reach
        least, most = -(1 << (WORD - 1)), (1 << (WORD - 1)) - 1
        entry = self._later(self._named("covariance"), reach - 1)
        value = Signal(signed(VALUE + 1))
        m.d.comb += value.eq(entry - self.rounded)
        at = Signal(range(layout.size**2))
        m.d.comb += at.eq(self.walked["covariance"])
        diagonal = Signal()
        m.d.comb += diagonal.eq(self.first)
        clocks, result, ready = reach, value, self._later(self.entry, reach)
        if twice:
            # A feature forgets where its entry of the diagonal lay below the start.
            below = Signal(layout.size)
            seen = self._later(self.issue, 1) & self._is("products")
            with m.If(seen & (self._later(self.row, 1) == self._later(self.column, 1))):
                row = self._later(self.row, 1)
                m.d.sync += below.bit_select(row, 1).eq(
                    self.reads["covariance"].data < learner.start
                )
            across = Signal(range(2 * layout.size))
            m.d.comb += across.eq(self.row + self.column)
            both = Signal(2)
            m.d.comb += both.eq(Cat(below.bit_select(self.row, 1), below.bit_select(across, 1)))
            forgets = self._later(both, reach + 1)
            held, factor = Signal(signed(VALUE)), Signal(FACTOR)
            m.d.sync += held.eq(value)
            m.d.comb += factor.eq(
                Mux(forgets.all(), learner.inverse,
                    Mux(forgets.any(), learner.inverse_root, 1 << RATE))
            )  # fmt: skip
            with m.If(self._later(self.entry, reach + 1)):
                m.d.sync += [left.eq(held), right.eq(factor)]
            clocks = 2 * reach
            result, ready = self.rounded, self._later(self.entry, clocks)
        with m.If(ready):
            clipped = Signal(signed(WORD))
            m.d.comb += clipped.eq(self.clip(result, least, most))
            with m.If((result < least) | (result > most)):
                m.d.sync += self.guards[0].eq(counted(self.guards[0]))
            floored = self._later(diagonal, clocks) & (clipped < learner.floor)
            write("covariance", Mux(floored, learner.floor, clipped), self._later(at, clocks))

    def _named(self, memory: str) -> Any:
        """What a memory shows, as a signal that can be delayed."""
        if memory not in self.shown:
            data = self.reads[memory].data
            self.shown[memory] = Signal(data.shape(), name=f"{memory}_shown")
            self.shows.append(self.shown[memory].eq(data))
        return self.shown[memory]

    # -- control ----------------------------------------------------------------------------------

    def _control(self) -> None:
        """Inputs, passes one after the other, and what comes between them."""
        m, layout = self.m, self.layout
        n = layout.sizes[0]
        came, wait = Signal(range(n + 1)), Signal(range(2 * layout.reach + 2))
        learns, turn = Signal(), Signal()
        values = self.writes["values"]
        with m.State("INPUT"):
            m.d.comb += self.in_ready.eq(1)
            with m.If(self.in_valid):
                m.d.comb += [values.en.eq(1), values.addr.eq(came), values.data.eq(self.in_value)]
                m.d.sync += came.eq(came + 1)
                with m.If(came == n - 1):
                    m.d.sync += [
                        came.eq(0), self.counter.eq(0), learns.eq(self.learn),
                        self.aim.eq(self.target),
                    ]  # fmt: skip
                    m.next = "START"
        with m.State("START"):
            m.d.comb += self.start.eq(1)
            m.d.sync += turn.eq(0)
            m.next = "ISSUE"
        twice = self._of(lambda p: int(layout.twice(p)), 1)
        with m.State("ISSUE"):
            m.d.comb += self.issue.eq(~turn)
            m.d.sync += [turn.eq(~turn & twice), wait.eq(self._of(layout.flight, 8) - 2)]
            with m.If(self.issue & self.over):
                m.next = "DRAIN"
        with m.State("DRAIN"):
            m.d.sync += wait.eq(wait - 1)
            with m.If(wait == 0):
                with m.If(self.counter == len(layout.passes) - 1):
                    m.next = "DONE"
                with m.Elif(self.counter == layout.forwards - 1):
                    with m.If(learns):
                        m.next = "ERRORS"
                    with m.Else():
                        m.next = "DONE"
                with m.Elif(self._is("spread")):
                    if layout.least_squares:
                        m.next = "JUDGE"
                with m.Else():
                    self._follow()
        with m.State("DONE"):
            m.d.comb += self.done.eq(1)
            m.next = "INPUT"

    def _follow(self) -> None:
        """Go on to the next pass."""
        self.m.d.sync += self.counter.eq(self.counter + 1)
        self.m.next = "START"

    # -- between passes ---------------------------------------------------------------------------

    def _seen(self, value: Any) -> None:
        """What the errors need to know of all outputs, noted as they come."""
        m, loss, which = self.m, self.layout.learner.loss, self.which
        m.d.sync += which.eq(which + 1)
        if loss == "softmax":
            with m.If((which == 0) | (value > self.top)):
                m.d.sync += self.top.eq(value)
        elif loss == "hinge":
            with m.If(which == 0):
                m.d.sync += self.rivals.eq(0)
            with m.If(which == self.aim):
                m.d.sync += self.own.eq(value)
            with m.Elif((which == 0) | ~self.rivals | (value > self.top)):
                m.d.sync += [self.top.eq(value), self.rival.eq(which), self.rivals.eq(1)]

    def _output_errors(self) -> None:
        """Errors of the last layer, one output after the other."""
        m, layout = self.m, self.layout
        loss = layout.learner.loss
        value, k = self.reads["values"], self.k
        if loss in ("mean", "gaussian"):
            away = self.away
            with m.State("ERRORS"):
                m.d.comb += value.addr.eq(layout.z)
                m.next = "MEAN"
            held = Signal(signed(layout.fraction + 5))
            with m.State("MEAN"):
                self._error(0, self.clip(away, self.low, self.high))
                limit = NOISE_LIMIT << layout.fraction
                m.d.sync += held.eq(self.clip(away, -limit, limit))
                if loss == "mean":
                    self._follow()
                else:
                    m.d.comb += value.addr.eq(layout.z + 1)
                    m.next = "NOISE"
            if loss == "gaussian":
                self._noise(held, value.data)
        elif loss == "squared":
            with m.State("ERRORS"):
                m.d.comb += value.addr.eq(layout.z + k)
                m.next = "SQUARED"
            with m.State("SQUARED"):
                aim = Mux(k == self.aim, layout.learner.score, 0)
                self._error(k, self.clip(value.data - aim, self.low, self.high))
                self._each("ERRORS", self._follow)
        elif loss == "hinge":
            unit = 1 << layout.fraction
            near = self.rivals & (self.top + unit > self.own)
            with m.State("ERRORS"):
                sign = Mux(k == self.rival, unit, Mux(k == self.aim, -unit, 0))
                self._error(k, Mux(near, sign, 0))
                self._each("ERRORS", self._follow)
        else:
            self._softmax()

    def _error(self, at: Any, value: Any) -> None:
        port = self.writes["errors"]
        self.m.d.comb += [
            port.en.eq(1), port.addr.eq(self.layout.error_of + at), port.data.eq(value),
        ]  # fmt: skip

    def _each(self, state: str, then: Callable[[], None]) -> None:
        """The next output, and `then` after the last."""
        m = self.m
        with m.If(self.last):
            m.d.sync += self.k.eq(0)
            then()
        with m.Else():
            m.d.sync += self.k.eq(self.k + 1)
            m.next = state

    def _multiply(
        self,
        state: str,
        left: Any,
        right: Any,
        then: Callable[[], None],
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """A product of the state machine's own; `then` sees it, `first` is done as it begins."""
        m = self.m
        with m.State(state):
            first()
            m.d.comb += [
                self.side.eq(1), self.side_left.eq(left), self.side_right.eq(right),
            ]  # fmt: skip
            m.d.sync += self.waited.eq(self.layout.depth)
            m.next = f"{state}_WAIT"
        with m.State(f"{state}_WAIT"):
            m.d.sync += self.waited.eq(self.waited - 1)
            with m.If(self.waited == 0):
                then()

    def _noise(self, held: Any, data: Any) -> None:
        """Error of the log-variance: (1 - error^2 exp(-s)) / 2, within limits."""
        m, layout = self.m, self.layout
        f = layout.fraction
        limit, unit = NOISE_LIMIT << f, 1 << f
        with m.State("NOISE"):
            if layout.noise:
                m.d.sync += self.power.eq(self.clip(data, -limit, limit))
                m.next = "SQUARE"
            else:
                self._error(1, 0)
                self._follow()
        if not layout.noise:
            return
        square = Signal(f + 7)

        def squared() -> None:
            m.d.sync += square.eq(self.product >> f)
            m.next = "EXP"

        def compared() -> None:
            ratio = self.product >> TABLE
            rest = unit - Mux(ratio < limit, ratio, limit)
            self._error(1, self.clip(rest >> 1, self.low, self.high))
            self._follow()

        self._multiply("SQUARE", held, held, squared)
        self._exponential("RATIO")
        self._multiply("RATIO", self.exp, square, compared)

    def _softmax(self) -> None:
        """Shares of the classes: an exponential each, their sum, a division each."""
        m, layout, k = self.m, self.layout, self.k
        value, shares, share = self.reads["values"], self.reads["shares"], self.writes["shares"]
        total = Signal(TABLE + 1 + layout.outputs.bit_length())
        with m.State("ERRORS"):
            m.d.comb += value.addr.eq(layout.z + k)
            with m.If(k == 0):
                m.d.sync += total.eq(0)
            m.next = "BELOW"
        with m.State("BELOW"):
            m.d.sync += self.power.eq(self.top - value.data)
            m.next = "EXP"
        self._exponential("SHARE")

        def shared() -> None:
            m.next = "PARTS"

        with m.State("SHARE"):
            m.d.comb += [share.en.eq(1), share.addr.eq(k), share.data.eq(self.exp)]
            m.d.sync += total.eq(total + self.exp)
            self._each("ERRORS", shared)
        with m.State("PARTS"):
            m.d.comb += shares.addr.eq(k)
            m.next = "PART"
        with m.State("PART"):
            self._divide((shares.data << layout.fraction) + (total >> 1), total)
        self._dividing("PARTED")
        with m.State("PARTED"):
            self._error(k, self.part - Mux(k == self.aim, 1 << layout.fraction, 0))
            self._each("PARTS", self._follow)

    def _exponential(self, then: str) -> None:
        """exp(-power) in 1 / 2^14: a table of 2^-x with interpolation, and a shift."""
        m, layout = self.m, self.layout
        places = layout.fraction + TABLE
        low = places - STEPS
        table = self.reads["powers"]
        whole, rest = Signal(signed(layout.width + 2)), Signal(low)
        upper, between = Signal(TABLE + 1), Signal(TABLE + 1)

        def looked_up() -> None:
            m.d.comb += table.addr.eq(self.product[low:places])
            m.d.sync += [whole.eq(self.product >> places), rest.eq(self.product[:low])]
            m.next = "BETWEEN"

        def kept() -> None:
            m.d.sync += upper.eq(table.data[: TABLE + 1])

        def interpolated() -> None:
            m.d.sync += between.eq(upper - (self.product >> low))
            m.next = "SHIFT"

        self._multiply("EXP", self.power, layout.learner.log2_e, looked_up)
        self._multiply("BETWEEN", rest, table.data[TABLE + 1 :], interpolated, kept)
        with m.State("SHIFT"):
            down = Mux(whole > TABLE, 0, between >> whole[:4])
            m.d.sync += self.exp.eq(Mux(whole < 0, between << (-whole)[:4], down))
            m.next = then

    def _divide(self, over: Any, by: Any) -> None:
        """Begin a division of whole numbers without sign."""
        m = self.m
        m.d.sync += [
            self.part.eq(over), self.divisor.eq(by), self.remainder.eq(0),
            self.bits.eq(self.layout.quotient - 1),
        ]  # fmt: skip
        m.next = "DIVIDE"

    def _dividing(self, then: str) -> None:
        """A bit of the quotient a clock, the highest first."""
        m = self.m
        with m.State("DIVIDE"):
            more = Signal(len(self.remainder) + 1)
            fits = Signal()
            m.d.comb += [
                more.eq(Cat(self.part[-1], self.remainder)),
                fits.eq(more >= self.divisor),
            ]
            m.d.sync += [
                self.remainder.eq(Mux(fits, more - self.divisor, more)),
                self.part.eq(Cat(fits, self.part[:-1])),
                self.bits.eq(self.bits - 1),
            ]
            with m.If(self.bits == 0):
                m.next = then

    def _gains(self) -> None:
        """Gains from the products, one division each; or the covariance begins anew."""
        m, layout, learner = self.m, self.layout, self.layout.learner
        products, gains = self.reads["products"], self.writes["gains"]
        covariance = self.writes["covariance"]
        n = layout.size
        at, which, negative = Signal(range(n * n)), Signal(range(n + 1)), Signal()
        corner = Signal(range(n * n + n + 1))
        with m.State("JUDGE"):
            m.d.sync += [at.eq(0), corner.eq(0), which.eq(0)]
            with m.If(self.spread < 0):
                m.d.sync += self.guards[1].eq(counted(self.guards[1]))
                m.next = "ANEW"
            with m.Else():
                m.next = "PRODUCT"
        with m.State("ANEW"):
            on = at == corner
            m.d.comb += [
                covariance.en.eq(1), covariance.addr.eq(at),
                covariance.data.eq(Mux(on, learner.start, 0)),
            ]  # fmt: skip
            m.d.sync += [at.eq(at + 1), corner.eq(Mux(on, corner + n + 1, corner))]
            with m.If(at == n * n - 1):
                m.next = "DONE"
        with m.State("PRODUCT"):
            m.d.comb += products.addr.eq(which)
            m.next = "GAIN"
        with m.State("GAIN"):
            size = Mux(products.data < 0, -products.data, products.data)
            m.d.sync += negative.eq(products.data < 0)
            self._divide(size << GAIN, (self.spread + learner.forgetting).as_unsigned())
        self._dividing("GAINED")
        with m.State("GAINED"):
            most = (1 << (WORD - 1)) - 1
            up = Mux(self.part > most, most, self.part)
            down = Mux(self.part > most + 1, most + 1, self.part)
            m.d.comb += [
                gains.en.eq(1), gains.addr.eq(which), gains.data.eq(Mux(negative, -down, up)),
            ]  # fmt: skip
            m.d.sync += which.eq(which + 1)
            with m.If(which == n - 1):
                self._follow()
            with m.Else():
                m.next = "PRODUCT"

    # -- the state, from outside ------------------------------------------------------------------

    def _host(self) -> None:
        """Words of the state, while no example is in the circuit."""
        m, layout = self.m, self.layout
        area, at = Signal(2), Signal()
        m.d.sync += [area.eq(self.state_area), at.eq(self.state_address[0])]
        free = self.in_ready
        shown = [self.reads["weights"].data, Const(0, 1), self.random, Const(0, 1)]
        held = ["weights"]
        if layout.least_squares:
            shown[1] = self.reads["covariance"].data
            shown[3] = Mux(at, self.guards[1], self.guards[0])
            held.append("covariance")
        m.d.comb += self.state_value.eq(Array(sized(one) for one in shown)[area])
        with m.If(free):
            for name in held:
                m.d.comb += self.reads[name].addr.eq(self.state_address)
                with m.If(self.state_write & (self.state_area == AREAS.index(name))):
                    port = self.writes[name]
                    m.d.comb += [
                        port.en.eq(1), port.addr.eq(self.state_address),
                        port.data.eq(self.state_data),
                    ]  # fmt: skip
            with m.If(self.state_write & (self.state_area == AREAS.index("random"))):
                m.d.sync += self.random.eq(self.state_data)
            if layout.least_squares:
                with m.If(self.state_write & (self.state_area == AREAS.index("guards"))):
                    with m.If(self.state_address[0]):
                        m.d.sync += self.guards[1].eq(self.state_data)
                    with m.Else():
                        m.d.sync += self.guards[0].eq(self.state_data)


def sized(value: Any) -> Any:
    """A value as a word of the state, with its sign carried on."""
    sign = value[-1] if value.shape().signed else Const(0, 1)
    return Cat(value, *([sign] * (WORD - len(value))))


def times(value: Any, constant: int) -> Any:
    """A product by a constant as a sum of shifted terms, of fewest non-zero signed digits."""
    terms, shift, rest = [], 0, constant
    while rest:
        if rest & 1:
            digit = 2 - (rest & 3)
            terms.append(value << shift if digit > 0 else -(value << shift))
            rest -= digit
        rest >>= 1
        shift += 1
    while len(terms) > 1:
        pairs = [terms[n] + terms[n + 1] for n in range(0, len(terms) - 1, 2)]
        terms = [*pairs, *([terms[-1]] if len(terms) % 2 else [])]
    return terms[0]


def counted(value: Any) -> Any:
    """One more, up to the largest count."""
    return Mux(value == _COUNT_HIGH, value, value + 1)
