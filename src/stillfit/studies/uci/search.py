"""How strongly to hold the weights down: cross-validation inside the training part of a split.

All candidates (strengths x folds x repeats) are plain networks of the same shape, so they are
trained side by side, each on its own rows. Rows of the test part are never read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillfit.core.predictive import Floats, Predictive, QuantileTable
from stillfit.core.seeds import Seeds
from stillfit.models.networks import MLP
from stillfit.models.training import Schedule
from stillfit.studies.uci.data import Rows, Table
from stillfit.studies.uci.together import Job, drawn, fit_together
from stillfit.uncertainty.calibrators import VarianceScaling
from stillfit.uncertainty.heads import BetaGaussian, with_head

WORST = -1e30  # the score of a candidate that diverged


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The fixed recipe of the study: what is decided beforehand, and what each split decides.

    Sets of up to `small` training rows: `epochs` of Adam on batches of `batch` rows; larger ones
    `steps_large` of `batch_large`. `rate` falls to zero along a half cosine. The strength of the
    weight decay (factor on the sum of squared weights, beside the mean loss per row) is chosen per
    split: small sets from `decays` by `folds`-fold cross-validation of the training part, larger
    ones from `decays_large` on a share `held_out` of it. `repeats`: networks per candidate, whose
    mixture is judged too, for methods of several members. The same share `held_out` gives every
    method its factor on the standard deviation, before it is trained again on all rows.
    `together`: splits whose networks are trained side by side, and end together.
    """

    decays: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    epochs: int = 300
    batch: int = 64
    rate: float = 0.02
    small: int = 2000
    # A prior of the weights counts for less the more rows there are.
    decays_large: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    steps_large: int = 8000
    batch_large: int = 256
    rate_large: float = 0.01
    folds: int = 3
    repeats: int = 3
    held_out: float = 0.2
    together: int = 20
    seed: int = 1

    def schedule(self, rows: int) -> Schedule:
        """How a network is trained on `rows` rows."""
        if rows <= self.small:
            steps = self.epochs * rows // min(self.batch, rows)
            return Schedule(steps=steps, batch=self.batch, rate=self.rate, clip=1.0)
        return Schedule(
            steps=self.steps_large, batch=self.batch_large, rate=self.rate_large, clip=1.0
        )

    def parts(self, rows: int, rng: np.random.Generator, folds: int = 1) -> list[tuple[Rows, Rows]]:
        """(trained, held out) rows of each fold, or with one fold of a share `held_out`."""
        order = rng.permutation(rows)
        size = max(1, round(self.held_out * rows))
        held = np.array_split(order, folds) if folds > 1 else [order[:size]]
        return [(np.setdiff1d(order, part), np.sort(part)) for part in held]


class Candidate(NamedTuple):
    """A strength and its score on rows held out, of one network and of the repeats' mixture."""

    decay: float
    single: float
    mixed: float


def search(table: Table, rows: Rows, recipe: Recipe, seeds: Seeds) -> list[Candidate]:
    """The score of every strength of `recipe`, from the rows of one training part alone.

    The networks state mean and log-variance and are trained by the beta-weighed likelihood.
    """
    likelihood = BetaGaussian()
    small = len(rows) <= recipe.small
    decays = recipe.decays if small else recipe.decays_large
    parts = recipe.parts(len(rows), seeds.rng("folds"), recipe.folds if small else 1)
    plain = with_head(MLP(table.x.shape[1], [table.hidden]), likelihood)
    places = list(itertools.product(decays, range(recipe.repeats), range(len(parts))))
    jobs = [
        drawn(
            plain, table, rows[parts[fold][0]], decay, seeds.integer("start", str(decay), k, fold)
        )
        for decay, k, fold in places
    ]
    schedule = recipe.schedule(min(len(inside) for inside, _ in parts))
    finite = fit_together(jobs, table, schedule, seeds.rng("fit"))
    raw = dict(zip(places, (_raw(job, table, rows) for job in jobs), strict=True))
    truth = np.concatenate([table.y[rows[held]] for _, held in parts])
    found = []
    for decay in decays:
        own = torch.stack(
            [
                torch.cat([raw[decay, k, f][held] for f, (_, held) in enumerate(parts)])
                for k in range(recipe.repeats)
            ]
        )
        if all(ok for ok, place in zip(finite, places, strict=True) if place[0] == decay):
            single = np.mean([score(likelihood.predictive(one[None]), truth) for one in own])
            mixed = score(likelihood.predictive(own), truth)
            found.append(Candidate(decay, float(single), mixed))
        else:
            found.append(Candidate(decay, WORST, WORST))
    return found


def _raw(job: Job, table: Table, rows: Rows) -> Tensor:
    x = torch.from_numpy(table.x[rows].astype(np.float32))
    with torch.inference_mode():
        return torch.cat([job.model.network(piece) for piece in torch.split(x, 4096)]).double()


def best(candidates: Sequence[Candidate], *, mixed: bool) -> float:
    """The strength of the best score."""
    return max(candidates, key=lambda c: c.mixed if mixed else c.single).decay


def score(predictive: Predictive, truth: Floats) -> float:
    """Mean log-density after one factor on the standard deviation, minus ln RMSE, in nats.

    So both figures of the benchmark count. Of quantile tables, whose density may be 0, minus
    ln CRPS stands in the place of the first.
    """
    rmse = float(np.sqrt(np.mean((predictive.mean - truth) ** 2)))
    calibrator = calibrator_for(predictive)
    fitted = calibrator.apply(calibrator.fit(predictive, truth), predictive)
    if isinstance(fitted, QuantileTable):
        first = -math.log(float(fitted.crps(truth).mean()))
    else:
        first = float(fitted.log_prob(truth).mean())
    return max(first - math.log(rmse), WORST)


def calibrator_for(predictive: Predictive) -> VarianceScaling:
    """The factor of the largest likelihood, or of the right variance where there is none."""
    table = isinstance(predictive, QuantileTable)
    return VarianceScaling(method="moment" if table else "likelihood", least=1)
