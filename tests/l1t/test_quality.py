"""The frozen track-quality classifier: exact evaluation, its file, training, a real sample."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stillfit.core.errors import DataError
from stillfit.l1t import library, quality
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import nominal
from stillfit.l1t.detector import simulate

# A sample that is not ours to ship: where STILLFIT_CMS_TRACKS says, or in a folder beside the code.
PLACES = [
    Path(os.environ.get("STILLFIT_CMS_TRACKS", "cms-tracks.csv")),
    *(
        parent / "shared/data/cms-gtt-tracks/full_precision_input.csv"
        for parent in Path(__file__).parents[2:4]
    ),
]


@pytest.fixture(scope="module")
def tracks():
    rng = np.random.default_rng(5)
    particles = compose(
        library.load(), n=300, pileup=200.0, processes={"ttbar": 1.0}, rng=rng, split="test"
    )
    return simulate(particles, nominal(), rng)


def auc(score, genuine):
    """Area under the receiver operating characteristic, by ranks."""
    ranks = np.argsort(np.argsort(score, kind="stable"), kind="stable")
    return (ranks[genuine].mean() - (genuine.sum() - 1) / 2) / (~genuine).sum()


def rows(tracks, index):
    names = ("chi2rphi", "chi2rz", "bendchi2", "nstub", "hitpattern", "eta", "pt", "z0")
    return SimpleNamespace(**{name: getattr(tracks, name)[index] for name in names})


def test_the_forward_pass_is_the_plain_formula(tracks):
    x = quality.features(tracks).astype(np.float64)
    w = quality.frozen()
    hidden = np.maximum(np.maximum(x @ w.w_1 + w.b_1, 0) @ w.w_2 + w.b_2, 0)
    expected = 1 / (1 + np.exp(-(hidden @ w.w_3 + w.b_3)[:, 0]))
    np.testing.assert_allclose(quality.probability(tracks), expected, atol=2e-6)
    np.testing.assert_array_equal(tracks.mva, quality.probability(tracks))


def test_a_tracks_quality_does_not_depend_on_its_neighbours(tracks):
    order = np.random.default_rng(1).permutation(len(tracks.pt))[:1001]
    np.testing.assert_array_equal(quality.probability(rows(tracks, order)), tracks.mva[order])
    np.testing.assert_array_equal(
        quality.probability(rows(tracks, order[:1])), tracks.mva[order[:1]]
    )
    assert len(quality.probability(rows(tracks, order[:0]))) == 0


def test_features_say_what_they_are_called():
    track = SimpleNamespace(
        chi2rphi=np.array([2.0], np.float32),
        chi2rz=np.array([6.0], np.float32),
        bendchi2=np.array([0.5], np.float32),
        nstub=np.array([4], np.uint8),
        hitpattern=np.array([0b0110110], np.uint8),  # first missing, one gap inside
        eta=np.array([-2.0], np.float32),
        pt=np.array([4.0], np.float32),
        z0=np.array([-10.0], np.float32),
    )
    expected = [0.5, 0.75, 0.25, -0.5, 1.0, 1.0, 0.8, 0.5, 1.0]
    np.testing.assert_allclose(quality.features(track)[0], expected, rtol=1e-6)
    assert len(quality.FEATURES) == len(expected)


def test_the_index_has_eight_rising_bins_closed_below():
    edges = np.array(quality.EDGES, np.float32)
    assert edges[0] == 0 and np.all(np.diff(edges) > 0) and edges[-1] < 1
    np.testing.assert_array_equal(quality.index(edges), np.arange(8))
    below = np.nextafter(edges[1:], np.float32(0))
    np.testing.assert_array_equal(quality.index(below), np.arange(7))
    assert quality.index(np.array([1.0], np.float32)).dtype == np.uint8


def test_the_index_separates_genuine_tracks_from_fakes(tracks):
    genuine = tracks.is_fake == 0
    assert auc(tracks.mva, genuine) > 0.98
    assert np.mean(tracks.quality[genuine] >= 4) > 0.8
    assert np.mean(tracks.quality[~genuine] <= 1) > 0.8
    assert set(np.unique(tracks.quality)) == set(range(8))


def test_training_is_reproducible_and_finds_the_fakes(tracks):
    training = quality.Training(epochs=2, batch=512)
    first, again = quality.train(tracks, training), quality.train(tracks, training)
    for name in quality.Weights._fields:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert auc(quality.probability(tracks, first), tracks.is_fake == 0) > 0.97


def test_training_needs_both_kinds_of_tracks(tracks):
    only = rows(tracks, tracks.is_fake == 0)
    only.is_fake = np.zeros(len(only.pt), np.uint8)
    with pytest.raises(DataError, match="tracks with 0 fakes cannot train a quality classifier"):
        quality.train(only, quality.Training())


def test_a_saved_classifier_is_the_same_bit_for_bit(tmp_path):
    quality.save(quality.frozen(), tmp_path / "q.json", {"note": "copy"})
    again = quality.load(tmp_path / "q.json")
    for name in quality.Weights._fields:
        np.testing.assert_array_equal(getattr(again, name), getattr(quality.frozen(), name))


def test_a_file_that_is_no_classifier_is_refused(tmp_path):
    path = tmp_path / "q.json"
    with pytest.raises(DataError, match="does not hold a track-quality classifier"):
        quality.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"make one with quality\.train and quality\.save"):
        quality.load(path)
    path.write_text(quality.FROZEN.read_text().replace('"b_3": [', '"b_3": [1.0, '))
    with pytest.raises(DataError, match="holds layers of shapes"):
        quality.load(path)


@pytest.fixture(scope="module")
def sample():
    """874 tracks simulated by the CMS collaboration: half fakes, half genuine."""
    place = next((place for place in PLACES if place.exists()), None)
    if place is None:
        pytest.skip("no CMS track sample: set STILLFIT_CMS_TRACKS to its path")
    table = np.loadtxt(place, delimiter=",")
    slope, z0, hit = table[:, 17], table[:, 18], table[:, 5:16] > 0
    radii, disks = np.array([25, 37, 52, 69, 86, 108]), np.array([131, 155, 185, 221, 265])
    r = (disks - z0[:, None]) / np.maximum(slope, 1e-3)[:, None]
    barrel = np.abs(radii * slope[:, None] + z0[:, None]) < 120
    crossed = np.concatenate([barrel, (r > 22) & (r < 110)], 1)
    slot = np.cumsum(crossed, 1) - 1
    pattern = np.where(crossed & hit & (slot < 7), 1 << np.clip(slot, 0, 6), 0).sum(1)
    freedom = table[:, 4] - 2
    return SimpleNamespace(
        chi2rphi=(table[:, 2] / freedom).astype(np.float32),
        chi2rz=(table[:, 3] / freedom).astype(np.float32),
        bendchi2=table[:, 1].astype(np.float32),
        nstub=table[:, 4].astype(np.uint8),
        hitpattern=pattern.astype(np.uint8),
        eta=np.arcsinh(slope).astype(np.float32),
        pt=(0.5 * 0.01139 / table[:, 16]).astype(np.float32),  # the column holds 1 / (2 R)
        z0=z0.astype(np.float32),
        is_fake=(table[:, -1] == 0).astype(np.uint8),
    )


def test_the_frozen_classifier_works_on_the_cms_sample(sample):
    genuine = sample.is_fake == 0
    probability = quality.probability(sample)
    assert auc(probability, genuine) > 0.95
    ours = [0.01, 0.02, 0.03, 0.05, 0.06, 0.09, 0.10, 0.64]
    theirs = np.bincount(quality.index(probability[genuine]), minlength=8) / genuine.sum()
    np.testing.assert_allclose(theirs, ours, atol=0.06)


def test_genuine_tracks_and_fakes_look_like_those_of_cms(sample, tracks):
    """Medians agree within a factor 1.6, each separation within 0.08 of the CMS one."""
    ours, theirs = tracks.is_fake == 0, sample.is_fake == 0
    for name in ("chi2rphi", "chi2rz", "bendchi2", "pt"):
        a, b = getattr(tracks, name), getattr(sample, name)
        for mine, cms in ((ours, theirs), (~ours, ~theirs)):
            ratio = np.median(a[mine]) / np.median(b[cms])
            assert 1 / 1.6 < ratio < 1.6, (name, ratio)
        sign = 1 if name == "pt" else -1
        assert abs(auc(sign * a, ours) - auc(sign * b, theirs)) < 0.08, name
    for mine, cms in ((ours, theirs), (~ours, ~theirs)):
        shares = [
            np.bincount(t.nstub[k], minlength=7)[4:] / k.sum()
            for t, k in ((tracks, mine), (sample, cms))
        ]
        np.testing.assert_allclose(*shares, atol=0.12)
    eta = [
        np.histogram(np.abs(t.eta[k]), (0, 0.8, 1.6, 2.4))[0] / k.sum()
        for t, k in ((tracks, ours), (sample, theirs))
    ]
    np.testing.assert_allclose(*eta, atol=0.06)
