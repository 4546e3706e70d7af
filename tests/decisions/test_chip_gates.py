"""The gates of the device: area, growth, time and every bit."""

import numpy as np
import pytest

from stillfit.core.errors import ConfigError
from stillfit.core.values import Device, Equality, Footprint
from stillfit.decisions.chip import BitExact, Fits, FootprintStable, Latency
from stillfit.decisions.gates import Paired, Trial

CHIP = Device(name="small", lut=10_000, ff=20_000, dsp=100, bram=10.0, clock_mhz=200.0)


def circuit(**figures):
    known = {
        "lut": 1000.0, "ff": 500.0, "dsp": 4.0, "bram": 0.5, "latency_cycles": 10,
        "latency_ns": 50.0, "initiation_interval": 2, "method": "traced",
    }  # fmt: skip
    return Footprint(parameters=10, weight_bytes=40, macs_per_event=9, **{**known, **figures})


def trial(footprint=None, stands=None, equality=None):
    nothing = Paired(candidate=np.zeros(0), incumbent=np.zeros(0))
    return Trial(new=nothing, footprint=footprint, stands=stands, equality=equality)


def test_a_circuit_fits_up_to_its_share_and_not_beyond():
    gate = Fits(device=CHIP, share=0.1)
    assert gate.judge(trial(circuit(lut=1000.0))).accepted
    refused = gate.judge(trial(circuit(lut=1001.0, dsp=11.0)))
    assert not refused.accepted
    assert "too large for small (traced)" in refused.because
    assert "1,001 LUT where 1,000 are allowed" in refused.because
    assert "11 DSP where 10 are allowed" in refused.because
    assert refused.figures["lut_limit"] == 1000.0


def test_single_shares_count_before_the_common_one():
    gate = Fits(device=CHIP, share=0.5, shares={"dsp": 0.01})
    assert not gate.judge(trial(circuit())).accepted
    assert gate.judge(trial(circuit(dsp=1.0))).accepted


def test_a_resource_that_is_not_stated_is_not_taken_for_zero():
    verdict = Fits(device=CHIP).judge(trial(circuit(bram=None)))
    assert not verdict.accepted and "does not state bram" in verdict.because


def test_growth_is_judged_against_the_incumbent():
    gate = FootprintStable(tolerance=0.1)
    assert gate.judge(trial(circuit(lut=1100.0), circuit())).accepted
    refused = gate.judge(trial(circuit(lut=1101.0), circuit()))
    assert not refused.accepted and "LUT 1,000 -> 1,101" in refused.because
    assert refused.figures["lut_change"] == 101.0
    shrunk = gate.judge(trial(circuit(lut=100.0), circuit()))
    assert shrunk.accepted and "LUT -90.0%" in shrunk.because
    assert FootprintStable(tolerance=0.1, least=200.0).judge(
        trial(circuit(lut=1200.0), circuit())
    ).accepted  # fmt: skip
    assert not gate.judge(trial(circuit(dsp=1.0), circuit(dsp=0.0))).accepted


def test_figures_of_two_methods_are_not_compared():
    verdict = FootprintStable().judge(trial(circuit(), circuit(method="synthesis")))
    assert not verdict.accepted and "measure both the same way" in verdict.because


def test_latency_and_interval():
    assert Latency(ns=50.0).judge(trial(circuit())).accepted
    late = Latency(ns=49.0).judge(trial(circuit()))
    assert not late.accepted and "50.0 ns (10 cycles), later than the 49.0 ns" in late.because
    assert Latency(ns=50.0, interval=10.0).judge(trial(circuit())).accepted
    busy = Latency(ns=50.0, interval=9.0).judge(trial(circuit()))
    assert not busy.accepted and "after 10.0 ns only" in busy.because


def test_bits_are_equal_on_enough_vectors_or_it_is_refused_with_the_first_difference():
    def found(**facts):
        told = {"vectors": 10_000, "wrong": 0, "digest": "0" * 64, "against": "RTL, integers"}
        return Equality(**{**told, **facts})

    gate = BitExact(vectors=10_000)
    assert gate.judge(trial(equality=found())).accepted
    few = gate.judge(trial(equality=found(vectors=9_999)))
    assert not few.accepted and "only 9,999 vectors" in few.because
    wrong = gate.judge(trial(equality=found(wrong=2, first="weight, vector 7, bit 3")))
    assert not wrong.accepted
    assert "2 of 10,000 vectors differ" in wrong.because and "weight, vector 7" in wrong.because


@pytest.mark.parametrize(
    "gate", [Fits(device=CHIP), FootprintStable(), Latency(ns=1.0), BitExact()]
)
def test_what_was_not_measured_is_refused_with_the_remedy(gate):
    verdict = gate.judge(trial())
    assert not verdict.accepted and "extra [firmware]" in verdict.because


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fits(device=CHIP, share=1.5), "must lie in \\(0, 1\\], got 1.5"),
        (lambda: Fits(device=CHIP, shares={"luts": 0.1}), "'luts'\\] are no resources"),
        (lambda: FootprintStable(tolerance=-1.0), "must not be negative"),
        (lambda: Latency(ns=0.0), "must be positive"),
        (lambda: BitExact(vectors=0), "must be at least 1"),
    ],
)
def test_wrong_knobs_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
