"""Records that later commands add to a run: looks at its test split, and models fine-tuned from it.

Each record is a small file with a unique name, written as a whole. So none is lost to two writers at the same time, to
a kill, or to a file system without locks. A look at the test split is recorded a second time beside the cache, together
with the looks of all other runs on it: a test split that chose among runs proves as little as one that chose heads.
"""

from __future__ import annotations

import datetime
import os
import secrets
from pathlib import Path
from typing import Any

from featcache.errors import NotARun
from featcache.files import check_seal, make_folder, read_json, write_sealed

LOOKS = "records"  # folder of a run
TUNED = "tuned"  # folder of a run
RESTORE = "Restore it, or remove it if what it recorded may be forgotten"


def new_look() -> tuple[str, str]:
    """Return a unique name for the record of a look, and the time that the name holds."""
    now = datetime.datetime.now(datetime.UTC)
    return f"test-{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}.json", now.isoformat(timespec="microseconds")


def write_record(file: Path, facts: dict[str, Any]) -> None:
    """Write a record, whole or not at all. Raises DiskFault."""
    make_folder(file.parent)
    write_sealed(file, facts)


def read_record(file: Path) -> dict[str, Any]:
    """Return the facts of a record; records of earlier versions have no digest. Raises NotARun if it is damaged."""
    facts = read_json(file, NotARun)
    if not isinstance(facts, dict):
        raise NotARun(f"{file} is damaged: it is no record. {RESTORE}")
    if {"digest", "at"}.isdisjoint(facts):
        return facts  # written by an earlier version
    return check_seal(facts, file, NotARun, RESTORE)


def read_looks(folder: Path) -> list[dict[str, Any]]:
    """Return the looks that are recorded in a folder, oldest first, each with the name of its file as "record"."""
    looks = []
    for file in _files(folder):
        if file.name.startswith("test-"):
            looks.append(read_record(file) | {"record": file.name})
    return looks


def read_tuned(run: Path) -> list[str]:
    """Return the files of the models that were fine-tuned from a run, those that ended first before others."""
    tuned = [read_record(file) for file in _files(run / TUNED)]
    tuned.sort(key=lambda record: str(record.get("at")))
    return [record["file"] for record in tuned if "file" in record]  # earlier versions named the file in run.json


def predictions_of(record: Path) -> Path:
    """Return where the predictions of a fine-tuned model on validation lie, beside its record."""
    return record.with_suffix(".npz")


def _files(folder: Path) -> list[Path]:
    """Return the records of a folder, sorted by name; none without a folder. Raises NotARun if it cannot be read."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NotARun(f"Cannot read the records in {folder}: {error.strerror}. Make the folder readable") from error
    return [folder / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]
