"""Generative replay: fresh events mixed with events drawn from a density of what came before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from stillfit.core.arrays import Array, Column
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.references import mixed_training
from stillfit.updaters.replay.density import Density, keys_of
from stillfit.updaters.replay.experience import checked_share

PREFIX = "density/"


@dataclass(frozen=True, kw_only=True)
class GenerativeReplay(Updater):
    """Fine-tune on fresh events mixed with made-up ones of all that came before; stores none.

    A mixture of Gaussians per condition and class (`density.Density`) learns on from running
    sums and never forgets. Each update draws `samples` events from it, as many of each group (or
    in the shares seen, `shares="seen"`), those in `fresh` not counted, and trains as `Replay`
    does: `mix` of each batch is made up. `mix="groups"` gives each group, fresh or old, the same
    share of a batch.

    `labels`: `"density"`: classes are those of the group that was drawn, numbers are drawn
    jointly with the inputs; `"model"`: what the serving model says of made-up inputs, its class
    or a draw from its distribution, as in the source. `rank`, `components`: of the mixtures;
    more are closer to the events and cost memory. `by`: `"condition"` keeps conditions apart,
    `""` makes one group of them. Only events of fixed size: ragged inputs are refused.

    Cost: one training step per batch, and the drawing; memory: components x (16 + 4 rank) x d
    bytes per group of events of d numbers, however many events come. Where whole events are
    smaller than that, storing some is better.
    Source: Shin et al. 2017, arXiv:1705.08690, with a density in closed form for its GAN, which
    would itself forget; class-conditional Gaussians: Hayes and Kanan 2020, arXiv:1909.01520.
    """

    mix: float | Literal["groups"] = 0.5
    samples: int = 4000
    rank: int = 32
    components: int = 4
    shares: Literal["equal", "seen"] = "equal"
    labels: Literal["density", "model"] = "density"
    by: Literal["condition", ""] = "condition"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))
    min_events: int = 200

    def __post_init__(self) -> None:
        if isinstance(self.mix, str) and self.mix != "groups":
            raise ConfigError(f"mix must be a number in 0 to 1 or 'groups', got {self.mix!r}")
        if not isinstance(self.mix, str):
            checked_share("mix", self.mix)
        for knob, least in (("samples", 1), ("rank", 0), ("components", 1)):
            if getattr(self, knob) < least:
                raise ConfigError(
                    f"{knob} must be {least} or more, got {getattr(self, knob)}; it sizes the "
                    "density of generative replay, or what is drawn from it"
                )
        for knob, known in (
            ("shares", ("equal", "seen")),
            ("labels", ("density", "model")),
            ("by", ("condition", "")),
        ):
            if getattr(self, knob) not in known:
                raise ConfigError(
                    f"{knob} must be {' or '.join(map(repr, known))}, got {getattr(self, knob)!r}"
                )

    def density(self, learner: Learner) -> Density:
        """The density in a learner's state."""
        flat = {k.removeprefix(PREFIX): v for k, v in learner.items() if k.startswith(PREFIX)}
        return Density(self.rank, self.components, self.by == "condition").opened(flat)

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        return self.observe({}, examples, rng=rng)

    def observe(self, learner: Learner, examples: Examples, *, rng: np.random.Generator) -> Learner:
        learned = self.density(learner).learn(examples, rng)
        return {f"{PREFIX}{name}": part for name, part in learned.to_arrays().items()}

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
        few = too_few(fresh, self.min_events, "generative replay")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        model = serving.copy()
        old, mix = self._made_up(serving, learner, fresh, np.random.default_rng(meter.seed))
        steps = mixed_training(model, fresh, old, 1 - mix, self.schedule, rng)
        return meter.finish(model, learner, [fresh], budget, steps=steps)

    def _made_up(
        self, serving: Model, learner: Learner, fresh: Examples, rng: np.random.Generator
    ) -> tuple[Examples, float]:
        """Events of what came before `fresh`, and their share of a batch."""
        density = self.density(learner)
        here = {
            key: len(rows)
            for key, rows in keys_of(fresh, density.classes, density.by_condition)
        }  # fmt: skip
        before = {key: group.rows - here.get(key, 0) for key, group in density.groups.items()}
        before = {key: rows for key, rows in before.items() if rows > 0.5}
        mix = len(before) / (len(before) + len(here)) if isinstance(self.mix, str) else self.mix
        if not before or not mix:
            return Examples.empty(), 0.0
        weights = np.array([1.0 if self.shares == "equal" else rows for rows in before.values()])
        ends = np.rint(np.cumsum(weights / weights.sum()) * self.samples).astype(int)
        made = density.sample(
            dict(zip(before, np.diff(ends, prepend=0).tolist(), strict=True)), rng
        )
        return (self._labelled(serving, made, rng) if self.labels == "model" else made), mix

    def _labelled(self, serving: Model, made: Examples, rng: np.random.Generator) -> Examples:
        name = serving.task.target
        predictive, _ = serving.predict(made.inputs)
        said: Array
        if isinstance(predictive, Categorical):
            said = predictive.probabilities.argmax(1)
        else:
            said = predictive.sample(1, rng)[0]
        like: Column = made.targets[name]
        return replace(made, targets={**made.targets, name: said.astype(np.asarray(like).dtype)})
