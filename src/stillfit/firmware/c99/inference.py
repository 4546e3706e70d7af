"""An `IntegerNetwork` as C: the same whole numbers, each in the smallest type that holds it.

Every range is known before, from formats and masks alone, so nothing can overflow for any input
and any later weights; the code is the same for all weights of a design, only tables differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.firmware.c99.text import (
    Header,
    checked_name,
    dtype_of,
    framed,
    initial,
    range_of,
    table,
    type_of,
    whole,
)
from stillfit.models.fixed.formats import Format
from stillfit.models.fixed.integer import (
    Conv1d,
    Dense,
    Flatten,
    IntegerNetwork,
    MaxPool,
    Mean,
    Relu,
    Requantise,
)
from stillfit.models.fixed.layers import MEAN_BITS
from stillfit.models.networks import Standardise

Design: TypeAlias = Literal["constant", "reloadable"]
DESIGNS: tuple[Design, ...] = ("constant", "reloadable")
_INT32 = 2**31 - 1
_LARGEST = 2**62 - 1  # what sums may reach: what `requantise` adds to round still fits


def network_header(
    network: IntegerNetwork,
    name: str,
    *,
    design: Design = "constant",
    inputs: Format | None = None,
    shape: tuple[int, ...] | None = None,
) -> Header:
    """A network as a header, `<name>_run(x, y)` equal to `network.run` bit for bit.

    `design`: weights in flash (`constant`), or in RAM as the struct `<name>_weights`, which a new
    version of the same formats and masks overwrites (`reloadable`). `inputs`: the format of the
    inputs, one or each, where it is not that of the first quantiser. `shape`: of one event where a
    convolution needs it, (channels, positions). With scaling in front, `<name>_encode` takes real
    features. Weights that the mask holds at zero are left out where that makes the tables smaller.

    `ConfigError` for steps without code and for numbers beyond 64 bits; `ShapeError` for a shape
    that does not fit.
    """
    checked_name(name)
    if design not in DESIGNS:
        raise ConfigError(f"a design is one of {', '.join(DESIGNS)}, got {design!r}")
    given = network.input.format if inputs is None else inputs
    writer = _Writer(name, network, given, _shape(network, given, shape))
    return writer.header(design, own=inputs is None)


def _shape(network: IntegerNetwork, given: Format, shape: tuple[int, ...] | None) -> Sequence[int]:
    """(inputs,) or (channels, positions) of one event."""
    first = next((step for step in network.steps if isinstance(step, Dense | Mean | MaxPool)), None)
    flat = isinstance(first, Dense) and not isinstance(first, Conv1d)
    before = network.steps[: network.steps.index(first)] if first is not None else ()
    flattened = any(isinstance(step, Flatten) for step in before)
    if shape is None:
        if not flat or flattened or not isinstance(first, Dense):
            raise ConfigError(
                "a convolution, a mean or a maximum needs the shape of one event: give "
                "shape=(channels, positions)"
            )
        return (first.weight.shape[1],)
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise ShapeError(f"one event is (inputs,) or (channels, positions), got {shape}")
    if flat and not flattened and isinstance(first, Dense) and shape != (first.weight.shape[1],):
        raise ShapeError(f"{first.name} takes ({first.weight.shape[1]},), got {shape}")
    if len(given) not in (1, shape[0]):
        raise ShapeError(f"{len(given)} formats of inputs were given for {shape[0]} channels")
    return shape


@dataclass
class _Block:
    """One loop nest: what makes a number, and what happens to it before it is stored."""

    maker: Dense | MaxPool | Mean | None
    after: list[tuple[Requantise, bool] | Relu | Flatten] = field(default_factory=list)


@dataclass
class _Stored:
    """A buffer: where, its type and range, its shape, and the fraction bits of its channels."""

    at: str
    kind: str
    low: int
    high: int
    shape: Sequence[int]
    fraction: NDArray[np.int64]


class _Writer:
    """Writes one network. `reach`: the largest magnitude in the present loop nest."""

    def __init__(
        self, name: str, network: IntegerNetwork, given: Format, shape: Sequence[int]
    ) -> None:
        self.name, self.network, self.given, self.shape = name, network, given, shape
        self.tables: list[str] = []
        self.constants: dict[str, int] = {}
        self.parameters: list[tuple[str, str, NDArray[np.int64]]] = []
        self.buffers: tuple[list[str], list[str]] = ([], [])
        self.bytes: tuple[list[int], list[int]] = ([0], [0])
        self.body: list[str] = []
        self.uses: set[str] = set()
        self.reach = 0

    # -- the whole -------------------------------------------------------------------------------

    def header(self, design: Design, own: bool) -> Header:
        low, high = self.given.limits()
        kind = type_of(int(low.min()), int(high.max()))
        fraction = np.array(self.given.f, np.int64)
        flow = _Stored("x", kind, *range_of(kind), self.shape, fraction)
        blocks = self._blocks()
        for n, block in enumerate(blocks):
            flow = self._block(n, block, flow, last=n == len(blocks) - 1)
        return self._made(design, own, kind, flow)

    def _blocks(self) -> list[_Block]:
        blocks = [_Block(None)]
        for step in self.network.steps:
            if isinstance(step, Requantise):
                blocks[-1].after.append((step, False))
            elif isinstance(step, Relu | Flatten):
                blocks[-1].after.append(step)
            elif isinstance(step, Dense):
                blocks[-1].after.append((step.input, True))
                blocks.append(_Block(step))
            elif isinstance(step, Mean):
                blocks[-1].after.append((step.input, False))
                blocks.append(_Block(step))
            elif isinstance(step, MaxPool):
                blocks.append(_Block(step))
            else:
                raise ConfigError(
                    f"the network has the step {type(step).__name__}, which has no code in C here; "
                    "use dense and 1-D convolution layers, ReLU, maximum, mean and quantisers"
                )
        return blocks

    def _made(self, design: Design, own: bool, kind: str, out: _Stored) -> Header:
        name, upper = self.name, self.name.upper()
        n_in, n_out = int(np.prod(self.shape)), int(np.prod(out.shape))
        front = self.network.front
        scaled = own and isinstance(front, Standardise) and len(self.shape) == 1
        # Wide members first: no gaps, and the image is their bytes one after the other.
        members = sorted(self.parameters, key=lambda m: -dtype_of(m[0]).itemsize)
        fields = "".join(f"    {k} {label}[{len(v)}];\n" for k, label, v in members)
        values = ",\n".join(initial(v) for _, _, v in members)
        struct = f"typedef struct {{\n{fields}}} {name}_weights_t;\n"
        size = {label: v.size * dtype_of(k).itemsize for k, label, v in members}
        ram = {f"buffer {n}": max(sizes) for n, sizes in enumerate(self.bytes) if self.buffers[n]}
        constants = dict(self.constants)
        (ram if design == "reloadable" else constants).update(size)
        fractions = np.broadcast_to(out.fraction, (out.shape[0],))
        told = sorted(set(fractions.tolist()))
        declared = f"""#define {upper}_INPUTS {n_in}
