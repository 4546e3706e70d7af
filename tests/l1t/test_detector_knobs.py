"""Every knob of the detector moves what it should, in the right direction, and nothing else.

Simulations under different conditions share their chance particle by particle, so that "nothing
else" often means: bit for bit the same.
"""

import dataclasses

import numpy as np
import pytest

from stillfit.l1t import geometry
from stillfit.l1t.composition import Particles
from stillfit.l1t.conditions import (
    LAYERS,
    Conditions,
    DeadRegion,
    HotRegion,
    LayerEfficiency,
    LayerShift,
    SectorShift,
)
from stillfit.l1t.detector import simulate

BARREL, DISKS = 0b111111, 0b11111 << 6
TRUTH = ("is_pv", "is_fake", "particle", "offsets")
CLEAN = Conditions(noise=0.0)


def gun(n, per_event, seed, *, pt=(2.2, 50.0), eta=2.35, kind=1):
    rng = np.random.default_rng(seed)
    size = n * per_event
    zero = np.zeros(size, np.float32)
    return Particles(
        offsets=np.arange(n + 1, dtype=np.int64) * per_event,
        pt=(1 / rng.uniform(1 / pt[1], 1 / pt[0], size)).astype(np.float32),
        eta=rng.uniform(-eta, eta, size).astype(np.float32),
        phi=rng.uniform(-np.pi, np.pi, size).astype(np.float32),
        z0=rng.normal(0, 5.0, size).astype(np.float32),
        d0=zero,
        r_prod=zero,
        charge=rng.choice(np.array([-1, 1], np.int8), size),
        kind=np.full(size, kind, np.int8),
        is_pv=np.zeros(size, np.uint8),
        interaction=np.zeros(size, np.int16),
        pv_z=np.zeros(n, np.float32),
        process=np.zeros(n, np.int8),
        pileup=np.zeros(n, np.int32),
        processes=("gun",),
    )


MUONS = gun(150, 200, 1)
STIFF = gun(100, 200, 2, pt=(30.0, 60.0))
PIONS = gun(60, 460, 3, pt=(1.5, 10.0), kind=2)


def tracks_of(conditions, particles=MUONS):
    return simulate(particles, conditions, np.random.default_rng(9))


def source(tracks, particles=MUONS):
    events = np.repeat(np.arange(len(tracks)), tracks.counts)
    return np.where(tracks.is_fake == 0, particles.offsets[events] + tracks.particle, 0)


def off(tracks, particles=MUONS):
    """Error of z0 of each track (cm)."""
    return tracks.z0 - particles.z0[source(tracks, particles)]


def width(values):
    low, high = np.percentile(values, [15.87, 84.13])
    return (high - low) / 2


def equal(a, b, names):
    for name in names:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture(scope="module")
def clean():
    return tracks_of(CLEAN)


# Alignment ------------------------------------------------------------------------------------


def test_a_barrel_shift_moves_z0_of_barrel_tracks_by_itself(clean):
    moved = tracks_of(dataclasses.replace(CLEAN, barrel_z_shift=0.1))
    equal(moved, clean, (*TRUTH, "pt", "phi", "chi2rphi", "bendchi2", "layers", "nstub"))
    change = moved.z0 - clean.z0
    only_barrel, only_disks = clean.layers & DISKS == 0, clean.layers & BARREL == 0
    np.testing.assert_allclose(change[only_barrel], 0.1, atol=1e-5)
    np.testing.assert_allclose(change[only_disks], 0.0, atol=1e-5)
    np.testing.assert_allclose(moved.chi2rz[only_barrel], clean.chi2rz[only_barrel], rtol=1e-3)
    mixed = ~only_barrel & ~only_disks & (np.abs(clean.eta) > 1.6)
    assert np.median(change[mixed]) > 0.12  # the lever arm enlarges it
    assert np.mean(moved.chi2rz[mixed]) > np.mean(clean.chi2rz[mixed])


