"""Small pieces of SVG: elements with everything escaped, scales, ticks, symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from stillfit.apps.report.markup import Attribute, Markup, attributes, join

Curve: TypeAlias = Literal["linear", "log", "logit"]


def element(name: str, /, *inside: str, **named: Attribute) -> Markup:
    """One element of SVG around `inside`, which is escaped where it is no markup."""
    body = join(inside)
    start = f"<{name}{attributes(named)}"
    return Markup(f"{start}>{body}</{name}>" if body else f"{start}/>")


def text(words: str, x: float, y: float, **named: Attribute) -> Markup:
    return element("text", words, x=x, y=y, **named)


def title(words: str) -> Markup:
    """Shown when the pointer rests on the element, and read by screen readers."""
    return element("title", words)


def line(x1: float, y1: float, x2: float, y2: float, **named: Attribute) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **named)


def rect(x: float, y: float, w: float, h: float, *inside: str, **named: Attribute) -> Markup:
    return element("rect", *inside, x=x, y=y, width=w, height=h, **named)


def polyline(points: Sequence[tuple[float, float]], **named: Attribute) -> Markup:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), **named)


# Outlines in a box from -1 to 1: lanes are told apart by shape as well as by colour.
_SHAPES = {
    "circle": "M-1,0A1,1 0 1 0 1,0A1,1 0 1 0 -1,0Z",
    "square": "M-.85-.85H.85V.85H-.85Z",
    "up": "M0-1.1L1.05.8H-1.05Z",
    "diamond": "M0-1.2L1.2 0L0 1.2L-1.2 0Z",
    "down": "M0 1.1L1.05-.8H-1.05Z",
    "plus": "M-.38-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38Z",
    "hexagon": "M-1.1 0L-.55-.95H.55L1.1 0L.55.95H-.55Z",
    "bar": "M-1.2-.45H1.2V.45H-1.2Z",
}
SHAPES = tuple(_SHAPES)
# Marks of decisions: what happened reads from the shape alone.
_MARKS = {
    "switch": "M0-1.2L1.1.8H.4V1.2H-.4V.8H-1.1Z",
    "redeploy": "M0-1.3L1.3 0L0 1.3L-1.3 0Z",
    "refused": "M-1-.7L-.7-1L0-.3L.7-1L1-.7L.3 0L1 .7L.7 1L0 .3L-.7 1L-1 .7L-.3 0Z",
    "rollback": "M0 1.2L1.1-.8H.4V-1.2H-.4V-.8H-1.1Z",
    "hold": "M-.9-1H-.25V1H-.9ZM.25-1H.9V1H.25Z",
    "resume": "M-.8-1.1L1.1 0L-.8 1.1Z",
    "call": "M-.3-1.2H.3L.2.4H-.2ZM-.3.7H.3V1.25H-.3Z",
}
MARKS = tuple(_MARKS)
# The retrain flag, its foot at the middle.
_MARKS["flag"] = "M-.7-1.2L1.1-.55L-.4.1V1.2H-.7Z"


def symbol(shape: str, x: float, y: float, r: float, *inside: str, **named: Attribute) -> Markup:
    """A lane's point or a decision's mark of radius `r` pixels."""
    outline = _SHAPES.get(shape) or _MARKS[shape]
    move = f"translate({x:.1f} {y:.1f}) scale({r:.2f})"
    return element("path", *inside, d=outline, transform=move, **named)


@dataclass(frozen=True)
class Scale:
    """From data to pixels: `low` lies at pixel `start`, `high` at `end`.

    `curve`: "linear", "log" (equal factors are equally far), or "logit" (log of x / (1 - x): for
    shares, equal factors of what is missed or of what is caught are equally far near 1 and 0).
    """

    low: float
    high: float
    start: float
    end: float
    curve: Curve = "linear"

    def __call__(self, value: float) -> float:
        low, high = _bent(self.low, self.curve), _bent(self.high, self.curve)
        inside = value if self.curve == "linear" else min(max(value, self.low), self.high)
        share = (_bent(inside, self.curve) - low) / (high - low)
        return self.start + (self.end - self.start) * share

    def ticks(self, wish: int = 6, apart: float = 16.0) -> list[float]:
        """Round numbers on the scale, at least `apart` pixels from each other."""
        if self.curve == "linear":
            return ticks(self.low, self.high, wish)
        if self.curve == "log":
            return log_ticks(self.low, self.high)
        chosen: list[float] = []
        for value in _SHARES:
            at = self(value)
            far = all(abs(at - self(other)) >= apart for other in chosen)
            if self.low <= value <= self.high and far:
                chosen.append(value)
        return sorted(chosen)


# In the order in which they deserve a place on an axis.
_SHARES: tuple[float, ...] = (
    0.5,
    0.9,
    0.1,
    0.95,
    0.99,
    0.8,
    0.2,
    0.98,
    0.97,
    0.7,
    0.3,
    0.05,
    0.01,
    0.995,
    0.999,
)
_SHARES += (0.96, 0.94, 0.92, 0.85, 0.6, 0.4, 0.02, 0.002, 0.005, 0.001, 0.998, 0.985, 0.975)


def _bent(value: float, curve: Curve) -> float:
    if curve == "log":
        return math.log10(value)
    return math.log(value / (1 - value)) if curve == "logit" else value


def ticks(low: float, high: float, wish: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `wish` of them, steps of 1, 2 or 5."""
    raw = (high - low) / max(wish, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers of ten alone over more than three decades."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    factors = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    every = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in every if low * 0.999 <= value <= high * 1.001]


def short_number(value: float) -> str:
    """A tick's label: no needless zeros."""
    label = f"{value:.4g}"
    return label.replace("-", "−")
