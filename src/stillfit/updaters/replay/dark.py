"""Dark replay: remembered events with what the model said of them when it had learned them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.arrays import Column, Ragged
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.events import Examples
from stillfit.core.values import Budget, Candidate
from stillfit.models import uncertain
from stillfit.models.model import Model
from stillfit.models.task import Answer, Task
from stillfit.models.tensors import RaggedTensor, Tensors, tensors
from stillfit.models.training import Guide, Part, Prepared, Schedule, fit
from stillfit.updaters.contract import Declined, Learner, Memory, Meter, too_few
from stillfit.updaters.replay.buffer import Buffer
from stillfit.updaters.replay.experience import Buffered, checked_share

ANSWER = "answer/"


@dataclass(frozen=True, kw_only=True)
class DarkReplay(Buffered):
    """Replay that also matches stored outputs: what the network knew, not only what was true.

    Loss of a step: that of `Replay` (labels of fresh events and, as a share `mix` of the batch,
    of remembered ones), plus `alpha` x mean over the network's outputs a of
    (a(x') - stored a(x'))^2 / var(stored a), for as many remembered x' as half a batch, drawn
    apart. Outputs are those of the task's `answer` (logits of classes, parameters of a
    regression's distribution, position, score and associations of a vertex finder), the mean over
    the passes of an uncertain network, so no method need be known. Dividing by the variance of
    what is stored makes `alpha` a number of order 1 in every unit.

    An event's outputs are stored once: by the model that serves at the start, later by the
    candidate of the first update after it arrived, the first that has learned it. Until then it
    is replayed by its label alone.
    `alpha` 0 is `Replay` bit for bit; a large one holds the outputs on old events and adapts
    slowly; `mix` 0 matches outputs alone (DER), a `mix` is DER++. Outputs that do not depend on the
    parameters smoothly (a hard arg-max) give no gradient and hold nothing.

    Cost: half a training step more per step; memory: the buffer and 4 bytes per stored output.
    Source: Buzzega et al. 2020, arXiv:2004.07211 (there the outputs at the moment of arrival, in
    logits, undivided).
    """

    mix: float = 0.5
    alpha: float = 1.0
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=150, rate=0.002))

    def __post_init__(self) -> None:
        Buffered.__post_init__(self)
        checked_share("mix", self.mix)
        if not 0 <= self.alpha < np.inf:
            raise ConfigError(
                f"alpha must be finite and 0 or more, got {self.alpha}; it weighs the stored "
                "outputs, 0 forgets them"
            )

    def begin(self, serving: Model, examples: Examples, *, rng: np.random.Generator) -> Learner:
        buffer = self.buffer({})
        buffer.add(examples, rng)
        self.judge(buffer, serving)
        self._store(buffer, serving)
        return buffer.to_arrays()

    def update(
        self,
        serving: Model,
        learner: Learner,
        fresh: Examples,
        memory: Memory,
        *,
        budget: Budget,
        rng: np.random.Generator,
    ) -> Candidate[Model] | Declined:
        few = too_few(fresh, self.min_events, "dark replay")
        if few is not None:
            return few
        meter = Meter.start(self, rng)
        model = serving.copy()
        buffer = self.buffer(learner)
        before = np.flatnonzero(~np.isin(buffer.ids, fresh.ids))
        old = buffer.examples(before)
        batch = self.schedule.batch
        new = round((1 - self.mix) * batch) if len(old) else batch
        parts = [Part(Prepared.of(model, fresh), new)] if new else []
        if new < batch:
            parts.append(Part(Prepared.of(model, old), batch - new))
        guide = self._guide(model, buffer, before, meter.seed)
        steps = fit(model, parts, self.schedule, rng, guide=guide)
        self.judge(buffer, model)
        self._store(buffer, model)
        learner = buffer.to_arrays()
        return meter.finish(model, learner, [fresh, old], budget, steps=steps, stored=len(buffer))

    def _guide(
        self, model: Model, buffer: Buffer, places: NDArray[np.int64], seed: int
    ) -> Guide | None:
        places = places[known(buffer)[places]]
        if not self.alpha or not len(places):
            return None
        stored = stored_answers(buffer, places)
        data = Prepared.of(model, buffer.examples(places))
        size = max(1, self.schedule.batch // 2)
        return Matching(model.task, data, stored, self.alpha, size, np.random.default_rng(seed))

    def _store(self, buffer: Buffer, model: Model) -> None:
        """Note the outputs of `model` for events that have none."""
        places = np.flatnonzero(~known(buffer))
        if not len(places):
            return
        said = answers(model, buffer.examples(places))
        buffer.note({f"{ANSWER}{k}": part for k, part in enumerate(said)}, places)


class Matching(Guide):
    """A penalty: weighted mean square of outputs away from stored ones, over their variance."""

    def __init__(
        self,
        task: Task,
        data: Prepared,
        stored: Sequence[Column],
        alpha: float,
        rows: int,
        rng: np.random.Generator,
    ) -> None:
        self._task, self._alpha, self._rng = task, alpha, rng
        named = {str(k): part for k, part in enumerate(stored)}
        self._data = Prepared(data.inputs, named, data.n)
        self._rows = min(rows, data.n)
        self._variances = [_variance(part) for part in stored]

    def penalty(self, network: nn.Module, inputs: Tensors) -> Tensor:
        batch = self._data.take(self._rng.choice(self._data.n, self._rows, replace=False))
        said = answer_of(self._task, network, tensors(batch.inputs))
        if not any(part.requires_grad for part in said):
            raise ConfigError(
                f"the outputs of {type(network).__name__} carry no gradient, so stored ones "
                "cannot be matched; use alpha = 0, which is plain replay"
            )
        targets = tensors(batch.targets)
        away = []
        for k, (part, variance) in enumerate(zip(said, self._variances, strict=True)):
            target = targets[str(k)]
            want = target.values if isinstance(target, RaggedTensor) else target
            if want.shape != part.shape:
                raise ShapeError(
                    f"output {k} was stored as {tuple(want.shape)} and the network gives "
                    f"{tuple(part.shape)}; was the architecture changed? begin the learner anew"
                )
            if part.numel():
                away.append(((part.float() - want) ** 2 / variance).mean())
        return self._alpha * torch.stack(away).mean()


def answer_of(task: Task, network: nn.Module, inputs: Tensors) -> Answer:
    """The outputs of one pass, of an uncertain network the mean over its passes; with gradient."""
    if isinstance(network, uncertain.Uncertain):
        return tuple(part.mean(0) for part in network.passes(task, inputs))
    return task.answer(network, inputs)


def answers(model: Model, examples: Examples) -> list[Column]:
    """What `model` says of events, float32: a column per output, ragged where it is of items."""
    data = Prepared.of(model, examples)
    model.network.eval()
    with torch.inference_mode():
        ragged = _of_items(model, data)
        chunks = []
        for piece in data.chunks():
            said = answer_of(model.task, model.network, tensors(piece.inputs))
            chunks.append([part.float().numpy() for part in said])
    columns: list[Column] = []
    for k, items in enumerate(ragged):
        values = np.concatenate([chunk[k] for chunk in chunks])
        columns.append(values if items is None else Ragged(values, items.offsets))
    return columns


def _of_items(model: Model, data: Prepared) -> list[Ragged | None]:
    """For each output, the ragged input whose items it is about, or None for events.

    One event asked for twice tells: outputs of events come twice, those of items by the number
    of its items. It must have another number than one; without such an event there is no
    difference.
    """
    column = next((c for c in data.inputs.values() if isinstance(c, Ragged)), None)
    odd = np.flatnonzero(column.counts != 1) if column is not None else np.zeros(0, np.int64)
    place = int(odd[0]) if len(odd) else 0
    twice = data.take(np.array([place, place]))
    said = answer_of(model.task, model.network, tensors(twice.inputs))
    if column is None or not len(odd):
        return [None for _ in said]
    return [None if part.shape[0] == 2 else column for part in said]


def known(buffer: Buffer) -> NDArray[np.bool_]:
    """Which events have stored outputs, all of them finite, in order."""
    found, k = np.ones(len(buffer), np.bool_), 0
    while (part := buffer.noted(f"{ANSWER}{k}")) is not None:
        if not isinstance(part, Ragged):
            found &= np.isfinite(part.reshape(len(part), -1)).all(1)
        elif len(part.values):
            bad = ~np.isfinite(part.values.reshape(len(part.values), -1)).all(1)
            found &= np.bincount(part.events, bad, len(part)) == 0
        k += 1
    return found if k else np.zeros(len(buffer), np.bool_)


def stored_answers(buffer: Buffer, places: NDArray[np.int64]) -> list[Column]:
    """The stored outputs of the events at `places`."""
    found: list[Column] = []
    while (part := buffer.noted(f"{ANSWER}{len(found)}", places)) is not None:
        found.append(part)
    return found


def _variance(part: Column) -> Tensor:
    """Per trailing place; 1 where all stored values are equal, so there is nothing to divide by."""
    values = part.values if isinstance(part, Ragged) else part
    if not len(values):
        return torch.ones(values.shape[1:])
    mean = values.mean(0, dtype=np.float64)
    variance = values.var(0, dtype=np.float64)
    variance = np.where(variance > 1e-10 * (1 + mean**2), variance, 1.0)
    return torch.from_numpy(np.asarray(variance, np.float32))
