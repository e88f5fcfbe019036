"""featcache quickstart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import QuickstartOptions
from featcache.text import counts_text
from featcache_cli import extract as extract_command
from featcache_cli import finetune as finetune_command
from featcache_cli import handoff as handoff_command
from featcache_cli import sweep as sweep_command
from featcache_cli.output import Force, Json, Quiet, emit, in_shell, print_text, progress, without_download

if TYPE_CHECKING:
    from featcache.extras.main_job import Part, Quickstart


def command(
    *,
    images: Annotated[
        Path | None,
        typer.Argument(help="Folder of class folders. Without it: the embedded handwritten digits, offline."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path("quickstart"),
    force: Force = False,
    options: QuickstartOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do the whole job: extract, sweep, handoff, fine-tune, and a table of what transfer was worth.

    Example: featcache quickstart photos/
    """
    from featcache.extras.main_job import quickstart

    with progress(quiet) as draw, without_download("use -b glyphnet (needs no download)"):
        # With --json stdout holds one document, so only stderr hears of a part that is done.
        seen = _name_failures if json else _print_part
        done = quickstart(images, out, force=force, progress=draw, seen=seen, **vars(options))
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
    """Return the last lines, after all parts have been printed."""
    lines = []
    if done.judged_on != "test":
        lines.append("There is no test split, so these are scores on val, which also chose: expect less on new images.")
    lines += [
        f"Models: {done.folder / 'head.keras'} and {done.folder / 'model.keras'}; all in {done.seconds:.0f} s",
        f"To look at and to send: {done.report}",
        f"Next: featcache predict {in_shell(done.folder / 'model.keras')} IMAGES",
    ]
    return "\n".join(lines)


def _print_part(part: Part) -> None:
    """Print a part of the job as soon as it is done."""
    _name_failures(part)
    print_text(f"{_part_text(part)}\n")


def _name_failures(part: Part) -> None:
    from featcache.extraction import Extracted

    if isinstance(part, Extracted):
        extract_command.name_failures(part)


def _part_text(part: Part) -> str:
    from featcache.extraction import Extracted
    from featcache.extras.report.table import trials_table
    from featcache.images.manifest import Images
    from featcache.models import Certificate
    from featcache.sweeps import Run
    from featcache.text import counted, interval, table
    from featcache.tuning import Tuned

    match part:
        case Images():
            return f"{counted(len(part.rows), 'image')}, {len(part.classes)} classes: {counts_text(part.splits)}"
        case Extracted():
            return extract_command.counts(part)
        case Run():
            chosen_on = f"Heads on the features of all training images, chosen on {part.num_select} validation images:"
            return f"{chosen_on}\n{trials_table(part, limit=8)}"
        case Certificate():
            return f"The best head, handed over. {handoff_command.text(part)}"
        case Tuned():
            return f"Fine-tuning from it:\n{finetune_command.text(part)}"
    rows = []
    for line in part.lines:
        score = interval(line.test_score, *line.interval)
        rows.append([line.name, line.train_images, score, f"{line.seconds:.1f}"])
    return table(["", "train images", f"{part.judged_on} {part.metric} [95 %]", "s"], rows)
