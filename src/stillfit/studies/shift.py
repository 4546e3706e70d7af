"""Every way to state uncertainty on the vertex network, against growing shift.

Three stages, each spread over processes and each resumable, since every part is a file of its own
under the study's folder: train every method on nominal events (`models/`), meet every condition
with all of them (`parts/`), and put each to use on nominal events. The events of a condition are
the same for all methods.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Mixture, Predictive, QuantileTable, StudentT
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean
from stillfit.l1t.conditions import Conditions, DeadRegion, nominal
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.library import load
from stillfit.l1t.metrics import share
from stillfit.l1t.recipe import FROZEN, KINDS, vertex_examples
from stillfit.l1t.vertex import NEAR, VertexTask
from stillfit.models import uncertain
from stillfit.models.model import Architecture, Model, build, footprint
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.studies.uses import uses_table
from stillfit.uncertainty import MomentPropagation
from stillfit.uncertainty.calibrators import NormalisedConformal, SplitConformal, VarianceScaling
from stillfit.uncertainty.methods import METHODS
from stillfit.uncertainty.scores import Scores, auroc, judge, reliability

Row: TypeAlias = dict[str, Any]
Advance: TypeAlias = Callable[[int], None]
CALIBRATION_SEED, TEST_SEED, USE_SEED = 55, 77, 99


class Found(NamedTuple):
    """Rows of the study. Scores: one per (method, calibrator, shift, intensity, seed). Curves:
    reliability and binned error for nominal and the strongest step of each shift. Costs: one per
    method and seed. Uses: see `studies.uses`, of the first seed.
    """

    scores: list[Row]
    curves: list[Row]
    costs: list[Row]
    uses: list[Row]


@dataclass(frozen=True)
class Shift:
    """A change of the detector or the beam, in growing steps of (intensity in `unit`, conditions).

    The first step is nominal.
    """

    title: str
    unit: str
    steps: tuple[tuple[float, Conditions], ...]


def _steps(knob: str, values: Sequence[float], scale: float = 1.0) -> tuple[Any, ...]:
    return tuple((v, replace(nominal(), **{knob: scale * v})) for v in values)  # type: ignore[arg-type]


def _dead(degrees: float) -> Conditions:
    if not degrees:
        return nominal()
    region = DeadRegion(phi=(0.0, math.radians(min(degrees, 180.0))))
    more = () if degrees <= 180 else (DeadRegion(phi=(-math.radians(degrees - 180), 0.0)),)
    return replace(nominal(), dead_regions=(region, *more))


SHIFTS: dict[str, Shift] = {
    "dead-sector": Shift(
        "dead sector",
        "degrees of phi",
        tuple((d, _dead(d)) for d in (0.0, 20.0, 60.0, 120.0, 240.0)),
    ),
    "resolution": Shift(
        "resolution of the barrel's macro-pixels",
        "times nominal",
        _steps("barrel_ps_resolution", (1.0, 1.5, 2.0, 3.0, 5.0)),
    ),
    "fakes": Shift(
        "fake tracks of good quality",
        "per nominal fake",
        _steps("good_fakes", (0.0, 0.5, 1.0, 2.0, 4.0)),
    ),
    "misaligned": Shift(
        "barrel against disks", "mm", _steps("barrel_z_shift", (0.0, 0.25, 0.5, 1.0, 2.0), 0.1)
    ),
    "pile-up": Shift(
        "pile-up", "interactions", _steps("pileup", (200.0, 230.0, 260.0, 300.0, 350.0))
    ),
}


@dataclass(frozen=True, kw_only=True)
class ShiftStudy:
    """What is compared. Event numbers: `training` per seed, `calibration`, `test` per condition,
    `uses` nominal ones for association windows and regions (0: not asked).

    `network`: "e2e" or "adaptive". Every method is trained from nothing with the same events and
    the same schedule of at most `steps` batches of 250; ensembles thus cost their members.
    """

    methods: tuple[str, ...] = ()
    shifts: tuple[str, ...] = ()
    network: str = "e2e"
    seeds: tuple[int, ...] = (1,)
    training: int = 16_000
    calibration: int = 4000
    test: int = 4000
    uses: int = 20_000
    steps: int = 500

    def __post_init__(self) -> None:
        for name, known in (("methods", METHODS), ("shifts", SHIFTS)):
            for asked in getattr(self, name):
                if asked not in known:
                    raise ConfigError(
                        f"there is no {asked!r} among the {name}{did_you_mean(asked, known)}; "
                        f"known are {', '.join(known)}"
                    )
        if self.network not in KINDS:
            raise ConfigError(f"network must be one of {', '.join(KINDS)}, got {self.network!r}")
        if self.uses < 0:
            raise ConfigError(f"uses must be a number of events, 0 or more, got {self.uses}")
        if not self.seeds or min(self.training, self.calibration, self.test, self.steps) < 1:
            raise ConfigError("a study needs a seed and events to train, calibrate and test on")
        if not self.methods:
            object.__setattr__(self, "methods", tuple(METHODS))
        if not self.shifts:
            object.__setattr__(self, "shifts", tuple(SHIFTS))

    @property
    def conditions(self) -> list[tuple[str, float, Conditions]]:
        """(shift, intensity, conditions), the strongest shifts last."""
        return [(name, at, c) for name in self.shifts for at, c in SHIFTS[name].steps]


def run(
    study: ShiftStudy,
    out: Path,
    *,
    workers: int = 1,
    progress: Callable[[str, int], Any],
) -> Found:
    """All methods trained, met with all conditions and put to use; Parquet files under `out`.

    What an interrupted call finished with the same settings is not done again.
    """
    _begin(study, out)
    jobs = [(name, seed) for seed in study.seeds for name in study.methods]
    costs = [
        cost
        for cost in _each(
            _train_one, [(study, out, *job) for job in jobs], workers, progress, "training"
        )
        if cost is not None
    ]
    known = {(cost["method"], cost["seed"]) for cost in costs}
    scores: list[Row] = []
    curves: list[Row] = []
    tasks = [(study, out, place, known) for place in range(len(study.conditions))]
    for met, lines in _each(_meet_one, tasks, workers, progress, "conditions"):
        scores += met
        curves += lines
    uses: list[Row] = []
    if study.uses:
        asked = [(study, out, name) for name in study.methods if (name, study.seeds[0]) in known]
        for rows in _each(_use_one, asked, workers, progress, "uses"):
            uses += rows
    found = Found(scores, curves, costs, uses)
    for name, rows in found._asdict().items():
        _write(out / f"{name}.parquet", rows)
    return found


def _begin(study: ShiftStudy, out: Path) -> None:
    """Make the folder; refuse one of another study, which would mix."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.json"
    said = json.dumps(asdict(study), sort_keys=True, default=list)
    if path.is_file():
        before = json.loads(path.read_text())
        now = json.loads(said)
        for knob in now:
            if knob != "methods" and before.get(knob) != now[knob]:
                raise ConfigError(
                    f"{out} holds a study with {knob} = {before.get(knob)}, now it is {now[knob]}; "
                    "give another folder"
                )
    path.write_text(said)


