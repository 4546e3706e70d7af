"""`docs/cli.md`, made from the commands themselves: `python -m stillfit.apps.cli_docs docs/cli.md`.

A test makes it anew and compares, so the page cannot fall behind.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from stillfit.apps.cli import app

_HEAD = """# Commands

Made by `python -m stillfit.apps.cli_docs docs/cli.md`; do not edit by hand.

Every command takes `--help`. With `--json` it prints JSON on standard output and nothing else
there; progress and errors go to standard error. Every time is in seconds of the stream, which is
the only clock there is. A VERSION is an id of 64 hexadecimal digits, or its first ones (at least
4) where they are unique.

| exit code | means |
|---|---|
| 0 | done |
| 1 | the loop or a check says no: `verify` found damage, there is nothing to roll back to, a lane ended on hold, the registry is locked or the disk full |
| 2 | wrong use: an unknown option, a run file or a value that cannot be right |
| 70 | a fault in stillfit itself; the traceback is on standard error |
| 130 | interrupted; what was stored is whole, and the same command goes on from there |

An error is one line on standard error, `error: ...`; with `--json` it is
`{"error": text, "kind": name, "exit": code}` on standard output besides.
"""  # noqa: E501  a table's row is one line


def page() -> str:
    """The whole page as Markdown."""
    root = typer.main.get_command(app)
    parts = [_HEAD]
    for name, found in _leaves(root, "stillfit"):
        parts += [f"## `{name}`\n", f"{_prose(found.help or '')}\n"]
        rows = list(_rows(found))
        if rows:
            parts.append("\n".join(["| | | |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _leaves(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of `--help`."""
    commands = getattr(group, "commands", None)
    if commands is None:
        yield name, group
        return
    for part, found in commands.items():
        yield from _leaves(found, f"{name} {part}")


def _prose(help_text: str) -> str:
    """A command's help with its example as a block of code."""
    words, _, example = inspect.cleandoc(help_text).partition("\b\nExample:\n")
    text = words.strip()
    if example:
        lines = "\n".join(line.removeprefix("  ") for line in example.strip("\n").splitlines())
        text += f"\n\n```sh\n{lines.rstrip()}\n```"
    return text


def _rows(found: Any) -> Iterator[str]:
    for parameter in found.params:
        if parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        else:
            value = "" if parameter.is_flag else f" {parameter.metavar}"
            names = ", ".join(f"`{option}{value}`" for option in parameter.opts)
        yield f"| {names} | {getattr(parameter, 'help', None) or ''} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return f"default `{value}`" if isinstance(value, str | int | Path) and value else ""


def main() -> int:
    """Write the page to the file that is named, or to standard output."""
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
