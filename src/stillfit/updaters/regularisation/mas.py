"""Memory aware synapses: parameters held by how much the answers depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.updaters.contract import Learner
from stillfit.updaters.regularisation.anchored import Anchored, consolidated
from stillfit.updaters.regularisation.ewc import check_share
from stillfit.updaters.regularisation.importance import chosen, sensitivity


@dataclass(frozen=True, kw_only=True)
class MAS(Anchored):
    """Fine-tune with each parameter held by how much the network's answers depend on it.

    After an update importance_i <- `gamma` importance_i + mean over events of
    |d ||F||^2 / d theta_i|, F the outputs (see `importance.sensitivity`: here they are taken
    about their mean and over their deviation, so that a target's zero and unit do not matter;
    the paper takes them as they are). Loss: the task's + `penalty` / 2
    sum_i importance_i (theta_i - anchor_i)^2. It reads inputs alone, at most `events` of them:
    `importance_of` takes any unlabelled ones. `gamma` below 1 lets old updates fade.

    Cost: about three passes per event read; a network of m passes is read in all of them.
    State: 8 bytes per parameter. Source: Aljundi et al. 2018, arXiv:1711.09601.
    """

    events: int = 1000
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, self.gamma)
        self._at_least(1, "events", "the importance is a mean over events")

    @property
    def title(self) -> str:
        return "memory aware synapses"

    def importance_of(
        self, model: Model, examples: Examples, rng: np.random.Generator
    ) -> dict[str, Array]:
        """Float32 by parameter, from inputs; targets are not read and may be missing."""
        some = examples.take(chosen(len(examples), self.events, rng))
        return sensitivity(model, uncertain.prepare(model.task, model.network, some.inputs), rng)

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        return self.learned({}, serving, serving, examples, {}, rng) if len(examples) else {}

    def learned(
        self,
        learner: Learner,
        serving: Model,
        model: Model,
        fresh: Examples,
        path: Mapping[str, Array],
        rng: np.random.Generator,
    ) -> Learner:
        return consolidated(learner, model, self.importance_of(model, fresh, rng), self.gamma)
