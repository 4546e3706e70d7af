"""The compiled integer learners: one loop over examples, on the static arrays of a device.

All in one file, because numba's cache looks at the file of the cached function alone. Each is
equal bit for bit to `reference.py`, which says the same in plain Python; C and RTL follow. Integers
are 64 bits wide inside, `>>` is arithmetic (floor), and divisions are of numbers without sign.

The order of work per example is fixed and so is its amount: no step is skipped for a zero, so
that time, draws and multiply-accumulates do not depend on the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit

from stillfit.core.arrays import Array
from stillfit.updaters.embedded import fixed

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """`function` as machine code, kept on disk; its types stay known to readers."""
    return cast(_F, njit(cache=True, nogil=True, error_model="numpy")(function))


# Learners, losses, ways to keep examples: numbers that a compiled branch compares.
GRADIENT, FEEDBACK, PERTURBATION, LEAST_SQUARES = range(4)
MEAN, GAUSSIAN, SOFTMAX, SQUARED, HINGE = range(5)
NOTHING, RESERVOIR, RING, CLASS_RING = range(4)

_RATE = fixed.RATE_BITS
_TABLE = fixed.TABLE_BITS
_STEPS = fixed.STEPS_BITS
_LOG2_E = fixed.LOG2_E
_LN_2 = fixed.LN_2
_STOCHASTIC = fixed.STOCHASTIC
_NEAREST_EVEN = fixed.NEAREST_EVEN
_HALF_UP = fixed.HALF_UP
_WORD = 0xFFFFFFFF
GAIN_BITS = 20  # fraction bits of the gains of least squares
NOISE_LIMIT = 8  # largest |log-variance| and |error| that the noise learns from
_COV_HIGH = 2**31 - 1
_COV_LOW = -(2**31)
_COUNT_HIGH = 2**31 - 1
_NO_ENDS = np.zeros(0, np.int32)
_SLOPE_HIGH = 2**44  # of a difference of losses: shifted by up to 16, it stays in 64 bits


class Plan(NamedTuple):
    """What a device's program is compiled for: numbers that never change."""

    kind: int
    loss: int
    learn_noise: int
    low: int
    high: int
    fraction: int
    mode: int
    forward_mode: int
    rate: int
    first: int  # the first layer that learns
    shrink: int  # perturbations are 2^-shrink
    score: int  # what the right class of squared errors and least squares should say
    forgetting: int
    inverse: int  # of forgetting, and its root
    inverse_root: int
    start: int  # of the covariance's diagonal
    floor: int
    keep: int
    capacity: int
    groups: int
    replays: int
    store_shift: int
    store_low: int
    store_high: int


class Device(NamedTuple):
    """The static arrays of a device; every byte that it needs while it learns.

    `weights`: layer after layer and row after row, each with its bias last. `values`: inputs and
    activations of all layers; `errors`: of the layers that learn. `counts`: seen per group.
    `random`: states of the generators of rounding, perturbation and memory. `guards`: how often
    an entry of the covariance was saturated, and how often it began anew.
    """

    sizes: Array
    weights: Array
    values: Array
    errors: Array
    feedback: Array
    covariance: Array
    products: Array
    gains: Array
    kept_x: Array
    kept_t: Array
    counts: Array
    random: Array
    guards: Array
    powers: Array
    logarithms: Array


@compiled
def xorshift(x: int) -> int:
    """The next state of a generator, see `fixed.next_state`."""
    x ^= (x << 13) & _WORD
    x ^= x >> 17
    return x ^ ((x << 5) & _WORD)


@compiled
def draw(random: Any, which: int) -> int:
    """The next 32 bits of a generator."""
    x = xorshift(int(random[which]))
    random[which] = x
    return x


@compiled
def settle(v: int, shift: int, mode: int) -> int:
    """v / 2^shift without chance: half up, or ties to even. `shift` >= 1."""
    if mode == _NEAREST_EVEN:
        q = v >> shift
        rest = v - (q << shift)
        half = 1 << (shift - 1)
        if rest > half or (rest == half and q & 1):
            q += 1
        return q
    return (v + (1 << (shift - 1))) >> shift


@compiled
def learned(v: int, shift: int, mode: int, state: int) -> tuple[int, int]:
    """v / 2^shift as what is learned is rounded, and the generator's state thereafter.

    The state travels as a number, so that it stays in a register from draw to draw.
    """
    if mode == _STOCHASTIC:
        state = xorshift(state)
        return (v + (state >> (32 - shift))) >> shift, state
    return settle(v, shift, mode), state


