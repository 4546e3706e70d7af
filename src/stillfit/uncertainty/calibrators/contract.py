"""What a calibrator is: knobs in a frozen dataclass, what it learned in a state of arrays.

The state of every calibrator is stored by `core.state.to_arrays` and restored by
`from_arrays(calibrator.init(), ...)`, beside the version whose predictions it corrects.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from numpy.typing import ArrayLike

from stillfit.core.predictive import Floats, Predictive

Interval: TypeAlias = tuple[Floats, Floats]
S = TypeVar("S")


@runtime_checkable
class Calibrator(Protocol[S]):
    """Corrects the stated uncertainty of any method from held-out predictions and truths.

    The rows must be ones that the network was not trained on. Everything is pure.
    """

    def init(self) -> S:
        """A state that has learned nothing, of the structure that `from_arrays` needs."""
        ...

    def fit(self, predictive: Predictive, y: ArrayLike) -> S:
        """Learn from calibration rows, (n,), in order of time where the calibrator asks for it."""
        ...

    def interval(self, state: S, predictive: Predictive, coverage: float) -> Interval:
        """Lower and upper ends that hold a share `coverage` of the truths, shape (batch...)."""
        ...

    def apply(self, state: S, predictive: Predictive) -> Predictive:
        """The corrected predictive distribution."""
        ...


@runtime_checkable
class OnlineCalibrator(Calibrator[S], Protocol[S]):
    """A calibrator that goes on learning while it serves."""

    def update(self, state: S, predictive: Predictive, y: ArrayLike) -> S:
        """Learn from a batch of rows whose labels have come, in order of time.

        However the rows are cut into batches, the state is the same. Labels may be late: rows are
        judged by the state at hand, not by the one that served them, so a delay makes the
        calibrator late by as many rows, but never unstable.
        """
        ...
