"""RTL simulation: CXXRTL (Yosys writes C++, g++ compiles it), or Verilator where it is installed.

"auto" takes CXXRTL, and Verilator for a design too large for it.

The simulator is a program of its own: rows of inputs go in, one a clock, rows of outputs come out
as they stand after the clock's edge. A crash of it is a `ToolError` and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from stillfit.core.errors import ConfigError, MissingExtraError, ShapeError
from stillfit.firmware import cxxrtl, verilator
from stillfit.firmware.driving import compiler, version
from stillfit.firmware.packing import Words, words
from stillfit.firmware.synthesis import Yosys, find_yosys, run_tool
from stillfit.firmware.tools import ToolError

Engine: TypeAlias = Literal["auto", "cxxrtl", "verilator"]
ENGINES: tuple[Engine, ...] = ("auto", "cxxrtl", "verilator")
# Bytes of CXXRTL's C++ that "auto" compiles. One MB took g++ 47 s (CPU) at level 0 and had not
# ended after 140 s at level 1, whose time grows with the square.
LARGEST, LARGEST_PLAIN = 1_000_000, 5_000_000
RUN_TIMEOUT = 900.0  # s


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """A compiled design. `inputs` and `outputs`: bits by port, without the clock `clk`."""

    program: Path
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    tools: Mapping[str, str]

    def run(self, rows: Mapping[str, Words]) -> dict[str, Words]:
        """Outputs after each clock, (n, words), of inputs (n, words) by port; absent ones are 0.

        Each run begins with registers at zero, or as their initial values say.
        """
        sizes = {len(row) for row in rows.values()}
        if len(sizes) != 1:
            raise ShapeError(f"ports need equally many clocks, got {sorted(sizes)}")
        n = sizes.pop()
        width = sum(words(bits) for bits in self.inputs.values())
        fed = np.zeros((n, width), np.uint32)
        at = 0
        for name, bits in self.inputs.items():
            if name in rows:
                fed[:, at : at + words(bits)] = rows[name].reshape(n, words(bits))
            at += words(bits)
        strange = set(rows) - set(self.inputs)
        if strange:
            raise ConfigError(f"the design has no inputs {', '.join(sorted(strange))}")
        source, target = self.program.with_suffix(".in"), self.program.with_suffix(".out")
        fed.tofile(source)
        run_tool([str(self.program), str(source), str(target)], "the simulation", RUN_TIMEOUT)
        each = [words(bits) for bits in self.outputs.values()]
        flat = np.fromfile(target, np.uint32)
        if flat.size != n * sum(each):
            raise ToolError(
                f"the simulation answered {flat.size} words to {n} clocks where {n * sum(each)} "
                "were expected; build it again"
            )
        source.unlink()
        target.unlink()
        columns = np.split(flat.reshape(n, sum(each)), np.cumsum(each)[:-1], axis=1)
        return dict(zip(self.outputs, columns, strict=True))


def simulator(
    files: Sequence[Path],
    top: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    folder: Path,
    *,
    engine: Engine = "auto",
    yosys: Yosys | None = None,
    flatten: bool = True,
    whole: Sequence[str] = (),
    level: int = 1,
) -> Simulator:
    """Compile Verilog `files` with the module `top` in `folder`; 3 to 60 s.

    Files may be Yosys's own RTLIL (.il) with the same as Verilog (.v) beside it: CXXRTL reads it
    faster where memories are large. `flatten`: one level of hierarchy, which runs faster; without,
    equal modules are compiled once by CXXRTL. `whole`: modules that are so although the rest is
    flattened, for those of which there are many. `level`: of g++'s optimisation.
    `MissingExtraError` where a tool is not there; with the engine "auto" also for a design of more
    than `LARGEST` bytes of C++ where Verilator is not there.
    """
    if engine not in ENGINES:
        raise ConfigError(f"a simulation engine is one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "verilator":
        verilator.find_verilator()
    gcc = compiler()
    folder.mkdir(parents=True, exist_ok=True)
    if engine != "verilator":
        found = yosys or find_yosys()
        size = cxxrtl.translate(files, top, folder, found, flatten=flatten, whole=whole)
        if engine == "auto":
            engine, level = _chosen(top, size, level)
        if engine == "cxxrtl":
            program = cxxrtl.build(top, inputs, outputs, folder, found, level=level)
            tools = {found.name: found.version, "g++": version(gcc)}
            return Simulator(
                program=program, inputs=dict(inputs), outputs=dict(outputs), tools=tools
            )
    program = verilator.build(files, top, inputs, outputs, folder, level=level)
    tools = {"verilator": version(verilator.find_verilator()), "g++": version(gcc)}
    return Simulator(program=program, inputs=dict(inputs), outputs=dict(outputs), tools=tools)


def _chosen(top: str, size: int, level: int) -> tuple[Engine, int]:
    """Engine and level of optimisation for a design of so many bytes of C++ from CXXRTL."""
    if size <= (LARGEST if level else LARGEST_PLAIN):
        return "cxxrtl", level
    if verilator.is_there():
        return "verilator", level
    if size <= LARGEST_PLAIN:
        return "cxxrtl", 0
    raise MissingExtraError(
        f"{top} is {size / 1e6:.1f} MB of C++ from CXXRTL, of which at most "
        f"{LARGEST_PLAIN / 1e6:.0f} are compiled; install Verilator (on Debian: apt install "
        "verilator), or ask for the engine cxxrtl to try it for long"
    )
