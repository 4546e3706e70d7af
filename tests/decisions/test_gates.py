"""Gates: they must be convinced. Rates of false acceptance, power, forgetting, calibration."""

import math

import numpy as np
import pytest
from scipy import signal

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.predictive import Categorical, Mixture
from stillfit.core.values import Budget, Cost, VersionId
from stillfit.decisions import (
    BetterOnNew,
    Calibrated,
    NotWorseOnOld,
    Paired,
    Stored,
    Trial,
    WithinBudget,
    all_pass,
)

RUNS = 600
# Binomial error of a 5 % rate in 600 trials: .9 %.
BOUND = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(n) * np.sqrt(1 - phi**2)
    noise[0] /= np.sqrt(1 - phi**2)
    return signal.lfilter([1], [1, -phi], noise)


def pair(gain: np.ndarray, level: float = 1.0) -> Paired:
    """Errors of which the incumbent's exceed the candidate's by `gain`."""
    base = np.full(len(gain), level)
    return Paired(candidate=base - gain, incumbent=base)


def rate(gate, make, runs: int = RUNS) -> float:
    return sum(gate.judge(make()).accepted for _ in range(runs)) / runs


@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6])
def test_an_equal_candidate_passes_no_more_often_than_it_may(n, phi):
    rng = np.random.default_rng(1)
    assert rate(BetterOnNew(), lambda: Trial(new=pair(ar1(n, phi, rng)))) < BOUND


def test_an_equal_candidate_of_rare_failures_passes_no_more_often_than_it_may():
    rng = np.random.default_rng(2)

    def trial() -> Trial:
        fails = (rng.random((2, 400)) < 0.03).astype(float)
        return Trial(new=Paired(candidate=fails[0], incumbent=fails[1]))

    assert rate(BetterOnNew(), trial) < BOUND


def test_correlation_taken_for_information_would_break_the_rate():
    # The dummy row: a plain t-test on AR(1) of .8 accepts several times as often.
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(300):
        d = ar1(300, 0.8, rng)
        passed += d.mean() > 1.65 * d.std() / np.sqrt(300)
    assert passed / 300 > 3 * 0.05


def test_power_grows_with_the_events_and_with_the_gain():
    rng = np.random.default_rng(4)
    powers = [
        rate(BetterOnNew(), lambda n=n, g=g: Trial(new=pair(g + ar1(n, 0, rng))), 200)
        for n, g in ((50, 0.2), (200, 0.2), (800, 0.2), (200, 0.5))
    ]
    assert powers[0] < powers[1] < powers[2]
    assert powers[2] > 0.95
    assert powers[3] > powers[1]


def test_a_better_candidate_inside_the_margin_does_not_pass():
    rng = np.random.default_rng(5)
    gain = 0.2 + 0.1 * rng.standard_normal(500)
    assert BetterOnNew().judge(Trial(new=pair(gain))).accepted
    assert BetterOnNew(relative=0.1).judge(Trial(new=pair(gain))).accepted
    assert not BetterOnNew(margin=0.3).judge(Trial(new=pair(gain))).accepted
    assert not BetterOnNew(relative=0.3).judge(Trial(new=pair(gain))).accepted


def test_the_verdict_does_not_depend_on_the_unit_of_the_error():
    rng = np.random.default_rng(6)
    gain = 0.1 + rng.standard_normal(400)
    one = BetterOnNew(margin=0.01).judge(Trial(new=pair(gain)))
    milli = BetterOnNew(margin=10).judge(Trial(new=pair(1000 * gain, 1000.0)))
    assert one.accepted == milli.accepted
    assert milli.figures["lower"] == pytest.approx(1000 * one.figures["lower"])


def test_a_verdict_says_its_figures_and_how_many_events_would_convince():
    rng = np.random.default_rng(7)
    gain = rng.standard_normal(400)
    gain += 0.05 - gain.mean()
    verdict = BetterOnNew().judge(Trial(new=pair(gain)))
    assert not verdict.accepted
    assert "the mean error on 400 held-out events fell by 0.05 +-" in verdict.because
    assert "not surely better by more than 0 (lower bound -0.0" in verdict.because
    # (1.645 x 1 / .05)^2 = 1082, by the batch-mean estimate of the spread.
    need = int(verdict.because.split("; about ")[1].split(" ")[0])
    assert 700 < need < 1600
    assert verdict.figures["n"] == 400
    assert verdict.figures["gain"] == pytest.approx(0.05)


