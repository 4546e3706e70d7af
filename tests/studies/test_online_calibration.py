"""The law of online calibration, and the study that shows it."""

import numpy as np
import pytest

from stillfit.core.errors import ConfigError
from stillfit.studies.online_calibration import (
    TRUTH,
    GradualDrift,
    as_text,
    rolling,
    standard,
    study,
    table,
)
from stillfit.uncertainty.calibrators import OnlineCalibrator

SEEDS = range(6)
ONLINE = ("NExCP", "ACI", "ACI, delay known", "ACI, mixed steps")
ONCE = ("variance scaling", "split conformal", "normalised conformal", "conformal quantile")


# A window of n rows has a binomial error of sqrt(0.09 / n): 3 % are 3.2 of them for 1000 rows,
# which a stream of 20 windows exceeds by chance (in 21 of 100 seeds, where the noise is known),
# and 4.5 of them for 2000. Prompt labels allow the shorter window, as feedback evens chance out.
@pytest.mark.parametrize(("late", "window"), [(0, 1000), (200, 2000)])
def test_online_intervals_keep_87_to_93_percent_on_a_gradual_drift_and_plain_ones_fall_below_60(
    late, window
):
    tracked = study(GradualDrift(late=late), window=window, seeds=SEEDS)
    for name in ONLINE:
        assert tracked[name].rolling.min() >= 0.87, name
        assert tracked[name].rolling.max() <= 0.93, name
    for name in ONCE:
        # Every seed, and long before the end: the noise is only twice the nominal by half way.
        assert np.all(tracked[name].rolling.min(1) < 0.6), name
        assert np.all(tracked[name].rolling[:, 3 * len(tracked[name].rolling[0]) // 4 :] < 0.6)


def test_a_delay_that_is_known_is_made_up_for():
    means = {
        name: seen.rolling[:, -8000:].mean()
        for name, seen in study(GradualDrift(late=1000), seeds=SEEDS).items()
    }
    assert means["ACI"] < 0.88
    assert means["ACI, delay known"] == pytest.approx(0.9, abs=0.006)


def test_without_drift_every_calibrator_keeps_its_coverage():
    tracked = study(GradualDrift(growth=1.0, rows=10_000), seeds=SEEDS)
    for name, seen in tracked.items():
        # Split conformal on 1000 rows has, per seed, a coverage that strays by 1 %.
        assert seen.rolling.mean() == pytest.approx(0.9, abs=0.015), name


def test_a_growing_bias_is_covered_too():
    tracked = study(GradualDrift(growth=1.0, bias=2.0), window=2000, seeds=range(3))
    assert tracked["ACI, delay known"].rolling.min() > 0.87
    assert tracked["split conformal"].rolling.min() < 0.6


def test_the_true_noise_has_nothing_but_chance():
    tracked = study(seeds=range(10), calibrators={})[TRUTH]
    assert tracked.rolling[:, ::1000].mean() == pytest.approx(0.9, abs=0.004)
    assert tracked.rolling[:, ::1000].std() == pytest.approx(np.sqrt(0.09 / 1000), rel=0.2)
    assert np.all(tracked.widths == 1)


def test_the_drift_is_the_one_stated_and_the_same_for_the_same_seed():
    drift = GradualDrift(rows=40_000, calm=20_000, growth=3.0, bias=1.0, calibration=20_000)
    stream, again = drift.draw(1), drift.draw(1)
    assert np.array_equal(stream.truths, again.truths)
    assert not np.array_equal(stream.truths, drift.draw(2).truths)
    assert np.std((stream.y - stream.told.mean) / stream.told.std) == pytest.approx(1, abs=0.02)
    z = (stream.truths - stream.served.mean) / stream.served.std
    assert np.std(z[:20_000]) == pytest.approx(1, abs=0.02)
    assert np.std(z[-1000:]) == pytest.approx(3, abs=0.2)
    assert np.mean(z[-5000:]) == pytest.approx(0.9, abs=0.15)


def test_labels_are_never_used_before_they_come():
    """What is served does not change when all truths after the last known one do."""
    drift = GradualDrift(rows=900, calm=100, late=170, batch=30, calibration=200)
    stream = drift.draw(0)
    from stillfit.studies.online_calibration import serve

    aci = standard(170)["ACI, mixed steps"]
    before = serve(aci, drift, stream, 0.9)
    spoiled = stream._replace(truths=np.where(np.arange(900) < 400, stream.truths, 1e3))
    after = serve(aci, drift, spoiled, 0.9)
    # The first batch that may know row 400 starts at 400 + 170, rounded up to a batch, and later.
    for was, now in zip(before, after, strict=True):
        assert np.array_equal(was[:600], now[:600])
        assert not np.array_equal(was[600:], now[600:])


def test_the_table_has_one_line_each_and_says_what_the_arrays_say():
    tracked = study(GradualDrift(rows=3000, calm=500), seeds=(0, 1))
    lines = table(tracked)
    assert [line["calibrator"] for line in lines] == [TRUTH, *standard()]
    for line, seen in zip(lines, tracked.values(), strict=True):
        assert seen.rolling.shape == (2, 2001)
        assert line["lowest"] == pytest.approx(100 * seen.rolling.min())
        inside = (seen.rolling >= 0.87).all(1) & (seen.rolling <= 0.93).all(1)
        assert line["kept"] == pytest.approx(100 * inside.mean())
        assert line["mean"] == pytest.approx(100 * seen.rolling.mean())
        assert line["width"] == pytest.approx(seen.widths.mean())
    text = as_text(lines).splitlines()
    assert len(text) == 1 + len(lines)
    assert text[3].startswith("split conformal")
    assert np.isnan(table(study(GradualDrift(rows=3000, calm=500), seeds=(0,)))[0]["mean_err"])


def test_rolling_means_are_those_of_each_window():
    values = np.random.default_rng(0).random((2, 30))
    wanted = [[values[s, i : i + 7].mean() for i in range(24)] for s in range(2)]
    assert rolling(values, 7) == pytest.approx(np.array(wanted))


def test_the_standard_calibrators_are_both_kinds():
    kinds = {name: isinstance(c, OnlineCalibrator) for name, c in standard().items()}
    assert [name for name, online in kinds.items() if not online] == list(ONCE)
    assert {name for name, online in kinds.items() if online} == {*ONLINE, "sliding window"}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: GradualDrift(growth=0),
            "growth must be a positive factor on the noise, got 0",
        ),
        (
            lambda: GradualDrift(rows=100, calm=100),
            "a stream of 100 rows cannot begin with 100 calm",
        ),
        (
            lambda: GradualDrift(batch=0),
            "batch must be 1 row or more and late 0 or more, got 0 and 200",
        ),
        (
            lambda: study(GradualDrift(rows=500, calm=0), window=501),
            "a window of 501 rows does not fit 500 rows of stream",
        ),
        (lambda: study(coverage=90), "coverage must lie strictly between 0 and 1, got 90"),
    ],
)
def test_what_cannot_be_studied_is_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
