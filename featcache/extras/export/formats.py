"""The formats that a model can be exported to: how to write each file, and how its own runtime loads it again.

A writer takes the model, the path to write to, the facts that go into the file, and the pixels to calibrate on when it
quantises. A reader returns a function that runs the file: (n, size, size, 3) uint8 -> (n, K) probabilities.
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
from featcache.backbones.lineage import MEMBER as LINEAGES
from featcache.errors import EnvironmentFault, UsageError
from featcache.extraction.openvino_engine import import_openvino
from featcache.extras.export.origin import Origin
from featcache.extras.export.runtime_model import OUTPUT, write_saved_model
from featcache.extras.export.sample import Runner
from featcache.files import temporary_folder
from featcache.models.assemble import INPUT, of_one_size
from featcache.models.modelfile import MEMBER, is_ours, save_model
from featcache.models.reference import reference_of_head

LABELS = "labels.txt"
ONNX_OPSET = 18
SAVEDMODEL_ENTRIES = {  # what an exported folder may hold
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
    """A file format, and the runtime that loads it."""

    name: str
    suffix: str  # "" for a folder
    write: Callable[[Origin, Path, Facts, Pixels | None], None]  # pixels to calibrate on, to quantise
    read: Callable[[Path], Runner]
    is_ours: Callable[[Path], bool]  # whether featcache exported this file; may raise for another program's file
    runtime: str  # the package that runs it
    needs: tuple[str, ...] = ()  # modules that featcache does not always install
    extra: str = ""  # the extra of featcache that installs them
    any_size: bool = False  # takes images of any size
    batch: int | None = None  # the only number of images that it takes at once; None: it takes any number

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
        """Raise EnvironmentFault, which says what to install, if a module is missing."""
        for name in self.needs:
            try:
                # OpenVINO's converter reports its use to its makers unless it is imported in this way.
                if name == "openvino":
                    import_openvino()
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
        """Return the shape (N, height, width, channels) that it takes; None for an axis that may have any length."""
        side = None if self.any_size else size
        return [self.batch, side, side, channels]


def labels_text(facts: Facts) -> str:
    """Return the class names, one on each line. A name with a line break in it is escaped as Python would write it."""
    lines: list[str] = []
    for name in facts["classes"]:
        line = name if name.isprintable() else repr(name)[1:-1]
        lines.append(f"{line}\n")
    return "".join(lines)


def _write_keras(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    model_file = Path(origin.name)
    if model_file.is_file():
        path.write_bytes(model_file.read_bytes())
    else:
        assert origin.probe is not None
        save_model(origin.model, path, origin.facts, origin.lineages, reference_of_head(origin.probe))


def read_keras(path: Path) -> Runner:
    """Return a function that runs a Keras file."""
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return lambda pixels: np.asarray(model.predict_on_batch(pixels))


def _write_savedmodel(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    write_saved_model(origin.model, str(path))
    assets = path / "assets.extra"  # TensorFlow reserves this folder for files of others
    assets.mkdir()
    (assets / LABELS).write_text(labels_text(facts), "utf-8")
    (path / MEMBER).write_text(json.dumps(facts, indent=2))
    (path / LINEAGES).write_bytes(origin.lineages.to_bytes())


def _is_savedmodel(path: Path) -> bool:
    """Return whether featcache exported this folder and the user added no file to it."""
    facts = json.loads((path / MEMBER).read_bytes())
    entries = {entry.name for entry in path.iterdir()}
    return facts["format"] == "savedmodel" and entries <= SAVEDMODEL_ENTRIES


def _read_savedmodel(path: Path) -> Runner:
    import tensorflow

    serve = tensorflow.saved_model.load(str(path)).signatures["serving_default"]

    def run(pixels: Pixels) -> Floats:
        outputs = serve(**{INPUT: tensorflow.constant(pixels)})
        return np.asarray(outputs[OUTPUT])

    return run


def _write_onnx(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    """Convert the frozen graph, in which every captured value is a constant.

    Keras' own export turns captured values (the ImageNet mean, EfficientNet's normalisation) into inputs that nobody
    feeds.
    """
    import tensorflow
    import tf2onnx
    from onnx import checker, helper

    model = of_one_size(origin.model, origin.preprocess.size)
    spec = tensorflow.TensorSpec(tuple(model.inputs[0].shape), "uint8", name=INPUT)
    graph = tensorflow.function(lambda image: model(image, training=False))
    traced = graph.get_concrete_function(spec)
    input_name = traced.inputs[0].name
    output_name = traced.outputs[0].name
    frozen = tf2onnx.tf_loader.from_function(traced, [input_name], [output_name])
    proto, _ = tf2onnx.convert.from_graph_def(
        frozen,
        "featcache",
        input_names=[input_name],
        output_names=[output_name],
        opset=ONNX_OPSET,
        tensors_to_rename={input_name: INPUT, output_name: OUTPUT},
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
    inputs = [tensor.name for tensor in session.get_inputs()]
    if inputs != [INPUT]:
        raise ValueError(f"it needs the inputs {', '.join(inputs)}")
    return lambda pixels: np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])


def _write_litert(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    """Convert for one image at a time, and append labels and facts as a zip archive, where LiteRT's tools look.

    calibration: quantise weights and activations to 8 bits, with ranges from these (n, size, size, 3) uint8 images.
    The input stays uint8: the graph itself casts the pixels, so they are not quantised.
    """
    import tensorflow

    lite = tensorflow.lite
    with temporary_folder() as folder:
        write_saved_model(of_one_size(origin.model, origin.preprocess.size, batch=1), str(folder))
        converter = lite.TFLiteConverter.from_saved_model(str(folder))
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS]
        if calibration is not None:
            converter.optimizations = [lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None]] for image in calibration)
            # Operators that have no 8-bit form, such as the cast of the pixels, stay in float32.
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
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]

    def run_image(image: Pixels) -> Floats:
        interpreter.set_tensor(input_index, image[None])
        interpreter.invoke()
        return np.array(interpreter.get_tensor(output_index)[0])  # a copy: the next image overwrites the tensor

    return lambda pixels: np.stack([run_image(image) for image in pixels])


def _write_openvino(origin: Origin, path: Path, facts: Facts, calibration: Pixels | None) -> None:
    """Convert with weights in float32, and store the class names where OpenVINO's Model API looks for them."""
    openvino = import_openvino()
    with temporary_folder() as folder:
        write_saved_model(of_one_size(origin.model, origin.preprocess.size), str(folder))
        converted = openvino.convert_model(str(folder))
    # The converter may add outputs and prefix their names, so look for ours. A port has several names.
    output = next(port for port in converted.outputs if OUTPUT in " ".join(port.names))
    network = openvino.Model([output.get_node()], converted.get_parameters(), "featcache")
    network.inputs[0].set_names({INPUT})
    network.outputs[0].set_names({OUTPUT})
    network.set_rt_info("Classification", ["model_info", "model_type"])
    labels = " ".join(name.replace(" ", "_") for name in facts["classes"])  # the Model API splits them at spaces
    network.set_rt_info(labels, ["model_info", "labels"])
    network.set_rt_info(json.dumps(facts), ["featcache"])
    openvino.save_model(network, str(path), compress_to_fp16=False)


