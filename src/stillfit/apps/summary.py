"""What a season or a run came to, as values, and `summary.json`, the file that holds them.

The report, the terminal's table and a user's own analysis read this and nothing else. Unknown
figures are None (`null` in the file), never 0: NaN and infinities are written as `null`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from stillfit.core.errors import ConfigError
from stillfit.core.tables import build, did_you_mean
from stillfit.core.values import JSON
from stillfit.registry.durable import make_dir, write_file

FORMAT = 1
Kind: TypeAlias = Literal["l1t", "table"]
Number: TypeAlias = float | None
_ROW = ("fill", "condition", "n", "version")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of merit: `name` is its key in each lane's rows, `title` and `unit` are for eyes.

    `better`: "neither" for a figure with a target, such as a coverage. The first metric of a
    summary is its headline, and must be better one way.
    """

    name: str
    title: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "higher"


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """The middle stated uncertainty of a fill: `name` is its key in each lane's rows.

    `against`: name of the metric that an honest statement would equal (the core width, say).
    `low`, `high`: keys of the ends of the band of 68 % of the events (16 and 84 %), "" without.
    """

    name: str
    title: str
    unit: str
    against: str
    low: str = ""
    high: str = ""


@dataclass(frozen=True, kw_only=True)
class Fill:
    """A fill (a period, for kind "table"): times in seconds of the stream, mean pile-up."""

    fill: int
    condition: str
    start: float
    end: float
    pileup: Number = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row: what a lane reached in a fill on `n` labelled events.

    `values`: metric (or uncertainty) name -> figure; `errors`: the same names -> standard error.
    `version`: the id that served most of the fill, None for an algorithm without versions. In the
    file the figures lie flat beside the others: `efficiency`, `efficiency_err`, ...
    """

    fill: int
    condition: str
    n: int
    version: str | None = None
    values: Mapping[str, Number] = field(default_factory=dict)
    errors: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A bin of events by stated uncertainty: its mean, the observed error's size, the events."""

    stated: float
    observed: Number
    n: int


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """The experience matrix: headline metric of version (row) on held-out events of condition
    (column). Rows in the order in which the versions served."""

    versions: tuple[str, ...]
    conditions: tuple[str, ...]
    matrix: tuple[tuple[Number, ...], ...]

    def __post_init__(self) -> None:
        wide = {len(row) for row in self.matrix} or {len(self.conditions)}
        if len(self.matrix) != len(self.versions) or wide != {len(self.conditions)}:
            raise ConfigError(
                f"a forgetting matrix of {len(self.versions)} versions and "
                f"{len(self.conditions)} conditions has {len(self.matrix)} rows of {sorted(wide)}"
            )


@dataclass(frozen=True, kw_only=True)
class Lead:
    """When a change of condition was noticed in a lane: by the flag, and by late labels.

    `fill`, `start`: first fill of the new condition and its start (s). `flag`, `late`: time (s) of
    the first alarm of the stated uncertainty, and of the first one of late labels that are of the
    change; None: there was none. `monitor`, `late_monitor`: who raised them. `delay`: events from
    the start to the flag. `earlier`: events from the flag to the late alarm, negative where labels
    were first, None unless there were both. `stood`: monitors whose alarm stood already.
    """

    fill: int
    condition: str
    start: float
    flag: Number = None
    monitor: str | None = None
    delay: int | None = None
    late: Number = None
    late_monitor: str | None = None
    earlier: int | None = None
    stood: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Held:
    """Labelled events that are kept of one condition, and their bytes."""

    events: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a lane keeps: labelled events by condition; its versions and their bytes on disk."""

    conditions: Mapping[str, Held] = field(default_factory=dict)
    versions: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """A version as a circuit: when it was chosen (s), how it goes on the chip, what it takes there.

    `method`: how the figures came about. `latency_ns`: from the last input to the answer.
    """

    version: str
    time: float
    update_class: str
    method: str
    lut: Number = None
    ff: Number = None
    dsp: Number = None
    bram: Number = None
    latency_cycles: int | None = None
    latency_ns: Number = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a lane's updates cost: candidates made, labelled events read, wall-clock seconds."""

    updates: int = 0
    labelled_events: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One way of keeping a model fit, over all fills."""

    title: str
    fills: tuple[Score, ...]
    calibration: tuple[Calibration, ...] = ()
    forgetting: Forgetting | None = None
    stored: Stored = Stored()
    cost: Cost = Cost()
    leads: tuple[Lead, ...] = ()
    circuits: tuple[Circuit, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A journaled step: `what` is request, verdict, refused, staged, switch, kept, redeploy,
    rollback, hold, resume, call, ...; `because` is its reason in words."""

    time: float
    fill: int
    lane: str
    what: str
    version: str | None = None
    because: str = ""