def test_too_few_events_refuse_and_say_how_many_it_takes():
    verdict = BetterOnNew().judge(Trial(new=pair(np.ones(10))))
    assert verdict.because == "the new condition has 10 held-out events; it takes about 30"
    rng = np.random.default_rng(8)
    verdict = BetterOnNew().judge(Trial(new=pair(3 + ar1(100, 0.95, rng))))
    assert not verdict.accepted
    assert "100 held-out events, worth" in verdict.because
    empty = BetterOnNew().judge(Trial(new=pair(np.zeros(0))))
    assert empty.because == "the new condition has 0 held-out events; it takes about 30"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_candidate_is_refused_with_a_reason_and_never_an_exception(bad):
    errors = np.zeros(200)
    errors[7] = bad
    trial = Trial(
        new=Paired(candidate=errors, incumbent=np.ones(200)),
        old={"a": Paired(candidate=errors, incumbent=np.ones(200))},
    )
    for verdict in all_pass([BetterOnNew(), NotWorseOnOld()], trial):
        assert not verdict.accepted
        assert f"the candidate's error is {bad} on 1 of 200 held-out events" in verdict.because
        assert "it diverged" in verdict.because
        assert all(map(math.isfinite, verdict.figures.values()))


def test_with_a_diverged_incumbent_nothing_can_be_compared():
    trial = Trial(new=Paired(candidate=np.zeros(200), incumbent=np.full(200, np.nan)))
    verdict = BetterOnNew().judge(trial)
    assert not verdict.accepted
    assert "the incumbent's error is nan" in verdict.because
    assert "nothing can be compared" in verdict.because


def old(loss: float, n: int = 400, seed: int = 9, noise: float = 0.1) -> Paired:
    rng = np.random.default_rng(seed)
    return pair(-loss + noise * rng.standard_normal(n))


def test_a_candidate_that_is_worse_by_the_margin_passes_no_more_often_than_it_may():
    rng = np.random.default_rng(10)
    gate = NotWorseOnOld(margin=0.1, relative=0)

    def trial() -> Trial:
        return Trial(new=pair(np.ones(1)), old={"a": pair(-0.1 + ar1(300, 0.3, rng))})

    assert rate(gate, trial) < BOUND


def test_not_worse_must_be_shown_on_every_old_condition():
    gate = NotWorseOnOld(margin=0.1)
    assert gate.judge(Trial(new=old(0), old={"a": old(0), "b": old(0.02)})).accepted
    verdict = gate.judge(Trial(new=old(0), old={"a": old(0), "b": old(0.5)}))
    assert not verdict.accepted
    assert "on 'a' the mean error" in verdict.because
    assert "on 'b' the mean error rose by 0.4981 +- 0.005 over 400 events" in verdict.because
    assert "not surely worse by less than 0.15" in verdict.because
    assert verdict.figures["upper[b]"] > 0.4


def test_an_unalarming_but_unconvincing_condition_refuses():
    # No significant loss, but too noisy to exclude one: refused, with the number it takes.
    verdict = NotWorseOnOld(margin=0.05).judge(
        Trial(new=old(0), old={"a": old(0, n=60, noise=1.0)})
    )
    assert not verdict.accepted
    assert "events would convince" in verdict.because
    few = NotWorseOnOld().judge(Trial(new=old(0), old={"a": old(0, n=5)}))
    assert few.because == "'a' has 5 held-out events; it takes about 30"


def test_without_old_conditions_there_is_nothing_to_forget():
    assert NotWorseOnOld().judge(Trial(new=old(0))).accepted


def stored(loss: float, update_class="weights", n: int = 400) -> Stored:
    errors = old(loss, n=n, seed=11).candidate
    return Stored(version=VersionId("ab" * 32), errors=errors, update_class=update_class)


def test_a_forgotten_condition_is_remembered_by_its_stored_version():
    trial = Trial(new=old(0), old={"a": old(0.5)}, stored={"a": stored(0)})
    verdict = NotWorseOnOld().judge(trial)
    assert verdict.accepted
    assert "'a' is remembered by the stored version abababab" in verdict.because
    assert "can be redeployed in seconds" in verdict.because
    assert not NotWorseOnOld(unless_stored=False).judge(trial).accepted


def test_a_stored_version_must_be_as_good_and_back_in_seconds():
    worse = Trial(new=old(0), old={"a": old(0.5)}, stored={"a": stored(0.5)})
    verdict = NotWorseOnOld().judge(worse)
    assert not verdict.accepted
    assert "nor does its stored version abababab pass" in verdict.because
    slow = Trial(new=old(0), old={"a": old(0.5)}, stored={"a": stored(0, "bitstream")})
    verdict = NotWorseOnOld().judge(slow)
    assert not verdict.accepted
    assert "needs a new bitstream, which is not back in seconds" in verdict.because
    other = Trial(new=old(0), old={"a": old(0.5)}, stored={"b": stored(0)})
    assert not NotWorseOnOld().judge(other).accepted


def gaussian(n: int, spread: float, seed: int = 12, phi: float = 0.0) -> Trial:
    """Predictions of N(0, 1) and truths of N(0, spread^2)."""
    truth = spread * ar1(n, phi, np.random.default_rng(seed))
    return Trial(
        new=pair(np.zeros(n)), predictive=Mixture.gaussian(np.zeros(n), np.ones(n)), target=truth
    )


