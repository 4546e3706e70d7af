"""`stillfit uncertainty`: how sure is it? Methods compared, and put to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from stillfit.apps.command import Json, command

uncertainty = typer.Typer(
    name="uncertainty",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="How sure is it: methods compared.",
)


@uncertainty.callback()
def _uncertainty() -> None:
    """How sure is it: methods compared."""


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def names(text: str | None) -> tuple[str, ...]:
    """ "A,B" as names."""
    return tuple(part for name in (text or "").split(",") if (part := name.strip()))


@command(uncertainty, "uci")
def uci(
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="The folder above bostonHousing, concrete, .."),
    ],
    sets: Annotated[
        str | None,
        typer.Option(
            "--sets", metavar="A,B,..", help="Sets, such as boston,yacht; all by default."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B,..", help="Methods by name; all by default."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where rows and tables go.")
    ] = Path("runs/uci"),
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="Processes at a time; one per core by default."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of everything random.")
    ] = 1,
    json: Json = False,
) -> int:
    """The UCI regression benchmark on its fixed splits.

    One hidden layer of 50 units (100 for the large sets), standardised on the training part.
    Everything that is chosen is chosen inside the training part of each split. Mean test
    log-likelihood and RMSE with standard errors over the splits, beside the published numbers of
    probabilistic backpropagation, MC dropout and deep ensembles. Writes uci.parquet (a row per
    set, method and split) and uci.txt. Started again on the same folder, it goes on where it was
    interrupted.

    \b
    Example:
      stillfit uncertainty uci --data data/uci --out runs/uci
      stillfit uncertainty uci --data data/uci --sets yacht --methods deep-ensemble,laplace
    """
    import torch

    from stillfit.apps.progress import to_terminal
    from stillfit.apps.screen import say, show_table, tell_json
    from stillfit.apps.summary import write_text
    from stillfit.studies import uci as study

    torch.set_num_threads(1)  # see threads in docs/design.md
    rows = study.run(
        data,
        out,
        sets=names(sets),
        methods_named=names(methods),
        recipe=study.Recipe(seed=seed),
        workers=workers or cores(),
        progress=to_terminal(),
    )
    lines = study.summarise(rows)
    write_text(out / "uci.txt", study.as_text(lines) + "\n")
    if json:
        tell_json(study.as_json(lines))
        return 0
    for title, head, body in study.as_tables(lines):
        say(title)
        show_table(head, body)
        say()
    for told in study.sentences(lines):
        say(told)
    say(f"rows: {out / study.PARQUET}")
    return 0


@command(uncertainty, "shift")
def shift(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where tables and report go.")
    ] = Path("runs/shift"),
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B,..", help="Methods; all by default.")
    ] = None,
    shifts: Annotated[
        str | None, typer.Option("--shifts", metavar="A,B,..", help="Shifts; all by default.")
    ] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="NAME", help="e2e or adaptive.")
    ] = "e2e",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="1,2,..", help="Seeds of events and training.")
    ] = "1",
    training: Annotated[
        int, typer.Option("--training", metavar="N", min=1, help="Training events per seed.")
    ] = 16_000,
    test: Annotated[
        int, typer.Option("--test", metavar="N", min=50, help="Test events per condition.")
    ] = 4000,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Training batches of 250 events.")
    ] = 500,
    uses: Annotated[
        int,
        typer.Option(
            "--uses", metavar="N", min=0, help="Events for windows and regions; 0 for none."
        ),
    ] = 20_000,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="Processes at a time; one per core by default."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Every uncertainty method on the vertex network, against growing shift.

    Writes scores, curves and costs as Parquet, and a page with the pictures. Started again on the
    same folder with the same settings, it goes on where it was interrupted.

    \b
    Example:
      stillfit uncertainty shift --out runs/shift
      stillfit uncertainty shift --methods deep-ensemble,bayesian --shifts misaligned
    """
    from stillfit.apps.progress import to_terminal
    from stillfit.apps.screen import say, tell_json
    from stillfit.apps.shift import PAGE, shift_study, table
    from stillfit.studies.shift import ShiftStudy

    study = ShiftStudy(
        methods=names(methods),
        shifts=names(shifts),
        network=network,
        seeds=_numbers(seeds),
        training=training,
        test=test,
        uses=uses,
        steps=steps,
    )
    found = shift_study(study, out, workers=workers or cores(), progress=to_terminal())
    lines = table(found.scores, found.costs)
    if json:
        tell_json({"report": str(out / PAGE), "methods": lines})
        return 0
    say(
        f"{'method':18s} {'efficiency':>15s} {'CRPS (cm)':>17s} {'90 % hold':>15s} {'events/s':>9s}"
    )
    for line in lines:
        say(
            f"{line['method']:18s} {line['efficiency']:6.3f} +- {line['efficiency_err']:5.3f} "
            f"{line['crps']:7.4f} +- {line['crps_err']:6.4f} "
            f"{line['coverage_90']:6.3f} +- {line['coverage_90_err']:5.3f} "
            f"{line['events_per_second']:9,.0f}"
        )
    say(f"report: {out / PAGE}")
    return 0


