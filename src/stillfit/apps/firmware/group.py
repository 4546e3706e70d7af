"""`stillfit firmware`: stored versions as circuits and C."""

from __future__ import annotations

from typing import Annotated

import typer

firmware = typer.Typer(
    name="firmware",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Stored versions as circuits and C.",
)


@firmware.callback()
def _firmware() -> None:
    """Stored versions as circuits and C."""


Version = Annotated[str, typer.Argument(metavar="VERSION", help="An id or its first digits.")]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="A named device, or a TOML file of one.")
]
