"""Means and variances in place of numbers: they pass through a network's own forward.

`Moments` is what a layer gives whose weights are Gaussian. PyTorch asks it (`__torch_function__`)
whenever one of its functions meets it, so that a user's forward stays as it is; what has no
closed form is refused by name. Features are taken to be independent of each other after each
layer, as in probabilistic back-propagation (Hernandez-Lobato and Adams 2015, arXiv:1502.05336).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from stillfit.uncertainty.layers import Op, Weights

INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
# Shape, dtype and place: the same is done to both moments.
_SAME = (
    "reshape", "view", "flatten", "squeeze", "unsqueeze", "double", "float", "to", "detach",
    "contiguous", "transpose", "permute", "expand_as",
)  # fmt: skip


class Moments:
    """Independent Gaussians: `mean` and `variance`, tensors of one shape."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean = mean
        self.variance = variance

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        rule = _RULES.get(func)
        if rule is None:
            raise ConfigError(_refused(getattr(func, "__name__", str(func))))
        return rule(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _SAME:
            return lambda *args, **kwargs: Moments(
                getattr(self.mean, name)(*_means(args), **kwargs),
                getattr(self.variance, name)(*_means(args), **kwargs),
            )
        if name in ("shape", "ndim", "dtype", "device", "dim", "size", "numel"):
            return getattr(self.mean, name)
        raise ConfigError(_refused(name))

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Any) -> Moments:
        return Moments(self.mean[index], self.variance[index])

    def __add__(self, other: Any) -> Moments:
        return Moments(self.mean + _number(other, "+"), self.variance + 0 * _number(other, "+"))

    def __mul__(self, other: Any) -> Moments:
        factor = _number(other, "*")
        return Moments(self.mean * factor, self.variance * factor**2)

    def __sub__(self, other: Any) -> Moments:
        return self + -_number(other, "-")

    def __rsub__(self, other: Any) -> Moments:
        return (-self).__add__(other)

    def __truediv__(self, other: Any) -> Moments:
        return self * (1 / _number(other, "/"))

    def __neg__(self) -> Moments:
        return Moments(-self.mean, self.variance)

    __radd__ = __add__
    __rmul__ = __mul__

    def relu(self) -> Moments:
        """Moments of max(X, 0); Frey and Hinton 1999, doi:10.1162/089976699300016872."""
        first, second = _rectified(self.mean, self.variance)
        return Moments(first, second)

    def clamp(self, min: float | None = None, max: float | None = None) -> Moments:
        """Moments of X between two limits."""
        if min is None or max is None:
            raise ConfigError(_refused("clamp with one limit"))
        # X - low between 0 and h is U - W with U = relu(X - low), W = relu(X - high), and
        # U W = W^2 + h W.
        h = max - min
        u, u_spread = _rectified(self.mean - min, self.variance)
        w, w_spread = _rectified(self.mean - max, self.variance)
        square = (u_spread + u**2) - (w_spread + w**2) - 2 * h * w
        return Moments(min + u - w, (square - (u - w) ** 2).clamp(min=0))


