"""Figures of the wall clock and the machine, kept beside the journal and outside of every hash.

A run that is repeated gives the same versions and the same journal, but not the same seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillfit.registry.canon import canonical, check_name, plain
from stillfit.registry.durable import inside, reported, write_all

FILE = "measurements.jsonl"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """`what` was measured in a lane, such as an update by its version id, and the figures."""

    lane: str
    what: str
    figures: Mapping[str, float]


def add_measurement(root: Path, found: Measurement) -> None:
    """Append a line. Not flushed: a power cut may lose the newest, and nothing depends on them."""
    check_name(found.lane, "a lane")
    path = inside(root, FILE)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with reported(path):
        handle = os.open(path, flags, 0o666)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            line = canonical(plain(found, "measurement")) + b"\n"
            write_all(handle, [b"\n" + line if torn else line])
        finally:
            os.close(handle)


def read_measurements(root: Path) -> list[Measurement]:
    """All lines that are whole; one torn by a kill is passed over."""
    path = inside(root, FILE)
    if not path.exists():
        return []
    found: list[Measurement] = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(Measurement(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