@compiled
def clip(v: int, low: int, high: int) -> int:
    return low if v < low else high if v > high else v


@compiled
def exp_minus(d: int, fraction: int, powers: Any) -> Any:
    """exp(-d / 2^fraction) in 1 / 2^14: 2^-n by shifting, 2^-x by the table."""
    places = fraction + _TABLE
    y = d * _LOG2_E
    n = y >> places
    x = y - (n << places)
    at = x >> (places - _STEPS)
    rest = x - (at << (places - _STEPS))
    upper = int(powers[at])
    value = upper - (((upper - int(powers[at + 1])) * rest) >> (places - _STEPS))
    if n > _TABLE:
        return 0
    return value >> n if n >= 0 else value << -n


@compiled
def logarithm(s: int, logarithms: Any) -> Any:
    """ln(s / 2^14) in 1 / 2^14, for s >= 1."""
    n = 0
    while s >> (n + 1):
        n += 1
    scaled = (s - (1 << n)) << _STEPS
    at = scaled >> n
    rest = scaled - (at << n)
    lower = int(logarithms[at])
    value = lower + (((int(logarithms[at + 1]) - lower) * rest) >> n)
    return value + (n - _TABLE) * _LN_2


@compiled
def forward(sizes: Any, w: Any, a: Any, p: Any) -> int:
    """Activations of all layers in `a`, after its inputs; returns the multiplications."""
    macs, at, before = 0, 0, 0
    layers = len(sizes) - 1
    for layer in range(layers):
        n, m = sizes[layer], sizes[layer + 1]
        after = before + n
        low = p.low if layer == layers - 1 else 0  # ReLU, and saturation
        x = a[before:after]  # slices: numba then knows that no index counts from the end
        for k in range(m):
            row = w[at : at + n]
            acc = int(w[at + n]) << p.fraction
            for i in range(n):
                acc += int(row[i]) * int(x[i])
            a[after + k] = clip(settle(acc, p.fraction, p.forward_mode), low, p.high)
            at += n + 1
            macs += n
        before = after
    return macs


@compiled
def toss(random: Any, word: int, used: int) -> Any:
    """One more sign: 32 of them per draw, least bit first. Returns the draw and bits used."""
    if used == 32:
        return draw(random, 1), 1
    return word, used + 1


@compiled
def perturbed(sizes: Any, w: Any, a: Any, random: Any, p: Any, sign: int) -> int:
    """`forward` with every learned weight moved by `sign` x (+-1) / 2^shrink; nothing is stored."""
    macs, at, before = 0, 0, 0
    layers = len(sizes) - 1
    step = sign * (1 << (p.fraction - p.shrink))
    bits, used = 0, 32
    for layer in range(layers):
        n, m = sizes[layer], sizes[layer + 1]
        after = before + n
        last = layer == layers - 1
        low = p.low if last else 0
        for k in range(m):
            noise = last and k == 1 and p.loss == GAUSSIAN
            acc = 0
            for i in range(n + 1):
                move = 0
                if layer >= p.first:
                    bits, used = toss(random, bits, used)
                    move = step if (bits >> (used - 1)) & 1 else -step
                if noise:
                    move = 0
                x = int(a[before + i]) if i < n else 1 << p.fraction
                acc += (int(w[at + i]) + move) * x
            a[after + k] = clip(settle(acc, p.fraction, p.forward_mode), low, p.high)
            at += n + 1
            macs += n
        before = after
    return macs


@compiled
def class_sum(a: Any, m: int, p: Any, powers: Any) -> Any:
    """The largest score, and the sum of exp(score - largest) in 1 / 2^14."""
    out = len(a) - m
    top = int(a[out])
    for k in range(1, m):
        top = max(top, int(a[out + k]))
    total = 0
    for k in range(m):
        total += exp_minus(top - int(a[out + k]), p.fraction, powers)
    return top, total


@compiled
def rival(a: Any, m: int, t: int) -> int:
    """The wrong class of the largest score, the first of equals."""
    out = len(a) - m
    best = -1
    for k in range(m):
        if k != t and (best < 0 or a[out + k] > a[out + best]):
            best = k
    return best


