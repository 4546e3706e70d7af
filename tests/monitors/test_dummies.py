"""Dummy detectors: they raise what they promise, on anything."""

import numpy as np
import pytest

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Mixture
from stillfit.core.state import from_arrays, to_arrays
from stillfit.core.values import Served, VersionId
from stillfit.monitors import CountState, EveryKth, Never

SERVED = Served(VersionId("0" * 64), Mixture.gaussian(np.zeros(1), np.ones(1)))


def raised(monitor, state, n: int, block: int) -> list[int]:
    """Events seen when an alarm stood."""
    found = []
    for first in range(0, n, block):
        ids = np.arange(first, min(first + block, n))
        state, evidence = monitor.step(state, float(ids[-1]), ids, {}, SERVED)
        if evidence.raised:
            assert evidence.value >= evidence.threshold
            found.append(int(ids[-1]) + 1)
    return found


def fitted(monitor, rate: float = 5000.0):
    return monitor.fit({}, SERVED, rate=rate, rng=np.random.default_rng(0))


def test_never_is_never():
    assert raised(Never(), fitted(Never()), 100_000, 1000) == []


@pytest.mark.parametrize("block", [1, 10, 50])
def test_every_kth_is_every_kth(block):
    monitor = EveryKth(every=100)
    assert raised(monitor, fitted(monitor), 1000, block) == list(range(100, 1001, 100))


def test_the_default_spends_the_same_budget_of_false_alarms_as_a_detector():
    monitor = EveryKth(false_alarms=0.5)
    assert fitted(monitor).every == 10_000
    assert len(raised(monitor, fitted(monitor), 50_000, 100)) == 5  # 10 days of 0.5 alarms


def test_unfitted_they_are_silent_and_states_come_back():
    assert raised(EveryKth(every=1), EveryKth().init(), 1000, 100) == []
    state = CountState(7, 3)
    assert from_arrays(EveryKth().init(), to_arrays(state)) == state


def test_a_negative_k_is_refused():
    with pytest.raises(ConfigError, match="or 0 for the run length, got -1"):
        EveryKth(every=-1)
