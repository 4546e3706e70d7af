"""The report's tables, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from stillfit.apps.report.charts import lane_class, mark_swatch, swatch
from stillfit.apps.report.figures import (
    Loss,
    best_and_equal,
    conditions,
    losses,
    season,
    updating,
    within,
    won_back,
)
from stillfit.apps.report.knowing import lead_text
from stillfit.apps.report.markup import Markup, join, tag
from stillfit.apps.report.season import MEANING
from stillfit.apps.report.words import (
    MISSING,
    count,
    duration,
    listing,
    moment,
    number,
    percent,
    short,
    size,
    unit_of,
    with_error,
)
from stillfit.apps.summary import Decision, Forgetting, Metric, Summary

STEPS = {
    "deploy": "first version serves",
    "alarm": "a monitor raises an alarm",
    "clear": "the alarm is over",
    "request": "change asked for",
    "declined": "this rung has nothing to offer",
    "verdict": "a gate's verdict",
    "staged": "staged, waits for a window",
    "kept": "kept after probation",
    "withdrawn": "staged candidate withdrawn",
    "monitor-failed": "a monitor failed; serving went on",
    "updater-failed": "an updater failed; serving went on",
    "policy-failed": "a policy failed; serving went on",
    "synthesised": "synthesised as a circuit",
    "synthesis-failed": "synthesis failed; serving went on",
    **MEANING,
}


def table(head: Sequence[str], rows: Iterable[Markup], label: str, class_: str = "") -> Markup:
    """A table that scrolls inside itself where the page is narrow."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = tag("table", tag("thead", top), tag("tbody", *rows), class_=class_ or None)
    return tag("div", body, class_="scroll", role="region", aria_label=label, tabindex=0)


def lane_head(summary: Summary, name: str) -> Markup:
    """First cell of a lane's row: its line as in the pictures, title and key."""
    title = summary.lanes[name].title
    key = tag("code", name) if title != name else Markup("")
    return tag("th", swatch(summary, name), " ", title, " ", key, scope="row", class_="lane-name")


def glance(summary: Summary) -> Markup:
    """One row a lane: the season's mean, what was won back, what happened and what it cost."""
    metric = summary.headline
    happened = Counter((d.lane, d.what) for d in summary.decisions)
    column = {name: season(summary, name, metric) for name in summary.lanes}
    best, equal = best_and_equal(metric, column)
    compared = summary.baseline is not None
    rows = []
    for name, lane in summary.lanes.items():
        share = won_back(summary, name) if name in updating(summary) else None
        cells = [
            lane_head(summary, name),
            tag("td", *_marked(with_error(column[name]), name, best, equal), class_="number"),
        ]
        if compared:
            cells.append(tag("td", MISSING if share is None else percent(share), class_="number"))
        changes = happened[name, "switch"] + happened[name, "redeploy"]
        for value in (changes, happened[name, "refused"], happened[name, "rollback"]):
            cells.append(tag("td", number(value, 0), class_="number"))
        cost = lane.cost
        cells += [
            tag("td", number(cost.labelled_events, 0), class_="number"),
            tag("td", duration(cost.seconds) if cost.updates else MISSING, class_="number"),
        ]
        rows.append(tag("tr", *cells))
    unit = f" ({metric.unit})" if metric.unit else ""
    head = ["lane", f"{metric.title}{unit}, mean of all events"]
    head += ["of the loss won back"] if compared else []
    head += ["new versions in service", "refused", "rolled back", "labelled events read"]
    return table([*head, "time for updates"], rows, "lanes at a glance", "glance")


def _marked(text: str, name: str, best: str | None, equal: set[str]) -> list[Markup]:
    if name == best:
        return [tag("strong", text), tag("span", " ★", title="best of its column")]
    if name in equal:
        return [Markup(text), tag("span", " ≈", title="not measurably worse than the best")]
    return [Markup(text)]


def leads(summary: Summary) -> Markup:
    """Lane by change: whether the flag or late labels told of it, and how far apart."""
    known = {name: lane.leads for name, lane in summary.lanes.items() if lane.leads}
    if len(known) < 2:
        return Markup("")
    word = unit_of(summary)
    first = next(iter(known.values()))
    head = ["lane", *(f"{lead.condition}, {word} {lead.fill}" for lead in first)]
    rows = [
        tag("tr", lane_head(summary, name), *(tag("td", lead_text(lead)) for lead in found))
        for name, found in known.items()
    ]
    return table(head, rows, "flag and late labels by lane and change")


