"""What is shown of a run and its trials: rows and sentences, for the command line, reports and notebooks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.sweeps.trial import Trial, settings_of
from featcache.text import counted, interval

if TYPE_CHECKING:
    from featcache.sweeps.run import Run


def trial_rows(run: Run, limit: int | None = None) -> tuple[list[str], list[list[object]]]:
    """Return the header and the rows of a run's trials, best first, at most `limit`.

    Without the columns that say nothing: tap and width if all trials are on one tap, std if there were no folds.
    """
    ranked = run.ranked
    score = f"{run.settings.metric} [95 %]"
    columns = ["trial", "tap", "width", "head", "setting", score, "std", "fit s", "MB", "handoff"]
    if all(trial.std is None for trial in ranked):
        columns.remove("std")
    if len({trial.tap for trial in ranked}) == 1:
        columns = [name for name in columns if name not in ("tap", "width")]
    rows: list[list[object]] = []
    for trial in ranked[:limit]:
        cells = _cells(trial) | {score: interval(*trial.judged)}
        rows.append([cells[name] for name in columns])
    return columns, rows


def _cells(trial: Trial) -> dict[str, object]:
    """Return {column: cell} of a trial in the table, all but its score."""
    std = "-" if trial.std is None else f"{trial.std:.3f}"
    megabytes = f"{trial.size / 1e6:.2f}" if trial.size else "-"
    return {
        "trial": trial.trial,
        "tap": trial.tap,
        "width": trial.width,
        "head": trial.head,
        "setting": settings_of(trial),
        "std": std,
        "fit s": f"{trial.fit_s:.2f}",
        "MB": megabytes,
        "handoff": "exact" if trial.handoff else "taught",
    }


def ties(run: Run) -> list[str]:
    """Return which trials the best one does not clearly beat."""
    if not run.ranked:
        return []
    best, *others = run.ranked
    tied = [trial for trial in others if best.judged.low <= trial.judged.value <= best.judged.high]
    num_equal = sum(trial.score == best.score for trial in tied)
    notes: list[str] = []
    if num_equal:
        notes.append(
            f"{num_equal + 1} trials tie at {best.score:.4f}; best is the simplest kind, then the lower log loss."
        )
    if others:
        notes.append(f"Within the best one's interval: {len(tied)} of {counted(len(others), 'other trial')}.")
    return notes


def failures(run: Run) -> list[str]:
    """Return why trials failed, a line for each reason."""
    trials_of_reason: dict[tuple[str, str], list[str]] = {}
    for trial in run.trials:
        if trial.failed:
            trials_of_reason.setdefault((trial.head, trial.status), []).append(str(trial.trial))
    lines: list[str] = []
    for (head, status), numbers in trials_of_reason.items():
        noun = "Trials" if len(numbers) > 1 else "Trial"
        lines.append(f"{noun} {', '.join(numbers)} ({head}) failed: {status}")
    return lines
