"""The season as one picture: conditions as a band, performance per fill and lane, decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from stillfit.apps.report import svg
from stillfit.apps.report.charts import COLOURS, chart, lane_class, lane_shape, swatch
from stillfit.apps.report.figures import Figure, conditions
from stillfit.apps.report.markup import Markup
from stillfit.apps.report.words import duration, moment, number, short, unit_of, with_error
from stillfit.apps.summary import Decision, Metric, Score, Summary

WIDTH, LEFT, RIGHT = 1160.0, 112.0, 12.0
BAND, PLOT, ROW = 26.0, 340.0, 22.0
GAP = 0.28  # Share of a column that stands for the time between two fills.
MEANING = {
    "switch": "new version serves",
    "redeploy": "known version serves again",
    "refused": "candidate refused",
    "rollback": "rolled back",
    "hold": "hold: changes stopped",
    "resume": "resumed by a person",
    "call": "person called",
}
assert tuple(MEANING) == svg.MARKS


@dataclass(frozen=True)
class Frame:
    """Where things lie: columns of equal width, one a fill, its time from left to right.

    `depth`: height of the plot; below it one row of marks for each of `names`.
    """

    summary: Summary
    top: float
    depth: float
    names: tuple[str, ...]

    @property
    def column(self) -> float:
        return (WIDTH - LEFT - RIGHT) / max(len(self.summary.fills), 1)

    def left(self, place: int) -> float:
        return LEFT + place * self.column

    @property
    def open_width(self) -> float:
        """The part of a column that is the fill itself."""
        return self.column * (1 - GAP)

    def middle(self, place: int) -> float:
        return self.left(place) + self.open_width / 2

    def row(self, place: int) -> float:
        """Middle of a row of marks."""
        return self.rows + ROW * (place + 0.5)

    def at(self, time: float) -> float:
        """A time of the stream: inside a fill's part of the column, or in the gap after it."""
        fills = self.summary.fills
        for place, fill in enumerate(fills):
            if time < fill.start:
                return self.left(place)
            if time <= fill.end:
                share = (time - fill.start) / max(fill.end - fill.start, 1e-9)
                return self.left(place) + share * self.open_width
            follows = fills[place + 1].start if place + 1 < len(fills) else fill.end + 6 * 3600
            if time < follows:
                share = (time - fill.end) / max(follows - fill.end, 1e-9)
                return self.left(place) + self.column * (1 - GAP + share * GAP)
        return self.left(len(fills))

    @property
    def plot(self) -> float:
        """Top of the performance plot."""
        return self.top + BAND

    @property
    def rows(self) -> float:
        """Top of the rows of decisions."""
        return self.plot + self.depth + 14

    @property
    def bottom(self) -> float:
        return self.rows + ROW * len(self.names) + 4

    @property
    def height(self) -> float:
        return self.bottom + 40


def season_picture(
    summary: Summary, metric: Metric | None = None, *, legend: bool = True
) -> Markup:
    """The picture of one metric (default: the headline). Needs `charts.css` around it.

    `legend`: draw lanes and marks under the picture, for use outside the report.
    """
    metric = metric or summary.headline
    if not summary.fills or not summary.lanes:
        return chart(WIDTH, 40, "nothing to draw", svg.text("no fill has been scored yet", 20, 25))
    frame = Frame(summary, 4.0, PLOT, tuple(summary.lanes))
    parts = [
        *band(frame),
        *_plot(frame, metric),
        *_decisions(frame),
        *fill_axis(frame),
    ]
    height = frame.height
    if legend:
        block, extra = _legend(frame)
        parts += block
        height += extra
    label = f"{metric.title} of {', '.join(lane.title for lane in summary.lanes.values())}, by "
    return chart(WIDTH, height, label + unit_of(summary), *parts)


def band(frame: Frame) -> Iterator[Markup]:
    """Conditions: a tint behind everything, and names on top of it."""
    names = conditions(frame.summary)
    stretches = groupby(enumerate(frame.summary.fills), key=lambda pair: pair[1].condition)
    for condition, group in stretches:
        places = [place for place, _ in group]
        x, width = frame.left(places[0]), frame.column * len(places)
        tint = f"t{names.index(condition) % COLOURS}"
        yield svg.rect(x, frame.top, width, frame.bottom - frame.top, class_=f"tint {tint}")
        head = svg.title(f"condition: {condition}")
        yield svg.rect(x, frame.top, width, BAND - 2, head, class_=f"band {tint}")
        yield svg.line(x, frame.top, x, frame.bottom, class_="edge")
        label = _fitted(condition, names.index(condition) + 1, width)
        yield svg.text(
            label, x + width / 2, frame.top + 17, text_anchor="middle", class_="condition"
        )


