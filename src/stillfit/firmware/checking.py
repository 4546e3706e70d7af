"""The RTL of a network against its whole numbers and the fake-quantised network, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillfit.core.errors import DataError
from stillfit.core.values import Equality
from stillfit.firmware.packing import Words
from stillfit.firmware.simulation import Engine, simulator
from stillfit.firmware.verilog import Rtl
from stillfit.models.fixed.formats import Codes
from stillfit.models.fixed.integer import IntegerNetwork


@dataclass(frozen=True, eq=False, kw_only=True)
class Vectors:
    """Recorded inputs and answers of a network: codes (n, ...) and (n, outputs)."""

    inputs: NDArray[np.int64]
    whole: Codes
    fake: Codes

    @property
    def digest(self) -> str:
        """SHA-256 of the inputs."""
        return hashlib.sha256(np.ascontiguousarray(self.inputs).tobytes()).hexdigest()


def record(
    network: IntegerNetwork,
    layers: nn.Module,
    codes: NDArray[np.int64],
    fraction: NDArray[np.int64],
) -> Vectors:
    """Answers of the integer model and of the fake-quantised layers to `codes` (n, ...).

    `fraction`: bits behind the point of each input. `layers` see code / 2^fraction.
    """
    whole = network.run(codes, fraction).codes.reshape(len(codes), -1)
    shape = (-1, *(1,) * (codes.ndim - 2)) if codes.ndim > 2 else (-1,)
    real = np.ldexp(codes.astype(np.float64), -fraction.reshape(shape)).astype(np.float32)
    with torch.no_grad():
        out = layers(torch.from_numpy(real)).double().numpy()
    bits = network.fraction
    fake = np.ldexp(out.reshape(len(out), -1), bits).astype(np.int64)
    return Vectors(inputs=codes.astype(np.int64), whole=whole, fake=fake)


def random_codes(n: int, rtl: Rtl, seed: int) -> NDArray[np.int64]:
    """Codes (n, ...) all over the formats of a network's inputs, their ends with them."""
    rng = np.random.default_rng(seed)
    k, i, f = (np.array(axis, np.int64) for axis in (
        rtl.traced.input.k, rtl.traced.input.i, rtl.traced.input.f
    ))  # fmt: skip
    k, span = (np.broadcast_to(v, (rtl.traced.inputs,)) for v in (k, i + f))
    codes = rng.integers(-k << span, 1 << span, (n, rtl.traced.inputs))
    codes[:1], codes[1:2] = -k << span, (1 << span) - 1
    return codes.reshape(n, *rtl.traced.shape)


def stimulus(rtl: Rtl, codes: NDArray[np.int64], weights: Codes | None = None) -> dict[str, Words]:
    """Rows of the top's inputs: reset, the weight image if there is one, a vector a clock.

    Every eighth clock brings none, with the bits of the one before: those must not be answered.
    """
    image = rtl.image(weights) if rtl.weight_widths else np.zeros(0, np.uint32)
    data = rtl.inputs(codes)
    n = len(codes)
    place = np.arange(n) + np.arange(n) // 7
    start = 1 + len(image)
    clocks = start + (int(place[-1]) + 1 if n else 0) + rtl.latency
    rows = {
        "rst": np.zeros((clocks, 1), np.uint32),
        "in_valid": np.zeros((clocks, 1), np.uint32),
        "in_data": np.zeros((clocks, data.shape[1]), np.uint32),
    }
    rows["rst"][0] = 1
    rows["in_valid"][start + place] = 1
    rows["in_data"][start + place] = data
    gaps = start + place[6::7] + 1
    gaps = gaps[gaps < clocks]
    rows["in_data"][gaps] = rows["in_data"][gaps - 1]
    if len(image):
        rows["load"] = np.zeros((clocks, 1), np.uint32)
        rows["load_word"] = np.zeros((clocks, 1), np.uint32)
        rows["load"][1:start] = 1
        rows["load_word"][1:start, 0] = image
    return rows


def check(
    rtl: Rtl,
    vectors: Vectors,
    folder: Path,
    *,
    weights: Codes | None = None,
    engine: Engine = "cxxrtl",
) -> Equality:
    """Simulate the RTL on all vectors and compare; `first` names block, vector, output and bit.

    `weights`: codes to load into a reloadable design. 10 000 vectors: 5 to 40 s, nearly all of it
    the compiler's.
    """
    built = simulator(
        [rtl.folder / name for name in rtl.files], rtl.name, *rtl.ports, folder, engine=engine
    )
    rows = built.run(stimulus(rtl, vectors.inputs, weights))
    answered = rows["out_valid"][:, 0] == 1
    got = rtl.outputs(rows["out_data"][answered])
    if len(got) != len(vectors.inputs):
        raise DataError(
            f"{rtl.name} was given {len(vectors.inputs)} vectors and answered {len(got)}; its flow "
            "control is wrong, report it"
        )
    return compared(
        rtl.traced.name,
        {"RTL": got, "whole numbers": vectors.whole, "fake-quantised network": vectors.fake},
        vectors.digest,
    )


def compared(block: str, answers: Mapping[str, Codes], digest: str) -> Equality:
    """The first of the answers (n, outputs) against each of the others."""
    (name, got), *others = answers.items()
    wrong = np.zeros(len(got), np.bool_)
    first = ""
    for other, want in others:
        differ = got != want
        if differ.any() and not first:
            at = tuple(int(v) for v in np.argwhere(differ)[0])
            bits = int(got[at]) ^ int(want[at])
            bit = (bits & -bits).bit_length() - 1
            first = (
                f"{block}, vector {at[0]}, output {at[1]}, bit {bit}: {int(got[at])} in {name} "
                f"and {int(want[at])} in {other}"
            )
        wrong |= differ.any(axis=1)
    against = f"{name} against {' and '.join(other for other, _ in others)}"
    return Equality(
        vectors=len(got), wrong=int(wrong.sum()), digest=digest, against=against, first=first
    )
