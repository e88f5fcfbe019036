"""featcache report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache_cli import show
from featcache_cli.handoff import Moved
from featcache_cli.output import Json, Quiet, emit, progress


def command(
    run: Annotated[str, typer.Argument(help="RUN; with --final also RUN@refit or RUN@3, to judge that head.")],
    final: Annotated[
        bool, typer.Option("--final", help="Open the test split; that it was opened is recorded.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one HTML file to look at and to send: no network needed.")
    ] = None,
    images: Moved = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Report what was done and what came out. Only --final reads the test split.

    Example: featcache report photos.run --html report.html
    """
    from featcache.sweeps.run import open_named

    opened, chosen = open_named(run)
    scores = None
    if final:
        from featcache.reports.final import final_scores

        opened, scores = final_scores(opened, images, chosen)
    if html is not None:
        from featcache.reports.html import write_report

        with progress(quiet) as draw:
            write_report(opened, html, images=images, chosen=chosen, final=scores, progress=draw)
    from featcache.reports.table import text_report
    from featcache.reports.text import printable

    judged = [
        {"name": name, "metric": opened.settings.metric, "score": found.value, "interval": [found.low, found.high]}
        for name, found in (scores or {}).items()
    ]
    document = {
        "run": str(opened.path),
        "html": None if html is None else str(html),
        "final": final,
        **show.document(opened),
        "test": judged[0] if judged else None,  # of the head
        "tests": judged,  # and of the fine-tuned model
    }
    written = "" if html is None else f"\nReport: {printable(str(html))}"
    emit(json, document, lambda: text_report(opened, scores) + written)
