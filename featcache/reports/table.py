"""Tables as plain text: aligned columns, no colour, the same in a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.sweeps import Run, Trial
from featcache.sweeps.metrics import Score
from featcache.sweeps.run import spelt

FEW_SELECT = 100  # validation images below which their choice is mostly chance


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the rows under their header; columns of numbers stand to the right.

    >>> print(table(["head", "score"], [["logreg", "0.95"], ["knn", "0.9"]]))
    head    score
    ------  -----
    logreg   0.95
    knn       0.9
    """
    lines = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    right = [bool(lines) and all(_is_number(line[at]) for line in lines) for at in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, right, strict=True)
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in pairs
        ).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, lines)])


def printable(text: str) -> str:
    """Return text that a terminal shows as it is: no control characters, no undecodable bytes.

    >>> printable("caf\\udce9 \\x1b[31m")
    'caf\\\\udce9 \\\\x1b[31m'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def interval(score: float, low: float, high: float) -> str:
    """Return a score with its interval.

    >>> interval(0.951, 0.918, 0.971)
    '0.951 [0.918, 0.971]'
    """
    return f"{score:.3f} [{low:.3f}, {high:.3f}]"


def trials_table(run: Run, limit: int | None = None) -> str:
    """Return the trials of a run, best first, and a line on ties and failures."""
    ranked = run.ranked
    rows = [
        (
            trial.trial,
            trial.tap,
            trial.head,
            settings_of(trial),
            interval(trial.score, *trial.interval),
            f"{trial.fit_s:.2f}",
            "yes" if trial.handoff else "no",
        )
        for trial in ranked[:limit]
    ]
    header = ["trial", "tap", "head", "setting", f"{run.settings.metric} [95 %]", "fit s", "handoff"]
    more = len(ranked) - len(rows)
    rest = [f"{more} more: featcache show {run.path}"] if more else []
    return "\n".join([table(header, rows), *rest, *_notes(run)])


def text_report(run: Run, final: dict[str, Score] | None = None) -> str:
    """Return what was done, the best trials, and the final scores if the test split was opened."""
    settings = run.settings
    how = f"{settings.cv}-fold cross-validation within train" if settings.cv else "the validation split"
    lines = [
        f"Run {run.path}",
        f"{len(run.classes)} classes, {run.num_train} training images, chosen on {run.num_select} images by {how}.",
        f"{len(run.trials)} trials in {run.seconds:.1f} s on the features of {settings.cache}",
        "",
        trials_table(run, limit=15),
        "",
    ]
    if final is not None:
        rows = [[name, interval(*found)] for name, found in final.items()]
        lines += [table(["on the test split", f"{settings.metric} [95 %]"], rows)]
        if len(run.test_opened) > 1:
            lines += [f"The test split was opened {len(run.test_opened)} times: the more looks, the less it proves."]
    else:
        lines += ["The test split was not read. When everything is decided: featcache report RUN --final"]
    return "\n".join(lines)


def settings_of(trial: Trial) -> str:
    """Return the parameters of a trial on one line."""
    return " ".join(f"{key}={spelt(value)}" for key, value in trial.params.items() if key != "hidden")


def _notes(run: Run) -> list[str]:
    ranked = run.ranked
    notes = []
    if ranked:
        best = ranked[0]
        ties = [trial for trial in ranked[1:] if trial.score >= best.interval[0]]
        equal = [trial for trial in ties if trial.score == best.score]
        if equal:
            notes.append(
                f"{len(equal) + 1} trials tie at {best.score:.4f}; best is the simplest kind, then the lower log loss."
            )
        notes.append(f"{len(ties)} of {len(ranked) - 1} other trials lie within the best one's interval.")
    if run.settings.cv is None and run.num_select < FEW_SELECT and run.num_train > run.num_select:
        notes.append(f"Only {run.num_select} images chose; --cv 5 would choose on {run.num_train}.")
    slow = [trial for trial in run.trials if not trial.converged]
    if slow:
        notes.append(
            f"{len(slow)} of {len(run.trials)} did not converge: {', '.join(str(trial.trial) for trial in slow)}."
        )
    failed = [trial for trial in run.trials if trial.status != "ok"]
    notes += [f"Trial {trial.trial} ({trial.head}) failed: {trial.status}" for trial in failed]
    return notes


def _is_number(text: str) -> bool:
    try:
        float(text.split()[0] if text else "")
    except ValueError:
        return False
    return True
