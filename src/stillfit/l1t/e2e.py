"""The end-to-end vertex network of the Level-1 trigger, as published, on flat tracks.

Source: the E2E authors' code (VTXNN, Apache-2.0) and C. Brown et al., EPJ Web Conf. 295, 09037;
written anew here. Four parts: a weight for each track, a histogram of the weights along z, a
pattern filter whose maximum is the vertex, and an association of each track to it.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.l1t.vertexing import (
    BIN_WIDTH,
    BINS,
    FIRST_FEATURE,
    Calibration,
    Found,
    VertexFinder,
    at_bins,
    centre,
    histogram,
    winner,
)
from stillfit.models.likelihood import GaussianCrps, Likelihood
from stillfit.models.networks import Head, copy_network
from stillfit.models.tensors import RaggedTensor
from stillfit.models.uncertain import per_row

PT_CLIP = 128.0  # GeV
LOG_SIGMA_REACH = (-5.0, 3.0)  # of the event's sigma in cm: 70 um to 20 cm


class Trained(NamedTuple):
    """What a training step needs, all with gradient where it should flow.

    `z0` (n,): soft position in cm. `weights` (items,). `logits` (rows,), before the
    threshold, of the asked tracks.
    `hard_z0` (n,): position at inference, without gradient; `raw` (n, outputs): likelihood of
    true z0 - hard_z0, cm, whose gradient reaches the event head alone. `track_z0`, `track_sigma`
    (items,): cm, corrected position and its scale, or None where tracks have no sigma of their
    own.
    """

    z0: Tensor
    weights: Tensor
    logits: Tensor
    hard_z0: Tensor
    raw: Tensor
    track_z0: Tensor | None = None
    track_sigma: Tensor | None = None


class Peak(NamedTuple):
    """The winning bin of each event: its index (n,), position in cm, score, and features (n, 4)."""

    bins: Tensor
    z0: Tensor
    score: Tensor
    features: Tensor


class Pattern(nn.Module):
    """Symmetric three-tap filter [side, middle, side] with ReLU, and the position read from it.

    Training: soft arg-max, the mean of the bin centres under softmax(score / `temperature`).
    Inference: arg-max with the firmware's tie-break, then the mean of the five bin centres
    around it, weighted by the histogram (tracks of one vertex spread over about five bins);
    `bias` (cm) is added to both. The scale of the position is fixed at 1: with it free, training
    drifts along a flat direction.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature
        self.taps = nn.Parameter(torch.empty(2))  # side, middle
        self.bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()
        self.register_buffer("centres", centre(torch.arange(BINS) + 0.5), persistent=False)

    centres: Tensor

    def reset_parameters(self) -> None:
        """A narrow peak, no bias."""
        with torch.no_grad():
            self.taps.copy_(torch.tensor([0.5, 1.0]))
            self.bias.zero_()

    def filter(self, rows: int) -> tuple[Tensor, ...]:
        """Side and middle tap of `rows` events."""
        return self.taps.unbind()

    def shift(self, rows: int) -> Tensor:
        """The bias of `rows` events, cm."""
        return self.bias

    def to_members(self, m: int) -> MemberPattern:
        """Filters of m members' own (`models.uncertain.HasMembers`)."""
        return MemberPattern(self.temperature, m)

    def scores(self, sums: Tensor) -> Tensor:
        """Filtered histogram (n, 256)."""
        padded = functional.pad(sums, (1, 1))
        side, middle = self.filter(len(sums))
        return functional.relu(middle * sums + side * (padded[:, :-2] + padded[:, 2:]))

    def soft(self, scores: Tensor) -> Tensor:
        """Differentiable position (n,), cm."""
        return torch.softmax(scores / self.temperature, 1) @ self.centres + self.shift(len(scores))

    def hard(self, sums: Tensor, scores: Tensor) -> Peak:
        """The winning bin and its position.

        Features for the event's sigma: log(1 + score), the best score more than three bins away
        relative to it, the share of all weight in the five bins, the rms of the weight within
        three bins.
        """
        best = winner(scores)
        score = scores.gather(1, best[:, None])[:, 0]
        near = at_bins(sums, best, 3)
        window = near[:, 1:6]
        total = window.sum(1)
        steps = torch.arange(-3.0, 4.0)
        tiny = 1e-6
        lean = (window @ steps[1:6]) / total.clamp(min=tiny)
        z0 = centre(best + 0.5 + lean) + self.shift(len(sums))
        away = (torch.arange(BINS) - best[:, None]).abs() > 3
        rival = (scores * away).amax(1)
        all_near = near.sum(1).clamp(min=tiny)
        mean = (near @ steps) / all_near
        spread = ((near @ steps**2) / all_near - mean**2).clamp(min=0).sqrt()
        features = torch.stack(
            [
                torch.log1p(score),
                rival / score.clamp(min=tiny),
                total / sums.sum(1).clamp(min=tiny),
                spread,
            ],
            1,
        )
        found = score > 0
        return Peak(best, torch.where(found, z0, torch.zeros_like(z0)), score, features)


