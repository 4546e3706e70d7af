"""Labels as they really are: late, partial, selected, lost and noisy, on any stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, Column, Ragged, concat, names_of
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.events import Block, Event, Labels, Notice
from stillfit.core.tables import did_you_mean
from stillfit.streams import chance
from stillfit.streams.contract import Stream, skipped
from stillfit.streams.segments import owned, owned_array

# Blocks that are remembered for a selection or a distortion of labels that come after them.
_REMEMBERED = 4


class Selector(Protocol):
    """Decides which events are labelled: only those that were triggered, say.

    A selector may serve the block with a model of its own to cut on the model's output; it must
    give the same answer whenever it is asked.
    """

    def keep(self, block: Block) -> NDArray[np.bool_]:
        """True for the events of the block whose labels will come, shape (n,)."""
        ...


class Distortion(Protocol):
    """A systematic error of the labels, such as that of a reconstruction which shares a fault."""

    def distorted(self, block: Block, targets: Arrays) -> Arrays:
        """The targets with the error; rows of `block` and `targets` belong together."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Selects events by a column of the inputs: `above` < value <= `at_most`.

    A ragged column is first made one number per event: its `sum`, `max`, `mean` or `count`
    (0 for an event without items).
    """

    column: str
    above: float = -np.inf
    at_most: float = np.inf
    of: Literal["sum", "max", "mean", "count"] = "sum"

    def keep(self, block: Block) -> NDArray[np.bool_]:
        if self.column not in block.inputs:
            raise ConfigError(
                f"labels are selected by {self.column!r}, which the stream does not have"
                f"{did_you_mean(self.column, block.inputs)}"
            )
        column = block.inputs[self.column]
        values = _per_event(column, self.of) if isinstance(column, Ragged) else column
        if values.ndim != 1:
            raise ConfigError(
                f"labels are selected by {self.column!r}, which has {values.shape[1:]} numbers per "
                "event; select by a column with one"
            )
        kept: NDArray[np.bool_] = (values > self.above) & (values <= self.at_most)
        return kept


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How the labels of a stream come: a wrapper on any stream (`Labelling(...).on(stream)`).

    `delay`: seconds between an event and its label. `delay_notices`: the label also waits for so
    many notices of the machine state `delay_state` (any state if empty), and `delay` counts from
    the last of them: 1 x `inter-fill` brings the labels of a fill at its end, 2 at the end of
    the next one. `fraction`: of events that are labelled at all. `loss`: probability that
    a label gets lost on its way; `loss_run` neighbouring ids are lost together, as files are.
    `selection`: only these events are labelled. `noise`: standard deviation of a Gaussian error,
    by target. `flip`: probability that a class target becomes another class, by target, with
    the number of its `classes` (2 where not named); ragged targets flip item by item.

    Everything random is decided by (seed, event id), so it does not depend on block size. Labels
    that are due after the last event come at its end; those that wait for a notice that never
    comes do not. Labels without any event left are not sent.

    Memory: the labels of the delay. Resuming: reads the stream again from its beginning.
    """

    delay: float = 0.0
    delay_notices: int = 0
    delay_state: str = ""
    fraction: float = 1.0
    loss: float = 0.0
    loss_run: int = 1
    selection: Cut | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    flip: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.delay < np.inf or self.delay_notices < 0:
            raise ConfigError(
                f"labels cannot come before their events: delay = {self.delay} s, "
                f"delay_notices = {self.delay_notices}; give 0 or more"
            )
        odds = {"fraction": self.fraction, "loss": self.loss}
        odds |= {f"flip.{name}": value for name, value in self.flip.items()}
        for name, value in odds.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} = {value} is no probability; give 0 to 1")
        for name, value in self.noise.items():
            if not 0.0 <= value < np.inf:
                raise ConfigError(f"noise.{name} = {value} is no standard deviation")
        if self.loss_run < 1 or any(n < 2 for n in self.classes.values()):
            raise ConfigError(
                f"loss_run = {self.loss_run} must be at least 1, and every target of "
                f"{dict(self.classes)} have at least 2 classes"
            )

    def on(
        self,
        stream: Stream,
        *,
        select: Selector | None = None,
        distort: Distortion | None = None,
    ) -> LabelledStream:
        """The stream with its labels treated like this.

        `select` takes the place of `selection`. `distort` acts before noise and flips.
        """
        return LabelledStream(self, stream, select or self.selection, distort)

    def kept(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which events are labelled and keep their label, selection aside; shape (n,)."""
        keep = np.ones(len(ids), np.bool_)
        if self.fraction < 1.0:
            keep &= chance.uniform(self.seed, "fraction", ids) < self.fraction
        if self.loss > 0.0:
            keep &= chance.uniform(self.seed, "loss", ids // self.loss_run) >= self.loss
        return keep

    def blurred(self, labels: Labels) -> Labels:
        """The labels with noise and flips."""
        if not self.noise and not self.flip:
            return labels
        for name in [*self.noise, *self.flip]:
            if name not in labels.targets:
                raise ConfigError(
                    f"there is noise for the target {name!r}, which the labels do not have"
                    f"{did_you_mean(name, labels.targets)}"
                )
        targets = dict(labels.targets)
        for name, sigma in self.noise.items():
            targets[name] = self._noisy(labels.ids, name, targets[name], sigma)
        for name, odds in self.flip.items():
            targets[name] = self._flipped(labels.ids, name, targets[name], odds)
        return Labels(labels.ids, targets, labels.time)

    def _noisy(self, ids: NDArray[np.int64], name: str, column: Column, sigma: float) -> Column:
        values, of, item = _numbered(ids, column)
        if values.dtype.kind != "f":
            raise ConfigError(
                f"target {name!r} is {values.dtype} and cannot take Gaussian noise; use `flip` "
                "for classes"
            )
        drawn = chance.normal(self.seed, f"noise/{name}", of, item).reshape(values.shape)
        return _like(column, (values + sigma * drawn).astype(values.dtype))

    def _flipped(self, ids: NDArray[np.int64], name: str, column: Column, odds: float) -> Column:
        values, of, item = _numbered(ids, column)
        if values.dtype.kind not in "biu" and not bool(np.all(values == np.floor(values))):
            raise ConfigError(
                f"target {name!r} is no class (a whole number) and cannot be flipped; use `noise`"
            )
        classes = self.classes.get(name, 2)
        change = chance.uniform(self.seed, f"flip/{name}", of, item) < odds
        step = 1 + np.floor(
            chance.uniform(self.seed, f"class/{name}", of, item) * (classes - 1)
        ).astype(np.int64)
        moved = (values.astype(np.int64) + step.reshape(values.shape)) % classes
        return _like(
            column, np.where(change.reshape(values.shape), moved, values).astype(values.dtype)
        )


class _Pending(NamedTuple):
    labels: Labels
    notices: int


@dataclass(frozen=True)
class LabelledStream:
    """A stream whose labels come as a `Labelling` says."""

    labelling: Labelling
    stream: Stream
    select: Selector | None = None
    distort: Distortion | None = None

    def events(self, start: int = 0) -> Iterator[Event]:
        return skipped(self._run(), start)

    def _run(self) -> Iterator[Event]:
        rules = self.labelling
        recent: deque[tuple[Block, NDArray[np.bool_]]] = deque(maxlen=_REMEMBERED)
        waiting: deque[_Pending] = deque()  # for a notice
        due: deque[Labels] = deque()  # for a time, which is theirs
        notices = 0
        for event in self.stream.events():
            while due and due[0].time <= event.time:
                yield due.popleft()
            if isinstance(event, Labels):
                labels = self._treated(event, recent)
                if not len(labels):
                    continue
                if rules.delay_notices:
                    waiting.append(_Pending(_owned(labels), notices + rules.delay_notices))
                elif rules.delay:
                    due.append(_at(_owned(labels), labels.time + rules.delay))
                else:
                    yield labels
                continue
            if isinstance(event, Block) and (self.select or self.distort):
                everything = np.ones(len(event), np.bool_)
                recent.append((event, self.select.keep(event) if self.select else everything))
            yield event
            if isinstance(event, Notice) and rules.delay_state in ("", event.state):
                notices += 1
                while waiting and waiting[0].notices <= notices:
                    due.append(_at(waiting.popleft().labels, event.time + rules.delay))
                while due and due[0].time <= event.time:
                    yield due.popleft()
        yield from due

    def _treated(self, labels: Labels, recent: deque[tuple[Block, NDArray[np.bool_]]]) -> Labels:
        keep = self.labelling.kept(labels.ids)
        if not keep.all():
            labels = labels.take(np.flatnonzero(keep))
        if not len(labels):
            return labels
        if self.select or self.distort:
            parts = [self._with_events(labels, block, keep) for block, keep in recent]
            found = sum(n for n, _ in parts)
            if found < len(labels):
                raise DataError(
                    f"{len(labels) - found} of {len(labels)} labels at {labels.time:.3f} s belong "
                    f"to none of the last {_REMEMBERED} blocks, and cannot be selected or "
                    "distorted by their events; put the selection next to the source, before any "
                    "other delay"
                )
            labels = _joined([part for _, part in parts if len(part)], labels)
        return self.labelling.blurred(labels)

    def _with_events(
        self, labels: Labels, block: Block, keep: NDArray[np.bool_]
    ) -> tuple[int, Labels]:
        """Labels of the block's events: how many there are, and the selected ones, distorted."""
        if not len(block):
            return 0, labels.take(slice(0, 0))
        rows = np.searchsorted(block.ids, labels.ids).clip(max=len(block) - 1)
        found = block.ids[rows] == labels.ids
        mine = np.flatnonzero(found & keep[rows])
        part = labels.take(mine)
        if self.distort is not None and len(mine):
            targets = self.distort.distorted(block.take(rows[mine]), part.targets)
            if set(targets) != set(labels.targets):
                raise DataError(
                    f"the distortion turned the targets {names_of(labels.targets)} into "
                    f"{names_of(targets)}; it must return the same ones"
                )
            part = Labels(part.ids, targets, part.time)
        return int(np.count_nonzero(found)), part


def _joined(parts: list[Labels], like: Labels) -> Labels:
    if not parts:
        return like.take(slice(0, 0))
    if len(parts) == 1:
        return parts[0]
    return Labels(
        np.concatenate([part.ids for part in parts]),
        concat([part.targets for part in parts]),
        like.time,
    )


def _owned(labels: Labels) -> Labels:
    return Labels(owned_array(labels.ids), owned(labels.targets), labels.time)


def _at(labels: Labels, time: float) -> Labels:
    return Labels(labels.ids, labels.targets, time)


def _per_event(column: Ragged, of: str) -> Array:
    counts = column.counts
    if of == "count":
        return counts
    full = np.flatnonzero(counts)
    values = np.zeros((len(column), *column.values.shape[1:]))
    if len(full):
        merge = np.maximum if of == "max" else np.add
        values[full] = merge.reduceat(column.values, column.offsets[full], axis=0, dtype=np.float64)
    if of == "mean":
        values /= np.maximum(counts, 1)
    return values


def _numbered(
    ids: NDArray[np.int64], column: Column
) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Flat view of a column's numbers: values, the event id and the item number of each."""
    if isinstance(column, Ragged):
        values = column.values
        first = np.repeat(column.offsets[:-1], column.counts)
        of, item = np.repeat(ids, column.counts), np.arange(len(values)) - first
    else:
        values = column
        of, item = ids, np.zeros(len(ids), np.int64)
    width = int(np.prod(values.shape[1:]))
    if width == 1:
        return values, of, item
    return (
        values,
        np.repeat(of, width),
        (item[:, None] * width + np.arange(width)).reshape(-1),
    )


def _like(column: Column, values: Array) -> Column:
    return Ragged(values, column.offsets) if isinstance(column, Ragged) else values
