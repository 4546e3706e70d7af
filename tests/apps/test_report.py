"""The report: figures by hand, the same bytes for the same summary, and nothing can break out."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from stillfit.apps import summary
from stillfit.apps.report import on_hold, paragraphs, render, season_svg
from stillfit.apps.report.figures import Figure, best_and_equal, gain, losses, mean, won_back
from stillfit.apps.report.knowing import (
    flag_sentence,
    knowing_picture,
    lead_text,
    told,
    watched_lane,
)
from stillfit.apps.report.season import Frame, vertical
from stillfit.apps.report.svg import Scale, log_ticks, ticks
from stillfit.apps.report.words import (
    duration,
    listing,
    moment,
    number,
    short,
    size,
    with_error,
)
from stillfit.apps.summary import (
    Circuit,
    Cost,
    Decision,
    Fill,
    Forgetting,
    Lane,
    Lead,
    Metric,
    Score,
    Summary,
)

HIGH = Metric(name="eff", title="Efficiency")
LOW = Metric(name="err", title="Error", unit="cm", better="lower")
VOID = {"input", "meta", "br", "col", "hr"}


class Page(HTMLParser):
    """Tags, their attributes and texts of a page; complains about tags that do not match."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def row(fill, value, error=0.01, n=100, condition="a", name="eff"):
    errors = {} if error is None else {name: error}
    return Score(fill=fill, condition=condition, n=n, values={name: value}, errors=errors)


def two_lanes(alone, updated, *, error=0.01, metric=HIGH, conditions=("a", "b", "b")):
    """A baseline and an updating lane over three fills."""
    fills = tuple(
        Fill(fill=place, condition=condition, start=100.0 * place, end=100.0 * place + 60)
        for place, condition in enumerate(conditions, 1)
    )
    lanes = {
        name: Lane(
            title=name.title(),
            fills=tuple(
                row(fill.fill, value, error, condition=fill.condition, name=metric.name)
                for fill, value in zip(fills, values, strict=True)
            ),
            cost=Cost(updates=updates, labelled_events=10 * updates),
        )
        for name, values, updates in (("alone", alone, 0), ("fit", updated, 1))
    }
    return Summary(
        title="two",
        kind="l1t",
        stillfit="0.1.0",
        seed=1,
        metrics=(metric,),
        lanes=lanes,
        fills=fills,
        baseline="alone",
    )


# -- figures --------------------------------------------------------------------------------------


def test_a_mean_is_weighted_with_events_and_its_error_too():
    found = mean([row(1, 1.0, 0.1, n=100), row(2, 0.0, 0.2, n=300)], "eff")
    assert found.value == pytest.approx(0.25)
    assert found.error == pytest.approx(((100 * 0.1) ** 2 + (300 * 0.2) ** 2) ** 0.5 / 400)


def test_a_mean_knows_what_it_does_not_know():
    assert mean([], "eff") is None
    assert mean([row(1, None)], "eff") is None
    assert mean([row(1, 0.5, n=0)], "eff") is None
    assert mean([row(1, 0.5), row(2, 0.7, None)], "eff") == Figure(pytest.approx(0.6), None)


def test_a_gain_is_positive_when_it_is_better_whichever_way_the_metric_runs():
    assert gain(HIGH, Figure(0.9, 0.03), Figure(0.8, 0.04)) == pytest.approx((0.1, 0.05))
    assert gain(LOW, Figure(0.9, None), Figure(0.8, 0.04)) == (pytest.approx(-0.1), None)


def test_losses_and_what_was_won_back_by_hand():
    summary = two_lanes([0.9, 0.5, 0.5], [0.9, 0.5, 0.8])
    (loss,) = losses(summary)
    assert loss.condition == "b" and loss.fills == 2 and loss.finding == "won"
    assert loss.lost.value == pytest.approx(0.4)
    assert loss.gains["fit"].value == pytest.approx(0.15)
    assert loss.last.value == pytest.approx(0.3)
    # Of the season's mean loss of 0.9 - 1.9/3 updating regained 0.1.
    assert won_back(summary, "fit") == pytest.approx(0.1 / (0.9 - 1.9 / 3))


