"""What a chip learns of the association network in one pass, by strategy, rate and bits.

    nice -n 15 python benchmarks/study_on_chip.py [--events 1600] [--test 1500] [--rows sgd,lms]

The first fixed-point E2E network of `stillfit demo --network e2e` learns `--events` labelled events
of each condition, each once, and is judged on `--test` others: association error (1 - balanced
accuracy, mean of the events) on the new condition and, in brackets, on the nominal one. All events
are drawn from the library's training split with seeds of their own, so none is one of a season's:
the rate of the lane `on-chip` was chosen here. 4 s a figure beside other jobs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.conditions import nominal
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.models.model import Model
from stillfit.studies.initial import cache_folder, first_model, fixed_model
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLearner,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    Exemplars,
    Format,
)

TRAINING_EVENTS = 30_000  # of the demo's first network
TRAIN, TEST = 700, 900  # seeds
WORD = Format(width=18, fraction=12)
CONDITIONS = {
    "nominal": nominal(),
    "quality word": replace(nominal(), quality_word="inverted"),
    "resolution x3": replace(nominal(), barrel_ps_resolution=3.0),
    "resolution x5": replace(nominal(), barrel_ps_resolution=5.0),
}
ROWS: dict[str, dict[str, EmbeddedLearner]] = {
    "sgd": {
        f"all layers, rate 2^-{n}": EmbeddedSGD(numbers=WORD, rate=2.0**-n)
        for n in (6, 8, 9, 10, 11, 12, 13, 14, 16)
    },
    "lms": {
        f"last layer, rate 2^-{n}": EmbeddedLMS(numbers=WORD, rate=2.0**-n)
        for n in (5, 7, 8, 9, 10, 12)
    },
    "bits": {
        f"all layers, 2^-12, {width} bits, {fraction} of them fraction, {rounding}": EmbeddedSGD(
            numbers=Format(width=width, fraction=fraction, rounding=rounding), rate=2.0**-12
        )
        for width, fraction, rounding in (
            (24, 16, "stochastic"),
            (16, 10, "stochastic"),
            (14, 8, "stochastic"),
            (12, 6, "stochastic"),
            (16, 10, "half-up"),
            (18, 12, "half-up"),
        )
    },
    "kept": {
        f"all layers, 2^-12, {keep} tracks kept": EmbeddedSGD(
            numbers=WORD, rate=2.0**-12, exemplars=Exemplars(capacity=keep, bits=16)
        )
        for keep in (500, 5000)
    },
    "dfa": {"feedback, 2^-12": EmbeddedDFA(numbers=WORD, rate=2.0**-12)},
    "rls": {
        f"least squares to {score:g}, prior {prior:g}, forgetting {forgetting:g}": EmbeddedRLS(
            numbers=WORD, score=score, prior=prior, forgetting=forgetting
        )
        for score, prior, forgetting in (
            (4.0, 1.0, 0.999),
            (4.0, 0.01, 1.0),
            (1.0, 1.0, 0.999),
            (1.0, 0.01, 0.999),
            (1.0, 0.01, 1.0),
            (1.0, 0.001, 1.0),
        )
    },
}


def error(model: Model, examples: Examples) -> tuple[float, float]:
    """Mean association error, and its own error."""
    each = model.errors(examples)["association"]
    return float(each.mean()), float(each.std() / np.sqrt(len(each)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1600)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--rows", default=",".join(ROWS))
    told = parser.parse_args()
    torch.set_num_threads(1)
    library = load()
    network = first_model(
        "e2e",
        library=library,
        seed=1,
        events=TRAINING_EVENTS,
        cache=cache_folder(),
        tell=lambda n: None,
    )
    serving = fixed_model(network, library=library, seed=1, cache=cache_folder())
    sets = [
        {
            name: vertex_examples(n, c, library=library, seed=seed, condition=name)
            for name, c in CONDITIONS.items()
        }
        for n, seed in ((told.events, TRAIN), (told.test, TEST))
    ]
    train, test = sets
    before = [error(serving, test[name]) for name in CONDITIONS]
    print(" | ".join(["", *CONDITIONS]))
    print(" | ".join(["serving", *(f"{mean:.4f} ± {err:.4f}" for mean, err in before)]))
    for group in told.rows.split(","):
        for title, learner in ROWS[group].items():
            figures = []
            for name in CONDITIONS:
                rng = np.random.default_rng(1)
                begun = learner.begin(serving, train["nominal"], rng=rng)
                made = learner.update(
                    serving,
                    begun,
                    train[name],
                    None,
                    budget=Budget(),
                    rng=rng,  # type: ignore[arg-type]
                )
                assert isinstance(made, Candidate)
                new, _ = error(made.model, test[name])
                old = "" if name == "nominal" else f" ({error(made.model, test['nominal'])[0]:.4f})"
                figures.append(f"{new:.4f}{old}")
            print(" | ".join([title, *figures]), flush=True)
    print(made.cost)


if __name__ == "__main__":
    main()
