"""The ten dead regions: the authors' track-to-vertex classifier, and the E2E network."""

from __future__ import annotations

from typing import Literal

from stillfit.core.seeds import Seeds
from stillfit.l1t.library import load
from stillfit.models.model import Architecture, Model, build
from stillfit.models.task import Classification
from stillfit.studies.continual.networks import FACTORIES
from stillfit.studies.continual.scoring import of_tracks
from stillfit.studies.continual.setting import Options, Recipe, Setup
from stillfit.studies.continual.trigger import vertex_setup
from stillfit.studies.continual.wearables import first_training
from stillfit.studies.dead_regions import FEATURES, as_tracks, dead_regions
from stillfit.studies.experiences import Experience

EVENTS, TEST_EVENTS = 1000, 500


def tracks(options: Options, seed: int) -> Setup:
    """Rows of tracks: 1000 events a region to learn, 500 of other interactions held out.

    The authors' SGD at 0.01 with momentum .9 and 20 epochs; region 0 is nominal and trains the
    network for all. Theirs too: 4 epochs for replay, a factor of 1e-4 for synaptic intelligence,
    100 tracks in the buffer of online replay and batches of one. A batch of 256 tracks elsewhere:
    that of the authors is not published.
    """
    met = as_tracks(_events(options, seed, "tracks"))
    architecture = Architecture("studies.tracks", {})
    task = Classification(features=FEATURES, classes=2)
    drawn = task.fresh(build(architecture, FACTORIES), met[0].train, Seeds(seed).integer("network"))
    start = Model(drawn.eval(), task, architecture)
    rows = sum(len(one.train) for one in met) // len(met)
    recipe = Recipe(
        scenario="dead-regions",
        kind="classes",
        rows=rows,
        experiences=len(met),
        epochs=20 * options.effort,
        batch=256,
        rate=0.01,
        optimiser="sgd",
        cosine=False,
        memory=2000,
        retrain_rows=int(20 * options.effort * rows),
        classes=2,
        inputs=len(FEATURES),
        # The authors' own.
        knobs={"si": {"penalty": 1e-4}, "online-replay": {"capacity": 100}},
        training={"replay": {"epochs": 4 * options.effort}},
    )
    schedule = recipe.schedule()
    return Setup(
        experiences=met,
        tests=[one.test for one in met],
        names=tuple(one.name for one in met),
        start=start,
        score=of_tracks,
        recipe=recipe,
        labels=options.labels,
        trained=first_training(start, met[0], schedule, seed),
    )


def events(options: Options, seed: int, *, network: str = "e2e") -> Setup:
    """The same events whole, for the vertex network, which nominal events train."""
    met = _events(options, seed, "tracks")
    scenario = f"dead-regions-{network}"
    return vertex_setup(met, network, options, seed, scenario=scenario, portions=())


def _events(options: Options, seed: int, drops: Literal["tracks", "stubs"]) -> list[Experience]:
    return dead_regions(
        load(),
        seed=Seeds(seed).integer("dead regions") % 2**31,
        events=min(EVENTS, options.rows or EVENTS),
        test_events=min(TEST_EVENTS, options.test_rows or TEST_EVENTS),
        drops=drops,
    )
