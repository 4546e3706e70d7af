"""One row per set, method and split: train, calibrate, train again, and only then look at the test.

Three steps, all inside the training part of a split: (1) `search` chooses the weight decay of the
method's likelihood; (2) the method is trained without a share `held_out`, on which its own knob is
chosen where it has `VARIANTS`, and one factor on its standard deviation is fitted; (3) it is
trained anew on the whole training part. The test part is read once, after that. Every row is a
file of its own, so an interrupted run goes on.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

import stillfit
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Examples
from stillfit.core.predictive import Floats, Predictive
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean
from stillfit.models import uncertain
from stillfit.models.likelihood import likelihood_of
from stillfit.models.model import Model
from stillfit.models.networks import MLP
from stillfit.models.uncertain import Uncertain
from stillfit.studies.uci.data import Rows, Table, find, load
from stillfit.studies.uci.search import Candidate, Recipe, best, calibrator_for, score, search
from stillfit.studies.uci.together import drawn, fit_together
from stillfit.uncertainty import Bayesian
from stillfit.uncertainty.heads import BetaGaussianHead, Quantiles
from stillfit.uncertainty.methods import FACTORIES, METHODS

Row: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Task: TypeAlias = tuple[Any, ...]
Knobs: TypeAlias = Mapping[str, float]

PLAIN = "plain"  # the bare network, mean and log-variance by likelihood: the reference
FIGURES = ("log_likelihood", "rmse", "crps", "coverage_90", "log_likelihood_stated")
PARQUET = "uci.parquet"
PINBALL = 1 / 30  # about the ratio of the best strengths on held-out rows of training parts
# Knobs that depend on the set so much that no fixed value is fair; all others have their defaults.
RATES: tuple[Knobs, ...] = ({"rate": 0.01}, {"rate": 0.03}, {"rate": 0.1})
VARIANTS: dict[str, tuple[Knobs, ...]] = {"mc-dropout": RATES, "mc-dropout-last": RATES}


def methods(names: Sequence[str] = ()) -> list[str]:
    """All methods of the catalogue behind the plain network, or those that are named."""
    known = [PLAIN, *METHODS]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no method {name!r}{did_you_mean(name, known)}")
    return list(dict.fromkeys(names)) or known


def converted(method: str, features: int, hidden: int, knobs: Knobs | None = None) -> nn.Module:
    """The network of a method, untrained; `knobs`: other than the method's defaults.

    Members and what is fitted after training stand on a mean and log-variance trained by the
    beta-weighed likelihood: the plain one explains a poor mean as noise (Seitzer et al. 2022,
    arXiv:2203.09168). Variational networks keep the plain one, which their bound is made of.
    """
    plain = MLP(features, [hidden])
    if method == PLAIN:
        return plain
    found = METHODS[method]
    network = found.convert(plain)
    if found.kind == "head" or isinstance(network, Bayesian):
        return network
    base = BetaGaussianHead(plain)
    return FACTORIES[method](network=base, **knobs) if knobs else found.convert(base)


def decay_of(network: nn.Module, candidates: Sequence[Candidate]) -> float:
    """The weight decay of a method, from the scores of a search.

    Gaussian and evidential losses are log-densities in nats, as in the search; the pinball loss
    is in widths of the quantile table, and takes `PINBALL` of it. A variational network has a
    prior of its own and takes none.
    """
    if isinstance(network, Bayesian):
        return 0.0
    several = isinstance(network, Uncertain) and network.n_passes > 1
    found = best(candidates, mixed=several)
    likelihood = likelihood_of(uncertain.core_of(network))
    return found * PINBALL if isinstance(likelihood, Quantiles) else found


def run(
    folder: Path,
    out: Path,
    *,
    sets: Sequence[str] = (),
    methods_named: Sequence[str] = (),
    recipe: Recipe | None = None,
    workers: int = 1,
    progress: Progress,
) -> list[Row]:
    """All rows of the chosen sets and methods, also in `out/uci.parquet`.

    What an earlier call finished there with the same recipe and data is not done again; other
    rows that lie there are kept in the file. `workers`: processes, each of one thread.
    """
    recipe = Recipe() if recipe is None else recipe
    chosen = methods(methods_named)
    names = find(folder, sets)
    tables = {name: load(folder, name) for name in names}
    _claim(out, recipe, tables)
    source = {name: (folder, name, table.digest) for name, table in tables.items()}
    rows = [
        (name, method, split)
        for name in names
        for method in chosen
        for split in range(tables[name].splits)
    ]
    # Splits that are trained together end together: a group with a row missing is done anew.
    groups = {
        (name, method, split // recipe.together)
        for name, method, split in rows
        if not _row_file(out, name, method, split).is_file()
    }
    todo = [
        (name, method, tuple(splits))
        for (name, method, group), splits in _grouped(rows, recipe.together).items()
        if (name, method, group) in groups
    ]
    wanted = {(name, split) for name, _, splits in todo for split in splits}
    searches = [
        (1, (out, source[name], split, recipe))
        for name, split in sorted(wanted)
        if not _search_file(out, name, split).is_file()
    ]
    with _pool(workers) as pool:
        _each(_search_one, searches, pool, progress, "weight decay")
        several = [
            (len(splits), (out, source[name], method, splits, recipe))
            for name, method, splits in todo
        ]
        _each(_rows_of, several, pool, progress, "methods")
    found = [json.loads(_row_file(out, *task).read_text(encoding="utf-8")) for task in rows]
    _write_parquet(out)
    return found


def _grouped(
    rows: Sequence[tuple[str, str, int]], together: int
) -> dict[tuple[str, str, int], list[int]]:
    """The splits of each set, method and group."""
    found: dict[tuple[str, str, int], list[int]] = {}
    for name, method, split in rows:
        found.setdefault((name, method, split // together), []).append(split)
    return found


def _claim(out: Path, recipe: Recipe, tables: dict[str, Table]) -> None:
    """Make the folder; refuse one whose rows come from another recipe, version or data."""
    path = out / "study.json"
    mine: Row = {
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "stillfit": stillfit.__version__,
        "sets": {name: table.digest for name, table in tables.items()},
    }
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            theirs = {"recipe": before["recipe"], "stillfit": before["stillfit"]}
            digests = dict(before["sets"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({type(error).__name__}); give another --out"
            ) from None
        for knob, value in theirs.items():
            if value != mine[knob]:
                raise ConfigError(
                    f"{out} holds a study with {knob} = {value}, now it is {mine[knob]}; "
                    "give another --out"
                )
        for name, digest in mine["sets"].items():
            if digests.get(name, digest) != digest:
                raise ConfigError(
                    f"{out} holds rows of another {name}: its data or splits have changed since; "
                    "give another --out"
                )
        mine["sets"] = {**digests, **mine["sets"]}
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder; give another --out")
    _write(path, mine)


def _write(path: Path, value: Any) -> None:
    """JSON that a reader sees whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
    temporary.replace(path)


