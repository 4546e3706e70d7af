"""What slower tools say of versions that begin to serve: journaled, never obeyed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stillfit.core.values import Footprint
from stillfit.loop import run
from stillfit.models.model import Model, footprint
from stillfit.registry import Registry

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@dataclass
class ToyChip:
    """Counts parameters; its slow tool answers, fails, is absent or is not asked."""

    slow: object = None
    asked: list[Model] = field(default_factory=list)

    def footprint(self, model: Model) -> Footprint:
        return footprint(model.network)

    def equality(self, model, examples):
        return None

    def promoted(self, model: Model) -> Footprint | None:
        self.asked.append(model)
        if isinstance(self.slow, Exception):
            raise self.slow
        return self.slow


COUNTED = Footprint(
    parameters=1, weight_bytes=2, macs_per_event=3, method="synthesis", lut=4.0,
    tools={"yosys": "0.1"},
)  # fmt: skip
KINDS = ("synthesised", "synthesis-failed")


def played(path, chip, events=None):
    """The journal of one lane with a chip, all of its kinds in order."""
    registry = Registry.open(path, write=True) if Registry.exists(path) else Registry.create(path)
    with registry:
        for n, _ in enumerate(
            run(toy.stream(toy.STORY[:4]), toy.plan("finetune", chip=chip), registry)
        ):
            if n == events:
                break
        return registry.history("finetune")


def test_every_version_that_begins_to_serve_is_counted_once_and_recorded(tmp_path):
    chip = ToyChip(slow=COUNTED)
    history = played(tmp_path / "r", chip)
    served = [e for e in history if e.kind in ("deploy", "switch")]
    counted = [e for e in history if e.kind in KINDS]
    assert len(served) >= 2
    assert [e.version for e in counted] == [e.version for e in served]
    assert [e.seq for e in counted] == [e.seq + 1 for e in served]
    assert len(chip.asked) == len(served)
    for entry in counted:
        assert entry.kind == "synthesised" and entry.because == "4 LUT (synthesis)"
        assert entry.payload["footprint"]["lut"] == 4.0
        assert entry.payload["footprint"]["tools"] == {"yosys": "0.1"}


@pytest.mark.parametrize(
    "trouble", [RuntimeError("yosys failed with exit code 3"), MemoryError(), StopIteration()]
)
def test_a_crash_or_a_missing_tool_is_journaled_and_all_else_is_as_without(tmp_path, trouble):
    without = played(tmp_path / "without", ToyChip())
    assert not [e for e in without if e.kind in KINDS]
    history = played(tmp_path / "with", ToyChip(slow=trouble))
    failed = [e for e in history if e.kind in KINDS]
    assert {e.kind for e in failed} == {"synthesis-failed"}
    assert failed[0].because == f"{type(trouble).__name__}: {trouble}"
    rest = [e for e in history if e.kind not in KINDS]
    assert [(e.kind, e.time, e.version, e.payload) for e in rest] == [
        (e.kind, e.time, e.version, e.payload) for e in without
    ]


def test_a_run_that_goes_on_keeps_what_was_said_and_does_not_ask_again(tmp_path):
    """Even where the tool would say something else now."""
    played(tmp_path / "r", ToyChip(slow=COUNTED), events=14)
    again = ToyChip(slow=RuntimeError("gone"))
    history = played(tmp_path / "r", again)
    counted = [e for e in history if e.kind in KINDS]
    served = [e for e in history if e.kind in ("deploy", "switch")]
    assert [e.version for e in counted] == [e.version for e in served]
    assert counted[0].kind == "synthesised"
    kept = [e for e in counted if e.kind == "synthesised"]
    assert len(again.asked) == len(counted) - len(kept)
