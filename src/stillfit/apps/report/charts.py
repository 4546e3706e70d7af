"""The report's pictures as SVG: uncertainty against error, and the parts charts share.

Colours are CSS classes (`charts.css`), so that light and dark come from one place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from stillfit.apps.report import svg
from stillfit.apps.report.markup import Markup
from stillfit.apps.report.words import number, unit_of
from stillfit.apps.summary import Calibration, Lane, Summary

COLOURS = 8


def lane_class(summary: Summary, name: str) -> str:
    """CSS class of a lane's colour: neutral for the baseline, else by its place."""
    if name == summary.baseline:
        return "c-base"
    others = [lane for lane in summary.lanes if lane != summary.baseline]
    return f"c{others.index(name) % COLOURS}"


def lane_shape(summary: Summary, name: str) -> str:
    """The symbol of a lane's points."""
    return svg.SHAPES[list(summary.lanes).index(name) % len(svg.SHAPES)]


def swatch(summary: Summary, name: str) -> Markup:
    """A lane's line and symbol for legends, 26 by 12 pixels."""
    colour = lane_class(summary, name)
    return svg.element(
        "svg",
        svg.line(0, 6, 26, 6, class_=f"series {colour}"),
        svg.symbol(lane_shape(summary, name), 13, 6, 4.2, class_=f"dot {colour}"),
        class_="chart swatch",
        width=26,
        height=12,
        viewBox="0 0 26 12",
        aria_hidden="true",
    )


def mark_swatch(kind: str, colour: str = "") -> Markup:
    return svg.element(
        "svg",
        svg.symbol(kind, 7, 7, 4.6, class_=f"mark mark-{kind} {colour}".strip()),
        class_="chart swatch",
        width=14,
        height=14,
        viewBox="0 0 14 14",
        aria_hidden="true",
    )


def chart(width: float, height: float, label: str, *inside: str) -> Markup:
    """The outer element: scales with the page; `label` is what a screen reader says."""
    return svg.element(
        "svg",
        *inside,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=label,
    )


class Bounds(NamedTuple):
    """A range that several pictures share."""

    low: float
    high: float
    curve: svg.Curve


def range_of(values: Sequence[float]) -> Bounds:
    """From 0, or logarithmic where the values span more than a factor of 6."""
    positive = [value for value in values if value > 0]
    low, high = min(positive), max(positive)
    if high / low > 6 and len(positive) == len(values):
        return Bounds(low / 1.25, high * 1.25, "log")
    return Bounds(0.0, high * 1.08, "linear")


def calibration_range(summary: Summary) -> Bounds | None:
    """One range for all lanes, so that their pictures compare; None if no lane states any."""
    values = [
        value
        for lane in summary.lanes.values()
        for row in lane.calibration
        for value in (row.stated, row.observed)
        if value is not None and math.isfinite(value) and value >= 0
    ]
    return range_of(values) if any(value > 0 for value in values) else None


def calibration_chart(summary: Summary, name: str, bounds: Bounds) -> Markup:
    """Observed error against stated uncertainty, one point a bin; an honest lane lies on the
    diagonal. The area of a point grows with its events."""
    low, high, curve = bounds
    width, height, left, right, top, bottom = 250.0, 232.0, 52.0, 8.0, 8.0, 42.0
    across = svg.Scale(low, high, left, width - right, curve)
    up = svg.Scale(low, high, height - bottom, top, curve)
    marks = up.ticks(4)
    unit = f" ({summary.uncertainty.unit})" if summary.uncertainty else ""
    parts = []
    for value in marks:
        parts += [
            svg.line(across(value), top, across(value), height - bottom, class_="grid"),
            svg.line(left, up(value), width - right, up(value), class_="grid"),
            svg.text(svg.short_number(value), left - 6, up(value) + 4, text_anchor="end"),
        ]
        label = svg.short_number(value)
        parts.append(svg.text(label, across(value), height - bottom + 16, text_anchor="middle"))
    middle = (left + width - right) / 2
    parts += [
        svg.line(across(low), up(low), across(high), up(high), class_="diagonal"),
        svg.text(f"stated uncertainty{unit}", middle, height - 8, text_anchor="middle"),
        _upright(f"observed error{unit}", 11, (top + height - bottom) / 2),
        svg.text("errs more than it says", left + 8, top + 15, class_="aside"),
        svg.text(
            "errs less", width - right - 6, height - bottom - 8, class_="aside", text_anchor="end"
        ),
    ]
    bins = [row for row in summary.lanes[name].calibration if _drawn(row, bounds)]
    most = max((row.n for row in bins), default=1)
    colour, shape = lane_class(summary, name), lane_shape(summary, name)
    parts.append(
        svg.polyline(
            [(across(r.stated), up(r.observed or 0)) for r in bins], class_=f"thin {colour}"
        )
    )
    for row in bins:
        says = (
            f"{number(row.n, 0)} events that stated {number(row.stated, 3)}{unit} "
            f"were off by {number(row.observed, 3)}{unit}"
        )
        radius = 2.0 + 3.5 * math.sqrt(row.n / most)
        at = (across(row.stated), up(row.observed or 0))
        parts.append(svg.symbol(shape, *at, radius, svg.title(says), class_=f"dot {colour}"))
    label = f"{summary.lanes[name].title}: observed error against stated uncertainty"
    return chart(width, height, label, *parts)