def by_condition(summary: Summary, metric: Metric) -> Markup:
    """Lane by condition, mean of the fills with its error; the best of each column marked."""
    names = conditions(summary)
    columns = {
        condition: {name: within(lane, condition, metric) for name, lane in summary.lanes.items()}
        for condition in names
    }
    best = {condition: best_and_equal(metric, column) for condition, column in columns.items()}
    rows = []
    for name in summary.lanes:
        cells = [lane_head(summary, name)]
        for condition in names:
            text = with_error(columns[condition][name])
            cells.append(tag("td", *_marked(text, name, *best[condition]), class_="number"))
        rows.append(tag("tr", *cells))
    fills = Counter(fill.condition for fill in summary.fills)
    word = unit_of(summary)
    head = ["lane", *(f"{name} ({count(fills[name], word)})" for name in names)]
    return table(head, rows, f"{metric.title} by condition")


def recovery(summary: Summary) -> Markup:
    """What each condition cost the unchanged model, and what updating won back."""
    lanes = updating(summary)
    rows = []
    for loss in losses(summary):
        cells = [
            tag("th", loss.condition, scope="row"),
            tag("td", with_error(loss.lost), class_="number"),
        ]
        for name in lanes:
            figure = loss.gains.get(name)
            text = with_error(figure, signed=True)
            known = figure is not None and figure.error is not None
            tone = "harm" if name in loss.harmed else "help" if known and figure.sure else "flat"  # type: ignore[union-attr]
            cells.append(tag("td", text, class_=f"number {tone}"))
        cells.append(tag("td", finding(summary, loss)))
        rows.append(tag("tr", *cells))
    head = ["condition", "lost by the model left alone", *lanes, "finding"]
    return table(head, rows, "what was lost and won back", "recovery")


def finding(summary: Summary, loss: Loss) -> str:
    """One sentence on a condition."""
    word = unit_of(summary)
    texts = {
        "none": "nothing measurable was lost",
        "not": "updating does not measurably help",
        "unknown": "errors are not known: no judgement",
    }
    text = texts.get(loss.finding, "")
    if loss.finding == "won" and loss.best is not None:
        share = loss.gains[loss.best].value / loss.lost.value
        text = f"{percent(share)} won back by {loss.best}"
        if loss.last is not None and loss.fills > 1:
            text += f" over {count(loss.fills, word)}; in the last of them it gains "
            text += with_error(loss.last, signed=True)
    if loss.harmed:
        text += f"; measurably worse than left alone: {listing(loss.harmed)}"
    return text


