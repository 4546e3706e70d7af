"""A learner as a circuit that a user holds: its Verilog, its cycles, its resources."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillfit.core.errors import ConfigError
from stillfit.core.values import Footprint
from stillfit.firmware.c99.learning import Learner
from stillfit.firmware.devices import Chip
from stillfit.firmware.glue.writing import write_verilog
from stillfit.firmware.learning.layout import Cycles, Ends, Layout
from stillfit.firmware.synthesis import Count, Yosys, count_verilog
from stillfit.firmware.tools import package, versions

if TYPE_CHECKING:
    from stillfit.firmware.learning.machine import Machine


@dataclass(frozen=True, eq=False, kw_only=True)
class LearnerDesign:
    """A learner's circuit: one multiplier, weights as state, an example at a time.

    `learner`: what it was made from, with the state that it begins with. `name`: of the module.
    """

    learner: Learner
    layout: Layout
    name: str

    @property
    def cycles(self) -> Cycles:
        """Clock cycles of a prediction and of a prediction with its learning step."""
        return self.layout.cycles

    def machine(self) -> Machine:
        """The circuit in Amaranth; each call makes one that was not elaborated."""
        package("amaranth")
        from stillfit.firmware.learning.machine import Machine

        return Machine(self.layout)

    @property
    def ports(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bits of the inputs and outputs, without `clk` and with `rst`."""
        inputs, outputs = self.layout.ports
        return inputs | {"rst": 1}, outputs

    def write(self, folder: Path, *, yosys: Yosys | None = None) -> Path:
        """`folder`/NAME.v, and the same in Yosys's own form as NAME.il; 2 to 5 s."""
        machine = self.machine()
        return write_verilog(machine, self.name, *machine.ports, folder, yosys=yosys)

    def verilog(self, *, yosys: Yosys | None = None) -> str:
        """The whole circuit as one Verilog module, beginning with the learner's state."""
        with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
            return self.write(Path(place), yosys=yosys).read_text()

    def count(self, chip: Chip, *, yosys: Yosys | None = None) -> Count:
        """What Yosys needs for the circuit on a device's family; 10 to 60 s."""
        with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
            made = self.write(Path(place), yosys=yosys)
            return count_verilog([made.name], self.name, chip, Path(place), yosys=yosys)

    def footprint(self, chip: Chip, *, yosys: Yosys | None = None) -> Footprint:
        """The circuit on a device, synthesised by Yosys.

        Latency and initiation interval are those of a prediction; part `update` has the cycles of
        a prediction with its learning step.
        """
        found = self.count(chip, yosys=yosys)
        cycles, period = self.cycles, chip.period
        figures: dict[str, float | str] = {"lut": found.lut, "ff": found.ff, "dsp": found.dsp}
        figures |= {"bram": found.bram, "copies": 1, "how": "synthesised"}
        note = f"one multiplier of {self.layout.left} x {self.layout.right} bits"
        sizes = self.learner.sizes
        weights = sum((n + 1) * m for n, m in pairwise(sizes))
        return Footprint(
            parameters=weights,
            weight_bytes=-(-weights * self.learner.width // 8),
            macs_per_event=sum(n * m for n, m in pairwise(sizes)),
            method="synthesis",
            lut=found.lut,
            ff=found.ff,
            dsp=found.dsp,
            bram=found.bram,
            latency_cycles=cycles.forward,
            latency_ns=round(cycles.forward * period, 1),
            initiation_interval=cycles.forward,
            tools={**found.tools, **versions("amaranth")},
            parts={
                "learner": {**figures, "cycles": cycles.forward, "note": note},
                "update": {
                    "cycles": cycles.longest,
                    "ns": round(cycles.longest * period, 1),
                    "how": "counted",
                    "note": "prediction and learning step, in the same circuit",
                },
            },
        )


def learner_rtl(
    learner: Learner, name: str = "learner", *, ends: Ends | None = None
) -> LearnerDesign:
    """The circuit of a gradient learner (SGD, LMS) or of least squares, equal to it bit for bit.

    `learner`: an embedded strategy's device as plain numbers, as the C headers take it, too.
    `ends`: lowest and highest number of each weight, as they lie; constants of the circuit, and
    every weight is brought back to them as it is written. `ConfigError` for a learner that has no
    circuit, and for sums longer than the kernels' 64 bits.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"{name!r} is not the name of a Verilog module; use letters, digits, _")
    # The kernels change a device's arrays in place: the circuit begins as they are now.
    held = replace(learner, arrays={n: np.array(a) for n, a in learner.arrays.items()})
    return LearnerDesign(learner=held, layout=Layout(held, ends), name=name)
