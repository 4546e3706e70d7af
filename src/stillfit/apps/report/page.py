"""The report: one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files

from stillfit.apps.report import tables
from stillfit.apps.report.charts import (
    calibration_chart,
    calibration_range,
    mark_swatch,
    stated_chart,
    stated_range,
    stated_series,
    swatch,
)
from stillfit.apps.report.figures import conditions, losses, updating
from stillfit.apps.report.headline import paragraphs
from stillfit.apps.report.knowing import knowing_picture, told, watched_lane
from stillfit.apps.report.markup import Markup, tag
from stillfit.apps.report.season import MEANING, season_picture
from stillfit.apps.report.words import count, duration, size, unit_of
from stillfit.apps.summary import Summary
from stillfit.core.values import JSON

# The page can load nothing and run nothing, whatever text the data hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def style(name: str) -> str:
    """A style sheet of this package."""
    return files("stillfit.apps.report").joinpath(name).read_text(encoding="utf-8")


def render(summary: Summary) -> str:
    """The whole page. Same summary, same bytes. Size: about 1 kB a lane and fill."""
    sheet = style("charts.css") + style("page.css") + "".join(_switches(summary))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{summary.title}: stillfit report"),
        tag("style", Markup(sheet)),
    )
    sections = [section for make in _SECTIONS for section in [make(summary)] if section]
    body = tag("body", _header(summary), _contents(summary), tag("main", *sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def season_svg(summary: Summary) -> str:
    """The season's picture of the headline metric as an SVG file of its own, for a README."""
    picture = season_picture(summary)
    start = picture.index(">") + 1
    # A picture lies on pages of any colour: it brings its own ground.
    ground = '<rect width="100%" height="100%" style="fill:var(--ground)"/>'
    return f"{picture[:start]}<style>{style('charts.css')}</style>{ground}{picture[start:]}\n"


def _switches(summary: Summary) -> Iterator[str]:
    """Rules by which the radio buttons and boxes show and hide, so that no script is needed."""
    for place in range(len(summary.metrics)):
        yield f"#m{place}:checked ~ .views > .m{place} {{ display: block; }}\n"
    for place in range(len(summary.lanes)):
        yield f"#l{place}:not(:checked) ~ .views .lane-{place} {{ display: none; }}\n"
    for place in range(len(tables.decided_lanes(summary))):
        yield f"#d{place}:checked ~ div tbody tr:not(.of-{place}) {{ display: none; }}\n"


def _header(summary: Summary) -> Markup:
    word = unit_of(summary)
    facts = [count(len(summary.fills), word)]
    if summary.fills:
        facts.append(duration(summary.fills[-1].end - summary.fills[0].start))
    facts += [
        count(len(conditions(summary)), "condition"),
        count(len(summary.lanes), "lane"),
        f"seed {summary.seed}",
        f"stillfit {summary.stillfit}",
    ]
    return tag(
        "header",
        tag("h1", summary.title),
        tag("p", " · ".join(facts), class_="facts"),
        *(tag("p", text, class_="lead") for text in paragraphs(summary)),
    )


def _contents(summary: Summary) -> Markup:
    links = [
        tag("a", words, href=f"#{anchor}")
        for anchor, words, make in (
            ("season", "Season" if summary.kind == "l1t" else "Run", _season),
            ("recovery", "Lost and won back", _recovery),
            ("flag", "When it was known", _flag),
            ("uncertainty", "Uncertainty", _uncertainty),
            ("forgetting", "Forgetting", _forgetting),
            ("circuits", "On the chip", _circuits),
            ("decisions", "Decisions", _decisions),
            ("stored", "Stored", _stored),
            ("provenance", "Provenance", _provenance),
        )
        if make(summary)
    ]
    return tag("nav", *links, aria_label="sections")


def _section(anchor: str, heading: str, *inside: str) -> Markup:
    return tag("section", tag("h2", heading), *inside, id=anchor)


def _note(*words: str) -> Markup:
    return tag("p", *words, class_="note")


