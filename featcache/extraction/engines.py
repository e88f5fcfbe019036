"""Engines compute features: from (N, size, size, 3) uint8 pixels to one (N, D) float32 array per tap.

Keras is the reference. RIVALS are the engines that may compute in its place, where they are faster and agree with it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import numpy as np

from featcache import home
from featcache.arrays import Features, Pixels
from featcache.backbones.build import Backbone, copied, feature_model
from featcache.backbones.devices import USUAL, devices, is_surely_cpu, on_cpu, on_device
from featcache.backbones.lineage import IMAGE_ROLE, Role
from featcache.backend import keras_backend
from featcache.errors import EnvironmentFault
from featcache.extraction import kept_networks
from featcache.extraction.agreement import agree
from featcache.extraction.batches import Batched
from featcache.extraction.openvino_engine import OpenVINOEngine, convert, is_installed
from featcache.spec import IDENTITY, Precision, Tap, canonical_json

BATCH = 32  # on CPUs larger batches are not faster, for networks of photographs
OPENVINO_BATCH = 4  # the feature maps of a few images stay in the CPU's cache: 1.25 times as fast as 32
MAX_BATCH = 1024
SMALL_SIZE = 64  # pixels
CHEAPER = 0.15  # share of the time per image that a doubled batch must save
FASTER = 1.1  # times as fast as Keras, for a rival to be chosen
WORTH_GROWING = 2000  # images
WORTH_TIMING = 4 * BATCH  # images
WORTH_TRYING_S = 20.0  # of Keras; converting a network and timing a rival takes about ten
WORTH_KEEPING_S = 2.0  # of Keras, where the network is kept: the next process starts without Keras


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
        flat = batch.reshape(len(batch), -1)
        return [(flat * np.float32(1 / 255)).astype(np.float32)]


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
        # Keras gives a list only for several outputs.
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
        # A batch of fewer images than devices gives empty shares, always at the end.
        shares = [share for share in np.array_split(batch, len(self._engines)) if len(share)]
        outputs = self._threads.map(lambda engine, share: engine.forward(share), self._engines, shares)
        return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]


class Rival(NamedTuple):
    """An engine that may compute in place of Keras, on the CPU."""

    title: str  # as messages write it
    batch: int  # images at once, unless the user says how many
    is_installed: Callable[[], bool]
    # Returns the engine for a float32 backbone, its taps, a batch and a precision. Raises EnvironmentFault.
    build: Callable[[Backbone, Sequence[Tap], int, Precision], Engine]
    # Returns the engine of an earlier process for these taps and a batch; None if it kept none.
    load: Callable[[Sequence[Tap], int], Engine | None] = lambda taps, batch: None
    # Keeps an engine for later processes. It receives the taps, Keras at float32, and where to report trouble.
    keep: Callable[[Engine, Sequence[Tap], KerasEngine, Callable[[str], None]], None] = lambda *arguments: None


def _openvino(backbone: Backbone, taps: Sequence[Tap], batch: int, precision: Precision) -> Engine:
    return OpenVINOEngine(convert(feature_model(backbone, list(taps))), batch, precision)


def _kept_openvino(taps: Sequence[Tap], batch: int) -> Engine | None:
    kept = kept_networks.load(identity_of(taps), taps[0].preprocess.size, taps[0].precision, batch)
    return None if kept is None else kept.engine


def _keep_openvino(engine: Engine, taps: Sequence[Tap], exact: KerasEngine, say: Callable[[str], None]) -> None:
    assert isinstance(engine, OpenVINOEngine)
    if home.can_keep(say):
        try:
            proof = kept_networks.prove(engine, taps[0].preprocess.size, exact.forward)
        except EnvironmentFault as error:
            say(f"{home.NOT_KEPT}: {error} on made images")
        else:
            kept_networks.keep(identity_of(taps), engine, proof, {}, say)


def identity_of(taps: Sequence[Tap]) -> dict[str, Any]:
    """Return what tells the network of these taps from every other. Views and the stored type do not change it."""
    plain = [replace(tap, view=IDENTITY, dtype="float32") for tap in taps]
    return {"taps": [tap.fingerprint for tap in plain]}


RIVALS = {
    "openvino": Rival("OpenVINO", OPENVINO_BATCH, is_installed, _openvino, _kept_openvino, _keep_openvino),
}


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
    a rival of Keras if it is installed, faster, and agrees with Keras at float32; a rival that is named must agree too.
    A rival that won in an earlier process was kept, and starts without Keras.
    num_images: how many images will come; trying engines takes seconds, which is not worth it for a few.
    Raises EnvironmentFault if the requested engine or device is missing or does not agree.
    """
    if engine != "keras" and is_surely_cpu(device):
        kept = _kept(engine, taps, batch)
        if kept is not None:
            return kept
    contest = _Contest(build_at, taps, sample, devices(device), batch, num_images, say)
    if engine == "keras" or (engine == "auto" and not contest.can_pay()):
        return contest.keras()
    backbone = build_at("float32")
    # Rivals must agree with Keras at float32, whatever the precision of the taps: that is the reference.
    exact = KerasEngine(backbone, taps, batch or BATCH, contest.devices[0])
    # A rival that the user names is not timed, but it must agree, too.
    if engine != "auto":
        rival_engine, _ = contest.started(RIVALS[engine], backbone, exact)
        if not backbone.has_code:
            RIVALS[engine].keep(rival_engine, taps, exact, say)
        return rival_engine
    keras_s = seconds_per_image(exact, sample)
    # Random weights are a control, which hardly anybody extracts again.
    is_random = taps[0].backbone.weights == "none"
    is_kept = not is_random and not backbone.has_code and home.can_keep(lambda reason: None)
    if keras_s * num_images < (WORTH_KEEPING_S if is_kept else WORTH_TRYING_S):
        return contest.keras(exact)
    return contest.fastest(backbone, exact, keras_s)


