"""Track words as the inputs of fixed-point vertex networks: whole numbers, and tables of them.

The word holds curvature and tan(lambda); the networks read pT, |eta| and the expected resolution.
A chip looks them up in memories addressed by the two fields, as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays
from stillfit.core.errors import DataError, ShapeError
from stillfit.l1t.geometry import BARREL_HALF_LENGTH, BARREL_R, CURVATURE
from stillfit.l1t.trackword import FIELDS, SECTORS, Codes, digitise, pack, to_sector, unpack
from stillfit.l1t.vertexing import (
    ETA_CELLS,
    ETA_REACH,
    SIGMA_EDGES,
    Z0_LSB,
    flat_columns,
)

# Fraction bits of the inputs: pT / 16 (steps of 1/16 GeV below 128 GeV), quality / 4, |eta|,
# resolution / 32. At most 11 bits each, which half precision holds.
PT, QUALITY, ETA, RESOLUTION = range(4)
FRACTIONS = np.array([8, 2, 9, 5], np.int64)
HALF_Z = 1 << (FIELDS["z0"].bits - 1)
WORD_COLUMNS = ("pt", "eta", "phi", "z0", "hitpattern", "quality")
CROSSING_BITS = 16  # fraction bits of the barrel's crossing test, in cm


class Tables(NamedTuple):
    """Memories: `pt` by |rinv| (2^14 + 1); the others by tanl + 2^15 (2^16)."""

    pt: NDArray[np.int32]
    eta: NDArray[np.int32]
    resolution: NDArray[np.int32]
    cell: NDArray[np.int32]
    region: NDArray[np.int32]


class Inputs(NamedTuple):
    """What the chain reads of each of n tracks, in whole numbers.

    `features` (n, 4): pT, quality, |eta|, resolution with `FRACTIONS` bits behind the point.
    `place`: z0 in steps of its least significant bit, from the histogram's lower end, 0 to 4095.
    `sector`, `barrel`, `region`: cells of the calibration tables.
    """

    features: NDArray[np.int32]
    place: NDArray[np.int32]
    sector: NDArray[np.int32]
    barrel: NDArray[np.int32]
    region: NDArray[np.int32]


@cache
def tables() -> Tables:
    """Built once, in double precision, from the words' own steps."""
    rinv, tanl = FIELDS["rinv"], FIELDS["tanl"]
    curvature = (np.arange((1 << 14) + 1) + 0.5) * rinv.lsb
    pt = np.clip(np.floor(CURVATURE / curvature * 16), 0, (1 << 11) - 1)
    eta = np.arcsinh(tanl.undigitise(np.arange(-(1 << 15), 1 << 15)))
    size = np.abs(eta)
    cell = np.clip((eta + ETA_REACH) * (ETA_CELLS / (2 * ETA_REACH)), 0, ETA_CELLS - 1)
    return Tables(
        pt.astype(np.int32),
        np.minimum(np.floor(size * (1 << 9)), (1 << 11) - 1).astype(np.int32),
        np.floor(12.7 / (0.1 + 0.2 * size**2)).astype(np.int32),
        cell.astype(np.int32),
        np.searchsorted(SIGMA_EDGES, size).astype(np.int32),
    )


def inputs_of(codes: Mapping[str, Codes], sector: NDArray[np.int8]) -> Inputs:
    """The chain's inputs from the codes of track words and the sector (0 to 8) of each.

    Charge is not used: the table of pT is addressed by the magnitude of the curvature.
    """
    memory = tables()
    tanl = codes["tanl"]
    row = tanl + (1 << 15)
    features = np.empty((len(row), 4), np.int32)
    features[:, PT] = memory.pt[np.abs(codes["rinv"])]
    features[:, QUALITY] = codes["quality"]
    features[:, ETA] = memory.eta[row]
    features[:, RESOLUTION] = memory.resolution[row]
    cell = memory.cell[row]
    barrel = barrel_hits(codes["hitpattern"], tanl, codes["z0"])
    return Inputs(
        features,
        codes["z0"] + HALF_Z,
        cell * SECTORS + sector,
        cell * 4 + barrel,
        memory.region[row],
    )


def barrel_hits(hitpattern: Codes, tanl: Codes, z0: Codes) -> Codes:
    """Hits in the three barrel macro-pixel layers, in whole numbers; see `vertexing.barrel_hits`.

    A layer of radius r is crossed within the barrel where |z0 + tanl r| < its half length; all in
    steps of 2^-16 cm.
    """
    one = 1 << CROSSING_BITS
    at_beam = (2 * z0.astype(np.int64) + 1) * round(Z0_LSB / 2 * one)
    hits = np.zeros(len(z0), np.int32)
    for layer, radius in enumerate(BARREL_R[:3]):
        slope = round(radius * FIELDS["tanl"].lsb / 2 * one)
        z = at_beam + (2 * tanl.astype(np.int64) + 1) * slope
        crossed = np.abs(z) < round(BARREL_HALF_LENGTH * one)
        hits += (crossed & ((hitpattern >> layer) & 1).astype(np.bool_)).astype(np.int32)
    return hits


def encoded(inputs: Arrays) -> tuple[dict[str, Codes], NDArray[np.int8], NDArray[np.int64]]:
    """Raw track columns as codes of the word's fields, the sector of each, and their offsets.

    Curvature from pT with a positive sign (the columns know no charge), tan(lambda) = sinh(eta),
    phi relative to its sector.
    """
    tracks, offsets = flat_columns(inputs, WORD_COLUMNS)
    sector, phi = to_sector(tracks["phi"])
    pt = np.maximum(np.asarray(tracks["pt"], np.float64), 1e-3)
    real: dict[str, Array] = {
        "rinv": CURVATURE / pt,
        "phi": phi,
        "tanl": np.sinh(np.asarray(tracks["eta"], np.float64)),
        "z0": tracks["z0"],
        "hitpattern": tracks["hitpattern"],
        "quality": tracks["quality"],
    }
    return digitise(real), sector, offsets


def words_of(
    inputs: Arrays,
) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.int64]]:
    """Raw track columns as 96-bit words (n, 12), the link's sector of each, and their offsets."""
    codes, sector, offsets = encoded(inputs)
    return pack({**codes, "valid": np.ones(len(sector), np.int32)}), sector, offsets


def inputs_of_words(words: NDArray[np.uint8], sector: NDArray[np.int8]) -> Inputs:
    """The chain's inputs from words and their links' sectors; `DataError` for an idle word."""
    if sector.shape != (len(words),):
        raise ShapeError(f"{len(words)} track words were given {sector.shape} sectors")
    codes = unpack(words)
    idle = int(np.count_nonzero(codes["valid"] == 0))
    if idle:
        raise DataError(
            f"{idle} of {len(words)} track words are not valid (their first bit is 0); an idle "
            "link sends such words: leave them out, and count only valid ones in the offsets"
        )
    return inputs_of(codes, sector)
