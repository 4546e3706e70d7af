"""The plain training step: batches, frozen parameters, diverging losses."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Classification, Regression
from stillfit.models.training import Guide, Prepared, Schedule, joined, shuffled, train


def examples(n=300, seed=0, classes=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = (x[:, 0] > 0).astype(np.int64) if classes else 2 * x[:, 0] - x[:, 1]
    ids = np.arange(n, dtype=np.int64)
    columns = {"a": x[:, 0], "b": x[:, 1]}
    return Examples(ids, columns, {"y": y, "row": ids}, np.zeros(n), np.full(n, "all"))


def model(network=None, task=None):
    torch.manual_seed(0)
    network = network or MLP(2, [16])
    return Model(network, task or Regression(features=("a", "b")), Architecture("mlp"))


def run(shown, draw, schedule, **knobs):
    return list(train(shown, draw, schedule, **knobs))


def test_every_row_is_drawn_once_per_epoch():
    data = Prepared.of(model(), examples(60))
    draw = shuffled(data, 20, np.random.default_rng(0))
    epochs = [np.concatenate([draw(s)[1]["row"] for s in range(3)]) for _ in range(4)]
    for rows in epochs:
        np.testing.assert_array_equal(np.sort(rows), np.arange(60))
    assert not np.array_equal(epochs[0], epochs[1])


def test_inputs_and_targets_of_a_batch_belong_together():
    data = Prepared.of(model(), examples(60))
    inputs, targets = shuffled(data, 7, np.random.default_rng(0))(0)
    np.testing.assert_array_equal(inputs["x"], data.inputs["x"][targets["row"]])


def test_a_last_short_batch_is_dropped_and_a_batch_is_never_larger_than_the_data():
    data = Prepared.of(model(), examples(65))
    draw = shuffled(data, 20, np.random.default_rng(0))
    batches = [draw(s)[1]["row"] for s in range(9)]
    assert {len(rows) for rows in batches} == {20}
    for epoch in range(3):
        rows = np.concatenate(batches[3 * epoch : 3 * epoch + 3])
        assert len(np.unique(rows)) == 60
    assert len(shuffled(data, 1000, np.random.default_rng(0))(0)[1]["row"]) == 65


def test_joined_drawings_put_batches_side_by_side():
    shown = model()
    one = shuffled(Prepared.of(shown, examples(40)), 10, np.random.default_rng(0))
    two = shuffled(Prepared.of(shown, examples(40, seed=1)), 30, np.random.default_rng(1))
    _, targets = joined([one, two])(0)
    assert len(targets["row"]) == 40
    again = shuffled(Prepared.of(shown, examples(40)), 10, np.random.default_rng(0))
    np.testing.assert_array_equal(targets["row"][:10], again(0)[1]["row"])
    assert joined([one]) is one


def test_nothing_to_train_on_is_said():
    with pytest.raises(DataError, match="there are no labelled events to train on; did labels arr"):
        Prepared.of(model(), examples(0))


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("cosine", [True, False])
def test_training_learns(optimiser, cosine):
    shown = model()
    data = Prepared.of(shown, examples())
    schedule = Schedule(
        steps=200, batch=100, rate=0.02 if optimiser == "adam" else 0.01, optimiser=optimiser,
        cosine=cosine, clip=1.0,
    )  # fmt: skip
    losses = run(shown, shuffled(data, 100, np.random.default_rng(0)), schedule)
    assert len(losses) == 200
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 1
    assert not shown.network.training
    assert all(parameter.grad is None for parameter in shown.network.parameters())


def test_classes_are_learned_too():
    shown = model(MLP(2, [16]), Classification(features=("a", "b"), classes=2))
    labelled = examples(classes=True)
    data = Prepared.of(shown, labelled)
    run(shown, shuffled(data, 100, np.random.default_rng(0)), Schedule(steps=150, rate=0.02))
    assert shown.errors(labelled)["error"].mean() < 0.05


def test_a_rate_of_zero_leaves_everything():
    shown = model()
    before = shown.weights()
    draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
    run(shown, draw, Schedule(steps=5, rate=0.0))
    for name, value in shown.weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_frozen_parameters_stay_and_slow_ones_move_less():
    def moved(rates):
        shown = model()
        before = shown.weights()
        draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
        run(shown, draw, Schedule(steps=3, rate=0.01), rates=rates)
        after = shown.weights()
        return {name: float(np.abs(after[name] - before[name]).max()) for name in before}

    free, frozen = moved({}), moved({"layers.1": 0.0})
    slow = moved({"layers.1": 0.1})
    assert frozen["layers.1.weight"] == frozen["layers.1.bias"] == 0
    assert frozen["layers.3.weight"] > 0
    assert 0 < slow["layers.1.weight"] < 0.2 * free["layers.1.weight"]
    # The longest prefix counts, in whatever order they are given.
    both = moved({"layers": 0.0, "layers.3": 1.0})
    assert both["layers.1.weight"] == 0 < both["layers.3.weight"]
    assert both == moved({"layers.3": 1.0, "layers": 0.0})


def test_parameters_that_need_no_gradient_stay():
    shown = model()
    shown.network.layers[1].weight.requires_grad_(False)
    before = shown.weights()
    draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
    run(shown, draw, Schedule(steps=3))
    np.testing.assert_array_equal(shown.weights()["layers.1.weight"], before["layers.1.weight"])


def test_a_strong_penalty_holds_the_weights():
    shown = model()
    anchor = [p.detach().clone() for p in shown.network.parameters()]

    class Held(Guide):
        def penalty(self, network, inputs):
            pairs = zip(network.parameters(), anchor, strict=True)
            return 1e6 * sum(((p - a) ** 2).sum() for p, a in pairs)

    draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
    run(shown, draw, Schedule(steps=100, rate=0.01), guide=Held())
    for parameter, first in zip(shown.network.parameters(), anchor, strict=True):
        assert (parameter - first).abs().max().item() < 0.01


def test_a_guide_is_asked_in_order_and_may_change_gradients_and_parameters():
    shown = model()
    before = shown.weights()
    called = []

    class Masked(Guide):
        def penalty(self, network, inputs):
            called.append(("penalty", inputs["x"].shape[0]))

        def before(self, network):
            called.append(("before", all(p.grad is not None for p in network.parameters())))
            network.layers[1].weight.grad.zero_()

        def after(self, network):
            called.append(("after", None))
            with torch.no_grad():
                network.layers[3].bias.fill_(7.0)

    draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
    run(shown, draw, Schedule(steps=2), guide=Masked())
    assert called == [("penalty", 50), ("before", True), ("after", None)] * 2
    np.testing.assert_array_equal(shown.weights()["layers.1.weight"], before["layers.1.weight"])
    assert (shown.weights()["layers.3.bias"] == 7.0).all()


def test_a_loss_that_is_not_finite_ends_the_training_with_finite_weights():
    shown = model()
    labelled = examples()
    labelled.targets["y"][:] = np.nan
    draw = shuffled(Prepared.of(shown, labelled), 50, np.random.default_rng(0))
    before = shown.weights()
    losses = run(shown, draw, Schedule(steps=10))
    assert losses == [math.inf]
    for name, value in shown.weights().items():
        np.testing.assert_array_equal(value, before[name])
    assert not shown.network.training


def test_a_network_without_parameters_cannot_be_trained_and_it_is_said():
    shown = model(nn.Flatten())
    draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
    text = "the network has no parameters to train; a finder cannot be retrained"
    with pytest.raises(DataError, match=text):
        run(shown, draw, Schedule(steps=1))
    with pytest.raises(DataError, match=text):
        run(model(), draw, Schedule(steps=1), rates={"": 0.0})


def test_no_steps_are_no_training():
    shown = model()
    draw = shuffled(Prepared.of(shown, examples()), 50, np.random.default_rng(0))
    assert run(shown, draw, Schedule(steps=0)) == []
