"""Laws of composed events."""

import numpy as np
import pytest
from scipy.stats import kstest

from stillfit.core.errors import ConfigError
from stillfit.l1t import library
from stillfit.l1t.composition import compose


@pytest.fixture(scope="module")
def lib():
    return library.load()


def events(lib, seed=1, **change):
    values = {"n": 300, "pileup": 40.0, "processes": {"ttbar": 1.0}}
    return compose(lib, rng=np.random.default_rng(seed), **{**values, **change})


def event_of(particles):
    return np.repeat(np.arange(len(particles)), particles.counts)


def test_the_number_of_interactions_is_poisson(lib):
    for pileup in (5.0, 200.0):
        counts = events(lib, n=2000, pileup=pileup).pileup
        error = np.sqrt(pileup / 2000)
        assert counts.mean() == pytest.approx(pileup, abs=4 * error)
        assert counts.var() == pytest.approx(pileup, rel=0.15)


def test_tracks_per_event_are_those_of_the_ingredients(lib):
    made = events(lib, n=2000, pileup=200.0)
    tracks = np.sum((made.pt > 2) & (np.abs(made.eta) < 2.4)) / 2000
    assert tracks == pytest.approx(200 * 0.910 + 30.0, abs=4 * 30 / np.sqrt(2000))


def test_without_pileup_an_event_is_its_hard_scatter(lib):
    made = events(lib, pileup=0.0)
    assert made.is_pv.all()
    assert not made.interaction.any()
    assert not made.pileup.any()


def test_vertices_are_normal_around_the_beam_spot_and_prompt_tracks_point_to_them(lib):
    made = events(lib, n=3000, pileup=3.0, z_beam=-1.5, sigma_z=4.0)
    assert kstest(made.pv_z, "norm", (-1.5, 4.0)).pvalue > 0.01
    prompt = (made.r_prod == 0) & (made.is_pv == 1)
    # Forward decays within a micrometre of the beam count as prompt: 20 um along z.
    np.testing.assert_allclose(made.z0[prompt], made.pv_z[event_of(made)[prompt]], atol=2e-3)


def test_without_a_width_all_prompt_tracks_come_from_one_point(lib):
    made = events(lib, z_beam=2.0, sigma_z=0.0)
    np.testing.assert_allclose(made.z0[made.r_prod == 0], 2.0, atol=2e-3)


def test_values_per_event_are_used_event_by_event(lib):
    pileup = np.linspace(0, 100, 300)
    made = events(lib, pileup=pileup, z_beam=np.arange(300.0), sigma_z=np.zeros(300))
    np.testing.assert_array_equal(made.pv_z, np.arange(300, dtype=np.float32))
    assert np.corrcoef(made.pileup, pileup)[0, 1] > 0.95
    assert made.pileup[0] == 0


def test_turning_and_mirroring_keep_what_they_must_keep(lib):
    """pT, |eta|, d0, charge, kind and eta * z0 of every interaction are those of the library."""
    made = events(lib, n=200, pileup=0.0, sigma_z=0.0)
    rows = lib.interactions("ttbar", "train")
    first_pt = {}
    for row in rows:
        a, b = lib.offsets[row], lib.offsets[row + 1]
        if b > a:
            first_pt.setdefault((b - a, lib.pt[a]), []).append(a)
    flips = 0
    for event in range(len(made)):
        mine = slice(made.offsets[event], made.offsets[event + 1])
        starts = first_pt[made.counts[event], made.pt[mine][0]]
        a = next(a for a in starts if lib.pt[a + 1] == made.pt[mine][1])
        theirs = slice(a, a + made.counts[event])
        for name in ("pt", "d0", "r_prod", "charge", "kind"):
            np.testing.assert_array_equal(getattr(made, name)[mine], getattr(lib, name)[theirs])
        sign = made.eta[mine][0] / lib.eta[theirs][0]
        flips += sign < 0
        np.testing.assert_array_equal(made.eta[mine], sign * lib.eta[theirs])
        np.testing.assert_array_equal(made.z0[mine], sign * lib.z0[theirs])
        turn = made.phi[mine] - lib.phi[theirs]
        np.testing.assert_allclose(np.cos(turn - turn[0]), 1, atol=1e-6)
    assert 70 < flips < 130


