"""Growth: hidden units are added where the network at its best is not good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from stillfit.core.arrays import Array
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.growth import grown_architecture, hidden_layers, widen
from stillfit.models.masks import Masking
from stillfit.models.model import Model
from stillfit.models.networks import copy_network
from stillfit.models.sizes import FootprintLimit, dense_size
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.models.uncertain import Uncertain
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.dynamic.judging import between, loss_of, others, parts_of, split


class _Grown(NamedTuple):
    """A wider network, and where its numbers are new."""

    model: Model
    new: dict[str, Tensor]


class _Round(NamedTuple):
    """A trained network with its loss on held-out fresh events and the units added by then."""

    model: Model
    loss: float
    units: int


@dataclass(frozen=True, kw_only=True)
class Grow(Updater):
    """Train on; add hidden units when the loss on new data stops falling too high.

    Rounds of training on fresh events mixed with a share `mix` of old ones (from the labelled
    store). After each, the loss on a share `held_out` of the fresh events is compared: where it
    fell by less than the share `plateau` and is still more than the share `margin` above the
    reference, every hidden layer gets `units` more, as far as `limit` allows (fewer, or some
    layers only, near the limit), and training goes on, up to `rounds`. The wider network starts
    from the same function (`models.growth`). The best round is the candidate; a wider network is
    preferred where its loss is lower by the share `gain`. Losses that are compared: CRPS, log-loss
    of classes, headline error and CRPS of other tasks (`judging.loss_of`).

    The reference: `target`, or the loss of the first network on the examples of `begin`, or on
    old events of the store; without any of them the network is trained on and never grows.
    `train="new"`: only numbers of new units move, after each growth, and it grows at once; what
    was there stays bit for bit, though the new units change what the network says of old events.

    A grown network is another circuit: update class `bitstream`, and its architecture says its
    widths. Where the loss stays too high and not one unit fits, the update is declined with the
    figures. Works on plain networks with chains of `nn.Linear` in an `nn.Sequential` (MLP, the
    vertex networks, heads); not on networks of several passes or parts (ensembles, dropout,
    Bayesian, Laplace, auxiliary), whose masks and posteriors have the old sizes: declined.

    Cost: up to `rounds` trainings. Memory: one number.
    Source: Net2Net, Chen et al. 2016, arXiv:1511.05641; frozen old columns: progressive networks,
    Rusu et al. 2016, arXiv:1606.04671.
    """

    limit: FootprintLimit = field(default_factory=FootprintLimit)
    units: int = 8
    margin: float = 0.1
    plateau: float = 0.05
    gain: float = 0.02
    rounds: int = 4
    target: float | None = None
    held_out: float = 0.2
    mix: float = 0.5
    train: Literal["all", "new"] = "all"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.003))
    min_events: int = 200

    def __post_init__(self) -> None:
        between("units", self.units, 1, math.inf, "units added to each hidden layer at a time")
        between("margin", self.margin, 0, math.inf, "the share by which a loss may exceed it")
        between("plateau", self.plateau, 0, 1, "the fall of the loss that is worth a round")
        between("gain", self.gain, 0, 1, "by which a wider network must be better")
        if self.target is not None:
            between("target", self.target, 0, math.inf, "a loss, which is 0 at best")
        between("rounds", self.rounds, 1, math.inf, "trainings of one update")
        between("held_out", self.held_out, 0.01, 0.9, "the share of fresh events to judge by")
        between("mix", self.mix, 0, 1, "the share of each batch that is old events")
        between("min_events", self.min_events, 2, math.inf, "events to train on and to judge by")

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        """The loss of the first network on its own examples: what good enough is."""
        if not len(examples):
            return {}
        return {"reference": np.array(loss_of(serving, Prepared.of(serving, examples)))}

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
        few = too_few(fresh, self.min_events, "growing")
        if few is not None:
            return few
        refused = self._unfit(serving)
        if refused is not None:
            return refused
        meter = Meter.start(self, rng)
        old = others(memory, fresh)
        if math.isinf(self.margin):  # never too high: plain training on all fresh events
            model = serving.copy()
            steps = self._trained(model, fresh, old, None, rng)
            return meter.finish(model, learner, [fresh, old], budget, steps=steps)
        reference = self._reference(serving, learner, old)
        found = self._rounds(serving, reference, fresh, old, rng)
        if isinstance(found, Declined):
            return found
        best, steps = found
        kept: Mapping[str, Array] = {} if reference is None else {"reference": np.array(reference)}
        answer = meter.finish(best.model, kept, [fresh, old], budget, steps=steps)
        if isinstance(answer, Candidate) and best.units:
            return replace(answer, update_class="bitstream")
        return answer

    def _unfit(self, serving: Model) -> Declined | None:
        network = serving.network
        if any(isinstance(module, Uncertain) for module in network.modules()):
            return Declined(
                f"{type(network).__name__} states its uncertainty by several passes or parts, "
                "whose masks and posteriors have the sizes of its layers; growth takes a plain "
                "network, or one with a head that states it"
            )
        if not hidden_layers(network):
            return Declined(
                f"{type(network).__name__} has no hidden layer to widen: growth needs two "
                "nn.Linear in one nn.Sequential with an activation between them"
            )
        over = self.limit.exceeded_by(dense_size(network))
        if over is not None:
            return Declined(f"the serving network is over the limit before it grows: it has {over}")
        return None

    def _reference(self, serving: Model, learner: Learner, old: Examples) -> float | None:
        if self.target is not None:
            return self.target
        if "reference" in learner:
            return float(learner["reference"])
        return loss_of(serving, Prepared.of(serving, old)) if len(old) else None

    def _rounds(
        self,
        serving: Model,
        reference: float | None,
        fresh: Examples,
        old: Examples,
        rng: np.random.Generator,
    ) -> tuple[_Round, int] | Declined:
        """The best of all rounds and the steps taken in all."""
        training, judging = split(fresh, self.held_out, rng)
        held = Prepared.of(serving, judging)
        model, units, steps = serving.copy(), 0, 0
        before = loss_of(model, held)
        best: _Round | None = None
        new: dict[str, Tensor] | None = None
        for number in range(self.rounds):
            if self.train == "new" and new is None:
                if not self._too_high(before, reference):
                    return Declined(
                        f"the loss on new events is {before:.4g}, within {self.margin:.0%} of "
                        f"{_said(reference)}: no unit is needed, and old weights do not move"
                    )
                wider = self._wider(model, rng)
                if wider is None:
                    return self._full(model, before, reference)
                model, new, units = wider.model, wider.new, units + 1
            taken = self._trained(model, training, old, new, rng)
            steps += taken
            loss = loss_of(model, held)
            if taken < self.schedule.steps or not math.isfinite(loss):
                break
            needed = 0.0 if best is None or units == best.units else self.gain
            if best is None or loss < best.loss * (1 - needed):
                best = _Round(model, loss, units)
            last = number == self.rounds - 1
            if last or not self._too_high(loss, reference):
                break
            model = model.copy()
            if before - loss < self.plateau * before:
                wider = self._wider(model, rng)
                if wider is None:
                    if not units:
                        return self._full(model, loss, reference)
                    break
                model, units = wider.model, units + 1
                new = wider.new if self.train == "new" else None
            before = loss
        if best is None:
            return Declined(
                f"the training diverged at step {steps}: its loss is not a finite number; "
                "lower schedule.rate"
            )
        return best, steps

    def _too_high(self, loss: float, reference: float | None) -> bool:
        return reference is not None and loss > reference * (1 + self.margin)

    def _full(self, model: Model, loss: float, reference: float | None) -> Declined:
        more = _widened(model, dict.fromkeys(hidden_layers(model.network), 1), 0)
        over = self.limit.exceeded_by(dense_size(more.model.network))
        return Declined(
            f"the loss on new events stays at {loss:.4g}, more than {self.margin:.0%} above "
            f"{_said(reference)}, and there is no room to grow: with one more unit in each hidden "
            f"layer the network has {over}"
        )

    def _wider(self, model: Model, rng: np.random.Generator) -> _Grown | None:
        """The network with units added as far as the limit allows, None where none fits."""
        names = list(hidden_layers(model.network))
        seed = int(rng.integers(2**62))
        for added in range(self.units, 0, -1):
            for chosen in [names, *([name] for name in names)]:
                found = _widened(model, dict.fromkeys(chosen, added), seed)
                if self.limit.exceeded_by(dense_size(found.model.network)) is None:
                    return found
        return None

    def _trained(
        self,
        model: Model,
        fresh: Examples,
        old: Examples,
        new: dict[str, Tensor] | None,
        rng: np.random.Generator,
    ) -> int:
        parts = parts_of(model, fresh, old, self.mix, self.schedule.batch)
        guide = None if new is None else Masking(model.network, new, rest=False)
        return fit(model, parts, self.schedule, rng, guide=guide)


def _widened(model: Model, added: Mapping[str, int], seed: int) -> _Grown:
    """A copy with so many more units in some hidden layers, and an architecture that says so."""
    layers = hidden_layers(model.network)
    widths = {name: layers[name].width + more for name, more in added.items()}
    network = copy_network(model.network)
    new = widen(network, widths, seed)
    return _Grown(Model(network, model.task, grown_architecture(model.architecture, widths)), new)


def _said(reference: float | None) -> str:
    return "no reference" if reference is None else f"the reference {reference:.4g}"
