"""Laws of the predictive distributions: moments, inverses, scores against independent oracles."""

import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stillfit.core.errors import DataError, ShapeError
from stillfit.core.predictive import Categorical, Mixture, Predictive, QuantileTable, StudentT

LEVELS = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])


def mixture(rows: int = 5, members: int = 3, seed: int = 0) -> Mixture:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(members))
    return Mixture(rng.normal(0, 3, (rows, members)), rng.uniform(0.2, 4, (rows, members)), weights)


def student(rows: int = 5, seed: int = 0) -> StudentT:
    rng = np.random.default_rng(seed)
    return StudentT(rng.normal(0, 3, rows), rng.uniform(0.2, 2, rows), rng.uniform(2.5, 30, rows))


def table(rows: int = 5, seed: int = 0) -> QuantileTable:
    rng = np.random.default_rng(seed)
    values = np.sort(rng.normal(0, 3, (rows, len(LEVELS))), -1)
    return QuantileTable(LEVELS, values)


FORMS = [
    Mixture.gaussian([0.0, -2.0, 5.0, 1e3, 1e-6], [1.0, 0.01, 9.0, 1e4, 1e-14]),
    mixture(),
    student(),
    table(),
]
form = pytest.mark.parametrize("p", FORMS, ids=["gaussian", "mixture", "student", "table"])


NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def breaks(p: Predictive, row: int, y: float = np.nan) -> np.ndarray:
    """Ends of pieces in which the density and F are smooth, out to where nothing is left."""
    tail = 10.0 ** -np.arange(15, 1.5, -0.5)
    levels = np.concatenate([tail, LEVELS, 1 - tail[::-1]])
    points = [float(p.quantile(level)[row]) for level in levels]
    return np.unique(points + ([y] if np.isfinite(y) else []))


def integral(f, points: np.ndarray) -> float:
    """Gauss-Legendre quadrature of 60 nodes in each piece; `f` takes (nodes,)."""
    half = np.diff(points) / 2
    x = (points[:-1] + half)[:, None] + half[:, None] * NODES
    return float((half[:, None] * WEIGHTS * f(x.ravel()).reshape(x.shape)).sum())


def at(p: Predictive, row: int, y: np.ndarray) -> Predictive:
    """The distribution of one row, once for each of `y`."""
    return p.take(np.full(len(y), row))


def density(p: Predictive, row: int):
    return lambda y: np.exp(at(p, row, y).log_prob(y))


@form
def test_the_density_integrates_to_one_and_to_the_distribution_function(p):
    for row in range(len(p)):
        points = breaks(p, row)
        assert integral(density(p, row), points) == pytest.approx(1, abs=1e-8)
        half = points[: len(points) // 2 + 1]
        there = p.take(slice(row, row + 1)).cdf(np.array([half[-1]]))[0]
        assert integral(density(p, row), half) == pytest.approx(there, abs=1e-8)


@form
def test_mean_and_variance_are_the_moments_of_the_density(p):
    for row in range(len(p)):
        points, f = breaks(p, row), density(p, row)
        mean = p.mean[row]
        assert integral(lambda y, f=f: y * f(y), points) == pytest.approx(mean, rel=1e-4, abs=1e-4)
        if isinstance(p, StudentT) and p.dof[row] < 5:
            continue  # the tail beyond the last piece still carries variance
        second = integral(lambda y, f=f, mean=mean: (y - mean) ** 2 * f(y), points)
        assert second == pytest.approx(p.variance[row], rel=1e-3)


@form
def test_the_variance_is_that_of_samples(p):
    draws = p.sample(200_000, np.random.default_rng(1))
    assert draws.shape == (200_000, len(p))
    error = p.std / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - p.mean) < 4.5 * error)
    fine = p.dof > 6 if isinstance(p, StudentT) else np.ones(len(p), bool)
    assert np.allclose(draws.std(0)[fine], p.std[fine], rtol=0.03)


@form
def test_samples_follow_the_distribution_function(p):
    draws = p.sample(4000, np.random.default_rng(2))
    for row in range(len(p)):
        repeated = p.take(np.full(len(draws), row))
        assert stats.kstest(draws[:, row], repeated.cdf).pvalue > 1e-4


def test_total_variance_of_an_ensemble_keeps_the_disagreement_of_its_members():
    # Two sure members that contradict each other: noise .01, disagreement 1 (at +-1).
    p = Mixture(np.array([[-1.0, 1.0]]), np.full((1, 2), 0.01))
    assert p.variance == pytest.approx(1.01)
    assert p.aleatoric == pytest.approx(0.01)
    assert p.epistemic == pytest.approx(1.0)
    draws = p.sample(100_000, np.random.default_rng(3))
    assert draws.var() == pytest.approx(1.01, rel=0.01)


