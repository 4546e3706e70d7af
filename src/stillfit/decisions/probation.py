"""Bake: after a switch the new version is on probation against the old one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, ShapeError


class ProbationState(NamedTuple):
    """Paired differences new - old, in batches: `batches`, `mean`, `m2` (sum of squared deviations)
    of full batches' means, `part`, `held`: sum and events of the batch being filled.

    `diverged`: events on which the new version's error was not finite.
    """

    batches: int = 0
    mean: float = 0.0
    m2: float = 0.0
    part: float = 0.0
    held: int = 0
    diverged: int = 0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`what`: keep and end the probation, roll back, or wait for more labels."""

    what: Literal["keep", "roll back", "wait"]
    because: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Probation:
    """Paired late errors of the new and the old version on the same events, judged at any time.

    d = new - old. A confidence sequence for mean(d) holds at all times at once with probability
    `confidence` on each side, so looking after every label costs nothing: roll back when its lower
    end is above 0 (surely worse); keep when its upper end is below `margin` (surely not worse by
    that much), or after `enough` events without a proof of harm. No labels: wait.

    With m batch means of spread s: half-width = s sqrt(2 (m r + 1) / (m^2 r) log(1 +
    sqrt(m r + 1) / (2 alpha))), r chosen to be tightest at `enough` events. Batches of `batch`
    successive events make it hold under serial correlation that is shorter. Nothing is judged
    before `least` batches, as the sequence is asymptotic.

    Source: Waudby-Smith et al. 2021, arXiv:2103.06476 (asymptotic, one-sided).
    """

    margin: float = 0.0
    confidence: float = 0.95
    batch: int = 10
    least: int = 10
    enough: int = 2000

    def __post_init__(self) -> None:
        if self.margin < 0 or not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"probation needs margin >= 0 and confidence in [0.5, 1), got {self.margin} and "
                f"{self.confidence}"
            )
        if self.batch < 1 or self.least < 2 or self.enough < self.batch * self.least:
            raise ConfigError(
                f"probation needs batch >= 1, least >= 2 and enough >= batch * least, got "
                f"{self.batch}, {self.least} and {self.enough}"
            )

    def init(self) -> ProbationState:
        return ProbationState()

    def step(
        self, state: ProbationState, new: NDArray[np.float64], old: NDArray[np.float64]
    ) -> ProbationState:
        """Take the late errors of both versions on the same events, (n,), as they arrive.

        Events on which the old version's error is not finite tell nothing and are left out.
        """
        if new.shape != old.shape or new.ndim != 1:
            raise ShapeError(
                f"probation needs errors of both versions on the same events, got {new.shape} and "
                f"{old.shape}"
            )
        usable = np.isfinite(old)
        diverged = usable & ~np.isfinite(new)
        d = (new - old)[usable & ~diverged]
        count, mean, m2, part, held, bad = state
        stops = np.arange(self.batch - held, len(d) + 1, self.batch)
        for chunk in np.split(d, stops[stops > 0]):
            part, held = part + float(chunk.sum()), held + len(chunk)
            if held < self.batch:
                continue
            count += 1
            away = part / held - mean
            mean += away / count
            m2 += away * (part / held - mean)
            part, held = 0.0, 0
        return ProbationState(count, mean, m2, part, held, bad + int(diverged.sum()))

    def judge(self, state: ProbationState) -> Judgement:
        if state.diverged:
            because = f"the new version's error was not finite on {state.diverged} events"
            return Judgement(what="roll back", because=because)
        events = state.batches * self.batch + state.held
        if state.batches < self.least:
            because = (
                f"{events} late labels since the switch; it takes {self.least * self.batch} to "
                "judge"
            )
            return Judgement(what="wait", because=because)
        reach = self._reach(state)
        lower, upper = state.mean - reach, state.mean + reach
        figures = {"mean": state.mean, "lower": lower, "upper": upper, "n": float(events)}
        text = (
            f"over {events} events the new version's error is {state.mean:+.4g} against the old "
            f"one's ({lower:+.4g} to {upper:+.4g} at {self.confidence:.0%} at any time)"
        )
        if upper < self.margin:
            because = f"{text}: surely not worse by {self.margin:.4g}"
            return Judgement(what="keep", because=because, figures=figures)
        if lower > 0:
            because = f"{text}: surely worse"
            return Judgement(what="roll back", because=because, figures=figures)
        if events >= self.enough:
            because = f"{text}: no proof of harm in {self.enough} events"
            return Judgement(what="keep", because=because, figures=figures)
        return Judgement(what="wait", because=f"{text}: undecided", figures=figures)

    def _reach(self, state: ProbationState) -> float:
        m, alpha = state.batches, 1 - self.confidence
        spread = math.sqrt(state.m2 / (m - 1))
        tight = -2 * math.log(2 * alpha) if alpha < 0.3 else 1.0
        r = (tight + math.log(1 + tight)) / (self.enough / self.batch)
        wide = 2 * (m * r + 1) / (m * m * r) * math.log(1 + math.sqrt(m * r + 1) / (2 * alpha))
        return spread * math.sqrt(wide)
