"""What every stream of this room promises: the same events again, from any place on."""

import numpy as np
import pytest

from stillfit.core.errors import ConfigError
from stillfit.streams.contract import InMemory, Stream
from stillfit.streams.guard import Guarded
from stillfit.streams.labels import Labelling
from stillfit.streams.recording import Recorded, Recording, record
from stillfit.streams.tables import Table


@pytest.fixture(params=["memory", "csv", "parquet", "recording", "recorded", "labelled", "guarded"])
def stream(request, tmp_path, fills) -> Stream:
    source = InMemory(fills)
    if request.param in ("csv", "parquet"):
        rng = np.random.default_rng(3)
        path = tmp_path / f"table.{request.param}"
        machine = np.repeat(["run", "stop", "run"], [30, 20, 44])
        if request.param == "csv":
            rows = [f"{x},{x * 2},{s}" for x, s in zip(rng.random(94), machine, strict=True)]
            path.write_text("\n".join(["x,y,machine", *rows]))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            x = rng.random(94)
            pq.write_table(pa.table({"x": x, "y": 2 * x, "machine": machine}), path)
        return Table(path=path, inputs=("x",), targets=("y",), state="machine", block=7)
    if request.param == "recording":
        record(source, tmp_path / "r")
        return Recording(tmp_path / "r")
    if request.param == "recorded":
        return Recorded(source, tmp_path / "r", segment_bytes=2000)
    if request.param == "labelled":
        labelling = Labelling(delay=120.0, fraction=0.5, noise={"z0": 1.0}, flip={"is_pv": 0.1})
        return labelling.on(source)
    return Guarded(source) if request.param == "guarded" else source


def test_a_stream_can_start_after_any_event(stream, same):
    assert isinstance(stream, Stream)
    whole = list(stream.events())
    assert len(whole) > 20
    for start in range(len(whole) + 2):
        same(list(stream.events(start)), whole[start:])


def test_a_stream_gives_the_same_events_each_time(stream, same):
    same(list(stream.events()), list(stream.events()))


def test_a_negative_start_is_refused(stream):
    with pytest.raises(ConfigError, match=r"cannot start at event -1; give 0 or more"):
        list(stream.events(-1))
