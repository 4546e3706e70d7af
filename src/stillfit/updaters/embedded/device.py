"""The static arrays of a device, their bytes, and the multiplications of a learning step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.errors import DataError
from stillfit.updaters.embedded import fixed, kernels
from stillfit.updaters.embedded.fixed import Format
from stillfit.updaters.embedded.kernels import Device, Plan

# What a device keeps from one example to the next, and so from one update to the next.
STATE = ("weights", "feedback", "covariance", "kept_x", "kept_t", "counts", "random", "guards")
_CONSTANT = ("sizes", "feedback", "powers", "logarithms")


@dataclass(frozen=True)
class Account:
    """What learning on a device needs, before it runs.

    `ram`, `constants`: bytes of each static array that changes, and that does not. `macs`: the
    most multiplications per example, replayed ones included. `stored`: examples of the memory.
    """

    ram: Mapping[str, int]
    constants: Mapping[str, int]
    macs: int
    stored: int

    @property
    def ram_bytes(self) -> int:
        return sum(self.ram.values())

    @property
    def constant_bytes(self) -> int:
        return sum(self.constants.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:,}" for name, size in self.ram.items())
        return f"{self.ram_bytes:,} bytes of RAM ({parts}), {self.macs:,} MACs per example"


def build(
    plan: Plan, sizes: tuple[int, ...], numbers: Format, weights: Array, random: Array
) -> Device:
    """A device with all its arrays; feedback, covariance and memory are zeros."""
    n = sizes[-2] + 1 if plan.kind == kernels.LEAST_SQUARES else 0
    sent = 1 if plan.loss == kernels.GAUSSIAN else sizes[-1]
    learning = sizes[1 + plan.first :] if plan.kind != kernels.PERTURBATION else ()
    feedback = sent * sum(sizes[1:-1]) if plan.kind == kernels.FEEDBACK else 0
    return Device(
        sizes=np.array(sizes, np.int32),
        weights=weights.astype(numbers.dtype),
        values=np.zeros(sum(sizes), numbers.dtype),
        errors=np.zeros(sum(learning), numbers.dtype),
        feedback=np.zeros(feedback, numbers.dtype),
        covariance=np.zeros(n * n, np.int32),
        products=np.zeros(n, np.int32),
        gains=np.zeros(n, np.int32),
        kept_x=np.zeros((plan.capacity, sizes[0]), fixed.word(numbers.width - plan.store_shift)),
        kept_t=np.zeros(plan.capacity, numbers.dtype),
        counts=np.zeros(plan.groups if plan.capacity else 0, np.uint32),
        random=random.astype(np.uint32),
        guards=np.zeros(2 if n else 0, np.uint32),
        powers=fixed.POWERS.copy(),
        logarithms=fixed.LOGARITHMS.copy(),
    )


def account(device: Device, plan: Plan) -> Account:
    """Bytes of the arrays as they lie there, and multiplications by the loops' bounds."""
    sizes = [int(n) for n in device.sizes]
    ram: dict[str, int] = {}
    constants: dict[str, int] = {}
    for name, array in device._asdict().items():
        (constants if name in _CONSTANT else ram)[name] = int(array.nbytes)
    frozen = sum(
        (n + 1) * m for n, m in list(pairwise(sizes))[: plan.first]
    ) * device.weights.itemsize  # fmt: skip
    ram["weights"] -= frozen
    constants["frozen weights"] = frozen
    constants["input scales"] = 2 * 4 * sizes[0]  # mean and 1 / std as float32
    return Account(
        {name: size for name, size in ram.items() if size},
        {name: size for name, size in constants.items() if size},
        macs_of(sizes, plan) * (1 + plan.replays),
        plan.capacity,
    )


def macs_of(sizes: list[int], plan: Plan) -> int:
    """The most multiplications of one learning step; a test compares them with those counted."""
    pairs = list(pairwise(sizes))
    forward = sum(n * m for n, m in pairs)
    if plan.kind == kernels.PERTURBATION:
        return 2 * forward
    m, n = sizes[-1], sizes[-2] + 1
    sent = 1 if plan.loss == kernels.GAUSSIAN else m
    if plan.kind == kernels.LEAST_SQUARES:
        triangle = n * (n + 1) // 2 * (1 if plan.inverse == 1 << fixed.RATE_BITS else 2)
        return forward + n * (n - 1) + (n - 1) + m * n + triangle
    updates = sum((n + 1) * m for n, m in pairs[plan.first :])
    if plan.kind == kernels.FEEDBACK:
        return forward + sent * sum(sizes[1:-1]) + updates
    down = [n * m for n, m in pairs[plan.first + 1 : -1]]
    last = [sizes[-2] * sent] if plan.first < len(pairs) - 1 else []
    return forward + sum(down) + sum(last) + updates


def restore(device: Device, learner: Mapping[str, Array]) -> Device:
    """The device with the state that a learner has kept; `DataError` where it is another's."""
    arrays = device._asdict()
    for name in STATE:
        was = learner.get(name, np.zeros(0, arrays[name].dtype))
        if not arrays[name].size and not was.size:
            continue
        if was.shape != arrays[name].shape or was.dtype != arrays[name].dtype:
            raise DataError(
                f"the learner's {name} are {was.dtype} {was.shape} and this strategy's "
                f"{arrays[name].dtype} {arrays[name].shape}; were its knobs changed since the "
                "version was stored? Begin anew from the serving network"
            )
        arrays[name] = was.copy()
    return Device(**arrays)


def state(device: Device) -> dict[str, Array]:
    """What must be kept to go on bit for bit."""
    arrays = device._asdict()
    return {name: arrays[name] for name in STATE if arrays[name].size}
