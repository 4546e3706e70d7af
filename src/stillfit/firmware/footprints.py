"""What circuits need, in a second and without synthesis: traced networks, and whole designs of
blocks.

A network's look-up tables are alkaid's cost of its operations; multiplications by something that
is not constant go to multiplier blocks, by Yosys's rules of what is worth one; registers are those
of the pipeline that is written as Verilog. `docs/firmware/footprint.md` has the measured ratio of
these estimates to synthesis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from stillfit.firmware.devices import Chip
from stillfit.firmware.synthesis import Count
from stillfit.firmware.tools import guarded, package
from stillfit.firmware.tracing import Traced

How: TypeAlias = Literal["traced", "estimated", "synthesised"]
RESOURCES = ("lut", "ff", "dsp", "bram")
# Multiplier blocks: signed operands of a block, by family, and Yosys's rules of what is worth one.
OPERANDS = {"xcup": (27, 18), "xcu": (27, 18), "xc7": (25, 18)}
LEAST_PRODUCT = 9  # bits
LEAST_OPERAND = 2  # bits
LEAST_SHIFT = 3  # registers in a row that become a shift register in look-up tables
LONGEST_SHIFT = 16  # of one look-up table
_MULTIPLY = 7  # alkaid's code of a product of two variables
_COPY = -1  # and of an input that is passed on
_REMEDY = "simplify the network, or report it with the network's formats"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a circuit: what one copy needs, and how it is known.

    `bram`: blocks of 36 kbit, halves count. `cycles`: from its input to its output. `how`:
    "traced" (operations of its logic, summed), "estimated" (by a formula, which `note` names) or
    "synthesised".
    """

    lut: float
    ff: float
    dsp: float = 0.0
    bram: float = 0.0
    cycles: int
    how: How
    note: str = ""
    copies: int = 1

    def figures(self) -> dict[str, float | str]:
        """As a footprint's parts are stored: of all copies together."""
        total = {name: round(self.copies * getattr(self, name), 1) for name in RESOURCES}
        told: dict[str, float | str] = {**total, "cycles": self.cycles, "copies": self.copies}
        return {**told, "how": self.how, "note": self.note}


def estimate(traced: Traced, chip: Chip, *, copies: int = 1, note: str = "") -> Block:
    """A traced network, pipelined for the device's clock; 0.02 to 0.1 s."""
    codegen = package("alkaid.codegen")
    with guarded("alkaid", f"pipelining {traced.name}", _REMEDY):
        made = codegen.RTLModel(traced.logic, ".", "network", latency_cutoff=chip.cutoff)
        stages = int(made.latency)
        ff, shifts = _registers(made.fsm)
    dsp = sum(_blocks(traced.logic, op, chip) for op in traced.logic.ops)
    lut = sum(op.cost for op in traced.logic.ops if not _blocks(traced.logic, op, chip))
    return Block(
        lut=lut + shifts,
        ff=ff,
        dsp=dsp,
        cycles=stages + 1,
        how="traced",
        note=note or f"{len(traced.logic.ops)} operations, {stages} stages",
        copies=copies,
    )


def counted_block(count: Count, cycles: int, *, copies: int = 1) -> Block:
    """A synthesised network."""
    return Block(
        lut=count.lut,
        ff=count.ff,
        dsp=count.dsp,
        bram=count.bram,
        cycles=cycles,
        how="synthesised",
        note="by " + ", ".join(f"{name} {number}" for name, number in count.tools.items()),
        copies=copies,
    )


def totals(blocks: Mapping[str, Block]) -> dict[str, float]:
    """Resources of all blocks and copies together."""
    return {
        name: round(sum(b.copies * getattr(b, name) for b in blocks.values()), 1)
        for name in RESOURCES
    }


def _blocks(logic: Any, op: Any, chip: Chip) -> int:
    """Multiplier blocks of an operation; 0 where it is not worth one or needs none."""
    if op.opcode != _MULTIPLY or not chip.dsp:
        return 0
    # Operands of a block are signed: an unsigned one needs a bit more.
    kifs = [logic.ops[at].qint.kif for at in op.addr]
    plain = [int(k) + i + f for k, i, f in kifs]
    if min(plain) < LEAST_OPERAND or sum(plain) < LEAST_PRODUCT:
        return 0
    widths = sorted(width + (not kif[0]) for width, kif in zip(plain, kifs, strict=True))
    large, small = OPERANDS[chip.family]
    blocks = math.ceil(widths[1] / large) * math.ceil(widths[0] / small)
    return int(blocks)


def _registers(fsm: Any) -> tuple[float, float]:
    """Flip-flops of a pipeline, and look-up tables of the shift registers in it.

    A value that is only passed on from stage to stage waits in a shift register.
    """
    stages = [fsm.logic[name] for name in sorted(fsm.logic, key=lambda n: int(n[5:]))]
    waits = [1] * stages[0].shape[0]  # how long each value that a stage reads has waited
    widths = [_width(qint) for qint in stages[0].inp_qint]
    ff, shifts = 0.0, 0.0
    for stage in stages:
        uses = [0] * stage.shape[0]
        for op in stage.ops:
            for at in op.addr:
                if stage.ops[at].opcode == _COPY:
                    uses[stage.ops[at].data[0]] += 1
        passed: dict[int, int] = {}
        for out, at in enumerate(stage.out_idxs):
            op = stage.ops[at] if at >= 0 else None
            if op is not None and op.opcode == _COPY:
                passed[out] = op.data[0]
        often = list(passed.values())
        on = {source for source in often if not uses[source] and often.count(source) == 1}
        for source, (wait, width) in enumerate(zip(waits, widths, strict=True)):
            if source not in on:
                kept, moved = _held(wait)
                ff, shifts = ff + width * kept, shifts + width * moved
        waits = [
            waits[passed[out]] + 1 if passed.get(out) in on else 1 for out in range(stage.shape[1])
        ]
        widths = [_width(qint) for qint in stage.out_qint]
    for wait, width in zip(waits, widths, strict=True):
        kept, moved = _held(wait)
        ff, shifts = ff + width * kept, shifts + width * moved
    return ff, shifts


def _held(wait: int) -> tuple[int, int]:
    """Flip-flops and look-up tables of one bit that waits so many clocks."""
    return (wait, 0) if wait < LEAST_SHIFT else (0, math.ceil(wait / LONGEST_SHIFT))


def _width(qint: Any) -> int:
    k, i, f = qint.kif
    return max(int(k) + int(i) + int(f), 0)
