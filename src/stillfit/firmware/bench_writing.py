"""What goes beside the Verilog: test bench, vectors, weight image, report, README."""

from __future__ import annotations

import json

import numpy as np

from stillfit.firmware.checking import Vectors
from stillfit.firmware.devices import Chip
from stillfit.firmware.footprints import Block, estimate
from stillfit.firmware.packing import WORD, packed, write_memory
from stillfit.firmware.tools import versions
from stillfit.firmware.verilog import Rtl

RECORDED = 1000  # vectors in a test bench


def write_bench(rtl: Rtl, vectors: Vectors, chip: Chip) -> dict[str, object]:
    """Test bench, vectors, weight image and report of a network into its folder; its report."""
    folder, n = rtl.folder, min(len(vectors.inputs), RECORDED)
    into, out = sum(rtl.in_widths), sum(rtl.out_widths)
    write_memory(folder / f"{rtl.name}_inputs.hex", rtl.inputs(vectors.inputs[:n]), into)
    shift = np.array(rtl.out_shift, np.int64)
    answers = packed(vectors.whole[:n] >> shift, rtl.out_widths)
    write_memory(folder / f"{rtl.name}_outputs.hex", answers, out)
    if rtl.weight_widths:
        write_memory(folder / f"{rtl.name}_weights.hex", rtl.image().reshape(-1, 1), WORD)
    (folder / f"{rtl.name}_tb.v").write_text(_bench(rtl, n))
    block = estimate(rtl.traced, chip)
    report = _report(rtl, block, vectors, chip)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(rtl, report, n))
    return report


def _bench(rtl: Rtl, n: int) -> str:
    into, out = sum(rtl.in_widths), sum(rtl.out_widths)
    image = len(rtl.image()) if rtl.weight_widths else 0
    declared = load = ports = ""
    if image:
        declared = (
            "    reg load = 0;\n    reg [31:0] load_word = 0;\n"
            f"    reg [31:0] image [0:{image - 1}];\n"
        )
        load = (
            f'        $readmemh("{rtl.name}_weights.hex", image);\n'
            f"        for (at = 0; at < {image}; at = at + 1) begin\n"
            "            load = 1; load_word = image[at];\n"
            "            @(negedge clk);\n"
            "        end\n"
            "        load = 0;\n"
        )
        ports = ", .load(load), .load_word(load_word)"
    return f"""// {n} recorded vectors of {rtl.traced.name}; says PASS, or FAIL and where.
// Run it in this folder: it reads the .hex files beside it.
`timescale 1 ns / 1 ps

module {rtl.name}_tb;
    reg clk = 0, rst = 1, in_valid = 0;
    reg [{into - 1}:0] in_data = 0;
    wire out_valid;
    wire [{out - 1}:0] out_data;
    reg [{into - 1}:0] inputs [0:{n - 1}];
    reg [{out - 1}:0] outputs [0:{n - 1}];
{declared}    integer at, seen, wrong;

    {rtl.name} dut (.clk(clk), .rst(rst), .in_valid(in_valid), .in_data(in_data),
        .out_valid(out_valid), .out_data(out_data){ports});

    always #1 clk = !clk;

    always @(negedge clk)
        if (out_valid) begin
            if (seen >= {n} || out_data !== outputs[seen]) begin
                wrong = wrong + 1;
                if (wrong <= 10)
                    $display("{rtl.traced.name}: vector %0d: got %h, expected %h, bits %h", seen,
                        out_data, outputs[seen], out_data ^ outputs[seen]);
            end
            seen = seen + 1;
        end

    initial begin
        seen = 0;
        wrong = 0;
        $readmemh("{rtl.name}_inputs.hex", inputs);
        $readmemh("{rtl.name}_outputs.hex", outputs);
        @(negedge clk);
        @(negedge clk);
        rst = 0;
{load}        for (at = 0; at < {n}; at = at + 1) begin
            in_valid = 1; in_data = inputs[at];
            @(negedge clk);
        end
        in_valid = 0;
        for (at = 0; at <= {rtl.latency}; at = at + 1) @(negedge clk);
        if (wrong == 0 && seen == {n}) $display("PASS: %0d vectors", seen);
        else $display("FAIL: %0d of {n} vectors answered, %0d wrong", seen, wrong);
        $finish;
    end
endmodule
"""


def _report(rtl: Rtl, block: Block, vectors: Vectors, chip: Chip) -> dict[str, object]:
    return {
        "network": rtl.traced.name,
        "design": rtl.traced.design,
        "device": chip.name,
        "clock_mhz": chip.clock_mhz,
        "latency_cycles": rtl.latency,
        "latency_ns": round(rtl.latency * chip.period, 2),
        "initiation_interval": 1,
        "lut": round(block.lut, 1),
        "ff": round(block.ff, 1),
        "dsp": block.dsp,
        "bram": block.bram,
        "method": "estimated from the traced logic; not timed by a vendor's tool",
        "inputs": [
            {"bits": bits, "fraction": f}
            for bits, f in zip(
                rtl.in_widths,
                np.broadcast_to(np.array(rtl.traced.input.f), (rtl.traced.inputs,)).tolist(),
                strict=True,
            )
        ],
        "outputs": [
            {"bits": bits, "signed": signed, "fraction": int(f) - shift}
            for bits, signed, f, shift in zip(
                rtl.out_widths,
                rtl.out_signed,
                np.broadcast_to(rtl.traced.fraction, (len(rtl.out_widths),)),
                rtl.out_shift,
                strict=True,
            )
        ],
        "weight_bits": sum(rtl.weight_widths),
        "weight_words": len(rtl.image()) if rtl.weight_widths else 0,
        "vectors_sha256": vectors.digest,
        "tools": versions("alkaid"),
    }


def _readme(rtl: Rtl, report: dict[str, object], n: int) -> str:
    name = rtl.name
    cells = [*(report[key] for key in ("lut", "ff", "dsp", "bram")), f"{rtl.latency} clocks"]
    row = " | ".join(str(cell) for cell in [*cells, report["method"]])
    loading = ""
    if rtl.weight_widths:
        loading = f"""
## Weights

Weights and biases are a register of {report["weight_bits"]} bits. `{name}_weights.hex` is its
image: its {report["weight_words"]} words go to `load_word` in order, with `load` high, one a clock.
Stop the stream meanwhile: what is in the pipeline while `load` is high is not answered.
"""
    return f"""# {report["network"]}, {report["design"]} weights

Top: module `{name}` in `{name}.v`; all `.v` files here and in `static/` but `{name}_tb.v` belong to
it. A vector a clock: `in_valid` and `in_data` in, `out_valid` and `out_data` {rtl.latency} clocks
later. Values lie side by side, the first in the lowest bits; their bits and fraction bits are in
`report.json`. `rst` is synchronous and forgets what is in the pipeline.
{loading}
## Resources ({report["device"]}, {report["clock_mhz"]} MHz asked for)

| LUT | FF | DSP | BRAM | latency | method |
|---|---|---|---|---|---|
| {row} |

## Test bench

`{name}_tb.v` feeds {n} recorded vectors and compares each answer; it says PASS or FAIL. With Icarus
Verilog, in this folder: `iverilog -o tb *.v static/*.v && vvp tb`.
"""