def _fitted(words: str, key: int, width: float) -> str:
    """The words, shortened to the room there is, or the condition's number."""
    room = int((width - 6) / 6.9)
    if len(words) <= room:
        return words
    return f"{words[: room - 1]}…" if room >= 6 else str(key)


def _plot(frame: Frame, metric: Metric) -> Iterator[Markup]:
    summary = frame.summary
    top, bottom = frame.plot + 8, frame.plot + PLOT
    scores = [row for lane in summary.lanes.values() for row in lane.fills]
    values = [v for row in scores if (v := row.values.get(metric.name)) is not None]
    if not values:
        words = f"{metric.title} is not known for any {unit_of(summary)}"
        yield svg.text(words, LEFT + 20, top + 40)
        return
    scale = vertical(values, metric, top, bottom)
    for value in scale.ticks():
        y = scale(value)
        yield svg.line(LEFT, y, WIDTH - RIGHT, y, class_="grid")
        yield svg.text(svg.short_number(value), LEFT - 8, y + 4, text_anchor="end")
    unit = f" ({metric.unit})" if metric.unit else ""
    curve = "" if scale.curve == "linear" else f", {scale.curve} scale"
    yield svg.text(
        f"{metric.title}{unit}{curve}",
        0,
        0,
        transform=f"translate(16 {(top + bottom) / 2:.1f}) rotate(-90)",
        text_anchor="middle",
        class_="axis",
    )
    yield from _columns(frame)
    # The baseline lies at the back; the last lanes, which adapt, in front.
    order = sorted(summary.lanes, key=lambda name: name != summary.baseline)
    for name in order:
        yield svg.element(
            "g", *_series(frame, name, metric, scale), class_=f"lane lane-{_place(summary, name)}"
        )


def _place(summary: Summary, name: str) -> int:
    return list(summary.lanes).index(name)


def _columns(frame: Frame) -> Iterator[Markup]:
    """Invisible columns which say what the fill was when pointed at."""
    word = unit_of(frame.summary)
    for place, fill in enumerate(frame.summary.fills):
        says = f"{word} {fill.fill}: {fill.condition}, {duration(fill.end - fill.start)}"
        if fill.pileup is not None:
            says += f", pile-up {number(fill.pileup, 0)}"
        x = frame.left(place)
        yield svg.rect(x, frame.plot, frame.column, PLOT, svg.title(says), class_="hover")


def _series(frame: Frame, name: str, metric: Metric, scale: svg.Scale) -> Iterator[Markup]:
    summary = frame.summary
    colour, shape = lane_class(summary, name), lane_shape(summary, name)
    places = {fill.fill: place for place, fill in enumerate(summary.fills)}
    # Lanes are set side by side inside the column, so that their error bars do not cover another.
    lanes = len(summary.lanes)
    spread = min(frame.column * (1 - GAP) * 0.8, 7.0 * lanes)
    shift = spread * ((_place(summary, name) + 0.5) / lanes - 0.5)
    radius = min(4.4, max(1.3, frame.column / 9))
    faint = " faint" if frame.column < 8 else ""  # error bars of hundreds of periods make a wall
    rows = sorted(summary.lanes[name].fills, key=lambda row: places[row.fill])
    known = [row for row in rows if row.values.get(metric.name) is not None]
    points = [
        (frame.middle(places[row.fill]) + shift, scale(row.values[metric.name] or 0.0))
        for row in known
    ]
    yield svg.polyline(points, class_=f"series {colour}")
    for row, (x, y) in zip(known, points, strict=True):
        error = row.errors.get(metric.name)
        value = row.values[metric.name] or 0.0
        if error and math.isfinite(error):
            ends = (scale(value - error), scale(value + error))
            yield svg.line(x, ends[0], x, ends[1], class_=f"bar {colour}{faint}")
        says = svg.title(_point(summary, name, row, metric))
        yield svg.symbol(shape, x, y, radius, says, class_=f"dot {colour}")


