"""Whole-number networks as logic: every step of an `IntegerNetwork` traced by alkaid.

Two designs. `constant`: weights are part of the circuit, which is small and another one after
every update. `reloadable`: weights and biases are inputs beside the data, so that the circuit, and
with it its cost, depends on formats and masks alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.firmware.tools import guarded, package
from stillfit.models.fixed.formats import Codes, Format
from stillfit.models.fixed.integer import (
    Conv1d,
    Dense,
    Flatten,
    Fractions,
    IntegerNetwork,
    MaxPool,
    Mean,
    Relu,
    Requantise,
)
from stillfit.models.fixed.layers import MEAN_BITS

Design: TypeAlias = Literal["constant", "reloadable"]
DESIGNS: tuple[Design, ...] = ("constant", "reloadable")
MOST_PRODUCTS = (
    20_000  # of one input, unrolled: beyond it tracing takes minutes and no chip is left
)
KERNEL_BITS = 24  # alkaid holds a matrix of constants in float32
CHUNK = 4096
_ROUNDS = {"floor": "TRN", "nearest": "RND", "even": "RND_CONV"}
_OVERFLOWS = {"saturate": "SAT", "symmetric": "SAT_SYM", "wrap": "WRAP"}
_REMEDY = "simplify the network, or report it with the network's formats"


class Port(NamedTuple):
    """One weight or bias as an input: whose it is, its place there, its format, its present code.

    `code` / 2^`f` is its value; `k`, `i`, `f` as in `models.fixed.formats.Format`.
    """

    layer: str
    part: Literal["weight", "bias"]
    at: tuple[int, ...]
    k: int
    i: int
    f: int
    code: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Traced:
    """A network as combinational logic.

    `logic`: alkaid's, whose inputs are the `inputs` data values (formats `input`, one each) and
    then the `ports`, and whose outputs have `fraction` bits behind the point. `shape`: of the
    data of one event. Values, not codes, pass its interpreter: code / 2^f, exact in doubles.
    """

    name: str
    design: Design
    logic: Any
    input: Format
    fraction: Fractions
    shape: tuple[int, ...]
    ports: tuple[Port, ...] = ()

    @property
    def inputs(self) -> int:
        """Data values of one event."""
        return int(np.prod(self.shape))

    @property
    def outputs(self) -> int:
        return int(self.logic.shape[1])

    @property
    def weights(self) -> Codes:
        """Present codes of the ports, in order; empty for constant weights."""
        return np.array([port.code for port in self.ports], np.int64)

    def run(self, codes: NDArray[Any], weights: Codes | None = None) -> Codes:
        """Output codes (n, outputs) of input codes (n, ...), by alkaid's interpreter.

        `weights`: other codes of the ports. Some million events/s for small networks.
        """
        flat = codes.reshape(len(codes), int(np.prod(codes.shape[1:])))
        if flat.shape[1] != self.inputs:
            raise ShapeError(
                f"{self.name} as logic takes {self.inputs} values an event, got {flat.shape[1]}"
            )
        given = self.weights if weights is None else weights
        if given.shape != (len(self.ports),):
            raise ShapeError(
                f"{self.name} has {len(self.ports)} ports for weights, got {given.shape} codes"
            )
        steps = np.array([port.f for port in self.ports], np.int64)
        fixed = np.ldexp(given.astype(np.float64), -steps)
        out = np.empty((len(flat), self.outputs), np.int64)
        fraction = np.broadcast_to(np.array(self.input.f), (self.inputs,))
        for first in range(0, len(flat), CHUNK):
            part = flat[first : first + CHUNK]
            values = np.empty((len(part), self.inputs + len(self.ports)))
            values[:, : self.inputs] = np.ldexp(part.astype(np.float64), -fraction)
            values[:, self.inputs :] = fixed
            with guarded("alkaid", f"running {self.name}", _REMEDY):
                found = self.logic.predict(values, n_threads=1)
            out[first : first + CHUNK] = np.ldexp(found.reshape(len(part), -1), self.fraction)
        return out


def trace(
    network: IntegerNetwork,
    name: str,
    *,
    design: Design = "constant",
    inputs: Format | None = None,
    shape: tuple[int, ...] | None = None,
) -> Traced:
    """A network as logic, equal to `network.run` bit for bit.

    `inputs`: the format of each data value, or one for all, where it is not that of the first
    quantiser, which then is part of the logic. `shape`: of one event's data where a
    convolution needs it, (channels, positions). `ConfigError` for steps without a circuit, for an
    output that no longer depends on its inputs, and for networks too wide to unroll; `ToolError`
    where alkaid fails. Cost: 0.05 to 1 s.
    """
    if design not in DESIGNS:
        raise ConfigError(f"a design is one of {', '.join(DESIGNS)}, got {design!r}")
    given = network.input.format if inputs is None else inputs
    size = _shape(network, name, given, shape)
    _unrolled(network, name, size)
    alkaid = package("alkaid.trace")
    unit = alkaid.HWConfig(1, 1, -1)
    with guarded("alkaid", f"tracing {name}", _REMEDY):
        formats = _each(given, size)
        data = alkaid.FVArray.from_kif(*formats, unit, 0)
        tracer = _Tracer(alkaid, unit, name, design)
        flow = data
        for step in network.steps:
            flow = tracer.step(step, flow)
        wires = [*np.ravel(np.asarray(data)), *tracer.wires]
        logic = alkaid.trace(wires, list(np.ravel(np.asarray(flow))), keep_dead_inputs=True)
    flat = Format.channels(*(axis.reshape(-1) for axis in formats))
    fraction = np.broadcast_to(_fraction(network), flow.shape[:1])
    spread = int(np.prod(flow.shape[1:], dtype=int))
    return Traced(
        name=name,
        design=design,
        logic=logic,
        input=flat,
        fraction=np.repeat(fraction, spread),
        shape=size,
        ports=tuple(tracer.ports),
    )


class _Tracer:
    """Follows the steps of a network with alkaid's variables; gathers the ports for weights."""

    def __init__(self, alkaid: Any, unit: Any, name: str, design: Design) -> None:
        self.alkaid, self.unit, self.name, self.design = alkaid, unit, name, design
        self.ports: list[Port] = []
        self.wires: list[Any] = []

    def step(self, step: object, flow: Any) -> Any:
        """One more step: (channels,) or (channels, positions) to the same with other channels."""
        if isinstance(step, Conv1d):
            return self._live(step.name, self._conv(step, self._requantised(step.input, flow)))
        if isinstance(step, Dense):
            return self._live(step.name, self._dense(step, self._requantised(step.input, flow)))
        if isinstance(step, Requantise):
            return self._requantised(step, flow)
        if isinstance(step, Relu):
            return self._live(f"{self.name} after its ReLU", flow.relu())
        if isinstance(step, MaxPool):
            stop = flow.shape[-1] - step.size + 1
            starts = range(0, stop, step.stride)
            tops = [np.max(flow[:, s : s + step.size], axis=1) for s in starts]
            return self._array(np.stack([np.asarray(top) for top in tops], axis=1))
        if isinstance(step, Mean):
            quantised = self._requantised(step.input, flow)
            factor = step.layer.factor(flow.shape[-1]) * 2.0**-MEAN_BITS
            total = self._array([self._sum(row) for row in np.asarray(quantised)])
            return (total * factor).reshape(-1, 1)
        if isinstance(step, Flatten):
            return flow.reshape(-1)
        raise ConfigError(
            f"{self.name} has the step {type(step).__name__}, which has no circuit here; use dense "
            "and 1-D convolution layers, ReLU, maximum, mean and quantisers"
        )

    def _array(self, variables: Any) -> Any:
        return self.alkaid.FVArray(np.array(variables, object), None, self.unit)

    def _sum(self, terms: Any) -> Any:
        """By pairs, the narrow and early ones first."""
        found = np.sum(self._array(list(terms)))
        return found.item() if isinstance(found, np.ndarray) else found

    def _requantised(self, step: Requantise, flow: Any) -> Any:
        formats = _each(step.format, flow.shape)
        return flow.quantize(
            *formats, overflow_mode=_OVERFLOWS[step.overflow], round_mode=_ROUNDS[step.rounding]
        )

    def _dense(self, layer: Dense, x: Any) -> Any:
        if self.design == "constant":
            weight, bias = _reals(layer)
            return x @ weight.T + bias
        weight, bias = self._as_inputs(layer)
        rows = []
        for out in range(len(weight)):
            terms = [
                w * v for w, v in zip(weight[out], np.asarray(x), strict=True) if w is not None
            ]
            rows.append(self._sum([*terms, bias[out]]))
        return self._array(rows)

    def _conv(self, layer: Conv1d, x: Any) -> Any:
        weight, bias = _reals(layer) if self.design == "constant" else self._as_inputs(layer)
        channels, positions = x.shape
        zeros = np.zeros((channels, layer.padding))
        padded = np.concatenate([zeros, np.asarray(x), zeros], axis=1)
        taps = weight.shape[2]
        reach = (taps - 1) * layer.dilation + 1
        starts = range(0, positions + 2 * layer.padding - reach + 1, layer.stride)
        own, outputs = channels // layer.groups, len(weight) // layer.groups
        made = np.empty((len(weight), len(starts)), object)
        for group, (place, start) in product(range(layer.groups), enumerate(starts)):
            seen = padded[group * own : (group + 1) * own, start : start + reach : layer.dilation]
            rows = slice(group * outputs, (group + 1) * outputs)
            made[rows, place] = self._window(weight[rows], bias[rows], seen.reshape(-1))
        return self._array(made)

    def _window(self, weight: Any, bias: Any, seen: Any) -> Any:
        flat = weight.reshape(len(weight), -1)
        if self.design == "constant":
            return np.asarray(self._array(seen) @ flat.T + bias)
        sums = []
        for row, own in zip(flat, bias, strict=True):
            terms = [w * v for w, v in zip(row, seen, strict=True) if w is not None]
            sums.append(self._sum([*terms, own]))
        return np.array(sums, object)

    def _as_inputs(self, layer: Dense) -> tuple[Any, Any]:
        """Weights and biases as new inputs; None where the mask holds a weight at zero."""
        weight = np.full(layer.weight.shape, None, object)
        for at in zip(*np.nonzero(layer.mask), strict=True):
            weight[at] = self._input(layer, "weight", at, layer.weight_format, layer.weight)
        bias = np.empty(len(layer.bias), object)
        for out in range(len(bias)):
            bias[out] = self._input(layer, "bias", (out,), layer.bias_format, layer.bias)
        return weight, bias

    def _input(
        self, layer: Dense, part: Literal["weight", "bias"], at: Any, fmt: Format, codes: Codes
    ) -> Any:
        one = 0 if len(fmt) == 1 else int(at[0])
        k, i, f = fmt.k[one], fmt.i[one], fmt.f[one]
        place = tuple(int(n) for n in at)
        self.ports.append(Port(layer.name, part, place, k, i, f, int(codes[at])))
        self.wires.append(self.alkaid.FVariable.from_kif(k, i, f, hwconf=self.unit, latency=0.0))
        return self.wires[-1]

    def _live(self, name: str, flow: Any) -> Any:
        """`ConfigError` where nothing depends on the inputs any more."""
        if all(v.low == v.high for v in np.ravel(np.asarray(flow))):
            raise ConfigError(
                f"{name} is constant, whatever comes in: all its weights or all its units are dead "
                "in fixed point, and an empty network has no circuit; prune less, calibrate the "
                "ranges, or train on"
            )
        return flow


