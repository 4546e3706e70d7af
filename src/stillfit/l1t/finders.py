"""FastHisto: the histogram vertex finder of the Level-1 trigger, without learned parameters."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.l1t.vertex import VertexTask
from stillfit.l1t.vertexing import (
    BIN_WIDTH,
    BINS,
    FIRST_FEATURE,
    Z0_LSB,
    Calibration,
    Found,
    VertexFinder,
    at_bins,
    centre,
    histogram,
)
from stillfit.models.model import Architecture, Model
from stillfit.models.tensors import RaggedTensor

PT_SATURATION = 127.0  # GeV
PT_LSB = 1 / 32  # GeV: 127 GeV in 12 bits
# Association: |dz| below the window of the track's |eta|. Source: cms-sw/cmssw, VertexFinder.
WINDOW_EDGES = (0.7, 1.0, 1.2, 1.6, 2.0)
WINDOWS = np.array((0.37, 0.50, 0.60, 0.75, 1.00, 1.60), np.float32)  # cm


class FastHisto(VertexFinder):
    """Histogram of pT along z, a sliding window of three bins, the largest sum wins.

    `position`: "mean" is the pT-weighted mean of the window's bin centres (the trigger's), and
    "centre" the centre of the window's middle bin (the E2E authors'). `cuts`: fill and associate
    only tracks with pT >= 2 GeV, |eta| < 2.4, |z0| < 15 cm, at least 4 stubs, bend chi2 < 2.25,
    chi2rz < 5 and chi2rphi < 20 per degree of freedom. `arithmetic`: "float", or "integer", which
    follows the firmware: z0 in 12 bits, bin = z0 >> 4, pT in steps of 1/32 GeV, whole-number sums
    and a 12-bit position (steps of 0.01 cm); both fill a saturated pT (127 GeV).

    A track belongs to the vertex where |dz| is at most its window w by |eta|; its association
    value is 1 / (1 + |dz| / w), and below 0.5 for a track that fails the cuts. `sigma`: the
    resolution (cm) that it states for every event, in the absence of anything better.
    Windows beyond the histogram's ends are not looked at; of equal sums the lowest z wins.

    Source: cms-sw/cmssw, L1Trigger/VertexFinder. Cost: one addition per track.
    """

    columns = (
        "pt",
        "eta",
        "phi",
        "z0",
        "chi2rphi",
        "chi2rz",
        "bendchi2",
        "nstub",
        "hitpattern",
    )

    dtype = torch.float32  # a saturated pT of 12 bits does not fit into half precision

    def __init__(
        self,
        *,
        position: Literal["mean", "centre"] = "mean",
        cuts: bool = True,
        arithmetic: Literal["float", "integer"] = "float",
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        if position not in ("mean", "centre"):
            raise ConfigError(f"position must be 'mean' or 'centre', got {position!r}")
        if arithmetic not in ("float", "integer"):
            raise ConfigError(f"arithmetic must be 'float' or 'integer', got {arithmetic!r}")
        if not sigma > 0:
            raise ConfigError(f"sigma must be positive (cm), got {sigma}")
        self.position, self.cuts, self.arithmetic = position, cuts, arithmetic
        self.sigma = sigma
        self.calibration = Calibration()

    @property
    def n_features(self) -> int:
        return 3

    def features(self, tracks: dict[str, Array]) -> list[Array]:
        """Saturated pT (GeV), association window (cm), whether the track passes the cuts."""
        pt = np.clip(tracks["pt"], 0, PT_SATURATION)
        if self.arithmetic == "integer":
            pt = np.floor(pt / PT_LSB)
        good = passes(tracks) if self.cuts else np.ones(len(pt), np.bool_)
        return [pt, WINDOWS[np.searchsorted(WINDOW_EDGES, np.abs(tracks["eta"]), "right")], good]

    def find(self, tracks: RaggedTensor) -> Found:
        pt, window, good = tracks.values[:, FIRST_FEATURE:].unbind(1)
        place = self.calibration.place(tracks.values)
        integer = self.arithmetic == "integer"
        if integer:
            code = torch.floor(place * 16).long()
            bins = (code >> 4).clamp(0, BINS - 1)
            fill = (pt * good).long()
            place = (code + 0.5) / 16
        else:
            bins = place.long().clamp(0, BINS - 1)
            fill = (pt * good).double()
        sums = histogram(tracks, bins, fill)
        windows = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
        best = windows.argmax(1) + 1
        inside = at_bins(sums, best, 1)
        total, lean = inside.sum(1), inside[:, 2] - inside[:, 0]
        z0 = centre(best + 0.5)
        if self.position == "mean" and integer:
            # To the nearest of 16 steps per bin, in whole numbers as a divider would.
            steps = torch.div(32 * lean + total, (2 * total).clamp(min=1), rounding_mode="floor")
            z0 = z0 + steps * Z0_LSB
        elif self.position == "mean":
            z0 = z0 + lean / total.clamp(min=torch.finfo(total.dtype).tiny) * BIN_WIDTH
        sigma = self.sigma * self.calibration.sigma_scale
        empty = total == 0
        z0 = torch.where(empty, torch.zeros_like(z0), z0)
        log_variance = 2 * torch.log(torch.where(empty, BINS * BIN_WIDTH, sigma).double())
        away = (centre(place) - z0[tracks.events]).abs()
        closeness = window / (window + away)
        association = torch.where(good > 0, closeness, 0.49 * closeness)
        raw = torch.stack([z0.double(), log_variance], 1)
        return Found(z0, raw, total.double(), association)


def fasthisto_model(examples: Examples, **arguments: Any) -> Model:
    """FastHisto as a model that serves in the loop, with the sigma that labelled events show.

    sigma: the 68.27 % quantile of |z0 - true|, so that the stated interval holds what it says.
    `arguments`: of `FastHisto`.
    """
    model = Model(FastHisto(**arguments), VertexTask(), Architecture("l1t.fasthisto", arguments))
    away = model.errors(examples)["abs_dz"]
    arguments = {**arguments, "sigma": float(np.round(np.quantile(away, 0.6827), 4))}
    return Model(FastHisto(**arguments), model.task, Architecture("l1t.fasthisto", arguments))


def passes(tracks: dict[str, Array]) -> NDArray[np.bool_]:
    """The trigger's track selection, (items,) bool."""
    good: NDArray[np.bool_] = (
        (tracks["pt"] >= 2.0)
        & (np.abs(tracks["eta"]) < 2.4)
        & (np.abs(tracks["z0"]) < 15.0)
        & (tracks["nstub"] >= 4)
        & (tracks["bendchi2"] < 2.25)
        & (tracks["chi2rz"] < 5.0)
        & (tracks["chi2rphi"] < 20.0)
    )
    return good
