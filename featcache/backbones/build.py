"""Build a backbone: from its name to a frozen Keras model from pixels to feature maps.

The network comes from its constructor in `keras.applications`, without the classifier. Pixels 0..255 become its input
by the constructor's own `preprocess_input`, inside the graph.

ImageNet weights are loaded by the path of the file in KERAS_HOME that was checked and digested. With
weights="imagenet" Keras would take a file in /tmp/.keras if it cannot write to KERAS_HOME, and it would remove a file
with another digest.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones import efficientnet_lite, glyphnet, hub, inventory, own, saved, weights
from featcache.backbones.graph import auto_layers, output_of, outputs_of, resolved
from featcache.backbones.noise import without_noise
from featcache.backbones.registry import SIZES, Entry, get, trained_size
from featcache.backend import start_keras, start_keras_hub
from featcache.errors import FeatcacheError, NotAModel, UsageError, WeightsMismatch
from featcache.spec import BackboneSpec, Pooling, Precision, Preprocess, Tap

log = logging.getLogger(__name__)

DEVIATIONS = (0.229, 0.224, 0.225)  # standard deviations of ImageNet's pixels, RGB, 0..1


@dataclass(frozen=True)
class Backbone:
    """A built network: (N, size, size, 3) preprocessed floats -> feature maps (N, h, w, C) or features (N, D)."""

    spec: BackboneSpec
    network: Any  # keras.Model
    weights_digest: str  # SHA-256 of the weight values, in order
    architecture: str = ""  # SHA-256 of the configuration of a user's own model or of a preset
    # a user's own model, with the classifier that `own.headless` removed; a preset's, with all outputs that taps read
    full_model: Any = None
    source: str | None = None  # `weights.source` of the loaded weights; None if the user's own function made them

    @property
    def has_code(self) -> bool:
        """Return whether code of the user decides what it computes, which its configuration and weights do not tell."""
        return self.full_model is not None and own.has_code(self.full_model)

    def cut(self, layer: str) -> Any:
        """Return the network up to the named layer, or all of it for "top".

        Raises UnknownBlock with near names; UsageError for the top of a user's own model whose classifier is unknown.
        """
        import keras

        if layer == "top":
            if self.spec.is_own:
                own.check_top(self.full_model, self.spec.name)
            return self.network

        model = self.network
        if self.full_model is not None and layer not in outputs_of(self.network):
            model = self.full_model  # the layer belongs to the classifier, or only a tap reads it
        output = output_of(model, layer, self._spelt)
        return keras.Model(self.network.inputs[0], output, name=f"{self.network.name}_{layer}")

    def tapped(self, layers: Sequence[str], name: str) -> Any:
        """Return one model with the outputs of all named layers, in their order. Raises UnknownBlock."""
        import keras

        outputs = [self.cut(layer).outputs[0] for layer in layers]
        return keras.Model(self.network.inputs[0], outputs, name=name)

    def auto_layers(self) -> list[str]:
        """Return the layers that `--tap auto` reads: the end of each block, and "top" for the last one."""
        return auto_layers(self.network)

    def layers(self, texts: Iterable[str]) -> list[str]:
        """Return the names of the layers that a user means, each once.

        In a user's own model, position or end of a name will do. Raises UnknownBlock or UsageError if a text means no
        layer, or several.
        """
        if self.spec.origin == "registry":
            return list(texts)
        names = [resolved(self.full_model, text, self._spelt) for text in texts]
        return list(dict.fromkeys(names))

    @property
    def _spelt(self) -> str:
        """The backbone as a command takes it."""
        if self.spec.origin == "hub":
            return hub.spelt(self.spec)
        return self.spec.name if self.spec.origin == "registry" else self.spec.weights


def build(
    spec: BackboneSpec, size: int, pooling: Pooling, precision: Precision = "float32", trust: bool = False
) -> Backbone:
    """Return the backbone for images of size x size. Its constructor pools "top".

    (ConvNeXt normalises after pooling, so pooling its last feature map here would give other features.) At a lower
    precision the layers compute from the same float32 weights, as in Keras' mixed precision. trust: run the code that
    a user's own file carries.

    Raises UsageError for a size or option that the constructor refuses, WeightsMissing (which says where to put which
    file), WeightsMismatch.
    """
    if spec.origin == "hub":
        return _of_preset(spec, size, precision)
    if spec.is_own:
        return _own(spec, size, precision, trust)
    entry = get(spec.name)
    check_size(entry, size)
    start_keras()
    log.info("Building %s and loading its weights", spec.name)
    with _talking_to_stderr():
        file = _imagenet_file(entry, spec, size) if spec.weights == "imagenet" else weights.file_of(spec, size)
        # The source is taken after the download, which makes it, and once more after the file was read.
        with _unchanged_source(spec, size) as source, reproducibly(spec.seed), computing_in(precision):
            network = _construct(entry, spec, size, pooling, file)
    network.trainable = False
    _finish_in_float32(network)
    return Backbone(spec, network, _digest(network), source=source)


def _own(spec: BackboneSpec, size: int, precision: Precision, trust: bool) -> Backbone:
    is_saved = spec.origin == "file" and saved.is_saved(Path(spec.weights))
    if is_saved and precision != "float32":
        raise UsageError(f"'{spec.name}' is a SavedModel, which computes as it was saved; got `precision={precision}`")
    start_keras()
    log.info("Loading %s", spec.name)
    with computing_in(precision), _unchanged_source(spec, size) as source:
        model = own.load(spec, size, trust)
    if model.inputs[0].shape[1] not in (None, size):
        raise UsageError(f"'{spec.name}' takes images of {model.inputs[0].shape[1]} pixels; got size {size}")
    own.check_not_quantized(model, spec.weights)
    try:
        model = own.at_policy(model, _policy(precision))
    except Exception as error:  # the user's own layers may raise anything
        reason = " ".join(str(error).split())[:200]
        if precision == "float32":  # the default: the user did not ask for it
            raise NotAModel(f"{spec.weights} cannot be built again to compute in {precision}: {reason}") from error
        raise UsageError(f"'{spec.name}' cannot compute in {precision}: {reason}") from error

    # The digests describe the model as it is in the file, so take them before it changes.
    if is_saved:
        weights_digest, architecture = saved.digests(Path(spec.weights))
    else:
        weights_digest = _digest(model)
        architecture = own.architecture(model)
    model = without_noise(model)
    model.trainable = False
    network = own.headless(model)
    _finish_in_float32(network)
    return Backbone(spec, network, weights_digest, architecture, model, source)


def _of_preset(spec: BackboneSpec, size: int, precision: Precision) -> Backbone:
    start_keras_hub()
    import keras

    from featcache.backbones import hub_networks

    preset = hub.read(spec)
    hub.check_size(preset, size)
    log.info("Building %s and loading its weights", spec.name)
    # keras-hub warns about masks that it loses, and prints.
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        with _unchanged_source(spec, size) as source, reproducibly(0), computing_in(precision):
            model = hub_networks.network_of(preset, size)
    model.trainable = False
    network = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    network.trainable = False
    return Backbone(spec, network, _digest(model), own.architecture(model), model, source)


def built_for(tap: Tap, precision: Precision) -> Backbone:
    """Return the backbone of a tap. Raises WeightsMismatch if its weights are not those that the tap was made with."""
    backbone = build(tap.backbone, tap.preprocess.size, tap.pooling, precision)
    if backbone.weights_digest != tap.weights_digest:
        raise WeightsMismatch(
            f"The weights of '{tap.backbone.name}' ({tap.backbone.weights}) are not those that tap '{tap.name}' "
            "was made with. Give those back, or extract again with these"
        )
    return backbone


def check_size(entry: Entry, size: int) -> None:
    """Raise UsageError if the backbone cannot take images of this size."""
    if size < entry.min_size:
        raise UsageError(f"'{entry.name}' takes images of at least {entry.min_size} pixels; got `size={size}`")


def feature_model(backbone: Backbone, taps: list[Tap]) -> Any:
    """Return the Keras model (N, size, size, 3) uint8 -> one (N, D) float32 array per tap."""
    import keras

    preprocess = taps[0].preprocess
    pixels = keras.Input((preprocess.size, preprocess.size, 3), dtype="uint8", name="pixels")
    # One model for all taps, so that each image passes through the backbone once.
    inner = backbone.tapped([tap.layer for tap in taps], "backbone")
    inputs = entering(inner, keras.ops.cast(pixels, "float32"), preprocess)
    maps = inner(inputs)
    features = [pooled(tap_maps, tap.pooling) for tap_maps, tap in zip(maps, taps, strict=True)]
    return keras.Model(pixels, features)


def copied(model: Any) -> Any:
    """Return a copy of the model whose variables live on the current device."""
    import keras

    # Cloning makes new variables where Keras computes now; their values come from the old ones.
    clone = keras.models.clone_model(model, recursive=True)
    clone.set_weights(model.get_weights())
    return clone


def entering(network: Any, pixels: Any, preprocess: Preprocess) -> Any:
    """Return the network's input for float pixels 0..255: rounded if it takes whole numbers."""
    import keras

    ready = preprocessed(pixels, preprocess)
    dtype = network.inputs[0].dtype
    if "int" in dtype:
        return keras.ops.cast(keras.ops.round(ready), dtype)
    return ready


