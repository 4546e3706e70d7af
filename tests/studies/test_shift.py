"""The shift study: its rows, its going on, what is refused, and its page."""

import json

import numpy as np
import pytest

from stillfit.apps.cli import main
from stillfit.apps.progress import silent
from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Mixture, QuantileTable, StudentT
from stillfit.studies.shift import SHIFTS, ShiftStudy, as_arrays, from_arrays, run

SMALL = {"training": 500, "calibration": 200, "test": 100, "steps": 4, "uses": 0}


def test_every_shift_begins_at_nominal_and_grows():
    for shift in SHIFTS.values():
        intensities = [at for at, _ in shift.steps]
        assert intensities == sorted(set(intensities))
        assert len({repr(c) for _, c in shift.steps}) == len(shift.steps)
    assert len({repr(shift.steps[0][1]) for shift in SHIFTS.values()}) == 1


def test_a_study_has_a_row_per_method_calibrator_and_step_and_goes_on(tmp_path):
    study = ShiftStudy(methods=("mc-dropout-last",), shifts=("misaligned",), **SMALL)
    scores, curves, costs, uses = run(study, tmp_path, progress=silent)
    assert uses == []
    steps = len(SHIFTS["misaligned"].steps)
    assert len(scores) == 4 * steps
    assert {row["intensity"] for row in curves} == {0.0, 2.0}
    assert costs[0]["passes"] > 1 and costs[0]["parameters"] > 700
    raw = [row for row in scores if row["calibrator"] == "none"]
    assert all(0 <= row["coverage_90"] <= 1 and row["crps"] > 0 for row in raw)
    again = run(study, tmp_path, progress=silent)
    assert again.scores == scores and again.costs == costs
    with pytest.raises(ConfigError, match="holds a study with test = 100, now it is 90"):
        run(ShiftStudy(shifts=("misaligned",), **{**SMALL, "test": 90}), tmp_path, progress=silent)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"methods": ("deep-ensembl",)}, "deep-ensemble"),
        ({"shifts": ("fake",)}, "fakes"),
        ({"network": "resnet"}, "network must be one of e2e, adaptive, got 'resnet'"),
        ({"test": 0}, "events to train, calibrate and test on"),
    ],
)
def test_a_wrong_study_is_refused(wrong, text):
    with pytest.raises(ConfigError, match=text):
        ShiftStudy(**wrong)


def test_stored_predictions_come_back():
    rng = np.random.default_rng(1)
    forms = [
        Mixture(rng.normal(size=(5, 3)), rng.uniform(1, 2, (5, 3))),
        Mixture.from_parts(rng.normal(size=5), np.ones(5), np.full(5, 2.0)),
        StudentT(rng.normal(size=5), np.ones(5), np.full(5, 4.0)),
        QuantileTable(np.array([0.1, 0.5, 0.9]), np.sort(rng.normal(size=(5, 3)))),
    ]
    for one in forms:
        same = from_arrays(as_arrays(one))
        assert type(same) is type(one)
        np.testing.assert_array_equal(same.quantile(0.3), one.quantile(0.3))
        if one.epistemic is not None:
            np.testing.assert_array_equal(same.epistemic, one.epistemic)


def test_the_command_writes_a_page_without_script(tmp_path, capsys):
    out = tmp_path / "shift"
    options = ["--methods", "masksembles", "--shifts", "misaligned", "--training", "500"]
    told = main(
        ["uncertainty", "shift", "--out", str(out), *options, "--test", "100", "--steps", "3",
         "--uses", "800", "--workers", "1", "--json"]
    )  # fmt: skip
    assert told == 0
    assert json.loads(capsys.readouterr().out)["methods"][0]["method"] == "masksembles"
    page = (out / "report.html").read_text()
    assert "<script" not in page and "http-equiv" in page and "Coverage" in page
    assert (out / "scores.parquet").is_file()


def test_seeds_must_be_numbers(tmp_path, capsys):
    assert main(["uncertainty", "shift", "--out", str(tmp_path / "x"), "--seeds", "a"]) == 2
    assert "--seeds must be whole numbers" in capsys.readouterr().err