def _reals(layer: Dense) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and biases as real numbers; `ConfigError` where alkaid would round them."""
    if (layer.weight.astype(np.float32).astype(np.int64) != layer.weight).any():
        raise ConfigError(
            f"weights of {layer.name} have {layer.weight_format.width} bits and alkaid holds "
            f"constants of {KERNEL_BITS} significant bits; give them fewer"
        )
    outputs = len(layer.weight)
    by = np.broadcast_to(np.array(layer.weight_format.f, np.int64), (outputs,))
    own = np.broadcast_to(np.array(layer.bias_format.f, np.int64), (outputs,))
    shape = (outputs,) + (1,) * (layer.weight.ndim - 1)
    weight = np.ldexp(layer.weight.astype(np.float64), -by.reshape(shape))
    return weight, np.ldexp(layer.bias.astype(np.float64), -own)


def _each(fmt: Format, shape: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
    """k, i and f of every value of a shape (channels, ...)."""
    axes = []
    for values in (fmt.k, fmt.i, fmt.f):
        column = np.array(values, np.int64).reshape(-1, *(1,) * (len(shape) - 1))
        axes.append(np.array(np.broadcast_to(column, tuple(shape))))
    return tuple(axes)


def _fraction(network: IntegerNetwork) -> Fractions:
    """Fraction bits of the outputs, a mean's with its own."""
    for step in reversed(network.steps):
        if isinstance(step, Mean):
            return np.array(step.input.format.f, np.int64) + MEAN_BITS
        if isinstance(step, Dense | Requantise):
            break
    return network.fraction


