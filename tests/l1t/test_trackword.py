"""Laws of the 96-bit track word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stillfit.core.errors import DataError, ShapeError
from stillfit.l1t import trackword
from stillfit.l1t.trackword import FIELDS

SIGNED = [field for field in FIELDS.values() if field.kind == "signed"]
BINNED = [field for field in FIELDS.values() if field.kind == "bins"]


@st.composite
def all_codes(draw):
    n = draw(st.integers(0, 6))
    return {
        name: draw(hnp.arrays(np.int32, n, elements=st.integers(*field.codes)))
        for name, field in FIELDS.items()
    }


def test_fields_fill_the_96_bits_once_and_none_crosses_a_32_bit_boundary():
    bits = [field.low + bit for field in FIELDS.values() for bit in range(field.bits)]
    assert sorted(bits) == list(range(96))
    assert all(f.low // 32 == (f.low + f.bits - 1) // 32 for f in FIELDS.values())


def test_ranges_are_those_of_the_track_finder():
    def reach(name):
        return FIELDS[name].lsb * 2 ** (FIELDS[name].bits - 1)

    assert reach("rinv") == pytest.approx(0.006)
    assert reach("phi") == pytest.approx(0.7853981696)
    assert reach("tanl") == 8
    assert reach("z0") == pytest.approx(20.46912512)
    assert reach("d0") == 16
    assert FIELDS["z0"].lsb == pytest.approx(0.00999, abs=5e-6)


@given(all_codes())
def test_unpacking_a_packed_word_gives_the_codes_back(codes):
    back = trackword.unpack(trackword.pack(codes))
    assert list(back) == list(FIELDS)
    for name, code in codes.items():
        np.testing.assert_array_equal(back[name], code)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=1).map(lambda s: (s[0], 12))))
def test_packing_an_unpacked_word_gives_the_bytes_back(words):
    np.testing.assert_array_equal(trackword.pack(trackword.unpack(words)), words)


def test_a_word_worked_out_by_hand():
    words = trackword.pack({"valid": [1], "z0": [-1], "other": [5]})
    number = int.from_bytes(words[0].tobytes(), "big")
    assert number == (1 << 95) | (0xFFF << 36) | 5


@pytest.mark.parametrize("field", SIGNED, ids=lambda field: field.name)
@given(place=st.floats(-1, 1, exclude_max=True))
def test_the_error_of_a_signed_field_is_at_most_half_a_step(field, place):
    value = place * field.lsb * 2 ** (field.bits - 1)
    back = field.undigitise(field.digitise(value))
    assert abs(back - value) <= field.lsb / 2 * (1 + 1e-9)


@pytest.mark.parametrize("field", SIGNED, ids=lambda field: field.name)
@given(beyond=st.floats(1.0, 1e30) | st.just(np.inf))
def test_a_signed_field_saturates_outside_its_range(field, beyond):
    reach = field.lsb * 2 ** (field.bits - 1)
    assert field.digitise(beyond * reach) == field.codes[1]
    assert field.digitise(-beyond * reach) == field.codes[0]


@pytest.mark.parametrize("field", SIGNED, ids=lambda field: field.name)
@given(codes=st.data())
def test_a_code_survives_its_real_value(field, codes):
    code = codes.draw(st.integers(*field.codes))
    assert field.digitise(field.undigitise(code)) == code


@pytest.mark.parametrize("field", SIGNED + BINNED, ids=lambda field: field.name)
@given(pair=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_digitising_never_turns_an_order_round(field, pair):
    low, high = field.digitise(np.array(sorted(pair)))
    assert low <= high


@pytest.mark.parametrize("field", BINNED, ids=lambda field: field.name)
@given(value=st.floats(0, 1e6))
def test_a_bin_holds_its_value(field, value):
    code = int(field.digitise(value))
    assert field.edges[code] <= value
    assert code == len(field.edges) - 1 or value < field.edges[code + 1]


@pytest.mark.parametrize("field", BINNED, ids=lambda field: field.name)
def test_every_lower_edge_starts_its_bin_and_negative_values_are_in_the_first(field):
    assert len(field.edges) == 2**field.bits
    np.testing.assert_array_equal(field.digitise(field.edges), np.arange(2**field.bits))
    assert field.digitise(-1.0) == 0


def test_single_precision_input_gives_the_codes_of_its_exact_value():
    value = np.random.default_rng(3).uniform(-20, 20, 1000).astype(np.float32)
    field = FIELDS["z0"]
    np.testing.assert_array_equal(field.digitise(value), field.digitise(value.astype(float)))


@given(st.floats(-10, 10))
def test_a_sector_and_its_local_phi_give_the_global_phi_back(phi):
    sector, local = trackword.to_sector(phi)
    assert 0 <= sector < 9
    assert abs(local) <= trackword.SECTOR_WIDTH / 2 + 1e-9
    turned = trackword.from_sector(sector, local)
    assert np.cos(turned - phi) == pytest.approx(1)


def test_digitise_and_undigitise_work_by_field_name_and_leave_their_input():
    tracks = {"z0": np.array([0.004, -0.004]), "chi2rz": np.array([0.6, 99.0])}
    kept = {name: values.copy() for name, values in tracks.items()}
    codes = trackword.digitise(tracks)
    assert codes["z0"].tolist() == [0, -1]
    assert codes["chi2rz"].tolist() == [1, 15]
    back = trackword.undigitise(codes)
    assert back["chi2rz"].tolist() == [0.5, 50.0]
    for name in tracks:
        np.testing.assert_array_equal(tracks[name], kept[name])


def test_errors_name_the_field_and_the_cause():
    with pytest.raises(DataError, match="z0 of track 1 is not a number; a fit that failed"):
        trackword.digitise({"z0": [0.0, np.nan]})
    with pytest.raises(DataError, match=r"a code of quality is 8, its 3 bits hold 0 to 7"):
        trackword.pack({"quality": [8]})
    with pytest.raises(DataError, match=r"codes of z0 must be whole numbers, got float64"):
        trackword.pack({"z0": [0.5]})
    with pytest.raises(DataError, match="has no field 'pt'; it has valid, rinv, phi"):
        trackword.digitise({"pt": [2.0]})
    with pytest.raises(ShapeError, match="must be axes of equal length"):
        trackword.pack({"z0": [1, 2], "d0": [1]})
    with pytest.raises(ShapeError, match=r"must be uint8 of shape \(n, 12\), got int64 \(2, 3\)"):
        trackword.unpack(np.zeros((2, 3), np.int64))
