"""The study of dead regions: masks, rows of tracks, and its classifier."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError
from stillfit.l1t.conditions import DEAD_REGIONS
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.library import load
from stillfit.l1t.vertex import VertexTask
from stillfit.models.model import Architecture, Model, build, count_macs
from stillfit.models.networks import MLP
from stillfit.models.task import Classification
from stillfit.models.training import Prepared, Schedule, shuffled, train
from stillfit.studies.dead_regions import (
    FACTORIES,
    FEATURES,
    TRACKS,
    TrackClassifier,
    as_tracks,
    dead_regions,
    track_rows,
)


@pytest.fixture(scope="module")
def events():
    return dead_regions(load(), seed=2, events=60, test_events=30)


@pytest.fixture(scope="module")
def tracks(events):
    return as_tracks(events)


def test_the_ten_regions_come_in_the_authors_order(events):
    assert [one.name for one in events] == [f"region {k}" for k in range(10)]
    for number, one in enumerate(events):
        assert len(one.train) == 60 and len(one.test) == 30
        assert set(one.train.conditions) == set(one.test.conditions) == {one.name}
        assert set(one.train.times) == {float(number)}
    ids = np.concatenate([s.ids for one in events for s in (one.train, one.test)])
    assert len(np.unique(ids)) == 900


def test_no_track_is_left_in_a_dead_region_and_elsewhere_they_are(tracks):
    for one in tracks:
        region = DEAD_REGIONS[one.name.removeprefix("region ")]
        for side in (one.train, one.test):
            eta, phi = side.inputs["eta"], side.inputs["phi"]
            if region is None:
                assert len(side) > 100 * 30
                continue
            inside = (eta > region.eta[0]) & (eta < region.eta[1])
            inside &= (phi > region.phi[0]) & (phi < region.phi[1])
            assert not inside.any() and len(side) > 100 * 30


def test_lost_stubs_lose_fewer_tracks_than_a_mask():
    """Tracks of low pT bend round a region of stubs."""
    share = {}
    for drops in ("tracks", "stubs"):
        one = dead_regions(load(), seed=2, events=40, test_events=1, drops=drops, regions=("3",))
        rows = track_rows(one[0].train)
        inside = np.abs(rows.inputs["phi"]) < 0.6
        share[drops] = inside.mean()
    assert share["tracks"] == 0 < share["stubs"] < 0.05


def test_the_same_seed_gives_the_same_events(events):
    again = dead_regions(load(), seed=2, events=60, test_events=30, regions=("0", "1"))
    other = dead_regions(load(), seed=3, events=60, test_events=30, regions=("0",))
    for one, two in zip(events[:2], again, strict=True):
        for side in ("train", "test"):
            a, b = getattr(one, side).inputs["pt"], getattr(two, side).inputs["pt"]
            np.testing.assert_array_equal(a.values, b.values)
    assert len(other[0].train.inputs["pt"].values) != len(events[0].train.inputs["pt"].values)


def test_rows_are_the_tracks_with_their_distance_to_the_histogram_vertex(events, tracks):
    whole, rows = events[0].train, tracks[0].train
    finder = FastHisto(position="centre", cuts=False)
    model = Model(finder, VertexTask(), Architecture("l1t.fasthisto"))
    z = model.predict(whole.inputs)[0].mean
    column = whole.inputs["z0"]
    assert isinstance(column, Ragged) and tuple(rows.inputs) == FEATURES
    for event in (0, 7, 59):
        mine = rows.take(np.flatnonzero(rows.ids // TRACKS == whole.ids[event]))
        expected = column[event : event + 1].values
        np.testing.assert_array_equal(mine.inputs["z0"], expected)
        np.testing.assert_allclose(mine.inputs["dz"], expected - z[event], atol=1e-5)
        flags = whole.targets["is_pv"][event : event + 1].values
        np.testing.assert_array_equal(mine.targets["y"], flags)
    assert np.all(np.diff(rows.ids) > 0) and rows.inputs["pt"].max() <= 128.0


def test_events_before_the_first_id_keep_their_tracks_together(events):
    """Ids may be negative, as those of first events are."""
    before = replace(events[0].test, ids=events[0].test.ids - 1000)
    rows = track_rows(before)
    np.testing.assert_array_equal(np.unique(rows.ids // TRACKS), before.ids)


def test_the_classifier_is_the_authors(tracks):
    network = build(Architecture("studies.tracks"), FACTORIES)
    assert isinstance(network, TrackClassifier)
    assert sum(p.numel() for p in network.parameters()) == 5 * 25 + 25 + 25 * 30 + 30 + 30 + 1
    assert count_macs(network) == 5 * 25 + 25 * 30 + 30 == 905


def test_its_loss_is_binary_cross_entropy():
    torch.manual_seed(0)
    network = TrackClassifier()
    x, y = torch.randn(50, 5), torch.randint(0, 2, (50,))
    task = Classification(features=FEATURES, classes=2)
    loss = task.loss(network, {"x": x}, {"y": y})
    logit = MLP.forward(network, x)[:, 0]
    expected = functional.binary_cross_entropy_with_logits(logit, y.float())
    torch.testing.assert_close(loss, expected)


def test_it_learns_which_tracks_are_primary(tracks):
    one = tracks[0]
    task = Classification(features=FEATURES, classes=2)
    architecture = Architecture("studies.tracks")
    network = task.fresh(build(architecture, FACTORIES), one.train, seed=1)
    model = Model(network, task, architecture)
    draw = shuffled(Prepared.of(model, one.train), 500, np.random.default_rng(0))
    for _ in train(model, draw, Schedule(steps=200, batch=500, rate=0.01)):
        pass
    chance = model.predict(one.test.inputs)[0].probabilities[:, 1]
    primary = one.test.targets["y"].astype(bool)
    ranks = np.argsort(np.argsort(chance, kind="stable"), kind="stable")
    n = primary.sum()
    auc = (ranks[primary].sum() - n * (n - 1) / 2) / (n * (~primary).sum())
    assert auc > 0.85


def test_what_cannot_be_is_refused(events):
    with pytest.raises(DataError, match="there is no dead region '12'; there are 0, 1, 2"):
        dead_regions(load(), seed=1, events=1, test_events=1, regions=("12",))
    bare = replace(events[0].test, targets={"z0": events[0].test.targets["z0"]})
    with pytest.raises(DataError, match="the labels lack is_pv; they hold z0"):
        track_rows(bare)
