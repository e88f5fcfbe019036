"""Engines compute features: from (N, size, size, 3) uint8 pixels to one (N, D) float32 array per tap."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Protocol

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.backbones.build import Backbone, copied, feature_model
from featcache.backbones.devices import USUAL, devices, on_cpu, on_device
from featcache.backbones.lineage import IMAGE_ROLE, Role
from featcache.backend import keras_backend
from featcache.errors import EnvironmentFault
from featcache.extraction.batches import Batched
from featcache.extraction.openvino_engine import OpenVINOEngine, is_installed
from featcache.spec import Precision, Tap, canonical_json

BATCH = 32  # on CPUs larger batches are not faster, for networks of photographs
OPENVINO_BATCH = 4  # the feature maps of a few images stay in the CPU's cache: 1.25 times as fast as 32
MAX_BATCH = 1024
SMALL_SIZE = 64  # pixels
CHEAPER = 0.15  # share of the time per image that a doubled batch must save
FASTER = 1.1  # times as fast as Keras, for OpenVINO to be chosen
WORTH_GROWING = 2000  # images
WORTH_TIMING = 4 * BATCH  # images
WORTH_TRYING_S = 20.0  # of Keras; converting and timing OpenVINO takes about five
TINY = 1e-30  # so that rows of zeros agree with rows of zeros
# Against Keras at float32: the smallest cosine of a row, and the largest difference in standard deviations.
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (0.99999, 1e-3),
    "bfloat16": (0.95, float("inf")),
    "float16": (0.95, float("inf")),
}


class Engine(Protocol):
    """Something that computes a forward pass. `name` says what really computed."""

    name: str

    @property
    def batch(self) -> int:
        """Images per forward pass."""
        ...

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one float32 array per layer: (N, D), or (N, h, w, C) without pooling."""
        ...


class PixelEngine:
    """Raw pixels, scaled to 0..1 and flattened: the control that every backbone must beat."""

    name = "numpy"

    def __init__(self, batch: int = 256) -> None:
        self.batch = batch

    def forward(self, batch: Pixels) -> list[Features]:
        """Return [(N, size * size * 3)]."""
        return [(batch.reshape(len(batch), -1) * np.float32(1 / 255)).astype(np.float32)]


class KerasEngine(Batched):
    """The backbone in Keras, on the backend that Keras uses, on one of `devices`."""

    def __init__(self, backbone: Backbone, taps: Sequence[Tap], batch: int, device: str = USUAL) -> None:
        super().__init__(f"keras {version('keras')} {keras_backend()}", batch)
        self._device = device
        with on_device(device):
            self._model = feature_model(backbone, list(taps))

    def on(self, device: str) -> KerasEngine:
        """Return the same engine on another device."""
        engine = copy.copy(self)
        engine._device = device
        with on_device(device):
            engine._model = copied(self._model)
        return engine

    def compute(self, batch: Pixels) -> list[Features]:
        """Return one array per layer for exactly `self.batch` images."""
        with on_device(self._device):
            outputs = self._model.predict_on_batch(batch)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output, dtype=np.float32) for output in outputs]


