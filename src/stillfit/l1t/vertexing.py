"""What all vertex finders share: the histogram along z, what they find, and their calibration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.arrays import Array, Arrays, Ragged, first_bad, names_of
from stillfit.core.errors import DataError, ShapeError
from stillfit.l1t.geometry import BARREL_HALF_LENGTH, BARREL_R
from stillfit.l1t.trackword import FIELDS, SECTOR_WIDTH, SECTORS
from stillfit.models.tensors import RaggedTensor, Tensors

BINS = 256
Z0_LSB = FIELDS["z0"].lsb  # cm, 12 bits over +-20.46912512 cm
BIN_WIDTH = 16 * Z0_LSB  # cm: the histogram's bin is the track word's z0 without its last 4 bits
Z_MAX = 128 * BIN_WIDTH  # cm

# Cells of the calibration tables. 20 steps of signed eta: a track's layers, and so its response
# to a moved layer, change within 0.25 of eta.
ETA_CELLS = 20
ETA_REACH = 2.5
SECTOR_CELLS = ETA_CELLS * SECTORS
BARREL_CELLS = ETA_CELLS * 4  # with 0, 1, 2, 3 hits in the barrel's macro-pixel layers
SIGMA_EDGES = (0.7, 1.2, 1.6, 2.0)  # |eta| regions with a track-sigma scale of their own
SIGMA_REGIONS = len(SIGMA_EDGES) + 1

# The first columns of every finder's prepared tracks.
BIN, FRACTION, SECTOR, BARREL, REGION, FIRST_FEATURE = range(6)


class Found(NamedTuple):
    """What a finder says of n events with `items` tracks in all.

    `z0` (n,) cm: where it looks for tracks. `raw` (n, outputs): the parameters of its likelihood
    of the vertex position, cm (`models.likelihood`; Gaussian: position and log-variance). `score`
    (n,): the winning bin's. `association` (items,): 0 to 1, at least 0.5 where the track is given
    to the primary vertex.
    """

    z0: Tensor
    raw: Tensor
    score: Tensor
    association: Tensor


class Calibration(nn.Module):
    """Numbers that are set in closed form from labelled events; all neutral at the start.

    `z0_sector` (signed eta x phi sector) and `z0_barrel` (signed eta x barrel macro-pixel hits):
    cm, taken from a track's z0 before anything else sees it. `threshold`: added to the logit at
    which a track is associated. `sigma_scale`: factor on the event's sigma; `track_sigma`: on the
    tracks' own sigma, by |eta| region (finders without one ignore it).

    `trainable`: the z0 tables are parameters, for networks whose gradient reaches them.
    """

    z0_sector: Tensor
    z0_barrel: Tensor
    threshold: Tensor
    sigma_scale: Tensor
    track_sigma: Tensor

    def __init__(self, *, trainable: bool = False) -> None:
        super().__init__()
        for name, cells in (("z0_sector", SECTOR_CELLS), ("z0_barrel", BARREL_CELLS)):
            if trainable:
                self.register_parameter(name, nn.Parameter(torch.zeros(cells)))
            else:
                self.register_buffer(name, torch.zeros(cells))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("sigma_scale", torch.ones(()))
        self.register_buffer("track_sigma", torch.ones(SIGMA_REGIONS))

    def reset_parameters(self) -> None:
        """Neutral again."""
        with torch.no_grad():
            for value in (self.z0_sector, self.z0_barrel, self.threshold):
                value.zero_()
            self.sigma_scale.fill_(1)
            self.track_sigma.fill_(1)

    def to_members(self, m: int) -> Calibration:
        """Itself: members of an ensemble look at one detector (`models.uncertain.HasMembers`)."""
        return self

    def place(self, x: Tensor) -> Tensor:
        """Corrected position of each track in bins, float32 (items,); bin 0 starts at 0."""
        shift = self.z0_sector[x[:, SECTOR].long()] + self.z0_barrel[x[:, BARREL].long()]
        return x[:, BIN].float() + x[:, FRACTION].float() - shift / BIN_WIDTH


class VertexFinder(nn.Module, ABC):
    """A finder as a network: it prepares raw tracks, and finds the vertex in prepared ones.

    Needs the ragged columns of `columns`, one value per track. Tracks may come in any order, and
    an event may have none: it is then said to be at z = 0 with the widest sigma.
    """

    columns: tuple[str, ...]
    dtype: torch.dtype = torch.float16
    calibration: Calibration

    @abstractmethod
    def features(self, tracks: dict[str, Array]) -> list[Array]:
        """Feature columns of flat tracks, float32 each."""

    @abstractmethod
    def find(self, tracks: RaggedTensor) -> Found:
        """The vertex of each event and the association of each track, at inference."""

    def prepare(self, inputs: Arrays) -> Arrays:
        """Raw columns to one ragged matrix `tracks` (items, features); done once per data set.

        Networks keep half precision (2 bytes per number), which holds every digitised quantity
        of the track word: z0 is stored as its bin and its place in the bin (1 um steps).
        """
        tracks, offsets = flat_columns(inputs, self.columns)
        eta = tracks["eta"]
        bin_, fraction = binned(tracks["z0"])
        eta_cell = np.clip((eta + ETA_REACH) * (ETA_CELLS / (2 * ETA_REACH)), 0, ETA_CELLS - 1)
        eta_cell = eta_cell.astype(np.int16)
        sector = np.rint(tracks["phi"] / SECTOR_WIDTH).astype(np.int16) % SECTORS
        barrel = barrel_hits(tracks["hitpattern"], eta, tracks["z0"])
        common = [
            bin_,
            fraction,
            eta_cell * SECTORS + sector,
            eta_cell * 4 + barrel,
            np.searchsorted(SIGMA_EDGES, np.abs(eta)),
        ]
        values = torch.empty((len(eta), FIRST_FEATURE + self.n_features), dtype=self.dtype)
        for place, column in enumerate([*common, *self.features(tracks)]):
            values[:, place] = torch.from_numpy(np.ascontiguousarray(column, np.float32))
        return {"tracks": Ragged(values.numpy(), offsets)}

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Number of columns that `features` gives."""


