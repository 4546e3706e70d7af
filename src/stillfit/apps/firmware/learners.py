"""A strategy's device as the plain numbers that C and circuits are written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stillfit.apps.firmware.version import StoredNetwork
from stillfit.apps.runfile import read
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.tables import did_you_mean
from stillfit.firmware.c99 import Learner, Scales
from stillfit.firmware.c99.learning import KEEPS, KINDS, LOSSES, ROUNDINGS
from stillfit.models.model import Model
from stillfit.updaters.embedded import EmbeddedLearner, fixed
from stillfit.updaters.embedded import device as devices
from stillfit.updaters.embedded.dense import Dense, dense_of, part_of
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


def going_on(
    stored: StoredNetwork, run: Path, updater: str
) -> tuple[EmbeddedLearner, Device, Plan]:
    """An embedded updater of a run file, and the device as it goes on from a stored version.

    That is the state stored with the version where it is its own, else a device switched on.
    `ConfigError` where the run file has no such updater.
    """
    settings = read(run)
    embedded = [n for n, rung in settings.rungs.items() if isinstance(rung, EmbeddedLearner)]
    learner = settings.rungs.get(updater)
    if not isinstance(learner, EmbeddedLearner):
        raise ConfigError(
            f"{run.name} has no embedded updater {updater!r}{did_you_mean(updater, embedded)}; "
            f"its embedded ones: {', '.join(embedded) or 'none'}"
        )
    model = stored.model
    device, plan = learner.switched_on(model, np.random.default_rng(settings.head.seed))
    part = part_of(model, Examples.empty())
    if "random" in stored.learner and "weights" in stored.learner and not isinstance(part, str):
        was = devices.restore(device, stored.learner)
        # It is this version's own state if it says the same numbers, finer as they may be.
        mine, its = (part.named(learner.numbers.floats(one.weights)) for one in (device, was))
        if all(np.array_equal(mine[name], its[name]) for name in mine):
            device = was
    return learner, device, plan
