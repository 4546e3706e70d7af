"""The metrics of continual learning on matrices that were reckoned by hand."""

import math

import numpy as np
import pytest

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.studies.continual_metrics import (
    METRICS,
    Interval,
    anytime,
    average_end,
    backward_transfer,
    events_to_recover,
    forgetting,
    forward_transfer,
    last_class,
    macro_f1,
    metrics,
    over_seeds,
    prequential,
)

# Row 0: before any; row i: after experience i; column j: condition j.
R = np.array(
    [
        [0.10, 0.20, 0.30],
        [0.90, 0.30, 0.20],
        [0.60, 0.80, 0.40],
        [0.70, 0.50, 0.95],
    ]
)


def test_the_average_at_the_end_is_the_last_row():
    assert average_end(R) == pytest.approx((0.70 + 0.50 + 0.95) / 3)


def test_backward_transfer_leaves_the_last_condition_out():
    assert backward_transfer(R) == pytest.approx(((0.70 - 0.90) + (0.50 - 0.80)) / 2)


def test_forgetting_is_from_the_best_earlier_figure():
    assert forgetting(R) == pytest.approx(((0.90 - 0.70) + (0.80 - 0.50)) / 2)
    late = R.copy()
    late[2, 0] = 0.95  # better after experience 2 than right after its own
    assert forgetting(late) == pytest.approx(((0.95 - 0.70) + (0.80 - 0.50)) / 2)
    early = R.copy()
    early[1, 1] = 0.85  # better before it was shown
    assert forgetting(early) == pytest.approx(((0.90 - 0.70) + (0.85 - 0.50)) / 2)
    untrained = R.copy()
    untrained[0] = 1.0  # row 0 is no experience
    assert forgetting(untrained) == forgetting(R)


def test_what_gets_better_is_not_forgotten_and_is_not_cut_at_zero():
    better = R.copy()
    better[3, :2] = (0.95, 0.85)
    assert forgetting(better) == pytest.approx(-0.05)
    assert backward_transfer(better) == pytest.approx(0.05)


def test_forward_transfer_states_its_random_term():
    assert forward_transfer(R) == pytest.approx(((0.30 + 0.40) / 2 - 0.25, 0.35, 0.25))
    given = forward_transfer(R, random=[9.0, 0.5, 0.5])
    assert given == pytest.approx((0.35 - 0.5, 0.35, 0.5))
    assert given.value == pytest.approx(given.before - given.random)


def test_anytime_is_over_what_was_seen_so_far():
    assert anytime(R) == pytest.approx((0.90 + 0.70 + (0.70 + 0.50 + 0.95) / 3) / 3)


def test_errors_have_the_signs_of_scores():
    """An error of 1 - score loses and gains what the score does."""
    errors = 1 - R
    for metric in (backward_transfer, forgetting):
        assert metric(errors, lower_is_better=True) == pytest.approx(metric(R))
    transfer = forward_transfer(errors, lower_is_better=True)
    assert transfer == pytest.approx((forward_transfer(R).value, 0.65, 0.75))
    assert average_end(errors) == pytest.approx(1 - average_end(R))
    assert anytime(errors) == pytest.approx(1 - anytime(R))


def test_a_frozen_network_neither_forgets_nor_transfers_back():
    frozen = np.tile([0.7, 0.5, 0.6], (4, 1))
    assert forgetting(frozen) == backward_transfer(frozen) == forward_transfer(frozen).value == 0


def test_a_network_that_forgets_everything_at_once():
    """Only the newest condition is known: forgetting is all that was gained."""
    r = np.full((5, 4), 0.2)
    r[np.arange(1, 5), np.arange(4)] = 1.0
    assert forgetting(r) == pytest.approx(0.8)
    assert backward_transfer(r) == pytest.approx(-0.8)
    assert average_end(r) == pytest.approx((3 * 0.2 + 1.0) / 4)
    assert anytime(r) == pytest.approx(np.mean([((k - 1) * 0.2 + 1) / k for k in range(1, 5)]))


def test_all_metrics_at_once_and_over_seeds():
    assert tuple(metrics(R)) == METRICS
    found = over_seeds([R, R + 0.02, R - 0.02])
    assert tuple(found) == METRICS
    end = found["average_end"]
    half = 4.302652729911275 * 0.02 / math.sqrt(3)  # t with 2 degrees of freedom at 97.5 %
    assert end.mean == pytest.approx(average_end(R)) and end.n == 3
    assert (end.low, end.high) == pytest.approx((end.mean - half, end.mean + half))
    assert found["forgetting"].high - found["forgetting"].low == pytest.approx(0, abs=1e-12)


