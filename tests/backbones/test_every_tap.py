"""What `--tap auto` reads, in a network of each family: what the next block takes. And what reduced precision does."""

import gc
import re
from collections import deque
from itertools import groupby

import keras
import numpy as np
import pytest

from featcache.backbones.blocks import block_names
from featcache.backbones.build import build
from featcache.backbones.parse import requests
from featcache.backbones.registry import REGISTRY, get
from featcache.extraction.engines import KerasEngine
from featcache.spec import BackboneSpec

pytestmark = pytest.mark.slow
ENTRIES = [entry for entry in REGISTRY.values() if entry.constructor]
ONE_OF_EACH = [
    min(group, key=lambda entry: entry.params)
    for group in ([*entries] for _, entries in groupby(ENTRIES, key=lambda entry: entry.module))
]
NAME = {
    "mobilenet": r"conv_pw_\d+_relu",
    "mobilenet_v2": r"(expanded_conv|block_\d+)_(project_BN|add)",
    "mobilenet_v3": r"expanded_conv(_\d+)?_(project_bn|project/bn|add)",
    "efficientnet": r"block\d[a-z]_(project_bn|add)",
    "efficientnet_v2": r"block\d[a-z]_(project_bn|project_activation|add)",
    "convnext": r"add(_\d+)?|convnext_\w+_downsampling_block_\d",
    "resnet": r"conv\d_block\d+_out",
    "resnet_v2": r"conv\d_block\d+_out",
    "densenet": r"conv\d_block\d+_concat|pool\d_pool",
    "inception_v3": r"mixed\d+",
    "inception_resnet_v2": r"mixed_\d[ab]|block\d+_\d+_ac",
    "xception": r"add(_\d+)?|block\d+_(sepconv\d_act|sepconv\d_bn|conv\d_act)",
    "nasnet": r"(normal|reduction)_concat_\w+",
    "vgg16": r"block\d_pool",
    "vgg19": r"block\d_pool",
}


@pytest.fixture(autouse=True)
def _forget():
    yield
    keras.backend.clear_session()
    gc.collect()


def takers(network):
    """Return {operation: those that take what it gives}, from the configuration of the network."""
    found = {one["name"]: set() for one in network.get_config()["layers"]}

    def parents(value):
        if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
        elif isinstance(value, (dict, list, tuple)):
            for one in value.values() if isinstance(value, dict) else value:
                yield from parents(one)

    for one in network.get_config()["layers"]:
        for parent in parents(one["inbound_nodes"]):
            found[parent].add(one["name"])
    return found


def reached(graph, start, without=None):
    seen, todo = set(), deque([start])
    while todo:
        name = todo.popleft()
        if name not in seen and name != without:
            seen.add(name)
            todo.extend(graph[name])
    return seen


@pytest.mark.parametrize("entry", ONE_OF_EACH, ids=lambda entry: entry.name)
def test_auto_reads_what_the_next_block_takes(entry):
    [request] = requests(entry.name, tap="auto", weights="none", size=entry.min_size)
    backbone = build(request.spec, entry.min_size, "avg")
    network, proposed = backbone.network, backbone.auto_layers()
    names = [one.name for one in network.operations]
    block_of = dict(zip(names, block_names(names), strict=True))
    order = list(dict.fromkeys(block_of.values()))
    assert [block_of[name] for name in proposed[:-1]] == order[1:-1]  # early to late, without stem and last
    assert all(re.fullmatch(NAME[entry.module], name) for name in proposed[:-1])
    graph, weighted = takers(network), {one.name for one in network.layers if one.weights}
    first, last = names[0], network.output._keras_history.operation.name
    for name in proposed[:-1]:
        own = [one for one in names if block_of[one] == block_of[name] and one in weighted and one != name]
        assert not reached(graph, name) & set(own)
        assert not any(last in reached(graph, one, without=name) for one in own)
        if entry.module != "nasnet":  # whose cells take the last two
            assert last not in reached(graph, first, without=name)
        assert len(backbone.cut(name).outputs) == 1
        assert len(backbone.cut(name).output.shape) == 4
    pixels = np.random.default_rng(0).integers(0, 256, (2, entry.min_size, entry.min_size, 3), np.uint8)
    features = KerasEngine(backbone, request.taps("w", layers=proposed), 2).forward(pixels)
    assert [one.shape for one in features] == [(2, backbone.cut(name).output.shape[-1]) for name in proposed]
    assert all(np.isfinite(one).all() for one in features)


@pytest.mark.parametrize("entry", ONE_OF_EACH, ids=lambda entry: entry.name)
def test_reduced_precision_keeps_the_weights_and_nearly_the_features(entry):
    spec, size = BackboneSpec(entry.name, weights="none"), entry.min_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    digests, found = [], []
    for precision in ("float32", "bfloat16"):
        [request] = requests(entry.name, weights="none", size=size, precision=precision)
        backbone = build(spec, size, "avg", precision)
        engine = KerasEngine(backbone, request.taps("w"), 2)
        assert engine._model.outputs[0].dtype == "float32"
        digests.append(backbone.weights_digest)
        found.append(engine.forward(pixels)[0])
    assert digests[0] == digests[1]
    exact, reduced = found
    assert reduced.dtype == np.float32
    assert not np.array_equal(exact, reduced)
    cosines = (exact * reduced).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(reduced, axis=1)
    assert cosines.min() > 0.95


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 139), ("nasnet_mobile", 47), ("mobilenet_v2", 33)])
def test_at_odd_sizes_features_are_those_of_the_constructor_and_predict(name, size):
    entry = get(name)
    [request] = requests(f"{name}:weights=none:size={size}")
    backbone = build(request.spec, size, "avg")
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    [features] = KerasEngine(backbone, request.taps("w"), 2).forward(pixels)
    reference = getattr(keras.applications, entry.constructor)(
        include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg"
    )
    reference.set_weights(backbone.network.get_weights())
    ready = getattr(keras.applications, entry.module).preprocess_input(pixels.astype(np.float32))
    expected = reference.predict(ready, verbose=0)
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()
