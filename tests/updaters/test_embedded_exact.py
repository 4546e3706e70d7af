"""The compiled integer learners equal the plain reference bit for bit, and both their oracles."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
    Format,
    device,
    fixed,
    kernels,
)
from stillfit.updaters.embedded.reference import Reference

REGRESSION = Regression(features=("x",))
CLASSES = Classification(features=("x",), classes=4)
LEARNERS = [
    EmbeddedSGD(rate=0.05),
    EmbeddedSGD(rate=0.05, last_layers=2),
    EmbeddedLMS(rate=0.05),
    EmbeddedDFA(rate=0.05, feedback="random"),
    EmbeddedDFA(rate=0.05, feedback="serving"),
    EmbeddedSPSA(rate=0.02),
    EmbeddedRLS(forgetting=0.98, covariance_bits=20),
    EmbeddedRLS(forgetting=1.0, covariance_bits=12),
]


def rng(seed=0):
    return np.random.default_rng(seed)


def network(kind, hidden=(6, 5), inputs=3, seed=0):
    torch.manual_seed(seed)
    if kind == "classes":
        return Model(MLP(inputs, hidden, 4).eval(), CLASSES, Architecture("mlp"))
    if kind == "mean":
        made = WithNoise(MLP(inputs, hidden, 1)).eval()
        return Model(made, REGRESSION, Architecture("mlp"))
    return Model(MLP(inputs, hidden, 2).eval(), REGRESSION, Architecture("mlp"))


def rows(model, numbers, n, seed=0, wild=False, inputs=3):
    """Integers as a device reads them; `wild`: of the whole range."""
    drawn = rng(seed)
    if wild:
        x = drawn.integers(numbers.low, numbers.high + 1, (n, inputs))
        t = drawn.integers(numbers.low, numbers.high + 1, n)
    else:
        x = numbers.integers(drawn.normal(size=(n, inputs)))
        t = numbers.integers(drawn.normal(size=n))
    if isinstance(model.task, Classification):
        t = drawn.integers(0, 4, n)
    return x.astype(numbers.dtype), t.astype(np.int32)


def differences(one, other):
    """Names of the arrays of a device that differ from the reference's."""
    return [
        name
        for name, value in other.state().items()
        if not np.array_equal(getattr(one, name), value.astype(np.int64))
    ]


def both(learner, model, x, t, seed=1):
    made, plan = learner.switched_on(model, rng(seed))
    plain = Reference(made, plan)
    macs = kernels.learn(made, plan, x, t)
    plain.learn(x, t)
    return made, plan, plain, macs


