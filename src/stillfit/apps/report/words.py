"""Figures, times and ids as text for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stillfit.apps.report.figures import Figure
from stillfit.apps.summary import Fill, Summary
from stillfit.core.clock import HOUR, MINUTE

MISSING = "–"


def decimals(figure: Figure) -> int:
    """Decimals that a figure deserves: one or two digits of its error, or three of its value.

    Source: Particle Data Group, Review of Particle Physics, introduction, section 5.3: two digits
    of an error that begins with 100 to 354, else one; 950 and more become 1000.
    """
    size = figure.error if figure.error else abs(figure.value) / 10
    if not size or not math.isfinite(size):
        return 3
    power = math.floor(math.log10(size))
    first = size / 10.0**power
    if figure.error and first >= 9.5:  # rounds to 1.0 of the next power
        power += 1
    digits = 1 if figure.error and 3.55 <= first < 9.5 else 2
    return min(6, max(0, digits - 1 - power))


def number(value: float | None, places: int = 3) -> str:
    """A number with a real minus sign; a dash where it is not known."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−").replace(",", "\u2009")


def with_error(figure: Figure | None, *, places: int | None = None, signed: bool = False) -> str:
    """`0.951 ± 0.003`; without the error where that is not known."""
    if figure is None:
        return MISSING
    digits = decimals(figure) if places is None else places
    text = number(figure.value, digits)
    if signed and figure.value > 0 and text.strip("0.\u2009"):
        text = f"+{text}"
    if figure.error is None:
        return text
    return f"{text} ± {number(figure.error, digits)}"


def percent(share: float) -> str:
    return f"{number(100 * share, 0)} %"


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 fill`, `24 fills`, `no fills`."""
    word = one if n == 1 else many or f"{one}s"
    return f"{'no' if n == 0 else number(n, 0)} {word}"


def size(n: int) -> str:
    """Bytes in powers of 1000, as disks are sold: `12.3 kB`."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{number(value, 0 if unit == 'B' or value >= 100 else 1)} {unit}"


def duration(seconds: float) -> str:
    """`2 h 10 min`, `35 min`, `4 s`, `3 d 2 h`."""
    if seconds < MINUTE:
        return f"{number(seconds, 0 if seconds >= 10 else 1)} s"
    minutes = round(seconds / MINUTE)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / HOUR)
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def unit_of(summary: Summary) -> str:
    """What the season is counted in."""
    return "fill" if summary.kind == "l1t" else "period"


def moment(time: float, fills: Sequence[Fill], word: str) -> str:
    """A time of the stream by the fill it lies in: `fill 7 + 2 h 10 min`, `after fill 7 + 1 h`."""
    before = [fill for fill in fills if fill.start <= time]
    if not before:
        return f"before {word} {fills[0].fill}" if fills else duration(time)
    last = max(before, key=lambda fill: fill.start)
    if time <= last.end:
        past = time - last.start
        return (
            f"{word} {last.fill} + {duration(past)}" if past > 0 else f"{word} {last.fill}, start"
        )
    return f"after {word} {last.fill} + {duration(time - last.end)}"


def short(version: str | None) -> str:
    """The first digits of a version's id, as the commands take it."""
    return MISSING if version is None else version[:8]


def listing(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
