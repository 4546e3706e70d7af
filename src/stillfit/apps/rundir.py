"""The folder of a run: its settings, its registry, its summary and report."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stillfit
from stillfit.apps.summary import write_text
from stillfit.core.errors import ConfigError
from stillfit.registry import Registry

RUN, STORE = "run.json", "registry"


@dataclass(frozen=True)
class RunDir:
    """A claimed folder: it belongs to one run, whose settings lie in `run.json`."""

    path: Path

    @classmethod
    def claim(cls, path: Path, kind: str, settings: Any) -> RunDir:
        """Take an empty folder for a run, or find the same run there again.

        `ConfigError` if another run lives there, or something that is not ours.
        """
        told = {
            "kind": kind,
            "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        }
        file = path / RUN
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{file} cannot be read ({error}); give another --out") from None
            if {"kind": found.get("kind"), "settings": found.get("settings")} != told:
                raise ConfigError(
                    f"{path} holds another run ({_difference(found.get('settings'), told)}); "
                    "give another --out, or delete the folder"
                )
            return cls(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} is not an empty folder; give another --out")
        told["stillfit"] = stillfit.__version__
        write_text(file, json.dumps(told, indent=1) + "\n")
        return cls(path)

    def registry(self) -> Registry:
        """The run's registry, open for writing; made if it is not there."""
        store = self.path / STORE
        return (
            Registry.open(store, write=True) if Registry.exists(store) else Registry.create(store)
        )


def _difference(found: Any, told: dict[str, Any]) -> str:
    mine = told["settings"]
    if not isinstance(found, dict):
        return "its settings are unreadable"
    for name in sorted({*found, *mine}):
        if found.get(name) != mine.get(name):
            return f"{name} is {found.get(name)!r} there and {mine.get(name)!r} here"
    return "of another kind"
