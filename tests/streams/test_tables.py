"""Tables: the rows of the file and nothing else, by column name, however they are cut."""

import datetime
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.arrays import Ragged, concat
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Labels, Notice
from stillfit.core.tables import build
from stillfit.streams import columns
from stillfit.streams.contract import InMemory
from stillfit.streams.guard import TIME_ORDER, Guarded
from stillfit.streams.tables import Table


@pytest.fixture
def csv(tmp_path):
    def write(text: str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def parquet(tmp_path):
    def write(name: str = "t.parquet", **cols) -> Path:
        path = tmp_path / name
        pq.write_table(pa.table(cols), path)
        return path

    return write


def blocks(table: Table) -> list[Block]:
    return [event for event in table.events() if isinstance(event, Block)]


def labels(table: Table) -> list[Labels]:
    return [event for event in table.events() if isinstance(event, Labels)]


def test_rows_come_as_blocks_each_followed_by_its_labels(csv):
    rows = "\n".join(f"{i},{i / 2},{i * 10}" for i in range(7))
    table = Table(path=csv("a,b,y\n" + rows), inputs=("b", "a"), targets=("y",), block=3)
    events = list(table.events())
    assert [type(event) for event in events] == [Block, Labels] * 3
    assert [len(event) for event in events] == [3, 3, 3, 3, 1, 1]
    first, told = events[2:4]
    assert list(first.inputs) == ["b", "a"]
    assert first.ids.tolist() == told.ids.tolist() == [3, 4, 5]
    assert first.inputs["a"].tolist() == [3.0, 4.0, 5.0]
    assert first.inputs["a"].dtype == told.targets["y"].dtype == np.float32
    assert told.targets["y"].tolist() == [30.0, 40.0, 50.0]
    assert first.time == told.time == 5.0
    assert first.conditions == {}


@given(n=st.integers(0, 300), block=st.integers(1, 120), batch=st.integers(1, 90))
def test_no_row_is_lost_or_doubled_by_any_block_size(n, block, batch, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    x = np.random.default_rng(n).random(n)
    pq.write_table(pa.table({"x": x}), path, row_group_size=70)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_BATCH", batch)
        found = blocks(Table(path=path, inputs=("x",), block=block, dtype="float64"))
    assert [len(b) for b in found[:-1]] == [block] * (len(found) - 1)
    assert len(found) == -(-n // block)
    if n:
        np.testing.assert_array_equal(np.concatenate([b.ids for b in found]), np.arange(n))
        np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in found]), x)


def test_csv_and_parquet_of_the_same_rows_are_the_same_stream(csv, parquet, same):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=50), rng.integers(0, 2, 50)
    day = np.repeat(["mon", "tue", "sun"], [20, 20, 10])
    text = "x,y,day\n" + "\n".join(f"{a!r},{b},{c}" for a, b, c in zip(x, y, day, strict=True))
    knobs = {
        "inputs": ("x", "day"),
        "targets": ("y",),
        "condition": "day",
        "vocabulary": {"day": ("mon", "tue", "*"), "y": ("0", "1")},
        "block": 8,
        "dtype": "float64",
    }
    text = text.replace("np.float64(", "").replace(")", "")
    one = Table(path=csv(text), **knobs)
    other = Table(path=parquet(x=x, y=y, day=day), **knobs)
    same(list(one.events()), list(other.events()))


def test_the_knobs_come_from_a_run_file(csv):
    path = csv("x;class\n1;b\n2;a\n")
    table = build(
        Table,
        {
            "path": str(path),
            "inputs": ["x"],
            "targets": ["class"],
            "vocabulary": {"class": ["a", "b"]},
            "interval": 2,
            "delimiter": ";",
        },
        "[stream]",
    )
    told = labels(table)[0].targets["class"]
    assert told.tolist() == [1, 0] and told.dtype == np.int64
    assert blocks(table)[0].time == 2.0


