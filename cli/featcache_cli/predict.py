"""featcache predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache_cli.output import Json, Quiet, emit, progress


def command(
    model: Annotated[Path, typer.Argument(help="A MODEL.keras of featcache.")],
    images: Annotated[Path, typer.Argument(help="A folder of images, or one image.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows to this file. [default: print them]")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="So many classes per image.")] = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict the class of every image in a folder.

    Example: featcache predict model.keras new_photos/ --csv predictions.csv
    """
    from featcache.prediction import predict, write_csv
    from featcache.reports.table import printable, table

    with progress(quiet) as draw:
        rows = list(predict(model, images, top=top, progress=draw))
    failed = [row for row in rows if row.status != "ok"]
    if csv is not None:
        write_csv(csv, rows, top)

    def text() -> str:
        lines = [
            [printable(row.path), *(f"{label} {share:.3f}" for label, share in row.top)]
            if row.top
            else [row.path, row.status]
            for row in rows
        ]
        width = 1 + top
        body = (
            []
            if csv is not None
            else [
                table(
                    ["path", *(f"top {at + 1}" for at in range(top))],
                    [line + [""] * (width - len(line)) for line in lines],
                )
            ]
        )
        return "\n".join([*body, f"{len(rows)} images, {len(failed)} could not be read" + (f"; {csv}" if csv else "")])

    document = {
        "rows": len(rows),
        "failed": [{"path": row.path, "status": row.status, "reason": row.reason} for row in failed],
        "csv": None if csv is None else str(csv),
        "predictions": [
            {"path": row.path, "top": [{"label": label, "probability": share} for label, share in row.top]}
            for row in rows
        ],
    }
    emit(json, document, text)
