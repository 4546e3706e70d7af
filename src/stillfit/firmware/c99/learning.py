"""A device's learner as C: prediction and learning step, one example at a time.

What it is given is plain numbers, so that this room needs to know nothing of who learns: the
applications translate a strategy (`apps/firmware/c.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError
from stillfit.firmware.c99.text import (
    Header,
    checked_name,
    chosen,
    dtype_of,
    framed,
    initial,
    table,
    whole,
)

Kind: TypeAlias = Literal["gradient", "feedback", "perturbation", "least-squares"]
Loss: TypeAlias = Literal["mean", "gaussian", "softmax", "squared", "hinge"]
Rounding: TypeAlias = Literal["half-up", "nearest-even", "stochastic"]
Keep: TypeAlias = Literal["nothing", "reservoir", "ring", "class-ring"]
KINDS: tuple[Kind, ...] = ("gradient", "feedback", "perturbation", "least-squares")
LOSSES: tuple[Loss, ...] = ("mean", "gaussian", "softmax", "squared", "hinge")
ROUNDINGS: tuple[Rounding, ...] = ("half-up", "nearest-even", "stochastic")
KEEPS: tuple[Keep, ...] = ("nothing", "reservoir", "ring", "class-ring")


@dataclass(frozen=True, eq=False, kw_only=True)
class Scales:
    """Input = (feature - mean) / std, target likewise; in float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    target_mean: float = 0.0
    target_std: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Learner:
    """A learner as whole numbers; their meaning is that of docs/learning/embedded.md.

    `sizes`: inputs and outputs of the layers; `first`: the first layer that learns. Numbers have
    `width` bits, `fraction` of them behind the point. `rate`, `inverse`, `inverse_root`: of
    1 / 2^16; `score`: of 1 / 2^fraction; `forgetting`, `start`, `floor`: of the covariance's unit.
    `store_shift`: bits by which kept inputs are shortened. `arrays`: weights, random, and as far as
    the learner has them feedback, covariance, guards, kept_x, kept_t, counts, powers, logarithms.
    """

    kind: Kind
    loss: Loss
    sizes: tuple[int, ...]
    width: int
    fraction: int
    rounding: Rounding
    rate: int
    first: int
    learn_noise: bool
    shrink: int
    score: int
    forgetting: int
    inverse: int
    inverse_root: int
    start: int
    floor: int
    keep: Keep
    capacity: int
    groups: int
    replays: int
    store_shift: int
    log2_e: int
    ln_2: int
    arrays: Mapping[str, Array]
    scales: Scales | None = None

    def __post_init__(self) -> None:
        known = (
            ("kind", self.kind, KINDS),
            ("loss", self.loss, LOSSES),
            ("rounding", self.rounding, ROUNDINGS),
            ("keep", self.keep, KEEPS),
        )
        for what, value, names in known:
            if value not in names:
                raise ConfigError(
                    f"there is no C for the {what} {value!r} of a learner; "
                    f"there is for {', '.join(names)}"
                )
        weights = len(self.arrays["weights"])
        needed = sum((n + 1) * m for n, m in pairwise(self.sizes))
        if weights != needed:
            raise ConfigError(
                f"layers of {self.sizes} have {needed} weights and the learner has {weights}; "
                "were its sizes changed?"
            )

    @property
    def word(self) -> str:
        return f"int{8 if self.width <= 8 else 16 if self.width <= 16 else 32}_t"

    @property
    def low(self) -> int:
        return -(1 << (self.width - 1))

    @property
    def high(self) -> int:
        return (1 << (self.width - 1)) - 1

    @property
    def stored(self) -> str:
        bits = self.width - self.store_shift
        return f"int{8 if bits <= 8 else 16 if bits <= 16 else 32}_t"


def learner_header(learner: Learner, name: str) -> Header:
    """`<name>_predict(x, y)` and `<name>_learn(x, t)`, equal to the learner bit for bit.

    Its state is one struct, `<name>_state`, which begins as the learner's arrays say. Layers that
    do not learn, feedback and tables are constants. With `scales`, `<name>_inputs` takes features.
    """
    checked_name(name)
    words, values = _words(learner), _values(learner, name)
    tables, constants = _tables(learner, name)
    values |= {"tables": tables, "state": _state(learner)}
    template = files("stillfit.firmware.c99").joinpath("learner.h").read_text()
    parts = [
        chosen(template, words | {part}, values, name)
        for part in ("declarations", "implementation")
    ]
    sizes = "-".join(str(n) for n in learner.sizes)
    notes = f"""A dense network that learns on the device, {sizes}.
{learner.kind.capitalize()}, loss: {learner.loss}.
Numbers of {learner.width} bits, {learner.fraction} behind the point, rounded {learner.rounding}."""
    return Header(
        name=name,
        text=framed(name, notes, *parts),
        inputs=learner.sizes[0],
        outputs=learner.sizes[-1],
        input_type=dtype_of(learner.word),
        output_type=dtype_of(learner.word),
        ram=_ram(learner),
        constants=constants,
    )


