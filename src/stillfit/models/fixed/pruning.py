"""Iterative magnitude pruning: small weights become zeros that no later training brings back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from stillfit.core.errors import ConfigError
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.model import Model
from stillfit.models.training import Prepared, Schedule, fit


@dataclass(frozen=True, kw_only=True)
class MagnitudePruning:
    """Train, mask the smallest weights, train on; `steps` times, each a little more.

    Size counts relative to the layer's largest weight. With `density`, step s of S leaves a share
    1 - (1 - density) (1 - (1 - s/S)^3) of the weights of all chosen layers together (Zhu and
    Gupta 2017, arXiv:1710.01878: much at first, while there is much to spare). Else step s masks
    what is below `threshold` s/S, as the E2E authors did (0 to 0.12 in 8 steps). A lower density
    is a smaller circuit and a worse network; more steps lose less at the same density.

    `layers`: prefixes of the layers that are pruned (all, if none). Masked weights stay masked.
    Cost: `steps` trainings of `schedule`.
    """

    steps: int = 8
    threshold: float = 0.12
    density: float | None = None
    layers: tuple[str, ...] = ()
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=60, rate=0.002))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"pruning needs at least one step, got {self.steps}")
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(
                f"a density of {self.density} cannot be kept; give the share of weights that "
                "stay, above 0 and at most 1"
            )
        if not 0 <= self.threshold < 1:
            raise ConfigError(
                f"a relative threshold of {self.threshold} would prune every weight or none; "
                "give one from 0 to below 1"
            )

    def prune(
        self,
        model: Model,
        data: Prepared,
        rng: np.random.Generator,
        rates: Mapping[str, float] | None = None,
    ) -> Model:
        """A pruned copy, trained on `data` after each step. Same arguments, same numbers.

        `rates`: see `training.train`.
        """
        twin = model.copy()
        for step in range(1, self.steps + 1):
            self.mask(twin, step / self.steps)
            fit(twin, data, self.schedule, rng, rates=rates)
        return twin

    def mask(self, model: Model, progress: float) -> None:
        """Mask, in place, what `progress` (0 to 1) of the way asks for.

        `ConfigError` where a layer would have no weight left.
        """
        chosen = self._layers(model)
        sizes = {name: _relative(layer) for name, layer in chosen.items()}
        cut = self._cut(np.concatenate([size.ravel() for size in sizes.values()]), progress)
        for name, layer in chosen.items():
            stay = torch.from_numpy(sizes[name] >= cut).to(layer.mask.device)
            kept = layer.mask & stay
            if not bool(kept.any()):
                raise ConfigError(
                    f"pruning would leave no weight of {name}, so its output would be constant; "
                    "ask for more density or a lower threshold"
                )
            layer.mask.copy_(kept)

    def _layers(self, model: Model) -> dict[str, FixedLayer]:
        found = {
            name: layer
            for name, layer in model.network.named_modules()
            if isinstance(layer, FixedLayer) and (not self.layers or name.startswith(self.layers))
        }
        if not found:
            raise ConfigError(
                f"there is no fixed-point layer under {', '.join(self.layers) or 'the network'}; "
                "convert the network first, and name layers as named_modules() does"
            )
        return found

    def _cut(self, sizes: np.ndarray, progress: float) -> float:
        """The relative size below which weights go."""
        if self.density is None:
            return self.threshold * progress
        share = 1 - (1 - self.density) * (1 - (1 - progress) ** 3)
        keep = max(1, math.floor(share * len(sizes) + 1e-9))
        return float(np.partition(sizes, len(sizes) - keep)[len(sizes) - keep])


def _relative(layer: FixedLayer) -> np.ndarray:
    """|w| over the layer's largest, 0 where it is masked."""
    size = (layer.weight * layer.mask).detach().abs().double().cpu().numpy()
    # A masked weight must not tie with a kept one of size zero.
    relative: np.ndarray = np.where(
        layer.mask.cpu().numpy(), size / max(float(size.max()), 1e-30), -1.0
    )
    return relative
