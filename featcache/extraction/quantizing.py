"""From a float32 network to an 8-bit one: post-training quantisation by NNCF (pip install featcache[int8]).

NNCF runs images through the network, and chooses for every layer the range that 8 bits share out among its values.
The same network and images give the same 8-bit network, bit for bit (measured: MobileNetV2, OpenVINO 2026.4, NNCF 3.4).
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import numpy as np

from featcache.arrays import Pixels
from featcache.errors import EnvironmentFault
from featcache.extraction.openvino_engine import ConvertedNetwork, import_openvino, read_network
from featcache.files import temporary_folder


def check_installed() -> None:
    """Raise EnvironmentFault if NNCF is not installed. Does not import it."""
    if find_spec("nncf") is None:
        raise EnvironmentFault("NNCF is not installed. Install it: pip install 'featcache[int8]'")


def quantized(network: ConvertedNetwork, pixels: Pixels, tick: Callable[[int], None]) -> ConvertedNetwork:
    """Return the 8-bit network that NNCF makes of a float32 one, calibrated on images (N, size, size, 3).

    tick: receives the number of the image that goes through the network. Raises EnvironmentFault.
    """
    check_installed()
    openvino = import_openvino()  # before NNCF, so that it finds no telemetry either
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)

    def image(index: int) -> Pixels:
        tick(index)
        return pixels[index : index + 1]

    model = read_network(network)
    model.reshape([1, *pixels.shape[1:]])
    try:
        with redirect_stdout(io.StringIO()):  # NNCF draws bars there
            model = nncf.quantize(model, nncf.Dataset(range(len(pixels)), image), subset_size=len(pixels))
    except Exception as error:  # NNCF raises almost anything on a network that it does not understand
        reason = " ".join(str(error).split())[:200]
        raise EnvironmentFault(f"NNCF cannot quantise this network: {reason}. Use `precision='float32'`") from error
    _name_by_position(model)
    with temporary_folder() as folder:
        path = folder / "network.xml"
        openvino.save_model(model, str(path), compress_to_fp16=False)
        return ConvertedNetwork(path.read_bytes(), np.fromfile(path.with_suffix(".bin"), np.uint8))


def digest_of_network(network: ConvertedNetwork) -> str:
    """Return the SHA-256 of a network, in hex."""
    hashed = hashlib.sha256(network.graph)
    hashed.update(network.weights.tobytes())
    return hashed.hexdigest()


def _name_by_position(model: Any) -> None:
    """Name every operation by its position: NNCF counts them on through a process, and equal networks must be equal."""
    for index, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"operation_{index}")
        for output in operation.outputs():
            output.get_tensor().set_names(set())
