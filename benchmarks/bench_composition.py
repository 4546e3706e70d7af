"""Events per second of the particle library's side: load, compose, pack."""

from __future__ import annotations

import time

import numpy as np

from stillfit.l1t import library, trackword
from stillfit.l1t.composition import compose

Row = tuple[str, float, str]


def run(events: int = 1000, repeats: int = 7) -> list[Row]:
    """Median over `repeats`, one core, after a first call that compiles."""
    started = time.perf_counter()
    lib = library.load()
    load = time.perf_counter() - started
    rng = np.random.default_rng(1)
    compose(lib, n=2, pileup=1.0, processes={"ttbar": 1.0}, rng=rng)
    rows: list[Row] = [("load the particle library", load, "s")]
    for pileup in (200.0, 60.0):
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            compose(lib, n=events, pileup=pileup, processes={"ttbar": 1.0}, rng=rng)
            seconds.append(time.perf_counter() - started)
        rate = events / float(np.median(seconds))
        rows.append((f"compose events of pile-up {pileup:g}", rate, "events/s"))
    tracks = {
        name: rng.uniform(-1, 1, 200_000) * field.lsb * 2 ** (field.bits - 1)
        for name, field in trackword.FIELDS.items()
        if field.kind == "signed"
    }
    started = time.perf_counter()
    words = trackword.pack(trackword.digitise(tracks))
    rows.append(("track words packed", len(words) / (time.perf_counter() - started), "tracks/s"))
    started = time.perf_counter()
    trackword.undigitise(trackword.unpack(words))
    rows.append(("track words unpacked", len(words) / (time.perf_counter() - started), "tracks/s"))
    return rows


if __name__ == "__main__":
    for name, value, unit in run():
        print(f"{name:<40} {value:>12,.2f} {unit}")
