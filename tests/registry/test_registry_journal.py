"""The journal: one query says what served and why, and no entry changes unnoticed."""

import json
import os
import shutil
import sqlite3
import threading

import pytest

from stillfit.core.errors import DamagedError, RegistryError
from stillfit.registry import Registry, rebuild, verify
from stillfit.registry.index import on_network_disk


def lines_of(root):
    return (root / "journal.jsonl").read_bytes().splitlines(keepends=True)


def sql(root, query, *values):
    database = sqlite3.connect(root / "journal.sqlite")
    with database:
        found = database.execute(query, values).fetchall()
    database.close()
    return found


def test_serving_is_answered_for_any_time_with_its_reason(season):
    with Registry.open(season) as registry:
        first, second = (e.version for e in registry.history("replay", kinds=("deploy", "switch")))
        assert registry.serving("replay", at=-0.1) is None
        assert registry.serving("replay", at=0.0) == first
        assert registry.serving("replay", at=9.99) == first
        assert registry.serving("replay", at=10.0) == second
        assert registry.serving("replay", at=19.0) == second
        assert registry.serving("replay") == first
        assert registry.serving("frozen") == first
        assert registry.serving("unknown") is None
        assert registry.change("replay", at=12.0).because == "convinced the gates"
        assert registry.change("replay").kind == "rollback"
        assert registry.previous("replay") == second
        assert registry.previous("frozen") is None


def test_hold_lasts_until_resume(season):
    with Registry.open(season, write=True) as registry:
        assert registry.held("replay", at=19.0) is None
        assert registry.held("replay").because == "worse on probation"
        assert registry.held("frozen") is None
        writer = registry.writer("replay", registry.head.count)
        second = registry.serving("replay", at=10.0)
        with pytest.raises(RegistryError, match="is held by loop since 20 s"):
            writer.switch(second, 30.0, "again")
        writer.resume(30.0, "repaired")
        writer.switch(second, 30.0, "again")
        assert registry.held("replay") is None
        assert registry.held("replay", at=25.0) is not None
        assert registry.serving("replay") == second


def test_history_selects_by_lane_kind_number_time_and_count(season):
    with Registry.open(season) as registry:
        everything = registry.history()
        assert [entry.seq for entry in everything] == list(range(6))
        assert [entry.lane for entry in everything[:2]] == ["replay", "frozen"]
        assert [e.seq for e in registry.history("replay")] == [0, 2, 3, 4, 5]
        assert [e.seq for e in registry.history(kinds=("hold", "verdict"))] == [2, 4]
        assert [e.seq for e in registry.history(since=3)] == [3, 4, 5]
        assert [e.seq for e in registry.history(until=10.0)] == [0, 1, 2, 3]
        assert [e.seq for e in registry.history("replay", newest=2)] == [4, 5]
        assert registry.lanes() == ["frozen", "replay"]


