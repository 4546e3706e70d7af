"""The trigger's scenarios as sequences of conditions, for the faithful and the adaptive network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.l1t import scenario as scenarios
from stillfit.l1t.conditions import Conditions, nominal
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.library import Library, load
from stillfit.l1t.recipe import KINDS, vertex_examples
from stillfit.l1t.scenario import Scenario
from stillfit.l1t.vertex import VertexTask
from stillfit.models.model import Architecture, Model, build
from stillfit.studies.continual.scoring import of_vertices
from stillfit.studies.continual.setting import Options, Recipe, Setup
from stillfit.studies.experiences import Experience
from stillfit.studies.initial import cache_folder, first_model

NAMES = ("season", "misaligned", "resolution", "quality-word", "ageing")
EVENTS, TEST_EVENTS, INITIAL = 2000, 1500, 20_000
PORTIONS = (200, 500, 1000)
STAGES = 5  # of a scenario that drifts without naming its conditions


def conditions(options: Options, seed: int, *, name: str, network: str) -> Setup:
    """The distinct conditions of a shipped scenario in the order in which they first come.

    Each is an experience of 2000 labelled events, with updates after 200, 500, 1000 and 2000 of
    them; 1500 events of each, from other interactions of the library, are held out. Labels are
    as the scenario has them: late ones smeared, sharing what misalignment offline shares.
    """
    scenario, library = scenarios.load(name), load()
    seeds = Seeds(seed)
    events = min(EVENTS, options.rows or EVENTS)
    tests = min(TEST_EVENTS, options.test_rows or TEST_EVENTS)
    met = []
    for number, (called, detector) in enumerate(stages(scenario)):
        sides = []
        for split, many in (("train", events), ("test", tests)):
            made = vertex_examples(
                many,
                detector,
                library=library,
                seed=seeds.integer("trigger", called, split) % 2**31,
                split=split,
                condition=called,
            )
            if split == "train":
                made = _labelled(made, scenario, detector, seeds.rng("labels", called))
            first = number * (events + tests) + (events if split == "test" else 0)
            sides.append(replace(made, ids=made.ids + first, times=np.full(many, float(number))))
        met.append(Experience(called, *sides))
    return vertex_setup(met, network, options, seed, scenario=f"{name}-{network}")


def stages(scenario: Scenario) -> list[tuple[str, Conditions]]:
    """Names and conditions, the first of each name; of a nameless drift, some stages of it."""
    fills = [scenario.at(fill) for fill in range(1, scenario.fills + 1)]
    found: dict[str, Conditions] = {}
    for name, detector in fills:
        found.setdefault(name, detector)
    if len(found) > 1:
        return list(found.items())
    places = np.unique(np.linspace(0, len(fills) - 1, STAGES).round().astype(int))
    if len({repr(fills[place][1]) for place in places}) < 2:
        raise DataError(
            f"nothing changes in the scenario {scenario.title!r}: there is one condition"
        )
    return [(f"fill {place + 1}", fills[place][1]) for place in places]


def _labelled(
    made: Examples, scenario: Scenario, detector: Conditions, rng: np.random.Generator
) -> Examples:
    """Offline labels: smeared, and shifted with what the offline alignment shares."""
    z0 = np.asarray(made.targets["z0"], np.float64)
    shift = scenario.shared_misalignment * detector.barrel_z_shift
    noisy = z0 + shift + scenario.label_noise * rng.standard_normal(len(z0))
    return replace(made, targets={**made.targets, "z0": noisy.astype(np.float32)})


def vertex_setup(
    met: Sequence[Experience],
    network: str,
    options: Options,
    seed: int,
    *,
    scenario: str,
    portions: tuple[int, ...] = PORTIONS,
) -> Setup:
    """Experiences of whole events for a vertex network that was trained on nominal ones.

    The first experience is nominal: its training rows are replaced by the events that the first
    network was trained on, which all strategies may keep.
    """
    library = load()
    initial = max(1000, int(INITIAL * min(options.effort, 1.0)))
    trained = first_model(
        network,
        library=library,
        seed=seed,
        events=initial,
        cache=cache_folder(),
        tell=lambda events: None,
    )
    known = _known(library, seed, initial, met[0])
    met = [replace(met[0], train=known), *met[1:]]
    architecture = Architecture(KINDS[network], {"seed": Seeds(seed).integer("network") % 2**31})
    recipe = Recipe(
        scenario=scenario,
        kind="vertex",
        rows=len(met[1].train) if len(met) > 1 else len(known),
        experiences=len(met),
        epochs=150 * 300 / EVENTS * options.effort,  # 150 steps of 300 events
        batch=300,
        rate=0.002,
        memory=2000,
        retrain_rows=int(640 * 250 * options.effort),
        retrain_rate=0.005,
    )
    return Setup(
        experiences=met,
        tests=[one.test for one in met],
        names=tuple(one.name for one in met),
        start=Model(build(architecture, FACTORIES).eval(), VertexTask(), architecture),
        score=of_vertices,
        recipe=recipe,
        trained=trained,
        portions=portions,
        labels=options.labels,
    )


def _known(library: Library, seed: int, events: int, first: Experience) -> Examples:
    """The events that the first network was trained on; their ids are negative."""
    made = vertex_examples(events, nominal(), library=library, seed=seed, condition=first.name)
    return replace(made, ids=made.ids - events, times=np.zeros(events))
