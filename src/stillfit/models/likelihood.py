"""What the last outputs of a regression network mean: the family of its predictive distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.errors import ShapeError
from stillfit.core.predictive import Mixture, Predictive

# A log-variance beyond +-20 is a diverged network, not a statement about noise.
LOG_VARIANCE_LIMIT = 20.0
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


class Likelihood(ABC):
    """A family of distributions whose parameters a network gives, `outputs` numbers per event.

    A frozen dataclass without state. `raw`: a network's outputs, shape (n, outputs).
    """

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Numbers per event."""

    @property
    @abstractmethod
    def unit(self) -> tuple[float, ...]:
        """The `raw` of mean 0 and standard deviation near 1, where training starts."""

    @abstractmethod
    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        """Mean training loss of targets `y` (n,), a scalar."""

    @abstractmethod
    def rescale(self, raw: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
        """`raw` of the distribution of mean + std * Y, where Y has `raw`; mean, std: () or (n,)."""

    @abstractmethod
    def predictive(self, raw: Tensor) -> Predictive:
        """The distribution that `m` passes state together; `raw` has shape (m, n, outputs)."""

    def check(self, raw: Tensor, n: int) -> Tensor:
        """`raw` itself; `ShapeError` where a network does not give what this family needs."""
        if raw.ndim != 2 or tuple(raw.shape) != (n, self.outputs):
            raise ShapeError(
                f"a regression network with {type(self).__name__} must return (n, {self.outputs}), "
                f"for {n} events it gave {tuple(raw.shape)}; wrap one of a single output in "
                "WithNoise, or convert it with a head of stillfit.uncertainty"
            )
        return raw


class GaussianLikelihood(Likelihood):
    """Mean and log-variance; loss: negative log-likelihood without its constant.

    Source: Nix and Weigend 1994, doi:10.1109/ICNN.1994.374138.
    """

    @property
    def outputs(self) -> int:
        return 2

    @property
    def unit(self) -> tuple[float, ...]:
        return (0.0, 0.0)

    def split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance."""
        return raw[..., 0], raw[..., 1].clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = self.split(raw)
        return 0.5 * (log_variance + (y - mean) ** 2 * torch.exp(-log_variance)).mean()

    def rescale(self, raw: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
        wide = torch.as_tensor(std, dtype=raw.dtype, device=raw.device)
        return torch.stack([raw[:, 0] * wide + mean, raw[:, 1] + 2 * torch.log(wide)], 1)

    def predictive(self, raw: Tensor) -> Predictive:
        mean, log_variance = (_members_last(part) for part in self.split(raw.double()))
        return Mixture(mean, np.exp(log_variance))


class GaussianCrps(GaussianLikelihood):
    """Mean and log-variance; loss: the CRPS over sigma, sigma taken as a constant.

    With u = (y - mean) / sigma: u (2 Phi(u) - 1) + 2 phi(u) - 1 / sqrt(pi). It is not ruled by
    the few events that are wholly wrong, as the likelihood is; the division weighs sure and
    unsure events alike and leaves the best sigma of each kind of event as it is. It trains sigma
    alone: over sigma, the score of the mean would ask for wide sigmas, so the mean is detached.
    Source of the score: Gneiting and Raftery 2007, doi:10.1198/016214506000001437.
    """

    def loss(self, raw: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = self.split(raw)
        return scaled_crps(mean.detach() - y, log_variance / 2).mean()


def scaled_crps(away: Tensor, log_sigma: Tensor) -> Tensor:
    """CRPS of a Gaussian at a distance `away` from its mean, over sigma (taken as a constant)."""
    sigma = torch.exp(log_sigma)
    u = away / sigma
    crps = u * torch.erf(u / math.sqrt(2)) + 2 * INV_SQRT_2PI * torch.exp(-0.5 * u**2)
    return (crps - 1 / math.sqrt(math.pi)) * sigma / sigma.detach()


def _members_last(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy().T)


GAUSSIAN = GaussianLikelihood()


def likelihood_of(network: nn.Module) -> Likelihood:
    """What a network's outputs mean: its attribute `likelihood`, Gaussian unless it has one."""
    found = getattr(network, "likelihood", None)
    return found if isinstance(found, Likelihood) else GAUSSIAN
