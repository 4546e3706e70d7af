"""Recursive least squares of the last layer: regression in closed form on a frozen trunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.predictive import Predictive
from stillfit.core.values import Budget, Candidate
from stillfit.models.model import Model
from stillfit.models.networks import WithNoise
from stillfit.models.task import truth
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.training import Prepared
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, Updater, too_few
from stillfit.updaters.online.memory import (
    LEARNED,
    ON,
    check_common,
    not_learned,
    require_finite,
    valid_for,
    with_learned,
)
from stillfit.updaters.online.sgd import finish
from stillfit.updaters.online.trunk import Floats, Trunk

LEAST_VARIANCE = 1e-12  # of the network's own unit: noise below it is none


class Filter(NamedTuple):
    """All that is known of the head's weights w (d,), in square-root form.

    `root` (d + 1, d + 1), upper triangular: root^T root = sum_i f^(n-i) [h_i, z_i]^T [h_i, z_i],
    h the features, z what the head should have given, f the forgetting. `prior` (d,): the weights
    at the start. `unit`: target units per unit of z. `events`: sum of f^(n-i). `missed`: sum of
    f^(n-i) e_i^2 / v_i, e the error made before event i was learned, v the variance stated of it
    at the start. `widened`: the factor on that variance which is served already.
    """

    root: Floats
    prior: Floats
    unit: Floats
    events: Floats
    missed: Floats
    widened: Floats

    @classmethod
    def start(cls, prior: Floats, unit: float) -> Filter:
        d = len(prior)
        zero, one = np.array(0.0), np.array(1.0)
        return cls(np.zeros((d + 1, d + 1)), prior, np.array(unit), zero, zero, one)

    def add(self, h: Floats, z: Floats, stated: Floats, forgetting: float, ridge: float) -> Filter:
        """With events h (n, d), z (n,) in their order too, by one orthogonal decomposition.

        `stated` (n,): the variances of z that were stated at the start.
        """
        n = len(h)
        weights = forgetting ** np.arange(n - 1, -1, -1.0)
        errors = z - h @ self.solved(ridge).weights
        rows = np.concatenate([h, z[:, None]], 1) * np.sqrt(weights)[:, None]
        fade = forgetting**n
        return self._replace(
            root=_triangle(np.concatenate([self.root * math.sqrt(fade), rows])),
            events=self.events * fade + weights.sum(),
            missed=self.missed * fade + weights @ (errors**2 / stated),
        )

    def solved(self, ridge: float) -> Solved:
        """The minimum of sum f^(n-i) (z_i - h_i w)^2 + ridge |w - prior|^2."""
        d = len(self.prior)
        pull = math.sqrt(ridge) * np.concatenate([np.eye(d), self.prior[:, None]], 1)
        whole = _triangle(np.concatenate([self.root, pull]))
        r = whole[:d, :d]
        return Solved(linalg.solve_triangular(r, whole[:d, d]), r, float(whole[d, d]) ** 2)

    def arrays(self) -> dict[str, Array]:
        return self._asdict()


class Solved(NamedTuple):
    """Weights (d,) at the minimum, R with R^T R the curvature there, and the minimum itself."""

    weights: Floats
    root: Floats
    least: float


class Posterior(NamedTuple):
    """Bayesian linear regression: what a filter knows of the head, in the target's unit.

    `weights` (d,), `covariance` (d, d), `noise`: variance of an observation.
    """

    weights: Floats
    covariance: Floats
    noise: float

    def predict(self, h: Floats) -> tuple[Floats, Floats]:
        """Mean and variance (noise included) at features h (n, d), beside the trunk's offset."""
        return h @ self.weights, self.noise + np.einsum("nd,de,ne->n", h, self.covariance, h)


