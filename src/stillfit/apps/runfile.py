"""Run files: flat TOML, one table per dataclass, strict, resolved once, here.

Names of kinds exist only in this room: below it, an extension is an object that is passed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.core.tables import build, did_you_mean, read_toml
from stillfit.core.values import JSON, Budget
from stillfit.decisions.gates import BetterOnNew, Calibrated, Gate, NotWorseOnOld, WithinBudget
from stillfit.decisions.policies import (
    AfterTime,
    AnyOf,
    OnDrift,
    OnMetric,
    OnUncertainty,
    Policy,
)
from stillfit.decisions.probation import Probation
from stillfit.decisions.windows import Always, FromNotices, Interval, Window
from stillfit.l1t import scenario as scenarios
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.library import load
from stillfit.l1t.ntuple import Ntuple
from stillfit.l1t.season import Season
from stillfit.l1t.vertex import VertexTask
from stillfit.loop import Redeploy
from stillfit.loop.plan import Rung
from stillfit.models.fixed import FACTORIES as FIXED
from stillfit.models.model import Architecture, Factory
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression, Task
from stillfit.models.training import Schedule
from stillfit.monitors.cusum import ErrorCusum, ScoreCusum
from stillfit.monitors.drift import InputDrift
from stillfit.monitors.dummies import EveryKth
from stillfit.monitors.ks import ScoreKS
from stillfit.monitors.late import LateMetric
from stillfit.monitors.martingale import ConformalMartingale
from stillfit.sensing.networks import FACTORIES as SENSING
from stillfit.streams.contract import Stream
from stillfit.streams.guard import GuardPolicy
from stillfit.streams.labels import Labelling
from stillfit.streams.recording import Recording
from stillfit.streams.store import Keeping
from stillfit.streams.tables import Table
from stillfit.uncertainty.methods import FACTORIES as METHOD_FACTORIES
from stillfit.uncertainty.methods import METHODS
from stillfit.updaters.dynamic import Compress, Grow, PackNet
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
)
from stillfit.updaters.labels import AdaptNormalisation, PseudoLabels
from stillfit.updaters.online import (
    NearestMean,
    OnlineFineTune,
    OnlineReplay,
    RecursiveLeastSquares,
    StreamingLDA,
)
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Retrain, RetrainWindow
from stillfit.updaters.regularisation import EWC, MAS, LwF, OnlineEWC, SynapticIntelligence
from stillfit.updaters.replay import DarkReplay, GDumb, GenerativeReplay, Replay

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScenarioStream:
    """A simulated season as a stream: the `name` of a shipped scenario, or a TOML file."""

    name: str

    def open(self) -> Stream:
        return Season(scenarios.load(self.name), load())


@dataclass(frozen=True, kw_only=True)
class First:
    """How the first version comes about.

    `events`: labelled events from the beginning of the stream; a share `train` of them trains
    the network by `schedule`, the rest is nominal data for monitors and gates. With `weights` (a
    safetensors file) the network is taken as it is and all events are nominal.
    """

    events: int = 2000
    train: float = 0.6
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=500, batch=128))
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LaneTable:
    """One lane: the names of its rungs, cheapest first, from the tables `[updaters.NAME]`."""

    name: str
    rungs: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The entries at the top of a run file.

    `network`: `mlp`, a name such as `l1t.e2e`, or `package.module:factory` of your own, called
    with `arguments`. `noise = "constant"` gives a network of one output a learned variance.
    """

    title: str
    network: str = "mlp"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    noise: str = "stated"
    seed: int = 1
    out: Path | None = None
    fresh: int = 2000
    judged: int = 2000
    tries: int = 2


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A resolved run file: every table is an object."""

    head: Head
    task: Task
    stream: Stream
    labels: Labelling
    guard: GuardPolicy
    first: First
    store: Keeping
    window: Window
    policy: Policy
    gates: tuple[Gate, ...]
    probation: Probation
    budget: Budget
    watch: tuple[Any, ...]
    errors: tuple[Any, ...]
    lanes: tuple[LaneTable, ...]
    rungs: Mapping[str, Rung]
    text: str
    method: str = ""
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The network, inside the method by which it states its uncertainty if there is one."""
        plain = Architecture(self.head.network, dict(self.head.arguments))
        if not self.method:
            return plain
        inside: dict[str, JSON] = {"factory": plain.factory, "arguments": dict(plain.arguments)}
        return Architecture(self.method, {"network": inside, **self.knobs})

    @property
    def is_l1t(self) -> bool:
        return isinstance(self.task, VertexTask)


