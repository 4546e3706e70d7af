"""The arithmetic behind the report's words and tables: means, losses and gains with errors.

Errors are combined as if the lanes had been scored on different events. They were scored on the
same ones, so errors of differences come out too large: a gain called measurable is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from stillfit.apps.summary import Lane, Metric, Score, Summary

SURE = 2.0  # A difference counts as measurable from twice its standard error.


class Figure(NamedTuple):
    """A figure and its standard error, None where it is not known."""

    value: float
    error: float | None

    def minus(self, other: Figure) -> Figure:
        known = self.error is not None and other.error is not None
        error = math.hypot(self.error or 0.0, other.error or 0.0) if known else None
        return Figure(self.value - other.value, error)

    @property
    def sure(self) -> bool:
        """Whether the figure is measurably above 0."""
        return self.error is not None and self.value > SURE * self.error


def mean(scores: Iterable[Score], name: str) -> Figure | None:
    """Mean of a figure over fills, weighted with their events; None if no fill has it."""
    known = [(row.n, row.values.get(name), row.errors.get(name)) for row in scores]
    known = [row for row in known if row[1] is not None and row[0] > 0]
    events = sum(n for n, _, _ in known)
    if not events:
        return None
    value = sum(n * (v or 0.0) for n, v, _ in known) / events
    if any(error is None for _, _, error in known):
        return Figure(value, None)
    return Figure(value, math.sqrt(sum((n * (e or 0.0)) ** 2 for n, _, e in known)) / events)


def conditions(summary: Summary) -> list[str]:
    """Names of the conditions in the order in which they first came."""
    return list(dict.fromkeys(fill.condition for fill in summary.fills))


def season(summary: Summary, lane: str, metric: Metric) -> Figure | None:
    return mean(summary.lanes[lane].fills, metric.name)


def within(lane: Lane, condition: str, metric: Metric) -> Figure | None:
    """Mean over the fills of one condition."""
    return mean((row for row in lane.fills if row.condition == condition), metric.name)


def gain(metric: Metric, new: Figure, old: Figure) -> Figure:
    """How much better `new` is: positive is better, whichever way the metric runs."""
    return old.minus(new) if metric.better == "lower" else new.minus(old)


def best_and_equal(metric: Metric, column: dict[str, Figure | None]) -> tuple[str | None, set[str]]:
    """The best lane of a column, and the lanes that cannot be told from it (2 errors).

    None where there is no choice: one lane only, or a metric that is better neither way.
    """
    known = {name: figure for name, figure in column.items() if figure is not None}
    if len(column) < 2 or not known or metric.better == "neither":
        return None, set()
    sign = 1 if metric.better == "higher" else -1
    best = max(known, key=lambda name: sign * known[name].value)
    apart = {name: gain(metric, known[best], figure) for name, figure in known.items()}
    return best, {
        name
        for name, lead in apart.items()
        if name != best and lead.error is not None and not lead.sure
    }


def updating(summary: Summary) -> list[str]:
    """Lanes in which something was changed, in order; never the baseline."""
    changed = {d.lane for d in summary.decisions if d.what in ("switch", "redeploy")}
    return [
        name
        for name, lane in summary.lanes.items()
        if name != summary.baseline and (lane.cost.updates > 0 or name in changed)
    ]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One condition: what the unchanged model lost there, and what updating won back.

    `lost`: against its own mean in the first condition. `gains`: lane -> gain over the unchanged
    model, mean over all fills of the condition, so with those before an update could arrive.
    `last`: the best lane's gain in the condition's last fill.
    """

    condition: str
    fills: int
    lost: Figure
    gains: dict[str, Figure]
    best: str | None
    last: Figure | None

    @property
    def finding(self) -> str:
        """`none`: nothing measurable lost; `won`: some of it measurably won back; `not`: lost,
        and no lane measurably better; `unknown`: the errors are not known."""
        if self.lost.error is None:
            return "unknown"
        if not self.lost.sure:
            return "none"
        return "won" if self.best is not None and self.gains[self.best].sure else "not"

    @property
    def harmed(self) -> list[str]:
        """Lanes measurably worse than the model left alone."""
        return [
            name for name, figure in self.gains.items() if Figure(-figure.value, figure.error).sure
        ]


def losses(summary: Summary) -> list[Loss]:
    """Every condition but the first; empty without a baseline lane."""
    if summary.baseline is None or not summary.fills:
        return []
    metric, base = summary.headline, summary.lanes[summary.baseline]
    names = conditions(summary)
    reference = within(base, names[0], metric)
    found = []
    for name in names[1:]:
        alone = within(base, name, metric)
        if reference is None or alone is None:
            continue
        gains: dict[str, Figure] = {}
        for lane in updating(summary):
            figure = within(summary.lanes[lane], name, metric)
            if figure is not None:
                gains[lane] = gain(metric, figure, alone)
        best = max(gains, key=lambda lane: gains[lane].value) if gains else None
        numbers = [fill.fill for fill in summary.fills if fill.condition == name]
        found.append(
            Loss(
                condition=name,
                fills=len(numbers),
                lost=gain(metric, reference, alone),
                gains=gains,
                best=best,
                last=_in_fill(summary, best, numbers[-1]) if best else None,
            )
        )
    return found


def _in_fill(summary: Summary, lane: str, number: int) -> Figure | None:
    assert summary.baseline is not None
    pair = [
        mean(
            (row for row in summary.lanes[name].fills if row.fill == number), summary.headline.name
        )
        for name in (lane, summary.baseline)
    ]
    if pair[0] is None or pair[1] is None:
        return None
    return gain(summary.headline, pair[0], pair[1])


def won_back(summary: Summary, lane: str) -> float | None:
    """Share of the season's loss that a lane won back: (lane - alone) / (reference - alone).

    None without a baseline or where the season as a whole lost nothing measurable.
    """
    if summary.baseline is None or not summary.fills:
        return None
    metric = summary.headline
    reference = within(summary.lanes[summary.baseline], summary.fills[0].condition, metric)
    alone = season(summary, summary.baseline, metric)
    figure = season(summary, lane, metric)
    if reference is None or alone is None or figure is None:
        return None
    lost = gain(metric, reference, alone)
    if not lost.sure:
        return None
    return gain(metric, figure, alone).value / lost.value
