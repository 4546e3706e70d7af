"""What goes beside the chain's Verilog: test bench, recorded events, images, report, page."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from stillfit.core.values import Footprint
from stillfit.firmware.devices import Chip
from stillfit.firmware.packing import WORD, Words, packed, words, write_memory
from stillfit.l1t.chain_check import ChainVectors, Stream, stream
from stillfit.l1t.chain_rtl import SPACING, TOP, ChainRtl
from stillfit.l1t.fixed_chain import VertexChain

RECORDED = 100  # events in the test bench


def write_chain_bench(
    rtl: ChainRtl, chain: VertexChain, vectors: ChainVectors, size: Footprint, chip: Chip
) -> tuple[dict[str, Any], str]:
    """Test bench, events, images and report into the chain's folder; the report and a page of it.

    `size`: of the chain on `chip`, with links and histogram of `rtl`.
    """
    few = vectors.first(RECORDED)
    given = stream(few, rtl)
    fed, rounds = _fed(given, rtl), _rounds(given, few, rtl)
    write_memory(rtl.folder / f"{TOP}_inputs.hex", fed, fed.shape[1] * WORD)
    answers = np.column_stack([few.whole.z0, few.whole.bins, few.whole.score])
    widths = [rtl.outputs[name] for name in ("z0", "best", "score")]
    write_memory(rtl.folder / f"{TOP}_vertices.hex", packed(answers, widths), sum(widths))
    links = len(rtl.sectors)
    write_memory(rtl.folder / f"{TOP}_flags.hex", packed(rounds, [links, links, 1]), 2 * links + 1)
    images = rtl.images(chain)
    files = image_files(rtl)
    for port, image in images.items():
        write_memory(rtl.folder / files[port], image.reshape(-1, 1), WORD)
    sizes = {port: len(image) for port, image in images.items()}
    sources = "".join(f"{path.relative_to(rtl.folder)}\n" for path in rtl.files)
    (rtl.folder / f"{TOP}.f").write_text(sources)
    bench = _bench(rtl, len(fed), few.events, len(rounds), sizes)
    (rtl.folder / f"{TOP}_tb.v").write_text(bench)
    report = _report(rtl, few, size, chip, sizes)
    (rtl.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report, _page(rtl, size, chip, few, sizes)


def image_files(rtl: ChainRtl) -> dict[str, str]:
    """Where the images of a reloadable chain lie, by the port that loads them."""
    return {
        "load_weight": f"{rtl.weight.name}/{rtl.weight.name}_weights.hex",
        "load_associate": f"{rtl.associate.name}/{rtl.associate.name}_weights.hex",
        "load_numbers": f"{TOP}_numbers.hex",
    }


def _fed(given: Stream, rtl: ChainRtl) -> Words:
    """Rows of words, with `last` and the idle clocks after the row above them."""
    wide = given.rows["words"]
    last = given.rows["last"][:, 0]
    at = np.flatnonzero(wide.any(axis=1) | (last == 1))
    gap = np.diff(np.append(at, at[-1] + 1 if len(at) else 0)) - 1
    side = (last[at].astype(np.int64) | gap << 1).astype(np.uint32)
    return np.column_stack([wide[at], side])


def _rounds(given: Stream, few: ChainVectors, rtl: ChainRtl) -> np.ndarray[Any, Any]:
    """Tracks, flags and whether it is the event's end, of each clock that brought anything."""
    ends = np.flatnonzero(given.rows["last"][:, 0])
    clocks = np.unique(np.concatenate([given.clock, ends]))
    found = np.zeros((len(clocks), 3), np.int64)
    row = np.searchsorted(clocks, given.clock)
    np.add.at(found[:, 0], row, 1 << given.link)
    np.add.at(found[:, 1], row, few.whole.flags.astype(np.int64) << given.link)
    found[np.searchsorted(clocks, ends), 2] = 1
    return found


