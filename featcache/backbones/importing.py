"""Import a user's own model file: write it as a Keras 3 file cut at a layer, and prove that both are the same.

Every weight array of the import must occur in the original file. If the original can run here (in Keras 3, in tf_keras,
which is Keras 2, or as a SavedModel's serving signature), both get the same random images and must give the same
outputs.
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
TOLERANCE = 1e-3  # relative to the largest output
SIZE = 128  # pixels of the images if the model takes any size
MARK = "featcache_import.json"  # this member of an imported file tells where it came from


@dataclass(frozen=True)
class Imported:
    """What an import wrote, and how it was checked."""

    model: str  # the file that was written; the folder of a SavedModel, which stays as it is
    layer: str
    weights: int  # number of arrays, all equal to those in the file
    difference: float | None  # largest absolute difference of an output; None if the original cannot run here
    against: str  # what ran the original, or what to install to run it


def import_model(
    file: str | Path, tap: str = "top", out: str | Path | None = None, *, trust: bool = False, force: bool = False
) -> Imported:
    """Write a model file up to a layer as a Keras 3 file, and return how it was checked.

    file: .keras, .h5 or .hdf5 of Keras 2 or 3; a SavedModel folder stays where it is and is only checked. tap: the
    layer's name, its position (-2), the end of its name, or "top" for the input of the classifier. out: STEM.keras in
    the current folder if None. trust: run the code that the file carries. force: replace what lies at `out` even if it
    is no earlier import.
    Raises NotAModel, UsageError, UnknownBlock; ParityFailed if the import computes something else. Then nothing is
    written.
    """
    own_model = own.parse(str(file))
    if own_model is None or own_model[0].origin != "file":
        raise UsageError(f"backbones import takes a .keras, .h5 or .hdf5 file or a SavedModel folder; got {file}")
    spec, _ = own_model
    path = Path(spec.weights)
    if saved.is_saved(path):
        return _check_folder(path, own.load(spec, None, trust), tap, out)
    target = Path(f"{path.stem}.keras") if out is None else Path(out)
    if target.suffix != ".keras":
        raise UsageError(f"`out` takes a .keras file; got {target}")
    check_output(target, IMPORTED, inputs=[path], force=force)

    layer, cut = _cut(own.load(spec, None, trust), tap, path)
    origin = {"file": path.name, "sha256": file_digest(path), "layer": layer}
    members = {MARK: json.dumps(origin).encode()}
    lineage = lineage_of(spec, layer)
    if lineage is not None:
        members[LINEAGES] = Lineages(lineage, lineage).to_bytes()

    # Check the model as Keras reads it from the new file, not the one in memory.
    data, imported = _save_and_load(cut, members, trust)
    num_weights = _check_weights(imported, path)
    against, original = original_of(path, tap, layer, trust)
    difference = None if original is None else _check_outputs(imported, original, path, against)
    # Once more: minutes may have passed, and somebody may have put a file there.
    check_output(target, IMPORTED, inputs=[path], force=force)
    write_whole(target, data)
    return Imported(str(target), layer, num_weights, difference, against)


def _check_folder(path: Path, model: Any, tap: str, out: str | Path | None) -> Imported:
    """Check that a SavedModel runs as a backbone. Raises UsageError for a tap or output that it cannot have."""
    if tap != "top":
        raise UsageError(f"{path} is a SavedModel, of which only the output is known: `tap='top'`; got {tap}")
    if out is not None:
        raise UsageError(f"{path} is a SavedModel, which stays where it is: use `backbone='{path}'`, without `out`")
    against = "its serving signature"
    difference = _check_outputs(model, lambda images: saved.signature(model, images), path, against)
    return Imported(str(path), "top", len(model.weights), difference, against)


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


def _save_and_load(cut: Any, members: dict[str, bytes], trust: bool) -> tuple[bytes, Any]:
    """Return the content of the model's file with these members added, and the model that Keras reads from it."""
    import keras

    with temporary_folder() as folder:
        file = folder / "model.keras"
        with disk_faults(file):
            cut.save(file)
            with zipfile.ZipFile(file, "a") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        return file.read_bytes(), keras.saving.load_model(file, compile=False, safe_mode=not trust)


def _check_weights(model: Any, path: Path) -> int:
    """Return the number of weight arrays. Raises ParityFailed unless the original file has each of them."""
    from featcache.backbones import legacy

    imported = Counter(legacy.digest(values) for values in model.get_weights())
    missing = imported - legacy.digests_in(path)
    if missing:
        raise ParityFailed(f"{missing.total()} of {imported.total()} weight arrays of the import differ from {path}")
    return imported.total()


def original_of(path: Path, tap: str, layer: str, trust: bool) -> tuple[str, Callable[[Any], Any] | None]:
    """Return what can run the original, and a function that runs it up to the layer.

    If nothing here can run it, return what to install, and None.
    """
    from featcache.backbones import legacy

    content = legacy.read(path)
    # Keras 2 itself is the better judge of its files, where it is installed.
    if content is not None and find_spec("tf_keras"):
        return "Keras 2, tf_keras", _in_keras_2(path, layer, trust)
    try:
        import keras

        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
        _, cut = _cut(model, tap, path)
    except Exception:  # Keras 3 raises many kinds for files of Keras 2
        return "Keras 3 cannot run it. Install Keras 2 beside it and import again: pip install tf_keras", None
    return "the file as Keras 3 reads it", lambda images: keras.ops.convert_to_numpy(cut(images, training=False))


def _in_keras_2(path: Path, layer: str, trust: bool) -> Callable[[Any], Any]:
    """Return a function that runs a file of Keras 2 up to a layer, whose name may have slashes there."""
    from featcache.backbones.keras2 import renamed

    tf_keras = import_module("tf_keras")
    try:
        model = tf_keras.models.load_model(path, compile=False, safe_mode=not trust)
        [last_layer] = [candidate for candidate in model.layers if renamed(candidate.name) == layer]
        output = last_layer.get_output_at(len(last_layer.inbound_nodes) - 1)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(f"tf_keras cannot run {path} up to '{layer}': {reason}") from error
    cut = tf_keras.Model(model.inputs, output)
    return lambda images: cut(images, training=False).numpy()


def _check_outputs(model: Any, original: Callable[[Any], Any], path: Path, against: str) -> float:
    """Return the largest absolute difference of outputs on random images. Raises ParityFailed if it is too large."""
    import keras

    images = _images(model.inputs[0])
    outputs = keras.ops.convert_to_numpy(model(images, training=False))
    original_outputs = original(images)
    difference = float(np.abs(outputs - original_outputs).max())
    largest = float(np.abs(original_outputs).max())
    if not difference <= TOLERANCE * largest:  # so that NaN fails, too
        raise ParityFailed(
            f"The import of {path} gives other numbers than {against}: by up to {difference:.3g}, where the largest is "
            f"{largest:.3g}. Nothing was written"
        )
    return difference


def _images(model_input: Any) -> Any:
    """Return random images for an input, from a fixed seed: 0..255 if it takes whole numbers, else -1..1."""
    generator = np.random.default_rng(0)
    size = model_input.shape[1] or SIZE
    shape = (IMAGES, size, size, 3)
    if "int" in model_input.dtype:
        return generator.integers(0, 256, shape).astype(model_input.dtype)
    return generator.uniform(-1, 1, shape).astype(model_input.dtype)
