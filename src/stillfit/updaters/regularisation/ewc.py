"""Elastic weight consolidation: parameters held by their Fisher information."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.models.model import Model
from stillfit.models.training import Prepared
from stillfit.updaters.contract import Learner
from stillfit.updaters.regularisation.anchored import Anchored, consolidated
from stillfit.updaters.regularisation.held import Well, floored, packed, stored, weights_of
from stillfit.updaters.regularisation.importance import FisherKind, chosen, fisher

EARLIER = "(earlier)"


@dataclass(frozen=True, kw_only=True)
class _Fisher(Anchored):
    """What both forms share: the Fisher information of at most `fisher_events` events."""

    penalty: float = 100.0
    fisher: FisherKind = "true"
    fisher_events: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "fisher_events", "the Fisher information is a mean over events")
        if self.fisher not in get_args(FisherKind):
            raise ConfigError(
                f"fisher must be one of {', '.join(get_args(FisherKind))}, got {self.fisher!r}; "
                "true draws labels from the network's own prediction"
            )

    def _information(
        self, model: Model, examples: Examples, rng: np.random.Generator
    ) -> dict[str, Array]:
        some = examples.take(chosen(len(examples), self.fisher_events, rng))
        return fisher(model, Prepared.of(model, some), self.fisher, rng)


@dataclass(frozen=True, kw_only=True)
class EWC(_Fisher):
    """Elastic weight consolidation with an anchor and a Fisher information for each condition.

    Loss: the task's + `penalty` / 2 sum_k sum_i F_ki (theta_i - theta*_ki)^2 over conditions k,
    theta*_k the parameters after the last update in condition k. F_k: see `importance.fisher`, of
    at most `fisher_events` events of the condition; more are less noisy and take longer. A
    condition that is learned again replaces its own. `penalty`: with the mean loss as it is, 1
    weighs an old event as a new one, if F were all of the curvature; it is only its diagonal, and
    more is usually better.

    At most `conditions` are kept apart; the two oldest beyond become one, exactly (a sum of
    quadratics is one), which can no longer be replaced. State: 8 bytes per parameter and
    condition. Cost of F: about three passes per event.
    Source: Kirkpatrick et al. 2017, arXiv:1612.00796; one term per condition or one for all:
    Huszar 2018, arXiv:1712.03847.
    """

    conditions: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(2, "conditions", "the oldest are put together, so there must be two")

    @property
    def title(self) -> str:
        return "elastic weight consolidation"

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        return self.learned({}, serving, serving, examples, {}, rng) if len(examples) else {}

    def learned(
        self,
        learner: Learner,
        serving: Model,
        model: Model,
        fresh: Examples,
        path: Mapping[str, Array],
        rng: np.random.Generator,
    ) -> Learner:
        names = condition_names(learner)
        importance, anchor = stored(learner, "importance"), stored(learner, "anchor")
        here = weights_of(model.network)
        for name in sorted(set(map(str, fresh.conditions))):
            found = self._information(model, fresh.where(name), rng)
            stays = [place for place, known in enumerate(names) if known != name]
            names = [names[place] for place in stays] + [name]
            importance = _with_row(importance, stays, found)
            anchor = _with_row(anchor, stays, here)
        while len(names) > self.conditions:
            importance, anchor = _two_oldest_as_one(importance, anchor)
            names = [EARLIER, *names[2:]]
        text = np.frombuffer(json.dumps(names).encode(), np.uint8).copy()
        return {"conditions": text, **packed(importance=importance, anchor=anchor)}

    def newest(self, learner: Learner) -> Mapping[str, Array]:
        return {name: rows[-1] for name, rows in stored(learner, "anchor").items()}

    def well(self, learner: Learner) -> Well | None:
        """The sum of the wells of all conditions, which is one well but for a constant."""
        names = condition_names(learner)
        if not names or not self.penalty:
            return None
        importance, anchor = stored(learner, "importance"), stored(learner, "anchor")
        each = [
            floored({name: rows[k] for name, rows in importance.items()}, self.floor)
            for k in range(len(names))
        ]
        weights, anchors = {}, {}
        for name, rows in anchor.items():
            held = np.stack([part[name] for part in each])
            total, anchors[name] = _one_well(held, rows)
            with np.errstate(over="ignore"):
                weights[name] = np.float32(self.penalty) * total
        return Well(weights, anchors)


@dataclass(frozen=True, kw_only=True)
class OnlineEWC(_Fisher):
    """Elastic weight consolidation with one anchor and one running Fisher information.

    Loss: the task's + `penalty` / 2 sum_i F_i (theta_i - theta*_i)^2 about the last update's
    parameters theta*; after each update F <- `gamma` F + F_new. `gamma` 1 never lets go of
    anything and stiffens with every update; below 1 old conditions fade and room comes back.

    State: 8 bytes per parameter, however many conditions there were.
    Source: Schwarz et al. 2018, arXiv:1805.06370.
    """

    gamma: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, self.gamma)

    @property
    def title(self) -> str:
        return "online elastic weight consolidation"

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        return self.learned({}, serving, serving, examples, {}, rng) if len(examples) else {}

    def learned(
        self,
        learner: Learner,
        serving: Model,
        model: Model,
        fresh: Examples,
        path: Mapping[str, Array],
        rng: np.random.Generator,
    ) -> Learner:
        return consolidated(learner, model, self._information(model, fresh, rng), self.gamma)


def check_share(updater: Anchored, gamma: float) -> None:
    """`ConfigError` where the share of old importance that is kept is none."""
    if not 0 <= gamma <= 1:
        raise ConfigError(
            f"gamma of {type(updater).__name__} must lie between 0 (the last update alone) and 1 "
            f"(all alike), got {gamma}"
        )


def condition_names(learner: Learner) -> list[str]:
    """The conditions that an `EWC` state knows, oldest first."""
    text = learner.get("conditions")
    return [] if text is None else [str(name) for name in json.loads(text.tobytes())]


def _with_row(
    rows: Mapping[str, Array], stays: list[int], new: Mapping[str, Array]
) -> dict[str, Array]:
    if not rows:
        return {name: part[None] for name, part in new.items()}
    return {name: np.concatenate([rows[name][stays], part[None]]) for name, part in new.items()}


def _one_well(weights: Array, anchors: Array) -> tuple[Array, Array]:
    """The sum of quadratic wells (k, ...) as one: its weight and its anchor.

    Written about the newest anchor, so that equal anchors come back bit for bit.
    """
    total = weights.sum(0, dtype=np.float64)
    last = anchors[-1].astype(np.float64)
    lean = (weights * (anchors - last)).sum(0)
    anchor = last + np.divide(lean, total, out=np.zeros_like(total), where=total > 0)
    return total.astype(np.float32), anchor.astype(np.float32)


def _two_oldest_as_one(
    importance: Mapping[str, Array], anchor: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    weights, anchors = {}, {}
    for name, rows in importance.items():
        one, centre = _one_well(rows[:2], anchor[name][:2])
        weights[name] = np.concatenate([one[None], rows[2:]])
        anchors[name] = np.concatenate([centre[None], anchor[name][2:]])
    return weights, anchors
