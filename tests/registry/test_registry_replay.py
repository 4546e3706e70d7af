"""A loop that starts again meets its own entries, and a person's commands at the same step."""

import json
import multiprocessing
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillfit.core.errors import RegistryError
from stillfit.registry import Command, Registry, verify


def hold(lane="lane", actor="anna", because="smoke in the rack", kind="hold", version=None):
    return Command(lane=lane, kind=kind, because=because, actor=actor, version=version)


def play(registry, position, first, last):
    """A small deterministic loop of one lane: an entry each third step; returns what it obeyed."""
    writer = registry.writer("lane", position)
    obeyed = []
    for step in range(first, last):
        obeyed += [(step, entry.kind, entry.seq) for entry in writer.commands(float(step), step)]
        if step % 3 == 0:
            writer.append("note", float(step), payload={"step": step})
    return writer, obeyed


def test_entries_met_again_are_not_written_again(registry):
    writer, _ = play(registry, 0, 0, 10)
    before = (registry.root / "journal.jsonl").read_bytes()
    again, _ = play(registry, 0, 0, 10)
    assert (registry.root / "journal.jsonl").read_bytes() == before
    assert again.position == writer.position == 4
    assert not again.replaying
    longer, _ = play(registry, 0, 0, 13)
    assert len(registry.history()) == 5
    assert (registry.root / "journal.jsonl").read_bytes().startswith(before)
    assert longer.position == 5


def test_a_writer_goes_on_from_the_position_of_a_checkpoint(registry):
    writer, _ = play(registry, 0, 0, 5)
    position = writer.position
    play(registry, position, 5, 10)
    third, _ = play(registry, position, 5, 20)
    assert [e.payload["step"] for e in registry.history()] == [0, 3, 6, 9, 12, 15, 18]
    assert third.position == 7


def test_lanes_replay_each_on_their_own(registry):
    """Two lanes interleaved; one of them starts again from its beginning, the other does not."""
    a, b = registry.writer("a"), registry.writer("b")
    for step in range(3):
        a.append("note", float(step))
        b.append("note", float(step))
    assert (a.position, b.position) == (5, 6)
    again = registry.writer("a")
    for step in range(5):
        assert again.replaying == (step < 3)
        again.append("note", float(step))
    b.append("note", 3.0)
    assert [(e.lane, e.time) for e in registry.history(since=6)] == [
        ("a", 3.0),
        ("a", 4.0),
        ("b", 3.0),
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "verdict"}, r"entry 1 of lane 'lane' differs \(its kind is 'note', now it wo"),
        ({"time": 1.5}, r"differs \(its time is 1\.0, now it would be 1\.5\)"),
        ({"payload": {"x": 2}}, r"differs \(its 'x' is 1, now it would be 2\)"),
        ({"payload": {}}, r"differs \(its 'x' is 1, now it would be null\)"),
        ({"payload": {"x": 1, "y": "z" * 99}}, r"its 'y' is null, now it would be \"z{76}\.\.\."),
    ],
)
def test_a_run_that_is_not_the_same_is_found_out_at_its_first_different_entry(
    registry, change, text
):
    def write(**other):
        writer = registry.writer("lane")
        writer.append("note", 0.0)
        entry = {"kind": "note", "time": 1.0, "payload": {"x": 1}} | other
        writer.append(entry["kind"], entry["time"], payload=entry["payload"])

    write()
    write()
    with pytest.raises(RegistryError, match=text) as error:
        write(**change)
    assert "this run is not the one that wrote the journal" in str(error.value)
    assert "Start a new registry for a new run" in str(error.value)
    assert len(registry.history()) == 2


def test_a_command_given_while_no_loop_runs_is_journaled_at_once_and_obeyed_at_the_restart(root):
    """The loop wrote 0..3 and died behind its checkpoint; a person holds; it replays and obeys."""
    with Registry.create(root) as registry:
        play(registry, 0, 0, 11)
    entry = Registry.order(root, hold())
    assert (entry.seq, entry.actor, entry.time) == (4, "anna", 9.0)
    with Registry.open(root) as registry:
        assert registry.held("lane").because == "smoke in the rack"
    with Registry.open(root, write=True) as registry:
        _, obeyed = play(registry, 0, 0, 11)
        # Entry 3 was written at step 9; step 10 is the first at which 4 can be met.
        assert obeyed == [(10, "hold", 4)]
        (mark,) = registry.history(kinds=("obeyed",))
        assert (mark.actor, mark.payload) == ("loop", {"command": 4, "step": 10})
        for last in (11, 14):
            assert play(registry, 0, 0, last)[1] == [(10, "hold", 4)]
    assert verify(root) == []


