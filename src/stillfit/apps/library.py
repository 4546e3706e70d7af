"""`stillfit l1t library`: the generator behind a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from stillfit.apps.progress import Advance, Progress
from stillfit.core.errors import ConfigError
from stillfit.l1t.library import SHIPPED, SHIPPED_SEED, generate_all


def make_library(
    out: Path, wanted: Sequence[str], seed: int | None, workers: int, progress: Progress
) -> tuple[Path, ...]:
    """Generate `wanted` ("ttbar=20000", ...; none: what is shipped) and return the sidecars."""
    interactions = dict(_process(text) for text in wanted) or dict(SHIPPED)
    with ExitStack() as bars:
        at: dict[str, tuple[Advance, int]] = {}

        def told(process: str, done: int, of: int) -> None:
            if process not in at:
                at[process] = (bars.enter_context(progress(process, of)), 0)
            advance, before = at[process]
            advance(done - before)
            at[process] = (advance, done)

        return generate_all(
            out,
            interactions=interactions,
            seed=SHIPPED_SEED if seed is None else seed,
            workers=workers,
            progress=told,
        )


def _process(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.strip().isdigit():
        raise ConfigError(
            f"--process {text} is wrong: write NAME=N with N interactions, such as ttbar=20000"
        )
    return name.strip(), int(number)
