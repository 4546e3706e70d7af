"""Recordings: what is read is what was recorded, and what cannot be is refused by name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillfit.core.errors import ConfigError, DataError, OrderError
from stillfit.sensing.recordings import ACTIVITIES, SensorFiles


def test_samples_come_back_in_order_of_subject_device_and_time(table, write, tmp_path):
    columns = table(executions=2)
    found = SensorFiles(path=write(tmp_path / "r.parquet", columns)).read()
    assert found.subjects == ("a", "b") and found.devices == ("sp", "sw")
    assert found.activities == ACTIVITIES and len(found) == len(columns["timestamp"])
    code = found.subject * 2 + found.device
    assert np.all(np.diff(code) >= 0)
    assert np.all((np.diff(found.times) >= 0) | (np.diff(code) > 0))
    assert found.run.max() + 1 == 2 * 2 * 2 and np.all(np.isin(np.diff(found.run), (0, 1)))
    for name, channel in zip(found.channels, found.signals.T, strict=True):
        assert np.array_equal(np.sort(channel), np.sort(columns[name]))
    first = (columns["subject"] == "b") & (columns["device"] == "sw")
    mine = code == 3
    np.testing.assert_array_equal(found.times[mine], columns["timestamp"][first] * 1e-3)
    np.testing.assert_array_equal(found.signals[mine][:, 4], columns["y_gyro"][first])
    names = np.array(found.activities)[found.activity[mine]]
    np.testing.assert_array_equal(names, columns["label"][first])


def test_devices_may_be_mixed_row_by_row(table, write, tmp_path):
    """Only the order within one subject and device counts."""
    columns = table(executions=2)
    plain = SensorFiles(path=write(tmp_path / "plain.parquet", columns)).read()
    order = np.argsort(columns["timestamp"], kind="stable")
    mixed = {name: values[order] for name, values in columns.items()}
    again = SensorFiles(path=write(tmp_path / "mixed.parquet", mixed)).read()
    for name in ("signals", "times", "activity", "subject", "device", "run"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(again, name))


def test_several_files_are_one_recording(table, write, tmp_path):
    columns = table(subjects=("a", "b"), executions=2)
    whole = SensorFiles(path=write(tmp_path / "whole.parquet", columns)).read()
    for subject in ("a", "b"):
        rows = columns["subject"] == subject
        write(tmp_path / f"part-{subject}.parquet", {n: v[rows] for n, v in columns.items()})
    parts = SensorFiles(path=tmp_path / "part-*.parquet").read()
    np.testing.assert_array_equal(whole.signals, parts.signals)
    np.testing.assert_array_equal(whole.run, parts.run)


def test_one_sensor_and_no_column_of_executions_will_do(table, write, tmp_path):
    columns = table(executions=2)
    for name in ("x_gyro", "y_gyro", "z_gyro", "execution"):
        del columns[name]
    path = write(tmp_path / "r.parquet", columns)
    found = SensorFiles(path=path, sensors=(("x_acc", "y_acc", "z_acc"),), execution=None).read()
    assert found.signals.shape[1] == 3 and found.run.max() + 1 == 4


def test_timestamps_may_be_dates(table, write, tmp_path):
    columns = table(subjects=("a",), executions=1)
    plain = SensorFiles(path=write(tmp_path / "plain.parquet", columns)).read()
    stamps = pa.array(columns.pop("timestamp")).cast(pa.timestamp("ms"))
    whole = pa.table({**{n: pa.array(v) for n, v in columns.items()}, "timestamp": stamps})
    pq.write_table(whole, tmp_path / "dates.parquet")
    dates = SensorFiles(path=tmp_path / "dates.parquet").read()
    np.testing.assert_allclose(dates.times, plain.times, atol=1e-6, rtol=0)


def changed(columns, name, row, value):
    values = columns[name].astype(object) if isinstance(value, str) else columns[name].copy()
    values[row] = value
    return {**columns, name: values.astype(str) if isinstance(value, str) else values}


def refused(table, write, tmp_path, name, row, value):
    columns = changed(table(executions=1), name, row, value)
    path = write(tmp_path / "bad.parquet", columns)
    with pytest.raises(DataError) as caught:
        SensorFiles(path=path).read()
    return str(caught.value), path, caught.value


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(table, write, tmp_path, value):
    text, path, _ = refused(table, write, tmp_path, "y_acc", 17, np.float32(value))
    assert text == (
        f"column 'y_acc' of {path} holds {value} in row 17 (1 such among 4000 rows); drop these "
        "rows, which leaves a gap, or repair them before"
    )


def test_an_unknown_activity_is_named(table, write, tmp_path):
    text, path, _ = refused(table, write, tmp_path, "label", 5, "JUMPING")
    assert text == (
        f"column 'label' of {path} holds 'JUMPING' in row 5, which vocabulary.label does not "
        "list; add it, or '*' at the end for all others"
    )


def test_an_empty_subject_is_named(table, write, tmp_path):
    text, path, _ = refused(table, write, tmp_path, "subject", 3, "")
    assert f"column 'subject' of {path} holds nothing in row 3 (1 such among" in text


def test_time_that_runs_backwards_is_named(table, write, tmp_path):
    text, path, error = refused(table, write, tmp_path, "timestamp", 100, 1_600_000_000_000)
    assert isinstance(error, OrderError)
    assert text == (
        f"time runs backwards for a/sp in row 100 of {path}: 1600000000.000 s comes after "
        "1600000000.990 s; are two recordings mixed under one name?"
    )


def test_a_missing_column_or_file_is_named(table, write, tmp_path):
    columns = table(executions=1)
    columns["x_gyr"] = columns.pop("x_gyro")
    path = write(tmp_path / "bad.parquet", columns)
    with pytest.raises(ConfigError, match=r"has no column 'x_gyro'; did you mean 'x_gyr'\?"):
        SensorFiles(path=path).read()
    with pytest.raises(ConfigError, match=r"no file .*gone.parquet; give the path of a Parquet"):
        SensorFiles(path=tmp_path / "gone.parquet").read()


def test_an_empty_file_is_refused(table, write, tmp_path):
    columns = {name: values[:0] for name, values in table(executions=1).items()}
    path = write(tmp_path / "empty.parquet", columns)
    with pytest.raises(DataError, match="holds no rows; was the recording ever started"):
        SensorFiles(path=path).read()


def test_knobs_that_cannot_be_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(ConfigError, match="at least one sensor of three axes"):
        SensorFiles(path=path, sensors=())
    with pytest.raises(ConfigError, match="sensors names x more than once"):
        SensorFiles(path=path, sensors=(("x", "x", "z"),))
    with pytest.raises(ConfigError, match=r"vocabulary.label = \['A', 'A'\] must list different"):
        SensorFiles(path=path, activities=("A", "A"))
    with pytest.raises(ConfigError, match=r"time_unit must be above 0 s, got 0\.0"):
        SensorFiles(path=path, time_unit=0.0)


def test_the_real_recordings_are_as_published(real):
    """23 wearers, phone and watch, five activities. Source: doi:10.5281/zenodo.8398688."""
    assert len(real.subjects) == 23 and real.devices == ("sp", "sw")
    assert set(np.unique(real.activity)) == set(range(5))
    assert len(real) == 521_766 and real.run.max() + 1 == 446
    steps = np.diff(real.times)[np.diff(real.run) == 0]
    assert 0 < np.mean(steps) < 0.011 and steps.max() < 0.25