def _each(
    work: Callable[[Any], Any],
    tasks: list[Any],
    workers: int,
    progress: Callable[[str, int], Any],
    title: str,
) -> Iterator[Any]:
    """The results of `work` in the order of `tasks`, from `workers` processes."""
    with progress(title, len(tasks)) as advance:
        if workers <= 1:
            for task in tasks:
                yield work(task)
                advance(1)
            return
        # A fresh interpreter each: forking a process in which torch has threads may hang.
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
            futures = {pool.submit(work, task): place for place, task in enumerate(tasks)}
            results: dict[int, Any] = {}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                advance(1)
        yield from (results[place] for place in range(len(tasks)))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _train_one(task: tuple[ShiftStudy, Path, str, int]) -> Row | None:
    """Train one method from nothing, keep it, and say what it costs; None where it cannot apply."""
    study, out, name, seed = task
    folder = out / "models" / f"{name}-{seed}"
    done = folder / "cost.json"
    if done.is_file():
        stored: Row | None = json.loads(done.read_text())
        return stored
    folder.mkdir(parents=True, exist_ok=True)
    library, task_, kind = load(), VertexTask(), KINDS[study.network]
    plain = build(Architecture(kind, {"seed": seed}), FACTORIES)
    examples = vertex_examples(study.training, nominal(), library=library, seed=seed)
    try:
        network = uncertain.fresh(task_, converted(name, plain), examples, seed)
    except ConfigError as error:
        (folder / "refused.txt").write_text(str(error))
        done.write_text("null")
        return None
    model = Model(network, task_, Architecture(kind, {"seed": seed}))
    prepared = Prepared.of(model, examples)
    batch = min(250, study.training)
    began = time.perf_counter()
    fit(
        model,
        prepared,
        Schedule(steps=study.steps, batch=batch),
        Seeds(seed).rng("shift", name),
        rates=FROZEN,
    )
    seconds = time.perf_counter() - began
    nominal_part = vertex_examples(
        study.calibration, nominal(), library=library, seed=CALIBRATION_SEED, split="validation"
    )
    predictive, _ = model.predict(nominal_part.inputs)
    assert isinstance(predictive, Predictive)
    save_file(model.weights(), folder / "weights.safetensors")
    save_file(
        {**as_arrays(predictive), "truth": np.asarray(nominal_part.targets["z0"], np.float64)},
        folder / "nominal.safetensors",
    )
    sample = nominal_part.take(slice(0, min(1000, study.calibration)))
    made = footprint(network)
    cost: Row = {
        "method": name,
        "seed": seed,
        "passes": network.n_passes if isinstance(network, uncertain.Uncertain) else 1,
        "parameters": made.parameters,
        "bytes": made.weight_bytes,
        "macs": made.macs_per_event,
        "events_per_second": _rate(model, sample.inputs),
        "training_seconds": seconds,
    }
    temporary = done.with_suffix(".tmp")
    temporary.write_text(json.dumps(cost))
    temporary.replace(done)
    return cost


