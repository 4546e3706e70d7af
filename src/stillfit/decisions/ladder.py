"""The ladder: the cheapest change that convinces the gates wins; a refusal climbs one rung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillfit.core.errors import ConfigError
from stillfit.core.tables import did_you_mean
from stillfit.core.values import Verdict

Outcome = Literal["try", "accept", "call a person"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A rung that was tried: what the gates said, or why there was no candidate to judge."""

    rung: str
    verdicts: tuple[Verdict, ...] = ()
    skipped: str = ""

    @property
    def accepted(self) -> bool:
        return bool(self.verdicts) and not self.skipped and all(v.accepted for v in self.verdicts)

    @property
    def because(self) -> str:
        if self.skipped:
            return self.skipped
        refusals = [f"{v.gate}: {v.because}" for v in self.verdicts if not v.accepted]
        return "; ".join(refusals) if self.verdicts else "no gate judged it"


@dataclass(frozen=True, kw_only=True)
class Climb:
    """What comes next: try `rung`, accept `rung`, or call a person (`rung` is None)."""

    outcome: Outcome
    rung: str | None
    because: str


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """`rungs`: names of the ways to a candidate, cheapest first."""

    rungs: tuple[str, ...] = ("redeploy", "recalibrate", "replay", "retrain")

    def __post_init__(self) -> None:
        if not self.rungs or len(set(self.rungs)) < len(self.rungs):
            raise ConfigError(f"a ladder needs one or more rungs, none of them twice: {self.rungs}")

    def climb(self, tried: Sequence[Tried] = ()) -> Climb:
        """The next step for one request, given the rungs tried for it so far, in order."""
        for attempt in tried:
            if attempt.rung not in self.rungs:
                hint = did_you_mean(attempt.rung, self.rungs)
                raise ConfigError(f"the ladder has no rung {attempt.rung!r}{hint}")
            if attempt.accepted:
                because = f"{attempt.rung} convinced {len(attempt.verdicts)} gates"
                return Climb(outcome="accept", rung=attempt.rung, because=because)
        done = {attempt.rung for attempt in tried}
        for rung in self.rungs:
            if rung not in done:
                because = (
                    f"{tried[-1].rung} was not accepted ({tried[-1].because})"
                    if tried
                    else f"{rung} is the cheapest rung"
                )
                return Climb(outcome="try", rung=rung, because=because)
        because = (
            f"no rung convinced the gates: {'; '.join(f'{t.rung}: {t.because}' for t in tried)}"
        )
        return Climb(outcome="call a person", rung=None, because=because)
