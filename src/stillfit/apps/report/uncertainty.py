"""The report of `stillfit uncertainty shift`: how sure each method is, when it should not be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from stillfit.apps.report.markup import Markup, tag
from stillfit.apps.report.page import style
from stillfit.apps.report.plots import (
    Axis,
    Rule,
    Series,
    document,
    figure,
    legend,
    plot,
    table,
)
from stillfit.studies.shift import SHIFTS, Found

Row: TypeAlias = Mapping[str, Any]
COVERAGE = Axis("coverage of 90 % intervals", low=0.0, high=1.0)


def render(
    found: Found,
    online: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    facts: str = "",
) -> str:
    """One page that needs no network, no script and no other file. Same rows, same bytes.

    `online`: rolling coverage by calibrator, as (label number, coverage) points.
    """
    scores, curves, costs, uses = found
    methods = list(dict.fromkeys(str(row["method"]) for row in scores))
    parts = [
        tag("p", *_lead(scores), class_="lead"),
        legend(methods),
        *_nominal(methods, scores, costs),
        *_against_shift(methods, scores),
        *_honesty(methods, curves),
        *_pareto(methods, scores, costs),
    ]
    if online:
        parts += _online(online)
    if uses:
        parts += _uses(uses)
    sheet = style("charts.css") + style("page.css")
    return document("How sure is it?", facts, *parts, sheet=sheet)


def mean_over_seeds(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Mean of a figure and its standard error: of one run its own, of several their spread too."""
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return math.nan, math.nan
    own = [float(row.get(f"{name}_err") or math.nan) for row in rows]
    inner = (
        float(np.sqrt(np.nanmean(np.square(own)) / len(values)))
        if np.any(np.isfinite(own))
        else 0.0
    )
    outer = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(np.mean(values)), math.hypot(inner, outer)


def _of(rows: Sequence[Row], **facts: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in facts.items())]


def _is_nominal(row: Row) -> bool:
    return bool(row["intensity"] == SHIFTS[row["shift"]].steps[0][0])


def _nominal_rows(scores: Sequence[Row], method: str) -> list[Row]:
    """Raw figures at nominal: of the first shift alone, as all begin with the same events."""
    mine = [row for row in _of(scores, method=method, calibrator="none") if _is_nominal(row)]
    return [row for row in mine if row["shift"] == mine[0]["shift"]]


def _lead(scores: Sequence[Row]) -> list[str]:
    """What the table says, in words."""
    methods = list(dict.fromkeys(str(row["method"]) for row in scores))
    crps = {m: mean_over_seeds(_nominal_rows(scores, m), "crps")[0] for m in methods}
    best = min((m for m in methods if math.isfinite(crps[m])), key=lambda m: crps[m])
    said = [f"At nominal {best} has the lowest CRPS ({crps[best]:.4g} cm). "]
    for shift in dict.fromkeys(str(row["shift"]) for row in scores):
        last = SHIFTS[shift].steps[-1][0]
        cover = {
            m: mean_over_seeds(
                _of(scores, method=m, calibrator="none", shift=shift, intensity=last), "coverage_90"
            )[0]
            for m in methods
        }
        known = {m: value for m, value in cover.items() if math.isfinite(value)}
        if not known:
            continue
        nearest = min(known, key=lambda m: abs(known[m] - 0.9))
        low, high = min(known.values()), max(known.values())
        said.append(
            f"{SHIFTS[shift].title.capitalize()} at {last:g} {SHIFTS[shift].unit}: 90 % intervals "
            f"hold {100 * low:.0f} to {100 * high:.0f} %, nearest to 90 is {nearest} "
            f"({100 * known[nearest]:.0f} %). "
        )
    return said


def _number(value: float, error: float = math.nan, digits: int = 3) -> str:
    if not math.isfinite(value):
        return "–"
    if math.isfinite(error) and error > 0:
        return f"{value:.{digits}f} ± {error:.{digits}f}"
    return f"{value:.{digits}f}"


def _nominal(methods: Sequence[str], scores: Sequence[Row], costs: Sequence[Row]) -> list[Markup]:
    head = ["method", "efficiency", "RMSE (cm)", "NLL", "CRPS (cm)", "ENCE"]
    head += ["coverage 68", "coverage 90", "width 90 (cm)", "AUSE", "failures (AUROC)"]
    head += ["passes", "MACs", "parameters", "kB", "events/s", "training (s)"]
    rows = []
    for method in methods:
        mine = _nominal_rows(scores, method)
        cost = _of(costs, method=method)
        cells = [
            _number(*mean_over_seeds(mine, name))
            for name in (
                "efficiency", "rmse", "nll", "crps", "ence", "coverage_68", "coverage_90",
                "width_90", "ause_rmse", "auroc_failures",
            )
        ]  # fmt: skip
        for name, scale in (
            ("passes", 1.0), ("macs", 1.0), ("parameters", 1.0), ("bytes", 1e-3),
            ("events_per_second", 1.0), ("training_seconds", 1.0),
        ):  # fmt: skip
            value = mean_over_seeds(cost, name)[0] * scale
            cells.append(f"{value:,.0f}" if math.isfinite(value) else "–")
        rows.append([method, *cells])
    note = (
        "As stated, before any calibrator. NLL in nats; ENCE and AUSE: 0 is perfect; failures: how "
        "well the stated deviation tells events that are found within 0.15 cm from the others. "
        "MACs: multiply-accumulates of one track (or event head) over all passes."
    )
    return [tag("h2", "At nominal"), table(head, rows), tag("p", note, class_="note")]


