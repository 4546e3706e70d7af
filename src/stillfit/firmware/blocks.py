"""What the blocks between the networks need, by formula: memories, adders, histogram, arg-max,
divider.

One adder or comparator bit is one look-up table, a bit of a multiplexer of two inputs half of one
(alkaid counts alike). Delays are in its units: an adder of n bits takes 1.1 + 0.025 n, a
multiplexer 0.5. Control is left out, but where it is the block.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stillfit.firmware.devices import Chip
from stillfit.firmware.footprints import Block

# Depth and width of a block memory of 18 kbit.
ASPECTS = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))


def memories(depth: int, width: int) -> float:
    """Block memories of 36 kbit for words of a table, in halves."""
    return min(math.ceil(depth / d) * math.ceil(width / w) for d, w in ASPECTS) / 2


def adder(bits: float) -> float:
    """Delay of an adder or comparator."""
    return 1.1 + 0.025 * bits


def clocks(delay: float, chip: Chip) -> int:
    """Clock cycles for a delay, in stages that end in registers."""
    return max(math.ceil(delay / chip.cutoff), 1)


def digits(constant: int) -> int:
    """Non-zero digits of a constant in signed-digit form: one more than the adders of a product."""
    n, count = abs(constant), 0
    while n:
        if n & 1:
            count += 1
            n = n - 1 if n & 3 == 1 else n + 1
        n >>= 1
    return count


def summing(terms: int, bits: int) -> tuple[float, float, int, int]:
    """A tree that adds `terms` numbers: look-up tables, flip-flops, levels, bits of the sum."""
    lut, ff, levels = 0.0, 0.0, 0
    while terms > 1:
        pairs = terms // 2
        bits, levels = bits + 1, levels + 1
        lut += pairs * bits
        terms -= pairs
        ff += terms * bits
    return lut, ff, levels, bits


def histogram_in_registers(*, bins: int, links: int, weight: int, full: int, chip: Chip) -> Block:
    """A sum in registers for each bin; every link may add to any bin in each clock.

    Per bin: a match of each link's bin number, a tree over the links, and a sum of `full` bits
    that saturates, with a copy that the filter reads while the next event fills.
    """
    lut, ff, levels, wide = summing(links, weight)
    per_bin = links + lut + full + full / 2
    decode = links * 2 * 16  # 8 bits of a bin number as two of 16 lines
    delay = levels * adder(wide) + adder(full) + 0.5
    return Block(
        lut=bins * per_bin + decode,
        ff=bins * (ff + 2 * full) + decode,
        cycles=1 + clocks(delay, chip),
        how="estimated",
        note=f"{bins} sums of {full} bits in registers, trees over {links} links",
    )


def histogram_in_memory(*, bins: int, links: int, weight: int, full: int, chip: Chip) -> Block:
    """Two memories of a link, one filled while the other is read bin after bin, and their sum."""
    lut, ff, levels, wide = summing(links, full)
    per_link = max(full, weight) + full / 2 + 2 * full + 16  # sum, saturation, bypass, addresses
    return Block(
        lut=links * per_link + lut + wide / 2,
        ff=links * (2 * full + 22) + ff,
        bram=links * 2 * memories(bins, full),
        cycles=2 + (clocks(levels * adder(wide), chip) if levels else 0),
        how="estimated",
        note=f"two memories of {bins} x {full} bits for each of {links} links",
    )


def taps_filter(*, taps: tuple[int, int], full: int, score: int, loaded: bool, chip: Chip) -> Block:
    """side (left + right) + middle centre, not below zero, for one bin.

    `loaded`: taps are inputs, in multiplier blocks; else sums of shifted numbers.
    """
    lut = float(full + 1 + score)
    delay = adder(full + 1) + adder(score)
    dsp = 0
    if loaded:
        dsp, delay = 2, delay + 2.5
    else:
        counts = [digits(tap) for tap in taps]
        lut += sum(max(n - 1, 0) for n in counts) * (score - 2)
        delay += math.ceil(math.log2(max(*counts, 1))) * adder(score)
    if loaded or min(taps) < 0:
        lut += score / 2
    return Block(lut=lut, ff=score, dsp=dsp, cycles=clocks(delay, chip), how="estimated")


def arg_max_tree(*, bins: int, score: int, chip: Chip) -> Block:
    """Pairs compared level by level; the better score and the path to it are passed on."""
    lut, ff, path, left = 0.0, 0.0, 0, bins
    delay = adder(score) + 0.5
    per_stage = max(int(chip.cutoff / delay), 1)
    while left > 1:
        left = math.ceil(left / 2)
        path += 1
        lut += left * (score + (score + path) / 2)
        if path % per_stage == 0 or left == 1:
            ff += left * (score + path)
    stages = math.ceil(path / per_stage) * clocks(min(delay, delay * per_stage), chip)
    return Block(lut=lut, ff=ff, cycles=stages, how="estimated", note=f"{path} levels")


def arg_max_in_turn(*, bins: int, score: int, index: int) -> Block:
    """One bin a clock, compared with the best so far; ties by the distance to the middle."""
    lut = score + 2 * index + (score + index) / 2
    return Block(lut=lut, ff=score + 2 * index, cycles=bins + 1, how="estimated")


def mean_of_five(*, full: int, quotient: int, bins: int, chip: Chip) -> Block:
    """Five sums around a bin, their total and lean, and a divider of `quotient` bits.

    `bins`: of registers to fetch from (0: they come by in turn and are caught).
    """
    total = full + 3
    fetch = 8 * full * math.ceil(bins / 8 / 3) + 5 * full * 3 if bins else 0.0
    divide = quotient * (total + 2)
    steps = clocks(quotient * adder(total + 2), chip)
    return Block(
        lut=fetch + 8 * total + divide,
        ff=5 * full + 2 * total + steps * (2 * total + quotient),
        cycles=(2 if bins else 1) + clocks(3 * adder(total), chip) + steps,
        how="estimated",
        note=f"divider of {quotient} bits, {steps} stages",
    )


def times(block: Block, copies: int) -> Block:
    """The same block so many times."""
    return replace(block, copies=block.copies * copies)


def joined(note: str, *blocks: Block) -> Block:
    """Blocks one after the other as one."""
    sums = {
        name: sum(b.copies * getattr(b, name) for b in blocks)
        for name in ("lut", "ff", "dsp", "bram")
    }
    return Block(**sums, cycles=sum(b.cycles for b in blocks), how=blocks[0].how, note=note)