def test_one_seed_has_no_interval():
    assert Interval.of([0.4]) == Interval(0.4, None, None, 1)
    with pytest.raises(DataError, match="an interval needs finite values, one per seed, got"):
        Interval.of([0.4, np.nan])
    with pytest.raises(ConfigError, match="level must lie between 0 and 1, got 1"):
        Interval.of([0.4, 0.5], level=1)
    with pytest.raises(DataError, match="no matrices to summarise; did any seed finish"):
        over_seeds([])


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(11)
    draws = rng.normal(3.0, 1.0, (2000, 4))
    held = [one.low <= 3.0 <= one.high for one in map(Interval.of, draws)]
    assert abs(np.mean(held) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_prequential_means_by_hand():
    found = prequential([1, 0, 0, 1, 1], window=2)
    assert found.mean == pytest.approx(0.6)
    np.testing.assert_allclose(found.curve, [1, 0.5, 0, 0.5, 1])
    np.testing.assert_allclose(prequential([1, 0, 0, 1], window=9).curve, [1, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_array_equal(prequential([1, 0, 1], window=1).curve, [1, 0, 1])
    with pytest.raises(DataError, match="finite numbers on one axis, got shape"):
        prequential([])
    with pytest.raises(ConfigError, match="window must be at least 1 row, got 0"):
        prequential([1.0], window=0)


def test_the_last_class_is_wrong_where_the_class_changes():
    np.testing.assert_array_equal(last_class([1, 1, 0, 0, 1]), [1, 0, 1, 0, 1])
    assert len(last_class([])) == 0


def test_recovery_by_hand():
    at, scores = [10, 20, 50, 100, 200], [0.5, 0.96, 0.80, 0.95, 0.97]
    assert events_to_recover(at, scores, 1.0) == 100
    assert events_to_recover(at, scores, 1.0, lasting=False) == 20
    assert events_to_recover(at, scores, 1.0, share=0.5) == 10
    assert events_to_recover(at, scores, 1.1) is None
    # An error of 0.19 allows 0.2: reached at 50 for good, and touched at 10.
    errors = [0.2, 0.4, 0.2, 0.19, 0.1]
    assert events_to_recover(at, errors, 0.19, lower_is_better=True) == 50
    assert events_to_recover(at, errors, 0.19, lower_is_better=True, lasting=False) == 10


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1, 2], [0.1], 1.0), ShapeError, "needs one figure for each number of events"),
        (([2, 1], [0.1, 0.2], 1.0), DataError, "numbers of events must rise; sort the curve"),
        (([1, 2], [0.1, -0.2], 1.0), DataError, "needs finite figures not below 0, got 1.0"),
        (([1, 2], [0.1, 0.2], np.nan), DataError, "needs finite figures not below 0, got nan"),
    ],
)
def test_curves_that_cannot_be_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        events_to_recover(*arguments)


def test_a_share_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"share must lie in \(0, 1\], got 0"):
        events_to_recover([1], [0.1], 1.0, share=0)


def test_macro_f1_by_hand():
    true, said = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    each = [2 * 2 / (2 * 2 + 0 + 1), 2 * 1 / (2 * 1 + 1 + 1), 2 * 1 / (2 * 1 + 1 + 0)]
    assert macro_f1(said, true, 3) == pytest.approx(np.mean(each))
    assert macro_f1(said, true, 7) == pytest.approx(np.mean(each))  # what is nowhere is left out
    assert macro_f1([0, 1], [0, 0], 2) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(true, true, 3) == 1
    with pytest.raises(DataError, match="predicted classes must be whole numbers from 0 to 1, got"):
        macro_f1([0, 2], [0, 1], 2)
    with pytest.raises(ShapeError, match="as many predictions as classes"):
        macro_f1([0], [0, 1], 2)


def test_matrices_that_cannot_be_are_refused():
    with pytest.raises(ShapeError) as caught:
        average_end(R[1:])
    assert str(caught.value) == (
        "an experience matrix has T + 1 rows (row 0: before any) and T columns, got (3, 3)"
    )
    hole = R.copy()
    hole[2, 1] = np.nan
    with pytest.raises(DataError) as hit:
        forgetting(hole)
    assert str(hit.value) == (
        "the experience matrix holds nan on condition 2 after experience 2; did training diverge, "
        "or was a cell not measured?"
    )
    for metric in (backward_transfer, forgetting, forward_transfer):
        with pytest.raises(ShapeError, match="needs at least 2 experiences, the matrix has 1"):
            metric([[0.1], [0.9]])
    with pytest.raises(ShapeError, match=r"one finite figure per condition \(3\), got \[0.1 0.2\]"):
        forward_transfer(R, random=[0.1, 0.2])