def test_a_shift_of_every_layer_moves_every_z0_by_itself(clean):
    every = LayerShift(**dict.fromkeys(LAYERS, -0.07))
    moved = tracks_of(dataclasses.replace(CLEAN, layer_z_shift=every))
    np.testing.assert_allclose(moved.z0 - clean.z0, -0.07, atol=2e-5)
    equal(moved, clean, (*TRUTH, "pt"))


def test_shifts_of_layers_add_up(clean):
    total = np.zeros(len(clean.z0))
    for name in LAYERS[:6]:
        one = LayerShift(**{name: 0.05})
        total += tracks_of(dataclasses.replace(CLEAN, layer_z_shift=one)).z0 - clean.z0
    barrel = tracks_of(dataclasses.replace(CLEAN, barrel_z_shift=0.05)).z0 - clean.z0
    np.testing.assert_allclose(total, barrel, atol=1e-4)


def test_a_sector_shift_stays_in_its_sector():
    shift = SectorShift(z_shift=0.2, phi=(2.5, -2.5))  # runs through pi
    before = tracks_of(CLEAN, STIFF)
    after = tracks_of(dataclasses.replace(CLEAN, sector_shifts=(shift,)), STIFF)
    change = after.z0 - before.z0
    central = np.abs(before.eta) < 0.8
    inside, outside = np.abs(before.phi) > 2.8, np.abs(before.phi) < 2.2
    np.testing.assert_allclose(change[central & inside], 0.2, atol=1e-4)
    np.testing.assert_array_equal(change[outside], 0.0)


def test_a_twist_biases_pt_by_charge_and_side_but_not_z0(clean):
    twisted = tracks_of(dataclasses.replace(CLEAN, twist=2e-5), STIFF)
    straight = tracks_of(CLEAN, STIFF)
    row = source(twisted, STIFF)
    relative = twisted.pt / STIFF.pt[row] - 1
    sign = np.sign(STIFF.eta[row]) * STIFF.charge[row]
    steep = np.abs(STIFF.eta[row]) > 0.5
    bias = np.median(relative[steep & (sign > 0)]), np.median(relative[steep & (sign < 0)])
    assert bias[0] > 0.03 and bias[1] < -0.03
    assert abs(np.median(off(twisted, STIFF))) < 0.01
    assert width(off(twisted, STIFF)) == pytest.approx(width(off(straight, STIFF)), rel=0.02)


def test_a_radial_scale_biases_z0_where_barrel_meets_disks(clean):
    scaled = tracks_of(dataclasses.replace(CLEAN, radial_scale=1.002))
    equal(scaled, clean, TRUTH)
    change = (scaled.z0 - clean.z0) * np.sign(clean.eta)
    only_barrel, only_disks = clean.layers & DISKS == 0, clean.layers & BARREL == 0
    mixed = ~only_barrel & ~only_disks & (np.abs(clean.eta) > 1.4) & (np.abs(clean.eta) < 1.9)
    assert np.abs(change[only_barrel]).max() < 0.01
    np.testing.assert_array_equal(change[only_disks], 0.0)
    assert np.median(change[mixed]) < -0.08
    central = only_barrel & (np.abs(clean.eta) > 0.3)
    slope = np.sinh(scaled.eta[central]) / np.sinh(clean.eta[central])
    np.testing.assert_allclose(slope, 1 / 1.002, atol=1e-3)


# Efficiency -----------------------------------------------------------------------------------


def test_lower_hit_efficiency_costs_stubs_and_tracks(clean):
    worse = tracks_of(dataclasses.replace(CLEAN, hit_efficiency=0.90))
    assert worse.nstub.mean() < clean.nstub.mean() - 0.2
    assert 0.85 * len(clean.pt) < len(worse.pt) < 0.98 * len(clean.pt)
    assert len(tracks_of(dataclasses.replace(CLEAN, hit_efficiency=0.0)).pt) == 0


