"""The season as a stream: deterministic, resumable anywhere, with labels a fill late."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from stillfit.core.arrays import content_hash
from stillfit.core.events import Block, Event, Labels, Notice
from stillfit.l1t import scenario
from stillfit.l1t.library import load
from stillfit.l1t.scenario import Change, Scenario
from stillfit.l1t.season import GAP, STABLE, Season


@cache
def season(**knobs: object) -> Season:
    made = Scenario(
        title="t",
        fills=4,
        events=25,
        block=10,
        nominal={"pileup": 20.0},
        changes=(Change(name="moved", first=3, knobs={"barrel_z_shift": 0.1}),),
        **knobs,  # type: ignore[arg-type]
    )
    return Season(made, load())


@cache
def events() -> tuple[Event, ...]:
    return tuple(season().events())


def print_of(event: Event) -> tuple[object, ...]:
    if isinstance(event, Block):
        return ("block", event.time, tuple(event.ids), content_hash(event.inputs))
    if isinstance(event, Labels):
        return ("labels", event.time, tuple(event.ids), content_hash(event.targets))
    return ("notice", event.time, event.state, tuple(sorted(event.info.items())))


def test_time_never_falls_and_ids_rise_strictly() -> None:
    times = [event.time for event in events()]
    assert times == sorted(times)
    ids = np.concatenate([event.ids for event in events() if isinstance(event, Block)])
    assert np.all(np.diff(ids) > 0)
    assert len(ids) == 4 * 25


@pytest.mark.parametrize("start", range(0, 26, 3))
def test_it_goes_on_from_any_event_with_the_same_events(start: int) -> None:
    rest = [print_of(event) for event in season().events(start)]
    assert rest == [print_of(event) for event in events()[start:]]
    assert season().length == len(events())


def test_labels_of_a_fill_come_in_the_gap_after_the_next_one() -> None:
    gaps: dict[int, float] = {}
    for event in events():
        if isinstance(event, Notice) and event.state == GAP:
            gaps[int(event.info["fill"])] = event.time
        elif isinstance(event, Labels):
            fill = int(event.ids[0]) // 25 + 1
            assert len(event) == 25
            assert max(gaps) == min(fill + 1, 4)
            assert event.time > gaps[max(gaps)]


def test_blocks_lie_inside_their_fill_and_carry_its_condition() -> None:
    until, state = -1.0, ""
    for event in events():
        if isinstance(event, Notice):
            state, until = event.state, float(event.info["until"])
        elif isinstance(event, Block):
            assert state == STABLE
            assert event.time <= until
            fill = int(event.ids[0]) // 25 + 1
            assert event.condition == ("moved" if fill >= 3 else "nominal")


def test_labels_are_the_truth_with_the_stated_noise() -> None:
    block, truth = season().block(1, 0)
    labels = next(event for event in events() if isinstance(event, Labels))
    away = np.asarray(labels.targets["z0"])[: len(block)] - np.asarray(truth["z0"])
    assert 0 < np.abs(away).max() < 6 * 0.005
    told = labels.targets["is_pv"][: len(block)]
    assert content_hash({"x": told}) == content_hash({"x": truth["is_pv"]})


def test_offline_labels_can_share_the_misalignment() -> None:
    plain = [event for event in events() if isinstance(event, Labels)][-1]
    shared = [
        event for event in season(shared_misalignment=1.0).events() if isinstance(event, Labels)
    ][-1]
    away = np.asarray(shared.targets["z0"]) - np.asarray(plain.targets["z0"])
    np.testing.assert_allclose(away, 0.1, atol=1e-5)


def test_a_fraction_of_labels_is_a_subset() -> None:
    some = [event for event in season(label_fraction=0.5).events() if isinstance(event, Labels)]
    kept = sum(map(len, some))
    assert 25 < kept < 75
    for whole, part in zip(
        [event for event in events() if isinstance(event, Labels)], some, strict=True
    ):
        assert set(part.ids) <= set(whole.ids)


def test_real_fills_give_their_durations_and_levelled_ones_keep_the_pileup() -> None:
    made = replace(scenario.load("season"), years=(2018,), fills=3, longest=6.0)
    real = Season(made, load())
    assert all(fill.duration <= 6.0 * 3600 for fill in real.fills)
    starts = [fill.start for fill in real.fills]
    assert starts == sorted(starts)
    known = [event.conditions["pileup"] for event in events() if isinstance(event, Block)]
    assert max(known) == pytest.approx(20.0)
