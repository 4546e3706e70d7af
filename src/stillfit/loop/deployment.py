"""A lane at work: the one place where something changes while the loop runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.events import Block, Examples
from stillfit.core.predictive import Predictive
from stillfit.core.values import Served, UpdateClass, VersionId
from stillfit.decisions.policies import Past
from stillfit.decisions.probation import ProbationState
from stillfit.decisions.windows import WindowState
from stillfit.loop.pending import Judged, Pending
from stillfit.loop.plan import Lane, Plan, Redeploy
from stillfit.loop.proposals import (
    Proposal,
    Rows,
    Standing,
    climb,
    first_provenance,
    stored_errors,
)
from stillfit.loop.remembered import Remembered
from stillfit.loop.selection import (
    BEFORE,
    Term,
    in_order,
    newest_condition,
    present,
    reliability,
    rows_of,
    select,
    stretches,
)
from stillfit.loop.shelf import Shelf
from stillfit.loop.watching import Watch
from stillfit.registry import Entry, Writer
from stillfit.streams.joining import Joiner
from stillfit.streams.store import LabelledStore, is_held_out
from stillfit.updaters.contract import Learner, Updater

SYNTHESISED, NOT_SYNTHESISED = "synthesised", "synthesis-failed"


class Staged(NamedTuple):
    """A version that passed its gates and waits for its window.

    `ready`: time (s) of acceptance; `wake`: when it is worth asking the window again without a
    new event. `kind`: "switch", or "rollback" of a version that failed its probation. `condition`,
    `since`: the events that it was chosen for.
    """

    version: VersionId
    kind: str
    update_class: UpdateClass
    ready: float
    because: str
    condition: str
    since: float | None = None
    rung: str = ""
    wake: float | None = None


class Failed(NamedTuple):
    """What failed requests in a condition leave behind, so that none is repeated for nothing.

    `tries`: those that count. `rows`: events that the last one read, `seen`: labelled events that
    had come by then.
    """

    tries: int
    rows: int
    seen: int


class Deployment:
    """What serves in a lane, what is on its way, and what is known about both.

    Everything here can be stored (`to_state`) and comes back the same (`from_state`).
    """

    def __init__(self, lane: Lane, plan: Plan, shelf: Shelf, writer: Writer) -> None:
        self.lane, self.plan, self.shelf, self.writer = lane, plan, shelf, writer
        self.name = lane.name
        self.serving = shelf.put_first(
            lane.model,
            first_provenance("initial", plan.nominal, plan.seeds.root),
            None if lane.chip is None else lane.chip.footprint(lane.model),
        )
        self.previous: VersionId | None = None
        self.served: list[VersionId] = [self.serving]
        self.remembered: dict[str, VersionId] = {}
        self.terms: dict[VersionId, Term] = {}
        self.pending = Pending()
        self.staged: Staged | None = None
        self.baking: ProbationState | None = None
        self.held = False
        self.past = Past(change=0.0)
        self.requests, self.asked = 0, 0
        self.refit = 0
        self.news = False
        self.failed: dict[str, Failed] = {}
        self.learners: dict[str, Learner] = {}
        self.watch = Watch(lane, plan, shelf, self._tell)

    # -- begin ------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Deploy the first version, calibrate the monitors, let the learners keep what they may."""
        nominal = self.plan.nominal
        self.writer.deploy(self.serving, now, "the first version of the lane begins to serve")
        self.past = Past(change=now)
        for condition in np.unique(nominal.conditions):
            self.remembered[str(condition)] = self.serving
        self.terms[self.serving] = Term(str(nominal.conditions[0]))
        self._synthesise(now)
        self.watch.calibrate(self.serving, nominal, nominal, "begin", self.asked, now)
        training = self._training(nominal)
        for name, rung in self._updaters():
            rng, first = self._rng("begin", name), self.shelf.get(self.serving)
            begun = self.watch.guarded(
                name, now, rung.begin, first, training, kind="updater", rng=rng
            )
            self.learners[name] = {} if begun is None else begun

    # -- serve and watch --------------------------------------------------------------------------

    def serve(self, block: Block, waiting: Block) -> Served:
        """Predict a block with the serving version and remember what was said.

        `waiting`: the part of the block whose labels are awaited. Where it is not the whole it is
        predicted by itself, as after a restart, since sums may differ in their last bits.
        """
        served = self.shelf.serve(self.serving, block.inputs)
        if waiting is block:
            self.pending.add(block.ids, served)
        elif len(waiting):
            self.serve_again(waiting, self.serving)
        self.past = self.past._replace(events=self.past.events + len(block))
        return served

    # -- labels -----------------------------------------------------------------------------------

    def learn(self, examples: Examples, fills: NDArray[np.int64], batch: int, now: float) -> None:
        """Late labels: judge what was served, feed monitors, probation and learners.

        `fills`: the number of the fill of each event, `NO_FILL` where it is not known; `batch`:
        which labels of the stream these are, the same in every lane.
        """
        for judged in self.pending.find(examples.ids):
            whole = len(judged.rows) == len(examples)
            rows = examples if whole else examples.take(judged.rows)
            task = self.shelf.get(judged.version).task
            errors = task.errors(judged.predictive, judged.outputs, rows.targets)["error"]
            for fill, part in stretches(rows.conditions, fills[judged.rows]):
                here = rows.take(part)
                self._journal_performance(judged.take(part), here, fill, batch, now)
                self.remembered.setdefault(str(here.conditions[0]), judged.version)
            self.news = True
            if judged.version != self.serving:
                continue  # labels of a version that is gone say nothing about the present one
            if self.previous is not None and rows.times[0] <= self.past.change:
                # Nor do those of the time before, where the version served once already.
                lately = rows.times > self.past.change
                rows, errors = rows.take(lately), errors[lately]
                if not len(rows):
                    continue
            self.watch.labels(rows.times, errors, now)
            if self.baking is not None and self.previous is not None:
                old = stored_errors(self.shelf, self.previous, rows)
                self.baking = self.lane.probation.step(self.baking, errors, old)
        updaters = self._updaters()
        training = self._training(examples) if updaters else Examples.empty()
        if not len(training):
            return
        for name, rung in updaters:
            rng = self._rng("observe", name, batch)
            before = self.learners[name]
            after = self.watch.guarded(
                name, now, rung.observe, before, training, kind="updater", rng=rng
            )
            self.learners[name] = before if after is None else after

    def _updaters(self) -> list[tuple[str, Updater]]:
        return [(n, rung) for n, rung in self.lane.rungs.items() if not isinstance(rung, Redeploy)]

    def _training(self, examples: Examples) -> Examples:
        """What updaters may see: nothing that gates judge on, nor of a condition without weight."""
        rules = self.plan.keeping
        keep = ~is_held_out(examples.ids, rules.held_out, rules.seed, rules.stretch)
        for name, weight in rules.weights.items():
            if weight == 0:
                keep &= examples.conditions != name
        return examples if keep.all() else examples.take(np.flatnonzero(keep))

    # -- decide -----------------------------------------------------------------------------------

    def decide(self, store: LabelledStore, joiner: Joiner, now: float) -> None:
        """Judge the probation; ask the policy; on a request, climb the ladder.

        `joiner` has the events whose labels have not come.
        """
        if self.baking is not None:
            self._bake(now)
        self._refit(store, now)
        self._drop_stale(store, now)
        idle = self.staged is None and self.baking is None and not self.held
        # Without new labels nothing could be learned or judged that was not before.
        if not idle or self.lane.ladder is None or not self.news:
            return
        policy, evidence = self.lane.policy, list(self.watch.evidence.values())
        request = self.watch.guarded(
            policy.name, now, partial(policy.ask, evidence, now=now, past=self.past), kind="policy"
        )
        if request is None or not self._worth_asking(store):
            return
        rows = select(self.lane, store, request.since)
        self.requests += 1
        self.news = False
        self.past = Past(change=self.past.change, request=now)
        self._journal("request", now, because=request.because, policy=request.policy,
                      since=request.since, condition=rows.condition, fresh=len(rows.fresh),
                      held_out=len(rows.new))  # fmt: skip
        early: list[bool] = []

        def report(proposal: Proposal) -> None:
            early.append(proposal.early)
            self._journal_proposal(proposal, now)

        step, proposal = climb(
            self.lane,
            self.shelf,
            rows,
            Standing(
                serving=self.serving,
                served=tuple(self.served),
                # Of the time before a change without a name the serving version is the memory.
                remembered={BEFORE: self.serving, **self.remembered},
                learners=self.learners,
                memory=Remembered(store.training, joiner, self.plan.keeping),
            ),
            lambda rung: self._rng("request", self.requests, rung),
            report,
        )
        if proposal is None or proposal.candidate is None:
            seen = store.seen.get(rows.condition, 0)
            if self._give_up(rows, step.because, seen, counts=not any(early), now=now):
                self.terms[self.serving] = Term(rows.condition, request.since)
                self._refer(store, "as-is", now)
                self.watch.forget()
        else:
            self._stage(proposal, rows, request.since, now)

    def _worth_asking(self, store: LabelledStore) -> bool:
        """Whether enough labels have come since the last failed request to ask again.

        Half as many as it read: so what stays hopeless is tried log n times, not at every block.
        """
        condition = newest_condition(store) if self.failed else ""
        failed = self.failed.get(condition)
        return failed is None or store.seen.get(condition, 0) - failed.seen >= failed.rows / 2

    def obey(self, now: float, store: LabelledStore) -> None:
        """Do what persons have ordered by now: hold, resume, go back to a version.

        Asked for after every event and right before a switch, which a hold given in between, or
        while no loop ran, must still stop.
        """
        orders = self.writer.commands(now, self.asked)
        self.asked += 1
        for order in orders:
            if order.kind == "hold":
                self.held = True
            elif order.kind == "resume":
                self.held, self.failed = False, {}
            elif order.kind == "rollback" and order.version not in (None, self.serving):
                self._go_back(order, now, store)

    def resume(self, now: float, because: str) -> None:
        """Lift a HOLD that stands; without one, nothing."""
        if self.held:
            self.held, self.failed = False, {}
            self.writer.resume(now, because)

    def journal_experience(self, store: LabelledStore, now: float) -> None:
        """At the end: what each version that served is worth on every condition, and what is kept.

        The matrix holds the headline figure of the task (the first of `summarise`), rows in the
        order in which the versions served, on the held-out events of each condition.
        """
        if not np.isfinite(now):
            return
        matrix: list[list[float | None]] = []
        headline = ""
        held = {c: rows_of(store.held_out, Term(c), self.lane.judged) for c in store.seen}
        held = {condition: rows for condition, rows in held.items() if len(rows)}
        for version in self.served:
            model = self.shelf.get(version)
            row: list[float | None] = []
            for rows in held.values():
                predictive, outputs = model.predict(rows.inputs)
                figures = model.task.summarise(predictive, outputs, rows.targets)
                headline = next(iter(figures))
                row.append(_number(figures[headline]))
            matrix.append(row)
        stored = {
            h.condition: {"events": h.training + h.held_out, "bytes": h.nbytes}
            for h in store.holdings()
        }
        self._journal("experience", now, versions=list(self.served), conditions=list(held),
                      matrix=matrix, figure=headline, stored=stored)  # fmt: skip

    # -- switch -----------------------------------------------------------------------------------

    def wake(self, state: WindowState, now: float, store: LabelledStore) -> None:
        """Between two events: a staged version may have become ready before `now`."""
        while self.staged is not None and self.staged.wake is not None and self.staged.wake <= now:
            before = self.staged
            self.switch(state, self.staged.wake, store)
            if self.staged is not None and self.staged.wake == before.wake:
                return

    def switch(self, state: WindowState, now: float, store: LabelledStore) -> None:
        """Switch to the staged version if the window allows it now."""
        if self.staged is None or (self.held and self.staged.kind != "rollback"):
            return
        staged = self.staged
        permit = self.plan.window.allows(state, now, staged.update_class, staged.ready)
        if not permit.allowed:
            later = permit.at if permit.at is not None and permit.at > now else None
            self.staged = staged._replace(wake=later)
            return
        self.obey(now, store)
        if self.staged is None or (self.held and staged.kind != "rollback"):
            return
        write = self.writer.rollback if staged.kind == "rollback" else self.writer.switch
        write(staged.version, now, staged.because, window=permit.because, serves_from=permit.at,
              previous=self.serving, rung=staged.rung, condition=staged.condition)  # fmt: skip
        self.staged = None
        if staged.kind == "switch":
            self._begin_term(staged.version, staged.condition, staged.since)
            self.baking = self.lane.probation.init()
        self._change(staged.version, now)
        if staged.kind == "switch":
            self._synthesise(now)
        self._refer(store, "switch", now)

    # ---------------------------------------------------------------------------------------------

    def _change(self, version: VersionId, now: float) -> None:
        self.previous, self.serving = self.serving, version
        if version not in self.served:
            self.served.append(version)
        self.past = Past(change=now, request=self.past.request)
        self.watch.forget()

    def _synthesise(self, now: float) -> None:
        """Journal what the chip's slower tools say of the version that begins to serve.

        They may fail or be absent: then that is journaled, and the version serves all the same.
        """
        chip, version = self.lane.chip, self.serving
        if chip is None or self.writer.recall((SYNTHESISED, NOT_SYNTHESISED), version):
            return
        try:
            size = chip.promoted(self.shelf.get(version))
        except Exception as error:  # noqa: BLE001  (whatever a tool does, serving goes on)
            because = f"{type(error).__name__}: {error}"
            self._journal(NOT_SYNTHESISED, now, version=version, because=because)
            return
        if size is not None:
            used = ", ".join(f"{n:,.10g} {name.upper()}" for name, n in size.used().items())
            self._journal(SYNTHESISED, now, version=version, because=f"{used} ({size.method})",
                          footprint=dataclasses.asdict(size))  # fmt: skip

    def _go_back(self, order: Entry, now: float, store: LabelledStore) -> None:
        """A person's rollback: at once, in any window, and what was on its way is dropped."""
        assert order.version is not None
        self._withdraw(f"{order.actor} rolled back; it was to replace {self.serving[:8]}", now)
        self.baking = None
        self._change(order.version, now)
        self._refer(store, "switch", now)

    def _drop_stale(self, store: LabelledStore, now: float) -> None:
        """A candidate that still waits when labels show another condition is not for the present.

        It would fail its probation, and a person would have to lift the HOLD.
        """
        if self.staged is None or self.staged.kind == "rollback" or not self.news:
            return
        newest = newest_condition(store)
        if newest != self.staged.condition:
            was = self.staged.condition
            self._withdraw(f"it was chosen for {was!r}; the newest labels are of {newest!r}", now)

    def _withdraw(self, because: str, now: float) -> None:
        if self.staged is not None:
            self._journal("withdrawn", now, version=self.staged.version, because=because)
            self.staged = None

    def _bake(self, now: float) -> None:
        assert self.baking is not None
        judgement = self.lane.probation.judge(self.baking)
        if judgement.what == "wait":
            return
        self.baking = None
        facts = {"because": judgement.because, "figures": dict(judgement.figures)}
        term = self.terms[self.serving]
        if judgement.what == "keep" or self.previous is None:
            self.remembered[term.condition] = self.serving
            self._journal("kept", now, version=self.serving, **facts)
            return
        self.held = True
        self.writer.hold(now, f"{self.serving[:8]} failed its probation: {judgement.because}")
        self.staged = Staged(
            version=self.previous,
            kind="rollback",
            update_class=self.shelf.reach(self.serving, self.previous),
            ready=now,
            because=f"back to the version before: {judgement.because}",
            condition=self.terms[self.previous].condition,
        )

    def _begin_term(self, version: VersionId, condition: str, since: float | None) -> None:
        """A version is chosen for the events of a condition from `since` on."""
        before = self.terms[self.serving]
        if before.condition == condition:
            self.terms[self.serving] = before._replace(until=since)
        self.terms[version] = Term(condition, since)

    def _refer(
        self, store: LabelledStore, why: str, now: float, only: Collection[str] | None = None
    ) -> None:
        """Hold the monitors to the level of the serving version on what it was chosen for."""
        term = self.terms[self.serving]
        fresh, new = present(self.lane, store, term)
        judged = new if len(new) else fresh
        examples = in_order([new, fresh])
        self.watch.calibrate(self.serving, examples, judged, why, self.asked, now, only)
        self.refit = store.seen.get(term.condition, 0) + max(len(fresh) + len(new), 1)

    def _refit(self, store: LabelledStore, now: float) -> None:
        """Try again to give a reference to monitors that had too few labels for it.

        Whenever the labels have doubled, unless an alarm stands, whose cause would be the level.
        """
        seen = store.seen.get(self.terms[self.serving].condition, 0)
        if self.watch.unfit and seen >= self.refit and not self.watch.alarmed:
            self._refer(store, "refit", now, only=self.watch.unfit)

    def _stage(self, proposal: Proposal, rows: Rows, since: float | None, now: float) -> None:
        candidate = proposal.candidate
        assert candidate is not None
        rung = proposal.tried.rung
        verdicts = [dataclasses.asdict(verdict) for verdict in proposal.tried.verdicts]
        version = proposal.version
        if version is None:
            evidence: dict[str, Any] = {"verdicts": verdicts}
            if proposal.equality is not None:
                evidence["equality"] = dataclasses.asdict(proposal.equality)
            version = self.shelf.put(candidate, self.serving, evidence, proposal.footprint)
            self.learners[rung] = candidate.learner
        self.failed.pop(rows.condition, None)
        because = f"{rung} convinced {len(verdicts)} gates in condition {rows.condition!r}"
        self.staged = Staged(
            version=version,
            kind="switch",
            update_class=candidate.update_class,
            ready=now,
            because=because,
            condition=rows.condition,
            since=since,
            rung=rung,
        )
        self._journal("staged", now, version=version, because=because, rung=rung,
                      update_class=candidate.update_class, verdicts=verdicts,
                      parent=self.serving, labelled_events=candidate.cost.examples)  # fmt: skip

    def _give_up(self, rows: Rows, because: str, seen: int, *, counts: bool, now: float) -> bool:
        """No rung convinced: a person is called, and after some tries the level is taken as is.

        Then (the answer) a monitor must see it get worse from there before anything is asked for.
        """
        tries = self.failed.get(rows.condition, Failed(0, 0, 0)).tries + counts
        last = tries >= self.lane.tries
        read = len(rows.fresh) + len(rows.new)
        self.failed[rows.condition] = Failed(0 if last else tries, read, seen)
        self._journal("call", now, because=because, condition=rows.condition, tries=tries,
                      taken_as_is=last)  # fmt: skip
        return last

    def _journal_performance(
        self, judged: Judged, rows: Examples, fill: int | None, batch: int, now: float
    ) -> None:
        task = self.shelf.get(judged.version).task
        figures = task.summarise(judged.predictive, judged.outputs, rows.targets)
        bins: list[dict[str, float]] = []
        if isinstance(judged.predictive, Predictive):
            truth = np.asarray(rows.targets[task.target], np.float64)
            bins = reliability(judged.predictive.std, np.abs(judged.predictive.mean - truth))
        self._journal("performance", now, version=judged.version, fill=fill, n=len(rows),
                      condition=str(rows.conditions[0]), figures=figures, reliability=bins,
                      first=float(rows.times[0]), last=float(rows.times[-1]),
                      batch=batch)  # fmt: skip

    def _journal_proposal(self, proposal: Proposal, now: float) -> None:
        tried = proposal.tried
        if not tried.accepted:
            kind = "declined" if tried.skipped else "refused"
            verdicts = [dataclasses.asdict(verdict) for verdict in tried.verdicts]
            self._journal(kind, now, rung=tried.rung, because=tried.because, verdicts=verdicts)
        if proposal.candidate is not None and not self.writer.replaying:
            cost = dataclasses.asdict(proposal.candidate.cost)
            self.shelf.measure(
                self.name, tried.rung, {name: float(value) for name, value in cost.items()}
            )

    def _tell(self, kind: str, now: float, **payload: Any) -> None:
        """An entry of the watch: never before the last change, which may lie after its event."""
        self._journal(kind, max(now, self.past.change), **payload)

    def _journal(
        self, kind: str, now: float, *, version: VersionId | None = None, **payload: Any
    ) -> None:
        self.writer.append(kind, now, version=version, payload=payload)

    def _rng(self, *name: str | int) -> np.random.Generator:
        return self.plan.seeds.rng("lane", self.lane.name, *name)

    # -- checkpoints ------------------------------------------------------------------------------

    def to_state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Everything as a JSON document and named arrays."""
        document = {
            "position": self.writer.position,
            "serving": self.serving,
            "previous": self.previous,
            "served": self.served,
            "remembered": self.remembered,
            "terms": {version: list(term) for version, term in self.terms.items()},
            "pending": [list(pair) for pair in self.pending.versions()],
            "staged": None if self.staged is None else self.staged._asdict(),
            "baking": None if self.baking is None else self.baking._asdict(),
            "held": self.held,
            "past": [_number(value) for value in self.past],
            "requests": self.requests,
            "news": self.news,
            "asked": self.asked,
            "refit": self.refit,
            "failed": {condition: list(failed) for condition, failed in self.failed.items()},
            "learners": sorted(self.learners),
        }
        document["watch"], arrays = self.watch.to_state()
        for name, learner in self.learners.items():
            arrays.update({f"learner/{name}/{key}": part for key, part in learner.items()})
        return document, arrays

    def from_state(self, state: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Take over a stored state."""
        self.serving = state["serving"]
        self.previous = state["previous"]
        self.served = list(state["served"])
        self.remembered = dict(state["remembered"])
        self.terms = {version: Term(*term) for version, term in state["terms"].items()}
        self.staged = None if state["staged"] is None else Staged(**state["staged"])
        self.baking = None if state["baking"] is None else ProbationState(**state["baking"])
        self.held = state["held"]
        change, request, events = state["past"]
        self.past = Past(change, -np.inf if request is None else request, events)
        self.requests, self.asked = state["requests"], state["asked"]
        self.news = state["news"]
        self.refit = state["refit"]
        self.failed = {name: Failed(*failed) for name, failed in state["failed"].items()}
        self.learners = {
            name: {
                key.removeprefix(f"learner/{name}/"): part
                for key, part in arrays.items()
                if key.startswith(f"learner/{name}/")
            }
            for name in state["learners"]
        }
        self.watch.from_state(state["watch"], arrays)

    def serve_again(self, block: Block, version: VersionId) -> None:
        """Predict a block that waited for labels at the checkpoint, with what served it then."""
        served = self.shelf.serve(version, block.inputs)
        self.pending.add(block.ids, served)


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
