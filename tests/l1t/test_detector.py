"""The stub-level simulation at nominal conditions: closed forms, the specified figures, truth."""

import dataclasses

import numpy as np
import pytest
from numba import njit

from stillfit.core.arrays import n_events
from stillfit.core.errors import DataError, ShapeError
from stillfit.l1t import crossing as cross
from stillfit.l1t import fitting, geometry, library
from stillfit.l1t.composition import Particles, compose
from stillfit.l1t.conditions import Conditions, nominal
from stillfit.l1t.detector import INPUTS, simulate

CLEAN = Conditions(noise=0.0)  # no unrelated stubs: no fakes, no wrong stubs on true tracks


def gun(n, per_event, rng, *, pt=(2.0, 50.0), eta=2.5, kind=1, z_width=5.3):
    """Particles without interactions: flat in 1/pT, eta and phi."""
    size = n * per_event
    single = {name: np.zeros(size, np.float32) for name in ("d0", "r_prod")}
    low, high = 1 / pt[1], 1 / pt[0]
    return Particles(
        offsets=np.arange(n + 1, dtype=np.int64) * per_event,
        pt=(1 / rng.uniform(low, high, size)).astype(np.float32),
        eta=rng.uniform(-eta, eta, size).astype(np.float32),
        phi=rng.uniform(-np.pi, np.pi, size).astype(np.float32),
        z0=rng.normal(0, z_width, size).astype(np.float32),
        charge=rng.choice(np.array([-1, 1], np.int8), size),
        kind=np.full(size, kind, np.int8),
        is_pv=(rng.random(size) < 0.1).astype(np.uint8),
        interaction=np.zeros(size, np.int16),
        pv_z=rng.normal(0, z_width, n).astype(np.float32),
        process=np.zeros(n, np.int8),
        pileup=np.zeros(n, np.int32),
        processes=("gun",),
        **single,
    )


def crossings(pileup, n, seed):
    conditions = Conditions(pileup=pileup)
    return compose(
        library.load(),
        n=n,
        pileup=pileup,
        sigma_z=conditions.sigma_z,
        processes=conditions.processes.weights(),
        rng=np.random.default_rng(seed),
    )


def source(particles, tracks):
    """The particle behind each track; rows of fakes point at 0 and must not be used."""
    events = np.repeat(np.arange(len(tracks)), tracks.counts)
    return np.where(tracks.is_fake == 0, particles.offsets[events] + tracks.particle, 0)


def width(values):
    """Half the range of the central 68 %: the width of the core, blind to tails."""
    low, high = np.percentile(values, [15.87, 84.13])
    return (high - low) / 2


def parametrised(eta):
    return 0.09867 + 0.0007 * abs(eta) + 0.0587 * eta**2


@pytest.fixture(scope="module")
def nominal_events():
    particles = crossings(200.0, 1200, seed=3)
    return particles, simulate(particles, nominal(), np.random.default_rng(4))


@njit
def trace_one(phi0, kappa, slope, z0, d0, hits, at):
    return cross.trace(phi0, kappa, slope, z0, d0, hits, at)


@njit
def fit_one(m, kappa, hits):
    return fitting.fit(m, kappa, hits)


def test_crossings_lie_on_the_helix_and_on_the_layers():
    rng = np.random.default_rng(1)
    for _ in range(300):
        kappa = rng.choice([-1, 1]) * geometry.CURVATURE / rng.uniform(1.6, 50)
        phi0, slope, z0 = rng.uniform(-3, 3), np.sinh(rng.uniform(-2.5, 2.5)), rng.normal(0, 5)
        hits = np.zeros((cross.HIT_ROWS, cross.SCRATCH))
        at = np.zeros((cross.AT_ROWS, cross.SCRATCH), np.int64)
        n = trace_one(phi0, kappa, slope, z0, 0.0, hits, at)
        assert 1 <= n <= 7
        r, s, z, phi = (hits[row, :n] for row in (cross.R, cross.S, cross.Z, cross.PHI))
        # A circle through the beam line that starts along phi0 and turns clockwise for kappa > 0.
        x = (np.sin(kappa * s - phi0) + np.sin(phi0)) / kappa
        y = (np.cos(kappa * s - phi0) - np.cos(phi0)) / kappa
        np.testing.assert_allclose(np.hypot(x, y), r, rtol=1e-4)
        turn = np.arctan2(y, x) - phi
        np.testing.assert_allclose(np.sin(turn), 0, atol=1e-4)
        np.testing.assert_allclose(z0 + slope * s, z, atol=1e-6)
        layer = at[cross.LAYER, :n]
        barrel = layer < geometry.N_BARREL
        np.testing.assert_array_equal(r[barrel], np.array(geometry.BARREL_R)[layer[barrel]])
        np.testing.assert_allclose(
            np.abs(z[~barrel]), np.array(geometry.DISK_Z)[layer[~barrel] - 6]
        )
        assert np.all(np.diff(r) > 0) and np.all(np.abs(z[barrel]) < geometry.BARREL_HALF_LENGTH)


