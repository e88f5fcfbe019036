"""What a sweep takes against what a user would write: ratios, and how far the scores are apart.

    python benchmarks/bench_sweep.py --cache photos.h5
    python benchmarks/bench_sweep.py --cache photos.h5 --case ridge
    python benchmarks/bench_sweep.py --made-up 6000 --case ridge     # features around ten centres, as in "memory"
    python benchmarks/bench_sweep.py --case memory

Against GridSearchCV both choose by the same five folds within train, from features that are in memory or in the page
cache, and fit the best setting (ours: every setting) on all of train. "ridge-loo" leaves every image out once, against
the same five folds. "dense" is 100 softmax heads against as many times keras.Sequential.fit, of which --fits are timed,
both judged on the validation split. "memory" is a sweep over 100,000 x 1,280 float16 features. Interleaved, medians of
--repeats. Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peak
from bench_cache import FACTS, TAP
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import featcache as fc
from featcache.cache import parts
from featcache.spec import ImageRow

FOLDS = 5
STRENGTHS = [float(f"{value:.12g}") for value in np.geomspace(1e-6, 1e5, 45)]
MACHINES = {"C": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0], "gamma": [1e-4, "scale", 1e-3]}
CASES: dict[str, tuple[str, Any, dict[str, list[Any]]]] = {
    "logreg": ("logreg", LogisticRegression(max_iter=1000), {"C": STRENGTHS}),
    "svm": ("svm", LinearSVC(dual=False, max_iter=5000), {"C": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]}),
    "ridge": ("ridge", RidgeClassifier(), {"alpha": STRENGTHS}),
    "ridge-loo": ("ridge", RidgeClassifier(), {"alpha": STRENGTHS}),
    "rbf": ("rbf", SVC(), MACHINES),
    "knn": ("knn", KNeighborsClassifier(), {"n_neighbors": [*range(1, 40, 2)], "metric": ["cosine", "euclidean"]}),
}
# The least number of multiplications for N images, D features, K classes and A settings
LEAST: dict[str, Any] = {
    "logreg": lambda N, D, K, A: peak.of_linear(N, D, K, FOLDS, A),
    "svm": lambda N, D, K, A: peak.of_linear(N, D, K, FOLDS, A),
    "ridge": lambda N, D, K, A: peak.of_ridge(N, D, K, FOLDS, A),
    "ridge-loo": peak.of_ridge_leave_one_out,
    "rbf": lambda N, D, K, A: peak.of_distances(N, D, FOLDS, fitted_together=True),  # without libsvm's iterations
    "knn": lambda N, D, K, A: peak.of_distances(N, D, FOLDS, fitted_together=False),
}
DTYPES = {
    "logreg": "float32",
    "svm": "float32",
    "ridge": "float64",
    "ridge-loo": "float64",
    "rbf": "float64",
    "knn": "float32",
}
OTHERS = ("dense", "memory")
EPOCHS = 20
RATES, DECAYS = [float(f"{rate:.4g}") for rate in np.geomspace(1e-4, 1e-2, 20)], [0.0, 1e-4, 1e-3, 1e-2, 1e-1]
MANY, WIDTH = 100_000, 1280


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--made-up", type=int, metavar="N", help="so many images in place of those of --cache")
    parser.add_argument("--case", action="append", choices=[*CASES, *OTHERS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fits", type=int, default=10, help="of 100 Keras fits, how many are timed")
    parser.add_argument("--sweep-once", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.sweep_once:
        return peak_of_a_sweep(Path(asked.sweep_once[0]), float(asked.sweep_once[1]))
    with tempfile.TemporaryDirectory() as folder:
        if asked.made_up:
            asked.cache = Path(folder) / "c.h5"
            write_cache(asked.cache, asked.made_up)
        for name in asked.case or [*CASES, *OTHERS]:
            if name == "memory":
                memory()
                continue
            if asked.cache is None:
                parser.error(f"--case {name} needs --cache or --made-up")
            (dense if name == "dense" else against_search)(name, fc.Cache.open(asked.cache), asked)
    return None


def against_search(name: str, cache: fc.Cache, asked: Any) -> None:
    """Measure a sweep against GridSearchCV."""
    X, y = cache.arrays("train")
    ours, theirs, cpu_s, their_cpu_s = list[float](), list[float](), list[float](), list[float]()
    for _ in range(asked.repeats):
        began = peak.cpu_time()
        searched = timed(theirs, lambda: search(name, X, y, asked.jobs))
        their_cpu_s.append(peak.cpu_time() - began)
        with tempfile.TemporaryDirectory() as folder:
            began = peak.cpu_time()
            run = timed(ours, lambda folder=folder: sweep(name, cache, folder, asked.jobs))
            cpu_s.append(peak.cpu_time() - began)
    apart = np.abs(np.subtract(sorted(pooled(searched, y)), sorted(scores(run))))
    best = max(pooled(searched, y)), max(scores(run))
    print(
        f"{name:9} {len(X)} x {X.shape[1]}, {len(run.trials)} settings: {ratio(theirs, ours)} times as fast as "
        f"GridSearchCV ({statistics.median(ours):.2f} s; {statistics.median(theirs):.2f} s), "
        f"{ratio(their_cpu_s, cpu_s)} by CPU time ({statistics.median(their_cpu_s):.1f} s)  "
        f"scores {apart.mean():.4f} apart, at most {apart.max():.4f}; best {best[1]:.4f}, theirs {best[0]:.4f}",
        flush=True,
    )
    if name in LEAST:
        multiplications = LEAST[name](*X.shape, len(np.unique(y)), len(run.trials))
        print(f"{'':9} {peak.share_of_peak(multiplications, DTYPES[name], statistics.median(cpu_s))}", flush=True)


def dense(name: str, cache: fc.Cache, asked: Any) -> None:
    """Measure 100 softmax heads against a loop over Keras models."""
    import keras

    (X, y), (others, truth) = cache.arrays("train"), cache.arrays("val")
    scaler = StandardScaler().fit(X)
    X, others = scaler.transform(X), scaler.transform(others)
    settings = [*itertools.product(RATES, DECAYS)]
    some = settings[:: max(1, len(settings) // asked.fits)][: asked.fits]
    steps = EPOCHS * (len(X) // 64)
    ours, theirs, cpu_s = list[float](), list[float](), list[float]()

    def fit_all() -> list[float]:
        return [fit_keras(keras, X, y, others, truth, steps, *one) for one in some]

    for _ in range(asked.repeats):
        found = timed(theirs, fit_all)
        with tempfile.TemporaryDirectory() as folder:
            grid = {"softmax": {"learning_rate": RATES, "weight_decay": DECAYS, "epochs": [EPOCHS]}}
            began = peak.cpu_time()
            run = timed(
                ours,
                lambda folder=folder, grid=grid: fc.sweep(
                    cache, ["softmax"], grid=grid, jobs=asked.jobs, out=Path(folder) / "run"
                ),
            )
            cpu_s.append(peak.cpu_time() - began)
    of = {(one.params["learning_rate"], one.params["weight_decay"]): one.score for one in run.trials}
    apart = np.subtract([of[one] for one in some], found)
    theirs = [one * len(settings) / len(some) for one in theirs]
    print(
        f"{name:9} {len(X)} x {X.shape[1]}, {len(settings)} heads: {ratio(theirs, ours)} times as fast as Keras one by "
        f"one ({statistics.median(ours):.2f} s; {statistics.median(theirs):.0f} s, from {len(some)} fits)  accuracy "
        f"{apart.mean():+.4f} on average, {apart.min():+.4f} to {apart.max():+.4f}",
        flush=True,
    )
    multiplications = peak.of_dense(X.shape[1], int(y.max()) + 1, len(settings), steps, 64)
    print(f"{'':9} {peak.share_of_peak(multiplications, 'float32', statistics.median(cpu_s))}", flush=True)


def fit_keras(keras: Any, X: Any, y: Any, others: Any, truth: Any, steps: int, rate: float, decay: float) -> float:
    """Return the accuracy of one head that Keras trains, as its guides write it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((X.shape[1],)), keras.layers.Dense(int(y.max()) + 1)])
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, y, batch_size=64, epochs=EPOCHS, verbose=0)
    return float((model.predict(others, verbose=0).argmax(axis=1) == truth).mean())