def _curve_of(
    methods: Sequence[str],
    scores: Sequence[Row],
    shift: str,
    figure_: str,
    calibrator: str = "none",
) -> list[Series]:
    series = []
    for place, method in enumerate(methods):
        points, errors = [], []
        for intensity, _ in SHIFTS[shift].steps:
            facts = {"method": method, "shift": shift, "intensity": intensity}
            value, error = mean_over_seeds(_of(scores, calibrator=calibrator, **facts), figure_)
            points.append((intensity, value))
            errors.append(error)
        series.append(Series(method, points, place, errors))
    return series


def _against_shift(methods: Sequence[str], scores: Sequence[Row]) -> list[Markup]:
    shifts = list(dict.fromkeys(str(row["shift"]) for row in scores))
    asked = (
        ("coverage_90", "Coverage", COVERAGE, (Rule(0.9, "as stated"),)),
        ("auroc", "Told from nominal", Axis("AUROC of the stated deviation", low=0.3, high=1.0),
         (Rule(0.5, "chance"),)),
        ("crps", "CRPS", Axis("CRPS (cm)", "log"), ()),
    )  # fmt: skip
    parts: list[Markup] = []
    for name, title, axis, rules in asked:
        pictures = []
        for shift in shifts:
            kind = SHIFTS[shift]
            across = Axis(f"{kind.title} ({kind.unit})")
            words = f"{title}: {kind.title}"
            drawn = _curve_of(methods, scores, shift, name)
            pictures.append(figure(words, plot(words, across, axis, drawn, rules=rules)))
        parts += [
            tag("h2", f"{title} against shift"),
            legend(methods),
            tag("div", *pictures, class_="figures small"),
        ]
    pictures = []
    for shift in shifts:
        kind = SHIFTS[shift]
        lines = []
        for place, calibrator in enumerate(
            ("none", "variance-scaling", "split-conformal", "normalised-conformal")
        ):
            every = [
                _curve_of([method], scores, shift, "coverage_90", calibrator)[0].points
                for method in methods
            ]
            points = [
                (at[0][0], float(np.nanmean([value for _, value in at])))
                for at in zip(*every, strict=True)
                if any(math.isfinite(value) for _, value in at)
            ]
            lines.append(Series(calibrator, points, place))
        words = f"Calibrated on nominal: {kind.title}"
        across = Axis(f"{kind.title} ({kind.unit})")
        picture = plot(words, across, COVERAGE, lines, rules=(Rule(0.9, "as stated"),))
        pictures.append(figure(words, picture))
    parts += [
        tag("h2", "Do calibrators that were fitted on nominal survive?"),
        legend(["none", "variance-scaling", "split-conformal", "normalised-conformal"]),
        tag("p", "Mean over all methods.", class_="note"),
        tag("div", *pictures, class_="figures small"),
    ]
    return parts


def _honesty(methods: Sequence[str], curves: Sequence[Row]) -> list[Markup]:
    parts: list[Markup] = []
    wanted = [("nominal", None)] + [(s, s) for s in dict.fromkeys(str(r["shift"]) for r in curves)]
    for curve, title, x, y in (
        (
            "reliability",
            "Reliability",
            Axis("stated probability of a lower truth", low=0.0, high=1.0),
            Axis("observed share", low=0.0, high=1.0),
        ),
        (
            "error",
            "Error against stated uncertainty",
            Axis("stated deviation (cm)", "log"),
            Axis("68 % of errors are below (cm)", "log"),
        ),
    ):
        pictures = []
        for words, shift in wanted:
            mine = [
                row
                for row in curves
                if row["curve"] == curve
                and (
                    _is_nominal(row) and row["shift"] == curves[0]["shift"]
                    if shift is None
                    else row["shift"] == shift and not _is_nominal(row)
                )
            ]
            series = []
            for place, method in enumerate(methods):
                rows = _of(mine, method=method)
                rows = [row for row in rows if row["seed"] == rows[0]["seed"]]
                points = [(float(row["x"]), float(row["y"])) for row in rows]
                series.append(Series(method, points, place, [float(row["err"]) for row in rows]))
            at = "" if shift is None else f" at {mine[0]['intensity']:g} {SHIFTS[shift].unit}"
            label = f"{title}: {words}{at}"
            pictures.append(figure(label, plot(label, x, y, series, rules=(Rule(None),))))
        parts += [
            tag("h2", title),
            tag("p", "An honest method lies on the dashed line. First seed.", class_="note"),
            legend(methods),
            tag("div", *pictures, class_="figures small"),
        ]
    return parts


