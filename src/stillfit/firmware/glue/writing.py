"""Amaranth blocks as Verilog, by the Yosys that is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from stillfit.firmware.synthesis import TIMEOUT, Yosys, find_yosys, run_tool
from stillfit.firmware.tools import guarded, package

Parts: TypeAlias = Mapping[str, tuple[Any, Mapping[str, Any], Mapping[str, Any]]]


def write_verilog(
    block: Any,
    name: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    folder: Path,
    *,
    parts: Parts | None = None,
    yosys: Yosys | None = None,
) -> Path:
    """Verilog of an elaboratable in `folder`/NAME.v, with `clk` and a synchronous `rst`.

    `parts`: modules of their own that it names as instances, into the same file: module name ->
    (elaboratable, inputs, outputs). The same as Yosys's RTLIL lies beside it as NAME.il.
    """
    folder.mkdir(parents=True, exist_ok=True)
    all_of = {**(parts or {}), name: (block, inputs, outputs)}
    with guarded("amaranth", f"elaborating {name}", "report it with the chain's numbers"):
        text = "".join(_rtlil(module, *of) for module, of in all_of.items())
    (folder / f"{name}.il").write_text(text)
    found = yosys or find_yosys()
    script = (
        f"read_rtlil {name}.il; proc -nomux -norom; memory_collect; "
        f"write_verilog -norename -noattr {name}.v"
    )
    run_tool((*found.words, "-q", "-p", script), found.name, TIMEOUT, folder)
    return folder / f"{name}.v"


def _rtlil(name: str, block: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
    way = package("amaranth.hdl._ir").PortDirection
    ports = {n: (signal, way.Input) for n, signal in inputs.items()}
    ports |= {n: (signal, way.Output) for n, signal in outputs.items()}
    text = package("amaranth.back.rtlil").convert(block, name=name, ports=ports, emit_src=False)
    return str(text)