@dataclass(frozen=True, kw_only=True)
class RecursiveLeastSquares(Updater):
    """The mean's row of the last layer by least squares over all events so far, each seen once.

    With the layer's input h (a 1 for its bias) the weights minimise
    sum_i forgetting^(n - i) (z_i - h_i w)^2 + ridge |w - w_0|^2, z in units of the layer's output
    and w_0 the serving weights at the start: with `forgetting` 1 ridge regression over everything,
    with less a Kalman filter of a drifting head that remembers the last 1 / (1 - forgetting)
    events. More `ridge` needs more events to move (huge: frozen); unlike in the textbook form it
    does not fade, so directions that are not seen for long do not blow up. Solved in square-root
    form, once per `block` events; the result does not depend on `block`.

    The stated variance of a network with one (its second output, or `WithNoise`) is multiplied by
    the forgotten mean of (error before learning)^2 / stated variance, which counts what the head
    does not know as well as noise; off with `calibrate=False`. `posterior(learner)` tells the two
    apart: Bayesian linear regression of the last layer.

    The trunk stays as it serves, and where it changes the filter begins anew. Declined where the
    network's mean is no straight line in the last layer's first output (vertex finders).

    Cost per event: the trunk and 2 d^2; per block d^3 / 3. Memory: 8 (d + 1)^2 bytes. Source:
    Haykin, Adaptive Filter Theory (square-root information filter); Bierman 1977,
    ISBN 0120973502; the last layer as Bayesian regression: Snoek et al. 2015, arXiv:1502.05700.
    """

    forgetting: float = 1.0
    ridge: float = 1.0
    block: int = 64
    calibrate: bool = True
    layer: str = ""
    min_events: int = 1
    recall: int = 4096

    def __post_init__(self) -> None:
        check_common(type(self).__name__, self.min_events, self.recall)
        if not 0 < self.forgetting <= 1 or not 0 < self.ridge < math.inf or self.block < 1:
            raise ConfigError(
                f"forgetting must be in (0, 1], ridge above 0 and block at least 1, got "
                f"{self.forgetting}, {self.ridge} and {self.block}"
            )

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        trunk = Trunk.of(serving, self.layer)
        if isinstance(trunk, str) or not len(examples):
            return {}
        found = self._with(trunk, {}, examples)
        return {} if isinstance(found, str) else self._state(found, trunk, {}, examples)

    def update(
        self,
        serving: Model,
        learner: Learner,
        fresh: Examples,
        memory: Memory,
        *,
        budget: Budget,
        rng: np.random.Generator,
    ) -> Candidate[Model] | Declined:
        meter = Meter.start(self, rng)
        trunk = Trunk.of(serving, self.layer)
        if isinstance(trunk, str):
            return Declined(f"there is no head to solve for: {trunk}")
        own = valid_for(learner, _on(trunk))
        new = not_learned(own, fresh)
        few = too_few(new, self.min_events, "recursive least squares")
        if few is not None:
            return few
        require_finite(new)
        found = self._with(trunk, own, new)
        if isinstance(found, str):
            return Declined(f"there is no head to solve for: {found}")
        weight, bias = _layer(trunk)
        solved = found.solved(self.ridge).weights
        weight[0] = solved[: weight.shape[1]]
        if bias is not None:
            bias[0] = solved[-1]
        first = Prepared.of(serving, new.take(slice(0, 1)))
        model, found = self._widened(trunk, found, weight, bias, tensors(first.inputs))
        finish(model, Prepared.of(model, new), rng)
        return meter.finish(model, self._state(found, trunk, own, new), [new], budget)

    def posterior(self, learner: Learner) -> Posterior:
        """The head's weights with their covariance, in the target's unit, from a learner's state.

        The noise variance is the least sum of squares over the number of events.
        """
        known = _filter(learner)
        solved = known.solved(self.ridge)
        unit = float(known.unit)
        noise = unit**2 * solved.least / max(float(known.events), 1e-300)
        inverse = linalg.solve_triangular(solved.root, np.eye(len(solved.root)))
        return Posterior(unit * solved.weights, noise * inverse @ inverse.T, noise)

    def _state(self, found: Filter, trunk: Trunk, own: Learner, new: Examples) -> dict[str, Array]:
        return {**found.arrays(), LEARNED: with_learned(own, new, self.recall), ON: _on(trunk)}

    def _with(self, trunk: Trunk, own: Learner, new: Examples) -> Filter | str:
        """The filter with the new events too, or why it cannot be."""
        model, biased = trunk.model, trunk.bias is not None
        known = _filter(own) if own else None
        for seen, piece in trunk.seen(Prepared.of(model, new)):
            if not isinstance(seen.stated, Predictive):
                return f"{type(model.task).__name__} states classes, not a number"
            if not seen.per_event(piece.n):
                return "the last linear layer does not see one row of features per event"
            found = _line(trunk, tensors(piece.inputs))
            if isinstance(found, str):
                return found
            offset, unit = found
            if known is None:
                weight, bias = _layer(trunk)
                prior = weight[0] if bias is None else np.append(weight[0], bias[0])
                known = Filter.start(prior, unit)
            unit = float(known.unit)
            h, z = seen.phi(biased), (truth(piece.targets, model.task.target) - offset) / unit
            stated = np.maximum(seen.stated.variance / unit**2 / known.widened, LEAST_VARIANCE)
            for first in range(0, piece.n, self.block):
                part = slice(first, first + self.block)
                known = known.add(h[part], z[part], stated[part], self.forgetting, self.ridge)
        assert known is not None
        return known

    def _widened(
        self, trunk: Trunk, found: Filter, weight: Floats, bias: Floats | None, one: Tensors
    ) -> tuple[Model, Filter]:
        """The model of the new layer, its stated variance times the mean of errors over it."""
        factor = max(float(found.missed / found.events), LEAST_VARIANCE)
        log_step = math.log(factor / float(found.widened))
        if self.calibrate and isinstance(trunk.core, WithNoise):
            weights = trunk.with_layer(weight, bias).weights()
            (name,) = _noise(trunk)
            weights[name] = (weights[name] + log_step).astype(weights[name].dtype)
            return trunk.model.with_weights(weights), found._replace(widened=np.array(factor))
        slope = _log_slope(trunk, one) if bias is not None and len(bias) > 1 else 0.0
        if self.calibrate and bias is not None and slope:
            bias[1] += log_step / slope
            found = found._replace(widened=np.array(factor))
        return trunk.with_layer(weight, bias), found


