"""featcache quickstart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli import extract as extract_command
from featcache_cli import finetune as finetune_command
from featcache_cli import handoff as handoff_command
from featcache_cli import sweep as sweep_command
from featcache_cli.output import Force, Json, Quiet, emit, in_shell, progress
from featcache_cli.scan import GroupFrom, Seed, Split

if TYPE_CHECKING:
    from featcache.pipeline import Quickstart


def command(
    images: Annotated[
        Path | None,
        typer.Argument(help="Folder of class folders. Without it: the embedded handwritten digits, offline."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path("quickstart"),
    force: Force = False,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="[default: mobilenet_v2; for the digits glyphnet]")
    ] = None,
    split: Split = None,
    group_from: GroupFrom = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job: extract, sweep, handoff, fine-tune, and a table of what transfer was worth.

    Example: featcache quickstart photos/
    """
    from featcache.pipeline import quickstart

    with progress(quiet) as draw:
        done = quickstart(
            images,
            out,
            backbone=backbone,
            split=split,
            group_from=group_from,
            seed=seed,
            force=force,
            progress=draw,
        )
    extract_command.name_failures(done.extracted)
    emit(json, document(done), lambda: text(done))


def document(done: Quickstart) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "folder": str(done.folder),
        "extract": extract_command.document(done.extracted),
        "sweep": sweep_command.document(done.run),
        "handoff": handoff_command.document(done.folder / "head.keras", done.model.certificate),
        "finetune": finetune_command.document(done.tuned),
        "report": str(done.report),
        "judged_on": done.judged_on,
        "table": [asdict(line) for line in done.table],
        "seconds": round(done.seconds, 1),
    }


def text(done: Quickstart) -> str:
    """Return the result as a person reads it."""
    from featcache.reports.table import trials_table
    from featcache.reports.text import interval, table

    rows = [
        [line.name, line.train_images, interval(line.test_score, *line.interval), f"{line.seconds:.1f}"]
        for line in done.table
    ]
    best = done.head.trial
    lines = [
        f"{len(done.images.rows)} images, {len(done.images.classes)} classes: "
        + ", ".join(f"{count} {name}" for name, count in done.images.splits.items()),
        extract_command.counts(done.extracted),
        "",
        f"Heads on the features of all training images, chosen on {done.run.num_select} validation images:",
        trials_table(done.run, limit=8),
        "",
        f"Handed over: trial {best.trial} ({best.head}). {handoff_command.text(done.model.certificate)}",
        "",
        "Fine-tuning from it:",
        finetune_command.text(done.tuned),
        "",
        table(["", "train images", f"{done.judged_on} {done.run.settings.metric} [95 %]", "s"], rows),
        *_remarks(done),
        f"Models: {done.folder / 'head.keras'} and {done.folder / 'model.keras'}; all in {done.seconds:.0f} s",
        f"To look at and to send: {done.report}",
        f"Next: featcache predict {in_shell(done.folder / 'model.keras')} IMAGES",
    ]
    return "\n".join(lines)


def _remarks(done: Quickstart) -> list[str]:
    if done.judged_on == "test":
        return []
    return ["There is no test split, so these are scores on val, which also chose: expect less on new images."]
