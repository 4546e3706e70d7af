"""A learner as a folder: Verilog, image of its state, self-checking test bench, report, README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stillfit.core.values import Footprint
from stillfit.firmware.devices import Chip
from stillfit.firmware.learning.checking import Trajectory, recorded, state_image
from stillfit.firmware.learning.design import LearnerDesign
from stillfit.firmware.packing import packed, write_memory
from stillfit.firmware.tools import versions

RECORDED = 50  # steps in a test bench
_FLAGS = ("answers", "shown")  # what is to be compared after a clock


def write_learner(
    design: LearnerDesign,
    told: Trajectory,
    folder: Path,
    chip: Chip,
    *,
    synthesised: Footprint | None = None,
) -> dict[str, object]:
    """Write a learner's project into `folder`; its report.

    NAME.v; NAME_state.hex, the state that it begins with as words for its port; NAME_tb.v with the
    first steps of `told`, clock by clock; report.json; README.md. 2 to 5 s.
    """
    design.write(folder)
    image = state_image(design)
    write_memory(folder / f"{design.name}_state.hex", packed(image, [8, 24, 32]), 64)
    steps = _bench(design, told, folder)
    report = _report(design, chip, synthesised)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(design, report, steps))
    return report


def _bench(design: LearnerDesign, told: Trajectory, folder: Path) -> int:
    """Rows of a clock each: inputs, what outputs must be, and which of them are due."""
    name, steps = design.name, min(len(told.x), RECORDED)
    inputs, outputs = design.ports
    rows, due = recorded(design, told.first(steps))
    columns = [rows[port][:, 0].astype(np.int64) for port in inputs]
    columns += [due[flag] for flag in _FLAGS]
    columns += [due["out_value"], due["state_value"]]
    widths = [*inputs.values(), 1, 1, outputs["out_value"], outputs["state_value"]]
    clocks, bits = len(columns[0]), sum(widths)
    write_memory(folder / f"{name}_rows.hex", packed(np.stack(columns, 1), widths), bits)
    fields, at = {}, 0
    for field, width in zip(
        [*inputs, *_FLAGS, "out_due", "state_due"], widths, strict=True
    ):  # fmt: skip
        fields[field] = f"[{at + width - 1}:{at}]"
        at += width
    regs = "".join(f"    reg [{width - 1}:0] {port};\n" for port, width in inputs.items())
    wires = "".join(f"    wire [{width - 1}:0] {port};\n" for port, width in outputs.items())
    ports = ", ".join(f".{port}({port})" for port in (*inputs, *outputs))
    drive = "".join(f"            {port} = row{fields[port]};\n" for port in inputs)
    (folder / f"{name}_tb.v").write_text(
        f"""// {steps} learning steps of {name}, answers and state compared; says PASS, or FAIL.
// Run it in this folder: it reads the .hex file beside it.
`timescale 1 ns / 1 ps

module {name}_tb;
    reg clk = 0;
{regs}{wires}    reg [{bits - 1}:0] rows [0:{clocks - 1}];
    reg [{bits - 1}:0] row;
    integer at, wrong;

    {name} dut (.clk(clk), {ports});

    initial begin
        wrong = 0;
        $readmemh("{name}_rows.hex", rows);
        for (at = 0; at < {clocks}; at = at + 1) begin
            row = rows[at];
{drive}            #1 clk = 1;
            #1;
            if (out_valid !== row{fields["answers"]}
                || (row{fields["answers"]} && out_value !== row{fields["out_due"]})
                || (row{fields["shown"]} && state_value !== row{fields["state_due"]})) begin
                wrong = wrong + 1;
                if (wrong <= 10)
                    $display("{name}: clock %0d: output %h (%b), due %h (%b); state %h, due %h",
                        at, out_value, out_valid, row{fields["out_due"]}, row{fields["answers"]},
                        state_value, row{fields["state_due"]});
            end
            clk = 0;
            #1;
        end
        if (wrong == 0) $display("PASS: {steps} steps");
        else $display("FAIL: %0d of {clocks} clocks differ", wrong);
        $finish;
    end
endmodule
"""
    )
    return steps


def _report(design: LearnerDesign, chip: Chip, found: Footprint | None) -> dict[str, object]:
    learner, layout, cycles = design.learner, design.layout, design.cycles
    inputs, outputs = design.ports
    report: dict[str, object] = {
        "learner": learner.kind,
        "loss": learner.loss,
        "sizes": list(learner.sizes),
        "first_layer_that_learns": learner.first,
        "bits": learner.width,
        "fraction": learner.fraction,
        "rounding": learner.rounding,
        "rate": learner.rate / 65536,
        "device": chip.name,
        "clock_mhz": chip.clock_mhz,
        "cycles": {
            "forward": cycles.forward,
            "update": cycles.update,
            "restart": cycles.restart,
        },
        "update_us": round(cycles.longest * chip.period / 1000, 3),
        "multiplier": [layout.left, layout.right],
        "inputs": inputs,
        "outputs": outputs,
        "state_words": len(state_image(design)),
        "tools": versions("amaranth"),
    }
    if found is not None:
        report |= {**found.used(), "method": found.method, "tools": dict(found.tools)}
    return report


def _readme(design: LearnerDesign, report: dict[str, object], steps: int) -> str:
    name, learner, cycles = design.name, design.learner, design.cycles
    sizes = "-".join(str(n) for n in learner.sizes)
    used = "not synthesised: `--synthesise` asks Yosys"
    if "lut" in report:
        cells = (f"{report[key]} {key.upper()}" for key in ("lut", "ff", "dsp", "bram"))
        used = f"{', '.join(cells)} by Yosys; no vendor tool has seen it, nor its clock"
    restart = (
        f"\n{cycles.restart} where the covariance begins anew."
        if cycles.restart is not None
        else ""
    )
    return f"""# {name}: {sizes}, learns by {learner.kind}

Module `{name}` in `{name}.v` (`{name}.il`: the same for Yosys). Numbers of {learner.width} bits,
{learner.fraction} behind the point, in two's complement.

| port | what |
|---|---|
| `clk`, `rst` | `rst` (synchronous) ends an example and leaves the state alone |
| `in_valid`, `in_value`, `in_ready` | the example's inputs, one a clock, in order |
| `learn`, `target` | read with the last input: whether to learn, and from which number or class |
| `out_valid`, `out_value` | the outputs, in order |
| `done` | high for one clock when the example is finished |
| `state_area`, `state_address` | 0 weights, 1 covariance, 2 generator, 3 guards; between examples |
| `state_value` | that word, a clock later |
| `state_write`, `state_data` | writes it: how an older version comes back |

Clocks from an example's first input to the next one's: {cycles.forward} without learning,
{cycles.update} with it.{restart}

`{name}_state.hex` has the words of the state, from the highest bits: data (32), address (24), area
(8). The circuit begins with them.

Resources ({report["device"]}, {report["clock_mhz"]} MHz asked for): {used}.

`{name}_tb.v` goes through {steps} learning steps clock by clock and compares every answer, and the
state after each step: `iverilog -o tb {name}.v {name}_tb.v && vvp tb`.
"""
