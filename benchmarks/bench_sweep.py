"""What a sweep takes against GridSearchCV as a user writes it: ratios, and how far the scores are apart.

    python benchmarks/bench_sweep.py --cache photos.h5
    python benchmarks/bench_sweep.py --cache photos.h5 --case ridge

Both choose by the same five folds within train, from features that are in memory or in the page cache, and fit the best
setting (ours: every setting) on all of train. Interleaved, medians of --repeats. Machines are shared and noisy: read
the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import featcache as fc

FOLDS = 5
STRENGTHS = [float(f"{value:.12g}") for value in np.geomspace(1e-6, 1e5, 45)]
CASES: dict[str, tuple[Any, dict[str, list[Any]]]] = {
    "ridge": (RidgeClassifier(), {"alpha": STRENGTHS}),
    "knn": (KNeighborsClassifier(), {"n_neighbors": [*range(1, 40, 2)], "metric": ["cosine", "euclidean"]}),
    "logreg": (LogisticRegression(max_iter=1000), {"C": STRENGTHS}),
}


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    cache = fc.Cache.open(asked.cache)
    X, y = cache.arrays("train")
    print(f"{len(X)} x {X.shape[1]}, {len(cache.classes)} classes, {FOLDS} folds, {asked.jobs} jobs")
    for name in asked.case or CASES:
        ours, theirs = list[float](), list[float]()
        for _ in range(asked.repeats):
            searched = timed(theirs, lambda name=name: search(name, X, y, asked.jobs))
            with tempfile.TemporaryDirectory() as folder:
                run = timed(ours, lambda name=name, folder=folder: sweep(name, cache, folder, asked.jobs))
        slow, fast = statistics.median(theirs), statistics.median(ours)
        apart = max(abs(a - b) for a, b in zip(sorted(pooled(searched, y)), sorted(scores(run)), strict=True))
        print(
            f"{name:8} {len(run.trials):3} settings  {slow / fast:5.1f} times as fast as GridSearchCV"
            f" ({fast:.2f} s; {slow:.2f} s)  scores at most {apart:.4f} apart",
            flush=True,
        )


def search(name: str, X: Any, y: Any, jobs: int) -> GridSearchCV:
    """Return the search that scikit-learn's guide writes."""
    classifier, grid = CASES[name]
    pipeline = Pipeline([("scale", StandardScaler()), ("head", classifier)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    values = {f"head__{parameter}": values for parameter, values in grid.items()}
    return GridSearchCV(pipeline, values, cv=folds, n_jobs=jobs).fit(X, y)


def sweep(name: str, cache: fc.Cache, folder: str, jobs: int) -> fc.Run:
    """Return our run of the same settings."""
    return fc.sweep(cache, [name], grid={name: CASES[name][1]}, cv=FOLDS, jobs=jobs, out=Path(folder) / "run")


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
