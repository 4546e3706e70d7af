"""Parameters that are held: a quadratic well about anchors, and a training inside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.arrays import Array, names_of
from stillfit.core.errors import ShapeError
from stillfit.models.training import Guide

Pull: TypeAlias = Literal["implicit", "gradient"]
# Strengths stay below it, so that strength x distance is a number in single precision.
STRONGEST = 1e30


class Well(NamedTuple):
    """1/2 sum_i w_i (theta_i - a_i)^2 by parameter: `weights` w and `anchors` a, float32."""

    weights: Mapping[str, Array]
    anchors: Mapping[str, Array]

    def value(self, network: nn.Module) -> float:
        """The energy of a network's parameters in the well."""
        total = 0.0
        for name, values in weights_of(network).items():
            away = values.astype(np.float64) - self.anchors[name]
            total += 0.5 * float((self.weights[name] * away**2).sum())
        return total


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training moves, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def weights_of(network: nn.Module) -> dict[str, Array]:
    """Copies of the trainable parameters."""
    return {n: p.detach().cpu().numpy().copy() for n, p in trainable(network).items()}


def stored(learner: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """The arrays of one kind in a learner's state, by parameter."""
    prefix = f"{kind}/"
    return {n.removeprefix(prefix): part for n, part in learner.items() if n.startswith(prefix)}


def packed(**kinds: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by kind and parameter as a learner's state; `stored` gives them back."""
    return {f"{kind}/{n}": part for kind, parts in kinds.items() for n, part in parts.items()}


def belongs(anchors: Mapping[str, Array], network: nn.Module) -> None:
    """`ShapeError` where stored anchors are of another architecture."""
    own = {name: tuple(p.shape) for name, p in trainable(network).items()}
    strange = set(own) ^ set(anchors)
    if strange:
        raise ShapeError(
            f"the stored anchors and the network's parameters differ in {names_of(strange)}; was "
            "the learner's state stored with another network?"
        )
    for name, anchor in anchors.items():
        if anchor.shape != own[name]:
            raise ShapeError(
                f"the anchor of {name!r} has shape {anchor.shape} and the parameter {own[name]}; "
                "was the learner's state stored with another network?"
            )


def floored(importance: Mapping[str, Array], share: float) -> dict[str, Array]:
    """Importances of at least `share` of their mean over all parameters."""
    count = sum(part.size for part in importance.values())
    total = sum(float(part.sum(dtype=np.float64)) for part in importance.values())
    least = np.float32(share * total / max(count, 1))
    return {name: np.maximum(part, least) for name, part in importance.items()}


class Holding(Guide):
    """Trains inside a well, and may record the path: what each parameter did for the task's loss.

    `pull="implicit"`: after the optimiser's step the well takes its own, backward in time. With
    s_i the distance that the optimiser moves parameter i for a unit of gradient (Adam:
    rate / (sqrt(v_i) + eps); SGD: rate / (1 - momentum)),

        theta <- (theta + s w a) / (1 + s w),

    the proximal step of the well in the optimiser's own metric. It is stable at any strength,
    freezes bit for bit when s w is beyond single precision, and rests where
    d loss + w (theta - a) = 0, as it should. `"gradient"`: w (theta - a) is added to the task's
    gradient, as published; a strong well then rules Adam's second moments, and the parameters
    shake about the anchor by a step's length.

    A parameter without a gradient is left as it is. `record`: `path` sums -g . dtheta over the
    steps, g the gradient of the task's loss alone, not clipped, dtheta the step as it was really
    taken, pull included. Cost: about ten additions per parameter and step.
    """

    def __init__(
        self, network: nn.Module, well: Well | None, pull: Pull = "implicit", record: bool = False
    ) -> None:
        own = trainable(network)
        self.parameters = list(own.values())
        self.pull = pull
        self.well: list[tuple[Tensor, Tensor]] | None = None
        if well is not None:
            self.well = [
                (_like(well.weights[name], p).clamp(max=STRONGEST), _like(well.anchors[name], p))
                for name, p in own.items()
            ]
        self.path = {n: torch.zeros_like(p) for n, p in own.items()} if record else {}
        self._steps = list(self.path.values())
        self._before = [torch.empty_like(part) for part in self._steps]
        self._gradients = [torch.zeros_like(part) for part in self._steps]
        self._optimiser: torch.optim.Optimizer | None = None

    def begin(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self._optimiser = optimiser

    @torch.no_grad()
    def before(self, network: nn.Module) -> None:
        for parameter, was, gradient in zip(
            self.parameters, self._before, self._gradients, strict=False
        ):
            was.copy_(parameter)
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
        if self.well is not None and self.pull == "gradient":
            for parameter, (weight, anchor) in zip(self.parameters, self.well, strict=True):
                if parameter.grad is not None:
                    parameter.grad.addcmul_(weight, parameter - anchor)

    @torch.no_grad()
    def after(self, network: nn.Module) -> None:
        if self.well is not None and self.pull == "implicit":
            assert self._optimiser is not None
            rates = {p: group for group in self._optimiser.param_groups for p in group["params"]}
            for parameter, (weight, anchor) in zip(self.parameters, self.well, strict=True):
                if parameter in rates and parameter.grad is not None:
                    size = step_size(self._optimiser, rates[parameter], parameter)
                    # 1 / (1 + 1 / x) = x / (1 + x), and right for x = 0 and infinity.
                    share = (size * weight).reciprocal_().add_(1).reciprocal_()
                    parameter.lerp_(anchor, share)
        for parameter, path, was, gradient in zip(
            self.parameters, self._steps, self._before, self._gradients, strict=False
        ):
            path.addcmul_(gradient, was.sub_(parameter))


def step_size(
    optimiser: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter
) -> Tensor | float:
    """How far the optimiser moves each number of a parameter for a unit of lasting gradient."""
    rate = float(group["lr"])
    if not isinstance(optimiser, torch.optim.Adam):
        return rate / (1 - float(group.get("momentum", 0)))
    state = optimiser.state[parameter]
    second: Tensor = state["exp_avg_sq"]
    seen = 1 - math.pow(group["betas"][1], float(state["step"]))
    return (second / seen).sqrt_().add_(group["eps"]).reciprocal_().mul_(rate)


def _like(values: Array, parameter: nn.Parameter) -> Tensor:
    return torch.from_numpy(np.array(values)).to(parameter)
