"""When a change may happen: update windows from the machine's state, or at fixed intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stillfit.core.errors import ConfigError
from stillfit.core.events import Notice
from stillfit.core.values import UpdateClass


class WindowState(NamedTuple):
    """`known`: whether the machine's state is. `open`: by the last notice. `since`, `until`: time
    (s) of that notice and of the expected end, infinite where it was not said.
    """

    known: bool = False
    open: bool = False
    since: float = 0.0
    until: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Permit:
    """`allowed`: switch now. `at`: if so, when the new version serves (s); if not, the earliest
    time at which it is worth asking again, None where only a notice can tell.
    """

    allowed: bool
    at: float | None
    because: str


class Window(Protocol):
    """`step` follows the notices, `allows` answers at a time. Both pure."""

    def init(self) -> WindowState: ...

    def step(self, state: WindowState, notice: Notice) -> WindowState: ...

    def allows(
        self, state: WindowState, now: float, update_class: UpdateClass, ready: float
    ) -> Permit:
        """`ready`: time (s) at which the candidate was accepted; a bitstream is built from then."""


@dataclass(frozen=True, kw_only=True)
class _Durations:
    """`seconds`: to load weights. `build`, `load`: seconds to build a bitstream, which needs no
    window, and to load it, which must begin and finish inside one.
    """

    seconds: float = 10.0
    build: float = 2 * 3600.0
    load: float = 600.0

    def __post_init__(self) -> None:
        for name in ("seconds", "build", "load"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    def _fits(
        self, opened: float, until: float, now: float, update_class: UpdateClass, ready: float
    ) -> Permit:
        """Inside an open window [opened, until)."""
        built = ready + self.build if update_class == "bitstream" else ready
        takes = self.load if update_class == "bitstream" else self.seconds
        end = max(now, built) + takes
        if end > until:
            return Permit(
                allowed=False,
                at=None,
                because=(
                    f"the window closes at {until:.0f} s, before the {update_class} would be "
                    f"loaded at {end:.0f} s"
                ),
            )
        if now < built:
            what = "is built" if update_class == "bitstream" else "is ready"
            because = f"the window is open, but the {update_class} {what} only at {built:.0f} s"
            return Permit(allowed=False, at=built, because=because)
        return Permit(
            allowed=True,
            at=end,
            because=f"the window has been open since {opened:.0f} s and the {update_class} takes "
            f"{takes:.0f} s",
        )


@dataclass(frozen=True, kw_only=True)
class FromNotices(_Durations):
    """Open while the machine is in one of `open_states`; closed while its state is unknown.

    The notice's info may carry `until`, the expected end (s of the stream); past it the window is
    closed, although no notice said so. `expected`: length (s) to assume where it carries none; None
    lets weights in and no bitstream, which must be sure to finish.
    """

    open_states: tuple[str, ...] = ("inter-fill",)
    expected: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.open_states:
            raise ConfigError(
                "open_states is empty, so no update would ever be allowed; name the machine's "
                "states between runs, such as 'inter-fill'"
            )

    def init(self) -> WindowState:
        return WindowState()

    def step(self, state: WindowState, notice: Notice) -> WindowState:
        said = notice.info.get("until")
        until = math.inf
        if isinstance(said, int | float) and math.isfinite(said):
            until = float(said)
        elif self.expected is not None:
            until = notice.time + self.expected
        return WindowState(True, notice.state in self.open_states, notice.time, until)

    def allows(
        self, state: WindowState, now: float, update_class: UpdateClass, ready: float
    ) -> Permit:
        if not state.known:
            because = "the machine's state is unknown, which counts as closed"
            return Permit(allowed=False, at=None, because=because)
        if not state.open:
            because = (
                f"the machine has been in a state without updates since {state.since:.0f} s; "
                f"updates need {' or '.join(self.open_states)}"
            )
            at = state.until if math.isfinite(state.until) and state.until > now else None
            return Permit(allowed=False, at=at, because=because)
        if update_class == "bitstream" and not math.isfinite(state.until):
            because = (
                "the end of the window is not known, so a bitstream may not finish in it; "
                "set `expected`, or let the notice carry `until`"
            )
            return Permit(allowed=False, at=None, because=because)
        return self._fits(state.since, state.until, now, update_class, ready)


@dataclass(frozen=True, kw_only=True)
class Interval(_Durations):
    """Open for `length` seconds every `every` seconds from `start`, for streams without states."""

    every: float
    length: float
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.length <= self.every:
            raise ConfigError(
                f"an interval needs 0 < length <= every, got {self.length} and {self.every} s"
            )

    def init(self) -> WindowState:
        return WindowState(known=True, open=True)

    def step(self, state: WindowState, notice: Notice) -> WindowState:
        return state

    def allows(
        self, state: WindowState, now: float, update_class: UpdateClass, ready: float
    ) -> Permit:
        opened = self.start + math.floor((now - self.start) / self.every) * self.every
        if now >= opened + self.length:
            closed, again = opened + self.length, opened + self.every
            because = f"the window closed at {closed:.0f} s; the next opens at {again:.0f} s"
            return Permit(allowed=False, at=again, because=because)
        permit = self._fits(opened, opened + self.length, now, update_class, ready)
        if not permit.allowed and permit.at is None:
            return Permit(allowed=False, at=opened + self.every, because=permit.because)
        return permit


@dataclass(frozen=True, kw_only=True)
class Always(_Durations):
    """Open at any time: for streams on which a switch disturbs nobody."""

    def init(self) -> WindowState:
        return WindowState(known=True, open=True)

    def step(self, state: WindowState, notice: Notice) -> WindowState:
        return state

    def allows(
        self, state: WindowState, now: float, update_class: UpdateClass, ready: float
    ) -> Permit:
        return self._fits(-math.inf, math.inf, now, update_class, ready)
