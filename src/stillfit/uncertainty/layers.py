"""Layers that are another in each pass: rows come in groups, one for each pass.

A layer of this room takes folded rows (`models.uncertain.fold`) and uses the weights or the mask
of pass k for the k-th group, all in one call. Alone, outside `models.uncertain.folded`, it is the
plain layer that stands for all.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.errors import ShapeError
from stillfit.models.model import count_macs
from stillfit.models.networks import Standardise
from stillfit.models.uncertain import passes_now, unfolded

if TYPE_CHECKING:
    from collections.abc import Iterator

Weights: TypeAlias = tuple[Tensor, Tensor | None]
Op: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Plain: TypeAlias = nn.Linear | nn.Conv1d


class Draw(Enum):
    """How sampled layers answer outside folded passes: in training, and by their moments."""

    LOCAL = "noise of each row's own"
    SHARED = "one draw for all rows"
    MOMENTS = "mean and variance"


_DRAW: ContextVar[Draw | None] = ContextVar("draw", default=None)


@contextmanager
def drawing(how: Draw) -> Iterator[None]:
    """Within it, sampled layers draw anew or pass on moments."""
    token = _DRAW.set(how)
    try:
        yield
    finally:
        _DRAW.reset(token)


def grouped(x: Tensor, k: int) -> Tensor:
    """Rows as (k, n, ...)."""
    if len(x) % k:
        raise ShapeError(
            f"{len(x)} rows cannot be the events of {k} passes; does the network put rows together "
            "before a dense or convolution layer?"
        )
    return x.reshape(k, len(x) // k, *x.shape[1:])


class PassLayer(nn.Module, ABC):
    """A layer of its own in each pass."""

    @abstractmethod
    def spread(self, x: Tensor, passes: slice) -> Tensor:
        """From rows (n, ...) that are the same in all passes: (k * n, ...), pass after pass."""

    @abstractmethod
    def plain(self, k: int | None) -> nn.Module:
        """The layer of pass `k`, or the one that stands for all, by itself."""


class Source(nn.Module, ABC):
    """Where a layer's weights come from in each pass."""

    @abstractmethod
    def weights(self, passes: slice) -> Weights:
        """Weights (k, *shape) and biases (k, out) of some passes."""

    @abstractmethod
    def alone(self) -> Weights:
        """The weights that stand for all passes."""

    def drawn(self, x: Any, op: Op, how: Draw) -> Any:
        """The answer in training or of moments, where this source has randomness."""
        return op(x, *self.alone())


