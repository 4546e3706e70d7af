"""`stillfit firmware build` and `check`: stored versions as Verilog, and its simulation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillfit.apps.command import NO, Json, Store, command
from stillfit.apps.firmware import firmware, stored_model
from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from stillfit.firmware.checking import Vectors
    from stillfit.firmware.tracing import Traced
    from stillfit.firmware.verilog import Rtl
    from stillfit.models.fixed import IntegerNetwork
    from stillfit.models.model import Model

LEAST = 10_000  # vectors by default
Version = Annotated[str, typer.Argument(metavar="VERSION", help="An id or its first digits.")]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="A named device, or a TOML file of one.")
]
Design = Annotated[
    str, typer.Option("--design", metavar="NAME", help="constant or reloadable weights.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the vectors.")]


def written(
    model: Model, folder: Path, *, design: str, device: str, vectors: int, seed: int
) -> list[tuple[Rtl, Vectors, dict[str, Any]]]:
    """Each network of a model in Verilog, in a folder of its own, with bench and report."""
    import numpy as np
    import torch

    from stillfit.firmware.bench_writing import write_bench
    from stillfit.firmware.checking import random_codes, record
    from stillfit.firmware.devices import device as chip_of
    from stillfit.firmware.tracing import DESIGNS, trace
    from stillfit.firmware.verilog import network_rtl
    from stillfit.l1t.chip import circuits
    from stillfit.l1t.fixed import FixedE2E
    from stillfit.l1t.fixed_chain import vertex_chain
    from stillfit.models.fixed import integer

    if design not in DESIGNS:
        raise ConfigError(f"--design is one of {', '.join(DESIGNS)}, got {design!r}")
    chip, network = chip_of(device), model.network
    found: list[tuple[Traced, IntegerNetwork, nn.Module]]
    if isinstance(network, FixedE2E):
        chain = vertex_chain(model)
        found = [
            (traced, whole, layers)
            for traced, whole, layers in zip(
                circuits(chain, design),
                (chain.weight, chain.associate),
                (network.weight, network.associate),
                strict=True,
            )
        ]
    else:
        whole = integer(network)
        layers: nn.Module = network
        if whole.front is not None:  # scaling is not part of the circuit
            inner: Any = getattr(network, "layers", network)
            layers = torch.nn.Sequential(*(one for one in inner if one is not whole.front))
        found = [(trace(whole, "network", design=design), whole, layers)]
    made = []
    for traced, whole, layers in found:
        name = traced.name.replace(" ", "_")
        rtl = network_rtl(traced, name, folder / name, chip)
        fraction = np.broadcast_to(np.array(traced.input.f, np.int64), (traced.inputs,))
        recorded = record(whole, layers, random_codes(vectors, rtl, seed), fraction)
        made.append((rtl, recorded, write_bench(rtl, recorded, chip)))
    return made


@command(firmware, "build")
def build(
    version: Version,
    store: Store,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the project goes.")],
    device: Device = "xcvu13p",
    design: Design = "constant",
    seed: Seed = 1,
    json: Json = False,
) -> int:
    """Write a version's networks as Verilog.

    A folder for each network: pipelined Verilog, a self-checking test bench with recorded vectors,
    the weight image of reloadable weights, a resource report and a README.

    \b
    Example:
      stillfit firmware build 3fa81b --store runs/demo/registry --out my-firmware
    """
    import json as text

    from stillfit.apps.screen import say, tell_json

    found, model = stored_model(store, version)
    made = written(model, out, design=design, device=device, vectors=LEAST, seed=seed)
    project = {
        "version": found,
        "design": design,
        "device": device,
        "networks": {rtl.name: report for rtl, _, report in made},
    }
    (out / "project.json").write_text(text.dumps(project, indent=2) + "\n")
    (out / "README.md").write_text(_readme(found, [rtl for rtl, _, _ in made]))
    if json:
        tell_json({"out": str(out), **project})
        return 0
    for rtl, _, report in made:
        say(
            f"{rtl.folder}: {report['lut']} LUT, {report['ff']} FF, {report['dsp']} DSP, "
            f"{rtl.latency} clocks ({report['latency_ns']} ns)"
        )
    say("an hls4ml project is not written by this version of stillfit")
    return 0


@command(firmware, "check")
def check(
    version: Version,
    store: Store,
    device: Device = "xcvu13p",
    design: Design = "constant",
    vectors: Annotated[
        int, typer.Option("--vectors", metavar="N", min=1, help="Vectors for each network.")
    ] = LEAST,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="cxxrtl or verilator.")
    ] = "cxxrtl",
    seed: Seed = 1,
    json: Json = False,
) -> int:
    """Simulate a version's Verilog and compare, bit for bit.

    Vectors from all over the inputs' formats go through the RTL, the integer model and the
    fake-quantised network. Any difference is named by block, vector and bit; exit code 1 then.

    \b
    Example:
      stillfit firmware check 3fa81b --store runs/demo/registry
    """
    import dataclasses

    from stillfit.apps.screen import complain, say, tell_json
    from stillfit.firmware.checking import check as simulated
    from stillfit.firmware.simulation import ENGINES
    from stillfit.firmware.synthesis import find_yosys

    if engine not in ENGINES:
        raise ConfigError(f"--engine is one of {', '.join(ENGINES)}, got {engine!r}")
    found, model = stored_model(store, version)
    if engine == "cxxrtl":
        find_yosys(complain)  # says on standard error that the first start takes long
    answers = {}
    with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
        folder = Path(place)
        for rtl, recorded, _ in written(
            model, folder, design=design, device=device, vectors=vectors, seed=seed
        ):
            answer = simulated(rtl, recorded, folder / f"{rtl.name}_sim", engine=engine)
            answers[rtl.name] = answer
            if not json:
                say(
                    f"{rtl.traced.name}: {answer.wrong} of {answer.vectors} vectors differ "
                    f"({answer.against})" + (f"; first: {answer.first}" if answer.first else "")
                )
    wrong = sum(answer.wrong for answer in answers.values())
    if json:
        told = {name: dataclasses.asdict(answer) for name, answer in answers.items()}
        tell_json({"version": found, "engine": engine, "wrong": wrong, "networks": told})
    return NO if wrong else 0


def _readme(version: str, networks: list[Rtl]) -> str:
    rows = "".join(f"- `{rtl.name}/`: {rtl.traced.name}\n" for rtl in networks)
    return (
        f"# Firmware of version {version}\n\n{rows}\n"
        "Each folder is a block with a README, a test bench and a report of its own. Module names "
        "differ, so\nall can be read together; the files in `static/` are the same in each.\n"
    )
