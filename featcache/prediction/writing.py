"""Predictions -> CSV, JSON lines or Parquet, written row by row; each file is whole at the end, or not there.

CSV keeps the bytes of every path, so that tables can be joined on it. A label or reason that a spreadsheet would run as
a formula gets a ' in front; a path never does. JSON lines are exact, too: bytes that are not UTF-8 become Python's
surrogates. Parquet has paths as text and as bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from featcache.errors import EnvironmentFault, UsageError
from featcache.files import disk_faults, writing
from featcache.images.kinds import notes
from featcache.images.manifest import Images
from featcache.images.tables import safe_cell
from featcache.outputs import Kind, check_output, check_unread
from featcache.prediction.classifiers import open_classifier
from featcache.prediction.places import ImageList, Place, gather
from featcache.prediction.predicting import Prediction, Predictor, Tally
from featcache.settings import EngineName
from featcache.spec import ImageRow, Progress, silent

ROW_GROUP = 4096  # rows that Parquet stores together
LONGEST_HEADER = 2**20
HEADER = re.compile(
    r"path,predicted,probability(,predicted\d+,probability\d+)*,true,status,reason(,strangeness,nearest)?"
)
JSON_KEYS = {"path", "predicted", "top", "true", "status", "reason"}
JSON_KEYS_OF_REJECT = {"unknown", "strangeness"}
Add = Callable[[Prediction], None]


def predict_to(
    files: Sequence[tuple[str, Path]],
    model: str | Path,
    images: Images | Place | Sequence[Place],
    *,
    top: int = 1,
    reject: float | None = None,
    views: str = "1",
    imagenet: bool = False,
    engine: EngineName = "auto",
    seen: Add = lambda prediction: None,
    force: bool = False,
    progress: Progress = silent,
) -> Tally:
    """Write predictions to files, each given as (format, path), and return the counts. Options are those of `predict`.

    seen: called with each prediction. force: replace files even if they are not earlier predictions.
    Raises what `predict` raises, UsageError, DiskFault, and EnvironmentFault if Parquet cannot be written here.
    """
    # A missing package or a file that must be kept is reported now, before Keras starts.
    writers = [_writer(kind) for kind, _ in files]
    without_options = str(model).partition(":")[0]  # mine.keras:mode=tf
    inputs = [Path(model), Path(without_options), *_files_among([images])]

    def check() -> None:
        for kind, path in files:
            check_output(path, KINDS[kind], inputs=inputs, force=force)

    check()
    different_files = {os.path.realpath(path) for _, path in files}
    if len(different_files) < len(files):
        raise UsageError(f"{files[0][1]} is named twice. Give one of the two files another name")
    classifier = open_classifier(model, reject=reject is not None, imagenet=imagenet, engine=engine)
    predictor = Predictor(classifier, top, reject, views)
    gathered = gather(images)
    if any(path.exists() for _, path in files):
        gathered = _without(gathered, [path for _, path in files])
    tally = Tally(others=gathered.others, notes=classifier.notes, threshold=predictor.threshold)
    columns = Columns(min(top, len(classifier.classes)), reject is not None)
    with ExitStack() as opened:
        adds: list[Add] = []
        for writer, (_, path) in zip(writers, files, strict=True):
            adds.append(opened.enter_context(writer(path, columns)))
        # Last: it is shown what is in the files.
        adds.append(seen)
        for prediction in predictor.of(gathered, progress):
            tally.add(prediction)
            for add in adds:
                add(prediction)
        tally.notes += tuple(notes(predictor.kinds, tally.rows, classifier.preprocess.bits))
        # Again, before the files take their names: somebody may have put a file there.
        check()
    return tally


def _files_among(places: Sequence[Any]) -> list[Path]:
    """Return the places that are files, also those in lists."""
    files: list[Path] = []
    for place in places:
        if isinstance(place, (list, tuple)):
            files += _files_among(place)
        elif isinstance(place, (str, Path)) and Path(place).is_file():
            files.append(Path(place))
    return files


def _without(gathered: ImageList, outputs: Sequence[Path]) -> ImageList:
    """Return the images; raise UsageError if one of them, or their archive, is a file that will be written."""
    home = gathered.source.location or Path()

    def checked() -> Iterator[ImageRow]:
        for row in gathered.rows:
            for path in outputs:
                check_unread(path, home / row.path)
            yield row

    if isinstance(gathered.rows, list):
        return replace(gathered, rows=list(checked()))
    return replace(gathered, rows=checked())  # a list on standard input: each is checked when it arrives


class Columns:
    """The columns of a table of predictions."""

    def __init__(self, top: int, rejects: bool) -> None:
        self.top, self.rejects = top, rejects
        self.names = ["path"]
        for rank in range(1, top + 1):
            suffix = "" if rank == 1 else str(rank)
            self.names += [f"predicted{suffix}", f"probability{suffix}"]
        self.names += ["true", "status", "reason"]
        if rejects:
            self.names += ["strangeness", "nearest"]

    def cells(self, prediction: Prediction) -> list[Any]:
        """Return a row: texts, numbers, and None where there is nothing."""
        pairs: list[Any] = []
        for label, probability in prediction.top:
            pairs += [label, probability]
        pairs += [None] * (2 * self.top - len(pairs))
        if prediction.unknown:
            pairs[:2] = [prediction.predicted, None]
        cells = [prediction.path, *pairs, prediction.true, prediction.status, prediction.reason]
        if self.rejects:
            nearest = prediction.top[0][0] if prediction.top else None
            cells += [prediction.strangeness, nearest]
        return cells


@contextmanager
def _bytes_of(path: Path) -> Iterator[IO[bytes]]:
    with disk_faults(path), writing(path) as sink, os.fdopen(os.dup(sink.handle), "wb") as file:
        yield file


@contextmanager
def _csv(path: Path, columns: Columns) -> Iterator[Add]:
    with (
        _bytes_of(path) as file,
        io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text,
    ):
        plain = csv.writer(text, lineterminator="\n")
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writerow(columns.names)

        def add(prediction: Prediction) -> None:
            path, *others = columns.cells(prediction)
            cells = [path]
            for value in others:
                # A number such as -1 is not a formula.
                cells.append(f"{value:.6f}" if isinstance(value, float) else safe_cell(value or ""))
            # Before Python 3.13, csv writes a bare \r without quotes, and readers take it for the end of the row.
            writer = quoted if any("\r" in cell for cell in cells) else plain
            writer.writerow(cells)

        yield add


@contextmanager
def _jsonl(path: Path, columns: Columns) -> Iterator[Add]:
    with _bytes_of(path) as file:

        def add(prediction: Prediction) -> None:
            file.write(json.dumps(json_row(prediction, columns.rejects)).encode() + b"\n")

        yield add


def json_row(prediction: Prediction, rejects: bool = False) -> dict[str, Any]:
    """Return a prediction as JSON. rejects: whether images may be rejected as unknown."""
    row: dict[str, Any] = {
        "path": prediction.path,
        "predicted": prediction.predicted or None,
        "top": [{"label": label, "probability": probability} for label, probability in prediction.top],
        "true": prediction.true or None,
        "status": prediction.status,
        "reason": prediction.reason or None,
    }
    if rejects:
        row |= {"unknown": prediction.unknown, "strangeness": prediction.strangeness}
    return row


@contextmanager
def _parquet(path: Path, columns: Columns) -> Iterator[Add]:
    import pyarrow
    from pyarrow import parquet

    def kind(name: str) -> Any:
        is_number = name.startswith(("probability", "strangeness"))
        return pyarrow.float64() if is_number else pyarrow.string()

    fields = [(name, kind(name)) for name in columns.names] + [("path_bytes", pyarrow.binary())]
    schema = pyarrow.schema(fields)
    rows: list[list[Any]] = []

    def flush() -> None:
        arrays: list[list[Any]] = [[] for _ in fields]
        for row in rows:
            for array, value in zip(arrays, row, strict=True):
                array.append(value)
        writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
        rows.clear()

    def add(prediction: Prediction) -> None:
        row: list[Any] = []
        for value in columns.cells(prediction):
            if isinstance(value, str):
                # Any reader can decode this: undecodable bytes of names become \xNN.
                value = os.fsencode(value).decode("utf-8", "backslashreplace")
            row.append(value)
        rows.append([*row, os.fsencode(prediction.path)])
        if len(rows) >= ROW_GROUP:
            flush()

    with _bytes_of(path) as file, parquet.ParquetWriter(file, schema) as writer:
        yield add
        flush()


def _writer(kind: str) -> Callable[[Path, Columns], AbstractContextManager[Add]]:
    """Return the writer of a format. Raises UsageError, EnvironmentFault."""
    if kind not in FORMATS:
        raise UsageError(f"Predictions are written to a file that ends in {', '.join(FORMATS)}; got '{kind}'")
    if kind == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise EnvironmentFault("Parquet needs pyarrow: pip install 'featcache[parquet]'; or write .csv") from error
    return FORMATS[kind]


def _is_csv(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        return HEADER.fullmatch(file.readline(LONGEST_HEADER).rstrip("\n")) is not None


def _is_jsonl(path: Path) -> bool:
    with path.open("rb") as file:
        keys = json.loads(file.readline()).keys()
    return keys in (JSON_KEYS, JSON_KEYS | JSON_KEYS_OF_REJECT)


def _is_parquet(path: Path) -> bool:
    from pyarrow import parquet

    *columns, last = parquet.read_schema(path).names
    return last == "path_bytes" and HEADER.fullmatch(",".join(columns)) is not None


FORMATS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
KINDS = {
    ".csv": Kind("predictions file of featcache", _is_csv),
    ".jsonl": Kind("predictions file of featcache", _is_jsonl),
    ".parquet": Kind("predictions file of featcache", _is_parquet),
}
