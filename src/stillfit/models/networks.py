"""Plain networks for tables: dense layers with the scaling of their inputs inside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.models.likelihood import GAUSSIAN, Likelihood

Network = TypeVar("Network", bound=nn.Module)


class Standardise(nn.Module):
    """(x - mean) / std with buffers that are set from data once, per feature.

    Scaling lives inside the network, so that a stored version needs nothing beside itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def set_from(self, x: NDArray[np.float32]) -> None:
        """Take mean and deviation from rows (n, features); a constant feature keeps std 1."""
        mean = x.mean(0, dtype=np.float64)
        std = x.std(0, dtype=np.float64)
        # A deviation that float32 cannot tell from rounding is none: dividing by it would blow up.
        std = np.where(std > 1e-6 * np.abs(mean), std, 1)
        self.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
        self.std.copy_(torch.from_numpy(std.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Head(nn.Linear):
    """A linear layer whose outputs start near `start`, with weights of `shrink` times the usual.

    A weight that starts at 0 behind its ReLU may never come alive.
    """

    def __init__(self, inputs: int, start: tuple[float, ...], shrink: float = 1.0) -> None:
        self.start, self.shrink = start, shrink
        super().__init__(inputs, len(start))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(self.shrink)
            self.bias.mul_(self.shrink).add_(torch.tensor(self.start).to(self.bias))


class MLP(nn.Module):
    """Standardised inputs, dense ReLU layers, `outputs` linear outputs, rescaled for regression.

    For regression (`outputs=2`: mean and log-variance of a Gaussian, or with another `likelihood`
    after a conversion) the target's scale is a buffer pair too, so that the network itself works
    on numbers of order one.
    """

    likelihood: Likelihood | None

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, features: int, hidden: Sequence[int] = (64, 64), outputs: int = 2) -> None:
        super().__init__()
        sizes = [features, *hidden]
        layers: list[nn.Module] = [Standardise(features)]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
        self.likelihood = GAUSSIAN if outputs == 2 else None
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))

    def set_scales(self, x: NDArray[np.float32], y: NDArray[np.float64] | None = None) -> None:
        """Scale inputs, and the target of a regression, from training rows."""
        scale = self.layers[0]
        assert isinstance(scale, Standardise)
        scale.set_from(x)
        if y is not None and self.likelihood is not None:
            mean, std = float(y.mean()), float(y.std())
            self.target_mean.fill_(mean)
            self.target_std.fill_(std if std > 1e-6 * abs(mean) else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        if self.likelihood is None:
            return out
        return self.likelihood.rescale(out, self.target_mean, self.target_std)


class WithNoise(nn.Module):
    """A network of one output with one learned log-variance for all events.

    For users' own regression networks that state no uncertainty: the noise is then constant.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_variance = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        """Unit variance; the inner network resets itself."""
        with torch.no_grad():
            self.log_variance.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        mean = out.reshape(-1)
        if len(mean) != len(x):
            raise ShapeError(
                f"WithNoise needs a network of one output per event, but {len(x)} events gave "
                f"{tuple(out.shape)}; a network of two outputs states its own noise"
            )
        return torch.stack([mean, self.log_variance.expand_as(mean)], 1)


def copy_network(network: Network) -> Network:
    """A deep copy without gradients or graph."""
    twin = copy.deepcopy(network)
    twin.zero_grad(set_to_none=True)
    return twin


def reinitialised(network: Network, seed: int) -> Network:
    """A copy with all parameters drawn anew by the modules' own `reset_parameters`.

    PyTorch's convention; a module with parameters of its own and no such method is an error,
    because a "fresh" network that keeps old weights would be a silent lie.
    """
    twin = copy_network(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in twin.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                raise ConfigError(
                    f"{type(module).__name__} ({name or 'the network'}) has parameters but no "
                    "reset_parameters(), so it cannot be trained from nothing; add that method"
                )
    return twin
