"""What a learner's circuit does in which order, how wide its numbers are, and its clock cycles.

Everything is a pass: a loop over rows and columns that brings a product a clock. Between two passes
the pipeline runs empty, so that the next one reads what the last has written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

import numpy as np

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.firmware.c99.learning import Learner

Kind: TypeAlias = Literal[
    "forward", "backward", "descend", "products", "spread", "follow", "covariance"
]
# The arithmetic of docs/learning/embedded.md.
RATE = 16  # fraction bits of rates and forgetting
GAIN = 20  # fraction bits of the gains
WORD = 32  # bits of the covariance, its products and gains
TABLE, STEPS = 14, 6  # the exponential's table: its fraction bits, its steps as bits
NOISE_LIMIT = 8
FACTOR = RATE + 3  # 1 / forgetting, at most 2, with a sign
VALUE = 2 * WORD - GAIN  # entry of the covariance less gain x product
LONGEST = 63  # bits of the kernels' sums, which lie in 64 with their sign
Ends: TypeAlias = tuple[Array, Array]
KINDS = ("gradient", "least-squares")


@dataclass(frozen=True)
class Walk:
    """Addresses in one memory: the first, and the steps from column to column and row to row."""

    start: int
    column: int
    row: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A loop over `rows` x `columns` products.

    forward (weights x values), backward (weights x errors), products and spread (covariance or
    products x features) sum a row and write once per row; descend (error x input), follow (gain x
    error) and covariance (gain x product, of the upper triangle) write at every product. `reads`:
    walks by memory. `target`: first address that is written. `one`: the last column's right
    operand is 1, the bias's input. `last`: the last layer.
    """

    kind: Kind
    rows: int
    columns: int
    reads: Mapping[str, Walk]
    target: int = 0
    one: bool = False
    last: bool = False

    @property
    def summed(self) -> bool:
        return self.kind in ("forward", "backward", "products", "spread")

    @property
    def products(self) -> int:
        if self.kind == "covariance":
            return self.rows * (self.rows + 1) // 2
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """Clock cycles of one example, from its first input to the next one's first.

    `forward`: prediction alone. `update`: prediction and learning step. `restart`: of least
    squares where the covariance begins anew instead (None: does not happen). None of them depends
    on the data in any other way.
    """

    forward: int
    update: int
    restart: int | None = None

    @property
    def longest(self) -> int:
        return max(self.update, self.restart or 0)


