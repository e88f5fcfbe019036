"""The formats: how each is written, what travels inside it, and how its own runtime loads it again.

A writer puts one file, or folder, under a given path; a reader returns what the runtime computes: (n, size, size, 3)
uint8 -> (n, K) probabilities.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.assembly import Start
from featcache.assembly.modelfile import MEMBER, is_ours, save_model
from featcache.assembly.reference import reference_of_head
from featcache.backbones.lineage import MEMBER as LINEAGES
from featcache.errors import EnvironmentFault, UsageError
from featcache.exporting.graph import INPUT, OUTPUT, of_one_size, write_saved_model
from featcache.exporting.origin import Origin
from featcache.exporting.sample import Runner
from featcache.extraction.openvino_engine import import_openvino
from featcache.files import temporary_folder

LABELS = "labels.txt"
OF_SAVEDMODEL = {
    "saved_model.pb",
    "fingerprint.pb",
    "keras_metadata.pb",
    "variables",
    "assets",
    "assets.extra",
    MEMBER,
    LINEAGES,
}
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    suffix: str  # "" for a folder
    write: Callable[[Origin, Path, Facts, Pixels | None], None]  # pixels to calibrate on, to quantise
    read: Callable[[Path], Runner]
    is_ours: Callable[[Path], bool]  # whether featcache exported a file to this format; may raise for those of others
    runtime: str  # the package that runs it
    needs: tuple[str, ...] = ()  # modules beyond featcache's own
    extra: str = ""  # of featcache, that brings them
    any_size: bool = False  # takes images of any size
    batch: int | None = None  # images at once, if it takes one number only

    def check_installed(self) -> None:
        """Raise EnvironmentFault, with what to install, if a package is missing; imports none."""
        for name in self.needs:
            package = name.partition(".")[0]
            if find_spec(package) is None:
                raise EnvironmentFault(
                    f"Exporting to {self.name} needs {package}, which is not installed. "
                    f"Install it: pip install 'featcache[{self.extra}]'"
                )

    def require(self) -> None:
        """Raise EnvironmentFault, with what to install, if something is missing."""
        for name in self.needs:
            try:
                if name == "openvino":
                    import_openvino()  # not by its name, which would report every export to its makers
                else:
                    import_module(name)
            except ImportError as error:
                raise EnvironmentFault(
                    f"Exporting to {self.name} needs {name.partition('.')[0]} ({error}). "
                    f"Install it: pip install 'featcache[{self.extra}]'"
                ) from error

    @property
    def ran_by(self) -> str:
        """Return the runtime with its version."""
        return f"{self.runtime} {version(self.runtime)}"

    def shape(self, size: int, channels: int = 3) -> list[int | None]:
        """Return the shape that it takes; None where any number is taken."""
        side = None if self.any_size else size
        return [self.batch, side, side, channels]


def labels_text(facts: Facts) -> str:
    """Return the class names, one on each line; what would break a line stands there as Python writes it."""
    lines = [name if name.isprintable() else repr(name)[1:-1] for name in facts["classes"]]
    return "".join(f"{line}\n" for line in lines)


def _write_keras(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    given = Path(origin.name)
    if given.is_file():
        path.write_bytes(given.read_bytes())
    else:
        assert origin.chosen is not None
        save_model(origin.model, path, origin.facts, origin.lineages, reference_of_head(Start(origin.chosen)))


def _read_keras(path: Path) -> Runner:
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return lambda pixels: np.asarray(model.predict_on_batch(pixels))


def _write_savedmodel(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    write_saved_model(origin.model, str(path))
    extra = path / "assets.extra"  # where TensorFlow leaves room for files that are not its own
    extra.mkdir()
    (extra / LABELS).write_text(labels_text(facts), "utf-8")
    (path / MEMBER).write_text(json.dumps(facts, indent=2))
    (path / LINEAGES).write_bytes(origin.lineages.to_bytes())


def _is_savedmodel(path: Path) -> bool:
    """Return whether a folder is an exported SavedModel, with no file of the user beside what was written."""
    entries = {entry.name for entry in path.iterdir()}
    return json.loads((path / MEMBER).read_bytes())["format"] == "savedmodel" and entries <= OF_SAVEDMODEL


def _read_savedmodel(path: Path) -> Runner:
    import tensorflow

    serve = tensorflow.saved_model.load(str(path)).signatures["serving_default"]
    return lambda pixels: np.asarray(serve(**{INPUT: tensorflow.constant(pixels)})[OUTPUT])


def _write_onnx(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    """Convert the graph with its constants in it.

    Keras' own export leaves constants that a graph captures (the ImageNet mean, EfficientNet's normalisation) as inputs
    that nobody feeds.
    """
    import tensorflow
    import tf2onnx
    from onnx import checker, helper

    model = of_one_size(origin.model, origin.preprocess)
    spec = tensorflow.TensorSpec(tuple(model.inputs[0].shape), "uint8", name=INPUT)
    traced = tensorflow.function(lambda image: model(image, training=False)).get_concrete_function(spec)
    entry, end = traced.inputs[0].name, traced.outputs[0].name
    frozen = tf2onnx.tf_loader.from_function(traced, [entry], [end])
    names = {entry: INPUT, end: OUTPUT}
    proto, _ = tf2onnx.convert.from_graph_def(
        frozen, "featcache", input_names=[entry], output_names=[end], opset=ONNX_OPSET, tensors_to_rename=names
    )
    helper.set_model_props(proto, {"classes": json.dumps(facts["classes"]), "featcache": json.dumps(facts)})
    checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _is_onnx(path: Path) -> bool:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return any(entry.key == "featcache" for entry in model.metadata_props)


def _read_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = [one.name for one in session.get_inputs()]
    if inputs != [INPUT]:
        raise ValueError(f"it asks for the inputs {', '.join(inputs)}")
    return lambda pixels: np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])


def _write_litert(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    """Convert for one image at a time; labels and facts are files associated with the model, a zip archive behind it.

    Quantised, weights and activations have 8 bits, with ranges from the calibration images; the uint8 image is cast
    before, so that pixels enter as they are.
    """
    import tensorflow

    lite = tensorflow.lite
    with temporary_folder() as folder:
        write_saved_model(of_one_size(origin.model, origin.preprocess, batch=1), str(folder))
        converter = lite.TFLiteConverter.from_saved_model(str(folder))
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS]
        if calibration is not None:
            converter.optimizations = [lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([one[None]] for one in calibration)
            converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS_INT8, lite.OpsSet.TFLITE_BUILTINS]
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, labels_text(facts))
        archive.writestr(MEMBER, json.dumps(facts, indent=2))


def _is_litert(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return bool(json.loads(archive.read(MEMBER))["format"] == "litert")


def _read_litert(path: Path) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    entry, end = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def one(pixels: Pixels) -> Floats:
        interpreter.set_tensor(entry, pixels[None])
        interpreter.invoke()
        return np.array(interpreter.get_tensor(end)[0])

    return lambda pixels: np.stack([one(image) for image in pixels])


def _write_openvino(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    """Convert, with weights in float32; class names stand where OpenVINO's Model API looks for them."""
    openvino = import_openvino()
    with temporary_folder() as folder:
        write_saved_model(of_one_size(origin.model, origin.preprocess), str(folder))
        converted = openvino.convert_model(str(folder))
    end = next(one for one in converted.outputs if any(OUTPUT in name for name in one.names))
    network = openvino.Model([end.get_node()], converted.get_parameters(), "featcache")
    network.inputs[0].set_names({INPUT})
    network.outputs[0].set_names({OUTPUT})
    network.set_rt_info("Classification", ["model_info", "model_type"])
    network.set_rt_info(" ".join(name.replace(" ", "_") for name in facts["classes"]), ["model_info", "labels"])
    network.set_rt_info(json.dumps(facts), ["featcache"])
    openvino.save_model(network, str(path), compress_to_fp16=False)