def _memory(learner: Learner) -> bool:
    return learner.keep != "nothing" and learner.capacity > 0


def _words(learner: Learner) -> set[str]:
    """Conditions of the template that hold."""
    at_classes = learner.loss in ("softmax", "squared", "hinge")
    deep = learner.kind == "gradient" and learner.first < len(learner.sizes) - 2
    noise = learner.learn_noise and learner.loss == "gaussian" and learner.kind != "perturbation"
    tests = {
        "memory": _memory(learner),
        "recall": _memory(learner) and learner.replays > 0,
        "reservoir": _memory(learner) and learner.keep == "reservoir",
        "shortened": _memory(learner) and learner.store_shift > 0,
        "classes": at_classes,
        "regression": not at_classes,
        "scales": learner.scales is not None,
        "noise": noise,
        "exponential": noise or learner.loss == "softmax",
        "logarithm": learner.loss == "softmax" and learner.kind == "perturbation",
        "forgets": learner.inverse != 1 << 16,
        "backward": deep,
        "fed": learner.kind == "feedback" and len(learner.sizes) > 2,
        # What is predicted is never rounded by chance.
        "half-up": learner.rounding != "nearest-even",
    }
    return {
        learner.kind,
        learner.loss,
        learner.rounding,
        *(word for word, holds in tests.items() if holds),
    }


def _values(learner: Learner, name: str) -> dict[str, str]:
    sizes, first = learner.sizes, learner.first
    layers, size = len(sizes) - 1, sizes[-2] + 1
    learning = sum(sizes[1 + first :])
    sent = 1 if learner.loss == "gaussian" else sizes[-1]
    groups = max(learner.groups, 1)
    shift = learner.store_shift
    numbers = {
        "inputs": sizes[0],
        "outputs": sizes[-1],
        "last_class": sizes[-1] - 1,
        "fraction": learner.fraction,
        "two_fraction": 2 * learner.fraction,
        "places": learner.fraction + 14,
        "steps": learner.fraction + 8,
        "log2_e": learner.log2_e,
        "ln_2": learner.ln_2,
        "low": learner.low,
        "high": learner.high,
        "covariance": size * size,
        "size": size,
        "features": size - 1,
        "groups": groups,
        "share": learner.capacity // groups,
        "learned": sum((n + 1) * m for n, m in list(pairwise(sizes))[first:]),
        "capacity": learner.capacity,
        "kept": learner.capacity * sizes[0],
        "values": sum(sizes),
        "errors": learning,
        "z": sum(sizes[:-1]),
        "phi": sum(sizes[:-2]),
        "last_errors": learning - sizes[-1],
        "score": learner.score,
        "shrink": learner.shrink,
        "perturbation": 1 << (learner.fraction - learner.shrink),
        "rate": learner.rate,
        "hidden": sum(sizes[1:-1]),
        "sent": sent,
        "start": learner.start,
        "forgetting": learner.forgetting,
        "inverse": learner.inverse,
        "inverse_root": learner.inverse_root,
        "floor": learner.floor,
        "replays": learner.replays,
        "unit": 1 << shift,
        "half_unit": 1 << (shift - 1) if shift else 0,
        "store_shift": shift,
        "store_low": learner.low >> shift,
        "store_high": learner.high >> shift,
    }
    plain = {"inputs", "outputs", "fraction", "places", "steps", "shrink"}
    told = {k: str(v) if k in plain else whole(v) for k, v in numbers.items()}
    # Places in the memory are unsigned.
    told |= {k: f"UINT32_C({numbers[k]})" for k in ("share",)}
    told |= {"word": learner.word, "stored": learner.stored, "sum": "int64_t"}
    told |= {"group": "t" if learner.keep == "class-ring" else "0"}
    one = float(1 << learner.fraction).hex()
    scales = learner.scales
    if scales is not None:
        rows = zip(scales.mean.tolist(), scales.std.tolist(), strict=True)
        told |= {
            "scale": ",\n".join(f"        {{{m.hex()}, {s.hex()}}}" for m, s in rows),
            "target_mean": f"({float(scales.target_mean).hex()})",
            "target_std": float(scales.target_std).hex(),
            "one": one,
        }
    # Where weights, values and errors of each layer lie.
    ends = [0, *accumulate((n + 1) * m for n, m in pairwise(sizes))]
    at = [0, *accumulate(sizes)]
    where = [
        f"{name}_frozen + {ends[k]}"
        if k < first
        else f"{name}_state.weights + {ends[k] - ends[first]}"
        for k in range(layers)
    ]
    error = [at[k + 1] - at[first + 1] for k in range(layers)]
    v, e = f"{name}_values", f"{name}_errors"

    def lines(texts: list[str]) -> str:
        return "\n".join(f"    {text}" for text in texts)

    low = [learner.low if k == layers - 1 else 0 for k in range(layers)]
    ahead = [
        f"({where[k]}, {v} + {at[k]}, {v} + {at[k + 1]}, {sizes[k]}, {sizes[k + 1]}, "
        f"{whole(low[k])}"
        for k in range(layers)
    ]
    still = [1 if k == layers - 1 and learner.loss == "gaussian" else -1 for k in range(layers)]
    told["forward"] = lines([f"{name}_layer{part});" for part in ahead])
    told["moved"] = lines(
        [f"{name}_moved{part}, {s}, step);" for part, s in zip(ahead, still, strict=True)]
    )
    told["perturb"] = lines(
        [
            f"{name}_perturb({where[k]}, {sizes[k]}, {sizes[k + 1]}, {still[k]}, slope);"
            for k in range(layers)
        ]
    )
    told["descend"] = lines(
        [
            f"{name}_descend({where[k]}, {v} + {at[k]}, {e} + {error[k]}, "
            f"{sizes[k]}, {sizes[k + 1]});"
            for k in range(first, layers)
        ]
    )
    back = [
        f"{name}_back({where[k]}, {e} + {error[k]}, {v} + {at[k]}, {e} + {error[k - 1]}, "
        f"{sizes[k]}, {sent if k == layers - 1 else sizes[k + 1]});"
        for k in range(layers - 1, first, -1)
    ]
    if learner.kind == "feedback":
        back = [f"{name}_feed_back();"] if layers > 1 else []
    told["backward"] = lines(back)
    return told


