"""Random stories of a machine, and the laws that every journal of the loop must obey; no tests.

A story is a season of fills with random conditions, gaps, notices, label delays and lanes, drawn
from one seed. `check` reads the journal as a person would, with nothing of the loop's own state.
"""

import importlib.util
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stillfit.core.events import Block, Labels, Notice
from stillfit.core.values import Verdict
from stillfit.decisions.gates import BetterOnNew, NotWorseOnOld
from stillfit.decisions.policies import AfterTime, AnyOf, OnMetric
from stillfit.decisions.probation import Probation
from stillfit.decisions.windows import Always, FromNotices, Interval
from stillfit.loop import Lane, Redeploy
from stillfit.models.training import Schedule
from stillfit.monitors.late import LateMetric
from stillfit.registry import verify
from stillfit.streams.contract import InMemory
from stillfit.updaters.contract import Meter, Updater
from stillfit.updaters.references import FineTune, Retrain, RetrainWindow
from stillfit.updaters.replay import Replay

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

HOUR = 3600.0
ASKING = ("request", "declined", "refused", "call", "staged")
QUIET = (*ASKING, "alarm", "clear", "monitor-failed", "experience")


@dataclass(frozen=True, kw_only=True)
class Gamble(Updater):
    """Adds noise to the serving weights: now and then good, mostly bad."""

    size: float = 0.3

    def update(self, serving, learner, fresh, memory, *, budget, rng):
        meter = Meter.start(self, rng)
        weights = {
            name: (value + self.size * rng.standard_normal(value.shape)).astype(value.dtype)
            for name, value in serving.weights().items()
            if name.startswith("layers.3")
        }
        model = serving.with_weights({**serving.weights(), **weights})
        return meter.finish(model, learner, [fresh], budget)


@dataclass(frozen=True, kw_only=True)
class LetThrough:
    """A gate that is convinced by anything."""

    name: str = "let-through"

    def judge(self, trial):
        return Verdict(gate=self.name, accepted=True, because="it is never against anything")


@dataclass(frozen=True)
class Story:
    """A stream with the plan of lanes that run on it."""

    events: list
    plan: object
    notes: dict = field(default_factory=dict)

    @property
    def stream(self):
        return InMemory(self.events)


def machine(rng, fills):
    """Blocks, labels and notices of a season, in order of time."""
    named = rng.random() < 0.7
    known = {"nominal": 0.0, "b": rng.uniform(-2, 2), "c": rng.uniform(-2, 2)}
    condition = "nominal"
    delay = int(rng.integers(0, 3))
    fraction = rng.choice([1.0, 0.6])
    says_until = rng.random() < 0.8
    notices = rng.random() < 0.9
    pieces = int(rng.integers(1, 3))
    waiting, events = [], []
    start = 10 * HOUR
    for fill in range(1, fills + 1):
        if rng.random() < 0.4:
            condition = str(rng.choice(list(known)))
        end = start + rng.uniform(2, 6) * HOUR
        follows = end + rng.choice([0.05, 0.5, 3.0, 8.0]) * HOUR

        def until(time, says=says_until):
            return {"until": time} if says else {}

        if notices:
            events.append(Notice("stable-beams", start, {"fill": fill, **until(end)}))
        blocks = int(rng.integers(1, 4))
        times = np.sort(rng.uniform(start, end, blocks))
        now = []
        for k, time in enumerate(times):
            n = int(rng.integers(60, 260))
            first = fill * 10_000 + k * 1000
            block, labels = toy.rows(n, known[condition], 7, first, time, condition)
            if not named:
                block = Block(block.ids, block.inputs, block.time)
            events.append(block)
            keep = np.random.default_rng(first).random(n) < fraction
            now.append(labels.take(np.flatnonzero(keep)))
        waiting.append(now)
        info = {"fill": fill, **until(follows)}
        if rng.random() < 0.3:
            info["resumed_by"] = "shift crew"
        if notices:
            events.append(Notice("inter-fill", end, info))
        if len(waiting) > delay:
            late = end + rng.choice([0.0, 60.0])
            for part in waiting.pop(0):
                for piece in range(pieces):
                    events.append(
                        Labels(
                            part.ids[piece::pieces], {"y": part.targets["y"][piece::pieces]}, late
                        )
                    )
        start = follows
    return sorted(events, key=lambda event: event.time)


