"""The part of `featcache leaks` that writes labels for review, applies decisions, and takes them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from featcache.errors import UsageError
from featcache.spec import Progress
from featcache.text import counts_text
from featcache_cli.output import emit, in_shell, listed_table, progress

if TYPE_CHECKING:
    from featcache.extras.leaks import Doubts, Move, Reviewed, Unfixed


class Files(NamedTuple):
    """The files in which a person reviews labels."""

    cache: Path
    csv: Path | None
    html: Path | None

    @property
    def command(self) -> str:
        """Return the command that applies the reviewed table."""
        from featcache.extras.report.review_page import saved_as

        table = saved_as(self.cache) if self.csv is None else self.csv
        return f"featcache leaks {in_shell(self.cache)} --apply {in_shell(table)}"

    def to_json(self) -> dict[str, str]:
        """Return the files by their options, and the command that follows."""
        files = {}
        if self.csv is not None:
            files["csv"] = str(self.csv)
        if self.html is not None:
            files["html"] = str(self.html)
        if files:
            files["next"] = self.command
        return files


def check_files(
    cache: Path, labels: bool, csv: Path | None, html: Path | None, images: Path | None, force: bool
) -> None:
    """Raise UsageError or DiskFault now if the files of a review cannot be written."""
    from featcache.extras.leaks import check_doubts_table
    from featcache.extras.report.review_page import check_review_page

    if not labels and (csv is not None or html is not None):
        flag = "--csv" if html is None else "--html"
        raise UsageError(f"{flag} takes the labels that look wrong. Add --labels")
    if csv is not None:
        check_doubts_table(cache, csv, force=force)
    if html is not None:
        check_review_page(cache, html, images, force=force)


def write_files(doubted: Doubts, files: Files, images: Path | None, force: bool, draw: Progress) -> None:
    """Write the requested files."""
    from featcache.extras.leaks import write_doubts
    from featcache.extras.report.review_page import write_review_page

    if files.csv is not None:
        write_doubts(doubted, files.cache, files.csv, force=force)
    if files.html is not None:
        write_review_page(doubted, files.cache, files.html, images=images, force=force, progress=draw)


def next_lines(doubted: Doubts, files: Files) -> list[str]:
    """Return the lines on what to do with labels that look wrong."""
    from featcache.extras.report.review_page import saved_as
    from featcache.text import printable

    if not doubted.doubts:
        return []
    if files.csv is None and files.html is None:
        return [f"To act on them: featcache leaks {in_shell(files.cache)} --labels --html labels.html"]
    lines = []
    if files.csv is not None:
        decisions = "accept, keep, drop or change:CLASS"
        lines.append(f"Labels to review: {printable(str(files.csv))}. Fill its column decision: {decisions}")
    if files.html is not None:
        name = printable(saved_as(files.cache))
        lines.append(f"Page: {printable(str(files.html))}. Open it in a browser; it saves {name}")
    return [*lines, f"Next: {files.command}"]


def check_alone(others: Mapping[str, object]) -> None:
    """Raise UsageError if a change is requested together with other options."""
    for option, value in others.items():
        if value:
            raise UsageError(
                f"--apply, --unapply and --unfix cannot be combined with {option}. Run one command after the other"
            )


def change(cache: Path, apply: Path | None, unapply: bool, unfix: bool, json: bool, quiet: bool) -> None:
    """Apply, take back or unfix, and print the result. Raises UsageError if more than one is requested."""
    if (apply is not None) + unapply + unfix > 1:
        raise UsageError("--apply, --unapply and --unfix cannot be combined. Leave all but one out")
    from featcache.extras import leaks

    if unfix:
        with progress(quiet) as draw:
            undone = leaks.unfix(cache, progress=draw)
        facts = asdict(undone) | {"cache": str(undone.cache)}
        emit(json, {"unfixed": facts}, lambda: _unfixed(undone))
        return
    with progress(quiet) as draw:
        if apply is None:
            reviewed = leaks.unapply(cache, progress=draw)
        else:
            reviewed = leaks.apply_review(cache, apply, progress=draw)
    emit(json, document(reviewed), lambda: _reviewed(reviewed, apply))


def document(done: Reviewed) -> dict[str, Any]:
    """Return what a review changed as it stands in JSON."""
    return {
        "cache": str(done.cache),
        "decisions": done.decisions,
        "undecided": done.undecided,
        "relabelled": [asdict(image) for image in done.relabelled],
        "dropped": len(done.dropped),
        "of_test": len(done.of_test),
        "looks": done.looks,
    }


def _reviewed(done: Reviewed, file: Path | None) -> str:
    from featcache.text import counted, printable

    name = printable(str(done.cache))
    num_dropped = len(done.dropped)
    if file is None:
        changed = counted(len(done.relabelled), "label")
        lines = [f"Decisions about labels in {name}: {done.decisions} taken back, {changed} changed."]
    else:
        changed = counted(len(done.relabelled) - num_dropped, "label")
        outcome = f"{changed} changed, {counted(num_dropped, 'image')} dropped."
        lines = [f"Decisions of {printable(str(file))}: {done.decisions}. In {name}: {outcome}"]
    if done.undecided:
        lines.append(f"Rows without a decision: {done.undecided}.")
    rows = []
    for image in done.relabelled:
        rows.append([image.path, image.before or "(dropped)", image.after or "(dropped)", image.split])
    lines += listed_table(["image", "was", "is", "split"], rows)
    if done.of_test:
        seen = f" It was opened before (looks: {done.looks}), which stays recorded." if done.looks else ""
        lines.append(f"Of these images {len(done.of_test)} are or were in test; reports say so.{seen}")
    if done.relabelled:
        lines.append(f"Runs from before have other labels. Sweep again: featcache sweep {in_shell(done.cache)}")
    if file is not None and done.decisions:
        lines.append(f"To take it back: featcache leaks {in_shell(done.cache)} --unapply")
    return "\n".join(lines)


def _unfixed(done: Unfixed) -> str:
    from featcache.text import printable

    name = printable(str(done.cache))
    if not done.images:
        return f"Nothing in {name} was put together by --fix."
    lines = [f"{done.images} images of {name} have the groups and splits from before --fix; {len(done.moved)} moved."]
    lines += moves_table(done.moved)
    lines.append(f"Images now: {counts_text(done.splits)}.")
    sweep = f"featcache sweep {in_shell(done.cache)}"
    lines.append(f"Runs from before are about other splits or groups. Sweep again: {sweep}")
    return "\n".join(lines)


def moves_table(moves: Sequence[Move]) -> list[str]:
    """Return the table of images that changed their split; nothing if none did."""
    return listed_table(["image", "was in", "is in"], [[move.path, move.before, move.after] for move in moves])
