"""Named, independent random streams from one seed, the same on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Seeds:
    """A root seed from which every consumer draws its own stream by name.

    Two names never share a stream, and a consumer that is added later leaves the others as they
    were: the state is derived from the name (SHA-256), not from the order of the calls.
    """

    root: int

    def integer(self, *name: str | int) -> int:
        """A 63-bit seed for foreign generators (torch, Pythia)."""
        # A slash inside a name is escaped, so that ("a", "b") and ("a/b",) differ.
        parts = [str(part).replace("\\", "\\\\").replace("/", "\\/") for part in name]
        text = "/".join([str(self.root), *parts])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def rng(self, *name: str | int) -> np.random.Generator:
        """A NumPy generator for the consumer `name`."""
        return np.random.default_rng(self.integer(*name))