def converted(name: str, network: nn.Module) -> nn.Module:
    """The vertex network under a method; moments pass through the event head alone, since they
    have no closed form through a histogram and its arg-max."""
    if name == "moments":
        return MomentPropagation(network, layers=("sigma",))
    return METHODS[name].convert(network)


def _rate(model: Model, inputs: Mapping[str, Any]) -> float:
    """Events per second on one core, the best of three."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        predictive, _ = model.predict(inputs)
        best = max(best, len(predictive) / (time.perf_counter() - began))
    return best


def _meet_one(
    task: tuple[ShiftStudy, Path, int, set[tuple[str, int]]],
) -> tuple[list[Row], list[Row]]:
    """All trained methods on the events of one condition."""
    study, out, place, known = task
    shift, intensity, conditions = study.conditions[place]
    key = hashlib.sha256(json.dumps(sorted(known)).encode()).hexdigest()[:12]
    path = out / "parts" / f"{shift}-{intensity:g}-{key}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        return stored["scores"], stored["curves"]
    path.parent.mkdir(parents=True, exist_ok=True)
    examples = vertex_examples(
        study.test, conditions, library=load(), seed=TEST_SEED, split="test", condition=shift
    )
    truth = np.asarray(examples.targets["z0"], np.float64)
    steps = SHIFTS[shift].steps
    telling = intensity in (steps[0][0], steps[-1][0])
    scores: list[Row] = []
    curves: list[Row] = []
    for name in study.methods:
        for seed in study.seeds:
            if (name, seed) not in known:
                continue
            head = {"method": name, "shift": shift, "intensity": intensity, "seed": seed}
            model, before, before_truth = restore(study, out, name, seed)
            predictive, _ = model.predict(examples.inputs)
            assert isinstance(predictive, Predictive)
            scores += [{**head, **row} for row in _scores(predictive, truth, before, before_truth)]
            if telling:
                curves += [{**head, **row} for row in _curves(predictive, truth)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"scores": scores, "curves": curves}))
    temporary.replace(path)
    return scores, curves


def _use_one(task: tuple[ShiftStudy, Path, str]) -> list[Row]:
    """A method's association windows and regions of interest on nominal events."""
    study, out, name = task
    path = out / "parts" / f"uses-{name}.json"
    if path.is_file():
        stored: list[Row] = json.loads(path.read_text())
        return stored
    path.parent.mkdir(parents=True, exist_ok=True)
    examples = vertex_examples(study.uses, nominal(), library=load(), seed=USE_SEED, split="test")
    model, _, _ = restore(study, out, name, study.seeds[0])
    predictive, outputs = model.predict(examples.inputs)
    assert isinstance(predictive, Predictive)
    rows = uses_table(
        {name: (predictive, outputs)}, examples.inputs, examples.targets, seed=study.seeds[0]
    )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows))
    temporary.replace(path)
    return rows


def restore(
    study: ShiftStudy, out: Path, name: str, seed: int
) -> tuple[Model, Predictive, np.ndarray]:
    """A trained method with what it says of the nominal calibration events, and their truth."""
    folder = out / "models" / f"{name}-{seed}"
    kind = KINDS[study.network]
    architecture = Architecture(kind, {"seed": seed})
    network = converted(name, build(architecture, FACTORIES))
    model = Model(network.eval(), VertexTask(), architecture).with_weights(
        load_file(folder / "weights.safetensors")
    )
    stored = load_file(folder / "nominal.safetensors")
    truth = stored.pop("truth")
    return model, from_arrays(stored), truth


