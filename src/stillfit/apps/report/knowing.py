"""When a change was known: the stated uncertainty as a band per fill, and where the flag rose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from stillfit.apps.report import svg
from stillfit.apps.report.charts import chart, lane_class, lane_shape, range_of
from stillfit.apps.report.markup import Markup
from stillfit.apps.report.season import LEFT, RIGHT, WIDTH, Frame, band, fill_axis
from stillfit.apps.report.words import count, listing, moment, number, unit_of
from stillfit.apps.summary import Lane, Lead, Score, Summary

DEPTH = 210.0
ROWS = ("flag", "late labels")


def watched_lane(summary: Summary) -> str | None:
    """The lane to show: the one left alone, whose alarms no update cuts short, else the first."""
    first = [summary.baseline] if summary.baseline else []
    for name in (*first, *summary.lanes):
        if summary.lanes[name].leads and bands(summary, summary.lanes[name]):
            return name
    return None


def bands(summary: Summary, lane: Lane) -> list[tuple[int, Score]]:
    """(place of the fill, row) of the fills with a stated uncertainty, in order."""
    if summary.uncertainty is None:
        return []
    places = {fill.fill: place for place, fill in enumerate(summary.fills)}
    rows = [(places[row.fill], row) for row in lane.fills]
    return sorted(
        (pair for pair in rows if pair[1].values.get(summary.uncertainty.name) is not None),
        key=lambda pair: pair[0],
    )


def knowing_picture(summary: Summary, name: str) -> Markup:
    """Band of the stated uncertainty per fill (bar: median, point: observed), and below it when
    the flag rose and when late labels told."""
    frame = Frame(summary, 4.0, DEPTH, ROWS)
    parts = [*band(frame), *_bands(frame, name), *_rises(frame, name), *fill_axis(frame)]
    title = summary.lanes[name].title
    label = f"{title}: stated uncertainty by {unit_of(summary)}, and where the flag rose"
    return chart(WIDTH, frame.height, label, *parts)


def _bands(frame: Frame, name: str) -> Iterator[Markup]:
    summary = frame.summary
    stated = summary.uncertainty
    assert stated is not None
    rows = bands(summary, summary.lanes[name])
    names = [n for n in (stated.name, stated.low, stated.high, stated.against) if n]
    bounds = range_of([v for _, row in rows for n in names if (v := row.values.get(n)) is not None])
    top, bottom = frame.plot + 8, frame.plot + DEPTH
    scale = svg.Scale(bounds.low, bounds.high, bottom, top, bounds.curve)
    for value in scale.ticks(5):
        yield svg.line(LEFT, scale(value), WIDTH - RIGHT, scale(value), class_="grid")
        yield svg.text(svg.short_number(value), LEFT - 8, scale(value) + 4, text_anchor="end")
    unit = f" ({stated.unit})" if stated.unit else ""
    turned = f"translate(16 {(top + bottom) / 2:.1f}) rotate(-90)"
    words = f"uncertainty, error{unit}"
    yield svg.text(words, 0, 0, transform=turned, text_anchor="middle", class_="axis")
    colour, shape, wide = lane_class(summary, name), lane_shape(summary, name), frame.open_width
    for place, row in rows:
        x, fill = frame.left(place), summary.fills[place]
        middle = row.values[stated.name] or 0.0
        ends = (row.values.get(stated.low), row.values.get(stated.high))
        says = f"{unit_of(summary)} {fill.fill} ({fill.condition}): stated {number(middle, 3)}"
        if ends[0] is not None and ends[1] is not None:
            says += f", 68 % of the events {number(ends[0], 3)} to {number(ends[1], 3)}"
            y = scale(ends[1])
            yield svg.rect(
                x, y, wide, scale(ends[0]) - y, svg.title(says), class_=f"sixty {colour}"
            )
        yield svg.line(x, scale(middle), x + wide, scale(middle), class_=f"stated {colour}")
        observed = row.values.get(stated.against)
        if observed is not None and observed > 0:
            says = svg.title(f"{says}, observed {number(observed, 3)}{unit}")
            at = (x + wide / 2, scale(observed))
            radius = min(4.2, max(1.5, wide / 6))
            yield svg.symbol(shape, *at, radius, says, class_=f"dot {colour}")


def _rises(frame: Frame, name: str) -> Iterator[Markup]:
    """The flag's and the labels' first alarms of each change, joined where both came."""
    summary, lane = frame.summary, frame.summary.lanes[name]
    for place, words in enumerate(ROWS):
        y = frame.row(place)
        yield svg.line(LEFT, y, WIDTH - RIGHT, y, class_="rail")
        yield svg.text(words, LEFT - 8, y + 4, text_anchor="end", class_="name")
    for lead in lane.leads:
        says = f"{told(summary, lead)}."
        points = [frame.at(t) for t in (lead.flag, lead.late) if t is not None]
        if len(points) == 2:
            yield svg.line(points[0], frame.row(0), points[1], frame.row(1), class_="lead")
        if lead.flag is not None:
            at = (frame.at(lead.flag), frame.row(0))
            yield svg.line(at[0], frame.plot, *at, class_="rise")
            yield svg.symbol("flag", *at, 6, svg.title(says), class_="mark mark-flag")
        if lead.late is not None:
            at = (frame.at(lead.late), frame.row(1))
            yield svg.symbol("diamond", *at, 5, svg.title(says), class_="mark mark-late")


def lead_text(lead: Lead) -> str:
    """A change in a few words, for the cell of a table."""
    if lead.earlier is not None:
        if lead.earlier < 0:
            return f"flag {count(-lead.earlier, 'event')} after late labels"
        return f"flag {count(lead.earlier, 'event')} before late labels"
    stood = f"; stood already: {listing(lead.stood)}" if lead.stood else ""
    if lead.flag is not None:
        return f"flag alone{stood}"
    return f"late labels alone{stood}" if lead.late is not None else f"nothing rose{stood}"


def told(summary: Summary, lead: Lead) -> str:
    """What told of a change, in a sentence without its end."""
    fills, word = summary.fills, unit_of(summary)
    if lead.flag is None:
        what = "the flag did not rise"
    else:
        delay = count(lead.delay or 0, "event")
        when = f"{moment(lead.flag, fills, word)}, {delay} into the change, {lead.monitor}"
        what = f"flag rose ({when})"
    if lead.earlier is not None:
        apart = count(abs(lead.earlier), "event")
        what += f" {apart} {'after' if lead.earlier < 0 else 'before'} late labels"
    if lead.late is not None:
        what += f"; late labels told {moment(lead.late, fills, word)} ({lead.late_monitor})"
    if lead.stood:
        what += f"; stood already: {listing(lead.stood)}"
    return f"“{lead.condition}” from {word} {lead.fill}: {what}"


def flag_sentence(summary: Summary) -> str:
    """How much earlier the flag rose than late labels, in the lane that is shown; "" without."""
    name = watched_lane(summary)
    if name is None:
        return ""
    changes = summary.lanes[name].leads
    both = [lead for lead in changes if lead.earlier is not None]
    parts = [
        f"“{lead.condition}” ({count(abs(lead.earlier or 0), 'event')}"
        f"{' after' if (lead.earlier or 0) < 0 else ' before'})"
        for lead in both
    ]
    text = f"Of {count(len(changes), 'change')} in lane {name}, "
    if both:
        middle = round(median(lead.earlier or 0 for lead in both))
        side = "after" if middle < 0 else "before"
        text += (
            f"the flag of the stated uncertainty rose {count(abs(middle), 'event')} {side} late "
            f"labels{' (median)' if len(both) > 1 else ''}: {listing(parts)}"
        )
    else:
        text += "none raised the flag of the stated uncertainty and an alarm of late labels too"
    alone = [f"“{lead.condition}”" for lead in changes if lead.flag is None and lead.late]
    early = [f"“{lead.condition}”" for lead in changes if lead.flag and lead.late is None]
    silent = [lead for lead in changes if lead.flag is None and lead.late is None]
    if alone:
        text += f"; late labels alone told of {listing(_unique(alone))}"
    if early:
        text += f"; the flag alone of {listing(_unique(early))}"
    if silent:
        text += f"; no new alarm at {count(len(silent), 'change')}"
    return f"{text}."


def _unique(items: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(items))
