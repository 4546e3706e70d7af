"""Windows never cross a seam, and are the signal at regular times."""

from dataclasses import replace

import numpy as np
import pytest

from stillfit.core.errors import ConfigError, DataError
from stillfit.sensing.recordings import Recordings
from stillfit.sensing.windows import Windowing


def recording(times, signal, activity=None, run=None):
    """One subject with one device and three equal axes."""
    n = len(times)
    zeros = np.zeros(n, np.int64)
    return Recordings(
        signals=np.stack([signal] * 3, 1).astype(np.float32),
        times=np.asarray(times, np.float64),
        activity=zeros if activity is None else activity,
        subject=zeros,
        device=zeros,
        run=zeros if run is None else run,
        channels=("x_acc", "y_acc", "z_acc"),
        activities=("A", "B"),
        subjects=("a",),
        devices=("sp",),
    )


def test_regular_samples_are_cut_as_they_are():
    signal = np.arange(1000.0)
    w = Windowing(length=0.5, step=0.25, rate=100.0).cut(
        recording(1e9 + np.arange(1000) / 100, signal)
    )
    assert w.raw.shape == (39, 3, 50) and w.raw.dtype == np.float32
    expected = np.arange(39)[:, None] * 25 + np.arange(50)
    np.testing.assert_allclose(w.raw[:, 1], expected, atol=2e-4, rtol=0)
    np.testing.assert_allclose(w.start, 1e9 + np.arange(39) * 0.25, atol=1e-6, rtol=0)
    np.testing.assert_allclose(w.end - w.start, 0.49, atol=1e-6)


def test_irregular_samples_are_put_on_the_grid():
    """A straight line is met exactly by linear interpolation, a slow tone nearly."""
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0, 20, 2400))
    times[0] = 0.0
    window = Windowing(length=0.5, step=0.5, rate=100.0)
    w = window.cut(recording(times, 3 * times - 1))
    at = w.start[:, None] + np.arange(50) / 100
    np.testing.assert_allclose(w.raw[:, 0], 3 * at - 1, atol=1e-5)
    tone = window.cut(recording(times, np.sin(2 * np.pi * times)))
    bound = (2 * np.pi) ** 2 * np.diff(times).max() ** 2 / 8  # of linear interpolation
    assert np.abs(tone.raw[:, 0] - np.sin(2 * np.pi * at)).max() < bound < 0.05


def test_samples_of_one_tick_count_as_their_mean():
    times = np.repeat(np.arange(200) / 100, 2)
    signal = np.tile([1.0, 3.0], 200)
    w = Windowing(length=0.5, step=0.5).cut(recording(times, signal))
    np.testing.assert_allclose(w.raw, 2.0, atol=1e-6)


@pytest.mark.parametrize("seam", ["activity", "run", "gap"])
def test_no_window_crosses_a_seam(seam):
    """On one side the signal is 0, on the other 1, and no window holds anything between."""
    times, signal = np.arange(1000) / 100, (np.arange(1000) >= 430).astype(float)
    codes = signal.astype(np.int64)
    if seam == "gap":
        times = times + 0.3 * signal
    w = Windowing(length=0.5, step=0.01).cut(
        recording(times, signal, **({} if seam == "gap" else {seam: codes}))
    )
    assert set(np.unique(w.raw)) == {0.0, 1.0}
    assert np.all(w.raw.min((1, 2)) == w.raw.max((1, 2)))
    assert len(w) == (430 - 50 + 1) + (570 - 50 + 1)
    whole = Windowing(length=0.5, step=0.01, gap=0.5).cut(recording(times, signal))
    assert len(whole) == 951 + (30 if seam == "gap" else 0)


def test_subjects_and_devices_are_never_mixed(recordings, windows):
    """Each window's rows lie in one stretch of its own subject, device and activity."""
    key = np.stack([recordings.subject, recordings.device, recordings.activity], 1)
    for i in range(0, len(windows), 7):
        mine = (windows.subject[i], windows.device[i], windows.activity[i])
        inside = (recordings.times >= windows.start[i] - 1e-6) & (
            recordings.times <= windows.end[i] + 1e-6
        )
        inside &= (key[:, :2] == mine[:2]).all(1)
        assert inside.any() and np.all(key[inside] == mine)


def test_windows_are_those_of_each_part_alone(recordings, windows):
    """A subject with a device alone gives the same windows as within the whole."""
    one = (recordings.subject == 1) & (recordings.device == 0)
    names = ("signals", "times", "activity", "subject", "device", "run")
    alone = replace(recordings, **{name: getattr(recordings, name)[one] for name in names})
    part = windows.take((windows.subject == 1) & (windows.device == 0))
    again = Windowing().cut(alone)
    np.testing.assert_allclose(again.raw, part.raw, atol=1e-5)
    np.testing.assert_allclose(again.start, part.start, atol=1e-6, rtol=0)


def test_the_number_of_windows_is_what_length_and_step_say(recordings):
    """Each activity lasts 2 s less one sample: 200 samples, if the last tick is met."""
    for length, step in ((0.5, 0.25), (0.5, 0.5), (1.0, 0.1), (1.99, 1.0)):
        w = Windowing(length=length, step=step).cut(recordings)
        each = (200 - round(100 * length)) // round(100 * step) + 1
        assert len(w) == each * 2 * 2 * 4 * 5


def test_nothing_as_long_as_a_window_is_refused(recordings):
    with pytest.raises(DataError) as caught:
        Windowing(length=3.0).cut(recordings)
    assert str(caught.value) == (
        "no stretch of one activity is as long as a window of 3.0 s; the longest of 80 lasts 2 s: "
        "make `length` shorter or `gap` (0.25 s) longer"
    )


@pytest.mark.parametrize("name", ["length", "step", "rate", "gap"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_knobs_that_cannot_be_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} of the windows must be above 0, got {value}"):
        Windowing(**{name: value})


def test_windows_below_two_samples_are_refused():
    with pytest.raises(ConfigError, match=r"length = 0.01 s holds less than 2 samples at 100.0"):
        Windowing(length=0.01)
    with pytest.raises(ConfigError, match=r"step = 0.001 s holds less than 1 samples at 100.0"):
        Windowing(step=0.001)


def test_the_real_recordings_give_windows_of_every_activity(real):
    w = Windowing().cut(real)
    assert len(w) > 14_000 and np.isfinite(w.raw).all()
    seen = np.unique(np.stack([w.subject, w.device, w.activity], 1), axis=0)
    assert len(seen) == 23 * 2 * 5
