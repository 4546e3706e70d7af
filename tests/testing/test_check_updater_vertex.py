"""The suite on ragged tracks: every updater with a vertex network, or why it refuses one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.e2e import E2E
from stillfit.models.training import Schedule
from stillfit.studies.continual.catalogue import STRATEGIES
from stillfit.studies.continual.setting import Recipe
from stillfit.testing import Law, check_updater
from stillfit.testing.vertex import vertex_problem
from stillfit.updaters.dynamic import Compress, Grow, PackNet
from stillfit.updaters.embedded import (
    EmbeddedDFA,
    EmbeddedLMS,
    EmbeddedRLS,
    EmbeddedSGD,
    EmbeddedSPSA,
)
from stillfit.updaters.labels import AdaptNormalisation, PseudoLabels
from stillfit.updaters.online import (
    NearestMean,
    OnlineFineTune,
    OnlineReplay,
    RecursiveLeastSquares,
    StreamingLDA,
)
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Frozen, Retrain, RetrainWindow
from stillfit.updaters.regularisation import EWC, MAS, LwF, OnlineEWC, SynapticIntelligence
from stillfit.updaters.replay import DarkReplay, GDumb, GenerativeReplay, Replay

torch.set_num_threads(1)
FEW = replace(vertex_problem(E2E), old=80, new=50)
S = Schedule(steps=8, batch=30, rate=0.05)
R = Schedule(steps=25, batch=40, rate=0.04)  # from nothing
NAIVE = FineTune(schedule=S)

# Every updater that takes a vertex network, with the limits of its knobs.
TAKES = [
    (NAIVE, {}),
    (Retrain(schedule=R), {}),
    (RetrainWindow(schedule=R, window=1800.0), {}),
    (Recalibrate(), {}),
    (Replay(schedule=S, capacity=60), {}),
    (DarkReplay(schedule=S, capacity=60), {}),
    (GDumb(schedule=R, capacity=120), {}),
    (EWC(schedule=S, fisher_events=8), EWC(schedule=S, fisher_events=8, penalty=0.0)),
    (OnlineEWC(schedule=S, fisher_events=8), OnlineEWC(schedule=S, fisher_events=8, penalty=0.0)),
    (SynapticIntelligence(schedule=S), SynapticIntelligence(schedule=S, penalty=0.0)),
    (MAS(schedule=S, events=8), MAS(schedule=S, events=8, penalty=0.0)),
    (LwF(schedule=S), LwF(schedule=S, penalty=0.0)),
    (PackNet(schedule=replace(R, steps=40)), {}),  # half of the weights are free to learn
    (Grow(schedule=S, rounds=1), {}),
    (Compress(schedule=S), Compress(schedule=S, mix=0.0)),
    (OnlineFineTune(rate=0.01, batch=5), {}),
    (OnlineReplay(rate=0.01, batch=5, replay=5, capacity=60), {}),
]
# Those that do not, in words of their reason.
REFUSES = [
    (GenerativeReplay(schedule=S), "is ragged: a density of single items"),
    (StreamingLDA(), "states numbers, not classes"),
    (NearestMean(), "states numbers, not classes"),
    (RecursiveLeastSquares(), "the last linear layer does not move the mean"),
    (PseudoLabels(schedule=S), "cannot label is_pv by itself"),
    (AdaptNormalisation(), "no normalisation layer"),
    *(
        (kind(), "E2E")
        for kind in (EmbeddedSGD, EmbeddedDFA, EmbeddedLMS, EmbeddedRLS, EmbeddedSPSA)
    ),
]


def named(case):
    return type(case).__name__


def passes(updater, naive, problem, methods):
    """The whole suite; what is skipped is known."""
    laws = {} if naive == {} else {"0 is fine-tuning": Law(updater=naive, like=NAIVE)}
    report = check_updater(updater, problems=[problem], methods=methods, laws=laws, strict=False)
    assert report.failed == (), report
    known = {"vertex: an unseen class", "vertex: a diverging update", "vertex: too few events"}
    assert set(report.skipped) <= known, report
    assert report.count >= 19 + len(methods) + len(laws)


def test_every_updater_of_the_catalogue_takes_a_vertex_network_or_says_why_not():
    recipe = Recipe(
        scenario="toy", kind="vertex", rows=100, experiences=3, epochs=1, batch=10, rate=0.01,
        memory=50,
    )  # fmt: skip
    made = {named(one.make(recipe, 1)) for one in STRATEGIES.values()}
    here = [named(updater) for updater, _ in TAKES + REFUSES]
    assert len(set(here)) == len(here) == 28
    assert made - set(here) <= {"Frozen"} and set(here) - made == {"RecursiveLeastSquares"}


@pytest.mark.parametrize(("updater", "naive"), TAKES, ids=named)
def test_every_updater_of_vertex_networks_passes(updater, naive):
    passes(updater, naive, FEW, methods=())


@pytest.mark.study
@pytest.mark.parametrize("network", [E2E, AdaptiveE2E])
@pytest.mark.parametrize(("updater", "naive"), TAKES, ids=named)
def test_on_more_events_with_both_networks_and_uncertain_ones(updater, naive, network):
    passes(updater, naive, vertex_problem(network), methods=("deep-ensemble", "laplace"))


@pytest.mark.parametrize(("updater", "because"), REFUSES, ids=named)
def test_who_does_not_take_a_vertex_network_says_why(updater, because):
    report = check_updater(updater, problems=[FEW], methods=(), strict=False)
    assert report.failed == ("takes a task",)
    (whole,) = [check for check in report.checks if check.name == "vertex: all"]
    assert whole.outcome == "skipped" and because in whole.because


def test_what_is_frozen_stays():
    report = check_updater(Frozen(), problems=[FEW], methods=(), learns=False)
    assert report.failed == () and "vertex: what it is given stays" in report.passed


def test_the_new_condition_is_worse_at_both_duties():
    trained = FEW.serving(0)
    old, new = (
        trained.errors(FEW.examples(200, condition, seed=0, first=9000))
        for condition in ("old", "new")
    )
    for duty in ("miss", "association"):
        assert new[duty].mean() > old[duty].mean() + 0.02
    assert old["error"].mean() < 0.1


def test_odd_events_are_what_they_are_called():
    events = FEW.examples(20, "new", seed=0)
    none = FEW.odd["events without tracks"](events)
    assert np.count_nonzero(none.inputs["z0"].counts == 0) == 10
    np.testing.assert_array_equal(none.inputs["pt"].counts, none.targets["is_pv"].counts)
    assert not FEW.odd["no track of the primary vertex"](events).targets["is_pv"].values.any()
    other = FEW.odd["labels of other tracks"](events)
    assert not np.array_equal(other.targets["is_pv"].counts, other.inputs["pt"].counts)
