"""Who asks for a change: pure functions of the evidence, the clock and the past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stillfit.core.errors import ConfigError
from stillfit.core.values import Evidence, Request


class Past(NamedTuple):
    """`change`: time (s) of the last switch or of the stream's begin. `request`: of the last
    request. `events`: events served since the later of the two.
    """

    change: float
    request: float = -math.inf
    events: int = 0

    @property
    def last(self) -> float:
        return max(self.change, self.request)


class Policy(Protocol):
    """Reads the newest evidence of each monitor; asks for a change or is silent (None)."""

    @property
    def name(self) -> str: ...

    def ask(self, evidence: Sequence[Evidence], *, now: float, past: Past) -> Request | None: ...


def _check_cool_down(seconds: float, events: int) -> None:
    if not seconds >= 0 or events < 0:
        raise ConfigError(f"a cool-down must not be negative, got {seconds} s and {events} events")


@dataclass(frozen=True, kw_only=True)
class AfterTime:
    """Ask when `every` seconds have passed since the last change or request."""

    every: float
    name: str = "after-time"

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise ConfigError(f"every must be a positive time in seconds, got {self.every}")

    def ask(self, evidence: Sequence[Evidence], *, now: float, past: Past) -> Request | None:
        if now - past.last < self.every:
            return None
        because = (
            f"{now - past.last:.0f} s have passed since the last change or request; the policy "
            f"asks every {self.every:.0f} s"
        )
        return Request(policy=self.name, time=now, because=because)


@dataclass(frozen=True, kw_only=True)
class _OnEvidence:
    """Ask when a finding of one of `monitors` stands (empty: of any monitor).

    `cool_down` (s) and `cool_down_events`: silence after a change or request, so that a change can
    take effect, and a refused one is not asked for again at every block. The request's `since` is
    the latest of the findings' estimates: events before the first finding's change may be old.
    """

    monitors: tuple[str, ...] = ()
    cool_down: float = 0.0
    cool_down_events: int = 0

    def __post_init__(self) -> None:
        _check_cool_down(self.cool_down, self.cool_down_events)

    def _standing(self, evidence: Sequence[Evidence], now: float, past: Past) -> list[Evidence]:
        if now - past.last < self.cool_down or past.events < self.cool_down_events:
            return []
        return [
            found
            for found in evidence
            if found.raised and (not self.monitors or found.monitor in self.monitors)
        ]


def _request(policy: str, now: float, found: Sequence[Evidence]) -> Request:
    because = "; ".join(f"{e.monitor}: {e.because}" for e in found)
    known = [e.since for e in found if e.since is not None]
    return Request(policy=policy, time=now, because=because, since=max(known, default=None))


@dataclass(frozen=True, kw_only=True)
class OnMetric(_OnEvidence):
    """Ask when the error of late labels is worse (monitors with an `age`).

    `max_age` (s): findings of older labels are left aside, as they tell of another time.
    """

    name: str = "on-metric"
    max_age: float = math.inf

    def ask(self, evidence: Sequence[Evidence], *, now: float, past: Past) -> Request | None:
        found = [
            e
            for e in self._standing(evidence, now, past)
            if e.age is not None and e.age + (now - e.time) <= self.max_age
        ]
        return _request(self.name, now, found) if found else None


@dataclass(frozen=True, kw_only=True)
class OnUncertainty(_OnEvidence):
    """Ask when the model is less sure than it was: before labels can say it is wrong.

    `monitors`: the retrain flag; by default the CUSUM of the score, the distance of its
    distribution from nominal, and the conformal martingale of late errors, those of them that
    watch the lane. An event's uncertainty is blind to what shifts all tracks alike.
    """

    name: str = "on-uncertainty"
    monitors: tuple[str, ...] = ("score-cusum", "score-ks", "conformal-martingale")

    def ask(self, evidence: Sequence[Evidence], *, now: float, past: Past) -> Request | None:
        found = self._standing(evidence, now, past)
        return _request(self.name, now, found) if found else None


@dataclass(frozen=True, kw_only=True)
class OnDrift(_OnEvidence):
    """Ask when the inputs have left the nominal distribution.

    Drift need not hurt, so a change that it asks for may well be refused by the gates.
    """

    name: str = "on-drift"
    monitors: tuple[str, ...] = ("input-drift",)

    def ask(self, evidence: Sequence[Evidence], *, now: float, past: Past) -> Request | None:
        found = self._standing(evidence, now, past)
        return _request(self.name, now, found) if found else None


@dataclass(frozen=True, kw_only=True)
class AnyOf:
    """Ask when any of `policies` asks; the reasons of all that ask are joined."""

    policies: tuple[Policy, ...]
    name: str = "any-of"

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("any_of needs at least one policy; without one nothing ever asks")

    def ask(self, evidence: Sequence[Evidence], *, now: float, past: Past) -> Request | None:
        asked = [policy.ask(evidence, now=now, past=past) for policy in self.policies]
        found = [request for request in asked if request is not None]
        if len(found) < 2:
            return found[0] if found else None
        known = [request.since for request in found if request.since is not None]
        return Request(
            policy=" + ".join(request.policy for request in found),
            time=now,
            because="; ".join(request.because for request in found),
            since=max(known, default=None),
        )


def any_of(*policies: Policy) -> AnyOf:
    """`AnyOf` of the given policies."""
    return AnyOf(policies=policies)
