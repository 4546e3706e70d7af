"""Events per second of the Level-1 simulation on one core: compose, simulate, both."""

from __future__ import annotations

import time

import numpy as np

from stillfit.l1t import library, quality
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import Conditions, HotRegion, nominal
from stillfit.l1t.detector import simulate

Row = tuple[str, float, str]


def run(events: int = 1000, repeats: int = 7) -> list[Row]:
    """Medians over `repeats`, after a first call that compiles or loads the compiled loops."""
    shipped = library.load()
    rng = np.random.default_rng(1)

    def composed(conditions: Conditions, n: int = events):
        return compose(
            shipped,
            n=n,
            pileup=conditions.pileup,
            z_beam=conditions.z_beam,
            sigma_z=conditions.sigma_z,
            processes=conditions.processes.weights(),
            rng=rng,
        )

    started = time.perf_counter()
    simulate(composed(nominal(), 2), nominal(), rng)
    rows: list[Row] = [("first simulated event (compiled or cached)", _since(started), "s")]
    cases = {
        "": nominal(),
        " and a hot region": Conditions(hot_regions=(HotRegion(phi=(0.0, 0.7)),)),
        " and twice the noise": Conditions(noise=2.0),
    }
    tracks = simulate(composed(nominal()), nominal(), rng)
    for name, conditions in cases.items():
        both, alone = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            particles = composed(conditions)
            middle = time.perf_counter()
            tracks = simulate(particles, conditions, rng)
            both.append(_since(started))
            alone.append(_since(middle))
        if not name:
            rows.append(("simulate, pile-up 200", _rate(events, alone), "events/s"))
        rows.append((f"compose and simulate, pile-up 200{name}", _rate(events, both), "events/s"))
    started = time.perf_counter()
    quality.probability(tracks)
    rows.append(("track quality", len(tracks.pt) / _since(started), "tracks/s"))
    return rows


def _since(started: float) -> float:
    return time.perf_counter() - started


def _rate(events: int, seconds: list[float]) -> float:
    return events / float(np.median(seconds))


if __name__ == "__main__":
    for name, value, unit in run():
        print(f"{name:<55} {value:>14,.2f} {unit}")