def _bench(rtl: ChainRtl, rows: int, events: int, rounds: int, sizes: dict[str, int]) -> str:
    links = len(rtl.sectors)
    into, own = 96 * links + WORD, words(96 * links) * WORD
    z0, best, score = (rtl.outputs[name] for name in ("z0", "best", "score"))
    whole = z0 + best + score
    declared = load = ports = ""
    if sizes:
        declared = "    reg [31:0] load_word = 0;\n"
        ports = ", .load_word(load_word)"
        for port, n in sizes.items():
            declared += f"    reg {port} = 0;\n    reg [31:0] {port}_image [0:{n - 1}];\n"
            ports += f", .{port}({port})"
            load += (
                f'        $readmemh("{image_files(rtl)[port]}", {port}_image);\n'
                f"        for (at = 0; at < {n}; at = at + 1) begin\n"
                f"            {port} = 1; load_word = {port}_image[at];\n"
                "            @(negedge clk);\n"
                "        end\n"
                f"        {port} = 0;\n"
                "        @(negedge clk);\n"
            )
    return f"""// {events} recorded events through the whole chain; says PASS, or FAIL and where.
// Run it in this folder: it reads the .hex files here and below.
`timescale 1 ns / 1 ps

module {TOP}_tb;
    reg clk = 0, rst = 1, last = 0;
    reg [{96 * links - 1}:0] words = 0;
    wire vertex, flagged, flags_last, overrun;
    wire [{z0 - 1}:0] z0;
    wire [{best - 1}:0] best;
    wire [{score - 1}:0] score;
    wire [{links - 1}:0] tracks, flags;
    reg [{into - 1}:0] inputs [0:{rows - 1}];
    reg [{whole - 1}:0] vertices [0:{events - 1}];
    reg [{2 * links}:0] rounds [0:{rounds - 1}];
{declared}    integer at, idle, found, seen, wrong;

    {TOP} dut (.clk(clk), .rst(rst), .words(words), .last(last), .vertex(vertex), .z0(z0),
        .best(best), .score(score), .flagged(flagged), .flags_last(flags_last), .tracks(tracks),
        .flags(flags), .overrun(overrun){ports});

    always #1 clk = !clk;

    always @(negedge clk) begin
        if (vertex) begin
            if (found >= {events} || {{score, best, z0}} !== vertices[found]) begin
                wrong = wrong + 1;
                if (wrong <= 10)
                    $display("vertex %0d: got score %h bin %h z0 %h, bits %h", found, score, best,
                        z0, {{score, best, z0}} ^ vertices[found]);
            end
            found = found + 1;
        end
        if (flagged) begin
            if (seen >= {rounds} || {{flags_last, flags, tracks}} !== rounds[seen]) begin
                wrong = wrong + 1;
                if (wrong <= 10)
                    $display("flags %0d: got last %b flags %h tracks %h, bits %h", seen, flags_last,
                        flags, tracks, {{flags_last, flags, tracks}} ^ rounds[seen]);
            end
            seen = seen + 1;
        end
        if (overrun) begin
            $display("FAIL: events came too close");
            $finish;
        end
    end

    initial begin
        found = 0;
        seen = 0;
        wrong = 0;
        $readmemh("{TOP}_inputs.hex", inputs);
        $readmemh("{TOP}_vertices.hex", vertices);
        $readmemh("{TOP}_flags.hex", rounds);
        @(negedge clk);
        @(negedge clk);
        rst = 0;
{load}        for (at = 0; at < {rows}; at = at + 1) begin
            words = inputs[at]; last = inputs[at][{own}];
            @(negedge clk);
            words = 0; last = 0;
            for (idle = inputs[at] >> {own + 1}; idle > 0; idle = idle - 1) @(negedge clk);
        end
        for (at = 0; at <= {rtl.clocks + SPACING[rtl.form] + 200}; at = at + 1) @(negedge clk);
        if (wrong == 0 && found == {events} && seen == {rounds})
            $display("PASS: %0d vertices, %0d rounds of flags", found, seen);
        else $display("FAIL: %0d of {events} vertices, %0d of {rounds} rounds of flags, %0d wrong",
            found, seen, wrong);
        $finish;
    end
endmodule
"""


def _report(
    rtl: ChainRtl, few: ChainVectors, size: Footprint, chip: Chip, sizes: dict[str, int]
) -> dict[str, Any]:
    figures = dataclasses.asdict(size)
    return {
        "design": rtl.design,
        "update_class": "weights" if rtl.design == "reloadable" else "bitstream",
        "histogram": rtl.form,
        "device": chip.name,
        "clock_mhz": chip.clock_mhz,
        "sectors": list(rtl.sectors),
        "rtl": {
            "clocks_to_vertex": rtl.clocks,
            "events_every": SPACING[rtl.form],
            "inputs": dict(rtl.inputs),
            "outputs": dict(rtl.outputs),
        },
        "load_words": sizes,
        "recorded_events": few.events,
        "vectors_sha256": few.digest,
        "estimate": {
            name: figures[name]
            for name in (
                "method", "lut", "ff", "dsp", "bram", "latency_cycles", "latency_ns",
                "initiation_interval", "tools", "parts",
            )
        },
    }  # fmt: skip


