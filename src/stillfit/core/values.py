"""The values that cross walls between rooms. All frozen, all of plain numbers and text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, NewType, TypeAlias, TypeVar

from stillfit.core.arrays import Array, Arrays
from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Categorical, Predictive

VersionId = NewType("VersionId", str)
JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
UpdateClass: TypeAlias = Literal["weights", "bitstream"]
M = TypeVar("M")


def version_id(text: str) -> VersionId:
    """A version's id: 64 lower-case hexadecimal digits (SHA-256), or `ConfigError`."""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(
            f"{text!r} is not a version id: 64 lower-case hexadecimal digits; "
            "list them with `stillfit versions`"
        )
    return VersionId(text)


@dataclass(frozen=True)
class Served:
    """What the serving version said about a block of n events.

    `predictive`: the headline target with its uncertainty, leading axis n.
    `outputs`: further per-event or per-track results, leading axis n.
    """

    version: VersionId
    predictive: Predictive | Categorical
    outputs: Arrays = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A monitor's finding at a time of the stream.

    `value` is compared with `threshold`; `raised` says whether the finding stands. `n`: events
    behind it. `since`: estimated time (s) of the change, None if the monitor cannot say. `age`:
    seconds between the newest event behind it and now, None where no labels are involved.
    """

    monitor: str
    time: float
    value: float
    threshold: float
    raised: bool
    n: int
    because: str
    since: float | None = None
    age: float | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A policy's wish for a change, with its reason in words.

    `since`: only events seen at or after this time (s) represent the new condition; None: the
    newest labelled events do.
    """

    policy: str
    time: float
    because: str
    since: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A gate's answer. A refusal is normal life and is kept for ever.

    `figures`: the numbers behind it, by name.
    """

    gate: str
    accepted: bool
    because: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of an update; None is unlimited.

    `memory_bytes`: learner state (stored examples, importance weights) in bytes.
    `stored_examples`: events that may be kept. `macs_per_example`: multiply-accumulates per
    example and pass. `seconds`: wall-clock of one update.
    """

    memory_bytes: int | None = None
    stored_examples: int | None = None
    macs_per_example: int | None = None
    seconds: float | None = None

    def exceeded_by(self, cost: Cost) -> str | None:
        """The first limit that `cost` breaks, with both figures, or None."""
        pairs = (
            ("bytes of learner memory", cost.memory_bytes, self.memory_bytes),
            ("stored examples", cost.stored_examples, self.stored_examples),
            ("multiply-accumulates per example", cost.macs_per_example, self.macs_per_example),
            ("seconds", cost.seconds, self.seconds),
        )
        for name, used, limit in pairs:
            if limit is not None and used > limit:
                return f"it used {used:,.6g} {name} where the budget allows {limit:,.6g}"
        return None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an update used, measured. `examples`: labelled events it read, repeats not counted."""

    memory_bytes: int = 0
    stored_examples: int = 0
    macs_per_example: int = 0
    seconds: float = 0.0
    examples: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a version needs on the device. `method` says how the figures came about.

    `parameters`, `weight_bytes` and `macs_per_event` (per track for the trigger's track networks)
    are always known. The circuit's figures are None where no tool has given them: look-up tables,
    flip-flops, multiplier blocks, block memories of 36 kbit (halves count), clock cycles and ns
    from the last input to the answer, and clock cycles between two inputs. `tools`: names and
    versions of what gave them. `parts`: the figures of the circuit's parts, by name of the part.
    """

    parameters: int
    weight_bytes: int
    macs_per_event: int
    method: str = "parameter count"
    lut: float | None = None
    ff: float | None = None
    dsp: float | None = None
    bram: float | None = None
    latency_cycles: int | None = None
    latency_ns: float | None = None
    initiation_interval: int | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)

    def used(self) -> dict[str, float]:
        """What is known of the circuit's resources, by name."""
        known = {"lut": self.lut, "ff": self.ff, "dsp": self.dsp, "bram": self.bram}
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Device:
    """A chip: its resources (as in `Footprint`) and the clock (MHz) that a design runs at."""

    name: str
    lut: int
    ff: int
    dsp: int
    bram: float
    clock_mhz: float


@dataclass(frozen=True, kw_only=True)
class Equality:
    """Whether a circuit answers as the network that it was made from.

    `vectors` inputs were tried, of which `wrong` gave another answer, the first as `first` says.
    `digest`: SHA-256 of the vectors. `against`: what was compared with what.
    """

    vectors: int
    wrong: int
    digest: str
    against: str
    first: str = ""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a version was trained on, and from what it came.

    `data`: content hashes of the example sets. `span`: first and last event time (s), None when
    nothing was read. `events`: labelled events per condition.
    """

    updater: str
    seed: int
    data: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Candidate(Generic[M]):
    """A possible next version: the model, the learner's state beside it, and what it cost.

    `learner` holds named arrays (replay buffer, importance weights, ...), stored beside the
    version, so that a run resumes bit for bit. `update_class`: `weights` keeps the circuit,
    `bitstream` needs a new one.
    """

    model: M
    learner: Mapping[str, Array]
    cost: Cost
    update_class: UpdateClass
    provenance: Provenance
