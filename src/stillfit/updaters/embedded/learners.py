"""Learning inside a device's limits: integers, one example at a time, each seen once."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, n_bytes
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate, Cost
from stillfit.models.model import Model
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.models.uncertain import Uncertain
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.embedded import device as devices
from stillfit.updaters.embedded import fixed, kernels
from stillfit.updaters.embedded.budget import EmbeddedBudget, EmbeddedCost
from stillfit.updaters.embedded.dense import Part, part_of
from stillfit.updaters.embedded.device import Account
from stillfit.updaters.embedded.fixed import Format, rate_of
from stillfit.updaters.embedded.kernels import Device, Plan

_KEEP = {
    "reservoir": kernels.RESERVOIR,
    "ring": kernels.RING,
    "class-ring": kernels.CLASS_RING,
}
_NO_ID = np.iinfo(np.int64).min
_LOSS = {"softmax": kernels.SOFTMAX, "squared": kernels.SQUARED, "hinge": kernels.HINGE}


@dataclass(frozen=True, kw_only=True)
class Exemplars:
    """Examples that a device keeps and learns from again.

    `capacity` of them, with inputs of `bits` bits (the upper ones of the device's numbers); each
    new example is learned together with `replays` kept ones, then offered to the memory.
    `keep="reservoir"`: each seen with equal probability; `"ring"`: the newest; `"class-ring"`: the
    newest of each class in equal shares (of a regression: the newest).

    Cost: capacity x (inputs x 1, 2 or 4 bytes + the target), exactly; MACs x (1 + replays).
    Source: Chaudhry et al. 2019, arXiv:1902.10486; reservoir: Vitter 1985, algorithm R.
    """

    capacity: int = 0
    replays: int = 1
    keep: Literal["reservoir", "ring", "class-ring"] = "reservoir"
    bits: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.capacity < 2**31:
            raise ConfigError(f"capacity must be 0 examples or more, got {self.capacity}")
        if self.replays < 0:
            raise ConfigError(f"replays must be 0 or more per new example, got {self.replays}")
        if self.keep not in _KEEP:
            raise ConfigError(
                f"exemplars cannot be kept by {self.keep!r}; choose one of {', '.join(_KEEP)}"
            )
        if not 2 <= self.bits <= fixed.MAX_WIDTH:
            raise ConfigError(
                f"exemplars of {self.bits} bits cannot be kept; 2 to {fixed.MAX_WIDTH} can"
            )


@dataclass(frozen=True, kw_only=True)
class EmbeddedLearner(Updater):
    """What all learners on a device share: numbers, loss, memory, limits, the way in and out.

    A dense torch network is put into `numbers` (`Format`; default 16 bits, 12 of them fraction:
    [-8, 8)), learns from each fresh example once, in the order in which it comes, by integer
    arithmetic that C and RTL repeat bit for bit, and comes back with exactly representable
    weights. Inputs and the target of a regression are standardised by the network's own scales,
    which stay as they are; beyond the range of the numbers they saturate.

    `rate`: of learning, a multiple of 2^-16. `loss` of classes: `softmax` (by a table of 65 entries
    and one division per class), `hinge` (largest wrong score within 1 of the right one; no
    division), `squared` (the right class should say `score`, the others 0). Regression: squared
    error of the mean. `noise`: of a network that states a log-variance s, its output learns by
    (1 - error^2 exp(-s)) / 2 in the last layer alone (`learned`), or stays as it is (`frozen`);
    it never reaches the hidden layers, where it could spoil the mean.
    `device`: limits that hold besides the budget of each update. `recall`: ids of so many learned
    events are kept beside the device (8 bytes each, no RAM of its), and an event that is given
    again is not learned again; 0 leaves that to the caller.

    A task may name a part of its networks that a device learns (`dense.HasDevicePart`), with ends
    for each of its weights: so the association network of a fixed-point vertex chain learns.

    A state whose weights are not those that serve (another rung's version serves) is loaded anew
    from the serving network; kept examples stay while the input and target scales do.
    """

    numbers: Format = field(default_factory=Format)
    rate: float = 0.01
    loss: Literal["softmax", "squared", "hinge"] = "softmax"
    score: float = 4.0
    noise: Literal["learned", "frozen"] = "learned"
    exemplars: Exemplars = field(default_factory=Exemplars)
    device: EmbeddedBudget = field(default_factory=EmbeddedBudget)
    recall: int = 0
    min_events: int = 100

    program: ClassVar[int]

    def __post_init__(self) -> None:
        rate_of(self.rate, "rate")
        if self.loss not in _LOSS:
            raise ConfigError(
                f"there is no loss {self.loss!r} on a device; choose one of {', '.join(_LOSS)}"
            )
        if self.noise not in ("learned", "frozen"):
            raise ConfigError(f"noise is learned or frozen, not {self.noise!r}")
        if not 0 < self.score < self.numbers.limit:
            raise ConfigError(
                f"score must lie above 0 and below {self.numbers.limit:g}, where the numbers "
                f"end, got {self.score:g}"
            )
        if self.recall < 0:
            raise ConfigError(f"recall must be 0 ids or more, got {self.recall}")
        if self.min_events < 1:
            raise ConfigError(f"min_events must be 1 or more, got {self.min_events}")

    # -- the updater ------------------------------------------------------------------------------

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        """The device as it is switched on; its memory is offered the examples in their order."""
        part = part_of(serving, examples)
        if isinstance(part, str):  # `update` says so
            return {}
        plan = self.plan(part)
        made = self._loaded(part, plan, serving, rng)
        if plan.capacity and len(examples):
            kernels.fill(made, plan, *part.examples(examples, self.numbers))
        return self._packed(made, part, examples.ids[:0])

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
        few = too_few(fresh, self.min_events, "learning on the device")
        if few is not None:
            return few
        part = part_of(serving, fresh)
        if isinstance(part, str):
            return Declined(part)
        outside = self._outside(part, serving)
        if outside is not None:
            return Declined(outside)
        ends = part.ends(self.numbers)
        if ends is not None and self.program == kernels.PERTURBATION:
            return Declined(
                "a perturbation moves all weights at once, and in this network some have no "
                "multiplier or less than the whole range; choose another embedded strategy"
            )
        plan = self.plan(part)
        made, recent = self._resumed(part, plan, serving, learner, rng)
        need = devices.account(made, plan)
        refused = self._refused(need, budget, n_bytes(self._packed(made, part, recent)))
        if refused is not None:
            return Declined(refused)
        fresh = fresh.take(~np.isin(fresh.ids, recent))
        few = too_few(fresh, self.min_events, "learning on the device, each event once,")
        if few is not None:
            return few
        x, t = part.examples(fresh, self.numbers)
        if not len(x):
            nothing = f"there is nothing to learn from in {len(fresh)} labelled events"
            return Declined(nothing, early=True)
        # Compiled, where it was not yet: no part of the cost.
        kernels.learn(made, plan, x[:0], t[:0], ends)
        meter = Meter.start(self, rng)
        before = int(made.counts.sum())
        started = time.perf_counter()
        kernels.learn(made, plan, x, t, ends)
        per_example = (time.perf_counter() - started) / len(x)
        model = serving.with_weights(
            {**serving.weights(), **part.named(self.numbers.floats(made.weights))}
        )
        if isinstance(model.network, Uncertain):  # what the method fits once a network is trained
            fit(model, Prepared.of(model, fresh), Schedule(steps=0), rng)
        steps = len(x) + plan.replays * (len(x) if before else len(x) - 1)
        state = self._packed(made, part, np.concatenate([recent, fresh.ids]))
        whole = meter.finish(model, state, [fresh], Budget(), steps=steps, stored=need.stored)
        if isinstance(whole, Declined):
            return whole
        cost = self._cost(whole.cost, need, per_example)
        for limits in (budget, self.device):
            over = limits.exceeded_by(cost)
            if over is not None:
                return Declined(f"the update was thrown away: {over}")
        return replace(whole, cost=cost)

    # -- what a device is -------------------------------------------------------------------------

    def plan(self, part: Part) -> Plan:
        """The numbers that the program of the device is compiled for."""
        numbers, memory = self.numbers, self.exemplars
        if part.classes > numbers.high + 1:
            raise ConfigError(
                f"{part.classes} classes cannot be told apart by numbers of {numbers.width} bits; "
                "use a greater width"
            )
        if part.classes:
            loss = _LOSS[self._class_loss()]
        else:
            loss = kernels.GAUSSIAN if part.sizes[-1] == 2 else kernels.MEAN
        capacity = memory.capacity
        groups = part.classes if memory.keep == "class-ring" and part.classes else 1
        if 0 < capacity < groups:
            raise ConfigError(
                f"a memory of {capacity} examples has no place for each of {groups} classes; "
                "give it more, or keep them by reservoir"
            )
        shift = max(0, numbers.width - memory.bits)
        return Plan(
            kind=self.program,
            loss=loss,
            learn_noise=int(self.noise == "learned"),
            low=numbers.low,
            high=numbers.high,
            fraction=numbers.fraction,
            mode=numbers.mode,
            forward_mode=numbers.forward_mode,
            rate=rate_of(self.rate, "rate"),
            first=self._first(len(part.sizes) - 1),
            shrink=0,
            score=round(self.score * 2**numbers.fraction),
            forgetting=0,
            inverse=1 << fixed.RATE_BITS,
            inverse_root=1 << fixed.RATE_BITS,
            start=0,
            floor=0,
            keep=_kept_by(memory, part) if capacity else kernels.NOTHING,
            capacity=capacity // groups * groups,
            groups=groups,
            replays=memory.replays if capacity else 0,
            store_shift=shift,
            store_low=numbers.low >> shift,
            store_high=numbers.high >> shift,
        )

    def switched_on(self, serving: Model, rng: np.random.Generator) -> tuple[Device, Plan]:
        """The device with the serving network, and its plan: what C and RTL start from.

        `ConfigError` where the network is none that a device can hold.
        """
        part = part_of(serving, Examples.empty())
        if isinstance(part, str):
            raise ConfigError(part)
        plan = self.plan(part)
        return self._loaded(part, plan, serving, rng), plan

    def account(self, serving: Model) -> Account:
        """Bytes and multiplications that learning would need, without learning."""
        return devices.account(*self.switched_on(serving, np.random.default_rng(0)))

    @abstractmethod
    def _first(self, layers: int) -> int:
        """The first layer that learns."""

    def _class_loss(self) -> str:
        return self.loss

    def _start(self, made: Device, plan: Plan, rng: np.random.Generator) -> None:
        """Fill in place what the strategy needs beside the weights."""

    def _loaded(self, part: Part, plan: Plan, serving: Model, rng: np.random.Generator) -> Device:
        weights = self.numbers.integers(part.flat(serving.weights()))
        made = devices.build(plan, part.sizes, self.numbers, weights, fixed.seeds_of(rng, 3))
        self._start(made, plan, rng)
        return made

    def _resumed(
        self,
        part: Part,
        plan: Plan,
        serving: Model,
        learner: Learner,
        rng: np.random.Generator,
    ) -> tuple[Device, NDArray[np.int64]]:
        """The device as it goes on, and the ids of what its weights have learned last."""
        made, nothing = self._loaded(part, plan, serving, rng), np.zeros(0, np.int64)
        if not learner:
            return made, nothing
        was = devices.restore(made, learner)
        if not np.array_equal(learner["scales"], part.scales):
            return made, nothing
        served, held = (part.named(self.numbers.floats(one.weights)) for one in (made, was))
        if all(np.array_equal(served[name], held[name]) for name in served):
            return was, learner.get("recent", nothing)
        return made._replace(
            kept_x=was.kept_x, kept_t=was.kept_t, counts=was.counts, random=was.random
        ), nothing

    def _packed(self, made: Device, part: Part, learned: NDArray[np.int64]) -> dict[str, Array]:
        state = {**devices.state(made), "scales": part.scales}
        if self.recall:  # always as long, so that the first update pays what the last one does
            state["recent"] = np.full(self.recall, _NO_ID, np.int64)
            newest = learned[-self.recall :]
            state["recent"][self.recall - len(newest) :] = newest
        return state

    # -- limits -----------------------------------------------------------------------------------

    def _outside(self, part: Part, serving: Model) -> str | None:
        """Why the weights cannot be loaded, where some lie outside the numbers."""
        flat = part.flat(serving.weights())
        limit = self.numbers.limit
        wrong = int((np.abs(flat) > limit).sum())
        if not wrong:
            return None
        return (
            f"{wrong} of {len(flat)} weights lie outside +-{limit:g}, up to "
            f"{np.abs(flat).max():.4g}: use fewer than {self.numbers.fraction} fraction bits, or "
            f"a width of more than {self.numbers.width}"
        )

    def _refused(self, need: Account, budget: Budget, kept: int) -> str | None:
        """Which limit the update would exceed, known before it runs."""
        cost = self._cost(Cost(memory_bytes=kept, stored_examples=need.stored), need, 0.0)
        for limits in (budget, self.device):
            over = limits.exceeded_by(cost)
            if over is not None:
                would = over.replace("it used", "it would use", 1)
                return f"the update was not started: {would}; in all {need}"
        return None

    def _cost(self, cost: Cost, need: Account, seconds: float) -> EmbeddedCost:
        return EmbeddedCost(
            memory_bytes=cost.memory_bytes,
            stored_examples=cost.stored_examples,
            macs_per_example=need.macs,
            seconds=cost.seconds,
            examples=cost.examples,
            steps=cost.steps,
            ram_bytes=need.ram_bytes,
            constant_bytes=need.constant_bytes,
            seconds_per_example=seconds,
            fraction_bits=self.numbers.fraction,
        )


def _kept_by(memory: Exemplars, part: Part) -> int:
    # A regression has no classes, and its targets must never be taken for places.
    by = "ring" if memory.keep == "class-ring" and not part.classes else memory.keep
    return _KEEP[by]


@dataclass(frozen=True, kw_only=True)
class EmbeddedSGD(EmbeddedLearner):
    """Back-propagation in fixed point, one example per step.

    w <- w - round(rate x error x input), products exact, rounded once. `last_layers`: only so
    many learn (None: all), which saves the multiplications and the RAM of the others. With
    12 fraction bits it follows float; with fewer, updates below half a unit are lost unless
    rounding is stochastic.

    Cost: about 3 MACs per weight and example; RAM: weights, activations, errors.
    Source: stochastic rounding: Gupta et al. 2015, arXiv:1502.02551.
    """

    last_layers: int | None = None
    program: ClassVar[int] = kernels.GRADIENT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_layers is not None and self.last_layers < 1:
            raise ConfigError(
                f"last_layers must be 1 or more, or left out for all, got {self.last_layers}"
            )

    def _first(self, layers: int) -> int:
        return 0 if self.last_layers is None else max(0, layers - self.last_layers)


@dataclass(frozen=True, kw_only=True)
class EmbeddedLMS(EmbeddedLearner):
    """Least mean squares: the last layer alone learns, by the gradient of each example.

    w <- w - round(rate x error x feature). The least that learns; with `softmax` it is logistic
    regression on the features. The features stay, and so does what they cannot tell apart.

    Cost: one MAC per weight of the last layer beside the prediction.
    Source: Widrow and Hoff 1960, "Adaptive switching circuits".
    """

    program: ClassVar[int] = kernels.GRADIENT

    def _first(self, layers: int) -> int:
        return layers - 1


@dataclass(frozen=True, kw_only=True)
class EmbeddedDFA(EmbeddedLearner):
    """Direct feedback alignment: each hidden layer gets the output's error by a fixed matrix.

    error_h = relu'(h) x (B_h error_out), so no layer waits for another and no weight is read
    backwards. `feedback`: `"random"` (uniform, deviation 1 / sqrt(errors that come in)), `"sign"`
    (+-2^-k of about that size: no multiplier needed), or `"serving"` (the product of the serving
    network's own layers above h, ReLU left out, computed when the device is switched on). To a
    network that was trained by back-propagation, random feedback is a foreign one: it must
    first realign, and loses meanwhile; `"serving"` starts aligned.

    Cost: as `EmbeddedSGD`, with (errors x hidden units) MACs instead of whole layers backwards;
    the matrices are constants.
    Source: Noekland 2016, arXiv:1609.01596.
    """

    feedback: Literal["random", "sign", "serving"] = "serving"
    program: ClassVar[int] = kernels.FEEDBACK

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback not in ("random", "sign", "serving"):
            raise ConfigError(
                f"feedback is random, sign or serving, not {self.feedback!r}"
            )  # fmt: skip

    def _first(self, layers: int) -> int:
        return 0

    def _start(self, made: Device, plan: Plan, rng: np.random.Generator) -> None:
        sizes = [int(n) for n in made.sizes]
        sent = 1 if plan.loss == kernels.GAUSSIAN else sizes[-1]
        n = len(made.feedback)
        if self.feedback == "random":
            drawn = rng.uniform(-1, 1, n) / math.sqrt(sizes[-2])
        elif self.feedback == "sign":
            drawn = rng.choice([-1.0, 1.0], n) * 2.0 ** -round(math.log2(3 * sizes[-2]) / 2)
        else:
            drawn = _downward(made, sizes, sent, self.numbers)
        made.feedback[:] = self.numbers.integers(drawn)


def _downward(made: Device, sizes: list[int], sent: int, numbers: Format) -> NDArray[np.float64]:
    """For each hidden unit, what the layers above make of it in each output, ReLU as 1/2."""
    flat = numbers.floats(made.weights).astype(np.float64)
    layers = []
    for n, m in pairwise(sizes):
        layers.append(flat[: m * (n + 1)].reshape(m, n + 1)[:, :n])
        flat = flat[m * (n + 1) :]
    product = layers[-1][:sent].T
    found = [product] if len(layers) > 1 else [product[:0]]
    for layer in layers[-2:0:-1]:
        product = layer.T @ product / 2  # half of the units between are off
        found.append(product)
    return np.concatenate([part.reshape(-1) for part in reversed(found)])


@dataclass(frozen=True, kw_only=True)
class EmbeddedSPSA(EmbeddedLearner):
    """Simultaneous perturbation: two predictions per step, nothing backwards at all.

    All weights move by +-2^-`shrink` at once (Rademacher signs of the generator, drawn again
    instead of stored); slope = (loss+ - loss-) / (2 x 2^-shrink); w <- w - round(rate x slope x
    sign). The slope is that of one direction in as many as there are weights, so it needs a
    rate smaller by about that number than SGD, and as many more examples. Constant gains, as a
    drifting optimum needs. More `shrink`: less curvature in the slope, more rounding in it.
    A stated noise stays as it is.

    Cost: 2 predictions; RAM: weights and activations, no errors.
    Source: Spall 1992, doi:10.1109/9.119632; signs drawn again: Malladi et al. 2023,
    arXiv:2305.17333.
    """

    rate: float = 0.0003
    shrink: int = 5
    program: ClassVar[int] = kernels.PERTURBATION

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink <= self.numbers.fraction:
            raise ConfigError(
                f"shrink must lie between 0 and the {self.numbers.fraction} fraction bits, got "
                f"{self.shrink}: a perturbation is one unit of them or more"
            )

    def plan(self, part: Part) -> Plan:
        return super().plan(part)._replace(shrink=self.shrink)

    def _first(self, layers: int) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class EmbeddedRLS(EmbeddedLearner):
    """Recursive least squares in the last layer, in fixed point, with forgetting.

    With features phi (and 1 for the bias), u = P phi, k = u / (forgetting + phi^T u):
    w <- w - k error; P <- D (P - k u^T) D, upper half, mirrored, where D^2 is 1 / forgetting for
    a feature whose entry of P lies below its start and 1 for the others, so that what a silent
    feature is worth does not blow up. Classes: the right one should say `score`, the others 0.
    P is int32 with `covariance_bits` fraction bits and starts as `prior` x 1: more trusts the
    serving weights less; 0 freezes. `forgetting` 1 remembers all alike, l about the last
    1 / (1 - l) examples.

    Guards: entries of P saturate (counted); its diagonal stays at 1 unit or more; where rounding
    has made phi^T u negative, P begins anew from its start (counted) and that example is left
    out. With fewer than about 20 covariance bits that happens; see docs/learning/embedded.md.

    Cost: about 2 n^2 MACs and n divisions, with n features; RAM 4 n^2 bytes.
    Source: Haykin, "Adaptive Filter Theory", chapter on RLS; a factor for each parameter: Saelid
    and Foss 1983, 22nd IEEE Conference on Decision and Control.
    """

    forgetting: float = 0.999
    prior: float = 1.0
    covariance_bits: int = 24
    program: ClassVar[int] = kernels.LEAST_SQUARES

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.forgetting <= 1:
            raise ConfigError(f"forgetting must lie between 0.5 and 1, got {self.forgetting}")
        if not 8 <= self.covariance_bits <= 28:
            raise ConfigError(
                f"covariance_bits must lie between 8 and 28 of 32, got {self.covariance_bits}"
            )
        top = 2.0 ** (31 - self.covariance_bits)
        if not 0 <= self.prior < top:
            raise ConfigError(
                f"prior must be 0 or more and below {top:g}, where {self.covariance_bits} fraction "
                f"bits end, got {self.prior:g}"
            )

    def plan(self, part: Part) -> Plan:
        size = part.sizes[-2] + 1
        needed = 31 + self.numbers.width - 1 + math.ceil(math.log2(size))
        if needed > 62:
            raise ConfigError(
                f"sums over {size} features of {self.numbers.width} bits need {needed} bits of "
                "62: use a smaller width or fewer features in the last layer"
            )
        start = round(self.prior * 2**self.covariance_bits)
        remembered = rate_of(self.forgetting, "forgetting")
        one = 1 << fixed.RATE_BITS
        return super().plan(part)._replace(
            forgetting=round(remembered / 2**fixed.RATE_BITS * 2**self.covariance_bits),
            inverse=round(one * one / remembered),
            inverse_root=round(one * math.sqrt(one / remembered)),
            start=start,
            floor=min(1, start),
        )  # fmt: skip

    def _first(self, layers: int) -> int:
        return layers - 1

    def _class_loss(self) -> str:
        return "squared"

    def _start(self, made: Device, plan: Plan, rng: np.random.Generator) -> None:
        size = int(made.sizes[-2]) + 1
        made.covariance.reshape(size, size)[np.diag_indices(size)] = plan.start
