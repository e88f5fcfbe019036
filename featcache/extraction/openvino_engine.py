"""OpenVINO as an engine: the same network, compiled for the CPU (pip install featcache[openvino]).

By default OpenVINO computes in bfloat16 on CPUs that can, without a message (measured: features 0.4 off on a scale of
1.8). So this engine always sets the precision, and reads back from the compiled network which precision really runs.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.arrays import Features, Pixels
from featcache.errors import EnvironmentFault, is_out_of_memory
from featcache.extraction.batches import Batched
from featcache.files import temporary_folder
from featcache.spec import Precision

# An 8-bit network says itself which layers are 8-bit; this is the precision of its others.
NAMES: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
HEAVY = frozenset(["Convolution", "FullyConnected", "MatMul"])  # layers whose precision counts
EIGHT_BITS = ("i8", "u8")
OUTPUT_NAME = re.compile(r"Identity(_\d+)?:0")  # of the outputs of a Keras model in TensorFlow's graph


def is_installed() -> bool:
    """Return whether OpenVINO is installed, without importing it."""
    return find_spec("openvino") is not None


def import_openvino() -> Any:
    """Return the package, without its telemetry, which would report every conversion to its makers."""
    # A None in sys.modules makes the import of this package fail, and OpenVINO then works without it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@dataclass(frozen=True)
class ConvertedNetwork:
    """A network as OpenVINO reads it: plain data, nothing of which is run as code."""

    graph: bytes  # XML
    weights: npt.NDArray[np.uint8]  # (num_bytes,)


class OpenVINOEngine(Batched):
    """A network compiled by OpenVINO for the CPU. Raises EnvironmentFault if it cannot compute in `precision`."""

    def __init__(self, network: ConvertedNetwork, batch: int, precision: Precision) -> None:
        super().__init__(f"openvino {version('openvino')} CPU", batch)
        self.network = network
        self.precision = precision
        self._model = read_network(network)
        self._compiled = self._compile(batch)

    def resized(self, batch: int) -> None:
        """Compile for another number of images at once."""
        self._compiled = self._compile(batch)

    def compute(self, batch: Pixels) -> list[Features]:
        """Return one array per layer for exactly `self.batch` images."""
        outputs = self._compiled(batch, share_inputs=True)
        return [np.array(outputs[index], dtype=np.float32) for index in range(len(outputs))]

    def _compile(self, batch: int) -> Any:
        shape = list(self._model.input(0).partial_shape)
        self._model.reshape([batch, *(dimension.get_length() for dimension in shape[1:])])
        hints = {"INFERENCE_PRECISION_HINT": NAMES[self.precision], "PERFORMANCE_HINT": "LATENCY"}
        try:
            compiled = import_openvino().Core().compile_model(self._model, "CPU", hints)
        except Exception as error:  # OpenVINO raises a RuntimeError of many lines, such as for bfloat16 layers
            if is_out_of_memory(error):
                raise
            raise _not_for_openvino("compile", error) from error
        precisions = _precisions(compiled)
        if self.precision == "int8":
            _check_8_bits(precisions)
        elif set(precisions) != {NAMES[self.precision]}:
            names = ", ".join(sorted(precisions)) or "nothing"
            raise EnvironmentFault(
                f"OpenVINO computes in {names} on this CPU, not in {self.precision}. "
                "Use `engine='keras'`, or `precision='float32'`"
            )
        return compiled


def convert(model: Any) -> ConvertedNetwork:
    """Return a Keras model as OpenVINO reads it. Raises EnvironmentFault."""
    if not is_installed():
        raise EnvironmentFault("OpenVINO is not installed. Install it: pip install 'featcache[openvino]'")
    import_openvino()
    with temporary_folder() as folder:
        path = folder / "network.xml"
        try:
            model.export(str(path), format="openvino", verbose=False)
        except Exception as error:  # converters raise almost anything on an unknown layer
            raise _not_for_openvino("convert", error) from error
        _remove_leftovers(path, len(model.outputs))
        return ConvertedNetwork(path.read_bytes(), np.fromfile(path.with_suffix(".bin"), np.uint8))


def _remove_leftovers(path: Path, num_outputs: int) -> None:
    """Have a converted network give only the outputs of the Keras model.

    The converter also makes an output of what nothing reads in TensorFlow's graph, such as a size inside attention.
    """
    openvino = import_openvino()
    network = openvino.Core().read_model(path)
    if len(network.outputs) == num_outputs:
        return
    for result in network.get_results():
        names = result.output(0).get_names()
        if not any(OUTPUT_NAME.fullmatch(name) for name in names):
            network.remove_result(result)
    whole = path.with_name(f"whole_{path.name}")
    openvino.serialize(network, whole)  # not to the files that the network is still read from
    del network
    whole.replace(path)
    whole.with_suffix(".bin").replace(path.with_suffix(".bin"))


def _not_for_openvino(verb: str, error: Exception) -> EnvironmentFault:
    reason = " ".join(str(error).split())[:200]
    return EnvironmentFault(
        f"OpenVINO cannot {verb} this network: {reason}. Use `engine='keras'`, at any precision but int8"
    )


def read_network(network: ConvertedNetwork) -> Any:
    """Return a network as OpenVINO's model."""
    openvino = import_openvino()
    return openvino.Core().read_model(network.graph, openvino.Tensor(network.weights))


def _check_8_bits(precisions: Counter[str]) -> None:
    """Raise EnvironmentFault unless most heavy layers run in 8 bits, and the others in float32.

    NNCF leaves out layers that would lose too much, so a few others are usual.
    """
    num_layers = precisions.total()
    num_8_bit = sum(precisions[name] for name in EIGHT_BITS)
    if 2 * num_8_bit <= num_layers or num_8_bit + precisions["f32"] < num_layers:
        raise EnvironmentFault(
            f"OpenVINO computes {num_8_bit} of {num_layers} layers in 8 bits on this CPU, which is no 8-bit network. "
            "Use `precision='float32'`"
        )


def _precisions(compiled: Any) -> Counter[str]:
    """Return the precisions in which the heavy layers of a compiled network run, and how many run in each."""
    precisions = Counter[str]()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and str(facts["layerType"].astype(str)) in HEAVY:
            precisions[str(facts["runtimePrecision"].astype(str))] += 1
    return precisions