def test_the_parts_add_up_to_the_variance():
    p = mixture()
    assert np.allclose(p.aleatoric + p.epistemic, p.variance)
    q = Mixture.from_parts([0.0, 1.0], [1.0, 2.0], [0.5, 0.0])
    assert np.allclose(q.variance, [1.5, 2.0])
    assert np.allclose(q.epistemic, [0.5, 0.0])


def test_a_form_that_cannot_tell_the_parts_says_none_and_not_zero():
    for p in (Mixture.gaussian([0.0], [1.0]), student(), table()):
        assert p.aleatoric is None
        assert p.epistemic is None


finite = st.floats(-1e3, 1e3)
scales = st.floats(1e-3, 1e2)
share = st.floats(1e-4, 1 - 1e-4)


@given(st.lists(st.tuples(finite, scales), min_size=1, max_size=4), share)
def test_the_distribution_function_of_a_mixtures_quantile_is_the_level(members, level):
    m, s = np.array(members).T
    p = Mixture(m[None], s[None] ** 2)
    # Far-apart members leave gaps in which F is flat and the inverse is not unique: F is checked.
    assert p.cdf(p.quantile(level))[0] == pytest.approx(level, abs=1e-9)


@given(finite, scales, st.floats(2.1, 200), share)
def test_student_quantile_and_distribution_function_are_inverse(location, scale, dof, level):
    p = StudentT(np.array([location]), np.array([scale]), np.array([dof]))
    y = p.quantile(level)
    assert p.cdf(y)[0] == pytest.approx(level, abs=1e-9)
    assert p.quantile(float(p.cdf(y)[0]))[0] == pytest.approx(y[0], rel=1e-6, abs=1e-6 * scale)


units = st.sampled_from([1e-12, 1.0, 1e9])


@given(st.lists(finite, min_size=2, max_size=9), share, units)
def test_the_distribution_function_of_a_tables_quantile_is_the_level(values, level, unit):
    # Equal values make F a step, which is spread over 4096 doubles: 1e-3 is what they resolve.
    p = QuantileTable(np.linspace(0.05, 0.95, len(values)), unit * np.array([values]))
    assert p.cdf(p.quantile(level))[0] == pytest.approx(level, abs=1e-3)


@given(st.sets(st.integers(-1000, 1000), min_size=2, max_size=9), st.floats(0.01, 0.99), units)
def test_the_quantile_of_a_tables_distribution_function_is_the_value(values, part, unit):
    p = QuantileTable(np.linspace(0.05, 0.95, len(values)), unit * np.array([sorted(values)]))
    low, high = p.quantile(1e-4)[0], p.quantile(1 - 1e-4)[0]
    y = np.array([low + part * (high - low)])
    assert p.quantile(float(p.cdf(y)[0]))[0] == pytest.approx(y[0], abs=1e-9 * unit * 1000)


@form
def test_quantiles_rise_and_the_interval_holds_its_share(p):
    table_ = np.stack([p.quantile(level) for level in np.linspace(0.01, 0.99, 33)])
    assert np.all(np.diff(table_, axis=0) >= 0)
    low, high = p.interval(0.8)
    assert np.allclose(p.cdf(high) - p.cdf(low), 0.8, atol=1e-6)


@form
def test_crps_is_the_integral_of_the_squared_distance_of_the_distribution_functions(p):
    for row in range(len(p)):
        one = p.take(slice(row, row + 1))
        for y in (p.quantile(0.3)[row], p.quantile(0.97)[row], p.mean[row] + 8 * p.std[row]):

            def gap(x, row=row, y=y):
                return (at(p, row, x).cdf(x) - (x >= y)) ** 2

            wanted = integral(gap, breaks(p, row, float(y)))
            assert one.crps(np.array([y]))[0] == pytest.approx(wanted, rel=1e-6)


def test_crps_of_a_gaussian_is_the_textbook_form():
    # Gneiting and Raftery 2007, equation 21.
    y = np.array([-1.3, 0.0, 2.2])
    wanted = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / np.sqrt(np.pi)
    assert np.allclose(Mixture.gaussian(np.zeros(3), np.ones(3)).crps(y), wanted)


def test_crps_of_a_dense_quantile_table_tends_to_the_mean_pinball_loss():
    levels = (np.arange(2000) + 0.5) / 2000
    values = stats.norm.ppf(levels)[None]
    y = np.array([0.7])
    pinball = scoringrules.crps_quantile(y, values, levels)
    assert QuantileTable(levels, values).crps(y) == pytest.approx(pinball, rel=1e-3)


