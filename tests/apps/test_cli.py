"""The commands: exit codes, JSON, errors in one line, and documentation that cannot fall behind."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from stillfit.apps import cli, cli_docs, inspect
from stillfit.apps.outcome import Outcome, publish
from stillfit.core.errors import ConfigError, DataError, LockedError
from stillfit.core.values import Footprint, Provenance
from stillfit.registry import Architecture, Registry, VersionFacts

ROOT = Path(__file__).parents[2]


def facts(updater, parent=None):
    return VersionFacts(
        architecture=Architecture("table:mlp", {"width": 8}),
        update_class="weights",
        provenance=Provenance(
            updater=updater, seed=3, data=("d" * 64,), span=(0.0, 50.0), events={"warm": 120}
        ),
        footprint=Footprint(parameters=97, weight_bytes=388, macs_per_event=80),
        code="stillfit 0.1.0",
        parent=parent,
    )


@pytest.fixture
def store(tmp_path):
    """Two lanes: `ladder` has served first, second; `frozen` first alone."""
    root = tmp_path / "run" / "registry"
    with Registry.create(root) as registry:
        weights = {"w": np.arange(6.0)}
        first = registry.add_version(facts("first"), weights=weights)
        second = registry.add_version(facts("recalibrate", first), weights={"w": np.ones(6)})
        frozen, ladder = registry.writer("frozen"), registry.writer("ladder")
        for writer in (frozen, ladder):
            writer.deploy(first, 0.0, "first version of the lane")
        payload = {"because": "<b>drift</b> [red]z0[/red] \x1b[2J", "value": 3.5}
        ladder.append("request", 4000.0, payload=payload)
        ladder.append("staged", 5000.0, version=second, payload={"because": "all gates"})
        ladder.switch(second, 7200.0, "inter-fill window")
    return root, first, second


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def run_json(capsys, *arguments, code=0):
    got, out, err = run(capsys, *arguments, "--json")
    assert got == code, err
    return json.loads(out)


# -- questions ------------------------------------------------------------------------------------


def test_status_says_what_serves_since_when_and_why(store, capsys):
    root, first, second = store
    found = run_json(capsys, "status", "--store", root)
    assert found["versions"] == 2 and found["journal"] == 5 and found["bytes"] > 0
    by_lane = {lane["lane"]: lane for lane in found["lanes"]}
    assert by_lane["frozen"]["version"] == first
    ladder = by_lane["ladder"]
    assert (ladder["version"], ladder["since"]) == (second, 7200.0)
    assert ladder["because"] == "inter-fill window"
    assert ladder["held"] is None and ladder["waiting"] == []
    with Registry.open(root) as registry:
        assert found["head"] == registry.head.hash
    code, out, _ = run(capsys, "status", "--store", root, "--lane", "ladder")
    assert code == 0 and second[:8] in out and "7200 s (2 h)" in out and "frozen" not in out


def test_history_answers_what_served_when_and_why(store, capsys):
    root, first, second = store
    found = run_json(capsys, "history", "--store", root, "--lane", "ladder")
    assert [entry["kind"] for entry in found] == ["deploy", "request", "staged", "switch"]
    assert [entry["time"] for entry in found] == [0.0, 4000.0, 5000.0, 7200.0]
    deploy, request, _, switch = found
    assert (deploy["version"], deploy["until"]) == (first, 7200.0)
    assert (switch["version"], switch["until"]) == (second, None)
    assert "until" not in request and request["payload"] == {"value": 3.5}
    assert switch["because"] == "inter-fill window"


def test_history_can_be_narrowed(store, capsys):
    root, _, _ = store

    def kinds(*more):
        return [e["kind"] for e in run_json(capsys, "history", "--store", root, *more)]

    assert kinds("--kind", "switch", "--kind", "staged") == ["staged", "switch"]
    assert kinds("--until", "1.2h", "--lane", "ladder") == ["deploy", "request"]
    assert kinds("-n", "1") == ["switch"]
    # Until when a version served is known even where the entry that ended it is not shown.
    (deploy,) = run_json(capsys, "history", "--store", root, "--lane", "ladder", "--until", "0")
    assert deploy["until"] == 7200.0


def test_what_served_at_a_time(store, capsys):
    root, first, second = store
    for at, version in (("7199", first), ("7200", second), ("120min", second), ("9d", second)):
        (lane,) = run_json(capsys, "history", "--store", root, "--lane", "ladder", "--at", at)
        assert lane["version"] == version
    before = run_json(capsys, "history", "--store", root, "--at=-1")
    assert [lane["version"] for lane in before] == [None, None]
    code, out, _ = run(capsys, "history", "--store", root, "--at", "2h")
    assert code == 0 and first[:8] in out and second[:8] in out


def test_versions_say_what_they_came_from_and_where_they_served(store, capsys):
    root, first, second = store
    found = run_json(capsys, "versions", "--store", root)
    assert [row["version"] for row in found] == [first, second]
    assert found[1]["parent"] == first and found[1]["updater"] == "recalibrate"
    assert found[1]["events"] == {"warm": 120} and found[1]["footprint"]["parameters"] == 97
    assert [place["lane"] for place in found[0]["served"]] == ["frozen", "ladder"]
    assert [
        row["version"] for row in run_json(capsys, "versions", "--store", root, "--lane", "frozen")
    ] == [first]
    chain = run_json(capsys, "versions", "--store", root, "--lineage", second[:10])
    assert [row["version"] for row in chain] == [second, first]
    code, out, _ = run(capsys, "versions", "--store", root)
    assert code == 0 and "120 warm" in out and "ladder from 7200 s (2 h)" in out


def test_prefixes_of_ids(store):
    root, first, second = store
    with Registry.open(root) as registry:
        assert inspect.find_version(registry, first[:4].upper()) == first
        assert inspect.find_version(registry, f" {second} ") == second
        with pytest.raises(ConfigError, match="give at least the first 4 digits"):
            inspect.find_version(registry, first[:3])
        with pytest.raises(ConfigError, match=r"no version in .* begins with '0000000'"):
            inspect.find_version(registry, "0000000")
        registry.versions = lambda: (first, first[:6] + "0" * 58)
        with pytest.raises(ConfigError, match=r"may mean 2 versions: .*; give more digits"):
            inspect.find_version(registry, first[:6])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("-1.5", -1.5), ("36h", 129600), ("2.5 d", 216000), ("1e3", 1000)],
)
def test_times_with_units(text, seconds):
    assert inspect.moment(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "3 weeks", "nan", "1e999", "12:30"])
def test_what_is_no_time(text):
    with pytest.raises(ConfigError, match="is no time of the stream: give seconds"):
        inspect.moment(text)


def test_verify_is_content_with_a_whole_registry_and_finds_a_flipped_bit(store, capsys):
    root, _, second = store
    found = run_json(capsys, "verify", "--store", root)
    assert found["ok"] and found["findings"] == [] and found["journal"] == 5
    file = root / "versions" / second / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = run_json(capsys, "verify", "--store", root, code=1)
    assert not found["ok"] and second in found["findings"][0]["where"]
    code, out, _ = run(capsys, "verify", "--store", root)
    assert code == 1 and "was altered" in out and "1 findings" in out


def test_verify_can_rebuild_the_index(store, capsys):
    root, _, _ = store
    (root / "journal.sqlite").unlink()
    assert run_json(capsys, "verify", "--store", root, code=1)["findings"]
    found = run_json(capsys, "verify", "--store", root, "--rebuild")
    assert found["ok"] and found["done"]


# -- orders ---------------------------------------------------------------------------------------


def test_a_person_rolls_back_and_the_journal_keeps_who_and_why(store, capsys):
    root, first, _ = store
    given = ("rollback", "--store", root, "--lane", "ladder", "--because", "bad", "--by", "ada")
    found = run_json(capsys, *given)
    assert found["version"] == first and found["journaled"] == 5
    with Registry.open(root) as registry:
        assert registry.serving("ladder") == first
        assert registry.change("ladder").actor == "ada"
        assert registry.change("ladder").because == "bad"
    assert run_json(capsys, "verify", "--store", root)["ok"]


def test_there_may_be_nothing_to_roll_back_to(store, capsys):
    root, _, second = store
    order = ("rollback", "--store", root, "--because", "x", "--lane")
    code, _, err = run(capsys, *order, "frozen")
    assert code == 1 and "has served one version only" in err
    code, _, err = run(capsys, *order, "ladder", "--to", second[:8])
    assert code == 1 and "serves in lane 'ladder' already" in err


def test_hold_and_resume(store, capsys):
    root, _, _ = store
    order = ("--store", root, "--lane", "ladder", "--because", "calibration", "--by", "ada")
    assert run(capsys, "resume", *order)[0] == 1, "nothing is held"
    code, out, _ = run(capsys, "hold", *order)
    assert code == 0 and "hold of lane ladder: journal entry 5, by ada" in out
    status = run_json(capsys, "status", "--store", root, "--lane", "ladder")["lanes"][0]
    assert status["held"]["actor"] == "ada" and status["held"]["because"] == "calibration"
    code, out, _ = run(capsys, "status", "--store", root)
    assert "on hold" in out and "by ada: calibration" in out
    code, _, err = run(capsys, "hold", *order)
    assert code == 1 and "is held already, by ada" in err
    assert run_json(capsys, "resume", *order)["kind"] == "resume"
    status = run_json(capsys, "status", "--store", root, "--lane", "ladder")["lanes"][0]
    assert status["held"] is None


def test_an_order_reaches_a_loop_that_is_running(store, capsys):
    root, _, _ = store
    order = ("hold", "--store", root, "--lane", "ladder", "--because", "look", "--by", "ada")
    with Registry.open(root, write=True):
        code, out, _ = run(capsys, *order)
        assert code == 0 and "left for the loop that is running" in out
        lane = run_json(capsys, "status", "--store", root, "--lane", "ladder")["lanes"][0]
        assert [command["kind"] for command in lane["waiting"]] == ["hold"]
        assert "waiting: hold" in run(capsys, "status", "--store", root)[1]


def test_an_order_needs_a_reason(store, capsys):
    root, _, _ = store
    code, _, err = run(capsys, "hold", "--store", root, "--lane", "ladder")
    assert code == 2 and "--because" in err
    code, _, err = run(capsys, "hold", "--store", root, "--lane", "ladder", "--because", " ")
    assert code == 1 and "and a reason" in err


# -- wrong use and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "history", "versions", "verify"])
def test_a_store_that_is_none(command, tmp_path, store, capsys):
    code, out, err = run(capsys, command, "--store", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no registry in ") and err.count("\n") == 1
    code, _, err = run(capsys, command, "--store", tmp_path / "run")
    assert code == 2 and "did you mean" in err and "run/registry?" in err
    table = run_json(capsys, command, "--store", tmp_path, code=2)
    assert set(table) == {"error", "kind", "exit"} and table["exit"] == 2


def test_an_unknown_lane_gets_a_hint(store, capsys):
    for command in (("status",), ("history",), ("versions",), ("hold", "--because", "x")):
        code, _, err = run(capsys, *command, "--store", store[0], "--lane", "lader")
        assert code == 2 and "there is no lane 'lader'" in err and "did you mean 'ladder'?" in err


def test_a_newer_registry_is_named(store, capsys):
    mark = store[0] / "REGISTRY.json"
    mark.write_text(mark.read_text().replace('"format": 1', '"format": 99'))
    code, _, err = run(capsys, "history", "--store", store[0])
    assert code == 1 and "has format 99" in err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["status"], ["history", "--store"], ["run"], ["status", "--sotre", "x"]],
)
def test_wrong_use_is_exit_code_2(arguments, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and "Error" in err


def test_reasons_cannot_take_over_the_terminal(store, capsys):
    code, out, _ = run(capsys, "history", "--store", store[0])
    assert code == 0 and "\x1b" not in out
    assert "<b>drift</b> [red]z0[/red] \ufffd[2J" in out


def test_lines_in_a_pipe_are_whole(store, capsys):
    _, out, _ = run(capsys, "history", "--store", store[0])
    assert len(out.splitlines()) == 6, "a head and a line an entry"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a wrong knob"), 2, "error: a wrong knob"),
        (DataError("a NaN"), 2, "error: a NaN"),
        (LockedError("another process"), 1, "error: another process"),
        (OSError(28, "No space left on device", "x.json"), 1, "No space left on device: x.json; "),
        (PermissionError(13, "Permission denied", "x"), 2, "error: Permission denied: x; check"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was stored is whole"),
        (ZeroDivisionError("oops"), 70, "this is a fault in stillfit; please report"),
    ],
)
def test_every_error_has_its_exit_code(error, code, text, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(inspect, "status", fail)
    got, out, err = run(capsys, "status", "--store", "x")
    assert (got, out) == (code, "") and text in err
    assert ("Traceback" in err) == (code == 70)


# -- summaries ------------------------------------------------------------------------------------


def test_a_report_is_made_anew_from_its_summary(season, tmp_path, capsys):
    season.write(tmp_path / "summary.json")
    found = run_json(capsys, "report", tmp_path, "--svg", tmp_path / "season.svg")
    assert found == {
        "report": str(tmp_path / "report.html"),
        "svg": str(tmp_path / "season.svg"),
    }
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "season.svg").read_text().startswith("<svg ")
    page = tmp_path / "deep" / "page.html"
    code, out, _ = run(capsys, "report", tmp_path / "summary.json", "--out", page)
    assert code == 0 and page.is_file() and str(page) in out


def test_a_report_of_nothing_is_wrong_use(tmp_path, capsys):
    code, _, err = run(capsys, "report", tmp_path)
    assert code == 2 and "there is no file" in err


@pytest.fixture
def played(season, tmp_path, monkeypatch):
    """Stands in for a season that takes minutes: notes how it was called."""
    from stillfit.apps import demo

    calls = []

    def play(out, settings, *, progress):
        calls.append((out, settings))
        with progress("season", 4) as advance:
            advance(4)
        return publish(season, out)

    monkeypatch.setattr(demo, "demo", play)
    return calls


def test_demo_shows_the_table_and_says_where_the_report_is(played, tmp_path, capsys):
    code, out, err = run(capsys, "demo", "--out", tmp_path / "d", "--lanes", "frozen, ladder")
    assert code == 0
    (call,) = played
    assert call[0] == tmp_path / "d" and call[1].lanes == ("frozen", "ladder")
    assert "Efficiency |dz| < 0.15 cm" in out and "won back" in out
    for name in ("fasthisto", "frozen", "recalibrate", "retrain", "replay", "ladder"):
        assert re.search(rf"^{name} .*±", out, re.M)
    assert f"report:  {tmp_path / 'd' / 'report.html'}" in out
    assert "season: 100 %" in err and "season" not in out.splitlines()[0]


def test_demo_passes_on_what_was_given_and_nothing_else(played, tmp_path, capsys):
    from stillfit.apps.demo import Demo

    run(capsys, "demo", "--out", tmp_path)
    more = ("--seed", 7, "--fills", 4, "--events", 10, "--scenario", "ageing", "--network", "e2e")
    run(capsys, "demo", "--out", tmp_path, *more)
    assert played[0][1] == Demo()
    wanted = Demo(seed=7, fills=4, events=10, scenario="ageing", network="e2e")
    assert played[1][1] == wanted


def test_demo_in_json(played, tmp_path, capsys):
    found = run_json(capsys, "demo", "--out", tmp_path / "d")
    assert found["fills"] == 24 and found["metric"] == "efficiency" and found["held"] == []
    assert found["lanes"]["frozen"]["err"] > 0
    assert Path(found["report"]).is_file() and Path(found["summary"]).is_file()


def test_a_run_that_ends_on_hold_needs_a_person(season, tmp_path, monkeypatch, capsys):
    import dataclasses

    from stillfit.apps import run as runs

    kept = tuple(d for d in season.decisions if d.what != "resume")
    held = dataclasses.replace(season, decisions=kept)
    ends = iter([season, held, held])
    monkeypatch.setattr(
        runs, "run_file", lambda file, *, out, progress: Outcome(next(ends), tmp_path)
    )
    assert run(capsys, "run", "x.toml")[0] == 0
    code, _, err = run(capsys, "run", "x.toml")
    assert code == 1 and err == "on hold: replay; look why, then `stillfit resume`\n"
    assert run_json(capsys, "run", "x.toml", code=1)["held"] == ["replay"]


def test_the_library_command_passes_on_what_was_given(monkeypatch, tmp_path, capsys):
    from stillfit.apps import library

    calls = []

    def generate(out, *, interactions, seed, workers, progress):
        calls.append((dict(interactions), seed, workers))
        for done in (3, 7):
            progress("ttbar", done, 7)
        return (out / "ttbar.json",)

    monkeypatch.setattr(library, "generate_all", generate)
    given = ("--process", "ttbar=7", "--process", "hbb=2", "--seed", 5, "--workers", 2)
    found = run_json(capsys, "l1t", "library", "--out", tmp_path, *given)
    assert found == {"files": [str(tmp_path / "ttbar.json")]}
    run(capsys, "l1t", "library", "--out", tmp_path)
    assert calls[0] == ({"ttbar": 7, "hbb": 2}, 5, 2)
    assert calls[1][0]["inelastic"] >= 200_000 and calls[1][2] == 1
    code, _, err = run(capsys, "l1t", "library", "--out", tmp_path, "--process", "ttbar")
    assert code == 2 and "write NAME=N" in err


# -- start and documentation ----------------------------------------------------------------------


def test_help_starts_without_the_heavy_packages():
    heavy = ("torch", "numba", "scipy", "numpy", "pyarrow", "pydantic", "scoringrules")
    code = (
        "import sys; import stillfit.apps.cli as cli; code = cli.main(['--help']); "
        f"print('loaded:', [m for m in {heavy} if m in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "loaded: [] 0" in done.stdout


def test_the_version_is_the_packages(capsys):
    import stillfit

    assert run(capsys, "--version") == (0, f"stillfit {stillfit.__version__}\n", "")


def test_the_script_is_the_function_that_gives_exit_codes():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["stillfit"] == "stillfit.apps.cli:main"


def test_the_page_of_commands_is_the_one_that_the_commands_make():
    assert (ROOT / "docs" / "cli.md").read_text() == cli_docs.page(), (
        "run: python -m stillfit.apps.cli_docs docs/cli.md"
    )


def every_command():
    import typer.main

    return list(cli_docs._leaves(typer.main.get_command(cli.app), "stillfit"))


@pytest.mark.parametrize(
    ("name", "found"), every_command(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_command_is_documented_has_json_and_an_example(name, found, capsys):
    page = (ROOT / "docs" / "cli.md").read_text()
    section = page.split(f"## `{name}`\n")[1].split("\n## ")[0]
    options = [option for p in found.params for option in p.opts if option.startswith("--")]
    assert "--json" in options
    code, out, _ = run(capsys, *name.split()[1:], "--help")
    assert code == 0 and "Example:" in out and f"{name} " in out.split("Example:")[1]
    for parameter in found.params:
        if parameter.name != "help":
            assert parameter.help, f"{parameter.name} of {name} has no help"
            assert any(option in section for option in [*parameter.opts, parameter.metavar])
            assert all(option in out for option in parameter.opts if option.startswith("--"))


def test_examples_in_the_help_are_parsed_by_their_commands():
    """Every example line names options that its command has."""
    known = dict(every_command())
    for block in re.findall(r"```sh\n(.*?)```", cli_docs.page(), re.S):
        for line in block.strip().splitlines():
            name = max((n for n in known if line.startswith(f"{n} ")), key=len)
            options = {option for p in known[name].params for option in p.opts}
            assert set(re.findall(r"(?<=\s)--[a-z]+", line)) <= options


@pytest.mark.parametrize(("columns", "cells"), [(200, 7), (100, 1), (50, 1)])
def test_a_narrow_terminal_gets_fewer_figures_but_whole_ones(
    columns, cells, season, tmp_path, monkeypatch, capsys
):
    from stillfit.apps import outcome

    monkeypatch.setattr(outcome, "room", lambda: columns)
    outcome.show(Outcome(season, tmp_path))
    out = capsys.readouterr().out
    (line,) = re.findall(r"^ladder .*$", out, re.M)
    assert line.count("±") == cells and "…" not in out
    assert line.rstrip().endswith("%"), "what was won back is always told"
