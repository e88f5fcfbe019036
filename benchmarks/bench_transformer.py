"""A grid search over heads on features of a frozen network: `FeatureExtractor` against a transformer without a cache.

    python benchmarks/bench_transformer.py --images photos/ --backbone mobilenet_v2

Both are the first step of the same pipeline (then StandardScaler and LogisticRegression) in the same GridSearchCV. The
baseline is what one writes without featcache: it loads each image with Keras, as Pillow resizes it, and calls `predict`
of a network that is built once. It computes the features again for each fold and each setting.
The searches run one after the other in one process, and begin with an empty cache. Before, each runs on a few images,
which imports and compiles what it needs. Fitting the heads takes its time in both, so it is measured alone, too: the
same search on features that are there. Medians of --repeats; the scores of both must agree.
Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import featcache as fc
from featcache.backbones.registry import get

GRID = {"logisticregression__C": [0.001, 0.01, 0.1]}
NETWORKS: dict[str, Any] = {}  # clones of a transformer share the network


class KerasFeatures(TransformerMixin, BaseEstimator):
    """Paths -> features, as one writes it without featcache."""

    def __init__(self, backbone: str) -> None:
        self.backbone = backbone

    def fit(self, X: Any, y: Any = None) -> KerasFeatures:
        """Learn nothing."""
        return self

    def transform(self, X: Sequence[str]) -> Any:
        """Return the features (N, D) of the images."""
        entry = get(self.backbone)
        size = (entry.size, entry.size)
        images = [keras.utils.load_img(path, target_size=size, interpolation="bilinear") for path in X]
        pixels = np.stack([keras.utils.img_to_array(image) for image in images])
        if self.backbone not in NETWORKS:
            constructor = getattr(keras.applications, entry.constructor)
            NETWORKS[self.backbone] = constructor(include_top=False, pooling="avg", input_shape=(*size, 3))
        ready = getattr(keras.applications, entry.module).preprocess_input(pixels)
        return NETWORKS[self.backbone].predict(ready, verbose=0)


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--per-class", type=int, default=20, help="images of each class")
    parser.add_argument("--backbone", default="mobilenet_v2", help="a network of keras.applications")
    parser.add_argument("--cv", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    paths: list[str] = []
    few: list[str] = []
    for folder in sorted(path for path in asked.images.iterdir() if path.is_dir()):
        of_class = sorted(map(str, folder.glob("*.*")))[: asked.per_class]
        paths += of_class
        few += of_class[: asked.cv]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEATCACHE_HOME"] = str(Path(folder) / "home")
        measure(asked.backbone, paths, few, asked.cv, asked.repeats, Path(folder))


def measure(backbone: str, paths: Sequence[str], few: Sequence[str], cv: int, repeats: int, folder: Path) -> None:
    """Run both searches in turn."""
    heads: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    searched(KerasFeatures(backbone), few, cv)
    searched(fc.FeatureExtractor(backbone, cache=folder / "few.h5"), few, cv)
    for repeat in range(repeats):
        baseline, seconds_of_baseline = searched(KerasFeatures(backbone), paths, cv)
        extractor = fc.FeatureExtractor(backbone, cache=folder / f"{repeat}.h5")
        search, seconds = searched(extractor, paths, cv)
        differences = np.abs(search.cv_results_["mean_test_score"] - baseline.cv_results_["mean_test_score"])
        labels = [Path(path).parent.name for path in paths]
        _, seconds_of_heads = searched("passthrough", extractor.fit_transform(paths), cv, labels)
        heads.append(seconds_of_heads)
        theirs.append(seconds_of_baseline)
        ours.append(seconds)

    print(f"{backbone}, {len(paths)} images, {len(search.cv_results_['params'])} settings, cv={cv}")
    print(f"scores differ by at most {differences.max():.4f}; the best is {search.best_score_:.3f}")
    for name, column in (("wall time", 0), ("CPU time", 1)):
        slow = statistics.median(times[column] for times in theirs)
        fast = statistics.median(times[column] for times in ours)
        alone = statistics.median(times[column] for times in heads)
        print(f"{name}: without a cache / FeatureExtractor: {slow / fast:.1f} times ({slow:.1f} s / {fast:.1f} s)")
        print(f"  heads alone {alone:.1f} s, so features: {(slow - alone) / (fast - alone):.1f} times")


def searched(
    extractor: Any, X: Any, cv: int, labels: Sequence[str] | None = None
) -> tuple[GridSearchCV, tuple[float, float]]:
    """Return the search, and its wall and CPU seconds. labels: those of the folders if X is a list of paths."""
    if labels is None:
        labels = [Path(path).parent.name for path in X]
    pipeline = Pipeline(
        [
            ("features", extractor),
            ("standardscaler", StandardScaler()),
            ("logisticregression", LogisticRegression(max_iter=1000)),
        ]
    )
    wall, cpu = time.perf_counter(), time.process_time()
    search = GridSearchCV(pipeline, GRID, cv=cv).fit(X, labels)
    return search, (time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    main()
