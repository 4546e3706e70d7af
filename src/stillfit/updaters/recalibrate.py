"""Recalibration: closed-form tables, thresholds and scales from a few hundred labelled events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from stillfit.core.arrays import Array
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few


@runtime_checkable
class Recalibrates(Protocol):
    """A task that knows which buffers of its network can be set in closed form."""

    def recalibrate(
        self, network: nn.Module, examples: Examples, *, significance: float
    ) -> dict[str, Array]:
        """New values of some buffers, by name; only what is significant, {} for nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recalibrate(Updater):
    """Set tables, thresholds and scales from labelled events; the trained weights stay.

    The cheapest rung that learns: closed form, no gradient, the same circuit. `significance`:
    how many standard errors a correction must exceed to be applied; larger is safer at nominal
    and needs more events for a small shift. One set per condition: each is a version of its own,
    so an old condition is redeployed, not remembered.
    """

    significance: float = 3.0
    min_events: int = 100

    def update(
        self,
        serving: Model,
        learner: Learner,
        fresh: Examples,
        memory: Memory,
        *,
        budget: Budget,
        rng: np.random.Generator,
    ) -> Candidate[Model] | Declined:
        if not isinstance(serving.task, Recalibrates):
            return Declined(
                f"{type(serving.task).__name__} has nothing to recalibrate in closed form"
            )
        few = too_few(fresh, self.min_events, "recalibration")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        changed = serving.task.recalibrate(serving.network, fresh, significance=self.significance)
        if not changed:
            return Declined(
                f"no correction exceeds {self.significance:g} standard errors on "
                f"{len(fresh)} labelled events"
            )
        model = serving.with_weights({**serving.weights(), **changed})
        return meter.finish(model, learner, [fresh], budget)
