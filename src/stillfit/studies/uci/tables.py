"""The benchmark's table: means over the splits with standard errors, beside published numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillfit.studies.uci.protocol import FIGURES, Row
from stillfit.studies.uci.published import SETS

PRINTED = 2  # decimals
SIGNS = {"log_likelihood": 1.0, "rmse": -1.0}  # which way is better


@dataclass(frozen=True)
class Verdict:
    """The best of our methods on a set in one figure, against the best published number.

    `behind`: by how much ours is worse, in our standard errors; negative where it is better, and 0
    where both are equal to the `PRINTED` decimals of the published tables.
    """

    set: str
    figure: str
    method: str
    value: float
    err: float
    published: str
    target: float
    behind: float

    @property
    def holds(self) -> bool:
        """No worse than published within one standard error."""
        return self.behind <= 1


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One line per set and method: `x` and `x_err` of each figure, `splits`, `diverged`.

    `x_err` is the standard error over the splits, None for a single one. A figure is None where
    any split has none: a diverged training, or a density of 0 at some truth (a quantile table).
    """
    lines = []
    for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
        own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
        line: Row = {"set": name, "method": method, "splits": len(own)}
        line["diverged"] = sum(bool(row["diverged"]) for row in own)
        for figure in FIGURES:
            values = [row[figure] for row in own]
            known = None not in values
            line[figure] = float(np.mean(values)) if known else None
            spread = known and len(values) > 1
            line[f"{figure}_err"] = (
                float(np.std(values, ddof=1) / math.sqrt(len(values))) if spread else None
            )
        line["cpu_seconds"] = float(np.sum([row["cpu_seconds"] for row in own]))
        lines.append(line)
    return lines


def published(sets: Sequence[str]) -> list[Row]:
    """The published lines of the sets, of the columns that `summarise` gives."""
    return [
        {
            "set": name,
            "method": f"{source}, published",
            "log_likelihood": figure.log_likelihood,
            "log_likelihood_err": figure.log_likelihood_err,
            "rmse": figure.rmse,
            "rmse_err": figure.rmse_err,
        }
        for name in sets
        if name in SETS
        for source, figure in SETS[name].published.items()
    ]


def verdicts(lines: Sequence[Row]) -> list[Verdict]:
    """Per set and figure: the best of our lines against the best published number.

    Ours is the best of several methods on the same test parts, so it flatters a little; which
    method it is, is said, and `hold_both` names the methods that need no such choice.
    """
    found = []
    for name, figure in _judged(lines):
        sign = SIGNS[figure]
        own = [x for x in lines if x["set"] == name and x[f"{figure}_err"] is not None]
        if own:
            found.append(_verdict(max(own, key=lambda x: sign * x[figure]), figure))
    return found


def hold_both(lines: Sequence[Row]) -> dict[str, list[str]]:
    """Per set: the methods that by themselves hold against the best published of each figure."""
    found: dict[str, list[str]] = {name: [] for name, _ in _judged(lines)}
    for line in lines:
        if line["set"] in found and all(
            line[f"{figure}_err"] is not None and _verdict(line, figure).holds for figure in SIGNS
        ):
            found[line["set"]].append(line["method"])
    return found


def _judged(lines: Sequence[Row]) -> list[tuple[str, str]]:
    names = dict.fromkeys(line["set"] for line in lines)
    return [(name, figure) for name in names if published([name]) for figure in SIGNS]


def _verdict(line: Row, figure: str) -> Verdict:
    """One of our lines against the best published number."""
    sign = SIGNS[figure]
    other = max(published([line["set"]]), key=lambda x: sign * x[figure])
    value, err, target = line[figure], line[f"{figure}_err"], other[figure]
    behind = 0.0 if round(value, PRINTED) == target else sign * (target - value)
    scale = err if err > 0 else math.ulp(abs(target) or 1.0)
    return Verdict(
        line["set"], figure, line["method"], value, err, other["method"], target, behind / scale
    )


def cells(line: Row) -> list[str]:
    """A line of the table as text: method, log-likelihood, RMSE, and what only we have."""
    return [
        line["method"],
        _figure(line, "log_likelihood", 2),
        _figure(line, "rmse", 2),
        _figure(line, "crps", 3),
        _figure(line, "coverage_90", 3),
        _figure(line, "log_likelihood_stated", 2),
        "" if "splits" not in line else f"{line['splits']}",
    ]


HEAD = (
    "method", "test log-likelihood", "RMSE", "CRPS", "90 % coverage",
    "log-likelihood as stated", "splits",
)  # fmt: skip


def _figure(line: Row, name: str, digits: int) -> str:
    if name not in line:
        return ""
    if line[name] is None:
        return "diverged" if line.get("diverged") else "-inf"
    value = float(line[name])
    # Naval's RMSE is of the order of 0.001: three significant digits of whatever there is. A
    # log-likelihood may be 0 anywhere, and its digits are absolute.
    small = value and abs(value) < 0.1 and "likelihood" not in name
    digits = max(digits, 2 - math.floor(math.log10(abs(value)))) if small else digits
    err = line.get(f"{name}_err")
    return f"{value:.{digits}f}" + ("" if err is None else f" ± {err:.{digits}f}")


def sentence(verdict: Verdict) -> str:
    """A verdict in words."""
    name = {"log_likelihood": "log-likelihood", "rmse": "RMSE"}[verdict.figure]
    digits = 4 if verdict.figure == "rmse" and abs(verdict.target) < 0.1 else 2
    value = f"{verdict.value:.{digits}f} ± {verdict.err:.{digits}f}"
    if verdict.behind == 0:
        words = "equal as printed"
    elif verdict.behind < 0:
        words = "better"
    elif verdict.holds:
        words = f"worse by {verdict.behind:.1f} standard errors, within one"
    else:
        words = f"worse by {verdict.behind:.1f} standard errors"
    return (
        f"{verdict.set}, {name}: {verdict.method} {value} against "
        f"{verdict.target:.{digits}f} of {verdict.published}: {words}"
    )


def sentences(lines: Sequence[Row]) -> list[str]:
    """All verdicts in words, and per set the methods that hold in both figures by themselves."""
    told = [sentence(verdict) for verdict in verdicts(lines)]
    for name, methods in hold_both(lines).items():
        told.append(f"{name}, both in one method: {', '.join(methods) or 'none'}")
    return told


def as_tables(lines: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A title, headings and cells per set; the published lines below ours."""
    found = []
    for name in dict.fromkeys(line["set"] for line in lines):
        own = [line for line in lines if line["set"] == name]
        body = [cells(line) for line in [*own, *published([name])]]
        found.append((name, list(HEAD), body))
    return found


def as_text(lines: Sequence[Row]) -> str:
    """Everything as plain text: a table per set, then the verdicts."""
    parts = [f"{title}\n{aligned([head, *body])}" for title, head, body in as_tables(lines)]
    told = sentences(lines)
    return "\n\n".join([*parts, "\n".join(told)] if told else parts)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_json(lines: Sequence[Row]) -> dict[str, Any]:
    """For programs: our lines, the published ones, and the verdicts."""
    names = list(dict.fromkeys(line["set"] for line in lines))
    return {
        "methods": list(lines),
        "published": published(names),
        "verdicts": [{**vars(verdict), "holds": verdict.holds} for verdict in verdicts(lines)],
        "hold_both": hold_both(lines),
    }
