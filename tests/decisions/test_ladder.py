"""The ladder: cheapest first, a refusal climbs one rung, last a person is called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillfit.core.errors import ConfigError
from stillfit.core.values import Verdict
from stillfit.decisions import Ladder, Tried

YES = Verdict(gate="g", accepted=True, because="fine")
NO = Verdict(gate="h", accepted=False, because="not convinced")
LADDER = Ladder()


def test_the_cheapest_rung_comes_first():
    step = LADDER.climb()
    assert (step.outcome, step.rung) == ("try", "redeploy")
    assert step.because == "redeploy is the cheapest rung"


def test_a_refusal_climbs_one_rung_and_says_why():
    step = LADDER.climb([Tried(rung="redeploy", skipped="no stored version fits")])
    assert (step.outcome, step.rung) == ("try", "recalibrate")
    assert step.because == "redeploy was not accepted (no stored version fits)"
    step = LADDER.climb(
        [
            Tried(rung="redeploy", skipped="no stored version fits"),
            Tried(rung="recalibrate", verdicts=(YES, NO)),
        ]
    )
    assert (step.outcome, step.rung) == ("try", "replay")
    assert step.because == "recalibrate was not accepted (h: not convinced)"


def test_a_rung_that_convinced_every_gate_is_accepted():
    step = LADDER.climb([Tried(rung="redeploy", verdicts=(YES, YES))])
    assert (step.outcome, step.rung) == ("accept", "redeploy")
    assert step.because == "redeploy convinced 2 gates"


def test_without_a_gate_nothing_is_accepted():
    assert not Tried(rung="redeploy").accepted
    assert Tried(rung="redeploy").because == "no gate judged it"


def test_after_the_last_rung_a_person_is_called_with_all_reasons():
    step = LADDER.climb([Tried(rung=rung, verdicts=(NO,)) for rung in LADDER.rungs])
    assert (step.outcome, step.rung) == ("call a person", None)
    for rung in LADDER.rungs:
        assert f"{rung}: h: not convinced" in step.because


@given(st.integers(1, 6), st.integers(0, 6))
def test_every_rung_is_tried_once_in_order_until_one_is_accepted(length, good):
    ladder = Ladder(rungs=tuple(f"r{i}" for i in range(length)))
    tried: list[Tried] = []
    while (step := ladder.climb(tried)).outcome == "try":
        verdict = YES if step.rung == f"r{good}" else NO
        tried.append(Tried(rung=step.rung, verdicts=(verdict,)))
    assert [t.rung for t in tried] == list(ladder.rungs[: good + 1])
    assert step.outcome == ("accept" if good < length else "call a person")


def test_ladders_that_make_no_sense_are_refused():
    for rungs in ((), ("a", "a")):
        with pytest.raises(ConfigError, match="a ladder needs one or more rungs, none of them twi"):
            Ladder(rungs=rungs)
    with pytest.raises(ConfigError, match="the ladder has no rung 'reply'; did you mean 'replay'"):
        LADDER.climb([Tried(rung="reply", verdicts=(NO,))])
