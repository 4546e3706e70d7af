"""The references that every strategy is compared with: frozen, retraining, plain fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.training import Part, Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few


@dataclass(frozen=True, kw_only=True)
class Frozen(Updater):
    """Never changes: what is lost by doing nothing."""

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
        return Declined("this lane is frozen: it never changes")


@dataclass(frozen=True, kw_only=True)
class Retrain(Updater):
    """Train from nothing on everything that is kept, old conditions and new.

    The upper bound where all data may be kept, and the most expensive: `schedule.steps` steps on
    up to the whole labelled store. More `weight_of_new` favours the newest condition: the share
    of each batch that is drawn from it (0: as it lies in the store).
    Source: the slides' "regularly retrain and redeploy"; called joint or cumulative training in
    Lesort et al. 2020, arXiv:1907.00182.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=600))
    min_events: int = 500
    weight_of_new: float = 0.5

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
        kept = memory.all()
        few = too_few(fresh, self.min_events, "retraining")
        if few is not None:
            return few
        return _from_nothing(self, serving, learner, fresh, kept, budget, rng)


@dataclass(frozen=True, kw_only=True)
class RetrainWindow(Updater):
    """Train from nothing on the newest `window` seconds only: forgets by construction."""

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=600))
    min_events: int = 500
    window: float = 7 * 24 * 3600.0

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
        few = too_few(fresh, self.min_events, "retraining on a window")
        if few is not None:
            return few
        kept = memory.window(float(fresh.times.max()) - self.window)
        return _from_nothing(self, serving, learner, fresh, kept, budget, rng)


def _from_nothing(
    updater: Retrain | RetrainWindow,
    serving: Model,
    learner: Learner,
    fresh: Examples,
    kept: Examples,
    budget: Budget,
    rng: np.random.Generator,
) -> Candidate[Model] | Declined:
    meter = Meter.start(updater, rng)
    known = kept if len(kept) else fresh
    network = uncertain.fresh(serving.task, serving.network, known, meter.seed)
    model = Model(network, serving.task, serving.architecture)
    share = updater.weight_of_new if isinstance(updater, Retrain) else 0.0
    steps = mixed_training(model, fresh, known, share, updater.schedule, rng)
    read = [known]
    if share:  # fresh events mostly lie in the store too, and count once
        read.append(fresh.take(~np.isin(fresh.ids, known.ids)))
    return meter.finish(model, learner, read, budget, steps=steps)


@dataclass(frozen=True, kw_only=True)
class FineTune(Updater):
    """Train on from the serving weights with fresh events only ("naive"): cheap, forgets.

    A smaller `schedule.rate` moves less and forgets less. Source: the lower reference of
    continual learning, e.g. van de Ven and Tolias 2019, arXiv:1904.07734.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))
    min_events: int = 200

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
        few = too_few(fresh, self.min_events, "fine-tuning")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        model = serving.copy()
        steps = mixed_training(model, fresh, Examples.empty(), 1.0, self.schedule, rng)
        return meter.finish(model, learner, [fresh], budget, steps=steps)


def mixed_training(
    model: Model,
    fresh: Examples,
    old: Examples,
    share: float,
    schedule: Schedule,
    rng: np.random.Generator,
) -> int:
    """Train in place on batches with a `share` from `fresh` and the rest from `old`.

    A share of 1, or no old events, is fine-tuning; a share of 0 trains on `old` alone. Returns
    the number of steps taken, see `models.training.fit`.
    """
    new_rows = round(share * schedule.batch) if len(old) else schedule.batch
    parts = []
    if new_rows:
        parts.append(Part(Prepared.of(model, fresh), new_rows))
    if new_rows < schedule.batch:
        parts.append(Part(Prepared.of(model, old), schedule.batch - new_rows))
    return fit(model, parts, schedule, rng)
