"""What an updater may look back on: labelled events of the store, and those without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillfit.core.arrays import concat
from stillfit.core.events import Examples
from stillfit.streams.joining import Joiner
from stillfit.streams.store import Keeping, View, is_held_out


@dataclass(frozen=True)
class Remembered:
    """The training side of the store, and the events that wait for labels in the joiner.

    It stands for the moment of a request. Held out for the gates is decided by the event's id
    before its label comes, so no updater sees the inputs of what it will be judged on.
    """

    labelled: View
    joiner: Joiner
    rules: Keeping

    def all(self) -> Examples:
        """Everything labelled that is kept."""
        return self.labelled.all()

    def window(self, since: float) -> Examples:
        """What is labelled and was seen at or after `since` (s)."""
        return self.labelled.window(since)

    def unlabelled(self, condition: str, limit: int) -> Examples:
        """The newest `limit` events of a condition that wait for a label."""
        rules = self.rules
        parts: list[Examples] = []
        room = limit if rules.weight(condition) else 0
        for block in reversed(self.joiner.unlabelled()):
            if room <= 0:
                break
            if block.condition != condition:
                continue
            ours = ~is_held_out(block.ids, rules.held_out, rules.seed, rules.stretch)
            part = block.take(np.flatnonzero(ours)[-room:])
            if len(part):
                times, names = np.full(len(part), block.time), np.full(len(part), condition)
                parts.append(Examples(part.ids, concat([part.inputs]), {}, times, names))
                room -= len(part)
        return Examples.join(parts[::-1])