def test_a_layer_that_is_off_has_no_stub_and_the_others_stay(clean):
    off_b1 = tracks_of(dataclasses.replace(CLEAN, layer_efficiency=LayerEfficiency(B1=0.0)))
    assert not np.any(off_b1.layers & 1) and np.any(clean.layers & 1)
    forward = np.abs(clean.eta) > 2.2
    rate = np.mean(clean.layers[forward] >> 6 & 1)
    assert np.mean(off_b1.layers[np.abs(off_b1.eta) > 2.2] >> 6 & 1) == pytest.approx(rate, abs=0.1)
    central = np.abs(off_b1.eta) < 0.8
    assert width(off(off_b1)[central]) > 1.3 * width(off(clean)[np.abs(clean.eta) < 0.8])


def test_a_dead_region_removes_tracks_there_and_only_there():
    before = tracks_of(CLEAN, STIFF)
    hole = DeadRegion(phi=(0.0, 0.698), eta=(-0.8, 1.2))
    after = tracks_of(dataclasses.replace(CLEAN, dead_regions=(hole,)), STIFF)

    def count(tracks, low, high, eta_low, eta_high):
        phi, eta = tracks.phi, tracks.eta
        return np.sum((phi > low) & (phi < high) & (eta > eta_low) & (eta < eta_high))

    assert count(before, 0.05, 0.65, -0.6, 1.0) > 200
    assert count(after, 0.05, 0.65, -0.6, 1.0) == 0
    for where in ((0.75, 3.1, -2.4, 2.4), (-3.1, -0.05, -2.4, 2.4), (0.0, 0.7, 1.8, 2.4)):
        assert count(after, *where) == count(before, *where)


def test_a_dead_region_of_one_layer_takes_that_layer_only():
    hole = DeadRegion(phi=(-1.0, 1.0), layers=("B2",))
    after = tracks_of(dataclasses.replace(CLEAN, dead_regions=(hole,)), STIFF)
    inside = (np.abs(after.phi) < 0.95) & (np.abs(after.eta) < 1.0)
    assert np.sum(inside) > 300 and not np.any(after.layers[inside] & 2)
    outside = (np.abs(after.phi) > 1.05) & (np.abs(after.eta) < 1.0)
    assert np.mean(after.layers[outside] >> 1 & 1) > 0.9


def test_a_half_dead_region_keeps_half_of_the_stubs():
    hole = DeadRegion(layers=("B1",), efficiency=0.5)
    before, after = tracks_of(CLEAN, STIFF), None
    after = tracks_of(dataclasses.replace(CLEAN, dead_regions=(hole,)), STIFF)
    share = [np.mean(t.layers[np.abs(t.eta) < 0.8] & 1) for t in (before, after)]
    assert share[1] == pytest.approx(0.5 * share[0], rel=0.06)


def test_a_region_may_run_through_pi():
    hole = DeadRegion(phi=(3.0, -3.0))
    after = tracks_of(dataclasses.replace(CLEAN, dead_regions=(hole,)), STIFF)
    assert np.abs(after.phi).max() < 3.03
    assert np.sum(np.abs(after.phi) > 2.9) > 100


def test_a_mask_on_tracks_is_exact_in_fitted_phi_and_eta(clean):
    mask = DeadRegion(phi=(0.0, 0.1), eta=(0.8, 1.4), drops="tracks")
    after = tracks_of(dataclasses.replace(CLEAN, dead_regions=(mask,)))
    inside = (clean.phi >= 0) & (clean.phi <= 0.1) & (clean.eta >= 0.8) & (clean.eta <= 1.4)
    assert inside.sum() > 10
    np.testing.assert_array_equal(after.pt, clean.pt[~inside])


