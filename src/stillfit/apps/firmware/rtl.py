"""An embedded strategy and its network as a circuit, and what the kernels do step by step."""

from __future__ import annotations

import numpy as np

from stillfit.apps.firmware.learners import described
from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.firmware.learning import LearnerDesign, Trajectory, learner_rtl
from stillfit.models.model import Model
from stillfit.updaters.contract import Updater
from stillfit.updaters.embedded import EmbeddedLearner, kernels
from stillfit.updaters.embedded.dense import part_of
from stillfit.updaters.embedded.kernels import Device, Plan


def rtl_of(
    updater: Updater, model: Model, rng: np.random.Generator, name: str = "learner"
) -> tuple[LearnerDesign, Device, Plan]:
    """The circuit of a strategy that learns on from `model`, with the device that it begins as.

    `ConfigError` for an updater that is no embedded one, a network that no device holds, a learner
    without a circuit.
    """
    if not isinstance(updater, EmbeddedLearner):
        raise ConfigError(
            f"{type(updater).__name__} does not learn in fixed point, one example at a time, so "
            "there is no circuit for it; EmbeddedSGD, EmbeddedLMS and EmbeddedRLS have one"
        )
    device, plan = updater.switched_on(model, rng)
    return circuit(updater, model, device, plan, name), device, plan


def circuit(
    updater: EmbeddedLearner, model: Model, device: Device, plan: Plan, name: str = "learner"
) -> LearnerDesign:
    """The circuit of a device as it stands; weights keep the ends that the network gives them."""
    part = part_of(model, Examples.empty())
    ends = None if isinstance(part, str) else part.ends(updater.numbers)
    return learner_rtl(described(device, plan), name, ends=ends)


def drawn(
    updater: EmbeddedLearner, device: Device, plan: Plan, n: int, seed: int
) -> tuple[Array, Array]:
    """Examples to compare with: inputs near the middle, every fourth row all over the numbers."""
    numbers, rng = updater.numbers, np.random.default_rng(seed)
    x = numbers.integers(rng.normal(size=(n, int(device.sizes[0])))).astype(np.int64)
    x[::4] = rng.integers(numbers.low, numbers.high + 1, x[::4].shape)
    if plan.loss in (kernels.MEAN, kernels.GAUSSIAN):
        t = numbers.integers(rng.normal(size=n))
    else:
        t = rng.integers(0, int(device.sizes[-1]), n)
    return x.astype(numbers.dtype), t.astype(np.int32)


def trajectory(
    device: Device, plan: Plan, x: Array, t: Array, ends: tuple[Array, Array] | None = None
) -> Trajectory:
    """What the numba kernels do with each example; changes `device` in place.

    `x` (n, inputs): integers in the device's format; `t` (n,): targets in it, or classes, int32;
    `ends`: lowest and highest number of each weight, as the design has them.
    """
    outputs, weights, random, covariance, guards = [], [], [], [], []
    for row in range(len(x)):
        one = slice(row, row + 1)
        outputs.append(kernels.answers(device, plan, x[one])[0])
        kernels.learn(device, plan, x[one], t[one], ends)
        weights.append(device.weights.copy())
        random.append(int(device.random[0]))
        covariance.append(device.covariance.copy())
        guards.append(device.guards.copy())
    least = plan.kind == kernels.LEAST_SQUARES

    def whole(rows: list[Array]) -> Array:
        return np.array(rows, np.int64)

    return Trajectory(
        x=x.astype(np.int64),
        t=t.astype(np.int64),
        outputs=whole(outputs),
        weights=whole(weights),
        random=np.array(random, np.int64),
        covariance=whole(covariance) if least else None,
        guards=whole(guards) if least else None,
    )
