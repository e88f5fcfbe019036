"""featcache report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache import trust
from featcache.settings import ReportOptions
from featcache.trust import allow_flags
from featcache_cli import show
from featcache_cli.handoff import Moved
from featcache_cli.output import (
    Allow,
    Force,
    Json,
    Quiet,
    cache_or_remark,
    emit,
    in_shell,
    path_document,
    progress,
    score_document,
)

if TYPE_CHECKING:
    from featcache.extras.report.final import Final
    from featcache.spec import Progress
    from featcache.sweeps import Chosen, Run


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
    if html is not None:
        from featcache.extras.report.html import check_page, write_report

        check_page(opened, html, images, force=force)
    with progress(quiet) as draw:
        written = _log_elsewhere(opened, tensorboard, mlflow, images, force, draw)

    # The test split is opened last: whatever can fail before must not cost a look at it.
    tested = None
    if options.final:
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
    test_scores = []
    lines = []
    if tested is not None:
        classes = tested.classes
        for name, score in tested.scores.items():
            facts = {"name": name, "metric": opened.settings.metric, **score_document(score)}
            test_scores.append({**facts, "images": len(tested.rows), "classes": classes[name]})
        lines += [class_table(classes), f"Next: featcache {_next_command(tested, chosen)}{allow_flags(allow or ())}"]
    else:
        from featcache.extras.report.tuned_models import tuned_lines

        lines += tuned_lines(opened)
    test_of_head = test_scores[0] if test_scores else None  # the head comes first
    document = {
        "run": str(opened.path),
        "html": path_document(html),
        "final": options.final,
        **show.document(opened),
        "test": test_of_head,
        "tests": test_scores,  # also the fine-tuned model's score
        "looks": opened.looks(),  # times that any run on this cache opened the test split
        "test_reviews": [review._asdict() for review in opened.test_reviews()],  # changed labels of test images
    }
    if html:
        lines.append(f"Report: {printable(str(html))}")
    if tensorboard:
        lines.append(f"TensorBoard: tensorboard --logdir {tensorboard}")
    if mlflow:
        lines.append(f"MLflow: run {written['mlflow']} in {mlflow}")

    cache = cache_or_remark(opened)
    has_test = cache is None or "test" in cache.splits
    emit(json, {**document, **written}, lambda: "\n".join([text_report(opened, scores, has_test), *lines]))


def _next_command(tested: Final, chosen: Chosen | None) -> str:
    """Return the command that makes a file for use of the best fine-tuned model, or else of the head.

    Validation scores choose it: a choice by test scores would be one that the test split can no longer judge.
    """
    from featcache.extras.report.tuned_models import best_of, tuned_models_of

    run = tested.run
    head = chosen or run.best
    tuned = None
    if not head.refit:
        models = [model for model in tuned_models_of(run, run.cache()) if model.path in tested.models]
        tuned = best_of(models, None if chosen is None else head.trial.trial, run.settings.metric, None)
    if tuned is None:
        name = "refit" if head.refit else head.trial.trial
        return f"handoff {in_shell(f'{run.path}@{name}')} -o {in_shell(f'{run.path.stem}.keras')}"
    out = in_shell(f"{tuned.path.stem}_savedmodel")
    return f"export {in_shell(tuned.path)} --to savedmodel -o {out} --run {in_shell(run.path)}"


def _log_elsewhere(
    run: Run, tensorboard: Path | None, mlflow: str | None, images: Path | None, force: bool, draw: Progress
) -> dict[str, str | None]:
    """Write the run for TensorBoard and MLflow; return {tool: where the run is}."""
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
