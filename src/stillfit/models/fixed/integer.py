"""The exact model of a fixed-point network in whole numbers, as a chip computes it.

`integer(network)` reads a trained network into steps that hold nothing but whole numbers. They
are the reference that circuits and C code are compared with, and equal the fake-quantised PyTorch
network bit for bit. Chains of dense layers run compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.models.fixed.compiled import ROUNDS, Compiled, Program, Quantising
from stillfit.models.fixed.formats import (
    Codes,
    Format,
    Overflow,
    Rounding,
    along,
    encode,
    requantise,
)
from stillfit.models.fixed.layers import MEAN_BITS, FixedConv1d, FixedDense, FixedLayer, FixedMean
from stillfit.models.fixed.quantisers import Quantiser
from stillfit.models.networks import MLP, Standardise

Fractions: TypeAlias = NDArray[np.int64]


class Flow(NamedTuple):
    """Codes (n, ...) with the fraction bits of each channel, (channels,) or (1,)."""

    codes: Codes
    fraction: Fractions

    @property
    def axis(self) -> int:
        """Where the channels lie: before the positions, where there are such."""
        return -1 if self.codes.ndim < 3 else -2


class Step(Protocol):
    """One operation in whole numbers."""

    def __call__(self, flow: Flow) -> Flow: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Requantise:
    """Into another format: rounded shift, then saturation or wrapping; channels along `axis`."""

    format: Format
    rounding: Rounding
    overflow: Overflow
    axis: int = -1

    @classmethod
    def of(cls, quantiser: Quantiser) -> Requantise:
        return cls(
            format=quantiser.format,
            rounding=quantiser.rounding,
            overflow=quantiser.overflow,
            axis=quantiser.axis,
        )

    def __call__(self, flow: Flow) -> Flow:
        codes = requantise(
            flow.codes,
            along(flow.fraction.tolist(), flow.codes.ndim, flow.axis),
            self.format,
            rounding=self.rounding,
            overflow=self.overflow,
            axis=self.axis,
        )
        return Flow(codes, np.array(self.format.f, np.int64))

    def aligned(self, flow: Flow) -> Codes:
        """The same, with all channels at the finest fraction, where they can be added."""
        codes, fraction = self(flow)
        by = (self.format.fraction - fraction).tolist()
        out: Codes = codes << along(by, codes.ndim, self.axis)
        return out


@dataclass(frozen=True, eq=False, kw_only=True)
class Dense:
    """y = W x + b. `weight` (outputs, inputs) and `bias` (outputs,) are codes of their formats.

    The sum of output c has `fraction`[c] bits behind the point and at most `accumulator` bits in
    all, the sign with them: for any weights of these formats and this `mask`.
    """

    name: str
    input: Requantise
    weight: Codes
    bias: Codes
    mask: NDArray[np.bool_]
    weight_format: Format
    bias_format: Format
    fraction: Fractions
    accumulator: int

    @property
    def at_sum(self) -> tuple[Codes, Codes]:
        """Weights and biases as they enter the sum of the aligned inputs: shifted to its steps."""
        per_output = np.broadcast_to(np.array(self.weight_format.f), self.fraction.shape)
        by = self.fraction - self.input.format.fraction - per_output
        up = self.fraction - np.broadcast_to(np.array(self.bias_format.f), self.fraction.shape)
        return self.weight << along(by.tolist(), self.weight.ndim, 0), self.bias << up

    def __call__(self, flow: Flow) -> Flow:
        weight, bias = self.at_sum
        return Flow(self.input.aligned(flow) @ weight.T + bias, self.fraction)


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv1d(Dense):
    """The same along an axis: `weight` (outputs, inputs / groups, taps)."""

    stride: int
    padding: int
    dilation: int
    groups: int

    def __call__(self, flow: Flow) -> Flow:
        x = self.input.aligned(flow)
        weight, bias = self.at_sum
        x = np.pad(x, ((0, 0), (0, 0), (self.padding, self.padding)))
        taps = weight.shape[2]
        reach = (taps - 1) * self.dilation + 1
        if x.shape[2] < reach:
            raise ShapeError(
                f"{self.name} needs at least {reach - 2 * self.padding} samples, got "
                f"{x.shape[2] - 2 * self.padding}"
            )
        # (n, channels, positions, taps)
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=2)
        windows = windows[:, :, :: self.stride, :: self.dilation]
        parts = [
            np.einsum("ncpk,ock->nop", channels, kernel)
            for channels, kernel in zip(
                np.split(windows, self.groups, 1), np.split(weight, self.groups, 0), strict=True
            )
        ]
        return Flow(np.concatenate(parts, 1) + bias[:, None], self.fraction)


@dataclass(frozen=True, eq=False)
class Relu:
    """max(0, x)."""

    def __call__(self, flow: Flow) -> Flow:
        return Flow(np.maximum(flow.codes, 0), flow.fraction)


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The largest of `size` successive positions, `stride` apart; a rest is left out."""

    size: int
    stride: int

    def __call__(self, flow: Flow) -> Flow:
        windows = np.lib.stride_tricks.sliding_window_view(flow.codes, self.size, axis=2)
        return Flow(windows[:, :, :: self.stride].max(3), flow.fraction)


