"""Plain figures of studies: curves with errors, points with names, bars; all with titles and units.

The season's report has pictures of its own; these are for tables of rows that many methods share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillfit.apps.report import svg
from stillfit.apps.report.charts import COLOURS, chart
from stillfit.apps.report.markup import Markup, join, tag

WIDTH, HEIGHT = 380.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 10.0, 10.0, 44.0


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its words with the unit, its curve, and its range unless from the data.

    Beyond a given range points are drawn at its edge.
    """

    label: str
    curve: svg.Curve = "linear"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one name, `errors` (one standard error of y) where they are known.

    `place`: which colour and symbol, so that a name looks the same in every figure of a page.
    `named`: the name is written at the last point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    place: int
    errors: Sequence[float] = ()
    joined: bool = True
    named: bool = False


@dataclass(frozen=True)
class Rule:
    """A dashed line to compare with: at height `y`, or the diagonal (None)."""

    y: float | None
    words: str = ""


def colour(place: int) -> str:
    """CSS class of a place."""
    return f"c{place % COLOURS}"


def shape(place: int) -> str:
    """Symbol of a place: with eight colours and other symbols in the second round."""
    return svg.SHAPES[(place + place // COLOURS) % len(svg.SHAPES)]


def key(place: int) -> Markup:
    """Line and symbol of a place for a legend."""
    return svg.element(
        "svg",
        svg.line(0, 6, 26, 6, class_=f"series {colour(place)}"),
        svg.symbol(shape(place), 13, 6, 4.2, class_=f"dot {colour(place)}"),
        class_="chart swatch",
        width=26,
        height=12,
        viewBox="0 0 26 12",
        aria_hidden="true",
    )


def legend(names: Sequence[str]) -> Markup:
    """One legend for all figures in which place k is `names[k]`."""
    entries = [tag("span", key(place), " ", name) for place, name in enumerate(names)]
    return tag("p", *entries, class_="legend")


def figure(title: str, picture: Markup, note: str = "") -> Markup:
    """A picture under its title."""
    below = [tag("p", note, class_="note")] if note else []
    return tag("figure", tag("figcaption", title), picture, *below)


def plot(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    rules: Sequence[Rule] = (),
) -> Markup:
    """Curves or points in one frame; points that are not finite are left out.

    `title`: for screen readers.
    """
    drawn = [
        (s, [_finite(s, k) for k in range(len(s.points)) if _shown(s, k, x, y)]) for s in series
    ]
    xs = [point[0] for _, points in drawn for point in points]
    ys = [end for _, points in drawn for _, at, err in points for end in (at - err, at + err)]
    ys += [rule.y for rule in rules if rule.y is not None]
    if not xs:
        return tag("p", "there are no figures to show", class_="note")
    across = _scale(x, xs, LEFT, WIDTH - RIGHT)
    up = _scale(y, ys, HEIGHT - BOTTOM, TOP)
    parts = [*_frame(x, y, across, up)]
    for rule in rules:
        parts += _rule(rule, across, up)
    for one, points in drawn:
        parts += _curve(one, points, across, up)
    return chart(WIDTH, HEIGHT, title, *parts)


def _shown(one: Series, k: int, x: Axis, y: Axis) -> bool:
    """Finite, and positive where the axis is logarithmic."""
    pair = zip(one.points[k], (x, y), strict=True)
    return all(math.isfinite(v) and (axis.curve == "linear" or v > 0) for v, axis in pair)


def _finite(one: Series, k: int) -> tuple[float, float, float]:
    error = one.errors[k] if one.errors else 0.0
    return (*one.points[k], error if math.isfinite(error) else 0.0)


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> svg.Scale:
    if axis.curve == "log":
        positive = [value for value in values if value > 0]
        low = min(positive) / 1.2 if axis.low is None else axis.low
        high = max(positive) * 1.2 if axis.high is None else axis.high
        return svg.Scale(low, high, start, end, "log")
    lowest, highest = min(values), max(values)
    margin = 0.06 * (highest - lowest) or 0.5 * abs(highest) or 1.0
    low = lowest - margin if axis.low is None else axis.low
    high = highest + margin if axis.high is None else axis.high
    return svg.Scale(low, high, start, end, axis.curve)


def _inside(scale: svg.Scale, value: float) -> float:
    return scale(min(max(value, scale.low), scale.high))


def _frame(x: Axis, y: Axis, across: svg.Scale, up: svg.Scale) -> list[Markup]:
    parts = []
    for value in up.ticks(5):
        at = up(value)
        parts += [
            svg.line(LEFT, at, WIDTH - RIGHT, at, class_="grid"),
            svg.text(svg.short_number(value), LEFT - 6, at + 4, text_anchor="end"),
        ]
    for value in across.ticks(6):
        at = across(value)
        parts += [
            svg.line(at, TOP, at, HEIGHT - BOTTOM, class_="grid"),
            svg.text(svg.short_number(value), at, HEIGHT - BOTTOM + 16, text_anchor="middle"),
        ]
    middle, height = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    turned = f"translate(12 {height:.1f}) rotate(-90)"
    return [
        *parts,
        svg.text(x.label, middle, HEIGHT - 8, text_anchor="middle"),
        svg.text(y.label, 0, 0, transform=turned, text_anchor="middle"),
    ]


def _rule(rule: Rule, across: svg.Scale, up: svg.Scale) -> list[Markup]:
    if rule.y is None:
        low, high = max(across.low, up.low), min(across.high, up.high)
        ends = (across(low), up(low), across(high), up(high))
        return [svg.line(*ends, class_="diagonal")]
    at = up(rule.y)
    return [
        svg.line(LEFT, at, WIDTH - RIGHT, at, class_="diagonal"),
        svg.text(rule.words, WIDTH - RIGHT - 4, at - 4, class_="aside", text_anchor="end"),
    ]


def _curve(
    one: Series,
    points: Sequence[tuple[float, float, float]],
    across: svg.Scale,
    up: svg.Scale,
) -> list[Markup]:
    paint = colour(one.place)
    places = [(_inside(across, at), _inside(up, value)) for at, value, _ in points]
    parts = []
    if one.joined and len(places) > 1:
        parts.append(svg.polyline(places, class_=f"series {paint}"))
    for (px, py), (at, value, error) in zip(places, points, strict=True):
        if error > 0:
            ends = (_inside(up, value - error), _inside(up, value + error))
            parts.append(svg.line(px, ends[0], px, ends[1], class_=f"bar {paint}"))
        spread = f" ± {svg.short_number(error)}" if error > 0 else ""
        says = f"{one.name}: {svg.short_number(value)}{spread} at {svg.short_number(at)}"
        size = 4.4 if not one.joined else 3.2
        parts.append(
            svg.symbol(shape(one.place), px, py, size, svg.title(says), class_=f"dot {paint}")
        )
    if one.named and places:
        px, py = places[-1]
        left = px > (LEFT + WIDTH) / 2
        parts.append(
            svg.text(
                one.name,
                px - 7 if left else px + 7,
                py - 6,
                text_anchor="end" if left else "start",
                class_="aside",
            )
        )
    return parts


def document(title: str, facts: str, *sections: str, sheet: str) -> str:
    """A whole page of its own: no script, no other file, nothing loaded."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: stillfit"),
        tag("style", Markup(sheet)),
    )
    body = tag("body", tag("h1", title), tag("p", facts, class_="facts"), join(sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Rows of cells; the first cell names the row, the others are figures."""
    top = tag("thead", tag("tr", *[tag("th", cell, scope="col") for cell in head]))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *[tag("td", cell, class_="number") for cell in row[1:]],
        )
        for row in rows
    ]
    return tag("div", tag("table", top, tag("tbody", *body)), class_="scroll", tabindex="0")
