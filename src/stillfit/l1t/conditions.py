"""What may change between the detector that a network was trained for and the one it meets.

`Conditions` is one point in time; a scenario is a time line of them. Every knob has its unit and
its nominal value; unknown or impossible ones are a `ConfigError`. The knobs of composition
(`pileup`, `z_beam`, `sigma_z`, `processes`) are read by `composition.compose`, all others by
`detector.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from stillfit.core.errors import ConfigError
from stillfit.core.tables import build

LayerName: TypeAlias = Literal["B1", "B2", "B3", "B4", "B5", "B6", "D1", "D2", "D3", "D4", "D5"]
LAYERS: tuple[LayerName, ...] = (
    "B1",
    "B2",
    "B3",
    "B4",
    "B5",
    "B6",
    "D1",
    "D2",
    "D3",
    "D4",
    "D5",
)  # barrel layers and double-disks, inside out; a disk's name means both ends
Interval: TypeAlias = tuple[float, float]
FULL_TURN: Interval = (-math.pi, math.pi)
ANY_ETA: Interval = (-5.0, 5.0)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def _check_region(what: str, phi: Interval, eta: Interval) -> None:
    for angle in phi:
        if not -math.pi <= angle <= math.pi:
            raise ConfigError(f"{what}'s phi must lie in [-pi, pi] rad, got {phi}")
    if not eta[0] < eta[1]:
        raise ConfigError(f"{what}'s eta must rise, got {eta}; give the lower edge first")


@dataclass(frozen=True, kw_only=True)
class DeadRegion:
    """A range of (phi, eta) in which stubs are lost.

    `phi` (rad, in [-pi, pi]; first > second runs through pi) and `eta` are those of the stub as
    seen from the origin. `layers`: names, () for all. `efficiency`: the share of stubs that is
    left. `drops="tracks"` removes finished tracks by their fitted phi and eta instead, as the
    authors of the ten regions did (a mask, not physics: tracks of low pT bend out of a region).
    """

    phi: Interval = FULL_TURN
    eta: Interval = ANY_ETA
    layers: tuple[LayerName, ...] = ()
    efficiency: float = 0.0
    drops: Literal["stubs", "tracks"] = "stubs"

    def __post_init__(self) -> None:
        _check_region("a dead region", self.phi, self.eta)
        _check("a dead region's efficiency", self.efficiency, 0.0, 1.0)
        if self.drops == "tracks" and self.layers:
            raise ConfigError(
                f"a dead region that drops tracks has no layers, got {', '.join(self.layers)}; "
                'use drops = "stubs" to lose layers'
            )


@dataclass(frozen=True, kw_only=True)
class HotRegion:
    """A range of (phi, eta) with `rate` times the nominal density of unrelated stubs.

    Ranges and layers as in `DeadRegion`. Noisy modules make wrong stubs on tracks and fakes.
    """

    phi: Interval = FULL_TURN
    eta: Interval = ANY_ETA
    layers: tuple[LayerName, ...] = ()
    rate: float = 3.0

    def __post_init__(self) -> None:
        _check_region("a hot region", self.phi, self.eta)
        _check("a hot region's rate", self.rate, 0.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class SectorShift:
    """Modules centred in the `phi` range (rad) report z displaced by `z_shift` (cm)."""

    z_shift: float
    phi: Interval = FULL_TURN
    layers: tuple[LayerName, ...] = ("B1", "B2", "B3", "B4", "B5", "B6")

    def __post_init__(self) -> None:
        _check_region("a sector shift", self.phi, ANY_ETA)
        _check("a sector shift's z_shift", self.z_shift, -5.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class LayerEfficiency:
    """A factor on the hit efficiency of each layer; a disk's counts for both ends."""

    B1: float = 1.0
    B2: float = 1.0
    B3: float = 1.0
    B4: float = 1.0
    B5: float = 1.0
    B6: float = 1.0
    D1: float = 1.0
    D2: float = 1.0
    D3: float = 1.0
    D4: float = 1.0
    D5: float = 1.0

    def __post_init__(self) -> None:
        for name in LAYERS:
            _check(f"layer_efficiency.{name}", getattr(self, name), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class LayerShift:
    """A displacement (cm) of the z that each layer reports; a disk's moves both ends alike."""

    B1: float = 0.0
    B2: float = 0.0
    B3: float = 0.0
    B4: float = 0.0
    B5: float = 0.0
    B6: float = 0.0
    D1: float = 0.0
    D2: float = 0.0
    D3: float = 0.0
    D4: float = 0.0
    D5: float = 0.0

    def __post_init__(self) -> None:
        for name in LAYERS:
            _check(f"layer_z_shift.{name}", getattr(self, name), -5.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Weights of the kinds of hard scatter, by name of the library's process."""

    ttbar: float = 1.0
    zmumu: float = 0.0
    hbb: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(f"processes.{field.name}", getattr(self, field.name), 0.0, math.inf)
        if sum(self.weights().values()) == 0:
            raise ConfigError("processes gives every kind of hard scatter the weight 0")

    def weights(self) -> dict[str, float]:
        """Those with a positive weight, as `compose` takes them."""
        every = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: weight for name, weight in every.items() if weight > 0}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """One state of beams, detector and track finder. All defaults together are nominal.

    Beams (for `compose`): `pileup` mean interactions per crossing; `z_beam`, `sigma_z` (cm)
    centre and width of the luminous region; `processes` mixture of hard scatters.

    Efficiency: `hit_efficiency` of a live module, times `layer_efficiency`, times what ageing
    left: 1 - `ageing` * (25 cm / r) * L, with L the `integrated_luminosity` in 1000 fb^-1, for a
    module at radius r (fluence falls about as 1/r in the outer tracker); and the share
    1 - exp(-`module_loss` * L) of modules is dead. Which ones die, and in what order, is drawn
    once from `detector_seed`: the dead stay dead. `dead_regions` come on top.

    Alignment: shifts are those of the *reported* position, so that a common shift of all layers
    moves z0 by as much. `barrel_z_shift` (cm) moves all barrel layers against the disks,
    `layer_z_shift` each layer, `sector_shifts` ranges of phi. `twist` (rad/cm) turns a module at
    z by twist * z: pT is wrong by charge. `radial_scale` (relative) is the barrel's radii as
    reported over true: tracks with stubs in barrel and disks are biased in z0.

    Resolution: `barrel_ps_resolution` and `disk_ps_resolution` are factors on the single-hit
    resolution in both coordinates, `two_s_resolution` in r-phi only (strips keep their length).
    Fit weights stay nominal, as the firmware's do.

    Fakes: `noise` is a factor on the density of unrelated stubs, which spoil true tracks and
    complete fakes; `fake_scale` a factor on the number of wrong seeds; `good_fakes` adds fakes
    that fit as well as true tracks, in units of the nominal number of fakes; `hot_regions`.

    Scales and track finder: `pt_scale` factor on the fitted pT (a wrong field or calibration);
    `finder_efficiency` share of tracks that survive truncation and duplicate removal;
    `min_stubs`; `max_chi2rphi`, `max_chi2rz` and `max_bendchi2` (per degree of freedom, inf: no
    cut); `quality_word`: what reaches the vertex finder instead of the quality index q of 0..7:
    "inverted" 7 - q, "stuck" always 0.
    """

    pileup: float = 200.0
    z_beam: float = 0.0
    sigma_z: float = 5.3
    processes: Processes = Processes()

    hit_efficiency: float = 0.985
    layer_efficiency: LayerEfficiency = LayerEfficiency()
    dead_regions: tuple[DeadRegion, ...] = ()
    integrated_luminosity: float = 0.0
    ageing: float = 0.03
    module_loss: float = 0.02
    detector_seed: int = 1

    barrel_z_shift: float = 0.0
    layer_z_shift: LayerShift = LayerShift()
    sector_shifts: tuple[SectorShift, ...] = ()
    twist: float = 0.0
    radial_scale: float = 1.0

    barrel_ps_resolution: float = 1.0
    disk_ps_resolution: float = 1.0
    two_s_resolution: float = 1.0

    noise: float = 1.0
    fake_scale: float = 1.0
    good_fakes: float = 0.0
    hot_regions: tuple[HotRegion, ...] = ()

    pt_scale: float = 1.0
    finder_efficiency: float = 0.97
    min_stubs: int = 4
    max_chi2rphi: float = math.inf
    max_chi2rz: float = math.inf
    max_bendchi2: float = math.inf
    quality_word: Literal["nominal", "inverted", "stuck"] = "nominal"

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            _check(name, getattr(self, name), low, high)
        names = {"max_chi2rphi", "max_chi2rz", "max_bendchi2"}
        for name in names:
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} must be positive (inf: no cut), got {value}")


