"""`make bench`: every benchmark of the project, one line per figure.

python benchmarks/run.py [NAME ...]      # only these, such as `simulation loop`
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path

import numpy
import torch

FOLDER = Path(__file__).parent


def rows_of(path: Path) -> list[tuple[str, float, str]]:
    """The figures of one benchmark file: what its `run()` (or `run_bench()`) returns."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    measure = getattr(module, "run_bench", None) or module.run
    return list(measure())


def main(names: list[str]) -> int:
    files = sorted(FOLDER.glob("bench_*.py"))
    known = {path.stem.removeprefix("bench_"): path for path in files}
    unknown = set(names) - set(known)
    if unknown:
        print(f"error: no benchmark {sorted(unknown)}; there are {sorted(known)}", file=sys.stderr)
        return 2
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"numpy {numpy.__version__}; figures of a shared machine: compare ratios"
    )
    for name, path in known.items():
        if names and name not in names:
            continue
        print(f"\n{name}")
        for label, value, unit in rows_of(path):
            print(f"  {label:62s} {value:14,.5g} {unit}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
