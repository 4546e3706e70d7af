"""Track quality: a small frozen classifier, genuine against fake, and its 3-bit index.

The track finder adds to each track how genuine it looks. The classifier is trained once on
nominal conditions of this simulation and then frozen (`data/quality.json`), as the real one is, so
that it grows old with the detector like everything downstream of it. Network: 9-12-6-1, ReLU,
logistic output. Evaluation is elementwise in float32 with a fixed order of operations, so that a
track's quality never depends on its neighbours. Cost: 40 ns a track.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stillfit.core.errors import DataError

FEATURES = (
    "chi2rphi",
    "chi2rz",
    "bendchi2",
    "nstub",
    "first_missing",
    "gaps",
    "|eta|",
    "1/pt",
    "|z0|",
)
EDGES = (0.0, 0.1, 0.3, 0.6, 0.85, 0.95, 0.985, 0.995)  # lower edges of the index, probability
FROZEN = Path(__file__).parent / "data" / "quality.json"
_BATCH = 64
_SATURATION = (2.0, 2.0, 1.5)  # of the three chi2s: x / (x + s) needs no logarithm


class Weights(NamedTuple):
    """Layers of the network, float32, inputs as `features` gives them."""

    w_1: NDArray[np.float32]  # (9, 12)
    b_1: NDArray[np.float32]
    w_2: NDArray[np.float32]  # (12, 6)
    b_2: NDArray[np.float32]
    w_3: NDArray[np.float32]  # (6, 1)
    b_3: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How `train` makes a classifier: full passes over balanced fakes and genuine tracks."""

    epochs: int = 30
    batch: int = 1024
    learning_rate: float = 0.01
    seed: int = 1


@lru_cache(maxsize=1)
def frozen() -> Weights:
    """The classifier that is part of the package."""
    return load(FROZEN)


def load(path: Path) -> Weights:
    """Weights from a JSON file that `save` wrote; `DataError` where it is not one."""
    try:
        table: Mapping[str, Any] = json.loads(path.read_text())["weights"]
        weights = Weights(**{name: np.array(table[name], np.float32) for name in Weights._fields})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold a track-quality classifier ({error}); "
            "make one with quality.train and quality.save"
        ) from None
    shapes = {name: getattr(weights, name).shape for name in Weights._fields}
    if shapes != _SHAPES or not all(np.isfinite(part).all() for part in weights):
        raise DataError(f"{path} holds layers of shapes {shapes}, expected finite {_SHAPES}")
    return weights


def save(weights: Weights, path: Path, about: Mapping[str, Any]) -> None:
    """Write weights and what they were trained on, as JSON of at most 9 digits (exact)."""
    table = {
        name: np.vectorize(lambda x: float(f"{x:.9g}"), otypes=[float])(part).tolist()
        for name, part in weights._asdict().items()
    }
    text = {"about": dict(about), "features": FEATURES, "edges": EDGES, "weights": table}
    path.write_text(json.dumps(text, indent=1) + "\n")


_SHAPES = {"w_1": (9, 12), "b_1": (12,), "w_2": (12, 6), "b_2": (6,), "w_3": (6, 1), "b_3": (1,)}


def probability(tracks: Any, weights: Weights | None = None) -> NDArray[np.float32]:
    """The probability that each track is genuine, shape (tracks,).

    `tracks` has the columns chi2rphi, chi2rz, bendchi2, nstub, hitpattern, eta, pt, z0. The
    probability refers to equal numbers of fakes and genuine tracks.
    """
    out = np.empty(len(tracks.pt), np.float32)
    _evaluate(_columns(tracks), weights or frozen(), out)
    return out