_LIMITS: Mapping[str, tuple[float, float]] = {
    "pileup": (0.0, 1000.0),
    "z_beam": (-15.0, 15.0),
    "sigma_z": (0.0, 15.0),
    "hit_efficiency": (0.0, 1.0),
    "integrated_luminosity": (0.0, 10_000.0),
    "ageing": (0.0, 1.0),
    "module_loss": (0.0, 10.0),
    "detector_seed": (0, 2**31 - 1),
    "barrel_z_shift": (-5.0, 5.0),
    "twist": (-1e-3, 1e-3),
    "radial_scale": (0.9, 1.1),
    "barrel_ps_resolution": (0.0, 100.0),
    "disk_ps_resolution": (0.0, 100.0),
    "two_s_resolution": (0.0, 100.0),
    "noise": (0.0, 20.0),
    "fake_scale": (0.0, 20.0),
    "good_fakes": (0.0, 20.0),
    "pt_scale": (0.5, 2.0),
    "finder_efficiency": (0.0, 1.0),
    "min_stubs": (4, 7),
}


def nominal() -> Conditions:
    """The detector as designed: what networks are first trained for."""
    return Conditions()


def conditions(table: Mapping[str, Any], where: str = "conditions") -> Conditions:
    """From a table of a run file, strictly: unknown names and wrong types are `ConfigError`s.

    `integrated_luminosity` and the like are numbers at one time; time lines live in scenarios.
    """
    return build(Conditions, table, where)


_SECTOR = 0.698  # rad: 40 degrees, one of the nine sectors of the track finder
DEAD_REGIONS: Mapping[str, DeadRegion | None] = {
    "0": None,
    "1": DeadRegion(phi=(0.0, _SECTOR)),
    "2": DeadRegion(phi=(-_SECTOR, 0.0)),
    "3": DeadRegion(phi=(-_SECTOR, _SECTOR)),
    "4": DeadRegion(phi=(0.0, 0.1), eta=(0.8, 1.4)),
    "5": DeadRegion(phi=(-_SECTOR, 0.0), eta=(0.8, 1.4)),
    "6": DeadRegion(eta=(0.8, 1.4)),
    "7": DeadRegion(phi=(0.0, 0.1), eta=(-0.8, 1.2)),
    "8": DeadRegion(phi=(0.0, 0.02), eta=(-0.8, 1.2)),
    "9": DeadRegion(phi=(0.0, _SECTOR), eta=(-0.8, 1.2)),
}
"""The ten regions of the EPJ Web Conf. 295, 09037 study, in its order; "0" is nominal.

Here all layers lose the region's stubs; `dataclasses.replace(region, drops="tracks")` is the
authors' own mask on tracks.
"""