def test_a_crossing_finds_the_module_it_lies_on():
    grid = geometry._grid()
    rng = np.random.default_rng(2)
    for _ in range(300):
        hits = np.zeros((cross.HIT_ROWS, cross.SCRATCH))
        at = np.zeros((cross.AT_ROWS, cross.SCRATCH), np.int64)
        kappa, slope = geometry.CURVATURE / rng.uniform(-9, 9), np.sinh(rng.uniform(-2.4, 2.4))
        n = trace_one(rng.uniform(-7, 7), kappa, slope, rng.normal(0, 5), 0.0, hits, at)
        module = at[cross.MODULE, :n]
        np.testing.assert_array_equal(grid.layer[module], at[cross.LAYER, :n])
        away = (grid.phi[module] - hits[cross.PHI, :n] + np.pi) % (2 * np.pi) - np.pi
        assert np.all(np.abs(away) <= grid.half_phi[module] * 1.0001)
        barrel = grid.layer[module] < geometry.N_BARREL
        along = np.where(
            barrel, grid.z[module] - hits[cross.Z, :n], grid.r[module] - hits[cross.R, :n]
        )
        assert np.all(np.abs(along) <= grid.half_size[module] * 1.0001)


def test_the_fits_are_weighted_least_squares():
    rng = np.random.default_rng(3)
    for m in (4, 5, 6):
        r = np.sort(rng.uniform(25, 108, m))
        kappa = geometry.CURVATURE / rng.uniform(2, 9)
        x = 0.5 * kappa * r
        hits = np.zeros((cross.HIT_ROWS, cross.SCRATCH))
        hits[cross.R, :m], hits[cross.X, :m] = r, x
        hits[cross.S, :m] = np.arcsin(x) / (0.5 * kappa)
        for row in (cross.E_PHI, cross.E_Z):
            hits[row, :m] = rng.normal(0, 0.05, m)
        for row in (cross.W_PHI, cross.W_Z):
            hits[row, :m] = rng.uniform(1, 1e4, m)
        hits[cross.LEVER_Q, :m] = 20.0
        d_phi, d_kappa, d_d0, d_z0, d_slope, chi2_phi, chi2_z, _, far = fit_one(m, kappa, hits)

        curve = -(r**2) / 2 * (1 + x**2 / 2 + 0.375 * x**4)
        root = np.sqrt(hits[cross.W_PHI, :m])
        design = np.stack([r, curve], 1)
        two, chi2, *_ = np.linalg.lstsq(design * root[:, None], hits[cross.E_PHI, :m] * root)
        np.testing.assert_allclose([d_phi, d_kappa], two, rtol=1e-6)
        np.testing.assert_allclose(chi2_phi, chi2[0] / (m - 2), rtol=1e-6)
        residual = hits[cross.E_PHI, :m] - design @ two
        np.testing.assert_allclose(far, np.abs(residual).max(), rtol=1e-6)
        three = np.stack([r, curve, -np.ones(m)], 1)
        full, *_ = np.linalg.lstsq(three * root[:, None], hits[cross.E_PHI, :m] * root)
        np.testing.assert_allclose(d_d0, full[2], rtol=1e-5)

        root = np.sqrt(hits[cross.W_Z, :m])
        line = np.stack([np.ones(m), hits[cross.S, :m]], 1)
        two, chi2, *_ = np.linalg.lstsq(line * root[:, None], hits[cross.E_Z, :m] * root)
        np.testing.assert_allclose([d_z0, d_slope], two, rtol=1e-6)
        np.testing.assert_allclose(chi2_z, chi2[0] / (m - 2), rtol=1e-6)


