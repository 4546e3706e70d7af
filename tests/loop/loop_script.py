"""The toy loop in a child that can be killed at any system call by which it writes; no test itself.

As a program: `loop_script.py DIRECTORY HOW...` runs the loop once undisturbed, then with SIGKILL:
at every write (HOW `all`), at `n` of them drawn with a seed (`n,seed`), or ten times in one run
after random times (`times,seed`). Each run is gone on with and compared with the first. With
`orders,n,seed` a person orders to hold and to resume meanwhile, so the journals may differ by when
that is obeyed, but not in that it is, once. One JSON line per run.
"""

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from stillfit.core.events import Notice
from stillfit.decisions.probation import Probation
from stillfit.loop import run
from stillfit.monitors.late import LateMetric
from stillfit.registry import Command, Registry, verify
from stillfit.streams.contract import InMemory


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


HERE = Path(__file__).parent
toy = module(HERE / "toy.py")
killing = module(HERE.parent / "registry" / "registry_script.py")

# A change, a candidate that is kept; the old world again at once, so a switch that is rolled back;
# a person who resumes; a return. And labels in pieces, so that blocks wait half labelled.
STORY = [toy.NOMINAL, toy.SHIFTED, toy.SHIFTED, toy.NOMINAL, toy.NOMINAL, *[toy.SHIFTED] * 4]
RESUMED_IN = 7


def stream():
    events = []
    for event in toy.season(STORY, n=160, blocks=2):
        if isinstance(event, Notice) and event.state == "inter-fill":
            info = dict(event.info)
            if info["fill"] == RESUMED_IN:
                info["resumed_by"] = "shift crew"
            events.append(Notice(event.state, event.time, info))
        elif hasattr(event, "targets"):
            ids = event.ids
            events.append(event.take(ids % 3 == 0))
            events.append(event.take(ids % 3 == 1))
        else:
            events.append(event)
    return InMemory(events)


def plan():
    made = toy.plan(
        "ladder",
        "replay",
        watch=(),
        errors=(LateMetric(window=100, least=40),),
        probation=Probation(batch=5, least=5, enough=400),
    )
    return made.__class__(**{**vars(made), "checkpoint": 8})


ORDERS = {9: "hold", 31: "resume"}


def play(root, orders=False):
    """Begin, or go on, to the end."""
    fresh = not Registry.exists(root)
    with Registry.create(root) if fresh else Registry.open(root, write=True) as registry:
        for step in run(stream(), plan(), registry):
            kind = ORDERS.get(step.number) if orders else None
            given = [e.kind for e in registry.history("ladder") if e.actor != "loop"]
            if kind and kind not in given and not registry.waiting():
                assert Registry.order(
                    root, Command(lane="ladder", kind=kind, because="so be it", actor="anna")
                ) is None  # fmt: skip


def forked(root, interposer=None, kill_after=None, orders=False):
    """Play in a child; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.fsync = os.fdatasync = lambda handle: None
            if interposer is not None:
                interposer.install()
            play(root, orders)
            status = 0
        finally:
            if interposer is not None:
                (root.parent / "count.json").write_text(json.dumps(interposer.names))
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def findings(root):
    return [str(found) for found in verify(root)] if Registry.exists(root) else []


def told(root):
    with Registry.open(root) as registry:
        return [entry.hash for entry in registry.history()], registry.versions()


def ways(names):
    """Before each call; after it where SQLite has a turn before the next; half way through a file.

    Of the many parts of one file the first and the last stand for all.
    """
    for at, name in enumerate(names, 1):
        inner = name == "write" and names[at - 2] == "write"
        if not inner:
            yield at, "before", name
        if name == "write" and names[at] != "write":
            yield at, "half", name
        if name in ("fdatasync", "unlink", "pwrite"):
            yield at, "after", name


def report(base, expected, at, how, name, status):
    root = base / "killed"
    first = findings(root)
    again = forked(root)
    same = killing.content(root) == expected
    hashes = told(root) == told(base / "undisturbed")
    line = {
        "at": at, "how": how, "call": name, "status": again, "same": same, "hashes": hashes,
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "findings": first, "findings_after": findings(root),
    }  # fmt: skip
    print(json.dumps(line), flush=True)  # noqa: T201
    shutil.rmtree(root)


def main(directory, *hows):
    base = Path(directory)
    play(base / "warm")  # compiled loops and first calls, before the forks
    began = time.monotonic()
    assert forked(base / "undisturbed") == 0
    whole = time.monotonic() - began
    expected = killing.content(base / "undisturbed")
    assert forked(base / "counted", killing.Interposer(-1, "before", None)) == 0
    points = list(ways(json.loads((base / "count.json").read_text())))
    for how in hows:
        if how.startswith("orders"):
            with_orders(base, *map(int, how.split(",")[1:]))
            continue
        if how.startswith("times"):
            at_random_times(base, expected, whole, int(how.split(",")[1]))
            continue
        chosen = points
        if how != "all":
            n, seed = map(int, how.split(","))
            places = np.random.default_rng(seed).choice(len(points), n, replace=False)
            chosen = [points[k] for k in sorted(places)]
        for at, when, name in chosen:
            stop = killing.Interposer(at, when, lambda name: os.kill(os.getpid(), signal.SIGKILL))
            report(base, expected, at, when, name, forked(base / "killed", stop))


def with_orders(base, n, seed):
    assert forked(base / "ordered", killing.Interposer(-1, "before", None), orders=True) == 0
    points = list(ways(json.loads((base / "count.json").read_text())))
    places = np.random.default_rng(seed).choice(len(points), min(n, len(points)), replace=False)
    root = base / "killed"
    for place in sorted(places):
        at, how, name = points[place]
        stop = killing.Interposer(at, how, lambda name: os.kill(os.getpid(), signal.SIGKILL))
        status = forked(root, stop, orders=True)
        first = findings(root)
        again = forked(root, orders=True)
        with Registry.open(root) as registry:
            told = [
                entry.kind for entry in registry.history("ladder")
                if entry.actor != "loop" or entry.kind in ("obeyed", "switch")
            ]  # fmt: skip
            waiting = len(registry.waiting())
        line = {
            "at": at, "how": how, "call": name, "status": again, "told": told, "waiting": waiting,
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "findings": first, "findings_after": findings(root),
        }  # fmt: skip
        print(json.dumps(line), flush=True)  # noqa: T201
        shutil.rmtree(root)


def at_random_times(base, expected, whole, seed):
    rng = np.random.default_rng(seed)
    root, kills = base / "killed", 0
    for _ in range(10):
        status = forked(root, kill_after=rng.uniform(0.01, whole / 2))
        kills += os.WIFSIGNALED(status)
        assert findings(root) == []
    report(base, expected, kills, "times", "", signal.SIGKILL if kills else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
