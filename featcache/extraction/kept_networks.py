"""Networks that OpenVINO converted once and that later processes start with, without Keras.

A file holds the network, what Keras at float32 gave on a few made images, and facts. Its name is the digest of what
the network is and of the versions of everything that made it. `load` trusts no file: it computes the made images
again, and takes a network only if it still agrees with Keras. Nothing in a file is run as code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from featcache import home
from featcache.arrays import Features, Pixels
from featcache.backend import keras_backend
from featcache.extraction.agreement import agree, made_images
from featcache.extraction.openvino_engine import ConvertedNetwork, OpenVINOEngine
from featcache.files import Sink, read_arrays
from featcache.provenance import installed_version
from featcache.spec import Precision, digest_of

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the content of the files changes
NUM_IMAGES = 4
GRAPH, WEIGHTS, FACTS, OUTPUT = "graph", "weights", "facts", "output_"


class Proof(NamedTuple):
    """What Keras at float32 gives on the made images, and how far a network is from it."""

    expected: Sequence[Features]
    agreement: str


class KeptNetwork(NamedTuple):
    """A network at work, and what was written beside it."""

    engine: OpenVINOEngine
    facts: Mapping[str, Any]


def load(identity: Mapping[str, Any], size: int, precision: Precision, batch: int) -> KeptNetwork | None:
    """Return the network that `keep` kept for this identity; None if there is none that agrees with Keras.

    size: of the images, in pixels.
    """
    path = home.find(f"networks/{_digest(identity, precision)}.npz")
    if path is None:
        return None
    try:
        arrays = read_arrays(path)
        facts = json.loads(arrays[FACTS].tobytes())
        network = ConvertedNetwork(arrays[GRAPH].tobytes(), arrays[WEIGHTS])
        engine = OpenVINOEngine(network, batch, precision)
        expected = [arrays[f"{OUTPUT}{index}"] for index in range(facts["num_outputs"])]
        agree(expected, engine.forward(made_images(NUM_IMAGES, size)), precision)
    except Exception as error:  # NumPy, zipfile and OpenVINO raise almost anything on a damaged file
        log.info("%s cannot be used and is made again: %s", path, " ".join(str(error).split())[:200])
        return None
    return KeptNetwork(engine, facts)


def prove(engine: OpenVINOEngine, size: int, reference: Callable[[Pixels], Sequence[Features]]) -> Proof:
    """Return the proof that a network agrees with Keras, whose outputs at float32 `reference` gives.

    Raises EnvironmentFault if it does not agree.
    """
    images = made_images(NUM_IMAGES, size)
    expected = reference(images)
    agreement = agree(expected, engine.forward(images), engine.precision)
    return Proof(expected, agreement)


def keep(
    identity: Mapping[str, Any],
    engine: OpenVINOEngine,
    proof: Proof,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Keep a network for later processes. facts: JSON that `load` returns with it.

    say: receives one line if it cannot be kept.
    """
    stored = {**facts, **identity, "agreement": proof.agreement, "num_outputs": len(proof.expected)}
    arrays: dict[str, Any] = {
        GRAPH: np.frombuffer(engine.network.graph, np.uint8),
        WEIGHTS: engine.network.weights,
        FACTS: np.frombuffer(json.dumps(stored).encode(), np.uint8),
    }
    for index, output in enumerate(proof.expected):
        arrays[f"{OUTPUT}{index}"] = output

    def write(sink: Sink) -> None:
        np.savez(sink, **arrays)

    home.keep(f"networks/{_digest(identity, engine.precision)}.npz", write, say)


def refuse(identity: Mapping[str, Any], precision: Precision, reason: str) -> None:
    """Have later processes know that OpenVINO cannot compute a network, so that they do not convert it again."""
    home.keep_facts(f"refused/{_digest(identity, precision)}.json", {"reason": reason})


def is_refused(identity: Mapping[str, Any], precision: Precision) -> bool:
    """Return whether an earlier process found that OpenVINO cannot compute a network."""
    return home.find_facts(f"refused/{_digest(identity, precision)}.json") is not None


def _digest(identity: Mapping[str, Any], precision: Precision) -> str:
    """Return the name of a network: other versions of anything that made it have other names.

    The taps of an 8-bit network name its digest, so it stays the same under other versions.
    """
    facts: dict[str, Any] = {"identity": identity, "precision": precision, "format": FORMAT}
    if precision != "int8":
        facts |= {"backend": keras_backend()}
        facts |= {name: version(name) for name in ("featcache", "keras", "openvino")}
        facts["keras-hub"] = installed_version("keras-hub")  # whose layers some presets compute with
    return digest_of(facts)
