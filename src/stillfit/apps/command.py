"""What all commands share: options, exit codes, and errors as one line on standard error."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from stillfit.core.errors import RegistryError, StillfitError

NO, MISUSE, FAULT, INTERRUPTED = 1, 2, 70, 130
Command: TypeAlias = Callable[..., int]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")
]
Store: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--store", metavar="DIR", help="The registry's folder, such as runs/demo/registry."
    ),
]
AnyLane: TypeAlias = Annotated[
    str | None, typer.Option("--lane", metavar="NAME", help="One lane; all of them by default.")
]
OneLane: TypeAlias = Annotated[
    str, typer.Option("--lane", metavar="NAME", help="The lane to change.")
]
Because: TypeAlias = Annotated[
    str,
    typer.Option("--because", metavar="TEXT", help="The reason, kept in the journal for ever."),
]
By: TypeAlias = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who orders it; your login name by default."),
]


def command(group: typer.Typer, name: str) -> Callable[[Command], Command]:
    """Register a function under a name; its result is the exit code.

    The one place where errors become a line on standard error and an exit code.
    """

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            as_json = bool(kwargs.get("json"))
            try:
                code = function(*args, **kwargs)
            except StillfitError as error:
                code = _fail(str(error), type(error).__name__, _code(error), as_json)
            except BrokenPipeError:
                raise
            except OSError as error:
                code = _fail(*_foreign(error), as_json)
            except KeyboardInterrupt:
                text = "interrupted; what was stored is whole, the same command goes on from there"
                code = _fail(text, "Interrupted", INTERRUPTED, as_json)
            raise typer.Exit(code)

        group.command(name)(run)
        return function

    return register


def _code(error: StillfitError) -> int:
    """Damage, a lock, an order that makes no sense now: the check says no. Else wrong use."""
    return NO if isinstance(error, RegistryError) else MISUSE


def _foreign(error: OSError) -> tuple[str, str, int]:
    where = f": {error.filename}" if error.filename else ""
    text = f"{error.strerror or error}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        text += "; nothing that was already stored is lost: see to the disk and start again"
        return text, type(error).__name__, NO
    return f"{text}; check the path and who may read and write it", type(error).__name__, MISUSE


def _fail(text: str, kind: str, code: int, as_json: bool) -> int:
    from stillfit.apps.screen import complain, tell_json

    complain(f"error: {text}")
    if as_json:
        tell_json({"error": text, "kind": kind, "exit": code})
    return code