def _point(summary: Summary, name: str, row: Score, metric: Metric) -> str:
    figure = Figure(row.values[metric.name] or 0.0, row.errors.get(metric.name))
    unit = f" {metric.unit}" if metric.unit else ""
    served = f", version {short(row.version)}" if row.version else ""
    return (
        f"{name}, {unit_of(summary)} {row.fill} ({row.condition}): {metric.title} "
        f"{with_error(figure)}{unit}, {number(row.n, 0)} events{served}"
    )


def vertical(values: Sequence[float], metric: Metric, top: float, bottom: float) -> svg.Scale:
    """The scale of the figures' axis.

    Linear, unless one bad fill would press all differences that matter into a few pixels: then
    logit for shares (a metric that should be high, between 0 and 1, spread over more than 0.15),
    logarithmic for positive figures that should be low and span more than a factor of 8.
    """
    low, high = min(values), max(values)
    if metric.better == "lower" and low > 0 and high / low > 8:
        return svg.Scale(low / 1.15, high * 1.15, bottom, top, "log")
    share = low >= 0 and high <= 1
    if metric.better == "higher" and share and high > 0.9 and high - low > 0.15:
        missed = max(1 - high, 0.002)
        return svg.Scale(max(low, 0.002) / 1.3, 1 - missed / 1.3, bottom, top, "logit")
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    ceiling = min(high + pad, 1.0) if share else high + pad
    floor = max(low - pad, 0.0) if low >= 0 else low - pad
    return svg.Scale(floor, ceiling if ceiling > floor else floor + pad, bottom, top)


def _decisions(frame: Frame) -> Iterator[Markup]:
    """One row a lane: what happened to it, at its time."""
    summary = frame.summary
    for place, name in enumerate(summary.lanes):
        y = frame.row(place)
        colour = lane_class(summary, name)
        yield svg.line(LEFT, y, WIDTH - RIGHT, y, class_="rail")
        label = name if len(name) <= 14 else f"{name[:13]}…"
        yield svg.text(label, LEFT - 8, y + 4, text_anchor="end", class_=f"name {colour}")
        taken = -math.inf
        marked = [d for d in summary.decisions if d.lane == name and d.what in MEANING]
        parts = []
        for decision in sorted(marked, key=lambda d: d.time):
            # Marks of one moment are set side by side.
            x = max(frame.at(decision.time), taken + 11)
            taken = x
            says = svg.title(_said(summary, decision))
            what = decision.what
            parts.append(svg.symbol(what, x, y, 4.6, says, class_=f"mark mark-{what} {colour}"))
        yield svg.element("g", *parts, class_=f"lane lane-{place}")


def _said(summary: Summary, decision: Decision) -> str:
    when = moment(decision.time, summary.fills, unit_of(summary))
    served = f" {short(decision.version)}" if decision.version else ""
    return f"{decision.lane}, {when}: {MEANING[decision.what]}{served}: {decision.because}"


def fill_axis(frame: Frame) -> Iterator[Markup]:
    fitting = 28 / frame.column
    every = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step >= fitting), 500)
    for place, fill in enumerate(frame.summary.fills):
        if fill.fill % every == 0 or every == 1:
            x = frame.middle(place)
            yield svg.text(str(fill.fill), x, frame.bottom + 16, text_anchor="middle")
    word = unit_of(frame.summary)
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield svg.text(word, middle, frame.bottom + 34, text_anchor="middle", class_="axis")


def _legend(frame: Frame) -> tuple[list[Markup], float]:
    """Lanes, then marks that occur, in lines of the picture's width; their height."""
    summary = frame.summary
    seen = {decision.what for decision in summary.decisions}
    items = [
        (_moved(swatch(summary, name)), 34.0, lane.title) for name, lane in summary.lanes.items()
    ]
    items += [
        (svg.symbol(what, 13, 6, 4.6, class_=f"mark mark-{what}"), 26.0, meaning)
        for what, meaning in MEANING.items()
        if what in seen
    ]
    parts, x, y = [], 20.0, frame.height + 10
    for drawn, indent, words in items:
        width = indent + 6.6 * len(words) + 22
        if x + width > WIDTH and x > 20:
            x, y = 20.0, y + 22
        inside = (drawn, svg.text(words, indent, 10))
        parts.append(svg.element("g", *inside, transform=f"translate({x:.1f} {y:.1f})"))
        x += width
    return parts, y + 24 - frame.height


def _moved(inner: Markup) -> Markup:
    return svg.element("g", inner)