def preprocessed(pixels: Any, preprocess: Preprocess) -> Any:
    """Return the backbone's input for float pixels 0..255, as operations of the graph."""
    import keras

    if preprocess.mode == "inside":
        return pixels
    if preprocess.mode == "unit":
        return keras.layers.Rescaling(1 / 255, name="preprocess")(pixels)
    return keras.applications.imagenet_utils.preprocess_input(pixels, mode=preprocess.mode)


def pooled(maps: Any, pooling: Pooling) -> Any:
    """Return the (N, D) features of (N, h, w, C) feature maps, or the maps themselves for "none"; always float32."""
    import keras

    if maps.dtype != "float32":
        maps = keras.ops.cast(maps, "float32")

    if len(maps.shape) == 2 or pooling == "none":
        return maps
    layers = keras.layers
    is_tokens = len(maps.shape) == 3  # of a transformer
    if pooling == "flatten":
        layer_class = layers.Flatten
    elif pooling == "avg":
        layer_class = layers.GlobalAveragePooling1D if is_tokens else layers.GlobalAveragePooling2D
    else:
        layer_class = layers.GlobalMaxPooling1D if is_tokens else layers.GlobalMaxPooling2D
    return layer_class()(maps)  # without a name, which two taps with the same pooling would share


def constructor_of(entry: Entry) -> Callable[..., Any]:
    """Return the function that makes a network, with arguments as in `keras.applications`."""
    import keras

    if entry.package:
        return partial(efficientnet_lite.efficientnet_lite, entry.name)
    constructor: Callable[..., Any] = getattr(keras.applications, entry.constructor)
    return constructor


