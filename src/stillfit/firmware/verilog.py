"""Verilog of traced networks: the pipeline, and a top with flow control and loaded weights."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError
from stillfit.firmware.devices import Chip
from stillfit.firmware.packing import WORD, Words, packed, unpacked, words
from stillfit.firmware.synthesis import write_rtl
from stillfit.firmware.tools import ToolError
from stillfit.firmware.tracing import Traced
from stillfit.models.fixed.formats import Codes

# IEEE 1364-2005, annex B.
KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        "always and assign automatic begin buf bufif0 bufif1 case casex casez cell cmos config "
        "deassign default defparam design disable edge else end endcase endconfig endfunction "
        "endgenerate endmodule endprimitive endspecify endtable endtask event for force forever "
        "fork function generate genvar highz0 highz1 if ifnone incdir include initial inout input "
        "instance integer join large liblist library localparam macromodule medium module nand "
        "negedge nmos nor noshowcancelled not notif0 notif1 or output parameter pmos posedge "
        "primitive pull0 pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent rcmos real "
        "realtime reg release repeat rnmos rpmos rtran rtranif0 rtranif1 scalared showcancelled "
        "signed small specify specparam strong0 strong1 supply0 supply1 table task time tran "
        "tranif0 tranif1 tri tri0 tri1 triand trior trireg unsigned use uwire vectored wait wand "
        "weak0 weak1 while wire wor xnor xor",
    )
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rtl:
    """A network in Verilog, in `folder`: its top is the module `name`, its files are `files`.

    Ports of the top: `clk`, `rst`, `in_valid`, `in_data`, `out_valid`, `out_data`; with reloadable
    weights also `load` and `load_word` (32 bits). A datum a clock; the answer comes `latency`
    clocks later. `in_widths`, `out_widths`: bits of the values side by side, the first lowest;
    `out_signed`, and `out_shift`: what each output must be shifted left to be at `traced.fraction`.
    `weight_widths`: of the weights, empty where they are constant.
    A width of 0: nothing depends on it, and it has no port.
    """

    traced: Traced
    name: str
    folder: Path
    files: tuple[str, ...]
    latency: int
    in_widths: tuple[int, ...]
    out_widths: tuple[int, ...]
    out_signed: tuple[bool, ...]
    out_shift: tuple[int, ...]
    weight_widths: tuple[int, ...]

    @property
    def ports(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bits of the inputs (without the clock) and of the outputs."""
        inputs = {"rst": 1, "in_valid": 1, "in_data": sum(self.in_widths)}
        if self.weight_widths:
            inputs |= {"load": 1, "load_word": WORD}
        return inputs, {"out_valid": 1, "out_data": sum(self.out_widths)}

    def inputs(self, codes: NDArray[np.int64]) -> Words:
        """Input codes (n, ...) as rows of `in_data`."""
        return packed(codes.reshape(len(codes), -1), self.in_widths)

    def outputs(self, rows: Words) -> Codes:
        """Rows of `out_data` as output codes (n, outputs)."""
        codes = unpacked(rows, self.out_widths, self.out_signed)
        return codes << np.array(self.out_shift, np.int64)

    def image(self, weights: Codes | None = None) -> Words:
        """The weight image: the words to load, in order, (n,). `weights`: other codes than now."""
        given = self.traced.weights if weights is None else weights
        if not self.weight_widths:
            raise ConfigError(
                f"{self.name} has constant weights, so there is no image to load; build it with "
                "the reloadable design"
            )
        image: Words = packed(given.reshape(1, -1), self.weight_widths)[0]
        return image


