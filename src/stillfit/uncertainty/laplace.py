"""Last-layer Laplace: how far the last layer's weights are known, from the curvature of the loss.

The network is trained as always; afterwards the weights of its last linear layer get a Gaussian
posterior about their values, the other layers being taken as features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, optimize
from torch import Tensor, nn
from torch.nn import functional

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.predictive import Categorical, Mixture
from stillfit.models.likelihood import GAUSSIAN, GaussianLikelihood, Likelihood, likelihood_of
from stillfit.models.networks import WithNoise, copy_network
from stillfit.models.task import Answer, Task
from stillfit.models.tensors import Tensors, tensors
from stillfit.models.training import Prepared, Schedule
from stillfit.models.uncertain import Stated, Uncertain
from stillfit.uncertainty.heads import Crps, HasHead
from stillfit.uncertainty.hooks import heard_from, last_linear, listening, plain

Floats: TypeAlias = NDArray[np.float64]
Structure: TypeAlias = Literal["full", "diagonal"]

# A full matrix of more weights would take minutes to decompose and tens of megabytes to store.
MOST = 2500
PRIOR_REACH = (-15.0, 15.0)  # natural logarithm of the prior precision that the evidence may choose


class _Seen(NamedTuple):
    """One chunk at the last layer: its input with a 1 for the bias, and what came out."""

    features: Tensor  # (n, d)
    out: Tensor  # (n, outputs)
    answer: Tensor  # (n, ...): the task's first, of which `out` is the source


class LastLayerLaplace(Uncertain):
    """A network with a Gaussian posterior of its last layer's weights, fitted after training.

    With the layer's input phi (and a 1 for its bias) and H the curvature of the negative
    log-likelihood over all n training events, the posterior covariance is S = (H + p I)^-1, or of
    the diagonals alone. The prior precision p is `prior_precision`, or None for the one that
    maximises the evidence log Z = -p |w|^2 / 2 + (k log p - log det(H + p I)) / 2 + const.

    Regression: the last layer's first output is the mean of a Gaussian likelihood with sigma_i of
    each event; H = sum_i s^2 phi phi^T / sigma_i^2, where s is the unit of the mean per unit of
    that output. Prediction, in closed form: one Gaussian, aleatoric the network's own variance,
    epistemic s^2 phi^T S phi. The posterior is of the mean alone, not of sigma.

    Classification: H = sum_i (diag(p_i) - p_i p_i^T) x phi phi^T, the generalised Gauss-Newton.
    `link="samples"`: `samples` sets of weights, drawn once when it is fitted and frozen, give the
    members; one matrix product, no generator at inference. `"probit"`: p_c in proportion to
    1 / sum_k exp(-(z_c - z_k) / sqrt(1 + pi/8 var(z_c - z_k))), one member, which cannot tell
    noise from ignorance. (Over the variance of each logit alone, as is common, the direction that
    adds the same to all logits, of which the data know nothing, would flatten every answer.)

    `layer`: name of the last linear layer if it is not the last module. `classification`: None
    takes a network without a likelihood and of other than two outputs for a classifier; say True
    for one of two classes. A vertex network whose event head states no mean gets a `CrpsHead`
    first. Before `finish` it states what the network states.

    Cost: one extra product phi^T S phi per event (d^2, diagonal: d). `full` up to 2500 weights.
    Source: Daxberger et al. 2021, arXiv:2106.14806; evidence: MacKay 1992,
    doi:10.1162/neco.1992.4.3.415; probit of differences: Lu et al. 2020,
    arXiv:2006.07584.
    """

    fitted: Tensor
    root: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        structure: Structure = "full",
        *,
        prior_precision: float | None = None,
        link: Literal["samples", "probit"] = "samples",
        samples: int = 20,
        classification: bool | None = None,
        layer: str | None = None,
    ) -> None:
        super().__init__()
        if structure not in ("full", "diagonal") or link not in ("samples", "probit"):
            raise ConfigError(
                "structure must be 'full' or 'diagonal' and link 'samples' or 'probit', got "
                f"{structure!r} and {link!r}"
            )
        if prior_precision is not None and not (0 < prior_precision < math.inf):
            raise ConfigError(
                f"prior_precision must be positive, or None for the evidence's, "
                f"got {prior_precision}"
            )
        if samples < 2:
            raise ConfigError(f"two or more samples are needed to differ, got {samples}")
        self.structure, self.prior_precision = structure, prior_precision
        self.link, self.samples = link, samples
        self.network = _with_mean(copy_network(plain(network, "LastLayerLaplace")), layer)
        self.layer, last = last_linear(self.network, layer)
        stated = getattr(self.network, "likelihood", None)
        # Two outputs are a Gaussian's unless the network says otherwise; `WithNoise` adds one.
        numbers = (
            isinstance(stated, Likelihood)
            or isinstance(self.network, WithNoise)
            or last.out_features == GAUSSIAN.outputs
        )
        self.classification = not numbers if classification is None else classification
        if not self.classification and not isinstance(
            likelihood_of(self.network), GaussianLikelihood
        ):
            raise ConfigError(
                f"a last-layer Laplace needs a Gaussian likelihood, {type(stated).__name__} has no "
                "curvature of the mean in closed form; give the network a GaussianHead"
            )
        self.biased = last.bias is not None
        inputs = last.in_features + self.biased
        outputs = last.out_features if self.classification else 1
        if structure == "full" and inputs * outputs > MOST:
            raise ConfigError(
                f"the full covariance of {inputs * outputs} weights is too large (at most {MOST}); "
                "ask for structure='diagonal'"
            )
        self.register_buffer("root", torch.zeros(self._shape(inputs, outputs)))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("precision", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    precision: Tensor

    def _shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """Of `root`, the layer's inputs last: the samples' deviations, or R of `Posterior`."""
        if self.classification and self.link == "samples":
            return (self.samples, outputs, inputs)
        return (outputs, *((outputs * inputs,) if self.structure == "full" else ()), inputs)

    @property
    def core(self) -> nn.Module:
        return self.network

    @property
    def n_passes(self) -> int:
        return 1

    def fresh(self, task: Task, examples: Examples, seed: int) -> LastLayerLaplace:
        twin = copy_network(self)
        twin.network = task.fresh(self.network, examples, seed)
        twin.root.zero_()
        twin.scale.fill_(1)
        twin.precision.fill_(1)
        twin.fitted.fill_(False)
        return twin

    def passes(self, task: Task, inputs: Tensors) -> Answer:
        """One pass; of a fitted classifier the logits of all samples, or their probit."""
        return self._pass(task, inputs)[0]

    def _pass(self, task: Task, inputs: Tensors) -> tuple[Answer, Tensor]:
        with listening(self.network, (self.layer,), inputs=True) as heard:
            answer = tuple(part[None] for part in task.answer(self.network, inputs))
        features = self._features(heard)
        if not (self.classification and self.fitted):
            return answer, features
        logits = answer[0]
        if self.link == "samples":
            moved = logits + self._through(features, self.root).permute(1, 0, 2)
        else:
            moved = self._probit(logits, features)
        return (moved, *answer[1:]), features

    def predict(self, task: Task, inputs: Tensors) -> Stated:
        answer, features = self._pass(task, inputs)
        predictive, outputs = task.state(self.network, answer, inputs)
        if isinstance(predictive, Categorical) or not self.fitted:
            return predictive, outputs
        variance = self._variance(features)[:, 0].double().cpu().numpy()
        ignorance = float(self.scale) ** 2 * variance
        return Mixture.from_parts(predictive.mean, predictive.variance, ignorance), outputs

    def _through(self, features: Tensor, weights: Tensor) -> Tensor:
        """(n, ...) of features (n, d) through `weights` (..., d), of which the last is the bias."""
        flat = weights.reshape(-1, weights.shape[-1]).to(features)
        if self.biased:
            out = functional.linear(features, flat[:, :-1], flat[:, -1])
        else:
            out = functional.linear(features, flat)
        return out.reshape(len(features), *weights.shape[:-1])

    def _variance(self, features: Tensor) -> Tensor:
        """phi^T S phi of each output, (n, outputs)."""
        if self.structure == "diagonal":
            return self._through(features**2, self.root**2)
        return (self._through(features, self.root) ** 2).sum(-1)

    def _probit(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits of -log sum_k exp(-(z_c - z_k) / sqrt(1 + pi/8 var(z_c - z_k)))."""
        if self.structure == "diagonal":
            each = self._variance(features)
            apart = each[:, :, None] + each[:, None, :]
        else:
            parts = self._through(features, self.root)
            apart = ((parts[:, :, None] - parts[:, None, :]) ** 2).sum(-1)
        away = logits[..., :, None] - logits[..., None, :]
        return -torch.logsumexp(-away / torch.sqrt(1 + math.pi / 8 * apart), -1)

    def _features(self, heard: dict[str, Tensor]) -> Tensor:
        value = heard_from(heard, self.layer, self.network)
        if value.ndim != 2:
            raise ShapeError(
                f"the input of layer {self.layer!r} must be (n, features), got "
                f"{tuple(value.shape)}; a last layer per item has no Laplace per event"
            )
        return value

    def finish(
        self,
        task: Task,
        data: Prepared,
        schedule: Schedule,
        rng: np.random.Generator,
        *,
        start: nn.Module | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """The posterior from all events in one pass; `rng` draws the samples, if any."""
        self.network.eval()
        self._agree(task, data)
        look = self._of_classes if self.classification else self._of_mean
        curvature = look(task, data)
        if not np.all(np.isfinite(curvature)):
            raise DataError("the curvature is not finite; did the network diverge?")
        _, last = last_linear(self.network, self.layer)
        rows = last.out_features if self.classification else 1
        weights = last.weight[:rows]
        if last.bias is not None:
            weights = torch.cat([weights, last.bias[:rows, None]], 1)
        posterior = Posterior.of(
            curvature, weights.detach().cpu().double().numpy().ravel(), self.prior_precision
        )
        if self.classification and self.link == "samples":
            root = posterior.sample(self.samples, rng).reshape(self.samples, rows, -1)
        else:
            root = posterior.roots(rows)
        self.root.copy_(torch.from_numpy(root))
        self.precision.fill_(posterior.precision)
        self.fitted.fill_(True)

    @torch.no_grad()
    def _agree(self, task: Task, data: Prepared) -> None:
        """`ConfigError` where the task is not about what the network was taken for."""
        inputs = tensors(data.take(slice(0, 1)).inputs)
        answer = tuple(part[None] for part in task.answer(self.network, inputs))
        classes = isinstance(task.state(self.network, answer, inputs)[0], Categorical)
        if classes != self.classification:
            taken, found = ("classes", "numbers") if self.classification else ("numbers", "classes")
            raise ConfigError(
                f"{type(self.network).__name__} was taken for a network of {taken} and its task is "
                f"about {found}: say LastLayerLaplace(..., classification={classes})"
            )

    def _look(self, task: Task, data: Prepared) -> Iterator[_Seen]:
        """All events at the last layer, in double, chunk by chunk, with its output as a leaf."""
        _, last = last_linear(self.network, self.layer)
        outs: list[Tensor] = []

        def leaf(module: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> Tensor:
            outs.append(given.detach().requires_grad_())
            return outs[-1]

        for piece in data.chunks():
            outs.clear()
            with listening(self.network, (self.layer,), inputs=True) as heard:
                hook = last.register_forward_hook(leaf)
                try:
                    answer = task.answer(self.network, tensors(piece.inputs))
                finally:
                    hook.remove()
            features = self._features(heard).detach()
            if self.biased:
                features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
            yield _Seen(features, outs[-1], answer[0])

    def _of_mean(self, task: Task, data: Prepared) -> Floats:
        """H of the mean's weights, (d, d) or its diagonal, and `scale`."""
        likelihood = likelihood_of(self.network)
        assert isinstance(likelihood, GaussianLikelihood)
        total: Floats | float = 0.0
        units: list[Tensor] = []
        for seen in self._look(task, data):
            mean, log_variance = likelihood.split(seen.answer)
            (slope,) = torch.autograd.grad(mean.sum(), seen.out)
            if bool((slope[:, 1:] != 0).any()):
                raise ConfigError(
                    f"the mean of {type(self.network).__name__} depends on more outputs of layer "
                    f"{self.layer!r} than the first, which alone has a posterior here"
                )
            units.append(slope[:, 0])
            phi = seen.features.double() * slope[:, :1].double()
            phi = phi * torch.exp(-0.5 * log_variance.detach().double())[:, None]
            total = total + _products(phi, self.structure)
        unit = torch.cat(units)
        # Events without tracks have a position that no weight moves.
        moved = unit[unit != 0]
        if not len(moved):
            raise ConfigError(
                f"layer {self.layer!r} of {type(self.network).__name__} does not move the mean; "
                "give the network a GaussianHead"
            )
        if float((moved - moved[0]).abs().max()) > 1e-4 * float(moved[0].abs()):
            raise ConfigError(
                f"the mean of {type(self.network).__name__} is no fixed multiple of the first "
                f"output of layer {self.layer!r}; a last-layer Laplace needs one that is"
            )
        self.scale.fill_(float(moved[0]))
        return np.asarray(total)

    def _of_classes(self, task: Task, data: Prepared) -> Floats:
        """H of all weights, (c d, c d), or its diagonal."""
        total: Floats | float = 0.0
        for seen in self._look(task, data):
            if seen.answer.shape != seen.out.shape or not torch.equal(seen.answer, seen.out):
                raise ConfigError(
                    f"layer {self.layer!r} of {type(self.network).__name__} does not give the "
                    "logits themselves; name the layer that does"
                )
            p = torch.softmax(seen.answer.detach().double().cpu(), 1)
            phi = seen.features.double().cpu()
            if self.structure == "diagonal":
                total = total + ((p * (1 - p)).T @ phi**2).cpu().numpy().ravel()
                continue
            classes, d = p.shape[1], phi.shape[1]
            whole = torch.zeros((classes, d, classes, d), dtype=torch.float64)
            for a in range(classes):
                for b in range(a + 1):
                    weight = p[:, a] * (float(a == b) - p[:, b])
                    whole[a, :, b] = whole[b, :, a] = (phi * weight[:, None]).T @ phi
            total = total + whole.reshape(classes * d, classes * d).numpy()
        return np.asarray(total)


class Posterior(NamedTuple):
    """(H + p I)^-1 by the eigenvalues of H: `vectors` (k, k), or None where H is diagonal."""

    values: Floats
    vectors: Floats | None
    precision: float

    @classmethod
    def of(cls, curvature: Floats, weights: Floats, precision: float | None) -> Posterior:
        """From H (k, k) or its diagonal (k,), the weights (k,), and p, or None for the best p."""
        if curvature.ndim == 1:
            values, vectors = curvature, None
        else:
            values, vectors = linalg.eigh(curvature)
        values = np.maximum(values, 0)  # rounding
        if precision is None:
            precision = best_precision(values, float(weights @ weights))
        return cls(values, vectors, precision)

    @property
    def _deviations(self) -> Floats:
        return np.asarray(1 / np.sqrt(self.values + self.precision))

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """`n` draws of the weights' deviations, (n, k)."""
        drawn = rng.standard_normal((n, len(self.values))) * self._deviations
        return drawn if self.vectors is None else drawn @ self.vectors.T

    def roots(self, outputs: int) -> Floats:
        """R with R^T R the covariance, as (outputs, k, d); its deviations (outputs, d) if diagonal.

        The covariance of the weights of outputs a and b is R[a]^T R[b].
        """
        d = len(self.values) // outputs
        if self.vectors is None:
            return self._deviations.reshape(outputs, d)
        root = (self.vectors * self._deviations).reshape(outputs, d, -1)
        return np.ascontiguousarray(root.transpose(0, 2, 1))


def best_precision(values: Floats, size: float) -> float:
    """The prior precision that maximises the evidence, given H's eigenvalues and |w|^2."""

    def loss(log_precision: float) -> float:
        p = math.exp(log_precision)
        return 0.5 * (p * size - float((log_precision - np.log(values + p)).sum()))

    found = optimize.minimize_scalar(loss, bounds=PRIOR_REACH, method="bounded")
    return math.exp(float(found.x))


def _products(phi: Tensor, structure: Structure) -> Floats:
    squares = phi.T @ phi if structure == "full" else (phi**2).sum(0)
    return np.asarray(squares.cpu().numpy())


def _with_mean(network: nn.Module, layer: str | None) -> nn.Module:
    """A network with a head of its own gets a Gaussian one if that has no output for the mean.

    By the CRPS: on vertices, the likelihood gives every event the sigma of the few failures.
    """
    if not isinstance(network, HasHead) or layer is not None:
        return network
    _, last = last_linear(network)
    return network if last.out_features == GAUSSIAN.outputs else network.with_head(Crps())
