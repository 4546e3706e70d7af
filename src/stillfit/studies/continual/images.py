"""Split and Permuted MNIST, with the networks, memories and epochs of the published tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stillfit.core.seeds import Seeds
from stillfit.core.values import JSON
from stillfit.models.model import Architecture, Model, build
from stillfit.models.task import Classification
from stillfit.studies.continual.networks import FACTORIES
from stillfit.studies.continual.scoring import of_classes
from stillfit.studies.continual.setting import Options, Recipe, Setup, capped, drawn
from stillfit.studies.experiences import (
    Experience,
    Images,
    PermutedImages,
    images,
    split_images,
)

READS = "an npz file of images such as the public mnist.npz"


def split(options: Options, seed: int) -> Setup:
    """Five experiences of two classes each, one head of all classes, MLP 2 x 400, 10 epochs.

    GDumb trains with a fifth of the pixels dropped, and the closed-form heads stand on 1000
    random features.
    Source of the sizes: the peers' tables in docs/learning/study.md.
    """
    data = images(options.file(READS))
    # As many experiences as the classes of the file can be dealt to, five for ten classes.
    many = max(n for n in range(1, 6) if len(data.classes) % n == 0)
    met = [_cut(one, options) for one in split_images(data, seed=seed, experiences=many)]
    rows = sum(len(one.train) for one in met) // len(met)
    recipe = Recipe(
        scenario="split-mnist",
        kind="classes",
        rows=rows,
        experiences=len(met),
        epochs=10 * options.effort,
        batch=128,
        rate=0.001,
        cosine=False,
        memory=1000,
        online_batch=10,
        online_rate=0.05,
        # Tried once each, at seed 0 (docs/learning/replay.md and online.md); GDumb's cosine, which
        # is the paper's too, on rows held out of the training rows.
        knobs={
            "gdumb": {"capacity": 4400, "mixup": 0.5},
            "generative": {"mix": "groups", "samples": 10_000, "labels": "model"},
            "online-replay": {"rate": 0.1, "clip": 1e9, "keep": "balanced", "by": "y"},
        },
        training={"gdumb": {"epochs": 20 * options.effort, "batch": 32, "cosine": True}},
        classes=max(data.classes) + 1,
        inputs=data.x_train.shape[1],
    )
    setup = _setup(met, recipe, (400, 400), options, seed)
    # A trunk that nobody trained is best wide; few stored images want a network that holds back.
    wide = _network(recipe, (1000,), seed)
    own = {"gdumb": _network(recipe, (400, 400), seed, dropout=0.2), "slda": wide, "ncm": wide}
    return replace(setup, own=own)


def permuted(options: Options, seed: int) -> Setup:
    """Ten experiences, each with the pixels in an order of its own; one hidden layer of 512."""
    data = _cut_images(images(options.file(READS)), options)
    met = PermutedImages(data, seed=seed)
    rows = len(data.y_train)
    recipe = Recipe(
        scenario="permuted-mnist",
        kind="classes",
        rows=rows,
        experiences=len(met),
        epochs=10 * options.effort,
        batch=256,
        # Adam spends the room that later experiences need: docs/learning/regularisation.md.
        optimiser="sgd",
        rate=0.1,
        cosine=True,
        memory=2000,
        online_batch=10,
        online_rate=0.05,
        # Chosen on rows held out of the training rows, SI's after a full run had been too stiff:
        # docs/learning/regularisation.md.
        knobs={
            "ewc": {"penalty": 50.0, "fisher_events": 500},
            "online-ewc": {"penalty": 100.0, "gamma": 1.0, "fisher_events": 500},
            "si": {"penalty": 12.0},
        },
        # Ten times all that was seen would be 55 times an experience's training.
        retrain_rows=int(20 * options.effort * rows),
        classes=max(data.classes) + 1,
        inputs=data.x_train.shape[1],
    )
    return _setup(met, recipe, (512,), options, seed)


def _cut_images(data: Images, options: Options) -> Images:
    train = drawn(len(data.y_train), options.rows)
    test = drawn(len(data.y_test), options.test_rows)
    return Images(data.x_train[train], data.y_train[train], data.x_test[test], data.y_test[test])


def _cut(one: Experience, options: Options) -> Experience:
    return replace(
        one, train=capped(one.train, options.rows), test=capped(one.test, options.test_rows)
    )


def _setup(
    met: Sequence[Experience],
    recipe: Recipe,
    hidden: Sequence[int],
    options: Options,
    seed: int,
) -> Setup:
    tests, names = [], []
    for one in met:  # made once each: ten permuted test sets hold 310 MB
        tests.append(one.test)
        names.append(one.name)
    return Setup(
        experiences=met,
        tests=tests,
        names=tuple(names),
        start=_network(recipe, hidden, seed),
        score=of_classes,
        recipe=recipe,
        labels=options.labels,
    )


def _network(recipe: Recipe, hidden: Sequence[int], seed: int, *, dropout: float = 0.0) -> Model:
    """Untrained, drawn with `seed`."""
    facts: dict[str, JSON] = {
        "pixels": recipe.inputs,
        "hidden": list(hidden),
        "classes": recipe.classes,
        "seed": Seeds(seed).integer("network") % 2**31,
        "dropout": dropout,
    }
    architecture = Architecture("studies.pixels", facts)
    task = Classification(features=("x",), classes=recipe.classes)
    return Model(build(architecture, FACTORIES).eval(), task, architecture)
