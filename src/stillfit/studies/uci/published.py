"""What others published on this benchmark, and the sets' names.

Numbers are mean test log-likelihood and RMSE, each with the error as printed: standard errors
over the splits for PBP and MC dropout; deep ensembles print larger ones, which read like standard
deviations over the splits. MC dropout is the column whose hyper-parameters were found by a grid
search on a validation part; earlier columns of that method were tuned on the test part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Figure(NamedTuple):
    """Mean test log-likelihood and RMSE with their printed errors; None: not printed."""

    log_likelihood: float
    log_likelihood_err: float | None
    rmse: float
    rmse_err: float | None


@dataclass(frozen=True)
class Known:
    """A set of the benchmark: its short name and hidden units, and what others reached on it."""

    short: str
    hidden: int
    published: dict[str, Figure]


PBP, MCD, DE = "PBP", "MC dropout (grid)", "deep ensemble"
SOURCES = {
    PBP: "Hernandez-Lobato and Adams 2015, arXiv:1502.05336, tables 1 and 2",
    MCD: "Mukhoti, Stenetorp and Gal 2018, arXiv:1811.09385, hyper-parameters by grid search",
    DE: "Lakshminarayanan et al. 2017, arXiv:1612.01474, table 1, 5 members",
}


def _known(
    short: str, hidden: int, *rows: tuple[float, float | None, float, float | None]
) -> Known:
    return Known(
        short, hidden, dict(zip((PBP, MCD, DE), (Figure(*row) for row in rows), strict=False))
    )


# fmt: off
SETS: dict[str, Known] = {
    "bostonHousing": _known("boston", 50,
        (-2.57, 0.09, 3.01, 0.18), (-2.40, 0.04, 2.90, 0.18), (-2.41, 0.25, 3.28, 1.00)),
    "concrete": _known("concrete", 50,
        (-3.16, 0.02, 5.67, 0.09), (-2.93, 0.02, 4.82, 0.16), (-3.06, 0.18, 6.03, 0.58)),
    "energy": _known("energy", 50,
        (-2.04, 0.02, 1.80, 0.05), (-1.21, 0.01, 0.54, 0.06), (-1.38, 0.22, 2.09, 0.29)),
    "kin8nm": _known("kin8nm", 50,
        (0.90, 0.01, 0.10, 0.00), (1.14, 0.01, 0.08, 0.00), (1.20, 0.02, 0.09, 0.00)),
    "naval-propulsion-plant": _known("naval", 50,
        (3.73, 0.01, 0.01, 0.00), (4.45, 0.00, 0.00, 0.00), (5.63, 0.05, 0.00, 0.00)),
    "power-plant": _known("power", 50,
        (-2.84, 0.01, 4.12, 0.03), (-2.80, 0.01, 4.01, 0.04), (-2.79, 0.04, 4.11, 0.17)),
    "protein-tertiary-structure": _known("protein", 100,
        (-2.97, 0.00, 4.73, 0.01), (-2.87, 0.00, 4.27, 0.02), (-2.83, 0.02, 4.71, 0.06)),
    "wine-quality-red": _known("wine", 50,
        (-0.97, 0.01, 0.64, 0.01), (-0.93, 0.01, 0.62, 0.01), (-0.94, 0.12, 0.64, 0.04)),
    "yacht": _known("yacht", 50,
        (-1.63, 0.02, 1.02, 0.05), (-1.25, 0.01, 0.67, 0.05), (-1.18, 0.21, 1.58, 0.48)),
    "YearPredictionMSD": Known("year", 100, {
        PBP: Figure(-3.60, None, 8.88, None), DE: Figure(-3.35, None, 8.89, None)}),
}
# fmt: on