TASKS = {"regression": Regression, "classification": Classification, "vertex": VertexTask}
STREAMS = {
    "table": Table,
    "ntuple": Ntuple,
    "recording": Recording,
    "scenario": ScenarioStream,
}
UPDATERS = {
    "redeploy": Redeploy,
    "recalibrate": Recalibrate,
    "finetune": FineTune,
    "retrain": Retrain,
    "retrain-window": RetrainWindow,
    "replay": Replay,
    "dark": DarkReplay,
    "gdumb": GDumb,
    "generative": GenerativeReplay,
    "ewc": EWC,
    "online-ewc": OnlineEWC,
    "si": SynapticIntelligence,
    "mas": MAS,
    "lwf": LwF,
    "packnet": PackNet,
    "grow": Grow,
    "compress": Compress,
    "online": OnlineFineTune,
    "online-replay": OnlineReplay,
    "slda": StreamingLDA,
    "ncm": NearestMean,
    "rls": RecursiveLeastSquares,
    "pseudo-labels": PseudoLabels,
    "adapt-normalisation": AdaptNormalisation,
    "embedded-sgd": EmbeddedSGD,
    "embedded-dfa": EmbeddedDFA,
    "embedded-spsa": EmbeddedSPSA,
    "embedded-lms": EmbeddedLMS,
    "embedded-rls": EmbeddedRLS,
}
POLICIES = {
    "after-time": AfterTime,
    "on-metric": OnMetric,
    "on-uncertainty": OnUncertainty,
    "on-drift": OnDrift,
}
GATES = {
    "better-on-new": BetterOnNew,
    "not-worse-on-old": NotWorseOnOld,
    "calibrated": Calibrated,
    "within-budget": WithinBudget,
}
WINDOWS = {"notices": FromNotices, "interval": Interval, "always": Always}
WATCHES = {
    "score-cusum": ScoreCusum,
    "score-ks": ScoreKS,
    "input-drift": InputDrift,
    "every-kth": EveryKth,
}
ERRORS = {
    "late-metric": LateMetric,
    "error-cusum": ErrorCusum,
    "conformal-martingale": ConformalMartingale,
}
SECTIONS = (
    "task", "stream", "labels", "guard", "first", "store", "window", "policies", "gates",
    "probation", "budget", "monitors", "updaters", "lanes", "uncertainty",
)  # fmt: skip