def test_ageing_is_worst_inside_and_the_dead_stay_dead():
    tables = [
        geometry.detector(Conditions(integrated_luminosity=value)).modules[:, geometry.EFFICIENCY]
        for value in (0.0, 1000.0, 3000.0)
    ]
    dead = [table == 0 for table in tables]
    assert not dead[0].any()
    assert dead[1].mean() == pytest.approx(1 - np.exp(-0.02), rel=0.2)
    assert dead[2].mean() == pytest.approx(1 - np.exp(-0.06), rel=0.1)
    assert not np.any(dead[1] & ~dead[2])
    alive = ~dead[2]
    layer = geometry._grid().layer
    loss = [1 - tables[2][alive & (layer == k)].mean() / tables[0][0] for k in (0, 2, 5)]
    assert loss[0] == pytest.approx(0.09, abs=0.005) and loss[0] > loss[1] > loss[2] > 0
    other = geometry.detector(Conditions(integrated_luminosity=1000.0, detector_seed=2))
    assert not np.array_equal(other.modules[:, geometry.EFFICIENCY] == 0, dead[1])


# Resolution -----------------------------------------------------------------------------------


def test_barrel_ps_resolution_widens_z0_in_the_barrel_only(clean):
    worse = tracks_of(dataclasses.replace(CLEAN, barrel_ps_resolution=5.0))
    central, forward = np.abs(worse.eta) < 0.8, worse.layers & BARREL == 0
    before = width(off(clean)[np.abs(clean.eta) < 0.8])
    assert 4 < width(off(worse)[central]) / before < 5.2
    assert np.median(worse.chi2rz[central]) > 3 * np.median(clean.chi2rz)
    same = clean.layers & BARREL == 0
    assert width(off(worse)[forward]) == pytest.approx(width(off(clean)[same]), rel=0.01)
    assert abs(np.median(off(worse)[central])) < 0.03


def test_disk_ps_resolution_widens_z0_forward_only(clean):
    worse = tracks_of(dataclasses.replace(CLEAN, disk_ps_resolution=3.0))
    equal_rows = clean.layers & DISKS == 0
    assert width(off(worse)[worse.layers & DISKS == 0]) == pytest.approx(
        width(off(clean)[equal_rows]), rel=0.01
    )
    assert width(off(worse)[np.abs(worse.eta) > 2]) > 2 * width(off(clean)[np.abs(clean.eta) > 2])


def test_2s_resolution_widens_pt_but_not_z0():
    before = tracks_of(CLEAN, STIFF)
    after = tracks_of(dataclasses.replace(CLEAN, two_s_resolution=4.0), STIFF)

    def pt_width(tracks):
        central = np.abs(tracks.eta) < 0.8
        return width((tracks.pt / STIFF.pt[source(tracks, STIFF)])[central])

    assert pt_width(after) > 2 * pt_width(before)
    assert width(off(after, STIFF)) == pytest.approx(width(off(before, STIFF)), rel=0.01)


# Noise and fakes ------------------------------------------------------------------------------


def test_without_unrelated_stubs_or_wrong_seeds_there_are_no_fakes():
    assert tracks_of(CLEAN, PIONS).is_fake.sum() == 0
    none = tracks_of(Conditions(fake_scale=0.0), PIONS)
    some = tracks_of(Conditions(), PIONS)
    assert none.is_fake.sum() == 0 < some.is_fake.sum()
    genuine = some.is_fake == 0
    np.testing.assert_array_equal(none.z0, some.z0[genuine])


def test_fakes_are_proportional_to_the_rate_of_wrong_seeds():
    counts = [
        tracks_of(Conditions(fake_scale=scale), PIONS).is_fake.sum() for scale in (1.0, 2.0, 4.0)
    ]
    assert counts[0] > 500
    np.testing.assert_allclose(np.array(counts) / counts[0], [1, 2, 4], rtol=0.08)


def test_noise_grows_fakes_faster_and_spoils_true_tracks():
    quiet, loud = tracks_of(Conditions(), PIONS), tracks_of(Conditions(noise=2.0), PIONS)
    assert loud.is_fake.sum() > 4 * quiet.is_fake.sum()
    spoiled = [np.mean(t.chi2rphi[t.is_fake == 0] > 20) for t in (quiet, loud)]
    assert spoiled[1] > 1.5 * spoiled[0]


