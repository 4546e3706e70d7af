"""A learner's RTL against the kernels that it repeats: every answer, and the state after each step.

The kernels belong to who learns, so what they did comes as a `Trajectory`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillfit.core.errors import ConfigError, DataError, ShapeError
from stillfit.core.values import Equality
from stillfit.firmware.c99.learning import Learner
from stillfit.firmware.learning.design import LearnerDesign
from stillfit.firmware.packing import Words, packed, unpacked
from stillfit.firmware.simulation import Engine, Simulator, simulator

PREDICTED = 8  # before every so many steps, an example is given without learning, too
SATURATED = 0.25  # share of the weights at the ends of their range that makes a check worthless
CLOCKS = 2_000_000  # of one run; a longer trajectory goes on from its state by the port
_FREE = ("arrays", "scales")  # what the state may differ in, or what never enters the circuit
AREA = {"weight": 0, "covariance": 1, "generator": 2, "guard": 3}


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """What a learner did, whole numbers throughout.

    `x` (n, inputs), `t` (n,): examples; `outputs` (n, outputs): answers before each step;
    `weights` (n, weights that exist), `random` (n,), and of least squares `covariance` (n, size^2)
    and `guards` (n, 2): the state after each step.
    """

    x: NDArray[np.int64]
    t: NDArray[np.int64]
    outputs: NDArray[np.int64]
    weights: NDArray[np.int64]
    random: NDArray[np.int64]
    covariance: NDArray[np.int64] | None = None
    guards: NDArray[np.int64] | None = None

    def first(self, steps: int) -> Trajectory:
        """Its first steps."""
        return _part(self, slice(0, steps))

    @property
    def digest(self) -> str:
        """SHA-256 of the examples."""
        both = np.concatenate([self.x, self.t[:, None]], axis=1)
        return hashlib.sha256(np.ascontiguousarray(both).tobytes()).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Schedule:
    """The clocks of a run: rows of the inputs; where answers are due and state is read."""

    rows: dict[str, Words]
    begins: NDArray[np.int64]  # clock of the first input of each example
    learns: NDArray[np.bool_]
    reads: NDArray[np.int64]  # first clock of each step's state


def check_learner(
    design: LearnerDesign,
    told: Trajectory,
    folder: Path,
    *,
    engine: Engine = "auto",
    state: Learner | None = None,
    built: Simulator | None = None,
    diverged: bool = False,
) -> Equality:
    """Simulate the learner over all steps and compare answers, state and cycles.

    The whole state (weights, generator, covariance, guards) is read after every step. Every eighth
    example also comes once without learning, which must change nothing. A difference is named by
    step, what, and bit. `DataError` where the learner has diverged, so that little is compared: in
    the second half of the steps more than a quarter of the weights that learn lie at an end of
    their range. `diverged`: compare nevertheless.
    `state`: what to load first, by the port of the state; without it the circuit goes on from the
    state that it was written with. `built`: from `compiled`, where one circuit is checked several
    times.
    """
    _complete(design, told)
    if not diverged:
        _refuse_diverged(design, told)
    program = built or compiled(design, folder, engine=engine)
    found: list[tuple[int, str]] = []
    each = max(CLOCKS // (design.cycles.longest + len(_words(design))), 1)
    for begin in range(0, len(told.x), each):
        part = _part(told, slice(begin, begin + each))
        plan = _schedule(design, part, state)
        rows = program.run(plan.rows)
        begun = np.asarray((state or design.learner).arrays.get("guards", ()))
        restarts = int(begun[1]) if len(begun) else 0
        found += _differences(design, part, plan, rows, restarts, begin)
        state = _state_after(design.learner, part)
    wrong = {step for step, _ in found}
    return Equality(
        vectors=len(told.x),
        wrong=len(wrong),
        digest=told.digest,
        against="RTL against kernels, answers and state after each step",
        first=found[0][1] if found else "",
    )


def recorded(
    design: LearnerDesign, told: Trajectory
) -> tuple[dict[str, Words], dict[str, NDArray[np.int64]]]:
    """A run clock by clock: rows of the inputs, and what stands there after each clock's edge.

    `answers` and `shown` are 1 where `out_value` and `state_value` are due.
    """
    _complete(design, told)
    plan = _schedule(design, told, None)
    clocks = len(plan.rows["rst"])
    due = {
        name: np.zeros(clocks, np.int64)
        for name in ("answers", "shown", "out_value", "state_value")
    }
    layout, outputs = design.layout, design.learner.sizes[-1]
    steps: NDArray[np.int64] = np.cumsum(plan.learns) - plan.learns
    # The last pass before the errors writes an output at the end of each row.
    last = layout.passes[layout.forwards - 1]
    ends = layout.cycles.forward - 1 - layout.clocks(last)  # to where it sets its addresses
    rows = ends + last.columns * np.arange(1, outputs + 1) + layout.reach
    where = plan.begins[:, None] + rows - 1
    due["answers"][where] = 1
    due["out_value"][where] = told.outputs[steps]
    words = plan.reads[:, None] + np.arange(len(_words(design)))
    due["shown"][words] = 1
    due["state_value"][words] = _state(design, told) & 0xFFFFFFFF
    return plan.rows, due


def compiled(design: LearnerDesign, folder: Path, *, engine: Engine = "auto") -> Simulator:
    """The design as a program; 10 to 30 s, nearly all of it the compilers'."""
    made = design.write(folder).with_suffix(".il")
    return simulator([made], design.name, *design.ports, folder / "simulation", engine=engine)