def network_rtl(traced: Traced, name: str, folder: Path, chip: Chip) -> Rtl:
    """Write a traced network as Verilog into `folder`, pipelined for the device's clock.

    Files: NAME.v (the top), NAME_pipeline.v, NAME_stageN.v and what they share (`static/`).
    Modules carry the name, so that several networks can be read together. 0.1 to 1 s.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in KEYWORDS:
        raise ConfigError(
            f"{name!r} is not the name of a Verilog module; use letters, digits, _, and no keyword"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
        made = write_rtl(traced, Path(place), "network", chip.cutoff)
        files = _taken(Path(place) / "src", folder, name)
    signals = made.fsm.inp_signals, made.fsm.out_signals
    if [len(side) for side in signals] != [1, 1]:
        raise ToolError(
            f"alkaid wrote {name} with {len(signals[0])} inputs and {len(signals[1])} outputs "
            "where one of each was expected; use the version in the extra [firmware]"
        )
    ins = [(bool(k), int(i), int(f)) for k, i, f in signals[0][0].precisions]
    outs = [(bool(k), int(i), int(f)) for k, i, f in signals[1][0].precisions]
    known = [*zip(traced.input.k, traced.input.i, traced.input.f, strict=True)]
    if len(known) == 1:
        known *= traced.inputs
    known += [(port.k, port.i, port.f) for port in traced.ports]
    fraction = np.broadcast_to(traced.fraction, (len(outs),)).tolist()
    shift = tuple(int(f) - own for f, (_, _, own) in zip(fraction, outs, strict=True))
    # An input on which nothing depends has no bits: a masked weight behind a dead unit.
    told = [(int(k), i, f) for k, i, f in ins]
    same = len(told) == len(known) and all(
        one in ((0, 0, 0), want) for one, want in zip(told, known, strict=True)
    )
    if not same or min(shift) < 0:
        raise ToolError(
            f"alkaid gave {name} other formats than it was told: {ins[:8]} for {known[:8]}; use "
            "the version in the extra [firmware]"
        )
    widths = [int(k) + i + f for k, i, f in ins]
    rtl = Rtl(
        traced=traced,
        name=name,
        folder=folder,
        files=(f"{name}.v", *files),
        latency=int(made.latency) + 1,
        in_widths=tuple(widths[: traced.inputs]),
        out_widths=tuple(int(k) + i + f for k, i, f in outs),
        out_signed=tuple(k for k, _, _ in outs),
        out_shift=shift,
        weight_widths=tuple(widths[traced.inputs :]),
    )
    if min(rtl.out_widths) < 1:
        raise ConfigError(f"an output of {name} is constant; it has no circuit")
    (folder / f"{name}.v").write_text(_top(rtl))
    return rtl


def _taken(source: Path, folder: Path, name: str) -> tuple[str, ...]:
    """Copy a project's Verilog with the network's name in front of its modules' names."""

    def named(text: str) -> str:
        text = re.sub(r"\blogic(\d+)\b", rf"{name}_stage\1", text)
        return re.sub(r"\bnetwork\b", f"{name}_pipeline", text)

    files = []
    for path in sorted(source.glob("*.v")):
        if path.stem != "network_wrapper":
            target = f"{named(path.stem)}.v"
            (folder / target).write_text(named(path.read_text()))
            files.append(target)
    (folder / "static").mkdir(exist_ok=True)
    for path in sorted((source / "static").glob("*.v")):
        (folder / "static" / path.name).write_text(path.read_text())
        files.append(f"static/{path.name}")
    return tuple(files)


def _top(rtl: Rtl) -> str:
    data, out, weights = sum(rtl.in_widths), sum(rtl.out_widths), sum(rtl.weight_widths)
    last = rtl.latency - 1
    lines = [
        f"// {rtl.traced.name}, {rtl.traced.design} weights: a datum a clock, the answer "
        f"{rtl.latency} clocks later.",
        "`timescale 1 ns / 1 ps",
        "",
        f"module {rtl.name} (",
        "    input wire clk,",
        "    input wire rst,",
        "    input wire in_valid,",
        f"    input wire [{data - 1}:0] in_data,",
    ]
    if weights:
        lines += ["    input wire load,", f"    input wire [{WORD - 1}:0] load_word,"]
    lines += ["    output wire out_valid,", f"    output wire [{out - 1}:0] out_data", ");", ""]
    feed = "in_data"
    if weights:
        held = words(weights) * WORD
        shifted = f"{{load_word, weights[{held - 1}:{WORD}]}}" if held > WORD else "load_word"
        lines += [
            f"    // {len(rtl.weight_widths)} weights and biases in {weights} bits: "
            f"{words(weights)} words, the lowest first.",
            f"    reg [{held - 1}:0] weights;",
            "    always @(posedge clk)",
            f"        if (load) weights <= {shifted};",
            "",
        ]
        feed = f"{{weights[{weights - 1}:0], in_data}}"
    clear = "rst || load" if weights else "rst"
    lines += [
        f"    reg [{last}:0] valid;",
        "    always @(posedge clk)",
        f"        if ({clear}) valid <= 0;",
        f"        else valid <= {f'{{valid[{last - 1}:0], in_valid}}' if last else 'in_valid'};",
        f"    assign out_valid = valid[{last}];",
        "",
        f"    {rtl.name}_pipeline pipeline (",
        "        .clk(clk),",
        f"        .model_inp({feed}),",
        "        .model_out(out_data)",
        "    );",
        "",
        "endmodule",
        "",
    ]
    return "\n".join(lines)
