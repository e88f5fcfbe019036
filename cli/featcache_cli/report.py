"""featcache report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache import trust
from featcache.errors import DataError
from featcache.settings import ReportOptions
from featcache_cli import show
from featcache_cli.handoff import Moved
from featcache_cli.output import Allow, Force, Json, Quiet, emit, progress

if TYPE_CHECKING:
    from featcache.spec import Progress
    from featcache.sweeps import Run


def command(
    run: Annotated[str, typer.Argument(help="RUN; with --final also RUN@refit or RUN@3, to judge that head.")],
    options: ReportOptions,
    force: Force = False,
    images: Moved = None,
    allow: Allow = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Report what was done and what came out: here, as one page, to TensorBoard or MLflow. Only --final reads test.

    Example: featcache report photos.run --html report.html
    """
    from featcache.sweeps.run import open_named

    trust.allow(*(allow or ()))
    html, tensorboard, mlflow = options.html, options.tensorboard, options.mlflow
    opened, chosen = open_named(run)
    tested = None
    if html is not None:
        from featcache.extras.report.html import check_page, write_report

        check_page(opened, html, images, force=force)
    with progress(quiet) as draw:
        written = _logged(opened, tensorboard, mlflow, images, force, draw)
    if options.final:  # last, so that nothing fails after test was opened which could have failed before
        from featcache.extras.report.final import open_test

        with progress(quiet) as draw:
            tested = open_test(opened, images, chosen, draw)
        opened = tested.run
    scores = None if tested is None else tested.scores
    from featcache.extras.report.table import class_table, text_report
    from featcache.text import printable

    if html is not None:
        with progress(quiet) as draw:
            write_report(
                opened, html, images=images, chosen=chosen, final=scores, tested=tested, force=force, progress=draw
            )
    classes = {} if tested is None else tested.classes
    judged = [
        {
            "name": name,
            "metric": opened.settings.metric,
            "score": found.value,
            "interval": [found.low, found.high],
            "classes": classes[name],
        }
        for name, found in (scores or {}).items()
    ]
    document = {
        "run": str(opened.path),
        "html": None if html is None else str(html),
        "final": options.final,
        **show.document(opened),
        "test": judged[0] if judged else None,  # of the head
        "tests": judged,  # and of the fine-tuned model
        "looks": opened.looks(),  # at the test split, of all runs on this cache
        "test_reviews": [review._asdict() for review in opened.test_reviews()],  # labels of it that were changed
    }
    said = [class_table(classes)] if classes else []
    said += [f"Report: {printable(str(html))}"] if html else []
    said += [f"TensorBoard: tensorboard --logdir {tensorboard}"] if tensorboard else []
    said += [f"MLflow: run {written['mlflow']} in {mlflow}"] if mlflow else []
    emit(json, {**document, **written}, lambda: "\n".join([text_report(opened, scores, _has_test(opened)), *said]))


def _has_test(run: Run) -> bool:
    """Tell whether there are test images, as far as one can see."""
    try:
        return "test" in run.cache().splits
    except DataError:
        return True


def _logged(
    run: Run, tensorboard: Path | None, mlflow: str | None, images: Path | None, force: bool, draw: Progress
) -> dict[str, str | None]:
    """Write the run for other tools; return where it is there."""
    written: dict[str, str | None] = {"tensorboard": None, "mlflow": None}
    if tensorboard is not None:
        from featcache.extras.tracking.tensorboard_logs import write_tensorboard
        from featcache.files import disk_faults

        with disk_faults(tensorboard):
            written["tensorboard"] = str(write_tensorboard(run, tensorboard, images, draw, force=force))
    if mlflow is not None:
        from featcache.extras.tracking.mlflow_logs import log_to_mlflow

        written["mlflow"] = log_to_mlflow(run, mlflow, draw)
    return written
