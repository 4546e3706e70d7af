"""Markup that cannot be broken by data: every text is escaped unless it is markup already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import TypeAlias

Attribute: TypeAlias = str | float | int | None
_VOID = {"input", "meta", "br", "col", "hr"}
# What XML 1.0 (section 2.2) forbids even when it is escaped: control characters, lone surrogates.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML or SVG already. Made by the functions here alone."""

    __slots__ = ()


def escaped(words: str) -> Markup:
    """Words as text; characters that no page may hold become the replacement character."""
    return Markup(escape(_FORBIDDEN.sub("\ufffd", words)))


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Parts one after the other; what is not markup is escaped."""
    written = (part if isinstance(part, Markup) else escaped(part) for part in parts)
    return Markup(escaped(between).join(written))


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
        written.append(f' {key.rstrip("_").replace("_", "-")}="{escaped(text)}"')
    return "".join(written)


def tag(name: str, /, *inside: str, **named: Attribute) -> Markup:
    """An HTML element around `inside`, which is escaped where it is no markup."""
    start = f"<{name}{attributes(named)}>"
    return Markup(start if name in _VOID else f"{start}{join(inside)}</{name}>")
