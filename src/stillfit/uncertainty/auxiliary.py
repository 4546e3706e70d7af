"""A small second network that reads the first one's activations and predicts its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture, Predictive
from stillfit.models.likelihood import GAUSSIAN, GaussianLikelihood, likelihood_of
from stillfit.models.model import Architecture, Model, join
from stillfit.models.networks import Standardise, copy_network, reinitialised
from stillfit.models.task import Answer, Task, truth
from stillfit.models.tensors import RaggedTensor, Tensors, tensors
from stillfit.models.training import Prepared, Schedule, shuffled, train
from stillfit.models.uncertain import Stated, Uncertain
from stillfit.uncertainty.hooks import before, heard_from, last_linear, listening, plain, width

BATCH = 256
DECAY = 1e-4  # of squared weights: a few hundred errors must not be learned by heart
LOG_SIGMA_REACH = 5.0  # natural logarithms about the typical error, either way


@runtime_checkable
class HasItems(Protocol):
    """A network of ragged events, some of whose layers see items (tracks) and not events."""

    @property
    def item_layers(self) -> tuple[str, ...]:
        """Names, or beginnings of names, of the layers that see items."""
        ...


class _Held(NamedTuple):
    """Events that no copy was trained on: rows of the data, and the copy's error on each."""

    rows: NDArray[np.int64]
    errors: NDArray[np.float64]
    classes: bool


