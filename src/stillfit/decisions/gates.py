"""Who allows a change. A gate must be convinced by held-out rows, not merely unalarmed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.predictive import Categorical, Predictive
from stillfit.core.serial import MeanError, correlation_time, mean_error
from stillfit.core.values import Budget, Cost, Equality, Footprint, UpdateClass, Verdict, VersionId

Floats = NDArray[np.float64]
_BACK = {"weights": "in seconds", "bitstream": "in a window that is long enough"}


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The task's errors of two versions on the same held-out events, in order of time, (n,)."""

    candidate: Floats
    incumbent: Floats

    def __post_init__(self) -> None:
        if self.candidate.ndim != 1 or self.candidate.shape != self.incumbent.shape:
            raise ShapeError(
                f"paired errors must be (n,) of the same events, got {self.candidate.shape} and "
                f"{self.incumbent.shape}"
            )

    def __len__(self) -> int:
        return len(self.candidate)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A version in the registry that served an old condition.

    `errors`: on the held-out events of that condition, those of `Trial.old`, (n,).
    `update_class`: what it takes to go from the candidate to it.
    """

    version: VersionId
    errors: Floats
    update_class: UpdateClass = "weights"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate against the incumbent, on events that neither policy nor updater saw.

    `new`: events of the present condition. `old`: of each accepted condition, by name. `stored`:
    of each condition, the version that served it. `predictive` and `target`: the candidate's
    headline prediction on the events of `new` and the truth (class numbers for `Categorical`),
    None where there is none; `before`: the incumbent's prediction of the same. `cost`, `budget`:
    what the update used and was allowed. `footprint`, `stands`: what the candidate and the
    incumbent need on the device, `equality`: whether the candidate's circuit answers as its
    network; None where nothing measures them.
    """

    new: Paired
    old: Mapping[str, Paired] = field(default_factory=dict)
    stored: Mapping[str, Stored] = field(default_factory=dict)
    predictive: Predictive | Categorical | None = None
    target: NDArray[np.generic] | None = None
    before: Predictive | Categorical | None = None
    cost: Cost = field(default_factory=Cost)
    budget: Budget = field(default_factory=Budget)
    footprint: Footprint | None = None
    stands: Footprint | None = None
    equality: Equality | None = None


class Gate(Protocol):
    """A pure judge of a trial."""

    @property
    def name(self) -> str: ...

    def judge(self, trial: Trial) -> Verdict: ...


def all_pass(gates: Sequence[Gate], trial: Trial) -> list[Verdict]:
    """The verdict of every gate, also after a refusal: the journal keeps all reasons."""
    return [gate.judge(trial) for gate in gates]


@dataclass(frozen=True, kw_only=True)
class BetterOnNew:
    """Accept when the candidate's error is lower by more than `margin`, at `confidence`.

    d = incumbent - candidate, paired by event; accepted when mean(d) - t * error > allowance, with
    batch-mean errors and Student-t, so serial correlation counts. The allowance is `margin` (task
    units) plus `relative` times the incumbent's mean error. An equal candidate passes in at most
    1 - confidence of trials. `least`: held-out events, counted as
    independent ones (n / correlation time), below which it refuses.
    """

    name: str = "better-on-new"
    margin: float = 0.0
    relative: float = 0.0
    confidence: float = 0.95
    least: int = 30

    def __post_init__(self) -> None:
        _check(self.margin, self.relative, self.confidence)

    def judge(self, trial: Trial) -> Verdict:
        pair = trial.new
        bad = _diverged(pair, "the new condition")
        if bad:
            return Verdict(gate=self.name, accepted=False, because=bad)
        few = _too_few(pair.incumbent - pair.candidate, self.least)
        if few:
            because = f"the new condition has {few}"
            return Verdict(gate=self.name, accepted=False, because=because)
        gain = mean_error(pair.incumbent - pair.candidate)
        allowed = self.margin + self.relative * abs(float(pair.incumbent.mean()))
        lower = gain.value - _quantile(gain, self.confidence) * gain.error
        accepted = lower > allowed
        because = (
            f"the mean error on {len(pair)} held-out events {_moved(-gain.value)} +- "
            f"{gain.error:.2g}: {'surely' if accepted else 'not surely'} better by more than "
            f"{allowed:.4g} (lower bound {lower:.4g} at {self.confidence:.0%})"
        )
        if not accepted:
            because += _more(gain, gain.value - allowed, self.confidence)
        figures = _figures(n=len(pair), gain=gain.value, error=gain.error, lower=lower,
                           allowed=allowed, candidate=pair.candidate.mean(),
                           incumbent=pair.incumbent.mean())  # fmt: skip
        return Verdict(gate=self.name, accepted=accepted, because=because, figures=figures)