def _drawn(row: Calibration, bounds: Bounds) -> bool:
    return row.observed is not None and (
        bounds.curve == "linear" or min(row.stated, row.observed) > 0
    )


def _upright(words: str, x: float, y: float) -> Markup:
    return svg.text(
        words, 0, 0, transform=f"translate({x:.1f} {y:.1f}) rotate(-90)", text_anchor="middle"
    )


def stated_series(summary: Summary, lane: Lane) -> list[tuple[int, float, float]]:
    """(place of the fill, stated, observed) for the fills in which both are known."""
    if summary.uncertainty is None:
        return []
    places = {fill.fill: place for place, fill in enumerate(summary.fills)}
    series = []
    for row in lane.fills:
        stated = row.values.get(summary.uncertainty.name)
        observed = row.values.get(summary.uncertainty.against)
        if stated is not None and observed is not None:
            series.append((places[row.fill], stated, observed))
    return sorted(series)


def stated_chart(summary: Summary, name: str, bounds: Bounds) -> Markup:
    """Stated uncertainty (bars) and observed error (points), fill by fill."""
    assert summary.uncertainty is not None
    low, high, curve = bounds
    width, height, left, right, top, bottom = 350.0, 232.0, 52.0, 8.0, 8.0, 42.0
    step = (width - left - right) / len(summary.fills)
    up = svg.Scale(low, high, height - bottom, top, curve)
    parts = [
        part
        for value in up.ticks(4)
        for part in (
            svg.line(left, up(value), width - right, up(value), class_="grid"),
            svg.text(svg.short_number(value), left - 6, up(value) + 4, text_anchor="end"),
        )
    ]
    names = list(dict.fromkeys(fill.condition for fill in summary.fills))
    every = math.ceil(len(summary.fills) / 12)
    for place, fill in enumerate(summary.fills):
        x = left + place * step
        tint = f"tint t{names.index(fill.condition) % COLOURS}"
        parts.insert(0, svg.rect(x, top, step, height - bottom - top, class_=tint))
        if place % every == 0:
            label = str(fill.fill)
            parts.append(svg.text(label, x + step / 2, height - bottom + 16, text_anchor="middle"))
    series = stated_series(summary, summary.lanes[name])
    colour, shape, unit = lane_class(summary, name), lane_shape(summary, name), unit_of(summary)
    for place, stated, observed in series:
        x, fill = left + place * step, summary.fills[place]
        parts += [
            svg.line(x + step / 2, up(stated), x + step / 2, up(observed), class_=f"thin {colour}"),
            svg.line(x, up(stated), x + step, up(stated), class_=f"stated {colour}"),
        ]
        says = (
            f"{unit} {fill.fill} ({fill.condition}): stated {number(stated, 3)}, observed "
            f"{number(observed, 3)} {summary.uncertainty.unit}"
        )
        radius = min(4.2, max(1.5, step / 4))
        at = (x + step / 2, up(observed))
        parts.append(svg.symbol(shape, *at, radius, svg.title(says), class_=f"dot {colour}"))
    middle = (left + width - right) / 2
    parts += [
        svg.text(unit, middle, height - 8, text_anchor="middle"),
        _upright(f"uncertainty, error ({summary.uncertainty.unit})", 11, height / 2 - 18),
    ]
    label = f"{summary.lanes[name].title}: stated and observed error in each {unit}"
    return chart(width, height, label, *parts)


def stated_range(summary: Summary) -> Bounds | None:
    """One vertical range for all lanes."""
    values = [
        value
        for lane in summary.lanes.values()
        for _, *pair in stated_series(summary, lane)
        for value in pair
        if value >= 0
    ]
    return range_of(values) if any(value > 0 for value in values) else None
