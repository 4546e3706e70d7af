"""The table of real fills, and the generator that follows it."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import ks_2samp, spearmanr

from stillfit.core.clock import HOUR
from stillfit.core.errors import ConfigError, DataError
from stillfit.l1t import fills
from stillfit.l1t.fills import Fill, Levelling


@pytest.fixture(scope="module")
def records():
    return fills.read()


def flat(**change):
    values = {"number": 1, "start": 100.0, "duration": 50.0, "gap": 10.0, "peak_pileup": 60.0}
    return Fill(**{**values, **change})


def test_the_table_holds_proton_physics_fills_of_four_years_in_order(records):
    assert len(records) == 607
    assert {record.begin.year for record in records} == {2015, 2016, 2017, 2018}
    numbers = [record.fill for record in records]
    assert numbers == sorted(set(numbers))
    assert all(record.stable_hours > 0 and record.colliding_bunches >= 500 for record in records)
    assert all(10 < record.peak_pileup < 80 for record in records)


def test_a_known_fill_is_as_published(records):
    record = next(record for record in records if record.fill == 6364)
    assert record.begin.isoformat() == "2017-11-06T02:34:58+00:00"
    assert record.stable_hours == pytest.approx(27 + 24 / 60, abs=0.02)
    assert record.peak_pileup == 58.579
    assert record.delivered_pb == 743.788
    assert record.colliding_bunches == 1866


def test_fills_and_gaps_are_as_long_as_the_machine_makes_them(records):
    hours = np.array([record.stable_hours for record in records])
    gaps = np.array([record.gap_hours for record in records if not math.isnan(record.gap_hours)])
    assert 8 < np.median(hours) < 9
    assert 4 < np.median(gaps) < 7
    assert gaps.min() > 1.8


def test_real_fills_follow_each_other_without_overlap():
    season = fills.real()
    assert season[0].start == 0
    assert all(a.next_start <= b.start + 1 for a, b in itertools.pairwise(season))
    assert len(fills.real(years=[2018])) + len(fills.real(years=[2015, 2016, 2017])) == len(season)


def test_the_lifetime_reproduces_the_delivered_luminosity(records):
    for record in records:
        tau = fills.lifetime_hours(record)
        if math.isnan(tau):
            continue
        peak = record.peak_pileup * record.colliding_bunches * 11245 / 80e9
        given = peak * tau * 3600 * (1 - math.exp(-record.stable_hours / tau))
        assert given == pytest.approx(record.delivered_pb, rel=1e-6)


def test_generated_fills_have_the_real_distributions(records):
    made = fills.generate(4000, rng=np.random.default_rng(7))
    pairs = (
        ([r.stable_hours for r in records], [f.duration / HOUR for f in made]),
        ([r.gap_hours for r in records if r.gap_hours > 0], [f.gap / HOUR for f in made]),
        ([r.peak_pileup for r in records], [f.peak_pileup for f in made]),
    )
    for real, generated in pairs:
        assert ks_2samp(real, generated).pvalue > 0.05
    real_rank = spearmanr([r.stable_hours for r in records], [r.peak_pileup for r in records])
    rank = spearmanr([f.duration for f in made], [f.peak_pileup for f in made])
    assert rank.statistic == pytest.approx(real_rank.statistic, abs=0.1)


def test_without_smoothing_only_real_values_are_drawn_and_with_it_new_ones(records):
    known = {record.peak_pileup for record in records}
    plain = fills.generate(50, rng=np.random.default_rng(1), smoothing=0.0)
    smooth = fills.generate(50, rng=np.random.default_rng(1))
    assert {fill.peak_pileup for fill in plain} <= known
    assert not {fill.peak_pileup for fill in smooth} & known


def test_generated_fills_are_a_chain_and_a_pure_function_of_the_generator():
    made = fills.generate(20, rng=np.random.default_rng(5), start=1000.0, first_number=8000)
    assert made == fills.generate(20, rng=np.random.default_rng(5), start=1000.0, first_number=8000)
    assert made[0].start == 1000.0
    assert [fill.number for fill in made] == list(range(8000, 8020))
    assert all(a.next_start == b.start for a, b in itertools.pairwise(made))


def test_levelled_pileup_is_constant_then_falls_by_e_in_a_lifetime():
    made = fills.generate(30, rng=np.random.default_rng(2), levelling=Levelling())
    for fill in made:
        assert 7 * HOUR <= fill.levelled <= 8 * HOUR
        level = min(fill.levelled, fill.duration)
        np.testing.assert_allclose(
            fill.pileup_at(fill.start + np.linspace(0, level, 5)), 200.0, rtol=1e-9
        )
    fill = flat(duration=100 * HOUR, levelled=7 * HOUR, lifetime=5 * HOUR, peak_pileup=200.0)
    assert fill.pileup_at(fill.start + 12 * HOUR) == pytest.approx(200 / math.e)


def test_without_levelling_the_decay_starts_with_the_fill_and_outside_there_is_none():
    fill = flat(lifetime=25.0)
    np.testing.assert_allclose(
        fill.pileup_at([99.0, 100.0, 125.0, 150.0, 151.0]),
        [0.0, 60.0, 60.0 / math.e, 60.0 / math.e**2, 0.0],
    )


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"fill 1 has duration = -1.0; durations and"):
        flat(duration=-1.0)
    with pytest.raises(ConfigError, match=r"fill 1 has lifetime = 0.0"):
        flat(lifetime=0.0)
    with pytest.raises(ConfigError, match=r"no fills of \[1999\]; it covers 2015 to 2018"):
        fills.real(years=[1999])
    with pytest.raises(ConfigError, match="n must be at least 1 and smoothing not negative"):
        fills.generate(0, rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="levelling needs pileup >= 0"):
        Levelling(low=9.0)
    with pytest.raises(ConfigError, match="no fill with a gap to draw from"):
        fills.generate(1, rng=np.random.default_rng(0), records=[])
    with pytest.raises(DataError, match="there is no table of fills at"):
        fills.read(tmp_path / "none.csv")
    (tmp_path / "cut.csv").write_text("fill,begin_utc\n1,2018-01-01\n")
    with pytest.raises(DataError, match="lacks the columns colliding_bunches, delivered_pb"):
        fills.read(tmp_path / "cut.csv")
    head = ",".join(fills.COLUMNS)
    (tmp_path / "bad.csv").write_text(f"{head}\n1,2018-01-01T00:00:00,x,1,1,1,1\n")
    with pytest.raises(DataError, match=r"bad.csv, line 2: could not convert string to float"):
        fills.read(tmp_path / "bad.csv")
