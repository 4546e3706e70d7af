"""LHC fills: real ones from a small table of facts, and a generator with their distributions.

`data/fills.csv` holds 607 proton physics fills of 2015 to 2018 from the public fill reports of
the experiment at point 5: fill number, begin of stable beams (UTC), hours of stable beams, hours
from their end to the next stable beams of any fill, peak pile-up, delivered luminosity (1/pb),
colliding bunch pairs. Left out: ions, energies other than 6.5 TeV per beam, fills of fewer than
500 colliding pairs or of a peak pile-up under 10 (test, calibration and special optics), fills
without stable beams. The gap is empty for the last fill of a year in the reports.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillfit.core.clock import HOUR
from stillfit.core.errors import ConfigError, DataError

TABLE = Path(__file__).parent / "data" / "fills.csv"
REVOLUTIONS = 11_245.0  # per second
INELASTIC_MB = 80.0  # cross-section behind the pile-up of the reports (reproduces them to 0.1 %)
COLUMNS = (
    "fill",
    "begin_utc",
    "stable_hours",
    "gap_hours",
    "peak_pileup",
    "delivered_pb",
    "colliding_bunches",
)


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Stable beams from `start` to `start + duration`, then none for `gap` (all in seconds).

    `peak_pileup`: mean number of interactions per crossing at the start. It stays for `levelled`
    seconds, then falls exponentially with `lifetime`.
    """

    number: int
    start: float
    duration: float
    gap: float
    peak_pileup: float
    levelled: float = 0.0
    lifetime: float = 13.0 * HOUR

    def __post_init__(self) -> None:
        for name in ("duration", "gap", "peak_pileup", "levelled", "lifetime"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "lifetime" and value == 0):
                raise ConfigError(
                    f"fill {self.number} has {name} = {value}; durations and pile-up must be "
                    "finite and not negative, the lifetime positive"
                )

    @property
    def end(self) -> float:
        """Time (s) at which stable beams end."""
        return self.start + self.duration

    @property
    def next_start(self) -> float:
        """Time (s) at which the next stable beams begin."""
        return self.end + self.gap

    def pileup_at(self, t: ArrayLike) -> NDArray[np.float64]:
        """Mean pile-up at the times `t` (s, of the stream), 0 outside stable beams."""
        time = np.asarray(t, np.float64)
        decay = np.exp(-np.maximum(time - self.start - self.levelled, 0.0) / self.lifetime)
        inside = (time >= self.start) & (time <= self.end)
        return np.where(inside, self.peak_pileup * decay, 0.0)


@dataclass(frozen=True, kw_only=True)
class Levelling:
    """Luminosity levelling as at HL-LHC: `pileup` held for `low` to `high` hours, then decay.

    The lifetime after levelling follows from burn-off: 2760 bunches of 2.2e11 protons lose
    5e34/cm2/s x 110 mb at each of two points, so half are left after 7.5 h, and the luminosity,
    which goes with their square, then falls with about 5 h (in its first hours).
    """

    pileup: float = 200.0
    low: float = 7.0
    high: float = 8.0
    lifetime: float = 5.0

    def __post_init__(self) -> None:
        if not (self.pileup >= 0 and 0 <= self.low <= self.high and self.lifetime > 0):
            raise ConfigError(
                f"levelling needs pileup >= 0, 0 <= low <= high and lifetime > 0, got {self}"
            )

    def apply(self, fill: Fill, rng: np.random.Generator) -> Fill:
        """The fill with its pile-up levelled; when it ends is left as it is."""
        return replace(
            fill,
            peak_pileup=self.pileup,
            levelled=float(rng.uniform(self.low, self.high)) * HOUR,
            lifetime=self.lifetime * HOUR,
        )


class Record(NamedTuple):
    """One row of the table; `gap_hours` is NaN where the reports end for the year."""

    fill: int
    begin: datetime
    stable_hours: float
    gap_hours: float
    peak_pileup: float
    delivered_pb: float
    colliding_bunches: int