def read(path: Path) -> RunFile:
    """A run file with everything in it checked; `ConfigError` names the table and the value."""
    tables = read_toml(path)
    where = path.name
    top = {name: part for name, part in tables.items() if name not in SECTIONS}
    for name in top:
        if isinstance(top[name], dict) and name != "arguments":
            raise ConfigError(f"{where} has no table [{name}]{did_you_mean(name, SECTIONS)}")
    head = build(Head, top, where)
    if head.noise not in ("stated", "constant"):
        raise ConfigError(f"{where}: noise = {head.noise!r} must be 'stated' or 'constant'")
    for need in ("task", "stream"):
        if need not in tables:
            raise ConfigError(f"{where} lacks the table [{need}]; see examples/table.toml")
    folder = path.resolve().parent
    updaters = {
        name: of_kind(UPDATERS, {"kind": name, **part}, f"{where} [updaters.{name}]")
        for name, part in _tables(tables, "updaters", where).items()
    }
    lanes = tuple(
        build(LaneTable, part, f"{where} [[lanes]]")
        for part in _list(tables, "lanes", where) or [{"name": "frozen"}, {"name": "ladder"}]
    )
    lanes = _with_default_rungs(lanes, updaters)
    for lane in lanes:
        for rung in lane.rungs:
            if rung not in updaters and rung in UPDATERS:
                updaters[rung] = of_kind(UPDATERS, {"kind": rung}, f"{where} [updaters.{rung}]")
            elif rung not in updaters:
                raise ConfigError(
                    f"{where}: lane {lane.name!r} has the rung {rung!r}, but there is no "
                    f"[updaters.{rung}]{did_you_mean(rung, {*UPDATERS, *updaters})}"
                )
    method, knobs = _method(tables.get("uncertainty"), where)
    monitors = _list(tables, "monitors", where) or [{"kind": "late-metric"}]
    made = [of_kind({**WATCHES, **ERRORS}, part, f"{where} [[monitors]]") for part in monitors]
    policies = [
        of_kind(POLICIES, part, f"{where} [[policies]]")
        for part in _list(tables, "policies", where) or [{"kind": "on-metric"}]
    ]
    default_gates = [{"kind": "better-on-new"}, {"kind": "not-worse-on-old"}]
    return RunFile(
        head=head,
        task=of_kind(TASKS, tables["task"], f"{where} [task]"),
        stream=_stream(tables["stream"], folder, where),
        labels=_one(Labelling, tables, "labels", where),
        guard=_one(GuardPolicy, tables, "guard", where),
        first=_first(tables, folder, where),
        store=_store(tables, where),
        window=of_kind(
            WINDOWS, {"kind": "always", **tables.get("window", {})}, f"{where} [window]"
        ),
        policy=policies[0] if len(policies) == 1 else AnyOf(policies=tuple(policies)),
        gates=tuple(
            of_kind(GATES, part, f"{where} [[gates]]")
            for part in _list(tables, "gates", where) or default_gates
        ),
        probation=_one(Probation, tables, "probation", where),
        budget=_one(Budget, tables, "budget", where),
        watch=tuple(m for m in made if isinstance(m, tuple(WATCHES.values()))),
        errors=tuple(m for m in made if isinstance(m, tuple(ERRORS.values()))),
        lanes=lanes,
        rungs=updaters,
        text=path.read_text(encoding="utf-8"),
        method=method,
        knobs=knobs,
    )


def _method(table: Any, where: str) -> tuple[str, dict[str, Any]]:
    """`[uncertainty]`: the method's name and its knobs."""
    if table is None:
        return "", {}
    if not isinstance(table, Mapping) or not isinstance(table.get("method"), str):
        raise ConfigError(f'{where} [uncertainty] needs method = "...": {", ".join(METHODS)}')
    name = table["method"]
    if name not in METHODS:
        raise ConfigError(
            f"{where} [uncertainty]: method = {name!r} is not known{did_you_mean(name, METHODS)}"
        )
    return name, {knob: value for knob, value in table.items() if knob != "method"}


def method_factory(name: str) -> Factory:
    """The factory of a method's networks; knobs that it does not take are a `ConfigError`."""

    def make(**arguments: Any) -> nn.Module:
        try:
            return METHOD_FACTORIES[name](**arguments)
        except TypeError as error:
            raise ConfigError(f"[uncertainty] method = {name!r}: {error}") from None

    return make


