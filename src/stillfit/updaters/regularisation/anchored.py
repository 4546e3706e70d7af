"""What EWC, online EWC, synaptic intelligence and MAS share: training in a well about anchors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Part, Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.regularisation.held import (
    Holding,
    Pull,
    Well,
    belongs,
    floored,
    packed,
    stored,
    weights_of,
)


@dataclass(frozen=True, kw_only=True)
class Anchored(Updater):
    """Fine-tune on fresh events with parameters held to where they were, by their importance.

    Loss: the task's + `penalty` / 2 sum_i importance_i (theta_i - anchor_i)^2. A larger penalty
    forgets less and adapts less; 0 is fine-tuning, a huge one freezes. Every parameter has at
    least `floor` of the mean importance, so that one of which no event said anything is held a
    little (0: it is free). `pull`: how the well acts, see `held.Holding`; `"implicit"` is stable
    at any penalty, `"gradient"` is the published form.

    The state belongs to the network that the last update gave. Where another one serves by now
    (retrained, redeployed, rolled back), it begins anew there, from what `memory` keeps of
    earlier events. Without any state an update is fine-tuning, and what it learned is held from
    then on. An update whose loss diverged leaves the state as it was.

    Cost: a training step as in fine-tuning, with about ten additions per parameter; the
    importance once per update. Inference: none.
    """

    penalty: float = 1.0
    floor: float = 1e-3
    pull: Pull = "implicit"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))
    min_events: int = 200

    def __post_init__(self) -> None:
        self._at_least(0, "penalty", "0 is plain fine-tuning, a huge one freezes")
        self._at_least(0, "floor", "it is a share of the mean importance, 0 leaves out none")
        self._at_least(1, "min_events", "an update needs an event")
        if self.pull not in get_args(Pull):
            raise ConfigError(
                f"pull must be one of {', '.join(get_args(Pull))}, got {self.pull!r}; implicit is "
                "stable at any penalty"
            )

    def _at_least(self, least: float, name: str, why: str) -> None:
        value = getattr(self, name)
        if not (value >= least and math.isfinite(value)):
            raise ConfigError(
                f"{name} of {type(self).__name__} must be {least} or more and finite, got {value}; "
                f"{why}"
            )

    @property
    @abstractmethod
    def title(self) -> str:
        """The method in words."""

    @abstractmethod
    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner: ...

    @abstractmethod
    def learned(
        self,
        learner: Learner,
        serving: Model,
        model: Model,
        fresh: Examples,
        path: Mapping[str, Array],
        rng: np.random.Generator,
    ) -> Learner:
        """The state after `serving` became `model` on `fresh`.

        `path`: what `Holding` recorded, where `records` asks for it.
        """

    @property
    def records(self) -> bool:
        """Whether the path of the training is asked for."""
        return False

    def well(self, learner: Learner) -> Well | None:
        """What holds the parameters, `penalty` included; None where nothing does."""
        anchors = stored(learner, "anchor")
        if not anchors or not self.penalty:
            return None
        held = floored(stored(learner, "importance"), self.floor)
        return Well(_times(self.penalty, held), anchors)

    def newest(self, learner: Learner) -> Mapping[str, Array]:
        """The parameters that the last update gave, as the state knows them."""
        return stored(learner, "anchor")

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
        few = too_few(fresh, self.min_events, self.title)
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        learner = self._present(learner, serving, fresh, memory, rng)
        model = serving.copy()
        guide = Holding(model.network, self.well(learner), self.pull, self.records)
        parts = [Part(Prepared.of(model, fresh), self.schedule.batch)]
        steps = fit(model, parts, self.schedule, rng, guide=guide)
        if steps == self.schedule.steps:
            path = {name: part.numpy() for name, part in guide.path.items()}
            learner = self.learned(learner, serving, model, fresh, path, rng)
        return meter.finish(model, learner, [fresh], budget, steps=steps)

    def _present(
        self,
        learner: Learner,
        serving: Model,
        fresh: Examples,
        memory: Memory,
        rng: np.random.Generator,
    ) -> Learner:
        """The state where it belongs to the serving network, else one that was begun anew."""
        newest = self.newest(learner)
        if not newest:
            return learner
        belongs(newest, serving.network)
        own = weights_of(serving.network)
        if not self.penalty or all(
            np.array_equal(own[name], anchor) for name, anchor in newest.items()
        ):
            return learner
        kept = memory.all()
        earlier = kept.take(~np.isin(kept.ids, fresh.ids))
        return self.begin(serving, earlier, rng=rng) if len(earlier) else {}


def consolidated(
    learner: Learner, model: Model, importance: Mapping[str, Array], keep: float
) -> Learner:
    """One running importance, `keep` of the old and the new, about the parameters of `model`."""
    old = stored(learner, "importance")
    if old:
        belongs(old, model.network)
        importance = {n: np.float32(keep) * old[n] + part for n, part in importance.items()}
    return packed(importance=importance, anchor=weights_of(model.network))


def _times(factor: float, parts: Mapping[str, Array]) -> dict[str, Array]:
    with np.errstate(over="ignore"):
        return {name: np.float32(factor) * part for name, part in parts.items()}
