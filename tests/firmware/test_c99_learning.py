"""Embedded learners in C equal the compiled kernels bit for bit, step after step."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from stillfit.apps.firmware.learners import dense_in, described
from stillfit.core.errors import ConfigError
from stillfit.firmware.c99 import learner_header, measured
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
    kernels,
)

STEPS = 2000
# Each learner, loss, rounding, way to keep and width at least once.
CASES = {
    "sgd-stochastic-softmax": (
        EmbeddedSGD(rate=0.05, exemplars=Exemplars(capacity=20, replays=1)),
        "classes",
    ),
    "sgd-half-up-gaussian": (
        EmbeddedSGD(rate=0.05, score=2.0, numbers=Format(width=8, fraction=5, rounding="half-up")),
        "gaussian",
    ),
    "sgd-even-hinge": (
        EmbeddedSGD(
            rate=0.03,
            last_layers=2,
            loss="hinge",
            numbers=Format(width=24, fraction=16, rounding="nearest-even"),
            exemplars=Exemplars(capacity=20, replays=2, keep="class-ring"),
        ),
        "classes",
    ),
    "lms-stochastic-squared": (EmbeddedLMS(rate=0.05, loss="squared", score=2.0), "classes"),
    "dfa-random-mean": (
        EmbeddedDFA(
            rate=0.05, feedback="random", exemplars=Exemplars(capacity=9, keep="ring", bits=24)
        ),
        "mean",
    ),
    "dfa-serving-softmax": (EmbeddedDFA(rate=0.05, noise="frozen"), "classes"),
    "spsa-stochastic-softmax": (EmbeddedSPSA(rate=0.02), "classes"),
    "spsa-even-gaussian": (
        EmbeddedSPSA(rate=0.02, shrink=3, numbers=Format(rounding="nearest-even")),
        "gaussian",
    ),
    "rls-forgets-gaussian": (EmbeddedRLS(forgetting=0.98, covariance_bits=20), "gaussian"),
    "rls-coarse-classes": (
        EmbeddedRLS(forgetting=1.0, covariance_bits=12, exemplars=Exemplars(capacity=9)),
        "classes",
    ),
}


def network(kind, seed=0):
    torch.manual_seed(seed)
    outputs = {"classes": 4, "mean": 1, "gaussian": 2}[kind]
    core = MLP(3, (6, 5), outputs)
    made = WithNoise(core) if kind == "mean" else core
    task = (
        Classification(features=("x",), classes=4)
        if kind == "classes"
        else Regression(features=("x",))
    )
    return Model(made.eval(), task, Architecture("mlp"))


def rows(learner, model, n, seed=0):
    """Every fourth row of the whole range of the numbers, the others near the middle."""
    numbers, drawn = learner.numbers, np.random.default_rng(seed)
    x = numbers.integers(drawn.normal(size=(n, 3))).astype(np.int64)
    x[::4] = drawn.integers(numbers.low, numbers.high + 1, x[::4].shape)
    t = numbers.integers(drawn.normal(size=n))
    if isinstance(model.task, Classification):
        t = drawn.integers(0, 4, n)
    return x.astype(numbers.dtype), t.astype(np.int32)


def kept(device, plan):
    """The bytes of the state, member by member as the header declares them."""
    sizes = [int(n) for n in device.sizes]
    learned = sum((n + 1) * m for n, m in list(pairwise(sizes))[plan.first :])
    least = [device.covariance, device.guards] if plan.kind == kernels.LEAST_SQUARES else []
    memory = [device.kept_t, device.kept_x] if plan.capacity else []
    counts = [device.counts] if plan.capacity else []
    parts = [*least, device.random, *counts, device.weights[-learned:], *memory]
    return b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("name", CASES)
def test_every_learner_equals_the_kernels_bit_for_bit(name, c99):
    learner, kind = CASES[name]
    model = network(kind)
    device, plan = learner.switched_on(model, np.random.default_rng(1))
    header = learner_header(described(device, plan, dense_in(model)), "net")
    x, t = rows(learner, model, STEPS)
    said, state = c99.learned(header, x, t)
    before = device.weights.copy()
    want = []
    for row in range(STEPS):
        want.append(kernels.answers(device, plan, x[row : row + 1])[0])
        kernels.learn(device, plan, x[row : row + 1], t[row : row + 1])
    np.testing.assert_array_equal(said, want)
    found = kept(device, plan)
    assert state[: len(found)] == found and len(state) - len(found) < 4
    assert (device.weights != before).any()


def test_a_product_at_the_lowest_number_keeps_its_sign(c99):
    """Its magnitude is no int32: kernels that took it as one went the wrong way here."""
    numbers = Format(width=24, fraction=10, rounding="nearest-even")
    memory = Exemplars(capacity=9, replays=2)
    learner = EmbeddedRLS(
        forgetting=1.0, covariance_bits=12, numbers=numbers, score=1.5, exemplars=memory
    )
    torch.manual_seed(7)
    made = WithNoise(MLP(3, (7,), 1)).eval()
    model = Model(made, Regression(features=("x",)), Architecture("mlp"))
    device, plan = learner.switched_on(model, np.random.default_rng(7))
    header = learner_header(described(device, plan), "net")
    drawn = np.random.default_rng(7)
    x = drawn.integers(numbers.low, numbers.high + 1, (400, 3)).astype(numbers.dtype)
    t = drawn.integers(numbers.low, numbers.high + 1, 400).astype(np.int32)
    _, state = c99.learned(header, x, t)
    kernels.learn(device, plan, x, t)
    assert state[: len(kept(device, plan))] == kept(device, plan)


def test_the_ram_is_what_the_learner_announced_and_what_the_compiler_finds(c99):
    from stillfit.updaters.embedded import device as devices

    for name in CASES:
        learner, kind = CASES[name]
        device, plan = learner.switched_on(network(kind), np.random.default_rng(1))
        header = learner_header(described(device, plan), "net")
        announced = devices.account(device, plan).ram
        signs = header.ram.get("signs", 0)  # of perturbations: a word and a count beside arrays
        assert header.ram_bytes - signs == sum(announced.values())
        if name in ("sgd-stochastic-softmax", "rls-forgets-gaussian"):
            assert header.ram_bytes <= measured(header).ram <= header.ram_bytes + 64


def test_a_state_goes_on_where_it_was(c99):
    learner, kind = CASES["sgd-stochastic-softmax"]
    model = network(kind)
    device, plan = learner.switched_on(model, np.random.default_rng(1))
    x, t = rows(learner, model, 300)
    kernels.learn(device, plan, x[:150], t[:150])
    header = learner_header(described(device, plan), "net")
    _, state = c99.learned(header, x[150:], t[150:])
    kernels.learn(device, plan, x[150:], t[150:])
    assert state[: len(kept(device, plan))] == kept(device, plan)


_SCALES = """
#include <stdio.h>
int main(void) {{
    static double r[{upper}_INPUTS + 1];
    while (fread(r, sizeof r, 1, stdin) == 1) {{
        static {name}_word_t x[{upper}_INPUTS];
        static int32_t t;
        unsigned char ok = (unsigned char)({name}_inputs(r, x) && {name}_target(r[3], &t));
        fwrite(&t, sizeof t, 1, stdout);
        fwrite(x, sizeof x, 1, stdout);
        fwrite(&ok, 1, 1, stdout);
    }}
    return 0;
}}
"""


def test_features_and_targets_are_read_as_the_host_reads_them(c99):
    learner, model = EmbeddedSGD(), network("gaussian")
    dense = replace(
        dense_in(model),
        mean=np.array([0.1, 5.0, -3.0]),
        std=np.array([0.3, 1.7, 100.0]),
        target_mean=-2.5,
        target_std=0.7,
    )
    device, plan = learner.switched_on(model, np.random.default_rng(1))
    header = learner_header(described(device, plan, dense), "net")
    real = np.random.default_rng(3).normal(0, [1, 9, 500, 5], (1000, 4))
    program = c99.built(header, _SCALES)
    row = [("t", "<i4"), ("x", header.input_type, (3,)), ("ok", "u1")]
    told = np.frombuffer(c99.fed(program, real.tobytes()), row)
    assert told["ok"].all()
    np.testing.assert_array_equal(
        told["x"], learner.numbers.integers((real[:, :3] - dense.mean) / dense.std)
    )
    np.testing.assert_array_equal(told["t"], learner.numbers.integers((real[:, 3] + 2.5) / 0.7))
    for bad in (np.nan, np.inf):
        said = c99.fed(program, np.array([0, bad, 0, 0]).tobytes())
        assert np.frombuffer(said, row)["ok"] == 0


def test_what_is_no_learner_is_refused():
    learner, kind = CASES["lms-stochastic-squared"]
    device, plan = learner.switched_on(network(kind), np.random.default_rng(1))
    told = described(device, plan)
    with pytest.raises(ConfigError, match="no C for the kind 'newton' of a learner; there is for"):
        replace(told, kind="newton")
    with pytest.raises(ConfigError, match="have 52 weights and the learner has 83; were its sizes"):
        replace(told, sizes=(3, 6, 4))
