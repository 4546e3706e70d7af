"""One pre-allocated network for many conditions: each gets weights of its own under a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.masks import PLACES, Bank, Masking, Place, maskable
from stillfit.models.model import Model, load_weights
from stillfit.models.sizes import FootprintLimit, size_of
from stillfit.models.training import Part, Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.dynamic.judging import between, others

# Errors of the fresh events under each mask, by the number of its place.
Asked: TypeAlias = dict[int, NDArray[np.float64]]
STANDARD_ERRORS = 2.0  # by which a mean error must rise before a mask is said not to fit


class _Fitted(NamedTuple):
    """A network after its training under a mask: which weights it kept, steps taken."""

    model: Model
    kept: dict[str, NDArray[np.bool_]]
    steps: int


@dataclass(frozen=True, kw_only=True)
class PackNet(Updater):
    """A pre-allocated network whose free weights serve one condition after another.

    An update for a new condition: the network starts from the mask that answers the fresh events
    best, whose weights it reuses as they are; all free weights are trained; of these, in each
    matrix, the largest `share` is kept and trained on, the rest is 0 and free again; what was
    kept is frozen for ever. So the network under an earlier mask stays the same bit for bit.
    What lies outside weight matrices (biases, scales, tables, batch-norm statistics) each
    condition has for itself (`biases="own"`), or all have the first one's (`"frozen"`, the
    paper's).

    Task-free: one version serves one mask. When an update is asked for, every mask answers the
    labelled fresh events, and where the best is no worse than it was on its own condition (by
    more than the share `recall` and two standard errors), the condition is back and its mask is
    served again without training; else a new one is allocated. `when="names"` asks this only of
    masks of the condition that slow control names, `when="new"` of none: every update is a new
    condition. An old version can also be redeployed: it is an ordinary network with zeros.
    Choosing a mask per event by its own uncertainty is not offered: a mask is often surest where
    it was never trained. A mask that ends worse than an old one on the fresh events is declined.

    `begin` prunes the first network to `share` (and trains what is left on, with its examples),
    or there would be nothing free. `limit`: of the network that serves, see `Size`; a new
    condition keeps fewer weights where the limit asks for it. Without room the update is
    declined with the figures; `full="free"` gives up the conditions that were not served for
    longest instead, of those whose weights no other uses.

    More `share` fits the newest better and leaves less for the next: after k conditions
    (1 - share)^k is free. `polish`: share of the steps that follow the pruning. `reuse="none"`
    trains a network of its own inside the free weights: nothing helps, but every condition can be
    freed; `"all"` reuses every living condition's weights and starts from the newest, as published.
    `least`: smallest share of all weights that is worth an allocation.

    Cost: one training; one pass of the fresh events per mask. Memory: 5 bytes per weight, and
    what is each condition's own. Serving costs nothing: zeros in the same circuit.
    Source: Mallya and Lazebnik 2018, arXiv:1711.05769; there, the task at hand is told.
    """

    limit: FootprintLimit = field(default_factory=FootprintLimit)
    share: float = 0.5
    polish: float = 0.5
    reuse: Literal["best", "all", "none"] = "best"
    biases: Literal["own", "frozen"] = "own"
    when: Literal["detect", "names", "new"] = "detect"
    recall: float = 0.05
    full: Literal["decline", "free"] = "decline"
    conditions: int = 8
    least: float = 0.01
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=200, rate=0.005))
    min_events: int = 200

    def __post_init__(self) -> None:
        between("share", self.share, 0.001, 1, "the share of the free weights that is kept")
        between("polish", self.polish, 0, 1, "the share of the steps that follow the pruning")
        between("recall", self.recall, 0, math.inf, "the share by which an error may have risen")
        between("conditions", self.conditions, 1, PLACES, "the masks that there may be")
        between("least", self.least, 0, 1, "a share of all weights")
        between("min_events", self.min_events, 1, math.inf, "labelled events of a condition")

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        """The first network pruned to `share` and trained on: it makes room for others."""
        if not maskable(serving.network):
            return {}
        return self._first(serving, examples, rng).to_arrays()

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
        few = too_few(fresh, self.min_events, "a mask of its own")
        if few is not None:
            return few
        if not maskable(serving.network):
            return Declined(
                f"{type(serving.network).__name__} has no weight matrix that masks could share "
                "out; they need dense or convolution layers"
            )
        over = self._fixed(serving)
        if over is not None:
            return Declined(f"the pre-allocated network has {over}; masks cannot make it smaller")
        meter = Meter.start(self, rng)
        bank = Bank.from_arrays(learner)
        read = [fresh]
        if bank is None:
            read.append(others(memory, fresh))
            bank = self._first(serving, read[1], rng)
        bank.require(serving.network)
        served = 1 + max((place.served for place in bank.places), default=0)
        asked = _asked(serving, bank, fresh)
        back = self._back(bank, asked, fresh)
        if back is not None:
            return self._again(serving, bank.use(back, served), back, read, budget, meter)
        found = self._room(serving, bank, asked)
        if isinstance(found, Declined):
            return found
        bank, base, keep, number = found
        fitted = self._fit(serving, bank, base, fresh, keep, rng)
        if fitted.steps < self.schedule.steps:
            return Declined(
                f"the training of a new mask diverged at step {fitted.steps} of "
                f"{self.schedule.steps}: its loss is not a finite number; lower schedule.rate"
            )
        over = self.limit.exceeded_by(size_of(fitted.model.network))
        if over is not None:
            return Declined(f"the new mask was thrown away: the network has {over}")
        worse = self._no_better(bank, asked, fitted.model, fresh)
        if worse is not None:
            return worse
        bank = self._allocated(bank, base, number, fitted, fresh, served)
        return meter.finish(fitted.model, bank.to_arrays(), read, budget, steps=fitted.steps)

    def freed(self, learner: Learner, condition: str) -> Learner:
        """The learner's state without that condition: its mask is gone for good.

        Its weights are free where no other condition uses them, else when the last user is freed.
        `ConfigError` where there is no such condition. What serves is not touched.
        """
        bank = Bank.from_arrays(learner) or Bank({}, {})
        return bank.without(bank.place(condition)).to_arrays()

    def under(self, serving: Model, learner: Learner, condition: str) -> Model:
        """The network of a condition that has a mask, as it was when it was allocated."""
        bank = Bank.from_arrays(learner) or Bank({}, {})
        return serving.with_weights(bank.under(bank.place(condition)))

    def _first(self, serving: Model, examples: Examples, rng: np.random.Generator) -> Bank:
        """The bank with the condition that serves: pruned by magnitude, and trained on."""
        bank = Bank.of(serving.network)
        model = serving.copy()
        keep = {
            name: max(1, math.floor(self.share * owner.size)) for name, owner in bank.owners.items()
        }
        steps = round(self.polish * self.schedule.steps) if len(examples) else 0
        guide = Masking(model.network, _everything(model), keep=keep)
        if steps:
            pruned = model.weights()
            schedule = replace(self.schedule, steps=steps)
            if fit(model, Prepared.of(model, examples), schedule, rng, guide=guide) < steps:
                load_weights(model.network, pruned)  # it diverged: pruned, and no more
        fitted = _Fitted(model, _as_arrays(guide), steps)
        return self._allocated(bank, None, 1, fitted, examples, 0)

    def _back(self, bank: Bank, asked: Asked, fresh: Examples) -> Place | None:
        """The condition whose mask answers the fresh events as well as it did its own."""
        places = [place for place in bank.living if place.events and self.when != "new"]
        if self.when == "names":
            name = _name(fresh)
            places = [p for p in places if p.name == name or p.name.startswith(f"{name}#")]
        fitting = [place for place in places if self._fits(place, asked[place.number])]
        return _best(fitting, asked) if fitting else None

    def _fits(self, place: Place, errors: NDArray[np.float64]) -> bool:
        noise = math.sqrt(place.spread**2 / place.events + errors.var() / len(errors))
        allowed = place.error * (1 + self.recall) + STANDARD_ERRORS * noise
        return bool(errors.mean() <= allowed)

    def _again(
        self,
        serving: Model,
        bank: Bank,
        place: Place,
        read: list[Examples],
        budget: Budget,
        meter: Meter,
    ) -> Candidate[Model] | Declined:
        model = serving.with_weights(bank.under(place))
        now, then = serving.weights(), model.weights()
        if all(np.array_equal(now[name], value) for name, value in then.items()):
            return Declined(
                f"the mask of {place.name!r} serves already and answers {len(read[0])} fresh "
                f"events as it did its own (mean error then {place.error:.4g}); no other is better"
            )
        over = self.limit.exceeded_by(size_of(model.network))
        if over is not None:
            return Declined(f"the mask of {place.name!r} cannot be served: it has {over}")
        return meter.finish(model, bank.to_arrays(), read, budget)

    def _room(
        self, serving: Model, bank: Bank, asked: Asked
    ) -> tuple[Bank, Place | None, dict[str, int], int] | Declined:
        """Where a new condition starts, the weights that it keeps of each matrix, its number.

        Conditions are given up for it only where `full` says so.
        """
        while True:
            base = self._base(bank, asked)
            keep = self._keep(serving, bank, base)
            number = bank.number()
            lacking = self._lacking(bank, keep)
            if lacking is None and number is not None:
                return bank, base, keep, number
            if self.full == "decline" or not bank.leaves():
                more = "" if self.full == "free" else '; free a condition, or set full = "free"'
                return Declined(f"there is no room for a new mask: {lacking}; {bank.told()}{more}")
            bank = bank.without(min(bank.leaves(), key=lambda place: (place.served, place.number)))

    def _lacking(self, bank: Bank, keep: dict[str, int]) -> str | None:
        if len(bank.places) >= self.conditions:
            return f"all {self.conditions} places are taken"
        needed = max(1, math.ceil(self.least * bank.total))
        if sum(keep.values()) < needed:
            return (
                f"it could keep {sum(keep.values()):,} weights inside the limit "
                f"({_limit(self.limit)}) and needs {needed:,}"
            )
        return None

    def _keep(self, serving: Model, bank: Bank, base: Place | None) -> dict[str, int]:
        """How many free weights of each matrix a new condition keeps, inside the limit."""
        free = {name: int((owner == 0).sum()) for name, owner in bank.owners.items()}
        keep = {name: max(min(1, n), math.floor(self.share * n)) for name, n in free.items()}
        allowed = self._allowed(serving, bank, self._sees(bank, base))
        whole = sum(keep.values())
        if allowed >= whole:
            return keep
        # Fewest first: a small last layer must not lose its share to rounding.
        given: dict[str, int] = {}
        left_of_limit, left = allowed, whole
        for name in sorted(keep, key=lambda name: (keep[name], name)):
            given[name] = min(keep[name], math.ceil(keep[name] * left_of_limit / max(left, 1)))
            left_of_limit, left = left_of_limit - given[name], left - keep[name]
        return given

    def _allowed(self, serving: Model, bank: Bank, sees: tuple[int, ...]) -> int:
        """Weights that may be added to what is reused until the limit is reached."""
        matrices = maskable(serving.network)
        reused = sum(int(bank.mask(name, sees).sum()) for name in bank.owners)
        beside = sum(
            value.numel()
            for name, value in serving.network.named_parameters()
            if name not in matrices
        )
        width = 8 * next(iter(matrices.values())).element_size()
        allowed = [bank.total]
        if self.limit.nonzero is not None:
            allowed.append(self.limit.nonzero - reused - beside)
        if self.limit.bits is not None:
            allowed.append(self.limit.bits // width - reused - beside)
        return max(0, min(allowed))

    def _fixed(self, serving: Model) -> str | None:
        """What of the limit the network exceeds whatever its masks are."""
        limit = replace(self.limit, nonzero=None, bits=None)
        return limit.exceeded_by(size_of(serving.network))

    def _base(self, bank: Bank, asked: Asked) -> Place | None:
        """The condition that a new one starts from."""
        if self.reuse == "none" or not bank.living:
            return None
        if self.reuse == "all":
            return max(bank.living, key=lambda place: (place.served, place.number))
        return _best(bank.living, asked)

    def _no_better(
        self, bank: Bank, asked: Asked, model: Model, fresh: Examples
    ) -> Declined | None:
        """A refusal where room would be spent on a mask that an old one beats."""
        if not bank.living:
            return None
        best = _best(bank.living, asked)
        old, new = _mean(asked[best.number]), float(model.errors(fresh)["error"].mean())
        if new < old:
            return None
        return Declined(
            f"a new mask got to a mean error of {new:.4g} on {len(fresh)} fresh events, that of "
            f"{best.name!r} has {old:.4g}: no room is spent on it; {bank.told()}"
        )

    def _sees(self, bank: Bank, base: Place | None) -> tuple[int, ...]:
        if base is None:
            return ()
        if self.reuse == "all":
            return tuple(place.number for place in bank.places)
        return (*base.sees, base.number)

    def _fit(
        self,
        serving: Model,
        bank: Bank,
        base: Place | None,
        fresh: Examples,
        keep: dict[str, int],
        rng: np.random.Generator,
    ) -> _Fitted:
        sees = self._sees(bank, base)
        if base is None:  # a network of its own, drawn anew in the free weights
            seed = int(rng.integers(2**62))
            network = uncertain.fresh(serving.task, serving.network, fresh, seed)
            model = Model(network, serving.task, serving.architecture)
            state = model.weights()
            for name, owner in bank.owners.items():
                state[name] = np.where(owner == 0, state[name], state[name].dtype.type(0))
        else:
            model = serving.copy()
            state = bank.under(base)
            for name, value in bank.weights.items():
                state[name] = np.where(bank.mask(name, sees), value, value.dtype.type(0))
        load_weights(model.network, state)
        free = {name: torch.from_numpy(owner == 0) for name, owner in bank.owners.items()}
        steps = self.schedule.steps
        cut = max(1, min(steps, steps - round(self.polish * steps)))
        own = self.biases == "own" or base is None
        guide = Masking(model.network, free, rest=own, keep=keep, prune_at=cut)
        part = [Part(Prepared.of(model, fresh), self.schedule.batch)]
        steps = fit(model, part, self.schedule, rng, guide=guide)
        if not own:  # buffers, and what a method fitted after training
            after = model.weights()
            load_weights(
                model.network, {n: after[n] if n in bank.weights else v for n, v in state.items()}
            )
        return _Fitted(model, _as_arrays(guide, bank), steps)

    def _allocated(
        self,
        bank: Bank,
        base: Place | None,
        number: int,
        fitted: _Fitted,
        examples: Examples,
        served: int,
    ) -> Bank:
        errors = fitted.model.errors(examples)["error"] if len(examples) else np.zeros(0)
        place = Place(
            name=_unique(_name(examples), bank),
            number=number,
            sees=self._sees(bank, base),
            error=float(errors.mean()) if len(errors) else 0.0,
            spread=float(errors.std()) if len(errors) else 0.0,
            events=len(errors),
            served=served,
        )
        return bank.allocate(place, fitted.model.weights(), fitted.kept)


def _asked(serving: Model, bank: Bank, fresh: Examples) -> Asked:
    return {
        place.number: serving.with_weights(bank.under(place)).errors(fresh)["error"]
        for place in bank.living
    }


def _mean(errors: NDArray[np.float64]) -> float:
    """The mean, infinite where it is no number."""
    mean = float(errors.mean())
    return mean if math.isfinite(mean) else math.inf


def _best(places: Sequence[Place], asked: Asked) -> Place:
    return min(places, key=lambda place: (_mean(asked[place.number]), place.number))


def _everything(model: Model) -> dict[str, torch.Tensor]:
    return {
        name: torch.ones_like(value, dtype=torch.bool)
        for name, value in maskable(model.network).items()
    }


def _as_arrays(guide: Masking, bank: Bank | None = None) -> dict[str, NDArray[np.bool_]]:
    names = guide.trainable if bank is None else bank.owners
    return {name: guide.trainable[name].numpy() for name in names}


def _name(examples: Examples) -> str:
    """The condition that most of the events are of."""
    if not len(examples):
        return "first"
    names, counts = np.unique(examples.conditions, return_counts=True)
    return str(names[int(np.argmax(counts))])


def _unique(name: str, bank: Bank) -> str:
    taken = {place.name for place in bank.places}
    twins = (f"{name}#{n}" for n in range(2, PLACES + 2))
    return name if name not in taken else next(twin for twin in twins if twin not in taken)


def _limit(limit: FootprintLimit) -> str:
    named = ("parameters", "nonzero", "macs", "bits")
    stated = [f"{n} {getattr(limit, n):,}" for n in named if getattr(limit, n) is not None]
    return ", ".join(stated) or "none stated"
