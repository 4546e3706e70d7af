"""Streaming classifiers in closed form on a frozen trunk: nearest class mean and linear
discriminant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.task import truth
from stillfit.models.training import Prepared
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.online.memory import (
    LEARNED,
    ON,
    check_common,
    not_learned,
    require_finite,
    valid_for,
    with_learned,
)
from stillfit.updaters.online.sgd import finish
from stillfit.updaters.online.trunk import Floats, Trunk

UNSEEN = -100.0  # logit of a class never met, relative to the mean of those that were


class ClassMoments(NamedTuple):
    """Sufficient statistics of features by class, which do not depend on the order of events.

    `counts` (classes,): events (their weights, with forgetting); `means` (classes, d); `scatter`:
    sum over events of (x - mean of its class)(x - mean of its class)^T, (d, d), or its trace, ().
    """

    counts: Floats
    means: Floats
    scatter: Floats

    @classmethod
    def empty(cls, classes: int, d: int, *, full: bool) -> ClassMoments:
        return cls(np.zeros(classes), np.zeros((classes, d)), np.zeros((d, d) if full else ()))

    def add(self, x: Floats, y: NDArray[np.int64], forgetting: float = 1.0) -> ClassMoments:
        """With events x (n, d) of classes y (n,) too; each event fades what came before it.

        Merged by Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115, so that no
        difference of large numbers is taken.
        """
        n = len(x)
        weights = forgetting ** np.arange(n - 1, -1, -1.0)
        fade = forgetting**n
        counts, means, scatter = self.counts * fade, self.means.copy(), self.scatter * fade
        for c in np.unique(y):
            w, rows = weights[y == c], x[y == c]
            many = w.sum()
            mean = w @ rows / many
            total = counts[c] + many
            parts = np.concatenate(
                [
                    (rows - mean) * np.sqrt(w)[:, None],
                    np.sqrt(counts[c] * many / total) * (mean - means[c])[None],
                ]
            )
            scatter = scatter + (parts.T @ parts if scatter.ndim else (parts**2).sum())
            means[c] += many / total * (mean - means[c])
            counts[c] = total
        return ClassMoments(counts, means, scatter)

    def head(self, shrinkage: float, priors: bool) -> tuple[Floats, Floats]:
        """Weights (classes, d) and biases (classes,) of the linear classifier.

        With the pooled covariance S = scatter / events and its mean variance v = tr S / d:
        L = ((1 - shrinkage) S + shrinkage v I)^-1, W = means L, b = -diag(means L means^T) / 2,
        plus log counts with `priors`. Where no variance was seen yet, v is 1.
        """
        d = self.means.shape[1]
        met = self.counts > 0
        total = self.counts.sum()
        full = self.scatter.ndim == 2
        v = float(np.trace(self.scatter) if full else self.scatter) / max(total, 1e-300) / d
        v = v if v > 1e-12 * max(float((self.means**2).mean()), 1e-300) else 1.0
        weight, bias = np.zeros_like(self.means), np.zeros(len(self.counts))
        means = self.means[met]
        if full and shrinkage < 1:
            covariance = (1 - shrinkage) * self.scatter / total
            covariance[np.diag_indices(d)] += shrinkage * v
            covariance = (covariance + covariance.T) / 2
            weight[met] = linalg.solve(covariance, means.T, assume_a="pos").T
        else:
            weight[met] = means / v
        bias[met] = -0.5 * (weight[met] * means).sum(1)
        if priors:
            bias[met] += np.log(self.counts[met] / total)
        # Always UNSEEN below the mean of the others, wherever the event lies.
        weight[~met], bias[~met] = weight[met].mean(0), bias[met].mean() + UNSEEN
        return weight, bias

    def arrays(self) -> dict[str, Array]:
        return self._asdict()


@dataclass(frozen=True, kw_only=True)
class StreamingLDA(Updater):
    """Linear discriminant analysis of the last layer's input, kept as running statistics.

    Each class has a running mean, all share one running covariance; the last layer becomes the
    classifier of these Gaussians, see `ClassMoments.head`. The trunk stays as it serves, so what
    is served costs what it did. One pass, any order, nothing stored, nothing forgotten but by
    `forgetting` < 1 (weight of an event after each later one: 1 - 1 / h fades over h events).
    `shrinkage`: towards equal variances; more needs fewer events per feature, 1 is
    `NearestMean`. (The paper shrinks towards the unit matrix, which depends on the features'
    scale.) `priors`: weigh classes by their frequency; the paper does not.

    Statistics belong to a trunk: where that changes, they begin anew. A class that the head has
    no output for is an error; an output whose class was never met is never predicted. `layer`:
    name of the last linear layer, if it is not the last module.

    Cost per event: the trunk, and d^2 for the covariance; per update d^3. Memory: 8 (d^2 +
    classes d) bytes. Source: Hayes and Kanan 2020, arXiv:1909.01520.
    """

    shrinkage: float = 1e-4
    forgetting: float = 1.0
    priors: bool = False
    layer: str = ""
    min_events: int = 1
    recall: int = 4096

    def __post_init__(self) -> None:
        check_common(type(self).__name__, self.min_events, self.recall)
        if not 0 <= self.shrinkage <= 1 or not 0 < self.forgetting <= 1:
            raise ConfigError(
                f"shrinkage must be in [0, 1] and forgetting in (0, 1], got {self.shrinkage} and "
                f"{self.forgetting}"
            )

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        trunk = Trunk.of(serving, self.layer)
        if isinstance(trunk, str) or not len(examples):
            return {}
        found = self._with(trunk, {}, examples)
        return {} if isinstance(found, str) else self._state(found, trunk, {}, examples)

    def update(
        self,
        serving: Model,
        learner: Learner,
        fresh: Examples,
        memory: Memory,
        *,
        budget: Budget,
        rng: np.random.Generator,
    ) -> Candidate[Model] | Declined:
        meter = Meter.start(self, rng)
        trunk = Trunk.of(serving, self.layer)
        if isinstance(trunk, str):
            return Declined(f"there is no head to solve for: {trunk}")
        own = valid_for(learner, trunk.fingerprint())
        new = not_learned(own, fresh)
        few = too_few(new, self.min_events, "a streaming classifier")
        if few is not None:
            return few
        require_finite(new)
        moments = self._with(trunk, own, new)
        if isinstance(moments, str):
            return Declined(f"there is no head to solve for: {moments}")
        model = trunk.with_layer(*moments.head(self.shrinkage, self.priors))
        finish(model, Prepared.of(model, new), rng)
        return meter.finish(model, self._state(moments, trunk, own, new), [new], budget)

    def _state(
        self, moments: ClassMoments, trunk: Trunk, own: Learner, new: Examples
    ) -> dict[str, Array]:
        ids = with_learned(own, new, self.recall)
        return {**moments.arrays(), LEARNED: ids, ON: trunk.fingerprint()}

    @property
    def _full(self) -> bool:
        return True

    def _with(self, trunk: Trunk, own: Learner, new: Examples) -> ClassMoments | str:
        """The statistics with the new events too, or why they cannot be taken."""
        model, classes = trunk.model, trunk.layer.out_features
        data = Prepared.of(model, new)
        moments = None
        if own:
            moments = ClassMoments(own["counts"], own["means"], own["scatter"])
        for seen, piece in trunk.seen(data):
            if not isinstance(seen.stated, Categorical):
                return f"{type(model.task).__name__} states numbers, not classes"
            logits = seen.answer[0]
            if not seen.per_event(piece.n) or logits.shape != seen.out.shape:
                return "the last linear layer does not give the logits of an event"
            if not torch.equal(logits, seen.out):
                return "the last linear layer does not give the logits themselves"
            y = truth(piece.targets, model.task.target)
            _check_classes(y, classes)
            if trunk.bias is None:
                return "the last linear layer has no bias, which a discriminant needs"
            x = seen.phi(False)
            if moments is None:
                moments = ClassMoments.empty(classes, x.shape[1], full=self._full)
            moments = moments.add(x, y.astype(np.int64), self.forgetting)
        assert moments is not None
        return moments


@dataclass(frozen=True, kw_only=True)
class NearestMean(StreamingLDA):
    """The class whose mean is nearest to the last layer's input.

    `StreamingLDA` of one variance for all features: the same decisions as the smallest distance,
    with probabilities of the width of the data. Fewer numbers and events are needed, and features
    of different scale or correlation are not told apart. Memory: 8 (classes d + 1) bytes.
    Source: Mensink et al. 2013, doi:10.1109/TPAMI.2013.83; iCaRL, arXiv:1611.07725.
    """

    shrinkage: Literal[1] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrinkage != 1:
            raise ConfigError(
                f"NearestMean has shrinkage 1, got {self.shrinkage}; StreamingLDA has a choice"
            )

    @property
    def _full(self) -> bool:
        return False


def _check_classes(y: Floats, classes: int) -> None:
    strange = np.unique(y[(y < 0) | (y >= classes) | (y != np.floor(y))])
    if len(strange):
        raise DataError(
            f"the labels hold class {strange[0]:g} and the head has room for classes 0 to "
            f"{classes - 1}; give the network as many outputs as there will ever be classes"
        )
