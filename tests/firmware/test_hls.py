"""hls4ml projects: their C simulation equals the whole numbers in every mode of quantising."""

from __future__ import annotations

import hashlib
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError, MissingExtraError, ShapeError
from stillfit.firmware import hls
from stillfit.firmware.checking import record
from stillfit.firmware.devices import device
from stillfit.firmware.tools import ToolError
from stillfit.models.fixed import Precision, integer
from stillfit.models.fixed.formats import Format
from stillfit.models.fixed.layers import FixedConv1d, FixedDense
from stillfit.models.fixed.quantisers import Quantiser

INPUT = Format.channels((1, 0, 1), (4, 5, 3), (5, 2, 6))


def layers():
    """Dense layers in all modes of rounding and overflow; formats by channel; a masked weight."""
    torch.manual_seed(8)
    last = Quantiser(7, rounding="nearest", overflow="wrap")
    last.set_format(Format.of(1, -2, 8))
    made = nn.Sequential(
        FixedDense(3, 6, precision=Precision(weights=6, inputs=6, per_input=True, bias=9)),
        nn.ReLU(),
        FixedDense(
            6,
            5,
            precision=Precision(
                weights=7, inputs=5, per_channel=True, rounding="even", overflow="symmetric"
            ),
        ),
        FixedDense(5, 4, precision=Precision(weights=5, rounding="floor", overflow="wrap")),
        nn.ReLU(),
        FixedDense(4, 2, precision=Precision(weights=8, inputs=9)),
        last,
    ).eval()
    first, second, third, fourth = (made[n] for n in (0, 2, 3, 5))
    first.on_input.set_format(Format.channels((1, 0, 1), (3, 4, 1), (2, 2, 4)))
    second.on_input.set_format(Format.of(1, 1, 3))
    second.on_weight.set_format(Format.channels((1,) * 5, (0, 1, -1, 0, 2), (6, 5, 7, 6, 4)))
    third.on_input.set_format(Format.of(1, -1, 8))
    fourth.on_input.set_format(Format.of(0, 1, 8))
    with torch.no_grad():
        for layer in (first, second, third, fourth):
            layer.weight.mul_(2.0)
        first.mask[1, 2] = False
    return made


@pytest.fixture(scope="module")
def network():
    return integer(layers(), "all modes")


@pytest.fixture
def chip():
    return device("xc7a35t")


@pytest.fixture
def hls4ml():
    pytest.importorskip("hls4ml", reason="needs the extra [hls]")


@pytest.fixture
def vectors(network):
    rng = np.random.default_rng(2)
    k, span = np.array(INPUT.k), np.array(INPUT.i) + np.array(INPUT.f)
    codes = rng.integers(-k << span, 1 << span, (3000, 3))
    codes[0], codes[1] = -k << span, (1 << span) - 1
    return record(network, layers(), codes, np.array(INPUT.f))