def memory() -> None:
    """Measure the memory of a sweep over many images, with features in memory and streamed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.h5"
        write_cache(path, MANY)
        for limit in (MANY * WIDTH * 4 * 2.0, MANY * WIDTH):
            command = [sys.executable, __file__, "--sweep-once", str(path), str(limit)]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="", flush=True)


def write_cache(path: Path, num_images: int) -> None:
    """Write a cache of features around ten centres; the last tenth of the images is for validation."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 0.1, (10, WIDTH))
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(num_images)]
    rows = [
        ImageRow(f"{at % 10}/{at:08d}", str(at % 10), "", "train" if at < num_images * 0.9 else "val", one)
        for at, one in enumerate(digests)
    ]
    tap = replace(TAP, dtype="float16")
    for start in range(0, num_images, 4000):
        labels = np.arange(start, min(start + 4000, num_images)) % 10
        X = (centres[labels] + rng.normal(0, 1, (len(labels), WIDTH))).astype(np.float16)
        parts.commit(path, [tap], digests[start : start + 4000], [X], "{}")
    parts.merge(path, rows, {}, FACTS)


def peak_of_a_sweep(path: Path, limit: float) -> None:
    """Print the peak of what a process has of its own while it sweeps."""
    import sklearn.linear_model

    peak = [anonymous()] * 2
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[1] = max(peak[1], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    run = fc.sweep(path, "ridge,lda,softmax", memory=limit, jobs=2, out=path.with_name(f"run-{limit:g}"))
    done.set()
    thread.join()
    array = MANY * WIDTH * 4
    print(
        f"memory    {MANY} x {WIDTH} float16, {'in memory' if array < limit else 'streamed '}: "
        f"{(peak[1] - peak[0]) / array:.2f} times the float32 array ({len(run.ranked)} heads, "
        f"best {run.best.trial.score:.3f}, {time.perf_counter() - began:.0f} s; {sklearn.__name__} "
        f"imported before: {peak[0] / 2**20:.0f} MiB)"
    )


def anonymous() -> int:
    """Return the bytes of memory that this process has for itself: pages of files can be taken from it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def ratio(theirs: list[float], ours: list[float]) -> str:
    """Return how many times as fast we are."""
    return f"{statistics.median(theirs) / statistics.median(ours):.1f}"


def search(name: str, X: Any, y: Any, jobs: int) -> GridSearchCV:
    """Return the search that scikit-learn's guide writes."""
    _, classifier, grid = CASES[name]
    pipeline = Pipeline([("scale", StandardScaler()), ("head", classifier)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    values = {f"head__{parameter}": values for parameter, values in grid.items()}
    return GridSearchCV(pipeline, values, cv=folds, n_jobs=jobs).fit(X, y)


def sweep(name: str, cache: fc.Cache, folder: str, jobs: int) -> fc.Run:
    """Return our run of the same settings."""
    head, _, grid = CASES[name]
    cv = "loo" if name.endswith("-loo") else FOLDS
    return fc.sweep(cache, [head], grid={head: grid}, cv=cv, jobs=jobs, out=Path(folder) / "run")


def pooled(searched: GridSearchCV, y: Any) -> list[float]:
    """Return the share of images that each setting has right, over all folds."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    sizes = [len(test) for _, test in folds.split(y, y)]
    by_fold = [searched.cv_results_[f"split{number}_test_score"] for number in range(FOLDS)]
    return list(np.average(by_fold, axis=0, weights=sizes))


def scores(run: fc.Run) -> list[float]:
    """Return the score of each setting."""
    return [trial.score for trial in run.trials]


def timed(seconds: list[float], call: Any) -> Any:
    """Return what a call returns, and note how long it took."""
    started = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - started)
    return result


if __name__ == "__main__":
    main()
