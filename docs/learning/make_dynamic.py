"""The figures of dynamic.md: `python docs/learning/make_dynamic.py`, or with names of its tables
(packing, growing, compressing).

A regression with two features and four conditions that contradict each other, and the vertex
network on events of the simulation. About three minutes on one idle core.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Predictive
from stillfit.core.values import Budget, Candidate
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.sizes import FootprintLimit, size_of
from stillfit.models.task import Regression
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.streams.store import Keeping
from stillfit.updaters.contract import Declined, Learner, Updater
from stillfit.updaters.dynamic import Compress, Grow, PackNet, widths_of
from stillfit.updaters.references import FineTune

TASK = Regression(features=("a", "b"))
# Offset and factor of sin 2a in each condition.
CONDITIONS = {"first": (0.0, 1.0), "moved": (2.0, 1.0), "turned": (-1.0, -1.0), "flat": (1.0, 0.3)}
SEEDS = range(5)


def events(condition: str, n: int, seed: int) -> Examples:
    """y = factor * sin 2a + b + offset + N(0, 0.1^2): the best mean error is 0.080."""
    offset, factor = CONDITIONS[condition]
    rng = np.random.default_rng([seed, sorted(CONDITIONS).index(condition)])
    a, b = rng.normal(size=(2, n))
    y = factor * np.sin(2 * a) + b + offset + 0.1 * rng.normal(size=n)
    ids = np.arange(n) + 100_000 * sorted(CONDITIONS).index(condition) + 10_000_000 * seed
    return Examples(ids, {"a": a, "b": b}, {"y": y}, np.zeros(n), np.full(n, condition))


def trained(hidden: tuple[int, ...], examples: Examples, seed: int) -> Model:
    network = uncertain.fresh(TASK, MLP(2, hidden), examples, seed)
    model = Model(network, TASK, Architecture("mlp", {"features": 2, "hidden": list(hidden)}))
    schedule = Schedule(steps=1000, batch=128, rate=0.01)
    fit(model, Prepared.of(model, examples), schedule, np.random.default_rng(seed))
    return model


def error(model: Model, condition: str) -> float:
    return float(model.errors(events(condition, 2000, 99))["error"].mean())


def told(values: list[list[float]]) -> str:
    mean = np.mean(values, 0)
    spread = np.std(values, 0, ddof=1) / np.sqrt(len(values))
    return " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True))


def packing() -> None:
    """One network, four conditions one after another."""
    schedule = Schedule(steps=400, batch=128, rate=0.01)
    updaters: dict[str, Updater] = {
        "fine-tuning": FineTune(schedule=schedule),
        "PackNet": PackNet(schedule=schedule),
        'PackNet, `reuse="none"`': PackNet(schedule=schedule, reuse="none"),
        'PackNet, `biases="frozen"`': PackNet(schedule=schedule, biases="frozen"),
    }
    print("\nMean error of each condition: when its update was made, and under its mask at the end")
    for name, updater in updaters.items():
        at_once, at_end, free, refused = [], [], [], 0
        for seed in SEEDS:
            first = events("first", 1000, seed)
            model = trained((32, 32), first, seed)
            learner: Learner = updater.begin(model, first, rng=np.random.default_rng(seed))
            serving = model
            row = [error(model, "first")]
            masks = {"first": model}
            if isinstance(updater, PackNet):
                masks["first"] = updater.under(model, learner, "first")
                row = [error(masks["first"], "first")]
            for condition in list(CONDITIONS)[1:]:
                rng = np.random.default_rng([seed, 1])
                fresh = events(condition, 600, seed)
                kept = Keeping(budget_bytes=10**7).empty().training
                answer = updater.update(serving, learner, fresh, kept, budget=Budget(), rng=rng)
                if isinstance(answer, Candidate):
                    serving, learner = answer.model, answer.learner
                else:
                    refused += 1
                row.append(error(serving, condition))
            end = []
            for condition in CONDITIONS:
                model = serving
                if isinstance(updater, PackNet):
                    try:
                        model = updater.under(serving, learner, condition)
                    except ConfigError:  # no mask of its own: what serves, serves
                        model = serving
                end.append(error(model, condition))
            at_once.append(row)
            at_end.append(end)
            free.append(sum(int((v == 0).sum()) for n, v in learner.items() if "owners/" in n))
        print(f"| {name} | {told(at_once)} | refused {refused}")
        print(f"|   at the end | {told(at_end)} | {np.mean(free):.0f} weights free")


def growing() -> None:
    """A network of 3 hidden units whose condition turns: growth against plain training."""
    print("\nGrowth from 2-3-2 on 600 events of 'turned'")
    schedule = Schedule(steps=200, batch=128, rate=0.01)
    cases: dict[str, Updater] = {
        "fine-tuning, as many steps": FineTune(schedule=Schedule(steps=1600, batch=128, rate=0.01))
    }
    for parameters in (30, 60, 120):
        limit = FootprintLimit(parameters=parameters)
        cases[f"limit {parameters}"] = Grow(
            schedule=schedule, target=0.06, rounds=8, mix=0.0, limit=limit
        )
    for name, updater in cases.items():
        rows, sizes = [], []
        for seed in SEEDS:
            model = trained((3,), events("first", 1000, seed), seed)
            rng = np.random.default_rng(seed)
            fresh = events("turned", 600, seed)
            kept = Keeping(budget_bytes=10**7).empty().training
            answer = updater.update(model, {}, fresh, kept, budget=Budget(), rng=rng)
            if isinstance(answer, Declined):
                print("   ", answer.because)
                continue
            rows.append([error(answer.model, "turned")])
            sizes.append(size_of(answer.model.network).parameters)
        print(f"| {name} | {told(rows)} | {np.mean(sizes):.0f} parameters")


def compressing() -> None:
    """The vertex network below a limit of bits."""
    print("\nE2E on nominal events: bits of weights, non-zero weights, mean error")
    task, library = VertexTask(), load()
    train = vertex_examples(1000, nominal(), library=library, seed=1)
    fresh = vertex_examples(600, nominal(), library=library, seed=2)
    test = vertex_examples(1500, nominal(), library=library, seed=3)
    serving = Model(E2E(seed=1), task, Architecture("l1t.e2e", {"seed": 1}))
    schedule = Schedule(steps=250, batch=150, rate=0.01)
    fit(serving, Prepared.of(serving, train), schedule, np.random.default_rng(1))
    whole = size_of(serving.network)
    errors = serving.errors(test)["error"]
    print(f"| floats | {whole.bits} | {whole.nonzero} | {errors.mean():.4f} "
          f"± {errors.std() / np.sqrt(len(errors)):.4f} |")  # fmt: skip
    kept = Keeping(budget_bytes=10**8).empty().training
    more = FineTune(schedule=Schedule(steps=240, batch=150, rate=0.004))
    tuned = more.update(serving, {}, fresh, kept, budget=Budget(), rng=np.random.default_rng(1))
    assert isinstance(tuned, Candidate)
    print(f"| floats, fine-tuned | | | {tuned.model.errors(test)['error'].mean():.4f} | "
          f"{crps(tuned.model, test):.4f} cm |")  # fmt: skip
    for limit in (
        FootprintLimit(bits=8000),
        FootprintLimit(bits=4000),
        FootprintLimit(nonzero=400, bits=3500),
    ):
        updater = Compress(limit=limit, schedule=Schedule(steps=60, batch=150, rate=0.004))
        begun = time.monotonic()
        rng = np.random.default_rng(1)
        answer = updater.update(serving, {}, fresh, kept, budget=Budget(), rng=rng)
        if isinstance(answer, Declined):
            print(f"| {limit} | {answer.because} |")
            continue
        errors = answer.model.errors(test)["error"]
        widths = widths_of(answer.learner)
        bits = {n: widths[n.rpartition(".")[0]] for n, _ in answer.model.network.named_parameters()
                if n.rpartition(".")[0] in widths}  # fmt: skip
        size = size_of(answer.model.network, bits)
        took = time.monotonic() - begun
        print(f"| {limit.nonzero}, {limit.bits} | {size.bits} | {size.nonzero} | ", end="")
        print(f"{errors.mean():.4f} | {crps(answer.model, test):.4f} cm | {took:.0f} s")
        print(f"    {widths}")


def crps(model: Model, examples: Examples) -> float:
    """Median CRPS of z0, cm: the mean is that of the few vertices that are missed."""
    predictive, _ = model.predict(examples.inputs)
    assert isinstance(predictive, Predictive)
    return float(np.median(predictive.crps(np.asarray(examples.targets["z0"]))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    tables = {"packing": packing, "growing": growing, "compressing": compressing}
    for name in sys.argv[1:] or tables:
        tables[name]()