def content(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_project_states_our_formats_and_weights_and_no_machine(hls4ml, network, chip, tmp_path):
    project = hls.write_hls(network, "modes", tmp_path / "a", chip, inputs=INPUT)
    types = (tmp_path / "a/firmware/defines.h").read_text()
    # Holds all inputs: (1, 5, 6); the second layer's weights: (1, 2, 7).
    assert "typedef ap_fixed<12,6> input_t;" in types
    assert "typedef ap_fixed<10,3> dense2_weight_t;" in types
    assert str(project.answer) == "ap_fixed<7,-1>"
    quantisers = (tmp_path / "a/firmware/nnet_utils/nnet_code_gen.h").read_text()
    for cast in (
        "out[1] = ap_ufixed<6,4,AP_RND,AP_SAT>(inp[1]);",
        "ap_fixed<5,2,AP_RND_CONV,AP_SAT_SYM>",
        "ap_fixed<8,0,AP_TRN,AP_WRAP>",
        "ap_fixed<7,-1,AP_RND,AP_WRAP>",
    ):
        assert cast in quantisers
    layer = network.layers[1]
    told = (tmp_path / "a/firmware/weights/w6.txt").read_text().split(",")
    found = np.array([float(word) for word in told]).reshape(6, 5)
    assert np.array_equal(np.ldexp(found, np.array(layer.weight_format.f)).T, layer.weight)
    hls.write_hls(network, "modes", tmp_path / "b", chip, inputs=INPUT)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not any(
        str(tmp_path).encode() in path.read_bytes()
        for path in (tmp_path / "a").rglob("*")
        if path.is_file()
    )


def test_its_simulation_equals_the_network_and_another_weight_is_found(
    hls4ml, network, vectors, chip, tmp_path
):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    project = hls.write_hls(
        network, "modes", tmp_path / "p", chip, design="reloadable", inputs=INPUT, title="all modes"
    )
    hls.write_hls_bench(project, vectors, chip)
    simulation = hls.simulate_hls(project, tmp_path / "s")
    got = simulation.run(vectors.inputs)
    assert len(np.unique(vectors.whole)) > 100  # the answers cover their format, wrapped ones too
    assert np.array_equal(got, vectors.whole)
    assert np.array_equal(got, vectors.fake)
    weights = project.folder / "firmware/weights/b11.txt"  # of the last layer
    one, other = weights.read_text().split(",")
    weights.write_text(f"{float(one) + 2.0**-8}, {other}")
    moved = simulation.run(vectors.inputs)
    assert (moved[:, 0] != got[:, 0]).all()
    assert np.array_equal(moved[:, 1], got[:, 1])
    with pytest.raises(ShapeError, match=r"modes takes codes \(n, 3\), got \(4, 2\)"):
        simulation.run(np.zeros((4, 2), np.int64))


def test_reloadable_weights_are_arguments_and_the_bench_holds_the_vectors(
    hls4ml, network, vectors, chip, tmp_path
):
    loose = hls.write_hls(network, "modes", tmp_path / "r", chip, design="reloadable", inputs=INPUT)
    hls.write_hls(network, "modes", tmp_path / "c", chip, inputs=INPUT)
    wanted = "dense1_weight_t w3[18]"
    assert wanted in (tmp_path / "r/firmware/modes.h").read_text()
    assert wanted not in (tmp_path / "c/firmware/modes.h").read_text()
    hls.write_hls_bench(loose, vectors, chip)
    fed = np.loadtxt(tmp_path / "r/tb_data/tb_input_features.dat")
    answers = np.loadtxt(tmp_path / "r/tb_data/tb_output_predictions.dat")
    assert np.array_equal(np.ldexp(fed, np.array(INPUT.f)), vectors.inputs[:1000])
    assert np.array_equal(np.ldexp(answers, 8), vectors.whole[:1000])
    assert "reloadable weights" in (tmp_path / "r/README.md").read_text()


def test_what_cannot_be_written_is_refused(hls4ml, network, chip, tmp_path):
    conv = integer(nn.Sequential(FixedConv1d(1, 2, 3), nn.ReLU()).eval(), "conv")
    with pytest.raises(ConfigError, match="conv has the step Conv1d, which is not written for"):
        hls.write_hls(conv, "conv", tmp_path, chip)
    with pytest.raises(ConfigError, match="'a b' is not the name of a function"):
        hls.write_hls(network, "a b", tmp_path, chip)
    with pytest.raises(ConfigError, match="a design is one of constant, reloadable, got 'soft'"):
        hls.write_hls(network, "modes", tmp_path, chip, design="soft")
    with pytest.raises(ShapeError, match="modes takes 3 values and was given 2 formats"):
        hls.write_hls(network, "modes", tmp_path, chip, inputs=Format.channels(1, (1, 2), 3))


def test_without_hls4ml_the_extra_is_named(network, chip, tmp_path, monkeypatch):
    for module in ("hls4ml", "hls4ml.model.graph"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"need hls4ml, .*pip install 'stillfit\[hls\]'"):
        hls.write_hls(network, "modes", tmp_path, chip)


def test_what_hls4ml_throws_is_a_tool_error(hls4ml, network, chip, tmp_path, monkeypatch):
    from hls4ml.model.graph import ModelGraph

    def broken(*args):
        raise KeyError("something new")

    monkeypatch.setattr(ModelGraph, "from_layer_list", broken)
    with pytest.raises(ToolError, match=r"hls4ml failed while writing modes .*something new"):
        hls.write_hls(network, "modes", tmp_path, chip, inputs=INPUT)
