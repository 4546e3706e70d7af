"""A state becomes named arrays and comes back as it was."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError
from stillfit.core.state import from_arrays, to_arrays


class Inner(NamedTuple):
    counts: np.ndarray
    on: bool


@dataclass(frozen=True)
class Outer:
    n: int
    mean: float
    inner: Inner
    pair: tuple[float, np.ndarray]
    named: dict[str, np.ndarray]
    tracks: Ragged


def outer(n: int, mean: float, array: np.ndarray) -> Outer:
    return Outer(
        n,
        mean,
        Inner(array, bool(n % 2)),
        (mean, array + 1),
        {"a": array, "b": array[:0]},
        Ragged.from_counts(array, np.array([len(array)])),
    )


LIKE = outer(0, 0.0, np.zeros(1))
arrays = hnp.arrays(np.float64, st.integers(0, 5), elements=st.floats(-1e9, 1e9))


@given(st.integers(-(2**62), 2**62), st.floats(), arrays)
def test_a_state_comes_back_bit_for_bit_with_its_types(n, mean, array):
    state = outer(n, mean, array)
    back = from_arrays(LIKE, to_arrays(state))
    assert type(back) is Outer
    assert type(back.inner) is Inner
    assert (type(back.n), type(back.mean), type(back.inner.on)) == (int, float, bool)
    flat, again = to_arrays(state), to_arrays(back)
    assert flat.keys() == again.keys()
    for name, values in flat.items():
        assert values.dtype == again[name].dtype
        assert values.tobytes() == again[name].tobytes()


def test_the_names_are_dotted_paths():
    assert set(to_arrays(LIKE)) == {
        "n",
        "mean",
        "inner.counts",
        "inner.on",
        "pair.0",
        "pair.1",
        "named.a",
        "named.b",
        "tracks.values",
        "tracks.offsets",
    }


@pytest.mark.parametrize("bad", [None, "text", [1.0], {1.0}])
def test_text_none_and_lists_are_not_states(bad):
    with pytest.raises(
        DataError, match=r"a state must be made of numbers and arrays, got \w+ at x"
    ):
        to_arrays({"x": bad})
    with pytest.raises(DataError, match="a state must be made of numbers and arrays"):
        from_arrays({"x": bad}, {"x": np.zeros(1)})


def test_a_checkpoint_of_another_configuration_is_refused_by_name():
    flat = to_arrays(LIKE)
    del flat["inner.counts"]
    with pytest.raises(
        DataError, match=r"the checkpoint lacks 'inner.counts'; was it written by an"
    ):
        from_arrays(LIKE, flat)


def test_two_parts_of_one_name_are_refused_and_not_lost():
    with pytest.raises(DataError, match=r"two parts of a state are named 'a.b'"):
        to_arrays({"a.b": 1.0, "a": {"b": 2.0}})
