"""One request: climb the ladder until a candidate convinces every gate, or call a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stillfit.core.errors import StillfitError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Predictive
from stillfit.core.values import (
    Candidate,
    Cost,
    Equality,
    Footprint,
    Provenance,
    Verdict,
    VersionId,
)
from stillfit.decisions.gates import Paired, Stored, Trial, all_pass
from stillfit.decisions.ladder import Climb, Tried
from stillfit.loop.plan import Lane, Redeploy
from stillfit.loop.shelf import Shelf
from stillfit.models.model import Model
from stillfit.updaters.contract import Declined, Learner, Memory, Updater


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a request may use: `fresh` to learn from, `new` and `old` (by condition) to judge on.

    `new` and `old` are held out: no updater sees them. `condition`: name of the present one.
    """

    condition: str
    fresh: Examples
    new: Examples
    old: Mapping[str, Examples]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a lane stands when it asks: what serves, what served, what learners know.

    `remembered`: the version that served each condition best.
    """

    serving: VersionId
    served: tuple[VersionId, ...]
    remembered: Mapping[str, VersionId]
    learners: Mapping[str, Learner]
    memory: Memory


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A candidate that was tried on a rung, with what became of it.

    `version`: that of a redeployed one, which is stored already. `footprint`, `equality`: what the
    lane's chip said of it. `early`: more labelled events
    could change the answer.
    """

    tried: Tried
    candidate: Candidate[Model] | None = None
    version: VersionId | None = None
    footprint: Footprint | None = None
    equality: Equality | None = None
    early: bool = False


def climb(
    lane: Lane,
    shelf: Shelf,
    rows: Rows,
    standing: Standing,
    rng: Callable[[str], np.random.Generator],
    report: Callable[[Proposal], None],
) -> tuple[Climb, Proposal | None]:
    """Try the rungs of the lane from the cheapest on; `report` hears of each.

    Returns the last step of the ladder and, if a rung was accepted, its proposal.
    """
    ladder = lane.ladder
    assert ladder is not None
    tried: list[Tried] = []
    proposal: Proposal | None = None
    while True:
        step = ladder.climb(tried)
        if step.outcome != "try" or step.rung is None:
            return step, proposal if step.outcome == "accept" else None
        proposal = propose(lane, step.rung, shelf, rows, standing, rng(step.rung))
        tried.append(proposal.tried)
        report(proposal)


def propose(
    lane: Lane,
    rung: str,
    shelf: Shelf,
    rows: Rows,
    standing: Standing,
    rng: np.random.Generator,
) -> Proposal:
    """A candidate of one rung before all gates. What fails on the way never reaches serving."""
    how = lane.rungs[rung]
    version: VersionId | None = None
    try:
        if isinstance(how, Redeploy):
            found = _redeploy(lane, shelf, rows, standing)
            answer = found if isinstance(found, Declined) else found[0]
            version = None if isinstance(found, Declined) else found[1]
        else:
            answer = _update(how, lane, rung, shelf, rows, standing, rng)
        if not isinstance(answer, Declined):
            verdicts, trial = judge(lane, answer, shelf, rows, standing)
    except Exception as error:  # noqa: BLE001  (whatever an updater or a gate does, serving goes on)
        answer = Declined(f"the rung failed: {type(error).__name__}: {error}")
    if isinstance(answer, Declined):
        return Proposal(tried=Tried(rung=rung, skipped=answer.because), early=answer.early)
    least = max((int(getattr(gate, "least", 0)) for gate in lane.gates), default=0)
    return Proposal(
        tried=Tried(rung=rung, verdicts=tuple(verdicts)),
        candidate=answer,
        version=version,
        footprint=trial.footprint,
        equality=trial.equality,
        early=len(rows.new) < least,
    )


def _update(
    updater: Updater,
    lane: Lane,
    rung: str,
    shelf: Shelf,
    rows: Rows,
    standing: Standing,
    rng: np.random.Generator,
) -> Candidate[Model] | Declined:
    return updater.update(
        shelf.get(standing.serving),
        standing.learners.get(rung, {}),
        rows.fresh,
        standing.memory,
        budget=lane.budget,
        rng=rng,
    )


