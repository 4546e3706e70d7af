"""Windows that give tracks to a vertex: the trigger's fixed table, and from stated sigmas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Floats
from stillfit.l1t.finders import WINDOW_EDGES, WINDOWS

Shape: TypeAlias = Literal["proportional", "gaussian", "laplace"]


def eta_sigma(eta: ArrayLike) -> Floats:
    """Resolution of a track's z0 in cm: 0.09867 + 0.0007 |eta| + 0.0587 eta^2.

    Source: the parametrisation of the Level-1 vertex finders; 0.44 cm at |eta| = 2.4.
    """
    a = np.abs(np.asarray(eta, np.float64))
    return 0.09867 + 0.0007 * a + 0.0587 * a**2


def table_window(eta: ArrayLike) -> Floats:
    """Half-width in cm of the trigger's fixed window at `eta` (cms-sw/cmssw, VertexFinder)."""
    place = np.searchsorted(WINDOW_EDGES, np.abs(np.asarray(eta, np.float64)), "right")
    return WINDOWS.astype(np.float64)[place]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tracks within a half-width w of the vertex are given to it.

    s = hypot(`event` x sigma of the event, `track` x sigma of the track), cm, and w is

    - "proportional": k s: every track has the same chance to be kept;
    - "gaussian": s sqrt(2 (k - log s)), where a Gaussian of width s exceeds exp(-k);
    - "laplace": s (k - log s) / sqrt(2), the same for the longer tails that tracks have.

    The last two keep what tells most per cm of window: badly measured tracks, which cost more
    pile-up for the same chance, get fewer sigmas, down to none at log s = k.
    """

    shape: Shape = "proportional"
    event: float = 1.0
    track: float = 1.0
    k: float = math.nan

    def __post_init__(self) -> None:
        if self.shape not in ("proportional", "gaussian", "laplace"):
            raise ConfigError(
                f"shape must be 'proportional', 'gaussian' or 'laplace', got {self.shape!r}"
            )
        if not (self.event >= 0 and self.track >= 0 and self.event + self.track > 0):
            raise ConfigError(
                f"factors on the sigmas must not be negative, nor both 0, got event {self.event} "
                f"and track {self.track}"
            )

    def half_width(self, event_sigma: ArrayLike, track_sigma: ArrayLike) -> Floats:
        """Half-width in cm for tracks of events; shapes as broadcast."""
        s = self._sigma(event_sigma, track_sigma)
        if self.shape == "proportional":
            return self.k * s
        room = np.maximum(self.k - np.log(s), 0)
        return s * np.sqrt(2 * room) if self.shape == "gaussian" else s * room / math.sqrt(2)

    def score(self, away: Floats, event_sigma: ArrayLike, track_sigma: ArrayLike) -> Floats:
        """The smallest k that keeps a track `away` cm from the vertex."""
        s = self._sigma(event_sigma, track_sigma)
        u = away / s
        if self.shape == "proportional":
            return u
        return np.log(s) + (0.5 * u**2 if self.shape == "gaussian" else math.sqrt(2) * u)

    def _sigma(self, event_sigma: ArrayLike, track_sigma: ArrayLike) -> Floats:
        return np.hypot(
            self.event * np.asarray(event_sigma, np.float64),
            self.track * np.asarray(track_sigma, np.float64),
        )
