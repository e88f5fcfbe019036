"""featcache predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress, say

if TYPE_CHECKING:
    from featcache.prediction import Prediction
    from featcache.sweeps.metrics import Score


def command(
    model: Annotated[Path, typer.Argument(help="A MODEL.keras of featcache.")],
    images: Annotated[Path, typer.Argument(help="A folder of images, or one image.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows to this file. [default: print them]")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="So many classes per image, at most all.")] = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict the class of every image in a folder; where the folders are named after classes, say how many are right.

    Example: featcache predict model.keras new_photos/ --csv predictions.csv
    """
    from featcache.prediction import judge, predict, write_csv
    from featcache.reports.text import printable

    with progress(quiet) as draw:
        rows = list(predict(model, images, top=top, progress=draw))
    for row in rows:
        if row.status != "ok":
            say(f"skipped {printable(row.path)}: {row.status}, {printable(row.reason)}")
    if csv is not None:
        write_csv(csv, rows)
    emit(json, document(rows, csv, judge(rows)), lambda: text(rows, csv, judge(rows)))


def document(rows: list[Prediction], csv: Path | None, judged: Score | None) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "rows": len(rows),
        "failed": [
            {"path": row.path, "status": row.status, "reason": row.reason} for row in rows if row.status != "ok"
        ],
        "csv": None if csv is None else str(csv),
        "accuracy": None if judged is None else {"score": judged.value, "interval": [judged.low, judged.high]},
        "predictions": [
            {
                "path": row.path,
                "true": row.true or None,
                "top": [{"label": label, "probability": share} for label, share in row.top],
            }
            for row in rows
        ],
    }


def text(rows: list[Prediction], csv: Path | None, judged: Score | None) -> str:
    """Return the result as a person reads it."""
    from featcache.reports.text import interval, printable, table

    lines = []
    if csv is None:
        width = max(len(row.top) for row in rows)
        cells = [[f"{label} {share:.3f}" for label, share in row.top] or [row.status] for row in rows]
        body = [[printable(row.path), *one, *[""] * (width - len(one))] for row, one in zip(rows, cells, strict=True)]
        lines.append(table(["path", *(f"top {at + 1}" for at in range(width))], body))
    failed = sum(row.status != "ok" for row in rows)
    lines.append(f"{len(rows)} images, {failed} could not be read" + (f"; {csv}" if csv else ""))
    if judged is not None:
        lines.append(f"Against the classes that their folders name: accuracy {interval(*judged)}")
    return "\n".join(lines)
