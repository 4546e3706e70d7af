"""Probation: valid however often it is looked at, quick when there is harm, else patient."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.state import from_arrays, to_arrays
from stillfit.decisions import Probation

PROBATION = Probation()


def run(probation: Probation, d: np.ndarray, look: int = 20) -> tuple[str, int]:
    """The first decision and the events that it took, looking every `look` events."""
    state = probation.init()
    for i in range(0, len(d), look):
        state = probation.step(state, d[i : i + look], np.zeros(len(d[i : i + look])))
        what = probation.judge(state).what
        if what != "wait":
            return what, i + look
    return "wait", len(d)


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_an_equal_version_is_rolled_back_no_more_often_than_it_may_at_any_look(phi):
    runs, rng, rolled = 300, np.random.default_rng(1), 0
    for _ in range(runs):
        noise = rng.standard_normal(2100) * np.sqrt(1 - phi**2)
        what, _ = run(PROBATION, signal.lfilter([1], [1, -phi], noise)[100:])
        rolled += what == "roll back"
    assert rolled / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_looking_at_a_fixed_sample_bound_all_the_time_would_break_the_rate():
    # The dummy row: the same looks with a plain 5 % bound roll back several times as often.
    rng, rolled = np.random.default_rng(2), 0
    for _ in range(200):
        d = rng.standard_normal(2000)
        n = np.arange(100, 2001, 20)
        rolled += bool(np.any(np.cumsum(d)[n - 1] / np.sqrt(n) > 1.645))
    assert rolled / 200 > 3 * 0.05


def test_the_more_harm_the_sooner_it_is_rolled_back():
    rng = np.random.default_rng(3)
    took = []
    for harm in (0.2, 0.5, 2.0):
        results = [run(PROBATION, harm + rng.standard_normal(2000)) for _ in range(20)]
        assert all(what == "roll back" for what, _ in results)
        took.append(np.median([events for _, events in results]))
    assert took[0] > took[1] >= took[2] == 100


def test_a_better_version_is_kept_early_and_an_equal_one_at_the_end():
    rng = np.random.default_rng(4)
    what, events = run(PROBATION, -0.5 + rng.standard_normal(2000))
    assert (what, events < 500) == ("keep", True)
    margin = Probation(margin=0.3)
    what, events = run(margin, 0.05 * rng.standard_normal(2000))
    assert (what, events) == ("keep", 100)
    what, events = run(PROBATION, rng.standard_normal(2000))
    assert (what, events) == ("keep", 2000)


def test_identical_versions_wait_and_are_kept_at_the_end():
    assert run(PROBATION, np.zeros(1000))[0] == "wait"
    assert run(PROBATION, np.zeros(2000)) == ("keep", 2000)


def test_missing_labels_wait_and_never_change_anything():
    judgement = PROBATION.judge(PROBATION.init())
    assert judgement.what == "wait"
    assert judgement.because == "0 late labels since the switch; it takes 100 to judge"
    state = PROBATION.init()
    for _ in range(50):
        state = PROBATION.step(state, np.zeros(0), np.zeros(0))
    assert state == PROBATION.init()


def test_a_diverged_new_version_is_rolled_back_at_once():
    state = PROBATION.step(PROBATION.init(), np.array([0.1, np.nan]), np.zeros(2))
    judgement = PROBATION.judge(state)
    assert judgement.what == "roll back"
    assert judgement.because == "the new version's error was not finite on 1 events"


def test_events_on_which_the_old_version_failed_tell_nothing():
    new, old = np.ones(3), np.array([1.0, np.nan, np.inf])
    assert PROBATION.step(PROBATION.init(), new, old) == PROBATION.step(
        PROBATION.init(), new[:1], old[:1]
    )


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 1000))
def test_the_state_does_not_depend_on_how_the_labels_were_cut(cuts, seed):
    d = np.random.default_rng(seed).normal(3, 1, sum(cuts))
    whole = PROBATION.step(PROBATION.init(), d, np.zeros(len(d)))
    state = PROBATION.init()
    for chunk in np.split(d, np.cumsum(cuts)[:-1]) if cuts else []:
        state = PROBATION.step(state, chunk, np.zeros(len(chunk)))
    assert np.allclose(state, whole)
    assert from_arrays(PROBATION.init(), to_arrays(state)) == state
    full = d[: len(d) // 10 * 10].reshape(-1, 10).mean(1)
    assert state.batches == len(full)
    if len(full) > 1:
        assert state.mean == pytest.approx(full.mean())
        assert state.m2 == pytest.approx(((full - full.mean()) ** 2).sum())


def test_reasons_state_the_bounds_and_the_events():
    rng = np.random.default_rng(5)
    state = PROBATION.step(PROBATION.init(), 1 + rng.standard_normal(200), np.zeros(200))
    judgement = PROBATION.judge(state)
    assert judgement.because.startswith("over 200 events the new version's error is +")
    assert judgement.because.endswith("at 95% at any time): surely worse")
    assert judgement.figures["lower"] > 0
    assert judgement.figures["n"] == 200


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Probation(margin=-1), "probation needs margin >= 0 and confidence in [0.5, 1)"),
        (lambda: Probation(confidence=1.0), "probation needs margin >= 0 and confidence in [0.5"),
        (lambda: Probation(enough=50), "enough >= batch * least, got 10, 10 and 50"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)


def test_errors_must_be_of_the_same_events():
    with pytest.raises(ShapeError, match="probation needs errors of both versions on the same ev"):
        PROBATION.step(PROBATION.init(), np.zeros(3), np.zeros(2))