class Layout:
    """Passes, widths and cycles of a learner; `ConfigError` where there is no circuit for it."""

    def __init__(self, learner: Learner, ends: Ends | None = None) -> None:
        self.learner, self.ends = learner, ends
        _possible(learner)
        if ends is not None:
            _inside(learner, ends)
        sizes, self.sizes = learner.sizes, learner.sizes
        self.layers = len(sizes) - 1
        self.width, self.fraction = learner.width, learner.fraction
        self.outputs = sizes[-1]
        self.size = sizes[-2] + 1
        self.weight_at = [0, *accumulate((n + 1) * m for n, m in pairwise(sizes))]
        self.value_at = [0, *accumulate(sizes)]
        self.z = self.value_at[-2]  # where the outputs lie
        self.errors = sum(sizes[1 + learner.first :])
        self.error_of = self.errors - self.outputs  # of the first output
        self.sent = 1 if learner.loss == "gaussian" else self.outputs
        self.least_squares = learner.kind == "least-squares"
        self.forgets = self.least_squares and learner.inverse != 1 << RATE
        self.stochastic = learner.rounding == "stochastic"
        self.even = learner.rounding == "nearest-even"
        self.noise = learner.loss == "gaussian" and learner.learn_noise
        self.exponential = self.noise or learner.loss == "softmax"
        self.divides = self.least_squares or learner.loss == "softmax"
        self.passes = tuple(self._passes())
        self.forwards = self.layers
        self._widths()

    # -- order ------------------------------------------------------------------------------------

    def _passes(self) -> list[Pass]:
        sizes, first = self.sizes, self.learner.first
        pairs = list(pairwise(sizes))
        found = []
        for layer, (n, m) in enumerate(pairs):
            weights, values = self.weight_at[layer], self.value_at[layer]
            reads = {"weights": Walk(weights, 1, n + 1), "values": Walk(values, 1, 0)}
            found.append(
                Pass(
                    kind="forward", rows=m, columns=n + 1, reads=reads, one=True,
                    target=self.value_at[layer + 1], last=layer == self.layers - 1,
                )
            )  # fmt: skip
        if self.least_squares:
            return found + self._least_squares()
        above = self.errors - self.outputs
        for layer in range(self.layers - 1, first, -1):
            n, m = pairs[layer]
            rows = self.sent if layer == self.layers - 1 else m
            reads = {
                "weights": Walk(self.weight_at[layer], n + 1, 1),
                "errors": Walk(above, 1, 0),
                "values": Walk(self.value_at[layer], 0, 1),  # its sign is ReLU's slope
            }
            above -= n
            found.append(Pass(kind="backward", rows=n, columns=rows, reads=reads, target=above))
        error = 0
        for layer in range(first, self.layers):
            found.append(self._descend(layer, error, range(pairs[layer][1])))
            error += pairs[layer][1]
        return found

    def _descend(self, layer: int, error: int, units: range) -> Pass:
        """The gradient step of some units of a layer."""
        n = self.sizes[layer]
        weights = self.weight_at[layer] + units.start * (n + 1)
        reads = {
            "weights": Walk(weights, 1, n + 1),
            "values": Walk(self.value_at[layer], 1, 0),
            "errors": Walk(error + units.start, 0, 1),
        }
        return Pass(
            kind="descend", rows=len(units), columns=n + 1, reads=reads, one=True, target=weights
        )

    def _least_squares(self) -> list[Pass]:
        size, phi = self.size, Walk(self.value_at[-3], 1, 0)
        weights = self.weight_at[-2]
        units = self.sent
        found = [
            Pass(
                kind="products", rows=size, columns=size, one=True,
                reads={"covariance": Walk(0, 1, 1), "values": phi},
            ),
            Pass(
                kind="spread", rows=1, columns=size, one=True,
                reads={"products": Walk(0, 1, 0), "values": phi},
            ),
            Pass(
                kind="follow", rows=units, columns=size, target=weights,
                reads={
                    "gains": Walk(0, 1, 0),
                    "errors": Walk(self.error_of, 0, 1),
                    "weights": Walk(weights, 1, size),
                },
            ),
        ]  # fmt: skip
        if self.learner.loss == "gaussian":
            found.append(self._descend(self.layers - 1, self.error_of, range(1, 2)))
        reads = {
            "gains": Walk(0, 0, 1),
            "products": Walk(0, 1, 1),
            "covariance": Walk(0, 1, size + 1),
        }
        return [*found, Pass(kind="covariance", rows=size, columns=size, reads=reads)]

    # -- widths -----------------------------------------------------------------------------------

    def _widths(self) -> None:
        """Bits of the multiplier's operands, of sums, of what is rounded; signs counted."""
        w, f = self.width, self.fraction
        left, right, total, rounded = [w], [w], [], []
        for one in self.passes:
            bits = 2 * w + (one.columns - 1).bit_length()
            shift = f
            if one.kind == "descend":
                rate = max(self.learner.rate - 1, 0).bit_length()
                bits, shift = 2 * w + rate, f + RATE
            elif one.kind in ("products", "spread"):
                left.append(WORD)
                bits = WORD + w + (one.columns - 1).bit_length()
            elif one.kind == "follow":
                left.append(WORD)
                bits, shift = WORD + w, GAIN
            elif one.kind == "covariance":
                left.append(VALUE if self.forgets else WORD)
                right.append(WORD)
                bits, shift = 2 * WORD, GAIN
                if self.forgets:
                    again = VALUE + FACTOR
                    total.append(again)
                    rounded.append(again - RATE + 1)
            if bits > LONGEST + 1:
                raise ConfigError(
                    f"sums over {one.columns} products of {w} bits need {bits} bits and the "
                    f"kernels have {LONGEST + 1}: use a smaller width, or fewer inputs"
                )
            total.append(bits)
            rounded.append(bits - shift + 1)
        if self.exponential:
            left += [w + 1, f + STEPS + 5, f + TABLE - STEPS + 1]
            right += [TABLE + 2, TABLE - STEPS + 2]
            total += [w + TABLE + 3, f + 2 * TABLE]
        if self.noise:
            left += [2 * TABLE + 1]
            right += [f + 8]
            total += [f + 2 * TABLE + 9, 2 * f + 10]
        self.left, self.right = max(left), max(right)
        self.total, self.rounded = max(*total, self.left), max(rounded)

    @property
    def ports(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bits of the inputs and outputs, without the clock and the reset."""
        w = self.width
        deepest = max(self.weight_at[-1], self.size**2 if self.least_squares else 0)
        inputs = {"in_valid": 1, "in_value": w, "learn": 1, "target": w}
        inputs |= {"state_area": 2, "state_address": (deepest - 1).bit_length()}
        inputs |= {"state_write": 1, "state_data": WORD}
        outputs = {"in_ready": 1, "out_valid": 1, "out_value": w, "done": 1, "state_value": WORD}
        return inputs, outputs

    @property
    def depth(self) -> int:
        """Registers from the multiplier's operands to its product, odd.

        One where a multiplier block takes the product and the rate is a power of two; three where
        partial products, or the terms of the rate, must be added.
        """
        rate = self.learner.rate
        plain = rate & (rate - 1) == 0 or all(one.kind != "descend" for one in self.passes)
        large, small = max(self.left, self.right), min(self.left, self.right)
        return 1 if plain and large <= 25 and small <= 18 else 3

    # -- time -------------------------------------------------------------------------------------

    @property
    def reach(self) -> int:
        """Clocks from a product's addresses to its result."""
        return 4 + self.depth

    def flight(self, one: Pass) -> int:
        """Clocks from the last product's addresses to its result in a memory."""
        return (2 if self.twice(one) else 1) * self.reach + 1

    @property
    def flight_again(self) -> int:
        """Clocks from an entry's addresses to the rounding of its second product."""
        return 3 + self.depth + self.reach

    def twice(self, one: Pass) -> bool:
        """Whether each entry uses the multiplier twice: every second clock, and once more later."""
        return one.kind == "covariance" and self.forgets

    def clocks(self, one: Pass) -> int:
        """Clocks of a pass, with the one that sets its addresses."""
        each = 2 if self.twice(one) else 1
        return one.products * each - (each - 1) + self.flight(one)

    @property
    def cycles(self) -> Cycles:
        head = [*self.passes[: self.forwards]]
        forward = self.sizes[0] + sum(self.clocks(one) for one in head) + 1
        rest = self.passes[self.forwards :]
        update = forward + self._error_clocks() + sum(self.clocks(one) for one in rest)
        if not self.least_squares:
            return Cycles(forward=forward, update=update)
        spread = sum(self.clocks(one) for one in rest[:2]) + 1
        restart = forward + self._error_clocks() + spread + self.size**2
        divided = self.size * (WORD + GAIN + 3)
        return Cycles(forward=forward, update=update + 1 + divided, restart=restart)

    @property
    def multiplied(self) -> int:
        """Clocks of a product outside of passes."""
        return self.depth + 2

    @property
    def quotient(self) -> int:
        """Bits that are divided, one a clock."""
        if self.least_squares:
            return WORD + GAIN
        return ((1 << TABLE + self.fraction) + (self.outputs << TABLE - 1)).bit_length()

    @property
    def divisor(self) -> int:
        """Bits of what is divided by; of least squares phi^T P phi and the forgetting, signed."""
        if self.least_squares:
            return WORD + self.width + self.size.bit_length() - self.fraction + 3
        return TABLE + 1 + self.outputs.bit_length()

    def _error_clocks(self) -> int:
        exp = 2 * self.multiplied + 1
        m = self.outputs
        if self.learner.loss == "softmax":
            return m * (2 + exp + 1) + m * (2 + self.quotient + 1)
        if self.learner.loss == "squared":
            return 2 * m
        if self.learner.loss == "hinge":
            return m
        if self.noise:
            return 3 + 2 * self.multiplied + exp
        return 3 if self.learner.loss == "gaussian" else 2


def _possible(learner: Learner) -> None:
    if learner.kind not in KINDS:
        raise ConfigError(
            f"there is no circuit for a learner by {learner.kind}; there is for {', '.join(KINDS)}:"
            " EmbeddedSGD, EmbeddedLMS and EmbeddedRLS"
        )
    if learner.keep != "nothing" and learner.capacity:
        raise ConfigError(
            f"a circuit keeps no examples and this learner keeps {learner.capacity}; leave them "
            "out, and let the host give it examples again"
        )
    if not 4 <= learner.width <= 24 or not 1 <= learner.fraction <= min(16, learner.width - 2):
        raise ConfigError(
            f"numbers of {learner.width} bits with {learner.fraction} behind the point have no "
            "circuit: 4 to 24 bits, and 1 to 16 behind the point with 2 in front of it"
        )
    if learner.loss == "gaussian" and learner.sizes[-1] != 2:
        raise ConfigError(
            f"a mean and a log-variance are 2 outputs, and the learner has {learner.sizes[-1]}"
        )


def _inside(learner: Learner, ends: Ends) -> None:
    """Ends are those of this learner's weights, which lie between them when it begins."""
    weights = np.asarray(learner.arrays["weights"])
    low, high = ends
    if low.shape != weights.shape or high.shape != weights.shape:
        raise ShapeError(
            f"{len(weights)} weights need as many lowest and highest numbers, got {low.shape} and "
            f"{high.shape}"
        )
    outside = np.flatnonzero((weights < low) | (weights > high))
    if len(outside):
        at = int(outside[0])
        raise ConfigError(
            f"weight {at} begins as {int(weights[at])} and its ends are {int(low[at])} and "
            f"{int(high[at])}; bring the weights between their ends first"
        )