def test_entries_are_chained_from_the_hash_of_the_registry_file(season):
    import hashlib

    prev = hashlib.sha256((season / "REGISTRY.json").read_bytes()).hexdigest()
    for line in lines_of(season):
        table = json.loads(line)
        assert table["prev"] == prev
        body = {name: part for name, part in table.items() if name != "hash"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        assert table["hash"] == (prev := hashlib.sha256(text).hexdigest())
    assert json.loads((season / "HEAD.json").read_bytes())["hash"] == prev


def test_the_same_calls_give_the_same_journal_byte_for_byte(tmp_path, add):
    texts = []
    for name in ("a", "b"):
        with Registry.create(tmp_path / name) as registry:
            writer = registry.writer("lane")
            writer.deploy(add(registry, 1), 0.0, "first")
            writer.append("verdict", 1.0, payload={"because": "no", "figures": {"b": 1, "a": 0.1}})
            registry.measure("lane", "update", {"seconds": 1.0 if name == "a" else 2.0})
        texts.append((tmp_path / name / "journal.jsonl").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("seq", range(6))
def test_an_altered_removed_or_moved_line_of_the_file_is_found(season, seq):
    path = season / "journal.jsonl"
    lines = lines_of(season)
    altered = lines[seq].replace(b'"time":', b'"time":1')
    changes = [
        [*lines[:seq], altered, *lines[seq + 1 :]],
        [*lines[:seq], lines[seq].replace(b":", b": ", 1), *lines[seq + 1 :]],
        [*lines[:seq], *lines[seq + 1 :]],
        lines[:seq],
        [*lines[:seq], lines[seq][:-10]],
        [lines[seq], *lines[:seq], *lines[seq + 1 :]] if seq else lines[::-1],
        [*lines[:seq], b"\n", *lines[seq:]],
        [*lines[:seq], lines[seq], lines[seq], *lines[seq + 1 :]],
    ]
    if seq == 5:  # a line too many after the acknowledged ones: found, and cut off by a writer
        path.write_bytes(b"".join(changes.pop()))
        assert [f.where for f in verify(season)] == ["journal.jsonl"]
        with Registry.open(season, write=True) as registry:
            assert registry.head.count == 6
    for change in changes:
        path.write_bytes(b"".join(change))
        assert [f for f in verify(season) if f.where == "journal.jsonl"], change
        with pytest.raises(DamagedError, match=r"journal\.jsonl: .*look with `stillfit verify`"):
            Registry.open(season, write=True)
    path.write_bytes(b"".join(lines))
    assert verify(season) == []


@pytest.mark.parametrize(
    "query",
    [
        "UPDATE journal SET payload = replace(payload, 'convinced', 'bribed') WHERE seq = 3",
        "UPDATE journal SET payload = 'no json' WHERE seq = 3",
        "UPDATE journal SET time = time + 1 WHERE seq = 2",
        "UPDATE journal SET version = NULL WHERE seq = 5",
        "UPDATE journal SET actor = 'anna' WHERE seq = 0",
        "DELETE FROM journal WHERE seq = 0",
        "DELETE FROM journal WHERE seq = 3",
        "DELETE FROM journal WHERE seq = 5",
        "DELETE FROM journal",
        "UPDATE journal SET seq = 99 WHERE seq = 5",
        "INSERT INTO journal SELECT 6, lane, time, kind, version, payload, actor, prev, hash"
        " FROM journal WHERE seq = 5",
        "DROP TABLE journal",
    ],
)
def test_a_changed_row_of_the_index_is_found_and_rebuilt(season, query):
    before = (season / "journal.jsonl").read_bytes()
    sql(season, query)
    assert {finding.where for finding in verify(season)} == {"journal.sqlite"}
    done = rebuild(season)
    assert done == ["journal.sqlite was made anew from journal.jsonl: 6 entries"]
    assert verify(season) == []
    assert (season / "journal.jsonl").read_bytes() == before


def test_swapped_rows_of_the_index_are_found(season):
    sql(season, "UPDATE journal SET seq = 99 WHERE seq = 2")
    sql(season, "UPDATE journal SET seq = 2 WHERE seq = 3")
    sql(season, "UPDATE journal SET seq = 3 WHERE seq = 99")
    assert [f.where for f in verify(season)] == ["journal.sqlite"]


def test_entries_removed_from_all_copies_are_known_to_a_checkpoint(season):
    """Head, file and index cut back together: the checkpoint knew of six entries."""
    lines = lines_of(season)[:5]
    (season / "journal.jsonl").write_bytes(b"".join(lines))
    sql(season, "DELETE FROM journal WHERE seq = 5")
    head = {
        "bytes": 0,
        "count": 5,
        "hash": json.loads(lines[-1])["hash"],
        "end": sum(map(len, lines)),
    }
    del head["bytes"]
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    (season / "HEAD.json").write_bytes(text.ljust(255) + b"\n")
    assert [str(finding) for finding in verify(season)] == [
        "checkpoints/season/000000000007.json: it knew of 6 journal entries, 5 are left"
    ]


@pytest.mark.parametrize("change", ["missing", "altered", "older"])
def test_a_missing_or_altered_head_is_found_and_an_older_one_is_true(season, change):
    path = season / "HEAD.json"
    lines = lines_of(season)
    if change == "missing":
        path.unlink()
    elif change == "altered":
        path.write_bytes(path.read_bytes().replace(b'"count":6', b'"count":5'))
    else:
        head = {"count": 2, "hash": json.loads(lines[1])["hash"], "end": sum(map(len, lines[:2]))}
        text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
        path.write_bytes(text.ljust(255) + b"\n")
        assert verify(season) == []
        with Registry.open(season, write=True) as registry:
            assert registry.head.count == 6
        return
    assert verify(season)
    with pytest.raises(DamagedError, match="HEAD"):
        Registry.open(season, write=True)
    if change == "missing":
        assert any("HEAD.json was made anew" in text for text in rebuild(season))
        assert verify(season) == []


@pytest.mark.parametrize("lost", ["index", "file", "file altered", "file cut"])
def test_either_copy_of_the_journal_is_made_anew_from_the_other(season, lost):
    before = (season / "journal.jsonl").read_bytes()
    if lost == "index":
        (season / "journal.sqlite").unlink()
    elif lost == "file":
        (season / "journal.jsonl").unlink()
    elif lost == "file altered":
        (season / "journal.jsonl").write_bytes(before.replace(b"convinced", b"bribed"))
    else:
        (season / "journal.jsonl").write_bytes(before[:-400])
    assert verify(season)
    assert any("was made anew" in text for text in rebuild(season))
    assert verify(season) == []
    assert (season / "journal.jsonl").read_bytes() == before


def test_with_both_copies_damaged_nothing_is_changed(season):
    path = season / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"convinced", b"bribed"))
    sql(season, "DELETE FROM journal WHERE seq = 5")
    before = path.read_bytes()
    with pytest.raises(
        DamagedError, match=r"neither journal\.jsonl nor journal\.sqlite .* is whole"
    ):
        rebuild(season)
    assert path.read_bytes() == before
    (season / "journal.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DamagedError, match="neither"):
        rebuild(season)


def test_readers_do_without_an_index_or_with_one_that_is_behind(season):
    with Registry.open(season) as registry:
        expected = registry.history()
    sql(season, "DELETE FROM journal WHERE seq >= 3")
    with Registry.open(season) as registry:
        assert registry.history() == expected
    (season / "journal.sqlite").unlink()
    with Registry.open(season) as registry:
        assert registry.history() == expected
    (season / "journal.sqlite").write_bytes(b"nonsense")
    with Registry.open(season) as registry:
        assert registry.history() == expected
    assert not (season / "journal.sqlite-wal").exists()


def test_a_writer_makes_a_lost_index_anew_but_not_an_altered_one(season):
    (season / "journal.sqlite").unlink()
    with Registry.open(season, write=True):
        pass
    assert verify(season) == []
    sql(season, "UPDATE journal SET hash = 'x' WHERE seq = 5")
    with pytest.raises(DamagedError, match=r"does not agree with journal\.jsonl"):
        Registry.open(season, write=True)


def test_a_closed_registry_can_be_read_from_a_read_only_disk(season):
    assert sorted(path.name for path in season.glob("journal*")) == [
        "journal.jsonl",
        "journal.sqlite",
    ]
    assert sql(season, "PRAGMA journal_mode") == [("delete",)]


def test_a_reader_beside_a_writer_sees_what_was_acknowledged(registry, root, add):
    writer = registry.writer("lane")
    version = add(registry, 1)
    with Registry.open(root) as reader:
        for count in range(1, 20):
            if count == 1:
                writer.deploy(version, 0.0, "first")
            else:
                writer.append("note", float(count))
            assert len(reader.history()) == count
            if count % 6 == 0:
                assert verify(root) == []
                with Registry.open(root) as late:
                    assert len(late.history()) == count


def test_verify_beside_a_busy_writer_raises_no_false_alarm(registry, root):
    """A thread looks again and again while entries and checkpoints are written."""
    writer = registry.writer("lane")
    findings, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            findings.extend(verify(root))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for count in range(60):
            writer.append("note", float(count))
            if count % 5 == 0:
                registry.save_checkpoint("run", count, {"n": count}, {})
    finally:
        stop.set()
        thread.join()
    assert findings == []


def test_a_batch_is_one_flush_and_all_or_nothing(registry, root, monkeypatch):
    writer, flushes = registry.writer("lane"), []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (flushes.append(handle), real(handle)))
    with registry.batch():
        for count in range(10):
            writer.append("note", float(count))
        assert len(registry.history()) == 10
        with Registry.open(root) as reader:
            assert reader.history() == []
    assert len(flushes) == 1
    with pytest.raises(KeyError), registry.batch():
        writer.append("note", 20.0)
        raise KeyError
    with pytest.raises(RegistryError, match=r"an earlier write to .* failed; close the registry"):
        writer.append("note", 21.0)
    registry.close()
    with Registry.open(root) as reader:
        assert len(reader.history()) == 10
    assert verify(root) == []


