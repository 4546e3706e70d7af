"""A strategy's device as the plain numbers that C is written from."""

from __future__ import annotations

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.firmware.c99 import Learner, Scales
from stillfit.firmware.c99.learning import KEEPS, KINDS, LOSSES, ROUNDINGS
from stillfit.models.model import Model
from stillfit.updaters.embedded import fixed
from stillfit.updaters.embedded.dense import Dense, dense_of
from stillfit.updaters.embedded.kernels import Device, Plan


def described(device: Device, plan: Plan, dense: Dense | None = None) -> Learner:
    """The device as it stands; with `dense`, the scales of its inputs and target, too."""
    arrays = {name: array for name, array in device._asdict().items() if name != "sizes"}
    return Learner(
        kind=KINDS[plan.kind],
        loss=LOSSES[plan.loss],
        sizes=tuple(int(n) for n in device.sizes),
        width=plan.high.bit_length() + 1,
        fraction=plan.fraction,
        rounding=ROUNDINGS[plan.mode],
        rate=plan.rate,
        first=plan.first,
        learn_noise=bool(plan.learn_noise),
        shrink=plan.shrink,
        score=plan.score,
        forgetting=plan.forgetting,
        inverse=plan.inverse,
        inverse_root=plan.inverse_root,
        start=plan.start,
        floor=plan.floor,
        keep=KEEPS[plan.keep],
        capacity=plan.capacity,
        groups=plan.groups,
        replays=plan.replays,
        store_shift=plan.store_shift,
        log2_e=fixed.LOG2_E,
        ln_2=fixed.LN_2,
        arrays=arrays,
        scales=None
        if dense is None
        else Scales(
            mean=dense.mean,
            std=dense.std,
            target_mean=dense.target_mean,
            target_std=dense.target_std,
        ),
    )


def dense_in(model: Model) -> Dense:
    """The dense layers of a stored network; `ConfigError` where a device cannot hold it."""
    dense = dense_of(model, Examples.empty())
    if isinstance(dense, str):
        raise ConfigError(dense)
    return dense
