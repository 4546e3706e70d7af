"""What learners need as circuits: cycles, and resources by synthesis.

    nice -n 15 python benchmarks/study_learners.py [--device xcvu13p] [NAME ...]

Prints a row of Markdown for each learner; about 25 s of Yosys each. NAME: a part of a row's name.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from stillfit.apps.firmware.learners import described
from stillfit.firmware.devices import device
from stillfit.firmware.learning import learner_rtl
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.updaters.embedded import (
    EmbeddedLearner,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    Format,
)

COARSE, WIDE = Format(width=10, fraction=6), Format(width=24, fraction=16)
TRIGGER = Format(width=18, fraction=12)  # of the season's lane `on-chip`, whose weights have ends
HALF_UP = Format(rounding="half-up")
REMEMBERS = EmbeddedRLS(covariance_bits=20, forgetting=1.0)
ROWS: list[tuple[str, tuple[int, ...], EmbeddedLearner]] = [
    ("SGD, 16 bits", (3, 10, 10, 1), EmbeddedSGD(rate=2**-6)),
    ("SGD, 16 bits, half up", (3, 10, 10, 1), EmbeddedSGD(rate=2**-6, numbers=HALF_UP)),
    ("SGD, 16 bits, rate .01", (3, 10, 10, 1), EmbeddedSGD(rate=0.01)),
    ("SGD, 10 bits", (3, 10, 10, 1), EmbeddedSGD(rate=2**-6, numbers=COARSE)),
    ("SGD, 24 bits", (3, 10, 10, 1), EmbeddedSGD(rate=2**-6, numbers=WIDE)),
    ("SGD, softmax", (3, 10, 10, 4), EmbeddedSGD(rate=2**-6)),
    ("SGD, hinge", (3, 10, 10, 4), EmbeddedSGD(rate=2**-6, loss="hinge")),
    ("LMS, 16 bits", (3, 10, 10, 1), EmbeddedLMS(rate=2**-6)),
    ("least squares, 16 bits", (3, 10, 10, 1), EmbeddedRLS(covariance_bits=20)),
    ("least squares, forgets nothing", (3, 10, 10, 1), REMEMBERS),
    ("SGD, association, 18 bits", (4, 20, 20, 2), EmbeddedSGD(rate=2**-12, numbers=TRIGGER)),
    ("LMS, association, 18 bits", (4, 20, 20, 2), EmbeddedLMS(rate=2**-9, numbers=TRIGGER)),
    ("least squares, association", (4, 20, 20, 2), EmbeddedRLS(numbers=TRIGGER, prior=0.01)),
    ("SGD, wearable size, softmax", (36, 32, 6), EmbeddedSGD(rate=2**-6)),
]  # fmt: skip


def network(sizes: tuple[int, ...]) -> Model:
    """Drawn weights; of numbers where there is one output, else of classes."""
    torch.manual_seed(0)
    core = MLP(sizes[0], sizes[1:-1], sizes[-1])
    architecture = Architecture("mlp")
    if sizes[-1] == 1:
        return Model(WithNoise(core).eval(), Regression(features=("x",)), architecture)
    return Model(core.eval(), Classification(features=("x",), classes=sizes[-1]), architecture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="xcvu13p")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    chip = device(given.device)
    print(f"{given.device}, {chip.clock_mhz:g} MHz asked for")
    print("| learner | network | multiplier | LUT | FF | DSP | BRAM | forward | update | us |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, sizes, updater in ROWS:
        if given.names and not any(part in name for part in given.names):
            continue
        begun, plan = updater.switched_on(network(sizes), np.random.default_rng(0))
        # Ends as masks and formats draw them: no room for three quarters of the weights.
        rng = np.random.default_rng(1)
        reach = (rng.random(len(begun.weights)) < 0.25) * rng.integers(1, 5000, len(begun.weights))
        ends = (
            (begun.weights - reach, begun.weights + reach) if updater.numbers == TRIGGER else None
        )
        design = learner_rtl(described(begun, plan), ends=ends)
        made = design.footprint(chip)
        layout, cycles = design.layout, design.cycles
        figures = (made.lut, made.ff, made.dsp, made.bram, cycles.forward, cycles.longest)
        cells = " | ".join(f"{value:,g}" for value in figures)
        shape, spent = "-".join(map(str, sizes)), cycles.longest * chip.period / 1000
        print(
            f"| {name} | {shape} | {layout.left} x {layout.right} | {cells} | {spent:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