@compiled
def output_errors(a: Any, e: Any, m: int, p: Any, t: int, powers: Any) -> None:
    """Errors of the last layer: the gradient of the loss with respect to its outputs."""
    out = len(a) - m
    err = len(e) - m
    one = 1 << p.fraction
    if p.loss == MEAN or p.loss == GAUSSIAN:
        away = int(a[out]) - t
        e[err] = clip(away, p.low, p.high)
        if p.loss == GAUSSIAN:
            e[err + 1] = 0
            if p.learn_noise:
                limit = NOISE_LIMIT << p.fraction
                away = clip(away, -limit, limit)
                s = clip(int(a[out + 1]), -limit, limit)
                square = (away * away) >> p.fraction
                ratio = (square * exp_minus(s, p.fraction, powers)) >> _TABLE
                e[err + 1] = clip((one - min(ratio, limit)) >> 1, p.low, p.high)
    elif p.loss == SOFTMAX:
        top, total = class_sum(a, m, p, powers)
        for k in range(m):
            share = exp_minus(top - int(a[out + k]), p.fraction, powers) << p.fraction
            e[err + k] = (share + (total >> 1)) // total - (one if k == t else 0)
    elif p.loss == SQUARED:
        for k in range(m):
            e[err + k] = clip(int(a[out + k]) - (p.score if k == t else 0), p.low, p.high)
    else:
        for k in range(m):
            e[err + k] = 0
        k = rival(a, m, t)
        if k >= 0 and int(a[out + k]) + one > int(a[out + t]):
            e[err + k] = one
            e[err + t] = -one


@compiled
def loss_of(a: Any, m: int, p: Any, t: int, powers: Any, logarithms: Any) -> int:
    """The loss of the outputs, in 1 / 2^(2 fraction)."""
    out = len(a) - m
    one = 1 << p.fraction
    if p.loss == MEAN or p.loss == GAUSSIAN:
        away = clip(int(a[out]) - t, p.low, p.high)
        return int((away * away) >> 1)
    if p.loss == SOFTMAX:
        top, total = class_sum(a, m, p, powers)
        ln: int = logarithm(total, logarithms) << p.fraction >> _TABLE
        return int((ln + top - int(a[out + t])) << p.fraction)
    if p.loss == SQUARED:
        total = 0
        for k in range(m):
            away = clip(int(a[out + k]) - (p.score if k == t else 0), p.low, p.high)
            total += away * away
        return total >> 1
    k = rival(a, m, t)
    if k < 0:
        return 0
    return int(max(0, int(a[out + k]) + one - int(a[out + t])) << p.fraction)


@compiled
def passed_down(p: Any, m: int) -> int:
    """Outputs whose errors reach the layers below: not the noise, so that it cannot spoil them."""
    return 1 if p.loss == GAUSSIAN else m


@compiled
def hidden_errors(sizes: Any, w: Any, a: Any, e: Any, feedback: Any, p: Any) -> int:
    """Errors of the hidden layers that learn; returns the multiplications."""
    layers = len(sizes) - 1
    sent = passed_down(p, sizes[-1])
    macs = 0
    if p.kind == FEEDBACK:
        at, here, err = 0, sizes[0], 0
        last = len(e) - sizes[-1]
        for layer in range(layers - 1):
            for _j in range(sizes[layer + 1]):
                acc = 0
                for k in range(sent):
                    acc += int(feedback[at]) * int(e[last + k])
                    at += 1
                acc = settle(acc, p.fraction, p.forward_mode)
                e[err] = clip(acc, p.low, p.high) if a[here] > 0 else 0
                here += 1
                err += 1
                macs += sent
        return macs
    start, here, above = len(w), len(a) - sizes[-1], len(e) - sizes[-1]
    for layer in range(layers - 1, p.first, -1):
        n, m = sizes[layer], sizes[layer + 1]
        start -= m * (n + 1)
        here -= n
        below = above - n
        rows = sent if layer == layers - 1 else m
        for j in range(n):
            acc = 0
            for k in range(rows):
                acc += int(w[start + k * (n + 1) + j]) * int(e[above + k])
            acc = settle(acc, p.fraction, p.forward_mode)
            e[below + j] = clip(acc, p.low, p.high) if a[here + j] > 0 else 0
            macs += rows
        above = below
    return macs


