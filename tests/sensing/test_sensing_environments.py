"""Environments: who comes when, what is held out, and the same as a stream."""

import itertools

import numpy as np
import pytest

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Examples, Labels, Notice
from stillfit.decisions.windows import FromNotices
from stillfit.sensing.environments import CHARGING, WORN, Split, Wearing
from stillfit.sensing.recordings import SensorFiles
from stillfit.sensing.windows import Windowing
from stillfit.streams.labels import Labelling


def at(windows, examples, wearing):
    """The rows of `windows` behind examples of a sequence, by their ids."""
    order = np.concatenate([part.rows for part in wearing._parts])
    return windows.take(order[examples.ids])


def test_wearers_come_one_by_one_and_then_the_next_device(windows):
    names = [part.name for part in Wearing(windows=windows).environments()]
    assert names == ["a/sp", "b/sp", "a/sw", "b/sw"]
    chosen = Wearing(windows=windows, subjects=("b", "a"), devices=("sw",)).environments()
    assert [part.name for part in chosen] == ["b/sw", "a/sw"]


def test_examples_hold_what_the_windows_hold(windows):
    wearing = Wearing(windows=windows, inputs=("window", "features"))
    for part in wearing.environments():
        for side in (part.train, part.test):
            rows = at(windows, side, wearing)
            np.testing.assert_array_equal(side.inputs["window"], rows.raw)
            np.testing.assert_array_equal(side.targets["y"], rows.activity)
            subject, device = part.name.split("/")
            assert set(rows.subject) == {windows.subjects.index(subject)}
            assert set(rows.device) == {windows.devices.index(device)}
            assert set(side.conditions) == {part.name} and np.all(np.diff(side.times) >= 0)
            assert side.inputs["features"].shape == (len(side), 72)
            assert Wearing(windows=windows).examples()[0].inputs.keys() == {"features"}


@pytest.mark.parametrize(
    "split",
    [
        Split(),
        Split(held_out=0.5, block=3.0, seed=4),
        Split(block=4.0, guard=1.0, seed=2),
    ],
)
def test_no_moment_is_on_both_sides(windows, split):
    """Not on one device and not between the devices of a wearer; with a guard, not even near."""
    train, test = split.sides(windows)
    assert not np.any(train & test)
    for subject in range(2):
        mine = windows.subject == subject
        learn, held = windows.take(mine & train), windows.take(mine & test)
        assert len(learn) and len(held)
        apart = np.maximum(
            held.start[:, None] - learn.end[None], learn.start[None] - held.end[:, None]
        )
        assert apart.min() > split.guard


def test_what_is_dropped_is_only_what_reaches_over_an_edge(windows):
    """Sessions are shorter than a block here: nothing is dropped, and whole sessions are held."""
    train, test = Split().sides(windows)
    assert np.all(train | test)
    session = np.floor((windows.start - windows.start.min()) / 50).astype(int)
    for subject, number in itertools.product((0, 1), np.unique(session)):
        mine = (windows.subject == subject) & (session == number)
        assert len(np.unique(test[mine])) <= 1
    train, test = Split(block=5.0).sides(windows)
    assert 0 < np.sum(~(train | test)) < 0.1 * len(windows)


