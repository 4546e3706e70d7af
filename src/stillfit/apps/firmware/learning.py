"""`stillfit firmware learner`: a version that learns on, as a circuit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from stillfit.apps.command import NO, Json, Store, command
from stillfit.apps.firmware.group import Device, Version, firmware

STEPS = 2000  # that are simulated by default


@command(firmware, "learner")
def learner(
    version: Version,
    store: Store,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the project goes.")],
    run: Annotated[Path, typer.Option("--run", metavar="RUN.toml", help="The run file.")],
    updater: Annotated[
        str, typer.Option("--updater", metavar="NAME", help="Its embedded updater that learns.")
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="WORD", help="Of the Verilog module.")
    ] = "learner",
    device: Device = "xcvu13p",
    steps: Annotated[
        int,
        typer.Option("--steps", metavar="N", min=0, help="Learning steps to simulate; 0: none."),
    ] = STEPS,
    synthesise: Annotated[
        bool, typer.Option("--synthesise", help="Let Yosys count it; half a minute.")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="auto, cxxrtl or verilator.")
    ] = "auto",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the examples.")] = 1,
    json: Json = False,
) -> int:
    """A version that learns on, as Verilog.

    One circuit that predicts and learns: SGD, LMS or recursive least squares in fixed point with
    one multiplier, going on from the state that is stored with the version. It is simulated over
    drawn examples and compared with the kernels after every step: answers, weights and all other
    state. Any difference is named by step, place and bit; exit code 1 then.

    \b
    Example:
      stillfit firmware learner 3fa81b --store r/registry --out d --run t.toml --updater lms
    """
    import dataclasses

    from stillfit.apps.firmware.learners import going_on
    from stillfit.apps.firmware.rtl import circuit, drawn, trajectory
    from stillfit.apps.firmware.version import stored_network
    from stillfit.apps.screen import complain, say, tell_json
    from stillfit.core.errors import ConfigError
    from stillfit.firmware.devices import device as chip_of
    from stillfit.firmware.learning import check_learner, write_learner
    from stillfit.firmware.learning.project import RECORDED
    from stillfit.firmware.simulation import ENGINES
    from stillfit.firmware.synthesis import find_yosys

    chosen = next((one for one in ENGINES if one == engine), None)
    if chosen is None:
        raise ConfigError(f"--engine is one of {', '.join(ENGINES)}, got {engine!r}")
    stored, chip = stored_network(store, version, run), chip_of(device)
    learns, begun, plan = going_on(stored, run, updater)
    design = circuit(learns, stored.model, begun, plan, name)
    find_yosys(complain)  # says on standard error that the first start takes long
    x, t = drawn(learns, begun, plan, max(steps, RECORDED), seed)
    told = trajectory(begun, plan, x, t, design.layout.ends)
    size = design.footprint(chip) if synthesise else None
    report = write_learner(design, told, out, chip, synthesised=size)
    report["version"] = stored.version
    wrong = 0
    lines = [
        f"{out / name}.v: {design.cycles.forward} clocks a prediction, {design.cycles.longest} "
        f"with its learning step ({report['update_us']} us)"
    ]
    if size is not None:
        lines.append(
            f"{size.lut:,.0f} LUT, {size.ff:,.0f} FF, {size.dsp:g} DSP, {size.bram:g} BRAM by Yosys"
        )
    if steps:
        with tempfile.TemporaryDirectory(prefix="stillfit-") as place:
            answer = check_learner(design, told.first(steps), Path(place), engine=chosen)
        wrong = answer.wrong
        report["check"] = dataclasses.asdict(answer)
        first = f"; first: {answer.first}" if answer.first else ""
        lines.append(f"{wrong} of {answer.vectors} steps differ ({answer.against}){first}")
    if json:
        tell_json({"out": str(out), **report})
    else:
        for line in lines:
            say(line)
    return NO if wrong else 0