def lanes(rng, model):
    short = Schedule(steps=int(rng.integers(20, 60)), batch=64, rate=0.02)
    kinds = {
        "redeploy": lambda kind: Redeploy(),
        "gamble": lambda kind: Gamble(update_class=kind),
        "finetune": lambda kind: FineTune(schedule=short, min_events=80, update_class=kind),
        "replay": lambda kind: Replay(
            schedule=short, min_events=80, capacity=300, update_class=kind
        ),
        "retrain": lambda kind: Retrain(schedule=short, min_events=80, update_class=kind),
        "window": lambda kind: RetrainWindow(schedule=short, min_events=80, update_class=kind),
    }
    made = []
    for number in range(int(rng.integers(1, 4))):
        names = [n for n in kinds if rng.random() < 0.4]
        policy = OnMetric(cool_down=float(rng.choice([0.0, 1.0, 10 * HOUR])))
        if rng.random() < 0.4:
            policy = AnyOf(policies=(policy, AfterTime(every=rng.uniform(5, 40) * HOUR)))
        gates = (BetterOnNew(least=20), NotWorseOnOld(relative=0.5, least=20))
        if rng.random() < 0.5:
            gates = (LetThrough(),)
        made.append(
            Lane(
                name=f"lane{number}",
                model=model,
                rungs={
                    name: kinds[name](str(rng.choice(["weights", "bitstream"]))) for name in names
                },
                policy=policy,
                gates=gates,
                probation=Probation(batch=5, least=4, enough=int(rng.choice([60, 400]))),
                errors=(LateMetric(window=150, least=30),),
                tries=int(rng.integers(1, 3)),
            )
        )
    return tuple(made)


def window(rng):
    kind = rng.choice(["notices", "expected", "interval", "always"], p=[0.5, 0.2, 0.2, 0.1])
    build, load = rng.uniform(0, 6) * HOUR, rng.uniform(0.05, 1.5) * HOUR
    if kind == "always":
        return Always(build=build, load=load)
    if kind == "interval":
        return Interval(every=rng.uniform(4, 12) * HOUR, length=HOUR * rng.uniform(0.1, 2),
                        build=build, load=load)  # fmt: skip
    expected = 2 * HOUR if kind == "expected" else None
    return FromNotices(build=build, load=load, expected=expected)


def story(seed, fills=9):
    rng = np.random.default_rng([seed, 99])
    base = toy.plan("frozen")
    plan = replace(
        base,
        lanes=lanes(rng, base.lanes[0].model),
        window=window(rng),
        checkpoint=int(rng.integers(1, 40)),
        pending_bytes=int(rng.choice([10_000, 10**6])),
    )
    return Story(machine(rng, fills), plan)


# -- the laws -----------------------------------------------------------------------------------


def may(story, entry, kind, staged_at):
    """Whether the machine allowed a change of a class at the time of an entry, by the notices."""
    rules, now = story.plan.window, entry.time
    takes = rules.load if kind == "bitstream" else rules.seconds
    end = now + takes
    if kind == "bitstream" and now < staged_at + rules.build - 1e-6:
        return f"it was built only at {staged_at + rules.build}"
    if abs(entry.payload["serves_from"] - end) > 1e-6:
        return f"it says to serve from {entry.payload['serves_from']} and not {end}"
    if isinstance(rules, Always):
        return None
    if isinstance(rules, Interval):
        opened = rules.start + (now + 1e-6 - rules.start) // rules.every * rules.every
        return None if end <= opened + rules.length + 1e-6 else "the interval was closed"
    notices = [event for event in story.events if isinstance(event, Notice)]
    if not notices or notices[0].time > now:
        return "the machine's state was unknown"
    # Of notices at the very time of the change, either may have been read by then.
    last = bisect_right([notice.time for notice in notices], now)
    nearby = [n for n in notices[:last] if n.time == now] + [
        n for n in notices[:last] if n.time < now
    ][-1:]
    why = "nothing"
    for notice in nearby:
        until = notice.info.get("until", np.inf)
        if rules.expected is not None and until == np.inf:
            until = notice.time + rules.expected
        if notice.state not in rules.open_states:
            why = f"the machine was in {notice.state}"
        elif end > until + 1e-6:
            why = f"it closed at {until}"
        elif kind == "bitstream" and not np.isfinite(until):
            why = "its end was not known"
        else:
            return None
    return why