def test_student_t_is_that_of_scipy():
    p, y = student(), np.linspace(-4, 4, 5)
    law = stats.t(p.dof, p.location, p.scale)
    assert np.allclose(p.cdf(y), law.cdf(y))
    assert np.allclose(p.log_prob(y), law.logpdf(y))
    assert np.allclose(p.quantile(0.137), law.ppf(0.137))
    assert np.allclose(p.mean, law.mean())
    assert np.allclose(p.variance, law.var())


def test_with_many_degrees_of_freedom_student_t_is_the_gaussian():
    t = StudentT(np.zeros(1), np.ones(1), np.full(1, 1e7))
    g = Mixture.gaussian([0.0], [1.0])
    y = np.array([1.3])
    assert np.allclose(t.log_prob(y), g.log_prob(y), atol=1e-6)
    assert np.allclose(t.crps(y), g.crps(y), atol=1e-6)


def test_a_mixture_of_one_member_repeated_is_that_member():
    g = Mixture.gaussian([1.0], [4.0])
    m = Mixture(np.full((1, 4), 1.0), np.full((1, 4), 4.0), np.array([0.1, 0.2, 0.3, 0.4]))
    y = np.array([2.7])
    for verb in ("cdf", "log_prob", "crps"):
        assert np.allclose(getattr(g, verb)(y), getattr(m, verb)(y))
    assert np.allclose(g.quantile(0.9), m.quantile(0.9))
    assert np.allclose(g.variance, m.variance)


@settings(max_examples=40)
@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_scores_and_quantiles_move_with_unit_and_origin(unit, origin):
    for p, q in (
        (mixture(), lambda m: Mixture(origin + unit * m.means, unit**2 * m.variances, m.weights)),
        (student(), lambda t: StudentT(origin + unit * t.location, unit * t.scale, t.dof)),
        (table(), lambda t: QuantileTable(t.levels, origin + unit * t.values)),
    ):
        y, near = np.linspace(-5, 5, 5), 1e-6 * (unit + abs(origin))
        moved = q(p)
        assert np.allclose(moved.crps(origin + unit * y), unit * p.crps(y), rtol=1e-6, atol=near)
        assert np.allclose(moved.quantile(0.2), origin + unit * p.quantile(0.2), atol=near)
        assert np.allclose(moved.std, unit * p.std, rtol=1e-6)


def test_a_quantile_table_of_the_uniform_distribution_is_exact():
    # The outermost slope goes on until the probability is used up: from 0 to 1.
    p = QuantileTable(LEVELS, LEVELS[None])
    assert p.mean == pytest.approx(0.5)
    assert p.variance == pytest.approx(1 / 12)
    assert p.quantile(0.001) == pytest.approx(0.001)
    assert p.log_prob(np.array([0.4])) == pytest.approx(0)
    assert p.log_prob(np.array([1.1])) == -np.inf
    assert p.cdf(np.array([-0.1])) == 0
    # CRPS of the standard uniform at y: (y^3 + (1 - y)^3) / 3.
    assert p.crps(np.array([0.3])) == pytest.approx((0.3**3 + 0.7**3) / 3)
    assert p.crps(np.array([1.5])) == pytest.approx(1 / 3 + 0.5)


def test_crossing_quantiles_are_sorted_and_equal_ones_keep_a_finite_density():
    p = QuantileTable(np.array([0.1, 0.5, 0.9]), np.array([[3.0, 1.0, 2.0], [4.0, 4.0, 4.0]]))
    assert np.array_equal(p.values[0], [1, 2, 3])
    assert np.all(np.isfinite(p.log_prob(np.array([2.5, 4.0]))))
    assert p.mean[1] == pytest.approx(4.0)
    zeros = QuantileTable(np.array([0.1, 0.9]), np.zeros((1, 2)))
    assert np.isfinite(zeros.log_prob(np.zeros(1)))[0]


@form
def test_rows_are_independent_and_joining_undoes_taking(p):
    y = np.linspace(-2, 2, len(p))
    left, right = p.take(slice(0, 2)), p.take(np.arange(2, len(p)))
    whole = type(p).concat([left, right])
    assert len(whole) == len(p)
    assert np.allclose(whole.crps(y), p.crps(y))
    assert np.allclose(np.r_[left.log_prob(y[:2]), right.log_prob(y[2:])], p.log_prob(y))
    mask = np.zeros(len(p), bool)
    mask[3] = True
    assert np.allclose(p.take(mask).std, p.std[3])


def test_sampling_is_reproducible_from_its_generator():
    for p in FORMS:
        a, b = (p.sample(7, np.random.default_rng(5)) for _ in range(2))
        assert np.array_equal(a, b)


def test_entropy_of_classes_splits_into_noise_and_ignorance():
    certain_but_split = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    agreed_coin = np.array([[[0.5, 0.5], [0.5, 0.5]]])
    p = Categorical(np.concatenate([certain_but_split, agreed_coin]))
    assert np.allclose(p.entropy, np.log(2))
    assert np.allclose(p.aleatoric, [0, np.log(2)])
    assert np.allclose(p.epistemic, [np.log(2), 0])


