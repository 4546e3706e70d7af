"""Amaranth blocks as Verilog, by the Yosys that is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillfit.firmware.synthesis import TIMEOUT, Yosys, find_yosys, run_tool
from stillfit.firmware.tools import guarded, package


def write_verilog(
    block: Any,
    name: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    folder: Path,
    *,
    yosys: Yosys | None = None,
) -> Path:
    """Verilog of an elaboratable in `folder`/NAME.v, with `clk` and a synchronous `rst`.

    The same as Yosys's RTLIL lies beside it as NAME.il.
    """
    rtlil = package("amaranth.back.rtlil")
    ir = package("amaranth.hdl._ir")
    way = ir.PortDirection
    ports = {n: (signal, way.Input) for n, signal in inputs.items()}
    ports |= {n: (signal, way.Output) for n, signal in outputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with guarded("amaranth", f"elaborating {name}", "report it with the chain's numbers"):
        text = rtlil.convert(block, name=name, ports=ports, emit_src=False)
    (folder / f"{name}.il").write_text(text)
    found = yosys or find_yosys()
    script = (
        f"read_rtlil {name}.il; proc -nomux -norom; memory_collect; "
        f"write_verilog -norename -noattr {name}.v"
    )
    run_tool((*found.words, "-q", "-p", script), found.name, TIMEOUT, folder)
    return folder / f"{name}.v"