@dataclass(frozen=True, eq=False)
class Mean:
    """Sum along the axis times round(2^12 / length), 12 more fraction bits."""

    input: Requantise
    layer: FixedMean

    def __call__(self, flow: Flow) -> Flow:
        factor = self.layer.factor(flow.codes.shape[-1])
        codes = self.input(flow).codes.sum(-1, keepdims=True) * factor
        return Flow(codes, np.array(self.input.format.f, np.int64) + MEAN_BITS)


@dataclass(frozen=True, eq=False)
class Flatten:
    """(n, channels, positions) to (n, channels * positions)."""

    def __call__(self, flow: Flow) -> Flow:
        fraction = flow.fraction
        if flow.codes.ndim > 2 and len(fraction) > 1:
            fraction = np.repeat(fraction, int(np.prod(flow.codes.shape[2:])))
        return Flow(flow.codes.reshape(len(flow.codes), -1), fraction)


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A network in whole numbers: `front`, if any, scales real inputs before the first quantiser.

    The front (a `Standardise`) is not part of the chip: whoever feeds it applies it.
    """

    steps: tuple[Step, ...]
    front: nn.Module | None = None
    compiled: Compiled | None = None

    @property
    def input(self) -> Requantise:
        """The first quantiser: what `run` takes are its codes, unless told otherwise."""
        first = self.steps[0]
        found = first if isinstance(first, Requantise) else getattr(first, "input", None)
        assert isinstance(found, Requantise)
        return found

    @property
    def layers(self) -> tuple[Dense, ...]:
        """The layers with weights, in order."""
        return tuple(step for step in self.steps if isinstance(step, Dense))

    @property
    def fraction(self) -> Fractions:
        """Fraction bits of the outputs, where the last step that sets them is a layer."""
        for step in reversed(self.steps):
            if isinstance(step, Dense):
                return step.fraction
            if isinstance(step, Requantise):
                return np.array(step.format.f, np.int64)
        raise ConfigError("the network has no step that sets the fraction of its outputs")

    def encode(self, x: ArrayLike) -> Codes:
        """Real inputs (n, ...) as codes of the first quantiser."""
        real = np.asarray(x)
        if self.front is not None:
            with torch.no_grad():
                real = self.front(torch.from_numpy(np.array(real, np.float32))).numpy()
        first = self.input
        return encode(
            real, first.format, rounding=first.rounding, overflow=first.overflow, axis=first.axis
        )

    def run(self, codes: Array, fraction: ArrayLike | None = None) -> Flow:
        """Outputs of input codes (n, ...), whole numbers with the fraction bits of each channel.

        `fraction`: bits behind the point of each input channel, where the codes are not those of
        the first quantiser; they are then rounded and saturated as it says.
        """
        if codes.dtype.kind not in "iu":
            raise DataError(f"codes must be whole numbers, got {codes.dtype}; call encode first")
        start = self.input.format.f if fraction is None else fraction
        given = np.atleast_1d(np.asarray(start, np.int64))
        if self.compiled is not None:
            if codes.ndim != 2 or codes.shape[1] != self.compiled.inputs:
                raise ShapeError(
                    f"the network takes codes (n, {self.compiled.inputs}), got {codes.shape}"
                )
            own = np.array(self.input.format.f, np.int64)
            out = self.compiled.fed(own, given).run(codes)
            return Flow(out, self.fraction)
        flow = Flow(codes.astype(np.int64), given)
        for step in self.steps:
            flow = step(flow)
        return flow

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """Real outputs of real inputs, through whole numbers."""
        flow = self.run(self.encode(x))
        codes = flow.codes.astype(np.float64)
        steps = along(flow.fraction.tolist(), codes.ndim, flow.axis)
        out: NDArray[np.float64] = np.ldexp(codes, -steps)
        return out


def integer(network: nn.Module, name: str = "the network") -> IntegerNetwork:
    """The whole-number model of a sequential fixed-point network (an `MLP`, `nn.Sequential`).

    Layers: FixedDense, FixedConv1d, FixedMean, Quantiser, ReLU, MaxPool1d, Flatten, Dropout and
    Identity; scaling at the start. `ConfigError` for others, for sums that do not fit their
    accumulator, and for a layer whose weights are all zero.
    """
    front: nn.Module | None = None
    steps: list[Step] = []
    for key, layer in _sequence(network, name):
        if isinstance(layer, Standardise) and not steps:
            front = layer
            continue
        steps += _steps(layer, f"{name}.{key}" if key else name)
    if not any(isinstance(step, Dense) for step in steps):
        raise ConfigError(f"{name} has no fixed-point layer; convert it first (models.fixed)")
    return IntegerNetwork(tuple(steps), front, _compiled(steps))


def _compiled(steps: Sequence[Step]) -> Compiled | None:
    """The chain as a program, where all its steps are dense layers with ReLU and quantisers."""
    if not all(type(step) in (Dense, Relu, Requantise) for step in steps):
        return None
    layers: list[tuple[Requantise, Dense | None, bool]] = []  # with: is there a ReLU after it?
    for step in steps:
        if isinstance(step, Dense):
            layers.append((step.input, step, False))
        elif isinstance(step, Requantise):
            layers.append((step, None, False))
        elif not layers or layers[-1][1] is None:
            return None
        else:
            layers[-1] = (*layers[-1][:2], True)
    fraction = np.array(layers[0][0].format.f, np.int64)
    bits, width = [], layers[0][0].format.width + 1
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in Program._fields}
    size = layers[0][1].weight.shape[1] if layers[0][1] is not None else len(fraction)
    for quantiser, layer, relu in layers:
        rows = Quantising(
            format=quantiser.format,
            fraction=fraction,
            rounding=quantiser.rounding,
            overflow=quantiser.overflow,
            inputs=size,
            added=layer is not None,
        ).rows()
        for name, row in zip(("by", "low", "high", "up"), rows, strict=True):
            parts[name].append(row)
        bits.append(width)
        outputs = 0 if layer is None else len(layer.weight)
        wrap = quantiser.overflow == "wrap"
        parts["sizes"].append(np.array([[size, outputs]]))
        parts["modes"].append(np.array([[ROUNDS[quantiser.rounding], wrap, relu]]))
        if layer is None:
            fraction, width = np.array(quantiser.format.f, np.int64), quantiser.format.width + 1
        else:
            weight, bias = layer.at_sum
            parts["weights"].append(weight.ravel())
            parts["bias"].append(bias)
            fraction, width, size = layer.fraction, layer.accumulator, outputs
    program = Program(*(np.concatenate(parts[name]) for name in Program._fields))
    return Compiled(program=program, bits=(width, *bits[1:]), outputs=size)


def _sequence(network: nn.Module, name: str) -> Sequence[tuple[str, nn.Module]]:
    """The leaf layers in order of their work."""
    if isinstance(network, nn.Sequential):
        found: list[tuple[str, nn.Module]] = []
        for key, child in network.named_children():
            inner = _sequence(child, f"{name}.{key}")
            found += [(f"{key}.{deep}" if deep else key, layer) for deep, layer in inner]
        return found
    if isinstance(network, MLP) or _is_layered(network):
        return _sequence(network.layers, name)  # type: ignore[arg-type]
    return [("", network)]


def _is_layered(network: nn.Module) -> bool:
    """A network whose only part is a sequence called `layers`."""
    children = dict(network.named_children())
    return set(children) == {"layers"} and isinstance(children["layers"], nn.Sequential)


def _steps(layer: nn.Module, name: str) -> list[Step]:
    if isinstance(layer, FixedLayer):
        return [_layer(layer, name)]
    if isinstance(layer, Quantiser):
        return [Requantise.of(layer)]
    if isinstance(layer, FixedMean):
        return [Mean(Requantise.of(layer.on_input), layer)]
    if isinstance(layer, nn.ReLU):
        return [Relu()]
    if isinstance(layer, nn.MaxPool1d) and layer.padding == 0 and layer.dilation == 1:
        size, stride = (v[0] if isinstance(v, tuple) else v for v in _sizes(layer))
        return [MaxPool(size, stride)]
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return [Flatten()]
    if isinstance(layer, nn.Dropout | nn.Identity):
        return []
    raise unsupported(layer, name)


def _sizes(layer: nn.MaxPool1d) -> tuple[int | tuple[int, ...], int | tuple[int, ...]]:
    return layer.kernel_size, layer.stride


def unsupported(layer: nn.Module, name: str) -> ConfigError:
    """The error for a layer that whole numbers cannot follow, with what to do instead."""
    kind = type(layer).__name__
    if isinstance(layer, nn.Linear | nn.Conv1d):
        remedy = "convert the network first (models.fixed.convert)"
    elif "Norm" in kind:
        remedy = "fold it into the layer before it, or train without it"
    elif any(True for _ in layer.parameters()):
        remedy = "use dense and 1-D convolution layers"
    else:
        remedy = "use ReLU between layers and none after the last"
    return ConfigError(f"{name} is {kind}, which has no exact model in whole numbers: {remedy}")


def _layer(layer: FixedLayer, name: str) -> Dense:
    accumulator = layer.exact(name)
    weight, bias = layer.codes()
    if not weight.any():
        raise ConfigError(
            f"all weights of {name} are zero in fixed point, so its output is constant; prune "
            "less, or give weights more bits or another range (calibrate)"
        )
    outputs = len(weight)
    told = {
        "name": name,
        "input": Requantise.of(layer.on_input),
        "weight": weight,
        "bias": np.zeros(outputs, np.int64) if bias is None else bias,
        "mask": layer.mask.cpu().numpy().copy(),
        "weight_format": layer.on_weight.format,
        "bias_format": layer.on_bias.format if bias is not None else Format.of(1, 0, 0),
        "fraction": layer.fraction,
        "accumulator": accumulator,
    }
    if isinstance(layer, FixedDense):
        return Dense(**told)  # type: ignore[arg-type]
    assert isinstance(layer, FixedConv1d)
    if layer.padding_mode != "zeros":
        raise ConfigError(f"{name} is padded with {layer.padding_mode!r}; only zeros are known")
    return Conv1d(
        **told,  # type: ignore[arg-type]
        stride=int(layer.stride[0]),
        padding=layer.pad,
        dilation=int(layer.dilation[0]),
        groups=layer.groups,
    )
