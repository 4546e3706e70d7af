"""Which labelled events stand for what: the present condition, old ones, fills, bins of sigma."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Index
from stillfit.core.events import Examples
from stillfit.loop.plan import Lane
from stillfit.loop.proposals import Rows
from stillfit.streams.store import LabelledStore, View

BEFORE = "before"
NO_FILL = np.iinfo(np.int64).min


class Term(NamedTuple):
    """The events that a version was chosen for: of a condition, seen from `since` until `until`.

    None: no limit. Their error is the level that the version is held to.
    """

    condition: str
    since: float | None = None
    until: float | None = None


def select(lane: Lane, store: LabelledStore, since: float | None) -> Rows:
    """The rows that stand for the present condition, and those of the old ones.

    The present condition is that of the newest labelled event, by slow control's name for it,
    from `since` on. Where slow control has one name for all, the rows before `since` are the old
    condition.
    """
    name = newest_condition(store)
    fresh, new = present(lane, store, Term(name, since))
    old = {
        other: rows_of(store.held_out, Term(other), lane.judged)
        for other in store.held_out.conditions
        if other != name
    }
    if name == "all" and len(new):
        earlier = rows_of(store.held_out, Term(name, None, float(new.times.min())), lane.judged)
        if len(earlier):
            old[BEFORE] = earlier
    return Rows(condition=name, fresh=fresh, new=new, old=old)


def newest_condition(store: LabelledStore) -> str:
    """Slow control's name for the newest labelled event, "all" where nothing is labelled yet."""
    newest = store.training.newest(1)
    return str(newest.conditions[0]) if len(newest) else "all"


def present(lane: Lane, store: LabelledStore, term: Term) -> tuple[Examples, Examples]:
    """Rows of a term to learn from, and held-out ones to judge on."""
    return rows_of(store.training, term, lane.fresh), rows_of(store.held_out, term, lane.judged)


def rows_of(view: View, term: Term, limit: int) -> Examples:
    """The newest events of a term, at most `limit`."""
    rows = view.condition(term.condition)
    keep = np.ones(len(rows), np.bool_)
    if term.since is not None:
        keep &= rows.times >= term.since
    if term.until is not None:
        keep &= rows.times < term.until
    where = np.flatnonzero(keep)[-limit:]
    return rows if len(where) == len(rows) else rows.take(where)


def in_order(parts: list[Examples]) -> Examples:
    """All parts as one, in order of event ids, which is that of time."""
    joined = Examples.join(parts)
    return joined.take(np.argsort(joined.ids, kind="stable")) if len(joined) else joined


def stretches(
    conditions: NDArray[np.str_], fills: NDArray[np.int64]
) -> list[tuple[int | None, Index]]:
    """Where the events of each fill and condition are, with the number of the fill if known."""
    if np.all(conditions == conditions[0]) and np.all(fills == fills[0]):
        return [(None if fills[0] == NO_FILL else int(fills[0]), slice(None))]
    _, names = np.unique(conditions, return_inverse=True)
    pairs = np.stack([names.reshape(-1), fills])
    kinds, first, which = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    return [
        (
            None if kinds[1, kind] == NO_FILL else int(kinds[1, kind]),
            np.flatnonzero(which.reshape(-1) == kind),
        )
        for kind in np.argsort(first)
    ]


def reliability(std: Array, away: Array, bins: int = 5) -> list[dict[str, float]]:
    """Stated against observed deviation in `bins` of equal size by stated deviation.

    `stated`: mean of std; `observed`: 68.27 % quantile of |residual|, which equals the standard
    deviation for Gaussian residuals and is not ruled by the few events that are wholly wrong.
    """
    if not len(std):
        return []
    order = np.argsort(std, kind="stable")
    return [
        {
            "stated": float(std[part].mean()),
            "observed": _quantile(away[part], 0.6827),
            "n": len(part),
        }
        for part in np.array_split(order, min(bins, len(std)))
    ]


def _quantile(values: Array, share: float) -> float:
    """What `numpy.quantile` gives, without its overhead (ten times this for a hundred values)."""
    rising = np.sort(values)
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return float(rising[low] + (rising[high] - rising[low]) * (place - low))