#define {upper}_OUTPUTS {n_out}

typedef {kind} {name}_in_t;
typedef {out.kind} {name}_out_t;
"""
        if len(told) == 1:
            declared += f"#define {upper}_OUT_FRACTION {told[0]} /* y / 2^{told[0]} */\n"
        if design == "reloadable":
            declared += f"""
/* Any weights of the same formats and mask; copy a new version over it between two calls. */
{struct}extern {name}_weights_t {name}_weights;
"""
        declared += f"""
/* Outputs of one event; every value of the input's type is defined. */
void {name}_run(const {name}_in_t x[{upper}_INPUTS], {name}_out_t y[{upper}_OUTPUTS]);
"""
        if scaled:
            declared += f"""
/* Real features as inputs of {name}_run: 1, or 0 and nothing written for NaN. */
int {name}_encode(const float real[{upper}_INPUTS], {name}_in_t x[{upper}_INPUTS]);
"""
        place = f"{name}_weights_t {name}_weights = {{\n{values}\n}};\n"
        code = [place if design == "reloadable" else f"{struct}static const {place}"]
        code += [self._rounding(), *self.tables]
        for n, lines in enumerate(self.buffers):
            if lines:
                code.append(f"static union {{\n{''.join(lines)}}} {name}_buffer{n};\n")
        code.append(
            f"void {name}_run(const {name}_in_t x[{upper}_INPUTS], "
            f"{name}_out_t y[{upper}_OUTPUTS]) {{\n{''.join(self.body)}}}\n"
        )
        if scaled:
            assert isinstance(front, Standardise)
            code.append(self._encode(front, n_in))
        macs = sum(_macs(layer) for layer in self.network.layers)
        notes = f"""A network in whole numbers, {n_in} inputs and {n_out} outputs, {macs} weights.
