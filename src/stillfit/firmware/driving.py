"""What a simulated design and C++ have in common: the compiler, and the program round the design.

The program reads rows of 32-bit words from its first argument, one row a clock, and writes rows as
the outputs stand after the clock's edge to its second.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from stillfit.core.errors import MissingExtraError
from stillfit.firmware.synthesis import run_tool

BUILD_TIMEOUT = 900.0  # s


def compiler() -> str:
    """Where g++ is; `MissingExtraError` where it is not."""
    found = shutil.which("g++")
    if found is None:
        raise MissingExtraError(
            "simulating a circuit needs the C++ compiler g++, which is not on the path; install it "
            "(on Debian: apt install g++)"
        )
    return found


def version(program: str) -> str:
    """What a program says its version is."""
    said = re.search(r"\d+(?:\.\d+)+", run_tool([program, "--version"], program, 60.0))
    return said.group(0) if said else "unknown"


def main(design: str, sizes: tuple[int, int], puts: str, clock: Sequence[str], gets: str) -> str:
    """C++ of the program round an object `top` of the type `design`.

    `sizes`: words of a row of inputs and of outputs. `puts`, `gets`: statements that move a row
    from the pointer `from` and to the pointer `to`. `clock`: what lowers the clock, what raises it.
    """
    low, high = clock
    return f"""
#include <cstdint>
#include <cstdio>
#include <vector>

int main(int, char **argv) {{
    FILE *source = fopen(argv[1], "rb"), *target = fopen(argv[2], "wb");
    if (!source || !target) return 1;
    std::vector<uint32_t> in({sizes[0]}), out({sizes[1]});
    {design} top;
    while (fread(in.data(), 4, in.size(), source) == in.size()) {{
        const uint32_t *from = in.data();
{puts}        {low}
        {high}
        uint32_t *to = out.data();
{gets}        if (fwrite(out.data(), 4, out.size(), target) != out.size()) return 1;
    }}
    return fclose(target) ? 1 : 0;
}}
"""
