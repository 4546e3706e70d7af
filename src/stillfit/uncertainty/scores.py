"""How good a stated uncertainty is: one row of figures per method, each with its standard error.

Standard errors take the rows as independent. On a stream with serial correlation they are too
small: give the per-row scores to `core.serial.mean_error` there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Categorical, Floats, Predictive
from stillfit.uncertainty.checks import classes, spread, targets

COVERAGES = (0.68, 0.90, 0.95)
ENCE_BINS = 10
ECE_BINS = 15
JACKKNIFE = 20  # blocks of rows left out in turn
Measure: TypeAlias = Literal["rmse", "mae"]


class Score(NamedTuple):
    """A figure and its standard error, NaN where it cannot be estimated."""

    value: float
    err: float


class Reliability(NamedTuple):
    """Observed share of truths below the quantile of each level, with its binomial error."""

    levels: Floats
    observed: Floats
    err: Floats


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Figures of a predictive distribution; units are those of y unless said otherwise.

    `nll`: nats per row, infinite where a truth lies outside a quantile table. `ence_noise`: the
    ENCE that perfectly calibrated Gaussians would show with as many rows. `ause_rmse`, `ause_mae`:
    fractions of the error of all rows. `coverage`, `width`: at `COVERAGES`.
    """

    n: int
    rmse: Score
    mae: Score
    nll: Score
    crps: Score
    ence: Score
    ence_noise: float
    ause_rmse: Score
    ause_mae: Score
    coverage: tuple[Score, ...]
    width: tuple[Score, ...]

    def as_row(self) -> dict[str, float]:
        """Flat columns: `rmse`, `rmse_err`, ..., `coverage_90`, `coverage_90_err`, ..."""
        return _row(self)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Figures of class probabilities. `log_loss`: nats; `brier`: summed over classes, 0 to 2."""

    n: int
    accuracy: Score
    log_loss: Score
    brier: Score
    ece: Score

    def as_row(self) -> dict[str, float]:
        """Flat columns: `accuracy`, `accuracy_err`, ..."""
        return _row(self)


def _row(scores: Scores | ClassScores) -> dict[str, float]:
    row: dict[str, float] = {}
    for field in fields(scores):
        held = getattr(scores, field.name)
        if isinstance(held, Score):
            row[field.name], row[f"{field.name}_err"] = held
        elif isinstance(held, tuple):
            for coverage, score in zip(COVERAGES, held, strict=True):
                name = f"{field.name}_{round(100 * coverage)}"
                row[name], row[f"{name}_err"] = score
        else:
            row[field.name] = held
    return row


@overload
def judge(predictive: Predictive, y: ArrayLike) -> Scores: ...
@overload
def judge(predictive: Categorical, y: ArrayLike) -> ClassScores: ...
def judge(predictive: Predictive | Categorical, y: ArrayLike) -> Scores | ClassScores:
    """All scores of `predictive` at the truths `y` (classes as integers for a `Categorical`).

    Cost: a few sorts of the rows; for mixtures six quantiles, which are found by bisection and
    dominate. Errors: `ShapeError`, `DataError` for missing targets or a spread of zero.
    """
    if isinstance(predictive, Categorical):
        return _judge_classes(predictive, y)
    truths = targets(y, predictive.mean.shape)
    deviations = spread(predictive).ravel()
    errors = np.abs(truths - predictive.mean).ravel()
    bounds = [predictive.interval(coverage) for coverage in COVERAGES]
    inside = [(low <= truths) & (truths <= high) for low, high in bounds]
    bins = min(ENCE_BINS, max(1, errors.size // 2))
    return Scores(
        n=errors.size,
        rmse=root(mean(errors**2)),
        mae=mean(errors),
        nll=mean(-predictive.log_prob(truths)),
        crps=mean(predictive.crps(truths)),
        ence=ence(deviations, errors, bins=bins),
        ence_noise=float(np.sqrt(bins / (np.pi * errors.size))),
        ause_rmse=ause(deviations, errors, measure="rmse"),
        ause_mae=ause(deviations, errors, measure="mae"),
        coverage=tuple(mean(hit) for hit in inside),
        width=tuple(mean(high - low) for low, high in bounds),
    )


def _judge_classes(predictive: Categorical, y: ArrayLike) -> ClassScores:
    probabilities = predictive.probabilities
    truths = classes(y, len(predictive))
    losses = -predictive.log_prob(truths)
    hot = truths[:, None] == np.arange(probabilities.shape[1])
    right = probabilities.argmax(1) == truths
    return ClassScores(
        n=len(truths),
        accuracy=mean(right),
        log_loss=mean(losses),
        brier=mean(((probabilities - hot) ** 2).sum(1)),
        ece=ece(probabilities.max(1), right),
    )


def mean(rows: ArrayLike) -> Score:
    """Mean over independent rows and its standard error."""
    values = np.asarray(rows, np.float64).ravel()
    average = float(values.mean())
    if values.size < 2 or not np.isfinite(average):
        return Score(average, np.nan)
    return Score(average, float(values.std(ddof=1) / np.sqrt(values.size)))


def root(score: Score) -> Score:
    """Square root of a score, its error to first order."""
    value = float(np.sqrt(score.value))
    return Score(value, score.err / (2 * value) if value > 0 else np.nan)


def ence(deviations: Floats, errors: Floats, *, bins: int = ENCE_BINS) -> Score:
    """Expected normalised calibration error, dimensionless; 0 is perfect.

    Mean over `bins` equally full bins of the stated deviation of |RMSE / RMV - 1|, RMV the root of
    the mean stated variance. It never reaches 0 on finite data: calibrated Gaussians show
    1 / sqrt(pi n / bins) (`Scores.ence_noise`); more bins resolve more and are noisier.

    Sources: Levi et al. 2022, doi:10.3390/s22155540; Pernot 2023, arXiv:2305.11905 (its noise).
    """
    if not 1 <= bins <= errors.size:
        raise ConfigError(f"{errors.size} rows cannot fill {bins} bins; ask for fewer bins")
    off, noise = [], []
    for rows in np.array_split(np.argsort(deviations, kind="stable"), bins):
        stated = float(np.sqrt(np.mean(deviations[rows] ** 2)))
        seen = root(mean(errors[rows] ** 2))
        off.append(abs(seen.value / stated - 1))
        noise.append(seen.err / stated)
    return Score(float(np.mean(off)), float(np.sqrt(np.sum(np.square(noise))) / bins))


def sparsification(
    uncertainty: Floats, errors: Floats, *, measure: Measure = "rmse"
) -> tuple[Floats, Floats]:
    """Error of the rows left after the most uncertain ones are taken out; and the oracle's.

    Both of shape (n,), as fractions of the error of all rows: element k is the error of the n - k
    rows of least uncertainty, or of least error (oracle). Rows of equal uncertainty are taken out
    in random order, on average.
    """
    loss = errors**2 if measure == "rmse" else np.abs(errors)
    _, tie = np.unique(uncertainty, return_inverse=True)
    even = (np.bincount(tie, loss) / np.bincount(tie))[np.sort(tie)]
    left = np.arange(1, loss.size + 1)
    curves = np.cumsum([even, np.sort(loss)], axis=1)[:, ::-1] / left[::-1]
    if measure == "rmse":
        curves = np.sqrt(curves)
    whole = curves[0, 0]
    curves = curves / whole if whole > 0 else np.zeros_like(curves)
    return curves[0], curves[1]


def ause(uncertainty: Floats, errors: Floats, *, measure: Measure = "rmse") -> Score:
    """Area under the sparsification error: 0 where the uncertainty ranks the errors perfectly.

    Both curves are divided by the error of all rows and integrated over the fraction taken out,
    0 to 1, so the area has no unit. A constant uncertainty, which ranks nothing, gives 0.570 (MAE)
    and 0.594 (RMSE) on Gaussian errors. Standard error: jackknife over 20 contiguous blocks of
    rows, which needs 40 rows.

    Source: Ilg et al. 2018, arXiv:1802.07095.
    """

    def area(rows: NDArray[np.int64]) -> float:
        curve, oracle = sparsification(uncertainty[rows], errors[rows], measure=measure)
        return float(np.mean(curve - oracle))

    return Score(area(np.arange(errors.size)), _jackknife(area, errors.size))


def _jackknife(figure: Callable[[NDArray[np.int64]], float], n: int) -> float:
    """Standard error of `figure(rows)`, leaving out one of 20 blocks of rows in turn.

    Source: Efron and Stein 1981, doi:10.1214/aos/1176345462.
    """
    if n < 2 * JACKKNIFE:
        return float(np.nan)
    rows = np.arange(n)
    blocks = np.array_split(rows, JACKKNIFE)
    without = [figure(np.delete(rows, block)) for block in blocks]
    return float(np.sqrt((JACKKNIFE - 1) * np.var(without)))


def auroc(nominal: ArrayLike, shifted: ArrayLike) -> Score:
    """Probability that a score on shifted rows exceeds one on nominal rows; ties count half.

    0.5 tells nothing, 1 tells the two apart always. Cost: three sorts.

    Source: DeLong et al. 1988, doi:10.2307/2531595 (error); Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313 (by mid-ranks).
    """
    low, high = (np.asarray(rows, np.float64).ravel() for rows in (nominal, shifted))
    if not low.size or not high.size:
        raise DataError(
            f"{low.size} nominal and {high.size} shifted scores cannot be told apart; give both"
        )
    if np.isnan(low).any() or np.isnan(high).any():
        raise DataError("a score to tell apart is NaN; did the network diverge?")
    joint = stats.rankdata(np.concatenate([low, high]))
    # Share of nominal rows below each shifted row, and of shifted rows above each nominal one.
    beats = (joint[low.size :] - stats.rankdata(high)) / low.size
    beaten = 1 - (joint[: low.size] - stats.rankdata(low)) / high.size
    return Score(float(beats.mean()), float(np.hypot(mean(beats).err, mean(beaten).err)))


def pit(predictive: Predictive, y: ArrayLike) -> Floats:
    """Probability integral transform F(y), shape of y: uniform if the predictions are calibrated.

    Source: Dawid 1984, doi:10.2307/2981683.
    """
    return predictive.cdf(targets(y, predictive.mean.shape))


def reliability(predictive: Predictive, y: ArrayLike, *, points: int = 19) -> Reliability:
    """Share of truths below the predicted quantile, at `points` evenly spaced levels.

    The diagonal is perfect; too small a spread gives a flat middle. Errors: binomial.

    Source: Kuleshov et al. 2018, arXiv:1807.00263.
    """
    if points < 1:
        raise ConfigError(f"a reliability curve needs one level or more, got {points}")
    levels = np.arange(1, points + 1) / (points + 1)
    places = np.sort(pit(predictive, y).ravel())
    observed = np.searchsorted(places, levels, side="right") / places.size
    return Reliability(levels, observed, np.sqrt(levels * (1 - levels) / places.size))


def ece(confidence: Floats, right: NDArray[np.bool_], *, bins: int = ECE_BINS) -> Score:
    """Expected calibration error of the chosen class: mean |confidence - accuracy| over rows.

    Confidence falls into `bins` bins of equal width, each weighted by its rows. It is biased
    upwards on few rows. Source: Guo et al. 2017, arXiv:1706.04599.
    """
    if bins < 1:
        raise ConfigError(f"calibration needs one bin of confidence or more, got {bins}")
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = right - confidence
    rows = np.bincount(place, minlength=bins)
    total = np.bincount(place, gap, minlength=bins)
    squares = np.bincount(place, gap**2, minlength=bins)
    variance = np.maximum(squares - total**2 / np.maximum(rows, 1), 0).sum()
    return Score(float(np.abs(total).sum() / gap.size), float(np.sqrt(variance) / gap.size))