Input: {_formats(self.given)}.
Output: whole numbers with {", ".join(str(f) for f in told)} fraction bits.
Weights: {"in RAM, reloadable" if design == "reloadable" else "constant"}."""
        return Header(
            name=name,
            text=framed(name, notes, declared, "\n".join(code)),
            inputs=n_in,
            outputs=n_out,
            input_type=dtype_of(kind),
            output_type=dtype_of(out.kind),
            ram=ram,
            constants=constants,
            image=b"".join(v.astype(dtype_of(k).newbyteorder("<")).tobytes() for k, _, v in members)
            if design == "reloadable"
            else b"",
        )

    def _rounding(self) -> str:
        """v / 2^s rounded down, in C that says nothing of shifts of negative numbers."""
        return "\n".join(
            f"""static {kind} {self.name}_floor{bits}({kind} v, int s) {{
    return v < 0 ? ~(~v >> s) : v >> s;
}}
"""
            for kind, bits in (("int32_t", 32), ("int64_t", 64))
            if f"floor{bits}" in self.uses
        )

    # -- a loop nest -----------------------------------------------------------------------------

    def _block(self, n: int, block: _Block, x: _Stored, last: bool) -> _Stored:
        self.reach = max(abs(x.low), abs(x.high))
        lines, made = self._maker(n, block.maker, x)
        shape, positions = made.shape, int(np.prod(made.shape[1:], dtype=int))
        flat = False
        for k, step in enumerate(block.after):
            if isinstance(step, Relu):
                lines.append("v = v > 0 ? v : 0;")
                made.low, made.high = max(made.low, 0), max(made.high, 0)
            elif isinstance(step, Flatten):
                if len(made.fraction) > 1:
                    made.fraction = np.repeat(made.fraction, int(np.prod(made.shape[1:])))
                flat, made.shape = True, (int(np.prod(made.shape)),)
            else:
                index = f"c * {positions} + p" if flat and positions > 1 else "c"
                lines += self._requantised(f"{n}_{k}", step[0], step[1], made, index)
        index = f"c * {positions} + p" if positions > 1 else "c"
        kind = type_of(made.low, made.high)
        if last:
            target = "y"
        else:
            size = int(np.prod(made.shape))
            self.buffers[n % 2].append(f"        {kind} v{n}[{size}];\n"[4:])
            self.bytes[n % 2].append(size * dtype_of(kind).itemsize)
            target = f"{self.name}_buffer{n % 2}.v{n}"
        lines.append(f"{target}[{index}] = ({kind})v;")
        if self.reach > _LARGEST:
            raise ConfigError(
                f"step {n} of the network needs numbers of {self.reach.bit_length() + 1} bits, and "
                "64 can be held; bring the formats of neighbouring layers closer together"
            )
        bits = 32 if self.reach <= _INT32 else 64
        text = self._nest(lines, shape[0], positions, "" if block.maker is None else _title(block))
        if "FLOOR" in text:
            self.uses.add(f"floor{bits}")
        text = text.replace("FLOOR", f"{self.name}_floor{bits}").replace("WIDE", f"int{bits}_t")
        self.body.append(text)
        return _Stored(target, kind, made.low, made.high, made.shape, made.fraction)

    def _nest(self, lines: list[str], channels: int, positions: int, title: str) -> str:
        loops = [f"for (int32_t c = 0; c < {channels}; c++) {{"]
        if positions > 1:
            loops.append(f"for (int32_t p = 0; p < {positions}; p++) {{")
        out = [f"    /* {title} */\n"] if title else []
        depth = 1
        for line in [*loops, *lines, *("}" for _ in loops)]:
            depth -= line.startswith("}")
            out.append(f"{'    ' * depth}{line}\n")
            depth += line.endswith("{")
        return "".join(out)

    def _maker(
        self, n: int, maker: Dense | MaxPool | Mean | None, x: _Stored
    ) -> tuple[list[str], _Stored]:
        """Lines that declare `v`, and what it is."""
        if maker is None:
            index = "c" if len(x.shape) == 1 or x.shape[1] == 1 else f"c * {x.shape[1]} + p"
            made = _Stored("", "", x.low, x.high, x.shape, x.fraction)
            return [f"WIDE v = {x.at}[{index}];"], made
        if isinstance(maker, Dense):
            return self._weighted(n, maker, x)
        if len(x.shape) != 2:
            raise ShapeError(
                f"a {type(maker).__name__.lower()} needs (channels, positions), got {x.shape}"
            )
        channels, length = x.shape
        if isinstance(maker, MaxPool):
            if length < maker.size:
                raise ShapeError(f"a maximum of {maker.size} needs as many positions, got {length}")
            positions = (length - maker.size) // maker.stride + 1
            start = f"c * {length}" + (f" + p * {maker.stride}" if positions > 1 else "")
            lines = [
                f"WIDE v = {x.at}[{start}];",
                f"for (int32_t i = 1; i < {maker.size}; i++) {{",
                f"WIDE u = {x.at}[{start} + i];",
                "v = u > v ? u : v;",
                "}",
            ]
            return lines, _Stored("", "", x.low, x.high, (channels, positions), x.fraction)
        factor = maker.layer.factor(length)
        lines = [
            "WIDE v = 0;",
            f"for (int32_t i = 0; i < {length}; i++) {{",
            f"v += {x.at}[c * {length} + i];",
            "}",
            f"v *= {factor};",
        ]
        low, high = x.low * length * factor, x.high * length * factor
        self._reached(low, high)
        fraction = x.fraction + MEAN_BITS
        return lines, _Stored("", "", low, high, (channels, 1), fraction)

    def _weighted(self, n: int, layer: Dense, x: _Stored) -> tuple[list[str], _Stored]:
        """Sums of raw codes; a factor of the output brings them to the steps of its bias."""
        outputs = len(layer.weight)
        per_output = np.broadcast_to(np.array(layer.weight_format.f), (outputs,))
        own = np.broadcast_to(np.array(layer.bias_format.f), (outputs,))
        by = layer.fraction - layer.input.format.fraction - per_output
        up = layer.fraction - own
        low, high = layer.weight_format.limits()
        weight_kind = type_of(int(low.min()), int(high.max()))
        bias_low, bias_high = layer.bias_format.limits()
        # What mask and formats allow: more than any weights of theirs can make.
        self._reached(int(low.min()), int(high.max()))
        self._reached(int(bias_low.min()), int(bias_high.max()))
        size = 2 ** (layer.accumulator - 1) - 1
        self._reached(-size, size)
        lines = ["WIDE v = 0;"]
        shape: Sequence[int]
        if isinstance(layer, Conv1d):
            shape = self._taps(n, layer, x, lines, weight_kind)
        else:
            if tuple(x.shape) != (layer.weight.shape[1],):
                raise ShapeError(
                    f"{layer.name} takes {layer.weight.shape[1]} inputs and gets {tuple(x.shape)}"
                )
            self._rows(n, layer, x, lines, weight_kind)
            shape = (outputs,)
        if by.any():
            lines.append(f"v *= {self._power(f'{n}_up', by, 'c')};")
        if layer.bias.any() or layer.bias_format.width > 1:
            kind = type_of(int(bias_low.min()), int(bias_high.max()))
            self.parameters.append((kind, f"bias{n}", layer.bias))
            scale = f" * {self._power(f'{n}_bias_up', up, 'c')}" if up.any() else ""
            lines.append(f"v += (WIDE){self.name}_weights.bias{n}[c]{scale};")
        return lines, _Stored("", "", -size, size, shape, layer.fraction)

    def _rows(self, n: int, layer: Dense, x: _Stored, lines: list[str], kind: str) -> None:
        outputs, inputs = layer.weight.shape
        weights = f"{self.name}_weights.weight{n}"
        kept = int(layer.mask.sum())
        place, end = type_of(0, inputs - 1), type_of(0, kept)
        item = dtype_of(kind).itemsize
        sparse = kept * (item + dtype_of(place).itemsize) + (outputs + 1) * dtype_of(end).itemsize
        if sparse < outputs * inputs * item:
            ends = np.concatenate([[0], np.cumsum(layer.mask.sum(1))])
            self._table(place, f"{n}_place", np.nonzero(layer.mask)[1])
            self._table(end, f"{n}_end", ends)
            self.parameters.append((kind, f"weight{n}", layer.weight[layer.mask]))
            first, stop = f"{self.name}_{n}_end[c]", f"{self.name}_{n}_end[c + 1]"
            lines += [
                f"for (int32_t i = {first}; i < {stop}; i++) {{",
                f"v += (WIDE){weights}[i] * {x.at}[{self.name}_{n}_place[i]];",
                "}",
            ]
            return
        self.parameters.append((kind, f"weight{n}", layer.weight.ravel()))
        lines += [
            f"for (int32_t i = 0; i < {inputs}; i++) {{",
            f"v += (WIDE){weights}[c * {inputs} + i] * {x.at}[i];",
            "}",
        ]

    def _taps(
        self, n: int, layer: Conv1d, x: _Stored, lines: list[str], kind: str
    ) -> tuple[int, int]:
        outputs, own, taps = layer.weight.shape
        if len(x.shape) != 2 or x.shape[0] != own * layer.groups:
            raise ShapeError(
                f"{layer.name} takes ({own * layer.groups}, positions) and gets {tuple(x.shape)}"
            )
        length = x.shape[1]
        reach = (taps - 1) * layer.dilation + 1
        positions = (length + 2 * layer.padding - reach) // layer.stride + 1
        if length + 2 * layer.padding < reach:
            raise ShapeError(
                f"{layer.name} needs at least {reach - 2 * layer.padding} samples, got {length}"
            )
        self.parameters.append((kind, f"weight{n}", layer.weight.ravel()))
        group = outputs // layer.groups
        channel = f"(c / {group} * {own} + j)" if layer.groups > 1 else "j"
        at = f"p * {layer.stride} + k * {layer.dilation} - {layer.padding}"
        if positions == 1:
            at = f"k * {layer.dilation} - {layer.padding}"
        weight = f"{self.name}_weights.weight{n}[(c * {own} + j) * {taps} + k]"
        add = f"v += (WIDE){weight} * {x.at}[{channel} * {length} + q];"
        lines += [
            f"for (int32_t j = 0; j < {own}; j++) {{",
            f"for (int32_t k = 0; k < {taps}; k++) {{",
            f"int32_t q = {at};",
            *(
                [f"if (q >= 0 && q < {length}) {{", add, "}"] if layer.padding else [add]
            ),  # outside lie zeros
            "}",
            "}",
        ]
        return outputs, positions

    def _requantised(
        self, label: str, step: Requantise, aligned: bool, made: _Stored, index: str
    ) -> list[str]:
        fmt = step.format
        channels = made.shape[0]
        if len(fmt) not in (1, channels):
            raise ShapeError(
                f"a format of {len(fmt)} channels was given values of shape {tuple(made.shape)}"
            )
        f = np.array(fmt.f, np.int64)
        by = f - made.fraction
        low, high = fmt.limits(step.overflow)
        lines: list[str] = []
        left, right = int(by.max()), min(int(-by.min()), 62)
        if left > 0:
            made.low, made.high = min(made.low, made.low << left), max(made.high, made.high << left)
            self._reached(made.low, made.high)
        if right > 0 and step.rounding != "floor":
            self._reached(made.low, made.high + (1 << (right - 1)))
        one = len(set(by.tolist())) == 1
        if one and left > 0:
            lines.append(f"v *= (WIDE)1 << {left};")
        elif one and right > 0:
            lines.append(self._rounded(str(right), step.rounding))
        elif not one:
            self._table("int8_t", f"{label}_by", np.maximum(by, -62))
            lines += [
                f"int by_{label} = {self.name}_{label}_by[{index}];",
                f"if (by_{label} > 0) {{",
                f"v *= (WIDE)1 << by_{label};",
                f"}} else if (by_{label} < 0) {{",
                self._rounded(f"-by_{label}", step.rounding),
                "}",
            ]
        lows, highs = (
            self._each(f"{label}_low", low, index),
            self._each(f"{label}_high", high, index),
        )
        if step.overflow == "wrap":
            self._reached(made.low - int(high.max()), made.high - int(low.min()))
            lines.append(f"v = ((v - {lows}) & ((WIDE){highs} - {lows})) + {lows};")
            self._reached(0, int((high - low).max()))
        else:
            lines += [f"v = v < {lows} ? {lows} : v > {highs} ? {highs} : v;"]
        self._reached(int(low.min()), int(high.max()))
        made.low, made.high = int(low.min()), int(high.max())
        made.fraction = f
        if aligned:
            up = fmt.fraction - f
            if up.any():
                lines.append(f"v *= {self._power(f'{label}_align', up, index)};")
                made.low = int((low << up).min())
                made.high = int((high << up).max())
                self._reached(made.low, made.high)
            made.fraction = np.array([fmt.fraction], np.int64)
        return lines

    def _rounded(self, s: str, rounding: str) -> str:
        if rounding == "floor":
            return f"v = FLOOR(v, {s});"
        half = f"((WIDE)1 << ({s} - 1))" if s.startswith("-") else f"((WIDE)1 << {int(s) - 1})"
        if rounding == "nearest":
            return f"v = FLOOR(v + {half}, {s});"
        # A half on top of an even number is not rounded up.
        return f"v = FLOOR(v + {half} - 1 + (FLOOR(v, {s}) & 1), {s});"

    # -- small ones ------------------------------------------------------------------------------

    def _power(self, label: str, by: NDArray[np.int64], index: str) -> str:
        self._reached(0, 1 << int(by.max()))
        return f"((WIDE)1 << {self._each(label, by, index)})"

    def _each(self, label: str, values: NDArray[np.int64], index: str) -> str:
        """A number, or a table of one of each channel."""
        if len(set(values.tolist())) == 1:
            return whole(int(values.flat[0]))
        self._table(type_of(int(values.min()), int(values.max())), label, values)
        return f"{self.name}_{label}[{index}]"

    def _table(self, kind: str, label: str, values: NDArray[np.int64]) -> None:
        self.tables.append(table(kind, f"{self.name}_{label}", values.tolist()))
        self.constants[label] = len(values) * dtype_of(kind).itemsize

    def _reached(self, low: int, high: int) -> None:
        self.reach = max(self.reach, -low, high)

    def _encode(self, front: Standardise, n: int) -> str:
        """The scaling in float32 and the first quantiser, as PyTorch and `encode` do them."""
        step, name = self.network.input, self.name
        low, high = step.format.limits(step.overflow)
        each = range(n)
        parts = [np.broadcast_to(v, (n,)) for v in (low, high, np.array(step.format.f))]
        mean, std = (v.detach().cpu().numpy().astype(np.float32) for v in (front.mean, front.std))
        rows = ",\n".join(
            f"        {{{_real(mean[i])}, {_real(std[i])}, {_real(2.0 ** int(parts[2][i]), 'd')}, "
            f"{int(parts[0][i])}.0, {int(parts[1][i])}.0}}"
            for i in each
        )
        up = {
            "floor": "0",
            "nearest": "rest >= 0.5",
            "even": "rest > 0.5 || (rest == 0.5 && (whole & 1))",
        }[step.rounding]
        wrap = step.overflow == "wrap"
        # Beyond these a wrapped number has no meaning; `formats.encode` cuts at 2^62 too.
        bounds = (
            ("-4611686018427387904.0", "4611686018427387904.0")
            if wrap
            else ("scale[i].low", "scale[i].high")
        )
        fold = (
            "whole = ((whole - (int64_t)scale[i].low) & (int64_t)(scale[i].high - scale[i].low)) "
            "+ (int64_t)scale[i].low;"
            if wrap
            else "whole = whole > (int64_t)scale[i].high ? (int64_t)scale[i].high : whole;"
        )
        self.constants["scales"] = n * 32
        return f"""int {name}_encode(const float real[{name.upper()}_INPUTS], \
{name}_in_t x[{name.upper()}_INPUTS]) {{
    static const struct {{
        float mean, std;
        double step, low, high;
    }} scale[{n}] = {{
{rows}
    }};
    for (int32_t i = 0; i < {n}; i++) {{
        float scaled = (real[i] - scale[i].mean) / scale[i].std;
        if (scaled != scaled) {{
            return 0;
        }}
    }}
    for (int32_t i = 0; i < {n}; i++) {{
        float scaled = (real[i] - scale[i].mean) / scale[i].std;
        double v = (double)scaled * scale[i].step;
        v = v < {bounds[0]} ? {bounds[0]} : v > {bounds[1]} ? {bounds[1]} : v;
        int64_t whole = (int64_t)v;
        whole -= (double)whole > v;
        double rest = v - (double)whole;
        (void)rest;
        whole += {up};
        {fold}
        x[i] = ({name}_in_t)whole;
    }}
    return 1;
}}
"""


def _real(value: float, kind: str = "f") -> str:
    """A real number exactly, in C99's hexadecimal digits."""
    return float(value).hex() + ("f" if kind == "f" else "")


def _macs(layer: Dense) -> int:
    return int(layer.mask.sum())


def _title(block: _Block) -> str:
    return getattr(block.maker, "name", type(block.maker).__name__.lower())


def _formats(given: Format) -> str:
    told: Any = given
    return f"whole numbers of the format (sign, integer bits, fraction bits) {told}"
