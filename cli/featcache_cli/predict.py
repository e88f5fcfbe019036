"""featcache predict."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import PredictOptions
from featcache.text import counts_text
from featcache_cli.options import in_flags
from featcache_cli.output import (
    Force,
    Json,
    Quiet,
    cleared,
    emit,
    failures_document,
    path_document,
    progress,
    remarks_in_flags,
    say,
    score_document,
)

if TYPE_CHECKING:
    from featcache.models.reference import Threshold
    from featcache.prediction import Prediction, Tally

LIST = "-"
BLOCK = 500  # rows printed as one table
NAMED = 100  # most skipped files named on stderr; each of them is also a row


def command(
    *,
    model: Annotated[
        str, typer.Argument(help="A MODEL.keras, any other Keras model (mine.keras:mode=tf), a name with --imagenet.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(help="Folders, files, 'patterns/*.jpg', archives, tables; - for a list of files on stdin."),
    ],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the rows to this CSV file.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the rows to this .csv, .jsonl or .parquet file.")
    ] = None,
    force: Force = False,
    options: PredictOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict the class of every image; where folders are named after classes, say how many are right.

    Rows are written as they come, to a file or as a table. A file that cannot be read is a row with its reason.

    Example: featcache predict model.keras new_photos/ --csv predictions.csv --top 3 --reject 0.02
    """
    from featcache.files import temporary_folder
    from featcache.prediction import predict_to

    files = []
    if csv is not None:
        files.append((".csv", csv))
    if out is not None:
        files.append((out.suffix.lower(), out))
    with temporary_folder() as folder:
        # With --json and no file the rows go into the document. They may be many, so a file holds them until then.
        spool = folder / "rows.jsonl"
        rows_in_document = json and not files
        outputs = [(".jsonl", spool)] if rows_in_document else files
        printer = _RowPrinter(prints_tables=not files and not json)
        with progress(quiet) as draw:
            tally = predict_to(
                outputs,
                model,
                _places(images),
                seen=printer,
                force=force,
                progress=draw,
                **vars(options),
            )
        printer.flush()
        if tally.failed > NAMED:
            say(f"... and {tally.failed - NAMED} more, which are rows as well")
        for note in remarks_in_flags(tally.notes):
            say(note)
        facts = document(tally, csv, out)
        if rows_in_document:
            _emit_with_rows(facts, spool)
        else:
            emit(json, facts, lambda: text(tally, [path for _, path in files]))


def document(tally: Tally, csv: Path | None, out: Path | None) -> dict[str, Any]:
    """Return the result as it stands in JSON, without the rows."""
    threshold = tally.threshold
    rejection: dict[str, Any] = dict.fromkeys(["unknown", "threshold", "threshold_images", "known_unknown_rate"])
    if threshold is not None:
        rejection["unknown"] = tally.unknown
        rejection["threshold"] = threshold.value
        rejection["threshold_images"] = threshold.images
        rejection["known_unknown_rate"] = list(threshold.interval)
    accuracy = None if tally.accuracy is None else score_document(tally.accuracy)
    return {
        "rows": tally.rows,
        "statuses": dict(sorted(tally.by_status.items())),
        "num_failed": tally.failed,
        "failed": failures_document(tally.failures),
        **rejection,
        "not_looked_at": dict(tally.others),
        "notes": remarks_in_flags(tally.notes),
        "csv": path_document(csv),
        "out": path_document(out),
        "accuracy": accuracy,
    }


def text(tally: Tally, files: Sequence[Path]) -> str:
    """Return the counts as a person reads them."""
    from featcache.text import counted, interval, printable

    counts = f"{counted(tally.rows, 'image')}, {tally.failed} could not be read"
    if tally.failed:
        reasons = {status: count for status, count in sorted(tally.by_status.items()) if status != "ok"}
        counts += f" ({counts_text(reasons)})"
    names = [printable(str(path)) for path in files]
    lines = ["; ".join([counts, *names])]
    if tally.others:
        num_others = counted(sum(tally.others.values()), "file")
        lines.append(f"Not looked at, by their names: {num_others} ({printable(counts_text(tally.others))})")
    if tally.threshold is not None:
        lines += _on_unknown(tally.unknown, tally.threshold)
    if tally.accuracy is not None:
        lines.append(f"Against the classes that their folders name: accuracy {interval(*tally.accuracy)},")
        lines.append("which is too good if the model was trained, or its head chosen, on some of these images")
    if tally.known_unknown:
        labelled = counted(tally.answered + tally.known_unknown, "image")
        lines.append(f"Not counted there: {tally.known_unknown} of these {labelled}, called unknown")
    return "\n".join(lines)


def _on_unknown(unknown: int, threshold: Threshold) -> list[str]:
    """Return how many images are unknown, and how far that can be trusted."""
    low, high = threshold.interval
    return [
        f"{unknown} are unknown: stranger than {threshold.value:.3f}, as are {threshold.exceeded} of the "
        f"{threshold.images} known images that set this threshold",
        f"Of new images of the known classes expect {low:.1%} to {high:.1%} (95 % interval) to be called unknown",
    ]


class _RowPrinter:
    """Names skipped files on stderr, and prints rows as tables, a block at a time."""

    def __init__(self, prints_tables: bool) -> None:
        self._prints_tables = prints_tables
        self._waiting: list[Prediction] = []
        self._num_skipped = 0

    def __call__(self, prediction: Prediction) -> None:
        from featcache.text import printable

        if prediction.status != "ok":
            self._num_skipped += 1
            if self._num_skipped <= NAMED:
                reason = in_flags(printable(prediction.reason))
                say(f"skipped {printable(prediction.path)}: {prediction.status}, {reason}")
        if self._prints_tables:
            self._waiting.append(prediction)
            if len(self._waiting) >= BLOCK:
                self.flush()

    def flush(self) -> None:
        """Print the rows that wait."""
        from featcache.text import table

        if not self._waiting:
            return
        most_classes = max(len(prediction.top) for prediction in self._waiting)
        width = max(1, most_classes)  # an unreadable file has a cell for its status
        rows = []
        for prediction in self._waiting:
            cells = _class_cells(prediction)
            padding = [""] * (width - len(cells))
            rows.append([prediction.path, *cells, *padding])
        header = ["path", *(f"top {rank}" for rank in range(1, width + 1))]
        with cleared():
            typer.echo(table(header, rows))
        self._waiting.clear()


def _class_cells(prediction: Prediction) -> list[str]:
    """Return the classes with their probabilities, or the status of a file that could not be read."""
    cells = [f"{label} {probability:.3f}" for label, probability in prediction.top] or [prediction.status]
    if prediction.unknown:
        cells[0] = f"unknown ({cells[0]})"
    return cells


def _places(images: Sequence[str]) -> list[Any]:
    """Return the places, with the list on standard input where a - stands."""
    from featcache.errors import UsageError
    from featcache.prediction import paths_in

    if images.count(LIST) > 1:
        raise UsageError("Standard input has one list: give - once")
    places: list[Any] = list(images)
    if LIST in images:
        places[images.index(LIST)] = paths_in(sys.stdin.buffer)
    return places


def _emit_with_rows(facts: dict[str, Any], spool: Path) -> None:
    """Print one document whose rows come from a file, a row at a time."""
    head = json_text.dumps(facts, indent=2).removesuffix("\n}")
    with cleared(), spool.open() as lines:
        typer.echo(f'{head},\n  "predictions": [', nl=False)
        for index, line in enumerate(lines):
            typer.echo(f"{',' if index else ''}\n    {line.rstrip()}", nl=False)
        typer.echo("\n  ]\n}")
