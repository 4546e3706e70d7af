"""Human activity: wearer by wearer with the phone, then all again with the watch."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stillfit.core.seeds import Seeds
from stillfit.core.values import JSON, Budget
from stillfit.models.model import Architecture, Model, build, footprint
from stillfit.models.task import Classification
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.sensing.environments import Input, Split, Wearing
from stillfit.sensing.recordings import SensorFiles
from stillfit.sensing.windows import Windowing
from stillfit.studies.continual.networks import FACTORIES
from stillfit.studies.continual.scoring import of_classes
from stillfit.studies.continual.setting import Options, Recipe, Setup, capped
from stillfit.studies.experiences import Experience, activity
from stillfit.updaters.embedded import EmbeddedBudget

READS = "the recordings of worn sensors, such as har-sp-sw.parquet"
# RAM for network and learner together; a phone spares a few MB for one of its services.
RAM = {"microcontroller": 256 * 1024, "phone": 8 * 2**20}
FIRST = 300  # steps of the initial training, on the first wearer


def wearers(
    options: Options,
    seed: int,
    *,
    network: Literal["mlp", "cnn"] = "mlp",
    device: str | None = None,
) -> Setup:
    """Each wearer with each device is an experience; the first one trains the network for all.

    `network`: "mlp" on 72 features or "cnn" on raw windows. `device`: whose RAM is the limit, in
    `RAM`; what the network takes of it the learner cannot have. The order of the wearers, the
    held-out blocks of time and the network are drawn with `seed`.
    """
    path = options.file(READS)
    column: Input = "features" if network == "mlp" else "window"
    windows = Windowing().cut(SensorFiles(path=path).read())
    order = Seeds(seed).rng("wearers").permutation(len(windows.subjects))
    wearing = Wearing(
        windows=windows,
        subjects=tuple(windows.subjects[place] for place in order),
        inputs=(column,),
    )
    met = [
        Experience(one.name, capped(one.train, options.rows), capped(one.test, options.test_rows))
        for one in activity(wearing, split=Split(seed=seed))
    ]
    classes = int(windows.activity.max()) + 1
    width = int(np.prod(np.asarray(met[0].train.inputs[column]).shape[1:]))
    facts: dict[str, JSON] = (
        {"features": width, "hidden": [64, 32], "outputs": classes}
        if network == "mlp"
        else {"classes": classes, "seed": seed, "time": windows.raw.shape[-1]}
    )
    architecture = Architecture(f"sensing.{network}", facts)
    task = Classification(features=(column,), classes=classes)
    drawn = task.fresh(build(architecture, FACTORIES), met[0].train, Seeds(seed).integer("network"))
    start = Model(drawn.eval(), task, architecture)
    budget = Budget()
    if device is not None:
        room = RAM[device] - footprint(drawn).weight_bytes
        budget = EmbeddedBudget(memory_bytes=room, ram_bytes=RAM[device])
    rows = sum(len(one.train) for one in met) // len(met)
    recipe = Recipe(
        scenario="har" if device is None else f"har-{device}",
        kind="classes",
        rows=rows,
        experiences=len(met),
        epochs=10 * options.effort,
        batch=32,
        rate=0.001,
        memory=sum(len(one.train) for one in met) // 20,
        retrain_rows=int(96_000 * options.effort),
        retrain_batch=128,
        retrain_rate=0.003,
        window=1800.0,
        classes=classes,
        inputs=width,
        budget=budget,
    )
    return Setup(
        experiences=met,
        tests=[one.test for one in met],
        names=tuple(one.name for one in met),
        start=start,
        score=of_classes,
        recipe=recipe,
        labels=options.labels,
        ram=None if device is None else RAM[device],
        trained=first_training(start, met[0], Schedule(steps=FIRST, batch=32, rate=0.003), seed),
    )


def first_training(start: Model, first: Experience, schedule: Schedule, seed: int) -> Model:
    """The initial training that all strategies share, from the untrained network."""
    model = start.copy()
    fit(model, Prepared.of(model, first.train), schedule, Seeds(seed).rng("first training"))
    return model
