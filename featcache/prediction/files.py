"""Predictions -> CSV, JSON lines or Parquet, row by row as they come; the files are whole at the end, or not there.

CSV has the bytes of every path, so that tables can be joined by it. A label or reason that a spreadsheet would run as a
formula gets a ' in front; a path never does. JSON lines are exact too: bytes that are no UTF-8 stand there as Python's
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
from featcache.prediction.models import open_classifier
from featcache.prediction.places import Gathered, Place, gather
from featcache.prediction.rows import Prediction, Rows, Tally
from featcache.spec import ImageRow, Progress, silent

ROW_GROUP = 4096  # rows that Parquet keeps together
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
    seen: Add = lambda one: None,
    force: bool = False,
    progress: Progress = silent,
) -> Tally:
    """Write the predictions to files, each a format and a path, and return what was counted. Options are `predict`'s.

    seen: called with each prediction. force: replace files that are no earlier predictions.
    Raises what `predict` raises, UsageError, DiskFault, and EnvironmentFault if Parquet cannot be written here.
    """
    writers = [_writer(kind) for kind, _ in files]

    without_options = str(model).partition(":")[0]  # mine.keras:mode=tf
    inputs = [Path(model), Path(without_options), *_files_among([images])]

    def check() -> None:
        for kind, path in files:
            check_output(path, KINDS[kind], inputs=inputs, force=force)

    check()
    if len({os.path.realpath(path) for _, path in files}) < len(files):
        raise UsageError(f"{files[0][1]} is named twice, for --csv and for -o. Give one of them another name")
    classifier = open_classifier(model, reject=reject is not None, imagenet=imagenet)
    rows = Rows(classifier, top, reject, views)
    found = gather(images)
    if any(path.exists() for _, path in files):
        found = _without(found, [path for _, path in files])
    tally = Tally(others=found.others, notes=classifier.notes, threshold=rows.threshold)
    shape = _Shape(min(top, len(classifier.classes)), reject is not None)
    with ExitStack() as opened:
        adds = [opened.enter_context(writer(path, shape)) for writer, (_, path) in zip(writers, files, strict=True)]
        for one in rows.of(found, progress):
            tally.add(one)
            for add in (*adds, seen):
                add(one)
        tally.notes += tuple(notes(rows.kinds, tally.rows, classifier.preprocess.bits))
        check()  # somebody may have put a file there meanwhile
    return tally


def _files_among(places: Sequence[Any]) -> list[Path]:
    """Return what is given as a file by its name, also in a list."""
    files: list[Path] = []
    for place in places:
        if isinstance(place, (list, tuple)):
            files += _files_among(place)
        elif isinstance(place, (str, Path)) and Path(place).is_file():
            files.append(Path(place))
    return files


def _without(gathered: Gathered, outputs: Sequence[Path]) -> Gathered:
    """Return the images, once none of them, nor their archive, is a file that is to be written. Raises UsageError."""
    home = gathered.source.location or Path()

    def checked() -> Iterator[ImageRow]:
        for row in gathered.rows:
            for path in outputs:
                check_unread(path, home / row.path)
            yield row

    if isinstance(gathered.rows, list):
        return replace(gathered, rows=list(checked()))
    return replace(gathered, rows=checked())  # a list on standard input: each when it comes


class _Shape:
    """The columns of a table of predictions."""

    def __init__(self, top: int, rejects: bool) -> None:
        self.top, self.rejects = top, rejects
        ranks = ["" if at == 1 else str(at) for at in range(1, top + 1)]
        self.pairs = [f"{name}{rank}" for rank in ranks for name in ("predicted", "probability")]
        self.names = ["path", *self.pairs, "true", "status", "reason", *(["strangeness", "nearest"] * rejects)]

    def cells(self, one: Prediction) -> list[Any]:
        """Return a row: texts, numbers, and None where there is nothing."""
        pairs: list[Any] = [value for pair in one.top for value in pair]
        pairs += [None] * (2 * self.top - len(pairs))
        nearest = one.top[0][0] if one.top else None
        if one.unknown:
            pairs[:2] = [one.predicted, None]
        beside = [one.strangeness, nearest] if self.rejects else []
        return [one.path, *pairs, one.true, one.status, one.reason, *beside]


@contextmanager
def _bytes_of(path: Path) -> Iterator[IO[bytes]]:
    with disk_faults(path), writing(path) as sink, os.fdopen(os.dup(sink.handle), "wb") as file:
        yield file


@contextmanager
def _csv(path: Path, shape: _Shape) -> Iterator[Add]:
    with (
        _bytes_of(path) as file,
        io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text,
    ):
        plain = csv.writer(text, lineterminator="\n")
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writerow(shape.names)

        def add(one: Prediction) -> None:
            path, *others = shape.cells(one)
            cells = [path, *map(_cell, others)]
            # before Python 3.13 csv does not quote a bare \r by itself
            (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)

        yield add


@contextmanager
def _jsonl(path: Path, shape: _Shape) -> Iterator[Add]:
    with _bytes_of(path) as file:
        yield lambda one: _write_line(file, json_row(one, shape.rejects))


def _write_line(file: IO[bytes], row: dict[str, Any]) -> None:
    file.write(json.dumps(row).encode() + b"\n")


def json_row(one: Prediction, rejects: bool = False) -> dict[str, Any]:
    """Return a prediction as it stands in JSON."""
    row: dict[str, Any] = {
        "path": one.path,
        "predicted": one.predicted or None,
        "top": [{"label": label, "probability": share} for label, share in one.top],
        "true": one.true or None,
        "status": one.status,
        "reason": one.reason or None,
    }
    return row | ({"unknown": one.unknown, "strangeness": one.strangeness} if rejects else {})


@contextmanager
def _parquet(path: Path, shape: _Shape) -> Iterator[Add]:
    import pyarrow
    from pyarrow import parquet

    def kind(name: str) -> Any:
        is_number = name.startswith(("probability", "strangeness"))
        return pyarrow.float64() if is_number else pyarrow.string()

    fields = [(name, kind(name)) for name in shape.names] + [("path_bytes", pyarrow.binary())]
    schema = pyarrow.schema(fields)
    held: list[list[Any]] = []

    def flush() -> None:
        columns = zip(*held, strict=True) if held else [[] for _ in fields]
        writer.write_batch(pyarrow.record_batch([list(column) for column in columns], schema=schema))
        held.clear()

    def add(one: Prediction) -> None:
        texts = [_text(value) if isinstance(value, str) else value for value in shape.cells(one)]
        held.append([*texts, os.fsencode(one.path)])
        if len(held) >= ROW_GROUP:
            flush()

    with _bytes_of(path) as file, parquet.ParquetWriter(file, schema) as writer:
        yield add
        flush()


def _writer(kind: str) -> Callable[[Path, _Shape], AbstractContextManager[Add]]:
    """Return what writes a format. Raises UsageError, EnvironmentFault."""
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


def _cell(value: Any) -> str:
    """Return a cell of a CSV file that is not a path. Numbers such as -1 are no formulas."""
    if isinstance(value, float):
        return f"{value:.6f}"
    return safe_cell(value or "")


def _text(value: str) -> str:
    """Return a text that any reader can decode: undecodable bytes of names as \\xNN."""
    return os.fsencode(value).decode("utf-8", "backslashreplace")