def test_wrong_entries_are_refused_with_the_value(registry, add):
    version = add(registry, 1)
    writer = registry.writer("lane")
    cases = [
        (lambda: writer.switch(version, 0.0, "x"), "cannot switch: nothing serves yet, deploy"),
        (lambda: writer.append("note", float("nan")), "has the time nan; it must be finite"),
        (lambda: writer.append("Note!", 0.0), "'Note!' cannot name a kind of entry"),
        (lambda: writer.append("obeyed", 0.0), "written by `commands` alone"),
        (lambda: writer.append("note", 0.0, payload={"a": object()}), "the payload's a is a obj"),
        (lambda: writer.deploy("c" * 64, 0.0, "x"), "there is no version cccc"),
        (lambda: writer.deploy(version, 0.0, " "), "an entry 'deploy' needs a reason"),
        (lambda: writer.append("deploy", 0.0, payload={"because": "x"}), "needs the version"),
        (lambda: registry.writer("../lane"), "'../lane' cannot name a lane"),
        (lambda: registry.writer("Lane"), "'Lane' cannot name a lane"),
        (lambda: registry.writer("lane", 3), "position 3 lies outside the journal of 0"),
    ]
    for call, text in cases:
        with pytest.raises(RegistryError, match=text):
            call()
    assert registry.history() == []
    writer.deploy(version, 5.0, "first")
    other = add(registry, 2)
    late = [
        (lambda: writer.append("note", 4.0), "has the time 4 s, but its last one was at 5 s"),
        (lambda: writer.deploy(other, 6.0, "x"), "cannot deploy: it serves already"),
        (lambda: writer.rollback(other, 6.0, "x"), "never served in lane 'lane'"),
        (lambda: writer.rollback(version, 6.0, "x"), "serves in lane 'lane' already"),
    ]
    for call, text in late:
        with pytest.raises(RegistryError, match=text):
            call()
    assert len(registry.history()) == 1


