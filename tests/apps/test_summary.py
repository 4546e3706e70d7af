"""summary.json: what is written is read back, and nothing wrong is read at all."""

import dataclasses
import json
import math

import pytest

from stillfit.apps.summary import (
    Fill,
    Forgetting,
    Lane,
    Metric,
    Score,
    Summary,
    Uncertainty,
    from_json,
    read,
    to_json,
)
from stillfit.core.errors import ConfigError


def small(**changes):
    values = {
        "title": "t",
        "kind": "table",
        "stillfit": "0.1.0",
        "seed": 3,
        "metrics": (Metric(name="error", title="Error", better="lower"),),
        "lanes": {
            "one": Lane(
                title="One",
                fills=(Score(fill=1, condition="all", n=5, values={"error": 0.5}),),
            )
        },
        "fills": (Fill(fill=1, condition="all", start=0.0, end=10.0),),
    }
    return Summary(**(values | changes))


def test_a_whole_season_is_read_back_as_it_was_written(season, tmp_path):
    season.write(tmp_path / "new" / "summary.json")
    assert read(tmp_path / "new" / "summary.json") == season


def test_the_file_has_the_names_that_the_documentation_promises(season):
    table = to_json(season)
    assert table["format"] == 1
    row = table["lanes"]["frozen"]["fills"][0]
    promised = {"fill", "condition", "n", "efficiency", "efficiency_err", "width_cm", "auc"}
    assert promised | {"balanced_accuracy", "sigma_cm", "version"} <= set(row)
    assert {"time", "fill", "what", "version", "because", "lane"} == set(table["decisions"][0])
    assert {"events", "bytes"} == set(table["lanes"]["replay"]["stored"]["conditions"]["ageing"])
    assert list(table["lanes"]["replay"]["cost"]) == ["updates", "labelled_events", "seconds"]
    assert list(table["lanes"]["replay"]["forgetting"]) == ["versions", "conditions", "matrix"]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    row = Score(
        fill=1, condition="all", n=0, values={"error": math.nan}, errors={"error": math.inf}
    )
    small(lanes={"one": Lane(title="One", fills=(row,))}).write(tmp_path / "s.json")
    table = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert table["lanes"]["one"]["fills"][0]["error"] is None
    assert table["lanes"]["one"]["fills"][0]["error_err"] is None
    assert read(tmp_path / "s.json").lanes["one"].fills[0].values == {"error": None}


def test_text_of_any_kind_survives(tmp_path):
    odd = "tab\t \x00 \ud800 \u2028 ü <b>"
    small(title=odd).write(tmp_path / "s.json")
    assert read(tmp_path / "s.json").title == odd.replace("\ud800", "?")


def test_writing_replaces_whole_files_and_leaves_nothing_beside_them(tmp_path):
    for title in ("first", "second"):
        small(title=title).write(tmp_path / "s.json")
    assert read(tmp_path / "s.json").title == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.update(format=2), "has the format 2, this version reads 1; update stillfit"),
        (lambda t: t.pop("format"), "has the format None, this version reads 1"),
        (lambda t: t.update(sed=1), "has no knob 'sed'; did you mean 'seed'?"),
        (lambda t: t.pop("title"), "lacks title"),
        (lambda t: t.update(seed="1"), "seed = '1' is wrong"),
        (lambda t: t.update(kind="trees"), "kind = 'trees' is wrong"),
        (lambda t: t.update(lanes=[]), "lanes must be a table, got list"),
        (lambda t: t.update(fills={}), "fills must be a list, got dict"),
        (lambda t: t["lanes"]["one"]["fills"][0].update(eror=1.0), "no figure 'eror'; did you"),
        (lambda t: t["lanes"]["one"]["fills"][0].update(error="x"), "neither a number nor null"),
        (lambda t: t["lanes"]["one"]["fills"][0].update(error=True), "neither a number nor null"),
        (lambda t: t["lanes"]["one"]["fills"][0].update(n=1.5), "n = 1.5 is wrong"),
        (lambda t: t["lanes"]["one"].update(cots={}), "has no knob 'cots'"),
        (lambda t: t["lanes"]["one"]["stored"].update(bites=1), "no knob 'bites'; did you mean"),
        (lambda t: t["lanes"]["one"]["cost"].update(updates=None), "updates = None is wrong"),
        (lambda t: t["metrics"][0].update(better="more"), "better = 'more' is wrong"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_reason(change, text):
    table = to_json(small())
    change(table)
    with pytest.raises(ConfigError) as error:
        from_json(table, "s.json")
    assert text in str(error.value)
    assert "s.json" in str(error.value)


def test_files_that_are_no_summary(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*stillfit demo"):
        read(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a folder; give the summary"):
        read(tmp_path)
    (tmp_path / "s.json").write_text('{"format": 1,')
    with pytest.raises(ConfigError, match="is not a summary in JSON"):
        read(tmp_path / "s.json")
    (tmp_path / "s.json").write_text('{"format": NaN}')
    with pytest.raises(ConfigError, match="NaN is no JSON number"):
        read(tmp_path / "s.json")
    (tmp_path / "s.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not a summary in JSON"):
        read(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"metrics": ()}, "needs metrics of different names"),
        ({"metrics": (Metric(name="n", title="N"),)}, "none of them fill, condition, n, version"),
        (
            {"metrics": (Metric(name="error", title="E", better="neither"),)},
            "the headline 'error' must be better higher or lower",
        ),
        ({"baseline": "on"}, "the baseline names the unknown lane 'on'; did you mean 'one'?"),
        ({"fills": ()}, "lane 'one' has a row for the unknown fill 1"),
        (
            {"fills": (Fill(fill=1, condition="a", start=0, end=1),) * 2},
            r"the fills of a summary must differ, got \[1, 1\]",
        ),
        (
            {"uncertainty": Uncertainty(name="s", title="S", unit="", against="eror")},
            "compared with 'eror', which is no metric; did you mean 'error'?",
        ),
    ],
)
def test_a_summary_that_contradicts_itself_cannot_be_made(changes, text):
    with pytest.raises(ConfigError, match=text):
        small(**changes)


def test_a_forgetting_matrix_has_a_row_a_version_and_a_column_a_condition():
    with pytest.raises(ConfigError, match="2 versions and 1 conditions has 1 rows of"):
        Forgetting(versions=("a", "b"), conditions=("c",), matrix=((0.5,),))


def test_values_are_frozen(season):
    with pytest.raises(dataclasses.FrozenInstanceError):
        season.seed = 2


def test_a_summary_of_a_release_that_knew_no_leads_and_no_band_is_read(season):
    table = json.loads(json.dumps(to_json(season)))
    del table["uncertainty"]["low"], table["uncertainty"]["high"]
    for lane in table["lanes"].values():
        del lane["leads"]
        for row in lane["fills"]:
            for name in ("sigma_cm_low", "sigma_cm_high"):
                row.pop(name, None)
    old = from_json(table)
    assert all(lane.leads == () for lane in old.lanes.values())
    assert old.uncertainty is not None
    assert (old.uncertainty.low, old.uncertainty.high) == ("", "")