@pytest.mark.parametrize(
    ("alone", "updated", "error", "finding", "harmed"),
    [
        ([0.9, 0.5, 0.5], [0.9, 0.51, 0.5], 0.01, "not", []),
        ([0.9, 0.9, 0.9], [0.9, 0.9, 0.9], 0.01, "none", []),
        ([0.9, 0.5, 0.5], [0.9, 0.3, 0.3], 0.01, "not", ["fit"]),
        ([0.9, 0.9, 0.9], [0.9, 0.3, 0.3], 0.01, "none", ["fit"]),
        ([0.9, 0.5, 0.5], [0.9, 0.9, 0.9], None, "unknown", []),
    ],
)
def test_findings_are_told_from_the_data_alone(alone, updated, error, finding, harmed):
    (loss,) = losses(two_lanes(alone, updated, error=error))
    assert loss.finding == finding
    assert loss.harmed == harmed


def test_a_metric_that_should_be_low_is_judged_the_other_way_round():
    (loss,) = losses(two_lanes([0.1, 0.9, 0.9], [0.1, 0.2, 0.2], metric=LOW))
    assert loss.lost.value == pytest.approx(0.8)
    assert loss.gains["fit"].value == pytest.approx(0.7)


def test_the_best_lane_and_those_that_cannot_be_told_from_it():
    column = {
        "far": Figure(0.5, 0.01),
        "best": Figure(0.9, 0.01),
        "near": Figure(0.88, 0.01),
        "vague": Figure(0.1, None),
        "none": None,
    }
    assert best_and_equal(HIGH, column) == ("best", {"near"})
    assert best_and_equal(LOW, column)[0] == "vague"
    neither = Metric(name="cover", title="Coverage", better="neither")
    assert best_and_equal(neither, column) == (None, set())
    assert best_and_equal(HIGH, {"none": None}) == (None, set())


# -- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.12341, 0.00321, "0.1234 ± 0.0032"),
        (0.12345, 0.0054, "0.123 ± 0.005"),
        (123.456, 12.3, "123 ± 12"),
        (0.12351, 0.00099, "0.1235 ± 0.0010"),
        (0.0, 0.0, "0.000 ± 0.000"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (-1.5, 0.2, "−1.50 ± 0.20"),
        (0.5, None, "0.500"),
    ],
)
def test_figures_have_the_digits_that_their_errors_allow(value, error, text):
    assert with_error(Figure(value, error)) == text


def test_words_for_numbers():
    assert with_error(None) == number(None) == number(float("nan")) == short(None) == "–"
    assert with_error(Figure(0.5, 0.1), signed=True) == "+0.50 ± 0.10"
    assert with_error(Figure(0.0, 0.1), signed=True) == "0.00 ± 0.10"
    assert number(1234567, 0) == "1\u2009234\u2009567"
    assert [size(n) for n in (0, 999, 1000, 12_345_678)] == ["0 B", "999 B", "1.0 kB", "12.3 MB"]
    assert [listing(list(text)) for text in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59, "59 s"),
        (59.9, "60 s"),
        (3599, "1 h"),
        (7800, "2 h 10 min"),
        (86_399, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_times_are_told_by_the_fill():
    fills = two_lanes([1] * 3, [1] * 3).fills
    assert moment(0, fills, "fill") == "before fill 1"
    assert moment(100, fills, "fill") == "fill 1, start"
    assert moment(130, fills, "fill") == "fill 1 + 30 s"
    assert moment(170, fills, "fill") == "after fill 1 + 10 s"
    assert moment(400, fills, "period") == "after period 3 + 40 s"
    assert moment(7800, (), "fill") == "2 h 10 min"


# -- pictures -------------------------------------------------------------------------------------


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 1.0, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.03, 0.11, 4) == [0.04, 0.06, 0.08, 0.1]
    assert log_ticks(0.03, 0.4) == pytest.approx([0.05, 0.1, 0.2])
    assert all(v in (1, 10, 100, 1000, 10_000) for v in log_ticks(1, 10_000))


@pytest.mark.parametrize("curve", ["linear", "log", "logit"])
def test_a_scale_meets_its_ends_and_never_turns_back(curve):
    scale = Scale(0.02, 0.98, 400.0, 10.0, curve)
    assert scale(0.02) == pytest.approx(400) and scale(0.98) == pytest.approx(10)
    pixels = [scale(0.02 + 0.0096 * step) for step in range(101)]
    assert pixels == sorted(pixels, reverse=True)
    marks = scale.ticks()
    assert 3 <= len(marks) <= 24 and all(0.02 <= tick <= 0.98 for tick in marks)