class SeveralDevices:
    """One Keras engine per device, side by side: each computes its share of a batch."""

    def __init__(self, first: KerasEngine, names: Sequence[str]) -> None:
        self.name = f"{first.name} on {len(names)} devices"
        self._engines = [first, *(first.on(name) for name in names[1:])]
        self._threads = ThreadPoolExecutor(len(names), thread_name_prefix="device")

    @property
    def batch(self) -> int:
        """Images per forward pass on all devices together."""
        return sum(engine.batch for engine in self._engines)

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one float32 array per layer, with all images in their order."""
        shares = [share for share in np.array_split(batch, len(self._engines)) if len(share)]
        outputs = self._threads.map(lambda engine, share: engine.forward(share), self._engines, shares)
        return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]


def choose(
    build_at: Callable[[Precision], Backbone],
    taps: Sequence[Tap],
    sample: Pixels,
    *,
    engine: str = "auto",
    device: str = "auto",
    batch: int | None = None,
    num_images: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Engine:
    """Return the engine that computes these taps of one view.

    build_at: returns the backbone at a precision. sample: a few of the images, to try engines on. engine: "auto" takes
    OpenVINO if it is installed, faster than Keras, and agrees with Keras at float32; "openvino" must agree, too.
    num_images: how many images will come; trying engines takes seconds, which is not worth it for a few.
    Raises EnvironmentFault if the requested engine or device is missing or does not agree.
    """
    precision = taps[0].precision
    keras_batch = batch or BATCH
    names = devices(device)

    def keras_engine(exact: KerasEngine | None = None) -> Engine:
        """Return Keras at the precision of the taps on all devices; `exact` is Keras at float32, if it was built."""
        if exact is not None and precision == "float32":
            first = exact
        else:
            first = KerasEngine(build_at(precision), taps, keras_batch, names[0])
        if batch is None:
            first = _grown(first, sample, num_images, on_cpu(names))
        return first if len(names) == 1 else SeveralDevices(first, names)

    can_gain = num_images >= WORTH_TIMING and is_installed() and on_cpu(names)
    if engine == "keras" or (engine == "auto" and not can_gain):
        return keras_engine()
    backbone = build_at("float32")
    exact = KerasEngine(backbone, taps, keras_batch, names[0])
    keras_s = 0.0 if engine == "openvino" else seconds_per_image(exact, sample)
    if engine == "auto" and keras_s * num_images < WORTH_TRYING_S:
        return keras_engine(exact)
    try:
        fast = OpenVINOEngine(backbone, taps, batch or OPENVINO_BATCH, precision)
        agreement = agree(exact.forward(sample), fast.forward(sample), precision)
    except EnvironmentFault as error:
        if engine == "openvino":
            raise
        say(f"{error}. Computing with Keras")
        return keras_engine(exact)
    if engine == "openvino":
        return fast
    slow = keras_engine(exact)
    if slow is not exact:
        keras_s = seconds_per_image(slow, sample)
    gain = keras_s / seconds_per_image(fast, sample)
    say(f"OpenVINO is {gain:.1f} times as fast as Keras on these images and {agreement}")
    return fast if gain >= FASTER else slow


def agree(exact: Sequence[Features], other: Sequence[Features], precision: Precision) -> str:
    """Return how far features are from those of Keras at float32. Raises EnvironmentFault if they are too far."""
    cosines, differences = [], []
    for ours, theirs in zip(exact, other, strict=True):
        a = np.reshape(ours, (len(ours), -1)).astype(np.float64)
        b = np.reshape(theirs, (len(theirs), -1)).astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines.append(((a * b).sum(axis=1) + TINY) / (norms + TINY))
        differences.append(np.abs(a - b).max() / (a.std() + TINY))
    cosine, difference = np.min(cosines), np.max(differences)
    min_cosine, max_difference = LIMITS[precision]
    numbers = f"cosine {cosine:.6f}, at most {difference:.1e} standard deviations apart"
    # Both numbers are NaN if any feature is, and a comparison with NaN is False.
    is_close = cosine >= min_cosine and difference <= max_difference
    if not is_close:
        raise EnvironmentFault(f"OpenVINO does not agree with Keras: {numbers}")
    return f"agrees with it at float32: {numbers}"


def seconds_per_image(engine: Engine, sample: Pixels) -> float:
    """Return the time per image: the better of two tries, after a first one that compiles everything."""
    images = np.resize(sample, (max(engine.batch, BATCH), *sample.shape[1:]))
    engine.forward(images)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        engine.forward(images)
        times.append(time.perf_counter() - started)
    return min(times) / len(images)


def _grown(engine: KerasEngine, sample: Pixels, num_images: int, is_cpu: bool) -> KerasEngine:
    """Double the batch while the time per image falls: on a GPU, and for tiny images, where the calls cost most."""
    if num_images < WORTH_GROWING or (sample.shape[1] > SMALL_SIZE and is_cpu):
        return engine
    best_s = seconds_per_image(engine, sample)
    while engine.batch < min(MAX_BATCH, num_images // 4):
        doubled = engine.batch * 2
        engine.batch = doubled
        doubled_s = seconds_per_image(engine, sample)
        if engine.batch < doubled:  # out of memory: the engine has halved its batch
            break
        if doubled_s > best_s * (1 - CHEAPER):
            engine.batch //= 2
            break
        best_s = doubled_s
    return engine


def provenance(engine: Engine, source: str | None) -> str:
    """Return what made the rows as JSON: engine, versions, and the source of the loaded weights."""
    return canonical_json(
        {
            "engine": engine.name,
            "featcache": version("featcache"),
            "numpy": version("numpy"),
            "pillow": version("pillow"),
            "weights_source": source,
        }
    )


def with_role(provenance_json: str, role: Role) -> str:
    """Return the provenance of rows whose images had this role when the backbone itself was trained."""
    return canonical_json({**json.loads(provenance_json), IMAGE_ROLE: role})


def weights_source_of(provenance_json: str) -> str | None:
    """Return the source of the weights from the JSON of `provenance`."""
    source = json.loads(provenance_json).get("weights_source")
    return None if source is None else str(source)