@compiled
def descend(sizes: Any, w: Any, a: Any, e: Any, random: Any, p: Any) -> int:
    """Every weight that learns less rate x error x input, rounded once."""
    macs, at, before, err = 0, 0, 0, 0
    shift = p.fraction + _RATE
    state = int(random[0])
    for layer in range(len(sizes) - 1):
        n, m = sizes[layer], sizes[layer + 1]
        if layer < p.first:
            at += m * (n + 1)
            before += n
            continue
        x = a[before : before + n]
        for _k in range(m):
            row = w[at : at + n + 1]
            g = int(e[err]) * p.rate
            for i in range(n):
                change, state = learned(g * int(x[i]), shift, p.mode, state)
                row[i] = clip(int(row[i]) - change, p.low, p.high)
            change, state = learned(g << p.fraction, shift, p.mode, state)
            row[n] = clip(int(row[n]) - change, p.low, p.high)
            at += n + 1
            err += 1
            macs += n + 1
        before += n
    random[0] = state
    return macs


@compiled
def perturb(
    sizes: Any, w: Any, a: Any, random: Any, powers: Any, logarithms: Any, p: Any, t: int
) -> int:
    """One step of SPSA: two losses, one slope, the same perturbations drawn three times."""
    layers = len(sizes) - 1
    start = random[1]
    macs, slope = 0, 0
    for sign in (1, -1):
        random[1] = start
        macs += perturbed(sizes, w, a, random, p, sign)
        slope += sign * loss_of(a, sizes[layers], p, t, powers, logarithms)
    # (above - below) / (2 x 2^-shrink), in 1 / 2^fraction, half up
    slope = clip(slope, -_SLOPE_HIGH, _SLOPE_HIGH)
    slope = ((slope << p.shrink) + (1 << p.fraction)) >> (p.fraction + 1)
    slope = clip(slope, p.low, p.high) * p.rate
    random[1] = start
    bits, used, at = 0, 32, 0
    state = int(random[0])
    for layer in range(layers):
        n, m = sizes[layer], sizes[layer + 1]
        if layer < p.first:
            at += m * (n + 1)
            continue
        for k in range(m):
            noise = layer == layers - 1 and k == 1 and p.loss == GAUSSIAN
            for _i in range(n + 1):
                bits, used = toss(random, bits, used)
                move = slope if (bits >> (used - 1)) & 1 else -slope
                if noise:
                    move = 0
                change, state = learned(move, _RATE, p.mode, state)
                w[at] = clip(int(w[at]) - change, p.low, p.high)
                at += 1
    random[0] = state
    return macs


@compiled
def least_squares(
    sizes: Any,
    w: Any,
    a: Any,
    e: Any,
    cov: Any,
    u: Any,
    gain: Any,
    random: Any,
    guards: Any,
    p: Any,
) -> int:
    """One step of recursive least squares in the last layer; the noise by gradient, if at all."""
    m, n = sizes[-1], sizes[-2]
    size = n + 1
    one = 1 << p.fraction
    phi = len(a) - m - n
    err = len(e) - m
    macs: int = 0
    for i in range(size):
        acc = int(cov[i * size + n]) << p.fraction
        for j in range(n):
            acc += int(cov[i * size + j]) * int(a[phi + j])
        u[i] = clip(settle(acc, p.fraction, p.forward_mode), _COV_LOW, _COV_HIGH)
        macs += n
    acc = int(u[n]) << p.fraction
    for j in range(n):
        acc += int(u[j]) * int(a[phi + j])
    macs += n
    spread = settle(acc, p.fraction, p.forward_mode)
    if spread < 0:  # rounding has made the covariance indefinite: begin it anew
        guards[1] = min(int(guards[1]) + 1, _COUNT_HIGH)
        for i in range(size):
            for j in range(size):
                cov[i * size + j] = p.start if i == j else 0
        return macs
    total = p.forgetting + spread
    for i in range(size):
        size_of = (abs(np.int64(u[i])) << GAIN_BITS) // total
        gain[i] = clip(size_of if u[i] >= 0 else -size_of, _COV_LOW, _COV_HIGH)
    at = len(w) - m * size
    state = int(random[0])
    for k in range(m):
        if p.loss == GAUSSIAN and k == 1:
            g = int(e[err + 1]) * p.rate
            for i in range(size):
                x = int(a[phi + i]) if i < n else one
                change, state = learned(g * x, p.fraction + _RATE, p.mode, state)
                w[at + i] = clip(int(w[at + i]) - change, p.low, p.high)
        else:
            away = int(e[err + k])
            for i in range(size):
                change, state = learned(int(gain[i]) * away, GAIN_BITS, p.mode, state)
                w[at + i] = clip(int(w[at + i]) - change, p.low, p.high)
        at += size
        macs += size
    random[0] = state
    # P <- D (P - k u^T) D: what keeps P positive. D^2 is 1 / forgetting for a feature whose entry
    # lies below the start, 1 for the others. The entry of j > i is still the old one.
    forgets = p.inverse != 1 << _RATE
    for i in range(size):
        here = forgets and cov[i * size + i] < p.start
        for j in range(i, size):
            there = here if j == i else forgets and cov[j * size + j] < p.start
            value = int(cov[i * size + j])
            value -= settle(int(gain[i]) * int(u[j]), GAIN_BITS, p.forward_mode)
            macs += 1
            if here or there:
                factor = p.inverse if here and there else p.inverse_root
                value = settle(value * factor, _RATE, p.forward_mode)
                macs += 1
            if value < _COV_LOW or value > _COV_HIGH:
                guards[0] = min(int(guards[0]) + 1, _COUNT_HIGH)
                value = clip(value, _COV_LOW, _COV_HIGH)
            if i == j and value < p.floor:
                value = p.floor
            cov[i * size + j] = value
            cov[j * size + i] = value
    return macs


