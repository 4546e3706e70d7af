"""Markup that cannot be broken by data: every text is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

Attribute: TypeAlias = str | float | int | None
_VOID = {"input", "meta", "br", "col", "hr"}


class Markup(str):
    """Text that is HTML or SVG already. Made by the functions here alone."""

    __slots__ = ()


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Parts one after the other; what is not markup is escaped."""
    written = (part if isinstance(part, Markup) else escape(part) for part in parts)
    return Markup(escape(between).join(written))


def attributes(named: dict[str, Attribute]) -> str:
    """Attributes with a space before each.

    A trailing underscore is dropped and others become hyphens (`class_`, `stroke_width`); None
    leaves the attribute out; floats get two decimals, a hundredth of a pixel.
    """
    written = []
    for key, value in named.items():
        if value is None:
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        written.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return "".join(written)


def tag(name: str, /, *inside: str, **named: Attribute) -> Markup:
    """An HTML element around `inside`, which is escaped where it is no markup."""
    start = f"<{name}{attributes(named)}>"
    return Markup(start if name in _VOID else f"{start}{join(inside)}</{name}>")
