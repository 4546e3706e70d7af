"""`stillfit firmware c`: a stored version as C headers, with its learning step where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillfit.apps.command import Json, Store, command
from stillfit.apps.firmware.group import Version, firmware
from stillfit.apps.firmware.version import StoredNetwork, require_fixed, stored_network
from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from stillfit.firmware.c99 import Header


@command(firmware, "c")
def c(
    version: Version,
    store: Store,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the headers go.")],
    name: Annotated[
        str, typer.Option("--name", metavar="WORD", help="What all names in C begin with.")
    ] = "net",
    design: Annotated[
        str,
        typer.Option("--design", metavar="NAME", help="constant or reloadable weights."),
    ] = "constant",
    shape: Annotated[
        str | None,
        typer.Option("--shape", metavar="C,N", help="Channels and positions of one event."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN.toml", help="The run file, for the learning step."),
    ] = None,
    updater: Annotated[
        str | None,
        typer.Option("--updater", metavar="NAME", help="Its embedded updater that shall learn."),
    ] = None,
    compiler: Annotated[
        str, typer.Option("--compiler", metavar="GCC", help="Tells RAM and flash of its target.")
    ] = "gcc",
    json: Json = False,
) -> int:
    """A version as C99 headers.

    One header each, without dependencies or allocation: of a fixed-point network (of both networks
    of a vertex chain) inference; of a dense network with --run and --updater prediction and
    learning step, going on from the state that is stored with the version. RAM and flash are the
    compiler's figures; without one they are left out.

    \b
    Example:
      stillfit firmware c 3fa81b --store runs/demo/registry --out vertex-c
      stillfit firmware c 3fa81b --store runs/t/registry --out c --run t.toml --updater embedded-sgd
    """
    from stillfit.apps.screen import complain, say, show_table, tell_json
    from stillfit.core.errors import MissingExtraError
    from stillfit.firmware.c99 import measured

    if (run is None) != (updater is None):
        raise ConfigError("a learning step needs both --run (the run file) and --updater")
    stored = stored_network(store, version, run)
    if run is not None and updater is not None:
        headers = [learning(stored, run, updater, name)]
    else:
        headers = inference(stored, name, design, _shape(shape))
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for header in headers:
        place = out / header.file
        place.write_text(header.text, encoding="utf-8")
        row: dict[str, Any] = {"file": str(place), "arrays": header.ram_bytes}
        row["constants"] = header.constant_bytes
        try:
            size = measured(header, compiler)
        except MissingExtraError as error:
            complain(str(error))
        else:
            row |= {"ram": size.ram, "flash": size.flash, "target": size.target}
            row |= {"compiler": f"{size.compiler} {size.options}"}
        if header.image:
            image = out / f"{header.name}.weights.bin"
            image.write_bytes(header.image)
            row["image"] = str(image)
        rows.append(row)
    if json:
        tell_json({"version": stored.version, "headers": rows})
        return 0
    figures = [
        [row["file"], *(f"{row[k]:,}" if k in row else "-" for k in ("ram", "flash"))]
        for row in rows
    ]
    show_table(["header", "RAM, bytes", "flash, bytes"], figures)
    if "target" in rows[0]:
        say(f"as {rows[0]['compiler']} makes it for {rows[0]['target']}; the stack is not in it")
    return 0


def inference(
    stored: StoredNetwork, name: str, design: str, shape: tuple[int, ...] | None
) -> list[Header]:
    """Headers of a fixed-point version: one of the network, two of a vertex chain."""
    from stillfit.firmware.c99 import network_header
    from stillfit.firmware.c99.inference import DESIGNS
    from stillfit.l1t.fixed import FixedE2E
    from stillfit.l1t.fixed_chain import vertex_chain
    from stillfit.models.fixed import integer

    chosen = next((d for d in DESIGNS if d == design), None)
    if chosen is None:
        raise ConfigError(f"--design is one of {', '.join(DESIGNS)}, got {design!r}")
    require_fixed(stored)
    if isinstance(stored.network, FixedE2E):
        chain = vertex_chain(stored.network)
        parts = {f"{name}_weight": chain.weight, f"{name}_associate": chain.associate}
        return [network_header(part, label, design=chosen) for label, part in parts.items()]
    return [network_header(integer(stored.network), name, design=chosen, shape=shape)]


def learning(stored: StoredNetwork, run: Path, updater: str, name: str) -> Header:
    """The header of a version that learns on, as an embedded updater of a run file."""
    from stillfit.apps.firmware.learners import dense_in, described, going_on
    from stillfit.firmware.c99 import learner_header

    _, device, plan = going_on(stored, run, updater)
    return learner_header(described(device, plan, dense_in(stored.model)), name)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--shape is whole numbers such as 2,19, got {text!r}") from None
