"""Small made-up recordings of worn sensors, and where the real file may lie."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillfit.sensing.recordings import ACCELEROMETER, ACTIVITIES, GYROSCOPE, SensorFiles
from stillfit.sensing.windows import Windowing

CHANNELS = (*ACCELEROMETER, *GYROSCOPE)
# A file that is not ours to ship: where STILLFIT_HAR says, or in a folder beside the code.
PLACES = [
    Path(os.environ.get("STILLFIT_HAR", "har.parquet")),
    *(parent / "shared/data/har-sp-sw.parquet" for parent in Path(__file__).parents[2:4]),
]
REAL = next((path for path in PLACES if path.is_file()), None)


def made_table(
    subjects=("a", "b"), devices=("sp", "sw"), executions=4, seconds=2.0, rate=100.0, seed=0
):
    """Columns of a recording: each execution shows every activity for `seconds`, in turn.

    Each activity is a tone of its own on x_acc; ticks are whole milliseconds, as phones give.
    """
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in (*CHANNELS, "timestamp", "label", "subject", "device")}
    columns["execution"] = []
    n = round(seconds * rate)
    for s, subject in enumerate(subjects):
        for execution in range(executions):
            begin = 1_600_000_000_000 + 10_000_000 * s + 100_000 * execution
            for device in devices:
                for a, activity in enumerate(ACTIVITIES):
                    t = (np.arange(n) + a * n) / rate
                    for c, name in enumerate(CHANNELS):
                        tone = np.sin(2 * np.pi * (a + 1) * t) * (c + 1)
                        columns[name].append(tone + 0.1 * rng.normal(size=n))
                    columns["timestamp"].append(begin + np.round(1000 * t).astype(np.int64))
                    columns["label"].append(np.full(n, activity))
                    columns["subject"].append(np.full(n, subject))
                    columns["device"].append(np.full(n, device))
                    columns["execution"].append(np.full(n, execution + 1))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    for name in CHANNELS:
        joined[name] = joined[name].astype(np.float32)
    return joined


def written(path, columns):
    """The columns as a Parquet file, texts as dictionaries, as the real file has them."""
    arrays = {
        name: pa.array(values).dictionary_encode() if values.dtype.kind == "U" else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path)
    return path


@pytest.fixture(scope="session")
def table():
    """Makes the columns of a small recording."""
    return made_table


@pytest.fixture(scope="session")
def write():
    """Writes columns to a Parquet file."""
    return written


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("har") / "small.parquet", made_table())
    return SensorFiles(path=path).read()


@pytest.fixture(scope="session")
def windows(recordings):
    return Windowing().cut(recordings)


@pytest.fixture(scope="session")
def real():
    """The real recordings, where they are."""
    if REAL is None:
        pytest.skip("har-sp-sw.parquet is not here: set STILLFIT_HAR to its path")
    return SensorFiles(path=REAL).read()