def flat_columns(
    inputs: Arrays, names: tuple[str, ...]
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """The named ragged columns as flat arrays with their common offsets, checked."""
    missing = set(names) - set(inputs)
    if missing:
        raise ShapeError(
            f"the vertex finder needs the track columns {names_of(names)}, the stream lacks "
            f"{names_of(missing)}; it has {names_of(inputs)}"
        )
    flat: dict[str, Array] = {}
    offsets: NDArray[np.int64] | None = None
    for name in names:
        column = inputs[name]
        if not isinstance(column, Ragged):
            raise ShapeError(
                f"track column {name!r} must be ragged (tracks of events), it is one number per "
                "event; was the table read event by event?"
            )
        if offsets is not None and not np.array_equal(offsets, column.offsets):
            raise ShapeError(f"track column {name!r} counts other tracks than {names[0]!r}")
        offsets = column.offsets
        flat[name] = column.values
    bad = first_bad({name: inputs[name] for name in names})
    if bad is not None:
        raise DataError(f"the tracks cannot be used: {bad}; a fit that failed upstream?")
    assert offsets is not None
    return flat, offsets


def binned(z0: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bin (0 to 255) and place within it (0 to below 1) of z0 in cm; the outermost bins saturate.

    The place stays below 1 - 2^-11, so that it is below 1 in half precision too.
    """
    at = np.asarray(z0, np.float64) / BIN_WIDTH + BINS / 2
    bin_ = np.clip(np.floor(at), 0, BINS - 1)
    return bin_.astype(np.float32), np.clip(at - bin_, 0, 1 - 2.0**-11).astype(np.float32)


def centre(bins: Tensor) -> Tensor:
    """Position in cm of a place in bins: bin b has its centre at b + 0.5."""
    return (bins - BINS / 2) * BIN_WIDTH


def histogram(tracks: RaggedTensor, bins: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weights (items,) in each bin of each event, (n, 256).

    `bins`: (items,) int64. The gradient flows to the weights.
    """
    flat = weights.new_zeros(tracks.n * BINS)
    return flat.index_add(0, tracks.events * BINS + bins, weights).reshape(tracks.n, BINS)


def shared_histogram(tracks: RaggedTensor, place: Tensor, weights: Tensor) -> Tensor:
    """The histogram with each weight shared by the two bins whose centres enclose its place.

    `place`: (items,), in bins. The gradient flows to the weights and to the place.
    """
    low = torch.floor(place.detach() - 0.5)
    part = place - 0.5 - low
    index = low.long().clamp(-1, BINS - 1)
    first = tracks.events * BINS
    flat = weights.new_zeros(tracks.n * BINS)
    flat = flat.index_add(0, first + index.clamp(min=0), weights * (1 - part))
    flat = flat.index_add(0, first + (index + 1).clamp(max=BINS - 1), weights * part)
    return flat.reshape(tracks.n, BINS)


# Bins by distance to the middle of the histogram, the lower first: how firmware breaks ties.
_FROM_CENTRE = torch.from_numpy(
    np.lexsort((np.arange(BINS), np.abs(np.arange(BINS) - (BINS - 1) / 2)))
)


def winner(scores: Tensor) -> Tensor:
    """The bin of the highest score of each event, int64 (n,).

    Ties as in firmware: the bin nearest the centre of the histogram, then the lower index.
    """
    # torch.argmax gives the first of equal maxima.
    return _FROM_CENTRE[scores[:, _FROM_CENTRE].argmax(1)]


def at_bins(values: Tensor, bins: Tensor, reach: int) -> Tensor:
    """Values (n, 256) in the bins from -reach to +reach around `bins` (n,); 0 outside."""
    steps = torch.arange(-reach, reach + 1)
    where = bins[:, None] + steps
    inside = (where >= 0) & (where < BINS)
    return values.gather(1, where.clamp(0, BINS - 1)) * inside


def barrel_hits(hitpattern: Array, eta: Array, z0: Array) -> NDArray[np.int16]:
    """Hits in the three barrel macro-pixel layers, 0 to 3.

    Bit k of the hit pattern is the k-th layer on the track's way: the first are those barrel
    layers which a straight line from z0 along eta crosses within the barrel's length.
    """
    slope = np.sinh(np.asarray(eta, np.float64))
    bits = np.asarray(hitpattern).astype(np.int16)
    hits = np.zeros(len(bits), np.int16)
    for layer, radius in enumerate(BARREL_R[:3]):
        crossed = np.abs(z0 + slope * radius) < BARREL_HALF_LENGTH
        hits += np.where(crossed, (bits >> layer) & 1, 0).astype(np.int16)
    return hits


def ragged(tensors: Tensors, name: str) -> RaggedTensor:
    """A named tensor that must be ragged."""
    value = tensors.get(name)
    if not isinstance(value, RaggedTensor):
        raise ShapeError(
            f"{name!r} must be ragged, one value per track; there are {names_of(tensors)}"
        )
    return value
