"""RAM and flash of a header, as a compiler says."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stillfit.core.errors import MissingExtraError
from stillfit.firmware.c99.text import Header
from stillfit.firmware.tools import ToolError

OPTIONS = ("-std=c99", "-Wall", "-Wextra", "-Werror")
_SECTION = re.compile(r"^(\.[\w.]+)\s+(\d+)\s+\d+\s*$", re.MULTILINE)
_CODE, _CONSTANT, _DATA, _ZERO = (".text",), (".rodata", ".srodata"), (".data", ".sdata"), (".bss",)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What an object file holds, bytes: `code`, constants (`rodata`), variables with (`data`) and
    without (`bss`) first values. The stack is not in it.

    `target`: the machine that the compiler makes code for; `compiler`: its name and version.
    """

    code: int
    rodata: int
    data: int
    bss: int
    target: str
    compiler: str
    options: str

    @property
    def flash(self) -> int:
        """Code, constants, and the first values of variables."""
        return self.code + self.rodata + self.data

    @property
    def ram(self) -> int:
        return self.data + self.bss


def measured(header: Header, compiler: str = "gcc", options: tuple[str, ...] = ("-Os",)) -> Sizes:
    """Compile the header alone and read its sections; about .1 s.

    `compiler`: any gcc, such as arm-none-eabi-gcc with its `size` beside it. `MissingExtraError`
    where it is not installed, `ToolError` with its words where it fails.
    """
    found = shutil.which(compiler)
    size = shutil.which(re.sub(r"(gcc|clang|cc)(-[\d.]+)?$", "size", compiler)) or shutil.which(
        "size"
    )
    if found is None or size is None:
        missing = compiler if found is None else "size (binutils)"
        raise MissingExtraError(
            f"RAM and flash are told by a C compiler, and {missing} is not installed; install gcc "
            "with binutils, or name another compiler"
        )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / header.file).write_text(header.text)
        source = f'#define {header.name.upper()}_IMPLEMENTATION\n#include "{header.file}"\n'
        (place / "one.c").write_text(source)
        command = [found, *OPTIONS, "-ffunction-sections", *options, "-c", "one.c", "-o", "one.o"]
        _run(command, place)
        told = _run([size, "-A", "one.o"], place)
    version = _run([found, "-dumpfullversion", "-dumpversion"]).strip()
    return Sizes(
        **sections(told),
        target=_run([found, "-dumpmachine"]).strip(),
        compiler=f"{Path(compiler).name} {version}",
        options=" ".join(options),
    )


def sections(told: str) -> dict[str, int]:
    """Bytes by kind from what `size -A` prints; `ToolError` where it is something new."""
    found = [(name, int(size)) for name, size in _SECTION.findall(told)]
    if not any(name.startswith(".text") for name, _ in found):
        raise ToolError(
            f"size printed what this version of stillfit does not know: {told[:200]!r}; report it "
            "with the version of binutils"
        )

    def total(prefixes: tuple[str, ...]) -> int:
        return sum(size for name, size in found if name.startswith(prefixes))

    return {
        "code": total(_CODE),
        "rodata": total(_CONSTANT),
        "data": total(_DATA),
        "bss": total(_ZERO),
    }


def _run(command: list[str], place: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{Path(command[0]).name} could not be run ({error})") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[:800]
        raise ToolError(
            f"{Path(command[0]).name} failed with code {done.returncode}: {said}; "
            "try another compiler, or report it"
        )
    return done.stdout