def test_three_ps_points_give_nine_tenths_of_a_millimetre_at_eta_zero():
    particles = gun(300, 200, np.random.default_rng(5), pt=(40, 60), eta=0.1)
    tracks = simulate(particles, CLEAN, np.random.default_rng(6))
    all_ps = tracks.layers & 0b111 == 0b111
    off = (tracks.z0 - particles.z0[source(particles, tracks)])[all_ps]
    r = np.array([25.0, 37.0, 52.0])
    single = 0.15 / np.sqrt(12)
    expected = single * np.sqrt(1 / 3 + r.mean() ** 2 / ((r - r.mean()) ** 2).sum())
    assert 0.085 < expected < 0.095
    assert np.std(off) == pytest.approx(expected, rel=0.03)


def test_pull_of_d0_is_the_displacement():
    particles = gun(100, 200, np.random.default_rng(7), pt=(10, 50), eta=1.0)
    moved = dataclasses.replace(particles, d0=particles.d0 + np.float32(0.1))
    tracks = simulate(moved, CLEAN, np.random.default_rng(8))
    assert np.median(tracks.d0) == pytest.approx(0.1, abs=0.003)
    assert width(tracks.d0) < 0.1


def test_sigma_z0_follows_the_parametrisation_within_a_quarter(nominal_events):
    particles, tracks = nominal_events
    genuine = tracks.is_fake == 0
    row = source(particles, tracks)
    eta = np.abs(particles.eta[row])
    off = tracks.z0 - particles.z0[row]
    for low in np.arange(0.0, 2.4, 0.2):
        rows = genuine & (eta >= low) & (eta < low + 0.2)
        assert width(off[rows]) == pytest.approx(parametrised(low + 0.1), rel=0.25), low
        assert abs(np.median(off[rows])) < 0.02
    edge = genuine & (eta > 2.3)
    assert width(off[edge]) == pytest.approx(0.44, rel=0.25)


def test_pt_resolution_is_one_percent_in_the_barrel_and_grows_forward(nominal_events):
    particles, tracks = nominal_events
    row = source(particles, tracks)
    genuine = (tracks.is_fake == 0) & (particles.kind[row] != 0)
    relative = tracks.pt / particles.pt[row] - 1
    eta = np.abs(particles.eta[row])
    barrel, forward = width(relative[genuine & (eta < 0.8)]), width(relative[genuine & (eta > 2)])
    assert 0.004 < barrel < 0.012
    assert 1.5 < forward / barrel < 4


def test_multiple_scattering_matters_at_two_gev():
    rng = np.random.default_rng(9)
    widths = []
    for pt in ((2.1, 2.5), (40, 60)):
        particles = gun(150, 200, rng, pt=pt, eta=2.2)
        tracks = simulate(particles, CLEAN, np.random.default_rng(1))
        row = source(particles, tracks)
        forward = np.abs(particles.eta[row]) > 1.5
        widths.append(width((tracks.z0 - particles.z0[row])[forward]))
    assert 1.1 < widths[0] / widths[1] < 1.6


def test_there_are_about_two_hundred_tracks_a_tenth_of_them_fake(nominal_events):
    _, tracks = nominal_events
    assert 180 < tracks.counts.mean() < 230
    assert 0.05 < tracks.is_fake.mean() < 0.20
    assert tracks.pt.min() >= 2.0 and np.abs(tracks.eta).max() < 2.4
    assert np.abs(tracks.phi).max() <= np.float32(np.pi) and np.abs(tracks.z0).max() < 20.47


@pytest.mark.parametrize(("kind", "low", "high"), [(1, 0.935, 0.97), (2, 0.90, 0.95)])
def test_plateau_efficiency_and_turn_on(kind, low, high):
    particles = gun(400, 200, np.random.default_rng(10), pt=(1.5, 8), eta=2.3, kind=kind)
    tracks = simulate(particles, nominal(), np.random.default_rng(11))
    found = np.zeros(len(particles.pt), bool)
    found[source(particles, tracks)[tracks.is_fake == 0]] = True

    def efficiency(a, b):
        return found[(particles.pt >= a) & (particles.pt < b)].mean()

    plateau = efficiency(3, 8)
    assert low < plateau < high
    assert efficiency(1.5, 1.9) < 0.01
    assert 0.5 * plateau < efficiency(2.0, 2.1) < 0.95 * plateau
    assert efficiency(2.5, 3) > 0.97 * plateau


