"""Features against their formulas and their invariances."""

import numpy as np
import pytest

from stillfit.core.errors import ShapeError
from stillfit.sensing.features import feature_names, features

CHANNELS = ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro")


def named(raw, rate=100.0, channels=CHANNELS):
    return dict(zip(feature_names(channels), features(raw, rate, channels).T, strict=True))


@pytest.fixture(scope="module")
def raw():
    rng = np.random.default_rng(7)
    return (rng.normal(size=(40, 6, 50)) * 3 + rng.normal(size=(40, 6, 1))).astype(np.float32)


def test_names_are_distinct_and_as_many_as_columns(raw):
    names = feature_names(CHANNELS)
    assert len(set(names)) == len(names) == 72 == features(raw, 100.0, CHANNELS).shape[1]
    assert features(raw, 100.0, CHANNELS).dtype == np.float32
    assert features(raw[:0], 100.0, CHANNELS).shape == (0, 72)
    assert "gyro_magnitude.energy" in names and "x_acc.z_acc.correlation" in names


def test_the_plain_formulas_window_by_window(raw):
    found = named(raw)
    for i in range(0, 40, 9):
        x, y = raw[i, 0].astype(float), raw[i, 2].astype(float)
        norm = np.sqrt((raw[i, 3:].astype(float) ** 2).sum(0))
        expected = {
            "x_acc.mean": x.mean(),
            "x_acc.std": x.std(),
            "x_acc.min": x.min(),
            "x_acc.max": x.max(),
            "x_acc.energy": (x**2).mean(),
            "x_acc.jerk": np.abs(np.diff(x)).mean() * 100,
            "x_acc.z_acc.correlation": np.corrcoef(x, y)[0, 1],
            "gyro_magnitude.std": norm.std(),
            "gyro.magnitude_area": np.abs(raw[i, 3:]).sum(0).mean(),
        }
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_tone_has_its_frequency_and_no_entropy():
    t = np.arange(50) / 100
    raw = np.zeros((1, 6, 50), np.float32)
    raw[0, 0] = np.sin(2 * np.pi * 10 * t) + 5
    raw[0, 1] = np.sin(2 * np.pi * 4 * t)
    found = named(raw)
    assert found["x_acc.mean_frequency"][0] == pytest.approx(10, abs=1e-3)
    assert found["y_acc.mean_frequency"][0] == pytest.approx(4, abs=1e-3)
    assert found["x_acc.spectral_entropy"][0] == pytest.approx(0, abs=1e-4)
    again = named(raw, rate=20.0)
    assert again["x_acc.mean_frequency"][0] == pytest.approx(2, abs=1e-3)


def test_an_impulse_has_the_entropy_of_a_flat_spectrum():
    raw = np.zeros((1, 6, 50), np.float32)
    raw[0, 4, 20] = 1.0
    assert named(raw)["y_gyro.spectral_entropy"][0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -9.81, 1e4])
def test_a_constant_window_has_no_motion_and_no_nan(value):
    found = named(np.full((3, 6, 50), value, np.float32))
    for name, column in found.items():
        assert np.isfinite(column).all(), name
        kind = name.rpartition(".")[2]
        if kind in ("std", "jerk", "mean_frequency", "spectral_entropy", "correlation"):
            np.testing.assert_allclose(column, 0, atol=1e-6 * max(1, abs(value)), err_msg=name)


def test_backwards_in_time_is_the_same(raw):
    forward, back = features(raw, 100.0, CHANNELS), features(raw[:, :, ::-1], 100.0, CHANNELS)
    np.testing.assert_allclose(forward, back, rtol=1e-4, atol=1e-5)


def test_scale_and_offset_move_each_feature_as_they_must(raw):
    one, other = named(raw), named(2 * raw)
    for kind, factor in (
        ("mean", 2),
        ("std", 2),
        ("energy", 4),
        ("jerk", 2),
        ("mean_frequency", 1),
        ("spectral_entropy", 1),
    ):
        np.testing.assert_allclose(
            other[f"y_gyro.{kind}"], factor * one[f"y_gyro.{kind}"], rtol=1e-4
        )
    np.testing.assert_allclose(
        other["x_acc.y_acc.correlation"], one["x_acc.y_acc.correlation"], atol=1e-5
    )


def test_turning_the_device_leaves_the_magnitudes(raw):
    """A worn device sits at any angle: what is made of the magnitude does not care."""
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turned = raw.copy()
    turned[:, :3] = np.einsum("ab,nbt->nat", q, raw[:, :3])
    one, other = named(raw), named(turned)
    for name in one:
        if name.startswith("acc_magnitude"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=1e-3)


def test_windows_count_one_by_one(raw):
    """A window's features depend on no other window."""
    many = np.concatenate([raw] * 60)
    np.testing.assert_array_equal(
        features(many, 100.0, CHANNELS)[-40:], features(raw, 100.0, CHANNELS)
    )


def test_shapes_that_cannot_be_are_refused(raw):
    with pytest.raises(ShapeError) as caught:
        features(raw[:, :4], 100.0, CHANNELS)
    assert str(caught.value) == (
        "features need windows (n, 6 channels, at least 2 samples) of sensors with three axes, "
        "got (40, 4, 50)"
    )