def _is_openvino(path: Path) -> bool:
    return re.search(rb'<featcache value="', path.read_bytes()) is not None


def _read_openvino(path: Path) -> Runner:
    openvino = import_openvino()
    # left alone it computes in bfloat16 on CPUs that can
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: np.array(compiled({INPUT: pixels})[OUTPUT])


ONNX_OPSET = 18
FORMATS = {
    one.name: one
    for one in (
        Format("keras", ".keras", _write_keras, _read_keras, is_ours, "keras", any_size=True),
        Format("savedmodel", "", _write_savedmodel, _read_savedmodel, _is_savedmodel, "tensorflow", any_size=True),
        Format(
            "litert",
            ".tflite",
            _write_litert,
            _read_litert,
            _is_litert,
            "ai-edge-litert",
            ("ai_edge_litert.interpreter",),
            "litert",
            batch=1,
        ),
        Format(
            "onnx",
            ".onnx",
            _write_onnx,
            _read_onnx,
            _is_onnx,
            "onnxruntime",
            ("tf2onnx", "onnx", "onnxruntime"),
            "onnx",
        ),
        Format(
            "openvino",
            ".xml",
            _write_openvino,
            _read_openvino,
            _is_openvino,
            "openvino",
            ("openvino",),
            "openvino",
        ),
    )
}


def format_of(path: Path) -> str:
    """Return the format that a file name asks for. Raises UsageError."""
    for kind in FORMATS.values():
        if kind.suffix == path.suffix.lower():
            return kind.name
    suffixes = ", ".join(kind.suffix for kind in FORMATS.values() if kind.suffix)
    raise UsageError(f"-o takes a file name that ends in {suffixes}, or a folder; got {path}. Or name the format: --to")