@dataclass(frozen=True, kw_only=True)
class RegistrySize:
    """Versions and bytes in the registry, entries in its journal."""

    versions: int = 0
    bytes: int = 0
    journal: int = 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a report shows.

    `baseline`: the lane whose model is never changed, against which gains are counted (None: the
    report makes no comparison). `run`: the resolved values of the run file, for provenance.
    """

    title: str
    kind: Kind
    stillfit: str
    seed: int
    metrics: tuple[Metric, ...]
    lanes: Mapping[str, Lane]
    decisions: tuple[Decision, ...] = ()
    fills: tuple[Fill, ...] = ()
    registry: RegistrySize = RegistrySize()
    uncertainty: Uncertainty | None = None
    baseline: str | None = None
    run: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        figures = self.figures
        if not self.metrics or len(set(figures)) < len(figures) or set(figures) & set(_ROW):
            raise ConfigError(
                f"a summary needs metrics of different names, none of them {', '.join(_ROW)}; "
                f"got {', '.join(figures) or 'none'}"
            )
        if self.headline.better == "neither":
            raise ConfigError(f"the headline {self.headline.name!r} must be better higher or lower")
        if self.uncertainty and self.uncertainty.against not in figures[: len(self.metrics)]:
            raise ConfigError(
                f"the uncertainty is compared with {self.uncertainty.against!r}, which is no metric"
                f"{did_you_mean(self.uncertainty.against, figures[: len(self.metrics)])}"
            )
        if self.baseline is not None:
            self._known("the baseline", self.baseline)
        numbers = [fill.fill for fill in self.fills]
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"the fills of a summary must differ, got {numbers}")
        for name, lane in self.lanes.items():
            for score in lane.fills:
                if score.fill not in numbers:
                    raise ConfigError(f"lane {name!r} has a row for the unknown fill {score.fill}")
                for figure in (*score.values, *score.errors):
                    if figure not in figures:
                        raise ConfigError(
                            f"lane {name!r}, fill {score.fill} has the unknown figure {figure!r}"
                            f"{did_you_mean(figure, figures)}"
                        )
        for decision in self.decisions:
            self._known(f"a decision ({decision.what})", decision.lane)

    def _known(self, what: str, lane: str) -> None:
        if lane not in self.lanes:
            raise ConfigError(
                f"{what} names the unknown lane {lane!r}{did_you_mean(lane, self.lanes)}"
            )

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of all figures that a row may hold: the metrics, then the uncertainty."""
        return (*(metric.name for metric in self.metrics), *stated_figures(self.uncertainty))

    def write(self, path: Path) -> None:
        """Write `summary.json`: whole or not at all (temporary file, fsync, replace)."""
        text = json.dumps(to_json(self), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_text(path, text)


def stated_figures(uncertainty: Uncertainty | None) -> tuple[str, ...]:
    """Names of the figures of the stated uncertainty in a row: middle, low and high end."""
    if uncertainty is None:
        return ()
    named = (uncertainty.name, uncertainty.low, uncertainty.high)
    return tuple(name for name in named if name)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, its folder too: a reader sees the old one or the new, whole."""
    make_dir(path.parent)
    # A lone surrogate, which UTF-8 cannot hold, becomes a question mark.
    write_file(path, [text.encode("utf-8", "replace")])


def to_json(summary: Summary) -> dict[str, Any]:
    """The summary as JSON values, `format` first; non-finite numbers become None."""
    table = asdict(summary)
    for lane in table["lanes"].values():
        lane["fills"] = [_flat_row(row, summary.figures) for row in lane["fills"]]
    return {"format": FORMAT, **_finite(table)}


def _flat_row(row: Mapping[str, Any], figures: Sequence[str]) -> dict[str, Any]:
    flat = {name: row[name] for name in _ROW}
    for name in figures:
        if name in row["values"]:
            flat[name] = row["values"][name]
        if name in row["errors"]:
            flat[f"{name}_err"] = row["errors"][name]
    return flat


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value


def read(path: Path) -> Summary:
    """Read `summary.json`; `ConfigError` names the file, the place and what is wrong there."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; `stillfit demo` and `run` write one") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the summary.json in it") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a summary in JSON: {error}") from None
    return from_json(table, str(path))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number; unknown figures must be null")


