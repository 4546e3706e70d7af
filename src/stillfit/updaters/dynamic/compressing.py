"""Pruning and bit widths, chosen by loss until the network is below its limit, and opened again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models.fixed.formats import Format
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.fixed.quantisers import fake_quantise
from stillfit.models.masks import largest, maskable
from stillfit.models.model import Model, count_macs
from stillfit.models.sizes import FootprintLimit, Size, size_of, stated_widths
from stillfit.models.training import Guide, Part, Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.dynamic.judging import (
    between,
    gradients,
    loss_of,
    others,
    parts_of,
    split,
)

FLOAT = 32  # bits of what is not quantised
WIDEST = 16  # bits at most of what is


@dataclass
class Coded:
    """A network's parameters in training: full numbers, masks, widths; what serves lies on grids.

    `full`: parameters by name, not quantised, float32. `masks`: where a weight may differ from 0.
    `widths`: bits of a layer's weights and bias, by the layer's name, 32 for not quantised.
    Formats are signed and symmetric, the same for a whole tensor: the finest of that width whose
    range holds the largest number (`models.fixed`). `stated`: bits of what has a format of its own
    (fixed-point layers) or is no layer's weight or bias; it is masked and not quantised again.
    Mutable: it lives for one update.
    """

    full: dict[str, Tensor]
    masks: dict[str, Tensor]
    widths: dict[str, int]
    stated: dict[str, int]

    @classmethod
    def of(cls, network: nn.Module, learner: Learner) -> Coded:
        """From a network and the learner's state; where they differ, the network is right."""
        matrices = maskable(network)
        layers = {_layer(name) for name in matrices}
        fixed = {name for name in layers if isinstance(network.get_submodule(name), FixedLayer)}
        known = dict(network.named_parameters())
        names = [
            name
            for name, value in known.items()
            if name in matrices
            or (_layer(name) in layers and name.endswith(".bias") and value.requires_grad)
        ]
        coded = cls(
            {name: known[name].detach().clone() for name in names},
            {name: torch.ones_like(known[name], dtype=torch.bool) for name in matrices},
            dict.fromkeys(sorted(layers - fixed), FLOAT),
            {
                name: bits
                for name, bits in stated_widths(network).items()
                if name not in names or _layer(name) in fixed
            },
        )
        coded._resume(learner)
        return coded

    def _resume(self, learner: Learner) -> None:
        for layer in self.widths:
            if f"width/{layer}" in learner:
                self.widths[layer] = int(learner[f"width/{layer}"])
        for name, mask in self.masks.items():
            told = learner.get(f"mask/{name}")
            if told is not None and told.shape == tuple(mask.shape):
                # A weight that another updater brought back is back.
                self.masks[name] = torch.from_numpy(told.copy()) | (self.full[name] != 0)
        for name, now in self.full.items():
            told = learner.get(f"full/{name}")
            if told is None or told.shape != tuple(now.shape):
                continue
            full = torch.from_numpy(told.copy())
            on_grid = self._quantised(name, full)
            self.full[name] = torch.where(on_grid == now, full, now)

    def to_arrays(self) -> dict[str, Array]:
        """As learner states hold it."""
        flat: dict[str, Array] = {f"full/{n}": v.numpy().copy() for n, v in self.full.items()}
        flat.update({f"mask/{name}": mask.numpy().copy() for name, mask in self.masks.items()})
        flat.update({f"width/{layer}": np.array(bits) for layer, bits in self.widths.items()})
        return flat

    def copy(self) -> Coded:
        """One that may be changed without changing this."""
        return Coded(dict(self.full), dict(self.masks), dict(self.widths), self.stated)

    @property
    def plain(self) -> bool:
        """Whether nothing is pruned or quantised."""
        dense = all(bool(mask.all()) for mask in self.masks.values())
        return dense and all(bits == FLOAT for bits in self.widths.values())

    def _quantised(self, name: str, full: Tensor) -> Tensor:
        bits = self.widths.get(_layer(name), FLOAT)
        mask = self.masks.get(name)
        kept = full if mask is None else torch.where(mask, full, torch.zeros_like(full))
        return kept if bits == FLOAT else on_grid(kept, bits)

    @torch.no_grad()
    def put(self, network: nn.Module, names: Mapping[str, Tensor] | None = None) -> None:
        """Write what serves into a network: all of it, or the named parameters."""
        known = dict(network.named_parameters())
        for name in names or self.full:
            known[name].copy_(self._quantised(name, self.full[name]))

    def bits_by_parameter(self) -> dict[str, int]:
        """Width of each parameter that was given one, as `size_of` takes it."""
        layers = ((name, _layer(name)) for name in self.full)
        return {name: self.widths[layer] for name, layer in layers if layer in self.widths}

    def size(self, network: nn.Module) -> Size:
        """The size that masks and widths allow, whatever the numbers are."""
        parameters = nonzero = bits = 0
        for name, value in network.named_parameters():
            count = int(self.masks[name].sum()) if name in self.masks else value.numel()
            width = self.stated.get(name) or self.widths[_layer(name)]
            parameters, nonzero, bits = (
                parameters + value.numel(),
                nonzero + count,
                bits + count * width,
            )
        return Size(parameters=parameters, nonzero=nonzero, macs=count_macs(network), bits=bits)


