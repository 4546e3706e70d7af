"""Gates of the device: does the candidate still fit the chip, in area, time and every bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stillfit.core.errors import ConfigError
from stillfit.core.values import Device, Footprint, Verdict
from stillfit.decisions.gates import Trial

RESOURCES = ("lut", "ff", "dsp", "bram")
_NOT_MEASURED = (
    "nothing has measured the circuit of the candidate; give the lane a chip, which needs the "
    "extra [firmware]"
)


@dataclass(frozen=True, kw_only=True)
class Fits:
    """Accept when the circuit takes at most a `share` of each resource of the `device`.

    `shares`: other limits for single resources, such as `{"dsp": 0.1}`. A resource that the
    footprint does not state is refused, not taken for zero.
    """

    device: Device
    share: float = 0.5
    shares: Mapping[str, float] = field(default_factory=dict)
    name: str = "fits"

    def __post_init__(self) -> None:
        unknown = set(self.shares) - set(RESOURCES)
        if unknown:
            raise ConfigError(f"{sorted(unknown)} are no resources; there are {RESOURCES}")
        for share in (self.share, *self.shares.values()):
            if not 0 < share <= 1:
                raise ConfigError(f"a share of the device must lie in (0, 1], got {share}")

    def judge(self, trial: Trial) -> Verdict:
        found = trial.footprint
        if found is None or not found.used():
            return Verdict(gate=self.name, accepted=False, because=_NOT_MEASURED)
        used = found.used()
        missing = [what for what in RESOURCES if what not in used]
        if missing:
            because = f"the footprint ({found.method}) does not state {', '.join(missing)}"
            return Verdict(gate=self.name, accepted=False, because=because, figures=used)
        limits = {
            what: self.shares.get(what, self.share) * getattr(self.device, what)
            for what in RESOURCES
        }
        over = [
            f"{used[what]:,.0f} {what.upper()} where {limits[what]:,.0f} are allowed"
            for what in RESOURCES
            if used[what] > limits[what]
        ]
        room = max(used[what] / limits[what] for what in RESOURCES if limits[what])
        because = (
            f"too large for {self.device.name} ({found.method}): {'; '.join(over)}"
            if over
            else f"it takes at most {room:.0%} of what is allowed on {self.device.name} "
            f"({found.method})"
        )
        figures = used | {f"{what}_limit": limit for what, limit in limits.items()}
        return Verdict(gate=self.name, accepted=not over, because=because, figures=figures)


@dataclass(frozen=True, kw_only=True)
class FootprintStable:
    """Accept when no resource grows by more than `tolerance` (share) over the incumbent's.

    `least`: growth below so many units of a resource is never refused. Both figures must come
    from one method, since an estimate against a synthesis says nothing about the change.
    """

    tolerance: float = 0.1
    least: float = 0.0
    name: str = "footprint-stable"

    def __post_init__(self) -> None:
        if self.tolerance < 0 or self.least < 0:
            raise ConfigError(
                f"tolerance = {self.tolerance} and least = {self.least} must not be negative"
            )

    def judge(self, trial: Trial) -> Verdict:
        new, old = trial.footprint, trial.stands
        if new is None or old is None or not new.used() or not old.used():
            return Verdict(gate=self.name, accepted=False, because=_NOT_MEASURED)
        if new.method != old.method:
            because = (
                f"the candidate was measured by {new.method}, the incumbent by {old.method}; "
                "measure both the same way"
            )
            return Verdict(gate=self.name, accepted=False, because=because)
        before, after = old.used(), new.used()
        both = [what for what in RESOURCES if what in before and what in after]
        grown = [
            f"{what.upper()} {before[what]:,.0f} -> {after[what]:,.0f}"
            for what in both
            if after[what] - before[what] > max(self.tolerance * before[what], self.least)
        ]
        figures = {f"{what}_change": after[what] - before[what] for what in both}
        change = ", ".join(f"{what.upper()} {_change(before[what], after[what])}" for what in both)
        because = (
            f"it grows by more than {self.tolerance:.0%}: {'; '.join(grown)}" if grown else change
        )
        return Verdict(gate=self.name, accepted=not grown, because=because, figures=figures)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Accept when the answer comes within `ns`, and the next input may come within `interval` ns.

    `interval`: None where the input rate is not at stake.
    """

    ns: float
    interval: float | None = None
    name: str = "latency"

    def __post_init__(self) -> None:
        if not self.ns > 0 or (self.interval is not None and not self.interval > 0):
            raise ConfigError(f"ns = {self.ns} and interval = {self.interval} must be positive")

    def judge(self, trial: Trial) -> Verdict:
        found = trial.footprint
        if found is None or found.latency_ns is None or found.latency_cycles is None:
            return Verdict(gate=self.name, accepted=False, because=_NOT_MEASURED)
        figures = {"latency_ns": found.latency_ns, "cycles": float(found.latency_cycles)}
        late = found.latency_ns > self.ns
        because = (
            f"the answer comes after {found.latency_ns:.1f} ns ({found.latency_cycles} cycles), "
            f"{'later than' if late else 'within'} the {self.ns:.1f} ns allowed"
        )
        busy = self._busy(found)
        if busy is not None and not late:
            because = busy
        return Verdict(
            gate=self.name, accepted=not late and busy is None, because=because, figures=figures
        )

    def _busy(self, found: Footprint) -> str | None:
        if self.interval is None:
            return None
        if found.initiation_interval is None or not found.latency_cycles:
            return "it is not known how soon the next input may come"
        every = found.initiation_interval * (found.latency_ns or 0.0) / found.latency_cycles
        if every <= self.interval:
            return None
        return (
            f"the next input may come after {every:.1f} ns only, where one comes every "
            f"{self.interval:.1f} ns"
        )


@dataclass(frozen=True, kw_only=True)
class BitExact:
    """Accept when the circuit gave the network's answer on every one of at least `vectors`."""

    vectors: int = 10_000
    name: str = "bit-exact"

    def __post_init__(self) -> None:
        if self.vectors < 1:
            raise ConfigError(f"vectors = {self.vectors} must be at least 1")

    def judge(self, trial: Trial) -> Verdict:
        found = trial.equality
        if found is None:
            return Verdict(gate=self.name, accepted=False, because=_NOT_MEASURED)
        figures = {"vectors": float(found.vectors), "wrong": float(found.wrong)}
        if found.wrong:
            because = (
                f"{found.wrong} of {found.vectors:,} vectors differ ({found.against}), the first: "
                f"{found.first}"
            )
        elif found.vectors < self.vectors:
            because = f"only {found.vectors:,} vectors were tried where {self.vectors:,} are asked"
        else:
            because = f"{found.vectors:,} vectors are equal bit for bit ({found.against})"
        accepted = not found.wrong and found.vectors >= self.vectors
        return Verdict(gate=self.name, accepted=accepted, because=because, figures=figures)


def _change(before: float, after: float) -> str:
    if before:
        return f"{after / before - 1:+.1%}"
    return "as before" if not after else f"0 -> {after:,.0f}"