def test_intervals_that_hold_what_they_say_pass_and_others_do_not():
    gate = Calibrated(coverage=0.9, tolerance=0.05)
    assert gate.judge(gaussian(2000, 1.0)).accepted
    for spread in (2.0, 0.5):  # too narrow and too wide
        verdict = gate.judge(gaussian(2000, spread))
        assert not verdict.accepted
        assert "90% intervals held" in verdict.because
        assert "not surely within 5.0%" in verdict.because
    assert not gate.judge(gaussian(60, 1.0)).accepted  # not enough events to be sure


def test_intervals_at_the_edge_of_the_tolerance_pass_no_more_often_than_they_may():
    # Spread 1.2853 makes 80 % intervals cover 68.12 %, the edge of a tolerance of 11.88 %.
    gate, seeds = Calibrated(coverage=0.8, tolerance=0.1188), iter(range(RUNS))
    assert rate(gate, lambda: gaussian(300, 1.2853, next(seeds))) < BOUND
    seeds = iter(range(RUNS))
    assert rate(gate, lambda: gaussian(600, 1.2853, next(seeds), phi=0.7)) < BOUND


def test_the_bounds_are_those_of_clopper_and_pearson():
    # 95 of 100: 88.7 % to 98.4 % at 97.5 % each side (textbook table).
    truth = np.zeros(100)
    truth[[3, 22, 47, 60, 91]] = 9.0
    trial = Trial(
        new=pair(np.zeros(100)),
        predictive=Mixture.gaussian(np.zeros(100), np.ones(100)),
        target=truth,
    )
    figures = Calibrated(confidence=0.975).judge(trial).figures
    assert figures["lower"] == pytest.approx(0.8872, abs=2e-4)
    assert figures["upper"] == pytest.approx(0.9836, abs=2e-4)


def test_classes_are_calibrated_when_the_largest_probability_is_the_accuracy():
    rng = np.random.default_rng(13)
    n, chance = 3000, 0.8
    members = np.tile([chance, 1 - chance], (n, 1))[:, None, :]
    for accuracy, wanted in ((0.8, True), (0.6, False), (0.95, False)):
        target = (rng.random(n) > accuracy).astype(np.int64)
        trial = Trial(new=pair(np.zeros(n)), predictive=Categorical(members), target=target)
        verdict = Calibrated().judge(trial)
        assert verdict.accepted == wanted
        assert "the largest probability exceeded the accuracy by" in verdict.because


def test_missing_or_broken_predictions_are_refused_with_a_reason():
    gate = Calibrated()
    assert "no predictions with targets" in gate.judge(Trial(new=old(0))).because
    broken = gaussian(100, 1.0)
    broken.target[3] = np.nan
    assert "did the candidate diverge?" in gate.judge(broken).because
    nan = Trial(
        new=old(0),
        predictive=Mixture.gaussian(np.full(50, np.nan), np.ones(50)),
        target=np.zeros(50),
    )
    assert not gate.judge(nan).accepted
    short = Trial(
        new=old(0), predictive=Mixture.gaussian(np.zeros(5), np.ones(5)), target=np.zeros(4)
    )
    assert gate.judge(short).because == "5 predictions have 4 targets"


def test_the_budget_gate_names_the_broken_limit():
    cost, budget = Cost(stored_examples=3000), Budget(stored_examples=2000)
    verdict = WithinBudget().judge(Trial(new=old(0), cost=cost, budget=budget))
    assert not verdict.accepted
    assert verdict.because == "it used 3,000 stored examples where the budget allows 2,000"
    assert WithinBudget().judge(Trial(new=old(0), cost=cost)).accepted


def test_all_gates_answer_also_after_a_refusal():
    gates = [BetterOnNew(), NotWorseOnOld(), Calibrated(), WithinBudget()]
    verdicts = all_pass(gates, Trial(new=old(0)))
    assert [v.gate for v in verdicts] == [
        "better-on-new",
        "not-worse-on-old",
        "calibrated",
        "within-budget",
    ]
    assert [v.accepted for v in verdicts] == [False, True, False, True]
    assert all(v.because for v in verdicts)


def test_judging_changes_nothing_and_repeats_itself():
    trial = Trial(new=old(-0.1), old={"a": old(0)}, stored={"a": stored(0)})
    before = trial.new.candidate.copy()
    gates = [BetterOnNew(), NotWorseOnOld()]
    assert all_pass(gates, trial) == all_pass(gates, trial)
    assert np.array_equal(trial.new.candidate, before)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BetterOnNew(margin=-1), "margins must not be negative, got -1 and 0.0"),
        (lambda: BetterOnNew(confidence=0.4), "confidence must lie in [0.5, 1), got 0.4"),
        (lambda: NotWorseOnOld(relative=0.0), "without a margin nothing can be shown"),
        (lambda: Calibrated(tolerance=0), "coverage must lie between 0 and 1 and tolerance be"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_paired_errors_must_be_of_the_same_events():
    with pytest.raises(ShapeError, match=r"paired errors must be \(n,\) of the same events, got"):
        Paired(candidate=np.zeros(3), incumbent=np.zeros(4))