def _row_file(out: Path, name: str, method: str, split: int) -> Path:
    return out / "rows" / name / f"{method}-{split}.json"


def _search_file(out: Path, name: str, split: int) -> Path:
    return out / "search" / name / f"{split}.json"


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if workers <= 1:
        yield None
        return
    # A fresh interpreter each: forking a process in which torch has threads may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for want of memory; what was finished is kept: "
            "start again with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
    # An interrupt from the terminal ends a worker at once, without a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _each(
    work: Callable[[Task], None],
    tasks: Sequence[tuple[int, Task]],
    pool: ProcessPoolExecutor | None,
    progress: Progress,
    title: str,
) -> None:
    """Do the tasks; each comes with how many steps of the progress it is."""
    if not tasks:
        return
    with progress(title, sum(steps for steps, _ in tasks)) as advance:
        if pool is None:
            for steps, task in tasks:
                work(task)
                advance(steps)
            return
        left = {pool.submit(work, task): steps for steps, task in tasks}
        while left:
            done, _ = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                advance(left.pop(future))


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, name: str, digest: str) -> Table:
    """The set as it was when the study began; read once per process."""
    table = load(folder, name)
    if table.digest != digest:
        raise DataError(f"{folder / name} has changed while the study was running; start again")
    return table


def _search_one(task: Task) -> None:
    out, source, split, recipe = task
    table = _loaded(*source)
    name = table.name
    seeds = Seeds(Seeds(recipe.seed).integer("search", name, split))
    found = search(table, table.train[split], recipe, seeds)
    _write(_search_file(out, name, split), [list(candidate) for candidate in found])


