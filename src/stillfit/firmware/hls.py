"""hls4ml projects of fixed-point networks: C++ for Vitis HLS, a second way to the same numbers.

The graph is given to hls4ml layer by layer with the formats of the whole numbers: each quantiser is
a layer of its own, sums have the accumulator's format, and nothing is left to be guessed. Neither
writing a project nor its C simulation needs a vendor's tool.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.values import Equality
from stillfit.firmware.checking import Vectors, compared
from stillfit.firmware.devices import Chip
from stillfit.firmware.driving import BUILD_TIMEOUT, compiler
from stillfit.firmware.synthesis import run_tool
from stillfit.firmware.tools import ToolError, guarded, package, versions
from stillfit.firmware.tracing import DESIGNS, Design
from stillfit.models.fixed.formats import Codes, Format
from stillfit.models.fixed.integer import (
    Dense,
    Fractions,
    IntegerNetwork,
    Relu,
    Requantise,
)

RUN_TIMEOUT = 900.0  # s
RECORDED = 1000  # vectors for the test bench
_FILES = (".in", ".out")
_ROUNDS = {"floor": "TRN", "nearest": "RND", "even": "RND_CONV"}
_OVERFLOWS = {"saturate": "SAT", "symmetric": "SAT_SYM", "wrap": "WRAP"}
_REMEDY = "use the version in the extra [hls], or report it with the network's formats"


class Wire(NamedTuple):
    """What holds every channel of a format: sign, integer and fraction bits."""

    k: int
    i: int
    f: int

    @classmethod
    def of(cls, fmt: Format) -> Wire:
        return cls(max(fmt.k), max(fmt.i), max(fmt.f))

    def __str__(self) -> str:
        """As C++: bits in all, then those before the point with the sign."""
        sign = "" if self.k else "u"
        return f"ap_{sign}fixed<{sum(self)},{self.k + self.i}>"


@dataclass(frozen=True, eq=False, kw_only=True)
class HlsProject:
    """A project in `folder`, whose top is the C++ function `name`.

    It takes values of `input` (of each, or one for all) and answers with `fraction` bits behind the
    point; `answer` is the type of its outputs. With the design "reloadable" weights and biases are
    arguments of the function.
    """

    network: str
    name: str
    folder: Path
    design: Design
    input: Format
    inputs: int
    outputs: int
    fraction: Fractions
    answer: Wire


def write_hls(
    network: IntegerNetwork,
    name: str,
    folder: Path,
    chip: Chip,
    *,
    design: Design = "constant",
    inputs: Format | None = None,
    title: str | None = None,
) -> HlsProject:
    """Write a chain of dense layers as an hls4ml project into `folder`; about 1 s.

    `inputs`: the format of each data value, or one for all, where it is not that of the first
    quantiser. `title`: what errors and README call it. `MissingExtraError` without hls4ml,
    `ConfigError` for other layers and for a name that is no identifier, `ToolError` where hls4ml
    fails.
    """
    if design not in DESIGNS:
        raise ConfigError(f"a design is one of {', '.join(DESIGNS)}, got {design!r}")
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ConfigError(f"{name!r} is not the name of a function in C++; use letters, digits, _")
    called = title or name
    given = network.input.format if inputs is None else inputs
    graph = _Graph(given, called, network)
    graph_of = package("hls4ml.model.graph").ModelGraph
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, object] = {
        "Backend": "Vitis",
        "ProjectName": name,
        "OutputDir": str(folder),
        "Part": chip.part or chip.name,
        "ClockPeriod": round(chip.period, 4),
        "ClockUncertainty": "27%",
        "IOType": "io_parallel",
        "HLSConfig": {
            "Model": {
                "Precision": str(graph.wire),
                "ReuseFactor": 1,
                "Strategy": "Latency",
                # Formats are ours. Without it hls4ml would narrow them to the present weights.
                "BitExact": False,
                # Arrays with more weights than this are arguments of the function.
                **({"BramFactor": 0} if design == "reloadable" else {}),
            },
            "LayerName": graph.formats,
        },
    }
    with guarded("hls4ml", f"writing {called}", _REMEDY):
        made = graph_of.from_layer_list(told, graph.layers, ["data"], [graph.layers[-1]["name"]])
        made.write()
    _without_this_machine(folder, told, made.config.get_config_value("Stamp"))
    return HlsProject(
        network=called,
        name=name,
        folder=folder,
        design=design,
        input=given,
        inputs=graph.inputs,
        outputs=graph.width,
        fraction=np.broadcast_to(network.fraction, (graph.width,)),
        answer=graph.wire,
    )


def write_hls_bench(project: HlsProject, vectors: Vectors, chip: Chip) -> None:
    """Recorded vectors for the project's own test bench, and a README."""
    n = min(len(vectors.inputs), RECORDED)
    told = project.folder / "tb_data"
    told.mkdir(exist_ok=True)
    rows = {
        "tb_input_features.dat": _values(project, vectors.inputs[:n]),
        "tb_output_predictions.dat": np.ldexp(vectors.whole[:n].astype(float), -project.fraction),
    }
    for file, values in rows.items():
        lines = (" ".join(f"{value:.17g}" for value in row) for row in values)
        (told / file).write_text("".join(f"{line}\n" for line in lines))
    tools = ", ".join(f"{name} {found}" for name, found in versions("hls4ml").items())
    weights = (
        "Weights and biases are arguments of the function, in memories beside it; those in\n"
        "`firmware/weights/` are the present ones. Masked weights are arguments too."
        if project.design == "reloadable"
        else "Weights and biases are constants, in `firmware/weights/`."
    )
    (project.folder / "README.md").write_text(
        f"""# {project.network} as an hls4ml project, {project.design} weights

Written by {tools}. The top is `{project.name}` in `firmware/{project.name}.cpp`: {project.inputs}
values in, {project.outputs} out as `{project.answer}`, one event a clock asked for at
{chip.clock_mhz:g} MHz on {chip.part or chip.name}. {weights}

Formats of every layer are those of the fixed-point network; the layers `quantiserN` round and
saturate as it does. `tb_data/` holds {n} recorded vectors and the answers of the whole-number
model. With Vitis HLS, in this folder: `vitis-run --mode hls --tcl build_prj.tcl` (before 2024.2:
`vitis_hls -f build_prj.tcl`). No vendor's tool has been run on it; there are no resources here.
"""
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class HlsSimulation:
    """The compiled C simulation of a project: a program of its own, whose crash is a `ToolError`.

    It reads the weights of the project's folder, so that folder must stay.
    """

    project: HlsProject
    program: Path

    def run(self, codes: NDArray[np.int64]) -> Codes:
        """Output codes (n, outputs) of input codes (n, inputs)."""
        project, source, target = self.project, *(self.program.with_suffix(s) for s in _FILES)
        _values(project, codes).tofile(source)
        program = [str(self.program), str(source), str(target)]
        run_tool(program, "the simulation of hls4ml's project", RUN_TIMEOUT)
        found = np.fromfile(target, np.float64)
        source.unlink()
        target.unlink()
        if found.size != len(codes) * project.outputs:
            raise ToolError(
                f"the simulation of {project.name} answered {found.size} values to {len(codes)} "
                f"events where {len(codes) * project.outputs} were expected; compile it again"
            )
        scaled = np.ldexp(found.reshape(-1, project.outputs), project.fraction)
        whole: Codes = scaled.astype(np.int64)
        if (scaled != whole).any():
            raise ToolError(
                f"{project.name} answers with more than {max(project.fraction)} bits behind the "
                f"point; {_REMEDY}"
            )
        return whole


def simulate_hls(project: HlsProject, folder: Path) -> HlsSimulation:
    """Compile a project's C simulation in `folder` by g++; 5 s, `MissingExtraError` without it."""
    folder.mkdir(parents=True, exist_ok=True)
    source, name = project.folder.resolve(), project.name
    (folder / "main.cc").write_text(
        _MAIN.format(name=name, inputs=project.inputs, outputs=project.outputs)
    )
    weights = source / "firmware/weights"
    words = [compiler(), "-std=c++14", "-O1", "-w", f'-DWEIGHTS_DIR="{weights}"']
    words += [f"-I{source / 'firmware/ap_types'}", f"-I{source}", "-o", "simulation", "main.cc"]
    files = [str(source / f"firmware/{name}.cpp"), str(source / f"{name}_bridge.cpp")]
    run_tool([*words, *files], "g++", BUILD_TIMEOUT, folder)
    return HlsSimulation(project=project, program=folder.resolve() / "simulation")


def check_hls(project: HlsProject, vectors: Vectors, folder: Path) -> Equality:
    """C simulation of all vectors against whole numbers and fake-quantised network, bit for bit."""
    return compared(
        project.network,
        {
            "hls4ml's C++": simulate_hls(project, folder).run(vectors.inputs),
            "whole numbers": vectors.whole,
            "fake-quantised network": vectors.fake,
        },
        vectors.digest,
    )


@dataclass(eq=False)
class _Graph:
    """Gathers hls4ml's layers and their formats, following the steps of a network."""

    input: Format
    title: str
    network: IntegerNetwork
    layers: list[dict[str, Any]] = field(default_factory=list)
    formats: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = next(iter(self.network.layers), None)
        if first is None:
            raise ConfigError(f"{self.title} has no layer with weights; there is nothing to write")
        for step in self.network.steps:
            if type(step) not in _STEPS:
                raise ConfigError(
                    f"{self.title} has the step {type(step).__name__}, which is not written for "
                    "hls4ml; use dense layers, ReLU and quantisers, or the network's Verilog"
                )
        self.inputs = self.width = int(first.weight.shape[1])
        if len(self.input) not in (1, self.inputs):
            raise ShapeError(
                f"{self.title} takes {self.inputs} values and was given {len(self.input)} formats"
            )
        self.wire = Wire.of(self.input)
        self._add("data", {"class_name": "InputLayer", "input_shape": [self.inputs]}, {})
        for step in self.network.steps:
            _STEPS[type(step)](self, step)

    def _add(self, name: str, told: dict[str, Any], formats: dict[str, Wire]) -> None:
        before = {"inputs": [self.layers[-1]["name"]]} if self.layers else {}
        self.layers.append({"name": name, **before, **told})
        each = {"result": self.wire, **formats}
        self.formats[name] = {"Precision": {part: str(wire) for part, wire in each.items()}}

    def _count(self, kind: str) -> str:
        return f"{kind}{1 + sum(layer['name'].startswith(kind) for layer in self.layers)}"

    def quantiser(self, step: Requantise) -> None:
        axes = [np.array(axis) for axis in (step.format.k, step.format.widths, step.format.i)]
        axes[2] = axes[2] + axes[0]  # hls4ml counts the sign among the integer bits
        self.wire = Wire.of(step.format)
        self._add(
            self._count("quantiser"),
            {
                "class_name": "FixedPointQuantizer",
                "mask_kbi": tuple(np.broadcast_to(axis, (1, self.width)) for axis in axes),
                "RND": _ROUNDS[step.rounding],
                "SAT": _OVERFLOWS[step.overflow],
                "fusible": False,
                "overrides": {},
            },
            {},
        )

    def relu(self, step: Relu) -> None:
        self.wire = Wire(0, self.wire.i, self.wire.f)
        told = {"class_name": "Activation", "activation": "relu", "n_in": self.width}
        self._add(self._count("relu"), told, {})

    def dense(self, layer: Dense) -> None:
        self.quantiser(layer.input)
        outputs = len(layer.weight)
        finest, coarsest = int(layer.fraction.max()), int(layer.fraction.min())
        # The bound counts steps of each sum's own; products and parts of sums stay below it.
        self.wire = Wire(1, layer.accumulator - 1 - coarsest, finest)
        by = np.broadcast_to(np.array(layer.weight_format.f), (outputs,))
        own = np.broadcast_to(np.array(layer.bias_format.f), (outputs,))
        self._add(
            self._count("dense"),
            {
                "class_name": "Dense",
                "n_in": self.width,
                "n_out": outputs,
                "use_bias": True,
                "weight_data": np.ldexp(layer.weight.T.astype(np.float64), -by),
                "bias_data": np.ldexp(layer.bias.astype(np.float64), -own),
            },
            {
                "accum": self.wire,
                "weight": Wire.of(layer.weight_format),
                "bias": Wire.of(layer.bias_format),
            },
        )
        self.width = outputs


_STEPS: dict[type, Callable[[_Graph, Any], None]] = {
    Dense: _Graph.dense,
    Relu: _Graph.relu,
    Requantise: _Graph.quantiser,
}


def _values(project: HlsProject, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Input codes (n, inputs) as the numbers that they stand for."""
    if codes.ndim != 2 or codes.shape[1] != project.inputs:
        raise ShapeError(
            f"{project.name} takes codes (n, {project.inputs}), got {tuple(codes.shape)}"
        )
    return np.ldexp(codes.astype(np.float64), -np.array(project.input.f))  # type: ignore[no-any-return]


def _without_this_machine(folder: Path, told: dict[str, object], stamp: str) -> None:
    """The same project wherever and whenever it is written: no path, no random stamp."""
    path = folder / "hls4ml_config.yml"
    path.write_text(
        path.read_text()
        .replace(f"OutputDir: {told['OutputDir']}\n", "OutputDir: .\n")
        .replace(stamp, "stillfit")
    )
    script = folder / "build_lib.sh"
    script.write_text(script.read_text().replace(stamp, "stillfit"))


_MAIN = """#include <cstdio>

extern "C" void {name}_double(double *, double *);

int main(int, char **argv) {{
    FILE *source = fopen(argv[1], "rb"), *target = fopen(argv[2], "wb");
    if (!source || !target) return 1;
    double in[{inputs}], out[{outputs}];
    while (fread(in, sizeof in, 1, source) == 1) {{
        {name}_double(in, out);
        if (fwrite(out, sizeof out, 1, target) != 1) return 1;
    }}
    return fclose(target) ? 1 : 0;
}}
"""
