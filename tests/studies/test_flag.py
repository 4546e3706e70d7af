"""The study of the retrain flag: known onsets, counted honestly, beside dummies."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from stillfit.core.errors import ConfigError
from stillfit.l1t.scenario import names
from stillfit.studies import flag
from stillfit.studies.flag_bench import KINDS, Setting, onsets_of, scenario_named

TINY = Setting(events=300, calibration=4, watched=2, horizon=2, training=1500)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    torch.set_num_threads(1)
    out, told = tmp_path_factory.mktemp("flag"), []
    asked = {"seeds": (1,), "scenarios": ("resolution", "misaligned")}
    rows = flag.run(
        out, **asked, events=300, setting=TINY, progress=told.append, cache=out / "cache"
    )
    return out, rows, told, asked


def of(rows, label):
    return {row["detector"]: row for row in rows if row["label"] == label}


def test_the_rows_cover_every_change_and_detector_and_are_on_disk(study):
    out, rows, told, asked = study
    assert sum(told) == flag.units(**asked) == 1 + 1 + 3
    labels = list(dict.fromkeys(row["label"] for row in rows))
    assert labels == [
        "nominal", "resolution: resolution-x5", "misaligned: barrel-1mm", "misaligned: sector-2mm",
        "misaligned: barrel-2mm",
    ]  # fmt: skip
    assert len(rows) == len(labels) * len(KINDS)
    assert pq.read_table(out / "flag.parquet").to_pylist() == rows


def test_lost_resolution_is_seen_at_once_and_a_coherent_shift_by_labels_alone(study):
    _, rows, _, _ = study
    lost, shifted = of(rows, "resolution: resolution-x5"), of(rows, "misaligned: barrel-2mm")
    assert lost["score-cusum"]["delay"] <= 100
    assert lost["score-ks"]["delay"] <= 300
    cusum, late = lost["score-cusum"], shifted["error-cusum"]
    assert cusum["earlier"] == cusum["late"] - cusum["delay"]
    assert shifted["score-cusum"]["delay"] is None
    assert late["delay"] == 600  # its own fill, and the one until its labels come
    assert late["needed"] <= 150
    assert late["error_changed"] > 2 * late["error_nominal"]
    assert shifted["conformal-martingale"]["delay"] == 600


def test_dummies_rise_on_everything_and_on_nothing(study):
    _, rows, _, _ = study
    nominal = of(rows, "nominal")
    assert nominal["never"]["alarms"] == 0
    assert nominal["every-fill"]["alarms"] == nominal["every-fill"]["asked"] == 2
    for label in ("resolution: resolution-x5", "misaligned: barrel-2mm"):
        assert of(rows, label)["never"]["delay"] is None
        assert 0 < of(rows, label)["every-fill"]["delay"] <= 300


def test_the_same_seed_gives_the_same_rows(study, tmp_path):
    out, rows, _, _ = study
    again = flag.run(
        tmp_path, seeds=(1,), scenarios=("resolution",), events=300, setting=TINY,
        cache=out / "cache",
    )  # fmt: skip
    assert again == [row for row in rows if row["scenario"] in ("nominal", "resolution")]


def test_every_shipped_scenario_has_onsets_and_nameless_drifts_only_where_nothing_has_a_name():
    assert set(flag.SCENARIOS) - {"fakes"} <= set(names())
    for name in (*names(), "fakes"):
        assert onsets_of(name)
    assert [onset.label for onset in onsets_of("season")] == [
        "season: cooling-trip", "season: thermal-cycle", "season: quality-word",
        "season: resolution",
    ]  # fmt: skip
    assert [(o.label, o.first, o.last) for o in onsets_of("ageing")] == [("ageing", 2, 16)]
    assert onsets_of("dead-sector")[0].label == "dead-sector"
    assert scenario_named("fakes").at(5)[1].good_fakes == 2.0


def made(label: str, detector: str, delays: list[int | None], late: int | None = 2000):
    return [
        {
            "seed": seed, "scenario": "s", "label": label, "detector": detector,
            "kind": KINDS[detector], "arl": 10_000.0, "horizon": 6000, "delay": delay,
            "needed": delay, "late": late,
            "earlier": None if None in (delay, late) else late - delay,
            "error_nominal": 0.1, "error_changed": 0.2, "sigma_nominal": 0.1, "sigma_changed": 0.1,
        }
        for seed, delay in enumerate(delays)
    ]  # fmt: skip


def test_a_miss_counts_as_later_than_everything():
    rows = made("a", "score-cusum", [100, 300, None]) + made("a", "score-ks", [100, None, None])
    cusum, ks = flag.table(rows)["changes"]
    assert (cusum["found"], cusum["delay"], cusum["low"], cusum["high"]) == (2, 300.0, 100.0, None)
    assert cusum["earlier"] == 1800.0  # of the runs in which both rose
    assert (ks["found"], ks["delay"], ks["earlier"]) == (1, None, None)
    assert cusum["beats_dummy"]
    assert not ks["beats_dummy"]


def test_half_the_runs_are_not_most_and_a_slow_detector_loses_to_a_clock():
    half, slow = flag.table(
        made("a", "score-ks", [100, None]) + made("a", "score-cusum", [6000] * 3)
    )["changes"]
    assert half["delay"] is None
    assert half["earlier"] is None
    assert not slow["beats_dummy"]  # the clock rises after 5000 events on average


def test_false_alarms_are_given_with_the_interval_of_their_expectation():
    rows = [
        {"scenario": "nominal", "label": "nominal", "detector": "score-ks", "alarms": n,
         "events": 1000, "asked": 1.5}
        for n in (1, 2)
    ]  # fmt: skip
    (found,) = flag.table(rows)["false_alarms"]
    assert (found["alarms"], found["events"], found["asked"]) == (3, 2000, 3.0)
    # Garwood: the ends at which three or more, or three or fewer, have 2.5 %.
    assert stats.poisson.sf(2, found["low"]) == pytest.approx(0.025)
    assert stats.poisson.cdf(3, found["high"]) == pytest.approx(0.025)
    none = flag.table([{**rows[0], "alarms": 0}])["false_alarms"][0]
    assert (none["low"], none["high"]) == (0.0, pytest.approx(-math.log(0.025)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: onsets_of("dead-sektor"), "there is no scenario 'dead-sektor'; did you mean"),
        (
            lambda: Setting(events=10),
            "fills of 10 events, 4 to calibrate on, 12 to watch and 6 of a change are too few: "
            "take at least 200 events and one fill of each",
        ),
        (lambda: flag.run(None, seeds=()), "a study of the flag needs a seed and a scenario in"),
    ],
)
def test_what_cannot_be_studied_is_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_the_delays_are_whole_steps_of_events(study):
    _, rows, _, _ = study
    for row in rows:
        if row["kind"] in ("score", "inputs") and row["delay"] is not None:
            assert row["delay"] % 50 == 0
    assert all(np.isfinite(row["arl"]) for row in rows)
