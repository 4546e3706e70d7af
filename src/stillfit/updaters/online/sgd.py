"""Gradient steps online: each event once, as it comes, alone or beside a few remembered ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.models.uncertain import Uncertain
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.online.memory import (
    LEARNED,
    ON,
    check_common,
    fingerprint,
    not_learned,
    require_finite,
    valid_for,
    with_learned,
)
from stillfit.updaters.online.stepping import Plan, Steps, in_turn, learn, with_replay
from stillfit.updaters.replay.experience import Buffered


@dataclass(frozen=True, kw_only=True)
class OnlineFineTune(Updater):
    """One pass of gradient steps over the fresh events, in their order, each event once.

    Each step takes `batch` events: w = w - rate g, with `momentum`, or Adam. An event that was
    learned from does not count as fresh again (the ids of the last `recall` are kept). The
    optimiser's state is kept between updates, as if all were one pass; where something other than
    this strategy changed the serving weights it begins anew. `rate`: more adapts faster, forgets
    more and, above the inverse of the curvature, diverges. `clip`: largest norm of a gradient,
    inf for none.

    Cost: one step per `batch` events; memory: 8 bytes per recalled id, and the optimiser's state
    (momentum: one number per weight, Adam: two). Source: Robbins and Monro 1951,
    doi:10.1214/aoms/1177729586; as a reference of online continual learning: Aljundi et al. 2019,
    arXiv:1908.04742.
    """

    batch: int = 1
    rate: float = 0.01
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    clip: float = 10.0
    min_events: int = 1
    recall: int = 4096

    def __post_init__(self) -> None:
        check_common(type(self).__name__, self.min_events, self.recall)
        if self.batch < 1 or not 0 <= self.rate < math.inf:
            raise ConfigError(
                f"an online step needs a batch of at least 1 event and a rate of 0 or more, got "
                f"batch = {self.batch} and rate = {self.rate}"
            )
        if self.optimiser not in ("sgd", "adam"):
            raise ConfigError(f"optimiser must be 'sgd' or 'adam', got {self.optimiser!r}")
        if not 0 <= self.momentum < 1 or not self.clip > 0:
            raise ConfigError(
                f"momentum must be in [0, 1) and clip above 0 (inf for none), got "
                f"{self.momentum} and {self.clip}"
            )

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        on = fingerprint(serving.weights())
        return {LEARNED: with_learned({}, examples, self.recall), ON: on}

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
        meter = Meter.start(self, rng)
        own = valid_for(learner, fingerprint(serving.weights()))
        new = not_learned(own, fresh)
        few = too_few(new, self.min_events, "online learning")
        if few is not None:
            return few
        require_finite(new)
        model = serving.copy()
        steps = Steps(
            model.network,
            self.optimiser,
            self.rate,
            self.momentum,
            self.clip,
            _under(own, "optimiser/"),
        )
        if not steps.parameters:
            raise DataError("the network has no parameters to train; a finder cannot learn on")
        old, stays = self._remembered(learner, new)
        data = Prepared.of(model, Examples.join([old, new]))
        plan = self._plan(len(old), stays, rng)
        done = learn(model, data, plan, steps, rng)
        if done == len(plan.sizes):
            finish(model, data, rng)
        after = {
            **self._kept(learner, model),
            **{f"optimiser/{name}": part for name, part in steps.arrays().items()},
            LEARNED: with_learned(own, new, self.recall),
            ON: fingerprint(model.weights()),
        }
        rows = np.unique(plan.rows)
        read = [new, old.take(rows[rows < len(old)])]
        stored = self._stored(learner)
        return meter.finish(model, after, read, budget, steps=done, stored=stored)

    def _remembered(self, learner: Learner, new: Examples) -> tuple[Examples, NDArray[np.bool_]]:
        """Events to replay, and which of the new ones may be replayed after their turn."""
        return Examples.empty(), np.zeros(len(new), np.bool_)

    def _plan(self, old: int, stays: NDArray[np.bool_], rng: np.random.Generator) -> Plan:
        return in_turn(len(stays), self.batch)

    def _kept(self, learner: Learner, model: Model) -> Learner:
        """What the state holds besides what a pass changes."""
        return {}

    def _stored(self, learner: Learner) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class OnlineReplay(OnlineFineTune, Buffered):
    """Online steps, each joined by `replay` events of a small buffer.

    Each step's loss is the mean over `batch` new events and up to `replay` different ones of a
    buffer of `capacity` (`Buffered`: who stays, groups, bits), so at `replay` = `batch` half of it
    speaks for the past. Events join the buffer when their labels come (`observe`) and are replayed
    after their own turn, never before, so that an update over many events is much like many
    small updates. `replay` = 0, or `capacity` = 0, is `OnlineFineTune` bit for bit; a capacity for
    everything replays everything that came before.

    Cost: (batch + replay) / batch times the arithmetic of `OnlineFineTune`; memory: the buffer's
    bytes too, counted in the budget. Source: Chaudhry et al. 2019, arXiv:1902.10486.
    """

    capacity: int = 100
    replay: int = 1
    min_events: int = 1

    def __post_init__(self) -> None:
        OnlineFineTune.__post_init__(self)
        Buffered.__post_init__(self)
        if self.replay < 0:
            raise ConfigError(
                f"replay must be 0 remembered events per step or more, got {self.replay}; 0 is "
                "plain online fine-tuning"
            )

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        begun = OnlineFineTune.begin(self, serving, examples, rng=rng)
        if not len(examples):
            return begun
        return {**begun, **Buffered.begin(self, serving, examples, rng=rng)}

    def _remembered(self, learner: Learner, new: Examples) -> tuple[Examples, NDArray[np.bool_]]:
        if not self.replay:
            return Examples.empty(), np.zeros(len(new), np.bool_)
        buffer = self.buffer(learner)
        ids = buffer.ids
        old = buffer.examples(np.flatnonzero(~np.isin(ids, new.ids)))
        return old, np.isin(new.ids, ids)

    def _plan(self, old: int, stays: NDArray[np.bool_], rng: np.random.Generator) -> Plan:
        if not (old or stays.any()):
            return in_turn(len(stays), self.batch)
        return with_replay(old, stays, self.batch, self.replay, rng)

    def _kept(self, learner: Learner, model: Model) -> Learner:
        if self.keep == "hard":
            buffer = self.buffer(learner)
            self.judge(buffer, model)
            return buffer.to_arrays()
        return {n: part for n, part in learner.items() if n.startswith(("buffer/", "seen/"))}

    def _stored(self, learner: Learner) -> int:
        return len(self.buffer(learner))


def finish(model: Model, data: Prepared, rng: np.random.Generator) -> None:
    """Fit what an `Uncertain` network fits after its training, in place, without a further step."""
    if isinstance(model.network, Uncertain):
        fit(model, data, Schedule(steps=0), rng)


def _under(learner: Learner, prefix: str) -> dict[str, Array]:
    return {n.removeprefix(prefix): part for n, part in learner.items() if n.startswith(prefix)}
