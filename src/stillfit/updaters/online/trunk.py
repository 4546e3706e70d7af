"""A network as a frozen trunk and its last linear layer, of which only the layer changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.arrays import Arrays
from stillfit.core.predictive import Categorical, Predictive
from stillfit.models.model import Model
from stillfit.models.task import Answer
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.training import Prepared
from stillfit.models.uncertain import core_of
from stillfit.updaters.online.memory import fingerprint

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trunk:
    """Where the last linear layer sits in a model: `weight` and `bias` are its stored names.

    The trunk is all else, and gives the layer's input: the features of an event.
    """

    model: Model
    core: nn.Module
    layer: nn.Linear
    weight: str
    bias: str | None

    @classmethod
    def of(cls, model: Model, layer: str = "") -> Trunk | str:
        """The trunk of a model with its last `nn.Linear`, or the one named `layer`; else why not.

        Wrappers that state uncertainty round one core are looked through; members that have last
        layers of their own have no one head that could be solved for.
        """
        core = core_of(model.network)
        what = type(core).__name__
        linear = [(n, m) for n, m in core.named_modules() if isinstance(m, nn.Linear)]
        if layer:
            linear = [(n, m) for n, m in linear if n == layer]
        if not linear:
            return f"{what} has no nn.Linear {layer!r}" if layer else f"{what} has no nn.Linear"
        name, found = linear[-1]
        inside = [n for n, module in model.network.named_modules() if module is found]
        stored = model.network.state_dict()
        twins = [n for n in stored if n == f"{name}.weight" or n.endswith(f".{name}.weight")]
        if len(inside) != 1 or twins != [f"{inside[0]}.weight".lstrip(".")]:
            return (
                f"{type(model.network).__name__} has more last layers than one; use a plain network"
            )
        first = f"{inside[0]}." if inside[0] else ""
        bias = None if found.bias is None else f"{first}bias"
        return cls(model, core, found, f"{first}weight", bias)

    def fingerprint(self, beside: Sequence[str] = ()) -> NDArray[np.uint8]:
        """Of all weights but the last layer's (and `beside`): other features mean other things."""
        free = {self.weight, self.bias, *beside}
        return fingerprint({n: w for n, w in self.model.weights().items() if n not in free})

    def with_layer(self, weight: Floats, bias: Floats | None) -> Model:
        """The same model with other numbers in the last layer."""
        weights = self.model.weights()
        weights[self.weight] = weight.astype(weights[self.weight].dtype)
        if self.bias is not None and bias is not None:
            weights[self.bias] = bias.astype(weights[self.bias].dtype)
        return self.model.with_weights(weights)

    def seen(self, data: Prepared) -> Iterator[tuple[Seen, Prepared]]:
        """All events at the last layer, chunk by chunk, with what the network states of them."""
        self.core.eval()
        for piece in data.chunks():
            yield self.pass_over(tensors(piece.inputs)), piece

    def pass_over(self, inputs: Tensors, forced: Callable[[Tensor], Tensor] | None = None) -> Seen:
        """One pass over prepared events; `forced`: what the layer is made to give instead."""
        taken: list[tuple[Tensor, Tensor]] = []

        def hear(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
            out = out if forced is None else forced(out)
            taken.append((given[0], out))
            return out

        handle = self.layer.register_forward_hook(hear)
        try:
            with torch.inference_mode():
                answer = self.model.task.answer(self.core, inputs)
                whole = tuple(part[None] for part in answer)
                stated, outputs = self.model.task.state(self.core, whole, inputs)
        finally:
            handle.remove()
        features, out = taken[-1] if taken else (torch.zeros(0), torch.zeros(0))
        return Seen(features, out, answer, stated, outputs)


@dataclass(frozen=True)
class Seen:
    """A chunk of n events at the last layer: its input (n, d), its output, and what came of it."""

    features: Tensor
    out: Tensor
    answer: Answer
    stated: Predictive | Categorical
    outputs: Arrays

    def phi(self, biased: bool) -> Floats:
        """Features in double, with a 1 for the layer's bias if it has one."""
        x = self.features.double().cpu().numpy()
        return np.concatenate([x, np.ones((len(x), 1))], 1) if biased else x

    def per_event(self, n: int) -> bool:
        """Whether the layer took one row of numbers per event."""
        return self.features.ndim == 2 and len(self.features) == n
