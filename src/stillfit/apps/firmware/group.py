"""`stillfit firmware`: stored versions as circuits and C."""

from __future__ import annotations

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
