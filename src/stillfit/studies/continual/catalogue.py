"""Who learns: every strategy by name, with its knobs as they follow from a scenario's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from stillfit.core.errors import ConfigError
from stillfit.core.tables import did_you_mean
from stillfit.studies.continual.setting import Kind, Recipe
from stillfit.updaters.contract import Updater
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Frozen, Retrain, RetrainWindow
from stillfit.updaters.replay import Replay

Family: TypeAlias = Literal[
    "reference", "replay", "regularisation", "dynamic", "online", "few labels", "embedded"
]
FEW = 5  # labelled rows below which a strategy may decline


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to learn on, for every scenario.

    `make(recipe, number)`: the updater for experience `number` (from 0); only the length of its
    training may depend on the number. `kinds`: of scenarios in which it exists. `whole`: asked
    only when all labels of a condition are there. `once`: its update is given new rows only, and
    no row twice. `every`: blocks between its updates where the test is prequential.
    """

    name: str
    title: str
    family: Family
    make: Callable[[Recipe, int], Updater]
    kinds: tuple[Kind, ...] = ("classes", "vertex")
    whole: bool = False
    once: bool = False
    every: int = 1


def _naive(recipe: Recipe, number: int) -> Updater:
    return FineTune(schedule=recipe.schedule(), min_events=FEW)


def _retrain(recipe: Recipe, number: int) -> Updater:
    return Retrain(schedule=recipe.retraining(number), min_events=FEW, weight_of_new=0.0)


def _window(recipe: Recipe, number: int) -> Updater:
    return RetrainWindow(schedule=recipe.retraining(0), min_events=FEW, window=recipe.window)


def _replay(recipe: Recipe, number: int) -> Updater:
    return Replay(capacity=recipe.memory, schedule=recipe.schedule(), min_events=FEW)


def _balanced(recipe: Recipe, number: int) -> Updater:
    return Replay(
        capacity=recipe.memory, keep="balanced", schedule=recipe.schedule(), min_events=FEW
    )


MONTH = 28  # blocks of a day
_REFERENCES = (
    Strategy(
        name="frozen", title="Frozen", family="reference", make=lambda recipe, number: Frozen()
    ),
    Strategy(name="naive", title="Fine-tune", family="reference", make=_naive),
    Strategy(
        name="retrain", title="Retrain", family="reference", make=_retrain, whole=True, every=MONTH
    ),
    Strategy(
        name="retrain-window",
        title="Retrain on a window",
        family="reference",
        make=_window,
        whole=True,
        every=MONTH,
    ),
    Strategy(
        name="recalibrate",
        title="Recalibrate",
        family="reference",
        make=lambda recipe, number: Recalibrate(),
        kinds=("vertex",),
    ),
)
_REPLAY = (
    Strategy(name="replay", title="Replay", family="replay", make=_replay),
    Strategy(name="replay-balanced", title="Replay, balanced", family="replay", make=_balanced),
)

STRATEGIES: Mapping[str, Strategy] = {one.name: one for one in (*_REFERENCES, *_REPLAY)}


def chosen(names: tuple[str, ...], kind: Kind) -> list[Strategy]:
    """Strategies by name, or all, as far as they exist for this kind of scenario."""
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(
                f"there is no strategy {name!r}{did_you_mean(name, STRATEGIES)}; "
                f"known are {', '.join(STRATEGIES)}"
            )
    wanted = [STRATEGIES[name] for name in names or STRATEGIES]
    return [one for one in wanted if kind in one.kinds]
