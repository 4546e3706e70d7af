"""Arrays as bytes: any safetensors reader reads them, and nothing broken is read."""

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stillfit.core.errors import DamagedError, DataError
from stillfit.streams.packing import packed, unpacked

KINDS = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
ARRAYS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(KINDS).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=5,
)


def identical(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
        assert one[name].tobytes() == other[name].tobytes()


@given(ARRAYS)
def test_what_is_packed_comes_back(arrays):
    identical(unpacked(packed(arrays), "here"), arrays)


@given(ARRAYS)
def test_the_safetensors_library_reads_it(arrays):
    identical(safetensors.numpy.load(packed(arrays).tobytes()), arrays)


def test_files_of_the_safetensors_library_are_read():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.uint8)}
    data = np.frombuffer(safetensors.numpy.save(arrays, {"made": "by hand"}), np.uint8)
    found = unpacked(data, "here")
    identical({name: found[name] for name in arrays}, arrays)


def test_views_and_big_endian_arrays_are_stored_by_value():
    base = np.arange(20, dtype=np.float64)
    arrays = {"stride": base[::3], "turned": base.reshape(4, 5).T, "big": base.astype(">f8")}
    found = unpacked(packed(arrays), "here")
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])


def test_reading_copies_nothing():
    data = packed({"a": np.arange(1000.0)})
    assert np.shares_memory(unpacked(data, "here")["a"], data)


def test_text_and_objects_are_refused():
    for bad in (np.array(["a"]), np.array([None]), np.zeros(2, np.complex128)):
        with pytest.raises(DataError, match=r"column 'x' of type .* cannot be stored; kinds are"):
            packed({"x": bad})


@pytest.mark.parametrize("cut", [0, 5, 8, 20, 60, -1, -100])
def test_a_cut_file_is_an_error(cut):
    data = packed({"a": np.arange(50.0), "b": np.arange(5)})
    with pytest.raises(DamagedError, match=r"FILE was altered or cut: it does not hold arrays"):
        unpacked(data[:cut], "FILE")


def test_a_header_that_points_elsewhere_is_an_error():
    data = packed({"a": np.arange(4.0)})
    text = data.tobytes().replace(b"[0, 32]", b"[0, 99]")
    with pytest.raises(DamagedError, match="lies outside the file"):
        unpacked(np.frombuffer(text, np.uint8), "FILE")
