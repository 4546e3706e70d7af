"""Figures of a network on held-out rows of conditions; higher is better unless in `LOWER`.

All conditions are predicted together: forty small ones cost little more than a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import concat
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical
from stillfit.l1t.metrics import track_figures
from stillfit.models.model import Model
from stillfit.models.task import Classification
from stillfit.studies.continual.setting import Figures
from stillfit.studies.continual_metrics import macro_f1

CHUNK = 2048
TOGETHER = 20_000  # rows that are joined for one prediction


def of_classes(model: Model, tests: Sequence[Examples]) -> list[Figures]:
    """Share of right classes, and macro-F1."""
    assert isinstance(model.task, Classification)
    classes = model.task.classes

    def figures(stated: NDArray[np.float64], y: NDArray[np.int64]) -> Figures:
        said = stated.argmax(1)
        return {"accuracy": float((said == y).mean()), "macro_f1": macro_f1(said, y, classes)}

    return _judged(model, tests, figures)


def of_tracks(model: Model, tests: Sequence[Examples]) -> list[Figures]:
    """AUC of "from the primary vertex", and accuracies at the threshold 1/2."""

    def figures(stated: NDArray[np.float64], y: NDArray[np.int64]) -> Figures:
        values, truth = stated[:, 1], y > 0
        found = track_figures(values, truth, np.array([0, len(truth)]))
        return {
            "auc": float(found.auc[0]),
            "balanced_accuracy": float(found.balanced_accuracy[0]),
            "accuracy": float(((values >= 0.5) == truth).mean()),
        }

    return _judged(model, tests, figures)


def _judged(
    model: Model,
    tests: Sequence[Examples],
    figures: Callable[[NDArray[np.float64], NDArray[np.int64]], Figures],
) -> list[Figures]:
    """The figures of each condition's probabilities (n, classes) and classes (n,)."""
    found: list[Figures] = []
    for group in _groups(tests):
        inputs = concat([test.inputs for test in group])
        stated, _ = model.predict(inputs, CHUNK)
        assert isinstance(stated, Categorical)
        ends = np.cumsum([len(test) for test in group])[:-1]
        for part, test in zip(np.split(stated.probabilities, ends), group, strict=True):
            found.append(figures(part, np.asarray(test.targets[model.task.target], np.int64)))
    return found


def _groups(tests: Sequence[Examples]) -> list[list[Examples]]:
    groups: list[list[Examples]] = []
    for test in tests:
        if groups and sum(map(len, groups[-1])) + len(test) <= TOGETHER:
            groups[-1].append(test)
        else:
            groups.append([test])
    return groups


VERTEX = ("efficiency", "balanced_accuracy", "auc", "width_cm")


def of_vertices(model: Model, tests: Sequence[Examples]) -> list[Figures]:
    """`score`, 1 - the task's error: the mean of efficiency and of the events' balanced accuracy;
    with efficiency, core width (cm), balanced accuracy at the deployed threshold, and AUC."""
    found: list[Figures] = []
    for test in tests:
        stated, outputs = model.predict(test.inputs)
        errors = model.task.errors(stated, outputs, test.targets)
        figures = model.task.summarise(stated, outputs, test.targets)
        score = {"score": 1 - float(errors["error"].mean())}
        found.append(score | {name: figures[name] for name in VERTEX})
    return found
