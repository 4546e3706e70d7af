"""A person's orders: obeyed once, whether the loop runs, is being killed, or is down."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stillfit.core.errors import RegistryError
from stillfit.core.events import Notice
from stillfit.decisions.probation import Probation
from stillfit.loop import run
from stillfit.monitors.late import LateMetric
from stillfit.registry import Command, Registry, verify
from stillfit.streams.contract import InMemory

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

N, S = toy.NOMINAL, toy.SHIFTED
KNOBS = {
    "watch": (),
    "errors": (LateMetric(window=200, least=40),),
    "probation": Probation(batch=5, least=5, enough=100_000),
}


def plan(*names, **knobs):
    return replace(toy.plan(*names, **(KNOBS | knobs)), checkpoint=7)


def season(story, labels_early=False):
    """The toy season. `labels_early`: labels come during the next fill, so a candidate waits."""
    events = toy.season(story, n=240, blocks=2)
    if labels_early:
        events = [
            replace(event, time=event.time - 4.5 * toy.HOUR) if hasattr(event, "targets") else event
            for event in events
        ]
    return sorted(events, key=lambda event: event.time)


def order(root, kind, lane="finetune", version=None):
    command = Command(
        lane=lane, kind=kind, because="the shift leader said so", actor="anna", version=version
    )
    return Registry.order(root, command)


def kinds(registry, lane="finetune", of=("deploy", "staged", "switch", "kept", "hold", "resume",
                                         "rollback", "withdrawn", "obeyed")):  # fmt: skip
    return [entry.kind for entry in registry.history(lane, kinds=of)]


def play(root, events, made, until=None, at=None):
    """Run to the end, or until an entry of the kind `until` is there; then as if killed."""
    exists = Registry.exists(root)
    with Registry.open(root, write=True) if exists else Registry.create(root) as registry:
        for step in run(InMemory(events), made, registry):
            if at is not None:
                at(step, registry)
            if until is not None and any(entry.kind == until for entry in step.entries):
                return step.number
    return None


@pytest.fixture
def root(tmp_path):
    return tmp_path / "registry"


STORY = [N, S, S, S, S]


def test_a_candidate_waits_for_its_window_and_a_hold_keeps_it_there(root):
    events, made = season(STORY, labels_early=True), plan("finetune")

    def hold(step, registry):
        if any(entry.kind == "staged" for entry in step.entries):
            assert order(root, "hold") is None

    play(root, events, made, at=hold)
    with Registry.open(root) as registry:
        assert kinds(registry) == ["deploy", "staged", "hold", "obeyed"]
        assert registry.held("finetune").actor == "anna"
    assert verify(root) == []


def test_without_the_hold_it_would_have_switched_in_the_window(root):
    play(root, season(STORY, labels_early=True), plan("finetune"))
    with Registry.open(root) as registry:
        assert kinds(registry)[:3] == ["deploy", "staged", "switch"]
        (switch,) = registry.history(kinds=("switch",))
        (staged,) = registry.history(kinds=("staged",))
        assert staged.time < switch.time


def test_a_resume_lets_it_go_on_in_the_next_window(root):
    events, made = season(STORY, labels_early=True), plan("finetune")
    seen = []

    def act(step, registry):
        if any(entry.kind == "staged" for entry in step.entries):
            order(root, "hold")
        if isinstance(step.event, Notice) and registry.held("finetune"):
            seen.append(step.event)
            if len(seen) == 2:
                order(root, "resume")

    play(root, events, made, at=act)
    with Registry.open(root) as registry:
        told = kinds(registry)
        assert told[:7] == ["deploy", "staged", "hold", "obeyed", "resume", "obeyed", "switch"]
        assert registry.held("finetune") is None


@pytest.mark.parametrize("again", [False, True], ids=["once", "restarted-twice"])
def test_a_hold_given_between_a_kill_and_the_restart_stops_the_switch(root, again):
    events, made = season(STORY, labels_early=True), plan("finetune")
    play(root, events, made, until="staged")
    entry = order(root, "hold")
    assert entry.kind == "hold"
    if again:
        with Registry.open(root, write=True) as registry:
            for step in run(InMemory(events), made, registry):
                if step.number > 12:
                    break
    play(root, events, made)
    with Registry.open(root) as registry:
        assert kinds(registry) == ["deploy", "staged", "hold", "obeyed"]
    assert verify(root) == []


def test_a_hold_stops_a_switch_whose_batch_of_entries_was_cut_by_a_kill(root):
    """Request, staging and switch are written together; a kill can leave the first two only.

    A person holds while the loop is down. On the restart the first new entry would be the switch,
    before the end of any event: so the loop must ask for orders right before it.
    """
    events, made = season(STORY), plan("finetune")
    number = play(root, events, made, until="switch")
    cut = root.parent / "cut"
    with Registry.create(cut) as registry:
        for step in run(InMemory(events), made, registry):
            if step.number == number - 1:
                break
    lines = (root / "journal.jsonl").read_bytes().splitlines(keepends=True)
    last = next(n for n, line in enumerate(lines) if b'"kind":"switch"' in line)
    assert b'"kind":"staged"' in lines[last - 1]
    (cut / "journal.jsonl").write_bytes(b"".join(lines[:last]))
    shutil.copytree(root / "versions", cut / "versions", dirs_exist_ok=True)
    order(cut, "hold")
    with Registry.open(cut) as registry:
        assert kinds(registry) == ["deploy", "staged", "hold"]
    play(cut, events, made)
    with Registry.open(cut) as registry:
        assert kinds(registry) == ["deploy", "staged", "hold", "obeyed"]
    assert verify(cut) == []


def test_hold_and_resume_while_the_loop_is_down_are_both_obeyed_in_order(root):
    events, made = season(STORY, labels_early=True), plan("finetune")
    play(root, events, made, until="staged")
    order(root, "hold")
    order(root, "resume")
    play(root, events, made)
    with Registry.open(root) as registry:
        told = kinds(registry)
        assert told[:6] == ["deploy", "staged", "hold", "resume", "obeyed", "obeyed"]
        assert told[6] == "switch"


# -- rollback -----------------------------------------------------------------------------------


def first_and_second(root):
    with Registry.open(root) as registry:
        first = registry.history(kinds=("deploy",))[0].version
        return first, registry.serving("finetune")


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_rollback_is_obeyed_once_and_the_old_version_serves_from_then_on(root, down):
    events, made = (
        season([N, S, S, S, S, S]),
        plan("finetune", policy=toy.OnMetric(cool_down=34 * toy.HOUR)),
    )
    served = {}

    def watch(step, registry):
        if "finetune" in step.served:
            served[step.number] = step.served["finetune"].version

    number = play(root, events, made, until="switch", at=watch)
    first, second = first_and_second(root)
    assert first != second
    if down:
        assert order(root, "rollback", version=first).version == first
        play(root, events, made, at=watch)
    else:

        def roll(step, registry):
            watch(step, registry)
            if step.number == number + 1:
                assert order(root, "rollback", version=first) is None

        play(root, events, made, at=roll)
    with Registry.open(root) as registry:
        assert kinds(registry) == ["deploy", "staged", "switch", "rollback", "obeyed"]
        assert registry.serving("finetune") == first
        back = registry.history(kinds=("rollback",))[0]
        assert back.actor == "anna"
    assert {version for n, version in served.items() if n > number + 2} == {first}
    again = []
    play(root, events, made, at=lambda step, registry: again.append(step))
    with Registry.open(root) as registry:
        assert kinds(registry) == ["deploy", "staged", "switch", "rollback", "obeyed"]
    assert verify(root) == []


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_rollback_drops_what_was_staged_against_the_version_that_goes(root, down):
    """Two switches are needed: the second is staged and waits when the person goes back."""
    story = [N, S, S, S, N, N, N]
    events = season(story, labels_early=True)
    made = plan("finetune", probation=Probation(batch=5, least=5, enough=30))
    staged = []

    def find(step, registry):
        staged.extend(entry for entry in step.entries if entry.kind == "staged")

    with Registry.create(root) as registry:
        for step in run(InMemory(events), made, registry):
            find(step, registry)
            if len(staged) == 2:
                break
        assert kinds(registry)[-1] == "staged"
    first, second = first_and_second(root)
    assert first != second
    if down:
        order(root, "rollback", version=first)
        play(root, events, made)
    else:
        play(root, events, made,
             at=lambda step, registry: registry.serving("finetune") == second
             and not registry.waiting() and order(root, "rollback", version=first))  # fmt: skip
    with Registry.open(root) as registry:
        told = kinds(registry)
        (gone,) = registry.history(kinds=("withdrawn",))
        assert gone.version == staged[1].version
        assert gone.because == f"anna rolled back; it was to replace {second[:8]}"
        at = told.index("withdrawn")
        assert "switch" not in told[at : at + 2]
        assert not any(
            entry.version == gone.version and entry.seq > gone.seq
            for entry in registry.history(kinds=("switch",))
        )
    assert verify(root) == []


def test_a_rollback_ordered_twice_is_one(root):
    events, made = (
        season([N, S, S, S, S]),
        plan("finetune", policy=toy.OnMetric(cool_down=34 * toy.HOUR)),
    )
    number = play(root, events, made, until="switch")
    first, _ = first_and_second(root)

    def twice(step, registry):
        if step.number == number + 1:
            order(root, "rollback", version=first)
            order(root, "rollback", version=first)

    play(root, events, made, at=twice)
    with Registry.open(root) as registry:
        told = kinds(registry)
        assert told.count("rollback") == told.count("obeyed") == 2
        assert registry.serving("finetune") == first
    assert verify(root) == []


def test_a_persons_rollback_meets_an_automatic_one_that_waits_for_its_window(root):
    """The loop has held and waits to go back; a person goes back at once: one rollback is done."""
    story = [N, S, S, N, N, N]
    events, made = season(story), plan("finetune")
    play(root, events, made, until="switch")
    early = [
        replace(event, time=event.time - 4.5 * toy.HOUR) if hasattr(event, "targets")
        and event.time > 50 * toy.HOUR else event
        for event in events
    ]  # fmt: skip
    early.sort(key=lambda event: event.time)
    assert early[:20] == events[:20]
    play(root, early, made, until="hold")
    first, second = first_and_second(root)
    assert second != first
    order(root, "rollback", version=first)
    play(root, early, made)
    with Registry.open(root) as registry:
        told = kinds(registry)
        assert told[:5] == ["deploy", "staged", "switch", "hold", "rollback"]
        assert sorted(told[5:7]) == ["obeyed", "withdrawn"]
        assert told.count("rollback") == 1
        assert registry.serving("finetune") == first
    assert verify(root) == []


def test_late_labels_of_an_earlier_service_say_nothing_about_the_present_one(root):
    """A served the changed world badly, B replaced it, a person goes back to A.

    Labels of what A served before come after that. They are journaled, but the monitors, whose
    reference is new, read only what A has served since.
    """
    events, made = season([N, S, S, S, S, S]), plan("finetune", tries=10**6)
    number = play(root, events, made, until="switch")
    first, _ = first_and_second(root)
    order(root, "rollback", version=first)
    play(root, events, made)
    with Registry.open(root) as registry:
        back = registry.history(kinds=("obeyed",))[0]
        # Labels of fill 3 come in the gap of fill 4; A served fill 3 before, and fill 4 after.
        told = [
            entry for entry in registry.history("finetune", kinds=("performance",))
            if entry.version == first and entry.time > back.time
        ]  # fmt: skip
        (alarm, *_) = [
            entry for entry in registry.history("finetune", kinds=("alarm",))
            if entry.time > back.time
        ]  # fmt: skip
        early = [entry for entry in told if entry.payload["last"] < back.time]
        late = [entry for entry in told if entry.payload["first"] > back.time]
        assert number < len(events)
        assert early
        assert late
        assert early[-1].time < alarm.time == late[0].time


# -- letters ------------------------------------------------------------------------------------


def test_a_letter_goes_only_when_its_entry_is_durable(root):
    """A kill inside a batch of entries must leave the letter or the entry."""
    play(root, season([N]), plan("finetune"))
    with Registry.open(root, write=True) as registry:
        writer = registry.writer("finetune", registry.head.count)
        order(root, "hold")
        with registry.batch():
            assert [entry.kind for entry in writer.commands(1e9, 10**6)] == ["hold"]
            assert len(registry.waiting()) == 1
            assert writer.commands(1e9, 10**6 + 1) == ()
        assert registry.waiting() == []
        assert len(registry.history(kinds=("hold",))) == 1


def test_a_failed_batch_leaves_the_letter(root):
    play(root, season([N]), plan("finetune"))
    with Registry.open(root, write=True) as registry:
        writer = registry.writer("finetune", registry.head.count)
        order(root, "hold")
        with pytest.raises(ZeroDivisionError), registry.batch():
            writer.commands(1e9, 10**6)
            raise ZeroDivisionError
        assert len(registry.waiting()) == 1
    with Registry.open(root, write=True) as registry:
        writer = registry.writer("finetune", registry.head.count)
        assert [entry.kind for entry in writer.commands(1e9, 10**6)] == ["hold"]
        assert registry.waiting() == []


def test_orders_to_one_lane_leave_the_others_alone(root):
    events, made = season(STORY), plan("finetune", "replay")
    play(root, events[:8], made)
    order(root, "hold", "finetune")
    with pytest.raises(RegistryError, match="is held already, by anna"):
        order(root, "hold", "finetune")
    play(root, events, made)
    with Registry.open(root) as registry:
        assert "switch" not in kinds(registry, "finetune")
        assert "switch" in kinds(registry, "replay")