def _is_openvino(path: Path) -> bool:
    return re.search(rb'<featcache value="', path.read_bytes()) is not None


def _read_openvino(path: Path) -> Runner:
    openvino = import_openvino()
    # By default OpenVINO computes in bfloat16 on CPUs that can, which would differ from the model.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: np.array(compiled({INPUT: pixels})[OUTPUT])


_FORMATS = (
    Format(
        name="keras",
        suffix=".keras",
        write=_write_keras,
        read=read_keras,
        is_ours=is_ours,
        runtime="keras",
        any_size=True,
    ),
    Format(
        name="savedmodel",
        suffix="",
        write=_write_savedmodel,
        read=_read_savedmodel,
        is_ours=_is_savedmodel,
        runtime="tensorflow",
        any_size=True,
    ),
    Format(
        name="litert",
        suffix=".tflite",
        write=_write_litert,
        read=_read_litert,
        is_ours=_is_litert,
        runtime="ai-edge-litert",
        needs=("ai_edge_litert.interpreter",),
        extra="litert",
        batch=1,
    ),
    Format(
        name="onnx",
        suffix=".onnx",
        write=_write_onnx,
        read=_read_onnx,
        is_ours=_is_onnx,
        runtime="onnxruntime",
        needs=("tf2onnx", "onnx", "onnxruntime"),
        extra="onnx",
    ),
    Format(
        name="openvino",
        suffix=".xml",
        write=_write_openvino,
        read=_read_openvino,
        is_ours=_is_openvino,
        runtime="openvino",
        needs=("openvino",),
        extra="openvino",
    ),
)
FORMATS = {file_format.name: file_format for file_format in _FORMATS}


def format_of(path: Path) -> str:
    """Return the format that a file name asks for. Raises UsageError."""
    for file_format in FORMATS.values():
        if file_format.suffix == path.suffix.lower():
            return file_format.name
    suffixes = ", ".join(file_format.suffix for file_format in FORMATS.values() if file_format.suffix)
    raise UsageError(
        f"`out` takes a file name that ends in {suffixes}, or a folder; got {path}. Or name the format: `to`"
    )
