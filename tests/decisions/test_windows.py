"""Windows: nothing is switched outside one, and a bitstream must also finish in it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.errors import ConfigError
from stillfit.core.events import Notice
from stillfit.decisions import Always, FromNotices, Interval, WindowState

GAP = FromNotices(seconds=10, build=7200, load=600)


def after(window: FromNotices, *notices: Notice) -> WindowState:
    state = window.init()
    for notice in notices:
        state = window.step(state, notice)
    return state


def test_an_unknown_state_is_closed():
    permit = GAP.allows(GAP.init(), 100.0, "weights", 0.0)
    assert not permit.allowed
    assert permit.because == "the machine's state is unknown, which counts as closed"
    strange = after(GAP, Notice("machine-development", 0.0))
    assert not GAP.allows(strange, 100.0, "weights", 0.0).allowed


def test_weights_go_in_between_fills_only():
    state = after(GAP, Notice("stable-beams", 0.0))
    permit = GAP.allows(state, 50.0, "weights", 0.0)
    assert not permit.allowed
    assert permit.at is None
    assert permit.because.endswith("updates need inter-fill")
    state = GAP.step(state, Notice("inter-fill", 100.0))
    permit = GAP.allows(state, 120.0, "weights", 50.0)
    assert permit.allowed
    assert permit.at == 130.0
    state = GAP.step(state, Notice("stable-beams", 200.0, {"until": 900.0}))
    permit = GAP.allows(state, 250.0, "weights", 50.0)
    assert not permit.allowed
    assert permit.at == 900.0


def test_a_switch_must_end_before_the_window_does():
    state = after(GAP, Notice("inter-fill", 100.0, {"until": 200.0}))
    assert GAP.allows(state, 190.0, "weights", 0.0).allowed
    late = GAP.allows(state, 191.0, "weights", 0.0)
    assert not late.allowed
    assert late.because == (
        "the window closes at 200 s, before the weights would be loaded at 201 s"
    )
    # The end has passed and no notice came: it counts as closed.
    assert not GAP.allows(state, 250.0, "weights", 0.0).allowed


def test_a_bitstream_is_built_first_and_loaded_inside_the_window():
    state = after(GAP, Notice("inter-fill", 0.0, {"until": 10_000.0}))
    early = GAP.allows(state, 100.0, "bitstream", 100.0)
    assert not early.allowed
    assert early.at == 7300.0
    assert early.because == "the window is open, but the bitstream is built only at 7300 s"
    built = GAP.allows(state, 7300.0, "bitstream", 100.0)
    assert built.allowed
    assert built.at == 7900.0
    # Built long before the window opened: only the load counts.
    assert GAP.allows(state, 20.0, "bitstream", -9000.0).at == 620.0
    # It would be built in time but not loaded.
    short = after(GAP, Notice("inter-fill", 0.0, {"until": 7800.0}))
    assert not GAP.allows(short, 7300.0, "bitstream", 100.0).allowed
    assert GAP.allows(short, 100.0, "bitstream", 100.0).at is None


def test_a_bitstream_needs_a_known_end():
    state = after(GAP, Notice("inter-fill", 0.0))
    permit = GAP.allows(state, 9000.0, "bitstream", 0.0)
    assert not permit.allowed
    assert "the end of the window is not known, so a bitstream may not finish" in permit.because
    assert GAP.allows(state, 9000.0, "weights", 0.0).allowed
    assumed = FromNotices(seconds=10, build=7200, load=600, expected=3 * 3600.0)
    state = after(assumed, Notice("inter-fill", 0.0))
    assert assumed.allows(state, 9000.0, "bitstream", 0.0).allowed
    assert not assumed.allows(state, 3 * 3600.0, "bitstream", 0.0).allowed


times = st.floats(0, 1000)


@given(times, times, st.floats(0.1, 500), times, st.sampled_from(["weights", "bitstream"]))
def test_what_is_allowed_is_finished_inside_the_window(opens, now, length, ready, kind):
    window = FromNotices(seconds=5, build=50, load=20)
    state = after(window, Notice("inter-fill", opens, {"until": opens + length}))
    permit = window.allows(state, now, kind, ready)
    if permit.allowed:
        assert now < permit.at <= opens + length
        assert now >= ready + (50 if kind == "bitstream" else 0)
    elif permit.at is not None:  # worth asking again then
        assert permit.at > now
        assert window.allows(state, permit.at, kind, ready).allowed


@given(times, times, st.sampled_from(["weights", "bitstream"]))
def test_an_interval_window_is_open_at_its_beginning(now, ready, kind):
    window = Interval(every=100, length=30, start=7, seconds=5, build=50, load=20)
    permit = window.allows(window.init(), now, kind, ready)
    phase = (now - 7) % 100
    if permit.allowed:
        assert phase + (20 if kind == "bitstream" else 5) <= 30 + 1e-9
        assert now >= ready + (50 if kind == "bitstream" else 0)
    else:
        assert permit.at is not None
        assert permit.at > now
        assert permit.at <= now + 200 or kind == "bitstream" or permit.at == ready


def test_an_interval_window_needs_no_notices():
    window = Interval(every=100, length=30, seconds=5)
    state = window.step(window.init(), Notice("stable-beams", 0.0))
    assert window.allows(state, 205.0, "weights", 0.0).allowed
    closed = window.allows(state, 230.0, "weights", 0.0)
    assert not closed.allowed
    assert closed.at == 300.0
    assert closed.because == "the window closed at 230 s; the next opens at 300 s"
    full = window.allows(state, 228.0, "weights", 0.0)
    assert not full.allowed
    assert full.at == 300.0


def test_an_open_stream_only_waits_for_the_bitstream():
    window = Always(seconds=1, build=100, load=10)
    state = window.init()
    assert window.allows(state, 5.0, "weights", 5.0).at == 6.0
    assert window.allows(state, 5.0, "bitstream", 5.0).at == 105.0
    assert window.allows(state, 105.0, "bitstream", 5.0).allowed
    assert math.isfinite(window.allows(state, 105.0, "bitstream", 5.0).at)


def test_stepping_is_pure():
    state = GAP.init()
    GAP.step(state, Notice("inter-fill", 5.0))
    assert state == GAP.init()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FromNotices(load=-1), "load must not be negative, got -1"),
        (lambda: FromNotices(build=math.nan), "build must not be negative, got nan"),
        (lambda: FromNotices(open_states=()), "open_states is empty, so no update would ever"),
        (lambda: Interval(every=10, length=20), "an interval needs 0 < length <= every, got 20 an"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
