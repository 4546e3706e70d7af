"""Ranges from data: where the bits of each quantiser lie, its width being given."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.models import uncertain
from stillfit.models.fixed.formats import MAX_SHIFT, Format, decode, encode
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.fixed.quantisers import Quantiser, observing
from stillfit.models.model import CHUNK, Model
from stillfit.models.tensors import tensors

Method: TypeAlias = Literal["mse", "range"]
METHODS: tuple[Method, ...] = ("mse", "range")
ROWS = 50_000  # values of a channel that its range is read from
TRIED = 6  # ranges, each half the last


def best_format(
    values: NDArray[np.floating], width: int, *, method: Method = "mse", signed: bool | None = None
) -> Format:
    """The format of `width` bits for `values` (n,), or one per channel for (n, channels).

    "range": the smallest range that holds every value. "mse": of this one and its halves, down to
    1/32, the one with the least mean squared error: what saturates against the finer step.
    `signed`: None gives a sign bit only where there is a negative value.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    columns = np.asarray(values, np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if not np.isfinite(columns).all():
        raise DataError("ranges cannot be read from NaN or infinite values; a diverged network?")
    each = [_best(column, width, method, signed) for column in columns.T]
    return Format(*(tuple(getattr(fmt, name)[0] for fmt in each) for name in "kif"))


def _best(values: NDArray[np.float64], width: int, method: Method, signed: bool | None) -> Format:
    top, low = float(values.max(initial=0.0)), float(values.min(initial=0.0))
    k = int(low < 0 if signed is None else signed)
    if width - k < 1:
        raise ConfigError(f"{width} bits cannot hold values from {low:.3g} to {top:.3g}")
    size = max(top, -low)
    i = max(math.frexp(size)[1], width - k - MAX_SHIFT) if size else 0
    widest = Format.of(k, i, width - k - i)
    high = math.ldexp(float(widest.limits()[1][0]), -widest.f[0])
    # The largest number may round up to the power of two that just cannot be held.
    if high < top - math.ldexp(0.5, -widest.f[0]):
        widest = Format.of(k, i + 1, width - k - i - 1)
    if method == "range" or not size:
        return widest
    tried = [
        Format.of(k, widest.i[0] - n, widest.f[0] + n)
        for n in range(TRIED)
        if widest.f[0] + n <= MAX_SHIFT
    ]
    errors = [float(np.mean((decode(encode(values, f), f) - values) ** 2)) for f in tried]
    return tried[int(np.argmin(errors))]


def fit_quantiser(quantiser: Quantiser, values: Tensor, method: Method = "mse") -> None:
    """Move the range of a quantiser to what `values` need; its width stays (but for `finest`)."""
    rows = values.detach().double().cpu()
    channels = len(quantiser.k)
    if channels > 1:
        rows = rows.movedim(quantiser.axis, -1).reshape(-1, channels)
    else:
        rows = rows.reshape(-1, 1)
    if len(rows) > ROWS:  # evenly, so that the same data give the same format
        rows = rows[torch.linspace(0, len(rows) - 1, ROWS).long()]
    if len(rows):
        width = quantiser.format.width if quantiser.finest is None else quantiser.bits
        fmt = best_format(rows.numpy(), width, method=method, signed=quantiser.signed)
        if quantiser.finest is not None:
            f = [min(pair) for pair in zip(fmt.f, quantiser.finest, strict=True)]
            fmt = Format.channels(
                fmt.k, [max(i, 1 - k - b) for k, i, b in zip(fmt.k, fmt.i, f, strict=True)], f
            )
        quantiser.set_format(fmt)


def fit_parameters(layer: FixedLayer, method: Method = "mse") -> None:
    """Ranges of weights and biases from their present values; always with a sign."""
    masked = (layer.weight * layer.mask).detach()
    pairs = [(layer.on_weight, masked)]
    if layer.bias is not None:
        pairs.append((layer.on_bias, layer.bias.detach()))
    for quantiser, values in pairs:
        rows = values.double().cpu().numpy()
        flat = rows.reshape(len(rows), -1).T if len(quantiser.k) > 1 else rows.reshape(-1)
        width = quantiser.format.width
        quantiser.set_format(best_format(flat, width, method=method, signed=True))
    if layer.bias is not None:
        layer.on_bias.set_format(_not_finer(layer))


def _not_finer(layer: FixedLayer) -> Format:
    """Bias bits behind the steps of the products would only widen the sum: they go in front."""
    fmt = layer.on_bias.format
    finest = layer.on_input.format.fraction + max(layer.on_weight.format.f)
    f = [min(f, finest) for f in fmt.f]
    return Format.channels(fmt.k, [fmt.width - k - b for k, b in zip(fmt.k, f, strict=True)], f)


def calibrated(
    model: Model, examples: Examples, *, method: Method = "mse", events: int = 1000
) -> Model:
    """A copy of a fixed-point model with every range set from (at most `events`) events.

    Widths, weights and masks stay. One pass of the first `events` events, without quantisation,
    shows what each quantiser must hold; the same events give the same ranges. Cost: one
    prediction, and memory for what passes the quantisers (100 kB per event of the trigger).
    """
    if not len(examples):
        raise DataError("there are no events to calibrate ranges on")
    twin = model.copy()
    network = twin.network
    quantisers = {n: m for n, m in network.named_modules() if isinstance(m, Quantiser)}
    if not quantisers:
        raise ConfigError("the network has no quantiser; convert it to fixed point first")
    inputs = examples.take(slice(0, events)).inputs
    prepared = tensors(uncertain.prepare(model.task, network, inputs))
    network.eval()
    with observing(network) as seen, torch.no_grad():
        n = uncertain.n_events(prepared)
        for first in range(0, n, CHUNK):
            part = uncertain.stretch(prepared, first, min(first + CHUNK, n))
            uncertain.predict(model.task, network, part)
    for name, values in seen.items():
        whole = [value for value in values if value.numel()]
        if whole and not _of_parameters(network, name):
            fit_quantiser(quantisers[name], joined(whole, quantisers[name]), method)
    for module in network.modules():
        if isinstance(module, FixedLayer):
            fit_parameters(module, method)
    return twin


def joined(values: list[Tensor], quantiser: Quantiser) -> Tensor:
    """What a quantiser saw in all calls, with its channels where they were."""
    if len(quantiser.k) == 1:
        return torch.cat([value.reshape(-1) for value in values])
    return torch.cat(values)


def _of_parameters(network: nn.Module, name: str) -> bool:
    """Whether a quantiser belongs to weights or biases of a layer."""
    owner, _, last = name.rpartition(".")
    layer = network.get_submodule(owner)
    return isinstance(layer, FixedLayer) and last in ("on_weight", "on_bias")
