"""Who learns: every strategy by name, with its knobs as they follow from a scenario's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from stillfit.core.errors import ConfigError
from stillfit.core.tables import did_you_mean
from stillfit.studies.continual.setting import Kind, Recipe
from stillfit.updaters.contract import Updater
from stillfit.updaters.dynamic import Compress, Grow, PackNet
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
    Exemplars,
)
from stillfit.updaters.labels import AdaptNormalisation, PseudoLabels
from stillfit.updaters.online import NearestMean, OnlineFineTune, OnlineReplay, StreamingLDA
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Frozen, Retrain, RetrainWindow
from stillfit.updaters.regularisation import EWC, MAS, LwF, OnlineEWC, SynapticIntelligence
from stillfit.updaters.replay import DarkReplay, GDumb, GenerativeReplay, Replay

Family: TypeAlias = Literal[
    "reference", "replay", "regularisation", "dynamic", "online", "few labels", "embedded"
]
Make: TypeAlias = Callable[[Recipe, int], Updater]
FEW = 5  # labelled rows below which a strategy may decline
MONTH = 28  # blocks of a day
CLASSES: tuple[Kind, ...] = ("classes",)


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
    make: Make
    kinds: tuple[Kind, ...] = ("classes", "vertex")
    whole: bool = False
    once: bool = False
    every: int = 1


def _tuned(name: str, kind: type[Updater], **knobs: Any) -> Make:
    """Trained as the recipe says on fresh rows; `knobs` are values or functions of the recipe."""

    def make(recipe: Recipe, number: int) -> Updater:
        given = {key: v(recipe) if callable(v) else v for key, v in knobs.items()}
        derived = {"schedule": recipe.schedule(strategy=name), "min_events": FEW, **given}
        return kind(**recipe.tuned(name, **derived))

    return make


def _plain(name: str, kind: type[Updater], **knobs: Any) -> Make:
    """Without a schedule: closed forms and single passes."""

    def make(recipe: Recipe, number: int) -> Updater:
        given = {key: v(recipe) if callable(v) else v for key, v in knobs.items()}
        return kind(**recipe.tuned(name, **given))

    return make


def _memory(recipe: Recipe) -> int:
    return recipe.memory


def _share(share: float) -> Callable[[Recipe], int]:
    """A buffer of a share of all rows."""
    return lambda recipe: max(1, round(share * recipe.rows * recipe.experiences))


def _batch(recipe: Recipe) -> int:
    return recipe.online_batch


def _rate(recipe: Recipe) -> float:
    return recipe.online_rate


def _retrain(recipe: Recipe, number: int) -> Updater:
    knobs = recipe.tuned("retrain", schedule=recipe.retraining(number), weight_of_new=0.0)
    return Retrain(min_events=FEW, **knobs)


def _window(recipe: Recipe, number: int) -> Updater:
    knobs = recipe.tuned("retrain-window", schedule=recipe.retraining(0), window=recipe.window)
    return RetrainWindow(min_events=FEW, **knobs)


def _gdumb(recipe: Recipe, number: int) -> Updater:
    """As many passes over its memory as the others have over an experience."""
    knobs = recipe.tuned("gdumb", capacity=2 * recipe.memory)
    kept = min(int(knobs["capacity"]), recipe.rows * (number + 1))
    rate = recipe.rate if recipe.retrain_rate is None else recipe.retrain_rate
    by = "y" if recipe.kind == "classes" else "condition"
    schedule = recipe.schedule(rows=kept, rate=rate, strategy="gdumb")
    derived = {"by": by, "schedule": schedule, "min_events": 1}
    return GDumb(**{**derived, **knobs})


def _exemplars(recipe: Recipe) -> Exemplars:
    return Exemplars(capacity=recipe.memory, replays=1, keep="class-ring")


def _of(name: str, title: str, family: Family, make: Make, **facts: Any) -> Strategy:
    return Strategy(name=name, title=title, family=family, make=make, **facts)


_REFERENCES = (
    _of("frozen", "Frozen", "reference", lambda recipe, number: Frozen()),
    _of("naive", "Fine-tune", "reference", _tuned("naive", FineTune)),
    _of("retrain", "Retrain", "reference", _retrain, whole=True, every=MONTH),
    _of("retrain-window", "Retrain on a window", "reference", _window, whole=True, every=MONTH),
    _of(
        "recalibrate",
        "Recalibrate",
        "reference",
        lambda recipe, number: Recalibrate(),
        kinds=("vertex",),
    ),
)
_REPLAY = (
    _of("replay", "Replay", "replay", _tuned("replay", Replay, capacity=_memory)),
    _of(
        "replay-balanced",
        "Replay, balanced by condition",
        "replay",
        _tuned("replay-balanced", Replay, capacity=_memory, keep="balanced"),
    ),
    _of(
        "replay-classes",
        "Replay, balanced by class",
        "replay",
        _tuned("replay-classes", Replay, capacity=_memory, keep="balanced", by="y"),
        kinds=CLASSES,
    ),
    _of(
        "replay-hard",
        "Replay of hard events",
        "replay",
        _tuned("replay-hard", Replay, capacity=_memory, keep="hard"),
    ),
    _of(
        "replay-8bit",
        "Replay, 8-bit inputs",
        "replay",
        _tuned("replay-8bit", Replay, capacity=_memory, bits=8),
    ),
    _of(
        "replay-1pct",
        "Replay of 1 %",
        "replay",
        _tuned("replay-1pct", Replay, capacity=_share(0.01)),
    ),
    _of("dark", "Dark replay", "replay", _tuned("dark", DarkReplay, capacity=_memory)),
    _of("gdumb", "GDumb", "replay", _gdumb, whole=True, every=MONTH),
    _of(
        "generative",
        "Generative replay",
        "replay",
        _tuned("generative", GenerativeReplay),
        kinds=CLASSES,
    ),
)
_REGULARISATION = (
    _of("ewc", "EWC", "regularisation", _tuned("ewc", EWC)),
    _of("online-ewc", "Online EWC", "regularisation", _tuned("online-ewc", OnlineEWC)),
    _of("si", "Synaptic intelligence", "regularisation", _tuned("si", SynapticIntelligence)),
    _of("mas", "MAS", "regularisation", _tuned("mas", MAS)),
    _of("lwf", "LwF", "regularisation", _tuned("lwf", LwF)),
)
_DYNAMIC = (
    _of("packnet", "PackNet masks", "dynamic", _tuned("packnet", PackNet), whole=True, every=MONTH),
    _of("grow", "Growing layers", "dynamic", _tuned("grow", Grow), whole=True, every=MONTH),
    _of(
        "compress", "Pruning and bit widths", "dynamic", _tuned("compress", Compress),
        whole=True, every=MONTH,
    ),
)  # fmt: skip
_ONLINE = (
    _of(
        "online",
        "Online",
        "online",
        _plain("online", OnlineFineTune, batch=_batch, rate=_rate),
        once=True,
    ),
    _of(
        "online-replay",
        "Online replay",
        "online",
        _plain(
            "online-replay", OnlineReplay, batch=_batch, replay=_batch, rate=_rate, capacity=_memory
        ),
        once=True,
    ),
    _of("slda", "Streaming LDA", "online", _plain("slda", StreamingLDA), once=True, kinds=CLASSES),
    _of("ncm", "Nearest mean", "online", _plain("ncm", NearestMean), once=True, kinds=CLASSES),
)
_LABELS = (
    _of("pseudo-labels", "Pseudo-labels", "few labels", _tuned("pseudo-labels", PseudoLabels)),
    _of(
        "adapt-normalisation",
        "Normalisation from inputs",
        "few labels",
        _plain("adapt-normalisation", AdaptNormalisation, min_events=20),
    ),
)


def _embedded(name: str, title: str, kind: type[Updater], **knobs: Any) -> Strategy:
    make = _plain(name, kind, min_events=1, **knobs)
    return _of(name, title, "embedded", make, kinds=CLASSES, once=True)


_EMBEDDED = (
    _embedded("embedded-sgd", "Fixed-point SGD", EmbeddedSGD),
    _embedded(
        "embedded-replay", "Fixed-point SGD with exemplars", EmbeddedSGD, exemplars=_exemplars
    ),
    _embedded("embedded-dfa", "Direct feedback alignment", EmbeddedDFA),
    _embedded("embedded-spsa", "SPSA", EmbeddedSPSA),
    _embedded("embedded-lms", "Fixed-point last layer, LMS", EmbeddedLMS),
    _embedded("embedded-rls", "Fixed-point last layer, RLS", EmbeddedRLS),
)

STRATEGIES: Mapping[str, Strategy] = {
    one.name: one
    for one in (
        *_REFERENCES,
        *_REPLAY,
        *_REGULARISATION,
        *_DYNAMIC,
        *_ONLINE,
        *_LABELS,
        *_EMBEDDED,
    )
}


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
