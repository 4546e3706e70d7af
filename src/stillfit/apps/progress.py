"""How far a long command has got: a bar on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO, TypeAlias

Advance: TypeAlias = Callable[[int], None]


class Progress(Protocol):
    """`with progress("training", 800) as advance: ... advance(1)`; `total` in steps, 0: unknown."""

    def __call__(self, title: str, total: int) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(title: str, total: int) -> Iterator[Advance]:
    """For tests and for use as a library."""
    yield lambda steps: None


def to_terminal(stream: TextIO | None = None) -> Progress:
    """Bars if the stream (standard error) is a terminal, else lines."""
    out = stream if stream is not None else sys.stderr
    return bars(out) if out.isatty() else lines(out)


def lines(out: TextIO) -> Progress:
    """A line at the start, at each further tenth, and at the end: for logs.

    Where the total is unknown: a line whenever ten times as much is done as at the last.
    """

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Advance]:
        done, told = 0, 0
        print(f"{title}: begins", file=out, flush=True)

        def advance(steps: int) -> None:
            nonlocal done, told
            done += steps
            reached = 10 * done // total if total else len(str(done)) - 1
            if reached <= told:
                return
            told = reached
            share = f"{10 * reached} % ({done:,} of {total:,})" if total else f"{done:,} so far"
            print(f"{title}: {share}", file=out, flush=True)

        yield advance
        if not total or told < 10:
            print(f"{title}: done ({done:,})", file=out, flush=True)

    return progress


def bars(out: TextIO) -> Progress:
    """A bar with the time that is left, which goes away when it is done."""

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        count = TextColumn("{task.completed:,.0f}" + (f" of {total:,}" if total else ""))
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
        with Bars(*columns, console=Console(file=out), transient=True) as shown:
            task = shown.add_task(escape(title), total=total or None)
            yield lambda steps: shown.advance(task, steps)

    return progress
