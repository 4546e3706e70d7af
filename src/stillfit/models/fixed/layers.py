"""Dense and 1-D convolution layers in fixed point, with exact sums.

Each layer quantises its own input, so that any network whose layers are exchanged is a
fixed-point network with its own forward: what lies between (ReLU, maximum, reshaping) keeps
numbers on their grid. Sums are never rounded; their width is bounded beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.models.fixed.formats import Codes, Format, Overflow, Rounding, bits_of
from stillfit.models.fixed.quantisers import EXACT, Gradient, Quantiser

MAX_ACCUMULATOR = 53  # bits: whole numbers that float64 holds
MEAN_BITS = 12  # of the constant 1 / positions of a mean


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How the layers of a network are quantised, before calibration moves the ranges.

    `weights`, `inputs`, `bias`: bits of each. `accumulator`: most bits of a sum, with its sign; a
    layer that may exceed it is an error. `per_channel`: a format of each output channel's own
    weights; `per_input`: of each input channel. `rounding`, `overflow`: of inputs (weights are
    rounded to nearest and saturate). `gradient`: of weights and biases, see `fake_quantise`;
    inputs have "clipped".
    """

    weights: int = 8
    inputs: int = 8
    bias: int = 16
    accumulator: int = 32
    per_channel: bool = False
    per_input: bool = False
    rounding: Rounding = "nearest"
    overflow: Overflow = "saturate"
    gradient: Gradient = "inward"

    def __post_init__(self) -> None:
        if not 2 <= self.accumulator <= MAX_ACCUMULATOR:
            raise ConfigError(
                f"an accumulator of {self.accumulator} bits cannot be emulated: give 2 to "
                f"{MAX_ACCUMULATOR}"
            )

    def input(self, channels: int, axis: int = -1) -> Quantiser:
        """The quantiser of a layer's input."""
        return Quantiser(
            self.inputs,
            channels=channels if self.per_input else None,
            axis=axis,
            rounding=self.rounding,
            overflow=self.overflow,
        )

    def parameter(self, bits: int, channels: int) -> Quantiser:
        """The quantiser of weights or biases."""
        n = channels if self.per_channel else None
        return Quantiser(bits, channels=n, axis=0, signed=True, gradient=self.gradient)


