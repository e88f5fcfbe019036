"""Read model files that Keras 2 wrote, and put every array into its place in the rebuilt model.

There are two formats. In HDF5 (.h5, .hdf5) the configuration is an attribute, and arrays are named after layer and
variable. In the zip archive (.keras, as in Keras 3) arrays are named after class and number. Every array must be used
exactly once, otherwise the file is refused. This is the only module outside `cache` that reads HDF5, because Keras
cannot read the arrays without making the model first.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featcache.backbones import keras2
from featcache.backbones.keras2 import Code, RebuiltLayer
from featcache.errors import NotAModel
from featcache.files import raise_if_of_the_system

__all__ = ["Code", "Legacy", "digest", "digests_in", "model_of", "read"]
Arrays = dict[str, Any]
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
_STATE = re.compile(r"(.*/)?(StateVar|random_generator.*|seed_generator.*)(:\d+)?")  # random layers; not weights


@dataclass(frozen=True)
class Legacy:
    """The content of a file of Keras 2."""

    config: Mapping[str, Any]
    arrays: dict[str, Arrays]  # {layer: {name: array}}; in an archive {"": {path: array}}
    is_archive: bool


def read(path: Path) -> Legacy | None:
    """Return the content of a file that Keras 2 wrote, None for any other file. Raises NotAModel if it is damaged."""
    try:
        return _read_archive(path) if zipfile.is_zipfile(path) else _read_hdf5(path)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise_if_of_the_system(path, error)
        raise NotAModel(f"Cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def model_of(content: Legacy, trust: bool = False) -> Any:
    """Return the model in Keras 3 with the weights of the file. Raises NotAModel in one line."""
    try:
        model = keras2.model_of(content.config, trust)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotAModel(f"its configuration is not one that Keras 2 writes ({error!r})") from error
    if content.is_archive:
        _place_by_number(model, content.arrays[""])
    else:
        _place_by_name(model, content.arrays)
    return model.layer


def digests_in(path: Path) -> Counter[str]:
    """Return {digest of a weight array: how often the model file holds it}. The optimizer's arrays do not count."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            arrays = _archived_arrays(archive)
    else:
        with h5py.File(path, "r") as file:
            arrays = _arrays_below(file["model_weights"])
    return Counter(digest(values) for values in arrays.values())


def digest(values: Any) -> str:
    """Return the SHA-256 of an array with its shape."""
    values = np.ascontiguousarray(values)
    return sha256(f"{values.shape}{values.dtype}".encode() + values.tobytes()).hexdigest()


def _read_archive(path: Path) -> Legacy | None:
    with zipfile.ZipFile(path) as archive:
        if not {WEIGHTS, CONFIG, METADATA} <= set(archive.namelist()):
            return None
        metadata = json.loads(archive.read(METADATA))
        if not _is_of_keras_2(metadata.get("keras_version")):
            return None
        config = json.loads(archive.read(CONFIG))
        return Legacy(config, {"": _archived_arrays(archive)}, is_archive=True)


def _archived_arrays(archive: zipfile.ZipFile) -> Arrays:
    """Return {path: array} of the model's weights in an archive."""
    with h5py.File(io.BytesIO(archive.read(WEIGHTS)), "r") as file:
        arrays = _arrays_below(file)
    return {path: values for path, values in arrays.items() if not path.startswith("optimizer")}


def _read_hdf5(path: Path) -> Legacy | None:
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs or not _is_of_keras_2(file.attrs.get("keras_version", "2")):
            return None
        config = json.loads(_text(file.attrs["model_config"]))
        weights = file["model_weights"]
        arrays: dict[str, Arrays] = {}
        # The order of the names counts: `_match_by_name` falls back on it.
        for layer_name in _names(weights, "layer_names"):
            layer = weights[layer_name]
            arrays[layer_name] = {name: layer[name][()] for name in _names(layer, "weight_names")}
        return Legacy(config, arrays, is_archive=False)