def _pareto(methods: Sequence[str], scores: Sequence[Row], costs: Sequence[Row]) -> list[Markup]:
    """Quality at nominal and under shift against what a prediction costs; the front is marked."""
    pictures, front_words = [], []
    for title, axis, quality in (
        ("Cost against quality at nominal", Axis("CRPS (cm)"), _crps_nominal),
        (
            "Cost against honesty under shift",
            Axis("mean |coverage - 90 %|"),
            _off_coverage,
        ),
    ):
        seen: dict[str, tuple[float, float]] = {}
        for method in methods:
            speed = mean_over_seeds(_of(costs, method=method), "events_per_second")[0]
            value = quality(scores, method)
            if math.isfinite(speed) and math.isfinite(value):
                seen[method] = (1e6 / speed, value)
        front = [
            name
            for name, (cost, value) in sorted(seen.items(), key=lambda item: item[1])
            if not any(c <= cost and v <= value and n != name for n, (c, v) in seen.items())
        ]
        series = [
            Series(name, [seen[name]], place, joined=False, named=name in front)
            for place, name in enumerate(methods)
            if name in seen
        ]
        across = Axis("microseconds per event on one core", "log")
        pictures.append(figure(title, plot(title, across, axis, series)))
        front_words.append(f"{title}: on the front are {', '.join(front)}. ")
    return [
        tag("h2", "Cost against quality"),
        tag("p", *front_words, class_="note"),
        legend(methods),
        tag("div", *pictures, class_="figures small"),
    ]


def _crps_nominal(scores: Sequence[Row], method: str) -> float:
    return mean_over_seeds(_nominal_rows(scores, method), "crps")[0]


def _off_coverage(scores: Sequence[Row], method: str) -> float:
    rows = [row for row in _of(scores, method=method, calibrator="none") if not _is_nominal(row)]
    off = [abs(float(row["coverage_90"]) - 0.9) for row in rows]
    return float(np.mean(off)) if off else math.nan


def _online(online: Mapping[str, Sequence[tuple[float, float]]]) -> list[Markup]:
    names = list(online)
    series = [Series(name, online[name], place) for place, name in enumerate(names)]
    title = "Rolling coverage of 90 % intervals while the noise grows"
    picture = plot(
        title,
        Axis("labels seen"),
        Axis("rolling coverage", low=0.0, high=1.0),
        series,
        rules=(Rule(0.93), Rule(0.87, "87 to 93 %")),
    )
    return [
        tag("h2", "Calibration that goes on"),
        legend(names),
        tag("div", figure(title, picture), class_="figures small"),
    ]


def _uses(uses: Sequence[Row]) -> list[Markup]:
    """Windows against the fixed table, and regions against the best fixed length."""
    methods = list(dict.fromkeys(str(row["method"]) for row in uses))
    parts: list[Markup] = [tag("h2", "Put to use, at nominal")]
    title = "Association: purity minus that of the fixed table, at its track efficiency (points)"
    mine = [row for row in uses if row["use"] == "association"]
    parts += [
        tag("h3", title),
        _by_rule(methods, mine, "better", 100.0),
        tag("p", "95 % intervals of a paired bootstrap over events.", class_="note"),
    ]
    regions = [row for row in uses if row["use"] == "region"]
    for target in dict.fromkeys(float(row["target"]) for row in regions):
        title = (
            f"Region of interest: mean full length (cm) that holds {100 * target:g} % of vertices"
        )
        mine = [row for row in regions if row["target"] == target]
        parts += [tag("h3", title), _by_rule(methods, mine, "value", 1.0)]
    note = "95 % intervals. A dash: too few events to promise it."
    return [*parts, tag("p", note, class_="note")]


def _by_rule(methods: Sequence[str], rows: Sequence[Row], name: str, scale: float) -> Markup:
    """A row per method and a column per rule."""
    rules = list(dict.fromkeys(str(row["rule"]) for row in rows))
    body = []
    for method in methods:
        found = [_of(rows, method=method, rule=rule) for rule in rules]
        body.append([method, *(_span(one[0], name, scale) if one else "–" for one in found)])
    return table(["method", *rules], body)


def _span(row: Row, name: str, scale: float) -> str:
    if row.get("refused") or row.get(name) is None:
        return "–"
    value, low, high = (scale * float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
