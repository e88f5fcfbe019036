"""featcache predict."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import PredictOptions
from featcache_cli.output import Force, Json, Quiet, cleared, emit, progress, say

if TYPE_CHECKING:
    from featcache.models.reference import Threshold
    from featcache.prediction import Prediction, Tally

LIST = "-"
BLOCK = 500  # rows that are printed as one table
NAMED = 100  # skipped files that are named on stderr; all of them are rows


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

    files = [(".csv", csv)] if csv is not None else []
    files += [(out.suffix.lower(), out)] if out is not None else []
    with temporary_folder() as folder:
        spool = folder / "rows.jsonl"
        shown = _Shown(printing=not files and not json)
        with progress(quiet) as draw:
            tally = predict_to(
                [*files, *([(".jsonl", spool)] if json and not files else [])],
                model,
                _places(images),
                seen=shown,
                force=force,
                progress=draw,
                **vars(options),
            )
        shown.flush()
        if tally.failed > NAMED:
            say(f"... and {tally.failed - NAMED} more, which are rows as well")
        for note in tally.notes:
            say(note)
        facts = document(tally, csv, out)
        if json and not files:
            _emit_with_rows(facts, spool)
        else:
            emit(json, facts, lambda: text(tally, [path for _, path in files]))


def document(tally: Tally, csv: Path | None, out: Path | None) -> dict[str, Any]:
    """Return the result as it stands in JSON, without the rows."""
    judged, at = tally.accuracy, tally.threshold
    return {
        "rows": tally.rows,
        "statuses": dict(sorted(tally.by_status.items())),
        "num_failed": tally.failed,
        "failed": [{"path": one.path, "status": one.status, "reason": one.reason} for one in tally.failures],
        "unknown": None if at is None else tally.unknown,
        "threshold": None if at is None else at.value,
        "threshold_images": None if at is None else at.images,
        "known_unknown_rate": None if at is None else list(at.interval),
        "not_looked_at": dict(tally.others),
        "notes": list(tally.notes),
        "csv": None if csv is None else str(csv),
        "out": None if out is None else str(out),
        "accuracy": None if judged is None else {"score": judged.value, "interval": [judged.low, judged.high]},
    }


def text(tally: Tally, files: Sequence[Path]) -> str:
    """Return the counts as a person reads them."""
    from featcache.text import counted, interval, printable

    counts = f"{counted(tally.rows, 'image')}, {tally.failed} could not be read"
    if tally.failed:
        reasons = (f"{count} {status}" for status, count in sorted(tally.by_status.items()) if status != "ok")
        counts += f" ({', '.join(reasons)})"
    lines = ["; ".join([counts, *(printable(str(path)) for path in files)])]
    if tally.others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in tally.others.items())
        lines.append(
            f"Not looked at, by their names: {counted(sum(tally.others.values()), 'file')} ({printable(kinds)})"
        )
    if tally.threshold is not None:
        lines += _on_unknown(tally.unknown, tally.threshold)
    if tally.accuracy is not None:
        lines.append(f"Against the classes that their folders name: accuracy {interval(*tally.accuracy)},")
        lines.append("which is too good if the model was trained, or its head chosen, on some of these images")
    if tally.known_unknown:
        asked = tally.answered + tally.known_unknown
        lines.append(f"Not counted there: {tally.known_unknown} of these {counted(asked, 'image')}, called unknown")
    return "\n".join(lines)


def _on_unknown(unknown: int, threshold: Threshold) -> list[str]:
    """Return how many images are unknown, and how far that can be trusted."""
    low, high = threshold.interval
    return [
        f"{unknown} are unknown: stranger than {threshold.value:.3f}, as {threshold.exceeded} of the "
        f"{threshold.images} known images are that set this",
        f"Of new images of the known classes expect {low:.1%} to {high:.1%} (95 % interval) to be called unknown",
    ]


class _Shown:
    """Names what is skipped on stderr, and prints rows as tables, a block at a time."""

    def __init__(self, printing: bool) -> None:
        self._printing = printing
        self._held: list[Prediction] = []
        self._skipped = 0

    def __call__(self, one: Prediction) -> None:
        from featcache.text import printable

        self._skipped += one.status != "ok"
        if one.status != "ok" and self._skipped <= NAMED:
            say(f"skipped {printable(one.path)}: {one.status}, {printable(one.reason)}")
        if self._printing:
            self._held.append(one)
            if len(self._held) >= BLOCK:
                self.flush()

    def flush(self) -> None:
        """Print what is held."""
        from featcache.text import table

        if not self._held:
            return
        width = max(1, *(len(one.top) for one in self._held))
        body = [[one.path, *_cells(one), *[""] * (width - max(1, len(one.top)))] for one in self._held]
        with cleared():
            typer.echo(table(["path", *(f"top {at + 1}" for at in range(width))], body))
        self._held.clear()


def _cells(one: Prediction) -> list[str]:
    cells = [f"{label} {share:.3f}" for label, share in one.top] or [one.status]
    return [f"unknown ({cells[0]})", *cells[1:]] if one.unknown else cells


def _places(images: Sequence[str]) -> list[Any]:
    """Return the places, with the list on standard input where a - stands."""
    from featcache.errors import UsageError
    from featcache.prediction import paths_in

    if images.count(LIST) > 1:
        raise UsageError("Standard input has one list: give - once")
    return [paths_in(sys.stdin.buffer) if one == LIST else one for one in images]


def _emit_with_rows(facts: dict[str, Any], spool: Path) -> None:
    """Print one document whose rows come from a file, a row at a time."""
    head = json_text.dumps(facts, indent=2).removesuffix("\n}")
    with cleared(), spool.open() as lines:
        typer.echo(f'{head},\n  "predictions": [', nl=False)
        for at, line in enumerate(lines):
            typer.echo(f"{',' if at else ''}\n    {line.rstrip()}", nl=False)
        typer.echo("\n  ]\n}")
