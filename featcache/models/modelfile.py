"""MODEL.keras: what Keras writes, plus `featcache.json` inside the archive.

The JSON holds class names, taps, preprocessing and the parity certificate. Beside it, `featcache_reference.npz` tells
strange images from known ones, and `featcache_lineage.npz` lists which images trained the model. Plain Keras loads the
file too, because the model consists of Keras' own layers; models with Swin or MobileNetV5 need keras-hub for it.
"""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from featcache.backbones import hub
from featcache.backbones.lineage import MEMBER as LINEAGES
from featcache.backbones.lineage import Lineages
from featcache.backend import innermost_reason, start_keras, unknown_code
from featcache.errors import NotAModel, UsageError
from featcache.files import disk_faults, matching, raise_if_of_the_system, temporary_folder, write_whole
from featcache.models.reference import Reference
from featcache.outputs import Kind, check_output
from featcache.spec import did_you_mean

log = logging.getLogger(__name__)

MEMBER = "featcache.json"
REFERENCE = "featcache_reference.npz"
# Options of fine-tuning that earlier versions did not store, at the values that they had there
LATER_OPTIONS = {"augment_val": False}
OF_START = ("run", "trial", "start")  # the facts that identify the head from which a fine-tuning began


def save_model(
    model: Any, path: Path, facts: dict[str, Any], lineages: Lineages, reference: Reference | None = None
) -> None:
    """Write the model, its facts, its lineages and its reference, whole or not at all."""
    with temporary_folder() as folder:
        file = folder / "model.keras"
        with disk_faults(path):
            model.save(file)
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr(MEMBER, json.dumps(facts, indent=2))
                archive.writestr(LINEAGES, lineages.to_bytes())
                if reference is not None:
                    archive.writestr(REFERENCE, reference.to_bytes())
        write_whole(path, file.read_bytes())


def kind_of(training: Mapping[str, Any] | None, facts: Callable[[], Mapping[str, Any]]) -> Kind:
    """Return the kind of a model as an output.

    A fine-tuning takes hours. So a fine-tuning with other options or from another head is another kind: neither it nor
    a handoff replaces the file. training: the options of a fine-tuning; None for a model that was handed off. facts:
    gives what is stored in the model; called only where a fine-tuning is to be replaced, since it may teach a head.
    """

    def is_ours(path: Path) -> bool:
        stored = read_facts(path)
        if training is None or stored.get("finetuned") is None:
            return training is stored.get("finetuned")
        if not _is_same({**LATER_OPTIONS, **stored["finetuned"]}, {**LATER_OPTIONS, **training}):
            return False
        known = facts()
        return _is_same(stored, {name: known[name] for name in OF_START if name in known})

    if training is None:
        return Kind("model that featcache handed off", is_ours)
    return Kind("model that was fine-tuned with these options from this head", is_ours)


def _is_same(stored: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Return whether the stored facts agree. An option that an earlier featcache did not have was at its default."""
    return all(stored.get(name, value) == value for name, value in facts.items())


def check_model_path(path: Path, kind: Kind, *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Raise UsageError or DiskFault unless a model may be written there. kind: see `kind_of`."""
    if path.suffix != ".keras":
        raise UsageError(f"`out` takes a file name that ends in .keras, as Keras wants it; got {path}")
    check_output(path, kind, inputs=inputs, force=force)


def load_model(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Return the Keras model in a MODEL.keras, and its facts.

    The model takes (N, height, width, 3) uint8 images of any size and gives (N, K) probabilities. facts["classes"] are
    the names of its K classes, facts["taps"] its feature layers with their preprocessing, facts["run"] and
    facts["trial"] what it came from, facts["certificate"] the proof of parity. Code in the file is not run (Keras' safe
    mode). Raises NotAModel.
    """
    path = Path(path)
    facts = read_facts(path)
    hub.check_installed(path)
    start_keras()
    import keras

    log.info("Loading %s", path)
    try:
        # Keras warns of layers of keras-hub that build themselves.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".build\(\). was called on layer")
            return keras.saving.load_model(path, compile=False, safe_mode=True), facts
    except Exception as error:  # Keras raises many kinds on damaged files
        raise_if_of_the_system(path, error)
        if name := unknown_code(error):
            raise NotAModel(
                f"{path} has code of yours in it, {name}, which Keras does not find. In Python, import the module that "
                "defines it before the model is loaded"
            ) from error
        raise NotAModel(f"Keras cannot load {path}: {innermost_reason(error)}") from error


def is_ours(path: Path) -> bool:
    """Return whether featcache wrote a model file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return MEMBER in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise_if_of_the_system(path, error)
        return False


MODEL = Kind("model of featcache", is_ours)


def read_reference(path: Path) -> Reference | None:
    """Return the reference that tells strange images from known ones; None if the file has none. Raises NotAModel."""
    try:
        with zipfile.ZipFile(path) as archive:
            if REFERENCE not in archive.namelist():
                return None
            return Reference.from_bytes(archive.read(REFERENCE))
    except Exception as error:  # damaged files raise many kinds
        raise_if_of_the_system(path, error)
        raise NotAModel(f"{path}: {REFERENCE} in it is damaged ({error}). Hand off again") from error


def read_facts(path: Path) -> dict[str, Any]:
    """Return what featcache wrote into a model file. Raises NotAModel."""
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(MEMBER))
    except FileNotFoundError as error:
        near = did_you_mean(path.name, [file.name for file in matching(path.parent, "*.keras")])
        make = f"featcache handoff RUN@best -o {quote(str(path))}"
        raise NotAModel(f"No model at {path}{near}. Make one: {make}") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise_if_of_the_system(path, error)
        raise NotAModel(
            f"{path} is no model of featcache ({error}). Make one: featcache handoff RUN@best -o MODEL.keras"
        ) from error
    if not isinstance(facts, dict) or not {"classes", "tap"} <= facts.keys():
        raise NotAModel(f"{path}: {MEMBER} lacks the class names or the tap. Hand off again")
    return facts
