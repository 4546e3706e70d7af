"""`stillfit firmware build` and `check`: stored versions as Verilog, and its simulation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillfit.apps.command import NO, Json, Store, command
from stillfit.apps.firmware.group import Device, Version, firmware
from stillfit.apps.firmware.project import Wanted, write_project
from stillfit.apps.firmware.version import stored_network
from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from stillfit.apps.firmware.project import Project
    from stillfit.core.values import Equality
    from stillfit.firmware.simulation import Engine

LEAST = 10_000  # vectors by default
EVENTS = 100  # of the chain by default
Design = Annotated[
    str, typer.Option("--design", metavar="NAME", help="constant or reloadable weights.")
]
Links = Annotated[
    int, typer.Option("--links", metavar="N", min=1, help="Track streams of the chain.")
]
Histogram = Annotated[
    str, typer.Option("--histogram", metavar="NAME", help="registers or memory, of the chain.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the vectors.")]


@command(firmware, "build")
def build(
    version: Version,
    store: Store,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the project goes.")],
    device: Device = "xcvu13p",
    design: Design = "constant",
    links: Links = 18,
    histogram: Histogram = "registers",
    seed: Seed = 1,
    json: Json = False,
) -> int:
    """Write a version as Verilog.

    A folder for each network: pipelined Verilog, a self-checking test bench with recorded vectors,
    the weight image of reloadable weights, a resource report and a README. Above them, for a
    fixed-point E2E version, the same of the whole vertex chain: track words in, vertex and
    association flags out. Where hls4ml is installed, an hls4ml project of each network.

    \b
    Example:
      stillfit firmware build 3fa81b --store runs/demo/registry --out my-firmware
    """
    import dataclasses
    import json as text

    from stillfit.apps.firmware.hls import write_hls_projects
    from stillfit.apps.screen import complain, say, tell_json
    from stillfit.firmware.synthesis import find_yosys

    wanted = Wanted(design=design, device=device, links=links, histogram=histogram, seed=seed)
    stored = stored_network(store, version)
    if stored.is_chain:
        find_yosys(complain)  # says on standard error that the first start takes long
    project = write_project(stored, out, wanted)
    told: dict[str, object] = {"version": stored.version, "design": design, "device": device}
    lines, networks = [], {}
    for one, report in project.reports(LEAST):
        networks[one.rtl.name] = report
        lines.append(
            f"{one.rtl.folder}: {report['lut']} LUT, {report['ff']} FF, {report['dsp']} DSP, "
            f"{one.rtl.latency} clocks ({report['latency_ns']} ns)"
        )
    told["networks"] = networks
    readme = _readme(stored.version, project)
    if project.chain is not None:
        from stillfit.l1t.chain_bench import write_chain_bench
        from stillfit.l1t.chip import VertexChip
        from stillfit.l1t.fixed_chain import vertex_chain

        chip = VertexChip(
            device=device,
            links=links,
            design=project.chain.design,
            histogram=project.chain.form,
        )
        chain = vertex_chain(stored.model)
        size = chip.footprint(stored.model)
        report, page = write_chain_bench(
            project.chain, chain, project.chain_vectors(EVENTS), size, chip.chip
        )
        told["chain"] = report
        readme += page
        lines.append(
            f"{out}: the whole chain, {links} links: {size.lut:,.0f} LUT, {size.ff:,.0f} FF, "
            f"{size.dsp:,.0f} DSP, {size.bram:g} BRAM; the vertex {project.chain.clocks} clocks "
            "after an event's last words"
        )
    hls = write_hls_projects(project, out)
    told["hls4ml"] = dataclasses.asdict(hls)
    readme += hls.page
    lines += hls.lines
    (out / "project.json").write_text(text.dumps(told, indent=2) + "\n")
    (out / "README.md").write_text(readme)
    if json:
        tell_json({"out": str(out), **told})
        return 0
    for line in lines:
        say(line)
    return 0


@command(firmware, "check")
def check(
    version: Version,
    store: Store,
    device: Device = "xcvu13p",
    design: Design = "constant",
    links: Links = 18,
    histogram: Histogram = "registers",
    vectors: Annotated[
        int, typer.Option("--vectors", metavar="N", min=1, help="Vectors for each network.")
    ] = LEAST,
    events: Annotated[
        int,
        typer.Option("--events", metavar="N", min=0, help="Events for the chain; 0: leave it out."),
    ] = EVENTS,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="auto, cxxrtl or verilator.")
    ] = "auto",
    hls4ml: Annotated[
        bool, typer.Option("--hls4ml", help="Also run the C simulation of hls4ml projects.")
    ] = False,
    seed: Seed = 1,
    json: Json = False,
) -> int:
    """Simulate a version's Verilog and compare, bit for bit.

    Vectors from all over the inputs' formats go through the RTL of each network, the integer model
    and the fake-quantised network; then events, half simulated and half drawn, through the whole
    chain. Any difference is named by block, vector and bit; exit code 1 then.

    \b
    Example:
      stillfit firmware check 3fa81b --store runs/demo/registry
      stillfit firmware check 3fa81b --store runs/demo/registry --events 2000
    """
    import dataclasses

    from stillfit.apps.firmware.hls import check_hls_project
    from stillfit.apps.screen import complain, say, tell_json
    from stillfit.firmware.checking import check as simulated
    from stillfit.firmware.simulation import ENGINES
    from stillfit.firmware.synthesis import find_yosys

    chosen = next((one for one in ENGINES if one == engine), None)
    if chosen is None:
        raise ConfigError(f"--engine is one of {', '.join(ENGINES)}, got {engine!r}")
    wanted = Wanted(design=design, device=device, links=links, histogram=histogram, seed=seed)
    stored = stored_network(store, version)
    find_yosys(complain)  # says on standard error that the first start takes long
    networks: dict[str, Equality] = {}
    chain: dict[str, Equality] = {}
    hls: dict[str, Equality] = {}

    def tell(block: str, answer: Equality, what: str) -> None:
        first = f"; first: {answer.first}" if answer.first else ""
        if not json:
            say(
                f"{block}: {answer.wrong} of {answer.vectors} {what} differ ({answer.against})"
                + first
            )

    with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
        folder = Path(place)
        project = write_project(stored, folder, wanted)
        for one in project.networks:
            rtl = one.rtl
            answer = simulated(
                rtl, one.recorded(vectors, seed), folder / f"{rtl.name}_sim", engine=chosen
            )
            networks[rtl.name] = answer
            tell(rtl.traced.name, answer, "vectors")
            if hls4ml:
                hls[rtl.name] = check_hls_project(project, one, vectors, folder)
                tell(f"{rtl.traced.name}, hls4ml", hls[rtl.name], "vectors")
        if project.chain is not None and events:
            chain = _chain(project, folder, events, chosen)
            for block, answer in chain.items():
                what = "tracks" if "flag" in block else "events"
                tell(f"chain, {block}", answer, what)
    wrong = sum(answer.wrong for part in (networks, chain, hls) for answer in part.values())
    if json:
        parts = {
            name: {block: dataclasses.asdict(answer) for block, answer in answers.items()}
            for name, answers in (("networks", networks), ("chain", chain), ("hls4ml", hls))
        }
        tell_json({"version": stored.version, "engine": engine, "wrong": wrong, **parts})
    return NO if wrong else 0


def _chain(project: Project, folder: Path, events: int, engine: Engine) -> dict[str, Equality]:
    from stillfit.l1t.chain_check import check_chain
    from stillfit.l1t.fixed_chain import vertex_chain

    assert project.chain is not None
    built = project.chain.simulator(folder / "chain_sim", engine=engine, level=0)
    chain = vertex_chain(project.stored.model)
    return check_chain(project.chain, built, project.chain_vectors(events), chain)


def _readme(version: str, project: Project) -> str:
    rows = "".join(f"- `{one.rtl.name}/`: {one.rtl.traced.name}\n" for one in project.networks)
    return (
        f"# Firmware of version {version}\n\n{rows}\n"
        "Each folder is a block with a README, a test bench and a report of its own. Module names "
        "differ, so\nall can be read together; the files in `static/` are the same in each.\n"
    )
