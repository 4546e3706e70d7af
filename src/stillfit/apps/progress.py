"""How far a long command has got: a bar on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO, TypeAlias

Advance: TypeAlias = Callable[[int], None]


class Progress(Protocol):
    """`with progress("training", 800) as advance: ... advance(1)`; `total` in steps."""

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
    """A line at the start, at each further tenth, and none that repeats: for logs."""

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Advance]:
        done = told = 0
        print(f"{title}: begins", file=out, flush=True)

        def advance(steps: int) -> None:
            nonlocal done, told
            done += steps
            tenth = 10 * done // max(total, 1)
            if tenth > told:
                told = tenth
                print(f"{title}: {10 * tenth} % ({done} of {total})", file=out, flush=True)

        yield advance
        if told < 10:
            print(f"{title}: done ({done} of {total})", file=out, flush=True)

    return progress


def bars(out: TextIO) -> Progress:
    """A bar with the time that is left, which goes away when it is done."""

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress as Bars

        with Bars(console=Console(file=out), transient=True) as shown:
            task = shown.add_task(escape(title), total=total)
            yield lambda steps: shown.advance(task, steps)

    return progress
