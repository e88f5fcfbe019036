"""MODEL.keras: what Keras writes, plus `featcache.json` inside the archive.

The JSON holds class names, tap, preprocessing and the parity certificate; `featcache_reference.npz` beside it what
tells strange images from known ones. Plain Keras loads the file too: it is built of Keras' own layers only.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from featcache.assembly.reference import Reference
from featcache.backend import start_keras
from featcache.errors import NotAModel, UsageError
from featcache.files import matching, temporary_folder, write_whole
from featcache.spec import did_you_mean

MEMBER = "featcache.json"
REFERENCE = "featcache_reference.npz"
WHAT = {
    "run": "run",
    "trial": "trial",
    "tap": "tap",
    "classes": "set of classes",
    "start": "head",
    "finetuned": "fine-tuning, with other options",
}


def save_model(model: Any, path: Path, facts: dict[str, Any], reference: Reference | None = None) -> None:
    """Write the model, its facts and its reference, whole or not at all."""
    with temporary_folder() as folder:
        file = folder / "model.keras"
        model.save(file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(MEMBER, json.dumps(facts, indent=2))
            if reference is not None:
                archive.writestr(REFERENCE, reference.to_bytes())
        write_whole(path, file.read_bytes())


def check_free(path: Path, facts: dict[str, Any]) -> None:
    """Raise UsageError unless a model with these facts may be written there: the name fits, and nothing else is lost.

    The same command may write the same model again; anything else stays.
    """
    if path.suffix != ".keras":
        raise UsageError(f"-o takes a file name that ends in .keras, as Keras wants it; got {path}")
    if not path.exists():
        return
    try:
        there = read_facts(path)
    except NotAModel:
        there = {}
    for name in ("run", "trial", "tap", "classes", "start", "finetuned"):
        if there.get(name) != facts.get(name):
            what = f"a model already, of another {WHAT[name]}" if there else "something else already"
            raise UsageError(f"{path} is {what}. Give another -o, or move it away")


def load_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model and its facts. Raises NotAModel. Code in the file is not run (Keras' safe mode)."""
    facts = read_facts(path)
    start_keras()
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True), facts
    except Exception as error:  # Keras raises many kinds on damaged files
        raise NotAModel(f"Keras cannot load {path}: {' '.join(str(error).split())[:200]}") from error


def is_ours(path: Path) -> bool:
    """Tell whether featcache wrote a model file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return MEMBER in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_reference(path: Path) -> Reference | None:
    """Return what tells strange images from known ones; None if the file has nothing of the kind. Raises NotAModel."""
    try:
        with zipfile.ZipFile(path) as archive:
            return Reference.from_bytes(archive.read(REFERENCE)) if REFERENCE in archive.namelist() else None
    except Exception as error:  # damaged files raise many kinds
        raise NotAModel(f"{path}: {REFERENCE} in it is damaged ({error}). Make it again: featcache handoff") from error


def read_facts(path: Path) -> dict[str, Any]:
    """Return what featcache wrote into a model file. Raises NotAModel."""
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(MEMBER))
    except FileNotFoundError as error:
        others = [one.name for one in matching(path.parent, "*.keras")]
        near = did_you_mean(path.name, others)
        raise NotAModel(f"No model at {path}{near}. Make one: featcache handoff RUN@best -o {path}") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise NotAModel(
            f"{path} is no model of featcache ({error}). Make one: featcache handoff RUN@best -o MODEL.keras"
        ) from error
    if not isinstance(facts, dict) or not {"classes", "tap"} <= facts.keys():
        raise NotAModel(f"{path}: {MEMBER} lacks the class names or the tap. Make it again: featcache handoff")
    return facts
