"""Do intervals keep their coverage while the noise grows? Calibrators on one gradual drift.

A network states its noise rightly on the day of its calibration; then the noise grows along the
stream, and labels come late. Each calibrator is fitted before the drift; the online ones go on
learning. What is judged is the coverage of the intervals as they were served, over every window
of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Floats, Mixture
from stillfit.core.seeds import Seeds
from stillfit.uncertainty.calibrators import (
    ACI,
    Calibrator,
    ConformalQuantile,
    NExCP,
    NormalisedConformal,
    OnlineCalibrator,
    SplitConformal,
    VarianceScaling,
)
from stillfit.uncertainty.checks import coverage_asked

COVERAGES = (0.68, 0.9, 0.95)
# Each twice the one before, as in arXiv:2208.08401.
STEPS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
TRUTH = "true noise known"  # no calibrator can do better; what it shows is chance


@dataclass(frozen=True, kw_only=True)
class GradualDrift:
    """A stream of `rows` whose noise grows from 1 to `growth` times its nominal size.

    x is uniform in (-1, 1) and y = sin(3 x) + bias + g s(x) times a standard normal, with
    s = 0.2 + 0.3 |x|. The network states sin(3 x) and s(x): right, as long as g = 1 and the bias
    is 0. After the first `calm` rows, g grows geometrically and the bias (in units of s) linearly
    up to the last row. `calibration`: nominal rows before the stream. `late`: rows between a
    prediction and its label. `batch`: rows served, and labels learned from, at a time.
    """

    rows: int = 20_000
    calm: int = 4000
    calibration: int = 1000
    growth: float = 4.0
    bias: float = 0.0
    late: int = 200
    batch: int = 50

    def __post_init__(self) -> None:
        if not self.growth > 0:
            raise ConfigError(f"growth must be a positive factor on the noise, got {self.growth}")
        if not 0 <= self.calm < self.rows:
            raise ConfigError(f"a stream of {self.rows} rows cannot begin with {self.calm} calm")
        if self.batch < 1 or self.late < 0:
            raise ConfigError(
                f"batch must be 1 row or more and late 0 or more, got {self.batch} and {self.late}"
            )

    def ramp(self) -> Floats:
        """How far the drift has gone at each row, 0 to 1, shape (rows,)."""
        return np.clip((np.arange(self.rows) - self.calm) / (self.rows - self.calm), 0, 1)

    def noise(self) -> Floats:
        """Growth of the noise at each row, shape (rows,)."""
        return np.asarray(self.growth ** self.ramp())

    def draw(self, seed: int) -> Stream:
        """The calibration rows and the stream of this seed."""
        seeds = Seeds(seed)
        told, y = _rows(np.ones(self.calibration), np.zeros(self.calibration), seeds, "calibration")
        served, truths = _rows(self.noise(), self.bias * self.ramp(), seeds, "stream")
        return Stream(told, y, served, truths)


class Stream(NamedTuple):
    """Predictions and truths before the drift, and along it."""

    told: Mixture
    y: Floats
    served: Mixture
    truths: Floats


def _rows(noise: Floats, bias: Floats, seeds: Seeds, name: str) -> tuple[Mixture, Floats]:
    rng = seeds.rng("online calibration", name)
    x = rng.uniform(-1, 1, len(noise))
    deviation = 0.2 + 0.3 * np.abs(x)
    truths = np.sin(3 * x) + deviation * (bias + noise * rng.standard_normal(len(noise)))
    return Mixture.gaussian(np.sin(3 * x), deviation**2), truths


def standard(late: int = 0) -> dict[str, Calibrator[Any]]:
    """The calibrators of the study by name; those that are fitted once come first.

    `late`: rows by which labels come late, told to those calibrators that can make up for it.
    """
    return {
        "variance scaling": VarianceScaling(),
        "split conformal": SplitConformal(coverages=COVERAGES),
        "normalised conformal": NormalisedConformal(coverages=COVERAGES),
        "conformal quantile": ConformalQuantile(coverages=COVERAGES),
        "sliding window": ACI(steps=(0.0,), coverages=COVERAGES),
        "NExCP": NExCP(coverages=COVERAGES),
        "ACI": ACI(coverages=COVERAGES),
        "ACI, delay known": ACI(late=late, coverages=COVERAGES),
        "ACI, mixed steps": ACI(steps=STEPS, late=late, coverages=COVERAGES),
    }


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Coverage and width of one calibrator along the stream, one line per seed.

    `rolling`: coverage of every window of rows, (seeds, rows - window + 1). `widths`: of each
    row's interval over that of the true noise, (seeds, rows).
    """

    rolling: Floats
    widths: Floats