def pretrained(entry: Entry, file: Path, **arguments: Any) -> Any:
    """Return a network with the ImageNet weights in this file; one of `keras.applications` exactly as Keras builds it.

    arguments: go to its constructor, with input_shape=(size, size, 3).
    """
    constructor = constructor_of(entry)
    if entry.module == "efficientnet":
        network = _scaled_again(constructor(weights=None, **arguments))
        network.load_weights(str(file))
        return network
    if entry.module in SIZES:
        # MobileNet and MobileNetV2 are named after the size of the images that trained their weights.
        size = trained_size(entry, arguments["input_shape"][0])
        alpha = arguments.get("alpha", 1.0)
        arguments["name"] = f"{entry.constructor.lower()}_{alpha:.2f}_{size}"
    return constructor(weights=str(file), **arguments)


def _scaled_again(network: Any) -> Any:
    """Return an EfficientNet with a second scaling behind its normalization.

    Its ImageNet weights were trained with that scaling. Keras adds it for weights="imagenet", but not for a file.
    """
    import keras

    # As Keras writes it: with the root of a deviation, not of a variance.
    factors = [1 / math.sqrt(deviation) for deviation in DEVIATIONS]

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        outputs = layer(*inputs, **options)
        if not isinstance(layer, keras.layers.Normalization):
            return outputs
        return keras.layers.Rescaling(factors, name="rescaling_1")(outputs)

    pixels = keras.Input(network.input_shape[1:], name=network.layers[0].name)
    return keras.models.clone_model(network, input_tensors=pixels, call_function=call)