def _season(summary: Summary) -> Markup:
    controls: list[Markup] = []
    if len(summary.metrics) > 1:
        controls.append(tag("span", "Show", class_="control"))
    for place, metric in enumerate(summary.metrics):
        checked = "checked" if place == 0 else None
        hidden = "sole" if len(summary.metrics) == 1 else None
        button = tag(
            "input", type="radio", name="metric", id=f"m{place}", checked=checked, class_=hidden
        )
        controls += [button, tag("label", metric.title, for_=f"m{place}", class_=hidden)]
    several = len(summary.lanes) > 1
    if several:
        controls.append(tag("span", "Lanes", class_="control second"))
    for place, name in enumerate(summary.lanes if several else ()):
        controls += [
            tag("input", type="checkbox", id=f"l{place}", checked="checked"),
            tag("label", swatch(summary, name), " ", summary.lanes[name].title, for_=f"l{place}"),
        ]
    seen = {decision.what for decision in summary.decisions}
    legend = [
        tag("span", mark_swatch(what), " ", meaning)
        for what, meaning in MEANING.items()
        if what in seen
    ]
    views = [
        tag(
            "div",
            tag("div", season_picture(summary, metric, legend=False), class_="scroll picture"),
            tag("p", *legend, class_="legend"),
            tag("h3", f"{metric.title}, by condition"),
            tables.by_condition(summary, metric),
            class_=f"view m{place}",
        )
        for place, metric in enumerate(summary.metrics)
    ]
    word = unit_of(summary)
    return _section(
        "season",
        "The season" if summary.kind == "l1t" else "The run",
        tables.glance(summary),
        _note(
            f"Points: mean of a {word}; bars: one standard error. Coloured bands: conditions. "
            "Below the plot, one row a lane: what was decided, at its time. Point at anything for "
            "its figures.",
            " ★ best of a column, ≈ not measurably worse than the best (2 standard errors; all "
            "lanes saw the same events, so errors of differences are rather smaller)."
            if several
            else "",
        ),
        tag("div", *controls, tag("div", *views, class_="views"), class_="switch"),
    )


def _recovery(summary: Summary) -> Markup:
    if not losses(summary) or not updating(summary):
        return Markup("")
    metric, word = summary.headline, unit_of(summary)
    return _section(
        "recovery",
        "What was lost, and what updating won back",
        _note(
            f"{metric.title}, means over all {word}s of a condition, so with those before a first "
            f"update could arrive. Lost: of the model left alone, against its own mean in "
            f"“{summary.fills[0].condition}”. Lanes: gain over the model left alone. Coloured "
            "where the gain or harm is more than twice its standard error."
        ),
        tables.recovery(summary),
    )


def _flag(summary: Summary) -> Markup:
    name = watched_lane(summary)
    if name is None:
        return Markup("")
    lane, word = summary.lanes[name], unit_of(summary)
    legend = [
        tag("span", mark_swatch("flag"), " the flag rose: an alarm of the stated uncertainty"),
        tag("span", mark_swatch("diamond"), " late labels told: first alarm of the error"),
    ]
    note = (
        f"{lane.title}, on events as they were served. Pale bars: the stated uncertainty of 68 % "
        f"of the events of a {word}; thick line: the median; point: the error observed later. "
        "Below: the first alarm of each kind after every change, joined where both came. A shift "
        "that all tracks share moves no event's uncertainty, so the flag is blind to it."
    )
    sentences = [tag("li", f"{told(summary, lead)}.") for lead in lane.leads]
    return _section(
        "flag",
        "When a change was known",
        _note(note),
        tag("div", knowing_picture(summary, name), class_="scroll picture"),
        tag("p", *legend, class_="legend"),
        tag("ul", *sentences, class_="leads"),
        tables.leads(summary),
    )