def _complete(design: LearnerDesign, told: Trajectory) -> None:
    learner, n = design.learner, len(told.x)
    weights = sum((a + 1) * b for a, b in pairwise(learner.sizes))
    want = {
        "x": (n, learner.sizes[0]),
        "t": (n,),
        "outputs": (n, learner.sizes[-1]),
        "weights": (n, weights),
        "random": (n,),
    }
    if design.layout.least_squares:
        want |= {"covariance": (n, design.layout.size**2), "guards": (n, 2)}
    if not n:
        raise DataError("a check needs a step at least, and the trajectory has none")
    for name, shape in want.items():
        given = getattr(told, name)
        if given is None or given.shape != shape:
            raise ShapeError(
                f"{name} of a trajectory of {n} steps has shape {shape}, got "
                f"{None if given is None else given.shape}; was it recorded of another learner?"
            )


def _refuse_diverged(design: LearnerDesign, told: Trajectory) -> None:
    learner = design.learner
    mine = told.weights[:, design.layout.weight_at[learner.first] :]
    ends = (mine == learner.low) | (mine == learner.high)
    share = float(ends[len(ends) // 2 :].mean())
    if share > SATURATED:
        begun = int(np.argmax(ends.any(axis=1)))
        raise DataError(
            f"the learner diverged: in the second half of {len(ends)} steps {share:.0%} of its "
            f"weights lie at the ends of their {learner.width} bits, the first since step {begun}; "
            "little would be compared. Use a smaller rate or fewer fraction bits, or ask to "
            "compare nevertheless (diverged)"
        )


def _part(told: Trajectory, steps: slice) -> Trajectory:
    """Some steps of a trajectory."""
    values = {f.name: getattr(told, f.name) for f in fields(told)}
    return replace(told, **{n: v[steps] for n, v in values.items() if v is not None})


def _state_after(learner: Learner, told: Trajectory) -> Learner:
    """The learner as it is after the last step."""
    arrays = dict(learner.arrays)
    for name in ("weights", "covariance", "guards"):
        values = getattr(told, name)
        if values is not None:
            arrays[name] = values[-1]
    arrays["random"] = told.random[-1:]
    return replace(learner, arrays=arrays)


def _schedule(design: LearnerDesign, told: Trajectory, state: Learner | None) -> _Schedule:
    cycles = design.cycles
    inputs, n = design.learner.sizes[0], len(told.x)
    words = _words(design)
    loaded = state_image(design, state) if state else np.zeros((0, 3), np.int64)
    begins, learns, reads, at = [], [], [], 1 + len(loaded)
    for step in range(n):
        if step % PREDICTED == 0:
            begins.append(at)
            learns.append(False)
            at += cycles.forward + step // PREDICTED % 3  # and now and then the next one is late
        begins.append(at)
        learns.append(True)
        at += cycles.longest
        reads.append(at)
        at += len(words)
    clocks = at + 1
    start, teach = np.array(begins), np.array(learns)
    examples = np.cumsum(teach) - teach  # an example that is predicted is the next one's
    place = start[:, None] + np.arange(inputs)
    columns = {name: np.zeros(clocks, np.int64) for name in (
        "in_valid", "in_value", "learn", "target", "state_area", "state_address", "state_data",
        "state_write",
    )}  # fmt: skip
    first = slice(1, 1 + len(loaded))
    columns["state_write"][first] = 1
    for name, column in zip(("state_area", "state_address", "state_data"), loaded.T, strict=True):
        columns[name][first] = column
    columns["in_valid"][place] = 1
    columns["in_value"][place] = told.x[examples]
    columns["learn"][place[:, -1]] = teach
    columns["target"][place[:, -1]] = told.t[examples]
    read = np.array(reads)
    where = read[:, None] + np.arange(len(words))
    columns["state_area"][where] = words[:, 0]
    columns["state_address"][where] = words[:, 1]
    bits, _ = design.ports
    rows = {name: packed(column[:, None], [bits[name]]) for name, column in columns.items()}
    rows["rst"] = np.zeros((clocks, 1), np.uint32)
    rows["rst"][0] = 1
    return _Schedule(rows=rows, begins=start, learns=teach, reads=read)


def state_image(design: LearnerDesign, learner: Learner | None = None) -> NDArray[np.int64]:
    """What to write to the port of the state, (words, 3): area, address, the word in 32 bits.

    `learner`: another state than the one that the circuit begins with, such as an older version's;
    `ConfigError` where it is another circuit's.
    """
    given = learner or design.learner
    mine = {f.name: getattr(design.learner, f.name) for f in fields(given) if f.name not in _FREE}
    other = next((name for name, value in mine.items() if getattr(given, name) != value), None)
    if other is not None:
        raise ConfigError(
            f"the state is of a learner whose {other} is {getattr(given, other)} and the circuit's "
            f"is {mine[other]}; that is another circuit, write it anew"
        )
    places, arrays = _words(design), given.arrays
    parts = [arrays["weights"], arrays["random"][:1]]
    if design.layout.least_squares:
        parts += [arrays["covariance"][_upper(design.layout.size)], arrays["guards"]]
    data = np.concatenate([np.asarray(part, np.int64) for part in parts]) & 0xFFFFFFFF
    return np.concatenate([places, data[:, None]], axis=1)


def _words(design: LearnerDesign) -> NDArray[np.int64]:
    """Area and address of each word of the state, as it is read."""
    layout = design.layout
    parts = [(AREA["weight"], n) for n in range(layout.weight_at[-1])]
    parts.append((AREA["generator"], 0))
    if layout.least_squares:
        parts += [(AREA["covariance"], n) for n in _upper(layout.size)]
        parts += [(AREA["guard"], n) for n in range(2)]
    return np.array(parts)


def _upper(size: int) -> list[int]:
    """Places of the covariance's upper triangle, which the circuit holds."""
    return [row * size + column for row in range(size) for column in range(row, size)]


def _state(design: LearnerDesign, told: Trajectory) -> NDArray[np.int64]:
    """What the kernels have, (n, words), in the order of `_words`."""
    parts = [told.weights, told.random[:, None]]
    if told.covariance is not None and told.guards is not None and design.layout.least_squares:
        parts += [told.covariance[:, _upper(design.layout.size)], told.guards]
    return np.concatenate(parts, axis=1)


def _differences(
    design: LearnerDesign,
    told: Trajectory,
    plan: _Schedule,
    rows: dict[str, Words],
    restarts: int,
    before: int,
) -> list[tuple[int, str]]:
    """Every step that differs, with a text that names what and where; in the order of steps.

    `restarts`: those counted before; `before`: steps that were compared in earlier runs.
    """
    width, outputs = design.learner.width, design.learner.sizes[-1]
    steps: NDArray[np.int64] = np.cumsum(plan.learns) - plan.learns
    found: list[tuple[int, str]] = []
    # Time: ready again after exactly the cycles that were announced.
    ready = rows["in_ready"][:, 0] == 1
    cycles = design.cycles
    restarted = np.zeros(len(told.x), np.bool_)
    if cycles.restart is not None and told.guards is not None:
        restarted = np.diff(told.guards[:, 1], prepend=restarts) > 0
    for begin, learns, step in zip(plan.begins, plan.learns, steps, strict=True):
        due = cycles.update if learns else cycles.forward
        if learns and cycles.restart is not None and restarted[step]:
            due = cycles.restart
        # `ready` stands as it is after the clock's edge: it falls after the last input.
        last = int(begin) + design.learner.sizes[0] - 1
        took = last + int(np.argmax(ready[last:])) + 1 - int(begin) if ready[last:].any() else 0
        if took != due:
            what = "learning" if learns else "predicting"
            text = f"step {before + step}: {what} took {took} clocks, not {due}"
            found.append((before + int(step), text))
    # Answers.
    answered = np.flatnonzero(rows["out_valid"][:, 0] == 1)
    if len(answered) != len(plan.begins) * outputs:
        raise DataError(
            f"{design.name} was given {len(plan.begins)} examples and gave {len(answered)} outputs "
            f"where {len(plan.begins) * outputs} are due; its control is wrong, report it"
        )
    got = unpacked(rows["out_value"][answered], [width], [True])[:, 0].reshape(-1, outputs)
    for example, output in np.argwhere(got != told.outputs[steps]).tolist():
        at = int(steps[example])
        pair = int(got[example, output]), int(told.outputs[at, output])
        found.append((before + at, f"step {before + at}, output {output}, {_bit(*pair)}"))
    # State.
    words = _words(design)
    where = plan.reads[:, None] + np.arange(len(words))
    want = _state(design, told)
    raw = rows["state_value"][where.reshape(-1)]
    signed = unpacked(raw, [32], [True])[:, 0].reshape(want.shape)
    plain = words[:, 0] >= AREA["generator"]
    signed[:, plain] &= 0xFFFFFFFF
    for step, word in np.argwhere(signed != want).tolist():
        pair = int(signed[step, word]), int(want[step, word])
        name = _name(design, int(words[word, 0]), int(words[word, 1]))
        found.append((before + step, f"step {before + step}, {name}, {_bit(*pair)}"))
    return sorted(found, key=lambda one: one[0])


def _bit(got: int, want: int) -> str:
    bits = got ^ want
    bit = (bits & -bits).bit_length() - 1
    return f"bit {bit}: {got} in RTL and {want} in the kernels"


def _name(design: LearnerDesign, area: int, at: int) -> str:
    if area == AREA["weight"]:
        layout = design.layout
        layer = next(n for n, end in enumerate(layout.weight_at[1:]) if at < end)
        unit, column = divmod(at - layout.weight_at[layer], layout.sizes[layer] + 1)
        last = column == layout.sizes[layer]
        return f"layer {layer}, unit {unit}, {'bias' if last else f'weight {column}'}"
    if area == AREA["covariance"]:
        row, column = divmod(at, design.layout.size)
        return f"covariance ({row}, {column})"
    return "generator" if area == AREA["generator"] else f"guard {at}"
