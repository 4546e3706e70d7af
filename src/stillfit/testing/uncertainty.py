"""The conformance suite of methods by which a network states its uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture, Predictive, QuantileTable, StudentT
from stillfit.core.seeds import Seeds
from stillfit.models import uncertain
from stillfit.models.likelihood import likelihood_of
from stillfit.models.model import Architecture, Model, load_weights
from stillfit.models.networks import MLP, Standardise
from stillfit.models.task import Answer, Classification, Regression, Task
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.training import Prepared, Schedule, fit
from stillfit.testing.report import Check, Report, Skip, made, owes
from stillfit.uncertainty.methods import Method

Convert: TypeAlias = Callable[[nn.Module], nn.Module]
Stated: TypeAlias = Predictive | Categorical
CLASSES = 3
LONG = Schedule(steps=400, batch=128, rate=0.01)
SHORT = Schedule(steps=15, batch=64, rate=0.01)


def check_uncertainty(
    method: Method | Convert,
    *,
    name: str | None = None,
    seed: int = 0,
    significance: float = 1e-4,
    schedule: Schedule = LONG,
    strict: bool = True,
) -> Report:
    """Convert plain networks by `method`, train them on toys, and check what every method owes.

    `method`: an entry of the catalogue, or any function or class that takes a plain network and
    gives one that states its uncertainty. Regression: y = sin(3 a) + (0.1 + 0.2 |b|) times a
    standard normal, whose truth is known; classification: three classes. A kind of task that the
    method refuses with a `ConfigError` is skipped and says so, but not both of them.

    The values of the trained network's distribution function at 300 new truths must be uniform
    by the test of Kolmogorov and Smirnov: a right method fails with probability `significance`,
    and a distribution function that is off by 0.13 anywhere is found (by half or twice the right
    deviation it is off by 0.16). Dropout and mean-field networks are off by up to 0.1: a little
    too wide, as they are known to be. `schedule`: how networks are trained for that; too short a
    training is found too. `strict`: raise `AssertionError` with the whole report if a check
    failed. All draws come from `seed`.

    Cost: 2 trainings of 400 steps of a small network and a dozen short ones, 1 to 5 s.
    """
    convert = method.convert if isinstance(method, Method) else method
    said = name or (method.name if isinstance(method, Method) else _name_of(method))
    checks: list[Check] = []
    for kind in (_Regression, _Classification):
        checks += kind(
            convert=convert, seed=seed, significance=significance, schedule=schedule
        ).run()
    report = Report(said, tuple(checks))
    if not report.count:
        checks.append(Check("takes a task", "failed", "regression and classification are refused"))
        report = Report(said, tuple(checks))
    if strict and report.failed:
        raise AssertionError(str(report))
    return report


def _name_of(method: object) -> str:
    return str(getattr(method, "__name__", type(method).__name__))


@dataclass(frozen=True, kw_only=True)
class _Suite:
    """The checks that regression and classification share."""

    convert: Convert
    seed: int
    significance: float
    schedule: Schedule = LONG
    kept: list[Model] = field(default_factory=list, repr=False)

    label = ""
    outputs = 2
    rows_trained = 1500

    @property
    def task(self) -> Task:
        raise NotImplementedError

    def draw(self, n: int, name: str) -> Examples:
        raise NotImplementedError

    def own(self) -> dict[str, Callable[[], None]]:
        raise NotImplementedError

    @property
    def model(self) -> Model:
        """The network that is trained well enough to be judged; trained once."""
        if not self.kept:
            self.kept.append(self.trained(self.converted(), self.schedule, self.rows_trained))
        return self.kept[0]

    def run(self, only: str | None = None) -> list[Check]:
        """All checks (or the one) of this kind of task; one skipped line where it is refused."""
        try:
            self.probe()
        except ConfigError as error:
            return [Check(f"{self.label}: all", "skipped", f"refused: {error}")]
        wanted = {
            "shapes": self.shapes,
            "total at least its parts": self.parts,
            "rows do not know each other": self.rows,
            "chunks make no difference": self.chunks,
            "prediction changes nothing": self.untouched,
            "no global randomness in prediction": self.frozen,
            "same seed, same output": self.seeded,
            "another seed, another network": self.differs,
            "the weights hold everything": self.stored,
            "batch-norm buffers unchanged by prediction": self.batch_norm,
            "two constant members disagree": self.members,
            "GPU equals CPU": self.gpu,
            **self.own(),
        }
        return [
            made(f"{self.label}: {name}", check)
            for name, check in wanted.items()
            if only is None or name == only
        ]

    def probe(self) -> None:
        """One loss and one prediction; a `ConfigError` says that this kind of task is refused."""
        examples = self.draw(30, "training")
        network = uncertain.fresh(self.task, self.converted(), examples, self.seed)
        model = Model(network, self.task, Architecture("toy"))
        data = Prepared.of(model, examples)
        uncertain.loss(self.task, network.train(), tensors(data.inputs), tensors(data.targets))
        model.predict(examples.inputs)

    def plain(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return MLP(2, [32, 32], self.outputs)

    def converted(self, plain: nn.Module | None = None) -> nn.Module:
        return self.convert(self.plain() if plain is None else plain)

    def trained(
        self, network: nn.Module, schedule: Schedule, n: int, seed: int | None = None
    ) -> Model:
        examples = self.draw(n, "training")
        own = self.seed if seed is None else seed
        drawn = uncertain.fresh(self.task, network, examples, own)
        model = Model(drawn, self.task, Architecture("toy"))
        fit(model, Prepared.of(model, examples), schedule, Seeds(own).rng("fit"))
        return model

    def stated(self, model: Model, n: int = 64, chunk: int = 512) -> Stated:
        return model.predict(self.draw(n, "prediction").inputs, chunk)[0]

    def shapes(self) -> None:
        model = self.model
        for n in (1, 7):
            predictive = self.stated(model, n)
            owes(len(predictive) == n, f"{n} events gave {len(predictive)} predictions")
            for part in ("std", "aleatoric", "epistemic"):
                value = getattr(predictive, part)
                if value is not None:
                    owes(value.shape == (n,), f"{part} of {n} events has the shape {value.shape}")
                    owes(bool(np.isfinite(value).all()), f"{part} is not finite")
        both = type(predictive).concat([predictive, predictive])  # type: ignore[list-item]
        owes(len(both.take(np.arange(9))) == 9, "two predictions joined cannot be taken from")

    def parts(self) -> None:
        model = self.model
        predictive = self.stated(model)
        total = _total(predictive)
        known = [p for p in (predictive.aleatoric, predictive.epistemic) if p is not None]
        if not known:
            raise Skip("it cannot tell noise from ignorance")
        for part in known:
            owes(bool(np.all(part >= 0)), f"a part is negative: {part.min():.3g}")
            worst = float((part - total * (1 + 1e-6)).max())
            owes(worst <= 1e-9, f"a part exceeds the total by {worst:.3g}")
        if len(known) == 2:
            away = float(np.max(np.abs(sum(known) - total) / total.max()))
            owes(away < 1e-6, f"the parts do not add up to the total, by a share of {away:.3g}")

    def rows(self) -> None:
        model = self.model
        inputs = self.draw(64, "prediction").inputs
        turned = {key: np.asarray(value)[::-1].copy() for key, value in inputs.items()}
        one, other = self.stated(model), model.predict(turned)[0].take(np.arange(64)[::-1])
        _alike(one, other, "events in another order are predicted otherwise")

    def chunks(self) -> None:
        model = self.model
        _alike(self.stated(model), self.stated(model, chunk=5), "chunks of 5 events say otherwise")

    def untouched(self) -> None:
        model = self.model
        before = model.weights()
        self.stated(model)
        _unchanged(before, model.weights())

    def frozen(self) -> None:
        model = self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            one = self.stated(model)
            torch.manual_seed(2)
            other = self.stated(model)
            state = torch.random.get_rng_state()
            self.stated(model)
            moved = not torch.equal(state, torch.random.get_rng_state())
        _alike(one, other, "one version answers twice in two ways", exactly=True)
        owes(not moved, "a prediction draws from torch's global generator")

    def seeded(self) -> None:
        one, other = (self.stated(self.trained(self.converted(), SHORT, 200)) for _ in range(2))
        _alike(one, other, "the same seed trained two networks", exactly=True)

    def differs(self) -> None:
        examples = self.draw(50, "training")
        one, other = (
            uncertain.fresh(self.task, self.converted(), examples, seed) for seed in (1, 2)
        )
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
        owes(not same, "`fresh` draws the same network from any seed")

    def stored(self) -> None:
        model = self.trained(self.converted(), SHORT, 200)
        examples = self.draw(200, "training")
        other = uncertain.fresh(self.task, self.converted(), examples, self.seed + 1)
        load_weights(other, model.weights())
        again = Model(other.eval(), self.task, Architecture("toy"))
        _alike(
            self.stated(model),
            self.stated(again),
            "a network with the stored weights and buffers answers otherwise; "
            "is something frozen that is no buffer?",
        )

    def batch_norm(self) -> None:
        plain = _Normed(self.outputs)
        try:
            model = self.trained(self.converted(plain), SHORT, 200)
        except ConfigError as error:
            raise Skip(f"refused: {error}") from None
        before = model.weights()
        self.stated(model)
        _unchanged(before, model.weights())

    def members(self) -> None:
        said = self.constant(np.array([-1.0, 1.0]))
        parts = said.epistemic
        if parts is None:
            raise Skip("it cannot tell noise from ignorance")
        owes(bool(np.all(parts > 0)), f"their epistemic part is {parts.min():.3g}")

    def constant(self, places: NDArray[np.float64]) -> Stated:
        """What the method states where its passes say constants, at each of `places` in turn."""
        network = uncertain.fresh(self.task, self.converted(), self.draw(50, "training"), self.seed)
        network.eval()
        inputs = tensors(uncertain.prepare(self.task, network, self.draw(4, "x").inputs))
        if not isinstance(network, uncertain.Uncertain):
            raw = self.said(network, places, 4)
            return self.task.state(network, (raw,), inputs)[0]
        if network.n_passes < 2:
            raise Skip("it has one pass and no members")
        raw = self.said(uncertain.core_of(network), np.resize(places, network.n_passes), 4)
        asked: list[Tensors] = []

        def passes(task: Task, inputs: Tensors) -> Answer:
            asked.append(inputs)
            return (raw,)

        network.passes = passes  # type: ignore[method-assign]
        stated, _ = network.predict(self.task, inputs)
        if not asked:
            raise Skip("its prediction is not a mixture of passes")
        return stated

    def said(self, core: nn.Module, places: NDArray[np.float64], n: int) -> Tensor:
        """Raw outputs (m, n, outputs) of members that say the same of every event."""
        raise NotImplementedError

    def gpu(self) -> None:
        model = self.model
        if not torch.cuda.is_available():
            raise Skip("there is no GPU")
        twin = model.copy()
        twin.network.to("cuda").eval()
        inputs = tensors(uncertain.prepare(self.task, twin.network, self.draw(64, "x").inputs))
        moved = {key: v.to("cuda") for key, v in inputs.items() if isinstance(v, Tensor)}
        with torch.inference_mode():
            there, _ = uncertain.predict(self.task, twin.network, moved)
            here, _ = uncertain.predict(self.task, model.network, inputs)
        _alike(here, there, "GPU and CPU disagree", share=1e-3)


class _Regression(_Suite):
    label = "regression"

    @property
    def task(self) -> Regression:
        return Regression(features=("a", "b"))

    def draw(self, n: int, name: str) -> Examples:
        rng = Seeds(self.seed).rng("toy", name)
        a, b = rng.uniform(-1, 1, (2, n))
        y = np.sin(3 * a) + (0.1 + 0.2 * np.abs(b)) * rng.standard_normal(n)
        return _examples(a, b, y)

    def own(self) -> dict[str, Callable[[], None]]:
        return {
            "the probability integral transform is uniform": self.uniform,
            "verbs agree with each other": self.verbs,
            "law of total variance": self.total,
            "better than guessing": self.better,
        }

    def uniform(self) -> None:
        model = self.model
        test = self.draw(300, "test")
        predictive, _ = model.predict(test.inputs)
        assert isinstance(predictive, Predictive)
        values = predictive.cdf(np.asarray(test.targets["y"]))
        found = stats.kstest(values, "uniform")
        owes(
            found.pvalue >= self.significance,
            f"the largest distance of 300 values from uniform is {found.statistic:.3f}, "
            f"p = {found.pvalue:.2g} below {self.significance:g}",
        )

    def better(self) -> None:
        test = self.draw(300, "test")
        predictive, _ = self.model.predict(test.inputs)
        assert isinstance(predictive, Predictive)
        y = np.asarray(test.targets["y"])
        rmse, guessing = float(np.sqrt(np.mean((predictive.mean - y) ** 2))), float(y.std())
        owes(rmse < 0.8 * guessing, f"RMSE {rmse:.3f}, of guessing the mean {guessing:.3f}")

    def verbs(self) -> None:
        model = self.model
        predictive = self.stated(model)
        assert isinstance(predictive, Predictive)
        owes(bool(np.all(predictive.variance > 0)), "a variance is not positive")
        low, high = predictive.interval(0.9)
        owes(bool(np.all(low < high)), "a 90 % interval is empty")
        level = predictive.cdf(predictive.quantile(0.3))
        away = float(np.abs(level - 0.3).max())
        owes(away < 1e-6, f"cdf(quantile(0.3)) is off by {away:.3g}")

    def total(self) -> None:
        places = np.array([-1.0, 0.5, 2.0])
        said = self.constant(places)
        if isinstance(said, QuantileTable):
            raise Skip("quantiles of several passes are averaged, not mixed")
        core = uncertain.core_of(self.converted())
        m = self.passes(places)
        single = [
            likelihood_of(core).predictive(self.said(core, np.array([place]), 4))
            for place in np.resize(places, m)
        ]
        means = np.stack([one.mean for one in single])
        law = np.mean([one.variance for one in single], 0) + means.var(0)
        away = float(np.abs(_total(said) / law - 1).max())
        owes(
            away < 1e-5,
            f"the total variance is {_total(said)[0]:.4g}, the mean of the members' variances and "
            f"the variance of their means together {law[0]:.4g}",
        )

    def passes(self, places: NDArray[np.float64]) -> int:
        network = self.converted()
        return network.n_passes if isinstance(network, uncertain.Uncertain) else len(places)

    def said(self, core: nn.Module, places: NDArray[np.float64], n: int) -> Tensor:
        likelihood = likelihood_of(core)
        unit = torch.tensor(likelihood.unit).expand(n, -1)
        return torch.stack([likelihood.rescale(unit, float(place), 0.5) for place in places])


class _Classification(_Suite):
    label = "classification"
    outputs = CLASSES
    rows_trained = 500

    @property
    def task(self) -> Classification:
        return Classification(features=("a", "b"), classes=CLASSES)

    def draw(self, n: int, name: str) -> Examples:
        rng = Seeds(self.seed).rng("toy", name)
        a, b = rng.uniform(-1, 1, (2, n))
        # Classes by angle, with every tenth label drawn anew.
        y = np.floor((np.arctan2(b, a) / np.pi + 1) / 2 * CLASSES).clip(0, CLASSES - 1)
        return _examples(a, b, np.where(rng.random(n) < 0.1, rng.integers(0, CLASSES, n), y))

    def own(self) -> dict[str, Callable[[], None]]:
        return {
            "probabilities sum to one": self.probabilities,
            "better than guessing": self.better,
        }

    def probabilities(self) -> None:
        model = self.model
        stated = self.stated(model)
        assert isinstance(stated, Categorical)
        shape = stated.probabilities.shape
        owes(shape == (64, CLASSES), f"64 events of {CLASSES} classes gave {shape}")
        away = float(np.abs(stated.probabilities.sum(1) - 1).max())
        owes(away < 1e-6, f"probabilities sum to 1 but for {away:.3g}")

    def better(self) -> None:
        model = self.model
        test = self.draw(400, "test")
        stated, _ = model.predict(test.inputs)
        assert isinstance(stated, Categorical)
        loss = -float(stated.log_prob(np.asarray(test.targets["y"])).mean())
        guessing = float(np.log(CLASSES))
        owes(loss < 0.8 * guessing, f"log loss {loss:.3f}, of guessing {guessing:.3f}")

    def said(self, core: nn.Module, places: NDArray[np.float64], n: int) -> Tensor:
        raw = torch.zeros(len(places), n, CLASSES)
        raw[:, :, 0] = torch.tensor(3 * places, dtype=torch.float32)[:, None]
        return raw


class _Normed(nn.Module):
    """A small network with batch normalisation inside."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Standardise(2),
            nn.Linear(2, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def _examples(a: NDArray[Any], b: NDArray[Any], y: NDArray[Any]) -> Examples:
    n = len(y)
    inputs = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    targets = {"y": y.astype(np.float64)}
    return Examples(np.arange(n), inputs, targets, np.zeros(n), np.full(n, "all"))


def _total(stated: Stated) -> NDArray[np.float64]:
    return stated.entropy if isinstance(stated, Categorical) else stated.variance


def _arrays(stated: Stated) -> list[NDArray[np.float64]]:
    """The numbers of a prediction, its parts included."""
    if isinstance(stated, Categorical):
        return [stated.members]
    if isinstance(stated, Mixture):
        own = [stated.means, stated.variances]
    elif isinstance(stated, StudentT):
        own = [stated.location, stated.scale, stated.dof]
    else:
        own = [stated.quantile(level) for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
    parts = [part for part in (stated.aleatoric, stated.epistemic) if part is not None]
    return [*own, *parts]


def _alike(
    one: Stated, other: Stated, otherwise: str, *, exactly: bool = False, share: float = 1e-4
) -> None:
    """The same numbers; but for `exactly`, up to float32's rounding, a `share` of the largest."""
    for a, b in zip(_arrays(one), _arrays(other), strict=True):
        away = float(np.abs(a - b).max())
        allowed = 0.0 if exactly else share * float(np.abs(a).max())
        owes(away <= allowed, f"{otherwise} (by {away:.3g})")


def _unchanged(before: dict[str, NDArray[Any]], after: dict[str, NDArray[Any]]) -> None:
    moved = [name for name, value in before.items() if not np.array_equal(value, after[name])]
    owes(not moved, f"prediction changed {', '.join(moved)}")