def forgetting(summary: Summary, name: str, matrix: Forgetting) -> Markup:
    """The experience matrix as a heat map: version by condition, darker is better."""
    metric, lane = summary.headline, summary.lanes[name]
    known = [value for row in matrix.matrix for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    rows = []
    for version, row in zip(matrix.versions, matrix.matrix, strict=True):
        served = [score for score in lane.fills if score.version == version]
        at = {score.condition for score in served}
        fills = _ranges(sorted(score.fill for score in served))
        where = f"{unit_of(summary)} {fills}" if served else "served briefly"
        first = tag("th", tag("code", short(version), title=version), " ", where, scope="row")
        cells = [
            _heat(value, low, high, metric, own=condition in at)
            for condition, value in zip(matrix.conditions, row, strict=True)
        ]
        rows.append(tag("tr", first, *cells))
    caption = f"{lane.title}: {metric.title}"
    head = ["version, and when it served", *matrix.conditions]
    return join([tag("h3", caption), table(head, rows, caption, "heat")])


def _heat(value: float | None, low: float, high: float, metric: Metric, own: bool) -> Markup:
    if value is None:
        return tag("td", MISSING, class_="number")
    share = (value - low) / (high - low) if high > low else 1.0
    if metric.better == "lower":
        share = 1 - share
    return tag(
        "td",
        number(value, 3),
        class_="number own" if own else "number",
        title="served in this condition" if own else None,
        style=f"background: rgb(42 132 200 / {0.04 + 0.5 * share:.2f})",
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`1–3, 7`."""
    groups: list[list[int]] = []
    for item in numbers:
        if groups and item == groups[-1][-1] + 1:
            groups[-1].append(item)
        else:
            groups.append([item])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


def decided_lanes(summary: Summary) -> list[str]:
    """Lanes about which there is something in the journal."""
    there = {decision.lane for decision in summary.decisions}
    return [name for name in summary.lanes if name in there]


def decisions(summary: Summary) -> Markup:
    """Every step with its reason; `of-N` marks the lane, `minor` what changed nothing."""
    places = {name: place for place, name in enumerate(decided_lanes(summary))}
    rows = [
        _decision(summary, decision, places)
        for decision in sorted(summary.decisions, key=lambda d: d.time)
    ]
    head = ["when", "lane", "what", "version", "because"]
    return table(head, rows, "decisions and their reasons", "decisions")


def _decision(summary: Summary, decision: Decision, places: dict[str, int]) -> Markup:
    minor = decision.what not in MEANING
    colour = lane_class(summary, decision.lane)
    drawn = Markup("") if minor else mark_swatch(decision.what, colour)
    exact = f"{number(decision.time, 0)} s of the stream"
    return tag(
        "tr",
        tag("td", moment(decision.time, summary.fills, unit_of(summary)), title=exact),
        tag("td", swatch(summary, decision.lane), " ", decision.lane),
        tag("td", drawn, " ", STEPS.get(decision.what, decision.what)),
        tag("td", tag("code", short(decision.version)), title=decision.version),
        tag("td", decision.because),
        class_=f"of-{places[decision.lane]}{' minor' if minor else ''}",
    )


def stored(summary: Summary) -> Markup:
    """What each lane keeps: versions, labelled events and their bytes by condition."""
    held = {n: sum(h.bytes for h in l.stored.conditions.values()) for n, l in summary.lanes.items()}
    most = max(max(held.values(), default=0), 1)
    rows = []
    for name, lane in summary.lanes.items():
        kept = lane.stored.conditions
        parts = [
            tag("li", condition, ": ", f"{number(h.events, 0)} events, {size(h.bytes)}")
            for condition, h in kept.items()
        ]
        events = sum(h.events for h in kept.values())
        width = f"width: {100 * held[name] / most:.1f}%"
        scale = tag("span", tag("span", style=width), class_="scale", aria_hidden="true")
        detail = (
            tag("details", tag("summary", count(len(kept), "condition")), tag("ul", *parts))
            if kept
            else MISSING
        )
        rows.append(
            tag(
                "tr",
                lane_head(summary, name),
                tag("td", number(lane.stored.versions, 0), class_="number"),
                tag("td", size(lane.stored.bytes), class_="number"),
                tag("td", number(events, 0), class_="number"),
                tag("td", size(held[name]), scale, class_="number"),
                tag("td", detail),
            )
        )
    head = ["lane", "versions", "on disk", "labelled events kept", "their bytes", "of which"]
    return table(head, rows, "what is stored")


def circuits(summary: Summary) -> Markup:
    """Every version that served as a circuit, with its change against the one before."""
    head = ["lane", "version", "from", "loaded as", "LUT", "FF", "DSP", "BRAM", "latency", "method"]
    rows = []
    for name, lane in summary.lanes.items():
        before = None
        for found in lane.circuits:
            cells = [
                name,
                short(found.version),
                moment(found.time, summary.fills, unit_of(summary)),
                found.update_class,
            ]
            for what in ("lut", "ff", "dsp", "bram"):
                value = getattr(found, what)
                then: float | None = None if before is None else getattr(before, what)
                cells.append(_resource(value, then))
            late = found.latency_ns
            cycles = f" ({found.latency_cycles} cycles)" if found.latency_cycles else ""
            cells.append(MISSING if late is None else f"{late:.0f} ns{cycles}")
            cells.append(found.method)
            rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
            before = found
    return table(head, rows, "Versions as circuits")


def _resource(value: float | None, before: float | None) -> str:
    if value is None:
        return MISSING
    told = f"{value:,.1f}".removesuffix(".0") if value < 1000 else f"{value:,.0f}"
    if not before or value == before:
        return told if before is None or value == before else f"{told} (from {before:,.0f})"
    return f"{told} ({value / before - 1:+.1%})"
