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
from stillfit.models.uncertain import core_of
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
    so an old condition is redeployed, not remembered. Of a network that states its uncertainty by
    parts round a core, the core is recalibrated; where members have calibrations of their own,
    the update is declined.
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
        core = core_of(serving.network)
        changed = serving.task.recalibrate(core, fresh, significance=self.significance)
        if not changed:
            return Declined(
                f"no correction exceeds {self.significance:g} standard errors on "
                f"{len(fresh)} labelled events"
            )
        if not all(np.isfinite(value).all() for value in changed.values()):
            return Declined("the corrections are not finite; do the labelled events hold NaN?")
        placed = _placed(serving, core, changed)
        if placed is None:
            return Declined(
                f"{type(serving.network).__name__} has more calibrations than one, which one set "
                "of corrections cannot change; recalibrate the plain network"
            )
        model = serving.with_weights({**serving.weights(), **placed})
        return meter.finish(model, learner, [fresh], budget)


def _placed(serving: Model, core: nn.Module, changed: dict[str, Array]) -> dict[str, Array] | None:
    """The core's values under their names in the whole network; None where members have theirs."""
    inside = [name for name, module in serving.network.named_modules() if module is core]
    if not inside:
        return None
    first = f"{inside[0]}." if inside[0] else ""
    known = serving.network.state_dict()
    placed = {first + name: value for name, value in changed.items()}
    for name, value in changed.items():
        twins = [key for key in known if key == name or key.endswith(f".{name}")]
        if twins != [first + name] or tuple(known[first + name].shape) != value.shape:
            return None
    return placed