def check_lane(story, entries, manifests):
    serving, previous, served, staged = None, None, [], None
    baking, held, leaving, time = False, False, False, -np.inf
    changes = []
    for entry in entries:
        assert entry.time >= time, "time went back"
        time = entry.time
        kind, version = entry.kind, entry.version
        if kind == "deploy":
            assert serving is None, "deployed twice"
            serving, served = version, [version]
            changes.append((time, version))
            continue
        assert serving is not None, "something happened before anything served"
        idle = staged is None and not baking and not leaving and not held
        if kind in ASKING:
            assert idle, f"{kind} while staged, baking or held"
        if kind == "staged":
            verdicts = entry.payload["verdicts"]
            assert verdicts and all(v["accepted"] for v in verdicts), "a refused version was staged"
            if entry.payload["rung"] == "redeploy":
                assert version in served and version != serving
            assert entry.payload["parent"] == serving
            staged = entry
        elif kind == "refused":
            assert not all(v["accepted"] for v in entry.payload["verdicts"])
        elif kind == "withdrawn":
            assert staged is not None and staged.version == version
            staged = None
        elif kind == "switch":
            assert not held and not leaving, "a held lane switched"
            assert staged is not None and staged.version == version, "nothing of it was staged"
            assert entry.payload["previous"] == serving
            no = may(story, entry, staged.payload["update_class"], staged.time)
            assert no is None, f"switched at {time}: {no}"
            own = manifests(version).facts.update_class
            assert "bitstream" in (staged.payload["update_class"], "bitstream") and (
                own == "weights" or staged.payload["update_class"] == "bitstream"
            )
            previous, serving, staged, baking = serving, version, None, True
            served.append(version)
            changes.append((time, version))
        elif kind == "kept":
            assert baking and version == serving
            baking = False
        elif kind == "hold":
            assert baking, "held without a failed probation"
            baking, held, leaving = False, True, True
            held_at = time
        elif kind == "rollback":
            assert leaving and version == previous and version in served
            classes = {manifests(v).facts.update_class for v in (version, serving)}
            no = may(story, entry, max(classes, key="weights".__lt__), held_at) \
                if len(classes) == 1 else may(story, entry, "bitstream", held_at)  # fmt: skip
            assert no is None, f"rolled back at {time}: {no}"
            previous, serving, leaving = serving, version, False
            changes.append((time, version))
        elif kind == "resume":
            assert held, "resumed what was not held"
            held = False
        elif kind == "performance":
            for when in (entry.payload["first"], entry.payload["last"]):
                at = [v for t, v in changes if t < when][-1:] + [v for t, v in changes if t == when]
                assert version in at, "it is said to have served when it did not"
        else:
            assert kind in QUIET, kind
    return serving, held, staged is not None, baking


def check(story, registry):
    """Every law, for every lane; returns how often each kind of entry came."""
    counts = {}
    for lane in story.plan.lanes:
        entries = registry.history(lane.name)
        assert entries[0].kind == "deploy"
        serving, held, _, _ = check_lane(story, entries, registry.manifest)
        assert registry.serving(lane.name) == serving
        assert (registry.held(lane.name) is not None) == held
        for entry in entries:
            counts[entry.kind] = counts.get(entry.kind, 0) + 1
    assert verify(registry.root) == []
    return counts