def from_json(table: Any, where: str = "summary") -> Summary:
    """The inverse of `to_json`. Strict: unknown, missing or mistyped entries are errors."""
    top = dict(_object(table, where))
    found = top.pop("format", None)
    if found != FORMAT:
        hint = "; update stillfit" if isinstance(found, int) and found > FORMAT else ""
        raise ConfigError(f"{where} has the format {found!r}, this version reads {FORMAT}{hint}")
    metrics = _each(Metric, top.get("metrics", []), f"{where}: metrics")
    uncertainty = _maybe(Uncertainty, top.get("uncertainty"), f"{where}: uncertainty")
    figures = [*(metric.name for metric in metrics), *stated_figures(uncertainty)]
    lanes = {
        name: _lane(lane, figures, f"{where}: lanes.{name}")
        for name, lane in _object(top.get("lanes", {}), f"{where}: lanes").items()
    }
    decisions = _each(Decision, top.get("decisions", []), f"{where}: decisions")
    fills = _each(Fill, top.get("fills", []), f"{where}: fills")
    registry = _maybe(RegistrySize, top.get("registry"), f"{where}: registry") or RegistrySize()
    # The parts are values already: only the plain entries are left for the strict table.
    parts = ("metrics", "uncertainty", "lanes", "decisions", "fills", "registry")
    plain = build(_Plain, {k: v for k, v in top.items() if k not in parts}, where)
    return Summary(
        **plain.__dict__,
        metrics=metrics,
        uncertainty=uncertainty,
        lanes=lanes,
        decisions=decisions,
        fills=fills,
        registry=registry,
    )


@dataclass(frozen=True, kw_only=True)
class _Plain:
    title: str
    kind: Kind
    stillfit: str
    seed: int
    baseline: str | None = None
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Row:
    fill: int
    condition: str
    n: int
    version: str | None = None


def _lane(table: Any, figures: Sequence[str], where: str) -> Lane:
    lane = dict(_object(table, where))
    parts = {
        "fills": tuple(
            _score(row, figures, f"{where}.fills[{place}]")
            for place, row in enumerate(_list(lane.pop("fills", []), f"{where}.fills"))
        ),
        "calibration": _each(Calibration, lane.pop("calibration", []), f"{where}.calibration"),
        "forgetting": _maybe(Forgetting, lane.pop("forgetting", None), f"{where}.forgetting"),
        "cost": _maybe(Cost, lane.pop("cost", None), f"{where}.cost") or Cost(),
        "leads": _each(Lead, lane.pop("leads", []), f"{where}.leads"),
        "circuits": _each(Circuit, lane.pop("circuits", []), f"{where}.circuits"),
    }
    stored = dict(_object(lane.pop("stored", {}), f"{where}.stored"))
    held = {
        name: build(Held, _object(row, f"{where}.stored.{name}"), f"{where}.stored.{name}")
        for name, row in _object(stored.pop("conditions", {}), f"{where}.stored").items()
    }
    plain = build(_StoredPlain, stored, f"{where}.stored")
    title = build(_Title, lane, where).title
    return Lane(
        title=title,
        stored=Stored(conditions=held, versions=plain.versions, bytes=plain.bytes),
        **parts,
    )


@dataclass(frozen=True, kw_only=True)
class _Title:
    title: str


@dataclass(frozen=True, kw_only=True)
class _StoredPlain:
    versions: int = 0
    bytes: int = 0


def _score(table: Any, figures: Sequence[str], where: str) -> Score:
    row = dict(_object(table, where))
    values = {name: row.pop(name) for name in figures if name in row}
    errors = {name: row.pop(f"{name}_err") for name in figures if f"{name}_err" in row}
    for name, value in (*values.items(), *errors.items()):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(f"{where}: {name} = {value!r} is wrong: neither a number nor null")
    for name in row:
        known = [*_ROW, *figures, *(f"{figure}_err" for figure in figures)]
        if name not in known:
            raise ConfigError(f"{where} has no figure {name!r}{did_you_mean(name, known)}")
    plain = build(_Row, row, where)
    return Score(**plain.__dict__, values=values, errors=errors)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list, got {type(value).__name__}")
    return value


def _each(cls: Any, rows: Any, where: str) -> tuple[Any, ...]:
    return tuple(
        build(cls, _object(row, f"{where}[{place}]"), f"{where}[{place}]")
        for place, row in enumerate(_list(rows, where))
    )


def _maybe(cls: Any, table: Any, where: str) -> Any:
    return None if table is None else build(cls, _object(table, where), where)