def test_good_fakes_come_in_units_of_the_nominal_number_and_fit_well():
    nominal = tracks_of(Conditions(), PIONS)
    more = tracks_of(Conditions(good_fakes=2.0), PIONS)
    few, many = int(nominal.is_fake.sum()), int(more.is_fake.sum())
    assert many - few == pytest.approx(2 * few, rel=0.25)
    only = tracks_of(Conditions(good_fakes=2.0, fake_scale=0.0), PIONS)
    fake = only.is_fake == 1
    assert np.median(only.chi2rz[fake]) < 1.5 and np.median(only.bendchi2[fake]) < 1.5
    assert np.median(only.chi2rphi[fake]) < 3 and only.nstub[fake].mean() > 4.8


def test_a_hot_region_makes_fakes_there():
    hot = HotRegion(phi=(0.0, 1.0), rate=3.0)
    before = tracks_of(Conditions(), PIONS)
    after = tracks_of(Conditions(hot_regions=(hot,)), PIONS)

    def fakes(tracks, inside):
        within = (tracks.phi > 0) & (tracks.phi < 1)
        return np.sum((tracks.is_fake == 1) & (within if inside else ~within))

    assert fakes(after, True) > 3 * fakes(before, True)
    assert fakes(after, False) < 1.4 * fakes(before, False)


# Scales and the track finder ------------------------------------------------------------------


def test_the_pt_scale_scales_pt_and_moves_the_threshold():
    before, after = tracks_of(CLEAN), tracks_of(dataclasses.replace(CLEAN, pt_scale=1.05))
    assert np.median(after.pt / MUONS.pt[source(after)]) == pytest.approx(1.05, abs=0.002)
    np.testing.assert_allclose(after.pt, before.pt * 1.05, rtol=1e-5)
    soft = gun(50, 200, 5, pt=(1.5, 3.0))
    counts = [
        len(tracks_of(dataclasses.replace(CLEAN, pt_scale=scale), soft).pt)
        for scale in (0.9, 1.0, 1.1)
    ]
    assert counts[0] < 0.9 * counts[1] and counts[1] < 0.95 * counts[2]


def test_cuts_of_the_finder_hold(clean):
    cut = tracks_of(
        dataclasses.replace(CLEAN, min_stubs=5, max_chi2rphi=2.0, max_chi2rz=1.5, max_bendchi2=1.2)
    )
    assert len(cut.pt) > 1000 and cut.nstub.min() == 5
    assert cut.chi2rphi.max() <= 2 and cut.chi2rz.max() <= 1.5 and cut.bendchi2.max() <= 1.2
    passing = (clean.nstub >= 5) & (clean.chi2rphi <= 2) & (clean.chi2rz <= 1.5)
    passing &= clean.bendchi2 <= 1.2
    np.testing.assert_array_equal(cut.z0, clean.z0[passing])


def test_finder_efficiency_is_a_share_of_tracks(clean):
    none = tracks_of(dataclasses.replace(CLEAN, finder_efficiency=0.0))
    half = tracks_of(dataclasses.replace(CLEAN, finder_efficiency=0.485))
    assert len(none.pt) == 0
    assert len(half.pt) == pytest.approx(0.5 * len(clean.pt), rel=0.03)


def test_the_quality_word_changes_upstream_and_nothing_else():
    before = tracks_of(Conditions(), PIONS)
    inverted = tracks_of(Conditions(quality_word="inverted"), PIONS)
    stuck = tracks_of(Conditions(quality_word="stuck"), PIONS)
    np.testing.assert_array_equal(inverted.quality, 7 - before.quality)
    assert inverted.quality.dtype == before.quality.dtype == np.uint8
    assert not stuck.quality.any()
    others = [f.name for f in dataclasses.fields(before) if f.name != "quality"]
    equal(inverted, before, others)
    equal(stuck, before, others)


def test_knobs_of_the_beams_do_not_touch_the_detector(clean):
    beams = dataclasses.replace(CLEAN, pileup=10.0, z_beam=3.0, sigma_z=1.0)
    equal(tracks_of(beams), clean, (*TRUTH, "pt", "z0", "mva"))
