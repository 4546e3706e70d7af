"""The 96-bit word in which the Level-1 track finder sends a track.

Source of the layout, the steps and the bin edges: the CMS software's public
DataFormats/L1TrackTrigger/interface/TTTrack_TrackWord.h (2021 and later). Fields from the most
significant bit: valid 1, rinv 15, phi 12, chi2rphi 4, tanl 16, z0 12, chi2rz 4, d0 13,
bendchi2 3, hitpattern 7, quality 3, other 6.

A track is a mapping of field names to arrays: real values in the units below, or codes. Codes of
signed fields are signed here (-2^(b-1) .. 2^(b-1) - 1); `pack` writes them in two's complement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillfit.core.errors import DataError, ShapeError

Codes: TypeAlias = NDArray[np.int32]
WORD_BYTES = 12
SECTORS = 9
SECTOR_WIDTH = 2 * np.pi / SECTORS


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the word: `bits` wide, its least significant bit at `low` (0 = last bit).

    `kind` signed: steps of `lsb` (in `unit`) around zero; bins: lower edges `edges`, the last bin
    open; plain: an unsigned number that is its own code.
    """

    name: str
    bits: int
    low: int
    kind: Literal["signed", "bins", "plain"]
    unit: str = ""
    lsb: float = 1.0
    edges: tuple[float, ...] = ()

    @property
    def codes(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if self.kind == "signed":
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    def digitise(self, values: ArrayLike) -> Codes:
        """Real values to codes: floor(value / lsb) or the bin, saturating at both ends.

        Values below the first bin edge go to the first bin. NaN has no code: `DataError`.
        """
        real = np.asarray(values)
        if real.dtype.kind == "f" and np.any(np.isnan(real)):
            at = int(np.flatnonzero(np.isnan(real).ravel())[0])
            raise DataError(f"{self.name} of track {at} is not a number; a fit that failed?")
        low, high = self.codes
        if self.kind == "bins":
            code = np.searchsorted(np.array(self.edges), real, side="right") - 1
        elif self.kind == "signed":
            # Double precision: the steps are double in the firmware's emulation too.
            code = np.floor(real.astype(np.float64) / self.lsb)
        else:
            code = real
        return np.clip(code, low, high).astype(np.int32)

    def undigitise(self, codes: ArrayLike) -> NDArray[np.float64]:
        """Codes to real values: (code + 0.5) lsb, the lower edge of the bin, or the number."""
        code = self.check(codes)
        if self.kind == "bins":
            return np.array(self.edges)[code]  # type: ignore[no-any-return]
        if self.kind == "signed":
            return (code.astype(np.float64) + 0.5) * self.lsb
        return code.astype(np.float64)

    def check(self, codes: ArrayLike) -> NDArray[np.integer[Any]]:
        """The codes as an integer array; `DataError` if one does not fit into the field."""
        code = np.asarray(codes)
        if code.dtype == np.bool_:
            code = code.astype(np.uint8)
        if code.dtype.kind not in "iu":
            raise DataError(f"codes of {self.name} must be whole numbers, got {code.dtype}")
        low, high = self.codes
        if code.size and (code.min() < low or code.max() > high):
            worst = int(code.min()) if code.min() < low else int(code.max())
            raise DataError(
                f"a code of {self.name} is {worst}, its {self.bits} bits hold {low} to {high}; "
                "was a real value passed for a code?"
            )
        return code


_CHI2RPHI = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 10.0, 15.0, 20.0, 35.0, 60.0, 200.0)
_CHI2RZ = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0, 10.0, 20.0, 50.0)
_BENDCHI2 = (0.0, 0.75, 1.0, 1.5, 2.25, 3.5, 5.0, 20.0)