def test_electrons_radiate_and_are_found_less_often():
    shares = []
    for kind in (0, 1):
        particles = gun(100, 200, np.random.default_rng(12), pt=(3, 6), eta=2.0, kind=kind)
        tracks = simulate(particles, CLEAN, np.random.default_rng(13))
        shares.append(len(tracks.pt))
        if kind == 0:
            relative = tracks.pt / particles.pt[source(particles, tracks)]
    assert shares[0] < 0.95 * shares[1]
    assert np.mean(relative < 0.95) > 5 * np.mean(relative > 1.05)


def test_particles_born_outside_leave_no_stub_inside():
    particles = gun(50, 200, np.random.default_rng(14), eta=0.8)
    late = dataclasses.replace(particles, r_prod=particles.r_prod + np.float32(30.0))
    tracks = simulate(late, CLEAN, np.random.default_rng(15))
    assert len(tracks.pt) > 0 and not np.any(tracks.layers & 1)


def test_stubs_patterns_and_chi2_are_those_of_good_tracks(nominal_events):
    _, tracks = nominal_events
    genuine = tracks.is_fake == 0
    stubs = np.array([bin(bits).count("1") for bits in range(2048)])
    np.testing.assert_array_equal(stubs[tracks.layers], tracks.nstub)
    np.testing.assert_array_equal(stubs[tracks.hitpattern], tracks.nstub)
    assert tracks.hitpattern.max() < 128
    shares = np.bincount(tracks.nstub[genuine], minlength=7)[4:] / genuine.sum()
    np.testing.assert_allclose(shares, [0.09, 0.28, 0.63], atol=0.06)  # CMS sample, see the docs
    assert 0.3 < np.median(tracks.chi2rphi[genuine]) < 1.0
    assert 0.7 < np.median(tracks.chi2rz[genuine]) < 1.2
    assert 0.7 < np.median(tracks.bendchi2[genuine]) < 1.1
    assert np.percentile(tracks.chi2rz[genuine], 95) < 4


def test_fakes_have_few_stubs_high_chi2_high_pt_and_lie_forward(nominal_events):
    _, tracks = nominal_events
    fake = tracks.is_fake == 1
    assert np.mean(tracks.nstub[fake] == 4) > 0.7
    for name in ("chi2rphi", "chi2rz", "bendchi2"):
        values = getattr(tracks, name)
        assert np.median(values[fake]) > 2.5 * np.median(values[~fake]), name
    assert np.median(tracks.pt[fake]) > 1.2 * np.median(tracks.pt[~fake])
    eta = np.abs(tracks.eta)
    assert fake[(eta > 1.2) & (eta < 2.0)].mean() > 1.2 * fake[eta < 1.2].mean()


def test_fakes_grow_faster_than_pile_up():
    shares = []
    for pileup in (100.0, 200.0, 280.0):
        particles = crossings(pileup, 200, seed=16)
        tracks = simulate(particles, Conditions(pileup=pileup), np.random.default_rng(17))
        shares.append(tracks.is_fake.mean())
    assert shares[0] < 0.6 * shares[1] and 1.3 * shares[1] < shares[2] < 0.5


def test_a_few_percent_of_tracks_are_duplicates(nominal_events):
    particles, tracks = nominal_events
    row = source(particles, tracks)[tracks.is_fake == 0]
    assert 0.01 < 1 - len(np.unique(row)) / len(row) < 0.04


def test_truth_points_at_the_particle(nominal_events):
    particles, tracks = nominal_events
    genuine = tracks.is_fake == 0
    row = source(particles, tracks)[genuine]
    np.testing.assert_array_equal(tracks.is_pv[genuine], particles.is_pv[row])
    assert np.all(tracks.is_pv[~genuine] == 0) and np.all(tracks.particle[~genuine] == -1)
    turn = np.abs(np.sin(tracks.phi[genuine] - particles.phi[row]))
    assert np.median(turn) < 0.002 and np.percentile(turn, 95) < 0.02
    assert np.percentile(np.abs(tracks.eta[genuine] - particles.eta[row]), 99) < 0.1
    np.testing.assert_array_equal(tracks.pv_z, particles.pv_z)


