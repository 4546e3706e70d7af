"""Electricity, prequential: every row is predicted before it is learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.models.model import Architecture, Model, build
from stillfit.models.task import Classification
from stillfit.models.training import Schedule
from stillfit.studies.continual.networks import FACTORIES
from stillfit.studies.continual.scoring import of_classes
from stillfit.studies.continual.setting import Options, Recipe, Setup
from stillfit.studies.continual.wearables import first_training
from stillfit.studies.experiences import (
    ELECTRICITY,
    Experience,
    electricity_rows,
    prequential_blocks,
)

READS = "the Elec2 table electricity.csv"
DAY = 48  # half-hours
FIRST = 28 * DAY  # rows of the initial training, which no figure counts
LAST = "last_class"


def stream(options: Options, seed: int, *, last: bool = False) -> Setup:
    """Blocks of a day: predicted with what was known the evening before, then learned from.

    `last`: the class of the half-hour before is an input too, as a price that is known at once
    would be. The first four weeks train the network for all and are in no figure.
    """
    rows = electricity_rows(options.file(READS))
    if last:
        rows = with_last(rows)
    rows = rows.take(slice(0, options.rows or len(rows)))  # neighbours stay neighbours
    first = rows.take(slice(0, min(FIRST, len(rows) // 2)))
    rest = rows.take(slice(len(first), len(rows)))
    met = [Experience("first weeks", first, first), *prequential_blocks(rest, size=DAY)]
    features = (*ELECTRICITY, LAST) if last else ELECTRICITY
    architecture = Architecture(
        "sensing.mlp", {"features": len(features), "hidden": [64, 32], "outputs": 2}
    )
    task = Classification(features=features, classes=2)
    drawn = task.fresh(build(architecture, FACTORIES), first, Seeds(seed).integer("network"))
    start = Model(drawn.eval(), task, architecture)
    recipe = Recipe(
        scenario="electricity-last" if last else "electricity",
        kind="classes",
        rows=DAY,
        experiences=len(met),
        epochs=5 * options.effort,
        batch=16,
        rate=0.002,
        cosine=False,
        memory=1000,
        retrain_rows=int(100_000 * options.effort),
        retrain_rate=0.003,
        window=30 * DAY * 1800.0,
        classes=2,
        inputs=len(features),
    )
    schedule = Schedule(steps=max(1, int(1000 * options.effort)), batch=64, rate=0.003)
    return Setup(
        experiences=met,
        tests=[],
        names=(),
        start=start,
        score=of_classes,
        recipe=recipe,
        trained=first_training(start, met[0], schedule, seed),
        prequential=True,
    )


def with_last(rows: Examples) -> Examples:
    """The class of the row before as a column; the first row has 0."""
    y = np.asarray(rows.targets["y"], np.float32)
    before = np.concatenate([np.zeros(min(1, len(y)), np.float32), y[:-1]])
    return replace(rows, inputs={**rows.inputs, LAST: before})