def study(
    drift: GradualDrift | None = None,
    *,
    coverage: float = 0.9,
    window: int = 1000,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    calibrators: Mapping[str, Calibrator[Any]] | None = None,
) -> dict[str, Tracked]:
    """Rolling coverage of each calibrator, and of the true noise, on `drift` of each seed.

    A window of n independent rows has a coverage whose standard deviation is
    sqrt(coverage (1 - coverage) / n): 0.95 % for 90 % and 1000 rows, so that the extremes over a
    stream of 20 windows stray by 3 % even where the true noise is known.
    Cost: ~2 s for the standard calibrators and five seeds, once compiled.
    """
    drift = GradualDrift() if drift is None else drift
    if not 1 <= window <= drift.rows:
        raise ConfigError(f"a window of {window} rows does not fit {drift.rows} rows of stream")
    coverage_asked(coverage)
    chosen = standard(drift.late) if calibrators is None else calibrators
    hits: dict[str, list[Floats]] = {name: [] for name in (TRUTH, *chosen)}
    widths: dict[str, list[Floats]] = {name: [] for name in hits}
    for seed in seeds:
        stream = drift.draw(seed)
        low, high = _best(drift, stream, coverage)
        ends = {name: serve(c, drift, stream, coverage) for name, c in chosen.items()}
        for name, (a, b) in {TRUTH: (low, high), **ends}.items():
            hits[name].append(((a <= stream.truths) & (stream.truths <= b)).astype(np.float64))
            widths[name].append((b - a) / (high - low))
    return {
        name: Tracked(rolling=rolling(np.stack(hits[name]), window), widths=np.stack(widths[name]))
        for name in hits
    }


def _best(drift: GradualDrift, stream: Stream, coverage: float) -> tuple[Floats, Floats]:
    """The central interval of the true noise about the true mean."""
    nominal = stream.served.std
    mean = stream.served.mean + drift.bias * drift.ramp() * nominal
    return Mixture.gaussian(mean, (drift.noise() * nominal) ** 2).interval(coverage)


def serve(
    calibrator: Calibrator[Any], drift: GradualDrift, stream: Stream, coverage: float
) -> tuple[Floats, Floats]:
    """Ends of the intervals as they were served, each shape (rows,): labels come `late`."""
    state = calibrator.fit(stream.told, stream.y)
    if not isinstance(calibrator, OnlineCalibrator):
        return calibrator.interval(state, stream.served, coverage)
    lows, highs, learned = [], [], 0
    for start in range(0, drift.rows, drift.batch):
        known = max(learned, start - drift.late)
        rows = slice(learned, known)
        state = calibrator.update(state, stream.served.take(rows), stream.truths[rows])
        learned = known
        now = slice(start, start + drift.batch)
        low, high = calibrator.interval(state, stream.served.take(now), coverage)
        lows.append(low)
        highs.append(high)
    return np.concatenate(lows), np.concatenate(highs)


def rolling(values: Floats, window: int) -> Floats:
    """Means of every `window` neighbours along the last axis, (..., n - window + 1)."""
    sums = np.cumsum(values, axis=-1, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)
    return np.asarray((sums[..., window:] - sums[..., :-window]) / window)


def table(
    tracked: Mapping[str, Tracked], *, band: tuple[float, float] = (0.87, 0.93)
) -> list[dict[str, str | float]]:
    """One row per calibrator; shares in percent, over all seeds and windows.

    `kept`: seeds whose every window lies in `band`. `lowest`, `highest`: of any window. `mean`,
    `mean_err`: of the whole stream, the error from the seeds. `last`: of the last window. `width`,
    `width_err`: mean ratio to the interval of the true noise; a restless calibrator pays with
    width for the same coverage.
    """
    lines: list[dict[str, str | float]] = []
    for name, seen in tracked.items():
        windows = seen.rolling
        whole = 100 * windows.mean(1)
        width = seen.widths.mean(1)
        root = np.sqrt(len(whole))
        lines.append(
            {
                "calibrator": name,
                "kept": float(
                    100 * np.mean((windows.min(1) >= band[0]) & (windows.max(1) <= band[1]))
                ),
                "lowest": float(100 * windows.min()),
                "highest": float(100 * windows.max()),
                "mean": float(whole.mean()),
                "mean_err": float(whole.std(ddof=1) / root) if len(whole) > 1 else float("nan"),
                "last": float(100 * windows[:, -1].mean()),
                "width": float(width.mean()),
                "width_err": float(width.std(ddof=1) / root) if len(whole) > 1 else float("nan"),
            }
        )
    return lines


def as_text(lines: Sequence[Mapping[str, str | float]]) -> str:
    """The table in aligned columns, for a terminal or a page."""
    head = (
        f"{'calibrator':22} {'kept':>5} {'lowest':>7} {'highest':>8} {'mean':>12} {'last':>6} "
        f"{'width':>13}"
    )
    body = [
        f"{line['calibrator']:22} {line['kept']:5.0f} {line['lowest']:7.1f} {line['highest']:8.1f} "
        f"{line['mean']:6.1f} +-{line['mean_err']:4.1f} {line['last']:6.1f} "
        f"{line['width']:6.3f} +-{line['width_err']:6.3f}"
        for line in lines
    ]
    return "\n".join([head, *body])
