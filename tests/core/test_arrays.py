"""Laws of ragged columns and of named arrays: every operation against the plain list of events."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.arrays import (
    Ragged,
    concat,
    content_hash,
    first_bad,
    flatten,
    n_bytes,
    n_events,
    names_of,
    take,
    unflatten,
    with_offsets_shared,
)
from stillfit.core.errors import DataError, ShapeError

events = st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=7)


def ragged(lists: list[list[int]]) -> Ragged:
    values = np.array([item for event in lists for item in event], np.int64)
    return Ragged.from_counts(values, np.array([len(event) for event in lists], np.int64))


def lists(column: Ragged) -> list[list[int]]:
    return [
        column.values[a:b].tolist()
        for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)
    ]


@given(events)
def test_a_ragged_column_holds_the_events_it_was_made_of(given_events):
    column = ragged(given_events)
    assert lists(column) == given_events
    assert column.counts.tolist() == [len(event) for event in given_events]
    assert column.events.tolist() == [i for i, e in enumerate(given_events) for _ in e]
    assert column.nbytes == 8 * (len(column.values) + len(column.offsets))


@given(events, st.data())
def test_indexing_a_ragged_column_is_indexing_its_list(given_events, data):
    n = len(given_events)
    column = ragged(given_events)
    bound = st.one_of(st.none(), st.integers(-n - 2, n + 2))
    step = data.draw(st.sampled_from([None, 1, 2, -1, 3]))
    cut = slice(data.draw(bound), data.draw(bound), step)
    assert lists(column[cut]) == given_events[cut]
    rows = data.draw(st.lists(st.integers(-n, n - 1), max_size=6)) if n else []
    assert lists(column[np.array(rows, np.int64)]) == [given_events[i] for i in rows]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    assert lists(column[mask]) == [e for e, kept in zip(given_events, mask, strict=True) if kept]


def test_indexing_long_runs_of_events_is_indexing_their_list():
    column = ragged([[i] * (i % 4) for i in range(60)])
    for rows in (np.r_[0:20, 25:60], np.r_[40:60, 3, 0:30], np.r_[-30:0], np.r_[-9:30], np.r_[7:8]):
        assert lists(column[rows]) == [lists(column)[row] for row in rows]
        assert not np.shares_memory(column[rows].values, column.values)
    with pytest.raises(IndexError):
        column[np.r_[50:61]]


def test_a_contiguous_slice_is_a_view_and_an_index_is_a_copy():
    column = ragged([[1, 2], [3], [4, 5, 6]])
    assert np.shares_memory(column[1:3].values, column.values)
    assert not np.shares_memory(column[np.array([1, 2])].values, column.values)


@given(events, events)
def test_joining_ragged_columns_joins_their_lists(a, b):
    joined = concat([{"x": ragged(a)}, {"x": ragged(b)}])["x"]
    assert lists(joined) == a + b


@given(events)
def test_flattened_columns_come_back_as_they_were(given_events):
    columns = {"t": ragged(given_events), "d": np.arange(len(given_events), dtype=np.float32)}
    flat = flatten(columns)
    assert set(flat) == {"t", "t#offsets", "d"}
    back = unflatten(flat)
    assert lists(back["t"]) == given_events
    assert np.array_equal(back["d"], columns["d"])
    assert content_hash(back) == content_hash(columns)


def test_take_and_concat_are_inverse_and_count_events_and_bytes():
    columns = {"t": ragged([[1], [], [2, 3]]), "d": np.arange(6.0).reshape(3, 2)}
    both = concat([take(columns, slice(0, 1)), take(columns, slice(1, 3))])
    assert content_hash(both) == content_hash(columns)
    assert n_events(columns) == 3
    assert n_events({}) == 0
    assert n_bytes(columns) == 8 * (3 + 4 + 6)
    assert concat([]) == {}


def test_columns_that_share_offsets_share_them_ever_after():
    first = ragged([[1], [], [2, 3]])
    columns = {"a": first, "b": first.with_values(np.arange(3.0)), "c": ragged([[], [5], []])}
    other = with_offsets_shared({n: Ragged(c.values, c.offsets.copy()) for n, c in columns.items()})
    for same in (
        take(columns, np.array([2, 0])),
        take(columns, slice(1, 3)),
        concat([columns, other]),
        other,
        unflatten(flatten(columns)),
    ):
        assert same["a"].offsets is same["b"].offsets is not same["c"].offsets
    assert lists(concat([columns, other])["b"]) == [[0.0], [], [1.0, 2.0]] * 2
    assert lists(take(columns, np.array([2, 0]))["b"]) == [[1.0, 2.0], [0.0]]


def test_other_values_must_be_as_many():
    with pytest.raises(ShapeError, match="2 values were given for 3 items"):
        ragged([[1], [2, 3]]).with_values(np.zeros(2))


def test_one_part_alone_is_joined_without_a_copy():
    columns = {"t": ragged([[1], [2, 3]])}
    assert concat([columns])["t"] is columns["t"]


def test_equal_content_has_equal_hashes_in_any_memory_layout():
    base = np.arange(12.0).reshape(3, 4)
    same = [
        {"a": base},
        {"a": np.asfortranarray(base)},
        {"a": base.astype(">f8")},
        {"a": np.repeat(base, 2, axis=1)[:, ::2]},
    ]
    assert len({content_hash(arrays) for arrays in same}) == 1
    two = {"a": base, "b": base}
    assert content_hash(two) == content_hash(dict(reversed(two.items())))
    # Pinned, so that versions stored by an older release keep their ids.
    assert content_hash({"x": np.arange(3, dtype=np.int32)}).startswith("437dbc82a445aa0a")


def test_other_names_types_shapes_or_values_have_other_hashes():
    base = np.arange(4, dtype=np.int64)
    others = [
        {"a": base},
        {"b": base},
        {"a": base.astype(np.float64)},
        {"a": base.astype(np.int32)},
        {"a": base.reshape(2, 2)},
        {"a": base + 1},
        {"a": base, "b": base},
        {"a": Ragged.from_counts(base, np.array([4]))},
        {"a": Ragged.from_counts(base, np.array([3, 1]))},
        {},
    ]
    assert len({content_hash(arrays) for arrays in others}) == len(others)


def test_the_first_bad_value_is_named_with_its_place():
    x = np.ones((3, 2))
    assert first_bad({"x": x, "i": np.arange(3), "s": np.array(["a", "b", "c"])}) is None
    assert first_bad({"x": np.full(4, 1e308)}) is None  # the sum overflows, the values are finite
    x[1, 0], x[2, 1] = np.nan, np.inf
    assert first_bad({"x": x}) == "column 'x' holds nan at (1, 0) (2 in all)"
    both = Ragged.from_counts(np.array([np.inf, -np.inf], np.float32), np.array([2]))
    assert first_bad({"r": both}) == "column 'r' holds inf at (0,) (2 in all)"


def test_names_are_listed_for_readers():
    assert names_of(["b", "a"]) == "a, b"
    assert names_of([]) == "none"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: Ragged(np.zeros(3), np.array([0, 3], np.int32)),
            ShapeError,
            "offsets must be one int64 axis of events + 1 entries, got shape (2,) of int32",
        ),
        (
            lambda: Ragged(np.zeros(3), np.array([0, 2])),
            ShapeError,
            "offsets must rise from 0 to the 3 items, got 0 to 2; were the values cut without "
            "their offsets?",
        ),
        (
            lambda: Ragged(np.zeros(3), np.array([0, 2, 1, 3])),
            ShapeError,
            "offsets must rise from 0 to the 3 items",
        ),
        (
            lambda: ragged([[1], [2]])[np.array([True])],
            ShapeError,
            "a mask of 1 was put on 2 events",
        ),
        (
            lambda: n_events({"a": np.zeros(2), "b": np.zeros(3)}),
            ShapeError,
            "columns disagree on the number of events: {'a': 2, 'b': 3}",
        ),
        (
            lambda: concat([{"a": np.zeros(2)}, {"b": np.zeros(2)}]),
            ShapeError,
            "parts have different columns: ['a'] and ['b']; was the feature list changed?",
        ),
        (
            lambda: concat([{"a": np.zeros(2)}, {"a": ragged([[1]])}]),
            ShapeError,
            "cannot join ragged and dense columns of the same name",
        ),
        (
            lambda: flatten({"a#b": np.zeros(2)}),
            DataError,
            "a column must not have '#' in its name, got 'a#b'",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_value_and_the_cause(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
