"""The integer learners in plain Python integers: what the compiled ones, C and RTL must equal.

Written for reading, with rows and layers as lists and integers without width, so that an overflow
of 64 bits in a compiled learner would show as a difference. About a thousand times slower.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import numpy as np

from stillfit.core.arrays import Array
from stillfit.updaters.embedded import fixed
from stillfit.updaters.embedded import kernels as k
from stillfit.updaters.embedded.kernels import Device, Plan

Row: TypeAlias = list[int]


class Reference:
    """A device in Python integers; `state()` gives its state under the names of its arrays.

    `ends`: lowest and highest number of each weight (`kernels.learn`).
    """

    def __init__(self, device: Device, plan: Plan, ends: tuple[Array, Array] | None = None) -> None:
        self.plan = plan
        self.ends = None if ends is None else [[int(v) for v in end] for end in ends]
        self.sizes = [int(n) for n in device.sizes]
        self.layers: list[list[Row]] = []
        flat = [int(w) for w in device.weights]
        for n, m in pairwise(self.sizes):
            self.layers.append([flat[i * (n + 1) : (i + 1) * (n + 1)] for i in range(m)])
            flat = flat[m * (n + 1) :]
        self.feedback = [int(b) for b in device.feedback]
        size = self.sizes[-2] + 1 if plan.kind == k.LEAST_SQUARES else 0
        cov = [int(c) for c in device.covariance]
        self.covariance = [cov[i * size : (i + 1) * size] for i in range(size)]
        self.kept = [
            ([int(v) for v in x], int(t))
            for x, t in zip(device.kept_x, device.kept_t, strict=True)
        ]  # fmt: skip
        self.counts = [int(c) for c in device.counts]
        self.random = [int(r) for r in device.random]
        self.guards = [int(g) for g in device.guards]
        self.macs = 0

    # -- arithmetic -------------------------------------------------------------------------------

    def draw(self, which: int) -> int:
        self.random[which] = fixed.next_state(self.random[which])
        return self.random[which]

    def saturate(self, v: int) -> int:
        return min(max(v, self.plan.low), self.plan.high)

    def settle(self, v: int, shift: int, mode: int | None = None) -> int:
        mode = self.plan.forward_mode if mode is None else mode
        whole, rest = divmod(v, 1 << shift)
        half = (1 << shift) // 2
        if mode == fixed.NEAREST_EVEN and rest == half:
            return whole + whole % 2
        return whole + (rest >= half)

    def learned(self, v: int, shift: int) -> int:
        if self.plan.mode == fixed.STOCHASTIC:
            # up with a probability of rest / 2^shift
            chance = self.draw(0) // (1 << (32 - shift))
            return v // (1 << shift) + (v % (1 << shift) + chance >= (1 << shift))
        return self.settle(v, shift, self.plan.mode)

    def exp_minus(self, d: int) -> int:
        whole, part = divmod(d * fixed.LOG2_E, 1 << (self.plan.fraction + fixed.TABLE_BITS))
        width = 1 << (self.plan.fraction + fixed.TABLE_BITS - fixed.STEPS_BITS)
        at, rest = divmod(part, width)
        upper, lower = int(fixed.POWERS[at]), int(fixed.POWERS[at + 1])
        value = upper - (upper - lower) * rest // width
        return value // (1 << whole) if whole >= 0 else value * (1 << -whole)

    def logarithm(self, s: int) -> int:
        n = s.bit_length() - 1
        at, rest = divmod((s - (1 << n)) * (1 << fixed.STEPS_BITS), (1 << n))
        lower, upper = int(fixed.LOGARITHMS[at]), int(fixed.LOGARITHMS[at + 1])
        return lower + (upper - lower) * rest // (1 << n) + (n - fixed.TABLE_BITS) * fixed.LN_2

    # -- network ----------------------------------------------------------------------------------

    def forward(self, x: Row, moves: list[list[Row]] | None = None) -> list[Row]:
        """Values of all layers, the inputs first; `moves` are added to the weights."""
        one = 1 << self.plan.fraction
        values = [list(x)]
        for depth, layer in enumerate(self.layers):
            after = []
            for unit, row in enumerate(layer):
                move = moves[depth][unit] if moves else [0] * len(row)
                inputs = [*values[-1], one]
                total = sum((w + d) * v for w, d, v in zip(row, move, inputs, strict=True))
                out = self.saturate(self.settle(total, self.plan.fraction))
                after.append(out if depth == len(self.layers) - 1 else max(out, 0))
                self.macs += len(row) - 1
            values.append(after)
        return values

    def shares(self, out: Row) -> tuple[Row, int]:
        exps = [self.exp_minus(max(out) - z) for z in out]
        return exps, sum(exps)

    def rival(self, out: Row, t: int) -> int | None:
        wrong = [c for c in range(len(out)) if c != t]
        return max(wrong, key=lambda c: (out[c], -c)) if wrong else None

    def output_errors(self, out: Row, t: int) -> Row:
        plan, one = self.plan, 1 << self.plan.fraction
        if plan.loss in (k.MEAN, k.GAUSSIAN):
            errors = [self.saturate(out[0] - t)]
            if plan.loss == k.GAUSSIAN:
                errors.append(self.noise_error(out[0] - t, out[1]) if plan.learn_noise else 0)
            return errors
        if plan.loss == k.SOFTMAX:
            exps, total = self.shares(out)
            probabilities = [(e * one + total // 2) // total for e in exps]
            return [p - one * (c == t) for c, p in enumerate(probabilities)]
        if plan.loss == k.SQUARED:
            return [self.saturate(z - plan.score * (c == t)) for c, z in enumerate(out)]
        worst = self.rival(out, t)
        if worst is None or out[worst] + one <= out[t]:
            return [0] * len(out)
        return [one * (c == worst) - one * (c == t) for c in range(len(out))]

    def noise_error(self, away: int, s: int) -> int:
        one = 1 << self.plan.fraction
        limit = k.NOISE_LIMIT * one
        away, s = min(max(away, -limit), limit), min(max(s, -limit), limit)
        ratio = away * away // one * self.exp_minus(s) // (1 << fixed.TABLE_BITS)
        return self.saturate((one - min(ratio, limit)) // 2)

    def loss_of(self, out: Row, t: int) -> int:
        plan, one = self.plan, 1 << self.plan.fraction
        if plan.loss in (k.MEAN, k.GAUSSIAN):
            away = [self.saturate(out[0] - t)]
            return sum(a * a for a in away) // 2
        if plan.loss == k.SOFTMAX:
            ln = self.logarithm(self.shares(out)[1]) * one // (1 << fixed.TABLE_BITS)
            return (ln + max(out) - out[t]) * one
        if plan.loss == k.SQUARED:
            away = [self.saturate(z - plan.score * (c == t)) for c, z in enumerate(out)]
            return sum(a * a for a in away) // 2
        worst = self.rival(out, t)
        return 0 if worst is None else max(0, out[worst] + one - out[t]) * one

    # -- learning ---------------------------------------------------------------------------------

    def step(self, x: Row, t: int) -> None:
        self.move(x, t)
        if self.ends is None:
            return
        low, high = map(iter, self.ends)
        for layer in self.layers:
            for row in layer:
                row[:] = [min(max(w, next(low)), next(high)) for w in row]

    def move(self, x: Row, t: int) -> None:
        if self.plan.kind == k.PERTURBATION:
            self.perturb(x, t)
            return
        values = self.forward(x)
        errors = self.output_errors(values[-1], t)
        if self.plan.kind == k.LEAST_SQUARES:
            self.least_squares([*values[-2], 1 << self.plan.fraction], errors)
            return
        self.descend(values, self.hidden_errors(values, errors))

    def hidden_errors(self, values: list[Row], last: Row) -> list[Row]:
        """Errors of all layers, zeros for those that do not learn."""
        plan = self.plan
        sent = last[:1] if plan.loss == k.GAUSSIAN else last
        errors = [[0] * n for n in self.sizes[1:-1]] + [last]
        at = 0
        for depth in range(len(self.layers) - 1):
            if plan.kind != k.FEEDBACK:
                break
            for j in range(self.sizes[depth + 1]):
                row = self.feedback[at : at + len(sent)]
                at += len(sent)
                errors[depth][j] = self.through(row, sent, values[depth + 1][j])
        for depth in range(len(self.layers) - 2, plan.first - 1, -1):
            if plan.kind == k.FEEDBACK:
                break
            above = sent if depth == len(self.layers) - 2 else errors[depth + 1]
            for j in range(self.sizes[depth + 1]):
                column = [row[j] for row in self.layers[depth + 1]][: len(above)]
                errors[depth][j] = self.through(column, above, values[depth + 1][j])
        return errors

    def through(self, weights: Row, errors: Row, value: int) -> int:
        self.macs += len(errors)
        total = sum(w * e for w, e in zip(weights, errors, strict=True))
        return self.saturate(self.settle(total, self.plan.fraction)) if value > 0 else 0

    def descend(self, values: list[Row], errors: list[Row]) -> None:
        for depth in range(self.plan.first, len(self.layers)):
            inputs = [*values[depth], 1 << self.plan.fraction]
            for row, error in zip(self.layers[depth], errors[depth], strict=True):
                self.follow(row, inputs, error)

    def follow(self, row: Row, inputs: Row, error: int) -> None:
        for i, x in enumerate(inputs):
            change = self.learned(error * self.plan.rate * x, self.plan.fraction + fixed.RATE_BITS)
            row[i] = self.saturate(row[i] - change)
            self.macs += 1

    def perturb(self, x: Row, t: int) -> None:
        plan = self.plan
        signs = self.signs()
        size = 1 << (plan.fraction - plan.shrink)
        losses = []
        for way in (size, -size):
            moves = [[[way * s for s in row] for row in layer] for layer in signs]
            losses.append(self.loss_of(self.forward(x, moves)[-1], t))
        slope = min(max(losses[0] - losses[1], -(2**44)), 2**44) * (1 << plan.shrink)
        slope = self.saturate(self.settle(slope, plan.fraction + 1, fixed.HALF_UP))
        for depth in range(plan.first, len(self.layers)):
            for row, drawn in zip(self.layers[depth], signs[depth], strict=True):
                for i, sign in enumerate(drawn):
                    change = self.learned(slope * plan.rate * sign, fixed.RATE_BITS)
                    row[i] = self.saturate(row[i] - change)

    def signs(self) -> list[list[Row]]:
        """+-1 for each weight that learns, 0 for the others; 32 per draw, least bit first."""
        bits: list[int] = []
        signs: list[list[Row]] = []
        for depth, layer in enumerate(self.layers):
            signs.append([])
            for unit, row in enumerate(layer):
                drawn = []
                for _ in row:
                    if depth < self.plan.first:
                        drawn.append(0)
                        continue
                    if not bits:
                        word = self.draw(1)
                        bits = [word >> b & 1 for b in range(32)]
                    drawn.append(1 if bits.pop(0) else -1)
                noise = depth == len(self.layers) - 1 and unit == 1 and self.plan.loss == k.GAUSSIAN
                signs[-1].append([0] * len(row) if noise else drawn)
        return signs

    def least_squares(self, phi: Row, errors: Row) -> None:
        plan, one, size = self.plan, 1 << self.plan.fraction, len(phi)
        u = []
        for row in self.covariance:
            total = sum(c * f for c, f in zip(row, phi, strict=True))
            u.append(self.bounded(self.settle(total, plan.fraction)))
            self.macs += size - 1
        spread = self.settle(sum(a * f for a, f in zip(u, phi, strict=True)), plan.fraction)
        self.macs += size - 1
        if spread < 0:
            self.guards[1] += 1
            self.covariance = [[plan.start * (i == j) for j in range(size)] for i in range(size)]
            return
        gains = []
        for a in u:
            g = abs(a) * (1 << k.GAIN_BITS) // (plan.forgetting + spread)
            gains.append(self.bounded(g if a >= 0 else -g))
        for unit, row in enumerate(self.layers[-1]):
            if plan.loss == k.GAUSSIAN and unit == 1:
                self.follow(row, [*phi[:-1], one], errors[1])
                continue
            for i, g in enumerate(gains):
                row[i] = self.saturate(row[i] - self.learned(g * errors[unit], k.GAIN_BITS))
            self.macs += size
        forgets = [
            plan.inverse != 1 << fixed.RATE_BITS and self.covariance[i][i] < plan.start
            for i in range(size)
        ]
        for i in range(size):
            for j in range(i, size):
                value = self.covariance[i][j] - self.settle(gains[i] * u[j], k.GAIN_BITS)
                self.macs += 1
                if forgets[i] or forgets[j]:
                    both = forgets[i] and forgets[j]
                    factor = plan.inverse if both else plan.inverse_root
                    value = self.settle(value * factor, fixed.RATE_BITS)
                    self.macs += 1
                if value != self.bounded(value):
                    self.guards[0] += 1
                    value = self.bounded(value)
                if i == j:
                    value = max(value, plan.floor)
                self.covariance[i][j] = self.covariance[j][i] = value

    @staticmethod
    def bounded(v: int) -> int:
        return min(max(v, -(2**31)), 2**31 - 1)

    # -- memory -----------------------------------------------------------------------------------

    def held(self) -> Row:
        """The places of the memory that hold an example."""
        plan = self.plan
        share = plan.capacity // plan.groups
        return [
            g * share + i for g, seen in enumerate(self.counts) for i in range(min(seen, share))
        ]

    def remember(self, x: Row, t: int) -> None:
        plan = self.plan
        share = plan.capacity // plan.groups
        g = t if plan.keep == k.CLASS_RING else 0
        seen = self.counts[g]
        self.counts[g] = min(seen + 1, 2**31 - 1)
        place = g * share + seen % share
        if plan.keep == k.RESERVOIR and seen >= share:
            place = self.draw(2) * (seen + 1) // 2**32
            if place >= share:
                return
        shift = plan.store_shift
        short = [self.settle(v, shift, fixed.HALF_UP) if shift else v for v in x]
        self.kept[place] = ([min(max(v, plan.store_low), plan.store_high) for v in short], t)

    def learn(self, xs: Array, ts: Array) -> None:
        """Every example once, in order."""
        for x, t in zip(xs, ts, strict=True):
            row = [int(v) for v in x]
            self.step(row, int(t))
            if self.plan.keep == k.NOTHING:
                continue
            for _ in range(self.plan.replays):
                places = self.held()
                if places:
                    old, target = self.kept[places[self.draw(2) * len(places) // 2**32]]
                    self.step([v * (1 << self.plan.store_shift) for v in old], target)
            self.remember(row, int(t))

    def state(self) -> dict[str, Array]:
        """What a device keeps from example to example, under the names of its arrays."""
        flat = [w for layer in self.layers for row in layer for w in row]
        return {
            "weights": np.array(flat),
            "covariance": np.array([c for row in self.covariance for c in row], np.int64),
            "kept_x": np.array([x for x, _ in self.kept], np.int64).reshape(-1, self.sizes[0]),
            "kept_t": np.array([t for _, t in self.kept], np.int64),
            "counts": np.array(self.counts),
            "random": np.array(self.random),
            "guards": np.array(self.guards),
        }
