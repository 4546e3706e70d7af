"""One fit for all: training as `train` does it, then what a network fits afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.events import Examples
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP, copy_network
from stillfit.models.task import Regression
from stillfit.models.training import Part, Prepared, Schedule, fit, mixture, shuffled, train
from stillfit.models.uncertain import Uncertain

TASK = Regression(features=("a",))
SCHEDULE = Schedule(steps=12, batch=20)


def examples(n, first=0, value=0.0):
    rng = np.random.default_rng(first)
    ids = np.arange(first, first + n, dtype=np.int64)
    y = np.full(n, value) + rng.normal(size=n)
    return Examples(ids, {"a": rng.normal(size=n)}, {"y": y}, np.zeros(n), np.full(n, "all"))


class Recorded(Uncertain):
    """Keeps what `finish` was given."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    @property
    def core(self):
        return self.inner

    @property
    def n_passes(self):
        return 1

    def passes(self, task, inputs):
        return tuple(part[None] for part in task.answer(self.inner, inputs))

    def fresh(self, task, examples, seed):
        return Recorded(task.fresh(self.inner, examples, seed))

    def finish(self, task, data, schedule, rng, *, start=None, rates=None):
        self.seen.append((data, start, rates, rng.random()))
        super().finish(task, data, schedule, rng, start=start, rates=rates)


def network():
    torch.manual_seed(0)
    return MLP(1, [8])


def model(net):
    return Model(net, TASK, Architecture("x"))


def test_a_plain_network_is_trained_as_by_train():
    one, two = model(network()), model(network())
    data = Prepared.of(one, examples(50))
    rng = np.random.default_rng(1)
    heard = []
    steps = fit(one, data, SCHEDULE, np.random.default_rng(0), batches=rng, told=heard.append)
    draw = shuffled(data, 20, np.random.default_rng(1))
    losses = list(train(two, draw, SCHEDULE))
    assert steps == 12 and heard == losses
    for name, value in two.weights().items():
        np.testing.assert_array_equal(one.weights()[name], value)


def test_what_a_network_draws_itself_comes_from_the_generator_and_torchs_own_is_left():
    def weights(seed):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        made = model(net)
        before = torch.random.get_rng_state()
        fit(made, Prepared.of(made, examples(50)), SCHEDULE, np.random.default_rng(seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        return made.weights()["0.weight"]

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_finish_gets_the_events_the_start_and_the_rates_once():
    net = Recorded(network())
    made = model(net)
    before = copy_network(net.inner)
    data = Prepared.of(made, examples(50))
    fit(made, data, SCHEDULE, np.random.default_rng(0), rates={"layers.1": 0.0})
    ((seen, start, rates, _),) = net.seen
    assert seen is data and rates == {"layers.1": 0.0}
    for name, value in before.state_dict().items():
        assert torch.equal(start.inner.state_dict()[name], value)
    assert not torch.equal(start.inner.layers[-1].weight, net.inner.layers[-1].weight)
    # A factor on a rate means the same parameter inside a wrapper.
    assert torch.equal(start.inner.layers[1].weight, net.inner.layers[1].weight)
    assert not net.training


def test_what_is_inside_is_finished_too_with_its_own_start():
    inner = Recorded(network())
    outer = Recorded(inner)
    outer.finish(TASK, Prepared({}, {}, 0), SCHEDULE, np.random.default_rng(0),
                 start=Recorded(Recorded(network())))  # fmt: skip
    assert len(inner.seen) == 1 and isinstance(inner.seen[0][1], Recorded)


def test_a_diverged_network_is_not_finished():
    net = Recorded(network())
    made = model(net)
    data = Prepared.of(made, examples(50))
    data.targets["y"][:] = np.nan
    assert fit(made, data, SCHEDULE, np.random.default_rng(0)) == 0
    assert net.seen == []


@pytest.mark.parametrize(("rows", "want"), [((10, 10), (40, 40)), ((5, 15), (40, 120))])
def test_parts_are_finished_on_at_their_shares_of_a_batch(rows, want):
    net = Recorded(network())
    made = model(net)
    new, old = Prepared.of(made, examples(40, value=9.0)), Prepared.of(made, examples(200, 1000))
    parts = [Part(new, rows[0]), Part(old, rows[1])]
    fit(made, parts, SCHEDULE, np.random.default_rng(0))
    data = net.seen[0][0]
    assert data.n == len(data.ids) == sum(want) == len(np.unique(data.ids))
    assert (int((data.ids < 1000).sum()), int((data.ids >= 1000).sum())) == want
    inside = {int(i): v for i, v in zip(old.ids, old.targets["y"], strict=True)}
    for event, y in zip(data.ids, data.targets["y"], strict=True):
        assert event < 1000 or inside[int(event)] == y


def test_an_event_that_lies_in_both_parts_counts_once():
    made = model(network())
    new, store = Prepared.of(made, examples(40)), Prepared.of(made, examples(100))
    data = mixture([Part(new, 10), Part(store, 10)], np.random.default_rng(0))
    assert len(np.unique(data.ids)) == data.n == 80
    only = mixture([Part(new, 10), Part(new, 10)], np.random.default_rng(0))
    np.testing.assert_array_equal(only.ids, new.ids)


def test_chunks_hold_every_event_in_order():
    made = model(network())
    data = Prepared.of(made, examples(25))
    pieces = list(data.chunks(10))
    assert [piece.n for piece in pieces] == [10, 10, 5]
    np.testing.assert_array_equal(np.concatenate([piece.ids for piece in pieces]), data.ids)