class MemberPattern(Pattern):
    """A filter and a bias of each member's own: `taps` (m, 2), `bias` (m,)."""

    def __init__(self, temperature: float, m: int) -> None:
        super().__init__(temperature)
        self.taps = nn.Parameter(self.taps.detach().repeat(m, 1))
        self.bias = nn.Parameter(self.bias.detach().repeat(m))

    def filter(self, rows: int) -> tuple[Tensor, ...]:
        return per_row(self.taps, rows)[..., None].unbind(-2)

    def shift(self, rows: int) -> Tensor:
        return per_row(self.bias, rows)

    def plain(self, k: int | None) -> Pattern:
        """Member `k`'s."""
        single = Pattern(self.temperature)
        with torch.no_grad():
            single.taps.copy_(self.taps[k or 0])
            single.bias.copy_(self.bias[k or 0])
        return single.to(self.taps.device)

    def put(self, k: int, pattern: Pattern) -> None:
        """Take member `k`'s numbers from a filter."""
        with torch.no_grad():
            self.taps[k] = pattern.taps
            self.bias[k] = pattern.bias


class EventHead(nn.Module):
    """Likelihood of an event's true z0 - found z0 (cm) from a few features of its histogram.

    Features without gradient, so that it cannot bend what it judges; n-8-`likelihood.outputs`.
    """

    likelihood: Likelihood

    def __init__(self, likelihood: Likelihood, features: int = 4) -> None:
        super().__init__()
        self.likelihood = likelihood
        last = Head(8, likelihood.unit, shrink=0)  # no shift of z0 but what is learned
        self.layers = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), last)

    def forward(self, features: Tensor) -> Tensor:
        raw: Tensor = self.layers(features.detach())
        return raw


class EventSigma(EventHead):
    """The head of the published network here: log sigma alone, n-8-1, about the found z0."""

    def __init__(self, features: int = 4) -> None:
        nn.Module.__init__(self)
        self.likelihood = GaussianCrps()
        self.layers = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(features.detach())[:, 0]
        log_sigma = out.clamp(*LOG_SIGMA_REACH)
        return torch.stack([torch.zeros_like(log_sigma), 2 * log_sigma], 1)


class HistogramNetwork(VertexFinder):
    """What the faithful and the adaptive network share: histogram, peak, event sigma, answers."""

    pattern: Pattern
    sigma: EventHead
    item_layers: tuple[str, ...]  # the layers that see tracks, not events

    @property
    def likelihood(self) -> Likelihood:
        """Of the position: what the event head's outputs mean."""
        return self.sigma.likelihood

    def with_head(self, likelihood: Likelihood, seed: int = 0) -> HistogramNetwork:
        """A copy whose event head gives another likelihood of z0, drawn anew from `seed`."""
        twin = copy_network(self)
        first = self.sigma.layers[0]
        assert isinstance(first, nn.Linear)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            twin.sigma = EventHead(likelihood, first.in_features)
        twin.sigma.to(device=first.weight.device).train(self.training)
        return twin

    @abstractmethod
    def trained(self, tracks: RaggedTensor, rows: Tensor) -> Trained:
        """One training pass; `rows` (int64): the tracks whose association is asked for."""

    def answer(self, peak: Peak, logits: Tensor) -> Found:
        """What is served, with the calibration's threshold and sigma scale."""
        likelihood = self.likelihood
        raw = likelihood.rescale(
            self.sigma(peak.features).double(), peak.z0.double(), self.calibration.sigma_scale
        )
        unit = torch.tensor(likelihood.unit, dtype=raw.dtype, device=raw.device)
        nowhere = likelihood.rescale(unit[None], 0.0, BINS * BIN_WIDTH)
        raw = torch.where((peak.score > 0)[:, None], raw, nowhere)
        association = torch.sigmoid(logits - self.calibration.threshold)
        return Found(peak.z0, raw, peak.score, association)


