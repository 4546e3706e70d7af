"""The suite runs on every method of the catalogue, and each of its checks can fail."""

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError
from stillfit.core.predictive import Mixture
from stillfit.models import uncertain
from stillfit.models.likelihood import GaussianLikelihood
from stillfit.models.networks import MLP
from stillfit.testing import Check, Report, check_uncertainty
from stillfit.testing.uncertainty import LONG, SHORT, _Classification, _Regression
from stillfit.uncertainty import DeepEnsemble
from stillfit.uncertainty.methods import METHODS

SHARED = {
    "shapes",
    "total at least its parts",
    "rows do not know each other",
    "chunks make no difference",
    "prediction changes nothing",
    "no global randomness in prediction",
    "same seed, same output",
    "another seed, another network",
    "the weights hold everything",
    "batch-norm buffers unchanged by prediction",
    "two constant members disagree",
    "GPU equals CPU",
    "better than guessing",
}
UNIFORM = "the probability integral transform is uniform"
OF_NUMBERS = {
    UNIFORM,
    "verbs agree with each other",
    "law of total variance",
}
OF_CLASSES = {"probabilities sum to one"}
ALL = {f"regression: {name}" for name in SHARED | OF_NUMBERS} | {
    f"classification: {name}" for name in SHARED | OF_CLASSES
}
GPU = {"regression: GPU equals CPU", "classification: GPU equals CPU"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_catalogue_passes(name):
    method = METHODS[name]
    report = check_uncertainty(method)
    assert report.failed == ()
    refused = {f"{kind}: all" for kind in ("regression", "classification")}
    named = {check.name for check in report.checks}
    assert named <= ALL | refused
    if not named & refused:
        assert named == ALL
    # What is skipped is known: nothing drops out in silence.
    reasons = {c.name: c.because for c in report.checks if c.outcome == "skipped"}
    if method.decomposes:
        allowed = {*GPU, "classification: all", *_one_pass(reasons)}
        assert set(reasons) <= allowed, reasons
    if not torch.cuda.is_available():
        assert "regression: GPU equals CPU" in reasons
    assert report.count == len(report.checks) - len(reasons)
    assert report.count >= 11


def _one_pass(reasons):
    words = ("one pass", "not a mixture of passes", "refused")
    return {name for name, why in reasons.items() if any(word in why for word in words)}


def test_the_catalogue_is_not_empty():
    assert len(METHODS) >= 14


# -- broken methods: each is found by the check that is about it -----------------------------------


class Wrapped(uncertain.Uncertain):
    """Two members side by side: a right method, out of which each test breaks one thing."""

    def __init__(self, network):
        super().__init__()
        self.ensemble = DeepEnsemble(network, members=2)

    @property
    def core(self):
        return self.ensemble

    @property
    def n_passes(self):
        return self.ensemble.n_passes

    def passes(self, task, inputs):
        return self.ensemble.passes(task, inputs)

    def loss(self, task, inputs, targets):
        return self.ensemble.loss(task, inputs, targets)

    def predict(self, task, inputs):
        return task.state(uncertain.core_of(self), self.passes(task, inputs), inputs)

    def fresh(self, task, examples, seed):
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.ensemble = self.ensemble.fresh(task, examples, seed)
        return twin


def outcome(method, name, schedule=SHORT):
    """The one check, made on a method; a short training shows most of what is broken."""
    label, _, only = name.partition(": ")
    kind = _Regression if label == "regression" else _Classification
    (check,) = kind(convert=method, seed=0, significance=1e-4, schedule=schedule).run(only)
    assert check.name == name
    return check


def gaussian(task):
    return not hasattr(task, "classes")


def test_the_wrapper_that_is_broken_below_is_right_before():
    report = check_uncertainty(Wrapped)
    assert report.failed == ()
    assert report.subject == "Wrapped"


class AveragesParameters(Wrapped):
    """What a well-known library does: the members' parameters are averaged, not mixed."""

    def predict(self, task, inputs):
        answer = tuple(part.mean(0, keepdim=True) for part in self.passes(task, inputs))
        stated, outputs = task.state(uncertain.core_of(self), answer, inputs)
        if gaussian(task):
            zero = np.zeros_like(stated.mean)
            stated = Mixture.from_parts(stated.mean, stated.variance, zero)
        return stated, outputs


def test_averaged_parameters_lose_the_members_disagreement():
    found = outcome(AveragesParameters, "regression: two constant members disagree")
    assert found.outcome == "failed"
    assert "epistemic part is 0" in found.because
    law = outcome(AveragesParameters, "regression: law of total variance")
    assert law.outcome == "failed"
    assert "variance of their means" in law.because


class MovesBuffers(Wrapped):
    def predict(self, task, inputs):
        self.train()
        with torch.inference_mode(False), torch.no_grad():
            task.answer(self.ensemble.member(0).train(), inputs)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.running_mean.add_(0.1)
        self.eval()
        return super().predict(task, inputs)


def test_batch_norm_that_moves_in_prediction_is_found():
    found = outcome(MovesBuffers, "classification: batch-norm buffers unchanged by prediction")
    assert found.outcome == "failed"
    assert "running_mean" in found.because


class DrawsGlobally(Wrapped):
    def passes(self, task, inputs):
        return tuple(p + 0.01 * torch.randn_like(p) for p in super().passes(task, inputs))


@pytest.mark.parametrize(
    "name", ["no global randomness in prediction", "chunks make no difference"]
)
def test_global_draws_in_prediction_are_found(name):
    assert outcome(DrawsGlobally, f"regression: {name}").outcome == "failed"


class StartsAnyhow(Wrapped):
    def fresh(self, task, examples, seed):
        return super().fresh(task, examples, int(torch.randint(1 << 30, ())))


def test_a_start_that_ignores_its_seed_is_found():
    found = outcome(StartsAnyhow, "regression: same seed, same output")
    assert found.outcome == "failed"
    assert "two networks" in found.because


class StartsAlike(Wrapped):
    def fresh(self, task, examples, seed):
        return super().fresh(task, examples, 7)


def test_a_start_that_is_always_the_same_is_found():
    assert outcome(StartsAlike, "regression: another seed, another network").outcome == "failed"


class Forgets(Wrapped):
    """Something frozen that is no buffer: a version that was stored would answer otherwise."""

    def fresh(self, task, examples, seed):
        twin = super().fresh(task, examples, seed)
        twin.shift = float(seed + 1)
        return twin

    def predict(self, task, inputs):
        answer = tuple(p + getattr(self, "shift", 0.0) * p for p in self.passes(task, inputs))
        return task.state(uncertain.core_of(self), answer, inputs)


def test_something_frozen_outside_the_weights_is_found():
    found = outcome(Forgets, "regression: the weights hold everything")
    assert found.outcome == "failed"
    assert "no buffer" in found.because


class MixesRows(Wrapped):
    def passes(self, task, inputs):
        return tuple(p + p[:, :1] for p in super().passes(task, inputs))


def test_rows_that_know_each_other_are_found():
    assert outcome(MixesRows, "regression: rows do not know each other").outcome == "failed"
    assert outcome(MixesRows, "classification: chunks make no difference").outcome == "failed"


class TooSure(Wrapped):
    def predict(self, task, inputs):
        stated, outputs = super().predict(task, inputs)
        if gaussian(task):
            stated = Mixture.gaussian(stated.mean, stated.variance / 4)
        return stated, outputs


def test_half_the_deviation_is_not_uniform():
    found = outcome(TooSure, f"regression: {UNIFORM}", LONG)
    assert found.outcome == "failed"
    assert "p = " in found.because


class PartsExceed(Wrapped):
    def predict(self, task, inputs):
        stated, outputs = super().predict(task, inputs)
        if gaussian(task):
            both = stated.variance[:, None] * np.ones(2)
            parts = (2 * stated.variance, stated.variance)
            stated = Mixture(stated.mean[:, None] * np.ones(2), both, None, parts)
        return stated, outputs


def test_a_part_above_the_total_is_found():
    found = outcome(PartsExceed, "regression: total at least its parts")
    assert found.outcome == "failed"
    assert "exceeds the total" in found.because


class PartsMissing(Wrapped):
    def predict(self, task, inputs):
        stated, outputs = super().predict(task, inputs)
        if gaussian(task):
            half = stated.variance / 4
            mean, variance = stated.mean[:, None], stated.variance[:, None]
            stated = Mixture(mean, variance, None, (half, half))
        return stated, outputs


def test_parts_that_do_not_add_up_are_found():
    found = outcome(PartsMissing, "regression: total at least its parts")
    assert found.outcome == "failed"
    assert "do not add up" in found.because


class OneRow(Wrapped):
    def predict(self, task, inputs):
        stated, outputs = super().predict(task, inputs)
        return stated.take(np.arange(1)), outputs


def test_a_wrong_number_of_rows_is_found():
    found = outcome(OneRow, "classification: shapes")
    assert found.outcome == "failed"
    assert "7 events gave 1 predictions" in found.because


class Untrained(Wrapped):
    def loss(self, task, inputs, targets):
        return 0 * super().loss(task, inputs, targets)


def test_a_method_that_does_not_learn_is_found():
    guesses = outcome(Untrained, "classification: better than guessing")
    assert guesses.outcome == "failed"
    assert "of guessing 1.099" in guesses.because
    numbers = outcome(Untrained, "regression: better than guessing")
    assert numbers.outcome == "failed"
    assert "of guessing the mean" in numbers.because


class ChangesWeights(Wrapped):
    def predict(self, task, inputs):
        with torch.inference_mode(False), torch.no_grad():
            next(self.parameters()).mul_(1.0001)
        return super().predict(task, inputs)


def test_weights_that_change_in_prediction_are_found():
    found = outcome(ChangesWeights, "regression: prediction changes nothing")
    assert found.outcome == "failed"
    assert "prediction changed ensemble" in found.because


class Unordered(GaussianLikelihood):
    """A family whose verbs contradict each other."""

    def predictive(self, raw):
        stated = super().predictive(raw)
        return Lying(stated.means, stated.variances)


class Lying(Mixture):
    def quantile(self, level):
        return super().quantile(level) + 0.1


def lying(network):
    network.likelihood = Unordered() if isinstance(network, MLP) else GaussianLikelihood()
    return network


def test_verbs_that_contradict_each_other_are_found():
    found = outcome(lying, "regression: verbs agree with each other")
    assert found.outcome == "failed"
    assert "cdf(quantile(0.3))" in found.because


def test_probabilities_that_do_not_sum_are_found():
    class Leaks(Wrapped):
        def predict(self, task, inputs):
            stated, outputs = super().predict(task, inputs)
            if not gaussian(task):
                object.__setattr__(stated, "members", stated.members * 0.99)
            return stated, outputs

    assert outcome(Leaks, "classification: probabilities sum to one").outcome == "failed"


def test_the_gpu_is_compared_where_there_is_one(monkeypatch):
    """The comparison itself: a device on which the same network answers otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    move = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, **k: self if a == ("cuda",) else move(self, *a, **k)
    )
    suite = _Regression(convert=Wrapped, seed=0, significance=1e-4, schedule=SHORT)
    model = suite.model
    suite.gpu()
    said = uncertain.predict

    def elsewhere(task, network, inputs):
        stated, outputs = said(task, network, inputs)
        if network is not model.network:
            stated = Mixture(stated.means * 1.01, stated.variances)
        return stated, outputs

    monkeypatch.setattr(uncertain, "predict", elsewhere)
    with pytest.raises(AssertionError, match="GPU and CPU disagree"):
        suite.gpu()


# -- the report ------------------------------------------------------------------------------------


def refuses_all(network):
    raise ConfigError("not this network")


def test_a_method_that_refuses_everything_fails():
    report = check_uncertainty(refuses_all, strict=False)
    assert report.skipped == ("regression: all", "classification: all")
    assert report.failed == ("takes a task",)
    assert report.count == 1


def test_a_failure_is_raised_with_the_whole_report_unless_asked_not_to():
    with pytest.raises(AssertionError, match=r"OneRow: \d+ passed, \d+ failed") as raised:
        check_uncertainty(OneRow, schedule=SHORT)
    assert "7 events gave 1" in str(raised.value)
    assert "skipped" in str(raised.value)


def test_a_report_counts_what_was_made():
    checks = (
        Check("a", "passed"),
        Check("b", "failed", "off by 3"),
        Check("c", "skipped", "there is no GPU"),
    )
    report = Report("mine", checks)
    assert (report.count, report.passed, report.failed, report.skipped) == (
        2,
        ("a",),
        ("b",),
        ("c",),
    )
    assert str(report).splitlines() == [
        "mine: 1 passed, 1 failed, 1 skipped",
        "  passed  a",
        "  failed  b: off by 3",
        "  skipped c: there is no GPU",
    ]
