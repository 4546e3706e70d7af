"""The task of a vertex finder: what it is trained for, what it answers, how it is judged."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.arrays import Array, Arrays, Ragged
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Predictive
from stillfit.l1t.e2e import HistogramNetwork
from stillfit.l1t.metrics import as_figures, vertex_metrics
from stillfit.l1t.on_chip import association_part
from stillfit.l1t.recalibration import recalibrate
from stillfit.l1t.vertexing import VertexFinder, ragged
from stillfit.models.likelihood import likelihood_of
from stillfit.models.networks import reinitialised
from stillfit.models.task import Answer, dense
from stillfit.models.tensors import Tensors
from stillfit.updaters.embedded.dense import Part

NEAR = 0.15  # cm: a vertex within it is found
_NOT_A_POSITION = "a vertex is a position: its prediction must be a distribution of z"


@dataclass(frozen=True, kw_only=True)
class VertexTask:
    """z of the primary vertex of each event, and which tracks belong to it.

    Targets: `z0` (n,), cm, and `is_pv`, ragged, 1 for a track of the primary vertex.

    Loss: Huber(soft z0 - z0; `huber` cm) + `association` x class-balanced binary cross-entropy
    + `regulariser` x (90th percentile of the weights - 1)^2, which keeps the weights' scale where
    the soft arg-max works, + `event_sigma` x loss of the event head's likelihood (Gaussian CRPS
    unless converted) of the position that is served, whose gradient reaches that head alone,
    + `track_sigma` x Laplace negative log-likelihood of z0 of primary tracks, for networks with a
    sigma per track. CRPS and not likelihood: with a few percent of vertices found centimetres
    away, the likelihood gives every event the sigma of the failures (its 1-sigma intervals held
    97 % of the truths; with CRPS 70 %).
    Of the tracks from other vertices only every `thin`-th enters the cross-entropy: they are six
    of seven, mostly easy, and the class balance is kept.

    Prediction: the network's likelihood of z0, Gaussian unless it was converted; outputs
    `association`, ragged float32, at least 0.5 where the track is given to the vertex (thresholds
    are part of the network), and `score` (n,).

    Errors, all per event: `"miss"` is 1 where |z0 - true| >= 0.15 cm; `"association"` is 1 minus
    the balanced accuracy of the event's tracks; `"error"`, the headline, is their mean, so it
    stays between 0 and 1 and falls when either job is done better; `"abs_dz"` in cm.

    Source of loss and weights: the E2E authors' training (see e2e.py), with a smaller Huber
    width (0.5 for 0.9 cm) and a softer arg-max (see e2e.py), which this simulation needs.
    """

    huber: float = 0.5
    association: float = 1.2
    regulariser: float = 0.1
    event_sigma: float = 0.05
    track_sigma: float = 0.3
    thin: int = 4

    def prepare(self, network: nn.Module, inputs: Arrays) -> Arrays:
        return _finder(network).prepare(inputs)

    @property
    def target(self) -> str:
        return "z0"

    def fresh(self, network: nn.Module, examples: Examples, seed: int) -> nn.Module:
        return reinitialised(_finder(network), seed)

    def loss(self, network: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        if not isinstance(network, HistogramNetwork):
            raise ConfigError(
                f"{type(network).__name__} has nothing to train; a finder without parameters "
                "serves as it is"
            )
        tracks = ragged(inputs, "tracks")
        truth = dense(targets, "z0").float()
        is_pv = ragged(targets, "is_pv").values > 0
        if len(is_pv) != len(tracks.values):
            raise ShapeError(
                f"the labels are of {len(is_pv)} tracks and the events have {len(tracks.values)}; "
                "were labels matched to other events?"
            )
        primary, other = torch.nonzero(is_pv)[:, 0], torch.nonzero(~is_pv)[:: self.thin, 0]
        out = network.trained(tracks, torch.cat([primary, other]))
        loss = functional.huber_loss(out.z0, truth, delta=self.huber)
        loss = loss + self.association * balanced_bce(out.logits, len(primary))
        if len(out.weights):
            rank = max(1, round(0.9 * len(out.weights)))
            loss = loss + self.regulariser * (out.weights.kthvalue(rank).values - 1) ** 2
        stated = network.likelihood.rescale(out.raw, out.hard_z0, 1.0)
        loss = loss + self.event_sigma * network.likelihood.loss(stated, truth)
        if out.track_z0 is not None and out.track_sigma is not None and len(primary):
            sigma = out.track_sigma[primary]
            pull = (out.track_z0[primary] - truth[tracks.events[primary]]).abs()
            loss = loss + self.track_sigma * (pull / sigma + torch.log(sigma)).mean()
        return loss

    def answer(self, network: nn.Module, inputs: Tensors) -> Answer:
        """Likelihood of z0 (n, outputs), score (n,) and association (items,)."""
        found = _finder(network).find(ragged(inputs, "tracks"))
        return found.raw, found.score, found.association

    def state(
        self, network: nn.Module, answer: Answer, inputs: Tensors
    ) -> tuple[Predictive | Categorical, Arrays]:
        tracks = ragged(inputs, "tracks")
        raw, score, association = answer
        counts = torch.bincount(tracks.events, minlength=tracks.n).numpy()
        return likelihood_of(network).predictive(raw), {
            "association": Ragged.from_counts(association.float().mean(0).numpy(), counts),
            "score": score.float().mean(0).numpy(),
        }

    def recalibrate(
        self, network: nn.Module, examples: Examples, *, significance: float = 3.0
    ) -> dict[str, Array]:
        """See `recalibration.recalibrate`."""
        return recalibrate(network, examples, significance=significance)

    def device_part(self, network: nn.Module) -> Part | str:
        """What a chip can learn of a network, see `on_chip.AssociationPart`, or why nothing."""
        return association_part(network)

    def errors(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, NDArray[np.float64]]:
        if not isinstance(predictive, Predictive):
            raise ShapeError(_NOT_A_POSITION)
        away = np.abs(predictive.mean - np.asarray(targets["z0"], np.float64))
        miss = (away >= NEAR).astype(np.float64)
        wrong = 1 - event_balanced_accuracy(
            ragged_column(outputs, "association"), ragged_column(targets, "is_pv")
        )
        return {
            "error": 0.5 * (miss + wrong),
            "miss": miss,
            "association": wrong,
            "abs_dz": away,
        }

    def summarise(
        self, predictive: Predictive | Categorical, outputs: Arrays, targets: Arrays
    ) -> dict[str, float]:
        """The metrics of `metrics.as_figures`, efficiency first, and the stated sigma (cm): median
        and the ends of the band of 68 % of the events."""
        if not isinstance(predictive, Predictive):
            raise ShapeError(_NOT_A_POSITION)
        association = ragged_column(outputs, "association")
        metrics = vertex_metrics(predictive.mean, association, targets)
        low, middle, high = np.quantile(predictive.std, [0.16, 0.5, 0.84]).tolist()
        sigma = {"sigma_cm": middle, "sigma_cm_low": low, "sigma_cm_high": high}
        return {**as_figures(metrics), **sigma}


def balanced_bce(logits: Tensor, primary: int) -> Tensor:
    """Mean binary cross-entropy of each class, averaged over the classes that are there.

    The first `primary` logits are of tracks of the primary vertex, the others are not.
    """
    parts = [functional.softplus(-logits[:primary]), functional.softplus(logits[primary:])]
    means = [part.mean() for part in parts if len(part)]
    return torch.stack(means).mean() if means else logits.sum()


def event_balanced_accuracy(association: Ragged, is_pv: Ragged) -> NDArray[np.float64]:
    """Mean of the shares of primary and of other tracks that are judged rightly, per event (n,).

    An event without one of the two kinds has the share of the other; without tracks, 1.
    """
    return np.asarray(_balanced(association.values, is_pv.values, is_pv.offsets))


@numba.njit(cache=True)
def _balanced(association, is_pv, offsets):  # type: ignore[no-untyped-def]
    accuracy = np.empty(len(offsets) - 1)
    for event in range(len(accuracy)):
        size, good = np.zeros(2, np.int64), np.zeros(2, np.int64)
        for i in range(offsets[event], offsets[event + 1]):
            kind = 1 if is_pv[i] > 0 else 0
            size[kind] += 1
            good[kind] += (association[i] >= 0.5) == (is_pv[i] > 0)
        share, kinds = 0.0, 0
        for kind in (1, 0):
            share += good[kind] / max(size[kind], 1)
            kinds += size[kind] > 0
        accuracy[event] = share / kinds if kinds else 1.0
    return accuracy


def ragged_column(arrays: Arrays, name: str) -> Ragged:
    """A named column that must be ragged."""
    column = arrays.get(name)
    if not isinstance(column, Ragged):
        raise DataError(f"{name!r} must be a ragged column, one value per track")
    return column


def _finder(network: nn.Module) -> VertexFinder:
    if not isinstance(network, VertexFinder):
        raise ConfigError(
            f"a vertex task needs a vertex finder, got {type(network).__name__}; "
            "give it the methods of stillfit.l1t.vertexing.VertexFinder"
        )
    return network
