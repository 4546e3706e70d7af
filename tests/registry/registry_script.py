"""A scripted run that can be stopped at any system call by which it writes; not a test itself.

As a program: `registry_script.py DIRECTORY` plays the script once undisturbed, then once for every
call and way to die at it, each in a forked child that kills itself with SIGKILL, and goes on in a
second child. It prints one JSON line per kill: what a check found after the kill and at the end.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from stillfit.core.errors import RegistryError
from stillfit.core.values import Footprint, Provenance
from stillfit.registry import Architecture, Registry, VersionFacts, verify

CALLS = ("open", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "replace", "rename")
CALLS = (*CALLS, "mkdir", "unlink")
WHERE = {
    "before": tuple(name for name in CALLS if name not in ("fsync", "fdatasync")),
    "half": ("write",),
    "after": ("fdatasync", "unlink", "pwrite"),
}
STEPS = 4


def version(registry, seed, parent=None):
    facts = VersionFacts(
        architecture=Architecture("package.module:network"),
        update_class="weights",
        provenance=Provenance(updater="retrain", seed=seed),
        footprint=Footprint(parameters=3, weight_bytes=24, macs_per_event=3),
        code="0.1.0",
        parent=parent,
    )
    return registry.add_version(
        facts, weights={"w": np.full(3, seed / 8)}, learner={"x": np.arange(4)}, evidence={}
    )


def step(registry, writers, step):
    """One step of a deterministic loop over two lanes."""
    a, b = writers["a"], writers["b"]
    now = float(step)
    if step == 0:
        first = version(registry, 1)
        a.deploy(first, now, "first")
        b.deploy(first, now, "first")
    elif step == 1:
        first = version(registry, 1)
        second = version(registry, 2, first)
        with registry.batch():
            a.append("verdict", now, version=second, payload={"because": "better"})
            a.switch(second, now, "convinced")
            b.append("verdict", now, version=second, payload={"because": "not better"})
    elif step == 2:
        a.hold(now, "worse on probation")
        a.rollback(version(registry, 1), now, "worse on probation")
    else:
        a.append("note", now, payload={"step": step})


def run(root):
    """Begin, or go on from the last checkpoint, to the end."""
    make = Registry.open if Registry.exists(root) else None
    with make(root, write=True) if make else Registry.create(root) as registry:
        found = registry.load_checkpoint("run")
        begin = 0 if found is None else found.position
        places = {"a": 0, "b": 0} if found is None else dict(found.state["places"])
        writers = {lane: registry.writer(lane, place) for lane, place in places.items()}
        for now in range(begin, STEPS):
            step(registry, writers, now)
            registry.save_checkpoint(
                "run",
                now + 1,
                {"places": {lane: writer.position for lane, writer in writers.items()}},
                {"fill": np.full(9000, now), "small": np.arange(now)},
                {
                    f"large-{now}": {"x": np.full(9000, now), "y": np.arange(3)},
                    **{f"small-{n}": {"x": np.arange(n)} for n in range(now + 1)},
                },
            )


def content(root):
    """Every file by its path, but those that no promise is made about."""
    skip = ("lock", "journal.sqlite", "measurements.jsonl")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in skip
    }


class Interposer:
    """Counts calls by which files are written and disturbs the `at`-th one.

    `how`: "before" or "after" the call, "half" a write; `disturb` kills or raises.
    """

    def __init__(self, at, how, disturb):
        self.count, self.at, self.how, self.disturb = 0, at, how, disturb
        self.names = []

    def wrap(self, name, real):
        def call(*args, **kwargs):
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **kwargs)
            self.count += 1
            self.names.append(name)
            if self.count != self.at:
                return real(*args, **kwargs)
            if self.how == "half":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            elif self.how == "after":
                with suppress(FileNotFoundError):
                    real(*args, **kwargs)
            return self.disturb(name)

        return call

    def install(self, setter=setattr):
        for name in CALLS:
            setter(os, name, self.wrap(name, getattr(os, name)))


def forked(root, interposer=None):
    """Play in a child; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Nothing here depends on a flush, and thousands of them take minutes.
            os.fsync = os.fdatasync = lambda handle: None
            if interposer is not None:
                interposer.install()
            run(root)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def main(directory):
    base = Path(directory)
    assert forked(base / "undisturbed") == 0
    expected = content(base / "undisturbed")
    counting = Interposer(-1, "before", None)
    run_counted(base / "counted", counting)
    for at, name in enumerate(counting.names, 1):
        for how in ("before", "half", "after"):
            # After a call is before the next one, but where SQLite has its turn in between; and a
            # flush changes nothing that a kill could show.
            if name not in WHERE[how]:
                continue
            root = base / "killed"
            status = forked(
                root, Interposer(at, how, lambda name: os.kill(os.getpid(), signal.SIGKILL))
            )
            report = {
                "at": at,
                "how": how,
                "call": name,
                "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                "findings": [str(finding) for finding in check(root)],
                "serving": serving(root),
                "status": forked(root),
                "findings_after": [str(finding) for finding in check(root)],
                "same": content(root) == expected,
            }
            print(json.dumps(report))  # noqa: T201
            shutil.rmtree(root)


def run_counted(root, interposer):
    with_flush = {name: getattr(os, name) for name in CALLS}
    try:
        interposer.install()
        run(root)
    finally:
        for name, real in with_flush.items():
            setattr(os, name, real)


def check(root):
    return verify(root) if Registry.exists(root) else []


def serving(root):
    """Of each lane that has ever served, how many versions serve: one."""
    if not Registry.exists(root):
        return []
    with Registry.open(root) as registry:
        lanes = registry.lanes()
        for lane in lanes:
            found = registry.serving(lane)
            if found is None:
                raise RegistryError(f"lane {lane} serves nothing")
            registry.load_version(found)
        held = registry.held("a") is not None
        kinds = [entry.kind for entry in itertools.chain(registry.history("a"))]
        assert held == ("hold" in kinds)
        assert "rollback" not in kinds or held
        return lanes


if __name__ == "__main__":
    main(sys.argv[1])