def _scores(
    predictive: Predictive, truth: np.ndarray, before: Predictive, before_truth: np.ndarray
) -> Iterator[Row]:
    """Scores as stated, and after each calibrator that was fitted on nominal events."""
    away = np.abs(predictive.mean - truth)
    found = away < NEAR
    common = {
        "efficiency": float(found.mean()),
        "efficiency_err": share(found).error,
        "auroc": auroc(before.std, predictive.std).value,
        "auroc_failures": auroc(predictive.std[found], predictive.std[~found]).value
        if 0 < found.sum() < len(found)
        else math.nan,
        "auroc_epistemic": math.nan
        if predictive.epistemic is None or before.epistemic is None
        else auroc(before.epistemic, predictive.epistemic).value,
        "mean_std": float(predictive.std.mean()),
        "median_std": float(np.median(predictive.std)),
    }
    stated: Scores = judge(predictive, truth)
    yield {"calibrator": "none", **common, **stated.as_row()}
    scaling = VarianceScaling()
    scaled = scaling.apply(scaling.fit(before, before_truth), predictive)
    yield {"calibrator": "variance-scaling", **common, **judge(scaled, truth).as_row()}
    for label, conformal in (
        ("split-conformal", SplitConformal()),
        ("normalised-conformal", NormalisedConformal()),
    ):
        state = conformal.fit(before, before_truth)
        row: Row = {"calibrator": label, **common, "n": len(truth)}
        for coverage in (0.68, 0.90, 0.95):
            low, high = conformal.interval(state, predictive, coverage)
            inside = (low <= truth) & (truth <= high)
            name = f"{round(100 * coverage)}"
            row[f"coverage_{name}"] = float(inside.mean())
            row[f"coverage_{name}_err"] = float(inside.std() / np.sqrt(len(truth)))
            row[f"width_{name}"] = float((high - low).mean())
        yield row


def _curves(predictive: Predictive, truth: np.ndarray) -> Iterator[Row]:
    """Reliability (share of truths below each stated quantile) and error in bins of stated std."""
    found = reliability(predictive, truth)
    for level, observed, err in zip(*found, strict=True):
        yield {"curve": "reliability", "x": float(level), "y": float(observed), "err": float(err)}
    order = np.argsort(predictive.std, kind="stable")
    away = np.abs(predictive.mean - truth)
    for rows in np.array_split(order, 10):
        yield {
            "curve": "error",
            "x": float(predictive.std[rows].mean()),
            # The quantile that a standard deviation would have: not ruled by a few far failures.
            "y": float(np.quantile(away[rows], 0.6827)),
            "err": float(np.quantile(away[rows], 0.6827) / np.sqrt(2 * len(rows))),
        }


_FORMS: dict[str, tuple[type[Predictive], tuple[str, ...]]] = {
    "mixture": (Mixture, ("means", "variances")),
    "student-t": (StudentT, ("location", "scale", "dof")),
    "quantiles": (QuantileTable, ("levels", "values")),
}


def as_arrays(predictive: Predictive) -> dict[str, np.ndarray]:
    """A predictive distribution as named arrays; `from_arrays` takes them back."""
    for form, (kind, names) in _FORMS.items():
        if isinstance(predictive, kind):
            arrays = {f"{form}/{n}": np.ascontiguousarray(getattr(predictive, n)) for n in names}
            parts = getattr(predictive, "parts", None)
            if parts is not None:
                arrays[f"{form}/aleatoric"], arrays[f"{form}/epistemic"] = parts
            return arrays
    raise ConfigError(f"{type(predictive).__name__} has no stored form")


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Predictive:
    """The predictive distribution that `as_arrays` stored."""
    form = next(iter(arrays)).partition("/")[0]
    kind, names = _FORMS[form]
    held = {name: arrays[f"{form}/{name}"] for name in names}
    if f"{form}/aleatoric" in arrays:
        held["parts"] = (arrays[f"{form}/aleatoric"], arrays[f"{form}/epistemic"])  # type: ignore[assignment]
    return kind(**held)


def _write(path: Path, rows: list[Row]) -> None:
    names = sorted({name for row in rows for name in row})
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
