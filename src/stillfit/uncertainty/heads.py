"""Extra targets: a network's last layer gives the parameters of a distribution, in one pass.

A head costs a few more outputs of the last layer and nothing else. In classification the softmax
is the head: these families are of numbers, and a classification task refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Predictive, QuantileTable, StudentT
from stillfit.models.likelihood import (
    LOG_VARIANCE_LIMIT,
    GaussianLikelihood,
    Likelihood,
    scaled_crps,
)
from stillfit.models.networks import Head, WithNoise, copy_network
from stillfit.uncertainty.hooks import last_linear, plain, replaced

# Ends and middle of the intervals that are judged at 68, 90 and 95 %.
LEVELS = (0.025, 0.05, 0.16, 0.25, 0.5, 0.75, 0.84, 0.95, 0.975)
TINY = 1e-12
# Least evidence (nu, and alpha above 1): the variance beta (1 + 1 / nu) / (alpha - 1) stays finite.
LEAST_EVIDENCE = 1e-3


@runtime_checkable
class HasHead(Protocol):
    """A network that keeps its likelihood's outputs in a head of its own, as vertex networks do."""

    def with_head(self, likelihood: Likelihood, seed: int = 0) -> nn.Module:
        """A copy whose head gives another likelihood, drawn anew from `seed`."""
        ...


@dataclass(frozen=True)
class Gaussian(GaussianLikelihood):
    """As its parent, of a head that was asked for: a network of two classes with it is refused."""


