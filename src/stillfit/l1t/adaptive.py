"""The adaptive end-to-end network: it is told where the detector is ill, knows how well each track
is measured, and uses it for the position and the association."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.arrays import Array
from stillfit.l1t.e2e import (
    PT_CLIP,
    EventSigma,
    HistogramNetwork,
    Pattern,
    Peak,
    Trained,
    dense,
)
from stillfit.l1t.vertexing import (
    FIRST_FEATURE,
    REGION,
    Calibration,
    Found,
    centre,
    shared_histogram,
)
from stillfit.models.networks import Head
from stillfit.models.tensors import RaggedTensor

N_FEATURES = 20
LOG_PT, QUALITY = 0, 2  # places of the features that the association reads again
LOG_SIGMA = (-4.6, 1.6)  # limits of log(track sigma / cm): 0.1 mm to 5 cm
NEAR = 2.5  # track sigmas: who is this close to the peak enters the position
PASSES = 2  # of the position: the second starts from the first's mean


class _Tracks(NamedTuple):
    """What the trunk says of each track: features, weight, sigma (cm), corrected z0 (cm)."""

    x: Tensor
    weight: Tensor
    sigma: Tensor
    z0: Tensor


class AdaptiveE2E(HistogramNetwork):
    """Weight, histogram, peak and association as in `E2E`, with four additions.

    1. The trunk 20-24-16 reads pT, quality, signed eta, stub count, the seven bits of the hit
       pattern, three chi2, |d0|, sin and cos of phi, and gives a weight and a sigma per track
       (the scale b of a Laplace distribution of z0 about the vertex).
    2. Each track is shared by the two bins nearest to it (triangular filling), so that the
       gradient reaches z0, and through it the calibration tables, which are parameters here.
    3. The position: the mean of the tracks within 2.5 sigma of the peak with weights 1 / sigma^2,
       twice. On nominal events it halves the core width against the histogram's own mean.
    4. The association 6-20-16-1 reads |dz| / sigma of the track, |dz|, sigma, weight, pT and
       quality; all but the last two without gradient, so that the association does not bend them.

    The event's sigma reads a fifth feature, the logarithm of (sum of 1 / sigma^2)^-1/2.
    Cost: 1352 multiplications per track. Parameters: 1.5 k and 260 table cells.
    `seed`: of the initial weights.
    """

    columns = (
        "pt",
        "eta",
        "phi",
        "z0",
        "d0",
        "chi2rphi",
        "chi2rz",
        "bendchi2",
        "nstub",
        "hitpattern",
        "quality",
    )
    item_layers = ("trunk", "heads", "associate")

    def __init__(self, *, temperature: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(*dense(N_FEATURES, 24, 16), nn.ReLU())
            # Weight before its ReLU, and log sigma: positive and 2 mm at first.
            self.heads = Head(16, (0.5, -1.6), shrink=0.5)
            self.pattern = Pattern(temperature)
            self.associate = nn.Sequential(*dense(6, 20, 16, 1))
            self.sigma = EventSigma(5)
        self.calibration = Calibration(trainable=True)

    @property
    def n_features(self) -> int:
        return N_FEATURES

    def features(self, tracks: dict[str, Array]) -> list[Array]:
        """Inputs of order one: logarithms of pT and chi2, the rest scaled by powers of two."""
        pt = np.clip(tracks["pt"], 0, PT_CLIP)
        eta, bits = tracks["eta"], np.asarray(tracks["hitpattern"]).astype(np.uint8)
        chi2s = ("chi2rphi", "chi2rz", "bendchi2")
        return [
            0.5 * np.log2(np.maximum(pt, 1)),
            pt / 32,
            np.asarray(tracks["quality"], np.float32) / 4,
            eta,
            np.abs(eta),
            eta**2 / 4,
            np.asarray(tracks["nstub"], np.float32) - 5,
            *((bits >> layer) & 1 for layer in range(7)),
            *(np.log1p(np.clip(tracks[name], 0, 1000)) for name in chi2s),
            np.clip(np.abs(tracks["d0"]), 0, 1) * 4,
            np.sin(tracks["phi"]),
            np.cos(tracks["phi"]),
        ]

    def _read(self, tracks: RaggedTensor) -> tuple[_Tracks, Tensor, Tensor]:
        """The trunk's answers, the histogram of weights and its scores."""
        x = tracks.values[:, FIRST_FEATURE:].float()
        raw = self.heads(self.trunk(x))
        scale = self.calibration.track_sigma[tracks.values[:, REGION].long()]
        sigma = torch.exp(raw[:, 1].clamp(*LOG_SIGMA)) * scale
        place = self.calibration.place(tracks.values)
        each = _Tracks(x, functional.relu(raw[:, 0]), sigma, centre(place))
        sums = shared_histogram(tracks, place, each.weight)
        return each, sums, self.pattern.scores(sums)

    def _position(self, tracks: RaggedTensor, each: _Tracks, sums: Tensor, scores: Tensor) -> Peak:
        """The winning bin with the position from the tracks around it."""
        peak = self.pattern.hard(sums, scores)
        z0 = peak.z0
        for _ in range(PASSES):
            near = (each.z0 - z0[tracks.events]).abs() < NEAR * each.sigma
            precision = near / each.sigma**2
            total = tracks.sum(precision)
            mean = tracks.sum(precision * each.z0) / total.clamp(min=1e-6)
            z0 = torch.where((total > 0) & (peak.score > 0), mean + self.pattern.shift(len(z0)), z0)
        width = -0.5 * torch.log(total.clamp(min=1e-2))
        return peak._replace(z0=z0, features=torch.cat([peak.features, width[:, None]], 1))

    def _logits(self, each: _Tracks, z0: Tensor) -> Tensor:
        """Association of tracks to the vertex of their event, `z0` (items,)."""
        with torch.no_grad():
            away = (each.z0 - z0).abs()
            seen = [
                (away / each.sigma).clamp(max=16) / 4,
                torch.log1p(8 * away),
                torch.log(each.sigma),
                each.weight,
            ]
        inputs = torch.stack([*seen, each.x[:, LOG_PT], each.x[:, QUALITY]], 1)
        logits: Tensor = self.associate(inputs)[:, 0]
        return logits

    def trained(self, tracks: RaggedTensor, rows: Tensor) -> Trained:
        each, sums, scores = self._read(tracks)
        with torch.no_grad():
            peak = self._position(tracks, each, sums, scores)
            asked = _Tracks(*(part[rows] for part in each))
        return Trained(
            z0=self.pattern.soft(scores),
            weights=each.weight,
            logits=self._logits(asked, peak.z0[tracks.events[rows]]),
            hard_z0=peak.z0,
            raw=self.sigma(peak.features),
            track_z0=each.z0,
            track_sigma=each.sigma,
        )

    def find(self, tracks: RaggedTensor) -> Found:
        each, sums, scores = self._read(tracks)
        peak = self._position(tracks, each, sums, scores)
        return self.answer(peak, self._logits(each, peak.z0[tracks.events]))
