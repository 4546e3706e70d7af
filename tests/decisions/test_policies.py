"""Policies: they ask exactly when they should, with reasons, and keep silent to cool down."""

import math

import pytest

from stillfit.core.errors import ConfigError
from stillfit.core.values import Evidence
from stillfit.decisions import AfterTime, AnyOf, OnDrift, OnMetric, OnUncertainty, Past, any_of


def found(monitor: str, raised: bool = True, since=None, age=None, time: float = 90.0) -> Evidence:
    return Evidence(
        monitor=monitor, time=time, value=2.0, threshold=1.0, raised=raised, n=10,
        because=f"{monitor} said so", since=since, age=age,
    )  # fmt: skip


def test_after_time_asks_once_per_period():
    policy = AfterTime(every=100.0)
    assert policy.ask([], now=99.9, past=Past(change=0.0)) is None
    request = policy.ask([], now=100.0, past=Past(change=0.0))
    assert request is not None
    assert "100 s have passed since the last change or request" in request.because
    assert policy.ask([], now=150.0, past=Past(change=0.0, request=100.0)) is None
    assert policy.ask([], now=200.0, past=Past(change=0.0, request=100.0)) is not None


def test_after_time_asks_as_often_as_the_period_says_however_often_it_is_asked():
    policy, past, asked = AfterTime(every=10.0), Past(change=0.0), []
    for now in range(1, 101):
        if policy.ask([], now=float(now), past=past):
            asked.append(now)
            past = past._replace(request=float(now))
    assert asked == list(range(10, 101, 10))


@pytest.mark.parametrize(
    ("policy", "evidence"),
    [
        (OnMetric(), found("late-metric", age=60.0, since=40.0)),
        (OnUncertainty(), found("score-cusum", since=40.0)),
        (OnUncertainty(), found("score-ks", since=40.0)),
        (OnUncertainty(), found("conformal-martingale", age=60.0, since=40.0)),
        (OnDrift(), found("input-drift", since=40.0)),
    ],
)
def test_a_standing_finding_is_asked_about_with_its_reason_and_time(policy, evidence):
    past = Past(change=0.0)
    request = policy.ask([evidence], now=100.0, past=past)
    assert request is not None
    assert request.policy == policy.name
    assert request.because == f"{evidence.monitor}: {evidence.monitor} said so"
    assert (request.time, request.since) == (100.0, 40.0)
    assert policy.ask([], now=100.0, past=past) is None
    assert policy.ask([found(evidence.monitor, raised=False)], now=100.0, past=past) is None
    assert policy.ask([found("another")], now=100.0, past=past) is None


def test_a_metric_policy_reads_only_late_labels_that_are_young_enough():
    late = found("late-metric", age=60.0)
    past = Past(change=0.0)
    # The labels were 60 s old at time 90 and are 70 s old at 100.
    assert OnMetric(max_age=70.0).ask([late], now=100.0, past=past) is not None
    assert OnMetric(max_age=69.0).ask([late], now=100.0, past=past) is None
    assert OnMetric().ask([found("score-cusum")], now=100.0, past=past) is None
    assert OnMetric(monitors=("error-cusum",)).ask([late], now=100.0, past=past) is None


def test_a_policy_cools_down_in_seconds_and_in_events():
    policy = OnDrift(cool_down=50.0, cool_down_events=1000)
    evidence = [found("input-drift")]

    def asks(now: float, past: Past) -> bool:
        return policy.ask(evidence, now=now, past=past) is not None

    assert not asks(149.0, Past(change=100.0, events=5000))
    assert asks(150.0, Past(change=100.0, events=5000))
    assert not asks(150.0, Past(change=0.0, request=101.0, events=5000))
    assert not asks(500.0, Past(change=100.0, events=999))
    assert asks(500.0, Past(change=100.0, events=1000))


def test_the_newest_of_several_changes_counts():
    evidence = [found("a", since=10.0), found("b", since=60.0), found("c")]
    request = OnDrift(monitors=("a", "b", "c")).ask(evidence, now=99.0, past=Past(change=0.0))
    assert request is not None
    assert request.since == 60.0
    assert request.because == "a: a said so; b: b said so; c: c said so"


def test_any_of_joins_the_reasons_of_all_that_ask():
    policy = any_of(AfterTime(every=50.0), OnDrift(), OnMetric())
    past = Past(change=0.0)
    both = policy.ask([found("input-drift", since=30.0)], now=60.0, past=past)
    assert both is not None
    assert both.policy == "after-time + on-drift"
    assert "60 s have passed" in both.because
    assert "input-drift said so" in both.because
    assert both.since == 30.0
    one = policy.ask([found("input-drift")], now=20.0, past=past)
    assert one is not None
    assert one.policy == "on-drift"
    assert policy.ask([], now=20.0, past=past) is None


def test_the_past_is_the_later_of_change_and_request():
    assert Past(change=3.0).last == 3.0
    assert Past(change=3.0, request=5.0).last == 5.0
    assert Past(change=3.0).request == -math.inf


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AfterTime(every=0.0), "every must be a positive time in seconds, got 0.0"),
        (lambda: AfterTime(every=math.nan), "every must be a positive time in seconds, got nan"),
        (lambda: OnDrift(cool_down=-1.0), "a cool-down must not be negative, got -1.0 s and 0"),
        (lambda: AnyOf(policies=()), "any_of needs at least one policy; without one nothing ever"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
