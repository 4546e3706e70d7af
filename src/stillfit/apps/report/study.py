"""The report of `stillfit study`: who learned on, what was forgotten, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillfit.apps.report import svg
from stillfit.apps.report.charts import chart
from stillfit.apps.report.markup import Markup, tag
from stillfit.apps.report.page import style
from stillfit.apps.report.plots import (
    Axis,
    Series,
    document,
    figure,
    legend,
    plot,
    table,
)
from stillfit.apps.report.words import MISSING, number, size
from stillfit.studies.continual.results import (
    Line,
    Recovered,
    lines,
    mean_matrix,
    metric,
    recovered,
    seen_so_far,
    title_of,
)
from stillfit.studies.continual.run import Found
from stillfit.studies.continual.scenarios import SCENARIOS
from stillfit.studies.continual.setting import LOWER, Scenario
from stillfit.studies.continual_metrics import Interval

HEAD = (
    "strategy",
    "at the end",
    "minus retrain",
    "forgetting",
    "anytime",
    "learner",
    "RAM",
    "MACs",
    "µs per example",
    "seconds",
    "labels used",
    "",
)
SIDE = 300.0  # pixels of a heat map


def render(found: Found, facts: str = "") -> str:
    """One page that needs no network, no script and no other file. Same rows, same bytes."""
    scenarios = list(dict.fromkeys(str(row["scenario"]) for row in found.runs))
    parts: list[Markup] = []
    for name in scenarios:
        parts += _scenario(found, SCENARIOS[name])
    sheet = style("charts.css") + style("page.css")
    return document("Learning on", facts, *parts, sheet=sheet)


def _scenario(found: Found, scenario: Scenario) -> list[Markup]:
    made = lines(found, scenario.name)
    parts = [
        tag("h2", scenario.title),
        tag("p", *_lead(made, scenario), class_="lead"),
        tag("p", scenario.note, " ", _NOTE, class_="note"),
        _table(made),
    ]
    made = [line for line in made if line.moved]
    if scenario.prequential:
        return [*parts, *_along(found, scenario, made), *_pareto(made, scenario)]
    if len(scenario.figures) > 1:
        parts += _figures(found, scenario, made)
    parts += _recovery(found, scenario)
    parts += _along(found, scenario, made)
    parts += _pareto(made, scenario)
    return [*parts, *_matrices(found, scenario, made)]


_NOTE = (
    "Means over seeds with 95 % Student-t intervals; minus retrain: differences seed by seed. "
    "Forgetting: best earlier figure minus the last, positive is forgotten. Anytime: mean over "
    "what was seen so far, all along the way. Learner: bytes that the strategy keeps. RAM: "
    "network, learner, stored and waiting labelled rows together. MACs: of one prediction. "
    "Microseconds and seconds of all updates are this machine's. No gates: every candidate serves."
)


def _table(made: Sequence[Line]) -> Markup:
    """All figures, family by family; the best of the first column is bold."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in HEAD))
    known = [line.value.mean for line in made if line.value is not None]
    rows: list[Markup] = []
    family = ""
    for line in made:
        if line.family != family:
            family = line.family
            rows.append(tag("tr", tag("td", family.capitalize(), class_="flat", colspan=len(HEAD))))
        first, *figures, last = cells(line)
        best = line.value is not None and line.value.mean == max(known)
        shown = [tag("td", cell, class_="number") for cell in figures]
        if best:
            shown[0] = tag("td", tag("strong", figures[0]), class_="number")
        name = tag("th", first, scope="row", class_="lane-name")
        rows.append(tag("tr", name, *shown, tag("td", last, class_="flat")))
    body = tag("table", tag("thead", top), tag("tbody", *rows))
    return tag("div", body, class_="scroll", tabindex="0")


def _lead(made: Sequence[Line], scenario: Scenario) -> list[str]:
    """What the table says, in words."""
    known = [line for line in made if line.value is not None]
    if not known:
        return ["No strategy has a figure."]
    best = max(known, key=lambda line: _mean(line.value))
    said = [f"Best {_words(scenario.headline)} at the end: {best.title}, {span(best.value)}. "]
    rival = next((line for line in known if line.strategy == "retrain"), None)
    if rival is None:
        return said
    better = [line.title for line in known if line.against and (line.against.low or -math.inf) > 0]
    if any(line.against and line.against.low is not None for line in known):
        said.append(
            f"Surely better than retraining ({span(rival.value)}): {', '.join(better)}. "
            if better
            else f"None is surely better than retraining ({span(rival.value)}). "
        )
    return said


def _mean(value: Interval | None) -> float:
    return -math.inf if value is None else value.mean


def _words(name: str) -> str:
    return name.replace("macro_f1", "macro-F1").replace("auc", "AUC").replace("_", " ")


def span(value: Interval | None, *, signed: bool = False, places: int = 3) -> str:
    """`0.921 [0.915, 0.927]`; the mean alone where one seed cannot say."""
    if value is None:
        return MISSING
    plus = "+" if signed and value.mean > 0 else ""
    text = f"{plus}{number(value.mean, places)}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{number(value.low, places)}, {number(value.high, places)}]"