def _is_of_keras_2(version: Any) -> bool:
    return _text(version or "").startswith("2")


def _names(group: Any, key: str) -> list[str]:
    """Return the list of names in an attribute. Keras splits a long list: layer_names0, layer_names1 and so on."""
    if key in group.attrs:
        return [_text(name) for name in group.attrs[key]]
    names: list[str] = []
    for number in count():
        piece = f"{key}{number}"
        if piece not in group.attrs:
            return names
        names += [_text(name) for name in group.attrs[piece]]
    raise AssertionError


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _arrays_below(group: Any) -> Arrays:
    """Return {path: array} of every dataset below a group."""
    paths: list[str] = []

    def note(path: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            paths.append(path)

    group.visititems(note)
    return {path: group[path][()] for path in paths}


def _place_by_name(model: RebuiltLayer, arrays: dict[str, Arrays]) -> None:
    """Fill every layer with the arrays under its name. Raises NotAModel unless every array is used once."""
    parts = {part.name: part for part in model.parts}
    filled: set[int] = set()
    for name, stored in arrays.items():
        weights = {key: values for key, values in stored.items() if not _STATE.fullmatch(key)}
        if not weights:
            continue
        if name not in parts:
            raise NotAModel(f"it has arrays of a layer '{name}', which is not in its model")
        for leaf, leaf_weights in _by_leaf(parts[name], weights):
            filled |= _fill(leaf, _match_by_name(leaf, leaf_weights))
    _check_filled(model, filled)


def _by_leaf(part: RebuiltLayer, arrays: Arrays) -> list[tuple[RebuiltLayer, Arrays]]:
    """Return each layer of a nested model with its arrays, whose paths contain its name. Raises NotAModel."""
    if not part.parts:
        return [(part, arrays)]
    pairs: list[tuple[RebuiltLayer, Arrays]] = [(leaf, {}) for leaf in part.leaves()]
    for path, values in arrays.items():
        candidates = [(leaf, own) for leaf, own in pairs if f"/{leaf.name}/" in f"/{path}"]
        # Of the layers "bn" and "stem/bn", an array below "stem/bn" belongs to the longer name.
        longest = max((len(leaf.name) for leaf, _ in candidates), default=0)
        owners = [own for leaf, own in candidates if len(leaf.name) == longest]
        if len(owners) != 1:
            problem = "fits several layers" if owners else "fits no layer"
            raise NotAModel(f"the name of its array '{path}' under '{part.name}' {problem} of the model")
        owners[0][path] = values
    return pairs


def _match_by_name(leaf: RebuiltLayer, arrays: Arrays) -> list[tuple[str, Any, Any]]:
    """Return (name, array, variable) for every array of one layer. Raises NotAModel if their numbers differ.

    Arrays and variables are matched by the last parts of their paths, as few as make them unique. What has no match
    keeps the order of the file: Keras 3 calls some variables otherwise than Keras 2 did.
    """
    variables = leaf.layer.weights
    if len(variables) != len(arrays):
        raise NotAModel(
            f"layer '{leaf.name}' ({leaf.kind}) has {len(variables)} arrays in Keras 3, {len(arrays)} in the file"
        )
    for depth in (1, 2, 3):
        variable_ends = _path_ends([variable.path for variable in variables], depth)
        array_ends = _path_ends(arrays, depth)
        if len(set(variable_ends)) == len(set(array_ends)) == len(variables):
            break
    else:
        return list(zip(arrays.keys(), arrays.values(), variables, strict=True))

    by_end = dict(zip(variable_ends, variables, strict=True))
    unmatched = iter([variable for end, variable in by_end.items() if end not in array_ends])
    matches = []
    for end, (name, values) in zip(array_ends, arrays.items(), strict=True):
        variable = by_end[end] if end in by_end else next(unmatched)
        matches.append((name, values, variable))
    return matches


def _path_ends(paths: Iterable[str], depth: int) -> list[str]:
    """Return the last `depth` parts of every path, without Keras 2's ":0"."""
    ends = []
    for path in paths:
        parts = path.partition(":")[0].split("/")
        ends.append("/".join(parts[-depth:]))
    return ends


def _place_by_number(model: RebuiltLayer, arrays: Arrays) -> None:
    """Fill every layer with the arrays of its class and number. Raises NotAModel unless every array is used once."""
    unused: Arrays = {}
    for path, values in arrays.items():
        is_state = any(map(_STATE.fullmatch, path.split("/")))
        if not is_state:
            unused[path] = values

    filled: set[int] = set()
    # Each layer takes its arrays out of `unused`; an array that is left belongs to no layer.
    for folder, leaf in _numbered(model, ""):
        paths = [path for path in unused if path.startswith(folder)]
        places = []
        for path in paths:
            variable = _variable(leaf, path.removeprefix(folder))
            places.append((path, unused.pop(path), variable))
        filled |= _fill(leaf, places)
    if unused:
        raise NotAModel(f"it has an array '{min(unused)}', which belongs to no layer of its model")
    _check_filled(model, filled)


def _numbered(part: RebuiltLayer, prefix: str) -> Iterator[tuple[str, RebuiltLayer]]:
    """Yield (folder of its arrays, layer) of all layers with arrays: `layers/conv2d_1/` is the second Conv2D."""
    counts = Counter[str]()
    for child in part.parts:
        kind = _snake(child.kind)
        name = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        folder = f"{prefix}layers/{name}/"
        if child.kind in keras2.NESTED:
            yield from _numbered(child, folder)
        elif child.layer is not None:
            yield folder, child


def _snake(name: str) -> str:
    """Return the name of a class as Keras writes it in paths.

    >>> _snake("DepthwiseConv2D"), _snake("BatchNormalization"), _snake("TFOpLambda")
    ('depthwise_conv2d', 'batch_normalization', 'tf_op_lambda')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _variable(leaf: RebuiltLayer, path: str) -> Any:
    """Return the variable at `vars/0`, or at `cell/vars/0` of a layer inside the layer. Raises NotAModel."""
    *attributes, _, number = path.split("/")
    owner = leaf.layer
    for name in attributes:
        owner = getattr(owner, name, None) or getattr(owner, f"_{name}", None)
    variables = [] if owner is None else [*owner._trainable_variables, *owner._non_trainable_variables]
    if not number.isdecimal() or int(number) >= len(variables):
        raise NotAModel(f"its array '{path}' of layer '{leaf.name}' ({leaf.kind}) has no place in Keras 3")
    return variables[int(number)]


def _fill(leaf: RebuiltLayer, places: Sequence[tuple[str, Any, Any]]) -> set[int]:
    """Put (name, array, variable) into the variables of a layer, and return the ids of the filled variables.

    Raises NotAModel if a shape differs, or two arrays have the same variable.
    """
    for name, values, variable in places:
        if tuple(values.shape) != tuple(variable.shape):
            raise NotAModel(
                f"its array '{name}' of layer '{leaf.name}' ({leaf.kind}) is {values.shape}, the layer takes "
                f"{tuple(variable.shape)}"
            )
        variable.assign(values)
    filled = {id(variable) for _, _, variable in places}
    if len(filled) < len(places):
        raise NotAModel(f"layer '{leaf.name}' ({leaf.kind}) has two arrays for one variable")
    if filled and hasattr(leaf.layer, "finalize_state"):
        leaf.layer.finalize_state()  # Normalization computes from values that it derives from its arrays
    return filled


def _check_filled(model: RebuiltLayer, filled: set[int]) -> None:
    """Raise NotAModel if a variable was not filled, and so has random values."""
    for leaf in model.leaves():
        if leaf.layer is None:
            continue
        for variable in leaf.layer.weights:
            if id(variable) not in filled:
                raise NotAModel(f"it has no array for '{variable.name}' of layer '{leaf.name}' ({leaf.kind})")
