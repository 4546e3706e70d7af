"""Conformal test martingale of late errors: betting against "nothing has changed"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, DataError
from stillfit.core.values import Evidence
from stillfit.monitors.calibrate import (
    Floats,
    block_length,
    finite,
    paired,
    resample,
    run_length,
    tail_threshold,
)

DRAWS = 1_000_000  # p-values of the calibration, in all
LN10 = math.log(10)
LEAST = 20  # nominal errors below which a rank says nothing
# Bets by (kind, side). Linear: the slope e of 1 + e (p - 1/2). Power: the exponent k of
# k p^(k - 1), negative for k (1 - p)^(k - 1). Slope 0 and exponent 1 bet nothing.
BETS: dict[tuple[str, str], tuple[float, ...]] = {
    ("linear", "up"): (-1.0, 0.0),
    ("linear", "both"): (-1.0, 0.0, 1.0),
    ("power", "up"): (0.25, 0.5, 0.75, 0.9, 1.0),
    ("power", "both"): (0.25, 0.5, 0.75, 0.9, 1.0, -0.9, -0.75, -0.5, -0.25),
}


class MartingaleState(NamedTuple):
    """n nominal errors, a bag of at most `epoch` errors of the stream, b bets.

    `reference`: nominal errors, sorted (n,), empty before `fit`. `bag`: (epoch,) of which the
    first `size` hold the stream's errors of this epoch, sorted. `shares`: of the wealth on each
    bet, (b,), sum 1; `log_wealth`: its log, 0 at the start of an epoch. `sums`: log of what each
    bet made since its best start (b,), `starts`, `counts`: time (s) of the first event since then,
    and events (b,). `threshold`: of the statistic in natural logs. `raised`: since it was passed,
    until the statistic is below half of it. `seed`, `told`: of the random numbers that break ties.
    """

    reference: Floats
    bag: Floats
    size: int
    shares: Floats
    log_wealth: float
    sums: Floats
    starts: Floats
    counts: NDArray[np.int64]
    threshold: float
    raised: bool
    seed: int
    told: int


@dataclass(frozen=True, kw_only=True)
class ConformalMartingale:
    """Test of exchangeability of the late errors with the nominal ones, event by event.

    The conformal p-value of an error is its rank among all errors so far (nominal, then the
    stream's), ties broken at random: p = (#larger + u #equal) / N, both counts with itself. As
    long as the errors are exchangeable the p-values are independent and uniform, whatever the
    distribution. A gambler bets on small p (large errors): S grows by the factor f(p), the
    integral of f is 1, so S is a martingale, and P(S ever reaches 1 / alpha) <= alpha (Ville).
    `bet`: "power", k p^(k - 1), pays for rare large errors, such as misses: k = 1/4 where almost
    all p are tiny, 0.9 where a few more than nominal are small; "linear", 1 + e (p - 1/2), for a
    shift of all. `side`: "up" for errors that become larger, "both" for any change.

    `false_alarms` per day: the statistic is the mean over the bets of what each made since its best
    start, M = f(p) max(M, 1), an e-detector: by theory alarms at a level c come no more often than
    once in c events, with exchangeable errors and any finite nominal sample. The threshold is set
    lower, by run length: from uniform p-values, or, where the nominal errors are serially
    correlated, which is not exchangeable, from resampled blocks of them.
    `alpha`: given, the statistic is S itself, the wealth of a gambler who spreads the share `jump`
    of it anew over the bets at each step (Simple Jumper), and the threshold 1 / alpha: probability
    of ever a false alarm within an epoch; `false_alarms` is unused. `epoch`: events after which the
    ranks and the bets start anew, from the nominal errors.

    The evidence's `value` is log10 of the statistic. It is held at 1.5 times the threshold's, so
    that an alarm ends soon after its cause, and nothing is learned into the ranks while one
    stands; afterwards all starts anew. Feed it the error over its stated sigma, and it tests the
    statement instead of the size.

    Cost: two searches and one insertion, ~5 us per labelled event at an epoch of 20 000; `fit`
    0.3 s (0.5 s where correlated). Memory: 8 B per nominal event and of the epoch. Not mergeable.
    Sources: Vovk, Nouretdinov and Gammerman 2003 (ICML: Testing exchangeability on-line); Vovk
    2021, doi:10.1214/20-STS817 (Testing randomness online); Vovk, Petej, Nouretdinov, Ahlberg,
    Carlsson and Gammerman 2021, arXiv:2102.10439 (Simple Jumper, run length); Shin, Ramdas and
    Rinaldo 2022, arXiv:2203.03532 (e-detectors).
    """

    name: str = "conformal-martingale"
    bet: Literal["linear", "power"] = "power"
    side: Literal["up", "both"] = "up"
    jump: float = 0.01
    false_alarms: float = 0.01
    alpha: float | None = None
    epoch: int = 20_000

    def __post_init__(self) -> None:
        if (self.bet, self.side) not in BETS:
            raise ConfigError(
                f"bet must be 'linear' or 'power' and side 'up' or 'both', got {self.bet!r} and "
                f"{self.side!r}"
            )
        if not 0 <= self.jump < 1:
            raise ConfigError(f"jump is a share of the wealth in [0, 1), got {self.jump}")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise ConfigError(
                f"alpha is the probability of a false alarm in (0, 1), got {self.alpha}; 0.01 "
                "raises an alarm at a wealth of 100"
            )
        if self.epoch < 100:
            raise ConfigError(f"an epoch of {self.epoch} events is too short, take at least 100")

    @property
    def _bets(self) -> Floats:
        return np.array(BETS[self.bet, self.side])

    def init(self) -> MartingaleState:
        b = len(self._bets)
        return MartingaleState(
            np.zeros(0), np.zeros(0), 0, np.full(b, 1 / b), 0.0, np.zeros(b), np.zeros(b),
            np.zeros(b, np.int64), 0.0, False, 0, 0,
        )  # fmt: skip

    def fit(
        self, errors: NDArray[np.float64], *, rate: float, rng: np.random.Generator
    ) -> MartingaleState:
        nominal = finite(errors, "the nominal error")
        if len(nominal) < LEAST:
            raise DataError(
                f"{len(nominal)} nominal errors give no ranks worth betting on: at least {LEAST} "
                "are needed, better a thousand"
            )
        if self.alpha is None:
            threshold = self._threshold(nominal, run_length(self.false_alarms, rate), rng)
        else:
            threshold = -math.log(self.alpha)
        return self.init()._replace(
            reference=np.sort(nominal),
            bag=np.zeros(self.epoch),
            threshold=threshold,
            seed=int(rng.integers(2**62)),
        )

    def _threshold(self, nominal: Floats, arl: float, rng: np.random.Generator) -> float:
        block, length = block_length(nominal), min(self.epoch, DRAWS // 10)
        peaks = []
        codes = np.unique(nominal, return_inverse=True)[1].reshape(-1)
        for _ in range(DRAWS // length):
            if block > 1:
                rows = resample(len(nominal), len(nominal) + length, block, rng)
                p = _ranks(codes[rows], len(nominal), int(codes.max()) + 1, rng.random(length))
            else:
                p = 1 - rng.random(length)
            peaks.append(_peaks(p, self._bets, self.bet == "power"))
        found = tail_threshold(np.concatenate(peaks), float(DRAWS // length * length), arl)
        # The theory's bound holds for exchangeable errors only.
        return found if block > 1 else min(found, math.log(arl))

    def step(
        self,
        state: MartingaleState,
        time: float,
        seen: NDArray[np.float64],
        errors: NDArray[np.float64],
    ) -> tuple[MartingaleState, Evidence]:
        late, seen = finite(errors, "the late error"), finite(seen, "the time of labelled events")
        paired(late, seen)
        age = time - float(seen.max()) if len(seen) else 0.0
        if len(state.reference) == 0:
            because = "no nominal errors are known yet, so nothing is compared"
            return state, self._evidence(state, 0.0, False, time, age, because)
        new = state._replace(
            bag=state.bag.copy(),
            shares=state.shares.copy(),
            sums=state.sums.copy(),
            starts=state.starts.copy(),
            counts=state.counts.copy(),
        )
        top, size, log_wealth, raised = _run(
            late, seen, state.reference, new.bag, state.size, self._bets, self.bet == "power",
            self.alpha is not None, new.shares, self.jump, state.log_wealth, new.sums, new.starts,
            new.counts, state.threshold, state.raised, state.seed, state.told,
        )  # fmt: skip
        new = new._replace(
            size=size, log_wealth=log_wealth, raised=raised, told=state.told + len(late)
        )
        shown = raised or top > state.threshold
        asked = (
            f"{self.false_alarms:g} false alarms per day"
            if self.alpha is None
            else f"a false alarm at all has the probability {self.alpha:g}"
        )
        because = (
            f"betting on larger errors than nominal made 10^{top / LN10:.1f} of 1, which "
            f"{'passed' if shown else 'is below'} 10^{state.threshold / LN10:.1f} ({asked})"
        )
        return new, self._evidence(new, top, shown, time, age, because)

    def _evidence(
        self,
        state: MartingaleState,
        top: float,
        raised: bool,
        time: float,
        age: float,
        because: str,
    ) -> Evidence:
        best = int(np.argmax(state.sums))
        return Evidence(
            monitor=self.name,
            time=time,
            value=top / LN10,
            threshold=state.threshold / LN10,
            raised=raised,
            n=int(state.counts[best]),
            because=because,
            since=float(state.starts[best]) if raised else None,
            age=age,
        )


def log_martingale(
    p: Floats, *, bet: str = "linear", side: str = "both", jump: float = 0.01
) -> Floats:
    """Natural log of the Simple Jumper martingale after each of the p-values `p`, (n,).

    `bet="linear", side="both"` is that of arXiv:2102.10439, algorithm 1.
    """
    if (bet, side) not in BETS:
        raise ConfigError(
            f"bet must be 'linear' or 'power' and side 'up' or 'both', got {bet!r} and {side!r}"
        )
    values = finite(p, "the p-value")
    if len(values) and not (values.min() > 0 and values.max() <= 1):
        raise DataError(f"p-values must lie in (0, 1], got {values.min()} to {values.max()}")
    path: Floats = _path(values, np.array(BETS[bet, side]), bet == "power", jump)
    return path


@numba.njit(cache=True)
def _factor(bet, power, p):  # type: ignore[no-untyped-def]
    """What a bet makes of 1."""
    if not power:
        return 1.0 + bet * (p - 0.5)
    if bet > 0:
        return bet * p ** (bet - 1.0)
    return -bet * max(1.0 - p, 1e-16) ** (-bet - 1.0)


@numba.njit(cache=True)
def _jump(shares, bets, power, jump, p):  # type: ignore[no-untyped-def]
    """Log of the factor by which the jumper's wealth grows; `shares` is changed in place."""
    total = 0.0
    for b in range(len(bets)):
        spread = (1.0 - jump) * shares[b] + jump / len(bets)
        shares[b] = spread * _factor(bets[b], power, p)
        total += shares[b]
    shares /= total
    return np.log(total)


@numba.njit(cache=True)
def _path(p, bets, power, jump):  # type: ignore[no-untyped-def]
    shares = np.full(len(bets), 1.0 / len(bets))
    out = np.empty(len(p))
    value = 0.0
    for i in range(len(p)):
        value += _jump(shares, bets, power, jump, p[i])
        out[i] = value
    return out


@numba.njit(cache=True)
def _add(sums, starts, counts, bets, power, p, now, most):  # type: ignore[no-untyped-def]
    """One step of the e-detector, in place; log of the mean over the bets."""
    total = 0.0
    for b in range(len(bets)):
        if sums[b] <= 0.0:
            sums[b], starts[b], counts[b] = 0.0, now, 0
        sums[b] = min(sums[b] + np.log(_factor(bets[b], power, p)), most)
        counts[b] += 1
        total += np.exp(max(sums[b], 0.0))
    return np.log(total / len(bets))


@numba.njit(cache=True)
def _peaks(p, bets, power):  # type: ignore[no-untyped-def]
    """Largest statistic of each excursion, which ends where it has fallen to half of its peak."""
    sums, starts = np.zeros(len(bets)), np.zeros(len(bets))
    counts = np.zeros(len(bets), np.int64)
    peaks = np.empty(len(p))
    count, peak = 0, 0.0
    for i in range(len(p)):
        value = _add(sums, starts, counts, bets, power, p[i], 0.0, 1e9)
        if value > peak:
            peak = value
        elif value <= 0.5 * peak:
            peaks[count] = peak
            count += 1
            peak = value
    return peaks[:count]


@numba.njit(cache=True)
def _ranks(codes, first, kinds, u):  # type: ignore[no-untyped-def]
    """Conformal p-values of codes[first:] among all before them; a Fenwick tree counts codes."""
    tree = np.zeros(kinds + 1, np.int64)
    each = np.zeros(kinds, np.int64)
    out = np.empty(len(codes) - first)
    for i in range(len(codes)):
        c = codes[i]
        if i >= first:
            upto, k = 0, c + 1
            while k > 0:
                upto += tree[k]
                k -= k & -k
            out[i - first] = (i - upto + (1.0 - u[i - first]) * (each[c] + 1)) / (i + 1)
        each[c] += 1
        k = c + 1
        while k <= kinds:
            tree[k] += 1
            k += k & -k
    return out


@numba.njit(cache=True)
def _uniform(seed, count):  # type: ignore[no-untyped-def]
    """A number in (0, 1) from a seed and a count: SplitMix64 (Steele et al. 2014,
    doi:10.1145/2714064.2660195), so that the state holds no generator."""
    z = np.uint64(seed) + np.uint64(count + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (np.float64(z >> np.uint64(12)) + 0.5) / 4503599627370496.0


@numba.njit(cache=True)
def _run(  # type: ignore[no-untyped-def]
    errors, seen, reference, bag, size, bets, power, ville, shares, jump, log_wealth, sums, starts,
    counts, threshold, raised, seed, told,
):  # fmt: skip
    """Bet on each error in turn; `bag`, `shares`, `sums`, `starts`, `counts` change in place."""
    top = 0.0
    for i in range(len(errors)):
        e = errors[i]
        larger = len(reference) - np.searchsorted(reference, e, "right")
        equal = len(reference) - larger - np.searchsorted(reference, e, "left")
        place = 0
        if size > 0:
            place = np.searchsorted(bag[:size], e, "right")
            larger += size - place
            equal += place - np.searchsorted(bag[:size], e, "left")
        u = _uniform(seed, told + i)
        p = (larger + u * (equal + 1)) / (len(reference) + size + 1)
        value = _add(sums, starts, counts, bets, power, p, seen[i], 1.5 * threshold)
        if ville:
            log_wealth += _jump(shares, bets, power, jump, p)
            value = log_wealth
            if raised:
                log_wealth = min(log_wealth, 1.5 * threshold)
        top = max(top, value)
        anew = False
        if raised:
            anew = value <= 0.5 * threshold
            raised = not anew
        elif value > threshold:
            # What is wrong is not learned into the ranks.
            raised, size = True, 0
        elif size == len(bag):
            anew = True
        else:
            for k in range(size, place, -1):
                bag[k] = bag[k - 1]
            bag[place] = e
            size += 1
        if anew:
            size, log_wealth = 0, 0.0
            shares[:] = 1.0 / len(bets)
            sums[:] = 0.0
    return top, size, log_wealth, raised