def test_phi_is_uniform_and_wrapped(lib):
    made = events(lib, n=3000, pileup=0.0)
    assert made.phi.min() >= -np.float32(np.pi)
    assert made.phi.max() < np.float32(np.pi)
    first = made.phi[made.offsets[:-1][made.counts > 0]]
    assert kstest(first, "uniform", (-np.pi, 2 * np.pi)).pvalue > 0.01


def test_the_mixture_has_its_shares(lib):
    made = events(lib, n=4000, pileup=0.0, processes={"ttbar": 3.0, "zmumu": 1.0, "hbb": 0.0})
    assert made.processes == ("ttbar", "zmumu", "hbb")
    share = np.bincount(made.process, minlength=3) / 4000
    assert share[0] == pytest.approx(0.75, abs=4 * np.sqrt(0.1875 / 4000))
    assert share[2] == 0
    mean = made.counts[made.process == 0].mean() / made.counts[made.process == 1].mean()
    assert mean > 3


def test_a_hard_scatter_without_particles_is_still_an_event(lib):
    made = events(lib, n=2000, pileup=0.0, processes={"zmumu": 1.0})
    assert (made.counts == 0).any()
    assert len(made.pv_z) == len(made) == 2000
    assert np.isfinite(made.pv_z).all()


def test_the_order_of_interactions_says_nothing_about_the_hard_scatter(lib):
    made = events(lib, n=3000, pileup=30.0)
    owner = event_of(made)
    place = np.full(3000, np.nan)
    place[owner[made.is_pv == 1]] = made.interaction[made.is_pv == 1]
    last = np.zeros(3000)
    np.maximum.at(last, owner, made.interaction)
    relative = (place + 0.5) / (last + 1)
    assert np.nanmean(relative) == pytest.approx(0.5, abs=4 * 0.3 / np.sqrt(3000))


def test_no_split_shares_an_interaction_with_another(lib):
    """Every hard scatter of a split's events is found in that split of the library alone."""
    made = {s: events(lib, n=500, pileup=0.0, split=s) for s in library.SPLITS}
    owned = {}
    for split in library.SPLITS:
        rows = lib.interactions("ttbar", split)
        rows = rows[lib.counts[rows] > 2]
        starts = lib.offsets[rows]
        owned[split] = set(zip(*(lib.pt[starts + k] for k in range(3)), strict=True))
    for split, particles in made.items():
        starts = particles.offsets[:-1][particles.counts > 2]
        seen = set(zip(*(particles.pt[starts + k] for k in range(3)), strict=True))
        assert seen <= owned[split]
        assert all(not seen & owned[other] for other in owned if other != split)


def test_composing_is_a_pure_function_of_its_generator(lib):
    before = lib.pt.copy(), lib.z0.copy()
    a, b, c = events(lib, seed=5), events(lib, seed=5), events(lib, seed=6)
    for name in ("offsets", "pt", "eta", "phi", "z0", "is_pv", "interaction", "pv_z", "pileup"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert not np.array_equal(a.pv_z, c.pv_z)
    np.testing.assert_array_equal(lib.pt, before[0])
    np.testing.assert_array_equal(lib.z0, before[1])


def test_types_are_compact_and_offsets_fit(lib):
    made = events(lib)
    assert made.offsets.dtype == np.int64
    assert made.offsets[-1] == len(made.pt)
    for name in ("pt", "eta", "phi", "z0", "d0", "r_prod", "pv_z"):
        assert getattr(made, name).dtype == np.float32
    assert made.nbytes < 40 * len(made.pt)


def test_errors_name_the_argument(lib):
    with pytest.raises(ConfigError, match="n must be at least 1 event, got 0"):
        events(lib, n=0)
    with pytest.raises(ConfigError, match=r"pileup must be finite and not below 0, got -1.0"):
        events(lib, pileup=-1.0)
    with pytest.raises(ConfigError, match="z_beam must be finite, got nan"):
        events(lib, z_beam=np.nan)
    with pytest.raises(ConfigError, match=r"sigma_z must be one number or one per event \(300\)"):
        events(lib, sigma_z=np.ones(3))
    with pytest.raises(ConfigError, match="at least one kind of hard scatter a positive weight"):
        events(lib, processes={})
    with pytest.raises(ConfigError, match="has no process 'higgs'"):
        events(lib, processes={"higgs": 1.0})
    with pytest.raises(ConfigError, match="there is no split 'all'"):
        events(lib, split="all")
