"""RTL as a program by Verilator: slower to start than CXXRTL, and at home with large designs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillfit.core.errors import MissingExtraError
from stillfit.firmware.driving import BUILD_TIMEOUT, compiler, main
from stillfit.firmware.packing import words
from stillfit.firmware.synthesis import run_tool

# Remarks to Verilator's checks, of which older versions know fewer; all checks are off here.
_REMARK = re.compile(r"/\*\s*verilator lint_\w+ \w+\s*\*/|//\s*verilator lint_\w+ \w+")


def is_there() -> bool:
    """Whether Verilator is on the path."""
    return shutil.which("verilator") is not None


def find_verilator() -> str:
    """Where Verilator is; `MissingExtraError` where it is not."""
    found = shutil.which("verilator")
    if found is None:
        raise MissingExtraError(
            "Verilator was asked for and is not on the path; install it (on Debian: apt install "
            "verilator), or simulate with the engine cxxrtl"
        )
    return found


def build(
    files: Sequence[Path],
    top: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    folder: Path,
    *,
    level: int = 1,
) -> Path:
    """Compile Verilog with the module `top` in `folder`, at g++'s `level`; the program.

    Verilator does not read Yosys's RTLIL: for a file NAME.il the NAME.v beside it is taken.
    """
    found = find_verilator()
    compiler()
    local = []
    for n, path in enumerate(files):
        local.append(f"{n}_{path.with_suffix('.v').name}")
        text = path.with_suffix(".v").read_text()
        (folder / local[-1]).write_text(_REMARK.sub("", text))
    puts = "".join(_moved(name, bits, "in") for name, bits in inputs.items())
    gets = "".join(_moved(name, bits, "out") for name, bits in outputs.items())
    clock = [f"top.clk = {value};\n        top.eval();" for value in (0, 1)]
    fed, told = (sum(words(bits) for bits in side.values()) for side in (inputs, outputs))
    headers = f'#include "V{top}.h"\n#include "verilated.h"\n'
    (folder / "main.cc").write_text(headers + main(f"V{top}", (fed, told), puts, clock, gets))
    # Verilator's own library, which does no work here, is compiled without optimisation: faster.
    run_tool(
        [
            *(found, "--cc", "--exe", "--build", "-Wno-fatal", "-Wno-lint", "--Mdir", "verilated"),
            *(
                "--x-initial",
                "0",
                "--x-assign",
                "0",
                "-MAKEFLAGS",
                "OPT_GLOBAL=-O0",
                "-CFLAGS",
                f"-O{level}",
            ),
            *("--top-module", top, "-o", "design", *local, "main.cc"),
        ],
        "verilator",
        BUILD_TIMEOUT,
        folder,
    )
    return folder.resolve() / "verilated" / "design"


def _moved(name: str, bits: int, way: str) -> str:
    """Statements that move a port's words: up to 64 bits are a number, more are an array."""
    field, lines = f"top.{name}", []
    for n in range(words(bits)):
        if bits > 64:
            place = f"{field}[{n}]"
            lines.append(f"{place} = *from++;" if way == "in" else f"*to++ = {place};")
        elif way == "in":
            lines.append(f"{field} {'|' if n else ''}= (uint64_t)*from++ << {32 * n};")
        else:
            lines.append(f"*to++ = (uint64_t){field} >> {32 * n};")
    return "".join(f"        {line}\n" for line in lines)
