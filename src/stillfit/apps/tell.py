"""Rows of a registry's answers as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from stillfit.apps.inspect import Row
from stillfit.apps.report.words import MISSING, duration, short, size

__all__ = ["history_rows", "size", "status_rows", "version_rows"]


def when(time: float | None) -> str:
    """A time of the stream: exact, and readable."""
    if time is None:
        return MISSING
    return f"{time:.0f} s" if abs(time) < 60 else f"{time:.0f} s ({duration(time)})"


def status_rows(lanes: Sequence[Row]) -> list[list[str]]:
    """lane, state, serves, since, because."""
    rows = []
    for lane in lanes:
        held = lane["held"]
        state = "on hold" if held else "serving" if lane["version"] else "nothing serves"
        orders = [str(order["kind"]) for order in lane.get("waiting", [])]
        if orders:
            state += f", waiting: {', '.join(orders)}"
        because = str(lane["because"])
        if held:
            because = f"{because}; on hold by {held['actor']}: {held['because']}"
        rows.append([lane["lane"], state, short(lane["version"]), when(lane["since"]), because])
    return rows


def history_rows(entries: Sequence[Row]) -> list[list[str]]:
    """entry, time, lane, what, version, by, because."""
    return [
        [
            str(entry["seq"]),
            when(entry["time"]),
            entry["lane"],
            entry["kind"],
            short(entry["version"]),
            entry["actor"],
            entry["because"],
        ]
        for entry in entries
    ]


def version_rows(versions: Sequence[Row]) -> list[list[str]]:
    """version, from, made by, class, trained on, parameters, size, served."""
    rows = []
    for found in versions:
        events = [f"{number} {name}" for name, number in found["events"].items()]
        served = [f"{place['lane']} from {when(place['time'])}" for place in found["served"]]
        rows.append(
            [
                short(found["version"]),
                short(found["parent"]),
                found["updater"],
                found["update_class"],
                ", ".join(events) or MISSING,
                str(found["footprint"]["parameters"]),
                size(found["bytes"]),
                ", ".join(served) or "never",
            ]
        )
    return rows