def test_the_share_and_the_seed_of_what_is_held_out(windows):
    shares = [Split(held_out=h, block=1.0).sides(windows)[1].mean() for h in (0.2, 0.5, 0.8)]
    assert shares[0] < shares[1] < shares[2]
    one, same, other = (Split(seed=s).sides(windows)[1] for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    for h in (0.01, 0.99):
        train, test = Split(held_out=h).sides(windows)
        assert train.any() and test.any()


def test_the_stream_is_the_environments_in_order(windows):
    wearing = Wearing(windows=windows, inputs=("window",), block=50)
    events = list(wearing.events())
    blocks = [event for event in events if isinstance(event, Block)]
    labels = [event for event in events if isinstance(event, Labels)]
    whole = Examples.join(wearing.examples())
    np.testing.assert_array_equal(np.concatenate([b.ids for b in blocks]), whole.ids)
    np.testing.assert_array_equal(whole.ids, np.arange(len(windows)))
    np.testing.assert_array_equal(
        np.concatenate([b.inputs["window"] for b in blocks]), whole.inputs["window"]
    )
    np.testing.assert_array_equal(
        np.concatenate([label.targets["y"] for label in labels]), whole.targets["y"]
    )
    assert np.all(np.diff([event.time for event in events]) >= 0)
    assert np.all(np.diff(whole.times) >= 0)
    seen = [name for name, _ in itertools.groupby(b.condition for b in blocks)]
    assert seen == ["a/sp", "b/sp", "a/sw", "b/sw"]
    for block, label in zip(blocks, labels, strict=True):
        assert len(block) <= 50 and np.array_equal(block.ids, label.ids)


def test_a_stream_goes_on_after_any_event(windows):
    wearing = Wearing(windows=windows, block=100)
    every = list(wearing.events())
    for start in range(len(every) + 1):
        rest = list(wearing.events(start))
        assert len(rest) == len(every) - start
        for one, other in zip(every[start:], rest, strict=True):
            assert type(one) is type(other) and one.time == other.time
            if not isinstance(one, Notice):
                np.testing.assert_array_equal(one.ids, other.ids)
    with pytest.raises(ConfigError, match="cannot start at event -1"):
        next(wearing.events(-1))


def test_notices_open_update_windows_while_the_device_charges(windows):
    window = FromNotices(open_states=(CHARGING,))
    notices = [e for e in Wearing(windows=windows).events() if isinstance(e, Notice)]
    assert [n.state for n in notices] == [WORN, CHARGING] * 4
    state = window.init()
    for notice, following in itertools.pairwise(notices):
        state = window.step(state, notice)
        permit = window.allows(state, notice.time, "weights", notice.time)
        assert permit.allowed == (notice.state == CHARGING)
        if permit.allowed:
            assert notice.info["until"] == following.time == notice.time + 3600.0
    assert "until" not in notices[-1].info


def test_labels_can_be_late(windows):
    late = Labelling(delay=600.0).on(Wearing(windows=windows))
    events = list(late.events())
    seen = {}
    for event in events:
        if isinstance(event, Block):
            seen.update(dict.fromkeys(event.ids.tolist(), event.time))
        elif isinstance(event, Labels):
            assert all(event.time >= seen[i] + 600.0 for i in event.ids.tolist())


def test_a_wearer_of_one_device_only_has_one_environment(table, write, tmp_path):
    columns = table(executions=3)
    keep = (columns["subject"] != "b") | (columns["device"] != "sw")
    path = write(tmp_path / "r.parquet", {name: v[keep] for name, v in columns.items()})
    windows = Windowing().cut(SensorFiles(path=path).read())
    names = [part.name for part in Wearing(windows=windows).environments()]
    assert names == ["a/sp", "b/sp", "a/sw"]


def test_a_single_block_cannot_be_split(table, write, tmp_path):
    path = write(tmp_path / "r.parquet", table(subjects=("a",), executions=1))
    windows = Windowing().cut(SensorFiles(path=path).read())
    with pytest.raises(DataError) as caught:
        Split().sides(windows)
    assert str(caught.value) == (
        "subject 'a' was recorded in one block of 9.99 s, so nothing can be held out; make `block` "
        "(30 s) shorter"
    )
    assert all(side.any() for side in Split(block=5.0).sides(windows))


def test_an_environment_without_a_side_is_refused(windows):
    one = (windows.subject == 0) & (windows.device == 0)
    few = windows.take(one & (windows.start < windows.start[one].min() + 2) | (windows.device == 1))
    with pytest.raises(
        DataError, match=r"a/sp has \d+ windows to learn from and \d+ held out, and"
    ):
        Wearing(windows=few).environments()


def test_knobs_that_cannot_be_are_refused(windows):
    with pytest.raises(ConfigError, match="there is no subject 'c'; known are: a, b"):
        Wearing(windows=windows, subjects=("c",))
    with pytest.raises(ConfigError, match="there is no device 'watch'; known are: sp, sw"):
        Wearing(windows=windows, devices=("watch",))
    with pytest.raises(ConfigError, match="a device is named twice: sp, sp"):
        Wearing(windows=windows, devices=("sp", "sp"))
    with pytest.raises(ConfigError, match=r"of 'features' and 'window', got \(\)"):
        Wearing(windows=windows, inputs=())
    with pytest.raises(ConfigError, match=r"block = 0 and pause = 3600.0 s must be above 0"):
        Wearing(windows=windows, block=0)
    with pytest.raises(ConfigError, match="held_out must lie between 0 and 1, got 1"):
        Split(held_out=1)
    with pytest.raises(ConfigError, match=r"block = 0 must be above 0 s and guard = 0.0 not below"):
        Split(block=0)


def test_the_real_environments(real):
    """46 environments, each with every activity to learn and nearly all held out."""
    windows = Windowing().cut(real)
    parts = Wearing(windows=windows, inputs=("window",)).environments()
    assert len(parts) == 46 and parts[0].name == "s01/sp" and parts[23].name == "s01/sw"
    for part in parts:
        assert len(np.unique(part.train.targets["y"])) == 5
        assert len(np.unique(part.test.targets["y"])) >= 4
    held = sum(len(part.test) for part in parts)
    assert 0.25 < held / len(windows) < 0.35