@dataclass(frozen=True, kw_only=True)
class NotWorseOnOld:
    """Accept when no old condition is worse by `margin` or more, at `confidence`, each.

    Non-inferiority: d = candidate - incumbent; passed when mean(d) + t * error < allowance, which
    is `margin` plus `relative` times the incumbent's mean error there. One of the two must be
    positive: without a margin nothing can be shown not to be worse. Too few events (`least`, as
    independent ones) refuse and say how many it takes.

    `unless_stored`: a condition that the candidate forgot counts as remembered where the stored
    version that served it passes the same test and can be back soon enough when the condition
    is: `way_back` is the slowest class that counts, `weights` (seconds) or `bitstream` (a window
    that is long enough, such as the gap between two fills).
    """

    name: str = "not-worse-on-old"
    margin: float = 0.0
    relative: float = 0.05
    confidence: float = 0.95
    least: int = 30
    unless_stored: bool = True
    way_back: UpdateClass = "weights"

    def __post_init__(self) -> None:
        _check(self.margin, self.relative, self.confidence)
        if self.margin + self.relative <= 0:
            raise ConfigError(
                "without a margin nothing can be shown not to be worse; set margin (task units) "
                "or relative above 0"
            )

    def judge(self, trial: Trial) -> Verdict:
        if not trial.old:
            because = "there is no old condition to forget"
            return Verdict(gate=self.name, accepted=True, because=because)
        accepted, reasons, figures = True, [], {}
        for condition, pair in trial.old.items():
            passed, because, upper = self._not_worse(pair, pair.candidate, repr(condition))
            if math.isfinite(upper):
                figures[f"upper[{condition}]"] = upper
            if not passed and self.unless_stored and condition in trial.stored:
                passed, because = self._redeploy(pair, trial.stored[condition], because, condition)
            accepted = accepted and passed
            reasons.append(because)
        because = "; ".join(reasons)
        return Verdict(gate=self.name, accepted=accepted, because=because, figures=figures)

    def _not_worse(self, pair: Paired, errors: Floats, where: str) -> tuple[bool, str, float]:
        tested = Paired(candidate=errors, incumbent=pair.incumbent)
        bad = _diverged(tested, where)
        if bad:
            return False, bad, math.inf
        few = _too_few(errors - pair.incumbent, self.least)
        if few:
            return False, f"{where} has {few}", math.inf
        loss = mean_error(errors - pair.incumbent)
        allowed = self.margin + self.relative * abs(float(pair.incumbent.mean()))
        upper = loss.value + _quantile(loss, self.confidence) * loss.error
        passed = upper < allowed
        because = (
            f"on {where} the mean error {_moved(loss.value)} +- {loss.error:.2g} over "
            f"{len(pair)} events: {'surely' if passed else 'not surely'} worse by less than "
            f"{allowed:.4g} (upper bound {upper:.4g} at {self.confidence:.0%})"
        )
        if not passed:
            because += _more(loss, allowed - loss.value, self.confidence)
        return passed, because, upper

    def _redeploy(
        self, pair: Paired, stored: Stored, forgot: str, condition: str
    ) -> tuple[bool, str]:
        short = stored.version[:8]
        if stored.update_class == "bitstream" and self.way_back == "weights":
            return False, (
                f"{forgot}; its stored version {short} needs a new bitstream, which is not back in "
                "seconds"
            )
        passed, because, _ = self._not_worse(pair, stored.errors, repr(condition))
        if passed:
            return True, (
                f"{condition!r} is remembered by the stored version {short}, which can be "
                f"redeployed {_BACK[stored.update_class]} ({because})"
            )
        return False, f"{forgot}; nor does its stored version {short} pass: {because}"


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Accept when the candidate's intervals hold what they say, within `tolerance`.

    Numbers: the share of held-out truths inside the central interval of `coverage` must lie in
    coverage +- tolerance, both sides convinced at `confidence` (Clopper-Pearson with the effective
    number of events n / tau): too wide is wrong as well. Classes: the mean of (largest probability
    - correct) must lie in +- tolerance likewise (batch means).

    `unless_nearer`: a candidate that misses the tolerance passes where its coverage is nearer to
    what is said than the incumbent's, convinced on the same events: to refuse it would keep what
    is worse. Off, the tolerance is strict. `unless_same`: a candidate that misses the tolerance
    passes where its intervals are the incumbent's own to the last bit, for updates that cannot
    touch them (learning on a chip that does not state the sigma): to refuse it makes none better.

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404; Schuirmann 1987,
    doi:10.1007/BF01068419 (two one-sided tests).
    """

    name: str = "calibrated"
    coverage: float = 0.9
    tolerance: float = 0.05
    confidence: float = 0.95
    unless_nearer: bool = True
    unless_same: bool = False

    def __post_init__(self) -> None:
        _check(0.0, 0.0, self.confidence)
        if not 0 < self.coverage < 1 or not self.tolerance > 0:
            raise ConfigError(
                f"coverage must lie between 0 and 1 and tolerance be positive, got "
                f"{self.coverage} and {self.tolerance}"
            )

    def judge(self, trial: Trial) -> Verdict:
        if trial.predictive is None or trial.target is None:
            because = "the trial has no predictions with targets to judge intervals on"
            return Verdict(gate=self.name, accepted=False, because=because)
        n = len(trial.predictive)
        if n == 0 or len(trial.target) != n:
            because = f"{n} predictions have {len(trial.target)} targets"
            return Verdict(gate=self.name, accepted=False, because=because)
        if isinstance(trial.predictive, Categorical):
            return self._classes(trial.predictive, np.asarray(trial.target, np.int64))
        before = trial.before if isinstance(trial.before, Predictive) else None
        return self._numbers(trial.predictive, np.asarray(trial.target, np.float64), before)

    def _numbers(
        self, predictive: Predictive, target: Floats, before: Predictive | None
    ) -> Verdict:
        low, high = predictive.interval(self.coverage)
        if not np.all(np.isfinite(low + high + target)):
            because = "intervals or targets are not finite; did the candidate diverge?"
            return Verdict(gate=self.name, accepted=False, because=because)
        inside = ((low <= target) & (target <= high)).astype(np.float64)
        n = inside.size / correlation_time(inside)
        hits, alpha = inside.mean() * n, 1 - self.confidence
        lower = float(stats.beta.ppf(alpha, hits, n - hits + 1)) if hits > 0 else 0.0
        upper = float(stats.beta.ppf(1 - alpha, hits + 1, n - hits)) if hits < n else 1.0
        accepted = lower > self.coverage - self.tolerance and upper < self.coverage + self.tolerance
        because = (
            f"{self.coverage:.0%} intervals held {inside.mean():.1%} of {inside.size} held-out "
            f"truths ({lower:.1%} to {upper:.1%} at {self.confidence:.0%} each side), "
            f"{'surely' if accepted else 'not surely'} within {self.tolerance:.1%}"
        )
        if not accepted and self.unless_same and before is not None:
            was = before.interval(self.coverage)
            accepted = np.array_equal(low, was[0]) and np.array_equal(high, was[1])
            because += "; they are the incumbent's own, bit for bit" if accepted else ""
        if not accepted and self.unless_nearer and before is not None:
            accepted, nearer = self._nearer(inside, before, target)
            because = f"{because}; {nearer}"
        figures = _figures(coverage=inside.mean(), lower=lower, upper=upper, n=inside.size)
        return Verdict(gate=self.name, accepted=accepted, because=because, figures=figures)

    def _nearer(self, inside: Floats, before: Predictive, target: Floats) -> tuple[bool, str]:
        """Whether the candidate's coverage is surely nearer to what is said than before."""
        low, high = before.interval(self.coverage)
        old = ((low <= target) & (target <= high)).astype(np.float64)
        away, was = (float(x.mean()) - self.coverage for x in (inside, old))
        # |was| - |away| is linear in the two shares while their signs stand.
        gain = mean_error(np.sign(was) * old - np.sign(away) * inside)
        value = abs(was) - abs(away)
        nearer = value - _quantile(gain, self.confidence) * gain.error > 0
        return nearer, (
            f"the incumbent's held {old.mean():.1%}, so it is "
            f"{'surely' if nearer else 'not surely'} nearer to what it says"
        )

    def _classes(self, predictive: Categorical, target: NDArray[np.int64]) -> Verdict:
        chances = predictive.probabilities
        over = mean_error(chances.max(1) - (chances.argmax(1) == target))
        reach = _quantile(over, self.confidence) * over.error
        accepted = abs(over.value) + reach < self.tolerance
        because = (
            f"the largest probability exceeded the accuracy by {over.value:.2%} +- "
            f"{over.error:.1%} on {len(target)} held-out events, "
            f"{'surely' if accepted else 'not surely'} within {self.tolerance:.1%}"
        )
        figures = _figures(overconfidence=over.value, error=over.error, n=len(target))
        return Verdict(gate=self.name, accepted=accepted, because=because, figures=figures)