def on_grid(x: Tensor, bits: int) -> Tensor:
    """`x` in signed symmetric fixed point of `bits` bits whose range just holds its largest."""
    top = float(x.abs().max()) if x.numel() else 0.0
    if not (top > 0 and math.isfinite(top)):
        return x.clone()
    # The largest code is 2^(bits - 1) - 1: the step is the smallest power of 2 that reaches.
    step = math.ceil(math.log2(top / (2 ** (bits - 1) - 1)))
    step = max(min(step, 24), -40)  # beyond: saturated, a network that diverged
    fmt = Format.of(1, bits - 1 + step, -step)
    with torch.no_grad():
        return fake_quantise(x, fmt, overflow="symmetric")


class Straight(Guide):
    """Straight-through training of full numbers whose quantised, masked values serve.

    The loss and its gradient are those of the quantised network; the optimiser's step is added to
    the full numbers, which are quantised again (Bengio et al. 2013, arXiv:1308.3432).
    """

    def __init__(self, network: nn.Module, coded: Coded) -> None:
        self._coded = coded
        self._parameters = {
            name: value for name, value in network.named_parameters() if name in coded.full
        }
        coded.put(network)
        self._served = {n: v.detach().clone() for n, v in self._parameters.items()}

    def before(self, network: nn.Module) -> None:
        for name, mask in self._coded.masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    @torch.no_grad()
    def after(self, network: nn.Module) -> None:
        coded = self._coded
        for name, value in self._parameters.items():
            if coded.widths.get(_layer(name), FLOAT) == FLOAT:
                coded.full[name] = value.detach().clone()
            else:
                coded.full[name] = coded.full[name] + (value - self._served[name])
            mask = coded.masks.get(name)
            if mask is not None:
                coded.full[name] = coded.full[name] * mask
            value.copy_(coded._quantised(name, coded.full[name]))
            self._served[name] = value.detach().clone()


class _Move(NamedTuple):
    """One way to make the network smaller: a layer's next width, or a matrix's next mask."""

    layer: str
    bits: int | None
    name: str = ""
    mask: Tensor | None = None

    def on(self, coded: Coded) -> Coded:
        """What it makes of a coding."""
        new = coded.copy()
        if self.bits is not None:
            new.widths[self.layer] = self.bits
        if self.mask is not None:
            new.masks[self.name] = self.mask
        return new