@compiled
def held(counts: Any, p: Any) -> int:
    """Examples in the memory."""
    share = p.capacity // p.groups
    total = 0
    for g in range(p.groups):
        total += min(int(counts[g]), share)
    return total


@compiled
def recall(kept_x: Any, kept_t: Any, counts: Any, random: Any, a: Any, p: Any) -> int:
    """A kept example, each with the same probability, into `a`; returns its target."""
    share = p.capacity // p.groups
    at = (draw(random, 2) * held(counts, p)) >> 32
    g = 0
    while at >= min(int(counts[g]), share):
        at -= min(int(counts[g]), share)
        g += 1
    at += g * share
    for i in range(kept_x.shape[1]):
        a[i] = int(kept_x[at, i]) << p.store_shift
    return int(kept_t[at])


@compiled
def slot(counts: Any, random: Any, p: Any, t: int) -> int:
    """Where the example goes in the memory, -1 for nowhere; counts it."""
    share = p.capacity // p.groups
    g = t if p.keep == CLASS_RING else 0
    seen = int(counts[g])
    counts[g] = min(seen + 1, _COUNT_HIGH)
    at = g * share + seen % share
    if p.keep == RESERVOIR and seen >= share:
        at = (draw(random, 2) * (seen + 1)) >> 32
    return at if at < p.capacity else -1


@compiled
def remember(
    kept_x: Any, kept_t: Any, counts: Any, random: Any, p: Any, x: Any, row: int, t: int
) -> None:
    """Put row `row` of `x` into the memory, its inputs in the memory's own width."""
    at = slot(counts, random, p, t)
    if at < 0:
        return
    for i in range(kept_x.shape[1]):
        value = int(x[row, i])
        if p.store_shift:
            value = settle(value, p.store_shift, _HALF_UP)
        kept_x[at, i] = clip(value, p.store_low, p.store_high)
    kept_t[at] = t


@compiled
def hold(w: Any, low: Any, high: Any) -> None:
    """Weights back between their own ends, where they have such."""
    for i in range(len(low)):
        w[i] = clip(int(w[i]), int(low[i]), int(high[i]))


@compiled
def _present(
    kept_x: Any,
    kept_t: Any,
    counts: Any,
    random: Any,
    a: Any,
    p: Any,
    x: Any,
    t: Any,
    row: int,
    turn: int,
) -> int:
    """The inputs of a learning step into `a`: turn 0 is the row itself, later ones are recalled."""
    if turn:
        return recall(kept_x, kept_t, counts, random, a, p)
    for i in range(x.shape[1]):
        a[i] = x[row, i]
    return int(t[row])


@compiled
def _by_gradient(
    sizes: Any,
    w: Any,
    a: Any,
    e: Any,
    feedback: Any,
    random: Any,
    powers: Any,
    kept_x: Any,
    kept_t: Any,
    counts: Any,
    p: Any,
    x: Any,
    t: Any,
    low: Any,
    high: Any,
) -> int:
    macs = 0
    m = sizes[len(sizes) - 1]
    for row in range(len(x)):
        turns = 1 + p.replays if p.replays and held(counts, p) else 1
        for turn in range(turns):
            target = _present(kept_x, kept_t, counts, random, a, p, x, t, row, turn)
            macs += forward(sizes, w, a, p)
            output_errors(a, e, m, p, target, powers)
            macs += hidden_errors(sizes, w, a, e, feedback, p)
            macs += descend(sizes, w, a, e, random, p)
            hold(w, low, high)
        if p.keep != NOTHING:
            remember(kept_x, kept_t, counts, random, p, x, row, int(t[row]))
    return macs