def _state(learner: Learner) -> str:
    """First values of the state, member by member as the template declares them."""
    names = ["covariance", "guards"] if learner.kind == "least-squares" else []
    names += ["random", *(["counts"] if _memory(learner) else []), "weights"]
    names += ["kept_t", "kept_x"] if _memory(learner) else []
    arrays = dict(learner.arrays)
    frozen = len(arrays["weights"]) - int(_learned(learner))
    arrays["weights"] = arrays["weights"][frozen:]
    told = []
    for name in names:
        flat = np.asarray(arrays[name]).reshape(-1)
        told.append(initial(flat) if flat.any() else "{ 0 }")
    return ",\n".join(told)


def _learned(learner: Learner) -> int:
    return sum((n + 1) * m for n, m in list(pairwise(learner.sizes))[learner.first :])


def _tables(learner: Learner, name: str) -> tuple[str, dict[str, int]]:
    words, item = _words(learner), dtype_of(learner.word).itemsize
    frozen = np.asarray(learner.arrays["weights"])[: -_learned(learner)]
    found = [
        ("frozen", learner.word, frozen, len(frozen) > 0),
        ("feedback", learner.word, learner.arrays.get("feedback"), learner.kind == "feedback"),
        ("powers", "int16_t", learner.arrays.get("powers"), "exponential" in words),
        ("logarithms", "int16_t", learner.arrays.get("logarithms"), "logarithm" in words),
    ]
    text, constants = [], {}
    for label, kind, array, needed in found:
        if needed and array is not None and len(array):
            text.append(table(kind, f"{name}_{label}", array))
            constants[label] = len(array) * (item if kind == learner.word else 2)
    if learner.scales is not None:
        constants["scales"] = 16 * learner.sizes[0]
    return "".join(text), constants


def _ram(learner: Learner) -> dict[str, int]:
    item = dtype_of(learner.word).itemsize
    size = learner.sizes[-2] + 1
    found = {"weights": _learned(learner) * item, "values": sum(learner.sizes) * item, "random": 12}
    if learner.kind == "perturbation":
        found["signs"] = 8
    else:
        found["errors"] = sum(learner.sizes[1 + learner.first :]) * item
    if learner.kind == "least-squares":
        found |= {"covariance": 4 * size * size, "products": 4 * size, "gains": 4 * size}
        found["guards"] = 8
    if _memory(learner):
        found["kept_x"] = learner.capacity * learner.sizes[0] * dtype_of(learner.stored).itemsize
        found["kept_t"] = learner.capacity * item
        found["counts"] = 4 * learner.groups
    return found