@dataclass(frozen=True, kw_only=True)
class BetaGaussian(GaussianLikelihood):
    """Mean and log-variance; loss: the likelihood weighed by sigma^(2 beta), without gradient.

    With beta 0 it is the negative log-likelihood, where an event that is thought noisy pulls
    little at the mean, so a poor mean stays poor and is explained as noise; with 1 the mean is
    trained as by squared errors. In between both are had. The weights are divided by their mean
    over the batch, so that the loss does not depend on the target's unit; in batches of one event
    it is therefore the likelihood.

    Source: Seitzer et al. 2022, arXiv:2203.09168.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(
                f"beta must lie between 0 (likelihood) and 1 (squared errors), got {self.beta}"
            )

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = self.split(raw)
        each = 0.5 * (log_variance + (y - mean) ** 2 * torch.exp(-log_variance))
        with torch.no_grad():
            weight = torch.softmax(self.beta * log_variance, 0)
        return (weight * each).sum()


@dataclass(frozen=True)
class Crps(GaussianLikelihood):
    """Mean and log-variance; loss: the CRPS over sigma, sigma in the divisor taken as a constant.

    An event far off pulls with a bounded force, where the likelihood's grows with its square: a
    few percent of wholly wrong events do not widen every sigma. `models.likelihood.GaussianCrps`
    is the same for sigma and leaves the mean alone.

    Source: Gneiting and Raftery 2007, doi:10.1198/016214506000001437.
    """

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = self.split(raw)
        return scaled_crps(mean - y, log_variance / 2).mean()


@dataclass(frozen=True, kw_only=True)
class Quantiles(Likelihood):
    """Quantiles at rising `levels`; loss: the pinball loss, mean over levels and events.

    max(l (y - q), (l - 1) (y - q)) for each level l, over the batch's mean distance of the
    outermost quantiles (without gradient), so that it does not depend on the target's unit.
    Crossing quantiles are sorted. Several passes state the average of their quantiles, level by
    level (Vincent averaging): their disagreement moves and does not widen the table, which
    therefore cannot tell noise from ignorance.

    Source: Koenker and Bassett 1978, doi:10.2307/1913643; sorting: Chernozhukov et al. 2010,
    doi:10.3982/ECTA7880.
    """

    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels, np.float64)
        rising = levels.ndim == 1 and len(levels) >= 2 and bool(np.all(np.diff(levels) > 0))
        if not rising or not levels[0] > 0 or not levels[-1] < 1:
            raise ConfigError(
                "quantile levels must be two or more, rise, and lie strictly between 0 and 1, "
                f"got {self.levels}"
            )

    @property
    def outputs(self) -> int:
        return len(self.levels)

    @property
    def unit(self) -> tuple[float, ...]:
        return tuple(NormalDist().inv_cdf(level) for level in self.levels)

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        away = y[:, None] - raw
        level = torch.tensor(self.levels, dtype=raw.dtype, device=raw.device)
        width = (raw[:, -1] - raw[:, 0]).detach().abs().mean().clamp(min=TINY)
        return torch.maximum(level * away, (level - 1) * away).mean() / width

    def rescale(self, raw: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
        return raw * _column(std) + _column(mean)

    def predictive(self, raw: Tensor) -> Predictive:
        # One table sorts itself; only before an average must each be in order.
        values = raw[0].double() if len(raw) == 1 else raw.double().sort(-1).values.mean(0)
        return QuantileTable(np.array(self.levels), values.detach().cpu().numpy())


@dataclass(frozen=True, kw_only=True)
class Evidential(Likelihood):
    """Normal-inverse-gamma prior of mean and variance; the prediction is its Student-t marginal.

    raw -> gamma, nu = softplus, alpha = 1 + softplus, beta = exp (a log-scale, which makes the
    family closed under rescaling). Location gamma, dof 2 alpha, scale^2 = beta (1 + nu) /
    (nu alpha); aleatoric variance beta / (alpha - 1), epistemic beta / (nu (alpha - 1)).
    Loss: negative log-likelihood of the marginal + `strength` x |y - gamma| / scale x
    (2 nu + alpha). The published regulariser has |y - gamma| in the target's unit; here it is over
    the marginal's scale, without gradient, as Meinert et al. propose, so that no unit matters.

    The parts are not to be taken at their word: the marginal is the same along a curve of
    (nu, alpha, beta), so data alone do not fix nu, and the regulariser decides (Meinert et al.).

    Several passes: location, total variance and its parts by the law of total variance; dof their
    mean. Source: Amini et al. 2020, arXiv:1910.02600; criticism: Meinert et al. 2023,
    arXiv:2205.10060.
    """

    strength: float = 0.01

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise ConfigError(
                f"the evidence regulariser's strength must be 0 or more, got {self.strength}"
            )

    @property
    def outputs(self) -> int:
        return 4

    @property
    def unit(self) -> tuple[float, ...]:
        # nu = 1 and alpha = 2, so that beta = 1 / 2 gives the variance 1.
        one = math.log(math.expm1(1 - LEAST_EVIDENCE))
        return (0.0, one, one, math.log(0.5))

    def split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gamma, nu, alpha, beta."""
        evidence = functional.softplus(raw[..., 1:3]) + LEAST_EVIDENCE
        beta = torch.exp(raw[..., 3].clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT))
        return raw[..., 0], evidence[..., 0], 1 + evidence[..., 1], beta

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        gamma, nu, alpha, beta = self.split(raw)
        omega = 2 * beta * (1 + nu)
        away = y - gamma
        nll = (
            0.5 * torch.log(math.pi / nu)
            - alpha * torch.log(omega)
            + (alpha + 0.5) * torch.log(nu * away**2 + omega)
            + torch.lgamma(alpha)
            - torch.lgamma(alpha + 0.5)
        )
        if not self.strength:
            return nll.mean()
        scale = torch.sqrt(beta * (1 + nu) / (nu * alpha)).detach()
        return (nll + self.strength * away.abs() / scale * (2 * nu + alpha)).mean()

    def rescale(self, raw: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
        wide = torch.as_tensor(std, dtype=raw.dtype, device=raw.device)
        first, last = raw[:, 0] * wide + mean, raw[:, 3] + 2 * torch.log(wide)
        return torch.cat([first[:, None], raw[:, 1:3], last[:, None]], 1)

    def predictive(self, raw: Tensor) -> Predictive:
        parts = (part.detach().double().cpu().numpy() for part in self.split(raw))
        gamma, nu, alpha, beta = parts
        noise = beta / (alpha - 1)
        ignorance, dof = noise / nu, 2 * alpha
        if len(raw) == 1:
            location, noise, ignorance, dof = gamma[0], noise[0], ignorance[0], dof[0]
        else:
            location, noise, dof = gamma.mean(0), noise.mean(0), dof.mean(0)
            ignorance = ignorance.mean(0) + gamma.var(0)
        scale = np.sqrt((noise + ignorance) * (dof - 2) / dof)
        return StudentT(location, scale, dof, (noise, ignorance))


def _column(value: Tensor | float) -> Tensor | float:
    """A number, or one per event, to be broadcast over an event's outputs."""
    return value[:, None] if isinstance(value, Tensor) and value.ndim else value


def with_head(
    network: nn.Module, likelihood: Likelihood, *, layer: str | None = None, seed: int = 0
) -> nn.Module:
    """A copy of the network whose last layer gives the likelihood's parameters.

    The last `nn.Linear` (or that of the name `layer`) is replaced by one of `likelihood.outputs`
    outputs, drawn from `seed` about mean 0 and deviation 1; the copy's `likelihood` says what
    they mean. A network with a head of its own (`HasHead`) replaces that. `WithNoise` is taken
    off: the head states the noise. All other weights are kept. `ConfigError` for a network
    without such a layer, and for one of several passes.
    """
    network = plain(network, "a head")
    if isinstance(network, HasHead):
        if layer is not None:
            raise ConfigError(
                f"{type(network).__name__} has a head of its own, so no layer can be named; "
                f"got {layer!r}"
            )
        return network.with_head(likelihood, seed)
    if isinstance(network, WithNoise):
        network = network.network
    name, last = last_linear(network, layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(last.in_features, likelihood.unit)
    head = head.to(device=last.weight.device, dtype=last.weight.dtype)
    twin = replaced(copy_network(network), name, head.train(last.training))
    twin.likelihood = likelihood  # type: ignore[assignment]
    return twin


def GaussianHead(network: nn.Module, *, layer: str | None = None, seed: int = 0) -> nn.Module:
    """Mean and log-variance by negative log-likelihood (Nix and Weigend 1994).

    `layer`, `seed`: see `with_head`. Cannot tell noise from ignorance. doi:10.1109/ICNN.1994.374138
    """
    return with_head(network, Gaussian(), layer=layer, seed=seed)


def BetaGaussianHead(
    network: nn.Module, beta: float = 0.5, *, layer: str | None = None, seed: int = 0
) -> nn.Module:
    """Mean and log-variance by the beta-weighed likelihood: see `BetaGaussian`, `with_head`."""
    return with_head(network, BetaGaussian(beta=beta), layer=layer, seed=seed)


def CrpsHead(network: nn.Module, *, layer: str | None = None, seed: int = 0) -> nn.Module:
    """Mean and log-variance by the CRPS: see `Crps`, `with_head`."""
    return with_head(network, Crps(), layer=layer, seed=seed)


def QuantileHead(
    network: nn.Module,
    levels: Sequence[float] = LEVELS,
    *,
    layer: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """Quantiles by the pinball loss: see `Quantiles`, `with_head`."""
    return with_head(network, Quantiles(levels=tuple(levels)), layer=layer, seed=seed)


def EvidentialHead(
    network: nn.Module, strength: float = 0.01, *, layer: str | None = None, seed: int = 0
) -> nn.Module:
    """Student-t from a normal-inverse-gamma: see `Evidential`, `with_head`."""
    return with_head(network, Evidential(strength=strength), layer=layer, seed=seed)