def index(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The 3-bit quality index, 0 (fake) to 7 (genuine)."""
    edges = np.array(EDGES[1:], np.float32)
    return np.searchsorted(edges, probabilities, side="right").astype(np.uint8)


def features(tracks: Any) -> NDArray[np.float32]:
    """Inputs of the network, shape (tracks, 9), all of order one."""
    out = np.empty((len(tracks.pt), len(FEATURES)), np.float32)
    _features(_columns(tracks), 0, len(out), out.T)
    return out


def train(tracks: Any, training: Training) -> Weights:
    """A new classifier from simulated tracks with truth (`is_fake`); Adam on the log loss.

    Fakes and genuine tracks weigh the same in sum. Cost: 25 s for 400 k tracks and 10 epochs on
    one core. Errors: `DataError` if only one of the two kinds is there.
    """
    import torch

    fakes = int(tracks.is_fake.sum())
    if fakes in (0, len(tracks.is_fake)):
        raise DataError(
            f"{len(tracks.is_fake)} tracks with {fakes} fakes cannot train a quality classifier; "
            "simulate more events, with fakes"
        )
    inputs = torch.from_numpy(features(tracks))
    genuine = torch.from_numpy(1.0 - tracks.is_fake.astype(np.float32))
    share = float(genuine.mean())
    balance = torch.where(genuine > 0.5, 0.5 / share, 0.5 / (1.0 - share))
    generator = torch.Generator().manual_seed(training.seed)
    shapes = [(9, 12), (12, 6), (6, 1)]
    parts: list[torch.Tensor] = []
    for n_in, n_out in shapes:
        scale = (2.0 / n_in) ** 0.5
        parts += [torch.randn(n_in, n_out, generator=generator) * scale, torch.zeros(n_out)]
    for part in parts:
        part.requires_grad_()
    batch = min(training.batch, len(inputs))
    steps = training.epochs * (len(inputs) // batch)
    adam = torch.optim.Adam(parts, training.learning_rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(training.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for first in range(0, len(order) - batch + 1, batch):
            rows = order[first : first + batch]
            hidden = torch.relu(inputs[rows] @ parts[0] + parts[1])
            hidden = torch.relu(hidden @ parts[2] + parts[3])
            logit = (hidden @ parts[4] + parts[5])[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logit, genuine[rows], balance[rows]
            )
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            plan.step()
    return Weights(*(part.detach().numpy().astype(np.float32) for part in parts))


def _columns(tracks: Any) -> tuple[NDArray[Any], ...]:
    return (
        tracks.chi2rphi,
        tracks.chi2rz,
        tracks.bendchi2,
        tracks.nstub,
        tracks.hitpattern,
        tracks.eta,
        tracks.pt,
        tracks.z0,
    )


@njit(cache=True, nogil=True)
def _features(columns: Any, first: Any, last: Any, out: Any) -> None:
    """Inputs of tracks `first` to `last` into the rows of `out` (9, at least last - first)."""
    chi2rphi, chi2rz, bendchi2, nstub, hitpattern, eta, pt, z0 = columns
    for i in range(last - first):
        t = first + i
        out[0, i] = chi2rphi[t] / (chi2rphi[t] + np.float32(_SATURATION[0]))
        out[1, i] = chi2rz[t] / (chi2rz[t] + np.float32(_SATURATION[1]))
        out[2, i] = bendchi2[t] / (bendchi2[t] + np.float32(_SATURATION[2]))
        out[3, i] = np.float32(0.5) * np.float32(np.int64(nstub[t]) - 5)
        pattern = np.int64(hitpattern[t])
        out[4, i] = np.float32(1 - (pattern & 1))
        highest = 0
        if pattern > 0:
            while pattern >> (highest + 1):
                highest += 1
        # Layers skipped between the first crossing and the last stub.
        out[5, i] = np.float32(0.5) * np.float32(highest + 1 - np.int64(nstub[t]))
        out[6, i] = np.float32(0.4) * abs(eta[t])
        out[7, i] = np.float32(2.0) / pt[t]
        out[8, i] = np.float32(0.1) * abs(z0[t])


@njit(cache=True, nogil=True, error_model="numpy")
def _evaluate(columns: Any, weights: Any, out: Any) -> None:
    """Forward pass, `_BATCH` tracks abreast so that every operation fills the vector unit."""
    one = np.float32(1.0)
    zero = np.float32(0.0)
    x = np.zeros((9, _BATCH), np.float32)
    h_1 = np.zeros((12, _BATCH), np.float32)
    h_2 = np.zeros((6, _BATCH), np.float32)
    logit = np.zeros(_BATCH, np.float32)
    for first in range(0, len(out), _BATCH):
        last = min(first + _BATCH, len(out))
        _features(columns, first, last, x)
        for j in range(12):
            h = h_1[j]
            h[:] = weights.b_1[j]
            for k in range(9):
                w, row = weights.w_1[k, j], x[k]
                for i in range(_BATCH):
                    h[i] += w * row[i]
            for i in range(_BATCH):
                h[i] = max(h[i], zero)
        for j in range(6):
            h = h_2[j]
            h[:] = weights.b_2[j]
            for k in range(12):
                w, row = weights.w_2[k, j], h_1[k]
                for i in range(_BATCH):
                    h[i] += w * row[i]
            for i in range(_BATCH):
                h[i] = max(h[i], zero)
        logit[:] = weights.b_3[0]
        for k in range(6):
            w, row = weights.w_3[k, 0], h_2[k]
            for i in range(_BATCH):
                logit[i] += w * row[i]
        for i in range(last - first):
            out[first + i] = one / (one + np.exp(-logit[i]))
