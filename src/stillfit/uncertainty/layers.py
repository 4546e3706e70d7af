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


# Outputs up to which a batched product is faster with the sides exchanged (1.5x at 2 outputs).
NARROW = 4
# Events from which it is faster to keep each feature of all events together.
MANY = 16


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
    def groups(self, x: Tensor, passes: slice) -> Tensor:
        """From groups (k, n, ...) to groups, each by its own pass."""

    @abstractmethod
    def spread(self, x: Tensor, passes: slice) -> Tensor:
        """From rows (n, ...) that are the same in all passes: groups (k, n, ...)."""

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

    @property
    def like(self) -> Plain:
        """The plain layer that this one stands for; its numbers mean nothing."""
        return self._like[0]

    @abstractmethod
    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with one set of weights."""

    @abstractmethod
    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer for groups (k, n, ...), each with its own weights: (k, n, ...)."""

    @abstractmethod
    def widened(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer for one group (n, ...) with each set of weights: (k, n, ...)."""

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
        return self.groups(grouped(x, k), passes).flatten(0, 1)

    def groups(self, x: Tensor, passes: slice) -> Tensor:
        if x.shape[0] == 1:
            return self._single(x[0], passes)[None]
        return self.batched(x, *self.source.weights(passes))

    def spread(self, x: Tensor, passes: slice) -> Tensor:
        if passes.stop - passes.start == 1:
            return self._single(x, passes)[None]
        return self.widened(x, *self.source.weights(passes))

    def _single(self, x: Tensor, passes: slice) -> Tensor:
        weight, bias = self.source.weights(passes)
        return self.op(x, weight[0], None if bias is None else bias[0])

    def plain(self, k: int | None) -> nn.Module:
        weight, bias = self.source.alone()
        if k is not None:
            weights, biases = self.source.weights(slice(k, k + 1))
            weight, bias = weights[0], None if biases is None else biases[0]
        twin = copy.deepcopy(self.like).to(weight.device)
        with torch.no_grad():
            twin.weight.copy_(weight)
            if bias is not None and twin.bias is not None:
                twin.bias.copy_(bias)
        return twin

    def macs(self) -> int:
        """Multiply-accumulates of one pass."""
        return count_macs(self.like)


class PassLinear(PassWeights):
    """Dense layers side by side: one batched product."""

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(1, -2) if x.ndim > 3 else x
        # As the rows lie: features next to each other, or the same feature of all events.
        if rows.stride(2) > 1 or (weight.shape[1] <= NARROW and not torch.is_grad_enabled()):
            turned = rows.transpose(1, 2)
            if bias is None:
                out = torch.bmm(weight, turned).transpose(1, 2)
            else:
                out = torch.baddbmm(bias[:, :, None], weight, turned).transpose(1, 2)
        elif bias is None:
            out = torch.bmm(rows, weight.transpose(1, 2))
        else:
            out = torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))
        return out.reshape(*x.shape[:-1], out.shape[-1]) if x.ndim > 3 else out

    def widened(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k, wide, n = *weight.shape[:2], x.shape[0]
        if torch.is_grad_enabled():  # what lies as features go is slow to differentiate
            return self.batched(x.expand(k, *x.shape), weight, bias)
        if x.ndim == 2 and n >= MANY and bias is not None:
            turned = torch.addmm(bias.flatten()[:, None], weight.flatten(0, 1), x.T)
            return turned.view(k, wide, n).transpose(1, 2)
        out = functional.linear(
            x, weight.flatten(0, 1), None if bias is None else bias.flatten(0, 1)
        )
        return out.reshape(*x.shape[:-1], k, wide).movedim(-2, 0)


class PassConv1d(PassWeights):
    """Convolutions side by side: one with the passes as groups of channels."""

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self.like
        assert isinstance(like, nn.Conv1d)
        # The module's own way of padding, whatever its mode.
        out: Tensor = like._conv_forward(x, weight, bias)
        return out

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k, n, channels, length = x.shape
        rows = x.transpose(0, 1).reshape(n, k * channels, length)
        return self._apart(rows, weight, bias, k)

    def widened(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self.like
        if isinstance(like, nn.Conv1d) and like.groups > 1:
            return self.batched(x.expand(len(weight), *x.shape), weight, bias)
        return self._apart(x, weight, bias, 1)

    def _apart(self, x: Tensor, weight: Tensor, bias: Tensor | None, parts: int) -> Tensor:
        like = self.like
        assert isinstance(like, nn.Conv1d)
        padding = like.padding
        if like.padding_mode != "zeros":
            x = functional.pad(x, like._reversed_padding_repeated_twice, mode=like.padding_mode)
            padding = (0,)
        out = functional.conv1d(
            x,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            like.stride,
            padding,
            like.dilation,
            parts * like.groups,
        )
        return out.reshape(len(x), len(weight), -1, out.shape[-1]).transpose(0, 1)


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
        weight, bias = self.weight, self.bias
        if passes.stop - passes.start == weight.shape[0]:
            return weight, bias
        return weight[passes], None if bias is None else bias[passes]

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
        return self.groups(grouped(x, passes.stop - passes.start), passes).flatten(0, 1)

    def groups(self, x: Tensor, passes: slice) -> Tensor:
        masked = x * self._shaped(self.masks[passes], x[0])
        out: Tensor = self.layer(masked.flatten(0, 1))
        return out.reshape(*masked.shape[:2], *out.shape[1:])

    def spread(self, x: Tensor, passes: slice) -> Tensor:
        return self.groups(x[None], passes)

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

    def plain(self, k: int | None) -> nn.Module:
        twin = copy.deepcopy(self.layer)
        if k is not None:
            mask = self.masks[k]
            if isinstance(twin, nn.Conv1d):  # outputs read the channels of their own group
                own = mask.reshape(twin.groups, -1)
                mask = own.repeat_interleave(twin.out_channels // twin.groups, 0)[..., None]
            with torch.no_grad():
                twin.weight.mul_(mask)
        return twin


# What is the same in all passes and treats each row alone may be done once, before rows fold.
_ROW_WISE = (Standardise, nn.Linear, nn.Conv1d, nn.ReLU, nn.Tanh, nn.Identity, nn.Flatten)


class PassSequential(nn.Sequential):
    """A chain that does what all passes have in common once, and its ReLU in place.

    In place, since nobody else holds the output of a chain's own dense layer: half the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        passes = passes_now()
        if passes is None or _DRAW.get() is not None:
            for step in self:
                x = step(x)
            return x
        steps = list(self._modules.values())
        k = passes.stop - passes.start
        if k == 1:
            after = False  # a layer whose output nobody else holds
            for step in steps:
                if after and type(step) is nn.ReLU and not step._forward_hooks:
                    x, after = (torch.relu if torch.is_grad_enabled() else torch.relu_)(x), False
                else:
                    x, after = _called(step, x), isinstance(step, PassLayer)
            return x
        place = 0
        groups: Tensor | None = None  # (k, n, ...), else the rows are in x
        common = unfolded(x)
        if common is not None:
            while place < len(steps) and isinstance(steps[place], _ROW_WISE):
                common = _called(steps[place], common)
                place += 1
            if place < len(steps) and isinstance(step := steps[place], PassLayer):
                groups = step.spread(common, passes)
                place += 1
            else:
                x = common.repeat(k, *[1] * (common.ndim - 1))
        while place < len(steps):
            step = steps[place]
            place += 1
            if isinstance(step, PassLayer):
                groups = step.groups(grouped(x, k) if groups is None else groups, passes)
            elif groups is not None and type(step) is nn.ReLU and not step._forward_hooks:
                # In training a view changed in place costs more than it saves.
                groups = (torch.relu if torch.is_grad_enabled() else torch.relu_)(groups)
            else:
                x = _called(step, x if groups is None else groups.flatten(0, 1))
                groups = None
        return x if groups is None else groups.flatten(0, 1)


def _called(step: nn.Module | None, x: Tensor) -> Tensor:
    assert step is not None
    out: Tensor = step(x)
    return out
