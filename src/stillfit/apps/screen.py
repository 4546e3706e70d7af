"""Text for the terminal. Data are shown as they are: never as markup, never as control codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 10_000  # columns where there is no terminal: a pipe gets whole lines


def safe(words: str) -> str:
    """Words without control characters, with which a reason could rewrite the screen."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)


def say(words: str = "") -> None:
    """A line on standard output."""
    sys.stdout.write(f"{safe(words)}\n")


def complain(words: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{safe(words)}\n")


def tell_json(value: Any) -> None:
    """JSON on standard output, for programs: ASCII on any terminal, and no NaN."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, last_wraps: bool = False
) -> None:
    """Columns as wide as their content. `last_wraps`: only the last one (reasons) may wrap."""
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if not terminal:
        console = Console(
            file=sys.stdout, width=WIDE, markup=False, highlight=False, emoji=False, no_color=True
        )
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for place, name in enumerate(head):
        wraps = last_wraps and place == len(head) - 1
        table.add_column(Text(name), no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    console.print(table)


def facts(table: Mapping[str, str]) -> None:
    """Names and values, one a line."""
    wide = max(map(len, table), default=0)
    for name, value in table.items():
        say(f"{name:<{wide}}  {value}")
