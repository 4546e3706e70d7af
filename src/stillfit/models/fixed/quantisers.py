"""Fake quantisation in PyTorch: real numbers that lie on the grid of a format, with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.models.fixed.formats import (
    Codes,
    Format,
    Overflow,
    Rounding,
    check_modes,
)

Gradient: TypeAlias = Literal["straight", "clipped", "inward"]
GRADIENTS: tuple[Gradient, ...] = ("straight", "clipped", "inward")
EXACT = 24  # bits: whole numbers that float32 holds; beyond, numbers are float64
Bound: TypeAlias = "float | Tensor"


class _Through(torch.autograd.Function):
    """The quantised value forward; backward the gradient of the value that came, by the rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, q: Tensor, low: Tensor, high: Tensor, rule: str) -> Tensor:
        return q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, low, high, rule = inputs
        ctx.rule = rule
        ctx.save_for_backward(x, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if ctx.rule != "straight":
            x, low, high = ctx.saved_tensors
            above, below = x > high, x < low
            if ctx.rule == "inward":
                above, below = above & (grad < 0), below & (grad > 0)
            grad = grad.masked_fill(above | below, 0.0)
        return grad, None, None, None, None


def fake_quantise(
    x: Tensor,
    fmt: Format,
    *,
    rounding: Rounding = "nearest",
    overflow: Overflow = "saturate",
    gradient: Gradient = "clipped",
    axis: int = -1,
) -> Tensor:
    """`x` on the grid of a format, the same shape; channels along `axis`.

    Gradient: "straight" passes all (Bengio et al. 2013, arXiv:1308.3432); "clipped" nothing from
    numbers beyond the range, whose quantised value does not move; "inward" from those only what
    leads back into it, so that a saturated weight is not lost. A wrapped number moves with its
    value: all passes. Values and gradients are exact: float32 up to 24 bits, float64 beyond.
    """
    check_modes(rounding, overflow)
    if gradient not in GRADIENTS:
        raise ConfigError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    if fmt.width > EXACT and x.dtype != torch.float64:
        x = x.double()
    low, high = fmt.limits(overflow)
    if len(fmt) == 1:
        scale: Bound = 2.0 ** fmt.f[0]
        inverse: Bound = 2.0 ** -fmt.f[0]
        lows: Bound = float(low[0])
        highs: Bound = float(high[0])
    else:
        if x.ndim == 0 or x.shape[axis] != len(fmt):
            raise ShapeError(
                f"a format of {len(fmt)} channels was given values of shape {tuple(x.shape)}"
            )
        scale = _along(np.ldexp(1.0, np.array(fmt.f)), x, axis)
        inverse = _along(np.ldexp(1.0, -np.array(fmt.f)), x, axis)
        lows, highs = _along(low, x, axis), _along(high, x, axis)
    with torch.no_grad():
        scaled = x.detach() * scale
        codes = torch.floor(scaled)
        if rounding == "nearest":
            codes = codes + (scaled - codes >= 0.5)
        elif rounding == "even":
            codes = torch.round(scaled)
        if overflow == "wrap":
            codes = torch.remainder(codes - lows, highs - lows + 1) + lows
        else:
            codes = torch.clamp(codes, lows, highs)  # type: ignore[arg-type]
        q = codes * inverse
    if not (torch.is_grad_enabled() and x.requires_grad):
        return q
    rule = "straight" if overflow == "wrap" else gradient
    ends = [torch.as_tensor(end * inverse, dtype=x.dtype, device=x.device) for end in (lows, highs)]
    passed: Tensor = _Through.apply(x, q, *ends, rule)  # type: ignore[no-untyped-call]
    return passed


def _along(values: Any, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.ndim
    shape[axis] = -1
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(shape)


class Quantiser(nn.Module):
    """Brings what passes onto the grid of its format.

    The format lies in the buffers `k`, `i`, `f` (int64, one number or one of each channel), so it
    is stored with a version, travels with every copy, and no training, nor a start from nothing,
    changes it. `set_format` does, for who may.

    `width`: bits of the format to begin with. `channels`: None for one format. `axis`: where the
    channels lie. `finest`: fraction bits of each channel beyond which its numbers have none, where
    that is known; a calibration gives such a channel no more of them, and up to `width` bits in
    all. `signed`: whether a calibration keeps a sign bit; None: where there is a negative value.
    `rounding`, `overflow`, `gradient`: see `fake_quantise`.
    """

    k: Tensor
    i: Tensor
    f: Tensor

    def __init__(
        self,
        width: int = 8,
        *,
        channels: int | None = None,
        axis: int = -1,
        finest: tuple[int, ...] | None = None,
        signed: bool | None = None,
        rounding: Rounding = "nearest",
        overflow: Overflow = "saturate",
        gradient: Gradient = "clipped",
    ) -> None:
        super().__init__()
        check_modes(rounding, overflow)
        if gradient not in GRADIENTS:
            raise ConfigError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
        self.axis, self.rounding, self.overflow, self.gradient = axis, rounding, overflow, gradient
        n = channels or 1
        if finest is not None and len(finest) != n:
            raise ConfigError(f"finest must name {n} channels, got {len(finest)}")
        self.bits, self.finest, self.signed = width, finest, signed
        start = Format((1,) * n, (0,) * n, (width - 1,) * n)
        for name in "kif":
            self.register_buffer(name, torch.tensor(getattr(start, name), dtype=torch.int64))
        self._seen: list[Tensor] | None = None

    @property
    def format(self) -> Format:
        """The format in force."""
        return Format(*(tuple(getattr(self, name).tolist()) for name in "kif"))

    def set_format(self, fmt: Format) -> None:
        """Put another format in force; one for all channels may be given to many."""
        n = len(self.k)
        if len(fmt) not in (1, n):
            raise ShapeError(f"a quantiser of {n} channels was given a format of {len(fmt)}")
        for name in "kif":
            values = torch.tensor(getattr(fmt, name), dtype=torch.int64)
            getattr(self, name).copy_(values.expand(n))

    def forward(self, x: Tensor) -> Tensor:
        fmt = self.format
        # What came in float64 from a wide sum is exact in the usual type again.
        single = fmt.width <= EXACT and x.dtype != torch.get_default_dtype()
        if self._seen is not None:
            self._seen.append(x.detach())
            return x.to(torch.get_default_dtype()) if single else x
        q = fake_quantise(
            x,
            fmt,
            rounding=self.rounding,
            overflow=self.overflow,
            gradient=self.gradient,
            axis=self.axis,
        )
        return q.to(torch.get_default_dtype()) if single else q

    def codes(self, x: Tensor) -> Codes:
        """The whole numbers of `x` on the grid, int64 of the same shape.

        From the fake-quantised values themselves, so that both can never differ.
        """
        with torch.no_grad():
            values = self.forward(x).double().cpu().numpy()
        shape = [1] * values.ndim
        if values.ndim and len(self.f) > 1:
            shape[self.axis] = -1
        exponents = self.f.cpu().numpy().reshape(shape if values.ndim else ())
        codes: Codes = np.ldexp(values, exponents).astype(np.int64)
        return codes

    def extra_repr(self) -> str:
        fmt = str(self.format) if len(set(self.format.widths)) == 1 else f"{len(self.k)} channels"
        return f"{fmt}, {self.rounding}, {self.overflow}"


@contextmanager
def observing(network: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within it, the quantisers of a network pass everything on as it is, and keep it.

    Gives what each quantiser saw by the quantiser's name. Not for training.
    """
    found = {n: m for n, m in network.named_modules() if isinstance(m, Quantiser)}
    seen: dict[str, list[Tensor]] = {name: [] for name in found}
    for name, quantiser in found.items():
        quantiser._seen = seen[name]
    try:
        yield seen
    finally:
        for quantiser in found.values():
            quantiser._seen = None
