"""Makes `table.csv`, the drifting table of `table.toml`: a gas sensor that is replaced, twice.

A gas sensor's raw reading is turned into ppm by a regression on three columns. At 45 % of
the rows the sensor is swapped for one with another gain and offset; at 75 % the first one is put
back. The numbers are simulated, with a fixed seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROWS, SEED = 9000, 11


def rows() -> np.ndarray:
    """Columns: hour, raw (V), temperature (C), pressure (hPa), ppm, and the sensor's serial."""
    rng = np.random.default_rng(SEED)
    hour = np.arange(ROWS) * 0.25
    temperature = 21 + 6 * np.sin(2 * np.pi * hour / 24) + rng.normal(0, 1, ROWS)
    pressure = 1013 + 8 * np.sin(2 * np.pi * hour / 200) + rng.normal(0, 2, ROWS)
    ppm = np.exp(rng.normal(5.2, 0.5, ROWS))
    swapped = (np.arange(ROWS) >= 0.45 * ROWS) & (np.arange(ROWS) < 0.75 * ROWS)
    gain, offset = np.where(swapped, 0.72, 1.0), np.where(swapped, 0.35, 0.0)
    clean = 0.9 * np.log(ppm) + 0.02 * (temperature - 21) - 0.004 * (pressure - 1013)
    raw = gain * clean + offset + rng.normal(0, 0.03, ROWS)
    return np.column_stack([hour, raw, temperature, pressure, ppm, swapped])


def main() -> None:
    lines = ["hour,raw_V,temperature_C,pressure_hPa,ppm,sensor"]
    for hour, raw, temperature, pressure, ppm, swapped in rows():
        serial = "B" if swapped else "A"
        lines.append(f"{hour:.2f},{raw:.4f},{temperature:.2f},{pressure:.2f},{ppm:.2f},{serial}")
    (Path(__file__).parent / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