def _uncertainty(summary: Summary) -> Markup:
    bounds, stated = calibration_range(summary), stated_range(summary)
    if bounds is None and stated is None:
        return Markup("")
    figures, silent = [], []
    for name, lane in summary.lanes.items():
        charts = []
        if bounds is not None and lane.calibration:
            charts.append(calibration_chart(summary, name, bounds))
        if stated is not None and stated_series(summary, lane):
            charts.append(stated_chart(summary, name, stated))
        if not charts:
            silent.append(lane.title)
            continue
        caption = tag("figcaption", swatch(summary, name), " ", lane.title)
        figures.append(tag("figure", caption, tag("div", *charts, class_="pair")))
    word = unit_of(summary)
    words = (
        "Left: events sorted into bins by the uncertainty stated for them; on the dashed diagonal "
        "the error is as large as stated, above it the lane errs more than it says. The area of a "
        f"point grows with its events. Right: the same {word} by {word} (bar: stated, point: "
        "observed)."
    )
    if silent:
        words += f" No uncertainty is stated by: {', '.join(silent)}."
    inside = tag("div", *figures, class_="figures")
    return _section("uncertainty", "Uncertainty against error", _note(words), inside)


def _forgetting(summary: Summary) -> Markup:
    matrices = [
        tables.forgetting(summary, name, lane.forgetting)
        for name, lane in summary.lanes.items()
        if lane.forgetting is not None and lane.forgetting.versions
    ]
    if not matrices:
        return Markup("")
    note = (
        "Each version that served, judged on the held-out events of every condition. The stronger "
        "the colour, the better; framed: the version served in that condition. A column that pales "
        "downwards is a condition being forgotten."
    )
    return _section("forgetting", "What is remembered", _note(note), *matrices)


def _decisions(summary: Summary) -> Markup:
    if not summary.decisions:
        return _section("decisions", "Decisions", _note("Nothing was decided."))
    lanes = tables.decided_lanes(summary)
    controls = []
    if len(lanes) > 1:
        controls = [
            tag("span", "Lane", class_="control"),
            tag("input", type="radio", name="of", id="d-all", checked="checked"),
            tag("label", "all", for_="d-all"),
        ]
    for place, name in enumerate(lanes if len(lanes) > 1 else ()):
        controls += [
            tag("input", type="radio", name="of", id=f"d{place}"),
            tag("label", name, for_=f"d{place}"),
        ]
    controls += [
        tag("span", "and" if controls else "Show", class_="control"),
        tag("input", type="checkbox", id="steps"),
        tag("label", "requests, verdicts and other steps too", for_="steps"),
    ]
    inside = tag("div", *controls, tables.decisions(summary), class_="switch")
    return _section("decisions", "Decisions, and why", inside)


def _stored(summary: Summary) -> Markup:
    registry = summary.registry
    note = (
        f"The registry holds {count(registry.versions, 'version')} in {size(registry.bytes)} and "
        f"{count(registry.journal, 'journal entry', 'journal entries')}."
    )
    return _section("stored", "What is stored", _note(note), tables.stored(summary))


def _circuits(summary: Summary) -> Markup:
    if not any(lane.circuits for lane in summary.lanes.values()):
        return Markup("")
    note = (
        "What each version that served takes on the chip, in brackets the change against the one "
        "before it. Constant weights (bitstream) are part of the circuit, so it changes with "
        "them; reloadable ones (weights) leave it as it is. Candidates that were refused for "
        "their footprint are among the decisions."
    )
    return _section("circuits", "On the chip", _note(note), tables.circuits(summary))


def _provenance(summary: Summary) -> Markup:
    rows = [("stillfit", summary.stillfit), ("seed", str(summary.seed))]
    rows += [("kind", summary.kind), *_flat(summary.run)]
    inside = [
        tag("tr", tag("th", name, scope="row"), tag("td", tag("code", value)))
        for name, value in rows
    ]
    values = tables.table(["value", "as resolved"], inside, "resolved values of the run")
    return _section("provenance", "Provenance", values)


def _flat(values: Mapping[str, JSON], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values under dotted names, as a run file would name them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:g}"
        elif isinstance(value, str):
            yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


_SECTIONS: tuple[Callable[[Summary], Markup], ...] = (
    _season,
    _recovery,
    _flag,
    _uncertainty,
    _forgetting,
    _circuits,
    _decisions,
    _stored,
    _provenance,
)
