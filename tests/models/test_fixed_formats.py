"""Fixed-point formats and fake quantisation: closed forms, limits, gradients, error texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.models.fixed.calibration import best_format
from stillfit.models.fixed.formats import (
    OVERFLOWS,
    ROUNDINGS,
    Format,
    bits_of,
    decode,
    encode,
    requantise,
    shifted,
)
from stillfit.models.fixed.quantisers import GRADIENTS, Quantiser, fake_quantise, observing

FORMATS = [
    Format.of(1, 1, 3),
    Format.of(0, 2, 2),
    Format.channels([0, 1, 1], [2, -1, 3], [3, 5, -1]),
]


def test_a_format_has_the_range_and_the_step_of_its_bits():
    fmt = Format.of(1, 2, 3)
    low, high = fmt.limits()
    assert fmt.width == 6 and fmt.fraction == 3
    assert decode(low, fmt).tolist() == [-4.0] and decode(high, fmt).tolist() == [3.875]
    assert Format.of(1, 2, 3).limits("symmetric")[0].tolist() == [-31]
    assert Format.of(0, -2, 9).limits()[1].tolist() == [127]
    assert fmt.narrowed(4) == Format.of(1, 2, 1)
    assert Format.from_json(FORMATS[2].to_json()) == FORMATS[2]


def test_roundings_at_a_half():
    x = [-1.5, -0.5, 0.5, 1.5, 0.49999997, -0.25]
    fmt = Format.of(1, 4, 0)
    assert encode(x, fmt, rounding="floor").tolist() == [-2, -1, 0, 1, 0, -1]
    assert encode(x, fmt, rounding="nearest").tolist() == [-1, 0, 1, 2, 0, 0]
    assert encode(x, fmt, rounding="even").tolist() == [-2, 0, 0, 2, 0, 0]


def test_overflows():
    fmt, x = Format.of(1, 2, 0), [-9, -4, 3, 4, 7, 8]
    assert encode(x, fmt).tolist() == [-4, -4, 3, 3, 3, 3]
    assert encode(x, fmt, overflow="symmetric").tolist() == [-3, -3, 3, 3, 3, 3]
    assert encode(x, fmt, overflow="wrap").tolist() == [-1, -4, 3, -4, -1, 0]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_real_numbers_whole_numbers_and_tensors_agree(fmt, rounding, overflow):
    rng = np.random.default_rng(1)
    codes = rng.integers(-4000, 4000, (400, 3))
    x = (codes / 128).astype(np.float32)
    modes = {"rounding": rounding, "overflow": overflow}
    encoded = encode(x, fmt, **modes)
    assert np.array_equal(encoded, requantise(codes, 7, fmt, **modes))
    fake = fake_quantise(torch.from_numpy(x), fmt, **modes)
    assert np.array_equal(decode(encoded, fmt), fake.double().numpy())


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1e6, 1e6, width=32),
    st.integers(0, 1),
    st.integers(-6, 8),
    st.integers(1, 12),
    st.sampled_from(ROUNDINGS),
)
def test_quantising_is_idempotent_and_off_by_at_most_a_step(x, k, i, width, rounding):
    f = width - k - i
    if abs(f) > 40:
        return
    fmt = Format.of(k, i, f)
    once = decode(encode([x], fmt, rounding=rounding), fmt)
    assert np.array_equal(decode(encode(once, fmt, rounding=rounding), fmt), once)
    low, high = (decode(end, fmt)[0] for end in fmt.limits())
    if low <= x <= high:
        assert abs(once[0] - x) <= math.ldexp(1.0 if rounding == "floor" else 0.5, -f)


def test_a_shift_to_the_right_rounds_as_the_division_does():
    codes = np.arange(-70, 70)
    assert np.array_equal(shifted(codes, -3, "floor"), np.floor(codes / 8))
    assert np.array_equal(shifted(codes, -3, "nearest"), np.floor(codes / 8 + 0.5))
    assert np.array_equal(shifted(codes, -3, "even"), np.rint(codes / 8))
    assert np.array_equal(shifted(codes, 2, "even"), codes * 4)


def test_bits_of_a_sum():
    assert [bits_of(n) for n in (0, 1, 127, 128, 255)] == [1, 2, 8, 9, 9]


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", GRADIENTS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_of_numbers_beyond_the_range(rule, sign):
    x = torch.tensor([-3.0, 0.3, 9.0], requires_grad=True)
    (sign * fake_quantise(x, Format.of(1, 1, 3), gradient=rule)).sum().backward()
    inside = {"straight": [1, 1], "clipped": [0, 0], "inward": [sign < 0, sign > 0]}[rule]
    # A gradient step moves against the gradient: from below the range up, from above it down.
    assert x.grad.tolist() == [sign * inside[0], sign, sign * inside[1]]


def test_a_wrapped_number_has_the_gradient_of_what_it_moves():
    x = torch.tensor([9.0], requires_grad=True)
    fake_quantise(x, Format.of(1, 1, 3), overflow="wrap").sum().backward()
    assert x.grad.tolist() == [1.0]


def test_more_bits_than_float32_holds_are_computed_in_float64():
    x = torch.tensor([1 / 3])
    assert fake_quantise(x, Format.of(1, 0, 23)).dtype == torch.float32
    wide = fake_quantise(x, Format.of(1, 0, 30))
    assert wide.dtype == torch.float64 and float(wide) * 2**30 == round(float(wide) * 2**30)


def test_a_quantiser_gives_the_codes_of_its_values_and_none_of_its_formats_is_trained():
    quantiser = Quantiser(6, channels=3)
    quantiser.set_format(FORMATS[2])
    x = torch.linspace(-9, 9, 60).reshape(20, 3)
    assert np.array_equal(quantiser.codes(x), encode(x.numpy(), FORMATS[2]))
    assert not list(quantiser.parameters()) and set(quantiser.state_dict()) == {"k", "i", "f"}
    with observing(torch.nn.Sequential(quantiser)) as seen:
        assert torch.equal(quantiser(x), x)
    assert torch.equal(seen["0"][0], x) and not torch.equal(quantiser(x), x)


# --- ranges from data ---------------------------------------------------------------------------


def test_the_range_method_holds_every_value_and_no_smaller_range_does():
    for top in (0.9, 1.0, 3.99, 127.0, 0.01):
        fmt = best_format(np.array([top, -top / 3]), 12, method="range")
        assert np.abs(decode(encode([top], fmt), fmt)[0] - top) <= math.ldexp(0.5, -fmt.f[0])
        smaller = Format.of(fmt.k[0], fmt.i[0] - 1, fmt.f[0] + 1)
        assert decode(smaller.limits()[1], smaller)[0] < top - math.ldexp(0.5, -smaller.f[0])


def test_the_mse_method_is_the_best_range_there_is():
    values = np.random.default_rng(2).standard_t(3, 4000)
    fmt = best_format(values, 6)

    def error(fmt: Format) -> float:
        return float(np.mean((decode(encode(values, fmt), fmt) - values) ** 2))

    assert error(fmt) == min(error(Format.of(1, i, 5 - i)) for i in range(-4, 8))
    assert fmt.i[0] < best_format(values, 6, method="range").i[0]


def test_a_sign_bit_where_there_is_a_negative_value():
    assert best_format(np.array([0.0, 2.0]), 8).k == (0,)
    assert best_format(np.array([0.0, 2.0]), 8, signed=True).k == (1,)
    assert best_format(np.array([[0.5, -0.5], [0.1, 0.2]]), 8).k == (0, 1)
    assert best_format(np.zeros(3), 8).width == 8


# --- errors -------------------------------------------------------------------------------------


def test_errors_of_formats():
    with pytest.raises(ConfigError, match=r"\(1, 20, 20\) has 41 bits; 1 to 32 can be held"):
        Format.of(1, 20, 20)
    with pytest.raises(ConfigError, match="sign bit k of a format is 0 or 1, got 2"):
        Format.of(2, 1, 1)
    with pytest.raises(ConfigError, match="as many signs as integer and fraction bits"):
        Format((1,), (1, 2), (3,))
    with pytest.raises(ConfigError, match="a format is stored as k, i and f"):
        Format.from_json({"k": 1})
    with pytest.raises(DataError, match=r"not a number, at \(1,\)"):
        encode([1.0, math.nan], FORMATS[0])
    with pytest.raises(ShapeError, match="format of 3 channels was given values of shape"):
        encode(np.zeros((4, 2)), FORMATS[2])
    with pytest.raises(ShapeError, match="format of 3 channels was given values of shape"):
        fake_quantise(torch.zeros(4, 2), FORMATS[2])
    with pytest.raises(ConfigError, match="rounding must be one of floor, nearest, even, got 'up'"):
        Quantiser(8, rounding="up")
    with pytest.raises(ConfigError, match="overflow must be one of saturate, symmetric, wrap"):
        Quantiser(8, overflow="clip")
    with pytest.raises(ConfigError, match="gradient must be one of straight, clipped, inward"):
        Quantiser(8, gradient="none")
    with pytest.raises(ShapeError, match="quantiser of 2 channels was given a format of 3"):
        Quantiser(8, channels=2).set_format(FORMATS[2])
    with pytest.raises(DataError, match="NaN or infinite values; a diverged network"):
        best_format(np.array([math.inf]), 8)
    with pytest.raises(ConfigError, match="1 bits cannot hold values from -1 to 0"):
        best_format(np.array([-1.0]), 1)
    with pytest.raises(ConfigError, match="method must be one of mse, range, got 'max'"):
        best_format(np.array([1.0]), 8, method="max")
