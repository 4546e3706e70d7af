"""What a monitor is: two kinds, by what they may read."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillfit.core.arrays import Arrays
from stillfit.core.values import Evidence, Served

S = TypeVar("S")


class UnlabelledMonitor(Protocol[S]):
    """Reads every block as it is served: inputs and predictions, no labels.

    A frozen dataclass of knobs; what it learns lives in the state, a value of numbers and arrays
    (`core.state.to_arrays` stores it). `init` knows no nominal data, so it never raises an alarm;
    `fit` learns the reference and sets the threshold. All numbers of an `Evidence` are finite.
    """

    @property
    def name(self) -> str: ...

    def init(self) -> S: ...

    def fit(self, inputs: Arrays, served: Served, *, rate: float, rng: np.random.Generator) -> S:
        """A fresh state whose reference is this nominal stretch, in order of time.

        `rate`: events per day on the stream, which turns false alarms per day into a run length.
        """

    def step(
        self, state: S, time: float, ids: NDArray[np.int64], inputs: Arrays, served: Served
    ) -> tuple[S, Evidence]: ...


class LabelMonitor(Protocol[S]):
    """Reads the task's error of events whose labels have arrived. Else as `UnlabelledMonitor`."""

    @property
    def name(self) -> str: ...

    def init(self) -> S: ...

    def fit(self, errors: NDArray[np.float64], *, rate: float, rng: np.random.Generator) -> S:
        """A fresh state whose reference is the version's error on nominal held-out events.

        `rate`: labelled events per day on the stream.
        """

    def step(
        self, state: S, time: float, seen: NDArray[np.float64], errors: NDArray[np.float64]
    ) -> tuple[S, Evidence]:
        """`seen`: times (s) of the events, `errors`: the serving version's error of each, (n,)."""
