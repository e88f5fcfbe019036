"""What a user calls a model -> a classifier of uint8 images: of featcache, of ImageNet, or any Keras model.

A model that featcache did not write has no class names, and often nothing tells how pixels enter it or what its outputs
are. What is assumed then is in `notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from featcache.backbones import own
from featcache.backbones.imagenet import NUM_CLASSES, class_names, imagenet_classifier
from featcache.backbones.plain import as_classifier
from featcache.cache.reader import Cache
from featcache.errors import DataError, UsageError
from featcache.models.modelfile import is_ours, load_model, read_facts, read_reference
from featcache.models.reference import Reference, inspected
from featcache.spec import Preprocess, Tap
from featcache.trust import allow

ASSUMED_SIZE = 224
MODES = "tf (-1..1), unit (0..1), torch (0..1, ImageNet mean and deviation), caffe (BGR minus ImageNet mean)"


@dataclass(frozen=True)
class Classifier:
    """(N, size, size, 3) uint8 -> (N, K) probabilities, with the names of the K classes.

    With a reference the network gives features and logits before the probabilities.
    """

    network: Any  # keras.Model
    classes: Sequence[str]
    preprocess: Preprocess
    reference: Reference | None = None
    notes: tuple[str, ...] = ()  # what the model does not tell, and what is assumed instead


def open_classifier(model: str | Path, *, reject: bool = False, imagenet: bool = False) -> Classifier:
    """Return the classifier of a MODEL.keras, or of another Keras model, such as mine.keras:mode=tf.

    reject: with its reference. imagenet: the model is the name of a network of `keras.applications`, which is taken
    with its top and ImageNet's classes; or a file whose 1,000 classes are those.
    Raises NotAModel, UsageError, DataError if the model has no reference, WeightsMissing.
    """
    _require_model(str(model))
    parsed = own.parse(str(model))
    if imagenet and parsed is None:
        if reject:
            raise UsageError("`reject` needs validation images, which ImageNet's networks come without")
        classifier = imagenet_classifier(str(model))
        return Classifier(classifier.model, classifier.names, classifier.preprocess)
    path = Path(model)
    if path.is_file() and is_ours(path):
        if imagenet:
            raise UsageError(f"{path} names its classes itself. Leave out `imagenet`")
        return _ours(path, reject)
    is_missing = parsed is not None and parsed[0].origin == "file" and not Path(parsed[0].weights).exists()
    if parsed is None or is_missing:
        read_facts(path)  # raises NotAModel, with the command that makes one
    if reject:
        raise UsageError(f"`reject` needs a model of featcache, which knows its validation images; {model} is none")
    assert parsed is not None
    return _plain(str(model), *parsed, imagenet)


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
    if path.suffix == ".h5" and path.is_file() and _is_cache(path):
        handoff = "featcache handoff RUN@best -o MODEL.keras"
        raise UsageError(f"{text} is a cache of features and no model. Sweep it, then: {handoff}")


def _is_cache(path: Path) -> bool:
    try:
        Cache.open(path)
    except DataError:
        return False
    return True


def _ours(path: Path, reject: bool) -> Classifier:
    reference = read_reference(path) if reject else None
    if reject and reference is None:
        raise DataError(
            f"{path} has nothing to tell strange images by: it is of an earlier featcache, its fine-tuning was "
            "stopped, or its run has no images that did not train it. Make it again: featcache handoff or finetune"
        )
    network, facts = load_model(path)
    if reference is not None:
        network = inspected(network)
    preprocess = Tap.from_json(facts["tap"]).preprocess
    return Classifier(network, facts["classes"], preprocess, reference)


def _plain(text: str, spec: Any, parts: list[str], imagenet: bool) -> Classifier:
    """Return the classifier of a model that featcache did not write, with notes on what it does not tell."""
    options: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        options[name] = value
    if not options.keys() <= {"mode", "size"} or not options.get("size", "1").isdecimal():
        raise UsageError(f"'{spec.name}' takes the options mode=.., size=..; got '{':'.join(parts)}'")
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
    model = own.load(spec, size)
    network, num_classes, note = as_classifier(model, preprocess)
    if imagenet:
        names = class_names()
        if len(names) != num_classes:
            raise UsageError(f"`imagenet` is about {NUM_CLASSES} classes; {spec.weights} has {num_classes}")
    else:
        names = [str(number) for number in range(num_classes)]
        notes.append(f"it has no class names; its {num_classes} outputs are called 0 to {num_classes - 1}")
    if note:
        notes.append(note)
    return Classifier(network, names, preprocess, notes=tuple(f"{spec.weights}: {note}" for note in notes))