def read(path: Path = TABLE) -> tuple[Record, ...]:
    """The table of real fills in order of time; `DataError` names a line that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no table of fills at {path}") from None
    rows = csv.DictReader(text.splitlines())
    missing = set(COLUMNS) - set(rows.fieldnames or ())
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    records = []
    for line, row in enumerate(rows, start=2):
        try:
            records.append(
                Record(
                    int(row["fill"]),
                    datetime.fromisoformat(row["begin_utc"]).replace(tzinfo=UTC),
                    float(row["stable_hours"]),
                    float(row["gap_hours"] or "nan"),
                    float(row["peak_pileup"]),
                    float(row["delivered_pb"]),
                    int(row["colliding_bunches"]),
                )
            )
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    return tuple(records)


def real(years: Iterable[int] = (2015, 2016, 2017, 2018), path: Path = TABLE) -> tuple[Fill, ...]:
    """Real fills of the years asked for, as they followed each other; the first starts at 0.

    Between them lie also fills that the table leaves out. A fill without a stated gap gets the
    time to the next one in the table, the last one the median gap. The lifetime is the one whose
    exponential decay over the fill gives the delivered luminosity, see `lifetime_hours`; where
    that has no solution (short or levelled fills), the median of the others.
    """
    wanted = set(years)
    records = [record for record in read(path) if record.begin.year in wanted]
    if not records:
        raise ConfigError(f"the table has no fills of {sorted(wanted)}; it covers 2015 to 2018")
    lifetimes = np.array([lifetime_hours(record) for record in records])
    lifetimes = np.where(np.isnan(lifetimes), np.nanmedian(lifetimes), lifetimes)
    usual_gap = float(np.nanmedian([record.gap_hours for record in records]))
    starts = [(record.begin - records[0].begin).total_seconds() for record in records]
    fills = []
    for index, record in enumerate(records):
        duration = record.stable_hours * HOUR
        gap = record.gap_hours * HOUR
        if math.isnan(gap):
            last = index + 1 == len(records)
            gap = usual_gap * HOUR if last else starts[index + 1] - starts[index] - duration
        fills.append(
            Fill(
                number=record.fill,
                start=starts[index],
                duration=duration,
                gap=gap,
                peak_pileup=record.peak_pileup,
                lifetime=float(lifetimes[index]) * HOUR,
            )
        )
    return tuple(fills)


def lifetime_hours(record: Record) -> float:
    """Decay time tau (hours) with delivered = peak tau (1 - exp(-T / tau)), T the duration.

    The peak luminosity is mu n f / sigma. NaN where the mean is over 97 % or under 20 % of the
    peak or T under 3 h, where the equation says little. Newton's method on x = T / tau.
    """
    peak = record.peak_pileup * record.colliding_bunches * REVOLUTIONS / (INELASTIC_MB * 1e9)
    mean = record.delivered_pb / (peak * record.stable_hours * HOUR)  # 1 mb = 1e9 pb
    if record.stable_hours < 3 or not 0.2 < mean < 0.97:
        return math.nan
    x = 1.0
    for _ in range(50):
        fall = math.exp(-x)
        step = ((1 - fall) / x - mean) / ((fall * (1 + x) - 1) / x**2)
        x = max(x - step, x / 4)
        if abs(step) < 1e-12:
            break
    return record.stable_hours / x


def generate(
    n: int,
    *,
    rng: np.random.Generator,
    start: float = 0.0,
    first_number: int = 1,
    levelling: Levelling | None = None,
    smoothing: float = 0.05,
    records: Sequence[Record] | None = None,
) -> tuple[Fill, ...]:
    """`n` fills after each other with the real distributions of duration, gap and peak pile-up.

    A smoothed bootstrap (Silverman & Young 1987): whole rows of the table are drawn, so the three
    stay correlated, and duration and gap are multiplied by exp(smoothing N(0, 1)), the pile-up by
    a fifth of that. The gaps contain the technical stops (2 % exceed three days). More smoothing
    makes more new values and wider distributions. Not modelled: which fills follow which.
    """
    if n < 1 or smoothing < 0:
        raise ConfigError(f"n must be at least 1 and smoothing not negative, got {n}, {smoothing}")
    table = [row for row in (read() if records is None else records) if row.gap_hours > 0]
    if not table:
        raise ConfigError("no fill with a gap to draw from; give records that state gap_hours")
    values = np.array([(row.stable_hours, row.gap_hours, row.peak_pileup) for row in table])
    lifetimes = np.array([lifetime_hours(row) for row in table])
    usual = np.nanmedian(lifetimes) if np.any(~np.isnan(lifetimes)) else 13.0
    lifetimes = np.where(np.isnan(lifetimes), usual, lifetimes)
    drawn = rng.integers(0, len(table), n)
    widths = smoothing * np.array([1.0, 1.0, 0.2])
    values = values[drawn] * np.exp(widths * rng.standard_normal((n, 3)))
    fills = []
    for index in range(n):
        duration, gap, peak = (float(value) for value in values[index])
        fill = Fill(
            number=first_number + index,
            start=start,
            duration=duration * HOUR,
            gap=gap * HOUR,
            peak_pileup=peak,
            lifetime=float(lifetimes[drawn[index]]) * HOUR,
        )
        fill = fill if levelling is None else levelling.apply(fill, rng)
        fills.append(fill)
        start = fill.next_start
    return tuple(fills)