_CONSTANT = """All numbers are part of the circuit: weights, filter taps, position bias, threshold
of the flags, z0 tables. Every version is another circuit (update class `bitstream`), a
recalibrated one too."""
_LOADED = """Nothing of a version but its formats and masks is in the circuit, so another version
with the same ones is loaded (update class `weights`). Stop the stream, then send each image by
`load_word`, a 32-bit word a clock, the first first, with its port high and at least a clock of
rest after it:

| port | image | words |
|---|---|---|
{rows}
`{top}_numbers.hex` holds filter taps (side, middle), position bias, threshold of the logit, the z0
table of each link (20 cells of eta) and that of the barrel (80), each in two's complement. `rst`
forgets none of it. In the circuit stay: widths and masks of the networks, the bits of the
histogram, and the tables of the track word (pT, |eta|, resolution), which are the word's own."""


def _page(
    rtl: ChainRtl, size: Footprint, chip: Chip, few: ChainVectors, sizes: dict[str, int]
) -> str:
    loaded = "".join(
        f"| `{port}` | `{image_files(rtl)[port]}` | {n} |\n" for port, n in sizes.items()
    )
    numbers = _LOADED.format(rows=loaded, top=TOP) if sizes else _CONSTANT
    parts = "".join(
        f"| {name} | {part['how']} | {part['copies']} | {float(part['lut']):,.0f} | "
        f"{float(part['ff']):,.0f} | {float(part['dsp']):,.0f} | {float(part['bram']):g} |\n"
        for name, part in size.parts.items()
    )
    links, every = len(rtl.sectors), SPACING[rtl.form]
    after = f"{rtl.clocks} clocks ({rtl.clocks * chip.period:.0f} ns) after `last`"
    bits = {name: str(width) for name, width in (*rtl.inputs.items(), *rtl.outputs.items())}
    ports = [
        ("`clk`, `rst`", "1", "`rst` is synchronous"),
        ("`words`", bits["words"], "a track word (96 bits) a link and clock, link 0 lowest; it "
         "counts where its highest bit is 1"),
        ("`last`", "1", "with the last words of an event, or alone; at least "
         f"{every} clocks after the one before"),
        ("`vertex`", "1", f"one clock an event, {after}"),
        ("`z0`", bits["z0"], "then: signed, in steps of 0.0025 cm; 0 with a score of 0"),
        ("`best`, `score`", f"{bits['best']}, {bits['score']}", "then: the winning bin, its score"),
        ("`flagged`", "1", "a clock for each of the event's clocks that brought a word, in their "
         "order, and for its last"),
        ("`tracks`, `flags`", f"{links} each", "then: which links had a track, and which of these "
         "belong to the vertex"),
        ("`flags_last`", "1", "then: the event's end"),
        ("`overrun`", "1", "events came too close; stays until `rst`"),
    ]  # fmt: skip
    table = "".join(f"| {name} | {width} | {what} |\n" for name, width, what in ports)
    return f"""
# The whole vertex chain

Top: module `{TOP}` in `{TOP}.v` (`{TOP}.il`: the same for Yosys); `{TOP}.f` lists all its files.
{links} links, of the phi sectors {", ".join(map(str, rtl.sectors))}; histogram in {rtl.form}.

| port | bits | what |
|---|---|---|
{table}
## Numbers ({rtl.design} weights)

{numbers}

## Resources ({chip.name}, {chip.clock_mhz:g} MHz asked for)

| part | how known | copies | LUT | FF | DSP | BRAM |
|---|---|---|---|---|---|---|
{parts}| all | | | {size.lut:,.0f} | {size.ff:,.0f} | {size.dsp:,.0f} | {size.bram:g} |

{size.method[0].upper()}{size.method[1:]}; not timed by a vendor's tool.
The estimate has a pipelined divider and a table memory for two links; this RTL divides a bit a
clock and gives each link its own.

## Test bench

`{TOP}_tb.v` sends {few.events} recorded events ({len(few.words)} tracks; half simulated, half drawn
over the whole word) and compares every vertex and flag; it says PASS or FAIL. With Icarus Verilog,
in this folder: `iverilog -o tb -c {TOP}.f {TOP}_tb.v && vvp tb`.
"""