def test_an_obeyed_command_is_met_at_the_same_step_even_from_an_older_checkpoint(root):
    """Obeyed at step 20 after a start from a late checkpoint: so it is from the first step on."""
    with Registry.create(root) as registry:
        early, _ = play(registry, 0, 0, 10)
        late, _ = play(registry, early.position, 10, 18)
        late.append("note", 17.5)
    Registry.order(root, hold())
    with Registry.open(root, write=True) as registry:
        writer = registry.writer("lane", late.position)
        assert writer.commands(20.0, 20)
        again, obeyed = play(registry, early.position, 10, 18)
        again.append("note", 17.5)
        assert obeyed == []
        assert again.commands(19.0, 19) == ()
        assert [entry.kind for entry in again.commands(20.0, 20)] == ["hold"]
        wrong, _ = play(registry, early.position, 10, 18)
        wrong.append("note", 17.5)
        with pytest.raises(RegistryError, match="it was obeyed at step 20, now it is 21"):
            wrong.commands(21.0, 21)


def test_a_command_given_to_a_running_loop_waits_in_the_inbox(root):
    with Registry.create(root) as registry:
        writer, _ = play(registry, 0, 0, 5)
        assert Registry.order(root, hold()) is None
        assert registry.held("lane") is None
        assert [command.kind for command in registry.waiting("lane")] == ["hold"]
        assert registry.waiting("other") == []
        assert verify(root) == []
        with pytest.raises(RegistryError, match="the count must rise"):
            writer.commands(5.0, 4)
        assert [entry.kind for entry in writer.commands(5.0, 5)] == ["hold"]
        assert registry.waiting() == []
        assert registry.held("lane").actor == "anna"
        assert writer.commands(6.0, 6) == ()
    with Registry.open(root, write=True) as registry:
        again = registry.writer("lane")
        for step in range(5):
            assert again.commands(float(step), step) == ()
            if step % 3 == 0:
                again.append("note", float(step), payload={"step": step})
        assert [entry.kind for entry in again.commands(5.0, 5)] == ["hold"]


def test_a_letter_left_behind_by_a_killed_writer_is_not_obeyed_twice(root):
    with Registry.create(root) as registry:
        writer, _ = play(registry, 0, 0, 2)
        Registry.order(root, hold())
        (path,) = (root / "inbox").iterdir()
        text = path.read_bytes()
        writer.commands(5.0, 5)
    path.write_bytes(text)
    with Registry.open(root, write=True) as registry:
        again, _ = play(registry, 0, 0, 2)
        assert len(again.commands(5.0, 5)) == 1
        assert again.commands(6.0, 6) == ()
        assert len(registry.history(kinds=("hold",))) == 1
    assert list((root / "inbox").iterdir()) == []


def test_a_file_in_the_inbox_that_is_no_command_stops_nothing_and_is_found(root):
    with Registry.create(root) as registry:
        writer, _ = play(registry, 0, 0, 2)
        good = {"lane": "lane", "kind": "hold", "because": "x", "actor": "a", "version": None}
        wrong = ({"actor": "loop"}, {"kind": "deploy"}, {"version": "../x"})
        texts = ["nonsense", "[1]", '{"lane": "x"}', *(json.dumps(good | w) for w in wrong)]
        for number, text in enumerate(texts):
            (root / "inbox" / f"{number}.json").write_text(text)
        assert writer.commands(5.0, 5) == ()
        findings = verify(root)
        assert [f.where for f in findings] == [f"inbox/{number}.json" for number in range(6)]
        assert "is not a command; delete it" in findings[0].what


def test_a_held_lane_does_not_switch_and_commands_come_before(root, add):
    """The loop dies between verdict and switch, a person holds: the replay must not switch."""
    with Registry.create(root) as registry:
        first, second = add(registry, 1), add(registry, 2)
        writer = registry.writer("lane")
        writer.deploy(first, 0.0, "first")
        writer.append("verdict", 1.0, version=second)
    Registry.order(root, hold())
    with Registry.open(root, write=True) as registry:
        writer = registry.writer("lane")
        writer.deploy(first, 0.0, "first")
        assert writer.commands(1.0, 0) == ()
        writer.append("verdict", 1.0, version=second)
        with pytest.raises(RegistryError, match="ask for `commands` before a switch"):
            writer.switch(second, 1.0, "convinced")
        assert [entry.kind for entry in writer.commands(1.0, 1)] == ["hold"]
        assert registry.serving("lane") == first