@given(st.integers(0, 10_000))
def test_mutual_information_is_the_mean_divergence_of_the_members_from_their_mean(seed):
    members = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), (3, 5))
    p = Categorical(members)
    divergence = stats.entropy(members, members.mean(1, keepdims=True), axis=-1).mean(1)
    assert np.allclose(p.epistemic, divergence, atol=1e-12)
    assert np.allclose(p.aleatoric + p.epistemic, p.entropy)


def test_a_single_member_cannot_tell_ignorance():
    p = Categorical(np.array([[[0.2, 0.8]], [[0.6, 0.4]]]))
    assert p.aleatoric is None
    assert p.epistemic is None
    assert np.allclose(p.std, [0.2, 0.4])
    assert np.allclose(p.log_prob([1, 0]), np.log([0.8, 0.6]))
    assert np.allclose(p.take(np.array([1])).probabilities, [[0.6, 0.4]])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: Mixture.gaussian([0.0], [-1.0]),
            DataError,
            "variances must be positive and finite, got -1.0; did the network diverge, or is a "
            "log-variance unclipped?",
        ),
        (
            lambda: Mixture.gaussian([0.0], [np.nan]),
            DataError,
            "variances must be positive and finite, got nan",
        ),
        (
            lambda: Mixture(np.zeros((2, 3)), np.ones((2, 2))),
            ShapeError,
            "means (2, 3) and variances (2, 2) must both be (batch..., members)",
        ),
        (
            lambda: Mixture(np.zeros((2, 3)), np.ones((2, 3)), np.ones(2) / 2),
            ShapeError,
            "3 members have weights (2,)",
        ),
        (
            lambda: Mixture(np.zeros((2, 2)), np.ones((2, 2)), np.ones(2)),
            DataError,
            "weights must be non-negative and sum to 1, got [1. 1.]",
        ),
        (
            lambda: StudentT(np.zeros(1), np.ones(1), np.full(1, 2.0)),
            DataError,
            "dof must exceed 2 for a finite variance, got 2",
        ),
        (
            lambda: StudentT(np.zeros(1), np.zeros(1), np.full(1, 3.0)),
            DataError,
            "scales must be positive and finite, got 0.0",
        ),
        (
            lambda: StudentT(np.zeros(1), np.ones(2), np.full(1, 3.0)),
            ShapeError,
            "location, scale and dof must have one shape",
        ),
        (
            lambda: QuantileTable(np.array([0.5, 0.1]), np.zeros((1, 2))),
            DataError,
            "a quantile table needs two or more rising levels, got [0.5 0.1]",
        ),
        (
            lambda: QuantileTable(np.array([0.1, 0.5]), np.zeros((1, 3))),
            ShapeError,
            "2 levels have values of (1, 3)",
        ),
        (
            lambda: QuantileTable(np.array([0.1, 0.5]), np.array([[0.0, np.inf]])),
            DataError,
            "a quantile table holds NaN or infinity; did the network diverge?",
        ),
        (
            lambda: student().quantile(1.0),
            DataError,
            "a probability must lie strictly between 0 and 1, got 1.0",
        ),
        (
            lambda: table().interval(float("nan")),
            DataError,
            "a probability must lie strictly between 0 and 1, got nan",
        ),
        (
            lambda: Mixture.concat([mixture(seed=0), mixture(seed=1)]),
            ShapeError,
            "predictions with different mixture weights cannot be joined",
        ),
        (
            lambda: QuantileTable.concat([table(), QuantileTable(LEVELS / 2, table().values)]),
            ShapeError,
            "predictions with different quantile levels cannot be joined",
        ),
        (
            lambda: Categorical(np.full((1, 1, 3), 0.5)),
            DataError,
            "class probabilities must be finite, not negative and sum to 1; apply a softmax",
        ),
        (
            lambda: Categorical(np.array([[[-0.5, 1.5]]])),
            DataError,
            "class probabilities must be finite, not negative and sum to 1; apply a softmax",
        ),
        (
            lambda: Categorical(np.ones((2, 1))),
            ShapeError,
            "members must be (n, members, classes), got (2, 1)",
        ),
        (
            lambda: Categorical(np.full((1, 1, 2), 0.5)).log_prob([2]),
            DataError,
            "class 2 is none of the 2 classes, 0 to 1",
        ),
        (
            lambda: Categorical(np.full((1, 1, 2), 0.5)).log_prob([-1]),
            DataError,
            "class -1 is none of the 2 classes, 0 to 1",
        ),
    ],
)
def test_what_cannot_be_a_distribution_is_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
