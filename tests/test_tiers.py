"""Imports point down only, and siblings of one tier do not know each other."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stillfit"
TIERS = {
    "apps": 6,
    "studies": 5,
    "testing": 5,
    "loop": 4,
    "l1t": 3,
    "sensing": 3,
    "uncertainty": 2,
    "updaters": 2,
    "firmware": 2,
    "models": 1,
    "streams": 1,
    "monitors": 1,
    "decisions": 1,
    "registry": 1,
    "core": 0,
}
# Third-party packages that one room alone may know.
KEEPERS = {
    "pydantic": {"core"},
    "typer": {"apps"},
    "rich": {"apps"},
    "uproot": {"l1t"},
    "awkward": {"l1t"},
    "pythia8mc": {"l1t"},
    "sqlite3": {"registry"},
}


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found.add(node.module or "")
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    mine = room(path)
    assert mine in TIERS, f"{mine} has no tier: give it one here and in docs/design.md"
    for name in imports(path):
        if name.startswith("stillfit."):
            other = name.split(".")[1]
            assert other == mine or TIERS[other] < TIERS[mine], f"{path} imports {name}"
        for package, keepers in KEEPERS.items():
            if name.split(".")[0] == package:
                assert mine in keepers, f"{path} imports {name}, which only {keepers} may know"


def test_no_room_is_called_after_nothing() -> None:
    names = {path.stem for path in FILES}
    assert not names & {"utils", "helpers", "common", "misc"}
