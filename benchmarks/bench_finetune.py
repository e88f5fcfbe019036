"""What fine-tuning takes against what a user would write with Keras: ratios, and what the models are worth.

    python benchmarks/bench_finetune.py flowers17/ --backbone mobilenet_v2
    python benchmarks/bench_finetune.py flowers17/ --case block
    python benchmarks/bench_finetune.py flowers17/ --case accuracy --seeds 3

"head": one epoch of a softmax layer through the frozen backbone, as tutorials do it, against one on the cache.
"block": fine-tuning the last block with what is frozen computed once, against keras fit of the whole model with the
same layers frozen; beside it the ratio of their multiplications. "all": every layer trains, against keras fit. Both
sides take decoded images from memory in the same batches, and judge the validation images after every epoch.
"accuracy": on test, of the best head, of fine-tuning from it, and of Keras' guide to transfer learning (random head on
the frozen backbone, then all layers at a low rate) in the same time. Interleaved, medians of --repeats; the first
epoch, which compiles, is left out. Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import featcache as fc
from featcache.backbones.noise import all_layers
from featcache.extras.report.final import head_score, model_score
from featcache.heads.softmax import DenseSoftmax
from featcache.images.sources import open_source
from featcache.models import Probe
from featcache.models.assemble import backbones_of, logits_of
from featcache.models.certificate import load_pixels
from featcache.sweeps import Chosen
from featcache.tuning.stages import unfreeze

BATCH, CACHED_EPOCHS = 32, 100
CASES = ("head", "block", "all", "accuracy")


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of class folders")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--case", choices=CASES, action="append", help="default: the first three")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each repeat, the first left out")
    parser.add_argument("--seeds", type=int, default=3, help="of accuracy")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = fc.extract(asked.images, asked.backbone, out=Path(folder) / "c.h5")
        chosen = fc.sweep(cache, "logreg", out=Path(folder) / "run").best
        for case in asked.case or CASES[:3]:
            {"head": head, "block": block, "all": everything, "accuracy": accuracy}[case](chosen, asked)


def head(chosen: Chosen, asked: argparse.Namespace) -> None:
    """One epoch of a head, through the backbone and on the cache."""
    X, y = chosen.run.cache().arrays("train", chosen.trial.tap)
    train, _ = arrays(chosen)

    def cached() -> float:
        began = time.perf_counter()
        DenseSoftmax(epochs=CACHED_EPOCHS, batch_size=BATCH).fit(X, y)
        steps = max(300, CACHED_EPOCHS * (len(X) // BATCH))  # it takes 300 at least
        return (time.perf_counter() - began) / steps * (len(X) // BATCH)

    def through() -> float:
        model = whole(chosen, "none")
        return epoch_of_fit(model, train, None, 2)

    ours, theirs = interleaved(cached, through, asked.repeats)
    said("head, one epoch: through the backbone / on the cache", theirs / ours, f"{theirs:.2f} s, {1e3 * ours:.2f} ms")


def block(chosen: Chosen, asked: argparse.Namespace) -> None:
    """The last block, with what is frozen computed once and not."""
    train, val = arrays(chosen)
    ours, theirs = interleaved(
        lambda: epoch_of_ours(chosen, "last", asked.epochs),
        lambda: epoch_of_fit(whole(chosen, "last"), train, val, asked.epochs),
        asked.repeats,
    )
    work = work_ratio(chosen, "last", len(train[0]), len(val[0]))
    note = f"{theirs:.2f} s, {ours:.2f} s an epoch; work {work:.2f}, share of it {theirs / ours / work:.2f}"
    said("last block: keras fit / frozen part computed once", theirs / ours, note)


def everything(chosen: Chosen, asked: argparse.Namespace) -> None:
    """All layers."""
    train, val = arrays(chosen)
    ours, theirs = interleaved(
        lambda: epoch_of_ours(chosen, "all", asked.epochs),
        lambda: epoch_of_fit(whole(chosen, "all"), train, val, asked.epochs),
        asked.repeats,
    )
    said("all layers: keras fit / featcache", theirs / ours, f"{theirs:.2f} s, {ours:.2f} s an epoch")


def accuracy(chosen: Chosen, asked: argparse.Namespace) -> None:
    """What each way is worth on the test split, or on validation where there is none."""
    judge = "test" if chosen.run.cache().splits.get("test") else "val"
    rows: dict[str, list[float]] = {"head": [], "fine-tuned": [], "keras guide, equal time": []}
    intervals: dict[str, Any] = {}
    for seed in range(asked.seeds):
        run = fc.sweep(chosen.run.cache(), "logreg,ridge,svm,mlp:512", seed=seed, out=Path(tempfile.mkdtemp()) / "run")
        best = run.best_handoff
        began = time.perf_counter()
        how = {"augment": "light", "views": 4, "learning_rate": 2e-4, "head_lr": 1e-3, "lr_decay": 0.7}
        tuned = fc.finetune(best, seed=seed, unfreeze="block_14", epochs=12, patience=12, wise_ft=True, **how)
        seconds = time.perf_counter() - began
        guide = keras_guide(best, seconds, seed)
        intervals["head"] = head_score(best, judge)
        intervals["fine-tuned"] = model_score(best, tuned.model, judge)
        intervals["keras guide, equal time"] = model_score(best, guide, judge)
        for name, score in intervals.items():
            rows[name].append(score.value)
        print(
            f"seed {seed}: {seconds:.0f} s, " + ", ".join(f"{name} {one[-1]:.4f}" for name, one in rows.items()),
            flush=True,
        )
    for name, values in rows.items():
        low, high = intervals[name].low, intervals[name].high
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{name}: {judge} {statistics.mean(values):.4f} +- {spread:.4f} over {len(values)} seeds; "
            f"95 % interval of the last [{low:.4f}, {high:.4f}]"
        )


def keras_guide(chosen: Chosen, seconds: float, seed: int) -> Any:
    """Return a model as Keras' guide has it: a random head on the frozen backbone, then everything at 1e-5."""
    import keras

    keras.utils.set_random_seed(seed)
    (X, y), _ = arrays(chosen)
    model = whole(chosen, "none", compiled=False)
    layer = model.get_layer("logits")
    layer.set_weights([keras.initializers.GlorotUniform(seed)(layer.kernel.shape), np.zeros(layer.bias.shape)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    began, phases = time.perf_counter(), ((seconds / 2, 1e-3, "none"), (seconds, 1e-5, "all"))
    for until, rate, what in phases:
        unfreeze(backbones_of(model)[0], what)
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        while time.perf_counter() - began < until:
            model.fit(pipeline(X, y, seed), verbose=0)
    return with_softmax(model)


def with_softmax(logits: Any) -> Any:
    """Return the model with probabilities behind its logits, as an assembled one."""
    import keras

    return keras.Model(logits.input, keras.layers.Softmax(name="probabilities")(logits.output))


def epoch_of_ours(chosen: Chosen, what: str, epochs: int) -> float:
    """Return the median seconds of an epoch, validation included."""
    path = Path(tempfile.mkdtemp()) / "t.keras"
    tuned = fc.finetune(chosen, path, unfreeze=what, epochs=epochs, patience=epochs, batch=BATCH, learning_rate=1e-6)
    return statistics.median(one.seconds for one in tuned.trained[1:])


def epoch_of_fit(model: Any, train: Any, val: Any, epochs: int) -> float:
    """Return the same of keras fit."""
    import keras

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    clock = Clock()
    clock.seconds = []
    judged = None if val is None else pipeline(*val)
    model.fit(pipeline(*train, seed=0), validation_data=judged, epochs=epochs, verbose=0, callbacks=[clock])
    return statistics.median(clock.seconds[1:])


def whole(chosen: Chosen, what: str, compiled: bool = True) -> Any:
    """Return the whole model up to its logits, with the same layers unfrozen."""
    import keras

    model = logits_of(Probe.open(chosen).model())
    unfreeze(backbones_of(model)[0], what)
    if compiled:
        optimizer = keras.optimizers.AdamW(1e-6, weight_decay=1e-4)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def pipeline(pixels: Any, labels: Any, seed: int | None = None) -> Any:
    """Return a tf.data pipeline of decoded images, shuffled if a seed is given."""
    import tensorflow as tf

    found = tf.data.Dataset.from_tensor_slices((pixels, labels))
    found = found if seed is None else found.shuffle(len(labels), seed=seed)
    return found.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def arrays(chosen: Chosen) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return decoded images and labels of train and val."""
    cache = chosen.run.cache()
    source = open_source(cache.root)
    rows = [chosen.run.rows(cache, split) for split in ("train", "val")]
    train, val = ((load_pixels(source, one, chosen.preprocess), cache.labels(one)) for one in rows)
    return train, val


def work_ratio(chosen: Chosen, what: str, num_train: int, num_val: int) -> float:
    """Return how many more multiplications an epoch of the whole takes than one of the part that trains."""
    network = backbones_of(Probe.open(chosen).model())[0]
    unfreeze(network, what)
    work = [(multiplications(layer), bool(layer.trainable_weights)) for layer in all_layers(network)]
    first = next(at for at, (_, trains) in enumerate(work) if trains)
    total, rest = sum(one for one, _ in work), sum(one for one, _ in work[first:])
    return (num_train * (total + 2 * rest) + num_val * total) / (num_train * 3 * rest + num_val * rest)


def multiplications(layer: Any) -> int:
    """Return those of one image in a convolution or dense layer; others hardly count."""
    if not hasattr(layer, "kernel"):
        return 0
    shape = layer.output.shape[1:]
    places = math.prod(shape[:-1]) if len(shape) == 3 else 1
    return places * math.prod(layer.kernel.shape)


def interleaved(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Return the medians of both, taken in turns."""
    found = [(ours(), theirs()) for _ in range(repeats)]
    return statistics.median(one for one, _ in found), statistics.median(other for _, other in found)


def said(name: str, ratio: float, note: str) -> None:
    """Print one line."""
    print(f"{name}: {ratio:.2f} ({note})", flush=True)


if __name__ == "__main__":
    main()
