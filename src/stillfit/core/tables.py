"""Strict tables: a mapping from a TOML file becomes a frozen dataclass, or a clear error.

The only room that knows pydantic, which checks types; unknown names get "did you mean".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from stillfit.core.errors import ConfigError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for a near miss, else the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are: {', '.join(names)}"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; `ConfigError` names the file and the line."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass `cls` from `table`: no unknown names, no conversions of type.

    Whole numbers are taken for floats and lists for tuples, as TOML has no tuples. Nested
    dataclasses are built from nested tables. `where` names the table in error texts.
    """
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise ConfigError(f"{where} has no knob {name!r}{did_you_mean(name, known)}")
    required = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in table]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}, which {cls.__name__} needs")
    try:
        # Strict JSON mode takes lists for tuples and whole numbers for floats, as TOML needs, but
        # never a string for a number, which lax mode would.
        return _adapter(cls).validate_json(json.dumps(dict(table), default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "value"
        raise ConfigError(
            f"{where}: {at} = {first.get('input')!r} is wrong: {first['msg']}"
        ) from None


def _adapter(cls: type[T]) -> TypeAdapter[T]:
    if "__pydantic_config__" not in cls.__dict__:
        cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return TypeAdapter(cls)
