"""Model files that Keras 2 wrote: what is in them, and every array in its place.

Two formats: HDF5 (.h5, .hdf5; the configuration is an attribute, arrays go by the names of layer and variable) and
the zip archive that is called .keras as that of Keras 3 is (arrays go by class and number). An array is used exactly
once or the file is refused. This is the one module outside `cache` that knows HDF5: Keras has no reader that gives
the arrays without making the model first.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featcache.backbones import keras2
from featcache.backbones.keras2 import Code, Part
from featcache.errors import NotAModel
from featcache.files import raise_if_of_the_system

__all__ = ["Code", "Legacy", "digest", "digests_in", "model_of", "read"]
Arrays = dict[str, Any]
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
_STATE = re.compile(r"(.*/)?(StateVar|random_generator.*|seed_generator.*)(:\d+)?")  # of random layers: no weights


@dataclass(frozen=True)
class Legacy:
    """What a file of Keras 2 holds. arrays: {layer: {name: array}}; in an archive all under "", by their paths."""

    config: Mapping[str, Any]
    arrays: dict[str, Arrays]
    is_archive: bool


def read(path: Path) -> Legacy | None:
    """Return the content of a file that Keras 2 wrote; None of any other. Raises NotAModel if it is damaged."""
    try:
        return _archive(path) if zipfile.is_zipfile(path) else _hdf5(path)
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise_if_of_the_system(path, error)
        raise NotAModel(f"Cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def model_of(content: Legacy, trust: bool = False) -> Any:
    """Return the model in Keras 3 with the weights of the file, each used once. Raises NotAModel in one line."""
    try:
        made = keras2.model_of(content.config, trust)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotAModel(f"its configuration is not one that Keras 2 writes ({error!r})") from error
    if content.is_archive:
        _place_by_number(made, content.arrays[""])
    else:
        _place_by_name(made, content.arrays)
    return made.layer


def digests_in(path: Path) -> Counter[str]:
    """Return the digest of every array of a model file, and how often it is there; those of optimizers apart."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read(WEIGHTS)), "r") as file:
            found = [value for name, value in _walk(file) if not name.startswith("optimizer")]
    else:
        with h5py.File(path, "r") as file:
            found = [value for _, value in _walk(file["model_weights"])]
    return Counter(digest(one) for one in found)


def digest(values: Any) -> str:
    """Return the SHA-256 of an array with its shape."""
    values = np.ascontiguousarray(values)
    return sha256(f"{values.shape}{values.dtype}".encode() + values.tobytes()).hexdigest()


def _archive(path: Path) -> Legacy | None:
    with zipfile.ZipFile(path) as archive:
        if not {WEIGHTS, CONFIG, METADATA} <= set(archive.namelist()):
            return None
        if not _is_of_keras_2(json.loads(archive.read(METADATA)).get("keras_version")):
            return None
        with h5py.File(io.BytesIO(archive.read(WEIGHTS)), "r") as file:
            found = {name: value for name, value in _walk(file) if not name.startswith("optimizer")}
        return Legacy(json.loads(archive.read(CONFIG)), {"": found}, True)


def _hdf5(path: Path) -> Legacy | None:
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs or not _is_of_keras_2(file.attrs.get("keras_version", "2")):
            return None
        group = file["model_weights"]
        arrays = {name: _of_layer(group[name]) for name in _names(group, "layer_names")}
        return Legacy(json.loads(_text(file.attrs["model_config"])), arrays, False)


def _of_layer(group: Any) -> Arrays:
    return {name: group[name][()] for name in _names(group, "weight_names")}


def _is_of_keras_2(version: Any) -> bool:
    return _text(version or "").startswith("2")