@settings(max_examples=40)
@given(
    learner=st.sampled_from(LEARNERS),
    kind=st.sampled_from(["gaussian", "mean", "classes"]),
    rounding=st.sampled_from(fixed.ROUNDINGS),
    fraction=st.integers(3, 13),
    hidden=st.sampled_from([(6, 5), (7,), (3, 4, 5), ()]),
    loss=st.sampled_from(["softmax", "squared", "hinge"]),
    keep=st.sampled_from([None, "reservoir", "ring", "class-ring"]),
    noise=st.sampled_from(["learned", "frozen"]),
    wild=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_learner_equals_the_reference_bit_for_bit(
    learner, kind, rounding, fraction, hidden, loss, keep, noise, wild, seed
):
    numbers = Format(width=16, fraction=fraction, rounding=rounding)
    memory = Exemplars() if keep is None else Exemplars(capacity=9, replays=2, keep=keep)
    knobs = {"shrink": min(3, fraction)} if isinstance(learner, EmbeddedSPSA) else {}
    made = replace(
        learner, numbers=numbers, exemplars=memory, loss=loss, noise=noise, score=1.5, **knobs
    )
    model = network(kind, hidden, seed=seed)
    x, t = rows(model, numbers, 25, seed, wild)
    one, plan, other, macs = both(made, model, x, t)
    assert differences(one, other) == []
    assert macs == other.macs
    # What was counted is within what was announced, and for all but least squares equal to it.
    steps = len(x) * (1 + plan.replays) - plan.replays
    announced = device.macs_of([int(n) for n in one.sizes], plan) * steps
    assert macs == announced or (plan.kind == kernels.LEAST_SQUARES and macs < announced)
    outputs = kernels.answers(one, plan, x)
    np.testing.assert_array_equal(outputs, [other.forward([int(v) for v in row])[-1] for row in x])


@pytest.mark.parametrize("rounding", fixed.ROUNDINGS)
@pytest.mark.parametrize("loss", ["softmax", "squared", "hinge"])
def test_the_widest_numbers_do_not_overflow(rounding, loss):
    """All weights, inputs and errors at the ends of the range: 64 bits are enough."""
    numbers = Format(width=24, fraction=16, rounding=rounding)
    learner = EmbeddedSGD(numbers=numbers, loss=loss, rate=1.0, score=100.0)
    for kind in ("classes", "gaussian"):
        model = network(kind, (6, 5))
        x, t = rows(model, numbers, 12, 3, wild=True)
        x[::2] = np.where(x[::2] > 0, numbers.high, numbers.low)
        made, plan = learner.switched_on(model, rng(1))
        made.weights[:] = rng(2).choice([numbers.low, numbers.high], len(made.weights))
        plain = Reference(made, plan)
        kernels.learn(made, plan, x, t)
        plain.learn(x, t)
        assert differences(made, plain) == []


# -- arithmetic ---------------------------------------------------------------------------------


def test_the_generator_is_marsaglias():
    state, drawn = 2463534242, []  # the seed of the paper
    for _ in range(3):
        state = fixed.next_state(state)
        drawn.append(state)
    assert drawn == [723471715, 2497366906, 2064144800]
    assert kernels.xorshift(2463534242) == 723471715


def test_no_start_state_is_zero():
    assert fixed.seeds_of(rng(), 1000).min() > 0


@pytest.mark.parametrize("v", [-1000, -37, -1, 0, 1, 19, 32, 33, 1023])
def test_stochastic_rounding_is_unbiased(v):
    """Of all draws exactly rest / 2^shift round up, so that the mean is v / 2^shift."""
    shift = 6
    ups = [(v + chance) >> shift for chance in range(1 << shift)]
    assert sum(ups) == v  # the mean times 2^shift
    state, total, n = 12345, 0, 20_000
    for _ in range(n):
        q, state = kernels.learned(v, shift, fixed.STOCHASTIC, state)
        total += q
    rest = (v % (1 << shift)) / (1 << shift)
    deviation = math.sqrt(rest * (1 - rest) / n)
    assert abs(total / n - v / (1 << shift)) <= 4 * deviation


def test_ties_go_up_or_to_the_even_neighbour():
    assert [kernels.settle(v, 1, fixed.HALF_UP) for v in (-3, -1, 1, 3)] == [-1, 0, 1, 2]
    assert [kernels.settle(v, 1, fixed.NEAREST_EVEN) for v in (-3, -1, 1, 3)] == [-2, 0, 0, 2]


@pytest.mark.parametrize("fraction", [1, 4, 12, 16])
def test_the_tables_give_exponentials_and_logarithms(fraction):
    for d in range(-8 << fraction, (12 << fraction) + 1, max(1, (1 << fraction) // 37)):
        true = math.exp(-d / (1 << fraction)) * (1 << 14)
        assert abs(kernels.exp_minus(d, fraction, fixed.POWERS) - true) <= 1.5 + 2e-4 * true
    assert kernels.exp_minus(0, fraction, fixed.POWERS) == 1 << 14
    for s in (1, 5, 1 << 14, 20_000, 10 << 14, (1000 << 14) + 77):
        true = math.log(s / (1 << 14))
        assert abs(kernels.logarithm(s, fixed.LOGARITHMS) / (1 << 14) - true) < 1e-3


def test_numbers_saturate_and_come_back_exactly():
    numbers = Format(width=8, fraction=4)
    np.testing.assert_array_equal(
        numbers.integers([-100, -8, -0.03125, 0.03125, 0.5, 7.99, 100]),
        [-128, -128, 0, 1, 8, 127, 127],
    )
    wide = Format(width=24, fraction=16)
    every = rng().integers(wide.low, wide.high, 1000).astype(np.int32)
    np.testing.assert_array_equal(wide.integers(wide.floats(every)), every)
    assert [fixed.word(bits).itemsize for bits in (4, 8, 9, 16, 17, 24)] == [1, 1, 2, 2, 4, 4]


# -- oracles ------------------------------------------------------------------------------------


def float_sgd(model, x, y, rate):
    """Plain SGD in float64, batch 1, of the mean's squared error / 2 or of the cross-entropy."""
    net = model.network.network if isinstance(model.network, WithNoise) else model.network
    parameters = [
        (part.weight.detach().double().numpy().copy(), part.bias.detach().double().numpy().copy())
        for part in net.modules()
        if isinstance(part, nn.Linear)
    ]
    for row, target in zip(x, y, strict=True):
        values = [row]
        for depth, (w, b) in enumerate(parameters):
            out = w @ values[-1] + b
            values.append(out if depth == len(parameters) - 1 else np.maximum(out, 0))
        if isinstance(model.task, Classification):
            e = np.exp(values[-1] - values[-1].max())
            error = e / e.sum() - (np.arange(len(e)) == target)
        else:
            error = values[-1] - target
        for depth in range(len(parameters) - 1, -1, -1):
            w, b = parameters[depth]
            below = (w.T @ error) * (values[depth] > 0)
            w -= rate * np.outer(error, values[depth])
            b -= rate * error
            error = below
    return np.concatenate([np.concatenate([w, b[:, None]], 1).reshape(-1) for w, b in parameters])


@pytest.mark.parametrize("kind", ["mean", "classes"])
@pytest.mark.parametrize("rounding", ["half-up", "nearest-even"])
def test_wide_numbers_follow_float_sgd_and_each_bit_halves_the_distance(kind, rounding):
    model, away = network(kind, (6, 5)), []
    x = rng(5).normal(size=(200, 3))
    y = rng(6).integers(0, 4, 200) if kind == "classes" else np.sin(x[:, 0])
    for fraction in (8, 12, 16):
        numbers = Format(width=24, fraction=fraction, rounding=rounding)
        made, plan = EmbeddedSGD(numbers=numbers, rate=2.0**-6).switched_on(model, rng())
        t = y if kind == "classes" else numbers.integers(y)
        kernels.learn(made, plan, numbers.integers(x), np.asarray(t, np.int32))
        away.append(np.abs(numbers.floats(made.weights) - float_sgd(model, x, y, 2.0**-6)).max())
    assert away[0] < 0.25
    assert away[1] < 0.02
    # The softmax's tables have 14 bits, so the last ones bring less there.
    assert away[2] < 0.002
    assert away[0] > 4 * away[1] > 16 * away[2]


def test_stochastic_rounding_learns_where_nearest_does_not():
    """Updates of less than half a unit are lost to the nearest, and count on average by chance."""
    model = network("mean", (6,))
    moved = {}
    for rounding in ("half-up", "stochastic"):
        numbers = Format(width=16, fraction=6, rounding=rounding)
        made, plan = EmbeddedSGD(numbers=numbers, rate=2.0**-9).switched_on(model, rng())
        before = made.weights.copy()
        x, _ = rows(model, numbers, 2000)
        kernels.learn(made, plan, x, np.full(2000, 1 << 6, np.int32))
        moved[rounding] = np.abs(made.weights - before).max()
    assert moved["half-up"] == 0
    assert moved["stochastic"] > 8


def test_least_squares_with_full_memory_is_ridge_regression():
    """w = argmin sum (y - w phi)^2 + |w - w0|^2 / prior, on the quantised features."""
    model = network("mean", (6,))
    numbers = Format(width=16, fraction=12, rounding="nearest-even")
    learner = EmbeddedRLS(numbers=numbers, forgetting=1.0, prior=2.0, covariance_bits=24)
    made, plan = learner.switched_on(model, rng())
    x, _ = rows(model, numbers, 400)
    y = np.sin(2 * x[:, 0] / 4096) + 0.3
    start = made.weights.copy()
    phi = np.ones((400, 7))
    for row in range(400):
        kernels.answers(made, plan, x[row : row + 1])
        phi[row, :6] = made.values[3:9] / 4096
    kernels.learn(made, plan, x, numbers.integers(y).astype(np.int32))
    first = start[-7:] / 4096
    wanted = np.linalg.solve(phi.T @ phi + np.eye(7) / 2, phi.T @ y + first / 2)
    found = made.weights[-7:] / 4096
    np.testing.assert_array_equal(made.weights[:-7], start[:-7])
    residual = np.abs(phi @ (found - wanted)).max()
    assert residual < 0.02
    assert np.abs(phi @ (first - wanted)).max() > 0.3
    inverse = np.linalg.inv(phi.T @ phi + np.eye(7) / 2)
    np.testing.assert_allclose(made.covariance.reshape(7, 7) / (1 << 24), inverse, atol=2e-3)


def test_feedback_from_the_serving_network_is_back_propagation_in_the_first_step():
    """With one hidden layer the matrix is the layer's own, until the layer moves away from it."""
    model = network("classes", (6,))
    numbers = Format(rounding="half-up")
    x, t = rows(model, numbers, 30)
    found = {}
    for learner in (EmbeddedSGD(numbers=numbers), EmbeddedDFA(numbers=numbers)):
        for n in (1, 30):
            made, plan = learner.switched_on(model, rng())
            kernels.learn(made, plan, x[:n], t[:n])
            found[type(learner), n] = made.weights.copy()
    np.testing.assert_array_equal(found[EmbeddedSGD, 1], found[EmbeddedDFA, 1])
    assert not np.array_equal(found[EmbeddedSGD, 30], found[EmbeddedDFA, 30])


@pytest.mark.parametrize("kind", ["mean", "classes"])
def test_the_mean_of_many_perturbations_is_the_gradient(kind):
    model = network(kind, (4,))
    numbers = Format(width=24, fraction=16, rounding="stochastic")
    x, t = rows(model, numbers, 1)
    down, plan = EmbeddedSGD(numbers=numbers, rate=0.01).switched_on(model, rng())
    start = down.weights.copy()
    kernels.learn(down, plan, x, t)
    gradient = (down.weights - start).astype(float)
    made, plan = EmbeddedSPSA(numbers=numbers, rate=0.01, shrink=6).switched_on(model, rng())
    total, n = np.zeros(len(start)), 4000
    for _ in range(n):
        made.weights[:] = start
        kernels.learn(made, plan, x, t)
        total += made.weights - start
    cosine = total @ gradient / np.linalg.norm(total) / np.linalg.norm(gradient)
    assert cosine > 0.98
    assert abs(np.linalg.norm(total / n) / np.linalg.norm(gradient) - 1) < 0.1


def test_a_covariance_of_too_few_bits_begins_anew_and_is_counted():
    model = network("mean", (6,))
    learner = EmbeddedRLS(covariance_bits=10, forgetting=0.999, prior=1.0)
    made, plan = learner.switched_on(model, rng())
    x, t = rows(model, learner.numbers, 4000)
    kernels.learn(made, plan, x, t)
    assert made.guards[1] > 0
    assert np.diag(made.covariance.reshape(7, 7)).min() >= 1
    steady = EmbeddedRLS(covariance_bits=24, forgetting=0.999)
    made, plan = steady.switched_on(model, rng())
    kernels.learn(made, plan, x, t)
    assert list(made.guards) == [0, 0]


# -- memory -------------------------------------------------------------------------------------


def memory_after(learner, model, n, classes=None):
    made, plan = learner.switched_on(model, rng())
    x = np.tile(np.arange(n, dtype=np.int16)[:, None] << 8, (1, 3))
    t = np.zeros(n, np.int32) if classes is None else np.asarray(classes, np.int32)
    kernels.fill(made, plan, x, t)
    return made


def test_a_ring_keeps_the_newest_and_class_rings_equal_shares():
    model = network("classes")
    ring = EmbeddedSGD(exemplars=Exemplars(capacity=8, keep="ring"))
    made = memory_after(ring, model, 100)
    assert sorted(made.kept_x[:, 0]) == list(range(92, 100))
    shares = EmbeddedSGD(exemplars=Exemplars(capacity=9, keep="class-ring"))
    made = memory_after(shares, model, 100, [0] * 90 + [1] * 8 + [3] * 2)
    assert made.kept_x.shape == (8, 3)  # two for each of four classes
    assert sorted(made.kept_x[:, 0][[0, 1, 2, 3, 6, 7]]) == [88, 89, 96, 97, 98, 99]


def test_a_reservoir_keeps_all_that_came_with_equal_probability():
    model = network("mean")
    learner = EmbeddedSGD(exemplars=Exemplars(capacity=10))
    counts = np.zeros(100)
    made, plan = learner.switched_on(model, rng())
    x = np.tile(np.arange(100, dtype=np.int16)[:, None] << 8, (1, 3))
    for _ in range(600):
        made.counts[:] = 0
        kernels.fill(made, plan, x, np.zeros(100, np.int32))
        counts[made.kept_x[:, 0]] += 1
    chi2 = ((counts - 60) ** 2).sum() / (60 * 0.9)
    assert 55 < chi2 < 155  # 99 degrees of freedom, 0.001 on each side


def test_kept_inputs_are_the_upper_bits_rounded():
    model = network("mean")
    learner = EmbeddedSGD(exemplars=Exemplars(capacity=50, keep="ring"))
    made, plan = learner.switched_on(model, rng())
    x, t = rows(model, learner.numbers, 50, wild=True)
    kernels.fill(made, plan, x, t)
    back = made.kept_x.astype(np.int32) << 8
    assert made.kept_x.dtype == np.int8
    inside = x < 127 << 8
    assert np.abs(back - x)[inside].max() <= 128
    np.testing.assert_array_equal(made.kept_t, t)


def test_the_account_counts_the_arrays_as_they_lie_there():
    model = network("gaussian")
    learner = EmbeddedRLS(exemplars=Exemplars(capacity=20))
    made, plan = learner.switched_on(model, rng())
    account = learner.account(model)
    bytes_of = {name: array.nbytes for name, array in made._asdict().items()}
    everything = sum(bytes_of.values()) + 2 * 4 * 3  # and the scales of three inputs
    assert account.ram_bytes + account.constant_bytes == everything
    assert account.ram["kept_x"] == 20 * 3
    assert account.ram["kept_t"] == 20 * 2
    assert account.ram["covariance"] == 4 * 6 * 6
    assert account.ram["weights"] == 2 * (6 * 2)  # the last layer learns, the others are constants
    assert account.constants["frozen weights"] == 2 * (4 * 6 + 7 * 5)
    assert plan.capacity == account.stored == 20
