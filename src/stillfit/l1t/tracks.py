"""Level-1 tracks with their truth, flat, and as the inputs and targets of a block of events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Column, Ragged

INPUTS = (
    "pt",
    "eta",
    "phi",
    "z0",
    "d0",
    "chi2rphi",
    "chi2rz",
    "bendchi2",
    "nstub",
    "layers",
    "hitpattern",
    "mva",
    "quality",
)


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Level-1 tracks of n events, flat: event `i` owns `offsets[i]` to `offsets[i + 1]`.

    Fitted: pt (GeV, at least 2), eta (within 2.4), phi (rad), z0 and d0 (cm); chi2rphi, chi2rz
    and bendchi2 per degree of freedom; nstub; layers (bits 0-5: barrel layers 1-6, bits 6-10:
    disks 1-5); hitpattern (7 bits: bit k is set where the k-th layer on the track's way has a
    stub); mva (the classifier's probability of being genuine), quality (its index 0..7, as it
    reaches the vertex finder). Truth: is_pv, is_fake, particle (its
    number within the event's particles, -1 for fakes). Per event: pv_z (cm), true.
    """

    offsets: NDArray[np.int64]
    pt: NDArray[np.float32]
    eta: NDArray[np.float32]
    phi: NDArray[np.float32]
    z0: NDArray[np.float32]
    d0: NDArray[np.float32]
    chi2rphi: NDArray[np.float32]
    chi2rz: NDArray[np.float32]
    bendchi2: NDArray[np.float32]
    nstub: NDArray[np.uint8]
    layers: NDArray[np.uint16]
    hitpattern: NDArray[np.uint8]
    is_pv: NDArray[np.uint8]
    is_fake: NDArray[np.uint8]
    particle: NDArray[np.int32]
    mva: NDArray[np.float32]
    quality: NDArray[np.uint8]
    pv_z: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tracks of each event."""
        return np.diff(self.offsets)

    def to_inputs(self) -> dict[str, Column]:
        """What the trigger sees: one `Ragged` per track quantity of `INPUTS`."""
        return {name: Ragged(getattr(self, name), self.offsets) for name in INPUTS}

    def to_targets(self) -> dict[str, Column]:
        """The truth: `z0` (n,) of the hard scatter in cm, and `is_pv` of each track."""
        return {"z0": self.pv_z, "is_pv": Ragged(self.is_pv, self.offsets)}