class PassWeights(PassLayer):
    """A dense or convolution layer whose weights are a `Source`'s."""

    def __init__(self, source: Source, like: Plain) -> None:
        super().__init__()
        self.source = source
        # Its class, sizes and whatever a subclass keeps; a tuple, so that it is no submodule.
        self._like = (like,)

    @abstractmethod
    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with one set of weights."""

    @abstractmethod
    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer for groups (k, n, ...), each with its own weights: (k * n, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        how = _DRAW.get()
        if how is not None:
            drawn: Tensor = self.source.drawn(x, self.op, how)
            return drawn
        passes = passes_now()
        if passes is None:
            return self.op(x, *self.source.alone())
        k = passes.stop - passes.start
        if k == 1:
            return self._single(x, passes)
        return self.batched(grouped(x, k), *self.source.weights(passes))

    def spread(self, x: Tensor, passes: slice) -> Tensor:
        k = passes.stop - passes.start
        if k == 1:
            return self._single(x, passes)
        return self.batched(x.expand(k, *x.shape), *self.source.weights(passes))

    def _single(self, x: Tensor, passes: slice) -> Tensor:
        weight, bias = self.source.weights(passes)
        return self.op(x, weight[0], None if bias is None else bias[0])

    def plain(self, k: int | None) -> nn.Module:
        weight, bias = self.source.alone()
        if k is not None:
            weights, biases = self.source.weights(slice(k, k + 1))
            weight, bias = weights[0], None if biases is None else biases[0]
        twin = copy.deepcopy(self._like[0]).to(weight.device)
        with torch.no_grad():
            twin.weight.copy_(weight)
            if bias is not None and twin.bias is not None:
                twin.bias.copy_(bias)
        return twin

    def macs(self) -> int:
        """Multiply-accumulates of one pass."""
        return count_macs(self._like[0])


class PassLinear(PassWeights):
    """Dense layers side by side: one batched product."""

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k, n = x.shape[:2]
        rows = x.reshape(k, -1, x.shape[-1]) if x.ndim > 3 else x
        turned = weight.transpose(1, 2)
        if bias is None:
            out = torch.bmm(rows, turned)
        else:
            out = torch.baddbmm(bias[:, None], rows, turned)
        return out.reshape(k * n, *x.shape[2:-1], out.shape[-1])


class PassConv1d(PassWeights):
    """Convolutions side by side: windows of the input, then one batched product."""

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self._like[0]
        assert isinstance(like, nn.Conv1d)
        # The module's own way of padding, whatever its mode.
        out: Tensor = like._conv_forward(x, weight, bias)
        return out

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k, n, channels, length = x.shape
        rows = x.transpose(0, 1).reshape(n, k * channels, length)
        like = self._like[0]
        assert isinstance(like, nn.Conv1d)
        if like.padding_mode != "zeros":
            mode = like.padding_mode
            rows = functional.pad(rows, like._reversed_padding_repeated_twice, mode=mode)
        out = functional.conv1d(
            rows,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            like.stride,
            like.padding if like.padding_mode == "zeros" else 0,
            like.dilation,
            k * like.groups,
        )
        out = out.reshape(n, k, -1, out.shape[-1]).transpose(0, 1)
        return out.reshape(k * n, *out.shape[2:])


def layer_of(source: Source, like: Plain) -> PassWeights:
    """The layer like `like` with the weights of `source`."""
    return PassLinear(source, like) if isinstance(like, nn.Linear) else PassConv1d(source, like)


class Stacked(Source):
    """Weights of m members of their own: (m, *shape) and (m, out)."""

    def __init__(self, layers: Sequence[Plain]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None

    def weights(self, passes: slice) -> Weights:
        if passes.stop - passes.start == len(self.weight):
            return self.weight, self.bias
        return self.weight[passes], None if self.bias is None else self.bias[passes]

    def alone(self) -> Weights:
        return self.weight[0], None if self.bias is None else self.bias[0]


class Masked(PassLayer):
    """A layer whose inputs (columns, or channels of a convolution) are masked in each pass.

    `masks`: (m, features), factors on the inputs, a buffer. In training with `drawing`, features
    are dropped at `rate` at random (Srivastava et al. 2014); alone, nothing is dropped.
    """

    masks: Tensor

    def __init__(self, layer: Plain, masks: Tensor, rate: float = 0.0) -> None:
        super().__init__()
        self.layer = layer
        self.rate = rate
        self.register_buffer("masks", masks)

    def _shaped(self, masks: Tensor, x: Tensor) -> Tensor:
        """Masks (k, features) as factors on groups (k, n, ...), where x is (n, ...)."""
        if isinstance(self.layer, nn.Conv1d):
            return masks[:, None, :, None]
        return masks.reshape(len(masks), *[1] * (x.ndim - 1), masks.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        how = _DRAW.get()
        if how is not None:
            return self._drawn(x, how)
        passes = passes_now()
        if passes is None:
            alone: Tensor = self.layer(x)
            return alone
        factors = self._shaped(self.masks[passes], x)
        out: Tensor = self.layer((grouped(x, len(factors)) * factors).flatten(0, 1))
        return out

    def _drawn(self, x: Tensor, how: Draw) -> Tensor:
        channels = isinstance(self.layer, nn.Conv1d)
        if how is Draw.LOCAL:
            drop = functional.dropout1d if channels else functional.dropout
            x = drop(x, self.rate, True)
        else:
            ones = functional.dropout(x.new_ones(1, self.masks.shape[1]), self.rate, True)
            x = x * self._shaped(ones, x)[0]
        out: Tensor = self.layer(x)
        return out

    def spread(self, x: Tensor, passes: slice) -> Tensor:
        out: Tensor = self.layer((x * self._shaped(self.masks[passes], x)).flatten(0, 1))
        return out

    def plain(self, k: int | None) -> nn.Module:
        twin = copy.deepcopy(self.layer)
        if k is not None:
            mask = self.masks[k]
            with torch.no_grad():
                twin.weight.mul_(mask[:, None] if isinstance(twin, nn.Conv1d) else mask)
        return twin


# What is the same in all passes and treats each row alone may be done once, before rows fold.
_ROW_WISE = (Standardise, nn.Linear, nn.Conv1d, nn.ReLU, nn.Tanh, nn.Identity, nn.Flatten)


class PassSequential(nn.Sequential):
    """A chain that does what all passes have in common once, and its ReLU in place.

    In place, since nobody else holds the output of a chain's own dense layer: half the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        steps = list(self)
        place = 0
        passes = passes_now()
        common = None if passes is None or _DRAW.get() is not None else unfolded(x)
        if common is not None and passes is not None:
            while place < len(steps) and isinstance(steps[place], _ROW_WISE):
                common = steps[place](common)
                place += 1
            if place < len(steps) and isinstance(step := steps[place], PassLayer):
                x = step.spread(common, passes)
                x, place = self._activated(steps, place, x)
            else:
                x = common.repeat(passes.stop - passes.start, *[1] * (common.ndim - 1))
        while place < len(steps):
            made = steps[place](x)
            if isinstance(steps[place], PassLayer):
                x, place = self._activated(steps, place, made)
            else:
                x, place = made, place + 1
        return x

    @staticmethod
    def _activated(steps: list[nn.Module], place: int, x: Tensor) -> tuple[Tensor, int]:
        """The output of the layer at `place` after its ReLU, if one follows, and what is next."""
        if place + 1 < len(steps):
            after = steps[place + 1]
            if type(after) is nn.ReLU and isinstance(x, Tensor) and not after._forward_hooks:
                return functional.relu_(x), place + 2
        return x, place + 1
