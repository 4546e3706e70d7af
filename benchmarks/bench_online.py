"""Online steps against a plain PyTorch loop of the same arithmetic: CPU time, rounds in turn.

Network 3-10-10-2 with a Gaussian likelihood, SGD, one thread; without clipping the final weights
of both are the same bit for bit. Replay: as many remembered events as new ones (at most 100).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import nn

from stillfit.core.events import Examples
from stillfit.core.values import Budget
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Regression
from stillfit.streams.store import Keeping
from stillfit.updaters.online import OnlineFineTune, OnlineReplay

Row = tuple[str, float, str]
TASK = Regression(features=("a", "b", "c"))
RATE, STEPS, ROUNDS = 0.01, {1: 600, 256: 60}, 5


def examples(n: int, first: int) -> Examples:
    """A smooth function of three features with noise."""
    rng = np.random.default_rng(first)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    y = x[:, 0] - 0.5 * x[:, 1] ** 2 + 0.1 * rng.normal(size=n)
    columns = {name: x[:, k].copy() for k, name in enumerate(TASK.features)}
    return Examples(np.arange(first, first + n), columns, {"y": y}, np.zeros(n), np.full(n, "n"))


def plainly(serving: Model, fresh: Examples, batch: int, old: Examples | None, clip: float) -> None:
    """The loop that everyone writes, tensors made beforehand; with `old`, batches are joined."""
    network = serving.copy().network.train()
    x, y = _tensors(fresh)
    parameters = list(network.parameters())
    optimiser = torch.optim.SGD(parameters, lr=RATE)
    past = None if old is None else _tensors(old)
    for inputs, truth in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        if past is not None:
            rows = torch.randperm(len(past[0]))[:batch]
            inputs = torch.cat([inputs, past[0][rows]])
            truth = torch.cat([truth, past[1][rows]])
        out = network(inputs)
        log_variance = out[:, 1].clamp(-20, 20)
        loss = 0.5 * (log_variance + (truth - out[:, 0]) ** 2 * torch.exp(-log_variance)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip < np.inf:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()


def _tensors(data: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    x = np.stack([np.asarray(data.inputs[name]) for name in TASK.features], 1)
    return torch.from_numpy(x), torch.from_numpy(np.asarray(data.targets["y"], np.float32))


def _seconds(what: Callable[[], object]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


def run() -> list[Row]:
    """Times of ours over times of the plain loop: the target is at most 1.15."""
    torch.manual_seed(0)
    serving = Model(MLP(3, [10, 10], 2).eval(), TASK, Architecture("mlp"))
    old, nothing = examples(100, 10**7), Keeping(budget_bytes=10**6).empty().training
    rows: list[Row] = []
    for batch, steps in STEPS.items():
        fresh = examples(batch * steps, batch)
        for clip in (np.inf, 10.0):
            tune = OnlineFineTune(batch=batch, rate=RATE, clip=clip)
            replay = OnlineReplay(batch=batch, rate=RATE, clip=clip, replay=min(batch, 100))
            for updater, past in ((tune, None), (replay, old)):
                rng = np.random.default_rng(0)
                learner = {} if past is None else updater.begin(serving, old, rng=rng)
                plain = partial(plainly, serving, fresh, batch, past, clip)
                ours = partial(
                    updater.update, serving, learner, fresh, nothing, budget=Budget(), rng=rng
                )
                quotients = [_seconds(ours) / _seconds(plain) for _ in range(ROUNDS)]
                what = f"{type(updater).__name__}, batch {batch}, clip {clip:g}"
                rows.append((f"{what}: time over a plain loop's", median(quotients), "x"))
    return rows
