"""`stillfit study`: every way of learning on, judged by one harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillfit.apps.command import Json, command
from stillfit.apps.uncertainty import cores, names

if TYPE_CHECKING:
    from stillfit.studies.continual.run import Found, Told

study = typer.Typer(
    name="study",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Learning on: every strategy, judged.",
)


@study.callback()
def _study() -> None:
    """Learning on: every strategy, judged.

    Each command walks strategies through sequences of conditions at several seeds, in parallel
    processes, and writes Parquet tables and a page. Started again on the same folder, it goes on
    where it was interrupted; a strategy whose knobs changed is run again.
    """


Data = Annotated[Path, typer.Option("--data", metavar="FILE", help="The file that is read.")]
Scenarios = Annotated[
    str | None, typer.Option("--scenario", metavar="A,B,..", help="Scenarios; all by default.")
]
Strategies = Annotated[
    str | None,
    typer.Option("--strategies", metavar="A,B,..", help="Strategies; all that apply by default."),
]
SeedList = Annotated[
    str, typer.Option("--seeds", metavar="1,2,..", help="Seeds of data, network and training.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where tables and page go.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=1, help="Processes at a time; one per core by default."
    ),
]
Effort = Annotated[
    float, typer.Option("--effort", metavar="X", help="Factor on all training, 1 as documented.")
]
Rows = Annotated[
    int | None,
    typer.Option(
        "--rows", metavar="N", min=1, help="At most so many rows an experience: a quick look."
    ),
]
TestRows = Annotated[
    int | None,
    typer.Option("--test-rows", metavar="N", min=1, help="At most so many held-out rows."),
]
Labels = Annotated[
    float,
    typer.Option("--labels", metavar="SHARE", help="Share of each experience that gets labels."),
]


@command(study, "mnist")
def mnist(
    data: Data,
    scenario: Scenarios = None,
    strategies: Strategies = None,
    seeds: SeedList = "1,2,3",
    out: Out = Path("runs/mnist"),
    workers: Workers = None,
    effort: Effort = 1.0,
    rows: Rows = None,
    test_rows: TestRows = None,
    labels: Labels = 1.0,
    json: Json = False,
) -> int:
    """Split MNIST (class-incremental) and Permuted MNIST (domain-incremental).

    Scenarios: split-mnist, permuted-mnist. FILE is an npz file of images with x_train, y_train,
    x_test and y_test, such as the public mnist.npz.

    \b
    Example:
      stillfit study mnist --data mnist.npz --scenario split-mnist
      stillfit study mnist --data mnist.npz --strategies naive,replay --rows 2000 --seeds 1
    """
    return _run("mnist", locals())


@command(study, "activity")
def activity(
    data: Data,
    scenario: Scenarios = None,
    strategies: Strategies = None,
    seeds: SeedList = "1,2,3",
    out: Out = Path("runs/activity"),
    workers: Workers = None,
    effort: Effort = 1.0,
    rows: Rows = None,
    test_rows: TestRows = None,
    labels: Labels = 1.0,
    json: Json = False,
) -> int:
    """Human activity: wearer by wearer, then from the phone to the watch.

    Scenarios: har (features), har-cnn (raw windows), har-microcontroller (256 KB of RAM for network
    and learner) and har-phone (8 MB). FILE holds recordings, as docs/sensing.md says.

    \b
    Example:
      stillfit study activity --data har-sp-sw.parquet --scenario har,har-microcontroller
    """
    return _run("activity", locals())


@command(study, "dead-regions")
def dead_regions(
    scenario: Scenarios = None,
    strategies: Strategies = None,
    seeds: SeedList = "1,2,3",
    out: Out = Path("runs/dead-regions"),
    workers: Workers = None,
    effort: Effort = 1.0,
    rows: Rows = None,
    test_rows: TestRows = None,
    labels: Labels = 1.0,
    json: Json = False,
) -> int:
    """The ten dead regions of the published study: does learning on beat retraining?

    Scenarios: dead-regions (the authors' track-to-vertex classifier), dead-regions-e2e and
    dead-regions-adaptive (the same events through the vertex networks). Rows are events.

    \b
    Example:
      stillfit study dead-regions --scenario dead-regions --seeds 1,2,3,4,5
    """
    return _run("dead-regions", locals())


@command(study, "trigger")
def trigger(
    scenario: Scenarios = None,
    strategies: Strategies = None,
    seeds: SeedList = "1,2,3",
    out: Out = Path("runs/trigger"),
    workers: Workers = None,
    effort: Effort = 1.0,
    rows: Rows = None,
    test_rows: TestRows = None,
    labels: Labels = 1.0,
    json: Json = False,
) -> int:
    """The trigger's scenarios, condition by condition, on both vertex networks.

    Scenarios: season, misaligned, resolution, quality-word and ageing, each with -e2e and
    -adaptive, such as season-e2e. Efficiency, core width, balanced accuracy at the deployed
    threshold, AUC, forgetting, events to recover, labelled events used, seconds.

    \b
    Example:
      stillfit study trigger --scenario misaligned-e2e,misaligned-adaptive
    """
    return _run("trigger", locals())


@command(study, "electricity")
def electricity(
    data: Data,
    scenario: Scenarios = None,
    strategies: Strategies = None,
    seeds: SeedList = "1,2,3",
    out: Out = Path("runs/electricity"),
    workers: Workers = None,
    effort: Effort = 1.0,
    rows: Rows = None,
    test_rows: TestRows = None,
    json: Json = False,
) -> int:
    """Electricity prices, prequential, beside the row that repeats the last class.

    Scenarios: electricity, and electricity-last, in which the class of the half-hour before is an
    input. FILE is the Elec2 table.

    \b
    Example:
      stillfit study electricity --data electricity.csv
    """
    return _run("electricity", locals())


@command(study, "strategies")
def strategies(json: Json = False) -> int:
    """The strategies that the studies know, by family.

    \b
    Example:
      stillfit study strategies --json
    """
    from stillfit.apps.screen import say, tell_json
    from stillfit.studies.continual.catalogue import STRATEGIES

    if json:
        facts = [
            {"name": s.name, "title": s.title, "family": s.family} for s in STRATEGIES.values()
        ]
        tell_json(facts)
        return 0
    for one in STRATEGIES.values():
        say(f"{one.name:24s} {one.family:16s} {one.title}")
    return 0


def _run(group: str, given: dict[str, Any]) -> int:
    """The study of one group of scenarios: run, write the page, show the table."""
    import torch

    from stillfit.apps.command import NO
    from stillfit.apps.report.study import render
    from stillfit.apps.screen import say, tell_json
    from stillfit.apps.summary import write_text
    from stillfit.studies.continual.run import ContinualStudy, run
    from stillfit.studies.continual.scenarios import of_group
    from stillfit.studies.continual.setting import Options

    torch.set_num_threads(1)  # see threads in docs/design.md
    asked = ContinualStudy(
        scenarios=of_group(group, names(given["scenario"])),
        strategies=names(given["strategies"]),
        seeds=_numbers(given["seeds"]),
        options=Options(
            data=given.get("data"),
            effort=given["effort"],
            rows=given["rows"],
            test_rows=given["test_rows"],
            labels=given.get("labels", 1.0),
        ),
    )
    out: Path = given["out"]
    found = run(asked, out, workers=given["workers"] or cores(), told=_tell)
    page = out / "report.html"
    write_text(page, render(found, _facts(asked)))
    if given["json"]:
        tell_json({"report": str(page), "lines": _as_json(found, asked.scenarios)})
    else:
        for name in asked.scenarios:
            _show(found, name)
        say(f"report: {page}")
    return NO if any(row["outcome"] == "failed" for row in found.runs) else 0


def _numbers(text: str) -> tuple[int, ...]:
    """ "1,2" as numbers."""
    from stillfit.core.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers such as 1,2,3, got {text!r}") from None


def _tell(told: Told) -> None:
    """A line per finished run on standard error, with an estimate of what is left."""
    from stillfit.apps.report.words import duration
    from stillfit.apps.screen import complain

    row = told.row
    ended = "" if row["outcome"] == "done" else f", {row['outcome']}"
    took = "stored" if told.stored else duration(float(row["wall_seconds"]))
    left = f", about {duration(told.seconds_left)} left" if told.seconds_left else ""
    complain(
        f"{told.done} of {told.total}: {row['scenario']} {row['strategy']} seed {row['seed']} "
        f"({took}{ended}){left}"
    )


def _facts(asked: Any) -> str:
    options = asked.options
    parts = [f"seeds {', '.join(map(str, asked.seeds))}"]
    if options.effort != 1:
        parts.append(f"training x {options.effort:g}")
    if options.labels != 1:
        parts.append(f"labels of {100 * options.labels:g} %")
    for name in ("rows", "test_rows"):
        value = getattr(options, name)
        if value is not None:
            parts.append(f"at most {value:,} {name.replace('_', ' ')} an experience")
    return ", ".join(parts)


def _show(found: Found, scenario: str) -> None:
    from stillfit.apps.report.study import HEAD, cells
    from stillfit.apps.screen import say, show_table
    from stillfit.studies.continual.results import lines
    from stillfit.studies.continual.scenarios import SCENARIOS

    known = SCENARIOS[scenario]
    say(f"{known.title}: {known.headline}, mean [95 % interval over seeds]")
    show_table(HEAD, [cells(line) for line in lines(found, scenario)])
    say()


def _as_json(found: Found, scenarios: tuple[str, ...]) -> list[dict[str, Any]]:
    from stillfit.studies.continual.results import lines

    told: list[dict[str, Any]] = []
    for scenario in scenarios:
        for line in lines(found, scenario):
            spans = {name: _span(value) for name, value in line.metrics.items()}
            told.append(
                {
                    "scenario": scenario,
                    "strategy": line.strategy,
                    "family": line.family,
                    "metrics": spans,
                    "minus_retrain": _span(line.against),
                    "costs": dict(line.costs),
                    "why": line.why,
                }
            )
    return told


def _span(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": value.mean, "low": value.low, "high": value.high, "seeds": value.n}
