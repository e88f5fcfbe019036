"""How far a training has come: one file, replaced whole after every epoch, from which training resumes bit for bit."""

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
FACTS = "said"  # the array that holds the JSON


@dataclass(frozen=True)
class TrainingState:
    """What a training continues from: weights, optimizer, the best weights and the history."""

    facts: dict[str, Any]  # about the trial and the recipe
    weights: tuple[Floats, ...]
    best: tuple[Floats, ...]
    optimizer: tuple[Floats, ...]
    history: tuple[dict[str, Any], ...]  # epochs as JSON
    batch: int  # images per step: fewer than requested, where memory was short
    is_over: bool = False
    stopped: str = ""  # why it ended before its epochs were over, if it did

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises DiskFault; the earlier file stays then."""
        facts = {
            "facts": self.facts,
            "history": self.history,
            "batch": self.batch,
            "is_over": self.is_over,
            "stopped": self.stopped,
        }
        arrays: dict[str, Any] = {FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)}
        for name in ("weights", "best", "optimizer"):
            for number, value in enumerate(getattr(self, name)):
                arrays[f"{name}{number}"] = value
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path, facts: dict[str, Any]) -> TrainingState:
        """Read it. Raises UsageError if there is none, or one of another training, NotAModel if it is damaged."""
        if not path.exists():
            raise UsageError(f"There is nothing to go on with at {path}. Leave `resume` out")
        try:
            arrays = read_arrays(path)
            stored = json.loads(arrays.pop(FACTS).tobytes())
            state = cls(
                facts=stored["facts"],
                weights=_numbered(arrays, "weights"),
                best=_numbered(arrays, "best"),
                optimizer=_numbered(arrays, "optimizer"),
                history=tuple(stored["history"]),
                batch=stored["batch"],
                is_over=stored["is_over"],
                stopped=stored.get("stopped", ""),  # earlier versions did not keep it
            )
        except Exception as error:  # a damaged file can raise anything
            raise_if_of_the_system(path, error)
            raise NotAModel(f"{path} cannot be read ({error}). Leave `resume` out to start over") from error
        _require_same(state.facts, facts, path)
        return state

    @classmethod
    def find(cls, path: Path, facts: dict[str, Any], resume: bool | None) -> TrainingState | None:
        """Return the state to continue from, or None to begin.

        resume: True demands a state, False ignores it; None takes it if it is whole and belongs to this training.
        Raises what `load` raises if a state is demanded.
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
    """Return whether a file is the state of a training, even a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{FACTS}.npy" in archive.namelist()
    except zipfile.BadZipFile:
        return path.read_bytes().startswith(b"PK")


STATE = Kind("state of a fine-tuning", is_state)


def state_file(model: Path, control: str = "") -> Path:
    """Return the state file of a model file's training, or of one of its controls."""
    return model.with_suffix(f".{control}{SUFFIX}" if control else SUFFIX)


def _numbered(arrays: dict[str, Any], name: str) -> tuple[Floats, ...]:
    count = sum(key.startswith(name) for key in arrays)
    return tuple(arrays[f"{name}{number}"] for number in range(count))


def _require_same(stored: dict[str, Any], requested: dict[str, Any], path: Path) -> None:
    requested = json.loads(json.dumps(requested))  # as they would be read again: tuples are lists
    for name in (*requested, *stored):
        before, now = stored.get(name), requested.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            _require_same(before, now, path)
        elif before != now:
            raise UsageError(
                f"{path} is the state of another training: its {name} is {_short(before)}, not {_short(now)}. "
                "Resume with the same options, or leave `resume` out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