def cells(line: Line) -> list[str]:
    """One row of the table; the last cell says why there are no figures."""
    costs = line.costs
    asked = line.metrics.get
    if line.value is None:
        return [line.title, *[MISSING] * (len(HEAD) - 2), line.why[:200]]
    return [
        line.title,
        span(line.value),
        MISSING if line.strategy == "retrain" else span(line.against, signed=True),
        span(asked("forgetting")),
        span(asked("anytime")),
        size(round(costs.get("memory_bytes", 0))),
        size(round(costs["ram_bytes"])) if costs.get("ram_bytes", 0) > 1 else MISSING,
        number(costs.get("macs"), 0),
        number(costs.get("microseconds_per_example"), 0),
        number(costs.get("seconds"), 1),
        number(costs.get("labelled_events"), 0),
        line.why[:200],
    ]


def _figures(found: Found, scenario: Scenario, made: Sequence[Line]) -> list[Markup]:
    """The other figures: at the end, and how much of each was forgotten."""
    named = [name for name in scenario.figures if name != scenario.headline]
    head = ["strategy"]
    for name in named:
        less = ", less is better" if name in LOWER else ""
        head += [f"{_words(name)} at the end{less}", f"{_words(name)} forgotten"]
    ends = {name: metric(found, scenario.name, name, "average_end") for name in named}
    lost = {name: metric(found, scenario.name, name, "forgetting") for name in named}
    rows = []
    for line in made:
        if line.value is None:
            continue
        row = [line.title]
        for name in named:
            row += [span(ends[name].get(line.strategy)), span(lost[name].get(line.strategy))]
        rows.append(row)
    return [tag("h3", "Figure by figure"), table(head, rows)]


def _recovery(found: Found, scenario: Scenario) -> list[Markup]:
    every = recovered(found, scenario.name, scenario.headline)
    if not every:
        return []
    conditions = list(dict.fromkeys(one.condition for one in every))
    strategies = list(dict.fromkeys(one.strategy for one in every))
    rows = []
    for strategy in strategies:
        row = [title_of(strategy)]
        for condition in conditions:
            mine = [e for e in every if (e.strategy, e.condition) == (strategy, condition)]
            row.append(_events(mine[0]) if mine else MISSING)
        rows.append(row)
    note = (
        f"Labelled events of the condition after which {_words(scenario.headline)} reaches 95 % "
        "of that of a network retrained on all of them, and stays there: median over seeds, of "
        "how many. A dash: never, within what there was."
    )
    return [
        tag("h3", "Events to recover"),
        table(["strategy", *conditions], rows),
        tag("p", note, class_="note"),
    ]


