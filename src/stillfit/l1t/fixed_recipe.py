"""From a trained float vertex network to one in fixed point with a pruned association."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillfit.core.events import Examples
from stillfit.l1t.fixed_adaptive import fixed_vertex
from stillfit.models.fixed.calibration import calibrated
from stillfit.models.fixed.pruning import MagnitudePruning
from stillfit.models.model import Model
from stillfit.models.training import Prepared, Schedule, fit

# The calibration tables are for corrections of a known nominal, not for the nominal.
FROZEN = {"calibration": 0.0}


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Convert, calibrate ranges, train quantised, prune step by step, train on.

    `first`: training after conversion. `pruning`: None for none. `last`: training at the end, with
    ranges read anew before it. `arguments`: of `fixed.FixedE2E` or `FixedAdaptiveE2E` (bits and
    modes). Cost: all the steps of training together, 1000 with the defaults.
    """

    first: Schedule = field(
        default_factory=lambda: Schedule(steps=200, batch=250, rate=0.003, cosine=False)
    )
    pruning: MagnitudePruning | None = field(
        default_factory=lambda: MagnitudePruning(
            steps=8,
            density=0.25,
            layers=("associate",),
            schedule=Schedule(steps=50, batch=250, rate=0.003, cosine=False),
        )
    )
    last: Schedule = field(default_factory=lambda: Schedule(steps=400, batch=250, rate=0.003))
    arguments: dict[str, Any] = field(default_factory=dict)

    def compress(self, model: Model, examples: Examples, rng: np.random.Generator) -> Model:
        """A fixed-point model of a float `E2E` or `AdaptiveE2E`, trained on `examples`. Pure."""
        small = calibrated(fixed_vertex(model, **self.arguments), examples)
        data = Prepared.of(small, examples)
        fit(small, data, self.first, rng, rates=FROZEN)
        if self.pruning is not None:
            small = self.pruning.prune(calibrated(small, examples), data, rng, FROZEN)
        small = calibrated(small, examples)
        fit(small, data, self.last, rng, rates=FROZEN)
        return small