@dataclass(frozen=True)
class _Contest:
    """Keras against its rivals, on a few of the images."""

    build_at: Callable[[Precision], Backbone]
    taps: Sequence[Tap]
    sample: Pixels
    devices: Sequence[str]
    batch: int | None  # as the user gave it
    num_images: int
    say: Callable[[str], None]

    @property
    def precision(self) -> Precision:
        """The precision of the taps."""
        return self.taps[0].precision

    def can_pay(self) -> bool:
        """Return whether there are rivals, and images enough to try them."""
        is_any_installed = any(rival.is_installed() for rival in RIVALS.values())
        return self.num_images >= WORTH_TIMING and is_any_installed and on_cpu(self.devices)

    def keras(self, exact: KerasEngine | None = None) -> Engine:
        """Return Keras at the precision of the taps on all devices; `exact` is Keras at float32, if it was built."""
        if exact is not None and self.precision == "float32":
            first = exact
        else:
            backbone = self.build_at(self.precision)
            first = KerasEngine(backbone, self.taps, self.batch or BATCH, self.devices[0])
        # Grow the batch before the engine is copied to the other devices, so that they start with the same.
        if self.batch is None:
            first = _grown(first, self.sample, self.num_images, on_cpu(self.devices))
        return first if len(self.devices) == 1 else SeveralDevices(first, self.devices)

    def started(self, rival: Rival, backbone: Backbone, exact: KerasEngine) -> tuple[Engine, str]:
        """Return a rival at work, and how far it agrees with Keras. Raises EnvironmentFault if it does not."""
        engine = rival.build(backbone, self.taps, self.batch or rival.batch, self.precision)
        reference = exact.forward(self.sample)
        features = engine.forward(self.sample)
        return engine, agree(reference, features, self.precision, rival.title)

    def fastest(self, backbone: Backbone, exact: KerasEngine, keras_s: float) -> Engine:
        """Return the fastest engine that agrees with Keras. keras_s: seconds per image of `exact`."""
        agreeing: list[tuple[Rival, Engine, str]] = []
        for rival in RIVALS.values():
            if rival.is_installed():
                try:
                    engine, agreement = self.started(rival, backbone, exact)
                except EnvironmentFault as error:
                    self.say(f"{error}. Computing with Keras")
                else:
                    agreeing.append((rival, engine, agreement))
        keras = self.keras(exact)
        if not agreeing:
            return keras
        if keras is not exact:
            # At reduced precision or on several devices, Keras takes another time than `exact`.
            keras_s = seconds_per_image(keras, self.sample)
        best = keras
        best_gain = FASTER
        winner: Rival | None = None
        for rival, engine, agreement in agreeing:
            gain = keras_s / seconds_per_image(engine, self.sample)
            self.say(f"{rival.title} is {gain:.1f} times as fast as Keras on these images and {agreement}")
            if gain >= best_gain:
                best = engine
                best_gain = gain
                winner = rival
        if winner is not None and not backbone.has_code:
            winner.keep(best, self.taps, exact, self.say)
        return best


def _kept(name: str, taps: Sequence[Tap], batch: int | None) -> Engine | None:
    """Return the engine of this name, or for "auto" any, that an earlier process kept for these taps."""
    for rival_name, rival in RIVALS.items():
        if name in ("auto", rival_name) and rival.is_installed():
            engine = rival.load(taps, batch or rival.batch)
            if engine is not None:
                return engine
    return None


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