def test_a_reader_cannot_write(season, facts):
    with Registry.open(season) as registry:
        for call in (
            lambda: registry.writer("replay"),
            lambda: registry.add_version(facts(), weights={}),
            lambda: registry.save_checkpoint("run", 0, {}, {}),
            lambda: registry.measure("replay", "x", {}),
        ):
            with pytest.raises(RegistryError, match="open it with write=True to write"):
                call()


def test_measurements_stay_outside_of_the_chain_and_survive_a_torn_line(season):
    with Registry.open(season, write=True) as registry:
        (found,) = registry.measurements("replay")
        assert found.figures == {"seconds": 1.5}
        with (season / "measurements.jsonl").open("ab") as file:
            file.write(b'{"torn')
        registry.measure("replay", "update", {"seconds": 2.0})
        assert [m.figures["seconds"] for m in registry.measurements()] == [1.5, 2.0]
        assert registry.measurements("frozen") == []
    assert verify(season) == []


def test_network_disks_are_told_by_the_table_of_mounts(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "23 22 0:3 / /data rw shared:1 - nfs4 server:/x rw\n"
        "24 23 0:4 / /data/fast rw - xfs /dev/sdb rw\n"
        "25 22 0:5 / /home/my\\040eos rw - fuse.eosxd eos rw\n"
    )
    assert not on_network_disk(tmp_path, table)
    assert on_network_disk(tmp_path.__class__("/data/registry/journal.sqlite"), table)
    assert not on_network_disk(tmp_path.__class__("/data/fast/journal.sqlite"), table)
    assert on_network_disk(tmp_path.__class__("/home/my eos/journal.sqlite"), table)
    assert not on_network_disk(tmp_path, tmp_path / "none")


def test_on_a_network_disk_the_index_has_no_write_ahead_log(root, monkeypatch):
    monkeypatch.setattr("stillfit.registry.index.on_network_disk", lambda path: True)
    with Registry.create(root) as registry:
        registry.writer("lane").append("note", 0.0)
        assert not (root / "journal.sqlite-wal").exists()
    assert verify(root) == []


def test_a_copied_index_without_its_log_is_not_trusted(registry, root, tmp_path):
    """A copy taken while a writer is at work: the newest rows are in a file of their own."""
    writer = registry.writer("lane")
    for count in range(5):
        writer.append("note", float(count))
    assert (root / "journal.sqlite-wal").exists()
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    with Registry.open(copy) as reader:
        assert len(reader.history()) == 5
