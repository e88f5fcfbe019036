"""How far a training has come, in one file that is replaced whole after every epoch: enough to go on bit-equal."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.errors import NotAModel, UsageError
from featcache.files import raise_if_of_the_system, read_arrays, write_arrays
from featcache.outputs import Kind

SUFFIX = ".state"


@dataclass(frozen=True)
class State:
    """What goes on: weights and optimizer as they are, the best weights, the history."""

    facts: dict[str, Any]  # of the trial and the recipe
    weights: tuple[Floats, ...]
    best: tuple[Floats, ...]
    optimizer: tuple[Floats, ...]
    history: tuple[dict[str, Any], ...]  # epochs as JSON
    batch: int  # images per step: less than asked for, where memory was short
    is_over: bool = False

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises DiskFault; what was there before stays then."""
        said = {"facts": self.facts, "history": self.history, "batch": self.batch, "is_over": self.is_over}
        arrays: dict[str, Any] = {"said": np.frombuffer(json.dumps(said).encode(), np.uint8)}
        for name in ("weights", "best", "optimizer"):
            arrays |= {f"{name}{number}": value for number, value in enumerate(getattr(self, name))}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path, facts: dict[str, Any]) -> State:
        """Read it. Raises UsageError if there is none, or one of another training, NotAModel if it is damaged."""
        if not path.exists():
            raise UsageError(f"There is nothing to go on with at {path}. Leave `resume` out")
        try:
            arrays = read_arrays(path)
            said = json.loads(arrays.pop("said").tobytes())
            weights, best, optimizer = (_numbered(arrays, name) for name in ("weights", "best", "optimizer"))
            found = cls(said["facts"], weights, best, optimizer, tuple(said["history"]), said["batch"], said["is_over"])
        except Exception as error:  # a damaged file can raise anything
            raise_if_of_the_system(path, error)
            raise NotAModel(f"{path} cannot be read ({error}). Leave `resume` out to begin anew") from error
        _require_same(found.facts, facts, path)
        return found

    @classmethod
    def find(cls, path: Path, facts: dict[str, Any], resume: bool | None) -> State | None:
        """Return what to go on from. resume: it must be there, or must not; None: if it is whole and of this training.

        Raises what `load` raises if it must be there.
        """
        if resume is False:
            return None
        try:
            return cls.load(path, facts)
        except (UsageError, NotAModel):
            if resume:
                raise
            return None


def is_state(path: Path) -> bool:
    """Return whether a file is how far a training has come, even a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "said.npy" in archive.namelist()
    except zipfile.BadZipFile:
        return path.read_bytes().startswith(b"PK")


STATE = Kind("state of a fine-tuning", is_state)


def state_file(model: Path, control: str = "") -> Path:
    """Return where the state of the training of a model file lies, or of one of its controls."""
    return model.with_suffix(f".{control}{SUFFIX}" if control else SUFFIX)


def _numbered(arrays: dict[str, Any], name: str) -> tuple[Floats, ...]:
    count = sum(key.startswith(name) for key in arrays)
    return tuple(arrays[f"{name}{number}"] for number in range(count))


def _require_same(there: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    asked = json.loads(json.dumps(asked))
    for name in (*asked, *there):
        one, other = there.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            _require_same(one, other, path)
        elif one != other:
            raise UsageError(
                f"{path} is the state of another training: its {name} is {_short(one)}, not {_short(other)}. "
                "Resume with the same options, or leave `resume` out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
