"""Scores: closed forms, limits, errors that are true, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.predictive import Categorical, Mixture, QuantileTable, StudentT
from stillfit.uncertainty import scores
from stillfit.uncertainty.scores import (
    COVERAGES,
    auroc,
    ause,
    ece,
    ence,
    judge,
    pit,
    reliability,
    sparsification,
)


def calibrated(n: int, seed: int, *, factor: float = 1.0) -> tuple[Mixture, np.ndarray]:
    """Gaussian predictions of varied spread, stated `factor` times too large."""
    rng = np.random.default_rng(seed)
    mean, deviation = rng.standard_normal(n), rng.uniform(0.5, 2, n)
    y = mean + deviation * rng.standard_normal(n)
    return Mixture.gaussian(mean, (factor * deviation) ** 2), y


def test_a_standard_gaussian_has_the_scores_of_the_textbook():
    y = np.random.default_rng(0).standard_normal(200_000)
    found = judge(Mixture.gaussian(np.zeros(len(y)), np.ones(len(y))), y)
    for score, wanted in (
        (found.rmse, 1),
        (found.mae, np.sqrt(2 / np.pi)),
        (found.nll, 0.5 * np.log(2 * np.pi * np.e)),
        (found.crps, 1 / np.sqrt(np.pi)),
        *zip(found.coverage, COVERAGES, strict=True),
    ):
        assert abs(score.value - wanted) < 4 * score.err
        assert score.err < 0.01
    for width, coverage in zip(found.width, COVERAGES, strict=True):
        assert width.value == pytest.approx(2 * stats.norm.ppf((1 + coverage) / 2))
        assert width.err == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["rmse", "mae", "nll", "crps", "ence", "ause_rmse", "ause_mae"])
def test_the_stated_error_is_the_spread_over_repetitions(name):
    # Off by a factor, so that the ENCE is far from its floor, where its error is not Gaussian.
    found = [getattr(judge(*calibrated(1000, seed, factor=1.5)), name) for seed in range(150)]
    spread = np.std([score.value for score in found])
    # The spread of 150 is known to 6 %, a jackknife of 20 blocks to 16 % each.
    assert np.mean([score.err for score in found]) == pytest.approx(spread, rel=0.2)


def test_ence_is_the_factor_of_a_wrong_spread_and_its_noise_is_that_of_calibrated_gaussians():
    predictive, y = calibrated(100_000, 1, factor=2)
    found = ence(predictive.std, np.abs(y - predictive.mean))
    assert abs(found.value - 0.5) < 4 * found.err
    floors = [judge(*calibrated(2000, seed)) for seed in range(60)]
    noise = np.mean([floor.ence.value for floor in floors])
    assert noise == pytest.approx(floors[0].ence_noise, rel=0.1)
    assert floors[0].ence_noise == pytest.approx(1 / np.sqrt(np.pi * 200))


def kept(share: float, power: int) -> float:
    """Mean of |z|^power over the share of a standard normal with the least |z|."""
    end = stats.norm.ppf(0.5 + share / 2)
    return integrate.quad(lambda z: 2 * z**power * stats.norm.pdf(z), 0, end)[0] / share


def test_an_uncertainty_that_ranks_nothing_has_the_area_of_the_oracle_alone():
    errors = np.abs(np.random.default_rng(2).standard_normal(100_000))
    mae = integrate.quad(lambda p: 1 - kept(p, 1) / kept(1, 1), 0, 1)[0]
    rmse = integrate.quad(lambda p: 1 - np.sqrt(kept(p, 2)), 0, 1)[0]
    for rank in (np.ones(len(errors)), np.random.default_rng(3).uniform(0, 1, len(errors))):
        for measure, wanted in (("mae", mae), ("rmse", rmse)):
            found = ause(rank, errors, measure=measure)
            assert abs(found.value - wanted) < 4 * found.err + 1e-3
    assert (round(mae, 3), round(rmse, 3)) == (0.570, 0.594)  # the docstring's


@given(st.integers(0, 99), st.sampled_from(["rmse", "mae"]))
def test_ause_depends_on_ranks_only_and_is_zero_for_the_errors_themselves(seed, measure):
    rng = np.random.default_rng(seed)
    errors, rank = rng.exponential(1, 50), rng.integers(0, 9, 50).astype(float)
    found = ause(rank, errors, measure=measure)
    assert ause(np.exp(rank), errors, measure=measure) == pytest.approx(found)
    assert ause(rank, 7 * errors, measure=measure) == pytest.approx(found)
    assert ause(errors, errors, measure=measure).value == pytest.approx(0, abs=1e-12)
    assert found.value >= -1e-12
    curve, oracle = sparsification(rank, errors, measure=measure)
    assert (curve[0], oracle[0]) == pytest.approx((1, 1))
    assert np.all(curve >= oracle - 1e-12)


@given(st.integers(0, 99))
def test_ties_are_taken_out_in_random_order_on_average(seed):
    rng = np.random.default_rng(seed)
    errors, rank = rng.exponential(1, 12), rng.integers(0, 3, 12).astype(float)
    curve, _ = sparsification(rank, errors, measure="mae")
    broken = np.mean(
        [
            sparsification(rank + 1e-6 * rng.random(12), errors, measure="mae")[0]
            for _ in range(400)
        ],
        axis=0,
    )
    assert curve == pytest.approx(broken, abs=0.15)


def test_auroc_is_the_probability_of_a_higher_score_with_ties_as_half():
    rng = np.random.default_rng(4)
    low, high = rng.integers(0, 9, 300), rng.integers(2, 12, 200)
    pairs = high[:, None] - low[None]
    assert auroc(low, high).value == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert auroc(high, low).value == pytest.approx(1 - auroc(low, high).value)
    assert auroc(low, low + 100) == (1, 0)
    found = [auroc(rng.standard_normal(100), 1 + rng.standard_normal(60)) for _ in range(300)]
    values = np.array([score.value for score in found])
    assert values.mean() == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.01)
    assert np.mean([score.err for score in found]) == pytest.approx(values.std(), rel=0.15)


@pytest.mark.parametrize("form", ["mixture", "student", "table"])
def test_the_pit_of_a_true_distribution_is_uniform_and_the_curve_is_the_diagonal(form):
    n, rng = 5000, np.random.default_rng(5)
    if form == "mixture":
        predictive = Mixture(rng.standard_normal((n, 3)), rng.uniform(0.1, 1, (n, 3)))
    elif form == "student":
        predictive = StudentT(rng.standard_normal(n), rng.uniform(1, 2, n), np.full(n, 4.0))
    else:
        levels = np.array([0.05, 0.3, 0.6, 0.95])
        predictive = QuantileTable(levels, np.cumsum(rng.uniform(0.1, 1, (n, 4)), 1))
    y = predictive.sample(1, rng)[0]
    assert stats.kstest(pit(predictive, y), "uniform").pvalue > 0.01
    curve = reliability(predictive, y, points=9)
    assert curve.levels == pytest.approx(np.arange(1, 10) / 10)
    assert np.all(np.abs(curve.observed - curve.levels) < 4 * curve.err)
    found = judge(predictive, y)
    for score, coverage in zip(found.coverage, COVERAGES, strict=True):
        assert abs(score.value - coverage) < 4 * score.err


def test_too_small_a_spread_flattens_the_curve():
    predictive, y = calibrated(5000, 6, factor=0.3)
    curve = reliability(predictive, y, points=3)
    assert curve.observed[0] > 0.35
    assert curve.observed[2] < 0.65


def test_classes_have_the_scores_of_hand_and_of_the_definition():
    predictive = Categorical(np.array([[[0.7, 0.2, 0.1]], [[0.1, 0.6, 0.3]], [[0.3, 0.3, 0.4]]]))
    found = judge(predictive, [0, 2, 2])
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.log_loss.value == pytest.approx(-np.mean(np.log([0.7, 0.3, 0.4])))
    brier = [0.09 + 0.04 + 0.01, 0.01 + 0.36 + 0.49, 0.09 + 0.09 + 0.36]
    assert found.brier.value == pytest.approx(np.mean(brier))
    assert found.ece.value == pytest.approx((0.3 + 0.6 + 0.6) / 3)
    assert set(found.as_row()) == {
        "n",
        *(
            f"{name}{end}"
            for name in ("accuracy", "log_loss", "brier", "ece")
            for end in ("", "_err")
        ),
    }


def test_ece_is_the_gap_of_an_overconfident_model_and_small_for_a_true_one():
    rng = np.random.default_rng(7)
    confidence = rng.uniform(0.5, 1, 100_000)
    right = rng.random(len(confidence)) < confidence
    assert ece(confidence, right).value < 0.01
    wrong = rng.random(len(confidence)) < confidence - 0.2
    found = ece(confidence, wrong)
    assert abs(found.value - 0.2) < 4 * found.err
    assert found.err == pytest.approx(
        np.sqrt(np.mean((confidence - 0.2) * (1.2 - confidence)) / 1e5), rel=0.02
    )


def test_ece_agrees_with_netcal():
    metrics = pytest.importorskip("netcal.metrics")
    rng = np.random.default_rng(8)
    p = rng.dirichlet(np.ones(4), 3000)
    y = rng.integers(0, 4, 3000)
    assert ece(p.max(1), p.argmax(1) == y).value == pytest.approx(metrics.ECE(15).measure(p, y))


def test_crps_and_coverage_agree_with_uncertainty_toolbox():
    oracle = pytest.importorskip("uncertainty_toolbox.metrics_scoring_rule")
    predictive, y = calibrated(2000, 9)
    found = judge(predictive, y)
    assert found.crps.value == pytest.approx(
        oracle.crps_gaussian(predictive.mean, predictive.std, y)
    )
    assert found.nll.value == pytest.approx(oracle.nll_gaussian(predictive.mean, predictive.std, y))


def test_a_row_is_flat_numbers_with_the_coverages_in_its_names():
    row = judge(*calibrated(100, 10)).as_row()
    assert all(isinstance(value, (float, int)) for value in row.values())
    for name in ("rmse", "nll_err", "ence_noise", "coverage_68", "width_95_err", "ause_mae", "n"):
        assert name in row
    assert len(row) == 2 + 2 * (7 + 2 * len(COVERAGES))


def test_what_cannot_be_estimated_is_nan_or_infinite_and_not_a_made_up_number():
    predictive, y = calibrated(30, 11)
    assert np.isnan(judge(predictive, y).ause_rmse.err)
    table = QuantileTable(np.array([0.1, 0.9]), np.tile([-1.0, 1.0], (50, 1)))
    outside = judge(table, np.r_[9.0, np.zeros(49)])
    assert outside.nll.value == np.inf
    assert np.isnan(outside.nll.err)
    one = judge(predictive.take(slice(0, 1)), y[:1])
    assert np.isnan(one.rmse.err)


def test_batches_of_more_axes_are_judged_as_their_rows():
    predictive, y = calibrated(60, 12)
    folded = Mixture(predictive.means.reshape(20, 3, 1), predictive.variances.reshape(20, 3, 1))
    assert judge(folded, y.reshape(20, 3)).as_row() == pytest.approx(
        judge(predictive, y).as_row(), nan_ok=True
    )


GAUSSIAN, Y = calibrated(50, 13)
COIN = Categorical(np.full((3, 1, 2), 0.5))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: judge(GAUSSIAN, np.where(np.arange(50) == 7, np.nan, Y)),
            DataError,
            "target 7 is nan (1 of 50); leave out the rows whose labels are missing",
        ),
        (
            lambda: judge(GAUSSIAN, Y[:, None]),
            ShapeError,
            "predictions of shape (50,) have targets of shape (50, 1); give one target for each",
        ),
        (
            lambda: judge(GAUSSIAN.take(slice(0, 0)), Y[:0]),
            DataError,
            "there are no rows: give at least one prediction with its target",
        ),
        (
            lambda: judge(StudentT(Y, np.ones(50), np.full(50, np.inf)), Y),
            DataError,
            "the predicted standard deviation is nan at row 0 (50 of 50); it must be positive",
        ),
        (
            lambda: judge(QuantileTable(np.array([0.2, 0.8]), np.zeros((50, 2))), Y),
            DataError,
            "the predicted standard deviation is 0.0 at row 0 (50 of 50)",
        ),
        (lambda: judge(COIN, [0, 1, 0.5]), DataError, "classes must be integers, got 0.5"),
        (lambda: judge(COIN, [0, 1, 2]), DataError, "class 2 is none of the 2 classes"),
        (
            lambda: auroc([], [1.0]),
            DataError,
            "0 nominal and 1 shifted scores cannot be told apart; give both",
        ),
        (lambda: auroc([np.nan], [1.0]), DataError, "a score to tell apart is NaN"),
        (
            lambda: ence(GAUSSIAN.std, np.abs(Y), bins=51),
            ConfigError,
            "50 rows cannot fill 51 bins; ask for fewer bins",
        ),
        (
            lambda: reliability(GAUSSIAN, Y, points=0),
            ConfigError,
            "a reliability curve needs one level or more, got 0",
        ),
        (
            lambda: ece(np.ones(3), np.ones(3, bool), bins=0),
            ConfigError,
            "calibration needs one bin of confidence or more, got 0",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


def test_crps_is_that_of_the_predictive():
    predictive, y = calibrated(500, 14)
    assert judge(predictive, y).crps.value == pytest.approx(predictive.crps(y).mean())
    assert scores.mean([1.0, 3.0]) == (2.0, 1.0)
