"""What a network is asked to do: its loss for training, its error for monitors and gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.arrays import Array, Arrays, Ragged, names_of
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Predictive
from stillfit.models.likelihood import GaussianLikelihood, Likelihood, likelihood_of
from stillfit.models.networks import WithNoise, reinitialised
from stillfit.models.tensors import Tensors

Answer: TypeAlias = tuple[Tensor, ...]


class Task(Protocol):
    """Loss, prediction and error of a kind of network.

    The task travels with the network, so that updaters, monitors and gates need not know what
    is predicted. A task knows plain networks: what states its uncertainty by several passes or
    parts is a `models.uncertain.Uncertain`, so call `uncertain.loss` and `uncertain.predict`.
    """

    @property
    def target(self) -> str:
        """Name of the target that the headline prediction is about."""
        ...

    def prepare(self, network: nn.Module, inputs: Arrays) -> Arrays:
        """Inputs as the network takes them; done once per data set, not once per step."""
        ...

    def fresh(self, network: nn.Module, examples: Examples, seed: int) -> nn.Module:
        """The same architecture at its start: parameters drawn anew, scales set from data."""
        ...

    def loss(self, network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        """Mean training loss of a batch of prepared events, a scalar."""
        ...

    def answer(self, network: nn.Module, inputs: Tensors) -> Answer:
        """What one pass says of n prepared events: tensors whose first axis is events or items."""
        ...

    def state(
        self, network: nn.Module, answer: Answer, inputs: Tensors
    ) -> tuple[Predictive | Categorical, Arrays]:
        """What m passes state together: the headline prediction and further outputs by name.

        `answer`: the tensors of `answer` with a leading axis of m passes; m = 1 for one network.
        """
        ...

    def errors(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, NDArray[np.float64]]:
        """Errors by name, one number per event in the task's unit, lower is better.

        `"error"` is the headline, which policies and gates read unless told otherwise.
        """
        ...

    def summarise(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, float]:
        """The figures of a stretch of events that a report shows, `x_err` beside `x`."""
        ...


def matrix(inputs: Arrays, names: tuple[str, ...]) -> Array:
    """The named columns side by side, float32, shape (n, features)."""
    missing = set(names) - set(inputs)
    if missing:
        raise ShapeError(
            f"the serving model expects {len(names)} features but the stream lacks "
            f"{names_of(missing)}; was the feature list changed since it was trained?"
        )
    columns = []
    for name in names:
        column = inputs[name]
        if isinstance(column, Ragged):
            raise ShapeError(f"feature {name!r} is ragged; this task takes one number per event")
        width = int(np.prod(column.shape[1:]))
        columns.append(np.asarray(column, np.float32).reshape(len(column), width))
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True, kw_only=True)
class Regression:
    """One number per event with a distribution stated by the network.

    The network maps (n, features) to (n, outputs) of its likelihood, which gives the loss: by
    default (n, 2), mean and log-variance of a Gaussian (`models.likelihood`). Errors: `"error"`
    is |mean - y| in the unit of the target, `"squared"` its square.
    """

    features: tuple[str, ...]
    target: str = "y"

    def prepare(self, network: nn.Module, inputs: Arrays) -> Arrays:
        return {"x": matrix(inputs, self.features)}

    def fresh(self, network: nn.Module, examples: Examples, seed: int) -> nn.Module:
        return _rescaled(
            reinitialised(network, seed),
            matrix(examples.inputs, self.features),
            truth(examples.targets, self.target),
        )

    def loss(self, network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        (raw,) = self.answer(network, inputs)
        return likelihood_of(network).loss(raw, dense(targets, self.target).to(raw.dtype))

    def answer(self, network: nn.Module, inputs: Tensors) -> Answer:
        x = dense(inputs, "x")
        return (likelihood_of(network).check(network(x), len(x)),)

    def state(
        self, network: nn.Module, answer: Answer, inputs: Tensors
    ) -> tuple[Predictive | Categorical, Arrays]:
        return likelihood_of(network).predictive(answer[0]), {}

    def errors(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, NDArray[np.float64]]:
        assert isinstance(predictive, Predictive)
        away = np.abs(predictive.mean - truth(targets, self.target))
        return {"error": away, "squared": away**2}

    def summarise(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, float]:
        assert isinstance(predictive, Predictive)
        y = truth(targets, self.target)
        away = np.abs(predictive.mean - y)
        low, high = predictive.interval(0.9)
        return {
            "error": float(away.mean()),
            "error_err": float(away.std() / np.sqrt(len(away))),
            "rmse": float(np.sqrt((away**2).mean())),
            "crps": float(predictive.crps(y).mean()),
            "coverage_90": float(((low <= y) & (y <= high)).mean()),
            "sigma": float(predictive.std.mean()),
        }


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One of `classes` per event; the network maps (n, features) to (n, classes) logits.

    Loss: cross-entropy. Errors: `"error"` is 1 for a wrong class and 0 for the right one,
    `"log_loss"` the negative log-probability of the right one, in nats.
    """

    features: tuple[str, ...]
    classes: int
    target: str = "y"

    def prepare(self, network: nn.Module, inputs: Arrays) -> Arrays:
        return {"x": matrix(inputs, self.features)}

    def fresh(self, network: nn.Module, examples: Examples, seed: int) -> nn.Module:
        return _rescaled(reinitialised(network, seed), matrix(examples.inputs, self.features), None)

    def loss(self, network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        y = dense(targets, self.target).long()
        try:
            return functional.cross_entropy(self._logits(network, inputs), y)
        except IndexError:
            strange = y[(y < 0) | (y >= self.classes)]
            raise DataError(
                f"the labels hold the class {int(strange[0])} and the network has outputs for 0 to "
                f"{self.classes - 1}; a class that it never had needs a network with more outputs"
            ) from None

    def answer(self, network: nn.Module, inputs: Tensors) -> Answer:
        return (self._logits(network, inputs),)

    def state(
        self, network: nn.Module, answer: Answer, inputs: Tensors
    ) -> tuple[Predictive | Categorical, Arrays]:
        members = torch.softmax(answer[0].double(), 2).permute(1, 0, 2)
        return Categorical(members.contiguous().cpu().numpy()), {}

    def errors(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, NDArray[np.float64]]:
        assert isinstance(predictive, Categorical)
        y = truth(targets, self.target).astype(np.int64)
        wrong = (predictive.probabilities.argmax(1) != y).astype(np.float64)
        return {"error": wrong, "log_loss": -predictive.log_prob(y)}

    def summarise(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, float]:
        errors = self.errors(predictive, outputs, targets)
        rate, n = float(errors["error"].mean()), len(errors["error"])
        return {
            "error": rate,
            "error_err": float(np.sqrt(rate * (1 - rate) / n)),
            "log_loss": float(errors["log_loss"].mean()),
        }

    def _logits(self, network: nn.Module, inputs: Tensors) -> Tensor:
        stated = getattr(network, "likelihood", None)
        # Two outputs of a plain network may be a Gaussian's or two classes'; a head's are not.
        if isinstance(stated, Likelihood) and type(stated) is not GaussianLikelihood:
            raise ConfigError(
                f"the network states numbers ({type(stated).__name__}) and the task is about "
                f"{self.classes} classes, whose head is the softmax itself: give it no other"
            )
        out: Tensor = network(dense(inputs, "x"))
        if out.ndim != 2 or out.shape[1] != self.classes:
            raise ShapeError(
                f"a network for {self.classes} classes must return (n, {self.classes}), got "
                f"{tuple(out.shape)}"
            )
        return out


def truth(targets: Arrays, name: str) -> NDArray[np.float64]:
    """The named target, one number per event, shape (n,)."""
    column = targets.get(name)
    if column is None:
        raise DataError(
            f"the labels lack the target {name!r}; they hold {names_of(targets)}: "
            "is the target named as in the run file?"
        )
    if isinstance(column, Ragged) or column.ndim != 1:
        raise ShapeError(f"the target {name!r} must be one number per event")
    return np.asarray(column, np.float64)


@runtime_checkable
class SetsScales(Protocol):
    """A network that keeps the scales of its inputs (and target) as buffers."""

    def set_scales(self, x: Array, y: Array | None) -> None:
        """Take the scales from training rows: x (n, features), y (n,) or None."""
        ...


def _rescaled(network: nn.Module, x: Array, y: Array | None) -> nn.Module:
    inner = network.network if isinstance(network, WithNoise) else network
    if isinstance(inner, SetsScales):
        for what, column in (("inputs", x), ("target", y)):
            if column is not None and not np.isfinite(column).all():
                row = int(np.argwhere(~np.isfinite(column))[0][0])
                raise DataError(
                    f"the {what} of event {row} hold {column[row]}, from which no scale can be "
                    "taken; drop such events before a network is trained from nothing"
                )
        inner.set_scales(x, y)
    return network


def dense(tensors: Tensors, name: str) -> Tensor:
    """A named tensor that must not be ragged."""
    value = tensors.get(name)
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{name!r} must be one dense tensor; there are {names_of(tensors)}; "
            "are the columns named as in the run file?"
        )
    return value
