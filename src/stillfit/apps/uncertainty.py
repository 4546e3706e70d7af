"""`stillfit uncertainty`: the group of commands, and the one about public tables."""

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
    for verdict in study.verdicts(lines):
        say(study.sentence(verdict))
    say(f"rows: {out / study.PARQUET}")
    return 0