def of_kind(kinds: Mapping[str, type[Any]], table: Mapping[str, Any], where: str) -> Any:
    """An object of the class that the table's `kind` names, from the rest of the table."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, got {table!r}")
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where}: kind = {kind!r} is not known{did_you_mean(str(kind), kinds)}")
    return build(kinds[kind], {k: v for k, v in table.items() if k != "kind"}, where)


def factory_of(name: str, folder: Path) -> Factory:
    """The network factory of that name, a shipped one or the user's `package.module:factory`.

    The run file's folder is searched first, so that a network can lie beside its run file.
    """
    shipped: Mapping[str, Factory] = {"mlp": MLP, **FACTORIES, **SENSING, **FIXED}
    if name in shipped:
        return shipped[name]
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(
            f"network = {name!r} is neither a shipped network ({', '.join(sorted(shipped))}) nor "
            "of the form package.module:factory"
        )
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"network = {name!r}: importing {module_name} failed: {type(error).__name__}: {error}; "
            f"is it installed, or does it lie in {folder}?"
        ) from error
    finally:
        sys.path.remove(str(folder))
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(
            f"network = {name!r}: {module_name} has no factory {attribute!r}"
            f"{did_you_mean(attribute, names)}"
        )
    return _checked(factory, name)


def _checked(factory: Any, name: str) -> Factory:
    def make(**arguments: JSON) -> nn.Module:
        try:
            network = factory(**arguments)
        except TypeError as error:
            raise ConfigError(
                f"network = {name!r} does not take these arguments: {error}"
            ) from None
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"network = {name!r} made a {type(network).__name__}, not a torch.nn.Module"
            )
        return network

    return make


def constant_noise(factory: Factory) -> Factory:
    """The factory whose networks get one learned variance for all events."""

    def make(**arguments: JSON) -> nn.Module:
        return WithNoise(factory(**arguments))

    return make


def _with_default_rungs(
    lanes: tuple[LaneTable, ...], updaters: Mapping[str, Rung]
) -> tuple[LaneTable, ...]:
    """A lane called `ladder` without rungs gets the usual ones; others without are frozen."""
    usual = ("redeploy", "recalibrate", "replay", "retrain")
    return tuple(
        LaneTable(name=lane.name, title=lane.title, rungs=usual)
        if lane.name == "ladder" and not lane.rungs
        else lane
        for lane in lanes
    )


def _stream(table: Mapping[str, Any], folder: Path, where: str) -> Stream:
    told = dict(table)
    for name in ("path", "name"):
        if name in told and isinstance(told[name], str):
            beside = folder / told[name]
            if name == "path" or told[name].endswith(".toml"):
                told[name] = str(beside)
    made = of_kind(STREAMS, told, f"{where} [stream]")
    return made.open() if isinstance(made, ScenarioStream) else made


def _first(tables: Mapping[str, Any], folder: Path, where: str) -> First:
    first = _one(First, tables, "first", where)
    if first.events < 100 or not 0 <= first.train < 1:
        raise ConfigError(
            f"{where} [first]: events = {first.events} must be at least 100 and train = "
            f"{first.train} in [0, 1): the rest is what monitors and gates start from"
        )
    if first.weights is None:
        return first
    return First(
        events=first.events,
        train=0.0,
        schedule=first.schedule,
        weights=folder / first.weights,
    )


def _store(tables: Mapping[str, Any], where: str) -> Keeping:
    table = {"budget_bytes": 64 * 2**20, **tables.get("store", {})}
    return build(Keeping, table, f"{where} [store]")


def _one(cls: type[T], tables: Mapping[str, Any], name: str, where: str) -> T:
    part = tables.get(name, {})
    if not isinstance(part, Mapping):
        raise ConfigError(f"{where}: [{name}] must be one table")
    return build(cls, part, f"{where} [{name}]")


def _list(tables: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    part = tables.get(name, [])
    if not isinstance(part, list):
        raise ConfigError(f"{where}: {name} must be written [[{name}]], a list of tables")
    return part


def _tables(tables: Mapping[str, Any], name: str, where: str) -> Mapping[str, dict[str, Any]]:
    part = tables.get(name, {})
    if not isinstance(part, Mapping) or not all(isinstance(p, Mapping) for p in part.values()):
        raise ConfigError(f"{where}: {name} must be written [{name}.NAME], one table each")
    return part
