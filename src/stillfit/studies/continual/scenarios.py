"""What is met: every scenario by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from stillfit.core.errors import ConfigError
from stillfit.core.tables import did_you_mean
from stillfit.studies.continual import images, prices, regions, trigger, wearables
from stillfit.studies.continual.scoring import VERTEX
from stillfit.studies.continual.setting import Kind, Scenario

_CLASSES = ("accuracy", "macro_f1")
_TRACKS = ("auc", "balanced_accuracy", "accuracy")
_VERTEX = ("score", *VERTEX)
NETWORKS = {"e2e": "faithful E2E network", "adaptive": "adaptive E2E network"}
_TITLES = {
    "season": "A season of fills",
    "misaligned": "Misaligned",
    "resolution": "Resolution of the inner barrel",
    "quality-word": "Quality word",
    "ageing": "Ageing",
}


def _images() -> list[Scenario]:
    return [
        Scenario(
            name="split-mnist",
            title="Split MNIST, class-incremental",
            group="mnist",
            headline="accuracy",
            figures=("accuracy",),
            build=images.split,
            reads=images.READS,
            note="Five experiences of two classes, one head for all ten, no task id; the network "
            "starts untrained.",
        ),
        Scenario(
            name="permuted-mnist",
            title="Permuted MNIST, domain-incremental",
            group="mnist",
            headline="accuracy",
            figures=("accuracy",),
            build=images.permuted,
            reads=images.READS,
            note="Ten experiences of all ten classes, each with its pixels in another order; the "
            "network starts untrained.",
        ),
    ]


def _wearables() -> list[Scenario]:
    kinds = {
        "har": ("Human activity, features", {}),
        "har-cnn": ("Human activity, 1-D CNN on windows", {"network": "cnn"}),
        "har-microcontroller": ("Human activity in 256 KB", {"device": "microcontroller"}),
        "har-phone": ("Human activity in 8 MB", {"device": "phone"}),
    }
    return [
        Scenario(
            name=name,
            title=title,
            group="activity",
            headline="macro_f1",
            figures=("macro_f1", "accuracy"),
            build=partial(wearables.wearers, **knobs),  # type: ignore[arg-type]
            reads=wearables.READS,
            note="All wearers with the phone, then all with the watch, in an order drawn with the "
            "seed; the first trains the network for all. Means over wearers of macro-F1 on blocks "
            "of time that were held out.",
        )
        for name, (title, knobs) in kinds.items()
    ]


def _regions() -> list[Scenario]:
    found = [
        Scenario(
            name="dead-regions",
            title="Dead regions, track-to-vertex classifier",
            group="dead-regions",
            headline="auc",
            figures=_TRACKS,
            build=regions.tracks,
            note="The authors' ten regions in turn, masks on finished tracks; 5-25-30-1. Region 0 "
            "is nominal and trains the network for all.",
        )
    ]
    for network, words in NETWORKS.items():
        found.append(
            Scenario(
                name=f"dead-regions-{network}",
                title=f"Dead regions, {words}",
                group="dead-regions",
                headline="score",
                figures=_VERTEX,
                build=partial(regions.events, network=network),
                note=_NOTE,
            )
        )
    return found


_NOTE = (
    "Score: the mean of efficiency (|dz| < 0.15 cm) and of the events' balanced accuracy at the "
    "deployed threshold. The nominal training is the same for all, and the first experience."
)


def _trigger() -> list[Scenario]:
    return [
        Scenario(
            name=f"{name}-{network}",
            title=f"{_TITLES[name]}, {words}",
            group="trigger",
            headline="score",
            figures=_VERTEX,
            build=partial(trigger.conditions, name=name, network=network),
            note=_NOTE,
        )
        for name in trigger.NAMES
        for network, words in NETWORKS.items()
    ]


def _prices() -> list[Scenario]:
    kinds = {
        "electricity": ("Electricity", False),
        "electricity-last": ("Electricity, last class as an input", True),
    }
    return [
        Scenario(
            name=name,
            title=title,
            group="electricity",
            headline="accuracy",
            figures=("accuracy",),
            build=partial(prices.stream, last=last),
            reads=prices.READS,
            note="Prequential: a day is predicted, then learned from. The first four weeks train "
            "the network for all and are in no figure.",
            prequential=True,
        )
        for name, (title, last) in kinds.items()
    ]


SCENARIOS: Mapping[str, Scenario] = {
    one.name: one for one in (*_images(), *_wearables(), *_regions(), *_trigger(), *_prices())
}
GROUPS = tuple(dict.fromkeys(one.group for one in SCENARIOS.values()))


def kind_of(scenario: Scenario) -> Kind:
    """What is predicted, without building the scenario."""
    return "vertex" if scenario.figures == _VERTEX else "classes"


def of_group(group: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Scenarios of a group by name, or all of them."""
    known = [one.name for one in SCENARIOS.values() if one.group == group]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"there is no scenario {name!r} here{did_you_mean(name, known)}; "
                f"known are {', '.join(known)}"
            )
    return names or tuple(known)