@compiled
def _by_perturbation(
    sizes: Any,
    w: Any,
    a: Any,
    random: Any,
    powers: Any,
    logarithms: Any,
    kept_x: Any,
    kept_t: Any,
    counts: Any,
    p: Any,
    x: Any,
    t: Any,
    low: Any,
    high: Any,
) -> int:
    macs = 0
    for row in range(len(x)):
        turns = 1 + p.replays if p.replays and held(counts, p) else 1
        for turn in range(turns):
            target = _present(kept_x, kept_t, counts, random, a, p, x, t, row, turn)
            macs += perturb(sizes, w, a, random, powers, logarithms, p, target)
            hold(w, low, high)
        if p.keep != NOTHING:
            remember(kept_x, kept_t, counts, random, p, x, row, int(t[row]))
    return macs


@compiled
def _by_least_squares(
    sizes: Any,
    w: Any,
    a: Any,
    e: Any,
    cov: Any,
    u: Any,
    gain: Any,
    random: Any,
    guards: Any,
    powers: Any,
    kept_x: Any,
    kept_t: Any,
    counts: Any,
    p: Any,
    x: Any,
    t: Any,
    low: Any,
    high: Any,
) -> int:
    macs = 0
    m = sizes[len(sizes) - 1]
    for row in range(len(x)):
        turns = 1 + p.replays if p.replays and held(counts, p) else 1
        for turn in range(turns):
            target = _present(kept_x, kept_t, counts, random, a, p, x, t, row, turn)
            macs += forward(sizes, w, a, p)
            output_errors(a, e, m, p, target, powers)
            macs += least_squares(sizes, w, a, e, cov, u, gain, random, guards, p)
            hold(w, low, high)
        if p.keep != NOTHING:
            remember(kept_x, kept_t, counts, random, p, x, row, int(t[row]))
    return macs


@compiled
def _fill(kept_x: Any, kept_t: Any, counts: Any, random: Any, p: Any, x: Any, t: Any) -> None:
    for row in range(len(x)):
        remember(kept_x, kept_t, counts, random, p, x, row, int(t[row]))


@compiled
def _answers(sizes: Any, w: Any, a: Any, p: Any, x: Any, out: Any) -> None:
    m = out.shape[1]
    for row in range(len(x)):
        for i in range(x.shape[1]):
            a[i] = x[row, i]
        forward(sizes, w, a, p)
        for k in range(m):
            out[row, k] = a[len(a) - m + k]


def learn(d: Device, p: Plan, x: Array, t: Array, ends: tuple[Array, Array] | None = None) -> int:
    """Learn from every example once, in order, each with `replays` kept ones; multiplications.

    `x`: (n, inputs) integers in the device's format; `t`: (n,) targets in it, or classes, int32.
    `ends`: lowest and highest number of each weight, int32 as the weights lie; after every step
    they are brought back to them. None: all may use the whole range. Changes `d` in place.
    """
    memory = (d.kept_x, d.kept_t, d.counts)
    low, high = (_NO_ENDS, _NO_ENDS) if ends is None else ends
    if p.kind == PERTURBATION:
        return _by_perturbation(
            d.sizes, d.weights, d.values, d.random, d.powers, d.logarithms, *memory, p, x, t,
            low, high,
        )  # fmt: skip
    if p.kind == LEAST_SQUARES:
        return _by_least_squares(
            d.sizes, d.weights, d.values, d.errors, d.covariance, d.products, d.gains, d.random,
            d.guards, d.powers, *memory, p, x, t, low, high,
        )  # fmt: skip
    return _by_gradient(
        d.sizes, d.weights, d.values, d.errors, d.feedback, d.random, d.powers, *memory, p, x, t,
        low, high,
    )  # fmt: skip


def fill(d: Device, p: Plan, x: Array, t: Array) -> None:
    """Offer examples to the memory without learning from them."""
    _fill(d.kept_x, d.kept_t, d.counts, d.random, p, x, t)


def answers(d: Device, p: Plan, x: Array) -> Array:
    """Outputs (n, outputs) of every row of `x` (n, inputs), integers in the device's format."""
    out = np.zeros((len(x), int(d.sizes[-1])), d.weights.dtype)
    _answers(d.sizes, d.weights, d.values, p, x, out)
    return out