class FixedLayer(nn.Module):
    """What dense and convolution layers share; the sum of channel c is exact at `fraction`[c] bits.

    Buffers: `mask` (bool, of the weight's shape): False is a weight that is zero for ever,
    whatever trains the layer; and the three formats (`on_input`, `on_weight`, `on_bias`).
    """

    weight: Tensor
    bias: Any
    mask: Tensor
    on_input: Quantiser
    on_weight: Quantiser
    on_bias: Quantiser
    accumulator: int
    label: str = ""  # what errors call it
    start: tuple[float, ...] | None = None
    shrink: float = 1.0

    def _begin(self, precision: Precision, channels: int, outputs: int, axis: int) -> None:
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))
        self.on_input = precision.input(channels, axis)
        self.on_weight = precision.parameter(precision.weights, outputs)
        self.on_bias = precision.parameter(precision.bias, outputs)
        self.accumulator = precision.accumulator

    def _draw(self) -> None:
        """After the plain layer has drawn its parameters: the start of a `networks.Head`."""
        if self.start is not None and self.bias is not None:
            with torch.no_grad():
                self.weight.mul_(self.shrink)
                self.bias.mul_(self.shrink).add_(torch.tensor(self.start).to(self.bias))

    def quantised(self) -> tuple[Tensor, Tensor | None]:
        """Weights and biases on their grids, masked, with gradient to the parameters."""
        weight = self.on_weight(self.weight * self.mask)
        return weight, None if self.bias is None else self.on_bias(self.bias)

    @property
    def fraction(self) -> NDArray[np.int64]:
        """Fraction bits of the sum of each output channel, (outputs,)."""
        sums = self.on_input.format.fraction + np.array(self.on_weight.format.f, np.int64)
        if self.bias is not None:
            sums = np.maximum(sums, np.array(self.on_bias.format.f, np.int64))
        return np.broadcast_to(sums, (len(self.weight),)).copy()

    def bound(self) -> int:
        """The largest magnitude that a sum can have, in its own steps, for any weights.

        For all weights that mask and formats allow, not only the present ones: it holds for
        every later update.
        """
        inputs, weights = self.on_input, self.on_weight
        size = _size(inputs.format, inputs.overflow)
        taps = self.mask.detach().cpu().numpy().astype(np.float64)
        taps = taps.reshape(*taps.shape[:2], -1).sum(2)  # (outputs, inputs of its group)
        outputs, per_group = taps.shape
        groups = np.arange(outputs) // (outputs // self.n_groups)
        reach = np.broadcast_to(size, (self.n_inputs,)).reshape(-1, per_group)[groups]
        sums = (taps * reach).sum(1) * _size(weights.format, weights.overflow)
        if self.bias is not None:
            sums = sums + _size(self.on_bias.format, self.on_bias.overflow)
        return int(np.ldexp(sums, self.fraction).max(initial=0.0))

    @property
    def accumulator_bits(self) -> int:
        """Bits, with sign, that no sum exceeds."""
        return bits_of(self.bound())

    def exact(self, name: str = "") -> int:
        """The bits of the accumulator; `ConfigError` where they are more than there may be."""
        bits = self.accumulator_bits
        if bits > self.accumulator:
            raise ConfigError(
                f"the accumulator of {name or self.label or type(self).__name__} needs {bits} bits "
                f"({self.n_inputs} inputs of {self.on_input.format.width} bits, weights of "
                f"{self.on_weight.format.width}) and has {self.accumulator}; give it more, fewer "
                "bits to inputs and weights, or a sparser mask"
            )
        return bits

    @property
    def n_inputs(self) -> int:
        raise NotImplementedError

    @property
    def n_groups(self) -> int:
        return 1

    def ready(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weights and biases on their grids, in numbers wide enough for exact sums."""
        bits = self.exact()
        wide = bits > EXACT or self.weight.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        weight, bias = self.quantised()
        x = self.on_input(x).to(dtype)
        return x, weight.to(dtype), None if bias is None else bias.to(dtype)

    def codes(self) -> tuple[Codes, Codes | None]:
        """Whole numbers of weights (masked) and biases, each at its own fraction."""
        bias = None if self.bias is None else self.on_bias.codes(self.bias)
        return self.on_weight.codes(self.weight * self.mask), bias

    @property
    def density(self) -> float:
        """Share of weights that may differ from zero."""
        return float(self.mask.float().mean())


def _size(fmt: Format, overflow: Overflow) -> NDArray[np.float64]:
    """Largest magnitude of each channel."""
    low, high = fmt.limits(overflow)
    return np.ldexp(np.maximum(-low, high).astype(np.float64), -np.array(fmt.f))  # type: ignore[no-any-return]


class FixedDense(FixedLayer, nn.Linear):
    """A dense layer: y = W x + b with all three on their grids, sums exact.

    `start`, `shrink`: of a `models.networks.Head`. Cost: that of the plain layer and of the
    quantisers; multiply-accumulates of the weights that the mask leaves.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        precision: Precision | None = None,
        start: tuple[float, ...] | None = None,
        shrink: float = 1.0,
    ) -> None:
        self.start, self.shrink = start, shrink
        nn.Linear.__init__(self, inputs, outputs, bias)
        self._begin(precision or Precision(), inputs, outputs, -1)

    @property
    def n_inputs(self) -> int:
        return self.in_features

    def reset_parameters(self) -> None:
        """Drawn anew; mask and formats stay."""
        nn.Linear.reset_parameters(self)
        self._draw()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"a dense layer of {self.in_features} inputs was given {tuple(x.shape)}"
            )
        return functional.linear(*self.ready(x))

    def macs(self) -> int:
        """Multiply-accumulates of one event."""
        return int(self.mask.sum())


class FixedConv1d(FixedLayer, nn.Conv1d):
    """A 1-D convolution on (n, channels, length), all on their grids, sums exact.

    Padding with zeros only. `positions`: outputs along the axis, where they are known, for the
    count of multiply-accumulates.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        precision: Precision | None = None,
        positions: int = 1,
    ) -> None:
        nn.Conv1d.__init__(
            self, inputs, outputs, kernel, stride, padding, dilation, groups, bias=bias
        )
        self.positions = positions
        self._begin(precision or Precision(), inputs, outputs, -2)

    @property
    def n_inputs(self) -> int:
        return self.in_channels

    @property
    def n_groups(self) -> int:
        return self.groups

    @property
    def pad(self) -> int:
        """Zeros at each end."""
        return int(self.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias = self.ready(x)
        return functional.conv1d(x, weight, bias, self.stride, self.pad, self.dilation, self.groups)

    def macs(self) -> int:
        """Multiply-accumulates of one event."""
        return int(self.mask.sum()) * self.positions


class FixedMean(nn.Module):
    """The mean along the last axis of (n, channels, length), kept as (n, channels, 1).

    The sum of quantised inputs times round(2^12 / length) / 2^12: chips do not divide. Off by at
    most length / 2^13 of the mean's size.
    """

    def __init__(self, precision: Precision | None = None) -> None:
        super().__init__()
        chosen = precision or Precision()
        self.on_input = Quantiser(chosen.inputs, rounding=chosen.rounding, overflow=chosen.overflow)

    def factor(self, length: int) -> int:
        """1 / length in steps of 2^-12."""
        if not 1 <= length <= 1 << (MEAN_BITS - 1):
            raise DataError(
                f"a mean over {length} positions cannot be taken in fixed point; give 1 to "
                f"{1 << (MEAN_BITS - 1)}"
            )
        return ((1 << (MEAN_BITS + 1)) // length + 1) >> 1

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor(x.shape[-1])
        x = self.on_input(x)
        if self.on_input.format.width + MEAN_BITS + 2 > EXACT:
            x = x.double()
        return x.sum(-1, keepdim=True) * (factor * 2.0**-MEAN_BITS)
