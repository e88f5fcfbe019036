"""Model + images -> labels with probabilities, one row per file; an unreadable file is a row with its reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.assembly.modelfile import load_model
from featcache.errors import UsageError
from featcache.extraction.pipeline import decoded_batches
from featcache.files import write_whole
from featcache.images.manifest import Images
from featcache.images.sources import Source, holds_images, list_source, open_source
from featcache.spec import Failure, ImageRow, Preprocess, Progress, Tap, Tick, silent
from featcache.sweeps.metrics import Score, wilson

BATCH = 32
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets would run such a cell


@dataclass(frozen=True)
class Prediction:
    """One image: its classes from most to least probable, or why there are none."""

    path: str
    top: tuple[tuple[str, float], ...]  # (class name, probability)
    true: str = ""  # the class that its folder names, if the model knows one of that name
    status: str = "ok"
    reason: str = ""


def predict(
    model: str | Path, images: Images | str | Path, *, top: int = 1, progress: Progress = silent
) -> Iterator[Prediction]:
    """Yield a prediction for every image in `images`, in the order of their paths.

    images: a folder, one image, an archive, a manifest, stored arrays, or a scan of any of them.
    model: a MODEL.keras of featcache. top: how many classes, at most all. Memory does not depend on the number of
    images. Raises NotAModel, NoImages, UsageError.
    """
    network, facts = load_model(Path(model))
    preprocess = Tap.from_json(facts["tap"]).preprocess
    yield from predictions(network, facts["classes"], preprocess, images, top=top, progress=progress)


def predictions(
    network: Any,
    classes: list[str],
    preprocess: Preprocess,
    images: Images | str | Path,
    *,
    top: int = 1,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Yield a prediction for every image by a network from (N, size, size, 3) uint8 to (N, K) probabilities."""
    if top < 1:
        raise UsageError(f"--top takes a number of classes from 1; got {top}")
    source, rows = _listed(images)
    done = 0
    for batch in decoded_batches(source, rows, preprocess, BATCH):
        readable = [one.pixels for one in batch if not isinstance(one.pixels, Failure)]
        probabilities = iter(_probabilities(network, readable))
        for one in batch:
            true = one.row.label if one.row.label in classes else ""
            if isinstance(one.pixels, Failure):
                yield Prediction(one.row.path, (), true, one.pixels.status, one.pixels.reason)
            else:
                yield Prediction(one.row.path, _top(next(probabilities), classes, top), true)
        done += len(batch)
        progress(Tick("predict", done, len(rows)))


def judge(predictions: list[Prediction]) -> Score | None:
    """Return the accuracy on the images whose folders name their class, or None if there are none."""
    known = [one for one in predictions if one.top and one.true]
    return wilson(sum(one.top[0][0] == one.true for one in known), len(known)) if known else None


def write_csv(path: Path, predictions: list[Prediction]) -> None:
    """Write one line per image: path, predicted class and probability (and the next), true class, status, reason."""
    top = max([len(one.top) for one in predictions] + [1])
    names = [f"{name}{at if at > 1 else ''}" for at in range(1, top + 1) for name in ("predicted", "probability")]
    lines = [["path", *names, "true", "status", "reason"]]
    for one in predictions:
        cells: list[str] = []
        for label, probability in one.top:
            cells += [_cell(label), f"{probability:.6f}"]
        cells += [""] * (2 * top - len(cells))
        lines.append([_cell(one.path), *cells, _cell(one.true), one.status, _cell(one.reason)])
    bare = any("\r" in cell for line in lines for cell in line)  # before Python 3.13 csv does not quote it by itself
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerows(lines)
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _listed(images: Images | str | Path) -> tuple[Source, list[ImageRow]]:
    if isinstance(images, Images):
        unread = [one.path for one in images.unreadable if not one.digest]
        return images.source, sorted([*images.rows, *map(_unlabelled, [*images.stray, *unread])])
    path = Path(images)
    if path.is_file() and not holds_images(path):
        return open_source(path.parent), [_unlabelled(path.name)]
    source, listing = list_source(path)
    rows = [ImageRow(file.path, file.label, "", "", "") for file in listing.files]
    rows += map(_unlabelled, listing.stray)
    return source, sorted(rows)


def _unlabelled(path: str) -> ImageRow:
    return ImageRow(path, "", "", "", "")


def _probabilities(network: Any, pixels: list[Any]) -> Any:
    """Return (n, K); the batch is filled up so that one shape is compiled."""
    if not pixels:
        return []
    filled = np.stack(pixels + [np.zeros_like(pixels[0])] * (BATCH - len(pixels)))
    return np.asarray(network.predict_on_batch(filled))[: len(pixels)]


def _top(probabilities: Any, classes: list[str], top: int) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((classes[at], float(probabilities[at])) for at in best)


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
