"""A season of fills as a stream: beams come and go, the detector changes, labels come late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from stillfit.core.arrays import Arrays, concat
from stillfit.core.clock import HOUR
from stillfit.core.events import Block, Conditions, Event, Labels, Notice
from stillfit.core.seeds import Seeds
from stillfit.l1t import fills as lhc
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import Conditions as Detector
from stillfit.l1t.detector import simulate
from stillfit.l1t.library import Library
from stillfit.l1t.scenario import Scenario

STABLE, GAP = "stable-beams", "inter-fill"
# Offline reconstruction is ready a quarter of an hour into the gap, or earlier in a short one.
LABELS_AFTER = 900.0
# Reference pile-up of the real fills, to which their decay is scaled.
REAL_PILEUP = 40.0


class _Item(NamedTuple):
    kind: Literal["stable", "block", "gap", "labels"]
    fill: int
    time: float
    block: int = 0


@dataclass(frozen=True)
class Season:
    """The stream of a scenario: notices, blocks of simulated events, labels a fill late.

    Every block draws from a generator of its own, so that any part of the season can be made
    alone and `events(start)` skips without simulating. Slow control knows the interval of
    validity (`"condition"`), the fill, the pile-up and the integrated luminosity (1000 fb^-1).

    Memory: the targets of the fills whose labels are pending. Cost: the simulation's.
    """

    scenario: Scenario
    library: Library
    split: str = "test"

    def events(self, start: int = 0) -> Iterator[Event]:
        """The events after the first `start`, the same ones with every call."""
        fills = self.fills
        targets: dict[tuple[int, int], Arrays] = {}
        for item in self._plan(fills)[start:]:
            fill = fills[item.fill - 1]
            match item.kind:
                case "stable":
                    yield Notice(STABLE, item.time, {"fill": item.fill, "until": fill.end})
                case "gap":
                    info: dict[str, float | str] = {"fill": item.fill, "until": fill.next_start}
                    if item.fill in self.scenario.resumes:
                        info["resumed_by"] = "shift crew"
                    yield Notice(GAP, item.time, info)
                case "block":
                    block, truth = self.block(item.fill, item.block)
                    targets[item.fill, item.block] = truth
                    yield block
                case "labels":
                    parts = []
                    for number in range(self.blocks):
                        known = targets.pop((item.fill, number), None)
                        parts.append(known or self.block(item.fill, number)[1])
                    yield self._labels(item.fill, concat(parts), item.time)

    @property
    def blocks(self) -> int:
        """Blocks per fill."""
        return -(-self.scenario.events // self.scenario.block)

    @property
    def length(self) -> int:
        """Events (blocks, labels, notices) of the whole stream."""
        return len(self._plan(self.fills))

    @cached_property
    def fills(self) -> tuple[lhc.Fill, ...]:
        """The fills of the season with their times; the same for the same scenario."""
        scenario = self.scenario
        rng = Seeds(scenario.seed).rng("fills")
        levelling = lhc.Levelling() if scenario.levelled else None
        if scenario.years:
            made = lhc.real(scenario.years)[scenario.first_fill - 1 :][: scenario.fills]
        else:
            made = lhc.generate(scenario.fills, rng=rng)
        fills: list[lhc.Fill] = []
        start = 0.0
        for fill in made:
            duration = min(fill.duration, scenario.longest * HOUR)
            moved = replace(fill, start=start, duration=duration)
            fills.append(levelling.apply(moved, rng) if levelling else moved)
            start = moved.next_start
        return tuple(fills)

    def block(self, fill: int, number: int) -> tuple[Block, Arrays]:
        """One block with its truth: simulated alone, from a generator of its own."""
        scenario, beams = self.scenario, self.fills[fill - 1]
        name, detector = scenario.at(fill)
        size = min(scenario.block, scenario.events - number * scenario.block)
        first = (fill - 1) * scenario.events + number * scenario.block
        inside = (number * scenario.block + np.arange(size)) / scenario.events
        times = beams.start + beams.duration * inside
        pileup = self._pileup(beams, detector, times)
        rng = Seeds(scenario.seed).rng("fill", fill, "block", number)
        particles = compose(
            self.library,
            n=size,
            pileup=pileup,
            z_beam=detector.z_beam,
            sigma_z=detector.sigma_z,
            processes=detector.processes.weights(),
            rng=rng,
            split=self.split,
        )
        tracks = simulate(particles, detector, rng)
        known: Conditions = {
            "condition": name,
            "fill": fill,
            "pileup": float(pileup.mean()),
            "luminosity": detector.integrated_luminosity,
        }
        ids = np.arange(first, first + size, dtype=np.int64)
        return Block(ids, tracks.to_inputs(), float(times[-1]), known), tracks.to_targets()

    def _pileup(self, beams: lhc.Fill, detector: Detector, times: np.ndarray) -> np.ndarray:
        reference = lhc.Levelling().pileup if self.scenario.levelled else REAL_PILEUP
        return beams.pileup_at(times) * detector.pileup / reference

    def _labels(self, fill: int, targets: Arrays, time: float) -> Labels:
        """Offline labels: the primary vertex smeared, and shifted with what offline shares."""
        scenario = self.scenario
        rng = Seeds(scenario.seed).rng("fill", fill, "labels")
        z0 = np.asarray(targets["z0"], np.float64)
        shift = scenario.shared_misalignment * scenario.at(fill)[1].barrel_z_shift
        noisy = z0 + shift + scenario.label_noise * rng.standard_normal(len(z0))
        columns = {**targets, "z0": noisy.astype(np.float32)}
        first = (fill - 1) * scenario.events
        labels = Labels(np.arange(first, first + len(z0), dtype=np.int64), columns, time)
        if scenario.label_fraction == 1:
            return labels
        return labels.take(np.flatnonzero(rng.random(len(z0)) < scenario.label_fraction))

    def _plan(self, fills: tuple[lhc.Fill, ...]) -> list[_Item]:
        items: list[_Item] = []
        delay, events = self.scenario.label_delay, self.scenario.events
        for number, fill in enumerate(fills, start=1):
            items.append(_Item("stable", number, fill.start))
            for block in range(self.blocks):
                last = min((block + 1) * self.scenario.block, events) - 1
                items.append(
                    _Item("block", number, fill.start + fill.duration * last / events, block)
                )
            items.append(_Item("gap", number, fill.end))
            ready = fill.end + min(LABELS_AFTER, fill.gap / 4)
            if number > delay:
                items.append(_Item("labels", number - delay, ready))
            if number == len(fills):  # the last labels come in the technical stop after the season
                late = range(number - delay + 1, number + 1)
                items += [_Item("labels", n, ready + 1 + k) for k, n in enumerate(late) if n >= 1]
        return items


def conditions_of(season: Season) -> list[tuple[str, lhc.Fill, float]]:
    """Condition, fill and nominal pile-up of each fill, for a report's time line."""
    return [
        (season.scenario.at(number)[0], fill, season.scenario.at(number)[1].pileup)
        for number, fill in enumerate(season.fills, start=1)
    ]
