"""`stillfit firmware footprint`: what a stored version needs on a chip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stillfit.apps.command import NO, Json, Store, command
from stillfit.apps.firmware.group import Device, Version, firmware
from stillfit.apps.firmware.version import require_fixed, stored_network
from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from stillfit.core.values import Footprint


@command(firmware, "footprint")
def footprint(
    version: Version,
    store: Store,
    device: Device = "xcvu13p",
    design: Annotated[
        str,
        typer.Option("--design", metavar="NAME", help="constant or reloadable weights."),
    ] = "constant",
    links: Annotated[
        int, typer.Option("--links", metavar="N", min=1, help="Track streams side by side.")
    ] = 18,
    histogram: Annotated[
        str, typer.Option("--histogram", metavar="NAME", help="registers or memory.")
    ] = "registers",
    synthesise: Annotated[
        bool,
        typer.Option(
            "--synthesise", help="Let Yosys count the networks; a minute or two a version."
        ),
    ] = False,
    share: Annotated[
        float,
        typer.Option("--share", metavar="X", help="Share of the device that it may take."),
    ] = 0.5,
    json: Json = False,
) -> int:
    """What a version needs on a chip, part by part.

    The whole vertex chain of a fixed-point E2E version: traced networks, and an estimate of what
    lies between them. Exit code 1 if it takes more than its share of the device.

    \b
    Example:
      stillfit firmware footprint 3fa81b --store runs/demo/registry
      stillfit firmware footprint 3fa81b --store runs/demo/registry --device xczu9eg --synthesise
    """
    import dataclasses

    import numpy as np

    from stillfit.apps.screen import say, show_table, tell_json
    from stillfit.decisions.chip import Fits
    from stillfit.decisions.gates import Paired, Trial
    from stillfit.firmware.tracing import DESIGNS
    from stillfit.l1t.chip import HISTOGRAMS, VertexChip

    if design not in DESIGNS or histogram not in HISTOGRAMS:
        raise ConfigError(
            f"--design is one of {', '.join(DESIGNS)} and --histogram one of "
            f"{', '.join(HISTOGRAMS)}, got {design!r} and {histogram!r}"
        )
    chip = VertexChip(
        device=device,
        links=links,
        design=design,
        histogram=histogram,
        yosys=synthesise,
    )
    gate = Fits(device=chip.chip.device, share=share)
    if synthesise:
        from stillfit.apps.screen import complain
        from stillfit.firmware.synthesis import find_yosys

        find_yosys(complain)  # says on standard error that the first start takes long
    stored = stored_network(store, version)
    require_fixed(stored)
    size = chip.footprint(stored.model)
    nothing = Paired(candidate=np.zeros(0), incumbent=np.zeros(0))  # no events are judged here
    verdict = gate.judge(Trial(new=nothing, footprint=size))
    if json:
        told = {"version": stored.version, "device": device, "fits": verdict.accepted}
        tell_json({**told, "because": verdict.because, "footprint": dataclasses.asdict(size)})
        return 0 if verdict.accepted else NO
    head = ["part", "how", "copies", "LUT", "FF", "DSP", "BRAM", "cycles", "note"]
    show_table(head, _rows(size), last_wraps=True)
    say(f"{size.method}; {', '.join(f'{name} {v}' for name, v in size.tools.items())}")
    say(
        f"answer after {size.latency_cycles} cycles ({size.latency_ns} ns), an event every "
        f"{size.initiation_interval} cycles, at {chip.chip.clock_mhz:.0f} MHz"
    )
    say(verdict.because)
    return 0 if verdict.accepted else NO


def _rows(size: Footprint) -> list[list[str]]:
    names = ("lut", "ff", "dsp", "bram")
    rows = []
    for part, told in size.parts.items():
        figures = [f"{float(told[name]):,.0f}" for name in names[:3]]
        figures.append(f"{float(told['bram']):g}")
        rows.append(
            [part, str(told["how"]), str(told["copies"]), *figures, str(told["cycles"]),
             str(told["note"])]
        )  # fmt: skip
    whole = [f"{float(getattr(size, name) or 0):,.0f}" for name in names[:3]]
    rows.append(["all", "", "", *whole, f"{size.bram:g}", str(size.latency_cycles), ""])
    return rows