def test_several_files_are_one_table_in_order_of_their_names(csv, tmp_path):
    for name, rows in (("b.csv", "3\n4\n"), ("a.csv", "1\n2\n"), ("c.csv", "")):
        csv("x\n" + rows, name)
    found = blocks(Table(path=tmp_path / "*.csv", inputs=("x",), block=3))
    assert [b.inputs["x"].tolist() for b in found] == [[1.0, 2.0, 3.0], [4.0]]
    assert [b.ids.tolist() for b in found] == [[0, 1, 2], [3]]


# ---- time, ids, conditions, states


def test_numbers_are_times_in_the_unit_that_is_stated(csv):
    path = csv("t,x\n1000,1\n2500,2\n")
    assert blocks(Table(path=path, inputs=("x",), time="t"))[0].time == 2500.0
    assert blocks(Table(path=path, inputs=("x",), time="t", time_unit=1e-3))[0].time == 2.5


@pytest.mark.parametrize(
    "stamps",
    [
        ("2024-05-01", "2024-05-02"),
        ("2024-05-01 23:00:00", "2024-05-02 00:00:00"),
        ("2024-05-01T23:59:59.750", "2024-05-02T00:00:00.000"),
        ("2024-05-01T23:00:00Z", "2024-05-02T02:00:00+02:00"),
    ],
)
def test_dates_and_timestamps_count_from_the_epoch(stamps, csv, parquet):
    epoch = "2024-05-01T06:00:00+00:00"
    for path in (
        csv("t,x\n" + "".join(f"{stamp},1\n" for stamp in stamps)),
        parquet(t=list(stamps), x=[1.0, 1.0]),
    ):
        table = Table(path=path, inputs=("x",), time="t", epoch=epoch)
        assert blocks(table)[0].time == 18 * 3600.0


