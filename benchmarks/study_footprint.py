"""How the footprint's estimate compares with synthesis, over random networks.

    nice -n 15 python benchmarks/study_footprint.py [--networks 36] [--out rows.jsonl]

Prints a row per network (estimate and Yosys), then correlation and ratio for each design. About
20 s of Yosys a network. With --out, rows that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stillfit.firmware.devices import device
from stillfit.firmware.footprints import estimate
from stillfit.firmware.synthesis import Yosys, find_yosys, synthesise
from stillfit.firmware.tracing import Design, trace
from stillfit.models.fixed import Precision, convert, integer
from stillfit.models.fixed.calibration import fit_parameters, fit_quantiser
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.fixed.quantisers import observing

DEVICE = "xcvu13p"


def drawn(seed: int) -> tuple[nn.Module, str]:
    """A network of drawn size, bits and density, with ranges from drawn inputs; and its name."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    hidden = [int(rng.integers(4, 21)) for _ in range(int(rng.integers(1, 3)))]
    sizes = [int(rng.integers(2, 9)), *hidden, int(rng.integers(1, 4))]
    bits, density = int(rng.integers(4, 11)), float(rng.choice([0.25, 0.5, 0.75, 1.0]))
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = convert(nn.Sequential(*layers[:-1]), Precision(weights=bits, inputs=bits))
    for module in network.modules():
        if isinstance(module, FixedLayer):
            module.mask.copy_(torch.rand_like(module.weight) < density)
    with observing(network) as seen, torch.no_grad():
        network(torch.randn(500, sizes[0]))
    for name, values in seen.items():
        if name.endswith("on_input"):
            quantiser = network.get_submodule(name)
            fit_quantiser(quantiser, torch.cat(values))  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, FixedLayer):
            fit_parameters(module)
    return network, f"{'-'.join(map(str, sizes))}, {bits} bits, {density:.0%}"


def measured(seed: int, design: Design, yosys: Yosys) -> dict[str, Any]:
    """One network both ways."""
    network, name = drawn(seed)
    chip = device(DEVICE)
    started = time.perf_counter()
    traced = trace(integer(network), "network", design=design)
    block = estimate(traced, chip)
    spent = time.perf_counter() - started
    count = synthesise(traced, chip, yosys=yosys)
    return {
        "seed": seed,
        "design": design,
        "network": name,
        "estimate": {"lut": block.lut, "ff": block.ff, "dsp": block.dsp, "cycles": block.cycles},
        "yosys": {"lut": count.lut, "ff": count.ff, "dsp": count.dsp},
        "seconds": round(spent, 3),
        "yosys seconds": round(time.perf_counter() - started - spent, 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Correlation of estimate and synthesis, and their ratio, by design."""
    for design in ("constant", "reloadable"):
        own = [row for row in rows if row["design"] == design]
        if len(own) < 3:
            continue
        slowest = max(row["seconds"] for row in own)
        print(f"\n{design} weights: {len(own)} networks, estimate in at most {slowest:.2f} s")
        for what in ("lut", "ff", "dsp"):
            ours = np.array([row["estimate"][what] for row in own])
            theirs = np.array([row["yosys"][what] for row in own])
            if not theirs.any():
                continue
            ratio = ours[theirs > 0] / theirs[theirs > 0]
            print(
                f"  {what.upper():4s} correlation {np.corrcoef(ours, theirs)[0, 1]:.4f}, "
                f"estimate / Yosys median {np.median(ratio):.3f}, "
                f"{ratio.min():.3f} to {ratio.max():.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=36)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if given.out is not None and given.out.is_file():
        rows = [json.loads(line) for line in given.out.read_text().splitlines()]
    yosys = find_yosys(print)
    print(f"{yosys.name} {yosys.version}, synth_xilinx for {DEVICE}")
    print(f"{'network':28s} {'design':10s} {'LUT':>14s} {'FF':>14s} {'DSP':>11s}  s")
    for seed in range(given.networks):
        design: Design = "reloadable" if seed % 3 == 2 else "constant"
        row = next((row for row in rows if (row["seed"], row["design"]) == (seed, design)), None)
        if row is None:
            row = measured(seed, design, yosys)
            rows.append(row)
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        pairs = [
            f"{row['estimate'][what]:.0f} / {row['yosys'][what]:.0f}"
            for what in ("lut", "ff", "dsp")
        ]
        print(
            f"{row['network']:28s} {design:10s} {pairs[0]:>14s} {pairs[1]:>14s} {pairs[2]:>11s}  "
            f"{row['seconds']:.2f}",
            flush=True,
        )
    show(rows)


if __name__ == "__main__":
    main()
