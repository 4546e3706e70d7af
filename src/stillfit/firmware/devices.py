"""Chips by name: their resources, their clock, and what tools call their family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from stillfit.core.errors import ConfigError
from stillfit.core.tables import build, did_you_mean, read_toml
from stillfit.core.values import Device

FAMILIES = ("xcup", "xcu", "xc7")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A device as its file tells of it.

    `family`: Yosys's name of it. `lut`, `ff`, `dsp` and `bram` (blocks of 36 kbit) are those of
    the whole device. `ns_per_unit`: time (ns) of alkaid's unit of delay, about that of one adder
    with its wires. No vendor tool has confirmed it: alkaid itself takes five units for a clock of
    5 ns. A design is cut into stages of at most one period. `part`: the name with package and
    speed grade, which an HLS project states.
    """

    name: str
    family: str
    lut: int
    ff: int
    dsp: int
    bram: float
    clock_mhz: float
    ns_per_unit: float
    part: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(
                f"the family of device {self.name} is {self.family!r}; "
                f"synthesis knows {', '.join(FAMILIES)}"
            )
        if min(self.lut, self.ff) < 1 or min(self.dsp, self.bram) < 0:
            raise ConfigError(
                f"device {self.name} has {self.lut} LUT, {self.ff} FF, {self.dsp} DSP and "
                f"{self.bram} BRAM; give what its data sheet says"
            )
        if not (self.clock_mhz > 0 and self.ns_per_unit > 0):
            raise ConfigError(
                f"device {self.name}: clock_mhz = {self.clock_mhz} and ns_per_unit = "
                f"{self.ns_per_unit} must be positive"
            )

    @property
    def device(self) -> Device:
        """What the gates read."""
        return Device(
            name=self.name,
            lut=self.lut,
            ff=self.ff,
            dsp=self.dsp,
            bram=self.bram,
            clock_mhz=self.clock_mhz,
        )

    @property
    def period(self) -> float:
        """ns of one clock cycle."""
        return 1000 / self.clock_mhz

    @property
    def cutoff(self) -> float:
        """Units of delay that a pipeline stage may have."""
        return self.period / self.ns_per_unit


def devices() -> dict[str, Chip]:
    """The chips that come with stillfit."""
    folder = files("stillfit.firmware") / "devices"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            name = entry.name.removesuffix(".toml")
            found[name] = _chip(name, read_toml(Path(str(entry))), entry.name)
    return found


def device(name: str) -> Chip:
    """A chip by name, or from the path of a TOML file of one's own."""
    if name.endswith(".toml"):
        path = Path(name)
        return _chip(path.stem, read_toml(path), name)
    known = devices()
    if name not in known:
        raise ConfigError(
            f"there is no device {name!r}{did_you_mean(name, known)}; "
            "or give the path of a TOML file with its resources"
        )
    return known[name]


def _chip(name: str, table: Mapping[str, Any], where: str) -> Chip:
    return build(Chip, {"name": name, **table}, where)