@contextmanager
def _talking_to_stderr() -> Iterator[None]:
    """Send what Keras prints to stderr, and hide its warning that the weights were trained at another size."""
    with redirect_stdout(weights.Chatter()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _imagenet_file(entry: Entry, spec: BackboneSpec, size: int) -> Path:
    """Return the file of the ImageNet weights; Keras downloads it to KERAS_HOME if it is missing."""
    file = weights.file_of(spec, size)
    if file is None:
        raise UsageError(
            f"Backbone '{spec.name}' cannot be built as asked: Keras has no ImageNet weights of "
            f"{weights.spelt(spec, size)}, only for some values of alpha. Or use `weights='none'` (random)"
        )
    if not file.exists():
        efficientnet_lite.require_installed(spec.name)
        weights.check_download(file)
        constructor = constructor_of(entry)
        arguments = dict(spec.options) | {"include_top": False, "input_shape": (size, size, 3)}
        # This call is only for its download. The network that is used is built from the file, which is checked first.
        _or_fault(spec, size, lambda: constructor(weights="imagenet", **arguments))
    return file


@contextmanager
def _unchanged_source(spec: BackboneSpec, size: int) -> Iterator[str | None]:
    """Yield the source of the weights. Raises WeightsMismatch if the source changes while they are loaded."""
    # A cache pairs this source with the digest of the values. A wrong pair would pass for good in every later run.
    source = weights.source(spec, size)
    yield source
    if weights.source(spec, size) != source:
        raise WeightsMismatch(f"{weights.file_of(spec, size)} changed while it was read. Run the same command again")


def _construct(entry: Entry, spec: BackboneSpec, size: int, pooling: Pooling, file: Path | None) -> Any:
    """Return the network with the weights in a file; with random weights if that is None."""
    import keras

    shape = (size, size, 3)
    if entry.name == "pixels":
        return keras.Sequential([keras.Input(shape), keras.layers.Flatten()], name="pixels")
    if entry.name == "glyphnet":
        return _or_fault(spec, size, lambda: glyphnet.glyphnet(shape, weights=file))
    arguments = dict(spec.options) | {
        "include_top": False,
        "input_shape": shape,
        "pooling": None if pooling in ("flatten", "none") else pooling,  # constructors know only avg and max
    }
    if spec.weights == "imagenet" and file is not None:
        # Check before Keras reads the file: it takes whatever has the right shapes.
        _check_file(entry, spec, size, file)
        return _or_fault(spec, size, lambda: pretrained(entry, file, **arguments))
    constructor = constructor_of(entry)
    path = None if file is None else str(file)
    return _or_fault(spec, size, lambda: constructor(weights=path, **arguments))


def _check_file(entry: Entry, spec: BackboneSpec, size: int, file: Path) -> None:
    """Raise WeightsMismatch unless the file holds Keras' own ImageNet weights."""
    if entry.package:
        return  # EfficientNet-Lite checks its own file
    fetch = f"featcache backbones fetch {weights.spelt(spec, size)}"
    use = f"`weights='{file}'`"
    if entry.module == "efficientnet":
        use = "`backbone='MODEL.keras'`, the network as model.save writes it"
    inventory.check(
        file,
        if_damaged=f"Delete it or run {fetch}",
        if_other=f"To use it: {use}. To have Keras' own: {fetch}, which keeps this file under another name",
    )


def _or_fault(spec: BackboneSpec, size: int, make: Callable[[], Any]) -> Any:
    """Return what `make` returns; turn any exception into one of ours, which says in one line what is wrong."""
    try:
        return make()
    except FeatcacheError:
        raise
    except Exception as error:
        raise weights.fault(spec, size, error) from error


def _policy(precision: Precision) -> str:
    """Return the name of Keras' policy that computes in this precision from float32 weights."""
    return precision if precision == "float32" else f"mixed_{precision}"


def _finish_in_float32(network: Any) -> None:
    """Let the layers that end the network (pooling and what follows it) compute in float32 at any precision."""
    import keras

    # A sum over all places of a map loses much in low precision, and costs almost nothing in float32.
    layers = keras.layers
    pooling = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
    after_pooling = (layers.LayerNormalization, layers.Dropout, layers.Flatten)
    for layer in reversed(network.layers):
        if not isinstance(layer, (*pooling, *after_pooling)):
            return
        layer.dtype_policy = "float32"


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Make new layers compute in this precision, with variables in float32."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_policy(precision))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


@contextmanager
def reproducibly(seed: int) -> Iterator[None]:
    """Build networks as in a fresh process: initial weights from `seed`, automatic layer names counted from the start.

    Keras draws the seeds of its initialisers from `random`, and numbers layers by what the process built before, so
    `conv2d_50` would be another layer each time. The caller's state is restored at the end.
    """
    from keras.src.backend.common import global_state

    state = random.getstate()
    names = global_state.get_global_attribute("object_name_uids")
    random.seed(seed)
    global_state.set_global_attribute("object_name_uids", None)
    try:
        yield
    finally:
        random.setstate(state)
        global_state.set_global_attribute("object_name_uids", names)


def _digest(network: Any) -> str:
    """Return the SHA-256 of all weight values, in order; it is `NO_WEIGHTS` if there are none."""
    digest = hashlib.sha256()
    for values in network.get_weights():
        # With shape and type: the same bytes in another shape are another network.
        digest.update(f"{values.shape}{values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