def _events(one: Recovered) -> str:
    reached = [value for value in one.events if value is not None]
    if 2 * len(reached) <= len(one.events):
        return MISSING
    ordered = sorted(math.inf if value is None else value for value in one.events)
    middle = ordered[(len(ordered) - 1) // 2]
    share = "" if len(reached) == len(one.events) else f" ({len(reached)} of {len(one.events)})"
    return f"{number(middle, 0)}{share}"


def _along(found: Found, scenario: Scenario, made: Sequence[Line]) -> list[Markup]:
    """The way of every family, beside the references, each picture with its own legend."""
    beside = [line for line in made if line.family == "reference"]
    families = [f for f in dict.fromkeys(line.family for line in made) if f != "reference"]
    words = _words(scenario.headline)
    if scenario.prequential:
        across, what = Axis("half-hours"), f"{words}, stretches of eight weeks"
    else:
        across, what = Axis("experiences"), f"{words} on all that was seen so far"
    curves = {line.strategy: _way(found, scenario, line.strategy) for line in made}
    points = [value for curve in curves.values() for _, value in curve]
    if not points:
        return []
    margin = 0.04 * (max(points) - min(points)) or 0.1
    up = Axis(words, low=min(points) - margin, high=max(points) + margin)
    pictures = []
    for family in families or ["references"]:
        shown = [*beside, *(line for line in made if line.family == family)]
        series = [
            Series(line.title, curves[line.strategy], place) for place, line in enumerate(shown)
        ]
        key = legend([line.title for line in shown])
        picture = plot(f"{scenario.title}, {family}: {what}", across, up, series)
        pictures.append(tag("div", figure(family.capitalize(), picture), key))
    return [
        tag("h3", f"Along the way: {what}"),
        tag("div", *pictures, class_="figures small"),
    ]


def _way(found: Found, scenario: Scenario, strategy: str) -> list[tuple[float, float]]:
    if not scenario.prequential:
        _, r = mean_matrix(found, scenario.name, strategy, scenario.headline)
        return seen_so_far(r) if len(r) else []
    at: dict[int, list[float]] = {}
    for row in found.curves:
        if row["scenario"] == scenario.name and row["strategy"] == strategy:
            at.setdefault(int(row["row"]), []).append(float(row["accuracy"]))
    rows = sorted(at)
    parts = [rows[first : first + 8] for first in range(0, len(rows), 8)]
    return [(float(part[-1]), _of(at, part)) for part in parts]


def _of(at: dict[int, list[float]], rows: Sequence[int]) -> float:
    return float(np.mean([value for row in rows for value in at[row]]))


def _pareto(made: Sequence[Line], scenario: Scenario) -> list[Markup]:
    """The figure at the end against forgetting, memory and time; the front is named."""
    asked = (
        ("forgetting", Axis("forgetting"), lambda line: _metric(line, "forgetting")),
        ("memory", Axis("kB of RAM", "log"), lambda line: line.costs.get("ram_bytes", 0) / 1e3),
        (
            "time",
            Axis("microseconds per labelled example", "log"),
            lambda line: max(line.costs.get("microseconds_per_example", 0.0), 1e-2),
        ),
    )
    pictures = []
    words = _words(scenario.headline)
    for name, axis, cost in asked:
        seen = {
            place: (float(cost(line)), line.value.mean)
            for place, line in enumerate(made)
            if line.value is not None and math.isfinite(float(cost(line)))
        }
        if len(seen) < 2:
            continue
        front = _once(pareto_front(seen), seen)
        series = [
            Series(made[place].title, [at], place, joined=False, named=place in front)
            for place, at in seen.items()
        ]
        title = f"{words} at the end against {name}"
        pictures.append(figure(title, plot(title, axis, Axis(words), series)))
    if not pictures:
        return []
    note = "Named: those that none beats in both. Up is better, left is cheaper."
    return [
        tag("h3", "What it costs"),
        tag("p", note, class_="note"),
        legend([line.title for line in made]),
        tag("div", *pictures, class_="figures small"),
    ]


def pareto_front(seen: dict[int, tuple[float, float]]) -> set[int]:
    """Entries (cost, value) that no other beats in one without losing in the other."""
    return {
        place
        for place, (cost, value) in seen.items()
        if not any(
            (c <= cost and v >= value) and (c < cost or v > value)
            for other, (c, v) in seen.items()
            if other != place
        )
    }


def _once(front: set[int], seen: dict[int, tuple[float, float]]) -> set[int]:
    """Of those that lie on one point the first: names over each other cannot be read."""
    first: dict[tuple[float, float], int] = {}
    for place in sorted(front):
        first.setdefault(seen[place], place)
    return set(first.values())


def _metric(line: Line, name: str) -> float:
    value = line.metrics.get(name)
    return math.nan if value is None else value.mean


def _matrices(found: Found, scenario: Scenario, made: Sequence[Line]) -> list[Markup]:
    known = {}
    for line in made:
        names, r = mean_matrix(found, scenario.name, line.strategy, scenario.headline)
        if len(r):
            known[line.title] = (names, r)
    if not known:
        return []
    every = np.concatenate([r[1:].ravel() for _, r in known.values()])
    low, high = float(every.min()), float(every.max())
    pictures = [
        figure(title, heat_map(title, names, r, low, high, _words(scenario.headline)))
        for title, (names, r) in known.items()
    ]
    names = next(iter(known.values()))[0]
    note = (
        f"Rows: after each experience, from the top, the first row before any. Columns: held-out "
        f"rows of each condition in the order in which they came ({', '.join(names[:12])}"
        f"{', ...' if len(names) > 12 else ''}). Darker is better, from {low:.3f} to {high:.3f}; "
        "framed: the condition that was just learned. Mean over seeds."
    )
    return [
        tag("h3", "What was kept"),
        tag("p", note, class_="note"),
        tag("div", *pictures, class_="figures small"),
    ]


def heat_map(
    title: str,
    names: Sequence[str],
    r: NDArray[np.float64],
    low: float,
    high: float,
    words: str,
) -> Markup:
    """R as squares, each with its figure where the pointer rests, in print if there is room."""
    rows, columns = r.shape
    cell = min(SIDE / columns, 44.0)
    high_enough = high if high > low else low + 1
    parts = []
    for i in range(rows):
        for j in range(columns):
            share = min(max((r[i, j] - low) / (high_enough - low), 0.0), 1.0)
            says = svg.title(f"{words} {r[i, j]:.3f} on {names[j]} after {_after(i, names)}")
            x, y = j * cell + 1, i * cell + 1
            own = {"stroke": "currentColor", "stroke_width": 1.4} if i == j + 1 else {}
            parts.append(
                svg.rect(
                    x,
                    y,
                    cell - 1.5,
                    cell - 1.5,
                    says,
                    fill=f"rgb(42 132 200 / {0.04 + 0.8 * share:.2f})",
                    **own,  # type: ignore[arg-type]
                )
            )
            if cell > 27:
                parts.append(
                    svg.text(
                        f"{r[i, j]:.2f}".lstrip("0") if 0 <= r[i, j] < 0.995 else f"{r[i, j]:.1f}",
                        x + cell / 2,
                        y + cell / 2 + 4,
                        text_anchor="middle",
                        class_="axis",
                    )
                )
    return chart(columns * cell + 2, rows * cell + 2, title, *parts)


def _after(i: int, names: Sequence[str]) -> str:
    return "nothing" if i == 0 else names[i - 1]
