"""What a learner's circuit does when, and which learners have none; nothing is simulated here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.apps.firmware.learners import described
from stillfit.apps.firmware.rtl import rtl_of
from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.firmware.learning import Trajectory, check_learner, learner_rtl
from stillfit.firmware.learning.layout import Layout
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, WithNoise
from stillfit.models.task import Regression
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
    Format,
)
from stillfit.updaters.embedded import device as devices
from stillfit.updaters.references import FineTune

RNG = np.random.default_rng


def network(*hidden, noise=True):
    torch.manual_seed(0)
    core = MLP(3, hidden, 1)
    made = WithNoise(core) if noise else core
    return Model(made.eval(), Regression(features=("x",)), Architecture("mlp"))


def learner(updater, *hidden):
    return described(*updater.switched_on(network(*hidden), RNG(0)))


@pytest.mark.parametrize(
    "updater",
    [EmbeddedSGD(), EmbeddedSGD(last_layers=2), EmbeddedLMS(), EmbeddedRLS(forgetting=1.0)],
    ids=["sgd", "two layers", "lms", "least squares"],
)
def test_products_are_the_multiplications_of_the_account_and_one_per_bias(updater):
    model = network(10, 7)
    layout = Layout(described(*updater.switched_on(model, RNG(0))))
    device, plan = updater.switched_on(model, RNG(0))
    passes = {one.kind: 0 for one in layout.passes}
    for one in layout.passes:
        passes[one.kind] += one.products
    biases = 10 + 7 + 1  # of the forward pass, as products with 1
    if updater.program == 3:
        biases += 8 + 1  # phi's last entry is 1, and the account leaves that out
    assert sum(passes.values()) == devices.macs_of([3, 10, 7, 1], plan) + biases
    assert len(device.sizes) == 4


def test_a_rate_that_is_a_power_of_two_and_narrow_numbers_need_one_register_a_product():
    assert Layout(learner(EmbeddedSGD(rate=2**-6), 4)).depth == 1
    assert Layout(learner(EmbeddedSGD(rate=0.01), 4)).depth == 3
    wide = EmbeddedSGD(rate=2**-6, numbers=Format(width=24))
    assert Layout(learner(wide, 4)).depth == 3
    assert Layout(learner(EmbeddedRLS(), 4)).depth == 3


def test_lms_takes_fewer_cycles_than_sgd_and_the_same_for_its_answer():
    lms, sgd = (learner_rtl(learner(one(rate=2**-6), 10, 10)) for one in (EmbeddedLMS, EmbeddedSGD))
    assert lms.cycles.forward == sgd.cycles.forward
    assert lms.cycles.forward < lms.cycles.update < sgd.cycles.update
    assert sgd.cycles.longest == sgd.cycles.update and sgd.cycles.restart is None


@pytest.mark.parametrize(
    ("updater", "says"),
    [
        (EmbeddedDFA(), "no circuit for a learner by feedback; there is for gradient, least-sq"),
        (EmbeddedSPSA(), "no circuit for a learner by perturbation; there is for"),
        (EmbeddedSGD(exemplars=Exemplars(capacity=5)), "keeps no examples and this .* keeps 5"),
        (FineTune(), r"FineTune does not learn in fixed point, .* EmbeddedRLS have one"),
    ],
)
def test_a_learner_without_a_circuit_is_refused(updater, says):
    with pytest.raises(ConfigError, match=says):
        rtl_of(updater, network(4), RNG(0))


def test_a_network_that_no_device_holds_is_refused():
    model = network(4)
    odd = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    held = Model(WithNoise(odd).eval(), model.task, model.architecture)
    with pytest.raises(ConfigError, match="plain dense layers and ReLU; the network has a Tanh"):
        rtl_of(EmbeddedSGD(), held, RNG(0))


def test_sums_longer_than_the_kernels_are_refused_with_the_figure():
    told = learner(EmbeddedSGD(numbers=Format(width=24)), 4)
    inputs = 70_000
    wide = replace(
        told,
        sizes=(inputs, 1),
        arrays={**told.arrays, "weights": np.zeros(inputs + 1, np.int32)},
    )
    with pytest.raises(
        ConfigError, match=r"sums over 70001 products of 24 bits need 65 bits .* 64"
    ):
        learner_rtl(wide)


def test_numbers_and_outputs_that_make_no_learner_are_refused():
    told = learner(EmbeddedSGD(), 4)
    with pytest.raises(ConfigError, match="numbers of 30 bits with 12 behind the point"):
        learner_rtl(replace(told, width=30))
    with pytest.raises(ConfigError, match=r"a mean and a log-variance are 2 outputs, .* has 1"):
        learner_rtl(replace(told, loss="gaussian"))
    with pytest.raises(ConfigError, match="'my learner' is not the name of a Verilog module"):
        learner_rtl(told, "my learner")


def test_ends_are_one_for_each_weight_and_hold_where_it_begins():
    told = learner(EmbeddedSGD(), 4)
    weights = told.arrays["weights"].astype(np.int32)
    with pytest.raises(ShapeError, match=r"21 weights need as many lowest .* got \(20,\) and"):
        learner_rtl(told, ends=(weights[1:], weights))
    with pytest.raises(ConfigError, match=r"weight 0 begins as -?\d+ and its ends are .* first"):
        learner_rtl(told, ends=(weights + 1, weights + 2))


def test_a_design_keeps_the_state_that_it_was_made_with():
    """The kernels change a device's arrays in place."""
    updater, model = EmbeddedSGD(), network(4)
    design, device, _ = rtl_of(updater, model, RNG(0))
    was = device.weights.copy()
    device.weights[:] = 0
    np.testing.assert_array_equal(design.learner.arrays["weights"], was)


def test_a_trajectory_of_another_learner_is_refused(tmp_path):
    design = learner_rtl(learner(EmbeddedRLS(), 4))
    n, weights = 5, len(design.learner.arrays["weights"])
    told = Trajectory(
        x=np.zeros((n, 3), np.int64),
        t=np.zeros(n, np.int64),
        outputs=np.zeros((n, 1), np.int64),
        weights=np.zeros((n, weights), np.int64),
        random=np.ones(n, np.int64),
    )
    with pytest.raises(ShapeError, match=r"covariance of a trajectory of 5 .* \(5, 25\), got None"):
        check_learner(design, told, tmp_path)
    with pytest.raises(ShapeError, match=r"weights of a trajectory .* \(5, 21\), got \(5, 20\)"):
        check_learner(design, replace(told, weights=told.weights[:, 1:]), tmp_path)
    full = replace(told, covariance=np.zeros((0, 25), int), guards=np.zeros((0, 2), int))
    none = {name: getattr(told, name)[:0] for name in ("x", "t", "outputs", "weights", "random")}
    with pytest.raises(DataError, match="a check needs a step at least"):
        check_learner(design, replace(full, **none), tmp_path)
