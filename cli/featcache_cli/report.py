"""featcache report."""

from __future__ import annotations

from typing import Annotated

import typer

from featcache_cli import show
from featcache_cli.handoff import Moved
from featcache_cli.output import Json, emit


def command(
    run: Annotated[str, typer.Argument(help="RUN; with --final also RUN@refit or RUN@3, to judge that head.")],
    final: Annotated[
        bool, typer.Option("--final", help="Open the test split; that it was opened is recorded.")
    ] = False,
    images: Moved = None,
    json: Json = False,
) -> None:
    """Report what was done and what came out. Only --final reads the test split.

    Example: featcache report photos.run --final
    """
    from featcache.sweeps.run import open_named

    opened, chosen = open_named(run)
    scores = None
    if final:
        from featcache.reports.final import final_scores

        opened, scores = final_scores(opened, images, chosen)
    from featcache.reports.table import text_report

    judged = [
        {"name": name, "metric": opened.settings.metric, "score": found.value, "interval": [found.low, found.high]}
        for name, found in (scores or {}).items()
    ]
    document = {
        "run": str(opened.path),
        "html": None,
        "final": final,
        **show.document(opened),
        "test": judged[0] if judged else None,  # of the head
        "tests": judged,  # and of the fine-tuned model
    }
    emit(json, document, lambda: text_report(opened, scores))
