"""`stillfit run`: the loop on a user's own stream and network, from a run file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load

from stillfit.apps.collect import (
    CLASS_METRICS,
    L1T_METRICS,
    L1T_SIGMA,
    REGRESSION_METRICS,
    REGRESSION_SIGMA,
    collect,
)
from stillfit.apps.outcome import Outcome, publish
from stillfit.apps.progress import Progress, silent
from stillfit.apps.rundir import RunDir
from stillfit.apps.runfile import (
    LaneTable,
    RunFile,
    constant_noise,
    factory_of,
    method_factory,
    read,
)
from stillfit.apps.summary import Metric, Summary
from stillfit.core.clock import DAY
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Event, Examples, Labels
from stillfit.core.seeds import Seeds
from stillfit.loop import Lane, Plan, run
from stillfit.models import uncertain
from stillfit.models.growth import FACTORIES as GROWN
from stillfit.models.model import Factory, Model, build, load_weights
from stillfit.models.task import Regression
from stillfit.models.training import Prepared, fit
from stillfit.registry import Registry
from stillfit.streams.contract import Stream
from stillfit.streams.guard import Guarded
from stillfit.streams.joining import Joiner


@dataclass(frozen=True)
class Settings:
    """What a run folder belongs to: the run file's whole text."""

    run_file: str


@dataclass(frozen=True)
class Begun:
    """The beginning of a stream: its labelled events, and how many stream events they took."""

    examples: Examples
    position: int
    time: float
    rate: float


@dataclass(frozen=True)
class After:
    """A stream without its first `skip` events, which the first version was made from."""

    stream: Stream
    skip: int

    def events(self, start: int = 0) -> Iterator[Event]:
        return self.stream.events(self.skip + start)


def run_file(path: Path, *, out: Path | None = None, progress: Progress = silent) -> Outcome:
    """Run (or go on with) the run of a file; writes `summary.json` and `report.html`.

    `out`: folder of the run, else that of the run file's `out`, else `runs/NAME`.
    """
    torch.set_num_threads(1)  # see threads in docs/design.md
    settings = read(path)
    folder = out or settings.head.out or Path("runs") / path.stem
    # A lane whose updater changes the architecture stores versions of a grown network.
    factories = {**GROWN, settings.head.network: _factory(settings, path.resolve().parent)}
    if settings.method:
        factories[settings.method] = method_factory(settings.method)
    claimed = RunDir.claim(folder, "run", Settings(settings.text))
    # The guard sits outermost: what the labels' treatment makes is checked too.
    guarded = Guarded(settings.labels.on(settings.stream), settings.guard)
    with progress("first version", 2) as advance:
        begun = begin(guarded, settings.first.events)
        advance(1)
        model, nominal = first_version(settings, factories, begun.examples)
        advance(1)
    plan = plan_of(settings, factories, model, nominal, begun)
    with claimed.registry() as registry:
        with progress("events", 0) as advance:
            for step in run(After(guarded, begun.position), plan, registry):
                advance(len(step.event) if isinstance(step.event, Block) else 0)
        summary = summarise(settings, plan, registry, str(guarded.set_aside))
    return publish(summary, folder)


def begin(stream: Stream, events: int) -> Begun:
    """Read labelled events from the beginning of a stream until there are enough."""
    joiner = Joiner(max_bytes=2**31)
    parts: deque[Examples] = deque()
    have = position = seen = 0
    first, now = np.inf, 0.0
    for event in stream.events():
        position += 1
        now = event.time
        if isinstance(event, Block):
            first = min(first, event.time)
            seen += len(event)
            joiner.add(event)
        elif isinstance(event, Labels):
            parts.append(joiner.join(event))
            have += len(parts[-1])
            if have >= events:
                break
    if have < events:
        raise DataError(
            f"the stream has {have} labelled events in all, [first] asks for {events}; "
            "lower `events`, or check the target columns and the label delay"
        )
    # A stream that stands still for a moment (one block) tells nothing of its rate.
    rate = seen / max(now - first, 1.0) * DAY
    return Begun(Examples.join(list(parts)), position, now, rate)


def first_version(
    settings: RunFile, factories: dict[str, Factory], examples: Examples
) -> tuple[Model, Examples]:
    """The first version, trained or loaded, and the nominal events that it did not see."""
    head, first, architecture = settings.head, settings.first, settings.architecture
    model = Model(build(architecture, factories).eval(), settings.task, architecture)
    size = round(first.train * len(examples))
    training, nominal = examples.take(slice(0, size)), examples.take(slice(size, len(examples)))
    if first.weights is not None:
        try:
            weights = load(first.weights.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"the weights {first.weights} cannot be read: {error}") from None
        load_weights(model.network, weights)
        return model, nominal
    if size and any(True for _ in model.network.parameters()):
        seeds = Seeds(head.seed)
        network = uncertain.fresh(model.task, model.network, training, seeds.integer("first"))
        model = Model(network, model.task, architecture)
        fit(
            model,
            Prepared.of(model, training),
            first.schedule,
            seeds.rng("first", "fit"),
            batches=seeds.rng("first", "batches"),
        )
    return model, nominal


def plan_of(
    settings: RunFile,
    factories: dict[str, Factory],
    model: Model,
    nominal: Examples,
    begun: Begun,
) -> Plan:
    """The plan of a run file."""
    head = settings.head
    return Plan(
        lanes=tuple(_lane(settings, lane, model) for lane in settings.lanes),
        nominal=nominal,
        keeping=settings.store,
        factories=factories,
        seeds=Seeds(head.seed),
        rate=begun.rate,
        start=begun.time,
        window=settings.window,
    )


def _lane(settings: RunFile, table: LaneTable, model: Model) -> Lane:
    head = settings.head
    return Lane(
        name=table.name,
        title=table.title or table.name.capitalize(),
        model=model,
        rungs={name: settings.rungs[name] for name in table.rungs},
        policy=settings.policy,
        gates=settings.gates,
        probation=settings.probation,
        watch=settings.watch,
        errors=settings.errors,
        budget=settings.budget,
        fresh=head.fresh,
        judged=head.judged,
        tries=head.tries,
    )


def summarise(settings: RunFile, plan: Plan, registry: Registry, aside: str) -> Summary:
    """The summary of a run from its registry."""
    metrics: tuple[Metric, ...]
    if settings.is_l1t:
        metrics, uncertainty = L1T_METRICS, L1T_SIGMA
    elif isinstance(settings.task, Regression):
        metrics, uncertainty = REGRESSION_METRICS, REGRESSION_SIGMA
    else:
        metrics, uncertainty = CLASS_METRICS, None
    return collect(
        registry,
        title=settings.head.title,
        kind="l1t" if settings.is_l1t else "table",
        seed=settings.head.seed,
        metrics=metrics,
        titles={lane.name: lane.title for lane in plan.lanes},
        uncertainty=uncertainty,
        baseline="frozen",
        run={"network": settings.head.network, "stream": aside},
    )


def _factory(settings: RunFile, folder: Path) -> Factory:
    factory = factory_of(settings.head.network, folder)
    return constant_noise(factory) if settings.head.noise == "constant" else factory