def _redeploy(
    lane: Lane, shelf: Shelf, rows: Rows, standing: Standing
) -> tuple[Candidate[Model], VersionId] | Declined:
    others = [v for v in standing.served if v != standing.serving]
    if not others:
        return Declined("no other version has served in this lane")
    if not len(rows.fresh):
        because = "there are no fresh labelled events to choose a stored version by"
        return Declined(because, early=True)
    now = _mean(shelf, standing.serving, rows.fresh)
    means = {version: _mean(shelf, version, rows.fresh) for version in others}
    best = min(means, key=lambda version: (means[version], version))
    if not means[best] < now:
        return Declined(
            f"of {len(others)} stored versions the best ({best[:8]}) has the mean error "
            f"{means[best]:.4g} on fresh events, the serving one {now:.4g}"
        )
    return (
        Candidate(
            model=shelf.get(best),
            learner={},
            cost=Cost(examples=len(rows.fresh)),
            update_class=shelf.reach(standing.serving, best),
            provenance=shelf.manifest(best).facts.provenance,
        ),
        best,
    )


def judge(
    lane: Lane, candidate: Candidate[Model], shelf: Shelf, rows: Rows, standing: Standing
) -> tuple[list[Verdict], Trial]:
    """The verdicts of all gates of the lane on held-out rows, and what they judged."""
    model, serving = candidate.model, standing.serving
    old = {
        name: Paired(
            candidate=errors_of(model, held), incumbent=stored_errors(shelf, serving, held)
        )
        for name, held in rows.old.items()
    }
    stored = {
        name: Stored(
            version=standing.remembered[name],
            errors=stored_errors(shelf, standing.remembered[name], held),
            update_class=shelf.reach(candidate.update_class, standing.remembered[name]),
        )
        for name, held in rows.old.items()
        if name in standing.remembered
    }
    predictive, target = None, None
    new_errors = np.full(len(rows.new), np.nan)
    if len(rows.new):
        try:
            predictive, outputs = model.predict(rows.new.inputs)
            new_errors = model.task.errors(predictive, outputs, rows.new.targets)["error"]
            target = rows.new.targets.get(model.task.target)
        except StillfitError:
            predictive = None  # it diverged: the gates see errors that are not numbers
    trial = Trial(
        new=Paired(candidate=new_errors, incumbent=stored_errors(shelf, serving, rows.new)),
        old=old,
        stored=stored,
        predictive=predictive,
        target=target if isinstance(target, np.ndarray) else None,
        before=_prediction(shelf, serving, rows.new),
        cost=candidate.cost,
        budget=lane.budget,
        footprint=None if lane.chip is None else lane.chip.footprint(model),
        stands=None if lane.chip is None else shelf.manifest(serving).facts.footprint,
        equality=None if lane.chip is None else lane.chip.equality(model, rows.new),
    )
    return all_pass(lane.gates, trial), trial


def _prediction(
    shelf: Shelf, version: VersionId, examples: Examples
) -> Predictive | Categorical | None:
    """The headline prediction of a stored version, None where it is unusable."""
    if not len(examples):
        return None
    try:
        return shelf.serve(version, examples.inputs).predictive
    except StillfitError:
        return None


def errors_of(model: Model, examples: Examples) -> np.ndarray:
    """The headline error of each event; NaN for all where the network's output is unusable."""
    if not len(examples):
        return np.zeros(0)
    try:
        return model.errors(examples)["error"]
    except StillfitError:
        return np.full(len(examples), np.nan)


def stored_errors(shelf: Shelf, version: VersionId, examples: Examples) -> np.ndarray:
    """`errors_of` a stored version, worked out once for each set of events."""
    if not len(examples):
        return np.zeros(0)
    try:
        return shelf.errors(version, examples)["error"]
    except StillfitError:
        return np.full(len(examples), np.nan)


def _mean(shelf: Shelf, version: VersionId, examples: Examples) -> float:
    """Mean headline error, infinite where it cannot be told."""
    mean = float(stored_errors(shelf, version, examples).mean())
    return mean if np.isfinite(mean) else np.inf


def first_provenance(updater: str, nominal: Examples, seed: int) -> Provenance:
    """Provenance of a network that came with the run: what it was accepted on."""
    names, counts = np.unique(nominal.conditions, return_counts=True)
    events = {str(n): int(c) for n, c in zip(names, counts, strict=True)}
    span = (float(nominal.times.min()), float(nominal.times.max()))
    return Provenance(updater=updater, seed=seed, span=span, events=events)
