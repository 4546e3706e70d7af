"""Events whose labels have not come, from a memory that has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stillfit.core.arrays import content_hash
from stillfit.core.events import Examples
from stillfit.core.values import Candidate
from stillfit.models.model import Model
from stillfit.updaters.contract import Memory, Unlabelled


def waiting(memory: Memory, fresh: Examples, most: int) -> Examples:
    """The newest events, at most `most`, of the condition of the newest fresh event.

    None where the memory has labelled events only. Those that `fresh` labels are left out.
    """
    if not isinstance(memory, Unlabelled) or not len(fresh) or not most:
        return Examples.empty()
    found = memory.unlabelled(str(fresh.conditions[-1]), most)
    new = ~np.isin(found.ids, fresh.ids)
    return found if new.all() else found.take(np.flatnonzero(new))


def also_read(candidate: Candidate[Model], events: Examples) -> Candidate[Model]:
    """The candidate with unlabelled events in its provenance: their hash and times, no labels."""
    if not len(events):
        return candidate
    was = candidate.provenance
    times = [float(events.times.min()), float(events.times.max()), *(was.span or ())]
    made = replace(
        was,
        data=(*was.data, content_hash({**events.inputs, "ids": events.ids})),
        span=(min(times), max(times)),
    )
    return replace(candidate, provenance=made)