@command(uncertainty, "flag")
def flag(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the rows go.")] = Path(
        "runs/flag"
    ),
    scenarios: Annotated[
        str | None, typer.Option("--scenarios", metavar="A,B,..", help="Scenarios; all by default.")
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="1,2,..", help="Seeds of events and training.")
    ] = "1,2,3",
    events: Annotated[
        int, typer.Option("--events", metavar="N", min=100, help="Events a fill.")
    ] = 1000,
    json: Json = False,
) -> int:
    """When does a retrain flag rise? Delays after every change, beside dummy detectors.

    CUSUM of the score, KS of its distribution and a conformal martingale on late labels, with
    thresholds for a stated rate of false alarms, against a detector that never fires, one that
    fires at every k-th event, and late labels. Writes flag.parquet.

    \b
    Example:
      stillfit uncertainty flag --seeds 1 --scenarios misaligned,resolution
    """
    import torch

    from stillfit.apps.progress import to_terminal
    from stillfit.apps.screen import say, tell_json
    from stillfit.studies import flag as study

    torch.set_num_threads(1)  # see threads in docs/design.md
    chosen, asked = _numbers(seeds), names(scenarios) or study.SCENARIOS
    with to_terminal()("changes", study.units(chosen, asked)) as advance:
        rows = study.run(out, seeds=chosen, scenarios=asked, events=events, progress=advance)
    told = study.table(rows)
    if json:
        tell_json(told)
        return 0
    say(f"{'detector':22s} {'false alarms':>12s} {'95 %':>15s} {'asked':>7s} {'events':>9s}")
    for line in told["false_alarms"]:
        span = f"[{line['low']:.1f}, {line['high']:.1f}]"
        allowed = "-" if line["asked"] is None else f"{line['asked']:.1f}"
        say(
            f"{line['detector']:22s} {line['alarms']:12d} {span:>15s} {allowed:>7s} "
            f"{line['events']:9,d}"
        )
    say()
    say(f"{'change':30s} {'detector':22s} {'found':>7s} {'delay (events)':>15s} {'before labels'}")
    for line in told["changes"]:
        delay = "beyond" if line["delay"] is None else f"{line['delay']:,.0f}"
        lead = "-" if line["earlier"] is None else f"{line['earlier']:,.0f}"
        found = f"{line['found']}/{line['runs']}"
        say(f"{line['label']:30s} {line['detector']:22s} {found:>7s} {delay:>15s} {lead:>14s}")
    say(f"rows: {out / 'flag.parquet'}")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    """ "1,2" as numbers."""
    from stillfit.core.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers such as 1,2,3, got {text!r}") from None