def test_a_logit_scale_is_symmetric_about_one_half():
    scale = Scale(0.05, 0.95, 0.0, 100.0, "logit")
    assert scale(0.5) == pytest.approx(50)
    assert scale(0.9) + scale(0.1) == pytest.approx(100)
    assert scale(1.2) == scale(0.95), "what lies outside is drawn at the edge"


@pytest.mark.parametrize(
    ("values", "metric", "curve"),
    [
        ([0.9, 0.95], HIGH, "linear"),
        ([0.06, 0.95], HIGH, "logit"),
        ([0.0, 1.0], HIGH, "logit"),
        ([0.1, 0.6], HIGH, "linear"),
        ([3.0, 5.0], HIGH, "linear"),
        ([0.03, 0.9], LOW, "log"),
        ([0.03, 0.05], LOW, "linear"),
        ([0.0, 5.0], LOW, "linear"),
        ([2.0, 2.0], LOW, "linear"),
        ([0.0, 0.0], LOW, "linear"),
        ([1.0, 1.0], HIGH, "linear"),
        ([-3.0, 5.0], LOW, "linear"),
    ],
)
def test_the_axis_fits_the_figures(values, metric, curve):
    scale = vertical(values, metric, 10.0, 400.0)
    assert scale.curve == curve
    assert all(10 - 1e-9 <= scale(value) <= 400 + 1e-9 for value in values)
    assert len(scale.ticks()) >= 1


def test_time_runs_from_left_to_right_through_fills_and_gaps(season):
    frame = Frame(season, 0.0, 300.0, tuple(season.lanes))
    last = season.fills[-1]
    times = [last.end * step / 500 for step in range(501)]
    places = [frame.at(time) for time in times]
    assert places == sorted(places)
    for place, fill in enumerate(season.fills):
        assert frame.at(fill.start) == pytest.approx(frame.left(place))
        assert frame.left(place) < frame.at(fill.end) < frame.left(place + 1)


def test_the_picture_is_valid_xml_that_stands_alone(season):
    root = ET.fromstring(season_svg(season))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img" and "Efficiency" in root.get("aria-label")
    text = season_svg(season)
    for lane in season.lanes.values():
        assert lane.title in text
    assert "new version serves" in text and "prefers-color-scheme: dark" in text


def test_every_figure_and_every_decision_is_in_the_picture(season):
    picture = season_svg(season)
    drawn = [d for d in season.decisions if d.what in ("switch", "refused", "rollback", "redeploy")]
    said = re.findall(r"<title>(.*?)</title>", picture)
    assert sum(": Efficiency" in words for words in said) == 24 * 6
    assert sum(any(d.because in words for words in said) for d in drawn) == len(drawn)


# -- the page -------------------------------------------------------------------------------------


def test_the_same_summary_gives_the_same_page(season):
    assert render(season) == render(season)


def test_the_page_needs_nothing_but_itself(season):
    page = Page(render(season))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href", "action"):
            assert value.startswith("#")
    text = render(season).replace("http://www.w3.org/2000/svg", "")
    assert "//" not in text and "url(" not in text and "@import" not in text
    policy = [value for tag, name, value in page.attributes if value and "default-src" in value]
    assert policy and policy[0].startswith("default-src 'none'")


def test_links_and_labels_lead_somewhere_and_ids_are_unique(season):
    page = Page(render(season))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name == "href":
            assert value[1:] in ids
        if name == "for":
            assert value in ids


def test_every_picture_and_table_has_a_name(season):
    page = render(season)
    for picture in re.findall(r"<svg [^>]*>", page):
        assert 'aria-label="' in picture or 'aria-hidden="true"' in picture
    for region in re.findall(r'<div [^>]*role="region"[^>]*>', page):
        assert 'aria-label="' in region


