"""A user's own model file -> a Keras 3 file cut at a layer, and what shows that both are the same.

Every weight array of the import is looked up in the file, and where the original can be run (by Keras 3, by tf_keras,
which is Keras 2, or as a SavedModel's serving signature) both are fed with the same random images.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones import own, saved
from featcache.backbones.graph import output_of, resolved
from featcache.backbones.lineage import MEMBER as LINEAGES
from featcache.backbones.lineage import Lineages, lineage_of
from featcache.errors import NotAModel, ParityFailed, UsageError
from featcache.files import disk_faults, file_digest, temporary_folder, write_whole
from featcache.outputs import Kind, check_output

IMAGES = 8
TOLERANCE = 1e-3  # of the largest output
SIZE = 128  # pixels of the images where the model takes any
MARK = "featcache_import.json"  # in what was imported: from where


@dataclass(frozen=True)
class Imported:
    """What an import wrote, and what was compared."""

    model: str  # the file that was written; a SavedModel's own folder
    layer: str
    weights: int  # arrays, all equal to the file's
    difference: float | None  # largest absolute one of outputs; None where the original cannot be run here
    against: str  # what ran the original, or how to run it


def import_model(
    file: str | Path, tap: str = "top", out: str | Path | None = None, *, trust: bool = False, force: bool = False
) -> Imported:
    """Write the Keras 3 model of a file up to a layer, and return what shows that it is the same.

    file: .keras, .h5 or .hdf5 of Keras 2 or 3; a SavedModel folder stays where it is and is only checked. tap: a name,
    a place (-2), the end of a name, or "top": what enters the classifier. out: STEM.keras in the current folder if
    None. trust: run the code that the file carries. force: replace what lies at `out` even if it is no earlier import.
    Raises NotAModel, UsageError, UnknownBlock; ParityFailed if the import computes something else, and then nothing is
    written.
    """
    found = own.parse(str(file))
    if found is None or found[0].origin != "file":
        raise UsageError(f"backbones import takes a .keras, .h5 or .hdf5 file or a SavedModel folder; got {file}")
    path = Path(found[0].weights)
    if saved.is_saved(path):
        return _checked_folder(path, own.load(found[0], None, trust), tap, out)
    target = Path(f"{path.stem}.keras") if out is None else Path(out)
    if target.suffix != ".keras":
        raise UsageError(f"-o takes a .keras file; got {target}")
    check_output(target, IMPORTED, inputs=[path], force=force)
    model = own.load(found[0], None, trust)
    layer, cut = _cut(model, tap, path)
    lineage = lineage_of(found[0], layer)
    members = {MARK: json.dumps({"file": path.name, "sha256": file_digest(path), "layer": layer}).encode()}
    if lineage is not None:
        members[LINEAGES] = Lineages(lineage, lineage).to_bytes()
    data, again = _written(cut, members, trust)
    num_weights = _equal_weights(again, path)
    against, original = _original(path, tap, layer, trust)
    difference = None if original is None else _difference(again, original, path, against)
    check_output(target, IMPORTED, inputs=[path], force=force)
    write_whole(target, data)
    return Imported(str(target), layer, num_weights, difference, against)


def _checked_folder(path: Path, model: Any, tap: str, out: str | Path | None) -> Imported:
    """Return what shows that a SavedModel runs as a backbone. Raises UsageError for what it cannot be."""
    if tap != "top":
        raise UsageError(f"{path} is a SavedModel, of which only the output is known: --tap top; got {tap}")
    if out is not None:
        raise UsageError(f"{path} is a SavedModel, which stays where it is: use -b {path}, without -o")
    difference = _difference(model, lambda images: saved.signature(model, images), path, "its serving signature")
    return Imported(str(path), "top", len(model.weights), difference, "its serving signature")


def is_import(path: Path) -> bool:
    """Return whether `import_model` wrote a file."""
    with zipfile.ZipFile(path) as archive:
        return MARK in archive.namelist()


IMPORTED = Kind("import of featcache", is_import)


def _cut(model: Any, tap: str, path: Path) -> tuple[str, Any]:
    """Return the layer's name and the model up to it. Raises UnknownBlock, UsageError."""
    import keras

    layer = resolved(model, tap, str(path))
    if layer == "top":
        own.check_top(model, str(path))
        cut = own.headless(model)
        return own.last_of(cut), cut
    return layer, keras.Model(model.inputs[0], output_of(model, layer, str(path)), name=model.name)