def _shape(
    network: IntegerNetwork, name: str, given: Format, shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    first = next(iter(network.layers), None)
    if first is None:
        raise ConfigError(f"{name} has no layer with weights; there is nothing to trace")
    if shape is not None:
        if len(given) not in (1, shape[0]):
            raise ShapeError(
                f"{name} was given {len(given)} input formats for data of shape {shape}"
            )
        return shape
    if isinstance(first, Conv1d):
        raise ConfigError(
            f"{name} begins with a convolution: say the shape (channels, positions) of its data"
        )
    return (first.weight.shape[1],)


def _unrolled(network: IntegerNetwork, name: str, shape: tuple[int, ...]) -> None:
    """`ConfigError` where more products than can be traced lie side by side."""
    positions = shape[-1] if len(shape) > 1 else 1
    products = 0
    for step in network.steps:
        if isinstance(step, Conv1d):
            reach = (step.weight.shape[2] - 1) * step.dilation + 1
            positions = (positions + 2 * step.padding - reach) // step.stride + 1
            if positions < 1:
                raise ConfigError(f"{step.name} has no position in data of shape {shape}")
            products += int(step.mask.sum()) * positions
        elif isinstance(step, Dense):
            products += int(step.mask.sum())
        elif isinstance(step, MaxPool):
            positions = (positions - step.size) // step.stride + 1
        elif isinstance(step, Mean):
            positions = 1
    if products > MOST_PRODUCTS:
        raise ConfigError(
            f"{name} unrolls to {products:,} products an input, of which at most "
            f"{MOST_PRODUCTS:,} are traced; prune it, shorten its input, or compute it in C"
        )


def loaded(network: IntegerNetwork, ports: Sequence[Port]) -> Codes:
    """The codes of a network's weights and biases in the order of a circuit's ports.

    `ConfigError` where the network has other layers or formats than the circuit was made for.
    """
    layers = {layer.name: layer for layer in network.layers}
    codes = np.empty(len(ports), np.int64)
    for n, port in enumerate(ports):
        layer = layers.get(port.layer)
        if layer is None:
            raise ConfigError(
                f"the circuit has weights of {port.layer}, the network has the layers "
                f"{', '.join(layers)}; build the circuit for this network"
            )
        values = layer.weight if port.part == "weight" else layer.bias
        fmt = layer.weight_format if port.part == "weight" else layer.bias_format
        one = 0 if len(fmt) == 1 else port.at[0]
        if len(port.at) != values.ndim or any(
            at >= size for at, size in zip(port.at, values.shape, strict=True)
        ):
            raise ConfigError(
                f"{port.layer} has the {part_name(port)} in the circuit and {values.shape} "
                f"{port.part}s in the network; build the circuit for this network"
            )
        if (fmt.k[one], fmt.i[one], fmt.f[one]) != (port.k, port.i, port.f):
            raise ConfigError(
                f"the {part_name(port)} of {port.layer} has the format ({port.k}, {port.i}, "
                f"{port.f}) in the circuit and ({fmt.k[one]}, {fmt.i[one]}, {fmt.f[one]}) in the "
                "network: widths or ranges were changed, which needs a new circuit"
            )
        codes[n] = values[port.at]
    return codes


def part_name(port: Port) -> str:
    """A port's weight or bias in words."""
    return f"{port.part} {list(port.at)}"
