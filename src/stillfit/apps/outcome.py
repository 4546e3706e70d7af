"""A finished season or run: its files, and what the terminal says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stillfit.apps.report import on_hold, paragraphs, render
from stillfit.apps.report.figures import Figure, conditions, season, updating, within, won_back
from stillfit.apps.report.words import MISSING, number, percent, with_error
from stillfit.apps.screen import room, say, say_paragraph, show_table, width
from stillfit.apps.summary import Summary, read, write_text


class Outcome(NamedTuple):
    """What happened, and the folder that holds `summary.json` and `report.html`."""

    summary: Summary
    folder: Path

    @property
    def held(self) -> list[str]:
        """Lanes on hold at the end: they need a person."""
        return on_hold(self.summary)


def publish(summary: Summary, folder: Path) -> Outcome:
    """Write `summary.json` and `report.html` into `folder`, each whole or not at all."""
    summary.write(folder / "summary.json")
    write_text(folder / "report.html", render(summary))
    return Outcome(summary, folder)


def find(path: Path) -> tuple[Summary, Path]:
    """The summary at `path`, a file or the folder of a run, and the folder it lies in."""
    file = path / "summary.json" if path.is_dir() else path
    return read(file), file.parent


def show(outcome: Outcome) -> None:
    """The season as a table, what happened in words, and where the report is."""
    summary = outcome.summary
    names = conditions(summary)
    metric = summary.headline
    compared = summary.baseline is not None
    head = ["lane", *names, "all events", *(["won back"] if compared else [])]
    table = _rows(summary, names, with_error)
    if width(head, table) > room():  # a narrow terminal: errors of the means alone
        table = _rows(summary, names, lambda f: MISSING if f is None else number(f.value, 3))
    if width(head, table) > room():  # a very narrow one: the means alone
        last = len(names) + 1
        head, table = [head[0], *head[last:]], [[row[0], *row[last:]] for row in table]
    unit = f" ({metric.unit})" if metric.unit else ""
    say(f"{metric.title}{unit}")
    show_table(head, table)
    say()
    for text in paragraphs(summary):
        say_paragraph(text)
    say()
    say(f"summary: {outcome.folder / 'summary.json'}")
    say(f"report:  {outcome.folder / 'report.html'}")


def _rows(
    summary: Summary, names: Sequence[str], cell: Callable[[Figure | None], str]
) -> list[list[str]]:
    rows = []
    for name, lane in summary.lanes.items():
        cells = [cell(within(lane, condition, summary.headline)) for condition in names]
        row = [name, *cells, with_error(season(summary, name, summary.headline))]
        if summary.baseline is not None:
            share = won_back(summary, name) if name in updating(summary) else None
            row.append("" if share is None else percent(share))
        rows.append(row)
    return rows


def as_json(outcome: Outcome) -> dict[str, Any]:
    """What a program wants to know of a finished season or run."""
    summary = outcome.summary
    means = {name: season(summary, name, summary.headline) for name in summary.lanes}
    return {
        "summary": str(outcome.folder / "summary.json"),
        "report": str(outcome.folder / "report.html"),
        "fills": len(summary.fills),
        "metric": summary.headline.name,
        "lanes": {
            name: None if figure is None else {"mean": figure.value, "err": figure.error}
            for name, figure in means.items()
        },
        "held": outcome.held,
    }