def test_inputs_and_targets_have_one_row_per_event(nominal_events):
    _, tracks = nominal_events
    inputs, targets = tracks.to_inputs(), tracks.to_targets()
    assert tuple(inputs) == INPUTS and n_events(inputs) == n_events(targets) == len(tracks)
    np.testing.assert_array_equal(inputs["z0"].counts, tracks.counts)
    np.testing.assert_array_equal(targets["is_pv"].values, tracks.is_pv)


def same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def cut(particles, first, last):
    per_event = {"pv_z", "process", "pileup"}
    low, high = particles.offsets[first], particles.offsets[last]
    parts = {"offsets": particles.offsets[first : last + 1] - low, "processes": ("gun",)}
    for field in dataclasses.fields(particles):
        if field.name not in parts:
            rows = slice(first, last) if field.name in per_event else slice(low, high)
            parts[field.name] = getattr(particles, field.name)[rows]
    return Particles(**parts)


def test_the_same_seed_gives_the_same_tracks_however_events_are_cut():
    particles = gun(700, 30, np.random.default_rng(18), kind=2)
    busy = Conditions(noise=8.0, good_fakes=2.0)
    whole = simulate(particles, busy, np.random.default_rng(19))
    assert whole.is_fake.sum() > 100
    same(whole, simulate(particles, busy, np.random.default_rng(19)))
    rng = np.random.default_rng(19)
    parts = [simulate(cut(particles, a, b), busy, rng) for a, b in ((0, 1), (1, 320), (320, 700))]
    for name in ("pt", "z0", "chi2rphi", "bendchi2", "mva", "quality", "particle"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    other = simulate(particles, busy, np.random.default_rng(20))
    assert not np.array_equal(other.counts, whole.counts)


def test_more_tracks_than_room_was_made_for_are_all_kept():
    particles = gun(30, 460, np.random.default_rng(23), kind=2)
    flood = Conditions(noise=3.0, fake_scale=10.0)
    whole = simulate(particles, flood, np.random.default_rng(24))
    assert len(whole.pt) > 2 * len(particles.pt)  # room is made for 0.6 tracks per particle
    rng = np.random.default_rng(24)
    parts = [simulate(cut(particles, i, i + 1), flood, rng) for i in range(30)]
    np.testing.assert_array_equal(whole.z0, np.concatenate([part.z0 for part in parts]))
    assert [len(part.pt) for part in parts] == whole.counts.tolist()


def test_simulation_leaves_its_input_alone_and_takes_empty_events():
    particles = gun(4, 5, np.random.default_rng(21))
    before = {f.name: np.copy(getattr(particles, f.name)) for f in dataclasses.fields(particles)}
    simulate(particles, nominal(), np.random.default_rng(1))
    for name, values in before.items():
        np.testing.assert_array_equal(values, getattr(particles, name))
    nothing = cut(particles, 2, 2)
    assert len(simulate(nothing, nominal(), np.random.default_rng(1))) == 0
    bare = dataclasses.replace(cut(particles, 0, 0), offsets=np.zeros(4, np.int64))
    bare = dataclasses.replace(bare, pv_z=np.zeros(3, np.float32))
    assert simulate(bare, nominal(), np.random.default_rng(1)).counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"eta": np.full(10, np.nan, np.float32)}, DataError, "column 'eta' holds nan at (0,)"),
        ({"pt": np.zeros(10, np.float32)}, DataError, "a particle has pT = 0.0 GeV"),
        ({"charge": np.full(10, 2, np.int8)}, DataError, "a particle has charge 2; only"),
        ({"offsets": np.array([0, 5, 9])}, ShapeError, "offsets of 2 events up to 9 do not fit 2"),
        ({"z0": np.zeros(9, np.float32)}, ShapeError, "10 particles have 9 values of z0"),
    ],
)
def test_impossible_particles_are_refused(change, error, text):
    particles = dataclasses.replace(gun(2, 5, np.random.default_rng(22)), **change)
    with pytest.raises(error) as caught:
        simulate(particles, nominal(), np.random.default_rng(1))
    assert text in str(caught.value)