def _rows_of(task: Task) -> None:
    """The rows of one method on a group of splits, trained side by side."""
    out, source, method, splits, recipe = task
    began = time.process_time()
    table = _loaded(*source)
    name = table.name
    seeds = Seeds(Seeds(recipe.seed).integer(name, method, *splits))
    decays = [_decay(out, name, method, split) for split in splits]
    held = [_held_out(table, split, recipe) for split in splits]
    tried: list[list[tuple[float, Knobs, Predictive]]] = [[] for _ in splits]
    for knobs in VARIANTS.get(method, ({},)):
        network = converted(method, table.x.shape[1], table.hidden, knobs)
        parts = [inside for inside, _ in held]
        models = _trained(network, table, parts, decays, recipe, seeds, "part")
        for model, (_, outside), own in zip(models, held, tried, strict=True):
            if model is not None:
                stated = _predicted(model, table.examples(outside))
                own.append((score(stated, table.y[outside]), knobs, stated))
    best_of = [max(own, key=lambda one: one[0]) if own else None for own in tried]
    rows = [
        _nothing(name, method, split, decay) for split, decay in zip(splits, decays, strict=True)
    ]
    for knobs in VARIANTS.get(method, ({},)):
        mine = [k for k, one in enumerate(best_of) if one is not None and one[1] == knobs]
        if not mine:
            continue
        network = converted(method, table.x.shape[1], table.hidden, knobs)
        whole = [table.train[splits[k]] for k in mine]
        models = _trained(network, table, whole, [decays[k] for k in mine], recipe, seeds, "whole")
        for k, model in zip(mine, models, strict=True):
            found = best_of[k]
            if model is None or found is None:
                continue
            outside, test = held[k][1], table.test[splits[k]]
            calibrator = calibrator_for(found[2])
            state = calibrator.fit(found[2], table.y[outside])
            bare = _predicted(model, table.examples(test))
            rows[k] |= figures(bare, calibrator.apply(state, bare), table.y[test])
            rows[k] |= {"factor": state.factor, "diverged": False}
            rows[k]["knobs"] = ", ".join(f"{knob} {value:g}" for knob, value in knobs.items())
    seconds = (time.process_time() - began) / len(splits)
    for split, row in zip(splits, rows, strict=True):
        _write(_row_file(out, name, method, split), {**row, "cpu_seconds": seconds})


def _decay(out: Path, name: str, method: str, split: int) -> float:
    path = _search_file(out, name, split)
    candidates = [Candidate(*one) for one in json.loads(path.read_text(encoding="utf-8"))]
    return decay_of(converted(method, 1, 1), candidates)


def _held_out(table: Table, split: int, recipe: Recipe) -> tuple[Rows, Rows]:
    """Rows of the training part without and with the share that is held out; same for all."""
    rows = table.train[split]
    rng = Seeds(recipe.seed).rng("held out", table.name, split)
    (inside, outside), *_ = recipe.parts(len(rows), rng)
    return rows[inside], rows[outside]


def _nothing(name: str, method: str, split: int, decay: float) -> Row:
    """The row of a training that diverged."""
    row: Row = {"set": name, "method": method, "split": split, "decay": decay, "knobs": ""}
    return {**row, **dict.fromkeys((*FIGURES, "factor"), None), "diverged": True}


def figures(bare: Predictive, scaled: Predictive, truth: Floats) -> Row:
    """All figures of one test part; None for a mean log-density of minus infinity."""
    low, high = scaled.interval(0.9)
    found = {
        "log_likelihood": float(scaled.log_prob(truth).mean()),
        "rmse": float(np.sqrt(np.mean((scaled.mean - truth) ** 2))),
        "crps": float(scaled.crps(truth).mean()),
        "coverage_90": float(np.mean((low <= truth) & (truth <= high))),
        "log_likelihood_stated": float(bare.log_prob(truth).mean()),
    }
    # A density of 0 somewhere has no finite logarithm, and JSON has no infinity.
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _trained(
    network: nn.Module,
    table: Table,
    rows: Sequence[Rows],
    decays: Sequence[float],
    recipe: Recipe,
    seeds: Seeds,
    stage: str,
) -> list[Model | None]:
    """One network per element of `rows`, drawn anew and trained; None where it diverged."""
    jobs = [
        drawn(network, table, own, decay, seeds.integer(stage, k))
        for k, (own, decay) in enumerate(zip(rows, decays, strict=True))
    ]
    found: list[Model | None] = [None] * len(jobs)
    # What depends on the number of rows (a prior's share) must be common to a stack.
    for size in dict.fromkeys(len(own) for own in rows):
        mine = [k for k, own in enumerate(rows) if len(own) == size]
        rng = seeds.rng(stage, "fit", size)
        together = [jobs[k] for k in mine]
        finite = fit_together(together, table, recipe.schedule(size), rng)
        for k, ok in zip(mine, finite, strict=True):
            found[k] = jobs[k].model if ok else None
    return found


def _predicted(model: Model, examples: Examples) -> Predictive:
    predictive, _ = model.predict(examples.inputs)
    assert isinstance(predictive, Predictive)
    return predictive


def _write_parquet(out: Path) -> None:
    """All rows that lie in the folder, in the order of set, method and split."""
    rows = [
        json.loads(path.read_text(encoding="utf-8")) for path in (out / "rows").glob("*/*.json")
    ]
    rows.sort(key=lambda row: (row["set"], row["method"], row["split"]))
    kinds = {"set": pa.string(), "method": pa.string(), "split": pa.int32()}
    kinds |= {name: pa.float64() for name in (*FIGURES, "factor", "decay", "cpu_seconds")}
    kinds |= {"diverged": pa.bool_(), "knobs": pa.string()}
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds.items()))
    temporary = out / f"{PARQUET}.tmp"
    pq.write_table(table, temporary)
    temporary.replace(out / PARQUET)