@pytest.mark.parametrize("kind", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Zurich"])
def test_timestamps_of_parquet_are_read_in_any_unit(parquet, kind, zone):
    stamp = datetime.datetime(2024, 5, 1, 6, tzinfo=datetime.UTC if zone else None)
    path = parquet(t=pa.array([stamp], pa.timestamp(kind, zone)), x=[1.0])
    table = Table(path=path, inputs=("x",), time="t", epoch="2024-05-01")
    assert blocks(table)[0].time == 6 * 3600.0


def test_a_microsecond_survives_half_a_century(csv):
    path = csv("t,x\n2024-05-01T06:00:00.123457,1\n")
    (block,) = blocks(Table(path=path, inputs=("x",), time="t", epoch="2024-05-01T06:00:00"))
    assert block.time == pytest.approx(0.123457, abs=1e-9)


def test_blocks_end_where_the_condition_changes(csv):
    path = csv("x,run\n" + "".join(f"{i},{r}\n" for i, r in enumerate("aaabbb") for _ in "1"))
    found = blocks(Table(path=path, inputs=("x",), condition="run", block=4))
    assert [(b.condition, b.ids.tolist()) for b in found] == [
        ("a", [0, 1, 2]),
        ("b", [3]),
        ("b", [4, 5]),
    ]


def test_a_state_column_gives_notices_where_it_changes(csv):
    path = csv("x,s\n0,\n1,run\n2,run\n3,\n4,stop\n5,run\n")
    events = list(Table(path=path, inputs=("x",), state="s", block=3).events())
    notices = [(e.state, e.time) for e in events if isinstance(e, Notice)]
    assert notices == [("run", 1.0), ("stop", 4.0), ("run", 5.0)]
    # The first row of a state comes after its notice.
    assert [type(event).__name__[0] for event in events] == list("BNBBNBNB")


def test_what_is_out_of_order_is_left_for_the_guard(csv):
    path = csv("id,t,x\n1,1,0\n2,2,0\n2,2,0\n3,1.5,0\n4,,0\n5,3,0\n")
    guarded = Guarded(Table(path=path, inputs=("x",), id="id", time="t"))
    assert [event.ids.tolist() for event in guarded.events()] == [[1, 2], [5]]
    assert guarded.set_aside.counts == {"duplicate id": 1, TIME_ORDER: 2}


# ---- values


def test_an_empty_cell_is_nan_in_inputs_and_no_label_in_targets(csv):
    path = csv("x,y,z\n1,1,1\n,2,2\n3,,3\n4,4,nan\n")
    table = Table(path=path, inputs=("x",), targets=("y", "z"))
    assert np.isnan(blocks(table)[0].inputs["x"]).tolist() == [False, True, False, False]
    assert labels(table)[0].ids.tolist() == [0, 1]


def test_rows_without_any_target_give_no_labels_at_all(csv):
    assert not labels(Table(path=csv("x,y\n1,\n2,\n"), inputs=("x",), targets=("y",)))
    assert not labels(Table(path=csv("x,y\n1,3\n"), inputs=("x",)))


def test_the_type_of_a_column_does_not_depend_on_its_first_rows(csv):
    path = csv("x\n" + "1\n" * 400_000 + "2.5\n")
    assert blocks(Table(path=path, inputs=("x",)))[-1].inputs["x"][-1] == 2.5


def test_integers_booleans_and_decimals_are_numbers(parquet):
    import decimal

    path = parquet(
        i=pa.array([1, None, 3], pa.int16()),
        b=[True, False, True],
        d=[decimal.Decimal("1.25")] * 3,
        h=np.array([1, 2, 3], np.float16),
    )
    found = blocks(Table(path=path, inputs=("i", "b", "d", "h")))[0].inputs
    np.testing.assert_array_equal(found["i"], np.array([1, np.nan, 3], np.float32))
    assert found["b"].tolist() == [1.0, 0.0, 1.0]
    assert found["d"].tolist() == [1.25] * 3
    assert found["h"].tolist() == [1.0, 2.0, 3.0]


def test_what_overflows_single_precision_is_infinite(csv):
    path = csv("x\n1e300\n")
    assert blocks(Table(path=path, inputs=("x",)))[0].inputs["x"].tolist() == [np.inf]
    table = Table(path=path, inputs=("x",), dtype="float64")
    assert blocks(table)[0].inputs["x"].tolist() == [1e300]


def test_text_becomes_codes_of_its_vocabulary(csv, parquet):
    words = ("low", "high")
    for path in (
        csv("x\nhigh\nlow\nhigh\n"),
        parquet(x=["high", "low", "high"]),
        parquet("d.parquet", x=pa.array(["high", "low", "high"]).dictionary_encode()),
    ):
        found = blocks(Table(path=path, inputs=("x",), vocabulary={"x": words}))[0].inputs["x"]
        assert found.tolist() == [1, 0, 1] and found.dtype == np.int64


def test_a_star_takes_all_other_values(csv):
    path = csv("x,y\na,a\nc,\n,q\n")
    vocabulary = {"x": ("a", "b", "*"), "y": ("a", "*")}
    table = Table(path=path, inputs=("x",), targets=("y",), vocabulary=vocabulary)
    assert blocks(table)[0].inputs["x"].tolist() == [0, 2, 2]
    assert labels(table)[0].ids.tolist() == [0, 2]
    assert labels(table)[0].targets["y"].tolist() == [0, 1]


def test_lists_become_ragged_columns_and_matrices(parquet):
    ragged = [[1.0, 2.0], [], None, [3.0]]
    path = parquet(
        r=pa.array(ragged, pa.list_(pa.float64())),
        m=pa.array([[1, 2, 3]] * 4, pa.list_(pa.int32(), 3)),
        i=pa.array([[1], [2, 3], [4], []], pa.large_list(pa.int8())),
    )
    table = Table(path=path, inputs=("r", "m", "i"), block=3)
    found = concat([b.inputs for b in blocks(table)])
    assert isinstance(found["r"], Ragged)
    assert found["r"].counts.tolist() == [2, 0, 0, 1]
    assert found["r"].values.tolist() == [1.0, 2.0, 3.0]
    assert found["i"].counts.tolist() == [1, 2, 1, 0]
    assert found["m"].shape == (4, 3) and found["m"].dtype == np.float32


# ---- memory


def test_a_long_table_is_not_held_in_memory(tmp_path):
    path = tmp_path / "long.parquet"
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([(f"x{i}", pa.float64()) for i in range(8)])) as out:
        for _ in range(10):
            out.write_table(pa.table({f"x{i}": rng.random(100_000) for i in range(8)}))
    table = Table(path=path, inputs=tuple(f"x{i}" for i in range(8)))
    whole = 1_000_000 * 8 * 4
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    arrow = 0
    for _ in table.events():
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 3
    assert arrow < whole