def _written(cut: Any, members: dict[str, bytes], trust: bool) -> tuple[bytes, Any]:
    """Return the bytes of the model's file with these members, and the model that Keras reads from them."""
    import keras

    with temporary_folder() as folder:
        file = folder / "model.keras"
        with disk_faults(file):
            cut.save(file)
            with zipfile.ZipFile(file, "a") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        return file.read_bytes(), keras.saving.load_model(file, compile=False, safe_mode=not trust)


def _equal_weights(model: Any, path: Path) -> int:
    """Return how many weight arrays the model has, each of which is in the file. Raises ParityFailed."""
    from featcache.backbones import legacy

    ours = Counter(legacy.digest(values) for values in model.get_weights())
    if missing := (ours - legacy.digests_in(path)).total():
        raise ParityFailed(f"{missing} of {ours.total()} weight arrays of the import are not those of {path}")
    return ours.total()


def _original(path: Path, tap: str, layer: str, trust: bool) -> tuple[str, Callable[[Any], Any] | None]:
    """Return what runs the original up to a tap's layer, and how; or how that could be had, and None."""
    from featcache.backbones import legacy

    content = legacy.read(path)
    if content is not None and find_spec("tf_keras"):
        return "Keras 2, tf_keras", _in_keras_2(path, layer, trust)
    try:
        import keras

        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
        _, whole = _cut(model, tap, path)
    except Exception:  # what Keras 3 cannot read
        return "Keras 3 cannot run it. Install Keras 2 beside it and import again: pip install tf_keras", None
    return "the file as Keras 3 reads it", lambda images: keras.ops.convert_to_numpy(whole(images, training=False))


def _in_keras_2(path: Path, layer: str, trust: bool) -> Callable[[Any], Any]:
    """Return what runs a file of Keras 2 up to a layer, which may be spelt with slashes there."""
    from featcache.backbones.keras2 import renamed

    tf_keras = import_module("tf_keras")
    try:
        model = tf_keras.models.load_model(path, compile=False, safe_mode=not trust)
        [found] = [one for one in model.layers if renamed(one.name) == layer]
        output = found.get_output_at(len(found.inbound_nodes) - 1)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(f"tf_keras cannot run {path} up to '{layer}': {reason}") from error
    cut = tf_keras.Model(model.inputs, output)
    return lambda images: cut(images, training=False).numpy()


def _difference(model: Any, original: Callable[[Any], Any], path: Path, against: str) -> float:
    """Return the largest absolute difference of outputs on random images. Raises ParityFailed."""
    import keras

    images = _images(model.inputs[0])
    ours, theirs = keras.ops.convert_to_numpy(model(images, training=False)), original(images)
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    if not difference <= TOLERANCE * largest:
        raise ParityFailed(
            f"The import of {path} gives other numbers than {against}: by up to {difference:.3g}, where the largest is "
            f"{largest:.3g}. Nothing was written"
        )
    return difference


def _images(taken: Any) -> Any:
    """Return images for an input, from a fixed seed: whole numbers 0..255 where it takes those, else -1..1."""
    size, draw = taken.shape[1] or SIZE, np.random.default_rng(0)
    shape = (IMAGES, size, size, 3)
    if "int" in taken.dtype:
        return draw.integers(0, 256, shape).astype(taken.dtype)
    return draw.uniform(-1, 1, shape).astype(taken.dtype)
