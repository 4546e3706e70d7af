"""Beside a well-known library: the same network, data and seeds through avalanche and through us.

python benchmarks/bench_peers.py --data mnist.npz [--seeds 3] [--only split,permuted] [--choose]

needs the extra `[peers]`, best in an environment of its own (docs/learning/study.md says how).
`make bench` runs it where avalanche is installed and MNIST_NPZ names the file, else says why not.

Split MNIST (five experiences of two classes, one head) and Permuted MNIST (ten orders of the
pixels), both at reduced rows and epochs, so these are no figures to compare with published ones.
Alike for both libraries: the rows and their experiences, the first weights, the optimiser, which
starts anew in each experience, batches, epochs, stored examples, one thread. Not alike: the order
of the rows, which each draws itself, and what each takes for an importance (`strategies`,
`peer_strategies`). Accuracy: mean over all experiences' test rows at the end. Seconds: CPU time of
learning, importances and buffers included; making data sets and testing are not counted, nor is
any metric of avalanche's (its evaluator is empty).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from scipy import stats

from stillfit.core.errors import StillfitError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Architecture, Model
from stillfit.models.task import Classification
from stillfit.models.training import Schedule
from stillfit.streams.store import Keeping
from stillfit.studies.continual.networks import PixelNetwork
from stillfit.studies.experiences import Experience, Images, PermutedImages, images, split_images
from stillfit.updaters.contract import Updater
from stillfit.updaters.references import FineTune
from stillfit.updaters.regularisation import EWC, SynapticIntelligence
from stillfit.updaters.replay import Replay

Row: TypeAlias = tuple[str, float, str]
Found: TypeAlias = tuple[float, float]  # accuracy, CPU seconds
Way: TypeAlias = Callable[["Setting", "str", int, Sequence[Experience]], Found]
STRATEGIES = ("naive", "replay", "ewc", "si")
CHOSEN_ON = 100  # seed of the runs that chose the penalties: none of the table's
# By `--choose --only permuted`; in Split MNIST, where penalties help nobody, the same. avalanche's
# synaptic intelligence does the same at any penalty: docs/learning/study.md.
CHOSEN = {"ours ewc": 30.0, "ours si": 100.0, "avalanche ewc": 1e4, "avalanche si": 1.0}
GRID: Mapping[str, tuple[float, ...]] = {
    "ours ewc": (3, 30, 300),
    "ours si": (3, 10, 30, 100),
    "avalanche ewc": (10, 100, 1000, 1e4),
    "avalanche si": (1, 100, 1e3, 1e4, 1e5),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One benchmark, reduced. `penalties`: of "library strategy"."""

    name: Literal["split", "permuted"]
    hidden: tuple[int, ...]
    rows: int
    tests: int
    epochs: int
    batch: int
    optimiser: Literal["adam", "sgd"]
    rate: float
    memory: int
    penalties: Mapping[str, float]

    def met(self, data: Images, seed: int) -> list[Experience]:
        """The experiences, with at most `rows` training and `tests` test rows in each."""
        if self.name == "split":
            found: Sequence[Experience] = split_images(data, seed=seed)
        else:
            found = PermutedImages(self._cut(data, seed), seed=seed)
        rows, tests = slice(0, self.rows), slice(0, self.tests)
        return [
            replace(one, train=one.train.take(rows), test=one.test.take(tests)) for one in found
        ]

    def _cut(self, data: Images, seed: int) -> Images:
        """A draw of rows: permuting all of them ten times would take longer than learning."""
        rng = Seeds(seed).rng("peers", "rows")
        train = rng.permutation(len(data.y_train))[: self.rows]
        test = rng.permutation(len(data.y_test))[: self.tests]
        return Images(
            data.x_train[train], data.y_train[train], data.x_test[test], data.y_test[test]
        )

    def network(self, seed: int) -> PixelNetwork:
        drawn = Seeds(seed).integer("peers", "network") % 2**31
        return PixelNetwork(784, self.hidden, 10, seed=drawn)

    @property
    def steps(self) -> int:
        return self.epochs * (self.rows // self.batch)


SETTINGS = (
    Setting(
        name="split",
        hidden=(400, 400),
        rows=2048,
        tests=10_000,
        epochs=4,
        batch=128,
        optimiser="adam",
        rate=0.001,
        memory=1000,
        penalties=CHOSEN,
    ),
    Setting(
        name="permuted",
        hidden=(512,),
        rows=2048,
        tests=2000,
        epochs=4,
        batch=256,
        optimiser="sgd",
        rate=0.05,
        memory=1000,
        penalties=CHOSEN,
    ),
)


# -- ours -----------------------------------------------------------------------------------------


def strategies(setting: Setting, name: str, number: int) -> Updater:
    """The updater of experience `number`.

    The Fisher information is of 500 rows, one by one, with the labels that they have: avalanche
    reads labels too, where our default draws them from the prediction, at ten times the price.
    """
    schedule = Schedule(
        steps=setting.steps,
        batch=setting.batch,
        rate=setting.rate,
        optimiser=setting.optimiser,
        cosine=False,
        clip=1e9,
    )
    penalty = setting.penalties.get(f"ours {name}", 0.0)
    if name == "naive":
        return FineTune(schedule=schedule)
    if name == "replay":
        # As in avalanche: a batch of new rows and, from the second experience on, as many old ones.
        batch = setting.batch * (2 if number else 1)
        larger = replace(schedule, batch=batch)
        return Replay(schedule=larger, capacity=setting.memory, keep="balanced")
    if name == "ewc":
        return EWC(schedule=schedule, penalty=penalty, fisher="empirical", fisher_events=500)
    return SynapticIntelligence(schedule=schedule, penalty=penalty)


def ours(setting: Setting, name: str, seed: int, met: Sequence[Experience]) -> Found:
    """Learn all experiences with one of our strategies."""
    task = Classification(features=("x",), classes=10)
    model = Model(setting.network(seed).eval(), task, Architecture("studies.pixels"))
    learner: Any = {}
    nothing = Keeping(budget_bytes=10**6).empty().training
    seconds = 0.0
    for number, one in enumerate(met):
        updater = strategies(setting, name, number)
        rng = Seeds(seed).rng("peers", name, number)
        began = time.process_time()
        answer = updater.update(model, learner, one.train, nothing, budget=Budget(), rng=rng)
        assert isinstance(answer, Candidate), answer
        learner = updater.observe(answer.learner, one.train, rng=rng)
        seconds += time.process_time() - began
        model = answer.model
    return accuracy(model.network, [one.test for one in met]), seconds


# -- avalanche ------------------------------------------------------------------------------------


def peer_strategies(setting: Setting, name: str, network: torch.nn.Module) -> Any:
    """avalanche's strategy; its Fisher information is of the mean gradients of batches."""
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC as PeerEWC
    from avalanche.training.supervised import Naive
    from avalanche.training.supervised import Replay as PeerReplay
    from avalanche.training.supervised import SynapticIntelligence as PeerSI

    parameters = network.parameters()
    optimiser: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=setting.rate)
        if setting.optimiser == "adam"
        else torch.optim.SGD(parameters, lr=setting.rate, momentum=0.9)
    )
    common: dict[str, Any] = {
        "model": network,
        "optimizer": optimiser,
        "criterion": torch.nn.CrossEntropyLoss(),
        "train_mb_size": setting.batch,
        "train_epochs": setting.epochs,
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    penalty = setting.penalties.get(f"avalanche {name}", 0.0)
    if name == "naive":
        return Naive(**common)
    if name == "replay":
        return PeerReplay(mem_size=setting.memory, **common)
    if name == "ewc":
        return PeerEWC(ewc_lambda=penalty, **common)
    return PeerSI(si_lambda=penalty, **common)


def theirs(setting: Setting, name: str, seed: int, met: Sequence[Experience]) -> Found:
    """Learn all experiences with avalanche's strategy."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset

    sets = []
    for one in met:
        x, y = _tensors(one.train)
        pairs = torch.utils.data.TensorDataset(x, y)
        pairs.targets = y.tolist()  # type: ignore[attr-defined]  # where avalanche looks for them
        sets.append(as_classification_dataset(pairs))
    stream = benchmark_from_datasets(train=sets).streams["train"]
    network = copy.deepcopy(setting.network(seed))
    seconds = 0.0
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of avalanche's own functions, and of no loggers
        torch.manual_seed(seed)
        strategy = peer_strategies(setting, name, network)
        for experience in stream:
            strategy.optimizer.state.clear()
            began = time.process_time()
            strategy.train(experience)
            seconds += time.process_time() - began
    return accuracy(strategy.model, [one.test for one in met]), seconds


# -- both -----------------------------------------------------------------------------------------


def _tensors(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(np.ascontiguousarray(examples.inputs["x"], np.float32))
    return x, torch.from_numpy(np.asarray(examples.targets["y"], np.int64))


def accuracy(network: torch.nn.Module, tests: Sequence[Examples]) -> float:
    """Mean over experiences of the share of their test rows that are classified rightly."""
    network.eval()
    shares = []
    with torch.inference_mode():
        for test in tests:
            x, y = _tensors(test)
            shares.append(float((network(x).argmax(1) == y).float().mean()))
    return float(np.mean(shares))


WAYS: Mapping[str, Way] = {"ours": ours, "avalanche": theirs}


@dataclass(frozen=True)
class Result:
    """Accuracies and seconds of one strategy of one library, over seeds."""

    setting: str
    strategy: str
    library: str
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def half(self) -> float:
        """Half the 95 % Student-t interval of the mean accuracy over seeds."""
        n = len(self.accuracies)
        if n < 2:
            return float("nan")
        return float(stats.t.ppf(0.975, n - 1) * np.std(self.accuracies, ddof=1) / np.sqrt(n))


def compare(data: Images, settings: Sequence[Setting], seeds: int) -> list[Result]:
    """All strategies of both libraries at `seeds` seeds, in turn; printed as they come."""
    results = []
    for setting in settings:
        met = {seed: setting.met(data, seed) for seed in range(seeds)}
        for name in STRATEGIES:
            found: dict[str, list[Found]] = {library: [] for library in WAYS}
            for seed, experiences in met.items():
                for library, way in WAYS.items():
                    found[library].append(way(setting, name, seed, experiences))
            for library, pairs in found.items():
                scores, seconds = zip(*pairs, strict=True)
                results.append(Result(setting.name, name, library, scores, seconds))
                print(_line(results[-1]), flush=True)
    return results


def _line(one: Result) -> str:
    return (
        f"{one.setting:9s} {one.strategy:7s} {one.library:10s} accuracy "
        f"{np.mean(one.accuracies):.3f} +- {one.half:.3f}   {np.mean(one.seconds):7.1f} s"
    )


def choose(data: Images, settings: Sequence[Setting]) -> None:
    """Accuracy of each penalty of `GRID` on training rows that no table's run learns from."""
    for setting in settings:
        met = setting.met(held_out(data), CHOSEN_ON)
        for key, grid in GRID.items():
            library, name = key.split()
            for penalty in grid:
                trial = replace(setting, penalties={key: penalty})
                score, _ = WAYS[library](trial, name, CHOSEN_ON, met)
                print(f"{setting.name:9s} {key:14s} penalty {penalty:8g}: {score:.3f}", flush=True)


def held_out(data: Images) -> Images:
    """A sixth of the training rows, drawn, in place of the test rows (the file may be sorted)."""
    order = Seeds(CHOSEN_ON).rng("peers", "held out").permutation(len(data.y_train))
    train, test = np.split(order, [len(order) * 5 // 6])
    return Images(data.x_train[train], data.y_train[train], data.x_train[test], data.y_train[test])


def missing() -> str | None:
    """Why avalanche cannot be used here, or None."""
    if importlib.util.find_spec("avalanche") is None:
        return (
            'avalanche is not installed; in an environment of its own: pip install -e ".[peers]" '
            "(docs/learning/study.md)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("avalanche.training")
    except (ImportError, RuntimeError) as error:  # torchvision of another build than torch
        return f"avalanche is installed and does not import: {type(error).__name__}: {error}"
    return None


def run_bench() -> list[Row]:
    """For `make bench`: one seed; nothing, with the reason, where something is missing."""
    path = os.environ.get("MNIST_NPZ")
    reason = missing() or ("" if path else "MNIST_NPZ does not name an npz file of MNIST")
    if reason or path is None:
        print(f"  skipped: {reason}")
        return []
    torch.set_num_threads(1)
    rows: list[Row] = []
    for one in compare(images(Path(path)), SETTINGS, 1):
        what = f"{one.setting} MNIST, {one.strategy}, {one.library}"
        rows += [(f"{what}: accuracy", one.accuracies[0], ""), (what, one.seconds[0], "s of CPU")]
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="our strategies beside avalanche's")
    parser.add_argument("--data", type=Path, required=True, help="npz file of MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="split,permuted", help="benchmarks, comma-separated")
    parser.add_argument("--choose", action="store_true", help="scan penalties on held-out rows")
    given = parser.parse_args(arguments)
    reason = missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    torch.set_num_threads(1)
    wanted = given.only.split(",")
    settings = [setting for setting in SETTINGS if setting.name in wanted]
    try:
        data = images(given.data)
    except StillfitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from importlib.metadata import version

    print(
        f"avalanche-lib {version('avalanche-lib')}, torch {torch.__version__}, one thread, "
        f"{given.seeds} seeds; seconds of CPU"
    )
    if given.choose:
        choose(data, settings)
    else:
        compare(data, settings, given.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