# ---- errors


def test_wrong_columns_are_named_with_a_guess(csv, parquet):
    for path in (csv("speed,y\n1,2\n"), parquet(speed=[1.0], y=[2.0])):
        with pytest.raises(ConfigError, match=r"has no column 'spead'; did you mean 'speed'\?"):
            blocks(Table(path=path, inputs=("spead",)))
    with pytest.raises(ConfigError, match=r"has no column 'qq'; known are: speed, y"):
        blocks(Table(path=path, inputs=("speed",), time="qq"))
    with pytest.raises(ConfigError, match=r"has 2 columns named 'a'; rename them"):
        blocks(Table(path=csv("a,a\n1,2\n"), inputs=("a",)))


def test_text_without_a_vocabulary_is_named(csv, parquet):
    with pytest.raises(DataError, match=r"t.csv cannot be read: .*Row #2: .*'mon'.*`vocabulary`"):
        blocks(Table(path=csv("day\nmon\n"), inputs=("day",)))
    with pytest.raises(
        DataError,
        match=r"column 'day' of .* holds text \(mon, tue, ...\), not numbers; state its values in "
        r'order as vocabulary.day = \["...", "..."\], or leave it out',
    ):
        blocks(Table(path=parquet(day=["mon", "tue"]), inputs=("day",)))
    with pytest.raises(DataError, match=r"column 'x' of .* is list<.*>, which cannot be read as t"):
        blocks(Table(path=parquet(x=[[1]]), inputs=("x",), vocabulary={"x": ("1",)}))


def test_text_after_many_numbers_is_named(csv):
    path = csv("x,y\n" + "1,2\n" * 5000 + "oops,2\n")
    with pytest.raises(DataError, match=r"t.csv cannot be read: .*Row #5002: .*'oops'.*vocabulary"):
        blocks(Table(path=path, inputs=("x",)))


def test_a_value_outside_the_vocabulary_is_named(csv):
    path = csv("x\na\nb\nc\n")
    with pytest.raises(
        DataError,
        match=r"column 'x' of .* holds 'c' in row 2, which vocabulary.x does not list; add it, "
        r"or '\*' at the end for all others",
    ):
        blocks(Table(path=path, inputs=("x",), vocabulary={"x": ("a", "b")}))


def test_dates_in_other_columns_are_refused(csv, parquet):
    day = datetime.date(2024, 5, 1)
    for path in (csv("d\n2024-05-01\n"), parquet(d=[day])):
        with pytest.raises(DataError, match=r"holds dates or times of day .*only the `time`"):
            blocks(Table(path=path, inputs=("d",)))


