"""Pseudo-labels: the network's own answers as targets, where it is sure of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays, Column, Ragged, names_of, take
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Predictive
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.labels.waiting import also_read, waiting
from stillfit.updaters.references import mixed_training
from stillfit.updaters.regularisation.importance import DrawsTargets


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(Updater):
    """Fine-tune on the few fresh labels; then on them and on what the network is sure of itself.

    First the serving network is fine-tuned as by `FineTune`. Then it labels the newest events
    whose labels have not come (`most`, from a memory that is `Unlabelled`), those that it is
    sure of are kept, and as many steps follow with a `share` of each batch from them.

    Classes: an event counts if its largest probability is at least `probability`; its label is
    that class, which sharpens the decision between dense regions. Numbers: if the stated standard
    deviation is at most `std`, in the target's unit (None: the median of what is stated of the
    fresh events); its label is drawn from the stated distribution, since training on the mean
    itself would teach the network that there is no noise. On average such labels pull a network
    that agrees with itself nowhere: expect little for numbers. What a task predicts beside its
    headline is drawn by the task, if it is one that `DrawsTargets`.

    A sure network that is wrong learns its error: lower `probability` takes more events and more
    errors. A threshold that nothing passes, or a memory without unlabelled events, is `FineTune`
    bit for bit.

    Cost: twice the steps of `schedule`, and a prediction of `most` events. Source: Lee 2013,
    "Pseudo-Label" (ICML workshop); threshold: Sohn et al. 2020, arXiv:2001.07685.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))
    probability: float = 0.95
    std: float | None = None
    share: float = 0.5
    most: int = 4000
    min_events: int = 20

    def __post_init__(self) -> None:
        if not self.probability > 0:
            raise ConfigError(
                f"probability must be above 0 (above 1 takes no event), got {self.probability}"
            )
        if self.std is not None and not self.std >= 0:
            raise ConfigError(
                f"std must be 0 or more, in the target's unit, or None for the median of the "
                f"labelled events, got {self.std}"
            )
        if not 0 <= self.share <= 1 or self.most < 0 or self.min_events < 1:
            raise ConfigError(
                f"share must be in [0, 1], most 0 or more and min_events at least 1, got "
                f"{self.share}, {self.most} and {self.min_events}"
            )

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
        few = too_few(fresh, self.min_events, "learning with pseudo-labels")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        model = serving.copy()
        steps = mixed_training(model, fresh, Examples.empty(), 1.0, self.schedule, rng)
        events = waiting(memory, fresh, self.most)
        if len(events) and steps == self.schedule.steps:
            labelled = self._labelled(model, events, fresh, rng)
            if isinstance(labelled, Declined):
                return labelled
            if len(labelled) and self.share:
                share = 1 - self.share
                steps += mixed_training(model, fresh, labelled, share, self.schedule, rng)
        made = meter.finish(model, learner, [fresh], budget, steps=steps)
        return made if isinstance(made, Declined) else also_read(made, events)

    def _labelled(
        self, model: Model, events: Examples, fresh: Examples, rng: np.random.Generator
    ) -> Examples | Declined:
        """The events that the model is sure of, with its answers as targets."""
        stated, outputs = model.predict(events.inputs)
        rows = np.flatnonzero(self._sure(model, stated, fresh))
        stated, outputs = stated.take(rows), take(outputs, rows)
        task, targets = model.task, dict[str, Column]()
        if isinstance(stated, Categorical):
            targets[task.target] = stated.probabilities.argmax(1)
        elif isinstance(task, DrawsTargets):
            targets |= task.draw_targets(stated, outputs, rng)
        else:
            targets[task.target] = stated.sample(1, rng)[0]
        missing = set(fresh.targets) - set(targets)
        if missing:
            return Declined(
                f"{type(task).__name__} cannot label {names_of(missing)} by itself, which its "
                "labels hold; give the task draw_targets"
            )
        sure = events.take(rows)
        like = _like({name: targets[name] for name in fresh.targets}, fresh.targets)
        return Examples(sure.ids, sure.inputs, like, sure.times, sure.conditions)

    def _sure(
        self, model: Model, stated: Predictive | Categorical, fresh: Examples
    ) -> NDArray[np.bool_]:
        if isinstance(stated, Categorical):
            return np.asarray(stated.probabilities.max(1) >= self.probability)
        limit = self.std
        if limit is None:
            known, _ = model.predict(fresh.inputs)
            assert isinstance(known, Predictive)
            limit = float(np.median(known.std))
        return np.asarray(stated.std <= limit)


def _like(targets: Arrays, fresh: Arrays) -> dict[str, Column]:
    """The targets in the types that labels have, so that both join."""
    made: dict[str, Column] = {}
    for name, column in targets.items():
        pattern = fresh[name]
        if isinstance(column, Ragged):
            kind = pattern.values.dtype if isinstance(pattern, Ragged) else column.values.dtype
            made[name] = column.with_values(column.values.astype(kind))
        else:
            kind = column.dtype if isinstance(pattern, Ragged) else pattern.dtype
            made[name] = column.astype(kind)
    return made