def test_the_page_tells_what_happened(season):
    text = Page(render(season)).text
    for lane in season.lanes.values():
        assert lane.title in text
    for decision in season.decisions:
        assert decision.because in text
    for condition in {fill.condition for fill in season.fills}:
        assert condition in text
    for words in ("Uncertainty against error", "No uncertainty is stated by: FastHisto with cuts"):
        assert words in text
    assert "31 versions in 1.8 MB and 412 journal entries" in text
    assert "events_per_fill 2000" in text and "label.delay 1" in text
    assert "updating does not measurably help" in text


def test_the_headline_names_what_did_not_help(season):
    text = " ".join(paragraphs(season))
    assert "No lane was measurably better than the model left alone in" in text
    assert "“inner barrel resolution”" in text
    assert "1 version rolled back" in text


HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[2J\x00"


def test_hostile_text_stays_text_everywhere(season):
    lanes = {
        HOSTILE if name == "ladder" else name: dataclasses.replace(
            lane,
            title=HOSTILE,
            fills=tuple(
                dataclasses.replace(score, condition=HOSTILE, version=HOSTILE)
                for score in lane.fills
            ),
            forgetting=Forgetting(versions=(HOSTILE,), conditions=(HOSTILE,), matrix=((0.5,),)),
        )
        for name, lane in season.lanes.items()
    }
    decisions = tuple(
        dataclasses.replace(
            d,
            because=HOSTILE,
            version=HOSTILE,
            lane=HOSTILE if d.lane == "ladder" else d.lane,
            what=HOSTILE if d.what == "staged" else d.what,
        )
        for d in season.decisions
    )
    metrics = tuple(dataclasses.replace(metric, title=HOSTILE) for metric in season.metrics)
    fills = tuple(dataclasses.replace(fill, condition=HOSTILE) for fill in season.fills)
    bad = dataclasses.replace(
        season,
        title=HOSTILE,
        stillfit=HOSTILE,
        lanes=lanes,
        decisions=decisions,
        metrics=metrics,
        fills=fills,
        run={HOSTILE: HOSTILE, "list": [HOSTILE]},
    )
    page = Page(render(bad))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.tags.count("style") == 1 and page.tags.count("title") > 100
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "<script>alert(1)</script>" in page.text, "told, but as text"
    assert "\x1b" not in render(bad) and "\x00" not in render(bad)
    ET.fromstring(season_svg(bad))


def test_a_lane_that_ends_on_hold_is_named_on_top():
    held = Decision(time=1.0, fill=1, lane="fit", what="hold", because="why")
    summary = dataclasses.replace(two_lanes([0.9] * 3, [0.9] * 3), decisions=(held,))
    assert on_hold(summary) == ["fit"]
    assert "On hold at the end, until a person resumes: fit." in " ".join(paragraphs(summary))
    freed = dataclasses.replace(
        summary, decisions=(held, Decision(time=2.0, fill=1, lane="fit", what="resume"))
    )
    assert on_hold(freed) == []


def test_a_page_can_be_made_of_little():
    bare = Summary(title="", kind="table", stillfit="0", seed=0, metrics=(LOW,), lanes={})
    assert "No period has been scored yet." in Page(render(bare)).text
    one = Summary(
        title="one",
        kind="table",
        stillfit="0",
        seed=0,
        metrics=(LOW,),
        lanes={"run": Lane(title="Run", fills=(row(1, None, None, name="err"),))},
        fills=(Fill(fill=1, condition="a", start=0.0, end=0.0),),
    )
    page = Page(render(one)).text
    assert "Error is not known for any period" in page and "Nothing was decided." in page
    ET.fromstring(season_svg(one))
    ET.fromstring(season_svg(bare))


def test_a_long_run_of_many_periods_can_still_be_drawn():
    fills = tuple(
        Fill(fill=n, condition="ab"[n // 200], start=10.0 * n, end=10.0 * n + 9) for n in range(400)
    )
    lane = Lane(
        title="Run",
        fills=tuple(
            row(f.fill, 0.1 + f.fill / 400, 0.01, condition=f.condition, name="err") for f in fills
        ),
    )
    long = Summary(
        title="long",
        kind="table",
        stillfit="0",
        seed=0,
        metrics=(LOW,),
        lanes={"run": lane},
        fills=fills,
    )
    picture = season_svg(long)
    numbers = [float(x) for x in re.findall(r' x="([-\d.]+)"', picture)]
    assert all(-1 <= x <= 1161 for x in numbers)
    Page(render(long))


def test_the_lane_left_alone_shows_when_a_change_was_known(season):
    assert watched_lane(season) == "frozen"
    page = render(season)
    assert 'id="flag"' in page
    assert "the flag rose: an alarm of the stated uncertainty" in page
    shown = knowing_picture(season, "frozen")
    root = ET.fromstring(shown)
    marks = [e.get("class") for e in root.iter() if "mark" in (e.get("class") or "")]
    lead = season.lanes["frozen"].leads
    assert marks.count("mark mark-flag") == sum(x.flag is not None for x in lead) == 3
    assert marks.count("mark mark-late") == sum(x.late is not None for x in lead)
    bands = [e for e in root.iter() if (e.get("class") or "").startswith("sixty")]
    assert len(bands) == len(season.fills)


def test_the_sentence_says_how_many_events_earlier_and_what_the_flag_did_not_see(season):
    assert flag_sentence(season) == (
        "Of 7 changes in lane frozen, the flag of the stated uncertainty rose 1\u2009600 events "
        "before late labels (median): “inner barrel resolution” (3\u2009400 events before) and "
        "“quality word” (200 events after); late labels alone told of “barrel shifted 2 mm” "
        "and “ageing”; the flag alone of “layer 1 tripped”; no new alarm at 1 change."
    )
    assert flag_sentence(season) in paragraphs(season)
    alone = {"frozen": Lane(title="Alone", fills=())}
    quiet = dataclasses.replace(season, lanes=alone, decisions=())
    assert flag_sentence(quiet) == ""
    assert 'id="flag"' not in render(quiet)


def test_a_lead_in_words():
    lead = Lead(fill=3, condition="hot", start=0.0)
    assert lead_text(lead) == "nothing rose"
    assert lead_text(dataclasses.replace(lead, flag=1.0, stood=("a",))) == (
        "flag alone; stood already: a"
    )
    assert lead_text(dataclasses.replace(lead, late=1.0)) == "late labels alone"
    both = dataclasses.replace(lead, flag=1.0, late=2.0, earlier=1)
    assert lead_text(both) == "flag 1 event before late labels"
    assert lead_text(dataclasses.replace(both, earlier=-2)) == "flag 2 events after late labels"


def test_a_lead_is_told_with_its_monitors_and_times(season):
    lead = next(x for x in season.lanes["frozen"].leads if x.earlier == 3400)
    assert told(season, lead) == (
        f"“inner barrel resolution” from fill {lead.fill}: flag rose (fill {lead.fill} + 1 h, 450 "
        "events into the change, score-ks) 3\u2009400 events before late labels; late labels told "
        f"after fill {lead.fill + 1} + 1 h (error-cusum)"
    )


def test_without_the_ends_of_the_band_the_median_is_drawn_alone(season):
    plain = dataclasses.replace(season.uncertainty, low="", high="")
    lanes = {
        name: dataclasses.replace(
            lane,
            fills=tuple(
                dataclasses.replace(
                    row,
                    values={k: v for k, v in row.values.items() if not k.startswith("sigma_cm_")},
                )
                for row in lane.fills
            ),
        )
        for name, lane in season.lanes.items()
    }
    shown = knowing_picture(dataclasses.replace(season, uncertainty=plain, lanes=lanes), "frozen")
    assert "sixty" not in shown
    assert shown.count('class="stated') == len(season.fills)


def test_versions_as_circuits_are_told_with_their_change(season):
    name = next(reversed(season.lanes))
    told = {"method": "traced", "dsp": 0.0, "bram": 0.5, "latency_cycles": 61, "latency_ns": 169.4}
    found = (
        Circuit(version="a" * 64, time=0.0, update_class="bitstream", lut=160000.0, **told),
        Circuit(version="b" * 64, time=4e5, update_class="bitstream", lut=164000.0, **told),
    )
    lane = dataclasses.replace(season.lanes[name], circuits=found)
    with_chip = dataclasses.replace(season, lanes={**season.lanes, name: lane})
    page = render(with_chip)
    assert "On the chip" in page and "164,000 (+2.5%)" in page and "169 ns (61 cycles)" in page
    assert "On the chip" not in render(season)
    assert summary.from_json(summary.to_json(with_chip)) == with_chip
