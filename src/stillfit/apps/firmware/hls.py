"""hls4ml projects beside the Verilog of a stored version."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stillfit.core.errors import StillfitError

if TYPE_CHECKING:
    from stillfit.apps.firmware.project import Network, Project
    from stillfit.core.values import Equality
    from stillfit.firmware.hls import HlsProject

FOLDER = "hls4ml"
RECORDED = 1000  # vectors for a test bench


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of each network: its folder within the project, or why there is none."""

    folders: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """For the screen."""
        return [f"{name}: hls4ml project in {folder}" for name, folder in self.folders.items()] + [
            f"{name}: no hls4ml project: {why}" for name, why in self.refused.items()
        ]

    @property
    def page(self) -> str:
        """For the README of the whole project."""
        if not self.folders:
            return ""
        rows = "".join(f"- `{folder}/`: {name}\n" for name, folder in self.folders.items())
        return (
            "\n## hls4ml\n\nThe same networks as C++ for Vitis HLS, a second way to the same "
            f"numbers; each has a README.\n\n{rows}"
        )


def write_hls_projects(project: Project, out: Path) -> Written:
    """Write each network of a version for hls4ml, with a test bench.

    It comes on top: what hls4ml lacks or refuses is said and keeps nothing else from being built.
    """
    from stillfit.firmware.devices import device
    from stillfit.firmware.hls import write_hls_bench

    written = Written()
    if find_spec("hls4ml") is None:
        why = "hls4ml is not installed (pip install 'stillfit[hls]')"
        return Written(refused={one.rtl.traced.name: why for one in project.networks})
    chip = device(project.wanted.device)
    for one in project.networks:
        place = f"{FOLDER}/{one.rtl.name}"
        try:
            made = _project(project, one, out / place)
        except StillfitError as error:
            written.refused[one.rtl.traced.name] = str(error)
            continue
        write_hls_bench(made, one.recorded(RECORDED, project.wanted.seed), chip)
        written.folders[one.rtl.traced.name] = place
    return written


def check_hls_project(project: Project, one: Network, vectors: int, scratch: Path) -> Equality:
    """The C simulation of a network's hls4ml project on vectors, against the other two."""
    from stillfit.firmware.hls import check_hls

    made = _project(project, one, scratch / f"{one.rtl.name}_hls4ml")
    recorded = one.recorded(vectors, project.wanted.seed)
    return check_hls(made, recorded, scratch / f"{one.rtl.name}_hls4ml_sim")


def _project(project: Project, one: Network, folder: Path) -> HlsProject:
    from stillfit.firmware.devices import device
    from stillfit.firmware.hls import write_hls

    traced = one.rtl.traced
    return write_hls(
        one.whole,
        one.rtl.name,
        folder,
        device(project.wanted.device),
        design=traced.design,
        inputs=traced.input,
        title=traced.name,
    )
