"""The commands: parse, call, show. What they call is imported when it is called.

So `stillfit --help` starts at once, without PyTorch. Exit codes: 0 done, 1 the loop or a check
says no, 2 wrong use; 70 is a fault in stillfit itself, 130 an interrupt.
"""

from __future__ import annotations

import getpass
import io
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillfit import __version__
from stillfit.apps.command import (
    FAULT,
    MISUSE,
    NO,
    AnyLane,
    Because,
    By,
    Json,
    OneLane,
    Store,
    command,
)
from stillfit.apps.firmware import firmware
from stillfit.apps.memory import keep_freed_memory
from stillfit.apps.study import study
from stillfit.apps.uncertainty import uncertainty

if TYPE_CHECKING:
    from stillfit.apps.outcome import Outcome

app = typer.Typer(
    name="stillfit",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
l1t = typer.Typer(
    name="l1t", no_args_is_help=True, rich_markup_mode=None, help="The Level-1 trigger's own tools."
)
app.add_typer(l1t)
app.add_typer(uncertainty)
app.add_typer(study)
app.add_typer(firmware)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show ± or a reason's letters shows something else instead.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    keep_freed_memory()
    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else MISUSE
    except Exception:  # noqa: BLE001  a fault of ours must not look like a verdict of a check
        traceback.print_exc()
        sys.stderr.write("error: this is a fault in stillfit; please report the lines above\n")
        return FAULT
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stillfit {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Keep a deployed machine-learning model still fit for a world that changes.

    Try `stillfit demo` first; it needs no data. Exit codes: 0 done, 1 the loop or a check says
    no, 2 wrong use.
    """


# -- seasons and runs -----------------------------------------------------------------------------


@command(app, "demo")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where registry and report go.")
    ] = Path("runs/demo"),
    lanes: Annotated[
        str | None,
        typer.Option(
            "--lanes", metavar="A,B,..", help="Lanes; fasthisto,frozen,retrain,dark by default."
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option("--scenario", metavar="NAME", help="A shipped one, or a TOML file."),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NAME", help="adaptive (default) or e2e.")
    ] = None,
    fills: Annotated[
        int | None,
        typer.Option("--fills", metavar="N", min=1, help="Fills, if not as the scenario says."),
    ] = None,
    events: Annotated[
        int | None,
        typer.Option("--events", metavar="N", min=1, help="Events a fill, if not as it says."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed of everything random; 1 by default."),
    ] = None,
    synthesise: Annotated[
        bool,
        typer.Option(
            "--synthesise", help="Let Yosys count each version that serves on a chip; minutes each."
        ),
    ] = False,
    json: Json = False,
) -> int:
    """A season of LHC fills in a changing detector.

    Several ways of keeping the vertex network fit, side by side: all lanes serve the same
    simulated Level-1 trigger events. Started again on the same folder, it goes on where it was
    interrupted.

    \b
    Example:
      stillfit demo --out runs/demo
      stillfit demo --out runs/two --lanes frozen,ladder --seed 7
    """
    from stillfit.apps import demo as season
    from stillfit.apps.progress import to_terminal

    given: dict[str, Any] = {
        "lanes": None if lanes is None else tuple(name.strip() for name in lanes.split(",")),
        "scenario": scenario,
        "network": network,
        "fills": fills,
        "events": events,
        "seed": seed,
        "synthesise": synthesise or None,
    }
    settings = season.Demo(**{name: value for name, value in given.items() if value is not None})
    outcome = season.demo(out, settings, progress=to_terminal())
    return _finish(outcome, json, held_is_no=False)


@command(app, "run")
def run(
    file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where registry and report go, if not as the run file says.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Run the loop on your own data and network.

    Started again, it goes on where it was interrupted. Exit code 1 if a lane is on hold at the
    end: a person has to look, and then `stillfit resume`.

    \b
    Example:
      stillfit run examples/table.toml --out runs/table
    """
    from stillfit.apps.progress import to_terminal
    from stillfit.apps.run import run_file

    outcome = run_file(file, out=out, progress=to_terminal())
    return _finish(outcome, json, held_is_no=True)


def _finish(outcome: Outcome, as_json: bool, *, held_is_no: bool) -> int:
    from stillfit.apps.outcome import as_json as table
    from stillfit.apps.outcome import show
    from stillfit.apps.screen import complain, tell_json

    if as_json:
        tell_json(table(outcome))
    else:
        show(outcome)
    if outcome.held and held_is_no:
        complain(f"on hold: {', '.join(outcome.held)}; look why, then `stillfit resume`")
        return NO
    return 0


@command(app, "report")
def report(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A summary.json, or the folder of a run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The page; report.html beside the summary by default."
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Write the season's picture on its own, too."),
    ] = None,
    json: Json = False,
) -> int:
    """Make a report anew from its summary.json.

    One page that holds everything and needs no network.

    \b
    Example:
      stillfit report runs/demo
      stillfit report runs/demo --svg season.svg
    """
    from stillfit.apps.outcome import find
    from stillfit.apps.report import render, season_svg
    from stillfit.apps.screen import say, tell_json
    from stillfit.apps.summary import write_text

    summary, folder = find(path)
    page = out if out is not None else folder / "report.html"
    write_text(page, render(summary))
    if svg is not None:
        write_text(svg, season_svg(summary))
    if json:
        tell_json({"report": str(page), "svg": None if svg is None else str(svg)})
    else:
        say(f"report: {page}")
        if svg is not None:
            say(f"picture: {svg}")
    return 0


# -- questions to a registry ----------------------------------------------------------------------


@command(app, "status")
def status(store: Store, lane: AnyLane = None, json: Json = False) -> int:
    """What serves now, since when and why.

    For each lane, with holds and with orders that wait for a running loop.

    \b
    Example:
      stillfit status --store runs/demo/registry
    """
    from stillfit.apps import inspect
    from stillfit.apps.screen import say, show_table, tell_json
    from stillfit.apps.tell import size, status_rows

    found = inspect.status(store, lane)
    if json:
        tell_json(found)
        return 0
    say(
        f"{store}: {found['versions']} versions in {size(found['bytes'])}, "
        f"{found['journal']} journal entries, head {found['head'][:12]}"
    )
    show_table(
        ["lane", "state", "serves", "since", "because"],
        status_rows(found["lanes"]),
        last_wraps=True,
    )
    return 0


@command(app, "history")
def history(
    store: Store,
    lane: AnyLane = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", metavar="KIND", help="Only these entries, such as switch; may be repeated."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="Up to a time of the stream: seconds, or 36h, 2.5d."
        ),
    ] = None,
    newest: Annotated[
        int | None, typer.Option("--newest", "-n", metavar="N", min=1, help="Only the last N.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="What served at this time, instead of the entries."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """What served when, and why.

    The journal, entry by entry. Times are seconds of the stream. An entry that made a version
    serve says until when it did.

    \b
    Example:
      stillfit history --store runs/demo/registry --lane dark --kind switch --kind rollback
      stillfit history --store runs/demo/registry --at 36h
    """
    from stillfit.apps import inspect
    from stillfit.apps.screen import show_table, tell_json
    from stillfit.apps.tell import history_rows, status_rows

    if at is not None:
        served = inspect.served_at(store, inspect.moment(at), lane)
        if json:
            tell_json(served)
        else:
            show_table(
                ["lane", "state", "serves", "since", "because"],
                status_rows(served),
                last_wraps=True,
            )
        return 0
    last = None if until is None else inspect.moment(until)
    rows = inspect.history(store, lane=lane, kinds=kind or (), until=last, newest=newest)
    if json:
        tell_json(rows)
    else:
        show_table(
            ["entry", "time", "lane", "what", "version", "by", "because"],
            history_rows(rows),
            last_wraps=True,
        )
    return 0


@command(app, "versions")
def versions(
    store: Store,
    lane: AnyLane = None,
    lineage: Annotated[
        str | None,
        typer.Option(
            "--lineage",
            metavar="VERSION",
            help="One version and what it came from, back to the first.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """All versions and what they came from.

    What made them, on what they were trained, where they served. A VERSION is an id or its first
    digits, at least four.

    \b
    Example:
      stillfit versions --store runs/demo/registry --lane dark
      stillfit versions --store runs/demo/registry --lineage 3fa81b
    """
    from stillfit.apps import inspect
    from stillfit.apps.screen import show_table, tell_json
    from stillfit.apps.tell import version_rows

    rows = inspect.versions(store, lane=lane, of=lineage)
    if json:
        tell_json(rows)
    else:
        head = ["version", "from", "made by", "class", "trained on", "parameters", "size", "served"]
        show_table(head, version_rows(rows), last_wraps=True)
    return 0


@command(app, "verify")
def verify(
    store: Store,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First make the index anew from the journal file.")
    ] = False,
    json: Json = False,
) -> int:
    """Compare every stored byte with what was written.

    Finds any flipped bit or missing file of a version, and any altered, removed or reordered
    entry of the journal. Exit code 1 if there is a finding. Keep the head that `status` prints
    elsewhere: it proves the whole journal.

    \b
    Example:
      stillfit verify --store runs/demo/registry
    """
    from stillfit.apps import inspect
    from stillfit.apps.screen import say, tell_json

    found = inspect.check(store, rebuild_index=rebuild)
    if json:
        tell_json(found)
        return 0 if found["ok"] else NO
    for text in found["done"]:
        say(text)
    for finding in found["findings"]:
        say(f"{finding['where']}: {finding['what']}")
    if not found["ok"]:
        say(f"{store}: {len(found['findings'])} findings; take what is named from a copy")
        return NO
    say(
        f"{store}: all is as it was written: {found['versions']} versions, "
        f"{found['journal']} journal entries, head {found['head'][:12]}"
    )
    return 0


# -- a person's orders ----------------------------------------------------------------------------


@command(app, "rollback")
def rollback(
    store: Store,
    lane: OneLane,
    because: Because,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            help="A version that served before; by default the last one that did.",
        ),
    ] = None,
    by: By = None,
    json: Json = False,
) -> int:
    """Let a version serve again that served before.

    While a loop is running, it obeys at its next step. Exit code 1 if there is none to go back to.

    \b
    Example:
      stillfit rollback --store runs/demo/registry --lane dark --because "fill 12 was bad"
    """
    return _order("rollback", store, lane, because, by, json, to)


@command(app, "hold")
def hold(store: Store, lane: OneLane, because: Because, by: By = None, json: Json = False) -> int:
    """Stop all automatic changes of a lane.

    Until a person resumes it. Serving goes on.

    \b
    Example:
      stillfit hold --store runs/demo/registry --lane dark --because "calibration run"
    """
    return _order("hold", store, lane, because, by, json)


@command(app, "resume")
def resume(store: Store, lane: OneLane, because: Because, by: By = None, json: Json = False) -> int:
    """Allow automatic changes of a lane again.

    \b
    Example:
      stillfit resume --store runs/demo/registry --lane dark --because "labels repaired"
    """
    return _order("resume", store, lane, because, by, json)


def _order(
    kind: str,
    store: Path,
    lane: str,
    because: str,
    by: str | None,
    as_json: bool,
    to: str | None = None,
) -> int:
    from stillfit.apps import inspect
    from stillfit.apps.screen import say, tell_json

    given = inspect.order(store, kind, lane=lane, because=because, actor=by or _login(), to=to)
    if as_json:
        tell_json(given.row())
        return 0
    version = given.command.version
    words = f"{kind} of lane {lane}" + (f" to {version[:12]}" if version else "")
    if given.entry is None:
        say(f"{words}: left for the loop that is running, which obeys at its next step")
    else:
        say(f"{words}: journal entry {given.entry.seq}, by {given.entry.actor}")
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "operator"


# -- the Level-1 trigger --------------------------------------------------------------------------


@l1t.callback()
def _l1t() -> None:
    """The Level-1 trigger's own tools."""


@command(l1t, "library")
def library(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the library goes.")],
    process: Annotated[
        list[str] | None,
        typer.Option(
            "--process",
            metavar="NAME=N",
            help="Such as ttbar=20000, may be repeated; what the package ships by default.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Seed; that of the shipped library by default."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Processes at a time.")
    ] = 1,
    json: Json = False,
) -> int:
    """Generate a particle library with Pythia 8.

    The same as the shipped one, or a larger one. Needs the extra `pythia`. About 9 minutes on 2
    cores for what the package ships. A longer library begins with the interactions of a shorter
    one of the same seed.

    \b
    Example:
      stillfit l1t library --out my-library --workers 2
      stillfit l1t library --out big --process inelastic=1000000 --process ttbar=50000
    """
    from stillfit.apps.library import make_library
    from stillfit.apps.progress import to_terminal
    from stillfit.apps.screen import say, tell_json

    written = make_library(out, process or (), seed, workers, to_terminal())
    if json:
        tell_json({"files": [str(path) for path in written]})
    else:
        for path in written:
            say(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