def _filter(learner: Learner) -> Filter:
    return Filter(**{name: learner[name] for name in Filter._fields})


def _triangle(rows: Floats) -> Floats:
    """R of the rows' QR decomposition, square also where there are fewer rows than columns."""
    (r,) = linalg.qr(rows, mode="r", overwrite_a=True, check_finite=False)
    d = rows.shape[1]
    return np.concatenate([r[:d], np.zeros((max(d - len(r), 0), d))])


def _layer(trunk: Trunk) -> tuple[Floats, Floats | None]:
    """Weights (outputs, d) and biases (outputs,) of the last layer, in double, copied."""
    bias = trunk.layer.bias
    weight = trunk.layer.weight.detach().cpu().double().numpy().copy()
    return weight, None if bias is None else bias.detach().cpu().double().numpy().copy()


def _noise(trunk: Trunk) -> list[str]:
    """The stored name of a constant log-variance, which the filter may change, if there is one."""
    if not isinstance(trunk.core, WithNoise):
        return []
    found = {n for n, p in trunk.model.network.named_parameters() if p is trunk.core.log_variance}
    return sorted(found)


def _on(trunk: Trunk) -> Array:
    return trunk.fingerprint(_noise(trunk))


def _line(trunk: Trunk, inputs: Tensors) -> tuple[Floats, float] | str:
    """Offset (n,) and slope of the mean over the last layer's first output, or why it has none."""

    def mean(first: float, others: float) -> Floats:
        def forced(out: Tensor) -> Tensor:
            made = torch.full_like(out, others)
            made[:, 0] = first
            return made

        stated = trunk.pass_over(inputs, forced).stated
        assert isinstance(stated, Predictive)
        return np.asarray(stated.mean, np.float64)

    offset, one, two = mean(0.0, 0.0), mean(1.0, 0.0), mean(2.0, 1.0)
    slopes = one - offset
    unit = float(slopes.mean())
    # The network computes in single precision.
    allowed = 1e-3 * abs(unit) + 1e-6 * float(np.abs(offset).max(initial=0.0))
    if not unit or abs(unit) < allowed:
        return "the last linear layer does not move the mean"
    if max(np.abs(slopes - unit).max(), np.abs(two - offset - 2 * unit).max()) > 3 * allowed:
        return "the mean is no straight line in the last linear layer's first output"
    return offset, unit


def _log_slope(trunk: Trunk, inputs: Tensors) -> float:
    """d log variance / d second output of the last layer; 0 where it is not constant."""

    def log_variance(second: float) -> float:
        def forced(out: Tensor) -> Tensor:
            made = torch.zeros_like(out)
            made[:, 1] = second
            return made

        stated = trunk.pass_over(inputs, forced).stated
        assert isinstance(stated, Predictive)
        return math.log(float(stated.variance[0]))

    at = [log_variance(value) for value in (0.0, 1.0, 2.0)]
    slope = at[1] - at[0]
    straight = abs(at[2] - at[0] - 2 * slope) < 1e-3 * abs(slope)
    return slope if straight and abs(slope) > 1e-3 else 0.0