def dense(*sizes: int) -> list[nn.Module]:
    """Dense layers with ReLU after each but the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


class E2E(HistogramNetwork):
    """The published network: 707 parameters with a free filter and position scale, here 704 + 49.

    Weight network 3-10-10-1 on pT (clipped at 128 GeV), quality and |eta|, ReLU throughout, so
    that weights are never negative; association network 4-20-20-1 on pT, quality, the resolution
    feature floor(12.7 / (0.1 + 0.2 eta^2)) and |bin of the track - winning bin| (no gradient
    through it). Inputs are scaled by fixed powers of two, which firmware absorbs into the first
    layer. 49 parameters are the event's sigma. Differences from the publication, all from its
    training: filter tied [a, b, a], position scale fixed, last weight bias started at +0.5 (with
    0, one training in a few dies), sub-bin position at inference.

    Cost: 640 multiplications per track, 1.3 k per event. `seed`: of the initial weights.
    """

    columns = ("pt", "eta", "phi", "z0", "hitpattern", "quality")
    item_layers = ("weight", "associate")

    def __init__(self, *, temperature: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = nn.Sequential(*dense(3, 10, 10), nn.ReLU())
            self.weight = nn.Sequential(*hidden, Head(10, (0.5,)), nn.ReLU())
            self.pattern = Pattern(temperature)
            self.associate = nn.Sequential(*dense(4, 20, 20, 1))
            self.sigma = EventSigma()
        self.calibration = Calibration()

    @property
    def n_features(self) -> int:
        return 4

    def features(self, tracks: dict[str, Array]) -> list[Array]:
        """pT / 16, quality / 4, |eta|, resolution / 32."""
        eta = np.abs(tracks["eta"])
        resolution = np.floor(12.7 / (0.1 + 0.2 * eta**2))
        return [np.clip(tracks["pt"], 0, PT_CLIP) / 16, tracks["quality"] / 4, eta, resolution / 32]

    def _peak(self, tracks: RaggedTensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x = tracks.values[:, FIRST_FEATURE:].float()
        bins = self.calibration.place(tracks.values).long().clamp(0, BINS - 1)
        weights = self.weight(x[:, :3])[:, 0]
        sums = histogram(tracks, bins, weights)
        return x, bins, weights, sums, self.pattern.scores(sums)

    def _logits(self, x: Tensor, bins: Tensor, best: Tensor) -> Tensor:
        away = (bins - best).abs().float()[:, None] / 8
        logits: Tensor = self.associate(torch.cat([x[:, [0, 1, 3]], away], 1))[:, 0]
        return logits

    def trained(self, tracks: RaggedTensor, rows: Tensor) -> Trained:
        x, bins, weights, sums, scores = self._peak(tracks)
        with torch.no_grad():
            peak = self.pattern.hard(sums, scores)
        logits = self._logits(x[rows], bins[rows], peak.bins[tracks.events[rows]])
        return Trained(
            self.pattern.soft(scores), weights, logits, peak.z0, self.sigma(peak.features)
        )

    def find(self, tracks: RaggedTensor) -> Found:
        x, bins, _, sums, scores = self._peak(tracks)
        peak = self.pattern.hard(sums, scores)
        return self.answer(peak, self._logits(x, bins, peak.bins[tracks.events]))
