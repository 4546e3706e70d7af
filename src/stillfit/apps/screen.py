"""Text for the terminal. Data are shown as they are: never as markup, never as control codes."""

from __future__ import annotations

import json
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 10_000  # columns where there is no terminal: a pipe gets whole lines


def safe(words: str) -> str:
    """Words without control characters, with which a reason could rewrite the screen."""
    return "".join("\ufffd" if _controls(letter) else letter for letter in words)


def _controls(letter: str) -> bool:
    """Control, formatting (such as right-to-left override), surrogate, unassigned; line ends."""
    kind = unicodedata.category(letter)
    return kind[0] == "C" or kind in ("Zl", "Zp")


def say(words: str = "") -> None:
    """A line on standard output."""
    sys.stdout.write(f"{safe(words)}\n")


def say_paragraph(words: str) -> None:
    """A paragraph: on a terminal in lines that can be read, in a pipe as one."""
    for line in textwrap.wrap(safe(words), min(room(), 100)) if sys.stdout.isatty() else [words]:
        say(line)


def complain(words: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{safe(words)}\n")


def tell_json(value: Any) -> None:
    """JSON on standard output, for programs: ASCII on any terminal, and no NaN."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def room() -> int:
    """Columns of the terminal; many where there is none, as a pipe wants whole lines."""
    return Console(file=sys.stdout).width if sys.stdout.isatty() else WIDE


def width(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns that a table needs on a terminal, its headings wrapped."""
    columns = zip(*rows, strict=True) if rows else ([""] for _ in head)
    return sum(
        max(*map(len, cells), *map(len, _wrapped(name, cells).split("\n"))) + 2
        for name, cells in zip(head, columns, strict=True)
    )


def _wrapped(name: str, cells: Sequence[str]) -> str:
    """A heading in lines hardly longer than the column's cells."""
    return "\n".join(textwrap.wrap(name, max(8, *map(len, cells)), break_long_words=False) or [""])


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, last_wraps: bool = False
) -> None:
    """Columns as wide as their content. `last_wraps`: only the last one (reasons) may wrap."""
    terminal = sys.stdout.isatty()
    plain: dict[str, Any] = {} if terminal else {"width": WIDE, "no_color": True}
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, **plain)
    table = Table(
        box=box.SIMPLE_HEAD if terminal else None,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1 if terminal else 2, 0, 0),
    )
    columns = list(zip(*rows, strict=True)) if rows else [("",) for _ in head]
    for place, name in enumerate(head):
        wraps = last_wraps and place == len(head) - 1
        heading = _wrapped(name, columns[place]) if terminal and not wraps else name
        overflow: Literal["fold", "ellipsis"] = "fold" if wraps else "ellipsis"
        table.add_column(Text(safe_lines(heading)), no_wrap=not wraps, overflow=overflow)
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    console.print(table)


def safe_lines(words: str) -> str:
    return "\n".join(safe(line) for line in words.split("\n"))
