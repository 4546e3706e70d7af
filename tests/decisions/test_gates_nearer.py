"""`Calibrated` lets a candidate pass that is surely better calibrated than what serves."""

from __future__ import annotations

import numpy as np
import pytest

from stillfit.core.predictive import Mixture
from stillfit.decisions.gates import Calibrated, Paired, Trial


def trial(scale_of_candidate: float, scale_of_incumbent: float, n: int = 400) -> Trial:
    rng = np.random.default_rng(5)
    truth = rng.normal(size=n)
    zeros = np.zeros(n)
    return Trial(
        new=Paired(candidate=zeros, incumbent=zeros),
        predictive=Mixture.gaussian(zeros, np.full(n, scale_of_candidate**2)),
        before=Mixture.gaussian(zeros, np.full(n, scale_of_incumbent**2)),
        target=truth,
    )


@pytest.mark.parametrize(
    ("candidate", "incumbent", "accepted"),
    [(1.0, 0.2, True), (0.7, 0.2, True), (0.7, 0.7, False), (0.5, 0.7, False), (2.5, 0.1, True)],
)
def test_nearer_than_the_incumbent_is_enough(
    candidate: float, incumbent: float, accepted: bool
) -> None:
    verdict = Calibrated(coverage=0.9, tolerance=0.05).judge(trial(candidate, incumbent))
    assert verdict.accepted is accepted, verdict.because


def test_the_strict_form_keeps_the_tolerance() -> None:
    verdict = Calibrated(coverage=0.9, tolerance=0.05, unless_nearer=False).judge(trial(0.7, 0.2))
    assert not verdict.accepted
    assert "not surely within 5.0%" in verdict.because


def test_intervals_that_an_update_cannot_touch_may_stay() -> None:
    gate = Calibrated(coverage=0.9, tolerance=0.05, unless_same=True)
    same = gate.judge(trial(0.7, 0.7))
    assert same.accepted and same.because.endswith("they are the incumbent's own, bit for bit")
    assert not gate.judge(trial(0.7, 0.7 + 1e-9)).accepted
    assert not Calibrated(coverage=0.9, tolerance=0.05).judge(trial(0.7, 0.7)).accepted


def test_an_equally_miscalibrated_candidate_rarely_passes() -> None:
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(300):
        truth, zeros = rng.normal(size=300), np.zeros(300)
        mine = Mixture.gaussian(0.3 * rng.normal(size=300), np.full(300, 0.5))
        before = Mixture.gaussian(0.3 * rng.normal(size=300), np.full(300, 0.5))
        judged = Calibrated(coverage=0.9, tolerance=0.05).judge(
            Trial(
                new=Paired(candidate=zeros, incumbent=zeros),
                predictive=mine, before=before, target=truth,
            )
        )  # fmt: skip
        passed += judged.accepted
    assert passed / 300 < 0.09  # 5 % asked for, binomial error 1.3 %
