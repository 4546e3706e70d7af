"""What online strategies keep between updates: which events were learned, and on which weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, content_hash, first_bad
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.updaters.contract import Learner

LEARNED, ON = "learned", "on"


def fingerprint(weights: Mapping[str, Array]) -> NDArray[np.uint8]:
    """SHA-256 of named weights, 32 bytes: what belongs to other weights must not be used."""
    return np.frombuffer(bytes.fromhex(content_hash(weights)), np.uint8).copy()


def valid_for(learner: Learner, on: NDArray[np.uint8]) -> Learner:
    """The learner's state if it was made on these weights, else nothing: begin anew."""
    return learner if np.array_equal(learner.get(ON, np.zeros(0)), on) else {}


def not_learned(learner: Learner, examples: Examples) -> Examples:
    """The events that were not learned from yet, in the order given; an id twice counts once."""
    first = np.zeros(len(examples), np.bool_)
    first[np.unique(examples.ids, return_index=True)[1]] = True
    new = first & ~np.isin(examples.ids, learner.get(LEARNED, np.zeros(0, np.int64)))
    return examples if new.all() else examples.take(np.flatnonzero(new))


def with_learned(learner: Learner, examples: Examples, recall: int) -> NDArray[np.int64]:
    """Ids of the last `recall` events learned, these included."""
    ids = np.concatenate([learner.get(LEARNED, np.zeros(0, np.int64)), examples.ids])
    return ids[len(ids) - min(recall, len(ids)) :].astype(np.int64)


def require_finite(examples: Examples) -> None:
    """`DataError` where an input or target is NaN or infinite: one such step spoils all weights."""
    bad = first_bad(examples.inputs) or first_bad(examples.targets)
    if bad is not None:
        raise DataError(
            f"an online learner takes each event as it is, and {bad}; drop such events before, as "
            "a guarded stream does"
        )


def check_common(name: str, min_events: int, recall: int) -> None:
    """`ConfigError` for knobs that every online strategy has."""
    if min_events < 1 or recall < 0:
        raise ConfigError(
            f"{name} needs min_events of at least 1 and recall of at least 0, got {min_events} "
            f"and {recall}; recall is how many ids of learned events are kept (8 bytes each)"
        )
