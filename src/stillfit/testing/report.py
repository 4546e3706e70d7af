"""What a conformance suite found, check by check, so that none can drop out in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class Skip(Exception):
    """A check that does not apply, and why."""


@dataclass(frozen=True)
class Check:
    """One check. `because`: the figures of a failure, or why it was skipped."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    because: str = ""


@dataclass(frozen=True)
class Report:
    """All checks that were made of `subject`, in order."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def count(self) -> int:
        """Checks that were really made: passed and failed, without the skipped ones."""
        return sum(check.outcome != "skipped" for check in self.checks)

    @property
    def passed(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.outcome == "passed")

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.outcome == "failed")

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.outcome == "skipped")

    def __str__(self) -> str:
        head = f"{self.subject}: {len(self.passed)} passed, {len(self.failed)} failed, "
        lines = [f"{head}{len(self.skipped)} skipped"]
        for check in self.checks:
            because = f": {check.because}" if check.because else ""
            lines.append(f"  {check.outcome:8}{check.name}{because}")
        return "\n".join(lines)


def made(name: str, check: Callable[[], None]) -> Check:
    """Make one check: what is checked and breaks fails it, not the suite."""
    try:
        check()
    except Skip as reason:
        return Check(name, "skipped", str(reason))
    except AssertionError as failure:
        return Check(name, "failed", str(failure))
    except Exception as error:  # noqa: BLE001  a foreign error is a finding
        return Check(name, "failed", f"{type(error).__name__}: {error}")
    return Check(name, "passed")


def owes(holds: bool, otherwise: str) -> None:
    """The check fails with the figures `otherwise` unless it holds."""
    if not holds:
        raise AssertionError(otherwise)
