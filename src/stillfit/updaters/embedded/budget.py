"""What a small device allows, and what learning on it used, measured."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from stillfit.core.errors import ConfigError
from stillfit.core.values import Budget, Cost


@dataclass(frozen=True, kw_only=True)
class EmbeddedCost(Cost):
    """The cost of learning on a device.

    `macs_per_example`: multiplications of a whole learning step (forward, errors, update, and
    those of replayed examples) by the bounds of its loops; a test counts them in the loops.
    `ram_bytes`: of all static arrays that change. `constant_bytes`: of those that do not (tables,
    feedback, frozen layers, scales), which a device may keep in flash. `seconds_per_example`: on
    the machine that ran it.
    """

    ram_bytes: int = 0
    constant_bytes: int = 0
    seconds_per_example: float = 0.0
    fraction_bits: int = 0


@dataclass(frozen=True, kw_only=True)
class EmbeddedBudget(Budget):
    """Limits of a device; None is unlimited.

    Besides those of `Budget`: `ram_bytes` for weights, activations, errors and everything else
    that changes, `seconds_per_example`, and `fraction_bits` of its numbers. What is known before
    an update (all but the times) is checked before; an updater that is no embedded one is held
    to `ram_bytes` by the learner's memory alone, which is a part of what it would need.
    """

    ram_bytes: int | None = None
    seconds_per_example: float | None = None
    fraction_bits: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"a budget's {field.name} must be 0 or more, got {value}; leave it out for "
                    "no limit"
                )

    def exceeded_by(self, cost: Cost) -> str | None:
        over = super().exceeded_by(cost)
        if over is not None:
            return over
        if not isinstance(cost, EmbeddedCost):
            cost = EmbeddedCost(ram_bytes=cost.memory_bytes)
        pairs = (
            ("bytes of RAM", cost.ram_bytes, self.ram_bytes),
            ("seconds per example", cost.seconds_per_example, self.seconds_per_example),
            ("fraction bits", cost.fraction_bits, self.fraction_bits),
        )
        for name, used, limit in pairs:
            if limit is not None and used > limit:
                return f"it used {used:,.6g} {name} where the budget allows {limit:,.6g}"
        return None
