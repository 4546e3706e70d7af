"""Versions and journal: append-only, content-addressed, atomic switch and rollback."""

from stillfit.registry.audit import Finding, rebuild, verify
from stillfit.registry.checkpoints import Checkpoint
from stillfit.registry.commands import Command
from stillfit.registry.entries import Entry
from stillfit.registry.journal import Head
from stillfit.registry.measurements import Measurement
from stillfit.registry.registry import Registry
from stillfit.registry.versions import (
    Architecture,
    Manifest,
    StoredVersion,
    VersionFacts,
)
from stillfit.registry.writer import Writer

__all__ = [
    "Architecture",
    "Checkpoint",
    "Command",
    "Entry",
    "Finding",
    "Head",
    "Manifest",
    "Measurement",
    "Registry",
    "StoredVersion",
    "VersionFacts",
    "Writer",
    "rebuild",
    "verify",
]