def _names(group: Any, key: str) -> list[str]:
    """Return a list of names, which Keras cuts into several attributes where it is long."""
    pieces = [group.attrs[key]] if key in group.attrs else []
    while f"{key}{len(pieces)}" in group.attrs and (not pieces or key not in group.attrs):
        pieces.append(group.attrs[f"{key}{len(pieces)}"])
    return [_text(name) for piece in pieces for name in piece]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _walk(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, array) of every dataset below a group."""
    names: list[str] = []
    group.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None)
    yield from ((name, group[name][()]) for name in names)


def _place_by_name(made: Part, arrays: dict[str, Arrays]) -> None:
    """Give every layer the arrays that stand under its name. Raises NotAModel unless all are used, once."""
    tops, filled = {part.name: part for part in made.parts}, set[int]()
    for name, found in arrays.items():
        weights = {key: value for key, value in found.items() if not _STATE.fullmatch(key)}
        if weights and name not in tops:
            raise NotAModel(f"it has arrays of a layer '{name}', which is not in its model")
        for leaf, own in _shared_out(tops[name], weights) if weights else ():
            filled |= _fill(leaf, _by_name(leaf, own))
    _check_filled(made, filled)


def _shared_out(part: Part, found: Arrays) -> list[tuple[Part, Arrays]]:
    """Return for each layer in a part its arrays: those whose path goes through its name."""
    leaves = list(part.leaves())
    if not part.parts:
        return [(part, found)]
    shares: list[tuple[Part, Arrays]] = [(leaf, {}) for leaf in leaves]
    for key, value in found.items():
        through = [(len(leaf.name), at) for at, leaf in enumerate(leaves) if f"/{leaf.name}/" in f"/{key}"]
        owners = [at for length, at in through if length == max(through)[0]]  # "stem/bn" rather than "bn"
        if len(owners) != 1:
            whose = "several layers" if owners else "no layer"
            raise NotAModel(f"its array '{key}' under '{part.name}' is, by its name, of {whose} of the model")
        shares[owners[0]][1][key] = value
    return shares


def _by_name(leaf: Part, found: Arrays) -> list[tuple[str, Any, Any]]:
    """Return (name, array, variable) of one layer: by as much of the paths as tells them apart, the rest in order."""
    variables = leaf.layer.weights
    if len(variables) != len(found):
        raise NotAModel(
            f"layer '{leaf.name}' ({leaf.kind}) has {len(variables)} arrays in Keras 3, {len(found)} in the file"
        )
    depths = ([_tails([one.path for one in variables], depth), _tails(list(found), depth)] for depth in (1, 2, 3))
    told = ((ours, theirs) for ours, theirs in depths if len({*ours}) == len({*theirs}) == len(ours))
    ours, theirs = next(told, ([], []))
    place = dict(zip(ours, variables, strict=False))
    rest = iter([one for tail, one in place.items() if tail not in theirs] if place else variables)
    keys = theirs or list(found)
    return [
        (key, value, place[tail] if tail in place else next(rest))
        for (key, value), tail in zip(found.items(), keys, strict=True)
    ]


def _tails(paths: Sequence[str], depth: int) -> list[str]:
    return ["/".join(path.partition(":")[0].split("/")[-depth:]) for path in paths]


def _place_by_number(made: Part, arrays: Arrays) -> None:
    """Give every layer the arrays of its class and number, as Keras 2 counts. Raises NotAModel unless all are used."""
    wanted = {key: value for key, value in arrays.items() if not any(map(_STATE.fullmatch, key.split("/")))}
    filled, used = set[int](), set[str]()
    for at, leaf in _numbered(made, ""):
        own = {key: value for key, value in wanted.items() if key.startswith(at)}
        used |= own.keys()
        filled |= _fill(leaf, [(key, value, _variable(leaf, key[len(at) :])) for key, value in own.items()])
    if left := sorted(wanted.keys() - used):
        raise NotAModel(f"it has an array '{left[0]}', which is of no layer of its model")
    _check_filled(made, filled)


def _numbered(part: Part, prefix: str) -> Iterator[tuple[str, Part]]:
    """Yield (where its arrays stand, layer) of all layers with arrays: `layers/conv2d_1/` is the second Conv2D."""
    counts = Counter[str]()
    for one in part.parts:
        kind = _snake(one.kind)
        name = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        at = f"{prefix}layers/{name}/"
        if one.kind in keras2.NESTED:
            yield from _numbered(one, at)
        elif one.layer is not None:
            yield at, one


def _snake(name: str) -> str:
    """Return the name of a class as Keras writes it in paths.

    >>> _snake("DepthwiseConv2D"), _snake("BatchNormalization"), _snake("TFOpLambda")
    ('depthwise_conv2d', 'batch_normalization', 'tf_op_lambda')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _variable(leaf: Part, path: str) -> Any:
    """Return the variable at `vars/0`, or at `cell/vars/0` of a layer within the layer. Raises NotAModel."""
    *within, _, number = path.split("/")
    owner = leaf.layer
    for name in within:
        owner = getattr(owner, name, None) or getattr(owner, f"_{name}", None)
    own = [] if owner is None else [*owner._trainable_variables, *owner._non_trainable_variables]
    if not number.isdecimal() or int(number) >= len(own):
        raise NotAModel(f"its array '{path}' of layer '{leaf.name}' ({leaf.kind}) has no place in Keras 3")
    return own[int(number)]


def _fill(leaf: Part, places: Sequence[tuple[str, Any, Any]]) -> set[int]:
    """Put arrays into variables; return which were filled. Raises NotAModel if a shape differs or one comes twice."""
    for key, value, variable in places:
        if tuple(value.shape) != tuple(variable.shape):
            raise NotAModel(
                f"its array '{key}' of layer '{leaf.name}' ({leaf.kind}) is {value.shape}, the layer takes "
                f"{tuple(variable.shape)}"
            )
        variable.assign(value)
    filled = {id(variable) for _, _, variable in places}
    if len(filled) < len(places):
        raise NotAModel(f"layer '{leaf.name}' ({leaf.kind}) has two arrays for one variable")
    if filled and hasattr(leaf.layer, "finalize_state"):
        leaf.layer.finalize_state()  # of Normalization: what it computes with is derived from its arrays
    return filled


def _check_filled(made: Part, filled: set[int]) -> None:
    """Raise NotAModel if a variable has kept its random values."""
    for leaf in made.leaves():
        for variable in leaf.layer.weights if leaf.layer is not None else ():
            if id(variable) not in filled:
                raise NotAModel(f"it has no array for '{variable.name}' of layer '{leaf.name}' ({leaf.kind})")