def test_commands_that_make_no_sense_are_refused_whether_a_loop_runs_or_not(season, add):
    def refuse():
        with Registry.open(season) as registry:
            first = registry.serving("replay")
        for command, text in [
            (hold("unknown"), "there is no lane 'unknown' in .*; lanes are: frozen, replay"),
            (hold("replay"), "'replay' is held already, by loop at 20 s: worse on probation"),
            (hold("frozen", kind="resume"), "'frozen' is not held, so there is nothing to resume"),
            (hold("frozen", kind="switch"), "'switch' is no command; commands are hold, resume"),
            (hold("frozen", actor="loop"), "needs the name of the person"),
            (hold("frozen", because=" "), "and a reason"),
            (hold("frozen", kind="rollback"), "a rollback, and nothing else, names the version"),
            (hold("frozen", version=first), "a rollback, and nothing else, names the version"),
            (hold("replay", kind="rollback", version=first), "serves in lane 'replay' already"),
            (hold("frozen", actor="a\n"), "cannot name who acts: use 1 to 64 printable"),
        ]:
            with pytest.raises(RegistryError, match=text):
                Registry.order(season, command)

    refuse()
    with Registry.open(season, write=True):
        refuse()
    with Registry.open(season) as registry:
        assert registry.head.count == 6
        second = registry.previous("replay")
    with pytest.raises(RegistryError, match="never served in lane 'frozen'"):
        Registry.order(season, hold("frozen", kind="rollback", version=second))
    entry = Registry.order(season, hold("replay", kind="rollback", version=second))
    assert (entry.kind, entry.version, entry.time) == ("rollback", second, 20.0)
    with Registry.open(season) as registry:
        assert registry.serving("replay") == second


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_kills_checkpoints_and_commands_leave_one_true_story(fast_dir, data):
    """Play in pieces, each from any earlier checkpoint, with commands between and within.

    What the loop was told at which step, taken over the pieces, never contradicts itself, and a
    last replay from the beginning meets every entry and obeys every command at its step.
    """
    root = Path(tempfile.mkdtemp(dir=fast_dir)) / "registry"
    Registry.create(root).close()
    saved = [(0, 0)]
    told: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 5))):
        with Registry.open(root, write=True) as registry:
            # An older checkpoint is taken only where the later ones are of no use any more.
            del saved[data.draw(st.integers(1, len(saved))) :]
            position, step = saved[-1]
            writer = registry.writer("lane", position)
            end = step + data.draw(st.integers(0, 12))
            letters = data.draw(st.sets(st.integers(step, end), max_size=2))
            for now in range(step, end):
                if now in letters and "lane" in registry.lanes():
                    Registry.order(root, hold(kind="note"))
                for entry in writer.commands(float(now), now):
                    assert told.setdefault(entry.seq, now) == now
                if now % 3 == 0:
                    writer.append("note", float(now), payload={"step": now})
                if data.draw(st.booleans()):
                    saved.append((writer.position, now + 1))
        if data.draw(st.booleans()):
            with Registry.open(root) as registry:
                if "lane" not in registry.lanes():
                    continue
            Registry.order(root, hold(kind="note"))
    with Registry.open(root, write=True) as registry:
        before = {e.seq for e in registry.history() if e.actor != "loop"}
        writer, obeyed = play(registry, 0, 0, 100)
        seen = {seq: step for step, _, seq in obeyed}
        assert before <= set(seen)
        assert all(seen[seq] == step for seq, step in told.items())
        assert len(registry.history(kinds=("obeyed",))) == len(obeyed) == len(seen)
    assert verify(root) == []


def _order(root: Path, lane: str) -> None:
    Registry.order(root, hold(lane, actor=f"shifter of {lane}"))


def test_commands_reach_a_loop_in_another_process(root):
    with Registry.create(root) as registry:
        writer, _ = play(registry, 0, 0, 2)
        process = multiprocessing.get_context("spawn").Process(target=_order, args=(root, "lane"))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert [entry.actor for entry in writer.commands(2.0, 2)] == ["shifter of lane"]