def test_times_that_are_no_times_are_refused(csv, parquet):
    with pytest.raises(DataError, match=r"cannot be read: .*'2018.12.02 12:43:25'.*ISO 8601"):
        blocks(Table(path=csv("t,x\n2018.12.02 12:43:25,1\n"), inputs=("x",), time="t"))
    with pytest.raises(DataError, match=r"the time column 't' of .* is not ISO 8601: .*noon"):
        blocks(Table(path=parquet(t=["noon"], x=[1.0]), inputs=("x",), time="t"))
    with pytest.raises(DataError, match=r"the time column 't' of .* holds lists"):
        blocks(Table(path=parquet(t=[[1.0]], x=[1.0]), inputs=("x",), time="t"))
    with pytest.raises(ConfigError, match=r"epoch = 'May' is no ISO 8601 timestamp such as"):
        Table(path=Path("t.csv"), inputs=("x",), epoch="May")


def test_ids_that_are_no_ids_are_refused(csv, parquet):
    with pytest.raises(DataError, match=r"column 'i' of .* has no id in row 1"):
        blocks(Table(path=csv("i,x\n1,1\n,2\n"), inputs=("x",), id="i"))
    with pytest.raises(DataError, match=r"is string; event ids must be whole numbers"):
        blocks(Table(path=parquet(i=["e1"], x=[1.0]), inputs=("x",), id="i"))
    with pytest.raises(DataError, match=r"has ids that are not whole: .*1.5"):
        blocks(Table(path=parquet(i=[1.5], x=[1.0]), inputs=("x",), id="i"))


def test_files_that_are_no_tables_are_refused(csv, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*gone.csv; give the path of a CSV"):
        blocks(Table(path=tmp_path / "gone.csv", inputs=("x",)))
    with pytest.raises(ConfigError, match=r"no file matches .*\*.pq; give the path of a CSV"):
        blocks(Table(path=tmp_path / "*.pq", inputs=("x",)))
    with pytest.raises(ConfigError, match=r"t.xlsx is neither CSV nor Parquet by its name"):
        blocks(Table(path=csv("x", "t.xlsx"), inputs=("x",)))
    with pytest.raises(DataError, match=r"t.parquet cannot be read: "):
        blocks(Table(path=csv("no parquet, this", "t.parquet"), inputs=("x",)))
    with pytest.raises(DataError, match=r"t.csv cannot be read: .*a line cut\?"):
        blocks(Table(path=csv("x,y\n1,2\n3\n"), inputs=("x",)))
    with pytest.raises(DataError, match=r"t.csv cannot be read: .*Empty"):
        blocks(Table(path=csv(""), inputs=("x",)))


def test_knobs_that_make_no_sense_are_refused():
    path = Path("t.csv")
    for knobs, text in (
        ({"inputs": ()}, "at least one column in `inputs`"),
        ({"block": 0}, "block = 0 must be at least 1 row"),
        ({"interval": 0.0}, "interval = 0.0"),
        ({"time_unit": -1.0}, "time_unit = -1.0 above 0 s"),
        ({"inputs": ("x", "x")}, "inputs names x more than once"),
        ({"vocabulary": {"z": ("a",)}}, "vocabulary has z, which is neither an input nor"),
        ({"vocabulary": {"x": ()}}, r"vocabulary.x = \[\] must list different values"),
        ({"vocabulary": {"x": ("*", "a")}}, r"'\*' \(all others\) only at its end"),
    ):
        with pytest.raises(ConfigError, match=text):
            Table(**{"path": path, "inputs": ("x",), **knobs})


def test_a_list_lacking_in_a_matrix_is_named(parquet):
    path = parquet(m=pa.array([[1, 2], None], pa.list_(pa.int32(), 2)))
    with pytest.raises(DataError, match=r"column 'm' of .* lacks the list in 1 rows"):
        blocks(Table(path=path, inputs=("m",)))


def test_a_table_and_the_same_events_in_memory_are_alike_to_a_guard(csv, same):
    table = Table(path=csv("x\n1\n\n2\nnan\n"), inputs=("x",))
    one, other = Guarded(table), Guarded(InMemory(list(table.events())))
    same(list(one.events()), list(other.events()))
    assert one.set_aside == other.set_aside