def _rectified(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(X, 0), in a form without cancellation for X far above 0."""
    std = torch.sqrt(variance).clamp(min=1e-18)
    a = mean / std
    above, below = torch.special.ndtr(a), torch.special.ndtr(-a)
    density = INV_SQRT_2PI * torch.exp(-0.5 * a**2)
    near = a.clamp(-30, 30)  # beyond it the products below are 0, and infinity times 0 is not
    first = mean * above + std * density
    share = above + near**2 * above * below + near * density * (below - above) - density**2
    return first, (variance * share).clamp(min=0)


def _refused(name: str) -> str:
    return (
        f"means and variances cannot pass through {name!r}: dense and 1-D convolution layers, "
        "ReLU, clamp, batch normalisation, sums and products with numbers have closed forms; make "
        "only a part of the network Gaussian (`layers`), or use samples"
    )


def _number(value: Any, what: str) -> Tensor:
    if isinstance(value, Moments):
        raise ConfigError(_refused(f"{what} of two uncertain numbers"))
    return torch.as_tensor(value)


def _means(args: Sequence[Any]) -> list[Any]:
    return [arg.mean if isinstance(arg, Moments) else arg for arg in args]


def _variance_of(value: Any) -> Tensor:
    return value.variance if isinstance(value, Moments) else torch.zeros_like(value)


def propagated(x: Any, op: Op, means: Weights, variances: Weights) -> Moments:
    """Moments of a linear `op` with Gaussian weights of `means` and `variances`.

    Of each product: m_w m_x, and m_w^2 v_x + v_w m_x^2 + v_w v_x; they add up.
    """
    (weight, bias), (spread, bias_spread) = means, variances
    if not isinstance(x, Moments):
        return Moments(op(x, weight, bias), op(x**2, spread, bias_spread))
    variance = op(x.variance, weight**2 + spread, None) + op(x.mean**2, spread, bias_spread)
    return Moments(op(x.mean, weight, bias), variance)


def _linear(x: Moments, weight: Tensor, bias: Tensor | None = None) -> Moments:
    return Moments(
        functional.linear(x.mean, weight, bias), functional.linear(x.variance, weight**2)
    )


def _conv1d(x: Moments, weight: Tensor, bias: Tensor | None = None, *args: Any) -> Moments:
    return Moments(
        functional.conv1d(x.mean, weight, bias, *args),
        functional.conv1d(x.variance, weight**2, None, *args),
    )


def _batch_norm(
    x: Moments,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Moments:
    if training or running_mean is None or running_var is None:
        raise ConfigError(_refused("batch_norm in training"))
    ones = [1] * (x.mean.ndim - 2)
    scale = (torch.rsqrt(running_var + eps) * (1 if weight is None else weight)).reshape(-1, *ones)
    mean = functional.batch_norm(x.mean, running_mean, running_var, weight, bias, False, 0.0, eps)
    return Moments(mean, x.variance * scale**2)


def _dropout(x: Moments, p: float = 0.5, training: bool = True, inplace: bool = False) -> Moments:
    if training and p:
        raise ConfigError(_refused("dropout in training"))
    return x


def _joined(how: Callable[..., Tensor]) -> Callable[..., Moments]:
    def rule(parts: Sequence[Any], *args: Any, **kwargs: Any) -> Moments:
        means, spreads = _means(parts), [_variance_of(part) for part in parts]
        return Moments(how(means, *args, **kwargs), how(spreads, *args, **kwargs))

    return rule


def _where(condition: Tensor, a: Any, b: Any) -> Moments:
    this, that = _means([a, b])
    return Moments(
        torch.where(condition, this, that), torch.where(condition, _variance_of(a), _variance_of(b))
    )


_RULES: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    functional.conv1d: _conv1d,
    functional.batch_norm: _batch_norm,
    functional.dropout: _dropout,
    functional.relu: lambda x, inplace=False: x.relu(),
    torch.relu: lambda x: x.relu(),
    torch.clamp: lambda x, min=None, max=None: x.clamp(min, max),
    torch.stack: _joined(torch.stack),
    torch.cat: _joined(torch.cat),
    torch.where: _where,
    torch.zeros_like: lambda x, **kwargs: torch.zeros_like(x.mean, **kwargs),
    torch.flatten: lambda x, *args, **kwargs: x.flatten(*args, **kwargs),
    torch.Tensor.expand_as: lambda plain, x: plain.expand_as(x.mean),
    torch.Tensor.add: lambda a, b: b + a,
    torch.Tensor.__radd__: lambda a, b: b + a,
    torch.Tensor.mul: lambda a, b: b * a,
    torch.Tensor.sub: lambda a, b: -b + a,
    torch.Tensor.__add__: lambda a, b: b + a,
    torch.Tensor.__mul__: lambda a, b: b * a,
    torch.Tensor.__sub__: lambda a, b: -b + a,
}