@dataclass(frozen=True, kw_only=True)
class Compress(Updater):
    """Train on below a limit of non-zero weights and bits; the algorithm chooses what to give up.

    An update: (1) open: every layer goes up to the next of `widths`, and the share `regrow` of
    the pruned weights comes back, at 0; (2) train on fresh events mixed with a share `mix` of old
    ones; (3) while the limit is exceeded: of all moves (the next narrower width of a layer's
    weights and bias; the smallest `step` of a matrix's weights pruned) take the one whose loss on
    held-out events (`judging.loss_of`) rises least for what it saves; after each of `rounds`
    equal parts of the way train on. So where the limit leaves room, masks and widths are switched
    off again, and weights and bits go where the newest events need them. No limit at all is plain
    fine-tuning, bit for bit.

    Weights: signed symmetric fixed point, a power-of-two step per tensor; straight-through
    gradient. What serves are the numbers on the grid, in an ordinary network; activations stay
    floats, and parameters outside dense and convolution layers count 32 bits. More `rounds`:
    gentler and longer. `step`: coarser is faster. `least`: the share of each matrix that is never
    pruned. Where the limit cannot be reached so, the update is declined with the figures.

    Fixed-point layers (`models.fixed`) keep their own formats and are pruned alone. Methods of
    several passes or parts work: all their matrices are weighed by the same loss. In
    a Bayesian layer a pruned mean keeps its spread. Numbers of parts that are trained apart (an
    auxiliary network) stay floats.

    A change of widths is another circuit: update class `bitstream`.
    Cost: 1 + `rounds` trainings, and a pass of the held-out events per move tried. Memory: the
    full numbers and a byte per weight.
    Source: magnitude pruning, Han et al. 2015, arXiv:1506.02626; prune and regrow, Evci et al.
    2020, arXiv:1911.11134 (there by gradient); widths chosen by loss, Dong et al. 2019,
    arXiv:1905.03696 (there by curvature).
    """

    limit: FootprintLimit = field(default_factory=FootprintLimit)
    widths: tuple[int, ...] = (12, 8, 6, 5, 4, 3, 2)
    step: float = 0.2
    regrow: float = 0.1
    least: float = 0.02
    rounds: int = 3
    held_out: float = 0.2
    mix: float = 0.5
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=100, rate=0.002))
    min_events: int = 200

    def __post_init__(self) -> None:
        ladder = self.widths
        if list(ladder) != sorted(set(ladder), reverse=True) or any(
            not 2 <= bits <= WIDEST for bits in ladder
        ):
            raise ConfigError(
                f"widths = {list(ladder)} must fall from at most {WIDEST} to at least 2 bits; "
                "leave it empty to prune only"
            )
        between("step", self.step, 0.001, 1, "the share of a matrix that a move prunes")
        between("regrow", self.regrow, 0, 1, "the share of the pruned weights that comes back")
        between("least", self.least, 0, 1, "the share of a matrix that is never pruned")
        between("rounds", self.rounds, 1, math.inf, "trainings on the way to the limit")
        between("held_out", self.held_out, 0.01, 0.9, "the share of fresh events to judge by")
        between("mix", self.mix, 0, 1, "the share of each batch that is old events")
        between("min_events", self.min_events, 2, math.inf, "events to train on and to judge by")

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
        few = too_few(fresh, self.min_events, "compression")
        if few is not None:
            return few
        if not maskable(serving.network):
            return Declined(
                f"{type(serving.network).__name__} has no weight matrix to prune or quantise; it "
                "needs dense or convolution layers"
            )
        meter = Meter.start(self, rng)
        old = others(memory, fresh)
        model = serving.copy()
        coded = Coded.of(model.network, learner)
        was = dict(coded.widths)
        self._open(coded, model, fresh)
        smallest = self._smallest(coded, model.network)
        over = self.limit.exceeded_by(smallest)
        if over is not None:
            return Declined(
                f"the limit cannot be reached: at {min(self.widths, default=FLOAT)} bits and "
                f"{self.least:.0%} of each matrix the network still has {over}"
            )
        found = self._below(model, coded, fresh, old, rng)
        if isinstance(found, Declined):
            return found
        coded, steps = found
        over = self.limit.exceeded_by(size_of(model.network, coded.bits_by_parameter()))
        if over is not None:
            return Declined(f"the update was thrown away: the network has {over}")
        state = coded.to_arrays() if not coded.plain else {}
        answer = meter.finish(model, state, [fresh, old], budget, steps=steps)
        if isinstance(answer, Candidate) and coded.widths != was:
            return replace(answer, update_class="bitstream")
        return answer

    def _below(
        self, model: Model, coded: Coded, fresh: Examples, old: Examples, rng: np.random.Generator
    ) -> tuple[Coded, int] | Declined:
        """Train and cut until the network is below the limit, in place; the steps taken."""
        fits = not self.limit.over(coded.size(model.network))
        training, judging = (fresh, fresh) if fits else split(fresh, self.held_out, rng)
        parts = parts_of(model, training, old, self.mix, self.schedule.batch)
        rounds = 0 if fits else self.rounds
        steps = 0
        for left in range(rounds, -1, -1):
            guide = None if coded.plain else Straight(model.network, coded)
            taken = fit(model, parts, self.schedule, rng, guide=guide)
            steps += taken
            if taken < self.schedule.steps:
                return Declined(
                    f"the training diverged at step {steps}: its loss is not a finite number; "
                    "lower schedule.rate"
                )
            if guide is None:
                coded = replace(coded, full=_parameters(model.network, coded))
            if left:
                coded = self._cut(model, coded, self._held(model, judging, parts), left)
                coded.put(model.network)
        return coded, steps

    def _held(self, model: Model, judging: Examples, parts: tuple[Part, ...]) -> list[Prepared]:
        """What moves are judged on: held-out fresh events, and as many old ones if they train."""
        held = [Prepared.of(model, judging)]
        if len(parts) > 1 and self.mix < 1:
            old = parts[1].data
            held.append(old.take(slice(max(0, old.n - len(judging)), old.n)))
        return held

    def _cut(self, model: Model, coded: Coded, held: list[Prepared], left: int) -> Coded:
        """The moves of one round: 1/`left` of the way to the limit, all of it in the last."""
        start = coded.size(model.network)
        goal = _between(start, self.limit, left)
        probe = model.copy()
        coded.put(probe.network)
        now = _loss(probe, held)
        while goal.over(coded.size(probe.network)):
            size = coded.size(probe.network)
            best: tuple[float, float, Coded] | None = None
            for move in self._moves(coded):
                tried = move.on(coded)
                saved = _saved(size, tried.size(probe.network), goal)
                if saved <= 0:
                    continue
                names = {n: v for n, v in coded.full.items() if _layer(n) == move.layer}
                tried.put(probe.network, names)
                loss = _loss(probe, held)
                coded.put(probe.network, names)
                cost = (loss - now) / saved if math.isfinite(loss) else math.inf
                if best is None or cost < best[0]:
                    best = cost, loss, tried
            if best is None:  # the limit is not this round's to reach
                break
            _, now, coded = best
            coded.put(probe.network)
        return coded

    def _moves(self, coded: Coded) -> Iterator[_Move]:
        for layer, bits in coded.widths.items():
            narrower = [width for width in self.widths if width < bits]
            if narrower:
                yield _Move(layer, narrower[0])
        for name, mask in coded.masks.items():
            kept = int(mask.sum())
            floor = max(1, math.ceil(self.least * mask.numel()))
            left = max(floor, kept - max(1, round(self.step * kept)))
            if left < kept:
                yield _Move(_layer(name), None, name, largest(coded.full[name], mask, left))

    def _open(self, coded: Coded, model: Model, fresh: Examples) -> None:
        """Every layer one width up; the pruned weights of largest gradient back at 0; in place."""
        for layer, bits in coded.widths.items():
            wider = [width for width in self.widths if width > bits]
            coded.widths[layer] = min(wider, default=FLOAT)
        pruned = {name: int((~mask).sum()) for name, mask in coded.masks.items()}
        back = {name: math.floor(self.regrow * n) for name, n in pruned.items()}
        if any(back.values()):
            slopes = gradients(model, fresh)
            for name, n in back.items():
                mask = coded.masks[name]
                coded.masks[name] = mask | largest(slopes[name], ~mask, n)

    def _smallest(self, coded: Coded, network: nn.Module) -> Size:
        """What is left when every move was made."""
        last = coded.copy()
        for name, mask in coded.masks.items():
            floor = max(1, math.ceil(self.least * mask.numel()))
            last.masks[name] = largest(coded.full[name], mask, floor)
        for layer, bits in coded.widths.items():
            last.widths[layer] = min(bits, *self.widths, FLOAT)
        return last.size(network)


def widths_of(learner: Learner) -> dict[str, int]:
    """Bits of each layer's weights in a learner's state, 32 where they are floats."""
    return {
        name.removeprefix("width/"): int(bits)
        for name, bits in learner.items()
        if name.startswith("width/")
    }


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _parameters(network: nn.Module, coded: Coded) -> dict[str, Tensor]:
    known = dict(network.named_parameters())
    return {name: known[name].detach().clone() for name in coded.full}


def _loss(model: Model, held: list[Prepared]) -> float:
    return sum(loss_of(model, part) for part in held) / len(held)


def _between(start: Size, limit: FootprintLimit, left: int) -> FootprintLimit:
    """The limit of a round: 1/`left` of the way down, on a logarithmic scale."""
    goals: dict[str, int] = {}
    for name, (used, allowed) in limit.over(start).items():
        goals[name] = max(allowed, math.floor(used * (allowed / used) ** (1 / left)))
    return replace(limit, **goals)


def _saved(before: Size, after: Size, goal: FootprintLimit) -> float:
    """What a move saves of the figures that exceed their goal, as shares of these."""
    saved = 0.0
    for name, (used, _) in goal.over(before).items():
        saved += (used - getattr(after, name)) / used
    return saved