FIELDS: Mapping[str, Field] = {
    field.name: field
    for field in (
        Field(name="valid", bits=1, low=95, kind="plain"),
        Field(name="rinv", bits=15, low=80, kind="signed", unit="1/cm", lsb=0.012 / 2**15),
        Field(name="phi", bits=12, low=68, kind="signed", unit="rad", lsb=2 * 0.7853981696 / 2**12),
        Field(name="chi2rphi", bits=4, low=64, kind="bins", edges=_CHI2RPHI),
        Field(name="tanl", bits=16, low=48, kind="signed", lsb=1 / 4096),
        Field(name="z0", bits=12, low=36, kind="signed", unit="cm", lsb=2 * 20.46912512 / 2**12),
        Field(name="chi2rz", bits=4, low=32, kind="bins", edges=_CHI2RZ),
        Field(name="d0", bits=13, low=19, kind="signed", unit="cm", lsb=1 / 256),
        Field(name="bendchi2", bits=3, low=16, kind="bins", edges=_BENDCHI2),
        Field(name="hitpattern", bits=7, low=9, kind="plain"),
        Field(name="quality", bits=3, low=6, kind="plain"),
        Field(name="other", bits=6, low=0, kind="plain"),
    )
}


def digitise(tracks: Mapping[str, ArrayLike]) -> dict[str, Codes]:
    """Codes of the named fields, each array of shape (n,). phi is relative to its sector."""
    return {name: _field(name).digitise(values) for name, values in tracks.items()}


def undigitise(codes: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """Real values of the named fields."""
    return {name: _field(name).undigitise(code) for name, code in codes.items()}


def pack(codes: Mapping[str, ArrayLike]) -> NDArray[np.uint8]:
    """Words of n tracks, uint8 (n, 12), most significant byte first. Absent fields are 0.

    Errors: `DataError` for a code that does not fit, `ShapeError` for arrays of unequal length.
    """
    arrays = {name: np.atleast_1d(_field(name).check(code)) for name, code in codes.items()}
    sizes = {name: array.shape for name, array in arrays.items()}
    if len(set(sizes.values())) != 1 or len(next(iter(sizes.values()))) != 1:
        raise ShapeError(f"fields of a track word must be axes of equal length, got {sizes}")
    words = np.zeros((next(iter(sizes.values()))[0], 3), np.uint32)
    for name, array in arrays.items():
        field = FIELDS[name]
        bits = (array.astype(np.int64) & ((1 << field.bits) - 1)).astype(np.uint32)
        # No field crosses a 32-bit boundary of this layout (a test says so).
        words[:, 2 - field.low // 32] |= bits << np.uint32(field.low % 32)
    return words.astype(">u4").view(np.uint8).reshape(-1, WORD_BYTES)


def unpack(words: NDArray[np.uint8]) -> dict[str, Codes]:
    """Codes of every field from words as `pack` makes them."""
    if words.dtype != np.uint8 or words.ndim != 2 or words.shape[1] != WORD_BYTES:
        raise ShapeError(
            f"track words must be uint8 of shape (n, {WORD_BYTES}), got {words.dtype} {words.shape}"
        )
    parts = np.ascontiguousarray(words).view(">u4").astype(np.uint32)
    codes: dict[str, Codes] = {}
    for name, field in FIELDS.items():
        shifted = parts[:, 2 - field.low // 32] >> np.uint32(field.low % 32)
        code = (shifted & np.uint32((1 << field.bits) - 1)).astype(np.int32)
        if field.kind == "signed":
            code -= (code >> (field.bits - 1)) << field.bits
        codes[name] = code
    return codes


def to_sector(phi: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Nearest of the nine sectors (centred on multiples of 40 degrees) and phi relative to it."""
    angle = np.asarray(phi, np.float64)
    sector = np.rint(angle / SECTOR_WIDTH).astype(np.int64)
    return (sector % SECTORS).astype(np.int8), angle - sector * SECTOR_WIDTH


def from_sector(sector: ArrayLike, phi: ArrayLike) -> NDArray[np.float64]:
    """Global phi in [-pi, pi) of a track in `sector`."""
    angle = np.asarray(phi, np.float64) + np.asarray(sector) * SECTOR_WIDTH
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _field(name: str) -> Field:
    if name not in FIELDS:
        raise DataError(f"the track word has no field {name!r}; it has {', '.join(FIELDS)}")
    return FIELDS[name]
