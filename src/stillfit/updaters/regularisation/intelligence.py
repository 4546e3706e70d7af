"""Synaptic intelligence: parameters held by what they did for the loss on their way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.models.model import Model
from stillfit.models.training import Prepared, fit
from stillfit.updaters.contract import Learner
from stillfit.updaters.regularisation.anchored import Anchored, consolidated
from stillfit.updaters.regularisation.ewc import check_share
from stillfit.updaters.regularisation.held import Holding, weights_of


@dataclass(frozen=True, kw_only=True)
class SynapticIntelligence(Anchored):
    """Fine-tune with each parameter held by its share in the fall of the loss so far.

    During an update omega_i sums -g_i dtheta_i over the steps: g the batch's gradient of the
    task's loss alone, dtheta the step as it was taken. Afterwards

        importance_i <- gamma importance_i + max(omega_i, 0) / (D_i^2 + xi),

    D_i the whole move of the parameter, and the anchor is where it is now. Loss: the task's +
    `penalty` / 2 sum_i importance_i (theta_i - anchor_i)^2: the paper's c is half the penalty.
    `xi` damps what moved little: larger trusts the few that moved far more; it has the
    unit of a squared parameter. `gamma` below 1 lets old updates fade (the paper: 1).

    Over the noise of batches omega is more than the fall of the loss, near the root of a Fisher
    information (Benzing 2022, arXiv:2006.06357). The path of the network's first training is
    not known to `begin`, which therefore trains a copy on for `schedule`, keeps its path and
    throws the copy away.

    Cost: no extra pass; four additions per parameter and step. State: 8 bytes per parameter.
    Source: Zenke et al. 2017, arXiv:1703.04200.
    """

    penalty: float = 10.0
    xi: float = 0.1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, self.gamma)
        if not 0 < self.xi < np.inf:
            raise ConfigError(
                f"xi must be positive and finite, got {self.xi}; it keeps parameters that hardly "
                "moved from being held without bounds"
            )

    @property
    def title(self) -> str:
        return "synaptic intelligence"

    @property
    def records(self) -> bool:
        return True

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        if not len(examples):
            return {}
        model = serving.copy()
        guide = Holding(model.network, None, self.pull, record=True)
        fit(model, Prepared.of(model, examples), self.schedule, rng, guide=guide)
        path = {name: part.numpy() for name, part in guide.path.items()}
        return consolidated({}, serving, self._importance(serving, model, path), self.gamma)

    def learned(
        self,
        learner: Learner,
        serving: Model,
        model: Model,
        fresh: Examples,
        path: Mapping[str, Array],
        rng: np.random.Generator,
    ) -> Learner:
        return consolidated(learner, model, self._importance(serving, model, path), self.gamma)

    def _importance(
        self, before: Model, after: Model, path: Mapping[str, Array]
    ) -> dict[str, Array]:
        first, last = weights_of(before.network), weights_of(after.network)
        return {
            name: np.maximum(work, 0) / ((last[name] - first[name]) ** 2 + np.float32(self.xi))
            for name, work in path.items()
        }