@dataclass(frozen=True, kw_only=True)
class WithinBudget:
    """Accept when the update's measured cost is inside the budget."""

    name: str = "within-budget"

    def judge(self, trial: Trial) -> Verdict:
        broken = trial.budget.exceeded_by(trial.cost)
        because = broken or "the update kept its budget"
        return Verdict(gate=self.name, accepted=broken is None, because=because)


def _check(margin: float, relative: float, confidence: float) -> None:
    if margin < 0 or relative < 0:
        raise ConfigError(f"margins must not be negative, got {margin} and {relative}")
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence must lie in [0.5, 1), got {confidence}")


def _quantile(mean: MeanError, confidence: float) -> float:
    return float(special.stdtrit(mean.dof, confidence))


def _diverged(pair: Paired, where: str) -> str | None:
    for who, errors in (("candidate", pair.candidate), ("incumbent", pair.incumbent)):
        bad = errors[~np.isfinite(errors)]
        if len(bad):
            return (
                f"the {who}'s error is {bad[0]} on {len(bad)} of {len(errors)} held-out events of "
                f"{where}; {'it diverged' if who == 'candidate' else 'nothing can be compared'}"
            )
    return None


def _moved(change: float) -> str:
    return f"{'rose' if change > 0 else 'fell'} by {abs(change):.4g}"


def _too_few(differences: Floats, least: int) -> str | None:
    """Why the differences are fewer than `least` independent ones, or None."""
    n = len(differences)
    worth = n / correlation_time(differences)
    if worth >= least:
        return None
    alike = f", worth {worth:.0f} independent ones" if worth < n else ""
    need = math.ceil(least * n / worth) if n else least
    return f"{n} held-out events{alike}; it takes about {need}"


def _more(mean: MeanError, distance: float, confidence: float) -> str:
    """How many events would convince, were the estimates true."""
    if distance <= 0 or not math.isfinite(mean.error):
        return ""
    need = math.ceil((float(special.ndtri(confidence)) * mean.spread / distance) ** 2)
    return f"; about {max(need, mean.n + 1)} events would convince if the estimate holds"


def _figures(**values: float) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
