"""What a user calls a model -> a classifier of uint8 images: of featcache, of ImageNet, or any Keras model.

A model that featcache did not write has no class names, and often nothing tells how pixels enter it or what its outputs
are. What is assumed then is in `notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from featcache.backbones import own
from featcache.backbones.imagenet import (
    NUM_CLASSES,
    class_names,
    imagenet_classifier,
    imagenet_files,
    imagenet_preprocess,
)
from featcache.backbones.plain import as_classifier
from featcache.cache.reader import Cache
from featcache.errors import DataError, UsageError
from featcache.extraction.batches import Batched
from featcache.files import file_digest
from featcache.models.assemble import of_one_size
from featcache.models.modelfile import is_ours, load_model, read_facts, read_reference
from featcache.models.reference import Reference, inspected
from featcache.prediction.model_networks import Built, KerasNetwork, open_network
from featcache.settings import EngineName
from featcache.spec import BackboneSpec, Preprocess, Tap
from featcache.trust import allow

ASSUMED_SIZE = 224
EXPORTED = (".onnx", ".tflite", ".xml")  # what `export` writes for ONNX Runtime, LiteRT and OpenVINO
MODES = "tf (-1..1), unit (0..1), torch (0..1, ImageNet mean and deviation), caffe (BGR minus ImageNet mean)"


@dataclass(frozen=True)
class Classifier:
    """(N, size, size, 3) uint8 -> (N, K) probabilities, with the names of the K classes.

    The last output of the network are the probabilities. In a model of featcache, features and logits come before them.
    """

    network: Batched
    classes: Sequence[str]
    preprocess: Preprocess
    reference: Reference | None = None
    notes: tuple[str, ...] = ()  # what is assumed because the model does not tell it; why it cannot be kept


def open_classifier(
    model: str | Path, *, reject: bool = False, imagenet: bool = False, engine: EngineName = "auto"
) -> Classifier:
    """Return the classifier of a MODEL.keras, or of another Keras model, such as mine.keras:mode=tf.

    reject: with its reference. imagenet: the model is the name of a network of `keras.applications`, which is taken
    with its top and ImageNet's classes; or a file whose 1,000 classes are those. engine: "auto" takes OpenVINO where it
    is installed and there is no GPU; a network that it converted once starts without Keras from then on.
    Raises NotAModel, UsageError, DataError if the model has no reference, WeightsMissing.
    """
    _require_model(str(model))
    parsed = own.parse(str(model))
    if imagenet and parsed is None:
        if reject:
            raise UsageError("`reject` needs validation images, which ImageNet's networks come without")
        return _of_imagenet(str(model), engine)
    path = Path(model)
    if path.is_file() and is_ours(path):
        if imagenet:
            raise UsageError(f"{path} names its classes itself. Leave out `imagenet`")
        return _ours(path, reject, engine)
    is_missing = parsed is not None and parsed[0].origin == "file" and not Path(parsed[0].weights).exists()
    if parsed is None or is_missing:
        read_facts(path)  # raises NotAModel, with the command that makes one
    if reject:
        raise UsageError(f"`reject` needs a model of featcache, which knows its validation images; {model} is none")
    assert parsed is not None
    return _plain(str(model), *parsed, imagenet, engine)


def _require_model(text: str) -> None:
    """Raise UsageError for what people often give instead of a model: a run, a trial, a cache, the images."""
    path = Path(text)
    run, trial = path, f"{text}@best"
    if not path.exists():  # RUN@3 is no path
        run, trial = Path(text.rpartition("@")[0]), text
    if (run / "run.json").is_file():
        raise UsageError(f"{text} is not a model yet. Make one of it: featcache handoff {quote(trial)} -o head.keras")
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise UsageError(f"{text} is a folder, not a model. First the model: featcache predict MODEL.keras IMAGES")
    if path.suffix in EXPORTED and path.is_file():
        raise UsageError(
            f"{text} is a model for another runtime, which featcache does not run. Give the MODEL.keras that it was "
            "exported from"
        )
    if path.suffix == ".h5" and path.is_file() and _is_cache(path):
        handoff = "featcache handoff RUN@best -o MODEL.keras"
        raise UsageError(f"{text} is a cache of features and no model. Sweep it, then: {handoff}")


def _is_cache(path: Path) -> bool:
    try:
        Cache.open(path)
    except DataError:
        return False
    return True


def _of_imagenet(name: str, engine: EngineName) -> Classifier:
    files = imagenet_files(name)
    weights, index = files
    if not (weights.is_file() and index.is_file()):
        # Keras downloads what is missing, or the error names all files that are.
        downloaded = imagenet_classifier(name)
        return Classifier(KerasNetwork(downloaded.model), downloaded.names, downloaded.preprocess)

    def build() -> Built:
        return Built(imagenet_classifier(name).model, {})

    preprocess = imagenet_preprocess(name)
    identity = {"imagenet": name, "weights": file_digest(weights), "preprocess": preprocess.to_dict()}
    opened = open_network(identity, preprocess.size, build, engine)
    return Classifier(opened.network, class_names(files), preprocess, notes=opened.notes)


def _ours(path: Path, reject: bool, engine: EngineName) -> Classifier:
    reference = read_reference(path)
    if reject and reference is None:
        raise DataError(
            f"{path} has nothing to tell strange images by: it is of an earlier featcache, its fine-tuning was "
            "stopped, or its run has no images that did not train it. Make it again: featcache handoff or finetune"
        )
    facts = read_facts(path)
    preprocess = Tap.from_json(facts["tap"]).preprocess

    def build() -> Built:
        model, _ = load_model(path)
        can_be_kept = not own.has_code(model)
        return Built(of_one_size(inspected(model), preprocess.size), {}, can_be_kept)

    identity = {"model": file_digest(path), "outputs": "features, logits, probabilities"}
    opened = open_network(identity, preprocess.size, build, engine)
    return Classifier(opened.network, facts["classes"], preprocess, reference if reject else None, opened.notes)


def _plain(text: str, spec: BackboneSpec, parts: list[str], imagenet: bool, engine: EngineName) -> Classifier:
    """Return the classifier of a model that featcache did not write, with notes on what it does not tell."""
    options = _options_in(parts, spec.name)
    if spec.origin == "import":
        allow(spec.weights)
    requested_size = int(options["size"]) if "size" in options else None
    facts = own.facts_of(spec, requested_size)
    notes: list[str] = []
    size = facts.size or requested_size  # a model of one size overrides the request
    if not size:
        size = ASSUMED_SIZE
        notes.append(f"it takes images of any size; {size} x {size} is assumed. Else: {text}:size=160")
    # With a wrong mode the classes are wrong and nothing fails, so what is assumed is a note.
    mode = options.get("mode") or facts.mode
    if mode is None:
        notes.append(f"how pixels enter it is unknown; 0..255 as they are is assumed. Else: {text}:mode={MODES}")
    preprocess = Preprocess(size, mode=own.mode_of(mode or "inside"))

    def build() -> Built:
        model = own.load(spec, size)
        network, num_classes, note = as_classifier(model, preprocess)
        return Built(network, {"num_classes": num_classes, "note": note}, not own.has_code(model))

    path = Path(spec.weights)
    identity = None
    if spec.origin == "file" and path.is_file():
        identity = {"model": file_digest(path), "preprocess": preprocess.to_dict()}
    opened = open_network(identity, size, build, engine)
    num_classes, note = opened.facts["num_classes"], opened.facts["note"]
    if imagenet:
        names = class_names()
        if len(names) != num_classes:
            raise UsageError(f"`imagenet` is about {NUM_CLASSES} classes; {spec.weights} has {num_classes}")
    else:
        names = [str(number) for number in range(num_classes)]
        notes.append(f"it has no class names; its {num_classes} outputs are called 0 to {num_classes - 1}")
    if note:
        notes.append(note)
    about_model = [f"{spec.weights}: {note}" for note in notes]
    return Classifier(opened.network, names, preprocess, notes=(*about_model, *opened.notes))


def _options_in(parts: Sequence[str], name: str) -> dict[str, str]:
    """Return the options behind the name of a model, such as mode=tf. Raises UsageError."""
    options: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        options[key] = value
    if not options.keys() <= {"mode", "size"} or not options.get("size", "1").isdecimal():
        raise UsageError(f"'{name}' takes the options mode=.., size=..; got '{':'.join(parts)}'")
    return options