class Auxiliary(Uncertain):
    """The main network's prediction, with its error predicted from its own activations.

    A dense network `hidden` reads the outputs of the named `layers` in the pass that predicts
    anyway (hooks; the main network is not changed, bit for bit, by any of this) and gives log
    sigma of the main network's residual; the prediction is a Gaussian about the main mean. For
    classes it gives P(the main network is wrong), the output `p_wrong`; probabilities stay.

    `layers`: any modules of the network by name, by default the one before its last linear layer.
    Activations of items (tracks; see `HasItems`) are pooled to mean and max per event, further
    axes (of convolutions) are averaged.

    Its targets are out-of-fold errors: `folds` copies of the main network are trained, from where
    it started and by the same schedule, each without a fold whose errors it then gives, since
    errors on trained events are too small. So training costs (1 + `folds`) times that of the main
    network. `folds=0` is cheaper: one copy, trained without a share `held_out`, gives the errors
    of that share alone. `steps`, `rate`: Adam with a cosine, batches of 256, of the auxiliary
    network. Loss: the main network's own, if it is a Gaussian one, of a mean without gradient.

    It is fitted after training (`finish`) and before that states what the main network states.
    It cannot tell noise from ignorance: it predicts the error, whatever it comes from.

    Source: learning a network's loss from its hidden layers: Yoo and Kweon 2019, arXiv:1905.03677;
    out-of-fold targets: stacking, Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1.
    """

    fitted: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] | None = None,
        hidden: Sequence[int] = (16,),
        *,
        folds: int = 4,
        held_out: float = 0.25,
        steps: int = 400,
        rate: float = 0.005,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if folds == 1 or folds < 0:
            raise ConfigError(f"folds must be 2 or more, or 0 for one held-out part, got {folds}")
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out must lie strictly between 0 and 1, got {held_out}")
        self.folds, self.held_out, self.steps, self.rate = folds, held_out, steps, rate
        self.network = copy_network(plain(network, "Auxiliary"))
        if isinstance(layers, str) or (layers is not None and not layers):
            raise ConfigError(
                f'layers must be a list of names such as ("layers.2",), got {layers!r}'
            )
        self.layers = (
            tuple(layers) if layers is not None else (before(network, last_linear(network)[0]),)
        )
        items = network.item_layers if isinstance(network, HasItems) else ()
        self.pooled = tuple(any(_inside(name, item) for item in items) for name in self.layers)
        sizes = [
            width(network, name) * (1 + pool)
            for name, pool in zip(self.layers, self.pooled, strict=True)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.auxiliary = _dense(sum(sizes), hidden)
        self.auxiliary.requires_grad_(False)  # trained by `finish` alone
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def core(self) -> nn.Module:
        return self.network

    @property
    def n_passes(self) -> int:
        return 1

    def fresh(self, task: Task, examples: Examples, seed: int) -> Auxiliary:
        twin = copy_network(self)
        twin.network = task.fresh(self.network, examples, seed)
        twin._restart(seed)
        return twin

    def passes(self, task: Task, inputs: Tensors) -> Answer:
        return tuple(part[None] for part in task.answer(self.network, inputs))

    def predict(self, task: Task, inputs: Tensors) -> Stated:
        with listening(self.network, self.layers) as heard:
            answer = self.passes(task, inputs)
        predictive, outputs = task.state(self.network, answer, inputs)
        if not self.fitted:
            return predictive, outputs
        n = answer[0].shape[1]
        out: Tensor = self.auxiliary(self._activations(heard, inputs, n))[:, 0].detach()
        if isinstance(predictive, Categorical):
            return predictive, {**outputs, "p_wrong": torch.sigmoid(out.double()).cpu().numpy()}
        # Bounded: one absurd activation must not make a prediction that is refused.
        log_sigma = out.clamp(-LOG_SIGMA_REACH, LOG_SIGMA_REACH).double().cpu().numpy()
        variance = np.exp(2 * (log_sigma + math.log(float(self.scale))))
        return Mixture.gaussian(predictive.mean, variance), outputs

    def finish(
        self,
        task: Task,
        data: Prepared,
        schedule: Schedule,
        rng: np.random.Generator,
        *,
        start: nn.Module | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Out-of-fold errors, and the auxiliary network's fit to them, from its own start.

        Without a `start` the copies begin anew, drawn from `rng`.
        """
        begun = start.network if isinstance(start, Auxiliary) else None
        held: list[_Held] = []
        for inside, outside in self._folds(data.n, rng):
            copy = (
                copy_network(begun)
                if begun is not None
                else reinitialised(self.network, int(rng.integers(2**62)))
            )
            model = Model(copy, task, Architecture("copy"))
            draw = shuffled(data.take(inside), schedule.batch, rng)
            losses = list(train(model, draw, schedule, rates=rates))
            if all(map(math.isfinite, losses)):
                held.append(_Held(outside, *_errors(task, copy, data.take(outside))))
        if not held:
            raise DataError(
                "every copy of the main network diverged, so there are no errors to learn from; "
                "lower the schedule's rate"
            )
        self._restart(int(rng.integers(2**62)))
        rows = np.concatenate([part.rows for part in held])
        errors = np.concatenate([part.errors for part in held])
        self._learn(self._look(task, data.take(rows)), errors, held[0].classes, rng)
        self.fitted.fill_(True)

    def _restart(self, seed: int) -> None:
        """The auxiliary network as at first, nothing fitted."""
        fresh = reinitialised(self.auxiliary, seed)
        self.auxiliary.load_state_dict(fresh.state_dict())
        self.scale.fill_(1)
        self.fitted.fill_(False)

    def _folds(
        self, n: int, rng: np.random.Generator
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Rows to train a copy on, and rows to take its errors on, per copy."""
        needed = max(2 * self.folds, 4)
        if n < needed:
            raise DataError(
                f"{n} events are too few for out-of-fold errors of {self.folds or 'one'} "
                f"cop{'ies' if self.folds else 'y'}: at least {needed} are needed"
            )
        rows = rng.permutation(n)
        if not self.folds:
            cut = min(max(1, round(self.held_out * n)), n - 1)
            return [(np.sort(rows[cut:]), np.sort(rows[:cut]))]
        parts = np.array_split(rows, self.folds)
        return [(np.setdiff1d(rows, part), np.sort(part)) for part in parts]

    @torch.no_grad()
    def _look(self, task: Task, data: Prepared) -> Tensor:
        """The main network's activations, float32 (n, features)."""
        self.network.eval()
        seen = []
        with listening(self.network, self.layers) as heard:
            for piece in data.chunks():
                inputs = tensors(piece.inputs)
                task.answer(self.network, inputs)
                seen.append(self._activations(heard, inputs, piece.n))
        return torch.cat(seen)

    def _activations(self, heard: dict[str, Tensor], inputs: Tensors, n: int) -> Tensor:
        parts = []
        for name, pool in zip(self.layers, self.pooled, strict=True):
            value = heard_from(heard, name, self.network)
            if value.ndim != 2:
                value = value[:, None] if value.ndim == 1 else value.flatten(2).mean(2)
            if pool:
                parts += pooled(value, _items(inputs, len(value), name))
            elif len(value) == n:
                parts.append(value)
            else:
                raise ShapeError(
                    f"layer {name!r} gives {len(value)} rows for {n} events; does it see items "
                    "of events? Then the network must name it in `item_layers`"
                )
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).float()

    def _learn(
        self, x: Tensor, errors: NDArray[np.float64], classes: bool, rng: np.random.Generator
    ) -> None:
        """Fit the auxiliary network to errors (n,): residuals, or 1 for a wrong class."""
        network = self.auxiliary
        scaling = Standardise(x.shape[1]).to(x.device)
        scaling.set_from(x.cpu().numpy())
        x = scaling(x)
        if not classes:
            self.scale.fill_(_typical(errors))
        y = torch.from_numpy(errors).to(x) / self.scale
        likelihood = likelihood_of(self.network)
        if not isinstance(likelihood, GaussianLikelihood):
            likelihood = GAUSSIAN
        network.requires_grad_(True)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.rate, weight_decay=DECAY)
        data = Prepared({"x": np.arange(len(errors))}, {}, len(errors))
        draw = shuffled(data, BATCH, rng)
        with torch.enable_grad():
            for step in range(self.steps):
                optimiser.param_groups[0]["lr"] = (
                    self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
                )
                rows = torch.from_numpy(draw(step)[0]["x"]).to(x.device)
                out = network(x[rows])[:, 0]
                if classes:
                    loss = functional.binary_cross_entropy_with_logits(out, y[rows])
                else:
                    log_sigma = out.clamp(-LOG_SIGMA_REACH, LOG_SIGMA_REACH)
                    raw = torch.stack([torch.zeros_like(out), 2 * log_sigma], 1)
                    loss = likelihood.loss(raw, y[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        network.requires_grad_(False)
        network.zero_grad(set_to_none=True)
        _fold(scaling, network)


def _dense(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Dense ReLU layers and one output."""
    layers: list[nn.Module] = []
    for before_, after in pairwise([inputs, *hidden]):
        layers += [nn.Linear(before_, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], 1))


@torch.no_grad()
def _fold(scaling: Standardise, network: nn.Sequential) -> None:
    """Put the scaling of the inputs into the first layer, whose cost it then does not add to."""
    first = network[0]
    assert isinstance(first, nn.Linear)
    first.weight.div_(scaling.std)
    first.bias.sub_(first.weight @ scaling.mean)


def pooled(values: Tensor, items: RaggedTensor) -> list[Tensor]:
    """Mean and maximum of `values` (items, k) over each event, (n, k) each; 0 without items."""
    counts = torch.bincount(items.events, minlength=items.n)
    # Items lie event after event, so that segments need no index of each.
    most = torch.segment_reduce(values.float(), "max", lengths=counts, axis=0, unsafe=True)
    most = torch.where((counts > 0)[:, None], most, torch.zeros_like(most))
    return [items.mean(values.float()), most]


def _items(inputs: Tensors, rows: int, name: str) -> RaggedTensor:
    for value in inputs.values():
        if isinstance(value, RaggedTensor) and len(value.values) == rows:
            return value
    raise ShapeError(
        f"layer {name!r} gives {rows} rows, which are the items of no ragged column; "
        "is it called on all items in one pass?"
    )


def _inside(name: str, whole: str) -> bool:
    return name == whole or name.startswith(f"{whole}.")


@torch.no_grad()
def _errors(task: Task, network: nn.Module, data: Prepared) -> tuple[NDArray[np.float64], bool]:
    """Residuals y - mean, or 1 for a wrong class; and whether they are of classes."""
    network.eval()
    parts: list[Predictive | Categorical] = []
    for piece in data.chunks():
        inputs = tensors(piece.inputs)
        answer = tuple(part[None] for part in task.answer(network, inputs))
        parts.append(task.state(network, answer, inputs)[0])
    predictive = join(parts)
    y = truth(data.targets, task.target)
    if isinstance(predictive, Categorical):
        return (predictive.probabilities.argmax(1) != y).astype(np.float64), True
    return y - predictive.mean, False


def _typical(errors: NDArray[np.float64]) -> float:
    """A Gaussian's sigma from the median of |errors|, their rms where that is 0."""
    size = float(np.median(np.abs(errors))) / 0.6745 or float(np.sqrt((errors**2).mean()))
    return max(size, 1e-12)
