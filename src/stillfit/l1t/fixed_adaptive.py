"""The adaptive vertex network with its dense parts in fixed point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.l1t.adaptive import N_FEATURES, AdaptiveE2E
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import FixedPattern, fit_ranges, fixed_e2e
from stillfit.models.fixed.conversion import convert
from stillfit.models.fixed.layers import FixedLayer, Precision
from stillfit.models.fixed.quantisers import Quantiser
from stillfit.models.model import Architecture, Model

ASSOCIATED = 6  # inputs of the association network


class FixedAdaptiveE2E(AdaptiveE2E):
    """`AdaptiveE2E` whose trunk, heads, filter and association are in fixed point.

    Each feature and each head (a track's weight, its log sigma) has a format of its own. `integer`
    of `tracker()` and of `associate` are exact models of the 1352 multiplications per track. What
    lies between them (features from the track word, sigma = exp(log sigma), the weighted mean of
    the position, ratios and logarithms as inputs of the association) is floating point here; a
    chip would look it up, so there is no whole-number chain of this network.

    `precision`, `features`, `taps`: see `FixedE2E`.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.3,
        seed: int = 0,
        precision: Mapping[str, Any] | None = None,
        features: int | None = None,
        taps: int = 8,
    ) -> None:
        super().__init__(temperature=temperature, seed=seed)
        chosen = Precision(**(precision or {}))
        modes: dict[str, Any] = {"rounding": chosen.rounding, "overflow": chosen.overflow}
        self.trunk = convert(self.trunk, chosen)
        self.associate = convert(self.associate, chosen)
        heads = convert(nn.Sequential(self.heads), chosen)
        self.heads = nn.Sequential(  # type: ignore[assignment]
            *heads, Quantiser(chosen.inputs, channels=2, signed=True, **modes)
        )
        for first, n in ((self.trunk[0], N_FEATURES), (self.associate[0], ASSOCIATED)):
            first.on_input = Quantiser(features or chosen.inputs, channels=n, **modes)
        self.pattern = FixedPattern(temperature, chosen, taps)
        self.pattern.fit()
        for name, module in self.named_modules():
            if isinstance(module, FixedLayer):
                module.label = name

    def tracker(self) -> nn.Sequential:
        """Trunk and heads as one: features to weight (before its ReLU) and log sigma."""
        return nn.Sequential(*self.trunk, *self.heads)  # type: ignore[misc]


def fixed_adaptive(model: Model, **arguments: Any) -> Model:
    """A float `AdaptiveE2E` model in fixed point; as `fixed.fixed_e2e`."""
    if type(model.network) is not AdaptiveE2E:
        raise ConfigError(
            f"this converts an AdaptiveE2E network, not {type(model.network).__name__}; "
            "fixed_vertex chooses by the network"
        )
    given = {"temperature": model.network.pattern.temperature, **arguments}
    seed = model.architecture.arguments.get("seed")
    if isinstance(seed, int):
        given["seed"] = seed
    network = FixedAdaptiveE2E(**given)
    own = network.state_dict()
    for name, value in model.network.state_dict().items():
        own[name.replace("heads.", "heads.0.")] = value.clone()
    network.load_state_dict(own)
    fit_ranges(network)
    return Model(network.eval(), model.task, Architecture("l1t.fixed-adaptive", given))


def fixed_vertex(model: Model, **arguments: Any) -> Model:
    """The fixed-point form of a float vertex network of either kind."""
    if type(model.network) is E2E:
        return fixed_e2e(model, **arguments)
    return fixed_adaptive(model, **arguments)
