"""`stillfit demo`: a season of fills through the whole loop, its summary and its report."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stillfit.apps.collect import L1T_METRICS, L1T_SIGMA, collect
from stillfit.apps.outcome import Outcome, publish
from stillfit.apps.progress import Progress, silent
from stillfit.apps.rundir import RunDir
from stillfit.apps.summary import Fill, Summary
from stillfit.core.errors import ConfigError
from stillfit.l1t import scenario as scenarios
from stillfit.l1t.conditions import Conditions
from stillfit.l1t.finders import fasthisto_model
from stillfit.l1t.library import Library, load
from stillfit.l1t.season import Season
from stillfit.loop import run
from stillfit.models.model import Model
from stillfit.registry import Registry
from stillfit.streams.ahead import Ahead
from stillfit.studies.initial import cache_folder, first_model, fixed_model, nominal_examples
from stillfit.studies.season import CHIPS, DEMO_LANES, FIXED, Effort, season_plan, ways

TRAINING_EVENTS = 30_000
NOMINAL_EVENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What a season run is made of; stored beside its result as `run.json`.

    `scenario`: name of a shipped one or path of a TOML file. `fills`, `events`: override those of
    the scenario (0: as it says). `network`: `e2e` or `adaptive`. `synthesise`: what begins to serve
    in lanes with a chip.
    """

    scenario: str = "season"
    lanes: tuple[str, ...] = DEMO_LANES
    network: str = "adaptive"
    seed: int = 1
    fills: int = 0
    events: int = 0
    training_events: int = TRAINING_EVENTS
    nominal_events: int = NOMINAL_EVENTS
    synthesise: bool = False


def demo(
    out: Path,
    settings: Demo | None = None,
    *,
    effort: Effort | None = None,
    progress: Progress = silent,
    cache: Path | None = None,
) -> Outcome:
    """Run (or go on with) a season in the folder `out`; writes `summary.json` and `report.html`.

    A run that was interrupted goes on where it was. `ConfigError` where `out` holds another run.
    """
    settings = settings or Demo()
    torch.set_num_threads(1)  # see threads in docs/design.md
    began = time.monotonic()
    season = _season(settings)
    folder = RunDir.claim(out, "l1t season", settings)
    library = season.library
    with progress("first network", settings.training_events) as advance:
        network = first_model(
            settings.network,
            library=library,
            seed=settings.seed,
            events=settings.training_events,
            cache=cache or cache_folder(),
            tell=advance,
        )
    nominal = nominal_examples(library, seed=settings.seed, events=settings.nominal_events)
    models: dict[str, Model] = {"network": network, "fasthisto": fasthisto_model(nominal)}
    if set(settings.lanes) & set(CHIPS):
        models[FIXED] = _fixed(network, settings, library, cache or cache_folder(), progress)
    plan = season_plan(
        season,
        settings.lanes,
        models,
        nominal,
        seed=settings.seed,
        effort=effort,
        synthesise=settings.synthesise,
    )
    with folder.registry() as registry:
        with progress("season", season.length) as advance:
            for _ in run(Ahead(season), plan, registry):
                advance(1)
        summary = summarise(registry, season, settings)
    seconds = round(time.monotonic() - began, 1)
    summary = replace(summary, run={**summary.run, "seconds": seconds})
    return publish(summary, out)


def summarise(registry: Registry, season: Season, settings: Demo) -> Summary:
    """The summary of a season from its registry and its time line."""
    titles = {name: ways(Effort())[name][0] for name in settings.lanes}
    return collect(
        registry,
        title=season.scenario.title,
        kind="l1t",
        seed=settings.seed,
        metrics=L1T_METRICS,
        titles=titles,
        fills=time_line(season),
        uncertainty=L1T_SIGMA,
        baseline="frozen",
        run={
            "scenario": settings.scenario,
            "network": settings.network,
            "fills": season.scenario.fills,
            "events per fill": season.scenario.events,
            "labels after fills": season.scenario.label_delay,
            "training events": settings.training_events,
            "nominal events": settings.nominal_events,
            "library": str(season.library.meta.get("inelastic", {}).get("version", "")),
        },
    )


def time_line(season: Season) -> list[Fill]:
    """The fills of a season with their conditions."""
    line = []
    for number, fill in enumerate(season.fills, start=1):
        name, detector = season.scenario.at(number)
        assert isinstance(detector, Conditions)
        line.append(
            Fill(
                fill=number,
                condition=name,
                start=fill.start,
                end=fill.end,
                pileup=detector.pileup,
            )
        )
    return line


def _fixed(
    network: Model, settings: Demo, library: Library, cache: Path, progress: Progress
) -> Model:
    """The first model of lanes with a chip: the E2E network, trained and then made small."""
    if settings.network != "e2e":
        with progress("first E2E network", settings.training_events) as advance:
            network = first_model(
                "e2e",
                library=library,
                seed=settings.seed,
                events=settings.training_events,
                cache=cache,
                tell=advance,
            )
    with progress("fixed-point network", 1) as advance:
        made = fixed_model(network, library=library, seed=settings.seed, cache=cache)
        advance(1)
    return made


def _season(settings: Demo) -> Season:
    scenario = scenarios.load(settings.scenario)
    if settings.fills:
        scenario = replace(scenario, fills=settings.fills)
    if settings.events:
        scenario = replace(scenario, events=settings.events)
    if not settings.lanes:
        raise ConfigError("a season needs at least one lane; see `stillfit demo --help`")
    return Season(scenario, load())
